"""One HTML file of everything: markup, styles and scripts of page/, the tokens as JSON, the weights as codes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from .codes import Precision, check, choose, decode, encode
from .document import as_json, document, element, unicode
from .measures import entropy, rollout
from .sources import Array, Map

FOLDER = Path(__file__).parent / "page"
SCRIPTS = ("data", "state", "colours", "heads", "matrix", "lines", "picture", "readout", "main")  # in this order


def page(maps: list[Map], title: str) -> str:
    """The file's text. ValueError: it would be larger than 10 MB."""
    check(sum(item.weights.size for item in maps))
    rolled = [rollout(item.weights)[:, None] if item.square else None for item in maps]
    precision = choose(
        [part for item, r in zip(maps, rolled, strict=True) for part in (item.weights, r) if part is not None]
    )
    described, blocks = [], []
    for item, r in zip(maps, rolled, strict=True):
        parts = [item.weights] if r is None else [item.weights, r]
        errors = []
        for part in parts:
            codes = encode(part, precision)
            errors.append(_largest_error(part, codes, precision))
            blocks.append(element(codes.tobytes()))
        described.append(_described(item, r is not None, max(errors)))
    data = {
        "title": unicode(title),
        "levels": precision.levels,
        "bits": precision.bits,
        "kept": precision.kept,
        "maps": described,
    }
    return document(FOLDER, SCRIPTS, title, data=as_json(data), codes="\n".join(blocks))


def _largest_error(weights: Array, codes: Array, precision: Precision) -> float:
    return max(float(np.abs(decode(c, precision) - w).max()) for c, w in zip(codes, weights, strict=True))


def _described(item: Map, rolled: bool, error: float) -> dict[str, Any]:
    layers, heads, s, t = item.weights.shape
    shown: dict[str, Any] = {
        "name": item.name,
        "shape": [layers, heads, s, t],
        "queries": item.queries[:s],
        "keys": item.keys,
        "written": item.queries[item.prompt :] if item.prompt is not None else None,  # by the steps
        "prompt": item.prompt,
        "entropy": [[round(bits, 3) for bits in row] for row in entropy(item.weights).tolist()],
        "rollout": rolled,
        "error": error,
        "notes": list(item.notes),
    }
    if item.picture is not None:
        shown["picture"] = {"url": item.picture.url, "rows": item.picture.rows, "columns": item.picture.columns}
    return shown
