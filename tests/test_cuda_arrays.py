"""qkv.cuda: arrays, views, DLPack, streams, memory and errors, on a GPU or on the emulator."""

from __future__ import annotations

import ctypes.util
import gc
import importlib.util
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path
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
    for huge in ((2**62 + 30, 4), (-1, 2**62, 4)):  # 120 elements, modulo 2^64
        with pytest.raises(ValueError, match="cannot exist"):
            y.reshape(*huge)
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
    for make in (qkv.cuda.empty, qkv.cuda.zeros):
        for dtype in (object, "U5", "complex64"):
            with pytest.raises(TypeError, match=f"^{make.__name__}: dtype .* has no place on the GPU"):
                make(3, dtype)
        with pytest.raises(ValueError, match=f"^{make.__name__}: shape must not be negative, got"):
            make((3, -1))
    for call in (lambda: qkv.cuda.empty(3, ">f4"), lambda: qkv.cuda.array(np.ones(3, ">f4"))):
        with pytest.raises(TypeError, match="native byte order"):
            call()
    with pytest.raises(TypeError, match="float32 to >f4 is not done"):
        qkv.cuda.array(np.ones(3, np.float32)).astype(">f4")
    with pytest.raises(TypeError, match="x is a masked array"):
        qkv.cuda.array(np.ma.array([1.0, 2.0], mask=[0, 1]))


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
def test_copies_of_any_dtype(dtype: Any, rng: np.random.Generator) -> None:
    x = values(rng, (7, 33, 20), dtype)
    y = qkv.cuda.array(x)
    for view in (
        lambda a: a,
        lambda a: a.T,
        lambda a: a[::-1, 1::3],
        lambda a: a[..., 2],
        lambda a: a.transpose(0, 2, 1),
    ):
        copy = view(y).copy()
        assert copy.is_contiguous and copy.pointer != y.pointer
        assert same_bits(copy.numpy(), view(x))
        assert same_bits(view(y).numpy(), view(x))


@device
def test_a_column_takes_no_more_host_memory_than_it_has(rng: np.random.Generator) -> None:
    x = values(rng, (500, 300), np.float32)
    column = qkv.cuda.array(x)[:, 7].numpy()
    base = column
    while isinstance(base.base, np.ndarray):
        base = base.base
    assert same_bits(column, x[:, 7]) and base.nbytes <= 2 * column.nbytes


@device
def test_float64_becomes_what_the_ops_take(rng: np.random.Generator) -> None:
    x = np.concatenate([rng.standard_normal(1000) * 1e5, [np.inf, -np.inf, np.nan, 1e300, 1e-300, -0.0]]).reshape(2, -1)
    y = qkv.cuda.array(x)
    with np.errstate(over="ignore"):
        assert same_bits(y.astype(np.float32).numpy(), x.astype(np.float32))
        assert same_bits(y.T[::2].astype(np.float32).numpy(), x.T[::2].astype(np.float32))
    for dtype in (np.float16, ml_dtypes.bfloat16):  # by way of float32
        with np.errstate(over="ignore"):
            assert same_bits(y.astype(dtype).numpy(), x.astype(np.float32).astype(dtype))
    with pytest.raises(TypeError, match="from float32 to float64"):
        y.astype(np.float32).astype(np.float64)


@device
def test_values_are_not_compared_in_silence() -> None:
    x = qkv.cuda.array(np.float32([1, 2, 3]))
    for wrong in (lambda: x == x, lambda: x != 1, lambda: 2 in x, lambda: bool(x)):
        with pytest.raises(TypeError, match="not compared on the GPU"):
            wrong()
    assert {x: 1}[x] == 1


