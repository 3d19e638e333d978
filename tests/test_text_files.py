"""Vocabularies of GGUF files, and broken files of all kinds."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import qkv
from qkv.config import Config
from qkv.text import Tokenizer
from text_checks import CASES, FOLDER, files_of, recorded, spans

pytest.importorskip("tokenizers", reason="text needs the extra `text`")
GGUF = recorded("gguf")


# ---- GGUF


def open_gguf(values: dict[str, Any], architecture: str = "llama") -> Tokenizer:
    files = {"tokenizer.gguf.json": json.dumps(values).encode()}
    return Tokenizer.from_files(files, Config({"model_type": architecture}), None)


@pytest.mark.parametrize("case", GGUF)
def test_gguf(case: str) -> None:
    expected = GGUF[case]
    tokenizer = open_gguf(expected["metadata"], expected["architecture"])
    encodings = tokenizer.encode_batch(expected["texts"])
    for k, (text, encoding) in enumerate(zip(expected["texts"], encodings, strict=True)):
        assert encoding.ids == expected["ids"][k], text
        assert spans(encoding) == expected["offsets"][k], text
        assert tokenizer.decode(encoding.ids, skip_special_tokens=False) == expected["decoded"][k]
    for name in ("bos_token", "eos_token", "unk_token", "pad_token"):
        token, number = expected["special"].get(name, (None, None))
        assert getattr(tokenizer, name) == token and getattr(tokenizer, f"{name}_id") == number, name
    assert len(tokenizer) == expected["length"]


def test_gguf_digits_stand_alone_before_words_are_split() -> None:
    """As llama.cpp and SmolLM's own tokenizer.json have it; transformers splits words first when it reads a GGUF."""
    tokens = ["<|endoftext|>", "Ġ", "ĠĠ", "1", "2", "12", "Ċ", "a"]
    values = {"model": "gpt2", "pre": "smollm", "tokens": tokens, "merges": ["Ġ Ġ", "1 2"]}
    assert open_gguf(values).rows(["  12a", " 1\n"]) == [[2, 3, 4, 7], [1, 3, 6]]


@pytest.mark.parametrize("pre", ["gpt-2", "qwen2", "smollm", "llama-bpe", "falcon3", "pixtral", "lfm2", "tekken"])
def test_gguf_texts_begin_with_bos_as_llama_cpp_has_it(pre: str) -> None:
    """Where add_bos_token is not there: so for Llama 3's way to split words, and Mistral's."""
    values = {"model": "gpt2", "pre": pre, "tokens": ["a", "<s>", "aa"], "token_type": [1, 3, 1], "merges": ["a a"]}
    values["bos_token_id"] = 1
    begins = pre not in ("gpt-2", "qwen2", "smollm")
    assert open_gguf(values).rows(["a"]) == [[1, 0] if begins else [0]]
    assert open_gguf({**values, "add_bos_token": not begins}).rows(["a"]) == [[0] if begins else [1, 0]]


def test_gguf_file(tmp_path: Path) -> None:
    """Through all forms that the model may be saved in, template and all."""
    test_gguf = pytest.importorskip("test_gguf", reason="the file is written by the package of the extra `gguf`")
    config = test_gguf.config_of("llama_lm")
    metadata, tensors = test_gguf.as_gguf(config, test_gguf.weights_of("llama_lm", config))
    values = {"model": "gpt2", "pre": "gpt-2", "tokens": [*"abcdef", "ab", "<|x|>"], "merges": ["a b"]}
    values |= {"token_type": [1] * 7 + [3], "eos_token_id": 7}
    metadata |= {f"tokenizer.ggml.{key}": value for key, value in values.items()}
    metadata["tokenizer.chat_template"] = "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
    typed = {name: (array, test_gguf.Type.F32) for name, array in tensors.items()}
    model = qkv.load(test_gguf.write(tmp_path / "x.gguf", "llama", metadata, typed))
    model.save(tmp_path / "x.npz")
    model.save(tmp_path / "folder")
    for same in (model, qkv.load(tmp_path / "x.npz"), qkv.load(tmp_path / "folder")):
        assert same.tokenizer.rows(["abc<|x|>"]) == [[6, 2, 7]]
        assert same.tokenizer.eos_token_id == 7
        found = same.tokenizer.apply_chat_template([{"role": "user", "content": "abf"}])
        assert found == {"input_ids": [6, 5, 7], "attention_mask": [1, 1, 1]}
    np.testing.assert_array_equal(
        model.score(["abc", "f"]).scores, model.score([[6, 2], [5, 0]], [[1, 1], [1, 0]]).scores
    )


