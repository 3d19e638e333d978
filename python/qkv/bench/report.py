"""Measurements as a table for people and as JSON for programs."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .core import Measurement
from .machine import Limits


def format_seconds(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}" if seconds / size < 100 else f"{seconds / size:.0f} {unit}"
    return f"{seconds * 1e9:.0f} ns"


def format_ratio(ratio: float) -> str:
    return f"{ratio:.2f}" if ratio < 100 else f"{ratio:.0f}"


def limits_lines(limits: Limits) -> list[str]:
    lines = [f"limits of this machine, {limits.threads} threads, buffers of {limits.buffer_bytes >> 20} MiB"]
    for name, unit in limits.UNITS.items():
        value = getattr(limits, name)
        lines.append(f"  {name:<11}{value / 1e9:9.1f} {unit}" if value else f"  {name:<11}        -")
    return lines


def header(suite: str, sides: Sequence[str]) -> str:
    """The line above a suite's rows. The first side is the one that the others are compared with."""
    line = f"{suite:<30}{sides[0]:>10}{'rate':>17}{'of limit':>10}"
    return line + "".join(f"{side:>14}{'ratio':>8}{'least':>8}" for side in sides[1:])


def row(m: Measurement, sides: Sequence[str], limits: Limits) -> list[str]:
    """Time, rate and share of the limit of the first side at its best; for the others their time and how many times the
    first side's it is: median and least of the pairs of rounds. Below, why a side has none, and what it did otherwise
    than the first."""
    first = sides[0]
    line = f"  {m.case.name:<28}"
    if first in m.rounds:
        share = m.share(first, limits)
        line += f"{format_seconds(m.least(first)):>10}"
        line += f"{m.speed(first):9.1f} {m.case.unit:<7}" if m.case.unit else " " * 17
        line += f"{share:>10.0%}" if share else f"{'-':>10}"
    else:
        line += f"{'-':>10}{'':17}{'-':>10}"
    for side in sides[1:]:
        line += f"{format_seconds(m.least(side)):>14}" if side in m.rounds else f"{'-':>14}"
        if side in m.rounds and first in m.rounds:
            pairs = m.ratios(side, first)
            line += f"{format_ratio(statistics.median(pairs)):>8}{format_ratio(min(pairs)):>8}"
        else:
            line += f"{'-':>8}{'-':>8}"
    return [line.rstrip(), *(f"    {note}" for note in m.notes())]


def document(machine: dict[str, Any], limits: Limits, results: Sequence[Measurement]) -> dict[str, Any]:
    return {"machine": machine, "limits": limits.as_dict(), "results": [m.as_dict(limits) for m in results]}


def write_json(path: str | Path, content: dict[str, Any]) -> None:
    Path(path).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
