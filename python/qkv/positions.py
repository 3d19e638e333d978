"""Rotary position frequencies, and the angles that the rotary op turns by.

    inv_freq[i] = base^(-2i/dim),  0 <= i < dim/2        (Su et al. 2021, RoFormer, section 3.2.2)
    angle[p, i] = p * inv_freq[i]

A checkpoint that was stretched to longer texts says how in its `rope_scaling` dictionary; each type below is
one function from the plain frequencies to the stretched ones.

Everything that multiplies a position is float32 on purpose. Published models were trained and are served with
float32 frequencies and float32 angles; at position 100000 an exact angle differs from theirs by 1e-3 and
more. Only float64 data is turned by exact angles (`dtype`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Scaling = Mapping[str, Any]

# Types whose frequencies depend on how long the sequence is.
LENGTH_DEPENDENT = ("dynamic", "longrope")


def rotary_frequencies(
    dim: int,
    base: float = 10000.0,
    scaling: Scaling | None = None,
    length: int | None = None,
    dtype: npt.DTypeLike = np.float32,
) -> tuple[Array, float]:
    """Frequencies of a rotary embedding of width `dim`, and the factor that its cos and sin are multiplied
    by.

    scaling is the `rope_scaling` (or `rope_parameters`) dictionary of a Hugging Face config: `rope_type` (or
    `type`) is default, linear, dynamic, llama3, yarn or longrope. The types that need the trained length look
    for `original_max_position_embeddings` and `max_position_embeddings` in the same dictionary; configs keep
    these at top level, so a loader copies them in. length is the longest position + 1: only dynamic and
    longrope read it, and without it they answer for the trained length. dtype: in which the powers of base are
    rounded, float32 as published models do or float64.

    Returns (inv_freq float64 (dim/2,), attention_factor). Raises ValueError for an odd dim, an unknown type,
    a key that is missing or that changes the rotation in a way not implemented.
    """
    if dim <= 0 or dim % 2:
        raise ValueError(f"rotary: dim must be even and positive, got {dim}")
    if not (math.isfinite(base) and base > 0):
        raise ValueError(f"rotary: base must be positive and finite, got {base}")
    scaling = {} if scaling is None else scaling
    kind = rope_type(scaling)
    if kind not in _TYPES:
        raise ValueError(f"rotary: unknown rope type {kind!r}; known: {', '.join(_TYPES)}")
    if "mrope_section" in scaling:
        raise ValueError("rotary: scaling key 'mrope_section' is not supported")
    theta = scaling.get("rope_theta")
    if theta is not None and float(theta) != float(base):
        raise ValueError(f"rotary: scaling says rope_theta {theta}, but base is {base}; pass base={theta}")
    return _TYPES[kind](dim, float(base), scaling, length, np.dtype(dtype))


def rope_type(scaling: Scaling | None) -> str:
    """The type that a scaling dictionary names (older files: key `type`); None and {} are 'default'."""
    scaling = scaling or {}
    return str(scaling.get("rope_type") or scaling.get("type") or "default")


def steady_length(scaling: Scaling | None) -> int | None:
    """Up to which length a sequence's frequencies are the same whatever its length; None: always."""
    kind = rope_type(scaling)
    if scaling is None or kind not in LENGTH_DEPENDENT:
        return None
    if kind == "longrope" and scaling.get("short_factor") == scaling.get("long_factor"):
        return None  # so do GGUF files of Llama 3.1 come
    return math.floor(_dynamic_length(scaling) if kind == "dynamic" else _trained_length(scaling))


def rotary_width(head_width: int, dim: int | None, scaling: Scaling | None = None) -> int:
    """How many leading features of a head turn: `dim`, else head_width * partial_rotary_factor (default 1).

    Raises ValueError unless the result is even, positive and at most head_width.
    """
    if dim is None:
        dim = int(head_width * float((scaling or {}).get("partial_rotary_factor") or 1.0))
    if not 0 < dim <= head_width or dim % 2:
        raise ValueError(f"rotary: dim must be even and between 2 and x's width {head_width}, got {dim}")
    return dim


def rotary_positions(shape: tuple[int, ...], positions: npt.ArrayLike, layout: str = "bhsd") -> Array:
    """Positions with axes added so that they broadcast against shape[:-1], the tokens and heads of x.

    shape (B, H, S, D) or, by layout, (B, S, H, D): positions (S,) or (B, S). (total, H, D): (total,). (S, D):
    (S,). Positions that already have len(shape) - 1 axes are taken as they are.
    Raises TypeError for positions that are not numbers, ValueError if they do not fit.
    """
    p = np.asarray(positions)
    if p.dtype.kind not in "iuf":
        raise TypeError(f"rotary: positions must be numbers, got dtype {p.dtype}")
    return p.reshape(rotary_shape(shape, p.shape, layout))


