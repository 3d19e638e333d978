"""`import`: seconds that importing a library adds to importing NumPy, each time in a new process, in turn."""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from qkv.bench.report import format_seconds

SCRIPT = """
import numpy, time
start = time.perf_counter()
import {module}
print(time.perf_counter() - start)
"""


def import_times(
    sides: Sequence[str], pythons: Mapping[str, str], rounds: int
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Seconds of each round by side, and why a side has none."""
    times: dict[str, list[float]] = {side: [] for side in sides if side != "numpy"}
    errors: dict[str, str] = {}
    for r in range(rounds + 1):  # the first one brings the files into memory
        for side in list(times):
            command = [pythons.get(side, sys.executable), "-c", SCRIPT.format(module=side)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                errors[side] = (done.stderr.strip().splitlines() or ["it failed"])[-1]
                del times[side]
            elif r:
                times[side].append(float(done.stdout.split()[-1]))
    return times, errors


def report(sides: Sequence[str], pythons: Mapping[str, str], rounds: int) -> dict[str, Any]:
    times, errors = import_times(sides, pythons, rounds)
    print(f"\n{'import, beyond numpy':<30}{'least':>10}{'median':>10}")
    for side, seconds in times.items():
        print(f"  {side:<28}{format_seconds(min(seconds)):>10}{format_seconds(statistics.median(seconds)):>10}")
    for side, why in errors.items():
        print(f"    {side}: {why}")
    return {"seconds": times, "errors": errors}
