"""pack_weight: what is stored, to the bit, and the canonical form that files hold."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import qkv
from checks import DTYPES, each_isa, normal, same_bits
from ml_dtypes import bfloat16
from qkv import reference
from qkv.ops import _cpu
from test_gemm_quantized import INTEGERS, TYPES


@pytest.mark.parametrize("kind, group", TYPES)
@pytest.mark.parametrize("K", [1, 5, 31, 32, 33, 96, 100, 257])
def test_stored_values(K: int, kind: str, group: int | None, rng: np.random.Generator) -> None:
    w = normal(rng, (37, K))
    w[1] *= 1e-3
    w[2] = 0
    w[3] = -2.5
    w[4, 0] = 100
    expected = reference.pack_weight(w, kind, group)
    for isa in each_isa():
        packed = qkv.pack_weight(w, kind, group)
        assert packed.shape == w.shape and packed.dtype == kind
        assert packed.group_size == (32 if kind == "int4" and group is None else group)
        np.testing.assert_array_equal(packed.dequantize(), expected.dequantize(), err_msg=isa)


@pytest.mark.parametrize("kind, group", TYPES)
def test_weights_of_any_dtype(kind: str, group: int | None, dtype: np.dtype[Any], rng: np.random.Generator) -> None:
    w = normal(rng, (20, 70), dtype)
    for _ in each_isa():
        expected = qkv.pack_weight(w.astype(np.float32), kind, group).dequantize()
        assert same_bits(qkv.pack_weight(w, kind, group).dequantize(), expected)
    assert dtype in DTYPES.values()


def test_error_of_a_weight(rng: np.random.Generator) -> None:
    """Half a step, and what float16 scales add."""
    w = normal(rng, (64, 256))
    parts = w.reshape(64, -1, 32)
    top = np.abs(w).max(axis=1, keepdims=True)
    assert (np.abs(qkv.pack_weight(w, "int8").dequantize() - w) <= top / 127 * 0.5001).all()
    step = np.abs(parts).max(axis=2, keepdims=True) / 127
    assert (np.abs(qkv.pack_weight(w, "int8", 32).dequantize().reshape(parts.shape) - parts) <= step * 0.57).all()
    step = (parts.max(axis=2, keepdims=True) - parts.min(axis=2, keepdims=True)) / 15
    assert (np.abs(qkv.pack_weight(w, "int4").dequantize().reshape(parts.shape) - parts) <= step * 0.51).all()


def test_bytes_held() -> None:
    w = np.zeros((160, 1024), np.float32)
    sizes = {(kind, group): qkv.pack_weight(w, kind, group).nbytes * 8 / w.size for kind, group in TYPES}
    assert sizes == {
        ("bfloat16", None): 16,
        ("int8", None): 8 + 64 / 1024,
        ("int8", 32): 8.5,
        ("int4", 32): 5,
        ("int4", 64): 4.5,
        ("int4", 128): 4.25,
    }


def test_blocks_of_gguf_map_exactly(rng: np.random.Generator) -> None:
    """Q8_0: d q. Q4_0: d (q - 8). Q4_1: d q + m; d and m float16, blocks of 32 (ggml-common.h)."""
    n, k = 20, 96
    d = (rng.random((n, k // 32)) * 0.1).astype(np.float16)
    m = rng.standard_normal((n, k // 32)).astype(np.float16)
    wide = lambda x: np.repeat(x.astype(np.float64), 32, axis=1)  # noqa: E731
    q8 = rng.integers(-128, 128, (n, k)).astype(np.int8)
    weight = qkv.PackedWeight.from_parts("int8", 32, k, q8, d, None)
    np.testing.assert_array_equal(weight.dequantize(), wide(d) * q8)
    q4 = rng.integers(0, 16, (n, k)).astype(np.uint8)
    pairs = q4[:, ::2] | q4[:, 1::2] << 4
    for offset in (m, (-8 * d.astype(np.float32)).astype(np.float16)):
        weight = qkv.PackedWeight.from_parts("int4", 32, k, pairs, d, offset)
        np.testing.assert_array_equal(weight.dequantize(), (wide(d) * q4 + wide(offset)).astype(np.float32))


@pytest.mark.parametrize("kind, group", [("float32", None), *TYPES])
@pytest.mark.parametrize("shape", [(1, 1), (37, 101), (16, 128), (0, 5), (5, 0)], ids=str)
def test_parts_and_back(shape: tuple[int, int], kind: str, group: int | None, rng: np.random.Generator) -> None:
    w = normal(rng, shape)
    for _ in each_isa():
        packed = qkv.pack_weight(w, kind, group)
        dtype, size, width, values, scale, offset = packed.parts()
        assert (dtype, size, width) == (kind, packed.group_size or 0, shape[1])
        if kind == "bfloat16":
            assert same_bits(values.view(bfloat16), w.astype(bfloat16))
        again = qkv.PackedWeight.from_parts(dtype, size, width, values, scale, offset)
        assert same_bits(again.dequantize(), packed.dequantize())
        for mine, theirs in zip(again.parts()[3:], packed.parts()[3:], strict=True):
            assert (mine is None and theirs is None) or same_bits(mine, theirs)


def test_parts_are_checked(rng: np.random.Generator) -> None:
    _, _, width, values, scale, offset = qkv.pack_weight(normal(rng, (20, 70)), "int4", 64).parts()
    make = qkv.PackedWeight.from_parts
    for wrong in (
        ("int4", 64, width + 2, values, scale, offset),
        ("int4", 32, width, values, scale, offset),
        ("int4", 64, width, values[:-1], scale, offset),
        ("int4", 64, width, values, scale[:-1], offset),
        ("int4", 64, width, values, None, offset),
        ("int4", 64, width, values, scale, None),
        ("int4", 0, width, values, scale, offset),
        ("int3", 64, width, values, scale, offset),
        ("int4", 64, -1, values, scale, offset),
    ):
        with pytest.raises(ValueError):
            make(*wrong)
    for wrong in (
        ("int8", 0, width, values, scale, None),
        ("int4", 64, width, values.astype(np.int8), scale, offset),
        ("int4", 64, width, values, scale.astype(np.float32), offset),
        ("int4", 64, width, None, scale, offset),
        ("int4", 64, width, values[0], scale, offset),
    ):
        with pytest.raises(TypeError):
            make(*wrong)
    q = np.full((2, 8), -128, np.int8)
    with pytest.raises(ValueError, match="-127 to 127"):
        make("int8", 0, 8, q, np.ones(2, np.float32), None)


@pytest.mark.parametrize("kind, group", INTEGERS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_cannot_be_stored(bad: float, kind: str, group: int | None, rng: np.random.Generator) -> None:
    w = normal(rng, (20, 70))
    w[17, 69] = bad
    for _ in each_isa():
        with pytest.raises(ValueError, match=f"values that {kind} cannot store"):
            qkv.pack_weight(w, kind, group)
    if group:
        with pytest.raises(ValueError, match="float16"):
            qkv.pack_weight(np.full((2, 64), 1e8, np.float32) * [[1], [-1]], kind, group)


def test_options_are_checked() -> None:
    w = np.zeros((4, 64), np.float32)
    for kind, group in [("float32", 32), ("bfloat16", 32), ("int8", 64), ("int8", 1), ("int4", 16), ("int4", -32)]:
        with pytest.raises(ValueError, match="group_size"):
            qkv.pack_weight(w, kind, group)
    with pytest.raises(ValueError, match="'float32', 'bfloat16', 'int8' or 'int4', got 'int2'"):
        qkv.pack_weight(w, "int2")
    with pytest.raises(TypeError, match="dtype must be a string"):
        qkv.pack_weight(w, np.float32)
    with pytest.raises(TypeError, match="group_size must be an integer"):
        qkv.pack_weight(w, "int4", 32.0)


@pytest.mark.parametrize("kind, group", TYPES)
def test_rows_of_a_packed_table(kind: str, group: int | None, rng: np.random.Generator) -> None:
    table = normal(rng, (50, 70))
    ids = rng.integers(0, 50, (3, 17))
    for _ in each_isa():
        packed = qkv.pack_weight(table, kind, group)
        assert same_bits(qkv.embedding(ids, packed), packed.dequantize()[ids])
        with pytest.raises(ValueError, match="outside the table"):
            qkv.embedding(np.array([50]), packed)


def test_nothing_is_allocated_for_parts_that_do_not_fit() -> None:
    """A file may claim any size."""
    make = qkv.PackedWeight.from_parts
    for k in (-11, 2**40, 32):
        with pytest.raises((ValueError, TypeError)):
            make("int8", 0, k, np.zeros((4, 4), np.int8), np.ones(4, np.float32), None)
    before = qkv.ops._cpu.buffer_stats()
    with pytest.raises(ValueError, match="values must be"):
        make("int4", 32, 64, np.zeros((10**7, 0), np.uint8), np.zeros((1, 1), np.float16), np.zeros((1, 1), np.float16))
    assert qkv.ops._cpu.buffer_stats() == before
    with pytest.raises(ValueError, match="scale and no offset"):
        make("int8", 32, 4, np.zeros((1, 4), np.int8), np.ones((1, 1), np.float16), np.ones((1, 1), np.float16))


def test_weights_come_and_go_in_any_order(rng: np.random.Generator) -> None:
    """Small ones share memory, which is given back with the last of them; large ones have their own."""
    matrices = [normal(rng, shape) for shape in ((0, 5), (1, 1), (40, 33), (300, 700), (700, 1500), (1500, 1500))]
    kept: dict[int, tuple[int, Any]] = {}
    before = _cpu.buffer_stats()["lasting_bytes"]
    for step in range(600):
        which = int(rng.integers(len(matrices)))
        kept[int(rng.integers(60))] = which, qkv.pack_weight(matrices[which])  # in another's place
        if step % 97 == 0:
            for index in kept:
                np.testing.assert_array_equal(kept[index][1].dequantize(), matrices[kept[index][0]])
    kept.clear()
    assert _cpu.buffer_stats()["lasting_bytes"] <= before
