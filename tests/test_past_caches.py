"""Outputs that are too large for the caches are written past them, in vectors that begin at multiples of their size.

They have the same bits as small outputs, whatever the address, width and dtype, and nothing beside them is touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import qkv
from checks import FLOAT32, each_isa, normal, oracle, same_bits, sizes
from qkv.ops import _cpu

UNARY = ["gelu", "relu", "silu", "quick_gelu", "tanh", "softmax", "log_softmax", "layer_norm", "rms_norm"]


@pytest.fixture(autouse=True)
def usual_size() -> Iterator[None]:
    yield
    _cpu.set_past_caches(0)


def both(op: Callable[[], Any]) -> None:
    """`op` with its output through the caches, and past them."""
    for isa in each_isa():
        _cpu.set_past_caches(1 << 60)
        expected = op()
        _cpu.set_past_caches(1)
        out = op()
        pairs = zip(out, expected, strict=True) if isinstance(out, tuple) else [(out, expected)]
        assert all(same_bits(a, b) for a, b in pairs), isa


@pytest.mark.parametrize("op", UNARY)
def test_rows_that_begin_anywhere(op: str, dtype: np.dtype[Any], rng: np.random.Generator) -> None:
    for n in [*sizes(130), 4099]:  # rows of odd widths follow each other without padding
        x = normal(rng, (5, n), dtype, 2)
        both(lambda x=x: getattr(qkv, op)(x))
    turned = normal(rng, (33, 70), dtype).T
    both(lambda: getattr(qkv, op)(turned))


@pytest.mark.parametrize("op", ["gelu", "silu", "tanh", "relu"])
def test_rows_at_odd_addresses(op: str, dtype: np.dtype[Any], rng: np.random.Generator) -> None:
    """Rows longer than what is written at once, which begin nowhere near a multiple of a vector."""
    for n in (257, 513, 4099):
        x = normal(rng, (3, n + 3), dtype, 2)[:, 1 : n + 1]
        both(lambda x=x: getattr(qkv, op)(x))


def test_norms_with_everything(dtype: np.dtype[Any], rng: np.random.Generator) -> None:
    for n in sizes(130):
        x, r, w, b = (
            normal(rng, (5, n), dtype),
            normal(rng, (5, n), dtype),
            normal(rng, n, dtype),
            normal(rng, n, dtype),
        )
        both(lambda x=x, r=r, w=w, b=b: qkv.layer_norm(x, w, b, residual=r))
        both(lambda x=x, r=r, w=w: qkv.rms_norm(x, w, residual=r))
        both(lambda x=x, b=b: qkv.layer_norm(x, None, b))
        both(lambda x=x, r=r: qkv.layer_norm(np.asfortranarray(x), residual=r))


def test_rotary(dtype: np.dtype[Any], rng: np.random.Generator) -> None:
    for n in [*range(2, 40), 66, 130]:
        x = normal(rng, (3, 5, n), dtype)
        for interleaved in (False, True):
            for dim in {2, n // 2 * 2}:
                both(lambda x=x, d=dim, i=interleaved: qkv.rotary(x, np.arange(3), dim=d, interleaved=i))


def test_embedding(dtype: np.dtype[Any], rng: np.random.Generator) -> None:
    for n in sizes(130):
        table, ids = normal(rng, (11, n), dtype), rng.integers(0, 11, 9)
        both(lambda table=table, ids=ids: qkv.embedding(ids, table))


def test_the_usual_size_is_crossed(rng: np.random.Generator) -> None:
    """An array that is large on any machine, against the float64 reference at some of its rows, and on all threads."""
    x = normal(rng, (3, 257, 65_537), FLOAT32)
    for op in ("gelu", "softmax", "layer_norm"):
        out = getattr(qkv, op)(x)
        for row in [(0, 0), (1, 100), (2, 256)]:
            np.testing.assert_allclose(out[row], oracle(op, x[row]), rtol=2e-6, atol=2e-6)
            assert same_bits(out[row], getattr(qkv, op)(x[row]))
