"""Sampling on a GPU chooses the tokens that the CPU's processors and `draw` choose. Runs with QKV_TEST_DEVICE=cuda."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import on_device
import pytest
import qkv
from checks import BFLOAT16, FLOAT32, normal
from emulated import configured, on_path
from qkv import cuda_ops
from qkv.generate import logits as cpu

pytestmark = pytest.mark.skipif(not on_device.ENABLED, reason="QKV_TEST_DEVICE=cuda runs this")

BORDER = 1.31e-6  # of a cumulative probability: as wrong as csrc/cuda/sample.cuh says that it may be in rows of 450,000
FILTERS: dict[str, dict[str, Any]] = {
    "none": {},
    "temperature": {"temperature": 0.7},
    "top_k": {"top_k": 7},
    "one": {"top_k": 1},
    "all": {"top_k": 10**6},
    "top_p": {"top_p": 0.8},
    "least_p": {"top_p": 0.0},
    "most_p": {"top_p": 0.999},
    "min_p": {"min_p": 0.1},
    "the likeliest": {"min_p": 1.0},
    "together": {"temperature": 1.4, "top_k": 20, "top_p": 0.9, "min_p": 0.02},
}


class Given:
    """A random stream of one number."""

    def __init__(self, u: float):
        self.u = u

    def random(self) -> float:
        return self.u


def filtered(x: np.ndarray, o: dict[str, Any]) -> np.ndarray:
    """One row of logits (V,) as the CPU's processors leave it."""
    scores = x.astype(np.float32)[None].copy()
    steps: list[Any] = []
    if o.get("temperature", 1) != 1:
        steps.append(cpu.Temperature(o["temperature"]))
    if "top_k" in o:
        steps.append(cpu.TopK(o["top_k"]))
    if o.get("top_p", 1) < 1:
        steps.append(cpu.TopP(o["top_p"]))
    if "min_p" in o:
        steps.append(cpu.MinP(o["min_p"]))
    row: np.ndarray = cpu.chain(steps, np.zeros((1, 0), np.int64), scores, np.zeros(1, np.int64))[0]
    return row


