"""Models of one stack: token ids -> embeddings -> blocks -> head. Encoders like BERT and decoders like GPT-2 are both.

A family's file says which embeddings, blocks and head these are, and what its weights are called.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from .. import ops, placement
from ..cache import CachedSequence, PagedCache
from ..capture import Forward
from ..config import Config
from ..files import Checkpoint
from ..generate import generate, stream
from ..layers import Array, Embedding, LayerNorm, Linear, Norm, Run, Stack
from ..outputs import ModelOutput
from ..packing import Packed
from ..placement import Place
from ..predict import predict, rank
from ..score import score
from ..sentence import Pipeline, encode
from ..weights import Rule, Tie, Weights
from .base import Model
from .heads import Pooler


class Positions(Protocol):
    """What is added to a token's embedding for where it stands. limit: how many tokens a row may have. rows: how many
    explicit position_ids there are."""

    limit: int
    rows: int

    def __call__(self, packed: Packed) -> Array: ...


class LearnedPositions:
    """Rows of a table. offset: unused rows at its beginning."""

    def __init__(self, w: Weights, rows: int, width: int, *, offset: int = 0):
        self.table = Embedding(w, rows, width, exact=True)
        self.offset = offset
        self.limit = self.rows = max(rows - offset, 0)

    def __call__(self, packed: Packed) -> Array:
        return self.table(packed.positions, self.offset)  # a step replays no sum


class CountedPositions:
    """RoBERTa's: rows of a table, counted from pad + 1 over the ids of a row that are not pad, which itself has row
    pad. Explicit position_ids are rows of the table."""

    def __init__(self, w: Weights, rows: int, width: int, pad: int):
        self.table = Embedding(w, rows, width, exact=True)
        self.pad = pad
        self.rows = rows
        self.limit = max(rows - pad - 1, 0)

    def __call__(self, packed: Packed) -> Array:
        return self.table(packed.positions if packed.explicit else packed.of(self))

    def derive(self, packed: Packed) -> Array:
        """The table's row for each token."""
        real = packed.ids != self.pad
        count = np.concatenate([[0], np.cumsum(real)])  # before each token, and at the end
        start = np.repeat(packed.cu_seqlens[:-1], np.diff(packed.cu_seqlens))  # of each token's row
        # a row that goes on in a cache starts where it has come to
        place = packed.positions[start] + count[1:] - count[start]
        return np.where(real, place, 0) + self.pad


class SinusoidalPositions:
    """Rows of a table that is computed, as far as it is needed: a config may claim any length. It lies where the model
    is, so that a step which is replayed finds its rows there."""

    FIRST = 64  # rows, at least

    def __init__(self, place: Place, limit: int, width: int, *, interleaved: bool = False):
        self.place = place
        self.limit = self.rows = limit
        self.width = width
        self.interleaved = interleaved
        self.table = place.put(np.empty((0, width), np.float32))

    def __call__(self, packed: Packed) -> Array:
        count = int((packed.derive_from or packed).positions.max(initial=-1)) + 1
        # the same for all of a batch: another thread may put a shorter one here, and a recording takes what is there
        table = self.table if packed.table is None else packed.table
        if count > len(table):
            count = min(max(count, 2 * len(table), self.FIRST), self.limit)
            self.table = table = self.place.put(
                ops.sinusoidal_positions(count, self.width, interleaved=self.interleaved)
            )
        packed.table = table
        return placement.rows(packed.positions, table, np.float32)


