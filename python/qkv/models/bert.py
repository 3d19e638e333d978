"""BERT (Devlin et al. 2018): an encoder with learned positions, token types, and a norm after every sublayer.

The names on the left of the rules are those of transformers' files, without the prefix `bert.` of models
with a head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from ..config import MAX_LAYERS, Config
from ..layers import Attention, Block, FeedForward, LayerNorm, Stack, Sublayer
from ..weights import Rule, Tie, Weights, drop, fuse, rename, tie
from .encoder import BothHeads, Embeddings, Encoder, MaskedLMHead, PooledHead, Pooler, SpanHead, TokenHead

PREFIXES = ("bert.",)

SELF = "encoder.layer.{i}.attention.self."
BODY = [
    rename("embeddings.word_embeddings.weight", "embeddings.word.weight"),
    rename("embeddings.token_type_embeddings.weight", "embeddings.type.weight"),
    rename("embeddings.position_embeddings.weight", "embeddings.position.weight"),
    rename("embeddings.LayerNorm.*", "embeddings.norm.*"),
    drop("embeddings.position_ids"),  # 0, 1, 2, ... in older files
    fuse([SELF + "query.*", SELF + "key.*", SELF + "value.*"], "blocks.{i}.attention.qkv.*"),
    rename("encoder.layer.{i}.attention.output.dense.*", "blocks.{i}.attention.out.*"),
    rename("encoder.layer.{i}.attention.output.LayerNorm.*", "blocks.{i}.attention_norm.*"),
    rename("encoder.layer.{i}.intermediate.dense.*", "blocks.{i}.ffn.up.*"),
    rename("encoder.layer.{i}.output.dense.*", "blocks.{i}.ffn.down.*"),
    rename("encoder.layer.{i}.output.LayerNorm.*", "blocks.{i}.ffn_norm.*"),
]
POOLER = [rename("pooler.dense.*", "pooler.*")]
MASKED_LM = [
    rename("cls.predictions.transform.dense.*", "head.lm.dense.*"),
    rename("cls.predictions.transform.LayerNorm.*", "head.lm.norm.*"),
    rename("cls.predictions.decoder.weight", "head.lm.decoder.weight"),
    # tied files store only the second; where both are, the forward pass uses the first
    rename(["cls.predictions.decoder.bias", "cls.predictions.bias"], "head.lm.decoder.bias"),
]
NEXT_SENTENCE = [rename("cls.seq_relationship.*", "head.next.*")]
# what a file holds for tasks that the class does not have; each class puts its own rules before these
LEFT_OVER = [drop("pooler.dense.*"), drop("cls.*"), drop("classifier.*"), drop("qa_outputs.*")]


def _width(config: Config) -> int:
    return config.integer("hidden_size", 768)


def _eps(config: Config) -> float:
    return config.number("layer_norm_eps", 1e-12)


def _pooled(w: Weights, config: Config) -> PooledHead:
    return PooledHead(w.at("classifier"), _width(config), config.num_labels())


def _tokens(w: Weights, config: Config) -> TokenHead:
    return TokenHead(w.at("classifier"), _width(config), config.num_labels())


def _span(w: Weights, config: Config) -> SpanHead:
    if config.num_labels() != 2:
        raise config.error("id2label", "two labels, start and end, for question answering")
    return SpanHead(w.at("span"), _width(config))


def _masked_lm(w: Weights, config: Config, field: str = "logits") -> MaskedLMHead:
    activation = config.activation("hidden_act", "gelu")
    vocabulary = config.integer("vocab_size", 30522)
    return MaskedLMHead(w.at("lm"), _width(config), vocabulary, activation, _eps(config), field)


def _next_sentence(w: Weights, config: Config, field: str = "logits") -> PooledHead:
    return PooledHead(w.at("next"), _width(config), 2, field)


def _pretraining(w: Weights, config: Config) -> BothHeads:
    return BothHeads(_masked_lm(w, config, "prediction_logits"), _next_sentence(w, config, "seq_relationship_logits"))


@dataclass(frozen=True)
class Bert:
    """One class of the family: its head, the head's names, and whether it has a pooler ("maybe": if the
    file has)."""

    pooler: Literal[True, False, "maybe"] = False
    head: Callable[[Weights, Config], object] | None = None
    names: Sequence[Rule] = ()
    prefixes = PREFIXES

    def rules(self, config: Config) -> list[Rule | Tie]:
        tied = config.flag("tie_word_embeddings", True)
        return [
            *BODY,
            *(POOLER if self.pooler else []),
            *self.names,
            *LEFT_OVER,
            tie("embeddings.word.weight", "head.lm.decoder.weight", when=tied),
        ]

    def build(self, config: Config, w: Weights) -> Encoder:
        for name, supported in (
            ("position_embedding_type", "absolute"),
            ("is_decoder", False),
            ("add_cross_attention", False),
            ("pruned_heads", {}),
            ("quantization_config", None),
        ):
            config.only(name, supported)
        width, eps = _width(config), _eps(config)
        heads = config.integer("num_attention_heads", 12)
        if width % heads:
            raise config.error("hidden_size", f"a multiple of num_attention_heads, {heads}")
        inner = config.integer("intermediate_size", 3072)
        activation = config.activation("hidden_act", "gelu")

        def block(w: Weights) -> Block:
            attention = Attention(w.at("attention"), width, heads)
            ffn = FeedForward(w.at("ffn"), width, inner, activation)
            return Block(
                Sublayer(attention, norm_residual=LayerNorm(w.at("attention_norm"), width, eps)),
                Sublayer(ffn, norm_residual=LayerNorm(w.at("ffn_norm"), width, eps)),
            )

        layers = config.integer("num_hidden_layers", 12, low=0, high=MAX_LAYERS)
        pooled = self.pooler is True or (self.pooler == "maybe" and "pooler.weight" in w)
        return Encoder(
            Embeddings(
                w.at("embeddings"),
                config.integer("vocab_size", 30522),
                config.integer("type_vocab_size", 2),
                config.integer("max_position_embeddings", 512),
                width,
                eps,
            ),
            Stack([block(w.at(f"blocks.{i}")) for i in range(layers)]),
            heads=heads,
            pooler=Pooler(w.at("pooler"), width) if pooled else None,
            head=None if self.head is None else self.head(w.at("head"), config),
        )


CLASSIFIER = [rename("classifier.*", "head.classifier.*")]
SPAN = [rename("qa_outputs.*", "head.span.*")]
ARCHITECTURES = {
    "BertModel": Bert(pooler="maybe"),
    "BertForSequenceClassification": Bert(True, _pooled, CLASSIFIER),
    "BertForTokenClassification": Bert(False, _tokens, CLASSIFIER),
    "BertForQuestionAnswering": Bert(False, _span, SPAN),
    "BertForMaskedLM": Bert(False, _masked_lm, MASKED_LM),
    "BertForNextSentencePrediction": Bert(True, _next_sentence, NEXT_SENTENCE),
    "BertForPreTraining": Bert(True, _pretraining, [*MASKED_LM, *NEXT_SENTENCE]),
}
MODEL_TYPES = {"bert": "BertModel"}
