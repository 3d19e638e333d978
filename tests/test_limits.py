"""The peaks that benchmarks are compared with: there on every ISA, but for streaming stores."""

from __future__ import annotations

import pytest
import qkv
from qkv.bench import measure_limits
from qkv.ops import _cpu


@pytest.mark.parametrize("name", ["fma", "bf16_dot", "int8_dot", "read", "copy", "stream"])
def test_each_limit(isa: str, name: str) -> None:
    rate = _cpu.limit(name, 2, 2)
    assert (rate > 0) == ((name, isa) != ("stream", "scalar"))
    assert rate < 2e13  # of two threads: more means that the compiler has taken the work out


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="unknown name 'flops'"):
        _cpu.limit("flops", 1, 1)
    for chunks in (0, -1, 2**40):
        with pytest.raises(ValueError, match="chunks"):
            _cpu.limit("read", chunks, 1)


def test_limits_of_the_machine() -> None:
    limits = measure_limits(repeats=1, buffer_bytes=1 << 20)
    assert limits.threads == qkv.get_num_threads()
    assert limits.buffer_bytes == 1 << 20
    assert min(limits.fma, limits.bf16_dot, limits.int8_dot, limits.read, limits.copy, limits.plain_copy) > 0
