"""BERT (Devlin et al. 2018): an encoder with learned positions, token types, and a norm after every sublayer.

The names on the left of the rules are those of transformers' files, without the prefix `bert.` of models
with a head. RoBERTa and ELECTRA share the names and the blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..config import MAX_LAYERS, Config
from ..layers import Attention, Block, FeedForward, LayerNorm, Stack, block
from ..weights import Rule, Tie, Weights, drop, fuse, rename, tie
from .heads import BothHeads, MaskedLMHead, PooledHead, Pooler, SpanHead, TokenHead
from .tokens import Embeddings, LearnedPositions, Task, TokenClass, TokenModel

SELF = "encoder.layer.{i}.attention.self."
EMBEDDINGS = [
    rename("embeddings.word_embeddings.weight", "embeddings.word.weight"),
    rename("embeddings.token_type_embeddings.weight", "embeddings.type.weight"),
    rename("embeddings.position_embeddings.weight", "embeddings.position.weight"),
    rename("embeddings.LayerNorm.*", "embeddings.norm.*"),
    drop("embeddings.position_ids"),  # 0, 1, 2, ... in older files
    drop("embeddings.token_type_ids"),
]
BODY = [
    *EMBEDDINGS,
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
ROW = [rename("classifier.dense.*", "head.dense.*"), rename("classifier.out_proj.*", "head.out.*")]
CLASSIFIER = [rename("classifier.*", "head.classifier.*")]
SPAN = [rename("qa_outputs.*", "head.outputs.*")]
# what a file holds for tasks that the class does not have; each class puts its own rules before these
LEFT_OVER = [drop("cls.*"), drop("classifier.*"), drop("qa_outputs.*")]


def width(config: Config) -> int:
    return config.integer("hidden_size", 768)


def eps(config: Config) -> float:
    return config.number("layer_norm_eps", 1e-12)


def pooled_head(w: Weights, config: Config) -> PooledHead:
    return PooledHead(w.at("classifier"), width(config), config.num_labels())


def token_head(w: Weights, config: Config) -> TokenHead:
    return TokenHead(w.at("classifier"), width(config), config.num_labels())


def span_head(w: Weights, config: Config) -> SpanHead:
    if config.num_labels() != 2:
        raise config.error("id2label", "two labels, start and end, for question answering")
    return SpanHead(w, width(config))


def _masked_lm(w: Weights, config: Config, field: str = "logits") -> MaskedLMHead:
    activation = config.activation("hidden_act", "gelu")
    vocabulary = config.integer("vocab_size", 30522)
    return MaskedLMHead(w.at("lm"), width(config), vocabulary, activation, eps(config), field=field)


def _next_sentence(w: Weights, config: Config, field: str = "logits") -> PooledHead:
    return PooledHead(w.at("next"), width(config), 2, field)


def _pretraining(w: Weights, config: Config) -> BothHeads:
    return BothHeads(_masked_lm(w, config, "prediction_logits"), _next_sentence(w, config, "seq_relationship_logits"))


def _heads(config: Config) -> int:
    heads = config.integer("num_attention_heads", 12)
    if width(config) % heads:
        raise config.error("hidden_size", f"a multiple of num_attention_heads, {heads}")
    return heads


def one_block(config: Config, w: Weights, layer: int = 0) -> Block:
    """A block of BERT and those that are like it. `is_decoder`: attention to what came before only."""
    c = width(config)
    inner, activation = config.integer("intermediate_size", 3072), config.activation("hidden_act", "gelu")
    causal = config.flag("is_decoder", False)
    return block(
        w,
        lambda w: LayerNorm(w, c, eps(config)),
        Attention(w.at("attention"), c, _heads(config), layer=layer, causal=causal),
        FeedForward(w.at("ffn"), c, inner, activation),
    )


def stack(config: Config, w: Weights) -> Stack:
    layers = config.integer("num_hidden_layers", 12, low=0, high=MAX_LAYERS)
    return Stack([one_block(config, w.at(f"blocks.{i}"), i) for i in range(layers)])


def assemble(
    config: Config, w: Weights, task: Task, embeddings: Embeddings, stack_of: Callable[[Config, Weights], Stack] = stack
) -> TokenModel:
    for name, supported in (
        ("position_embedding_type", "absolute"),
        ("add_cross_attention", False),
        ("pruned_heads", {}),
        ("quantization_config", None),
    ):
        config.only(name, supported)
    c, heads = width(config), _heads(config)
    pooled = "pooler.weight" in w if task.pooler is None else task.pooler
    return TokenModel(
        embeddings,
        stack_of(config, w),
        width=c,
        heads=heads,
        cache=(heads, c // heads) if config.flag("is_decoder", False) else None,
        pooler=Pooler(w.at("pooler"), c) if pooled else None,
        head=None if task.head is None else task.head(w.at("head"), config),
    )


def build(config: Config, w: Weights, task: Task) -> TokenModel:
    w_e, c = w.at("embeddings"), width(config)
    embeddings = Embeddings(
        w_e,
        config.integer("vocab_size", 30522),
        c,
        positions=LearnedPositions(w_e.at("position"), config.integer("max_position_embeddings", 512), c),
        types=config.integer("type_vocab_size", 2),
        norm=LayerNorm(w_e.at("norm"), c, eps(config)),
    )
    return assemble(config, w, task, embeddings)


def rules_of(
    body: Sequence[Rule], left_over: Sequence[Rule], decoder: str = "head.decoder.weight"
) -> Callable[[Config, Task], list[Rule | Tie]]:
    """The rules of a family like BERT. left_over: for what a file holds for other tasks. decoder: of its language
    model, tied to the word table."""

    def rules(config: Config, task: Task) -> list[Rule | Tie]:
        return [
            *body,
            *([drop("pooler.*")] if task.pooler is False else POOLER),
            *task.names,
            *left_over,
            tie("embeddings.word.weight", decoder, when=config.flag("tie_word_embeddings", True)),
        ]

    return rules


def _class(head: Callable[[Weights, Config], object] | None, names: list[Rule], pooler: bool | None) -> TokenClass:
    return TokenClass(("bert.",), rules_of(BODY, LEFT_OVER, "head.lm.decoder.weight"), build, Task(head, names, pooler))


ARCHITECTURES = {
    "BertModel": _class(None, [], None),
    "BertForSequenceClassification": _class(pooled_head, CLASSIFIER, True),
    "BertForTokenClassification": _class(token_head, CLASSIFIER, False),
    "BertForQuestionAnswering": _class(span_head, SPAN, False),
    "BertForMaskedLM": _class(_masked_lm, MASKED_LM, False),
    "BertLMHeadModel": _class(_masked_lm, MASKED_LM, False),
    "BertForNextSentencePrediction": _class(_next_sentence, NEXT_SENTENCE, True),
    "BertForPreTraining": _class(_pretraining, [*MASKED_LM, *NEXT_SENTENCE], True),
}
MODEL_TYPES = {"bert": "BertModel"}
