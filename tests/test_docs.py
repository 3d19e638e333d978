"""The pages of docs/: they build strictly, their code runs, nothing public is missing, nothing comes from elsewhere."""

from __future__ import annotations

import doctest
import functools
import http.server
import importlib.util
import inspect
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import qkv
from qkv import cuda, view, walk
from qkv.generate import generate, stream

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
pytestmark = pytest.mark.skipif(not DOCS.exists(), reason="docs/ is not beside the tests")

PAGES = sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md"))
PUBLIC: dict[str, Any] = {
    **{f"qkv.{name}": getattr(qkv, name) for name in qkv.__all__},
    **{f"qkv.cuda.{name}": getattr(cuda, name) for name in cuda.__all__},
    **{f"qkv.view.{name}": getattr(view, name) for name in view.__all__},
    "qkv.generate.generate": generate,
    "qkv.generate.stream": stream,
    **{f"qkv.walk.{name}": getattr(walk, name) for name in walk.__all__ if name not in qkv.__all__},
}
FUNCTIONS = {name: value for name, value in PUBLIC.items() if inspect.isfunction(value)}


# ---- code ------------------------------------------------------------------------------------------


def run_blocks(path: Path) -> int:
    """Runs the Python of a page, block after block in one namespace; an output that is another one fails. How many."""
    sybil = pytest.importorskip("sybil", reason="the code of the pages is run by sybil")
    parsers = pytest.importorskip("sybil.parsers.markdown")
    parser = parsers.PythonCodeBlockParser(doctest_optionflags=doctest.ELLIPSIS)
    examples = list(sybil.Sybil(parsers=[parser]).parse(path).examples())
    for example in examples:
        example.evaluate()
    return len(examples)


@pytest.mark.parametrize("page", PAGES)
def test_code_of_a_page_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # what a page writes
    count = run_blocks(DOCS / page)
    if page.startswith("concepts/"):
        assert count >= 3, "a page of the walk has code"


def test_a_wrong_output_is_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```python\n>>> x = 1\n>>> x + 1\n3\n```\n")
    with pytest.raises(Exception, match=r"Expected:\n *3\nGot:\n *2"):
        run_blocks(page)


def test_code_of_the_readme_runs(tmp_path: Path) -> None:
    """Its ops: the other blocks need models that are not there."""
    blocks = re.findall(r"^```python\n.*?^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    own = [block for block in blocks if not re.search(r"path/to|cuda|\bmodel\b", block)]
    assert len(own) == 1 and "qkv.attention(" in own[0]
    page = tmp_path / "page.md"
    page.write_text(own[0] + "\n")
    assert run_blocks(page) == 1


# ---- docstrings --------------------------------------------------------------------------------------


def told_arguments(text: str) -> set[str]:
    """The names that stand before a colon, alone or as a list, where a line or a sentence begins, and of which
    something is said: "q, k (B, S): floats"."""
    name = r"\w+(?: \([^()]*\))?"
    items = re.findall(rf"(?:^ *|(?<=[.;:] ))({name}(?:, {name})*):(?= \S|\n {4}\S)", text, re.MULTILINE)
    return {re.sub(r" .*", "", part) for item in items for part in re.split(r", (?![^(]*\))", item)}


def test_told_arguments() -> None:
    text = """Adds x and y and takes z: what is said of a in a sentence is not counted.

    b, c (S, T): two. d: one; e: another, and
    f:
    g: yes."""
    assert told_arguments(inspect.cleandoc(text)) == {"b", "c", "d", "e", "g"}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_docstring_tells_arguments_and_errors(name: str) -> None:
    told = inspect.getdoc(FUNCTIONS[name]) or ""
    assert told
    parameters = inspect.signature(FUNCTIONS[name]).parameters
    assert not [parameter for parameter in parameters if parameter not in told_arguments(told)]
    if parameters:
        assert re.search("Error|No error", told)


# ---- layers ------------------------------------------------------------------------------------------


@pytest.fixture
def layers() -> ModuleType:
    """docs/make/layers.py, which draws who includes whom."""
    spec = importlib.util.spec_from_file_location(
        "make", DOCS / "make" / "__init__.py", submodule_search_locations=[str(DOCS / "make")]
    )
    assert spec is not None and spec.loader is not None
    sys.modules["make"] = importlib.util.module_from_spec(spec)
    try:
        return importlib.import_module("make.layers")
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == "make"]:
            del sys.modules[name]


@pytest.mark.skipif(not (ROOT / "csrc").exists(), reason="the sources are not beside the tests")
@pytest.mark.parametrize("kind", ["package", "kernel"])
def test_no_layer_reaches_upwards(layers: ModuleType, kind: str) -> None:
    """What the pictures of the architecture page show; every file has its box."""
    rows = {"package": layers.PACKAGE, "kernel": layers.KERNELS}[kind]
    edges = getattr(layers, f"{kind}_edges")()
    row_of = {name: i for i, row in enumerate(rows) for name in row}
    assert edges
    for a, b in edges:
        assert a in row_of and b in row_of, (a, b)
        assert row_of[a] < row_of[b], f"{a} reaches up to {b}"
    root = {"package": ROOT / "python" / "qkv", "kernel": ROOT / "csrc"}[kind]
    for path in root.rglob("*"):
        if path.suffix in (".py", *layers.SOURCES) and "emulation" not in path.parts:
            assert layers.box_of(rows, str(path.relative_to(root))), path


