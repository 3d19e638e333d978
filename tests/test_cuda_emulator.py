"""The emulator itself: every kind of fault is reported, what is right is not; counters, graphs, runtime errors."""

import ctypes
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cuda_build import EMULATION, CudaError, Device, build, build_folder, needs_compilers

pytestmark = needs_compilers
SOURCES = Path(__file__).parent / "cuda"
SCHEDULES = ["schedule=in_order,async=at_issue", "schedule=reverse,async=late", *(f"seed={s}" for s in range(3))]
LAUNCH_FAILURE = "cudaErrorLaunchFailure"


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    names = ("emulator_faults", "emulator_faults_sm90", "emulator_arithmetic")
    return build([SOURCES / f"{name}.cu" for name in names], build_folder(tmp_path_factory))


@pytest.fixture(params=SCHEDULES)
def device(request, library):
    device = Device(library)
    device.configure(request.param)
    device.report()
    yield device
    device.configure()


@pytest.fixture
def one_device(library):
    device = Device(library)
    device.configure()
    device.report()
    yield device
    device.configure()


def ints(device, n=64, fill=None):
    return device.malloc(4 * n) if fill is None else device.upload(np.full(n, fill, np.int32))


def fails(device, kind, words, name, *arguments):
    """The launch fails with a report of this kind that contains these words, and that says where."""
    with pytest.raises(CudaError) as error:
        device.call(name, *arguments)
    report = device.report()
    assert report["failed"] == report[kind] == 1, report
    assert words in report["first"] and report["first"] in str(error.value) and LAUNCH_FAILURE in str(error.value)
    assert re.search(r"emulator_faults(_sm90)?\.cu:", report["first"]) or kind == "deadlocks", report["first"]
    assert "kernel " in report["first"]


def passes(device, name, *arguments):
    device.call(name, *arguments)
    report = device.report()
    assert report["launches"] == 1 and report["failed"] == 0, report


# ---- faults


@pytest.mark.parametrize("name", ["shared_exchange", "global_race", "warp_order"])
def test_races(device, name):
    passes(device, f"run_{name}", ints(device, 64, 0), 1)
    fails(device, "races", "data race in", f"run_{name}", ints(device, 64, 0), 0)


def test_race_with_one_of_many_readers(device):
    y = ints(device, 1024)
    passes(device, "run_last_warp_races", y, 1024)
    fails(device, "races", "data race in shared memory", "run_last_warp_races", y, 992)


def test_race_of_first_use_is_a_race_or_a_read_of_nothing(device):
    with pytest.raises(CudaError):
        device.call("run_shared_race", ints(device), 0)
    report = device.report()
    assert report["races"] + report["uninitialised"] == 1


def test_uninitialised_shared_memory(device):
    fails(device, "uninitialised", "which nobody has written", "run_shared_uninitialised", ints(device))


def test_uninitialised_global_memory(device):
    x = device.malloc(4 * 32)
    fails(device, "uninitialised", "read of global memory, at", "run_copy_ints", ints(device), x, 32, 32)
    device.check(device.library.cudaMemset(x, 0, ctypes.c_size_t(4 * 31)))
    fails(device, "uninitialised", "at 124 of an allocation of 128 bytes", "run_copy_ints", ints(device), x, 32, 32)
    passes(device, "run_copy_ints", ints(device), x, 31, 32)
    y = device.malloc(4 * 32)
    # What is copied is as uninitialised as it was.
    device.check(device.library.cudaMemcpy(y, x, ctypes.c_size_t(4 * 32), 3))
    passes(device, "run_copy_ints", ints(device), y, 31, 32)
    fails(device, "uninitialised", "at 124 of an allocation of 128 bytes", "run_copy_ints", ints(device), y, 32, 32)


def test_what_only_atomics_wrote_is_written(device):
    y = ints(device, 96)
    fails(device, "uninitialised", "read of global memory, at", "run_atomics_alone", y, 1)
    passes(device, "run_atomics_alone", y, 0)
    passes(device, "run_atomics_alone", y, 3)
    assert (device.download(y, 32, np.int32) == 3).all()
    fails(device, "uninitialised", "read of shared memory", "run_atomics_alone", y, 2)  # by an exchange


@pytest.mark.parametrize("n", [32, 33, -1])
def test_static_shared_out_of_bounds(device, n):
    passes(device, "run_shared_out_of_bounds", ints(device), 31)
    fails(device, "out_of_bounds", "outside the kernel's arrays", "run_shared_out_of_bounds", ints(device), n)


