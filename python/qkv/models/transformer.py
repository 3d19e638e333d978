"""The original Transformer (Vaswani et al. 2017): the stacks of torch.nn.Transformer, TransformerEncoder and
TransformerDecoder, from their state dicts, with or without the embeddings and the generator of the paper around them.

torch keeps no configuration with the weights, so a dictionary has to tell: `architectures` with the class's name, and
the class's arguments under torch's names. A TransformerEncoder or TransformerDecoder has a final norm if its weights
have one; a Transformer always has both.

    Transformer         model(source, mask, decoder_input_ids=target, decoder_attention_mask=...)
    TransformerEncoder  model(source, mask)
    TransformerDecoder  model(memory, mask, decoder_input_ids=target, decoder_attention_mask=...)

`vocab_size` in the dictionary says that the source is token ids, with a table `src_embed.weight`; `tgt_vocab_size`, or
else `vocab_size`, that the target is, with `tgt_embed.weight`. Embeddings are multiplied by sqrt(d_model), and
sinusoids are added, for up to `max_len` tokens. `generator.weight` and `generator.bias`, if they are there, make logits
of the last stack's result; `tie_word_embeddings` (false): the tables and the generator are one matrix. Without a
vocabulary the stack takes float arrays (B, S, d_model) where token ids would stand.

A mask is 1 or True for what is real. The target sees what is before it only, unless `tgt_is_causal` is false; the
source does likewise if `src_is_causal`, or `is_causal` for a TransformerEncoder, is true.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..arrays import as_numpy
from ..config import MAX_LAYERS, Config
from ..layers import Array, Attention, CrossAttention, FeedForward, LayerNorm, Stack, block
from ..packing import Packed, regular
from ..weights import Rule, Tie, Weights, drop, rename, split, tie
from .base import Model
from .heads import LMHead
from .seq2seq import EncoderDecoder, Side
from .tokens import Embeddings, SinusoidalPositions, TokenModel

KEYS = (
    *("architectures", "model_type", "d_model", "nhead", "num_encoder_layers", "num_decoder_layers", "dim_feedforward"),
    *("activation", "layer_norm_eps", "norm_first", "bias", "batch_first", "dropout", "device", "dtype"),
    *("vocab_size", "tgt_vocab_size", "max_len", "tie_word_embeddings", "memory_is_causal"),
    *("src_is_causal", "tgt_is_causal", "is_causal", "pad_token_id", "bos_token_id", "eos_token_id"),
    *("decoder_start_token_id", "torch_dtype", "transformers_version", "_name_or_path"),
)
NORMS = {"encoder": ("attention", "ffn"), "decoder": ("attention", "cross", "ffn")}


def _stack_rules(kind: str, theirs: str, ours: str, width: int) -> list[Rule | Tie]:
    """theirs, ours: what stands before the names."""
    layer, block = theirs + "layers.{i}.", ours + "blocks.{i}."
    cross = layer + "multihead_attn."
    rules: list[Rule | Tie] = [
        rename(layer + "self_attn.in_proj_weight", block + "attention.qkv.weight"),
        rename(layer + "self_attn.in_proj_bias", block + "attention.qkv.bias"),
        rename(layer + "self_attn.out_proj.*", block + "attention.out.*"),
        rename(layer + "linear1.*", block + "ffn.up.*"),
        rename(layer + "linear2.*", block + "ffn.down.*"),
        *(rename(f"{layer}norm{n}.*", f"{block}{name}_norm.*") for n, name in enumerate(NORMS[kind], 1)),
        rename(theirs + "norm.*", ours + "norm.*"),
    ]
    if kind == "decoder":
        sizes = width, 2 * width
        for part in ("weight", "bias"):
            targets = [f"{block}cross.q.{part}", f"{block}cross.kv.{part}"]
            rules.append(split(f"{cross}in_proj_{part}", targets, sizes))
        rules.append(rename(cross + "out_proj.*", block + "cross.out.*"))
    return rules


class PackedVectors(Packed):
    """A batch of rows of vectors; the ids mean nothing."""

    vectors: Array  # (total, C)


class Vectors(Embeddings):
    """Stands where embeddings would, for a stack that takes vectors as they are."""

    def __init__(self, w: Weights, width: int):
        self.place = w.place
        self.width = width
        self.type = self.types = self.positions = None

    def pack(
        self, input_ids: Any, attention_mask: Any, token_type_ids: Any, position_ids: Any, prefix: str = ""
    ) -> Packed:
        for name, value in (("token_type_ids", token_type_ids), ("position_ids", position_ids)):
            if value is not None:
                raise ValueError(f"{name}: a stack without embeddings has no such input")
        name = f"{prefix}input_ids"
        if isinstance(input_ids, (list, tuple)):
            array = regular(name, input_ids, f"; pad them and pass {prefix}attention_mask")
        else:
            array = as_numpy("model", name, input_ids)
        if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
            raise TypeError(
                f"{name}: expected floats, as there are no embeddings (no vocab_size in the config); got {array.dtype}"
            )
        if array.ndim != 3 or array.shape[2] != self.width:
            raise ValueError(f"{name}: expected shape (batch, tokens, {self.width}); got {array.shape}")
        ids = np.zeros(array.shape[:2], np.int64)
        packed = PackedVectors.from_padded(ids, attention_mask, vocabulary=1, prefix=prefix)
        assert isinstance(packed, PackedVectors)
        real = array.reshape(-1, self.width) if packed.mask is None else array[packed.mask]
        packed.vectors = self.place.activation(real.astype(np.float32))
        return packed

    def __call__(self, packed: Packed) -> Array:
        assert isinstance(packed, PackedVectors)
        return packed.vectors


def _width(config: Config) -> int:
    return config.integer("d_model", 512)


def _vocabulary(config: Config, kind: str) -> int | None:
    """Of the source (encoder) or the target; None: it is vectors."""
    names = ("vocab_size",) if kind == "encoder" else ("tgt_vocab_size", "vocab_size")
    return next((config.integer(name, 0) for name in names if config.get(name) is not None), None)


def _embeddings(config: Config, w: Weights, kind: str) -> Embeddings:
    width, vocabulary = _width(config), _vocabulary(config, kind)
    if vocabulary is None:
        return Vectors(w, width)
    positions = SinusoidalPositions(w.place, config.integer("max_len", 5000), width, interleaved=True)
    return Embeddings(w, vocabulary, width, positions=positions, scale=width**0.5)


@dataclass(frozen=True)
class Transformer:
    """One of torch's classes. sides: the stacks that it has. prefixes: what files may have before the names."""

    sides: tuple[str, ...]
    prefixes: tuple[str, ...]

    def _place(self, kind: str) -> str:
        """What stands before the names of a stack."""
        return f"{kind}." if len(self.sides) == 2 else ""

    def rules(self, config: Config) -> list[Rule | Tie]:
        rules: list[Rule | Tie] = [
            rename("src_embed.weight", "source.word.weight"),
            rename("tgt_embed.weight", "target.word.weight"),
            rename("generator.*", "head.decoder.*"),
        ]
        for kind in self.sides:
            rules += _stack_rules(kind, self._place(kind), self._place(kind), _width(config))
        if len(self.sides) == 1:  # of a file with both stacks
            other = "decoder" if self.sides == ("encoder",) else "encoder"
            rules += [drop(f"{other}.layers.*"), drop(f"{other}.norm.*")]
        tied = config.flag("tie_word_embeddings", False)
        tables = ["source.word.weight", "target.word.weight"]
        if _vocabulary(config, "encoder") != _vocabulary(config, "decoder") and self.sides != ("encoder",):
            tables = tables[1:]  # the source has a vocabulary of its own
        return [*rules, tie(*tables, "head.decoder.weight", when=tied)]

    def _stack(self, config: Config, w: Weights, kind: str) -> Stack:
        width, heads = _width(config), config.integer("nhead", 8)
        if width % heads:
            raise config.error("d_model", f"a multiple of nhead, {heads}")
        inner = config.integer("dim_feedforward", 2048)
        activation = config.activation("activation", "relu")
        eps, bias = config.number("layer_norm_eps", 1e-5), config.flag("bias", True)
        pre = config.flag("norm_first", False)
        if kind == "decoder":
            causal = config.flag("tgt_is_causal", True)
        else:
            causal = config.flag("src_is_causal" if len(self.sides) == 2 else "is_causal", False)
        count = "num_layers"
        if len(self.sides) == 2:
            count = f"num_{kind}_layers"
        elif config.get(count) is None:
            raise config.error(count, "given")

        def norm(w: Weights) -> LayerNorm:
            return LayerNorm(w, width, eps, bias=bias)

        blocks = [
            block(
                w_i := w.at(f"blocks.{i}"),
                norm,
                Attention(w_i.at("attention"), width, heads, bias=bias, out_bias=bias, layer=i, causal=causal),
                FeedForward(w_i.at("ffn"), width, inner, activation, bias=bias),
                cross=CrossAttention(w_i.at("cross"), width, heads, bias=bias, layer=i) if kind == "decoder" else None,
                pre=pre,
            )
            for i in range(config.integer(count, 6, low=0, high=MAX_LAYERS))
        ]
        final = len(self.sides) == 2 or "norm.weight" in w
        return Stack(blocks, norm(w.at("norm")) if final else None)

    def build(self, config: Config, w: Weights) -> Model:
        config.only("memory_is_causal", False)
        unknown = [name for name in config if name not in KEYS and not (name == "num_layers" and len(self.sides) == 1)]
        if unknown:  # nobody but the user writes this, so what means nothing is a mistake
            near = difflib.get_close_matches(unknown[0], KEYS, n=1)
            raise config.error(unknown[0], "absent: it is no key of this class" + (f" ({near[0]}?)" if near else ""))
        width, heads = _width(config), config.integer("nhead", 8)
        stacks = {kind: self._stack(config, w.at(kind) if self._place(kind) else w, kind) for kind in self.sides}
        last = self.sides[-1]
        head = None
        if "head.decoder.weight" in w:
            rows = _vocabulary(config, "decoder")
            if rows is None:
                raise config.error("vocab_size", "given, as there is a generator")
            head = LMHead(w.at("head"), width, rows, bias="head.decoder.bias" in w)
        kept = (heads, width // heads) if _vocabulary(config, last) is not None else None
        if last == "encoder":
            embeddings = _embeddings(config, w.at("source"), last)
            cache = kept if config.flag("is_causal", False) else None
            return TokenModel(embeddings, stacks[last], width=width, heads=heads, cache=cache, head=head)
        if "encoder" in stacks:
            encoder = Side(_embeddings(config, w.at("source"), "encoder"), stacks["encoder"], heads)
        else:
            encoder = Side(Vectors(w, width), Stack([]), heads)  # another model made the memory
        return EncoderDecoder(
            encoder,
            Side(_embeddings(config, w.at("target"), "decoder"), stacks["decoder"], heads),
            cache=kept if config.flag("tgt_is_causal", True) else None,
            head=head,
        )


def _prefixes(kind: str) -> tuple[str, ...]:
    return f"transformer.{kind}.", f"transformer_{kind}.", "transformer.", f"{kind}."


ARCHITECTURES = {
    "Transformer": Transformer(("encoder", "decoder"), ("transformer.",)),
    "TransformerEncoder": Transformer(("encoder",), _prefixes("encoder")),
    "TransformerDecoder": Transformer(("decoder",), _prefixes("decoder")),
}
MODEL_TYPES: dict[str, str] = {}
