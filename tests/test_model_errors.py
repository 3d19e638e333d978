"""What is wrong with a call, a config or a folder is said in the user's words, before any work."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import tracemalloc
import types
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import qkv
from golden_checks import GOLDEN, checkpoint
from qkv import files, packing


@pytest.fixture(scope="module")
def model() -> Any:
    return qkv.load(GOLDEN / "bert_base")  # 99 tokens, 40 positions, 2 token types


@pytest.fixture(scope="module")
def weights() -> dict[str, np.ndarray]:
    return {name: t.read() for name, t in files.folder_tensors(GOLDEN / "bert_base").items()}


@pytest.fixture
def config() -> dict[str, Any]:
    return dict(json.loads((GOLDEN / "bert_base" / "config.json").read_text()))


# ---- calls

IDS = np.array([[1, 2, 3], [4, 5, 6]])
WRONG_CALLS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"input_ids": IDS * 1.0}, TypeError, "input_ids: expected integers; got float64"),
    ({"input_ids": IDS > 1}, TypeError, "input_ids: expected integers; got bool"),
    ({"input_ids": [["a"]]}, TypeError, "input_ids: expected integers"),
    ({"input_ids": None}, TypeError, "input_ids: expected integers; got object"),
    ({"input_ids": [[1, 2], [3]]}, ValueError, "input_ids: the rows have different lengths; pad them"),
    ({"input_ids": [[1, 2], 3]}, ValueError, "input_ids: the rows have different lengths; pad them"),
    ({"input_ids": 3}, ValueError, r"input_ids: expected shape \(batch, tokens\); got \(\)"),
    ({"input_ids": [1, 2]}, ValueError, r"got \(2,\); for one row pass \[ids\]"),
    ({"input_ids": IDS[None]}, ValueError, r"got \(1, 2, 3\)"),
    ({"input_ids": [[1, 99]]}, ValueError, r"input_ids: 99 in row 0, column 1 .* 99 tokens \(0 to 98\)"),
    ({"input_ids": [[1, 2], [-1, 0]]}, ValueError, "input_ids: -1 in row 1, column 0"),
    ({"input_ids": np.array([[2**63]], np.uint64)}, ValueError, "input_ids: 9223372036854775808 in row 0"),
    ({"input_ids": np.ones((2, 41), int)}, ValueError, "row 0 has 41 tokens; the model has 40 positions"),
    ({"input_ids": IDS, "attention_mask": IDS[0]}, ValueError, r"attention_mask: expected shape \(2, 3\)"),
    ({"input_ids": IDS, "attention_mask": IDS[:, :2]}, ValueError, r"attention_mask: .*got \(2, 2\)"),
    ({"input_ids": IDS, "attention_mask": [[1, 1, 1], [1]]}, ValueError, "attention_mask: the rows have different"),
    ({"input_ids": IDS, "attention_mask": np.ones((2, 1, 1, 3))}, ValueError, r"got \(2, 1, 1, 3\)"),
    ({"input_ids": IDS, "attention_mask": IDS}, ValueError, "expected 1 for real tokens and 0 for padding"),
    ({"input_ids": IDS, "attention_mask": -(IDS > 2).astype(int)}, ValueError, "expected 1 for real tokens"),
    ({"input_ids": IDS, "attention_mask": IDS * 0.0}, TypeError, "expected booleans or integers; got float64"),
    ({"input_ids": IDS, "attention_mask": (IDS > 3)}, ValueError, "attention_mask: row 0 has no real token"),
    ({"input_ids": IDS, "token_type_ids": IDS}, ValueError, "token_type_ids: 2 in row 0, column 1"),
    ({"input_ids": IDS, "token_type_ids": -IDS}, ValueError, "token_type_ids: -1 in row 0, column 0"),
    ({"input_ids": IDS, "token_type_ids": [0, 0, 0]}, ValueError, r"token_type_ids: expected shape \(2, 3\)"),
    ({"input_ids": IDS, "token_type_ids": IDS * 0.0}, TypeError, "token_type_ids: expected integers"),
    ({"input_ids": IDS, "position_ids": [0, 1, 40]}, ValueError, "position_ids: 40 in row 0, column 2"),
    *[
        ({"input_ids": IDS, name: IDS}, ValueError, f"{name}: a BertModel has no such input")
        for name in ("decoder_input_ids", "decoder_attention_mask", "pixel_values", "mems")
    ],
    ({"input_ids": IDS, "labels": IDS}, TypeError, "unexpected keyword argument 'labels'"),
    ({"input_ids": IDS, "position_ids": [0, 1]}, ValueError, r"position_ids: expected shape \(2, 3\)"),
    ({"input_ids": IDS, "position_ids": [[0.0, 1, 2]]}, TypeError, "position_ids: expected integers"),
]


@pytest.mark.parametrize("call", range(len(WRONG_CALLS)))
def test_wrong_calls(call: int, model: Any) -> None:
    arguments, error, message = WRONG_CALLS[call]
    with pytest.raises(error, match=message):
        model(**arguments)


def test_inputs_of_other_models_may_be_none(model: Any) -> None:
    none = dict.fromkeys(("decoder_input_ids", "decoder_attention_mask", "pixel_values", "mems"))
    np.testing.assert_array_equal(model(IDS, **none).pooler_output, model(IDS).pooler_output)


def test_long_rows_that_are_mostly_padding_are_fine(model: Any) -> None:
    mask = np.zeros((1, 300), int)
    mask[0, 100:140] = 1
    assert model(np.ones((1, 300), int), mask).last_hidden_state.shape == (1, 300, 32)
    mask[0, 0] = 1
    with pytest.raises(ValueError, match="41 tokens"):
        model(np.ones((1, 300), int), mask)
    positions = np.zeros((1, 300), int)  # told where they stand, they may be as many as you like
    assert model(np.ones((1, 300), int), mask, position_ids=positions).last_hidden_state.shape == (1, 300, 32)


# ---- configs

WRONG_VALUES: list[Any] = [
    *[
        (name, value, f"{name} must be an integer")
        for name in ("hidden_size", "vocab_size", "num_attention_heads", "intermediate_size", "type_vocab_size")
        for value in (0, -1, True, "32", 32.0, 2**31, [32], float("nan"))
    ],
    ("num_hidden_layers", -1, "num_hidden_layers must be an integer from 0"),
    ("num_hidden_layers", 10**6, "num_hidden_layers must be an integer from 0 to 4096"),
    ("max_position_embeddings", 0, "max_position_embeddings must be an integer"),
    ("num_attention_heads", 5, "hidden_size must be a multiple of num_attention_heads, 5; got 32"),
    ("layer_norm_eps", "1e-12", "layer_norm_eps must be a finite number"),
    ("layer_norm_eps", -1e-12, "layer_norm_eps must be a finite number not below 0"),
    ("layer_norm_eps", float("nan"), "layer_norm_eps must be a finite number"),
    ("layer_norm_eps", True, "layer_norm_eps must be a finite number"),
    pytest.param("layer_norm_eps", 10**400, "layer_norm_eps must be a finite number", id="an integer beyond floats"),
    ("hidden_act", "gelu_10", "hidden_act must be one of gelu, gelu_accurate, .*; got 'gelu_10'"),
    ("hidden_act", 3, "hidden_act must be one of"),
    ("hidden_act", ["gelu"], "hidden_act must be one of"),
    ("position_embedding_type", "relative_key", "position_embedding_type 'relative_key' is not supported"),
    ("add_cross_attention", True, "add_cross_attention True is not supported"),
    ("pruned_heads", {"0": [1]}, "pruned_heads .* is not supported"),
    ("quantization_config", {"bits": 4}, "quantization_config .* is not supported"),
    ("tie_word_embeddings", "yes", "tie_word_embeddings must be true or false"),
    ("architectures", ["BertForAnything"], "BertForAnything.*known are BertModel, BertForSequence"),
    ("architectures", ["BertForMaskedLn"], r"\(nearest: BertForMaskedLM\)"),
    ("architectures", "BertModel", "no model for architectures 'BertModel'"),
    ("architectures", [3], r"no model for architectures \[3\]"),
]


@pytest.mark.parametrize(("name", "value", "message"), WRONG_VALUES)
def test_wrong_config_values(name: str, value: Any, message: str, config: Any, weights: Any) -> None:
    with pytest.raises(ValueError, match=message):
        qkv.from_weights(config | {name: value}, weights)


def test_unknown_model_type(weights: Any) -> None:
    for config in ({}, {"model_type": "gpt9"}, {"model_type": ["bert"]}, {"architectures": []}):
        with pytest.raises(ValueError, match=r"no model for .*known are BertModel, .* and model_type bert"):
            qkv.from_weights(config, weights)


def test_wrong_labels(config: Any, weights: Any) -> None:
    for labels in ([], "a", {}):
        with pytest.raises(ValueError, match="id2label must be"):
            qkv.from_weights(config | {"architectures": ["BertForTokenClassification"], "id2label": labels}, weights)
    with pytest.raises(ValueError, match="two labels, start and end"):
        qkv.from_weights(config | {"architectures": ["BertForQuestionAnswering"], "num_labels": 3}, weights)


def test_absurd_sizes_allocate_nothing(config: Any, weights: Any) -> None:
    """Two billion columns are compared, not made."""
    with pytest.raises(ValueError, match=r"expected \(2147483647, 32\)"):
        qkv.from_weights(config | {"intermediate_size": 2**31 - 1, "vocab_size": 2**31 - 1}, weights)


def test_wrong_options(config: Any, weights: Any) -> None:
    with pytest.raises(ValueError, match="dtype 'float8' is not available; use 'float32'"):
        qkv.load(GOLDEN / "bert_base", dtype="float8")
    with pytest.raises(ValueError, match="device 'tpu' is not available; use 'cpu'"):
        qkv.from_weights(config, weights, device="tpu")
    with pytest.raises(TypeError, match="config must be a mapping"):
        qkv.from_weights("bert", weights)
    with pytest.raises(TypeError, match="weights must be a mapping of names to arrays; got list"):
        qkv.from_weights(config, list(weights.values()))
    with pytest.raises(TypeError, match="tokenizer must be"):
        qkv.from_weights(config, weights, tokenizer=3)


# ---- what is in the file


def test_every_wrong_name_in_one_message(config: Any, weights: Any) -> None:
    changed = dict(weights)
    del changed["encoder.layer.2.output.dense.weight"]
    del changed["encoder.layer.0.attention.self.key.bias"]
    changed["encoder.layer.1.intermediate.dens.weight"] = changed.pop("encoder.layer.1.intermediate.dense.weight")
    changed["encoder.layer.3.output.dense.bias"] = changed["encoder.layer.2.output.dense.bias"]
    changed["embeddings.word_embeddings.weight"] = changed["embeddings.word_embeddings.weight"][:, :31]
    changed["encoder.layer.1.attention.self.query.weight"] = np.zeros((30, 32), np.float32)
    with pytest.raises(ValueError) as caught:
        qkv.from_weights(config, changed)
    lines = str(caught.value).split("\n")
    assert lines[0] == "weights, as BertModel: 3 missing, 2 unexpected, 2 mis-shaped"
    for text in (
        "missing: encoder.layer.2.output.dense.weight",
        "missing: encoder.layer.0.attention.self.key.bias",
        "missing: encoder.layer.1.intermediate.dense.weight (nearest: encoder.layer.1.intermediate.dens.weight)",
        "unexpected: encoder.layer.1.intermediate.dens.weight",
        "unexpected: encoder.layer.3.output.dense.bias",
        "mis-shaped: embeddings.word_embeddings.weight is (99, 31), expected (99, 32)",
        "encoder.layer.1.attention.self.value.weight is (94, 32), expected (96, 32)",
    ):
        assert text in str(caught.value)


def test_names_are_told_as_the_file_has_them(config: Any, weights: Any) -> None:
    prefixed = {"bert." + name: array for name, array in weights.items()}
    del prefixed["bert.embeddings.LayerNorm.bias"]
    prefixed["bert.embeddings.LayerNorm.bais"] = weights["embeddings.LayerNorm.bias"]
    with pytest.raises(ValueError) as caught:
        qkv.from_weights(config | {"architectures": ["BertForMaskedLM"]}, prefixed)
    message = str(caught.value)
    assert "  missing: bert.embeddings.LayerNorm.bias (nearest: bert.embeddings.LayerNorm.bais)" in message
    assert "  missing: cls.predictions.transform.dense.weight" in message
    assert "decoder.weight" not in message  # tied to the table, which is there


def test_untied_head_must_be_there(config: Any, weights: Any) -> None:
    options = {"architectures": ["BertForMaskedLM"], "tie_word_embeddings": False}
    with pytest.raises(ValueError, match=r"missing: cls.predictions.decoder.weight"):
        qkv.from_weights(config | options, weights)


def test_weights_that_are_no_floats(config: Any, weights: Any) -> None:
    for value in (np.arange(32), np.array(["a"] * 32), np.array([None] * 32)):
        with pytest.raises(ValueError, match=r"embeddings.LayerNorm.bias is .*expected floats"):
            qkv.from_weights(config, weights | {"embeddings.LayerNorm.bias": value})


# ---- folders


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no such folder or file.*downloads nothing"):
        qkv.load(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match="no such folder or file"):
        qkv.load("someone/some-model-that-nobody-has")
    with pytest.raises(FileNotFoundError, match=r"no config.json in this folder"):
        qkv.load(tmp_path)
    shutil.copy(GOLDEN / "bert_base" / "config.json", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no model.safetensors"):
        qkv.load(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ValueError, match="a pickle, which can run code"):
        qkv.load(tmp_path)


def test_files_that_are_something_else(tmp_path: Path) -> None:
    for name in ("model.safetensors", "config.json"):
        with pytest.raises(ValueError, match=r"expected a folder .* an .npz or a .gguf file"):
            qkv.load(GOLDEN / "bert_base" / name)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"\xff\xfe", b'{"a": ' + b"[" * 10**5])
def test_broken_config_files(content: bytes, tmp_path: Path) -> None:
    shutil.copy(GOLDEN / "bert_base" / "model.safetensors", tmp_path)
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"config.json"):
        qkv.load(tmp_path)


def test_no_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is not the current folder."""
    monkeypatch.chdir(GOLDEN / "bert_base")
    with pytest.raises(ValueError, match="load: the path is empty"):
        qkv.load("")
    assert qkv.load(".").architecture == "BertModel"


