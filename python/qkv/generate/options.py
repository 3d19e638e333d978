"""What a caller may ask of generate: transformers' names and defaults, checked."""

from __future__ import annotations

import difflib
import math
import numbers
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

FILE = "generation_config.json"
DEFAULT_NEW_TOKENS = 20  # where nobody says how many


@dataclass
class Options:
    """transformers' options with their defaults; see its GenerationConfig for what each means. None: not in use."""

    max_length: int | None = None  # of a row, prompt and padding included
    max_new_tokens: int | None = None
    min_length: int = 0
    min_new_tokens: int | None = None
    max_time: float | None = None
    stop_strings: list[str] | None = None
    do_sample: bool = False
    num_return_sequences: int = 1
    num_beams: int = 1
    early_stopping: bool | str = False
    length_penalty: float = 1.0
    num_beam_groups: int = 1
    diversity_penalty: float = 0.0
    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0
    min_p: float | None = None
    top_h: float | None = None
    typical_p: float = 1.0
    epsilon_cutoff: float = 0.0
    eta_cutoff: float = 0.0
    repetition_penalty: float = 1.0
    encoder_repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    encoder_no_repeat_ngram_size: int = 0
    bad_words_ids: list[list[int]] | None = None
    sequence_bias: dict[tuple[int, ...], float] | None = None
    suppress_tokens: list[int] | None = None
    begin_suppress_tokens: list[int] | None = None
    forced_bos_token_id: int | None = None
    forced_eos_token_id: list[int] | None = None
    remove_invalid_values: bool = False
    exponential_decay_length_penalty: tuple[int, float] | None = None
    renormalize_logits: bool = False
    return_dict_in_generate: bool = False
    output_scores: bool = False
    output_logits: bool = False
    output_attentions: bool = False
    output_hidden_states: bool = False
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: list[int] | None = None
    decoder_start_token_id: int | None = None
    asked: frozenset[str] = frozenset()  # what the caller himself has said

    @property
    def eos(self) -> list[int]:
        return self.eos_token_id or []

    @property
    def forced_eos(self) -> list[int]:
        return self.forced_eos_token_id or []


SAMPLING = ("temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")
OUTPUTS = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")
DECIDING = ("do_sample", "num_beams", "num_beam_groups", "return_dict_in_generate")  # whether others are used at all
# In a file a number below 0 says that there is none.
NONE_BELOW_0 = frozenset({
    *("pad_token_id", "bos_token_id", "decoder_start_token_id", "min_length", "min_new_tokens"),
    *("no_repeat_ngram_size", "encoder_no_repeat_ngram_size"),
})  # fmt: skip
# where None does not mean the default
OFF: dict[str, Any] = {"top_k": 0}

# how transformers is to compute, or about itself: means nothing here
IGNORED = frozenset({
    *("use_cache", "cache_implementation", "cache_config", "max_cache_len", "compile_config", "disable_compile"),
    *("prefill_chunk_size", "is_assistant", "num_assistant_tokens", "num_assistant_tokens_schedule"),
    *("assistant_confidence_threshold", "assistant_lookbehind", "target_lookbehind", "max_matching_ngram_size"),
    *("transformers_version", "_from_model_config", "_commit_hash", "trust_remote_code", "synced_gpus"),
})  # fmt: skip
# what transformers would do that qkv does not, and the values that mean that it need not
REFUSED: dict[str, tuple[Any, ...]] = {
    "guidance_scale": (1,),
    "penalty_alpha": (0,),
    "token_healing": (False,),
    "low_memory": (False,),
    "use_mtp": (False,),
    **dict.fromkeys(
        ("watermarking_config", "dola_layers", "constraints", "force_words_ids", "forced_decoder_ids"),
        (),
    ),
    **dict.fromkeys(("prompt_lookup_num_tokens", "assistant_early_exit", "assistant_model", "speculation_type"), ()),
    **dict.fromkeys(("negative_prompt_ids", "negative_prompt_attention_mask", "custom_generate"), ()),
}
ADVICE = {
    "streamer": "model.stream gives the tokens of each step",
    "inputs": "its name is input_ids",
}


