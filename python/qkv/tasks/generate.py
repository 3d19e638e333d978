"""Texts that go on, and texts made of texts: text-generation, text2text-generation, summarization, translation."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, fields
from itertools import count
from typing import Any, ClassVar

import numpy as np

from ..batching import padded
from ..config import Config
from ..generate import search, steps
from ..generate.call import Job, of_model
from ..generate.options import DEFAULT_NEW_TOKENS, OUTPUTS, READERS, Options, resolve
from ..layers import Array
from ..models.base import Model
from ..text import Tokenizer
from .base import Pipeline
from .texts import tokenize_settings

CALLBACKS = ("logits_processor", "stopping_criteria", "prefix_allowed_tokens_fn")  # of the user; they see whole batches
FOR_JOB = (*CALLBACKS, "decoder_input_ids", "seed")  # arguments of generate that are no options of it


@dataclass(frozen=True)
class Row:
    """A prompt. number: of the input. cost: tokens that it makes work of, what follows it included. shown: how many of
    its tokens are in front of the result."""

    ids: list[int]
    number: int
    cost: int
    shown: int = 0

    @property
    def type_ids(self) -> list[int]:
        return [0] * len(self.ids)


@dataclass(frozen=True)
class Call:
    """The pipeline's options of a call; generate's arguments, and what they come to; numbers of the inputs."""

    own: Any
    arguments: dict[str, Any]
    options: Options
    numbers: Iterator[int] = field(default_factory=count)


class GenerationPipeline(Pipeline):
    """Prompts become rows of tokens, with what `model.generate` makes of them, at once for several. Arguments that are
    not among `Options` are those of generate."""

    def __init__(self, model: Model, tokenizer: Tokenizer | None = None, *, task: str, **options: Any):
        self.model, self._tokenizer, self.task = model, tokenizer, task
        values, where = of_model(model)
        self.said = self.with_defaults({name: value for name, value in values.items() if value is not None}), where
        super().__init__(model, tokenizer, task=self.task, **options)

    def with_defaults(self, values: dict[str, Any]) -> dict[str, Any]:
        """What generation_config.json says, and the task's defaults."""
        raise NotImplementedError

    def read(self, given: Mapping[str, Any]) -> Call:
        names = [option.name for option in fields(self.Options)]
        defaults = self.defaults
        if given.get("generation_config") is not None:  # it takes the place of the constructor's arguments
            defaults = {name: value for name, value in defaults.items() if name in names}
        merged = {**defaults, **given}
        own = self.Options(**{name: value for name, value in merged.items() if name in names and value is not None})
        arguments = {name: value for name, value in merged.items() if name not in names or name == "max_length"}
        for kind in ("max", "min"):  # how long in one way takes back what the constructor said in the other
            for name, other in ((f"{kind}_length", f"{kind}_new_tokens"), (f"{kind}_new_tokens", f"{kind}_length")):
                if given.get(name) is not None and other not in given:
                    arguments.pop(other, None)
        return self.call(own, arguments)

    def call(self, own: Any, arguments: dict[str, Any]) -> Call:
        """ValueError: an argument that is wrong, or one that asks for more than tokens."""
        options = resolve(*self.said, {name: value for name, value in arguments.items() if name not in FOR_JOB})
        for name in ("return_dict_in_generate", *OUTPUTS):
            if getattr(options, name):
                raise ValueError(f"{self.task}: {name} is for model.generate; here there are only texts and tokens")
        return Call(own, arguments, options)

    def new_tokens(self, prompt: int, o: Call) -> int:
        """How many may follow a prompt, as far as options tell."""
        if o.options.max_new_tokens is not None:
            return o.options.max_new_tokens
        return DEFAULT_NEW_TOKENS if o.options.max_length is None else max(o.options.max_length - prompt, 1)

    def beams(self, o: Call) -> int:
        return max(o.options.num_beams, o.options.num_return_sequences)

    def key(self, row: Row, o: Call) -> Any:
        """Rows with equal ones are computed together, as together they get what each of them gets alone."""
        return None

    def forward(self, rows: list[Row], o: Call) -> Sequence[Any]:
        """Of each row the tokens of its sequences (n, L), its own in front, filled up with pad to the longest."""
        alone = any(o.arguments.get(name) is not None for name in CALLBACKS)
        groups: dict[Any, list[int]] = {}
        for k, row in enumerate(rows):
            groups.setdefault(k if alone else self.key(row, o), []).append(k)
        results: list[Any] = [None] * len(rows)
        for group in groups.values():
            job = self.job([rows[k] for k in group], o)
            made = search(job)
            each = len(made) // len(group)
            for place, k in enumerate(group):
                mine = slice(place * each, (place + 1) * each)
                prompt = np.tile(self.beginning(rows[k], job, place), (each, 1))
                tokens = made[mine, job.prompt : job.prompt + job.made[mine].max()]
                results[k] = np.concatenate([prompt, tokens], axis=1)
        return results

    def beginning(self, row: Row, job: Job, place: int) -> Array:
        """The tokens in front of what is made."""
        return np.array(row.ids, np.int64)

    def job(self, rows: list[Row], o: Call) -> Job:
        batch = padded(self.model, rows, False, self.task, "; pass truncation=True to cut it")
        arguments = dict(o.arguments)
        begun = arguments.get("decoder_input_ids")
        if begun is not None:
            arguments["decoder_input_ids"] = np.repeat(np.atleast_2d(begun), len(rows), axis=0)
        arguments["tokenizer"] = self._tokenizer
        numbers = [row.number for row in rows]
        return Job(self.model, batch["input_ids"], batch["attention_mask"], arguments, said=self.said, numbers=numbers)

    def length(self, row: Row) -> int:
        return row.cost

    def encode(
        self, texts: list[str], settings: Mapping[str, Any], prefix: str = "", tokenizer: Tokenizer | None = None
    ) -> list[list[int]]:
        """Their ids. tokenizer: another than the pipeline's. TypeError: one is no string."""
        for text in texts:
            if not isinstance(text, str):
                raise TypeError(f"{self.task}: an input must be a string; got {type(text).__name__}")
        texts = [prefix + text for text in texts]
        tokenizer = self.tokenizer if tokenizer is None else tokenizer
        return [row.ids for row in tokenizer.encode_batch(texts, **tokenize_settings(self.task, settings))]

    def stream(self, inputs: Any, **options: Any) -> Iterator[str]:
        """What follows one prompt (or chat), or is made of one text, in pieces as they come: `pieces` of the tokens.
        Options are those of a call; ValueError for beams, and for more than one sequence."""
        o = self.read(options)
        if o.options.num_return_sequences > 1 or getattr(o.own, "clean_up_tokenization_spaces", False):
            raise ValueError(f"{self.task}: a stream is one sequence, without clean_up_tokenization_spaces")
        ((row,),) = self.prepare([inputs], o)
        skip = getattr(o.own, "skip_special_tokens", True)
        return pieces(lambda ids: self.decode(ids, skip, False), (int(step[0]) for step in steps(self.job([row], o))))

    def decode(self, ids: Any, skip_special_tokens: bool, clean_up: bool | None) -> str:
        tokenizer = self.tokenizer
        return tokenizer.decode(ids, skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=clean_up)


