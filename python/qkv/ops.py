"""The ops: one documented function each, array in, array of the same kind out.

Arrays are float32, float16 or bfloat16 (ml_dtypes) NumPy arrays with any strides, or objects that speak DLPack on the
CPU, such as torch tensors (`qkv.arrays`). All arrays of a call share one dtype; parameters (norm weights, bias vectors,
bias tables) may also be float32 beside half-width data. Arithmetic is float32, rounded once on output. float64 is
served, exactly, by the NumPy twins in `qkv.reference`. Misaligned arrays are copied first.

Errors are raised before any work: TypeError for a dtype or something that is no array, ValueError for a shape or
value. NaN and infinity are data and propagate as the formula has it.

Results do not depend, to the bit, on the other rows of a batch, on their number, or on the number of threads (float64's
may: NumPy decides).
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from . import _cpu, reference
from ._cpu import BlockList as BlockList
from ._cpu import BlockPool as BlockPool
from ._cpu import PackedWeight
from ._cpu import best_left as best_left
from ._cpu import best_sums as best_sums
from ._cpu import record as record
from .arrays import accepts_arrays, on_gpu
from .positions import rotary_angles, rotary_width
from .reference import alibi_slopes, sinusoidal_positions

__all__ = [
    "PackedWeight",
    "additive_attention",
    "alibi_slopes",
    "attention",
    "attention_paged",
    "attention_varlen",
    "embedding",
    "gelu",
    "layer_norm",
    "linear",
    "log_softmax",
    "matmul",
    "pack_weight",
    "paged_write",
    "quick_gelu",
    "relu",
    "rms_norm",
    "rotary",
    "silu",
    "sinusoidal_positions",
    "softmax",
    "tanh",
]

Array = Any  # a NumPy array, or what another library calls one
Causal = bool | Literal["top_left"]
Window = tuple[int | None, int | None]
ACTIVATIONS = ("gelu", "gelu_tanh", "relu", "silu", "quick_gelu", "tanh")


def _number(op: str, name: str, value: Any) -> float:
    """A real number as a float; TypeError in the user's words for anything else."""
    if isinstance(value, (bool, str)) or not hasattr(value, "__float__") or getattr(value, "ndim", 0) != 0:
        raise TypeError(f"{op}: {name} must be a number, got {type(value).__name__}")
    return float(value)


def _optional_number(op: str, name: str, value: Any) -> float | None:
    return None if value is None else _number(op, name, value)


def _axis(op: str, axis: Any) -> int:
    if isinstance(axis, bool) or not hasattr(axis, "__index__"):
        raise TypeError(f"{op}: axis must be an integer, got {type(axis).__name__}")
    return max(min(operator.index(axis), 2**62), -(2**62))


# ---- matrix products ----------------------------------------------------------------------------


@accepts_arrays("a", "b")
def matmul(a: Array, b: Array) -> Array:
    """Matrix product by NumPy's rules: leading dimensions broadcast, 1-D operands are vectors.

    a: (..., M, K) or (K,).
    b: (..., K, N) or (K,), in a's dtype.

    Returns (..., M, N) without the axis of a vector, in their dtype.

    TypeError: the dtypes differ, or are no floats. ValueError: widths that differ, batches that do not broadcast,
    scalars.
    """
    out = _cpu.matmul(a, b)
    if out is None:
        out = reference.matmul(a, b)
    return out[()] if out.ndim == 0 else out  # a scalar, as NumPy has it


@accepts_arrays("w")
def pack_weight(w: Array, dtype: str = "float32", group_size: int | None = None) -> PackedWeight:
    """Rearranges a weight matrix into the layout that `linear` and `embedding` read.

    w: (out, in) floats.
    dtype: how it is stored, "float32", "bfloat16", "int8": w = scale q with q in -127 ... 127, or "int4": w = scale q +
        offset with q in 0 ... 15.
    group_size: how many neighbours of a row share a scale, and an offset: 32 or, of int4, 64 or 128. None: the whole
        row in int8, 32 in int4.

    Returns a `PackedWeight`: `.shape`, `.dtype`, `.group_size`, `.nbytes`, and `.dequantize()`, a float32 matrix.
    Scales and offsets of groups are float16, scales of rows float32. `reference.pack_weight` has the roundings. The
    layout is the same for all instruction sets.

    TypeError: no floats, or a weight that is packed already. ValueError: no matrix, NaN or infinity in the integer
    types, a group size the type does not have, more than 65536 features of int8 without groups. What is beyond
    bfloat16's range becomes infinity there.
    """
    if not isinstance(dtype, str):
        raise TypeError(f"pack_weight: dtype must be a string, got {type(dtype).__name__}")
    if isinstance(w, PackedWeight):
        raise TypeError("pack_weight: w is packed already")
    if group_size is not None and (isinstance(group_size, bool) or not hasattr(group_size, "__index__")):
        raise TypeError(f"pack_weight: group_size must be an integer or None, got {type(group_size).__name__}")
    group = (32 if dtype == "int4" else 0) if group_size is None else operator.index(group_size)
    if _cpu.check_arrays("pack_weight", {"w": w}):
        w = w.astype(np.float32)
    return _cpu.pack_weight(w, dtype, group)


