"""linear_top_k: the best of a product's rows, by the product itself, a stable sort and sums in float64."""

from __future__ import annotations

import numpy as np
import pytest
import qkv
from checks import each_isa, normal, same_bits
from qkv.ops import linear_top_k, log_softmax_parts, record

CUT = 1024  # columns that are added up at once
TYPES = [("float32", None), ("bfloat16", None), ("int8", None), ("int8", 32), ("int4", 32)]


def packed(w: np.ndarray, dtype: str, group: int | None) -> qkv.PackedWeight:
    return qkv.pack_weight(w, dtype) if group is None else qkv.pack_weight(w, dtype, group_size=group)


def check(x: np.ndarray, weight: qkv.PackedWeight, bias: np.ndarray | None, k: int) -> None:
    for _ in each_isa():
        z = qkv.linear(x, weight, bias)
        with np.errstate(invalid="ignore"):
            order = np.argsort(-z, axis=1, kind="stable")[:, :k]  # NumPy sorts NaN to the end
        values, places, (top, total) = linear_top_k(x, weight, bias, k)
        np.testing.assert_array_equal(places, order)
        assert same_bits(values + 0, np.take_along_axis(z, order, axis=1) + 0)  # of zeros the sign is lost
        wide = z.astype(np.float64)
        with np.errstate(invalid="ignore"):
            np.testing.assert_array_equal(top[:, 0], wide.max(axis=1))
            logarithm = np.log(np.exp(wide - wide.max(axis=1, keepdims=True)).sum(axis=1))
        np.testing.assert_allclose(total[:, 0], logarithm, rtol=1e-6, atol=1e-6)
        assert same_bits(total, log_softmax_parts(z)[1])


@pytest.mark.parametrize(("dtype", "group"), TYPES)
@pytest.mark.parametrize("rows", [1, 2, 15, 33, 65])
def test_rows_and_types(rows: int, dtype: str, group: int | None, rng: np.random.Generator) -> None:
    weight = packed(normal(rng, (3 * CUT + 77, 64)), dtype, group)
    check(normal(rng, (rows, 64)), weight, normal(rng, weight.shape[0]), 17)


@pytest.mark.parametrize(("dtype", "group"), TYPES)
@pytest.mark.parametrize("k", [1, 3, 33, 65, 160])
def test_features(k: int, dtype: str, group: int | None, rng: np.random.Generator) -> None:
    weight = packed(normal(rng, (CUT + 33, k)), dtype, group)
    check(normal(rng, (18, k)), weight, normal(rng, CUT + 33), 5)


def test_again_after_x_has_changed(rng: np.random.Generator) -> None:
    weight = packed(normal(rng, (2 * CUT, 32)), "int8", None)
    x = normal(rng, (4, 32))
    (values, places, (top, total)), recording = record(lambda: linear_top_k(x, weight, None, 3))
    for _ in range(3):
        x[...] = normal(rng, (4, 32))
        recording.replay()
        again = linear_top_k(x, weight, None, 3)
        assert same_bits(values, again[0]) and (places == again[1]).all()
        assert same_bits(top, again[2][0]) and same_bits(total, again[2][1])


