"""The blocks that every family is assembled from.

Activations are packed tokens, (total, C): the rows of a batch one after another, without padding, with their
borders in `Run.cu_seqlens`. What varies between families is an object (a norm, a layer, a rule), not a flag.

    Block      x -> sublayer -> sublayer ...       attention, feed-forward; in a decoder cross-attention too
    Sublayer   x := norm_residual(x + norm_out(layer(norm_in(x))))       each norm may be absent

Post-norm models (BERT) fill norm_residual, pre-norm models (GPT-2, Llama) norm_in, Gemma2 norm_in and
norm_out too.

Letters: total tokens of a batch, H heads, Hkv key-value heads, D head width, C model width, F feed-forward width,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from . import ops, placement, runtime
from .placement import Copies, Place
from .positions import LENGTH_DEPENDENT, rope_type, rotary_angles, rotary_frequencies, rotary_width, steady_length
from .weights import Weights

if TYPE_CHECKING:
    from .cache import Step

Array = Any  # a NumPy array, or on a GPU one of qkv.cuda's


class Memory:
    """What cross-attention looks at: an encoder's result, (total, C), with its borders. The keys and values that a
    layer makes of it are kept, so that later steps of a decoder find them there."""

    def __init__(self, states: Array, cu_seqlens: Array):
        self.states = states
        self.cu_seqlens = cu_seqlens  # (B + 1,)
        self.keys_values: dict[int, Array] = {}  # layer -> (total, 2, H, D)
        self.blocks: MemoryBlocks | None = None  # the same for choices of rows

    def rows(self, rows: Array) -> MemoryRows:
        """For a decoder whose row i looks at row rows[i]: several may share one, in any order."""
        if self.blocks is None:
            self.blocks = MemoryBlocks(self)
        return MemoryRows(self.blocks, rows)

    def attend(self, layer: int, q: Array, kv: Linear, run: Run, **options: Any) -> Any:
        """Attention of q (total of the decoder, H, D) with the run's borders; kv makes the keys and values at first."""
        if layer not in self.keys_values:
            self.keys_values[layer] = kv(self.states).reshape(-1, 2, *q.shape[1:])
        made = self.keys_values[layer]
        borders = run.copies.near(q, run.cu_seqlens), run.copies.near(q, self.cu_seqlens)
        return ops.attention_varlen(q, made[:, 0], made[:, 1], *borders, **options)


def stored_dtype(precision: str, place: Place) -> str:
    """In what a cache keeps keys and values for attention of this precision: where its products are of bfloat16, that
    has the same result, to the bit, as float32, which would be rounded at every look. (Of denormals alone the products
    drop a few that the cache rounds up, to 1.2e-38.) On a GPU: as they come."""
    if place.number is not None:
        return str(np.dtype(place.activations).name)
    return "bfloat16" if precision == "bf16" and runtime.current_isa() in ("avx512_bf16", "amx") else "float32"


