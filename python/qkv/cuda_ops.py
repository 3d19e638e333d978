"""The ops of `qkv.ops` on a GPU's arrays: same names and arguments, called by them when an argument is on a device."""

from __future__ import annotations

import functools
import inspect
import operator
from collections.abc import Callable
from typing import Any

import numpy as np

from . import cuda
from .arrays import as_numpy, exporter
from .ops import _axis, _number, _optional_number, _precision, _rotary_options, _window, additive_shapes
from .positions import LENGTH_DEPENDENT, rope_type, rotary_angles, rotary_frequencies, rotary_shape

# Arguments of integers, which may stay in host memory: they are checked there and sent along.
_INTEGERS = (
    "block_table", "block_tables", "cache_batch_idx", "cache_leftpad", "cache_seqlens", "cu_seqlens_k", "cu_seqlens_q",
    "ids", "kv_lengths", "positions", "slots",
)  # fmt: skip
# Arrays of few numbers, which are sent along too.
_SMALL = ("angles", "frequencies")


def call(op: Callable[..., Any], names: tuple[str, ...], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """op(*args, **kwargs) on the device; `names` are those of its arrays. The result is of the kind of the first array
    that is not qkv's own."""
    name = op.__name__
    run = _OPS.get(name)
    if run is None:
        raise TypeError(f"{name}: arrays on a GPU are not supported; copy them to the host")
    parameters, known, positional, defaults = _signature(op)
    values = {**defaults, **dict(zip(parameters, args, strict=False)), **kwargs}
    given = parameters[: len(args)]
    if len(args) > positional or values.keys() != known or not kwargs.keys().isdisjoint(given):
        inspect.signature(op).bind(*args, **kwargs)  # has the words for what is wrong
    own = [value for n in names if (value := values.get(n)) is not None]
    if all(type(value) is cuda.Array or type(value) is cuda.PackedWeight for value in own):
        # The common case, a model's: nothing to convert, nothing to send. The device is that of the first array.
        device = next((value for value in own if type(value) is cuda.Array), own[0]).device
        if device == cuda.current_device():
            result = run(name, cuda.current_stream(), **values)
            return result if values.get("out") is None else _in_out(result, values["out"])
    there = [n for n in names if cuda.on_device(values.get(n))]
    for n in names:
        value = values.get(n)
        if value is None or n in there or n in _INTEGERS or n in _SMALL or _is_number(value):
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
    first = next((values[n] for n in there if isinstance(values[n], cuda.Array)), None)
    dtype = np.float32 if first is None else first.dtype
    with cuda.on_device_number(cuda.current_device() if first is None else first.device):  # what is sent goes there
        for n in names:
            if values.get(n) is None or n in there:
                continue
            if n in _INTEGERS:
                values[n] = as_numpy(name, n, values[n])
            elif n in _SMALL:
                values[n] = cuda.array(values[n])
            else:  # a number takes the dtype of the arrays beside it
                kind = np.bool_ if isinstance(values[n], bool) else dtype
                values[n] = cuda.array(np.asarray(values[n], getattr(values[n], "dtype", kind)))
        out = kwargs.get("out")
        result = run(name, stream, **values)
    if origin is not None and result is not None:
        result = _convert(result, origin)
    return result if out is None else _in_out(result, out)


def _in_out(result: Any, out: Any) -> Any:
    """An op's result, of which `out` is the first part."""
    return (out, *result[1:]) if isinstance(result, tuple) else out


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.generic)) or (isinstance(value, np.ndarray) and value.ndim == 0)


@functools.cache
def _signature(op: Callable[..., Any]) -> tuple[tuple[str, ...], frozenset[str], int, dict[str, Any]]:
    """Names of the parameters, twice, how many of them may go without one, and the values of those that may be left
    out."""
    parameters = inspect.signature(op).parameters
    positional = sum(p.kind is not p.KEYWORD_ONLY for p in parameters.values())
    return (
        tuple(parameters),
        frozenset(parameters),
        positional,
        {n: p.default for n, p in parameters.items() if p.default is not p.empty},
    )


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
    return cuda.module().softmax(x, _axis(op, axis), op == "log_softmax", stream)


def _norm(op: str, stream: int, x: Any, weight: Any, eps: Any, residual: Any, bias: Any = None) -> Any:
    return cuda.module().norm(x, weight, bias, _number(op, "eps", eps), op == "rms_norm", residual, stream)


def _log_softmax_parts(op: str, stream: int, x: Any) -> Any:
    parts = cuda.module().log_softmax_parts(x, stream)
    return parts[:, :1], parts[:, 1:]


def _top_k(op: str, stream: int, x: Any, k: int) -> Any:
    return cuda.module().top_k(x, k, stream)


