"""What an attention kernel has inside and never writes down: scores before the softmax. In float64, from the queries,
keys and options that the kernel was given, as `qkv.attention` defines them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@np.errstate(over="ignore", invalid="ignore")
def scores(q: Array, k: Array) -> Array:
    """(H, S, T) float64: q . k of queries (H, S, D) and keys (H, T, D)."""
    product: Array = q.astype(np.float64) @ k.astype(np.float64).swapaxes(1, 2)
    return product


def softcapped(scores: Array, cap: float) -> Array:
    result: Array = cap * np.tanh(scores / cap)
    return result


def distances(s: int, t: int) -> Array:
    """(S, T): how far key j stands behind query i, which is at i + T - S."""
    return np.arange(t)[None, :] - (np.arange(s)[:, None] + t - s)


def by_distance(relative_bias: Array, s: int, t: int) -> Array:
    """(H, S, T) of biases (H, 2 R + 1)."""
    reach = (relative_bias.shape[1] - 1) // 2
    found: Array = relative_bias[:, np.clip(distances(s, t), -reach, reach) + reach]
    return found


def allowed(s: int, t: int, given: Mapping[str, Any]) -> Array:
    """(S, T) bool: the keys that each query may look at."""
    d = distances(s, t)
    seen = np.ones((s, t), bool)
    if given["causal"]:
        seen &= d <= 0
    left, right = given["window"] or (None, None)
    if left is not None:
        seen &= d >= -left
    if right is not None:
        seen &= d <= right
    return seen


@np.errstate(invalid="ignore")
def softmax(scores: Array) -> Array:
    """Along the last axis; 0 where everything is masked."""
    top = scores.max(axis=-1, keepdims=True, initial=-np.inf)
    e = np.exp(scores - np.where(np.isfinite(top), top, 0))
    total = e.sum(axis=-1, keepdims=True)
    result: Array = e / np.where(total > 0, total, 1)
    return result


@np.errstate(invalid="ignore")
def largest_difference(a: Array, b: Array) -> float:
    return float(np.abs(a.astype(np.float64) - b.astype(np.float64)).max(initial=0))
