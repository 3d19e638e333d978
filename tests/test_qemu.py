"""The package on processors that this machine is not: without AVX, and with AVX2 but without AVX-512, under qemu-user.

An instruction that the emulated processor lacks ends the process with a signal, wherever it was compiled into.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

QEMU = shutil.which("qemu-x86_64")
PROGRAM = Path(__file__).parent / "every_kernel.py"

pytestmark = [
    pytest.mark.skipif(platform.machine() != "x86_64", reason="runs this interpreter, which is no x86-64 one"),
    pytest.mark.skipif(QEMU is None, reason="qemu-x86_64 (Debian package qemu-user) is not installed"),
    pytest.mark.skipif("asan" in os.environ.get("LD_PRELOAD", ""), reason="the sanitizer does not run under qemu"),
]


def emulate(cpu: str, blas: str, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run this interpreter on an emulated processor.

    What is under test is not NumPy: `blas` is the core that its OpenBLAS is told to assume, which left alone takes AVX2
    kernels on any of qemu's processors and dies at import; and it must not use AVX2 itself, because NumPy 2.2's tanh
    then returns 1e20 under qemu 7.2. The features have other names from NumPy 2.4 on; unknown ones are ignored.
    """
    assert QEMU is not None
    numpy_env = {"OPENBLAS_CORETYPE": blas, "NPY_DISABLE_CPU_FEATURES": "X86_V3 AVX2 FMA3"}
    return subprocess.run(
        [QEMU, "-cpu", cpu, sys.executable, *arguments],
        env={**os.environ, **numpy_env, "QKV_ISA": "", **env},
        capture_output=True,
        text=True,
        timeout=600,
    )


def test_without_avx() -> None:
    """Nehalem, 2008: SSE4.2 and POPCNT, which is what NumPy itself asks for."""
    done = emulate("Nehalem", "Nehalem", str(PROGRAM), "scalar")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("scalar: ")


def test_without_avx512() -> None:
    done = emulate("Haswell", "Haswell", str(PROGRAM), "scalar", "avx2")
    assert done.returncode == 0, done.stderr
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == ["scalar", "avx2"]


def test_without_fma() -> None:
    """AVX2 kernels also use FMA and F16C: a processor that hides one of them does not get them."""
    for cpu in ("Haswell,-fma", "Haswell,-f16c", "Haswell,-avx2", "Haswell,-xsave"):
        done = emulate(cpu, "Nehalem", "-c", "import qkv; print(*qkv.isas())")
        assert done.returncode == 0, f"{cpu}: {done.stderr}"
        assert done.stdout.split() == ["scalar"], cpu


@pytest.mark.parametrize("name", ["avx2", "avx512"])
def test_what_the_processor_lacks_is_refused(name: str) -> None:
    """Not run and then killed: the error names what is possible."""
    code = "import numpy as np, qkv; qkv.relu(np.ones(3, np.float32))"
    done = emulate("Nehalem", "Nehalem", "-c", code, QKV_ISA=name)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert "QKV_ISA" in last and "scalar" in last


def test_the_emulated_processor_really_lacks_avx() -> None:
    """The tests above can fail: one AVX instruction, written into memory and called, ends the process."""
    code = (
        "import ctypes, mmap\n"
        "memory = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)\n"
        "memory.write(bytes.fromhex('c5f857c0 c3'))  # vxorps xmm0, xmm0, xmm0; ret\n"
        "ctypes.CFUNCTYPE(None)(ctypes.addressof(ctypes.c_char.from_buffer(memory)))()\n"
        "print('survived')\n"
    )
    assert emulate("Haswell", "Haswell", "-c", code).stdout.strip() == "survived"
    done = emulate("Nehalem", "Nehalem", "-c", code)
    assert done.returncode < 0 and "survived" not in done.stdout
