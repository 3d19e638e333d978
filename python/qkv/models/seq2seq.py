"""Models of two stacks: an encoder reads one text, a decoder writes another while it looks at the encoder's result."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..cache import CachedSequence, PagedCache
from ..capture import Forward
from ..generate import generate, stream
from ..layers import Array, Memory, MemoryRows, Run, Stack
from ..outputs import ModelOutput
from ..packing import Packed
from ..score import score
from .base import Model
from .tokens import Embeddings

Shift = Callable[[Array], Array]  # of ids (B, S), pad at padding


@dataclass
class Side:
    """One of the two stacks, with what goes into it. heads: of attention."""

    embeddings: Embeddings
    stack: Stack
    heads: int

    def __call__(self, packed: Packed, run: Run) -> Array:
        """The last hidden states of packed tokens, (total, C)."""
        return self.stack(self.embeddings(packed), run)


def shift_right(start: int) -> Shift:
    """Decoder ids from the encoder's (BART): the start token, then all but the last."""

    def shift(ids: Array) -> Array:
        return np.concatenate([np.full((len(ids), 1), start), ids[:, :-1]], axis=1)[:, : ids.shape[1]]

    return shift


def rotate_right(pad: int) -> Shift:
    """Decoder ids from the encoder's (mBART): each row's last token that is not pad, its language, then all but the
    last."""

    def shift(ids: Array) -> Array:
        if not ids.size:
            return ids
        last = (ids != pad).sum(axis=1) - 1
        first = np.take_along_axis(ids, last[:, None], axis=1)
        return np.concatenate([first, ids[:, :-1]], axis=1)

    return shift


class LastEos:
    """Of each row the decoder's state where its encoder ids have their last eos, for classification."""

    def __init__(self, eos: int):
        self.eos = eos

    def __call__(self, x: Array, ids: Array) -> Array:
        """x (B, S, C), ids (B, S) -> (B, C). ValueError: the rows have different numbers of eos, or none."""
        found = ids == self.eos
        counts = found.sum(axis=1)
        if counts.size and (counts.min() != counts.max() or counts.min() == 0):
            raise ValueError(
                f"input_ids: every row must have the same number of eos tokens ({self.eos}), at least one; "
                f"got {counts.tolist()}"
            )
        last = ids.shape[1] - 1 - found[:, ::-1].argmax(axis=1) if ids.size else np.zeros(len(ids), np.int64)
        rows: Array = x[np.arange(len(ids)), last]
        return rows


