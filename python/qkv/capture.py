"""Decoding steps of one token a row: the first of a batch runs through Python while its kernel calls are recorded, the
next ones are the same calls, replayed as one over buffers that stay where they are.

What may change between two steps is in these buffers: ids and positions with what is derived of them, the cache's
slots, tables and lengths, the rows of an encoder's result that are looked at, and rotary angles. All else is the same
until a row leaves, a table outgrows its buffer or the cache its memory; then a step is recorded anew.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .cache import CachedSequence, Step
from .layers import Array, MemoryRows, Run
from .ops import record
from .packing import Packed

Forward = Callable[[Packed, Run], Array]


class CapturedSteps:
    """A function that runs tokens through a model by kernels alone: it is called like the one it is made of, with the
    same result, to the bit, in a buffer that the next step overwrites. For one thread, and one series of steps."""

    def __init__(self, forward: Forward):
        self.forward = forward
        self.last: _CapturedStep | None = None

    def __call__(self, packed: Packed, run: Run) -> Array:
        last, self.last = self.last, None  # until the step is done: one that failed is not gone on from
        step, shown = run.step, (run.hidden_states, run.attentions, run.cross_attentions)
        # the first step makes the keys of the memory, which no other has to make again
        ready = not isinstance(run.memory, MemoryRows) or bool(run.memory.blocks.layers)
        if step is None or len(packed.ids) != len(step.lengths) or shown != (None, None, None) or not ready:
            return self.forward(packed, run)
        if last is None or not last.update(packed, run, step):
            last = None  # its buffers may serve the next
            last = _CapturedStep(self.forward, packed, run, step)
        last.given = run.memory
        self.last = last
        return last.result

    def again(
        self, sequences: Sequence[CachedSequence], tokens: Sequence[int], memory: MemoryRows | None = None
    ) -> Array | None:
        """The last step once more, with the next token of each row, where that is no more than counting on. A model
        has little time for Python between two tokens."""
        last = self.last
        if last is None or not last.counts or memory is not last.given or sequences != last.step.sequences:
            return None
        if len(tokens) != len(sequences):
            return None
        last.packed.ids[...] = tokens
        if not last.step.grow():
            return None
        self.last = None  # as above
        last.counters += 1
        last.derive(last.packed)
        last.recording.replay()
        self.last = last
        return last.result


class _CapturedStep:
    given: Any  # the memory, as the caller has it

    def __init__(self, forward: Forward, packed: Packed, run: Run, step: Step):
        rows, blocks = step.tables.shape
        self.tables = np.full((rows, 2 * blocks + 2), -1, np.int32)
        self.tables[:, :blocks] = step.tables
        starts = step.cu_seqlens_q.copy()
        self.version = step.cache.version
        # what counts on, in one array
        self.counters = np.stack([packed.positions, step.slots, step.lengths])
        positions, slots, lengths = self.counters
        self.packed = Packed(packed.ids.copy(), packed.cu_seqlens.copy(), positions=positions)
        self.packed.explicit = packed.explicit
        self.step = Step(step.cache, step.sequences, slots, self.tables, lengths, starts)
        self.memory = run.memory.copy() if isinstance(run.memory, MemoryRows) else run.memory
        self.run = Run(self.packed.cu_seqlens, self.packed.positions, step=self.step, memory=self.memory)
        self.result, self.recording = record(lambda: forward(self.packed, self.run))
        one_each = len(starts) == len(packed.ids) + 1 and bool((np.diff(starts) == 1).all())
        # whether the next step differs by counting alone
        turned, derived = (all(owner.counts for owner in owners) for owners in (self.run.angles, self.packed.derived))
        self.counts = self.recording.complete and one_each and turned and derived

    def derive(self, packed: Packed) -> None:
        """What the recorded calls read beside ids and positions, in place."""
        for owner, rows in self.packed.derived.items():
            rows[...] = owner.derive(packed)

    def update(self, packed: Packed, run: Run, step: Step) -> bool:
        """Computes a step's result, if it is one of those that were recorded."""
        own, blocks = self.step, step.tables.shape[1]
        if (
            len(packed.ids) != len(self.packed.ids)
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
            if not np.array_equal(run.memory.borders, self.memory.borders):
                return False
            self.memory.tables[...] = run.memory.tables
            self.memory.lengths[...] = run.memory.lengths
        elif run.memory is not self.memory:
            return False
        for rotary, (angles, factor) in self.run.angles.items():
            if not rotary.counts:
                angles[...], now = rotary.angles(run)
                if now != factor:
                    return False
        self.derive(packed)
        self.packed.ids[...] = packed.ids
        self.packed.positions[...] = packed.positions
        self.tables[:, :blocks] = step.tables
        own.slots[...] = step.slots
        own.lengths[...] = step.lengths
        own.sequences, own.changes, own.room = step.sequences, step.changes, step.room
        self.recording.replay()
        return True
