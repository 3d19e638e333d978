"""Transformer-XL: its memory, its vocabulary, options and names; the numbers of each piece are test_models.py's."""

from __future__ import annotations

import pickle
import re
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import qkv
from golden_checks import GOLDEN, checkpoint, close

FOLDERS = sorted(path.name for path in GOLDEN.glob("transfo_xl_*"))
PIECES = ("first", "second", "third")


def recorded(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / name / "expected.npz") as arrays:
        return {key: arrays[key] for key in arrays.files}


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_memory_of_a_piece_is_the_next_ones(folder: str) -> None:
    exact = recorded(folder)
    model, mems = qkv.load(GOLDEN / folder), None
    for piece, following in pairwise(PIECES):
        mems = model(exact[f"{piece}/input_ids"], mems=mems).mems
        if model.config.mem_len:
            assert type(mems) is tuple and len(mems) == 2
            close(np.stack(mems), exact[f"{following}/mems"])
        else:
            assert mems is None


@pytest.mark.parametrize("folder", ["transfo_xl_base", "transfo_xl_lm"])
@pytest.mark.parametrize("pieces", [1, 2, 18])
def test_pieces_of_any_length(folder: str, pieces: int) -> None:
    """A token sees as many before it wherever a text is cut: that is what same_length is for."""
    exact = recorded(folder)
    field = "last_hidden_state" if "base" in folder else "prediction_scores"
    ids = np.concatenate([exact[f"{piece}/input_ids"] for piece in PIECES], axis=1)
    model, mems, parts = qkv.load(GOLDEN / folder), None, []
    for part in np.array_split(ids, pieces, axis=1):
        out = model(part, mems=mems)
        mems = out.mems
        parts.append(out[field])
    close(np.concatenate(parts, axis=1), np.concatenate([exact[f"{piece}/{field}"] for piece in PIECES], axis=1))


def test_rows_do_not_change_each_other(rng: np.random.Generator) -> None:
    """To the bit, with a memory and without; and a batch may be empty."""
    model = qkv.load(GOLDEN / "transfo_xl_lm")
    ids = rng.integers(0, 40, (3, 5))
    first = model(ids)
    second = model(ids, mems=first.mems)
    for b in range(3):
        one = model(ids[b : b + 1])
        np.testing.assert_array_equal(one.logits[0], first.logits[b])
        two = model(ids[b : b + 1], mems=one.mems)
        np.testing.assert_array_equal(two.logits[0], second.logits[b])
        np.testing.assert_array_equal(np.stack(two.mems)[:, :, 0], np.stack(second.mems)[:, :, b])
    none = model(ids[:0], output_attentions=True)
    assert none.logits.shape == (0, 5, 40) and none.mems[0].shape == (6, 0, 16)
    assert model(ids[:, :0]).logits.shape == (3, 0, 40)


@pytest.mark.parametrize("folder", [name for name in FOLDERS if "_lm" in name])
def test_probabilities(folder: str) -> None:
    out = qkv.load(GOLDEN / folder)(recorded(folder)["first/input_ids"])
    np.testing.assert_allclose(np.exp(out.prediction_scores).sum(axis=-1), 1, rtol=1e-5)
    assert out.logits is out["prediction_scores"] and out[0] is out.logits and "logits" not in out
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(out)).logits, out.logits)


IDS = np.array([[1, 2, 3]])
MEMORY = np.zeros((2, 6, 1, 16), np.float32)
WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"attention_mask": [[1, 1, 0]]}, ValueError, "attention_mask: a TransfoXLModel cannot leave tokens out"),
    ({"position_ids": [[0, 1, 2]]}, ValueError, "position_ids: a TransfoXLModel has no such input"),
    ({"token_type_ids": IDS}, ValueError, "token_type_ids: a TransfoXLModel has no such input"),
    ({"mems": MEMORY[:1]}, ValueError, "mems: expected 2 arrays, one for each layer; got 1"),
    ({"mems": MEMORY[..., :8]}, ValueError, r"mems\[0\]: expected shape \(tokens, 1, 16\).*got \(6, 1, 8\)"),
    ({"mems": [MEMORY[0], MEMORY[1, :3]]}, ValueError, r"mems\[1\]: .* as many tokens in each; got \(3, 1, 16\)"),
    ({"mems": MEMORY.repeat(2, axis=2)}, ValueError, r"got \(6, 2, 16\)"),
    ({"mems": MEMORY.astype(int)}, TypeError, r"mems\[0\]: expected floats; got int64"),
]


