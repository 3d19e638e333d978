"""The ops of `qkv bench`: cases, inputs, and how qkv and NumPy compute them.

Where an op is bound by memory there is a case that stays in a cache and one that is four times the last of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from . import numpy_ops
from .core import Case, Suite
from .machine import last_cache

Array = Any
Call = Callable[[], Any]

WIDTH = 768
IN_CACHE_ROWS = 128  # of WIDTH floats: 384 KB


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> Array:
    x = np.random.default_rng(seed).standard_normal(shape, np.float32)
    x *= np.float32(scale)
    return x


def out_of_cache_rows(width: int = WIDTH) -> int:
    """Rows of so many floats that fill four times the last cache (1 GiB at most)."""
    return max(1, min(4 * last_cache(), 1 << 30) // (4 * width))


def row_cases(passes: int = 2, rows: tuple[int, ...] | None = None) -> list[Case]:
    """(rows, WIDTH) in and out of cache. passes: how often that many bytes are read or written."""
    cases = []
    for n in rows or (IN_CACHE_ROWS, out_of_cache_rows()):
        nbytes = 4 * n * WIDTH * passes
        limit = "copy" if nbytes > 2 * last_cache() else None
        cases.append(Case(f"{n}x{WIDTH}", {"rows": n, "width": WIDTH}, nbytes=nbytes, limit=limit))
    return cases


def row_inputs(rows: int, width: int) -> dict[str, Array]:
    return {"x": normal(rows, width, scale=2.0)}


# ---- gemm ------------------------------------------------------------------------------------------

GEMM_SHAPES = ((1, 768, 768), (16, 768, 768), (128, 768, 768), (128, 768, 3072), (512, 1024, 1024))  # M, K, N


def gemm_case(m: int, k: int, n: int) -> Case:
    """One row reads each weight once: memory bounds it, if the weights are larger than the caches."""
    flops, nbytes = 2.0 * m * k * n, 4.0 * (m * k + k * n + m * n)
    limit = "read" if m == 1 and nbytes > 2 * last_cache() else None if m == 1 else "fma"
    return Case(f"{m}x{k}x{n}", {"m": m, "k": k, "n": n}, 0 if limit == "read" else flops, nbytes, limit)


def gemm_cases() -> list[Case]:
    return [gemm_case(*shape) for shape in GEMM_SHAPES]


def gemm_inputs(m: int, k: int, n: int) -> dict[str, Array]:
    return {"x": normal(m, k), "weight": normal(n, k, seed=1), "bias": normal(n, seed=2)}


def gemm_qkv(x: Array, weight: Array, bias: Array) -> Call:
    import qkv

    packed = qkv.pack_weight(weight)
    return lambda: qkv.linear(x, packed, bias)


def gemm_numpy(x: Array, weight: Array, bias: Array) -> Call:
    return lambda: numpy_ops.linear(x, weight, bias)


# ---- attention -------------------------------------------------------------------------------------


def attention_case(b: int, h: int, s: int, d: int, causal: bool) -> Case:
    """Half of the products of a causal square are not needed."""
    pairs = s * (s + 1) / 2 if causal else s * s
    params = {"b": b, "h": h, "s": s, "d": d, "causal": causal}
    name = f"{b}x{h} S{s} D{d} {'causal' if causal else 'full'}"
    return Case(name, params, 4.0 * b * h * pairs * d, 16.0 * b * h * s * d, "fma")


def attention_cases() -> list[Case]:
    return [attention_case(1, 12, s, 64, causal) for s in (128, 256, 512, 1024, 2048) for causal in (False, True)]


def attention_inputs(b: int, h: int, s: int, d: int, causal: bool) -> dict[str, Any]:
    q, k, v = (normal(b, h, s, d, seed=seed) for seed in range(3))
    return {"q": q, "k": k, "v": v, "causal": causal}


def attention_qkv(q: Array, k: Array, v: Array, causal: bool) -> Call:
    import qkv

    return lambda: qkv.attention(q, k, v, causal=causal)


def attention_numpy(q: Array, k: Array, v: Array, causal: bool) -> Call:
    return lambda: numpy_ops.attention(q, k, v, causal)


# ---- row by row ------------------------------------------------------------------------------------


def softmax_qkv(x: Array) -> Call:
    import qkv

    return lambda: qkv.softmax(x)


def softmax_numpy(x: Array) -> Call:
    return lambda: numpy_ops.softmax(x)


def norm_inputs(rows: int, width: int) -> dict[str, Array]:
    return {"x": normal(rows, width), "weight": normal(width, seed=1), "bias": normal(width, seed=2)}


def norm_qkv(x: Array, weight: Array, bias: Array) -> Call:
    import qkv

    return lambda: qkv.layer_norm(x, weight, bias)


def norm_numpy(x: Array, weight: Array, bias: Array) -> Call:
    return lambda: numpy_ops.layer_norm(x, weight, bias)


def activation_qkv(x: Array) -> Call:
    import qkv

    return lambda: qkv.gelu(x)


def activation_numpy(x: Array) -> Call:
    return lambda: numpy_ops.gelu(x)


# ---- embedding, rotary -----------------------------------------------------------------------------

VOCABULARY = 30522


def embedding_cases() -> list[Case]:
    cases = []
    for tokens in (128, 16384):
        nbytes = 8.0 * tokens * WIDTH
        limit = "copy" if nbytes > 2 * last_cache() else None
        params = {"tokens": tokens, "vocabulary": VOCABULARY, "width": WIDTH}
        cases.append(Case(f"{tokens} of {VOCABULARY}x{WIDTH}", params, nbytes=nbytes, limit=limit))
    return cases


def embedding_inputs(tokens: int, vocabulary: int, width: int) -> dict[str, Array]:
    ids = np.random.default_rng(1).integers(0, vocabulary, tokens)
    return {"ids": ids, "table": normal(vocabulary, width)}


def embedding_qkv(ids: Array, table: Array) -> Call:
    import qkv

    return lambda: qkv.embedding(ids, table)


def embedding_numpy(ids: Array, table: Array) -> Call:
    return lambda: numpy_ops.embedding(ids, table)


def rotary_case(b: int, h: int, s: int, d: int) -> Case:
    nbytes = 8.0 * b * h * s * d
    limit = "copy" if nbytes > 2 * last_cache() else None
    return Case(f"{b}x{h} S{s} D{d}", {"b": b, "h": h, "s": s, "d": d}, nbytes=nbytes, limit=limit)


def rotary_cases() -> list[Case]:
    return [rotary_case(1, 12, 1, 64), rotary_case(1, 12, 128, 64), rotary_case(8, 32, 1024, 128)]


def rotary_inputs(b: int, h: int, s: int, d: int) -> dict[str, Array]:
    return {"x": normal(b, h, s, d), "positions": np.arange(s)}


def rotary_qkv(x: Array, positions: Array) -> Call:
    import qkv

    return lambda: qkv.rotary(x, positions)


def rotary_numpy(x: Array, positions: Array) -> Call:
    return lambda: numpy_ops.rotary(x, positions)


# ---- additive attention ----------------------------------------------------------------------------


def additive_attention_case(b: int, s: int, t: int, d: int, a: int) -> Case:
    """Bound by tanh: B S T A of them, for which the machine has no limit of its own."""
    flops = 2.0 * b * (s + t) * d * a + 4.0 * b * s * t * a + 2.0 * b * s * t * d
    return Case(f"{b} {s}x{t} D{d} A{a}", {"b": b, "s": s, "t": t, "d": d, "a": a}, flops)


def additive_attention_cases() -> list[Case]:
    return [additive_attention_case(1, 1, 128, 512, 128), additive_attention_case(8, 32, 64, 512, 128)]


def additive_attention_inputs(b: int, s: int, t: int, d: int, a: int) -> dict[str, Array]:
    return {
        "q": normal(b, s, d),
        "k": normal(b, t, d, seed=1),
        "v": normal(b, t, d, seed=2),
        "w_q": normal(a, d, seed=3, scale=d**-0.5),
        "w_k": normal(a, d, seed=4, scale=d**-0.5),
        "w_v": normal(a, seed=5),
    }


def additive_attention_qkv(**arrays: Array) -> Call:
    import qkv

    return lambda: qkv.additive_attention(**arrays)


def additive_attention_numpy(**arrays: Array) -> Call:
    return lambda: numpy_ops.additive_attention(**arrays)


def _suite(
    name: str, cases: Callable[[], list[Case]], inputs: Callable[..., dict[str, Any]], qkv: Any, numpy: Any
) -> Suite:
    return Suite(name, __name__, cases, inputs, {"qkv": qkv, "numpy": numpy})


# By the stems of csrc/cpu.
SUITES = {
    suite.name: suite
    for suite in (
        _suite("gemm", gemm_cases, gemm_inputs, gemm_qkv, gemm_numpy),
        _suite("attention", attention_cases, attention_inputs, attention_qkv, attention_numpy),
        _suite("softmax", row_cases, row_inputs, softmax_qkv, softmax_numpy),
        _suite("norm", row_cases, norm_inputs, norm_qkv, norm_numpy),
        _suite("activation", row_cases, row_inputs, activation_qkv, activation_numpy),
        _suite("embedding", embedding_cases, embedding_inputs, embedding_qkv, embedding_numpy),
        _suite("rotary", rotary_cases, rotary_inputs, rotary_qkv, rotary_numpy),
        _suite(
            "additive_attention",
            additive_attention_cases,
            additive_attention_inputs,
            additive_attention_qkv,
            additive_attention_numpy,
        ),
    )
}
