"""The paged cache of keys and values that generation works on (Kwon et al. 2023, arXiv:2309.06180).

Tokens live in blocks of `block_size`; a sequence is a list of block numbers and a length. All layers use the same
numbers. A block may belong to many sequences and counts them: a fork copies no token, and the first append to a shared,
partly filled block moves the writer to a copy of its own. Blocks are taken from a pool that doubles until its maximum.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Sequence_
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt

from . import placement
from .ops import BlockList, BlockPool, attention_paged, copy_blocks, paged_write
from .placement import HOST, Copies, Place

Array = Any  # NumPy's, or on a GPU qkv.cuda's
Ints = npt.NDArray[np.int64]


def _numbers(value: int | Sequence_[int], count: int) -> list[int]:
    """One number for all of a batch, or one each."""
    if type(value) is list:
        return value
    each: list[int] = np.asarray(value, np.int64).reshape(-1).tolist()
    return each * count if np.ndim(value) == 0 else each


# Bytes of a cache up to which its first memory comes from the pool of buffers, as the next cache is likely to be as
# large. What it grows to goes back to the system: in the pool it would stay, and serve nobody.
RECURRING = 64 << 20
MOST_BLOCKS = 2**31 - 1  # their numbers are int32


class CacheFull(RuntimeError):
    """No block is left below the cache's maximum. Nothing was changed: free or truncate sequences and call again."""


class CachedSequence:
    """Tokens in a `PagedCache`; made by its methods. `len()` counts them, `frozen` ones take no more. `unplaced`: the
    numbers of those that take no position, for models that leave some out when they count (RoBERTa)."""

    __slots__ = ("_cache", "_list", "frozen", "unplaced")

    def __init__(
        self, cache: PagedCache, blocks: BlockList, frozen: bool = False, unplaced: tuple[int, ...] = ()
    ) -> None:
        self._cache: PagedCache | None = cache  # None: freed
        self._list, self.frozen, self.unplaced = blocks, frozen, unplaced

    def __len__(self) -> int:
        return self._list.length

    @property
    def blocks(self) -> npt.NDArray[np.int32]:
        """Its block numbers in order, a copy."""
        return self._list.blocks


class Step:
    """What one step of a batch needs in every layer, worked out once: see `PagedCache.extend`.

    slots (total,), tables (B, N), lengths (B,) with the new tokens, cu_seqlens_q (B + 1,); in host memory, or on the
    cache's GPU in a step that is recorded. one_each: every sequence has one new token.
    """

    def __init__(
        self,
        cache: PagedCache,
        sequences: list[CachedSequence],
        slots: Ints,
        tables: Array,
        lengths: Ints,
        cu_seqlens_q: Ints,
        one_each: bool,
    ) -> None:
        self.cache, self.sequences = cache, sequences
        self.slots, self.tables, self.lengths, self.cu_seqlens_q = slots, tables, lengths, cu_seqlens_q
        self.one_each = one_each
        self.changes = cache.changes
        self.copies = Copies()
        self._lists = [s._list for s in sequences]

    def follow(self, other: Step) -> None:
        """From now on it is about the other's sequences."""
        self.sequences, self._lists, self.changes = other.sequences, other._lists, other.changes

    def grow(self) -> bool:
        """One more token for each of its sequences, as long as there is room in their last blocks and nothing else has
        happened to the cache; slots and lengths are the caller's to raise by one. Else nothing is changed, and
        False."""
        return self.cache.changes == self.changes and bool(self._lists) and self.cache._pool.count_on(self._lists)

    def write(self, layer: int, k: Any, v: Any) -> None:
        """Stores the new tokens' k (total, Hkv, D) and v (total, Hkv, Dv) of a layer."""
        c = self.cache
        paged_write(k, v, c.k[layer], c.v[layer], self.copies.near(k, self.slots), **c.scales(layer))

    def attend(self, layer: int, q: Any, **options: Any) -> Any:
        """`attention_paged` of q (total, H, D), one row for each new token, with its options."""
        c = self.cache
        return attention_paged(
            q,
            c.k[layer],
            c.v[layer],
            self.copies.near(q, self.tables),
            self.copies.near(q, self.lengths),
            cu_seqlens_q=None if self.one_each else self.copies.near(q, self.cu_seqlens_q),
            **c.scales(layer),
            **options,
        )


