"""The thread pool: Python threads, the GIL, fork and spawn, Ctrl-C, a clean exit, and how many threads there are."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import qkv
from calls import calls, flat
from checks import each_isa, normal, run_python, same_bits
from qkv.ops import _cpu

PRELUDE = """
import os, sys, threading, time
import numpy as np
import qkv
rng = np.random.default_rng(0)
x, w = rng.standard_normal((300, 400), np.float32), rng.standard_normal((500, 400), np.float32)
q = rng.standard_normal((1, 2, 300, 32), np.float32)
def work():
    return qkv.linear(x, w, activation="gelu"), qkv.attention(q, q, q, causal=True), qkv.softmax(x)
def same(a, b):
    return all((m == n).all() for m, n in zip(a, b, strict=True))
"""


def succeed(code: str, timeout: float = 120, **env: str) -> str:
    done = run_python(PRELUDE + code, timeout=timeout, **env)
    assert done.returncode == 0, f"status {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert done.stderr == "", done.stderr
    return done.stdout


# ---- threads of Python -------------------------------------------------------------------------------------------


def test_several_python_threads_at_once(rng: np.random.Generator) -> None:
    """Calls from six threads, of all ops and of large ones, give the bits that each gives alone."""
    every = calls()
    x, w, q = normal(rng, (200, 300)), normal(rng, (300, 300)), normal(rng, (1, 2, 200, 32))

    def work() -> list[Any]:
        results = [a for op, arguments in every.items() for a in flat(getattr(qkv, op)(**arguments))]
        return [*results, qkv.linear(x, w), qkv.attention(q, q, q, causal=True), qkv.softmax(x), qkv.gelu(x)]

    for _ in each_isa():
        qkv.set_num_threads(3)
        expected, wrong = work(), []

        def loop(expected: list[Any] = expected, wrong: list[Any] = wrong) -> None:
            for _ in range(8):
                try:
                    if not all(same_bits(a, b) for a, b in zip(work(), expected, strict=True)):
                        wrong.append("other bits")
                except BaseException as error:
                    wrong.append(error)

        threads = [threading.Thread(target=loop) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        assert not wrong and not any(thread.is_alive() for thread in threads)


def test_threads_that_change_the_settings_meanwhile(rng: np.random.Generator) -> None:
    x, w = normal(rng, (100, 300)), normal(rng, (300, 300))
    packed, stop, wrong = qkv.pack_weight(w), threading.Event(), []
    expected = {}
    for isa in each_isa():
        expected[isa] = qkv.linear(x, packed)

    def change() -> None:
        i = 0
        while not stop.is_set():
            qkv.set_num_threads(1 + i % 4)
            qkv.set_isa(qkv.isas()[i % len(qkv.isas())])
            i += 1

    def loop() -> None:
        for _ in range(200):
            out = qkv.linear(x, packed)
            if not any(same_bits(out, e) for e in expected.values()):
                wrong.append(out)

    changer, threads = threading.Thread(target=change), [threading.Thread(target=loop) for _ in range(3)]
    for thread in (changer, *threads):
        thread.start()
    for thread in threads:
        thread.join(120)
    stop.set()
    changer.join(120)
    assert not wrong and not changer.is_alive()


def long_op(rng: np.random.Generator) -> Any:
    """An op of some tenths of a second, so that other threads get to run meanwhile wherever it lets them."""
    q = normal(rng, (1, 2, 3000, 64))
    return lambda: qkv.attention(q, q, q)


@pytest.mark.parametrize("name", ["attention", "matmul", "pack_weight", "gelu", "softmax"])
def test_the_gil_is_released(name: str, rng: np.random.Generator) -> None:
    """This thread counts while another one is inside the op. Threads change hands only where one lets go of the GIL."""
    big, square = normal(rng, (3000, 3000)), normal(rng, (1500, 1500))
    op = {
        "attention": long_op(rng),
        "matmul": lambda: qkv.matmul(square, square),
        "pack_weight": lambda: qkv.pack_weight(big),
        "gelu": lambda: qkv.gelu(big),
        "softmax": lambda: qkv.softmax(big, axis=0),
    }[name]
    op()
    counted, done = [0], threading.Event()
    seen: list[int] = []

    def inside() -> None:
        for _ in range(20):
            before = counted[0]
            op()
            seen.append(counted[0] - before)
        done.set()

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)
    try:
        thread = threading.Thread(target=inside)
        thread.start()
        while not done.is_set():
            counted[0] += 1
            time.sleep(0)
        thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert max(seen) > 0, "no other thread ran while the op did"


# ---- fork and spawn ----------------------------------------------------------------------------------------------


def test_fork_after_use() -> None:
    code = """
