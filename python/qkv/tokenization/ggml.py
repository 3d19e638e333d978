"""The vocabulary in the metadata of a GGUF file, which qkv.gguf keeps as tokenizer.gguf.json.

The keys are those of https://github.com/ggml-org/ggml/blob/master/docs/gguf.md without their "tokenizer.ggml.". How
text is split before merges (`pre`) is llama.cpp's naming.
"""

from __future__ import annotations

from typing import Any

from ..config import Config
from . import fast
from .protobuf import BPE, CONTROL, USER_DEFINED, SpmModel
from .special import Added, SpecialTokens
from .spm import MARK, build_generic
from .vocabularies import QWEN2, split_bytes

FILE = "tokenizer.gguf.json"
KEYS = (
    *("model", "pre", "tokens", "scores", "token_type", "merges", "add_space_prefix", "add_bos_token"),
    *("add_eos_token", "bos_token_id", "eos_token_id", "unknown_token_id", "padding_token_id", "chat_template"),
)
NAMES = (("bos_token", "bos"), ("eos_token", "eos"), ("unk_token", "unknown"), ("pad_token", "padding"))
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_FIRST = r"[^\r\n\p{L}\p{N}]?"
TEKKEN = rf"{_FIRST}{_UPPER}*{_LOWER}+|{_FIRST}{_UPPER}+{_LOWER}*|\p{{N}}{_REST}"
_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
GPT4O = rf"{_FIRST}{_UPPER}*{_LOWER}+{_SHORT}|{_FIRST}{_UPPER}+{_LOWER}*{_SHORT}|\p{{N}}{{1,3}}{_REST}"
PATTERNS = {
    **dict.fromkeys(("llama3", "llama-v3", "llama-bpe", "falcon3", "pixtral", "lfm2", "dbrx", "smaug-bpe"), LLAMA3),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2", "megrez", "stablelm2", "hunyuan"), QWEN2),
    **dict.fromkeys(("gpt-4o", "llama4", "kanana2"), GPT4O),
    "tekken": TEKKEN,
}
GPT2 = ("gpt-2", "default", "mpt", "olmo", "jais", "phi-2", "trillion")
DIGITS = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b")  # GPT-2's, digits alone
# words of the vocabulary need no merges, and a text begins with bos where the file does not say otherwise
WHOLE_WORDS = ("llama3", "llama-v3", "llama-bpe", "falcon3", "pixtral", "lfm2", "tekken")


def settings_of(values: Config) -> dict[str, Any]:
    """What a tokenizer_config.json would say."""
    tokens = _strings(values, "tokens")
    found: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    for name, theirs in NAMES:
        key = f"{theirs}_token_id"
        if values.get(key) is not None:
            found[name] = tokens[values.integer(key, 0, low=0, high=len(tokens) - 1)]
    if values.get("chat_template") is not None:
        found["chat_template"] = values["chat_template"]
    return found


def open_ggml(values: Config, special: SpecialTokens, architecture: str) -> Any:
    """The backend. ValueError, naming the value: it is missing, wrong, or not implemented."""
    model = values.get("model")
    tokens = _strings(values, "tokens")
    types = values.get("token_type")
    if types is None:
        types = [1] * len(tokens)
    if not isinstance(types, list) or len(types) != len(tokens) or not all(type(kind) is int for kind in types):
        raise values.error("token_type", f"an integer for each of the {len(tokens)} tokens")
    with fast.backend_errors(FILE):
        if model == "gpt2":
            backend = _byte_level(values, tokens, types)
        elif model == "llama":
            backend = _sentencepiece(values, tokens, types, special, architecture)
        else:
            raise values.error("model", '"gpt2" or "llama"')
        kinds = dict(zip(tokens, types, strict=True))
        plain = [special.token(token) for token, kind in kinds.items() if kind == CONTROL]
        plain += [Added(token, special=False) for token, kind in kinds.items() if kind == USER_DEFINED]
        fast.add_special(backend, special)
        fast.add_tokens(backend, plain)
        fast.around_text(
            backend,
            special,
            bos=values.flag("add_bos_token", model == "llama" or values.get("pre") in WHOLE_WORDS),
            eos=values.flag("add_eos_token", False),
        )
    return backend


def _byte_level(values: Config, tokens: list[str], types: list[int]) -> Any:
    t = fast.import_tokenizers()
    pre = values.get("pre", "default")
    spelling = _byte_spelling()
    alphabet = set(spelling)
    vocabulary: dict[str, int] = {}
    for k, (token, kind) in enumerate(zip(tokens, types, strict=True)):
        if kind not in (CONTROL, USER_DEFINED) and not alphabet.issuperset(token):
            token = "".join(spelling[byte] for byte in token.encode())
        if token in vocabulary:
            raise ValueError(f"the token {token!r:.99} is there twice")
        vocabulary[token] = k
    merges = []
    for line in _strings(values, "merges"):
        pair = line.split(" ")
        if len(pair) != 2:
            raise ValueError(f"merges: expected two tokens with a space between; got {line!r:.99}")
        merges.append((pair[0], pair[1]))
    backend = t.Tokenizer(t.models.BPE(vocabulary, merges, ignore_merges=pre in WHOLE_WORDS))
    if pre in PATTERNS:
        backend.pre_tokenizer = split_bytes(PATTERNS[pre])
    elif pre in GPT2 or pre in DIGITS:
        digits = [t.pre_tokenizers.Digits(individual_digits=True)] if pre in DIGITS else []
        words = t.pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.pre_tokenizer = t.pre_tokenizers.Sequence([*digits, words])
    else:
        raise ValueError(f"pre {pre!r:.99} is not supported; known are {', '.join([*PATTERNS, *GPT2, *DIGITS])}")
    backend.decoder = t.decoders.ByteLevel()
    return backend


def _byte_spelling() -> list[str]:
    """The character that GPT-2 writes for each byte: itself where it shows, one from 256 on otherwise."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in shown]
    return [chr(byte) if byte in shown else chr(256 + others.index(byte)) for byte in range(256)]


def _sentencepiece(
    values: Config, tokens: list[str], types: list[int], special: SpecialTokens, architecture: str
) -> Any:
    scores = values.get("scores")
    gemma = architecture.startswith("gemma")
    if gemma or scores is None:  # whose merges follow the order of the tokens
        scores = [-float(k) for k in range(len(tokens))]
    if (
        not isinstance(scores, list)
        or len(scores) != len(tokens)
        or not all(type(score) in (int, float) for score in scores)
    ):
        raise values.error("scores", f"a number for each of the {len(tokens)} tokens")
    if gemma:  # runs of spaces are written as they are
        tokens = [MARK * len(token) if token and not token.strip(" ") else token for token in tokens]
    if len(set(tokens)) != len(tokens):
        raise ValueError("tokens: one of them is there twice")
    unknown = values.integer("unknown_token_id", 0, low=0, high=len(tokens) - 1)
    model = SpmModel(
        list(zip(tokens, map(float, scores), types, strict=True)),
        model_type=BPE,
        unk_id=unknown,
        bos_id=-1,
        eos_id=-1,
        byte_fallback=True,
        charsmap=b"",
        add_dummy_prefix=values.flag("add_space_prefix", not gemma),
        remove_extra_whitespaces=False,
    )
    return build_generic(model, prefix=model.add_dummy_prefix, legacy=architecture == "phi3")


def _strings(values: Config, name: str) -> list[str]:
    found = values.get(name)
    if not isinstance(found, list) or not found or not all(isinstance(item, str) for item in found):
        raise values.error(name, "a list of strings, not an empty one")
    return found
