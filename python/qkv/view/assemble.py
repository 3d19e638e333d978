"""One HTML file of everything: markup, styles and scripts of page/, the tokens as JSON, the weights as codes.

Tokens and titles are untrusted. They reach the page as JSON of ASCII characters without < > &, and its scripts write
them as text only. Its Content-Security-Policy names the hash of the one script and of the one style sheet, so that
nothing else would run, and nothing is fetched.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from pathlib import Path
from typing import Any

import numpy as np

from .codes import Precision, check, choose, compress, decode, encode
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
            blocks.append(base64.b64encode(compress(codes)).decode())
        described.append(_described(item, r is not None, max(errors)))
    data = {
        "title": _unicode(title),
        "levels": precision.levels,
        "bits": precision.bits,
        "kept": precision.kept,
        "maps": described,
    }
    script = "(() => {\n'use strict';\n" + "\n".join(_file(f"{name}.js") for name in SCRIPTS) + "\n})();\n"
    style = _file("page.css")
    text = _file("page.html")
    filled = {
        "title": html.escape(_unicode(title)),
        "policy": f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; script-src '{_hash(script)}'",
        "style": style,
        "script": script,
        "data": _json(data),
        "codes": "\n".join(f'<script type="text/plain" class="codes">{block}</script>' for block in blocks),
    }
    head, *rest = text.split("{{")
    pieces = [head]
    for piece in rest:  # in one pass, so that what is put in is not looked at
        name, _, after = piece.partition("}}")
        pieces += [filled[name], after]
    return "".join(pieces)


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


def _json(value: Any) -> str:
    """JSON that may stand inside a script element."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _unicode(text: str) -> str:
    """Without lone surrogates, which no file can hold."""
    return text.encode("utf-8", "replace").decode()


def _file(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
