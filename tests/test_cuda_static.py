"""What nvcc made of the kernels (cuda_machine_code.py): registers, spills, which units are used, how wide memory is
accessed."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import cuda_build
import cuda_machine_code
import pytest
from cuda_machine_code import ARCHES, Kernel, all_kernels

CUDA = cuda_build.CSRC / "cuda"
pytestmark = cuda_machine_code.needed


def of(*families: str, arches: tuple[str, ...] = ARCHES) -> list[Kernel]:
    chosen = [k for k in all_kernels() if k.family in families]
    assert {k.family for k in chosen} == set(families) and {k.arch for k in chosen} == set(arches)
    return chosen


def of_hopper(*families: str) -> list[Kernel]:
    return of(*families, arches=("sm_90a",))


def halves(chosen: list[Kernel]) -> list[Kernel]:
    return [k for k in chosen if re.search(r"I(13__nv_bfloat16|6__half)", k.name)]


def hot_loop(kernel: Kernel, unit: str = "HMMA") -> Counter[str]:
    """Instructions of the smallest loop with a matrix instruction."""
    best: tuple[int, int] | None = None
    for address, text in kernel.code:
        target = re.match(r"BRA\S* .*?0x([0-9a-f]+)", text)
        if target and int(target[1], 16) < address:
            start = int(target[1], 16)
            inside = any(start <= a <= address and t.startswith(unit) for a, t in kernel.code)
            if inside and (best is None or address - start < best[1] - best[0]):
                best = (start, address)
    assert best, kernel.name
    return Counter(re.split(r"[. ]", t)[0] for a, t in kernel.code if best[0] <= a <= best[1])


# Bytes of the stack that ptxas spills a few registers to, outside of the loops; everything else spills nothing.
SPILLS = {("attention_mma", "sm_80"): 8, ("attention_mma", "sm_90a"): 8, ("attention_hopper", "sm_90a"): 16}


def test_nothing_lives_in_local_memory() -> None:
    for k in all_kernels():
        assert k.usage["LOCAL"] == 0, (k.name, k.arch)
        assert k.usage["STACK"] <= SPILLS.get((k.family, k.arch), 0), (k.name, k.arch, k.usage["STACK"])


# So many registers that the blocks that a kernel counts on fit a multiprocessor.
REGISTERS = {
    "attention_mma": 255,
    "attention_simt": 128,
    "few_rows_kernel": 168,
    "gemm_float_tile": 128,
    "gemm_skinny_by_k": 128,
    "gemm_skinny_by_n": 128,
    "gather": 40,
    "gemm_tile": 255,
    "norm_held": 64,
    "rotate": 64,
    "sample_rows": 64,
    "softmax_held": 64,
    "softmax_pieces": 64,
    "sum_pieces": 64,
    "tile_kernel": 168,
    "write_tokens": 64,
}


# By how many blocks there are; gemm_wgmma's have two warpgroups and a warp: as many as three warpgroups can have.
REGISTERS_OF_HOPPER = {"gemm_wgmma": {"ELi1EE": 168, "ELi2EE": 96}, "sample_clusters": {"": 64}}


@pytest.mark.parametrize("family, most", REGISTERS.items())
def test_registers(family: str, most: int) -> None:
    for k in of(family):
        assert k.usage["REG"] <= most, (k.name, k.arch, k.usage["REG"])


def test_registers_of_hopper() -> None:
    for family, most in REGISTERS_OF_HOPPER.items():
        for k in of_hopper(family):
            (limit,) = (m for end, m in most.items() if end in k.name)
            assert k.usage["REG"] <= limit, (k.name, k.usage["REG"])


def test_products_of_half_width_use_the_matrix_units() -> None:
    for k in halves(
        of("attention_mma", "gemm_tile", "gemm_skinny_by_k", "gemm_skinny_by_n", "few_rows_kernel", "tile_kernel")
    ):
        assert k.count(r"HMMA\.16816\.F32") > 0, (k.name, k.arch)
        assert k.count(r"HMMA(?!\.16816\.F32)") == 0, (k.name, k.arch)  # sums are float32
        guarded = "OrderE2" in k.name  # operands that are not aligned to 16 bytes, which cp.async needs
        assert guarded or k.count("LDGSTS") > 0, (k.name, k.arch)
    for k in halves(of("attention_mma", "gemm_tile")):
        assert k.count("LDSM") > 0, (k.name, k.arch)


def test_products_of_hopper_use_its_units() -> None:
    for k in of_hopper("gemm_wgmma"):
        assert k.count(r"HGMMA\.64x\d+x16\.F32") == 4 and k.count("HMMA") == 0, k.name
        assert k.count("UTMALDG") >= 3 and k.count("UTMASTG") >= 1 and k.count("UTMACMDFLUSH") >= 1, k.name
        assert k.count(r"STSM\.16\.M88\.4") >= 4 and k.count("SYNCS") >= 6, k.name
    shapes = {m[0] for k in of_hopper("gemm_wgmma") for _, t in k.code if (m := re.match(r"HGMMA\.\w+", t))}
    assert shapes == {"HGMMA.64x256x16", "HGMMA.64x128x16", "HGMMA.64x64x16"}


def test_wgmma_is_under_way_while_the_next_is_issued() -> None:
    """The loop has one wait, for the group before the last; ptxas adds others where it serialises wgmma. Beside the
    products, each of which keeps the unit busy for 32 to 128 cycles, there is little to issue."""
    for k in of_hopper("gemm_wgmma"):
        loop = hot_loop(k, "HGMMA")
        waits = [t for _, t in k.code if t.startswith("WARPGROUP.DEPBAR")]
        assert len(waits) == 2 and sum("0x1" in t.split(",")[-1] for t in waits) == 1, (k.name, waits)
        assert loop["HGMMA"] == 4 and loop["WARPGROUP"] == 2, (k.name, loop)
        assert sum(loop.values()) <= 96, (k.name, loop)  # with what only a tile's first round does


@pytest.mark.parametrize("path", sorted(CUDA.glob("*_sm90*.cu")), ids=lambda path: path.stem)
def test_ptxas_has_nothing_to_say_about_wgmma(path: Path, tmp_path: Path) -> None:
    """C7510 and its neighbours: wgmma serialised, or waits added. They are no warnings."""
    if cuda_build.NVCC is None:
        pytest.skip("nvcc is not here")
    target = "-gencode=arch=compute_90a,code=sm_90a"
    flags = ["-std=c++17", "-O3", f"-I{cuda_build.CSRC}", "--expt-relaxed-constexpr", target, "-Xptxas=-v"]
    command = [cuda_build.NVCC, *flags, "-cubin", str(path), "-o", str(tmp_path / "out.cubin")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "Used" in done.stderr
    assert not re.findall(r"\(C7\d+\).*", done.stderr)


def test_float32_is_never_rounded_to_less() -> None:
    for k in all_kernels():
        if not halves([k]):
            assert k.count("HMMA") == 0, (k.name, k.arch)
        assert k.count(r".*\bTF32\b") == 0, (k.name, k.arch)
    for k in of("gemm_float_tile"):
        assert k.count("FFMA") >= 256, (k.name, k.arch)


# What launch.cuh's launch_dependent launches.
DEPENDENT = {
    *("advance_kernel", "angles_of", "attention_merge", "attention_mma", "attention_simt", "copy_pairs"),
    *("dequantize_kernel", "few_rows_kernel", "gather", "gemm_merge", "gemm_skinny_by_k", "gemm_skinny_by_n"),
    *("gemm_skinny_float_by_k", "gemm_skinny_float_by_n", "largest_of_parts", "largest_of_rows", "map_elements"),
    *("map_pieces", "merge_kernel", "norm_ahead", "norm_held", "norm_pieces", "norm_shared", "pad_kernel"),
    *("parts_ahead", "parts_held", "rotary_table_kernel", "rotate", "sample_clusters", "sample_rows"),
    *("select_of_rows", "select_of_segments", "slots_kernel", "softmax_ahead", "softmax_held", "softmax_pieces"),
    *("softmax_shared", "sum_elements", "sum_pieces", "write_tokens"),
}
GLOBAL = r"(LD|LDG|ST|STG|ATOM|ATOMG|RED|REDG|LDGSTS|UBLKCP|UTMALDG|UTMASTG|UTMAREDG)\b"


def test_dependent_kernels_wait_before_they_touch_memory() -> None:
    """griddepcontrol.wait is ACQBULK, launch_dependents PREEXIT. No branch leads around the wait, and no
    load is one that might be moved before it."""
    waits = r"ACQBULK\b"
    assert {k.family for k in all_kernels() if k.count(waits)} == DEPENDENT
    for k in all_kernels():
        if k.family not in DEPENDENT or k.arch == "sm_80":
            assert k.count(waits) == k.count(r"PREEXIT\b") == 0, (k.name, k.arch)
            continue
        assert k.count(waits) == k.count(r"PREEXIT\b") == 1, (k.name, k.arch)
        (wait,) = (at for at, text in k.code if re.match(waits, text))
        before = [text for at, text in k.code if at < wait]
        assert not [text for text in before if re.match(GLOBAL + r"|EXIT|RET|CALL|BRX|JMP", text)], (k.name, before)
        around = [
            text for text in before if (to := re.match(r"BRA\S* .*?0x([0-9a-f]+)", text)) and int(to[1], 16) > wait
        ]
        assert not around, (k.name, around)
        assert k.count(r"LDG\S*\.CONSTANT") == 0, k.name


def test_products_of_few_rows_bring_weights_into_the_cache_meanwhile() -> None:
    for k in of("gemm_skinny_by_k", "few_rows_kernel"):
        assert k.count("UBLKPF") == (k.arch == "sm_90a"), (k.name, k.arch)


@pytest.mark.parametrize("family", ["softmax_held", "norm_held", "softmax_ahead", "norm_ahead"])
def test_rows_are_read_and_written_16_bytes_at_a_time(family: str) -> None:
    for k in of(family):
        assert k.count(r"LDG\.E.*\.128") > 0 and k.count(r"STG\.E.*\.128") > 0, (k.name, k.arch)
        assert k.count(r"STG\.E(?!.*128)") == 0, (k.name, k.arch)


def test_results_of_products_are_written_16_bytes_at_a_time() -> None:
    for k in of("gemm_tile", "gemm_float_tile", "attention_mma"):
        assert k.count(r"STG\.E.*128") > 0, (k.name, k.arch)


@pytest.mark.parametrize("family, share", [("gemm_tile", 0.15), ("attention_mma", 0.10)])
def test_the_innermost_loop_is_mostly_work_for_the_matrix_units(family: str, share: float) -> None:
    """Addresses that are computed anew in each turn cost five times as much as the products: this catches them."""
    best: dict[Any, float] = {}
    for k in halves(of(family)):
        loop = hot_loop(k)
        best[k.arch] = max(best.get(k.arch, 0.0), loop["HMMA"] / sum(loop.values()))
    assert min(best.values()) >= share, best


# ---- Hopper's attention


def test_hopper_multiplies_by_warpgroup_and_loads_by_tma() -> None:
    for k in of_hopper("attention_hopper"):
        assert k.count(r"HGMMA\.64x\d+x16\.F32") == k.count("HGMMA") > 0, k.name
        assert k.count("HMMA") == 0 and k.count("UTMALDG") > 0, k.name
        assert k.count("USETMAXREG") == 2, k.name
        assert k.count(r"STG\.E.*128") > 0, k.name
        # 64 K registers are all that a multiprocessor has, for 384 or 512 threads
        assert k.usage["REG"] in (128, 168), (k.name, k.usage["REG"])


def hopper_loop(kernel: Kernel) -> list[str]:
    """The loop over keys: the smallest with both products and the exponentials of a tile."""
    best: tuple[int, int] | None = None
    for address, text in kernel.code:
        target = re.match(r"BRA\S* .*?0x([0-9a-f]+)", text)
        if not target or int(target[1], 16) >= address:
            continue
        start = int(target[1], 16)
        inside = [t for a, t in kernel.code if start <= a <= address]
        products = Counter("tnspB" in t for t in inside if t.startswith("HGMMA"))
        whole = len(products) == 2 and sum(t.startswith("MUFU.EX2") for t in inside) >= 40
        if whole and (best is None or address - start < best[1] - best[0]):
            best = (start, address)
    assert best, kernel.name
    return [t for a, t in kernel.code if best[0] <= a <= best[1]]


def test_hopper_hides_exponentials_behind_products() -> None:
    """All of a tile's stand before the wait for the values of the tile before, none after it; and in the loop each
    tile's products are ordered at once, without waits in between, which ptxas would add where it sees a hazard."""
    for k in of_hopper("attention_hopper"):
        loop = hopper_loop(k)
        waits = [i for i, t in enumerate(loop) if t.startswith("WARPGROUP.DEPBAR")]
        assert len(waits) == 2, k.name
        products = [i for i, t in enumerate(loop) if t.startswith("HGMMA")]
        exponentials = [i for i, t in enumerate(loop) if t.startswith("MUFU.EX2")]
        assert waits[0] < products[0] and products[-1] < waits[1], k.name
        assert max(exponentials) < waits[0], k.name
