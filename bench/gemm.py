"""linear: x W^T + b, W known beforehand, for each weight type. M rows of x, K in, N out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from qkv.bench import Case, Suite, last_cache, suites

from .peers import Array, Call, onnx_session, openvino_model, tensors

SHAPES = (
    *((m, 768, 768) for m in (1, 2, 4, 7, 16, 32, 77, 128, 512, 2048)),
    *((m, 768, 3072) for m in (1, 16, 128, 512)),
    *((m, 3072, 768) for m in (1, 16, 128, 512)),
    (128, 64, 64),
    (128, 1000, 1001),
    (512, 1024, 1024),
    (2048, 2048, 2048),
    (1, 768, 50257),
    (1, 8192, 8192),  # 256 MB of weights
)


def cases() -> list[Case]:
    return [suites.gemm_case(*shape) for shape in SHAPES]


def torch_side(x: Array, weight: Array, bias: Array) -> Call:
    from torch.nn.functional import linear

    x, weight, bias = tensors(x, weight, bias)
    return lambda: linear(x, weight, bias)


def onnxruntime_side(x: Array, weight: Array, bias: Array) -> Call:
    node = ("Gemm", ["x", "w", "b"], ["y"], {"transB": 1})
    return onnx_session([node], {"x": x}, {"w": weight, "b": bias})


def openvino_side(x: Array, weight: Array, bias: Array) -> Call:
    import openvino
    from openvino import opset13 as ops

    into = ops.parameter(x.shape, name="x")
    product = ops.matmul(into, ops.constant(weight), False, True)
    return openvino_model(openvino.Model([ops.add(product, ops.constant(bias))], [into]), [x])


# ---- other weight types: each side packs once what it keeps of the weights -------------------------------

QUANTISED = {
    "bfloat16": ("gemm_bf16", "bf16_dot"),
    "int8": ("gemm_int8", "int8_dot"),
    "int4": ("gemm_int4", "int8_dot"),
}
WEIGHT_BYTES = {"bfloat16": 2.0, "int8": 1.0, "int4": 0.5625}


def quantised_cases(dtype: str) -> list[Case]:
    """One row is bound by reading the weights, where these do not fit into the caches."""
    found = []
    for m, k, n in SHAPES:
        case = suites.gemm_case(m, k, n)
        nbytes = WEIGHT_BYTES[dtype] * k * n + 4.0 * (m * k + m * n)
        limit = "read" if m == 1 and nbytes > 2 * last_cache() else None if m == 1 else QUANTISED[dtype][1]
        params = {**case.params, "dtype": dtype}
        flops = 0 if limit == "read" else 2.0 * m * k * n
        found.append(replace(case, params=params, flops=flops, nbytes=nbytes, limit=limit))
    return found


def quantised_inputs(m: int, k: int, n: int, dtype: str) -> dict[str, Any]:
    return {**suites.gemm_inputs(m, k, n), "dtype": dtype}


def quantised_qkv(x: Array, weight: Array, bias: Array, dtype: str) -> Call:
    import qkv

    options: dict[str, Any] = {"dtype": dtype, **({"group_size": 32} if dtype == "int4" else {})}
    try:
        packed = qkv.pack_weight(weight, **options)
    except (TypeError, ValueError, NotImplementedError) as error:  # a version that has no such weights
        raise NotImplementedError(f"not available: {error}") from error
    return lambda: qkv.linear(x, packed, bias)


def quantised_torch(x: Array, weight: Array, bias: Array, dtype: str) -> Call:
    """bfloat16: oneDNN on bf16 tensors, activations converted beforehand. int8: dynamic quantisation in the call."""
    import torch

    x, weight, bias = tensors(x, weight, bias)
    if dtype == "bfloat16":
        x, weight, bias = (t.to(torch.bfloat16) for t in (x, weight, bias))
        run = torch.nn.functional.linear
        return lambda: run(x, weight, bias).float()
    layer = torch.nn.Linear(weight.shape[1], weight.shape[0])
    layer.weight.copy_(weight)
    layer.bias.copy_(bias)
    quantised = torch.ao.quantization.quantize_dynamic(torch.nn.Sequential(layer), {torch.nn.Linear}, torch.qint8)
    return lambda: quantised(x)


def quantised_suite(dtype: str) -> Suite:
    sides = {"qkv": quantised_qkv, **({} if dtype == "int4" else {"torch": quantised_torch})}
    return Suite(QUANTISED[dtype][0], __name__, lambda: quantised_cases(dtype), quantised_inputs, sides)


SIDES = {"torch": torch_side, "onnxruntime": onnxruntime_side, "openvino": openvino_side}
SUITES = {
    "gemm": suites.SUITES["gemm"].extended(__name__, SIDES, cases),
    **{QUANTISED[dtype][0]: quantised_suite(dtype) for dtype in QUANTISED},
}
