"""additive_attention (Bahdanau 2015) against the float64 reference."""

from __future__ import annotations

from typing import Any

import naive
import numpy as np
import pytest
import qkv
from checks import FLOAT32, assert_close, each_isa, normal, oracle, same_bits, sizes, strided


def arrays(
    rng: np.random.Generator,
    lead: tuple[int, ...],
    S: int,
    T: int,
    A: int,
    Dq: int = 6,
    Dk: int = 7,
    Dv: int = 5,
    dtype: Any = FLOAT32,
) -> list[Any]:
    shapes = [(*lead, S, Dq), (*lead, T, Dk), (*lead, T, Dv), (A, Dq), (A, Dk), (A,)]
    return [normal(rng, shape, dtype) for shape in shapes]


def check(given: list[Any], what: str = "", **options: Any) -> None:
    ref = oracle("additive_attention", *given, return_weights=True, **options)
    yardstick = naive.additive_attention(*given, **options)
    what = f"{what} {[a.shape for a in given]} {sorted(options)}"
    for _ in each_isa():
        out, weights = qkv.additive_attention(*given, return_weights=True, **options)
        assert_close(out, ref[0], yardstick[0], what)
        assert_close(weights, ref[1], yardstick[1], f"weights {what}")
        alone = qkv.additive_attention(*given, **options)
        assert_close(alone, ref[0], yardstick[0], f"alone {what}")


@pytest.mark.parametrize("n", sizes(129))
def test_sizes(n: int, rng: np.random.Generator) -> None:
    check(arrays(rng, (4,), 9, n, 9))
    check(arrays(rng, (4,), 9, 11, n))
    check(arrays(rng, (4,), min(n, 40), 5, 7, Dq=n, Dk=3, Dv=n))


@pytest.mark.parametrize("T", [255, 256, 257, 600])
def test_more_keys_than_a_block(T: int, rng: np.random.Generator) -> None:
    given = arrays(rng, (2,), 9, T, 11)
    check(given)
    check(given, mask=rng.random((9, T)) < 0.5, kv_lengths=np.array([T, T - 3]))


@pytest.mark.parametrize("lead", [(), (1,), (3,), (2, 3), (2, 1, 3), (0,), (2, 0)], ids=str)
def test_leading_dimensions(lead: tuple[int, ...], dtype: np.dtype[Any], rng: np.random.Generator) -> None:
    given = arrays(rng, lead, 5, 17, 8, dtype=dtype)
    check(given)
    check(given, mask=rng.random((*lead, 5, 17)) < 0.7)
    check(given, mask=rng.random((5, 17)) < 0.7)
    check(given, mask=rng.random((1, 17)) < 0.7)
    check(given, kv_lengths=rng.integers(0, 18, lead))
    check(given, kv_lengths=np.array(7), mask=rng.random((5, 17)) < 0.7)


@pytest.mark.parametrize(
    "leads",
    [((2,), (), ()), ((), (2,), (2,)), ((2,), (1,), (1,)), ((1,), (3,), (1,)), ((2, 1), (3,), (2, 3)), ((), (), (4,))],
    ids=str,
)
def test_leading_dimensions_broadcast(leads: tuple[tuple[int, ...], ...], rng: np.random.Generator) -> None:
    given = arrays(rng, (), 5, 17, 8)
    for i, lead in enumerate(leads):
        given[i] = normal(rng, (*lead, *given[i].shape))
    full = np.broadcast_shapes(*leads)
    spread = [np.broadcast_to(a, (*full, *a.shape[-2:])).copy() for a in given[:3]] + given[3:]
    check(spread)
    for _ in each_isa():
        assert same_bits(qkv.additive_attention(*given), qkv.additive_attention(*spread))


def test_last_weight_as_a_matrix_of_one_row(rng: np.random.Generator) -> None:
    given = arrays(rng, (2,), 5, 17, 8)
    for _ in each_isa():
        row = qkv.additive_attention(*given[:5], given[5][None])
        assert same_bits(row, qkv.additive_attention(*given))


