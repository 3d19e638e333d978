"""Special tokens: which a checkpoint names, and which its family has where the files name none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..config import Config

NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

_BERT = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}
_ROBERTA = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "sep_token": "</s>",
    "cls_token": "<s>",
    "unk_token": "<unk>",
    "pad_token": "<pad>",
    "mask_token": "<mask>",
}
_ALBERT = {
    "bos_token": "[CLS]",
    "eos_token": "[SEP]",
    "unk_token": "<unk>",
    "sep_token": "[SEP]",
    "pad_token": "<pad>",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}
_GPT2 = {"unk_token": "<|endoftext|>", "bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
_QWEN2 = {"unk_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
_LLAMA = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
_GEMMA = {
    "unk_token": "<unk>",
    "bos_token": "<bos>",
    "eos_token": "<eos>",
    "pad_token": "<pad>",
    "mask_token": "<mask>",
}
_T5 = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}


@dataclass(frozen=True)
class Family:
    """A tokenizer class of transformers. tokens, padding_side: where the files name none. mask_strips: the mask takes
    the space before it along, as transformers 4 has it."""

    tokens: Mapping[str, str] = field(default_factory=dict)
    padding_side: str = "right"
    mask_strips: bool = False


# by tokenizer_class, without "Fast"
FAMILIES: dict[str, Family] = {
    "BertTokenizer": Family(_BERT),
    "DistilBertTokenizer": Family(_BERT),
    "ElectraTokenizer": Family(_BERT),
    "RobertaTokenizer": Family(_ROBERTA, mask_strips=True),
    "BartTokenizer": Family(_ROBERTA, mask_strips=True),
    "XLMRobertaTokenizer": Family(_ROBERTA, mask_strips=True),
    "CamembertTokenizer": Family(_ROBERTA, mask_strips=True),
    "MBartTokenizer": Family(_ROBERTA, mask_strips=True),
    "MBart50Tokenizer": Family({k: v for k, v in _ROBERTA.items() if k != "bos_token"}, mask_strips=True),
    "AlbertTokenizer": Family(_ALBERT, mask_strips=True),
    "T5Tokenizer": Family(_T5),
    "ByT5Tokenizer": Family(_T5),
    "MarianTokenizer": Family(_T5),
    "GPT2Tokenizer": Family(_GPT2),
    "Qwen2Tokenizer": Family(_QWEN2),
    "CTRLTokenizer": Family({"unk_token": "<unk>"}),
    "OpenAIGPTTokenizer": Family({"unk_token": "<unk>"}),
    "TransfoXLTokenizer": Family({"unk_token": "<unk>", "eos_token": "<eos>"}),
    "LlamaTokenizer": Family(_LLAMA, padding_side="left"),
    "Llama": Family(_LLAMA),  # no class of transformers: see class_name
    "GemmaTokenizer": Family(_GEMMA, padding_side="left"),
}
# the tokenizer class of a model_type, where tokenizer_config.json names none
CLASSES = {
    "bert": "BertTokenizer",
    "distilbert": "DistilBertTokenizer",
    "electra": "ElectraTokenizer",
    "roberta": "RobertaTokenizer",
    "xlm-roberta": "XLMRobertaTokenizer",
    "camembert": "CamembertTokenizer",
    "albert": "AlbertTokenizer",
    "bart": "BartTokenizer",
    "mbart": "MBartTokenizer",
    "marian": "MarianTokenizer",
    "t5": "T5Tokenizer",
    "gpt2": "GPT2Tokenizer",
    "openai-gpt": "OpenAIGPTTokenizer",
    "ctrl": "CTRLTokenizer",
    "transfo-xl": "TransfoXLTokenizer",
    "llama": "Llama",
    "mistral": "Llama",
    "phi3": "Llama",
    "gemma2": "GemmaTokenizer",
    "qwen2": "Qwen2Tokenizer",
    "qwen3": "Qwen2Tokenizer",
}


def class_name(settings: Config, config: Config) -> str:
    """The tokenizer class of a checkpoint, without "Fast"; "" if nothing tells it."""
    name = settings.get("tokenizer_class")
    name = config.get("tokenizer_class") if name is None else name
    if name is None:
        name = CLASSES.get(str(config.get("model_type")), "")
    found = str(name).removesuffix("Fast")
    if found == "LlamaTokenizer" and config.get("model_type") in ("mistral", "phi3"):
        return "Llama"  # transformers has a general class for the tokenizer.model of such models
    return found


@dataclass(frozen=True)
class Added:
    """A token that the text is searched for before anything else. special: it is no text. lstrip, rstrip: it takes the
    white space before or behind it along. single_word: only where no letters touch it. normalized: it is searched for
    in what the normalizer leaves of the text."""

    content: str
    special: bool = True
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = False


class SpecialTokens:
    """What the files of a checkpoint say of its special and added tokens.

    named: by name, None where a file says that there is none; defaults: those of the family; extra: without a name.
    numbered: tokens with their ids, in order of the ids.
    """

    def __init__(self, settings: Config, special_map: Config, numbers: Config, family: Family):
        """settings: tokenizer_config.json; special_map: special_tokens_map.json; numbers: added_tokens.json. The last
        two are of the time before the first listed the added tokens."""
        given = settings.get("added_tokens_decoder")
        files = (settings,) if given is not None else (settings, special_map)
        self.flags: dict[str, Added] = {}
        self.named: dict[str, str | None] = {}
        extra: dict[str, None] = {}
        for values in files:
            for name in NAMES:
                if name in values:
                    self.named[name] = self._content(values, name, values[name])
            for name in ("extra_special_tokens", "additional_special_tokens"):
                tokens = values.get(name)
                tokens = list(tokens.values()) if isinstance(tokens, dict) else tokens
                for token in tokens if isinstance(tokens, list) else []:
                    found = self._content(values, name, token)
                    if found is not None:
                        extra[found] = None
        self.extra = list(extra)
        self.defaults = dict(family.tokens)
        mask = self.get("mask_token")
        if mask is not None and mask not in self.flags and family.mask_strips:
            self.flags[mask] = Added(mask, lstrip=True)
        self.numbered: list[tuple[int, Added]] = []
        if given is not None:
            if not isinstance(given, dict):
                raise settings.error("added_tokens_decoder", "an object of tokens by id")
            for key, token in given.items():
                text = self._content(settings, "added_tokens_decoder", token)
                if text is not None:
                    self.numbered.append((_number(settings, "added_tokens_decoder", key), self.flags[text]))
        else:
            special = {*self.extra, *filter(None, self.named.values()), *self.defaults.values()}
            for text, key in numbers.items():
                is_special = text in special
                token = self.flags.get(text) or Added(text, special=is_special, normalized=not is_special)
                self.numbered.append((_number(numbers, text, key), token))
        self.numbered.sort(key=lambda item: item[0])

    def get(self, name: str) -> str | None:
        """The token of a name, of the files or the family."""
        return self.named[name] if name in self.named else self.defaults.get(name)

    def token(self, text: str) -> Added:
        """A special token, with its flags where the files give them."""
        return self.flags.get(text) or Added(text)

    def all_named(self) -> dict[str, str]:
        both = {name: self.get(name) for name in NAMES}
        return {name: token for name, token in both.items() if token is not None}

    def _content(self, values: Config, name: str, token: Any) -> str | None:
        """The text of a token, which files give as a string or as an object, whose flags are kept."""
        if isinstance(token, dict):
            text = token.get("content")
            kinds = ("special", "lstrip", "rstrip", "single_word", "normalized")
            flags = {kind: token[kind] for kind in kinds if kind in token}
            if not isinstance(text, str) or not all(type(flag) is bool for flag in flags.values()):
                raise values.error(name, "a token, or an object with its content and flags")
            if text:
                named = name != "added_tokens_decoder" or text in self.extra or text in self.named.values()
                self.flags[text] = Added(text, **{**flags, "special": named or flags.get("special", False)})
            return text or None
        if token is not None and not isinstance(token, str):
            raise values.error(name, "a token, or an object with its content and flags")
        return token or None


def _number(values: Config, name: str, key: Any) -> int:
    try:
        number = int(key) if not isinstance(key, bool) else -1
    except (TypeError, ValueError, OverflowError):
        number = -1
    if not 0 <= number < 2**31:
        raise values.error(name, "ids, which are integers, not negative")
    return number


class NamedToken:
    """An attribute of Tokenizer: a special token, None where there is none. It may be set to another one of the
    vocabulary."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, tokenizer: Any, owner: type) -> str | None:
        token: str | None = None if tokenizer is None else tokenizer.special_tokens_map.get(self.name)
        return token

    def __set__(self, tokenizer: Any, token: str | None) -> None:
        if token is None:
            tokenizer.special_tokens_map.pop(self.name, None)
        elif not isinstance(token, str) or tokenizer.backend.token_to_id(token) is None:
            raise ValueError(f"tokenizer: {self.name} must be a token of the vocabulary; got {token!r:.99}")
        else:
            tokenizer.special_tokens_map[self.name] = token


class NamedTokenId:
    """An attribute of Tokenizer: the id of a special token, None where there is none."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name.removesuffix("_id")

    def __get__(self, tokenizer: Any, owner: type) -> int | None:
        token = None if tokenizer is None else tokenizer.special_tokens_map.get(self.name)
        found: int | None = None if token is None else tokenizer.backend.token_to_id(token)
        return found
