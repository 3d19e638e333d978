"""The attention ops of qkv.reference: one formula (`_attend`), and the signatures that people know it by."""

from __future__ import annotations

from typing import Any

import numpy as np

from .reference_rules import (
    Array,
    ArrayLike,
    broadcast,
    checked_mask,
    deliver,
    integers,
    one_of,
    quiet,
    rank,
    rank_at_least,
    require,
    rounded,
    row_vectors,
    widen,
)


@quiet
def attention(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    *,
    causal: bool | str = False,
    mask: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    relative_bias: ArrayLike | None = None,
    alibi_slopes: ArrayLike | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    window: tuple[int | None, int | None] | None = None,
    sinks: ArrayLike | None = None,
    kv_lengths: ArrayLike | None = None,
    layout: str = "bhsd",
    precision: str = "highest",
    return_lse: bool = False,
    return_weights: bool = False,
    out: Array | None = None,
) -> Any:
    """softmax(score) v, with

        score[b,h,i,j] = softcap(scale q[b,h,i] . k[b,h',j]) + bias[b,h,i,j]
                         + relative_bias[h, clip(j - p, -R, R) + R] - alibi_slopes[h] |p - j|

    where h' = h // (H/Hkv), softcap(s) = c tanh(s/c), and query i stands at p = i + T_b - S with
    T_b = kv_lengths[b] or T (with causal="top_left": at p = i). scale defaults to D^-1/2.

    q (B, H, S, D), k (B, Hkv, T, D), v (B, Hkv, T, Dv), H a multiple of Hkv. With layout="bshd" heads and
    tokens change places in q, k, v and the output.
    causal: True (bottom-right, as flash-attn) or "top_left" (as torch): keys j > p are excluded.
    mask: bool, True where attention is allowed; bias: float; both broadcast to (B, H, S, T).
    relative_bias (H, 2R+1). alibi_slopes (H,) or (B, H). sinks (H,): logits that join denominator and LSE.
    window (left, right): only keys p - left <= j <= p + right are allowed; None is unbounded.
    kv_lengths (B,): integers in 0..T, the keys of each row.
    precision only concerns the kernels: here it is always the highest.

    An excluded key, and one whose score is -inf, contributes nothing whatever its v holds. A row without any
    key gives 0 and LSE -inf (the sink, if there is one).

    Returns out[, lse][, weights]: lse (B, H, S) float32 (float64 in float64), weights (B, H, S, T), in either
    layout. Raises TypeError for dtypes, ValueError for shapes and values.
    """
    op = "attention"
    dtype, (q, k, v, bias, relative_bias, alibi_slopes, sinks) = widen(
        op, 3, q=q, k=k, v=v, bias=bias, relative_bias=relative_bias, alibi_slopes=alibi_slopes, sinks=sinks
    )
    rank(op, 4, q=q, k=k, v=v)
    one_of(op, "layout", layout, ("bhsd", "bshd"))
    one_of(op, "precision", precision, ("highest", "bf16"))
    if layout == "bshd":
        q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
    result, lse, weights = _attend(
        op,
        q,
        k,
        v,
        causal=causal,
        mask=mask,
        bias=bias,
        relative_bias=relative_bias,
        alibi_slopes=alibi_slopes,
        scale=scale,
        softcap=softcap,
        window=window,
        sinks=sinks,
        kv_lengths=kv_lengths,
    )
    if layout == "bshd":
        result = result.swapaxes(1, 2)
    results = [deliver(op, result, dtype, out)]
    if return_lse:
        results.append(rounded(lse, lse_dtype(dtype)))
    if return_weights:
        results.append(rounded(weights, dtype))
    return results[0] if len(results) == 1 else tuple(results)


