"""GPT (Radford et al. 2018): a decoder with learned positions and a norm after every sublayer.

GPT-2, CTRL and ImageGPT are assembled by what stands here too. Token types, where they are given, are rows of the word
table in all four.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..config import MAX_LAYERS, MAX_SIZE, Config
from ..layers import Attention, FeedForward, LayerNorm, Norm, Stack, block
from ..weights import Rule, Tie, Weights, drop, rename, tie, transpose
from .heads import LastTokenHead, LMHead
from .tokens import Embeddings, LearnedPositions, Positions, Task, TokenClass, TokenModel

PREFIXES = ("transformer.",)


def _conv1d(source: str, target: str) -> list[Rule]:
    return [transpose(source + ".weight", target + ".weight"), rename(source + ".bias", target + ".bias")]


BLOCKS = [
    drop("h.{i}.attn.bias"),  # the causal mask, in older files
    drop("h.{i}.attn.masked_bias"),
    *_conv1d("h.{i}.attn.c_attn", "blocks.{i}.attention.qkv"),
    *_conv1d("h.{i}.attn.c_proj", "blocks.{i}.attention.out"),
    rename("h.{i}.ln_1.*", "blocks.{i}.attention_norm.*"),
    *_conv1d("h.{i}.mlp.c_fc", "blocks.{i}.ffn.up"),
    *_conv1d("h.{i}.mlp.c_proj", "blocks.{i}.ffn.down"),
    rename("h.{i}.ln_2.*", "blocks.{i}.ffn_norm.*"),
]
BODY = [
    rename("tokens_embed.weight", "embeddings.word.weight"),
    rename("positions_embed.weight", "embeddings.position.weight"),
    drop("position_ids"),  # 0, 1, 2, ... in older files
    *BLOCKS,
]
SCORE = [rename("score.*", "head.score.*")]
# what a file holds for tasks that the class does not have; each class puts its own rules before these
LEFT_OVER = [
    drop("score.*"),
    drop("classifier.*"),
    drop("qa_outputs.*"),
    drop("multiple_choice_head.*"),
]


@dataclass(frozen=True)
class Sizes:
    """What a config says about a model's size, or what is meant where it says nothing."""

    vocabulary: int
    positions: int
    width: int
    layers: int
    heads: int

    def read(self, config: Config) -> Sizes:
        """Those of a config, with these as defaults. Its names may also be those of other families, which then
        count, as in transformers."""

        def size(name: str, alias: str, default: int, low: int = 1, high: int = MAX_SIZE) -> int:
            return config.integer(alias, config.integer(name, default, low, high), low, high)

        sizes = Sizes(
            config.integer("vocab_size", self.vocabulary),
            size("n_positions", "max_position_embeddings", self.positions),
            size("n_embd", "hidden_size", self.width),
            size("n_layer", "num_hidden_layers", self.layers, 0, MAX_LAYERS),
            size("n_head", "num_attention_heads", self.heads),
        )
        if sizes.width % sizes.heads:
            raise config.error("n_embd", f"a multiple of n_head, {sizes.heads}")
        return sizes


GPT = Sizes(40478, 512, 768, 12, 12)
ACTIVATIONS = {"gelu": "gelu_tanh", "relu": "relu", "silu": "silu", "swish": "silu"}  # of `afn`, a list of its own


def rules_of(body: list[Rule], *, tied: bool = True) -> Callable[[Config, Task], list[Rule | Tie]]:
    """A family's rules. tied: the default of tie_word_embeddings."""

    def rules(config: Config, task: Task) -> list[Rule | Tie]:
        word, decoder = "embeddings.word.weight", "head.decoder.weight"
        return [
            *body,
            rename("lm_head.*", "head.decoder.*"),
            # even where no head is wanted: GPT's double-heads model stores the table as the head's
            tie(word, decoder, when=config.flag("tie_word_embeddings", tied)),
            *task.names,
            *LEFT_OVER,
        ]

    return rules


def assemble(
    config: Config,
    w: Weights,
    task: Task,
    sizes: Sizes,
    positions: Positions,
    norm: Callable[[Weights], Norm],
    inner: int,
    activation: str,
    *,
    final_norm: Norm | None = None,
    word_scale: float | None = None,
    score_scale: Callable[[int], float | None] = lambda layer: None,
) -> TokenModel:
    """The model. final_norm: the blocks' norms stand before the sublayers, and this one at the end. word_scale: of the
    word table's rows. score_scale: of a layer's attention, None: 1 / sqrt(D)."""
    for name, supported in (("add_cross_attention", False), ("pruned_heads", {}), ("quantization_config", None)):
        config.only(name, supported)
    c, heads = sizes.width, sizes.heads
    blocks = [
        block(
            w.at(f"blocks.{i}"),
            norm,
            Attention(w.at(f"blocks.{i}.attention"), c, heads, layer=i, causal=True, scale=score_scale(i)),
            FeedForward(w.at(f"blocks.{i}.ffn"), c, inner, activation),
            pre=final_norm is not None,
        )
        for i in range(sizes.layers)
    ]
    return TokenModel(
        Embeddings(w.at("embeddings"), sizes.vocabulary, c, positions=positions, types=0, scale=word_scale),
        Stack(blocks, final_norm),
        width=c,
        heads=heads,
        cache=(heads, c // heads),
        head=None if task.head is None else task.head(w.at("head"), config),
    )


def learned(w: Weights, sizes: Sizes) -> LearnedPositions:
    return LearnedPositions(w.at("embeddings.position"), sizes.positions, sizes.width)


def row_head(w: Weights, config: Config, sizes: Sizes) -> LastTokenHead:
    pad = None if config.get("pad_token_id") is None else config.integer("pad_token_id", 0, low=-1)
    return LastTokenHead(w.at("score"), sizes.width, config.num_labels(), pad)


def _lm(w: Weights, config: Config) -> LMHead:
    sizes = GPT.read(config)
    return LMHead(w, sizes.width, sizes.vocabulary)


def _row(w: Weights, config: Config) -> LastTokenHead:
    return row_head(w, config, GPT.read(config))


def _build(config: Config, w: Weights, task: Task) -> TokenModel:
    sizes, eps = GPT.read(config), config.number("layer_norm_epsilon", 1e-5)
    name = "gelu" if config.get("afn") is None else config.get("afn")
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise config.error("afn", "one of " + ", ".join(ACTIVATIONS))
    return assemble(
        config,
        w,
        task,
        sizes,
        learned(w, sizes),
        lambda w: LayerNorm(w, sizes.width, eps),
        4 * sizes.width,
        ACTIVATIONS[name],
    )


NO_LM = [drop("head.decoder.*")]


def _class(task: Task) -> TokenClass:
    return TokenClass(PREFIXES, rules_of(BODY), _build, task)


ARCHITECTURES = {
    "OpenAIGPTModel": _class(Task(names=NO_LM)),
    "OpenAIGPTLMHeadModel": _class(Task(_lm)),
    "OpenAIGPTForSequenceClassification": _class(Task(_row, [*NO_LM, *SCORE])),
}
MODEL_TYPES = {"openai-gpt": "OpenAIGPTModel"}
