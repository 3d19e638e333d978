"""The rows that a generation is at: what the model keeps of each, and the scores of their next tokens.

    start(rows)      the prompts; x (n, ...), of which `logits` and `best` are made: what follows the last token of each
    select(parents)  row i goes on from row parents[i] of before: beams are forks, rows that no one names are freed
    step(tokens)     one more token a row; x, which the next step may overwrite
    logits(x)        (n, V), where the model is, in host memory or on a GPU
    best(x, k)       the k largest logits of each row and their tokens, both (n, k), and their parts of log_softmax,
                     both (n, 1): in host memory, where logits are not made for it
    close()          frees all rows

Only what a row keeps is different between models: blocks of a paged cache, beside them an encoder's result, or
Transformer-XL's memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from .. import ops
from ..capture import CapturedSteps, Forward
from ..layers import Array, Memory, Run
from ..packing import Packed
from ..placement import concatenate, host, take

Rows = Sequence[Sequence[int]]


@dataclass
class Seen:
    """What a caller wants to see of the inside; lists of the last call, as `layers.Run` collects them."""

    hidden_states: list[Array] | None = None
    attentions: list[list[Array]] | None = None
    cross_attentions: list[list[Array]] | None = None

    def again(self) -> dict[str, Any]:
        """Empty lists for another call."""
        for name, value in vars(self).items():
            if value is not None:
                setattr(self, name, [])
        return {name: value for name, value in vars(self).items() if value is not None}


class Decoding(Protocol):
    seen: Seen
    lengths: list[int]  # how many tokens each row had in the last call

    @property
    def vocabulary(self) -> int: ...

    def start(self, rows: Rows) -> Array: ...

    def select(self, parents: Sequence[int] | Array) -> None: ...

    def step(self, tokens: Sequence[int]) -> Array: ...

    def logits(self, x: Array) -> Array: ...

    def best(self, x: Array, k: int) -> ops.TopK: ...

    def close(self) -> None: ...


def common_prefix(rows: Rows) -> int:
    """How many tokens all rows begin with, leaving each at least one of its own."""
    longest = min(len(row) for row in rows) - 1
    return next((i for i in range(longest) if any(row[i] != rows[0][i] for row in rows)), max(longest, 0))


def _following(stack: Forward, head: Callable[[Array], Array] | None) -> Forward:
    """Of each row's last token the logits (n, V) of what follows, or without a head what those are made of, (n, C)."""

    def forward(packed: Packed, run: Run) -> Array:
        x = stack(packed, run)
        last = x if len(x) == len(packed.cu_seqlens) - 1 else take(x, packed.cu_seqlens[1:] - 1)
        return last if head is None else head(last)

    return forward


def _best_of(logits: Array, k: int) -> ops.TopK:
    """No more than this comes from a GPU."""
    values, tokens, (top, total) = ops.top_k_with_parts(logits, k)
    return host(values), host(tokens), (host(top), host(total))


