"""linear over weights of bfloat16, int8 and int4 against the exact product of what they are rounded to."""

from __future__ import annotations

import pickle
from typing import Any

import naive
import numpy as np
import pytest
import qkv
from checks import BFLOAT16, FLOAT16, FLOAT32, assert_close, each_isa, normal, oracle, residuals, same_bits, strided
from qkv import reference

TYPES: list[tuple[str, int | None]] = [
    ("bfloat16", None),
    ("int8", None),
    ("int8", 32),
    ("int4", 32),
    ("int4", 64),
    ("int4", 128),
]
INTEGERS = TYPES[1:]
SHAPES = [
    *((m, 64, 48) for m in (1, 2, 3, 4, 5, 6, 7, 8, 9, 14, 15, 16, 17, 18, 19, 31, 33)),
    *((5, k, 33) for k in (1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 65, 97, 127, 129, 257)),
    *((3, 96, n) for n in (1, 2, 15, 16, 17, 31, 33, 63, 65, 97, 129)),
    (1, 768, 300),
    (2, 2049, 130),
    (77, 1000, 65),
    (260, 130, 70),
]


def check(x: Any, w: Any, kind: str, group: int | None, what: str = "", **options: Any) -> None:
    """Within twice the error of a sequential float32 product of the same rounded operands."""
    weight = reference.pack_weight(w, kind, group)
    rows = reference.rounded_rows(x, kind, group if kind != "int4" else group or 32)
    ref = oracle("linear", rows, weight.wide(), **options)
    sequential = naive.linear(rows.astype(np.float32), weight.wide().astype(np.float32), **options)
    for isa in each_isa():
        packed = qkv.pack_weight(w, kind, group)
        # bfloat16 x comes out as bfloat16, and so does its yardstick
        yardstick = sequential.astype(x.dtype)
        assert_close(
            qkv.linear(x, packed, **options), ref, yardstick, f"{what} {kind}/{group} {x.shape} x {w.shape} {isa}"
        )


