"""`threads`: what the second thread gains, alone, beside a busy process, and beside another pool in the same process.

Each side runs this file as a script, in a process of its own, and times one thread against two in turn. `gain` is the
time of one thread over that of two, `lost` the time beside a busy process over that alone. Three threads on two cores
leave us 1.33 to 1.5 cores, as the scheduler likes, so work that is claimed in chunks should lose 1.33 to 1.5; work
cut into even parts waits for the slower one. The last columns: the op right after a product of that library in the
same process, whose pool still spins, over the op alone.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

Call = Callable[[], Any]

SIDES = ("qkv", "numpy", "torch")
WIDTH = 768
GEMMS = (16, 128, 512)  # rows: 768x768 of them take about 0.25, 2 and 8 ms of one core
BUSY = "while True: pass"


# ---- in the process of a side -----------------------------------------------------------------------


def calls(side: str, rows: int) -> tuple[dict[str, Call], Callable[[int], None]]:
    """The ops of a side, and how it sets its threads. rows: of layer_norm, more than the caches hold."""
    import numpy as np

    rng = np.random.default_rng(0)
    weight = rng.standard_normal((WIDTH, WIDTH), np.float32)
    xs = {m: rng.standard_normal((m, WIDTH), np.float32) for m in GEMMS}
    big = rng.standard_normal((rows, WIDTH), np.float32)
    ops: dict[str, Call] = {}
    if side == "qkv":
        import qkv

        packed = qkv.pack_weight(weight)
        for m, x in xs.items():
            ops[f"linear {m}x{WIDTH}x{WIDTH}"] = lambda x=x: qkv.linear(x, packed)
        ops[f"layer_norm {rows}x{WIDTH}"] = lambda: qkv.layer_norm(big)
        return ops, qkv.set_num_threads
    if side == "torch":
        import torch

        torch.set_grad_enabled(False)
        w, y = torch.from_numpy(weight), torch.from_numpy(big)
        linear = torch.nn.functional.linear
        for m, z in {m: torch.from_numpy(x) for m, x in xs.items()}.items():
            ops[f"linear {m}x{WIDTH}x{WIDTH}"] = lambda z=z: linear(z, w)
        ops[f"layer_norm {rows}x{WIDTH}"] = lambda: torch.nn.functional.layer_norm(y, (WIDTH,))
        return ops, torch.set_num_threads
    import threadpoolctl

    for m, x in xs.items():
        ops[f"linear {m}x{WIDTH}x{WIDTH}"] = lambda x=x: x @ weight.T
    return ops, lambda n: threadpoolctl.threadpool_limits(n) and None


def spinner(kind: str) -> Call | None:
    """A call after which the other pool's threads still spin."""
    import numpy as np

    x = np.ones((256, 256), np.float32)
    if kind == "openblas":
        return lambda: x @ x
    import torch

    torch.set_num_threads(2)
    y = torch.from_numpy(x)
    return lambda: y @ y


def times(call: Call, seconds: float, before: Call | None = None) -> list[float]:
    found: list[float] = []
    call()
    end = perf_counter() + seconds
    while len(found) < 5 or perf_counter() < end:
        if before:
            before()
        start = perf_counter()
        call()
        found.append(perf_counter() - start)
    return found


def summary(found: list[float]) -> dict[str, float]:
    return {"min_s": min(found), "median_s": statistics.median(found), "mean_s": statistics.fmean(found)}


def measure_side(side: str, rows: int, rounds: int, seconds: float) -> dict[str, Any]:
    """op -> condition -> least and median seconds."""
    ops, set_threads = calls(side, rows)
    befores: dict[str, Call] = {}
    for kind in ("torch", "openblas") if side == "qkv" else ():
        try:
            before = spinner(kind)
        except ImportError:
            continue
        assert before
        befores[f"after {kind}"] = before
    found: dict[str, dict[str, list[float]]] = {op: {} for op in ops}

    def note(op: str, condition: str, seconds_each: list[float]) -> None:
        found[op].setdefault(condition, []).extend(seconds_each)

    for _ in range(rounds):
        for op, call in ops.items():
            for threads, condition in ((1, "one"), (2, "two")):
                set_threads(threads)
                note(op, condition, times(call, seconds))
            for condition, before in befores.items():
                note(op, condition, times(call, seconds, before))
        busy = subprocess.Popen([sys.executable, "-c", BUSY])
        try:
            for op, call in ops.items():
                note(op, "busy", times(call, 4 * seconds))
        finally:
            busy.kill()
            busy.wait()
    return {op: {condition: summary(t) for condition, t in by.items()} for op, by in found.items()}


# ---- in the benchmark's process ------------------------------------------------------------------------


def report(sides: Sequence[str], pythons: Mapping[str, str], rounds: int, seconds: float = 0.1) -> dict[str, Any]:
    """Runs every side and prints the table."""
    from qkv.bench.report import format_seconds
    from qkv.bench.suites import out_of_cache_rows

    rows = out_of_cache_rows()
    results: dict[str, Any] = {}
    print(
        f"\n{'threads':<26}{'side':>8}{'one':>10}{'two':>10}{'gain':>7}{'busy':>10}{'lost':>7}{'torch':>7}{'oblas':>7}"
    )
    for i, side in enumerate(name for name in sides if name in SIDES):
        print(f"threads: {side} ({i + 1})", file=sys.stderr)
        command = [pythons.get(side, sys.executable), str(Path(__file__)), side, str(rows), str(rounds), str(seconds)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            results[side] = {"error": (done.stderr.strip().splitlines() or ["it failed"])[-1]}
            print(f"    {side}: {results[side]['error']}")
            continue
        results[side] = json.loads(done.stdout)
        for op, by in results[side].items():
            one, two = (by[name]["median_s"] for name in ("one", "two"))
            busy = by["busy"]["mean_s"]
            others = [by[name]["median_s"] / two if name in by else None for name in ("after torch", "after openblas")]
            tail = "".join(f"{x:>7.2f}" if x else f"{'-':>7}" for x in others)
            print(
                f"  {op:<24}{side:>8}{format_seconds(one):>10}{format_seconds(two):>10}{one / two:>7.2f}"
                f"{format_seconds(busy):>10}{busy / two:>7.2f}{tail}"
            )
    return results


if __name__ == "__main__":
    sys.path.pop(0)  # this folder, whose modules would shadow others
    print(json.dumps(measure_side(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))))
