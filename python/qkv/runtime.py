"""Threads, instruction sets and memory of the running process."""

from __future__ import annotations

import platform
import sys
from typing import Any

from . import _cpu


def set_num_threads(n: int) -> None:
    """How many threads an op may use, the calling one included. Also set by the environment's QKV_NUM_THREADS."""
    if isinstance(n, bool) or not isinstance(n, int):
        raise TypeError(f"set_num_threads: n must be an integer, got {type(n).__name__}")
    if n < 1:
        raise ValueError(f"set_num_threads: n must be at least 1, got {n}")
    _cpu.set_num_threads(min(n, 2**30))


def get_num_threads() -> int:
    """Threads an op may use. By default the physical cores in the affinity mask, capped by the cgroup CPU quota."""
    return _cpu.get_num_threads()


def isas() -> list[str]:
    """Instruction sets whose kernels this machine can run, worst first."""
    return _cpu.isas()


def set_isa(name: str) -> None:
    """Runs the kernels of one instruction set from `isas()`; ValueError names them. Also set by QKV_ISA."""
    _cpu.set_isa(name)


def trim() -> None:
    """Returns the memory that waits for reuse to the system."""
    _cpu.trim()


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
        "isa": _cpu.current_isa(),
        "isas": _cpu.isas(),
        "threads": _cpu.get_num_threads(),
        "cpus in the affinity mask": _cpu.affinity_cpus(),
        "cgroup quota in cpus": quota or None,
        "buffers cached / limit in MiB": f"{buffers['cached_bytes'] >> 20} / {buffers['limit_bytes'] >> 20}",
    }


def show_config() -> None:
    """Prints version, instruction sets, threads and memory."""
    for key, value in config().items():
        sys.stdout.write(f"{key}: {', '.join(value) if isinstance(value, list) else value}\n")
