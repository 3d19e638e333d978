"""softmax and log_softmax against the float64 reference."""

from __future__ import annotations

from typing import Any

import naive
import numpy as np
import pytest
import qkv
from checks import FLOAT16, FLOAT32, assert_close, each_isa, normal, oracle, same_bits, sizes, strided
from qkv.ops import log_softmax_parts
from scipy import special

OPS = ["softmax", "log_softmax"]


def check(op: str, x: Any, axis: int = -1, what: str = "") -> None:
    with np.errstate(all="ignore"):
        ref, yardstick = oracle(op, x, axis), naive.softmax(x, axis, log=op == "log_softmax")
    for _ in each_isa():
        assert_close(getattr(qkv, op)(x, axis), ref, yardstick, f"{op} {x.shape} axis {axis} {what}")


@pytest.mark.parametrize("op", OPS)
def test_sizes(op: str, dtype: np.dtype[Any], rng: np.random.Generator) -> None:
    for n in [*sizes(), 1000, 4099]:
        check(op, normal(rng, (3, n), dtype, 3))
    for n in [1, 2, 17, 100]:
        check(op, normal(rng, n, dtype))
        check(op, normal(rng, (n, 5), dtype))


@pytest.mark.parametrize("op", OPS)
def test_axes(op: str, dtype: np.dtype[Any], rng: np.random.Generator) -> None:
    x = normal(rng, (3, 17, 2, 33), dtype)
    for axis in range(-4, 4):
        check(op, x, axis)


@pytest.mark.parametrize("op", OPS)
def test_strides(op: str, dtype: np.dtype[Any], rng: np.random.Generator) -> None:
    x = normal(rng, (5, 3, 67), dtype)
    for _ in each_isa():
        for axis in (-1, 1):
            plain = getattr(qkv, op)(x, axis)
            for name, view in strided(x).items():
                assert same_bits(getattr(qkv, op)(view, axis), plain), f"{name} {axis}"
    check(op, np.broadcast_to(normal(rng, (1, 67), dtype), (5, 67)))
    check(op, np.broadcast_to(normal(rng, (5, 1), dtype), (5, 67)))


@pytest.mark.parametrize("op", OPS)
def test_values_at_the_edge(op: str, dtype: np.dtype[Any], rng: np.random.Generator) -> None:
    top = 3e4 if dtype == FLOAT16 else 1e30
    for n in (1, 2, 15, 16, 17, 65, 257):
        x = normal(rng, (4, n), dtype)
        check(op, x * dtype.type(1e-6), what="nearly equal")
        check(op, (x * dtype.type(100)), what="spread")
        check(op, x + dtype.type(1000), what="far from zero")
        check(op, np.clip(x, -1, 1).astype(dtype) * dtype.type(top), what="large")
        check(op, np.full((2, n), -top, dtype), what="all lowest")
        check(op, np.full((2, n), 6e-8 if dtype == FLOAT16 else 1e-40, dtype), what="denormal")


@pytest.mark.parametrize("op", OPS)
def test_not_finite_values_as_in_numpy(op: str, dtype: np.dtype[Any], rng: np.random.Generator) -> None:
    for n in (1, 2, 16, 17, 65):
        x = normal(rng, (7, n), dtype)
        x[1, n // 2] = -np.inf
        x[2] = -np.inf
        x[3, 0] = np.inf
        x[4, -1] = np.nan
        x[5, : n // 2] = -np.inf
        ref = oracle(op, x)
        assert np.isnan(ref[2:5]).all() and np.isfinite(ref[[0, 6]]).all()
        check(op, x)


@pytest.mark.parametrize("op", OPS)
def test_against_scipy(op: str, rng: np.random.Generator) -> None:
    x = normal(rng, (5, 100), FLOAT32, 4)
    expected = getattr(special, op)(x.astype(np.float64), -1)
    for _ in each_isa():
        np.testing.assert_allclose(getattr(qkv, op)(x), expected, rtol=2e-6, atol=2e-6)
    out = getattr(qkv, op)(x.astype(np.float64))
    assert out.dtype == np.float64
    np.testing.assert_allclose(out, expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("shape", [(0,), (0, 5), (5, 0), (2, 0, 3), (0, 0)], ids=str)
def test_zero_sized(op: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    for _ in each_isa():
        for axis in range(len(shape)):
            out = getattr(qkv, op)(np.ones(shape, dtype), axis)
            assert out.shape == shape and out.dtype == dtype


@pytest.mark.parametrize("op", OPS)
def test_refuses(op: str) -> None:
    x = np.ones((3, 5), np.float32)
    for axis in (2, -3, 10**30):
        with pytest.raises(ValueError, match=rf"{op}: axis"):
            getattr(qkv, op)(x, axis)
    for wrong in ("last", 1.5, None, (0, 1)):
        with pytest.raises(TypeError, match=rf"{op}: axis"):
            getattr(qkv, op)(x, wrong)
    with pytest.raises(ValueError, match=op):
        getattr(qkv, op)(np.float32(3).reshape(()))


@pytest.mark.slow
def test_long_rows_do_not_saturate() -> None:
    """A float32 sum of ones stops at 2^24 per lane: long sums must be sums of parts."""
    n = 80_000_000
    x = np.broadcast_to(np.float32(0), (1, n))
    for _ in each_isa():
        assert qkv.softmax(x)[0, 0] == np.float32(1 / n)
        np.testing.assert_allclose(qkv.log_softmax(x)[0, -1], -np.log(n), rtol=1e-6)


def test_parts_of_a_logarithm(rng: np.random.Generator) -> None:
    """What log_softmax subtracts, to the bit."""
    for width in [*sizes(65), 5000, 58_101]:
        x = normal(rng, (6, width), scale=5)
        x[1] -= 3e38
        x[2, : width // 2] = -np.inf
        x[3, 0] = np.inf
        x[4, -1] = np.nan
        for _ in each_isa():
            top, total = log_softmax_parts(x)
            with np.errstate(all="ignore"):
                assert same_bits(x - top - total, qkv.log_softmax(x))
    for wrong in (x[0], x[:, ::2], np.ones_like(x, np.float16), x.astype(np.float64), x[:, :0]):
        with pytest.raises(ValueError, match="log_softmax_parts: x must be contiguous float32"):
            log_softmax_parts(wrong)
    assert log_softmax_parts(x[:0])[0].shape == (0, 1)