class Embeddings:
    """project(norm(scale (word + type) + position)), one row per token.

    types: how many token types there are, in a table of their own; 0: rows of the word table, where token_type_ids are
    given (GPT); None: the model has none. Without token_type_ids all are of type 0.
    """

    def __init__(
        self,
        w: Weights,
        vocabulary: int,
        width: int,
        *,
        positions: Positions | None = None,
        types: int | None = None,
        scale: float | None = None,
        norm: Norm | None = None,
        project: Linear | None = None,
    ):
        self.word = Embedding(w.at("word"), vocabulary, width)
        self.type = Embedding(w.at("type"), types, width, exact=True) if types else None
        self.types = vocabulary if types == 0 else types
        self.positions = positions
        self.scale = scale
        self.norm = norm
        self.project = project

    @property
    def limit(self) -> int | None:
        return None if self.positions is None else self.positions.limit

    def pack(
        self, input_ids: Any, attention_mask: Any, token_type_ids: Any, position_ids: Any, prefix: str = ""
    ) -> Packed:
        """A user's batch, checked. prefix: of the inputs' names, for messages."""
        return Packed.from_padded(
            input_ids,
            attention_mask,
            token_type_ids,
            position_ids,
            vocabulary=self.word.rows,
            types=self.types,
            longest=self.limit,
            positions=None if self.positions is None else self.positions.rows,
            prefix=prefix,
        )

    def __call__(self, packed: Packed) -> Array:
        x = self.word(packed.ids)  # (total, C)
        if self.type is not None:
            x = ops.scaled_sum(x, 1, self.type.weight[0] if packed.types is None else self.type(packed.types))
        elif packed.types is not None:
            x = ops.scaled_sum(x, 1, self.word(packed.types))
        position = None if self.positions is None else packed.copies.near(x, self.positions(packed))
        fused = position is not None and self.scale is None and x.dtype == position.dtype
        if fused and isinstance(self.norm, LayerNorm):
            x = self.norm.of_sum(x, position)
        else:
            if position is not None or self.scale is not None:
                x = ops.scaled_sum(x, 1 if self.scale is None else self.scale, position)
            x = x if self.norm is None else self.norm(x)
        return x if self.project is None else self.project(x)