def test_empty_rows_are_zero(dtype: np.dtype[Any], rng: np.random.Generator) -> None:
    given = arrays(rng, (2,), 5, 17, 8, dtype=dtype)
    mask = rng.random((2, 5, 17)) < 0.5
    mask[1, 2] = False
    check(given, mask=mask)
    check(given, kv_lengths=np.array([0, 9]))
    for _ in each_isa():
        out, weights = qkv.additive_attention(*given, mask=mask, return_weights=True)
        assert not out[1, 2].any() and not weights[1, 2].any()
        assert not qkv.additive_attention(*given, kv_lengths=np.array([0, 9]))[0].any()


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_excluded_keys_do_not_leak(poison: float, rng: np.random.Generator) -> None:
    given = arrays(rng, (2,), 5, 17, 8)
    mask = np.ones((2, 1, 17), bool)
    mask[0, :, 3:7], mask[1, :, 9:] = False, False
    bad = [a.copy() for a in given]
    bad[1][~mask[:, 0]], bad[2][~mask[:, 0]] = poison, poison
    for _ in each_isa():
        assert same_bits(qkv.additive_attention(*bad, mask=mask), qkv.additive_attention(*given, mask=mask))
        bad_tail = [
            *given[:1],
            *(np.concatenate([a[:, :9], np.full_like(a[:, 9:], poison)], 1) for a in given[1:3]),
            *given[3:],
        ]
        lengths = np.array([9, 4])
        assert same_bits(
            qkv.additive_attention(*bad_tail, kv_lengths=lengths),
            qkv.additive_attention(*given, kv_lengths=lengths),
        )


def test_zero_sized(dtype: np.dtype[Any], rng: np.random.Generator) -> None:
    for S, T, A in [(0, 5, 3), (5, 0, 3), (0, 0, 3), (5, 4, 0)]:
        check(arrays(rng, (2,), S, T, A, dtype=dtype))


def test_strides(dtype: np.dtype[Any], rng: np.random.Generator) -> None:
    given = arrays(rng, (2,), 5, 17, 8, dtype=dtype)
    mask = rng.random((2, 5, 17)) < 0.7
    for _ in each_isa():
        plain = qkv.additive_attention(*given, mask=mask)
        for name in strided(given[0]):
            views = [strided(a)[name] for a in given]
            assert same_bits(qkv.additive_attention(*views, mask=strided(mask)[name]), plain), name


def test_large_scores_saturate(rng: np.random.Generator) -> None:
    given = arrays(rng, (8,), 9, 17, 8)
    check([given[0] * np.float32(1e4), *given[1:]])
    check([*given[:5], given[5] * np.float32(10)])


def test_float64_is_served(rng: np.random.Generator) -> None:
    given = arrays(rng, (2,), 5, 17, 8, dtype=np.float64)
    out = qkv.additive_attention(*given)
    assert out.dtype == np.float64
    np.testing.assert_allclose(out, naive.additive_attention(*given)[0], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "index, shape, name",
    [
        (0, (6,), "q"),
        (1, (2, 17, 6), "w_k"),
        (1, (3, 17, 7), ""),
        (2, (2, 16, 5), "v"),
        (3, (8, 7), "w_q"),
        (3, (8,), "w_q"),
        (4, (9, 7), "w_k"),
        (5, (7,), "w_v"),
        (5, (8, 1), "w_v"),
    ],
    ids=str,
)
def test_refuses_shapes(index: int, shape: tuple[int, ...], name: str, rng: np.random.Generator) -> None:
    given = arrays(rng, (2,), 5, 17, 8)
    given[index] = np.ones(shape, np.float32)
    with pytest.raises(ValueError, match=rf"additive_attention: .*{name}"):
        qkv.additive_attention(*given)


def test_refuses_options(rng: np.random.Generator) -> None:
    given = arrays(rng, (2,), 5, 17, 8)
    with pytest.raises(ValueError, match=r"additive_attention: .*mask"):
        qkv.additive_attention(*given, mask=np.ones((5, 16), bool))
    for lengths in ([18, 3], [-1, 3], [1, 2, 3]):
        with pytest.raises(ValueError, match=r"additive_attention: .*kv_lengths"):
            qkv.additive_attention(*given, kv_lengths=np.array(lengths))
    for options in (
        {"mask": np.ones((5, 17))},
        {"mask": np.ones((5, 17), np.int8)},
        {"kv_lengths": np.ones(2)},
    ):
        with pytest.raises(TypeError, match=rf"additive_attention: .*{next(iter(options))}"):
            qkv.additive_attention(*given, **options)
    with pytest.raises(TypeError, match=r"additive_attention: .*k"):
        qkv.additive_attention(given[0], given[1].astype(np.float16), *given[2:])
