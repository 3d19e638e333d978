"""Arrays on a GPU, streams and devices: what the ops of `qkv` take beside NumPy's arrays.

    x = qkv.cuda.array(numpy_array)          # to the device
    y = qkv.softmax(x)                       # stays there; nothing waits for it
    y.numpy()                                # back, once it is done

The ops also take CUDA tensors of torch, CuPy arrays and whatever else speaks DLPack, in the stream that is current in
that library, and give back what came in.

Nothing here waits for the device unless it says so. An op runs in the caller's stream: that of `stream()`, or torch's
or CuPy's current one for their arrays. Work in another stream that made an argument is waited for on the device.
With QKV_CUDA=emulated in the environment the kernels run on the CPU, in an emulator that checks every access (for tests
of the kernels, on builds that have it); QKV_CUDA=off hides the GPU.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any, TypeVar

import numpy as np

from ._cpu import PackedWeight as HostPackedWeight
from .arrays import as_numpy, on_gpu

__all__ = [
    "Array",
    "CudaError",
    "PackedWeight",
    "Recording",
    "Stream",
    "array",
    "compute_capability",
    "concatenate",
    "copy_into",
    "current_device",
    "current_stream",
    "device_count",
    "device_name",
    "driver_version",
    "empty",
    "from_dlpack",
    "is_available",
    "memory_info",
    "record",
    "runtime_version",
    "set_batch_invariant",
    "set_cache_limit",
    "set_device",
    "stream",
    "synchronize",
    "trim",
    "why_not",
    "zeros",
]

Result = TypeVar("Result")

_MISSING = "this build of qkv has no CUDA kernels: build it where nvcc is found"


def _load() -> tuple[ModuleType | None, str]:
    """The extension module that QKV_CUDA names, or why there is none."""
    wanted = os.environ.get("QKV_CUDA", "") or "on"
    if wanted not in ("on", "off", "emulated"):
        raise ValueError(f"QKV_CUDA must be 'on', 'off' or 'emulated', got {wanted!r}")
    if wanted == "off":
        return None, "QKV_CUDA=off hides the GPU"
    try:
        return importlib.import_module("._cuda_emulated" if wanted == "emulated" else "._cuda", __package__), ""
    except ModuleNotFoundError:
        if wanted == "emulated":
            return None, "this build of qkv has no CUDA emulator: build it with QKV_BUILD_CUDA_EMULATION=ON"
        return None, _MISSING
    except ImportError as error:
        return None, f"the extension module does not load: {error}"


_module, _reason = _load()


class _NoCudaError(RuntimeError):
    """What the CUDA runtime refused, in its words, or that there is none; `.code` is its number."""

    code = 0


_NoCudaError.__name__ = _NoCudaError.__qualname__ = "CudaError"
CudaError: type[RuntimeError] = _NoCudaError if _module is None else _module.CudaError


class _NoArray:
    """Arrays of a build without CUDA: there are none."""


Array: Any = _NoArray if _module is None else _module.Array
PackedWeight: Any = _NoArray if _module is None else _module.PackedWeight
Recording: Any = _NoArray if _module is None else _module.Recording


def module() -> Any:
    """The extension module; CudaError where there is none."""
    if _module is None:
        raise CudaError(f"qkv.cuda: {_reason}")
    return _module


# ---- devices ---------------------------------------------------------------------------------------


def is_available() -> bool:
    """Whether arrays can be put on a GPU: a build with CUDA, a driver that is new enough, and a device."""
    return why_not() == ""


def why_not() -> str:
    """What is missing where `is_available` is False, else nothing."""
    return _reason if _module is None else str(_module.why_not())


def is_emulated() -> bool:
    return _module is not None and bool(_module.emulated)


def device_count() -> int:
    """CUDA devices; CudaError says what is missing where there is no driver, too old a one, or no device."""
    return int(module().device_count())


def current_device() -> int:
    """Number of the device that this thread makes arrays on."""
    return int(module().current_device())


def set_device(device: int) -> None:
    """Makes this thread's arrays on a device from now on; ops run where their arrays are.

    device: a number from 0. CudaError: there is none."""
    module().set_device(device)


@contextlib.contextmanager
def on_device_number(device: int) -> Iterator[None]:
    """`set_device` for a while."""
    before = current_device()
    if device == before:
        yield
        return
    set_device(device)
    try:
        yield
    finally:
        set_device(before)


def device_name(device: int = 0) -> str:
    """Its name, such as "NVIDIA H100". device: a number from 0. CudaError: there is none."""
    return str(module().device_name(device))


def compute_capability(device: int = 0) -> tuple[int, int]:
    """Major and minor. device: a number from 0. CudaError: there is none."""
    both = int(module().compute_capability(device))
    return both // 10, both % 10


def driver_version() -> str:
    """The newest CUDA that the driver knows, as "12.8"."""
    return str(module().driver_version())


def runtime_version() -> str:
    """The CUDA that this build is made with."""
    return str(module().runtime_version())


def memory_info() -> dict[str, int]:
    """Bytes of the current device: used_bytes in qkv's arrays, cached_bytes that wait for reuse, free_bytes and
    total_bytes."""
    return dict(module().memory_info())


def set_cache_limit(nbytes: int) -> None:
    """Says how much freed memory of the current device is kept for reuse.

    nbytes: a number of bytes; at first a quarter of the device's. ValueError: it is negative."""
    if nbytes < 0:
        raise ValueError(f"set_cache_limit: nbytes must not be negative, got {nbytes}")
    module().set_cache_limit(nbytes)


