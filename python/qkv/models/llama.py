"""Llama (Touvron et al. 2023) and its kin Mistral, Qwen2, Qwen3, Gemma2 and Phi-3: decoders with RMS norms before the
sublayers, rotary positions, grouped key-value heads and gated feed-forward layers.

What they differ in is a `Variant` each. Every option that changes numbers stands among the defaults of the families
that read it; to the others it means nothing, as in transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..config import MAX_LAYERS, Config
from ..layers import Attention, GatedFeedForward, RMSNorm, Rotary, Stack, block
from ..positions import rope_type
from ..weights import Rule, Tie, Weights, drop, fuse, offset, rename, split, tie
from .heads import LastTokenHead, LMHead, SpanHead, TokenHead
from .tokens import Embeddings, TokenModel

LAYER, OURS = "layers.{i}.", "blocks.{i}."
FULL, SLIDING = "full_attention", "sliding_attention"
MAX_HEAD = 2**16
POSITIVE = 1e-30  # the least of a divisor

BODY: list[Rule | Tie] = [
    rename("embed_tokens.weight", "embeddings.word.weight"),
    rename(LAYER + "self_attn.o_proj.*", OURS + "attention.out.*"),
    rename(LAYER + "mlp.down_proj.*", OURS + "ffn.down.*"),
    drop("*rotary_emb.inv_freq"),  # of old files; computed
    drop("rotary_emb.inv_freq"),
]
PARTS: list[Rule | Tie] = [
    fuse([f"{LAYER}self_attn.{part}_proj.*" for part in "qkv"], OURS + "attention.qkv.*"),
    rename(LAYER + "self_attn.q_norm.weight", OURS + "attention.q_norm.weight"),
    rename(LAYER + "self_attn.k_norm.weight", OURS + "attention.k_norm.weight"),
    rename(LAYER + "mlp.gate_proj.*", OURS + "ffn.gate.*"),
    rename(LAYER + "mlp.up_proj.*", OURS + "ffn.up.*"),
]
FUSED: list[Rule | Tie] = [
    rename(LAYER + "self_attn.qkv_proj.weight", OURS + "attention.qkv.weight"),
    split(LAYER + "mlp.gate_up_proj.weight", [OURS + "ffn.gate.weight", OURS + "ffn.up.weight"]),
]
NORMS = {"input_layernorm": "attention_norm", "post_attention_layernorm": "ffn_norm"}
GEMMA_NORMS = {
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "attention_out_norm",  # another one than above
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "ffn_out_norm",
}


@dataclass(frozen=True)
class Variant:
    """A family. defaults: of the config's keys that it reads. slides: (layer, max_window_layers) -> whether the layer
    has the window. names: rules for its projections. norms: names of a layer's norms, theirs -> ours. qkv_bias:
    always, whatever attention_bias says. qk_norm: of each head's queries and keys. gemma: norms multiply by 1 +
    weight, each sublayer's result is normed too, embeddings are times sqrt(C)."""

    defaults: dict[str, Any]
    slides: Callable[[int, int], bool]
    names: Sequence[Rule | Tie] = tuple(PARTS)
    norms: Mapping[str, str] = field(default_factory=lambda: NORMS)
    qkv_bias: bool = False
    qk_norm: bool = False
    gemma: bool = False


SIZES = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "head_dim": None,  # hidden_size / num_attention_heads
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "pad_token_id": None,
}
QWEN2_DEFAULTS = SIZES | {
    "vocab_size": 151936,
    "intermediate_size": 22016,
    "max_position_embeddings": 32768,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
    "layer_types": None,
}
LLAMA = Variant(
    SIZES
    | {
        "vocab_size": 32000,
        "intermediate_size": 11008,
        "num_key_value_heads": None,  # num_attention_heads
        "max_position_embeddings": 2048,
        "attention_bias": False,
        "mlp_bias": False,
    },
    lambda i, first: False,
)
MISTRAL = Variant(
    SIZES
    | {
        "vocab_size": 32000,
        "intermediate_size": 14336,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "sliding_window": 4096,
    },
    lambda i, first: True,
)
QWEN2 = Variant(QWEN2_DEFAULTS, lambda i, first: i >= first, qkv_bias=True)
QWEN3 = Variant(
    QWEN2_DEFAULTS | {"head_dim": 128, "attention_bias": False},
    lambda i, first: i >= first,
    qk_norm=True,
)
GEMMA2 = Variant(
    {
        "vocab_size": 256000,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "rms_norm_eps": 1e-6,
        "hidden_activation": "gelu_pytorch_tanh",
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
        "pad_token_id": 0,
        "attention_bias": False,
        "query_pre_attn_scalar": 256,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "sliding_window": 4096,
        "layer_types": None,
    },
    lambda i, first: i % 2 == 0,
    norms=GEMMA_NORMS,
    gemma=True,
)
PHI3 = Variant(
    SIZES
    | {
        "vocab_size": 32064,
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_key_value_heads": None,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 4096,
        "original_max_position_embeddings": 4096,
        "partial_rotary_factor": 1.0,
        "sliding_window": None,
        "pad_token_id": 32000,
    },
    lambda i, first: True,
    names=FUSED,
)


