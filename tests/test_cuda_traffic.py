"""What the kernels that are shipped cost the memory system, counted in emulation: wavefronts of shared memory (bank
conflicts) and sectors of global memory (coalescing) against the fewest possible, bytes against the size of the
operands, matrix instructions against the size of the product. Runs with QKV_CUDA=emulated."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import qkv
from emulated import Emulator, drawn, emulator, packed

__all__ = ["emulator"]  # a fixture

pytestmark = pytest.mark.skipif(not qkv.cuda.is_emulated(), reason="QKV_CUDA=emulated runs this")

F16, F32, BF16 = np.float16, np.float32, ml_dtypes.bfloat16
SECTOR = 32  # bytes
MMA = 16 * 8 * 16  # multiplications of an mma.m16n8k16


def counters(emulator: Emulator, call: Callable[[], Any]) -> dict[str, Any]:
    """Of each kernel, by its name."""
    out, report = emulator.run(call, "count=1,check=0")
    assert out is not None, report["first"]
    return {
        re.sub(r"^_ZN3qkv4cuda(?:\d+_GLOBAL__N__\w+?_cu_[0-9a-f]{8})?\d+", "", name): c
        for name, c in report["kernels"].items()
    }


# ---- rows: read once, written once

ROWS: dict[str, tuple[Callable[[Any], Any], tuple[int, int], int]] = {  # op, (rows, n), how often x is read
    "softmax": (qkv.softmax, (8, 1024), 1),
    "softmax_many": (qkv.softmax, (4, 20000), 1),
    "softmax_longest": (qkv.log_softmax, (1, 400000), 2),
    "layer_norm": (qkv.layer_norm, (8, 1024), 1),
    "layer_norm_many": (qkv.layer_norm, (4, 20000), 1),
    "layer_norm_longest": (qkv.layer_norm, (1, 400000), 3),
    "rms_norm": (qkv.rms_norm, (8, 4096), 1),
    "gelu": (qkv.gelu, (64, 1024), 1),
    "silu": (qkv.silu, (3, 1040), 1),
}


@pytest.mark.parametrize("dtype", [BF16, F16, F32])
@pytest.mark.parametrize("name", ROWS)
def test_rows_are_read_and_written_once(name: str, dtype: Any, emulator: Emulator) -> None:
    op, shape, reads = ROWS[name]
    x = drawn(*shape, dtype=dtype)
    sectors = x.nbytes // SECTOR
    (kernel,) = counters(emulator, lambda: op(x)).values()
    accesses, moved, _ = kernel["global_load"]
    # each warp of layer_norm reads the row's first element
    assert reads * sectors <= moved <= reads * sectors + shape[0] * 32
    assert kernel["global_store"][1] == sectors
    assert accesses <= 1.15 * reads * x.nbytes / (32 * 16) + shape[0] * 32  # 16 bytes a lane


@pytest.mark.parametrize("dtype", [BF16, F32])
def test_a_fused_residual_costs_one_read_and_one_write(dtype: Any, emulator: Emulator) -> None:
    x, residual, weight = drawn(16, 1024, dtype=dtype), drawn(16, 1024, dtype=dtype), drawn(1024, dtype=dtype)
    (kernel,) = counters(emulator, lambda: qkv.rms_norm(x, weight, residual=residual)[0]).values()
    sectors = x.nbytes // SECTOR
    assert kernel["global_store"][1] == 2 * sectors
    # x, residual, and of each row the weight, which the first cache holds; the first elements by each of a row's warps
    assert 3 * sectors <= kernel["global_load"][1] <= 3 * sectors + 16 * 2 * 2


# ---- products and attention: every kind of access against its own ideal

CALLS: dict[str, Callable[[], Any]] = {
    "matmul": lambda: qkv.matmul(drawn(256, 256), drawn(256, 256)),
    "matmul_transposed": lambda: qkv.linear(drawn(256, 256), drawn(256, 256)),
    "matmul_wide": lambda: qkv.matmul(drawn(512, 128, dtype=F16), drawn(128, 512, dtype=F16)),
    "matmul_f32": lambda: qkv.matmul(drawn(128, 256, dtype=F32), drawn(256, 128, dtype=F32)),
    "one_row": lambda: qkv.linear(drawn(1, 1024), drawn(256, 1024)),
    "eight_rows": lambda: qkv.linear(drawn(8, 1024), drawn(256, 1024)),
    "few_rows": lambda: qkv.linear(drawn(32, 1024), drawn(256, 1024)),
    "few_rows_plain": lambda: qkv.matmul(drawn(8, 1024), drawn(1024, 256)),
    "gelu_fused": lambda: qkv.linear(
        drawn(256, 256), drawn(256, 256), drawn(256), activation="gelu", residual=drawn(256, 256)
    ),
    "int8_one_row": lambda: qkv.linear(drawn(1, 1024), packed("int8", 256, 1024)),
    "int8": lambda: qkv.linear(drawn(64, 1024), packed("int8", 256, 1024)),
    "int4_one_row": lambda: qkv.linear(drawn(1, 1024), packed("int4", 256, 1024)),
    "int4": lambda: qkv.linear(drawn(64, 1024), packed("int4", 256, 1024)),
    "attention_32": lambda: qkv.attention(*(drawn(1, 1, 256, 32) for _ in range(3))),
    "attention_64": lambda: qkv.attention(*(drawn(1, 2, 256, 64) for _ in range(3)), causal=True),
    "attention_96": lambda: qkv.attention(*(drawn(1, 1, 256, 96) for _ in range(3))),
    "attention_128": lambda: qkv.attention(*(drawn(1, 1, 256, 128) for _ in range(3)), causal=True),
    "attention_256": lambda: qkv.attention(*(drawn(1, 1, 128, 256) for _ in range(3))),
    "attention_softcap": lambda: qkv.attention(
        *(drawn(1, 1, 256, 128) for _ in range(3)), softcap=30.0, window=(100, 0)
    ),
    "attention_decode": lambda: qkv.attention(drawn(1, 8, 1, 128), drawn(1, 1, 2048, 128), drawn(1, 1, 2048, 128)),
    "attention_f32": lambda: qkv.attention(*(drawn(1, 1, 128, 64, dtype=F32) for _ in range(3))),
}
KINDS = ("shared_load", "shared_store", "matrix_load", "matrix_store", "global_load", "global_store")
# Where more than 8 % above the ideal is known, by kernel and kind of access.
KNOWN = {
    # float32, for checking: scores are transposed through shared memory
    ("attention_simt", "shared_store"): 2.5,
    # scales and biases of eight neighbouring columns are read one by one, from the first cache
    ("merge_kernel", "global_load"): 3.3,
    # once, when a weight comes to the device
    ("pack_kernel", "global_load"): 8.1,
}


@pytest.mark.parametrize("name", CALLS)
def test_no_bank_conflicts_and_whole_sectors(name: str, emulator: Emulator) -> None:
    for kernel, c in counters(emulator, CALLS[name]).items():
        family = re.split(r"I[0-9NfL]", kernel)[0]
        assert any(c[kind][0] for kind in KINDS)
        for kind in KINDS:
            _, moved, ideal = c[kind]
            assert moved <= KNOWN.get((family, kind), 1.08) * ideal, (kernel, kind, moved, ideal)


@pytest.mark.parametrize("kind, bits", [("bf16", 16.0), ("int8", 8.0), ("int4", 5.0)])
def test_one_row_reads_the_weight_once(kind: str, bits: float, emulator: Emulator) -> None:
    """int4: 4 bits, and a pair of float16 for 32 weights."""
    x, n, k = drawn(1, 2048), 512, 2048
    weight = drawn(n, k) if kind == "bf16" else packed(kind, n, k)
    (kernel,) = counters(emulator, lambda: qkv.linear(x, weight)).values()
    want = n * k * bits / 8 / SECTOR
    assert want <= kernel["global_load"][1] <= 1.15 * want + kernel["blocks"] * x.nbytes / SECTOR


# ---- work


@pytest.mark.parametrize("m, n, k", [(256, 256, 256), (512, 512, 64), (128, 384, 320)])
def test_a_product_takes_no_more_matrix_instructions_than_it_has_work(
    m: int, n: int, k: int, emulator: Emulator
) -> None:
    (kernel,) = counters(emulator, lambda: qkv.matmul(drawn(m, k), drawn(k, n))).values()
    assert kernel["mma"] == m * n * k / MMA


def attention_mma(emulator: Emulator, s: int, d: int, **options: Any) -> float:
    """Matrix instructions of attention over what the full square takes."""
    q, k, v = (drawn(1, 1, s, d) for _ in range(3))
    kernels = counters(emulator, lambda: qkv.attention(q, k, v, **options))
    return sum(c["mma"] for c in kernels.values()) / (2 * s * s * d / MMA)


@pytest.mark.parametrize("d", [64, 128])
def test_attention_costs_what_is_attended_to(d: int, emulator: Emulator) -> None:
    s = 1024
    assert attention_mma(emulator, s, d) == 1
    assert attention_mma(emulator, s, d, causal=True) <= 0.5 + 128 / s
    # a tile of rows sees the window and its own length, up to whole tiles of keys
    assert attention_mma(emulator, s, d, window=(64, 0)) <= (64 + 128 + 64) / s
    assert attention_mma(emulator, s, d, kv_lengths=np.array([256])) <= 256 / s
