"""From padded input to packed tokens and back.

Inside a model there is no padding: a batch is (total, ...) with cu_seqlens. Padding exists where a user
hands in input_ids (B, S) with an attention_mask, and gets outputs (B, S, ...) back that are zero there.
Left padding, right padding and holes are alike: a token's default position is the number of real tokens
before it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from itertools import chain
from typing import Any, Protocol

import numpy as np

from .layers import Array
from .placement import Copies, brought, host, take

MOST = 2**31  # positions of a model that has no table of them


class Derived(Protocol):
    """What an array of Packed's is worked out by, once for a batch."""

    def derive(self, packed: Packed) -> Array: ...


class Packed:
    """The real tokens of a batch: `ids`, `positions` and `types` (total,), the last None for all zero."""

    def __init__(
        self,
        ids: Array,
        cu_seqlens: Array,
        *,
        positions: Array | None = None,
        types: Array | None = None,
        mask: Array | None = None,
        shape: tuple[int, int] | None = None,
    ):
        self.ids = ids
        self.cu_seqlens = cu_seqlens  # (B + 1,)
        self.types = types
        self.mask = mask  # (B, S) bool; None: every token is real
        self.shape = shape  # (B, S)
        self.explicit = positions is not None  # whether the caller chose the positions
        if positions is None:
            starts = np.repeat(cu_seqlens[:-1], np.diff(cu_seqlens))  # each token's row begins here
            positions = np.arange(ids.size, dtype=cu_seqlens.dtype) - starts
        self.positions = positions
        self.derived: dict[Derived, Array] = {}
        self.derive_from: Packed | None = None  # the same tokens in host memory
        self.table: Array | None = None  # what positions are looked up in, where it grows with them
        self.copies = Copies()

    def of(self, owner: Derived) -> Array:
        """What the owner makes of the tokens; a step that is replayed writes it anew, in place."""
        if owner not in self.derived:
            self.derived[owner] = owner.derive(self.derive_from or self)
        return self.derived[owner]

    @classmethod
    def from_lists(cls, rows: Sequence[Sequence[int]], before: Array | None = None) -> Packed:
        """Rows of ids of any lengths, which the caller has checked. before: (B,), tokens of each row that came
        earlier."""
        lengths = [len(row) for row in rows]
        if before is not None and lengths == [1] * len(rows):  # a step of decoding, which has little time
            packed = cls(np.array([row[0] for row in rows], np.int64), np.arange(len(rows) + 1), positions=before)
            packed.explicit = False
            return packed
        cu_seqlens = _cumulative(lengths)
        ids = np.fromiter(chain.from_iterable(rows), np.int64, count=int(cu_seqlens[-1]))
        packed = cls(ids, cu_seqlens)
        if before is not None:
            packed.positions = packed.positions + np.repeat(before, lengths)
        return packed

    @classmethod
    def from_padded(
        cls,
        input_ids: Any,
        attention_mask: Any = None,
        token_type_ids: Any = None,
        position_ids: Any = None,
        *,
        vocabulary: int,
        types: int | None = None,
        longest: int | None = None,
        positions: int | None = None,
        prefix: str = "",
    ) -> Packed:
        """Check a user's batch and pack it. vocabulary, types, positions: how many of each the model has, None for no
        token types and for any position. longest: of a row's tokens. prefix: of the
        inputs' names, for messages.

        Only real tokens are looked at: what stands at padding may be anything. TypeError for a dtype,
        ValueError for a shape or a value.
        """
        name_of_ids = f"{prefix}input_ids"
        ids = _integers(name_of_ids, input_ids)
        if ids.ndim != 2:
            hint = "; for one row pass [ids]" if ids.ndim == 1 else ""
            raise ValueError(f"{name_of_ids}: expected shape (batch, tokens); got {ids.shape}{hint}")
        mask = _mask(attention_mask, ids.shape, prefix)
        if mask is None:
            lengths = np.full(ids.shape[0], ids.shape[1])
        else:
            lengths = mask.sum(axis=1)
            if ids.shape[1] and not lengths.all():
                raise ValueError(f"{prefix}attention_mask: row {int(lengths.argmin())} has no real token")
        if position_ids is None and longest is not None and lengths.max(initial=0) > longest:
            row = int(lengths.argmax())
            raise ValueError(f"{name_of_ids}: row {row} has {lengths[row]} tokens; the model has {longest} positions")

        def pick(name: str, value: Any, limit: int, unit: str) -> Array | None:
            if value is None:
                return None
            array = _integers(name, value)
            if array.shape != ids.shape:
                if name != "position_ids" or array.shape not in (ids.shape[1:], (1, ids.shape[1])):
                    raise ValueError(f"{name}: expected shape {ids.shape} as {name_of_ids}; got {array.shape}")
                array = np.broadcast_to(array, ids.shape)
            real = array.reshape(-1) if mask is None else array[mask]
            if real.size and (real.min() < 0 or real.max() >= limit):
                wrong = (array < 0) | (array >= limit)
                row, column = np.argwhere(wrong if mask is None else wrong & mask)[0].tolist()
                raise ValueError(
                    f"{name}: {array[row, column]} in row {row}, column {column} is not among the model's "
                    f"{limit} {unit} (0 to {limit - 1})"
                )
            return real

        kinds = pick("token_type_ids", token_type_ids, types or 1, "token types")
        real_ids = pick(name_of_ids, ids, vocabulary, "tokens")
        assert real_ids is not None
        return cls(
            real_ids,
            _cumulative(lengths),
            positions=pick("position_ids", position_ids, MOST if positions is None else positions, "positions"),
            types=kinds if types else None,
            mask=mask,
            shape=ids.shape,
        )

    def first_rows(self, x: Array) -> Array:
        """The first token of each row, (total, C) -> (B, C); zeros for a row without tokens."""
        starts, ends = self.cu_seqlens[:-1], self.cu_seqlens[1:]
        if x.shape[0] and (starts < ends).all():
            return take(x, starts)
        x = host(x)
        result = np.zeros((starts.size, *x.shape[1:]), x.dtype)
        result[starts < ends] = x[starts[starts < ends]]
        return result

    def pad(self, x: Array) -> Array:
        """(total, ...) -> (B, S, ...), in host memory"""
        assert self.shape is not None
        x = host(x)
        if self.mask is None:
            return x.reshape(*self.shape, *x.shape[1:])
        result = np.zeros((*self.shape, *x.shape[1:]), x.dtype)
        result[self.mask] = x
        return result

    def padded_ids(self, pad: int) -> Array:
        """(B, S), with `pad` at padding."""
        ids = self.pad(self.ids)
        return ids if self.mask is None else np.where(self.mask, ids, pad)

    def pad_all(self, states: list[Array] | None) -> tuple[Array, ...] | None:
        """`pad` of each, None for None."""
        return None if states is None else tuple(self.pad(state) for state in states)

    def pad_all_pairs(
        self, weights: list[list[Array]] | None, heads: int, keys: Packed | None = None
    ) -> tuple[Array, ...] | None:
        """`pad_pairs` of each, None for None."""
        return None if weights is None else tuple(self.pad_pairs(w, heads, keys) for w in weights)

    def pad_pairs(self, weights: list[Array], heads: int, keys: Packed | None = None) -> Array:
        """B arrays (H, S_b, T_b) -> (B, H, S, T). keys: the batch that they attend to, if it is another."""
        keys = self if keys is None else keys
        assert self.shape is not None and keys.shape is not None
        result = np.zeros((self.shape[0], heads, self.shape[1], keys.shape[1]), np.float32)
        for b, of_row in enumerate(map(host, weights)):
            if self.mask is None and keys.mask is None:
                result[b] = of_row
            else:
                result[b][:, self.columns(b)[:, None], keys.columns(b)] = of_row
        return result

    def columns(self, row: int) -> Array:
        """The columns of a row's real tokens."""
        assert self.shape is not None
        return np.arange(self.shape[1]) if self.mask is None else np.flatnonzero(self.mask[row])


