"""token-classification: a label for each token of a text, or for the words and groups of words that tokens make up."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, ClassVar

import numpy as np

from .. import ops
from ..batching import check_integer
from ..layers import Array
from .texts import TextPipeline, labels

STRATEGIES = ("none", "simple", "first", "average", "max")
Entity = dict[str, Any]


@dataclass(frozen=True)
class TagOptions:
    """aggregation_strategy: "none", every token for itself; "simple", neighbours of one label together; "first",
    "average", "max": so too, but words have one label, that of their first token, of the mean of their scores, or of
    their surest token. ignore_labels: labels, or groups, to leave out. stride: read a text that is longer than the
    model in windows that share so many tokens; None: cut it. is_split_into_words: inputs are lists of words, joined by
    `delimiter` in what start and end count. offset_mapping: (start, end) of each token in place of the tokenizer's."""

    aggregation_strategy: str = ""
    ignore_labels: Sequence[str] = ("O",)
    stride: int | None = None
    is_split_into_words: bool = False
    delimiter: str = " "
    offset_mapping: Sequence[Any] | None = None

    def __post_init__(self) -> None:
        check_integer("token-classification", "stride", self.stride, 0)
        strategy = self.aggregation_strategy
        if strategy and strategy not in STRATEGIES:
            raise ValueError(
                f"token-classification: aggregation_strategy must be one of {', '.join(STRATEGIES)}; got {strategy!r}"
            )
        if self.stride is not None and strategy == "none":
            raise ValueError("token-classification: stride does not go with aggregation_strategy 'none'")
        if self.stride is not None and self.offset_mapping is not None:
            raise ValueError("token-classification: stride does not go with offset_mapping")
        if isinstance(self.ignore_labels, str):
            raise TypeError("token-classification: ignore_labels must be a list of labels; got a string")


