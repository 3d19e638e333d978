"""One valid call of every op, for the tests that say something about all ops at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import qkv
from qkv import reference

# How an argument may be spoiled depends on what it is.
FLOAT, CACHE, PARAMETER, MASK, INTEGERS = "float", "cache", "parameter", "mask", "integers"

KINDS = {
    **dict.fromkeys(("a", "b", "x", "w", "q", "k", "v", "query", "key", "value", "table"), FLOAT),
    **dict.fromkeys(("gate", "residual"), FLOAT),
    **dict.fromkeys(("k_cache", "v_cache"), CACHE),
    **dict.fromkeys(("weight", "bias", "relative_bias", "alibi_slopes", "sinks", "w_q", "w_k", "w_v"), PARAMETER),
    **dict.fromkeys(("mask", "attn_mask"), MASK),
    **dict.fromkeys(("ids", "positions", "kv_lengths", "cu_seqlens_q", "cu_seqlens_k", "block_tables"), INTEGERS),
}


def calls(dtype: Any = np.float32, seed: int = 0) -> dict[str, dict[str, Any]]:
    """name: arguments by keyword; everything that is an array is one here, and every optional array is given."""
    rng = np.random.default_rng(seed)

    def f(*shape: int) -> Any:
        return rng.standard_normal(shape).astype(dtype)

    def ints(*values: int) -> Any:
        return np.array(values, np.int32)

    heads: dict[str, Any] = {"q": f(2, 4, 5, 8), "k": f(2, 2, 9, 8), "v": f(2, 2, 9, 6)}
    packed = {"q": f(11, 4, 8), "k": f(15, 2, 8), "v": f(15, 2, 6)}
    starts = {"cu_seqlens_q": ints(0, 4, 11), "cu_seqlens_k": ints(0, 6, 15)}
    per_head = {"relative_bias": f(4, 7), "alibi_slopes": abs(f(4)), "sinks": f(4)}
    elementwise: dict[str, dict[str, Any]] = {
        name: {"x": f(4, 37)} for name in ("gelu", "relu", "silu", "quick_gelu", "tanh")
    }
    return {
        "matmul": {"a": f(9, 21), "b": f(21, 19)},
        "linear": {"x": f(9, 21), "weight": f(19, 21), "bias": f(19), "gate": f(9, 19), "residual": f(9, 19)},
        "pack_weight": {"w": f(19, 21)},
        "softmax": {"x": f(4, 37)},
        "log_softmax": {"x": f(4, 37)},
        "layer_norm": {"x": f(4, 37), "weight": f(37), "bias": f(37), "residual": f(4, 37)},
        "rms_norm": {"x": f(4, 37), "weight": f(37), "residual": f(4, 37)},
        **elementwise,
        "embedding": {"ids": ints(3, 0, 10, 3), "table": f(11, 21)},
        "rotary": {"x": f(2, 4, 5, 8), "positions": ints(3, 4, 5, 6, 7)},
        "attention": {
            **heads,
            "mask": rng.random((2, 1, 5, 9)) < 0.8,
            "bias": f(4, 5, 9),
            **per_head,
            "kv_lengths": ints(9, 6),
        },
        "attention_varlen": {**packed, **starts, **per_head},
        "attention_paged": {
            "q": packed["q"],
            "k_cache": f(4, 16, 2, 8),
            "v_cache": f(4, 16, 2, 6),
            "block_tables": ints(3, 0, 1, 2).reshape(2, 2),
            "kv_lengths": ints(17, 9),
            "cu_seqlens_q": starts["cu_seqlens_q"],
            **per_head,
        },
        "flash_attn_func": {
            **{name: np.ascontiguousarray(np.swapaxes(a, 1, 2)) for name, a in heads.items()},
            "alibi_slopes": abs(f(4)),
        },
        "flash_attn_varlen_func": {**packed, **starts, "max_seqlen_q": 7, "max_seqlen_k": 9},
        "scaled_dot_product_attention": {
            "query": f(2, 4, 5, 8),
            "key": f(2, 4, 9, 8),
            "value": f(2, 4, 9, 6),
            "attn_mask": rng.random((5, 9)) < 0.8,
        },
        "additive_attention": {
            "q": f(2, 5, 8),
            "k": f(2, 9, 7),
            "v": f(2, 9, 6),
            "w_q": f(11, 8),
            "w_k": f(11, 7),
            "w_v": f(11),
            "mask": rng.random((2, 5, 9)) < 0.8,
            "kv_lengths": ints(9, 6),
        },
    }


def in_place_calls(dtype: Any = np.float32, seed: int = 0) -> dict[str, dict[str, Any]]:
    """name: arguments of the ops that write into their k_cache and v_cache."""
    rng = np.random.default_rng(seed)

    def f(*shape: int) -> Any:
        return rng.standard_normal(shape).astype(dtype)

    caches = {"k_cache": f(3, 16, 2, 8), "v_cache": f(3, 16, 2, 8)}
    return {
        "paged_write": {"k": f(5, 2, 8), "v": f(5, 2, 8), **caches, "slots": np.array([47, 3, -1, 20, 0])},
        "flash_attn_with_kvcache": {
            "q": f(2, 3, 4, 8),
            **caches,
            "k": f(2, 3, 2, 8),
            "v": f(2, 3, 2, 8),
            "rotary_cos": f(16, 4),
            "rotary_sin": f(16, 4),
            "cache_seqlens": np.array([13, 5], np.int32),
            "cache_batch_idx": np.array([2, 0], np.int32),
            "cache_leftpad": np.array([0, 2], np.int32),
            "causal": True,
            "alibi_slopes": abs(f(4)),
        },
    }


def kind_of(argument: str, value: Any) -> str | None:
    return KINDS.get(argument) if isinstance(value, np.ndarray) else None


def arguments() -> Iterator[tuple[str, str, str]]:
    """(op, argument, kind) of every array argument of every op."""
    for op, given in calls().items():
        for argument, value in given.items():
            kind = kind_of(argument, value)
            if kind is not None:
                yield op, argument, kind


def flat(result: Any) -> list[Any]:
    """The arrays of a result, whether it is an array, a PackedWeight, or tuples and lists of them."""
    if isinstance(result, (tuple, list)):
        return [a for part in result for a in flat(part)]
    return [result.dequantize() if isinstance(result, (qkv.PackedWeight, reference.PackedWeight)) else result]
