"""Tokenizers in all forms that checkpoints have, and chat templates, against recorded results of transformers."""

from __future__ import annotations

import itertools
import json
import random
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import qkv
from golden_checks import checkpoint
from qkv.config import Config
from qkv.text import Encoding, Tokenizer
from qkv.tokenization.words import merge
from text_checks import CASES, EXPECTED, FOLDER, PAIRS, files_of, ids_of, open_case, spans

pytest.importorskip("tokenizers", reason="text needs the extra `text`")
# where version 5 does not read a case, or loses what version 4 kept: the dummy prefix of the model, mBART-50's spaces
OLD = ("llama_plain", "llama_legacy", "mbart50", "transfo_xl", "transfo_xl_lower")
# and single texts: normalisation, user-defined pieces, and the space that a mask takes along
LIKE_OLD = {
    "roberta": ("<mask>",),
    "bart": ("<mask>",),
    "albert": ("``quoted",),
    "albert_cased": ("``quoted",),
    "mbart": ("\ufb01ne", "zero\u200b"),
}
NO_TYPES = ("marian",)  # which has none: transformers makes types of pairs that nothing reads
NO_OFFSETS = ("[MASK]", "<mask>")  # with the space that they take along, or without


# ---- as transformers


@pytest.mark.parametrize("case", CASES)
def test_ids_and_offsets(case: str) -> None:
    tokenizer = open_case(case)
    expected = EXPECTED[4 if case in OLD else 5][case]
    old = dict(zip(EXPECTED[4].get(case, {}).get("texts", ()), EXPECTED[4].get(case, {}).get("ids", ()), strict=True))
    encodings = tokenizer.encode_batch(expected["texts"])
    assert [e.ids for e in encodings] == tokenizer.rows(expected["texts"])
    for text, encoding, ids, k in zip(expected["texts"], encodings, expected["ids"], range(999), strict=False):
        like_old = any(part in text for part in LIKE_OLD.get(case, ()))
        if case == "gemma" and "  " in text:
            continue  # see test_gemma_has_the_spaces_of_its_model
        assert encoding.ids == (old[text] if like_old else ids), text
        known = [
            (token, i) for token, i in zip(encoding.tokens, encoding.ids, strict=True) if i != tokenizer.unk_token_id
        ]
        assert [token.strip(" ") for token, _ in known] == tokenizer.convert_ids_to_tokens([i for _, i in known])
        if not like_old and "offsets" in expected and not any(mask in text for mask in NO_OFFSETS):
            assert spans(encoding) == expected["offsets"][k], text


@pytest.mark.parametrize("case", CASES)
def test_decoding(case: str) -> None:
    tokenizer = open_case(case)
    version = 4 if case in ("transfo_xl", "transfo_xl_lower") else 5  # which cleans nothing up
    expected = EXPECTED[version].get(case) or EXPECTED[5][case]
    assert tokenizer.batch_decode(expected["ids"]) == expected["decoded"]
    for ids, text in zip(expected["ids"], expected["decoded_all"], strict=True):
        assert tokenizer.decode(np.array(ids), skip_special_tokens=False) == text


@pytest.mark.parametrize("case", CASES)
def test_pairs(case: str) -> None:
    tokenizer = open_case(case)
    expected = EXPECTED[4 if case in OLD else 5][case]
    firsts, seconds = zip(*PAIRS, strict=True)
    encodings = tokenizer.encode_batch(firsts, seconds, truncation=False)
    assert ids_of(encodings) == expected["pairs"] == ids_of(tokenizer.encode_batch(PAIRS, truncation=False))
    if case not in NO_TYPES:
        like_it = EXPECTED[5].get(case, expected)  # slow tokenizers of version 4 give types to models without
        types = like_it if like_it["pairs"] == expected["pairs"] else expected
        assert [e.type_ids for e in encodings] == types["types"]
    for encoding in encodings:
        real = [k for k, mask in zip(encoding.sequence_ids, encoding.special_tokens_mask, strict=True) if not mask]
        assert real == sorted(real, key=lambda k: k or 0) and set(real) <= {0, 1}
        assert [k is None for k in encoding.sequence_ids] == [bool(m) for m in encoding.special_tokens_mask]
    if "windows" in expected and not LIKE_OLD.get(case):
        length = len(expected["pairs"][2]) - 2
        options: dict[str, Any] = {"truncation": "only_second", "max_length": length, "stride": 1}
        found = tokenizer.encode_batch([PAIRS[2]], return_overflowing_tokens=True, **options)[0]
        assert ids_of([found, *found.overflowing]) == expected["windows"]
        assert not tokenizer.encode_batch([PAIRS[2]], **options)[0].overflowing


