"""`footprint`: what a BERT-base costs besides its kernels: load time, memory, Python's share of a call, page faults.

Each weight type runs this file as a script, in a process of its own, on a folder as Hugging Face writes it. `peak` is
the resident memory that loading reached over what the process had before; `file` and `packed` are the sizes of the
weights before and after. `python` is what of a call was not spent inside the extension module, at 1 x 16 and 1 x 128
tokens, the clocks that measure it included; the shares of the module's functions stand beside it. `faults` are minor
page faults a call in steady state: an array that was not taken from the pool shows here.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

TYPES = ("float32", "bfloat16", "int8", "int4")
TOKENS = (16, 128)


# ---- in the process of a weight type ----------------------------------------------------------------


class Timed:
    """The extension module with a clock around each of its functions."""

    def __init__(self, module: Any):
        self.module = module
        self.seconds: dict[str, float] = {}

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.module, name)
        if isinstance(value, type) or not callable(value):
            return value
        self.seconds[name] = 0.0

        def call(*args: Any, **kwargs: Any) -> Any:
            start = perf_counter()
            result = value(*args, **kwargs)
            self.seconds[name] += perf_counter() - start
            return result

        setattr(self, name, call)
        return call


def resident(field: str = "VmRSS") -> int:
    """Bytes, by a field of /proc/self/status."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line for line in status.splitlines() if line.startswith(field + ":")).split()[1])


def shares(call: Callable[[], Any], timed: Timed, calls: int) -> dict[str, float]:
    """Of a call's time, medians: each function of the extension, and `python`, the rest."""
    found: dict[str, list[float]] = {}
    for _ in range(calls):
        for name in timed.seconds:
            timed.seconds[name] = 0.0
        start = perf_counter()
        call()
        total = perf_counter() - start
        for name, seconds in timed.seconds.items():
            found.setdefault(name, []).append(seconds / total)
        found.setdefault("python", []).append(1 - sum(timed.seconds.values()) / total)
    return {name: statistics.median(x) for name, x in found.items()}


def measure_type(folder: str, dtype: str, calls: int) -> dict[str, Any]:
    import numpy as np
    import qkv
    from qkv import ops

    before = resident()
    start = perf_counter()
    model = qkv.load(folder, dtype=dtype)
    load = perf_counter() - start
    result: dict[str, Any] = {
        "load_s": load,
        "peak_bytes": resident("VmHWM") - before,
        "packed_bytes": sum(x.nbytes for x in model.parameters.values()),
    }
    module = ops._cpu
    for tokens in TOKENS:
        ids = np.random.default_rng(0).integers(0, 30000, (1, tokens))
        for _ in range(3):
            model(ids)
        start_faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(calls):
            model(ids)
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - start_faults
        timed = Timed(module)
        ops._cpu = timed  # type: ignore[assignment]
        model(ids)
        by = shares(lambda ids=ids: model(ids), timed, calls)
        ops._cpu = module
        result[f"1x{tokens}"] = {"faults": faults / calls, "shares": by}
    return result


# ---- in the benchmark's process ------------------------------------------------------------------------


def write_folder(folder: Path) -> int:
    """BERT-base with random weights; the bytes of its weights."""
    from qkv.bench import bert
    from safetensors.numpy import save_file

    (folder / "config.json").write_text(json.dumps(bert.BERT_BASE))
    weights = bert.random_weights(bert.BERT_BASE)
    save_file(weights, folder / "model.safetensors")
    return sum(x.nbytes for x in weights.values())


def report(threads: int | None = None, calls: int = 20, types: Sequence[str] = TYPES) -> dict[str, Any]:
    """Runs every weight type and prints the table."""
    results: dict[str, Any] = {}
    environment = dict(os.environ) if threads is None else {**os.environ, "QKV_NUM_THREADS": str(threads)}
    print(f"\n{'footprint':<14}{'load':>10}{'file':>10}{'packed':>10}{'peak':>10}{'1x':>6}{'python':>9}{'faults':>8}")
    with tempfile.TemporaryDirectory() as name:
        size = write_folder(Path(name))
        for dtype in types:
            command = [sys.executable, str(Path(__file__)), name, dtype, str(calls)]
            done = subprocess.run(command, capture_output=True, text=True, env=environment)
            if done.returncode:
                results[dtype] = {"error": (done.stderr.strip().splitlines() or ["it failed"])[-1]}
                print(f"    {dtype}: {results[dtype]['error']}")
                continue
            results[dtype] = one = {"file_bytes": size, **json.loads(done.stdout)}
            memory = "".join(f"{x / 1e6:>7.0f} MB" for x in (size, one["packed_bytes"], one["peak_bytes"]))
            for tokens in TOKENS:
                start = f"  {dtype:<12}{one['load_s']:>8.2f} s{memory}" if tokens == TOKENS[0] else " " * 54
                by = dict(one[f"1x{tokens}"]["shares"])
                line = f"{start}{tokens:>6}{by.pop('python'):>9.1%}{one[f'1x{tokens}']['faults']:>8.1f}   "
                largest = sorted(by.items(), key=lambda item: -item[1])
                print(line + ", ".join(f"{name} {share:.1%}" for name, share in largest if share >= 0.001))
    return results


if __name__ == "__main__":
    sys.path.pop(0)  # this folder, whose modules would shadow others
    print(json.dumps(measure_type(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
