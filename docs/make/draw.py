"""Pictures as SVG whose colours are those of the page, light or dark."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

# By themselves pictures are dark on light; in a page the theme's variables hold.
STYLE = """
.qkv-picture text{font:12px ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
.qkv-picture text{fill:var(--md-default-fg-color,#1d2433)}
.qkv-picture .small{font-size:10px}
.qkv-picture .soft{fill:var(--md-default-fg-color--light,#5b6475)}
.qkv-picture .box{fill:var(--qkv-box,#f2f5fa);stroke:var(--qkv-line,#9aa7bd)}
.qkv-picture .grid{fill:none;stroke:var(--qkv-line,#9aa7bd);stroke-width:.5}
.qkv-picture .one{fill:var(--qkv-one,#2f6bc4)}
.qkv-picture .two{fill:var(--qkv-two,#c2570c)}
.qkv-picture .stroke-one{fill:none;stroke:var(--qkv-one,#2f6bc4)}
.qkv-picture .stroke-two{fill:none;stroke:var(--qkv-two,#c2570c)}
.qkv-picture .arrow{fill:none;stroke:var(--qkv-line,#9aa7bd)}
.qkv-picture .back{stroke:var(--qkv-two,#c2570c)}
"""


class Picture:
    """An SVG in the making, in pixels."""

    def __init__(self, width: float, height: float):
        self.width, self.height = width, height
        self._parts: list[str] = []

    def svg(self) -> str:
        size = f'viewBox="0 0 {self.width:.0f} {self.height:.0f}" width="{self.width:.0f}" height="{self.height:.0f}"'
        marker = (
            '<defs><marker id="qkv-head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
            'markerUnits="userSpaceOnUse" orient="auto"><path d="M0 0L8 4L0 8z" fill="context-stroke"/></marker></defs>'
        )
        style = f"<style>{STYLE}</style>{marker}"
        return f'<svg xmlns="http://www.w3.org/2000/svg" class="qkv-picture" {size}>{style}{"".join(self._parts)}</svg>'

    def text(self, x: float, y: float, text: str, *, anchor: str = "start", kind: str = "") -> None:
        place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
        self._parts.append(f'<text {place} class="{kind}">{html.escape(text)}</text>')

    def box(self, x: float, y: float, width: float, height: float, kind: str = "box", shade: float = 1) -> None:
        radius = ' rx="5"' if kind == "box" else ""
        opacity = "" if shade == 1 else f' fill-opacity="{shade:.3g}"'
        self._parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" class="{kind}"{radius}{opacity}/>'
        )

    def arrow(self, path: str, *, width: float = 1.2, back: bool = False, title: str = "") -> None:
        kind = "arrow back" if back else "arrow"
        head = 'marker-end="url(#qkv-head)"'
        told = f"<title>{html.escape(title)}</title>"
        self._parts.append(f'<path d="{path}" class="{kind}" stroke-width="{width:.2f}" {head}>{told}</path>')

    def line(self, points: Sequence[tuple[float, float]], kind: str = "stroke-one", width: float = 2) -> None:
        path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        self._parts.append(f'<path d="{path}" class="{kind}" stroke-width="{width}"/>')

    def matrix(
        self,
        values: Array,
        x: float,
        y: float,
        cell: tuple[float, float],
        *,
        title: str = "",
        rows: Sequence[str] = (),
        columns: Sequence[str] = (),
        numbers: bool = False,
        most: float | None = None,
    ) -> None:
        """values (rows, columns): above zero in one colour, below in another, the largest magnitude (or `most`) full;
        NaN is empty."""
        height, width = values.shape
        most = most or float(np.nanmax(np.abs(values))) or 1.0
        for (i, j), value in np.ndenumerate(values):
            if value == value and abs(value) / most > 0.004:
                at = (x + j * cell[0], y + i * cell[1], *cell)
                self.box(*at, kind="two" if value > 0 else "one", shade=min(abs(float(value)) / most, 1) ** 0.7)
            if numbers and value == value:
                middle = (x + (j + 0.5) * cell[0], y + (i + 0.5) * cell[1] + 3.5)
                self.text(*middle, f"{value:.2f}".replace("0.", "."), anchor="middle", kind="small")
        self.box(x, y, width * cell[0], height * cell[1], kind="grid")
        for i, name in enumerate(rows):
            self.text(x - 6, y + (i + 0.5) * cell[1] + 4, name, anchor="end")
        for j, name in enumerate(columns):
            self.text(x + (j + 0.5) * cell[0], y - 6, name, anchor="middle")
        if title:
            self.text(x, y - (24 if columns else 8), title, kind="soft")

    def curve(
        self,
        xs: Array,
        curves: dict[str, Array],
        at: tuple[float, float, float, float],
        *,
        label: str = "",
    ) -> None:
        """Two curves at most over one axis of x, in the rectangle `at` (x, y, width, height)."""
        x, y, width, height = at
        low = min(float(ys.min()) for ys in curves.values())
        high = max(float(ys.max()) for ys in curves.values())

        def place(a: float, b: float) -> tuple[float, float]:
            across = (a - float(xs[0])) / float(xs[-1] - xs[0])
            return x + width * across, y + height * (high - b) / (high - low)

        self.box(x, y, width, height, kind="grid")
        if low < 0 < high:
            self.line([place(float(xs[0]), 0), place(float(xs[-1]), 0)], kind="arrow", width=0.7)
        for kind, (name, ys) in zip(("one", "two"), curves.items(), strict=False):
            self.line([place(float(a), float(b)) for a, b in zip(xs, ys, strict=True)], kind=f"stroke-{kind}")
            self.text(x + 8, y + 16 + 16 * (kind == "two"), name, kind=kind)
        for value, anchor, where in ((xs[0], "start", x), (xs[-1], "end", x + width)):
            self.text(where, y + height + 14, f"{float(value):g}", anchor=anchor, kind="small soft")
        self.text(x - 4, y + 8, f"{high:.3g}", anchor="end", kind="small soft")
        self.text(x - 4, y + height, f"{low:.3g}", anchor="end", kind="small soft")
        self.text(x + width / 2, y + height + 14, label, anchor="middle", kind="small soft")

    def bars(self, values: Sequence[tuple[str, float, str]], x: float, y: float, width: float) -> None:
        """(name, length from 0 to 1, what stands behind the bar), one below the other."""
        for i, (name, length, told) in enumerate(values):
            self.text(x - 8, y + 22 * i + 12, name, anchor="end")
            self.box(x, y + 22 * i, max(width * length, 1), 16, kind="one", shade=0.8)
            self.text(x + max(width * length, 1) + 6, y + 22 * i + 12, told, kind="soft")