# ---- the site ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built strictly: a warning, such as a link that leads nowhere, is an error."""
    for module in ("mkdocs", "material", "mkdocstrings"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"the pages are built by {module}, of the extra docs")
    folder = tmp_path_factory.mktemp("site")
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "-f",
        "docs/mkdocs.yml",
        "--strict",
        "--quiet",
        "--site-dir",
        str(folder),
    ]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "no_proxy": "", "https_proxy": "http://127.0.0.1:9"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


class Found(HTMLParser):
    """The ids of a page, what it links to, and what it loads by itself."""

    LOADS = ("script", "img", "iframe", "source", "video", "audio", "embed", "object")

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {name: value for name, value in attributes if value}
        if "id" in given:
            self.ids.add(given["id"])
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif tag == "link" and given.get("rel") not in ("next", "prev", "canonical", "alternate"):
            self.loads.append(given["href"])
        elif tag in self.LOADS:
            self.loads += [given[name] for name in ("src", "data") if name in given]


def is_elsewhere(url: str) -> bool:
    return bool(re.match(r"(?!data:)(\w+:|//)", url))


def test_links_and_loads(site: Path) -> None:
    """Those of raw HTML too, which mkdocs does not look at."""
    pages = {path: Found(path) for path in site.rglob("*.html") if path.name != "404.html"}
    assert len(pages) >= len(PAGES)
    for path, found in pages.items():
        assert not [url for url in found.loads if is_elsewhere(url)], path
        for url in [*found.links, *found.loads]:
            if is_elsewhere(url) or url.startswith("data:"):
                continue
            name, _, place = url.partition("#")
            target = (path.parent / name).resolve() if name else path
            assert target.exists(), f"{path.name}: {url}"
            if place and target in pages:
                assert place in pages[target].ids, f"{path.name}: {url}"
    for path in site.rglob("*.css"):
        assert not re.search(r"url\(\s*['\"]?(https?:)?//|@import", path.read_text(encoding="utf-8")), path


def test_every_public_name_is_in_the_reference(site: Path) -> None:
    ids = set().union(*(Found(path).ids for path in (site / "reference").glob("*.html")))
    assert not [name for name in PUBLIC if name not in ids]


def test_arguments_stand_in_lists(site: Path) -> None:
    text = (site / "reference" / "ops.html").read_text(encoding="utf-8")
    assert re.search(r"<li>\s*<p>?<strong>mask</strong>|<li><strong>mask</strong>", text)


def test_pages_of_the_walk_have_pictures(site: Path) -> None:
    for path in (site / "concepts").glob("*.html"):
        if path.name != "index.html":
            assert 'class="qkv-picture"' in path.read_text(encoding="utf-8") or "<figure" in path.read_text(), path


@pytest.fixture(scope="module")
def server(site: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site))) as served:
        thread = threading.Thread(target=served.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{served.server_port}/"
        served.shutdown()
        thread.join()


def test_in_a_browser_nothing_comes_from_elsewhere(server: str) -> None:
    """And nothing is complained about, in light and dark; live pages show their attention."""
    from browser_checks import chromium

    asked: list[str] = []
    said: list[str] = []
    with chromium() as browser:
        for scheme in ("light", "dark"):
            page = browser.new_page(color_scheme=scheme)
            page.on("request", lambda request: asked.append(request.url))
            page.on("console", lambda message: said.append(message.text))
            page.on("pageerror", lambda error: said.append(str(error)))
            for name in ("index.html", "architecture.html", "concepts/heads.html", "reference/ops.html"):
                page.goto(server + name, wait_until="networkidle")
            page.goto(server + "concepts/heads.html")
            page.locator("iframe").scroll_into_view_if_needed()
            page.frame_locator("iframe").get_by_role("heading", name="Layers and heads").wait_for()
    assert not said
    assert not [url for url in asked if not url.startswith((server, "data:", "blob:"))]


def test_the_search_of_files_as_they_lie(site: Path) -> None:
    """Without a server, from a page in a folder."""
    from browser_checks import chromium

    with chromium() as browser:
        page = browser.new_page()
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto((site / "concepts" / "heads.html").as_uri())
        page.locator("input.md-search__input").press_sequentially("rollout")
        found = page.locator(".md-search-result__item a")
        found.first.wait_for()
        links = [Path(str(link.get_attribute("href")).partition("?")[0]).name for link in found.all()]
    assert "view.html" in links
    assert not [url for url in asked if not url.startswith(("file:", "data:", "blob:"))]


def test_what_is_wider_than_a_phone_says_so(site: Path) -> None:
    """Nothing but boxes with shadows at their sides scrolls sideways, and the pages themselves do not."""
    from browser_checks import chromium

    code = """() => [document.documentElement.scrollWidth, [...document.querySelectorAll('.md-content *')].filter((e) =>
      e.scrollWidth > e.clientWidth + 1 && ['auto', 'scroll'].includes(getComputedStyle(e).overflowX) &&
      !getComputedStyle(e).backgroundAttachment.includes('scroll, scroll')).map((e) => e.outerHTML.slice(0, 80))]"""
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 390, "height": 844})
        for path in (site / "concepts" / "masks.html", site / "coming_from.html", site / "kernels.html"):
            page.goto(path.as_uri())
            assert page.evaluate(code) == [390, []], path
