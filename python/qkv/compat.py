"""The names, signatures and layouts of flash-attn and torch, over `qkv.attention`: change the import, keep the call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from . import _cpu, cuda_compat, reference
from .arrays import accepts_arrays, of_cuda
from .ops import Array, Window, _optional_number, _window, attention, attention_varlen, paged_write
from .reference_cache import turned


def _on_host(x: Any) -> bool:
    """Whether an array of an op is NumPy's; else it is on a GPU: `accepts_arrays` leaves nothing else."""
    return isinstance(x, np.ndarray)


def _check_arrays(op: str, arrays: dict[str, Any]) -> bool:
    """TypeError unless all are float arrays of one dtype. Whether one is float64."""
    if any(of_cuda(x) for x in arrays.values()):
        cuda_compat.check_arrays(op, arrays)
        return False
    return bool(_cpu.check_arrays(op, arrays))


def _empty(like: Any) -> Any:
    return np.empty(0, like.dtype) if _on_host(like) else cuda_compat.empty((0,), like.dtype)


def _broadcast(x: Any, shape: tuple[int, ...]) -> Any:
    """np.broadcast_to, of a GPU's arrays too; ValueError if x does not."""
    return np.broadcast_to(x, shape) if _on_host(x) else cuda_compat.broadcast(x, shape)


def _no_dropout(op: str, dropout_p: float) -> None:
    if dropout_p != 0:
        raise ValueError(f"{op}: dropout_p must be 0, this is inference; got {dropout_p}")


def _flash_options(
    op: str,
    softmax_scale: float | None,
    causal: bool,
    window_size: Sequence[int],
    softcap: float | None,
    alibi_slopes: Array | None,
    return_attn_probs: bool,
) -> dict[str, Any]:
    if not isinstance(window_size, Sequence) or len(window_size) != 2:
        raise ValueError(f"{op}: window_size must be (left, right), got {window_size!r}")
    left, right = window_size
    window: Window = (None if left < 0 else left, None if right < 0 else right)
    return {
        "scale": softmax_scale,
        "causal": bool(causal),
        "window": window,
        "softcap": None if softcap is None or softcap <= 0 else softcap,
        "alibi_slopes": alibi_slopes,
        "return_lse": return_attn_probs,
    }


