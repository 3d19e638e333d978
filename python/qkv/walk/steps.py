"""What a trace is made of: steps, one for each thing that is computed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from ..batching import check_integer
from .words import STEPS

if TYPE_CHECKING:
    import os

    from ..outputs import ModelOutput
    from ..view.document import Page

Array = np.ndarray[Any, Any]

LIMIT = 1 << 30  # bytes of all values
SOURCES = {
    "recorded": "as the model computed it",
    "repeated": "fused into the step that follows; the same kernel once more, without that",
    "recomputed": "inside the kernel, which keeps none of it; worked out in NumPy",
}


def fits(nbytes: int, what: str, advice: str = "choose some of the layers and heads, or a shorter text") -> None:
    """ValueError: so many bytes are too much."""
    if nbytes > LIMIT:
        raise ValueError(f"trace: {what} hold more than {LIMIT >> 30} GiB of numbers; {advice}")


class Rows:
    """Some rows of a packed weight, as (n, in): an input of steps where one product makes queries, keys and values."""

    def __init__(self, weight: Any, start: int, stop: int):
        self.weight, self.start, self.stop = weight, start, stop

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.stop - self.start, *self.weight.shape[1:])

    @property
    def dtype(self) -> Any:
        return self.weight.dtype

    @property
    def group_size(self) -> int | None:
        group: int | None = self.weight.group_size
        return group

    def dequantize(self) -> Array:
        """The rows as (n, in) float32."""
        whole: Array = self.weight.dequantize()
        return whole[self.start : self.stop]


@dataclass(frozen=True, eq=False)
class Step:
    """One thing that a pass computes.

    path: where it stands, such as "encoder.layer 3.self-attention.scores". formula: of its inputs' names. op: what
    computed it: "qkv.linear", or "NumPy" with what it stands in for. inputs: name -> array, packed weight
    (`.dequantize()` makes it an array) or number. value: an array, float32 where it is no ids or tokens. axes: what
    each axis of it counts; `Trace.labels` has names for some. source: "recorded" is what the model's own pass
    computed; "repeated" was fused there into what follows, and the same kernel was run again without that;
    "recomputed" never leaves the kernel, and is worked out in float64 by NumPy from the kernel's inputs. note: what
    else is to be said, such as how well that agrees with what the kernel gave out.
    """

    path: str
    formula: str
    op: str
    value: Array
    axes: tuple[str, ...]
    inputs: Mapping[str, Any] = field(default_factory=dict)
    source: str = "recorded"
    note: str = ""

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rpartition(".")[2]

    @property
    def section(self) -> tuple[str, ...]:
        """The parts of the path before the name."""
        return tuple(self.path.split(".")[:-1])

    @property
    def about(self) -> str:
        """What the step is for, in a sentence or two; "" where the name says it."""
        return STEPS.get(re.sub(r" \d+$", "", self.name), "")

    @property
    def shape(self) -> tuple[int, ...]:
        shape: tuple[int, ...] = self.value.shape
        return shape

    @property
    def dtype(self) -> np.dtype[Any]:
        dtype: np.dtype[Any] = self.value.dtype
        return dtype

    @property
    def norm(self) -> float | None:
        """The square root of the sum of the squares, of finite values; None where there are no floats."""
        if self.value.dtype.kind != "f":
            return None
        finite = self.value[np.isfinite(self.value)].astype(np.float64)
        return float(np.sqrt(np.square(finite).sum()))

    def __repr__(self) -> str:
        return f"<Step {self.path}: {self.formula}, {self.value.shape} {self.value.dtype}, {self.op}>"


class Trace(Sequence[Step]):
    """The steps of a pass, in order; trace["layer 0.self-attention.scores"] is one by its path, trace[3] by its number.

    title: of the page, the text and, of a model that was loaded here, its name; subtitle: the model's class and the
    type of its weights. labels: axis -> the names along it: "token" the tokens, "target" a decoder's beside an encoder,
    "head" the heads that were chosen. output: what the model returned, a `ModelOutput` with hidden states and
    attentions. heads: how many of them the plain text shows numbers of.
    """

    def __init__(
        self,
        steps: Sequence[Step],
        title: str,
        subtitle: str,
        labels: Mapping[str, list[str]],
        output: ModelOutput,
        heads: int = 1,
    ):
        self.steps = tuple(steps)
        self.title, self.subtitle = title, subtitle
        self.labels = dict(labels)
        self.output, self.heads = output, heads
        self._by_path = {step.path: step for step in self.steps}

    @property
    def paths(self) -> list[str]:
        return list(self._by_path)

    @overload
    def __getitem__(self, at: int | str) -> Step: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Step]: ...
    def __getitem__(self, at: int | str | slice) -> Step | Sequence[Step]:
        if not isinstance(at, str):
            return self.steps[at]
        if at not in self._by_path:
            import difflib

            near = difflib.get_close_matches(at, self._by_path, n=1)
            raise KeyError(f"trace: there is no step {at!r:.99}{f'; there is {near[0]!r}' if near else ''}")
        return self._by_path[at]

    def __contains__(self, step: object) -> bool:
        """A step, or a path."""
        return step in (self._by_path if isinstance(step, str) else self.steps)

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[Step]:
        return iter(self.steps)

    def __repr__(self) -> str:
        return f"<Trace of {self.title} ({self.subtitle}): {len(self)} steps>"

    def text(self, *, numbers: int = 6, rows: int = 1) -> str:
        """Plain text: a line or two for each step, more where heads were chosen. numbers: how many are shown of a row.
        rows: how many rows, of each head that was chosen, else of the first. ValueError: one of them is below 0."""
        from .text import text

        for name, count in (("numbers", numbers), ("rows", rows)):
            check_integer("trace", name, count, 0)
        return text(self, numbers, rows)

    def __str__(self) -> str:
        return self.text()

    def to_html(self, path: str | os.PathLike[str] | None = None, title: str | None = None) -> Page:
        """One HTML file that shows the steps, complete in itself; returned as text, and written where path is given.
        ValueError: it would be larger than 10 MB."""
        from ..view.document import Page
        from .assemble import page

        made = Page(page(self, self.title if title is None else title))
        if path is not None:
            Path(path).write_text(made, encoding="utf-8")
        return made

    def _repr_html_(self) -> str:
        """For notebooks: the outline, in a box that scrolls."""
        import html

        style = "max-height:24em;overflow:auto;font-size:0.85em;line-height:1.35;white-space:pre"
        return f'<pre style="{style}">{html.escape(self.text(rows=0))}</pre>'
