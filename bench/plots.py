"""One picture for each suite: the rate of every side over the cases, and the limit of the machine. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from qkv.bench import Limits, Measurement


def plot(results: Sequence[Measurement], limits: Limits, folder: Path) -> list[Path]:
    """Writes folder/<suite>.png and returns the paths."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for suite, group in groupby(results, key=lambda m: m.suite):
        cases = [m for m in group if m.case.work]
        sides = list(dict.fromkeys(side for m in cases for side in m.rounds))
        if not sides:
            continue
        figure, axes = pyplot.subplots(figsize=(max(6, 0.5 * len(cases)), 4.5), layout="constrained")
        for side in sides:
            rates = [m.rate(side) / 1e9 if side in m.rounds else float("nan") for m in cases]
            axes.plot(range(len(cases)), rates, marker="o", label=side)
        bounds = [getattr(limits, m.case.limit) / 1e9 if m.case.limit else float("nan") for m in cases]
        axes.plot(range(len(cases)), bounds, "k_", markersize=18, label="limit of the machine")
        axes.set_xticks(range(len(cases)), [m.case.name for m in cases], rotation=45, ha="right")
        axes.set_ylabel(" or ".join(dict.fromkeys(m.case.unit for m in cases)))
        axes.set_ylim(bottom=0)
        axes.set_title(suite)
        axes.legend()
        written.append(folder / f"{suite}.png")
        figure.savefig(written[-1], dpi=120)
        pyplot.close(figure)
    return written
