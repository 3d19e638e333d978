"""Hooks of MkDocs: pictures and live pages become files of the site, and pictures stand in the page's own markup, where
its colours reach them."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

sys.path.insert(0, str(Path(__file__).parents[1]))  # docs/, for what is in make/

from make import live, pictures, tables

_drawn: dict[str, str] = {}


def on_files(files: Any, config: Any, **_: Any) -> Any:
    _drawn.update({name: draw() for name, draw in pictures.PICTURES.items() if name not in _drawn})
    for name, svg in _drawn.items():
        files.append(File.generated(config, f"pictures/{name}.svg", content=svg))
    for name, make in live.PAGES.items():
        files.append(File.generated(config, f"live/{name}.html", content=make()))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    for name, make in tables.TABLES.items():
        if f"{{{{ {name} }}}}" in markdown:
            markdown = markdown.replace(f"{{{{ {name} }}}}", make())
    return markdown


def on_page_content(content: str, **_: Any) -> str:
    """A picture of ours that stands by itself becomes a figure, a link to a live page a frame with it."""

    def figure(found: re.Match[str]) -> str:
        alt, name = found[1], found[2]
        svg = _drawn[name].replace("<svg ", f'<svg role="img" aria-label="{alt}" ', 1)
        return f'<figure class="qkv-figure"><div>{svg}</div><figcaption>{alt}</figcaption></figure>'

    frame = r'<iframe class="qkv-live" src="\1" title="\2" loading="lazy"></iframe><p><a href="\1">\2</a></p>'
    content = re.sub(r'<p><a class="live" href="([^"]*)">([^<]*)</a></p>', frame, content)
    return re.sub(r'<p><img alt="([^"]*)" src="[^"]*pictures/(\w+)\.svg" ?/?></p>', figure, content)
