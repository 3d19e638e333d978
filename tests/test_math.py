"""exp, erf and tanh on float32 stay within 2 ulp of the float64 value.

An ulp is the spacing of float32 at the exact result. Below the smallest normal number the bound is one spacing of the
denormals, 2^-149: results there are not flushed to zero. Above the largest finite number the result is infinite, or
the largest number where the exact value is within 2 ulp of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import qkv
from checks import each_isa, same_bits
from qkv.ops import _cpu
from scipy import special

EXACT = {"exp": np.exp, "erf": special.erf, "tanh": np.tanh}
NAMES = pytest.mark.parametrize("name", EXACT)
SMALLEST_NORMAL, LARGEST = 2.0**-126, float(np.finfo(np.float32).max)
OVERFLOW = 2.0**128  # what an infinite result stands for when its distance is measured


def from_bits(bits: Any) -> Any:
    return np.ascontiguousarray(bits, np.uint32).view(np.float32)


def spacing(ref: Any) -> Any:
    """Spacing of float32 at |ref|, from the exponent of the float64 value."""
    exponent = np.frexp(np.minimum(np.abs(ref), LARGEST))[1] - 1  # 2^exponent <= |ref| < 2^(exponent + 1)
    return np.ldexp(1.0, np.maximum(exponent, -126) - 23)


def errors(out: Any, ref: Any) -> Any:
    """Distance to `ref` over what is allowed: at most 1 is right. `ref` must not be NaN."""
    allowed = np.where(np.abs(ref) < SMALLEST_NORMAL, 2.0**-149, 2 * spacing(ref))
    got = np.clip(out.astype(np.float64), -OVERFLOW, OVERFLOW)
    return np.abs(got - np.clip(ref, -OVERFLOW, OVERFLOW)) / allowed


def references(name: str, x: Any) -> Any:
    with np.errstate(all="ignore"):
        return EXACT[name](x.astype(np.float64))


def check(name: str, x: Any, ref: Any) -> None:
    out = _cpu.unary(name, x)
    assert out.dtype == np.float32 and out.shape == x.shape
    nan = np.isnan(x)
    assert (np.isnan(out) == nan).all(), f"{name}: NaN where it should not be, or none where it should"
    error = np.where(nan, 0, errors(out, np.where(nan, 1, ref)))
    worst = int(error.argmax())
    assert error[worst] <= 1, (
        f"{name}({x[worst]!r}) = {out[worst]!r}, exactly {ref[worst]!r}: {error[worst]:.2f} of what is allowed"
    )


def chunks(step: int, size: int = 1 << 22) -> Iterator[Any]:
    """Every `step`-th float32, by its bit pattern."""
    for start in range(0, 1 << 32, step * size):
        yield from_bits(np.arange(start, min(start + step * size, 1 << 32), step, dtype=np.uint64).astype(np.uint32))


@NAMES
def test_a_dense_sample(name: str) -> None:
    for x in chunks(4001):
        ref = references(name, x)
        for _ in each_isa():
            check(name, x, ref)


@pytest.mark.exhaustive
@NAMES
def test_every_float32(name: str) -> None:
    for x in chunks(1):
        ref = references(name, x)
        for _ in each_isa():
            check(name, x, ref)


@NAMES
def test_where_the_formulas_change(name: str) -> None:
    """All floats around the ends of the ranges of reduction, of overflow, and of the parts of a piecewise formula."""
    centres = np.array([0.25, 0.5, 0.625, 0.84375, 0.9375, 1, 1.25, 2, 3, 3.832, 4, 8, 9.01, 9.1, 16, 20], np.float32)
    logs = np.array(
        [0.34657, 0.6931472, 1.0397, 86.64, 87.3365, 88.0, 88.3762, 88.7228, 88.72283, 103.28, 103.97, 104.0]
    )
    around = np.arange(-20_000, 20_000)
    for centre in np.concatenate([centres, logs.astype(np.float32), [np.float32(1e-38), np.float32(1e-5)]]):
        x = from_bits(centre.view(np.uint32).astype(np.int64) + around)
        x = np.concatenate([x, -x])
        ref = references(name, x)
        for _ in each_isa():
            check(name, x, ref)


@NAMES
def test_special_values(name: str) -> None:
    tiny, low = np.float32(2**-149), np.float32(2**-126)
    x = np.array(
        [0.0, -0.0, np.inf, -np.inf, np.nan, -np.nan, tiny, -tiny, low, -low, LARGEST, -LARGEST, 1, -1],
        np.float32,
    )
    expected = {
        "exp": [1, 1, np.inf, 0, np.nan, np.nan, 1, 1, 1, 1, np.inf, 0],
        "erf": [0.0, -0.0, 1, -1, np.nan, np.nan, tiny, -tiny, low, -low, 1, -1],
        "tanh": [0.0, -0.0, 1, -1, np.nan, np.nan, tiny, -tiny, low, -low, 1, -1],
    }[name]
    for repeat in (1, 3, 50):
        many = np.repeat(x, repeat)
        ref = references(name, many)
        for _ in each_isa():
            check(name, many, ref)
            out = _cpu.unary(name, many)[::repeat][: len(expected)]
            if name == "erf":  # erf(x) is 2/sqrt(pi) x near 0
                np.testing.assert_array_equal(out[:6], np.float32(expected[:6]))
                np.testing.assert_array_equal(out[10:], np.float32(expected[10:]))
            else:
                np.testing.assert_array_equal(out, np.float32(expected))
            if name != "exp":
                assert np.signbit(out[:4]).tolist() == [False, True, False, True], "the sign of zero is kept"


@NAMES
def test_bounds_and_symmetry(name: str) -> None:
    x = from_bits(np.arange(0, 0x7F800000, 65_537))
    for _ in each_isa():
        plus, minus = _cpu.unary(name, x), _cpu.unary(name, -x)
        if name == "exp":
            assert (plus >= 1).all() and (minus <= 1).all() and (minus >= 0).all()
        else:
            assert (np.abs(plus) <= 1).all()
            np.testing.assert_array_equal(plus, -minus)


@NAMES
def test_every_length(name: str) -> None:
    """The last, partly filled vector computes what full ones compute."""
    x = np.random.default_rng(0).uniform(-5, 5, 70).astype(np.float32)
    for _ in each_isa():
        whole = _cpu.unary(name, x)
        for n in range(71):
            assert same_bits(_cpu.unary(name, x[:n].copy()), whole[:n])


def test_public_tanh_is_this_tanh() -> None:
    x = np.random.default_rng(0).uniform(-5, 5, 1000).astype(np.float32)
    for _ in each_isa():
        assert same_bits(qkv.tanh(x), _cpu.unary("tanh", x))
