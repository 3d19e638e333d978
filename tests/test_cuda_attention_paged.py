"""attention_paged on a GPU: what only its memory has. Lengths and tables that the host does not know, entries that
nobody has checked, keys split over blocks, and the names of flash-attn over all of that."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import qkv
from checks import same_bits

pytestmark = pytest.mark.skipif(not qkv.cuda.is_available(), reason="no GPU, and QKV_CUDA=emulated is not set")

BF16, F16, F32 = ml_dtypes.bfloat16, np.float16, np.float32
HKV = 2


@pytest.fixture
def invariant() -> Iterator[None]:
    qkv.cuda.set_batch_invariant(True)
    yield
    qkv.cuda.set_batch_invariant(False)


class Cache:
    """Sequences of `lengths` keys scattered over blocks of `size`; the same packed, in q's dtype, in k and v."""

    def __init__(
        self, rng: np.random.Generator, lengths: list[int], size: int, D: int = 64, dtype: Any = BF16, q: Any = None
    ) -> None:
        self.lengths, self.size = np.array(lengths, np.int32), size
        counts = [-(-n // size) for n in lengths]
        self.blocks = sum(counts) + 2
        self.tables = np.full((len(lengths), max(counts) + 1), -7, np.int32)
        order = rng.permutation(self.blocks)
        for b, n in enumerate(counts):
            self.tables[b, :n], order = order[:n], order[n:]
        places = [(self.tables[b, j // size], j % size) for b, n in enumerate(lengths) for j in range(n)]
        at = tuple(np.array(places, np.intp).T)
        self.caches, self.scales, packed = [], {}, []
        for name in ("k", "v"):
            shape = (self.blocks, size, HKV, D)
            if dtype == np.int8:
                cache: Any = rng.integers(-127, 128, shape).astype(np.int8)
                scale = rng.uniform(0.001, 0.02, shape[:3]).astype(F32)
                self.scales[f"{name}_scale"] = qkv.cuda.array(scale)
                values = cache.astype(F32) * scale[..., None]
            else:
                cache = values = rng.standard_normal(shape).astype(dtype)
            self.caches.append(qkv.cuda.array(cache))
            packed.append(values[at].astype(q or dtype))
        self.k, self.v = packed
        self.starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)

    def attend(self, q: Any, tables: Any = None, lengths: Any = None, **options: Any) -> Any:
        tables = self.tables if tables is None else tables
        lengths = self.lengths if lengths is None else lengths
        return qkv.attention_paged(qkv.cuda.array(q), *self.caches, tables, lengths, **self.scales, **options)

    def expected(self, q: Any, **options: Any) -> Any:
        """One query each, by the reference in float64."""
        q, k, v = (x.astype(np.float64) for x in (q, self.k, self.v))
        return qkv.reference.attention_varlen(q, k, v, np.arange(len(q) + 1), self.starts, **options)


def close(out: Any, ref: Any) -> bool:
    bound = {BF16: 1e-2, F16: 2e-3, F32: 2e-6}[out.dtype.type] * np.abs(ref).max()
    return out.shape == ref.shape and bool(np.abs(out.astype(np.float64) - ref).max() <= bound)


@pytest.mark.parametrize("integer", [np.int32, np.int64])
@pytest.mark.parametrize("dtype", [BF16, F32])
def test_lengths_and_tables_on_the_device(dtype: Any, integer: Any, rng: np.random.Generator) -> None:
    """The same numbers as from host memory; a table may be part of a wider one."""
    cache = Cache(rng, [300, 1, 0, 77], 16, dtype=dtype)
    q = rng.standard_normal((4, 6, 64)).astype(dtype)
    wide = np.full((4, cache.tables.shape[1] + 9), 10**6, integer)
    wide[:, : cache.tables.shape[1]] = cache.tables
    tables = qkv.cuda.array(wide)[:, : cache.tables.shape[1]]
    lengths = qkv.cuda.array(cache.lengths.astype(integer))
    out, lse, weights = cache.attend(q, tables, lengths, return_lse=True, return_weights=True)
    assert close(out.numpy(), cache.expected(q)) and [w.shape for w in weights] == [(6, 1, n) for n in cache.lengths]
    assert np.isneginf(lse.numpy()[:, 2]).all() and (out.numpy()[2] == 0).all()
    assert same_bits(cache.attend(q, tables, lengths).numpy(), out.numpy())
    starts = qkv.cuda.array(np.arange(5).astype(integer))
    assert close(cache.attend(q, tables, lengths, cu_seqlens_q=starts).numpy(), cache.expected(q))
    for b, n in enumerate(cache.lengths):
        np.testing.assert_allclose(weights[b].numpy().astype(F32).sum(-1), float(n > 0), atol=2e-2)


def test_lengths_beyond_the_table_are_cut(rng: np.random.Generator) -> None:
    cache = Cache(rng, [48, 32], 16)
    q = rng.standard_normal((2, 2, 64)).astype(BF16)
    tables = qkv.cuda.array(np.ascontiguousarray(cache.tables[:, :3]))
    whole = cache.attend(q, tables, qkv.cuda.array(np.array([48, 0], np.int64))).numpy()
    for length in ([2**62, -5], [49, -(2**63)]):
        assert same_bits(cache.attend(q, tables, qkv.cuda.array(np.array(length, np.int64))).numpy(), whole)


@pytest.mark.parametrize("q_dtype, dtype", [(BF16, BF16), (F16, BF16), (BF16, np.int8), (F16, F32), (F32, F16)])
def test_entries_that_name_no_block(q_dtype: Any, dtype: Any, rng: np.random.Generator) -> None:
    """Rows that see such a key are NaN, the others as they were, and nothing outside of the cache is read."""
    cache = Cache(rng, [200, 90, 64], 16, dtype=dtype, q=q_dtype)
    q = rng.standard_normal((8, 4, 64)).astype(q_dtype)
    starts = np.array([0, 4, 6, 8])
    lengths = qkv.cuda.array(cache.lengths)
    right = cache.attend(q, qkv.cuda.array(cache.tables), lengths, cu_seqlens_q=starts, causal=True).numpy()
    assert np.isfinite(right.astype(F32)).all()
    for wrong in (-1, cache.blocks, 2**40, -(2**40), 2**31):
        tables = cache.tables.astype(np.int64)
        tables[0, 3], tables[2, 0] = wrong, wrong
        given = {"cu_seqlens_q": starts, "causal": True}
        out = cache.attend(q, qkv.cuda.array(tables), lengths, **given).numpy()
        assert np.isnan(out[:4].astype(F32)).all() and np.isnan(out[6:].astype(F32)).all()
        assert same_bits(out[4:6], right[4:6])
        out = cache.attend(q, qkv.cuda.array(tables), lengths, window=(100, 0), **given).numpy()
        assert np.isfinite(out[:6].astype(F32)).all(), "a window that has left the block behind"


@pytest.mark.parametrize("options", [{}, {"softcap": 5.0}, {"window": (500, 0)}], ids=lambda o: ",".join(o) or "plain")
@pytest.mark.parametrize("dtype", [BF16, np.int8, F32])
def test_long_and_short_sequences_are_split_alike(dtype: Any, options: Any, rng: np.random.Generator) -> None:
    """Few rows over many keys: each sequence's keys are dealt out to as many blocks, of which a short one leaves most
    empty. With the other kind of split, at fixed keys, the same numbers."""
    q_dtype = F32 if dtype == F32 else BF16
    cache = Cache(rng, [2300, 5, 0, 1025], 16, D=32, dtype=dtype, q=q_dtype)
    q = rng.standard_normal((4, 4, 32)).astype(q_dtype)
    ref = cache.expected(q, **options)
    lengths, tables = qkv.cuda.array(cache.lengths), qkv.cuda.array(cache.tables)
    for invariant in (False, True):
        qkv.cuda.set_batch_invariant(invariant)
        try:
            for given in ((), (tables, lengths)):
                out, lse = cache.attend(q, *given, return_lse=True, **options)
                assert close(out.numpy(), ref) and lse.shape == (4, 4)
                assert same_bits(cache.attend(q, *given, **options).numpy(), out.numpy())
            assert close(cache.attend(q[:1], tables[:1], lengths[:1], **options).numpy(), ref[:1])
        finally:
            qkv.cuda.set_batch_invariant(False)


DEALT: list[tuple[int, dict[str, Any]]] = [
    (64, {"sinks": np.array([0.5, -1, 2, 0], F32), "alibi_slopes": np.array([0.1, 0.02, 0.3, 0], F32)}),
    (128, {"relative_bias": np.linspace(-2, 2, 4 * 201, dtype=F32).reshape(4, 201)}),
    (256, {"window": (550, 0), "softcap": 8.0}),
    (64, {"causal": "top_left"}),
]


@pytest.mark.parametrize("D, options", DEALT, ids=lambda o: ",".join(o) if isinstance(o, dict) else str(o))
def test_keys_dealt_out_to_blocks_that_know_no_borders(D: int, options: Any, rng: np.random.Generator) -> None:
    cache = Cache(rng, [700, 5, 0, 600], 16, D=D)
    q = rng.standard_normal((4, 4, D)).astype(BF16)
    given = qkv.cuda.array(cache.tables), qkv.cuda.array(cache.lengths)
    there = {name: qkv.cuda.array(x) if isinstance(x, np.ndarray) else x for name, x in options.items()}
    assert close(cache.attend(q, *given, **there).numpy(), cache.expected(q, **options))


@pytest.mark.skipif(not qkv.cuda.is_emulated(), reason="counts the emulator's multiprocessors")
@pytest.mark.parametrize("invariant", [False, True])
def test_the_workspace_has_room_for_the_rows_of_parts(invariant: bool, rng: np.random.Generator) -> None:
    """A row of a part is D sums and 16 bytes. Each of eight workers, two on a multiprocessor, leaves two parts at most,
    with as many rows as a sequence has, or all if the host does not know; or each 1024 keys that a table has room for
    leave one of all rows."""
    D, heads = 128, 4 * HKV
    cache = Cache(rng, [2100, 30, 1500], 16, D=D)
    given = qkv.cuda.array(cache.tables), qkv.cuda.array(cache.lengths)
    chunks = -(-cache.tables.shape[1] * 16 // 1024)
    qkv.cuda.set_batch_invariant(invariant)
    try:
        for counts, known, queries in (([1, 1, 1], True, 1), ([1, 1, 1], False, 3), ([2, 0, 5], True, 5)):
            q = qkv.cuda.array(rng.standard_normal((sum(counts), heads, D)).astype(BF16))
            starts: Any = np.cumsum([0, *counts]).astype(np.int32)
            starts = starts if known else qkv.cuda.array(starts)
            gc.collect()
            qkv.cuda.synchronize()
            qkv.cuda.trim()
            out = cache.attend(q, *given, cu_seqlens_q=starts)
            found = qkv.cuda.memory_info()["cached_bytes"]  # what was a workspace, and `starts` on the device
            rows = chunks * sum(counts) * heads if invariant else 2 * 8 * 4 * queries
            assert 0 <= found - rows * (4 * D + 16) <= 2 * 512, (counts, known)
            del out
    finally:
        qkv.cuda.set_batch_invariant(False)


SEVERAL_TILES: list[dict[str, Any]] = [
    {"causal": True},
    {"causal": True, "window": (100, 0)},
    {"causal": "top_left", "window": (70, None)},
    {"window": (90, 37)},
    {},
]


@pytest.mark.parametrize("options", SEVERAL_TILES, ids=str)
@pytest.mark.parametrize("group, D", [(1, 64), (3, 32), (2, 256)])
@pytest.mark.parametrize("invariant", [False, True])
def test_prompts_of_several_tiles_are_dealt_out(
    invariant: bool, group: int, D: int, options: Any, rng: np.random.Generator
) -> None:
    """Each tile of rows counts for the keys that it sees: on a diagonal, in a band, all; fewer keys than queries."""
    counts, lengths = [1, 150, 1, 0, 70, *[1] * 10], [1100, 400, 90, 33, 40, *range(20, 30)]
    cache, starts = Cache(rng, lengths, 16, D=D), np.cumsum([0, *counts])
    q = rng.standard_normal((starts[-1], HKV * group, D)).astype(BF16)
    given = qkv.cuda.array(cache.tables), qkv.cuda.array(cache.lengths)
    there = qkv.cuda.array(starts.astype(np.int32))
    wide = [x.astype(np.float64) for x in (q, cache.k, cache.v)]
    ref, ref_lse = qkv.reference.attention_varlen(*wide, starts, cache.starts, return_lse=True, **options)
    qkv.cuda.set_batch_invariant(invariant)
    try:
        out, lse = cache.attend(q, *given, cu_seqlens_q=there, return_lse=True, **options)
        assert close(out.numpy(), ref)
        np.testing.assert_allclose(lse.numpy(), ref_lse, atol=1e-3)
        # slots as large as the parts, since the host knows how many queries there are
        same = cache.attend(q, *given, cu_seqlens_q=starts, **options)
        assert same_bits(same.numpy(), out.numpy())
    finally:
        qkv.cuda.set_batch_invariant(False)


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("invariant", [False, True])
def test_a_recorded_step_follows_the_lengths(invariant: bool, many: bool, rng: np.random.Generator) -> None:
    """They change between replays, and with them who attends to what: right, and the same bits as a call of its own.
    many: several tiles of rows each, of which the last see more keys than the first, or fewer than there are tokens."""
    most = [1300, 90, 1100, 1025]
    cache = Cache(rng, most, 16, D=32)
    group = 40 if many else 3
    queries = np.array([0, 3, 3, 5, 6]) if many else np.arange(5)
    q = qkv.cuda.array(rng.standard_normal((queries[-1], HKV * group, 32)).astype(BF16))
    tables, there, starts = (qkv.cuda.array(x) for x in (cache.tables, cache.lengths, queries.astype(np.int32)))
    options: dict[str, Any] = {"cu_seqlens_q": starts, "causal": True, "return_lse": True}

    def call() -> Any:
        return qkv.attention_paged(q, *cache.caches, tables, there, **options)

    qkv.cuda.set_batch_invariant(invariant)
    try:
        (out, lse), recording = qkv.cuda.record(call)
        assert recording.complete
        for lengths in (most, [0, 90, 2, 1024], [1300, 1, 0, 0], [0, 0, 0, 0]):
            qkv.cuda.copy_into(there, qkv.cuda.array(np.array(lengths, np.int32)))
            recording.replay()
            first = out.numpy(), lse.numpy()
            rows = [np.arange(s, s + n) for s, n in zip(cache.starts[:-1], lengths, strict=True)]
            k, v = (x[np.concatenate(rows)].astype(np.float64) for x in (cache.k, cache.v))
            ref, ref_lse = qkv.reference.attention_varlen(
                q.numpy().astype(np.float64), k, v, queries, np.cumsum([0, *lengths]), causal=True, return_lse=True
            )
            assert close(first[0], ref) if ref.any() else not first[0].any(), lengths
            np.testing.assert_allclose(first[1], ref_lse, atol=1e-3)
            recording.replay()
            for found in ((out.numpy(), lse.numpy()), [x.numpy() for x in call()]):
                assert all(same_bits(x, y) for x, y in zip(found, first, strict=True)), lengths
    finally:
        qkv.cuda.set_batch_invariant(False)


@pytest.mark.parametrize("size", [16, 48, 256])
@pytest.mark.parametrize("dtype", [BF16, F16, np.int8, F32])
def test_the_bits_of_any_other_layout(dtype: Any, size: int, rng: np.random.Generator, invariant: None) -> None:
    """Packed, or in blocks of any size, alone or in a batch, lengths here or there: the same sums in the same order."""
    for q_dtype, D in ((BF16, 64), (F16, 128), (F32, 40), (BF16, 20)):
        lengths = [1100, 3, 257]
        cache = Cache(rng, lengths, size, D, dtype, q_dtype)
        queries = np.array([0, 2, 3, 20])
        q = rng.standard_normal((20, 4, D)).astype(q_dtype)
        given: Any = {"causal": True, "return_lse": True}
        packed = [qkv.cuda.array(x) for x in (q, cache.k, cache.v)]
        expected = [x.numpy() for x in qkv.attention_varlen(*packed, queries, cache.starts, **given)]
        found = [x.numpy() for x in cache.attend(q, cu_seqlens_q=queries, **given)]
        assert all(same_bits(x, y) for x, y in zip(found, expected, strict=True)), (q_dtype, D)
        tables, there = qkv.cuda.array(cache.tables), qkv.cuda.array(cache.lengths)
        for b in range(3):
            rows = slice(queries[b], queries[b + 1])
            one = {"cu_seqlens_q": np.array([0, queries[b + 1] - queries[b]]), **given}
            out, lse = cache.attend(q[rows], tables[b : b + 1], there[b : b + 1], **one)
            assert same_bits(out.numpy(), expected[0][rows]), (q_dtype, D, b)
            assert same_bits(lse.numpy(), np.ascontiguousarray(expected[1][:, rows]))


def test_what_is_not_finite_in_a_cache(rng: np.random.Generator) -> None:
    """Values of NaN reach the rows that see them, and no other, whatever they are stored as."""
    for q_dtype, dtype in ((BF16, F16), (F16, F16), (BF16, F32), (BF16, np.int8)):
        cache = Cache(rng, [1300, 70], 16, dtype=dtype, q=q_dtype)
        q = rng.standard_normal((2, 2, 64)).astype(q_dtype)
        right = cache.attend(q).numpy()
        block, place = cache.tables[0, 70], 3
        name = "v_scale" if dtype == np.int8 else None
        array = (cache.scales[name] if name else cache.caches[1]).numpy().copy()
        array[block, place] = np.nan
        if name:
            cache.scales[name] = qkv.cuda.array(array)
        else:
            cache.caches[1] = qkv.cuda.array(array)
        out = cache.attend(q).numpy()
        assert np.isnan(out[0].astype(F32)).all() and same_bits(out[1], right[1]), (q_dtype, dtype)
        assert np.isfinite(cache.attend(q, window=(20, 0)).numpy().astype(F32)).all()


def test_wide_heads_and_odd_strides(rng: np.random.Generator) -> None:
    """The kernels without tensor cores, and rows that are not aligned."""
    for dtype, D in ((np.int8, 272), (F16, 272), (F32, 100), (BF16, 36), (np.int8, 36)):
        for q_dtype in (BF16, F32):
            cache = Cache(rng, [150, 20], 32, D, dtype, q_dtype)
            q = rng.standard_normal((2, 4, D)).astype(q_dtype)
            assert close(cache.attend(q).numpy(), cache.expected(q)), (dtype, D, q_dtype)


def test_arguments_in_the_wrong_memory_or_of_the_wrong_kind(rng: np.random.Generator) -> None:
    cache = Cache(rng, [20, 5], 16)
    q = qkv.cuda.array(rng.standard_normal((2, 2, 64)).astype(BF16))
    good = (cache.tables, cache.lengths)
    with pytest.raises(TypeError, match="attention_paged: q is on a CUDA device, v_cache in host memory"):
        qkv.attention_paged(q, cache.caches[0], cache.caches[1].numpy(), *good)
    for wrong in (np.int16, np.uint32, F32):
        with pytest.raises(TypeError, match="attention_paged: block_tables must hold int"):
            qkv.attention_paged(q, *cache.caches, qkv.cuda.array(cache.tables.astype(wrong)), cache.lengths)
    with pytest.raises(ValueError, match="attention_paged: block_tables must be contiguous"):
        qkv.attention_paged(q, *cache.caches, qkv.cuda.array(cache.tables)[:, ::2], np.array([5, 5]))
    with pytest.raises(ValueError, match=r"attention_paged: kv_lengths must be \(2,\)"):
        qkv.attention_paged(q, *cache.caches, cache.tables, qkv.cuda.array(np.array([5], np.int32)))


# ---- the names of flash-attn, with everything on the device


def test_varlen_over_a_block_table(rng: np.random.Generator, invariant: None) -> None:
    cache = Cache(rng, [70, 33], 20)
    q = qkv.cuda.array(rng.standard_normal((14, 4, 64)).astype(BF16))
    starts, there = np.array([0, 5, 14], np.int32), qkv.cuda.array(cache.starts)
    expected = qkv.flash_attn_varlen_func(
        q, *(qkv.cuda.array(x) for x in (cache.k, cache.v)), starts, cache.starts, 9, 70, causal=True
    ).numpy()
    for cu_q in (starts, qkv.cuda.array(starts)):
        for cu_k in (cache.starts, there):
            for table in (cache.tables, qkv.cuda.array(cache.tables)):
                out, _, dropped = qkv.flash_attn_varlen_func(
                    q, *cache.caches, cu_q, cu_k, 9, 70, causal=True, return_attn_probs=True, block_table=table
                )
                assert same_bits(out.numpy(), expected) and dropped.shape == (0,)


@pytest.mark.parametrize("new", [0, 1, 3])
@pytest.mark.parametrize("paged", [False, True])
@pytest.mark.parametrize("dtype", [BF16, F16, F32])
def test_kvcache_of_lengths_on_the_device(dtype: Any, paged: bool, new: int, rng: np.random.Generator) -> None:
    """As from host memory: rotation, new tokens, padding on the left, rows or blocks."""
    lengths, left = np.array([37, 0, 100], np.int32), np.array([5, 0, 2], np.int32)
    shape = (30, 16, HKV, 32) if paged else (5, 131, HKV, 32)
    caches = [rng.standard_normal(shape).astype(dtype) for _ in range(2)]
    q = rng.standard_normal((3, max(new, 1), 4, 32)).astype(dtype)
    given: dict[str, Any] = {"causal": True, "return_softmax_lse": True}
    if new:
        given["k"], given["v"] = (rng.standard_normal((3, new, HKV, 32)).astype(dtype) for _ in range(2))
        given["rotary_cos"], given["rotary_sin"] = (rng.standard_normal((140, 8)).astype(dtype) for _ in range(2))
    where: dict[str, Any] = {"cache_seqlens": lengths, "cache_leftpad": left}
    if paged:
        where["block_table"] = rng.permutation(30)[:24].reshape(3, 8).astype(np.int32)
    else:
        where["cache_batch_idx"] = np.array([4, 0, 3], np.int32)
    results = []
    for integers in (where, {n: qkv.cuda.array(x) for n, x in where.items()}):
        there = [qkv.cuda.array(c) for c in caches]
        arrays = {n: qkv.cuda.array(x) if isinstance(x, np.ndarray) else x for n, x in given.items()}
        out, lse = qkv.flash_attn_with_kvcache(qkv.cuda.array(q), *there, **arrays, **integers)
        results.append([x.numpy() for x in (out, lse, *there)])
    assert all(same_bits(x, y) for x, y in zip(*results, strict=True))
    wide = {n: x.astype(np.float64) if getattr(x, "dtype", None) == dtype else x for n, x in given.items()}
    ref = qkv.reference.flash_attn_with_kvcache(
        q.astype(np.float64), *(c.astype(np.float64) for c in caches), **wide, **where
    )
    assert np.abs(results[0][0].astype(np.float64) - ref[0]).max() <= {BF16: 6e-2, F16: 8e-3, F32: 1e-5}[dtype]


def test_sdpa_without_numpy(rng: np.random.Generator) -> None:
    q, k, v = (rng.standard_normal(s).astype(F16) for s in ((2, 6, 5, 32), (2, 2, 9, 32), (2, 3, 9, 16)))
    there = [qkv.cuda.array(x) for x in (q, k, v)]
    out = qkv.scaled_dot_product_attention(*there, enable_gqa=True).numpy()
    ref = qkv.reference.attention(*(x.astype(np.float64) for x in (q, k.repeat(3, 1), v.repeat(2, 1))))
    assert close(out, ref)
