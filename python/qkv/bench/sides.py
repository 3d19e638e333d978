"""The processes of the sides, one each, of which at most one runs at any time."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .core import Case, Suite

WORKER = Path(__file__).with_name("worker.py")
THREAD_VARIABLES = ("QKV_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class Sides:
    """Worker processes by the names of their sides; a context manager that ends them.

    pythons: side -> interpreter, where it is not this one. paths: what the workers find at the front of sys.path.
    threads: for every side alike; None leaves each library its own default.

    A process that is not being measured is stopped (SIGSTOP): threads of a pool that spin for a while after their work
    would take cores from the next side.
    """

    def __init__(
        self,
        names: Sequence[str],
        *,
        pythons: Mapping[str, str] | None = None,
        paths: Sequence[str] = (),
        threads: int | None = None,
    ):
        self.names = list(names)
        self._pythons = dict(pythons or {})
        self._paths = list(paths)
        self._environment = dict(os.environ)
        if threads is not None:
            self._environment.update(dict.fromkeys(THREAD_VARIABLES, str(threads)))
        self._processes: dict[str, subprocess.Popen[str]] = {}

    def __enter__(self) -> Sides:
        return self

    def __exit__(self, *_: object) -> None:
        for side in list(self._processes):
            self._end(side)

    def prepare(self, side: str, suite: Suite, case: Case) -> dict[str, Any]:
        """{"digest"} of the side's result, or {"error"}."""
        return self._ask(side, {"module": suite.module, "suite": suite.name, "params": case.params})

    def round(self, side: str, seconds: float) -> dict[str, Any]:
        """{"min", "median"} seconds of the prepared case, or {"error"}."""
        return self._ask(side, {"seconds": seconds})

    def _ask(self, side: str, request: dict[str, Any]) -> dict[str, Any]:
        process = self._processes.get(side)
        try:
            if process is None:
                process = self._start(side)
            assert process.stdin is not None and process.stdout is not None
            process.send_signal(signal.SIGCONT)
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except OSError as error:
            self._end(side)
            return {"error": f"{self._python(side)}: {error.strerror or error}"}
        if not line:
            status = self._end(side)
            return {
                "error": f"the process ended with {signal.Signals(-status).name if status < 0 else f'status {status}'}"
            }
        process.send_signal(signal.SIGSTOP)
        reply: dict[str, Any] = json.loads(line)
        return reply

    def _python(self, side: str) -> str:
        return self._pythons.get(side, sys.executable)

    def _start(self, side: str) -> subprocess.Popen[str]:
        # qkv itself is found where this process found it.
        paths = [*self._paths, *([str(WORKER.parents[2])] if side == "qkv" else [])]
        command = [self._python(side), str(WORKER), side, str(os.getpid()), *paths]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=self._environment
        )
        self._processes[side] = process
        return process

    def _end(self, side: str) -> int:
        """Its exit status, negative for a signal."""
        process = self._processes.pop(side, None)
        if process is None:
            return 0
        process.send_signal(signal.SIGCONT)
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        try:
            return process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()
