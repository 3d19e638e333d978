"""The process of one side: a script that makes inputs, times what it is told to, and answers in lines of JSON.

Started as `python worker.py SIDE PARENT [PATH ...]`; the paths go to the front of sys.path. Requests are lines on
standard input: {"module", "suite", "params"} prepares a case, {"seconds"} times it once more. Unless the side is qkv
itself, `qkv` is a bare package here: its bench modules can be imported, its extension modules are never needed.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import signal
import statistics
import sys
import types
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

BATCH = 50e-6  # shorter calls are timed several at once, for the clock's sake
REPEATS = 3


def end_with_parent(parent: int) -> None:
    """A worker is stopped while others are measured; it must not stay behind so when the parent is killed."""
    with contextlib.suppress(AttributeError, OSError):  # Linux
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit("the parent process has ended")


def time_round(call: Callable[[], Any], seconds: float) -> dict[str, float]:
    """Seconds of a call: the least and the median of at least REPEATS, after one that warms up."""
    start = perf_counter()
    call()
    once = perf_counter() - start
    if once < BATCH:  # the first call may have paid for more than itself
        start = perf_counter()
        call()
        once = perf_counter() - start
    batch = max(1, int(BATCH / max(once, 1e-9)))
    times: list[float] = []
    end = perf_counter() + seconds
    while len(times) < REPEATS or perf_counter() < end:
        start = perf_counter()
        for _ in range(batch):
            call()
        times.append((perf_counter() - start) / batch)
    return {"min": min(times), "median": statistics.median(times), "count": len(times) * batch}


def digest(result: Any) -> float:
    """Mean magnitude of a result: enough to see that two sides computed the same thing."""
    import numpy as np

    if isinstance(result, (tuple, list)):
        result = result[0]
    if str(getattr(result, "dtype", "")) == "torch.bfloat16":  # NumPy has no such type
        result = result.float()
    return float(np.abs(np.asarray(result)).mean(dtype=np.float64))


def is_tokens(result: Any) -> bool:
    """Whether a result is rows of token ids, which are compared one by one. Quantised values are narrower."""
    return str(getattr(result, "dtype", "")) == "int64" and result.ndim == 2


class Worker:
    def __init__(self, side: str):
        self.side = side
        self.call: Callable[[], Any] | None = None

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        if "seconds" in request:
            assert self.call is not None
            return time_round(self.call, request["seconds"])
        self.call = None  # gives the memory of the last case back first
        suite = importlib.import_module(request["module"]).SUITES[request["suite"]]
        self.call = suite.sides[self.side](**suite.inputs(**request["params"]))
        assert self.call is not None
        result = self.call()
        return {"digest": digest(result), **({"tokens": result.tolist()} if is_tokens(result) else {})}


def main(side: str, parent: str, *paths: str) -> None:
    end_with_parent(int(parent))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    sys.path[:1] = paths  # in place of this script's folder, whose modules would shadow others
    if side != "qkv":
        package = types.ModuleType("qkv")
        package.__path__ = [str(Path(__file__).resolve().parents[1])]
        sys.modules["qkv"] = package
    # What a library prints must not end up between the answers.
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    worker = Worker(side)
    for line in sys.stdin:
        try:
            reply = worker.answer(json.loads(line))
        except Exception as error:  # whatever a library raises is an answer
            reply = {"error": f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
