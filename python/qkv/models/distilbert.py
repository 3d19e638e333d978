"""DistilBERT (Sanh et al. 2019): BERT's blocks under other names, without token types and pooler."""

from __future__ import annotations

from ..config import MAX_LAYERS, Config
from ..layers import LayerNorm
from ..weights import Weights, drop, fuse, rename
from . import bert
from .heads import MaskedLMHead, RowHead
from .tokens import Embeddings, LearnedPositions, Task, TokenClass, TokenModel

LAYER = "transformer.layer.{i}."
BODY = [
    *bert.EMBEDDINGS,
    fuse([f"{LAYER}attention.{part}_lin.*" for part in "qkv"], "blocks.{i}.attention.qkv.*"),
    rename(LAYER + "attention.out_lin.*", "blocks.{i}.attention.out.*"),
    rename(LAYER + "sa_layer_norm.*", "blocks.{i}.attention_norm.*"),
    rename(LAYER + "ffn.lin1.*", "blocks.{i}.ffn.up.*"),
    rename(LAYER + "ffn.lin2.*", "blocks.{i}.ffn.down.*"),
    rename(LAYER + "output_layer_norm.*", "blocks.{i}.ffn_norm.*"),
]
LM = [
    rename("vocab_transform.*", "head.dense.*"),
    rename("vocab_layer_norm.*", "head.norm.*"),
    rename("vocab_projector.*", "head.decoder.*"),
]
ROW = [rename("pre_classifier.*", "head.dense.*"), rename("classifier.*", "head.out.*")]
LEFT_OVER = [
    drop("vocab_transform.*"),
    drop("vocab_layer_norm.*"),
    drop("vocab_projector.*"),
    drop("pre_classifier.*"),
    drop("classifier.*"),
    drop("qa_outputs.*"),
]


def _as_bert(config: Config) -> Config:
    """The config in BERT's words. What BERT reads besides is fixed."""
    aliases = {"hidden_size": "dim", "num_attention_heads": "n_heads", "num_hidden_layers": "n_layers"}
    config = config.own_names(aliases)
    config.activation("activation", "gelu")  # says which key is wrong
    return config.replaced(
        {
            "hidden_size": config.integer("dim", 768),
            "num_hidden_layers": config.integer("n_layers", 6, low=0, high=MAX_LAYERS),
            "num_attention_heads": config.integer("n_heads", 12),
            "intermediate_size": config.integer("hidden_dim", 3072),
            "hidden_act": config.get("activation") or "gelu",
            "layer_norm_eps": 1e-12,
            "is_decoder": False,
        }
    )


def _lm(w: Weights, config: Config) -> MaskedLMHead:
    activation = config.activation("activation", "gelu")
    return MaskedLMHead(w, bert.width(config), config.integer("vocab_size", 30522), activation, bert.eps(config))


def _row(w: Weights, config: Config) -> RowHead:
    return RowHead(w, bert.width(config), config.num_labels(), "relu")


def build(config: Config, w: Weights, task: Task) -> TokenModel:
    config = _as_bert(config)
    w_e, c = w.at("embeddings"), bert.width(config)
    embeddings = Embeddings(
        w_e,
        config.integer("vocab_size", 30522),
        c,
        # sinusoidal_pos_embds says only where training began: the file has the table in any case
        positions=LearnedPositions(w_e.at("position"), config.integer("max_position_embeddings", 512), c),
        norm=LayerNorm(w_e.at("norm"), c, bert.eps(config)),
    )
    return bert.assemble(config, w, task, embeddings)


TASKS = {
    "Model": Task(),
    "ForSequenceClassification": Task(_row, ROW),
    "ForTokenClassification": Task(bert.token_head, bert.CLASSIFIER),
    "ForQuestionAnswering": Task(bert.span_head, bert.SPAN),
    "ForMaskedLM": Task(_lm, LM),
}
ARCHITECTURES = {
    f"DistilBert{name}": TokenClass(("distilbert.",), bert.rules_of(BODY, LEFT_OVER), build, task)
    for name, task in TASKS.items()
}
MODEL_TYPES = {"distilbert": "DistilBertModel"}