@accepts_arrays("x", "weight", "bias", "gate", "residual", "out")
def linear(
    x: Array,
    weight: Array | PackedWeight,
    bias: Array | None = None,
    *,
    activation: str | None = None,
    gate: Array | None = None,
    residual: Array | None = None,
    out: Array | None = None,
) -> Array:
    """act(x W^T + bias) * gate + residual, in one pass over the output.

    x: (..., in) floats.
    weight: (out, in), an array or from `pack_weight`.
    bias: (out,); None: 0.
    activation: "gelu" (erf), "gelu_tanh", "relu", "silu", "quick_gelu", "tanh" or None.
    gate, residual: arrays that broadcast to the result, (..., out); None: 1 and 0.
    out: an array (..., out) to write the result to; it may be one of the inputs.

    Returns (..., out) in x's dtype.

    With a packed weight of another type than float32, rows of x are rounded to it first: to bfloat16; to 8 bits with a
    scale and a zero point a row (int8 with one scale a row) or a scale a group (int8 and int4 by group). A row that
    holds NaN or infinity is NaN in the integer types. float64 x is multiplied by the dequantised weight, unrounded. On
    a GPU rows are not rounded: weights are widened, and infinity stays infinity where the product has it.

    TypeError: dtypes that differ from x's (weight and bias may be float32). ValueError: a weight of another width
    than x's, a bias, gate, residual or out of another shape, an unknown activation.
    """
    result = _cpu.linear(x, weight, bias, activation, gate, residual, out)
    if result is None:
        if isinstance(weight, PackedWeight):
            weight = weight.dequantize()
        result = reference.linear(x, weight, bias, activation=activation, gate=gate, residual=residual, out=out)
    return result


@accepts_arrays("ids", "table")
def embedding(ids: Array, table: Array | PackedWeight) -> Array:
    """table[ids], rows of a table.

    ids: integers of any shape, from 0 to vocabulary - 1.
    table: (vocabulary, C), an array or from `pack_weight`.

    Returns ids.shape + (C,), in the table's dtype, float32 of a packed one.

    TypeError: ids that are no integers. ValueError: an id that the table does not have, a table that is no matrix.
    """
    out = _cpu.embedding(ids, table)
    return reference.embedding(ids, table) if out is None else out


# ---- row by row -----------------------------------------------------------------------------------


@accepts_arrays("x")
def softmax(x: Array, axis: int = -1) -> Array:
    """exp(x - max x) / sum exp(x - max x) along an axis.

    x: floats of any shape. axis: along which the result sums to 1, counted from the end where it is negative.

    Returns x's shape and dtype. A row that is -inf throughout gives NaN, as the formula does.

    TypeError: another dtype. ValueError: there is no such axis.
    """
    out = _cpu.softmax(x, _axis("softmax", axis), False)
    return reference.softmax(x, axis) if out is None else out


@accepts_arrays("x")
def log_softmax(x: Array, axis: int = -1) -> Array:
    """x - max x - log sum exp(x - max x) along an axis.

    x: floats of any shape. axis: as of `softmax`.

    Returns x's shape and dtype. TypeError: another dtype. ValueError: there is no such axis.
    """
    out = _cpu.softmax(x, _axis("log_softmax", axis), True)
    return reference.log_softmax(x, axis) if out is None else out


@accepts_arrays("x", "weight", "bias", "residual")
def layer_norm(
    x: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    eps: float = 1e-5,
    *,
    residual: Array | None = None,
) -> Array:
    """(x - mean) / sqrt(variance + eps) * weight + bias over the last axis (Ba et al. 2016); biased variance.

    x: (..., C) floats. weight, bias: (C,); None: 1 and 0. eps: a number, added to the variance.
    residual: of x's shape, added to x first; None: nothing.

    Returns x's shape and dtype; with a residual (layer_norm(x + residual), x + residual). On a GPU the sum is rounded
    to x's dtype before it is normalised.

    TypeError: another dtype than x's (weight and bias may be float32). ValueError: weight, bias or residual of another
    shape.
    """
    out = _cpu.norm(x, weight, bias, _number("layer_norm", "eps", eps), False, residual)
    return reference.layer_norm(x, weight, bias, eps, residual=residual) if out is None else out