GOOD_GGUF = {"model": "gpt2", "pre": "gpt-2", "tokens": ["a", "b", "ab"], "merges": ["a b"]}
BROKEN_GGUF: dict[str, tuple[dict[str, Any], str]] = {
    "no tokens": ({"tokens": []}, "tokens must be a list of strings"),
    "tokens that are none": ({"tokens": [1, 2]}, "tokens must be a list of strings"),
    "a token twice": ({"tokens": ["a", "b", "a"]}, "'a' is there twice"),
    "no merges": ({"merges": None}, "merges must be a list of strings"),
    "a merge that is none": ({"merges": ["a"]}, "expected two tokens with a space between; got 'a'"),
    "a merge of an unknown token": ({"merges": ["a x"]}, "out of vocabulary"),
    "another model": ({"model": "rwkv"}, 'model must be "gpt2" or "llama"; got \'rwkv\''),
    "another way to split": ({"pre": "bloom"}, "pre 'bloom' is not supported"),
    "types for others": ({"token_type": [1]}, "token_type must be an integer for each of the 3 tokens"),
    "an id beyond": ({"eos_token_id": 3}, "eos_token_id must be an integer from 0 to 2"),
    "no scores": ({"model": "llama", "scores": ["x"] * 3}, "scores must be a number for each of the 3 tokens"),
    "a flag": ({"add_bos_token": "yes", "bos_token_id": 0}, "add_bos_token must be true or false"),
}


@pytest.mark.parametrize("what", BROKEN_GGUF)
def test_broken_gguf_vocabularies(what: str) -> None:
    change, message = BROKEN_GGUF[what]
    assert open_gguf(GOOD_GGUF).rows(["ab"]) == [[2]]
    with pytest.raises(ValueError, match=r"^tokenizer.gguf.json: ") as error:
        open_gguf({**GOOD_GGUF, **change})
    assert message in str(error.value)


# ---- broken files


def replaced(data: bytes, old: str, new: str) -> bytes:
    assert old.encode() in data
    return data.replace(old.encode(), new.encode())