def rotary_shape(shape: tuple[int, ...], positions: tuple[int, ...], layout: str = "bhsd") -> tuple[int, ...]:
    """Shape of `rotary_positions` for x and positions of these shapes."""
    if layout not in ("bhsd", "bshd"):
        raise ValueError(f"rotary: layout must be 'bhsd' or 'bshd', got {layout!r}")
    if len(shape) not in (2, 3, 4):
        raise ValueError(f"rotary: x must have 2, 3 or 4 dimensions, got shape {shape}")
    misfit = f"rotary: positions of shape {positions} do not fit x of shape {shape} in layout {layout}"
    explicit = len(positions) == len(shape) - 1
    if explicit:
        wide = positions
    elif len(shape) == 4 and len(positions) in (1, 2):
        wide = (*positions[:-1], 1, positions[-1]) if layout == "bhsd" else (*positions, 1)
    elif len(shape) == 3 and len(positions) == 1:
        wide = (*positions, 1)
    else:
        raise ValueError(misfit)
    if not all(a in (1, b) for a, b in zip(wide[::-1], shape[-2::-1], strict=False)):
        raise ValueError(misfit)
    # Unless all axes are spelled out the tokens must match: one position must not silently serve them all.
    tokens = shape[1 if len(shape) == 4 and layout == "bshd" else -2] if len(shape) != 3 else shape[0]
    if (len(shape) == 2 or not explicit) and positions[-1] != tokens:
        raise ValueError(misfit)
    return wide


def rotary_angles(
    shape: tuple[int, ...],
    positions: npt.ArrayLike,
    dim: int,
    *,
    base: float = 10000.0,
    scaling: Scaling | None = None,
    layout: str = "bhsd",
    dtype: npt.DTypeLike = np.float32,
) -> tuple[Array, float]:
    """Angles, of dtype, that broadcast against shape[:-1] + (dim/2,), and the attention factor.

    Types that depend on the length decide it for each row of a batch (the first axis of a 4-D x) from that
    row's own positions, so that a result never depends on the other rows; a packed x (3-D) and a 2-D x count
    as one row.
    """
    p = rotary_positions(shape, positions, layout)
    kind = rope_type(scaling)
    per_row = len(shape) == 4 and p.ndim == 3 and p.shape[0] > 1 and kind in LENGTH_DEPENDENT
    rows = list(p) if per_row else [p]
    angles = []
    for row in rows:
        if kind in LENGTH_DEPENDENT and not np.isfinite(row).all():
            raise ValueError(f"rotary: positions must be finite for rope type {kind!r}, which depends on the length")
        length = math.floor(row.max()) + 1 if row.size and kind in LENGTH_DEPENDENT else None
        inv_freq, factor = rotary_frequencies(dim, base, scaling, length, dtype)
        angles.append(row.astype(dtype)[..., None] * inv_freq.astype(dtype))
    return (np.stack(angles) if per_row else angles[0]), factor


# ---- the types: (dim, base, scaling, length, dtype) -> (inv_freq, attention factor) -----------------------------


@functools.lru_cache(maxsize=64)
def _powers(dim: int, base: float, dtype: np.dtype[Any]) -> Array:
    """base^(2i/dim), rounded where a computation in dtype rounds: base, exponent and power."""
    exponent = (np.arange(0, dim, 2) / dim).astype(dtype)
    powers = (np.float64(dtype.type(base)) ** exponent.astype(np.float64)).astype(dtype)
    powers.flags.writeable = False  # it is shared
    return powers


def _default(dim: int, base: float, scaling: Scaling, length: int | None, dtype: np.dtype[Any]) -> tuple[Array, float]:
    return (dtype.type(1) / _powers(dim, base, dtype)).astype(np.float64), 1.0


def _linear(dim: int, base: float, scaling: Scaling, length: int | None, dtype: np.dtype[Any]) -> tuple[Array, float]:
    """Position interpolation (Chen et al. 2023): every position is divided by `factor`."""
    return _default(dim, base, scaling, length, dtype)[0] / _number(scaling, "factor"), 1.0