expected = work()
for _ in range(5):
    child = os.fork()
    if child == 0:
        ok = same(work(), expected) and same(work(), expected)
        os._exit(0 if ok else 1)
    pid, status = os.waitpid(child, 0)
    assert status == 0, status
    assert same(work(), expected), "the parent works on"
"""
    succeed("import warnings; warnings.simplefilter('ignore')\n" + code)


def test_fork_while_another_thread_computes() -> None:
    """Whatever locks the pool holds at that moment, the child starts with a pool of its own."""
    code = """
import warnings; warnings.simplefilter('ignore')
expected = work()
stop = threading.Event()
def loop():
    while not stop.is_set():
        work()
threads = [threading.Thread(target=loop) for _ in range(2)]
for t in threads: t.start()
for _ in range(20):
    child = os.fork()
    if child == 0:
        os._exit(0 if same(work(), expected) else 1)
    pid, status = os.waitpid(child, 0)
    assert status == 0, status
stop.set()
for t in threads: t.join()
"""
    succeed(code)


def test_fork_of_a_fork() -> None:
    code = """
import warnings; warnings.simplefilter('ignore')
expected = work()
def generations(n):
    child = os.fork()
    if child == 0:
        ok = same(work(), expected) and (n == 0 or generations(n - 1))
        os._exit(0 if ok else 1)
    return os.waitpid(child, 0)[1] == 0 and same(work(), expected)
assert generations(3)
"""
    succeed(code)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing(method: str, tmp_path: Path) -> None:
    script = tmp_path / "pool.py"
    script.write_text(
        PRELUDE
        + f"""
import multiprocessing, warnings
def job(i):
    return [float(a.sum(dtype=np.float64)) for a in work()]
if __name__ == "__main__":
    warnings.simplefilter("ignore")
    expected = job(0)
    with multiprocessing.get_context({method!r}).Pool(2) as pool:
        for result in pool.map(job, range(8)):
            assert result == expected
    assert job(0) == expected
"""
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stderr == "", done.stderr


# ---- Ctrl-C and exit ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", ["qkv.attention(long, long, long)", "qkv.matmul(big, big)"])
def test_ctrl_c_is_not_lost(op: str) -> None:
    code = f"""
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit that it is ignored
long, big = rng.standard_normal((1, 1, 6000, 64), np.float32), rng.standard_normal((2000, 2000), np.float32)
{op}
try:
    print("ready", flush=True)
    while True:
        {op}
except KeyboardInterrupt:
    assert same(work(), work()), "the pool works on"
    print("interrupted", flush=True)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", PRELUDE + code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.1)  # most probably inside the op now
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, out, err) == (0, "interrupted\n", "")


def test_ctrl_c_without_a_handler_ends_the_process() -> None:
    code = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
threading.Thread(target=lambda: (time.sleep(0.2), os.kill(os.getpid(), signal.SIGINT)), daemon=True).start()
while True:
    work()
"""
    done = run_python(PRELUDE + code, timeout=60)
    assert done.returncode != 0 and done.stderr.strip().endswith("KeyboardInterrupt")


@pytest.mark.parametrize("daemons", [1, 4])
def test_exit_while_daemon_threads_compute(daemons: int) -> None:
    code = f"""
count = [0] * {daemons}
def loop(i):
    while True:
        work()
        count[i] += 1
for i in range({daemons}):
    threading.Thread(target=loop, args=(i,), daemon=True).start()
