"""Encoders in the manner of BERT: embeddings, a stack of blocks, and a head for the task.

A family's file says which of these it has and what its weights are called; here is what they compute.
"""

from __future__ import annotations

from typing import Any

from ..files import Checkpoint
from ..layers import Array, Embedding, LayerNorm, Linear, Run, Stack
from ..outputs import ModelOutput
from ..packing import Packed
from ..sentence import Pipeline, encode
from ..weights import Weights
from .base import Model


class Embeddings:
    """norm(word + token type + position), one row per token; without token type ids all are of type 0."""

    def __init__(self, w: Weights, vocabulary: int, types: int, positions: int, width: int, eps: float):
        self.width = width
        self.word = Embedding(w.at("word"), vocabulary, width)
        self.type = Embedding(w.at("type"), types, width, exact=True)
        self.position = Embedding(w.at("position"), positions, width, exact=True)
        self.norm = LayerNorm(w.at("norm"), width, eps)

    def __call__(self, packed: Packed) -> Array:
        x = self.word(packed.ids)  # (total, C), ours to change
        x += self.type.weight[0] if packed.types is None else self.type(packed.types)
        return self.norm.of_sum(x, self.position(packed.positions))


class Pooler:
    """tanh(dense(first token of the row)), (B, C)"""

    def __init__(self, w: Weights, width: int):
        self.dense = Linear(w, width, width)

    def __call__(self, first: Array) -> Array:
        return self.dense(first, activation="tanh")


class PooledHead:
    """Labels for a row: a linear layer on the pooled output. `field`: its name among the outputs."""

    def __init__(self, w: Weights, width: int, labels: int, field: str = "logits"):
        self.field = field
        self.classifier = Linear(w, width, labels)

    def __call__(self, x: Array, pooled: Array | None, packed: Packed) -> dict[str, Any]:
        assert pooled is not None
        return {self.field: self.classifier(pooled)}  # (B, labels)


class TokenHead:
    """Labels for each token: a linear layer."""

    def __init__(self, w: Weights, width: int, labels: int):
        self.classifier = Linear(w, width, labels)

    def __call__(self, x: Array, pooled: Array | None, packed: Packed) -> dict[str, Any]:
        return {"logits": packed.pad(self.classifier(x))}  # (B, S, labels)


class SpanHead:
    """Where an answer starts and ends: two numbers per token."""

    def __init__(self, w: Weights, width: int):
        self.outputs = Linear(w, width, 2)

    def __call__(self, x: Array, pooled: Array | None, packed: Packed) -> dict[str, Any]:
        logits = packed.pad(self.outputs(x))  # (B, S, 2)
        return {"start_logits": logits[..., 0].copy(), "end_logits": logits[..., 1].copy()}


class MaskedLMHead:
    """A token for each position: decoder(norm(activation(dense(x))))."""

    def __init__(self, w: Weights, width: int, vocabulary: int, activation: str, eps: float, field: str = "logits"):
        self.field = field
        self.activation = activation
        self.dense = Linear(w.at("dense"), width, width)
        self.norm = LayerNorm(w.at("norm"), width, eps)
        self.decoder = Linear(w.at("decoder"), width, vocabulary)

    def __call__(self, x: Array, pooled: Array | None, packed: Packed) -> dict[str, Any]:
        h = self.norm(self.dense(x, activation=self.activation))
        return {self.field: packed.pad(self.decoder(h))}  # (B, S, V)


class BothHeads:
    """Two heads at once, as in pre-training."""

    def __init__(self, *heads: Any):
        self.heads = heads

    def __call__(self, x: Array, pooled: Array | None, packed: Packed) -> dict[str, Any]:
        return {name: value for head in self.heads for name, value in head(x, pooled, packed).items()}


