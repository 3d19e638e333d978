"""Rotary position embedding from positions, halves paired; the angles are part of the work."""

from __future__ import annotations

import numpy as np
from qkv.bench import Case, suites

from .peers import Array, Call, onnx_session, tensors

BASE = 10000.0


def cases() -> list[Case]:
    sizes = ((1, 12, 1, 64), (1, 12, 128, 64), (1, 32, 512, 128), (8, 32, 1024, 128))
    return [suites.rotary_case(*size) for size in sizes]


def torch_side(x: Array, positions: Array) -> Call:
    """As transformers has it: angles of all positions, then x cos + rotate_half(x) sin."""
    import torch

    x, positions = tensors(x, positions)
    half = x.shape[-1] // 2
    frequencies = BASE ** -(torch.arange(half) / half)

    def run() -> Array:
        angles = torch.outer(positions.float(), frequencies)
        angles = torch.cat((angles, angles), dim=-1)
        turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
        return x * angles.cos() + turned * angles.sin()

    return run


def onnxruntime_side(x: Array, positions: Array) -> Call:
    """Its op takes tables of cosines and sines, which are made beforehand."""
    half = x.shape[-1] // 2
    angles = np.outer(positions, BASE ** -(np.arange(half) / half))
    tables = {"cos": np.cos(angles).astype(np.float32), "sin": np.sin(angles).astype(np.float32)}
    ids = np.broadcast_to(positions, (x.shape[0], x.shape[2])).astype(np.int64)
    node = ("RotaryEmbedding", ["x", "ids", "cos", "sin"], ["y"], {"domain": "com.microsoft"})
    return onnx_session([node], {"x": x, "ids": np.ascontiguousarray(ids)}, tables)


SIDES = {"torch": torch_side, "onnxruntime": onnxruntime_side}
SUITES = {"rotary": suites.SUITES["rotary"].extended(__name__, SIDES, cases)}