def argmax(x: Any, *, out: Any = None) -> Any:
    """Where the largest of each row of x (rows, n) stands, int64 (rows,), on the device: of equal ones the first, a NaN
    only where all are. out: contiguous int64 (rows,) on the device to write to, so that a recorded step can read it
    again. ValueError: shapes; TypeError: dtypes."""
    return cuda.module().argmax(x, out, cuda.stream_of([x]))


def sample(
    logits: Any,
    u: Any,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    out: Any = None,
) -> Any:
    """A token of each row of logits (rows, V) of any float dtype, on the device: int64 (rows,), -1 where no token is
    left or a score is NaN or +infinity.

    The distribution is softmax(logits / temperature), filtered as by TopK, TopP and MinP of `qkv.generate.logits` in
    this order, and u (rows,), float64 of [0, 1) in host memory or on the device, chooses from it as `draw` does there:
    the first token at which the cumulative probability exceeds u. Cumulative probabilities are right to 2e-6: with a
    filter of scores that are rounded to float32, as on the CPU, without one of those that are not.
    out: as for `argmax`. ValueError: shapes, a temperature that is not positive, top_k below 1, top_p or min_p outside
    of 0 to 1; TypeError: dtypes."""
    if top_k is not None and (isinstance(top_k, bool) or not hasattr(top_k, "__index__")):
        raise TypeError(f"sample: top_k must be an integer, got {type(top_k).__name__}")
    if top_k is not None and top_k < 1:
        raise ValueError(f"sample: top_k must be at least 1, got {top_k}")
    return cuda.module().sample(
        logits,
        u,
        _number("sample", "temperature", temperature),
        0 if top_k is None else min(operator.index(top_k), 2**62),
        1.0 if top_p is None else _number("sample", "top_p", top_p),
        0.0 if min_p is None else _number("sample", "min_p", min_p),
        out,
        cuda.stream_of([logits]),
    )


def _unary(op: str, stream: int, x: Any, approximate: str = "none") -> Any:
    if approximate not in ("none", "tanh"):
        raise ValueError(f"gelu: approximate must be 'none' or 'tanh', got {approximate!r}")
    return cuda.module().unary("gelu_tanh" if approximate == "tanh" else op, x, stream)


def _attention_options(op: str, options: dict[str, Any]) -> dict[str, Any]:
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


def _attention_paged(op: str, stream: int, **options: Any) -> Any:
    return cuda.module().attention_paged(stream=stream, **_attention_options(op, options))


def _compat(op: str, stream: int, **options: Any) -> Any:
    from . import compat

    with cuda.stream(stream):
        return inspect.unwrap(getattr(compat, op))(**options)


def _embedding(op: str, stream: int, ids: Any, table: Any) -> Any:
    return cuda.module().embedding(ids, table, None, stream)


def rows(ids: Any, table: Any, dtype: Any = None) -> Any:
    """`qkv.embedding` on the device for the package's own use, its result (..., C) in `dtype`: float32, float16 or
    bfloat16; None: the table's own, or float32 where it is packed as integers.

    table: a device array (rows, C) or a packed weight. Of ids in host memory those outside the table are a ValueError;
    of ids on the device, int32 or int64, they give rows of NaN."""
    if not isinstance(ids, cuda.Array):
        ids = as_numpy("embedding", "ids", ids)
    return cuda.module().embedding(ids, table, None if dtype is None else np.dtype(dtype), cuda.current_stream())


def _rotary(
    op: str,
    stream: int,
    x: Any,
    positions: Any,
    base: Any,
    dim: Any,
    interleaved: Any,
    scaling: Any,
    layout: str,
) -> Any:
    if not isinstance(x, cuda.Array):
        raise TypeError("rotary: positions are on a CUDA device, x in host memory; qkv.cuda.array copies it there")
    dim, options = _rotary_options(x, base, dim, scaling, layout)
    if isinstance(positions, cuda.Array):
        angles, factor = _device_angles(x.shape, positions, dim, stream, **options)
    else:
        made, factor = rotary_angles(x.shape, positions, dim, **options)
        angles = cuda.module().array(np.ascontiguousarray(made), stream)
    return cuda.module().rotary(x, angles, factor, dim, bool(interleaved), stream)


