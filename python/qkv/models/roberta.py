"""RoBERTa (Liu et al. 2019), XLM-RoBERTa (Conneau et al. 2019) and CamemBERT (Martin et al. 2019): BERT's blocks, with
positions that are counted over the ids that are not pad.
"""

from __future__ import annotations

from ..config import Config
from ..layers import LayerNorm
from ..weights import Weights, drop, rename
from . import bert
from .heads import MaskedLMHead, RowHead
from .tokens import CountedPositions, Embeddings, Task, TokenClass, TokenModel

LM = [
    rename("lm_head.dense.*", "head.dense.*"),
    rename("lm_head.layer_norm.*", "head.norm.*"),
    rename("lm_head.decoder.weight", "head.decoder.weight"),
    # tied files store only the second; where both are, the forward pass uses the first
    rename(["lm_head.decoder.bias", "lm_head.bias"], "head.decoder.bias"),
]
LEFT_OVER = [drop("lm_head.*"), drop("classifier.*"), drop("qa_outputs.*")]


def _lm(w: Weights, config: Config) -> MaskedLMHead:
    vocabulary = config.integer("vocab_size", 50265)
    return MaskedLMHead(w, bert.width(config), vocabulary, "gelu", bert.eps(config))  # exact, whatever hidden_act says


def _row(w: Weights, config: Config) -> RowHead:
    return RowHead(w, bert.width(config), config.num_labels(), "tanh")


def build(config: Config, w: Weights, task: Task) -> TokenModel:
    w_e, c = w.at("embeddings"), bert.width(config)
    rows, pad = config.integer("max_position_embeddings", 512), config.integer("pad_token_id", 1, low=0)
    embeddings = Embeddings(
        w_e,
        config.integer("vocab_size", 50265),
        c,
        positions=CountedPositions(w_e.at("position"), rows, c, pad),
        types=config.integer("type_vocab_size", 2),
        norm=LayerNorm(w_e.at("norm"), c, bert.eps(config)),
    )
    return bert.assemble(config, w, task, embeddings)


TASKS = {
    "Model": Task(pooler=None),
    "ForSequenceClassification": Task(_row, bert.ROW),
    "ForTokenClassification": Task(bert.token_head, bert.CLASSIFIER),
    "ForQuestionAnswering": Task(bert.span_head, bert.SPAN),
    "ForMaskedLM": Task(_lm, LM),
    "ForCausalLM": Task(_lm, LM),
}
FAMILIES = ("Roberta", "XLMRoberta", "Camembert")
ARCHITECTURES = {
    family + name: TokenClass(("roberta.",), bert.rules_of(bert.BODY, LEFT_OVER), build, task)
    for family in FAMILIES
    for name, task in TASKS.items()
}
MODEL_TYPES = {"roberta": "RobertaModel", "xlm-roberta": "XLMRobertaModel", "camembert": "CamembertModel"}
