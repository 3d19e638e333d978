"""flash_attn_func and its kin, scaled_dot_product_attention: the conventions of flash-attn and torch."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from math import prod
from typing import Any

import naive
import numpy as np
import pytest
import qkv
from calls import in_place_calls
from checks import assert_close, each_isa, normal, oracle, same_bits

# Names, order and defaults, copied from the documentation of flash-attn 2.8 and torch 2.9.
SIGNATURES = {
    "flash_attn_func": "(q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0, "
    "alibi_slopes=None, deterministic=False, return_attn_probs=False)",
    "flash_attn_varlen_func": "(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, "
    "softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0, alibi_slopes=None, deterministic=False, "
    "return_attn_probs=False, block_table=None)",
    "flash_attn_with_kvcache": "(q, k_cache, v_cache, k=None, v=None, rotary_cos=None, rotary_sin=None, "
    "cache_seqlens=None, cache_batch_idx=None, cache_leftpad=None, block_table=None, softmax_scale=None, causal=False, "
    "window_size=(-1, -1), softcap=0.0, rotary_interleaved=True, alibi_slopes=None, num_splits=0, "
    "return_softmax_lse=False)",
    "scaled_dot_product_attention": "(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, "
    "enable_gqa=False)",
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures_are_those_of_the_originals(name: str) -> None:
    parameters = inspect.signature(getattr(qkv, name)).parameters.values()
    plain = [p.replace(annotation=inspect.Parameter.empty) for p in parameters]
    assert str(inspect.Signature(plain)) == SIGNATURES[name]


@pytest.fixture(autouse=True)
def _invariant() -> Iterator[None]:
    """On a GPU keys are split by what else is in a batch, unless it is told not to."""
    qkv.cuda.set_batch_invariant(True)
    yield
    qkv.cuda.set_batch_invariant(False)


def bshd(rng: np.random.Generator, dtype: Any) -> tuple[Any, Any, Any]:
    return tuple(normal(rng, s, dtype) for s in ((2, 9, 6, 16), (2, 33, 2, 16), (2, 33, 2, 16)))  # type: ignore[return-value]


def test_flash_attn_func(dtype: np.dtype[Any], rng: np.random.Generator) -> None:
    q, k, v = bshd(rng, dtype)
    slopes = rng.uniform(0, 0.5, (2, 6)).astype(np.float32)
    pairs: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({}, {}),
        ({"causal": True}, {"causal": True}),
        ({"softmax_scale": 0.1}, {"scale": 0.1}),
        ({"window_size": (5, -1)}, {"window": (5, None)}),
        ({"window_size": (-1, 0)}, {"window": (None, 0)}),
        ({"window_size": (4, 2), "causal": True}, {"window": (4, 2), "causal": True}),
        ({"softcap": 3.0}, {"softcap": 3.0}),
        ({"alibi_slopes": slopes}, {"alibi_slopes": slopes}),
        ({"alibi_slopes": slopes[0], "deterministic": True}, {"alibi_slopes": slopes[0]}),
    ]
    for flash, own in pairs:
        for _ in each_isa():
            out, lse = qkv.attention(q, k, v, layout="bshd", return_lse=True, **own)
            assert same_bits(qkv.flash_attn_func(q, k, v, **flash), out), f"{flash}"
            result = qkv.flash_attn_func(q, k, v, return_attn_probs=True, **flash)
            assert len(result) == 3 and same_bits(result[0], out) and same_bits(result[1], lse)
    assert same_bits(
        qkv.flash_attn_func(q, k, v, 0.0, 0.1, True, (4, 0)),
        qkv.attention(q, k, v, layout="bshd", scale=0.1, causal=True, window=(4, 0)),
    )


def test_flash_attn_varlen_func(dtype: np.dtype[Any], rng: np.random.Generator) -> None:
    q, k, v = (normal(rng, s, dtype) for s in ((14, 6, 16), (37, 2, 16), (37, 2, 16)))
    starts = np.array([0, 5, 14], np.int32), np.array([0, 7, 37], np.int32)
    for flash, own in [
        ({}, {}),
        ({"causal": True, "window_size": (3, -1)}, {"causal": True, "window": (3, None)}),
        ({"softcap": 2.0, "softmax_scale": 0.2}, {"softcap": 2.0, "scale": 0.2}),
    ]:
        for _ in each_isa():
            out, lse = qkv.attention_varlen(q, k, v, *starts, return_lse=True, **own)
            assert same_bits(qkv.flash_attn_varlen_func(q, k, v, *starts, 9, 30, **flash), out)
            result = qkv.flash_attn_varlen_func(q, k, v, *starts, 9, 30, return_attn_probs=True, **flash)
            assert same_bits(result[0], out) and same_bits(result[1], lse)
    with pytest.raises(ValueError, match=r"flash_attn_varlen_func: .*max_seqlen_q"):
        qkv.flash_attn_varlen_func(q, k, v, *starts, 8, 30)
    with pytest.raises(ValueError, match=r"flash_attn_varlen_func: .*max_seqlen_k"):
        qkv.flash_attn_varlen_func(q, k, v, *starts, 9, 29)


def test_varlen_over_a_block_table(dtype: np.dtype[Any], rng: np.random.Generator) -> None:
    """Blocks of any size, also ones that are no multiple of 16, read where they lie."""
    q, starts, lengths = normal(rng, (14, 6, 16), dtype), np.array([0, 5, 14], np.int32), [70, 33]
    starts_k = np.array([0, 70, 103], np.int32)
    for size in (16, 20, 7, 256):
        counts = [-(-n // size) for n in lengths]
        table = np.full((2, max(counts)), 10**6, np.int32)
        for b, n in enumerate(counts):
            table[b, :n] = rng.permutation(30)[:n]
        caches = [normal(rng, (30, size, 2, 16), dtype) for _ in range(2)]
        where = [(table[b, j // size], j % size) for b in range(2) for j in range(lengths[b])]
        k, v = (c[tuple(np.array(where).T)] for c in caches)
        for options in ({}, {"causal": True, "window_size": (9, 0)}):
            for _ in each_isa():
                out = qkv.flash_attn_varlen_func(q, *caches, starts, starts_k, 9, 70, block_table=table, **options)
                assert same_bits(out, qkv.flash_attn_varlen_func(q, k, v, starts, starts_k, 9, 70, **options)), size
    with pytest.raises(ValueError, match="names block 1000000"):
        qkv.flash_attn_varlen_func(q, *caches, starts, starts_k, 9, 70, block_table=np.full((2, 2), 10**6))
    with pytest.raises(ValueError, match="cu_seqlens_k"):
        qkv.flash_attn_varlen_func(q, *caches, starts, starts_k + 1, 9, 70, block_table=table)


def turned(x: Any, cos: Any, sin: Any, positions: Any, interleaved: bool) -> Any:
    """x (S, H, D) at positions (S,), one pair at a time, in float64 and rounded once."""
    y, half = x.astype(np.float64), cos.shape[1]
    for i, position in enumerate(positions):
        for p in range(half):
            a, b = (2 * p, 2 * p + 1) if interleaved else (p, p + half)
            c, s = np.float64(cos[position, p]), np.float64(sin[position, p])
            first, second = y[i, :, a].copy(), y[i, :, b].copy()
            y[i, :, a], y[i, :, b] = first * c - second * s, second * c + first * s
    return y.astype(x.dtype)


KVCACHE: list[dict[str, Any]] = [
    {},
    {"causal": True},
    {"causal": True, "softcap": 4.0, "softmax_scale": 0.2, "num_splits": 3},
    {"window_size": (20, 5)},
    {"causal": True, "window_size": (9, -1)},
    {"causal": True, "alibi_slopes": np.linspace(0.1, 0.6, 6, dtype=np.float32)},
    {"alibi_slopes": np.linspace(0.1, 0.9, 18, dtype=np.float32).reshape(3, 6)},
]


@pytest.mark.parametrize("options", KVCACHE, ids=lambda o: ",".join(o) or "plain")
@pytest.mark.parametrize("memory", ["rows", "batch_idx", "leftpad", "paged", "paged,leftpad"])
@pytest.mark.parametrize("S, new, rotary", [(1, 1, None), (5, 5, True), (5, 5, False), (4, 0, None), (2, 7, True)])
def test_kvcache(
    options: dict[str, Any],
    memory: str,
    S: int,
    new: int,
    rotary: bool | None,
    dtype: np.dtype[Any],
    rng: np.random.Generator,
) -> None:
    """A loop over the sequences that keeps its own list of keys: the same bits, in the output and in the cache."""
    B, lengths = 3, np.array([37, 0, 120], np.int32)
    q, k, v = (normal(rng, (B, n, h, 16), dtype) for n, h in ((S, 6), (new, 2), (new, 2)))
    given: dict[str, Any] = {"cache_seqlens": lengths, **options}
    if "paged" in memory:
        size = 16
        k_cache, v_cache = (normal(rng, (40, size, 2, 16), dtype) for _ in range(2))
        table = given["block_table"] = rng.permutation(40)[:24].reshape(3, 8).astype(np.int32)
    else:
        size = 131  # no multiple of anything
        k_cache, v_cache = (normal(rng, (5, size, 2, 16), dtype) for _ in range(2))
        rows = np.array([4, 0, 3], np.int32) if "batch_idx" in memory else np.arange(3)
        if "batch_idx" in memory:
            given["cache_batch_idx"] = rows
        table = rows[:, None]
    skipped = np.array([5, 0, 111], np.int32) if "leftpad" in memory else np.zeros(3, np.int32)
    if "leftpad" in memory:
        given["cache_leftpad"] = skipped
    if new:
        given |= {"k": k, "v": v}
    if rotary is not None:
        given |= {"rotary_cos": normal(rng, (140, 4), dtype), "rotary_sin": normal(rng, (140, 4), dtype)}
        given["rotary_interleaved"] = rotary
    kept = k_cache.copy(), v_cache.copy()
    local = bool(options.get("causal")) or "window_size" in options
    for _ in each_isa():
        k_cache[...], v_cache[...] = kept
        stored = kept[0].copy(), kept[1].copy()
        out, lse = qkv.flash_attn_with_kvcache(q, k_cache, v_cache, return_softmax_lse=True, **given)
        for b in range(B):
            n, own_q, own_k = int(lengths[b]), q[b], k[b]
            if rotary is not None:
                tables = given["rotary_cos"], given["rotary_sin"]
                own_k = turned(own_k, *tables, n + np.arange(new), rotary)
                own_q = turned(own_q, *tables, n + (np.arange(S) if local else np.zeros(S, int)), rotary)
            places = [(table[b, j // size], j % size) for j in range(n + new)]
            for i, place in enumerate(places[n:]):
                stored[0][place], stored[1][place] = own_k[i], v[b, i]
            seen = places[skipped[b] :]
            keys, values = (np.array([x[place] for place in seen], dtype).reshape(1, len(seen), 2, 16) for x in stored)
            flash = {name: x for name, x in options.items() if name != "num_splits"}
            if np.ndim(flash.get("alibi_slopes")) == 2:
                flash["alibi_slopes"] = flash["alibi_slopes"][b]
            one = qkv.flash_attn_func(own_q[None], keys, values, return_attn_probs=True, **flash)
            assert same_bits(out[b], one[0][0]), b
            assert same_bits(np.ascontiguousarray(lse[b]), one[1][0]), b
        assert same_bits(k_cache, stored[0]) and same_bits(v_cache, stored[1])
        if new and rotary is None:  # once more: the same tokens to the same places
            assert same_bits(qkv.flash_attn_with_kvcache(q, k_cache, v_cache, **given), out)


def test_kvcache_against_the_reference(dtype: np.dtype[Any], rng: np.random.Generator) -> None:
    for interleaved in (True, False):
        for causal in (True, False):
            given = {**in_place_calls(dtype)["flash_attn_with_kvcache"], "rotary_interleaved": interleaved}
            given |= {"causal": causal, "return_softmax_lse": True}
            for _ in each_isa():
                caches = {name: given[name].copy() for name in ("k_cache", "v_cache")}
                out, lse = qkv.flash_attn_with_kvcache(**{**given, **caches})
                ref, ref_lse = oracle("flash_attn_with_kvcache", **given)
                loose = {2: 3e-2 if dtype.name == "bfloat16" else 4e-3, 4: 1e-5}[dtype.itemsize]
                np.testing.assert_allclose(out.astype(np.float64), ref, rtol=loose, atol=loose)
                np.testing.assert_allclose(lse, ref_lse, rtol=loose, atol=2 * loose)
    wide = in_place_calls(np.float64)["flash_attn_with_kvcache"]
    assert qkv.flash_attn_with_kvcache(**wide).dtype == np.float64


def test_kvcache_lengths(rng: np.random.Generator) -> None:
    """An integer counts for all; None is a full cache, as there."""
    q, cache = normal(rng, (3, 1, 6, 16)), normal(rng, (3, 50, 2, 16))
    for _ in each_isa():
        full = qkv.flash_attn_func(q, cache, cache)
        assert same_bits(qkv.flash_attn_with_kvcache(q, cache, cache), full)
        assert same_bits(qkv.flash_attn_with_kvcache(q, cache, cache, cache_seqlens=50), full)
        some = qkv.flash_attn_func(q, cache[:, :7], cache[:, :7])
        for seven in (7, np.int64(7), np.array(7), np.array([7, 7, 7], np.int16), [7, 7, 7]):
            assert same_bits(qkv.flash_attn_with_kvcache(q, cache, cache, cache_seqlens=seven), some)
        cache.flags.writeable = False
        assert same_bits(qkv.flash_attn_with_kvcache(q, cache, cache), full), "nothing is written without k and v"
        cache.flags.writeable = True
        assert qkv.flash_attn_with_kvcache(q[:0], cache, cache).shape == (0, 1, 6, 16)
        assert qkv.flash_attn_with_kvcache(q[:, :0], cache, cache).shape == (3, 0, 6, 16)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"v": None}, "k and v go together"),
        ({"rotary_sin": None}, "rotary_cos and rotary_sin go together"),
        ({"k": None, "v": None}, "rotary_cos and rotary_sin need k and v"),
        ({"cache_seqlens": None}, "k and v need cache_seqlens"),
        ({"cache_seqlens": [14, 5]}, "cache_seqlens must lie in 0 to 13"),
        ({"cache_seqlens": [-1, 5]}, "cache_seqlens must lie in 0 to 13"),
        ({"cache_seqlens": 2**62}, "cache_seqlens"),
        ({"cache_seqlens": [1, 2, 3]}, r"cache_seqlens must be \(2,\)"),
        ({"cache_batch_idx": [3, 0]}, "cache_batch_idx must lie in 0 to 2"),
        ({"cache_batch_idx": [-1, 0]}, "cache_batch_idx must lie in 0 to 2"),
        ({"cache_batch_idx": [0]}, "cache_batch_idx must be"),
        ({"cache_leftpad": [17, 0]}, "cache_leftpad"),
        ({"cache_leftpad": [-1, 0]}, "cache_leftpad"),
        ({"block_table": [[0], [1]]}, "cache_batch_idx does not go with block_table"),
        ({"block_table": [[0], [5]], "cache_batch_idx": None}, "block_table must lie in 0 to 2"),
        ({"block_table": [0, 5], "cache_batch_idx": None}, "block_table must be"),
        ({"rotary_cos": np.ones((15, 4), np.float32), "rotary_sin": np.ones((15, 4), np.float32)}, "16 are needed"),
        ({"rotary_cos": np.ones((16, 5), np.float32), "rotary_sin": np.ones((16, 5), np.float32)}, "rotary_cos"),
        ({"rotary_sin": np.ones((16, 3), np.float32)}, "rotary_cos"),
        ({"q": np.ones((2, 3, 5, 8), np.float32)}, "k_cache has 2 heads, which does not divide q's 5"),
        ({"q": np.ones((2, 3, 8), np.float32)}, "q must have 4 dimensions"),
        ({"k": np.ones((2, 3, 1, 8), np.float32), "v": np.ones((2, 3, 1, 8), np.float32)}, "k has heads and width"),
        ({"k": np.ones((2, 4, 2, 8), np.float32)}, ""),
        ({"alibi_slopes": np.ones((3, 4), np.float32)}, "alibi_slopes"),
        ({"window_size": 3}, "window_size"),
    ],
    ids=lambda value: value if isinstance(value, str) else ",".join(value),
)
def test_kvcache_refuses(change: dict[str, Any], message: str) -> None:
    """ValueError in words, and the caches are as they were."""
    given = {**in_place_calls()["flash_attn_with_kvcache"], **change}
    before = given["k_cache"].copy(), given["v_cache"].copy()
    with pytest.raises(ValueError, match=rf"^(flash_attn_with_kvcache|attention_paged|paged_write): .*{message}"):
        qkv.flash_attn_with_kvcache(**given)
    assert same_bits(given["k_cache"], before[0]) and same_bits(given["v_cache"], before[1])


def test_kvcache_refuses_types() -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"cache_seqlens": 7.0}, "cache_seqlens"),
        ({"cache_seqlens": np.ones(2)}, "cache_seqlens"),
        ({"cache_batch_idx": np.ones(2)}, "cache_batch_idx"),
        ({"cache_leftpad": [True, False]}, "cache_leftpad"),
        ({"cache_batch_idx": None, "block_table": np.ones((2, 1))}, "block_table"),
        ({"k_cache": [[[[1.0] * 8] * 2] * 16] * 3}, "k_cache"),
        ({"k_cache": np.ones((3, 16, 2, 8), np.int8)}, "k_cache"),
        ({"v_cache": np.ones((3, 16, 2, 8), np.float16)}, "v_cache"),
        ({"k": np.ones((2, 3, 2, 8), np.float16)}, "k"),
        ({"q": "text"}, "q"),
    ]
    for change, name in wrong:
        given = {**in_place_calls()["flash_attn_with_kvcache"], **change}
        with pytest.raises(TypeError, match=rf"^flash_attn_with_kvcache: .*{name}"):
            qkv.flash_attn_with_kvcache(**given)


def test_kvcache_writes_torch_tensors(rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch", reason="needs torch: CI runs it beside the wheel")
    given = in_place_calls()["flash_attn_with_kvcache"]
    tensors = {n: torch.from_numpy(x.copy()) if isinstance(x, np.ndarray) else x for n, x in given.items()}
    out, expected = qkv.flash_attn_with_kvcache(**tensors), qkv.flash_attn_with_kvcache(**given)
    assert isinstance(out, torch.Tensor) and same_bits(out.numpy(), expected)
    for name in ("k_cache", "v_cache"):
        assert same_bits(tensors[name].numpy(), given[name])


def test_flash_attn_refuses_dropout(rng: np.random.Generator) -> None:
    q, k, v = bshd(rng, np.float32)
    with pytest.raises(ValueError, match=r"flash_attn_func: .*dropout_p"):
        qkv.flash_attn_func(q, k, v, 0.1)
    with pytest.raises(ValueError, match=r"flash_attn_varlen_func: .*dropout_p"):
        qkv.flash_attn_varlen_func(q[0], k[0], v[0], [0, 9], [0, 33], 9, 33, dropout_p=0.1)
    with pytest.raises(ValueError, match=r"scaled_dot_product_attention: .*dropout_p"):
        qkv.scaled_dot_product_attention(q, q, q, dropout_p=0.1)


@pytest.mark.parametrize(
    "shapes",
    [
        ((2, 3, 9, 16), (2, 3, 33, 16), (2, 3, 33, 24)),
        ((3, 9, 16), (3, 33, 16), (3, 33, 16)),
        ((9, 16), (33, 16), (33, 5)),
        ((2, 1, 3, 9, 8), (2, 1, 3, 33, 8), (2, 1, 3, 33, 8)),
        ((2, 3, 9, 16), (1, 3, 33, 16), (2, 1, 33, 16)),
        ((3, 9, 16), (2, 3, 33, 16), (33, 16)),
        ((2, 3, 0, 16), (2, 3, 33, 16), (2, 3, 33, 16)),
        ((2, 3, 9, 16), (2, 3, 0, 16), (2, 3, 0, 16)),
        ((1, 2, 3, 0, 16), (2, 3, 33, 16), (2, 3, 33, 16)),
        ((1, 2, 3, 9, 16), (2, 3, 33, 16), (2, 3, 33, 0)),
        ((2, 0, 3, 9, 16), (2, 1, 3, 33, 16), (3, 33, 16)),
    ],
    ids=str,
)
def test_sdpa_shapes(shapes: tuple[tuple[int, ...], ...], dtype: np.dtype[Any], rng: np.random.Generator) -> None:
    q, k, v = (normal(rng, s, dtype) for s in shapes)
    lead = np.broadcast_shapes(*(s[:-2] for s in shapes))
    S, T = shapes[0][-2], shapes[1][-2]
    bias, allowed = normal(rng, (S, T), dtype), rng.random((S, T)) < 0.7
    full = [np.broadcast_to(a, (*lead, *a.shape[-2:])).reshape(1, prod(lead), *a.shape[-2:]) for a in (q, k, v)]
    for torch, own in [
        ({}, {}),
        ({"is_causal": True, "scale": 0.3}, {"causal": "top_left", "scale": 0.3}),
        ({"attn_mask": bias}, {"bias": bias}),
        ({"attn_mask": allowed}, {"mask": allowed}),
    ]:
        ref = oracle("scaled_dot_product_attention", q, k, v, **torch)
        yardstick = naive.attention(*full, **own)[0].reshape(ref.shape)
        for _ in each_isa():
            out = qkv.scaled_dot_product_attention(q, k, v, **torch)
            assert_close(out, ref, yardstick, f"{shapes} {sorted(torch)}")
            assert same_bits(out.reshape(1, prod(lead), *out.shape[-2:]), qkv.attention(*full, **own))


def test_sdpa_masks_broadcast(rng: np.random.Generator) -> None:
    q, k, v = (normal(rng, (2, 3, n, 16)) for n in (9, 33, 33))
    for shape in [(9, 33), (1, 33), (9, 1), (3, 9, 33), (2, 1, 1, 33), (2, 3, 9, 33)]:
        bias, allowed = normal(rng, shape), rng.random(shape) < 0.6
        for _ in each_isa():
            assert same_bits(qkv.scaled_dot_product_attention(q, k, v, bias), qkv.attention(q, k, v, bias=bias))
            assert same_bits(qkv.scaled_dot_product_attention(q, k, v, allowed), qkv.attention(q, k, v, mask=allowed))


def test_sdpa_grouped_heads(rng: np.random.Generator) -> None:
    q, k, v = normal(rng, (2, 6, 9, 16)), normal(rng, (2, 2, 33, 16)), normal(rng, (2, 2, 33, 16))
    for _ in each_isa():
        assert same_bits(qkv.scaled_dot_product_attention(q, k, v, enable_gqa=True), qkv.attention(q, k, v))
        assert same_bits(qkv.scaled_dot_product_attention(q[0], k[0], v[0], enable_gqa=True), qkv.attention(q, k, v)[0])
    with pytest.raises(ValueError, match="scaled_dot_product_attention"):
        qkv.scaled_dot_product_attention(q, k, v)
    with pytest.raises(ValueError, match=r"scaled_dot_product_attention: .*divide"):
        qkv.scaled_dot_product_attention(q[:, :5], k, v, enable_gqa=True)


def test_sdpa_refuses(rng: np.random.Generator) -> None:
    op, q = "scaled_dot_product_attention", normal(rng, (2, 3, 9, 16))
    sdpa = qkv.scaled_dot_product_attention
    with pytest.raises(ValueError, match=rf"{op}: .*is_causal"):
        sdpa(q, q, q, attn_mask=np.ones((9, 9), bool), is_causal=True)
    with pytest.raises(ValueError, match=rf"{op}: .*attn_mask"):
        sdpa(q, q, q, attn_mask=np.ones((9, 8), bool))
    with pytest.raises(TypeError, match=rf"{op}: .*attn_mask"):
        sdpa(q, q, q, attn_mask=np.ones((9, 9), np.int64))
    with pytest.raises(ValueError, match=rf"{op}: .*query"):
        sdpa(q[0, 0, 0], q, q)
    with pytest.raises(ValueError, match=rf"{op}: .*key"):
        sdpa(q, q[..., :15], q)
    with pytest.raises(ValueError, match=rf"{op}: .*value"):
        sdpa(q, q, q[:, :, :8])
    with pytest.raises(TypeError, match=rf"{op}: .*key"):
        sdpa(q, q.astype(np.float16), q)
    with pytest.raises(ValueError, match=op):
        sdpa(q, q[:, :2], q)


def test_sdpa_against_torch(rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch", reason="needs torch: CI runs it beside the wheel")
    original = torch.nn.functional.scaled_dot_product_attention
    q, k, v = (normal(rng, (2, 3, n, 16)) for n in (9, 33, 33))
    bias, allowed = normal(rng, (3, 9, 33)), rng.random((9, 33)) < 0.6
    allowed[:, 0] = True
    for options in [{}, {"is_causal": True}, {"scale": 0.2}, {"attn_mask": bias}, {"attn_mask": allowed}]:
        arrays = {n: torch.from_numpy(a) if isinstance(a, np.ndarray) else a for n, a in options.items()}
        expected = original(*(torch.from_numpy(a) for a in (q, k, v)), **arrays).numpy()
        for _ in each_isa():
            out = qkv.scaled_dot_product_attention(q, k, v, **options)
            np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)


def test_sdpa_key_and_value_heads_may_differ(rng: np.random.Generator) -> None:
    q, k, v = normal(rng, (1, 6, 5, 16)), normal(rng, (1, 2, 7, 16)), normal(rng, (1, 3, 7, 16))
    expected = qkv.attention(q, k.repeat(3, axis=1), v.repeat(2, axis=1))
    assert same_bits(qkv.scaled_dot_product_attention(q, k, v, enable_gqa=True), expected)