def _integer(value: Any, low: float) -> int | None:
    """As a Python integer; None: it is none, or below the least."""
    if isinstance(value, np.ndarray) and not value.ndim:
        value = value[()]
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Integral):
        return None
    return int(value) if int(value) >= low else None


def integer(low: int) -> Callable[[Any], Any]:
    return lambda value: _integer(value, low)


def number(low: float, high: float = math.inf, *, above: bool = False) -> Callable[[Any], Any]:
    """above: low itself is too low."""

    def read(value: Any) -> float | None:
        if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.integer, np.floating)):
            return None
        real = float(value)
        return real if math.isfinite(real) and low <= real <= high and not (above and real == low) else None

    return read


def _flag(value: Any) -> bool | None:
    return bool(value) if isinstance(value, (bool, np.bool_)) else None


def _tokens(value: Any, low: float = 0) -> list[int] | None:
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if not isinstance(value, (list, tuple, set, frozenset)):
        return None
    tokens = [_integer(token, low) for token in value]
    return None if None in tokens else [token for token in tokens if token is not None]


def _token_or_tokens(value: Any, low: float = 0) -> list[int] | None:
    one = _integer(value, low)
    return _tokens(value, low) if one is None else [one]


def _ends(value: Any) -> list[int] | None:
    """One below 0 ends nothing."""
    tokens = _token_or_tokens(value, -math.inf)
    return None if tokens is None else [token for token in tokens if token >= 0]


def _words(value: Any) -> list[list[int]] | None:
    if not isinstance(value, (list, tuple)) or not value:
        return None
    words = [_tokens(word) or None for word in value]
    return None if None in words else [word for word in words if word is not None]


def _biases(value: Any) -> dict[tuple[int, ...], float] | None:
    """A mapping of tuples of tokens, or a list of pairs [tokens, bias] as JSON has it."""
    if isinstance(value, Mapping):
        value = list(value.items())
    if not isinstance(value, (list, tuple)) or not value:
        return None
    biases = {}
    for pair in value:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            return None
        tokens, bias = pair
        sequence = _tokens(tokens)
        if not sequence or isinstance(bias, bool) or not isinstance(bias, (int, float, np.floating)) or bias != bias:
            return None
        biases[tuple(sequence)] = float(bias)
    return biases


def _decay(value: Any) -> tuple[int, float] | None:
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        return None
    start, factor = _integer(value[0], 0), number(0, above=True)(value[1])
    return None if start is None or factor is None else (start, factor)


def _strings(value: Any) -> list[str] | None:
    strings = [value] if isinstance(value, str) else value
    if not isinstance(strings, (list, tuple)) or not strings:
        return None
    return list(strings) if all(isinstance(string, str) and string for string in strings) else None


def _early(value: Any) -> bool | str | None:
    return "never" if isinstance(value, str) and value == "never" else _flag(value)


