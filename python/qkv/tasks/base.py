"""What all pipelines share: options, batches by tokens, results in the order of the inputs, lists and iterators."""

from __future__ import annotations

import difflib
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from itertools import count, islice
from typing import Any, ClassVar

from ..batching import batches, check_integer, show_progress
from ..models.base import Model
from ..text import Tokenizer

PART = 16  # inputs that are prepared in one piece
LONG = 100  # inputs of a list whose progress is shown
SELDOM = 0.1  # seconds between two times
ERRORS = (ValueError, TypeError, OSError)  # of an input
PREPARED = 1 << 17  # tokens that are prepared at a time, about, so that a long list fills no memory


class Pipeline:
    """A model with what comes before and behind it for a task.

    A call takes one input, a list of them, whose results come as a list, or an iterator, whose results come as an
    iterator that reads `batch_size` inputs ahead (1, if nobody says anything). An input becomes rows (`prepare`), the
    model computes rows of any inputs together (`forward`), and an input's outputs become its result (`finish`). No
    result depends on what else is computed with it.

    Options: a frozen dataclass with the options of a call and their defaults, checked in its __post_init__. What is
    given to the constructor is the default of every call. NONE: options for which None is a value of its own;
    otherwise it means that nothing is given. ValueError: an unknown option.
    """

    Options: ClassVar[type[Any]]
    NONE: ClassVar[frozenset[str]] = frozenset()
    window: ClassVar[int] = 1024  # inputs of a list that are prepared at a time, at most

    def __init__(
        self,
        model: Model,
        tokenizer: Tokenizer | None = None,
        *,
        task: str,
        batch_size: int | None = None,
        **options: Any,
    ):
        self.model = model
        self.task = task  # the name that the user gave
        check_integer(task, "batch_size", batch_size)
        self.batch_size = batch_size
        self._tokenizer = tokenizer
        self.defaults: dict[str, Any] = {}
        self.read(options)
        self.defaults = options

    @property
    def tokenizer(self) -> Tokenizer:
        return self.model.tokenizer if self._tokenizer is None else self._tokenizer

    def __call__(
        self, inputs: Any, *, batch_size: int | None = None, show_progress_bar: bool | None = None, **options: Any
    ) -> Any:
        """The result of one input, a list of results of a list, or an iterator over those of an iterator.

        batch_size: as of the constructor. show_progress_bar: write to standard error how many of a list are done; None:
        of a long one, where that is a terminal.
        ValueError, TypeError: an input or option that is wrong.
        """
        o = self.read(options)
        check_integer(self.task, "batch_size", batch_size)
        size = batch_size or self.batch_size
        if isinstance(inputs, Iterator):
            return self._results(inputs, o, size, window=size or 1)
        if not isinstance(inputs, list) or self.is_one(inputs, o):
            return next(self._results([inputs], o, size))
        shown = len(inputs) >= LONG and sys.stderr.isatty() if show_progress_bar is None else show_progress_bar
        finished, last = count(1), 0.0

        def note() -> None:
            nonlocal last
            done, now = next(finished), time.monotonic()
            if shown and (done == len(inputs) or now - last >= SELDOM):
                last = now
                show_progress(f"{self.task}:", done, len(inputs))

        return list(self._results(inputs, o, size, note=note))

    def each(self, lists: Iterable[list[Any]], **options: Any) -> Iterator[Any]:
        """The results of inputs that come in lists, each of which is computed together, one after the other. Where an
        input is wrong, the results of those before it come first, and then its error."""
        o = self.read(options)
        for inputs in lists:
            yield from self._results(inputs, o, self.batch_size, before_error=True)

    # ---- what a task's class says ------------------------------------------------------------------

    def is_one(self, inputs: list[Any], o: Any) -> bool:
        """Whether a list is one input, such as a chat, and not several."""
        return False

    def prepare(self, inputs: list[Any], o: Any) -> list[list[Any]]:
        """The rows of each input: what the model computes in one piece. ValueError, TypeError: an input is wrong."""
        raise NotImplementedError

    def length(self, row: Any) -> int:
        """The tokens of a row, as far as they make work."""
        raise NotImplementedError

    def forward(self, rows: list[Any], o: Any) -> Sequence[Any]:
        """One output for each row."""
        raise NotImplementedError

    def finish(self, given: Any, rows: list[Any], outputs: list[Any], o: Any) -> Any:
        """The result of an input, from its rows and their outputs."""
        raise NotImplementedError

    def read(self, given: Mapping[str, Any]) -> Any:
        """The options of a call as an object of `Options`."""
        known = [field.name for field in fields(self.Options)]
        for name in given:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                advice = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
                raise ValueError(f"{self.task}: there is no option {name}; {advice}")
        merged = {**self.defaults, **{name: v for name, v in given.items() if v is not None or name in self.NONE}}
        return self.Options(**{name: v for name, v in merged.items() if v is not None or name in self.NONE})

    # ---- the way through them ----------------------------------------------------------------------

    def _results(
        self,
        inputs: Iterable[Any],
        o: Any,
        size: int | None,
        *,
        window: int | None = None,
        note: Callable[[], None] = lambda: None,
        before_error: bool = False,
    ) -> Iterator[Any]:
        """Of each input its result, in order. window: inputs that are read at a time. note: called for each that is
        finished, in any order. before_error: also the results of all inputs before one that is wrong."""
        stream = iter(inputs)
        while True:
            given, rows, error = self._prepared(stream, o, window or self.window, before_error)
            if given:
                yield from self._window(given, rows, o, size, note, before_error)
            if error is not None:
                raise error
            if not given:
                return

    def _prepared(
        self, stream: Iterator[Any], o: Any, most: int, before_error: bool
    ) -> tuple[list[Any], list[list[Any]], Exception | None]:
        """The next inputs, `most` or so many that they make up PREPARED tokens, and the rows of each: an input may be a
        word, or a book in hundreds of windows. before_error: up to one that is wrong, whose error comes along."""
        given: list[Any] = []
        rows: list[list[Any]] = []
        tokens = 0
        size = 1 if before_error else PART
        while tokens < PREPARED and (part := list(islice(stream, min(size, most - len(given))))):
            try:
                made = self.prepare(part, o)
            except ERRORS as error:
                if before_error:
                    return given, rows, error
                raise
            tokens += sum(self.length(row) for of_input in made for row in of_input)
            given += part
            rows += made
        return given, rows, None

    def _window(
        self,
        inputs: list[Any],
        rows: list[list[Any]],
        o: Any,
        size: int | None,
        note: Callable[[], None],
        before_error: bool,
    ) -> Iterator[Any]:
        places = [(i, k) for i, of_input in enumerate(rows) for k in range(len(of_input))]
        outputs: list[list[Any]] = [[None] * len(of_input) for of_input in rows]
        missing = [len(of_input) for of_input in rows]
        results: list[Any] = [None] * len(inputs)

        def compute(places: list[tuple[int, int]]) -> None:
            for batch in batches([self.length(rows[i][k]) for i, k in places], size):
                computed = self.forward([rows[i][k] for i, k in (places[n] for n in batch)], o)
                for n, output in zip(batch, computed, strict=True):
                    i, k = places[n]
                    outputs[i][k] = output
                    missing[i] -= 1
                    if not missing[i]:  # at once, so that outputs need not wait for the whole list
                        results[i] = self.finish(inputs[i], rows[i], outputs[i], o)
                        outputs[i] = rows[i] = []
                        note()

        try:
            compute(places)
        except ERRORS:
            if not before_error:
                raise
        for i, result in enumerate(results):
            if missing[i]:  # there was an error, of this input or of another one
                missing[i] = len(rows[i])
                compute([(i, k) for k in range(len(rows[i]))])
                result = results[i]
            yield result
