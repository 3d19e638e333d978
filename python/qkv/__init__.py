"""Transformer inference in one small package: NumPy in, NumPy out, hand-written kernels underneath.

Ops (`qkv.attention`, `qkv.linear`, `qkv.softmax` ...) live in `qkv.ops` and `qkv.compat`, models in `qkv.models`.
What a model needs beyond ops is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .compat import flash_attn_func, flash_attn_varlen_func, flash_attn_with_kvcache, scaled_dot_product_attention
from .ops import (
    PackedWeight,
    additive_attention,
    alibi_slopes,
    attention,
    attention_paged,
    attention_varlen,
    embedding,
    gelu,
    layer_norm,
    linear,
    log_softmax,
    matmul,
    pack_weight,
    paged_write,
    quick_gelu,
    relu,
    rms_norm,
    rotary,
    silu,
    sinusoidal_positions,
    softmax,
    tanh,
)
from .runtime import get_num_threads, isas, set_isa, set_num_threads, show_config, trim

if TYPE_CHECKING:
    from . import view as view
    from .cuda import CudaError, set_batch_invariant
    from .models import from_weights, load
    from .tasks import pipeline
    from .walk import trace

__version__ = "0.1.0"

__all__ = [
    "CudaError",
    "PackedWeight",
    "additive_attention",
    "alibi_slopes",
    "attention",
    "attention_paged",
    "attention_varlen",
    "embedding",
    "flash_attn_func",
    "flash_attn_varlen_func",
    "flash_attn_with_kvcache",
    "from_weights",
    "gelu",
    "get_num_threads",
    "isas",
    "layer_norm",
    "linear",
    "load",
    "log_softmax",
    "matmul",
    "pack_weight",
    "paged_write",
    "pipeline",
    "quick_gelu",
    "relu",
    "rms_norm",
    "rotary",
    "scaled_dot_product_attention",
    "set_batch_invariant",
    "set_isa",
    "set_num_threads",
    "show_config",
    "silu",
    "sinusoidal_positions",
    "softmax",
    "tanh",
    "trace",
    "trim",
]

_LAZY = {
    "CudaError": "cuda",
    "set_batch_invariant": "cuda",
    "from_weights": "models",
    "load": "models",
    "pipeline": "tasks",
    "trace": "walk",
}  # name: module


def __getattr__(name: str) -> Any:
    if name in _LAZY or name in ("cuda", "models", "view"):
        module = importlib.import_module(f".{_LAZY.get(name, name)}", __name__)
        value = getattr(module, name) if name in _LAZY else module
        globals()[name] = value
        return value
    raise AttributeError(f"module 'qkv' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
