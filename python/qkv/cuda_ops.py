"""The ops of `qkv.ops` on a GPU's arrays: same names and arguments, called by them when an argument is on a device."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

from . import cuda
from .arrays import as_numpy, exporter

# Arguments of integers, which may stay in host memory: they are checked there and sent along.
_INTEGERS = ("kv_lengths", "cu_seqlens_q", "cu_seqlens_k")


def call(op: Callable[..., Any], names: tuple[str, ...], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """op(*args, **kwargs) on the device; `names` are those of its arrays. The result is of the kind of the first array
    that is not qkv's own."""
    name = op.__name__
    run = _OPS.get(name)
    if run is None:
        raise TypeError(f"{name}: arrays on a GPU are not supported; copy them to the host")
    parameters, positional, defaults = _signature(op)
    values = {**defaults, **dict(zip(parameters, args, strict=False)), **kwargs}
    if len(args) > positional or values.keys() != set(parameters) or any(n in kwargs for n in parameters[: len(args)]):
        inspect.signature(op).bind(*args, **kwargs)  # has the words for what is wrong
    there = [n for n in names if cuda.on_device(values.get(n))]
    for n in names:
        value = values.get(n)
        if value is None or n in there or n in _INTEGERS or _is_number(value):
            continue
        raise TypeError(f"{name}: {there[0]} is on a CUDA device, {n} in host memory; qkv.cuda.array copies it there")
    stream = cuda.stream_of([values[n] for n in there])
    origin = None
    for n in there:
        if not isinstance(values[n], (cuda.Array, cuda.PackedWeight)):
            origin = origin or exporter(values[n])
            try:
                values[n] = cuda.from_dlpack(values[n], stream)
            except (
                BufferError,
                RuntimeError,
                TypeError,
                ValueError,
            ) as error:  # no GPU for qkv; torch: requires_grad ...
                raise TypeError(f"{name}: {n} is on a CUDA device and cannot be shared: {error}") from error
    dtype = next((values[n].dtype for n in there if isinstance(values[n], cuda.Array)), np.float32)
    for n in names:
        if values.get(n) is None or n in there:
            continue
        if n in _INTEGERS:
            values[n] = as_numpy(name, n, values[n])
        else:  # a number takes the dtype of the arrays beside it
            own = np.bool_ if isinstance(values[n], bool) else dtype
            values[n] = cuda.array(np.asarray(values[n], getattr(values[n], "dtype", own)))
    out = kwargs.get("out")
    result = run(name, stream, **values)
    if origin is not None:
        result = _convert(result, origin)
    if out is None:
        return result
    return (out, *result[1:]) if isinstance(result, tuple) else out


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.generic)) or (isinstance(value, np.ndarray) and value.ndim == 0)


@functools.cache
def _signature(op: Callable[..., Any]) -> tuple[tuple[str, ...], int, dict[str, Any]]:
    """Names of the parameters, how many of them may go without one, and the values of those that may be left out."""
    parameters = inspect.signature(op).parameters
    positional = sum(p.kind is not p.KEYWORD_ONLY for p in parameters.values())
    return tuple(parameters), positional, {n: p.default for n, p in parameters.items() if p.default is not p.empty}


def _convert(result: Any, from_dlpack: Callable[[Any], Any]) -> Any:
    if isinstance(result, (tuple, list)):
        return type(result)(_convert(item, from_dlpack) for item in result)
    return from_dlpack(result)


def _matmul(op: str, stream: int, a: Any, b: Any) -> Any:
    return cuda.module().matmul(a, b, stream)


def _linear(
    op: str, stream: int, x: Any, weight: Any, bias: Any, activation: Any, gate: Any, residual: Any, out: Any
) -> Any:
    return cuda.module().linear(x, weight, bias, activation, gate, residual, out, stream)


def _softmax(op: str, stream: int, x: Any, axis: Any) -> Any:
    from .ops import _axis

    return cuda.module().softmax(x, _axis(op, axis), op == "log_softmax", stream)


def _norm(op: str, stream: int, x: Any, weight: Any, eps: Any, residual: Any, bias: Any = None) -> Any:
    from .ops import _number

    return cuda.module().norm(x, weight, bias, _number(op, "eps", eps), op == "rms_norm", residual, stream)


def _unary(op: str, stream: int, x: Any, approximate: str = "none") -> Any:
    if approximate not in ("none", "tanh"):
        raise ValueError(f"gelu: approximate must be 'none' or 'tanh', got {approximate!r}")
    return cuda.module().unary("gelu_tanh" if approximate == "tanh" else op, x, stream)


def _attention_options(op: str, options: dict[str, Any]) -> dict[str, Any]:
    from .ops import _optional_number, _precision, _window

    _precision(op, options.pop("precision"))
    options["window_left"], options["window_right"] = _window(op, options.pop("window"))
    for name in ("scale", "softcap"):
        options[name] = _optional_number(op, name, options[name])
    for name in ("return_lse", "return_weights"):
        options[name] = bool(options[name])
    return options


def _attention(op: str, stream: int, layout: str, **options: Any) -> Any:
    if layout not in ("bhsd", "bshd"):
        raise ValueError(f"attention: layout must be 'bhsd' or 'bshd', got {layout!r}")
    return cuda.module().attention(bshd=layout == "bshd", stream=stream, **_attention_options(op, options))


def _attention_varlen(op: str, stream: int, **options: Any) -> Any:
    return cuda.module().attention_varlen(stream=stream, **_attention_options(op, options))


def _pack_weight(op: str, stream: int, w: Any, dtype: str, group_size: int | None) -> Any:
    raise TypeError("pack_weight: w is on a GPU; pack it on the host and pass the result to qkv.cuda.array")


_OPS: dict[str, Callable[..., Any]] = {
    "attention": _attention,
    "attention_varlen": _attention_varlen,
    "layer_norm": _norm,
    "linear": _linear,
    "log_softmax": _softmax,
    "matmul": _matmul,
    "pack_weight": _pack_weight,
    "rms_norm": _norm,
    "softmax": _softmax,
    **dict.fromkeys(("gelu", "quick_gelu", "relu", "silu", "tanh"), _unary),
}
