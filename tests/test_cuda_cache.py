"""paged_write and copy_blocks on a GPU's arrays: what only they have; on_device.py brings the
rest, test_paged_write.py."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import qkv
from checks import BFLOAT16, DTYPES, FLOAT16, FLOAT32, normal, same_bits
from qkv import reference
from qkv.ops import copy_blocks

pytestmark = pytest.mark.skipif(not qkv.cuda.is_available(), reason=qkv.cuda.why_not())

INT8 = np.dtype(np.int8)
CACHES = {**DTYPES, "int8": INT8}
there = qkv.cuda.array


def caches_of(dtype: Any, heads: int, D: int, Dv: int, blocks: int, size: int = 16) -> dict[str, Any]:
    """Full of a value that no test writes."""
    made = {f"{n}_cache": np.full((blocks, size, heads, width), 99, dtype) for n, width in (("k", D), ("v", Dv))}
    if dtype == INT8:
        made |= {f"{n}_scale": np.full((blocks, size, heads), 99, np.float32) for n in ("k", "v")}
    return made


def check(k: Any, v: Any, slots: Any, caches: dict[str, Any], places: int) -> None:
    """On the device with slots of both widths there, against the reference, for which those outside are negative."""
    expected = {n: c.copy() for n, c in caches.items()}
    reference.paged_write(k, v, slots=np.where((slots >= 0) & (slots < places), slots, -1), **expected)
    for integer in (np.int32, np.int64):
        if np.abs(slots).max(initial=0) >= 2**31 and integer is np.int32:
            continue
        device = {n: there(c) for n, c in caches.items()}
        assert qkv.paged_write(there(k), there(v), slots=there(slots.astype(integer)), **device) is None
        for n, c in device.items():
            assert same_bits(c.numpy(), expected[n]), n


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("heads, D, Dv", [(1, 1, 1), (2, 64, 64), (3, 40, 24), (4, 128, 96), (1, 300, 7), (9, 16, 600)])
def test_slots_on_the_device(
    cache: str, heads: int, D: int, Dv: int, dtype: np.dtype[Any], rng: np.random.Generator
) -> None:
    """Outside of the cache nothing is stored, and nothing else happens."""
    k, v = normal(rng, (30, heads, D), dtype), normal(rng, (30, heads, Dv), dtype)
    slots = rng.integers(0, 80, 30)
    slots[rng.choice(30, 6, replace=False)] = [-1, 80, -(2**62), 2**62, 2**33, 81]
    check(k, v, slots, caches_of(CACHES[cache], heads, D, Dv, 5), 80)


@pytest.mark.parametrize("tokens", [1, 2, 255, 256, 257, 1024, 1025, 3000])
def test_the_last_token_of_a_slot_stays(tokens: int, rng: np.random.Generator) -> None:
    """Where tokens look through those after them, and where a table says which is the last."""
    k = np.arange(tokens * 4, dtype=np.float32).reshape(tokens, 1, 4)
    for places in (1, 7, 2000):
        blocks = -(-places // 16)
        check(k, -k, rng.integers(-2, places + 2, tokens), caches_of(FLOAT32, 1, 4, 4, blocks), blocks * 16)
    check(k, -k, np.full(tokens, 3), caches_of(FLOAT32, 1, 4, 4, 1), 16)


def test_many_tokens_in_host_memory(rng: np.random.Generator) -> None:
    k = normal(rng, (3000, 1, 8))
    slots = rng.integers(-5, 1600, 3000)
    caches, expected = caches_of(FLOAT16, 1, 8, 8, 100), caches_of(FLOAT16, 1, 8, 8, 100)
    reference.paged_write(k, k, slots=slots, **expected)
    device = {n: there(c) for n, c in caches.items()}
    qkv.paged_write(there(k), there(k), slots=slots, **device)
    assert all(same_bits(c.numpy(), expected[n]) for n, c in device.items())


def test_views_of_one_big_cache(dtype: np.dtype[Any], rng: np.random.Generator) -> None:
    """k and v out of the fused product, caches of a layer out of one array: written where they lie."""
    fused, slots = normal(rng, (9, 3 * 2 * 64), dtype), rng.permutation(80)[:9]
    both = np.full((3, 5, 2, 16, 2, 64), 99, dtype)
    expected = both.copy()
    k, v = fused[:, 128:256].reshape(9, 2, 64), fused[:, 256:].reshape(9, 2, 64)
    reference.paged_write(k, v, expected[1, :, 0], expected[1, :, 1], slots)
    device, product = there(both), there(fused)
    views = [product[:, at : at + 128]._as_strided((9, 2, 64), (384, 64, 1), 0) for at in (128, 256)]
    qkv.paged_write(*views, device[1, :, 0], device[1, :, 1], there(slots))
    assert same_bits(device.numpy(), expected)


def test_tokens_that_lie_in_the_cache(rng: np.random.Generator) -> None:
    """Moving tokens inside a cache: all are read before any is written."""
    before = normal(rng, (5, 16, 2, 16))
    cache = there(before)
    rows = cache.reshape(80, 2, 16)[:79]
    qkv.paged_write(rows, rows, cache, there(before), there(np.arange(1, 80)))
    assert same_bits(cache.numpy().reshape(80, 2, 16)[1:], before.reshape(80, 2, 16)[:79])


def test_refuses() -> None:
    x, slots = there(np.ones((3, 2, 8), np.float32)), there(np.arange(3))
    caches = {n: there(c) for n, c in caches_of(FLOAT32, 2, 8, 8, 5).items()}
    for wrong, error, words in (
        (there(np.arange(4)), ValueError, r"slots must be \(3,\), got \(4,\)"),
        (there(np.arange(6))[::2], ValueError, "slots must be contiguous"),
        (there(np.ones(3, np.float32)), TypeError, "slots must hold integers, got float32"),
        (np.array([0, 1, 80]), ValueError, "slots must be below 80, got 80"),
    ):
        with pytest.raises(error, match=f"paged_write: {words}"):
            qkv.paged_write(x, x, slots=wrong, **caches)
    with pytest.raises(TypeError, match="paged_write: k is on a CUDA device, k_cache in host memory"):
        qkv.paged_write(x, x, slots=slots, **caches_of(FLOAT32, 2, 8, 8, 5))
    assert all((c.numpy() == 99).all() for c in caches.values())


def test_blocks_are_copied_where_they_lie(rng: np.random.Generator) -> None:
    """Pieces of 16 bytes and what is less, more bytes than one turn moves, parts of one big array."""
    shapes = [(9, 16, 2, 5), (9, 16, 3), (9, 16, 8, 128), (9, 48, 1), (9, 16, 0)]
    for dtype in (FLOAT32, BFLOAT16, INT8):
        arrays = [normal(rng, (2, *shape), FLOAT32, 40).astype(dtype) for shape in shapes]
        expected, device = [x.copy() for x in arrays], [there(x) for x in arrays]
        for filled in (0, 1, 15, 16):
            old, new = [0, 3, 3, 8], [1, 2, 7, 4]
            for x in expected:
                x[1, new, :filled] = x[1, old, :filled]
            copy_blocks([x[1] for x in device], old, new, filled)
            for y, z in zip(device, expected, strict=True):
                np.testing.assert_array_equal(y.numpy(), z)
