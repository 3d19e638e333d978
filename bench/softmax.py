"""softmax over the last axis."""

from __future__ import annotations

from qkv.bench import Case, suites

from .peers import Array, Call, onnx_session, tensors


def cases() -> list[Case]:
    return suites.row_cases(rows=(1, 16, 128, 1024, suites.out_of_cache_rows()))


def torch_side(x: Array) -> Call:
    from torch.nn.functional import softmax

    (x,) = tensors(x)
    return lambda: softmax(x, dim=-1)


def onnxruntime_side(x: Array) -> Call:
    return onnx_session([("Softmax", ["x"], ["y"], {"axis": -1})], {"x": x})


SIDES = {"torch": torch_side, "onnxruntime": onnxruntime_side}
SUITES = {"softmax": suites.SUITES["softmax"].extended(__name__, SIDES, cases)}
