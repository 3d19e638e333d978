"""Every function of csrc/cuda/intrinsics*.cuh against its definition in cuda_conformance.py: in emulation, on a GPU
where there is one, and the emulator against what a GPU gave when tests/cuda/record_golden.py ran there."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

import cuda_build
import cuda_conformance as conformance
import numpy as np
import pytest

CASES = {conformance.case_id(case): case for case in conformance.all_cases()}
HEADERS = conformance.ROOT / "csrc" / "cuda"
SCHEDULES = ["seed=1", "seed=2,schedule=in_order,async=late", "seed=3,schedule=reverse,async=at_issue"]

pytestmark = pytest.mark.skipif(not HEADERS.exists(), reason="the sources are not beside the tests")


@pytest.fixture(scope="session")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, cuda_build.Device]:
    """The kernels on the emulator, the portable ones and Hopper's."""
    folder = cuda_build.build_folder(tmp_path_factory)
    libraries = {hopper: cuda_build.build([conformance.source(hopper)], folder) for hopper in (False, True)}
    return {hopper: cuda_build.Device(library) for hopper, library in libraries.items()}


@pytest.fixture(scope="session")
def on_gpu(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, ctypes.CDLL]:
    gpu = conformance.gpu()
    if gpu is None:
        pytest.skip("no GPU here")
    if conformance.nvcc() is None:
        pytest.skip("nvcc is not here")
    return conformance.gpu_libraries(gpu, tmp_path_factory.mktemp("gpu"))


@pytest.mark.parametrize("name", CASES)
@cuda_build.needs_compilers
def test_the_emulator_does_what_the_definition_says(name: str, emulated: dict[bool, cuda_build.Device]) -> None:
    case = CASES[name]
    device = emulated[case.hopper]
    for schedule in SCHEDULES:
        device.configure(schedule)
        assert case.check(case.run(device.library), case.want), schedule
        assert device.report()["failed"] == 0


@pytest.mark.parametrize("name", CASES)
def test_a_gpu_does_what_the_definition_says(name: str, on_gpu: dict[bool, ctypes.CDLL]) -> None:
    case = CASES[name]
    if case.hopper not in on_gpu:
        pytest.skip("not a Hopper GPU")
    assert case.check(case.run(on_gpu[case.hopper]), case.want)


@pytest.mark.parametrize("name", CASES)
@cuda_build.needs_compilers
def test_the_emulator_does_what_a_gpu_did(name: str, emulated: dict[bool, cuda_build.Device]) -> None:
    if not conformance.GOLDEN.exists():
        pytest.skip("no GPU has recorded its results yet")
    machine, golden = conformance.read_golden()
    if name not in golden:
        pytest.skip(f"{machine} did not run this")
    case = CASES[name]
    emulated[case.hopper].configure()
    assert conformance.matches_golden(case, case.run(emulated[case.hopper].library), golden[name]), machine


def functions(header: Path) -> set[str]:
    return set(re.findall(r"^QKV_DEVICE [\w ]+?\b(\w+)\(", header.read_text(), re.MULTILINE))


def test_every_intrinsic_is_tested() -> None:
    sources = {hopper: conformance.source(hopper).read_text() for hopper in (False, True)}
    portable, hopper = functions(HEADERS / "intrinsics.cuh"), functions(HEADERS / "intrinsics_sm90.cuh")
    assert len(portable) > 20 and len(hopper) > 30
    no_instruction = {"to_float", "from_float", "load_float", "bit_cast", "opaque"}
    assert {f for f in portable if not re.search(rf"\b{f}\b", sources[False])} <= no_instruction
    indirect = {"wgmma_descriptor", "fence_async", "mbarrier_try_wait", "cluster_arrive", "cluster_wait"}  # by others
    assert {f for f in hopper if not re.search(rf"\b{f}\b", sources[True])} <= indirect


def test_inline_ptx_is_nowhere_else() -> None:
    for path in HEADERS.glob("*.cu*"):
        if not path.name.startswith("intrinsics"):
            # An empty one only hides something from the compiler.
            assert not re.search(r"\basm\b(?! volatile\(\"\" :)", path.read_text()), path.name


def test_golden_words_come_back(tmp_path: Path) -> None:
    recorded = {name: case.want for name, case in CASES.items()}
    conformance.write_golden(tmp_path / "golden.npz", recorded, "a machine")
    machine, golden = conformance.read_golden(tmp_path / "golden.npz")
    assert machine == "a machine" and golden.keys() == recorded.keys()
    assert (tmp_path / "golden.npz").stat().st_size < 300_000
    for name, case in CASES.items():
        if name != "elect-sm90":  # has more than one right answer
            assert conformance.matches_golden(case, case.want, golden[name])
            other = case.want.copy()
            other[-1] ^= np.uint32(0x40000000)
            assert not conformance.matches_golden(case, other, golden[name]), name
