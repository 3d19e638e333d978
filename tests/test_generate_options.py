"""What generate makes of options at their limits, and of files with values that nobody uses. Expected tokens and scores
are those of transformers 5.24 for the same folder, prompt and arguments, unless a test says otherwise."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import qkv
from golden_checks import GOLDEN
from qkv.generate.logits import TopH, draw

PROMPT = [[5, 6, 7]]
GREEDY = [[5, 6, 7, 7, 20, 20, 7, 7, 7, 7]]  # of gpt2_lm, 10 tokens long
GROUPS = {"num_beam_groups": 2, "diversity_penalty": 0.5}
SIX = {"max_new_tokens": 6, "pad_token_id": 3}


def load(folder: str) -> Any:
    return qkv.load(GOLDEN / folder)


# ---- generation_config.json -------------------------------------------------------------------------

FILE = {"eos_token_id": 39, "bos_token_id": 39, "pad_token_id": 3, "max_length": 10}
# what the file says besides, and the caller's arguments
USABLE: list[tuple[dict[str, Any], dict[str, Any]]] = [
    *(({name: value}, {}) for name, value in (("temperature", 0.0), ("top_k", -1), ("top_p", 1.5), ("typical_p", 2.0))),
    *(({name: value}, {}) for name, value in (("typical_p", 0.0), ("epsilon_cutoff", 2.0), ("early_stopping", 1))),
    *(({name: value}, {}) for name, value in (("eos_token_id", -1), ("eos_token_id", [39, -1]), ("pad_token_id", -1))),
    *(({name: value}, {}) for name, value in (("eos_token_id", 39.0), ("bos_token_id", -1), ("max_length", 10.0))),
    *(({name: -1}, {}) for name in ("min_length", "min_new_tokens", "no_repeat_ngram_size")),
    ({"decoder_start_token_id": [1, 2]}, {}),
    ({"forced_decoder_ids": [[1, 5]]}, {}),
    ({"low_memory": True}, {}),
    ({"length_penalty": "x"}, {}),
    ({"output_scores": 3}, {}),
    ({"do_sample": 1, "top_k": 1}, {}),
    ({"do_sample": 0, "temperature": 0}, {}),
    ({"early_stopping": 1, "num_beams": 2}, {}),
    ({"do_sample": True, "temperature": 0.0}, {"do_sample": False}),
    ({"temperature": 0.0}, {"do_sample": True, "temperature": 1e-6}),
    ({"temperature": 0.0, "do_sample": True}, {"generation_config": {"temperature": 1e-6}}),
    ({"guidance_scale": 2.0}, {"guidance_scale": 1.0}),
    ({"guidance_scale": 2.0}, {"guidance_scale": None}),
    ({"num_beams": 0}, {"num_beams": 2}),
    ({"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5}, {"num_beams": 1}),
    ({"repetition_penalty": -1.0}, {"repetition_penalty": 1.0}),
    ({"max_length": -5}, {"max_new_tokens": 7}),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(GOLDEN / "gpt2_lm", tmp_path / "model")
    return tmp_path / "model"


def with_file(folder: Path, content: dict[str, Any]) -> Any:
    (folder / "generation_config.json").write_text(json.dumps(FILE | content))
    return qkv.load(folder)


@pytest.mark.parametrize("case", range(len(USABLE)))
def test_what_is_not_used_stops_nothing(case: int, folder: Path) -> None:
    content, arguments = USABLE[case]
    np.testing.assert_array_equal(with_file(folder, content).generate(PROMPT, **arguments), GREEDY)


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        ({"temperature": 0.0}, {"do_sample": True}, "temperature must be a number above 0; got 0.0"),
        ({"top_k": -1, "do_sample": True}, {}, "top_k must be an integer of at least 0"),
        ({"typical_p": 0.0}, {"do_sample": True}, "typical_p must be a number above 0"),
        ({"early_stopping": "sometimes"}, {"num_beams": 2}, 'early_stopping must be true, false or "never"'),
        ({"low_memory": True}, {"num_beams": 2}, "low_memory True is not supported"),
        ({"repetition_penalty": -1.0}, {}, "repetition_penalty must be a number above 0"),
        ({"max_length": 7.5}, {}, "max_length must be an integer"),
        ({"do_sample": 2}, {}, "do_sample must be true or false"),
    ],
)
def test_what_is_used_must_be_possible(
    content: dict[str, Any], arguments: dict[str, Any], message: str, folder: Path
) -> None:
    """transformers refuses these too, but for the last two."""
    with pytest.raises(ValueError, match=f"generation_config.json: {message}"):
        with_file(folder, content).generate(PROMPT, **arguments)


def test_config_json_is_read_alike(folder: Path) -> None:
    """Where there is no other file; and what is for a decoder counts where there is one."""
    config = json.loads((folder / "config.json").read_text())
    values = {"eos_token_id": -1, "max_length": 10.0, "temperature": 0.0, "decoder_start_token_id": [1, 2]}
    (folder / "config.json").write_text(json.dumps(config | values))
    np.testing.assert_array_equal(qkv.load(folder).generate(PROMPT, pad_token_id=3), GREEDY)
    pair = folder.parent / "pair"
    shutil.copytree(GOLDEN / "bart_scaled", pair)
    for name, value in (("decoder_start_token_id", [1, 2]), ("forced_decoder_ids", [[1, 5]])):
        (pair / "generation_config.json").write_text(json.dumps({name: value}))
        with pytest.raises(ValueError, match=f"generation_config.json: {name}"):
            qkv.load(pair).generate(PROMPT)


def test_lengths_of_the_caller_replace_the_files(folder: Path) -> None:
    """Unlike transformers, where max_new_tokens of the file outlasts max_length of the caller: see README."""
    assert with_file(folder, {"max_length": None, "max_new_tokens": 6}).generate(PROMPT, max_length=5).shape == (1, 5)
    model = with_file(folder, {"max_length": None, "max_new_tokens": 2})
    assert model.generate(PROMPT, generation_config={"max_length": 9}).shape == (1, 9)
    model = with_file(folder, {"min_new_tokens": 7, "eos_token_id": 20})
    np.testing.assert_array_equal(model.generate(PROMPT, min_length=4), [[5, 6, 7, 7, 20]])


# ---- arguments --------------------------------------------------------------------------------------


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize(
    ("eos", "length"), [(-1, 9), ([20, -1], 5), (np.array(20), 5), (np.array([20, -1]), 5), (np.int64(7), 4)]
)
def test_ends(eos: Any, length: int, beams: int) -> None:
    """An id below 0 stops nothing."""
    made = load("gpt2_lm").generate(PROMPT, eos_token_id=eos, num_beams=beams, **SIX)
    np.testing.assert_array_equal(made, np.array(GREEDY)[:, :length])


@pytest.mark.parametrize("temperature", [1e-9, 1e-10, 1e-12, 1e-30, 1e-38])
def test_a_tiny_temperature_is_greedy(temperature: float) -> None:
    made = load("gpt2_lm").generate(PROMPT, do_sample=True, temperature=temperature, seed=0, **SIX)
    np.testing.assert_array_equal(made, np.array(GREEDY)[:, :9])


def test_draws_among_scores_of_any_size(rng: np.random.Generator) -> None:
    """A score that is the largest by far is drawn, and equal ones are drawn as often as each other."""
    largest = np.finfo(np.float32).max
    for scores in ([0, 3e10, 1e10], [-largest, largest, -np.inf], [-1e38, -1e30, -3e38]):
        assert draw(np.array(scores, np.float32), rng) == 1
    drawn = [draw(np.array([1e30, 0, 1e30], np.float32), rng) for _ in range(100)]
    assert set(drawn) == {0, 2}


@pytest.mark.parametrize("scores", [np.inf, np.nan])
@pytest.mark.parametrize("search", [{"num_beams": 2}, {"num_beams": 4, **GROUPS}, {"do_sample": True}])
def test_scores_that_are_no_numbers(scores: float, search: dict[str, Any]) -> None:
    """Sampling: as in transformers, an error. Beams: there they go on with any token; here it is an error too."""
    config = json.loads((GOLDEN / "gpt2_lm" / "config.json").read_text())
    weights = {name: t.read() for name, t in qkv.files.folder_tensors(GOLDEN / "gpt2_lm").items()}
    weights = {name: np.full_like(w, scores) if name.endswith("ln_f.bias") else w for name, w in weights.items()}
    model = qkv.from_weights(config, weights)
    with pytest.raises(ValueError, match=r"generate: there (are no best beams|is no token to draw), as .* nan"):
        model.generate(PROMPT, seed=0, **search, **SIX)
    assert model.generate(PROMPT, remove_invalid_values=True, seed=0, **search, **SIX).shape[1] > 3


NEVER = {"eos_token_id": 38, "suppress_tokens": [38]}


@pytest.mark.parametrize("penalty", [60.0, 100.0, 300.0])
def test_a_large_length_penalty(penalty: float) -> None:
    """From 3.4e38 on what sums are divided by is infinite."""
    arguments = {"num_beams": 2, "length_penalty": penalty, "return_dict_in_generate": True, "output_scores": True}
    out = load("gpt2_lm").generate(PROMPT, **arguments, **NEVER, **SIX)
    np.testing.assert_array_equal(out.sequences, np.array(GREEDY)[:, :9])
    np.testing.assert_array_equal(out.sequences_scores, [0])


@pytest.mark.parametrize(("penalty", "groups"), [(500.0, {}), (500.0, GROUPS), (-500.0, GROUPS)])
def test_length_penalties_that_make_no_number(penalty: float, groups: dict[str, Any]) -> None:
    """In transformers an OverflowError, and in groups (4.35.2) where it is too small a ZeroDivisionError."""
    with pytest.raises(ValueError, match=f"generate: length_penalty={penalty} is too much: . to that power"):
        load("gpt2_lm").generate(PROMPT, num_beams=2, length_penalty=penalty, **groups, **NEVER, **SIX)


@pytest.mark.parametrize("allowed", [None, 1.7, [1.5], "a", True])
def test_prefix_functions_return_tokens(allowed: Any) -> None:
    """transformers raises for these as well."""
    with pytest.raises(ValueError, match=r"prefix_allowed_tokens_fn must return a list of tokens; got"):
        load("gpt2_lm").generate(PROMPT, prefix_allowed_tokens_fn=lambda text, ids: allowed, **SIX)
    for tokens in ([20], (20,), range(20, 21), np.array([20], np.uint8)):
        made = load("gpt2_lm").generate(PROMPT, prefix_allowed_tokens_fn=lambda text, ids, t=tokens: t, **SIX)
        assert made[0].tolist() == [5, 6, 7, *[20] * 6]


@pytest.mark.parametrize("name", ["num_beams", "num_return_sequences"])
def test_more_rows_than_there_is_memory_for(name: str) -> None:
    with pytest.raises(
        ValueError, match=rf"generate: {name}=1000000000000 is too much: \d+ rows take \d+ GiB at least"
    ):
        load("gpt2_lm").generate(PROMPT, do_sample=True, **{name: 10**12}, **SIX)


def test_an_encoder_without_a_text() -> None:
    """It reads a bos alone."""
    np.testing.assert_array_equal(load("bart_scaled").generate(max_new_tokens=5), [[2, 34, 34, 34, 34, 2]])
    made = load("marian_lm").generate(max_new_tokens=5, bos_token_id=5)
    np.testing.assert_array_equal(made, [[39, 26, 26, 26, 26, 0]])
    assert [int(step[0]) for step in load("t5_lm").stream(max_new_tokens=5, bos_token_id=5)] == [35] * 5
    with pytest.raises(ValueError, match="input_ids: without a prompt there must be a bos_token_id"):
        load("t5_lm").generate()


def test_the_whole_entropy_keeps_all(rng: np.random.Generator) -> None:
    """top_h of 1: the terms of the first 100 tokens add up to their entropy, whatever rounding says. (In transformers
    it takes the last of them away from a quarter of such rows.)"""
    scores = rng.standard_normal((400, 300)).astype(np.float32)
    kept = TopH(1.0)(np.zeros((400, 1), np.int64), scores.copy(), np.arange(400))
    order = np.argsort(-scores, axis=1)
    assert np.isfinite(np.take_along_axis(kept, order[:, :100], axis=1)).all()
    assert np.isneginf(np.take_along_axis(kept, order[:, 100:], axis=1)).all()
