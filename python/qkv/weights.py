"""From a checkpoint's tensors to a model's parameters: rename rules, ties, and the completeness report.

A family lists rules; they are applied in order to all names, so a later rule can take up what an earlier
one made (`permute` q and k, then `fuse` them). In a pattern `{i}` (any letter) stands for a decimal number
and `*` for any rest, the same in source and target:

    fuse(["layer.{i}.query.*", "layer.{i}.key.*", "layer.{i}.value.*"], "blocks.{i}.attn.qkv.*")

Nothing is read until the whole of it fits: rules work on names and shapes, a first pass of the family's
`build` says which parameters it wants, and one ValueError lists everything that is missing, unexpected or
mis-shaped. A second pass reads, converts and packs one tensor at a time.
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from . import ops
from .files import Tensor
from .placement import HOST, Place, converted
from .runtime import trim

Model = TypeVar("Model")
BLOCK = 1 << 20  # elements that are compared at a time
SHOWN = 300  # lines of each kind in the report
NEAREST = 20  # names that get a 'nearest' hint: matching is quadratic, and files are untrusted


@dataclass(frozen=True)
class Rule:
    """`make` turns the tensors of the sources into those of the targets, [] drops them; ValueError: they
    don't fit.

    any_of: the sources are alternatives; `make` gets those that are there, at least one.
    """

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    make: Callable[[list[Tensor]], list[Tensor]]
    any_of: bool = False

    def apply(self, pool: dict[str, Tensor], problems: list[str]) -> None:
        """Replace what matches in `pool`, a mapping by name. What does not fit is told in `problems` and
        lost."""
        for found, names in self._matches(pool):
            parts = [pool.pop(name) for name in names]
            try:
                made = self.make(parts)
            except ValueError as error:
                problems.append(str(error))
                continue
            for template, tensor in zip(self.targets, made, strict=True):
                target = _fill(template, found)
                if target in pool:
                    twice = " and ".join(sorted((tensor.names[0], pool[target].names[0])))
                    problems.append(f"{twice} are the same parameter")
                pool[target] = tensor

    def _matches(self, pool: dict[str, Tensor]) -> list[tuple[dict[str, str], list[str]]]:
        """What {i} and * stand for, with the names of the sources; complete groups only, unless any_of."""
        groups: dict[tuple[tuple[str, str], ...], list[str | None]] = {}
        for k, source in enumerate(self.sources):
            pattern = _pattern(source)
            for name in pool:
                match = pattern.fullmatch(name)
                if match:
                    group = groups.setdefault(tuple(sorted(match.groupdict().items())), [None] * len(self.sources))
                    group[k] = name
        return [
            (dict(key), [name for name in group if name is not None])
            for key, group in groups.items()
            if self.any_of or None not in group
        ]


@dataclass(frozen=True)
class Tie:
    """See `tie`."""

    names: tuple[str, ...]
    when: bool

    def apply(self, pool: dict[str, Tensor], problems: list[str]) -> None:
        """What is there serves for what is not."""
        present = [name for name in self.names if name in pool]
        if present and self.when:
            for name in self.names:
                pool.setdefault(name, pool[present[0]])

    def share(self, pool: dict[str, Tensor]) -> None:
        """Make equal tensors one. This reads them, so their shapes must have been checked."""
        present = [name for name in self.names if name in pool]
        for name in present[1:]:
            if _equal(pool[present[0]], pool[name]):
                pool[name] = pool[present[0]]


def rename(source: str | Sequence[str], target: str) -> Rule:
    """Several sources: names for the same thing, of which the first that is there counts and the rest are
    dropped."""
    sources = (source,) if isinstance(source, str) else tuple(source)
    return Rule(sources, (target,), lambda tensors: tensors[:1], any_of=True)


def drop(source: str) -> Rule:
    return Rule((source,), (), lambda tensors: [])


def fuse(sources: Sequence[str], target: str) -> Rule:
    """Concatenate along the first axis, the output rows of a matrix."""

    def make(parts: list[Tensor]) -> list[Tensor]:
        names = tuple(name for part in parts for name in part.names)
        shape = (sum(part.shape[0] for part in parts if part.shape), *parts[0].shape[1:])
        if any(not part.shape or part.shape[1:] != parts[0].shape[1:] for part in parts):
            described = ", ".join(f"{part.names[0]} {part.shape}" for part in parts)
            raise ValueError(f"cannot be joined along their rows: {described}")
        dtype = _common(part.dtype for part in parts)
        joined = Tensor(
            names, shape, dtype, lambda: np.concatenate([part.read().astype(dtype, copy=False) for part in parts])
        )
        if parts[0].packed is None or any(part.packed != parts[0].packed for part in parts):
            return [joined]

        def stacked() -> tuple[Any, ...]:
            return _stacked([part.parts() for part in parts if part.parts is not None])

        return [replace(joined, parts=stacked, packed=parts[0].packed)]

    return Rule(tuple(sources), (target,), make)


def _common(dtypes: Iterable[np.dtype]) -> np.dtype:
    """What holds all of them: NumPy knows nothing for float16 beside bfloat16, which float32 does."""
    kinds = set(dtypes)
    return kinds.pop() if len(kinds) == 1 else np.result_type(np.float32, *(d for d in kinds if d.itemsize > 2))


def _stacked(parts: list[tuple[Any, ...]]) -> tuple[Any, ...]:
    """The rows of packed weights of one dtype and width, one after the other, as PackedWeight.from_parts wants them."""
    dtype, group, width = parts[0][:3]
    arrays = zip(*(part[3:] for part in parts), strict=True)
    return (dtype, group, width, *(None if of[0] is None else np.concatenate(of) for of in arrays))


def split(source: str, targets: Sequence[str], sizes: Sequence[int] | None = None) -> Rule:
    """Cut the first axis into equal parts, or into parts of the given sizes."""

    def make(tensors: list[Tensor]) -> list[Tensor]:
        whole = tensors[0]
        rows = whole.shape[0] if whole.shape else 0
        parts = list(sizes) if sizes is not None else [rows // len(targets)] * len(targets)
        if sum(parts) != rows:
            wanted = f"parts of {parts} rows" if sizes is not None else f"{len(targets)} equal parts"
            raise ValueError(f"{whole.names[0]} {whole.shape} cannot be cut into {wanted}")
        ends = np.cumsum(parts)

        return [whole.rows(slice(end - n, end)) for end, n in zip(ends.tolist(), parts, strict=True)]

    return Rule((source,), tuple(targets), make)


def transpose(source: str, target: str) -> Rule:
    """Reverse the axes: a Conv1D's (in, out) becomes (out, in)."""
    return _one(source, target, lambda t: t.of_values(shape=t.shape[::-1], read=lambda: t.read().T))


