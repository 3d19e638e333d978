"""Pictures of the results and the limits of the machine: over the cases, over M or S, a roofline. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from qkv.bench import Limits, Measurement

NAN = float("nan")


def sides_of(cases: Sequence[Measurement]) -> list[str]:
    return list(dict.fromkeys(side for m in cases for side in m.rounds))


def rates(cases: Sequence[Measurement], side: str) -> list[float]:
    return [m.speed(side) if side in m.rounds else NAN for m in cases]


def bounds(cases: Sequence[Measurement], limits: Limits) -> list[float]:
    """Not drawn where nothing measured bounds the case."""
    return [m.case.amount / (m.case.least_seconds(limits) or NAN) for m in cases]


def over_cases(axes: Any, cases: Sequence[Measurement], limits: Limits) -> None:
    for side in sides_of(cases):
        axes.plot(range(len(cases)), rates(cases, side), marker="o", label=side)
    axes.plot(range(len(cases)), bounds(cases, limits), "k_", markersize=18, label="limit of the machine")
    axes.set_xticks(range(len(cases)), [m.case.name for m in cases], rotation=45, ha="right")
    axes.set_ylim(bottom=0)


def over(parameter: str, axes: Any, cases: Sequence[Measurement], limits: Limits) -> None:
    """Speed over one parameter, the others as in most cases."""

    def rest(m: Measurement) -> str:
        return str(sorted((k, v) for k, v in m.case.params.items() if k != parameter))

    everything = [rest(m) for m in cases]
    common = max(everything, key=everything.count)
    line = sorted((m for m in cases if rest(m) == common), key=lambda m: m.case.params[parameter])
    at = [m.case.params[parameter] for m in line]
    for side in sides_of(line):
        axes.plot(at, rates(line, side), marker="o", label=side)
    axes.plot(at, bounds(line, limits), "k--", label="limit of the machine")
    axes.set_xscale("log", base=2)
    axes.set_xticks(at, [str(x) for x in at])
    axes.set_xlabel(parameter.upper())
    axes.set_ylim(bottom=0)


def roofline(axes: Any, cases: Sequence[Measurement], limits: Limits) -> None:
    """GFLOP/s over operations per byte that must be moved, under the two limits of the float32 work."""
    known = [m for m in cases if m.case.flops and m.case.nbytes]
    at = [m.case.flops / m.case.nbytes for m in known]
    for side in sides_of(known):
        axes.plot(at, rates(known, side), "o", alpha=0.7, label=side)
    ridge = limits.fma / limits.read
    ends = [min(*at, ridge / 4), ridge, max(*at, ridge * 4)]
    axes.plot(ends, [min(limits.fma, limits.read * x) / 1e9 for x in ends], "k-", label="limit of the machine")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("operations a byte (above the line: inside the caches)")


def plot(results: Sequence[Measurement], limits: Limits, folder: Path) -> list[Path]:
    """Writes folder/<suite>[_over_<parameter>|_roofline].png and returns the paths."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []

    def picture(name: str, cases: Sequence[Measurement], draw: Callable[..., None], width: float) -> None:
        figure, axes = pyplot.subplots(figsize=(width, 4.5), layout="constrained")
        draw(axes, cases, limits)
        axes.set_ylabel(cases[0].case.unit)
        axes.set_title(name.replace("_", " "))
        axes.grid(alpha=0.3)
        axes.legend()
        written.append(folder / f"{name}.png")
        figure.savefig(written[-1], dpi=120)
        pyplot.close(figure)

    for suite, group in groupby(results, key=lambda m: m.suite):
        cases = [m for m in group if m.case.unit and m.rounds]
        units = list(dict.fromkeys(m.case.unit for m in cases))
        for unit in units:  # operations and bytes do not share an axis
            part = [m for m in cases if m.case.unit == unit]
            name = suite if unit == units[0] else f"{suite}_bytes"
            picture(name, part, over_cases, max(6.0, 0.5 * len(part)))
            for parameter in ("m", "s", "rows"):
                if len({m.case.params.get(parameter) for m in part} - {None}) > 2:
                    with_it = [m for m in part if parameter in m.case.params]
                    picture(f"{name}_over_{parameter}", with_it, lambda *a, p=parameter: over(p, *a), 7.0)
            if len([m for m in part if m.case.flops and m.case.nbytes]) > 2 and limits.read:
                picture(f"{name}_roofline", part, roofline, 7.0)
    return written
