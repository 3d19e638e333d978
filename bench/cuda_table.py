"""How `python -m bench cuda` measures, prints and writes a case."""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import qkv

try:
    import torch
except ImportError:
    torch = None  # type: ignore[assignment]

Side = Callable[[int], Any]  # a call, with the i-th inputs
LOST = 3  # exit status: the device takes no more work from this process
ROUNDS = 12


def words(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"


def event_milliseconds(run: Callable[[], Any]) -> float:
    """Of work in torch's current stream."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))


def clock_milliseconds(run: Callable[[], Any]) -> float:
    """Of work in qkv's current stream, by the host's clock."""
    qkv.cuda.synchronize()
    begun = time.perf_counter()
    run()
    qkv.cuda.synchronize()
    return 1e3 * (time.perf_counter() - begun)


def repeated(run: Callable[[], Any], times: int) -> None:
    for _ in range(times):
        run()


def prepared(side: Side, by_torch: bool) -> tuple[Callable[[], float], str]:
    """A function that gives the milliseconds of a call, and why it does not replay a CUDA graph, if it does not.

    The graph holds as many calls as take about 2 ms, and is replayed until that long has passed. by_torch: whether
    torch captures it and events measure, or qkv and the host's clock."""

    def several(count: int) -> None:
        for i in range(count):
            side(i)

    def measured(run: Callable[[], Any]) -> float:
        if not by_torch:
            return clock_milliseconds(run)
        with torch.cuda.stream(stream):
            return event_milliseconds(run)

    stream = torch.cuda.Stream() if by_torch else None
    if by_torch:  # inputs were made in another stream, which this one does not wait for
        torch.cuda.synchronize()
    measured(lambda: several(8))  # every set of inputs: what another stream made is waited for once, before a capture
    count = max(1, min(64, int(2 / max(measured(lambda: side(0)), 1e-3))))
    run, why = (lambda: several(count)), ""
    try:
        if by_torch:
            graph = torch.cuda.CUDAGraph()
            with (
                torch.cuda.stream(stream),  # a capture that fails to end leaves its stream the current one
                torch.cuda.graph(graph, stream=stream, capture_error_mode="relaxed"),
            ):
                several(count)
            run = graph.replay
        else:
            run = qkv.cuda.record(run)[1].replay
    except Exception as error:  # one by one then, whatever of Python's time that has in it
        why = words(error)
        if by_torch:
            stream = torch.cuda.Stream()
    measured(run)
    times = max(1, min(64, math.ceil(2 / max(measured(run), 1e-3))))
    return lambda: measured(lambda: repeated(run, times)) / (count * times), why


class Table:
    """Cases as they are measured, printed and written; what --resume finds in the file is not measured again."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.tiny: bool = options.tiny
        self.only: str = options.only or ""
        self.path = Path(options.json) if options.json else None
        self.by_torch = not self.tiny and torch is not None and torch.cuda.is_available()
        self.results: dict[str, Any] = {"qkv": qkv.__version__, "cases": []}
        if options.resume and self.path and self.path.exists():
            self.results = json.loads(self.path.read_text())
        self.known = {case["case"]: case for case in self.results["cases"]}

    def size(self, n: int, tiny: int = 64) -> int:
        return min(n, tiny) if self.tiny else n

    def randn(self, *shape: int, dtype: str = "bfloat16") -> Any:
        if self.by_torch:
            return torch.randn(*shape, device="cuda", dtype=torch.float32).to(getattr(torch, dtype))
        import ml_dtypes

        kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
        few = np.random.default_rng(0).standard_normal(min(math.prod(shape), 1_000_003)).astype(kind)
        return qkv.cuda.array(np.resize(few, shape))

    def save(self) -> None:
        """All or nothing: whoever is ended here leaves what was there."""
        if self.path:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            new = self.path.with_name(self.path.name + ".new")
            new.write_text(json.dumps(self.results, indent=1) + "\n")
            os.replace(new, self.path)

    def limits(self) -> None:
        """GB/s of a copy, read and write, and TFLOP/s of cuBLAS's bf16 product, which is torch's."""
        if self.tiny:
            return
        if "limits" not in self.results:
            version = torch.__version__ if self.by_torch else None
            self.results |= {"device": qkv.cuda.device_name(), "torch": version, "limits": {}}
            measured = self.results["limits"]
            measured["copy GB/s"] = 2 * (1 << 30) / self.copy_milliseconds() / 1e6
            self.save()
            if self.by_torch:
                a, b = self.randn(8192, 8192), self.randn(8192, 8192)
                product, _ = prepared(lambda i: a @ b, True)
                peak = 2 * 8192**3 / statistics.median(product() for _ in range(ROUNDS)) / 1e9
                measured["cuBLAS bf16 TFLOP/s"] = peak
        shown = ", ".join(f"{name} {value:.0f}" for name, value in self.results["limits"].items())
        peers = f"torch {self.results['torch']}" if self.by_torch else "no torch, so no peers and no limit of products"
        print(f"{self.results['device']}, {peers}: {shown}")
        print(f"\n{'case':46} {'us':>9} {'rate':>12} {'of limit':>8}  peers' time / ours", flush=True)
        self.save()

    def copy_milliseconds(self) -> float:
        """Of 1 GiB, by torch or by qkv; not in a graph, which has a slower way to copy."""
        if self.by_torch:
            big = [torch.empty(1 << 30, dtype=torch.uint8, device="cuda") for _ in range(2)]
            return statistics.median(event_milliseconds(lambda: big[1].copy_(big[0])) for _ in range(20))
        ours = [qkv.cuda.zeros(1 << 28, np.float32) for _ in range(2)]
        return statistics.median(clock_milliseconds(lambda: qkv.cuda.copy_into(*ours)) for _ in range(20))

    def attempt(self, prepare: Callable[..., None], *arguments: Any) -> None:
        """prepare(self, *arguments), which measures lines. An error is shown and written, and ends nothing else."""
        try:
            prepare(self, *arguments)
        except Exception as error:
            if self.tiny:
                raise
            failed = " ".join(map(str, (prepare.__name__, *arguments)))
            traceback.print_exc()
            self.results.setdefault("errors", {})[failed] = words(error)
            self.save()
            self.end_if_lost()

    def end_if_lost(self) -> None:
        """After an error of a kernel no call of this process succeeds: another goes on (cuda.py)."""
        try:
            torch.cuda.synchronize() if self.by_torch else qkv.cuda.synchronize()
        except RuntimeError as error:
            print(f"the device is lost to this process: {words(error)}", flush=True)
            raise SystemExit(LOST) from error

    def line(self, name: str, ours: Side, peers: Mapping[str, Side], flop: float = 0, nbytes: float = 0) -> float:
        """Microseconds of a call, NaN if it was not measured; flop or nbytes: of one call, whichever bounds it. peers
        are left out where torch does not measure."""
        if self.only not in name:
            return float("nan")
        if name in self.known:
            return float(self.known[name].get("us", "nan"))
        case: dict[str, Any] = {"case": name}
        self.results["cases"].append(case)
        self.save()  # that it was begun: if it ends the process, it is not tried again
        if self.tiny:
            ours(0)
            qkv.cuda.record(lambda: ours(0))  # which takes no copy from the host and waits for nothing
            print(f"{name:46} ran", flush=True)
            return float("nan")
        sides: dict[str, Callable[[], float]] = {}
        for side, call in {"qkv": ours, **(peers if self.by_torch else {})}.items():
            try:
                sides[side], why = prepared(call, self.by_torch)
                if why:
                    case.setdefault("not captured", {})[side] = why
                if side == "qkv":  # before a peer can end the process
                    self.found(case, {side: sides[side]()}, flop, nbytes)
                    self.save()
            except Exception as error:
                self.failed(case, side, error)
        times: dict[str, list[float]] = {side: [] for side in sides}
        for _ in range(ROUNDS):
            for side in list(times):
                try:
                    times[side].append(sides[side]())
                except Exception as error:
                    del times[side]
                    self.failed(case, side, error)
        self.found(case, {side: statistics.median(t) for side, t in times.items()}, flop, nbytes)
        self.show(case)
        self.save()
        return float(case.get("us", "nan"))

    def failed(self, case: dict[str, Any], side: str, error: Exception) -> None:
        case.setdefault("errors", {})[side] = words(error)
        print(f"{case['case']}: {side}: {words(error)}", flush=True)
        self.save()
        self.end_if_lost()

    def found(self, case: dict[str, Any], times: dict[str, float], flop: float, nbytes: float) -> None:
        """times: of each side, milliseconds."""
        case["peers us"] = {side: t * 1e3 for side, t in times.items() if side != "qkv"}
        if "qkv" not in times:
            return
        mine = times["qkv"]
        rate, limit = (flop / 1e9, "cuBLAS bf16 TFLOP/s") if flop else (nbytes / 1e6, "copy GB/s")
        case |= {"us": mine * 1e3, "TFLOP/s" if flop else "GB/s": rate / mine}
        if limit in self.results["limits"]:
            case["of limit"] = rate / mine / self.results["limits"][limit]
        case["ratios"] = {side: t / mine for side, t in times.items() if side != "qkv"}

    @staticmethod
    def show(case: dict[str, Any]) -> None:
        if "us" not in case:
            times = "  ".join(f"{peer} {us:.1f} us" for peer, us in case["peers us"].items())
            print(f"{case['case']:46} not measured  {times}", flush=True)
            return
        unit = "TFLOP/s" if "TFLOP/s" in case else "GB/s"
        share = f"{case['of limit']:.2f}" if "of limit" in case else "-"
        shown = "  ".join(f"{peer} {ratio:.2f}" for peer, ratio in case["ratios"].items())
        alone = "  not in a graph: " + ", ".join(case["not captured"]) if "not captured" in case else ""
        rate = f"{case[unit]:.0f} {unit}"
        print(f"{case['case']:46} {case['us']:9.1f} {rate:>12} {share:>8}  {shown}{alone}", flush=True)
