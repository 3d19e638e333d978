"""What `qkv.view` can be given, as maps: weights of all layers and heads with the tokens of their rows and columns."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from ..arrays import as_numpy

Array = np.ndarray[Any, Any]

TOLERANCE = 1e-2  # of a row's sum: float16 weights of 512 keys come close to it


class Field(NamedTuple):
    """Of a model's output. title: what the page calls it. target: whether the queries, and the keys, are those of a
    decoder beside an encoder."""

    name: str
    title: str
    target: tuple[bool, bool] = (False, False)


CROSS = Field("cross_attentions", "Cross-attention", (True, False))
FIELDS = (
    Field("attentions", "Self-attention"),
    Field("encoder_attentions", "Encoder"),
    Field("decoder_attentions", "Decoder", (True, True)),
    CROSS,
)
ARRAYS = Field("x", "Attention")


@dataclass(frozen=True)
class Map:
    """weights: (L, H, S, T) float32. queries, keys: S and T tokens. prompt: of texts that were generated, the rows
    that the first step has computed; every other step has one. notes: what is to be said of the weights. picture: for
    tokens that are patches of an image. writes: whether the token behind a query is what was written from it."""

    name: str
    weights: Array
    queries: list[str]
    keys: list[str]
    prompt: int | None = None
    notes: tuple[str, ...] = ()
    picture: Picture | None = None
    writes: bool = False

    @property
    def square(self) -> bool:
        """Whether queries and keys are the same tokens."""
        s, t = self.weights.shape[2:]
        return s == t and self.queries[:s] == self.keys


@dataclass(frozen=True)
class Picture:
    """An image whose patches, row by row, are the last rows * columns tokens. url: of its data."""

    url: str
    rows: int
    columns: int


def maps(x: Any, tokens: Any, target_tokens: Any, row: int) -> list[Map]:
    """Of a model's output, of generate's, or of arrays. Arguments and errors as in qkv.view.attention."""
    tokens, target_tokens = _strings("tokens", tokens), _strings("target_tokens", target_tokens)
    if isinstance(row, bool) or not isinstance(row, (int, np.integer)) or row < 0:
        raise ValueError(f"view: row must be an integer of at least 0; got {row!r:.60}")
    fields = [field for field in FIELDS if _field(x, field.name) is not None]
    if not fields:
        return [_of_arrays(x, tokens, target_tokens, int(row))]
    if target_tokens is not None and not any(field.target[0] for field in fields):
        raise ValueError(
            "view: target_tokens are a decoder's beside an encoder; this output has none, so pass tokens alone"
        )
    found = []
    for field in fields:
        value = _field(x, field.name)
        if not isinstance(value, (list, tuple)) or not value:
            raise ValueError(f"view: {field.name} holds no layers; call the model with output_attentions=True")
        queries, keys = (target_tokens if target else tokens for target in field.target)
        item = _Found(field, np.empty(0), queries, keys)
        if _field(x, "sequences") is not None and isinstance(value[0], (list, tuple)):
            item.weights, item.prompt = _steps(x, field.name, value, int(row))
        else:
            item.weights = _layers(field.name, value, _row_of_text(x, value, int(row)))
        found.append(item)
    _leave_padding_out(found)
    return [_labelled(item) for item in found]


@dataclass
class _Found:
    """What a Map is made of."""

    field: Field
    weights: Array
    queries: list[str] | None
    keys: list[str] | None
    prompt: int | None = None


def _field(x: Any, name: str) -> Any:
    if isinstance(x, (np.ndarray, list, tuple)) or hasattr(x, "__dlpack__"):
        return None
    return x.get(name) if isinstance(x, dict) else getattr(x, name, None)


def _strings(name: str, value: Any) -> list[str] | None:
    if value is None:
        return None
    if isinstance(value, str) or not isinstance(value, Sequence) or not all(isinstance(item, str) for item in value):
        raise TypeError(f"view: {name} must be a list of strings, one for each token; got {value!r:.60}")
    return list(value)


# ---- arrays ---------------------------------------------------------------------------------------------


def _of_arrays(x: Any, tokens: list[str] | None, target_tokens: list[str] | None, row: int) -> Map:
    if isinstance(x, (list, tuple)):
        if not x:
            raise ValueError("view: there are no layers; expected at least one array of weights")
        nested = isinstance(x[0], (list, tuple))  # numbers in lists
        weights = _array("x", x) if nested else _layers("x", x, row)
    elif hasattr(x, "keys") and not hasattr(x, "__array__"):
        raise ValueError("view: this output has no attentions; call the model with output_attentions=True")
    else:
        weights = _array("x", x)
        if row:
            raise ValueError(f"view: an array of weights is of one text; there is no row {row}")
    if weights.ndim not in (2, 3, 4):
        raise ValueError(
            "view: weights must be (layers, heads, queries, keys), (heads, queries, keys), or a list of arrays; "
            f"got shape {weights.shape}"
        )
    weights = weights.reshape((1,) * (4 - weights.ndim) + weights.shape)
    queries = tokens if target_tokens is None else target_tokens
    return _labelled(_Found(ARRAYS, weights, queries, tokens))


def _array(name: str, value: Any) -> Array:
    """float32. TypeError: no numbers."""
    array = as_numpy("view", name, value)
    if array.dtype.kind not in "fiu" and array.dtype.name not in ("bfloat16", "float16"):
        raise TypeError(f"view: {name} must hold floats; got {array.dtype}")
    with np.errstate(over="ignore"):
        return np.asarray(array, np.float32)


def _layers(name: str, value: Sequence[Any], row: int) -> Array:
    """(L, H, S, T) of layers (B, H, S, T), of which a row is taken, (H, S, T) or (S, T)."""
    layers = []
    for i, item in enumerate(value):
        if item is None:
            raise ValueError(f"view: layer {i} of {name} is None; this model does not give its weights")
        array = _array(f"layer {i} of {name}", item)
        if array.ndim == 4:
            if row >= len(array):
                raise ValueError(f"view: there is no row {row}; {name} has {len(array)}")
            array = array[row]
        if array.ndim == 2:
            array = array[None]
        if array.ndim != 3:
            raise ValueError(
                f"view: layer {i} of {name} must be (batch, heads, queries, keys) or (heads, queries, keys); "
                f"got {array.shape}"
            )
        layers.append(array)
    shapes = {array.shape for array in layers}
    if len(shapes) > 1:
        raise ValueError(f"view: layers of {name} have different shapes, {sorted(shapes)}")
    return np.stack(layers)


# ---- texts that were generated ----------------------------------------------------------------------------


def _steps(x: Any, name: str, value: Sequence[Any], row: int) -> tuple[Array, int]:
    """Weights of a row of sequences, (L, H, S, T) with a query for each token that something was computed of, and how
    many of them the first step has. A row that has ended before others has the steps it was in."""
    sequences = _array("sequences", _field(x, "sequences"))
    if row >= len(sequences):
        raise ValueError(f"view: there is no row {row}; sequences has {len(sequences)}")
    beams = _field(x, "beam_indices")
    of_row = None if beams is None else as_numpy("view", "beam_indices", beams)[row]
    parts = []
    for step, layers in enumerate(value):
        at = row
        if of_row is not None:  # the beam that the row was then
            if step >= len(of_row) or of_row[step] < 0:
                break
            at = int(of_row[step])
        part = _layers(f"step {step} of {name}", layers, at)
        if not part.any():  # the row had ended
            break
        parts.append(part)
    if not parts:
        raise ValueError(f"view: row {row} of {name} has no steps")
    prompt, longest = parts[0].shape[2], max(part.shape[3] for part in parts)
    weights = np.zeros((*parts[0].shape[:2], prompt + len(parts) - 1, longest), np.float32)
    at = 0
    for part in parts:
        weights[:, :, at : at + part.shape[2], : part.shape[3]] = part
        at += part.shape[2]
    return weights, prompt


def _row_of_text(x: Any, layers: Sequence[Any], row: int) -> int:
    """The encoder's row of a row of sequences, of which each text may have several."""
    sequences = _field(x, "sequences")
    if sequences is None or not len(layers[0]):
        return row
    return row * len(layers[0]) // len(sequences)


