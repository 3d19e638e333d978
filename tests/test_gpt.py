"""GPT, GPT-2, CTRL and ImageGPT: what files and configs may hold; the numbers are test_models.py's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import qkv
from golden_checks import GOLDEN, agree, checkpoint

FAMILIES = ("gpt", "gpt2", "ctrl", "imagegpt")


@pytest.mark.parametrize("family", FAMILIES)
def test_files_without_the_prefix_and_with_it(family: str) -> None:
    config, weights = checkpoint(f"{family}_lm")
    agree(qkv.from_weights(config, {k.removeprefix("transformer."): v for k, v in weights.items()}), f"{family}_lm")
    config, weights = checkpoint(f"{family}_base")
    agree(qkv.from_weights(config, {"transformer." + k: v for k, v in weights.items()}), f"{family}_base")


@pytest.mark.parametrize("family", ["gpt", "gpt2", "imagegpt"])
@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_buffers_of_older_files_are_dropped(family: str, prefix: str) -> None:
    config, weights = checkpoint(f"{family}_base")
    weights = {prefix + name: value for name, value in weights.items()}
    for i in range(2):
        weights[f"{prefix}h.{i}.attn.bias"] = np.tril(np.ones((1, 1, 12, 12), np.uint8))
        weights[f"{prefix}h.{i}.attn.masked_bias"] = np.float32(-1e4)
    if family == "gpt":
        weights[prefix + "position_ids"] = np.arange(12)
    agree(qkv.from_weights(config, weights), f"{family}_base")
    del weights[prefix + "h.1.attn.c_attn.bias"]
    with pytest.raises(ValueError, match=rf"1 missing.*\n  missing: {prefix}h.1.attn.c_attn.bias"):
        qkv.from_weights(config, weights)


@pytest.mark.parametrize("family", FAMILIES)
def test_heads_of_other_tasks_are_dropped(family: str) -> None:
    config, weights = checkpoint(f"{family}_base")
    for name in ("lm_head", "score", "classifier", "qa_outputs"):
        weights[name + ".weight"] = np.ones((3, 16), np.float32)
        weights[name + ".bias"] = np.ones(3, np.float32)
    agree(qkv.from_weights(config, weights), f"{family}_base")


def test_files_of_double_heads_models() -> None:
    """GPT's class of that name stores the head and not the table, GPT-2's the table."""
    for family, name, cls in (("gpt", "tokens_embed", "OpenAIGPT"), ("gpt2", "wte", "GPT2")):
        config, weights = checkpoint(f"{family}_lm")
        config["architectures"] = [cls + "LMHeadModel"]
        weights["multiple_choice_head.summary.weight"] = np.ones((1, 16), np.float32)
        weights["multiple_choice_head.summary.bias"] = np.ones(1, np.float32)
        agree(qkv.from_weights(config, weights), f"{family}_lm")
        weights["lm_head.weight"] = weights.pop(f"transformer.{name}.weight")
        agree(qkv.from_weights(config, weights), f"{family}_lm")


def test_the_table_is_the_head_only_if_tied() -> None:
    for family in ("gpt", "gpt2", "ctrl"):
        model = qkv.load(GOLDEN / f"{family}_lm")
        assert model.parameters["head.decoder.weight"] is model.parameters["embeddings.word.weight"]
        config, weights = checkpoint(f"{family}_untied")
        agree(qkv.from_weights(config | {"tie_word_embeddings": True}, weights), f"{family}_untied")
        del weights["lm_head.weight"]
        with pytest.raises(ValueError, match=r"missing: lm_head.weight"):
            qkv.from_weights(config, weights)


def test_names_that_other_families_give_sizes() -> None:
    """In transformers these count where both are there."""
    config, weights = checkpoint("gpt2_lm")
    config |= {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2, "max_position_embeddings": 12}
    agree(qkv.from_weights(config | {"n_head": 4, "n_layer": 1}, weights), "gpt2_lm")


def test_scores_of_float32_are_what_there_is() -> None:
    config, weights = checkpoint("gpt2_lm")
    agree(qkv.from_weights(config | {"reorder_and_upcast_attn": True}, weights), "gpt2_lm")


WRONG: list[tuple[str, str, Any, str]] = [
    *((f"{family}_base", "add_cross_attention", True, "add_cross_attention True is not supp") for family in FAMILIES),
    *((f"{family}_base", "n_head", 3, "n_embd must be a multiple of n_head, 3") for family in FAMILIES),
    *((f"{family}_base", "quantization_config", {}, "quantization_config {} is not supported") for family in FAMILIES),
    ("gpt_base", "afn", "gelu_new", "afn must be one of gelu, relu, silu, swish; got 'gelu_new'"),
    ("gpt_base", "afn", ["gelu"], "afn must be one of"),
    ("gpt2_base", "activation_function", "mish", "activation_function must be one of"),
    ("gpt2_base", "scale_attn_weights", 2, "scale_attn_weights must be true or false"),
    ("gpt2_base", "scale_attn_by_inverse_layer_idx", "no", "scale_attn_by_inverse_layer_idx must be true or false"),
    ("gpt2_base", "reorder_and_upcast_attn", 1, "reorder_and_upcast_attn must be true or false"),
    ("gpt2_base", "n_inner", 20, r"h.0.mlp.c_fc.weight is \(64, 16\), expected \(20, 16\)"),
    ("gpt2_classify", "pad_token_id", "0", "pad_token_id must be an integer"),
    ("imagegpt_lm", "tie_word_embeddings", True, "tie_word_embeddings True is not supported"),
]


@pytest.mark.parametrize(("folder", "name", "value", "message"), WRONG)
def test_options_are_refused_by_name(folder: str, name: str, value: Any, message: str) -> None:
    config, weights = checkpoint(folder)
    with pytest.raises(ValueError, match=message):
        qkv.from_weights(config | {name: value}, weights)


@pytest.mark.parametrize("family", FAMILIES)
def test_token_types_are_left_to_the_caller(family: str) -> None:
    """A tokenizer that made them, all zero, would add the table's row 0 to every token."""
    model = qkv.load(GOLDEN / f"{family}_base")
    assert not model.token_types
    ids = np.arange(5)[None]
    plain, typed = model(ids).last_hidden_state, model(ids, token_type_ids=ids * 0).last_hidden_state
    assert np.abs(plain - typed).max() > 0.01