@pytest.mark.parametrize("case", CASES)
def test_vocabulary(case: str) -> None:
    tokenizer = open_case(case)
    expected = EXPECTED[4 if case.startswith("transfo") else 5].get(case) or EXPECTED[4][case]
    for name, (token, number) in expected["special"].items():
        assert getattr(tokenizer, name) == token and getattr(tokenizer, f"{name}_id") == number, name
        assert number in tokenizer.all_special_ids and tokenizer.is_special(number)
    assert len(tokenizer) == expected["length"] and tokenizer.vocab_size == expected["vocab_size"]
    assert tokenizer.padding_side == (EXPECTED[5].get(case) or expected)["padding_side"]
    vocabulary = tokenizer.get_vocab()
    some = list(vocabulary)[::7]
    assert tokenizer.convert_tokens_to_ids(some) == [vocabulary[token] for token in some]
    assert tokenizer.convert_ids_to_tokens([vocabulary[token] for token in some]) == some
    assert tokenizer.convert_tokens_to_ids("no such token") == tokenizer.unk_token_id
    assert tokenizer.convert_ids_to_tokens(10**6) is None


@pytest.mark.parametrize("case", [c for c in EXPECTED[5] if "words" in EXPECTED[5][c] and c not in OLD])
def test_words(case: str) -> None:
    expected = EXPECTED[5][case]
    texts = [text.split() for text in expected["texts"][:6]]
    encodings = open_case(case).encode_batch(texts, is_split_into_words=True, truncation=False)
    kept = [k for k, text in enumerate(texts) if case not in LIKE_OLD or k != 5]
    assert [[encodings[k].ids, encodings[k].word_ids] for k in kept] == [expected["words"][k] for k in kept]


