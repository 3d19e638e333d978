"""What choosing on a GPU has beside the CPU's top_k: argmax, narrow types, strides, many of the largest, the parts of a
logarithm. Runs with QKV_TEST_DEVICE=cuda."""

from __future__ import annotations

from typing import Any

import numpy as np
import on_device
import pytest
import qkv
from checks import normal, same_bits, strided
from qkv import cuda_ops, ops

pytestmark = pytest.mark.skipif(not on_device.ENABLED, reason="QKV_TEST_DEVICE=cuda runs this")


def expected(x: np.ndarray, k: int) -> np.ndarray:
    """NaN count as smaller than any number; NumPy sorts them to the end."""
    return np.argsort(-x.astype(np.float64), axis=1, kind="stable")[:, :k]


def check(x: np.ndarray, k: int) -> None:
    values, places = ops.top_k(on_device.to_device(x), k)
    want = expected(x, k)
    np.testing.assert_array_equal(places.numpy(), want)
    assert same_bits(values.numpy(), np.take_along_axis(x, want, axis=1))


@pytest.mark.parametrize("n", [1, 2, 31, 33, 1000, 8191, 8193, 50_257])
def test_argmax(n: int, dtype: np.dtype[Any], rng: np.random.Generator) -> None:
    x = normal(rng, (5, n), dtype)
    x[1, n // 2 :] = x[1].max()  # of equal ones the first
    x[2], x[3, : n // 2] = np.nan, np.nan
    x[4] = -np.inf
    np.testing.assert_array_equal(cuda_ops.argmax(qkv.cuda.array(x)).numpy(), expected(x, 1)[:, 0])


def test_argmax_writes_where_it_is_told(rng: np.random.Generator) -> None:
    x, out = normal(rng, (3, 100)), qkv.cuda.array(np.zeros(3, np.int64))
    given = qkv.cuda.array(x)
    assert cuda_ops.argmax(given, out=out).pointer == out.pointer
    np.testing.assert_array_equal(out.numpy(), x.argmax(axis=1))
    for wrong, error in [
        (qkv.cuda.array(np.zeros(3, np.int32)), TypeError),
        (np.zeros(3, np.int64), TypeError),
        (qkv.cuda.array(np.zeros(4, np.int64)), ValueError),
        (qkv.cuda.array(np.zeros(6, np.int64))[::2], ValueError),
    ]:
        with pytest.raises(error, match="argmax: out must be"):
            cuda_ops.argmax(given, out=wrong)
    with pytest.raises(ValueError, match="argmax: x has no columns"):
        cuda_ops.argmax(given[:, :0])
    assert cuda_ops.argmax(given[:0]).shape == (0,)


def test_narrow_types(dtype: np.dtype[Any], rng: np.random.Generator) -> None:
    x = normal(rng, (3, 9000), dtype)  # many equal ones
    for k in (1, 2, 100):
        check(x, k)
    x[0], x[1, 5:] = np.nan, -np.inf
    check(x, 100)


def test_many(rng: np.random.Generator) -> None:
    x = normal(rng, (2, 5001))
    x[0, ::3] = 1.0
    x[1, ::7] = np.nan
    for k in (1024, 1025, 3000, 5001):
        check(x, k)


def test_strides(rng: np.random.Generator) -> None:
    x = normal(rng, (3, 200))
    for view in strided(x).values():
        check(view, 1)
        check(view, 5)
    check(normal(rng, (4, 77))[1:], 3)


@pytest.mark.parametrize("n", [1, 5, 100, 1000, 20_001, 70_000])
def test_parts_of_a_logarithm_are_what_log_softmax_subtracts(n: int, rng: np.random.Generator) -> None:
    x = qkv.cuda.array(normal(rng, (3, n), scale=3.0))
    m, rest = (part.numpy() for part in ops.log_softmax_parts(x))
    assert m.shape == rest.shape == (3, 1)
    host = x.numpy()
    assert same_bits((host - m) - rest, qkv.log_softmax(x).numpy())


def test_parts_of_a_logarithm_of_narrow_types(dtype: np.dtype[Any], rng: np.random.Generator) -> None:
    x = normal(rng, (3, 5000), dtype, scale=3.0)
    m, rest = (part.numpy() for part in ops.log_softmax_parts(qkv.cuda.array(x)))
    assert m.dtype == rest.dtype == np.float32
    wide = x.astype(np.float64)
    np.testing.assert_array_equal(m[:, 0], wide.max(axis=1))
    np.testing.assert_allclose(rest[:, 0], np.log(np.exp(wide - m).sum(axis=1)), rtol=2e-6)
