"""Tokenizers that the `tokenizers` package cannot express: what they share, with the methods that its own have."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from .encoding import Encoding, Truncation
from .special import Added

Piece = tuple[str, int, int, int]  # token, first character, one behind the last, number of its word


class Backend:
    """Splits a text at added tokens and leaves what lies between to `pieces`.

    vocabulary: token -> id. before, between, after: special tokens around and between the texts of an input. added: by
    id; tokens among them that the vocabulary lacks count as added. pair_types: the second text of a pair is of type 1.
    """

    pair_types = True

    def __init__(
        self,
        vocabulary: Mapping[str, int],
        *,
        unk_token: str,
        before: Sequence[str] = (),
        between: Sequence[str] = (),
        after: Sequence[str] = (),
        added: Mapping[int, Added] | None = None,
    ):
        self.vocabulary = dict(vocabulary)
        self.unk_token = unk_token
        self.added = dict(added or {})
        self.names = {i: token for token, i in self.vocabulary.items()}
        self.names.update({i: token.content for i, token in self.added.items()})
        self.added_ids = {token.content: i for i, token in self.added.items()}
        self.before, self.between, self.after = list(before), list(between), list(after)
        self.truncation: Truncation | None = None
        longest = sorted(filter(None, self.added_ids), key=len, reverse=True)
        self.pattern = re.compile("|".join(map(re.escape, longest)) or r"(?!)")

    # ---- what each kind does in its own way

    def pieces(self, text: str) -> Iterable[Piece]:
        """The tokens of a text without added tokens."""
        raise NotImplementedError

    def join(self, tokens: Sequence[str]) -> str:
        """The text of tokens."""
        raise NotImplementedError

    # ---- as a tokenizers.Tokenizer has them

    def cut(self, truncation: Truncation | None) -> Backend:
        """The same that cuts texts so."""
        other = copy.copy(self)
        other.truncation = truncation
        return other

    def token_to_id(self, token: str) -> int | None:
        found = self.added_ids.get(token)
        return self.vocabulary.get(token) if found is None else found

    def id_to_token(self, index: int) -> str | None:
        return self.names.get(index)

    def get_vocab(self, with_added_tokens: bool = True) -> dict[str, int]:
        return {**self.vocabulary, **self.added_ids} if with_added_tokens else dict(self.vocabulary)

    def get_vocab_size(self, with_added_tokens: bool = True) -> int:
        return len(self.get_vocab(with_added_tokens))

    def get_added_tokens_decoder(self) -> dict[int, Added]:
        return dict(self.added)

    def num_special_tokens_to_add(self, is_pair: bool) -> int:
        return len(self.before) + len(self.between) * is_pair + len(self.after)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        special = {i for i, token in self.added.items() if token.special} if skip_special_tokens else set()
        return self.join([self.names.get(i, self.unk_token) for i in ids if i not in special])

    def encode_batch(
        self, inputs: Sequence[Any], is_pretokenized: bool = False, add_special_tokens: bool = True
    ) -> list[Encoding]:
        result = []
        for item in inputs:
            parts = list(item) if isinstance(item, tuple) else [item]
            encoded = [self._part(text, k, is_pretokenized) for k, text in enumerate(parts)]
            result.append(self._assemble(encoded, add_special_tokens))
        return result

    def _part(self, text: Any, sequence: int, words: bool) -> Encoding:
        if words:
            found = [(t, a, b, k) for k, word in enumerate(text) for t, a, b, _ in self._split(word)]
        else:
            found = list(self._split(text))
        return Encoding(
            ids=[self._id(token) for token, *_ in found],
            type_ids=[sequence * self.pair_types] * len(found),
            tokens=[token for token, *_ in found],
            offsets=[(start, end) for _, start, end, _ in found],
            special_tokens_mask=[0] * len(found),
            sequence_ids=[sequence] * len(found),
            word_ids=[word for *_, word in found],
        )

    def _id(self, token: str) -> int:
        found = self.token_to_id(token)
        return self.vocabulary[self.unk_token] if found is None else found

    def _split(self, text: str) -> Iterator[Piece]:
        """Added tokens, and the pieces of what lies between."""
        at, word = 0, 0
        for match in self.pattern.finditer(text):
            start, end = match.span()
            if start < at:
                continue  # inside of the white space that the token before took along
            token = self.added[self.added_ids[match[0]]]
            if token.single_word and (
                text[max(start - 1, 0) : start] not in ("", " ") or text[end : end + 1].strip(" ")
            ):
                continue
            before = text[at:start].rstrip() if token.lstrip else text[at:start]
            last = word - 1
            for piece, a, b, k in self.pieces(before):
                last = word + k
                yield piece, at + a, at + b, last
            word = last + 1
            yield match[0], start, end, word
            word += 1
            while token.rstrip and end < len(text) and text[end].isspace():
                end += 1
            at = end
        for piece, a, b, k in self.pieces(text[at:]):
            yield piece, at + a, at + b, word + k

    def _assemble(self, parts: list[Encoding], special: bool) -> Encoding:
        windows = [parts]
        if self.truncation is not None:
            special_tokens = self.num_special_tokens_to_add(len(parts) > 1) if special else 0
            room = self.truncation.max_length - special_tokens
            windows = _windows(parts, room, self.truncation)
        first, *rest = [self._template(window, special) for window in windows]
        first.overflowing = rest
        return first

    def _template(self, parts: list[Encoding], special: bool) -> Encoding:
        before, between, after = (self.before, self.between, self.after) if special else ([], [], [])
        last = (len(parts) - 1) * self.pair_types
        inner = [part for text in parts[1:] for part in (_special(between, self, 0), text)]
        whole = [_special(before, self, 0), parts[0], *inner, _special(after, self, last)]
        fields = ("ids", "type_ids", "tokens", "offsets", "special_tokens_mask", "sequence_ids", "word_ids")
        return Encoding(**{name: [value for e in whole for value in getattr(e, name)] for name in fields})


def _special(tokens: Sequence[str], backend: Backend, kind: int) -> Encoding:
    n = len(tokens)
    ids = [backend._id(token) for token in tokens]
    return Encoding(ids, [kind] * n, list(tokens), [(0, 0)] * n, [1] * n, [None] * n, [None] * n)


def _windows(parts: list[Encoding], room: int, truncation: Truncation) -> list[list[Encoding]]:
    """Texts cut to `room` tokens together, then the windows of what was cut off, as tokenizers has them; how a pair
    shares the room is transformers' rule for tokenizers like these."""
    lengths = [len(part) for part in parts]
    excess = sum(lengths) - max(room, 0)
    if excess <= 0:
        return [parts]
    if truncation.strategy == "longest_first" and len(parts) == 2:
        first, second = lengths
        level = min(abs(first - second), excess)
        rest = excess - level
        take = [rest // 2, level + rest - rest // 2]
        if first > second:
            take = [level + rest // 2, rest - rest // 2]
        kept = [max(n - t, 0) for n, t in zip(lengths, take, strict=True)]
        return [[_spans(p, n, 0, truncation.direction)[0] for p, n in zip(parts, kept, strict=True)]]
    which = 1 if truncation.strategy == "only_second" else 0
    if which >= len(parts):
        raise ValueError('truncation "only_second" is for pairs')
    if lengths[which] < excess:
        raise ValueError(f'max_length leaves no room for what truncation "{truncation.strategy}" does not cut')
    spans = _spans(parts[which], lengths[which] - excess, truncation.stride, truncation.direction)
    return [[*parts[:which], span, *parts[which + 1 :]] for span in spans]


def _spans(part: Encoding, size: int, stride: int, direction: str) -> list[Encoding]:
    if size == 0:
        return [_slice(part, 0, 0)]
    step = max(size - stride, 1)
    starts, n = [], len(part)
    for start in range(0, n, step):
        starts.append(start)
        if start + size >= n:
            break
    spans = [(start, min(start + size, n)) for start in starts]
    if direction == "left":
        spans = [(n - end, n - start) for start, end in spans]
    return [_slice(part, start, end) for start, end in spans]


def _slice(part: Encoding, start: int, end: int) -> Encoding:
    return Encoding(
        part.ids[start:end],
        part.type_ids[start:end],
        part.tokens[start:end],
        part.offsets[start:end],
        part.special_tokens_mask[start:end],
        part.sequence_ids[start:end],
        part.word_ids[start:end],
    )
