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
from emulated import Emulator, drawn, emulator, packed, paged, paged_arguments
from qkv import cuda_ops, ops
from qkv.cuda_ops import rows

__all__ = ["emulator"]  # a fixture

pytestmark = pytest.mark.skipif(not qkv.cuda.is_emulated(), reason="QKV_CUDA=emulated runs this")

F16, F32, BF16 = np.float16, np.float32, ml_dtypes.bfloat16
SECTOR = 32  # bytes
MMA = 16 * 8 * 16  # multiplications of an mma.m16n8k16


def counters(emulator: Emulator, call: Callable[[], Any], device: str = "cc=80") -> dict[str, Any]:
    """Of each kernel, by its name; as on a GPU of this kind."""
    out, report = emulator.run(call, f"count=1,check=0,{device}")
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


# ---- tokens: what is read and written is what there is, and ids, slots and angles

HEADS, WIDTH = 8, 128


def integers(*values: int) -> Any:
    return qkv.cuda.array(np.array(values))


def written(dtype: Any) -> Callable[[], Any]:
    """paged_write of 24 tokens."""
    k, v = drawn(24, HEADS, WIDTH), drawn(24, HEADS, WIDTH)
    caches = {f"{n}_cache": qkv.cuda.zeros((4, 16, HEADS, WIDTH), dtype) for n in "kv"}
    if dtype == np.int8:
        caches |= {f"{n}_scale": qkv.cuda.zeros((4, 16, HEADS)) for n in "kv"}
    slots = integers(*np.random.default_rng(1).permutation(64)[:24])

    def call() -> Any:
        qkv.paged_write(k, v, slots=slots, **caches)
        return caches["k_cache"]

    return call


def copied() -> Callable[[], Any]:
    cache = drawn(6, 16, HEADS, WIDTH)

    def call() -> Any:
        ops.copy_blocks([cache], [0, 1], [4, 5], 16)
        return cache

    return call


