"""Pages in a real browser: what they show, say and ask for. Importing this skips where there is no browser."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="browser tests need playwright")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
if CHROMIUM is None:
    pytest.skip("browser tests need Chromium", allow_module_level=True)

HOSTILE = ["</script><img src=x onerror=alert(1)>", "<b>bold</b>", "\u202eab", "a\nb", "", " ", "&lt;"]  # tokens


@contextmanager
def chromium() -> Iterator[Any]:
    with playwright.sync_playwright() as p:
        options = ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium refuses root its sandbox
        found = p.chromium.launch(executable_path=CHROMIUM, args=options)
        yield found
        found.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


class Page:
    """A page that is open, with all that it said and asked for."""

    def __init__(self, browser: Any, path: Path, **context: Any):
        self.said: list[str] = []
        self.asked: list[str] = []
        settings = {"viewport": {"width": 1300, "height": 900}, "color_scheme": "light"} | context
        self.context = browser.new_context(**settings)
        self.page = self.context.new_page()
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", lambda dialog: self.said.append(dialog.message))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(path.as_uri())
        self.page.wait_for_selector("body[data-ready]", timeout=120_000)

    def settle(self) -> None:
        """Until what was asked for has been drawn."""
        self.page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def text(self, selector: str) -> str:
        return str(self.page.locator(selector).inner_text())

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)
        self.settle()

    def width(self) -> int:
        """Of the whole page, in pixels: more than the window's scrolls sideways."""
        return int(self.page.evaluate("() => document.documentElement.scrollWidth"))


Open = Callable[..., Page]


@pytest.fixture
def opened(browser: Any) -> Iterator[Callable[..., None]]:
    """Called with a page and its file; at the end nothing may have gone wrong in it, and nothing may have been
    fetched."""
    pages: list[tuple[Page, str]] = []
    yield lambda page, path: pages.append((page, path.as_uri()))
    for page, address in pages:
        page.settle()
        assert page.said == []
        assert [url for url in page.asked if not url.startswith("data:")] == [address]
        page.context.close()
