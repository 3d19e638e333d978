"""Rotary frequencies, their scaling types, sinusoids and ALiBi slopes against formulas in Python floats."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from qkv import reference as ref
from qkv.positions import rotary_frequencies, rotary_width


def normal(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


# ---- positions --------------------------------------------------------------------------------------------


def test_rotary():
    x, p = normal(2, 3, 5, 8), np.array([[0, 1, 2, 3, 4], [7, 5, 3, 1, 90]])
    for interleaved in (False, True):
        got = ref.rotary(x, p, base=100.0, dim=6, interleaved=interleaved)
        for b, s, i in itertools.product(range(2), range(5), range(3)):
            t = p[b, s] * 100.0 ** (-2 * i / 6)
            m, n = (2 * i, 2 * i + 1) if interleaved else (i, i + 3)
            turned = (x[b, :, s, m] + 1j * x[b, :, s, n]) * complex(math.cos(t), math.sin(t))
            # Angles are float32: half a unit of the last place of an angle of 90, twice.
            np.testing.assert_allclose(got[b, :, s, m] + 1j * got[b, :, s, n], turned, atol=90 * 2.0**-22)
        np.testing.assert_array_equal(got[..., 6:], x[..., 6:])
    y = ref.rotary(x, p)
    np.testing.assert_array_equal(ref.rotary(x.swapaxes(1, 2), p, layout="bshd").swapaxes(1, 2), y)
    np.testing.assert_array_equal(ref.rotary(x[1].swapaxes(0, 1), p[1]), y[1].swapaxes(0, 1))
    np.testing.assert_array_equal(ref.rotary(x[1, 2], p[1]), y[1, 2])
    np.testing.assert_array_equal(ref.rotary(x, np.broadcast_to(p[:, None], (2, 3, 5))), y)
    np.testing.assert_array_equal(ref.rotary(x, p[0])[0], y[0])
    for bad in (
        {"positions": p[:, :4]},
        {"positions": [0]},
        {"dim": 5},
        {"dim": 10},
        {"layout": "x"},
        {"base": 0.0},
    ):
        with pytest.raises(ValueError, match="rotary: "):
            ref.rotary(**{"x": x, "positions": p, **bad})


def test_rotary_scaling_decides_by_row():
    x, p = normal(2, 1, 3, 8), np.array([[0, 1, 2], [7, 8, 9]])
    scaling = {"rope_type": "dynamic", "factor": 2.0, "max_position_embeddings": 4}
    both = ref.rotary(x, p, scaling=scaling)
    for b in range(2):
        np.testing.assert_array_equal(both[b : b + 1], ref.rotary(x[b : b + 1], p[b], scaling=scaling))
    np.testing.assert_array_equal(both[0], ref.rotary(x, p)[0])


D, BASE = 16, 10000.0
PLAIN = [BASE ** (-2 * i / D) for i in range(D // 2)]


def by_hand(kind):
    """(scaling, length, frequencies, attention factor) from the formulas of the papers."""
    if kind == "linear":
        return {"type": "linear", "factor": 4.0}, None, [f / 4 for f in PLAIN], 1.0
    if kind == "dynamic":
        base = BASE * (2.0 * 96 / 64 - 1) ** (D / (D - 2))
        scaling = {"type": "dynamic", "factor": 2.0, "max_position_embeddings": 64}
        return scaling, 96, [base ** (-2 * i / D) for i in range(D // 2)], 1.0
    if kind == "llama3":
        fs = []
        for f in PLAIN:
            wave = 2 * math.pi / f
            s = (8192 / wave - 1) / (4 - 1)
            fs.append(f / 8 if wave > 8192 / 1 else f if wave < 8192 / 4 else (1 - s) * f / 8 + s * f)
        scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
        return {**scaling, "original_max_position_embeddings": 8192}, None, fs, 1.0
    if kind == "yarn":
        find = [D * math.log(4096 / (2 * math.pi * r)) / (2 * math.log(BASE)) for r in (32, 1)]
        lo, hi = math.floor(find[0]), math.ceil(find[1])
        assert (lo, hi) == (2, 6)
        ramp = [0, 0, 0, 0.25, 0.5, 0.75, 1, 1]
        fs = [f / 40 * r + f * (1 - r) for f, r in zip(PLAIN, ramp, strict=True)]
        scaling = {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096}
        return scaling, None, fs, 0.1 * math.log(40) + 1
    short, long = [1.0 + 0.1 * i for i in range(8)], [2.0 + i for i in range(8)]
    scaling = {
        "type": "longrope",
        "short_factor": short,
        "long_factor": long,
        "max_position_embeddings": 131072,
    }
    scaling["original_max_position_embeddings"] = 4096
    used, length = (long, 4097) if kind == "longrope_long" else (short, 4096)
    return (
        scaling,
        length,
        [f / e for f, e in zip(PLAIN, used, strict=True)],
        math.sqrt(1 + math.log(32) / math.log(4096)),
    )


@pytest.mark.parametrize("kind", ["linear", "dynamic", "llama3", "yarn", "longrope_short", "longrope_long"])
def test_rotary_scaling(kind):
    scaling, length, expected, attention = by_hand(kind)
    inv_freq, factor = rotary_frequencies(D, BASE, scaling, length)
    # Powers and quotients round in float32 once each.
    np.testing.assert_allclose(inv_freq, expected, rtol=4 * 2.0**-24 * math.log(BASE))
    assert inv_freq.dtype == np.float64 and factor == pytest.approx(attention, rel=1e-15)
    x = normal(4, D)
    turned = ref.rotary(x, np.arange(4), scaling={**scaling, "attention_factor": 2.0})
    by_yarn_or_long = 2.0 if kind.startswith(("yarn", "longrope")) else 1.0
    np.testing.assert_allclose(np.linalg.norm(turned), by_yarn_or_long * np.linalg.norm(x), rtol=1e-12)


def test_rotary_scaling_details():
    plain, factor = rotary_frequencies(D, BASE)
    np.testing.assert_allclose(plain, PLAIN, rtol=2e-7)
    assert factor == 1.0
    dynamic = {"rope_type": "dynamic", "factor": 2.0, "max_position_embeddings": 64}
    for length in (None, 10, 64):
        np.testing.assert_array_equal(rotary_frequencies(D, BASE, dynamic, length)[0], plain)
    yarn = {
        "rope_type": "yarn",
        "factor": 4.0,
        "max_position_embeddings": 64,
        "mscale": 2.0,
        "mscale_all_dim": 1.0,
    }
    assert rotary_frequencies(D, BASE, yarn)[1] == pytest.approx((0.2 * math.log(4) + 1) / (0.1 * math.log(4) + 1))
    assert rotary_frequencies(D, BASE, {**yarn, "attention_factor": 1.25})[1] == 1.25
    assert (rotary_width(80, None, {"partial_rotary_factor": 0.4}), rotary_width(64, 16)) == (32, 16)
    wrong = [
        ({"rope_type": "proportional"}, "unknown rope type 'proportional'"),
        ({"rope_type": "default", "mrope_section": [1]}, "mrope_section"),
        ({"rope_type": "linear"}, "needs the scaling key 'factor'"),
        ({"rope_type": "linear", "factor": 0.0}, "'factor' must be a positive number"),
        ({"rope_type": "dynamic", "factor": 2.0}, "max_position_embeddings"),
        ({"rope_type": "default", "rope_theta": 5e5}, "pass base=500000"),
        ({"type": "longrope", "short_factor": [1.0], "max_position_embeddings": 8}, "must hold 8 numbers"),
    ]
    for scaling, message in wrong:
        with pytest.raises(ValueError, match=message):
            rotary_frequencies(D, BASE, scaling)
    with pytest.raises(ValueError, match="even"):
        rotary_frequencies(7)


def test_sinusoids_and_alibi():
    for dim, interleaved in ((6, True), (6, False), (5, False), (0, True)):
        table = ref.sinusoidal_positions(40, dim, interleaved=interleaved)
        assert table.shape == (40, dim) and table.dtype == np.float32
        for p, c in itertools.product(range(40), range(dim)):
            half = (dim + 1) // 2
            i, sine = (c // 2, c % 2 == 0) if interleaved else (c % half, c < half)
            angle = p / 10000 ** (2 * i / dim)
            assert table[p, c] == pytest.approx(math.sin(angle) if sine else math.cos(angle), abs=2.0**-25 + 1e-14)
    np.testing.assert_array_equal(ref.alibi_slopes(8), [2.0**-i for i in range(1, 9)])
    expected = [*(2.0 ** (-2 * i) for i in range(1, 5)), 2.0**-1, 2.0**-3]
    np.testing.assert_array_equal(ref.alibi_slopes(6), np.float32(expected))
    np.testing.assert_array_equal(ref.alibi_slopes(1), [2.0**-8])
    with pytest.raises(ValueError, match="at least 1"):
        ref.alibi_slopes(0)
