"""What all pipelines share: options, batches by tokens, results in the order of the inputs, lists and iterators."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from itertools import islice
from typing import Any, ClassVar

import numpy as np

from ..batching import batches
from ..models.base import Model
from ..text import Tokenizer


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
    window: ClassVar[int] = 1024  # inputs of a list that are prepared at a time, so that a long one fills no memory

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
        self.batch_size = _positive(task, batch_size)
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

        batch_size: as of the constructor. show_progress_bar: write to standard error how many of a list are done.
        ValueError, TypeError: an input or option that is wrong.
        """
        o = self.read(options)
        size = _positive(self.task, batch_size) or self.batch_size
        if isinstance(inputs, Iterator):
            return self._results(inputs, o, size, size or 1)
        if not isinstance(inputs, list) or self.is_one(inputs, o):
            return next(self._results([inputs], o, size))
        results = []
        for result in self._results(inputs, o, size):
            results.append(result)
            if show_progress_bar:
                end = "\n" * (len(results) == len(inputs))
                print(f"\r{self.task}: {len(results)} of {len(inputs)}", end=end, file=sys.stderr)
        return results

    def each(self, lists: Iterable[list[Any]], **options: Any) -> Iterator[Any]:
        """The results of inputs that come in lists, each of which is computed together, one after the other."""
        o = self.read(options)
        for inputs in lists:
            yield from self._results(inputs, o, self.batch_size)

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

    def _results(self, inputs: Any, o: Any, size: int | None, window: int | None = None) -> Iterator[Any]:
        stream = iter(inputs)
        while chunk := list(islice(stream, window or self.window)):
            yield from self._window(chunk, o, size)

    def _window(self, inputs: list[Any], o: Any, size: int | None) -> list[Any]:
        rows = self.prepare(inputs, o)
        places = [(i, k) for i, of_input in enumerate(rows) for k in range(len(of_input))]
        outputs: list[list[Any]] = [[None] * len(of_input) for of_input in rows]
        missing = [len(of_input) for of_input in rows]
        results: list[Any] = [None] * len(inputs)
        for batch in batches([self.length(rows[i][k]) for i, k in places], size):
            computed = self.forward([rows[i][k] for i, k in (places[n] for n in batch)], o)
            for n, output in zip(batch, computed, strict=True):
                i, k = places[n]
                outputs[i][k] = output
                missing[i] -= 1
                if not missing[i]:  # at once, so that outputs need not wait for the whole list
                    results[i] = self.finish(inputs[i], rows[i], outputs[i], o)
                    outputs[i] = rows[i] = []
        return results


def _positive(task: str, value: Any) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise ValueError(f"{task}: batch_size must be a positive integer; got {value!r}")
    return int(value)
