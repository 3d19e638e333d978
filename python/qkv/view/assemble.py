"""One HTML file of everything: markup, styles and scripts of page/, the tokens as JSON, the weights as codes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from .choices import chosen
from .codes import REST, Precision, check, choose, decode, encode
from .document import as_json, document, element, unicode
from .measures import entropy, rollout
from .sources import Array, Map

FOLDER = Path(__file__).parent / "page"
NAMES = ("layers", "heads")
SCRIPTS = ("data", "state", "colours", "heads", "matrix", "lines", "picture", "readout", "main")  # in this order


def page(maps: list[Map], title: str, layers: Any = None, heads: Any = None) -> str:
    """The file's text. layers, heads: which are shown; None: all. ValueError: there is no such one, or the file would
    be larger than 10 MB."""
    numbers = [
        tuple(
            chosen("view", name, given, count, item.name)
            for name, given, count in zip(NAMES, (layers, heads), item.weights.shape[:2], strict=True)
        )
        for item in maps
    ]
    check(
        sum(len(of_l) * len(of_h) * item.weights[0, 0].size for item, (of_l, of_h) in zip(maps, numbers, strict=True))
    )
    rolled = [
        rollout(item.weights)[of_layers][:, None] if item.square else None  # through all layers and heads
        for item, (of_layers, _) in zip(maps, numbers, strict=True)
    ]
    maps = [
        replace(item, weights=item.weights[np.ix_(*both)]) if any(x is not None for x in (layers, heads)) else item
        for item, both in zip(maps, numbers, strict=True)
    ]
    precision = choose(
        [part for item, r in zip(maps, rolled, strict=True) for part in (item.weights, r) if part is not None]
    )
    described, blocks = [], []
    for item, r, (of_layers, of_heads) in zip(maps, rolled, numbers, strict=True):
        parts = [item.weights] if r is None else [item.weights, r]
        errors, scales = [], []
        for part in parts:
            codes, largest = encode(part, precision)
            errors.append(_errors(part, codes, largest, precision))
            scales.append(largest.ravel().tolist())
            blocks.append(element(codes.tobytes()))
        told = _described(item, r is not None)
        told.update(layer_numbers=of_layers, head_numbers=of_heads, largest=scales)
        told.update(zip(("error", "own_error"), (max(x) for x in zip(*errors, strict=True)), strict=True))
        described.append(told)
    data = {
        "title": unicode(title),
        "levels": precision.levels,
        "bits": precision.bits,
        "kept": precision.kept,
        "maps": described,
    }
    return document(FOLDER, SCRIPTS, title, data=as_json(data), codes="\n".join(blocks))


def _errors(weights: Array, codes: Array, largest: Array, precision: Precision) -> tuple[float, float]:
    """The largest of all weights; and of those with a level of their own, as a part of their head's largest weight."""
    every = own = 0.0
    for w, c, scale in zip(weights, codes, largest, strict=True):  # a layer
        error = np.abs(decode(c, scale, precision) - w)
        every = max(every, float(error.max()))
        error[c[..., 1:] == REST] = 0
        own = max(own, float((error.max(axis=(-2, -1)) / scale).max()))
    return every, own


def _described(item: Map, rolled: bool) -> dict[str, Any]:
    layers, heads, s, t = item.weights.shape
    shown: dict[str, Any] = {
        "name": item.name,
        "shape": [layers, heads, s, t],
        "queries": item.queries[:s],
        "keys": item.keys,
        "written": item.queries[item.prompt :] if item.prompt is not None else None,  # by the steps
        "prompt": item.prompt,
        "writes": item.queries[1 : s + 1] if item.writes else None,  # from each row
        "entropy": [[round(bits, 3) for bits in row] for row in entropy(item.weights).tolist()],
        "rollout": rolled,
        "notes": list(item.notes),
    }
    if item.picture is not None:
        shown["picture"] = {"url": item.picture.url, "rows": item.picture.rows, "columns": item.picture.columns}
    return shown