def test_without_a_pad_token_the_last_one_is_classified() -> None:
    config, weights = checkpoint("gpt2_classify")
    ids, mask = np.array([[5, 3, 7, 3, 3], [4, 8, 3, 0, 0]]), np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    padded = qkv.from_weights(config, weights)  # pad is 3
    np.testing.assert_array_equal(padded(ids, mask).logits[0], padded([[5, 3, 7]]).logits[0])
    np.testing.assert_array_equal(padded(ids, mask).logits[1], padded([[4, 8]]).logits[0])
    plain = qkv.from_weights(config | {"pad_token_id": None}, weights)
    states = qkv.from_weights(config | {"architectures": ["GPT2Model"]}, weights)(ids, mask).last_hidden_state
    exact = states[[0, 1], [4, 2]].astype(np.float64) @ weights["score.weight"].T
    np.testing.assert_allclose(plain(ids, mask).logits, exact, rtol=0, atol=1e-5 * np.abs(exact).max())


def test_the_mean_of_an_image_leaves_out_padding() -> None:
    model = qkv.load(GOLDEN / "imagegpt_classify")
    ids, mask = np.arange(12).reshape(2, 6), np.array([[1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 0]])
    np.testing.assert_array_equal(model(ids, mask).logits[1], model(ids[1:, 2:5]).logits[0])
    assert model(np.zeros((0, 4), int)).logits.shape == (0, 3)
