"""The machine: what it is, and what it can do at best."""

from __future__ import annotations

import datetime
import platform
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

CPU = Path("/sys/devices/system/cpu/cpu0/cache")
CHUNK_BYTES = 1 << 18  # of the memory limits, as in csrc/cpu/limits.cpp
DEFAULT_CACHE = 32 << 20  # where the system does not tell


@dataclass(frozen=True)
class Cache:
    level: int
    kind: str  # Data, Instruction, Unified
    nbytes: int


def caches(root: Path = CPU) -> list[Cache]:
    """The caches that the first CPU sees, smallest level first; none where the system does not tell."""
    found = []
    for folder in sorted(root.glob("index*")):
        try:
            level, kind, size = ((folder / name).read_text().strip() for name in ("level", "type", "size"))
            unit = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(size[-1:], 0)
            found.append(Cache(int(level), kind, int(size[:-1]) * unit if unit else int(size)))
        except (OSError, ValueError):
            continue
    return sorted(found, key=lambda cache: (cache.level, cache.kind))


def last_cache() -> int:
    """Bytes of the largest data cache that one CPU sees."""
    return max((cache.nbytes for cache in caches() if cache.kind != "Instruction"), default=DEFAULT_CACHE)


def cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("model name", "Model"):
                return value.strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def describe() -> dict[str, Any]:
    """What a reader of numbers needs to know about where they come from."""
    from .. import runtime

    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "cpu": cpu_name(),
        "caches": [asdict(cache) for cache in caches()],
        **runtime.config(),
    }


@dataclass(frozen=True)
class Limits:
    """Operations (two per multiply-add) or bytes per second, all threads together.

    fma: float32 multiply-adds; bf16_dot, int8_dot: dot-product instructions, or what does their work exactly where the
    CPU lacks them (AVX2: FMA, and vpmaddwd with vpaddd). read: one pass over a buffer. copy: one
    read, one write, the better of plain stores (`plain_copy`, which read what they overwrite) and streaming ones.
    Buffers are four times the last cache.
    """

    fma: float
    bf16_dot: float
    int8_dot: float
    read: float
    copy: float
    plain_copy: float
    threads: int
    buffer_bytes: int

    MEMORY: ClassVar[tuple[str, ...]] = ("read", "copy", "plain_copy")
    UNITS: ClassVar[dict[str, str]] = {
        "fma": "GFLOP/s",
        "bf16_dot": "GFLOP/s",
        "int8_dot": "Gop/s",
        "read": "GB/s",
        "copy": "GB/s",
        "plain_copy": "GB/s",
    }

    def best(self, other: Limits) -> Limits:
        """The higher of each: what holds a machine up makes limits lower, never higher."""
        return replace(self, **{name: max(getattr(self, name), getattr(other, name)) for name in self.UNITS})

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def measure_limits(*, repeats: int = 20, buffer_bytes: int | None = None, arithmetic: Limits | None = None) -> Limits:
    """The best of `repeats` passes each, with the active instruction set and number of threads.

    buffer_bytes: four times the last cache if None, at most 1 GiB. arithmetic: limits of arithmetic that were measured
    before and are taken from there.
    """
    from .. import _cpu, runtime

    if buffer_bytes is None:
        buffer_bytes = min(4 * last_cache(), 1 << 30)
    chunks = max(1, buffer_bytes // CHUNK_BYTES)
    threads = runtime.get_num_threads()
    limit = _cpu.limit
    passes = min(repeats, 10)
    plain, streamed = limit("copy", chunks, passes), limit("stream", chunks, passes)
    work = 16 * threads  # pieces, so that a thread that is held up leaves some to the others
    return Limits(
        fma=arithmetic.fma if arithmetic else limit("fma", work, repeats),
        bf16_dot=arithmetic.bf16_dot if arithmetic else limit("bf16_dot", work, repeats),
        int8_dot=arithmetic.int8_dot if arithmetic else limit("int8_dot", work, repeats),
        read=limit("read", chunks, passes),
        copy=max(plain, streamed),
        plain_copy=plain,
        threads=threads,
        buffer_bytes=chunks * CHUNK_BYTES,
    )
