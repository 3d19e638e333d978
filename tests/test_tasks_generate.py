"""text-generation against transformers 5, text2text-generation, summarization and translation against version 4."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import qkv
from golden_checks import GOLDEN
from qkv.tasks.generate import pieces

pytest.importorskip("tokenizers", reason="text needs the extra `text`")
TASKS = GOLDEN / "generation_tasks"
MODELS = json.loads((TASKS / "models.json").read_text())
CASES = [case for version in (5, 4) for case in json.loads((TASKS / f"expected_{version}.json").read_text())]
PROMPTS = ["ab cd", "a", "é, ab ab. cdefgh", " b", "cd", "ef ab. ", "é", "ab", "a b a b"]
GREEDY = {"do_sample": False, "max_new_tokens": 6}


def folder(target: Path, name: str) -> Path:
    """A checkpoint as golden/make_generation_tasks.py makes it."""
    checkpoint, tokenizer, config, settings, generation = MODELS[name]
    shutil.copytree(GOLDEN / checkpoint, target)
    content = json.loads((target / "config.json").read_text()) | config
    (target / "config.json").write_text(json.dumps(content))
    shutil.copy(TASKS / f"{tokenizer}.json", target / "tokenizer.json")
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False} | settings
    (target / "tokenizer_config.json").write_text(json.dumps(settings))
    if generation is not None:
        (target / "generation_config.json").write_text(json.dumps(generation))
    return target


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """Models by name, each loaded once."""
    root, models = tmp_path_factory.mktemp("generation"), {}

    def load(name: str) -> Any:
        if name not in models:
            models[name] = qkv.load(folder(root / name, name))
        return models[name]

    return load


def plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("name", ["t5", "bart", "marian", "mbart"])
def test_scores_of_texts_that_a_decoder_would_write(name: str, load: Callable[[str], Any]) -> None:
    model = load(name)
    sources, targets = ["ab cd", "a"], ["ef ab", "cd"]
    out = model.score(sources, targets=targets)
    for i in range(2):
        labels = model.tokenizer(text_target=targets[i])["input_ids"][0].tolist()
        # mBART moves the last of them, the language, to the front; others begin with a token of their own
        first = labels[-1] if name == "mbart" else model.config["decoder_start_token_id"]
        alone = model.score(model.tokenizer(sources[i])["input_ids"], decoder_input_ids=[[first, *labels]])
        np.testing.assert_array_equal(out.token_scores[i, : len(labels) + 1], alone.token_scores[0])
        assert not out.token_scores[i, len(labels) + 1 :].any() and out.scores[i] == alone.scores[0] < 0
    with pytest.raises(ValueError, match="2 rows for 1 texts"):
        model.score("ab", targets=targets)
    with pytest.raises(ValueError, match="not both"):
        model.score(sources, targets=targets, decoder_input_ids=[[1], [1]])
    with pytest.raises(TypeError, match="targets must be a string or several"):
        model.score(sources, targets=[[1], [2]])


@pytest.mark.filterwarnings("ignore:task .translation. stands for", "ignore:text2text")
@pytest.mark.parametrize("number", range(len(CASES)))
def test_agrees_with_transformers(number: int, load: Callable[[str], Any]) -> None:
    case = CASES[number]
    pipe = qkv.pipeline(case["task"], load(case["model"]), **case["made"])
    assert plain(pipe(case["inputs"], **case["given"])) == case["outputs"], case


# ---- batches


@pytest.mark.parametrize(
    "options",
    [
        GREEDY,
        GREEDY | {"num_beams": 3, "num_return_sequences": 2, "length_penalty": 0.5},
        GREEDY | {"eos_token_id": [14, 21, 31], "return_tensors": True},
        {"do_sample": False, "max_length": 17, "min_length": 15},
        {"do_sample": False, "max_new_tokens": 9, "exponential_decay_length_penalty": [3, 1.5]},
        {"do_sample": False, "max_new_tokens": 9, "repetition_penalty": 1.4, "no_repeat_ngram_size": 2},
        {"do_sample": False, "max_new_tokens": 9, "stop_sequence": [".", "e"]},
    ],
    ids=lambda options: "-".join(name for name in options if name not in GREEDY) or "greedy",
)
def test_batches_change_nothing(options: dict[str, Any], load: Callable[[str], Any]) -> None:
    pipe = qkv.pipeline("text-generation", load("llama"))
    expected = [pipe(prompt, **options) for prompt in PROMPTS]
    for size in (1, 2, 4, None):
        assert pipe(PROMPTS, batch_size=size, **options) == expected
    assert list(pipe(iter(PROMPTS), batch_size=3, **options)) == expected
    assert pipe(PROMPTS[::-1], **options) == expected[::-1]


@pytest.mark.parametrize("model", ["t5", "bart", "marian"])
def test_batches_change_nothing_behind_an_encoder(model: str, load: Callable[[str], Any]) -> None:
    pipe = qkv.pipeline("summarization", load(model))
    for options in ({}, {"num_beams": 3, "num_return_sequences": 3}, {"return_tensors": True, "eos_token_id": 20}):
        expected = [plain(pipe(prompt, truncation=True, **options)) for prompt in PROMPTS]
        flat = [records[0] if len(records) == 1 else records for records in expected]
        for size in (1, 4, None):
            assert plain(pipe(PROMPTS, batch_size=size, truncation=True, **options)) == flat


def test_the_model_s_limit_is_each_prompt_s_own(load: Callable[[str], Any]) -> None:
    """A prompt that leaves less room than the others does not take theirs."""
    pipe = qkv.pipeline("text-generation", load("gpt2"), do_sample=False, return_tensors=True)
    prompts = ["a", "ab cd", "ab cd ab cd", "b"]
    together = pipe(prompts)
    assert together == [pipe(prompt) for prompt in prompts]
    assert {len(records[0]["generated_token_ids"]) for records in together} == {12}  # positions of the model


def test_random_numbers_are_those_of_generate(load: Callable[[str], Any]) -> None:
    """Of input i those of row i, however many are computed at once."""
    model = load("llama")
    pipe = qkv.pipeline("text-generation", model)
    options: dict[str, Any] = {"max_new_tokens": 8, "temperature": 3.0, "seed": 5, "num_return_sequences": 2}
    expected = pipe(PROMPTS, return_tensors=True, **options)
    for size in (1, 2, 5):
        assert pipe(PROMPTS, batch_size=size, return_tensors=True, **options) == expected
    batch = model.tokenizer(PROMPTS)
    made = model.generate(batch["input_ids"], batch["attention_mask"], do_sample=True, pad_token_id=0, **options)
    width = batch["input_ids"].shape[1]
    for i, records in enumerate(expected):
        prompt = int(batch["attention_mask"][i].sum())
        for k, record in enumerate(records):
            tokens = record["generated_token_ids"][prompt:]
            assert tokens == made[2 * i + k, width:][: len(tokens)].tolist()
    assert len({json.dumps(records) for records in pipe(["ab"] * 6, **options)}) > 1
    assert pipe("ab", **options | {"seed": 6}) != pipe("ab", **options)
    beams: dict[str, Any] = {"max_new_tokens": 5, "num_beams": 2, "seed": 5}
    assert pipe(PROMPTS, batch_size=2, **beams) == pipe(PROMPTS, **beams)


def test_functions_of_the_user_see_one_input(load: Callable[[str], Any]) -> None:
    pipe = qkv.pipeline("text-generation", load("llama"), **GREEDY)
    shapes: set[Any] = set()

    def note(ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        shapes.add((len(ids), ids.min() >= 0))
        return scores

    expected = [pipe(prompt) for prompt in PROMPTS]
    assert pipe(PROMPTS, logits_processor=note) == expected
    assert shapes == {(1, True)}
    only = pipe(PROMPTS, prefix_allowed_tokens_fn=lambda number, ids: [3 + number], return_full_text=False)
    assert all(records[0]["generated_text"] == " " * 6 for records in only)  # of each input it is number 0
    assert pipe("ab", stopping_criteria=lambda ids, scores: True, return_full_text=False) == [{"generated_text": ""}]


# ---- streams


@pytest.mark.parametrize("model", ["llama", "t5", "marian"])
def test_streams(model: str, load: Callable[[str], Any]) -> None:
    task = "text-generation" if model == "llama" else "text2text-generation"
    pipe = qkv.pipeline(task, load(model), max_new_tokens=8, do_sample=False, num_beams=1, truncation=True)
    name = "generated_text"
    for prompt in PROMPTS:
        whole = pipe(prompt, **({"return_full_text": False} if model == "llama" else {}))[0][name]
        found = list(pipe.stream(prompt))
        assert "".join(found) == whole
        assert all(found)
    if model == "llama":
        chat = [{"role": "user", "content": "ab"}]
        assert "".join(pipe.stream(chat)) == pipe(chat, return_full_text=False)[0][name]
    for options, message in (({"num_beams": 2}, "needs generate"), ({"nonsense": 1}, "no argument nonsense")):
        with pytest.raises(ValueError, match=message):
            pipe.stream("ab", **options)
    with pytest.raises(ValueError, match="one sequence"):
        pipe.stream("ab", do_sample=True, num_return_sequences=2)


def test_pieces_of_bytes() -> None:
    """A character comes with its last byte, and what is no character at the end, or once it cannot become one."""
    data = "añ€😀x".encode() + b"\xf0\x9f"

    def decode(ids: list[int]) -> str:
        return bytes(ids).decode(errors="replace")

    assert list(pieces(decode, data)) == ["a", "ñ", "€", "😀", "x", "\ufffd"]
    assert list(pieces(decode, b"a\xffbc")) == ["a", "\ufffdb", "c"]
    assert list(pieces(decode, b"")) == []
    for start in range(len(data)):
        assert "".join(pieces(decode, data[start:])) == decode(data[start:])


def test_pieces_of_words() -> None:
    """Decoders that leave out the first word's space, as SentencePiece's, and special tokens without any text."""
    words = ["▁the", "▁cat", "s", "", "", "▁sat", "▁", "▁", "a", "", "▁b"]

    def decode(ids: list[int]) -> str:
        return "".join(words[i] for i in ids).replace("▁", " ").removeprefix(" ")

    for start in range(len(words)):
        order = list(range(start, len(words)))
        found = list(pieces(decode, order))
        assert "".join(found) == decode(order)
    assert list(pieces(decode, range(3))) == ["the", " cat", "s"]


# ---- options


@pytest.mark.parametrize(
    ("model", "task", "given", "message"),
    [
        ("llama", "text-generation", {"max_new_token": 3}, "no argument max_new_token; did you mean max_new_tokens"),
        ("llama", "text-generation", {"return_full_text": True, "return_tensors": True}, "exclude each other"),
        ("llama", "text-generation", {"return_full_text": False, "return_tensors": True}, "exclude each other"),
        ("llama", "text-generation", {"return_full_text": False, "return_text": True}, "exclude each other"),
        ("llama", "text-generation", {"handle_long_generation": "cut"}, 'must be None or "hole"'),
        (
            "llama",
            "text-generation",
            {"return_dict_in_generate": True},
            "return_dict_in_generate is for model.generate",
        ),
        ("llama", "text-generation", {"penalty_alpha": 0.5}, "penalty_alpha 0.5 is not supported"),
        ("llama", "text-generation", {"max_length": 3, "max_new_tokens": 3}, "two answers to one question"),
        ("llama", "text-generation", {"truncation": "both"}, "truncation must be one of"),
        ("gpt2", "text-generation", {"max_new_tokens": 99}, "is too much"),
        ("gpt2", "text-generation", {"max_new_tokens": 99, "handle_long_generation": "hole"}, "leave no room"),
        ("t5", "summarization", {"num_beams": 0}, "num_beams must be an integer"),
        ("t5", "summarization", {"stop_sequence": ""}, "has no token"),
        ("t5", "summarization", {"prefix": "x"}, "no argument prefix"),
    ],
)
def test_wrong_options(model: str, task: str, given: dict[str, Any], message: str, load: Callable[[str], Any]) -> None:
    pipe = qkv.pipeline(task, load(model))
    with pytest.raises(ValueError, match=message):
        pipe("ab", **given)


def test_a_call_says_what_comes_back(load: Callable[[str], Any]) -> None:
    """In the place of what the constructor said, as in transformers, where two in one call exclude each other."""
    pipe = qkv.pipeline("text-generation", load("llama"), return_full_text=False, **GREEDY)
    assert list(pipe("ab", return_tensors=True)[0]) == ["generated_token_ids"]
    assert pipe("ab", return_full_text=True) == [{"generated_text": "ab" + pipe("ab")[0]["generated_text"]}]


def test_wrong_inputs(load: Callable[[str], Any]) -> None:
    pipe = qkv.pipeline("text-generation", load("llama"), **GREEDY)
    for given in (None, 3, b"ab", ["ab", 3]):
        with pytest.raises(TypeError, match="text-generation: an input must be a string; got"):
            pipe(given)
    for chat in ([[]], [["ab"]], [[{"role": "user"}]], [[{"role": "user", "content": "a"}, "b"]]):
        with pytest.raises(ValueError, match="each message of a chat must have a role and a content"):
            pipe(chat)
    with pytest.raises(ValueError, match="chat_template"):
        qkv.pipeline("text-generation", load("gpt2"))([{"role": "user", "content": "ab"}])
    with pytest.raises(ValueError, match="a text has 13 tokens, and the model takes 12; pass truncation=True"):
        qkv.pipeline("summarization", load("bart"))("a" * 11)
    with pytest.raises(ValueError, match="for an empty prompt there must be a bos_token_id"):
        qkv.pipeline("text-generation", load("llama"), add_special_tokens=False, prefix="")("", bos_token_id=None)


def test_a_longer_stop_sequence_is_cut_with_a_warning(load: Callable[[str], Any]) -> None:
    pipe = qkv.pipeline("text2text-generation", load("t5"))
    with pytest.warns(UserWarning, match="stop_sequence is 3 tokens, of which the first ends a text"):
        found = pipe("ab cd", stop_sequence="b gh")
    assert found == pipe("ab cd", stop_sequence="b")


def test_translation_alone_says_what_it_stands_for(load: Callable[[str], Any]) -> None:
    with pytest.warns(UserWarning, match='stands for "translation_en_to_de"'):
        pipe = qkv.pipeline("translation", load("t5"))
    assert pipe("ab") == qkv.pipeline("translation_en_to_de", load("t5"))("ab")


def test_languages_of_mbart(load: Callable[[str], Any]) -> None:
    model = load("mbart")
    languages = {"src_lang": "de_DE", "tgt_lang": "en_XX"}
    expected = qkv.pipeline("translation", model)("ab cd", **languages)
    assert qkv.pipeline("translation_de_DE_to_en_XX", model)("ab cd") == expected
    assert qkv.pipeline("translation", model, **languages)("ab cd") == expected
    assert model.tokenizer.src_lang == "en_XX"  # as before
    pipe = qkv.pipeline("translation", model)
    for code in ("en_XX", "de_DE"):  # what is read ends in eos and its language
        ((row,),) = pipe.prepare(["ab"], pipe.read({"src_lang": code, "tgt_lang": "en_XX"}))
        assert row.ids[-2:] == [2, model.tokenizer.convert_tokens_to_ids(code)]
    for given, message in (
        ({}, "src_lang must be one of .*; got None"),
        ({"src_lang": "en_XX"}, "tgt_lang must be one of .*; got None"),
        ({"src_lang": "en_XX", "tgt_lang": "xx"}, "tgt_lang must be one of .*; got 'xx'"),
    ):
        with pytest.raises(ValueError, match=message):
            qkv.pipeline("translation", model)("ab", **given)


def test_languages_come_with_the_call(load: Callable[[str], Any]) -> None:
    """A task may name languages that mBART's tokenizer does not have, such as those of its published checkpoints."""
    model = load("mbart")
    languages = {"src_lang": "de_DE", "tgt_lang": "en_XX"}
    pipe = qkv.pipeline("translation_de_to_en", model)
    assert pipe("ab cd", **languages) == qkv.pipeline("translation", model)("ab cd", **languages)
    with pytest.raises(ValueError, match=r"src_lang must be one of .*; got 'de'"):
        pipe("ab cd")


