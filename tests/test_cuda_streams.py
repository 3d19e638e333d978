"""Order between streams: with streams=late the emulator does a stream's work when somebody waits for it and no sooner,
so what lacks a wait reads what is not there yet, or memory that was given back. Runs with QKV_CUDA=emulated."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import qkv
from checks import same_bits
from emulated import Emulator, configured

pytestmark = pytest.mark.skipif(not qkv.cuda.is_emulated(), reason="QKV_CUDA=emulated runs this")


@pytest.fixture(autouse=True)
def _late_streams() -> Iterator[None]:
    with configured("check=1,streams=late"):
        yield


@pytest.fixture
def streams() -> tuple[Any, Any]:
    return qkv.cuda.Stream(), qkv.cuda.Stream()


def drawn(rng: np.random.Generator, *shape: int) -> Any:
    return rng.standard_normal(shape).astype(np.float32)


class Foreign:
    """An array of another library, handed over in `stream` whatever the consumer asks for (-1: without any wait)."""

    def __init__(self, array: Any, stream: int | None = None) -> None:
        self.array, self.stream = array, stream

    def __dlpack__(self, stream: int | None = None) -> Any:
        return self.array.__dlpack__(stream=self.stream or stream)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.array.__dlpack_device__()  # type: ignore[no-any-return]


def test_a_wait_that_is_missing_shows(streams: tuple[Any, Any], rng: np.random.Generator) -> None:
    with qkv.cuda.stream(streams[0]):
        x = qkv.cuda.array(drawn(rng, 3, 40))
    with pytest.raises(qkv.CudaError, match="which nobody has written"):
        qkv.softmax(qkv.cuda.from_dlpack(Foreign(x, -1))).numpy()


def test_reads_come_after_the_write(streams: tuple[Any, Any], rng: np.random.Generator) -> None:
    a, b = streams
    x = drawn(rng, 3, 40)
    with qkv.cuda.stream(a):
        there = qkv.cuda.array(x)
    with qkv.cuda.stream(b):
        y = qkv.relu(there)
    assert same_bits(qkv.relu(y).numpy(), np.maximum(x, 0))


def test_writes_come_after_the_reads(streams: tuple[Any, Any], rng: np.random.Generator) -> None:
    """Those in the stream that the memory was made in as well as those in others."""
    a, b = streams
    first, second, eye = drawn(rng, 4, 8), drawn(rng, 4, 8), qkv.cuda.array(np.eye(8, dtype=np.float32))
    with qkv.cuda.stream(a):
        x = qkv.cuda.array(np.zeros((4, 8), np.float32))
    for reader, writer in ((a, b), (b, a)):
        with qkv.cuda.stream(writer):
            qkv.linear(qkv.cuda.array(first), eye, out=x)
        with qkv.cuda.stream(reader):
            y = qkv.relu(x)
        with qkv.cuda.stream(writer):
            qkv.linear(qkv.cuda.array(second), eye, out=x)
        writer.synchronize()
        assert same_bits(y.numpy(), np.maximum(first, 0))
        assert same_bits(x.numpy(), second)


def test_memory_goes_back_after_the_last_read(streams: tuple[Any, Any], rng: np.random.Generator) -> None:
    a, b = streams
    x = drawn(rng, 3, 40)
    with qkv.cuda.stream(a):
        there = qkv.cuda.array(x)
    with qkv.cuda.stream(b):
        y = qkv.relu(there)
    del there
    gc.collect()
    a.synchronize()
    assert same_bits(y.numpy(), np.maximum(x, 0))


def test_memory_of_others_goes_back_after_the_last_read(streams: tuple[Any, Any], rng: np.random.Generator) -> None:
    x = drawn(rng, 3, 40)
    there = qkv.cuda.from_dlpack(Foreign(qkv.cuda.array(x)))
    with qkv.cuda.stream(streams[0]):
        y = qkv.relu(there)
    del there
    gc.collect()
    qkv.cuda.synchronize()
    assert same_bits(y.numpy(), np.maximum(x, 0))


def test_a_consumer_gets_what_is_there(streams: tuple[Any, Any], rng: np.random.Generator) -> None:
    a, b = streams
    x = drawn(rng, 3, 40)
    with qkv.cuda.stream(a):
        there = qkv.cuda.array(x)
    for copy in (None, True):
        capsule = there.__dlpack__(stream=b.handle, copy=copy)
        taken = qkv.cuda.module().from_dlpack(capsule, b.handle)
        assert (taken.pointer == there.pointer) is (copy is None)
        with qkv.cuda.stream(b):
            y = qkv.relu(taken)
        del taken
        assert same_bits(y.numpy(), np.maximum(x, 0))


def test_packed_weights(streams: tuple[Any, Any], rng: np.random.Generator) -> None:
    a, b = streams
    x = drawn(rng, 3, 64)
    for dtype in ("int8", "int4"):
        packed = qkv.pack_weight(drawn(rng, 8, 64), dtype)
        with qkv.cuda.stream(a):
            there = qkv.cuda.array(packed)
        with qkv.cuda.stream(b):
            w = there.dequantize()
        np.testing.assert_allclose(w.numpy(), packed.dequantize(), rtol=1e-6, atol=1e-6)
        with qkv.cuda.stream(b):
            y = qkv.linear(qkv.cuda.array(x), there)
        del there
        gc.collect()
        a.synchronize()
        np.testing.assert_allclose(y.numpy(), x @ packed.dequantize().T, rtol=1e-4, atol=1e-4)


def test_arrays_outlive_their_stream(rng: np.random.Generator) -> None:
    x = drawn(rng, 300, 400)
    before = qkv.cuda.memory_info()["used_bytes"]
    stream = qkv.cuda.Stream()
    with qkv.cuda.stream(stream):
        y = qkv.relu(qkv.cuda.array(x))
    del stream
    gc.collect()
    assert same_bits(y.numpy(), np.maximum(x, 0))
    del y
    gc.collect()
    with configured(""):  # does what waits
        assert qkv.cuda.memory_info()["used_bytes"] == before


def test_what_is_fetched_is_not_waited_for_at_the_end(streams: tuple[Any, Any], rng: np.random.Generator) -> None:
    """What has not landed yet lands where nobody else reads."""
    a, b = streams
    values, emulator, box = [drawn(rng, 40) for _ in range(2)], Emulator(), qkv.cuda.module().Fetched
    x, y = (qkv.cuda.array(value) for value in values)
    with qkv.cuda.stream(b):
        y = qkv.relu(y)
        y.numpy()
        another = box(y)
        another.start(b.handle)
        another.numpy()
    del another  # its memory is used again
    with qkv.cuda.stream(a):
        there = qkv.relu(x)
        fetched = box(there)
        fetched.start(a.handle)
        emulator.report()
        del fetched, there
        gc.collect()
        assert emulator.report()["launches"] == 0
    last = box(y)
    last.start(b.handle)
    b.synchronize()
    a.synchronize()
    assert emulator.report()["launches"] == 1
    assert same_bits(last.numpy(), np.maximum(values[1], 0))


def test_what_one_thread_fetches_no_other_does(rng: np.random.Generator) -> None:
    x = drawn(rng, 192, 192)
    y = qkv.matmul(qkv.cuda.array(x), qkv.cuda.array(x))  # done, and not at once, when it is read
    stream = qkv.cuda.current_stream()
    box = qkv.cuda.module().Fetched(y)
    box.start(stream)
    with ThreadPoolExecutor(1) as pool:
        reader, said = pool.submit(box.numpy), ""
        while "another thread is reading it" not in said:
            with pytest.raises(RuntimeError, match=r"^Fetched: ") as error:
                box.start(stream)
            said = str(error.value)
        with pytest.raises(RuntimeError, match="Fetched: another thread is reading it"):
            box.numpy()
        np.testing.assert_allclose(reader.result(), x.astype(np.float64) @ x, atol=1e-3)
    box.start(stream)
    assert same_bits(box.numpy(), y.numpy())


def test_what_is_fetched_is_waited_for(streams: tuple[Any, Any], rng: np.random.Generator) -> None:
    values = drawn(rng, 40)
    with qkv.cuda.stream(streams[0]):
        y = qkv.relu(qkv.cuda.array(values))
    fetched = qkv.cuda.module().Fetched(y)
    fetched.start(streams[1].handle)  # of another stream than made it
    del y
    assert same_bits(fetched.numpy(), np.maximum(values, 0))
