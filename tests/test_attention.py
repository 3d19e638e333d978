"""attention in all its options against the float64 reference.

Empty rows and poisoned keys are in test_attention_masked.py, packed sequences in test_attention_varlen.py, the names
of torch and flash-attn in test_attention_names.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import naive
import numpy as np
import pytest
import qkv
from attention_checks import check, qkv_of
from checks import (
    BFLOAT16,
    DTYPES,
    FLOAT32,
    assert_close,
    each_isa,
    normal,
    oracle,
    run_python,
    same_bits,
    sizes,
    strided,
    under_sanitizer,
)
from on_device import fewer

# Of padded widths 16, 32, 64, 128 and 256, on a GPU's tensor cores or not, aligned or not.
FEW_WIDTHS = [1, 7, 8, 17, 33, 64, 65, 96, 128, 129, 257]
WIDTHS = [1, 2, 3, 5, 7, 8, 15, 16, 17, 24, 31, 32, 33, 40, 63, 64, 65, 80, 96, 97, 127, 128, 129, 255, 257]


# ---- a generated grid over all options ---------------------------------------------------------------------------


@dataclass
class Case:
    """One call, drawn from its number."""

    number: int
    arrays: tuple[Any, Any, Any] = field(init=False)
    options: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        rng = np.random.default_rng([2026, self.number])
        dtype = DTYPES[("float32", "float32", "float16", "bfloat16")[self.number % 4]]
        B, Hkv, group = int(rng.integers(1, 4)), int(rng.integers(1, 4)), int(rng.choice([1, 1, 2, 3]))
        H = Hkv * group
        largest = 300 if self.number % 10 == 0 else 70
        S = 1 if rng.random() < 0.2 else int(rng.integers(1, largest))
        if B * H * S < 8:  # one lucky rounding must not make the yardstick
            B = 8
        T = S if rng.random() < 0.3 else int(rng.integers(1, largest))
        D = int(rng.choice(WIDTHS[:20]))
        Dv = D if rng.random() < 0.6 else int(rng.choice(WIDTHS[:20]))
        chance = lambda p: bool(rng.random() < p)  # noqa: E731
        layout = "bshd" if chance(0.4) else "bhsd"
        self.arrays = qkv_of(rng, B, H, S, T, D, Hkv=Hkv, Dv=Dv, dtype=dtype, layout=layout)
        if chance(0.25):
            name = str(rng.choice(["fortran", "reversed", "every other", "slice"]))
            self.arrays = tuple(strided(a)[name] for a in self.arrays)  # type: ignore[assignment]

        o: dict[str, Any] = {"layout": layout}
        if chance(0.5):
            o["causal"] = True if chance(0.6) else "top_left"
        if chance(0.3):
            o["mask"] = self.spread(rng, rng.random((B, H, S, T)) < rng.choice([0.1, 0.7, 0.97]))
        if chance(0.3):
            bias = normal(rng, (B, H, S, T), dtype if chance(0.5) else FLOAT32)
            if chance(0.3):
                bias[rng.random(bias.shape) < 0.3] = -np.inf
            o["bias"] = self.spread(rng, bias)
        if chance(0.25):
            reach = int(rng.choice([0, 1, 5, 31, S + T]))
            o["relative_bias"] = normal(rng, (H, 2 * reach + 1), dtype if chance(0.5) else FLOAT32)
        if chance(0.25):
            slopes = rng.uniform(0, 0.5, (H,) if chance(0.5) else (B, H))
            o["alibi_slopes"] = slopes.astype(dtype if chance(0.3) else FLOAT32)
        if chance(0.3):
            o["scale"] = float(rng.choice([1.0, 0.05, -0.3, 0.0]))
        if chance(0.25):
            o["softcap"] = float(rng.choice([0.5, 3.0, 30.0]))
        if chance(0.3):
            o["window"] = tuple(None if chance(0.3) else int(rng.choice([0, 1, 7, 16, 40, 1000])) for _ in range(2))
        if chance(0.25):
            o["sinks"] = normal(rng, H, dtype if chance(0.3) else FLOAT32, 2)
        if chance(0.3):
            o["kv_lengths"] = rng.integers(0, T + 1, B).astype(
                rng.choice(["int32", "int64", "uint8"] if T < 256 else ["int32"])
            )
        self.options = o

    @staticmethod
    def spread(rng: np.random.Generator, full: Any) -> Any:
        """One of the shapes and memory orders that broadcast to (B, H, S, T)."""
        a = full[tuple(slice(None) if rng.random() < 0.6 else slice(0, 1) for _ in range(4))]
        while a.ndim > 1 and a.shape[0] == 1 and rng.random() < 0.5:
            a = a[0]
        choice = rng.random()
        if choice < 0.25:
            return np.broadcast_to(a, full.shape)  # zero strides
        if choice < 0.5:
            return strided(a)[str(rng.choice(["fortran", "reversed", "every other", "slice"]))]
        return a


@pytest.mark.parametrize("number", fewer(range(200), range(0, 200, 3)))
def test_generated(number: int) -> None:
    case = Case(number)
    check(*case.arrays, what=f"case {number}", **case.options)


def test_generated_cases_cover_every_option() -> None:
    counts: dict[str, int] = {}
    for number in range(200):
        for name in Case(number).options:
            counts[name] = counts.get(name, 0) + 1
    wanted = {
        "causal",
        "mask",
        "bias",
        "relative_bias",
        "alibi_slopes",
        "scale",
        "softcap",
        "window",
        "sinks",
        "kv_lengths",
    }
    assert wanted <= set(counts) and min(counts.values()) >= 30


@pytest.mark.parametrize("number", range(0, 200, 7))
def test_the_specification_read_twice(number: int) -> None:
    """`naive` in float64 and `reference` were written apart from each other and agree."""
    case = Case(number)
    arrays = [a.astype(np.float64) for a in case.arrays]
    options = {
        n: a.astype(np.float64) if n in ("bias", "sinks", "relative_bias", "alibi_slopes") else a
        for n, a in case.options.items()
    }
    with np.errstate(all="ignore"):
        expected = naive.attention(*arrays, **options)
        got = oracle("attention", *arrays, return_lse=True, return_weights=True, **options)
        served = qkv.attention(*arrays, return_lse=True, return_weights=True, **options)
    for a, b, c in zip(expected, got, served, strict=True):
        assert b.dtype == c.dtype == np.float64
        np.testing.assert_allclose(b, a, rtol=1e-10, atol=1e-10)
        np.testing.assert_array_equal(b, c)


# ---- one thing at a time ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("D", fewer(WIDTHS, FEW_WIDTHS))
def test_head_widths(D: int, dtype: np.dtype[Any], rng: np.random.Generator) -> None:
    check(*qkv_of(rng, 1, 2, 5, 19, D, dtype=dtype))
    check(*qkv_of(rng, 1, 2, 17, 33, 24, Dv=D, dtype=dtype), causal=True)
    check(*qkv_of(rng, 1, 1, 3, 9, D, Dv=6, dtype=dtype, layout="bshd"), layout="bshd")


def test_every_length_to_300(rng: np.random.Generator) -> None:
    q, k, v = qkv_of(rng, 1, 1, 300, 300, 8)
    full = naive.attention(q, k, v)[0]
    for n in fewer(range(1, 301), [n for n in range(1, 301) if n < 18 or n % 32 in (0, 1, 31)]):
        rows = q[:, :, :3]
        ref = oracle("attention", rows, k[:, :, :n], v[:, :, :n])
        for isa in each_isa():
            # A mean of n values: the error bound is that of a few roundings of values near 1.
            out = qkv.attention(rows, k[:, :, :n], v[:, :, :n])
            assert np.abs(out - ref).max() < 2e-6, f"T = {n} {isa}"
            out = qkv.attention(q[:, :, :n], k, v)
            assert np.abs(out - full[:, :, :n]).max() < 4e-6, f"S = {n} {isa}"


@pytest.mark.parametrize("n", sizes())
def test_square_sizes(n: int, rng: np.random.Generator) -> None:
    q, k, v = qkv_of(rng, 1, 1, n, n, 16)
    check(q, k, v)
    check(q, k, v, causal=True)
    check(q, k, v, causal=True, window=(n // 3, None))


@pytest.mark.parametrize("causal", [False, True, "top_left"])
@pytest.mark.parametrize("S, T", [(1, 70), (5, 70), (70, 5), (70, 1), (40, 41), (41, 40)])
def test_causal_and_window_where_lengths_differ(causal: Any, S: int, T: int, rng: np.random.Generator) -> None:
    q, k, v = qkv_of(rng, 2, 2, S, T, 16)
    windows = [None, (0, 0), (3, None), (None, 2), (3, 0), (0, 3), (100, 100), (20, 1)]
    for window in fewer(windows, [None, (0, 0), (3, None), (20, 1)]):
        check(q, k, v, causal=causal, window=window)
        check(q, k, v, causal=causal, window=window, kv_lengths=np.array([T, T // 2]))


def test_long_rows(rng: np.random.Generator) -> None:
    """Several key blocks, so that the running maximum moves and earlier blocks are rescaled."""
    q, k, v = qkv_of(rng, 1, 1, 4, 2500, 32)
    check(q, k, v)
    rising = np.sort(rng.standard_normal(2500)).astype(np.float32) * np.float32(5)
    check(q, k, v, bias=rising)
    check(q, k, v, bias=rising[::-1])
    check(q, k, v, causal=True, alibi_slopes=np.array([0.01], np.float32))


def test_group_of_heads_reads_the_right_key_head(dtype: np.dtype[Any], rng: np.random.Generator) -> None:
    for H, Hkv in [(6, 1), (6, 2), (6, 3), (8, 4), (12, 1)]:
        q, k, v = qkv_of(rng, 2, H, 9, 13, 16, Hkv=Hkv, dtype=dtype)
        check(q, k, v, causal=True)
        repeated = [np.repeat(a, H // Hkv, 1) for a in (k, v)]
        for _ in each_isa():
            assert same_bits(qkv.attention(q, k, v), qkv.attention(q, *repeated))


def test_layouts_agree(dtype: np.dtype[Any], rng: np.random.Generator) -> None:
    q, k, v = qkv_of(rng, 2, 4, 19, 35, 16, Hkv=2, Dv=24, dtype=dtype)
    turned = [np.ascontiguousarray(np.swapaxes(a, 1, 2)) for a in (q, k, v)]
    for _ in each_isa():
        one = qkv.attention(q, k, v, causal=True, return_lse=True, return_weights=True)
        two = qkv.attention(*turned, causal=True, layout="bshd", return_lse=True, return_weights=True)
        assert same_bits(np.ascontiguousarray(np.swapaxes(two[0], 1, 2)), one[0])
        assert same_bits(two[1], one[1]) and same_bits(two[2], one[2])


def test_strides(dtype: np.dtype[Any], rng: np.random.Generator) -> None:
    q, k, v = qkv_of(rng, 2, 3, 19, 35, 17, dtype=dtype)
    bias, mask = normal(rng, (2, 3, 19, 35)), rng.random((2, 3, 19, 35)) < 0.8
    for _ in each_isa():
        plain = qkv.attention(q, k, v, bias=bias, mask=mask)
        for name in strided(q):
            views = [strided(a)[name] for a in (q, k, v)]
            out = qkv.attention(*views, bias=strided(bias)[name], mask=strided(mask)[name])
            assert same_bits(out, plain), name
        one_head = [np.broadcast_to(a[:, :1], a.shape) for a in (q, k, v)]
        assert same_bits(qkv.attention(*one_head), qkv.attention(*(a.copy() for a in one_head)))
        fused = normal(rng, (2, 19, 3, 3, 17), dtype)  # (B, S, qkv, H, D), as one projection leaves it
        parts = [fused[:, :, i] for i in range(3)]
        assert same_bits(qkv.attention(*parts, layout="bshd"), qkv.attention(*(p.copy() for p in parts), layout="bshd"))


def test_bias_and_mask_broadcast_like_numpy(rng: np.random.Generator) -> None:
    B, H, S, T = 2, 3, 5, 37
    q, k, v = qkv_of(rng, B, H, S, T, 8)
    full_bias, full_mask = normal(rng, (B, H, S, T)), rng.random((B, H, S, T)) < 0.7
    for kept in range(16):
        index = tuple(slice(None) if kept >> axis & 1 else slice(0, 1) for axis in range(4))
        for bias, mask in (
            (full_bias[index], None),
            (None, full_mask[index]),
            (full_bias[index], full_mask[index]),
        ):
            spread = {
                name: None if a is None else np.ascontiguousarray(np.broadcast_to(a, (B, H, S, T)))
                for name, a in (("bias", bias), ("mask", mask))
            }
            for _ in each_isa():
                assert same_bits(qkv.attention(q, k, v, bias=bias, mask=mask), qkv.attention(q, k, v, **spread))
    for a in (np.float32(0.5), full_bias[0, 0, 0], full_bias[0, 0], full_bias[0]):
        check(q, k, v, bias=np.asarray(a))
    for m in (np.bool_(True), np.bool_(False), full_mask[0, 0, 0], full_mask[0, 0], full_mask[0]):
        check(q, k, v, mask=np.asarray(m))


def test_relative_bias_equals_the_bias_that_it_stands_for(rng: np.random.Generator) -> None:
    for S, T, reach in [(9, 9, 4), (9, 40, 16), (40, 9, 60), (33, 33, 0)]:
        q, k, v = qkv_of(rng, 1, 2, S, T, 16)
        table = normal(rng, (2, 2 * reach + 1))
        i, j = np.arange(S)[:, None] + T - S, np.arange(T)
        bias = table[:, np.clip(j - i, -reach, reach) + reach]
        for _ in each_isa():
            a, b = qkv.attention(q, k, v, relative_bias=table), qkv.attention(q, k, v, bias=bias)
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)
        check(q, k, v, relative_bias=table, causal="top_left")


def test_positions_follow_kv_lengths(rng: np.random.Generator) -> None:
    """Bottom-right: with kv_lengths the last query stands at the last real key of its row."""
    q, k, v = qkv_of(rng, 3, 2, 4, 30, 16)
    lengths = np.array([30, 11, 2])
    options: dict[str, Any] = {
        "causal": True,
        "relative_bias": normal(rng, (2, 13)),
        "alibi_slopes": np.array([0.3, 0.1], np.float32),
        "window": (9, 0),
    }
    for _ in each_isa():
        out = qkv.attention(q, k, v, kv_lengths=lengths, **options)
        for b, n in enumerate(lengths):
            alone = qkv.attention(q[b : b + 1], k[b : b + 1, :, :n], v[b : b + 1, :, :n], **options)
            assert same_bits(out[b : b + 1], alone)


@pytest.mark.parametrize("magnitude", [1e-30, 1e-4, 30.0, 1e4])
def test_large_and_small_scores(magnitude: float, rng: np.random.Generator) -> None:
    q, k, v = qkv_of(rng, 2, 3, 33, 70, 16)
    if magnitude > 1:  # whole numbers, so that sums are exact: the rounding of a score of 1e4 would be all one sees
        q, k = np.round(q), np.round(k)
    check(q * np.float32(magnitude), k, v)
    check(q, k, v * np.float32(magnitude))
    check(q, k, v, bias=normal(rng, (33, 70)) * np.float32(magnitude))
    check(q * np.float32(magnitude), k, v, softcap=2.0)


def test_lowest_float_as_a_mask(rng: np.random.Generator) -> None:
    """The additive mask of transformers: -3.4e38 where attention is not allowed; a row of nothing else is a mean."""
    q, k, v = qkv_of(rng, 1, 2, 5, 33, 16)
    lowest = np.finfo(np.float32).min
    bias = np.where(rng.random((1, 1, 5, 33)) < 0.5, np.float32(0), lowest)
    check(q, k, v, bias=bias)
    bias[..., 2, :] = lowest
    for _ in each_isa():
        out = qkv.attention(q, k, v, bias=bias)
        np.testing.assert_allclose(out[0, :, 2], v[0].mean(1), rtol=1e-5, atol=1e-5)


# ---- what comes back, and what does not come in ------------------------------------------------------------------


def test_returns(dtype: np.dtype[Any], rng: np.random.Generator) -> None:
    for layout in ("bhsd", "bshd"):
        q, k, v = qkv_of(rng, 2, 4, 5, 9, 16, Hkv=2, Dv=8, dtype=dtype, layout=layout)
        shape = (2, 4, 5, 8) if layout == "bhsd" else (2, 5, 4, 8)
        for _ in each_isa():
            out = qkv.attention(q, k, v, layout=layout)
            assert isinstance(out, np.ndarray) and out.shape == shape
            assert out.dtype == dtype and out.flags.c_contiguous and out.flags.writeable
            _, lse = qkv.attention(q, k, v, layout=layout, return_lse=True)
            assert lse.shape == (2, 4, 5) and lse.dtype == FLOAT32
            _, weights = qkv.attention(q, k, v, layout=layout, return_weights=True)
            assert weights.shape == (2, 4, 5, 9) and weights.dtype == dtype
            target = np.full(shape, np.nan, dtype)
            result = qkv.attention(q, k, v, layout=layout, out=target, return_lse=True)
            assert result[0] is target and same_bits(target, out) and same_bits(result[1], lse)


def test_weights_are_the_probabilities_that_made_the_output(rng: np.random.Generator) -> None:
    q, k, v = qkv_of(rng, 2, 2, 33, 70, 16)
    for _ in each_isa():
        out, weights = qkv.attention(q, k, v, causal=True, return_weights=True)
        np.testing.assert_allclose(weights.astype(np.float64) @ v.astype(np.float64), out, rtol=1e-5, atol=2e-6)
        np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)


@pytest.mark.parametrize(
    "shapes",
    [
        ((0, 2, 3, 8), (0, 2, 5, 8), (0, 2, 5, 8)),
        ((2, 0, 3, 8), (2, 0, 5, 8), (2, 0, 5, 8)),
        ((2, 2, 0, 8), (2, 2, 5, 8), (2, 2, 5, 8)),
        ((2, 2, 3, 8), (2, 2, 0, 8), (2, 2, 0, 8)),
        ((2, 2, 3, 8), (2, 2, 5, 8), (2, 2, 5, 0)),
        ((2, 2, 3, 0), (2, 2, 5, 0), (2, 2, 5, 8)),
        ((2, 2, 0, 8), (2, 2, 0, 8), (2, 2, 0, 8)),
    ],
    ids=str,
)
def test_zero_sized(shapes: tuple[tuple[int, ...], ...], dtype: np.dtype[Any]) -> None:
    q, k, v = (np.ones(shape, dtype) for shape in shapes)
    for options in ({}, {"causal": True}, {"window": (1, 1)}):
        check(q, k, v, **options)


def test_bf16_precision(rng: np.random.Generator) -> None:
    """precision="bf16" may round q, k, v and the probabilities to bfloat16; the sums stay float32."""
    q, k, v = qkv_of(rng, 1, 2, 40, 130, 64)
    ref = oracle("attention", q, k, v, causal=True)
    yardstick = naive.attention(*(a.astype(BFLOAT16) for a in (q, k, v)), causal=True)[0]
    for _ in each_isa():
        out = qkv.attention(q, k, v, causal=True, precision="bf16")
        assert out.dtype == FLOAT32
        assert_close(out.astype(BFLOAT16), ref, yardstick, "precision bf16")


def test_bf16_precision_is_that_of_rounded_operands(rng: np.random.Generator) -> None:
    """Against the exact result for q, k and v as rounded, only the weights are rounded once more: 2^-8 each."""
    for S, T, D in [(1, 1, 1), (1, 300, 64), (3, 17, 5), (7, 130, 33), (40, 700, 64)]:
        q, k, v = qkv_of(rng, 2, 2, S, T, D)
        scale = np.float32(D**-0.5)
        rounded = [(q * scale).astype(BFLOAT16), k.astype(BFLOAT16), v.astype(BFLOAT16)]
        for options in ({}, {"causal": True}, {"window": (9, 3)}):
            exact = oracle("attention", *rounded, scale=1.0, **options)
            spread = oracle("attention", *rounded[:2], np.abs(rounded[2]), scale=1.0, **options)
            for isa in each_isa():
                out = qkv.attention(q, k, v, precision="bf16", **options)
                if isa not in ("avx512_bf16", "amx"):
                    assert same_bits(out, qkv.attention(q, k, v, **options))
                    continue
                assert np.all(np.abs(out - exact) <= 2.0**-8 * spread + 1e-5), (S, T, D, options)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_bf16_values_that_are_not_finite_meet_only_rows_that_see_them(bad: float, rng: np.random.Generator) -> None:
    for T, window in [(40, (9, 3)), (300, (60, 1)), (600, (301, 0))]:
        q, k, v = qkv_of(rng, 1, 2, 30, T, 32)
        mask = rng.random((1, 1, 30, T)) < 0.7
        place = T - 20
        mask[..., place] = np.arange(30) % 3 == 0
        spoiled = v.copy()
        spoiled[:, :, place] = bad
        for isa in each_isa():
            options: dict[str, Any] = {"mask": mask, "window": window, "precision": "bf16"}
            clean, out = qkv.attention(q, k, v, **options), qkv.attention(q, k, spoiled, **options)
            positions = np.arange(30) + T - 30
            sees = mask[0, 0, :, place] & (place >= positions - window[0]) & (place <= positions + window[1])
            assert sees.any() and not sees.all()
            assert same_bits(np.ascontiguousarray(out[:, :, ~sees]), np.ascontiguousarray(clean[:, :, ~sees])), isa
            assert not np.isfinite(out[:, :, sees]).any(), isa


def test_weights_keep_their_precision_down_to_the_smallest() -> None:
    """The softmax's exponential: to 3 ulp near the maximum, 2^-16 at e^-87, gone only below the normal numbers."""
    x = np.linspace(0, 110, 7001, dtype=np.float32)
    q, k = np.ones((x.size, 1, 1, 1), np.float32), np.stack([x * 0, -x], 1).reshape(-1, 1, 2, 1)
    v = np.broadcast_to(np.array([[0.0], [1.0]], np.float32), k.shape)
    exact = np.exp(-x.astype(np.float64))
    exact /= 1 + exact
    for isa in each_isa():
        out, weights = qkv.attention(q, k, v, scale=1.0, return_weights=True)
        for p in (out.reshape(-1), weights[:, 0, 0, 1]):
            bound = (3 * 2.0**-23 + x * 2.0**-23) * exact + 2.0**-126
            assert np.all(np.abs(p - exact) <= bound), isa


