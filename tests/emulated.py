"""The emulator behind qkv.cuda (QKV_CUDA=emulated): configure it, run ops on it, read its report."""

from __future__ import annotations

import ctypes
import json
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
    it.configure()
