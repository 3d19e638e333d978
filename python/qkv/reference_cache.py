"""The ops of qkv.reference on a cache of keys and values: paged, or one row of tokens for each sequence."""

from __future__ import annotations

from typing import Any

import numpy as np

from .reference_attention import attention_varlen, cumulative, flash_window, lse_dtype
from .reference_rules import Array, ArrayLike, deliver, integers, one_of, quiet, rank, require, rounded, widen


@quiet
def attention_paged(
    q: ArrayLike,
    k_cache: ArrayLike,
    v_cache: ArrayLike,
    block_tables: ArrayLike,
    kv_lengths: ArrayLike,
    *,
    cu_seqlens_q: ArrayLike | None = None,
    k_scale: ArrayLike | None = None,
    v_scale: ArrayLike | None = None,
    causal: bool | str = False,
    relative_bias: ArrayLike | None = None,
    alibi_slopes: ArrayLike | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    window: tuple[int | None, int | None] | None = None,
    sinks: ArrayLike | None = None,
    precision: str = "highest",
    return_lse: bool = False,
    return_weights: bool = False,
    out: Array | None = None,
) -> Any:
    """`attention_varlen` over keys that lie in blocks: key j of sequence b is at offset j % block_size of block
    block_tables[b, j // block_size] of the caches.

    q (total_q, H, D) with cu_seqlens_q (B+1,), or without it one query for each sequence. k_cache (blocks,
    block_size, Hkv, D), v_cache (blocks, block_size, Hkv, Dv), block_size a multiple of 16, of one dtype that need not
    be q's; int8 caches have float32 k_scale and v_scale (blocks, block_size, Hkv), x = scale * q rounded to float32.
    kv_lengths (B,): integers, the new tokens included. Entries of block_tables (B, N) whose keys no query sees may
    hold anything.
    """
    op = "attention_paged"
    dtype, (q, relative_bias, alibi_slopes, sinks) = widen(
        op, 1, q=q, relative_bias=relative_bias, alibi_slopes=alibi_slopes, sinks=sinks
    )
    k, v = np.asarray(k_cache), np.asarray(v_cache)
    if "float64" in (k.dtype.name, v.dtype.name):
        dtype = np.dtype(np.float64)
    rank(op, 3, q=q)
    keys, values = _cached(op, k, v, k_scale, v_scale)
    require(k.shape[1] and k.shape[1] % 16 == 0, f"{op}: block_size must be a multiple of 16, got {k.shape[1]}")
    one_of(op, "precision", precision, ("highest", "bf16"))
    one_of(op, "causal", causal, (False, True, "top_left"))
    starts = list(range(len(q) + 1)) if cu_seqlens_q is None else cumulative(op, "cu_seqlens_q", cu_seqlens_q, len(q))
    batch, size = len(starts) - 1, k.shape[1]
    table, lengths = integers(op, "block_tables", block_tables), integers(op, "kv_lengths", kv_lengths)
    require(table.ndim == 2 and len(table) == batch, f"{op}: block_tables must have {batch} rows, got {table.shape}")
    require(lengths.shape == (batch,), f"{op}: kv_lengths must have shape {(batch,)}, got {lengths.shape}")
    listed = [int(n) for n in lengths]
    most = table.shape[1] * size
    require(all(0 <= n <= most for n in listed), f"{op}: kv_lengths must lie in 0..{most}, got {listed[:8]}")
    left, right = (None, None) if window is None else window
    require((left or 0) >= 0 and (right or 0) >= 0, f"{op}: window must not be negative, got {window}")

    token: list[int] = []  # where each key lies in the cache; one that no query sees may lie nowhere
    for b, length in enumerate(listed):
        queries = starts[b + 1] - starts[b]
        shift = 0 if causal == "top_left" else length - queries
        first = 0 if left is None else max(shift - left, 0)
        last = length if right is None and not causal else min(shift + queries + (0 if causal else right or 0), length)
        for j in range(length):
            block = int(table[b, j // size])
            seen = bool(queries) and first < last and first // size <= j // size <= (last - 1) // size
            require(not seen or 0 <= block < len(k), f"{op}: block_tables names block {block}, there are {len(k)}")
            token.append(block * size + j % size if seen else -1)
    where = np.array(token, np.int64)

    def gathered(x: Array) -> Array:
        rows = np.zeros((len(where), *x.shape[2:]))
        rows[where >= 0] = x.reshape(-1, *x.shape[2:])[where[where >= 0]]
        return rows

    result = attention_varlen(
        q,
        gathered(keys),
        gathered(values),
        np.array(starts),
        np.concatenate([[0], np.cumsum(listed)]).astype(np.int64),
        causal=causal,
        relative_bias=relative_bias,
        alibi_slopes=alibi_slopes,
        scale=scale,
        softcap=softcap,
        window=window,
        sinks=sinks,
        return_lse=True,
        return_weights=True,
    )
    results: list[Any] = [deliver(op, result[0], dtype, out)]
    if return_lse:
        results.append(rounded(result[1], lse_dtype(dtype)))
    if return_weights:
        results.append([rounded(w, dtype) for w in result[2]])
    return results[0] if len(results) == 1 else tuple(results)


def _cached(op: str, k: Array, v: Array, k_scale: ArrayLike | None, v_scale: ArrayLike | None) -> tuple[Array, Array]:
    """The caches in float64, checked. int8 is dequantised as the kernels do it: the product is rounded to float32."""
    found = []
    for name, x, scale in (("k", k, k_scale), ("v", v, v_scale)):
        if x.dtype.name not in ("float16", "bfloat16", "float32", "float64", "int8"):
            raise TypeError(f"{op}: {name}_cache must be float16, bfloat16, float32, float64 or int8, got {x.dtype}")
        require(x.ndim == 4, f"{op}: {name}_cache must be (blocks, block_size, Hkv, D), got shape {x.shape}")
        if x.dtype != np.int8:
            require(scale is None, f"{op}: {name}_scale is for int8 caches, {name}_cache is {x.dtype}")
            found.append(x.astype(np.float64))
            continue
        require(scale is not None, f"{op}: an int8 cache needs {name}_scale")
        s = np.asarray(scale)
        if s.dtype != np.float32:
            raise TypeError(f"{op}: {name}_scale must be float32, got {s.dtype}")
        require(s.shape == x.shape[:3], f"{op}: {name}_scale must have shape {x.shape[:3]}, got {s.shape}")
        found.append((x.astype(np.float32) * s[..., None]).astype(np.float64))
    same = k.dtype == v.dtype or (np.int8 not in (k.dtype, v.dtype) and np.float64 in (k.dtype, v.dtype))
    if not same:
        raise TypeError(f"{op}: v_cache is {v.dtype}, but k_cache is {k.dtype}")
    require(v.shape[:3] == k.shape[:3], f"{op}: v_cache has shape {v.shape}, k_cache {k.shape}")
    return found[0], found[1]


@quiet
def paged_write(
    k: ArrayLike,
    v: ArrayLike,
    k_cache: Array,
    v_cache: Array,
    slots: ArrayLike,
    *,
    k_scale: Array | None = None,
    v_scale: Array | None = None,
) -> None:
    """Token t of k (total, Hkv, D) and v (total, Hkv, Dv) goes to slot slots[t] = block * block_size + offset of the
    caches, in place; negative: nowhere; of several with one slot the last one stays.

    Caches and scales as in `attention_paged`. Values are rounded to the caches' dtype; for int8, in float32,
    scale = max|x| / 127 over a token and head and x / scale to the nearest even integer, at most 127 in size; a row
    that is not finite gets zeros and the scale NaN.
    """
    op = "paged_write"
    _, (k, v) = widen(op, 2, k=k, v=v)
    rank(op, 3, k=k, v=v)
    for name, x in (("k_cache", k_cache), ("v_cache", v_cache), ("k_scale", k_scale), ("v_scale", v_scale)):
        if x is None and name.endswith("scale"):
            continue
        if not isinstance(x, np.ndarray):
            raise TypeError(f"{op}: {name} must be an array, got {type(x).__name__}")
        require(x.flags.writeable, f"{op}: {name} is read-only")
    _cached(op, k_cache, v_cache, k_scale, v_scale)
    (blocks, size), heads = k_cache.shape[:2], k.shape[1]
    require(v.shape[:2] == k.shape[:2], f"{op}: v has shape {v.shape}, k {k.shape}")
    for name, x, cache in (("k", k, k_cache), ("v", v, v_cache)):
        fits = cache.shape[2:] == (heads, x.shape[2])
        require(fits, f"{op}: {name}_cache of shape {cache.shape} does not hold {name} of shape {x.shape}")
    listed = [int(slot) for slot in integers(op, "slots", slots).ravel()]
    require(np.shape(slots) == (len(k),), f"{op}: slots must have shape {(len(k),)}, got {np.shape(slots)}")
    require(all(slot < blocks * size for slot in listed), f"{op}: slots must be below {blocks * size}")
    for x, cache, scale in ((k, k_cache, k_scale), (v, v_cache, v_scale)):
        rows = x.astype(np.float32)
        for token, slot in enumerate(listed):
            if slot < 0:
                continue
            place = (slot // size, slot % size)
            if scale is None:
                cache[place] = rounded(x[token], cache.dtype)
                continue
            most = np.abs(rows[token]).max(-1, initial=0.0).astype(np.float32)
            by = np.where(np.isfinite(most), most / np.float32(127), np.float32(np.nan))
            codes = np.where(by[:, None] > 0, np.rint(rows[token] / by[:, None]), 0)
            cache[place], scale[place] = np.clip(codes, -127, 127).astype(np.int8), by


@quiet
def flash_attn_with_kvcache(
    q: ArrayLike,
    k_cache: Array,
    v_cache: Array,
    k: ArrayLike | None = None,
    v: ArrayLike | None = None,
    rotary_cos: ArrayLike | None = None,
    rotary_sin: ArrayLike | None = None,
    cache_seqlens: int | ArrayLike | None = None,
    cache_batch_idx: ArrayLike | None = None,
    cache_leftpad: ArrayLike | None = None,
    block_table: ArrayLike | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    rotary_interleaved: bool = True,
    alibi_slopes: ArrayLike | None = None,
    num_splits: int = 0,
    return_softmax_lse: bool = False,
) -> Any:
    """flash-attn 2.8's function of this name, with the conventions of `flash_attn_func`.

    q (B, S, H, D). The caches are (B_cache, S_cache, Hkv, D), of which sequence b has row cache_batch_idx[b] or b, or
    with block_table (B, n) blocks (blocks, block_size, Hkv, D). cache_seqlens: the tokens there, an integer or (B,),
    None for a full cache; the first cache_leftpad[b] of them do not count. k, v (B, S_new, Hkv, D) are stored behind
    them, in place, and attended to. rotary_cos, rotary_sin (positions, dim / 2) turn k at positions cache_seqlens + i,
    and q likewise if causal or windowed, else all of q at cache_seqlens; pairs are 2i, 2i + 1, or i, i + dim/2 unless
    rotary_interleaved. num_splits concerns speed only. Returns out[, lse (B, H, S)].
    """
    op = "flash_attn_with_kvcache"
    given = {"q": q, "k": k, "v": v, "rotary_cos": rotary_cos, "rotary_sin": rotary_sin, "alibi_slopes": alibi_slopes}
    dtype, (wide_q, wide_k, wide_v, *_) = widen(op, 3, **given)
    _cached(op, k_cache, v_cache, None, None)
    if "float64" in (dtype.name, k_cache.dtype.name, v_cache.dtype.name):
        dtype, q, k, v = np.dtype(np.float64), wide_q, wide_k, wide_v
    q = np.asarray(q)
    rank(op, 4, q=q, k_cache=k_cache, v_cache=v_cache)
    batch, queries, heads, width = q.shape
    if block_table is None:
        rows = np.arange(batch) if cache_batch_idx is None else integers(op, "cache_batch_idx", cache_batch_idx)
        require(rows.shape == (batch,), f"{op}: cache_batch_idx must have shape {(batch,)}, got {rows.shape}")
        table = rows[:, None]
    else:
        require(cache_batch_idx is None, f"{op}: cache_batch_idx does not go with block_table")
        table = integers(op, "block_table", block_table)
    require(table.ndim == 2 and len(table) == batch, f"{op}: block_table must have {batch} rows, got {table.shape}")
    size, capacity = k_cache.shape[1], table.shape[1] * k_cache.shape[1]
    require((k is None) == (v is None), f"{op}: k and v go together")
    require((rotary_cos is None) == (rotary_sin is None), f"{op}: rotary_cos and rotary_sin go together")
    require(rotary_cos is None or k is not None, f"{op}: rotary_cos and rotary_sin need k and v")
    require(cache_seqlens is not None or k is None, f"{op}: k and v need cache_seqlens")
    lengths = np.full(batch, capacity)
    if cache_seqlens is not None:
        lengths = integers(op, "cache_seqlens", cache_seqlens)
        lengths = np.full(batch, lengths) if lengths.ndim == 0 else lengths
    skipped = np.zeros(batch, np.int64) if cache_leftpad is None else integers(op, "cache_leftpad", cache_leftpad)
    for name, x in (("cache_seqlens", lengths), ("cache_leftpad", skipped)):
        require(x.shape == (batch,), f"{op}: {name} must have shape {(batch,)}, got {x.shape}")
    lengths, skipped = lengths.astype(np.int64), skipped.astype(np.int64)
    new = 0 if k is None else np.shape(k)[1]
    fits = np.all((lengths >= 0) & (lengths + new <= capacity) & (skipped >= 0) & (skipped <= lengths + new))
    require(fits, f"{op}: cache_seqlens {lengths[:8]} and {new} new tokens must lie in 0..{capacity}")

    local = causal or any(side >= 0 for side in window_size)
    if rotary_cos is not None:
        at = lengths[:, None] + np.arange(new)
        k = turned(op, np.asarray(k), rotary_cos, rotary_sin, at, rotary_interleaved)
        at = lengths[:, None] + (np.arange(queries) if local else np.zeros(queries, np.int64))
        q = turned(op, q, rotary_cos, rotary_sin, at, rotary_interleaved)
    place = [
        [int(row[j // size]) * size + j % size for j in range(n)] for row, n in zip(table, lengths + new, strict=True)
    ]
    for row in place:
        require(all(0 <= j < len(k_cache) * size for j in row), f"{op}: block_table names a block that is not there")
    if k is not None and v is not None:
        slots = [j for row, n in zip(place, lengths, strict=True) for j in row[n:]]
        k, v = np.asarray(k), np.asarray(v)
        paged_write(
            k.reshape(batch * new, *k.shape[2:]),
            v.reshape(batch * new, *v.shape[2:]),
            k_cache,
            v_cache,
            np.array(slots, np.int64),
        )
    chosen = np.array([j for row, n in zip(place, skipped, strict=True) for j in row[n:]], np.int64)
    out, lse = attention_varlen(
        q.reshape(batch * queries, heads, width).astype(np.float64),
        k_cache.reshape(-1, *k_cache.shape[2:])[chosen].astype(np.float64),
        v_cache.reshape(-1, *v_cache.shape[2:])[chosen].astype(np.float64),
        np.arange(batch + 1) * queries,
        np.concatenate([[0], np.cumsum(lengths + new - skipped)]).astype(np.int64),
        causal=bool(causal),
        alibi_slopes=alibi_slopes,
        scale=softmax_scale,
        softcap=softcap if softcap > 0 else None,
        window=flash_window(window_size),
        return_lse=True,
    )
    out = rounded(out.reshape(batch, queries, heads, v_cache.shape[3]), dtype)
    lse = rounded(lse.reshape(heads, batch, queries).swapaxes(0, 1), lse_dtype(dtype))
    return (out, lse) if return_softmax_lse else out


def turned(op: str, x: Array, cos: ArrayLike, sin: ArrayLike, positions: Array, interleaved: bool) -> Array:
    """x (B, S, H, D) with its first features rotated by the tables' rows at positions (B, S), in x's dtype."""
    _, (wide, cos, sin) = widen(op, 1, x=x, rotary_cos=cos, rotary_sin=sin)
    rank(op, 2, rotary_cos=cos, rotary_sin=sin)
    require(cos.shape == sin.shape, f"{op}: rotary_cos has shape {cos.shape}, rotary_sin {sin.shape}")
    half = cos.shape[1]
    require(2 * half <= x.shape[3], f"{op}: rotary_cos turns {2 * half} features, q has {x.shape[3]}")
    require(
        np.all(positions < len(cos)),
        f"{op}: rotary_cos has {len(cos)} positions, {positions.max(initial=-1) + 1} are needed",
    )
    c, s = (table[positions][:, :, None, :] for table in (cos, sin))
    first = slice(0, 2 * half, 2) if interleaved else slice(0, half)
    second = slice(1, 2 * half, 2) if interleaved else slice(half, 2 * half)
    a, b = wide[..., first].copy(), wide[..., second].copy()
    wide[..., first], wide[..., second] = a * c - b * s, b * c + a * s
    return rounded(wide, x.dtype)