@device
def test_devices() -> None:
    assert 0 <= qkv.cuda.current_device() < qkv.cuda.device_count()
    qkv.cuda.set_device(qkv.cuda.current_device())
    with pytest.raises(qkv.CudaError, match="device"):
        qkv.cuda.set_device(qkv.cuda.device_count())
    with pytest.raises(ValueError, match="must not be negative"):
        qkv.cuda.set_cache_limit(-1)


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
def test_dlpack_does_what_it_is_asked_for(rng: np.random.Generator) -> None:
    x = values(rng, (3, 4), "float32")
    y, take = qkv.cuda.array(x), qkv.cuda.module().from_dlpack
    assert take(y.__dlpack__(max_version=(1, 1), dl_device=(2, 0), copy=False), 0).pointer == y.pointer
    copy = take(y.T.__dlpack__(copy=True), 0)
    assert copy.pointer != y.pointer and same_bits(copy.numpy(), np.ascontiguousarray(x.T))
    for device in ((1, 0), (2, 1)):
        with pytest.raises(BufferError, match="stays on its device"):
            y.__dlpack__(dl_device=device)
    with pytest.raises(TypeError, match="stream must be an integer"):
        y.__dlpack__(stream="1")
    with pytest.raises(ValueError, match="no stream -2"):
        y.__dlpack__(stream=-2)
    for host in (x, [1.0]):
        with pytest.raises(TypeError, match="from_dlpack: x "):
            qkv.cuda.from_dlpack(host)
    nothing = qkv.cuda.empty((0, 3))
    assert nothing.__cuda_array_interface__["data"] == (0, False)
    assert take(nothing.__dlpack__(), 0).numpy().shape == (0, 3)


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


@device
def test_the_cache_is_bounded() -> None:
    """What is kept for reuse once the device has caught up: the 4 MiB that were released, or less by the limit."""
    limit = qkv.cuda.memory_info()["total_bytes"] // 4
    try:
        for keep, at_least, at_most in ((limit, 4 << 20, limit), (1 << 20, 0, 1 << 20), (0, 0, 0)):
            qkv.cuda.set_cache_limit(keep)
            del_me = qkv.cuda.empty(4 << 20, np.uint8)
            del del_me
            gc.collect()
            qkv.cuda.synchronize()
            assert at_least <= qkv.cuda.memory_info()["cached_bytes"] <= at_most
    finally:
        qkv.cuda.set_cache_limit(limit)


@device
def test_out_of_memory_names_what_was_asked() -> None:
    with pytest.raises(qkv.CudaError, match=r"memory: 1048576\.00 GiB asked for by empty; .* GiB are free") as error:
        qkv.cuda.empty(1 << 50, np.uint8)
    assert error.value.code == 2
    assert qkv.cuda.array(np.ones(3)).numpy().sum() == 3  # and everything goes on


@device
def test_host_and_device_do_not_mix() -> None:
    x, w = np.ones((2, 3), np.float32), qkv.cuda.array(np.ones((4, 3), np.float32))
    packed = qkv.cuda.array(qkv.pack_weight(np.ones((4, 3), np.float32)))
    for weight in (w, packed):
        with pytest.raises(TypeError, match="linear: weight is on a CUDA device, x in host memory"):
            qkv.linear(x, weight)
    with pytest.raises(TypeError, match="embedding: ids is on a CUDA device, table in host memory"):
        qkv.embedding(qkv.cuda.array(np.zeros(1, np.int64)), x)
    with pytest.raises(TypeError, match="layer_norm: x must be float32, float16 or bfloat16, got int32"):
        qkv.layer_norm(qkv.cuda.array(np.ones((2, 3), np.int32)))
    with pytest.raises(TypeError, match="rotary: positions is on a CUDA device, x in host memory"):
        qkv.rotary(x, qkv.cuda.array(np.arange(2)))


@device
def test_numbers_and_arguments_as_on_the_cpu(rng: np.random.Generator) -> None:
    q = qkv.cuda.array(values(rng, (1, 2, 3, 4), "float32"))
    assert same_bits(qkv.attention(q, q, q, mask=True, bias=0).numpy(), qkv.attention(q, q, q).numpy())
    with pytest.raises(TypeError, match="positional"):
        qkv.attention(q, q, q, True)
    with pytest.raises(TypeError, match="missing a required argument: 'weight'"):
        qkv.linear(q, wieght=q)


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
@pytest.mark.parametrize("n", [11968, 12000, 12032, 24500])
def test_rows_that_just_fill_shared_memory(n: int, rng: np.random.Generator) -> None:
    """48 and 96 KB, the kernels' static arrays among them. Only rows that are not aligned go through shared memory."""
    x = rng.standard_normal((2, n + 1)).astype(np.float32)
    rows = qkv.cuda.array(x)[:, 1:]
    for op in ("softmax", "layer_norm", "rms_norm"):
        expected = getattr(qkv.reference, op)(x[:, 1:].astype(np.float64))
        np.testing.assert_allclose(getattr(qkv, op)(rows).numpy(), expected, rtol=1e-5, atol=1e-6, err_msg=op)


