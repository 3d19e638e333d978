"""Which of a checkpoint's files hold its vocabulary and the tokenizer that they make; the files of one handed in."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..config import Config
from ..files import parse_json
from . import byte, fast, ggml, spm, vocabularies, words
from .special import NAMES, SpecialTokens

SPM_FILES = ("spiece.model", "sentencepiece.bpe.model", "tokenizer.model")


def read_settings(files: Mapping[str, bytes], name: str) -> Config:
    """A file that holds a JSON object; nothing where there is no such file."""
    values = parse_json(files[name], name) if name in files else {}
    if not isinstance(values, dict):
        raise ValueError(f"{name}: must hold a JSON object")
    return Config(values, name)


def open_files(
    files: Mapping[str, bytes], name: str, settings: Config, special: SpecialTokens, config: Config
) -> tuple[Any, Any]:
    """The backends of the texts that a model reads, and of those that it writes. name: the tokenizer class.
    ValueError: there is no vocabulary, or a broken one."""
    if "tokenizer.json" in files:
        backend = fast.open_json(files["tokenizer.json"], name, settings)
        fast.add_special(backend, special)
    elif ggml.FILE in files:
        values = read_settings(files, ggml.FILE)
        backend = ggml.open_ggml(values, special, str(config.get("model_type")))
    elif name == "ByT5Tokenizer":
        backend = byte.open_bytes(settings, special)
    elif name == "MarianTokenizer" and "vocab.json" in files:
        return words.open_marian(files, settings, special)
    elif name == "TransfoXLTokenizer":
        backend = words.open_words(files, settings, special)
    elif name == "CTRLTokenizer" and {"vocab.json", "merges.txt"} <= files.keys():
        backend = words.open_ctrl(files, special)
    elif name in (*vocabularies.BYTE_LEVEL, "OpenAIGPTTokenizer") and {"vocab.json", "merges.txt"} <= files.keys():
        backend = vocabularies.open_merges(files, name, settings, special)
    elif name in fast.BERT_TOKENIZERS and "vocab.txt" in files:
        backend = vocabularies.open_wordpiece(files["vocab.txt"], settings, special)
    elif name in spm.CLASSES and (found := [file for file in SPM_FILES if file in files]):
        backend = spm.open_spm(files, found[0], name, settings, special)
    else:
        there = sorted({*SPM_FILES, "vocab.txt", "vocab.json", "merges.txt", "source.spm"} & files.keys())
        what = f"{', '.join(there)}, which are not enough for" if there else "nor another vocabulary for"
        raise ValueError(
            f"this model has no tokenizer.json, {'but ' if there else ''}{what} tokenizer class {name or None!r}"
        )
    return backend, backend


def handed_in(tokenizer: Any) -> dict[str, bytes]:
    """The files for a tokenizer that a user hands in: used, saved and loaded as it is.

    tokenizer: a tokenizers.Tokenizer, a fast tokenizer of transformers, whose limit, sides, special tokens and
    chat template are kept, or the path of a tokenizer.json. TypeError: it is something else.
    """
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if hasattr(backend, "to_str"):
        data = str(backend.to_str()).encode()
    elif isinstance(tokenizer, (str, os.PathLike)):
        data = Path(tokenizer).read_bytes()
    else:
        raise TypeError(
            "from_weights: tokenizer must be a tokenizers.Tokenizer, a fast tokenizer of transformers, or the "
            f"path of a tokenizer.json; got {type(tokenizer).__name__}"
        )
    # this class has no opinion on case and accents: tokenizer.json alone decides
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    if backend is not tokenizer:
        for name in (*NAMES, "model_max_length", "truncation_side", "padding_side", "chat_template"):
            value = getattr(tokenizer, name, None)
            if isinstance(value, (int, float, str)):
                settings[name] = value
            elif isinstance(value, dict):  # several templates
                settings[name] = [{"name": key, "template": text} for key, text in value.items()]
    return {"tokenizer.json": data, "tokenizer_config.json": json.dumps(settings).encode()}
