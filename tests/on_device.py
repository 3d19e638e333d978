"""Runs the op tests on a GPU, or on its emulator: with QKV_TEST_DEVICE=cuda (and QKV_CUDA=emulated) the ops that tests
call with NumPy arrays take them to the device, memory order included, and bring the results back. conftest.py installs
it.

float64 stays with the CPU, which is what serves it. What no GPU op takes stays there too."""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import qkv

ENABLED = os.environ.get("QKV_TEST_DEVICE", "cpu") == "cuda"
OPS = (
    "attention", "attention_varlen", "gelu", "layer_norm", "linear", "log_softmax", "matmul", "quick_gelu", "relu",
    "rms_norm", "silu", "softmax", "tanh",
)  # fmt: skip
# Tests that stay out, and why.
OF_THE_CPU = {
    "test_parts_of_a_logarithm": "of an internal kernel of the CPU",
}
# As long as on a CPU without SIMD; on a GPU they run.
TOO_LONG_IN_EMULATION = {"test_long_sums_do_not_saturate"}


def to_device(x: Any) -> Any:
    """x on the device, in the same memory order, if a GPU has its type."""
    if isinstance(x, qkv.PackedWeight):
        return qkv.cuda.array(x)
    if type(x) is not np.ndarray or x.dtype.kind in "iu":
        return x
    if x.size == 0 or x.flags.c_contiguous or not x.flags.aligned or any(s % x.itemsize for s in x.strides):
        return qkv.cuda.array(x)
    low = high = 0
    for n, stride in zip(x.shape, x.strides, strict=True):
        low, high = low + min((n - 1) * stride, 0), high + max((n - 1) * stride, 0)
    start = x.__array_interface__["data"][0]
    memory = np.frombuffer(ctypes.string_at(start + low, high - low + x.itemsize), np.uint8).view(x.dtype)
    return qkv.cuda.array(memory)._as_strided(x.shape, [s // x.itemsize for s in x.strides], -low // x.itemsize)


def to_host(x: Any) -> Any:
    if isinstance(x, (tuple, list)):
        return type(x)(to_host(item) for item in x)
    return x.numpy() if isinstance(x, qkv.cuda.Array) else x


def on_device(op: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(op)
    def call(*args: Any, **kwargs: Any) -> Any:
        everything = [*args, *kwargs.values()]
        arrays = [x for x in everything if isinstance(x, np.ndarray)]
        served = all(type(x) is np.ndarray and x.dtype.isnative for x in arrays) and not any(
            x.dtype in (np.float64, np.complex64, np.complex128) for x in arrays
        )
        if any(isinstance(x, (qkv.cuda.Array, qkv.cuda.PackedWeight)) for x in everything):
            return op(*args, **kwargs)  # the test sees to it
        if not arrays or not served or not any(x.dtype.kind in "fV" for x in arrays):
            return op(*args, **kwargs)
        out = kwargs.get("out")
        if out is not None and not (isinstance(out, np.ndarray) and out.flags.writeable):
            return op(*args, **kwargs)
        moved = {id(x): to_device(x) for x in everything}
        result = to_host(op(*(moved[id(x)] for x in args), **{n: moved[id(x)] for n, x in kwargs.items()}))
        if out is None:
            return result[()] if op.__name__ == "matmul" and result.ndim == 0 else result  # a scalar, as NumPy has it
        out[...] = moved[id(out)].numpy()
        return (out, *result[1:]) if isinstance(result, tuple) else out

    return call


def install() -> None:
    for name in OPS:
        wrapped = on_device(getattr(qkv.ops, name))
        setattr(qkv, name, wrapped)
        setattr(qkv.ops, name, wrapped)
    qkv.isas = lambda: ["cuda"]


def skip_others(items: list[pytest.Item]) -> None:
    """What these tests are about has no twin on a GPU."""
    for item in items:
        name = getattr(item, "originalname", item.name)
        reason = OF_THE_CPU.get(name)
        if name in TOO_LONG_IN_EMULATION and qkv.cuda.is_emulated():
            reason = "takes too long in emulation"
        if reason:
            item.add_marker(pytest.mark.skip(reason=reason))
