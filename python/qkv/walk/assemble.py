"""A trace as one HTML file: outline and numbers as markup, the values as codes that the page draws.

A picture has 16 bits for each value, in steps of its largest one, and shows as many rows and features as fit into
10 MB with those of all other steps; the page says how many.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..view.document import as_json, document, element, unicode
from .markup import contents, outline, summary
from .steps import Array, Step, Trace

FOLDER = Path(__file__).parent / "page"
SCRIPTS = ("pictures", "main")
TOP = 32766  # the code of a step's largest value; what is not finite has the codes beyond
INFINITE = TOP + 1
NAN = -TOP - 2
LARGEST = 10_000_000  # bytes of a page
NUMBERS = 2_400_000  # in all pictures: 10 MB hold about 3.5 million in base64 of what zlib leaves of 16 bits
CUTS = (
    (256, 512),
    (128, 256),
    (64, 256),
    (64, 128),
    (48, 64),
    (32, 32),
    (16, 16),
)  # tokens and features that are shown


def page(trace: Trace, title: str) -> str:
    """The file's text. ValueError: it would be larger than 10 MB."""
    if not isinstance(title, str):
        raise TypeError(f"trace: title must be a string; got {type(title).__name__}")
    shown = [step for step in trace if drawable(step)]
    cut = next((cut for cut in CUTS if sum(np.prod(_shown(step, cut)) for step in shown) <= NUMBERS), None)
    if cut is None:
        raise ValueError(
            f"trace: {len(shown)} steps do not fit into a page of 10 MB; choose some of the layers or heads, or a "
            "shorter text"
        )
    described: list[dict[str, Any]] = []
    blocks: list[str] = []
    for number, step in enumerate(trace):
        if not drawable(step):
            continue
        shape = _shown(step, cut)
        part = step.value[tuple(slice(0, n) for n in shape)]
        codes, largest = encode(part)
        shapes = {"shape": list(shape), "whole": list(step.shape), "axes": list(step.axes)}
        described.append({"step": number, **shapes, "largest": largest, "signed": bool((part < 0).any())})
        blocks.append(element(codes.tobytes()))
    labels = {axis: [unicode(name) for name in names] for axis, names in trace.labels.items()}
    data = {"labels": labels, "pictures": described}
    made = document(
        FOLDER,
        SCRIPTS,
        title,
        summary=summary(trace),
        contents=contents(trace),
        outline=outline(trace),
        data=as_json(data),
        codes="\n".join(blocks),
    )
    if (size := len(made.encode())) > LARGEST:
        raise ValueError(
            f"trace: a page of {size / 1e6:.1f} MB is larger than 10 MB; choose some of the layers or heads, or a "
            "shorter text or title"
        )
    return made


def drawable(step: Step) -> bool:
    return step.value.dtype.kind in "fb" and step.value.ndim in (2, 3) and step.value.size > 0


def _shown(step: Step, cut: tuple[int, int]) -> tuple[int, ...]:
    """The leading part of a value that is drawn."""
    *heads, rows, columns = step.shape
    pairs = step.axes[-1] not in ("feature", "logit", "column")
    return (*heads, min(rows, cut[0]), min(columns, cut[0] if pairs else cut[1]))


def encode(values: Array) -> tuple[Array, float]:
    """int16 codes of values in steps of the largest finite one, and that."""
    wide = values.astype(np.float64)
    finite = np.isfinite(wide)
    largest = float(np.abs(wide[finite]).max(initial=0))
    codes = np.rint(np.where(finite, wide, 0) * (TOP / largest if largest else 0)).astype("<i2")
    codes[wide == np.inf], codes[wide == -np.inf], codes[np.isnan(wide)] = INFINITE, -INFINITE, NAN
    return codes, largest
