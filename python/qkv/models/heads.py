"""What stands on a stack: heads for the tasks, from hidden states to the fields of an output.

A head is called with the hidden states of packed tokens, (total, C), the pooled output (B, C) or None, and the batch.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import ops
from ..layers import Array, LayerNorm, Linear
from ..packing import Packed
from ..placement import host, take
from ..weights import Weights

Fields = dict[str, Any]


class Pooler:
    """tanh(dense(first token of the row)), (B, C)"""

    def __init__(self, w: Weights, width: int, out: int | None = None, activation: str | None = "tanh"):
        self.dense = Linear(w, width, width if out is None else out)
        self.activation = activation

    def __call__(self, first: Array) -> Array:
        return self.dense(first, activation=self.activation)


class PooledHead:
    """Labels for a row: a linear layer on the pooled output. `field`: its name among the outputs."""

    def __init__(self, w: Weights, width: int, labels: int, field: str = "logits"):
        self.field = field
        self.classifier = Linear(w, width, labels)

    def __call__(self, x: Array, pooled: Array | None, packed: Packed) -> Fields:
        assert pooled is not None
        return {self.field: self.classifier(pooled)}  # (B, labels)


class RowHead:
    """Labels for a row: out(activation(dense(the pooled output, or the first token)))."""

    def __init__(self, w: Weights, width: int, labels: int, activation: str):
        self.dense = Linear(w.at("dense"), width, width)
        self.out = Linear(w.at("out"), width, labels)
        self.activation = activation

    def __call__(self, x: Array, pooled: Array | None, packed: Packed) -> Fields:
        row = packed.first_rows(x) if pooled is None else pooled
        return {"logits": self.out(self.dense(row, activation=self.activation))}  # (B, labels)


class LastTokenHead:
    """Labels for a row: a linear layer without bias on the rightmost token that is not the pad token, the first if
    there is none. pad: its id; None: the last token."""

    def __init__(self, w: Weights, width: int, labels: int, pad: int | None):
        self.score = Linear(w, width, labels, bias=False)
        self.pad = pad

    def __call__(self, x: Array, pooled: Array | None, packed: Packed) -> Fields:
        starts, ends = packed.cu_seqlens[:-1], packed.cu_seqlens[1:]
        last = ends - 1
        if self.pad is not None:
            at = np.where(packed.ids != self.pad, np.arange(packed.ids.size), -1)
            best = np.maximum.accumulate(at)  # the latest such token up to each
            last = np.where(ends > starts, best[last] if best.size else last, last)
            last = np.where(last >= starts, last, starts)
        result = np.zeros((starts.size, self.score.weight.shape[0]), np.float32)
        real = ends > starts
        if real.any():
            result[real] = host(self.score(take(x, last[real])))
        return {"logits": result}  # (B, labels)


class MeanHead:
    """Labels for a row: a linear layer without bias on the mean of all its tokens."""

    def __init__(self, w: Weights, width: int, labels: int):
        self.score = Linear(w, width, labels, bias=False)

    def __call__(self, x: Array, pooled: Array | None, packed: Packed) -> Fields:
        borders = zip(packed.cu_seqlens[:-1].tolist(), packed.cu_seqlens[1:].tolist(), strict=True)
        means = np.zeros((packed.cu_seqlens.size - 1, x.shape[1]), np.float32)
        x = host(x)
        for mean, (a, b) in zip(means, borders, strict=True):
            if b > a:  # in float64: a row may be long, and NumPy adds one token after another
                mean[:] = x[a:b].mean(axis=0, dtype=np.float64)
        return {"logits": self.score(means)}  # (B, labels)


class TokenHead:
    """Labels for each token: a linear layer."""

    def __init__(self, w: Weights, width: int, labels: int):
        self.classifier = Linear(w, width, labels)

    def __call__(self, x: Array, pooled: Array | None, packed: Packed) -> Fields:
        return {"logits": packed.pad(self.classifier(x))}  # (B, S, labels)


class SpanHead:
    """Where an answer starts and ends: two numbers per token."""

    def __init__(self, w: Weights, width: int):
        self.outputs = Linear(w.at("outputs"), width, 2)

    def __call__(self, x: Array, pooled: Array | None, packed: Packed) -> Fields:
        logits = packed.pad(self.outputs(x))  # (B, S, 2)
        return {"start_logits": logits[..., 0].copy(), "end_logits": logits[..., 1].copy()}


class MaskedLMHead:
    """A token for each position: decoder(norm(activation(dense(x)))). inner: the width behind `dense`, x's if None."""

    def __init__(
        self,
        w: Weights,
        width: int,
        vocabulary: int,
        activation: str,
        eps: float,
        *,
        inner: int | None = None,
        field: str = "logits",
    ):
        inner = width if inner is None else inner
        self.vocabulary = vocabulary
        self.field = field
        self.activation = activation
        self.dense = Linear(w.at("dense"), width, inner)
        self.norm = LayerNorm(w.at("norm"), inner, eps)
        self.decoder = Linear(w.at("decoder"), inner, vocabulary)

    def logits(self, x: Array) -> Array:
        """(n, C) -> (n, V)"""
        return self.decoder(self._transformed(x))

    def best(self, x: Array, k: int) -> ops.TopK:
        """The k largest logits of each row, where x is in host memory."""
        return ops.linear_top_k(self._transformed(x), self.decoder.weight, self.decoder.bias, k)

    def _transformed(self, x: Array) -> Array:
        return self.norm(self.dense(x, activation=self.activation))

    def __call__(self, x: Array, pooled: Array | None, packed: Packed) -> Fields:
        return {self.field: packed.pad(self.logits(x))}  # (B, S, V)