def _device_angles(shape: Any, positions: Any, dim: int, stream: int, **options: Any) -> tuple[Any, float]:
    """`positions.rotary_angles` of integers on the device; where angles depend on lengths, the host waits for them."""
    if rope_type(options["scaling"]) in LENGTH_DEPENDENT:
        made, factor = rotary_angles(shape, positions._numpy(stream), dim, **options)
        return cuda.module().array(np.ascontiguousarray(made), stream), factor
    if positions.dtype not in (np.int32, np.int64):
        raise TypeError(f"rotary: positions on the device must hold int32 or int64, got {positions.dtype}")
    wide = rotary_shape(tuple(shape), positions.shape, options["layout"])
    frequencies, factor = rotary_frequencies(dim, options["base"], options["scaling"])
    flat = (positions if positions.is_contiguous else positions.copy()).reshape(-1)
    there = cuda.module().array(frequencies.astype(np.float32), stream)
    return cuda.module().rotary_angles(flat, there, stream).reshape(*wide, dim // 2), factor


def _rotate(op: str, stream: int, x: Any, angles: Any, factor: float) -> Any:
    return cuda.module().rotary(x, angles, factor, 2 * angles.shape[-1], False, stream)


def _angles(op: str, stream: int, positions: Any, frequencies: Any) -> Any:
    return cuda.module().rotary_angles(positions, frequencies, stream)


def _scaled_sum(op: str, stream: int, x: Any, scale: float, other: Any) -> Any:
    return cuda.module().scaled_sum(x, scale, other, False, stream)


def _divided(op: str, stream: int, x: Any, by: float) -> Any:
    return cuda.module().scaled_sum(x, by, None, True, stream)


def _paged_write(op: str, stream: int, **arrays: Any) -> None:
    cuda.module().paged_write(stream=stream, **arrays)


def copy_blocks(arrays: list[Any], sources: list[int], targets: list[int], filled: int) -> None:
    """`qkv.ops.copy_blocks` of arrays on the device."""
    stream = cuda.current_stream()
    cuda.module().copy_blocks(arrays, np.array(sources, np.int64), np.array(targets, np.int64), filled, stream)


def _additive_attention(
    op: str,
    stream: int,
    q: Any,
    k: Any,
    v: Any,
    w_q: Any,
    w_k: Any,
    w_v: Any,
    mask: Any,
    kv_lengths: Any,
    return_weights: bool,
) -> Any:
    from .cuda_compat import broadcast

    module = cuda.module()
    module.check_arrays(op, {"q": q, "k": k, "v": v})
    for name, w in (("w_q", w_q), ("w_k", w_k), ("w_v", w_v)):
        if w.dtype != np.float32:
            module.check_arrays(op, {"q": q, name: w})
    lead, shape, scores = additive_shapes(q, k, v, w_q, w_k, w_v, mask, kv_lengths)
    with cuda.stream(stream):
        if 0 in lead or q.shape[-2] == 0:
            empty = cuda.empty(shape, v.dtype)
            return (empty, cuda.empty(scores, v.dtype)) if return_weights else empty
        query, key = (module.linear(_wide(x), _wide(w), *[None] * 5, stream) for x, w in ((q, w_q), (k, w_k)))
        if cuda.on_device(kv_lengths):
            kv_lengths = broadcast(kv_lengths, lead).copy()
        elif kv_lengths is not None:
            kv_lengths = np.broadcast_to(kv_lengths, lead)
        w = w_v[0] if w_v.ndim == 2 else w_v
        return module.additive_attention(query, key, w, v, mask, kv_lengths, lead, bool(return_weights), stream)


def _wide(x: Any) -> Any:
    return x if x.dtype == np.float32 else x.astype(np.float32)


def _pack_weight(op: str, stream: int, w: Any, dtype: str, group_size: int | None) -> Any:
    raise TypeError("pack_weight: w is on a GPU; pack it on the host and pass the result to qkv.cuda.array")


def advance(x: Any) -> None:
    """Adds 1 to each of x's int64 numbers on a GPU, in place: counters of recorded steps. TypeError for another dtype
    or an array that is not qkv's own, ValueError for a broadcast view."""
    cuda.module().advance(x, cuda.current_stream())


_OPS: dict[str, Callable[..., Any]] = {
    "angles": _angles,
    "additive_attention": _additive_attention,
    "attention": _attention,
    "attention_paged": _attention_paged,
    "attention_varlen": _attention_varlen,
    "divided": _divided,
    "embedding": _embedding,
    "layer_norm": _norm,
    "linear": _linear,
    "log_softmax": _softmax,
    "log_softmax_parts": _log_softmax_parts,
    "matmul": _matmul,
    "pack_weight": _pack_weight,
    "paged_write": _paged_write,
    "rms_norm": _norm,
    "rotary": _rotary,
    "rotate": _rotate,
    "scaled_sum": _scaled_sum,
    "softmax": _softmax,
    "top_k": _top_k,
    **dict.fromkeys(
        ("flash_attn_func", "flash_attn_varlen_func", "flash_attn_with_kvcache", "scaled_dot_product_attention"),
        _compat,
    ),
    **dict.fromkeys(("gelu", "quick_gelu", "relu", "silu", "tanh"), _unary),
}