class TokenModel(Model):
    """embeddings -> stack -> pooler, if there is one -> head; without a head the hidden states are the
    result.

    width: of the hidden states. heads: of attention. cache: (key-value heads, head width) of a decoder, whose tokens
    can be kept in a paged cache. exact_up_to: how many tokens a row may grow to there with the same result as in one
    piece; None: any number. turns_anew_beyond: a row that generation makes longer is to be computed anew, once."""

    inputs: tuple[str, ...] = ("input_ids", "attention_mask", "token_type_ids", "position_ids")

    def __init__(
        self,
        embeddings: Embeddings,
        stack: Stack,
        *,
        width: int,
        heads: int,
        cache: tuple[int, int] | None = None,
        exact_up_to: int | None = None,
        turns_anew_beyond: int | None = None,
        pooler: Pooler | None = None,
        head: Any = None,
    ):
        self.embeddings = embeddings
        self.stack = stack
        self.width = width
        self.heads = heads
        self.cache = cache
        self.exact_up_to = exact_up_to
        self.turns_anew_beyond = turns_anew_beyond
        self.pooler = pooler
        self.head = head
        self.max_tokens = embeddings.limit
        # with a single type there is nothing to tell apart, and a tokenizer made for another model may give two
        self.token_types = embeddings.type is not None and embeddings.type.rows > 1

    def attach(self, checkpoint: Checkpoint, *others: Any) -> None:
        super().attach(checkpoint, *others)
        try:
            self.pipeline: Pipeline | ValueError = Pipeline.from_checkpoint(checkpoint, self.width)
        except (ValueError, OSError) as error:
            # only encode needs it: it will tell, and the model itself is of use
            self.pipeline = ValueError(str(error))

    def _all_parameters(self) -> dict[str, Any]:
        extra = self.pipeline.tensors if isinstance(self.pipeline, Pipeline) else {}
        return {**self.parameters, **extra}

    def run(self, given: Mapping[str, Any], *, attentions: bool, hidden_states: bool) -> ModelOutput:
        packed = self.embeddings.pack(
            given["input_ids"], given["attention_mask"], given["token_type_ids"], given["position_ids"]
        )
        run = Run(
            packed.cu_seqlens,
            packed.positions,
            hidden_states=[] if hidden_states else None,
            attentions=[] if attentions else None,
        )
        x = self.forward(packed, run)
        pooled = None if self.pooler is None else self.pooler(packed.first_rows(x))
        if self.head is None:
            fields = {"last_hidden_state": packed.pad(x), "pooler_output": pooled}
        else:
            fields = self.head(x, pooled, packed)
        return ModelOutput(
            **fields,
            hidden_states=packed.pad_all(run.hidden_states),
            attentions=packed.pad_all_pairs(run.attentions, self.heads),
        )

    def forward(self, packed: Packed, run: Run | None = None) -> Array:
        """The last hidden states of packed tokens, (total, C)."""
        return self.stack(self.embeddings(packed), run or Run(packed.cu_seqlens, packed.positions))

    def new_cache(self, **options: Any) -> PagedCache:
        """A cache for `extend`; options as PagedCache has them, dtype from what attention computes in.
        ValueError: the model is no decoder."""
        if self.cache is None:
            raise ValueError(f"a {self.architecture} attends to what follows a token too, so it has no use for a cache")
        own = {"dtype": self.stack.cache_dtype, "place": self.place}
        return PagedCache(len(self.stack.blocks), *self.cache, **{**own, **options})

    def extend(
        self,
        cache: PagedCache,
        sequences: Sequence[CachedSequence],
        rows: Sequence[Sequence[int]],
        *,
        hidden_states: list[Array] | None = None,
        attentions: list[list[Array]] | None = None,
        forward: Forward | None = None,
    ) -> Array:
        """The last hidden states (total, C) of new tokens, packed, which are added to the sequences of a cache:
        prompts in one piece or several, then token by token. rows: the ids that each gets, checked by the caller.
        hidden_states, attentions: lists that collect what `Run` says. forward: what to run the tokens through instead
        of `self.forward`, whose result is then this one's.

        With the cache of `new_cache` the result is that of the whole row in one piece, to the bit. Rotary positions of
        type dynamic and longrope are the exception beyond `exact_up_to` tokens: there the rotation depends on the
        length. The new tokens turn by the length that the row has with them, those in the cache stay as they were
        turned in their time, as in transformers."""
        counts = [len(row) for row in rows]
        step = cache.extend(sequences, counts)
        before = step.lengths - counts
        if isinstance(self.embeddings.positions, CountedPositions):
            pad = self.embeddings.positions.pad
            packed = Packed.from_lists(rows, before - [len(sequence.unplaced) for sequence in sequences])
            for sequence, row, first in zip(sequences, rows, before.tolist(), strict=True):
                sequence.unplaced += tuple(first + i for i, token in enumerate(row) if token == pad)
        else:
            packed = Packed.from_lists(rows, before)
        run = Run(packed.cu_seqlens, packed.positions, hidden_states=hidden_states, attentions=attentions, step=step)
        return (forward or self.forward)(packed, run)

    def generate(self, input_ids: Any = None, attention_mask: Any = None, **arguments: Any) -> Any:
        """Token ids that go on from prompts, int64 (rows, L), prompts included; see qkv.generate.generate."""
        return generate(self, input_ids, attention_mask, **arguments)

    def stream(self, input_ids: Any = None, attention_mask: Any = None, **arguments: Any) -> Iterator[Array]:
        """The tokens of each step as they come, int64 (rows,); see qkv.generate.stream."""
        return stream(self, input_ids, attention_mask, **arguments)

    def score(self, texts: Any, attention_mask: Any = None) -> ModelOutput:
        """The log-probability of each token behind those before it, and of each row; see qkv.score.score."""
        return score(self, texts, attention_mask)

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

    def predict(
        self,
        pairs: Any,
        *,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        activation_fn: Callable[[Array], Any] | None = None,
        apply_softmax: bool = False,
    ) -> Any:
        """Score pairs of texts as sentence-transformers' CrossEncoder does; see qkv.predict.predict."""
        return predict(
            self,
            pairs,
            batch_size=batch_size,
            show_progress_bar=show_progress_bar,
            activation_fn=activation_fn,
            apply_softmax=apply_softmax,
        )

    def rank(
        self,
        query: str,
        documents: Sequence[str],
        top_k: int | None = None,
        return_documents: bool = False,
        **options: Any,
    ) -> list[dict[str, Any]]:
        """Order documents by their scores with a query; options as of `predict`; see qkv.predict.rank."""
        return rank(self, query, documents, top_k, return_documents, **options)


@dataclass(frozen=True)
class Task:
    """What a class adds to its family's body. head: made from its weights (under `head`) and the config. names: rules
    for the head, and for whatever else only this class has."""

    head: Callable[[Weights, Config], Any] | None = None
    names: Sequence[Rule | Tie] = ()
    pooler: bool | None = False  # None: if the file has one


@dataclass(frozen=True)
class TokenClass:
    """A class of a family. rules: (config, task) -> a file's names to ours. build: (config, weights, task) -> the
    model."""

    prefixes: tuple[str, ...]
    rules_of: Callable[[Config, Task], list[Rule | Tie]]
    build_of: Callable[[Config, Weights, Task], Model]
    task: Task = Task()

    def rules(self, config: Config) -> list[Rule | Tie]:
        return self.rules_of(config, self.task)

    def build(self, config: Config, w: Weights) -> Model:
        return self.build_of(config, w, self.task)
