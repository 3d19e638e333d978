"""The ops written the plainest way, with every intermediate rounded to the dtype of the inputs.

They are the yardstick of the tolerance in `checks.assert_close`: sums run strictly one term after the other along
the reduced axis, each product, sum, exponential and quotient is rounded where it arises. Run in float64 they are a
second reading of the specification, independent of `qkv.reference`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import special

Array = np.ndarray[Any, np.dtype[Any]]


def sum_last(x: Array) -> Array:
    """The sum over the last axis, first term first."""
    total = np.zeros(x.shape[:-1], x.dtype)
    for i in range(x.shape[-1]):
        total = total + x[..., i]
    return total


@np.errstate(all="ignore")
def matmul(a: Array, b: Array) -> Array:
    """(..., M, K) @ (..., K, N), one k after the other."""
    total = np.zeros((*np.broadcast_shapes(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1]), a.dtype)
    for k in range(a.shape[-1]):
        total = total + a[..., :, k, None] * b[..., None, k, :]
    return total


def erf(x: Array) -> Array:
    return special.erf(x.astype(np.float64)).astype(x.dtype)


@np.errstate(all="ignore")
def sigmoid(x: Array) -> Array:
    one = x.dtype.type(1)
    return one / (one + np.exp(-x))


@np.errstate(all="ignore")
def gelu(x: Array) -> Array:
    c = x.dtype.type
    return c(0.5) * x * (c(1) + erf(x * c(0.5**0.5)))


@np.errstate(all="ignore")
def gelu_tanh(x: Array) -> Array:
    c = x.dtype.type
    inner = c((2 / np.pi) ** 0.5) * (x + c(0.044715) * x * x * x)
    return c(0.5) * x * (c(1) + np.tanh(inner))


def relu(x: Array) -> Array:
    return np.where(x > x.dtype.type(0), x, x.dtype.type(0))


@np.errstate(all="ignore")
def silu(x: Array) -> Array:
    return x * sigmoid(x)


@np.errstate(all="ignore")
def quick_gelu(x: Array) -> Array:
    return x * sigmoid(x.dtype.type(1.702) * x)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "relu": relu,
    "silu": silu,
    "quick_gelu": quick_gelu,
    "tanh": np.tanh,
}


@np.errstate(all="ignore")
def linear(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    activation: str | None = None,
    gate: Array | None = None,
    residual: Array | None = None,
) -> Array:
    dtype = x.dtype
    rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    y = matmul(rows, weight.astype(dtype).T).reshape(*x.shape[:-1], weight.shape[0])
    if bias is not None:
        y = y + bias.astype(dtype)
    if activation is not None:
        y = ACTIVATIONS[activation](y)
    if gate is not None:
        y = y * gate.astype(dtype)
    if residual is not None:
        y = y + residual.astype(dtype)
    return y


@np.errstate(all="ignore")
def softmax(x: Array, axis: int = -1, log: bool = False) -> Array:
    x = np.moveaxis(x, axis, -1)
    shifted = x - x.max(-1, keepdims=True)
    e = np.exp(shifted)
    total = sum_last(e)[..., None]
    return np.moveaxis(shifted - np.log(total) if log else e / total, -1, axis)


@np.errstate(all="ignore")
def layer_norm(x: Array, weight: Array | None, bias: Array | None, eps: float) -> Array:
    c = x.dtype.type
    n = c(x.shape[-1])
    centred = x - (sum_last(x) / n)[..., None]
    variance = sum_last(centred * centred) / n
    y = centred / np.sqrt(variance + c(eps))[..., None]
    if weight is not None:
        y = y * weight.astype(x.dtype)
    return y if bias is None else y + bias.astype(x.dtype)


@np.errstate(all="ignore")
def rms_norm(x: Array, weight: Array | None, eps: float) -> Array:
    c = x.dtype.type
    y = x / np.sqrt(sum_last(x * x) / c(x.shape[-1]) + c(eps))[..., None]
    return y if weight is None else y * weight.astype(x.dtype)


@np.errstate(all="ignore")
def rotary(x: Array, angles: Array, interleaved: bool, factor: float = 1.0) -> Array:
    """`angles`, float64, broadcasts to x.shape[:-1] + (dim / 2,)."""
    half = angles.shape[-1]
    cos, sin = (np.cos(angles) * factor).astype(x.dtype), (np.sin(angles) * factor).astype(x.dtype)
    y = x.copy()
    first, second = (
        (slice(0, 2 * half, 2), slice(1, 2 * half, 2)) if interleaved else (slice(0, half), slice(half, 2 * half))
    )
    y[..., first] = x[..., first] * cos - x[..., second] * sin
    y[..., second] = x[..., second] * cos + x[..., first] * sin
    return y


def positions_and_allowed(
    S: int,
    T: int,
    lengths: Array,
    causal: bool | str,
    window: tuple[int | None, int | None] | None,
) -> tuple[Array, Array]:
    """Where the queries stand, (B, S), and which keys structure lets them see, (B, S, T)."""
    i, j = np.arange(S), np.arange(T)
    offset = np.zeros_like(lengths) if causal == "top_left" else lengths - S
    p = i[None, :] + offset[:, None]  # (B, S)
    distance = j[None, None, :] - p[:, :, None]  # (B, S, T)
    allowed = np.broadcast_to(j[None, None, :] < lengths[:, None, None], distance.shape).copy()
    if causal:
        allowed &= distance <= 0
    if window is not None:
        left, right = window
        if left is not None:
            allowed &= distance >= -left
        if right is not None:
            allowed &= distance <= right
    return p, allowed


@np.errstate(all="ignore")
def attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    causal: bool | str = False,
    mask: Array | None = None,
    bias: Array | None = None,
    relative_bias: Array | None = None,
    alibi_slopes: Array | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    window: tuple[int | None, int | None] | None = None,
    sinks: Array | None = None,
    kv_lengths: Array | None = None,
    layout: str = "bhsd",
) -> tuple[Array, Array, Array]:
    """(out, lse, weights), all in the dtype of q; lse (B, H, S) and weights (B, H, S, T) in either layout."""
    if layout == "bshd":
        q, k, v = (np.swapaxes(a, 1, 2) for a in (q, k, v))
    dtype, c = q.dtype, q.dtype.type
    B, H, S, D = q.shape
    T, group = k.shape[2], H // max(k.shape[1], 1)
    k, v = np.repeat(k, group, 1), np.repeat(v, group, 1)  # (B, H, T, ...)
    lengths = np.full(B, T) if kv_lengths is None else np.asarray(kv_lengths, np.int64)
    p, seen = positions_and_allowed(S, T, lengths, causal, window)
    allowed = np.broadcast_to(seen[:, None], (B, H, S, T))
    if mask is not None:
        allowed = allowed & mask
    distance = np.arange(T)[None, None, :] - p[:, :, None]  # (B, S, T)

    score = c(max(D, 1) ** -0.5 if scale is None else scale) * matmul(q, np.swapaxes(k, 2, 3))
    if softcap is not None:
        score = c(softcap) * np.tanh(score / c(softcap))
    if bias is not None:
        score = score + bias.astype(dtype)
    if relative_bias is not None:
        reach = relative_bias.shape[1] // 2
        table = relative_bias.astype(dtype)[:, np.clip(distance, -reach, reach) + reach]  # (H, B, S, T)
        score = score + np.swapaxes(table, 0, 1)
    if alibi_slopes is not None:
        slopes = np.broadcast_to(alibi_slopes, (B, H)).astype(dtype)[:, :, None, None]
        score = score - slopes * np.abs(distance).astype(dtype)[:, None]

    nothing = c(-np.inf)
    score = np.where(allowed, score, nothing)
    top = score.max(-1, initial=nothing)  # (B, H, S)
    if sinks is not None:
        sink = np.broadcast_to(sinks.astype(dtype)[:, None], (B, H, S))
        top = np.maximum(top, sink)
    safe = np.where(top == nothing, c(0), top)
    e = np.where(allowed, np.exp(score - safe[..., None]), c(0))
    total = sum_last(e)
    if sinks is not None:
        total = total + np.exp(sink - safe)
    empty = total == c(0)
    weights = np.where(allowed, e / np.where(empty, c(1), total)[..., None], c(0))
    lse = np.where(empty, nothing, safe + np.log(np.where(empty, c(1), total)))

    out = np.zeros((B, H, S, v.shape[3]), dtype)
    for t in range(T):
        term = weights[..., t, None] * v[:, :, None, t, :]
        out = out + np.where(allowed[..., t, None], term, c(0))
    return (np.swapaxes(out, 1, 2) if layout == "bshd" else out), lse, weights


@np.errstate(all="ignore")
def additive_attention(
    q: Array,
    k: Array,
    v: Array,
    w_q: Array,
    w_k: Array,
    w_v: Array,
    mask: Array | None = None,
    kv_lengths: Array | None = None,
) -> tuple[Array, Array]:
    """(out, weights) for q (..., S, Dq), k (..., T, Dk), v (..., T, Dv)."""
    dtype, c = q.dtype, q.dtype.type
    S, T = q.shape[-2], k.shape[-2]
    hq, hk = matmul(q, w_q.astype(dtype).T), matmul(k, w_k.astype(dtype).T)  # (..., S, A), (..., T, A)
    hidden = np.tanh(hq[..., :, None, :] + hk[..., None, :, :])  # (..., S, T, A)
    score = sum_last(hidden * w_v.reshape(-1).astype(dtype))
    allowed = np.ones(score.shape, bool)
    if mask is not None:
        allowed = allowed & mask
    if kv_lengths is not None:
        allowed = allowed & (np.arange(T) < np.asarray(kv_lengths)[..., None, None])
    score = np.where(allowed, score, c(-np.inf))
    top = score.max(-1, keepdims=True, initial=c(-np.inf))
    e = np.where(allowed, np.exp(score - np.where(np.isfinite(top), top, c(0))), c(0))
    total = sum_last(e)[..., None]
    weights = np.where(allowed, e / np.where(total == c(0), c(1), total), c(0))
    out = np.zeros((*score.shape[:-2], S, v.shape[-1]), dtype)
    for t in range(T):
        out = out + np.where(allowed[..., t, None], weights[..., t, None] * v[..., None, t, :], c(0))
    return out, weights