@accepts_arrays("x", "weight", "residual")
def rms_norm(x: Array, weight: Array | None = None, eps: float = 1e-6, *, residual: Array | None = None) -> Array:
    """x / sqrt(mean x^2 + eps) * weight over the last axis (Zhang and Sennrich 2019).

    x: (..., C) floats. weight: (C,); None: 1. eps: a number, added to the mean of the squares.
    residual: of x's shape, added to x first; None: nothing.

    Returns x's shape and dtype; with a residual (rms_norm(x + residual), x + residual). On a GPU the sum is rounded to
    x's dtype before it is normalised, and squares are summed in float32.

    TypeError: another dtype than x's (weight may be float32). ValueError: weight or residual of another shape.
    """
    out = _cpu.norm(x, weight, None, _number("rms_norm", "eps", eps), True, residual)
    return reference.rms_norm(x, weight, eps, residual=residual) if out is None else out


@accepts_arrays("x")
def gelu(x: Array, approximate: str = "none") -> Array:
    """x/2 (1 + erf(x/sqrt 2)), or with approximate="tanh" x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))
    (Hendrycks and Gimpel 2016).

    x: floats of any shape. approximate: "none" or "tanh". Returns x's shape and dtype.

    TypeError: another dtype. ValueError: another approximate.
    """
    if approximate not in ("none", "tanh"):
        raise ValueError(f"gelu: approximate must be 'none' or 'tanh', got {approximate!r}")
    out = _cpu.unary("gelu" if approximate == "none" else "gelu_tanh", x)
    return reference.gelu(x, approximate) if out is None else out


@accepts_arrays("x")
def relu(x: Array) -> Array:
    """max(x, 0); NaN stays NaN. x: floats of any shape; returns the same shape and dtype. TypeError: another dtype."""
    out = _cpu.unary("relu", x)
    return reference.relu(x) if out is None else out


@accepts_arrays("x")
def silu(x: Array) -> Array:
    """x / (1 + exp(-x)), also called swish. x: floats of any shape; returns the same shape and dtype. TypeError:
    another dtype."""
    out = _cpu.unary("silu", x)
    return reference.silu(x) if out is None else out


@accepts_arrays("x")
def quick_gelu(x: Array) -> Array:
    """x / (1 + exp(-1.702 x)). x: floats of any shape; returns the same shape and dtype. TypeError: another dtype."""
    out = _cpu.unary("quick_gelu", x)
    return reference.quick_gelu(x) if out is None else out


@accepts_arrays("x")
def tanh(x: Array) -> Array:
    """Hyperbolic tangent, within 2 ulp in float32. x: floats of any shape; returns the same shape and dtype. TypeError:
    another dtype."""
    out = _cpu.unary("tanh", x)
    return reference.tanh(x) if out is None else out


@accepts_arrays("x", "positions")
def rotary(
    x: Array,
    positions: Array,
    *,
    base: float = 10000.0,
    dim: int | None = None,
    interleaved: bool = False,
    scaling: Mapping[str, Any] | None = None,
    layout: str = "bhsd",
) -> Array:
    """Rotary position embedding (Su et al. 2021): turns each pair of features by position * frequency.

    x: (B, H, S, D), packed (total, H, D), or (S, D) floats.
    positions: numbers, (S,) or (B, S), (total,), or (S,). With one axis fewer than x they broadcast against
        x.shape[:-1].
    base: pair i of dim/2 has the frequency base^(-2i/dim).
    dim: how many leading features turn, even; None: all.
    interleaved: whether pairs are the features 2i and 2i + 1; otherwise they are i and i + dim/2.
    scaling: a Hugging Face rope_scaling dictionary, see `qkv.positions.rotary_frequencies`.
    layout: of x with four axes, "bhsd" or "bshd": (B, S, H, D).

    Angles are products in float32, as published models compute them, unless x is float64.

    Returns x's shape and dtype.

    TypeError: a dtype. ValueError: positions that do not fit x, a dim that is odd or beyond D, a scaling that is not
    implemented, another layout.
    """
    _cpu.check_arrays("rotary", {"x": x})
    dim, options = _rotary_options(x, base, dim, scaling, layout)
    angles, factor = rotary_angles(x.shape, positions, dim, **options)
    out = _cpu.rotary(x, np.ascontiguousarray(angles), factor, dim, bool(interleaved))
    if out is None:
        out = reference.rotary(x, positions, dim=dim, interleaved=interleaved, **options)
    return out


