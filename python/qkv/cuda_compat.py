"""What the functions of `qkv.compat` do on a GPU where they would otherwise do it in NumPy."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from .ops import _optional_number, _window, paged_write


def _module() -> tuple[Any, int]:
    from . import cuda

    return cuda.module(), cuda.current_stream()


def check_arrays(op: str, given: dict[str, Any]) -> None:
    """TypeError unless all are float arrays of one dtype on a GPU."""
    _module()[0].check_arrays(op, given)


def empty(shape: tuple[int, ...], dtype: Any, op: str = "empty") -> Any:
    module, stream = _module()
    return module.empty(shape, np.dtype(dtype), stream, op)


def broadcast(x: Any, shape: tuple[int, ...]) -> Any:
    """x as a view of that shape, by NumPy's rules; ValueError if it does not broadcast."""
    if len(shape) < x.ndim or np.broadcast_shapes(x.shape, shape) != shape:
        raise ValueError(f"an array of shape {x.shape} does not broadcast to {shape}")
    if x.size == 0:
        return empty(shape, x.dtype)
    own = (1,) * (len(shape) - x.ndim) + x.shape
    steps = (0,) * (len(shape) - x.ndim) + tuple(step // x.itemsize for step in x.strides)
    return x._as_strided(shape, [0 if n == 1 else step for n, step in zip(own, steps, strict=True)], 0)


def repeated(x: Any, times: int) -> Any:
    """Each head of x (..., heads, tokens, width) so many times in a row."""
    *lead, heads, tokens, width = x.shape
    if x.size == 0 or times == 0:
        return empty((*lead, heads * times, tokens, width), x.dtype)
    spread = broadcast(x[..., None, :, :], (*lead, heads, times, tokens, width))
    return spread.copy().reshape((*lead, heads * times, tokens, width))


@functools.lru_cache(64)
def _numbers(device: int, n: int) -> Any:
    from . import cuda

    return cuda.array(np.arange(n, dtype=np.int32))


def numbers(n: int) -> Any:
    """0 ... n - 1 on the device, of which a captured graph does not upload a copy."""
    from . import cuda

    return _numbers(cuda.current_device(), n)


def _paged(
    q: Any, k: Any, v: Any, table: Any, lengths: Any, cu_seqlens_q: Any, options: dict[str, Any], **more: Any
) -> Any:
    op = "attention_paged"
    module, stream = _module()
    left, right = _window(op, options["window"])
    scale, softcap = (_optional_number(op, name, options[name]) for name in ("scale", "softcap"))
    return module.attention_paged(
        q, k, v, table, lengths, cu_seqlens_q, None, None, options["causal"], None, options["alibi_slopes"], scale,
        softcap, left, right, None, options["return_lse"], False, None, stream, any_block_size=True, **more,
    )  # fmt: skip


def varlen_over_blocks(
    op: str, q: Any, k: Any, v: Any, table: Any, cu_seqlens_q: Any, cu_seqlens_k: Any, options: dict[str, Any]
) -> Any:
    """`flash_attn_varlen_func` over a block table."""
    if not isinstance(cu_seqlens_k, np.ndarray):
        return _paged(q, k, v, table, None, cu_seqlens_q, options, cu_seqlens_k=cu_seqlens_k)
    if cu_seqlens_k.ndim != 1 or not len(cu_seqlens_k) or cu_seqlens_k[0] != 0:
        raise ValueError(f"{op}: cu_seqlens_k must be (B + 1,) and start with 0, got {cu_seqlens_k.shape}")
    return _paged(q, k, v, table, np.diff(cu_seqlens_k.astype(np.int64)), cu_seqlens_q, options)


def _tokens(x: Any) -> Any:
    """x (B, S, ...) as (B S, ...)."""
    if x.shape[1] == 1:
        return x[:, 0]
    return (x if x.is_contiguous else x.copy()).reshape((x.shape[0] * x.shape[1], *x.shape[2:]))


def with_kvcache(
    op: str,
    q: Any,
    k_cache: Any,
    v_cache: Any,
    k: Any,
    v: Any,
    rotary_cos: Any,
    rotary_sin: Any,
    table: Any,
    lengths: Any,
    starts: Any,
    options: dict[str, Any],
    local: bool,
    interleaved: bool,
) -> Any:
    """`flash_attn_with_kvcache` once its arguments are checked. table (B, n), lengths (B,) and starts (B,) or None may
    be in host memory; nothing here waits for those that are not."""
    module, stream = _module()
    (batch, s, heads, _), size, new = q.shape, k_cache.shape[1], 0 if k is None else k.shape[1]
    if rotary_cos is not None:
        _check_tables(op, q, rotary_cos, rotary_sin, lengths, max(new, s if local else min(s, 1)))
        turn = functools.partial(module.rotary_table, cos=rotary_cos, sin=rotary_sin, lengths=lengths)
        q = turn(q, moves=local, interleaved=interleaved, stream=stream)
        k = turn(k, moves=True, interleaved=interleaved, stream=stream)
    attend = functools.partial(
        _paged, _tokens(q), k_cache, v_cache, table, lengths, s, options, starts=starts, more_keys=new
    )
    if k is not None:
        attend(check_only=True)
        slots = module.paged_slots(lengths, table, new, size, k_cache.shape[0], k_cache, stream)
        paged_write(_tokens(k), _tokens(v), k_cache, v_cache, slots)
    result = attend()
    out, lse = result if options["return_lse"] else (result, None)
    out = out.reshape((batch, s, heads, v_cache.shape[3]))
    return out if lse is None else (out, lse.reshape((heads, batch, s)).transpose(1, 0, 2).copy())


def _check_tables(op: str, q: Any, cos: Any, sin: Any, lengths: Any, ahead: int) -> None:
    for name, x in (("rotary_cos", cos), ("rotary_sin", sin)):
        if x.ndim != 2:
            raise ValueError(f"{op}: {name} must have 2 dimensions, got shape {x.shape}")
    if cos.shape != sin.shape:
        raise ValueError(f"{op}: rotary_cos has shape {cos.shape}, rotary_sin {sin.shape}")
    if 2 * cos.shape[1] > q.shape[3]:
        raise ValueError(f"{op}: rotary_cos turns {2 * cos.shape[1]} features, q has {q.shape[3]}")
    if isinstance(lengths, np.ndarray):
        needed = int(lengths.max(initial=0)) + ahead if len(lengths) else 0
        if needed > cos.shape[0]:
            raise ValueError(f"{op}: rotary_cos has {cos.shape[0]} positions, {needed} are needed")
