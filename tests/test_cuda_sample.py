"""Sampling on a GPU chooses the tokens that the CPU's processors and `draw` choose. Runs with QKV_TEST_DEVICE=cuda."""

from __future__ import annotations

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

BORDER = 1e-6  # of a cumulative probability
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


def check(x: np.ndarray, o: dict[str, Any], rng: np.random.Generator) -> None:
    scores = filtered(x, o)
    u = numbers(scores, rng)
    rows = np.broadcast_to(x, (len(u), len(x)))
    tokens = cuda_ops.sample(qkv.cuda.array(np.ascontiguousarray(rows)), u, **o).numpy()
    assert tokens.dtype == np.int64 and tokens.shape == u.shape
    cumulative = np.cumsum(np.exp(scores.astype(np.float64) - scores.max()))
    cumulative /= cumulative[-1]
    assert np.isfinite(scores[tokens]).all(), "a token that a filter has removed"
    for token, number in zip(tokens.tolist(), u.tolist(), strict=True):
        if token != cpu.draw(scores, Given(number)):
            low = cumulative[token - 1] if token else 0.0
            assert low - BORDER <= number < cumulative[token] + BORDER, (o, number, token)


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
    scores, u = filtered(x, options), 0.4
    with configured(device):
        (token,) = cuda_ops.sample(qkv.cuda.array(x[None]), np.array([u]), **options).numpy().tolist()
    cumulative = np.cumsum(np.exp(scores.astype(np.float64) - scores.max()))
    cumulative /= cumulative[-1]
    assert cumulative[token - 1] - BORDER <= u < cumulative[token] + BORDER and np.isfinite(scores[token])


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