def _attend(
    op: str,
    q: Array,  # (B, H, S, D) float64
    k: Array,  # (B, Hkv, T, D)
    v: Array,  # (B, Hkv, T, Dv)
    *,
    causal: bool | str,
    relative_bias: Array | None,
    alibi_slopes: Array | None,
    scale: float | None,
    softcap: float | None,
    window: tuple[int | None, int | None] | None,
    sinks: Array | None,
    mask: ArrayLike | None = None,
    bias: Array | None = None,
    kv_lengths: ArrayLike | None = None,
) -> tuple[Array, Array, Array]:
    """The formula of `attention` in float64: out (B, H, S, Dv), lse (B, H, S), weights (B, H, S, T)."""
    (B, H, S, D), (Bk, Hkv, T, Dk) = q.shape, k.shape
    require(Bk == B and v.shape[0] == B, f"{op}: batch differs: q {B}, k {Bk}, v {v.shape[0]}")
    require(Dk == D, f"{op}: k has head width {Dk}, q has {D}")
    require(v.shape[1:3] == (Hkv, T), f"{op}: v has {v.shape[1:3]} heads and keys, k has {(Hkv, T)}")
    require(H % Hkv == 0 if Hkv else H == 0, f"{op}: k has {Hkv} heads, which does not divide q's {H}")
    group = H // Hkv if Hkv else 1

    # Query head h reads key head h // group.
    raw = q.reshape(B, Hkv, group, S, D) @ k[:, :, None].swapaxes(-1, -2)
    score = (max(D, 1) ** -0.5 if scale is None else float(scale)) * raw.reshape(B, H, S, T)
    if softcap is not None:
        require(softcap > 0, f"{op}: softcap must be positive, got {softcap}")
        score = softcap * np.tanh(score / softcap)

    length = np.full(B, T)
    if kv_lengths is not None:
        length = integers(op, "kv_lengths", kv_lengths).astype(np.int64)
        require(length.shape == (B,), f"{op}: kv_lengths must have shape {(B,)}, got {length.shape}")
        require(np.all((length >= 0) & (length <= T)), f"{op}: kv_lengths must lie in 0..{T}")
    one_of(op, "causal", causal, (False, True, "top_left"))
    start = np.zeros(B, np.int64) if causal == "top_left" else length - S
    p = (start[:, None] + np.arange(S))[:, None, :, None]  # (B, 1, S, 1)
    j = np.arange(T)  # (T,)

    if bias is not None:
        score = score + broadcast(op, "bias", bias, (B, H, S, T))
    if relative_bias is not None:
        fits = relative_bias.ndim == 2 and relative_bias.shape[0] == H and relative_bias.shape[1] % 2 == 1
        require(fits, f"{op}: relative_bias must have shape ({H}, 2R+1), got {relative_bias.shape}")
        reach = relative_bias.shape[1] // 2
        index = np.clip(j - p, -reach, reach) + reach  # (B, 1, S, T)
        score = score + relative_bias[np.arange(H)[:, None, None], index]
    if alibi_slopes is not None:
        fits = alibi_slopes.shape in ((H,), (B, H))
        require(fits, f"{op}: alibi_slopes must have shape {(H,)} or {(B, H)}, got {alibi_slopes.shape}")
        score = score - alibi_slopes[..., None, None] * np.abs(p - j)

    allowed = np.broadcast_to(j < length[:, None, None, None], score.shape)
    if causal:
        allowed = allowed & (j <= p)
    if window is not None:
        left, right = window
        require((left or 0) >= 0 and (right or 0) >= 0, f"{op}: window must not be negative, got {window}")
        allowed = allowed if left is None else allowed & (j >= p - left)
        allowed = allowed if right is None else allowed & (j <= p + right)
    if mask is not None:
        allowed = allowed & checked_mask(op, mask, score.shape)
    if sinks is not None:
        row_vectors(op, H, sinks=sinks)

    weights, lse = _masked_softmax(score, allowed, None if sinks is None else sinks[:, None])
    excluded = ~allowed | np.isneginf(score)
    per_group = (B, Hkv, group, S, T)
    out = _weighted_sum(weights.reshape(per_group), excluded.reshape(per_group), v[:, :, None])
    return out.reshape(B, H, S, v.shape[-1]), lse, weights


def _masked_softmax(score: Array, allowed: Array, sink: Array | None = None) -> tuple[Array, Array]:
    """Weights exp(score - lse), lse = log(sum exp(score)), over the allowed keys (last axis) and the sink."""
    score = np.where(allowed, score, -np.inf)
    top = score.max(-1, initial=-np.inf)
    if sink is not None:
        top = np.maximum(top, sink)
    shift = np.where(np.isneginf(top), 0.0, top)  # an empty row: exp(-inf) = 0, not exp(-inf + inf)
    e = np.exp(score - shift[..., None])
    total = e.sum(-1)
    if sink is not None:
        total = total + np.exp(sink - shift)
    weights = e / np.where(total == 0, 1.0, total)[..., None]
    return np.where(allowed, weights, 0.0), shift + np.log(total)


def _weighted_sum(weights: Array, excluded: Array, v: Array) -> Array:
    """weights @ v, where an excluded key counts as absent: 0 * NaN is not added."""
    finite = np.isfinite(v)
    if finite.all():
        return weights @ v
    out = weights @ np.where(finite, v, 0.0)
    v = np.where(finite, 0.0, v)
    for j in np.flatnonzero(~finite.all(axis=(*range(v.ndim - 2), -1))):
        out = out + np.where(excluded[..., j, None], 0.0, weights[..., j, None] * v[..., None, j, :])
    return out


