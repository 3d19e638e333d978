"""Additive attention (Bahdanau et al. 2015), written with each library's own ops: none has it as one."""

from __future__ import annotations

from qkv.bench import suites

from .peers import Array, Call, onnx_session, tensors


def torch_side(q: Array, k: Array, v: Array, w_q: Array, w_k: Array, w_v: Array) -> Call:
    import torch
    from torch.nn.functional import linear

    q, k, v, w_q, w_k, w_v = tensors(q, k, v, w_q, w_k, w_v)

    def run() -> Array:
        hidden = torch.tanh(linear(q, w_q)[:, :, None] + linear(k, w_k)[:, None])
        return torch.softmax(hidden @ w_v, dim=-1) @ v

    return run


def onnxruntime_side(q: Array, k: Array, v: Array, w_q: Array, w_k: Array, w_v: Array) -> Call:
    import numpy as np

    nodes = [
        ("MatMul", ["q", "w_q"], ["q_a"], {}),
        ("MatMul", ["k", "w_k"], ["k_a"], {}),
        ("Unsqueeze", ["q_a", "two"], ["q_b"], {}),
        ("Unsqueeze", ["k_a", "one"], ["k_b"], {}),
        ("Add", ["q_b", "k_b"], ["sum"], {}),
        ("Tanh", ["sum"], ["hidden"], {}),
        ("MatMul", ["hidden", "w_v"], ["scores"], {}),
        ("Softmax", ["scores"], ["weights"], {"axis": -1}),
        ("MatMul", ["weights", "v"], ["y"], {}),
    ]
    constants = {
        "w_q": np.ascontiguousarray(w_q.T),
        "w_k": np.ascontiguousarray(w_k.T),
        "w_v": w_v,
        "one": np.array([1]),
        "two": np.array([2]),
    }
    return onnx_session(nodes, {"q": q, "k": k, "v": v}, constants)


SIDES = {"torch": torch_side, "onnxruntime": onnxruntime_side}
SUITES = {"additive_attention": suites.SUITES["additive_attention"].extended(__name__, SIDES)}