@pytest.mark.parametrize("case", ["marian", "mbart"])
def test_texts_that_the_model_writes(case: str) -> None:
    tokenizer = open_case(case)
    expected = EXPECTED[4][case]
    texts = expected["texts"][:6]
    batch = tokenizer(text_target=texts)
    found = [row[mask == 1].tolist() for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
    assert found == expected["target"]
    both = tokenizer(texts, text_target=texts)
    np.testing.assert_array_equal(both["labels"], batch["input_ids"])
    np.testing.assert_array_equal(both["input_ids"], tokenizer(texts)["input_ids"])
    assert both["input_ids"].tolist() != both["labels"].tolist()
    with pytest.raises(ValueError, match="neither texts nor text_target"):
        tokenizer()


def test_gemma_has_the_spaces_of_its_model() -> None:
    """Version 5 of transformers cuts runs of them otherwise than sentencepiece, which the model was trained with."""
    sentencepiece = pytest.importorskip("sentencepiece")
    model = sentencepiece.SentencePieceProcessor(model_file=str(FOLDER / "spm_gemma" / "tokenizer.model"))
    texts = ["  leading and   many    spaces  ", "a\n\n\tb      c", "x" + " " * 31 + "y"]
    assert open_case("gemma").rows(texts) == [[2, *model.encode(text)] for text in texts]


def test_llama_is_its_model() -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    model = sentencepiece.SentencePieceProcessor(model_file=str(FOLDER / "spm_llama" / "tokenizer.model"))
    generator = random.Random(0)
    texts = ["".join(generator.choices("abcdeh lot 12é世😀▁\n\t.,", k=generator.randrange(40))) for _ in range(200)]
    ours = open_case("llama_plain").rows(texts)
    assert ours == [[1, *model.encode(text)] for text in texts]


# ---- options


def test_added_tokens() -> None:
    """In the forms of all times."""
    added = {
        "content": "<x>",
        "lstrip": True,
        "rstrip": False,
        "special": False,
        "normalized": False,
        "single_word": False,
    }
    forms = [
        {"tokenizer_config.json": {"added_tokens_decoder": {"420": added}}},
        {"added_tokens.json": {"<x>": 420}, "special_tokens_map.json": {"additional_special_tokens": [added]}},
        {"tokenizer_config.json": {"additional_special_tokens": [{**added, "special": True}]}},
        {"tokenizer_config.json": {"sep_token": added}},
    ]
    for form in forms:
        files = {**files_of("bytes"), **{name: json.dumps(values).encode() for name, values in form.items()}}
        tokenizer = Tokenizer.from_files(files, Config({"model_type": "gpt2"}), None)
        assert tokenizer.rows(["the  <x>x"]) == [[*tokenizer.rows(["the"])[0], 420, *tokenizer.rows(["x"])[0]]]
        assert tokenizer.is_special(420) == ("added_tokens_decoder" not in str(form))
        assert len(tokenizer) == 421 and tokenizer.vocab_size == 420


@pytest.mark.parametrize("case", ["gpt2", "bert", "ctrl", "marian"])
def test_windows_cover_the_text(case: str) -> None:
    tokenizer = open_case(case)
    text = "the quick brown fox and a lazy dog walked over 12,345 tests"
    whole = tokenizer.encode_batch([text], add_special_tokens=False)[0]
    extra = tokenizer.num_special_tokens_to_add()
    for side in ("right", "left"):
        for length, stride in ((5, 0), (7, 2), (6, 5)):
            tokenizer = open_case(case, truncation_side=side)
            options: dict[str, Any] = {"max_length": length + extra, "stride": stride}
            encoding = tokenizer.encode_batch([text], return_overflowing_tokens=True, **options)[0]
            windows = [encoding, *encoding.overflowing]
            real = [[i for i, m in zip(w.ids, w.special_tokens_mask, strict=True) if not m] for w in windows]
            count, step = len(whole.ids), length - stride
            starts = [k for k in range(0, count, step) if k == 0 or k + stride < count]
            cut = [whole.ids[k : k + length] for k in starts]
            if side == "left":
                cut = [whole.ids[max(count - k - length, 0) : count - k] for k in starts]
            assert real == cut
            assert tokenizer.encode_batch([text], **options)[0].ids == encoding.ids


def test_options_leave_no_trace() -> None:
    """Of one tokenizer in several threads, each with other options."""
    for case in ("bert", "ctrl"):
        tokenizer = open_case(case, model_max_length=12)
        text, pair = "the quick brown fox " * 4, "a lazy dog"
        ways: list[dict[str, Any]] = [
            {},
            {"truncation": False},
            {"max_length": 8, "truncation": "only_first"},
            {"max_length": 10, "stride": 1, "truncation": "only_first", "return_overflowing_tokens": True},
            {"add_special_tokens": False},
        ]
        expected = [open_case(case, model_max_length=12).encode_batch([(text, pair)], **way) for way in ways]
        assert len({str(e) for e in expected}) >= 4

        def run(_: int, tokenizer: Tokenizer = tokenizer, ways: list[dict[str, Any]] = ways) -> list[list[Encoding]]:
            return [tokenizer.encode_batch([("the quick brown fox " * 4, "a lazy dog")], **way) for way in ways]

        with ThreadPoolExecutor(4) as pool:
            for found in pool.map(run, range(20)):
                assert found == expected


def test_options_that_do_not_go_together() -> None:
    tokenizer = open_case("bert")
    for options, message in (
        ({"truncation": "longest"}, "truncation must be a bool or one of longest_first, only_first, only_second"),
        ({"max_length": -1}, "max_length must be an integer, not negative; got -1"),
        ({"max_length": 8, "stride": 6}, "stride 6 must be less than the 6 tokens"),
        ({"max_length": 5, "truncation": "only_second"}, "tokenizer: "),
    ):
        with pytest.raises(ValueError, match=message):
            tokenizer.encode_batch(["the quick brown fox and the dog"], **options)
    with pytest.raises(ValueError, match="tokenizer: "):
        open_case("ctrl").encode_batch(["the quick brown fox and the dog"], max_length=3, truncation="only_second")
    for texts in (["a\ud800"], [("a", "\udfff")]):
        for case in ("bert", "ctrl", "marian"):
            with pytest.raises(ValueError, match="lone surrogate"):
                open_case(case).encode_batch(texts)
    for bad in ([3], [["a", 3]], 3):
        with pytest.raises(TypeError):
            tokenizer.encode_batch(bad)
    with pytest.raises(TypeError, match="expected lists of words"):
        tokenizer.encode_batch([["a"], "b"], is_split_into_words=True)
    with pytest.raises(ValueError, match="is no token id"):
        tokenizer.decode([-1])
    with pytest.raises(ValueError, match=r"got shape \(1, 2\)"):
        tokenizer.decode([[1, 2]])


@pytest.mark.parametrize("case", ["bert", "ctrl", "marian", "t5", "llama", "transfo_xl"])
def test_little_and_much_text(case: str) -> None:
    tokenizer = open_case(case)
    assert tokenizer.encode_batch([]) == [] and tokenizer.rows([]) == []
    empty = tokenizer.encode_batch([""])[0]
    assert len(empty) == sum(empty.special_tokens_mask) == tokenizer.num_special_tokens_to_add()
    assert tokenizer("")["input_ids"].shape == (1, len(empty))
    assert tokenizer.decode([]) == ""
    begun = time.monotonic()
    long = "ab" * 100_000 if case not in ("transfo_xl",) else "ab " * 20_000
    assert len(tokenizer.rows([long])[0]) >= 1
    assert time.monotonic() - begun < 30


def test_padding_and_special_tokens_may_be_set() -> None:
    tokenizer = open_case("gpt2")
    assert tokenizer.pad_token is None and tokenizer.pad_token_id is None and tokenizer.pad_id == 0
    token, number = next(item for item in tokenizer.get_vocab().items() if item[1] == 300)
    tokenizer.pad_token = token
    tokenizer.padding_side = "left"
    batch = tokenizer(["x", "the quick"])
    assert tokenizer.pad_token_id == number
    assert batch["attention_mask"].tolist()[0][:-1] == [0] * (batch["input_ids"].shape[1] - 1)
    assert set(batch["input_ids"][0, :-1]) == {number}
    with pytest.raises(ValueError, match="pad_token must be a token of the vocabulary; got 'nothing'"):
        tokenizer.pad_token = "nothing"
    tokenizer.pad_token = None
    assert tokenizer.pad_token is None


def test_languages() -> None:
    """The special tokens are those that transformers puts around texts of each language."""
    expected = EXPECTED[5]["mbart"]["ids"][0]
    tokenizer = open_case("mbart")
    codes = tokenizer.lang_code_to_id
    assert (tokenizer.src_lang, tokenizer.tgt_lang, len(codes)) == ("fr_XX", "en_XX", 25)
    assert expected[-1] == codes["fr_XX"]
    tokenizer.src_lang = "de_DE"
    assert tokenizer.rows(["Hello world!"]) == [[*expected[:-1], codes["de_DE"]]]
    assert tokenizer(text_target="Hello world!")["input_ids"].tolist() == [[*expected[:-1], codes["en_XX"]]]
    tokenizer.tgt_lang = "ro_RO"
    assert tokenizer(text_target="Hello world!")["input_ids"].tolist() == [[*expected[:-1], codes["ro_RO"]]]
    tokenizer.tgt_lang = None
    assert tokenizer(text_target="Hello world!")["input_ids"].tolist() == [[*expected[:-1], codes["de_DE"]]]
    many = open_case("mbart50")
    assert len(many.lang_code_to_id) == 52
    many.src_lang = "xh_ZA"
    assert many.rows(["Hello world!"]) == [[many.lang_code_to_id["xh_ZA"], *expected[:-1]]]
    with pytest.raises(ValueError, match="no language 'xx'"):
        tokenizer.src_lang = "xx"
    other = open_case("t5")
    assert other.src_lang is None and other.lang_code_to_id == {}
    with pytest.raises(ValueError, match="the same for all languages"):
        other.src_lang = "en_XX"


def test_cleaning_up() -> None:
    """WordPiece's decoder does some of it already, BPE never gets any."""
    expected = EXPECTED[4]["gpt"]  # version 4 does it by default
    tokenizer = open_case("t5")
    text = EXPECTED[4]["t5"]["decoded"][5]
    assert tokenizer.decode(EXPECTED[5]["t5"]["ids"][5], clean_up_tokenization_spaces=True) == text
    assert open_case("t5", clean_up_tokenization_spaces=True).decode(EXPECTED[5]["t5"]["ids"][5]) == text
    assert open_case("gpt").decode(expected["ids"][0], clean_up_tokenization_spaces=True) == "hello world !"


@pytest.mark.parametrize("seed", range(20))
def test_merges_in_order(seed: int) -> None:
    """Against the definition: merge all pairs of the lowest rank, from left to right, until there is none."""
    generator = random.Random(seed)
    symbols = ["a", "b", "c", "a</w>", "b</w>", "c</w>"]
    ranks: dict[tuple[str, str], int] = {}
    for k in range(12):
        pair = generator.choice(symbols[:3] + symbols[6:]), generator.choice(symbols)
        if not pair[0].endswith("</w>"):
            ranks.setdefault(pair, k)
            symbols.append(pair[0] + pair[1])
    for _ in range(30):
        word = "".join(generator.choices("abc", k=generator.randrange(1, 12)))
        parts = [*word[:-1], word[-1] + "</w>"]
        while found := [pair for pair in itertools.pairwise(parts) if pair in ranks]:
            best = min(found, key=lambda pair: ranks[pair])
            k, joined = 0, []
            while k < len(parts):
                both = (parts[k], parts[k + 1]) == best if k + 1 < len(parts) else False
                joined.append(parts[k] + parts[k + 1] if both else parts[k])
                k += 1 + both
            parts = joined
        assert merge(word, ranks) == (*parts[:-1], parts[-1].removesuffix("</w>"))


# ---- as a part of models


def with_vocabulary(folder: Path, case: str) -> Path:
    """BERT's tiny weights, or GPT-2's, with rows for all tokens, and a vocabulary."""
    from safetensors.numpy import save_file

    vocabulary, _, settings = CASES[case]
    config, weights = checkpoint("gpt2_lm")
    generator = np.random.default_rng(0)
    name = next(name for name in weights if name.endswith("wte.weight"))
    table = generator.normal(size=(520, weights[name].shape[1])).astype(np.float32)
    weights = {key: table if value.shape == weights[name].shape else value for key, value in weights.items()}
    folder.mkdir()
    save_file(
        {key: np.ascontiguousarray(value, np.float32) for key, value in weights.items()}, folder / "model.safetensors"
    )
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 520}))
    expected = EXPECTED[5].get(case) or EXPECTED[4][case]
    shutil.copytree(FOLDER / vocabulary, folder, dirs_exist_ok=True)
    name = settings.get("tokenizer_class", expected["class"])
    name = "LlamaTokenizer" if name == "TokenizersBackend" else name
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "tokenizer_class": name}))
    return folder


@pytest.mark.parametrize("case", CASES)
def test_saving_keeps_the_tokenizer(case: str, tmp_path: Path) -> None:
    model = qkv.load(with_vocabulary(tmp_path / "model", case))
    texts = ["Hello world! 12,345", "le chien"]
    rows = model.tokenizer.rows(texts)
    assert len(rows[0]) > 2
    model.save(tmp_path / "x.npz")
    model.save(tmp_path / "other")
    for path in ("x.npz", "other"):
        assert qkv.load(tmp_path / path).tokenizer.rows(texts) == rows


@pytest.mark.parametrize("case", ["gpt2", "llama", "t5", "ctrl"])
def test_scores_of_texts(case: str, tmp_path: Path) -> None:
    model = qkv.load(with_vocabulary(tmp_path / "model", case))
    texts = ["the quick brown fox", "low"]
    for k, row in enumerate(model.tokenizer.rows(texts)):
        np.testing.assert_array_equal(model.score(texts).scores[k], model.score([row]).scores[0])