@accepts_arrays("q", "k", "v", "alibi_slopes")
def flash_attn_func(
    q: Array,
    k: Array,
    v: Array,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Array | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Any:
    """flash-attn 2's function.

    q: (B, S, H, D) floats. k, v: (B, T, Hkv, D), H a multiple of Hkv.
    dropout_p: 0; there is no dropout.
    softmax_scale: a number; None: D^-0.5.
    causal: whether keys behind a query are excluded, the last query being at the last key.
    window_size: (left, right), keys around a query; -1 is unbounded.
    softcap: a number c, scores become c tanh(s / c); 0 and below: none.
    alibi_slopes: (H,) or (B, H), as of `attention`; None: none.
    deterministic: True or False; results always are.
    return_attn_probs: whether softmax_lse and S_dmask are returned too.

    Returns out (B, S, H, D) in q's dtype; with return_attn_probs (out, softmax_lse float32 (B, H, S), S_dmask), S_dmask
    an empty array, as there without dropout.

    TypeError: dtypes. ValueError: shapes that do not fit, a dropout_p that is not 0.
    """
    _no_dropout("flash_attn_func", dropout_p)
    options = _flash_options(
        "flash_attn_func", softmax_scale, causal, window_size, softcap, alibi_slopes, return_attn_probs
    )
    result = attention(q, k, v, layout="bshd", **options)
    return (*result, _empty(result[0])) if return_attn_probs else result


@accepts_arrays("q", "k", "v", "cu_seqlens_q", "cu_seqlens_k", "alibi_slopes", "block_table")
def flash_attn_varlen_func(
    q: Array,
    k: Array,
    v: Array,
    cu_seqlens_q: Array,
    cu_seqlens_k: Array,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Array | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    block_table: Array | None = None,
) -> Any:
    """flash-attn 2's function over sequences packed one after the other.

    q: (total_q, H, D) floats. k, v: (total_k, Hkv, D), H a multiple of Hkv.
    cu_seqlens_q, cu_seqlens_k: (B + 1,) integers, where sequences begin, as of `attention_varlen`.
    max_seqlen_q, max_seqlen_k: how long a sequence is at most.
    dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, deterministic, return_attn_probs: as of
        `flash_attn_func`.
    block_table: (B, n) integers: k and v are caches (blocks, block_size, Hkv, D), and sequence b's keys lie in the
        blocks that row b names, in order; None: they are not.

    Returns out (total_q, H, D) in q's dtype; with return_attn_probs (out, softmax_lse float32 (H, total_q), S_dmask).

    TypeError, ValueError: as of `flash_attn_func`; ValueError: a sequence that is longer than max_seqlen_q or
    max_seqlen_k, unless only a GPU knows its length.
    """
    op = "flash_attn_varlen_func"
    _no_dropout(op, dropout_p)
    for name, starts, most in (("q", cu_seqlens_q, max_seqlen_q), ("k", cu_seqlens_k, max_seqlen_k)):
        if getattr(starts, "dtype", np.dtype(object)).kind not in "iu":
            raise TypeError(f"{op}: cu_seqlens_{name} must hold integers, got {getattr(starts, 'dtype', starts)}")
        if not _on_host(starts):
            continue
        longest = int(np.diff(starts.astype(np.int64)).max(initial=0))
        if longest > most:
            raise ValueError(f"{op}: a sequence of {longest} tokens exceeds max_seqlen_{name} = {most}")
    options = _flash_options(op, softmax_scale, causal, window_size, softcap, alibi_slopes, return_attn_probs)
    if block_table is None:
        result = attention_varlen(q, k, v, cu_seqlens_q, cu_seqlens_k, **options)
    elif not _on_host(q):
        result = cuda_compat.varlen_over_blocks(op, q, k, v, block_table, cu_seqlens_q, cu_seqlens_k, options)
    else:
        if cu_seqlens_k.ndim != 1 or not len(cu_seqlens_k) or cu_seqlens_k[0] != 0:
            raise ValueError(f"{op}: cu_seqlens_k must be (B + 1,) and start with 0, got {cu_seqlens_k.shape}")
        lengths = np.diff(cu_seqlens_k.astype(np.int64))
        result = _paged(q, k, v, block_table, lengths, np.zeros_like(lengths), cu_seqlens_q, options, False)
        if result is None:  # float64
            result = reference.flash_attn_varlen_func(
                q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p, softmax_scale, causal,
                window_size, softcap, alibi_slopes, deterministic, return_attn_probs, block_table,
            )  # fmt: skip
            return result
    return (*result, _empty(result[0])) if return_attn_probs else result


def _per_sequence(op: str, name: str, x: Any, batch: int) -> Any:
    """Integers (B,) as int64, from an integer or an array; an array on a GPU as it is."""
    if of_cuda(x):
        if x.dtype.kind not in "iu":
            raise TypeError(f"{op}: {name} must hold integers, got {x.dtype}")
        if x.shape != (batch,):
            raise ValueError(f"{op}: {name} must be ({batch},), got {x.shape}")
        return x
    x = np.asarray(x)
    if x.dtype.kind not in "iu":
        raise TypeError(f"{op}: {name} must hold integers, got {x.dtype}")
    if x.ndim and x.shape != (batch,):
        raise ValueError(f"{op}: {name} must be ({batch},), got {x.shape}")
    return np.broadcast_to(x.astype(np.int64), (batch,))


def _paged(
    q: Any,
    k: Any,
    v: Any,
    table: Any,
    lengths: Any,
    starts: Any,
    cu_seqlens_q: Any,
    options: dict[str, Any],
    check: bool,
) -> Any:
    """`attention_paged` over blocks of any size, with key 0 at place starts[b]; `check`: only its checks."""
    op = "attention_paged"
    left, right = _window(op, options["window"])
    scale, softcap = (_optional_number(op, name, options[name]) for name in ("scale", "softcap"))
    return _cpu.attention_paged(
        q, k, v, table, lengths, cu_seqlens_q, None, None, starts, options["causal"], None, options["alibi_slopes"],
        scale, softcap, left, right, None, options["return_lse"], False, None, check,
    )  # fmt: skip


@accepts_arrays(
    "q", "k", "v", "rotary_cos", "rotary_sin", "cache_seqlens", "cache_batch_idx", "cache_leftpad", "block_table",
    "alibi_slopes", in_place=("k_cache", "v_cache"),
)  # fmt: skip
def flash_attn_with_kvcache(
    q: Array,
    k_cache: Array,
    v_cache: Array,
    k: Array | None = None,
    v: Array | None = None,
    rotary_cos: Array | None = None,
    rotary_sin: Array | None = None,
    cache_seqlens: int | Array | None = None,
    cache_batch_idx: Array | None = None,
    cache_leftpad: Array | None = None,
    block_table: Array | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    rotary_interleaved: bool = True,
    alibi_slopes: Array | None = None,
    num_splits: int = 0,
    return_softmax_lse: bool = False,
) -> Any:
    """flash-attn 2's function: stores new keys and values in a cache, in place, and attends to all of it.

    q: (B, S, H, D) floats.
    k_cache, v_cache: (B_cache, S_cache, Hkv, D), or with a block_table (blocks, block_size, Hkv, D), of any block size.
    k, v: (B, S_new, Hkv, D), stored behind what the cache has; None: nothing is.
    rotary_cos, rotary_sin: (positions, dim / 2), by which k is turned at positions cache_seqlens + i, and q too if
        causal or windowed, else all of q at cache_seqlens; None: nothing is turned.
    cache_seqlens: an integer or (B,), the tokens that are there; None: the cache is full.
    cache_batch_idx: (B,) integers, the row of each sequence; None: its number.
    cache_leftpad: (B,) integers, the tokens at a row's start that are padding; None: 0.
    block_table: (B, n) integers, the blocks of each sequence in order; None: the cache has rows.
    softmax_scale, causal, window_size, softcap, alibi_slopes: as of `flash_attn_func`.
    rotary_interleaved: whether pairs of features are 2i and 2i + 1; otherwise they are i and i + dim/2.
    num_splits: an integer, accepted and not needed.
    return_softmax_lse: whether the log-sum-exp is returned too.

    Caches are float32, float16, bfloat16 or float64: there is no place for the scales of int8 ones, which `paged_write`
    and `attention_paged` take. Nothing is written when an argument is refused. Of sequences with the same cache row the
    last one's k and v stay. What is in a GPU's memory is not checked: tokens for which there is no room are not stored.

    Returns out (B, S, H, D) in q's dtype; with return_softmax_lse (out, softmax_lse float32 (B, H, S)).

    TypeError: dtypes. ValueError: shapes, lengths beyond the cache, a block that it does not have, arguments that do
    not go together.
    """
    op = "flash_attn_with_kvcache"
    for pair, names in (((k, v), "k and v"), ((rotary_cos, rotary_sin), "rotary_cos and rotary_sin")):
        if (pair[0] is None) != (pair[1] is None):
            raise ValueError(f"{op}: {names} go together")
    if k is None and rotary_cos is not None:
        raise ValueError(f"{op}: rotary_cos and rotary_sin need k and v")
    if k is not None and cache_seqlens is None:
        raise ValueError(f"{op}: k and v need cache_seqlens")
    wide = False  # float64 somewhere
    for group in (
        {"q": q, "k": k, "v": v},
        {"k_cache": k_cache, "v_cache": v_cache},
        {"rotary_cos": rotary_cos, "rotary_sin": rotary_sin},
        {"alibi_slopes": alibi_slopes},
    ):
        given: dict[str, Any] = {n: x for n, x in group.items() if x is not None or n in ("q", "k_cache", "v_cache")}
        wide = _check_arrays(op, given) or wide
        for name, x in given.items():
            if x.ndim != 4 and name in ("q", "k", "v", "k_cache", "v_cache"):
                raise ValueError(f"{op}: {name} must have 4 dimensions, got shape {x.shape}")
    (batch, s, heads, width), size = q.shape, k_cache.shape[1]
    where = "cache_batch_idx" if block_table is None else "block_table"
    if block_table is None:
        rows = cache_batch_idx
        if rows is None:
            rows = np.arange(batch) if _on_host(q) else cuda_compat.numbers(batch)
        block_table = _per_sequence(op, where, rows, batch)[:, None]
    elif cache_batch_idx is not None:
        raise ValueError(f"{op}: cache_batch_idx does not go with block_table")
    elif block_table.dtype.kind not in "iu":
        raise TypeError(f"{op}: block_table must hold integers, got {block_table.dtype}")
    elif block_table.ndim != 2 or len(block_table) != batch:
        raise ValueError(f"{op}: block_table must be ({batch}, blocks of a sequence), got {block_table.shape}")
    capacity, new = block_table.shape[1] * size, 0 if k is None else k.shape[1]
    lengths = _per_sequence(op, "cache_seqlens", capacity if cache_seqlens is None else cache_seqlens, batch)
    skipped = _per_sequence(op, "cache_leftpad", 0 if cache_leftpad is None else cache_leftpad, batch)
    if _on_host(lengths) and np.any((lengths < 0) | (lengths > capacity - new)):
        raise ValueError(f"{op}: cache_seqlens must lie in 0 to {capacity - new}, with {new} new tokens in {capacity}")
    if _on_host(lengths) and _on_host(skipped) and np.any((skipped < 0) | (skipped > lengths + new)):
        raise ValueError(f"{op}: cache_leftpad must lie in 0 to the length of the sequence")
    options = _flash_options(op, softmax_scale, causal, window_size, softcap, alibi_slopes, return_softmax_lse)
    if k is not None and v is not None:
        if k.shape[0] != batch or v.shape[:2] != k.shape[:2]:
            raise ValueError(f"{op}: k and v must be ({batch}, tokens, Hkv, D), got {k.shape} and {v.shape}")
        for name, x, cache in (("k", k, k_cache), ("v", v, v_cache)):
            if x.shape[2:] != cache.shape[2:]:
                raise ValueError(f"{op}: {name} has heads and width {x.shape[2:]}, {name}_cache {cache.shape[2:]}")
    local = causal or any(side >= 0 for side in window_size)
    if _on_host(block_table) and _on_host(lengths) and new:
        block = np.take_along_axis(block_table, (lengths[:, None] + np.arange(new)) // max(size, 1), 1).astype(np.int64)
        if np.any((block < 0) | (block >= len(k_cache))):
            raise ValueError(f"{op}: {where} must lie in 0 to {len(k_cache) - 1}")
    if not _on_host(q):
        starts = None if cache_leftpad is None else skipped
        return cuda_compat.with_kvcache(
            op, q, k_cache, v_cache, k, v, rotary_cos, rotary_sin, block_table, lengths, starts, options, local,
            rotary_interleaved,
        )  # fmt: skip
    if wide:
        return reference.flash_attn_with_kvcache(
            q, k_cache, v_cache, k, v, rotary_cos, rotary_sin, lengths, cache_batch_idx, cache_leftpad,
            None if where == "cache_batch_idx" else block_table, softmax_scale, causal, window_size, softcap,
            rotary_interleaved, alibi_slopes, num_splits, return_softmax_lse,
        )  # fmt: skip
    after = lengths[:, None] + np.arange(new)  # where new tokens go
    if rotary_cos is not None:
        at = lengths[:, None] + (np.arange(s) if local else np.zeros(s, np.int64))
        q = turned(op, q, rotary_cos, rotary_sin, at, rotary_interleaved)
        k = turned(op, np.asarray(k), rotary_cos, rotary_sin, after, rotary_interleaved)
    rest = (block_table, lengths + new - skipped, skipped, np.arange(batch + 1) * s, options)
    packed = q.reshape(batch * s, heads, width)
    if k is not None and v is not None:
        block = np.take_along_axis(block_table, after // max(size, 1), 1).astype(np.int64)
        _paged(packed, k_cache, v_cache, *rest, True)
        k, v = (x.reshape(batch * new, *x.shape[2:]) for x in (k, v))
        paged_write(k, v, k_cache, v_cache, (block * size + after % max(size, 1)).reshape(-1))
    result = _paged(packed, k_cache, v_cache, *rest, False)
    out, lse = result if return_softmax_lse else (result, None)
    out = out.reshape(batch, s, heads, v_cache.shape[3])
    return out if lse is None else (out, np.ascontiguousarray(lse.reshape(heads, batch, s).swapaxes(0, 1)))


def _repeated(x: Any, times: int) -> Any:
    """Each head of x (..., heads, tokens, width) so many times in a row."""
    return x.repeat(times, axis=-3) if _on_host(x) else cuda_compat.repeated(x, times)


@accepts_arrays("query", "key", "value", "attn_mask")
def scaled_dot_product_attention(
    query: Array,
    key: Array,
    value: Array,
    attn_mask: Array | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Array:
    """torch.nn.functional's function.

    query, key, value: (..., S, D), (..., T, D) and (..., T, Dv) floats, whose leading dimensions broadcast.
    attn_mask: bool (True: attend) or floats (added), broadcasts to (..., S, T); None: all attend to all.
    dropout_p: 0; there is no dropout.
    is_causal: whether keys j > i are excluded, the first query being at the first key; not together with attn_mask.
    scale: a number; None: D^-0.5.
    enable_gqa: whether heads (dimension -3) of key and value may be fewer, a divisor of query's.

    Returns (..., S, Dv) in query's dtype. A row that may attend to nothing gives 0.

    TypeError: dtypes. ValueError: shapes that do not fit, both a mask and is_causal, a dropout_p that is not 0.
    """
    op = "scaled_dot_product_attention"
    _no_dropout(op, dropout_p)
    if attn_mask is not None and is_causal:
        raise ValueError(f"{op}: attn_mask must be None when is_causal is set")
    arrays = {"query": query, "key": key, "value": value}
    _check_arrays(op, arrays)
    for name, x in arrays.items():
        if x.ndim < (3 if enable_gqa else 2):
            raise ValueError(
                f"{op}: {name} must be (..., {'heads, ' if enable_gqa else ''}tokens, width), got {x.shape}"
            )
    if key.shape[-1] != query.shape[-1]:
        raise ValueError(f"{op}: key has width {key.shape[-1]}, query has {query.shape[-1]}")
    if value.shape[-2] != key.shape[-2]:
        raise ValueError(f"{op}: value has {value.shape[-2]} tokens, key has {key.shape[-2]}")
    if enable_gqa:
        heads = query.shape[-3]
        for name, x in (("key", key), ("value", value)):
            if heads % x.shape[-3] if x.shape[-3] else heads:
                raise ValueError(f"{op}: {name} has {x.shape[-3]} heads, which does not divide query's {heads}")
        if key.shape[-3] != value.shape[-3]:  # torch takes that; the kernel wants pairs
            key, value = (_repeated(x, heads // max(x.shape[-3], 1)) for x in (key, value))
    try:
        lead = np.broadcast_shapes(*(x.shape[: -3 if enable_gqa else -2] for x in (query, key, value)))
    except ValueError:
        shapes = f"{query.shape}, {key.shape} and {value.shape}"
        raise ValueError(f"{op}: leading dimensions of {shapes} do not broadcast") from None

    own = 3 if enable_gqa else 2  # axes that do not broadcast
    shape = (*lead, *query.shape[-own:-1])
    if attn_mask is not None:
        if attn_mask.dtype != np.bool_ and attn_mask.dtype.name not in ("float16", "bfloat16", "float32", "float64"):
            raise TypeError(f"{op}: attn_mask must be bool (True: attend) or float (added), got {attn_mask.dtype}")
        if attn_mask.ndim < 2:
            raise ValueError(f"{op}: attn_mask must have at least 2 dimensions, got shape {attn_mask.shape}")
        scores = (*shape, key.shape[-2])
        try:
            attn_mask = _broadcast(attn_mask, scores)
        except ValueError:
            raise ValueError(f"{op}: attn_mask of shape {attn_mask.shape} does not broadcast to {scores}") from None
    operands = [_broadcast(x, (*lead, *x.shape[-own:])) for x in (query, key, value)]

    def four_axes(x: Any) -> Any:  # (B, H, ..., ...), a view
        return x[(None,) * (4 - x.ndim)]

    def one(index: tuple[int, ...], out: Any = None) -> Any:
        q, k, v = (four_axes(x[index]) for x in operands)
        options: dict[str, Any] = {}
        if attn_mask is not None:
            options["mask" if attn_mask.dtype == np.bool_ else "bias"] = four_axes(attn_mask[index])
        if out is not None:
            options["out"] = four_axes(out)
        return attention(q, k, v, causal="top_left" if is_causal else False, scale=scale, **options)

    # More than four axes are a loop over the first ones: merging broadcast axes would copy them.
    full = (*shape, value.shape[-1])
    outer = shape[: max(len(shape) - 3, 0)]
    if not _on_host(query):
        out = cuda_compat.empty(full, query.dtype, op)
        for index in np.ndindex(outer):
            one(index, out[index])
        return out
    parts = [one(index) for index in np.ndindex(outer)]
    if not parts:
        return np.zeros(full, query.dtype)
    return parts[0].reshape(full) if len(parts) == 1 else np.stack(parts).reshape(full)