def pieces(decode: Callable[[list[int]], str], tokens: Iterable[int]) -> Iterator[str]:
    """The text of tokens in pieces, as soon as it is certain: a character whose bytes are spread over several tokens
    comes whole. Together they are decode(all tokens), where a token's text depends on those before it by a space."""
    window: list[int] = []  # the last tokens whose text is shown, and those that came since
    text = shown = ""
    new: list[int] = []
    for token in tokens:
        window.append(token)
        new.append(token)
        text = decode(window)
        if text.endswith("\ufffd") or len(text) <= len(shown):  # the rest of a character is to come, or nothing to see
            continue
        yield text[len(shown) :]
        before = decode(new)
        if before.strip():  # else what comes next would look like the beginning of a text
            window, text = new, before
        shown, new = text, []
    if len(text) > len(shown):
        yield text[len(shown) :]


def _prefix(values: Mapping[str, Any], config: Config) -> str | None:
    prefix = values.get("prefix")
    if prefix is not None and not isinstance(prefix, str):
        raise config.error("prefix", "a string")
    return prefix


# ---- text-generation --------------------------------------------------------------------------------


RETURNS = ("return_full_text", "return_tensors", "return_text")  # one of which says what comes back


@dataclass(frozen=True)
class TextGenerationOptions:
    """return_full_text: the prompt too. return_tensors: token ids instead of text. prefix: put before each prompt, and
    not shown. handle_long_generation: "hole" cuts a prompt on its left, so that its continuation has room.
    stop_sequence: a string or several that end a text. max_length: of generate, and of the prompt, as in transformers.
    continue_final_message, tools, documents: of chats. tokenizer_encode_kwargs: more for the tokenizer or the chat's
    template. The rest are the tokenizer's."""

    return_full_text: bool | None = None
    return_tensors: bool | None = None
    return_text: bool | None = None
    clean_up_tokenization_spaces: bool | None = None
    skip_special_tokens: bool = True
    prefix: str | None = None
    handle_long_generation: str | None = None
    stop_sequence: str | list[str] | None = None
    truncation: bool | str | None = None
    max_length: int | None = None
    padding: bool | str | None = None
    add_special_tokens: bool | None = None
    continue_final_message: bool | None = None
    tools: Sequence[Any] | None = None
    documents: Sequence[Any] | None = None
    tokenizer_encode_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        given = [name for name in RETURNS if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"text-generation: {given[0]} and {given[1]} exclude each other")
        if self.handle_long_generation not in (None, "hole"):
            raise ValueError(
                f'text-generation: handle_long_generation must be None or "hole"; got {self.handle_long_generation!r}'
            )