def test_name_in_the_hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Any) -> None:
    repository = tmp_path / "hub" / "models--some-one--tiny.bert"
    shutil.copytree(GOLDEN / "bert_base", repository / "snapshots" / "abc123")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc123")
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    loaded = qkv.load("some-one/tiny.bert")
    np.testing.assert_array_equal(loaded(IDS).pooler_output, model(IDS).pooler_output)
    with pytest.raises(FileNotFoundError, match="downloads nothing"):
        qkv.load("some-one/tiny.gpt")
    for content in (b"../snapshots/abc123", b"..", b".", b"/etc", b"a\\b", b"abc\0", b"\xff\xfe\0", b""):
        (repository / "refs" / "main").write_bytes(content)
        with pytest.raises(ValueError, match=r"models--some-one--tiny.bert/refs/main: expected the name of a snapshot"):
            qkv.load("some-one/tiny.bert")
    (repository / "refs" / "main").write_text("abc123\n")
    repository.rename(tmp_path / "hub" / "models--tiny.bert")  # the oldest models have no owner
    np.testing.assert_array_equal(qkv.load("tiny.bert")(IDS).pooler_output, model(IDS).pooler_output)


# ---- what Python, but not JSON, can hold


def test_config_with_numpy_numbers_can_be_saved(config: Any, weights: Any, tmp_path: Path) -> None:
    made = config | {
        "hidden_size": np.int64(32),
        "layer_norm_eps": np.float64(config["layer_norm_eps"]),
        "use_cache": np.bool_(True),
        "id2label": {0: "a", np.int32(1): "b"},
        "architectures": ("BertModel",),
        "more": {"half": np.float16(0.5), "list": [np.uint8(3)]},
    }
    model = qkv.from_weights(made, weights)
    model.save(tmp_path / "x.npz")
    again = qkv.load(tmp_path / "x.npz")
    assert again.config == model.config and again.config["more"] == {"half": 0.5, "list": [3]}
    assert again.config["id2label"] == {"0": "a", "1": "b"}
    np.testing.assert_array_equal(again(IDS).pooler_output, model(IDS).pooler_output)