# ---- tokens and checks ------------------------------------------------------------------------------------


def _leave_padding_out(found: list[_Found]) -> None:
    """Queries that have no weight in any head are padding, as are keys of the same numbers; tokens may name them or
    not."""
    real = {item.field.name: np.asarray(item.weights.any(axis=(0, 1, 3))) for item in found}
    for item in found:
        rows = real[item.field.name]
        columns = rows
        if item.field is CROSS:
            columns = real.get("encoder_attentions", np.asarray(item.weights.any(axis=(0, 1, 2))))
        elif item.weights.shape[3] > len(rows):  # a memory is ahead of the tokens
            columns = np.concatenate([np.ones(item.weights.shape[3] - len(rows), bool), rows])
        if len(columns) != item.weights.shape[3]:
            raise ValueError(
                f"view: {item.field.name} has {item.weights.shape[3]} keys, but there are {len(columns)} tokens to "
                "look at"
            )
        written = item.prompt is not None
        item.queries = _keep(item.queries, rows, written)
        item.keys = _keep(item.keys, columns, written and item.field is not CROSS)
        item.weights = item.weights[:, :, rows][:, :, :, columns]
        if item.prompt is not None:
            item.prompt = int(rows[: item.prompt].sum())


def _keep(tokens: list[str] | None, real: Array, written: bool) -> list[str] | None:
    """Tokens that are not padding. written: by steps, of which the last wrote a token that was not read again."""
    if tokens is None or len(tokens) < len(real) + written:
        return tokens
    kept = [token for token, there in zip(tokens, real, strict=False) if there]
    return kept + tokens[len(real) : len(real) + 1] if written else kept + tokens[len(real) :]


