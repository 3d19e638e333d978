"""gelu (both forms), relu, silu, quick_gelu and tanh against the float64 reference."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import naive
import numpy as np
import pytest
import qkv
from checks import FLOAT16, FLOAT32, assert_close, each_isa, eps, normal, oracle, same_bits, sizes, strided

NAMES = list(naive.ACTIVATIONS)
# The tolerance is relative to the largest value of an array, so each scale gets arrays of its own.
BANDS = [
    (-1e-4, 1e-4),
    (-0.1, 0.1),
    (-1.0, 1.0),
    (-4.0, -0.5),
    (-9.0, -3.0),
    (0.0, 6.0),
    (-30.0, 30.0),
    (-200.0, 200.0),
]


def arguments(name: str) -> tuple[str, dict[str, str]]:
    return ("gelu", {"approximate": "tanh"}) if name == "gelu_tanh" else (name, {})


def function(name: str) -> Callable[[Any], Any]:
    op, options = arguments(name)
    return lambda x: getattr(qkv, op)(x, **options)


def check(name: str, x: Any, what: str = "") -> None:
    op, options = arguments(name)
    with np.errstate(all="ignore"):
        ref, yardstick = oracle(op, x, **options), naive.ACTIVATIONS[name](x)
    for _ in each_isa():
        assert_close(function(name)(x), ref, yardstick, f"{name} {x.shape} {what}")


@pytest.mark.parametrize("name", NAMES)
def test_sizes_and_ranks(name: str, dtype: np.dtype[Any], rng: np.random.Generator) -> None:
    for n in [0, *sizes(), 1000]:
        check(name, normal(rng, n, dtype, 2))
    for shape in [(), (3, 5), (2, 3, 5), (2, 1, 3, 5), (2, 1, 1, 3, 5), (0, 3), (3, 0)]:
        check(name, normal(rng, shape, dtype, 2) if shape else np.full((), -0.7, dtype))


@pytest.mark.parametrize("name", NAMES)
def test_bands(name: str, dtype: np.dtype[Any], rng: np.random.Generator) -> None:
    for low, high in BANDS:
        check(name, rng.uniform(low, high, 3001).astype(dtype), f"{low} .. {high}")


@pytest.mark.parametrize("name", NAMES)
def test_every_half_precision_value(name: str) -> None:
    """Computed in float32 and rounded once: within half a spacing and float32's own error."""
    x = np.arange(1 << 16, dtype=np.uint16).view(FLOAT16)
    x = x[np.isfinite(x)]
    op, options = arguments(name)
    ref = oracle(op, x, **options)
    with np.errstate(over="ignore"):
        spacing = np.spacing(np.abs(ref).astype(FLOAT16)).astype(np.float64)
    bound = spacing / 2 + 4 * eps(FLOAT32) * np.abs(x.astype(np.float64))
    for isa in each_isa():
        error = np.abs(function(name)(x).astype(np.float64) - ref)
        worst = (error / bound).argmax()
        assert error[worst] <= bound[worst], (
            f"{isa}: {name}({x[worst]}) off by {error[worst]:.3g}, not {bound[worst]:.3g}"
        )


@pytest.mark.parametrize("name", NAMES)
def test_large_array(name: str, rng: np.random.Generator) -> None:
    check(name, normal(rng, 100_003, FLOAT32, 3))


@pytest.mark.parametrize("name", NAMES)
def test_position_in_the_array_does_not_matter(name: str, dtype: np.dtype[Any], rng: np.random.Generator) -> None:
    """A value in the last, partly filled vector gives the same bits as one in a full vector."""
    x = normal(rng, 67, dtype, 3)
    for _ in each_isa():
        f = function(name)
        whole = f(x)
        for start, stop in [(0, 1), (1, 3), (5, 20), (16, 33), (60, 67), (66, 67)]:
            assert same_bits(f(x[start:stop].copy()), whole[start:stop])


@pytest.mark.parametrize("name", NAMES)
def test_strides(name: str, dtype: np.dtype[Any], rng: np.random.Generator) -> None:
    x = normal(rng, (3, 5, 67), dtype)
    for _ in each_isa():
        plain = function(name)(x)
        for view_name, view in strided(x).items():
            assert same_bits(function(name)(view), plain), view_name
        assert same_bits(function(name)(x.transpose(2, 0, 1)), np.ascontiguousarray(plain.transpose(2, 0, 1)))
        one = np.broadcast_to(x[:1, :, :1], (4, 5, 67))
        assert same_bits(function(name)(one), function(name)(one.copy()))


