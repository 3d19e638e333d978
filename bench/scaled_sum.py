"""scale x + other: what models do beside kernels."""

from __future__ import annotations

from typing import Any

from qkv.bench import Case, Suite, suites

from .peers import Array, Call, onnx_session, tensors

SCALE = 27.7


def cases() -> list[Case]:
    return suites.row_cases(3, (1, 128, suites.out_of_cache_rows()))


def inputs(rows: int, width: int) -> dict[str, Any]:
    return {"x": suites.normal(rows, width), "other": suites.normal(rows, width, seed=1)}


def qkv_side(x: Array, other: Array) -> Call:
    from qkv.ops import scaled_sum

    return lambda: scaled_sum(x, SCALE, other)


def numpy_side(x: Array, other: Array) -> Call:
    return lambda: x * SCALE + other


def torch_side(x: Array, other: Array) -> Call:
    import torch

    x, other = tensors(x, other)
    return lambda: torch.add(other, x, alpha=SCALE)


def onnxruntime_side(x: Array, other: Array) -> Call:
    import numpy as np

    nodes = [("Mul", ["x", "scale"], ["scaled"], {}), ("Add", ["scaled", "other"], ["y"], {})]
    return onnx_session(nodes, {"x": x, "other": other}, {"scale": np.array(SCALE, np.float32)})


SIDES = {"qkv": qkv_side, "numpy": numpy_side, "torch": torch_side, "onnxruntime": onnxruntime_side}
SUITES = {"scaled_sum": Suite("scaled_sum", __name__, cases, inputs, SIDES)}
