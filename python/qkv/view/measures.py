"""What is computed of attention weights: entropy of the heads, and attention rollout."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def entropy(weights: Array) -> Array:
    """(L, H) float64: -sum w log2 w of weights (L, H, S, T), in bits, the mean over queries that look at something."""
    result = np.zeros(weights.shape[:2])
    for at in np.ndindex(result.shape):
        w = weights[at].astype(np.float64)
        bits = -(w * np.log2(np.where(w > 0, w, 1))).sum(axis=-1)
        seen = w.any(axis=-1)
        result[at] = bits[seen].mean() if seen.any() else 0
    return result


def rollout(weights: Array) -> Array:
    """(L, S, S) float32: attention rollout (Abnar and Zuidema 2020) of weights (L, H, S, S).

    How much of each token is in each position after layer l, if heads count alike and the residual as much as they do:
    R_l = A_l R_(l-1), where A_l is (mean over heads + identity) / 2 with rows that sum to 1, and R_(-1) the identity.
    """
    layers, _, size, _ = weights.shape
    result = np.empty((layers, size, size), np.float32)
    so_far = np.eye(size)
    for layer in range(layers):
        a = weights[layer].mean(axis=0, dtype=np.float64) + np.eye(size)
        a /= a.sum(axis=-1, keepdims=True)
        so_far = a @ so_far
        result[layer] = so_far
    return result
