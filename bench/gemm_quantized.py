"""linear over weights of bfloat16, int8 and int4, packed beforehand; activations are rounded in the call.

Beside them what a user of the peers has: torch's bfloat16 linear and dynamic int8 quantisation, ONNX Runtime's dynamic
int8 and its 4-bit blocks.
"""

from __future__ import annotations

import numpy as np
from qkv.bench import Case, Suite, suites

from .peers import Array, Call, onnx_session, tensors

SHAPES = (
    *((m, 768, 768) for m in (1, 2, 4, 7, 16, 77, 128, 512, 2048)),
    *((m, 768, 3072) for m in (1, 16, 128, 512)),
    *((m, 3072, 768) for m in (1, 16, 128, 512)),
)
# 128 MB of weights or more, four times many a last cache.
LARGE = {"bfloat16": (1, 8192, 8192), "int8": (1, 8192, 16384), "int4": (1, 16384, 16384)}
TYPES = (("bfloat16", None), ("int8", None), ("int8", 32), ("int4", 32), ("int4", 128))
LIMITS = {"bfloat16": "bf16_dot", "int8": "int8_dot"}
TOLERANCE = {"bfloat16": 1e-3, "int8": 2e-3, "int4": 2e-2}  # of mean magnitudes: rounding noise adds to them


def case(m: int, k: int, n: int, dtype: str, group: int | None) -> Case:
    plain = suites.gemm_case(m, k, n)
    bits = {"bfloat16": 16, "int8": 8, "int4": 4}[dtype] + (
        0 if group is None else (32 if dtype == "int4" else 16) / group
    )
    nbytes = 4.0 * m * (k + n) + k * n * bits / 8
    reads = plain.limit == "read"
    return Case(
        f"{m}x{k}x{n} {dtype}{f'/{group}' if group else ''}",
        {"m": m, "k": k, "n": n, "dtype": dtype, "group": group},
        0 if reads else plain.flops,
        nbytes,
        plain.limit if reads or plain.limit is None else LIMITS.get(dtype),
        TOLERANCE[dtype],
    )


def cases() -> list[Case]:
    # Ones: the largest sums there are. A side that saturates gets an error instead of a time.
    small = {"m": 8, "k": 64, "n": 16, "dtype": "int8", "group": None, "ones": True}
    ones = Case("8x64x16 int8 of ones", small, flops=2.0 * 8 * 64 * 16)
    plan = [*((shape, kind) for shape in SHAPES for kind in TYPES), *((LARGE[kind[0]], kind) for kind in TYPES)]
    return [*(case(*shape, *kind) for shape, kind in plan), ones]


def inputs(m: int, k: int, n: int, dtype: str, group: int | None, ones: bool = False) -> dict[str, Array]:
    arrays = suites.gemm_inputs(m, k, n)
    if ones:
        arrays = {name: np.full_like(x, name != "bias") for name, x in arrays.items()}
    return {**arrays, "dtype": dtype, "group": group}


def qkv_side(x: Array, weight: Array, bias: Array, dtype: str, group: int | None) -> Call:
    import qkv

    packed = qkv.pack_weight(weight, dtype, group)
    return lambda: qkv.linear(x, packed, bias)


def torch_side(x: Array, weight: Array, bias: Array, dtype: str, group: int | None) -> Call:
    import torch
    from torch.nn.functional import linear

    x, weight, bias = tensors(x, weight, bias)
    if dtype == "bfloat16":  # activations as a bfloat16 model has them
        rows, narrow, bias = (t.to(torch.bfloat16) for t in (x, weight, bias))
        return lambda: linear(rows, narrow, bias)
    if dtype == "int8" and group is None:
        layer = torch.nn.Linear(weight.shape[1], weight.shape[0])
        layer.weight.data, layer.bias.data = weight, bias
        quantised = torch.ao.quantization.quantize_dynamic(torch.nn.Sequential(layer), {torch.nn.Linear})
        return lambda: quantised(x)
    raise ValueError(f"torch on a CPU has no linear for {dtype} in groups")


def onnxruntime_side(x: Array, weight: Array, bias: Array, dtype: str, group: int | None) -> Call:
    n, k = weight.shape
    own = {"domain": "com.microsoft"}
    if dtype == "int8" and group is None:
        scale = (np.abs(weight).max(axis=1) / 127).astype(np.float32)
        q = np.rint(weight / scale[:, None]).astype(np.int8)
        constants = {"w": np.ascontiguousarray(q.T), "s": scale, "z": np.zeros(n, np.int8), "b": bias}
        node = ("DynamicQuantizeMatMul", ["x", "w", "s", "z", "b"], ["y"], own)
        return onnx_session([node], {"x": x}, constants)
    if dtype == "int4":
        size = group or 32
        parts = weight.reshape(n, k // size, size)
        scale = (np.abs(parts).max(axis=2) / 7).astype(np.float32)
        q = (np.clip(np.rint(parts / scale[..., None]), -8, 7) + 8).astype(np.uint8)
        blocks = np.ascontiguousarray(q[..., ::2] | q[..., 1::2] << 4)
        attributes = {"K": k, "N": n, "bits": 4, "block_size": size, "accuracy_level": 4, **own}
        nodes = [
            ("MatMulNBits", ["x", "w", "s"], ["p"], attributes),
            ("Add", ["p", "b"], ["y"], {}),
        ]
        return onnx_session(nodes, {"x": x}, {"w": blocks, "s": scale.reshape(-1), "b": bias})
    raise ValueError(f"ONNX Runtime on a CPU has no linear for {dtype}{' in groups' if group else ''}")


SUITES = {
    "gemm_quantized": Suite(
        "gemm_quantized",
        __name__,
        cases,
        inputs,
        {"qkv": qkv_side, "torch": torch_side, "onnxruntime": onnxruntime_side},
    )
}