def _cumulative(lengths: Any) -> Array:
    cu_seqlens = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=cu_seqlens[1:])
    return cu_seqlens


def regular(name: str, value: Any, advice: str = "") -> Array:
    """np.asarray, with a ValueError for nested lists whose rows differ in length. NumPy before 1.24 makes an array of
    objects of those, after a warning, which may be an error."""
    array, value = None, brought(value)
    with contextlib.suppress(ValueError, UserWarning):
        array = np.asarray(value)
    if array is None or (array.dtype == object and isinstance(value, (list, tuple)) and _ragged(value)):
        raise ValueError(f"{name}: the rows have different lengths{advice}")
    return array


def _ragged(value: Any) -> bool:
    lengths = {len(row) if isinstance(row, (list, tuple, np.ndarray)) else None for row in value}
    return len(lengths) > 1 or any(isinstance(row, (list, tuple)) and _ragged(row) for row in value)


def _integers(name: str, value: Any) -> Array:
    array = regular(name, value, "; pad them and pass attention_mask")
    if array.size == 0 and array.dtype == np.float64:  # what an empty list becomes
        array = array.astype(np.int64)
    if array.dtype.kind not in "iu":
        hint = "; model.tokenizer makes ids of texts" if array.dtype.kind == "U" else ""
        raise TypeError(f"{name}: expected integers; got {array.dtype}{hint}")
    return array


def _mask(value: Any, shape: tuple[int, ...], prefix: str = "") -> Array | None:
    """(B, S) bool, or None where nothing is masked."""
    if value is None:
        return None
    name = f"{prefix}attention_mask"
    array = regular(name, value)
    if array.shape != shape:
        raise ValueError(f"{name}: expected shape {shape} as {prefix}input_ids; got {array.shape}")
    if array.size == 0:
        return None
    if array.dtype.kind not in "biu":
        raise TypeError(f"{name}: expected booleans or integers; got {array.dtype}")
    mask = array.astype(bool)
    if array.dtype.kind != "b" and not ((array == 0) | (array == 1)).all():
        raise ValueError(f"{name}: expected 1 for real tokens and 0 for padding, and nothing else")
    return None if mask.all() else mask
