"""What the op tests share: sizes, the tolerance, the loop over instruction sets, awkward arrays, subprocesses."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import qkv
from qkv import reference
from qkv.ops import _cpu

Array = np.ndarray[Any, np.dtype[Any]]

FLOAT32, FLOAT16, BFLOAT16 = np.dtype(np.float32), np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)
DTYPES = {"float32": FLOAT32, "float16": FLOAT16, "bfloat16": BFLOAT16}


def sizes(largest: int = 257) -> list[int]:
    """Sizes up to `largest`: small, odd, around vector widths, powers of two and their neighbours."""
    powers = {2**i + d for i in range(9) for d in (-1, 0, 1)} - {0}
    return sorted(n for n in powers | {1, 2, 3, 5, 7, 15, 16, 17, 31, 32, 33, 63, 64, 65, 97} if n <= largest)


def triples(seed: int) -> list[tuple[int, int, int]]:
    """Every size of `sizes()` once in each of three places."""
    rng = np.random.default_rng(seed)
    a, b, c = (rng.permutation(sizes()) for _ in range(3))
    return [(int(x), int(y), int(z)) for x, y, z in zip(a, b, c, strict=True)]


def eps(dtype: np.dtype[Any]) -> float:
    return float(ml_dtypes.finfo(dtype).eps)


def same_bits(a: Array, b: Array) -> bool:
    """Equal shape, dtype and bits, but for the payload of a NaN."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    bits = np.dtype(f"u{a.dtype.itemsize}")
    same = np.ascontiguousarray(a).reshape(-1).view(bits) == np.ascontiguousarray(b).reshape(-1).view(bits)
    if a.dtype in DTYPES.values() or a.dtype == np.float64:
        same |= (np.isnan(a) & np.isnan(b)).reshape(-1)
    return bool(same.all())


def assert_close(out: Array, ref: Array, naive: Array, what: str = "") -> None:
    """max|out - ref| <= 2 max|naive - ref| + 4 eps max|ref| over the whole array.

    `ref` is float64, `naive` the sequential computation in the dtype that `out` must have. Where `ref` is not
    finite, `out` must be the same infinity or NaN too.
    """
    what = f"{what} [{_cpu.current_isa()}]"
    assert isinstance(out, np.ndarray), f"{what}: got {type(out)}"
    assert out.dtype == naive.dtype, f"{what}: dtype {out.dtype}, expected {naive.dtype}"
    assert out.shape == ref.shape == naive.shape, f"{what}: shapes {out.shape} {ref.shape} {naive.shape}"
    assert out.flags.c_contiguous and out.flags.writeable, f"{what}: {out.flags}"
    assert ref.dtype == np.float64
    got, sequential = out.astype(np.float64), naive.astype(np.float64)
    finite = np.isfinite(ref)
    np.testing.assert_array_equal(got[~finite], ref[~finite], err_msg=f"{what}: NaN and infinities")
    if not finite.any():
        return
    assert np.isfinite(got[finite]).all(), f"{what}: {np.sum(~np.isfinite(got[finite]))} values are not finite"
    error = np.abs(got[finite] - ref[finite])
    bound = 2 * np.abs(sequential[finite] - ref[finite]).max() + 4 * eps(naive.dtype) * np.abs(ref[finite]).max()
    assert np.isfinite(bound), f"{what}: the yardstick overflows: choose other inputs"
    if error.max() > bound:
        where = np.argwhere(finite)[error.argmax()]
        at = tuple(int(i) for i in where)
        raise AssertionError(f"{what}: error {error.max():.3g} > {bound:.3g} at {at}: {got[at]} instead of {ref[at]}")


def wide(x: Any) -> Any:
    """Floating arrays as float64; everything else unchanged. Half-width floats and float32 widen exactly."""
    return x.astype(np.float64) if isinstance(x, np.ndarray) and x.dtype in DTYPES.values() else x


def oracle(op: str, *args: Any, **kwargs: Any) -> Any:
    """`qkv.reference`, all floating inputs widened to float64 first, so that it answers in float64."""
    with np.errstate(all="ignore"):
        return getattr(reference, op)(*map(wide, args), **{name: wide(value) for name, value in kwargs.items()})


@contextlib.contextmanager
def use_isa(name: str) -> Iterator[str]:
    if name == "cuda":  # on_device.py
        yield name
        return
    before = _cpu.current_isa()
    qkv.set_isa(name)
    try:
        yield name
    finally:
        qkv.set_isa(before)


def each_isa() -> Iterator[str]:
    """Every instruction set of this machine in turn; conftest.py restores the first one whatever happens."""
    for name in qkv.isas():
        with use_isa(name):
            yield name


def normal(rng: np.random.Generator, shape: tuple[int, ...] | int, dtype: Any = FLOAT32, scale: float = 1.0) -> Array:
    return (rng.standard_normal(shape) * scale).astype(dtype)


def residuals(rng: np.random.Generator, M: int, N: int) -> dict[str, Any]:
    """What `linear` may add to (M, N): of every shape that broadcasts, and backwards."""
    shapes = {"full": (M, N), "row": (N,), "one row": (1, N), "column": (M, 1), "number": ()}
    return {name: normal(rng, shape) for name, shape in shapes.items()} | {"backwards": normal(rng, (M, N))[::-1]}


def strided(x: Array) -> dict[str, Array]:
    """The same values in other memory orders, none of them C-contiguous if x is large enough."""
    views = {"fortran": np.asfortranarray(x)}
    if x.ndim:
        reverse = (slice(None, None, -1),) * x.ndim
        views["reversed"] = np.ascontiguousarray(x[reverse])[reverse]
        gaps = np.zeros((*x.shape[:-1], 2 * x.shape[-1]), x.dtype)
        gaps[..., ::2] = x
        views["every other"] = gaps[..., ::2]
        rows = np.zeros((*x.shape[:-1], x.shape[-1] + 3), x.dtype)
        rows[..., 1:-2] = x
        views["slice"] = rows[..., 1:-2]
    return views


def unaligned(x: Array) -> Array:
    """The same values at an address that is no multiple of the item size."""
    memory = np.empty(x.nbytes + 1, np.uint8)[1:]
    view = memory.view(x.dtype).reshape(x.shape) if x.size else x.copy()
    view[...] = x
    assert not x.size or view.flags.aligned is False
    return view


def under_sanitizer() -> bool:
    """Address sanitizer reserves terabytes, so tests of memory limits mean nothing under it."""
    return "asan" in os.environ.get("LD_PRELOAD", "")


def run_python(code: str, *, timeout: float = 120, **env: str) -> subprocess.CompletedProcess[str]:
    """Run `code` in a fresh interpreter, with `env` added to the environment."""
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
