"""The names, signatures and layouts of flash-attn and torch, over `qkv.attention`: change the import, keep the call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from . import _cpu
from .arrays import accepts_arrays
from .ops import Array, Window, attention, attention_varlen


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
    """flash-attn 2's function: q (B, S, H, D), k, v (B, T, Hkv, D), causal aligned to the bottom right.

    -1 in window_size is unbounded, softcap <= 0 is off, dropout_p must be 0 (ValueError). Results are always
    deterministic. Returns out (B, S, H, D); with return_attn_probs (out, softmax_lse (B, H, S), S_dmask), S_dmask an
    empty array, as there without dropout.
    """
    _no_dropout("flash_attn_func", dropout_p)
    options = _flash_options(
        "flash_attn_func", softmax_scale, causal, window_size, softcap, alibi_slopes, return_attn_probs
    )
    result = attention(q, k, v, layout="bshd", **options)
    return (*result, np.empty(0, result[0].dtype)) if return_attn_probs else result


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
    """flash-attn 2's function: q (total_q, H, D), k, v (total_k, Hkv, D), with the conventions of `flash_attn_func`.

    A sequence longer than max_seqlen_q or max_seqlen_k is a ValueError. With block_table (B, n), integers, k and v are
    caches (blocks, block_size, Hkv, D) and sequence b's keys lie in the blocks that row b names, in order; they are
    gathered first. Returns out (total_q, H, D); with return_attn_probs (out, softmax_lse (H, total_q), S_dmask).
    """
    op = "flash_attn_varlen_func"
    _no_dropout(op, dropout_p)
    for name, starts, most in (("q", cu_seqlens_q, max_seqlen_q), ("k", cu_seqlens_k, max_seqlen_k)):
        if not isinstance(starts, np.ndarray) or starts.dtype.kind not in "iu":
            raise TypeError(f"{op}: cu_seqlens_{name} must hold integers, got {getattr(starts, 'dtype', starts)}")
        longest = int(np.diff(starts.astype(np.int64)).max(initial=0))
        if longest > most:
            raise ValueError(f"{op}: a sequence of {longest} tokens exceeds max_seqlen_{name} = {most}")
    if block_table is not None:
        k, v = (_gather_blocks(op, x, cu_seqlens_k, block_table) for x in (k, v))
    options = _flash_options(op, softmax_scale, causal, window_size, softcap, alibi_slopes, return_attn_probs)
    result = attention_varlen(q, k, v, cu_seqlens_q, cu_seqlens_k, **options)
    return (*result, np.empty(0, result[0].dtype)) if return_attn_probs else result


def _gather_blocks(op: str, cache: Any, cu_seqlens: Any, table: Any) -> Any:
    """Packed rows (total, Hkv, D) of a cache (blocks, block_size, Hkv, D)."""
    lengths = np.diff(cu_seqlens.astype(np.int64))
    if cache.ndim != 4:
        raise ValueError(f"{op}: with block_table, k and v must be 4-D, got shape {cache.shape}")
    if table.dtype.kind not in "iu":
        raise TypeError(f"{op}: block_table must hold integers, got {table.dtype}")
    size = cache.shape[1]
    if table.ndim != 2 or len(table) != len(lengths) or np.any(lengths > table.shape[1] * size):
        raise ValueError(f"{op}: block_table {table.shape} does not hold sequences of {lengths.tolist()} tokens")
    token = np.concatenate([np.arange(n) for n in lengths]) if len(lengths) else np.zeros(0, np.int64)
    row = np.repeat(np.arange(len(lengths)), lengths)
    block = table[row, token // max(size, 1)]
    if np.any((block < 0) | (block >= len(cache))):
        raise ValueError(f"{op}: block_table names a block outside 0 to {len(cache) - 1}")
    return cache[block, token % max(size, 1)]


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
    """torch.nn.functional's function: query (..., S, D), key (..., T, D), value (..., T, Dv), at least 2-D.

    Leading dimensions broadcast. attn_mask: bool (True: attend) or float (added), broadcasts to (..., S, T); not
    together with is_causal (ValueError), which excludes keys j > i. enable_gqa: heads (dimension -3) of key and value
    divide query's. dropout_p must be 0. A row that may attend to nothing gives 0.
    """
    op = "scaled_dot_product_attention"
    _no_dropout(op, dropout_p)
    if attn_mask is not None and is_causal:
        raise ValueError(f"{op}: attn_mask must be None when is_causal is set")
    arrays = {"query": query, "key": key, "value": value}
    _cpu.check_arrays(op, arrays)
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
            key, value = (x.repeat(heads // max(x.shape[-3], 1), axis=-3) for x in (key, value))
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
            attn_mask = np.broadcast_to(attn_mask, scores)
        except ValueError:
            raise ValueError(f"{op}: attn_mask of shape {attn_mask.shape} does not broadcast to {scores}") from None
    operands = [np.broadcast_to(x, (*lead, *x.shape[-own:])) for x in (query, key, value)]

    def four_axes(x: Any) -> Any:  # (B, H, ..., ...), a view
        return x.reshape((1,) * (4 - x.ndim) + x.shape)

    def one(index: tuple[int, ...]) -> Any:
        q, k, v = (four_axes(x[index]) for x in operands)
        options: dict[str, Any] = {}
        if attn_mask is not None:
            options["mask" if attn_mask.dtype == np.bool_ else "bias"] = four_axes(attn_mask[index])
        return attention(q, k, v, causal="top_left" if is_causal else False, scale=scale, **options)

    # More than four axes are a loop over the first ones: merging broadcast axes would copy them.
    parts = [one(index) for index in np.ndindex(shape[: max(len(shape) - 3, 0)])]
    full = (*shape, value.shape[-1])
    if not parts:
        return np.zeros(full, query.dtype)
    return parts[0].reshape(full) if len(parts) == 1 else np.stack(parts).reshape(full)
