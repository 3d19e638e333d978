"""What csrc/cuda/sample_search.cuh says that scores weigh: each, their sums in whatever order, and how wrong cumulative
probabilities are, against float64."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

import cuda_build
import numpy as np
import pytest
from cuda_build import Device

pytestmark = cuda_build.needs_compilers

LOG2E = np.log2(np.e)
TWO_MILLION = 2_000_000


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Device:
    source = Path(__file__).parent / "cuda" / "sample_weights.cu"
    device = Device(cuda_build.build([source], cuda_build.build_folder(tmp_path_factory)))
    device.configure("check=0")
    return device


def bits_of(device: Device, n: int) -> int:
    bits: int = device.library.bits_of_row(ctypes.c_int64(n))
    return bits


def weigh(device: Device, x: np.ndarray, scale: float, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights of x (n,), and sums of its pieces."""
    most = device.library.most_weights()
    pieces = -(-len(x) // most)
    given, weights, sums = device.upload(x), device.malloc(8 * len(x)), device.malloc(8 * pieces)
    floats = (ctypes.c_float(x.max()), ctypes.c_float(scale))
    device.call("weigh", given, ctypes.c_int64(len(x)), *floats, bits, weights, sums)
    out = device.download(weights, len(x), np.uint64), device.download(sums, pieces, np.uint64)
    for data in (given, weights, sums):
        device.free(data)
    return out


def exponents(x: np.ndarray, scale: float) -> np.ndarray:
    """Of 2, in float32 as the kernel rounds them."""
    return (x - x.max()) * np.float32(scale)


def bound(n: int, bits: int) -> float:
    """As sample.cuh derives it."""
    return 2.0**-23 + 3 * np.log(n) * 2.0**-25 + n * 2.0 ** -(bits + 1)


ROWS: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "spread": lambda rng, n: 3 * rng.standard_normal(n),
    "large": lambda rng, n: 5 * rng.standard_normal(n) - 1e4,
    "flat": lambda rng, n: rng.random(n) * 1e-3,
    "equal": lambda rng, n: np.zeros(n),
    "peaked": lambda rng, n: np.where(np.arange(n) == n // 3, 30.0, rng.standard_normal(n)),
    # A number that weighs a tenth of the others, which are as far from it as errors grow to be.
    "tail": lambda rng, n: np.where(np.arange(n) == n // 2, np.log(n / 10), rng.standard_normal(n) / 8),
    "long tail": lambda rng, n: -32 * np.arange(n) / n,
    "below a unit": lambda rng, n: np.where(np.arange(n) == 0, 0, -25 - 10 * rng.random(n)),
}


@pytest.mark.parametrize("bits", [26, 31, 41, 45])  # 26 are fewer than any row has: many weights are near half a unit
@pytest.mark.parametrize("name", ROWS)
def test_a_sum_is_that_of_integers(name: str, bits: int, device: Device, rng: np.random.Generator) -> None:
    x = ROWS[name](rng, 5 * 511 + 77).astype(np.float32)
    x[::13] = -np.inf
    weights, sums = weigh(device, x, LOG2E, bits)
    np.testing.assert_array_equal(sums, np.add.reduceat(weights, range(0, len(x), 511)))
    assert weights[x.argmax()] == 2**bits
    assert (weights[::13] == 0).all()


@pytest.mark.parametrize("bits", [26, 45])
@pytest.mark.parametrize("temperature", [0.03, 1.0, 40.0])
def test_a_weight_is_an_exponential(temperature: float, bits: int, device: Device, rng: np.random.Generator) -> None:
    """Within 2 ulp of that of the exponent in float32, which is what GPUs promise, and half a unit."""
    x = (20 * temperature * rng.standard_normal(20_000)).astype(np.float32)
    x[:2] = np.nextafter(x.max(), [0, -np.inf]).astype(np.float32)
    weights, _ = weigh(device, x, LOG2E / temperature, bits)
    want = np.exp2(exponents(x, LOG2E / temperature).astype(np.float64) + bits)
    assert (np.abs(weights.astype(np.float64) - want) <= 0.5 + want * 2.0**-22).all()


@pytest.mark.parametrize("n", [50_000, TWO_MILLION])
@pytest.mark.parametrize("name", ROWS)
def test_cumulative_probabilities(name: str, n: int, device: Device, rng: np.random.Generator) -> None:
    """Wrong by no more than sample.cuh says, and so by what exp2 may be wrong by if it is so at its worst: too large in
    front of the border, too small behind it."""
    bits, temperature = bits_of(device, n), np.float32(0.7)
    assert n * 2**bits < 2**63 and bound(n, bits) < 2e-6
    x = ROWS[name](rng, n).astype(np.float32)
    exact = np.exp((x.astype(np.float64) - x.max()) / temperature)
    exact = np.cumsum(exact) / exact.sum()
    weights, sums = weigh(device, x, LOG2E / float(temperature), bits)
    cumulative = np.cumsum(weights)
    assert cumulative[-1] == sums.sum()
    assert np.abs(cumulative / float(cumulative[-1]) - exact).max() <= bound(n, bits)

    exponential = np.exp2(exponents(x, LOG2E / float(temperature)).astype(np.float64))
    for border in (0.1, 0.5, 0.9):
        front = np.arange(n) <= np.searchsorted(exact, border)
        for sign in (1, -1):
            worst = exponential * (1 + sign * np.where(front, 2.0**-22, -(2.0**-22)))
            cumulative = np.cumsum(np.rint(worst * 2.0**bits))
            assert np.abs(cumulative / cumulative[-1] - exact).max() <= bound(n, bits)
