"""Memory that is short, and uploads: what waits for reuse is given back, errors name what is asked, and the host holds
no second copy of what goes to the device."""

from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import qkv
from checks import run_python, same_bits
from emulated import configured
from qkv.cache import PagedCache
from qkv.placement import Place

device = pytest.mark.skipif(not qkv.cuda.is_available(), reason=qkv.cuda.why_not())
emulated = pytest.mark.skipif(not qkv.cuda.is_emulated(), reason="QKV_CUDA=emulated runs this")

MIB = 1 << 20


@pytest.fixture
def room() -> Iterator[Callable[[int, str], None]]:
    """Leaves so many bytes beside what is in arrays."""

    with contextlib.ExitStack() as stack:

        def leave(nbytes: int, options: str = "") -> None:
            stack.close()
            gc.collect()
            qkv.cuda.trim()
            info = qkv.cuda.memory_info()
            taken = info["total_bytes"] - info["free_bytes"]
            stack.enter_context(configured(f"memory={taken + nbytes},{options}"))

        yield leave


def megabytes(n: int) -> Any:
    return qkv.cuda.empty(n * MIB, np.uint8)


@emulated
@pytest.mark.parametrize("streams", ["at_issue", "late"])
def test_what_waits_for_reuse_is_given_back(room: Any, streams: str) -> None:
    room(10 * MIB, f"streams={streams}")
    for n in (6, 8, 3, 9, 10):
        x = megabytes(n)
        del x
        assert qkv.cuda.memory_info()["free_bytes"] <= (10 - n) * MIB
    with qkv.cuda.stream(qkv.cuda.Stream()):  # whose memory is the pool's, too
        x = megabytes(6)
        del x
        assert megabytes(9).size == 9 * MIB