PENALTY = number(0, above=True), "a number above 0"
SHARE = number(0, 1, above=True), "a number above 0, at most 1"
CUTOFF = number(0, 1), "a number from 0 to 1"
TOKEN = integer(0), "a token's id"
FLAG = _flag, "true or false"
# name -> what reads it (None: the value is wrong), and what it should be
READERS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "max_length": (integer(1), "an integer of at least 1"),
    "max_new_tokens": (integer(1), "an integer of at least 1"),
    "min_length": (integer(0), "an integer of at least 0"),
    "min_new_tokens": (integer(0), "an integer of at least 0"),
    "max_time": (number(0), "a number of seconds"),
    "stop_strings": (_strings, "a string or a list of strings, none empty"),
    "num_return_sequences": (integer(1), "an integer of at least 1"),
    "num_beams": (integer(1), "an integer of at least 1"),
    "early_stopping": (_early, 'true, false or "never"'),
    "length_penalty": (number(-math.inf), "a number"),
    "num_beam_groups": (integer(1), "an integer of at least 1"),
    "diversity_penalty": (number(0), "a number of at least 0"),
    "temperature": PENALTY,
    "top_k": (integer(0), "an integer of at least 0 (0: off)"),
    "top_p": CUTOFF,
    "min_p": CUTOFF,
    "top_h": SHARE,
    "typical_p": SHARE,
    "epsilon_cutoff": CUTOFF,
    "eta_cutoff": CUTOFF,
    "repetition_penalty": PENALTY,
    "encoder_repetition_penalty": PENALTY,
    "no_repeat_ngram_size": (integer(0), "an integer of at least 0 (0: off)"),
    "encoder_no_repeat_ngram_size": (integer(0), "an integer of at least 0 (0: off)"),
    "bad_words_ids": (_words, "a list of lists of tokens, none empty"),
    "sequence_bias": (_biases, "a mapping of tuples of tokens to numbers, or a list of such pairs, not empty"),
    "suppress_tokens": (_tokens, "a list of tokens"),
    "begin_suppress_tokens": (_tokens, "a list of tokens"),
    "forced_bos_token_id": TOKEN,
    "forced_eos_token_id": (_token_or_tokens, "a token's id or a list of them"),
    "exponential_decay_length_penalty": (_decay, "an integer of at least 0 and a number above 0"),
    "pad_token_id": TOKEN,
    "bos_token_id": TOKEN,
    "eos_token_id": (_ends, "a token's id or a list of them"),
    "decoder_start_token_id": TOKEN,
    **dict.fromkeys(("do_sample", "remove_invalid_values", "renormalize_logits", "return_dict_in_generate"), FLAG),
    **dict.fromkeys(OUTPUTS, FLAG),
}


