"""From recorded calls to steps with names: what each layer of qkv.layers does, in the order in which it does it.

A teller reads the calls one after another, as the layer's own code made them, so a call that is not the expected one is
a mistake here, and an error.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from .. import ops
from ..layers import (
    Attention,
    Block,
    CrossAttention,
    FeedForward,
    GatedFeedForward,
    Linear,
    Run,
    Sublayer,
)
from ..models.transfo_xl import RelativeAttention
from . import attention
from .record import Call, Layer
from .steps import Array, Step, fits

ACTIVATION = {
    "gelu": "gelu(u) = u · Φ(u)",
    "gelu_tanh": "gelu(u) ≈ u/2 · (1 + tanh(√(2/π) · (u + 0.044715 u³)))",
    "relu": "relu(u) = max(u, 0)",
    "silu": "silu(u) = u / (1 + e⁻ᵘ)",
    "quick_gelu": "u / (1 + e^(−1.702 u))",
    "tanh": "tanh(u)",
}


class Teller:
    """Reads events and writes steps. heads: those whose queries, scores and weights are kept; None: all."""

    def __init__(self, events: Sequence[Call | Layer], heads: Sequence[int] | None):
        self.events = list(events)
        self.at = 0
        self.heads = None if heads is None else list(heads)
        self.where: list[str] = []
        self.steps: list[Step] = []
        self.paths: set[str] = set()
        self.nbytes = 0
        self.turned = False  # whether rotary angles have been told
        self.key_heads: list[int] = []  # of the attention that is told
        self.labels: dict[str, list[str]] = {}  # of axes that only the layers know

    # ---- reading and writing ------------------------------------------------------------------------------

    def next_is(self, op: str) -> bool:
        event = self.events[self.at] if self.at < len(self.events) else None
        return isinstance(event, Call) and event.op == op

    def peek(self) -> Call:
        event = self.events[self.at]
        assert isinstance(event, Call)
        return event

    def take(self, *wanted: str) -> Call:
        event = self.events[self.at] if self.at < len(self.events) else None
        if not isinstance(event, Call) or event.op not in wanted:
            found = "the end" if event is None else event.op if isinstance(event, Call) else f"layer {event.number}"
            raise RuntimeError(f"trace: in {'.'.join(self.where)} expected {' or '.join(wanted)}; found {found}")
        self.at += 1
        return event

    def take_layer(self, stack: str) -> Layer | None:
        event = self.events[self.at] if self.at < len(self.events) else None
        if not isinstance(event, Layer) or event.stack != stack:
            return None
        self.at += 1
        return event

    @contextmanager
    def section(self, name: str) -> Iterator[None]:
        if name:
            self.where.append(name)
        yield
        if name:
            self.where.pop()

    def add(
        self,
        name: str,
        formula: str,
        op: str,
        value: Array,
        axes: tuple[str, ...],
        inputs: dict[str, Any] | None = None,
        *,
        source: str = "recorded",
        note: str = "",
    ) -> Array:
        """A step under the current section; its value."""
        with np.errstate(over="ignore"):
            array: Array = value.astype(np.float32) if value.dtype == np.float64 else value
        path, count = ".".join([*self.where, name]), 1
        while path in self.paths:
            count += 1
            path = ".".join([*self.where, f"{name} {count}"])
        self.paths.add(path)
        self.nbytes += array.nbytes
        fits(self.nbytes, f"the steps up to {path}")
        self.steps.append(Step(path, formula, op, array, axes, inputs or {}, source, note))
        return array

    # ---- products and norms ---------------------------------------------------------------------------------

    def linear(
        self, call: Call, name: str, axes: tuple[str, ...], *, x: str = "x", names: dict[str, str] | None = None
    ) -> None:
        """A product, and what was fused behind it. names: of these steps, instead of their own."""
        g, names = call.given, names or {}
        behind = [part for part in ("activation", "gate", "residual") if g[part] is not None]
        weights = {"W": g["weight"]} | ({} if g["bias"] is None else {"b": g["bias"]})
        formula = f"{x} Wᵀ" + ("" if g["bias"] is None else " + b")
        op, parts, inputs = "qkv.linear", ["", *behind], {x: g["x"], **weights}
        value: Any = None
        for i, part in enumerate(parts):
            done = {key: g[key] for key in parts[1 : i + 1]}
            last = i == len(parts) - 1
            result = call.result if last else ops.linear(g["x"], g["weight"], g["bias"], **done)
            title = names.get(part, {"": name, "gate": "gated"}.get(part, part))
            if part == "activation":
                formula, inputs = ACTIVATION[g["activation"]], {"u": value}
            elif part == "gate":
                formula, inputs = "a ⊙ g", {"a": value, "g": g["gate"]}
            elif part == "residual":
                formula, inputs = "y + r", {"y": value, "r": g["residual"]}
            source = "recorded" if last else "repeated"
            value = self.add(title, formula, op, result, axes, inputs, source=source)

    def norm(self, name: str, axes: tuple[str, ...], *, x: str = "x") -> None:
        call = self.take("layer_norm", "rms_norm")
        g = call.given
        inputs = {x: g["x"], "γ": g["weight"], "ε": g["eps"]}
        if call.op == "rms_norm":
            formula = f"{x} / √(mean({x}²) + ε) · γ"
        else:
            formula = f"({x} − mean({x})) / √(var({x}) + ε) · γ"
            if g["bias"] is not None:
                formula, inputs["β"] = formula + " + β", g["bias"]
        result = call.result
        if g["residual"] is not None:
            result, total = call.result
            inputs[x] = self.add("sum", "x + p", f"qkv.{call.op}", total, axes, {"x": g["x"], "p": g["residual"]})
        self.add(name, formula, f"qkv.{call.op}", result, axes, inputs)

    def sum(self, call: Call, name: str, axes: tuple[str, ...], a: str, b: str) -> None:
        """scale a + b"""
        g = call.given
        scaled = g["scale"] != 1
        parts = [f"s · {a}" if scaled else a] + ([] if g["other"] is None else [b])
        inputs = {a: g["x"]} | ({"s": g["scale"]} if scaled else {}) | ({} if g["other"] is None else {b: g["other"]})
        self.add(name, " + ".join(parts), "qkv.ops.scaled_sum", call.result, axes, inputs)

    def chosen(self, count: int) -> list[int]:
        """Numbers of the heads to tell, of so many."""
        return list(range(count)) if self.heads is None else [h for h in self.heads if h < count]

    # ---- blocks ---------------------------------------------------------------------------------------------

    def feed_forward(self, layer: FeedForward | GatedFeedForward, token: str) -> None:
        if isinstance(layer, GatedFeedForward):
            self.linear(self.take("linear"), "up", (token, "feature"), names={"gate": "scaled up"})
            names = {"activation": "activated gate", "gate": "gated"}
            self.linear(self.take("linear"), "gate", (token, "feature"), names=names)
        else:
            self.linear(self.take("linear"), "up", (token, "feature"), names={"gate": "scaled up"})
        self.linear(self.take("linear"), "down", (token, "feature"), x="h")

    def sublayer(self, sublayer: Sublayer, run: Run, token: str, source: str) -> None:
        layer = sublayer.layer
        if isinstance(layer, (FeedForward, GatedFeedForward)):
            name = "feed-forward"
        else:
            name = "cross-attention" if isinstance(layer, CrossAttention) else "self-attention"
        axes = (token, "feature")
        with self.section(name):
            if sublayer.norm_in is not None:
                self.norm("norm", axes)
            if isinstance(layer, Attention):
                attention.attention(self, layer, run, token)
            elif isinstance(layer, CrossAttention):
                attention.cross_attention(self, layer, token, source)
            elif isinstance(layer, RelativeAttention):
                attention.relative_attention(self, layer, run, token)
            else:
                assert isinstance(layer, (FeedForward, GatedFeedForward))
                self.feed_forward(layer, token)
            if sublayer.norm_out is not None:
                self.norm("norm of the result", axes)
                self.sum(self.take("scaled_sum"), "residual", axes, "y", "r")
            if sublayer.norm_residual is not None:
                self.norm("norm", axes)

    def stack(self, name: str, token: str, source: str, final: bool) -> None:
        """All layers of the stack that begins here, and its final norm."""
        while (layer := self.take_layer(name)) is not None:
            with self.section(f"layer {layer.number}"):
                if not layer.told:
                    note = "not among the layers that were chosen"
                    self.add(
                        "hidden states",
                        "layer(x)",
                        "",
                        layer.result,
                        (token, "feature"),
                        {"x": layer.inputs},
                        note=note,
                    )
                    continue
                block: Block = layer.block
                for sublayer in block.sublayers:
                    self.sublayer(sublayer, layer.run, token, source)
        if final:
            self.norm("final norm", (token, "feature"))


def parts(owner: Any, prefix: str = "") -> dict[int, str]:
    """Names of the linear layers and norms in an object, by the identity of their weights."""
    found: dict[int, str] = {}
    for name, value in vars(owner).items():
        for item in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(item, Linear) or type(item).__name__ in ("LayerNorm", "RMSNorm"):
                found[id(item.weight)] = name
            elif hasattr(item, "__dict__") and type(item).__module__.startswith("qkv.models"):
                found |= parts(item)
    return found