class LMHead:
    """Logits of the next token: softcap(decoder(scale x)) with softcap(z) = c tanh(z / c)."""

    def __init__(
        self,
        w: Weights,
        width: int,
        vocabulary: int,
        *,
        bias: bool = False,
        scale: float | None = None,
        softcap: float | None = None,
    ):
        self.vocabulary = vocabulary
        self.decoder = Linear(w.at("decoder"), width, vocabulary, bias=bias)
        self.scale = scale
        self.softcap = softcap

    def logits(self, x: Array) -> Array:
        """(n, C) -> (n, V)"""
        z = self.decoder(x if self.scale is None else ops.scaled_sum(x, self.scale))
        if self.softcap is not None:
            z = ops.scaled_sum(ops.tanh(ops.divided(z, self.softcap)), self.softcap)
        return z

    def best(self, x: Array, k: int) -> ops.TopK:
        """The k largest logits of each row, where x is in host memory."""
        if self.softcap is not None:
            return ops.top_k_with_parts(self.logits(x), k)
        x = x if self.scale is None else ops.scaled_sum(x, self.scale)
        return ops.linear_top_k(x, self.decoder.weight, self.decoder.bias, k)

    def __call__(self, x: Array, pooled: Array | None, packed: Packed) -> Fields:
        return {"logits": packed.pad(self.logits(x))}  # (B, S, V)


class DiscriminatorHead:
    """Whether each token was replaced: prediction(activation(dense(x))), one number per token (Clark et al. 2020)."""

    def __init__(self, w: Weights, width: int, activation: str):
        self.dense = Linear(w.at("dense"), width, width)
        self.prediction = Linear(w.at("prediction"), width, 1)
        self.activation = activation

    def __call__(self, x: Array, pooled: Array | None, packed: Packed) -> Fields:
        return {"logits": packed.pad(self.prediction(self.dense(x, activation=self.activation))[:, 0])}  # (B, S)


class BothHeads:
    """Two heads at once, as in pre-training."""

    def __init__(self, *heads: Any):
        self.heads = heads

    def __call__(self, x: Array, pooled: Array | None, packed: Packed) -> Fields:
        return {name: value for head in self.heads for name, value in head(x, pooled, packed).items()}