@pytest.mark.parametrize("name", NAMES)
def test_special_values(name: str, dtype: np.dtype[Any]) -> None:
    """NaN and infinities as the formula gives them: relu(NaN) is NaN, gelu(-inf) is -inf * 0, so NaN."""
    top = float(np.finfo(dtype).max) if dtype != np.dtype("bfloat16") else 3.3e38
    low = 6e-8 if dtype == FLOAT16 else 1e-40
    values = [0.0, -0.0, 1.0, -1.0, top, -top, top / 4, -top / 4, low, -low, 1e4, -1e4, 88.0, -88.0, -105.0]
    for lanes in (1, 3, 40):
        check(name, np.repeat(np.array(values, dtype), lanes), "finite")
        check(
            name,
            np.repeat(np.array([np.nan, 1.0, np.inf, -1.0, -np.inf, 0.0, -np.nan], dtype), lanes),
            "not finite",
        )


def test_documented_values() -> None:
    for _ in each_isa():
        for x in (-3.0, -0.5, 0.0, 0.25, 2.0):
            a = np.array([x], np.float32)
            phi = 0.5 * (1 + math.erf(x / math.sqrt(2)))
            inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
            assert qkv.gelu(a)[0] == pytest.approx(x * phi, rel=1e-5, abs=1e-7)
            assert qkv.gelu(a, "tanh")[0] == pytest.approx(0.5 * x * (1 + math.tanh(inner)), rel=1e-5, abs=1e-7)
            assert qkv.silu(a)[0] == pytest.approx(x / (1 + math.exp(-x)), rel=1e-5)
            assert qkv.quick_gelu(a)[0] == pytest.approx(x / (1 + math.exp(-1.702 * x)), rel=1e-5)
            assert qkv.relu(a)[0] == max(x, 0.0)
            assert qkv.tanh(a)[0] == pytest.approx(math.tanh(x), rel=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_float64_is_served_exactly(name: str, rng: np.random.Generator) -> None:
    x = rng.uniform(-8, 8, 1000)
    out = function(name)(x)
    assert out.dtype == np.float64
    np.testing.assert_allclose(out, naive.ACTIVATIONS[name](x), rtol=1e-12, atol=1e-15)


def test_unknown_form_of_gelu() -> None:
    for wrong in ("erf", "", "TANH"):
        with pytest.raises(ValueError, match=r"gelu: .*approximate.*none.*tanh"):
            qkv.gelu(np.ones(3, np.float32), wrong)
    with pytest.raises((TypeError, ValueError), match=r"gelu: .*approximate"):
        qkv.gelu(np.ones(3, np.float32), True)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", NAMES)
def test_memory_order_is_kept(name: str, dtype: np.dtype[Any], rng: np.random.Generator) -> None:
    """As NumPy's element-wise functions have it: a dense array gives one in the same order, others give C order."""
    x = normal(rng, (3, 5, 7, 6), dtype)
    for _ in each_isa():
        plain = function(name)(x)
        for order in [(0, 1, 2, 3), (3, 2, 1, 0), (1, 3, 0, 2), (0, 2, 1, 3)]:
            out = function(name)(x.transpose(order))
            assert out.strides == x.transpose(order).strides == np.tanh(x.transpose(order)).strides
            assert same_bits(out, np.ascontiguousarray(plain.transpose(order)))
        for view, values in [(x[::2], plain[::2]), (x[:, 1:], plain[:, 1:]), (x[:, ::-1], plain[:, ::-1])]:
            out = function(name)(view)
            assert out.flags.c_contiguous and same_bits(out, np.ascontiguousarray(values))
        one = x[:, :1, :, :1]
        assert same_bits(function(name)(one.T), np.ascontiguousarray(plain[:, :1, :, :1].T))
        assert function(name)(np.broadcast_to(x[:1], x.shape)).flags.writeable


def test_gelu_keeps_its_left_tail() -> None:
    """x/2 erfc(-x / sqrt 2), where 1 + erf(x / sqrt 2) would have cancelled: at -4 to 1e-3 of it."""
    x = np.linspace(-7.6, 0, 100_001, dtype=np.float32)[:-1]
    exact = np.array([0.5 * v * math.erfc(-v / math.sqrt(2)) for v in x.astype(np.float64)])
    near = x >= -4
    for isa in each_isa():
        error = np.abs(qkv.gelu(x) / exact - 1)
        assert error[near].max() <= (5e-7 if isa.startswith("avx512") else 2.5e-4), isa
        assert error.max() <= (1e-4 if isa.startswith("avx512") else 1), isa
