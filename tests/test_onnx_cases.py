"""The node cases of the ONNX backend tests, run on qkv (with every instruction set) and on qkv.reference.

The package `onnx` (1.22.0) carries each case as files: a model of one node, its inputs, the outputs to
expect. Below stands one function per ONNX operator, which says how its inputs and attributes map onto qkv. A
case that no function covers fails, and so do an attribute that its function does not know and an output that
it does not return. `*_expanded` cases are skipped: the same numbers, the operator as a graph of primitives.

Tolerances. float32: the expected outputs come from NumPy in float32 (attention: float64), up to 1e-6 from the
truth where values are of order 1, so rtol 4e-6 with atol 1e-6 leaves as much again and more (the ONNX runner
allows rtol 1e-3). float16: attention only, computed in float64 and rounded once, so an op that accumulates in
float32 may differ in the last place and no more: rtol 2**-10.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnx.backend.test
import onnx.reference
import pytest
from onnx import numpy_helper

Array = np.ndarray[Any, np.dtype[Any]]
Inputs = list[Any]  # arrays by position; None for what a node leaves out

NODE_CASES = Path(onnx.backend.test.__file__).parent / "data" / "node"
TOLERANCES = {"float32": (4e-6, 1e-6), "float16": (2**-10, 1e-6)}  # (rtol, atol)
# Cases per operator in onnx 1.22.0.
COUNTS = {
    "Attention": 64,
    "LayerNormalization": 19,
    "RMSNormalization": 19,
    "Softmax": 7,
    "LogSoftmax": 7,
    "RotaryEmbedding": 8,
    "Gelu": 4,
    "Gemm": 11,
    "MatMul": 7,
}
# Outputs that qkv does not have, and why.
NO_SUCH_OUTPUT = {
    ("LayerNormalization", "Mean"): "needed for training only",
    ("LayerNormalization", "InvStdDev"): "needed for training only",
}


def split_heads(x: Array, heads: int) -> Array:
    """(B, S, H*D) to a view (B, H, S, D); a 4-D array stays as it is."""
    return x if x.ndim == 4 else x.reshape(*x.shape[:2], heads, -1).swapaxes(1, 2)


def attention(
    ops: ModuleType,
    inputs: Inputs,
    *,
    q_num_heads: int = 0,
    kv_num_heads: int = 0,
    is_causal: int = 0,
    scale: float | None = None,
    softcap: float | None = None,
    qk_matmul_output_mode: int = 0,
) -> list[Array]:
    query, key, value, attn_mask, past_key, past_value, lengths = inputs + [None] * (7 - len(inputs))
    q = split_heads(query, q_num_heads)
    k, v = split_heads(key, kv_num_heads), split_heads(value, kv_num_heads)
    past = 0
    if past_key is not None:
        past = past_key.shape[2]
        k, v = np.concatenate([past_key, k], axis=2), np.concatenate([past_value, v], axis=2)
    (s, d), t = q.shape[2:], k.shape[2]

    mask = bias = None
    if attn_mask is not None:  # it may end early: the keys after it are excluded
        rest = [(0, 0)] * (attn_mask.ndim - 1) + [(0, t - attn_mask.shape[-1])]
        if attn_mask.dtype == bool:
            mask = np.pad(attn_mask, rest)
        else:
            bias = np.pad(attn_mask, rest, constant_values=-np.inf)
    # In ONNX query i sees the keys j <= past + i: the bottom-right diagonal if S keys follow the past, the
    # top-left one if there is no past. Else (past 12, S 4, T 18 in two cases) it is neither of qkv's two, but
    # a mask like any other.
    causal: bool | str = False
    diagonal = np.tri(s, t, past, dtype=bool)
    if is_causal and past + s == t:
        causal = True
    elif is_causal and past == 0:
        causal = "top_left"
    elif is_causal:
        mask = diagonal if mask is None else mask & diagonal

    masks = {"causal": causal, "mask": mask, "bias": bias, "kv_lengths": lengths}
    if qk_matmul_output_mode == 3:  # the scores asked for are the weights
        y, scores = ops.attention(q, k, v, scale=scale, softcap=softcap, return_weights=True, **masks)
    else:
        y = ops.attention(q, k, v, scale=scale, softcap=softcap, **masks)
        scores = ops.matmul(q, np.repeat(k, q.shape[1] // k.shape[1], axis=1).swapaxes(2, 3))
        scores = scores * np.float32(d**-0.5 if scale is None else scale)
        if softcap and qk_matmul_output_mode >= 1:
            scores = ops.tanh(scores / np.float32(softcap)) * np.float32(softcap)
        if qk_matmul_output_mode == 2:
            scores = scores + (0 if bias is None else bias)
            scores = np.where(diagonal, scores, -np.inf) if is_causal else scores
    if query.ndim == 3:
        y = y.swapaxes(1, 2).reshape(*query.shape[:2], -1)
    return [y, k, v, scores.astype(q.dtype)]


def normalization(op: Callable[..., Array], x: Array, parameters: list[Array], axis: int, epsilon: float) -> Array:
    """ONNX normalises over all axes from `axis` on, qkv over the last one."""
    rows = x.reshape(*x.shape[: axis % x.ndim], -1)
    return op(rows, *(p.reshape(-1) for p in parameters), eps=epsilon).reshape(x.shape)


def layer_norm(ops: ModuleType, inputs: Inputs, *, axis: int = -1, epsilon: float = 1e-5) -> list[Array]:
    return [normalization(ops.layer_norm, inputs[0], inputs[1:], axis, epsilon)]


def rms_norm(ops: ModuleType, inputs: Inputs, *, axis: int = -1, epsilon: float = 1e-5) -> list[Array]:
    return [normalization(ops.rms_norm, inputs[0], inputs[1:], axis, epsilon)]


def softmax(ops: ModuleType, inputs: Inputs, *, axis: int = -1) -> list[Array]:
    return [ops.softmax(inputs[0], axis=axis)]


def log_softmax(ops: ModuleType, inputs: Inputs, *, axis: int = -1) -> list[Array]:
    return [ops.log_softmax(inputs[0], axis=axis)]


def gelu(ops: ModuleType, inputs: Inputs, *, approximate: bytes = b"none") -> list[Array]:
    return [ops.gelu(inputs[0], approximate=approximate.decode())]


def matmul(ops: ModuleType, inputs: Inputs) -> list[Array]:
    return [ops.matmul(*inputs)]


def gemm(
    ops: ModuleType, inputs: Inputs, *, alpha: float = 1, beta: float = 1, transA: int = 0, transB: int = 0
) -> list[Array]:
    """alpha A B + beta C: C is a bias if it has one row, else a residual."""
    a, b, *rest = inputs
    x = np.float32(alpha) * (a.T if transA else a)
    weight = b if transB else b.T  # (out, in)
    bias = residual = None
    if rest and rest[0].ndim == 2 and len(rest[0]) == len(x):
        residual = np.float32(beta) * rest[0]
    elif rest:
        bias = np.broadcast_to(np.float32(beta) * rest[0], (1, len(weight)))[0]
    return [ops.linear(x, weight, bias, residual=residual)]


def rotary(
    ops: ModuleType,
    inputs: Inputs,
    *,
    interleaved: int = 0,
    rotary_embedding_dim: int = 0,
    num_heads: int = 0,
) -> list[Array]:
    x, positions = inputs
    dim, pairs = rotary_embedding_dim or None, bool(interleaved)
    out = ops.rotary(split_heads(x, num_heads), positions, dim=dim, interleaved=pairs)
    return [out if x.ndim == 4 else out.swapaxes(1, 2).reshape(x.shape)]


MAPPINGS: dict[str, Callable[..., list[Array]]] = {
    "Attention": attention,
    "LayerNormalization": layer_norm,
    "RMSNormalization": rms_norm,
    "Softmax": softmax,
    "LogSoftmax": log_softmax,
    "RotaryEmbedding": rotary,
    "Gelu": gelu,
    "Gemm": gemm,
    "MatMul": matmul,
}


def node_cases() -> list[str]:
    """Names of the folders whose model is one node of an operator in MAPPINGS."""
    names = []
    for folder in sorted(NODE_CASES.iterdir()):
        if "_expanded" not in folder.name:
            nodes = onnx.load(folder / "model.onnx").graph.node
            names += [folder.name] if any(node.op_type in MAPPINGS for node in nodes) else []
    return names


def load(name: str) -> tuple[onnx.ModelProto, Inputs, dict[str, Array]]:
    """The model, the node's inputs by position, and what to expect by the name of the output."""
    folder = NODE_CASES / name
    model = onnx.load(folder / "model.onnx")
    (node,) = model.graph.node
    (data,) = folder.glob("test_data_set_*")

    def tensors(kind: str, values: Any) -> dict[str, Array]:
        files = [data / f"{kind}_{i}.pb" for i in range(len(values))]
        return {v.name: numpy_helper.to_array(onnx.load_tensor(f)) for v, f in zip(values, files, strict=True)}

    given = tensors("input", model.graph.input)
    return model, [given.get(name) for name in node.input], tensors("output", model.graph.output)