def _dynamic(dim: int, base: float, scaling: Scaling, length: int | None, dtype: np.dtype[Any]) -> tuple[Array, float]:
    """NTK-aware: the base grows with the length n, base (factor n/M - (factor - 1))^(d/(d-2)), and is plain
    up to M."""
    if dim == 2:
        raise ValueError("rotary: rope type 'dynamic' needs dim > 2")
    trained, factor = _dynamic_length(scaling), _number(scaling, "factor")
    n = max(length or 0, trained)
    return _default(dim, base * (factor * n / trained - (factor - 1)) ** (dim / (dim - 2)), scaling, length, dtype)


def _llama3(dim: int, base: float, scaling: Scaling, length: int | None, dtype: np.dtype[Any]) -> tuple[Array, float]:
    """Llama 3.1: long waves are slowed by `factor`, short ones kept, those between blended linearly in
    O/wavelength."""
    f = _default(dim, base, scaling, length, dtype)[0]
    factor, trained = _number(scaling, "factor"), _trained_length(scaling)
    low, high = _number(scaling, "low_freq_factor"), _number(scaling, "high_freq_factor")
    if not high > low:
        raise ValueError(f"rotary: high_freq_factor {high} must be greater than low_freq_factor {low}")
    turns = trained * f / (2 * math.pi)  # full turns within the trained length, O / wavelength
    keep = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return (1 - keep) * f / factor + keep * f, 1.0


def _yarn(dim: int, base: float, scaling: Scaling, length: int | None, dtype: np.dtype[Any]) -> tuple[Array, float]:
    """YaRN (Peng et al. 2023): a ramp over i between the dimensions that turn beta_fast and beta_slow
    times."""
    f = _default(dim, base, scaling, length, dtype)[0]
    trained, factor = _trained_length(scaling), _stretch(scaling)

    def dimension_that_turns(times: float) -> float:
        return dim * math.log(trained / (2 * math.pi * times)) / (2 * math.log(base))

    low = dimension_that_turns(float(scaling.get("beta_fast") or 32))
    high = dimension_that_turns(float(scaling.get("beta_slow") or 1))
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001
    ramp = np.clip((np.arange(dim // 2) - low) / (high - low), 0.0, 1.0)

    def g(m: float) -> float:
        return 0.1 * m * math.log(factor) + 1.0 if factor > 1 else 1.0

    attention = scaling.get("attention_factor")
    if attention is None:
        mscale, mscale_all = scaling.get("mscale"), scaling.get("mscale_all_dim")
        attention = g(float(mscale)) / g(float(mscale_all)) if mscale and mscale_all else g(1.0)
    return f / factor * ramp + f * (1 - ramp), float(attention)


def _longrope(dim: int, base: float, scaling: Scaling, length: int | None, dtype: np.dtype[Any]) -> tuple[Array, float]:
    """LongRoPE (Ding et al. 2024): one searched divisor a dimension, a list for short and one for long
    texts."""
    trained = _trained_length(scaling)
    name = "long_factor" if (length or 0) > trained else "short_factor"
    divisors = np.asarray(scaling.get(name, ()), dtype=np.float64)
    if divisors.shape != (dim // 2,):
        raise ValueError(f"rotary: {name} must hold {dim // 2} numbers, got shape {divisors.shape}")
    attention = scaling.get("attention_factor")
    if attention is None:
        s = _stretch(scaling)
        attention = math.sqrt(1 + math.log(s) / math.log(trained)) if s > 1 else 1.0
    return 1.0 / (divisors * _powers(dim, base, dtype)), float(attention)


_TYPES: dict[str, Callable[[int, float, Scaling, int | None, np.dtype[Any]], tuple[Array, float]]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
}


def _number(scaling: Scaling, *keys: str) -> float:
    """The first of these keys that is present, as a positive number."""
    for key in keys:
        if scaling.get(key) is not None:
            value = scaling[key]
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
                raise ValueError(f"rotary: scaling key {key!r} must be a positive number, got {value!r}")
            return float(value)
    raise ValueError(f"rotary: rope type {rope_type(scaling)!r} needs the scaling key {' or '.join(map(repr, keys))}")


def _dynamic_length(scaling: Scaling) -> float:
    return _number(scaling, "max_position_embeddings", "original_max_position_embeddings")


def _trained_length(scaling: Scaling) -> float:
    return _number(scaling, "original_max_position_embeddings", "max_position_embeddings")


def _stretch(scaling: Scaling) -> float:
    """`factor`, or by how much max_position_embeddings exceeds the trained length."""
    if scaling.get("factor") is not None:
        return _number(scaling, "factor")
    return _number(scaling, "max_position_embeddings") / _trained_length(scaling)