def reshape(source: str, target: str, shape: tuple[int, ...], *, of: tuple[int, ...] | None = None) -> Rule:
    """Another shape for the same values; one size may be -1. of: the shape that it must have, -1 for any size."""

    def make(t: Tensor) -> Tensor:
        if of is not None and (
            len(of) != len(t.shape) or any(a not in (-1, b) for a, b in zip(of, t.shape, strict=True))
        ):
            raise ValueError(f"{t.names[0]} is {t.shape}, expected {str(of).replace('-1', 'any')}")
        try:
            # an array without memory: NumPy's own rules decide, and nothing is allocated
            new = np.broadcast_to(np.uint8(0), t.shape).reshape(shape).shape
        except ValueError:
            raise ValueError(f"{t.names[0]} {t.shape} cannot be reshaped to {shape}") from None
        return t.of_values(shape=new, read=lambda: t.read().reshape(new))

    return _one(source, target, make)


def permute(source: str, target: str, rows: Sequence[int] | np.ndarray) -> Rule:
    """Reorder the first axis: row i of the target is row rows[i] of the source."""
    index = np.asarray(rows)

    def make(t: Tensor) -> Tensor:
        if not t.shape or not np.array_equal(np.sort(index), np.arange(t.shape[0])):
            raise ValueError(f"{t.names[0]} {t.shape} does not have the {index.size} rows to permute")
        return t.rows(index)

    return _one(source, target, make)


def offset(source: str, target: str, value: float) -> Rule:
    """Add a constant to every element, in float32 or wider."""

    def make(t: Tensor) -> Tensor:
        dtype = np.result_type(t.dtype, np.float32)
        return t.of_values(dtype=dtype, read=lambda: t.read().astype(dtype) + dtype.type(value))

    return _one(source, target, make)


