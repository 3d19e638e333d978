"""A page of HTML in one file: a template, styles and scripts from a folder, and data that is only text to it.

Tokens and titles are untrusted. They reach a page as JSON of ASCII characters without < > &, or escaped, and its
scripts write them as text only. Its Content-Security-Policy names the hash of the one script and of the one style
sheet, so that nothing else would run, and nothing is fetched.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .codes import compress

SHARED = Path(__file__).parent / "page"  # base.css and shared.js are of all pages


class Page(str):
    """The text of a page, a string; a notebook shows it in a frame instead of printing it."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<Page of {len(self) / 1e3:.0f} kB: str() is its text>"

    def _repr_html_(self) -> str:
        look = "width:100%;height:46em;border:0"
        title = html.escape(html.unescape(self.partition("<title>")[2].partition("</title>")[0]))
        return f'<iframe srcdoc="{html.escape(self)}" sandbox="allow-scripts" title="{title}" style="{look}"></iframe>'


def document(folder: Path, scripts: Sequence[str], title: str, **filled: str) -> str:
    """The template page.html of a folder, filled in: with its page.css, its scripts in this order, and what is given,
    which is HTML."""
    files = [SHARED / "shared.js", *(folder / f"{name}.js" for name in scripts)]
    script = "(() => {\n'use strict';\n" + "\n".join(map(_read, files)) + "\n})();\n"
    style = _read(SHARED / "base.css") + _read(folder / "page.css")
    values = {
        **filled,
        "title": escaped(title),
        "policy": f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; script-src '{_hash(script)}'",
        "style": style,
        "script": script,
    }
    head, *rest = _read(folder / "page.html").split("{{")
    pieces = [head]
    for piece in rest:  # in one pass, so that what is put in is not looked at
        name, _, after = piece.partition("}}")
        pieces += [values[name], after]
    return "".join(pieces)


def as_json(value: Any) -> str:
    """JSON that may stand inside a script element."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def escaped(text: str) -> str:
    """Text as HTML, without what no file can hold."""
    return html.escape(unicode(text))


def unicode(text: str) -> str:
    """Without lone surrogates, which no file can hold."""
    return text.encode("utf-8", "replace").decode()


def element(data: bytes) -> str:
    """Bytes, compressed by zlib, which browsers undo, as an element that shared.js reads."""
    return f'<script type="text/plain" class="codes">{base64.b64encode(compress(data)).decode()}</script>'


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
