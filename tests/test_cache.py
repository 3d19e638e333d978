"""The paged cache against a model that keeps one plain list of tokens for each sequence."""

from __future__ import annotations

import copy
import pickle
from collections import Counter
from typing import Any

import numpy as np
import pytest
import qkv
from checks import normal, same_bits
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from qkv.cache import CachedSequence, CacheFull, PagedCache
from qkv.ops import BlockList, BlockPool, _cpu, empty

LAYERS, HKV, D, DV = 2, 2, 8, 4


def rows_of(cache: PagedCache, sequence: CachedSequence, layer: int) -> tuple[Any, Any]:
    """k (T, Hkv, D) and v as they lie in the cache, int8 as codes times scale."""
    blocks, n = sequence.blocks, len(sequence)
    found = []
    for name, arrays in (("k_scale", cache.k), ("v_scale", cache.v)):
        x = arrays[layer][blocks]
        x = x.reshape(-1, *x.shape[2:])[:n]
        scales = cache.scales(layer)
        if scales:
            x = x * scales[name][blocks].reshape(-1, HKV)[:n, :, None]
        found.append(x)
    return found[0], found[1]


def tokens(rng: np.random.Generator, n: int) -> tuple[Any, Any]:
    """k (layers, n, Hkv, D) and v: integers that every dtype but int8 holds exactly."""
    k, v = (rng.integers(-100, 100, (LAYERS, n, HKV, w)).astype(np.float32) for w in (D, DV))
    k[..., 0], v[..., 0] = 127, -127  # then int8 does too: the scale is 1
    return k, v


class Held:
    """A sequence and what it should hold."""

    def __init__(self, sequence: CachedSequence, keys: list[Any], values: list[Any], frozen: bool = False) -> None:
        self.sequence, self.keys, self.values, self.frozen = sequence, keys, values, frozen


