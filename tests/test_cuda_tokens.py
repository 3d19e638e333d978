"""embedding, rotary, angles and scaled sums on a GPU's arrays: what only they have; on_device.py brings
the rest, the tests of the ops."""

from __future__ import annotations

from itertools import product
from typing import Any

import ml_dtypes
import naive
import numpy as np
import pytest
import qkv
from checks import DTYPES, assert_close, eps, normal, same_bits, strided
from on_device import to_device
from qkv import cuda_ops, ops, reference
from qkv.positions import rotary_frequencies

pytestmark = pytest.mark.skipif(not qkv.cuda.is_available(), reason=qkv.cuda.why_not())

F32, F16, BF16 = np.float32, np.float16, ml_dtypes.bfloat16
there = qkv.cuda.array


# ---- embedding


@pytest.mark.parametrize("integer", [np.int32, np.int64])
@pytest.mark.parametrize("width", [1, 7, 8, 64, 1000])
def test_ids_on_the_device(width: int, integer: Any, dtype: np.dtype[Any], rng: np.random.Generator) -> None:
    table, ids = normal(rng, (50, width), dtype), rng.integers(0, 50, (3, 9)).astype(integer)
    assert same_bits(qkv.embedding(there(ids), there(table)).numpy(), table[ids])
    for view in strided(table).values():
        assert same_bits(qkv.embedding(there(ids), to_device(view)).numpy(), table[ids])


@pytest.mark.parametrize("integer", [np.int32, np.int64])
def test_ids_that_no_row_has(integer: Any, dtype: np.dtype[Any], rng: np.random.Generator) -> None:
    """Nobody waits for ids on the device to refuse them: what they ask for is NaN."""
    far = 2**62 if integer is np.int64 else 2**31 - 1
    ids = np.array([0, -1, 10, 9, far, -far], integer)
    real = (ids >= 0) & (ids < 10)
    for width in (5, 64):
        table = normal(rng, (10, width), dtype)
        for kind in (table, qkv.pack_weight(table.astype(F32), "int8"), qkv.pack_weight(table.astype(F32), "int4")):
            out = qkv.embedding(there(ids), there(kind)).numpy()
            assert np.isnan(out[~real].astype(F32)).all() and np.isfinite(out[real].astype(F32)).all()
        assert np.isnan(qkv.embedding(there(ids[[1]]), there(table[:0])).numpy().astype(F32)).all()


@pytest.mark.parametrize("wanted", DTYPES)
@pytest.mark.parametrize("width", [5, 8, 12, 200])
def test_rows_in_another_dtype(width: int, wanted: str, dtype: np.dtype[Any], rng: np.random.Generator) -> None:
    table, ids = normal(rng, (30, width), dtype), rng.integers(0, 30, 11)
    expected = table[ids].astype(F32).astype(DTYPES[wanted])
    for at in (ids, there(ids)):
        assert same_bits(cuda_ops.rows(at, there(table), DTYPES[wanted]).numpy(), expected)
    assert same_bits(cuda_ops.rows(ids, to_device(strided(table)["every other"]), DTYPES[wanted]).numpy(), expected)


@pytest.mark.parametrize(
    "kind, group", [("float32", None), ("bfloat16", None), ("int8", None), ("int8", 32), ("int4", 64)]
)
def test_packed_tables(kind: str, group: int | None, rng: np.random.Generator) -> None:
    table, ids = normal(rng, (70, 100)), rng.integers(0, 70, (2, 9))
    weight, expected = (
        there(qkv.pack_weight(table, kind, group)),
        reference.pack_weight(table, kind, group).dequantize(),
    )
    for at in (ids, ids.astype(np.int32), there(ids), there(ids.astype(np.int32))):
        out = qkv.embedding(at, weight)
        assert out.dtype == (BF16 if kind == "bfloat16" else F32)
        np.testing.assert_array_equal(out.numpy().astype(F32), expected[ids])
        assert same_bits(cuda_ops.rows(at, weight, F16).numpy(), expected[ids].astype(F16))
    with pytest.raises(ValueError, match="embedding: id 70 is outside the table's 70 rows"):
        qkv.embedding(np.array([70]), weight)


def test_embedding_refuses() -> None:
    table, ids = there(np.ones((10, 4), F32)), there(np.arange(6).reshape(2, 3))
    with pytest.raises(ValueError, match="embedding: ids must be contiguous"):
        qkv.embedding(ids.T, table)
    with pytest.raises(TypeError, match="embedding: ids must hold int32 or int64, got int8"):
        qkv.embedding(there(np.zeros(2, np.int8)), table)
    with pytest.raises(TypeError, match="embedding: ids is on a CUDA device, table in host memory"):
        qkv.embedding(ids, np.ones((10, 4), F32))
    with pytest.raises(TypeError, match="embedding: table must be float32, float16 or bfloat16, got int64"):
        qkv.embedding(ids, ids)
    with pytest.raises(TypeError, match="float32, float16 or bfloat16, got float64"):
        cuda_ops.rows(ids, table, np.float64)


