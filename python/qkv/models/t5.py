"""T5 and T5 v1.1 (Raffel et al. 2020): encoder-decoders without biases, with RMS norms before the sublayers and at the
end of both stacks, and positions only as a bias of the scores, in buckets that grow with the distance.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..config import ACTIVATIONS, MAX_LAYERS, Config
from ..layers import (
    Array,
    Attention,
    Block,
    CrossAttention,
    FeedForward,
    GatedFeedForward,
    Layer,
    RMSNorm,
    Stack,
    block,
)
from ..placement import Place, host
from ..weights import Rule, Tie, Weights, drop, fuse, rename, tie
from .base import Model
from .heads import LMHead, RowHead, SpanHead, TokenHead
from .seq2seq import EncoderDecoder, LastEos, Side, shift_right
from .tokens import Embeddings, TokenModel

ALIASES = {
    "hidden_size": "d_model",
    "num_attention_heads": "num_heads",
    "num_hidden_layers": "num_layers",
    "head_dim": "d_kv",
}
MOST_BUCKETS = 2**16  # and as far a distance: nothing in a file bounds it
SHRUNK = 64  # in float16, where T5's sums of sublayers would overflow: how many times as large they are in truth


def _stack_rules(stack: str) -> list[Rule | Tie]:
    layer, ours = f"{stack}.block.{{i}}.layer.", f"{stack}.blocks.{{i}}."
    self, cross, last = layer + "0.SelfAttention.", layer + "1.EncDecAttention.", 1 if stack == "encoder" else 2
    ffn = f"{layer}{last}."
    rules: list[Rule | Tie] = [
        fuse([f"{self}{part}.weight" for part in "qkv"], ours + "attention.qkv.weight"),
        rename(self + "o.weight", ours + "attention.out.weight"),
        rename(layer + "0.layer_norm.weight", ours + "attention_norm.weight"),
        rename(ffn + "DenseReluDense.wi.weight", ours + "ffn.up.weight"),
        rename(ffn + "DenseReluDense.wi_0.weight", ours + "ffn.gate.weight"),
        rename(ffn + "DenseReluDense.wi_1.weight", ours + "ffn.up.weight"),
        rename(ffn + "DenseReluDense.wo.weight", ours + "ffn.down.weight"),
        rename(ffn + "layer_norm.weight", ours + "ffn_norm.weight"),
        rename(f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight", f"{stack}.distance.weight"),
        rename(f"{stack}.final_layer_norm.weight", f"{stack}.norm.weight"),
        rename(f"{stack}.embed_tokens.weight", f"{stack}.embeddings.word.weight"),
    ]
    if stack == "decoder":
        rules += [
            rename(cross + "q.weight", ours + "cross.q.weight"),
            fuse([f"{cross}{part}.weight" for part in "kv"], ours + "cross.kv.weight"),
            rename(cross + "o.weight", ours + "cross.out.weight"),
            rename(layer + "1.layer_norm.weight", ours + "cross_norm.weight"),
            drop(layer + "1.EncDecAttention.relative_attention_bias.weight"),  # of old files; nobody reads it
        ]
    return rules


def buckets(distances: Array, count: int, farthest: int, *, both: bool) -> Array:
    """The bucket of each distance key - query: one each up to half of them, then logarithmic up to `farthest`.

    both: keys on both sides, half of the buckets for each; else keys after the query share bucket 0.
    """
    start = np.zeros_like(distances)
    if both:
        count //= 2
        start = np.where(distances > 0, count, 0)
        n = np.abs(distances)
    else:
        n = np.maximum(-distances, 0)
    exact = count // 2
    far = np.log(np.maximum(n, 1) / max(exact, 1)) / np.log(farthest / max(exact, 1)) * (count - exact)
    bucket: Array = start + np.where(n < exact, n, np.minimum(exact + far.astype(np.int64), count - 1))
    return bucket


def _distance_bias(config: Config, w: Weights, heads: int, *, both: bool) -> Array | None:
    """(H, 2R + 1), what `relative_bias` of the attention ops is; None while the model is only being planned."""
    count = config.integer("relative_attention_num_buckets", 32, low=4 if both else 2, high=MOST_BUCKETS)
    farthest = config.integer("relative_attention_max_distance", 128, high=MOST_BUCKETS)
    if farthest <= count // (4 if both else 2):
        raise config.error("relative_attention_max_distance", "beyond the exact buckets")
    table = w.vector("weight", (count, heads))
    if table is None:
        return None
    distances = np.arange(-farthest, farthest + 1)
    return w.place.put(np.ascontiguousarray(host(table)[buckets(distances, count, farthest, both=both)].T))


def _feed_forward(config: Config) -> tuple[str, bool]:
    """Activation and whether it is gated. `feed_forward_proj`: relu, gated-gelu (which means gelu_new) and the like;
    dense_act_fn and is_gated_act have priority where the file has them."""
    value = config.get("feed_forward_proj") or "relu"
    if not isinstance(value, str):
        raise config.error("feed_forward_proj", "a string")
    gated = config.flag("is_gated_act", value.startswith("gated-"))
    name = value.removeprefix("gated-")
    name = "gelu_new" if value == "gated-gelu" else name
    if config.get("dense_act_fn") is not None:
        return config.activation("dense_act_fn", name), gated
    if name not in ACTIVATIONS:
        raise config.error("feed_forward_proj", "one of " + ", ".join(sorted(ACTIVATIONS)) + ", or gated- before it")
    return ACTIVATIONS[name], gated


def _width(config: Config) -> int:
    return config.integer("d_model", 512)


def _side(config: Config, w: Weights, kind: str) -> Side:
    width, heads, head_dim = _width(config), config.integer("num_heads", 8), config.integer("d_kv", 64)
    inner, eps = config.integer("d_ff", 2048), config.number("layer_norm_epsilon", 1e-6)
    activation, gated = _feed_forward(config)
    layers = config.integer("num_layers", 6, low=0, high=MAX_LAYERS)
    if kind == "decoder":
        layers = config.integer("num_decoder_layers", layers, low=0, high=MAX_LAYERS)
    bias = _distance_bias(config, w.at("distance"), heads, both=kind == "encoder") if layers else None

    def cross(w: Weights, layer: int) -> Layer | None:
        if kind == "encoder":
            return None
        return CrossAttention(w, width, heads, head_dim=head_dim, bias=False, layer=layer, scale=1.0)

    shrunk = SHRUNK if w.place.activations == np.float16 else 1
    eps /= shrunk**2
    blocks = []
    for i in range(layers):
        w_i = w.at(f"blocks.{i}")
        attention = Attention(
            w_i.at("attention"),
            width,
            heads,
            head_dim=head_dim,
            bias=False,
            out_bias=False,
            layer=i,
            causal=kind == "decoder",
            scale=1.0,
            relative_bias=bias,
        )
        feed_forward = GatedFeedForward if gated else FeedForward
        ffn: Layer = feed_forward(w_i.at("ffn"), width, inner, activation, bias=False)
        blocks.append(
            block(w_i, lambda w: RMSNorm(w, width, eps), attention, ffn, cross=cross(w_i.at("cross"), i), pre=True)
        )
    scale = None
    if shrunk > 1:
        scale = 1 / shrunk
        _shrink(blocks, w.place)
    embeddings = Embeddings(w.at("embeddings"), config.integer("vocab_size", 32128), width, scale=scale)
    return Side(embeddings, Stack(blocks, RMSNorm(w.at("norm"), width, eps), shrunk=shrunk), heads)


def _shrink(blocks: list[Block], place: Place) -> None:
    """Sublayers add 1/SHRUNK of what they would; the norms behind do not mind. What feed-forward layers have inside is
    as much smaller, for the same reason."""
    smaller = place.put(np.full(1, 1 / SHRUNK, np.float16))
    for layer in (sublayer.layer for of_layer in blocks for sublayer in of_layer.sublayers):
        if isinstance(layer, (Attention, CrossAttention)):
            layer.out.scale = smaller
        elif isinstance(layer, (FeedForward, GatedFeedForward)):
            layer.up.scale = smaller  # and what comes of `down` is, by that


@dataclass(frozen=True)
class T5:
    """A class of the family. task: lm, classify, span, encoder (that one alone), tag (on the encoder); None: hidden
    states."""

    task: str | None = None
    prefixes = ("transformer.",)

    def rules(self, config: Config) -> list[Rule | Tie]:
        encoder, decoder = "encoder.embeddings.word.weight", "decoder.embeddings.word.weight"
        rules = [
            *_stack_rules("encoder"),
            *_stack_rules("decoder"),
            rename("lm_head.weight", "head.decoder.weight"),
            rename("classification_head.dense.*", "head.dense.*"),
            rename("classification_head.out_proj.*", "head.out.*"),
            rename("qa_outputs.*", "head.outputs.*"),
            rename("classifier.*", "head.classifier.*"),
            tie("shared.weight", encoder, decoder),
            tie("shared.weight", "head.decoder.weight"),
            drop("shared.weight"),
        ]
        heads = {"lm": "decoder", "span": "outputs", "tag": "classifier"}
        rules += [drop(f"head.{part}.*") for task, part in heads.items() if task != self.task]
        if self.task != "classify":
            rules += [drop("head.dense.*"), drop("head.out.*")]
        if self.task in ("encoder", "tag"):
            rules.append(drop("decoder.*"))
        return rules

    def build(self, config: Config, w: Weights) -> Model:
        config = config.own_names(ALIASES)
        config.only("quantization_config", None)
        width = _width(config)
        encoder = _side(config, w.at("encoder"), "encoder")
        if self.task in ("encoder", "tag"):
            head = TokenHead(w.at("head.classifier"), width, config.num_labels()) if self.task == "tag" else None
            model = TokenModel(encoder.embeddings, encoder.stack, width=width, heads=encoder.heads, head=head)
            model.inputs = ("input_ids", "attention_mask")  # token_type_ids and positions mean nothing
            return model
        decoder = _side(config, w.at("decoder"), "decoder")
        scaled = config.flag("scale_decoder_outputs", config.flag("tie_word_embeddings", True))
        made: Any = None
        if self.task == "lm":
            scale = width**-0.5 if scaled else None
            made = LMHead(w.at("head"), width, config.integer("vocab_size", 32128), scale=scale)
        elif self.task == "classify":
            made = RowHead(w.at("head"), width, config.num_labels(), "tanh")
        elif self.task == "span":
            made = SpanHead(w.at("head"), width)
        start = config.get("decoder_start_token_id")
        return EncoderDecoder(
            encoder,
            decoder,
            cache=(decoder.heads, config.integer("d_kv", 64)),
            pad=config.integer("pad_token_id", 0, low=0),
            shift=None
            if start is None or self.task not in ("classify", "span")
            else shift_right(config.integer("decoder_start_token_id", 0, low=0)),
            pooler=LastEos(config.integer("eos_token_id", 1, low=0)) if self.task == "classify" else None,
            head=made,
        )


ARCHITECTURES = {
    "T5Model": T5(),
    "T5ForConditionalGeneration": T5("lm"),
    "T5EncoderModel": T5("encoder"),
    "T5ForSequenceClassification": T5("classify"),
    "T5ForTokenClassification": T5("tag"),
    "T5ForQuestionAnswering": T5("span"),
}
MODEL_TYPES = {"t5": "T5Model"}