class MemoryBlocks:
    """The keys and values of a memory in blocks of 16 tokens, each row's in blocks of its own, so that any choice of
    rows is a choice of block tables."""

    SIZE = 16

    def __init__(self, memory: Memory):
        self.states = memory.states  # not the memory itself, which holds this: both die at once
        self.lengths = np.diff(memory.cu_seqlens)  # (B,)
        counts = -(-self.lengths // self.SIZE)
        self.count = int(counts.sum())
        first = np.cumsum(counts) - counts  # (B,): each row's first block
        blocks = first[:, None] + np.arange(max(counts.max(initial=0), 1))
        self.tables = blocks.astype(np.int32)  # (B, N); what is beyond a row's length is not read
        token = np.arange(memory.cu_seqlens[-1]) - np.repeat(memory.cu_seqlens[:-1], self.lengths)
        self.slots = np.repeat(first, self.lengths) * self.SIZE + token  # (total,)
        self.copies = Copies()
        self.layers: dict[int, tuple[Array, Array]] = {}  # keys and values (blocks, 16, H, D)

    def of(self, layer: int, kv: Linear, heads: int, head_dim: int, precision: str) -> tuple[Array, Array]:
        if layer not in self.layers:
            made = kv(self.states).reshape(-1, 2, heads, head_dim)
            place = Place.of(made)
            dtype: Any = stored_dtype(precision, place)
            if dtype == "bfloat16":
                from ml_dtypes import bfloat16 as dtype
            k, v = (place.zeros((self.count, self.SIZE, heads, head_dim), dtype) for _ in range(2))
            ops.paged_write(made[:, 0], made[:, 1], k, v, self.copies.near(made, self.slots))
            self.layers[layer] = k, v
        return self.layers[layer]


class MemoryRows:
    """A choice of a memory's rows. What attention finds there has the same bits as in the memory itself. Neighbours
    that look at the same row, beams of a text, are one sequence to it, which reads each key once for all of them."""

    def __init__(self, blocks: MemoryBlocks, rows: Array):
        self.blocks = blocks
        self.chosen = rows
        # where the neighbours begin, and the end, (G + 1,)
        self.borders = np.array([*np.flatnonzero(np.diff(rows, prepend=-1)), len(rows)])
        self.tables = blocks.tables[rows[self.borders[:-1]]]
        self.lengths = blocks.lengths[rows[self.borders[:-1]]]
        self.each: tuple[Array, Array] | None = None  # tables and lengths of rows, not of neighbours
        self.copies = Copies()

    def copy(self) -> MemoryRows:
        """The same choice, in tables and lengths of its own."""
        return MemoryRows(self.blocks, self.chosen)

    def attend(self, layer: int, q: Array, kv: Linear, run: Run, *, precision: str, **options: Any) -> Any:
        k, v = self.blocks.of(layer, kv, q.shape[1], q.shape[2], precision)
        tables, lengths = self.tables, self.lengths
        if options.get("return_weights"):  # of each row
            if self.each is None:
                self.each = self.blocks.tables[self.chosen], self.blocks.lengths[self.chosen]
            (tables, lengths), starts = self.each, run.cu_seqlens
        else:
            if run.starts_of_memory is None:
                run.starts_of_memory = run.cu_seqlens[self.borders]
            starts = run.starts_of_memory
        tables, lengths = self.copies.near(q, tables), self.copies.near(q, lengths)
        starts = run.copies.near(q, starts)
        return ops.attention_paged(q, k, v, tables, lengths, cu_seqlens_q=starts, precision=precision, **options)


@dataclass
class Run:
    """One pass of a batch through a model: where its rows begin, and what the caller wants to see of the
    inside.

    step: the tokens follow those that a paged cache has, and are added to it. memory: for a decoder's cross-attention.
    """

    cu_seqlens: Array  # (B + 1,)
    positions: Array | None = None  # (total,), for layers that need them
    positions_here: Array | None = None  # the same in host memory, where `positions` are on a GPU
    hidden_states: list[Array] | None = None  # collects (total, C): what goes into each block, and the last result
    attentions: list[list[Array]] | None = None  # collects per block a list of B arrays (H, S_b, T_b)
    cross_attentions: list[list[Array]] | None = None  # the same of cross-attention
    step: Step | None = None
    memory: Memory | MemoryRows | None = None
    angles: dict[Rotary, tuple[Array, float]] = field(default_factory=dict)  # the same in every layer
    starts_of_memory: Array | None = None  # (G + 1,): where the rows begin that look at one row of the memory
    copies: Copies = field(default_factory=Copies)


class Norm(Protocol):
    def __call__(self, x: Array) -> Array: ...


class Layer(Protocol):
    """A sublayer's work. With a residual it returns its result plus the residual, as ops.linear adds it for
    free."""

    def __call__(self, x: Array, run: Run, residual: Array | None = None) -> Array: ...


class Linear:
    """y = activation(x W^T + b) * gate + residual, with `weight` (n_out, n_in) and `bias` (n_out,). scale: what stands
    for a gate that is not given, an array of one number."""

    scale: Array | None = None

    def __init__(self, w: Weights, n_in: int, n_out: int, *, bias: bool = True):
        self.place = w.place
        self.weight = w.matrix("weight", (n_out, n_in))
        self.bias = w.vector("bias", (n_out,)) if bias else None

    def __call__(
        self, x: Array, *, activation: str | None = None, gate: Array | None = None, residual: Array | None = None
    ) -> Array:
        if self.place.number is not None and placement.in_host_memory(x):
            x = self.place.activation(x)
        gate = self.scale if gate is None else gate
        y: Array = ops.linear(x, self.weight, self.bias, activation=activation, gate=gate, residual=residual)
        return y


def _precision(linear: Linear) -> str:
    """Of attention behind a product."""
    return "highest" if linear.weight.dtype == "float32" else "bf16"


class LayerNorm:
    """(x - mean) / sqrt(variance + eps) * weight + bias over the last axis, with the biased variance."""

    def __init__(self, w: Weights, width: int, eps: float, *, bias: bool = True):
        self.weight = w.vector("weight", (width,))
        self.bias = w.vector("bias", (width,)) if bias else None
        self.eps = eps

    def __call__(self, x: Array) -> Array:
        y: Array = ops.layer_norm(x, self.weight, self.bias, self.eps)
        return y

    def of_sum(self, x: Array, y: Array) -> Array:
        """The norm of x + y, in one pass over both."""
        result: Array = ops.layer_norm(x, self.weight, self.bias, self.eps, residual=y)[0]
        return result


class RMSNorm:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis. Gemma's 1 + weight is an `offset` rule at
    loading."""

    def __init__(self, w: Weights, width: int, eps: float):
        self.weight = w.vector("weight", (width,))
        self.eps = eps

    def __call__(self, x: Array) -> Array:
        y: Array = ops.rms_norm(x, self.weight, self.eps)
        return y


class Embedding:
    """Rows of a table (rows, width): one for each id. exact: float32 whatever the model's dtype, for positions and the
    like."""

    def __init__(self, w: Weights, rows: int, width: int, *, exact: bool = False):
        self.rows = rows
        self.dtype = w.place.activations
        self.weight = w.vector("weight", (rows, width)) if exact else w.table("weight", (rows, width))

    def __call__(self, ids: Array, first: int = 0) -> Array:
        """(total, width). first: the row of the table that id 0 has."""
        rows: Array = placement.rows(ids, self.weight[first:] if first else self.weight, self.dtype)
        return rows


class Rotary:
    """Turns queries and keys by their positions (Su et al. 2021, RoFormer): pairs (i, i + D/2) of the leading
    features of each head.

    scaling: a config's rope_scaling with what it needs of the config copied in, see
    `positions.rotary_frequencies`. Types that depend on the length decide it for each row of a batch. steady: up to
    which length of a row all have the same angles, None: always.
    """

    def __init__(self, head_dim: int, base: float, scaling: Mapping[str, Any] | None = None):
        self.base = base
        self.scaling = scaling
        self.dim = rotary_width(head_dim, None, scaling)
        self.steady = steady_length(scaling)
        for position in (0, self.steady or 0):  # a scaling that is wrong says so now
            with np.errstate(all="ignore"):
                angles, factor = self._angles(np.array([position]))
            if not np.isfinite([factor, *angles.flat]).all():
                raise ValueError("rotary: the scaling makes numbers that are not finite")
        # whether the next token's angles are worked out of the next position alone
        self.counts = rope_type(scaling) not in LENGTH_DEPENDENT
        if self.counts:
            frequencies, self.factor = rotary_frequencies(self.dim, base, scaling)
            self.frequencies = frequencies.astype(np.float32)
            self.copies = Copies()

    def _angles(self, positions: Array) -> tuple[Array, float]:
        return rotary_angles((positions.size, 1, self.dim), positions, self.dim, base=self.base, scaling=self.scaling)

    def angles(self, run: Run) -> tuple[Array, float]:
        """Of a batch's tokens, (total, 1, D / 2), and what their cos and sin are multiplied by."""
        assert run.positions is not None
        if self.counts:
            return ops.angles(run.positions, self.copies.near(run.positions, self.frequencies)), self.factor
        positions = run.positions if run.positions_here is None else run.positions_here
        rows = [self._angles(positions[a:b]) for a, b in pairwise(run.cu_seqlens.tolist()) if a < b]
        factor = rows[0][1] if rows else 1.0
        return np.concatenate([row for row, _ in rows] or [np.empty((0, 1, self.dim // 2), np.float32)]), factor

    def __call__(self, x: Array, run: Run) -> Array:
        """x (total, H, D), rotated; a new array."""
        if self not in run.angles:
            run.angles[self] = self.angles(run)
        angles, factor = run.angles[self]
        turned: Array = ops.rotate(x, run.copies.near(x, angles), factor)
        return turned


class Attention:
    """Multi-head self-attention. `qkv` holds the rows of q, k and v in one matrix: one product instead of
    three, whose result is then seen as three strided arrays without a copy. Behind weights of 16 bits or fewer, scores
    and values are products of bfloat16 too, where the CPU has them.

    kv_heads: key-value heads, each for heads / kv_heads heads in a row. head_dim: width / heads unless given. layer:
    its number in a paged cache. norm_eps: q and k are RMS-normed over D before they turn (Qwen3). options: of
    `ops.attention_varlen`: causal, window, scale, softcap, relative_bias."""

    def __init__(
        self,
        w: Weights,
        width: int,
        heads: int,
        *,
        kv_heads: int | None = None,
        head_dim: int | None = None,
        bias: bool = True,
        out_bias: bool = True,
        rotary: Rotary | None = None,
        norm_eps: float | None = None,
        layer: int = 0,
        **options: Any,
    ):
        self.heads = heads
        self.kv_heads = heads if kv_heads is None else kv_heads
        self.head_dim = width // heads if head_dim is None else head_dim
        self.qkv = Linear(w.at("qkv"), width, (heads + 2 * self.kv_heads) * self.head_dim, bias=bias)
        self.out = Linear(w.at("out"), heads * self.head_dim, width, bias=out_bias)
        self.q_norm = None if norm_eps is None else RMSNorm(w.at("q_norm"), self.head_dim, norm_eps)
        self.k_norm = None if norm_eps is None else RMSNorm(w.at("k_norm"), self.head_dim, norm_eps)
        self.rotary = rotary
        self.layer = layer
        self.options = options

    @property
    def precision(self) -> str:
        return _precision(self.qkv)

    @property
    def stored(self) -> str:
        """In what a paged cache keeps keys and values."""
        return stored_dtype(self.precision, self.qkv.place)

    def __call__(self, x: Array, run: Run, residual: Array | None = None) -> Array:
        total = len(x)
        h, both = self.heads, self.heads + self.kv_heads
        qkv = self.qkv(x).reshape(total, both + self.kv_heads, self.head_dim)
        q, k, v = qkv[:, :h], qkv[:, h:both], qkv[:, both:]
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
            if self.rotary is not None:
                q, k = self.rotary(q, run), self.rotary(k, run)
        elif self.rotary is not None:
            turned = self.rotary(qkv[:, :both], run)
            q, k = turned[:, :h], turned[:, h:]
        options = {
            **self.options,
            "precision": self.precision,
            "return_weights": run.attentions is not None,
        }
        if run.step is None:
            borders = run.copies.near(q, run.cu_seqlens)
            result = ops.attention_varlen(q, k, v, borders, borders, **options)
        else:
            run.step.write(self.layer, k, v)
            result = run.step.attend(self.layer, q, **options)
        if run.attentions is not None:
            result, weights = result
            run.attentions.append(weights)
        return self.out(result.reshape(total, h * self.head_dim), residual=residual)


class CrossAttention:
    """Attention of a decoder's tokens to an encoder's, those of the same row of the batch. `kv` holds the rows of k
    and v."""

    def __init__(
        self,
        w: Weights,
        width: int,
        heads: int,
        *,
        memory_width: int | None = None,
        head_dim: int | None = None,
        bias: bool = True,
        layer: int = 0,
        **options: Any,
    ):
        self.heads = heads
        self.head_dim = width // heads if head_dim is None else head_dim
        inner = heads * self.head_dim
        self.q = Linear(w.at("q"), width, inner, bias=bias)
        self.kv = Linear(w.at("kv"), width if memory_width is None else memory_width, 2 * inner, bias=bias)
        self.out = Linear(w.at("out"), inner, width, bias=bias)
        self.layer = layer
        self.options = options

    def __call__(self, x: Array, run: Run, residual: Array | None = None) -> Array:
        memory = run.memory
        assert memory is not None
        result = memory.attend(
            self.layer,
            self.q(x).reshape(-1, self.heads, self.head_dim),
            self.kv,
            run,
            **self.options,
            precision=_precision(self.q),
            return_weights=run.cross_attentions is not None,
        )
        if run.cross_attentions is not None:
            result, weights = result
            run.cross_attentions.append(weights)
        return self.out(result.reshape(len(x), self.heads * self.head_dim), residual=residual)


class FeedForward:
    """down(activation(up(x)))"""

    def __init__(self, w: Weights, width: int, inner: int, activation: str, *, bias: bool = True):
        self.up = Linear(w.at("up"), width, inner, bias=bias)
        self.down = Linear(w.at("down"), inner, width, bias=bias)
        self.activation = activation

    def __call__(self, x: Array, run: Run, residual: Array | None = None) -> Array:
        return self.down(self.up(x, activation=self.activation), residual=residual)


class GatedFeedForward:
    """down(activation(gate(x)) * up(x)) (Shazeer 2020, GLU variants)"""

    def __init__(self, w: Weights, width: int, inner: int, activation: str, *, bias: bool = False):
        self.gate = Linear(w.at("gate"), width, inner, bias=bias)
        self.up = Linear(w.at("up"), width, inner, bias=bias)
        self.down = Linear(w.at("down"), inner, width, bias=bias)
        self.activation = activation

    def __call__(self, x: Array, run: Run, residual: Array | None = None) -> Array:
        return self.down(self.gate(x, activation=self.activation, gate=self.up(x)), residual=residual)


class Sublayer:
    """norm_residual(x + norm_out(layer(norm_in(x))))"""

    def __init__(
        self,
        layer: Layer,
        *,
        norm_in: Norm | None = None,
        norm_out: Norm | None = None,
        norm_residual: Norm | None = None,
    ):
        self.layer = layer
        self.norm_in = norm_in
        self.norm_out = norm_out
        self.norm_residual = norm_residual

    def __call__(self, x: Array, run: Run) -> Array:
        h = x if self.norm_in is None else self.norm_in(x)
        if self.norm_out is None:
            x = self.layer(h, run, residual=x)
        else:
            x = ops.scaled_sum(self.norm_out(self.layer(h, run)), 1, x)
        return x if self.norm_residual is None else self.norm_residual(x)


class Block:
    def __init__(self, *sublayers: Sublayer):
        self.sublayers = sublayers

    def __call__(self, x: Array, run: Run) -> Array:
        for sublayer in self.sublayers:
            x = sublayer(x, run)
        return x


def block(
    w: Weights,
    norm: Callable[[Weights], Norm],
    attention: Layer,
    ffn: Layer,
    *,
    cross: Layer | None = None,
    pre: bool = False,
    out: bool = False,
) -> Block:
    """Attention, cross-attention if there is any, and feed-forward, with one norm each: of what goes in (`pre`), or of
    the sum; `out`: and one of what comes out. The norms' weights are attention_norm, cross_norm and ffn_norm, and
    attention_out_norm and so on."""
    slots = {"norm_in" if pre else "norm_residual": "norm"} | ({"norm_out": "out_norm"} if out else {})
    layers = {"attention": attention, "cross": cross, "ffn": ffn}

    def norms(name: str) -> dict[str, Norm]:
        return {slot: norm(w.at(f"{name}_{suffix}")) for slot, suffix in slots.items()}

    return Block(*(Sublayer(x, **norms(name)) for name, x in layers.items() if x is not None))


class Stack:
    """Blocks one after another, then the final norm of pre-norm models. shrunk: how many times as large the states
    before that norm are in truth."""

    def __init__(self, blocks: Sequence[Block], final_norm: Norm | None = None, *, shrunk: int = 1):
        self.blocks = list(blocks)
        self.final_norm = final_norm
        self.shrunk = shrunk

    @property
    def cache_dtype(self) -> str:
        """In what a paged cache may keep keys and values."""
        layers = [sublayer.layer for block in self.blocks for sublayer in block.sublayers]
        dtypes = {layer.stored for layer in layers if isinstance(layer, Attention)}
        return dtypes.pop() if len(dtypes) == 1 else "float32"

    def __call__(self, x: Array, run: Run) -> Array:
        for block in self.blocks:
            if run.hidden_states is not None:
                run.hidden_states.append(x if self.shrunk == 1 else placement.host(x) * np.float32(self.shrunk))
            x = block(x, run)
        if self.final_norm is not None:
            x = self.final_norm(x)
        if run.hidden_states is not None:
            run.hidden_states.append(x)
        return x
