"""`ladder`: attention of one head from the naive loop to the kernels, a step at a time, for docs/kernels.md.

Every step computes the same, softmax(q k^T / sqrt(D)) v, with one thread, in a process of its own in which NumPy's BLAS
has one thread too; from bfloat16 products on each line changes one thing of what is asked for. `held`: the scores that
a step holds at a time. The loop in Python is timed over its first queries, and its time multiplied.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Step = Callable[[Array, Array, Array], Array]

TOKENS, WIDTH = 2048, 64
LOOP_QUERIES = 4
QUERIES, KEYS = 128, 256  # of a block, and of a tile
FLOAT_ISAS = ("scalar", "avx2", "avx512")  # the others have products of their own in fewer bits alone


# ---- the steps; q (S, D), k and v (T, D) ------------------------------------------------------------


# --8<-- [start:loop]
def loop(q: Array, k: Array, v: Array) -> Array:
    """The formula, number by number."""
    queries, keys, values = q.tolist(), k.tolist(), v.tolist()
    scale = q.shape[1] ** -0.5
    out = []
    for query in queries:
        scores = [scale * sum(a * b for a, b in zip(query, key, strict=True)) for key in keys]
        top = max(scores)
        weights = [math.exp(score - top) for score in scores]
        total = sum(weights)
        columns = zip(*values, strict=True)
        out.append([sum(w * x for w, x in zip(weights, column, strict=True)) / total for column in columns])
    return np.array(out, np.float32)


# --8<-- [end:loop]


def rows(q: Array, k: Array, v: Array) -> Array:
    """A query at a time, as products of a matrix and a vector."""
    scale = np.float32(q.shape[1] ** -0.5)
    out = np.empty((len(q), v.shape[1]), np.float32)
    for i, query in enumerate(q):
        weights = np.exp((scores := k @ (query * scale)) - scores.max())
        out[i] = weights @ v / weights.sum()
    return out


# --8<-- [start:matrix]
def matrix(q: Array, k: Array, v: Array) -> Array:
    """All at once: two products of matrices, with S x T scores between them."""
    scores = (q * np.float32(q.shape[1] ** -0.5)) @ k.T
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=-1, keepdims=True)
    return scores @ v


# --8<-- [end:matrix]


def blocks(q: Array, k: Array, v: Array) -> Array:
    """The same for a block of queries after the other."""
    return np.concatenate([matrix(q[i : i + QUERIES], k, v) for i in range(0, len(q), QUERIES)])


# --8<-- [start:tiles]
def tiles(q: Array, k: Array, v: Array) -> Array:
    """A block of queries walks over blocks of keys with a running maximum m and sum l: nothing is ever as long as T."""
    out = np.empty((len(q), v.shape[1]), np.float32)
    for i in range(0, len(q), QUERIES):
        query = q[i : i + QUERIES] * np.float32(q.shape[1] ** -0.5)
        m = np.full((len(query), 1), -np.inf, np.float32)
        l, o = np.zeros_like(m), np.zeros((len(query), v.shape[1]), np.float32)  # noqa: E741
        for j in range(0, len(k), KEYS):
            scores = query @ k[j : j + KEYS].T
            larger = np.maximum(m, scores.max(axis=-1, keepdims=True))
            rescale = np.exp(m - larger)
            weights = np.exp(scores - larger)
            l = l * rescale + weights.sum(axis=-1, keepdims=True)  # noqa: E741
            o = o * rescale + weights @ v[j : j + KEYS]
            m = larger
        out[i : i + QUERIES] = o / l
    return out


# --8<-- [end:tiles]


def kernel(isa: str, threads: int = 1, **options: Any) -> Step:
    """qkv.attention with one instruction set."""

    def step(q: Array, k: Array, v: Array) -> Array:
        import qkv

        qkv.set_isa(isa)
        qkv.set_num_threads(threads)
        out: Array = qkv.attention(q[None, None], k[None, None], v[None, None], **options)[0, 0]
        return out

    return step


@dataclass
class Rung:
    """A step of the ladder. queries: that it is timed over. limit: of `Limits`, which bounds it, as `isa` has it; None:
    as the best one has. work: its share of the S T scores."""

    name: str
    step: Step
    held: str
    queries: int | None = None
    limit: str = "fma"
    work: float = 1.0
    threads: int = 1
    isa: str | None = None


def rungs(isas: list[str], threads: int) -> list[Rung]:
    whole, tile = "S x T", f"{QUERIES} x {KEYS}"
    found = [
        Rung("loop in Python", loop, "T", queries=LOOP_QUERIES),
        Rung("NumPy, a query at a time", rows, "T"),
        Rung("NumPy, whole matrices", matrix, whole),
        Rung("NumPy, blocks of queries", blocks, f"{QUERIES} x T"),
        Rung("NumPy, tiles, online softmax", tiles, tile),
    ]
    held, rest = f"24 x {KEYS}", {}
    for isa in isas:
        if isa in FLOAT_ISAS:
            found.append(Rung(f"the tile in C++, {isa}", kernel(isa), held))
        else:
            rest = {"precision": "bf16"}
            # where there are tiles, the dot products before them are bound by their own instruction
            found.append(Rung(f"bfloat16 products, {isa}", kernel(isa, **rest), held, limit="bf16_dot", isa=isa))
    last = {"held": held, "limit": found[-1].limit, "threads": threads}
    if threads > 1:
        found.append(Rung(f"{threads} threads", kernel(isas[-1], threads, **rest), **last))
    found.append(Rung("causal", kernel(isas[-1], threads, causal=True, **rest), work=0.5, **last))
    return found


# ---- in the process that measures ---------------------------------------------------------------------


def measure(rounds: int, seconds: float, threads: int, tokens: int = TOKENS) -> dict[str, Any]:
    """Least seconds of each rung over rounds in which all take turns, and the limits of one thread and of all."""
    import qkv
    from qkv.bench.machine import cpu_name, measure_limits
    from qkv.bench.worker import time_round

    q, k, v = np.random.default_rng(0).standard_normal((3, tokens, WIDTH), dtype=np.float32)
    isas = qkv.isas()
    ladder = rungs(isas, threads)
    limits = {}
    for n, isa in sorted({(rung.threads, rung.isa or isas[-1]) for rung in ladder}):
        qkv.set_num_threads(n)
        qkv.set_isa(isa)
        limits[n, isa] = measure_limits(buffer_bytes=1 << 20)  # of arithmetic; memory is not asked for
    least = dict.fromkeys((rung.name for rung in ladder), math.inf)
    for _ in range(rounds):
        for rung in ladder:
            part = q[: rung.queries]
            time = time_round(lambda rung=rung, part=part: rung.step(part, k, v), seconds)["min"]
            least[rung.name] = min(least[rung.name], time * len(q) / len(part))
    found = []
    for rung in ladder:
        flops = 4.0 * tokens * tokens * WIDTH * rung.work
        limit = float(getattr(limits[rung.threads, rung.isa or isas[-1]], rung.limit))
        time = least[rung.name]
        share = flops / time / limit
        found.append({"name": rung.name, "seconds": time, "flops": flops, "share": share, "held": rung.held})
    told = [{"isa": isa, **asdict(x)} for (_, isa), x in limits.items()]
    return {"cpu": cpu_name(), "tokens": tokens, "rungs": found, "limits": told}


# ---- in the benchmark's process -------------------------------------------------------------------------


def report(rounds: int = 5, seconds: float = 0.05, threads: int | None = None, tokens: int = TOKENS) -> dict[str, Any]:
    """Measures in a process of its own and prints the table."""
    import qkv
    from qkv.bench.report import format_seconds
    from qkv.bench.sides import THREAD_VARIABLES

    count = qkv.get_num_threads() if threads is None else threads
    environment = {**os.environ, **dict.fromkeys(THREAD_VARIABLES, "1")}
    numbers = [str(x) for x in (rounds, seconds, count, tokens)]
    done = subprocess.run(
        [sys.executable, str(Path(__file__)), *numbers], capture_output=True, text=True, env=environment
    )
    if done.returncode:
        raise ValueError(f"ladder: {(done.stderr.strip().splitlines() or ['it failed'])[-1]}")
    found: dict[str, Any] = json.loads(done.stdout)
    print(f"\nladder: one head of {tokens} x {WIDTH}, {found['cpu']}")
    for limits in found["limits"]:
        rates = ", ".join(f"{name} {limits[name] / 1e9:.0f} GFLOP/s" for name in ("fma", "bf16_dot"))
        n = limits["threads"]
        print(f"limits, {n} thread{'s' if n > 1 else ''}, {limits['isa']}: {rates}")
    print(f"  {'':<32}{'time':>10}{'GFLOP/s':>10}{'of limit':>10}{'step':>8}{'all':>9}   scores held")
    first = before = found["rungs"][0]["seconds"]
    for rung in found["rungs"]:
        time = rung["seconds"]
        gained = f"{before / time:7.2f}x{first / time:8.0f}x"
        rate = rung["flops"] / time / 1e9
        line = f"  {rung['name']:<32}{format_seconds(time):>10}{rate:>10.2f}{rung['share']:>10.1%}{gained}"
        print(f"{line}   {rung['held']}")
        before = time
    return found


if __name__ == "__main__":
    sys.path.pop(0)  # this folder, whose modules would shadow others
    print(json.dumps(measure(int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))))
