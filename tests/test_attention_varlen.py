"""attention_varlen: packed sequences equal a loop over them, to the bit, and the float64 reference."""

from __future__ import annotations

from typing import Any

import naive
import numpy as np
import pytest
import qkv
from checks import FLOAT32, assert_close, each_isa, normal, oracle, same_bits, strided

LENGTHS = [
    ([5], [5]),
    ([1, 7, 30], [1, 7, 30]),
    ([3, 0, 9, 64, 1], [3, 0, 9, 64, 1]),
    ([1, 1, 1], [130, 1, 17]),
    ([9, 4, 0, 2], [2, 70, 5, 0]),
    ([0, 0], [0, 0]),
    ([40] * 6, [40] * 6),
    ([], []),
]


def packed(
    rng: np.random.Generator,
    lengths: tuple[list[int], list[int]],
    dtype: Any = FLOAT32,
    H: int = 4,
    Hkv: int = 2,
) -> tuple[list[Any], list[Any]]:
    """([q, k, v], [cu_seqlens_q, cu_seqlens_k])"""
    total_q, total_k = map(sum, lengths)
    arrays = [normal(rng, s, dtype) for s in ((total_q, H, 16), (total_k, Hkv, 16), (total_k, Hkv, 24))]
    return arrays, [np.concatenate([[0], np.cumsum(n)]).astype(np.int32) for n in lengths]


def options_for(rng: np.random.Generator, B: int, H: int) -> list[dict[str, Any]]:
    return [
        {},
        {"causal": True},
        {"causal": "top_left", "scale": 0.3},
        {"window": (7, 2), "softcap": 3.0},
        {"relative_bias": normal(rng, (H, 11)), "causal": True},
        {"alibi_slopes": np.linspace(0.1, 0.4, H, dtype=np.float32)},
        {"alibi_slopes": rng.uniform(0, 0.5, (B, H)).astype(np.float32), "causal": True},
        {"sinks": normal(rng, H), "window": (3, None)},
    ]


def one_by_one(arrays: list[Any], starts: list[Any], options: dict[str, Any]) -> list[Any]:
    """`attention` on each sequence: a list of (out (S, H, Dv), lse (H, S), weights (H, S, T))."""
    results = []
    for b in range(len(starts[0]) - 1):
        (q0, q1), (k0, k1) = (s[b : b + 2] for s in starts)
        q, k, v = arrays[0][None, q0:q1], arrays[1][None, k0:k1], arrays[2][None, k0:k1]
        own = dict(options)
        if np.ndim(own.get("alibi_slopes")) == 2:
            own["alibi_slopes"] = own["alibi_slopes"][b]
        out = qkv.attention(q, k, v, layout="bshd", return_lse=True, return_weights=True, **own)
        results.append([a[0] for a in out])
    return results


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_equals_a_loop_over_the_sequences(
    lengths: tuple[list[int], list[int]], dtype: np.dtype[Any], rng: np.random.Generator
) -> None:
    arrays, starts = packed(rng, lengths, dtype)
    for options in options_for(rng, len(lengths[0]), 4):
        for _ in each_isa():
            out, lse, weights = qkv.attention_varlen(*arrays, *starts, return_lse=True, return_weights=True, **options)
            loop = one_by_one(arrays, starts, options)
            assert out.shape == (sum(lengths[0]), 4, 24) and out.dtype == dtype and out.flags.writeable
            assert lse.shape == (4, sum(lengths[0])) and lse.dtype == FLOAT32
            assert isinstance(weights, list) and len(weights) == len(loop)
            for b, (one_out, one_lse, one_weights) in enumerate(loop):
                rows = slice(starts[0][b], starts[0][b + 1])
                assert same_bits(out[rows], one_out), f"sequence {b} {sorted(options)}"
                assert same_bits(np.ascontiguousarray(lse[:, rows]), one_lse), f"lse {b} {sorted(options)}"
                assert same_bits(weights[b], one_weights), f"weights {b} {sorted(options)}"
            assert same_bits(qkv.attention_varlen(*arrays, *starts, **options), out)


@pytest.mark.parametrize("lengths", LENGTHS[:5], ids=str)
def test_against_the_reference(
    lengths: tuple[list[int], list[int]], dtype: np.dtype[Any], rng: np.random.Generator
) -> None:
    arrays, starts = packed(rng, lengths, dtype)
    for options in options_for(rng, len(lengths[0]), 4):
        ref = oracle("attention_varlen", *arrays, *starts, **options)
        parts = []
        for b in range(len(lengths[0])):
            (q0, q1), (k0, k1) = (s[b : b + 2] for s in starts)
            own = dict(options)
            if np.ndim(own.get("alibi_slopes")) == 2:
                own["alibi_slopes"] = own["alibi_slopes"][b]
            one = arrays[0][None, q0:q1], arrays[1][None, k0:k1], arrays[2][None, k0:k1]
            parts.append(naive.attention(*one, layout="bshd", **own)[0][0])
        for _ in each_isa():
            out = qkv.attention_varlen(*arrays, *starts, **options)
            assert_close(out, ref, np.concatenate(parts), f"varlen {lengths} {sorted(options)}")


def test_no_sequence_sees_another(rng: np.random.Generator) -> None:
    arrays, starts = packed(rng, ([5, 9, 4], [7, 30, 12]))
    for _ in each_isa():
        clean = qkv.attention_varlen(*arrays, *starts)
        bad = [a.copy() for a in arrays]
        bad[1][7:37], bad[2][7:37] = np.nan, np.inf
        out = qkv.attention_varlen(*bad, *starts)
        assert same_bits(out[:5], clean[:5]) and same_bits(out[14:], clean[14:])


