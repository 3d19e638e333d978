"""GPT-2 (Radford et al. 2019): GPT with norms before the sublayers and at the end."""

from __future__ import annotations

from collections.abc import Callable

from ..config import Config
from ..layers import LayerNorm, Norm
from ..weights import Rule, Weights, rename
from .gpt import BLOCKS, NO_LM, PREFIXES, SCORE, Sizes, assemble, learned, row_head, rules_of
from .heads import LastTokenHead, LMHead, SpanHead, TokenHead
from .tokens import Task, TokenClass, TokenModel

SIZES = Sizes(50257, 1024, 768, 12, 12)
BODY: list[Rule] = [
    rename("wte.weight", "embeddings.word.weight"),
    rename("wpe.weight", "embeddings.position.weight"),
    *BLOCKS,
    rename("ln_f.*", "norm.*"),
]


def build(
    config: Config,
    w: Weights,
    task: Task,
    sizes: Sizes,
    norm: Callable[[Weights, int, float], Norm],
    activation: str,
) -> TokenModel:
    """The model, ImageGPT as well, whose options are the same. activation: where the config says nothing."""
    eps = config.number("layer_norm_epsilon", 1e-5)
    scaled = config.flag("scale_attn_weights", True)
    by_layer = config.flag("scale_attn_by_inverse_layer_idx", False)
    config.flag("reorder_and_upcast_attn", False)  # scores in float32, which they are here anyway
    base = (sizes.width // sizes.heads) ** -0.5 if scaled else 1.0
    return assemble(
        config,
        w,
        task,
        sizes,
        learned(w, sizes),
        lambda w: norm(w, sizes.width, eps),
        config.integer("n_inner", 4 * sizes.width),
        config.activation("activation_function", activation),
        final_norm=norm(w.at("norm"), sizes.width, eps),
        score_scale=lambda layer: base / (layer + 1) if by_layer else base,
    )


def _lm(w: Weights, config: Config) -> LMHead:
    sizes = SIZES.read(config)
    return LMHead(w, sizes.width, sizes.vocabulary)


def _row(w: Weights, config: Config) -> LastTokenHead:
    return row_head(w, config, SIZES.read(config))


def _tag(w: Weights, config: Config) -> TokenHead:
    return TokenHead(w.at("classifier"), SIZES.read(config).width, config.num_labels())


def _span(w: Weights, config: Config) -> SpanHead:
    return SpanHead(w, SIZES.read(config).width)


def _class(task: Task) -> TokenClass:
    return TokenClass(
        PREFIXES,
        rules_of(BODY),
        lambda config, w, task: build(config, w, task, SIZES.read(config), LayerNorm, "gelu_new"),
        task,
    )


ARCHITECTURES = {
    "GPT2Model": _class(Task(names=NO_LM)),
    "GPT2LMHeadModel": _class(Task(_lm)),
    "GPT2ForSequenceClassification": _class(Task(_row, [*NO_LM, *SCORE])),
    "GPT2ForTokenClassification": _class(Task(_tag, [*NO_LM, rename("classifier.*", "head.classifier.*")])),
    "GPT2ForQuestionAnswering": _class(Task(_span, [*NO_LM, rename("qa_outputs.*", "head.outputs.*")])),
}
MODEL_TYPES = {"gpt2": "GPT2Model"}
