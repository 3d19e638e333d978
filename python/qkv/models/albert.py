"""ALBERT (Lan et al. 2019): BERT's blocks, shared by the layers, behind embeddings of their own width."""

from __future__ import annotations

from ..config import MAX_LAYERS, Config
from ..layers import LayerNorm, Linear, Stack
from ..weights import Weights, drop, fuse, rename
from . import bert
from .heads import BothHeads, MaskedLMHead, PooledHead
from .tokens import Embeddings, LearnedPositions, Task, TokenClass, TokenModel

DEFAULTS = {
    "vocab_size": 30000,
    "hidden_size": 4096,
    "num_attention_heads": 64,
    "intermediate_size": 16384,
    "hidden_act": "gelu_new",
}
LAYER = "encoder.albert_layer_groups.{g}.albert_layers.{i}."
OURS = "groups.{g}.blocks.{i}."
BODY = [
    *bert.EMBEDDINGS,
    rename("encoder.embedding_hidden_mapping_in.*", "embeddings.project.*"),
    fuse([f"{LAYER}attention.{part}.*" for part in ("query", "key", "value")], OURS + "attention.qkv.*"),
    rename(LAYER + "attention.dense.*", OURS + "attention.out.*"),
    rename(LAYER + "attention.LayerNorm.*", OURS + "attention_norm.*"),
    rename(LAYER + "ffn.*", OURS + "ffn.up.*"),
    rename(LAYER + "ffn_output.*", OURS + "ffn.down.*"),
    rename(LAYER + "full_layer_layer_norm.*", OURS + "ffn_norm.*"),
]
LM = [
    rename("predictions.dense.*", "head.dense.*"),
    rename("predictions.LayerNorm.*", "head.norm.*"),
    rename("predictions.decoder.weight", "head.decoder.weight"),
    # tied files store only the second; where both are, the forward pass uses the first
    rename(["predictions.decoder.bias", "predictions.bias"], "head.decoder.bias"),
]
ORDER = [rename("sop_classifier.classifier.*", "head.order.*")]
LEFT_OVER = [drop("predictions.*"), drop("sop_classifier.*"), drop("classifier.*"), drop("qa_outputs.*")]


def _narrow(config: Config) -> int:
    """The width of the embeddings."""
    return config.integer("embedding_size", 128)


def _lm(w: Weights, config: Config, field: str = "logits") -> MaskedLMHead:
    return MaskedLMHead(
        w,
        bert.width(config),
        config.integer("vocab_size", 30000),
        config.activation("hidden_act", "gelu_new"),
        bert.eps(config),
        inner=_narrow(config),
        field=field,
    )


def _pretraining(w: Weights, config: Config) -> BothHeads:
    order = PooledHead(w.at("order"), bert.width(config), config.num_labels(), "sop_logits")
    return BothHeads(_lm(w, config, "prediction_logits"), order)


def _stack(config: Config, w: Weights) -> Stack:
    """A layer is a group of blocks that run in turn; layers beside each other share their group."""
    layers = config.integer("num_hidden_layers", 12, low=0, high=MAX_LAYERS)
    count = config.integer("num_hidden_groups", 1, high=MAX_LAYERS)
    inner = config.integer("inner_group_num", 1, high=MAX_LAYERS // max(count, layers))
    groups = [[bert.one_block(config, w.at(f"groups.{g}.blocks.{i}")) for i in range(inner)] for g in range(count)]
    return Stack([block for i in range(layers) for block in groups[int(i / (layers / count))]])


def build(config: Config, w: Weights, task: Task) -> TokenModel:
    config = config.with_defaults(DEFAULTS).replaced({"is_decoder": False})  # which ALBERT does not read
    w_e, c, e = w.at("embeddings"), bert.width(config), _narrow(config)
    embeddings = Embeddings(
        w_e,
        config.integer("vocab_size", 30000),
        e,
        positions=LearnedPositions(w_e.at("position"), config.integer("max_position_embeddings", 512), e),
        types=config.integer("type_vocab_size", 2),
        norm=LayerNorm(w_e.at("norm"), e, bert.eps(config)),
        project=Linear(w_e.at("project"), e, c),
    )
    return bert.assemble(config, w, task, embeddings, _stack)


TASKS = {
    "Model": Task(pooler=None),
    "ForPreTraining": Task(_pretraining, [*LM, *ORDER], True),
    "ForMaskedLM": Task(_lm, LM),
    "ForSequenceClassification": Task(bert.pooled_head, bert.CLASSIFIER, True),
    "ForTokenClassification": Task(bert.token_head, bert.CLASSIFIER),
    "ForQuestionAnswering": Task(bert.span_head, bert.SPAN),
}
ARCHITECTURES = {
    f"Albert{name}": TokenClass(("albert.",), bert.rules_of(BODY, LEFT_OVER), build, task)
    for name, task in TASKS.items()
}
MODEL_TYPES = {"albert": "AlbertModel"}
