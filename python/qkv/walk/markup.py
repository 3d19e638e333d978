"""The part of a trace's page that is there without scripts: its outline, formulas, and a few numbers of each step."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import groupby
from typing import Any

import numpy as np

from ..view.choices import shortened
from ..view.document import escaped
from .steps import SOURCES, Step, Trace
from .text import counted, label, number, shown
from .words import SECTIONS

SUBLAYERS = ("self-attention", "cross-attention", "feed-forward")
OPEN = ("ids", "weights", "likeliest tokens", "next token", "most likely tokens", "label")  # steps, from the first
ROWS, COLUMNS = 4, 6  # of the numbers that are shown
LONG = 60  # tokens of a list


def part_of(step: Step) -> tuple[str, ...]:
    """Which of the page's parts a step is in: a layer, or what is before and after the layers."""
    section = step.section
    if section[-1:] and section[-1] in SUBLAYERS:
        return section[:-1]
    return (
        section if section and section[-1:] != ("encoder",) and section[-1:] != ("decoder",) else (*section, step.name)
    )


def parts(trace: Trace) -> Iterator[tuple[str, list[tuple[int, Step]]]]:
    for key, group in groupby(enumerate(trace), key=lambda item: part_of(item[1])):
        name = " · ".join(key)
        yield name[:1].upper() + name[1:], list(group)


def summary(trace: Trace) -> str:
    counts = [
        f"{len(trace.labels[axis])} {text}"
        for axis, text in (("token", "tokens"), ("target", "target tokens"))
        if axis in trace.labels
    ]
    return escaped(" · ".join([trace.subtitle, *counts, f"{len(trace)} steps"]))


def contents(trace: Trace) -> str:
    return "\n".join(f'<li><a href="#part-{i}">{escaped(name)}</a></li>' for i, (name, _) in enumerate(parts(trace)))


def outline(trace: Trace) -> str:
    made, stacks = [], set()  # whose first layer is there
    for i, (name, steps) in enumerate(parts(trace)):
        section = steps[0][1].section
        layer = section[-1] in SUBLAYERS if section else False
        first = not layer or section[:-2] not in stacks
        if layer:
            stacks.add(section[:-2])
        groups = []
        for section, group in groupby(steps, key=lambda item: item[1].section[-1:]):
            words = SECTIONS.get(section[0] if section else "", "")
            title = f"<h3>{escaped(section[0])}</h3>" if section and section[0] in SUBLAYERS else ""
            about = f'<p class="about">{escaped(words)}</p>' if words else ""
            items = "\n".join(_step(at, step, trace, first and step.name in OPEN) for at, step in group)
            groups.append(f'<div class="group">{title}{about}\n{items}\n</div>')
        count = f"{len(steps)} step{'s' if len(steps) > 1 else ''}"
        heading = f'<summary><h2>{escaped(name)}</h2> <span class="count">{count}</span></summary>'
        opened = " open" if first else ""
        made.append(f'<details class="part" id="part-{i}"{opened}>\n{heading}\n{"".join(groups)}</details>')
    return "\n".join(made)


def _step(i: int, step: Step, trace: Trace, opened: bool) -> str:
    facts = [("Computed by", _source(step)), ("From", _inputs(step)), ("Shape", _shape(step))]
    if step.norm is not None:
        facts.append(("Norm", f"‖·‖ = {step.norm:.5g}"))
    if step.note:
        facts.append(("Note", escaped(step.note)))
    rows = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts if value)
    about = f'<p class="about">{escaped(step.about)}</p>' if step.about else ""
    words = escaped(SOURCES[step.source])
    marked = "" if step.source == "recorded" else f'<span class="mark" title="{words}">inside</span>'
    heading = (
        f'<span class="name">{escaped(step.name)}</span> {marked} <span class="formula">{formula(step.formula)}</span> '
        f'<span class="size">{_size(step)}</span>'
    )
    attributes = f'class="step" id="step-{i}" data-step="{i}"{" open" if opened else ""}'
    return (
        f"<details {attributes}>\n<summary>{heading}</summary>\n"
        f'<div class="body">{about}<div class="picture"></div>{_numbers(step, trace)}<dl>{rows}</dl></div>\n</details>'
    )


