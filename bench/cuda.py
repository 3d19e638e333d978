"""Times of the CUDA kernels beside torch's on the same GPU: python -m bench.cuda [FILE.json]. Needs torch with CUDA.

Each line: time, TFLOP/s or GB/s, share of the limit that is measured first (a large copy, a large bf16 product by
cuBLAS), and torch's time divided by ours. Calls are captured in a CUDA graph and replayed, so that neither side waits
for Python; sides take turns; times are medians of CUDA events; inputs are random, and used by turns where they would
fit into the caches."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import qkv
import torch
import torch.nn.functional as F

from . import checkpoints
from .generate import TEXT, smollm2_file

Side = Callable[[int], Any]
SETS = 4  # of inputs, used by turns


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


def randn(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(*shape, device="cuda", dtype=torch.float32).to(dtype)


def limits() -> tuple[float, float]:
    """GB/s of a copy, read and write, and TFLOP/s of cuBLAS's bf16 product."""
    big = [torch.empty(1 << 30, dtype=torch.uint8, device="cuda") for _ in range(2)]
    copied = []  # not in a graph, which has a slower way to copy
    for i in range(20):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        big[i % 2].copy_(big[1 - i % 2])
        end.record()
        end.synchronize()
        copied.append(float(start.elapsed_time(end)))
    a, b = randn(8192, 8192), randn(8192, 8192)
    return 2 * (1 << 30) / statistics.median(copied) / 1e6, 2 * 8192**3 / milliseconds([lambda i: a @ b])[0] / 1e9


def models() -> list[dict[str, Any]]:
    """Whole models: a prompt of 512 tokens, tokens a second of 128 greedy ones, and memory after many calls."""
    found = []
    paths = {"GPT-2": str(checkpoints.folder("gpt2")), "SmolLM2": str(smollm2_file() or "")}
    for name, path in paths.items():
        for dtype in ("auto",) if path.endswith(".gguf") else ("bfloat16", "float16", "int8", "int4"):
            if not path:
                continue
            model = qkv.load(path, dtype=dtype, device="cuda")
            for rows in (1, 8):
                options = {"max_new_tokens": 129, "eos_token_id": None, "pad_token_id": 0}
                ids = np.resize(TEXT, (rows, 32))
                made = []
                for _ in range(4):  # the first is for memory and for what is made once
                    begun = time.perf_counter()
                    stream = model.stream(ids, **options)
                    next(stream)
                    first = time.perf_counter()
                    for _ in stream:
                        pass
                    made.append((first - begun, time.perf_counter() - first))
                begun = time.perf_counter()
                model.generate(np.resize(TEXT, (rows, 512)), **{**options, "max_new_tokens": 1})
                prompt = time.perf_counter() - begun
                one = {
                    "model": f"{name} {dtype} batch {rows}",
                    "decode tokens/s": rows * 128 / min(rest for _, rest in made),
                    "prompt of 512 ms": prompt * 1e3,
                }
                print(", ".join(f"{k}: {v if isinstance(v, str) else round(v, 1)}" for k, v in one.items()), flush=True)
                found.append(one)
            used = []
            for i in range(1000):
                model.generate(np.resize(TEXT, (1 + i % 3, 8 + i % 50)), max_new_tokens=4, eos_token_id=None)
                used.append(qkv.cuda.memory_info()["used_bytes"])
            found.append({"model": f"{name} {dtype}", "MB after 10 and 1000 calls": [used[9] / 1e6, used[-1] / 1e6]})
            print(found[-1], flush=True)
    return found