@pytest.mark.parametrize("n", [32, -1, 1 << 20])
def test_dynamic_shared_out_of_bounds(device, n):
    passes(device, "run_dynamic_out_of_bounds", ints(device), 31)
    fails(device, "out_of_bounds", "outside the kernel's arrays", "run_dynamic_out_of_bounds", ints(device), n)


def test_global_out_of_bounds(device):
    x, y = ints(device, 32, 1), ints(device, 31)
    passes(device, "run_copy_ints", y, x, 31, 32)
    fails(device, "out_of_bounds", "4 bytes at 124 of an allocation of 124 bytes", "run_copy_ints", y, x, 32, 32)
    fails(device, "out_of_bounds", "nothing is allocated there", "run_copy_ints", ctypes.c_void_p(4096), x, 32, 32)


def test_host_memory_is_no_device_memory(device):
    host = np.zeros(32, np.int32).ctypes.data_as(ctypes.c_void_p)
    fails(device, "out_of_bounds", "nothing is allocated", "run_copy_ints", host, ints(device, 32, 1), 32, 32)


def test_use_after_free(device):
    x, y = ints(device, 32, 1), ints(device)
    device.free(x)
    fails(device, "out_of_bounds", "which was freed", "run_copy_ints", y, x, 32, 32)


def test_misaligned(device):
    x = device.upload(np.arange(64, dtype=np.float32))
    passes(device, "run_misaligned", device.malloc(16), x, 4)
    fails(device, "misaligned", "is not a multiple of 16", "run_misaligned", device.malloc(16), x, 1)


def test_allocations_are_aligned_to_256_bytes_and_no_more(one_device):
    for size in (1, 100, 1 << 20):
        assert one_device.malloc(size).value % 512 == 256


def test_deadlock(device):
    passes(device, "run_named_barrier", 32)
    fails(device, "deadlocks", "32 threads wait for a named barrier at emulator_faults.cu:", "run_named_barrier", 64)


def test_barrier_of_all_with_and_without_their_number(device):
    y = ints(device)
    passes(device, "run_barrier_of_all", y, 64)
    assert (device.download(y, 64, np.int32) == np.arange(64)[::-1]).all()
    fails(device, "divergent", "barrier 0: ", "run_barrier_of_all", y, 96)


def test_divergent_barrier(device):
    fails(device, "divergent", "__syncthreads in divergent code", "run_divergent_barriers", ints(device))


def test_divergent_shuffle(device):
    fails(device, "divergent", "lanes of a warp are at different collectives", "run_divergent_shuffle", ints(device))


def test_shuffle_from_a_lane_that_takes_no_part(device):
    fails(device, "divergent", "which takes no part", "run_shuffle_from_nobody", ints(device))


def test_async_copies(device):
    x, y = device.upload(np.arange(128, dtype=np.float32)), device.malloc(4 * 32)
    passes(device, "run_async_copy", y, x, 0)
    assert (device.download(y, 32, np.float32) == np.arange(32)[::-1] * 4).all()
    fails(device, "races", "this thread's cp.async", "run_async_copy", y, x, 1)
    with pytest.raises(CudaError):
        device.call("run_async_copy", y, x, 2)
    report = device.report()
    assert report["races"] + report["uninitialised"] == 1, report
    fails(device, "unfinished_copies", "never waited for", "run_async_copy", y, x, 3)


def test_source_of_async_copies(device):
    y, x = ints(device, 64), ints(device, 64, 1)
    passes(device, "run_async_source", y, x, 0)
    assert (device.download(y, 64, np.int32) == 1).all()
    for fault in (1, 2):
        fails(device, "races", "read (still going on)", "run_async_source", y, x, fault)


def test_blocks_race(device):
    fails(device, "races", "by another block", "run_blocks_write_the_same", ints(device))


@pytest.mark.parametrize("blocks, barrier", [(1, 0), (2, 1), (3, 1), (2, 0)])
def test_race_with_one_of_many_readers_of_global_memory(device, blocks, barrier):
    y = ints(device, 1 + 3 * 128, 0)
    passes(device, "run_all_read_one_writes", y, 1, 1)
    fails(device, "races", "data race in global memory", "run_all_read_one_writes", y, blocks, barrier)


