"""matmul, linear and pack_weight against the float64 reference."""

from __future__ import annotations

from itertools import product
from typing import Any

import naive
import numpy as np
import pytest
import qkv
from checks import (
    BFLOAT16,
    DTYPES,
    FLOAT16,
    FLOAT32,
    assert_close,
    each_isa,
    normal,
    oracle,
    residuals,
    same_bits,
    sizes,
    strided,
    triples,
    unaligned,
    use_isa,
    wide,
)
from on_device import fewer

SHAPES = triples(1)
# Past the cache blocks of any sensible blocking, and past the register tile in every direction.
LARGE = fewer(
    [(70, 2049, 300), (517, 33, 1031), (1, 4099, 130), (300, 700, 1)],
    [(70, 520, 40), (9, 2049, 33), (150, 33, 260), (1, 4099, 130), (300, 70, 1)],
)


def check_matmul(a: Any, b: Any, what: str = "") -> None:
    ref, yardstick = oracle("matmul", a, b), naive.matmul(a, b)
    for _ in each_isa():
        assert_close(qkv.matmul(a, b), ref, yardstick, f"{what} {a.shape} @ {b.shape}")


def check_linear(x: Any, w: Any, weights: dict[str, Any] | None = None, **options: Any) -> None:
    ref = oracle("linear", x, w, **options)
    yardstick = naive.linear(x, w, **options)
    for _ in each_isa():
        for name, weight in (weights or {"packed": qkv.pack_weight(w), "array": w}).items():
            what = f"{name} {x.shape} x {w.shape} {sorted(options)}"
            assert_close(qkv.linear(x, weight, **options), ref, yardstick, what)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matmul_sizes(shape: tuple[int, int, int], dtype: np.dtype[Any], rng: np.random.Generator) -> None:
    M, K, N = shape
    check_matmul(normal(rng, (M, K), dtype), normal(rng, (K, N), dtype))


@pytest.mark.parametrize("shape", LARGE, ids=str)
def test_matmul_beyond_the_blocks(shape: tuple[int, int, int], rng: np.random.Generator) -> None:
    M, K, N = shape
    check_matmul(normal(rng, (M, K)), normal(rng, (K, N)))


@pytest.mark.parametrize(
    "a, b",
    [
        ((5,), (5,)),
        ((5,), (5, 7)),
        ((3, 5), (5,)),
        ((4, 3, 5), (5,)),
        ((5,), (4, 5, 7)),
        ((4, 3, 5), (5, 7)),
        ((3, 5), (4, 5, 7)),
        ((4, 3, 5), (4, 5, 7)),
        ((4, 1, 3, 5), (6, 5, 7)),
        ((2, 1, 33, 17), (1, 3, 17, 19)),
        ((0, 5), (5, 7)),
        ((3, 0), (0, 7)),
        ((3, 5), (5, 0)),
        ((0, 3, 5), (5, 7)),
        ((2, 0, 3, 5), (1, 5, 7)),
        ((0,), (0,)),
    ],
    ids=str,
)
def test_matmul_follows_the_rules_of_numpy(
    a: tuple[int, ...], b: tuple[int, ...], dtype: np.dtype[Any], rng: np.random.Generator
) -> None:
    x, y = normal(rng, a, dtype), normal(rng, b, dtype)
    ref = np.matmul(wide(x), wide(y))
    x2, y2 = (x[None] if x.ndim == 1 else x), (y[:, None] if y.ndim == 1 else y)
    yardstick = naive.matmul(x2, y2).reshape(np.shape(ref))
    for _ in each_isa():
        out = np.asarray(qkv.matmul(x, y))  # two vectors give a scalar in NumPy, an array of rank 0 is as good
        assert_close(out, np.asarray(ref), yardstick, f"{a} @ {b}")


@pytest.mark.parametrize(
    "a, b", [((3, 5), (4, 7)), ((5,), (4,)), ((2, 3, 5), (3, 5, 7)), ((), (5,)), ((5,), ())], ids=str
)
def test_matmul_refuses_shapes_that_do_not_fit(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="matmul"):
        qkv.matmul(np.ones(a, np.float32), np.ones(b, np.float32))