class PagedCache:
    """Keys and values of all layers: `k[layer]` (blocks, block_size, Hkv, D), `v[layer]` (blocks, block_size, Hkv, Dv).

    dtype: "float32", "float16", "bfloat16" or "int8" (with `k_scale`, `v_scale` as `paged_write` has them). max_tokens
    bounds the pool, rounded up to blocks; None: only memory does. place: the device that holds them, where k and v come
    from. Small blocks waste less and fork cheaper. Attention walks over 256 keys at a time, read in place where their
    blocks follow one another in memory. When the pool grows, the arrays are new ones and `version` rises, so take them
    from the cache in every step.

        a = cache.sequence()
        step = cache.extend([a], [5])                   # five tokens of a prompt
        for layer in range(layers):
            step.write(layer, k, v)
            out = step.attend(layer, q, causal=True)
        b = cache.fork(a)                               # shares all blocks
    """

    def __init__(
        self,
        layers: int,
        kv_heads: int,
        head_dim: int,
        *,
        value_dim: int | None = None,
        dtype: str = "float32",
        block_size: int = 16,
        initial_tokens: int = 256,
        max_tokens: int | None = None,
        place: Place = HOST,
    ) -> None:
        for name, value in (("layers", layers), ("kv_heads", kv_heads), ("head_dim", head_dim)):
            if value < 0:
                raise ValueError(f"PagedCache: {name} must not be negative, got {value}")
        if block_size < 16 or block_size % 16:
            raise ValueError(f"PagedCache: block_size must be a multiple of 16, got {block_size}")
        if dtype not in ("float32", "float16", "bfloat16", "int8"):
            raise ValueError(f"PagedCache: dtype must be float32, float16, bfloat16 or int8, got {dtype!r}")
        if max_tokens is not None and max_tokens < 0:
            raise ValueError(f"PagedCache: max_tokens must not be negative, got {max_tokens}")
        self.block_size, self.dtype, self.version, self.place = block_size, dtype, 0, place
        self.changes = 0  # calls so far that changed a sequence; not counted: steps that grew
        self.max_blocks = None if max_tokens is None else -(-max_tokens // block_size)
        blocks = -(-max(initial_tokens, 0) // block_size)
        if self.max_blocks is not None:
            blocks = min(blocks, self.max_blocks)

        stored: Any = dtype
        if dtype == "bfloat16":
            from ml_dtypes import bfloat16 as stored
        widths = (head_dim, head_dim if value_dim is None else value_dim)

        scales = 2 * 4 if dtype == "int8" else 0
        self._block_bytes = layers * block_size * kv_heads * (sum(widths) * np.dtype(stored).itemsize + scales)

        def arrays(kind: Any, *tail: int) -> list[Array]:
            shape = (blocks, block_size, kv_heads, *tail)
            if place.number is None and blocks * self._block_bytes <= RECURRING:
                return [place.empty(shape, kind) for _ in range(layers)]
            return [self._room(shape, kind) for _ in range(layers)]

        self.k, self.v = (arrays(stored, width) for width in widths)
        self.k_scale, self.v_scale = (arrays(np.float32) if dtype == "int8" else [] for _ in widths)
        self._pool = BlockPool(block_size, blocks)

    # ---- what there is ----------------------------------------------------------------------------

    @property
    def blocks(self) -> int:
        """Blocks in the pool, used or not."""
        return self._pool.blocks

    @property
    def blocks_free(self) -> int:
        """Blocks in the pool that no sequence has."""
        return self._pool.free

    @property
    def blocks_used(self) -> int:
        return self.blocks - self.blocks_free

    @property
    def blocks_available(self) -> int | None:
        """Blocks that can be had before `CacheFull`; None without a maximum."""
        return None if self.max_blocks is None else self.max_blocks - self.blocks_used

    @property
    def nbytes(self) -> int:
        """Memory of the pool, used or not."""
        return sum(x.nbytes for group in self._groups() for x in group)

    @property
    def nbytes_used(self) -> int:
        return self.nbytes // self.blocks * self.blocks_used if self.blocks else 0

    def scales(self, layer: int) -> dict[str, Any]:
        """k_scale and v_scale of a layer for `paged_write` and `attention_paged`; nothing unless int8."""
        return {"k_scale": self.k_scale[layer], "v_scale": self.v_scale[layer]} if self.k_scale else {}

    def references(self, block: int) -> int:
        """How many sequences a block belongs to. IndexError: there is no such block."""
        if not 0 <= block < self.blocks:
            raise IndexError(f"PagedCache: there is no block {block}, of {self.blocks}")
        return self._pool.references(block)

    def tables(self, sequences: Iterable[CachedSequence]) -> npt.NDArray[np.int32]:
        """(B, N): their blocks, -1 beyond the last."""
        return self._pool.tables([self._own(s)._list for s in sequences])

    def lengths(self, sequences: Iterable[CachedSequence]) -> Ints:
        """(B,): their numbers of tokens."""
        return self._pool.lengths([self._own(s)._list for s in sequences])

    # ---- sequences --------------------------------------------------------------------------------

    def sequence(self) -> CachedSequence:
        """A new one without tokens. It keeps its blocks until `free`."""
        return CachedSequence(self, BlockList())

    def append(self, sequence: CachedSequence, count: int = 1) -> Ints:
        """Makes room for `count` more tokens; their slots (count,) for `paged_write`."""
        return self._append([sequence], [count])

    def extend(self, sequences: Sequence_[CachedSequence], counts: int | Sequence_[int] = 1) -> Step:
        """`append` to every sequence of a batch, different ones, all or (CacheFull) none.

        counts: of new tokens, one number for all or one each; each of them is a query of the step.
        """
        each = _numbers(counts, len(sequences))
        if len(each) != len(sequences):
            raise ValueError(f"PagedCache: {len(each)} counts for {len(sequences)} sequences")
        slots = self._append(sequences, each)
        return self._step(sequences, slots, each)

    def view(self, sequences: Sequence_[CachedSequence], queries: int | Sequence_[int] = 1) -> Step:
        """A `Step` that adds no tokens and has `queries` of each sequence attend to what is there: cross-attention."""
        each = _numbers(queries, len(sequences))
        if len(each) != len(sequences) or min(each, default=0) < 0:
            raise ValueError(f"PagedCache: queries must be {len(sequences)} numbers, not negative, got {each}")
        return self._step(sequences, np.full(sum(each), -1, np.int64), each)

    def has_room(self, sequences: Sequence_[CachedSequence]) -> bool:
        """Whether the memory that it has is enough for one more token of each."""
        lists = [self._own(s)._list for s in sequences]
        return self._pool.needed(lists, [1] * len(lists)) <= self._pool.free

    def fork(self, sequence: CachedSequence, length: int | None = None) -> CachedSequence:
        """A second owner of the first `length` tokens (None: all of them); nothing is copied."""
        self._own(sequence)
        length = len(sequence) if length is None else length
        if not 0 <= length <= len(sequence):
            raise ValueError(f"PagedCache: cannot fork at {length} of {len(sequence)} tokens")
        self.changes += 1
        unplaced = tuple(i for i in sequence.unplaced if i < length) if sequence.unplaced else ()
        return CachedSequence(self, self._pool.fork(sequence._list, length), sequence.frozen, unplaced)

    def reorder(self, sequences: Sequence_[CachedSequence], parents: Sequence_[int]) -> list[CachedSequence]:
        """Beam search: result i continues sequences[parents[i]]. Each is used once as it is, then forked, or freed."""
        chosen = [int(p) for p in parents]
        self._distinct(sequences)
        own = [self._own(s) for s in sequences]
        if chosen and not 0 <= min(chosen) <= max(chosen) < len(own):
            raise ValueError(f"PagedCache: parents must lie in 0 to {len(own) - 1}, got {chosen}")
        taken = [False] * len(own)
        result = []
        for p in chosen:
            s = own[p]
            if taken[p]:
                s = CachedSequence(self, self._pool.fork(s._list, s._list.length), s.frozen, s.unplaced)
            taken[p] = True
            result.append(s)
        left = [s for s, goes_on in zip(own, taken, strict=True) if not goes_on]
        for s in left:
            self._pool.truncate(s._list, 0)
            s._cache = None
        self.changes += bool(left) or len(result) > len(own)
        return result

    def truncate(self, sequence: CachedSequence, length: int) -> None:
        """Forgets the tokens from `length` on."""
        self._changeable(sequence)
        if not 0 <= length <= len(sequence):
            raise ValueError(f"PagedCache: cannot truncate {len(sequence)} tokens to {length}")
        self._pool.truncate(sequence._list, length)
        sequence.unplaced = tuple(i for i in sequence.unplaced if i < length)
        self.changes += 1

    def freeze(self, sequence: CachedSequence) -> None:
        """From now on it, and its forks, are read only: the keys of an encoder."""
        self._own(sequence).frozen = True
        self.changes += 1

    def free(self, sequence: CachedSequence) -> None:
        """Gives its blocks back; the sequence is of no further use."""
        self._own(sequence)
        self.changes += 1
        self._pool.truncate(sequence._list, 0)
        sequence._cache = None

    # ---- inside -----------------------------------------------------------------------------------

    def _room(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """Memory for tokens. On a GPU of zeros: blocks are copied in one call, each as far as the fullest is filled."""
        if self.place.number is None:
            return np.empty(shape, dtype)
        size = f"{shape[0] * self._block_bytes / 2**20:.2f} MiB in all"
        return self.place.zeros(shape, dtype, f"a KV cache of {shape[0]} blocks of {self.block_size} tokens, {size}")

    def _groups(self) -> tuple[list[Array], ...]:
        return self.k, self.v, self.k_scale, self.v_scale

    def _own(self, sequence: CachedSequence) -> CachedSequence:
        if sequence._cache is not self:
            state = "was freed" if sequence._cache is None else "belongs to another cache"
            raise ValueError(f"PagedCache: the sequence {state}")
        return sequence

    def _distinct(self, sequences: Sequence_[CachedSequence]) -> None:
        if len(set(map(id, sequences))) != len(sequences):
            raise ValueError("PagedCache: a sequence is there twice")

    def _changeable(self, sequence: CachedSequence) -> CachedSequence:
        if self._own(sequence).frozen:
            raise ValueError("PagedCache: the sequence is frozen")
        return sequence

    def _step(self, sequences: Sequence_[CachedSequence], slots: Ints, queries: list[int]) -> Step:
        starts = np.array([0, *accumulate(queries)], np.int64)
        tables, lengths, one_each = self.tables(sequences), self.lengths(sequences), all(n == 1 for n in queries)
        return Step(self, list(sequences), slots, tables, lengths, starts, one_each)

    def _append(self, sequences: Sequence_[CachedSequence], counts: list[int]) -> Ints:
        self._distinct(sequences)
        self.changes += 1
        for s in sequences:
            if s._cache is not self or s.frozen:
                self._changeable(s)
        if min(counts, default=0) < 0:
            raise ValueError(f"PagedCache: counts must not be negative, got {min(counts)}")
        if sum(counts) > MOST_BLOCKS * self.block_size:
            raise CacheFull(f"{sum(counts)} more tokens are more than any cache holds, {MOST_BLOCKS} blocks")
        lists = [s._list for s in sequences]
        self._reserve(self._pool.needed(lists, counts))
        slots, old, new, filled = self._pool.append(lists, counts)
        if old:
            copy_blocks([x for group in self._groups() for x in group], old, new, filled)
        return slots

    def _reserve(self, needed: int) -> None:
        """Grows the pool until `needed` blocks are free."""
        if needed <= self._pool.free:
            return
        least = self.blocks_used + needed
        if least > MOST_BLOCKS or (self.max_blocks is not None and least > self.max_blocks):
            raise CacheFull(
                f"the cache is full: {needed} more blocks of {self.block_size} tokens are needed, "
                f"{self.blocks_used} of at most {self.max_blocks} are used"
            )
        blocks = max(least, 2 * self.blocks)
        if self.max_blocks is not None:
            blocks = min(blocks, self.max_blocks)
        grown = []
        for group in self._groups():  # all or none: memory may run out in the middle
            grown.append([self._room((blocks, *x.shape[1:]), x.dtype) for x in group])
        for group, wider in zip(self._groups(), grown, strict=True):
            for i, x in enumerate(group):
                placement.write(wider[i][: len(x)], x)
                group[i] = wider[i]
        self._pool.grow(blocks)
        self.version += 1