def numbers(scores: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Of [0, 1): any, the ends, and some at either side of a border, a little further off than it may be wrong."""
    cumulative = np.cumsum(np.exp(scores.astype(np.float64) - scores.max()))
    borders = rng.choice(cumulative / cumulative[-1], 6)
    near = np.concatenate([borders - 2 * BORDER, borders + 2 * BORDER])
    u = np.concatenate([rng.random(6), [0.0, 0.5, np.nextafter(1.0, 0.0)], near])
    return u[(u >= 0) & (u < 1)]


def assert_drawn(tokens: np.ndarray, scores: np.ndarray, u: np.ndarray, o: dict[str, Any]) -> None:
    """Those that `draw` chooses by each u from one row of filtered scores (V,), or neighbours across a border that is
    as near as it may be wrong."""
    cumulative = np.cumsum(np.exp(scores.astype(np.float64) - scores.max()))
    cumulative /= cumulative[-1]
    assert np.isfinite(scores[tokens]).all(), "a token that a filter has removed"
    for token, number in zip(tokens.tolist(), u.tolist(), strict=True):
        if token != cpu.draw(scores, Given(number)):
            low = cumulative[token - 1] if token else 0.0
            assert low - BORDER <= number < cumulative[token] + BORDER, (o, number, token)


def check(x: np.ndarray, o: dict[str, Any], rng: np.random.Generator, most: int = 99) -> None:
    scores = filtered(x, o)
    u = rng.permutation(numbers(scores, rng))[:most]
    rows = np.broadcast_to(x, (len(u), len(x)))
    tokens = cuda_ops.sample(qkv.cuda.array(np.ascontiguousarray(rows)), u, **o).numpy()
    assert tokens.dtype == np.int64 and tokens.shape == u.shape
    assert_drawn(tokens, scores, u, o)


@pytest.mark.parametrize("n", [1, 2, 31, 33, 1000])
@pytest.mark.parametrize("name", FILTERS)
def test_chooses_as_the_cpu(name: str, n: int, dtype: np.dtype[Any], rng: np.random.Generator) -> None:
    check(normal(rng, n, dtype, scale=2.0), FILTERS[name], rng)


@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16], ids=str)
@pytest.mark.parametrize("name", ["none", "together"])
def test_a_vocabulary(name: str, dtype: np.dtype[Any], rng: np.random.Generator) -> None:
    check(normal(rng, 50_257, dtype, scale=3.0), FILTERS[name], rng)


@pytest.mark.parametrize("name", FILTERS)
def test_equal_ones(name: str, rng: np.random.Generator) -> None:
    x = rng.integers(0, 4, 300).astype(np.float32)
    check(x, FILTERS[name], rng)
    check(np.zeros_like(x), FILTERS[name], rng)


def test_of_equal_ones_the_last_stay(rng: np.random.Generator) -> None:
    x = np.zeros(40, np.float32)
    for p in (0.01, 0.26, 0.51, 0.76):
        kept = np.flatnonzero(np.isfinite(filtered(x, {"top_p": p})))
        assert kept[-1] == 39 and 0 < len(kept) < 40
        u = (np.arange(len(kept)) + 0.5) / len(kept)
        rows = qkv.cuda.array(np.zeros((len(kept), 40), np.float32))
        np.testing.assert_array_equal(cuda_ops.sample(rows, u, top_p=p).numpy(), kept)


@pytest.mark.parametrize("name", FILTERS)
def test_infinities(name: str, rng: np.random.Generator) -> None:
    x = normal(rng, 200)
    x[rng.random(200) < 0.7] = -np.inf
    check(x, FILTERS[name], rng)
    x[:] = -np.inf
    x[17] = 3.0
    check(x, FILTERS[name], rng)


@pytest.mark.parametrize("name", FILTERS)
def test_no_token(name: str, rng: np.random.Generator) -> None:
    x = normal(rng, (4, 100))
    x[0], x[1, 40], x[2, 99] = -np.inf, np.nan, np.inf
    tokens = cuda_ops.sample(qkv.cuda.array(x), np.full(4, 0.5), **FILTERS[name]).numpy()
    assert (tokens[:3] == -1).all() and tokens[3] >= 0
    for row in x[:3]:
        with pytest.raises(ValueError, match="there is no token to draw"):
            cpu.draw(row, Given(0.5))


@pytest.mark.parametrize("temperature", [1e-38, 3e-7, 2e-6, 4e5, 5e6, 1e37])
def test_any_temperature(temperature: float, rng: np.random.Generator) -> None:
    """Where the weights take it in, and where that might overflow."""
    x = (normal(rng, 1000, scale=2.0) * np.float32(temperature)).astype(np.float32)
    check(x, {"temperature": temperature}, rng)


def test_a_score_that_overflows() -> None:
    """x / temperature is infinite, as the CPU finds too: there is no token."""
    x = np.zeros((2, 50), np.float32)
    x[0, 7] = 1e34
    for temperature in (1e-5, 1e-7):
        tokens = cuda_ops.sample(qkv.cuda.array(x), np.full(2, 0.5), temperature=temperature).numpy()
        np.testing.assert_array_equal(tokens, [-1, 25])
        with pytest.raises(ValueError, match="there is no token to draw"), np.errstate(over="ignore"):
            cpu.draw(filtered(x[0], {"temperature": temperature}), Given(0.5))


def test_rows_have_their_own(rng: np.random.Generator) -> None:
    x, u = normal(rng, (9, 333), scale=2.0), rng.random(9)
    options = FILTERS["together"]
    together = cuda_ops.sample(qkv.cuda.array(x), qkv.cuda.array(u), **options).numpy()
    each = [cuda_ops.sample(qkv.cuda.array(x[i : i + 1]), u[i : i + 1], **options).numpy()[0] for i in range(9)]
    np.testing.assert_array_equal(together, each)
    out = qkv.cuda.array(np.zeros(9, np.int64))
    assert cuda_ops.sample(qkv.cuda.array(x), u, out=out, **options).pointer == out.pointer
    np.testing.assert_array_equal(out.numpy(), together)


@pytest.mark.parametrize("name", FILTERS)
def test_it_does_not_matter_how_many_blocks_share_a_row(
    name: str, dtype: np.dtype[Any], rng: np.random.Generator
) -> None:
    """One block before Hopper, and where rows abound; clusters of two, four or eight where they do not."""
    x, u, options = normal(rng, (9, 34_000), dtype, scale=3.0), rng.random(9), FILTERS[name]

    def tokens(rows: slice) -> list[int]:
        chosen: list[int] = cuda_ops.sample(qkv.cuda.array(x[rows]), u[rows], **options).numpy().tolist()
        return chosen

    want = on_path("portable", lambda: tokens(slice(0, 9)))()
    assert tokens(slice(0, 9)) == want
    for rows in (slice(0, 1), slice(1, 3), slice(3, 6)):
        assert tokens(rows) == want[rows], rows


@pytest.mark.parametrize("device, n", [("cc=80", 60_000), ("cc=90", 450_000)])
@pytest.mark.parametrize("name", ["none", "together"])
def test_rows_that_no_shared_memory_has_room_for(device: str, n: int, name: str, rng: np.random.Generator) -> None:
    x, options = normal(rng, n, scale=3.0), FILTERS[name]
    u = np.array([0.4])
    with configured(device):
        token = cuda_ops.sample(qkv.cuda.array(x[None]), u, **options).numpy()
    assert_drawn(token, filtered(x, options), u, options)


ROWS: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "equal": lambda rng, n: np.zeros(n),
    "two values": lambda rng, n: rng.integers(0, 2, n),  # too many for a list
    "many of each": lambda rng, n: rng.integers(0, 400, n) / 16,  # with equal ones on either side of its border
    "the first": lambda rng, n: np.where(np.arange(n) < 1100, 3.0, rng.standard_normal(n)),  # too many for one block
    "falling": lambda rng, n: -np.arange(n) / 500,  # all of one warp, for a few filters
    "flat": lambda rng, n: rng.random(n),  # what is listed weighs too little for top_p
    "one": lambda rng, n: np.where(np.arange(n) == n - 2, 50.0, rng.standard_normal(n)),
    "below zero": lambda rng, n: 2 * rng.standard_normal(n) - 90,
}
LISTED: list[dict[str, Any]] = [
    {"top_k": 1},
    {"top_k": 50},
    {"top_k": 50, "top_p": 0.7, "temperature": 0.7},
    {"top_k": 500, "min_p": 0.3},
    {"top_k": 1500, "top_p": 0.9},
    {"top_p": 0.0},
    {"top_p": 0.3, "temperature": 1.7},
    {"top_p": 0.97, "min_p": 1e-3},
    {"min_p": 0.2, "temperature": 0.6},
    {"min_p": 1e-9},
]


@pytest.mark.parametrize("path", ["portable", "hopper"])
@pytest.mark.parametrize("name", ROWS)
def test_lists_of_candidates(name: str, path: str, rng: np.random.Generator) -> None:
    """A block lists up to 1024 scores that may be left, and looks at all where those are more, or not enough."""
    x = ROWS[name](rng, 8_300).astype(np.float32)
    for options in LISTED:
        on_path(path, lambda options=options: check(x, options, rng, 4))()


@pytest.mark.parametrize("temperature", [0.3, 0.7, 1.9, 3e4])
def test_scores_that_rounding_makes_equal(temperature: float) -> None:
    """Neighbours among floats, of which some have one score: top_k keeps all that are equal to the last, top_p the last
    of those."""
    x = np.zeros(1000, np.float32)
    x[::7] = np.float32(5) + np.arange(143, dtype=np.float32) * np.spacing(np.float32(5))
    x[::7] = x[::7][np.random.default_rng(3).permutation(143)]
    u = (np.arange(40) + 0.5) / 40
    rows = qkv.cuda.array(np.broadcast_to(x, (40, 1000)).copy())
    for options in ({"top_k": 5}, {"top_k": 30}, {"top_p": 0.05}, {"top_p": 0.1}):
        options = {**options, "temperature": temperature}
        assert_drawn(cuda_ops.sample(rows, u, **options).numpy(), filtered(x, options), u, options)


@pytest.mark.parametrize("name", ["temperature", "top_k", "top_p", "min_p", "together"])
def test_rows_that_eight_blocks_share(name: str, rng: np.random.Generator) -> None:
    """As an H200 does, with fewer rows than it has multiprocessors. Each of ten rows has something else, wherever in
    the row: NaN make it one without a token, and the others must not notice."""
    n, options = 33_000, FILTERS[name]
    x = normal(rng, (10, n), scale=3.0)
    x[0] = np.round(x[0])  # equal ones on either side of every border
    x[1] = 0.0
    x[2, rng.random(n) < 0.9] = -np.inf
    x[3] = -np.inf
    x[3, n - 3] = 2.0
    x[4, : n // 8] = -np.inf  # all that the first block has
    x[5, 5 * n // 8 :] += 20.0  # what is left lies in the last three
    x[6, n - 1] = np.nan
    x[7, 3 * n // 8] = np.nan
    x[8, : n - 1] = -np.inf
    x[8, n - 1] = np.nan
    x[9] = -np.inf
    u = rng.random(10)
    with configured("cc=90,sms=132"):
        tokens = cuda_ops.sample(qkv.cuda.array(x), u, **options).numpy()
    np.testing.assert_array_equal(tokens[6:], -1)
    for i in range(6):
        assert_drawn(tokens[i : i + 1], filtered(x[i], options), u[i : i + 1], options)


def test_frequencies_are_the_probabilities(rng: np.random.Generator) -> None:
    x = normal(rng, 50)
    u = (np.arange(400) + 0.5) / 400
    tokens = cuda_ops.sample(qkv.cuda.array(np.tile(x, (400, 1))), u).numpy()
    p = np.exp(x.astype(np.float64))
    np.testing.assert_allclose(np.bincount(tokens, minlength=50) / 400, p / p.sum(), atol=1 / 400)


def test_refuses(rng: np.random.Generator) -> None:
    x, u = qkv.cuda.array(normal(rng, (3, 8))), np.full(3, 0.5)
    for options, error, words in [
        ({"temperature": 0.0}, ValueError, "temperature must be positive"),
        ({"temperature": np.nan}, ValueError, "temperature must be positive"),
        ({"temperature": "1"}, TypeError, "temperature must be a number"),
        ({"top_k": 0}, ValueError, "top_k must be at least 1"),
        ({"top_k": 1.5}, TypeError, "top_k must be an integer"),
        ({"top_p": 1.5}, ValueError, "top_p must lie in 0 to 1"),
        ({"min_p": -0.5}, ValueError, "min_p must lie in 0 to 1"),
        ({"out": u}, TypeError, "out must be an array on the GPU"),
    ]:
        with pytest.raises(error, match=f"sample: {words}"):
            cuda_ops.sample(x, u, **options)
    for wrong, error in [(u[:2], ValueError), (u.astype(np.float32), TypeError), (0.5, TypeError)]:
        with pytest.raises(error, match="sample: u must be"):
            cuda_ops.sample(x, wrong)
    with pytest.raises(ValueError, match="sample: logits has no columns"):
        cuda_ops.sample(x[:, :0], u)
    with pytest.raises(ValueError, match=r"sample: logits must be \(rows, n\)"):
        cuda_ops.sample(x[0], u)
    assert cuda_ops.sample(x[:0], u[:0]).shape == (0,)


@pytest.mark.parametrize("temperature", [0.7, 1.3])
@pytest.mark.parametrize("x", [[3000.1, 3000, 2999.9], [300, 299.93, 0], [-3e4, -3e4 + 0.5, -3e4 - 0.25]])
def test_large_numbers_with_a_temperature(x: list[float], temperature: float) -> None:
    """Nothing is lost by a division that is rounded: as the softmax of float64."""
    row = np.array(x, np.float32)
    exact = np.cumsum(np.exp((row.astype(np.float64) - row.max()) / temperature))
    exact /= exact[-1]
    u = np.concatenate([exact[:-1] - 2e-6, exact[:-1] + 2e-6])
    u = u[u < 1]
    tokens = cuda_ops.sample(qkv.cuda.array(np.tile(row, (len(u), 1))), u, temperature=temperature).numpy()
    np.testing.assert_array_equal(tokens, np.searchsorted(exact, u, side="right"))
