"""Times of the CUDA kernels beside torch's on the same GPU: python -m bench cuda [--json FILE].

First the limits: a large copy, and a large bf16 product by cuBLAS. Then a line a case: time, TFLOP/s or GB/s, share of
the limit, and of each peer its time divided by ours. Calls are captured in a CUDA graph and replayed, so that no side
waits for Python; sides take turns; times are medians of CUDA events; inputs are random, and used by turns where they
would fit into the caches. Without torch, or with one that has no CUDA, there are no peers and no limit of products:
the copy is ours, and the host's clock measures replays of our own recordings.

--json is written after every line, so a run that is cut off has measured what it printed; and another process does the
measuring, which is started again for what is left if a line ends it, or takes too long. --resume goes on with a file of
before. --sweep measures every kernel for products, by cuts and order of tiles, instead of the one that is chosen: what
csrc/cuda/gemm.cu estimates can then be corrected. --tiny runs and records every case once on a small shape, on whatever
qkv.cuda has, the emulator too, and measures nothing: to see that all of them run.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import qkv

from .cuda_table import Table

PARTS = ("products", "attention", "rows", "tokens", "models")
# Seconds without a new line before a process counts as stuck; torch compiles its model for a line of the models.
PATIENCE, PATIENCE_OF_MODELS = 90.0, 200.0


def sweep(table: Table) -> None:
    """Every kernel that can do a product, with its cuts of k and orders of tiles, beside the one that is chosen."""
    table.results["tiles"] = []
    shapes = [(8192, 8192, 8192), (4096, 4096, 4096), (2048, 3072, 768), (2048, 768, 3072), (512, 4096, 4096),
              (128, 768, 768), (128, 4096, 4096), (64, 4096, 4096), (32, 4096, 4096), (16, 8192, 8192)]  # fmt: skip
    for shape in shapes:
        table.attempt(sweep_shape, *(table.size(n) for n in shape))


def sweep_shape(table: Table, m: int, n: int, k: int) -> None:
    module = qkv.cuda.module()
    x, w = [table.randn(m, k) for _ in range(2)], [table.randn(n, k) for _ in range(2)]
    kernels = ["wgmma_large", "wgmma_medium", "wgmma_small", "tensor_large", "tensor_medium", "tensor_small"]
    cuts = [s for s in (1, 2, 3, 4, 8) if s == 1 or (m <= 512 and k // s >= 256)]
    groups = (4, 8, 16, 32) if m >= 2048 else (16,)
    choices = [("", 0, 0), *((kernel, s, g) for kernel in kernels for s in cuts for g in groups)]
    if m <= 32:
        choices.append(("skinny", 0, 0))
    measured = {}
    for kernel, splits, group in choices:
        name = f"{m}x{n}x{k} {kernel or 'as planned'} {splits or ''} {group or ''}".strip()
        module.force_gemm(kernel, splits, group)
        try:
            us = table.line(name, lambda i: qkv.linear(x[i % 2], w[i % 2]), {}, flop=2 * m * n * k)
        finally:
            module.force_gemm()
        if us == us:  # not NaN: it was measured
            measured[kernel, splits, group] = us
    planned = measured.pop(choices[0], None)
    if measured:
        winner = min(measured, key=lambda choice: measured[choice])
        best = {"shape": [m, n, k], "best": list(winner), "us": measured[winner]}
        if planned:
            best["planned / best"] = planned / measured[winner]
        table.results["tiles"].append(best)
        print("  " + ", ".join(f"{name}: {value}" for name, value in best.items()), flush=True)
        table.save()


def supervised(command: list[str], path: Path, patience: float) -> int:
    """Runs a command that writes what it measures to `path`, and runs it again for the rest as long as it fails and has
    written more; its exit status. It counts as failed too where it writes nothing for `patience` seconds."""

    def written() -> bytes:
        return path.read_bytes() if path.exists() else b""

    while True:
        seen = before = written()
        child = subprocess.Popen(command)
        try:
            waited = 0.0  # not by a clock, which goes on where this machine is halted
            while child.poll() is None:
                time.sleep(0.1)
                waited += 0.1
                if (now := written()) != seen:
                    seen, waited = now, 0.0
                elif waited > patience:
                    print(f"nothing new for {patience:.0f} s: ended", flush=True)
                    child.kill()
                    child.wait()
        finally:
            child.kill()
            child.wait()
        if child.returncode == 0 or written() == before:
            return child.returncode
        print(f"ended with status {child.returncode}: on with what is left", flush=True)


def failures(results: dict[str, Any]) -> list[str]:
    """Lines of ours that were not measured."""
    cases = [*results["cases"], *results.get("models", [])]
    return [*results.get("errors", {}), *(c["case"] for c in cases if not c.keys() & {"us", "done"})]


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(prog="python -m bench cuda", description="qkv's CUDA kernels beside torch's")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all but for none")
    parser.add_argument("--json", metavar="FILE", help="where to write what is measured, line by line")
    parser.add_argument("--only", metavar="TEXT", help="cases whose name contains it")
    parser.add_argument("--resume", action="store_true", help="what --json's file has already is not measured again")
    parser.add_argument("--sweep", action="store_true", help="the kernels for products one by one, nothing else")
    parser.add_argument("--tiny", action="store_true", help="every case once, small, and not timed")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no part {sorted(unknown)[0]!r}; there are {', '.join(PARTS)}")
    if not qkv.cuda.is_available():
        parser.exit(2, f"bench: {qkv.cuda.why_not()}\n")
    parts = () if options.sweep else options.parts or PARTS
    if options.json and not options.tiny and not options.child:
        path = Path(options.json)
        if not options.resume:
            path.unlink(missing_ok=True)
        command = [sys.executable, "-m", "bench", "cuda", *arguments, "--resume", "--child"]
        status = supervised(command, path, PATIENCE_OF_MODELS if "models" in parts else PATIENCE)
        failed = failures(json.loads(path.read_text())) if path.exists() else []
        if failed:
            print(f"not measured: {'; '.join(failed)}", flush=True)
        return status or bool(failed)
    from . import cuda_cases, cuda_models

    table = Table(options)
    table.limits()
    if options.sweep:
        sweep(table)
    for part in parts:
        cuda_models.models(table) if part == "models" else getattr(cuda_cases, part)(table)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