def _rotary(config: Config, variant: Variant, head_dim: int) -> Rotary:
    """From rope_parameters, or rope_scaling with the other keys beside it as older files have it."""
    name = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
    given = config.get(name) or {}
    if not isinstance(given, dict) or any(isinstance(value, dict) for value in given.values()):
        raise config.error(name, "one object for all layers")
    scaling = {key: value for key, value in given.items() if value is not None}
    scaling.setdefault("rope_theta", config.number("rope_theta", 10000.0))
    scaling.setdefault("partial_rotary_factor", config.number("partial_rotary_factor", 1.0))
    beside = config.with_defaults(variant.defaults)
    for key in ("max_position_embeddings", "original_max_position_embeddings"):
        if beside.get(key) is not None:  # what stands beside the object counts, not what is in it
            scaling[key] = beside.integer(key, 1)
    if variant is PHI3:
        if rope_type(scaling) in ("su", "yarn"):  # its early names for longrope
            scaling["rope_type"] = "longrope"
        if rope_type(scaling) not in ("default", "longrope"):
            raise config.error(name, "of type default or longrope")
    elif scaling["partial_rotary_factor"] != 1:
        raise config.error(name if "partial_rotary_factor" in given else "partial_rotary_factor", "absent, or 1")
    try:
        return Rotary(head_dim, float(scaling["rope_theta"]), scaling)
    except (TypeError, ValueError, ArithmeticError) as error:
        raise config.error(name, f"a rotary scaling that qkv knows ({error})") from None


def _windows(config: Config, variant: Variant, layers: int) -> list[tuple[int, int] | None]:
    """The window of each layer: a token sees sliding_window tokens, itself among them. layer_types, where the family
    reads it, says which layers have it; elsewhere it must say what the family does."""
    c = config.reading(variant.defaults)
    window = c.integer("sliding_window", 0) if c.flag("use_sliding_window", True) else 0
    first = c.integer("max_window_layers", variant.defaults.get("max_window_layers", 0), low=0)
    types = [SLIDING if window and variant.slides(i, first) else FULL for i in range(layers)]
    given = config.get("layer_types")
    if given is not None:
        if "layer_types" not in c and given != types:
            raise config.error("layer_types", f"absent, or {layers} times {SLIDING if window else FULL}")
        if not isinstance(given, list) or len(given) != layers or any(kind not in (FULL, SLIDING) for kind in given):
            raise config.error("layer_types", f"a list of {layers} times {FULL} or {SLIDING}")
        if SLIDING in given and not window:
            raise config.error("layer_types", f"{FULL} throughout where no sliding_window is in use")
        types = given
    return [(window - 1, 0) if kind == SLIDING else None for kind in types]


# What the heads of the classes are made of; a file's other heads are left over.
HEADS = {
    None: [],
    "lm": ["decoder.weight"],
    "classify": ["score.weight"],
    "tag": ["score.weight", "score.bias"],
    "span": ["outputs.weight", "outputs.bias"],
}