def _rotary_options(x: Array, base: Any, dim: Any, scaling: Any, layout: str) -> tuple[int, dict[str, Any]]:
    """How many features of x turn, and what angles are made by."""
    base = _number("rotary", "base", base)
    if dim is not None and (isinstance(dim, bool) or not hasattr(dim, "__index__")):
        raise TypeError(f"rotary: dim must be an integer, got {type(dim).__name__}")
    if scaling is not None and not isinstance(scaling, Mapping):
        raise TypeError(f"rotary: scaling must be a mapping, got {type(scaling).__name__}")
    width = rotary_width(x.shape[-1] if x.ndim else 0, dim, scaling)
    return width, {"base": base, "scaling": scaling, "layout": layout}


@accepts_arrays("x", "angles")
def rotate(x: Array, angles: Array, factor: float) -> Array:
    """`rotary` by angles that are there already, for layers that share them: float32, they broadcast against
    x.shape[:-1] + (dim/2,); cos and sin are multiplied by factor. float32 and narrower x only."""
    return _cpu.rotary(x, angles, factor, 2 * angles.shape[-1], False)


@accepts_arrays("positions", "frequencies")
def angles(positions: Array, frequencies: Array) -> Array:
    """Those of `rotate`, (total, 1, D/2): positions (total,), which must not change their place where a step is
    recorded, times float32 frequencies (D/2,)."""
    return _cpu.rotary_angles(positions, frequencies)


@accepts_arrays("x", "other")
def scaled_sum(x: Array, scale: float, other: Array | None = None) -> Array:
    """scale x + other, each operation rounded by itself; what models do beside kernels, as a kernel, so that a step can
    be recorded. Contiguous float32: x (..., C), other of x's shape or (C,)."""
    return _cpu.scaled_sum(x, scale, other, False)


@accepts_arrays("x")
def divided(x: Array, by: float) -> Array:
    """x / by, likewise."""
    return _cpu.scaled_sum(x, by, None, True)


@accepts_arrays("x")
def log_softmax_parts(x: Array) -> tuple[Array, Array]:
    """m and l, both float32 (rows, 1): log_softmax(x) is (x - m) - l, to the bit, for contiguous float32 x (rows, n).
    On a GPU any strides, and narrower x too."""
    parts = _cpu.log_softmax_parts(x)
    return parts[:, :1], parts[:, 1:]


@accepts_arrays("x")
def top_k(x: Array, k: int) -> tuple[Array, Array]:
    """The k largest of each row of contiguous float32 x (rows, n) in descending order, and where they stand, both
    (rows, k). Of equal ones the first counts as larger, a NaN as smaller than any number. On a GPU any strides, and
    narrower x too."""
    return _cpu.top_k(x, k)


def empty(shape: Sequence[int], dtype: Any) -> Array:
    """np.empty on memory that was used before: fresh pages cost more than many a kernel that writes to them."""
    return _cpu.empty(shape, np.dtype(dtype))


TopK = tuple[Array, Array, tuple[Array, Array]]  # top_k's values and places, and log_softmax_parts


def top_k_with_parts(x: Array, k: int) -> TopK:
    """Of one array (rows, n)."""
    return *top_k(x, k), log_softmax_parts(x)


def linear_top_k(x: Array, weight: PackedWeight, bias: Array | None, k: int) -> TopK:
    """The same of linear(x, weight, bias), to the bit but for the sign of zeros, without that in memory, for contiguous
    float32 x (rows, n_in)."""
    values, places, parts = _cpu.linear_top_k(x, weight, bias, k)
    return values, places, (parts[:, :1], parts[:, 1:])


def copy_blocks(arrays: list[Array], sources: list[int], targets: list[int], filled: int) -> None:
    """The first `filled` places of some blocks to others, all different, in arrays (blocks, block_size, ...) of one
    cache."""
    if arrays and on_gpu(arrays[0]):
        from . import cuda_ops

        cuda_ops.copy_blocks(arrays, sources, targets, filled)
        return
    _cpu.copy_blocks(arrays, np.array(sources, np.int64), np.array(targets, np.int64), filled)


# ---- attention ------------------------------------------------------------------------------------


def _window(op: str, window: Window | None) -> Window:
    if window is None:
        return None, None
    if not isinstance(window, (tuple, list)) or len(window) != 2:
        raise ValueError(f"{op}: window must be None or (left, right), got {window!r}")
    for side in window:
        if side is not None and (isinstance(side, bool) or not isinstance(side, (int, np.integer))):
            raise TypeError(f"{op}: window must hold integers or None, got {window!r}")
    left, right = (None if side is None else max(-(2**62), min(int(side), 2**62)) for side in window)
    return left, right


def _precision(op: str, precision: str) -> None:
    if precision not in ("highest", "bf16"):
        raise ValueError(f"{op}: precision must be 'highest' or 'bf16', got {precision!r}")


@accepts_arrays("q", "k", "v", "mask", "bias", "relative_bias", "alibi_slopes", "sinks", "kv_lengths", "out")
def attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    causal: Causal = False,
    mask: Array | None = None,
    bias: Array | None = None,
    relative_bias: Array | None = None,
    alibi_slopes: Array | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    window: Window | None = None,
    sinks: Array | None = None,
    kv_lengths: Array | None = None,
    layout: str = "bhsd",
    precision: str = "highest",
    return_lse: bool = False,
    return_weights: bool = False,
    out: Array | None = None,
) -> Any:
    """softmax(scores) v, one block of keys at a time: memory grows with S, not with S T (Dao et al. 2022).

    With T_b = kv_lengths[b] or T, query i stands at position p = i + T_b - S, or at p = i if causal="top_left". Scores
    are

        softcap(scale q.k) + bias + relative_bias[h, clip(j - p, -R, R) + R] - alibi_slopes[h] |p - j|

    q: (B, H, S, D) floats. k: (B, Hkv, T, D), H a multiple of Hkv. v: (B, Hkv, T, Dv).
    causal: True excludes keys j > p with the last query at the last key (flash-attn), "top_left" with the first query
        at the first key (torch's is_causal).
    mask: bool, True where attention is allowed. bias: floats, added. Both broadcast to (B, H, S, T), any strides. A
        bias of -inf excludes a key whose score is finite; only a mask does whatever the key holds.
    relative_bias: (H, 2 R + 1), a bias by distance. alibi_slopes: (H,) or (B, H).
    sinks: (H,), logits that join the denominator only.
    scale: a number; None: D^-0.5. softcap: a number c, softcap(s) = c tanh(s / c); None: none.
    window: (left, right), keys p - left ... p + right, None is unbounded.
    kv_lengths: (B,) integers, keys beyond are never read; None: T.
    layout: of q, k, v and the result, "bhsd" or "bshd": (B, S, H, D).
    precision: "highest", or "bf16", which permits bfloat16 products (weights are then those before rounding).
    return_lse, return_weights: whether these are returned too.
    out: an array to write the result to; it may be one of the inputs.

    Returns out (B, H, S, Dv) in q's layout and dtype; with return_lse also log-sum-exp float32 (B, H, S); with
    return_weights also the probabilities (B, H, S, T) in any layout. A row that may attend to nothing gives 0 and -inf
    (the sink, if there is one).

    TypeError: q, k and v of different dtypes or no floats, a mask that is not bool, lengths that are no integers.
    ValueError: shapes that do not fit each other, heads that do not divide q's, lengths beyond T, a softcap that is not
    positive, a negative window, an unknown layout or precision. Both name the argument, what was expected and what
    came.
    """
    if layout not in ("bhsd", "bshd"):
        raise ValueError(f"attention: layout must be 'bhsd' or 'bshd', got {layout!r}")
    _precision("attention", precision)
    left, right = _window("attention", window)
    scale = _optional_number("attention", "scale", scale)
    softcap = _optional_number("attention", "softcap", softcap)
    result = _cpu.attention(
        q, k, v, causal, mask, bias, relative_bias, alibi_slopes, scale, softcap, left, right, sinks, kv_lengths,
        layout == "bshd", bool(return_lse), bool(return_weights), out, precision == "bf16",
    )  # fmt: skip
    if result is None:
        result = reference.attention(
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
            layout=layout,
            return_lse=return_lse,
            return_weights=return_weights,
            out=out,
        )
    return result