def test_matmul_strides(dtype: np.dtype[Any], rng: np.random.Generator) -> None:
    a, b = normal(rng, (2, 19, 37), dtype), normal(rng, (2, 37, 21), dtype)
    ref, yardstick = oracle("matmul", a, b), naive.matmul(a, b)
    for _ in each_isa():
        plain = qkv.matmul(a, b)
        for (name_a, view_a), (name_b, view_b) in product(strided(a).items(), strided(b).items()):
            out = qkv.matmul(view_a, view_b)
            assert_close(out, ref, yardstick, f"{name_a} @ {name_b}")
            assert same_bits(out, plain), f"{name_a} @ {name_b} differs from contiguous arrays"
    one = np.broadcast_to(normal(rng, (1, 37), dtype), (19, 37))
    check_matmul(one, b[0], "zero stride")
    check_matmul(b[0].T, a[0].T, "transposed")


def test_matmul_large_and_denormal_values(rng: np.random.Generator) -> None:
    a, b = normal(rng, (33, 65)), normal(rng, (65, 17))
    check_matmul(a * np.float32(1e30), b * np.float32(1e7))
    check_matmul(a * np.float32(1e-41), b)
    check_matmul(a * np.float32(1e-20), b * np.float32(1e-20))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_finite_values_stay_in_their_row_and_column(
    value: float, dtype: np.dtype[Any], rng: np.random.Generator
) -> None:
    a, b = normal(rng, (21, 35), dtype), normal(rng, (35, 51), dtype)
    a[7, 3], b[34, 50], b[0, 0] = value, value, 0
    ref = oracle("matmul", a, b)
    assert np.isfinite(np.delete(np.delete(ref, 7, 0), 50, 1)).all()
    check_matmul(a, b)
    check_linear(a, np.ascontiguousarray(b.T))
    a[7, 3] = 0
    b[3] = value
    check_matmul(a, b)  # 0 x inf is NaN, as in NumPy


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_linear_sizes(shape: tuple[int, int, int], dtype: np.dtype[Any], rng: np.random.Generator) -> None:
    M, K, N = shape
    check_linear(normal(rng, (M, K), dtype), normal(rng, (N, K), dtype), bias=normal(rng, N, dtype))


@pytest.mark.parametrize("shape", LARGE, ids=str)
def test_linear_beyond_the_blocks(shape: tuple[int, int, int], rng: np.random.Generator) -> None:
    M, K, N = shape
    check_linear(normal(rng, (M, K)), normal(rng, (N, K)))


@pytest.mark.parametrize("activation", [None, *naive.ACTIVATIONS])
def test_linear_epilogue(activation: str | None, dtype: np.dtype[Any], rng: np.random.Generator) -> None:
    M, K, N = 19, 37, 53
    x, w = normal(rng, (M, K), dtype), normal(rng, (N, K), dtype, K**-0.5)
    extras = {
        "bias": normal(rng, N, dtype),
        "gate": normal(rng, (M, N), dtype),
        "residual": normal(rng, (M, N), dtype),
    }
    for chosen in product((False, True), repeat=3):
        options = {name: value for (name, value), use in zip(extras.items(), chosen, strict=True) if use}
        if activation is not None:
            options["activation"] = activation
        check_linear(x, w, **options)


@pytest.mark.parametrize("K", fewer([0, 64, 1100], [0, 64, 520]))
def test_linear_adds_bias_and_residual_alone(K: int, rng: np.random.Generator) -> None:
    """Tiles do it as they store their sums: tiles of all heights, parts of panels, several blocks of K."""
    for M in (1, 2, 5, 8, 9, 18):
        x, w, bias = normal(rng, (M, K)), normal(rng, (50, K), scale=0.1), normal(rng, 50)
        for residual in residuals(rng, M, 50).values():
            check_linear(x, w, residual=residual)
            check_linear(x, w, bias=bias, residual=residual)


def test_linear_with_many_rows_and_columns(rng: np.random.Generator) -> None:
    """An output of which no second cache holds all."""
    M, N = fewer((700, 800), (140, 270))
    x, w = normal(rng, (M, 64)), normal(rng, (N, 64), scale=0.1)
    check_linear(x, w, bias=normal(rng, N), residual=normal(rng, (M, N)))


@pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 3, 5), (2, 1, 3, 5), (0, 5), (2, 0, 5), (3, 0), (0,)], ids=str)
def test_linear_ranks(shape: tuple[int, ...], dtype: np.dtype[Any], rng: np.random.Generator) -> None:
    x, w = normal(rng, shape, dtype), normal(rng, (7, shape[-1]), dtype)
    options = {name: normal(rng, (*shape[:-1], 7), dtype) for name in ("gate", "residual")}
    check_linear(x, w, bias=normal(rng, 7, dtype), **options)
    check_linear(x, w[:0])


def test_linear_strides(dtype: np.dtype[Any], rng: np.random.Generator) -> None:
    x, w, bias = normal(rng, (2, 19, 37), dtype), normal(rng, (21, 37), dtype), normal(rng, 21, dtype)
    gate, residual = normal(rng, (2, 19, 21), dtype), normal(rng, (2, 19, 21), dtype)
    for _ in each_isa():
        plain = qkv.linear(x, w, bias, gate=gate, residual=residual)
        for name in strided(x):
            views = [strided(a)[name] for a in (x, w, bias)]
            out = qkv.linear(*views, gate=strided(gate)[name], residual=strided(residual)[name])
            assert same_bits(out, plain), name
        assert same_bits(qkv.linear(np.swapaxes(np.swapaxes(x, 0, 1).copy(), 0, 1), w, bias), qkv.linear(x, w, bias))


@pytest.mark.parametrize("half", [FLOAT16, BFLOAT16], ids=["float16", "bfloat16"])
def test_linear_float32_parameters_next_to_half_activations(half: np.dtype[Any], rng: np.random.Generator) -> None:
    x, w, bias = normal(rng, (9, 33), half), normal(rng, (17, 33)), normal(rng, 17)
    check_linear(x, w, bias=bias)
    check_linear(x, w.astype(half), bias=bias)


def test_linear_writes_into_out(dtype: np.dtype[Any], rng: np.random.Generator) -> None:
    x, w, residual = (
        normal(rng, (2, 9, 33), dtype),
        normal(rng, (17, 33), dtype),
        normal(rng, (2, 9, 17), dtype),
    )
    for _ in each_isa():
        expected = qkv.linear(x, w, residual=residual)
        out = np.full((2, 9, 17), np.nan, dtype)
        assert qkv.linear(x, w, residual=residual, out=out) is out
        assert same_bits(out, expected)


def test_linear_out_must_fit(rng: np.random.Generator) -> None:
    x, w = normal(rng, (9, 33)), normal(rng, (17, 33))
    with pytest.raises(ValueError, match=r"linear: out"):
        qkv.linear(x, w, out=np.zeros((9, 16), np.float32))
    with pytest.raises(TypeError, match=r"linear: out"):
        qkv.linear(x, w, out=np.zeros((9, 17), np.float16))
    with pytest.raises((TypeError, ValueError), match=r"linear: out"):
        qkv.linear(x, w, out=np.zeros((9, 17), np.float32).tolist())
    frozen = np.zeros((9, 17), np.float32)
    frozen.flags.writeable = False
    with pytest.raises(ValueError, match=r"linear: out"):
        qkv.linear(x, w, out=frozen)
    assert not frozen.any()