class TextGenerationPipeline(GenerationPipeline):
    """A prompt to [{"generated_text": prompt and continuation}, ...], one for each returned sequence; a chat, a list of
    {"role": ..., "content": ...}, to itself with the assistant's message behind it.

    What neither the user nor generation_config.json says is as in transformers' pipeline: do_sample=True,
    temperature=0.7, max_new_tokens=256.
    """

    Options: ClassVar[type[Any]] = TextGenerationOptions

    def __init__(self, model: Model, tokenizer: Tokenizer | None = None, **options: Any):
        super().__init__(model, tokenizer, **{"prefix": _prefix(model.config, model.config), **options})

    def with_defaults(self, values: dict[str, Any]) -> dict[str, Any]:
        defaults: dict[str, Any] = {"do_sample": True, "temperature": 0.7, "pad_token_id": self.tokenizer.pad_token_id}
        if "max_length" not in values:
            defaults["max_new_tokens"] = 256
        return {**defaults, **values}

    def read(self, given: Mapping[str, Any]) -> Call:
        if any(given.get(name) is not None for name in RETURNS):  # instead of what the constructor said
            given = {**dict.fromkeys(RETURNS), **given}
        return super().read(given)

    def call(self, own: Any, arguments: dict[str, Any]) -> Call:
        if own.stop_sequence is not None:
            arguments["stop_strings"] = own.stop_sequence
        o = super().call(own, arguments)
        if own.prefix:
            length = len(self.encode([own.prefix], {"add_special_tokens": own.add_special_tokens or False})[0])
            for kind in ("max", "min"):  # of lengths, which the prefix is part of
                value = getattr(o.options, f"{kind}_length")
                if value and getattr(o.options, f"{kind}_new_tokens") is None:
                    arguments[f"{kind}_length"] = value + length
            o = super().call(own, arguments)
        return o

    def is_one(self, inputs: list[Any], o: Call) -> bool:
        return bool(inputs) and _is_message(inputs[0])

    def prepare(self, inputs: list[Any], o: Call) -> list[list[Any]]:
        chats = [isinstance(given, (list, tuple)) for given in inputs]
        texts = [given for given, chat in zip(inputs, chats, strict=True) if not chat]
        own: TextGenerationOptions = o.own
        settings = {name: getattr(own, name) for name in ("truncation", "max_length", "padding", "add_special_tokens")}
        encoded = iter(self.encode(texts, {**settings, **own.tokenizer_encode_kwargs}, own.prefix or ""))
        return [
            [self.row(self.of_chat(given, own) if chat else next(encoded), o)]
            for given, chat in zip(inputs, chats, strict=True)
        ]

    def of_chat(self, messages: Sequence[Any], own: TextGenerationOptions) -> list[int]:
        """The ids of a chat. ValueError: it is none."""
        if not messages or not all(_is_message(message) for message in messages):
            raise ValueError(f"{self.task}: each message of a chat must have a role and a content")
        goes_on = _continues(messages, own)
        more = {name: v for name, v in own.tokenizer_encode_kwargs.items() if name != "add_special_tokens"}
        settings = {"truncation": bool(own.truncation), "max_length": own.max_length}
        ids: list[int] = self.tokenizer.apply_chat_template(
            list(messages),
            tools=own.tools,
            documents=own.documents,
            add_generation_prompt=not goes_on,
            continue_final_message=goes_on,
            **{**settings, **more, "return_dict": False, "return_tensors": None},
        )
        return ids

    def row(self, ids: list[int], o: Call) -> Row:
        if o.own.handle_long_generation == "hole":
            room = self.tokenizer.max_length
            new = self.new_tokens(len(ids), o)
            if room is not None and len(ids) + new > room:
                if new >= room:
                    raise ValueError(f"{self.task}: {new} new tokens leave no room for a prompt among {room}")
                ids = ids[new - room :]
        bos = o.options.bos_token_id
        if not ids and bos is None:
            raise ValueError(f"{self.task}: for an empty prompt there must be a bos_token_id to begin with")
        cost = (len(ids) + self.new_tokens(len(ids), o)) * self.beams(o)
        return Row(ids or [int(bos or 0)], next(o.numbers), cost, len(ids))

    def key(self, row: Row, o: Call) -> Any:
        """The length, where options or the model's limit count from the beginning of the longest row."""
        options, limit = o.options, self.model.max_tokens
        free = options.max_new_tokens is not None and not options.min_length
        fits = limit is None or len(row.ids) + self.new_tokens(len(row.ids), o) <= limit
        return None if free and fits else len(row.ids)

    def finish(self, given: Any, rows: list[Row], outputs: list[Any], o: Call) -> list[dict[str, Any]]:
        (row,), (sequences,) = rows, outputs
        own: TextGenerationOptions = o.own
        if own.return_tensors:
            return [{"generated_token_ids": sequence.tolist()} for sequence in sequences]
        records = []
        for sequence in sequences:
            text: Any = self.decode(sequence[row.shown :], own.skip_special_tokens, own.clean_up_tokenization_spaces)
            if own.return_full_text is not False:
                text = given + text if isinstance(given, str) else _with_answer(given, text, own)
            records.append({"generated_text": text})
        return records