def main() -> None:
    results: dict[str, Any] = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "qkv": qkv.__version__,
    }
    copy, peak = limits()
    results["limits"] = {"copy GB/s": copy, "cuBLAS bf16 TFLOP/s": peak}
    print(
        f"{results['device']}, torch {torch.__version__}: copy {copy:.0f} GB/s, cuBLAS bf16 {peak:.0f} TFLOP/s\n",
        flush=True,
    )
    print(f"{'case':44} {'us':>9} {'rate':>14} {'of limit':>8} {'torch/ours':>10}")
    lines: list[dict[str, Any]] = []

    def line(name: str, ours: Side, theirs: Side, gflop: float = 0, gbyte: float = 0) -> None:
        try:
            mine, other = milliseconds([ours, theirs])
        except RuntimeError as error:  # a case that fails is a line of the table, and the others still count
            print(f"{name:44} {type(error).__name__}: {error}", flush=True)
            lines.append({"case": name, "error": str(error)})
            return
        share = gflop / mine / peak if gflop else gbyte / mine * 1e3 / copy
        rate = f"{gflop / mine:.0f} TFLOP/s" if gflop else f"{gbyte / mine * 1e3:.0f} GB/s"
        print(f"{name:44} {mine * 1e3:9.1f} {rate:>14} {share:8.2f} {other / mine:10.2f}", flush=True)
        lines.append({"case": name, "us": mine * 1e3, "torch us": other * 1e3, "rate": rate, "share": share})

    for m, n, k in [(4096, 4096, 4096), (8192, 8192, 8192), (512, 4096, 4096), (128, 768, 768), (2048, 3072, 768)]:
        x, w = [randn(m, k) for _ in range(SETS)], [randn(n, k) for _ in range(SETS)]
        line(f"linear bf16 {m}x{n}x{k}", lambda i, x=x, w=w: qkv.linear(x[i % SETS], w[i % SETS]),
             lambda i, x=x, w=w: F.linear(x[i % SETS], w[i % SETS]), 2e-9 * m * n * k)  # fmt: skip
    for m in (1, 4, 16):
        for n, k in [(8192, 8192), (4096, 4096)]:
            x, w = randn(m, k), [randn(n, k) for _ in range(8)]
            line(f"linear bf16 {m}x{n}x{k}", lambda i, x=x, w=w: qkv.linear(x, w[i % 8]),
                 lambda i, x=x, w=w: F.linear(x, w[i % 8]), gbyte=2e-9 * n * k)  # fmt: skip
    n = k = 8192
    for dtype in ("int8", "int4"):
        host = qkv.pack_weight(torch.randn(n, k), dtype)
        packed, w = [qkv.cuda.array(host) for _ in range(8)], [randn(n, k) for _ in range(8)]
        for m in (1, 4, 16, 256):
            x = randn(m, k)
            line(f"linear {dtype} weight, bf16 {m}x{n}x{k}", lambda i, x=x, p=packed: qkv.linear(x, p[i % 8]),
                 lambda i, x=x, w=w: F.linear(x, w[i % 8]), gbyte=1e-9 * packed[0].nbytes)  # fmt: skip
        del packed, w
    x, w = randn(2048, 2048, dtype=torch.float32), randn(2048, 2048, dtype=torch.float32)
    line("linear float32 2048x2048x2048", lambda i: qkv.linear(x, w), lambda i: F.linear(x, w), 2e-9 * 2048**3)

    for d in (64, 128):
        for s, batch, causal in [
            (512, 16, False),
            (2048, 4, True),
            (4096, 2, False),
            (16384, 1, False),
            (16384, 1, True),
        ]:
            q, kk, v = (randn(batch, 16, s, d) for _ in range(3))
            flop = 4e-9 * batch * 16 * s * s * d * (0.5 if causal else 1)
            line(f"attention bf16 B{batch} H16 S{s} D{d}{' causal' if causal else ''}",
                 lambda i, q=q, k=kk, v=v, c=causal: qkv.attention(q, k, v, causal=c),
                 lambda i, q=q, k=kk, v=v, c=causal: F.scaled_dot_product_attention(q, k, v, is_causal=c),
                 flop)  # fmt: skip
    for batch, heads, kv_heads, t in [(1, 32, 8, 32768), (16, 32, 8, 8192), (64, 16, 16, 2048)]:
        q, kk, v = randn(batch, heads, 1, 128), randn(batch, kv_heads, t, 128), randn(batch, kv_heads, t, 128)
        line(f"attention decode B{batch} H{heads}/{kv_heads} T{t} D128",
             lambda i, q=q, k=kk, v=v: qkv.attention(q, k, v),
             lambda i, q=q, k=kk, v=v: F.scaled_dot_product_attention(q, k, v, enable_gqa=True),
             gbyte=4e-9 * batch * kv_heads * t * 128)  # fmt: skip
    for dtype in (torch.bfloat16, torch.float32):
        for rows, n in [(65536, 1024), (16384, 4096), (2048, 32768)]:
            x = [randn(rows, n, dtype=dtype) for _ in range(2)]
            r, w, b = randn(rows, n, dtype=dtype), randn(n, dtype=dtype), randn(n, dtype=dtype)
            moved = 2e-9 * rows * n * x[0].element_size()
            label = f"{str(dtype)[6:]} {rows}x{n}"
            line(
                f"softmax {label}",
                lambda i, x=x: qkv.softmax(x[i % 2]),
                lambda i, x=x: torch.softmax(x[i % 2], -1),
                gbyte=moved,
            )
            line(f"layer_norm {label}", lambda i, x=x, w=w, b=b: qkv.layer_norm(x[i % 2], w, b),
                 lambda i, x=x, w=w, b=b, n=n: F.layer_norm(x[i % 2], (n,), w, b), gbyte=moved)  # fmt: skip
            line(f"rms_norm + residual {label}", lambda i, x=x, w=w, r=r: qkv.rms_norm(x[i % 2], w, residual=r),
                 lambda i, x=x, w=w, r=r, n=n: F.rms_norm(x[i % 2] + r, (n,), w, 1e-6), gbyte=2 * moved)  # fmt: skip
            line(f"gelu {label}", lambda i, x=x: qkv.gelu(x[i % 2]), lambda i, x=x: F.gelu(x[i % 2]), gbyte=moved)
    results["cases"] = lines
    with checkpoints.shared():
        results["models"] = models()
    if len(sys.argv) > 1:
        with open(sys.argv[1], "w") as file:
            json.dump(results, file, indent=1)


if __name__ == "__main__":
    main()
