"""The emulator behind qkv.cuda (QKV_CUDA=emulated): configure it, run ops on it, read its report."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import qkv


def drawn(*shape: int, dtype: Any = ml_dtypes.bfloat16) -> Any:
    """Normal numbers on the device."""
    return qkv.cuda.array(np.random.default_rng(1).standard_normal(shape).astype(dtype))


def packed(kind: str, n: int, k: int) -> Any:
    """A quantised weight (n, k) of normal numbers on the device."""
    weight = np.random.default_rng(1).standard_normal((n, k)).astype(np.float32)
    return qkv.cuda.array(qkv.pack_weight(weight, kind, group_size=32 if kind == "int4" else None))


def paged_arguments(heads: int, lengths: list[int], dtype: Any, size: int = 16, D: int = 128, q: Any = None) -> Any:
    """For attention_paged, all on the device: q (one each), tables, lengths, caches with two key heads, scales."""
    blocks = [-(-n // size) for n in lengths]
    tables = np.full((len(lengths), max(blocks)), -1, np.int32)
    order = np.random.default_rng(0).permutation(sum(blocks)).astype(np.int32)
    for b, n in enumerate(blocks):
        tables[b, :n], order = order[:n], order[n:]
    scales: dict[str, Any] = {}
    if dtype == np.int8:
        codes = np.random.default_rng(1).integers(-127, 128, (sum(blocks), size, 2, D)).astype(np.int8)
        caches = [qkv.cuda.array(codes) for _ in range(2)]
        scales = {name: drawn(sum(blocks), size, 2, dtype=np.float32) for name in ("k_scale", "v_scale")}
    else:
        caches = [drawn(sum(blocks), size, 2, D, dtype=dtype) for _ in range(2)]
    queries = drawn(len(lengths), heads, D, dtype=q or ml_dtypes.bfloat16)
    return queries, qkv.cuda.array(tables), qkv.cuda.array(np.array(lengths, np.int32)), caches, scales


def paged(
    heads: int, lengths: list[int], dtype: Any = ml_dtypes.bfloat16, size: int = 16, D: int = 128, **q: Any
) -> Any:
    queries, tables, there, caches, scales = paged_arguments(heads, lengths, dtype, size, D, **q)
    return qkv.attention_paged(queries, *caches, tables, there, **scales)


def on_path(path: str, call: Callable[[], Any]) -> Callable[[], Any]:
    """`call` by the kernels of that path, 'portable' or 'hopper'."""

    def run() -> Any:
        qkv.cuda.module().choose_path(path)
        try:
            return call()
        finally:
            qkv.cuda.module().choose_path("fastest")

    return run


_told = [os.environ.get("QKV_EMULATOR", "")]  # and by each `configured` that is open


@contextlib.contextmanager
def configured(options: str) -> Iterator[None]:
    """The emulator, if that is what runs, told this beside what QKV_EMULATOR says, for a while."""
    if not qkv.cuda.is_emulated():
        yield
        return
    _told.append(options)
    try:
        qkv.cuda.module().configure_emulator(",".join(_told))
        yield
    finally:
        _told.pop()
        qkv.cuda.module().configure_emulator(",".join(_told))


class Emulator:
    def __init__(self) -> None:
        self.library = ctypes.CDLL(qkv.cuda.module().__file__)

    def configure(self, text: str = "") -> None:
        assert self.library.qkv_emulator_configure(text.encode()) == 0, text

    def report(self) -> Any:
        buffer = ctypes.create_string_buffer(1 << 20)
        self.library.qkv_emulator_report(buffer, ctypes.c_size_t(len(buffer)))
        return json.loads(buffer.value)

    def run(self, call: Callable[[], Any], configuration: str) -> tuple[bytes | None, Any]:
        """What comes out, None for a fault, and the report."""
        self.configure(configuration)
        self.report()
        try:
            out = call().numpy().tobytes()
        except qkv.CudaError:
            out = None
        return out, self.report()


@pytest.fixture(scope="module")
def emulator() -> Iterator[Emulator]:
    it = Emulator()
    yield it
    it.configure(os.environ.get("QKV_EMULATOR", ""))
