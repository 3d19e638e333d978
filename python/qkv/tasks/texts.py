"""Pipelines of texts that the model reads in one call: what tokenizing them and labelling has in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from .. import ops
from ..batching import check_integer, compute, sigmoid
from ..config import Config
from ..layers import Array
from .base import Pipeline

TRUNCATIONS = (True, False, "longest_first", "only_first", "only_second", "do_not_truncate")
PADDINGS = (True, False, "longest", "max_length", "do_not_pad")
FUNCTIONS = ("default", "sigmoid", "softmax", "none")
TOKENIZE = ("truncation", "max_length", "padding", "add_special_tokens")


class TextPipeline(Pipeline):
    """Rows are a tokenizer's encodings; `fields` of the model's output are theirs. advice: what to do about a text that
    is too long."""

    fields: ClassVar[tuple[str, ...]] = ("logits",)
    advice: ClassVar[str] = ""

    def length(self, row: Any) -> int:
        return len(row.ids)

    def forward(self, rows: list[Any], o: Any) -> Sequence[Any]:
        """Of each row a list of the fields' arrays, padding included."""
        return compute(self.model, rows, self.fields, self.types, self.task, self.advice)

    @property
    def types(self) -> bool:
        """Whether the model gets token_type_ids."""
        return self.tokenizer.types and self.model.token_types and "token_type_ids" in self.model.inputs

    def text(self, value: Any, name: str = "an input") -> str:
        """A string that is given. TypeError: it is none."""
        if not isinstance(value, str):
            raise TypeError(f"{self.task}: {name} must be a string; got {type(value).__name__}")
        return value


def tokenize_settings(where: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a tokenizer as a user gives them, for Tokenizer.encode_batch. As in transformers, nothing is cut
    unless truncation or max_length says so. There is no padding: it would change no result but that of
    feature-extraction. ValueError: an argument that is unknown or wrong."""
    for name in given:
        if name not in TOKENIZE:
            raise ValueError(f"{where}: the tokenizer has no argument {name} here; known are {', '.join(TOKENIZE)}")
    truncation, length, padding, special = (given.get(name) for name in TOKENIZE)
    if padding is not None and padding not in PADDINGS:
        raise ValueError(f"{where}: padding must be one of {', '.join(map(repr, PADDINGS))}; got {padding!r}")
    if special not in (None, True, False):
        raise ValueError(f"{where}: add_special_tokens must be True or False; got {special!r}")
    check_integer(where, "max_length", length)
    if truncation is None:
        truncation = length is not None and not padding
    if truncation not in TRUNCATIONS:
        raise ValueError(f"{where}: truncation must be one of {', '.join(map(repr, TRUNCATIONS))}; got {truncation!r}")
    truncation = False if truncation == "do_not_truncate" else truncation
    return {
        "truncation": truncation,
        "max_length": length if truncation else None,
        "add_special_tokens": special is not False,
    }


def check_function(where: str, name: Any) -> None:
    """ValueError: what is to be applied to logits is not one of FUNCTIONS, in any case of letters."""
    if str(name).lower() not in FUNCTIONS:
        raise ValueError(f"{where}: function_to_apply must be one of {', '.join(FUNCTIONS)}; got {name!r:.99}")


def labels(config: Config) -> list[str]:
    """What a head's outputs mean, LABEL_i where nobody says it. ValueError: id2label is not for 0, 1, 2, ..."""
    count = config.num_labels()
    given = config.get("id2label")
    if given is None:
        return [f"LABEL_{i}" for i in range(count)]
    if not all(isinstance(given.get(str(i)), str) for i in range(count)):
        raise config.error("id2label", f"an object with a string for each of 0 to {count - 1}")
    return [given[str(i)] for i in range(count)]


def applied(function: str, logits: Array, config: Config) -> Array:
    """Scores of a head's outputs (labels,). function: one of FUNCTIONS; "default" is what problem_type asks for."""
    function = str(function).lower()
    if function == "default":
        problem = config.get("problem_type")
        several = len(logits) > 1 and problem != "multi_label_classification"
        function = "none" if problem == "regression" else "softmax" if several else "sigmoid"
    return sigmoid(logits) if function == "sigmoid" else ops.softmax(logits) if function == "softmax" else logits


def label_ids(config: Config) -> dict[str, int]:
    """The number of each label by its name: label2id, else id2label turned round."""
    given = config.get("label2id")
    if given is None:
        return {name: i for i, name in enumerate(labels(config))}
    count = config.num_labels()
    if not isinstance(given, dict) or not all(type(i) is int and 0 <= i < count for i in given.values()):
        raise config.error("label2id", f"an object of integers from 0 to {count - 1}")
    return dict(given)
