"""A trace as plain text, for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .steps import Array, Step, Trace

INDENT = "  "


def text(trace: Trace, numbers: int, rows: int) -> str:
    lines: list[str] = [trace.title, trace.subtitle]
    section: tuple[str, ...] = ()
    for step in trace:
        if step.section != section:
            shared = 0
            while shared < min(len(section), len(step.section)) and section[shared] == step.section[shared]:
                shared += 1
            if len(step.section) == shared:
                lines.append("")
            for depth in range(shared, len(step.section)):
                lines += ["", INDENT * depth + step.section[depth]]
            section = step.section
        lines += _step(step, trace, INDENT * len(section), numbers, rows)
    return "\n".join(printable(line) for line in lines)


def _step(step: Step, trace: Trace, indent: str, numbers: int, rows: int) -> list[str]:
    norm = "" if step.norm is None else f"  norm {step.norm:.4g}"
    head = f"{indent}{step.name}: {step.formula}".rstrip(": ") if step.formula else f"{indent}{step.name}"
    line = f"{head}  {shape(step)}{norm}"
    if step.op:
        line += f"  [{source(step)}]"
    lines = [line]
    if rows:
        lines += [f"{indent}{INDENT}{row}" for row in preview(step, trace, numbers, rows)]
    if step.note:
        lines.append(f"{indent}{INDENT}({step.note})")
    return lines


def source(step: Step) -> str:
    """What computed it, in a few words."""
    if step.source == "repeated":
        return f"{step.op}, fused with the next step"
    if step.source == "recomputed":
        return f"NumPy; inside {step.op}" if step.op.startswith("qkv.") else step.op
    return step.op


def shape(step: Step) -> str:
    """(12 heads, 9 tokens, 64 features) and the dtype"""
    counts = [counted(n, axis) for n, axis in zip(step.shape, step.axes, strict=True)]
    kind = "" if step.dtype.kind in "UO" else f" {step.dtype}"
    return f"({', '.join(counts)}){kind}"


def counted(n: int, axis: str) -> str:
    """So many of what an axis counts."""
    word = {"target": "target token"}.get(axis, axis)
    return f"{n} {word if n == 1 else word + ('es' if word.endswith('h') else 's')}"


def preview(step: Step, trace: Trace, numbers: int, rows: int) -> list[str]:
    """The first numbers of the first rows, of the heads that were chosen or the first one, with their labels."""
    value, axes = step.value, step.axes
    if not value.size:  # none of the chosen heads is in this stack
        return []
    if value.ndim > 2:
        count = trace.heads if axes[0] == "head" else 1
        return [
            f"{axes[0]} {label(trace, axes[0], i)}, {line}"
            for i, part in enumerate(value[:count])
            for line in _preview(trace, part, axes[1:], numbers, rows)
        ]
    return _preview(trace, value, axes, numbers, rows)


def _preview(trace: Trace, value: Array, axes: Sequence[str], numbers: int, rows: int) -> list[str]:
    if value.ndim < 2 and axes[0] in ("label", "candidate", "likeliest label", "likely label", "next token"):
        named = (f"{label(trace, axes[0], i)} {number(x)}" for i, x in enumerate(value[: 2 * numbers]))
        return [", ".join(named)]
    if value.ndim < 2:
        return [_numbers(value, numbers if value.dtype.kind != "U" else 4 * numbers)]
    return [f"{label(trace, axes[0], i)}: {_numbers(value[i], numbers)}" for i in shown(trace, axes, len(value), rows)]


def shown(trace: Trace, axes: Sequence[str], count: int, rows: int) -> range:
    """So many rows of a preview: the first, but the last of logits from whose last row the next token comes."""
    start = max(count - rows, 0) if axes[-1] == "logit" and "next token" in trace.labels else 0
    return range(start, min(start + rows, count))


def label(trace: Trace, axis: str, i: int) -> str:
    """The name of a place along an axis, else its number."""
    names = trace.labels.get(axis)
    return readable(names[i]) if names is not None and i < len(names) else str(i)


def readable(token: str) -> str:
    """What does not print by a sign, as the pages' scripts have it."""
    if not token.strip(" "):
        return "␣" * len(token) or "∅"
    first = "·" if token[0] in "▁Ġ" else token[0]
    return (first + token[1:]).replace("\n", "↵").replace("\t", "⇥")


def _numbers(row: Array, numbers: int) -> str:
    shown = " ".join(number(value) for value in row[:numbers])
    return shown + (" …" if len(row) > numbers else "")


def number(value: Any) -> str:
    if isinstance(value, (str, np.str_)):
        return readable(str(value))
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    if isinstance(value, (int, np.integer)):
        return str(value)
    if np.isinf(value):
        return "−∞" if value < 0 else "∞"
    return f"{value:.4g}".replace("-", "−")


def printable(line: str) -> str:
    """Text is untrusted, and a terminal obeys control characters."""
    return "".join(char if char.isprintable() else "�" for char in line)