class TokenClassificationPipeline(TextPipeline):
    """A text to its labelled tokens, dictionaries with entity, score, index, word, start and end, or to groups of them,
    with entity_group, score, word, start and end. start and end count the characters of the text."""

    Options: ClassVar[type[Any]] = TagOptions

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self.labels = labels(self.model.config)

    def __call__(self, inputs: Any, **options: Any) -> Any:
        o = self.read({n: v for n, v in options.items() if n not in ("batch_size", "show_progress_bar")})
        if o.is_split_into_words and isinstance(inputs, list) and not all(isinstance(words, list) for words in inputs):
            inputs = [inputs]  # one text, whose result is in a list all the same
        if o.offset_mapping is None:
            return super().__call__(inputs, **options)
        one, given = not isinstance(inputs, list), list(o.offset_mapping)
        mappings = [given] if given and np.ndim(given[0]) == 1 else given
        if isinstance(inputs, Iterator) or len(mappings) != (1 if one else len(inputs)):
            raise ValueError(f"{self.task}: offset_mapping must be a list of (start, end) for each text that is given")
        results = []
        for text, mapping in zip([inputs] if one else inputs, mappings, strict=True):
            results.append(super().__call__(text, **{**options, "offset_mapping": mapping}))
        return results[0] if one else results

    def is_one(self, inputs: list[Any], o: TagOptions) -> bool:
        return o.is_split_into_words and not all(isinstance(words, list) for words in inputs)

    def prepare(self, inputs: list[Any], o: TagOptions) -> list[list[Any]]:
        limit, stride = self.tokenizer.max_length, o.stride
        if stride is not None and limit is not None and stride >= limit:
            raise ValueError(f"{self.task}: stride must be less than the {limit} tokens that the model takes")
        for given in inputs:
            if not o.is_split_into_words:
                self.text(given)
            elif not isinstance(given, list):
                raise TypeError(f"{self.task}: an input must be a list of words; got {type(given).__name__}")
            for word in given if o.is_split_into_words else ():
                self.text(word, "a word")
        rows = self.tokenizer.encode_batch(
            inputs,
            truncation=limit is not None,
            stride=stride or 0,
            return_overflowing_tokens=stride is not None,
            is_split_into_words=o.is_split_into_words,
        )
        return [[row, *row.overflowing] if stride is not None else [row] for row in rows]

    def finish(self, given: Any, rows: list[Any], outputs: list[Any], o: TagOptions) -> list[Entity]:
        strategy = o.aggregation_strategy or "none"
        text, firsts = given, None
        if o.is_split_into_words:
            text = o.delimiter.join(given)
            firsts = list(accumulate((len(word) + len(o.delimiter) for word in given), initial=0))
        found = []
        for row, (logits,) in zip(rows, outputs, strict=True):
            tokens = self._tokens(text, row, ops.softmax(logits[: len(row.ids)]), firsts, o)
            entities = (
                self._words(tokens, strategy) if strategy in ("first", "average", "max") else self._single(tokens)
            )
            if strategy != "none":
                entities = self._groups(entities)
            found += [e for e in entities if e.get("entity", e.get("entity_group")) not in o.ignore_labels]
        return _without_overlaps(found) if len(rows) > 1 else found

    def _tokens(
        self, text: str, row: Any, scores: Array, firsts: list[int] | None, o: TagOptions
    ) -> list[tuple[Entity, Array, bool]]:
        """Of each token that is not special its place, its scores, and whether it goes on with a word. firsts: where
        each word begins."""
        mapping = row.offsets if o.offset_mapping is None else o.offset_mapping
        if len(mapping) < len(row.ids):
            raise ValueError(f"{self.task}: offset_mapping has {len(mapping)} places for {len(row.ids)} tokens")
        marked = bool(getattr(getattr(self.tokenizer.backend, "model", None), "continuing_subword_prefix", None))
        found = []
        for i, (token, special) in enumerate(zip(row.ids, row.special_tokens_mask, strict=True)):
            if special:
                continue
            word, (start, end) = row.tokens[i], map(int, mapping[i])
            if firsts is not None and row.word_ids[i] is not None:
                start, end = start + firsts[row.word_ids[i]], end + firsts[row.word_ids[i]]
            shown = text[start:end]
            if token == self.tokenizer.unk_token_id:
                word, goes_on = shown, False
            elif marked:  # the mark makes a token longer than what it stands for
                goes_on = len(word) != len(shown)
            else:
                goes_on = start > 0 and " " not in text[start - 1 : start + 1]
            found.append(({"index": i, "word": word, "start": start, "end": end}, scores[i], goes_on))
        return found

    def _single(self, tokens: list[tuple[Entity, Array, bool]]) -> list[Entity]:
        found = []
        for place, scores, _ in tokens:
            best = int(scores.argmax())
            found.append({"entity": self.labels[best], "score": float(scores[best]), **place})
        return found

    def _words(self, tokens: list[tuple[Entity, Array, bool]], strategy: str) -> list[Entity]:
        """Tokens of a word together."""
        words: list[list[tuple[Entity, Array, bool]]] = []
        for token in tokens:
            if words and token[2]:
                words[-1].append(token)
            else:
                words.append([token])
        found = []
        for word in words:
            scores = word[0][1]
            if strategy == "max":
                scores = max((scores for _, scores, _ in word), key=lambda scores: scores.max())
            elif strategy == "average":
                scores = np.mean([scores for _, scores, _ in word], axis=0)
            best = int(scores.argmax())
            places = [place for place, *_ in word]
            found.append(
                {
                    "entity": self.labels[best],
                    "score": float(scores[best]),
                    "word": self._join([place["word"] for place in places]),
                    "start": places[0]["start"],
                    "end": places[-1]["end"],
                }
            )
        return found

    def _groups(self, entities: list[Entity]) -> list[Entity]:
        """Neighbours with one label together, unless one begins anew, with B-."""
        groups: list[list[Entity]] = []
        for entity in entities:
            begins, tag = _tag(entity["entity"])
            if groups and tag == _tag(groups[-1][-1]["entity"])[1] and not begins:
                groups[-1].append(entity)
            else:
                groups.append([entity])
        return [
            {
                "entity_group": group[0]["entity"].split("-", 1)[-1],
                "score": float(np.mean([entity["score"] for entity in group])),
                "word": self._join([entity["word"] for entity in group]),
                "start": group[0]["start"],
                "end": group[-1]["end"],
            }
            for group in groups
        ]

    def _join(self, tokens: list[str]) -> str:
        backend = self.tokenizer.backend
        if hasattr(backend, "join"):  # one of qkv's own
            return str(backend.join(tokens))
        return " ".join(tokens) if backend.decoder is None else str(backend.decoder.decode(tokens))


def _tag(label: str) -> tuple[bool, str]:
    """Whether a label begins a group, and the group's. A label without B- or I- goes on with its like."""
    return label.startswith("B-"), label[2:] if label.startswith(("B-", "I-")) else label


def _without_overlaps(entities: list[Entity]) -> list[Entity]:
    """Of those that windows of a text have in common the longest, and of equally long ones the surest."""
    kept: list[Entity] = []
    for entity in sorted(entities, key=lambda entity: int(entity["start"])):
        if not kept or not kept[-1]["start"] <= entity["start"] < kept[-1]["end"]:
            kept.append(entity)
            continue
        length, before = (e["end"] - e["start"] for e in (entity, kept[-1]))
        if (length, entity["score"]) > (before, kept[-1]["score"]):
            kept[-1] = entity
    return kept
