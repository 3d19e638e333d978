"""fill-mask: the tokens that may stand where a text has mask tokens."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from .. import ops
from ..batching import check_integer
from ..layers import Array
from ..placement import host
from .hidden import hidden_states
from .texts import TextPipeline, tokenize_settings


@dataclass(frozen=True)
class FillOptions:
    """top_k: how many tokens for each mask. targets: words, of which alone the scores are wanted. tokenizer_kwargs:
    truncation, max_length, padding, add_special_tokens."""

    top_k: int = 5
    targets: str | Sequence[str] | None = None
    tokenizer_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_integer("fill-mask", "top_k", self.top_k, 0)
        names = [self.targets] if isinstance(self.targets, str) else self.targets
        if names is not None and not (isinstance(names, (list, tuple)) and all(isinstance(n, str) for n in names)):
            raise TypeError("fill-mask: targets must be a string or a list of strings")
        if names is not None and not names:
            raise ValueError("fill-mask: targets must have at least one word")


class FillMaskPipeline(TextPipeline):
    """A text with mask tokens to the tokens that fit best: dictionaries with score, token, token_str and sequence, the
    best first; a list of them for each mask, if there are several. As in transformers, a list of one text gives that
    text's result."""

    Options: ClassVar[type[Any]] = FillOptions
    advice = '; pass tokenizer_kwargs={"truncation": True} to cut it'

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        head = self.model.head  # type: ignore[attr-defined]
        self.logits = next(h.logits for h in (head, *getattr(head, "heads", ())) if hasattr(h, "logits"))
        if self.tokenizer.mask_token_id is None:
            raise ValueError("fill-mask: the tokenizer has no mask token")

    def __call__(self, inputs: Any, **options: Any) -> Any:
        results = super().__call__(inputs, **options)
        return results[0] if isinstance(inputs, list) and len(inputs) == 1 else results

    def prepare(self, inputs: list[Any], o: FillOptions) -> list[list[Any]]:
        settings = tokenize_settings(self.task, o.tokenizer_kwargs)
        rows = self.tokenizer.encode_batch([self.text(text) for text in inputs], **settings)
        for text, row in zip(inputs, rows, strict=True):
            if self.tokenizer.mask_token_id not in row.ids:
                raise ValueError(f"fill-mask: no {self.tokenizer.mask_token} in the text {text!r:.60}")
        return [[row] for row in rows]

    def forward(self, rows: list[Any], o: FillOptions) -> Sequence[Any]:
        """Of each row the probabilities (n, k) and ids (n, k) of the best tokens for its n masks."""
        states = hidden_states(self.model, rows, self.types, self.task, self.advice)
        mask, targets = self.tokenizer.mask_token_id, self._targets(o)
        results = []
        for x, row in zip(states, rows, strict=True):  # logits of the masks alone: a vocabulary is large
            logits = host(self.logits(x[np.array(row.ids) == mask]))
            results.append(_best(ops.softmax(logits), o.top_k, targets))
        return results

    def finish(self, given: str, rows: list[Any], outputs: list[Any], o: FillOptions) -> Any:
        ((scores, tokens),), (row,) = outputs, rows
        places = [i for i, token in enumerate(row.ids) if token == self.tokenizer.mask_token_id]
        pad, single = self.tokenizer.pad_token_id, len(places) == 1
        results = []
        for place, of_mask, ids in zip(places, scores.tolist(), tokens.tolist(), strict=True):
            found = []
            for score, token in zip(of_mask, ids, strict=True):
                filled = [token if i == place else own for i, own in enumerate(row.ids)]
                found.append(
                    {
                        "score": score,
                        "token": token,
                        "token_str": self.tokenizer.decode([token], skip_special_tokens=False),
                        # other masks are special tokens, and are to be seen
                        "sequence": self.tokenizer.decode([t for t in filled if t != pad], skip_special_tokens=single),
                    }
                )
            results.append(found)
        return results[0] if single else results

    def _targets(self, o: FillOptions) -> Array | None:
        """Their ids. A word that is no token of its own stands for its first one."""
        if o.targets is None:
            return None
        ids = []
        for name in [o.targets] if isinstance(o.targets, str) else o.targets:
            token = self.tokenizer.backend.token_to_id(name)
            if token is None:
                (row,) = self.tokenizer.encode_batch([name], add_special_tokens=False, truncation=False)
                if not row.ids:
                    warnings.warn(f"fill-mask: the tokenizer makes nothing of the target {name!r}", stacklevel=2)
                    continue
                token = row.ids[0]
                warnings.warn(f"fill-mask: the target {name!r} is no token; {row.tokens[0]!r} is taken", stacklevel=2)
            ids.append(token)
        if not ids:
            raise ValueError("fill-mask: none of the targets is a token")
        return np.unique(ids)


def _best(scores: Array, top_k: int, targets: Array | None) -> tuple[Array, Array]:
    """The best k of probabilities (n, V) and their ids, both (n, k). targets: the ids that may be chosen."""
    if targets is not None:
        scores, top_k = scores[:, targets], min(top_k, targets.size)
    if top_k > scores.shape[1]:
        raise ValueError(f"fill-mask: top_k {top_k} is more than the {scores.shape[1]} tokens of the model")
    order = np.sort(np.argpartition(-scores, top_k - 1, axis=1)[:, :top_k], axis=1)  # not yet by score
    order = np.take_along_axis(
        order, np.argsort(-np.take_along_axis(scores, order, axis=1), axis=1, kind="stable"), axis=1
    )
    best = np.take_along_axis(scores, order, axis=1)
    return best, order if targets is None else targets[order]