class Model(RuleBasedStateMachine):
    """Every operation on the cache and on lists; after each of them both hold the same."""

    def __init__(self) -> None:
        super().__init__()
        self.rng = np.random.default_rng(0)
        self.cache = PagedCache(LAYERS, HKV, D, value_dim=DV, initial_tokens=16, max_tokens=16 * 12)
        self.held: list[Held] = []

    def choose(self, data: st.DataObject, most: int) -> list[Held]:
        """Some of them, each once, in any order."""
        order = data.draw(st.permutations(range(len(self.held))))
        return [self.held[i] for i in order[: data.draw(st.integers(1, most))]]

    @rule()
    def new(self) -> None:
        self.held.append(Held(self.cache.sequence(), [], []))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def extend(self, data: st.DataObject) -> None:
        chosen = [h for h in self.choose(data, 4) if not h.frozen]
        counts = [data.draw(st.sampled_from([0, 1, 1, 1, 2, 5, 15, 16, 17, 40])) for _ in chosen]
        sequences = [h.sequence for h in chosen]
        before = [(len(s), s.blocks.tolist()) for s in sequences], self.cache.blocks_used
        try:
            step = self.cache.extend(sequences, counts)
        except CacheFull:
            assert ([(len(s), s.blocks.tolist()) for s in sequences], self.cache.blocks_used) == before
            assert self.cache.blocks_used + sum(-(-n // 16) + 1 for n in counts) > 12, "there was room"
            return
        assert len(step.slots) == sum(counts) and len(set(step.slots.tolist())) == sum(counts)
        k, v = tokens(self.rng, sum(counts))
        for layer in range(LAYERS):
            step.write(layer, k[layer], v[layer])
        at = 0
        for h, n in zip(chosen, counts, strict=True):
            h.keys.extend(k[:, at : at + n].swapaxes(0, 1))
            h.values.extend(v[:, at : at + n].swapaxes(0, 1))
            at += n

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        (h,) = self.choose(data, 1)
        length = data.draw(st.one_of(st.none(), st.integers(0, len(h.keys))))
        used = self.cache.blocks_used
        twin = self.cache.fork(h.sequence, length)
        assert self.cache.blocks_used == used, "a fork takes no block"
        n = len(h.keys) if length is None else length
        self.held.append(Held(twin, h.keys[:n], h.values[:n], h.frozen))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def truncate(self, data: st.DataObject) -> None:
        (h,) = self.choose(data, 1)
        length = data.draw(st.integers(0, len(h.keys)))
        if h.frozen:
            for change in (lambda: self.cache.append(h.sequence), lambda: self.cache.truncate(h.sequence, length)):
                with pytest.raises(ValueError, match="frozen"):
                    change()
        else:
            self.cache.truncate(h.sequence, length)
            del h.keys[length:], h.values[length:]

    @precondition(lambda self: len(self.held) > 4 and not any(h.frozen for h in self.held))
    @rule(data=st.data())
    def freeze(self, data: st.DataObject) -> None:
        (h,) = self.choose(data, 1)
        self.cache.freeze(h.sequence)
        h.frozen = True

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        (h,) = self.choose(data, 1)
        self.cache.free(h.sequence)
        self.held.remove(h)
        with pytest.raises(ValueError, match="freed"):
            self.cache.append(h.sequence)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def reorder(self, data: st.DataObject) -> None:
        chosen = self.choose(data, 4)
        parents = data.draw(st.lists(st.integers(0, len(chosen) - 1), max_size=4))
        result = self.cache.reorder([h.sequence for h in chosen], parents)
        assert len({id(s) for s in result}) == len(parents)
        self.held = [h for h in self.held if h not in chosen]
        for s, p in zip(result, parents, strict=True):
            self.held.append(Held(s, list(chosen[p].keys), list(chosen[p].values), chosen[p].frozen))

    @invariant()
    def holds_what_was_written(self) -> None:
        for h in self.held:
            sequence, keys, values = h.sequence, h.keys, h.values
            assert len(sequence) == len(keys)
            assert len(sequence.blocks) == -(-len(keys) // 16)
            for layer in range(LAYERS):
                k, v = rows_of(self.cache, sequence, layer)
                if keys:
                    np.testing.assert_array_equal(k, [x[layer] for x in keys])
                    np.testing.assert_array_equal(v, [x[layer] for x in values])

    @invariant()
    def counts_are_right(self) -> None:
        cache, owners = self.cache, Counter(block for h in self.held for block in h.sequence.blocks.tolist())
        assert cache.blocks_used == len(owners) and cache.blocks_used + cache.blocks_free == cache.blocks <= 12
        for block in range(cache.blocks):
            assert cache.references(block) == owners[block]
        assert cache.nbytes == cache.blocks * 16 * HKV * (D + DV) * 4 * LAYERS
        assert cache.nbytes_used == cache.blocks_used * 16 * HKV * (D + DV) * 4 * LAYERS

    def teardown(self) -> None:
        for h in self.held:
            self.cache.free(h.sequence)
        assert self.cache.blocks_used == 0


Model.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None, derandomize=True)
TestModel = Model.TestCase


def filled(
    rng: np.random.Generator, lengths: list[int], dtype: str = "float32", **options: Any
) -> tuple[PagedCache, list[CachedSequence], list[tuple[Any, Any]]]:
    """A cache, its sequences, and the (layers, T, Hkv, .) keys and values written."""
    cache = PagedCache(LAYERS, HKV, D, value_dim=DV, dtype=dtype, **options)
    sequences = [cache.sequence() for _ in lengths]
    written = [tokens(rng, n) for n in lengths]
    step = cache.extend(sequences, lengths)
    for layer in range(LAYERS):
        step.write(layer, *(np.concatenate([w[i][layer] for w in written]) for i in range(2)))
    return cache, sequences, written


def test_memory_that_was_used_before_holds_numbers_alone() -> None:
    assert empty((2, 0, 3), np.float32).shape == (2, 0, 3)
    with pytest.raises(TypeError, match="empty: dtype must hold numbers"):
        empty((2,), object)
    with pytest.raises(ValueError, match="empty: a dimension is negative"):
        empty((2, -1), np.float32)


def test_what_a_cache_grows_to_does_not_stay_in_the_pool_of_buffers() -> None:
    qkv.trim()
    cache = PagedCache(2, 4, 64, initial_tokens=256)
    first, sequence = cache.nbytes, cache.sequence()
    for _ in range(8):
        cache.append(sequence, 4000)
    assert cache.nbytes > 32 * first
    del sequence, cache
    cached = _cpu.buffer_stats()["cached_bytes"]
    assert first <= cached < 2 * first
    again = PagedCache(2, 4, 64, initial_tokens=256)
    assert again.nbytes == first and _cpu.buffer_stats()["cached_bytes"] <= cached - first
    qkv.trim()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int8"])
def test_steps_of_generation(dtype: str, rng: np.random.Generator) -> None:
    """A ragged prompt, steps of one token while beams fork and sequences leave: attention over what each has seen."""
    cache, sequences, written = filled(rng, [5, 33, 16], dtype, initial_tokens=32)
    history = [[list(w[i][layer]) for layer in range(LAYERS)] for w in written for i in range(2)]
    history = [history[i : i + 2] for i in range(0, len(history), 2)]  # per sequence: keys, values by layer
    for turn in range(40):
        if turn % 7 == 3:  # one continues twice, one is dropped
            parents = rng.permutation([*range(1, len(sequences)), 1]).tolist()
            sequences = cache.reorder(sequences, parents)
            history = [[[list(layer) for layer in kind] for kind in history[p]] for p in parents]
        n = len(sequences)
        step = cache.extend(sequences)
        assert same_bits(step.cu_seqlens_q, np.arange(n + 1))
        for layer in range(LAYERS):
            q, (k, v) = normal(rng, (n, 4, D)), (x[layer] for x in tokens(rng, n))
            step.write(layer, k, v)
            out = step.attend(layer, q, causal=True)
            for b in range(n):
                history[b][0][layer].append(k[b])
                history[b][1][layer].append(v[b])
                keys, values = (np.array(history[b][i][layer])[None] for i in range(2))
                expected = qkv.attention(q[b][None, None], keys, values, layout="bshd")[0, 0]
                assert same_bits(out[b], expected), f"turn {turn}, layer {layer}, sequence {b}"
    assert cache.version > 0, "it grew"
    for s in sequences:
        cache.free(s)
    assert cache.blocks_used == 0 and cache.blocks_free == cache.blocks


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_a_shared_prefix_is_stored_once(dtype: str, rng: np.random.Generator) -> None:
    cache, (prompt,), _ = filled(rng, [64], dtype)
    branches = [cache.fork(prompt) for _ in range(10)]
    assert cache.blocks_used == 4
    for i, branch in enumerate(branches):
        slots = cache.append(branch, i)
        assert len(slots) == i
    assert cache.blocks_used == 4 + 9, "a boundary is shared: only new tokens take blocks"
    half = cache.fork(prompt, 40)
    assert len(half) == 40 and cache.blocks_used == 13
    step = cache.extend([half])  # writes into the third block, that is shared
    k, v = tokens(rng, 1)
    for layer in range(LAYERS):
        step.write(layer, k[layer], v[layer])
    assert cache.blocks_used == 14 and half.blocks[:2].tolist() == prompt.blocks[:2].tolist()
    assert half.blocks[2] != prompt.blocks[2]
    for layer in range(LAYERS):
        for mine, theirs in zip(rows_of(cache, half, layer), rows_of(cache, prompt, layer), strict=True):
            assert same_bits(mine[:40], theirs[:40]), "copied in every layer, scales too"


def test_the_last_owner_of_a_block_writes_in_place(rng: np.random.Generator) -> None:
    """Of n owners of a partly filled block n - 1 move away, also when all of them append in one step."""
    cache, (a,), _ = filled(rng, [20])
    b, c = cache.fork(a), cache.fork(a)
    block = int(a.blocks[1])
    cache.extend([a, b, c])
    assert cache.blocks_used == 4 and [int(s.blocks[1]) == block for s in (a, b, c)] == [False, False, True]
    assert cache.references(block) == 1


def test_chunks_and_rewinding(rng: np.random.Generator) -> None:
    cache, (a,), written = filled(rng, [50])
    cache.truncate(a, 35)
    assert len(a) == 35 and cache.blocks_used == 3
    step = cache.extend([a], [15])
    for layer in range(LAYERS):
        step.write(layer, written[0][0][layer, 35:], written[0][1][layer, 35:])
        k, v = rows_of(cache, a, layer)
        assert same_bits(k, written[0][0][layer]) and same_bits(v, written[0][1][layer])
    cache.truncate(a, 0)
    assert cache.blocks_used == 0 and len(a) == 0
    cache.append(a, 3)


def test_cross_attention(rng: np.random.Generator) -> None:
    """An encoder's keys are written once, then frozen; beams share them and may look as often as they like."""
    cache, sources, written = filled(rng, [7, 40])
    for s in sources:
        cache.freeze(s)
    beams = [sources[0], cache.fork(sources[0]), sources[1], cache.fork(sources[1])]
    used = cache.blocks_used
    step = cache.view(beams, [2, 1, 1, 3])
    q = normal(rng, (7, 4, D))
    for layer in range(LAYERS):
        out = step.attend(layer, q)
        for rows, w in ((slice(0, 2), 0), (slice(2, 3), 0), (slice(3, 4), 1), (slice(4, 7), 1)):
            k, v = (x[layer][None] for x in written[w])
            assert same_bits(out[rows], qkv.attention(q[None, rows], k, v, layout="bshd")[0])
    assert cache.blocks_used == used
    for change in (lambda: cache.append(beams[1]), lambda: cache.extend(beams), lambda: cache.truncate(beams[0], 1)):
        with pytest.raises(ValueError, match="frozen"):
            change()
    again = cache.reorder(beams, [1, 1, 3, 3])
    assert cache.blocks_used == used
    for s in again:
        cache.free(s)
    assert cache.blocks_used == 0


def test_it_grows_by_doubling_up_to_its_maximum(rng: np.random.Generator) -> None:
    cache = PagedCache(LAYERS, HKV, D, initial_tokens=16, max_tokens=100)
    assert (cache.blocks, cache.max_blocks, cache.blocks_available) == (1, 7, 7)
    a = cache.sequence()
    sizes = []
    for _ in range(112):
        cache.append(a)
        sizes.append(cache.blocks)
    assert sorted(set(sizes)) == [1, 2, 4, 7] and cache.version == 3
    with pytest.raises(CacheFull, match="1 more blocks of 16 tokens are needed, 7 of at most 7 are used"):
        cache.append(a)
    assert len(a) == 112 and cache.blocks_available == 0
    b = cache.fork(a, 100)
    with pytest.raises(CacheFull):
        cache.append(b)  # its own copy of the seventh block is one too many
    cache.free(a)
    assert len(cache.append(b)) == 1, "the block is its own now"
    unbounded = PagedCache(1, 1, 1, initial_tokens=0)
    assert unbounded.blocks == unbounded.nbytes == unbounded.nbytes_used == 0 and unbounded.blocks_available is None
    unbounded.append(unbounded.sequence(), 1000)
    assert unbounded.blocks == 63


def test_what_a_full_cache_refuses_changes_nothing(rng: np.random.Generator) -> None:
    cache, (a, b), _ = filled(rng, [20, 20], initial_tokens=64, max_tokens=64)
    twin = cache.fork(a)
    before = [s.blocks.tolist() for s in (a, b, twin)], cache.blocks_free
    for sequences, counts in (([b, a], [1, 1]), ([a, twin], 1), ([b], 13)):
        with pytest.raises(CacheFull):
            cache.extend(sequences, counts)
        assert ([s.blocks.tolist() for s in (a, b, twin)], cache.blocks_free) == before
        assert [len(s) for s in (a, b, twin)] == [20, 20, 20]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_goes_its_own_way(copied: Any, rng: np.random.Generator) -> None:
    cache = PagedCache(LAYERS, HKV, D, value_dim=DV, initial_tokens=32)
    a = cache.sequence()
    cache.extend([a], [20])
    b = cache.fork(a, 18)
    cache2, a2, b2 = copied((cache, a, b))
    assert not any(np.shares_memory(x, y) for x, y in zip(cache.k + cache.v, cache2.k + cache2.v, strict=True))
    cache.extend([a, b], [1, 15])
    cache.free(a)
    assert (len(a2), len(b2), cache2.blocks_used, cache2.references(int(a2.blocks[1]))) == (20, 18, 2, 2)
    with pytest.raises(ValueError, match="belongs to another cache"):
        cache.extend([a2])
    assert cache2.extend([a2, b2]).slots.tolist() == [(32 + 4), 16 + 2]
    assert a2.blocks.tolist() == [0, 2] and b2.blocks.tolist() == [0, 1]


@pytest.mark.parametrize("count", [2**31 * 16, 2**62, 2**63 - 8, 2**63 - 1, 2**63, 2**70])
def test_more_tokens_than_any_cache_holds(count: int) -> None:
    cache = PagedCache(LAYERS, HKV, D, initial_tokens=64)
    a, b = cache.sequence(), cache.sequence()
    cache.append(a, 3)
    for sequences, counts in (([a], [count]), ([b, a], [1, count]), ([a, b], [count, count])):
        with pytest.raises(CacheFull, match="more than any cache holds"):
            cache.extend(sequences, counts)
    assert (len(a), len(b), cache.blocks, cache.blocks_free) == (3, 0, 4, 3)
    for block in (-1, 4, 99):
        with pytest.raises(IndexError, match="no block"):
            cache.references(block)


def test_block_lists_used_wrongly() -> None:
    a, b = BlockList(), BlockList()
    for use in (
        lambda: BlockPool(0, 4),
        lambda: BlockPool(16, -1),
        lambda: BlockPool(16, 4).needed([a, b], [1]),
        lambda: BlockPool(16, 4).append([a], [-1]),
        lambda: BlockPool(16, 1).append([a, b], [10, 10]),
        lambda: BlockPool(16, 4).append([None], [1]),
        lambda: BlockPool(16, 4).count_on([None]),
        lambda: BlockPool(16, 4).fork(a, 99),
        lambda: BlockPool(16, 4).truncate(a, -1),
        lambda: BlockPool.tables([None]),
        lambda: BlockPool.lengths([None]),
    ):
        with pytest.raises(ValueError, match="BlockPool"):
            use()
    assert a.length == b.length == 0


def test_tables_and_lengths(rng: np.random.Generator) -> None:
    cache, (a, b, c), _ = filled(rng, [33, 0, 16])
    tables = cache.tables([c, a, b])
    assert tables.dtype == np.int32 and tables.shape == (3, 3)
    assert tables[0].tolist() == [*c.blocks, -1, -1] and tables[1].tolist() == a.blocks.tolist()
    assert tables[2].tolist() == [-1, -1, -1]
    assert cache.lengths([c, a, b]).tolist() == [16, 33, 0]
    assert cache.tables([]).shape == (0, 0) and len(cache.lengths([])) == 0
    step = cache.extend([], [])
    assert step.attend(0, np.zeros((0, 4, D), np.float32)).shape == (0, 4, DV)


def test_memory(rng: np.random.Generator) -> None:
    sizes = {}
    for dtype in ("float32", "float16", "bfloat16", "int8"):
        cache, _, _ = filled(rng, [100], dtype, initial_tokens=320)
        assert cache.blocks == 20 and cache.blocks_used == 7
        sizes[dtype] = cache.nbytes
        assert cache.nbytes_used == cache.nbytes // 20 * 7
    assert sizes["float32"] == LAYERS * 320 * HKV * (D + DV) * 4
    assert sizes["float16"] == sizes["bfloat16"] == sizes["float32"] // 2
    assert sizes["int8"] == sizes["float32"] // 4 + LAYERS * 320 * HKV * 2 * 4


def test_mistakes() -> None:
    cache, other = PagedCache(LAYERS, HKV, D), PagedCache(LAYERS, HKV, D)
    a = cache.sequence()
    cache.append(a, 5)
    wrong: list[tuple[Any, str]] = [
        (lambda: other.append(a), "another cache"),
        (lambda: other.tables([a]), "another cache"),
        (lambda: other.fork(a), "another cache"),
        (lambda: other.free(a), "another cache"),
        (lambda: cache.extend([a, a]), "twice"),
        (lambda: cache.reorder([a, a], [0, 0]), "twice"),
        (lambda: cache.extend([a], [1, 2]), "2 counts for 1 sequences"),
        (lambda: cache.append(a, -1), "not be negative"),
        (lambda: cache.view([a], [-1]), "not negative"),
        (lambda: cache.fork(a, 6), "cannot fork at 6 of 5"),
        (lambda: cache.truncate(a, 6), "cannot truncate 5 tokens to 6"),
        (lambda: cache.truncate(a, -1), "cannot truncate"),
        (lambda: cache.reorder([a], [1]), "parents must lie in 0 to 0"),
        (lambda: PagedCache(-1, 1, 1), "layers"),
        (lambda: PagedCache(1, 1, 1, block_size=24), "multiple of 16"),
        (lambda: PagedCache(1, 1, 1, block_size=0), "multiple of 16"),
        (lambda: PagedCache(1, 1, 1, dtype="int4"), "dtype"),
        (lambda: PagedCache(1, 1, 1, max_tokens=-1), "max_tokens"),
    ]
    for call, message in wrong:
        with pytest.raises(ValueError, match=message):
            call()
        assert len(a) == 5 and cache.blocks_used == 1
    cache.free(a)
    for call in (lambda: cache.free(a), lambda: cache.fork(a), lambda: cache.lengths([a])):
        with pytest.raises(ValueError, match="freed"):
            call()
