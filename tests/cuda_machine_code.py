"""What nvcc made of the kernels, read off the machine code in qkv._cuda. Needs cuobjdump and nvdisasm, on the PATH or
of the packages nvidia-cuda-cuobjdump and nvidia-cuda-nvdisasm."""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import NamedTuple

import pytest

ARCHES = ("sm_80", "sm_90a")


def tools() -> Path | None:
    """The folder of cuobjdump and nvdisasm."""
    for folder in [
        os.path.dirname(shutil.which("cuobjdump") or ""),
        *Path(sysconfig.get_path("purelib")).glob("nvidia/*/bin"),
    ]:
        if folder and all((Path(folder) / tool).exists() for tool in ("cuobjdump", "nvdisasm")):
            return Path(folder)
    return None


MODULE = importlib.util.find_spec("qkv._cuda")
TOOLS = tools()
needs_module = pytest.mark.skipif(MODULE is None, reason="no qkv._cuda in this build")
needs_tools = pytest.mark.skipif(TOOLS is None, reason="cuobjdump and nvdisasm are not here")
needed = [needs_module, needs_tools]


def cuobjdump(*options: str) -> str:
    assert TOOLS is not None and MODULE is not None and MODULE.origin is not None
    done = subprocess.run(
        [TOOLS / "cuobjdump", *options, MODULE.origin],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PATH": f"{TOOLS}{os.pathsep}{os.environ['PATH']}"},
    )
    return done.stdout


class Kernel(NamedTuple):
    name: str  # without namespaces and arguments, template arguments mangled
    family: str  # without those too
    arch: str
    usage: dict[str, int]  # REG, STACK, LOCAL ...
    code: list[tuple[int, str]]  # address, instruction without its predicate

    def count(self, pattern: str) -> int:
        return sum(bool(re.match(pattern, text)) for _, text in self.code)

    def loops(self) -> list[list[str]]:
        """The instructions of each of the innermost, by branches back, in the order of the code."""
        back = [
            (int(to[1], 16), at)
            for at, text in self.code
            if (to := re.match(r"BRA(?:\.\w+)* (?:!?U?P\w+, )?0x([0-9a-f]+)", text)) and int(to[1], 16) < at
        ]
        inner = [(a, b) for a, b in back if not any(a <= c and d <= b and (a, b) != (c, d) for c, d in back)]
        return [[text for at, text in self.code if a <= at <= b] for a, b in sorted(inner)]


def short(mangled: str) -> tuple[str, str]:
    """`gemm_tileI13__nv_bfloat16...` and `gemm_tile` of `_ZN3qkv4cuda<a namespace without a name>9gemm_tileI13...`."""
    rest = re.sub(r"^_ZN3qkv4cuda(\d+_GLOBAL__N__\w+?_cu_[0-9a-f]{8})?", "", mangled)
    length = re.match(r"\d+", rest)
    assert length, mangled
    name = rest[length.end() :]
    return name, name[: int(length[0])]


def unhashed(mangled: str) -> str:
    """nvcc's hashes of anonymous namespaces left out: they differ where a file was compiled elsewhere."""
    return re.sub(r"(?<=_GLOBAL__N__)[0-9a-f]{8}(_\w+?_cu_)[0-9a-f]{8}", r"\1", mangled)


def read(arch: str, *options: str) -> list[Kernel]:
    """Those of an architecture; "-fun", a mangled name: only this one."""
    usage: dict[str, dict[str, int]] = {}
    name = ""
    for line in cuobjdump("--dump-resource-usage", "-arch", arch, *options).splitlines():
        if found := re.match(r"\s*Function (\S+):", line):
            name = found[1]
        elif "REG:" in line:
            usage[name] = {k: int(v) for k, v in re.findall(r"([A-Z]+):(\d+)", line)}
    text = cuobjdump("--dump-sass", "-arch", arch, *options)
    kernels = []
    for name, body in re.findall(r"Function : (\S+)(.*?)(?=Function : |\Z)", text, re.DOTALL):
        code = re.findall(r"/\*([0-9a-f]{4,5})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][^;]*);", body)
        kernels.append(Kernel(*short(name), arch, usage[name], [(int(a, 16), t) for a, t in code]))
    return kernels


def read_one(arch: str, mangled: str) -> Kernel:
    """The kernel of that name, be it of another build."""
    names = re.findall(r"Function (\S+):", cuobjdump("--dump-resource-usage", "-arch", arch))
    (name,) = [name for name in names if unhashed(name) == unhashed(mangled)]
    (kernel,) = read(arch, "-fun", name)
    return kernel


@functools.cache
def all_kernels() -> list[Kernel]:
    kernels = [kernel for arch in ARCHES for kernel in read(arch)]
    assert len(kernels) > 200
    return kernels
