"""One call of generate: its options and prompts, and what all kinds of search do with them.

Letters: B texts (prompts, or what an encoder reads), P tokens of a prompt with its padding, L tokens of a row so far, V
vocabulary. Rows of a text follow one another: beams, or several samples.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise, takewhile
from typing import Any

import numpy as np

from ..files import parse_json
from ..layers import Array
from ..outputs import ModelOutput
from ..packing import Packed, regular
from ..placement import host
from .logits import Gone, HammingDiversity, PrefixFunction, Processor, chain, filters_of, masks_alone, processors
from .options import DEFAULT_NEW_TOKENS, FILE, OUTPUTS, resolve
from .rows import CachedRows, Decoding, RecurrentRows, Seen

Own = Callable[[Array, Array], Any]
FEW_TOKENS = 64  # of a row that the cache has room for at once; it doubles when they are more


def _functions(name: str, value: Any) -> list[Own]:
    found = [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]
    for function in found:
        if not callable(function):
            raise ValueError(f"generate: {name} must be a function or a list of them; got {type(function).__name__}")
    return found


def _split(packed: Packed) -> list[list[int]]:
    """Each row's ids."""
    return [packed.ids[a:b].tolist() for a, b in pairwise(packed.cu_seqlens.tolist())]


def _seed(value: Any) -> Any:
    if value is None:
        return np.random.SeedSequence().entropy
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 0:
        raise ValueError(f"generate: seed must be an integer of at least 0; got {value!r:.99}")
    return int(value)


def of_model(model: Any) -> tuple[dict[str, Any], str]:
    """What a model's files say about generation, and which file it is. ValueError: it holds no JSON object."""
    data = model.files.get(FILE)
    values = model.config if data is None else parse_json(data, FILE)
    if not isinstance(values, Mapping):
        raise ValueError(f"{FILE}: must hold a JSON object")
    nothing: set[str] = set()  # that they can mean
    if data is None:  # config.json is not about what shapes an answer
        nothing |= {*OUTPUTS, "return_dict_in_generate"}
    if not hasattr(model, "decoder"):
        nothing |= {"decoder_start_token_id", "forced_decoder_ids"}
    return {n: v for n, v in values.items() if n not in nothing}, "config.json" if data is None else FILE


class Columns:
    """A matrix (n, L) that grows by columns, which are written once somebody looks."""

    def __init__(self, start: Array):
        self._room = start
        self._written = self.length = start.shape[1]
        self._new: list[Array] = []

    def append(self, column: Array) -> None:
        self._new.append(column)
        self.length += 1

    @property
    def all(self) -> Array:
        """As it is now, (n, length)."""
        if self._new:
            if self.length > self._room.shape[1]:
                room = np.empty((len(self._room), 2 * self.length), self._room.dtype)
                room[:, : self._written] = self._room[:, : self._written]
                self._room = room
            self._room[:, self._written : self.length] = np.stack(self._new, axis=1)
            self._written = self.length
            self._new.clear()
        return self._room[:, : self.length]