def test_last_block_pattern_is_no_race(device):
    y, parts = ints(device, 1), ints(device, 8)
    passes(device, "run_last_block_adds", y, parts, ints(device, 1, 0), 0)
    assert device.download(y, 1, np.int32)[0] == 36
    for fault in (1, 2, 3):
        fails(device, "races", "by another block", "run_last_block_adds", y, parts, ints(device, 1, 0), fault)


def test_flags_need_fences(device):
    y = ints(device, 1)
    passes(device, "run_flag", y, 1)
    assert device.download(y, 1, np.int32)[0] == 42
    fails(device, "races", "data race in shared memory", "run_flag", y, 0)


def test_who_spins_lets_others_run(device):
    y = ints(device, 64)
    passes(device, "run_volatile_flag", y, ints(device, 1, 0))
    assert (device.download(y, 64, np.int32)[32:] == 42).all()


def test_read_only_loads_of_what_the_kernel_writes(device):
    fails(device, "races", "read-only load", "run_read_only_of_own", ints(device))


@pytest.mark.parametrize(
    "fault, words",
    [
        (1, "global memory before griddepcontrol.wait"),
        (2, "global memory before griddepcontrol.wait"),
        (3, "returned without griddepcontrol.wait"),
        (4, "a read-only load (ld.global.nc) in a dependent launch"),
    ],
)
def test_dependent_launches(device, fault, words):
    x, y = ints(device, 64, 7), ints(device, 64, 0)
    passes(device, "run_dependent", x, y, fault, 0)
    passes(device, "run_dependent", x, y, 0, 1)
    fails(device, "races", words, "run_dependent", x, y, fault, 1)


def test_what_is_brought_into_the_cache_is_there(device):
    x, y = ints(device, 64, 7), ints(device, 64, 0)
    fails(device, "out_of_bounds", "512 bytes at 0 of an allocation of 256 bytes", "run_dependent", x, y, 5, 1)


@pytest.mark.parametrize("name", ["run_spins", "run_waits_for_the_next_block", "run_spins_on_a_load"])
def test_endless_loops(one_device, name):
    fails(one_device, "deadlocks", "spins for ever", name, ints(one_device, 1, 0))


@pytest.mark.parametrize("call", [0, 1])
@pytest.mark.parametrize("threads", [32, 64])
def test_a_kernel_has_the_shared_arrays_that_it_reaches(one_device, threads, call):
    y = ints(one_device, threads + 1)
    passes(one_device, "run_array_of_function", y, call, threads)
    *neighbours, size = one_device.download(y, threads + 1, np.int32)
    assert (np.array(neighbours) == np.arange(threads) ^ 1).all() and size == 4 * threads


@pytest.mark.parametrize("n", [1, -1])
def test_variables_out_of_bounds(device, n):
    passes(device, "run_reads_variables", ints(device), 0)
    fails(device, "out_of_bounds", "", "run_reads_variables", ints(device), n)


@pytest.mark.parametrize("limit, uniform", [(0, 1), (32, 1), (1, 0), (31, 0)])
def test_votes_of_lanes_that_return(device, limit, uniform):
    y = ints(device, 32)
    passes(device, "run_votes", y, limit)
    assert (device.download(y, 32, np.int32) == uniform).all()


def test_one_warp_barrier_in_two_places(device):
    passes(device, "run_two_places_of_one_barrier", ints(device, 32))


@pytest.mark.parametrize("when", [0, 1])
def test_threads_that_return_do_not_hold_up_the_cluster(device, when):
    passes(device, "run_early_exit", ints(device, 128), when)


def test_shared_memory_of_a_block_that_has_ended(device):
    passes(device, "run_reads_neighbour", ints(device, 128), 1)
    fails(device, "out_of_bounds", "which has ended", "run_reads_neighbour", ints(device, 128), 0)


def test_memory_of_an_mbarrier(device):
    y = ints(device, 1)
    passes(device, "run_reuses_mbarrier", y, 0)
    for fault in (1, 2, 3):
        fails(device, "other", "where an mbarrier is until mbarrier.inval", "run_reuses_mbarrier", y, fault)


def test_what_tma_stores_is_waited_for(device):
    y, z = ints(device, 64), ints(device, 64)
    passes(device, "run_stores_and_reads", y, z, 0)
    for fault in (1, 2):
        fails(device, "races", "by an asynchronous operation", "run_stores_and_reads", y, z, fault)
    fails(device, "missing_fences", "of shared memory", "run_stores_and_reads", y, z, 3)


