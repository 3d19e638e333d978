"""layer_norm with weight and bias; rms_norm with weight."""

from __future__ import annotations

import numpy as np
from qkv.bench import Case, Suite, suites

from .peers import Array, Call, onnx_session, tensors

EPS = 1e-5


def cases() -> list[Case]:
    return suites.row_cases(rows=(1, 16, 128, 1024, suites.out_of_cache_rows()))


def torch_layer_norm(x: Array, weight: Array, bias: Array) -> Call:
    from torch.nn.functional import layer_norm

    x, weight, bias = tensors(x, weight, bias)
    return lambda: layer_norm(x, weight.shape, weight, bias, EPS)


def onnxruntime_layer_norm(x: Array, weight: Array, bias: Array) -> Call:
    node = ("LayerNormalization", ["x", "w", "b"], ["y"], {"axis": -1, "epsilon": EPS})
    return onnx_session([node], {"x": x}, {"w": weight, "b": bias})


def rms_inputs(rows: int, width: int) -> dict[str, Array]:
    return {"x": suites.normal(rows, width), "weight": suites.normal(width, seed=1)}


def qkv_rms_norm(x: Array, weight: Array) -> Call:
    import qkv

    return lambda: qkv.rms_norm(x, weight, EPS)


def numpy_rms_norm(x: Array, weight: Array) -> Call:
    def run() -> Array:
        squares = np.einsum("...i,...i->...", x, x)[..., None]
        y = x * (1 / np.sqrt(squares / np.float32(x.shape[-1]) + np.float32(EPS)))
        y *= weight
        return y

    return run


def torch_rms_norm(x: Array, weight: Array) -> Call:
    from torch.nn.functional import rms_norm

    x, weight = tensors(x, weight)
    return lambda: rms_norm(x, weight.shape, weight, EPS)


def onnxruntime_rms_norm(x: Array, weight: Array) -> Call:
    node = ("SimplifiedLayerNormalization", ["x", "w"], ["y"], {"axis": -1, "epsilon": EPS})
    return onnx_session([node], {"x": x}, {"w": weight})


SUITES = {
    "norm": suites.SUITES["norm"].extended(
        __name__, {"torch": torch_layer_norm, "onnxruntime": onnxruntime_layer_norm}, cases
    ),
    "rms_norm": Suite(
        "rms_norm",
        __name__,
        cases,
        rms_inputs,
        {
            "qkv": qkv_rms_norm,
            "numpy": numpy_rms_norm,
            "torch": torch_rms_norm,
            "onnxruntime": onnxruntime_rms_norm,
        },
    ),
}
