"""Attention as characters: shades by hand, panels, and text that a terminal should not get to see."""

from __future__ import annotations

import numpy as np
import pytest
from qkv.shades import ASCII, UNICODE, draw, shades_for

WEIGHTS = np.array([[0.8, 0.2, 0.0], [0.25, 0.25, 0.5]], np.float32)


def test_by_hand() -> None:
    """Shades are of a row's largest: 0, 1/4, 1/2, 3/4 and 1 of it."""
    assert draw(WEIGHTS, "xy", "abc") == ["  abc", "x █░", "y ▒▒█"]
    assert draw(WEIGHTS, "xy", "abc", shades=ASCII) == ["  abc", "x #.", "y ::#"]


def test_panels() -> None:
    assert draw(WEIGHTS, "xy", "abc", width=4) == ["  ab", "x █░", "y ▒▒", "", "  c", "x", "y █"]
    assert len(draw(WEIGHTS, "xy", "abc", width=0)) == 3 * 3 + 2


def test_tokens_have_one_place_each() -> None:
    """Text is untrusted: control characters, wide ones and those that have no width would break the lines or worse."""
    assert draw(WEIGHTS, ["\x1b[2J", "word"], ["日", "", "</s>"])[0] == "  ..<"
    assert [line[0] for line in draw(WEIGHTS, ["\x1b[2J", "word"], ["日", "\u0301", "\n"])[1:]] == [".", "w"]


def test_nothing_to_draw() -> None:
    assert draw(np.zeros((0, 2)), [], "ab") == ["  ab"]
    assert draw(np.zeros((1, 0)), "x", []) == []
    assert draw(np.zeros((1, 2)), "x", "ab") == ["  ab", "x"]


def test_shapes() -> None:
    with pytest.raises(ValueError, match=r"weights \(2, 3\) for 1 queries and 3 keys"):
        draw(WEIGHTS, "x", "abc")


def test_encodings() -> None:
    assert [shades_for(name) for name in ("utf-8", "UTF-16", "cp437")] == [UNICODE] * 3
    assert [shades_for(name) for name in ("ascii", "latin-1", None, "no such encoding")] == [ASCII] * 4