class EncoderDecoder(Model):
    """encoder -> decoder -> head; without a head the decoder's hidden states are the result.

    shift: makes decoder ids of the encoder's where a caller gives none; None: they must be given. pooler: of decoder
    states and encoder ids, for a head that labels rows. cache: (key-value heads, head width) of the decoder; None: its
    tokens see what follows, or are no ids.
    """

    inputs = ("input_ids", "attention_mask", "token_type_ids", "decoder_input_ids", "decoder_attention_mask")
    token_types = False

    def __init__(
        self,
        encoder: Side,
        decoder: Side,
        *,
        cache: tuple[int, int] | None,
        pad: int = 0,
        shift: Shift | None = None,
        pooler: LastEos | None = None,
        head: Any = None,
    ):
        self.encoder = encoder
        self.decoder = decoder
        self.cache = cache
        self.pad = pad
        self.shift = shift
        self.pooler = pooler
        self.head = head
        self.max_tokens = encoder.embeddings.limit

    def run(self, given: Mapping[str, Any], *, attentions: bool, hidden_states: bool) -> ModelOutput:
        source = self.encoder.embeddings.pack(
            given["input_ids"], given["attention_mask"], given["token_type_ids"], None
        )
        decoder_input_ids, decoder_mask = given["decoder_input_ids"], given["decoder_attention_mask"]
        if decoder_input_ids is None:
            if self.shift is None:
                raise ValueError(f"decoder_input_ids: a {self.architecture} needs them; there is no default")
            assert source.shape is not None
            decoder_input_ids = self.shift(source.padded_ids(self.pad))
        target = self.decoder.embeddings.pack(decoder_input_ids, decoder_mask, None, None, "decoder_")
        if len(target.cu_seqlens) != len(source.cu_seqlens):
            raise ValueError(
                f"decoder_input_ids: {len(target.cu_seqlens) - 1} rows for {len(source.cu_seqlens) - 1} of input_ids"
            )

        def run(packed: Packed, memory: Memory | None = None) -> Run:
            return Run(
                packed.cu_seqlens,
                packed.positions,
                hidden_states=[] if hidden_states else None,
                attentions=[] if attentions else None,
                cross_attentions=[] if attentions and memory is not None else None,
                memory=memory,
            )

        encoding = run(source)
        states = self.encoder(source, encoding)
        decoding = run(target, Memory(states, source.cu_seqlens))
        x = self.decoder(target, decoding)
        if self.head is None:
            fields = {"last_hidden_state": target.pad(x)}
        else:
            pooled = None if self.pooler is None else self._pooled(target.pad(x), source)
            fields = self.head(x, pooled, target)
        return ModelOutput(
            **fields,
            decoder_hidden_states=target.pad_all(decoding.hidden_states),
            decoder_attentions=target.pad_all_pairs(decoding.attentions, self.decoder.heads),
            cross_attentions=target.pad_all_pairs(decoding.cross_attentions, self.decoder.heads, source),
            encoder_last_hidden_state=source.pad(states),
            encoder_hidden_states=source.pad_all(encoding.hidden_states),
            encoder_attentions=source.pad_all_pairs(encoding.attentions, self.encoder.heads),
        )

    def _pooled(self, x: Array, source: Packed) -> Array:
        assert self.pooler is not None and source.shape is not None
        ids = source.padded_ids(-1)
        if x.shape[:2] != ids.shape:
            raise ValueError(f"decoder_input_ids: expected shape {ids.shape} as input_ids; got {x.shape[:2]}")
        return self.pooler(x, ids)

    def memory(
        self,
        packed: Packed,
        *,
        hidden_states: list[Array] | None = None,
        attentions: list[list[Array]] | None = None,
    ) -> Memory:
        """What the decoder looks at: the encoder's result for packed tokens. hidden_states, attentions: lists that
        collect what `Run` says."""
        run = Run(packed.cu_seqlens, packed.positions, hidden_states=hidden_states, attentions=attentions)
        return Memory(self.encoder(packed, run), packed.cu_seqlens)

    def new_cache(self, **options: Any) -> PagedCache:
        """A cache for the decoder's keys and values; options as PagedCache has them, dtype from what attention computes
        in. ValueError: it has no use for one."""
        if self.cache is None:
            raise ValueError(f"the decoder of this {self.architecture} does not go on from token ids to the next")
        stack = self.decoder.stack
        own = {"dtype": stack.cache_dtype, "place": self.place}
        return PagedCache(len(stack.blocks), *self.cache, **{**own, **options})

    def extend(
        self,
        cache: PagedCache,
        sequences: Sequence[CachedSequence],
        rows: Sequence[Sequence[int]],
        memory: Memory | MemoryRows,
        *,
        hidden_states: list[Array] | None = None,
        attentions: list[list[Array]] | None = None,
        cross_attentions: list[list[Array]] | None = None,
        forward: Forward | None = None,
    ) -> Array:
        """The decoder's last hidden states (total, C) of new tokens, packed, which are added to the sequences of a
        cache, as many and in the same order as the memory's rows. rows: the ids that each gets, checked by the
        caller. hidden_states, attentions, cross_attentions: lists that collect what `Run` says. forward: what to run
        the tokens through instead of the decoder."""
        counts = [len(row) for row in rows]
        step = cache.extend(sequences, counts)
        packed = Packed.from_lists(rows, step.lengths - counts)
        run = Run(
            packed.cu_seqlens,
            packed.positions,
            hidden_states=hidden_states,
            attentions=attentions,
            cross_attentions=cross_attentions,
            step=step,
            memory=memory,
        )
        return (forward or self.decoder)(packed, run)

    def generate(self, input_ids: Any = None, attention_mask: Any = None, **arguments: Any) -> Any:
        """Token ids that the decoder makes of texts, int64 (rows, L); see qkv.generate.generate."""
        return generate(self, input_ids, attention_mask, **arguments)

    def score(
        self,
        texts: Any,
        attention_mask: Any = None,
        *,
        targets: Any = None,
        decoder_input_ids: Any = None,
        decoder_attention_mask: Any = None,
    ) -> ModelOutput:
        """The log-probability of each token of the decoder behind those before it, and of each row; see
        qkv.score.score."""
        return score(
            self,
            texts,
            attention_mask,
            targets=targets,
            decoder_input_ids=decoder_input_ids,
            decoder_attention_mask=decoder_attention_mask,
        )

    def stream(self, input_ids: Any = None, attention_mask: Any = None, **arguments: Any) -> Iterator[Array]:
        """The decoder's tokens of each step as they come, int64 (rows,); see qkv.generate.stream."""
        return stream(self, input_ids, attention_mask, **arguments)