# ---- rotary


def by_angles(x: Any, angles: Any, factor: float = 1.0, interleaved: bool = False) -> tuple[Any, Any]:
    """In float64, and the yardstick."""
    turned = naive.rotary(x.astype(np.float64), angles.astype(np.float64), interleaved, factor)
    return turned, naive.rotary(x, angles.astype(np.float64), interleaved, factor)


@pytest.mark.parametrize("integer", [np.int32, np.int64])
def test_positions_on_the_device(integer: Any, dtype: np.dtype[Any], rng: np.random.Generator) -> None:
    """The same bits as of positions in host memory."""
    x = there(normal(rng, (2, 3, 5, 16), dtype))
    scalings = (
        None,
        {"rope_type": "linear", "factor": 4.0},
        {"rope_type": "dynamic", "factor": 2.0, "max_position_embeddings": 16},
    )
    for shape, interleaved, scaling in product(((5,), (2, 5), (2, 1, 5), (2, 3, 5)), (False, True), scalings):
        positions = rng.integers(0, 1000, shape).astype(integer)
        options: dict[str, Any] = {"interleaved": interleaved, "scaling": scaling}
        host = qkv.rotary(x, positions, **options)
        assert same_bits(qkv.rotary(x, there(positions), **options).numpy(), host.numpy())
        bshd = qkv.rotary(
            x.transpose(0, 2, 1, 3), there(positions[:, 0] if len(shape) == 3 else positions), layout="bshd", **options
        )
        if len(shape) < 3 or shape[1] == 1:
            assert same_bits(np.ascontiguousarray(bshd.numpy().swapaxes(1, 2)), host.numpy())
    for positions, error in (
        (np.arange(4), ValueError),
        (np.zeros((3, 5), int), ValueError),
        (np.ones(5, F32), TypeError),
    ):
        with pytest.raises(error, match="rotary: positions"):
            qkv.rotary(x, there(positions))
    with pytest.raises(TypeError, match="rotary: positions is on a CUDA device, x in host memory"):
        qkv.rotary(np.ones((5, 16), F32), there(np.arange(5)))