@accepts_arrays("q", "k", "v", "cu_seqlens_q", "cu_seqlens_k", "relative_bias", "alibi_slopes", "sinks", "out")
def attention_varlen(
    q: Array,
    k: Array,
    v: Array,
    cu_seqlens_q: Array,
    cu_seqlens_k: Array,
    *,
    causal: Causal = False,
    relative_bias: Array | None = None,
    alibi_slopes: Array | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    window: Window | None = None,
    sinks: Array | None = None,
    precision: str = "highest",
    return_lse: bool = False,
    return_weights: bool = False,
    out: Array | None = None,
) -> Any:
    """`attention` over sequences packed one after the other, without padding.

    q: (total_q, H, D) floats. k: (total_k, Hkv, D). v: (total_k, Hkv, Dv).
    cu_seqlens_q, cu_seqlens_k: (B + 1,) integers: sequence b has queries cu_seqlens_q[b] ... cu_seqlens_q[b+1] - 1 and
        likewise keys.
    causal, relative_bias, alibi_slopes, scale, softcap, window, sinks, precision, return_lse, return_weights, out: as
        of `attention`.

    On a GPU lengths that are in its memory are not checked, and results of tokens of no sequence are left unwritten.

    Returns out (total_q, H, Dv); with return_lse also float32 (H, total_q); with return_weights also a list of B
    arrays (H, S_b, T_b).

    TypeError, ValueError: as of `attention`; and cu_seqlens that do not begin with 0, fall, or end elsewhere than at
    the number of tokens.
    """
    _precision("attention_varlen", precision)
    left, right = _window("attention_varlen", window)
    scale = _optional_number("attention_varlen", "scale", scale)
    softcap = _optional_number("attention_varlen", "softcap", softcap)
    result = _cpu.attention_varlen(
        q, k, v, cu_seqlens_q, cu_seqlens_k, causal, relative_bias, alibi_slopes, scale, softcap, left, right, sinks,
        bool(return_lse), bool(return_weights), out, precision == "bf16",
    )  # fmt: skip
    if result is None:
        result = reference.attention_varlen(
            q,
            k,
            v,
            cu_seqlens_q,
            cu_seqlens_k,
            causal=causal,
            relative_bias=relative_bias,
            alibi_slopes=alibi_slopes,
            scale=scale,
            softcap=softcap,
            window=window,
            sinks=sinks,
            return_lse=return_lse,
            return_weights=return_weights,
            out=out,
        )
    return result


@accepts_arrays(
    "q", "k_cache", "v_cache", "block_tables", "kv_lengths", "cu_seqlens_q", "k_scale", "v_scale", "relative_bias",
    "alibi_slopes", "sinks", "out",
)  # fmt: skip
def attention_paged(
    q: Array,
    k_cache: Array,
    v_cache: Array,
    block_tables: Array,
    kv_lengths: Array,
    *,
    cu_seqlens_q: Array | None = None,
    k_scale: Array | None = None,
    v_scale: Array | None = None,
    causal: Causal = False,
    relative_bias: Array | None = None,
    alibi_slopes: Array | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    window: Window | None = None,
    sinks: Array | None = None,
    precision: str = "highest",
    return_lse: bool = False,
    return_weights: bool = False,
    out: Array | None = None,
) -> Any:
    """`attention_varlen` over keys and values in a paged cache (Kwon et al. 2023), read where they lie.

    q: (total_q, H, D) floats.
    k_cache, v_cache: (blocks, block_size, Hkv, D) and (blocks, block_size, Hkv, Dv), block_size a multiple of 16, of a
        dtype that need not be q's.
    block_tables: (B, N) integers: key j of sequence b lies at offset j % block_size of block
        block_tables[b, j // block_size]. Entries that hold no key which a query sees are never looked at.
    kv_lengths: (B,) integers, the new tokens included, which `paged_write` has stored by then.
    k_scale, v_scale: float32 (blocks, block_size, Hkv), of int8 caches; None: of others.
    cu_seqlens_q: (B + 1,) as in `attention_varlen`; None: one query each. A sequence's queries stand at its end.
    causal, relative_bias, alibi_slopes, scale, softcap, window, sinks, precision, return_lse, return_weights, out: as
        of `attention`.

    Results are, to the bit, those of the same keys in any other layout; on a GPU so with `set_batch_invariant`. What is
    in a GPU's memory is not checked: lengths are cut to what the tables hold, and a key in a block that the cache does
    not have is NaN. int8 there is rounded to q's dtype.

    Returns out (total_q, H, Dv) in q's dtype; with return_lse also float32 (H, total_q); with return_weights also a
    list of B arrays (H, S_b, T_b).

    TypeError, ValueError: as of `attention_varlen`; and a block_size that is no multiple of 16, a length beyond a row
    of block_tables, a block that the cache does not have, scales without an int8 cache or the other way round.
    """
    _precision("attention_paged", precision)
    left, right = _window("attention_paged", window)
    scale = _optional_number("attention_paged", "scale", scale)
    softcap = _optional_number("attention_paged", "softcap", softcap)
    result = _cpu.attention_paged(
        q, k_cache, v_cache, block_tables, kv_lengths, cu_seqlens_q, k_scale, v_scale, None, causal, relative_bias,
        alibi_slopes, scale, softcap, left, right, sinks, bool(return_lse), bool(return_weights), out, False,
        precision == "bf16",
    )  # fmt: skip
    if result is None:
        result = reference.attention_paged(
            q,
            k_cache,
            v_cache,
            block_tables,
            kv_lengths,
            cu_seqlens_q=cu_seqlens_q,
            k_scale=k_scale,
            v_scale=v_scale,
            causal=causal,
            relative_bias=relative_bias,
            alibi_slopes=alibi_slopes,
            scale=scale,
            softcap=softcap,
            window=window,
            sinks=sinks,
            return_lse=return_lse,
            return_weights=return_weights,
            out=out,
        )
    return result