def test_config_that_json_cannot_hold(config: Any, weights: Any) -> None:
    circle: dict[str, Any] = {}
    circle["more"] = circle
    for value, message in (
        (b"x", "config: extra is a bytes, which JSON cannot hold"),
        ({1, 2}, "config: extra is a set"),
        ([object()], "config: extra is a object"),
        ({"deep": np.ones(3)}, "config: extra: deep is a ndarray"),
        ({(1, 2): 3}, r"config: extra has the key \(1, 2\)"),
        (circle, "nested too deeply"),
    ):
        with pytest.raises(ValueError, match=message):
            qkv.from_weights(config | {"extra": value}, weights)
    with pytest.raises(ValueError, match="config has the key None"):
        qkv.from_weights(config | {None: 3}, weights)


def test_config_of_transformers(config: Any, weights: Any, model: Any) -> None:
    given = types.SimpleNamespace(to_dict=lambda: config)
    np.testing.assert_array_equal(qkv.from_weights(given, weights)(IDS).pooler_output, model(IDS).pooler_output)


def test_weights_that_are_no_arrays(config: Any, weights: Any, model: Any) -> None:
    with pytest.raises(TypeError, match="the names of weights must be strings; got 3"):
        qkv.from_weights(config, weights | {3: np.ones(3)})
    for value in ([[1.0, 2.0], [3.0]], [1.0, [2.0]], [[[1.0], [2.0]], [[3.0]]]):
        with pytest.raises(
            ValueError, match=r"from_weights: embeddings.LayerNorm.bias: the rows have different lengths"
        ):
            qkv.from_weights(config, weights | {"embeddings.LayerNorm.bias": value})
    with pytest.raises(TypeError, match=r"embeddings.LayerNorm.bias must be an array, got str"):
        qkv.from_weights(config, weights | {"embeddings.LayerNorm.bias": "x"})
    lists = {name: array.tolist() for name, array in weights.items()}
    np.testing.assert_array_equal(qkv.from_weights(config, lists)(IDS).pooler_output, model(IDS).pooler_output)


