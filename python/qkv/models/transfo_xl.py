"""Transformer-XL (Dai et al. 2019): a decoder that attends to a memory of the text before, by distance instead of
position, with a vocabulary in clusters that get narrower the rarer their words (Baevski and Auli 2018; Grave et al.
2016).

With q and k of tokens d apart, r_d made of sinusoids of d, and two vectors u and v a head,

    score = ((q + u) . k + (q + v) . r_d) / sqrt(D)

As in transformers (4.35.2, the last version that has it) a memory that is not given is `mem_len` zeros, which take part
in the softmax, and the memory that comes back is each layer's last `mem_len` inputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from .. import ops
from ..arrays import as_numpy
from ..config import MAX_LAYERS, MAX_SIZE, Config
from ..generate import generate, stream
from ..layers import Array, Embedding, FeedForward, LayerNorm, Linear, Run, Stack, block
from ..outputs import ModelOutput
from ..packing import Packed
from ..placement import brought, concatenate, contiguous, host, strided, take
from ..weights import Rule, Tie, Weights, drop, rename, split, tie, transpose
from .base import Model
from .heads import Fields


@dataclass
class Recurrence(Run):
    """A pass with what came before. sinusoids: (T, C), of the distances from the last token back to the first key."""

    memories: Sequence[Array] = ()  # per layer (B, M, C)
    sinusoids: Array | None = None


class RelativeAttention:
    """Attention of a layer's tokens to its memory and to themselves. memory_norm: of a pre-norm model; its tokens come
    normed. window: how many keys a token sees, None for all."""

    def __init__(
        self,
        w: Weights,
        width: int,
        heads: int,
        head_dim: int,
        *,
        layer: int,
        memory_norm: LayerNorm | None,
        window: int | None,
    ):
        inner = heads * head_dim
        self.heads, self.head_dim, self.layer = heads, head_dim, layer
        self.q = Linear(w.at("q"), width, inner, bias=False)
        self.kv = Linear(w.at("kv"), width, 2 * inner, bias=False)
        self.r = Linear(w.at("r"), width, inner, bias=False)
        self.out = Linear(w.at("out"), inner, width, bias=False)
        self.content_bias = w.vector("content_bias", (heads, head_dim))  # u
        self.distance_bias = w.vector("distance_bias", (heads, head_dim))  # v
        self.memory_norm = memory_norm
        self.window = None if window is None else (window - 1, None)

    def __call__(self, x: Array, run: Run, residual: Array | None = None) -> Array:
        assert isinstance(run, Recurrence) and run.sinusoids is not None
        memory = run.memories[self.layer]
        (rows, before, width), h, d = memory.shape, self.heads, self.head_dim
        if self.memory_norm is not None:
            memory = self.memory_norm(contiguous(memory).reshape(rows * before, width)).reshape(memory.shape)
        count = len(run.sinusoids) - before
        keys = concatenate([memory, x.reshape(rows, count, width)], axis=1)
        kv = self.kv(keys.reshape(-1, width)).reshape(rows, before + count, 2, h, d)
        q = self.q(x)
        result = ops.attention(
            ops.scaled_sum(q, 1, self.content_bias.reshape(-1)).reshape(rows, count, h, d),
            kv[:, :, 0],
            kv[:, :, 1],
            bias=self._by_distance(q, rows, count, run.sinusoids),
            causal=True,
            window=self.window,
            layout="bshd",
            precision="highest" if self.q.weight.dtype == "float32" else "bf16",
            return_weights=run.attentions is not None,
        )
        if run.attentions is not None:
            result, weights = result
            run.attentions.append(list(host(weights)))
        return self.out(result.reshape(len(x), h * d), residual=residual)

    def _by_distance(self, q: Array, rows: int, count: int, sinusoids: Array) -> Array:
        """(B, H, S, T): (q + v) . r_d / sqrt(D) of the query i and the key j that are d = i + M - j apart."""
        h, d = self.heads, self.head_dim
        r = self.r(sinusoids).reshape(-1, h, d)  # (T, H, D), the farthest first
        scaled = ops.scaled_sum(ops.scaled_sum(q, 1, self.distance_bias.reshape(-1)), d**-0.5)
        scores = ops.matmul(scaled.reshape(-1, h, d).transpose(1, 0, 2), r.transpose(1, 2, 0))
        # Query i finds key j in column S - 1 - i + j. So its keys begin one column earlier than those of the query
        # before, and a view does it. Behind its row's end are keys that come after it, which causal attention leaves.
        of_head, of_query, of_key = (stride // scores.itemsize for stride in scores.strides)
        return strided(
            scores[:, :, count - 1 :],
            (rows, h, count, len(r)),
            (count * of_query, of_head, of_query - of_key, of_key),
        )


class AdaptiveEmbedding:
    """scale * project_i(table_i[id - start_i]) of an id in cluster i. sizes, widths: of the clusters' tables."""

    def __init__(self, w: Weights, sizes: Sequence[int], widths: Sequence[int], width: int, *, project: bool):
        self.starts = np.concatenate([[0], np.cumsum(sizes)])
        self.width = width
        self.tables = [Embedding(w.at(f"{i}.word"), *shape) for i, shape in enumerate(zip(sizes, widths, strict=True))]
        self.projects = [
            Linear(w.at(f"{i}.project"), narrow, width, bias=False) if project else None
            for i, narrow in enumerate(widths)
        ]

    def __call__(self, packed: Packed) -> Array:
        cluster = np.searchsorted(self.starts, packed.ids, side="right") - 1
        parts, order = [], []
        for i, (table, project) in enumerate(zip(self.tables, self.projects, strict=True)):
            here = np.flatnonzero(cluster == i)
            if here.size or not i:
                rows = table(packed.ids[here] - self.starts[i])
                parts.append(rows if project is None else project(rows))
                order.append(here)
        x = take(concatenate(parts), np.argsort(np.concatenate(order)))
        return ops.scaled_sum(x, self.width**0.5)


