"""The instructions of a kernel that wait or order, which the emulator can leave out: does its checker miss them?"""

from __future__ import annotations

import ctypes
import json
from pathlib import Path
from typing import NamedTuple

ORDERING = (
    "bar.sync",
    "bar.warp.sync",
    "barrier.cluster.wait",
    "cp.async.wait",
    "cp.async.bulk.commit_group",
    "cp.async.bulk.wait_group",
    "mbarrier.try_wait",
    "wgmma.commit_group",
    "wgmma.fence",
    "wgmma.wait_group",
    "fence.mbarrier_init",
    "fence.proxy.async",
)
WAIT = ("griddepcontrol.wait",)  # for the kernel before: in dependent launches alone


class Site(NamedTuple):
    kernel: str  # mangled
    ptx_line: int
    file: str
    line: int
    text: str

    def leave_out(self) -> str:
        """For the emulator's configuration."""
        return f"leave_out={self.kernel}:{self.ptx_line}"

    def place(self) -> str:
        return f"{self.file}:{self.line} {self.text.split()[0]}"


def ordering_sites(library: ctypes.CDLL, kernel: str, kinds: tuple[str, ...] = ORDERING) -> list[Site]:
    buffer = ctypes.create_string_buffer(1 << 22)
    library.qkv_emulator_sites(kernel.encode(), buffer, ctypes.c_size_t(len(buffer)))
    found = [Site(kernel, line, Path(file).name, at, text) for line, text, file, at in json.loads(buffer.value)]
    return [site for site in found if site.text.startswith(kinds)]
