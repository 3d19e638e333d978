"""The little of protocol buffers that SentencePiece's files need, read without that package.

Format: https://protobuf.dev/programming-guides/encoding/; the messages:
https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto
"""

from __future__ import annotations

import math
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

VARINT, EIGHT, BYTES, FOUR = 0, 1, 2, 5  # wire types
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # types of pieces
UNIGRAM, BPE = 1, 2


@dataclass
class SpmModel:
    """A .model or .spm file: the pieces (text, score, type), and of the specs what decides how text is split."""

    pieces: list[tuple[str, float, int]]
    model_type: int
    unk_id: int
    bos_id: int
    eos_id: int
    byte_fallback: bool
    charsmap: bytes
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool


def fields(data: memoryview) -> Iterator[tuple[int, Any]]:
    """The fields of a message: number, and an integer or bytes. ValueError: it is none."""
    at, end = 0, len(data)

    def varint() -> int:
        nonlocal at
        value = 0
        for shift in range(0, 70, 7):
            if at >= end:
                raise ValueError("truncated")
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise ValueError("a number of more than 64 bits")

    while at < end:
        key = varint()
        kind = key & 7
        if kind == VARINT:
            yield key >> 3, varint()
            continue
        if kind not in (EIGHT, BYTES, FOUR):
            raise ValueError(f"a field of the unknown type {kind}")
        size = varint() if kind == BYTES else (8 if kind == EIGHT else 4)
        if size > end - at:
            raise ValueError("truncated")
        yield key >> 3, data[at : at + size]
        at += size


def read_spm(data: bytes, where: str) -> SpmModel:
    """ValueError, naming the file: it is no SentencePiece model, or broken."""
    try:
        pieces: list[tuple[str, float, int]] = []
        trainer: dict[int, Any] = {}
        normalizer: dict[int, Any] = {}
        for number, value in fields(memoryview(data)):
            if number == 1:
                pieces.append(_piece(value))
            elif number in (2, 3):
                (trainer if number == 2 else normalizer).update(fields(value))
        model = SpmModel(
            pieces,
            model_type=int(trainer.get(3, UNIGRAM)),
            unk_id=_signed(trainer.get(40, 0)),
            bos_id=_signed(trainer.get(41, 1)),
            eos_id=_signed(trainer.get(42, 2)),
            byte_fallback=bool(trainer.get(35, False)),
            charsmap=bytes(memoryview(normalizer.get(2, b""))),
            add_dummy_prefix=bool(normalizer.get(3, True)),
            remove_extra_whitespaces=bool(normalizer.get(4, True)),
        )
    except (ValueError, TypeError, struct.error) as error:
        raise ValueError(f"{where}: no SentencePiece model, or a broken one ({error})") from None
    if not pieces or not 0 <= model.unk_id < len(pieces):
        raise ValueError(f"{where}: a SentencePiece model of {len(pieces)} pieces, whose unknown one is {model.unk_id}")
    if model.model_type not in (UNIGRAM, BPE):
        raise ValueError(f"{where}: SentencePiece models of type {model.model_type} are not supported; 1 and 2 are")
    names = [piece for piece, _, _ in pieces]
    if len(set(names)) != len(names):
        twice, _ = Counter(names).most_common(1)[0]
        raise ValueError(f"{where}: the piece {twice!r:.99} is there twice")
    return model


def _piece(message: memoryview) -> tuple[str, float, int]:
    found = dict(fields(message))
    score = struct.unpack("<f", found[2])[0] if 2 in found else 0.0
    if not math.isfinite(score):
        raise ValueError(f"a score that is {score}")
    return str(found.get(1, b""), "utf-8"), float(score), int(found.get(3, NORMAL))


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


def split_text(message: bytes, text: str) -> list[tuple[str, int, int]]:
    """Of a serialized SentencePieceText the pieces, with their places in the text in characters; SentencePiece counts
    bytes."""
    found = [dict(fields(value)) for number, value in fields(memoryview(message)) if number == 2]
    at = list(range(len(text) + 1))
    if not text.isascii():
        at, k = [], 0
        for k, char in enumerate(text):
            at += [k] * len(char.encode())
        at.append(k + 1)
    return [(str(f.get(1, b""), "utf-8"), at[f.get(4, 0)], at[f.get(5, 0)]) for f in found]