def test_a_text_to_score_is_not_cut(load: Callable[[str], Any]) -> None:
    """The sum would be that of another text."""
    model = load("gpt2")
    text = "a b " * model.max_tokens
    assert len(model.tokenizer.rows([text])[0]) <= model.max_tokens
    with pytest.raises(ValueError, match=f"score: a text has .* tokens, and the model takes {model.max_tokens}"):
        model.score(text)


def test_broken_settings_of_a_model(tmp_path: Path) -> None:
    for i, (changed, message) in enumerate(
        [
            ({"task_specific_params": [1]}, "task_specific_params must be"),
            ({"task_specific_params": {"summarization": 3}}, "task_specific_params must be"),
            ({"task_specific_params": {"summarization": {"prefix": 3}}}, "prefix must be a string"),
            ({"prefix": ["x"]}, "prefix must be a string"),
            ({"task_specific_params": {"summarization": {"num_beams": "x"}}}, "num_beams must be an integer"),
        ]
    ):
        path = folder(tmp_path / str(i), "t5")
        config = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps(config | {"task_specific_params": None} | changed))
        with pytest.raises(ValueError, match=message):
            qkv.pipeline("summarization", path)


def test_another_tokenizer(load: Callable[[str], Any]) -> None:
    bare = qkv.load(GOLDEN / "llama_lm")
    path = TASKS / "llama.json"
    pipe = qkv.pipeline("text-generation", bare, tokenizer=path, **GREEDY)
    expected = qkv.pipeline("text-generation", load("llama"), **GREEDY)
    assert pipe(PROMPTS, stop_sequence=".") == expected(PROMPTS, stop_sequence=".")
    assert "".join(pipe.stream("ab cd")) == "".join(expected.stream("ab cd"))


# ---- a real model


def test_smollm2_answers_as_in_transformers() -> None:
    """In float32, the blocks of the file dequantised, as there."""
    from test_gguf import smollm2

    pipe = qkv.pipeline("text-generation", smollm2(), do_sample=False, max_new_tokens=32)
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    answer = "The capital of France is Paris."  # transformers 5.24.0, torch 2.13.0
    assert pipe(chat) == [{"generated_text": [*chat, {"role": "assistant", "content": answer}]}]
    assert list(pipe.stream(chat)) == ["The", " capital", " of", " France", " is", " Paris", "."]
