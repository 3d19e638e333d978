"""flash_attn_func, flash_attn_varlen_func and scaled_dot_product_attention: the conventions of flash-attn and torch."""

from __future__ import annotations

import inspect
from math import prod
from typing import Any

import naive
import numpy as np
import pytest
import qkv
from checks import assert_close, each_isa, normal, oracle, same_bits

# Names, order and defaults, copied from the documentation of flash-attn 2.8 and torch 2.9.
SIGNATURES = {
    "flash_attn_func": "(q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0, "
    "alibi_slopes=None, deterministic=False, return_attn_probs=False)",
    "flash_attn_varlen_func": "(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, "
    "softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0, alibi_slopes=None, deterministic=False, "
    "return_attn_probs=False, block_table=None)",
    "scaled_dot_product_attention": "(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, "
    "enable_gqa=False)",
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures_are_those_of_the_originals(name: str) -> None:
    parameters = inspect.signature(getattr(qkv, name)).parameters.values()
    plain = [p.replace(annotation=inspect.Parameter.empty) for p in parameters]
    assert str(inspect.Signature(plain)) == SIGNATURES[name]


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
    torch = pytest.importorskip("torch")
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
