"""Of the kernels that are shipped no barrier, wait or fence can be left out unnoticed: the emulator reports a fault, or
the result changes. So each is needed, and the checker sees it when it is not there. Runs with QKV_CUDA=emulated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import qkv
from cuda_sites import ordering_sites
from emulated import Emulator, drawn, emulator, on_path, packed, paged
from qkv import cuda_ops

__all__ = ["emulator"]  # a fixture

pytestmark = pytest.mark.skipif(not qkv.cuda.is_emulated(), reason="QKV_CUDA=emulated runs this")

SCHEDULES = ["seed=1", "seed=2,async=late", "schedule=in_order,async=at_issue", "schedule=reverse,async=late", "seed=5"]
# Of which none of the calls below shows that it is needed: file -> how many.
UNNEEDED = {"attention_mma.cuh": 1}


F32 = np.float32
U = np.array([0.3, 0.9])
CALLS: dict[str, Callable[[], Any]] = {
    "softmax": lambda: qkv.softmax(drawn(5, 777)),
    "softmax_f32": lambda: qkv.softmax(drawn(2, 9000, dtype=F32)),
    "softmax_long": lambda: qkv.log_softmax(drawn(1, 70000)),
    "layer_norm": lambda: qkv.layer_norm(drawn(5, 777), residual=drawn(5, 777))[0],
    "layer_norm_f32": lambda: qkv.layer_norm(drawn(2, 9000, dtype=F32)),
    "rms_norm": lambda: qkv.rms_norm(drawn(3, 2048)),
    "argmax": lambda: cuda_ops.argmax(drawn(2, 9000, dtype=F32)),
    "top_k": lambda: qkv.ops.top_k(drawn(2, 3000, dtype=F32), 7)[1],
    "top_k_segments": lambda: qkv.ops.top_k(drawn(1, 9000, dtype=F32), 7)[1],
    "top_k_many": lambda: qkv.ops.top_k(drawn(1, 2500, dtype=F32), 1100)[1],
    "sample": lambda: cuda_ops.sample(drawn(2, 3000, dtype=F32), U),
    "sample_filtered": lambda: cuda_ops.sample(drawn(2, 3000, dtype=F32), U, top_k=300, top_p=0.7),
    "sample_listed": lambda: cuda_ops.sample(drawn(2, 3000, dtype=F32), U, top_k=60),
    "sample_weighed": lambda: cuda_ops.sample(drawn(2, 3000), U, top_p=0.5, temperature=0.3),
    "additive_attention": lambda: qkv.additive_attention(
        *(drawn(1, n, 8, dtype=F32) for n in (5, 150, 150)),
        drawn(12, 8, dtype=F32),
        drawn(12, 8, dtype=F32),
        drawn(12, dtype=F32),
        return_weights=True,
    )[1],
    "matmul_96": lambda: qkv.matmul(drawn(150, 96), drawn(96, 136)),
    "matmul_160": lambda: qkv.matmul(drawn(150, 160), drawn(160, 136)),
    "matmul_f32": lambda: qkv.matmul(drawn(150, 72, dtype=F32), drawn(72, 136, dtype=F32)),
    "linear_1": lambda: qkv.linear(drawn(1, 520), drawn(136, 520)),
    "linear_8": lambda: qkv.linear(drawn(8, 520), drawn(136, 520)),
    "linear_200": lambda: qkv.linear(drawn(150, 200), drawn(136, 200), activation="gelu"),
    "int8_1": lambda: qkv.linear(drawn(1, 520), packed("int8", 136, 520)),
    "int8_40": lambda: qkv.linear(drawn(40, 520), packed("int8", 136, 520)),
    "int4_1": lambda: qkv.linear(drawn(1, 512), packed("int4", 136, 512)),
    "int4_40": lambda: qkv.linear(drawn(40, 512), packed("int4", 136, 512)),
    "rotary": lambda: qkv.rotary(drawn(9, 3, 160), qkv.cuda.array(np.arange(9))),
    "attention": lambda: qkv.attention(drawn(1, 2, 130, 64), drawn(1, 1, 200, 64), drawn(1, 1, 200, 64), causal=True),
    "attention_128": lambda: qkv.attention(drawn(1, 1, 70, 128), drawn(1, 1, 300, 128), drawn(1, 1, 300, 128)),
    "attention_f32": lambda: qkv.attention(*(drawn(1, 1, 100, 64, dtype=F32) for _ in range(3))),
    "attention_decode": lambda: qkv.attention(drawn(1, 4, 1, 64), drawn(1, 1, 1500, 64), drawn(1, 1, 1500, 64)),
    "attention_paged": lambda: paged(8, [300, 20], D=64),
    "attention_paged_int8": lambda: paged(8, [300, 20], np.int8, D=64),
    "attention_paged_decode": lambda: paged(8, [700, 900], np.float16),
    "attention_paged_f32": lambda: paged(4, [300, 20], np.float32, D=64, q=F32),
    "attention_weights": lambda: qkv.attention(
        *(drawn(1, 1, 70, 64) for _ in range(3)), causal=True, return_weights=True
    )[1],
}


def by(kernel: str, call: Callable[[], Any], **cuts: int) -> Callable[[], Any]:
    """The same by a kernel of products that the plan would not choose for what is so small."""

    def run() -> Any:
        qkv.cuda.module().force_gemm(kernel, **cuts)
        try:
            return call()
        finally:
            qkv.cuda.module().force_gemm()

    return run


# By the kernels that only Hopper has; the others run as on a GPU before it.
HOPPER: dict[str, Callable[[], Any]] = {
    "wgmma_large": by(
        "wgmma_large", lambda: qkv.linear(drawn(300, 400), drawn(600, 400), drawn(600), residual=drawn(300, 600))
    ),
    "wgmma_medium": by("wgmma_medium", lambda: qkv.matmul(drawn(600, 328), drawn(328, 264))),
    # so short that a warpgroup can be a tile ahead of the other
    "wgmma_small": by("wgmma_small", lambda: qkv.linear(drawn(300, 136), drawn(264, 136), drawn(264))),
    "wgmma_odd": by(
        "wgmma_medium",
        lambda: qkv.linear(drawn(300, 80), drawn(1001, 80), residual=drawn(300, 1008)[:, :1001]),
    ),
    "wgmma_split": by("wgmma_small", lambda: qkv.linear(drawn(70, 1024), drawn(136, 1024)), splits=2),
    # a row by two blocks
    "sample_cluster": lambda: cuda_ops.sample(drawn(1, 8200, dtype=F32), U[:1]),
    "sample_cluster_filtered": lambda: cuda_ops.sample(drawn(1, 8200, dtype=F32), U[:1], top_k=300, top_p=0.7),
    "sample_cluster_weighed": lambda: cuda_ops.sample(drawn(1, 8200, dtype=F32), U[:1], top_p=0.5, temperature=0.3),
    # More tiles of rows than multiprocessors; lengths whose last tile is worked on in shared memory.
    "attention_hopper": on_path(
        "hopper",
        lambda: qkv.attention(
            drawn(2, 2, 200, 64), drawn(2, 1, 400, 64), drawn(2, 1, 400, 64), kv_lengths=np.array([390, 130])
        ),
    ),
    "attention_hopper_128": on_path(
        "hopper",
        lambda: qkv.attention(drawn(1, 3, 100, 128), drawn(1, 1, 420, 128), drawn(1, 1, 420, 128), softcap=20.0),
    ),
}


def noticed(emulator: Emulator, call: Callable[[], Any], device: str) -> dict[str, bool]:
    """Source line and instruction -> whether it was missed, of all that were reached."""
    want, report = emulator.run(call, f"count=1,{device}")
    assert want is not None, report["first"]
    found: dict[str, bool] = {}
    for kernel in report["kernels"]:
        for site in ordering_sites(emulator.library, kernel):
            for configuration in SCHEDULES:
                out, report = emulator.run(call, f"{configuration},{device},{site.leave_out()}")
                if out != want:
                    break
            if report["left_out"]:
                found[site.place()] = found.get(site.place(), False) or out != want
    return found


@pytest.mark.parametrize("device, calls", [("cc=80", CALLS), ("cc=90", HOPPER)], ids=["portable", "hopper"])
def test_nothing_can_be_left_out(device: str, calls: dict[str, Callable[[], Any]], emulator: Emulator) -> None:
    everywhere: dict[str, bool] = {}
    for name, call in calls.items():
        found = noticed(emulator, call, device)
        print(f"{name}: {sum(found.values())} of {len(found)} noticed")
        assert found
        for place, was in found.items():  # one of several shapes may not need what others do
            everywhere[place] = everywhere.get(place, False) or was
    missed = sorted(place for place, was in everywhere.items() if not was)
    assert len(everywhere) > 25
    for file in {place.split(":")[0] for place in missed}:
        assert sum(place.startswith(f"{file}:") for place in missed) <= UNNEEDED.get(file, 0), missed