@pytest.mark.parametrize("width", [1, 15, 16, 17, 100, CUT - 1, CUT, CUT + 1, 2 * CUT + 16])
def test_widths(width: int, rng: np.random.Generator) -> None:
    weight = packed(normal(rng, (width, 32)), "int8", None)
    for k in {1, 2, min(9, width), width // 2 + 1, width}:
        check(normal(rng, (3, 32)), weight, None, min(k, width))


def test_equal_ones_and_rows_in_order(rng: np.random.Generator) -> None:
    """The bias alone makes z: what comes late, early, or again in another cut."""
    weight = packed(np.zeros((5 * CUT, 16), np.float32), "float32", None)
    x = normal(rng, (2, 16))
    ties = rng.integers(-2, 2, 5 * CUT).astype(np.float32)
    sorted_ = np.sort(normal(rng, 5 * CUT))
    for bias in (ties, np.zeros_like(ties), sorted_, sorted_[::-1].copy(), np.where(ties > 0, 0.0, -0.0)):
        for k in (1, 7, 40, 1500):
            check(x, weight, bias.astype(np.float32), k)


def test_infinities_and_nan(rng: np.random.Generator) -> None:
    weight = packed(normal(rng, (3 * CUT, 16)), "float32", None)
    x = normal(rng, (6, 16))
    excluded = normal(rng, 3 * CUT)
    excluded[rng.random(3 * CUT) < 0.9] = -np.inf
    excluded[:CUT] = -np.inf  # a cut of nothing else
    check(x, weight, excluded, 30)
    check(x, weight, np.where(np.arange(3 * CUT) == 2000, np.float32(1), np.float32(-np.inf)), 5)
    bad = normal(rng, 3 * CUT)
    bad[[3, 1030, 2500]] = np.nan
    for k in (1, 5, 3 * CUT):
        for _ in each_isa():
            z = qkv.linear(x, weight, bad)
            order = np.argsort(-z, axis=1, kind="stable")[:, :k]
            values, places, (_, total) = linear_top_k(x, weight, bad, k)
            np.testing.assert_array_equal(places, order)
            np.testing.assert_array_equal(values, np.take_along_axis(z, order, axis=1))
            assert np.isnan(total).all()
    bad[:CUT], bad[5], bad[CUT:] = -np.inf, np.nan, 0  # where all others are left out
    nothing = packed(np.zeros((3 * CUT, 16), np.float32), "float32", None)
    for _ in each_isa():
        assert np.isnan(linear_top_k(x, nothing, bad, 2)[2][1]).all()
        z = np.full((6, 3 * CUT), -np.inf, np.float32)
        assert same_bits(linear_top_k(x, nothing, z[0], 2)[2][1], log_softmax_parts(z)[1])
    x[1, 3] = np.nan  # of integers a row is NaN then
    weight = packed(normal(rng, (3 * CUT, 16)), "int8", None)
    values, places, (_, total) = linear_top_k(x, weight, None, 4)
    assert np.isnan(values[1]).all() and np.isnan(total[1]) and places[1].tolist() == [0, 1, 2, 3]
    assert np.isfinite(values[[0, 2, 3, 4, 5]]).all()


@pytest.mark.parametrize(("dtype", "group"), TYPES)
def test_rows_and_threads_change_nothing(dtype: str, group: int | None, rng: np.random.Generator) -> None:
    weight = packed(normal(rng, (4 * CUT + 5, 96)), dtype, group)
    x, bias = normal(rng, (70, 96)), normal(rng, weight.shape[0])
    before = qkv.get_num_threads()
    for _ in each_isa():
        values, places, (top, total) = linear_top_k(x, weight, bias, 6)
        try:
            for threads, rows in ((1, slice(None)), (3, slice(None)), (2, slice(66, 67)), (1, slice(20, 53))):
                qkv.set_num_threads(threads)
                some = linear_top_k(x[rows], weight, bias, 6)
                assert same_bits(some[0], values[rows]) and (some[1] == places[rows]).all()
                assert same_bits(some[2][0], top[rows]) and same_bits(some[2][1], total[rows])
        finally:
            qkv.set_num_threads(before)


def test_refuses(rng: np.random.Generator) -> None:
    weight = packed(normal(rng, (40, 16)), "int8", None)
    x = normal(rng, (4, 16))
    for wrong in (x[:, ::2], x[0], x.astype(np.float16), x.astype(np.float64)):
        with pytest.raises(ValueError, match="linear_top_k: x must be contiguous float32"):
            linear_top_k(wrong, weight, None, 1)
    for k in (0, -1, 41):
        with pytest.raises(ValueError, match="linear_top_k: k must lie in 1 to 40"):
            linear_top_k(x, weight, None, k)
    with pytest.raises(ValueError, match="x has 15 features"):
        linear_top_k(np.ascontiguousarray(x[:, 1:]), weight, None, 1)
    with pytest.raises(ValueError, match=r"bias must be \(40,\)"):
        linear_top_k(x, weight, x[0], 1)
    with pytest.raises(TypeError, match="weight must be a PackedWeight"):
        linear_top_k(x, weight.dequantize(), None, 1)  # type: ignore[arg-type]
    assert linear_top_k(x[:0], weight, None, 3)[0].shape == (0, 3)
