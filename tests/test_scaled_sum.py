"""scaled_sum: NumPy's bits, in one pass."""

from __future__ import annotations

import numpy as np
import pytest
from checks import each_isa, normal, same_bits, sizes
from qkv.ops import divided, scaled_sum


@pytest.mark.parametrize("width", [0, *sizes()])
def test_sizes(width: int, rng: np.random.Generator) -> None:
    x, whole, row = normal(rng, (7, width)), normal(rng, (7, width)), normal(rng, (width,))
    scale = np.float32(0.3)
    for _ in each_isa():
        assert same_bits(scaled_sum(x, 0.3), x * scale)
        assert same_bits(divided(x, 0.3), x / scale)
        assert same_bits(scaled_sum(x, 0.3, whole), x * scale + whole)
        assert same_bits(scaled_sum(x, 0.3, row), x * scale + row)
        assert same_bits(scaled_sum(x[0], 1, row), x[0] + row)


def test_many_rows_and_special_values(rng: np.random.Generator) -> None:
    x, other = normal(rng, (3000, 65)), normal(rng, (3000, 65))
    x[5, :6] = np.nan, np.inf, -np.inf, 1e-45, -0.0, 3e38
    with np.errstate(all="ignore"):
        expected = x * np.float32(-2.5) + other
    for _ in each_isa():
        assert same_bits(scaled_sum(x, -2.5, other), expected)


def test_refuses(rng: np.random.Generator) -> None:
    x = normal(rng, (4, 8))
    for wrong in (x[:, ::2], x.T):
        with pytest.raises(ValueError, match=r"scaled_sum: x must be contiguous"):
            scaled_sum(wrong, 1)
        with pytest.raises(ValueError, match=r"scaled_sum: other must be contiguous"):
            scaled_sum(x, 1, wrong)
    for shape in ((4,), (1, 8), (4, 7), (2, 4, 8), ()):
        with pytest.raises(ValueError, match=r"scaled_sum: other must have x's shape"):
            scaled_sum(x, 1, np.zeros(shape, np.float32))


def test_float32_alone(rng: np.random.Generator) -> None:
    x = normal(rng, (4, 8))
    for wrong in (x.astype(np.float16), x.astype(np.float64)):
        with pytest.raises(ValueError, match=r"scaled_sum: x must be contiguous float32"):
            scaled_sum(wrong, 1)
        with pytest.raises(ValueError, match=r"scaled_sum: other must be contiguous float32"):
            scaled_sum(x, 1, wrong)
