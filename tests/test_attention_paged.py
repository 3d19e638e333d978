"""attention_paged: the bits of attention_varlen over the same keys, wherever they lie, and the float64 reference."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import naive
import numpy as np
import pytest
import qkv
from checks import (
    BFLOAT16,
    DTYPES,
    FLOAT16,
    FLOAT32,
    assert_close,
    each_isa,
    normal,
    oracle,
    same_bits,
    strided,
    use_isa,
)
from on_device import EMULATED, fewer

INT8 = np.dtype(np.int8)
CACHES = {**DTYPES, "int8": INT8}
H, HKV = 4, 2


@pytest.fixture(autouse=True)
def _invariant() -> Iterator[None]:
    """On a GPU keys are split by what else is in a batch, unless it is told not to."""
    qkv.cuda.set_batch_invariant(True)
    yield
    qkv.cuda.set_batch_invariant(False)


class Paged:
    """A cache with sequences of `lengths` keys scattered over it, everything else in it NaN or nonsense."""

    def __init__(
        self,
        rng: np.random.Generator,
        lengths: list[int],
        size: int = 16,
        D: int = 16,
        Dv: int = 24,
        dtype: Any = FLOAT32,
    ) -> None:
        counts = [-(-n // size) for n in lengths]
        blocks, self.size, self.lengths = sum(counts) + 3, size, np.array(lengths, np.int32)
        order = rng.permutation(blocks)
        self.tables = np.full((len(lengths), max(counts, default=0) + 1), -1, np.int32)
        for b, n in enumerate(counts):
            self.tables[b, :n], order = order[:n], order[n:]
        self.scales: dict[str, Any] = {}
        self.caches = []
        packed = []
        for name, width in (("k", D), ("v", Dv)):
            shape = (blocks, size, HKV, width)
            if dtype == INT8:
                cache: Any = rng.integers(-127, 128, shape).astype(np.int8)
                scale = rng.uniform(0, 0.02, shape[:3]).astype(np.float32)
                values = cache.astype(np.float32) * scale[..., None]
            else:
                cache = values = normal(rng, shape, dtype)
            places = [(self.tables[b, j // size], j % size) for b, n in enumerate(lengths) for j in range(n)]
            at = tuple(np.array(places, np.intp).reshape(-1, 2).T)
            packed.append(values[at])
            used = np.zeros(shape[:2], bool)
            used[at] = True
            if dtype == INT8:
                scale[~used] = np.nan
                self.scales[f"{name}_scale"] = scale
            else:
                cache[~used] = np.nan
            self.caches.append(cache)
        self.k, self.v = packed  # (total, Hkv, width), dequantised
        self.starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)

    def attend(self, q: Any, **options: Any) -> Any:
        return qkv.attention_paged(q, *self.caches, self.tables, self.lengths, **self.scales, **options)


def starts_of(queries: list[int]) -> Any:
    return np.concatenate([[0], np.cumsum(queries)]).astype(np.int32)


def flat(result: Any) -> list[Any]:
    return [a for part in result for a in (part if isinstance(part, list) else [part])]


def options_for(rng: np.random.Generator, B: int) -> list[dict[str, Any]]:
    return [
        {},
        {"causal": True},
        {"causal": "top_left", "scale": 0.3},
        {"window": (7, 2), "softcap": 3.0},
        {"window": (40, None), "causal": True},
        {"relative_bias": normal(rng, (H, 11)), "causal": True},
        {"alibi_slopes": rng.uniform(0, 0.5, (B, H)).astype(np.float32), "causal": True},
        {"sinks": normal(rng, H), "window": (3, None)},
    ]


# Keys in several tiles and in one, as many as queries, none.
QUERIES, LENGTHS = fewer(
    [[3, 1, 0, 20, 1, 5, 40], [600, 17, 5, 20, 0, 257, 33]], [[3, 1, 0, 20, 1, 5], [300, 17, 5, 20, 0, 33]]
)


@pytest.mark.parametrize("size", fewer([16, 32, 48, 128, 256], [16, 48]))
@pytest.mark.parametrize("cache", CACHES)
def test_equals_contiguous_keys_to_the_bit(cache: str, size: int, rng: np.random.Generator) -> None:
    """float32 queries over caches of any dtype: what attention_varlen makes of the same keys in float32."""
    for D, Dv in fewer([(16, 24), (7, 5), (64, 64), (80, 1)], [(7, 5), (64, 64)]):
        paged = Paged(rng, LENGTHS, size, D, Dv, CACHES[cache])
        q, starts = normal(rng, (sum(QUERIES), H, D)), starts_of(QUERIES)
        k, v = paged.k.astype(np.float32), paged.v.astype(np.float32)
        for options in options_for(rng, len(LENGTHS)):
            every = {**options, "return_lse": True, "return_weights": True}
            for isa in each_isa():
                out = paged.attend(q, cu_seqlens_q=starts, **every)
                expected = qkv.attention_varlen(q, k, v, starts, paged.starts, **every)
                assert len(out) == 3 and isinstance(out[2], list)
                what = f"{isa} {D} {sorted(options)}"
                assert all(same_bits(a, b) for a, b in zip(flat(out), flat(expected), strict=True)), what
                assert same_bits(paged.attend(q, cu_seqlens_q=starts, **options), out[0])


@pytest.mark.parametrize("cache", CACHES)
def test_against_the_reference(cache: str, dtype: np.dtype[Any], rng: np.random.Generator) -> None:
    """Queries and caches of every dtype; the yardstick sees the cache's values in the queries' dtype."""
    paged = Paged(rng, LENGTHS, 32, dtype=CACHES[cache])
    q, starts = normal(rng, (sum(QUERIES), H, 16), dtype), starts_of(QUERIES)
    for options in options_for(rng, len(LENGTHS)):
        scales = {name: np.nan_to_num(s) for name, s in paged.scales.items()}
        caches = [np.where(np.isnan(c), 0, c).astype(c.dtype) if cache != "int8" else c for c in paged.caches]
        with np.errstate(all="ignore"):
            ref = qkv.reference.attention_paged(
                q.astype(np.float64), *caches, paged.tables, paged.lengths, cu_seqlens_q=starts, **scales, **options
            )
        parts = []
        for b in range(len(LENGTHS)):
            one = q[starts[b] : starts[b + 1]]
            own = {**options}
            if np.ndim(own.get("alibi_slopes")) == 2:
                own["alibi_slopes"] = own["alibi_slopes"][b]
            keys = slice(paged.starts[b], paged.starts[b + 1])
            k, v = (x[None, keys].astype(dtype) for x in (paged.k, paged.v))
            parts.append(naive.attention(one[None], k, v, layout="bshd", **own)[0][0])
        for _ in each_isa():
            out = paged.attend(q, cu_seqlens_q=starts, **options)
            assert_close(out, ref, np.concatenate(parts), f"{cache} {sorted(options)}")


def test_one_query_each_is_the_default(rng: np.random.Generator) -> None:
    lengths = [300, 17, 1, 0, 129]
    paged = Paged(rng, lengths)
    q = normal(rng, (5, H, 16))
    for _ in each_isa():
        out, lse = paged.attend(q, return_lse=True)
        assert same_bits(out, paged.attend(q, cu_seqlens_q=np.arange(6)))
        assert same_bits(out, paged.attend(q, causal=True)), "the query stands at the last key"
        assert (out[3] == 0).all() and np.isneginf(lse[:, 3]).all()
        weights = paged.attend(q, return_weights=True)[1]
        assert [w.shape for w in weights] == [(H, 1, n) for n in lengths]


def test_empty_batches_and_sizes() -> None:
    cache = np.zeros((3, 16, 2, 8), np.float32)
    table = np.zeros((0, 4), np.int32)
    none = np.zeros(0, np.int32)
    for _ in each_isa():
        out, lse, weights = qkv.attention_paged(
            np.ones((0, 4, 8), np.float32), cache, cache, table, none, return_lse=True, return_weights=True
        )
        assert out.shape == (0, 4, 8) and lse.shape == (4, 0) and weights == []
        one = np.ones((2, 4, 8), np.float32)
        out = qkv.attention_paged(one, cache[:0], cache[:0], np.zeros((2, 0), np.int32), np.zeros(2, np.int32))
        assert (out == 0).all()
        assert qkv.attention_paged(one, cache, cache[..., :0], np.zeros((2, 1), np.int64), [3, 4]).shape == (2, 4, 0)
        assert qkv.attention_paged(one[:, :0], cache[:, :, :0], cache[:, :, :0], [[0], [0]], [1, 2]).shape == (2, 0, 8)


@pytest.mark.parametrize("cache", CACHES)
def test_chunked_prefill_is_one_prefill(cache: str, rng: np.random.Generator) -> None:
    """Queries in chunks over a cache that fills: the same bits as all at once."""
    T = 70 if EMULATED else 300
    paged = Paged(rng, [T], 16, dtype=CACHES[cache])
    q = normal(rng, (T, H, 16))
    for options in ({"causal": True}, {"causal": True, "window": (20, 0), "softcap": 5.0}):
        for _ in each_isa():
            whole = paged.attend(q, cu_seqlens_q=[0, T], **options)
            for chunk in fewer((1, 7, 64, 257), (1, 33, 64)):
                parts = []
                for at in range(0, T, chunk):
                    stop = min(at + chunk, T)
                    paged.lengths = np.array([stop])
                    parts.append(paged.attend(q[at:stop], cu_seqlens_q=[0, stop - at], **options))
                assert same_bits(np.concatenate(parts), whole), f"{chunk} {sorted(options)}"
            paged.lengths = np.array([T])


@pytest.mark.parametrize("precision", ["highest", "bf16"])
def test_blocks_that_follow_one_another_are_read_in_place(precision: str, rng: np.random.Generator) -> None:
    """Tables in order, broken in one place, and with a step: the same bits as keys in one array."""
    T, size = 600, 16
    k, v = normal(rng, (T, 2, 16)), normal(rng, (T, 2, 16))
    q = normal(rng, (3, 4, 16))
    blocks = -(-T // size)
    broken = np.arange(blocks)
    broken[[7, 30]] = broken[[30, 7]]
    for table in (np.arange(blocks), broken, np.arange(blocks)[::-1].copy(), np.arange(0, 2 * blocks, 2)):
        caches = [np.full((2 * blocks, size, 2, 16), np.nan, np.float32) for _ in range(2)]
        for cache, x in zip(caches, (k, v), strict=True):
            for i, block in enumerate(table):
                cache[block, : len(x[i * size : i * size + size])] = x[i * size : i * size + size]
        for _ in each_isa():
            for n in (1, 3):
                starts = [0, n]
                given = {"causal": True, "precision": precision}
                out = qkv.attention_paged(q[:n], *caches, table[None], [T], cu_seqlens_q=starts, **given)
                assert same_bits(out, qkv.attention_varlen(q[:n], k, v, starts, [0, T], **given)), n


@pytest.mark.parametrize("isa", ["avx512_bf16", "amx"])
@pytest.mark.parametrize("heads", [2, 4, 6, 8])  # few rows read values of bfloat16 where they lie
@pytest.mark.parametrize("width", [1, 7, 16, 32, 33, 64, 80, 112, 128])
def test_where_products_are_of_bfloat16_caches_may_be(
    width: int, heads: int, isa: str, rng: np.random.Generator
) -> None:
    """Keys and values that were rounded when they were stored: the same bits as rounded at every look."""
    if isa not in qkv.isas():
        pytest.skip("no products of bfloat16 here")
    lengths, queries, kv_heads = [333, 16, 5], [1, 3, 5], 2
    total = sum(lengths)
    tables = np.arange(63).reshape(3, 21)[:, ::-1]
    token = [np.arange(n) for n in lengths]
    slots = np.concatenate([table[t // 16] * 16 + t % 16 for table, t in zip(tables, token, strict=True)])
    k, v = (3 * normal(rng, (total, kv_heads, width)) for _ in range(2))
    k[7], k[8], v[9], v[10] = 1e-39, 3.3e38, np.inf, 1e-39
    k[320], v[320] = 3.3e38, np.inf  # in the window: a score of -inf excludes it
    q, starts = normal(rng, (sum(queries), heads, width)), starts_of(queries)
    with use_isa(isa):
        for options in (
            {},
            {"window": (37, 0)},
            {"softcap": 5.0, "scale": 0.3},
            {"sinks": normal(rng, (heads,)), "alibi_slopes": qkv.alibi_slopes(heads).astype(np.float32)},
        ):
            seen = []
            for dtype in (FLOAT32, BFLOAT16):
                caches = [np.full((63, 16, kv_heads, width), np.nan, dtype) for _ in range(2)]
                qkv.paged_write(k, v, *caches, slots)
                given: Any = {"cu_seqlens_q": starts, "causal": True, "precision": "bf16", **options}
                seen.append(qkv.attention_paged(q, *caches, tables, np.array(lengths), **given))
            assert same_bits(*seen), sorted(options)


def test_batch_and_threads_do_not_matter(rng: np.random.Generator) -> None:
    for dtype in CACHES.values():
        paged = Paged(rng, LENGTHS, 16, 64, 64, dtype)
        q, starts = normal(rng, (sum(QUERIES), H, 64)), starts_of(QUERIES)
        for _ in each_isa():
            whole = paged.attend(q, cu_seqlens_q=starts, causal=True)
            for threads in fewer((1, 2, 7), (2,)):
                qkv.set_num_threads(threads)
                assert same_bits(paged.attend(q, cu_seqlens_q=starts, causal=True), whole)
            for b in range(len(LENGTHS)):
                rows = slice(starts[b], starts[b + 1])
                one = qkv.attention_paged(
                    q[rows],
                    *paged.caches,
                    paged.tables[b : b + 1],
                    paged.lengths[b : b + 1],
                    cu_seqlens_q=[0, QUERIES[b]],
                    causal=True,
                    **paged.scales,
                )
                assert same_bits(one, whole[rows])


def test_values_that_are_not_finite(rng: np.random.Generator) -> None:
    """They reach the rows that see them, and no other row, in paged memory as elsewhere."""
    paged = Paged(rng, [70, 40])
    q, starts = normal(rng, (110, H, 16)), np.array([0, 70, 110])
    for at, value in ((33, np.nan), (50, np.inf)):
        paged.caches[1][paged.tables[0, at // 16], at % 16] = value
        paged.v[at] = value
    for _ in each_isa():
        out = paged.attend(q, cu_seqlens_q=starts, causal=True)
        expected = qkv.attention_varlen(q, paged.k, paged.v, starts, paged.starts, causal=True)
        assert same_bits(out, expected) and np.isfinite(out[:33]).all() and np.isfinite(out[70:]).all()


def test_blocks_that_no_query_sees_are_never_looked_up(rng: np.random.Generator) -> None:
    """A window lets go of its oldest blocks: their entries may hold anything."""
    paged = Paged(rng, [300, 40])
    q = normal(rng, (2, H, 16))
    for _ in each_isa():
        expected = paged.attend(q, window=(50, 0))
        tables = paged.tables.copy()
        tables[0, : (299 - 50) // 16] = 2**31 - 1
        assert same_bits(qkv.attention_paged(q, *paged.caches, tables, paged.lengths, window=(50, 0)), expected)
        tables[0, (299 - 50) // 16] = -1
        with pytest.raises(ValueError, match="attention_paged: block_tables names block -1 for sequence 0"):
            qkv.attention_paged(q, *paged.caches, tables, paged.lengths, window=(50, 0))


def test_a_block_may_belong_to_many_sequences(rng: np.random.Generator) -> None:
    paged = Paged(rng, [64])
    q = normal(rng, (3, H, 16))
    for _ in each_isa():
        tables, lengths = np.repeat(paged.tables, 3, 0), np.array([64, 20, 64])
        out = qkv.attention_paged(q, *paged.caches, tables, lengths)
        for b in range(3):
            one = qkv.attention_paged(q[b : b + 1], *paged.caches, paged.tables, lengths[b : b + 1])
            assert same_bits(out[b : b + 1], one)


def test_strides_and_integer_dtypes(dtype: np.dtype[Any], rng: np.random.Generator) -> None:
    paged = Paged(rng, [70, 20], dtype=dtype)
    q = normal(rng, (2, H, 16), dtype)
    for _ in each_isa():
        plain = paged.attend(q)
        for name in strided(q):
            caches = [strided(c)[name] for c in paged.caches]
            assert same_bits(qkv.attention_paged(strided(q)[name], *caches, paged.tables, paged.lengths), plain), name
        for integer in (np.int8, np.uint8, np.int16, np.int64, np.uint32, np.uint64, ">i4"):
            tables, lengths = np.maximum(paged.tables, 0).astype(integer), paged.lengths.astype(integer)
            assert same_bits(qkv.attention_paged(q, *paged.caches, tables, lengths), plain)
        for name, tables in strided(paged.tables).items():
            assert same_bits(qkv.attention_paged(q, *paged.caches, tables, paged.lengths), plain), name
        assert same_bits(qkv.attention_paged(q, *paged.caches, paged.tables.tolist(), [70, 20]), plain)
    # One array for both, as some engines have it: (blocks, 2, block_size, Hkv, D).
    both = np.stack([paged.caches[0], paged.caches[0]], 1)
    assert same_bits(
        qkv.attention_paged(q, both[:, 0], both[:, 1], paged.tables, paged.lengths),
        qkv.attention_paged(q, paged.caches[0], paged.caches[0], paged.tables, paged.lengths),
    )


def test_int8_strides(rng: np.random.Generator) -> None:
    paged = Paged(rng, [70, 20], dtype=INT8)
    q = normal(rng, (2, H, 16))
    for _ in each_isa():
        plain = paged.attend(q)
        for name in strided(paged.caches[0]):
            caches = [strided(c)[name] for c in paged.caches]
            scales = {n: strided(s)[name] for n, s in paged.scales.items()}
            assert same_bits(qkv.attention_paged(q, *caches, paged.tables, paged.lengths, **scales), plain), name


def test_out(rng: np.random.Generator) -> None:
    paged = Paged(rng, [70, 20], D=24)
    q = normal(rng, (2, H, 24))
    expected, target = paged.attend(q), np.full((2, H, 24), np.nan, np.float32)
    assert paged.attend(q, out=target) is target and same_bits(target, expected)
    assert paged.attend(q, out=q) is q and same_bits(q, expected)
    with pytest.raises(ValueError, match=r"attention_paged: .*out"):
        paged.attend(q, out=target[:1])


def test_float64_is_served(rng: np.random.Generator) -> None:
    paged = Paged(rng, [70, 20])
    caches = [np.nan_to_num(c) for c in paged.caches]
    q = normal(rng, (2, H, 16)).astype(np.float64)
    out = qkv.attention_paged(q, *caches, paged.tables, paged.lengths)
    wide = qkv.attention_paged(
        q.astype(np.float32), *(c.astype(np.float64) for c in caches), paged.tables, paged.lengths, return_lse=True
    )
    assert out.dtype == wide[0].dtype == wide[1].dtype == np.float64
    expected = oracle("attention_varlen", q, paged.k, paged.v, [0, 1, 2], paged.starts)
    np.testing.assert_allclose(out, expected, rtol=1e-12, atol=1e-12)


GOOD = {
    "q": np.ones((14, 4, 16), np.float32),
    "k_cache": np.ones((5, 16, 2, 16), np.float32),
    "v_cache": np.ones((5, 16, 2, 24), np.float32),
    "block_tables": np.array([[0, 1], [4, 2]]),
    "kv_lengths": np.array([32, 9]),
    "cu_seqlens_q": np.array([0, 5, 14]),
}
CODES = {"k_cache": np.ones((5, 16, 2, 16), np.int8), "v_cache": np.ones((5, 16, 2, 24), np.int8)}
SCALE = np.ones((5, 16, 2), np.float32)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"block_tables": [[0, 5], [4, 2]]}, "block_tables names block 5 for sequence 0, the cache has 5"),
        ({"block_tables": [[0, 1], [-1, 2]]}, "block_tables names block -1 for sequence 1"),
        ({"block_tables": np.array([[0, 2**63], [4, 2]], np.uint64)}, "block_tables names block -"),
        ({"block_tables": [0, 1]}, r"block_tables must be \(2, blocks of a sequence\)"),
        ({"block_tables": [[0, 1]]}, "block_tables must be"),
        ({"block_tables": np.zeros((2, 0), np.int32)}, "kv_lengths must lie in 0 to 0"),
        ({"kv_lengths": [-1, 9]}, "kv_lengths must lie in 0 to 32, .* got -1"),
        ({"kv_lengths": [33, 9]}, "kv_lengths must lie in 0 to 32, .* got 33"),
        ({"kv_lengths": [2**62, 9]}, "too large"),
        ({"kv_lengths": np.array([2**63 + 5, 9], np.uint64)}, "kv_lengths must lie"),
        ({"kv_lengths": [32, 9, 1]}, r"kv_lengths must be \(2,\)"),
        ({"kv_lengths": [[32, 9]]}, r"kv_lengths must be \(2,\)"),
        ({"cu_seqlens_q": [0, 5, 13]}, "cu_seqlens_q"),
        ({"cu_seqlens_q": [0, 15, 14]}, "cu_seqlens_q"),
        ({"cu_seqlens_q": None}, "kv_lengths must be"),
        ({"q": np.ones((14, 5, 16), np.float32)}, "k_cache has 2 heads, which does not divide q's 5"),
        ({"q": np.ones((1, 14, 4, 16), np.float32)}, "q must be"),
        ({"q": np.ones((14, 4, 15), np.float32)}, "k_cache has width 16, q has 15"),
        ({"k_cache": np.ones((5, 16, 32), np.float32)}, "k_cache must be"),
        ({"k_cache": np.ones((4, 16, 2, 16), np.float32)}, "v_cache has 5 blocks of 16, k_cache has 4 of 16"),
        ({"v_cache": np.ones((5, 16, 1, 24), np.float32)}, "v_cache has 1 head, k_cache has 2"),
        ({n: np.ones((5, 24, 2, w), np.float32) for n, w in (("k_cache", 16), ("v_cache", 24))}, "multiple of 16"),
        ({n: np.ones((5, 0, 2, w), np.float32) for n, w in (("k_cache", 16), ("v_cache", 24))}, "multiple of 16"),
        ({"k_scale": SCALE}, "k_scale is for int8 caches; float32 has none"),
        (CODES, "an int8 cache needs k_scale"),
        ({**CODES, "k_scale": SCALE}, "an int8 cache needs v_scale"),
        ({**CODES, "k_scale": SCALE[:4], "v_scale": SCALE}, r"k_scale must be \(5, 16, 2\)"),
        ({**CODES, "k_scale": SCALE, "v_scale": SCALE[..., None]}, r"v_scale must be \(5, 16, 2\)"),
        ({"alibi_slopes": np.ones((3, 4), np.float32)}, "alibi_slopes"),
        ({"relative_bias": np.ones((4, 2), np.float32)}, "relative_bias"),
        ({"sinks": np.ones(3, np.float32)}, "sinks"),
        ({"softcap": -1.0}, "softcap"),
        ({"softcap": 1e-40}, "softcap is out of float32's range"),
        ({"window": (-1, 0)}, "window"),
        ({"causal": "no"}, "causal"),
        ({"precision": "low"}, "precision"),
    ],
    ids=lambda value: value if isinstance(value, str) else ",".join(value),
)
def test_refuses_values(change: dict[str, Any], message: str) -> None:
    qkv.attention_paged(**GOOD)
    with pytest.raises(ValueError, match=rf"attention_paged: .*{message}"):
        qkv.attention_paged(**{**GOOD, **change})


@pytest.mark.parametrize(
    "change, message",
    [
        ({"block_tables": np.zeros((2, 2), np.float32)}, "block_tables must hold integers"),
        ({"block_tables": np.zeros((2, 2), bool)}, "block_tables must hold integers"),
        ({"block_tables": None}, "block_tables must be an integer array"),
        ({"kv_lengths": [32.0, 9.0]}, "kv_lengths"),
        ({"kv_lengths": None}, "kv_lengths"),
        ({"cu_seqlens_q": [0.0, 14.0]}, "cu_seqlens_q"),
        ({"v_cache": GOOD["v_cache"].astype(FLOAT16)}, "v_cache is float16 but k_cache is float32"),
        ({"k_cache": CODES["k_cache"]}, "v_cache is float32 but k_cache is int8"),
        (
            {"k_cache": GOOD["k_cache"].astype(np.uint8)},
            "k_cache must be float32, float16, bfloat16(, float64)? or int8",
        ),
        ({"q": GOOD["q"].astype(np.int8)}, "q must be float32"),
        ({**CODES, "k_scale": SCALE.astype(FLOAT16), "v_scale": SCALE}, "k_scale must be float32, got float16"),
        ({**CODES, "k_scale": SCALE, "v_scale": SCALE.astype(np.float64)}, "v_scale must be float32, got float64"),
        ({**CODES, "k_scale": SCALE.astype(np.int8), "v_scale": SCALE}, "k_scale must be float32, got int8"),
        ({"sinks": np.ones(4, BFLOAT16)}, "sinks"),
    ],
    ids=lambda value: value if isinstance(value, str) else ",".join(value),
)
def test_refuses_types(change: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=rf"attention_paged: .*{message}"):
        qkv.attention_paged(**{**GOOD, **change})


def test_torch_tensors(rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch", reason="needs torch: CI runs it beside the wheel")
    for name, dtype in CACHES.items():
        paged = Paged(rng, [70, 20], dtype=dtype)
        q = normal(rng, (2, H, 16))
        caches = [
            torch.from_numpy(c.view(np.int16)).view(torch.bfloat16) if name == "bfloat16" else torch.from_numpy(c)
            for c in paged.caches
        ]
        scales = {n: torch.from_numpy(s) for n, s in paged.scales.items()}
        tables, lengths = torch.from_numpy(paged.tables), torch.from_numpy(paged.lengths)
        out = qkv.attention_paged(torch.from_numpy(q), *caches, tables, lengths, **scales)
        assert isinstance(out, torch.Tensor) and same_bits(out.numpy(), paged.attend(q))
