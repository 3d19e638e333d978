"""What a model reads for `qkv view` and `qkv trace`: a text or a pair of texts, and what a decoder writes of them."""

from __future__ import annotations

import warnings
from typing import Any

from .sources import Array

NEW_TOKENS = 64  # of a target that the model makes


def makes_tokens(model: Any) -> bool:
    """Whether it generates. A masked language model has logits too, but neither a cache nor a memory."""
    grows = getattr(model, "cache", None) is not None or hasattr(model, "mem_len")
    return grows and hasattr(getattr(model, "head", None), "logits")


def has_two_stacks(model: Any) -> bool:
    return hasattr(model, "encoder") and hasattr(model, "decoder")


def check(command: str, model: Any, target: Any, pair: str | None) -> None:
    """ValueError: the model takes no target, or no second text."""
    kind = f"{command}: a {model.architecture}"
    if target is not None and not has_two_stacks(model):
        raise ValueError(f"{kind} has no decoder beside an encoder, so it takes no target")
    if pair is not None and (has_two_stacks(model) or makes_tokens(model)):
        raise ValueError(f"{kind} reads one text, so it takes no pair")


def read(command: str, model: Any, text: str, pair: str | None) -> dict[str, Any]:
    """The inputs of a model's call, of one row. ValueError: it takes no texts, or there are no tokens. UserWarning: the
    text is cut."""
    if "input_ids" not in model.inputs:
        raise ValueError(f"{command}: a {model.architecture} takes no texts")
    texts = ([text],) if pair is None else ([text], [pair])
    batch = dict(model.tokenizer(*texts))
    whole, kept = len(model.tokenizer.encode_batch(*texts, truncation=False)[0].ids), batch["input_ids"].shape[1]
    _tell_cut(command, "text", whole, kept)
    if not kept:
        raise ValueError(f"{command}: the text has no tokens")
    return batch


def target_ids(model: Any, target: str) -> Array:
    """(S,): the start token, the text's, and the one that ends it."""
    from ..score import decoder_ids

    ids: Array = decoder_ids(model, target)[0][0]
    return ids


def as_much_as_fits(command: str, model: Any, ids: Array) -> Array:
    """(1, S) of a target's ids (S,). UserWarning: the decoder has no positions for the others."""
    limit = getattr(model.decoder.embeddings, "limit", None)
    fed = ids[None, :limit]
    _tell_cut(command, "target", len(ids), fed.shape[1])
    return fed


def new_tokens(model: Any) -> int:
    """How many a target has at most that the model makes."""
    return min(NEW_TOKENS, getattr(model.decoder.embeddings, "limit", None) or NEW_TOKENS)


def _tell_cut(command: str, what: str, tokens: int, kept: int) -> None:
    if kept < tokens:
        said = f"{command}: the {what} is cut to {kept} of its {tokens} tokens, what the model takes"
        warnings.warn(said, stacklevel=6)  # the caller of qkv.trace
