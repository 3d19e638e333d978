"""rotary against the float64 reference; the frequencies themselves are checked in test_positions.py."""

from __future__ import annotations

from itertools import product
from typing import Any

import naive
import numpy as np
import pytest
import qkv
from checks import FLOAT32, assert_close, each_isa, normal, oracle, same_bits, sizes, strided
from qkv.ops import angles
from qkv.positions import rotary_frequencies

SCALINGS: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default"},
    "linear": {"type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0, "max_position_embeddings": 16},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 128,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    "longrope": {
        "rope_type": "longrope",
        "factor": 4.0,
        "original_max_position_embeddings": 16,
        "short_factor": [1.0 + 0.1 * i for i in range(8)],
        "long_factor": [2.0 + 0.5 * i for i in range(8)],
    },
}


def check(x: Any, positions: Any, spread: tuple[int, ...], *, dim: int | None = None, **options: Any) -> None:
    """`spread` is the shape that lays the positions along x's tokens; angles are float32 in every dtype."""
    width = x.shape[-1] if dim is None else dim
    longest = int(np.max(positions, initial=-1)) + 1
    f, factor = rotary_frequencies(width, options.get("base", 10000.0), options.get("scaling"), longest)
    angles = np.asarray(positions, np.float32).reshape(spread)[..., None] * f.astype(np.float32)
    yardstick = naive.rotary(x, angles.astype(np.float64), options.get("interleaved", False), factor)
    ref = oracle("rotary", x, positions, dim=dim, **options)
    for _ in each_isa():
        out = qkv.rotary(x, positions, dim=dim, **options)
        assert_close(out, ref, yardstick, f"{x.shape} {dim} {options}")
        assert same_bits(out[..., width:], np.ascontiguousarray(x[..., width:])), "the rest passes through"