def ones(*shape: int) -> Any:
    return np.ones(shape, np.float32)


@pytest.mark.parametrize(
    "change, message",
    [
        (
            {"q": ones(2, 12, 5, 8), "k": ones(2, 7, 6, 8), "v": ones(2, 7, 6, 8)},
            "k has 7 heads, which does not divide q's 12",
        ),
        ({"q": ones(12, 5, 8)}, "q"),
        ({"k": ones(2, 4, 6, 7)}, "k"),
        ({"k": ones(1, 4, 6, 8)}, "k"),
        ({"v": ones(2, 4, 5, 8)}, "v"),
        ({"v": ones(2, 2, 6, 8)}, "v"),
        ({"v": ones(2, 4, 6)}, "v"),
        ({"k": ones(2, 0, 6, 8), "v": ones(2, 0, 6, 8)}, "k"),
        ({"mask": np.ones((5, 5), bool)}, "mask"),
        ({"mask": np.ones((1, 2, 4, 5, 6), bool)}, "mask"),
        ({"bias": ones(3, 1, 1, 6)}, "bias"),
        ({"relative_bias": ones(4, 4)}, "relative_bias"),
        ({"relative_bias": ones(3, 5)}, "relative_bias"),
        ({"relative_bias": ones(5)}, "relative_bias"),
        ({"alibi_slopes": ones(3)}, "alibi_slopes"),
        ({"alibi_slopes": ones(1, 4)}, "alibi_slopes"),
        ({"sinks": ones(2)}, "sinks"),
        ({"sinks": ones(2, 4)}, "sinks"),
        ({"kv_lengths": np.array([6])}, "kv_lengths"),
        ({"kv_lengths": np.array([6, 7])}, "kv_lengths"),
        ({"kv_lengths": np.array([-1, 6])}, "kv_lengths"),
        ({"kv_lengths": np.array([2**40, 6])}, "kv_lengths"),
        ({"kv_lengths": np.array([2**64 - 1, 6], np.uint64)}, "kv_lengths"),
        ({"causal": "bottom"}, "causal"),
        ({"layout": "sbhd"}, "layout"),
        ({"precision": "low"}, "precision"),
        ({"softcap": 0.0}, "softcap"),
        ({"softcap": -2.0}, "softcap"),
        ({"softcap": float("nan")}, "softcap"),
        ({"window": (-2, 3)}, "window"),
        ({"window": (1, 2, 3)}, "window"),
        ({"window": 3}, "window"),
        ({"out": ones(2, 4, 5, 9)}, "out"),
    ],
    ids=lambda value: value if isinstance(value, str) else ",".join(value),
)
def test_refuses_values(change: dict[str, Any], message: str) -> None:
    arguments = {"q": ones(2, 4, 5, 8), "k": ones(2, 4, 6, 8), "v": ones(2, 4, 6, 8), **change}
    with pytest.raises(ValueError, match=rf"attention: .*{message}"):
        qkv.attention(**arguments)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"mask": ones(5, 6)}, "mask"),
        ({"mask": np.ones((5, 6), np.int64)}, "mask"),
        ({"bias": np.ones((5, 6), bool)}, "bias"),
        ({"bias": np.ones((5, 6), np.int32)}, "bias"),
        ({"kv_lengths": ones(2)}, "kv_lengths"),
        ({"kv_lengths": np.ones(2, bool)}, "kv_lengths"),
        ({"alibi_slopes": np.ones(4, np.int64)}, "alibi_slopes"),
        ({"sinks": np.ones(4, np.int64)}, "sinks"),
        ({"k": ones(2, 4, 6, 8).astype(np.float16)}, "k"),
        ({"v": ones(2, 4, 6, 8).astype(BFLOAT16)}, "v"),
        ({"scale": "small"}, "scale"),
        ({"softcap": "30"}, "softcap"),
        ({"window": ("a", 1)}, "window"),
        ({"out": np.ones((2, 4, 5, 8))}, "out"),
    ],
    ids=lambda value: value if isinstance(value, str) else ",".join(value),
)
def test_refuses_types(change: dict[str, Any], message: str) -> None:
    arguments = {"q": ones(2, 4, 5, 8), "k": ones(2, 4, 6, 8), "v": ones(2, 4, 6, 8), **change}
    with pytest.raises(TypeError, match=rf"attention: .*{message}"):
        qkv.attention(**arguments)


@pytest.mark.skipif(under_sanitizer(), reason="the sanitizer's own memory would be counted")
@pytest.mark.parametrize("options", ["", "causal=True", "window=(1000, 1000), sinks=np.zeros(1, np.float32)"])
def test_memory_is_linear_in_the_length(options: str) -> None:
    """S = T = 16384: a matrix of scores would take 1 GB; peak memory must not grow by a fifth of that."""
    code = f"""
import resource
import numpy as np
import qkv
rng = np.random.default_rng(0)
q, k, v = (rng.standard_normal((1, 1, 16384, 64), np.float32) for _ in range(3))
qkv.attention(q[:, :, :256], k[:, :, :256], v[:, :, :256])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
out = qkv.attention(q, k, v, {options})
growth = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
assert np.isfinite(out).all()
print(growth * 1024)
"""
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 200e6
