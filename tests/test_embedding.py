"""embedding: rows of a table, copied to the bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import qkv
from checks import FLOAT32, each_isa, normal, oracle, same_bits, sizes, strided, unaligned, wide

INTEGERS = [np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64]


@pytest.mark.parametrize("width", [0, *sizes()])
def test_sizes(width: int, dtype: np.dtype[Any], rng: np.random.Generator) -> None:
    table, ids = normal(rng, (11, width), dtype), rng.integers(0, 11, 9)
    for _ in each_isa():
        out = qkv.embedding(ids, table)
        assert same_bits(out, table[ids]) and out.flags.writeable
        assert not np.shares_memory(out, table)
    np.testing.assert_array_equal(oracle("embedding", ids, table), wide(table)[ids])


@pytest.mark.parametrize("integer", INTEGERS)
@pytest.mark.parametrize("shape", [(), (1,), (7,), (0,), (2, 3), (2, 0, 3), (2, 3, 4)], ids=str)
def test_ids_of_any_shape_and_integer_dtype(integer: Any, shape: tuple[int, ...], rng: np.random.Generator) -> None:
    table = normal(rng, (100, 5))
    ids = np.asarray(rng.integers(0, 100, shape), integer)
    for _ in each_isa():
        assert same_bits(qkv.embedding(ids, table), table[ids.astype(np.int64)].reshape(*shape, 5))


def test_strides(dtype: np.dtype[Any], rng: np.random.Generator) -> None:
    table, ids = normal(rng, (13, 33), dtype), rng.integers(0, 13, (5, 7))
    for _ in each_isa():
        for view in strided(table).values():
            for ids_view in (*strided(ids).values(), unaligned(ids).copy()):
                assert same_bits(qkv.embedding(ids_view, view), table[ids])
        one = np.broadcast_to(table[:1], (13, 33))
        assert same_bits(qkv.embedding(ids, one), one[ids])


def test_packed_table(rng: np.random.Generator) -> None:
    table, ids = normal(rng, (257, 65)), rng.integers(0, 257, (3, 50))
    for _ in each_isa():
        assert same_bits(qkv.embedding(ids, qkv.pack_weight(table)), table[ids])


def test_bits_are_kept() -> None:
    """NaN payloads, infinities, denormals and the sign of zero are copied, not computed."""
    bits = np.array([0x7FC00001, 0xFFC12345, 0x7F800000, 0xFF800000, 1, 0x80000000, 0x80000001], np.uint32)
    table = np.tile(bits, (3, 1)).view(np.float32)
    for _ in each_isa():
        assert (qkv.embedding(np.array([2, 0]), table).view(np.uint32) == bits).all()


def test_many_rows(rng: np.random.Generator) -> None:
    table, ids = normal(rng, (1000, 64)), rng.integers(0, 1000, 20_000)
    for _ in each_isa():
        assert same_bits(qkv.embedding(ids, table), table[ids])


@pytest.mark.parametrize(
    "bad",
    [
        np.array([0, 10]),
        np.array([-1]),
        np.array([2**40]),
        np.array([2**64 - 1], np.uint64),
        np.array(-(2**63)),
    ],
)
def test_ids_outside_the_table(bad: Any) -> None:
    table = np.ones((10, 3), np.float32)
    for candidate in (table, qkv.pack_weight(table), table.astype(np.float64)):
        for _ in each_isa():
            with pytest.raises(ValueError, match=r"embedding: .*outside"):
                qkv.embedding(bad, candidate)


def test_empty_table() -> None:
    table = np.ones((0, 3), np.float32)
    assert qkv.embedding(np.zeros(0, np.int64), table).shape == (0, 3)
    with pytest.raises(ValueError, match="embedding"):
        qkv.embedding(np.zeros(1, np.int64), table)


def test_refuses(rng: np.random.Generator) -> None:
    table = normal(rng, (10, 3), FLOAT32)
    for ids in (
        np.zeros(2),
        np.zeros(2, np.float32),
        np.zeros(2, bool),
        np.array(["a"]),
        np.zeros(2, object),
    ):
        with pytest.raises(TypeError, match=r"embedding: .*ids"):
            qkv.embedding(ids, table)
    for shape in ((10,), (2, 5, 3), ()):
        with pytest.raises(ValueError, match=r"embedding: .*table"):
            qkv.embedding(np.zeros(2, np.int64), np.ones(shape, np.float32))
    for wrong in (np.ones((10, 3), np.int32), np.ones((10, 3), np.complex64)):
        with pytest.raises(TypeError, match=r"embedding: .*table"):
            qkv.embedding(np.zeros(2, np.int64), wrong)


def test_lists_and_float64(rng: np.random.Generator) -> None:
    table = rng.standard_normal((10, 3))
    out = qkv.embedding([[1, 2], [3, 4]], table)
    assert out.dtype == np.float64
    np.testing.assert_array_equal(out, table[[[1, 2], [3, 4]]])