class Trained:
    """A parameter that wants gradients: it cannot be shared before it is detached."""

    requires_grad = True

    def __init__(self, array: np.ndarray):
        self.array = array

    def detach(self) -> np.ndarray:
        return self.array


def test_parameters_that_want_gradients(config: Any, weights: Any, model: Any) -> None:
    made = {name: Trained(array) for name, array in weights.items()}
    np.testing.assert_array_equal(qkv.from_weights(config, made)(IDS).pooler_output, model(IDS).pooler_output)


@pytest.mark.parametrize("severity", ["error", "ignore"])
@pytest.mark.parametrize("value", [[[1, 2], [3]], [[1, 2], 3], [[[1], [2, 3]], [[1], [2]]]])
def test_ragged_lists_under_old_numpy(value: Any, severity: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before 1.24 NumPy warned and made an array of objects."""

    def old(value: Any) -> np.ndarray:
        warnings.warn("Creating an ndarray from ragged nested sequences", UserWarning, stacklevel=2)
        return np.array([None, None], dtype=object)

    with warnings.catch_warnings(), monkeypatch.context() as patch:
        warnings.simplefilter(severity)
        patch.setattr(packing.np, "asarray", old)
        with pytest.raises(ValueError, match="ids: the rows have different lengths"):
            packing.regular("ids", value)


HOSTILE = [
    ("marian_base", {"max_position_embeddings": 2**31 - 1}),
    ("ctrl_base", {"n_positions": 2**31 - 1}),
    ("llama_base", {"head_dim": 2_000_000_000}),
    ("t5_base", {"relative_attention_max_distance": 10**9}),
    ("transfo_xl_base", {"cutoffs": list(range(1, 40)) * 1000}),
]


@pytest.mark.parametrize(("folder", "values"), HOSTILE)
def test_a_config_alone_takes_no_memory(folder: str, values: dict[str, Any]) -> None:
    """Sizes that no weight bounds: refused, or not paid for before they are needed."""
    config, weights = checkpoint(folder)
    tracemalloc.start()
    with contextlib.suppress(ValueError):
        qkv.from_weights(config | values, weights)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50_000_000


def test_from_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Through huggingface_hub, and only what a model is made of; a stand-in, as tests do not go online."""
    asked = []

    def snapshot_download(name: str, *, allow_patterns: list[str]) -> str:
        asked.append((name, allow_patterns))
        if name == "some/absent":
            raise OSError("404")
        return str(GOLDEN / "bert_relu")

    hub = types.ModuleType("huggingface_hub")
    hub.snapshot_download = snapshot_download  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    assert qkv.load("some/model").architecture == "BertModel"
    assert asked[0][0] == "some/model" and "*.safetensors" in asked[0][1] and "*.json" in asked[0][1]
    assert not any(pattern.endswith(".bin") for pattern in asked[0][1])
    with pytest.raises(FileNotFoundError, match=r"some/absent.*404"):
        qkv.load("some/absent")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("some/model", "model", "/some/model", "../some/model"):
        with pytest.raises(FileNotFoundError, match="downloads nothing"):
            qkv.load(name)
    assert len(asked) == 2
