"""What the reference ops share: which dtypes come in, how results are rounded, the checks and their words."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any, ParamSpec, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
ArrayLike: TypeAlias = Any  # whatever np.asarray takes; each op rebinds its arguments to the arrays
P = ParamSpec("P")
R = TypeVar("R")


def quiet(op: Callable[P, R]) -> Callable[P, R]:
    """NaN and infinity are legal values here: no floating-point warnings."""

    @functools.wraps(op)
    def silenced(*args: P.args, **kwargs: P.kwargs) -> R:
        with np.errstate(all="ignore"):
            return op(*args, **kwargs)

    return silenced


def require(condition: Any, message: str) -> None:
    if not condition:
        raise ValueError(message)


def integer(op: str, name: str, value: Any) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{op}: {name} must be an integer, got {type(value).__name__}")
    return operator.index(value)


def one_of(op: str, name: str, value: Any, allowed: tuple[Any, ...]) -> None:
    require(value in allowed, f"{op}: {name} must be one of {allowed}, got {value!r}")


def rank(op: str, ndim: int, **arrays: Array) -> None:
    for name, x in arrays.items():
        require(x.ndim == ndim, f"{op}: {name} must have {ndim} dimensions, got shape {x.shape}")


def rank_at_least(op: str, ndim: int, **arrays: Array) -> None:
    for name, x in arrays.items():
        require(x.ndim >= ndim, f"{op}: {name} must have at least {ndim} dimensions, got shape {x.shape}")


def row_vectors(op: str, width: int, **vectors: Array | None) -> None:
    for name, x in vectors.items():
        if x is not None:
            require(x.shape == (width,), f"{op}: {name} must have shape ({width},), got {x.shape}")


def widen(op: str, main: int, **arguments: Any) -> tuple[np.dtype[Any], list[Any]]:
    """The result dtype, and the arguments as float64 arrays (None stays None).

    The first argument must be given; the first `main` of them must share a dtype.
    """
    arrays = {name: None if x is None else np.asarray(x) for name, x in arguments.items()}
    for name, x in arrays.items():
        # bfloat16 comes from ml_dtypes, which need not be imported: its arrays carry the dtype and its casts.
        if x is not None and x.dtype.name not in ("float16", "bfloat16", "float32", "float64"):
            raise TypeError(f"{op}: {name} must be float16, bfloat16, float32 or float64, got {x.dtype}")
    given = {name: x.dtype for name, x in arrays.items() if x is not None}
    wide = [None if x is None else x.astype(np.float64) for x in arrays.values()]
    if any(dtype.name == "float64" for dtype in given.values()):
        return np.dtype(np.float64), wide
    first = next(iter(arrays))
    for name in list(arrays)[:main]:
        if name in given and given[name] != given[first]:
            raise TypeError(f"{op}: {name} is {given[name]}, but {first} is {given[first]}")
    return np.dtype(given[first].type), wide  # .type: native byte order


@quiet
def rounded(x: ArrayLike, dtype: np.dtype[Any]) -> Array:
    """x, float64, rounded once to dtype, to nearest even; a new C-contiguous array."""
    x = np.asarray(x)
    if dtype.name == "bfloat16":
        # The cast goes by way of float32, which would round twice. Rounding to odd there makes the first
        # rounding harmless (Boldo and Melquiond 2008): cut towards zero, set the last bit if that lost any.
        near = x.astype(np.float32)
        cut = np.where(np.abs(near) > np.abs(x), np.nextafter(near, np.float32(0)), near)
        x = (cut.view(np.uint32) | (cut != x)).astype(np.uint32).view(np.float32)
    return np.array(x, dtype=dtype, order="C")


def deliver(op: str, result: Array, dtype: np.dtype[Any], out: Array | None) -> Array:
    """The rounded result, written into `out` if the caller gave one."""
    if out is None:
        return rounded(result, dtype)
    if not isinstance(out, np.ndarray) or out.dtype != dtype:
        got = getattr(out, "dtype", type(out).__name__)
        raise TypeError(f"{op}: out must be an array of {dtype}, got {got}")
    require(out.shape == result.shape, f"{op}: out must have shape {result.shape}, got {out.shape}")
    out[...] = rounded(result, dtype)
    return out


def integers(op: str, name: str, x: ArrayLike) -> Array:
    a = np.asarray(x)
    if a.dtype.kind not in "iu":
        raise TypeError(f"{op}: {name} must be integers, got {a.dtype}")
    return a


def checked_mask(op: str, mask: ArrayLike, shape: tuple[int, ...]) -> Array:
    m = np.asarray(mask)
    if m.dtype != np.bool_:
        raise TypeError(f"{op}: mask must be bool (True: attend), got {m.dtype}")
    return broadcast(op, "mask", m, shape)


def broadcast(op: str, name: str, x: Array, shape: tuple[int, ...]) -> Array:
    try:
        return np.broadcast_to(x, shape)
    except ValueError:
        raise ValueError(f"{op}: {name} of shape {x.shape} does not broadcast to {shape}") from None
