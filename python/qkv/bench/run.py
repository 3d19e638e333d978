"""The run of a benchmark: limits first, then suites, a table as it grows, JSON at the end.

Used by `qkv bench` and by the repository's bench/.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from . import bert, suites
from .core import Case, Measurement, Suite, measure
from .machine import Limits, describe, measure_limits
from .report import document, header, limits_lines, row, write_json
from .sides import Sides

Say = Callable[[str], None]


def say(line: str) -> None:
    print(line, flush=True)


def positive(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    """An argparse type: a number above 0."""

    def parse(text: str) -> Any:
        value = kind(text)
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"must be positive, got {text}")
        return value

    parse.__name__ = kind.__name__
    return parse


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options that `qkv bench` and `python -m bench` share."""
    parser.add_argument("--json", metavar="FILE", help="write everything measured as JSON")
    parser.add_argument(
        "--rounds", type=positive(int), default=5, help="rounds, in which the sides take turns (default 5)"
    )
    parser.add_argument("--seconds", type=positive(float), default=0.05, help="of a side in a round (default 0.05)")
    parser.add_argument("--threads", type=positive(int), help="for every side; default: each library's own choice")


def set_threads(threads: int | None) -> None:
    """For the limits, which are measured in this process."""
    if threads is not None:
        from .. import runtime

        runtime.set_num_threads(threads)


def run_suites(
    chosen: Sequence[tuple[Suite, Sequence[Case]]],
    sides: Sides,
    limits: Limits,
    *,
    rounds: int,
    seconds: float,
    out: Say = say,
) -> list[Measurement]:
    results = []
    for suite, cases in chosen:
        names = [side for side in sides.names if side in suite.sides]
        out("")
        out(header(suite.name, names))
        for case in cases:
            memory = any(name in Limits.MEMORY for phase in case.bounds for name in phase)
            before = measure_limits(repeats=5, arithmetic=limits) if memory else None
            result = measure(suite, case, sides, rounds=rounds, seconds=seconds, names=names)
            result.near = before and before.best(measure_limits(repeats=5, arithmetic=limits))
            results.append(result)
            for line in row(result, names, limits):
                out(line)
    return results


def first_limits(out: Say = say) -> Limits:
    limits = measure_limits()
    for line in limits_lines(limits):
        out(line)
    return limits


def final_limits(first: Limits, out: Say = say) -> Limits:
    """Measured again, because a busy neighbour may have been there the first time."""
    limits = first.best(measure_limits())
    # those of memory were measured beside each case
    arithmetic = [name for name in limits.UNITS if name not in limits.MEMORY]
    if any(getattr(limits, name) > 1.03 * getattr(first, name) for name in arithmetic):
        out("")
        out("the limits are higher now than at the start, so shares above are too high; the JSON has these")
        for line in limits_lines(limits):
            out(line)
    return limits


def finish(
    arguments: argparse.Namespace,
    first: Limits,
    results: Sequence[Measurement],
    more: Mapping[str, Any] | None = None,
    out: Say = say,
) -> Limits:
    """Measures the limits again and writes the JSON if the options ask for it. more: further entries of it."""
    limits = final_limits(first, out) if results else first
    if arguments.json:
        write_json(arguments.json, {**document(describe(), limits, results), **(more or {})})
        out("")
        out(f"written: {arguments.json}")
    return limits


def available() -> Mapping[str, Suite]:
    """The suites of `qkv bench`."""
    return {**suites.SUITES, **bert.SUITES}


def command(arguments: argparse.Namespace) -> None:
    """`qkv bench`: arguments of `add_options`, and ops (names from `available`, or "limits") and model."""
    chosen = available()
    names = arguments.ops or list(chosen)
    for name in names:
        if name != "limits" and name not in chosen:
            raise ValueError(f"bench: no {name!r}; there are limits, {', '.join(chosen)}")
    plan: list[tuple[Suite, Sequence[Case]]] = []
    for name in dict.fromkeys(names):
        if name == "limits":
            continue
        cases = chosen[name].cases()
        if name == "bert" and arguments.model:
            cases += bert.cases(arguments.model)
        plan.append((chosen[name], cases))
    set_threads(arguments.threads)
    limits = first_limits()
    results: list[Measurement] = []
    if plan:
        with Sides(["qkv", "numpy"], threads=arguments.threads) as sides:
            results = run_suites(plan, sides, limits, rounds=arguments.rounds, seconds=arguments.seconds)
    finish(arguments, limits, results)