@dataclass(frozen=True)
class Llama:
    """A class of one of the families. task: one of HEADS; None: hidden states."""

    variant: Variant
    task: str | None = None
    prefixes = ("model.", "transformer.")  # the latter in classes for question answering

    def rules(self, config: Config) -> list[Rule | Tie]:
        tied = config.flag("tie_word_embeddings", self.variant.defaults["tie_word_embeddings"])
        parts = dict.fromkeys(part for head in HEADS.values() for part in head)
        norms = {f"{LAYER}{theirs}.weight": f"{OURS}{ours}.weight" for theirs, ours in self.variant.norms.items()}
        norms["norm.weight"] = "norm.weight"
        plus_one = self.variant.gemma and not config.flag("norms_hold_one", False)  # GGUF files have added it
        return [
            *BODY,
            *self.variant.names,
            *(offset(*names, 1.0) if plus_one else rename(*names) for names in norms.items()),
            rename("lm_head.weight", "head.decoder.weight"),
            rename("score.*", "head.score.*"),
            rename("qa_outputs.*", "head.outputs.*"),
            tie("embeddings.word.weight", "head.decoder.weight", when=tied),
            *(drop(f"head.{part}") for part in parts if part not in HEADS[self.task]),
        ]

    def build(self, config: Config, w: Weights) -> TokenModel:
        variant, defaults = self.variant, self.variant.defaults
        config.only("quantization_config", None)
        config.only("is_causal", True)
        config.only("use_bidirectional_attention", False)
        if "sliding_window" not in defaults:
            config.only("sliding_window", None)  # transformers' caches would take notice, its attention would not
        c = config.reading(defaults)

        def size(name: str) -> int:
            return c.integer(name, defaults[name])

        width, heads, vocabulary = size("hidden_size"), size("num_attention_heads"), size("vocab_size")
        if c["head_dim"] is None and not defaults["head_dim"] and width % heads:
            raise config.error("hidden_size", f"a multiple of num_attention_heads, {heads}, or head_dim given")
        head_dim = c.integer("head_dim", defaults["head_dim"] or width // heads)
        if head_dim > MAX_HEAD:  # before rotary frequencies are made of it
            raise config.error("head_dim", f"at most {MAX_HEAD}")
        kv_heads = c.integer("num_key_value_heads", heads)
        if heads % kv_heads:
            raise config.error("num_key_value_heads", f"a divisor of num_attention_heads, {heads}")
        inner, eps = size("intermediate_size"), c.number("rms_norm_eps", defaults["rms_norm_eps"])
        name = "hidden_activation" if "hidden_activation" in defaults else "hidden_act"
        activation = c.activation(name, defaults[name])
        bias = c.flag("attention_bias", False)
        rotary = _rotary(config, variant, head_dim)
        layers = c.integer("num_hidden_layers", defaults["num_hidden_layers"], low=0, high=MAX_LAYERS)

        def norm(w: Weights) -> RMSNorm:
            return RMSNorm(w, width, eps)

        blocks = []
        for i, window in enumerate(_windows(config, variant, layers)):
            w_i = w.at(f"blocks.{i}")
            attention = Attention(
                w_i.at("attention"),
                width,
                heads,
                kv_heads=kv_heads,
                head_dim=head_dim,
                bias=bias or variant.qkv_bias,
                out_bias=bias,
                rotary=rotary,
                norm_eps=eps if variant.qk_norm else None,
                layer=i,
                causal=True,
                window=window,
                scale=c.number("query_pre_attn_scalar", head_dim, low=POSITIVE) ** -0.5,
                softcap=c.number("attn_logit_softcapping", 0, low=POSITIVE) or None,
            )
            ffn = GatedFeedForward(w_i.at("ffn"), width, inner, activation, bias=c.flag("mlp_bias", False))
            blocks.append(block(w_i, norm, attention, ffn, pre=True, out=variant.gemma))
        embeddings = Embeddings(w.at("embeddings"), vocabulary, width, scale=width**0.5 if variant.gemma else None)
        head: Any = None
        if self.task == "lm":
            softcap = c.number("final_logit_softcapping", 0, low=POSITIVE) or None
            head = LMHead(w.at("head"), width, vocabulary, softcap=softcap)
        elif self.task == "classify":
            pad = None if c["pad_token_id"] is None else c.integer("pad_token_id", 0, low=-1)
            head = LastTokenHead(w.at("head.score"), width, config.num_labels(), pad)
        elif self.task == "tag":
            config.only("token_classification_bias", True)
            head = TokenHead(w.at("head.score"), width, config.num_labels())
        elif self.task == "span":
            head = SpanHead(w.at("head"), width)
        return TokenModel(
            embeddings,
            Stack(blocks, norm(w.at("norm"))),
            width=width,
            heads=heads,
            cache=(kv_heads, head_dim),
            exact_up_to=rotary.steady,
            turns_anew_beyond=rotary.steady if variant is PHI3 else None,
            head=head,
        )


TASKS = {
    "Model": None,
    "ForCausalLM": "lm",
    "ForSequenceClassification": "classify",
    "ForTokenClassification": "tag",
    "ForQuestionAnswering": "span",
}
VARIANTS = {"Llama": LLAMA, "Mistral": MISTRAL, "Qwen2": QWEN2, "Qwen3": QWEN3, "Gemma2": GEMMA2, "Phi3": PHI3}
NO_SPANS = ("Gemma2", "Phi3")
ARCHITECTURES = {
    name + suffix: Llama(variant, task)
    for name, variant in VARIANTS.items()
    for suffix, task in TASKS.items()
    if not (task == "span" and name in NO_SPANS)
}
MODEL_TYPES = {name.lower(): f"{name}Model" for name in VARIANTS}
