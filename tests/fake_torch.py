"""As much of torch as `python -m bench cuda` times with, over qkv's own streams and arrays: for tests without a GPU.

    fake_torch.install()        # before bench is imported; then `import torch` gives this

A tensor is one of another library: it has DLPack, and its library a current stream that qkv's has nothing to do with.
A graph runs what it captures at once, and again in each replay; what is only allowed outside of a capture asks
`torch.cuda.capturing`."""

from __future__ import annotations

import contextlib
import sys
import time
import types
from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np
import qkv


class Tensor:
    device = "cuda:0"

    def __init__(self, array: Any) -> None:
        self.array = array
        self.shape = array.shape

    def __dlpack__(self, stream: int | None = None) -> Any:
        return self.array.__dlpack__(stream=stream)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.array.__dlpack_device__()  # type: ignore[no-any-return]

    def to(self, dtype: Any) -> Tensor:
        return Tensor(qkv.cuda.array(self.array.numpy().astype(dtype)))


class Stream:
    def __init__(self) -> None:
        self.own = qkv.cuda.Stream()
        self.cuda_stream = self.own.handle

    def synchronize(self) -> None:
        self.own.synchronize()


class Event:
    def __init__(self, enable_timing: bool) -> None:
        self.at = 0.0

    def record(self) -> None:
        cuda.synchronize()
        self.at = time.perf_counter()

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, end: Event) -> float:
        return 1e3 * (end.at - self.at)


class CUDAGraph:
    def __init__(self) -> None:
        self.replays = 0

    def replay(self) -> None:
        self.replays += 1


class Cuda(types.ModuleType):
    Stream, Event, CUDAGraph = Stream, Event, CUDAGraph
    capturing = False

    def __init__(self) -> None:
        super().__init__("torch.cuda")
        self.current = Stream()

    def is_available(self) -> bool:
        return True

    def current_stream(self, device: Any = None) -> Stream:
        return self.current

    def synchronize(self) -> None:
        self.current.synchronize()

    @contextlib.contextmanager
    def stream(self, of: Stream) -> Iterator[None]:
        before, self.current = self.current, of
        try:
            yield
        finally:
            self.current = before

    @contextlib.contextmanager
    def graph(self, graph: CUDAGraph, stream: Stream, capture_error_mode: str) -> Iterator[None]:
        with self.stream(stream):
            self.capturing = True
            try:
                yield
            finally:
                self.capturing = False


cuda = Cuda()


def randn(*shape: int, device: str, dtype: Any) -> Tensor:
    return Tensor(qkv.cuda.array(np.random.default_rng(0).standard_normal(shape).astype(dtype)))


def module(name: str, **names: Callable[..., Any] | Any) -> None:
    made = sys.modules[name] = types.ModuleType(name)
    made.__dict__.update(names)


def install() -> None:
    Tensor.__module__ = "torch"
    sys.modules["torch.cuda"] = cuda
    module("torch.nn.attention", SDPBackend=object())
    dtypes = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16, "float32": np.float32}
    module("torch", cuda=cuda, Tensor=Tensor, from_dlpack=Tensor, randn=randn, __version__="0", **dtypes)
