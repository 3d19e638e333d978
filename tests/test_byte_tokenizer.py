"""ByT5's tokenizer, which has no files: as transformers 5.24 has it, and by the ids' definition, byte + 3."""

from __future__ import annotations

import json
from typing import Any

import pytest
from checks import run_python
from qkv.config import Config
from qkv.text import Tokenizer

TEXTS = [
    "",
    " ",
    "Hello world!",
    "  leading  and\tnew\r\nlines ",
    "Ça va? ÄÖÜ",
    "日本語 😀👍🏽",
    "nul \0 bell \a \x7f\x80",
]


def open_bytes(**settings: Any) -> Tokenizer:
    files = {"tokenizer_config.json": json.dumps({"tokenizer_class": "ByT5Tokenizer", **settings}).encode()}
    return Tokenizer.from_files(files, Config({"model_type": "t5"}), None, types=False)


@pytest.mark.parametrize("text", TEXTS)
def test_ids_are_bytes(text: str) -> None:
    tokenizer = open_bytes()
    (ids,) = tokenizer.rows([text])
    assert ids == [3 + byte for byte in text.encode()] + [1]
    assert tokenizer.decode(ids) == text
    (encoding,) = tokenizer.encode_batch([text])
    assert encoding.tokens == [*map(chr, text.encode()), "</s>"]
    assert "".join(text[a:b] for a, b in dict.fromkeys(encoding.offsets[:-1])) == text


def test_as_transformers_has_it() -> None:
    tokenizer = open_bytes()
    assert (len(tokenizer), tokenizer.vocab_size) == (384, 256)
    assert tokenizer.convert_tokens_to_ids(["<pad>", "</s>", "<unk>", "<extra_id_0>", "<extra_id_124>", "a"]) == [
        *(0, 1, 2, 259, 383, 100)
    ]
    assert tokenizer.rows(["aé</s>b"]) == [[100, 198, 172, 1, 101, 1]]
    assert tokenizer.rows(["é <extra_id_1> x"]) == [[198, 172, 35, 260, 35, 123, 1]]
    ids = [3, 4, 100, 200, 1, 259, 2]
    assert tokenizer.decode(ids, skip_special_tokens=False) == "\0\x01a</s><extra_id_0><unk>"  # 0xC5 alone is no UTF-8
    assert tokenizer.decode(ids) == "\0\x01a"
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (0, 1, 2)
    assert tokenizer.bos_token is None


def test_pairs() -> None:
    """Each text has an end of its own."""
    tokenizer = open_bytes()
    assert tokenizer.num_special_tokens_to_add(pair=True) == 2
    (encoding,) = tokenizer.encode_batch([("a", "b")])
    assert encoding.ids == [100, 1, 101, 1]
    assert encoding.type_ids == [0, 0, 0, 0]
    assert encoding.sequence_ids == [0, None, 1, None]
    assert encoding.special_tokens_mask == [0, 1, 0, 1]
    (cut,) = tokenizer.encode_batch([("abcd", "efgh")], max_length=6, truncation=True)
    assert cut.ids == [100, 101, 1, 104, 105, 1]


def test_extra_ids() -> None:
    """How many there are is for the files to say; the three first tokens take the space around them along."""
    tokenizer = open_bytes(extra_ids=3)
    assert len(tokenizer) == 262
    assert tokenizer.rows(["a<extra_id_0>  b <pad> x"]) == [[100, 259, 35, 35, 101, 0, 123, 1]]
    plain = open_bytes(extra_ids=0)
    assert len(plain) == 259
    assert plain.rows(["<extra_id_0>"]) == [[3 + byte for byte in b"<extra_id_0>"] + [1]]
    with pytest.raises(ValueError, match="extra_ids must be an integer"):
        open_bytes(extra_ids=-1)


def test_saved_by_transformers() -> None:
    """Its tokenizer_config.json lists the added tokens, the first three as if they were not special."""
    flags = {"lstrip": True, "rstrip": True, "normalized": True, "single_word": False, "special": False}
    names = {"0": "<pad>", "1": "</s>", "2": "<unk>"}
    listed = {number: {"content": token, **flags} for number, token in names.items()}
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer = open_bytes(added_tokens_decoder=listed, extra_ids=0, **special)
    assert len(tokenizer) == 259
    assert tokenizer.rows(["a <pad> b"]) == [[100, 0, 101, 1]]
    assert tokenizer.decode([100, 0, 101, 1]) == "ab"


def test_needs_no_package() -> None:
    done = run_python(
        "import sys\n"
        "for name in ('tokenizers', 'sentencepiece', 'transformers', 'torch'): sys.modules[name] = None\n"
        "from qkv.config import Config\n"
        "from qkv.text import Tokenizer\n"
        "files = {'tokenizer_config.json': b'{\"tokenizer_class\": \"ByT5Tokenizer\"}'}\n"
        "print(Tokenizer.from_files(files, Config({}), None).rows(['ab']))"
    )
    assert (done.returncode, done.stdout.strip()) == (0, "[[100, 101, 1]]"), done.stderr
