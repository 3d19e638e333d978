"""What bench/NOTES.md says of kernels over rows and tokens (cuda_counts.py) is so. Runs with QKV_CUDA=emulated."""

from __future__ import annotations

import cuda_counts
import cuda_machine_code
import pytest
import qkv
from emulated import Emulator, emulator

__all__ = ["emulator"]  # a fixture

pytestmark = [
    pytest.mark.skipif(not qkv.cuda.is_emulated(), reason="QKV_CUDA=emulated runs this"),
    *cuda_machine_code.needed,
]

# Little's law: a multiprocessor's share of 4.2 TB/s, 32 GB/s, through a microsecond of latency.
IN_FLIGHT = 4.2e12 / 132 * 1e-6
NAMES = list(cuda_counts.cases()) if qkv.cuda.is_emulated() else []


@pytest.mark.parametrize("name", NAMES)
def test_memory_is_moved_once_and_kept_busy(name: str, emulator: Emulator) -> None:
    line = cuda_counts.count(cuda_counts.cases()[name], emulator)
    assert 1 <= line.moved <= 1.05
    assert line.in_flight >= IN_FLIGHT
    assert line.wavefronts is None or line.wavefronts <= 1.05