def test_strides_and_integer_dtypes(dtype: np.dtype[Any], rng: np.random.Generator) -> None:
    arrays, starts = packed(rng, ([5, 9, 4], [7, 30, 12]), dtype)
    for _ in each_isa():
        plain = qkv.attention_varlen(*arrays, *starts)
        for name in strided(arrays[0]):
            assert same_bits(qkv.attention_varlen(*(strided(a)[name] for a in arrays), *starts), plain)
        for integer in (np.int8, np.uint8, np.int64, np.uint32, np.uint64):
            assert same_bits(qkv.attention_varlen(*arrays, *(s.astype(integer) for s in starts)), plain)
        assert same_bits(qkv.attention_varlen(*arrays, *(strided(s)["reversed"] for s in starts)), plain)
        assert same_bits(qkv.attention_varlen(*arrays, *(s.tolist() for s in starts)), plain)


def test_out(rng: np.random.Generator) -> None:
    arrays, starts = packed(rng, ([5, 9], [7, 30]))
    expected, target = qkv.attention_varlen(*arrays, *starts), np.full((14, 4, 24), np.nan, np.float32)
    assert qkv.attention_varlen(*arrays, *starts, out=target) is target
    assert same_bits(target, expected)
    with pytest.raises(ValueError, match=r"attention_varlen: .*out"):
        qkv.attention_varlen(*arrays, *starts, out=target[:13])


def test_float64_is_served(rng: np.random.Generator) -> None:
    arrays, starts = packed(rng, ([5, 9], [7, 30]), np.dtype(np.float64))
    out = qkv.attention_varlen(*arrays, *starts, causal=True)
    assert out.dtype == np.float64
    parts = [
        naive.attention(arrays[0][None, a:b], arrays[1][None, c:d], arrays[2][None, c:d], causal=True, layout="bshd")[
            0
        ][0]
        for (a, b), (c, d) in (((0, 5), (0, 7)), ((5, 14), (7, 37)))
    ]
    np.testing.assert_allclose(out, np.concatenate(parts), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"cu_seqlens_q": [0, 5]}, "cu_seqlens"),
        ({"cu_seqlens_q": [0, 5, 13]}, "cu_seqlens_q"),
        ({"cu_seqlens_q": [1, 5, 14]}, "cu_seqlens_q"),
        ({"cu_seqlens_q": [0, 15, 14]}, "cu_seqlens_q"),
        ({"cu_seqlens_q": [0, -1, 14]}, "cu_seqlens_q"),
        ({"cu_seqlens_q": [0, 5, 2**40]}, "cu_seqlens_q"),
        ({"cu_seqlens_q": np.array([0, 2**64 - 1, 14], np.uint64)}, "cu_seqlens_q"),
        ({"cu_seqlens_k": [0, 7, 36]}, "cu_seqlens_k"),
        ({"cu_seqlens_k": [[0, 7, 37]]}, "cu_seqlens_k"),
        ({"cu_seqlens_k": np.zeros(0, np.int32)}, "cu_seqlens_k"),
        ({"q": np.ones((14, 5, 16), np.float32)}, "k has 2 heads, which does not divide q's 5"),
        ({"q": np.ones((1, 14, 4, 16), np.float32)}, "q"),
        ({"v": np.ones((36, 2, 24), np.float32)}, "v"),
        ({"v": np.ones((37, 1, 24), np.float32)}, "v"),
        ({"k": np.ones((37, 2, 15), np.float32)}, "k"),
        ({"alibi_slopes": np.ones((3, 4), np.float32)}, "alibi_slopes"),
        ({"relative_bias": np.ones((4, 2), np.float32)}, "relative_bias"),
        ({"sinks": np.ones(3, np.float32)}, "sinks"),
        ({"softcap": -1.0}, "softcap"),
        ({"window": (-1, 0)}, "window"),
        ({"causal": "no"}, "causal"),
    ],
    ids=lambda value: value if isinstance(value, str) else ",".join(value),
)
def test_refuses_values(change: dict[str, Any], message: str) -> None:
    arguments = {
        "q": np.ones((14, 4, 16), np.float32),
        "k": np.ones((37, 2, 16), np.float32),
        "v": np.ones((37, 2, 24), np.float32),
        "cu_seqlens_q": [0, 5, 14],
        "cu_seqlens_k": [0, 7, 37],
        **change,
    }
    with pytest.raises(ValueError, match=rf"attention_varlen: .*{message}"):
        qkv.attention_varlen(**arguments)


def test_refuses_types() -> None:
    q, k = np.ones((5, 4, 16), np.float32), np.ones((5, 2, 16), np.float32)
    for wrong in ([0.0, 5.0], np.array([0, 5], np.float32), ["0", "5"], [False, True], None):
        with pytest.raises(TypeError, match=r"attention_varlen: .*cu_seqlens_q"):
            qkv.attention_varlen(q, k, k, wrong, [0, 5])
        with pytest.raises(TypeError, match=r"attention_varlen: .*cu_seqlens_k"):
            qkv.attention_varlen(q, k, k, [0, 5], wrong)
    with pytest.raises(TypeError, match=r"attention_varlen: .*k"):
        qkv.attention_varlen(q, k.astype(np.float16), k, [0, 5], [0, 5])
