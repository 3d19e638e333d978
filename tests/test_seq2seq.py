"""Models of two stacks against themselves, and what their callers may get wrong. Numbers: test_models.py."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import qkv
from golden_checks import GOLDEN, checkpoint, outputs
from qkv.models.t5 import buckets

FOLDERS = ["bart_scaled", "mbart_lm", "marian_lm", "t5_v1_1"]


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_pair_does_not_depend_on_its_batch(folder: str, isa: str, rng: np.random.Generator) -> None:
    """To the bit: padding on either side of either text, and other pairs, change nothing."""
    model = qkv.load(GOLDEN / folder)
    pairs = [(rng.integers(3, 38, n), rng.integers(3, 38, m)) for n, m in ((7, 2), (1, 6), (4, 1))]
    options = {"output_attentions": True, "output_hidden_states": True}
    alone = [outputs(model([a], decoder_input_ids=[b], **options)) for a, b in pairs]

    def padded(rows: list[np.ndarray], side: str) -> tuple[np.ndarray, np.ndarray]:
        ids, mask = np.zeros((len(rows), 7), np.int64), np.zeros((len(rows), 7), bool)
        for b, row in enumerate(rows):
            place = np.s_[: len(row)] if side == "right" else np.s_[7 - len(row) :]
            ids[b, place], mask[b, place] = row, True
        return ids, mask

    for sides in (("right", "right"), ("left", "right"), ("right", "left")):
        (a, a_mask), (b, b_mask) = (padded([pair[k] for pair in pairs], sides[k]) for k in (0, 1))
        out = outputs(model(a, a_mask, decoder_input_ids=b, decoder_attention_mask=b_mask, **options))
        for i, one in enumerate(alone):
            for name, value in one.items():
                keys = a_mask if name.startswith(("encoder_", "cross_")) else b_mask
                own = a_mask if name.startswith("encoder_") else b_mask
                if "attentions" in name:
                    np.testing.assert_array_equal(out[name][:, i][:, :, own[i]][..., keys[i]], value[:, 0])
                    assert not out[name][:, i][:, :, ~own[i]].any() and not out[name][:, i][..., ~keys[i]].any()
                elif "hidden_states" in name:
                    np.testing.assert_array_equal(out[name][:, i, own[i]], value[:, 0])
                else:
                    np.testing.assert_array_equal(out[name][i, own[i]], value[0])
                    assert not out[name][i, ~own[i]].any()


def test_buckets_are_t5s() -> None:
    """Where a new bucket begins, for 32 buckets up to 128 (families' table, from the paper's formula)."""
    both = buckets(np.arange(-200, 201), 32, 128, both=True)
    steps = [int(d) for d in range(1, 200) if both[200 - d] != both[200 - d + 1]]
    assert steps == [1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 23, 32, 46, 64, 91]
    np.testing.assert_array_equal(both[201:] - 16, both[:200][::-1])
    before = buckets(np.arange(-200, 3), 32, 128, both=False)
    steps = [int(d) for d in range(1, 200) if before[200 - d] != before[200 - d + 1]]
    assert steps == [*range(1, 17), 19, 21, 24, 27, 31, 35, 40, 46, 52, 59, 67, 77, 87, 99, 113]
    assert before[200:].tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "decoder_input_ids: a MarianMTModel needs them"),
        ({"decoder_input_ids": [[1], [2]]}, "decoder_input_ids: 2 rows for 1"),
        ({"decoder_input_ids": [[40]]}, "decoder_input_ids: 40 in row 0, column 0 is not among"),
        ({"decoder_input_ids": [[-1]]}, "decoder_input_ids: -1 in row 0"),
        ({"decoder_input_ids": [[5] * 13]}, "decoder_input_ids: row 0 has 13 tokens; the model has 12 positions"),
        (
            {"decoder_input_ids": [[5, 6]], "decoder_attention_mask": [[1]]},
            r"decoder_attention_mask: expected shape \(1, 2\) as decoder_input_ids",
        ),
        ({"decoder_input_ids": [[5]], "position_ids": [[0, 1]]}, "position_ids: a MarianMTModel has no such input"),
        ({"decoder_input_ids": [[5]], "mems": []}, "mems: a MarianMTModel has no such input"),
        ({"decoder_input_ids": [5]}, "decoder_input_ids: expected shape"),
    ],
)
def test_wrong_decoder_input(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        qkv.load(GOLDEN / "marian_lm")([[4, 5]], **arguments)


def test_classes_of_one_pooled_token_want_an_eos() -> None:
    model = qkv.load(GOLDEN / "bart_classify")
    with pytest.raises(ValueError, match="the same number of eos tokens"):
        model([[4, 5, 2], [4, 2, 2]])
    with pytest.raises(ValueError, match="at least one"):
        model([[4, 5, 6]])


def test_empty_batches() -> None:
    for folder in FOLDERS:
        model = qkv.load(GOLDEN / folder)
        empty = np.zeros((0, 3), np.int64)
        out = model(empty, decoder_input_ids=empty)
        assert out.logits.shape == (0, 3, 40) and out.encoder_last_hidden_state.shape == (0, 3, 16)


@pytest.mark.parametrize(
    ("folder", "name", "value", "message"),
    [
        ("bart_base", "static_position_embeddings", True, "static_position_embeddings True is not supported"),
        ("mbart_base", "normalize_before", False, "normalize_before False is not supported"),
        ("marian_base", "add_final_layer_norm", True, "add_final_layer_norm True is not supported"),
        ("bart_base", "activation_function", "mish", "activation_function must be one of"),
        ("bart_base", "encoder_attention_heads", 3, "d_model must be a multiple of encoder_attention_heads"),
        ("t5_base", "dense_act_fn", "mish", "dense_act_fn must be one of"),
        ("t5_base", "quantization_config", {"bits": 4}, "quantization_config .* is not supported"),
    ],
)
def test_options_are_refused_by_name(folder: str, name: str, value: Any, message: str) -> None:
    config, weights = checkpoint(folder)
    qkv.from_weights(config, weights)
    with pytest.raises(ValueError, match=message):
        qkv.from_weights(config | {name: value}, weights)


def test_dense_act_fn_wins() -> None:
    """Where config.json has it, as files of transformers 5 do, feed_forward_proj no longer counts."""
    config, weights = checkpoint("t5_base")
    bare = {key: value for key, value in config.items() if key not in ("dense_act_fn", "is_gated_act")}

    def run(config: dict[str, Any]) -> np.ndarray:
        return qkv.from_weights(config, weights)([[4, 5]], decoder_input_ids=[[6]]).last_hidden_state

    silu = run(bare | {"feed_forward_proj": "silu"})
    np.testing.assert_array_equal(run(bare | {"feed_forward_proj": "relu", "dense_act_fn": "silu"}), silu)
    assert np.abs(run(bare) - silu).max() > 1e-3
    with pytest.raises(ValueError, match="feed_forward_proj must be one of"):
        run(bare | {"feed_forward_proj": "gated-mish"})


def test_names_of_other_families_win() -> None:
    """Where a config has both names of a value, as transformers' attribute_map has it."""
    for folder, other, own, heads in (
        ("bart_base", "num_attention_heads", "encoder_attention_heads", 4),
        ("t5_base", "num_hidden_layers", "num_layers", 1),
    ):
        config, weights = checkpoint(folder)
        changed = {key: value for key, value in config.items() if key not in (other, own)}
        if own == "num_layers":
            weights = {key: value for key, value in weights.items() if not key.startswith("encoder.block.1")}
        first = qkv.from_weights(changed | {own: heads}, weights)([[4, 5, 2]], decoder_input_ids=[[6]])
        second = qkv.from_weights(changed | {own: 7, other: heads}, weights)([[4, 5, 2]], decoder_input_ids=[[6]])
        np.testing.assert_array_equal(first.last_hidden_state, second.last_hidden_state)


def test_heads_of_other_tasks_are_dropped() -> None:
    for base, other in (("t5_base", "t5_classify"), ("t5_encoder", "t5_tag"), ("bart_base", "bart_classify")):
        qkv.from_weights(checkpoint(base)[0], checkpoint(other)[1])