BROKEN: dict[str, tuple[str, str, Any, str]] = {  # case, file, what becomes of it, message
    "a truncated model": ("t5", "spiece.model", lambda d: d[: len(d) // 2], "spiece.model: no SentencePiece model"),
    "an empty model": ("t5", "spiece.model", lambda d: b"", "spiece.model: a SentencePiece model of 0 pieces"),
    "text as a model": ("llama", "tokenizer.model", lambda d: b"hello " * 99, "tokenizer.model: no SentencePiece"),
    "a model of the other kind": ("xlmroberta", "sentencepiece.bpe.model", "spm_llama", "needs a unigram model"),
    "a truncated Marian": ("marian", "source.spm", lambda d: d[:-200], "source.spm: no SentencePiece model"),
    "no target": ("marian", "target.spm", None, "there is no target.spm"),
    "no source": ("marian", "source.spm", None, "there is no source.spm"),
    "no unknown token": ("marian", "vocab.json", lambda d: replaced(d, "<unk>", "x<u>"), "there is no <unk>"),
    "ids that are none": ("gpt2", "vocab.json", lambda d: b'{"a": "b"}', "vocab.json: the id of 'a' must be"),
    "ids below zero": ("gpt2", "vocab.json", lambda d: b'{"a": -1}', "vocab.json: the id of 'a' must be"),
    "the same id": ("gpt2", "vocab.json", lambda d: b'{"a": 1, "b": 1}', "'a' and 'b' have the same id, 1"),
    "the same token": ("gpt2", "vocab.json", lambda d: b'{"a": 1, "a": 2}', "vocab.json: 'a' is there twice"),
    "an empty vocabulary": ("gpt2", "vocab.json", lambda d: b"{}", "vocab.json: must hold a JSON object"),
    "a list": ("ctrl", "vocab.json", lambda d: b"[]", "vocab.json: must hold a JSON object"),
    "no JSON": ("gpt", "vocab.json", lambda d: d[:-3], "vocab.json: not valid JSON"),
    "merges of one": ("gpt2", "merges.txt", lambda d: d + b"x\n", "merges.txt: line"),
    "merges of three": ("ctrl", "merges.txt", lambda d: d + b"x y z\n", "merges.txt: line"),
    "merges of the unknown": ("gpt2", "merges.txt", lambda d: d + b"foo bar\n", "vocab.json and merges.txt: "),
    "merges in Latin-1": ("gpt2", "merges.txt", lambda d: b"\xe4 \xf6", "merges.txt: not UTF-8 text"),
    "no merges": ("gpt2", "merges.txt", None, "which are not enough for tokenizer class 'GPT2Tokenizer'"),
    "no words": ("bert", "vocab.txt", lambda d: b"", "vocab.txt: there is no [UNK] among its 0 tokens"),
    "no unknown word": ("bert", "vocab.txt", lambda d: b"a\nb\n", "vocab.txt: there is no [UNK] among its 2 tokens"),
    "no end token": ("bert", "vocab.txt", lambda d: b"[UNK]\na\n[CLS]", "vocab.txt: the vocabulary has no sep_token"),
    "an empty line": ("transfo_xl", "vocab.txt", lambda d: b"<unk>\n\nx", "vocab.txt: line 2 has no word"),
    "no unknown symbol": (
        "transfo_xl",
        "vocab.txt",
        lambda d: b"a\nb",
        "vocab.txt: there is no <unk> among its 2 words",
    ),
    "a pickle only": ("transfo_xl", "vocab.txt", None, "is a pickle, which can run code"),
    "settings that are none": ("bert", "tokenizer_config.json", lambda d: b"[]", "tokenizer_config.json: must hold"),
    "a token that is none": (
        "bert",
        "special_tokens_map.json",
        lambda d: b'{"pad_token": 7}',
        "pad_token must be a token",
    ),
    "flags that are none": (
        *("bert", "tokenizer_config.json", lambda d: b'{"mask_token": {"content": "x", "lstrip": 3}}'),
        "tokenizer_config.json: mask_token must be a token, or an object with its content and flags",
    ),
    "an added id": ("bert", "added_tokens.json", lambda d: b'{"x": "y"}', "added_tokens.json: x must be ids"),
    "many extra ids": ("t5", "tokenizer_config.json", lambda d: b'{"extra_ids": 1000000000}', "extra_ids must be"),
    "an unknown language": (
        "mbart",
        "tokenizer_config.json",
        lambda d: b'{"src_lang": "xx"}',
        "src_lang must be one of",
    ),
    "a side": ("bert", "tokenizer_config.json", lambda d: b'{"padding_side": "top"}', 'padding_side must be "left"'),
    "a template": (
        "bert",
        "tokenizer_config.json",
        lambda d: b'{"chat_template": 1}',
        "chat_template must be a string",
    ),
    "what is not implemented": (
        *("marian", "tokenizer_config.json", lambda d: b'{"separate_vocabs": true}'),
        "separate_vocabs True is not supported",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_broken_files(what: str) -> None:
    case, name, change, message = BROKEN[what]
    vocabulary, model_type, settings = CASES[case]
    files = files_of(vocabulary, settings)
    if change is None:
        del files[name]
    elif isinstance(change, str):
        files[name] = (FOLDER / change / "tokenizer.model").read_bytes()
    else:
        files[name] = change(files.get(name, b""))
    with pytest.raises(ValueError) as error:
        Tokenizer.from_files(files, Config({"model_type": model_type}), None)
    assert message in str(error.value)


@pytest.mark.parametrize("case", ["t5", "llama", "marian"])
def test_models_with_bytes_changed(case: str) -> None:
    """Either it still is one, or one ValueError."""
    vocabulary, model_type, settings = CASES[case]
    files = files_of(vocabulary, settings)
    name = next(name for name in files if name.endswith((".spm", ".model")))
    generator = random.Random(0)
    for _ in range(60):
        data = bytearray(files[name])
        for _ in range(generator.randrange(1, 6)):
            data[generator.randrange(len(data))] = generator.randrange(256)
        try:
            Tokenizer.from_files({**files, name: bytes(data)}, Config({"model_type": model_type}), None).rows(["ab"])
        except ValueError as error:
            assert len(str(error)) > 10


def test_a_tokenizer_with_more_tokens_than_the_model() -> None:
    files = files_of("bytes")
    config = {"model_type": "gpt2", "vocab_size": 420}
    assert len(Tokenizer.from_files(files, Config(config), None)) == 420
    with pytest.raises(ValueError, match="its vocabulary has 420 tokens, but the model only 419"):
        Tokenizer.from_files(files, Config({**config, "vocab_size": 419}), None)
    files["added_tokens.json"] = b'{"<x>": 420}'  # such are refused when they are used
    assert Tokenizer.from_files(files, Config(config), None).rows(["<x>"]) == [[420]]