def _known(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The options among some values. ValueError: one that qkv does not have."""
    known = {}
    for name, value in values.items():
        if name in REFUSED:
            if value is not None and not any(value is neutral or value == neutral for neutral in REFUSED[name]):
                raise ValueError(f"{where}: {name} {value!r:.99} is not supported")
        elif name in READERS:
            known[name] = value
        elif name not in IGNORED:
            near = difflib.get_close_matches(name, READERS, n=1)
            advice = ADVICE.get(name, f"did you mean {near[0]}?" if near else "")
            raise ValueError(f"{where}: there is no argument {name}{f'; {advice}' if advice else ''}")
    return known


def _read(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    read = {}
    for name, value in values.items():
        if value is None:
            read[name] = OFF.get(name, getattr(Options, name, None))
            continue
        convert, expected = READERS[name]
        read[name] = convert(value)
        if read[name] is None:
            raise ValueError(f"{where}: {name} must be {expected}; got {value!r:.99}")
    return read


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _of_file(name: str, value: Any) -> Any:
    """A file's value as transformers would use it: whole numbers may be written as floats, truths as 0 and 1. None:
    there is none."""
    if name not in READERS:
        return value
    if name in NONE_BELOW_0 and isinstance(value, (int, float)) and value < 0:
        return None
    read, _ = READERS[name]
    plain = [_whole(part) for part in value] if isinstance(value, list) else _whole(value)
    if read in (_flag, _early) and plain in (0, 1):
        plain = bool(plain)
    return value if read(plain) is None else plain


def _idle(o: Options) -> dict[str, str]:
    """Options that these make no use of, and what they need."""
    idle: dict[str, str] = {}
    if not o.do_sample:
        idle |= dict.fromkeys(SAMPLING, "needs do_sample=True")
    if o.num_beam_groups == 1:
        idle["diversity_penalty"] = "needs num_beam_groups above 1"
    if o.num_beams == 1:
        beams = "early_stopping", "length_penalty", "num_beam_groups", "diversity_penalty", "low_memory"
        idle |= dict.fromkeys(beams, "needs num_beams above 1")
    if not o.return_dict_in_generate:
        idle |= dict.fromkeys(OUTPUTS, "needs return_dict_in_generate=True")
    return idle


def resolve(of_model: Mapping[str, Any], where: str, given: Mapping[str, Any]) -> Options:
    """The options of a call: what the caller gives, else what his `generation_config` has, else what the model's file
    says, else defaults.

    of_model: the values of generation_config.json, or of config.json where there is none; where: its name. In them
    null means nothing, unknown keys may stand, and a value that the caller overrides or that the call makes no use of
    may be anything. ValueError: an argument that is unknown, wrong or not supported, or two that contradict each
    other."""
    given = dict(given)
    more = given.pop("generation_config", None)
    if more is not None and hasattr(more, "to_dict"):  # an object of transformers
        more = more.to_dict()
    if more is not None and not isinstance(more, Mapping):
        raise ValueError(f"generate: generation_config must be a mapping; got {type(more).__name__}")
    more = {name: value for name, value in (more or {}).items() if value is not None}
    said = {**more, **given}
    asked = _read(_known(said, "generate"), "generate")
    unused = set(said)
    for kind in ("max", "min"):  # how long the caller wants it, in either way, is his word and not the file's
        if {f"{kind}_length", f"{kind}_new_tokens"} & unused:
            unused |= {f"{kind}_length", f"{kind}_new_tokens"}
    left = {n: _of_file(n, v) for n, v in of_model.items() if n not in unused and (n in READERS or n in REFUSED)}
    left = {name: value for name, value in left.items() if value is not None}
    deciding = _read({name: left[name] for name in DECIDING if name in left}, where)
    idle = _idle(Options(**{**deciding, **asked}))
    file = _read(_known({name: value for name, value in left.items() if name not in idle}, where), where)
    options = Options(**{**file, **asked}, asked=frozenset(n for n, v in asked.items() if v is not None))
    _agree(options, asked)
    return options


def _agree(o: Options, asked: Mapping[str, Any]) -> None:
    """ValueError: arguments of the caller that contradict each other, or do nothing together with the rest."""

    def changed(name: str) -> bool:
        return name in asked and asked[name] not in (getattr(Options, name, None), OFF.get(name))

    def refuse(name: str, why: str) -> None:
        raise ValueError(f"generate: {name}={asked.get(name, getattr(o, name))!r:.99} {why}")

    for kind in ("max", "min"):
        if changed(f"{kind}_length") and changed(f"{kind}_new_tokens"):
            refuse(
                f"{kind}_length", f"and {kind}_new_tokens={asked[f'{kind}_new_tokens']} are two answers to one question"
            )
    for name, why in _idle(o).items():
        if changed(name):
            refuse(name, why)
    if o.num_beams == 1:
        if o.num_return_sequences > 1 and not o.do_sample:
            refuse("num_return_sequences", "needs do_sample=True or num_beams: a greedy search has one result")
    elif o.num_return_sequences > o.num_beams:
        refuse("num_return_sequences", f"is more than num_beams={o.num_beams}")
    if o.num_beam_groups > 1:
        if o.num_beams % o.num_beam_groups:
            refuse("num_beam_groups", f"does not divide num_beams={o.num_beams}")
        if o.do_sample:
            refuse("num_beam_groups", "does not go with do_sample=True")
        if not o.diversity_penalty:
            refuse("num_beam_groups", "needs a diversity_penalty above 0, without which all groups are the same")
        if o.stop_strings is not None:
            refuse("stop_strings", f"do not go with num_beam_groups={o.num_beam_groups}")
    if o.suppress_tokens is not None:
        for name in ("forced_bos_token_id", "forced_eos_token_id"):
            forced = _token_or_tokens(getattr(o, name))
            if forced and set(forced) <= set(o.suppress_tokens):
                raise ValueError(f"generate: {name} {forced} is among suppress_tokens, so that nothing is left")