def _is_message(value: Any) -> bool:
    return isinstance(value, Mapping) and "role" in value and "content" in value


def _continues(messages: Sequence[Any], own: TextGenerationOptions) -> bool:
    """Whether the last message of a chat is to go on, as one of the assistant's does, rather than to be answered."""
    return bool(
        messages[-1]["role"] == "assistant" if own.continue_final_message is None else own.continue_final_message
    )


def _with_answer(messages: Sequence[Any], text: str, own: TextGenerationOptions) -> list[Any]:
    if not _continues(messages, own):
        return [*messages, {"role": "assistant", "content": text}]
    last = messages[-1]
    return [*messages[:-1], {"role": last["role"], "content": last["content"] + text}]


# ---- text to text -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Text2TextOptions:
    """return_tensors: token ids instead of text. stop_sequence: a text whose first token ends a sequence."""

    return_tensors: bool | None = None
    return_text: bool | None = None
    clean_up_tokenization_spaces: bool = False
    truncation: bool | str = False
    stop_sequence: str | None = None


class Text2TextGenerationPipeline(GenerationPipeline):
    """A text to [{"generated_text": ...}], one for each returned sequence; a list of texts to such lists, or to a flat
    list of dictionaries where each has one sequence. As in transformers until 4: what config.json has for the task
    under task_specific_params counts, its prefix too, and no sequence is longer than 20 tokens unless something says
    so. Beams are those of `model.generate`."""

    Options: ClassVar[type[Any]] = Text2TextOptions
    returns: ClassVar[str] = "generated"

    def with_defaults(self, values: dict[str, Any]) -> dict[str, Any]:
        defaults = {} if "max_new_tokens" in values else {"max_length": 20}
        special = self.task_params()
        self.prefix = _prefix(special if "prefix" in special else self.model.config, self.model.config) or ""
        return {**defaults, **values, **{name: v for name, v in special.items() if name in READERS and v is not None}}

    def task_params(self) -> Mapping[str, Any]:
        config: Config = self.model.config
        tasks = config.get("task_specific_params") or {}
        found = tasks.get(self.task, {}) if isinstance(tasks, Mapping) else None
        if not isinstance(found, Mapping):
            raise config.error("task_specific_params", "an object of objects")
        return found

    def __call__(self, inputs: Any, **options: Any) -> Any:
        result = super().__call__(inputs, **options)
        flat = isinstance(inputs, list) and all(len(records) == 1 for records in result)
        return [records[0] for records in result] if flat else result

    def call(self, own: Any, arguments: dict[str, Any]) -> Call:
        if own.stop_sequence is not None:
            ids = self.encode([own.stop_sequence], {"add_special_tokens": False})[0]
            if not ids:
                raise ValueError(f"{self.task}: stop_sequence {own.stop_sequence!r} has no token")
            if len(ids) > 1:
                warnings.warn(
                    f"{self.task}: stop_sequence is {len(ids)} tokens, of which the first ends a text", stacklevel=5
                )
            arguments["eos_token_id"] = ids[0]
        return super().call(own, arguments)

    def prepare(self, inputs: list[Any], o: Call) -> list[list[Any]]:
        made = self.new_tokens(1, o) * self.beams(o)
        return [[Row(ids, next(o.numbers), len(ids) + made)] for ids in self.sources(inputs, o)]

    def sources(self, inputs: list[Any], o: Call) -> list[list[int]]:
        """What the encoder reads."""
        return self.encode(inputs, {"truncation": o.own.truncation}, self.prefix)

    def beginning(self, row: Row, job: Job, place: int) -> Array:
        shown: Array = job.shown[place]
        return shown

    def finish(self, given: str, rows: list[Row], outputs: list[Any], o: Call) -> list[dict[str, Any]]:
        if o.own.return_tensors:
            return [{f"{self.returns}_token_ids": sequence} for sequence in outputs[0]]
        clean_up = o.own.clean_up_tokenization_spaces
        return [{f"{self.returns}_text": self.decode(sequence, True, clean_up)} for sequence in outputs[0]]


