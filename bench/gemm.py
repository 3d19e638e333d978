"""linear: x W^T + b; W known beforehand. M rows of x, K in, N out."""

from __future__ import annotations

from qkv.bench import Case, suites

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


SIDES = {"torch": torch_side, "onnxruntime": onnxruntime_side, "openvino": openvino_side}
SUITES = {"gemm": suites.SUITES["gemm"].extended(__name__, SIDES, cases)}