def fused() -> tuple[Any, Any]:
    """q of a fused product, where it lies: (8, HEADS, WIDTH); angles."""
    product = drawn(8, 3 * HEADS * WIDTH)
    q = product._as_strided((8, HEADS, WIDTH), (3 * HEADS * WIDTH, WIDTH, 1), 0)
    return q, drawn(8, 1, WIDTH // 2, dtype=F32)


def bind(op: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
    return lambda: op(*arguments)


TOKENS, EACH = 24 * HEADS * WIDTH, 8 * HEADS * WIDTH
# What makes the call; bytes read and written; share that may be read beside them.
PASSES: dict[str, tuple[Callable[[], Callable[[], Any]], int, int, float]] = {
    "paged_write": (lambda: written(BF16), 4 * TOKENS, 4 * TOKENS, 0.05),
    "paged_write_f32": (lambda: written(F32), 4 * TOKENS, 8 * TOKENS, 0.05),
    "paged_write_int8": (lambda: written(np.int8), 4 * TOKENS, 2 * TOKENS + 24 * 2 * HEADS * SECTOR, 0.05),
    "copy_blocks": (copied, 2 * 16 * HEADS * WIDTH * 2, 2 * 16 * HEADS * WIDTH * 2, 0.02),
    "embedding": (lambda: bind(qkv.embedding, integers(*range(3, 60, 3)), drawn(64, 1024)), 19 * 2048, 19 * 2048, 0.03),
    "embedding_f32": (lambda: bind(rows, integers(*range(3, 60, 3)), drawn(64, 768), F32), 19 * 1536, 19 * 3072, 0.03),
    "rotate": (lambda: bind(ops.rotate, *fused(), 1.0), 2 * EACH, 2 * EACH, 0.15),
    "rotary_interleaved": (
        lambda: bind(qkv.cuda.module().rotary, *fused(), 1.0, WIDTH, True, 0),
        2 * EACH,
        2 * EACH,
        0.15,
    ),
    "scaled_sum": (lambda: bind(ops.scaled_sum, drawn(9, 1024), 0.5, drawn(9, 1024)), 2 * 9 * 2048, 9 * 2048, 0.0),
    "scaled_sum_wide": (
        lambda: bind(ops.scaled_sum, drawn(9, 1024), 0.5, drawn(9, 1024, dtype=F32)),
        9 * (2048 + 4096),
        9 * 2048,
        0.67,  # other's 32 bytes beside 16 of x in two halves, the second from the first cache
    ),
}


@pytest.mark.parametrize("name", PASSES)
def test_tokens_are_read_and_written_once(name: str, emulator: Emulator) -> None:
    make, reads, writes, beside = PASSES[name]
    (kernel,) = counters(emulator, make()).values()
    _, moved, _ = kernel["global_load"]
    assert reads / SECTOR <= moved <= (1 + beside) * reads / SECTOR + 32 * kernel["blocks"]
    assert kernel["global_store"][1] <= 1.01 * writes / SECTOR
    for kind in ("shared_load", "shared_store"):
        _, wavefronts, ideal = kernel[kind]
        assert wavefronts <= 1.02 * ideal, kind


@pytest.mark.parametrize("dtype", [BF16, F32])
def test_the_largest_of_a_row_is_found_in_one_read(dtype: Any, emulator: Emulator) -> None:
    """By two kernels, whose second reads what little the first has left."""
    x = drawn(2, 100_000, dtype=dtype)
    kernels = counters(emulator, lambda: cuda_ops.argmax(x))
    assert len(kernels) == 2
    first, second = sorted((k["global_load"] for k in kernels.values()), reverse=True)
    sectors = x.nbytes // SECTOR
    assert sectors <= first[1] <= 1.001 * sectors + 16
    assert second[1] <= 0.01 * sectors


@pytest.mark.parametrize("k", [2, 256])
@pytest.mark.parametrize("dtype", [BF16, F32])
def test_a_few_are_selected_without_bank_conflicts(dtype: Any, k: int, emulator: Emulator) -> None:
    """Rows of any alignment. Where 256 are sorted, only some lanes of a warp store at a time."""
    x = drawn(2, 5003, dtype=dtype)
    (kernel,) = counters(emulator, lambda: ops.top_k(x, k)[1]).values()
    for kind in ("shared_load", "shared_store"):
        accesses, wavefronts, ideal = kernel[kind]
        assert accesses > 0 and wavefronts <= ideal * (1 if k == 2 else 1.1), kind


FILTERS: list[dict[str, Any]] = [{}, {"min_p": 0.1}, {"top_k": 50}, {"top_p": 0.9}]


@pytest.mark.parametrize("device, blocks", [("cc=80", 2), ("cc=90", 4)])
@pytest.mark.parametrize("dtype", [BF16, F32])
def test_sampling_reads_a_row_once(dtype: Any, device: str, blocks: int, emulator: Emulator) -> None:
    """Whatever the filters: it stays in shared memory, which is read without conflicts, but for some 1100 wavefronts a
    row where a filter lists what is left (sorting has none; a list's chunks lie anywhere). On Hopper a row has as many
    blocks as there are multiprocessors for (here four)."""
    x, u = drawn(2, 30_000, dtype=dtype), np.array([0.2, 0.8])
    sectors = x.nbytes // SECTOR
    for filters in FILTERS:
        (kernel,) = counters(emulator, lambda filters=filters: cuda_ops.sample(x, u, **filters), device).values()
        assert kernel["blocks"] == blocks
        assert sectors <= kernel["global_load"][1] <= 1.01 * sectors + 64
        for kind in ("shared_load", "shared_store"):
            _, wavefronts, ideal = kernel[kind]
            assert wavefronts <= 1.05 * ideal + (x.shape[0] * 1100 if filters else 0), (filters, kind)


@pytest.mark.parametrize("rows, blocks", [(1, 8), (4, 32)])
def test_few_rows_are_sampled_by_many_multiprocessors(rows: int, blocks: int, emulator: Emulator) -> None:
    """An eighth of a row each, which is read by as many at once."""
    x, u = drawn(rows, 50_304, dtype=F32), np.full(rows, 0.5)
    (kernel,) = counters(emulator, lambda: cuda_ops.sample(x, u, top_k=50, top_p=0.9), "cc=90,sms=132").values()
    assert kernel["blocks"] == blocks
    assert x.nbytes / SECTOR <= kernel["global_load"][1] <= x.nbytes / SECTOR + 16 * blocks  # each warp reads u


@pytest.mark.parametrize(
    "filters, reads",
    [
        ({}, 1 + 1 / 16),
        ({"min_p": 0.5}, 1),
        ({"min_p": 0.1}, 2 + 1 / 16),
        ({"top_k": 50}, 1),
        ({"top_p": 0.9, "temperature": 0.2}, 1),
        ({"top_p": 0.9}, 6),
    ],
    ids=str,
)
def test_sampling_reads_again_what_there_is_no_room_for(
    filters: dict[str, Any], reads: float, emulator: Emulator
) -> None:
    """A row of 240 KB by a block of sm_80, which has 163 KB: the rest is read to be weighed and, a sixteenth of it,
    for the token; with a filter, once, for the list of what may be left. Where that has no room for what
    may be left: to be weighed and for the token too; and for each digit of the search, at most four."""
    x, u = drawn(1, 60_000, dtype=F32), np.array([0.2])
    (kernel,) = counters(emulator, lambda: cuda_ops.sample(x, u, **filters)).values()
    rest = x.nbytes - kernel["dynamic_shared"] + (37_632 if filters else 0)
    assert 0.3 * x.nbytes < rest < 0.5 * x.nbytes
    moved = kernel["global_load"][1] * SECTOR
    listed = 1024 * SECTOR if filters else 0  # a chunk is read again for its numbers
    assert x.nbytes + min(reads, 1) * rest <= moved <= 1.01 * (x.nbytes + reads * rest) + listed + 2048


# ---- products and attention: every kind of access against its own ideal

CALLS: dict[str, Callable[[], Any]] = {
    "matmul": lambda: qkv.matmul(drawn(256, 256), drawn(256, 256)),
    "matmul_transposed": lambda: qkv.linear(drawn(256, 256), drawn(256, 256)),
    "matmul_long": lambda: qkv.matmul(drawn(64, 2048), drawn(2048, 256)),
    "matmul_odd": lambda: qkv.linear(drawn(128, 128), drawn(257, 128)),
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
    "attention_paged": lambda: paged(8, [700, 33, 512, 1]),
    "attention_paged_64": lambda: paged(4, [700, 33, 512, 1], size=32, D=64),
    "attention_paged_256": lambda: paged(4, [300, 33], D=256),
    "attention_paged_int8": lambda: paged(8, [700, 33, 512, 1], np.int8),
    "attention_paged_widened": lambda: paged(8, [700, 33], F16),
    "attention_f32": lambda: qkv.attention(*(drawn(1, 1, 128, 64, dtype=F32) for _ in range(3))),
}
KINDS = ("shared_load", "shared_store", "matrix_load", "matrix_store", "global_load", "global_store")
# Where more than 8 % above the ideal is known, by kernel and kind of access.
KNOWN = {
    # float32, for checking: scores are transposed through shared memory
    ("attention_simt", "shared_store"): 2.5,
    # rows of c that are no multiple of 16 bytes: 64 bytes at a time, in three sectors; L2 puts them together
    ("gemm_wgmma", "global_store"): 1.5,
    # scales and biases of eight neighbouring columns are read one by one, from the first cache
    ("merge_kernel", "global_load"): 3.3,
    # once, when a weight comes to the device
    ("pack_kernel", "global_load"): 8.1,
}


@pytest.mark.parametrize("device", ["cc=80", "cc=90"])
@pytest.mark.parametrize("name", CALLS)
def test_no_bank_conflicts_and_whole_sectors(name: str, device: str, emulator: Emulator) -> None:
    if (name, device) == ("matmul_odd", "cc=80"):
        pytest.skip("the portable kernel stores rows that are not aligned lane by lane")
    for kernel, c in counters(emulator, CALLS[name], device).items():
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


@pytest.mark.parametrize("dtype, size", [(BF16, 16), (BF16, 256), (np.int8, 16), (F16, 16)])
def test_decoding_reads_a_paged_cache_once(dtype: Any, size: int, emulator: Emulator) -> None:
    """Of the whole group of heads that share a key, and beside the numbers only the table and the scales."""
    lengths = [1000, 40, 512, 0]
    q, tables, there, caches, scales = paged_arguments(8, lengths, dtype, size)
    kernels = counters(emulator, lambda: qkv.attention_paged(q, *caches, tables, there, **scales))
    (kernel,) = (c for name, c in kernels.items() if name.startswith("attention_mma"))
    keys = 2 * 2 * sum(lengths) * 128 * np.dtype(dtype).itemsize / SECTOR
    moved = kernel["global_load"][1]
    # A scale of 4 bytes for a key and head comes in a sector of 32 with those of the other head and of three more keys.
    beside = 2 * 2 * sum(lengths) * (2 if dtype == np.int8 else 0) + sum(lengths)
    assert keys <= moved <= 1.03 * keys + beside + kernel["blocks"] * (64 * 256 / SECTOR + 64)


@pytest.mark.parametrize("lengths", [[4096, *[128] * 15], [700] * 5, [0, 1, 3000, 0]])
@pytest.mark.parametrize("heads", [4, 8])
def test_decoding_is_dealt_out_evenly_whatever_the_lengths(heads: int, lengths: list[int], emulator: Emulator) -> None:
    """No block moves more than its share, where to begin a sequence counts as two tiles of keys, and what comes beside
    keys and values. The host has not seen the lengths: the grid is the same for all."""
    q, tables, there, caches, _ = paged_arguments(heads, lengths, BF16)
    kernels = counters(emulator, lambda: qkv.attention_paged(q, *caches, tables, there), "cc=90")
    (kernel,) = (c for name, c in kernels.items() if name.startswith("attention_mma"))
    tile = 64 * 2 * 256 / SECTOR
    tiles = 2 * sum(-(-n // 64) + 2 for n in lengths)
    assert kernel["blocks"] == 8  # two on each multiprocessor, of which the emulator has four
    assert kernel["busiest"] <= (-(-tiles // 8) + 2) * tile


def test_a_prompt_among_single_tokens_counts_for_the_keys_that_it_sees(emulator: Emulator) -> None:
    """Of its tiles of rows causality lets the first see one tile of keys, and the last all."""
    queries, keys = [1] * 8 + [1024] + [1] * 8, [64] * 8 + [1024] + [64] * 8
    _, tables, there, caches, _ = paged_arguments(2, keys, BF16)
    starts = qkv.cuda.array(np.cumsum([0, *queries]).astype(np.int32))
    q = drawn(sum(queries), 2, 128)
    options: dict[str, Any] = {"cu_seqlens_q": starts, "causal": True}
    kernels = counters(emulator, lambda: qkv.attention_paged(q, *caches, tables, there, **options), "cc=90")
    (kernel,) = (c for name, c in kernels.items() if name.startswith("attention_mma"))
    tiles = 2 * (16 * (1 + 2) + sum(n + 2 for n in range(1, 17)))
    assert kernel["blocks"] == 8
    assert kernel["busiest"] <= (-(-tiles // 8) + 2) * (64 * 2 * 256 / SECTOR)


@pytest.mark.parametrize("device, blocks", [("cc=90", [3, 2, 2]), ("cc=80", [3, 1, 1]), ("cc=86", [2, 1, 1])])
def test_a_grid_of_as_many_blocks_as_there_is_room_for(device: str, blocks: list[int], emulator: Emulator) -> None:
    """A multiprocessor has 228, 164 and 100 KB of shared memory, and the system takes 1 KB of it for each block. Tiles
    of 64 queries and two stages of keys and values take 45, 85 and 99 KB more (heads of 256: of 32 keys), so of the
    last sm_86 holds one. For more than three there are too few registers. The emulator has four multiprocessors."""
    for D, each in zip((64, 128, 256), blocks, strict=True):
        q, tables, there, caches, _ = paged_arguments(4, [4000, 100], BF16, D=D)
        kernels = counters(emulator, lambda: qkv.attention_paged(q, *caches, tables, there), device)  # noqa: B023
        (kernel,) = (c for name, c in kernels.items() if name.startswith("attention_mma"))
        assert kernel["blocks"] == 4 * each, D


@pytest.mark.parametrize("device, blocks", [("cc=90", 2), ("cc=80", 1), ("cc=86", 1)])
def test_so_has_a_product_of_few_rows(device: str, blocks: int, emulator: Emulator) -> None:
    """Each of eight warps has four chunks of two tiles of int4 under way, of 1.25 KB each with their scales, and leaves
    sums of 0.6 KB for each tile: 90 KB in all. Of one tile of int8 a block has 37 KB, of which two fit everywhere."""
    for kind, n, each in (("int4", 7000, blocks), ("int8", 1000, 2)):
        x, weight = drawn(1, 256), packed(kind, n, 256)
        (kernel,) = counters(emulator, bind(qkv.linear, x, weight), device).values()
        assert kernel["blocks"] == 4 * each, kind


# ---- work


@pytest.mark.parametrize("m, n, k", [(256, 256, 256), (512, 512, 64), (128, 384, 320)])
def test_a_product_takes_no_more_matrix_instructions_than_it_has_work(
    m: int, n: int, k: int, emulator: Emulator
) -> None:
    (kernel,) = counters(emulator, lambda: qkv.matmul(drawn(m, k), drawn(k, n))).values()
    assert kernel["mma"] == m * n * k / MMA


@pytest.mark.parametrize("m, n, k", [(256, 256, 256), (512, 512, 64), (128, 384, 320)])
def test_nor_does_one_by_wgmma(m: int, n: int, k: int, emulator: Emulator) -> None:
    """Whole tiles: 64 rows by a warpgroup's columns and 16 of k each. Operands come by TMA, a box of each a step."""
    for tile, down, columns, across in [("large", 128, 256, 256), ("medium", 128, 128, 128), ("small", 64, 128, 64)]:
        qkv.cuda.module().force_gemm(f"wgmma_{tile}")
        try:
            (kernel,) = counters(emulator, lambda: qkv.linear(drawn(m, k), drawn(n, k)), "cc=90").values()
        finally:
            qkv.cuda.module().force_gemm()
        tiles = -(-m // down) * -(-n // columns)
        assert kernel["wgmma"] == tiles * down * columns * k / (64 * across * 16)
        assert kernel["async_copies"] == tiles * (2 * -(-k // 64) + down * columns / 64**2)
        assert kernel["global_store"][1] == 0  # by TMA too


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


def test_attention_by_warpgroups_costs_what_is_attended_to(emulator: Emulator) -> None:
    """All products of D = 128 are 64 x 128 x 16: tiles of 128 rows and 128 keys."""
    s, d = 1024, 128

    def share(**options: Any) -> float:
        q, k, v = (drawn(1, 1, s, d) for _ in range(3))
        kernels = counters(emulator, lambda: qkv.attention(q, k, v, **options), "cc=90")
        return sum(c["wgmma"] for c in kernels.values()) / (2 * s * s * d / (64 * 128 * 16))

    assert share() == 1
    assert share(causal=True) <= 0.5 + 64 / s
    assert share(window=(64, 0)) <= (64 + 128 + 64) / s
    assert share(kv_lengths=np.array([256])) == 256 / s
