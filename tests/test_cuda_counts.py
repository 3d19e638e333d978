"""What bench/NOTES.md says of kernels over rows and tokens (cuda_counts.py) is so. Runs with QKV_CUDA=emulated; what
follows from machine code needs qkv._cuda too."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable

import cuda_counts
import cuda_machine_code
import pytest
import qkv
from emulated import Emulator, emulator

__all__ = ["emulator"]  # a fixture

pytestmark = pytest.mark.skipif(not qkv.cuda.is_emulated(), reason="launches are counted by QKV_CUDA=emulated")

# Little's law: a multiprocessor's share of 4.2 TB/s, 32 GB/s, through a microsecond of latency.
IN_FLIGHT = 4.2e12 / 132 * 1e-6
# Counted: 1.16 and 1.14. Sorting has no conflicts; the chunks of a list lie anywhere, which would explain some of it.
WAVEFRONTS = {"sample, top_k and top_p": 1.17, "sample, bfloat16, top_p": 1.15}
NAMES = list(cuda_counts.cases()) if qkv.cuda.is_emulated() else []


@pytest.fixture(scope="module")
def counted(emulator: Emulator) -> Callable[[str], cuda_counts.Traffic]:
    """Of a case, counted once."""
    return functools.cache(lambda name: cuda_counts.traffic(cuda_counts.cases()[name], emulator))


@pytest.mark.parametrize("name", NAMES)
def test_memory_is_moved_once(name: str, counted: Callable[[str], cuda_counts.Traffic]) -> None:
    line = counted(name)
    assert 1 <= line.moved <= 1.05
    assert line.wavefronts is None or line.wavefronts <= WAVEFRONTS.get(name, 1.05)


@cuda_machine_code.needs_module
@cuda_machine_code.needs_tools
@pytest.mark.parametrize("name", NAMES)
def test_memory_is_kept_busy(name: str, counted: Callable[[str], cuda_counts.Traffic]) -> None:
    assert cuda_counts.occupancy(counted(name)).in_flight >= IN_FLIGHT


# A multiprocessor issues 128 instructions of threads a clock, of which 1.75 GHz are an H200's.
ISSUED = 128 * 1.75e9
SAMPLED = {"If": 4, "I6__half": 2, "I13__nv_bfloat16": 2}  # bytes of a number


def sampling_loops(kernel: cuda_machine_code.Kernel, itemsize: int) -> dict[str, list[float]]:
    """Instructions a number, all branches taken, of loops over what is held of a row, by what they do."""
    found: dict[str, list[float]] = {"load": [], "list": [], "list and weigh": [], "weigh": []}
    for loop in kernel.loops():

        def has(pattern: str, loop: list[str] = loop) -> int:
            return sum(bool(re.match(pattern, text)) for text in loop)

        loads, reads = has(r"LDG\.E\S*\.128"), has(r"LDS\.128")
        per = len(loop) / ((loads or reads or 1) * 16 / itemsize)
        if loads and has(r"STS\.128") and not has("MUFU"):
            found["load"].append(per)
        elif reads and not has("LDG"):
            weighs = has(r"MUFU\.EX2")
            if has("ATOMS") == reads:
                found["list and weigh" if weighs else "list"].append(per)
            elif weighs:
                found["weigh"].append(per)
    return found


@cuda_machine_code.needs_module
@cuda_machine_code.needs_tools
@pytest.mark.parametrize("family", ["sample_clusters", "sample_rows"])
@pytest.mark.parametrize("dtype", SAMPLED)
def test_sampling_is_not_bound_by_instructions(dtype: str, family: str) -> None:
    """With top_k, top_p or min_p a number is loaded, and compared and, for top_p, weighed once, and all else is done
    to the few that are listed: half of what can be issued while a number is moved, four fifths with top_p, are taken
    so. Without a filter it is weighed exactly, whatever the temperature: 13, where numbers of 16 bits leave 14."""
    (kernel,) = [k for k in cuda_machine_code.all_kernels() if k.arch == "sm_90a" and k.name.startswith(family + dtype)]
    most = ISSUED / (4.2e12 / 132 / SAMPLED[dtype])
    assert most == pytest.approx(7.04 * SAMPLED[dtype], rel=0.01)
    loops = sampling_loops(kernel, SAMPLED[dtype])
    assert all(len(of) == 1 for of in loops.values()), loops
    ((load,), (listed,), (weighed,), (all_weighed,)) = loops.values()
    assert load + listed <= 0.5 * most
    assert load + weighed <= 0.8 * most
    assert load + all_weighed <= 13
