"""question-answering: where in a context the answer to a question stands."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from .. import ops
from ..batching import check_integer
from ..layers import Array
from .texts import PADDINGS, TextPipeline

MOST = 384  # tokens of a window, where nobody says anything
SHARED = 128  # tokens that windows have in common
NEVER = np.float32(-10000)  # a logit


@dataclass(frozen=True)
class AnswerOptions:
    """top_k: how many answers, the best one outside a list. doc_stride: tokens that the windows of a long context have
    in common; None: 128, or half of a window. max_answer_len: tokens of an answer. max_seq_len: tokens of a window with
    the question; None: 384, or as many as the model takes. max_question_len: cut the question to so many tokens; None:
    it is not cut. handle_impossible_answer: whether there may be no answer, "". align_to_words: make answers whole
    words. padding: as transformers has it; it changes nothing."""

    top_k: int = 1
    doc_stride: int | None = None
    max_answer_len: int = 15
    max_seq_len: int | None = None
    max_question_len: int | None = None
    handle_impossible_answer: bool = False
    align_to_words: bool = True
    padding: bool | str = False

    def __post_init__(self) -> None:
        for name in ("top_k", "max_answer_len", "max_seq_len", "max_question_len"):
            check_integer("question-answering", name, getattr(self, name))
        check_integer("question-answering", "doc_stride", self.doc_stride, 0)
        if self.padding not in PADDINGS:
            raise ValueError(
                f"question-answering: padding must be one of {', '.join(map(repr, PADDINGS))}; got {self.padding!r}"
            )


class QuestionAnsweringPipeline(TextPipeline):
    """{"question": ..., "context": ...} to {"score", "start", "end", "answer"}; start and end count the characters of
    the context. Inputs may also stand in question= and context=, each a string or a list. As in transformers, a list
    of one gives that one's result."""

    Options: ClassVar[type[Any]] = AnswerOptions
    fields = ("start_logits", "end_logits")

    def __call__(self, *inputs: Any, question: Any = None, context: Any = None, **options: Any) -> Any:
        given = self._given(inputs, question, context)
        if isinstance(given, Iterator):
            return super().__call__(given, **options)
        results = super().__call__(given, **options)
        return results[0] if len(given) == 1 else results

    def _given(self, inputs: tuple[Any, ...], question: Any, context: Any) -> Any:
        """A list of dictionaries, or an iterator over some."""
        if len(inputs) == 2 and all(isinstance(text, str) for text in inputs):
            return [{"question": inputs[0], "context": inputs[1]}]
        if inputs:
            if question is not None or context is not None:
                raise ValueError(f"{self.task}: pass inputs, or question and context, but not both")
            given = inputs[0] if len(inputs) == 1 else list(inputs)
            if isinstance(given, dict):
                return [given]
            if isinstance(given, (str, bytes)) or not isinstance(given, Iterable):
                raise TypeError(
                    f"{self.task}: an input must have a question and a context; got a {type(given).__name__}"
                )
            return given if isinstance(given, Iterator) else list(given)
        if question is None or context is None:
            raise ValueError(f"{self.task}: {'question' if question is None else 'context'} is missing")
        questions = question if isinstance(question, list) else [question]
        contexts = context if isinstance(context, list) else [context] * len(questions)
        if len(questions) != len(contexts):
            raise ValueError(f"{self.task}: {len(questions)} questions, but {len(contexts)} contexts")
        return [{"question": q, "context": c} for q, c in zip(questions, contexts, strict=True)]

    def prepare(self, inputs: list[Any], o: AnswerOptions) -> list[list[Any]]:
        limit = self.tokenizer.max_length
        window = o.max_seq_len or (MOST if limit is None else min(limit, MOST))
        stride = min(window // 2, SHARED) if o.doc_stride is None else o.doc_stride
        if stride > window:
            raise ValueError(f"{self.task}: doc_stride {stride} is larger than max_seq_len {window}")
        pairs = [self._checked(given) for given in inputs]
        questions, contexts = [question for question, _ in pairs], [context for _, context in pairs]
        if o.max_question_len is not None:
            questions = self._cut(questions, o.max_question_len)
        first, second = (questions, contexts) if self._question_first() else (contexts, questions)
        try:
            rows = self.tokenizer.encode_batch(
                first,
                second,
                truncation="only_second" if self._question_first() else "only_first",
                max_length=window,
                stride=stride,
                return_overflowing_tokens=True,
            )
        except ValueError as error:
            if not any(word in str(error) for word in ("stride", "too short")):
                raise
            raise ValueError(
                f"{self.task}: a question leaves too little room for a context in windows of {window} tokens of which "
                f"doc_stride {stride} are shared; pass max_question_len, or other ones ({error})"
            ) from None
        return [[row, *row.overflowing] for row in rows]

    def _checked(self, given: Any) -> tuple[str, str]:
        if not isinstance(given, dict):
            raise TypeError(
                f"{self.task}: an input must be a dictionary with question and context; got {type(given).__name__}"
            )
        for name in ("question", "context"):
            if name not in given:
                raise ValueError(f"{self.task}: an input has no {name}")
            if not self.text(given[name], name):
                raise ValueError(f"{self.task}: {name} is empty")
        return given["question"], given["context"]

    def _cut(self, questions: list[str], length: int) -> list[str]:
        rows = self.tokenizer.encode_batch(questions, add_special_tokens=False, truncation=True, max_length=length)
        return [q[: row.offsets[-1][1]] if row.ids else q for q, row in zip(questions, rows, strict=True)]

    def _question_first(self) -> bool:
        return self.tokenizer.padding_side == "right"

    def finish(self, given: dict[str, str], rows: list[Any], outputs: list[Any], o: AnswerOptions) -> Any:
        answers: list[dict[str, Any]] = []
        null = np.inf
        for row, logits in zip(rows, outputs, strict=True):
            of_context = np.array([s == int(self._question_first()) for s in row.sequence_ids])
            cls = np.array(row.ids) == self.tokenizer.cls_token_id  # where some models say that there is no answer
            start, end = (ops.softmax(np.where(of_context | cls, x[: len(row.ids)], NEVER)) for x in logits)
            null = min(null, float(start[0] * end[0]))
            for a, b, score in _spans(start, end, of_context, o.top_k, o.max_answer_len):
                begin, stop = _characters(row, a, b, o.align_to_words)
                answers.append({"score": score, "start": begin, "end": stop, "answer": given["context"][begin:stop]})
        if o.handle_impossible_answer:
            answers.append({"score": null, "start": 0, "end": 0, "answer": ""})
        answers = sorted(answers, key=lambda answer: -float(answer["score"]))[: o.top_k]
        return answers[0] if len(answers) == 1 else answers


def _spans(start: Array, end: Array, allowed: Array, top_k: int, longest: int) -> list[tuple[int, int, float]]:
    """The k best pairs of first and last token with the product of their probabilities, the best first."""
    if not allowed.any():
        return []
    width = min(longest, len(start))

    def windows(x: Array) -> Array:
        """(n, width): behind each token, itself and those that follow; behind the last one 0."""
        return np.lib.stride_tricks.sliding_window_view(np.pad(x, (0, width - 1)), width)

    fits = windows(allowed) & allowed[:, None]
    scores = np.where(fits, start[:, None] * windows(end), -1).reshape(-1)
    k = min(top_k, int(fits.sum()))
    best = np.sort(np.argpartition(-scores, k - 1)[:k])
    best = best[np.argsort(-scores[best], kind="stable")]
    return [(int(i // width), int(i // width + i % width), float(scores[i])) for i in best]


def _characters(row: Any, first: int, last: int, words: bool) -> tuple[int, int]:
    """From the beginning of one token to the end of another, or of the words that they are in."""
    if words and row.word_ids[first] is not None and row.word_ids[last] is not None:

        def same(i: int, j: int) -> bool:
            return (row.sequence_ids[i], row.word_ids[i]) == (row.sequence_ids[j], row.word_ids[j])

        while first > 0 and same(first - 1, first):
            first -= 1
        while last + 1 < len(row.ids) and same(last + 1, last):
            last += 1
    return row.offsets[first][0], row.offsets[last][1]
