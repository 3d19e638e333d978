"""What bench/NOTES.md says of kernels over rows and tokens (cuda_counts.py) is so. Runs with QKV_CUDA=emulated; what
follows from machine code needs qkv._cuda too."""

from __future__ import annotations

import functools
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
NAMES = list(cuda_counts.cases()) if qkv.cuda.is_emulated() else []


@pytest.fixture(scope="module")
def counted(emulator: Emulator) -> Callable[[str], cuda_counts.Traffic]:
    """Of a case, counted once."""
    return functools.cache(lambda name: cuda_counts.traffic(cuda_counts.cases()[name], emulator))


@pytest.mark.parametrize("name", NAMES)
def test_memory_is_moved_once(name: str, counted: Callable[[str], cuda_counts.Traffic]) -> None:
    line = counted(name)
    assert 1 <= line.moved <= 1.05
    assert line.wavefronts is None or line.wavefronts <= 1.05


@cuda_machine_code.needs_module
@cuda_machine_code.needs_tools
@pytest.mark.parametrize("name", NAMES)
def test_memory_is_kept_busy(name: str, counted: Callable[[str], cuda_counts.Traffic]) -> None:
    assert cuda_counts.occupancy(counted(name)).in_flight >= IN_FLIGHT
