"""Times of the CUDA kernels beside torch's on the same GPU: python -m bench cuda [--json FILE]. Needs torch with CUDA.

First the limits: a large copy, and a large bf16 product by cuBLAS. Then a line a case: time, TFLOP/s or GB/s, share of
the limit, and of each peer its time divided by ours. Calls are captured in a CUDA graph and replayed, so that no side
waits for Python; sides take turns; times are medians of CUDA events; inputs are random, and used by turns where they
would fit into the caches. --json is written after every line, so a run that is cut off has measured what it printed.

--sweep measures every kernel for products, by cuts and order of tiles, instead of the one that is chosen: what
csrc/cuda/gemm.cu estimates can then be corrected. --tiny runs every case once on a small shape, on whatever qkv.cuda
has, the emulator too, and measures nothing: to see that all of them run.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import qkv

try:
    import torch
except ImportError:  # --tiny does without
    torch = None  # type: ignore[assignment]

Side = Callable[[int], Any]  # a call, with the i-th inputs
PARTS = ("products", "attention", "rows", "tokens", "models")


def milliseconds(sides: list[Side], repeats: int = 12) -> list[float]:
    """Median of each side, in turns. A graph holds as many calls as take about 2 ms."""
    graphs = []
    for side in sides:
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for i in range(
                8
            ):  # every set of inputs: what another stream made is waited for once, outside of the capture
                side(i)
            stream.synchronize()
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            side(0)
            end.record()
            end.synchronize()
        count = max(1, min(64, int(2 / max(start.elapsed_time(end), 1e-3))))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for i in range(count):
                side(i)
        graph.replay()
        graphs.append((graph, count))
    times: list[list[float]] = [[] for _ in sides]
    for _ in range(repeats):
        for (graph, count), into in zip(graphs, times, strict=True):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            into.append(float(start.elapsed_time(end)) / count)
    return [statistics.median(t) for t in times]


class Table:
    """Cases as they are measured, printed and written."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.tiny: bool = options.tiny
        self.only: str = options.only or ""
        self.path = Path(options.json) if options.json else None
        self.copy = self.peak = float("nan")  # GB/s, TFLOP/s
        self.results: dict[str, Any] = {"qkv": qkv.__version__, "cases": []}

    def size(self, n: int, tiny: int = 64) -> int:
        return min(n, tiny) if self.tiny else n

    def randn(self, *shape: int, dtype: str = "bfloat16") -> Any:
        if self.tiny:
            import ml_dtypes

            kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
            return qkv.cuda.array(np.random.default_rng(0).standard_normal(shape).astype(kind))
        return torch.randn(*shape, device="cuda", dtype=torch.float32).to(getattr(torch, dtype))

    def save(self) -> None:
        if self.path:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(json.dumps(self.results, indent=1) + "\n")

    def limits(self) -> None:
        """GB/s of a copy, read and write, and TFLOP/s of cuBLAS's bf16 product."""
        self.results |= {"device": qkv.cuda.device_name(), "torch": torch.__version__ if torch else None}
        if self.tiny:
            return
        big = [torch.empty(1 << 30, dtype=torch.uint8, device="cuda") for _ in range(2)]
        copied = []  # not in a graph, which has a slower way to copy
        for i in range(20):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            big[i % 2].copy_(big[1 - i % 2])
            end.record()
            end.synchronize()
            copied.append(float(start.elapsed_time(end)))
        a, b = self.randn(8192, 8192), self.randn(8192, 8192)
        self.copy = 2 * (1 << 30) / statistics.median(copied) / 1e6
        self.peak = 2 * 8192**3 / milliseconds([lambda i: a @ b])[0] / 1e9
        self.results["limits"] = {"copy GB/s": self.copy, "cuBLAS bf16 TFLOP/s": self.peak}
        device = f"{self.results['device']}, torch {torch.__version__}"
        print(f"{device}: copy {self.copy:.0f} GB/s, cuBLAS bf16 {self.peak:.0f} TFLOP/s")
        print(f"\n{'case':46} {'us':>9} {'rate':>12} {'of limit':>8}  peers' time / ours", flush=True)
        self.save()

    def line(self, name: str, ours: Side, peers: Mapping[str, Side], flop: float = 0, nbytes: float = 0) -> float:
        """Microseconds of a call, NaN if it was not measured; flop or nbytes: of one call, whichever bounds it."""
        if self.only not in name:
            return float("nan")
        case: dict[str, Any] = {"case": name}
        self.results["cases"].append(case)
        if self.tiny:
            ours(0)
            print(f"{name:46} ran", flush=True)
            self.save()
            return float("nan")
        times: dict[str, float] = {}
        for side, call in {"qkv": ours, **peers}.items():  # first whether it works: a case that fails is a line too
            try:
                call(0)
                torch.cuda.synchronize()
                times[side] = 0.0
            except Exception as error:
                case.setdefault("errors", {})[side] = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
        if "qkv" in times:
            sides = {"qkv": ours, **{n: c for n, c in peers.items() if n in times}}
            try:
                times = dict(zip(sides, milliseconds(list(sides.values())), strict=True))
            except RuntimeError as error:
                case.setdefault("errors", {})["qkv"], times = str(error).splitlines()[0][:200], {}
        if times.get("qkv"):
            mine = times.pop("qkv")
            rate = flop / mine / 1e9 if flop else nbytes / mine / 1e6
            share = rate / (self.peak if flop else self.copy)
            ratios = {peer: t / mine for peer, t in times.items()}
            case |= {"us": mine * 1e3, "TFLOP/s" if flop else "GB/s": rate, "of limit": share, "ratios": ratios}
            shown = "  ".join(f"{peer} {r:.2f}" for peer, r in ratios.items())
            print(
                f"{name:46} {mine * 1e3:9.1f} {rate:7.0f} {'TFLOP' if flop else 'GB'}/s {share:8.2f}  {shown}",
                flush=True,
            )
        else:
            print(f"{name:46} {case['errors'].get('qkv')}", flush=True)
        self.save()
        return float(case.get("us", "nan"))