class AdaptiveSoftmax:
    """Log-probabilities of all tokens: of the first cluster's and of the other clusters together, and from there of
    each one's tokens."""

    def __init__(self, w: Weights, sizes: Sequence[int], widths: Sequence[int], width: int, *, project: bool):
        self.projects = [
            Linear(w.at(f"{i}.project"), width, narrow, bias=False) if project else None
            for i, narrow in enumerate(widths)
        ]
        self.decoders = [
            Linear(w.at(f"{i}.decoder"), narrow, size)
            for i, (size, narrow) in enumerate(zip(sizes, widths, strict=True))
        ]
        self.clusters = Linear(w.at("clusters"), widths[0], len(sizes) - 1) if len(sizes) > 1 else None
        self.first, self.vocabulary = sizes[0], sum(sizes)

    def logits(self, x: Array) -> Array:
        """(n, C) -> (n, V), normalised: the exponentials of a row add up to 1."""
        narrow = [x if project is None else project(x) for project in self.projects]
        scores = [host(decoder(h)) for decoder, h in zip(self.decoders, narrow, strict=True)]
        if self.clusters is not None:
            scores[0] = np.concatenate([scores[0], host(self.clusters(narrow[0]))], axis=1)
        head, *tails = (ops.log_softmax(part) for part in scores)
        for i, tail in enumerate(tails):
            tail += head[:, self.first + i, None]
        return np.concatenate([head[:, : self.first], *tails], axis=1)

    def __call__(self, x: Array, pooled: Array | None, packed: Packed) -> Fields:
        return {"prediction_scores": packed.pad(self.logits(x))}  # (B, S, V)