def formula(text: str) -> str:
    """With raised and lowered parts, and letters in italics."""
    made = escaped(text)
    made = re.sub(r"\^\(([^()]*)\)", r"<sup>\1</sup>", made)
    made = re.sub(r"\^(\w)", r"<sup>\1</sup>", made)
    made = re.sub(r"_(\w)", r"<sub>\1</sub>", made)
    return re.sub(r"(?<![\w&;/<])([A-Za-zθγβεΦ])(?![A-Za-z0-9;>])", r"<i>\1</i>", made)


def _source(step: Step) -> str:
    words = "" if step.source == "recorded" else f" ({escaped(SOURCES[step.source])})"
    return f"<code>{escaped(step.op)}</code>{words}" if step.op else ""


def _inputs(step: Step) -> str:
    made = []
    for name, value in step.inputs.items():
        shape = getattr(value, "shape", None)
        if isinstance(value, str):
            described = f" “{escaped(shortened(value))}”"
        elif shape is None or not shape:
            described = f" = {escaped(number(value) if isinstance(value, (int, float)) else str(value))}"
        else:
            kind = "" if str(value.dtype) == "float32" else f" {escaped(str(value.dtype))}"
            described = f" {'×'.join(map(str, shape))}{kind}"
        made.append(f"<span>{formula(name)}{described}</span>")
    return ", ".join(made)


def _size(step: Step) -> str:
    return escaped(" × ".join(counted(n, axis) for n, axis in zip(step.shape, step.axes, strict=True)))


def _shape(step: Step) -> str:
    kind = "text" if step.dtype.kind in "UO" else str(step.dtype)
    return escaped(f"({', '.join(map(str, step.shape))}{',' if len(step.shape) == 1 else ''}) {kind}")


def _numbers(step: Step, trace: Trace) -> str:
    value, axes = step.value, step.axes
    if not value.size:  # none of the chosen heads is in this stack
        return ""
    if value.ndim == 1 and len(value) <= LONG and axes[0] in trace.labels:  # one for each token
        names = [label(trace, axes[0], i) for i in range(len(value))]
        ids = "" if value.dtype.kind == "U" else "<small>{}</small>"
        items = (
            f"<li><span>{escaped(name)}</span>{ids.format(escaped(number(x)))}</li>"
            for name, x in zip(names, value, strict=True)
        )
        return f'<ul class="tokens">{"".join(items)}</ul>'
    where = ""
    while value.ndim > 2:
        where += f"{axes[0]} {label(trace, axes[0], 0)}, "
        value, axes = value[0], axes[1:]
    names = [label(trace, axes[0], i) for i in range(len(value))] if value.ndim == 2 else [""]
    rows: Any = value if value.ndim == 2 else value[None]
    body = []
    which = shown(trace, axes, len(rows), ROWS)
    for name, row in ((names[i], rows[i]) for i in which):
        cells = "".join(f"<td>{escaped(number(x))}</td>" for x in row[:COLUMNS])
        more = "<td>…</td>" if len(row) > COLUMNS else ""
        body.append(f'<tr><th scope="row">{escaped(name)}</th>{cells}{more}</tr>')
    columns = axes[-1]
    heads = "".join(
        f'<th scope="col">{escaped(label(trace, columns, i))}</th>' for i in range(min(COLUMNS, np.shape(rows)[1]))
    )
    caption = (
        f"The first numbers{' of ' + where.rstrip(', ') if where else ''}{' of the last rows' if which.start else ''}"
    )
    return (
        f'<div class="numbers"><table><caption>{escaped(caption)}</caption><thead><tr><td></td>{heads}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )
