"""Every op in plain NumPy: the specification that the kernels are tested against, and what serves float64.

Each function takes the arguments of its twin in qkv.ops, computes in float64 from the formula in its
docstring, and rounds once at the end: to float64 if any floating argument is float64, else to the dtype of
its first argument. It is written to be read. Attention holds the whole S x T matrix here.

What all ops share: floating arguments are float16, bfloat16, float32 or float64, and the main ones (q, k and
v; a and b; x, gate and residual) share a dtype unless one is float64 (else TypeError). Lists and Python
floats become float64. NaN and infinity go where the formula takes them. Results are new, C-contiguous arrays.

Letters: B batch, S query length, T key length, H heads, Hkv key heads, D head width, Dv value width, C model
width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from .positions import Scaling, rotary_angles, rotary_width
from .reference_attention import (
    additive_attention,
    attention,
    attention_varlen,
    flash_attn_func,
    flash_attn_varlen_func,
    scaled_dot_product_attention,
)
from .reference_cache import attention_paged, flash_attn_with_kvcache, paged_write
from .reference_rules import (
    Array,
    ArrayLike,
    broadcast,
    deliver,
    integer,
    integers,
    one_of,
    quiet,
    require,
    rounded,
    row_vectors,
    widen,
)
from .special import erfc

__all__ = [
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
    "scaled_dot_product_attention",
    "silu",
    "sinusoidal_positions",
    "softmax",
    "tanh",
]


# ---- matrices --------------------------------------------------------------------------------------------


class PackedWeight:
    """What `pack_weight` returns: the stored values of a weight (out, in) and what scales them.

    values float64 (out, in), integral in the integer types; scale and offset float64, broadcastable to the groups
    (out, groups) of group_size values each.
    """

    def __init__(self, dtype: str, group_size: int | None, values: Array, scale: Array, offset: Array) -> None:
        self.dtype = dtype
        self.group_size = group_size
        self.values, self.scale, self.offset = values, scale, offset

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    @property
    def nbytes(self) -> int:
        return int(self.values.size * {"float32": 4, "bfloat16": 2, "int8": 1, "int4": 0.5}[self.dtype])

    def wide(self) -> Array:
        """scale * value + offset in float64, (out, in)."""
        size = self.group_size or max(self.shape[1], 1)
        scale, offset = (np.repeat(x, size, axis=1)[:, : self.shape[1]] for x in (self.scale, self.offset))
        wide: Array = self.values * scale + offset
        return wide

    def dequantize(self) -> Array:
        """The weight as a float32 array (out, in)."""
        return rounded(self.wide(), np.dtype(np.float32))


FLOAT32 = np.dtype(np.float32)


def _to_bfloat16(wide: Array) -> Array:
    """Rounded to bfloat16, as float64."""
    import ml_dtypes  # here, so that importing qkv does not pay for it

    return rounded(wide, np.dtype(ml_dtypes.bfloat16)).astype(np.float64)


def _steps(x: Array, top: Array, levels: int) -> tuple[Array, Array]:
    """(round(x levels / top), top / levels) for float32 x; rounds to even, and is 0 where top is.

    The products are float32's, after a power of two that keeps them in range, the quotients float64's. top
    broadcasts to x."""
    top = top.astype(np.float64)
    power = np.where(top < 2.0**-60, 2.0**64, np.where(top > 2.0**60, 2.0**-64, 1.0))
    inverse = np.where(top > 0, levels / np.where(top > 0, top * power, 1), 0).astype(np.float32)
    return np.rint(x * power.astype(np.float32) * inverse).astype(np.float64), (top / levels).astype(np.float32)


def _groups(x: Array, size: int) -> Array:
    """(n, k) as (n, groups, size), padded with zeros."""
    n, k = x.shape
    return np.pad(x, ((0, 0), (0, -k % size))).reshape(n, -(-k // size), size)


@quiet
def pack_weight(w: ArrayLike, dtype: str = "float32", group_size: int | None = None) -> PackedWeight:
    """A weight (out, in) ready for `linear` and `embedding`, rounded to how it is stored.

    With every operation in float32 but for the quotients top / 127:
      int8 by row: q = round(w / t), t = max |w| / 127, see _steps
      int8 by group of 32: t = float16(max |w| / 127), q = round(w * (1 / t)) kept in -127 ... 127
      int4 by group of 32, 64 or 128: t = float16((max w - min w) / 15), o = float16(min w),
        q = round((w - o) * (1 / t)) kept in 0 ... 15
    Raises ValueError for another dtype or group size, and for what cannot be stored.
    """
    sizes = {"float32": (None,), "bfloat16": (None,), "int8": (None, 32), "int4": (32, 64, 128)}
    one_of("pack_weight", "dtype", dtype, tuple(sizes))
    group_size = 32 if dtype == "int4" and group_size is None else group_size
    require(group_size in sizes[dtype], f"pack_weight: group_size of {dtype} must be of {sizes[dtype]}")
    _, (wide,) = widen("pack_weight", 1, w=w)
    require(wide.ndim == 2, f"pack_weight: w must have 2 dimensions (out, in), got shape {wide.shape}")
    single = rounded(wide, FLOAT32)
    n, k = single.shape
    one, zero = np.ones((n, 1)), np.zeros((n, 1))
    if dtype in ("float32", "bfloat16"):
        stored = single.astype(np.float64) if dtype == "float32" else _to_bfloat16(wide)
        return PackedWeight(dtype, None, stored, one, zero)
    require(bool(np.isfinite(single).all()), f"pack_weight: w holds values that {dtype} cannot store")
    if group_size is None:
        q, scale = _steps(single, np.abs(single).max(axis=1, keepdims=True, initial=0), 127)
        return PackedWeight(dtype, None, q, scale.astype(np.float64), zero)
    parts = _groups(single, group_size)
    if dtype == "int8":
        offset = np.zeros(parts.shape[:2], np.float32)
        scale = (np.abs(parts).max(axis=2, initial=0) / np.float32(127)).astype(np.float16)
        low, high = -127, 127
    else:
        real = np.arange(parts.shape[1] * group_size).reshape(parts.shape[1:]) < k  # padding is not in the range
        offset = np.where(real, parts, np.float32(np.inf)).min(axis=2, initial=np.inf).astype(np.float16)
        top = np.where(real, parts, np.float32(-np.inf)).max(axis=2, initial=-np.inf)
        bottom = np.where(real, parts, np.float32(np.inf)).min(axis=2, initial=np.inf)
        scale = ((top - bottom) / np.float32(15)).astype(np.float16)
        low, high = 0, 15
    require(
        bool(np.isfinite(scale).all() and np.isfinite(offset).all()),
        f"pack_weight: w holds values that {dtype} cannot store: scales beyond float16",
    )
    step = scale.astype(np.float32)[..., None]
    inverse = np.where(step > 0, np.float32(1) / np.where(step > 0, step, np.float32(1)), np.float32(0))
    q = np.clip(np.rint((parts - offset.astype(np.float32)[..., None]) * inverse), low, high)
    values = q.astype(np.float64).reshape(n, parts.shape[1] * group_size)[:, :k]
    return PackedWeight(dtype, group_size, values, scale.astype(np.float64), offset.astype(np.float64))


@quiet
def rounded_rows(x: ArrayLike, dtype: str, group_size: int | None = None) -> Array:
    """What `linear` over a packed weight of this type multiplies in place of the float32 rows x (..., in); float64.

    bfloat16: x rounded to it. int8 by row: s (u - z), with u = round(x / s) + z kept in 0 ... 255,
    s = (max - min) / 255 and z = round(-min / s), where max and min are the row's or 0. By group: s round(x / s),
    s = max |x| / 127 over the group. A row of an integer type that is not finite is NaN. float32: x.
    """
    _, (wide,) = widen("rounded_rows", 1, x=x)
    exact: Array = wide
    if dtype == "float32":
        return exact
    if dtype == "bfloat16":
        return _to_bfloat16(wide)
    single = rounded(wide, FLOAT32).reshape(math.prod(wide.shape[:-1]), wide.shape[-1])
    finite = np.isfinite(single).all(axis=1, keepdims=True)
    single = np.where(finite, single, np.float32(0))
    if group_size is None:
        low = single.min(axis=1, keepdims=True, initial=0)
        top = single.max(axis=1, keepdims=True, initial=0).astype(np.float64) - low
        u, scale = _steps(single, top, 255)
        z = np.minimum(_steps(-low, top, 255)[0], 255)
        result = scale.astype(np.float64) * (np.clip(u + z, 0, 255) - z)
    else:
        parts = _groups(single, group_size)
        u, scale = _steps(parts, np.abs(parts).max(axis=2, keepdims=True, initial=0), 127)
        padded = parts.shape[1] * group_size
        result = (scale.astype(np.float64) * u).reshape(len(single), padded)[:, : single.shape[1]]
    return np.where(finite, result, np.nan).reshape(wide.shape)


def _unpacked(weight: Any) -> Any:
    """The array behind a PackedWeight, of this module or of the extension."""
    return weight.dequantize() if hasattr(weight, "dequantize") else weight


@quiet
def matmul(a: ArrayLike, b: ArrayLike) -> Array:
    """a b by NumPy's rules: (..., M, K) (..., K, N) -> (..., M, N).

    Batches broadcast, a 1-D operand's axis is summed over and gone, two of them give a 0-d array.
    """
    dtype, (a, b) = widen("matmul", 2, a=a, b=b)
    return rounded(np.matmul(a, b), dtype)


@quiet
def linear(
    x: ArrayLike,
    weight: Any,
    bias: ArrayLike | None = None,
    *,
    activation: str | None = None,
    gate: ArrayLike | None = None,
    residual: ArrayLike | None = None,
    out: Array | None = None,
) -> Array:
    """act(x W^T + bias) * gate + residual.

    x (..., in), weight (out, in) as an array or a PackedWeight, which counts as what it dequantises to, bias (out,);
    gate and residual broadcast to (..., out). What the kernels make of x first: `rounded_rows`.
    activation: gelu, gelu_tanh, relu, silu, quick_gelu or tanh. Raises ValueError for another one or a shape.
    """
    op = "linear"
    dtype, (x, gate, residual, w, bias) = widen(
        op, 3, x=x, gate=gate, residual=residual, weight=_unpacked(weight), bias=bias
    )
    require(x.ndim >= 1 and w.ndim == 2, f"{op}: weight must have 2 dimensions and x at least 1")
    require(x.shape[-1] == w.shape[1], f"{op}: x has width {x.shape[-1]}, weight takes {w.shape[1]}")
    shape = (*x.shape[:-1], w.shape[0])
    y = x @ w.T
    if bias is not None:
        row_vectors(op, len(w), bias=bias)
        y = y + bias
    if activation is not None:
        one_of(op, "activation", activation, tuple(_ACTIVATIONS))
        y = _ACTIVATIONS[activation](y)
    y = y if gate is None else y * broadcast(op, "gate", gate, shape)
    y = y if residual is None else y + broadcast(op, "residual", residual, shape)
    return deliver(op, y, dtype, out)


@quiet
def embedding(ids: ArrayLike, table: Any) -> Array:
    """table[ids], of shape ids.shape + (C,): ids of any integer dtype, table (V, C) array or PackedWeight.

    Raises ValueError for an id outside 0..V-1: a negative id does not count from the end.
    """
    rows = integers("embedding", "ids", ids)
    dtype, (wide,) = widen("embedding", 1, table=_unpacked(table))
    require(wide.ndim == 2, f"embedding: table must have 2 dimensions (V, C), got shape {wide.shape}")
    bad = rows[(rows < 0) | (rows >= len(wide))]
    require(bad.size == 0, f"embedding: id {bad.flat[0] if bad.size else ''} is outside 0..{len(wide) - 1}")
    return rounded(wide[rows], dtype)


# ---- rows: softmax and norms -----------------------------------------------------------------------------


@quiet
def softmax(x: ArrayLike, axis: int = -1) -> Array:
    """exp(x - m) / sum exp(x - m) along axis, m the maximum. A row of -inf, or one with +inf, is NaN."""
    dtype, (x,) = widen("softmax", 1, x=x)
    e = np.exp(x - x.max(axis, keepdims=True, initial=-np.inf))
    return rounded(e / e.sum(axis, keepdims=True), dtype)


@quiet
def log_softmax(x: ArrayLike, axis: int = -1) -> Array:
    """x - m - log sum exp(x - m) along axis, m the maximum."""
    dtype, (x,) = widen("log_softmax", 1, x=x)
    centred = x - x.max(axis, keepdims=True, initial=-np.inf)
    return rounded(centred - np.log(np.exp(centred).sum(axis, keepdims=True)), dtype)


@quiet
def layer_norm(
    x: ArrayLike,
    weight: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    eps: float = 1e-5,
    *,
    residual: ArrayLike | None = None,
) -> Any:
    """(x - mean) / sqrt(var + eps) * weight + bias over the last axis, var biased  (Ba et al. 2016).

    x (..., C), weight and bias (C,). With residual, of x's shape: returns (norm(x + residual), x + residual),
    the norm being that of the sum before it is rounded.
    """
    op = "layer_norm"
    dtype, (x, residual, weight, bias) = widen(op, 2, x=x, residual=residual, weight=weight, bias=bias)
    x = _row_input(op, x, residual, weight=weight, bias=bias)
    count = max(x.shape[-1], 1)
    centred = x - x.sum(-1, keepdims=True) / count
    y = centred / np.sqrt((centred**2).sum(-1, keepdims=True) / count + eps)
    y = y if weight is None else y * weight
    y = y if bias is None else y + bias
    return rounded(y, dtype) if residual is None else (rounded(y, dtype), rounded(x, dtype))


@quiet
def rms_norm(
    x: ArrayLike, weight: ArrayLike | None = None, eps: float = 1e-6, *, residual: ArrayLike | None = None
) -> Any:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis (Zhang, Sennrich 2019); else as `layer_norm`."""
    op = "rms_norm"
    dtype, (x, residual, weight) = widen(op, 2, x=x, residual=residual, weight=weight)
    x = _row_input(op, x, residual, weight=weight)
    y = x / np.sqrt((x**2).sum(-1, keepdims=True) / max(x.shape[-1], 1) + eps)
    y = y if weight is None else y * weight
    return rounded(y, dtype) if residual is None else (rounded(y, dtype), rounded(x, dtype))


def _row_input(op: str, x: Array, residual: Array | None, **vectors: Array | None) -> Array:
    """x + residual, after checking that the vectors are as wide as a row."""
    require(x.ndim >= 1, f"{op}: x must have at least 1 dimension")
    row_vectors(op, x.shape[-1], **vectors)
    if residual is None:
        return x
    require(residual.shape == x.shape, f"{op}: residual must have shape {x.shape}, got {residual.shape}")
    return x + residual


# ---- elements --------------------------------------------------------------------------------------------


def _sigmoid(x: Array) -> Array:
    y: Array = 1 / (1 + np.exp(-x))
    return y


def _gelu(x: Array) -> Array:
    """x/2 (1 + erf(x / sqrt 2)); erfc keeps the left tail accurate."""
    return x / 2 * erfc(-x / math.sqrt(2))


def _gelu_tanh(x: Array) -> Array:
    """x/2 (1 + tanh u), u = sqrt(2/pi) (x + 0.044715 x^3), as x sigmoid(2u), which does not cancel."""
    return x * _sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))


def _relu(x: Array) -> Array:
    return np.maximum(x, 0.0)


def _silu(x: Array) -> Array:
    return x * _sigmoid(x)


def _quick_gelu(x: Array) -> Array:
    return x * _sigmoid(1.702 * x)


_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "relu": _relu,
    "silu": _silu,
    "quick_gelu": _quick_gelu,
    "tanh": np.tanh,
}


def _elementwise(op: str, x: ArrayLike, function: Callable[[Array], Array]) -> Array:
    dtype, (x,) = widen(op, 1, x=x)
    return rounded(function(x), dtype)


@quiet
def gelu(x: ArrayLike, approximate: str = "none") -> Array:
    """x/2 (1 + erf(x/sqrt 2)), or with approximate="tanh" x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))).

    (Hendrycks and Gimpel 2016.) At -inf both are NaN, as in torch.
    """
    one_of("gelu", "approximate", approximate, ("none", "tanh"))
    return _elementwise("gelu", x, _gelu if approximate == "none" else _gelu_tanh)


@quiet
def relu(x: ArrayLike) -> Array:
    """max(x, 0); NaN stays NaN."""
    return _elementwise("relu", x, _relu)


@quiet
def silu(x: ArrayLike) -> Array:
    """x sigmoid(x)."""
    return _elementwise("silu", x, _silu)


@quiet
def quick_gelu(x: ArrayLike) -> Array:
    """x sigmoid(1.702 x)."""
    return _elementwise("quick_gelu", x, _quick_gelu)


@quiet
def tanh(x: ArrayLike) -> Array:
    """tanh(x)."""
    return _elementwise("tanh", x, np.tanh)