def test_what_tma_loads_is_fenced(device):
    y, z = ints(device, 64), ints(device, 64)
    passes(device, "run_writes_and_loads", y, z, 0)
    for fault in (1, 2):
        fails(device, "missing_fences", "of global memory", "run_writes_and_loads", y, z, fault)


def test_registers_of_wgmma_are_fenced(device):
    """Again after each instruction of another kind that touches them, whatever was fenced before."""
    y = ints(device, 128)
    for right in (0, 1):
        passes(device, "run_multiplies_twice", y, right)
    for fault in (2, 3, 4, 5):
        fails(device, "missing_fences", "something else touched its registers", "run_multiplies_twice", y, fault)
    passes(device, "run_multiplies_in_two_shapes", y, 1)
    fails(device, "missing_fences", "another shape used its registers", "run_multiplies_in_two_shapes", y, 0)


@pytest.mark.parametrize("fault", [6, 7, 8])
def test_registers_of_wgmma_are_waited_for(device, fault):
    fails(device, "unfinished_copies", "before the wait for it", "run_multiplies_twice", ints(device, 128), fault)


def test_functions_fence_and_wait_for_their_callers(device):
    """Device functions that were not inlined."""
    name, y, z = "run_multiplies_with_functions", ints(device, 128), ints(device, 128)
    passes(device, name, y, z, 0)
    for fault in (1, 2):
        fails(device, "missing_fences", "something else touched its registers", name, y, z, fault)
    fails(device, "unfinished_copies", "before the wait for it", name, y, z, 3)


def test_trap(device):
    passes(device, "run_traps", ints(device, 1, 0))
    fails(device, "other", "the kernel ended itself", "run_traps", ints(device, 1, 1))


def test_a_fault_is_told_once_and_the_next_launch_works(device):
    with pytest.raises(CudaError):
        device.call("run_shared_uninitialised", ints(device))
    passes_after = device.upload(np.zeros(4, np.int32))
    device.report()
    passes(device, "run_traps", passes_after)


def test_without_the_checker(one_device):
    one_device.configure("check=0")
    one_device.call("run_shared_exchange", ints(one_device), 0)
    assert one_device.report()["failed"] == 0
    x = ints(one_device, 32, 1)
    fails(
        one_device, "out_of_bounds", "of an allocation of 124 bytes", "run_copy_ints", ints(one_device, 31), x, 32, 32
    )
    # What an unchecked launch wrote is not known to be written; it must not be reported as unwritten later.
    one_device.configure("check=1")
    y = one_device.malloc(4 * 32)
    one_device.configure("check=0")
    one_device.call("run_copy_ints", y, x, 32, 32)
    one_device.configure("check=1")
    one_device.report()
    passes(one_device, "run_copy_ints", ints(one_device), y, 32, 32)


def test_unknown_configuration_is_refused(library):
    device = Device(library)
    for text in ("chekc=1", "seed=x", "schedule=fast"):
        assert device.library.qkv_emulator_configure(text.encode()) == 1


# ---- what the runtime says


def test_launch_errors(one_device):
    y = ints(one_device, 1024)
    for blocks, threads, shared, name in [
        (0, 32, 0, "InvalidConfiguration"),
        (1, 1025, 0, "InvalidConfiguration"),
        (1, 0, 0, "InvalidConfiguration"),
        (1, 32, 48 * 1024 + 1, "InvalidValue"),
    ]:
        with pytest.raises(CudaError, match=name):
            one_device.call("run_all_threads", y, blocks, threads, shared)
    with pytest.raises(CudaError, match="LaunchOutOfResources"):
        one_device.call("run_at_most_64", y, 65)
    assert one_device.library.allow_shared(227 * 1024 + 1) == 1
    assert one_device.library.cudaGetLastError() == 1
    assert one_device.library.allow_shared(227 * 1024) == 0
    one_device.call("run_all_threads", y, 1, 1024, 227 * 1024)
    with pytest.raises(CudaError, match="InvalidValue"):
        one_device.call("run_all_threads", y, 1, 32, 227 * 1024 + 1)
    one_device.configure("cc=86")
    assert one_device.library.allow_shared(99 * 1024 + 1) == 1
    one_device.library.cudaGetLastError()


@pytest.mark.parametrize("file", ["sm80", "sm90"])
def test_static_kernels_of_one_name_are_refused(one_device, file):
    with pytest.raises(CudaError, match=r"two .cu files have a static one of its name.*InvalidDeviceFunction"):
        one_device.call(f"run_of_this_name_are_two_{file}", ints(one_device, 1))


