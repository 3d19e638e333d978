"""Text to token ids: a checkpoint's tokenizer.json, run by the `tokenizers` package (extra `text`)."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .config import Config
from .files import parse_json
from .layers import Array

# sentence-transformers' settings of the text model, under all names that its versions gave the file
SENTENCE_CONFIGS = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", *SENTENCE_CONFIGS)
# transformers builds these anew and lets tokenizer_config.json decide about case and accents
BERT_TOKENIZERS = ("BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer")
BERT_MODELS = ("bert", "distilbert", "electra")


class Tokenizer:
    """Text to ids, cut to what the model takes.

    `tokenizer(texts)` gives what a model's call takes, padded on the right; `rows(texts)` the bare lists of
    ids. max_length: special tokens included; None for no limit.
    """

    def __init__(
        self,
        backend: Any,
        max_length: int | None,
        *,
        side: str = "right",
        pad_token: str = "[PAD]",
        types: bool = True,
    ):
        with _backend_errors("tokenizer"):
            special = backend.num_special_tokens_to_add(False)
        if max_length is not None and max_length < special:
            raise ValueError(f"tokenizer: a limit of {max_length} tokens has no room for {special} special ones")
        self.backend = backend
        self.max_length = max_length
        self.types = types  # whether the model takes token_type_ids
        self.pad_id = backend.token_to_id(pad_token) or 0
        backend.no_padding()  # what tokenizer.json says of both is how it was trained
        if max_length is None:
            backend.no_truncation()
        else:
            backend.enable_truncation(max_length, direction=side)

    @classmethod
    def from_files(
        cls, files: Mapping[str, bytes], config: Config, max_tokens: int | None, *, types: bool = True
    ) -> Tokenizer:
        """From a checkpoint's files. max_tokens: the positions that the model has. types: whether it has token types
        to tell apart; tokenizer_config.json may leave them out all the same.

        The limit is found as transformers and sentence-transformers find it: max_seq_length of the
        sentence-transformers settings if there are any, else model_max_length; never more than the model
        takes.
        """
        tokenizers = _import_tokenizers()
        if "tokenizer.json" not in files:
            raise ValueError(
                "this model has no tokenizer.json. If its folder has vocab.txt or another older form, "
                "transformers makes one: AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
            )
        with _backend_errors("tokenizer.json"):
            backend = tokenizers.Tokenizer.from_str(files["tokenizer.json"].decode())
        settings = _settings(files, "tokenizer_config.json")
        sentence = next((_settings(files, name) for name in SENTENCE_CONFIGS if name in files), None)
        limits = [max_tokens] if max_tokens is not None else []
        model_max = settings.get("model_max_length")  # 1e30 stands for none
        if sentence is not None and "modules.json" in files and sentence.get("max_seq_length") is not None:
            limits.append(sentence.integer("max_seq_length", 0))
        elif isinstance(model_max, (int, float)) and 0 < model_max < 2**31:
            limits.append(int(model_max))
        name = str(settings.get("tokenizer_class") or "").removesuffix("Fast")
        if name in BERT_TOKENIZERS or (not name and config.get("model_type") in BERT_MODELS):
            _bert_normalizer(tokenizers, backend, settings)
        if sentence is not None and sentence.flag("do_lower_case", False):
            _lower_case(tokenizers, backend)
        inputs = settings.get("model_input_names")
        types = types and (not isinstance(inputs, list) or "token_type_ids" in inputs)
        pad = settings.get("pad_token", "[PAD]")
        pad = pad.get("content") if isinstance(pad, dict) else pad
        return cls(
            backend,
            min(limits, default=None),
            side="left" if settings.get("truncation_side") == "left" else "right",
            pad_token=str(pad),
            types=types,
        )

    def rows(self, texts: Iterable[str]) -> list[list[int]]:
        """The ids of each text, special tokens included. TypeError: a text is no string."""
        return [encoding.ids for encoding in self._encode(list(texts))]

    def __call__(self, texts: str | Sequence[str], pairs: str | Sequence[str] | None = None) -> dict[str, Array]:
        """input_ids, attention_mask and, where the model has token types, token_type_ids, (B, S) int64, for texts or
        pairs of texts."""
        first = [texts] if isinstance(texts, str) else list(texts)
        if pairs is None:
            encodings = self._encode(first)
        else:
            second = [pairs] if isinstance(pairs, str) else list(pairs)
            if len(second) != len(first):
                raise ValueError(f"tokenizer: {len(first)} texts, but {len(second)} pairs")
            encodings = self._encode(list(zip(first, second, strict=True)))
        shape = len(encodings), max((len(e.ids) for e in encodings), default=0)
        ids, mask, types = np.full(shape, self.pad_id), np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        for row, encoding in enumerate(encodings):
            n = len(encoding.ids)
            ids[row, :n], mask[row, :n], types[row, :n] = encoding.ids, 1, encoding.type_ids
        batch = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
        if not self.types:
            del batch["token_type_ids"]
        return batch

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        return str(self.backend.decode([int(i) for i in ids], skip_special_tokens=skip_special_tokens))

    def is_special(self, token: int) -> bool:
        added = self.backend.get_added_tokens_decoder().get(token)
        return added is not None and bool(added.special)

    def _encode(self, texts: list[Any]) -> list[Any]:
        for text in texts:
            for part in text if isinstance(text, tuple) else (text,):
                if not isinstance(part, str):
                    raise TypeError(f"tokenizer: expected strings; got {type(part).__name__}")
                try:
                    part.encode()
                except UnicodeEncodeError:  # versions of tokenizers before 0.20 would leave it out
                    raise ValueError("tokenizer: a text has a lone surrogate, which is no Unicode character") from None
        with _backend_errors("tokenizer"):
            return list(self.backend.encode_batch(texts))


def handed_in(tokenizer: Any) -> dict[str, bytes]:
    """The files for a tokenizer that a user hands in: used, saved and loaded as it is.

    tokenizer: a tokenizers.Tokenizer, a fast tokenizer of transformers, whose limit, side and padding token are
    kept, or the path of a tokenizer.json. TypeError: it is something else.
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
        for name in ("model_max_length", "truncation_side", "pad_token"):
            value = getattr(tokenizer, name, None)
            if isinstance(value, (int, float, str)):
                settings[name] = value
    return {"tokenizer.json": data, "tokenizer_config.json": json.dumps(settings).encode()}


