"""Text to token ids and back, as the tokenizers of transformers do it, from a checkpoint's files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, overload

import numpy as np

from .config import Config
from .layers import Array
from .tokenization import chat, fast, ggml, sources
from .tokenization.encoding import STRATEGIES, Encoding, Truncation, check_inputs, clean_up
from .tokenization.languages import Languages, find_languages
from .tokenization.slow import Backend
from .tokenization.sources import handed_in
from .tokenization.special import FAMILIES, NAMES, Family, NamedToken, NamedTokenId, SpecialTokens, class_name

# sentence-transformers' settings of the text model, under all names that its versions gave the file
SENTENCE_CONFIGS = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", *SENTENCE_CONFIGS)
__all__ = ["SENTENCE_CONFIGS", "TOKENIZER_FILES", "Encoding", "Tokenizer", "handed_in"]
MOST_COPIES = 16  # of the backend, each with another way to cut texts


class Tokenizer:
    """Text to ids and back.

    `tokenizer(texts)` gives what a model's call takes, padded and cut to what the model takes; `rows(texts)` the bare
    lists of ids; `encode_batch(texts)` all there is to know of the tokens. max_length: the most tokens that the model
    takes, special ones included; None for no limit. bos_token, bos_token_id and so on: special tokens and their ids,
    None where there is none.
    """

    bos_token, bos_token_id = NamedToken(), NamedTokenId()
    eos_token, eos_token_id = NamedToken(), NamedTokenId()
    unk_token, unk_token_id = NamedToken(), NamedTokenId()
    sep_token, sep_token_id = NamedToken(), NamedTokenId()
    pad_token, pad_token_id = NamedToken(), NamedTokenId()
    cls_token, cls_token_id = NamedToken(), NamedTokenId()
    mask_token, mask_token_id = NamedToken(), NamedTokenId()

    def __init__(
        self,
        backend: Any,
        max_length: int | None,
        *,
        special: Mapping[str, str] | None = None,
        extra: Sequence[str] = (),
        padding_side: str = "right",
        truncation_side: str = "right",
        clean_up: bool = False,
        types: bool = True,
        target: Any = None,
        chat_template: str | Mapping[str, str] | None = None,
        languages: Languages | None = None,
    ):
        """backend: a tokenizers.Tokenizer, or one of ours with the same methods. target: another for the texts that a
        model is to write. special: special tokens by name; extra: those without one. languages: of mBART."""
        with fast.backend_errors("tokenizer"):
            count = backend.num_special_tokens_to_add(False)
        if max_length is not None and max_length < count:
            raise ValueError(f"tokenizer: a limit of {max_length} tokens has no room for {count} special ones")
        self.max_length = max_length
        self.padding_side = padding_side
        self.truncation_side = truncation_side
        self.types = types  # whether the model takes token_type_ids
        self.clean_up_tokenization_spaces = clean_up
        self.chat_template = chat_template
        self.special_tokens_map = dict(special or {})
        self.extra_special_tokens = list(extra)
        self._languages = languages
        self._source, self._target = backend, backend if target is None else target
        self._default = None if max_length is None else Truncation(max_length, direction=truncation_side)
        self._copies: dict[tuple[bool, Truncation | None], Any] = {}
        if languages is None:
            self.backend = self._cut(self._default)
        else:
            self._speak(languages)

    @classmethod
    def from_files(
        cls, files: Mapping[str, bytes], config: Config, max_tokens: int | None, *, types: bool = True
    ) -> Tokenizer:
        """From a checkpoint's files. max_tokens: the positions that the model has. types: whether it has token types
        to tell apart; tokenizer_config.json may leave them out all the same.

        The limit is found as transformers and sentence-transformers find it: max_seq_length of the
        sentence-transformers settings if there are any, else model_max_length; never more than the model
        takes. ValueError, naming the file: no vocabulary, a broken one, or one with more tokens than the model.
        """
        settings = sources.read_settings(files, "tokenizer_config.json")
        if ggml.FILE in files and "tokenizer.json" not in files:
            settings = settings.with_defaults(ggml.settings_of(sources.read_settings(files, ggml.FILE)))
        name = class_name(settings, config)
        family = FAMILIES.get(name, Family())
        special_map, numbers = (
            sources.read_settings(files, file) for file in ("special_tokens_map.json", "added_tokens.json")
        )
        special = SpecialTokens(settings, special_map, numbers, family)
        sentence = next((sources.read_settings(files, key) for key in SENTENCE_CONFIGS if key in files), None)
        limits = [max_tokens] if max_tokens is not None else []
        model_max = settings.get("model_max_length")  # 1e30 stands for none
        if sentence is not None and "modules.json" in files and sentence.get("max_seq_length") is not None:
            limits.append(sentence.integer("max_seq_length", 0))
        elif isinstance(model_max, (int, float)) and 0 < model_max < 2**31:
            limits.append(int(model_max))

        backend, target = sources.open_files(files, name, settings, special, config)
        _check_size(backend, config)
        if sentence is not None and sentence.flag("do_lower_case", False):
            if isinstance(backend, Backend):
                raise ValueError("do_lower_case of sentence-transformers is not supported for this tokenizer")
            fast.lower_case(backend)
        inputs = settings.get("model_input_names")
        named = {key: token for key, token in special.all_named().items() if backend.token_to_id(token) is not None}
        return cls(
            backend,
            min(limits, default=None),
            special=named,
            extra=special.extra,
            padding_side=_side(settings, "padding_side", family.padding_side),
            truncation_side=_side(settings, "truncation_side", "right"),
            clean_up=settings.flag("clean_up_tokenization_spaces", False),
            types=types and (not isinstance(inputs, list) or "token_type_ids" in inputs),
            target=target,
            chat_template=chat.find_template(files, settings),
            languages=find_languages(name, settings, backend, named.get("eos_token", "</s>")),
        )

    # ---- text to ids

    def rows(self, texts: Iterable[str]) -> list[list[int]]:
        """The ids of each text, special tokens included, cut to max_length. TypeError: a text is no string."""
        return [encoding.ids for encoding in self._encode(self.backend, check_inputs(list(texts), None, False))]

    def __call__(
        self,
        texts: Any = None,
        pairs: Any = None,
        *,
        text_target: Any = None,
        add_special_tokens: bool = True,
        truncation: bool | str = True,
        max_length: int | None = None,
        is_split_into_words: bool = False,
    ) -> dict[str, Array]:
        """input_ids, attention_mask and, where the model has token types, token_type_ids, (B, S) int64, padded on
        padding_side, for a text or several, pairs of texts in two lists or in one of pairs.

        text_target: texts that the model is to write: alone they give input_ids, beside texts they become labels.
        Truncation as in encode_batch.
        """
        if texts is None and text_target is None:
            raise ValueError("tokenizer: there are neither texts nor text_target")
        options = {"add_special_tokens": add_special_tokens, "is_pretokenized": is_split_into_words}
        way = self._truncation(truncation, max_length, 0)
        batch: dict[str, Array] = {}
        if texts is not None:
            inputs = check_inputs(texts, pairs, is_split_into_words)
            backend = self.backend if way == self._default else self._cut(way)
            batch = self._pad(self._encode(backend, inputs, **options))
        if text_target is not None:
            encodings = self._encode(
                self._cut(way, target=True), check_inputs(text_target, None, is_split_into_words), **options
            )
            target = self._pad(encodings)
            batch = target if texts is None else {**batch, "labels": target["input_ids"]}
        return batch

    def encode_batch(
        self,
        texts: Any,
        pairs: Any = None,
        *,
        add_special_tokens: bool = True,
        truncation: bool | str = True,
        max_length: int | None = None,
        stride: int = 0,
        return_overflowing_tokens: bool = False,
        is_split_into_words: bool = False,
    ) -> list[Encoding]:
        """One Encoding for each text or pair.

        truncation: "longest_first" (True), "only_first" or "only_second" says which of a pair is cut to max_length
        tokens, by default the tokenizer's limit; False: none. return_overflowing_tokens: what was cut off follows in
        windows, each of which shares `stride` tokens with the one before. is_split_into_words: each text is a list of
        words. TypeError: a text is no string. ValueError: the options do not go together, or a text cannot be cut so.
        """
        way = self._truncation(truncation, max_length, stride)
        inputs = check_inputs(texts, pairs, is_split_into_words)
        encodings = self._encode(
            self._cut(way), inputs, add_special_tokens=add_special_tokens, is_pretokenized=is_split_into_words
        )
        return [Encoding.of(encoding, overflowing=return_overflowing_tokens) for encoding in encodings]

    def _truncation(self, truncation: bool | str, max_length: int | None, stride: int) -> Truncation | None:
        if truncation is False:
            return None
        strategy = "longest_first" if truncation is True else truncation
        if strategy not in STRATEGIES:
            raise ValueError(
                f"tokenizer: truncation must be a bool or one of {', '.join(STRATEGIES)}; got {truncation!r}"
            )
        length = self.max_length if max_length is None else max_length
        if length is None:
            return None
        for name, value in (("max_length", length), ("stride", stride)):
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 0:
                raise ValueError(f"tokenizer: {name} must be an integer, not negative; got {value!r}")
        return Truncation(int(length), int(stride), strategy, self.truncation_side)

    def _cut(self, truncation: Truncation | None, *, target: bool = False) -> Any:
        """The backend that cuts so, made at first use. It never changes, so several threads may use it."""
        found = self._copies.get((target, truncation))
        if found is None:
            backend = self._target if target else self._source
            if truncation is not None:
                with fast.backend_errors("tokenizer"):
                    room = truncation.max_length - backend.num_special_tokens_to_add(False)
                if truncation.stride and truncation.stride >= room:
                    raise ValueError(
                        f"tokenizer: stride {truncation.stride} must be less than the {max(room, 0)} tokens of a text "
                        f"that max_length {truncation.max_length} leaves room for"
                    )
            found = backend.cut(truncation) if isinstance(backend, Backend) else fast.cut(backend, truncation)
            if len(self._copies) >= MOST_COPIES:
                self._copies.clear()
            self._copies[target, truncation] = found
        return found

    def _encode(self, backend: Any, inputs: list[Any], **options: bool) -> list[Any]:
        """What the backend makes of checked inputs; options that are at their defaults are left out."""
        options = {k: v for k, v in options.items() if v != (k == "add_special_tokens")}
        with fast.backend_errors("tokenizer"):
            return list(backend.encode_batch(inputs, **options))

    def _pad(self, encodings: Sequence[Any]) -> dict[str, Array]:
        shape = len(encodings), max((len(e.ids) for e in encodings), default=0)
        ids, mask, types = np.full(shape, self.pad_id), np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        for row, encoding in enumerate(encodings):
            n = len(encoding.ids)
            part = slice(shape[1] - n, None) if self.padding_side == "left" else slice(n)
            ids[row, part], mask[row, part], types[row, part] = encoding.ids, 1, encoding.type_ids
        batch = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
        if not self.types:
            del batch["token_type_ids"]
        return batch

    # ---- ids to text

    def decode(
        self,
        ids: Any,
        *,
        skip_special_tokens: bool = True,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> str:
        """The text of ids. clean_up_tokenization_spaces: take out spaces before punctuation and in English
        contractions; None: as tokenizer_config.json says, and never for BPE."""
        row = np.atleast_1d(np.asarray(ids, np.int64))
        if row.ndim > 1:
            raise ValueError(f"decode: expected the ids of one text; got shape {row.shape}. batch_decode takes several")
        numbers: list[int] = row.tolist()
        if numbers and min(numbers) < 0:
            raise ValueError(f"tokenizer: {min(numbers)} is no token id")
        with fast.backend_errors("tokenizer"):
            text = str(self.backend.decode(numbers, skip_special_tokens=skip_special_tokens))
        clean = (
            self.clean_up_tokenization_spaces if clean_up_tokenization_spaces is None else clean_up_tokenization_spaces
        )
        return clean_up(text) if clean and not self._is_bpe() else text

    def batch_decode(
        self,
        sequences: Iterable[Any],
        *,
        skip_special_tokens: bool = True,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> list[str]:
        """`decode` of each row."""
        return [
            self.decode(
                ids,
                skip_special_tokens=skip_special_tokens,
                clean_up_tokenization_spaces=clean_up_tokenization_spaces,
            )
            for ids in sequences
        ]

    def _is_bpe(self) -> bool:
        return not isinstance(self._source, Backend) and type(self._source.model).__name__ == "BPE"

    # ---- the vocabulary

    def __len__(self) -> int:
        """All tokens, those that were added to the vocabulary included."""
        return int(self.backend.get_vocab_size(with_added_tokens=True))

    def __bool__(self) -> bool:
        return True

    @property
    def vocab_size(self) -> int:
        """The tokens of the vocabulary itself."""
        return int(self.backend.get_vocab_size(with_added_tokens=False))

    def get_vocab(self) -> dict[str, int]:
        """Token -> id, those that were added included."""
        return dict(self.backend.get_vocab(with_added_tokens=True))

    @overload
    def convert_ids_to_tokens(self, ids: int, skip_special_tokens: bool = False) -> str | None: ...

    @overload
    def convert_ids_to_tokens(self, ids: Iterable[int], skip_special_tokens: bool = False) -> list[str | None]: ...

    def convert_ids_to_tokens(
        self, ids: int | Iterable[int], skip_special_tokens: bool = False
    ) -> str | list[str | None] | None:
        """The token of an id, or those of several; None for an id that there is not."""
        if isinstance(ids, (int, np.integer)):
            token: str | None = self.backend.id_to_token(int(ids)) if 0 <= ids < 2**32 else None
            return token
        skipped = set(self.all_special_ids) if skip_special_tokens else set()
        return [self.convert_ids_to_tokens(int(i)) for i in ids if int(i) not in skipped]

    @overload
    def convert_tokens_to_ids(self, tokens: str) -> int | None: ...  # type: ignore[overload-overlap]

    @overload
    def convert_tokens_to_ids(self, tokens: Iterable[str]) -> list[int | None]: ...

    def convert_tokens_to_ids(self, tokens: str | Iterable[str]) -> int | list[int | None] | None:
        """The id of a token, or those of several; unk_token_id for one that is not in the vocabulary."""
        if isinstance(tokens, str):
            found: int | None = self.backend.token_to_id(tokens)
            return self.unk_token_id if found is None else found
        return [self.convert_tokens_to_ids(token) for token in tokens]

    @property
    def all_special_tokens(self) -> list[str]:
        named = [self.special_tokens_map[name] for name in NAMES if name in self.special_tokens_map]
        return list(dict.fromkeys([*named, *self.extra_special_tokens]))

    @property
    def all_special_ids(self) -> list[int]:
        ids = (self.backend.token_to_id(token) for token in self.all_special_tokens)
        return [i for i in ids if i is not None]

    def is_special(self, token: int) -> bool:
        """Whether the text of an id is left out by skip_special_tokens."""
        added = self.backend.get_added_tokens_decoder().get(token)
        return added is not None and bool(added.special)

    @property
    def pad_id(self) -> int:
        """What padding is filled with, also where there is no pad_token; the model ignores it."""
        found = self.pad_token_id
        return self.backend.token_to_id("[PAD]") or 0 if found is None else found

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """How many special tokens a text, or a pair, gets."""
        return int(self.backend.num_special_tokens_to_add(pair))

    # ---- languages, of mBART

    @property
    def src_lang(self) -> str | None:
        """The language of the texts that the model reads, None for all but mBART. Setting it changes the special
        tokens that they get, as `tgt_lang` does for those that it writes. ValueError: there is no such language."""
        return None if self._languages is None else self._languages.source

    @src_lang.setter
    def src_lang(self, code: str) -> None:
        self._speak(replace(self._known_language(code), source=code))

    @property
    def tgt_lang(self) -> str | None:
        """The language of the texts that the model writes; None: src_lang."""
        return None if self._languages is None else self._languages.target

    @tgt_lang.setter
    def tgt_lang(self, code: str | None) -> None:
        self._speak(replace(self._known_language(code), target=code))

    @property
    def lang_code_to_id(self) -> dict[str, int]:
        """The ids of the languages' tokens, none for all but mBART."""
        codes = () if self._languages is None else self._languages.codes
        return {code: self.backend.token_to_id(code) for code in codes}

    def _known_language(self, code: str | None) -> Languages:
        if self._languages is None:
            raise ValueError("tokenizer: this one is the same for all languages")
        if code is not None and code not in self._languages.codes:
            raise ValueError(f"tokenizer: no language {code!r:.99}; there are {', '.join(self._languages.codes)}")
        return self._languages

    def _speak(self, languages: Languages) -> None:
        self._languages = languages
        self._source, self._target = (
            languages.template(self._source, code) for code in (languages.source, languages.target or languages.source)
        )
        self._copies = {}
        self.backend = self._cut(self._default)

    # ---- chats

    def apply_chat_template(
        self,
        conversation: Any,
        tools: Sequence[Any] | None = None,
        documents: Sequence[Any] | None = None,
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool | str = False,
        tokenize: bool = True,
        padding: bool = False,
        truncation: bool = False,
        max_length: int | None = None,
        return_tensors: str | None = None,
        return_dict: bool = True,
        **variables: Any,
    ) -> Any:
        """A chat, a list of {"role": ..., "content": ...}, or several, as the text that the model was trained with,
        made by the checkpoint's template; see qkv.tokenization.chat.render.

        tokenize: its ids instead, in a dictionary with input_ids and attention_mask, or bare without return_dict:
        lists, or with return_tensors="np" arrays (B, S). chat_template: another template, or the name of one of the
        checkpoint's. tools: JSON schemas of functions, or Python functions with type hints and a docstring in Google's
        style, of which they are made. variables: what else the template is to see. ValueError: there is no template, or
        it fails; a function says too little.
        """
        for name in ("return_assistant_tokens_mask", "sanitize_control_tokens", "tokenizer_kwargs"):
            if variables.pop(name, None):
                raise ValueError(f"apply_chat_template: {name} is not supported")
        template = chat.choose(self.chat_template, chat_template, tools)
        if not isinstance(conversation, (list, tuple)) or not conversation:
            raise ValueError("apply_chat_template: expected a chat of at least one message, or a list of chats")
        batched = isinstance(conversation[0], (list, tuple))
        texts = [
            chat.render(
                template,
                messages,
                tools=tools,
                documents=documents,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                **{**self.special_tokens_map, **variables},
            )
            for messages in (conversation if batched else [conversation])
        ]
        if not tokenize:
            return texts if batched else texts[0]
        if return_tensors not in (None, "np"):
            raise ValueError(f'apply_chat_template: return_tensors must be "np" or None; got {return_tensors!r}')
        way = self._truncation(truncation, max_length, 0)
        encodings = self._encode(self._cut(way), check_inputs(texts, None, False), add_special_tokens=False)
        rows = [list(encoding.ids) for encoding in encodings]
        if padding or return_tensors:
            if not padding and len({len(row) for row in rows}) > 1:
                raise ValueError("apply_chat_template: chats of different lengths need padding=True to become an array")
            padded = self._pad(encodings)
            result: dict[str, Any] = {name: padded[name] for name in ("input_ids", "attention_mask")}
            if not return_tensors:
                result = {name: array.tolist() for name, array in result.items()}
        else:
            result = {"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows]}
        if not batched and not return_tensors:
            result = {name: values[0] for name, values in result.items()}
        return result if return_dict else result["input_ids"]


def _side(settings: Config, name: str, default: str) -> str:
    value = settings.get(name)
    if value is None:
        return default
    if value not in ("left", "right"):
        raise settings.error(name, '"left" or "right"')
    return str(value)


def _check_size(backend: Any, config: Config) -> None:
    """A vocabulary with more tokens than the model knows is another model's. Tokens that were added may lie beyond:
    they are refused where they are used."""
    count, rows = backend.get_vocab_size(with_added_tokens=False), config.get("vocab_size")
    if type(rows) is int and count > rows:
        raise ValueError(
            f"tokenizer: its vocabulary has {count} tokens, but the model only {rows}: it is another model's"
        )