# ---- positions -------------------------------------------------------------------------------------------


@quiet
def rotary(
    x: ArrayLike,
    positions: ArrayLike,
    *,
    base: float = 10000.0,
    dim: int | None = None,
    interleaved: bool = False,
    scaling: Scaling | None = None,
    layout: str = "bhsd",
) -> Array:
    """Turns each pair (a, b) of features by an angle t = position * frequency  (Su et al. 2021):

        (a, b) -> (a cos t - b sin t, b cos t + a sin t)

    Pairs are features i and i + dim/2, or with interleaved=True 2i and 2i+1; those from dim on pass through.

    x (B, H, S, D) or, by layout, (B, S, H, D), with positions (S,) or (B, S); x (total, H, D) with positions
    (total,); x (S, D) with (S,). Positions with one axis fewer than x broadcast against x.shape[:-1].
    scaling: see `qkv.positions.rotary_frequencies`; cos and sin are multiplied by its attention factor.
    Angles are float32 products of float32 positions and frequencies, as models expect; for float64 x, exact.
    """
    dtype, (x,) = widen("rotary", 1, x=x)
    require(x.ndim in (2, 3, 4), f"rotary: x must have 2, 3 or 4 dimensions, got shape {x.shape}")
    dim = rotary_width(x.shape[-1], dim, scaling)
    precision = np.float64 if dtype == np.float64 else np.float32
    angles, factor = rotary_angles(x.shape, positions, dim, base=base, scaling=scaling, layout=layout, dtype=precision)
    angles = angles.astype(np.float64)  # broadcast against x.shape[:-1] + (dim/2,)
    cos, sin = factor * np.cos(angles), factor * np.sin(angles)
    half = dim // 2
    first, second = (slice(0, dim, 2), slice(1, dim, 2)) if interleaved else (slice(half), slice(half, dim))
    a, b = x[..., first], x[..., second]
    y = x.copy()
    y[..., first] = a * cos - b * sin
    y[..., second] = b * cos + a * sin
    return rounded(y, dtype)


