"""Rows of text through a model: in batches by tokens, checked against what the model takes.

A row is what a tokenizer makes of a text: an object with `ids` and `type_ids`, without padding.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from .layers import Array

TOKENS = 4096  # of a batch: work enough for all threads, and tens of megabytes in a model of ordinary width


def batches(lengths: Sequence[int], size: int | None = None) -> Iterator[list[int]]:
    """The numbers of all rows in batches, the longest rows first. size: rows of a batch; None: up to TOKENS tokens,
    or one row."""
    batch: list[int] = []
    tokens = 0
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        if batch and (len(batch) == size or (size is None and tokens + lengths[row] > TOKENS)):
            yield batch
            batch, tokens = [], 0
        batch.append(row)
        tokens += lengths[row]
    if batch:
        yield batch


def check_integer(where: str, name: str, value: Any, low: int = 1) -> None:
    """ValueError: a value is neither None nor an integer of at least `low`."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < low):
        raise ValueError(f"{where}: {name} must be an integer of at least {low}; got {value!r:.99}")


def show_progress(what: str, done: int, total: int) -> None:
    """Writes over the line on standard error that says how many are done."""
    print(f"\r{what} {done} of {total}", end="\n" * (done == total), file=sys.stderr, flush=True)


def padded(model: Any, rows: Sequence[Any], types: bool, where: str, advice: str = "") -> dict[str, Array]:
    """What a model's call takes, (B, S) each. types: whether it gets token_type_ids. where, advice: for messages.

    ValueError: a row is longer than the model takes, or has a token that the model does not have."""
    # a model of two stacks reads with its encoder; Transformer-XL's table is in pieces, and its call checks
    word = getattr(getattr(model, "encoder", model).embeddings, "word", None)
    shape = len(rows), max((len(row.ids) for row in rows), default=0)
    batch = {name: np.zeros(shape, np.int64) for name in ("input_ids", "attention_mask", "token_type_ids")}
    for b, row in enumerate(rows):
        n = len(row.ids)
        if n == 0:
            raise ValueError(f"{where}: the tokenizer makes no token of an empty text, and the model needs one")
        if model.max_tokens is not None and n > model.max_tokens:
            raise ValueError(f"{where}: a text has {n} tokens, and the model takes {model.max_tokens}{advice}")
        for value, values in zip(batch.values(), (row.ids, 1, row.type_ids), strict=True):
            value[b, :n] = values
    if word is not None and batch["input_ids"].max(initial=0) >= word.rows:
        raise ValueError(
            f"{where}: the tokenizer gives token {batch['input_ids'].max()}, and the model has {word.rows} tokens: "
            "they are not made for each other"
        )
    if not types:
        del batch["token_type_ids"]
    return batch


def compute(
    model: Any, rows: Sequence[Any], fields: Sequence[str], types: bool, where: str, advice: str = ""
) -> list[list[Array]]:
    """Fields of the model's output for each row; what stands at its padding is not cut off. Arguments, errors: as
    `padded`."""
    results: list[list[Array]] = [[] for _ in rows]
    for group in _alike(model, rows):
        out = model(**padded(model, [rows[i] for i in group], types, where, advice))
        for i, *of_row in zip(group, *(out[name] for name in fields), strict=True):
            results[i] = of_row
    return results


def _alike(model: Any, rows: Sequence[Any]) -> list[list[int]]:
    """The numbers of rows that the model takes together: BART labels a row where its last eos is, and takes rows with
    equal numbers of them only; Transformer-XL takes no padding."""
    eos = getattr(getattr(model, "pooler", None), "eos", None)
    groups: dict[int, list[int]] = {}
    for i, row in enumerate(rows):
        key = row.ids.count(eos) if eos is not None else len(row.ids) if hasattr(model, "mem_len") else 0
        groups.setdefault(key, []).append(i)
    return list(groups.values())


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)), without overflow."""
    e = np.exp(-np.abs(x))
    result: Array = np.where(x >= 0, 1, e) / (1 + e)
    return result