@pytest.mark.parametrize("call", range(len(WRONG)))
def test_wrong_calls(call: int) -> None:
    arguments, error, message = WRONG[call]
    with pytest.raises(error, match=message):
        qkv.load(GOLDEN / "transfo_xl_base")(IDS, **arguments)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("base", {"attn_type": 1}, "attn_type 1 is not supported"),
        ("base", {"sample_softmax": 5}, "sample_softmax must be"),
        ("base", {"mem_len": 0}, "same_length must be false where mem_len is 0"),
        ("base", {"cutoffs": [25, 10]}, "cutoffs must be increasing, between 0 and vocab_size, 40"),
        ("base", {"cutoffs": [10, 40]}, "cutoffs must be increasing"),
        ("base", {"div_val": 5}, "div_val must be small enough that d_embed, 16, lasts for 3 clusters"),
        ("base", {"tie_projs": [True] * 4}, "tie_projs must be a list of true or false, at most one for each"),
        ("pre", {"untie_r": True}, "missing: layers.0.dec_attn.r_w_bias"),
        ("lm", {"tie_projs": None, "proj_share_all_but_first": False}, "missing: crit.out_projs.1"),
        ("lm", {"tie_word_embeddings": False}, "missing: crit.out_layers.0.weight"),
        ("classify", {"d_embed": 12}, "d_embed must be d_model, 16, for classification"),
    ],
)
def test_wrong_configs(name: str, values: dict[str, Any], message: str) -> None:
    config, weights = checkpoint("transfo_xl_" + name)
    with pytest.raises(ValueError, match=message):
        qkv.from_weights(config | values, weights)


@pytest.mark.parametrize("prefix", [True, False])
def test_names(prefix: bool) -> None:
    """With and without the body's prefix; with all that is tied, and a buffer, as old files have it."""
    config, weights = checkpoint("transfo_xl_lm")
    exact = recorded("transfo_xl_lm")
    body = "transformer.word_emb."
    for i in range(3):
        weights[f"crit.out_layers.{i}.weight"] = weights[f"{body}emb_layers.{i}.weight"].copy()
        if i:
            weights[f"crit.out_projs.{i}"] = weights[f"{body}emb_projs.{i}"].copy()
    weights["transformer.pos_emb.inv_freq"] = np.ones(8, np.float32)
    if not prefix:
        weights = {re.sub("^transformer[.]", "", name): value for name, value in weights.items()}
    model = qkv.from_weights(config, weights)
    close(model(exact["first/input_ids"]).logits, exact["first/prediction_scores"])
    assert model.parameters["embeddings.0.word.weight"] is model.parameters["head.0.decoder.weight"]
    bare = qkv.from_weights(config | {"architectures": ["TransfoXLModel"]}, weights)  # leaves the head
    np.testing.assert_array_equal(
        np.stack(bare(exact["first/input_ids"]).mems), np.stack(model(exact["first/input_ids"]).mems)
    )


def test_projections_that_differ_stay_apart() -> None:
    """What a file has wins over ties, as for any family; recorded is the model without ties."""
    config, weights = checkpoint("transfo_xl_lm_untied")
    exact = recorded("transfo_xl_lm_untied")
    model = qkv.from_weights(config | {"tie_projs": [True] * 3, "tie_word_embeddings": True}, weights)
    close(model(exact["first/input_ids"]).logits, exact["first/prediction_scores"])
