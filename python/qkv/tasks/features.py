"""feature-extraction: the last hidden states of texts, one vector for each token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from .hidden import hidden_states
from .texts import TextPipeline, tokenize_settings


@dataclass(frozen=True)
class FeatureOptions:
    """return_tensors: an array instead of nested lists. tokenize_kwargs: truncation, max_length, padding,
    add_special_tokens; truncation may stand by itself."""

    return_tensors: bool = False
    truncation: bool | str | None = None
    tokenize_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.truncation is not None and "truncation" in self.tokenize_kwargs:
            raise ValueError("feature-extraction: truncation is given twice, by itself and in tokenize_kwargs")
        if self.tokenize_kwargs.get("padding") == "max_length":
            raise ValueError("feature-extraction: padding 'max_length' is not supported: padding has no features")


class FeatureExtractionPipeline(TextPipeline):
    """A text to its hidden states: [[[...], ...]], 1 x tokens x width, special tokens included.

    A head that the model may have is left out, as transformers leaves it out where it loads a model for this task.
    """

    Options: ClassVar[type[Any]] = FeatureOptions
    advice = "; pass truncation=True to cut it"

    def prepare(self, inputs: list[Any], o: FeatureOptions) -> list[list[Any]]:
        given = dict(o.tokenize_kwargs)
        if o.truncation is not None:
            given["truncation"] = o.truncation
        settings = tokenize_settings(self.task, given)
        return [[row] for row in self.tokenizer.encode_batch([self.text(text) for text in inputs], **settings)]

    def forward(self, rows: list[Any], o: FeatureOptions) -> Sequence[Any]:
        return hidden_states(self.model, rows, self.types, self.task, self.advice)

    def finish(self, given: str, rows: list[Any], outputs: list[Any], o: FeatureOptions) -> Any:
        (states,) = outputs
        return states[None].copy() if o.return_tensors else [states.tolist()]