class Encoder(Model):
    """embeddings -> stack -> pooler, if there is one -> head; without a head the hidden states are the
    result."""

    def __init__(
        self,
        embeddings: Embeddings,
        stack: Stack,
        *,
        heads: int,
        pooler: Pooler | None = None,
        head: Any = None,
    ):
        self.embeddings = embeddings
        self.stack = stack
        self.heads = heads  # of attention
        self.pooler = pooler
        self.head = head
        self.max_tokens = embeddings.position.rows

    def attach(self, checkpoint: Checkpoint, *others: Any) -> None:
        super().attach(checkpoint, *others)
        try:
            self.pipeline: Pipeline | ValueError = Pipeline.from_checkpoint(checkpoint, self.embeddings.width)
        except (ValueError, OSError) as error:
            # only encode needs it: it will tell, and the model itself is of use
            self.pipeline = ValueError(str(error))

    def _all_parameters(self) -> dict[str, Any]:
        extra = self.pipeline.tensors if isinstance(self.pipeline, Pipeline) else {}
        return {**self.parameters, **extra}

    def __call__(
        self,
        input_ids: Any,
        attention_mask: Any = None,
        token_type_ids: Any = None,
        position_ids: Any = None,
        *,
        decoder_input_ids: Any = None,
        decoder_attention_mask: Any = None,
        pixel_values: Any = None,
        mems: Any = None,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
    ) -> ModelOutput:
        """Run a batch of token ids.

        input_ids: (B, S) integers: an array, nested lists or a tensor. attention_mask: (B, S), 1 or True
        for real tokens, 0 for padding, which may stand anywhere; None: all are real. token_type_ids: (B,
        S), None: all 0. position_ids: (B, S) or (S,); None: the number of real tokens before each. The
        inputs of other kinds of models must be None.

        Returns float32 arrays in fields named as in transformers, zero at padding: last_hidden_state (B, S,
        C) and pooler_output (B, C), or the head's logits; if asked for, hidden_states, a tuple of L + 1
        arrays (B, S, C), and attentions, a tuple of L arrays (B, H, S, S). TypeError for a dtype,
        ValueError for a shape, an unknown id or a row that is too long.
        """
        for name, value in (
            ("decoder_input_ids", decoder_input_ids),
            ("decoder_attention_mask", decoder_attention_mask),
            ("pixel_values", pixel_values),
            ("mems", mems),
        ):
            if value is not None:
                raise ValueError(f"{name}: a {self.architecture} has no such input")
        packed = Packed.from_padded(
            input_ids,
            attention_mask,
            token_type_ids,
            position_ids,
            vocabulary=self.embeddings.word.rows,
            types=self.embeddings.type.rows,
            positions=self.embeddings.position.rows,
        )
        run = Run(
            packed.cu_seqlens,
            hidden_states=[] if output_hidden_states else None,
            attentions=[] if output_attentions else None,
        )
        x = self.forward(packed, run)
        pooled = None if self.pooler is None else self.pooler(packed.first_rows(x))
        if self.head is None:
            fields = {"last_hidden_state": packed.pad(x), "pooler_output": pooled}
        else:
            fields = self.head(x, pooled, packed)
        states, weights = run.hidden_states, run.attentions
        return ModelOutput(
            **fields,
            hidden_states=None if states is None else tuple(packed.pad(state) for state in states),
            attentions=None if weights is None else tuple(packed.pad_pairs(w, self.heads) for w in weights),
        )

    def forward(self, packed: Packed, run: Run | None = None) -> Array:
        """The last hidden states of packed tokens, (total, C)."""
        return self.stack(self.embeddings(packed), run or Run(packed.cu_seqlens))

    def encode(
        self,
        sentences: Any,
        *,
        batch_size: int = 32,
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
        show_progress_bar: bool | None = None,
        prompt: str | None = None,
        prompt_name: str | None = None,
    ) -> Array:
        """Embed sentences as sentence-transformers does, with the pooling that the checkpoint's files ask
        for; see qkv.sentence.encode."""
        return encode(
            self,
            sentences,
            batch_size=batch_size,
            normalize_embeddings=normalize_embeddings,
            truncate_dim=truncate_dim,
            show_progress_bar=show_progress_bar,
            prompt=prompt,
            prompt_name=prompt_name,
        )
