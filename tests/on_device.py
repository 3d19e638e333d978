"""Runs the op tests on a GPU, or on its emulator: with QKV_TEST_DEVICE=cuda (and QKV_CUDA=emulated) the ops that tests
call with NumPy arrays take them to the device, memory order included, and bring the results back. conftest.py installs
it. QKV_TEST_PATH=hopper or portable says which of two kernels run, where the device has both.

float64 stays with the CPU, which is what serves it. What no GPU op takes stays there too."""

from __future__ import annotations

import ctypes
import functools
import inspect
import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import pytest
import qkv

ENABLED = os.environ.get("QKV_TEST_DEVICE", "cpu") == "cuda"
EMULATED = ENABLED and qkv.cuda.is_emulated()
Value = TypeVar("Value")
OPS = (
    "additive_attention", "angles", "attention", "attention_paged", "attention_varlen", "divided", "embedding",
    "flash_attn_func", "flash_attn_varlen_func", "flash_attn_with_kvcache", "gelu", "layer_norm", "linear",
    "log_softmax", "matmul", "paged_write", "quick_gelu", "relu", "rms_norm", "rotary", "scaled_dot_product_attention",
    "scaled_sum", "silu", "softmax", "tanh", "top_k",
)  # fmt: skip
# What they write into beside their results, and ops whose arrays of small integers are caches.
IN_PLACE = {
    "flash_attn_with_kvcache": ("k_cache", "v_cache"),
    "paged_write": ("k_cache", "v_cache", "k_scale", "v_scale"),
}
BYTES = {"attention_paged", "flash_attn_with_kvcache", "paged_write"}
# Tests that stay out, and why.
OF_THE_CPU = {
    "test_refuses_what_is_not_contiguous_float32": "a GPU takes any strides and float types",
    "test_parts_of_a_logarithm": "of an internal kernel of the CPU",
    "test_float32_alone": "a GPU takes all float types",
    "test_memory_is_linear_in_the_length": "of the host's memory",
    "test_the_specification_read_twice": "of float64, which the CPU serves",
}
# As long as on a CPU without SIMD; on a GPU they run.
TOO_LONG_IN_EMULATION = {"test_long_sums_do_not_saturate"}


def fewer(values: Sequence[Value], emulated: Sequence[Value]) -> Sequence[Value]:
    """values, or where the emulator runs these tests, and takes a thousand times as long, those that stand for them
    there: on both sides of every border between two of the kernels' ways."""
    return emulated if EMULATED else values


def to_device(x: Any, op: str = "") -> Any:
    """x on the device, in the same memory order, if a GPU has its type."""
    if isinstance(x, qkv.PackedWeight):
        return qkv.cuda.array(x)
    if type(x) is not np.ndarray:
        return x
    if x.dtype.kind not in "fVb" and not (op in BYTES and x.itemsize == 1 and x.ndim > 2):
        return x  # integers stay, but for a cache of them
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
        served = all(type(x) is np.ndarray and (x.dtype.isnative or x.dtype.kind in "iu") for x in arrays) and not any(
            x.dtype in (np.float64, np.complex64, np.complex128) for x in arrays
        )
        if any(isinstance(x, (qkv.cuda.Array, qkv.cuda.PackedWeight)) for x in everything):
            return op(*args, **kwargs)  # the test sees to it
        packed = any(isinstance(x, qkv.PackedWeight) for x in everything)
        if not arrays or not served or not (packed or any(x.dtype.kind in "fV" for x in arrays)):
            return op(*args, **kwargs)
        out = kwargs.get("out")
        if out is not None and not (isinstance(out, np.ndarray) and out.flags.writeable):
            return op(*args, **kwargs)
        written: list[Any] = []
        if names := IN_PLACE.get(op.__name__):
            given = inspect.signature(op).bind(*args, **kwargs).arguments
            written = [given[n] for n in names if given.get(n) is not None and given.get("k") is not None]
            if any(type(x) is not np.ndarray or not x.flags.writeable or not x.flags.aligned for x in written):
                return op(*args, **kwargs)
        moved = {id(x): to_device(x, op.__name__) for x in everything}
        result = to_host(op(*(moved[id(x)] for x in args), **{n: moved[id(x)] for n, x in kwargs.items()}))
        for x in written:
            x[...] = moved[id(x)].numpy()
        if out is None:
            return result[()] if op.__name__ == "matmul" and result.ndim == 0 else result  # a scalar, as NumPy has it
        out[...] = moved[id(out)].numpy()
        return (out, *result[1:]) if isinstance(result, tuple) else out

    return call


def copy_blocks_on_device(op: Callable[..., Any]) -> Callable[..., Any]:
    """copy_blocks takes its arrays as a list."""

    def call(arrays: list[Any], *args: Any) -> Any:
        if any(isinstance(x, qkv.cuda.Array) for x in arrays):
            return op(arrays, *args)
        moved = [to_device(x) if x.dtype.kind in "fV" else qkv.cuda.array(x) for x in arrays]
        op(moved, *args)
        for x, there in zip(arrays, moved, strict=True):
            x[...] = there.numpy()
        return None

    return call


def install() -> None:
    qkv.cuda.module().choose_path(os.environ.get("QKV_TEST_PATH", "fastest"))
    for name in OPS:
        module = qkv.ops if hasattr(qkv.ops, name) else qkv.compat
        wrapped = on_device(getattr(module, name))
        if hasattr(qkv, name):
            setattr(qkv, name, wrapped)
        setattr(module, name, wrapped)
    qkv.ops.copy_blocks = copy_blocks_on_device(qkv.ops.copy_blocks)
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
