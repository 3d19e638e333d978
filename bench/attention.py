"""Scaled dot-product attention, full and causal."""

from __future__ import annotations

from qkv.bench import Case, suites

from .peers import Array, Call, onnx_session, openvino_model, tensors


def cases() -> list[Case]:
    squares = [(1, 12, s, 64) for s in (16, 64, 128, 256, 512, 1024, 2048, 4096)]
    others = [(1, 12, 1024, d) for d in (32, 80, 128, 256)] + [(8, 12, 128, 64), (96, 1, 128, 64), (1, 1, 2048, 64)]
    return [suites.attention_case(*size, causal) for size in squares + others for causal in (False, True)]


def torch_side(q: Array, k: Array, v: Array, causal: bool) -> Call:
    from torch.nn.functional import scaled_dot_product_attention

    q, k, v = tensors(q, k, v)
    return lambda: scaled_dot_product_attention(q, k, v, is_causal=causal)


def onnxruntime_side(q: Array, k: Array, v: Array, causal: bool) -> Call:
    """Its fused op takes (B, S, H D)."""
    b, h, s, d = q.shape

    def merged(x: Array) -> Array:
        return x.swapaxes(1, 2).reshape(b, s, h * d)

    attributes = {"num_heads": h, "unidirectional": int(causal), "domain": "com.microsoft"}
    node = ("MultiHeadAttention", ["q", "k", "v"], ["y"], attributes)
    return onnx_session([node], {"q": merged(q), "k": merged(k), "v": merged(v)})


def openvino_side(q: Array, k: Array, v: Array, causal: bool) -> Call:
    import openvino
    from openvino import opset13 as ops

    into = [ops.parameter(x.shape, name=name) for name, x in zip("qkv", (q, k, v), strict=True)]
    out = ops.scaled_dot_product_attention(*into, causal=causal)
    return openvino_model(openvino.Model([out], into), [q, k, v])


SIDES = {"torch": torch_side, "onnxruntime": onnxruntime_side, "openvino": openvino_side}
SUITES = {"attention": suites.SUITES["attention"].extended(__name__, SIDES, cases)}