def lse_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return dtype if dtype == np.float64 else np.dtype(np.float32)


@quiet
def attention_varlen(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    cu_seqlens_q: ArrayLike,
    cu_seqlens_k: ArrayLike,
    *,
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
    """`attention` over sequences packed one behind the other; none sees another.

    q (total_q, H, D), k (total_k, Hkv, D), v (total_k, Hkv, Dv). Sequence b owns the rows cu_seqlens[b] up to
    cu_seqlens[b+1]; cu_seqlens are integers (B+1,), from 0, never falling, up to the total.
    Returns out (total_q, H, Dv)[, lse (H, total_q)][, weights: a list of B arrays (H, S_b, T_b)].
    """
    op = "attention_varlen"
    dtype, (q, k, v, relative_bias, alibi_slopes, sinks) = widen(
        op, 3, q=q, k=k, v=v, relative_bias=relative_bias, alibi_slopes=alibi_slopes, sinks=sinks
    )
    rank(op, 3, q=q, k=k, v=v)
    one_of(op, "precision", precision, ("highest", "bf16"))
    require(v.shape[0] == k.shape[0], f"{op}: v has {v.shape[0]} rows, k has {k.shape[0]}")
    starts_q = cumulative(op, "cu_seqlens_q", cu_seqlens_q, len(q))
    starts_k = cumulative(op, "cu_seqlens_k", cu_seqlens_k, len(k))
    batch, heads = len(starts_q) - 1, q.shape[1]
    require(len(starts_k) - 1 == batch, f"{op}: cu_seqlens_k must have {batch + 1} entries, got {len(starts_k)}")
    slopes: Any = [alibi_slopes] * batch
    if alibi_slopes is not None and alibi_slopes.ndim == 2:
        require(len(alibi_slopes) == batch, f"{op}: alibi_slopes must have {batch} rows, got {len(alibi_slopes)}")
        slopes = alibi_slopes

    result, lse = np.zeros((len(q), heads, v.shape[2])), np.zeros((heads, len(q)))
    weights = []
    for b in range(batch):
        rows, keys = slice(starts_q[b], starts_q[b + 1]), slice(starts_k[b], starts_k[b + 1])
        part, part_lse, part_weights = _attend(
            op,
            q[None, rows].swapaxes(1, 2),
            k[None, keys].swapaxes(1, 2),
            v[None, keys].swapaxes(1, 2),
            causal=causal,
            relative_bias=relative_bias,
            alibi_slopes=slopes[b],
            scale=scale,
            softcap=softcap,
            window=window,
            sinks=sinks,
        )
        result[rows], lse[:, rows] = part[0].swapaxes(0, 1), part_lse[0]
        weights.append(rounded(part_weights[0], dtype))
    results: list[Any] = [deliver(op, result, dtype, out)]
    if return_lse:
        results.append(rounded(lse, lse_dtype(dtype)))
    if return_weights:
        results.append(weights)
    return results[0] if len(results) == 1 else tuple(results)


def cumulative(op: str, name: str, x: ArrayLike, total: int) -> list[int]:
    starts = integers(op, name, x)
    require(starts.ndim == 1 and len(starts), f"{op}: {name} must have shape (B+1,), got {starts.shape}")
    listed = [int(i) for i in starts]
    rises = listed[0] == 0 and listed[-1] == total and listed == sorted(listed)
    require(rises, f"{op}: {name} must start at 0, never fall and end at {total}, got {listed[:8]}")
    return listed


def flash_attn_func(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: ArrayLike | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Any:
    """flash-attn 2.8's function of this name: `attention` in layout (B, S, H, D).

    -1 in window_size is unbounded, softcap <= 0 is off, dropout_p must be 0 (ValueError). Returns out, or
    with return_attn_probs (out, softmax_lse (B, H, S), S_dmask): S_dmask is an empty array (0,), as there
    without dropout. The LSE of a row without keys is -inf (their kernel says +inf).
    """
    require(dropout_p == 0, f"flash_attn_func: dropout_p must be 0, got {dropout_p}")
    result = attention(
        q,
        k,
        v,
        causal=bool(causal),
        alibi_slopes=alibi_slopes,
        scale=softmax_scale,
        softcap=softcap if softcap > 0 else None,
        window=flash_window(window_size),
        layout="bshd",
        return_lse=return_attn_probs,
    )
    return (*result, np.empty(0, result[0].dtype)) if return_attn_probs else result


def flash_attn_varlen_func(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    cu_seqlens_q: ArrayLike,
    cu_seqlens_k: ArrayLike,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: ArrayLike | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    block_table: ArrayLike | None = None,
) -> Any:
    """flash-attn 2.8's function of this name: `attention_varlen`, with the conventions of `flash_attn_func`.

    A sequence longer than max_seqlen_q or max_seqlen_k is a ValueError. With block_table (B, n), integers, k
    and v are caches (blocks, block_size, Hkv, D), and sequence b's keys lie in the blocks that row b names,
    in order.
    """
    op = "flash_attn_varlen_func"
    require(dropout_p == 0, f"{op}: dropout_p must be 0, got {dropout_p}")
    for name, starts, most in (("q", cu_seqlens_q, max_seqlen_q), ("k", cu_seqlens_k, max_seqlen_k)):
        longest = int(np.diff(integers(op, f"cu_seqlens_{name}", starts).astype(np.int64)).max(initial=0))
        require(longest <= most, f"{op}: a sequence of {longest} tokens exceeds max_seqlen_{name} {most}")
    if block_table is not None:
        k, v = (_gather_blocks(op, np.asarray(x), cu_seqlens_k, block_table) for x in (k, v))
    result = attention_varlen(
        q,
        k,
        v,
        cu_seqlens_q,
        cu_seqlens_k,
        causal=bool(causal),
        alibi_slopes=alibi_slopes,
        scale=softmax_scale,
        softcap=softcap if softcap > 0 else None,
        window=flash_window(window_size),
        return_lse=return_attn_probs,
    )
    return (*result, np.empty(0, result[0].dtype)) if return_attn_probs else result


def flash_window(window_size: tuple[int, int]) -> tuple[int | None, int | None]:
    left, right = window_size
    return (None if left < 0 else left, None if right < 0 else right)


def _gather_blocks(op: str, cache: Array, cu_seqlens: ArrayLike, block_table: ArrayLike) -> Array:
    """Packed rows (total, Hkv, D) of a cache in blocks (blocks, block_size, Hkv, D)."""
    table = integers(op, "block_table", block_table)
    lengths = np.diff(np.asarray(cu_seqlens, dtype=np.int64))
    require(cache.ndim == 4, f"{op}: with block_table, k and v must be 4-D, got shape {cache.shape}")
    size = cache.shape[1]
    fits = table.ndim == 2 and len(table) == len(lengths) and np.all(lengths <= table.shape[1] * size)
    require(fits, f"{op}: block_table of shape {table.shape} does not hold sequences of {lengths[:8]} tokens")
    parts = [cache[:0].reshape(0, *cache.shape[2:])]
    for row, length in zip(table, lengths, strict=True):
        used = row[: -(-int(length) // size)] if size else row[:0]
        known = np.all((used >= 0) & (used < len(cache)))
        require(known, f"{op}: block_table names a block outside 0..{len(cache) - 1}")
        parts.append(cache[used].reshape(-1, *cache.shape[2:])[: int(length)])
    return np.concatenate(parts)


@quiet
def scaled_dot_product_attention(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    attn_mask: ArrayLike | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Array:
    """torch.nn.functional's function of this name: softmax(scale query key^T + mask) value.

    query (..., S, D), key (..., T, D), value (..., T, Dv), two dimensions or more; leading dimensions
    broadcast. With enable_gqa heads are dimension -3, and those of key and value each divide query's.
    is_causal excludes keys j > i (top-left). attn_mask, which is_causal excludes (ValueError), is bool (True:
    attend) or float (added), at least 2-D, and broadcasts to (..., S, T). A row without keys gives 0.
    dropout_p must be 0 (ValueError).
    """
    op = "scaled_dot_product_attention"
    require(dropout_p == 0, f"{op}: dropout_p must be 0, got {dropout_p}")
    require(attn_mask is None or not is_causal, f"{op}: attn_mask must be None when is_causal is set")
    mask = None if attn_mask is None else np.asarray(attn_mask)
    allowed = mask if mask is not None and mask.dtype == np.bool_ else None
    bias = mask if allowed is None else None
    dtype, (q, k, v, bias) = widen(op, 3, query=query, key=key, value=value, attn_mask=bias)
    rank_at_least(op, 2, query=q, key=k, value=v)
    require(k.shape[-1] == q.shape[-1], f"{op}: key has head width {k.shape[-1]}, query has {q.shape[-1]}")
    require(v.shape[-2] == k.shape[-2], f"{op}: value has {v.shape[-2]} keys, key has {k.shape[-2]}")
    if enable_gqa:
        require(min(q.ndim, k.ndim, v.ndim) >= 3, f"{op}: enable_gqa needs at least 3 dimensions")
        heads = q.shape[-3]
        for name, x in (("key", k), ("value", v)):
            divides = heads % x.shape[-3] == 0 if x.shape[-3] else heads == 0
            require(divides, f"{op}: {name} has {x.shape[-3]} heads, which does not divide query's {heads}")
        k, v = (x if not heads else x.repeat(heads // x.shape[-3], axis=-3) for x in (k, v))
    try:
        lead = np.broadcast_shapes(q.shape[:-2], k.shape[:-2], v.shape[:-2])
    except ValueError:
        shapes = f"{q.shape}, {k.shape} and {v.shape}"
        raise ValueError(f"{op}: leading dimensions of {shapes} do not broadcast") from None

    S, T = q.shape[-2], k.shape[-2]
    q, k, v = (np.broadcast_to(x, (*lead, *x.shape[-2:])) for x in (q, k, v))
    score = (max(q.shape[-1], 1) ** -0.5 if scale is None else float(scale)) * (q @ k.swapaxes(-1, -2))
    if mask is not None:
        require(mask.ndim >= 2, f"{op}: attn_mask must have at least 2 dimensions, got shape {mask.shape}")
        broadcast(op, "attn_mask", mask, score.shape)
    allowed = np.ones((S, T), np.bool_) if allowed is None else allowed
    if is_causal:
        allowed = np.tri(S, T, dtype=np.bool_)
    if bias is not None:
        score = score + bias
    allowed = np.broadcast_to(allowed, score.shape)
    weights, _ = _masked_softmax(score, allowed)
    return rounded(_weighted_sum(weights, ~allowed | np.isneginf(score), v), dtype)


@quiet
def additive_attention(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    w_q: ArrayLike,
    w_k: ArrayLike,
    w_v: ArrayLike,
    *,
    mask: ArrayLike | None = None,
    kv_lengths: ArrayLike | None = None,
    return_weights: bool = False,
) -> Any:
    """softmax(score) v with score[i, j] = w_v . tanh(w_q q[i] + w_k k[j])  (Bahdanau, Cho and Bengio 2015).

    q (..., S, Dq), k (..., T, Dk), v (..., T, Dv), leading dimensions alike or broadcast; w_q (A, Dq), w_k
    (A, Dk), w_v (A,) or (1, A). mask: bool, True where attention is allowed, broadcasts to (..., S, T);
    kv_lengths: integers in 0..T, broadcast to the leading dimensions. A row without keys gives 0.
    Returns out (..., S, Dv)[, weights (..., S, T)].
    """
    op = "additive_attention"
    dtype, (q, k, v, w_q, w_k, w_v) = widen(op, 3, q=q, k=k, v=v, w_q=w_q, w_k=w_k, w_v=w_v)
    rank_at_least(op, 2, q=q, k=k, v=v)
    width = w_q.shape[0] if w_q.ndim else 0
    for name, w, shape in (("w_q", w_q, (width, q.shape[-1])), ("w_k", w_k, (width, k.shape[-1]))):
        require(w.shape == shape, f"{op}: {name} must have shape {shape}, got {w.shape}")
    require(w_v.shape in ((width,), (1, width)), f"{op}: w_v must have shape {(width,)}, got {w_v.shape}")
    require(v.shape[-2] == k.shape[-2], f"{op}: v has {v.shape[-2]} keys, k has {k.shape[-2]}")
    lead, T = np.broadcast_shapes(q.shape[:-2], k.shape[:-2], v.shape[:-2]), k.shape[-2]

    hidden = np.tanh((q @ w_q.T)[..., :, None, :] + (k @ w_k.T)[..., None, :, :])  # (..., S, T, A)
    score = np.broadcast_to(hidden @ w_v.reshape(width), (*lead, q.shape[-2], T))
    allowed = np.ones(score.shape, np.bool_)
    if mask is not None:
        allowed = allowed & checked_mask(op, mask, score.shape)
    if kv_lengths is not None:
        length = broadcast(op, "kv_lengths", integers(op, "kv_lengths", kv_lengths), lead)
        require(np.all((length >= 0) & (length <= T)), f"{op}: kv_lengths must lie in 0..{T}")
        allowed = allowed & (np.arange(T) < length[..., None, None])
    weights, _ = _masked_softmax(score, allowed)
    v = np.broadcast_to(v, (*lead, *v.shape[-2:]))
    out = rounded(_weighted_sum(weights, ~allowed | np.isneginf(score), v), dtype)
    return (out, rounded(weights, dtype)) if return_weights else out
