"""Where a model's arrays are, in host memory or on a GPU, and what models do with them beside ops: rows picked out,
arrays put together, results handed to a user. Written once for both, so that one model code serves both.

In host memory activations are float32 NumPy arrays. On a GPU they are `qkv.cuda` arrays of the place's dtype.
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import ops
from .arrays import of_cuda, on_gpu

Array = Any  # a NumPy array, or qkv.cuda's


def _cuda() -> Any:
    """qkv.cuda, which is not loaded where nobody asks for a GPU."""
    from . import cuda

    return cuda


@dataclass(frozen=True)
class Place:
    """A device, and the dtype of activations there. number: of the GPU; None: host memory."""

    number: int | None = None
    activations: Any = np.float32

    @classmethod
    def named(cls, device: Any) -> Place:
        """Of "cpu", "cuda" (the calling thread's device) or "cuda:1"; a torch.device; or a number, -1 for the CPU.
        ValueError: another name, or no such device; CudaError: there is no CUDA, and why."""
        if hasattr(device, "__index__") and not isinstance(device, bool) and device >= -1:
            device = f"cuda:{operator.index(device)}" if device >= 0 else "cpu"
        if str(device) in ("cpu", "cpu:0"):
            return HOST
        name, colon, number = str(device).partition(":")
        if name != "cuda" or (colon and not number.isdecimal()):
            raise ValueError(f"device {device!r} is not available; use 'cpu', 'cuda' or 'cuda:' and a number")
        if missing := _cuda().why_not():
            raise _cuda().CudaError(f"device {device!r} is not available: {missing}")
        chosen = int(number) if number else _cuda().current_device()
        if chosen >= (count := _cuda().device_count()):
            there = "is 1 device" if count == 1 else f"are {count} devices"
            raise ValueError(f"device {device!r} is not available; there {there}")
        return cls(chosen)

    @classmethod
    def of(cls, x: Array) -> Place:
        """Where an array of activations is."""
        return HOST if in_host_memory(x) else cls(x.device, x.dtype)

    @property
    def name(self) -> str:
        return "cpu" if self.number is None else f"cuda:{self.number}"

    def current(self) -> contextlib.AbstractContextManager[None]:
        """Makes the device the calling thread's for a while."""
        return contextlib.nullcontext() if self.number is None else _cuda().on_device_number(self.number)

    def put(self, x: Any) -> Any:
        """x there: a NumPy array or a packed weight."""
        if self.number is None:
            return x
        with self.current():
            return _cuda().array(x)

    def activation(self, x: Array) -> Array:
        """A float array there, in the activations' dtype."""
        return x if self.number is None else converted(self.put(x), self.activations)

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Array:
        if self.number is None:
            return ops.empty(shape, dtype)
        with self.current():
            return _cuda().empty(shape, dtype)

    def zeros(self, shape: tuple[int, ...], dtype: Any, purpose: str = "zeros") -> Array:
        """purpose: who asks, in words for the error that memory is short."""
        if self.number is None:
            return np.zeros(shape, dtype)
        with self.current():
            made = _cuda().module().empty(shape, np.dtype(dtype), _cuda().current_stream(), purpose)
            made.fill(0)
        return made


HOST = Place()


def in_host_memory(x: Any) -> bool:
    return isinstance(x, np.ndarray)


def brought(x: Any) -> Any:
    """What a user hands in, in host memory if it is an array on a GPU, of any library; else as it is."""
    if not on_gpu(x):
        return x
    return _cuda().from_dlpack(x).numpy()


def host(x: Any) -> Any:
    """A result for the user or for NumPy: float32 in host memory. What is there already is returned as it is."""
    if not of_cuda(x):
        return x
    floats = x.dtype.kind == "f" or x.dtype.name == "bfloat16"
    return (converted(x, np.float32) if floats else x).numpy()


def converted(x: Any, dtype: Any) -> Any:
    """x in that dtype; x itself if it has it."""
    return x if x.dtype == dtype else x.astype(dtype)


def contiguous(x: Array) -> Array:
    if in_host_memory(x):
        return np.ascontiguousarray(x)
    return x if x.is_contiguous else x.copy()


def rows(ids: Array, table: Any, dtype: Any) -> Array:
    """table[ids], where the table is; on a GPU in that dtype."""
    if of_cuda(table):
        from .cuda_ops import rows as gathered

        return gathered(ids, table, dtype)
    return ops.embedding(ids, table)


def take(x: Array, places: Array) -> Array:
    """x[places] of an array (n, ...): integers, in host memory or where x is."""
    if in_host_memory(x):
        return x[places]
    flat = x if x.ndim == 2 else contiguous(x).reshape(x.shape[0], -1)
    return rows(places, flat, x.dtype).reshape(len(places), *x.shape[1:])


def concatenate(arrays: Sequence[Array], axis: int = 0) -> Array:
    return np.concatenate(arrays, axis) if in_host_memory(arrays[0]) else _cuda().concatenate(arrays, axis)


def write(target: Array, source: Array) -> None:
    """target[...] = source, of the same shape; the source may be in host memory."""
    if in_host_memory(target):
        target[...] = source
    else:
        _cuda().copy_into(target, source)


def strided(x: Array, shape: tuple[int, ...], strides: tuple[int, ...]) -> Array:
    """A view for reading from x's first element on; strides in elements."""
    if 0 in shape:
        return Place.of(x).empty(shape, x.dtype)
    if in_host_memory(x):
        return np.lib.stride_tricks.as_strided(x, shape, [s * x.itemsize for s in strides], writeable=False)
    return x._as_strided(shape, strides, 0)


class Copies:
    """What stays in host memory beside its twin on a GPU, which is made when it is first needed."""

    def __init__(self) -> None:
        self._made: dict[int, tuple[Array, Array]] = {}

    def near(self, x: Array, array: Array) -> Array:
        """The array where x is."""
        if in_host_memory(x) or not in_host_memory(array):
            return array
        if id(array) not in self._made:
            with _cuda().on_device_number(x.device):
                self._made[id(array)] = array, _cuda().array(array)
        return self._made[id(array)][1]