@contextlib.contextmanager
def _backend_errors(where: str) -> Iterator[None]:
    """Whatever tokenizers raises for a tokenizer.json that is wrong, as a ValueError. It raises plain Exceptions,
    and where its Rust code panics, a class derived from BaseException."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError):
        raise
    except BaseException as error:
        raise ValueError(f"{where}: {error}") from None


def _settings(files: Mapping[str, bytes], name: str) -> Config:
    values = parse_json(files[name], name) if name in files else {}
    if not isinstance(values, dict):
        raise ValueError(f"{name}: must hold a JSON object")
    return Config(values, name)


def _bert_normalizer(tokenizers: Any, backend: Any, settings: Config) -> None:
    old = backend.normalizer
    if isinstance(old, tokenizers.normalizers.BertNormalizer):
        backend.normalizer = tokenizers.normalizers.BertNormalizer(
            clean_text=old.clean_text,
            handle_chinese_chars=settings.flag("tokenize_chinese_chars", True),
            strip_accents=None if settings.get("strip_accents") is None else settings.flag("strip_accents", False),
            lowercase=settings.flag("do_lower_case", True),
        )


def _lower_case(tokenizers: Any, backend: Any) -> None:
    """Lower case first of all, as sentence-transformers' do_lower_case has it."""
    steps = [tokenizers.normalizers.Lowercase()]
    if backend.normalizer is not None:
        steps.append(backend.normalizer)
    backend.normalizer = tokenizers.normalizers.Sequence(steps)


def _import_tokenizers() -> Any:
    try:
        import tokenizers
        import tokenizers.normalizers
    except ImportError:
        raise ImportError('text needs the tokenizers package: pip install "qkv[text]"') from None
    return tokenizers