@device
def test_threads_with_rows_of_different_lengths() -> None:
    """What one thread allows a kernel of shared memory does not take away what another's launch needs."""
    arrays = [qkv.cuda.array(np.ones((1, n), np.float32)) for n in (12_800, 32_768)] * 2
    failed: list[BaseException] = []

    def work(x: Any) -> None:
        try:
            for _ in range(300):
                qkv.rms_norm(x)
        except qkv.CudaError as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(x,)) for x in arrays]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


@device
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_an_inner_dimension_beyond_32_bits_is_refused(dtype: str) -> None:
    one, k = qkv.cuda.array(np.ones((1, 64), dtype)), 2**31 + 64
    qkv.set_batch_invariant(True)  # k is not split
    try:
        with pytest.raises(qkv.CudaError, match=r"inner dimension of 2\^31"):
            qkv.matmul(one._as_strided((40, k), (1, 0), 0), one._as_strided((k, 8), (0, 1), 0))
    finally:
        qkv.set_batch_invariant(False)


@device
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_tokens_of_no_sequence_are_left_alone(dtype: str, rng: np.random.Generator) -> None:
    """cu_seqlens on the device may begin and end anywhere: nobody has checked them."""
    q, k, v = (qkv.cuda.array(rng.standard_normal((200, 2, 32)).astype(dtype)) for _ in range(3))
    out = qkv.cuda.array(np.full((200, 2, 32), 7, dtype))
    cu_seqlens = qkv.cuda.array(np.array([140, 150, 190], np.int32))
    qkv.attention_varlen(q, k, v, cu_seqlens, cu_seqlens, out=out)
    expected = qkv.cuda.array(np.array([0, 10, 50], np.int32))
    inside = qkv.attention_varlen(q[140:190], k[140:190], v[140:190], expected, expected)
    assert same_bits(out[140:190].numpy(), inside.numpy())
    assert (out[:140].numpy() == 7).all() and (out[190:].numpy() == 7).all()


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
        # More keys than one chunk of the split, beside fewer.
        k, v = (qkv.cuda.array(rng.standard_normal((5, 2, 1100, 32)).astype(ml_dtypes.bfloat16)) for _ in range(2))
        lengths = np.array([700, 1100, 5, 1024, 1025])
        attended = [x.numpy() for x in qkv.attention(q, k, v, kv_lengths=lengths, return_lse=True)]
        for b, n in enumerate(lengths):
            one = slice(b, b + 1)
            alone = qkv.attention(q[one], k[one, :, :n], v[one, :, :n], return_lse=True)
            assert all(same_bits(x.numpy(), y[one]) for x, y in zip(alone, attended, strict=True))
    finally:
        qkv.set_batch_invariant(False)


def test_a_device_that_was_lost() -> None:
    """Whatever call meets the error says so."""
    if not qkv.cuda.is_emulated():
        pytest.skip("no test loses a real device")
    with pytest.raises(qkv.CudaError, match="softmax: the device was lost, and nothing on it can be used") as error:
        qkv.softmax(qkv.cuda.empty((3, 40)))  # which nobody has written
    assert error.value.code == 719


def test_daemon_threads_at_exit() -> None:
    """The process ends while kernels run and arrays live."""
    if not qkv.cuda.is_emulated():
        pytest.skip("QKV_CUDA=emulated runs this")
    code = """
import threading, numpy as np, qkv
x = qkv.cuda.array(np.ones((300, 400), np.float32))
capsule = x.__dlpack__()
def work():
    while True: qkv.softmax(x)
threading.Thread(target=work, daemon=True).start()
"""
    for _ in range(8):
        done = run_python(code)
        assert done.returncode == 0, (done.returncode, done.stderr)


