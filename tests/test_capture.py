"""Decoding steps that are recorded once and replayed: the same as through Python, to the bit, and nothing is missed."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import qkv
from golden_checks import GOLDEN
from qkv.capture import CapturedSteps
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
        rows.captured = None
    return rows


def steps_of(model: Any) -> int:
    """Behind the prompts, within its positions."""
    limit = model.decoder.embeddings.limit if hasattr(model, "decoder") else model.max_tokens
    return min(50, (limit or 55) - 5)


def logits(rows: CachedRows, count: int) -> Iterator[np.ndarray]:
    """Of a batch whose rows are forked, change places and leave."""
    x = rows.start(PROMPTS)
    yield rows.logits(x)
    for step in range(count):
        if step == 3:
            rows.select([1, 1, 0])
        if step == 5:
            rows.select([2, 0])
        x = rows.step([4 + (7 * step + 3 * i) % 30 for i in range(len(rows.sequences))])
        yield rows.logits(x)
    rows.close()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "int4"])
@pytest.mark.parametrize("folder", GENERATORS)
def test_replayed_as_through_python(folder: str, dtype: str) -> None:
    model = qkv.load(GOLDEN / folder, dtype=dtype)
    count = steps_of(model)
    ours, theirs = rows_of(model, captured=True), rows_of(model, captured=False)
    recordings = set()
    for one, other in zip(logits(ours, count), logits(theirs, count), strict=True):
        np.testing.assert_array_equal(one, other)
        if ours.captured.last is not None:
            assert ours.captured.last.recording.complete
            recordings.add(ours.captured.last)
    # one for three rows, one for two; where tables outgrow their buffers or angles depend on the length, a few more
    assert 2 <= len(recordings) <= 4


@pytest.mark.parametrize("folder", ["llama_lm", "gpt2_lm", "marian_lm", "t5_lm"])
def test_beams_count_on(folder: str, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that are forked in every step are replayed without going through the model, to the same bits."""
    model, through_python = qkv.load(GOLDEN / folder), []
    extend = model.extend
    monkeypatch.setattr(model, "extend", lambda *a, **k: through_python.append(a[0]) or extend(*a, **k))
    ours, theirs = rows_of(model, captured=True), rows_of(model, captured=False)
    for rows in (ours, theirs):
        rows.start(PROMPTS)
        rows.select([0, 0, 0] if ours.memory else [2, 1, 0])  # that they look at different texts is another matter
    count = steps_of(model)
    for step in range(count):  # now and then they stay where they are for so long that a block is full
        forked = rng.integers(3, size=3) if step % 4 == 0 else np.array([1, 2, 0])
        parents = np.arange(3) if step // 20 % 2 else forked
        tokens = rng.integers(4, 30, 3).tolist()
        found = []
        for rows in (ours, theirs):
            rows.select(parents)
            found.append(rows.logits(rows.step(tokens)))
        np.testing.assert_array_equal(*found)
        assert [len(s) for s in ours.sequences] == [len(s) for s in theirs.sequences]
    assert sum(cache is theirs.cache for cache in through_python) == 1 + count
    # the prompts, the step that is recorded, and where tables outgrow their buffers or the cache its memory
    assert sum(cache is ours.cache for cache in through_python) <= 4


