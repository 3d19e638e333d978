"""Weights of attention in few bits, so that a page of 12 layers and 12 heads over 512 tokens stays below 10 MB.

A weight w, as a part of its head's largest, becomes the nearest level of ((1 / n) ** 3, (2 / n) ** 3, ... 1): fine
where weights are small, as most are. Zero has a code of its own, for masked keys. What is below the lowest level, or
not among the largest of its row where only these are kept, has the code REST and counts as their mean, which every row
has in front, so that rows keep their sums and rows of equal weights stay as they are. The codes are compressed by zlib,
which browsers undo.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

ZERO, REST = 0, 1
POWER = 3
DENSEST = 20  # weights in a compressed byte; zlib rarely does better
SAMPLE = 1 << 21  # weights that tell how small all of them become


@dataclass(frozen=True)
class Precision:
    """bits: of a code, 16 or 8. kept: the share of a row's keys that have levels of their own. limit: compressed bytes,
    above which a coarser precision is taken."""

    bits: int
    kept: float
    limit: int

    @property
    def dtype(self) -> Any:
        return np.dtype("<u2") if self.bits == 16 else np.dtype(np.uint8)

    @property
    def levels(self) -> int:
        """Above zero."""
        return (1 << self.bits) - 2


WHOLE = 7_000_000  # bytes; in base64 4/3 of it, and the page below 10 MB
PRECISIONS = (
    Precision(16, 1, 1_000_000),
    *(Precision(8, kept, WHOLE) for kept in (1, 1 / 2, 1 / 4, 1 / 8, 1 / 12, 1 / 16, 1 / 32, 1 / 64)),
)


def encode(weights: Array, precision: Precision) -> tuple[Array, Array]:
    """Codes (..., T + 1) of weights (..., S, T) from 0 to 1: a row's rest, then its weights. And the largest weight of
    each head, float32 (...), 1 where all are 0."""
    count, top = weights.shape[-1], precision.levels
    codes = np.empty((*weights.shape[:-1], count + 1), precision.dtype)
    largest = weights.max(axis=(-2, -1)).astype(np.float32)
    largest = np.where(largest > 0, largest, np.float32(1))
    kept = max(round(precision.kept * count), min(count, 8))
    for at in np.ndindex(weights.shape[:-2]):  # head by head, as temporary arrays are several times as large
        w, made = weights[at] / largest[at], codes[at]
        level = np.rint(np.cbrt(w) * np.float32(top)).astype(np.int32)
        if kept < count:
            least = np.partition(w, count - kept, axis=-1)[:, count - kept, None]
            level[w < least] = 0
        own = np.minimum(level, top) + REST
        made[:, 1:] = np.where(w > 0, own, ZERO)
        rest = (level == 0) & (w > 0)
        mean = np.where(rest, w, 0).sum(axis=-1, dtype=np.float64) / np.maximum(rest.sum(axis=-1), 1)
        made[:, 0] = np.rint(np.cbrt(mean) * top) + REST
    return codes, largest


def decode(codes: Array, largest: Array, precision: Precision) -> Array:
    """Weights (..., S, T) float32 of what `encode` gave, as the page computes them."""
    values = levels(precision.levels)
    own = codes[..., 1:]
    weights: Array = np.where(own == REST, values[codes[..., :1]], values[own]) * largest[..., None, None]
    return weights


def levels(count: int) -> Array:
    """(count + 2,) float32: the weight of each code; that of ZERO and REST is 0."""
    steps = np.maximum(np.arange(count + 2) - REST, 0) / count
    return (steps**POWER).astype(np.float32)


def compress(data: bytes) -> bytes:
    return zlib.compress(data, 6)


def choose(parts: Sequence[Array]) -> Precision:
    """The finest precision in which all weights (..., S, T) of a page are small enough, judged by some of their rows.
    ValueError: there is none."""
    total = sum(part.size for part in parts)
    check(total)
    step = max(1, -(-total // SAMPLE))
    rows = [part.reshape(1, -1, part.shape[-1])[:, ::step] for part in parts]
    share = total / max(sum(part.size for part in rows), 1)
    for precision in PRECISIONS:
        if total > DENSEST * precision.limit:
            continue
        size = sum(len(compress(encode(part, precision)[0].tobytes())) for part in rows) * share
        if size < precision.limit * (0.95 if step > 1 else 1):
            return precision
    raise _too_many(total)


def check(count: int) -> None:
    """ValueError: so many weights are too many in any precision."""
    if count > DENSEST * WHOLE:
        raise _too_many(count)


def _too_many(count: int) -> ValueError:
    return ValueError(
        f"view: {count} weights do not fit into a page of 10 MB; show a shorter text, or fewer layers or heads"
    )
