"""Attention weights as a picture of characters, for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .layers import Array

UNICODE, ASCII = " ░▒▓█", " .:*#"


def shades_for(encoding: str | None) -> str:
    """Blocks where an output's encoding has them, else ASCII."""
    try:
        UNICODE.encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return ASCII
    return UNICODE


def draw(
    weights: Array, queries: Sequence[str], keys: Sequence[str], *, width: int = 80, shades: str = UNICODE
) -> list[str]:
    """Lines of text: the keys above, then for each query its weights, as shades of its largest.

    weights (S, T), not negative; queries S and keys T tokens, of which each gets the place of one character: the first,
    if that is printable ASCII, else a dot. width: of the lines; keys that do not fit follow in further panels.
    ValueError: the shapes do not match.
    """
    if weights.shape != (len(queries), len(keys)):
        raise ValueError(f"draw: weights {weights.shape} for {len(queries)} queries and {len(keys)} keys")
    largest = weights.max(axis=1, keepdims=True, initial=np.finfo(np.float32).tiny)
    levels = np.rint(weights / largest * (len(shades) - 1)).astype(int)  # (S, T)
    room = max(width - 2, 1)
    lines: list[str] = []
    for start in range(0, len(keys), room):
        if start:
            lines.append("")
        lines.append("  " + "".join(_one(key) for key in keys[start : start + room]))
        for query, row in zip(queries, levels[:, start : start + room], strict=True):
            lines.append(f"{_one(query)} {''.join(shades[level] for level in row)}".rstrip())
    return lines


def _one(token: str) -> str:
    """What stands for a token: text is untrusted, and a terminal obeys control characters."""
    first = token[:1]
    return first if first and first.isascii() and first.isprintable() else "."