class BeforePadHead:
    """Labels for a row: a linear layer without bias on the token before the first pad token, or on the last if there
    is none, or it comes first. pad: its id; None: the last token."""

    def __init__(self, w: Weights, width: int, labels: int, pad: int | None):
        self.score = Linear(w.at("score"), width, labels, bias=False)
        self.pad = pad

    def __call__(self, x: Array, pooled: Array | None, packed: Packed) -> Fields:
        assert packed.shape is not None
        rows, count = packed.shape
        if not count:
            raise ValueError("input_ids: a row must have a token to be classified")
        ids = packed.ids.reshape(rows, count)
        last = np.zeros(rows, np.int64) if self.pad is None else (ids == self.pad).argmax(axis=1)
        return {"logits": self.score(take(x, np.arange(rows) * count + (last - 1) % count))}  # (B, labels)


class Scores(ModelOutput):
    """An output whose `prediction_scores` have the name `logits` too, as in transformers."""

    @property
    def logits(self) -> Array:
        scores: Array = self["prediction_scores"]
        return scores


class TransfoXL(Model):
    """embeddings -> stack -> head; without a head the hidden states are the result.

    mem_len: how many inputs of each layer are remembered. farthest: from which distance on all are alike, None: never.
    """

    inputs = ("input_ids", "attention_mask", "mems")
    token_types = False

    def __init__(
        self,
        embeddings: AdaptiveEmbedding,
        stack: Stack,
        *,
        heads: int,
        mem_len: int,
        farthest: int | None,
        head: Any = None,
    ):
        self.embeddings = embeddings
        self.stack = stack
        self.heads = heads
        self.mem_len = mem_len
        self.farthest = farthest
        self.head = head
        self.sinusoids: Array | None = None

    def run(self, given: Mapping[str, Any], *, attentions: bool, hidden_states: bool) -> ModelOutput:
        mems = given["mems"]
        vocabulary = int(self.embeddings.starts[-1])
        packed = Packed.from_padded(given["input_ids"], given["attention_mask"], vocabulary=vocabulary)
        assert packed.shape is not None
        if packed.mask is not None:
            raise ValueError(
                f"attention_mask: a {self.architecture} cannot leave tokens out, and its memory goes on from all of "
                "them; run rows of different lengths apart"
            )
        memories = self._memories(mems, packed.shape[0])
        before = memories[0].shape[1] if memories else 0
        run = Recurrence(
            packed.cu_seqlens,
            hidden_states=[],
            attentions=[] if attentions else None,
            memories=memories,
            sinusoids=self._sinusoids(before + packed.shape[1]),
        )
        x = self.stack(self.embeddings(packed), run)
        assert run.hidden_states is not None
        states = tuple(packed.pad(state) for state in run.hidden_states)
        memories = [host(memory) for memory in memories]
        fields = {"last_hidden_state": packed.pad(x)} if self.head is None else self.head(x, None, packed)
        kind = Scores if "prediction_scores" in fields else ModelOutput
        return kind(
            **fields,
            mems=None if mems is None and not self.mem_len else self._remember(memories, states),
            hidden_states=states if hidden_states else None,
            attentions=None if run.attentions is None else tuple(self._stacked(w, packed) for w in run.attentions),
        )

    def advance(self, ids: Array, memories: Sequence[Array] | None = None) -> tuple[Array, list[Array]]:
        """Ids (B, S), checked by the caller, after what the memories have, L arrays (B, M, C) or None. Returns the last
        hidden states of each row's last token, (B, C), and the next memories."""
        rows, count = ids.shape
        packed = Packed.from_lists(ids.tolist())
        packed.shape = rows, count
        memories = self._memories(None, rows) if memories is None else memories
        before = memories[0].shape[1] if memories else 0
        run = Recurrence(
            packed.cu_seqlens, hidden_states=[], memories=memories, sinusoids=self._sinusoids(before + count)
        )
        x = self.stack(self.embeddings(packed), run)
        assert run.hidden_states is not None
        both = [
            concatenate([memory, inputs.reshape(rows, count, -1)], axis=1)
            for memory, inputs in zip(memories, run.hidden_states[:-1], strict=True)
        ]
        return take(x, packed.cu_seqlens[1:] - 1), [x[:, max(x.shape[1] - self.mem_len, 0) :] for x in both]

    def generate(self, input_ids: Any = None, attention_mask: Any = None, **arguments: Any) -> Any:
        """Token ids that go on from prompts, int64 (rows, L), prompts included; see qkv.generate.generate."""
        return generate(self, input_ids, attention_mask, **arguments)

    def stream(self, input_ids: Any = None, attention_mask: Any = None, **arguments: Any) -> Iterator[Array]:
        """The tokens of each step as they come, int64 (rows,); see qkv.generate.stream."""
        return stream(self, input_ids, attention_mask, **arguments)

    def _memories(self, mems: Any, rows: int) -> list[Array]:
        """A user's memory as L arrays (B, M, C)."""
        layers, width = len(self.stack.blocks), self.embeddings.width
        if mems is None:
            return [self.place.zeros((rows, self.mem_len, width), self.place.activations)] * layers
        if not isinstance(mems, Iterable):
            raise TypeError(f"mems: expected {layers} arrays; got {type(mems).__name__}")
        arrays = [as_numpy("model", f"mems[{i}]", brought(memory)) for i, memory in enumerate(mems)]
        if len(arrays) != layers:
            raise ValueError(f"mems: expected {layers} arrays, one for each layer; got {len(arrays)}")
        for i, array in enumerate(arrays):
            if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
                raise TypeError(f"mems[{i}]: expected floats; got {array.dtype}")
            if array.ndim != 3 or array.shape[1:] != (rows, width) or array.shape != arrays[0].shape:
                raise ValueError(
                    f"mems[{i}]: expected shape (tokens, {rows}, {width}), as many tokens in each; got {array.shape}"
                )
        return [self.place.activation(array.transpose(1, 0, 2).astype(np.float32)) for array in arrays]

    def _remember(self, memories: list[Array], states: tuple[Array, ...]) -> tuple[Array, ...]:
        kept = []
        for memory, inputs in zip(memories, states[:-1], strict=True):
            both = np.concatenate([memory, inputs], axis=1)
            kept.append(np.ascontiguousarray(both[:, max(both.shape[1] - self.mem_len, 0) :].transpose(1, 0, 2)))
        return tuple(kept)

    def _sinusoids(self, count: int) -> Array:
        """(count, C) of the distances count - 1 ... 0, where the model is: the last rows of those that are there."""
        table = self.sinusoids  # another thread may put a shorter one there
        if table is None or count > len(table):
            rows = max(count, 0 if table is None else 2 * len(table))
            self.sinusoids = table = self.place.activation(self._sinusoids_of(rows))
        return table[len(table) - count :]

    def _sinusoids_of(self, count: int) -> Array:
        """(count, C) by float32 angles as the published model was trained with."""
        distances = np.arange(count, dtype=np.float32)[::-1]
        if self.farthest is not None:
            distances = np.minimum(distances, np.float32(self.farthest))
        width = self.embeddings.width
        angles = np.outer(distances, 1 / np.float32(10000) ** (np.arange(0, width, 2, dtype=np.float32) / width))
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)

    def _stacked(self, weights: list[Array], packed: Packed) -> Array:
        """B arrays (H, S, T) -> (B, H, S, T)"""
        assert packed.shape is not None
        return np.stack(weights) if weights else np.zeros((0, self.heads, packed.shape[1], 0), np.float32)


