"""qkv.cuda.record: ops that are recorded once and replayed as one call, over memory that stays where it is."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import qkv
from checks import same_bits
from emulated import configured
from qkv import cuda_ops

pytestmark = pytest.mark.skipif(not qkv.cuda.is_available(), reason=qkv.cuda.why_not())

emulated = pytest.mark.skipif(not qkv.cuda.is_emulated(), reason="QKV_CUDA=emulated runs this")

WIDTH, HEADS, TOKENS = 64, 2, 5
EYE = np.eye(WIDTH, dtype=np.float32)


@pytest.fixture(params=["at_issue", "late"])
def streams(request: pytest.FixtureRequest) -> Iterator[str]:
    """On the emulator also with streams that work as late as they may, so that a missing wait shows."""
    if not qkv.cuda.is_emulated():
        if request.param == "late":
            pytest.skip("QKV_CUDA=emulated runs this")
        yield "of the device"
        return
    with configured(f"streams={request.param}"):
        yield str(request.param)


def drawn(rng: np.random.Generator, *shape: int) -> Any:
    return rng.standard_normal(shape).astype(np.float32)


def used() -> int:
    gc.collect()
    qkv.cuda.synchronize()
    return qkv.cuda.memory_info()["used_bytes"]


class Rows:
    """An array on the device whose contents change in place."""

    def __init__(self, values: Any) -> None:
        self.eye = qkv.cuda.array(EYE)
        self.array = qkv.cuda.array(values)

    def set(self, values: Any) -> None:
        qkv.linear(qkv.cuda.array(values), self.eye, out=self.array)  # exact: times one, plus zeros


class Layer:
    """Some of each: a norm with its sum, products of float and packed weights, attention with lengths, activations."""

    def __init__(self, rng: np.random.Generator) -> None:
        array, self.scale = qkv.cuda.array, qkv.cuda.array(drawn(rng, WIDTH))
        self.qkv = array(drawn(rng, 3 * WIDTH, WIDTH) / 8)
        self.up = array(qkv.pack_weight(drawn(rng, 2 * WIDTH, WIDTH) / 8, "int8"))
        self.down = array(qkv.pack_weight(drawn(rng, WIDTH, 2 * WIDTH) / 8, "int4"))
        self.lengths = array(np.full(TOKENS, 3))

    def __call__(self, x: Any) -> Any:
        y, total = qkv.rms_norm(x, self.scale, residual=x)
        parts = qkv.linear(y, self.qkv).reshape(TOKENS, 3, 1, WIDTH // HEADS, HEADS).transpose(1, 0, 4, 2, 3)
        k, v = (qkv.linear(y, self.qkv[i * WIDTH : (i + 1) * WIDTH]) for i in (1, 2))
        k, v = (a.reshape(1, HEADS, TOKENS, WIDTH // HEADS)._as_strided(  # the same keys for every token
            (TOKENS, HEADS, TOKENS, WIDTH // HEADS), (0, TOKENS * WIDTH // HEADS, WIDTH // HEADS, 1), 0
        ) for a in (k, v))  # fmt: skip
        y = qkv.attention(parts[0], k, v, kv_lengths=self.lengths)
        y = qkv.linear(y.reshape(TOKENS, WIDTH), self.qkv[:WIDTH], residual=total)
        y = qkv.linear(qkv.linear(y, self.up, activation="gelu"), self.down, residual=y)
        return qkv.softmax(qkv.silu(y).astype(ml_dtypes.bfloat16)), y


def test_replays_as_the_ops_to_the_bit(rng: np.random.Generator, streams: str) -> None:
    layer, values = Layer(rng), [drawn(rng, TOKENS, WIDTH) for _ in range(4)]
    x = Rows(values[0])
    results, recording = qkv.cuda.record(lambda: layer(x.array))
    assert recording.complete and len(recording) >= 10
    for one in [values[0], *values]:
        x.set(one)
        recording.replay()
        expected = layer(qkv.cuda.array(one))
        assert all(same_bits(r.numpy(), e.numpy()) for r, e in zip(results, expected, strict=True))
        cuda_ops.advance(layer.lengths[1:3])  # what is on the device is read again
    assert len({results[1].numpy().tobytes()}) == 1


def test_the_result_is_there_without_a_replay(rng: np.random.Generator, streams: str) -> None:
    x = drawn(rng, 3, 40)
    there = qkv.cuda.array(x)
    y, recording = qkv.cuda.record(lambda: qkv.relu(there))
    assert same_bits(y.numpy(), np.maximum(x, 0)) and len(recording) == 1


def test_in_other_streams(rng: np.random.Generator, streams: str) -> None:
    """Where the contents were made, the replay runs and the result is read: each waits for the one before."""
    a, b, c, d = (qkv.cuda.Stream() for _ in range(4))
    values = [drawn(rng, TOKENS, WIDTH) for _ in range(6)]
    with qkv.cuda.stream(a):
        x = Rows(values[0])
    with qkv.cuda.stream(b):
        y, recording = qkv.cuda.record(lambda: qkv.relu(qkv.silu(qkv.tanh(x.array))))
    for i, one in enumerate(values):
        with qkv.cuda.stream(a):
            x.set(one)
        recording.replay((b, c, d.handle)[i % 3])
        with qkv.cuda.stream(d if i % 2 else a):
            read = qkv.gelu(y)
        recording.replay(c)  # after the reader has read
        assert y.stream == c.handle
        with qkv.cuda.stream(c):
            recording.replay()
        expected = qkv.relu(qkv.silu(qkv.tanh(qkv.cuda.array(one))))
        assert same_bits(y.numpy(), expected.numpy())
        assert same_bits(read.numpy(), qkv.gelu(expected).numpy())


@pytest.mark.parametrize("kept", [True, False])
def test_a_replay_waits_for_readers_of_the_last_result(kept: bool, rng: np.random.Generator, streams: str) -> None:
    """Its memory is written by every replay, also when nobody holds it any more."""
    a, b = qkv.cuda.Stream(), qkv.cuda.Stream()
    values = drawn(rng, TOKENS, WIDTH)
    for reader, player in ((a, b), (None, b), (a, None)):
        x = Rows(values)
        y, recording = qkv.cuda.record(lambda x=x: qkv.relu(x.array))
        with qkv.cuda.stream(player or 0):
            x.set(-values)  # waits for what has been launched so far
        with qkv.cuda.stream(reader or 0):
            read = qkv.relu(y)
        held = [y] if kept else []
        del y
        recording.replay(player or 0)
        qkv.cuda.module().synchronize(player.handle if player else 0)
        assert same_bits(read.numpy(), np.maximum(values, 0)) and len(held) == kept


@pytest.mark.parametrize("first", [0, 1])
def test_memory_goes_back_after_the_last_replay(first: int, rng: np.random.Generator, streams: str) -> None:
    """That of arguments and of results, in whatever stream it was made."""
    a, b, c = (qkv.cuda.Stream() for _ in range(3))
    with qkv.cuda.stream(a):
        x, out = [qkv.cuda.array(drawn(rng, 30, WIDTH))], qkv.cuda.array(np.zeros((30, WIDTH), np.float32))
        eye = qkv.cuda.array(EYE)
    with qkv.cuda.stream(b):
        recording = qkv.cuda.record(lambda: qkv.linear(qkv.relu(qkv.tanh(x[0])), eye, out=out))[1]
    recording.replay(c)
    for stream in (a, b):
        stream.synchronize()
    expected = np.maximum(np.tanh(x.pop().numpy().astype(np.float64)), 0)
    recording.replay(c)
    del recording
    gc.collect()
    for stream in ((a, b)[first], (b, a)[first], c):
        stream.synchronize()
    np.testing.assert_allclose(out.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_writes_in_place(rng: np.random.Generator, streams: str) -> None:
    a, b = qkv.cuda.Stream(), qkv.cuda.Stream()
    with qkv.cuda.stream(a):
        out, counters = qkv.cuda.array(np.zeros((4, WIDTH), np.float32)), qkv.cuda.array(np.arange(6).reshape(3, 2))
        x, eye = Rows(drawn(rng, 4, WIDTH)), qkv.cuda.array(EYE)

    def step() -> None:
        qkv.linear(x.array, eye, out=out)
        cuda_ops.advance(counters)

    with qkv.cuda.stream(b):
        result, recording = qkv.cuda.record(step)
    assert result is None and len(recording) == 2
    for i in range(3):
        values = drawn(rng, 4, WIDTH)
        with qkv.cuda.stream(a):
            x.set(values)
            before = qkv.relu(out)  # reads before the replay writes
        seen = out.numpy()
        recording.replay(b)
        assert same_bits(out.numpy(), values)
        assert same_bits(before.numpy(), np.maximum(seen, 0))
        assert (counters.numpy() == np.arange(6).reshape(3, 2) + 2 + i).all()


def test_memory_is_used_again_inside_and_by_no_one_else(rng: np.random.Generator) -> None:
    values = drawn(rng, TOKENS, WIDTH)
    x, eye = Rows(values), qkv.cuda.array(EYE)
    places = set()

    def work() -> Any:
        y = x.array
        for _ in range(6):
            y = qkv.linear(qkv.tanh(y), eye)
            places.add(y.pointer)
        return y

    first, one = qkv.cuda.record(work)
    own, places = places, set()
    second, two = qkv.cuda.record(work)
    assert len(own) < 6 and not own & places
    others = [qkv.relu(x.array) for _ in range(20)]
    assert not {y.pointer for y in others} & (own | places)
    for y, recording in ((first, one), (second, two)):
        recording.replay()
        assert same_bits(y.numpy(), work().numpy())
    assert all(same_bits(y.numpy(), np.maximum(values, 0)) for y in others)


@emulated
def test_memory_that_is_used_again_is_as_if_new(rng: np.random.Generator) -> None:
    """In every replay: what an op before, or the last replay, left there is not taken for a result."""
    x = qkv.cuda.array(drawn(rng, TOKENS, WIDTH))

    def work() -> Any:
        place = qkv.tanh(x).pointer
        stale = qkv.cuda.empty((TOKENS, WIDTH))
        assert stale.pointer == place
        return qkv.relu(stale)

    with pytest.raises(qkv.CudaError, match="which nobody has written"):
        qkv.cuda.record(work)[0].numpy()
    y, recording = qkv.cuda.record(lambda: qkv.relu(qkv.tanh(x)))
    recording.replay()
    assert len(recording) == 2 and (y.numpy() >= 0).all()


def test_replays_take_no_memory(rng: np.random.Generator) -> None:
    layer, x = Layer(rng), qkv.cuda.array(drawn(rng, TOKENS, WIDTH))
    results, recording = qkv.cuda.record(lambda: layer(x))
    before = used()
    for i in range(20):
        recording.replay()
        assert qkv.cuda.memory_info()["used_bytes"] == before, i
    assert results[1].shape == (TOKENS, WIDTH)


def test_memory_goes_back_with_the_last_of_recording_and_results(rng: np.random.Generator, streams: str) -> None:
    x = qkv.cuda.array(drawn(rng, 300, 400))
    x.numpy()
    before = used()
    for first in ("recording", "result"):
        made = dict(zip(("result", "recording"), qkv.cuda.record(lambda: qkv.tanh(qkv.relu(qkv.silu(x)))), strict=True))
        assert used() > before
        expected = made["result"].numpy()
        del made[first]
        others = [qkv.relu(x) for _ in range(5)]
        if first == "recording":
            assert same_bits(made["result"].numpy(), expected)
        else:
            made["recording"].replay()
        del others
        made.clear()
        assert used() == before


def test_arguments_live_as_long_as_the_recording(rng: np.random.Generator) -> None:
    values = drawn(rng, 30, 40)
    x = [qkv.cuda.array(values)]
    y, recording = qkv.cuda.record(lambda: qkv.relu(x[0]))
    x.clear()
    gc.collect()
    others = [qkv.cuda.array(np.full((30, 40), 7, np.float32)) for _ in range(10)]
    recording.replay()
    assert same_bits(y.numpy(), np.maximum(values, 0)) and len(others) == 10


HOST: dict[str, Callable[[Any], Any]] = {
    "array": lambda x: qkv.cuda.array(np.ones(3)),
    "numpy": lambda x: qkv.relu(x).numpy(),
    "before": lambda x: x.numpy(),
    "integers": lambda x: qkv.attention(x[None, None], x[None, None], x[None, None], kv_lengths=np.array([2])),
    "weight": lambda x: qkv.cuda.array(qkv.pack_weight(EYE, "int8")),
    "number": lambda x: qkv.attention(x[None, None], x[None, None], x[None, None], mask=True),
    "synchronize": lambda x: qkv.cuda.synchronize(),
}


@pytest.mark.parametrize("what", HOST)
def test_the_host_cannot_be_recorded(what: str, rng: np.random.Generator) -> None:
    x = qkv.cuda.array(drawn(rng, 3, 40))
    with pytest.raises(qkv.CudaError, match="a recorded step takes arrays on the device only"):
        qkv.cuda.record(lambda: (qkv.relu(x), HOST[what](x)))
    y, recording = qkv.cuda.record(lambda: qkv.relu(x))  # and the thread goes on
    assert len(recording) == 1 and same_bits(y.numpy(), np.maximum(x.numpy(), 0))


def test_what_else_cannot_be_recorded(rng: np.random.Generator) -> None:
    x = qkv.cuda.array(drawn(rng, 3, 40))

    def elsewhere() -> Any:
        with qkv.cuda.stream(qkv.cuda.Stream()):
            return qkv.relu(x)

    class Foreign:
        def __dlpack__(self, stream: int | None = None) -> Any:
            return x.__dlpack__(stream=stream)

        def __dlpack_device__(self) -> tuple[int, int]:
            return x.__dlpack_device__()  # type: ignore[no-any-return]

    for work, words in (
        (elsewhere, "relu: this thread records, and the op would run in another stream"),
        (lambda: qkv.cuda.from_dlpack(Foreign()), "takes qkv's own arrays only"),
        (lambda: x.__dlpack__(), "hand arrays over outside"),
    ):
        with pytest.raises(qkv.CudaError, match=words):
            qkv.cuda.record(work)
    _, recording = qkv.cuda.record(lambda: qkv.relu(x))
    with pytest.raises(RuntimeError, match="record: this thread records already"):
        qkv.cuda.record(lambda: qkv.cuda.record(lambda: None))
    with pytest.raises(RuntimeError, match="replay: this thread records"):
        qkv.cuda.record(recording.replay)
    assert len(qkv.cuda.record(lambda: None)[1]) == 0


def test_an_error_ends_the_recording(rng: np.random.Generator) -> None:
    x = qkv.cuda.array(drawn(rng, 30, 40))
    x.numpy()
    before, stream = used(), qkv.cuda.current_stream()
    kept = []

    def work() -> None:
        kept.append(qkv.relu(x))
        raise ZeroDivisionError

    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            qkv.cuda.record(work)
        with pytest.raises(ValueError, match="axis"):
            qkv.cuda.record(lambda: qkv.softmax(qkv.relu(x), axis=5))
        assert qkv.cuda.current_stream() == stream
        assert same_bits(qkv.relu(x).numpy(), np.maximum(x.numpy(), 0))
    kept.clear()
    assert used() == before


def test_other_threads_work_and_record_meanwhile(rng: np.random.Generator) -> None:
    layer, values = Layer(rng), [drawn(rng, TOKENS, WIDTH) for _ in range(3)]
    expected = [layer(qkv.cuda.array(one))[1].numpy() for one in values]
    wrong: list[BaseException] = []
    inside = threading.Barrier(3)

    def records() -> None:
        with qkv.cuda.stream(qkv.cuda.Stream()):
            x = Rows(values[0])

            def work() -> Any:
                inside.wait(60)
                y = layer(x.array)[1]
                inside.wait(60)
                return y

            y, recording = qkv.cuda.record(work)
            for one, e in zip(values, expected, strict=True):
                x.set(one)
                recording.replay()
                assert same_bits(y.numpy(), e)

    def works() -> None:
        with qkv.cuda.stream(qkv.cuda.Stream()):
            inside.wait(60)
            for one, e in zip(values, expected, strict=True):
                assert same_bits(layer(qkv.cuda.array(one))[1].numpy(), e)
            inside.wait(60)

    def run(target: Callable[[], None]) -> None:
        try:
            target()
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=run, args=(target,)) for target in (records, records, works)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong, wrong


def test_counters_count_on(rng: np.random.Generator) -> None:
    values = rng.integers(-(2**62), 2**62, (3, 300))
    values[0, :2] = -1, 2**32 - 1
    x = qkv.cuda.array(values)
    for view in (np.s_[:], np.s_[1], np.s_[::2, 7::3], np.s_[..., ::-1], np.s_[2, 5], np.s_[:, 3:3]):
        cuda_ops.advance(x[view])
        values[view] += 1
        assert (x.numpy() == values).all()
    cuda_ops.advance(x.T)
    assert (x.numpy() == values + 1).all()
    for wrong, error, words in (
        (np.arange(3), TypeError, "advance: x must be an array on the GPU, got numpy.ndarray"),
        (qkv.cuda.array(np.arange(3, dtype=np.int32)), TypeError, "advance: x must hold int64, got int32"),
        (qkv.cuda.array(np.arange(3, dtype=np.uint64)), TypeError, "advance: x must hold int64, got uint64"),
        (x[0]._as_strided((2, 300), (0, 1), 0), ValueError, "advance: x is broadcast"),
    ):
        with pytest.raises(error, match=words):
            cuda_ops.advance(wrong)