@pytest.mark.parametrize("folder", ["llama_lm", "t5_lm"])
def test_a_search_that_settles_is_replayed(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps through Python are few, whether rows are forked or stay, and blocks are full now and then."""
    model, through_python = qkv.load(GOLDEN / folder), []
    extend = model.extend
    monkeypatch.setattr(model, "extend", lambda *a, **k: through_python.append(1) or extend(*a, **k))
    ids = [[5, 9, 7, 4, 11], [6, 8, 5, 4, 10]]
    for options in ({}, {"num_beams": 2}, {"num_beams": 3, "num_return_sequences": 3}):
        through_python.clear()
        model.generate(ids, max_new_tokens=45, eos_token_id=None, **options)
        assert len(through_python) <= 4, options


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


def test_no_reference_is_counted_without_the_gil() -> None:
    """Counts that several threads change at once do not come back to what they were."""
    tables, lengths = np.arange(64 * 40, dtype=np.int32).reshape(64, 40) % 50, np.full(64, 640)
    q, (k, v) = np.ones((64, 1, 1), np.float32), np.ones((2, 50, 16, 1, 1), np.float32)

    def work() -> None:
        for _ in range(200):
            qkv.attention_paged(q, k, v, tables, lengths)

    work()
    before = sys.getrefcount(tables.dtype)
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    after = sys.getrefcount(tables.dtype)
    assert after == before


def test_as_many_tokens_as_rows_but_not_one_each() -> None:
    model = qkv.load(GOLDEN / "llama_lm")
    seen = []
    for captured in (CapturedSteps(model.forward), None):
        cache = model.new_cache()
        rows = [cache.sequence() for _ in PROMPTS]
        model.extend(cache, rows, PROMPTS)
        pieces = [[[4], [5], [6]], [[7, 8], [], [9]], [[], [4, 5, 6], []], [[1], [2], [3]]]
        seen.append([model.extend(cache, rows, piece, forward=captured).copy() for piece in pieces])
    for one, other in zip(*seen, strict=True):
        np.testing.assert_array_equal(one, other)


def go_on(model: Any, captured: CapturedSteps, cache: Any, row: Any, token: int) -> np.ndarray:
    """As generation does: once more where that is enough."""
    found = captured.again([row], [token])
    return (model.extend(cache, [row], [[token]], forward=captured) if found is None else found).copy()


def test_between_steps_sequences_may_change() -> None:
    """They are as long as in the step before, in other blocks."""
    model = qkv.load(GOLDEN / "llama_lm")
    captured, cache = CapturedSteps(model.forward), model.new_cache()
    a, b = cache.sequence(), cache.sequence()
    prompts = [list(range(4, 20)), list(range(5, 19))]
    model.extend(cache, [a, b], prompts)
    for token in (7, 8, 9):
        go_on(model, captured, cache, a, token)
    for _ in range(2):
        cache.truncate(a, 16)
        model.extend(cache, [b], [[3] * 20])  # takes the block that a gave back
        kept = model.extend(cache, [b], [[2]]).copy()
        cache.truncate(b, len(b) - 1)
        model.extend(cache, [a], [[7, 8, 9]])
        ours = go_on(model, captured, cache, a, 11)
        cache.truncate(a, 19)
        np.testing.assert_array_equal(ours, model.extend(cache, [a], [[11]]))
        cache.truncate(a, 19)
        np.testing.assert_array_equal(kept, model.extend(cache, [b], [[2]]))  # no one wrote there
        cache.truncate(b, 14)


def test_what_happens_to_a_cache_between_steps_is_noticed() -> None:
    """Forks, truncations and freezing of the row and of others, in any order, beside steps that count on."""
    model, rng = qkv.load(GOLDEN / "llama_lm"), np.random.default_rng(0)
    captured, cache = CapturedSteps(model.forward), model.new_cache()
    row, other = cache.sequence(), cache.sequence()
    tokens = rng.integers(4, 30, 10).tolist()
    model.extend(cache, [row, other], [tokens, [5] * 13])
    twins = []
    for step in range(60):
        what = step % 6 if step < 30 else int(rng.integers(6))
        if what == 1:  # the last block is shared: the next token goes to a copy of it
            twins.append((cache.fork(row), list(tokens)))
        elif what == 2 and len(tokens) > 6:
            cache.truncate(row, len(tokens) - 3)
            del tokens[-3:]
        elif what == 3:
            model.extend(cache, [other], [[7, 8, 9]])
        elif what == 4 and len(twins) > 3:
            cache.free(twins.pop(0)[0])
        tokens.append(int(rng.integers(4, 30)))
        ours = go_on(model, captured, cache, row, tokens[-1])
        alone = Packed.from_lists([tokens])
        np.testing.assert_array_equal(ours[0], model.forward(alone)[-1], err_msg=f"{step} {what}")
    for twin, theirs in twins:  # no one wrote into what they share
        found = model.extend(cache, [twin], [[9]])
        np.testing.assert_array_equal(found[0], model.forward(Packed.from_lists([[*theirs, 9]]))[-1])
    cache.freeze(row)
    with pytest.raises(ValueError, match="frozen"):
        go_on(model, captured, cache, row, 5)


def test_as_many_tokens_as_sequences() -> None:
    rows = rows_of(qkv.load(GOLDEN / "gpt2_lm"), captured=True)
    rows.start(PROMPTS)
    for _ in range(3):
        rows.step([4, 5, 6])
    with pytest.raises(ValueError, match="1 counts for 3 sequences"):
        rows.step([4])


def test_a_step_that_failed_is_not_gone_on_from() -> None:
    model = qkv.load(GOLDEN / "gpt2_lm")
    captured, cache = CapturedSteps(model.forward), model.new_cache()
    for stored in cache.k + cache.v:
        stored[...] = 0  # what the step that fails does not fill
    row = cache.sequence()
    model.extend(cache, [row], [PROMPTS[0]])
    model.extend(cache, [row], [[4]], forward=captured)
    with pytest.raises(ValueError, match="embedding: id 99 is outside"):
        model.extend(cache, [row], [[99]], forward=captured)
    for token in (5, 6):
        ours = model.extend(cache, [row], [[token]], forward=captured).copy()
        twin = cache.fork(row, len(row) - 1)
        np.testing.assert_array_equal(ours, model.extend(cache, [twin], [[token]]))
        cache.free(twin)


@pytest.mark.parametrize("folder", ["t5_lm", "marian_lm", "mbart_lm"])
def test_keys_of_a_memory_are_made_once(folder: str) -> None:
    rows = rows_of(qkv.load(GOLDEN / folder), captured=True)
    rows.start([[2], [3], [4]])
    calls = []
    for parents in ([0, 1, 2], [0, 1]):
        rows.select(parents)
        rows.step([5] * len(parents))
        assert rows.captured.last is not None
        calls.append(len(rows.captured.last.recording))
    assert calls[0] == calls[1]


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
    places = set()

    def work() -> np.ndarray:
        y = x
        for _ in range(6):
            y = qkv.linear(qkv.rms_norm(y), w, activation="gelu")
            places.add(y.ctypes.data)
        return y

    result, recording = _cpu.record(work)
    assert recording.complete and len(recording) == 12 and len(places) < 6
    for seed in range(3):
        x[...] = np.random.default_rng(seed).standard_normal(x.shape)
        others = [qkv.relu(np.full_like(x, np.nan)) for _ in range(20)]
        recording.replay()
        expected = x
        for _ in range(6):
            expected = qkv.linear(qkv.rms_norm(expected), w, activation="gelu")
        np.testing.assert_array_equal(result, expected)
        assert all(np.isnan(other).all() for other in others)
    del recording
    kept = result.copy()
    others = [qkv.relu(np.full_like(x, np.nan)) for _ in range(20)]
    np.testing.assert_array_equal(result, kept)  # what outlives the recording is still its owner's
    assert all(np.isnan(other).all() for other in others)


def test_parameters_that_were_converted_are_kept(rng: np.random.Generator) -> None:
    """Vectors of 16 bits become floats at the call: theirs, and a bias table's, live as long as the recording."""
    x, w = (rng.standard_normal((8, 8)).astype(np.float16) for _ in range(2))
    vector = rng.standard_normal(8).astype(np.float16)
    caches = np.zeros((2, 1, 16, 2, 4), np.float16)
    options = {"cu_seqlens_q": np.arange(9), "sinks": vector[:2], "alibi_slopes": vector[2:4]}
    tables, lengths = np.zeros((8, 1), np.int32), np.full(8, 3)

    def work() -> np.ndarray:
        y = qkv.layer_norm(qkv.linear(x, w, vector), vector, vector)
        y = qkv.attention_paged(y.reshape(8, 2, 4), *caches, tables, lengths, **options)
        return qkv.rms_norm(y.reshape(8, 8), vector)

    result, recording = _cpu.record(work)
    others = [np.full(8, np.nan, np.float32) for _ in range(100)]
    assert recording.complete and len(recording) == 4 and len(others) == 100
    for seed in range(2):
        x[...] = np.random.default_rng(seed).standard_normal(x.shape)
        caches[...] = np.random.default_rng(seed + 9).standard_normal(caches.shape)
        lengths[...] = 5 + seed
        recording.replay()
        np.testing.assert_array_equal(result, work())


def test_arenas_give_their_memory_back() -> None:
    x = np.ones((64, 1024), np.float32)
    qkv.trim()

    def used() -> int:
        keep, recording = _cpu.record(lambda: [qkv.relu(x) for _ in range(4)])
        assert len(recording) == 4
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
    misaligned = np.zeros(33, np.uint8)[1:].view(np.float32)
    calls = [
        lambda: qkv.relu(np.ones(8)),  # float64: NumPy's work
        lambda: qkv.linear(x[0, 0], np.ones((8, 8))),
        lambda: qkv.relu(misaligned),  # of a copy
        lambda: qkv.softmax(x),
        lambda: qkv.attention(x, x, x),
        lambda: qkv.attention_varlen(x[0], x[0], x[0], [0, 3], [0, 3]),
        lambda: qkv.embedding(ids.astype(np.int32), x[0, 0]),
        lambda: qkv.additive_attention(x[0], x[0], x[0], *w),
        lambda: qkv.linear(x[0, 0], np.ones((8, 8), np.float32), out=x[0, 0]),
        lambda: qkv.paged_write(
            x[0, :, :, :], x[0, :, :, :], *np.ones((2, 1, 16, 4, 8), np.float32), ids.astype(np.int32) + 1
        ),
    ]
    for call in calls:
        assert not _cpu.record(call)[1].complete


def test_recordings_used_wrongly() -> None:
    x = np.ones(4, np.float32)
    _, recording = _cpu.record(lambda: qkv.relu(x))
    with pytest.raises(RuntimeError, match="records already"):
        _cpu.record(lambda: _cpu.record(lambda: None))
    with pytest.raises(RuntimeError, match="this thread records"):
        _cpu.record(recording.replay)
    with pytest.raises(ZeroDivisionError):
        _cpu.record(lambda: qkv.relu(x) / (1 // 0))
    assert len(_cpu.record(lambda: qkv.relu(x))[1]) == 1  # none of them is still open
