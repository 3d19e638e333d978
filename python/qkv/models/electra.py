"""ELECTRA (Clark et al. 2020): BERT's blocks behind embeddings of their own width; the discriminator tells for each
token whether it was replaced, the generator is a masked language model.
"""

from __future__ import annotations

from ..config import Config
from ..layers import LayerNorm, Linear
from ..weights import Weights, drop, rename
from . import bert
from .heads import DiscriminatorHead, MaskedLMHead, RowHead
from .tokens import Embeddings, LearnedPositions, Task, TokenClass, TokenModel

DEFAULTS = {"hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 1024}
BODY = [*bert.BODY, rename("embeddings_project.*", "embeddings.project.*")]
DISCRIMINATOR = [
    rename("discriminator_predictions.dense.*", "head.dense.*"),
    rename("discriminator_predictions.dense_prediction.*", "head.prediction.*"),
]
LM = [
    rename("generator_predictions.dense.*", "head.dense.*"),
    rename("generator_predictions.LayerNorm.*", "head.norm.*"),
    rename("generator_lm_head.*", "head.decoder.*"),
]
LEFT_OVER = [
    drop("discriminator_predictions.*"),
    drop("generator_predictions.*"),
    drop("generator_lm_head.*"),
    drop("classifier.*"),
    drop("qa_outputs.*"),
    drop("sequence_summary.*"),
]


def _narrow(config: Config) -> int:
    """The width of the embeddings."""
    return config.integer("embedding_size", 128)


def _discriminator(w: Weights, config: Config) -> DiscriminatorHead:
    return DiscriminatorHead(w, bert.width(config), config.activation("hidden_act", "gelu"))


def _lm(w: Weights, config: Config) -> MaskedLMHead:
    vocabulary = config.integer("vocab_size", 30522)
    # the exact gelu, whatever hidden_act says
    return MaskedLMHead(w, bert.width(config), vocabulary, "gelu", bert.eps(config), inner=_narrow(config))


def _row(w: Weights, config: Config) -> RowHead:
    return RowHead(w, bert.width(config), config.num_labels(), "gelu")


def build(config: Config, w: Weights, task: Task) -> TokenModel:
    config = config.with_defaults(DEFAULTS)
    w_e, c, e = w.at("embeddings"), bert.width(config), _narrow(config)
    embeddings = Embeddings(
        w_e,
        config.integer("vocab_size", 30522),
        e,
        positions=LearnedPositions(w_e.at("position"), config.integer("max_position_embeddings", 512), e),
        types=config.integer("type_vocab_size", 2),
        norm=LayerNorm(w_e.at("norm"), e, bert.eps(config)),
        project=Linear(w_e.at("project"), e, c) if e != c else None,
    )
    return bert.assemble(config, w, task, embeddings)


TASKS = {
    "Model": Task(),
    "ForPreTraining": Task(_discriminator, DISCRIMINATOR),
    "ForMaskedLM": Task(_lm, LM),
    "ForCausalLM": Task(_lm, LM),
    "ForSequenceClassification": Task(_row, bert.ROW),
    "ForTokenClassification": Task(bert.token_head, bert.CLASSIFIER),
    "ForQuestionAnswering": Task(bert.span_head, bert.SPAN),
}
ARCHITECTURES = {
    f"Electra{name}": TokenClass(("electra.",), bert.rules_of(BODY, LEFT_OVER), build, task)
    for name, task in TASKS.items()
}
MODEL_TYPES = {"electra": "ElectraModel"}