def rotate_by_positions(model: onnx.ModelProto, inputs: Inputs, expected: dict[str, Array]) -> Inputs:
    """Give a RotaryEmbedding case caches that belong to positions: return [x, positions], change `expected`.

    The recorded caches are random numbers (cos² + sin² is not 1), which no positions give. So the reference
    evaluator of onnx, once it has reproduced the recorded output, computes the case with cosines and sines.
    """
    x, cos_cache, _, *position_ids = inputs
    evaluator = onnx.reference.ReferenceEvaluator(model)

    def evaluate(*arrays: Array) -> Any:
        (output,) = evaluator.run(None, dict(zip(evaluator.input_names, arrays, strict=True)))
        return output

    (name,) = expected
    np.testing.assert_array_equal(evaluate(*inputs), expected[name])
    rows, half = np.arange(len(cos_cache)), cos_cache.shape[-1]
    if not position_ids:  # the caches are (B, S, half), any positions will do
        rows = np.array([[0, 1, 2], [40, 7, 49]])
    angles = rows[..., None].astype(np.float32) * (10000.0 ** (-np.arange(half) / half)).astype(np.float32)
    expected[name] = evaluate(x, np.cos(angles), np.sin(angles), *position_ids)
    return [x, *(position_ids or [rows])]


@pytest.mark.parametrize("module", ["qkv", "qkv.reference"])
@pytest.mark.parametrize("name", node_cases())
def test_node_case(name: str, module: str) -> None:
    model, inputs, expected = load(name)
    (node,) = model.graph.node
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    if node.op_type == "RotaryEmbedding":
        inputs = rotate_by_positions(model, inputs, expected)
    ops = importlib.import_module(module)
    for isa in ops.isas() if module == "qkv" else [None]:
        if isa:
            ops.set_isa(isa)  # conftest sets it back
        outputs = dict(zip(node.output, MAPPINGS[node.op_type](ops, inputs, **attributes), strict=False))
        for output, value in expected.items():
            if (node.op_type, output) in NO_SUCH_OUTPUT:
                continue
            assert (outputs[output].shape, outputs[output].dtype) == (value.shape, value.dtype)
            rtol, atol = TOLERANCES[value.dtype.name]
            np.testing.assert_allclose(outputs[output], value, rtol, atol, err_msg=f"{output} [{isa}]")


def test_every_operator_has_its_cases() -> None:
    """A renamed folder or operator must not empty the list above unnoticed."""
    operators = [onnx.load(NODE_CASES / name / "model.onnx").graph.node[0].op_type for name in node_cases()]
    counts = {operator: operators.count(operator) for operator in MAPPINGS}
    assert counts == COUNTS
