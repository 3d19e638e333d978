"""The best of a vocabulary and what makes them probabilities, straight from hidden states: a step of a search."""

from __future__ import annotations

from typing import Any

from qkv.bench import Case, Suite, suites

from .peers import Array, Call, tensors

WIDTH, VOCABULARY = 512, 58_101
BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}


def cases() -> list[Case]:
    return [
        Case(
            f"{k} of {VOCABULARY}, {rows} rows, {dtype}",
            {"rows": rows, "k": k, "dtype": dtype},
            nbytes=float(BYTES[dtype] * WIDTH * VOCABULARY),
            tolerance=0.0 if dtype == "float32" else 1.0,
        )
        for dtype in BYTES
        for rows, k in ((1, 1), (8, 1), (32, 16))
    ]


def inputs(rows: int, k: int, dtype: str) -> dict[str, Any]:
    weight = suites.normal(VOCABULARY, WIDTH) / WIDTH**0.5
    return {"x": suites.normal(rows, WIDTH), "weight": weight, "k": k, "dtype": dtype}


def qkv_side(x: Array, weight: Array, k: int, dtype: str) -> Call:
    import qkv
    from qkv.ops import linear_top_k

    packed = qkv.pack_weight(weight, dtype)
    return lambda: linear_top_k(x, packed, None, k)[1]


def separate_side(x: Array, weight: Array, k: int, dtype: str) -> Call:
    """qkv's product, then qkv's two looks at it."""
    import qkv
    from qkv.ops import top_k_with_parts

    packed = qkv.pack_weight(weight, dtype)
    return lambda: top_k_with_parts(qkv.linear(x, packed), k)[1]


def torch_side(x: Array, weight: Array, k: int, dtype: str) -> Call:
    import torch

    if dtype == "int8":
        raise ValueError("torch has no int8 linear without a module of its own")
    kind = getattr(torch, dtype)
    x, weight = (t.to(kind) for t in tensors(x, weight))

    def best() -> Array:
        logits = torch.nn.functional.linear(x, weight).float()
        torch.logsumexp(logits, 1)
        return torch.topk(logits, k)[1]

    return best


SIDES = {"qkv": qkv_side, "separate": separate_side, "torch": torch_side}
SUITES = {"linear_top_k": Suite("linear_top_k", __name__, cases, inputs, SIDES)}