class SummarizationPipeline(Text2TextGenerationPipeline):
    """A text to [{"summary_text": ...}]; lists as of text2text-generation."""

    returns: ClassVar[str] = "summary"


@dataclass(frozen=True)
class TranslationOptions(Text2TextOptions):
    """src_lang, tgt_lang: of a model of several languages, mBART; others do not look at them."""

    src_lang: str | None = None
    tgt_lang: str | None = None


NAMED = re.compile(r"translation_(\w+)_to_(\w+)")


class TranslationPipeline(Text2TextGenerationPipeline):
    """A text to [{"translation_text": ...}]; lists as of text2text-generation. A task translation_xx_to_yy gives both
    languages; translation alone takes the first of task_specific_params, with a warning."""

    Options: ClassVar[type[Any]] = TranslationOptions
    returns: ClassVar[str] = "translation"

    def languages(self, own: TranslationOptions) -> tuple[str, str] | None:
        """From which to which the tokenizer is to be told. ValueError: it must be, and one is missing or unknown."""
        known = self.tokenizer.lang_code_to_id
        if not known:
            return None
        source, target = own.src_lang, own.tgt_lang
        named = NAMED.fullmatch(self.task)
        if source is None and target is None and named is not None:
            source, target = named.groups()
        for name, code in (("src_lang", source), ("tgt_lang", target)):
            if code not in known:
                raise ValueError(f"{self.task}: {name} must be one of {', '.join(known)}; got {code!r:.99}")
        return str(source), str(target)

    def call(self, own: Any, arguments: dict[str, Any]) -> Call:
        named = NAMED.fullmatch(self.task)  # of codes that the tokenizer does not have: a call may give others
        known = named is not None and set(named.groups()) <= self.tokenizer.lang_code_to_id.keys()
        if own.src_lang is not None or own.tgt_lang is not None or known:
            languages = self.languages(own)
            if languages is not None:
                arguments["forced_bos_token_id"] = self.tokenizer.lang_code_to_id[languages[1]]
        return super().call(own, arguments)

    def sources(self, inputs: list[Any], o: Call) -> list[list[int]]:
        languages = self.languages(o.own)
        if languages is None:
            return super().sources(inputs, o)
        tokenizer = copy(self.tokenizer)  # the model's own goes on in its language
        tokenizer.src_lang = languages[0]
        return self.encode(inputs, {"truncation": o.own.truncation}, tokenizer=tokenizer)

    def task_params(self) -> Mapping[str, Any]:
        tasks = self.model.config.get("task_specific_params")
        if self.task == "translation" and isinstance(tasks, Mapping):
            found = next((name for name in tasks if name.startswith("translation")), None)
            if found is not None:
                warnings.warn(f'task "translation" stands for "{found}" here; name the one that you want', stacklevel=6)
                self.task = found
        return super().task_params()
