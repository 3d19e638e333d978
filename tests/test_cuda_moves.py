"""qkv.cuda: arrays that are written in place, filled, and put together."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
import qkv
from checks import same_bits

pytestmark = pytest.mark.skipif(not qkv.cuda.is_available(), reason=qkv.cuda.why_not())

DTYPES = ["float32", "float16", ml_dtypes.bfloat16, "float64", "int8", "int32", "int64", "bool"]
there = qkv.cuda.array


def values(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> Any:
    return (rng.standard_normal(shape) * 50).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_copied_in_place(dtype: Any, rng: np.random.Generator) -> None:
    for shape in [(), (7,), (3, 0), (4, 6, 10)]:
        target, x = there(values(rng, shape, dtype)), values(rng, shape, dtype)
        pointer = target.pointer
        qkv.cuda.copy_into(target, x)
        assert same_bits(target.numpy(), x) and target.pointer == pointer
        y = values(rng, shape, dtype)
        qkv.cuda.copy_into(target, there(y))
        assert same_bits(target.numpy(), y)
    for cut in (np.s_[::2], np.s_[:, 1:3], np.s_[..., ::-1], np.s_[1, :, 3]):
        target, want, given = there(y), y.copy(), values(rng, y[cut].shape, dtype)
        for source in (given, there(given), there(np.asfortranarray(given).T.copy()).T):
            want[cut] = given
            qkv.cuda.copy_into(target[cut], source)
            assert same_bits(target.numpy(), want)
            qkv.cuda.copy_into(target, y)


def test_within_one_array(rng: np.random.Generator) -> None:
    """All is read before anything is written."""
    x = values(rng, (50, 8), np.float32)
    for to, of in ((np.s_[1:], np.s_[:-1]), (np.s_[:-1], np.s_[1:]), (np.s_[:], np.s_[::-1])):
        device, want = there(x), x.copy()
        want[to] = x[of]
        qkv.cuda.copy_into(device[to], device[of])
        assert same_bits(device.numpy(), want)


def test_the_host_may_go_on_at_once(rng: np.random.Generator) -> None:
    target, x = qkv.cuda.empty(100_000), values(rng, (100_000,), np.float32)
    before = x.copy()
    with qkv.cuda.stream(qkv.cuda.Stream()):
        qkv.cuda.copy_into(target, x)
        x[:] = 0
        assert same_bits(target.numpy(), before)


def test_copy_into_refuses() -> None:
    target = there(np.zeros((2, 3), np.float32))
    for source in (np.zeros((3, 2), np.float32), there(np.zeros((2, 3, 1), np.float32)), np.float32(1)):
        with pytest.raises(ValueError, match=r"copy_into: source must be \(2, 3\), got"):
            qkv.cuda.copy_into(target, source)
    with pytest.raises(TypeError, match="copy_into: source must be float32, got float16"):
        qkv.cuda.copy_into(target, there(np.zeros((2, 3), np.float16)))
    with pytest.raises(TypeError, match="copy_into: source must be int64, got float64"):
        qkv.cuda.copy_into(there(np.zeros(3, np.int64)), np.zeros(3))
    with pytest.raises(TypeError, match=r"copy_into: target must be a qkv.cuda.Array, got ndarray"):
        qkv.cuda.copy_into(np.zeros(3), target)
    qkv.cuda.copy_into(target, np.arange(6.0).reshape(2, 3))  # float64, as np.copyto takes it
    assert target.numpy().tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_filled(dtype: Any, rng: np.random.Generator) -> None:
    for value in (0, 1, 1.5, -1, -0.0):
        want = np.full((3, 40), np.asarray(value).astype(dtype))
        device = there(values(rng, want.shape, dtype))
        device.fill(value)
        assert same_bits(device.numpy(), want)
        x = values(rng, (6, 80), dtype)
        device = there(x)
        device[::2, 1:80:2].fill(value)
        x[::2, 1:80:2] = want
        assert same_bits(device.numpy(), x)
    assert same_bits(qkv.cuda.zeros((3, 5), dtype).numpy(), np.zeros((3, 5), dtype))
    assert qkv.cuda.zeros(0, dtype).shape == (0,)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_put_together(dtype: Any, rng: np.random.Generator) -> None:
    for axis, shapes in (
        (0, [(2, 3), (0, 3), (5, 3)]),
        (1, [(4, 8, 5), (4, 1, 5), (4, 16, 5)]),
        (-1, [(4, 3), (4, 8)]),
        (0, [(7,)]),
    ):
        parts = [values(rng, shape, dtype) for shape in shapes]
        joined = qkv.cuda.concatenate([there(x) for x in parts], axis)
        assert same_bits(joined.numpy(), np.concatenate(parts, axis)) and joined.is_contiguous
        turned = [there(np.ascontiguousarray(x.T)).T for x in parts]
        assert same_bits(qkv.cuda.concatenate(turned, axis).numpy(), np.concatenate(parts, axis))


def test_put_together_refuses() -> None:
    x = there(np.zeros((2, 3), np.float32))
    for wrong, error, words in (
        ([], ValueError, "there are no arrays"),
        ([x, there(np.zeros((2, 4), np.float32))], ValueError, r"shapes \(2, 3\) and \(2, 4\) differ beside axis 0"),
        ([x, there(np.zeros(3, np.float32))], ValueError, "differ beside axis 0"),
        ([x, there(np.zeros((2, 3), np.float16))], TypeError, "arrays are float32 and float16"),
        ([x, np.zeros((2, 3), np.float32)], TypeError, "arrays must be of qkv.cuda, got ndarray"),
    ):
        with pytest.raises(error, match=f"concatenate: .*{words}"):
            qkv.cuda.concatenate(wrong)
    with pytest.raises(ValueError, match="concatenate: axis 2 is out of range"):
        qkv.cuda.concatenate([x], 2)


# ---- what the host reads again and again


def test_fetched() -> None:
    """Each start brings what is there then, in the stream's order."""
    x = there(np.arange(5))
    box, stream = qkv.cuda.module().Fetched(x), qkv.cuda.current_stream()
    for i in range(3):
        box.start(stream)
        qkv.cuda.copy_into(x, np.arange(5) + 10 * (i + 1))
        for _ in range(2):  # read as often as one likes
            assert box.numpy().tolist() == list(range(10 * i, 10 * i + 5))
    empty = qkv.cuda.module().Fetched(qkv.cuda.empty((0, 3)))
    empty.start(stream)
    assert empty.numpy().shape == (0, 3)


def test_fetched_refuses() -> None:
    x, stream = there(np.arange(6).reshape(2, 3)), qkv.cuda.current_stream()
    with pytest.raises(ValueError, match="Fetched: x must be contiguous"):
        qkv.cuda.module().Fetched(x.T)
    box = qkv.cuda.module().Fetched(x)
    with pytest.raises(RuntimeError, match="Fetched: nothing was started that could be read"):
        box.numpy()
    box.start(stream)
    with pytest.raises(RuntimeError, match="Fetched: what was started before has not been read"):
        box.start(stream)
    assert box.numpy().tolist() == [[0, 1, 2], [3, 4, 5]]
    with pytest.raises(qkv.CudaError, match="a recorded step takes arrays on the device only"):
        qkv.cuda.record(lambda: box.start(qkv.cuda.current_stream()))
    with pytest.raises(RuntimeError, match="nothing was started"):  # it failed
        box.numpy()
    box.start(stream)
    assert box.numpy().tolist() == [[0, 1, 2], [3, 4, 5]]
