"""The ops as a careful NumPy user would write them in float32: the side that `qkv bench` compares with.

Not `qkv.reference`, which computes in float64 to be exact. Here: BLAS for products, work in place, no needless pass.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = Any


def linear(x: Array, weight: Array, bias: Array | None = None) -> Array:
    """x (..., in), weight (out, in), bias (out,)"""
    y = x @ weight.T
    if bias is not None:
        y += bias
    return y


def softmax(x: Array) -> Array:
    y = x - x.max(axis=-1, keepdims=True)
    np.exp(y, out=y)
    y /= y.sum(axis=-1, keepdims=True)
    return y


def layer_norm(x: Array, weight: Array, bias: Array, eps: float = 1e-5) -> Array:
    y = x - x.mean(axis=-1, keepdims=True)
    variance = np.einsum("...i,...i->...", y, y)[..., None] / np.float32(x.shape[-1])
    y *= 1 / np.sqrt(variance + np.float32(eps))
    y *= weight
    y += bias
    return y


def erf(x: Array) -> Array:
    """Abramowitz and Stegun 7.1.26, within 1.5e-7 plus rounding."""
    magnitude = np.abs(x)
    t = 1 / (1 + np.float32(0.3275911) * magnitude)
    y = t * np.float32(1.061405429)
    for c in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        y += np.float32(c)
        y *= t
    magnitude *= magnitude
    np.negative(magnitude, out=magnitude)
    np.exp(magnitude, out=magnitude)
    y *= magnitude
    np.subtract(1, y, out=y)
    return np.copysign(y, x, out=y)


def gelu(x: Array) -> Array:
    y = erf(x * np.float32(0.5**0.5))
    y += 1
    y *= x
    y *= np.float32(0.5)
    return y


def attention(q: Array, k: Array, v: Array, causal: bool = False, bias: Array | None = None) -> Array:
    """q (B, H, S, D), k and v (B, H, T, D); bias broadcasts to (B, H, S, T)."""
    s, t = q.shape[-2], k.shape[-2]
    scores = (q * np.float32(q.shape[-1] ** -0.5)) @ k.swapaxes(-1, -2)
    if bias is not None:
        scores += bias
    if causal:
        scores[..., ~np.tri(s, t, t - s, dtype=bool)] = -np.inf
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=-1, keepdims=True)
    return scores @ v


def embedding(ids: Array, table: Array) -> Array:
    return np.take(table, ids, axis=0)


def rotary(x: Array, positions: Array, base: float = 10000.0) -> Array:
    """x (B, H, S, D), positions (S,); pairs i and i + D/2."""
    half = x.shape[-1] // 2
    angles = positions[:, None] * base ** -(np.arange(half) / half)  # (S, D/2)
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    first, second = x[..., :half], x[..., half:]
    y = np.empty_like(x)
    np.multiply(first, cos, out=y[..., :half])
    y[..., :half] -= second * sin
    np.multiply(second, cos, out=y[..., half:])
    y[..., half:] += first * sin
    return y


def additive_attention(q: Array, k: Array, v: Array, w_q: Array, w_k: Array, w_v: Array) -> Array:
    """q (B, S, Dq), k (B, T, Dk), v (B, T, Dv), w_q (A, Dq), w_k (A, Dk), w_v (A,)"""
    hidden = (q @ w_q.T)[:, :, None] + (k @ w_k.T)[:, None]  # (B, S, T, A)
    np.tanh(hidden, out=hidden)
    return softmax(hidden @ w_v) @ v