@accepts_arrays("k", "v", "slots", in_place=("k_cache", "v_cache", "k_scale", "v_scale"))
def paged_write(
    k: Array,
    v: Array,
    k_cache: Array,
    v_cache: Array,
    slots: Array,
    *,
    k_scale: Array | None = None,
    v_scale: Array | None = None,
) -> None:
    """Stores new keys and values in a paged cache, in place: token t at slot slots[t] = block * block_size + offset.

    k, v: (total, Hkv, D) and (total, Hkv, Dv) floats.
    k_cache, v_cache: (blocks, block_size, Hkv, D) and (blocks, block_size, Hkv, Dv), of one dtype, float32, float16,
        bfloat16 or int8, to which k and v are rounded.
    slots: (total,) integers; a negative one means that the token is not stored. Of tokens with the same slot the last
        one stays.
    k_scale, v_scale: float32 (blocks, block_size, Hkv), written to beside int8 caches, which are symmetric with a scale
        for each token and head, max|x| / 127, and x / scale to the nearest even integer; a row that is not finite gets
        the scale NaN. None: of other caches.

    TypeError: dtypes, or a cache whose memory cannot be written to in place. ValueError: shapes, or a slot beyond the
    cache. Nothing is written then.
    """
    if not _cpu.paged_write(k, v, k_cache, v_cache, slots, k_scale, v_scale):
        reference.paged_write(k, v, k_cache, v_cache, slots, k_scale=k_scale, v_scale=v_scale)


