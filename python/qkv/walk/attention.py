"""How attention is told: from queries, keys and values over scores and weights to the mixed heads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..layers import Attention, CrossAttention, Rotary, Run
from ..models.transfo_xl import Recurrence, RelativeAttention
from ..positions import rope_type, rotary_frequencies
from . import inside
from .record import Call
from .steps import Array, Rows

if TYPE_CHECKING:
    from .tell import Teller


def _by_head(x: Array) -> Array:
    """(S, H, D) -> (H, S, D)"""
    return x.swapaxes(0, 1)


def _projected(
    teller: Teller,
    call: Call,
    letter: str,
    name: str,
    heads: int,
    first: int,
    axis: str,
    token: str,
    head_dim: int,
    x: str = "x",
) -> None:
    """The rows of one product that are queries, keys or values, as (heads, tokens, D). first: their first row."""
    g, rows = call.given, heads * head_dim
    part = slice(first, first + rows)
    value = call.result[:, part].reshape(-1, heads, head_dim)
    chosen = teller.chosen(heads) if axis == "head" else teller.key_heads
    inputs = {x: g["x"], f"W_{letter}": Rows(g["weight"], first, first + rows)}
    formula = f"{letter} = {x} W_{letter}ᵀ"
    if g["bias"] is not None:
        formula, inputs[f"b_{letter}"] = f"{formula} + b_{letter}", g["bias"][part]
    whole = g["weight"].shape[0] != rows
    note = f"rows {first} to {first + rows - 1} of one product" if whole else ""
    teller.add(
        name, formula, "qkv.linear", _picked(_by_head(value), chosen), (axis, token, "feature"), inputs, note=note
    )


def _attended(
    teller: Teller,
    call: Call,
    q: Array,
    k: Array,
    v: Array,
    result: tuple[Array, Array],
    query: str,
    key: str,
    bias: Array | None = None,
) -> None:
    """From queries (S, H, D), keys (T, Hkv, D) and values to the mixed heads. result: out (S, H, D) and weights (H, S,
    T) of the kernel. bias: (H, S, T), told already."""
    g, op, pairs = call.given, f"qkv.{call.op}", ("head", query, key)
    q, k, v = (_by_head(x) for x in (q, k, v))
    heads, group = teller.chosen(len(q)), len(q) // len(k)
    shared = [h // group for h in heads]
    q, k, v = _picked(q, heads), _picked(k, shared), _picked(v, shared)
    (_, s, d), t = q.shape, k.shape[1]
    x = inside.scores(q, k)  # in float64 all the way to the softmax, each step rounded when it is told

    def tell(name: str, formula: str, value: Array, inputs: dict[str, Any], note: str = "", axes: Any = pairs) -> Array:
        return teller.add(name, formula, op, value, axes, inputs, note=note, source="recomputed")

    told = tell("scores", "S = Q Kᵀ", x, {"Q": q, "K": k}, f"{group} query heads share a key head" if group > 1 else "")
    scale = d**-0.5 if g["scale"] is None else g["scale"]
    x = x * scale
    if np.isclose(scale, d**-0.5, rtol=1e-6):
        told = tell("scaled scores", "S / √D", x, {"S": told, "D": d}, f"√D = √{d} = {d**0.5:.4g}")
    else:
        note = "this model does not scale them" if scale == 1 else ""
        told = tell("scaled scores", "s · S", x, {"S": told, "s": scale}, note)
    if g["softcap"] is not None:
        x = inside.softcapped(x, g["softcap"])
        told = tell("capped scores", "c · tanh(S / c)", x, {"S": told, "c": g["softcap"]})
    if g["relative_bias"] is not None:
        table = g["relative_bias"]
        bias = inside.by_distance(table, s, t)
        note = "of each head, by how far a key is behind or ahead of the query"
        tell("distance bias", "B[i, j] = b[j − i]", bias[heads], {"b": table[heads]}, note)
    if bias is not None:
        x = x + bias[heads]
        told = tell("biased scores", "S + B", x, {"S": told, "B": bias[heads]})
    seen = inside.allowed(s, t, g)
    tell("mask", _mask_formula(g), seen, {}, _mask_note(seen, g), (query, key))
    out, weights = result
    weights, masked = _picked(weights, heads), np.where(seen, x, -np.inf)
    off = inside.largest_difference(inside.softmax(masked), weights)
    half = ", whose products have bfloat16 operands where the CPU has them," if g["precision"] == "bf16" else ""
    note = f"the softmax of these is the kernel's weights{half} to {off:.1e}"
    told = tell("masked scores", "S where M, else −∞", masked, {"S": told, "M": seen}, note)
    teller.add("weights", "A = softmax(S) = e^S / Σ e^S", op, weights, pairs, {"S": told})
    out = _by_head(out)
    inputs = {"A": weights, "V": v}
    teller.add("weighted sum", "A V", op, _picked(out, heads), ("head", query, "feature"), inputs)
    whole = out.swapaxes(0, 1).reshape(s, -1)
    note = "the heads side by side, which is how the kernel wrote them"
    teller.add("concatenated heads", "[O₀ O₁ …]", op, whole, (query, "feature"), {"O": out}, note=note)


def _picked(x: Array, heads: list[int]) -> Array:
    """Some heads of (H, …); x itself if these are all."""
    return x if heads == list(range(len(x))) else x[heads]


def _attended_row(teller: Teller, call: Call, query: str, key: str) -> None:
    """Of packed rows, of which there is one."""
    out, weights = call.result
    q, k, v = (call.given[name] for name in "qkv")
    _attended(teller, call, q, k, v, (out, weights[0]), query, key)


def _mask_formula(g: dict[str, Any]) -> str:
    left = (g["window"] or (None, None))[0]
    if g["causal"]:
        return "M[i, j] = j ≤ i" + ("" if left is None else f" and i − j ≤ {left}")
    return "M[i, j] = 1"


def _mask_note(seen: Array, g: dict[str, Any]) -> str:
    if not g["causal"]:
        return "every token sees all; padding is left out before the first layer"
    return "a token sees itself and what comes before it" + (", within its window" if g["window"] else "")


def attention(teller: Teller, layer: Attention, run: Run, token: str) -> None:
    call = teller.take("linear")
    h, kv, d = layer.heads, layer.kv_heads, layer.head_dim
    group = h // kv
    teller.key_heads = sorted({i // group for i in teller.chosen(h)})
    key_axis = "head" if kv == h else "key head"
    if kv != h:
        teller.labels["key head"] = [str(i) for i in teller.key_heads]
    _projected(teller, call, "Q", "queries", h, 0, "head", token, d)
    _projected(teller, call, "K", "keys", kv, h * d, key_axis, token, d)
    _projected(teller, call, "V", "values", kv, (h + kv) * d, key_axis, token, d)
    turned: list[Call] = []
    if layer.q_norm is not None:
        _head_norm(teller, "normed queries", "Q", teller.chosen(h), "head", token)
        _head_norm(teller, "normed keys", "K", teller.key_heads, key_axis, token)
    if layer.rotary is not None:
        if teller.next_is("angles"):
            teller.take("angles")
        turned.append(teller.take("rotate"))
        if layer.q_norm is not None:
            turned.append(teller.take("rotate"))
        _rotated(teller, layer, turned, run, key_axis, token)
    _attended_row(teller, teller.take("attention_varlen"), token, token)
    teller.linear(teller.take("linear"), "output projection", (token, "feature"), x="O", names={"gate": "scaled"})


def _head_norm(teller: Teller, name: str, letter: str, heads: list[int], axis: str, token: str) -> None:
    call = teller.take("rms_norm")
    x, y = (_by_head(part)[heads] for part in (call.given["x"], call.result))
    inputs = {letter: x, "γ": call.given["weight"], "ε": call.given["eps"]}
    formula = f"{letter} / √(mean({letter}²) + ε) · γ"
    teller.add(name, formula, "qkv.rms_norm", y, (axis, token, "feature"), inputs)


def _rotated(teller: Teller, layer: Attention, calls: list[Call], run: Run, key_axis: str, token: str) -> None:
    h = layer.heads
    given = calls[0].given
    angles, factor = given["angles"][:, 0], given["factor"]
    if not teller.turned:
        assert layer.rotary is not None
        _angles(teller, layer.rotary, run, angles, token)
        teller.turned = True
    parts = [call.result for call in calls]
    befores = [call.given["x"] for call in calls]
    if len(calls) == 1:
        befores, parts = ([x[:, :h], x[:, h:]] for x in (befores[0], parts[0]))
    formula = "({0}₁ cos θ − {0}₂ sin θ, {0}₂ cos θ + {0}₁ sin θ)"
    note = "the halves of a head turn by their position" + (
        f"; cos and sin are times {factor:.4g}" if factor != 1 else ""
    )
    of = (("Q", "turned queries", teller.chosen(h), "head"), ("K", "turned keys", teller.key_heads, key_axis))
    for (letter, name, heads, axis), before, after in zip(of, befores, parts, strict=True):
        inputs = {letter: _picked(_by_head(before), heads), "θ": angles, "factor": factor}
        value = _picked(_by_head(after), heads)
        teller.add(name, formula.format(letter), "qkv.rotary", value, (axis, token, "feature"), inputs, note=note)


def _angles(teller: Teller, rotary: Rotary, run: Run, angles: Array, token: str) -> None:
    positions = run.positions
    assert positions is not None
    op, note = "qkv.ops.angles" if rotary.counts else "NumPy", "the same in every layer"
    inputs: dict[str, Any] = {"p": positions, "base": rotary.base, "D": rotary.dim}
    formula = "θ[p, i] = p · base^(−2i/D)"
    if rope_type(rotary.scaling) != "default":
        length = int(positions.max(initial=0)) + 1
        f = rotary_frequencies(rotary.dim, rotary.base, rotary.scaling, length)[0].astype(np.float32)
        formula, inputs, note = "θ[p, i] = p · f[i]", {"p": positions, "f": f}, f"{note}; f are scaled frequencies"
    teller.add("rotary angles", formula, op, angles, (token, "feature"), inputs, note=note)


def cross_attention(teller: Teller, layer: CrossAttention, query: str, key: str) -> None:
    h, d = layer.heads, layer.head_dim
    teller.key_heads = teller.chosen(h)
    _projected(teller, teller.take("linear"), "Q", "queries", h, 0, "head", query, d)
    call = teller.take("linear")
    _projected(teller, call, "K", "keys", h, 0, "head", key, d, x="m")
    _projected(teller, call, "V", "values", h, h * d, "head", key, d, x="m")
    _attended_row(teller, teller.take("attention_varlen"), query, key)
    teller.linear(teller.take("linear"), "output projection", (query, "feature"), x="O", names={"gate": "scaled"})


def relative_attention(teller: Teller, layer: RelativeAttention, run: Run, token: str) -> None:
    """Transformer-XL's."""
    assert isinstance(run, Recurrence) and run.sinusoids is not None
    h, d = layer.heads, layer.head_dim
    teller.key_heads = teller.chosen(h)
    if layer.memory_norm is not None and np.prod(run.memories[layer.layer].shape):
        teller.norm("normed memory", ("memory", "feature"), x="m")
    elif layer.memory_norm is not None:
        teller.take("layer_norm")
    call = teller.take("linear")
    keys = call.given["x"]
    before = run.memories[layer.layer].shape[1]
    inputs: dict[str, Any] = {"m": keys[:before], "x": keys[before:]}
    teller.add("memory and tokens", "[m, x]", "NumPy", keys, ("key", "feature"), inputs)
    _projected(teller, call, "K", "keys", h, 0, "head", "key", d, x="c")
    _projected(teller, call, "V", "values", h, h * d, "head", "key", d, x="c")
    _projected(teller, teller.take("linear"), "Q", "queries", h, 0, "head", token, d)
    heads = teller.chosen(h)

    def split(x: Array) -> Array:
        return _by_head(x.reshape(-1, h, d))[heads]

    def shifted(call: Call, name: str, letter: str) -> None:
        g = call.given
        bias = g["other"].reshape(h, d)[heads]
        inputs = {"Q": split(g["x"]), letter: bias}
        op = "qkv.ops.scaled_sum"
        teller.add(name, f"Q + {letter}", op, split(call.result), ("head", token, "feature"), inputs)

    shifted(teller.take("scaled_sum"), "content queries", "u")
    call = teller.take("linear")
    _projected(teller, call, "R", "distances", h, 0, "head", "distance", d, x="sinusoids")
    shifted(teller.take("scaled_sum"), "distance queries", "v")
    teller.take("scaled_sum")
    teller.take("matmul")
    call = teller.take("attention")
    g = call.given
    bias = g["bias"][0]
    s, t = bias.shape[1:]
    bias = np.where(inside.distances(s, t) <= 0, bias, 0)  # beyond are other rows' numbers, which are masked
    note = "of how far each key is back; the first of R is the farthest, and keys ahead are masked"
    r = teller.steps[-2].value
    inputs = {"Q": teller.steps[-1].value, "R": r, "D": d}
    axes = ("head", token, "key")
    teller.add("distance scores", "Q R[i − j]ᵀ / √D", "qkv.matmul", bias[heads], axes, inputs, note=note)
    q, k, v = (g[name][0] for name in "qkv")
    out, weights = call.result
    _attended(teller, call, q, k, v, (out[0], weights[0]), token, "key", bias)
    teller.linear(teller.take("linear"), "output projection", (token, "feature"), x="O")
