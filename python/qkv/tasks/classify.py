"""Labels for texts: text-classification by the labels of the model, zero-shot-classification by any others."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from .. import ops
from ..batching import check_integer
from .texts import TOKENIZE, TextPipeline, applied, check_function, label_ids, labels, tokenize_settings


@dataclass(frozen=True)
class ClassifyOptions:
    """top_k: how many labels, best first, None for all; "" for the best one, outside a list. return_all_scores: an
    older way to say top_k, which leaves all labels in the model's order. function_to_apply: on logits, one of
    FUNCTIONS; "default" is softmax, sigmoid for a single label or problem_type multi_label_classification, and nothing
    for regression. The rest are the tokenizer's."""

    top_k: Any = ""
    return_all_scores: bool = False
    function_to_apply: str = "default"
    truncation: bool | str | None = None
    max_length: int | None = None
    padding: bool | str | None = None
    add_special_tokens: bool | None = None

    def __post_init__(self) -> None:
        if self.top_k != "":
            check_integer("text-classification", "top_k", self.top_k, 0)
        check_function("text-classification", self.function_to_apply)


class TextClassificationPipeline(TextPipeline):
    """A text, or {"text": ..., "text_pair": ...}, to its labels with scores, as transformers has them: a dictionary
    for each text of a list, a list of one for a single string, and lists of dictionaries with top_k."""

    Options: ClassVar[type[Any]] = ClassifyOptions
    NONE = frozenset({"top_k"})
    advice = "; pass truncation=True to cut it"

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self.labels = labels(self.model.config)

    def __call__(self, inputs: Any, **options: Any) -> Any:
        result = super().__call__(inputs, **options)
        return [result] if isinstance(inputs, str) and "top_k" not in options else result

    def prepare(self, inputs: list[Any], o: ClassifyOptions) -> list[list[Any]]:
        settings = tokenize_settings(self.task, {name: getattr(o, name) for name in TOKENIZE})
        rows = self.tokenizer.encode_batch([self._text_or_pair(given) for given in inputs], **settings)
        return [[row] for row in rows]

    def _text_or_pair(self, given: Any) -> str | tuple[str, str]:
        if isinstance(given, list) and len(given) == 1 and isinstance(given[0], list) and len(given[0]) == 2:
            given = dict(zip(("text", "text_pair"), given[0], strict=True))  # an older form of a pair
        if isinstance(given, str):
            return given
        if not isinstance(given, dict):
            raise TypeError(
                f"{self.task}: an input must be a string, or a dictionary with text and text_pair; "
                f"got {type(given).__name__}"
            )
        if "text" not in given or not given.keys() <= {"text", "text_pair"}:
            raise ValueError(f"{self.task}: expected the keys text and text_pair; got {', '.join(map(str, given))}")
        text, pair = self.text(given["text"], "text"), given.get("text_pair")
        # an empty one is none, as in transformers
        return text if pair is None or not self.text(pair, "text_pair") else (text, pair)

    def finish(self, given: Any, rows: list[Any], outputs: list[Any], o: ClassifyOptions) -> Any:
        ((logits,),) = outputs
        scores = applied(o.function_to_apply, logits, self.model.config)
        legacy = o.top_k == ""
        if legacy and not o.return_all_scores:
            return {"label": self.labels[int(scores.argmax())], "score": float(scores.max())}
        order = range(len(scores)) if legacy else np.argsort(-scores, kind="stable")[: o.top_k]
        return [{"label": self.labels[i], "score": float(scores[i])} for i in order]


@dataclass(frozen=True)
class ZeroShotOptions:
    """candidate_labels: strings, or one with commas. hypothesis_template: a sentence with {} for the label.
    multi_label: whether several may be true, each with a score of its own."""

    candidate_labels: Sequence[str] | str | None = None
    hypothesis_template: str = "This example is {}."
    multi_label: bool = False

    def __post_init__(self) -> None:
        names = self.names()
        if self.candidate_labels is not None and not names:
            raise ValueError("zero-shot-classification: candidate_labels must have at least one label")
        if not all(isinstance(name, str) for name in names):
            raise TypeError("zero-shot-classification: candidate_labels must be strings")
        template = self.hypothesis_template
        try:
            takes = isinstance(template, str) and template.format("label") != template
        except (IndexError, KeyError, ValueError):
            takes = False
        if not takes:
            raise ValueError(
                f"zero-shot-classification: hypothesis_template needs {{}} where the label goes; got {template!r:.99}"
            )

    def names(self) -> list[str]:
        given = self.candidate_labels
        if isinstance(given, str):
            return [name.strip() for name in given.split(",") if name.strip()]
        return list(given or ())


class ZeroShotClassificationPipeline(TextPipeline):
    """Texts to labels that the model was not trained for: a model of natural language inference tells for each label
    whether a sentence with it follows from the text (Yin et al. 2019)."""

    Options: ClassVar[type[Any]] = ZeroShotOptions
    advice = ", the label's sentence included, which is too long by itself"

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        numbers = label_ids(self.model.config)
        found = [number for name, number in numbers.items() if name.lower().startswith("entail")]
        if not found:
            warnings.warn(
                f"{self.task}: no label of the model begins with 'entail'; the last one is taken for entailment",
                stacklevel=3,
            )
        self.entailment = found[0] if found else -1

    def __call__(  # type: ignore[override]  # with the names that transformers has
        self, sequences: Any, candidate_labels: Any = None, **options: Any
    ) -> Any:
        if candidate_labels is not None:
            options["candidate_labels"] = candidate_labels
        return super().__call__(sequences, **options)

    def prepare(self, inputs: list[Any], o: ZeroShotOptions) -> list[list[Any]]:
        names = o.names()
        if not names:
            raise ValueError(f"{self.task}: candidate_labels are missing")
        if not all(self.text(given) for given in inputs):
            raise ValueError(f"{self.task}: an input is empty")
        hypotheses = [o.hypothesis_template.format(name) for name in names]
        texts = [given for given in inputs for _ in names]
        rows = self._encode(texts, hypotheses * len(inputs))
        return [rows[k : k + len(names)] for k in range(0, len(rows), len(names))]

    def _encode(self, texts: list[str], hypotheses: list[str]) -> list[Any]:
        """Pairs, of which the text is cut. Where it is too short to be cut as far as it should be, nothing is."""
        try:
            return list(self.tokenizer.encode_batch(texts, hypotheses, truncation="only_first"))
        except ValueError as error:
            if "too short" not in str(error):
                raise
        return list(self._one_by_one(texts, hypotheses))

    def _one_by_one(self, texts: list[str], hypotheses: list[str]) -> Iterator[Any]:
        for text, hypothesis in zip(texts, hypotheses, strict=True):
            try:
                yield self.tokenizer.encode_batch([text], [hypothesis], truncation="only_first")[0]
            except ValueError:
                yield self.tokenizer.encode_batch([text], [hypothesis], truncation=False)[0]

    def finish(self, given: str, rows: list[Any], outputs: list[Any], o: ZeroShotOptions) -> dict[str, Any]:
        names = o.names()
        logits = np.stack([of_label for (of_label,) in outputs])  # (labels, the model's labels)
        if o.multi_label or len(names) == 1:
            contradiction = -1 if self.entailment == 0 else 0
            scores = ops.softmax(np.ascontiguousarray(logits[:, [contradiction, self.entailment]]))[:, 1]
        else:
            scores = ops.softmax(np.ascontiguousarray(logits[:, self.entailment]))
        order = scores.argsort()[::-1]
        return {"sequence": given, "labels": [names[i] for i in order], "scores": [float(scores[i]) for i in order]}
