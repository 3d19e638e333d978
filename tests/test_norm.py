"""layer_norm and rms_norm against the float64 reference."""

from __future__ import annotations

from itertools import product
from typing import Any

import naive
import numpy as np
import pytest
import qkv
from checks import (
    BFLOAT16,
    FLOAT16,
    FLOAT32,
    assert_close,
    each_isa,
    normal,
    oracle,
    same_bits,
    sizes,
    strided,
)


def check(x: Any, weight: Any, bias: Any, eps: float, residual: Any = None, what: str = "") -> None:
    """Both norms at once; rms_norm has no bias."""
    total = x if residual is None else x + residual.astype(x.dtype)
    for op, options in (("layer_norm", {"bias": bias}), ("rms_norm", {})):
        options = {"weight": weight, "eps": eps, "residual": residual, **options}
        with np.errstate(all="ignore"):
            ref = oracle(op, x, **options)
            if op == "layer_norm":
                yardstick = naive.layer_norm(total, weight, bias, eps)
            else:
                yardstick = naive.rms_norm(total, weight, eps)
        for _ in each_isa():
            out = getattr(qkv, op)(x, **options)
            label = f"{op} {x.shape} {what}"
            if residual is None:
                assert_close(out, ref, yardstick, label)
            else:
                assert isinstance(out, tuple) and len(out) == 2
                assert_close(out[0], ref[0], yardstick, label)
                assert same_bits(out[1], total), f"{label}: the sum is x + residual, rounded once"


@pytest.mark.parametrize("n", [*sizes(), 768, 4099])
def test_sizes(n: int, dtype: np.dtype[Any], rng: np.random.Generator) -> None:
    check(normal(rng, (5, n), dtype), normal(rng, n, dtype), normal(rng, n, dtype), 1e-5)


@pytest.mark.parametrize("shape", [(17,), (4, 17), (2, 3, 17), (2, 1, 3, 17), (0, 17), (2, 0, 17)], ids=str)
def test_options_and_ranks(shape: tuple[int, ...], dtype: np.dtype[Any], rng: np.random.Generator) -> None:
    for weight, bias, residual in product((False, True), repeat=3):
        check(
            normal(rng, shape, dtype),
            normal(rng, shape[-1], dtype) if weight else None,
            normal(rng, shape[-1], dtype) if bias else None,
            1e-3,
            normal(rng, shape, dtype) if residual else None,
        )


@pytest.mark.parametrize("half", [FLOAT16, BFLOAT16], ids=["float16", "bfloat16"])
def test_float32_parameters_next_to_half_activations(half: np.dtype[Any], rng: np.random.Generator) -> None:
    check(normal(rng, (5, 65), half), normal(rng, 65), normal(rng, 65), 1e-5)


def test_strides(dtype: np.dtype[Any], rng: np.random.Generator) -> None:
    x, r = normal(rng, (3, 5, 67), dtype), normal(rng, (3, 5, 67), dtype)
    w, b = normal(rng, 67, dtype), normal(rng, 67, dtype)
    for _ in each_isa():
        plain = qkv.layer_norm(x, w, b, residual=r), qkv.rms_norm(x, w, residual=r)
        for name in strided(x):
            vx, vr, vw, vb = (strided(a)[name] for a in (x, r, w, b))
            views = qkv.layer_norm(vx, vw, vb, residual=vr), qkv.rms_norm(vx, vw, residual=vr)
            for a, c in zip(plain, views, strict=True):
                assert same_bits(a[0], c[0]) and same_bits(a[1], c[1]), name
        turned = np.swapaxes(np.swapaxes(x, 0, 1).copy(), 0, 1)
        assert same_bits(qkv.layer_norm(turned, w, b), qkv.layer_norm(x, w, b))
    check(np.broadcast_to(normal(rng, (1, 67), dtype), (5, 67)), np.broadcast_to(w[:1], 67), None, 1e-5)


def test_mean_far_from_zero(rng: np.random.Generator) -> None:
    """The variance of 1e4 +- 1 is lost when it is computed as E[x^2] - E[x]^2."""
    for n in (5, 64, 100, 768):
        check(normal(rng, (200, n)) + np.float32(1e4), normal(rng, n), normal(rng, n), 1e-5)


