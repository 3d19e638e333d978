"""qkv.cuda: arrays, views, DLPack, streams, memory and errors, on a GPU or on the emulator."""

from __future__ import annotations

import gc
import threading
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import qkv
from checks import run_python, same_bits

device = pytest.mark.skipif(not qkv.cuda.is_available(), reason=qkv.cuda.why_not())

DTYPES = ["float32", "float16", ml_dtypes.bfloat16, "float64", "int8", "uint8", "int16", "int32", "int64", "bool"]


def values(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> Any:
    return (rng.standard_normal(shape) * 50).astype(dtype)


@device
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_there_and_back(dtype: Any, rng: np.random.Generator) -> None:
    for shape in [(), (1,), (0,), (3, 5), (2, 0, 4), (2, 3, 4, 5)]:
        x = values(rng, shape, dtype)
        y = qkv.cuda.array(x)
        assert (y.shape, y.dtype, y.ndim, y.size, y.nbytes) == (x.shape, x.dtype, x.ndim, x.size, x.nbytes)
        assert y.strides == x.strides or x.size == 0
        assert same_bits(y.numpy(), x)
    for view in (x.T, x[::-1, :, ::2], x[..., 1:3]):
        assert same_bits(qkv.cuda.array(view).numpy(), view.copy())


@device
def test_what_was_uploaded_may_change_at_once(rng: np.random.Generator) -> None:
    x = rng.standard_normal(100_000).astype(np.float32)
    y, before = qkv.cuda.array(x), x.copy()
    x[:] = 0
    assert same_bits(y.numpy(), before)


@device
def test_views_follow_numpy(rng: np.random.Generator) -> None:
    x = rng.standard_normal((4, 5, 6)).astype(np.float32)
    y = qkv.cuda.array(x)
    for key in [
        0,
        -1,
        slice(1, 3),
        (slice(None, None, -2), 2),
        (..., 3),
        (None, 1, ..., slice(4, 1, -1)),
        (),
        (0, 1, 2),
    ]:
        assert same_bits(y[key].numpy(), np.array(x[key], order="K")), key
    assert same_bits(y.T.numpy(), x.T)
    assert same_bits(y.transpose(1, 0, 2).numpy(), x.transpose(1, 0, 2))
    assert same_bits(y.reshape(20, -1).numpy(), x.reshape(20, -1))
    assert same_bits(y[::2].copy().numpy(), x[::2].copy()) and y[::2].copy().is_contiguous
    assert len(y) == 4 and not y.T.is_contiguous
    for wrong in (4, (0, 0, 0, 0), (..., ...)):
        with pytest.raises(IndexError):
            y[wrong]
    with pytest.raises(TypeError, match="indices are integers"):
        y[[0, 1]]
    with pytest.raises(ValueError, match="not C-contiguous"):
        y.T.reshape(-1)
    with pytest.raises(ValueError, match="cannot become"):
        y.reshape(7, 3)
    with pytest.raises(TypeError, match=r"\.numpy\(\) copies"):
        np.asarray(y)


@device
def test_conversion(rng: np.random.Generator) -> None:
    x = rng.standard_normal((7, 33)).astype(np.float32)
    for dtype in ("float32", "float16", ml_dtypes.bfloat16):
        for view in (x, x.T, x[:, ::3]):
            y = qkv.cuda.array(x)
            y = {x.shape: y, x.T.shape: y.T}.get(view.shape, y[:, ::3])
            assert same_bits(y.astype(dtype).numpy(), np.ascontiguousarray(view.astype(dtype)))
            assert same_bits(
                y.astype(dtype).astype("float32").numpy(), np.ascontiguousarray(view.astype(dtype).astype(np.float32))
            )
    with pytest.raises(TypeError, match="int32 to float32 is not done on the GPU"):
        qkv.cuda.array(np.arange(3, dtype=np.int32)).astype("float32")
    with pytest.raises(TypeError, match="has no place on the GPU"):
        qkv.cuda.array(np.array(["a"]))


class Foreign:
    """An array of another library."""

    def __init__(self, array: Any) -> None:
        self.array = array

    def __dlpack__(self, stream: int | None = None) -> Any:
        assert stream == 1  # the legacy default stream
        return self.array.__dlpack__(stream=stream)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.array.__dlpack_device__()  # type: ignore[no-any-return]


@device
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dlpack_in_and_out(dtype: Any, rng: np.random.Generator) -> None:
    x = values(rng, (3, 4), dtype)
    y = qkv.cuda.array(x)
    assert y.__dlpack_device__() == (2, 0)

    z = qkv.cuda.from_dlpack(Foreign(y.T))
    assert z.pointer == y.pointer and z.dtype == y.dtype
    assert same_bits(z.numpy(), x.T)
    del y
    gc.collect()
    assert same_bits(z.numpy(), x.T)
    capsule = z.__dlpack__()
    qkv.cuda.module().from_dlpack(capsule, 0)
    with pytest.raises(ValueError, match="unused capsule"):
        qkv.cuda.module().from_dlpack(capsule, 0)
    with pytest.raises(ValueError, match="ambiguous"):
        z.__dlpack__(stream=0)


@device
def test_cuda_array_interface(rng: np.random.Generator) -> None:
    y = qkv.cuda.array(values(rng, (3, 4), "float32"))
    interface = y.__cuda_array_interface__
    assert interface["shape"] == (3, 4) and interface["typestr"] == "<f4" and interface["version"] == 3
    assert interface["data"] == (y.pointer, False) and interface["strides"] is None and interface["stream"] == 1
    assert y.T.__cuda_array_interface__["strides"] == (4, 16)
    with pytest.raises(AttributeError, match="bfloat16"):
        _ = y.astype(ml_dtypes.bfloat16).__cuda_array_interface__


@device
def test_streams(rng: np.random.Generator) -> None:
    x = rng.standard_normal((50, 60)).astype(np.float32)
    one, two = qkv.cuda.Stream(), qkv.cuda.Stream()
    expected = qkv.cuda.array(x).numpy()
    assert qkv.cuda.current_stream() == 0
    with qkv.cuda.stream(one):
        assert qkv.cuda.current_stream() == one.handle
        a = qkv.softmax(qkv.cuda.array(x))
        assert a.stream == one.handle
        with qkv.cuda.stream(two):
            b = qkv.log_softmax(a)  # after what is in the other stream
            assert b.stream == two.handle
        assert qkv.cuda.current_stream() == one.handle
    assert qkv.cuda.current_stream() == 0
    with np.errstate(all="ignore"):
        e = np.exp(expected.astype(np.float64) - expected.max(-1, keepdims=True))
    p = e / e.sum(-1, keepdims=True)
    np.testing.assert_allclose(a.numpy(), p, rtol=1e-5)
    q = np.exp(p - p.max(-1, keepdims=True))
    np.testing.assert_allclose(b.numpy(), np.log(q / q.sum(-1, keepdims=True)), rtol=1e-5)
    one.synchronize()
    qkv.cuda.synchronize()


@device
def test_memory_comes_back() -> None:
    gc.collect()
    before = qkv.cuda.memory_info()["used_bytes"]
    x = qkv.cuda.empty((1024, 1024))
    assert qkv.cuda.memory_info()["used_bytes"] >= before + 4 * 1024 * 1024
    view = x[1:]
    del x
    assert qkv.cuda.memory_info()["used_bytes"] >= before + 4 * 1024 * 1024
    del view
    assert qkv.cuda.memory_info()["used_bytes"] == before
    qkv.cuda.synchronize()
    qkv.cuda.trim()
    assert qkv.cuda.memory_info()["cached_bytes"] == 0
    qkv.cuda.set_cache_limit(0)


@device
def test_out_of_memory_names_what_was_asked() -> None:
    with pytest.raises(qkv.CudaError, match=r"out of GPU memory: asked for 1048576\.00 GiB; .* GiB are free") as error:
        qkv.cuda.empty(1 << 50, np.uint8)
    assert error.value.code == 2
    assert qkv.cuda.array(np.ones(3)).numpy().sum() == 3  # and everything goes on


@device
def test_host_and_device_do_not_mix() -> None:
    x, w = np.ones((2, 3), np.float32), qkv.cuda.array(np.ones((4, 3), np.float32))
    with pytest.raises(TypeError, match="linear: weight is on a CUDA device, x in host memory"):
        qkv.linear(x, w)
    with pytest.raises(TypeError, match="layer_norm: x must be float32, float16 or bfloat16, got int32"):
        qkv.layer_norm(qkv.cuda.array(np.ones((2, 3), np.int32)))
    with pytest.raises(TypeError, match="rotary: arrays on a GPU are not supported"):
        qkv.rotary(w, np.arange(4))


@device
def test_threads_do_not_disturb_each_other(rng: np.random.Generator) -> None:
    x = [rng.standard_normal((17, 40 + i)).astype(np.float32) for i in range(4)]
    expected = [qkv.softmax(qkv.cuda.array(a)).numpy() for a in x]
    wrong: list[int] = []

    def work(i: int) -> None:
        with qkv.cuda.stream(qkv.cuda.Stream()):
            for _ in range(5):
                if not same_bits(qkv.softmax(qkv.cuda.array(x[i])).numpy(), expected[i]):
                    wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@device
def test_batch_invariance(rng: np.random.Generator) -> None:
    """A row's bits are the same alone and in a batch, for products and attention."""
    x, w = (qkv.cuda.array(rng.standard_normal(s).astype(ml_dtypes.bfloat16)) for s in ((90, 256), (48, 256)))
    q, k, v = (qkv.cuda.array(rng.standard_normal((5, 2, n, 32)).astype(ml_dtypes.bfloat16)) for n in (3, 700, 700))
    qkv.set_batch_invariant(True)
    try:
        product, attended = qkv.linear(x, w).numpy(), qkv.attention(q, k, v).numpy()
        for rows in (slice(0, 1), slice(7, 30), slice(60, 90)):
            assert same_bits(qkv.linear(x[rows], w).numpy(), product[rows])
        assert same_bits(qkv.attention(q[2:3], k[2:3], v[2:3]).numpy(), attended[2:3])
        assert same_bits(qkv.attention(q[:, :, :1], k, v).numpy(), attended[:, :, :1])
    finally:
        qkv.set_batch_invariant(False)


def test_without_a_gpu_the_words_say_what_is_missing() -> None:
    code = """
import numpy as np, qkv
assert not qkv.cuda.is_available() and "QKV_CUDA=off" in qkv.cuda.why_not()
try:
    qkv.cuda.array(np.ones(3))
except qkv.CudaError as error:
    assert "QKV_CUDA=off hides the GPU" in str(error), error
else:
    raise SystemExit("no error")
"""
    done = run_python(code, QKV_CUDA="off")
    assert done.returncode == 0, done.stderr
    done = run_python("import qkv; qkv.cuda", QKV_CUDA="sometimes")
    assert "QKV_CUDA must be 'on', 'off' or 'emulated', got 'sometimes'" in done.stderr