@pytest.mark.parametrize("D", [2, 4, 6, 14, 16, 18, 30, 32, 34, 62, 64, 66, 80, 96, 126, 128, 130, 254, 256, 258])
def test_widths(D: int, dtype: np.dtype[Any], rng: np.random.Generator) -> None:
    for interleaved, dim in product((False, True), {None, 2, D // 4 * 2 or 2, D - 2 or 2}):
        check(normal(rng, (2, 3, 5, D), dtype), np.arange(5), (1, 1, 5), dim=dim, interleaved=interleaved)


@pytest.mark.parametrize("interleaved", [False, True])
def test_shapes_of_positions(interleaved: bool, dtype: np.dtype[Any], rng: np.random.Generator) -> None:
    B, H, S, D = 2, 3, 5, 16
    x, batch = normal(rng, (B, H, S, D), dtype), rng.integers(0, 1000, (B, S))
    turned = np.ascontiguousarray(np.swapaxes(x, 1, 2))
    one: dict[str, Any] = {"interleaved": interleaved}
    check(x, batch[0], (1, 1, S), **one)
    check(x, batch, (B, 1, S), **one)
    check(turned, batch[0], (1, S, 1), layout="bshd", **one)
    check(turned, batch, (B, S, 1), layout="bshd", **one)
    check(x, rng.integers(0, 99, (B, H, S)), (B, H, S), **one)
    check(x, batch[:, None], (B, 1, S), **one)
    check(turned, batch[:, :, None], (B, S, 1), layout="bshd", **one)
    check(normal(rng, (7, H, D), dtype), rng.integers(0, 99, 7), (7, 1), **one)
    check(normal(rng, (7, H, D), dtype), rng.integers(0, 99, (7, 1)), (7, 1), **one)
    check(normal(rng, (7, D), dtype), rng.integers(0, 99, 7), (7,), **one)


def test_layouts_agree(dtype: np.dtype[Any], rng: np.random.Generator) -> None:
    x, positions = normal(rng, (2, 3, 5, 32), dtype), rng.integers(0, 1000, (2, 5))
    for _ in each_isa():
        out = qkv.rotary(np.ascontiguousarray(np.swapaxes(x, 1, 2)), positions, layout="bshd")
        assert same_bits(np.ascontiguousarray(np.swapaxes(out, 1, 2)), qkv.rotary(x, positions))


@pytest.mark.parametrize("kind", SCALINGS)
def test_scaling(kind: str, dtype: np.dtype[Any], rng: np.random.Generator) -> None:
    for interleaved, last in product((False, True), (10, 40, 200)):
        positions = np.arange(last - 5, last)
        x = normal(rng, (2, 3, 5, 16), dtype)
        check(x, positions, (1, 1, 5), interleaved=interleaved, scaling=SCALINGS[kind])


def test_base_and_far_positions(rng: np.random.Generator) -> None:
    x = normal(rng, (1, 2, 6, 64))
    for base in (100.0, 500_000.0, 1e6):
        check(x, np.array([0, 1, 4095, 32_768, 131_071, 1_000_003]), (1, 1, 6), base=base)


@pytest.mark.parametrize("integer", [np.int8, np.uint8, np.int16, np.int32, np.uint32, np.int64, np.uint64])
def test_integer_dtypes_of_positions(integer: Any, rng: np.random.Generator) -> None:
    x, positions = normal(rng, (2, 3, 5, 16)), np.array([0, 3, 100, 7, 7])
    for _ in each_isa():
        assert same_bits(qkv.rotary(x, positions.astype(integer)), qkv.rotary(x, positions))
    assert same_bits(qkv.rotary(x, positions.tolist()), qkv.rotary(x, positions))


def test_negative_positions_turn_back(rng: np.random.Generator) -> None:
    x = normal(rng, (1, 1, 4, 32))
    there = qkv.rotary(x, np.arange(4))
    np.testing.assert_allclose(qkv.rotary(there, -np.arange(4)), x, rtol=1e-5, atol=1e-6)


def test_scores_depend_on_distance_alone(rng: np.random.Generator) -> None:
    q, k = normal(rng, (1, 1, 1, 64)), normal(rng, (1, 1, 1, 64))
    for interleaved in (False, True):
        near, far = (
            float(
                np.vdot(
                    qkv.rotary(q, [p + 3], interleaved=interleaved),
                    qkv.rotary(k, [p], interleaved=interleaved),
                )
            )
            for p in (0, 50)
        )
        assert near == pytest.approx(far, abs=1e-3)


def test_strides(dtype: np.dtype[Any], rng: np.random.Generator) -> None:
    x, positions = normal(rng, (2, 3, 5, 32), dtype), rng.integers(0, 1000, (2, 5))
    for _ in each_isa():
        for interleaved in (False, True):
            plain = qkv.rotary(x, positions, interleaved=interleaved)
            for name, view in strided(x).items():
                for p in strided(positions).values():
                    assert same_bits(qkv.rotary(view, p, interleaved=interleaved), plain), name


def test_not_finite_values_stay_in_their_pair(rng: np.random.Generator) -> None:
    x = normal(rng, (1, 1, 3, 32))
    x[0, 0, 1, 5], x[0, 0, 2, 31] = np.nan, np.inf
    for _ in each_isa():
        out = qkv.rotary(x, np.array([1, 2, 3]))
        assert np.argwhere(~np.isfinite(out[0, 0])).tolist() == [[1, 5], [1, 21], [2, 15], [2, 31]]


@pytest.mark.parametrize(
    "shape", [(0, 3, 5, 16), (2, 0, 5, 16), (2, 3, 0, 16), (0, 3, 16), (7, 0, 16), (0, 16)], ids=str
)
def test_zero_sized(shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    tokens = shape[-2] if len(shape) != 3 else shape[0]
    for _ in each_isa():
        out = qkv.rotary(np.ones(shape, dtype), np.arange(tokens))
        assert out.shape == shape and out.dtype == dtype


def test_float64_is_served(rng: np.random.Generator) -> None:
    x = rng.standard_normal((1, 1, 9, 32))
    out = qkv.rotary(x, np.arange(9))
    assert out.dtype == np.float64
    angle = np.arange(9)[:, None] * 10000.0 ** (-np.arange(0, 32, 2) / 32)
    np.testing.assert_allclose(out[0, 0], naive.rotary(x[0, 0], angle, False), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "shape, positions, options, message",
    [
        ((2, 3, 5, 16), np.arange(4), {}, "positions"),
        ((2, 3, 5, 16), np.arange(3), {}, "positions"),
        ((2, 3, 5, 16), np.zeros((3, 5), int), {}, "positions"),
        ((2, 3, 5, 16), np.zeros((2, 2, 3, 5), int), {}, "positions"),
        ((7, 3, 16), np.arange(3), {}, "positions"),
        ((7, 16), np.arange(6), {}, "positions"),
        ((2, 3, 5, 15), np.arange(5), {}, "dim"),
        ((2, 3, 5, 16), np.arange(5), {"dim": 3}, "dim"),
        ((2, 3, 5, 16), np.arange(5), {"dim": 18}, "dim"),
        ((2, 3, 5, 16), np.arange(5), {"dim": -2}, "dim"),
        ((2, 3, 5, 16), np.arange(5), {"base": 0.0}, "base"),
        ((2, 3, 5, 16), np.arange(5), {"base": float("nan")}, "base"),
        ((2, 3, 5, 16), np.arange(5), {"layout": "sbhd"}, "layout"),
        ((2, 3, 5, 16), np.arange(5), {"scaling": {"rope_type": "su"}}, "su"),
        ((2, 3, 5, 16), np.arange(5), {"scaling": {"rope_type": "linear"}}, "factor"),
        ((2, 3, 5, 16), np.arange(5), {"scaling": {"rope_type": "linear", "factor": "4"}}, "factor"),
        ((16,), np.arange(1), {}, "x"),
        ((1, 2, 3, 5, 16), np.arange(5), {}, "x"),
    ],
    ids=str,
)
def test_refuses(shape: tuple[int, ...], positions: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"rotary: .*{message}"):
        qkv.rotary(np.ones(shape, np.float32), positions, **options)
    with pytest.raises(TypeError, match=r"rotary: .*positions"):
        qkv.rotary(np.ones((2, 4), np.float32), np.array(["a", "b"]))


def test_length_dependent_scaling_looks_at_each_row_alone(rng: np.random.Generator) -> None:
    x = normal(rng, (2, 1, 5, 16), FLOAT32)
    positions = np.stack([np.arange(5), np.arange(35, 40)])
    for kind, _ in product(("dynamic", "longrope"), each_isa()):
        both = qkv.rotary(x, positions, scaling=SCALINGS[kind])
        for row in (0, 1):
            alone = qkv.rotary(x[row : row + 1], positions[row : row + 1], scaling=SCALINGS[kind])
            assert same_bits(both[row : row + 1], alone)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_positions_that_are_not_finite(value: float, rng: np.random.Generator) -> None:
    """Their sines are NaN, so their tokens are, or the call is refused in words."""
    x = normal(rng, (3, 8), FLOAT32)
    for scaling in (None, SCALINGS["dynamic"]):
        try:
            out = qkv.rotary(x, np.array([1.0, value, 2.0]), scaling=scaling)
        except ValueError as error:
            assert str(error).startswith("rotary: positions")
        else:
            assert np.isnan(out[1]).all() and np.isfinite(out[[0, 2]]).all()


def test_angles_of_positions(rng: np.random.Generator) -> None:
    """What models rotate by: NumPy's bits."""
    for width in sizes(65):
        frequencies, positions = normal(rng, (width,)), np.array([0, 1, 2**24 + 1, 77])
        for _ in each_isa():
            expected = positions.astype(np.float32)[:, None, None] * frequencies
            assert same_bits(angles(positions, frequencies), expected)
    for wrong in (np.ones(3), np.ones((1, 3), np.float32), np.ones(6, np.float32)[::2]):
        with pytest.raises(ValueError, match="rotary_angles: frequencies"):
            angles(positions, wrong)
    with pytest.raises(ValueError, match="rotary_angles: positions"):
        angles(positions[None], frequencies)