def test_values_at_the_edge(dtype: np.dtype[Any], rng: np.random.Generator) -> None:
    for n in (1, 3, 16, 33, 128):
        w, b = normal(rng, n, dtype), normal(rng, n, dtype)
        check(np.full((2, n), 3, dtype), w, b, 1e-5, what="constant rows")
        check(np.zeros((2, n), dtype), w, b, 1e-5, what="zero rows")
        x = normal(rng, (4, n), dtype)
        check(x * dtype.type(6e-8 if dtype == FLOAT16 else 1e-40), w, b, 1e-5, what="denormal")
        check(x * dtype.type(10 if dtype == FLOAT16 else 1e15), w, b, 1e-5, what="large")


def test_zero_rows_without_epsilon_are_nan(rng: np.random.Generator) -> None:
    x = normal(rng, (3, 17))
    x[1] = 0
    check(x, None, None, 0.0)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_finite_values_stay_in_their_row(value: float, dtype: np.dtype[Any], rng: np.random.Generator) -> None:
    for n in (1, 16, 17, 65):
        x = normal(rng, (5, n), dtype)
        x[2, n // 2] = value
        check(x, normal(rng, n, dtype), normal(rng, n, dtype), 1e-5)


def test_zero_width() -> None:
    for _ in each_isa():
        assert qkv.layer_norm(np.ones((3, 0), np.float32)).shape == (3, 0)
        assert qkv.rms_norm(np.ones((3, 0), np.float32)).shape == (3, 0)


def test_float64_is_served_exactly(rng: np.random.Generator) -> None:
    x, w, b = rng.standard_normal((3, 50)), rng.standard_normal(50), rng.standard_normal(50)
    expected = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * w + b
    out = qkv.layer_norm(x, w, b)
    assert out.dtype == np.float64
    np.testing.assert_allclose(out, expected, rtol=1e-12)
    expected = x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6) * w
    np.testing.assert_allclose(qkv.rms_norm(x, w), expected, rtol=1e-12)


@pytest.mark.parametrize("op", ["layer_norm", "rms_norm"])
def test_refuses(op: str) -> None:
    x = np.ones((3, 5), FLOAT32)
    for wrong in (
        np.ones(4, FLOAT32),
        np.ones((3, 5), FLOAT32),
        np.ones((), FLOAT32),
        np.ones((1, 5), FLOAT32),
    ):
        with pytest.raises(ValueError, match=rf"{op}: .*weight"):
            getattr(qkv, op)(x, wrong)
    with pytest.raises(ValueError, match=rf"{op}: .*residual"):
        getattr(qkv, op)(x, residual=np.ones((3, 4), FLOAT32))
    with pytest.raises(ValueError, match=rf"{op}: .*residual"):
        getattr(qkv, op)(x, residual=np.ones((1, 5), FLOAT32))
    with pytest.raises(ValueError, match=op):
        getattr(qkv, op)(np.ones((), FLOAT32))
    for eps in (-1.0, float("nan")):
        with pytest.raises(ValueError, match=rf"{op}: .*eps"):
            getattr(qkv, op)(x, eps=eps)
    with pytest.raises(TypeError, match=rf"{op}: .*eps"):
        getattr(qkv, op)(x, eps="small")


def test_long_rows_far_from_zero() -> None:
    """Mean 1000, deviation 1, a million values: one running float32 sum would be off by percents."""
    x = (np.random.default_rng(0).standard_normal(2**20) + 1000).astype(np.float32)
    for _ in each_isa():
        np.testing.assert_allclose(qkv.layer_norm(x), oracle("layer_norm", x), atol=1e-4)
        np.testing.assert_allclose(qkv.rms_norm(x), oracle("rms_norm", x), rtol=1e-6)


def test_an_eps_below_float32_still_counts() -> None:
    zero = np.zeros((2, 8), np.float32)
    for _ in each_isa():
        assert (qkv.layer_norm(zero, eps=1e-46) == 0).all() and (qkv.rms_norm(zero, eps=1e-46) == 0).all()
