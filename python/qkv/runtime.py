"""Threads, instruction sets and memory of the running process."""

from __future__ import annotations

import operator
import os
import platform
import sys
from typing import Any

from . import _cpu


def set_num_threads(n: int) -> None:
    """Says how many threads an op may use. Also set by the environment's QKV_NUM_THREADS.

    n: at least 1, the calling thread included. TypeError: n is no integer. ValueError: it is below 1."""
    if isinstance(n, bool) or not hasattr(n, "__index__"):
        raise TypeError(f"set_num_threads: n must be an integer, got {type(n).__name__}")
    n = operator.index(n)
    if not 1 <= n < 2**31:
        raise ValueError(f"set_num_threads: n must lie in 1 to {2**31 - 1}, got {n}")
    _cpu.set_num_threads(n)


def get_num_threads() -> int:
    """Threads an op may use. By default the CPUs in the affinity mask, capped by the cgroup CPU quota."""
    return _cpu.get_num_threads()


def isas() -> list[str]:
    """Instruction sets whose kernels this machine can run, worst first."""
    return _cpu.isas()


def set_isa(name: str) -> None:
    """Runs the kernels of one instruction set from here on, in the whole process. name: one of `isas()`; any other is a
    ValueError that names them. Also set by the environment's QKV_ISA."""
    if not isinstance(name, str):
        raise TypeError(f"set_isa: name must be a string, got {type(name).__name__}")
    if name not in _cpu.isas():
        possible = ", ".join(_cpu.isas())
        raise ValueError(f"set_isa: {name!r} is not an instruction set that this machine can run; possible: {possible}")
    _cpu.set_isa(name)


def current_isa() -> str:
    """The one whose kernels run."""
    return _cpu.current_isa()


def trim() -> None:
    """Returns the memory that waits for reuse to the system."""
    _cpu.trim()


def _read_environment() -> None:
    isa, threads = os.environ.get("QKV_ISA"), os.environ.get("QKV_NUM_THREADS")
    if isa:
        try:
            set_isa(isa)
        except ValueError as error:
            raise ValueError(f"QKV_ISA: {error}") from None
    if threads:
        if not threads.strip().isdecimal() or int(threads) < 1:
            raise ValueError(f"QKV_NUM_THREADS must be a positive integer, got {threads!r}")
        set_num_threads(min(int(threads), 2**31 - 1))


def config() -> dict[str, Any]:
    """What `show_config` prints."""
    from . import __version__

    quota = _cpu.cgroup_cpus("")
    buffers = _cpu.buffer_stats()
    return {
        "qkv": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "compiler": _cpu.compiler,
        "isa": current_isa(),
        "isas": _cpu.isas(),
        "threads": _cpu.get_num_threads(),
        "cpus in the affinity mask": _cpu.affinity_cpus(),
        "cgroup quota in cpus": quota or None,
        "buffers cached / limit in MiB": f"{buffers['cached_bytes'] >> 20} / {buffers['limit_bytes'] >> 20}",
        **_gpu(),
    }


def _gpu() -> dict[str, str]:
    """The current device, or why there is none."""
    from . import cuda

    if reason := cuda.why_not():
        return {"gpu": f"none: {reason.removeprefix('qkv.cuda: ')}"}
    device, versions = cuda.current_device(), f"{cuda.driver_version()} / {cuda.runtime_version()}"
    name, (major, minor) = cuda.device_name(device), cuda.compute_capability(device)
    found = {"gpu": f"{name}, compute capability {major}.{minor}", "cuda of the driver / of this build": versions}
    try:
        memory = cuda.memory_info()
        free, total = (f"{memory[name] / 2**30:.2f}" for name in ("free_bytes", "total_bytes"))
    except cuda.CudaError as error:  # in exclusive use by another process
        return {**found, "gpu memory": str(error)}
    return {**found, "gpu memory free / total in GiB": f"{free} / {total}"}


def show_config() -> None:
    """Prints version, instruction sets, threads, memory and the GPU, or why there is none."""
    for key, value in config().items():
        sys.stdout.write(f"{key}: {', '.join(value) if isinstance(value, list) else value}\n")


_read_environment()