def trim() -> None:
    """Gives the memory that waits for reuse back to the device, and the page-locked memory that uploads pass through
    (16 MiB at most) to the system."""
    module().trim()


def set_batch_invariant(on: bool) -> None:
    """Whether, on a GPU, a row's result must not depend, to the bit, on what else is in its batch; on a CPU it never
    does. Off at first: it costs speed where there are few rows. on: true or false. No error where there is no GPU."""
    if _module is not None:
        _module.set_batch_invariant(bool(on))


# ---- streams ---------------------------------------------------------------------------------------

_local = threading.local()


# Handles of streams that nobody holds any more, by device. They are used again and never destroyed: arrays that were
# made in a stream outlive its `Stream`, and their memory goes back in its order.
_idle_streams: dict[int, list[int]] = {}


class Stream:
    """A stream of the current device. `handle` is the cudaStream_t as an integer."""

    def __init__(self) -> None:
        self._module = module()
        self._idle = _idle_streams.setdefault(self._module.current_device(), [])
        try:
            self.handle: int = self._idle.pop()
        except IndexError:
            self.handle = self._module.create_stream()

    def synchronize(self) -> None:
        """Waits until all its work is done."""
        self._module.synchronize(self.handle)

    def __del__(self) -> None:
        if getattr(self, "handle", 0):
            self._idle.append(self.handle)


def current_stream() -> int:
    """The calling thread's: that of the innermost `stream`, else 0, the legacy default stream."""
    return getattr(_local, "stream", 0)


@contextlib.contextmanager
def stream(of: Stream | int) -> Iterator[None]:
    """Ops of this thread on qkv's own arrays run in that stream while the context lasts. of: a `Stream` or the integer
    of a cudaStream_t. TypeError, ValueError: neither."""
    before = current_stream()
    _local.stream = of.handle if isinstance(of, Stream) else int(of)
    try:
        yield
    finally:
        _local.stream = before


def synchronize() -> None:
    """Waits until the work of the current stream is done."""
    module().synchronize(current_stream())


# CuPy destroys a stream with its object; results whose memory goes back in its order may live on.
_cupy_streams: dict[int, Any] = {}


def stream_of(arrays: Sequence[Any]) -> int:
    """The stream that an op on these arguments runs in: torch's or CuPy's current one for their arrays."""
    for given in arrays:
        for base in type(given).__mro__:  # a user's subclass of torch.Tensor is torch's too
            library = base.__module__.partition(".")[0]
            if library == "torch":
                return int(sys.modules["torch"].cuda.current_stream(given.device).cuda_stream)
            if library == "cupy":
                current = sys.modules["cupy"].cuda.get_current_stream()
                return int(_cupy_streams.setdefault(int(current.ptr), current).ptr)
    return current_stream()


# ---- recordings --------------------------------------------------------------------------------------

# Streams that nothing but captures uses, by device: memory of other arrays must not go back in the order of one.
_capture_streams: dict[int, list[int]] = {}


