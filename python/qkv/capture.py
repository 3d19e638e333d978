"""Decoding steps of one token a row: the first of a batch runs through Python while its kernel calls are recorded, the
next ones are the same calls, replayed as one over buffers that stay where they are.

What may change between two steps is in these buffers: ids and positions with what is derived of them, the cache's
slots, tables and lengths, the rows of an encoder's result that are looked at, and rotary angles. All else is the same
until a row leaves, a table outgrows its buffer or the cache its memory, or positions the rows that were computed for
them; then a step is recorded anew.

On a GPU the calls are a CUDA graph, and the buffers have twins there, which are written before it is launched. Where
it chooses the tokens too, it leaves them, and what counts on, as the next step wants them: nothing need be written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from . import ops
from .cache import CachedSequence, Step
from .layers import Array, MemoryRows, Run
from .packing import Packed
from .placement import Place, write

Forward = Callable[[Packed, Run], Array]
Chooser = Callable[[Array, Array], None]  # (logits (n, V), out (n,) int64): writes each row's token, by kernels alone


class _Buffer:
    """What a recorded step reads: `here` in host memory, `there` on the device, which may be the same."""

    def __init__(self, place: Place, here: Array):
        self.here, self.there = here, place.put(here)

    def write(self, values: Array) -> None:
        self.here[...] = values
        self.send()

    def send(self) -> None:
        """After a change of `here`."""
        if self.there is not self.here:
            write(self.there, self.here)


class CapturedSteps:
    """A function that runs tokens through a model by kernels alone: it is called like the one it is made of, with the
    same result, to the bit, in a buffer that the next step overwrites. For one thread, and one series of steps.

    choose: on a GPU, what gives each row its next token as part of the step."""

    def __init__(self, forward: Forward, choose: Chooser | None = None):
        self.forward, self.choose = forward, choose
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
            last = _CapturedStep(self.forward, self.choose, packed, run, step)
        last.given = run.memory
        self.last = last
        return last.result

    def again(
        self,
        sequences: Sequence[CachedSequence],
        tokens: Sequence[int] | None,
        memory: MemoryRows | None = None,
        parents: Sequence[int] | None = None,
    ) -> Array | None:
        """The last step once more, with the next token of each row (None: that which it has chosen), where that is no
        more than counting on. A model has little time for Python between two tokens. parents: the row of the last step
        that each goes on from; None: the same one."""
        last = self.last
        if last is None or not last.counts or memory is not last.given:
            return None
        if tokens is not None and len(tokens) != len(sequences):
            return None
        same = sequences == last.step.sequences
        if same and parents is None:
            parents = range(len(sequences))
        self.last = None  # as above
        if not (same and last.count_on()) and (tokens is None or not last.count_on_from(sequences, parents)):
            self.last = last  # nothing has changed
            return None
        if tokens is not None:
            last.numbers.here[0] = tokens
            last.numbers.send()
        last.recording.replay()
        self.last = last
        return last.result


class _CapturedStep:
    given: Any  # the memory, as the caller has it

    def __init__(self, forward: Forward, choose: Chooser | None, packed: Packed, run: Run, step: Step):
        place = step.cache.place
        rows, blocks = step.tables.shape
        self.version = step.cache.version
        tables = np.full((rows, 2 * blocks + 2), -1, np.int32)
        tables[:, :blocks] = step.tables
        self.tables = _Buffer(place, tables)
        # in one array: the ids, and what counts on
        self.numbers = _Buffer(place, np.stack([packed.ids, packed.positions, step.slots, step.lengths]))
        ids, positions, slots, lengths = (self.numbers.there[i] for i in range(4))
        starts = step.cu_seqlens_q.copy()
        self.packed = self._like(packed, *self.numbers.here[:2])
        there = self.packed if place.number is None else self._like(packed, ids, positions)
        self.step = Step(
            step.cache, step.sequences, slots, self.tables.there, lengths, place.put(starts), step.one_each
        )
        self.memory = run.memory.copy() if isinstance(run.memory, MemoryRows) else run.memory
        self.of_memory: tuple[_Buffer, ...] = ()
        if isinstance(self.memory, MemoryRows):
            self.of_memory = _Buffer(place, self.memory.tables), _Buffer(place, self.memory.lengths)
            self.memory.tables, self.memory.lengths = (buffer.there for buffer in self.of_memory)
        self.starts = starts
        here = None if place.number is None else self.packed.positions
        self.run = Run(there.cu_seqlens, there.positions, here, step=self.step, memory=self.memory)
        self.derived: dict[Any, _Buffer] = {}
        if place.number is None:
            self.result, self.recording = ops.record(lambda: forward(there, self.run))
            self.derived = {owner: _Buffer(place, rows) for owner, rows in there.derived.items()}
        else:
            from . import cuda, cuda_ops

            def work() -> Array:
                logits = forward(there, self.run)
                if choose is not None:
                    choose(logits, ids)
                    cuda_ops.advance(self.numbers.there[1:])
                return logits

            with place.current():
                self._prepare(forward, there, place)
                self.result, self.recording = cuda.record(work)
        self.table = there.table
        # whether the next step differs by counting alone
        turned = all(rotary.counts for rotary in self.run.angles)
        self.counts = self.recording.complete and step.one_each and turned and not self.derived

    @staticmethod
    def _like(packed: Packed, ids: Array, positions: Array) -> Packed:
        twin = Packed(ids, packed.cu_seqlens.copy(), positions=positions)
        twin.explicit = packed.explicit
        return twin

    def _prepare(self, forward: Forward, there: Packed, place: Place) -> None:
        """A step that is not recorded, for what a graph cannot do: what comes from host memory once is there then, and
        what comes from it anew has a buffer."""
        there.derive_from = self.packed
        forward(there, self.run)
        self.derived = {owner: _Buffer(place, rows) for owner, rows in there.derived.items()}
        there.derived = {owner: buffer.there for owner, buffer in self.derived.items()}
        turned = {rotary: made for rotary, made in self.run.angles.items() if not rotary.counts}
        self.run.angles = {rotary: (place.put(angles), factor) for rotary, (angles, factor) in turned.items()}

    def reaches(self, positions: Array) -> bool:
        """Whether the table that they were looked up in has rows for them."""
        return self.table is None or bool(positions.max(initial=-1) < len(self.table))

    def count_on(self) -> bool:
        """One more token of each row, if nothing else has to change; else False, and nothing has."""
        numbers = self.numbers.here
        if not self.reaches(numbers[1] + 1) or not self.step.grow():
            return False
        numbers[1:] += 1
        return True

    def count_on_from(self, sequences: Sequence[CachedSequence], parents: Sequence[int] | None) -> bool:
        """The same where blocks are others, as beams' are: `sequences` go on from these rows. What changes must be
        sent by the caller."""
        cache, numbers = self.step.cache, self.numbers.here
        if parents is None or len(parents) != numbers.shape[1] or cache.version != self.version:
            return False
        before = numbers[:, parents]
        positions, room = before[1] + 1, self.tables.here.shape[1] * cache.block_size
        if before[3].max(initial=0) >= room or not self.reaches(positions) or not cache.has_room(sequences):
            return False
        if (cache.lengths(sequences) != before[3]).any():
            return False
        step = cache.extend(sequences)
        numbers[1:] = positions, step.slots, step.lengths
        self._follow(step)
        return True

    def _follow(self, step: Step) -> None:
        self.tables.here[:, : step.tables.shape[1]] = step.tables
        self.tables.send()
        self.step.follow(step)

    def update(self, packed: Packed, run: Run, step: Step) -> bool:
        """Computes a step's result, if it is one of those that were recorded."""
        own, blocks = self.step, step.tables.shape[1]
        if (
            len(packed.ids) != len(self.packed.ids)
            or not self.recording.complete
            or step.cache is not own.cache
            or step.cache.version != self.version
            or (step.cu_seqlens_q != self.starts).any()
            or blocks > self.tables.here.shape[1]
            or not self.reaches(packed.positions)
        ):
            return False
        if isinstance(self.memory, MemoryRows):
            if not isinstance(run.memory, MemoryRows) or run.memory.blocks is not self.memory.blocks:
                return False
            if not np.array_equal(run.memory.borders, self.memory.borders):
                return False
            for buffer, values in zip(self.of_memory, (run.memory.tables, run.memory.lengths), strict=True):
                buffer.write(values)
        elif run.memory is not self.memory:
            return False
        for rotary, (angles, factor) in self.run.angles.items():
            if not rotary.counts:
                values, now = rotary.angles(run)
                write(angles, values)
                if now != factor:
                    return False
        for owner, derived in self.derived.items():
            derived.write(owner.derive(packed))
        self.numbers.write(np.stack([packed.ids, packed.positions, step.slots, step.lengths]))
        self._follow(step)
        self.recording.replay()
        return True
