"""New keys and values into a paged cache, in place; float32 tokens, caches of float32, bfloat16 and int8."""

from __future__ import annotations

from typing import Any

import numpy as np
from qkv.bench import Case, Suite, suites
from qkv.bench.machine import last_cache

from .peers import Array, Call, tensors

BLOCK = 16
BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}


def case(tokens: int, heads: int, d: int, dtype: str) -> Case:
    nbytes = 2.0 * tokens * heads * d * (4 + BYTES[dtype])
    limit = "copy" if nbytes > 2 * last_cache() else None
    params = {"tokens": tokens, "heads": heads, "d": d, "dtype": dtype}
    return Case(f"{tokens} tokens {heads}x{d} {dtype}", params, nbytes=nbytes, limit=limit)


def cases() -> list[Case]:
    return [case(tokens, 8, 64, dtype) for tokens in (1, 16, 512, 32768) for dtype in BYTES]


def inputs(tokens: int, heads: int, d: int, dtype: str) -> dict[str, Any]:
    """Slots: the blocks in random order, as after some time of use."""
    blocks = -(-tokens // BLOCK)
    order = np.random.default_rng(3).permutation(blocks)
    slots = (order[:, None] * BLOCK + np.arange(BLOCK)).reshape(-1)[:tokens]
    k, v = (suites.normal(tokens, heads, d, seed=seed) for seed in (0, 1))
    return {"k": k, "v": v, "slots": slots, "blocks": blocks, "dtype": dtype}


class Stored:
    """What a call that writes in place hands to the comparison of sides: the first cache's row of the first token."""

    def __init__(self, row: Any) -> None:
        self.row = row

    def __array__(self, dtype: Any = None, copy: Any = None) -> Array:
        return np.asarray(self.row(), dtype)


def qkv_side(k: Array, v: Array, slots: Array, blocks: int, dtype: str) -> Call:
    import ml_dtypes
    import qkv

    kind: Any = ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
    caches = [np.zeros((blocks, BLOCK, *k.shape[1:]), kind) for _ in range(2)]
    scales = {name: np.zeros((blocks, BLOCK, k.shape[1]), np.float32) for name in ("k_scale", "v_scale")}
    options = scales if dtype == "int8" else {}
    stored = Stored(lambda: caches[0].reshape(-1, *k.shape[1:])[slots[0]])

    def write() -> Stored:
        qkv.paged_write(k, v, *caches, slots, **options)
        return stored

    return write


def numpy_side(k: Array, v: Array, slots: Array, blocks: int, dtype: str) -> Call:
    import ml_dtypes

    if dtype == "int8":
        raise NotImplementedError("no op of NumPy quantises")
    kind: Any = ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
    caches = [np.zeros((blocks * BLOCK, *k.shape[1:]), kind) for _ in range(2)]

    stored = Stored(lambda: caches[0][slots[0]])

    def write() -> Stored:
        for cache, x in zip(caches, (k, v), strict=True):
            cache[slots] = x
        return stored

    return write


def torch_side(k: Array, v: Array, slots: Array, blocks: int, dtype: str) -> Call:
    import torch

    if dtype == "int8":
        raise NotImplementedError("no op of torch quantises by token and head")
    tokens = tensors(k, v)
    where = torch.from_numpy(slots)
    caches = [torch.zeros((blocks * BLOCK, *k.shape[1:]), dtype=getattr(torch, dtype)) for _ in range(2)]

    stored = Stored(lambda: caches[0][int(slots[0])].float().numpy())

    def write() -> Stored:
        for cache, x in zip(caches, tokens, strict=True):
            cache.index_copy_(0, where, x.to(cache.dtype))
        return stored

    return write


SIDES = {"qkv": qkv_side, "numpy": numpy_side, "torch": torch_side}
SUITES = {"paged_write": Suite("paged_write", __name__, cases, inputs, SIDES)}