def record(work: Callable[[], Result]) -> tuple[Result, Any]:
    """Runs a function once while the ops of this thread are recorded into a CUDA graph: what it returns, and the
    recording, whose replay() does the ops again over the same memory, as one call.

    work: the function, without arguments.

    Arrays that `work` reads are read again where they lie, and results overwritten, so what changes between two replays
    is changed in place. All that the ops allocate is kept by the recording, and by arrays that live in it. `work` takes
    qkv's own arrays on the device alone: a copy from or to the host, another stream or device, and arrays of other
    libraries are a CudaError. Python code in it is not repeated. RuntimeError if this thread records already.
    """
    home, device = current_stream(), module().current_device()
    idle = _capture_streams.setdefault(device, [])
    try:
        captures = idle.pop()
    except IndexError:
        captures = module().create_stream(captures=True)

    def captured() -> Result:
        with stream(captures):
            return work()

    try:
        result, recording = module().record(captured, captures, home)
    finally:
        idle.append(captures)
    return result, recording


def _replay(self: Any, stream: Stream | int | None = None) -> None:
    """The recorded ops once more, in that stream (the current one). Nothing is waited for on the host."""
    self._replay(current_stream() if stream is None else stream.handle if isinstance(stream, Stream) else int(stream))


# ---- arrays ----------------------------------------------------------------------------------------


def array(x: Any) -> Any:
    """A copy on the current device.

    x: what NumPy makes an array of, or a `qkv.PackedWeight`; it may be changed or freed at once. What `qkv.cuda` has on
    a device already is returned as it is. TypeError: no array, or another library's on a GPU. CudaError: no GPU, or not
    enough memory."""
    if isinstance(x, HostPackedWeight):
        return _packed(x)
    if isinstance(x, (Array, PackedWeight)):
        return x
    if on_gpu(x):
        raise TypeError("array: x is in a GPU's memory already; qkv.cuda.from_dlpack takes it as it is")
    return module().array(as_numpy("array", "x", x), current_stream())


def _packed(weight: HostPackedWeight) -> Any:
    dtype, group, width, values, scale, offset = weight.parts()
    if dtype == "bfloat16":
        import ml_dtypes

        values = values.view(ml_dtypes.bfloat16)
    if dtype == "int4":  # two a byte, the first in the lower half
        values = np.stack([values & 15, values >> 4], -1).reshape(len(values), 2 * values.shape[1])[:, :width]
    return module().weight_from_parts(
        dtype, group, width, np.ascontiguousarray(values), scale, offset, current_stream()
    )


def _parts(self: Any) -> tuple[Any, ...]:
    """`qkv.PackedWeight.parts` of it: the canonical form that files hold, in host memory. Waits for it."""
    dtype, group, width, values, scale, offset = self._parts(current_stream())
    if dtype == "bfloat16":
        values = values.view(np.uint16)
    if dtype == "int4":
        even = np.pad(values, ((0, 0), (0, width % 2)))
        values = even[:, ::2] | even[:, 1::2] << 4
    return dtype, group, width, values, scale, offset


def empty(shape: int | Sequence[int], dtype: Any = np.float32) -> Any:
    """An uninitialised array on the current device. shape: an integer or several; dtype: what NumPy takes. CudaError:
    no GPU, or not enough memory."""
    return _room(shape, dtype, "empty")


def zeros(shape: int | Sequence[int], dtype: Any = np.float32) -> Any:
    """An array of zeros on the current device. shape, dtype, CudaError: as of `empty`."""
    made = _room(shape, dtype, "zeros")
    made.fill(0)
    return made


def _room(shape: int | Sequence[int], dtype: Any, purpose: str) -> Any:
    """purpose: who asks, in words for errors."""
    shape = (shape,) if isinstance(shape, (int, np.integer)) else tuple(shape)
    return module().empty(shape, np.dtype(dtype), current_stream(), purpose)


