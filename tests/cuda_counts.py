"""What the kernels over rows and tokens cost a multiprocessor of an H200, counted: python tests/cuda_counts.py prints
the table of bench/NOTES.md. Needs a build with qkv._cuda_emulated, which launches and counts, and for what machine code
says one with qkv._cuda, which is read with cuobjdump.

moved: sectors of global memory, counted in emulation, over the bytes that must be read and written once.
wavefronts: of shared memory, counted likewise, over the fewest possible.
threads: of the blocks that fit a multiprocessor, by registers, shared memory and the launch.
in flight: what a thread, and all of them, ask global memory for before the first load is waited for, by the order of
loads in the machine code. At most: weights and a residual, which a call may do without, are counted too; but no more
than the blocks load in all.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Any, NamedTuple

if __name__ == "__main__":
    os.environ.setdefault("QKV_CUDA", "emulated")

import ml_dtypes
import numpy as np
import qkv
from cuda_machine_code import Kernel, read_one
from emulated import Emulator, drawn
from qkv import cuda_ops

BF16, F32 = ml_dtypes.bfloat16, np.float32
SECTOR, WARP = 32, 32  # bytes, threads
REGISTERS, THREADS, BLOCKS, SHARED = 65536, 2048, 32, 228 * 1024  # of a multiprocessor


class Case(NamedTuple):
    call: Callable[[], Any]
    least: int  # bytes read and written


def row_case(op: Callable[[Any], Any], rows: int, n: int, dtype: Any = BF16) -> Case:
    x = drawn(rows, n, dtype=dtype)
    return Case(lambda: op(x), 2 * x.nbytes)


def cases() -> dict[str, Case]:
    x, residual = drawn(8, 4096), drawn(8, 4096)
    ids, table = qkv.cuda.array(np.arange(3, 64, 3)), drawn(64, 4096)
    heads, angles = drawn(16, 32, 128), drawn(16, 1, 64, dtype=F32)
    logits, half = drawn(2, 50304, dtype=F32), drawn(2, 50304)
    u = qkv.cuda.array(np.array([0.3, 0.9]))

    def sampled(x: Any, **filters: Any) -> Callable[[], Any]:
        return lambda: cuda_ops.sample(x, u, **filters)

    def turned(interleaved: bool) -> Callable[[], Any]:
        return lambda: qkv.cuda.module().rotary(heads, angles, 1.0, 128, interleaved, 0)

    return {
        "layer_norm, 4096": row_case(qkv.layer_norm, 8, 4096),
        "layer_norm, 32768": row_case(qkv.layer_norm, 8, 32768),
        "layer_norm, float32, 4096": row_case(qkv.layer_norm, 8, 4096, F32),
        "rms_norm, 768": row_case(qkv.rms_norm, 8, 768),
        "rms_norm with residual, 4096": Case(lambda: qkv.rms_norm(x, residual=residual)[0], 4 * x.nbytes),
        "softmax, 4096": row_case(qkv.softmax, 8, 4096),
        "softmax, 32768": row_case(qkv.softmax, 8, 32768),
        "softmax, float32, 4096": row_case(qkv.softmax, 8, 4096, F32),
        "gelu": row_case(qkv.gelu, 8, 4096),
        "gelu, float32": row_case(qkv.gelu, 8, 4096, F32),
        "silu": row_case(qkv.silu, 8, 4096),
        "embedding": Case(lambda: qkv.embedding(ids, table), 2 * 21 * 8192),
        "rotary": Case(turned(False), 2 * heads.nbytes),
        "rotary, interleaved": Case(turned(True), 2 * heads.nbytes),
        "argmax, float32": Case(lambda: cuda_ops.argmax(logits), logits.nbytes),
        "sample, float32": Case(sampled(logits), logits.nbytes),
        "sample, top_k and top_p": Case(sampled(logits, top_k=50, top_p=0.9), logits.nbytes),
        "sample, bfloat16, top_p": Case(sampled(half, top_p=0.9, temperature=0.2), half.nbytes),
    }


def blocks_at_once(kernel: Kernel, threads: int, dynamic: int) -> int:
    of_warp = -(-kernel.usage["REG"] * WARP // 256) * 256
    warps = -(-threads // WARP)
    shared = max(-(-(kernel.usage["SHARED"] + dynamic) // 128) * 128, 1024)  # 1 KB of it is the system's
    return min(REGISTERS // (of_warp * warps), THREADS // (warps * WARP), BLOCKS, SHARED // shared)


def bytes_ahead(kernel: Kernel) -> int:
    """Of a thread: loads of global memory that stand in the code before any of them is used, at most."""
    under_way: list[tuple[range, int]] = []
    most = 0
    for _, text in kernel.code:
        named = [int(n) for n in re.findall(r"\bR(\d+)\b", text)]
        under_way = [load for load in under_way if not any(n in load[0] for n in named)]
        if load := re.match(r"LDG\.E(\S*) R(\d+)", text):
            words = 4 if ".128" in load[1] else 2 if ".64" in load[1] else 1
            under_way.append((range(int(load[2]), int(load[2]) + words), 4 * words))
            most = max(most, sum(size for _, size in under_way))
    return most


class Traffic(NamedTuple):
    """What the emulator counts."""

    kernel: str  # mangled: the one that loads most
    threads: int  # of a block
    dynamic: int  # bytes of shared memory
    loaded: float  # bytes of a block, from its beginning to its end
    moved: float
    wavefronts: float | None

    def cells(self) -> list[str]:
        return [f"{self.moved:.2f}", f"{self.wavefronts:.2f}" if self.wavefronts else "-"]


def traffic(case: Case, emulator: Emulator) -> Traffic:
    out, report = emulator.run(case.call, "count=1,check=0,cc=90")
    assert out is not None, report["first"]
    counted = report["kernels"]
    main = max(counted, key=lambda k: counted[k]["global_load"][1])
    c = counted[main]
    moved = sum(c[kind][1] for c in counted.values() for kind in ("global_load", "global_store")) * SECTOR
    waves = [sum(c[kind][i] for kind in ("shared_load", "shared_store")) for i in (1, 2)]
    loaded = c["global_load"][1] * SECTOR / c["blocks"]
    ratio = waves[0] / waves[1] if waves[1] else None
    return Traffic(main, c["threads"], c["dynamic_shared"], loaded, moved / case.least, ratio)


class Occupancy(NamedTuple):
    """What follows from the machine code of the kernel, launched like that."""

    family: str
    registers: int
    shared: int  # bytes of a block
    blocks: int  # of a multiprocessor
    threads: int  # of a block
    ahead: int  # bytes of a thread
    in_flight: int  # bytes of a multiprocessor

    def cells(self) -> list[str]:
        return [
            self.family,
            str(self.registers),
            f"{self.shared / 1024:.1f}",
            f"{self.blocks} x {self.threads}",
            f"{self.ahead} B, {self.in_flight / 1024:.0f} KB",
        ]


def occupancy(launched: Traffic) -> Occupancy:
    kernel = read_one("sm_90a", launched.kernel)
    blocks = blocks_at_once(kernel, launched.threads, launched.dynamic)
    ahead = bytes_ahead(kernel)
    in_flight = int(min(ahead * launched.threads, launched.loaded)) * blocks
    shared = kernel.usage["SHARED"] + launched.dynamic
    return Occupancy(kernel.family, kernel.usage["REG"], shared, blocks, launched.threads, ahead, in_flight)


def main() -> None:
    emulator = Emulator()
    print("| op | kernel | registers | shared, KB | threads | in flight | moved | wavefronts |")
    print("|---|---|---|---|---|---|---|---|")
    for name, case in cases().items():
        counted = traffic(case, emulator)
        print(f"| {' | '.join([name, *occupancy(counted).cells(), *counted.cells()])} |", flush=True)


if __name__ == "__main__":
    main()
