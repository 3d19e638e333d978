"""Decoding steps of one token a row: the first of a batch runs through Python while its kernel calls are recorded, the
next ones are the same calls, replayed as one over buffers that stay where they are.

What may change between two steps is in these buffers: the rows that go in, the cache's slots, tables and lengths, the
rows of an encoder's result that are looked at, and rotary angles. All else is the same until a row leaves, a table
outgrows its buffer or the cache its memory; then a step is recorded anew.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .cache import CachedSequence, Step
from .layers import Array, MemoryRows, Run, Stack
from .ops import record

if TYPE_CHECKING:
    from .packing import Packed


class CapturedStack:
    """A stack that is called like the one it is made of, with the same result, to the bit. Its rows lie in a buffer
    that the next step overwrites. For one thread, and one series of steps."""

    def __init__(self, stack: Stack):
        self.stack = stack
        self.last: _CapturedStep | None = None

    def __call__(self, x: Array, run: Run, packed: Packed, sequences: Sequence[CachedSequence]) -> Array:
        last, self.last = self.last, None  # until the step is done: one that failed is not gone on from
        step, shown = run.step, (run.hidden_states, run.attentions, run.cross_attentions)
        # the first step makes the keys of the memory, which no other has to make again
        ready = not isinstance(run.memory, MemoryRows) or bool(run.memory.blocks.layers)
        if step is None or len(x) != len(step.lengths) or shown != (None, None, None) or not ready:
            return self.stack(x, run)
        if last is None or not last.update(x, run, step):
            last = None  # its buffers may serve the next
            last = _CapturedStep(self.stack, x, run, step)
        last.packed, last.given, last.sequences = packed, run.memory, list(sequences)
        self.last = last
        return last.result

    def again(
        self,
        embed: Callable[[Packed], Array],
        sequences: Sequence[CachedSequence],
        rows: Sequence[Sequence[int]],
        memory: Any = None,
    ) -> Array | None:
        """The last step once more, with the next token of each row, where that is no more than counting on. A model
        has little time for Python between two tokens."""
        last = self.last
        if last is None or sequences != last.sequences or memory is not last.given or not last.counts:
            return None
        if last.step.cache.version != last.version or [len(row) for row in rows] != [1] * len(sequences):
            return None
        if not last.step.advance(sequences):
            return None
        self.last = None  # as above
        last.packed.ids[...] = [row[0] for row in rows]
        last.packed.positions += 1
        last.run.positions = last.packed.positions
        for rotary, (angles, _) in last.run.angles.items():
            angles[...] = rotary.angles(last.run)[0]
        last.x[...] = embed(last.packed)
        last.recording.replay()
        self.last = last
        return last.result


class _CapturedStep:
    packed: Packed
    given: Any  # the memory, as the caller has it
    sequences: list[CachedSequence]

    def __init__(self, stack: Stack, x: Array, run: Run, step: Step):
        rows, blocks = step.tables.shape
        self.x = x.copy()
        self.tables = np.full((rows, 2 * blocks + 2), -1, np.int32)
        self.tables[:, :blocks] = step.tables
        self.step = Step(step.cache, step.slots.copy(), self.tables, step.lengths.copy(), step.cu_seqlens_q.copy())
        self.version = step.cache.version
        self.memory = run.memory.copy() if isinstance(run.memory, MemoryRows) else run.memory
        self.run = Run(run.cu_seqlens, run.positions, step=self.step, memory=self.memory)
        self.result, self.recording = record(lambda: stack(self.x, self.run))
        one_each = len(step.cu_seqlens_q) == len(x) + 1 and bool((np.diff(step.cu_seqlens_q) == 1).all())
        # whether the next step differs by counting alone
        self.counts = self.recording.complete and one_each and all(rotary.fixed for rotary in self.run.angles)

    def update(self, x: Array, run: Run, step: Step) -> bool:
        """Computes a step's result, if it is one of those that were recorded."""
        own, blocks = self.step, step.tables.shape[1]
        if (
            x.shape != self.x.shape
            or not self.recording.complete
            or step.cache is not own.cache
            or step.cache.version != self.version
            or (step.cu_seqlens_q != own.cu_seqlens_q).any()
            or blocks > self.tables.shape[1]
        ):
            return False
        if isinstance(self.memory, MemoryRows):
            if not isinstance(run.memory, MemoryRows) or run.memory.blocks is not self.memory.blocks:
                return False
            self.memory.tables[...] = run.memory.tables
            self.memory.lengths[...] = run.memory.lengths
        elif run.memory is not self.memory:
            return False
        for rotary, (angles, factor) in self.run.angles.items():
            angles[...], now = rotary.angles(run)
            if now != factor:
                return False
        self.x[...] = x
        self.tables[:, :blocks] = step.tables
        own.slots[...] = step.slots
        own.lengths[...] = step.lengths
        own.truncations = step.truncations
        self.recording.replay()
        return True
