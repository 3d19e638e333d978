"""Activations by themselves; inside a model they are part of `linear`. gelu is the erf form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from qkv.bench import Case, Suite, numpy_ops, suites

from .peers import Array, Call, onnx_session, tensors

NODES = {"gelu": "Gelu", "tanh": "Tanh", "relu": "Relu"}  # from opset 20


def cases() -> list[Case]:
    few = suites.row_cases(rows=(1, 128, 1024, suites.out_of_cache_rows()))
    return [
        Case(f"{name} {case.name}", {"name": name, **case.params}, case.flops, case.nbytes, case.limit)
        for name in ("gelu", "silu", "tanh", "relu")
        for case in few
    ]


def inputs(name: str, rows: int, width: int) -> dict[str, Any]:
    return {"name": name, **suites.row_inputs(rows, width)}


def qkv_side(name: str, x: Array) -> Call:
    import qkv

    op = getattr(qkv, name)
    return lambda: op(x)


def numpy_side(name: str, x: Array) -> Call:
    ops: dict[str, Callable[[Array], Array]] = {
        "gelu": numpy_ops.gelu,
        "silu": lambda x: x / (1 + np.exp(-x)),
        "tanh": np.tanh,
        "relu": lambda x: np.maximum(x, 0),
    }
    op = ops[name]
    return lambda: op(x)


def torch_side(name: str, x: Array) -> Call:
    import torch
    from torch.nn import functional

    op = torch.tanh if name == "tanh" else getattr(functional, name)
    (x,) = tensors(x)
    return lambda: op(x)


def onnxruntime_side(name: str, x: Array) -> Call:
    if name == "silu":  # the runtime's own op, which its optimiser makes of x * Sigmoid(x)
        return onnx_session([("QuickGelu", ["x"], ["y"], {"alpha": 1.0, "domain": "com.microsoft"})], {"x": x})
    return onnx_session([(NODES[name], ["x"], ["y"], {})], {"x": x})


SIDES = {"qkv": qkv_side, "numpy": numpy_side, "torch": torch_side, "onnxruntime": onnxruntime_side}
SUITES = {"activation": Suite("activation", __name__, cases, inputs, SIDES)}