@dataclass(frozen=True)
class Vocabulary:
    """How tokens and widths are cut up. tied: whether the head's projection of each cluster is the embedding's."""

    sizes: list[int]
    widths: list[int]
    tied: list[bool]
    project: bool  # whether there are projections at all
    narrowing: bool  # whether clusters have tables of their own

    @classmethod
    def of(cls, config: Config) -> Vocabulary:
        total = config.integer("vocab_size", 267735)
        cutoffs = config.get("cutoffs")
        cutoffs = [20000, 40000, 200000] if cutoffs is None else cutoffs
        if not isinstance(cutoffs, list) or len(cutoffs) > 64 or not all(type(n) is int for n in cutoffs):
            raise config.error("cutoffs", "a list of at most 64 integers")
        ends = [0, *cutoffs, total]
        sizes = [end - start for start, end in pairwise(ends)]
        if min(sizes) < 1:
            raise config.error("cutoffs", f"increasing, between 0 and vocab_size, {total}")
        narrow, divisor = config.integer("d_embed", 1024), config.integer("div_val", 4)
        widths = [narrow // divisor**i for i in range(len(sizes))]
        if not widths[-1]:
            raise config.error("div_val", f"small enough that d_embed, {narrow}, lasts for {len(sizes)} clusters")
        tied = config.get("tie_projs")
        if tied is None:
            tied = [False] + [config.flag("proj_share_all_but_first", True)] * len(cutoffs)
        if not isinstance(tied, list) or not all(type(flag) is bool for flag in tied) or len(tied) > len(sizes):
            raise config.error("tie_projs", "a list of true or false, at most one for each cluster")
        return cls(sizes, widths, tied, divisor > 1 or narrow != _width(config), divisor > 1)


def _width(config: Config) -> int:
    return config.integer("d_model", 1024)


def _layers(config: Config) -> int:
    return config.integer("n_layer", 18, low=0, high=MAX_LAYERS)


BODY = [
    drop("pos_emb.inv_freq"),
    rename("layers.{i}.dec_attn.r_net.weight", "blocks.{i}.attention.r.weight"),
    rename("layers.{i}.dec_attn.o_net.weight", "blocks.{i}.attention.out.weight"),
    rename("layers.{i}.dec_attn.layer_norm.*", "blocks.{i}.attention_norm.*"),
    rename("layers.{i}.dec_attn.r_w_bias", "blocks.{i}.attention.content_bias"),
    rename("layers.{i}.dec_attn.r_r_bias", "blocks.{i}.attention.distance_bias"),
    rename("layers.{i}.pos_ff.CoreNet.0.*", "blocks.{i}.ffn.up.*"),
    rename("layers.{i}.pos_ff.CoreNet.3.*", "blocks.{i}.ffn.down.*"),
    rename("layers.{i}.pos_ff.layer_norm.*", "blocks.{i}.ffn_norm.*"),
]


def _vocabulary_rules(config: Config, *, head: bool) -> list[Rule | Tie]:
    """For the tables of the embedding and, beside them, of the head."""
    vocabulary = Vocabulary.of(config)
    clusters = range(len(vocabulary.sizes))
    words = [f"embeddings.{i}.word.weight" for i in clusters]
    projects = [f"embeddings.{i}.project.weight" for i in clusters]
    rules: list[Rule | Tie] = []
    if head and vocabulary.project:
        for i, tied in enumerate(vocabulary.tied):
            source = f"word_emb.emb_projs.{i if vocabulary.narrowing else 0}"
            rules.append(tie(source, f"crit.out_projs.{i}", when=tied))
    if head:
        rules += [
            transpose("crit.out_projs.{i}", "head.{i}.project.weight"),
            rename("crit.cluster_weight", "head.clusters.weight"),
            rename("crit.cluster_bias", "head.clusters.bias"),
        ]
    else:
        rules.append(drop("crit.*"))
    if vocabulary.narrowing:
        rules += [
            rename("word_emb.emb_layers.{i}.weight", "embeddings.{i}.word.weight"),
            rename("word_emb.emb_projs.{i}", "embeddings.{i}.project.weight"),
            rename("crit.out_layers.{i}.*", "head.{i}.decoder.*"),
        ]
    else:  # one table for all clusters
        rules += [
            split("word_emb.emb_layers.0.weight", words, vocabulary.sizes),
            rename("word_emb.emb_projs.0", projects[0]),
            tie(*projects),
            split("crit.out_layers.0.weight", [f"head.{i}.decoder.weight" for i in clusters], vocabulary.sizes),
            split("crit.out_layers.0.bias", [f"head.{i}.decoder.bias" for i in clusters], vocabulary.sizes),
        ]
    if head:
        tied = config.flag("tie_word_embeddings", True)
        rules += [tie(word, f"head.{i}.decoder.weight", when=tied) for i, word in enumerate(words)]
    return rules


@dataclass(frozen=True)
class XL:
    """A class of the family. task: lm, classify; None: hidden states."""

    task: str | None = None
    prefixes = ("transformer.",)

    def rules(self, config: Config) -> list[Rule | Tie]:
        inner = config.integer("n_head", 16) * config.integer("d_head", 64)
        targets = ["blocks.{i}.attention.q.weight", "blocks.{i}.attention.kv.weight"]
        rules: list[Rule | Tie] = [
            *BODY,
            split("layers.{i}.dec_attn.qkv_net.weight", targets, [inner, 2 * inner]),
            *_vocabulary_rules(config, head=self.task == "lm"),
        ]
        if not config.flag("untie_r", True):
            for theirs, ours in (("r_w_bias", "content_bias"), ("r_r_bias", "distance_bias")):
                rules.append(tie(theirs, *(f"blocks.{i}.attention.{ours}" for i in range(_layers(config)))))
        rules.append(rename("score.weight", "head.score.weight") if self.task == "classify" else drop("score.weight"))
        return rules

    def build(self, config: Config, w: Weights) -> Model:
        config.only("quantization_config", None)
        config.only("attn_type", 0)
        config.integer("sample_softmax", -1, low=-MAX_SIZE, high=0)  # above 0 it would be sampled
        width, heads, head_dim = _width(config), config.integer("n_head", 16), config.integer("d_head", 64)
        if width % 2:
            raise config.error("d_model", "even")
        inner, eps = config.integer("d_inner", 4096), config.number("layer_norm_epsilon", 1e-5)
        pre = config.flag("pre_lnorm", False)
        mem_len = config.integer("mem_len", 1600, low=0, high=2**20)  # so many zeros a call begins with
        window = mem_len if config.flag("same_length", True) else None
        if window == 0:
            raise config.error("same_length", "false where mem_len is 0: a token would see nothing, not even itself")
        farthest = config.integer("clamp_len", 1000, low=-MAX_SIZE)

        def norm(w: Weights) -> LayerNorm:
            return LayerNorm(w, width, eps)

        blocks = []
        for i in range(_layers(config)):
            w_i = w.at(f"blocks.{i}")
            attention = RelativeAttention(
                w_i.at("attention"),
                width,
                heads,
                head_dim,
                layer=i,
                memory_norm=norm(w_i.at("attention_norm")) if pre else None,
                window=window,
            )
            blocks.append(block(w_i, norm, attention, FeedForward(w_i.at("ffn"), width, inner, "relu"), pre=pre))
        vocabulary = Vocabulary.of(config)
        sizes, widths, project = vocabulary.sizes, vocabulary.widths, vocabulary.project
        head: Any = None
        if self.task == "lm":
            head = AdaptiveSoftmax(w.at("head"), sizes, widths, width, project=project)
        elif self.task == "classify":
            if config.integer("d_embed", 1024) != width:
                raise config.error("d_embed", f"d_model, {width}, for classification: the head is that wide")
            pad = None if config.get("pad_token_id") is None else config.integer("pad_token_id", 0, low=0)
            head = BeforePadHead(w.at("head"), width, config.num_labels(), pad)
        return TransfoXL(
            AdaptiveEmbedding(w.at("embeddings"), sizes, widths, width, project=project),
            Stack(blocks),
            heads=heads,
            mem_len=mem_len,
            farthest=farthest if farthest > 0 else None,
            head=head,
        )


ARCHITECTURES = {
    "TransfoXLModel": XL(),
    "TransfoXLLMHeadModel": XL("lm"),
    "TransfoXLForSequenceClassification": XL("classify"),
}
MODEL_TYPES = {"transfo-xl": "TransfoXLModel"}