@pytest.mark.parametrize("kind, group", TYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sizes(shape: tuple[int, int, int], kind: str, group: int | None, rng: np.random.Generator) -> None:
    M, K, N = shape
    check(normal(rng, (M, K)), normal(rng, (N, K)), kind, group)


@pytest.mark.parametrize("kind, group", TYPES)
@pytest.mark.parametrize("scale", [1e-42, 1e-30, 1e-3, 1e4, 1e30])
@pytest.mark.parametrize("width", [160, 1050])
def test_scales_of_activations(
    width: int, scale: float, kind: str, group: int | None, rng: np.random.Generator
) -> None:
    """Rows of any magnitude, of one sign, constant, zero, with outliers."""
    x = normal(rng, (20, width))
    x[1] = np.abs(x[1])
    x[2] = -np.abs(x[2]) - 3
    x[3] = 7
    x[4] = 0
    x[5, 17] = 300
    x[6, ::2] = 0
    if kind == "bfloat16" and scale < 1e-38:
        scale = 1e-32  # vdpbf16ps takes denormal products for zero
    check((x * scale).astype(np.float32), normal(rng, (40, width), scale=0.05), kind, group, f"{scale}")


@pytest.mark.parametrize("kind, group", INTEGERS)
def test_extreme_codes_do_not_saturate(kind: str, group: int | None) -> None:
    """All codes at their ends: 16-bit sums of products, as vpmaddubsw makes them, would overflow."""
    for K in (64, 4096):
        x = np.ones((4, K), np.float32)
        x[1] = -1
        x[2, ::2] = -1
        x[3] = np.where(np.arange(K) % 4 < 2, 1, -1)
        w = np.ones((6, K), np.float32)
        w[1] = -1
        w[2, ::2] = -1
        w[3] = x[3]
        w[4] = -x[3]
        w[5, : K // 2] = -1
        check(x, w, kind, group)


def test_int8_takes_65536_features() -> None:
    K = 1 << 16
    x, w = np.ones((2, K), np.float32), np.ones((3, K), np.float32)
    x[1], w[1], w[2, ::2] = -1, -1, -1
    expected = x.astype(np.float64) @ w.T
    for _ in each_isa():
        got = qkv.linear(x, qkv.pack_weight(w, "int8"))
        np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match="at most 65536 features"):
        qkv.pack_weight(np.ones((1, K + 1), np.float32), "int8")


@pytest.mark.parametrize("kind, group", TYPES)
def test_epilogue(kind: str, group: int | None, rng: np.random.Generator) -> None:
    x, w = normal(rng, (2, 9, 64)), normal(rng, (50, 64), scale=0.1)
    options = {"bias": normal(rng, 50), "gate": normal(rng, (9, 50)), "residual": normal(rng, (2, 9, 50))}
    for activation in (None, "gelu", "gelu_tanh", "relu", "silu", "quick_gelu", "tanh"):
        check(x, w, kind, group, f"{activation}", activation=activation, **options)
    check(x, w, kind, group, bias=options["bias"])
    packed = qkv.pack_weight(w, kind, group)
    expected = qkv.linear(x, packed, options["bias"], residual=options["residual"])
    out = options["residual"].copy()
    assert qkv.linear(x, packed, options["bias"], residual=out, out=out) is out
    assert same_bits(out, expected)


@pytest.mark.parametrize("kind, group", TYPES)
@pytest.mark.parametrize("K", [64, 2049])
def test_bias_and_residual_alone(K: int, kind: str, group: int | None, rng: np.random.Generator) -> None:
    """Tiles add them as they store their sums: tiles of all heights, parts of panels, several blocks of K."""
    for M in (1, 2, 5, 6, 8, 9, 18):
        x, w, bias = normal(rng, (M, K)), normal(rng, (50, K), scale=0.1), normal(rng, 50)
        for name, residual in residuals(rng, M, 50).items():
            check(x, w, kind, group, name, bias=bias, residual=residual)


@pytest.mark.parametrize("kind, group", TYPES)
def test_many_rows_and_columns(kind: str, group: int | None, rng: np.random.Generator) -> None:
    """An output of which no second cache holds all."""
    x, w = normal(rng, (700, 64)), normal(rng, (800, 64), scale=0.1)
    check(x, w, kind, group, bias=normal(rng, 800), residual=normal(rng, (700, 800)))


@pytest.mark.parametrize("kind, group", TYPES)
@pytest.mark.parametrize("dtype", [FLOAT16, BFLOAT16], ids=str)
def test_half_width_activations(dtype: np.dtype[Any], kind: str, group: int | None, rng: np.random.Generator) -> None:
    check(normal(rng, (7, 100), dtype), normal(rng, (33, 100)), kind, group)


@pytest.mark.parametrize("kind, group", TYPES)
def test_strided_activations_and_weights(kind: str, group: int | None, rng: np.random.Generator) -> None:
    x, w = normal(rng, (6, 96)), normal(rng, (20, 96))
    for _ in each_isa():
        packed = qkv.pack_weight(w, kind, group)
        expected = qkv.linear(x, packed)
        for name, view in strided(x).items():
            assert same_bits(qkv.linear(view, packed), expected), name
        for name, view in strided(w).items():
            assert same_bits(qkv.linear(x, qkv.pack_weight(view, kind, group)), expected), name


@pytest.mark.parametrize("kind, group", INTEGERS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_is_nan(bad: float, kind: str, group: int | None, rng: np.random.Generator) -> None:
    x, w = normal(rng, (5, 1100)), normal(rng, (40, 1100))
    for _ in each_isa():
        packed = qkv.pack_weight(w, kind, group)
        whole = qkv.linear(x, packed)
        for place in (0, 37, 700, 1099):
            y = x.copy()
            y[2, place] = bad
            got = qkv.linear(y, packed)
            assert np.isnan(got[2]).all()
            assert same_bits(np.delete(got, 2, axis=0), np.delete(whole, 2, axis=0))


@pytest.mark.parametrize("kind, group", TYPES)
def test_empty(kind: str, group: int | None, rng: np.random.Generator) -> None:
    w = normal(rng, (20, 32))
    for _ in each_isa():
        assert qkv.linear(normal(rng, (0, 32)), qkv.pack_weight(w, kind, group)).shape == (0, 20)
        assert qkv.linear(normal(rng, (3, 32)), qkv.pack_weight(w[:0], kind, group)).shape == (3, 0)
        nothing = qkv.pack_weight(w[:, :0], kind, group)
        assert nothing.shape == (20, 0) and nothing.dequantize().shape == (20, 0)
        np.testing.assert_array_equal(qkv.linear(np.zeros((3, 0), np.float32), nothing), np.zeros((3, 20)))


@pytest.mark.parametrize("kind, group", TYPES)
@pytest.mark.parametrize("K, N", [(1, 1), (65, 100), (768, 130), (2049, 17)])
def test_rows_do_not_depend_on_their_number_or_the_threads(
    K: int, N: int, kind: str, group: int | None, rng: np.random.Generator
) -> None:
    x, w, bias = normal(rng, (40, K)), normal(rng, (N, K)), normal(rng, N)
    threads = qkv.get_num_threads()
    for isa in each_isa():
        packed = qkv.pack_weight(w, kind, group)
        whole = qkv.linear(x, packed, bias, activation="gelu")
        for M in (1, 2, 3, 4, 5, 7, 8, 13, 14, 16, 17, 19, 39):
            assert same_bits(qkv.linear(x[:M], packed, bias, activation="gelu"), whole[:M].copy()), f"{M} rows {isa}"
            one = qkv.linear(x[M : M + 1], packed, bias, activation="gelu")
            assert same_bits(one, whole[M : M + 1].copy()), f"row {M} {isa}"
        try:
            for n in (1, 2, 5):
                qkv.set_num_threads(n)
                assert same_bits(qkv.linear(np.concatenate([x] * 9), packed, bias, activation="gelu")[40:80], whole)
        finally:
            qkv.set_num_threads(threads)


@pytest.mark.parametrize("kind, group", TYPES)
def test_instruction_sets_share_the_packed_layout(kind: str, group: int | None, rng: np.random.Generator) -> None:
    x, w = normal(rng, (5, 100)), normal(rng, (33, 100))
    expected = None
    for isa in each_isa():
        packed = qkv.pack_weight(w, kind, group)
        if expected is None:
            expected, first = packed.dequantize(), packed
        assert same_bits(packed.dequantize(), expected), isa
        assert same_bits(qkv.linear(x, first), qkv.linear(x, packed)), isa


@pytest.mark.parametrize("kind, group", TYPES)
def test_pickle(kind: str, group: int | None, rng: np.random.Generator) -> None:
    x, w = normal(rng, (5, 101)), normal(rng, (33, 101))
    packed = qkv.pack_weight(w, kind, group)
    again = pickle.loads(pickle.dumps(packed))
    assert (again.dtype, again.group_size, again.shape) == (packed.dtype, packed.group_size, packed.shape)
    assert same_bits(again.dequantize(), packed.dequantize())
    assert same_bits(qkv.linear(x, again), qkv.linear(x, packed))


@pytest.mark.parametrize("kind, group", TYPES)
def test_distance_to_float32_with_outlier_columns(kind: str, group: int | None, rng: np.random.Generator) -> None:
    """Rows as a BERT's layers see them: normed, some columns 20 times as wide as the rest. The error's root mean square
    is that of rounding noise, steps of which are spread evenly: step / sqrt 12 for each operand."""
    K, N, M = 768, 512, 64
    spread = np.exp(rng.standard_normal(K) * 0.5)
    spread[rng.choice(K, 4, replace=False)] *= 20
    x = (normal(rng, (M, K)) * spread).astype(np.float32)
    w = normal(rng, (N, K), scale=0.04)

    def steps(a: Any, levels: int, signed: bool) -> Any:
        """The step of each value: its row's or group's range over the levels."""
        parts = a.reshape(len(a), -1, group or K)
        top = np.abs(parts).max(axis=2) if signed else parts.max(axis=2) - parts.min(axis=2)
        return np.repeat(top / levels, group or K, axis=1)

    if kind == "bfloat16":
        noise_x, noise_w = (2.0 ** (np.floor(np.log2(np.abs(a))) - 7) for a in (x, w))  # 8 bits of precision
    else:
        noise_x = steps(x, 127, True) if group else steps(x, 255, False)
        noise_w = steps(w, 127, True) if kind == "int8" else steps(w, 15, False)
    expected = np.sqrt((noise_x**2 @ (w.astype(np.float64) ** 2).T + x.astype(np.float64) ** 2 @ (noise_w**2).T) / 12)
    exact = x.astype(np.float64) @ w.T.astype(np.float64)
    for isa in each_isa():
        error = qkv.linear(x, qkv.pack_weight(w, kind, group)) - exact
        ratio = np.sqrt((error**2).mean() / (expected**2).mean())
        assert 0.9 < ratio < 1.1, (isa, ratio)


def test_float64_rows_meet_the_dequantised_weight(rng: np.random.Generator) -> None:
    x, w = rng.standard_normal((4, 70)), normal(rng, (9, 70))
    for kind, group in TYPES:
        packed = qkv.pack_weight(w, kind, group)
        got = qkv.linear(x, packed)
        assert got.dtype == np.float64
        np.testing.assert_allclose(got, x @ packed.dequantize().astype(np.float64).T, rtol=1e-13)
    assert packed.dequantize().dtype == FLOAT32
