"""RoBERTa, ALBERT, DistilBERT and ELECTRA beyond what their recorded checkpoints show (test_models.py): files and
configs as they are found, RoBERTa's positions in a cache, and text."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import qkv
from golden_checks import GOLDEN, agree, checkpoint

PREFIXES = {"roberta": "roberta.", "albert": "albert.", "distilbert": "distilbert.", "electra": "electra."}
IDS = np.array([[5, 6, 7, 8], [9, 10, 11, 12]])


def arrays(folder: str) -> dict[str, np.ndarray]:
    return checkpoint(folder)[1]


def config(folder: str, **changes: Any) -> dict[str, Any]:
    return dict(json.loads((GOLDEN / folder / "config.json").read_text())) | changes


@pytest.mark.parametrize("family", PREFIXES)
def test_prefix_may_be_there_or_not(family: str) -> None:
    prefix = PREFIXES[family]
    prefixed = {prefix + name: array for name, array in arrays(f"{family}_base").items()}
    agree(qkv.from_weights(config(f"{family}_base"), prefixed), f"{family}_base")
    bare = {name.removeprefix(prefix): array for name, array in arrays(f"{family}_lm").items()}
    agree(qkv.from_weights(config(f"{family}_lm"), bare), f"{family}_lm")


@pytest.mark.parametrize("family", PREFIXES)
def test_old_files(family: str) -> None:
    """With norms of old names, numbered positions, and the heads of other tasks."""
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): array
        for name, array in arrays(f"{family}_span").items()
    }
    old[PREFIXES[family] + "embeddings.position_ids"] = np.arange(12)[None]
    for other in ("lm", "tag"):
        heads = {n: a for n, a in arrays(f"{family}_{other}").items() if not n.startswith(PREFIXES[family])}
        assert heads
        old |= heads
    agree(qkv.from_weights(config(f"{family}_span"), old), f"{family}_span")


@pytest.mark.parametrize("folder", ["roberta_lm", "albert_lm", "distilbert_lm", "electra_lm"])
def test_masked_lm_as_bare_model(folder: str) -> None:
    """Without the pooler that the file lacks; the tied table stays."""
    name = config(folder)["architectures"][0].removesuffix("ForMaskedLM") + "Model"
    out = qkv.from_weights(config(folder, architectures=[name]), arrays(folder))(IDS)
    assert list(out) == ["last_hidden_state"] and out.last_hidden_state.shape == (2, 4, 16)


@pytest.mark.parametrize("family", ["XLMRoberta", "Camembert"])
@pytest.mark.parametrize("task", ["base", "lm", "classify", "tag", "span", "causal"])
def test_families_that_share_robertas_classes(family: str, task: str) -> None:
    options = config(f"roberta_{task}")
    options["architectures"] = [options["architectures"][0].replace("Roberta", family)]
    agree(qkv.from_weights(options, arrays(f"roberta_{task}")), f"roberta_{task}")


def test_distilbert_reads_no_more_than_its_own_options() -> None:
    options = config("distilbert_base", layer_norm_eps=0.5, is_decoder=True, hidden_act="relu", intermediate_size=7)
    agree(qkv.from_weights(options, arrays("distilbert_base")), "distilbert_base")
    for own, alias in (("dim", "hidden_size"), ("n_heads", "num_attention_heads"), ("n_layers", "num_hidden_layers")):
        options[alias] = options.pop(own)
    agree(qkv.from_weights(options, arrays("distilbert_base")), "distilbert_base")
    agree(qkv.from_weights(config("albert_base", is_decoder=True), arrays("albert_base")), "albert_base")


@pytest.mark.parametrize(
    ("folder", "name", "value", "message"),
    [
        *[
            (f"{family}_base", name, value, f"{name} .* is not supported")
            for family in PREFIXES
            for name, value in (("position_embedding_type", "relative_key"), ("add_cross_attention", True))
        ],
        ("distilbert_base", "pruned_heads", {"0": [1]}, "pruned_heads .* is not supported"),
        ("distilbert_base", "activation", "gelu_10", "activation must be one of gelu"),
        ("distilbert_base", "dim", "16", "dim must be an integer"),
        ("distilbert_span", "num_labels", 3, "two labels, start and end"),
        ("albert_base", "inner_group_num", 2000, "inner_group_num must be an integer from 1 to 1365"),
        ("albert_base", "num_hidden_groups", 0, "num_hidden_groups must be an integer"),
        ("roberta_base", "pad_token_id", -1, "pad_token_id must be an integer from 0"),
    ],
)
def test_options_that_are_refused(folder: str, name: str, value: Any, message: str) -> None:
    options = config(folder, **{name: value})
    if name == "num_labels":
        options.pop("id2label", None)
    with pytest.raises(ValueError, match=message):
        qkv.from_weights(options, arrays(folder))


@pytest.mark.parametrize(
    ("model_type", "shape"), [("roberta", "50265, 768"), ("albert", "30000, 128"), ("electra", "30522, 128")]
)
def test_defaults_of_the_classes(model_type: str, shape: str) -> None:
    with pytest.raises(ValueError, match=rf"word_embeddings.weight is .* expected \({shape}\)"):
        qkv.from_weights({"model_type": model_type}, arrays(f"{model_type}_base"))


# ---- RoBERTa's positions


def test_positions_leave_room_for_pad() -> None:
    """Of 14 rows of the table those up to pad, 1, are for nothing but pad."""
    model = qkv.load(GOLDEN / "roberta_causal")
    assert model.max_tokens == 12
    assert model(np.full((1, 12), 5)).logits.shape == (1, 12, 40)
    with pytest.raises(ValueError, match="row 0 has 13 tokens; the model has 12 positions"):
        model(np.full((1, 13), 5))
    with pytest.raises(ValueError, match="position_ids: 14 in row 0, column 3"):
        model(IDS, position_ids=[2, 3, 13, 14])


def test_explicit_positions_are_rows_of_the_table() -> None:
    model = qkv.load(GOLDEN / "roberta_causal")
    counted = model(IDS).logits
    np.testing.assert_array_equal(model(IDS, position_ids=np.arange(2, 6)).logits, counted)
    assert np.abs(model(IDS, position_ids=np.arange(4)).logits - counted).max() > 0.1


def test_pad_takes_no_position_in_a_cache_either(isa: str) -> None:
    """To the bit as in one piece, whatever the pieces, through forks and after tokens were forgotten."""
    model = qkv.load(GOLDEN / "roberta_causal")
    row, other = [5, 1, 7, 1, 1, 10, 11, 12], [5, 1, 7, 3, 1, 10]  # pad is 1
    whole, fork_whole = (model([r], output_hidden_states=True).hidden_states[-1][0] for r in (row, other))
    for sizes in ([8], [1] * 8, [2, 3, 3]):
        cache = model.new_cache()
        sequence = cache.sequence()
        ends = np.cumsum(sizes).tolist()
        parts = [model.extend(cache, [sequence], [row[end - n : end]]) for n, end in zip(sizes, ends, strict=True)]
        np.testing.assert_array_equal(np.concatenate(parts), whole)
        fork = cache.fork(sequence, 3)
        np.testing.assert_array_equal(model.extend(cache, [fork], [other[3:]]), fork_whole[3:])
        cache.truncate(sequence, 4)
        np.testing.assert_array_equal(model.extend(cache, [sequence], [row[4:]]), whole[4:])


# ---- text


def with_tokenizer(tmp_path: Path, folder: str, **settings: Any) -> Any:
    """The tokenizer gives the second text of a pair type 1."""
    target = tmp_path / folder
    shutil.copytree(GOLDEN / folder, target)
    shutil.copy(GOLDEN / "sentence" / "tokenizer.json", target)
    (target / "tokenizer_config.json").write_text(json.dumps(settings))
    return qkv.load(target)


def test_token_types_go_where_there_are_some_to_tell_apart(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers", reason="text needs the extra `text`")
    pair = ("the cat", "a dog")
    for folder in ("roberta_base", "distilbert_base"):
        model = with_tokenizer(tmp_path, folder)
        batch = model.tokenizer(*pair)
        assert list(batch) == ["input_ids", "attention_mask"]
        assert model(**batch).last_hidden_state.shape == (1, 7, 16)
        with pytest.raises(ValueError, match="token_type_ids: 1 in row 0"):
            model(**batch, token_type_ids=np.ones((1, 7), int))
    for folder in ("roberta_lm", "albert_base", "electra_base"):
        batch = with_tokenizer(tmp_path, folder).tokenizer(*pair)
        assert batch["token_type_ids"].tolist() == [[0, 0, 0, 0, 1, 1, 1]]
    settings = {"model_input_names": ["input_ids", "attention_mask"]}
    assert "token_type_ids" not in with_tokenizer(tmp_path, "bertlm_causal", **settings).tokenizer(*pair)


@pytest.mark.parametrize("folder", ["roberta_base", "albert_base", "distilbert_base", "electra_base"])
def test_encode_is_the_mean_over_the_tokens(folder: str, tmp_path: Path) -> None:
    pytest.importorskip("tokenizers", reason="text needs the extra `text`")
    model = with_tokenizer(tmp_path, folder)
    texts = ["the cat sat on the mat", "hello", "a b c d e f g hello world . , ! the the"]
    got = model.encode(texts)
    batch = model.tokenizer(texts)
    assert batch["input_ids"].shape[1] == 12  # what the models take
    states, mask = model(**batch).last_hidden_state.astype(np.float64), batch["attention_mask"][..., None]
    np.testing.assert_allclose(got, (states * mask).sum(axis=1) / mask.sum(axis=1), rtol=0, atol=1e-6)
