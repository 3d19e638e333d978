"""The pages of qkv.trace in a real browser: collapsing, heads, values under pointer and keys, themes, phones."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import golden_checks
import numpy as np
import pytest
import qkv
from browser_checks import HOSTILE, Open, Page, browser, opened

__all__ = ["browser", "opened"]
TOKENS = [5, 6, 7, 8, 9]


@pytest.fixture(scope="module")
def trace() -> Any:
    return qkv.trace(qkv.load(golden_checks.GOLDEN / "gpt2_lm"), TOKENS)


@pytest.fixture
def show(browser: Any, opened: Callable[..., None], tmp_path: Path) -> Open:
    def show(trace: Any, title: str | None = None, **context: Any) -> Page:
        path = tmp_path / "x.html"
        trace.to_html(path, title)
        page = Page(browser, path, **context)
        opened(page, path)
        return page

    return show


def step(page: Page, trace: Any, path: str) -> Any:
    """The element of a step, opened."""
    found = page.page.locator(f"#step-{trace.paths.index(path)}")
    code = "(e) => { for (let at = e; at; at = at.parentElement) if (at.tagName === 'DETAILS') at.open = true; }"
    page.page.evaluate(code, found.element_handle())
    found.scroll_into_view_if_needed()
    page.settle()
    return found


def number(text: str) -> float:
    return float(text.replace("−∞", "-inf").replace("−", "-"))


def hover(page: Page, element: Any, row: int, column: int) -> tuple[float, str]:
    """The value that is told of a cell, and all that is said."""
    canvas = element.locator(".scroll canvas")
    canvas.scroll_into_view_if_needed()
    page.settle()
    left, top, cell, high = (float(canvas.get_attribute(f"data-{name}")) for name in ("left", "top", "cell", "high"))
    box = canvas.bounding_box()
    page.page.mouse.move(box["x"] + left + (column + 0.5) * cell, box["y"] + top + (row + 0.5) * high)
    page.settle()
    return number(element.locator(".said b").inner_text()), element.locator(".said").inner_text()


def test_every_step_is_there_in_order(show: Open, trace: Any) -> None:
    page = show(trace)
    found = page.page.eval_on_selector_all(".step .name", "(all) => all.map((e) => e.textContent)")
    assert found == [s.name for s in trace]
    parts = page.page.eval_on_selector_all(".part h2", "(all) => all.map((e) => e.textContent)")
    assert parts == ["Input", "Embeddings", "Layer 0", "Layer 1", "Final norm", "Output"]
    assert page.page.eval_on_selector_all("nav a", "(all) => all.map((e) => e.textContent)") == parts
    assert page.text("#summary") == f"GPT2LMHeadModel, float32 · 5 tokens · {len(trace)} steps"


def test_the_value_under_the_pointer(show: Open, trace: Any) -> None:
    page = show(trace)
    for path in ("layer 0.self-attention.weights", "layer 1.self-attention.scores", "layer 0.self-attention.queries"):
        element, value = step(page, trace, path), trace[path].value
        for row, column in ((0, 0), (4, 1), (2, 2)):
            told, text = hover(page, element, row, column)
            assert told == pytest.approx(value[0, row, column], abs=2e-5 * float(np.abs(value).max()), rel=2e-3)
            assert text.startswith(f"head 0: “{TOKENS[row]}”")
    element = step(page, trace, "embeddings.word embeddings")
    value = trace["embeddings.word embeddings"].value
    told, text = hover(page, element, 3, 7)
    assert told == pytest.approx(value[3, 7], rel=2e-3, abs=2e-5 * float(np.abs(value).max()))
    assert text.startswith("“8”, feature 7: ")


def test_masked_scores_are_minus_infinity(show: Open, trace: Any) -> None:
    page = show(trace)
    element = step(page, trace, "layer 0.self-attention.masked scores")
    assert hover(page, element, 1, 3)[0] == -np.inf
    assert np.isfinite(hover(page, element, 3, 1)[0])


def test_another_head_is_another_picture_everywhere(show: Open, trace: Any) -> None:
    page = show(trace)
    weights, scores = (step(page, trace, f"layer 0.self-attention.{name}") for name in ("weights", "scores"))
    before = weights.locator(".scroll canvas").evaluate("(c) => c.toDataURL()")
    weights.locator(".strip button").nth(1).click()
    page.settle()
    assert weights.locator(".scroll canvas").evaluate("(c) => c.toDataURL()") != before
    assert weights.locator('.strip button[aria-pressed="true"]').inner_text() == "1"
    for element, name in ((weights, "weights"), (scores, "scores")):
        value = trace[f"layer 0.self-attention.{name}"].value
        told, text = hover(page, element, 4, 2)
        assert told == pytest.approx(value[1, 4, 2], rel=2e-3, abs=2e-5 * float(np.abs(value).max()))
        assert text.startswith("head 1: ")
    page.page.locator("#head").select_option("0")
    page.settle()
    assert hover(page, scores, 4, 2)[1].startswith("head 0: ")


def test_keys_open_and_close(show: Open, trace: Any) -> None:
    page = show(trace)
    part = page.page.locator(".part").nth(3)  # layer 1, closed at first
    summary = part.locator("summary").first
    assert part.get_attribute("open") is None
    summary.focus()
    page.press("Enter")
    assert part.get_attribute("open") is not None
    inner = part.locator(".step").first
    page.press("Tab")
    assert inner.locator("summary").evaluate("(e) => e === document.activeElement")
    page.press(" ")
    assert inner.get_attribute("open") is not None
    inner.locator(".scroll canvas").wait_for()
    page.press("Tab", "ArrowDown")  # into the picture, or its first head
    page.press("Shift+Tab", " ")
    assert inner.get_attribute("open") is None
    summary.focus()
    page.press("Enter")
    assert part.get_attribute("open") is None
    page.page.locator("#expand").click()
    assert page.page.locator("details:not([open])").count() == 0
    page.page.locator("#collapse").click()
    assert page.page.locator("details[open]").count() == 0


def test_arrows_tell_values_aloud(show: Open, trace: Any) -> None:
    page = show(trace)
    path = "layer 0.self-attention.weights"
    element, value = step(page, trace, path), trace[path].value
    canvas = element.locator(".scroll canvas")
    canvas.wait_for()
    canvas.focus()
    page.press("ArrowDown", "ArrowDown", "ArrowRight")
    assert element.locator(".said").inner_text().startswith("head 0: “6” → “6”: ")
    assert number(element.locator(".said b").inner_text()) == pytest.approx(value[0, 1, 1], rel=2e-3)
    assert page.page.locator("#live").inner_text() == element.locator(".said").inner_text()
    page.press("Escape")
    assert "darkest" in element.locator(".said").inner_text()
    assert "5 by 5 values" in canvas.get_attribute("aria-label")


def test_the_contents_lead_to_closed_parts(show: Open, trace: Any) -> None:
    page = show(trace)
    page.page.locator("nav a").filter(has_text="Layer 1").click()
    page.settle()
    part = page.page.locator(".part").nth(3)
    part.locator(".group").first.wait_for()
    assert part.get_attribute("open") is not None


def test_hostile_tokens_are_text(show: Open) -> None:
    trace = qkv.trace(qkv.load(golden_checks.GOLDEN / "gpt2_lm"), list(range(7)))
    trace.labels["token"] = HOSTILE
    page = show(trace, "</title><img src=x onerror=alert(2)>")
    assert page.text("h1") == "</title><img src=x onerror=alert(2)>"
    page.page.locator("#expand").click()
    page.settle()
    element = step(page, trace, "layer 0.self-attention.weights")
    assert HOSTILE[0] in hover(page, element, 0, 0)[1]
    assert page.page.locator("img, iframe, b:not(.said b)").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_themes(scheme: str, show: Open, trace: Any) -> None:
    page = show(trace, color_scheme=scheme)
    canvas = step(page, trace, "layer 0.self-attention.weights").locator(".scroll canvas")
    canvas.wait_for()
    assert page.page.locator("html").get_attribute("data-theme") == scheme
    code = "(c) => [c.toDataURL(), getComputedStyle(document.body).backgroundColor]"
    before = canvas.evaluate(code)
    page.page.locator("#theme").click()
    page.settle()
    after = canvas.evaluate(code)
    assert before[0] != after[0] and before[1] != after[1]


@pytest.mark.parametrize("width", [390, 320])
def test_a_phone(width: int, show: Open, trace: Any) -> None:
    page = show(trace, viewport={"width": width, "height": 844})
    page.page.locator("#expand").click()
    page.page.wait_for_function("() => document.querySelectorAll('.step .scroll canvas').length > 20")
    page.settle()
    assert page.width() <= width


def test_without_scripts_the_steps_and_numbers_are_there(browser: Any, tmp_path: Path, trace: Any) -> None:
    path = tmp_path / "x.html"
    trace.to_html(path)
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(path.as_uri())
    value = trace["layer 0.self-attention.weights"].value
    index = trace.paths.index("layer 0.self-attention.weights")
    assert page.locator(f"#step-{index} tbody td").first.inner_text() == f"{value[0, 0, 0]:.4g}"
    assert "JavaScript" in page.locator("noscript").inner_text() or re.search("JavaScript", page.content())
    context.close()
