"""sinusoidal_positions and alibi_slopes against the papers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import qkv
from checks import each_isa
from qkv import reference

SHAPES = [(0, 4), (4, 0), (1, 2), (1, 4), (5, 6), (5, 7), (3, 1), (17, 64), (513, 512), (10_000, 8)]


@pytest.mark.parametrize("n, dim", SHAPES)
def test_sinusoids_of_the_paper(n: int, dim: int) -> None:
    """Vaswani 2017, 3.5: PE[p, 2i] = sin(p / 10000^(2i/dim)), PE[p, 2i+1] its cosine. An odd dim ends in a sine."""
    angle = np.arange(n)[:, None] / 10000.0 ** (np.arange(0, dim, 2) / max(dim, 1))
    halves = np.concatenate([np.sin(angle), np.cos(angle)], -1)[:, :dim]
    paper = np.empty((n, dim))
    paper[:, 0::2], paper[:, 1::2] = halves[:, : (dim + 1) // 2], halves[:, (dim + 1) // 2 :]
    for function in (qkv.sinusoidal_positions, reference.sinusoidal_positions):
        for out, expected in ((function(n, dim), paper), (function(n, dim, interleaved=False), halves)):
            assert out.dtype == np.float32 and out.shape == (n, dim) and out.flags.writeable
            # float64 inside, rounded once; two float64 formulas may round apart at an exact tie
            np.testing.assert_array_max_ulp(out, expected.astype(np.float32), 1)


def test_sinusoids_are_fresh() -> None:
    first = qkv.sinusoidal_positions(3, 4)
    first[...] = 7
    assert qkv.sinusoidal_positions(3, 4)[0].tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize("n, dim", [(-1, 4), (4, -2)])
def test_sinusoids_refuse(n: int, dim: int) -> None:
    with pytest.raises(ValueError, match="sinusoidal_positions"):
        qkv.sinusoidal_positions(n, dim)


@pytest.mark.parametrize("n, dim", [(2**62, 2**40), (10**30, 4), (4, 10**30)])
def test_sinusoids_beyond_memory(n: int, dim: int) -> None:
    with pytest.raises((ValueError, MemoryError, OverflowError)):
        qkv.sinusoidal_positions(n, dim)


@pytest.mark.parametrize("n, dim", [(1.5, 4), ("3", 4), (None, 4), (4, 2.0)])
def test_sinusoids_want_integers(n: object, dim: object) -> None:
    with pytest.raises(TypeError, match="sinusoidal_positions"):
        qkv.sinusoidal_positions(n, dim)  # type: ignore[arg-type]


def alibi_of_the_paper(heads: int) -> list[float]:
    """Press 2022: a geometric sequence from 2^(-8/n), n a power of two; for any other n the slopes of the closest
    smaller power, then every other one of twice that power's."""
    if math.log2(heads).is_integer():
        return [2.0 ** (-8 * (i + 1) / heads) for i in range(heads)]
    closest = 2 ** math.floor(math.log2(heads))
    return alibi_of_the_paper(closest) + alibi_of_the_paper(2 * closest)[0::2][: heads - closest]


@pytest.mark.parametrize("heads", range(1, 72))
def test_alibi(heads: int) -> None:
    for _ in each_isa():
        out = qkv.alibi_slopes(heads)
        assert out.dtype == np.float32 and out.shape == (heads,)
        np.testing.assert_allclose(out, alibi_of_the_paper(heads), rtol=1.2e-7)
    np.testing.assert_array_equal(out, reference.alibi_slopes(heads))


def test_alibi_numbers_of_the_paper() -> None:
    assert qkv.alibi_slopes(8).tolist() == [2.0**-i for i in range(1, 9)]
    assert qkv.alibi_slopes(16)[:2].tolist() == [np.float32(2**-0.5), 0.5]


def test_alibi_refuses() -> None:
    for heads in (-1, 0):
        with pytest.raises(ValueError, match="alibi_slopes"):
            qkv.alibi_slopes(heads)
    with pytest.raises((ValueError, MemoryError, OverflowError)):
        qkv.alibi_slopes(2**62)
    for wrong in (1.5, "8", None):
        with pytest.raises(TypeError, match="alibi_slopes"):
            qkv.alibi_slopes(wrong)  # type: ignore[arg-type]
