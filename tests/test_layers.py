"""The building blocks against their formulas in NumPy, with whatever slots a family may fill."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from qkv.files import Tensor
from qkv.layers import Attention, Block, Embedding, FeedForward, LayerNorm, Linear, RMSNorm, Run, Stack, Sublayer
from qkv.packing import Packed
from qkv.weights import load_parameters

C, F, H, EPS = 12, 20, 3, 1e-5


def make(build: Any, rng: np.random.Generator, **shapes: tuple[int, ...]) -> tuple[Any, dict[str, np.ndarray]]:
    """A layer with random weights, and the weights in float64."""
    arrays = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    tensors = {name: Tensor.of(name, array) for name, array in arrays.items()}
    layer, _ = load_parameters(build, tensors, [])
    return layer, {name: array.astype(np.float64) for name, array in arrays.items()}


def layer_norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + EPS) * weight + bias


def rms_norm(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + EPS) * weight


def run(n: int) -> Run:
    return Run(np.array([0, n]))


def close(actual: np.ndarray, expected: np.ndarray) -> None:
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * max(1.0, np.abs(expected).max(initial=0)))


def test_linear_norms_and_embedding(rng: np.random.Generator) -> None:
    x, y = rng.normal(size=(2, 5, C)).astype(np.float32)
    linear, w = make(lambda w: Linear(w, C, F), rng, weight=(F, C), bias=(F,))
    close(linear(x), x @ w["weight"].T + w["bias"])
    close(linear(x, activation="relu"), np.maximum(x @ w["weight"].T + w["bias"], 0))
    bare, w = make(lambda w: Linear(w, C, C, bias=False), rng, weight=(C, C))
    close(bare(x, residual=y), x @ w["weight"].T + y)
    norm, w = make(lambda w: LayerNorm(w, C, EPS), rng, weight=(C,), bias=(C,))
    close(norm(x), layer_norm(x.astype(float), w["weight"], w["bias"]))
    close(norm.of_sum(x, y), layer_norm(x.astype(float) + y, w["weight"], w["bias"]))
    rms, w = make(lambda w: RMSNorm(w, C, EPS), rng, weight=(C,))
    close(rms(x), rms_norm(x.astype(float), w["weight"]))
    table, w = make(lambda w: Embedding(w, 7, C), rng, weight=(7, C))
    np.testing.assert_array_equal(table(np.array([6, 0, 6])), w["weight"][[6, 0, 6]])


@pytest.mark.parametrize("slots", ["", "i", "o", "r", "io", "ir", "or", "ior"])
@pytest.mark.parametrize("rms", [False, True])
def test_sublayer_norm_slots(slots: str, rms: bool, rng: np.random.Generator) -> None:
    """norm_residual(x + norm_out(layer(norm_in(x)))), any of them absent."""
    names = {"i": "norm_in", "o": "norm_out", "r": "norm_residual"}

    def build(w: Any) -> Sublayer:
        norms = {names[s]: (RMSNorm if rms else LayerNorm)(w.at(s), C, EPS) for s in slots}
        return Sublayer(FeedForward(w.at("f"), C, F, "relu"), **norms)

    shapes = {"f.up.weight": (F, C), "f.up.bias": (F,), "f.down.weight": (C, F), "f.down.bias": (C,)}
    for s in slots:
        shapes |= {f"{s}.weight": (C,)} if rms else {f"{s}.weight": (C,), f"{s}.bias": (C,)}
    sublayer, w = make(build, rng, **shapes)

    def norm(s: str, x: np.ndarray) -> np.ndarray:
        if s not in slots:
            return x
        return rms_norm(x, w[s + ".weight"]) if rms else layer_norm(x, w[s + ".weight"], w[s + ".bias"])

    x = rng.normal(size=(5, C)).astype(np.float32)
    before = x.copy()
    h = np.maximum(norm("i", x.astype(float)) @ w["f.up.weight"].T + w["f.up.bias"], 0)
    expected = norm("r", x + norm("o", h @ w["f.down.weight"].T + w["f.down.bias"]))
    close(sublayer(x, run(5)), expected)
    np.testing.assert_array_equal(x, before)


ATTENTION = {"qkv.weight": (3 * C, C), "qkv.bias": (3 * C,), "out.weight": (C, C), "out.bias": (C,)}


def test_attention_within_each_row(rng: np.random.Generator) -> None:
    attention, w = make(lambda w: Attention(w, C, H), rng, **ATTENTION)
    lengths = [4, 0, 1, 6]
    cu_seqlens = np.cumsum([0, *lengths])
    x, residual = rng.normal(size=(2, 11, C)).astype(np.float32)
    inside = Run(cu_seqlens, attentions=[])
    out = attention(x, inside, residual=residual)
    for b, n in enumerate(lengths):
        rows = slice(cu_seqlens[b], cu_seqlens[b + 1])
        q, k, v = (x[rows] @ w["qkv.weight"].T + w["qkv.bias"]).reshape(n, 3, H, C // H).transpose(1, 2, 0, 3)
        score = q @ k.swapaxes(1, 2) / np.sqrt(C // H)
        weights = np.exp(score) / np.exp(score).sum(axis=-1, keepdims=True)
        mixed = (weights @ v).swapaxes(0, 1).reshape(n, C)
        close(out[rows], mixed @ w["out.weight"].T + w["out.bias"] + residual[rows])
        assert inside.attentions is not None
        close(inside.attentions[0][b], weights)


def test_stack_shows_what_goes_in_and_what_comes_out(rng: np.random.Generator) -> None:
    def build(w: Any) -> Stack:
        norm = LayerNorm(w.at("norm"), C, EPS)
        return Stack([Block(Sublayer(Attention(w.at(f"{i}"), C, H), norm_in=norm)) for i in range(2)], norm)

    shapes: dict[str, tuple[int, ...]] = {f"{i}.{name}": shape for i in range(2) for name, shape in ATTENTION.items()}
    stack, w = make(build, rng, **shapes, **{"norm.weight": (C,), "norm.bias": (C,)})
    x = rng.normal(size=(5, C)).astype(np.float32)
    seen = Run(np.array([0, 5]), hidden_states=[], attentions=[])
    out = stack(x, seen)
    states = seen.hidden_states
    assert states is not None and len(states) == 3 and states[0] is x and states[2] is out
    close(out, layer_norm(stack.blocks[1](states[1], run(5)).astype(float), w["norm.weight"], w["norm.bias"]))
    assert seen.attentions is not None and len(seen.attentions) == 2
    np.testing.assert_array_equal(stack(x, run(5)), out)


@pytest.mark.parametrize("density", [0.2, 0.7, 1.0])
def test_packing_and_back(density: float, rng: np.random.Generator) -> None:
    mask = rng.random((6, 9)) < density
    mask[np.arange(6), rng.integers(0, 9, 6)] = True
    ids = rng.integers(0, 50, mask.shape)
    packed = Packed.from_padded(ids, mask, vocabulary=50, types=1, positions=9)
    np.testing.assert_array_equal(packed.ids, ids[mask])
    np.testing.assert_array_equal(packed.positions, (mask.cumsum(axis=1) - 1)[mask])
    np.testing.assert_array_equal(packed.cu_seqlens, np.cumsum([0, *mask.sum(axis=1)]))
    values = rng.normal(size=(mask.sum(), 4)).astype(np.float32)
    padded = packed.pad(values)
    np.testing.assert_array_equal(padded[mask], values)
    assert padded.shape == (6, 9, 4) and not padded[~mask].any()
    np.testing.assert_array_equal(packed.first_rows(values), [padded[b][mask[b]][0] for b in range(6)])
    pairs = [rng.normal(size=(2, n, n)).astype(np.float32) for n in mask.sum(axis=1)]
    square = packed.pad_pairs(pairs, 2)
    for b in range(6):
        np.testing.assert_array_equal(square[b][:, mask[b]][..., mask[b]], pairs[b])
    both = mask[:, None, :, None] & mask[:, None, None, :]
    assert not square[~np.broadcast_to(both, square.shape)].any()
    lists = Packed.from_lists([ids[b][mask[b]].tolist() for b in range(6)])
    for name in ("ids", "positions", "cu_seqlens"):
        np.testing.assert_array_equal(getattr(lists, name), getattr(packed, name))
