"""One new token of each sequence over a paged cache, as in a decode step. Reading the keys bounds it: GB/s."""

from __future__ import annotations

from typing import Any

import numpy as np
from qkv.bench import Case, Suite, suites
from qkv.bench.machine import last_cache

from .peers import Array, Call, tensors

BLOCK = 16
BYTES = {"float32": 4.0, "bfloat16": 2.0, "int8": 1.0}


def case(b: int, h: int, kv: int, t: int, d: int, dtype: str) -> Case:
    nbytes = 2.0 * b * kv * t * (d * BYTES[dtype] + (4 if dtype == "int8" else 0))
    limit = "read" if nbytes > 2 * last_cache() else None
    params = {"b": b, "h": h, "kv": kv, "t": t, "d": d, "dtype": dtype}
    return Case(f"B{b} {h}/{kv} T{t} D{d} {dtype}", params, nbytes=nbytes, limit=limit)


def cases() -> list[Case]:
    sizes = [(1, 12, 12, 1024, 64), (8, 12, 12, 1024, 64), (8, 32, 8, 4096, 128), (32, 9, 3, 512, 64)]
    return [case(*size, dtype) for size in sizes for dtype in BYTES]


def inputs(b: int, h: int, kv: int, t: int, d: int, dtype: str) -> dict[str, Any]:
    """The blocks of all sequences in random order; keys as (b, t, kv, d), which each side stores as it likes."""
    blocks = -(-t // BLOCK)
    tables = np.random.default_rng(3).permutation(b * blocks).reshape(b, blocks).astype(np.int32)
    q, k, v = suites.normal(b, h, d), suites.normal(b, t, kv, d, seed=1), suites.normal(b, t, kv, d, seed=2)
    return {"q": q, "k": k, "v": v, "tables": tables, "dtype": dtype}


def slots_of(tables: Array, t: int) -> Array:
    token = np.arange(t)
    return (tables[:, token // BLOCK].astype(np.int64) * BLOCK + token % BLOCK).reshape(-1)


def float_caches(k: Array, v: Array, tables: Array) -> list[Array]:
    """Without qkv's help: peers run where it is not."""
    _, t, kv, d = k.shape
    caches = [np.zeros((tables.size, BLOCK, kv, d), np.float32) for _ in range(2)]
    for cache, x in zip(caches, (k, v), strict=True):
        cache.reshape(-1, kv, d)[slots_of(tables, t)] = x.reshape(-1, kv, d)
    return caches


def qkv_side(q: Array, k: Array, v: Array, tables: Array, dtype: str) -> Call:
    import ml_dtypes
    import qkv

    (_, t, kv, d), blocks = k.shape, tables.size
    kind: Any = ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
    caches = [np.zeros((blocks, BLOCK, kv, d), kind) for _ in range(2)]
    scales = {name: np.zeros((blocks, BLOCK, kv), np.float32) for name in ("k_scale", "v_scale")}
    options: dict[str, Any] = scales if dtype == "int8" else {}
    qkv.paged_write(k.reshape(-1, kv, d), v.reshape(-1, kv, d), *caches, slots_of(tables, t), **options)
    lengths = np.full(len(q), t)
    return lambda: qkv.attention_paged(q, *caches, tables, lengths, **options)


def numpy_side(q: Array, k: Array, v: Array, tables: Array, dtype: str) -> Call:
    """Gathers the blocks, then attends."""
    from qkv.bench import numpy_ops

    if dtype != "float32":
        raise NotImplementedError("NumPy computes in float32")
    caches = float_caches(k, v, tables)
    (b, t, kv, d), h = k.shape, q.shape[1]

    def attend() -> Array:
        keys, values = (cache[tables].reshape(b, -1, kv, 1, d)[:, :t].transpose(0, 2, 3, 1, 4) for cache in caches)
        return numpy_ops.attention(q.reshape(b, kv, h // kv, d)[:, :, :, None], keys, values).reshape(b, h, d)

    return attend


def torch_side(q: Array, k: Array, v: Array, tables: Array, dtype: str) -> Call:
    """Gathers the blocks, then attends; in the cache's dtype."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    if dtype == "int8":
        raise NotImplementedError("torch has no attention over int8")
    caches = float_caches(k, v, tables)
    kind = getattr(torch, dtype)
    query, *stored = (x.to(kind) for x in tensors(q, *caches))
    index = torch.from_numpy(tables).long()
    b, t, kv, d = k.shape

    def attend() -> Any:
        keys, values = (x[index].reshape(b, -1, kv, d)[:, :t].transpose(1, 2) for x in stored)
        return scaled_dot_product_attention(query[:, :, None], keys, values, enable_gqa=True)[:, :, 0].float()

    return attend


SIDES = {"qkv": qkv_side, "numpy": numpy_side, "torch": torch_side}
SUITES = {"attention_paged": Suite("attention_paged", __name__, cases, inputs, SIDES)}
