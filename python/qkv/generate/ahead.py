"""Tokens that a GPU chooses, greedily or by filters and random numbers: inside of a recorded step, whose successor
reads them where they are. So a step needs nothing of the host, which reads its tokens while the next one runs.

A step that goes through Python takes its tokens from the host, as it would without this: the first, one that needs a
new block of the cache, one after rows have left, of sampled ones every sixteenth, and all where text or time may stop
them.

Where all rows end by a token, one step more is launched than was needed: to know better is to wait for the tokens
before the next step is launched, which is what running ahead avoids. Nobody waits for it: it is the device's time alone
that is lost, before the work that comes next in the stream. Where max_length ends them there is none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import cuda
from ..cuda_ops import argmax, sample
from ..layers import Array
from .rows import CachedRows

AHEAD = 16  # steps whose random numbers go to the device at once


class Choice:
    """What a step's rows are chosen by, as `Chooser` of qkv.capture: (logits (n, V), out (n,)). streams: of random
    numbers, one for each of all rows; none: the largest is chosen."""

    def __init__(self, streams: Sequence[Any], filters: dict[str, Any]):
        self.streams, self.filters = streams, filters
        self.made = np.zeros((len(streams), 0))  # numbers that no step has had yet
        self.drawn = cuda.empty(len(streams), np.float64)  # the next step's, where it reads them
        self.sent: Any = ()

    def __call__(self, logits: Any, out: Any) -> None:
        if self.streams:
            sample(logits, self.drawn[: len(logits)], **self.filters, out=out)
        else:
            argmax(logits, out=out)

    def send(self, rows: Array) -> None:
        """The next steps' numbers, of some of the rows, to the device."""
        if self.streams:
            if (missing := AHEAD - self.made.shape[1]) > 0:
                new = np.array([stream.random(missing) for stream in self.streams])
                self.made = np.concatenate([self.made, new], axis=1)
            self.sent = list(cuda.array(np.ascontiguousarray(self.made[rows].T)))

    def load(self) -> bool:
        """A step's numbers where it reads them, if there are any; it is to be followed by `taken`."""
        if self.streams and self.sent:
            cuda.copy_into(self.drawn[: len(self.sent[0])], self.sent[0])
        return bool(self.sent) or not self.streams

    def taken(self) -> None:
        if self.streams:
            del self.sent[0]
            self.made = self.made[:, 1:]


class Ahead:
    """Rows that go on by tokens which the GPU chooses; `decoding` is used through this alone once it has started.

    logits: of what follows the prompts. looks_on: whether a step may run before the host has seen the tokens of the one
    before: of rows that end with these its own count for nothing."""

    def __init__(
        self, decoding: CachedRows, logits: Any, streams: Sequence[Any], filters: dict[str, Any], looks_on: bool
    ):
        self.decoding, self.logits, self.looks_on = decoding, logits, looks_on
        self.device = decoding.cache.place.current
        with self.device():
            self.choice = Choice(streams, filters)
        assert decoding.captured is not None
        self.captured = decoding.captured
        self.captured.choose = self.choice
        self.captured.last = None  # a step of the prompt, where one token of it was left: it chooses nothing
        self.flying: Any = None  # tokens that are on their way
        self.kept: Array | None = None  # of which rows, where others have left since
        self.boxes: tuple[Any, list[Any]] = None, []  # a recorded step, and two ways for its tokens

    def tokens(self, following: Sequence[int], rows: Array, more: bool) -> Array:
        """The next tokens (n,) behind these, at first behind the prompts. rows: the numbers of those that there are.
        more: others will be asked for, unless no row is left."""
        found, kept = self.flying, self.kept
        self.flying = self.kept = None
        with self.device():
            if found is None:
                found = self._now(following, rows)
            # launched before the tokens of the step before are looked at, which may all end their rows
            if more and self.looks_on and kept is None and self.choice.load() and self.decoding.goes_on():
                self.flying = self._fetched()
        tokens: Array = found.numpy()
        tokens = tokens if kept is None else tokens[kept]
        if (tokens < 0).any():
            raise ValueError("generate: there is no token to draw, as the largest score is not finite")
        return tokens

    def select(self, kept: Array) -> None:
        """These rows go on."""
        self.decoding.select(kept)
        self.boxes = None, []  # or the old recording and its memory lived beside the next one
        self.kept = None if self.flying is None else kept

    def _now(self, following: Sequence[int], rows: Array) -> Any:
        self.choice.send(rows)
        self.choice.load()
        logits, self.logits = self.logits, None
        if logits is None:
            logits = self.decoding.step(following)
            found = self._fetched()
            if found is not None:
                return found
        found = cuda.empty(len(logits), np.int64)
        self.choice(logits, found)
        self.choice.taken()
        return found

    def _fetched(self) -> Any:
        """The tokens that the last recorded step has chosen, on their way to the host; None: it was not recorded."""
        last = self.captured.last
        if last is None:
            return None
        if self.boxes[0] is not last:
            self.boxes = last, [cuda.module().Fetched(last.numbers.there[0]) for _ in range(2)]
        self.choice.taken()
        box = self.boxes[1][0]
        self.boxes[1].reverse()
        box.start(cuda.current_stream())
        return box