def additive_shapes(
    q: Array, k: Array, v: Array, w_q: Array, w_k: Array, w_v: Array, mask: Array | None, kv_lengths: Array | None
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Of `additive_attention`, wherever its arrays are: the leading dimensions, the shapes of the result and of the
    scores; ValueError and TypeError as there. kv_lengths are looked at in host memory alone."""
    op = "additive_attention"
    arrays = {"q": q, "k": k, "v": v, "w_q": w_q, "w_k": w_k, "w_v": w_v}
    for name in ("q", "k", "v"):
        if arrays[name].ndim < 2:
            raise ValueError(f"{op}: {name} must be (..., tokens, width), got shape {arrays[name].shape}")
    width = w_q.shape[0] if w_q.ndim else 0
    for name, shape in (("w_q", (width, q.shape[-1])), ("w_k", (width, k.shape[-1]))):
        if arrays[name].shape != shape:
            raise ValueError(f"{op}: {name} must be {shape}, got {arrays[name].shape}")
    if w_v.shape not in ((width,), (1, width)):
        raise ValueError(f"{op}: w_v must be {(width,)} or {(1, width)}, got {w_v.shape}")
    if v.shape[-2] != k.shape[-2]:
        raise ValueError(f"{op}: v has {v.shape[-2]} keys, k has {k.shape[-2]}")
    try:
        lead = np.broadcast_shapes(q.shape[:-2], k.shape[:-2], v.shape[:-2])
    except ValueError:
        shapes = f"q {q.shape}, k {k.shape} and v {v.shape}"
        raise ValueError(f"{op}: leading dimensions of {shapes} do not broadcast") from None
    s, t = q.shape[-2], k.shape[-2]
    scores = (*lead, s, t)
    if mask is not None:
        if mask.dtype != np.bool_:
            raise TypeError(f"{op}: mask must be a bool array (True: attend), got {mask.dtype}")
        if not _broadcasts(mask.shape, scores):
            raise ValueError(f"{op}: mask of shape {mask.shape} does not broadcast to {scores}")
    if kv_lengths is not None:
        if kv_lengths.dtype.kind not in "iu":
            raise TypeError(f"{op}: kv_lengths must hold integers, got {kv_lengths.dtype}")
        if not _broadcasts(kv_lengths.shape, lead):
            raise ValueError(f"{op}: kv_lengths of shape {kv_lengths.shape} does not broadcast to {lead}")
        if isinstance(kv_lengths, np.ndarray) and np.any((kv_lengths < 0) | (kv_lengths > t)):
            raise ValueError(f"{op}: kv_lengths must lie in 0 to {t}")
    return lead, (*lead, s, v.shape[-1]), scores


def _broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    return len(shape) <= len(to) and all(a in (1, b) for a, b in zip(reversed(shape), reversed(to), strict=False))


@accepts_arrays("q", "k", "v", "w_q", "w_k", "w_v", "mask", "kv_lengths")
def additive_attention(
    q: Array,
    k: Array,
    v: Array,
    w_q: Array,
    w_k: Array,
    w_v: Array,
    *,
    mask: Array | None = None,
    kv_lengths: Array | None = None,
    return_weights: bool = False,
) -> Any:
    """softmax(score) v with score[i, j] = w_v . tanh(W_q q_i + W_k k_j) (Bahdanau et al. 2015).

    q, k, v: (..., S, Dq), (..., T, Dk) and (..., T, Dv) floats, whose leading dimensions broadcast.
    w_q, w_k, w_v: (A, Dq), (A, Dk), and (A,) or (1, A).
    mask: bool, True where attention is allowed, broadcasts to (..., S, T); None: everywhere.
    kv_lengths: integers that broadcast to the leading dimensions; None: T.
    return_weights: whether the probabilities are returned too.

    Returns out (..., S, Dv), with return_weights (out, weights (..., S, T)), in v's dtype. A row without keys gives 0.
    No S x T matrix is held unless the weights are asked for.

    TypeError: dtypes. ValueError: shapes that do not fit, leading dimensions that do not broadcast, lengths beyond T.
    """
    op = "additive_attention"
    arrays = {"q": q, "k": k, "v": v, "w_q": w_q, "w_k": w_k, "w_v": w_v}
    _cpu.check_arrays(op, {name: arrays[name] for name in ("q", "k", "v")})
    for name in ("w_q", "w_k", "w_v"):
        if not (isinstance(arrays[name], np.ndarray) and arrays[name].dtype == np.float32):
            _cpu.check_arrays(op, {"q": q, name: arrays[name]})
    if any(x.dtype == np.float64 for x in arrays.values()):
        return reference.additive_attention(
            q, k, v, w_q, w_k, w_v, mask=mask, kv_lengths=kv_lengths, return_weights=return_weights
        )
    lead, shape, scores = additive_shapes(**arrays, mask=mask, kv_lengths=kv_lengths)
    s, width = q.shape[-2], w_q.shape[0]
    if mask is not None:
        mask = np.broadcast_to(mask, scores)
    if kv_lengths is not None:
        kv_lengths = np.broadcast_to(kv_lengths, lead)
    if 0 in lead or s == 0:
        empty = np.zeros(shape, v.dtype)
        return (empty, np.zeros(scores, v.dtype)) if return_weights else empty
    query, key = (
        linear(x.astype(np.float32, copy=False), w.astype(np.float32, copy=False)) for x, w in ((q, w_q), (k, w_k))
    )
    operands = [np.broadcast_to(x, (*lead, *x.shape[-2:])) for x in (query, key, v)]
    w_v = w_v.reshape(width)

    def one(index: tuple[int, ...]) -> Any:
        """The leading dimensions but the last are a loop: merging broadcast ones would copy them."""
        a, b, c = (x[index] if lead else x[None] for x in operands)
        allowed = None if mask is None else mask[index] if lead else mask[None]
        lengths = None if kv_lengths is None else np.atleast_1d(kv_lengths[index])
        return _cpu.additive_attention(a, b, w_v, c, allowed, lengths, return_weights)

    parts = [one(index) for index in np.ndindex(lead[:-1])]
    if return_weights:
        return tuple(
            np.stack(p).reshape(full) for p, full in zip(zip(*parts, strict=True), (shape, scores), strict=True)
        )
    return parts[0].reshape(shape) if len(parts) == 1 else np.stack(parts).reshape(shape)