while min(count) < 3:
    time.sleep(0.001)
print("leaving", flush=True)
"""
    for _ in range(5):
        assert succeed(code, timeout=60) == "leaving\n"


def test_exit_right_after_a_call_and_before_any() -> None:
    for code in ("work()", "", "work(); sys.exit(0)", "work(); qkv.set_num_threads(7); work()"):
        assert succeed(code, timeout=60) == ""


def test_results_may_die_in_any_thread_and_at_exit() -> None:
    """Buffers go back to their pool from whatever thread drops the last reference, also while Python shuts down."""
    code = """
import atexit, queue
box = queue.Queue()
def producer():
    for _ in range(200): box.put(work())
threads = [threading.Thread(target=producer) for _ in range(2)]
for t in threads: t.start()
kept = [box.get() for _ in range(400)][-5:]
for t in threads: t.join()
atexit.register(lambda: work())
class Late:
    def __del__(self): self.result
late = Late(); late.result = work()
sys.late = late
"""
    assert succeed(code) == ""


# ---- how many threads --------------------------------------------------------------------------------------------

PRINT = "print(qkv.get_num_threads())"


def test_the_environment_sets_the_number() -> None:
    for n in ("1", "2", "5"):
        assert succeed(PRINT, QKV_NUM_THREADS=n) == f"{n}\n"
        succeed("assert same(work(), work())", QKV_NUM_THREADS=n)
    assert int(succeed(PRINT, QKV_NUM_THREADS="")) >= 1


@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5", "9" * 30, "1 2"])
def test_a_wrong_number_in_the_environment_is_an_error(value: str) -> None:
    done = run_python("import numpy as np, qkv; qkv.relu(np.ones(3, np.float32))", QKV_NUM_THREADS=value)
    if value == "9" * 30 and done.returncode == 0:
        return  # as many as there can be
    assert done.returncode == 1 and "QKV_NUM_THREADS" in done.stderr.strip().splitlines()[-1]


def test_set_num_threads() -> None:
    for n in (1, 2, 3, 17):
        qkv.set_num_threads(n)
        assert qkv.get_num_threads() == n
        qkv.matmul(np.ones((200, 200), np.float32), np.ones((200, 200), np.float32))
    qkv.set_num_threads(np.int64(2))  # type: ignore[arg-type]
    assert qkv.get_num_threads() == 2
    for wrong in (0, -1):
        with pytest.raises(ValueError, match="set_num_threads"):
            qkv.set_num_threads(wrong)
    for wrong in ("2", 1.5, None):
        with pytest.raises(TypeError):
            qkv.set_num_threads(wrong)  # type: ignore[arg-type]
    with pytest.raises((ValueError, OverflowError, TypeError)):
        qkv.set_num_threads(2**70)
    assert qkv.get_num_threads() == 2


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="affinity is a thing of Linux")
def test_affinity_limits_the_number() -> None:
    """A mask of one CPU, set before the import as taskset does, gives one thread."""
    cpu = min(os.sched_getaffinity(0))
    code = f"import os; os.sched_setaffinity(0, {{{cpu}}}); import qkv; print(qkv.get_num_threads())"
    done = run_python(code, QKV_NUM_THREADS="")
    assert done.returncode == 0 and done.stdout == "1\n", done.stderr
    assert int(succeed(PRINT, QKV_NUM_THREADS="")) <= len(os.sched_getaffinity(0))


# ---- quotas of control groups, read from a tree of files -----------------------------------------------------------


def tree(root: Path, files: dict[str, str]) -> str:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return str(root)


SELF = "proc/self/cgroup"


def v1(group: str, quota: int, period: int = 100_000) -> dict[str, str]:
    return {f"{group}/cpu.cfs_quota_us": f"{quota}\n", f"{group}/cpu.cfs_period_us": f"{period}\n"}


QUOTAS: dict[str, tuple[dict[str, str], float]] = {
    "no files at all": ({}, 0.0),
    "v2, own group": ({SELF: "0::/a/b\n", "sys/fs/cgroup/a/b/cpu.max": "150000 100000\n"}, 1.5),
    "v2, no limit": ({SELF: "0::/a\n", "sys/fs/cgroup/a/cpu.max": "max 100000\n"}, 0.0),
    "v2, a parent limits": (
        {
            SELF: "0::/a/b/c\n",
            "sys/fs/cgroup/a/b/c/cpu.max": "max 100000\n",
            "sys/fs/cgroup/a/b/cpu.max": "400000 100000\n",
            "sys/fs/cgroup/a/cpu.max": "300000 100000\n",
        },
        3.0,
    ),
    "v2, the tightest counts": (
        {
            SELF: "0::/a/b\n",
            "sys/fs/cgroup/a/b/cpu.max": "25000 50000\n",
            "sys/fs/cgroup/a/cpu.max": "300000 100000\n",
        },
        0.5,
    ),
    "v2, inside a container": ({SELF: "0::/\n", "sys/fs/cgroup/cpu.max": "200000 100000\n"}, 2.0),
    "v2, the group is not mounted": ({SELF: "0::/docker/x\n", "sys/fs/cgroup/cpu.max": "200000 100000\n"}, 2.0),
    "v2, a path that leaves the namespace": ({SELF: "0::/../..\n", "sys/fs/cgroup/cpu.max": "200000 100000\n"}, 2.0),
    "v2, nonsense": ({SELF: "0::/a\n", "sys/fs/cgroup/a/cpu.max": "much more\n"}, 0.0),
    "v2, an empty file": ({SELF: "0::/a\n", "sys/fs/cgroup/a/cpu.max": ""}, 0.0),
    "v2, a period of zero": ({SELF: "0::/a\n", "sys/fs/cgroup/a/cpu.max": "100000 0\n"}, 0.0),
    "v1": ({SELF: "4:cpu:/job\n1:memory:/job\n", **v1("sys/fs/cgroup/cpu/job", 250_000)}, 2.5),
    "v1, no limit": ({SELF: "4:cpu:/job\n", **v1("sys/fs/cgroup/cpu/job", -1)}, 0.0),
    "v1, cpu with cpuacct": ({SELF: "4:cpu,cpuacct:/job\n", **v1("sys/fs/cgroup/cpu/job", 50_000)}, 0.5),
    "v1, under the name of both": ({SELF: "4:cpu,cpuacct:/job\n", **v1("sys/fs/cgroup/cpu,cpuacct/job", 50_000)}, 0.5),
    "v1, a parent limits": (
        {SELF: "4:cpu:/a/b\n", **v1("sys/fs/cgroup/cpu/a/b", -1), **v1("sys/fs/cgroup/cpu/a", 100_000)},
        1.0,
    ),
    "v1, inside a container": ({SELF: "4:cpu:/docker/0123\n", **v1("sys/fs/cgroup/cpu", 300_000)}, 3.0),
    "v1, a period of zero": ({SELF: "4:cpu:/job\n", **v1("sys/fs/cgroup/cpu/job", 100_000, 0)}, 0.0),
    "v1, cpuset and cpuacct are other controllers": (
        {SELF: "4:cpuset:/job\n3:cpuacct:/job\n", **v1("sys/fs/cgroup/cpu/job", 100_000)},
        0.0,
    ),
    "both kinds, v1 limits": (
        {SELF: "1:cpu:/job\n0::/job\n", **v1("sys/fs/cgroup/cpu/job", 150_000)},
        1.5,
    ),
    "lines that make no sense": ({SELF: "\n:\n::\nx\n4:cpu\n0::/a", "sys/fs/cgroup/a/cpu.max": "100000 100000\n"}, 1.0),
}


@pytest.mark.parametrize("name", QUOTAS)
def test_quota(name: str, tmp_path: Path) -> None:
    files, expected = QUOTAS[name]
    assert _cpu.cgroup_cpus(tree(tmp_path, files)) == pytest.approx(expected)


def test_the_quota_of_this_process_is_readable() -> None:
    assert _cpu.cgroup_cpus("") >= 0.0
