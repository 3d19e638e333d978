"""attention where keys are excluded: rows with nothing to attend to, and poison in keys that must not leak."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import qkv
from attention_checks import check, qkv_of
from checks import each_isa, same_bits

# ---- rows with nothing to attend to ------------------------------------------------------------------------------


def empty_rows(rng: np.random.Generator) -> dict[str, tuple[dict[str, Any], Any]]:
    """name: (options, which of the rows (B, S) = (2, 6) of T = 4 keys are empty)."""
    mask = np.ones((2, 1, 6, 4), bool)
    mask[1, :, 2:4] = False
    by_mask = ~mask.any(-1)[:, 0]
    minus_infinity = np.where(mask, np.float32(0.5), np.float32(-np.inf))
    early = np.arange(6)[None] < np.array([[2], [2]])  # bottom-right: the first two queries stand before key 0
    return {
        "mask": ({"mask": mask}, by_mask),
        "bias of -inf": ({"bias": minus_infinity}, by_mask),
        "kv_lengths": ({"kv_lengths": np.array([4, 0])}, np.array([[False] * 6, [True] * 6])),
        "causal": ({"causal": True}, early),
        "window": ({"window": (None, 0)}, early),
        "window past the end": ({"causal": "top_left", "window": (1, 0)}, np.tile(np.arange(6) > 4, (2, 1))),
        "all false": ({"mask": np.zeros((1, 1), bool)}, np.ones((2, 6), bool)),
    }


@pytest.mark.parametrize("name", empty_rows(np.random.default_rng(0)))
def test_rows_with_nothing_to_attend_to(name: str, dtype: np.dtype[Any], rng: np.random.Generator) -> None:
    q, k, v = qkv_of(rng, 2, 3, 6, 4, 16, dtype=dtype)
    options, empty = empty_rows(rng)[name]
    sinks = np.array([0.5, -3.0, -np.inf], np.float32)
    check(q, k, v, **options)
    check(q, k, v, sinks=sinks, **options)
    for _ in each_isa():
        out, lse, weights = qkv.attention(q, k, v, return_lse=True, return_weights=True, **options)
        rows = np.broadcast_to(empty[:, None], (2, 3, 6))
        assert (out[rows] == 0).all() and (weights[rows] == 0).all()
        assert np.isneginf(lse[rows]).all() and np.isfinite(lse[~rows]).all()
        out, lse, weights = qkv.attention(q, k, v, sinks=sinks, return_lse=True, return_weights=True, **options)
        assert (out[rows] == 0).all() and (weights[rows] == 0).all()
        np.testing.assert_allclose(lse[rows], np.broadcast_to(sinks[None, :, None], (2, 3, 6))[rows], rtol=1e-6)


def test_sinks_take_their_share(rng: np.random.Generator) -> None:
    q, k, v = qkv_of(rng, 2, 3, 5, 33, 16)
    sinks = np.array([2.0, -np.inf, 50.0], np.float32)
    check(q, k, v, sinks=sinks)
    for _ in each_isa():
        lse, weights = qkv.attention(q, k, v, sinks=sinks, return_lse=True, return_weights=True)[1:]
        share = np.exp(sinks[None, :, None] - lse)
        np.testing.assert_allclose(weights.sum(-1) + share, 1, rtol=1e-5)
        assert same_bits(
            qkv.attention(q[:, 1:2], k[:, 1:2], v[:, 1:2], sinks=sinks[1:2]),
            qkv.attention(q[:, 1:2], k[:, 1:2], v[:, 1:2]),
        )


# ---- what is excluded must not leak ------------------------------------------------------------------------------


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_excluded_keys_do_not_leak(poison: float, dtype: np.dtype[Any], rng: np.random.Generator) -> None:
    B, H, S, T, D = 2, 2, 20, 70, 17
    q, k, v = qkv_of(rng, B, H, S, T, D, dtype=dtype)
    mask = np.ones((B, 1, 1, T), bool)
    mask[0, ..., 5:40], mask[1, ..., ::3] = False, False
    lengths = np.array([33, 0])
    length_mask = np.broadcast_to(np.arange(T) < lengths[:, None], (B, T))
    behind = np.broadcast_to(np.arange(T) < S, (B, T))
    near = np.broadcast_to(np.arange(T) >= T - S - 7, (B, T))
    cases: list[tuple[dict[str, Any], Any]] = [
        ({"mask": mask}, mask[:, 0, 0]),
        ({"bias": np.where(mask, np.float32(0.25), np.float32(-np.inf))}, mask[:, 0, 0]),
        ({"kv_lengths": lengths}, length_mask),
        ({"causal": "top_left"}, behind),
        ({"window": (7, None)}, near),
        ({"causal": True, "window": (7, 0)}, near),
        ({"kv_lengths": lengths, "mask": mask}, length_mask & mask[:, 0, 0]),
    ]
    for options, seen in cases:
        bad_v, bad_k = v.copy(), k.copy()
        at = np.broadcast_to(~seen[:, None], (B, H, T))
        bad_v[at] = poison
        bad_k[at] = poison
        # A bias of -inf does not exclude by structure: score = q.k - inf, so there only v may be poisoned.
        poisoned = [(k, bad_v)] if "bias" in options else [(k, bad_v), (bad_k, v), (bad_k, bad_v)]
        for _ in each_isa():
            clean = qkv.attention(q, k, v, return_lse=True, return_weights=True, **options)
            for one_k, one_v in poisoned:
                dirty = qkv.attention(q, one_k, one_v, return_lse=True, return_weights=True, **options)
                for a, b in zip(clean, dirty, strict=True):
                    assert same_bits(a, b), f"{sorted(options)}"
                assert same_bits(qkv.attention(q, one_k, one_v, **options), qkv.attention(q, k, v, **options))


def test_a_poisoned_key_spoils_the_rows_that_see_it_and_no_other(rng: np.random.Generator) -> None:
    q, k, v = qkv_of(rng, 1, 1, 70, 70, 16)
    clean = {isa: qkv.attention(q, k, v, causal=True) for isa in each_isa()}
    bad_k, bad_v = k.copy(), v.copy()
    bad_k[0, 0, 40], bad_v[0, 0, 40, 3] = np.nan, np.nan
    for isa in each_isa():
        out = qkv.attention(q, bad_k, v, causal=True)
        assert same_bits(out[:, :, :40], clean[isa][:, :, :40]) and np.isnan(out[:, :, 40:]).all()
        out = qkv.attention(q, k, bad_v, causal=True)
        assert np.argwhere(np.isnan(out)).tolist() == [[0, 0, i, 3] for i in range(40, 70)]
        assert same_bits(out[..., 4:], clean[isa][..., 4:])
    check(q, bad_k, v, causal=True)
    check(q, k, bad_v, causal=True)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_poisoned_query_spoils_its_row_alone(value: float, rng: np.random.Generator) -> None:
    q, k, v = qkv_of(rng, 2, 2, 33, 40, 16)
    clean = {isa: qkv.attention(q, k, v) for isa in each_isa()}
    q[1, 0, 7, 2] = value
    for isa in each_isa():
        out = qkv.attention(q, k, v)
        others = np.ones((2, 2, 33), bool)
        others[1, 0, 7] = False
        assert same_bits(out[others], clean[isa][others]) and np.isnan(out[1, 0, 7]).all()


def test_an_infinite_value_is_felt_however_small_its_weight() -> None:
    """A key that is attended to counts even where its weight underflows, in whatever order the keys come."""
    for keys in ([0, -150], [-150, 0]):
        q, k = np.ones((1, 1, 1, 1), np.float32), np.array(keys, np.float32).reshape(1, 1, 2, 1)
        v = np.where(k == 0, np.float32(1), np.float32(np.inf))
        for _ in each_isa():
            assert not np.isfinite(qkv.attention(q, k, v, scale=1.0)).any()
            assert qkv.attention(q, k, v, scale=1.0, mask=k[..., 0] == 0)[0, 0, 0, 0] == 1


def test_out_may_share_memory_with_the_mask() -> None:
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((1, 1, 256, 64)).astype(np.float32) for _ in range(3))
    buffer = np.zeros((1, 1, 256, 64), np.float32)
    mask = buffer.view(np.bool_)
    mask[..., :64] = rng.random((256, 64)) < 0.5
    k, v = k[:, :, :64], v[:, :, :64]
    expected = qkv.attention(q, k, v, mask=mask[..., :64].copy())
    assert same_bits(qkv.attention(q, k, v, mask=mask[..., :64], out=buffer), expected)
