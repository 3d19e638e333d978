"""The largest of long rows: what sampling and beams choose from."""

from __future__ import annotations

from typing import Any

import numpy as np
from qkv.bench import Case, Suite, suites

from .peers import Array, Call, onnx_session, tensors

VOCABULARY = 50_257


def cases() -> list[Case]:
    return [
        Case(f"{k} of {VOCABULARY}, {rows} rows", {"rows": rows, "k": k}, nbytes=4.0 * rows * VOCABULARY)
        for rows, k in ((1, 1), (1, 50), (32, 8))
    ]


def inputs(rows: int, k: int) -> dict[str, Any]:
    return {"x": suites.normal(rows, VOCABULARY), "k": k}


def qkv_side(x: Array, k: int) -> Call:
    from qkv.ops import top_k

    return lambda: top_k(x, k)[0]


def numpy_side(x: Array, k: int) -> Call:
    return lambda: -np.sort(np.partition(-x, k - 1, axis=1)[:, :k], axis=1)


def torch_side(x: Array, k: int) -> Call:
    import torch

    (x,) = tensors(x)
    return lambda: torch.topk(x, k)[0]


def onnxruntime_side(x: Array, k: int) -> Call:
    return onnx_session([("TopK", ["x", "k"], ["y", "places"], {})], {"x": x}, {"k": np.array([k])})


SIDES = {"qkv": qkv_side, "numpy": numpy_side, "torch": torch_side, "onnxruntime": onnxruntime_side}
SUITES = {"top_k": Suite("top_k", __name__, cases, inputs, SIDES)}
