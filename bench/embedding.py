"""Rows of a table by ids."""

from __future__ import annotations

from qkv.bench import suites

from .peers import Array, Call, onnx_session, tensors


def torch_side(ids: Array, table: Array) -> Call:
    from torch.nn.functional import embedding

    ids, table = tensors(ids, table)
    return lambda: embedding(ids, table)


def onnxruntime_side(ids: Array, table: Array) -> Call:
    return onnx_session([("Gather", ["table", "ids"], ["y"], {"axis": 0})], {"ids": ids}, {"table": table})


SIDES = {"torch": torch_side, "onnxruntime": onnxruntime_side}
SUITES = {"embedding": suites.SUITES["embedding"].extended(__name__, SIDES)}
