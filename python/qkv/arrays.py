"""Array arguments of any library become NumPy arrays, results become arrays of that library again.

NumPy arrays pass through. Objects that speak DLPack (torch, jax ... on the CPU) are viewed in place, bfloat16 included,
and results are handed back through their library's `from_dlpack`: no copy either way. Lists and numbers are what
numpy.asarray makes of them.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import numpy as np

from . import _cpu

P = ParamSpec("P")
R = TypeVar("R")

_CPU_DEVICE = 1  # kDLCPU
_GPUS = (2, 13)  # kDLCUDA, kDLCUDAManaged


def accepts_arrays(*names: str, in_place: tuple[str, ...] = ()) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorator: the named parameters of an op reach it as NumPy arrays (None and packed weights as they are).

    Those `in_place` are written to, so they must be arrays whose memory can be shared. The result takes the kind of the
    first argument that is no NumPy array; an `out` argument is returned itself.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        code = function.__code__
        parameters = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        every = (*names, *in_place)
        where = [(parameters.index(name), name) for name in every]
        op = function.__name__

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            for i, name in where:  # the common case: NumPy arrays only, and nothing to convert
                given = args[i] if i < len(args) else kwargs.get(name)
                if type(given) is not np.ndarray and given is not None and type(given) is not _cpu.PackedWeight:
                    break
            else:
                if "out" not in kwargs:
                    return function(*args, **kwargs)
            if any(on_gpu(args[i] if i < len(args) else kwargs.get(name)) for i, name in where):
                return _cuda_ops().call(function, every, args, kwargs)
            origin: Any = None
            values = list(args)
            out = kwargs.get("out")
            dtype: Any = None  # of the first floating-point array
            for i, name in where:
                given = values[i] if i < len(values) else kwargs.get(name)
                if type(given) is np.ndarray:
                    if dtype is None and given.dtype.kind in "fV":
                        dtype = given.dtype
                    continue
                if given is None or type(given) is _cpu.PackedWeight:
                    continue
                array = as_numpy(op, name, given, name in in_place or name == "out")
                if isinstance(given, (list, tuple, int, float)) and dtype is not None and array.dtype == np.float64:
                    array = array.astype(dtype)  # Python's numbers take the dtype of the arrays beside them
                elif dtype is None and array.dtype.kind in "fV":
                    dtype = array.dtype
                if origin is None and not isinstance(given, (np.ndarray, np.generic)):
                    origin = exporter(given)
                if i < len(values):
                    values[i] = array
                else:
                    kwargs[name] = array
            result: Any = function(*values, **kwargs)
            if origin is not None:
                result = _convert(result, origin)
            if out is None:
                return result
            return (out, *result[1:]) if isinstance(result, tuple) else out

        return call

    return decorate


@functools.cache
def _cuda_ops() -> Any:
    from . import cuda_ops

    return cuda_ops


def as_numpy(op: str, name: str, given: Any, in_place: bool = False) -> Any:
    """`given` as a NumPy array, in place where it can be; TypeError in the op's words for what is no array.

    in_place: it is written to, so nothing that NumPy would copy.
    """
    if isinstance(given, np.ndarray):
        if type(given).__name__ == "MaskedArray":
            raise TypeError(f"{op}: {name} is a masked array; its mask would be ignored")
        return np.asarray(given)
    if isinstance(given, (list, tuple, int, float, np.generic)) and not in_place:
        try:
            return np.asarray(given)
        except ValueError as error:
            raise ValueError(f"{op}: {name} is no rectangular array: {error}") from None
    if hasattr(given, "__dlpack__"):
        try:
            device = int(given.__dlpack_device__()[0])
            if device == _CPU_DEVICE:
                return _cpu.from_dlpack(given.__dlpack__())
        except (BufferError, RuntimeError, TypeError, ValueError) as error:  # torch: requires_grad, sparse, meta ...
            raise TypeError(f"{op}: {name} cannot be shared: {error}") from error
        raise TypeError(f"{op}: {name} lives on DLPack device type {device}; only the CPU (1) is supported")
    if not in_place and (hasattr(given, "__array__") or hasattr(given, "__array_interface__")):
        return np.asarray(given)
    raise TypeError(f"{op}: {name} must be an array, got {type(given).__name__}")


def of_cuda(given: Any) -> bool:
    """Whether it is an array or a packed weight of `qkv.cuda`, which is not loaded for the question."""
    return type(given).__module__ == "qkv.cuda"


def on_gpu(given: Any) -> bool:
    """Whether an argument is an array in a GPU's memory."""
    if of_cuda(given):
        return True
    if given is None or isinstance(given, (np.ndarray, np.generic, list, tuple, int, float, _cpu.PackedWeight)):
        return False
    if not hasattr(given, "__dlpack_device__"):
        return False
    try:
        return int(given.__dlpack_device__()[0]) in _GPUS
    except (BufferError, RuntimeError, TypeError, ValueError):  # torch: sparse, meta ...: as_numpy has the words for it
        return False


class _Exported:
    """A NumPy array under the DLPack protocol, for bfloat16 too (NumPy's own exporter refuses it)."""

    def __init__(self, array: np.ndarray[Any, Any]) -> None:
        self._array = array

    def __dlpack__(self, **_: Any) -> Any:
        return _cpu.to_dlpack(self._array)

    def __dlpack_device__(self) -> tuple[int, int]:
        return (_CPU_DEVICE, 0)


def exporter(given: Any) -> Callable[[Any], Any] | None:
    """from_dlpack of the library that `given` comes from, if it has one."""
    if not hasattr(given, "__dlpack__"):
        return None
    for base in type(given).__mro__:  # a user's subclass of torch.Tensor gives torch tensors
        library = sys.modules.get(base.__module__.partition(".")[0])
        from_dlpack = getattr(library, "from_dlpack", None)
        if from_dlpack is not None:
            return from_dlpack  # type: ignore[no-any-return]
    return None


def _convert(result: Any, from_dlpack: Callable[[Any], Any]) -> Any:
    if isinstance(result, (np.ndarray, np.generic)):
        return from_dlpack(_Exported(np.asarray(result)))
    if isinstance(result, (tuple, list)):
        return type(result)(_convert(item, from_dlpack) for item in result)
    return result
