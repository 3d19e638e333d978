"""Does the emulator's checker see bugs? Kernels with known ones (tests/cuda/mutations*.cu) must be reported, each as
what it is, under every schedule; the same kernels without them must not; and of a right kernel no instruction that
waits or orders may be left out unnoticed."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cuda_build
import numpy as np
import pytest
from cuda_build import Device
from cuda_conformance import from_bf16, to_bf16
from cuda_sites import ordering_sites

SOURCES = Path(__file__).resolve().parent / "cuda"
SCHEDULES = ["seed=1", "seed=2", "seed=3,async=late", "schedule=in_order,async=at_issue", "schedule=reverse,async=late"]

pytestmark = [
    cuda_build.needs_compilers,
    pytest.mark.skipif(not SOURCES.exists(), reason="the sources are not beside the tests"),
]


@pytest.fixture(scope="session")
def devices(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Device]:
    folder = cuda_build.build_folder(tmp_path_factory)
    libraries = {name: cuda_build.build([SOURCES / f"{name}.cu"], folder) for name in ("mutations", "mutations_sm90")}
    return {name: cuda_build.Device(library) for name, library in libraries.items()}


# ---- the kernels


def floats(rng: np.random.Generator, *shape: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return rng.standard_normal(shape).astype(np.float32)


def launch(device: Device, name: str, plant: int, inputs: list[Any], shape: tuple[int, ...], *sizes: int) -> Any:
    arrays = [device.upload(x) for x in (*inputs, np.zeros(shape, np.float32))]
    try:
        device.call(name, plant, *arrays, *sizes)
        return device.download(arrays[-1], shape, np.float32)
    finally:
        for array in arrays:
            device.free(array)


def softmax(device: Device, plant: int, rng: np.random.Generator, rows: int = 3, n: int = 100) -> tuple[Any, Any]:
    x = floats(rng, rows, n)
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return launch(device, "launch_softmax", plant, [x], x.shape, rows, n), e / e.sum(axis=1, keepdims=True)


def gemm(
    device: Device, plant: int, rng: np.random.Generator, name: str = "launch_gemm", k: int = 136
) -> tuple[Any, Any]:
    m, n = 70, 72
    a, b = to_bf16(floats(rng, m, k)), to_bf16(floats(rng, n, k))
    return launch(device, name, plant, [a, b], (m, n), m, n, k), from_bf16(a).astype(np.float64) @ from_bf16(b).T


def gemm_sm90(device: Device, plant: int, rng: np.random.Generator) -> tuple[Any, Any]:
    return gemm(device, plant, rng, "launch_gemm_sm90", 328)


def flash(device: Device, plant: int, rng: np.random.Generator, s: int = 70, t: int = 150) -> tuple[Any, Any]:
    q, k, v = (to_bf16(floats(rng, rows, 64)) for rows in (s, t, t))
    out = launch(device, "launch_flash", plant, [q, k, v], (s, 64), s, t)
    x, y, z = (from_bf16(i).astype(np.float64) for i in (q, k, v))
    weights = np.exp(x @ y.T / 8)
    return out, weights / weights.sum(axis=1, keepdims=True) @ z


def roles(device: Device, plant: int, rng: np.random.Generator) -> tuple[Any, Any]:
    return launch(device, "launch_roles", plant, [], (384,)), np.arange(384)


KERNELS: dict[str, tuple[str, str, Callable[..., tuple[Any, Any]]]] = {  # name -> file, enum, what runs it
    "softmax": ("mutations", "SoftmaxPlant", softmax),
    "gemm": ("mutations", "GemmPlant", gemm),
    "flash": ("mutations", "FlashPlant", flash),
    "gemm_sm90": ("mutations_sm90", "GemmPlant", gemm_sm90),
    "roles": ("mutations_sm90", "RolesPlant", roles),
}

# kernel, bug -> as what it may be reported; which of several comes first depends on the schedule
BUGS: dict[tuple[str, str], set[str]] = {
    ("softmax", "kNoBarrierBeforeRead"): {"races", "uninitialised"},
    ("softmax", "kNoBarrierBeforeReuse"): {"races"},
    ("softmax", "kSlotPastEnd"): {"out_of_bounds"},
    ("softmax", "kSlotNobodyWrote"): {"uninitialised"},
    ("softmax", "kReadPastEnd"): {"out_of_bounds"},
    ("softmax", "kWritePastEnd"): {"out_of_bounds", "races"},  # into the next block's row, but for the last
    ("softmax", "kDivergentBarrier"): {"divergent", "races", "uninitialised"},
    ("softmax", "kDivergentShuffle"): {"divergent", "deadlocks"},
    ("softmax", "kShuffleFromOutside"): {"divergent"},
    ("softmax", "kMisalignedVector"): {"misaligned"},
    ("softmax", "kNoBarrierAtAll"): {"races", "uninitialised"},
    ("gemm", "kWaitsTooLittle"): {"races", "uninitialised"},
    ("gemm", "kNoBarrierInLoop"): {"races", "uninitialised"},
    ("gemm", "kNoBoundCheck"): {"out_of_bounds", "races"},
    ("gemm", "kReadsPastRows"): {"out_of_bounds"},
    ("gemm", "kReadsPastK"): {"out_of_bounds"},
    ("gemm", "kMisalignedCopy"): {"misaligned"},
    ("gemm", "kUnwaitedAtExit"): {"unfinished_copies"},
    ("gemm", "kLoadsIntoUsedStage"): {"races"},
    ("flash", "kNextKeysTooEarly"): {"races"},
    ("flash", "kNoBarrierForValues"): {"races", "uninitialised"},
    ("flash", "kNoWarpBarrier"): {"races", "uninitialised"},
    ("flash", "kBarrierByOneWarp"): {"deadlocks"},
    ("flash", "kReadsPastKeys"): {"out_of_bounds"},
    ("gemm_sm90", "kIgnoresEmpty"): {"races", "other"},  # other: more arrivals than the mbarrier waits for
    ("gemm_sm90", "kIgnoresFull"): {"races", "uninitialised"},
    ("gemm_sm90", "kReleasesBeforeWait"): {"races"},
    ("gemm_sm90", "kReleasesTheNext"): {"races"},
    ("gemm_sm90", "kExpectsTooFew"): {"races", "uninitialised", "other"},
    ("gemm_sm90", "kExpectsTooMany"): {"deadlocks"},
    ("gemm_sm90", "kNoBarrierAfterInit"): {"races", "uninitialised"},
    ("gemm_sm90", "kNoFenceAfterInit"): {"missing_fences"},
    ("gemm_sm90", "kNoProxyFence"): {"missing_fences"},
    ("gemm_sm90", "kNoBarrierBeforeStore"): {"races", "uninitialised", "missing_fences"},
    ("gemm_sm90", "kNoWaitForStore"): {"unfinished_copies"},
    ("gemm_sm90", "kNoWgmmaFence"): {"missing_fences"},
    ("gemm_sm90", "kNoWgmmaWait"): {"races", "unfinished_copies"},
    ("gemm_sm90", "kLoadsOneMore"): {"unfinished_copies"},
    ("gemm_sm90", "kWrongCount"): {"deadlocks"},
    ("gemm_sm90", "kMisalignedStage"): {"misaligned"},
    ("gemm_sm90", "kWritesUnderWgmma"): {"races"},
    ("gemm_sm90", "kNoProxyFenceBeforeWgmma"): {"missing_fences"},
    ("gemm_sm90", "kDivergentWgmma"): {"divergent"},
    ("roles", "kTooManyRegisters"): {"deadlocks"},
}
SLOW = {("softmax", "kEachItsOwnPart"), ("gemm", "kNoSwizzle")}  # right, but not good
CLASSES = {"races", "uninitialised", "out_of_bounds", "misaligned", "deadlocks", "divergent", "missing_fences",
           "unfinished_copies", "other"}  # fmt: skip


def plants(kernel: str) -> list[str]:
    """The names of what can be planted, in the order of their numbers."""
    file, enum, _ = KERNELS[kernel]
    found = re.search(rf"enum {enum} {{(.*?)}};", (SOURCES / f"{file}.cu").read_text(), re.DOTALL)
    assert found
    return re.findall(r"\b(k\w+)", re.sub(r"//.*", "", found[1]))


def run(
    devices: dict[str, Device], kernel: str, plant: int, configuration: str, seed: int = 0, **sizes: int
) -> tuple[float, Any]:
    """The largest error, infinite if the launch failed, and the report."""
    file, _, function = KERNELS[kernel]
    device = devices[file]
    device.configure(configuration)
    device.report()
    try:
        out, want = function(device, plant, np.random.default_rng(seed), **sizes)
        error = float(np.abs(out - want).max() / np.abs(want).max())
    except cuda_build.CudaError:
        error = np.inf
    return error, device.report()


@pytest.mark.parametrize("kernel", KERNELS)
def test_every_bug_has_its_test(kernel: str) -> None:
    assert {bug for k, bug in BUGS.keys() | SLOW if k == kernel} == set(plants(kernel)[1:])
    assert len(BUGS) >= 40


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(
    "configuration", [*SCHEDULES, "schedule=in_order,async=late", "schedule=reverse,async=at_issue"]
)
def test_what_is_right_is_not_reported(kernel: str, configuration: str, devices: dict[str, Device]) -> None:
    for seed in range(2):
        error, report = run(devices, kernel, 0, configuration, seed)
        assert report["failed"] == 0, report["first"]
        assert error < 1e-2


@pytest.mark.parametrize(("kernel", "bug"), BUGS)
def test_a_bug_is_reported_as_what_it_is(kernel: str, bug: str, devices: dict[str, Device]) -> None:
    for configuration in SCHEDULES:
        error, report = run(devices, kernel, plants(kernel).index(bug), configuration)
        assert error == np.inf and report["failed"] == 1, configuration
        assert {name for name in CLASSES if report[name]} <= BUGS[kernel, bug], report["first"]
        assert f"{KERNELS[kernel][0]}.cu:" in report["first"] or "intrinsics" in report["first"] or kernel == "roles"


def traffic(devices: dict[str, Device], kernel: str, plant: str, **sizes: int) -> dict[str, Any]:
    error, report = run(devices, kernel, plants(kernel).index(plant), "count=1", **sizes)
    assert error < 1e-2
    (counters,) = report["kernels"].values()
    return counters


def test_bank_conflicts_are_counted(devices: dict[str, Device]) -> None:
    _, moved, ideal = traffic(devices, "gemm", "kGemmRight")["matrix_load"]
    assert moved == ideal > 0
    _, moved, ideal = traffic(devices, "gemm", "kNoSwizzle")["matrix_load"]
    assert moved == 4 * ideal  # rows of 64 bytes: every second one in the same banks


def test_sectors_are_counted(devices: dict[str, Device]) -> None:
    _, moved, ideal = traffic(devices, "softmax", "kSoftmaxRight", n=512)["global_load"]
    assert moved == ideal > 0
    _, moved, ideal = traffic(devices, "softmax", "kEachItsOwnPart", n=512)["global_load"]
    assert moved > 1.5 * ideal


@pytest.mark.parametrize("where", ["launch_softmax", "memory"])
def test_freed_memory_is_not_there(where: str, devices: dict[str, Device]) -> None:
    device = devices["mutations"]
    device.configure()
    device.report()
    x, y = device.upload(np.zeros(100, np.float32)), device.upload(np.zeros(100, np.float32))
    device.free(y)
    if where == "launch_softmax":
        with pytest.raises(cuda_build.CudaError, match="freed"):
            device.call("launch_softmax", 0, x, y, 1, 100)
        assert device.report()["out_of_bounds"] == 1
    else:
        with pytest.raises(cuda_build.CudaError):
            device.free(y)
    device.free(x)


# ---- instructions left out


@pytest.mark.parametrize("kernel", sorted(KERNELS.keys() - {"roles"}))
def test_no_barrier_or_wait_can_be_left_out(kernel: str, devices: dict[str, Device]) -> None:
    _, report = run(devices, kernel, 0, "count=1")
    (mangled,) = report["kernels"]
    sites = ordering_sites(devices[KERNELS[kernel][0]].library, mangled)
    assert len(sites) >= 2
    for site in sites:
        for configuration in SCHEDULES:
            error, report = run(devices, kernel, 0, f"{configuration},{site.leave_out()}")
            if not error < 1e-2:
                break
        else:
            assert report["left_out"] == 0, site