class Job:
    """ids are int64 (n, L), prompts moved to the right with -1 for padding; `rows` are the rows' numbers among all that
    the call began with. ValueError: see generate.

    said: what to take for the model's generation_config.json instead. numbers: of the texts, for their
    random numbers, where they are not all that a user has."""

    def __init__(
        self,
        model: Any,
        input_ids: Any,
        attention_mask: Any,
        arguments: dict[str, Any],
        *,
        said: tuple[dict[str, Any], str] | None = None,
        numbers: Sequence[int] | None = None,
    ):
        self.begun = time.monotonic()
        self.model = model
        self.pair, self.recurrent = hasattr(model, "decoder"), hasattr(model, "mem_len")
        if not hasattr(model.head, "logits"):
            raise ValueError(f"generate: a {model.architecture} has no head that makes tokens")
        if self.recurrent and not model.mem_len:
            raise ValueError("generate: with mem_len 0 the model forgets a text at every token")
        own = _functions("logits_processor", arguments.pop("logits_processor", None))
        self.criteria = _functions("stopping_criteria", arguments.pop("stopping_criteria", None))
        prefix: PrefixFunction | None = arguments.pop("prefix_allowed_tokens_fn", None)
        _functions("prefix_allowed_tokens_fn", prefix)
        tokenizer = arguments.pop("tokenizer", None)
        decoder_ids = arguments.pop("decoder_input_ids", None)
        self.seed = _seed(arguments.pop("seed", None))
        self.options = o = resolve(*(said or of_model(model)), arguments)
        if decoder_ids is not None and not self.pair:
            raise ValueError(f"decoder_input_ids: a {model.architecture} has no such input")
        if self.recurrent and (o.output_attentions or o.output_hidden_states):
            name = "output_attentions" if o.output_attentions else "output_hidden_states"
            raise ValueError(f"generate: {name} is not supported for a {model.architecture}")
        self.eos = frozenset(o.eos)
        self.pad = (o.eos or [0])[0] if o.pad_token_id is None else o.pad_token_id
        self.groups = o.num_beam_groups
        if self.groups > 1 and self.criteria:
            raise ValueError(f"generate: stopping_criteria do not go with num_beam_groups={self.groups}")
        self.beams = max(o.num_beams, o.num_return_sequences)  # rows of a text
        self.per_call = self.beams // self.groups  # those among them that processors see at once
        self.diversity = HammingDiversity(o.diversity_penalty) if self.groups > 1 else None

        self._read(input_ids, attention_mask, decoder_ids)
        self._fit()
        self.max_length = self._length()
        self.last_gone: Gone | None = None
        self.steps = self._steps([self._own(function) for function in own], prefix)
        self.strings = [(s, len(s.encode()) + 4) for s in o.stop_strings or []]
        if self.strings:
            self.tokenizer = model.tokenizer if tokenizer is None else tokenizer
        self.sequences: Columns | None = None  # (rows, L) of all rows, where they have no beams
        self.numbers = range(self.texts) if numbers is None else numbers
        self.made = np.zeros(self.texts * self.beams, np.int64)  # the tokens of each row of the result
        wanted = [name for name in OUTPUTS if getattr(o, name) and o.return_dict_in_generate]
        self.record: dict[str, list[Any]] = {name: [] for name in wanted}  # per step
        if self.pair and "output_attentions" in wanted:
            self.record["cross_attentions"] = []
        # of choosing on a GPU; None: somebody looks at the logits
        self.filters = None if self.record or self.criteria else filters_of(self.steps)
        self.decoding: Decoding = RecurrentRows(model) if self.recurrent else self._cached()

    def close(self) -> None:
        """Once the search is over: what the rows hold goes at once, not when the garbage collector finds out that
        processors hold the job."""
        self.decoding.close()
        self.steps = []

    # ---- what the caller gives --------------------------------------------------------------------

    def _read(self, input_ids: Any, attention_mask: Any, decoder_ids: Any) -> None:
        """The texts: rows of ids that the model begins with, and how they look inside and outside."""
        self.source: Packed | None = None  # what an encoder reads
        if input_ids is None:
            if self.options.bos_token_id is None:
                raise ValueError("input_ids: without a prompt there must be a bos_token_id to begin with")
            input_ids = [[self.options.bos_token_id]]
        if self.pair:
            self.source = self.model.encoder.embeddings.pack(input_ids, attention_mask, None, None)
            packed = self._decoder_prompts(decoder_ids)
        else:
            packed = self._prompts(input_ids, attention_mask)
        assert packed.shape is not None
        self.texts, self.prompt = packed.shape
        shape = packed.shape if self.source is None else self.source.shape
        if self.texts and shape is not None and not shape[1]:
            raise ValueError("input_ids: a text must have at least one token")
        self.rows = _split(packed)
        self.ids = np.full(packed.shape, -1)  # (B, P), what processors see
        for ids, row in zip(self.ids, self.rows, strict=True):
            ids[self.prompt - len(row) :] = row
        self.columns = [packed.columns(text) for text in range(self.texts)]  # where a prompt's real tokens stand

    def _prompts(self, input_ids: Any, attention_mask: Any) -> Packed:
        o = self.options
        array = regular("input_ids", input_ids, "; pad them and pass attention_mask")
        pad = o.pad_token_id
        if attention_mask is None and pad is not None and pad not in o.eos and array.ndim == 2 and (array == pad).any():
            attention_mask = array != pad
        if self.recurrent:
            vocabulary = int(self.model.embeddings.starts[-1])
            packed = Packed.from_padded(input_ids, attention_mask, vocabulary=vocabulary)
        else:
            packed = self.model.embeddings.pack(input_ids, attention_mask, None, None)
        self.shown = array.astype(np.int64)
        return packed

    def _decoder_prompts(self, decoder_ids: Any) -> Packed:
        o, embeddings = self.options, self.model.decoder.embeddings
        assert self.source is not None and self.source.shape is not None
        start = o.bos_token_id if o.decoder_start_token_id is None else o.decoder_start_token_id
        if start is None:
            raise ValueError("generate: the decoder needs a decoder_start_token_id, or a bos_token_id, to begin with")
        count = self.source.shape[0]
        if decoder_ids is None:
            ids = np.full((count, 1), start)
        else:
            packed = embeddings.pack(decoder_ids, None, None, None, "decoder_")
            ids = packed.ids.reshape(packed.shape)
            if len(ids) != count:
                raise ValueError(f"decoder_input_ids: {len(ids)} rows for {count} of input_ids")
            if not ids.shape[1] or not (ids[:, 0] == start).any():
                ids = np.concatenate([np.full((count, 1), start), ids], axis=1)
        self.shown = ids.astype(np.int64)
        packed = embeddings.pack(ids, None, None, None, "decoder_")
        assert isinstance(packed, Packed)
        return packed

    def _fit(self) -> None:
        """ValueError: the rows' ids, and the scores of those of one text, are more than this machine's memory."""
        o, rows = self.options, self.texts * self.beams
        least = 8 * rows * (self.prompt + 1) + 4 * min(rows, self.beams) * self.model.head.vocabulary
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if least > memory:
            name = "num_beams" if o.num_beams == self.beams else "num_return_sequences"
            raise ValueError(
                f"generate: {name}={self.beams} is too much: {rows} rows take {least >> 30} GiB at least, and this "
                f"machine has {memory >> 30}"
            )

    def _length(self) -> int:
        """How long rows may become, prompt and padding included."""
        o, model = self.options, self.model
        side = getattr(model, "decoder", model)
        limit: int | None = getattr(side.embeddings, "limit", None)
        longest = max(map(len, self.rows), default=0)
        if o.max_new_tokens is not None:
            name, length = f"max_new_tokens={o.max_new_tokens}", self.prompt + o.max_new_tokens
        elif o.max_length is not None:
            name, length = f"max_length={o.max_length}", o.max_length
        else:
            name, length = "max_length", self.prompt + DEFAULT_NEW_TOKENS
            if limit is None:
                trained = model.config.get("max_position_embeddings")
                if type(trained) is int and trained > longest:
                    length = min(length, self.prompt - longest + trained)
        if not self.texts:
            return length
        if length <= self.prompt:
            raise ValueError(f"generate: {name} leaves no room behind a prompt of {self.prompt} tokens")
        if limit is not None:
            room = self.prompt - longest + limit  # for columns; the last token of a row needs no position any more
            if {"max_length", "max_new_tokens"} & o.asked:
                if length > room + 1:
                    raise ValueError(
                        f"generate: {name} is too much: the longest prompt has {longest} tokens and the model {limit} "
                        "positions"
                    )
            else:
                length = min(length, room)
                if length <= self.prompt:
                    raise ValueError(f"generate: a prompt of {longest} tokens leaves no room among {limit} positions")
        for name, least in (("min_length", o.min_length), ("min_new_tokens", self.prompt + (o.min_new_tokens or 0))):
            if name in o.asked and least > length:
                raise ValueError(
                    f"generate: {name}={getattr(o, name)} is more than rows may have, {length} tokens at most"
                )
        return length

    def _cached(self) -> CachedRows:
        states: list[Any] | None = [] if "output_hidden_states" in self.record else None
        attentions: list[Any] | None = [] if "output_attentions" in self.record else None
        seen = Seen(states, attentions)
        # for the prompts, and behind them for some tokens of each row and a block that is not full
        made = min(self.max_length - self.prompt, FEW_TOKENS) + 16
        tokens = sum(len(row) + self.beams * made for row in self.rows)
        if self.source is None:
            return CachedRows(self.model, None, seen, tokens)
        self.encoder, seen.cross_attentions = Seen(states, attentions), attentions
        return CachedRows(self.model, self.model.memory(self.source, **self.encoder.again()), seen, tokens)

    def _steps(self, own: list[Processor], prefix: PrefixFunction | None) -> list[Processor]:
        o, source = self.options, self.source
        if hasattr(source, "vectors") and (o.encoder_repetition_penalty != 1 or o.encoder_no_repeat_ngram_size):
            raise ValueError("generate: encoder_repetition_penalty and encoder_no_repeat_ngram_size need token ids")
        return processors(
            o,
            sources=[np.array(row, np.int64) for row in (self.rows if source is None else _split(source))],
            prompt=self.prompt,
            max_length=self.max_length,
            per_text=self.per_call,
            shown=lambda ids, rows: self._shown(ids, rows, self.per_call),
            prefix_function=prefix,
            own=own,
            diversity=self.diversity,
        )

    # ---- what the caller's functions see -----------------------------------------------------------

    def _shown(self, ids: Array, rows: Array, per_text: int) -> Array:
        """Rows as the caller knows them, (n, L): the prompt as he gave it, then what was made."""
        return np.concatenate([self.shown[rows // per_text], ids[:, self.prompt :]], axis=1)

    def _all(self, ids: Array, rows: Array, per_text: int) -> Array:
        """All rows, (B per_text, L), also those that have finished."""
        if self.sequences is not None:
            return self.sequences.all.copy()
        shown = np.full((self.texts * per_text, ids.shape[1]), self.pad)
        shown[:, : self.prompt] = np.repeat(self.shown, per_text, axis=0)
        shown[rows] = self._shown(ids, rows, per_text)
        return shown

    def _own(self, function: Own) -> Processor:
        def process(ids: Array, scores: Array, rows: Array) -> Array:
            shape = self.texts * self.per_call, scores.shape[1]
            given = np.zeros(shape, np.float32)
            given[rows] = scores
            made = np.asarray(function(self._all(ids, rows, self.per_call), given), np.float32)
            if made.shape != shape:
                raise ValueError(f"generate: a logits_processor must return scores {shape}; got {made.shape}")
            return made[rows]

        return process

    # ---- steps that all kinds of search have ------------------------------------------------------

    def process(self, ids: Array, scores: Array, rows: Array) -> Array:
        """New scores; the ones given may change."""
        return chain(self.steps, ids, scores, rows) if self.steps else scores

    def gone(self, ids: Array, rows: Array) -> Gone | None:
        """What `process` takes away from scores, if in this step that is all it does."""
        masks = masks_alone(self.steps, ids.shape[1])
        if masks is None:
            return None
        found = [mask.gone(ids, rows, self.decoding.vocabulary) for mask in masks]
        last = self.last_gone
        if last is None or any(a[0] is not b[0] for a, b in zip(found, last.found, strict=True)):  # mostly the same
            last = self.last_gone = Gone(found, self.decoding.vocabulary)
        return last

    def may_stop(self, tokens: Sequence[int], length: int) -> bool:
        """Whether `stops` has to look, with these as the last tokens of rows of that length."""
        watched = self.strings or self.criteria or self.options.max_time is not None
        return bool(watched) or length >= self.max_length or not self.eos.isdisjoint(tokens)

    def stops(self, ids: Array, rows: Array, per_text: int, scores: Array, of_rows: Array) -> Array:
        """(n,) bool: which rows end with their last token. scores: of the step, of_rows: those of the rows that it came
        from; beams have more continuations, per_text, than rows."""
        full = ids.shape[1] >= self.max_length
        done = np.array([full or token in self.eos for token in ids[:, -1].tolist()], bool)
        if self.options.max_time is not None:
            done |= time.monotonic() - self.begun > self.options.max_time
        for string, reach in self.strings:
            for i in np.flatnonzero(~done).tolist():
                done[i] = self._ends_in(string, [token for token in ids[i, -reach:].tolist() if token >= 0])
        if self.criteria:
            shown = self._all(ids, rows, per_text)
            given = self._all_scores(scores, of_rows)
            for function in self.criteria:
                answer = np.asarray(function(shown, given), bool)
                if answer.shape not in ((), (len(shown),)):
                    raise ValueError(
                        f"generate: a stopping criterion must return one truth, or {len(shown)}; got {answer.shape}"
                    )
                done |= np.broadcast_to(answer, len(shown))[rows]
        return done

    def _ends_in(self, string: str, tokens: list[int]) -> bool:
        """Whether the string is in the tokens' text and ends within what the last of them has added."""
        text: str = self.tokenizer.decode(tokens, skip_special_tokens=False)
        before = self.tokenizer.decode(tokens[:-1], skip_special_tokens=False)
        added = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(text, before, strict=False)))
        return text.find(string, max(added - len(string) + 1, 0)) >= 0

    def _all_scores(self, scores: Array, rows: Array) -> Array:
        """(rows, V), 0 for rows that have finished."""
        full = np.zeros((self.texts * self.beams, scores.shape[1]), np.float32)
        full[rows] = scores
        return full

    def note(self, ids: Array, logits: Array, scores: Array, rows: Array) -> None:
        """Keeps what the caller wants to see of a step; ids before its tokens."""
        if not self.record:
            return
        for name, values in (("output_scores", scores), ("output_logits", logits)):
            if name in self.record:
                self.record[name].append(self._all_scores(values, rows))
        if self.record.keys() & {"output_attentions", "output_hidden_states"}:
            self._note_inside(ids.shape[1], rows)

    def _note_inside(self, length: int, rows: Array) -> None:
        """Attentions (rows, H, S, T) and hidden states (rows, S, C) of each layer. In the first step S is the prompt,
        then 1."""
        seen, lengths = self.decoding.seen, self.decoding.lengths
        first = length == self.prompt
        texts = np.arange(self.texts) if first else rows // self.beams
        count, width = (self.texts, self.prompt) if first else (self.texts * self.beams, 1)
        at = texts if first else rows
        queries = self.columns if first else [np.zeros(1, np.int64)] * len(rows)
        made = np.arange(self.prompt, length)
        keys = [np.concatenate([self.columns[text], made]) for text in texts.tolist()]

        def all_rows(x: Array) -> Array:
            return np.repeat(x, self.beams, axis=0) if first else x

        def pad(weights: list[Array], keys: Sequence[Array], length: int) -> Array:
            full = np.zeros((count, weights[0].shape[0], width, length), np.float32)
            for row, of_row, q, k in zip(at.tolist(), map(host, weights), queries, keys, strict=True):
                full[row][:, q[:, None], k] = of_row[:, -len(q) :]
            return all_rows(full)

        if seen.attentions is not None:
            self.record["output_attentions"].append(tuple(pad(w, keys, length) for w in seen.attentions))
        if seen.cross_attentions is not None:
            source = self.source
            assert source is not None and source.shape is not None
            of_text = [source.columns(text) for text in texts.tolist()]
            self.record["cross_attentions"].append(
                tuple(pad(w, of_text, source.shape[1]) for w in seen.cross_attentions)
            )
        if seen.hidden_states is not None:
            states = []
            for x in map(host, seen.hidden_states):
                full = np.zeros((count, width, x.shape[1]), np.float32)
                for row, q, end in zip(at.tolist(), queries, np.cumsum(lengths).tolist(), strict=True):
                    full[row, q] = x[end - len(q) : end]
                states.append(all_rows(full))
            self.record["output_hidden_states"].append(tuple(states))

    def result(self, sequences: Array, sequences_scores: Array | None = None, beam_indices: Array | None = None) -> Any:
        if not self.options.return_dict_in_generate:
            return sequences
        shown = {name.removeprefix("output_"): tuple(steps) for name, steps in self.record.items()}
        first = {name: shown.pop(name, None) for name in ("scores", "logits")}
        if self.source is not None:
            own = {"attentions": "decoder_attentions", "hidden_states": "decoder_hidden_states"}
            shown = {own.get(name, name): steps for name, steps in shown.items()}
            source, heads = self.source, self.model.encoder.heads
            if self.texts and self.encoder.hidden_states is not None:
                shown["encoder_hidden_states"] = tuple(source.pad(x) for x in self.encoder.hidden_states)
            if self.texts and self.encoder.attentions is not None:
                shown["encoder_attentions"] = tuple(source.pad_pairs(w, heads) for w in self.encoder.attentions)
        return ModelOutput(
            sequences=sequences, sequences_scores=sequences_scores, **first, beam_indices=beam_indices, **shown
        )

    def padded(self, texts: Iterable[int], made: Sequence[Array]) -> Array:
        """(n, P + longest): the prompts of some texts and what was made of them."""
        self.made = np.array([len(tokens) for tokens in made], np.int64)
        longest = max(map(len, made), default=0)
        result = np.full((len(made), self.prompt + longest), self.pad)
        for row, text, tokens in zip(result, texts, made, strict=True):
            row[: self.prompt] = self.shown[text]
            row[self.prompt : self.prompt + len(tokens)] = tokens
        return result
