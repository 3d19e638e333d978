"""BART (Lewis et al. 2019), mBART (Liu et al. 2020) and Marian (Junczys-Dowmunt et al. 2018): encoder-decoders of one
pattern.

They differ in where the norms stand (mBART: before the sublayers, and at the end of both stacks), in a norm of the
embeddings (not Marian), and in positions (BART and mBART learned, offset by 2; Marian sinusoids).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..config import MAX_LAYERS, Config
from ..layers import Attention, CrossAttention, FeedForward, LayerNorm, Stack, block
from ..weights import Rule, Tie, Weights, drop, fuse, rename, reshape, tie
from .base import Model
from .heads import LMHead, RowHead, SpanHead
from .seq2seq import EncoderDecoder, LastEos, Shift, Side, rotate_right, shift_right
from .tokens import Embeddings, LearnedPositions, Positions, SinusoidalPositions, TokenModel

EPS = 1e-5  # layer_norm_eps is not read
ALIASES = {
    "hidden_size": "d_model",
    "num_attention_heads": "encoder_attention_heads",
    "num_hidden_layers": "encoder_layers",
}
OFFSET = 2  # rows of the position tables that are not used


def _stack_rules(stack: str) -> list[Rule | Tie]:
    layer = f"{stack}.layers.{{i}}."
    ours = f"{stack}.blocks.{{i}}."
    self, cross = layer + "self_attn.", layer + "encoder_attn."
    return [
        fuse([f"{self}{part}_proj.*" for part in "qkv"], ours + "attention.qkv.*"),
        rename(self + "out_proj.*", ours + "attention.out.*"),
        rename(layer + "self_attn_layer_norm.*", ours + "attention_norm.*"),
        rename(cross + "q_proj.*", ours + "cross.q.*"),
        fuse([f"{cross}{part}_proj.*" for part in "kv"], ours + "cross.kv.*"),
        rename(cross + "out_proj.*", ours + "cross.out.*"),
        rename(layer + "encoder_attn_layer_norm.*", ours + "cross_norm.*"),
        rename(layer + "fc1.*", ours + "ffn.up.*"),
        rename(layer + "fc2.*", ours + "ffn.down.*"),
        rename(layer + "final_layer_norm.*", ours + "ffn_norm.*"),
        rename(f"{stack}.embed_positions.weight", f"{stack}.embeddings.position.weight"),
        rename(f"{stack}.layernorm_embedding.*", f"{stack}.embeddings.norm.*"),
        rename(f"{stack}.layer_norm.*", f"{stack}.norm.*"),
        rename(f"{stack}.embed_tokens.weight", f"{stack}.embeddings.word.weight"),
        drop(f"{stack}.version"),
    ]


@dataclass(frozen=True)
class Variant:
    """What the three differ in."""

    pre: bool
    embedding_norm: bool
    sinusoids: bool
    vocabulary: int
    shift: Callable[[Config], Shift | None]


def _start(config: Config) -> Shift:
    return shift_right(config.integer("decoder_start_token_id", 2, low=0))


BART = Variant(
    False,
    True,
    False,
    50265,
    _start,
)
MBART = Variant(
    True,
    True,
    False,
    50265,
    lambda config: rotate_right(config.integer("pad_token_id", 1, low=0)),
)
MARIAN = Variant(
    False,
    False,
    True,
    58101,
    lambda config: None,
)


def _width(config: Config) -> int:
    return config.integer("d_model", 1024)


def _side(config: Config, w: Weights, variant: Variant, kind: str, vocabulary: int, *, cross: bool = False) -> Side:
    """The encoder or the decoder. cross: the decoder looks at an encoder."""
    width, heads = _width(config), config.integer(f"{kind}_attention_heads", 16)
    if width % heads:
        raise config.error("d_model", f"a multiple of {kind}_attention_heads, {heads}")
    inner = config.integer(f"{kind}_ffn_dim", 4096)
    activation = config.activation("activation_function", "gelu")
    longest = config.integer("max_position_embeddings", 1024)

    def norm(w: Weights) -> LayerNorm:
        return LayerNorm(w, width, EPS)

    blocks = []
    for i in range(config.integer(f"{kind}_layers", 12, low=0, high=MAX_LAYERS)):
        w_i = w.at(f"blocks.{i}")
        blocks.append(
            block(
                w_i,
                norm,
                Attention(w_i.at("attention"), width, heads, layer=i, causal=kind == "decoder"),
                FeedForward(w_i.at("ffn"), width, inner, activation),
                cross=CrossAttention(w_i.at("cross"), width, heads, layer=i) if cross else None,
                pre=variant.pre,
            )
        )
    w_e = w.at("embeddings")
    positions: Positions
    if not variant.sinusoids:
        positions = LearnedPositions(w_e.at("position"), longest + OFFSET, width, offset=OFFSET)
    elif "position.weight" in w_e:
        positions = LearnedPositions(w_e.at("position"), longest, width)
    else:
        positions = SinusoidalPositions(w.place, longest, width)
    embeddings = Embeddings(
        w_e,
        vocabulary,
        width,
        positions=positions,
        scale=width**0.5 if config.flag("scale_embedding", False) else None,
        norm=norm(w_e.at("norm")) if variant.embedding_norm else None,
    )
    return Side(embeddings, Stack(blocks, norm(w.at("norm")) if variant.pre else None), heads)


@dataclass(frozen=True)
class Bart:
    """A class of one of the families. task: what it gives out."""

    variant: Variant
    task: str | None = None  # lm, classify, span, decoder (that one alone); None: hidden states
    prefixes = ("model.",)

    def rules(self, config: Config) -> list[Rule | Tie]:
        tied = config.flag("tie_word_embeddings", True)
        encoder, decoder = "encoder.embeddings.word.weight", "decoder.embeddings.word.weight"
        shared = [tie("shared.weight", encoder, decoder, "head.decoder.weight", when=tied)]
        if self.variant.sinusoids and not config.flag("share_encoder_decoder_embeddings", True):
            shared = [tie(decoder, "head.decoder.weight", when=tied)]
        rules = [
            *_stack_rules("encoder"),
            *_stack_rules("decoder"),
            rename("lm_head.weight", "head.decoder.weight"),
            reshape("final_logits_bias", "head.decoder.bias", (-1,), of=(1, -1)),
            rename("classification_head.dense.*", "head.dense.*"),
            rename("classification_head.out_proj.*", "head.out.*"),
            rename("qa_outputs.*", "head.outputs.*"),
            *shared,
            drop("shared.weight"),
        ]
        if self.task != "lm":
            rules.append(drop("head.decoder.bias"))
        if self.task not in ("lm", "decoder"):
            rules.append(drop("head.decoder.weight"))
        for task, part in (("classify", "dense"), ("classify", "out"), ("span", "outputs")):
            if self.task != task:
                rules.append(drop(f"head.{part}.*"))
        if self.task == "decoder":
            rules += [drop("encoder.*"), *(drop(f"decoder.blocks.{{i}}.{part}.*") for part in ("cross", "cross_norm"))]
        return rules

    def build(self, config: Config, w: Weights) -> Model:
        config = config.own_names(ALIASES)
        for name, value in (  # of old configs, which nobody reads: only one value agrees with the class
            ("normalize_before", self.variant.pre),
            ("normalize_embedding", self.variant.embedding_norm),
            ("add_final_layer_norm", self.variant.pre),
            ("static_position_embeddings", self.variant.sinusoids),
        ):
            config.only(name, value)
        config.only("quantization_config", None)
        vocabulary, width = config.integer("vocab_size", self.variant.vocabulary), _width(config)
        target = vocabulary
        if self.variant.sinusoids:
            target = config.integer("decoder_vocab_size", vocabulary)
        alone = self.task == "decoder"
        decoder = _side(config, w.at("decoder"), self.variant, "decoder", target, cross=not alone)
        cache = (decoder.heads, width // decoder.heads)
        head: Any = None
        if self.task in ("lm", "decoder"):
            head = LMHead(w.at("head"), width, target, bias=self.task == "lm" and "head.decoder.bias" in w)
        elif self.task == "classify":
            head = RowHead(w.at("head"), width, config.num_labels(3 if self.variant is BART else 2), "tanh")
        elif self.task == "span":
            head = SpanHead(w.at("head"), width)
        if alone:
            return TokenModel(
                decoder.embeddings, decoder.stack, width=width, heads=decoder.heads, cache=cache, head=head
            )
        return EncoderDecoder(
            _side(config, w.at("encoder"), self.variant, "encoder", vocabulary),
            decoder,
            cache=cache,
            pad=config.integer("pad_token_id", 1, low=0),
            shift=self.variant.shift(config),
            pooler=LastEos(config.integer("eos_token_id", 2, low=0)) if self.task == "classify" else None,
            head=head,
        )


TASKS = {
    "Model": None,
    "ForConditionalGeneration": "lm",
    "ForSequenceClassification": "classify",
    "ForQuestionAnswering": "span",
    "ForCausalLM": "decoder",
}
ARCHITECTURES = {
    **{f"Bart{name}": Bart(BART, task) for name, task in TASKS.items()},
    **{f"MBart{name}": Bart(MBART, task) for name, task in TASKS.items()},
    "MarianModel": Bart(MARIAN),
    "MarianMTModel": Bart(MARIAN, "lm"),
    "MarianForCausalLM": Bart(MARIAN, "decoder"),
}
MODEL_TYPES = {"bart": "BartModel", "mbart": "MBartModel", "marian": "MarianModel"}