def _labelled(item: _Found) -> Map:
    """A checked map. A list of tokens that is missing becomes numbers."""
    name, weights, queries, keys = item.field.name, item.weights, item.queries, item.keys
    if not all(weights.shape):
        raise ValueError(f"view: {name} is empty: (layers, heads, queries, keys) are {weights.shape}")
    s, t = weights.shape[2:]
    notes = _check(item.field, weights)
    keys = [str(i) for i in range(t)] if keys is None else keys
    if queries is None:
        queries = keys if s == t else [str(i) for i in range(s)]
    if item.field is FIELDS[0] and t > s == len(keys):
        keys = [f"memory {i - t + s}" for i in range(t - s)] + keys  # Transformer-XL's
    spare = item.prompt is not None  # what the last step wrote was not read again
    for what, tokens, count in (("queries", queries, s), ("keys", keys, t)):
        if len(tokens) not in (count, count + spare):
            raise ValueError(f"view: {name} has {count} {what}, but there are {len(tokens)} tokens for them")
    return Map(item.field.title, weights, queries, keys[:t], item.prompt, notes, writes=spare or item.field.target[0])


def _check(field: Field, weights: Array) -> tuple[str, ...]:
    """ValueError for what are no weights; otherwise what is to be said of them."""
    name = field.name
    low, high = float(weights.min()), float(weights.max())  # NaN stays NaN
    if not np.isfinite(low) or not np.isfinite(high):
        raise ValueError(f"view: {name} holds NaN or infinity")
    if low < 0:
        raise ValueError(f"view: {name} holds negative weights, down to {low:.4g}; are they scores before the softmax?")
    sums = weights.sum(axis=-1, dtype=np.float64)
    if sums.max() > 1 + TOLERANCE:
        at = ", ".join(map(str, np.unravel_index(int(sums.argmax()), sums.shape)))
        raise ValueError(
            f"view: weights of a query must sum to 1; in {name} those at (layer, head, query) ({at}) sum to "
            f"{sums.max():.4g}"
        )
    less = (sums < 1 - TOLERANCE) & (sums > 0)
    if not less.any():
        return ()
    note = (
        f"{field.title}: the weights of {int(less.sum())} of {sums.size} rows sum to less than 1, "
        f"the least to {sums[less].min():.4g}."
    )
    warnings.warn(f"view: {note}", stacklevel=5)
    return (note,)


def with_picture(found: list[Map], picture: Picture) -> list[Map]:
    """The same maps, over an image. ValueError: they have fewer tokens than it has patches."""
    count = picture.rows * picture.columns
    for item in found:
        if not item.square or len(item.keys) < count:
            raise ValueError(
                f"view: an image of {picture.rows} x {picture.columns} patches does not go with {len(item.queries)} "
                f"queries and {len(item.keys)} keys"
            )
    return [replace(item, picture=picture) for item in found]