@emulated
def test_an_error_names_what_was_asked_and_what_is_there(room: Any, rng: np.random.Generator) -> None:
    x = rng.standard_normal((3, MIB // 2)).astype(np.float32)
    there = qkv.cuda.array(x)
    room(10 * MIB)
    kept = megabytes(5)
    held = qkv.cuda.memory_info()["used_bytes"] / MIB
    for call, words in (
        (lambda: megabytes(8), r"8\.00 MiB asked for by empty; 5\.00 MiB of "),
        (lambda: qkv.cuda.zeros((2, MIB)), r"8\.00 MiB asked for by zeros; 5\.00 MiB of "),
        (
            lambda: qkv.scaled_dot_product_attention(there[:, None], there[:, None], there[:, None]),
            r"6\.00 MiB asked for by scaled_dot_product_attention; 5\.00 MiB of ",
        ),
        (lambda: qkv.softmax(there), r"6\.00 MiB asked for by softmax; 5\.00 MiB of "),
        (lambda: qkv.cuda.array(x), r"6\.00 MiB asked for by array; 5\.00 MiB of "),
        (lambda: qkv.cuda.record(lambda: qkv.softmax(there)), r"6\.00 MiB asked for by softmax; 5\.00 MiB of "),
    ):
        with pytest.raises(qkv.CudaError, match=f"^out of GPU memory: {words}") as error:
            call()
        assert error.value.code == 2  # type: ignore[attr-defined]
        assert f"are free, {held:.2f} MiB are in qkv's arrays, 0.00 MiB wait for reuse" in str(error.value)
    del kept
    assert same_bits(qkv.relu(there).numpy(), np.maximum(x, 0))
    assert same_bits(qkv.cuda.record(lambda: qkv.relu(there))[0].numpy(), np.maximum(x, 0))


@emulated
def test_an_error_names_the_cache(room: Any) -> None:
    room(5 * MIB // 2)
    cache = PagedCache(2, 4, 32, dtype="float16", place=Place.named("cuda"))
    a = cache.sequence()
    cache.extend([a], [1024])  # 1 MiB
    size = r"a KV cache of 128 blocks of 16 tokens, 2\.00 MiB in all"
    with pytest.raises(qkv.CudaError, match=rf"^out of GPU memory: 512\.00 KiB asked for by {size}; 0\.\d\d MiB of "):
        cache.extend([a], [1])
    assert cache.blocks == 64 and len(a) == 1024


@emulated
def test_a_step_that_found_no_memory_leaves_none_behind(room: Any) -> None:
    x = qkv.cuda.array(np.ones(MIB // 4, np.float32))
    room(10 * MIB)
    before = qkv.cuda.memory_info()["used_bytes"]
    for _ in range(3):
        with pytest.raises(qkv.CudaError, match="out of GPU memory"):
            qkv.cuda.record(lambda: [qkv.relu(x) for _ in range(12)])
        gc.collect()
        assert qkv.cuda.memory_info()["used_bytes"] == before
    assert len(qkv.cuda.record(lambda: [qkv.relu(x) for _ in range(9)])[1]) == 9


# ---- uploads


@device
@pytest.mark.parametrize("streams", ["at_issue", "late"])
def test_uploads_of_any_size(streams: str, rng: np.random.Generator, tmp_path: Path) -> None:
    """Through the pieces of page-locked memory, around their size and several times around; the source may change."""
    with configured(f"streams={streams},check=0"):
        piece = 4 * MIB
        for size in (1, 64 << 10, (64 << 10) + 1, piece - 1, piece, piece + 1, 5 * piece + 7):
            x = rng.integers(0, 256, size, np.uint8)
            before = x.copy()
            y, z = qkv.cuda.array(x), qkv.cuda.array(x[::-1])
            x[:] = 0
            assert same_bits(y.numpy(), before) and same_bits(z.numpy(), before[::-1].copy())
            before.tofile(tmp_path / "x")
            qkv.cuda.trim()
            mapped = np.memmap(tmp_path / "x", np.uint8, "r")
            assert same_bits(qkv.cuda.array(mapped).numpy(), before)


@device
def test_uploads_of_several_threads(rng: np.random.Generator) -> None:
    x = [rng.integers(0, 256, 9 * MIB + i, np.uint8) for i in range(3)]
    wrong: list[int] = []

    def work(i: int) -> None:
        with qkv.cuda.stream(qkv.cuda.Stream()):
            for _ in range(3):
                if not same_bits(qkv.cuda.array(x[i]).numpy(), x[i]):
                    wrong.append(i)
                qkv.cuda.trim()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@emulated
def test_a_mapped_file_is_not_copied_on_the_host(tmp_path: Path) -> None:
    """The peak is the file's pages, those of the emulated device, and the pieces, which trim gives back."""
    code = """
import sys, tracemalloc
import numpy as np, qkv
def status(name):
    return int(next(line for line in open("/proc/self/status") if line.startswith(name)).split()[1]) >> 10
qkv.cuda.array(np.ones(3))
x = np.memmap(sys.argv[1], np.float32, "r")
tracemalloc.start()
before = status("VmHWM")
y = qkv.cuda.array(x)
print(status("VmHWM") - before, tracemalloc.get_traced_memory()[1])
now = status("VmRSS")
qkv.cuda.trim()
print(now - status("VmRSS"))
"""
    size = 256 * MIB
    with open(tmp_path / "x", "wb") as file:
        file.truncate(size)
    code = code.replace("sys.argv[1]", repr(str(tmp_path / "x")))
    done = run_python(code, QKV_CUDA="emulated", QKV_EMULATOR="check=0")
    assert done.returncode == 0, done.stderr
    grown, traced, given_back = map(int, done.stdout.split())
    assert 256 <= grown <= 2 * 256 + 16 + 16 and traced < MIB and given_back >= 12, done.stdout


@device
def test_the_device_is_shown() -> None:
    shown = qkv.runtime.config()
    assert qkv.cuda.device_name(0) in shown["gpu"] and "compute capability" in shown["gpu"]
    assert f" / {qkv.cuda.memory_info()['total_bytes'] / 2**30:.2f}" in shown["gpu memory free / total in GiB"]
    assert shown["cuda of the driver / of this build"].endswith(f" / {qkv.cuda.runtime_version()}")


def test_why_there_is_no_device() -> None:
    done = run_python("import qkv; qkv.show_config()", QKV_CUDA="off")
    assert "gpu: none: QKV_CUDA=off hides the GPU\n" in done.stdout, done.stdout + done.stderr
