"""Llama and its kin: rotations that depend on a row's length, and the forms that configs and files have; the numbers
are test_models.py's."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import qkv
from golden_checks import GOLDEN, agree, checkpoint, close, expected, outputs
from qkv.layers import Rotary, Run
from qkv.models import llama

LENGTH_DEPENDENT = ("llama_dynamic", "llama_longrope", "phi3_lm")


# ---- rotations by the length of a row


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_rotary_decides_for_each_row_of_a_packed_batch(kind: str, rng: np.random.Generator) -> None:
    d, base, trained, factor = 8, 100.0, 8, 3.0
    divisors = {"short_factor": [1.0, 1.5, 2.0, 2.5], "long_factor": [2.0, 3.0, 5.0, 7.0]}
    scaling = {"rope_type": kind, "factor": factor, "max_position_embeddings": trained} | divisors
    rotary = Rotary(d, base, scaling)
    assert rotary.steady == trained
    assert kind == "dynamic" or Rotary(d, base, scaling | {"long_factor": divisors["short_factor"]}).steady is None

    def frequencies(n: int) -> list[float]:
        if kind == "dynamic":
            b = base * (factor * max(n, trained) / trained - (factor - 1)) ** (d / (d - 2))
            return [b ** (-2 * i / d) for i in range(d // 2)]
        e = divisors["long_factor" if n > trained else "short_factor"]
        return [base ** (-2 * i / d) / e[i] for i in range(d // 2)]

    attention = 1.0 if kind == "dynamic" else math.sqrt(1 + math.log(factor) / math.log(trained))
    # a long row, one of the trained length, an empty one, and new tokens behind cached ones within it and beyond
    rows = [np.arange(12), np.arange(8), np.arange(0), np.arange(5, 7), np.arange(7, 10)]
    cu_seqlens = np.cumsum([0, *map(len, rows)])
    x = rng.normal(size=(cu_seqlens[-1], 2, d)).astype(np.float32)
    turned = rotary(x, Run(cu_seqlens, np.concatenate(rows)))
    for positions, (a, b) in zip(rows, pairwise(cu_seqlens.tolist()), strict=True):
        n = positions.max(initial=-1) + 1
        angles = positions[:, None, None] * np.array(frequencies(n))
        exact = (x[a:b, :, : d // 2] + 1j * x[a:b, :, d // 2 :]) * np.exp(1j * angles) * attention
        np.testing.assert_allclose(turned[a:b, :, : d // 2], exact.real, rtol=0, atol=1e-5)
        np.testing.assert_allclose(turned[a:b, :, d // 2 :], exact.imag, rtol=0, atol=1e-5)


@pytest.mark.parametrize("folder", LENGTH_DEPENDENT)
def test_rows_of_one_batch_each_as_alone(folder: str) -> None:
    """In transformers the longest row decides for all; here each is as it is there among its equals."""
    model, cases = qkv.load(GOLDEN / folder), expected(folder)
    short, long = cases["full"], cases["beyond"]
    n, m = short["input_ids"].shape[1], long["input_ids"].shape[1]
    assert n <= model.exact_up_to < m
    name = "logits" if "logits" in short else "last_hidden_state"
    for columns in (slice(n), slice(m - n, m)):  # padded on the right, and on the left
        ids, mask = np.concatenate([long["input_ids"], 0 * long["input_ids"]]), np.ones((4, m), int)
        mask[2:] = 0
        ids[2:, columns], mask[2:, columns] = short["input_ids"], 1
        out = outputs(model(ids, mask))[name]
        close(out[:2], long[name])
        close(out[2:, columns], short[name])


@pytest.mark.parametrize("folder", LENGTH_DEPENDENT)
def test_a_long_prompt_in_one_piece_is_as_without_a_cache(folder: str) -> None:
    model = qkv.load(GOLDEN / folder)
    rows = expected(folder)["beyond"]["input_ids"].tolist()
    cache = model.new_cache()
    x = model.extend(cache, [cache.sequence(), cache.sequence()], rows)
    states = model(rows, output_hidden_states=True).hidden_states[-1]
    np.testing.assert_array_equal(x, states.reshape(x.shape))


# ---- configs


def older(config: dict[str, Any], kind: str | None = None) -> dict[str, Any]:
    """As files before transformers 5 have it: rope_theta at top level, and rope_scaling with `type`, or null."""
    rope = dict(config["rope_parameters"])
    top = {key: rope.pop(key) for key in ("rope_theta", "partial_rotary_factor") if key in rope}
    old = rope.pop("rope_type")
    rope["type"] = old if kind is None else kind
    rest = {key: value for key, value in config.items() if key != "rope_parameters"}
    return rest | top | {"rope_scaling": None if rope == {"type": "default"} else rope}


@pytest.mark.parametrize(
    ("folder", "kind"),
    [
        ("llama_base", None),
        ("llama_lm", None),
        ("llama_tied", None),
        ("llama_classify", None),
        ("llama_dynamic", None),
        ("llama_longrope", None),
        ("phi3_tag", None),
        ("phi3_lm", "su"),
        ("phi3_lm", "yarn"),
    ],
)
def test_older_configs_of_rotary_positions(folder: str, kind: str | None) -> None:
    config, weights = checkpoint(folder)
    agree(qkv.from_weights(older(config, kind), weights), folder)


def test_the_trained_length_at_top_level_counts() -> None:
    config, weights = checkpoint("llama_classify")
    config["rope_parameters"]["original_max_position_embeddings"] = 5
    agree(qkv.from_weights(config, weights), "llama_classify")
    config, weights = checkpoint("phi3_lm")
    del config["original_max_position_embeddings"]  # then it is the class's
    assert qkv.from_weights(config, weights).exact_up_to == 4096


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("llama_lm", {"quantization_config": {"bits": 4}}, "quantization_config .* is not supported"),
    ("llama_lm", {"is_causal": False}, "is_causal False is not supported"),
    ("llama_lm", {"sliding_window": 4}, "sliding_window 4 is not supported"),
    ("llama_lm", {"layer_types": ["sliding_attention"] * 2}, "layer_types must be absent, or"),
    ("llama_lm", {"num_key_value_heads": 3}, "num_key_value_heads must be a divisor of num_attention_heads, 4; got 3"),
    ("llama_lm", {"head_dim": None, "hidden_size": 18}, "hidden_size must be a multiple of num_attention_heads, 4"),
    ("llama_lm", {"head_dim": 5}, "rope_parameters must be .*dim must be even"),
    ("llama_lm", {"hidden_act": "xielu"}, "hidden_act must be one of"),
    ("llama_lm", {"partial_rotary_factor": 0.5}, "partial_rotary_factor must be absent, or 1; got 0.5"),
    ("llama_lm", {"rope_theta": "x", "rope_parameters": None}, "rope_theta must be a finite number"),
    ("llama_tag", {"token_classification_bias": False}, "token_classification_bias False is not supported"),
    ("mistral_lm", {"layer_types": ["full_attention"] * 2}, "layer_types must be absent, or"),
    ("mistral_lm", {"sliding_window": 0}, "sliding_window must be an integer from 1"),
    ("qwen2_lm", {"use_sliding_window": False}, "layer_types must be full_attention throughout"),
    ("qwen2_lm", {"layer_types": ["full_attention"]}, "layer_types must be a list of 2 times"),
    ("qwen2_lm", {"layer_types": ["full_attention", "chunked_attention"]}, "layer_types must be a list of 2 times"),
    ("gemma2_lm", {"use_bidirectional_attention": True}, "use_bidirectional_attention True is not supported"),
    ("gemma2_lm", {"attn_logit_softcapping": 0}, "attn_logit_softcapping must be a finite number"),
    ("gemma2_lm", {"final_logit_softcapping": "30"}, "final_logit_softcapping must be a finite number"),
    ("gemma2_lm", {"query_pre_attn_scalar": -1}, "query_pre_attn_scalar must be a finite number"),
    ("phi3_lm", {"rope_parameters": {"rope_type": "linear", "factor": 2.0}}, "must be of type default or longrope"),
]
ROPES: list[tuple[Any, str]] = [
    ([1], "one object for all layers"),
    ({"full_attention": {"rope_type": "default"}}, "one object for all layers"),
    ({"rope_type": "proportional"}, "unknown rope type 'proportional'"),
    ({"rope_type": "default", "mrope_section": [1, 1]}, "mrope_section"),
    ({"rope_type": "default", "partial_rotary_factor": 0.5}, "rope_parameters must be absent, or 1"),
    ({"rope_type": "default", "rope_theta": 0.0}, "base must be positive"),
    ({"rope_type": "default", "rope_theta": [1]}, "rope_parameters must be"),
    ({"rope_type": "linear"}, "'factor'"),
    ({"rope_type": "linear", "factor": 10**400}, "rope_parameters must be"),
    ({"rope_type": "yarn", "factor": 2.0, "rope_theta": 1}, "rope_parameters must be"),
    ({"rope_type": "yarn", "factor": 2.0, "attention_factor": [1]}, "rope_parameters must be"),
    ({"rope_type": "yarn", "factor": 2.0, "attention_factor": math.inf}, "not finite"),
    ({"rope_type": "longrope", "short_factor": [0, 1], "long_factor": [1, 1]}, "not finite"),
    ({"rope_type": "longrope", "short_factor": [1, 1], "long_factor": [1]}, "long_factor must hold 2 numbers"),
]


@pytest.mark.parametrize(
    ("folder", "changes", "message"),
    [*REFUSED, *(("llama_lm", {"rope_parameters": rope}, message) for rope, message in ROPES)],
)
def test_what_is_not_implemented_is_refused_by_name(folder: str, changes: dict[str, Any], message: str) -> None:
    config, weights = checkpoint(folder)
    with pytest.raises(ValueError, match=message):
        qkv.from_weights(config | changes, weights)


def windows(name: str, changes: dict[str, Any], *absent: str) -> list[Any]:
    config, weights = checkpoint(name)
    config = {key: value for key, value in config.items() if key not in absent} | changes
    blocks = qkv.from_weights(config, weights).stack.blocks
    return [block.sublayers[0].layer.options["window"] for block in blocks]


def test_windows_where_a_config_says_nothing() -> None:
    assert windows("mistral_lm", {}, "sliding_window") == [(4095, 0)] * 2  # 4096 tokens, its own among them
    assert windows("mistral_lm", {"sliding_window": None}) == [None] * 2
    assert windows("mistral_lm", {"layer_types": ["sliding_attention"] * 2}) == [(2, 0)] * 2
    assert windows("qwen2_base", {}, "layer_types") == [None, (2, 0)]
    assert windows("qwen2_base", {}, "layer_types", "max_window_layers") == [None] * 2
    assert windows("qwen2_base", {}, "layer_types", "use_sliding_window") == [None] * 2
    assert windows("qwen3_window", {}, "layer_types", "sliding_window") == [(4095, 0)] * 2
    assert windows("gemma2_lm", {}, "layer_types", "sliding_window") == [(4095, 0), None]
    assert windows("phi3_lm", {}, "sliding_window") == [None] * 2


def test_sizes_where_a_config_says_nothing() -> None:
    def without(name: str, key: str, **changes: Any) -> str:
        config, weights = checkpoint(name)
        del config[key]
        with pytest.raises(ValueError, match=r"config|mis-shaped") as error:
            qkv.from_weights(config | changes, weights)
        return str(error.value)

    assert "expected (1024, 16)" in without("qwen3_lm", "head_dim")  # 4 + 2 * 2 heads of 128
    assert "expected (2048, 16)" in without("gemma2_lm", "head_dim")  # of 256
    assert "num_key_value_heads must be a divisor" in without("mistral_lm", "num_key_value_heads")  # 8
    assert "num_key_value_heads must be a divisor" in without("qwen2_lm", "num_key_value_heads")  # 32
    # null: as many as heads, 3 * 4 of width 6
    assert "expected (72, 16)" in without("mistral_lm", "num_key_value_heads", num_key_value_heads=None)


# ---- names in files

BASES = {
    "Llama": "llama_base",
    "Mistral": "mistral_lm",
    "Qwen2": "qwen2_base",
    "Qwen3": "qwen3_lm",
    "Gemma2": "gemma2_untied",
    "Phi3": "phi3_tag",
}
HEADS: dict[str, dict[str, tuple[int, ...]]] = {
    "Model": {},
    "ForCausalLM": {"lm_head.weight": (40, 16)},
    "ForSequenceClassification": {"score.weight": (3, 16)},
    "ForTokenClassification": {"score.weight": (3, 16), "score.bias": (3,)},
    "ForQuestionAnswering": {"qa_outputs.weight": (2, 16), "qa_outputs.bias": (2,)},
}


@pytest.mark.parametrize("prefix", ["", "model.", "transformer."])
@pytest.mark.parametrize("name", llama.ARCHITECTURES)
def test_every_class_from_files_with_and_without_a_prefix(name: str, prefix: str, rng: np.random.Generator) -> None:
    """With a head of its own, and what else there may be in a file: heads of other tasks, and old buffers."""
    family = next(family for family in BASES if name.startswith(family))
    config, weights = checkpoint(BASES[family])
    heads = {part: rng.normal(size=shape).astype(np.float32) for head in HEADS.values() for part, shape in head.items()}
    body = {n.removeprefix("model."): w for n, w in weights.items() if not n.startswith(("lm_head", "score"))}
    body |= {f"layers.{i}.self_attn.rotary_emb.inv_freq": np.ones(3, np.float32) for i in range(2)}
    body |= {"rotary_emb.inv_freq": np.ones(3, np.float32)}
    file = {prefix + n: w for n, w in body.items()} | heads
    config |= {"num_labels": 3, "id2label": None, "pad_token_id": None}
    ids = rng.integers(0, 40, (2, 6))
    states = qkv.from_weights(config | {"architectures": [f"{family}Model"]}, file)(ids).last_hidden_state
    out = qkv.from_weights(config | {"architectures": [name]}, file)(ids)
    task = name.removeprefix(family)
    if task == "Model":
        np.testing.assert_array_equal(out.last_hidden_state, states)
        return
    weight, bias = [*(heads[part].astype(float) for part in HEADS[task]), np.zeros(1)][:2]
    logits = states @ weight.T + bias
    if task == "ForQuestionAnswering":
        close(np.stack([out.start_logits, out.end_logits], axis=-1), logits)
    else:
        close(out.logits, logits[:, -1] if task == "ForSequenceClassification" else logits)


def test_ties() -> None:
    config, weights = checkpoint("llama_tied")
    table = weights.pop("model.embed_tokens.weight")
    agree(qkv.from_weights(config, weights | {"lm_head.weight": table}), "llama_tied")
    config, weights = checkpoint("llama_lm")
    agree(qkv.from_weights(config | {"tie_word_embeddings": True}, weights), "llama_lm")  # both there, and different
    del weights["lm_head.weight"]
    with pytest.raises(ValueError, match=r"1 missing(.|\n)*lm_head\.weight"):
        qkv.from_weights(config, weights)