def sweep(table: Table) -> None:
    """Every kernel that can do a product, with its cuts of k and orders of tiles, beside the one that is chosen."""
    module = qkv.cuda.module()
    best: list[dict[str, Any]] = []
    table.results["tiles"] = best
    shapes = [(8192, 8192, 8192), (4096, 4096, 4096), (2048, 3072, 768), (2048, 768, 3072), (512, 4096, 4096),
              (128, 768, 768), (128, 4096, 4096), (64, 4096, 4096), (32, 4096, 4096), (16, 8192, 8192)]  # fmt: skip
    for m, n, k in shapes:
        m, n, k = (table.size(x) for x in (m, n, k))
        x, w = [table.randn(m, k) for _ in range(2)], [table.randn(n, k) for _ in range(2)]
        kernels = ["wgmma_large", "wgmma_medium", "wgmma_small", "tensor_large", "tensor_medium", "tensor_small"]
        cuts = [s for s in (1, 2, 3, 4, 8) if s == 1 or (m <= 512 and k // s >= 256)]
        groups = (4, 8, 16, 32) if m >= 2048 else (16,)
        choices = [("", 0, 0), *((kernel, s, g) for kernel in kernels for s in cuts for g in groups)]
        if m <= 32:
            choices.append(("skinny", 0, 0))
        measured = {}
        for kernel, splits, group in choices:
            module.force_gemm(kernel, splits, group)
            name = f"{m}x{n}x{k} {kernel or 'as planned'} {splits or ''} {group or ''}".strip()
            measured[name] = table.line(
                name, lambda i, x=x, w=w: qkv.linear(x[i % 2], w[i % 2]), {}, flop=2 * m * n * k
            )
        module.force_gemm()
        if not table.tiny:
            planned, winner = next(iter(measured.values())), min(measured, key=lambda name: measured[name])
            best.append({"shape": [m, n, k], "best": winner, "planned / best": planned / measured[winner]})
            print(f"  best: {winner}; as planned {best[-1]['planned / best']:.2f} of its time", flush=True)
            table.save()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench cuda", description="qkv's CUDA kernels beside torch's")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all but for none")
    parser.add_argument("--json", metavar="FILE", help="where to write what is measured, line by line")
    parser.add_argument("--only", metavar="TEXT", help="cases whose name contains it")
    parser.add_argument("--sweep", action="store_true", help="the kernels for products one by one, nothing else")
    parser.add_argument("--tiny", action="store_true", help="every case once, small, and not timed")
    options = parser.parse_args(arguments)
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no part {sorted(unknown)[0]!r}; there are {', '.join(PARTS)}")
    if not qkv.cuda.is_available():
        parser.exit(2, f"bench: {qkv.cuda.why_not()}\n")
    if not options.tiny and not (torch and torch.cuda.is_available()):
        parser.exit(2, "bench: torch with CUDA is needed, which measures the limits and the time\n")
    from . import cuda_cases, cuda_models

    table = Table(options)
    table.limits()
    if options.sweep:
        sweep(table)
        return 0
    for part in options.parts or PARTS:
        cuda_models.models(table) if part == "models" else getattr(cuda_cases, part)(table)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