def tie(*names: str, when: bool = True) -> Tie:
    """Parameters that are one tensor, by their final names; put it after the rules that make them.

    As transformers does it: one of them there, it serves for all (if `when`, the config's
    tie_word_embeddings). Several there and equal: shared. Several there and different: kept apart, whatever
    the config says.
    """
    return Tie(names, when)


def _one(source: str, target: str, make: Callable[[Tensor], Tensor]) -> Rule:
    return Rule((source,), (target,), lambda tensors: [make(tensors[0])])


def _equal(a: Tensor, b: Tensor) -> bool:
    if a is b or a.shape != b.shape or a.dtype != b.dtype or a.packed != b.packed:
        return a is b
    if a.parts is not None and b.parts is not None:
        pairs = zip(a.parts()[3:], b.parts()[3:], strict=True)
        return all(x is y if x is None else np.array_equal(x, y) for x, y in pairs)
    x, y = np.atleast_1d(a.read(), b.read())
    rows = max(1, BLOCK * len(x) // max(1, x.size))  # by blocks: a comparison makes arrays too
    return all(np.array_equal(x[i : i + rows], y[i : i + rows]) for i in range(0, len(x), rows))


# ---- patterns


@functools.cache
def _pattern(template: str) -> re.Pattern[str]:
    seen: set[str] = set()

    def piece(part: str) -> str:
        if part == "*":
            return "(?P<rest>.+)"
        if not re.fullmatch(r"\{[a-z]\}", part):
            return re.escape(part)
        letter = part[1]
        if letter in seen:
            return f"(?P={letter})"
        seen.add(letter)
        return f"(?P<{letter}>0|[1-9][0-9]{{0,5}})"

    return re.compile("".join(piece(part) for part in re.split(r"(\*|\{[a-z]\})", template)))


def _fill(template: str, found: dict[str, str]) -> str:
    return re.sub(r"\*|\{([a-z])\}", lambda m: found[m[1] or "rest"], template)


def _origins(name: str, rules: Sequence[Rule | Tie]) -> list[str]:
    """The names in a file that the rules would make parameter `name` from: the rules read backwards."""
    for k in reversed(range(len(rules))):
        rule = rules[k]
        if isinstance(rule, Tie):
            continue
        for target in rule.targets:
            match = _pattern(target).fullmatch(name)
            if match:
                sources = rule.sources[:1] if rule.any_of else rule.sources
                return [o for s in sources for o in _origins(_fill(s, match.groupdict()), rules[:k])]
    return [name]


# ---- loading


class Weights:
    """What layers are built from: `weights.at("attn").matrix("weight", (n, k))` is parameter attn.weight.

    matrix: a weight of ops.linear, (out, in), packed. table: rows for ops.embedding, packed unless dtype is
    float32. vector: float32, any rank. On a GPU matrices and tables of floats are arrays in the activations' dtype.
    While a model is only being planned these return None, so layers do nothing with them but keep them.
    """

    def __init__(self, store: _Store, prefix: str = ""):
        self._store, self._prefix = store, prefix

    def at(self, name: str) -> Weights:
        return Weights(self._store, f"{self._prefix}{name}.")

    @property
    def place(self) -> Place:
        """Where the parameters go."""
        return self._store.place

    def __contains__(self, name: str) -> bool:
        """Whether the file has it: for parts that a model may lack, such as BERT's pooler."""
        return self._prefix + name in self._store.tensors

    def matrix(self, name: str, shape: tuple[int, int]) -> Any:
        return self._store.take("matrix", self._prefix + name, shape)

    def table(self, name: str, shape: tuple[int, int]) -> Any:
        return self._store.take("table", self._prefix + name, shape)

    def vector(self, name: str, shape: tuple[int, ...]) -> Any:
        return self._store.take("vector", self._prefix + name, shape)


class _Store:
    def __init__(self, tensors: dict[str, Tensor], dtype: str, place: Place):
        self.tensors = tensors
        self.dtype = dtype
        self.place = place
        self.asked: dict[str, tuple[str, tuple[int, ...]]] = {}
        self.values: dict[str, Any] | None = None  # None: planning
        self._loaded: dict[int, Any] = {}  # by identity of the tensor: tied parameters are loaded once
        self._kinds: dict[int, str] = {}  # by identity

    def start_loading(self) -> None:
        """From now on `take` returns values."""
        self.values = {}
        # a table that is also a head's matrix is packed as the matrix; ops.embedding takes it so too
        matrices_last = sorted(self.asked.items(), key=lambda item: item[1][0] == "matrix")
        self._kinds = {id(self.tensors[name]): kind for name, (kind, _) in matrices_last}

    def take(self, kind: str, name: str, shape: tuple[int, ...]) -> Any:
        if self.values is None:
            self.asked[name] = (kind, shape)
            return None
        tensor = self.tensors[name]
        if id(tensor) not in self._loaded:
            self._loaded[id(tensor)] = self._load(tensor)
        self.values[name] = self._loaded[id(tensor)]
        return self.values[name]

    def _load(self, tensor: Tensor) -> Any:
        dtype = self.dtype
        if tensor.parts is not None:
            try:
                packed = ops.PackedWeight.from_parts(*tensor.parts())
            except (TypeError, ValueError) as error:
                raise ValueError(f"{' + '.join(tensor.names)}: {error}") from None
            if dtype in (packed.dtype, "auto") and self._kinds[id(tensor)] != "vector":
                return self.place.put(packed)
            array = packed.dequantize()
            del packed  # before another copy is made
        else:
            array = _narrowed(tensor)
        kind = self._kinds[id(tensor)]
        on_gpu = self.place.number is not None
        if on_gpu and (kind == "vector" or dtype not in ("int8", "int4")):  # straight from the file, and widened there
            wanted = np.dtype(np.float32 if kind == "vector" else self.place.activations)
            if wanted == np.float16 and array.dtype != wanted and ((np.abs(array) >= 65520) & np.isfinite(array)).any():
                raise ValueError(
                    f"{' + '.join(tensor.names)} holds numbers that are too large for float16; use bfloat16"
                )
            return converted(self.place.put(array), wanted)
        if dtype == "auto":
            dtype = "bfloat16" if array.dtype.name == "bfloat16" else "float32"
        if kind == "matrix" or (kind == "table" and dtype != "float32"):
            # A scale for each 32 of a token's row: one a row costs MiniLM's worst sentence 0.98 instead of 0.99.
            group = 32 if kind == "table" and dtype == "int8" else None
            try:
                return self.place.put(ops.pack_weight(np.require(array, requirements="A"), dtype, group))
            except ValueError as error:
                raise ValueError(f"{' + '.join(tensor.names)}: {error}") from None
        return np.array(array, np.float32, order="C")  # a copy: the file may change or go away


def activations_of(dtype: str, tensors: Iterable[Tensor]) -> Any:
    """In what a model of weights `dtype` computes on a GPU: in the type of its weights if they are floats, else in
    bfloat16. "auto": in what the widest part of the file's matrices is."""
    if dtype == "auto":
        sizes: dict[str, int] = {}
        for tensor in tensors:
            floats = tensor.parts is not None or tensor.dtype.kind == "f" or tensor.dtype.name == "bfloat16"
            if len(tensor.shape) > 1 and floats:
                kind = "bfloat16" if tensor.parts is not None else tensor.dtype.name
                sizes[kind] = sizes.get(kind, 0) + int(np.prod(tensor.shape))
        dtype = max(sizes, key=lambda kind: sizes[kind], default="float32")
    if dtype in ("float32", "float64"):
        return np.dtype(np.float32)
    if dtype == "float16":
        return np.dtype(np.float16)
    from ml_dtypes import bfloat16

    return np.dtype(bfloat16)


def _narrowed(tensor: Tensor) -> np.ndarray:
    """The tensor, float64 as float32. ValueError: a number is too large for that."""
    array = tensor.read()
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if array.dtype.kind != "f" or array.dtype.itemsize <= 4:
        return array
    with np.errstate(over="ignore"):
        narrow = array.astype(np.float32)
    if np.isinf(narrow).any() and (np.isinf(narrow) & np.isfinite(array)).any():
        raise ValueError(f"{' + '.join(tensor.names)} holds numbers that are too large for float32")
    return narrow


def load_parameters(
    build: Callable[[Weights], Model],
    tensors: dict[str, Tensor],
    rules: Sequence[Rule | Tie],
    *,
    prefixes: Sequence[str] = (),
    dtype: str = "float32",
    place: Place = HOST,
    where: str = "weights",
) -> tuple[Model, dict[str, Any]]:
    """Build a model from a checkpoint's tensors; returns it with all its parameters by name.

    `build` is called twice, first to learn which parameters it wants. `prefixes`: what a file may have
    before the names of the body; rules are written without. ValueError: one message with every name that
    does not fit.
    """
    problems: list[str] = []
    pool, prefix = _plain_names(tensors, prefixes, problems)
    present = set(pool)
    for rule in rules:
        rule.apply(pool, problems)
    store = _Store(pool, dtype, place)
    build(Weights(store))
    _check(store, rules, present, prefix, problems, where)
    for rule in rules:
        if isinstance(rule, Tie):
            rule.share(pool)
    store.start_loading()
    model = build(Weights(store))
    assert store.values is not None
    trim()  # what was only needed on the way
    return model, store.values


def _plain_names(
    tensors: dict[str, Tensor], prefixes: Sequence[str], problems: list[str]
) -> tuple[dict[str, Tensor], str]:
    """Without the prefix that models with a head save their body under (transformers loads it either way
    round), and with today's names for the two that TensorFlow-born files give a layer norm. Returns the
    prefix found."""
    pool: dict[str, Tensor] = {}
    used = ""
    for name, tensor in tensors.items():
        prefix = next((p for p in prefixes if name.startswith(p)), "")
        used = used or prefix
        plain = name[len(prefix) :]
        for old, new in (("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias")):
            plain = plain.removesuffix(old) + new if plain.endswith(old) else plain
        if plain in pool:
            problems.append(f"{pool[plain].names[0]} and {name} are the same parameter")
        pool[plain] = tensor
    return pool, used


def _check(
    store: _Store,
    rules: Sequence[Rule | Tie],
    present: set[str],
    prefix: str,
    problems: list[str],
    where: str,
) -> None:
    """Raise the one ValueError that tells everything that does not fit, if anything doesn't."""
    missing: list[str] = []
    expected: set[str] = set()
    misshaped = []
    for name, (_, shape) in store.asked.items():
        tensor = store.tensors.get(name)
        if tensor is None:
            origins = _origins(name, rules)
            expected.update(origins)
            body = "" if name.startswith("head.") else prefix  # heads are saved beside the body
            missing += [body + origin for origin in origins if origin not in present]
        elif tensor.shape != shape:
            misshaped.append(f"{' + '.join(tensor.names)} is {tensor.shape}, expected {shape}")
        elif tensor.dtype.kind != "f" and tensor.dtype.name != "bfloat16":
            misshaped.append(f"{' + '.join(tensor.names)} is {tensor.dtype}, expected floats")
    used = {id(store.tensors[name]) for name in store.asked if name in store.tensors}
    surplus = [t for name, t in store.tensors.items() if id(t) not in used and name not in expected]
    unexpected = list(dict.fromkeys(name for tensor in surplus for name in tensor.names))
    if not (missing or unexpected or misshaped or problems):
        return
    misshaped += problems
    lines = [f"{where}: {len(missing)} missing, {len(unexpected)} unexpected, {len(misshaped)} mis-shaped"]
    lines += _hinted("missing", missing, unexpected)
    lines += _hinted("unexpected", unexpected, missing)
    lines += _limited([f"  mis-shaped: {text}" for text in misshaped])
    raise ValueError("\n".join(lines))


def _hinted(what: str, names: list[str], others: list[str]) -> list[str]:
    """One line a name, with the most similar of the names that are also without a partner."""
    lines = []
    for k, name in enumerate(names):
        near = difflib.get_close_matches(name, others[:1000], n=1) if k < NEAREST else []
        lines.append(f"  {what}: {_shown(name)}" + (f" (nearest: {_shown(near[0])})" if near else ""))
    return _limited(lines)


def _limited(lines: list[str]) -> list[str]:
    return lines if len(lines) <= SHOWN else [*lines[:SHOWN], f"  ... and {len(lines) - SHOWN} more"]


def _shown(name: str) -> str:
    """A name from a file as it is, unless it would mislead: with line ends, say, or very long."""
    return name if name.isprintable() and len(name) <= 200 else f"{name!r:.200}"
