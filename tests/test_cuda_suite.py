"""The op tests again, on the device: on the emulator where it was built, on a GPU where there is one (on_device.py)."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import qkv

FILES = [
    "test_softmax",
    "test_norm",
    "test_activation",
    "test_gemm",
    "test_attention",
    "test_attention_masked",
    "test_attention_varlen",
    "test_cuda_arrays",
    "test_cuda_gemm_quantized",
    "test_cuda_streams",
]

DEVICES = {
    "emulated": importlib.util.find_spec("qkv._cuda_emulated") is not None,
    "on": os.environ.get("QKV_CUDA") is None and qkv.cuda.is_available(),
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("file", FILES)
def test_on_device(device: str, file: str) -> None:
    if not DEVICES[device]:
        pytest.skip("no emulator in this build" if device == "emulated" else "no GPU here")
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", f"{file}.py"],
        cwd=here,
        env={**os.environ, "QKV_CUDA": device, "QKV_TEST_DEVICE": "cuda", "QKV_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=3600,
    )
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout[-6000:] + done.stderr[-2000:]
