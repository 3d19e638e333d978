"""top_k: the largest of each row, as a stable sort finds them."""

from __future__ import annotations

import numpy as np
import pytest
from checks import each_isa, normal, same_bits, sizes
from qkv.ops import top_k


def check(x: np.ndarray, k: int) -> None:
    with np.errstate(invalid="ignore"):
        order = np.argsort(-x, axis=1, kind="stable")[:, :k]  # NumPy sorts NaN to the end
    expected = np.take_along_axis(x, order, axis=1)
    for _ in each_isa():
        values, places = top_k(x, k)
        np.testing.assert_array_equal(places, order)
        assert same_bits(values, expected)


@pytest.mark.parametrize("width", sizes())
def test_sizes(width: int, rng: np.random.Generator) -> None:
    x = normal(rng, (5, width))
    for k in {1, 2, min(8, width), width // 2 + 1, width}:
        check(x, min(k, width))


def test_equal_ones(rng: np.random.Generator) -> None:
    x = rng.integers(0, 3, (9, 500)).astype(np.float32)
    for k in (1, 7, 200, 500):
        check(x, k)
        check(np.zeros_like(x), k)


def test_infinities_and_nan(rng: np.random.Generator) -> None:
    x = normal(rng, (40, 100))
    for value in (np.nan, np.inf, -np.inf, 0.0, -0.0):
        x[rng.random(x.shape) < 0.2] = value
    x[0], x[1], x[2, 3:] = np.nan, -np.inf, np.nan
    for k in (1, 5, 60, 100):
        check(x, k)


def test_a_vocabulary(rng: np.random.Generator) -> None:
    x = normal(rng, (12, 50_257))
    for k in (1, 8, 50, 1000):
        check(x, k)
    check(np.sort(x, axis=1), 8)


def test_refuses_what_is_not_contiguous_float32(rng: np.random.Generator) -> None:
    x = normal(rng, (4, 8))
    for wrong in (x[:, ::2], x[0], x.astype(np.float16), x.astype(np.float64)):
        with pytest.raises(ValueError, match="top_k: x must be contiguous float32"):
            top_k(wrong, 1)


def test_refuses(rng: np.random.Generator) -> None:
    x = normal(rng, (4, 8))
    with pytest.raises(ValueError, match=r"top_k: x must be .*\(rows, n\)"):
        top_k(x[0], 1)
    for k in (0, -1, 9):
        with pytest.raises(ValueError, match="top_k: k must lie in 1 to 8"):
            top_k(x, k)
    assert top_k(x[:0], 3)[0].shape == (0, 3)