def test_out_of_memory_and_bad_frees(one_device):
    small = one_device.malloc(64)
    for size in (9 << 30, 2**64 - 1):
        with pytest.raises(CudaError, match="out of memory"):
            one_device.malloc(size)
    one_device.free(small)
    with pytest.raises(CudaError, match="InvalidValue"):
        one_device.free(ctypes.c_void_p(12345))
    x = one_device.malloc(100)
    one_device.free(x)
    with pytest.raises(CudaError, match="InvalidValue"):
        one_device.free(x)


def test_copies_are_checked(one_device):
    x, host = one_device.malloc(100), np.zeros(200, np.uint8)
    at = host.ctypes.data_as(ctypes.c_void_p)
    copy = one_device.library.cudaMemcpy
    assert copy(x, at, ctypes.c_size_t(100), 1) == 0
    for arguments in [(x, at, 101, 1), (x, at, 100, 2), (at, x, 100, 1), (at, x, 101, 2), (x, at, 2**64 - 16, 1)]:
        assert copy(*arguments[:2], ctypes.c_size_t(arguments[2]), arguments[3]) == 1
    one_device.library.cudaGetLastError()


def test_graph_replay(device):
    y = device.upload(np.r_[np.zeros(32), np.arange(32)].astype(np.int32))
    x, nodes = device.upload(np.full(32, 7, np.int32)), ctypes.c_int()
    assert device.library.run_graph(y, x, 32, ctypes.byref(nodes)) == 0
    assert nodes.value == 2
    # The second replay copied what the first put into x.
    assert (device.download(y, 32, np.int32) == np.arange(32)).all()
    assert device.report()["launches"] == 2


GLOBAL, THREAD_LOCAL, RELAXED = range(3)
FORBIDDEN, INVALIDATED = 900, 901


@pytest.mark.parametrize(
    "what, mode, error, end",
    [
        ("cudaMalloc", THREAD_LOCAL, FORBIDDEN, INVALIDATED),
        ("cudaMalloc", RELAXED, 0, 0),
        ("wait for the stream", RELAXED, FORBIDDEN, INVALIDATED),
        ("wait for the device", RELAXED, FORBIDDEN, INVALIDATED),
        ("wait for its event", RELAXED, 907, INVALIDATED),
        ("depend on what is outside", RELAXED, 905, INVALIDATED),
        ("fork", RELAXED, 0, 904),
        ("fork and join", RELAXED, 0, 0),
        ("legacy stream", RELAXED, 906, INVALIDATED),
        ("cudaMallocAsync", RELAXED, 801, INVALIDATED),  # of the emulator alone: it has no memory nodes
        ("cudaMemcpy", THREAD_LOCAL, FORBIDDEN, INVALIDATED),
        ("cudaMemcpy", RELAXED, 0, 0),
        ("another thread ends it", THREAD_LOCAL, 908, 0),
        ("another thread ends it", RELAXED, 0, 0),
        ("cudaMalloc in another thread", GLOBAL, FORBIDDEN, INVALIDATED),
        ("cudaMalloc in another thread", THREAD_LOCAL, 0, 0),
        ("begin again", RELAXED, 401, 0),
    ],
)
def test_what_a_capture_forbids(one_device, what, mode, error, end):
    places = [
        "cudaMalloc", "wait for the stream", "wait for the device", "wait for its event", "depend on what is outside",
        "fork", "fork and join", "legacy stream", "cudaMallocAsync", "cudaMemcpy", "another thread ends it",
        "cudaMalloc in another thread", "begin again",
    ]  # fmt: skip
    assert one_device.library.run_in_capture(places.index(what), mode) == end * 1000 + error


def test_memory_has_a_limit(one_device):
    """The pool's idle memory is in the way of a larger allocation until it is trimmed."""
    one_device.configure("memory=100000000")  # so much that what other tests have left is little beside it
    with pytest.raises(CudaError, match="out of memory"):
        one_device.malloc(100_000_001)
    one_device.free(one_device.malloc(90_000_000))
    assert one_device.library.run_idle_pool(60_000_000, 60_000_000, 70_000_000) == 0 * 1000 + 2
    one_device.configure()


# ---- counters


def counted(device, name, *arguments):
    device.configure("count=1")
    device.report()
    device.call(name, *arguments)
    (kernel,) = device.report()["kernels"].values()
    device.configure()
    return kernel