def copy_into(target: Any, source: Any) -> None:
    """target[...] = source, in place.

    target: a device array of any strides. source: a device array of its shape and dtype, or an array in host memory of
    its shape and a dtype that NumPy converts to its own ("same_kind"), which may be changed or freed at once.
    TypeError: other kinds or dtypes. ValueError: another shape."""
    if not isinstance(target, Array):
        raise TypeError(f"copy_into: target must be a qkv.cuda.Array, got {type(target).__name__}")
    if isinstance(source, Array):
        module().copy_into(target, source, current_stream())
        return
    if on_gpu(source):
        raise TypeError("copy_into: source is another library's; qkv.cuda.from_dlpack takes it as it is")
    given = as_numpy("copy_into", "source", source)
    if given.dtype != target.dtype and not np.can_cast(given.dtype, target.dtype, "same_kind"):
        raise TypeError(f"copy_into: source must be {target.dtype}, got {given.dtype}")
    module().upload_into(target, given.astype(target.dtype, copy=False), current_stream())


def concatenate(arrays: Sequence[Any], axis: int = 0) -> Any:
    """A contiguous copy of arrays, one after the other.

    arrays: on the device, of one dtype. axis: along which they are joined; along the others they are alike.
    TypeError: others, or several dtypes. ValueError: other shapes, or no such axis."""
    for given in arrays:
        if not isinstance(given, Array):
            raise TypeError(f"concatenate: arrays must be of qkv.cuda, got {type(given).__name__}")
    return module().concatenate(list(arrays), axis, current_stream())


def on_device(given: Any) -> bool:
    """Whether this is an array (or a packed weight) in a GPU's memory."""
    return on_gpu(given)


_SHARED = (2, 3, 13)  # kDLCUDA, kDLCUDAHost, kDLCUDAManaged


def from_dlpack(x: Any, stream: int | None = None) -> Any:
    """Another library's array in place.

    x: any object that speaks DLPack on a GPU. stream: an integer, the stream it can be used in; None: the current one.
    TypeError: x does not, or lies in host memory. CudaError: no GPU, or this thread records."""
    if isinstance(x, Array):
        return x
    here = current_stream() if stream is None else stream
    if not hasattr(x, "__dlpack_device__"):
        raise TypeError(f"from_dlpack: x must speak DLPack, got {type(x).__name__}")
    if int(x.__dlpack_device__()[0]) not in _SHARED:
        raise TypeError("from_dlpack: x is in host memory; qkv.cuda.array copies it to the device")
    if missing := why_not():
        raise CudaError(missing)
    if module().is_recording():
        raise CudaError("from_dlpack: this thread records, and takes qkv's own arrays only; make them before")
    return module().from_dlpack(x.__dlpack__(stream=here or 1), here)


def _numpy(self: Any) -> Any:
    """A copy in host memory, once the array's contents are made: waits for them."""
    return self._numpy(current_stream())


def _astype(self: Any, dtype: Any) -> Any:
    """Converted from float64 or one of these to float32, float16 or bfloat16, rounded to nearest even; a contiguous
    copy."""
    return self._astype(np.dtype(dtype), current_stream())


def _copy(self: Any) -> Any:
    """A contiguous copy, of any dtype."""
    return self._astype(self.dtype, current_stream())


def _reshape(self: Any, *shape: Any) -> Any:
    """A view of another shape; ValueError unless the array is contiguous."""
    return self._reshaped(tuple(shape[0]) if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape)


def _transpose(self: Any, *axes: Any) -> Any:
    """The view with its axes in another order, by default in reverse."""
    if not axes:
        return self.T
    return self._transposed(tuple(axes[0]) if len(axes) == 1 and isinstance(axes[0], (tuple, list)) else axes)


def _fill(self: Any, value: Any) -> None:
    """Every element becomes `value`, rounded to the array's dtype."""
    module().fill(self, np.asarray(value).astype(self.dtype).reshape(()), current_stream())


def _dequantize(self: Any) -> Any:
    """The matrix as an array (out, in)."""
    return self._dequantize(current_stream())


if _module is not None:
    Array.__module__ = PackedWeight.__module__ = Recording.__module__ = "qkv.cuda"
    for _name, _method in [
        ("numpy", _numpy), ("astype", _astype), ("copy", _copy), ("fill", _fill), ("reshape", _reshape),
        ("transpose", _transpose),
    ]:  # fmt: skip
        setattr(Array, _name, _method)
    PackedWeight.dequantize = _dequantize
    PackedWeight.parts = _parts
    Recording.replay = _replay
