"""BERT against transformers, from recorded checkpoints and outputs (golden/make_bert.py), and against itself."""

from __future__ import annotations

import json
import math
import multiprocessing
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import qkv
from golden_checks import GOLDEN, expected
from qkv import files

FOLDERS = sorted(path.name for path in GOLDEN.glob("bert_*") if path.is_dir())
INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids")


def inputs(case: dict[str, np.ndarray], *, positions: bool = True) -> dict[str, np.ndarray]:
    return {name: case[name] for name in INPUTS if name in case and (positions or name != "position_ids")}


def real(name: str, array: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """What stands at real positions: elsewhere transformers returns numbers that mean nothing."""
    if name == "hidden_states":
        return array[:, mask]
    if name == "attentions":
        return array.swapaxes(2, 3)[:, mask]
    return array[mask] if array.shape[:2] == mask.shape else array


@pytest.fixture
def model() -> Any:
    return qkv.load(GOLDEN / "bert_base")


@pytest.mark.parametrize("folder", FOLDERS)
def test_agrees_with_transformers(folder: str, isa: str) -> None:
    model = qkv.load(GOLDEN / folder)
    for case_name, case in expected(folder).items():
        mask = case["attention_mask"] == 1
        # where the recorded positions are those of the real tokens, they are also the default
        out = model(
            **inputs(case, positions=case_name == "positions"), output_attentions=True, output_hidden_states=True
        )
        names = [name for name in case if name not in INPUTS and not name.endswith(".error")]
        assert set(names) == set(out)
        for name in names:
            value = np.stack(out[name]) if isinstance(out[name], tuple) else out[name]
            assert value.shape == case[name].shape and value.dtype == np.float32
            exact, ours = real(name, case[name], mask), real(name, value, mask)
            allowed = 2 * case[name + ".error"] + 4 * np.finfo(np.float32).eps * np.abs(exact).max()
            assert np.abs(ours - exact).max() <= allowed, (case_name, name)


@pytest.mark.parametrize("folder", FOLDERS)
def test_padding_is_zero(folder: str) -> None:
    model = qkv.load(GOLDEN / folder)
    case = expected(folder)["holes"]
    out = model(**inputs(case, positions=False), output_attentions=True, output_hidden_states=True)
    padding = case["attention_mask"] == 0
    states = [*out.hidden_states, *(v for v in out.values() if getattr(v, "shape", ())[:2] == padding.shape)]
    for state in states:
        assert not state[padding].any()
    for weights in out.attentions:
        assert not weights.swapaxes(1, 2)[padding].any() and not weights.swapaxes(1, 3)[padding].any()
        np.testing.assert_allclose(weights.sum(axis=3).swapaxes(1, 2)[~padding], 1, rtol=1e-6)


def test_a_row_does_not_depend_on_its_batch(model: Any, isa: str, rng: np.random.Generator) -> None:
    """To the bit: left padding, right padding, holes and other rows change nothing."""
    rows = [rng.integers(0, 99, n) for n in (1, 7, 40, 12, 33)]
    alone = [model(row[None], output_attentions=True, output_hidden_states=True) for row in rows]
    for side in ("right", "left", "holes"):
        ids = rng.integers(0, 99, (len(rows), 40))
        mask = np.zeros(ids.shape, bool)
        for b, row in enumerate(rows):
            columns = {
                "right": np.arange(len(row)),
                "left": np.arange(40 - len(row), 40),
                "holes": np.sort(rng.permutation(40)[: len(row)]),
            }[side]
            ids[b, columns], mask[b, columns] = row, True
        out = model(ids, mask, output_attentions=True, output_hidden_states=True)
        for b in range(len(rows)):
            np.testing.assert_array_equal(out.last_hidden_state[b][mask[b]], alone[b].last_hidden_state[0])
            np.testing.assert_array_equal(out.pooler_output[b], alone[b].pooler_output[0])
            for ours, theirs in zip(out.hidden_states, alone[b].hidden_states, strict=True):
                np.testing.assert_array_equal(ours[b][mask[b]], theirs[0])
            for ours, theirs in zip(out.attentions, alone[b].attentions, strict=True):
                np.testing.assert_array_equal(ours[b][:, mask[b]][..., mask[b]], theirs[0])


def test_what_stands_at_padding_does_not_matter(model: Any) -> None:
    ids, mask = np.array([[5, 6, 7], [8, 0, 0]]), np.array([[1, 1, 1], [1, 0, 0]])
    types = np.array([[0, 1, 1], [0, 0, 0]])
    plain = model(ids, mask, types)
    ids[1, 1:], types[1, 1:] = [-100, 10**9], 7
    np.testing.assert_array_equal(model(ids, mask, types).last_hidden_state, plain.last_hidden_state)


def test_inputs_of_all_kinds(model: Any) -> None:
    ids = np.array([[5, 6, 7, 8], [9, 10, 0, 0]])
    mask = ids > 0
    plain = model(ids, mask).last_hidden_state
    for given in (
        ids.astype(np.uint8),
        ids.astype(np.int32),
        ids.tolist(),
        np.asfortranarray(ids),
        ids[:, ::-1][:, ::-1],
    ):
        np.testing.assert_array_equal(model(given, mask).last_hidden_state, plain)
    for given in (mask.astype(np.int64), mask.tolist(), mask.astype(np.uint8)):
        np.testing.assert_array_equal(model(ids, given).last_hidden_state, plain)
    types = np.zeros_like(ids)
    np.testing.assert_array_equal(model(ids, mask, types).last_hidden_state, plain)
    for positions in (np.arange(4), np.arange(4)[None], np.tile(np.arange(4), (2, 1))):
        np.testing.assert_array_equal(model(ids, mask, position_ids=positions).last_hidden_state, plain)
    np.testing.assert_array_equal(model(input_ids=ids, attention_mask=mask).last_hidden_state, plain)


def test_nothing_in_nothing_out(model: Any) -> None:
    for shape in ((0, 0), (0, 5), (3, 0)):
        out = model(np.zeros(shape, int), output_attentions=True, output_hidden_states=True)
        assert out.last_hidden_state.shape == (*shape, 32) and out.last_hidden_state.dtype == np.float32
        assert out.pooler_output.shape == (shape[0], 32)
        assert [h.shape for h in out.hidden_states] == [(*shape, 32)] * 4
        assert [a.shape for a in out.attentions] == [(shape[0], 4, shape[1], shape[1])] * 3
    assert model([[]]).last_hidden_state.shape == (1, 0, 32)
    span = qkv.load(GOLDEN / "bert_span")(np.zeros((2, 0), int))
    assert span.start_logits.shape == span.end_logits.shape == (2, 0)


def test_output_fields(model: Any) -> None:
    out = model([[1, 2, 3]])
    assert list(out) == ["last_hidden_state", "pooler_output"] and len(out) == 2
    assert out[0] is out["last_hidden_state"] is out.last_hidden_state is out.to_tuple()[0]
    assert out[-1] is out.pooler_output and out[:1] == (out[0],)
    assert out.hidden_states is None and out.attentions is None and "attentions" not in out
    with pytest.raises(AttributeError, match="no field 'logits'; it has last_hidden_state"):
        _ = out.logits
    with pytest.raises(KeyError):
        out["attentions"]
    with pytest.raises(IndexError):
        out[2]
    again = pickle.loads(pickle.dumps(out))
    assert again.attentions is None and np.array_equal(again.pooler_output, out.pooler_output)


# ---- saving, from_weights, pickling


def outputs(model: Any) -> dict[str, Any]:
    out = model([[5, 6, 7, 8], [9, 10, 0, 0]], [[1, 1, 1, 1], [1, 1, 0, 0]], output_hidden_states=True)
    return {name: np.stack(v) if isinstance(v, tuple) else v for name, v in out.items()}


def assert_same(a: Any, b: Any) -> None:
    first, second = outputs(a), outputs(b)
    assert first.keys() == second.keys()
    for name, value in first.items():
        np.testing.assert_array_equal(second[name], value)


@pytest.mark.parametrize("folder", FOLDERS)
def test_saved_models_load_to_the_bit(folder: str, tmp_path: Path) -> None:
    model = qkv.load(GOLDEN / folder)
    model.save(tmp_path / "model.npz")
    again = qkv.load(tmp_path / "model.npz")
    assert_same(model, again)
    assert again.config == model.config and repr(again) == repr(model)
    again.save(tmp_path / "again.npz")
    assert (tmp_path / "again.npz").read_bytes() == (tmp_path / "model.npz").read_bytes()


def test_tied_tables_are_held_and_saved_once(tmp_path: Path) -> None:
    tied, untied = (qkv.load(GOLDEN / name) for name in ("bert_masked_lm", "bert_masked_lm_untied"))
    names = ("embeddings.word.weight", "head.lm.decoder.weight")
    assert tied.parameters[names[0]] is tied.parameters[names[1]]
    assert untied.parameters[names[0]] is not untied.parameters[names[1]]
    tied.save(tmp_path / "x.npz")
    with np.load(tmp_path / "x.npz", allow_pickle=False) as saved:
        assert sum(name in saved.files for name in names) == 1
    again = qkv.load(tmp_path / "x.npz")
    assert again.parameters[names[0]] is again.parameters[names[1]]


def arrays(folder: str) -> dict[str, np.ndarray]:
    return {name: t.read() for name, t in files.folder_tensors(GOLDEN / folder).items()}


def config(folder: str) -> dict[str, Any]:
    return dict(json.loads((GOLDEN / folder / "config.json").read_text()))


@pytest.mark.parametrize("folder", FOLDERS)
def test_from_weights(folder: str) -> None:
    assert_same(qkv.load(GOLDEN / folder), qkv.from_weights(config(folder), arrays(folder)))


def test_npz_under_transformers_names(tmp_path: Path) -> None:
    text = np.frombuffer((GOLDEN / "bert_base" / "config.json").read_bytes(), np.uint8)
    np.savez(tmp_path / "x.npz", **arrays("bert_base"), **{"config.json": text})
    assert_same(qkv.load(GOLDEN / "bert_base"), qkv.load(tmp_path / "x.npz"))
    np.savez(tmp_path / "y.npz", **arrays("bert_base"))
    with pytest.raises(ValueError, match=r"no config.json in it"):
        qkv.load(tmp_path / "y.npz")
    with np.load(tmp_path / "y.npz") as weights:
        assert_same(qkv.load(GOLDEN / "bert_base"), qkv.from_weights(config("bert_base"), weights))


@pytest.mark.parametrize("dtype", [np.float64, np.float16, ml_dtypes.bfloat16])
def test_weights_of_any_float_type(dtype: Any) -> None:
    rounded = {name: array.astype(dtype) for name, array in arrays("bert_base").items()}
    wide = {name: array.astype(np.float32) for name, array in rounded.items()}
    assert_same(qkv.from_weights(config("bert_base"), rounded), qkv.from_weights(config("bert_base"), wide))


def test_masked_lm_head_with_the_tanh_form_of_gelu() -> None:
    """decoder(norm(gelu(dense(x)))) in float64, from the states of the model without head."""
    options = config("bert_masked_lm") | {"hidden_act": "gelu_new"}
    given = arrays("bert_masked_lm")
    ids = np.array([[5, 6, 7, 8], [9, 10, 11, 12]])
    body = qkv.from_weights(options | {"architectures": ["BertModel"]}, given)
    x = body(ids).last_hidden_state.astype(np.float64)
    wide = {name.removeprefix("cls.predictions."): a.astype(np.float64) for name, a in given.items()}

    def logits(gelu: Any) -> np.ndarray:
        h = gelu(x @ wide["transform.dense.weight"].T + wide["transform.dense.bias"])
        h = (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + options["layer_norm_eps"])
        h = h * wide["transform.LayerNorm.weight"] + wide["transform.LayerNorm.bias"]
        return np.asarray(h @ wide["bert.embeddings.word_embeddings.weight"].T + wide["bias"])

    def tanh_form(v: np.ndarray) -> np.ndarray:
        return np.asarray(v * (1 + np.tanh(np.sqrt(2 / np.pi) * (v + 0.044715 * v**3))) / 2)

    def exact(v: np.ndarray) -> np.ndarray:
        return np.asarray(v * (1 + np.vectorize(math.erf)(v / np.sqrt(2))) / 2)

    error = np.abs(qkv.from_weights(options, given)(ids).logits - logits(tanh_form)).max()
    assert error < 2e-6 * np.abs(logits(tanh_form)).max()
    assert error < np.abs(logits(exact) - logits(tanh_form)).max() / 10  # so it is not the other form


def test_prefix_may_be_there_or_not() -> None:
    plain, head = arrays("bert_base"), arrays("bert_tag")
    prefixed = {"bert." + name: array for name, array in plain.items()}
    assert_same(qkv.from_weights(config("bert_base"), plain), qkv.from_weights(config("bert_base"), prefixed))
    bare = {name.removeprefix("bert."): array for name, array in head.items()}
    assert_same(qkv.from_weights(config("bert_tag"), head), qkv.from_weights(config("bert_tag"), bare))


def test_a_file_of_another_task_loads_without_its_head() -> None:
    pretraining = arrays("bert_legacy")
    options = config("bert_legacy")
    body = qkv.from_weights(options | {"architectures": ["BertModel"]}, pretraining)
    assert outputs(body)["pooler_output"].shape == (2, 24)
    masked = qkv.from_weights(options | {"architectures": ["BertForMaskedLM"]}, pretraining)
    whole = qkv.from_weights(options, pretraining)
    np.testing.assert_array_equal(outputs(masked)["logits"], outputs(whole)["prediction_logits"])
    next_sentence = qkv.from_weights(options | {"architectures": ["BertForNextSentencePrediction"]}, pretraining)
    np.testing.assert_array_equal(outputs(next_sentence)["logits"], outputs(whole)["seq_relationship_logits"])


def test_pooler_is_optional() -> None:
    without = {name: array for name, array in arrays("bert_base").items() if not name.startswith("pooler")}
    out = qkv.from_weights(config("bert_base"), without)([[1, 2]])
    assert out.pooler_output is None and list(out) == ["last_hidden_state"]


def test_model_type_alone_gives_the_bare_model() -> None:
    options = config("bert_base")
    del options["architectures"]
    assert_same(qkv.from_weights(options, arrays("bert_base")), qkv.load(GOLDEN / "bert_base"))


def test_defaults_are_those_of_bert_base() -> None:
    with pytest.raises(ValueError, match=r"is \(99, 32\), expected \(30522, 768\)"):
        qkv.from_weights({"model_type": "bert"}, arrays("bert_base"))


def test_models_can_be_pickled(model: Any) -> None:
    assert_same(model, pickle.loads(pickle.dumps(model)))


def test_calls_from_several_threads(model: Any, rng: np.random.Generator) -> None:
    """To the bit, with batches of unlike shapes."""
    batches = [rng.integers(0, 99, (int(b), int(n))) for b, n in ((1, 1), (3, 40), (7, 5), (2, 17), (5, 33), (1, 40))]

    def run(ids: np.ndarray) -> list[np.ndarray]:
        out = model(ids, output_attentions=True, output_hidden_states=True)
        return [out.pooler_output, *out.hidden_states, *out.attentions]

    expected = [run(ids) for ids in batches]
    with ThreadPoolExecutor(6) as pool:
        for _ in range(10):
            for ours, theirs in zip(pool.map(run, batches), expected, strict=True):
                for a, b in zip(ours, theirs, strict=True):
                    np.testing.assert_array_equal(a, b)


def test_calls_after_fork(rng: np.random.Generator) -> None:
    code = f"""
import multiprocessing, numpy, qkv
model = qkv.load({str(GOLDEN / "bert_base")!r})
ids = numpy.arange(120).reshape(3, 40) % 99
def run(_):
    return model(ids).last_hidden_state
before = run(0)
with multiprocessing.get_context("fork").Pool(2) as pool:
    for after in pool.map(run, range(4)):
        assert numpy.array_equal(after, before)
assert numpy.array_equal(run(0), before)
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=60)


def _run(model: Any) -> Any:
    return model([[1, 2, 3]]).pooler_output


@pytest.mark.slow
def test_models_go_to_spawned_processes(model: Any) -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        np.testing.assert_array_equal(pool.apply(_run, (model,)), _run(model))


def test_config_and_description(model: Any) -> None:
    assert model.config.hidden_size == model.config["hidden_size"] == 32
    assert model.config.get("absent") is None and "vocab_size" in model.config
    with pytest.raises(AttributeError, match="'absent'"):
        _ = model.config.absent
    assert repr(model) == "<BertModel: 0.0313 M parameters, float32>"


def test_nothing_of_the_files_is_kept_open(tmp_path: Path) -> None:
    """A model stays what it was when its files are overwritten."""
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(GOLDEN / "bert_base", folder)
    model = qkv.load(folder)
    before = outputs(model)
    file = folder / "model.safetensors"
    with open(file, "r+b") as stream:
        stream.write(b"\0" * file.stat().st_size)
    for name, value in outputs(model).items():
        np.testing.assert_array_equal(value, before[name])
