"""CTRL (Keskar et al. 2019): a decoder with norms before the sublayers and at the end, sinusoidal positions, and a
head with a bias.
"""

from __future__ import annotations

from ..config import Config
from ..layers import LayerNorm
from ..weights import Rule, Weights, fuse, rename
from .gpt import NO_LM, PREFIXES, Sizes, assemble, row_head, rules_of
from .heads import LastTokenHead, LMHead
from .tokens import SinusoidalPositions, Task, TokenClass, TokenModel

SIZES = Sizes(246534, 256, 1280, 48, 16)
EPS = 1e-6  # of the blocks' norms; only the final one reads the config
SELF = "h.{i}.multi_head_attention."
BODY: list[Rule] = [
    rename("w.weight", "embeddings.word.weight"),
    fuse([SELF + "Wq.*", SELF + "Wk.*", SELF + "Wv.*"], "blocks.{i}.attention.qkv.*"),
    rename(SELF + "dense.*", "blocks.{i}.attention.out.*"),
    rename("h.{i}.layernorm1.*", "blocks.{i}.attention_norm.*"),
    rename("h.{i}.ffn.0.*", "blocks.{i}.ffn.up.*"),
    rename("h.{i}.ffn.2.*", "blocks.{i}.ffn.down.*"),
    rename("h.{i}.layernorm2.*", "blocks.{i}.ffn_norm.*"),
    rename("layernorm.*", "norm.*"),
]


def _lm(w: Weights, config: Config) -> LMHead:
    sizes = SIZES.read(config)
    return LMHead(w, sizes.width, sizes.vocabulary, bias=True)


def _row(w: Weights, config: Config) -> LastTokenHead:
    return row_head(w, config, SIZES.read(config))


def _build(config: Config, w: Weights, task: Task) -> TokenModel:
    sizes = SIZES.read(config)
    return assemble(
        config,
        w,
        task,
        sizes,
        SinusoidalPositions(w.place, sizes.positions, sizes.width),
        lambda w: LayerNorm(w, sizes.width, EPS),
        config.integer("dff", 8192),
        "relu",
        final_norm=LayerNorm(w.at("norm"), sizes.width, config.number("layer_norm_epsilon", 1e-6)),
        word_scale=sizes.width**0.5,
    )


def _class(task: Task) -> TokenClass:
    return TokenClass(PREFIXES, rules_of(BODY), _build, task)


ARCHITECTURES = {
    "CTRLModel": _class(Task(names=NO_LM)),
    "CTRLLMHeadModel": _class(Task(_lm)),
    "CTRLForSequenceClassification": _class(Task(_row, [*NO_LM, rename("classifier.*", "head.score.*")])),
}
MODEL_TYPES = {"ctrl": "CTRLModel"}
