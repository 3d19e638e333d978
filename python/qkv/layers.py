"""The blocks that every family is assembled from.

Activations are packed tokens, (total, C): the rows of a batch one after another, without padding, with their
borders in `Run.cu_seqlens`. What varies between families is an object (a norm, a layer, a rule), not a flag.

    Block      x -> sublayer -> sublayer ...       attention, feed-forward; in a decoder cross-attention too
    Sublayer   x := norm_residual(x + norm_out(layer(norm_in(x))))       each norm may be absent

Post-norm models (BERT) fill norm_residual, pre-norm models (GPT-2, Llama) norm_in, Gemma2 norm_in and
norm_out too.

Letters: total tokens of a batch, H heads, D head width, C model width, F feed-forward width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from . import ops
from .weights import Weights

Array = np.ndarray[Any, Any]


@dataclass
class Run:
    """One pass of a batch through a model: where its rows begin, and what the caller wants to see of the
    inside."""

    cu_seqlens: Array  # (B + 1,)
    hidden_states: list[Array] | None = None  # collects (total, C): what goes into each block, and the last result
    attentions: list[list[Array]] | None = None  # collects per block a list of B arrays (H, S_b, S_b)


class Norm(Protocol):
    def __call__(self, x: Array) -> Array: ...


class Layer(Protocol):
    """A sublayer's work. With a residual it returns its result plus the residual, as ops.linear adds it for
    free."""

    def __call__(self, x: Array, run: Run, residual: Array | None = None) -> Array: ...


class Linear:
    """y = activation(x W^T + b) + residual, with `weight` (n_out, n_in) and `bias` (n_out,)."""

    def __init__(self, w: Weights, n_in: int, n_out: int, *, bias: bool = True):
        self.weight = w.matrix("weight", (n_out, n_in))
        self.bias = w.vector("bias", (n_out,)) if bias else None

    def __call__(self, x: Array, *, activation: str | None = None, residual: Array | None = None) -> Array:
        y: Array = ops.linear(x, self.weight, self.bias, activation=activation, residual=residual)
        return y


class LayerNorm:
    """(x - mean) / sqrt(variance + eps) * weight + bias over the last axis, with the biased variance."""

    def __init__(self, w: Weights, width: int, eps: float):
        self.weight = w.vector("weight", (width,))
        self.bias = w.vector("bias", (width,))
        self.eps = eps

    def __call__(self, x: Array) -> Array:
        y: Array = ops.layer_norm(x, self.weight, self.bias, self.eps)
        return y

    def of_sum(self, x: Array, y: Array) -> Array:
        """The norm of x + y, in one pass over both."""
        result: Array = ops.layer_norm(x, self.weight, self.bias, self.eps, residual=y)[0]
        return result


class RMSNorm:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis. Gemma's 1 + weight is an `offset` rule at
    loading."""

    def __init__(self, w: Weights, width: int, eps: float):
        self.weight = w.vector("weight", (width,))
        self.eps = eps

    def __call__(self, x: Array) -> Array:
        y: Array = ops.rms_norm(x, self.weight, self.eps)
        return y


class Embedding:
    """Rows of a table (rows, width): one for each id. exact: float32 whatever the model's dtype, for positions and the
    like."""

    def __init__(self, w: Weights, rows: int, width: int, *, exact: bool = False):
        self.rows = rows
        self.weight = w.vector("weight", (rows, width)) if exact else w.table("weight", (rows, width))

    def __call__(self, ids: Array) -> Array:
        rows: Array = ops.embedding(ids, self.weight)  # (total, width)
        return rows


class Attention:
    """Multi-head self-attention. `qkv` holds the rows of q, k and v in one matrix: one product instead of
    three, whose result is then seen as three strided arrays without a copy. Behind weights of 16 bits or fewer, scores
    and values are products of bfloat16 too, where the CPU has them."""

    def __init__(self, w: Weights, width: int, heads: int):
        self.heads = heads
        self.qkv = Linear(w.at("qkv"), width, 3 * width)
        self.out = Linear(w.at("out"), width, width)

    def __call__(self, x: Array, run: Run, residual: Array | None = None) -> Array:
        total, width = x.shape
        qkv = self.qkv(x).reshape(total, 3, self.heads, width // self.heads)  # (total, 3, H, D)
        result = ops.attention_varlen(
            qkv[:, 0],
            qkv[:, 1],
            qkv[:, 2],
            run.cu_seqlens,
            run.cu_seqlens,
            precision="highest" if self.qkv.weight.dtype == "float32" else "bf16",
            return_weights=run.attentions is not None,
        )
        if run.attentions is not None:
            result, weights = result
            run.attentions.append(weights)
        return self.out(result.reshape(total, width), residual=residual)


class FeedForward:
    """down(activation(up(x)))"""

    def __init__(self, w: Weights, width: int, inner: int, activation: str):
        self.up = Linear(w.at("up"), width, inner)
        self.down = Linear(w.at("down"), inner, width)
        self.activation = activation

    def __call__(self, x: Array, run: Run, residual: Array | None = None) -> Array:
        return self.down(self.up(x, activation=self.activation), residual=residual)


class Sublayer:
    """norm_residual(x + norm_out(layer(norm_in(x))))"""

    def __init__(
        self,
        layer: Layer,
        *,
        norm_in: Norm | None = None,
        norm_out: Norm | None = None,
        norm_residual: Norm | None = None,
    ):
        self.layer = layer
        self.norm_in = norm_in
        self.norm_out = norm_out
        self.norm_residual = norm_residual

    def __call__(self, x: Array, run: Run) -> Array:
        h = x if self.norm_in is None else self.norm_in(x)
        x = self.layer(h, run, residual=x) if self.norm_out is None else x + self.norm_out(self.layer(h, run))
        return x if self.norm_residual is None else self.norm_residual(x)


class Block:
    def __init__(self, *sublayers: Sublayer):
        self.sublayers = sublayers

    def __call__(self, x: Array, run: Run) -> Array:
        for sublayer in self.sublayers:
            x = sublayer(x, run)
        return x


class Stack:
    """Blocks one after another, then the final norm of pre-norm models."""

    def __init__(self, blocks: Sequence[Block], final_norm: Norm | None = None):
        self.blocks = list(blocks)
        self.final_norm = final_norm

    def __call__(self, x: Array, run: Run) -> Array:
        for block in self.blocks:
            if run.hidden_states is not None:
                run.hidden_states.append(x)
            x = block(x, run)
        if self.final_norm is not None:
            x = self.final_norm(x)
        if run.hidden_states is not None:
            run.hidden_states.append(x)
        return x
