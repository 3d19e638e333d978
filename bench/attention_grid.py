"""Attention over a grid of sizes, decode steps among them: whatever costs less than 400 GFLOP."""

from __future__ import annotations

from typing import Any

from qkv.bench import Case, Suite, suites
from qkv.bench.machine import last_cache

from .attention import torch_side

LENGTHS = (16, 64, 256, 1024, 4096, 16384)
WIDTHS = (32, 64, 80, 96, 128, 256)
HEADS = (1, 12, 96)
MOST = 400e9


def case(h: int, s: int, t: int, d: int, causal: bool) -> Case:
    params = {"h": h, "s": s, "t": t, "d": d, "causal": causal}
    nbytes = 8.0 * h * (s + t) * d
    if s == 1:
        return Case(
            f"H{h} T{t} D{d} decode", params, nbytes=nbytes, limit="read" if nbytes > 2 * last_cache() else None
        )
    flops = 4.0 * h * s * t * d / (2 if causal else 1)
    return Case(f"H{h} T{t} D{d} {'causal' if causal else 'full'}", params, flops, nbytes, "fma")


def cases() -> list[Case]:
    sizes = [(h, t, d) for t in LENGTHS for d in WIDTHS for h in HEADS]
    squares = [case(h, t, t, d, causal) for h, t, d in sizes for causal in (False, True)]
    return [c for c in squares if c.flops < MOST] + [case(h, 1, t, d, False) for h, t, d in sizes]


def inputs(h: int, s: int, t: int, d: int, causal: bool) -> dict[str, Any]:
    q, k, v = (suites.normal(1, h, n, d, seed=seed) for seed, n in enumerate((s, t, t)))
    return {"q": q, "k": k, "v": v, "causal": causal}


SIDES = {"qkv": suites.attention_qkv, "torch": torch_side}  # NumPy would hold up to 13 GB of scores
SUITES = {"attention_grid": Suite("attention_grid", __name__, cases, inputs, SIDES)}