@pytest.mark.parametrize(
    "heads, D", [(1, 2), (3, 6), (8, 64), (5, 80), (32, 128), (2, 96), (40, 16), (1, 5000), (700, 32)]
)
@pytest.mark.parametrize("tokens", [1, 7, 33])
def test_where_it_lies_in_the_fused_product(
    tokens: int, heads: int, D: int, dtype: np.dtype[Any], rng: np.random.Generator
) -> None:
    if tokens * heads * D > 40_000:
        tokens = 2
    fused = normal(rng, (tokens, 3 * heads * D), dtype)
    angles = normal(rng, (tokens, 1, D // 2), F32, 100)
    device, turns = there(fused), there(angles)
    for i in range(2):
        part = fused[:, i * heads * D : (i + 1) * heads * D].reshape(tokens, heads, D)
        view = device[:, i * heads * D : (i + 1) * heads * D]._as_strided((tokens, heads, D), (3 * heads * D, D, 1), 0)
        for given in (turns, angles):
            out = ops.rotate(view, given, 1.25)
            assert_close(out.numpy(), *by_angles(part, np.broadcast_to(angles, (tokens, heads, D // 2)), 1.25))


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("n, dim", [(5001, 3000), (9000, 64)])
def test_what_is_not_turned_passes_through(
    n: int, dim: int, interleaved: bool, dtype: np.dtype[Any], rng: np.random.Generator
) -> None:
    """As it is, and also where it is more than a block fetches at once."""
    x, angles = normal(rng, (2, 3, n), dtype), normal(rng, (2, 1, dim // 2), F32, 100)
    out = qkv.cuda.module().rotary(there(x), there(angles), 1.25, dim, interleaved, 0).numpy()
    assert_close(
        np.ascontiguousarray(out[..., :dim]),
        *by_angles(x[..., :dim], np.broadcast_to(angles, (2, 3, dim // 2)), 1.25, interleaved),
    )
    assert same_bits(np.ascontiguousarray(out[..., dim:]), np.ascontiguousarray(x[..., dim:]))


def test_any_angle(rng: np.random.Generator) -> None:
    """Cosine and sine come out as rows (cos, sin) of x = (1, 0); the float's own value counts, however large."""
    special = [
        0.0,
        -0.0,
        1e-45,
        -1e-30,
        0.7853981,
        0.7853982,
        1.5707963,
        3.1415927,
        -3.1415927,
        6.2831855,
        355.0,
        1e5,
        1e6,
        2.0**24,
    ]
    special += [16367173.0 * 2**72, 3.4e38, -1e20, 1e10, 2.0**31, 2.0**63, np.nan, np.inf, -np.inf]
    angles = np.concatenate([special, rng.uniform(-1e6, 1e6, 3000), np.exp(rng.uniform(-60, 88, 3000))]).astype(F32)
    x = np.zeros((len(angles), 2), F32)
    x[:, 0] = 1
    out = ops.rotate(there(x), there(angles[:, None]), 1.0).numpy()
    finite = np.isfinite(angles)
    assert np.isnan(out[~finite]).all()
    want = np.stack([np.cos(angles[finite].astype(np.float64)), np.sin(angles[finite].astype(np.float64))], 1)
    error = np.abs(out[finite] - want) / np.maximum(np.abs(want), 2.0**-126)
    assert error.max() <= 2 * eps(np.dtype(F32)), angles[finite][error.max(1).argmax()]


def test_angles_on_the_device(rng: np.random.Generator) -> None:
    positions = np.array([0, 1, -5, 2**24 + 1, 77])
    for width in (1, 3, 64, 1000):
        frequencies = normal(rng, (width,))
        expected = positions.astype(F32)[:, None, None] * frequencies
        for at in (positions, there(positions), there(positions.astype(np.int32))):
            for by in (there(frequencies), frequencies):
                if at is positions and by is frequencies:
                    continue
                assert same_bits(ops.angles(at, by).numpy(), expected)
    for wrong in (frequencies[None], frequencies.astype(F16), frequencies[::2]):
        with pytest.raises(ValueError, match="rotary_angles: frequencies"):
            ops.angles(there(positions), to_device(wrong))
    with pytest.raises(ValueError, match="rotary_angles: positions"):
        ops.angles(there(positions[None]), frequencies)


def test_rotate_refuses(rng: np.random.Generator) -> None:
    x = there(np.ones((3, 2, 8), F32))
    for shape in ((3, 1, 5), (4, 1, 4), (2, 3, 1, 4), ()):
        with pytest.raises(ValueError, match="rotary: "):
            cuda_ops.cuda.module().rotary(x, there(np.ones(shape, F32)), 1.0, 8, False, 0)
    with pytest.raises(TypeError, match="rotary: angles must be float32, got float16"):
        ops.rotate(x, there(np.ones((3, 1, 4), F16)), 1.0)


def test_angles_of_a_model(rng: np.random.Generator) -> None:
    """positions -> angles -> q and k, nothing but device arrays: what the rotary op does in one call."""
    f, factor = rotary_frequencies(32, 10000.0, None)
    positions, x = rng.integers(0, 5000, 9), normal(rng, (9, 4, 32))
    angles = ops.angles(there(positions), there(f.astype(F32)))
    assert same_bits(ops.rotate(there(x), angles, factor).numpy(), qkv.rotary(there(x), positions).numpy())


# ---- scaled sums


@pytest.mark.parametrize("width", [1, 5, 8, 64, 1000])
def test_scaled_sums_round_once(width: int, dtype: np.dtype[Any], rng: np.random.Generator) -> None:
    x, scale = normal(rng, (17, width), dtype), np.float32(0.3)
    wide = x.astype(F32)
    for kind in {dtype, np.dtype(F32)}:
        whole, row = normal(rng, (17, width), kind), normal(rng, (width,), kind)
        for other in (whole, row):
            expected = (wide * scale + other.astype(F32)).astype(dtype)
            assert same_bits(ops.scaled_sum(there(x), 0.3, there(other)).numpy(), expected)
    assert same_bits(ops.scaled_sum(there(x), 0.3).numpy(), (wide * scale).astype(dtype))
    assert same_bits(ops.divided(there(x), 0.3).numpy(), (wide / scale).astype(dtype))
    one_off = there(np.concatenate([x.reshape(-1)[:1], x.reshape(-1)]))[1:].reshape(17, width)
    assert same_bits(
        ops.scaled_sum(one_off, 0.3, there(whole)).numpy(), (wide * scale + whole.astype(F32)).astype(dtype)
    )


def test_scaled_sum_refuses(rng: np.random.Generator) -> None:
    x = there(np.ones((4, 8), F16))
    with pytest.raises(TypeError, match="scaled_sum: other is bfloat16; beside float16 it may be float16 or float32"):
        ops.scaled_sum(x, 1, there(np.ones(8, BF16)))
    with pytest.raises(ValueError, match="scaled_sum: x must be contiguous"):
        ops.divided(x.T, 1)
    with pytest.raises(TypeError, match="scaled_sum: x is on a CUDA device, other in host memory"):
        ops.scaled_sum(x, 1, np.ones(8, F16))


def test_nothing_waits(rng: np.random.Generator) -> None:
    """In a stream of its own, one after the other."""
    table, x = normal(rng, (20, 64)), normal(rng, (6, 64))
    ids, positions = rng.integers(0, 20, 6), np.arange(6)
    with qkv.cuda.stream(qkv.cuda.Stream()):
        y = qkv.embedding(there(ids), there(table))
        y = ops.scaled_sum(y, 2.0, there(x))
        y = qkv.rotary(y, there(positions))
        host = y.numpy()
    want = reference.rotary((table[ids] * 2 + x).astype(np.float64), positions)
    np.testing.assert_allclose(host, want, rtol=0, atol=1e-4)
