"""The op tests again, on the device: on the emulator where it was built, on a GPU where there is one (on_device.py);
and the models, whose tests compare the device with the CPU. QKV_TEST_EMULATED_EVERY=N leaves an N-th of each test's
cases in emulation (conftest.py)."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import qkv

# Of those that take minutes none is left to the end.
FILES = [
    "test_attention",
    "test_attention_masked",
    "test_gemm",
    "test_cuda_sample",
    "test_cuda_capture",
    "test_attention_varlen",
    "test_attention_paged",
    "test_activation",
    "test_attention_names",
    "test_embedding",
    "test_norm",
    "test_paged_write",
    "test_rotary",
    "test_scaled_sum",
    "test_softmax",
    "test_top_k",
    "test_additive_attention",
    "test_cuda_arrays",
    "test_cuda_attention_paged",
    "test_cuda_cache",
    "test_cuda_choice",
    "test_cuda_gemm_quantized",
    "test_cuda_gemm_sm90",
    "test_cuda_memory",
    "test_cuda_moves",
    "test_cuda_streams",
    "test_cuda_tasks",
    "test_cuda_tokens",
]
# Once more by Hopper's kernels wherever these can do it; unasked they take what has many rows.
BY_HOPPER = ["test_attention", "test_attention_masked", "test_attention_varlen"]
OF_MODELS = ["test_cuda_models"]
# Again, as on a GPU before Hopper, whose kernels are others.
PORTABLE = ["test_gemm", "test_cuda_capture"]
EMULATED_ONLY = {"test_cuda_streams"}
RUNS = [(file, "fastest") for file in OF_MODELS + FILES] + [(file, "hopper") for file in BY_HOPPER]
# In emulation without its checks, which take as long again, as those BY_HOPPER: the kernels are those of others here.
UNCHECKED = {"test_attention_names", "test_attention_paged"}

DEVICES = {
    "emulated": importlib.util.find_spec("qkv._cuda_emulated") is not None,
    "on": not os.environ.get("QKV_CUDA") and qkv.cuda.is_available(),
}


def device_of_arrays(file: str) -> str:
    """QKV_TEST_DEVICE for it: the models' tests hold both devices beside each other."""
    return "cpu" if file in OF_MODELS else "cuda"


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("file, path", RUNS)
def test_on_device(device: str, file: str, path: str) -> None:
    if device == "on" and file in EMULATED_ONLY:
        pytest.skip("all its tests are of the emulator")
    if not DEVICES[device]:
        pytest.skip("no emulator in this build" if device == "emulated" else "no GPU here")
    run(device, file, "check=0" if file in UNCHECKED or path == "hopper" else "", path)


@pytest.mark.skipif(not DEVICES["emulated"], reason="no emulator in this build")
@pytest.mark.parametrize("file", PORTABLE)
def test_as_before_hopper(file: str) -> None:
    run("emulated", file, "cc=80")


def run(device: str, file: str, configuration: str, path: str = "fastest") -> None:
    here = Path(__file__).parent
    every = os.environ.get("QKV_TEST_EMULATED_EVERY", "1") if device == "emulated" else "1"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-pno:cacheprovider", "-pno:xdist", f"--every={every}", f"{file}.py"],
        cwd=here,
        env={
            **os.environ,
            "QKV_CUDA": device,
            "QKV_TEST_DEVICE": device_of_arrays(file),
            "QKV_TEST_PATH": path,
            "QKV_NUM_THREADS": "1",
            **({"QKV_EMULATOR": configuration} if configuration else {}),
        },
        capture_output=True,
        text=True,
        timeout=3600,
    )
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout[-6000:] + done.stderr[-2000:]


if __name__ == "__main__":  # what bench/gpu.sh runs on a GPU, Hopper's kernels first
    for file, path in sorted(RUNS, key=lambda run: run[1] != "hopper"):
        if file not in EMULATED_ONLY:
            print(file, path, device_of_arrays(file))