class CachedRows:
    """Rows in a paged cache, of a model with `new_cache` and `extend`.

    memory: what a decoder of two stacks looks at, a row of it for each prompt; its keys are made once, whatever becomes
    of the rows. tokens: how many the cache has room for at first; what is recorded is of no use once it grows."""

    def __init__(self, model: Any, memory: Memory | None = None, seen: Seen | None = None, tokens: int = 256):
        self.model = model
        self.vocabulary = model.head.vocabulary
        self.memory = memory
        self.seen = Seen() if seen is None else seen
        self.cache = model.new_cache(initial_tokens=tokens)
        # On a GPU logits are part of a step, which a graph repeats, and tokens may be chosen of them in the same graph.
        self.apart = self.cache.place.number is None
        stack = model.forward if memory is None else model.decoder
        self.forward = _following(stack, None if self.apart else model.head.logits)
        self.captured: CapturedSteps | None = CapturedSteps(self.forward)
        self.sequences: list[Any] = []
        self.parents: list[int] | None = None  # of each, among those of the last step; None: itself
        self.of_memory: Array = None
        self._look_at(np.zeros(0, np.int64))
        # Phi-3 is not to go on from keys that were turned for short texts; what a row holds is then needed once more
        self.turns_anew_beyond: int | None = getattr(model, "turns_anew_beyond", None)
        self.tokens: list[list[int]] = []
        self.lengths: list[int] = []

    def start(self, rows: Rows) -> Array:
        if self.turns_anew_beyond is not None:
            self.tokens = [list(row) for row in rows]
        self._look_at(np.arange(len(rows)))
        shared = self._shared(rows)
        if shared:
            first = self.cache.sequence()
            self.sequences = [first]
            self.model.extend(self.cache, [first], [rows[0][:shared]])
            self.sequences += [self.cache.fork(first) for _ in rows[1:]]
            return self._extend([row[shared:] for row in rows])
        self.sequences = [self.cache.sequence() for _ in rows]
        return self._extend(rows)

    def _look_at(self, rows: Array) -> None:
        """rows: of the memory, for each of ours"""
        if self.of_memory is not None and np.array_equal(rows, self.of_memory):
            return
        self.of_memory = rows
        self.looked_at = () if self.memory is None else (self.memory.rows(rows),)

    def _shared(self, rows: Rows) -> int:
        """Tokens of a beginning that all rows have in common, to be computed once: whole blocks, as fewer are not worth
        a pass of their own. Not where they look at texts: then nothing is the same but the ids."""
        whole = self.seen.attentions is not None or self.seen.hidden_states is not None
        exact: int | None = getattr(self.model, "exact_up_to", None)
        if len(rows) < 2 or whole or self.memory is not None or (exact is not None and max(map(len, rows)) > exact):
            return 0
        size: int = self.cache.block_size
        return common_prefix(rows) // size * size

    def select(self, parents: Sequence[int] | Array) -> None:
        chosen: list[int] = np.asarray(parents, np.int64).tolist()
        self.sequences = self.cache.reorder(self.sequences, chosen)
        self.parents = chosen if self.parents is None else [self.parents[row] for row in chosen]
        self._look_at(self.of_memory[chosen])
        if self.turns_anew_beyond is not None:
            self.tokens = [list(self.tokens[parent]) for parent in chosen]

    def step(self, tokens: Sequence[int]) -> Array:
        parents, self.parents = self.parents, None
        if self.captured is not None and self.turns_anew_beyond is None:
            memory = self.looked_at[0] if self.looked_at else None
            x = self.captured.again(self.sequences, tokens, memory, parents)
            if x is not None:
                return x
        rows = [[token] for token in tokens]
        if self.turns_anew_beyond is not None:
            for i, (sequence, row) in enumerate(zip(self.sequences, rows, strict=True)):
                self.tokens[i] += row
                if len(sequence) == self.turns_anew_beyond:
                    self.cache.free(sequence)
                    self.sequences[i] = self.cache.sequence()
                    rows[i] = self.tokens[i]
        return self._extend(rows)

    def goes_on(self) -> bool:
        """One more step, by the tokens that a GPU has chosen, if that is no more than counting on; whether it was."""
        if self.captured is None or self.turns_anew_beyond is not None:
            return False
        return self.captured.again(self.sequences, None, *self.looked_at) is not None

    def logits(self, x: Array) -> Array:
        logits: Array = self.model.head.logits(x) if self.apart else x
        return logits

    def best(self, x: Array, k: int) -> ops.TopK:
        best: ops.TopK = self.model.head.best(x, k) if self.apart else _best_of(x, k)
        return best

    def close(self) -> None:
        for sequence in self.sequences:
            self.cache.free(sequence)
        self.sequences = []

    def _extend(self, rows: Rows) -> Array:
        self.lengths = [len(row) for row in rows]
        forward = self.forward
        if self.captured is not None:
            if set(self.lengths) == {1}:
                forward = self.captured
            else:
                self.captured.last = None  # what was recorded is not the last step any more
        x: Array = self.model.extend(
            self.cache, self.sequences, rows, *self.looked_at, **self.seen.again(), forward=forward
        )
        return x


@dataclass
class RecurrentRows:
    """Rows of Transformer-XL: what each layer remembers of them, (n, M, C)."""

    model: Any
    memories: list[Array] = field(default_factory=list)
    seen: Seen = field(default_factory=Seen)  # nothing
    lengths: list[int] = field(default_factory=list)

    @property
    def vocabulary(self) -> int:
        vocabulary: int = self.model.head.vocabulary
        return vocabulary

    def start(self, rows: Rows) -> Array:
        """Prompts of one length go together; there is no padding that others could be filled up with."""
        lengths = np.array([len(row) for row in rows])
        parts, order = [], []
        for length in np.unique(lengths).tolist():
            here = np.flatnonzero(lengths == length)
            parts.append(self.model.advance(np.array([rows[i] for i in here.tolist()], np.int64)))
            order.append(here)
        back = np.argsort(np.concatenate(order))
        x = take(concatenate([last for last, _ in parts]), back)
        self.memories = [take(concatenate(layer), back) for layer in zip(*(kept for _, kept in parts), strict=True)]
        return x

    def select(self, parents: Sequence[int] | Array) -> None:
        self.memories = [take(memory, np.asarray(parents, np.int64)) for memory in self.memories]

    def step(self, tokens: Sequence[int]) -> Array:
        ids = np.array([[token] for token in tokens], np.int64)
        x, self.memories = self.model.advance(ids, self.memories)
        return x

    def logits(self, x: Array) -> Array:
        logits: Array = self.model.head.logits(x)
        return logits

    def best(self, x: Array, k: int) -> ops.TopK:
        return ops.top_k_with_parts(self.logits(x), k)

    def close(self) -> None:
        self.memories = []
