"""The attention ops of reference.py against loops over Python floats, and the signatures of others."""

from __future__ import annotations

import inspect
import itertools
import math

import numpy as np
import pytest
from qkv import reference as ref


def normal(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


# ---- attention against loops ------------------------------------------------------------------------------


def loops(q, k, v, *, causal=False, mask=None, bias=None, relative_bias=None, alibi_slopes=None, scale=None,
          softcap=None, window=None, sinks=None, kv_lengths=None):  # fmt: skip
    """out, lse, weights by three loops and the math module, each key either listed or not."""
    (B, H, S, D), (Hkv, T) = q.shape, k.shape[1:3]
    out, lse, weights = np.zeros((B, H, S, v.shape[3])), np.full((B, H, S), -np.inf), np.zeros((B, H, S, T))
    mask = np.broadcast_to(True if mask is None else mask, (B, H, S, T))
    bias = np.broadcast_to(0.0 if bias is None else bias, (B, H, S, T))
    for b, h, i in itertools.product(range(B), range(H), range(S)):
        length = T if kv_lengths is None else kv_lengths[b]
        p = i if causal == "top_left" else i + length - S
        scores = {}
        for j in range(length):
            if (causal and j > p) or not mask[b, h, i, j]:
                continue
            if window and window[0] is not None and j < p - window[0]:
                continue
            if window and window[1] is not None and j > p + window[1]:
                continue
            s = sum(q[b, h, i, d] * k[b, h * Hkv // H, j, d] for d in range(D))
            s *= 1 / math.sqrt(D) if scale is None else scale
            s = softcap * math.tanh(s / softcap) if softcap else s
            s += bias[b, h, i, j]
            if relative_bias is not None:
                R = relative_bias.shape[1] // 2
                s += relative_bias[h, max(-R, min(R, j - p)) + R]
            if alibi_slopes is not None:
                s -= np.broadcast_to(alibi_slopes, (B, H))[b, h] * abs(p - j)
            scores[j] = s
        logits = [*scores.values(), *([] if sinks is None else [sinks[h]])]
        if logits:
            lse[b, h, i] = math.log(sum(math.exp(s) for s in logits))
        for j, s in scores.items():
            weights[b, h, i, j] = math.exp(s - lse[b, h, i])
            out[b, h, i] += weights[b, h, i, j] * v[b, h * Hkv // H, j]
    return out, lse, weights


OPTIONS = {
    "plain": {},
    "causal": {"causal": True},
    "top_left": {"causal": "top_left"},
    "mask": {"mask": normal(2, 1, 3, 5) > 0},
    "mask_keys": {"mask": np.array([True, False, True, True, False])},
    "masked_row": {"mask": np.arange(3)[:, None] != 1},
    "bias": {"bias": normal(4, 1, 5)},
    "relative_bias": {"relative_bias": normal(4, 5)},
    "relative_bias_top_left": {"relative_bias": normal(4, 1), "causal": "top_left"},
    "alibi": {"alibi_slopes": normal(4)},
    "alibi_batch": {"alibi_slopes": normal(2, 4), "causal": True},
    "scale": {"scale": -0.7},
    "softcap": {"softcap": 1.5, "bias": normal(3, 5)},
    "window": {"window": (1, 1)},
    "window_left": {"window": (0, None), "causal": True},
    "window_right": {"window": (None, 0)},
    "sinks": {"sinks": normal(4)},
    "sinks_empty": {"sinks": normal(4), "mask": np.zeros((1, 1), bool)},
    "lengths": {"kv_lengths": np.array([2, 5])},
    "lengths_causal": {"kv_lengths": np.array([1, 4]), "causal": True, "alibi_slopes": normal(4)},
    "lengths_zero": {"kv_lengths": np.array([0, 3]), "window": (2, 1), "causal": "top_left"},
    "everything": {
        **{"causal": True, "mask": normal(2, 4, 3, 5) > -1, "bias": normal(2, 1, 1, 5), "softcap": 3.0},
        **{"relative_bias": normal(4, 3), "alibi_slopes": normal(4), "scale": 0.3, "window": (3, None)},
        **{"sinks": normal(4), "kv_lengths": np.array([5, 3])},
    },
}


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("heads", [1, 2, 4])
def test_attention_against_loops(name, heads):
    q, k, v = normal(2, 4, 3, 6), normal(2, heads, 5, 6), normal(2, heads, 5, 7)
    options = OPTIONS[name]
    expected = loops(q, k, v, **options)
    got = ref.attention(q, k, v, **options, return_lse=True, return_weights=True)
    for g, e in zip(got, expected, strict=True):
        np.testing.assert_allclose(g, e, rtol=1e-12, atol=1e-14)
    swapped = [x.swapaxes(1, 2) for x in (q, k, v)]
    out, lse, weights = ref.attention(*swapped, **options, layout="bshd", return_lse=True, return_weights=True)
    np.testing.assert_array_equal(out, got[0].swapaxes(1, 2))
    np.testing.assert_array_equal(lse, got[1])
    np.testing.assert_array_equal(weights, got[2])


def test_excluded_keys_contribute_nothing():
    q, k, v = normal(1, 2, 3, 4), normal(1, 2, 4, 4), normal(1, 2, 4, 4)
    clean = ref.attention(q, k[:, :, :2], v[:, :, :2])
    k[:, :, 2:], v[:, :, 2], v[:, :, 3] = np.nan, np.nan, np.inf
    allowed = np.array([True, True, False, False])
    np.testing.assert_allclose(ref.attention(q, k, v, mask=allowed), clean, rtol=1e-13)
    np.testing.assert_allclose(ref.attention(q, k, v, kv_lengths=[2]), clean, rtol=1e-13)
    k[:, :, 2:] = 0  # a score of -inf excludes like the mask
    np.testing.assert_allclose(ref.attention(q, k, v, bias=np.where(allowed, 0, -np.inf)), clean, rtol=1e-13)
    # Where the key is allowed its NaN and infinity arrive, and only there.
    out = ref.attention(
        q, k, v, mask=[[True, True, False, False], [True, False, True, False], [True, True, False, True]]
    )
    assert np.isfinite(out[:, :, 0]).all() and np.isnan(out[:, :, 1]).all() and np.isposinf(out[:, :, 2]).all()


def test_attention_out_and_shapes():
    q, k = normal(2, 4, 3, 6), normal(2, 2, 5, 6)
    out = np.empty((2, 4, 3, 6))
    assert ref.attention(q, k, k, out=out) is out
    np.testing.assert_array_equal(out, ref.attention(q, k, k))
    assert not ref.attention(q, k[:, :, :0], k[:, :, :0]).any()
    assert ref.attention(q[:0], k[:0], k[:0]).shape == (0, 4, 3, 6)
    assert ref.attention(q[:, :0], k[:, :0], k[:, :0]).shape == (2, 0, 3, 6)
    wrong = [
        ({"k": normal(2, 3, 5, 6), "v": normal(2, 3, 5, 6)}, "k has 3 heads, which does not divide q's 4"),
        ({"k": normal(1, 2, 5, 6)}, "batch"),
        ({"v": normal(2, 2, 4, 6)}, "v has"),
        ({"q": normal(2, 4, 3, 5)}, "head width"),
        ({"q": normal(4, 3, 6)}, "4 dimensions"),
        ({"mask": np.ones((2, 5), bool)}, "does not broadcast"),
        ({"bias": np.ones((3, 2, 4, 3, 5))}, "does not broadcast"),
        ({"relative_bias": np.ones((4, 4))}, "2R"),
        ({"alibi_slopes": np.ones(2)}, "alibi_slopes"),
        ({"sinks": np.ones(1)}, "sinks"),
        ({"kv_lengths": [6, 1]}, "kv_lengths"),
        ({"kv_lengths": [3]}, "kv_lengths"),
        ({"causal": "bottom"}, "causal"),
        ({"layout": "bsdh"}, "layout"),
        ({"precision": "low"}, "precision"),
        ({"softcap": 0.0}, "softcap"),
        ({"window": (-1, 0)}, "window"),
        ({"out": np.empty((2, 4, 3, 5))}, "out must have shape"),
    ]
    for change, message in wrong:
        with pytest.raises(ValueError, match=message):
            ref.attention(**{"q": q, "k": k, "v": k, **change})
    for change in ({"mask": np.ones((3, 5))}, {"kv_lengths": [1.0, 2.0]}, {"out": out.astype(np.float32)}):
        with pytest.raises(TypeError):
            ref.attention(q, k, k, **change)


def test_varlen_is_a_loop_over_sequences():
    lengths_q, lengths_k = [2, 0, 3, 1], [4, 2, 3, 0]
    cu_q, cu_k = np.cumsum([0, *lengths_q]), np.cumsum([0, *lengths_k]).astype(np.int32)
    q, k, v = normal(6, 4, 6), normal(9, 2, 6), normal(9, 2, 5)
    slopes = normal(4, 4)
    for options in (
        {},
        {"causal": True, "softcap": 2.0},
        {"window": (1, 0), "sinks": normal(4), "scale": 0.2},
    ):
        kw = {**options, "alibi_slopes": slopes, "return_lse": True, "return_weights": True}
        out, lse, weights = ref.attention_varlen(q, k, v, cu_q, cu_k, **kw)
        assert (out.shape, lse.shape, len(weights)) == ((6, 4, 5), (4, 6), 4)
        for b, (i, j) in enumerate(zip(cu_q, cu_k, strict=True)):
            if b == 4:
                break
            parts = [x[None].swapaxes(1, 2) for x in (q[i : cu_q[b + 1]], k[j : cu_k[b + 1]], v[j : cu_k[b + 1]])]
            e_out, e_lse, e_weights = loops(*parts, **options, alibi_slopes=slopes[b])
            np.testing.assert_allclose(out[i : cu_q[b + 1]], e_out[0].swapaxes(0, 1), rtol=1e-12, atol=1e-14)
            np.testing.assert_allclose(lse[:, i : cu_q[b + 1]], e_lse[0], rtol=1e-12)
            np.testing.assert_allclose(weights[b], e_weights[0], rtol=1e-12)
    for bad in ([0, 2, 2, 5], [1, 2, 2, 5, 6], [0, 3, 2, 5, 6], [0, 2, 2, 5, 7]):
        with pytest.raises(ValueError, match="cu_seqlens"):
            ref.attention_varlen(q, k, v, bad, cu_k)


# ---- other people's signatures ----------------------------------------------------------------------------


def test_flash_attn():
    names = "q k v dropout_p softmax_scale causal window_size softcap alibi_slopes deterministic return_attn_probs"
    assert list(inspect.signature(ref.flash_attn_func).parameters) == names.split()
    q, k, v = normal(2, 3, 4, 6), normal(2, 5, 2, 6), normal(2, 5, 2, 6)
    heads_first = [x.swapaxes(1, 2) for x in (q, k, v)]
    out, lse, s_dmask = ref.flash_attn_func(q, k, v, 0.0, 0.3, True, (2, -1), 1.5, normal(4), False, True)
    e_out, e_lse, _ = loops(*heads_first, causal=True, scale=0.3, window=(2, None), softcap=1.5, alibi_slopes=normal(4))
    np.testing.assert_allclose(out, e_out.swapaxes(1, 2), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(lse, e_lse, rtol=1e-12)
    assert s_dmask.shape == (0,)
    # The examples of its documentation: the mask is aligned to the bottom right corner, an empty row is zero.
    for S, T, table in ((2, 5, ["11110", "11111"]), (5, 2, ["00", "00", "00", "10", "11"])):
        one, eye = np.zeros((1, S, 1, T)), np.eye(T)[None, :, None]
        seen = ref.flash_attn_func(one, eye, eye, causal=True)[0, :, 0] > 0
        assert ["".join(str(int(x)) for x in row) for row in seen] == table
    with pytest.raises(ValueError, match="dropout_p must be 0"):
        ref.flash_attn_func(q, k, v, 0.1)


def test_flash_attn_varlen_and_block_table():
    q, k, v = normal(5, 4, 6), normal(7, 2, 6), normal(7, 2, 6)
    cu_q, cu_k = [0, 2, 5], [0, 3, 7]
    plain = ref.flash_attn_varlen_func(q, k, v, cu_q, cu_k, 3, 4, causal=True)
    np.testing.assert_array_equal(plain, ref.attention_varlen(q, k, v, cu_q, cu_k, causal=True))
    caches = [np.full((6, 2, 2, 6), np.nan) for _ in range(2)]
    table = np.array([[4, 1], [0, 3]])
    for cache, rows in zip(caches, (k, v), strict=True):
        cache[4], cache[1, 0], cache[0], cache[3] = rows[:2], rows[2], rows[3:5], rows[5:]
    paged = ref.flash_attn_varlen_func(q, *caches, cu_q, cu_k, 3, 4, causal=True, block_table=table)
    np.testing.assert_array_equal(paged, plain)
    with pytest.raises(ValueError, match="exceeds max_seqlen_k 3"):
        ref.flash_attn_varlen_func(q, k, v, cu_q, cu_k, 3, 3)


def test_scaled_dot_product_attention():
    sdpa = ref.scaled_dot_product_attention
    names = "query key value attn_mask dropout_p is_causal scale enable_gqa"
    assert list(inspect.signature(sdpa).parameters) == names.split()
    q, k, v = normal(2, 4, 3, 6), normal(2, 2, 5, 6), normal(2, 2, 5, 7)
    full = loops(q, k, v, causal="top_left")[0]
    got = sdpa(q, k, v, is_causal=True, enable_gqa=True)
    np.testing.assert_allclose(got, full, rtol=1e-12)
    np.testing.assert_allclose(sdpa(q[0], k[0], v[0], is_causal=True, enable_gqa=True), full[0], rtol=1e-12)
    np.testing.assert_allclose(sdpa(q[1, 3], k[1, 1], v[1, 1], is_causal=True), full[1, 3], rtol=1e-12)
    mask = normal(3, 5) > 0
    masked = loops(q, k, v, mask=mask)[0]
    np.testing.assert_allclose(sdpa(q, k, v, mask, enable_gqa=True), masked, rtol=1e-12)
    np.testing.assert_allclose(sdpa(q, k, v, np.where(mask, 0, -np.inf), enable_gqa=True), masked, rtol=1e-12)
    assert not sdpa(q, k, v, np.zeros((3, 5), bool), enable_gqa=True).any()
    broadcast = sdpa(q[:, :, None], normal(5, 6), normal(1, 5, 7))
    assert broadcast.shape == (2, 4, 1, 3, 7)
    for bad in ({"is_causal": True, "attn_mask": mask}, {"dropout_p": 0.5}, {"enable_gqa": False}):
        with pytest.raises(ValueError, match="scaled_dot_product_attention"):
            sdpa(q, k, v, **{"enable_gqa": True, **bad})


def test_additive_attention():
    q, k, v = normal(2, 3, 4), normal(2, 5, 6), normal(2, 5, 7)
    w_q, w_k, w_v = normal(8, 4), normal(8, 6), normal(8)
    mask, lengths = normal(2, 3, 5) > -1, np.array([0, 4])
    out, weights = ref.additive_attention(q, k, v, w_q, w_k, w_v, mask=mask, kv_lengths=lengths, return_weights=True)
    for b, i in itertools.product(range(2), range(3)):
        keys = [j for j in range(lengths[b]) if mask[b, i, j]]
        e = {j: math.exp(sum(w_v[a] * math.tanh(w_q[a] @ q[b, i] + w_k[a] @ k[b, j]) for a in range(8))) for j in keys}
        expected = sum((e[j] / sum(e.values()) * v[b, j] for j in keys), np.zeros(7))
        np.testing.assert_allclose(out[b, i], expected, rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(weights[b, i], [e.get(j, 0) / (sum(e.values()) or 1) for j in range(5)], rtol=1e-12)
    with pytest.raises(ValueError, match="w_k must have shape"):
        ref.additive_attention(q, k, v, w_q, w_q, w_v)
