"""What a tokenizer makes of one text or pair, and how such encodings are cut to a length."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

STRATEGIES = ("longest_first", "only_first", "only_second")


@dataclass
class Encoding:
    """Of one text, or of a pair, the lists that have one entry per token.

    offsets: where a token stands, (first character, one behind the last), in the text that it came from, which
    sequence_ids names: 0 the first, 1 the second, None a special token. word_ids: the number of its word. overflowing:
    the windows that follow where the text was cut, in order.
    """

    ids: list[int] = field(default_factory=list)
    type_ids: list[int] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    offsets: list[tuple[int, int]] = field(default_factory=list)
    special_tokens_mask: list[int] = field(default_factory=list)
    sequence_ids: list[int | None] = field(default_factory=list)
    word_ids: list[int | None] = field(default_factory=list)
    overflowing: list[Encoding] = field(default_factory=list)

    @classmethod
    def of(cls, encoding: Any, *, overflowing: bool = False) -> Encoding:
        """A tokenizers.Encoding, or what a backend of ours made, with its windows or without."""
        return cls(
            ids=list(encoding.ids),
            type_ids=list(encoding.type_ids),
            tokens=list(encoding.tokens),
            offsets=list(encoding.offsets),
            special_tokens_mask=list(encoding.special_tokens_mask),
            sequence_ids=list(encoding.sequence_ids),
            word_ids=list(encoding.word_ids),
            overflowing=[cls.of(e) for e in encoding.overflowing] if overflowing else [],
        )

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Truncation:
    """To max_length tokens, special ones included. strategy: of STRATEGIES, which of a pair loses tokens. direction:
    the side that loses them. stride: tokens that a window shares with the one before."""

    max_length: int
    stride: int = 0
    strategy: str = "longest_first"
    direction: str = "right"


def check_inputs(texts: Any, pairs: Any, words: bool) -> list[Any]:
    """What encode_batch of a backend takes: texts, or tuples of two. words: a text is a list of words. TypeError: a
    text is none; ValueError: it has a lone surrogate, or there are not as many pairs as texts."""

    def alone(value: Any) -> bool:
        return isinstance(value, str) or (words and bool(value) and isinstance(value[0], str))

    def check(text: Any) -> Any:
        parts = text if words else [text]
        if words and not isinstance(text, (list, tuple)):
            raise TypeError(f"tokenizer: expected lists of words; got {type(text).__name__}")
        for part in parts:
            if not isinstance(part, str):
                raise TypeError(f"tokenizer: expected strings; got {type(part).__name__}")
            try:
                part.encode()
            except UnicodeEncodeError:  # versions of tokenizers before 0.20 would leave it out
                raise ValueError("tokenizer: a text has a lone surrogate, which is no Unicode character") from None
        return list(text) if words else text

    first = [texts] if alone(texts) else list(texts)
    if pairs is not None:
        second = [pairs] if alone(pairs) else list(pairs)
        if len(second) != len(first):
            raise ValueError(f"tokenizer: {len(first)} texts, but {len(second)} pairs")
        return [(check(a), check(b)) for a, b in zip(first, second, strict=True)]
    inputs: list[Any] = []
    for text in first:
        pair = isinstance(text, (list, tuple)) and len(text) == 2
        if pair and (isinstance(text[0], str) if not words else isinstance(text[0], (list, tuple))):
            inputs.append((check(text[0]), check(text[1])))
        else:
            inputs.append(check(text))
    return inputs


def clean_up(text: str) -> str:
    """Without the spaces that BERT's tokens leave before punctuation and in English contractions."""
    for mark in (" .", " ?", " !", " ,"):
        text = text.replace(mark, mark[1:])
    text = text.replace(" ' ", "'")
    for part in ("n't", "'m", "'s", "'ve", "'re"):
        text = text.replace(f" {part}", part)
    return text
