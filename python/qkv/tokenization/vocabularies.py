"""Tokenizers of the `tokenizers` package from vocab.txt (BERT), or vocab.json and merges.txt (GPT-2, RoBERTa, GPT)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ..config import Config
from ..files import parse_json
from . import fast
from .special import SpecialTokens

QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
BYTE_LEVEL = ("GPT2Tokenizer", "RobertaTokenizer", "BartTokenizer", "Qwen2Tokenizer")
Merges = list[tuple[str, str]]


def read_lines(data: bytes, where: str) -> list[str]:
    """The lines of a text file, without their ends. ValueError: it is no UTF-8."""
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    lines = re.split(r"\r\n|\r|\n", text)
    return lines[:-1] if not lines[-1] else lines


def read_vocabulary(data: bytes, where: str) -> dict[str, int]:
    """Token -> id of a vocab.json. ValueError: it is something else, empty, or gives an id twice."""
    found = parse_json(data, where, unique=True)
    if not isinstance(found, dict) or not found:
        raise ValueError(f"{where}: must hold a JSON object of ids by token, not an empty one")
    for token, number in found.items():
        if type(number) is not int or not 0 <= number < 2**31:
            raise ValueError(f"{where}: the id of {token!r:.99} must be an integer, not negative; got {number!r:.99}")
    tokens: dict[int, str] = {}
    for token, number in found.items():
        if number in tokens:
            raise ValueError(f"{where}: {tokens[number]!r:.99} and {token!r:.99} have the same id, {number}")
        tokens[number] = token
    return found


def read_merges(data: bytes, where: str) -> Merges:
    """The pairs of a merges.txt, first the one that is merged first."""
    merges: Merges = []
    for k, line in enumerate(read_lines(data, where)):
        if line.startswith("#version") or not line.strip():
            continue
        pair = line.split(" ")
        if len(pair) != 2 or not all(pair):
            raise ValueError(f"{where}: line {k + 1} must be two tokens with a space between; got {line!r:.99}")
        merges.append((pair[0], pair[1]))
    return merges


def open_wordpiece(data: bytes, settings: Config, special: SpecialTokens) -> Any:
    """BERT, DistilBERT, ELECTRA: vocab.txt has a token a line."""
    where, t = "vocab.txt", fast.import_tokenizers()
    vocabulary = {token: k for k, token in enumerate(read_lines(data, where))}
    unk = special.get("unk_token") or "[UNK]"
    with fast.backend_errors(where):
        if unk not in vocabulary:
            raise ValueError(f"there is no {unk} among its {len(vocabulary)} tokens")
        backend = t.Tokenizer(t.models.WordPiece(vocabulary, unk_token=unk, max_input_chars_per_word=100))
        backend.normalizer = fast.bert_normalizer(settings)
        backend.pre_tokenizer = t.pre_tokenizers.BertPreTokenizer()
        backend.decoder = t.decoders.WordPiece(prefix="##")
        fast.add_special(backend, special)
        cls, sep = (fast.known(backend, special, name) for name in ("cls_token", "sep_token"))
        backend.post_processor = fast.template(
            backend, [cls], [sep], pair=[f"{cls}:0", "$A:0", f"{sep}:0", "$B:1", f"{sep}:1"]
        )
    return backend


def open_merges(files: Mapping[str, bytes], name: str, settings: Config, special: SpecialTokens) -> Any:
    """GPT-2, RoBERTa, BART and Qwen2: BPE over bytes. GPT: BPE over the characters of words in lower case."""
    t = fast.import_tokenizers()
    vocabulary = read_vocabulary(files["vocab.json"], "vocab.json")
    merges = read_merges(files["merges.txt"], "merges.txt")
    bytes_too = name in BYTE_LEVEL
    with fast.backend_errors("vocab.json and merges.txt"):
        options = {} if bytes_too else {"unk_token": special.get("unk_token"), "end_of_word_suffix": "</w>"}
        backend = t.Tokenizer(t.models.BPE(vocabulary, merges, **options))
        if not bytes_too:
            backend.normalizer = t.normalizers.BertNormalizer(lowercase=True)
            backend.pre_tokenizer = t.pre_tokenizers.BertPreTokenizer()
            backend.decoder = t.decoders.BPEDecoder(suffix="</w>")
            fast.add_special(backend, special)
            return backend
        prefix = settings.flag("add_prefix_space", False)
        backend.pre_tokenizer = t.pre_tokenizers.ByteLevel(add_prefix_space=prefix)
        backend.decoder = t.decoders.ByteLevel()
        if name == "Qwen2Tokenizer":
            backend.normalizer = t.normalizers.NFC()
            backend.pre_tokenizer = split_bytes(QWEN2, prefix=prefix)
        fast.add_special(backend, special)
        if name in ("RobertaTokenizer", "BartTokenizer"):
            ends = [fast.known(backend, special, key) for key in ("sep_token", "cls_token")]
            trim = settings.flag("trim_offsets", True)
            backend.post_processor = t.processors.RobertaProcessing(
                *((token, backend.token_to_id(token)) for token in ends),
                trim_offsets=trim,
                add_prefix_space=prefix,
            )
        else:
            fast.around_text(
                backend,
                special,
                bos=settings.flag("add_bos_token", False),
                eos=settings.flag("add_eos_token", False),
            )
    return backend


def split_bytes(pattern: str, *, prefix: bool = False) -> Any:
    """Words as a pattern finds them, as bytes."""
    t = fast.import_tokenizers()
    return t.pre_tokenizers.Sequence(
        [
            t.pre_tokenizers.Split(t.Regex(pattern), behavior="isolated"),
            t.pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=False),
        ]
    )