def without_extensions(tmp_path: Path, *names: str) -> str:
    """A copy of the package that lacks them."""
    source = Path(qkv.__file__).parent
    shutil.copytree(
        source, tmp_path / "qkv", ignore=shutil.ignore_patterns(*(f"{n}.*.so" for n in names), "__pycache__")
    )
    if not list((tmp_path / "qkv").glob("_cpu.*.so")):
        shutil.copy(sys.modules["qkv._cpu"].__file__, tmp_path / "qkv")  # an editable install keeps it elsewhere
    return str(tmp_path)


def test_a_build_without_cuda_says_so(tmp_path: Path) -> None:
    where = without_extensions(tmp_path, "_cuda", "_cuda_emulated")
    for wanted, words in (("on", "no CUDA kernels: build it where nvcc is found"), ("emulated", "no CUDA emulator")):
        code = f"""
import sys
sys.path.insert(0, {where!r})
sys.meta_path[:] = [f for f in sys.meta_path if "editable" not in type(f).__module__.lower()]
import qkv
assert qkv.__file__.startswith({where!r}), qkv.__file__
print(qkv.cuda.why_not())
"""
        done = run_python(code, QKV_CUDA=wanted)
        assert words in done.stdout, done.stdout + done.stderr


DRIVER = r"""
#include <string.h>
int cuInit(unsigned flags) { return INIT; }
int cuDriverGetVersion(int* version) { *version = VERSION; return 0; }
int cuDeviceGetCount(int* n) { *n = 0; return 0; }
static int other(void) { return 100; }
int cuGetProcAddress_v2(const char* name, void** f, int version, unsigned long long flags, int* status) {
  if (status) *status = 0;
  *f = !strcmp(name, "cuInit") ? (void*)cuInit : !strcmp(name, "cuDriverGetVersion") ? (void*)cuDriverGetVersion
     : !strcmp(name, "cuDeviceGetCount") ? (void*)cuDeviceGetCount
     : !strcmp(name, "cuGetProcAddress") ? (void*)cuGetProcAddress_v2 : (void*)other;
  return 0;
}
int cuGetProcAddress(const char* name, void** f, int version, unsigned long long flags) {
  return cuGetProcAddress_v2(name, f, version, flags, 0);
}
int cuGetExportTable(const void** table, const void* id) { *table = 0; return 100; }
"""


@pytest.mark.parametrize(
    "version, init, words",
    [
        (12040, 0, r"driver knows CUDA up to 12\.4, this build of qkv needs \d+\.\d+: install driver 5\d\d or newer"),
        (99000, 100, "no CUDA device, or CUDA_VISIBLE_DEVICES hides it"),
        (None, 0, r"no NVIDIA driver was found; CUDA \d+\.\d+ needs driver 5\d\d or newer"),
    ],
)
def test_what_the_driver_lacks(version: int | None, init: int, words: str, tmp_path: Path) -> None:
    """The runtime that is linked into _cuda, over a driver that says so little."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if importlib.util.find_spec("qkv._cuda") is None or not compiler:
        pytest.skip("no CUDA kernels in this build, or no C compiler")
    if version is not None:
        (tmp_path / "driver.c").write_text(DRIVER)
        flags = ["-shared", "-fPIC", f"-DVERSION={version}", f"-DINIT={init}", "-o", "libcuda.so.1"]
        subprocess.run([compiler, *flags, "driver.c"], cwd=tmp_path, check=True)
    elif ctypes.util.find_library("cuda"):
        pytest.skip("there is a driver")
    code = "import numpy as np, qkv; print(qkv.cuda.is_available(), qkv.cuda.why_not()); qkv.cuda.array(np.ones(3))"
    done = run_python(code, QKV_CUDA="on", LD_LIBRARY_PATH=str(tmp_path))
    assert done.stdout.startswith("False qkv.cuda: ") and re.search(words, done.stdout), done.stdout
    assert re.search(f"CudaError: qkv.cuda: .*{words}", done.stderr), done.stderr


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