@pytest.mark.parametrize("stride, wavefronts", [(0, 1), (1, 1), (2, 2), (4, 4), (3, 1), (8, 8), (31, 1)])
def test_bank_conflicts(one_device, stride, wavefronts):
    kernel = counted(one_device, "run_shared_stride", ints(one_device), stride)
    assert kernel["shared_load"] == [1, wavefronts, 1]
    assert kernel["shared_store"] == [32, 32, 32]


def test_wide_shared_accesses(one_device):
    kernel = counted(one_device, "run_shared_wide", one_device.malloc(16 * 64))
    assert kernel["shared_load"] == kernel["shared_store"] == [2, 8, 8]
    assert kernel["global_store"] == [2, 32, 32]
    assert kernel["barriers"] == 1 and kernel["blocks"] == 1


@pytest.mark.parametrize("schedule", ["schedule=in_order", "schedule=reverse"])
def test_sectors_of_lanes_with_less_to_copy(one_device, schedule):
    x = one_device.upload(np.zeros(128, np.float32))
    one_device.configure(f"count=1,{schedule}")
    for tail in (16, 4):
        one_device.report()
        one_device.call("run_copy_with_tail", ints(one_device, 32), x, tail)
        (kernel,) = one_device.report()["kernels"].values()
        assert kernel["global_load"] == [1, 16, 16]
        assert kernel["shared_store"] == [1, 4, 4]


@pytest.mark.parametrize("stride, sectors", [(0, 1), (1, 4), (2, 8), (8, 32), (16, 32)])
def test_sectors(one_device, stride, sectors):
    x = one_device.upload(np.zeros(32 * 16, np.float32))
    kernel = counted(one_device, "run_global_stride", one_device.malloc(4 * 32), x, stride)
    assert kernel["global_load"] == [1, sectors, 1 if stride == 0 else 4]
    assert kernel["global_store"] == [1, 4, 4]


# ---- the translator

PTX = """.version 8.0
.target sm_90a
.address_size 64
.visible .entry kernel()
{
    .reg .b16 %h<4>; .reg .b32 %r<9>; .reg .f32 %f<9>; .reg .b64 %d<4>;
    INSTRUCTION
    ret;
}
"""


@pytest.mark.parametrize(
    "instruction",
    [
        "multimem.red.add.u32 [%d1], %r1;",
        "min.f32 %f1, %f2, %f3, %f4;",
        "mov.u32 %r1, nothing;",
        "add.rn.f32x2 %d1, %d2, %d3;",
        # What begins like a known instruction and is another.
        "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b32 [%r1], %r2, [%r3];",
        "red.async.relaxed.cluster.shared::cluster.mbarrier::complete_tx::bytes.add.u32 [%r1], %r2, [%r3];",
        "cvt.rna.tf32.f32 %r1, %f1;",
        "cvt.rn.satfinite.f16.f32 %h1, %f1;",
        "mma.sp.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%f1,%f2,%f3,%f4}, {%r1,%r2}, {%r3,%r4}, "
        "{%f1,%f2,%f3,%f4}, %r5, 0x0;",
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%r1], [%d1], %r2, "
        "[%r3], %h1;",
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile::gather4.mbarrier::complete_tx::bytes [%r1], "
        "[%d1, {%r2, %r3, %r4, %r5, %r6}], [%r7];",
        "fence.proxy.async::generic.acquire.sync_restrict::shared::cluster.cluster;",
    ],
)
def test_what_is_not_known_is_an_error_with_its_line(instruction, tmp_path):
    source = tmp_path / "x.ptx"
    source.write_text(PTX.replace("INSTRUCTION", instruction))
    command = [sys.executable, EMULATION / "ptx_to_cpp.py", source, tmp_path / "x.cpp"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("x.ptx:7: ") and len(done.stderr.splitlines()) == 1
    source.write_text(PTX.replace("INSTRUCTION", "add.f32 %f1, %f2, %f3;"))
    assert subprocess.run(command).returncode == 0


def test_the_translator_finds_its_neighbours(tmp_path):
    source = tmp_path / "x.ptx"
    source.write_text(PTX.replace("INSTRUCTION", ""))
    # Isolated, Python does not look for modules beside the script, nor with PYTHONSAFEPATH.
    command = [sys.executable, "-I", EMULATION / "ptx_to_cpp.py", source, tmp_path / "x.cpp"]
    assert subprocess.run(command).returncode == 0