def sinusoidal_positions(n: int, dim: int, *, interleaved: bool = True) -> Array:
    """float32 (n, dim): sin and cos of p * 10000^(-2i/dim), computed in float64 and rounded once.

    n: how many positions p there are, from 0. dim: columns; an odd number has one sine more.
    interleaved: whether columns are sin, cos, sin, cos, ... (Vaswani et al. 2017, section 3.5); otherwise all sines
        come before all cosines.

    TypeError: n or dim is no integer. ValueError: it is negative.
    """
    n, dim = integer("sinusoidal_positions", "n", n), integer("sinusoidal_positions", "dim", dim)
    require(n >= 0 and dim >= 0, f"sinusoidal_positions: n and dim must not be negative, got {n} and {dim}")
    half = (dim + 1) // 2
    angle = np.arange(n)[:, None] * 10000.0 ** (-2 * np.arange(half) / max(dim, 1))
    sines, cosines = (np.s_[:, 0::2], np.s_[:, 1::2]) if interleaved else (np.s_[:, :half], np.s_[:, half:])
    table = np.empty((n, dim))
    table[sines], table[cosines] = np.sin(angle), np.cos(angle[:, : dim - half])
    return table.astype(np.float32)


def alibi_slopes(heads: int) -> Array:
    """float32 (heads,), of each head what its scores fall by for each token of distance (Press, Smith, Lewis 2022).

    heads: how many, H. Where it is a power of two 2^(-8i/H), i = 1 ... H; otherwise, as in the authors' code, those of
    the next smaller power of two n, then every other one of 2n.

    TypeError: heads is no integer. ValueError: it is below 1.
    """
    heads = integer("alibi_slopes", "heads", heads)
    require(heads >= 1, f"alibi_slopes: heads must be at least 1, got {heads}")
    n = 1 << (heads.bit_length() - 1)

    def slopes(m: int) -> Array:
        return 2.0 ** (-8 * np.arange(1, m + 1) / m)

    return np.concatenate([slopes(n), slopes(2 * n)[0::2][: heads - n]]).astype(np.float32)
