"""Decoding steps that are recorded once and replayed: the same as through Python, to the bit, and nothing is missed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import qkv
from golden_checks import GOLDEN
from qkv.capture import CapturedStack
from qkv.generate.rows import CachedRows
from qkv.ops import _cpu
from qkv.packing import Packed
from test_models import DECODERS

GENERATORS = [f for f in DECODERS if hasattr(getattr(qkv.load(GOLDEN / f), "head", None), "logits")]
PROMPTS = [[5, 9, 7, 4, 11], [6, 8], [10, 12, 5]]


def rows_of(model: Any, *, captured: bool) -> CachedRows:
    pair = hasattr(model, "decoder")
    rows = CachedRows(model, model.memory(Packed.from_lists([[4, 5, 6, 7], [8, 9], [7] * 9])) if pair else None)
    if not captured:
        rows.captured = None  # type: ignore[assignment]
    return rows


def logits(rows: CachedRows, count: int) -> Iterator[np.ndarray]:
    """Of a batch whose rows are forked, change places and leave."""
    x = rows.start(PROMPTS)
    yield x
    for step in range(count):
        if step == 3:
            rows.select([1, 1, 0])
        if step == 5:
            rows.select([2, 0])
        x = rows.step([4 + (7 * step + 3 * i) % 30 for i in range(len(rows.sequences))])
        yield x
    rows.close()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "int4"])
@pytest.mark.parametrize("folder", GENERATORS)
def test_replayed_as_through_python(folder: str, dtype: str) -> None:
    model = qkv.load(GOLDEN / folder, dtype=dtype)
    limit = model.decoder.embeddings.limit if hasattr(model, "decoder") else model.max_tokens
    count = min(50, (limit or 55) - 5)
    ours, theirs = rows_of(model, captured=True), rows_of(model, captured=False)
    recordings = set()
    for one, other in zip(logits(ours, count), logits(theirs, count), strict=True):
        np.testing.assert_array_equal(one, other)
        if ours.captured.last is not None:
            assert ours.captured.last.recording.complete
            recordings.add(ours.captured.last)
    # one for three rows, one for two; where tables outgrow their buffers or angles depend on the length, a few more
    assert 2 <= len(recordings) <= 4


def test_isa_and_threads_may_change(isa: str) -> None:
    model = qkv.load(GOLDEN / "qwen3_lm")
    expected = list(logits(rows_of(model, captured=False), 6))
    replayed = logits(rows_of(model, captured=True), 6)
    for step, x in enumerate(expected):
        qkv.set_num_threads(1 + step % 3)
        np.testing.assert_array_equal(next(replayed), x)


@pytest.mark.parametrize("folder", ["gemma2_lm", "t5_lm"])
def test_when_the_cache_has_grown(folder: str) -> None:
    model = qkv.load(GOLDEN / folder)
    ours, theirs = rows_of(model, captured=True), rows_of(model, captured=False)
    recordings = set()
    for one, other in zip(logits(ours, 300), logits(theirs, 300), strict=True):
        np.testing.assert_array_equal(one, other)
        recordings.add(ours.captured.last)
    assert ours.cache.version >= 1
    assert len(recordings) <= 10  # tables and pool double


def test_many_threads_with_one_model() -> None:
    model = qkv.load(GOLDEN / "llama_lm")
    expected = list(logits(rows_of(model, captured=False), 30))
    wrong: list[Any] = []

    def work() -> None:
        try:
            for _ in range(3):
                for one, other in zip(logits(rows_of(model, captured=True), 30), expected, strict=True):
                    np.testing.assert_array_equal(one, other)
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_as_many_tokens_as_rows_but_not_one_each() -> None:
    model = qkv.load(GOLDEN / "llama_lm")
    seen = []
    for captured in (CapturedStack(model.stack), None):
        cache = model.new_cache()
        rows = [cache.sequence() for _ in PROMPTS]
        model.extend(cache, rows, PROMPTS)
        pieces = [[[4], [5], [6]], [[7, 8], [], [9]], [[], [4, 5, 6], []], [[1], [2], [3]]]
        seen.append([model.extend(cache, rows, piece, captured=captured).copy() for piece in pieces])
    for one, other in zip(*seen, strict=True):
        np.testing.assert_array_equal(one, other)


def test_what_a_caller_wants_to_see_is_not_replayed() -> None:
    model = qkv.load(GOLDEN / "gpt2_lm")
    asked = {"return_dict_in_generate": True, "output_attentions": True, "max_new_tokens": 4}
    out = model.generate([PROMPTS[0]], eos_token_id=38, suppress_tokens=[38], **asked)
    assert [layer[0].shape[-1] for layer in out.attentions] == [5, 6, 7, 8]


# ---- recordings ---------------------------------------------------------------------------------------


def test_memory_is_used_as_it_was_and_by_no_one_else(rng: np.random.Generator) -> None:
    """Buffers of intermediate results are used again inside a recording, and never outside of it while it lives."""
    w = qkv.pack_weight(rng.standard_normal((48, 48)).astype(np.float32))
    x = rng.standard_normal((5, 48)).astype(np.float32)
    recording = _cpu.Recording()
    recording.start()
    y, places = x, set()
    for _ in range(6):
        y = qkv.linear(qkv.rms_norm(y), w, activation="gelu")
        places.add(y.ctypes.data)
    recording.stop()
    assert recording.complete and len(recording) == 12 and len(places) < 6
    result = y
    for seed in range(3):
        x[...] = np.random.default_rng(seed).standard_normal(x.shape)
        others = [np.full_like(y, np.nan) for _ in range(3)] + [qkv.relu(np.full_like(y, np.nan)) for _ in range(20)]
        recording.replay()
        expected = x
        for _ in range(6):
            expected = qkv.linear(qkv.rms_norm(expected), w, activation="gelu")
        np.testing.assert_array_equal(result, expected)
        assert all(np.isnan(other).all() for other in others)
    del recording
    kept = result.copy()
    others = [qkv.relu(np.full_like(y, np.nan)) for _ in range(20)]
    np.testing.assert_array_equal(result, kept)  # what outlives the recording is still its owner's
    assert all(np.isnan(other).all() for other in others)


def test_arenas_give_their_memory_back() -> None:
    x = np.ones((64, 1024), np.float32)
    qkv.trim()

    def used() -> int:
        recording = _cpu.Recording()
        recording.start()
        keep = [qkv.relu(x) for _ in range(4)]
        recording.stop()
        del recording  # before what was made in it
        del keep
        cached: int = _cpu.buffer_stats()["cached_bytes"]
        return cached

    first = used()
    assert first >= 4 * x.nbytes
    assert [used() for _ in range(5)] == [first] * 5


def test_what_cannot_be_replayed_is_known() -> None:
    x = np.ones((2, 3, 4, 8), np.float32)
    ids = np.zeros(3, np.int64)
    w = np.eye(8, dtype=np.float32), np.eye(8, dtype=np.float32), np.ones(8, np.float32)
    calls = [
        lambda: qkv.softmax(x),
        lambda: qkv.attention(x, x, x),
        lambda: qkv.attention_varlen(x[0], x[0], x[0], [0, 3], [0, 3]),
        lambda: qkv.embedding(ids, x[0, 0]),
        lambda: qkv.additive_attention(x[0], x[0], x[0], *w),
        lambda: qkv.linear(x[0, 0], np.ones((8, 8), np.float32), out=x[0, 0]),
        lambda: qkv.paged_write(
            x[0, :, :, :], x[0, :, :, :], *np.ones((2, 1, 16, 4, 8), np.float32), ids.astype(np.int32) + 1
        ),
    ]
    for call in calls:
        recording = _cpu.Recording()
        recording.start()
        try:
            call()
        finally:
            recording.stop()
        assert not recording.complete


def test_recordings_used_wrongly() -> None:
    one, other = _cpu.Recording(), _cpu.Recording()
    one.start()
    with pytest.raises(RuntimeError, match="records already"):
        other.start()
    with pytest.raises(RuntimeError, match="this thread records"):
        other.replay()
    with pytest.raises(RuntimeError, match="does not make this recording"):
        other.stop()
    failed: list[Exception] = []

    def elsewhere() -> None:
        try:
            one.stop()
        except RuntimeError as error:
            failed.append(error)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert len(failed) == 1
    one.stop()
    with pytest.raises(RuntimeError, match="made already"):
        one.start()
    del other
    x = np.ones(4, np.float32)
    abandoned = _cpu.Recording()
    abandoned.start()
    del abandoned  # as an exception in the middle would
    third = _cpu.Recording()
    third.start()
    qkv.relu(x)
    third.stop()
    assert len(third) == 1