def test_linear_out_that_overlaps_an_input_is_right_or_refused(rng: np.random.Generator) -> None:
    x, w, residual = normal(rng, (40, 33)), normal(rng, (33, 33)), normal(rng, (40, 33))
    plain, with_residual = qkv.linear(x, w), qkv.linear(x, w, residual=residual)
    for _ in each_isa():
        stream = residual.copy()
        out = qkv.linear(x, w, residual=stream, out=stream)  # the residual stream updated in place
        np.testing.assert_allclose(out, with_residual, rtol=1e-4, atol=1e-4)
        memory = np.zeros(41 * 33, np.float32)
        for shift in (0, 1, 33):
            source, target = (
                memory[: x.size].reshape(x.shape),
                memory[shift : shift + x.size].reshape(x.shape),
            )
            source[...] = x
            try:
                out = qkv.linear(source, w, out=target)
            except ValueError as error:
                assert "linear: out" in str(error)
            else:
                np.testing.assert_allclose(out, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"weight": np.ones((7, 4), np.float32)}, "weight"),
        ({"weight": np.ones(5, np.float32)}, "weight"),
        ({"weight": np.ones((1, 7, 5), np.float32)}, "weight"),
        ({"bias": np.ones(6, np.float32)}, "bias"),
        ({"bias": np.ones((3, 7), np.float32)}, "bias"),
        ({"gate": np.ones((3, 6), np.float32)}, "gate"),
        ({"residual": np.ones((4, 7), np.float32)}, "residual"),
        ({"activation": "swish2"}, "activation"),
        ({"x": np.ones((), np.float32)}, "x"),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_linear_says_what_does_not_fit(change: dict[str, Any], message: str) -> None:
    arguments = {"x": np.ones((3, 5), np.float32), "weight": np.ones((7, 5), np.float32), **change}
    with pytest.raises(ValueError, match=rf"linear: .*{message}"):
        qkv.linear(**arguments)


@pytest.mark.parametrize("name", DTYPES)
def test_pack_weight_keeps_every_value(name: str, rng: np.random.Generator) -> None:
    for N, K in [(1, 1), (7, 5), (33, 17), (64, 96), (129, 257), (0, 4), (4, 0)]:
        w = normal(rng, (N, K), DTYPES[name])
        for _ in each_isa():
            for view in (w, *strided(w).values(), unaligned(w).copy()):
                packed = qkv.pack_weight(view)
                assert packed.shape == (N, K)
                assert str(packed.dtype) == "float32"
                assert packed.nbytes >= 4 * N * K
                assert same_bits(packed.dequantize(), w.astype(FLOAT32))


def test_pack_weight_copies(rng: np.random.Generator) -> None:
    w = normal(rng, (33, 17))
    packed, before = qkv.pack_weight(w), w.copy()
    w[...] = 0
    assert same_bits(packed.dequantize(), before)
    packed.dequantize()[...] = 0
    assert same_bits(packed.dequantize(), before)


def test_packed_weights_survive_set_isa(rng: np.random.Generator) -> None:
    x, w = normal(rng, (9, 65)), normal(rng, (37, 65))
    packed = {}
    for name in each_isa():
        packed[name] = qkv.pack_weight(w)
    check_linear(x, w, packed)
    for name in qkv.isas():
        with use_isa(name):
            for other, weight in packed.items():
                assert same_bits(qkv.linear(x, weight), qkv.linear(x, packed[name])), (
                    f"packed under {other}, used by {name}"
                )


def test_pack_weight_refuses(rng: np.random.Generator) -> None:
    w = normal(rng, (8, 64))
    with pytest.raises(ValueError, match=r"pack_weight: .*float32"):
        qkv.pack_weight(w, dtype="int3")
    with pytest.raises((TypeError, ValueError), match="pack_weight"):
        qkv.pack_weight(w, dtype=7)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"pack_weight: .*group_size"):
        qkv.pack_weight(w, group_size=32)
    for shape in [(8,), (2, 4, 8), ()]:
        with pytest.raises(ValueError, match="pack_weight"):
            qkv.pack_weight(np.ones(shape, np.float32))
    with pytest.raises(TypeError, match="pack_weight"):
        qkv.pack_weight(np.ones((8, 8), np.int64))


def test_float64_is_served_exactly(rng: np.random.Generator) -> None:
    for M, K, N in zip(sizes(33), reversed(sizes(33)), sizes(33), strict=True):
        a, b = rng.standard_normal((M, K)), rng.standard_normal((K, N))
        for out in (qkv.matmul(a, b), qkv.linear(a, np.ascontiguousarray(b.T))):
            assert out.dtype == np.float64
            np.testing.assert_allclose(out, a @ b, rtol=1e-12, atol=1e-12)
    assert qkv.linear(a.tolist(), b.T.tolist()).dtype == np.float64


def test_long_sums_do_not_saturate() -> None:
    """A float32 chain of ones stops at 2^24; sums of blocks do not."""
    k = 3 * 2**24
    ones = np.broadcast_to(np.float32(1), (1, k))
    for _ in each_isa():
        assert qkv.matmul(ones, ones.T)[0, 0] == k
