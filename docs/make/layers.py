"""The layers as they are: what the sources include and import at their top, and a picture of it."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

from .draw import Picture

ROOT = Path(__file__).resolve().parents[2]

# The boxes, row by row from top to bottom: its name, and the files in it; the first that a file fits has it.
Rows = tuple[dict[str, tuple[str, ...]], ...]
PACKAGE: Rows = (
    {"cli, demo": ("cli*", "demo*", "__*")},
    {"walk/": ("walk/*",)},
    {"view/": ("view/*", "shades*"), "tasks/": ("tasks/*",)},
    {"bench/": ("bench/*",)},
    {"models/": ("models/*", "predict*", "score*", "sentence*")},
    {"generate/": ("generate/*",), "text, images": ("text*", "tokenization/*", "images*", "gguf*")},
    {"layers, cache, weights": ("layers*", "packing*", "cache*", "weights*", "capture*", "batching*", "outputs*")},
    {"files, config": ("files*", "config*")},
    {"ops": ("ops*", "compat*", "cuda*", "runtime*", "arrays*", "placement*")},
    {"reference": ("reference*", "positions*", "special*")},
)
KERNELS: Rows = (
    {"bind/": ("bind/*",)},
    {"cpu/dispatch, plan": ("cpu/dispatch.*", "cpu/plan.*"), "cuda/ memory, streams": ("cuda/*.cpp",)},
    {"cpu/<op>.cpp": ("cpu/*.cpp",), "cuda/<op>.cu": ("cuda/*.cu",)},
    {"cuda/*.cuh, *.h": ("cuda/*.cuh", "cuda/*.h")},
    {"cpu/*.h": ("cpu/*.h", "cpu/*.inc")},
    {"cpu/simd/": ("cpu/simd/*",)},
    {"core/": ("core/*",)},
)
SOURCES = (".h", ".cpp", ".cu", ".cuh", ".inc")
Edges = Counter[tuple[str, str]]


def box_of(rows: Rows, path: str) -> str | None:
    """Patterns name folders, so that * must not reach below one."""
    for name, patterns in ((name, patterns) for row in rows for name, patterns in row.items()):
        if any(fnmatch(path, pattern) and path.count("/") == pattern.count("/") for pattern in patterns):
            return name
    return None


def kernel_edges() -> Edges:
    """(box, box) -> how many times files of the first include one of the second."""
    edges: Edges = Counter()
    for path in sorted((ROOT / "csrc").rglob("*")):
        here = path.suffix in SOURCES and box_of(KERNELS, str(path.relative_to(ROOT / "csrc")))
        if here:
            for name in re.findall(r'^#\s*include "([^"]+)"', path.read_text(encoding="utf-8"), re.MULTILINE):
                edges[here, box_of(KERNELS, name) or name] += 1
    return _between(edges)


def package_edges() -> Edges:
    """The same of modules and what they import when they are imported."""
    root, edges = ROOT / "python" / "qkv", Counter[tuple[str, str]]()
    for path in sorted(root.rglob("*.py")):
        here = box_of(PACKAGE, str(path.relative_to(root)))
        if here and path != root / "__init__.py":  # which names everything
            for module in _imported(path, root):
                edges[here, box_of(PACKAGE, str(module.relative_to(root))) or str(module)] += 1
    return _between(edges)


def _between(edges: Edges) -> Edges:
    return Counter({(a, b): count for (a, b), count in edges.items() if a != b})


def _imported(path: Path, root: Path) -> Iterator[Path]:
    """Files of the package that a module imports at its top."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        folder = path.parents[node.level - 1]
        module = folder.joinpath(*node.module.split(".")) if node.module else folder
        for at in {module, *(module / alias.name for alias in node.names)}:
            found = [file for file in (at.with_suffix(".py"), at / "__init__.py") if file.exists()]
            if found and found[0] != root / "__init__.py":
                yield found[0]


# ---- the picture ----------------------------------------------------------------------------------------

WIDTH, HEIGHT, GAP = 860, 38, 40


def picture(rows: Rows, edges: Edges) -> Picture:
    """Boxes in their rows; an arrow from who includes to what is included, wider for many, upwards it stands out."""
    drawn = Picture(WIDTH, len(rows) * (HEIGHT + GAP) - GAP + 4)
    middle: dict[str, tuple[float, int]] = {}
    for i, row in enumerate(rows):
        for j, name in enumerate(row):
            middle[name] = WIDTH * (j + 1) / (len(row) + 1), i
    half = 88
    for (a, b), count in sorted(edges.items()):
        if b not in middle:
            continue
        (x1, i), (x2, j) = middle[a], middle[b]
        down = j > i
        y1 = 2 + i * (HEIGHT + GAP) + (HEIGHT if down else 0)
        y2 = 2 + j * (HEIGHT + GAP) + (0 if down else HEIGHT)
        # Arrows that pass by other rows bend around the boxes there.
        bend = 0 if abs(j - i) <= 1 else (half + 22 + 16 * abs(j - i)) * (1 if (i + j) % 2 else -1)
        x3 = (x1 + x2) / 2 + bend
        start, end = (max(-half + 12, min(half - 12, (x3 - x) * 0.5)) for x in (x1, x2))
        between = [f"{x3:.0f} {y1 + (y2 - y1) * part:.0f}" for part in (0.3, 0.7)]
        path = f"M{x1 + start:.0f} {y1}C{' '.join(between)} {x2 + end:.0f} {y2}"
        drawn.arrow(path, width=min(1 + count**0.5 / 3, 3), back=not down, title=f"{a} → {b}: {count}")
    for name, (x, i) in middle.items():
        y = 2 + i * (HEIGHT + GAP)
        drawn.box(x - half, y, 2 * half, HEIGHT)
        drawn.text(x, y + HEIGHT / 2 + 4, name, anchor="middle")
    return drawn
