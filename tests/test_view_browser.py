"""The pages of qkv.view in a real browser: what they show, and that mouse and keyboard do what is promised."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import browser_checks
import numpy as np
import pytest
import qkv
from browser_checks import HOSTILE, browser, opened
from qkv.outputs import ModelOutput
from qkv.view.measures import rollout
from view_checks import random_weights

__all__ = ["browser", "opened"]
EXACT = 2e-4  # four places are shown, of 16 bits
TOKENS = ["the", "cat", "sat", "on", "the", "mat", "."]
W = random_weights(3, 4, 7, 7)


class Page(browser_checks.Page):
    """A page of qkv.view."""

    def look(self, selector: str) -> str:
        """The pixels of a canvas."""
        self.settle()
        return str(self.page.evaluate("(s) => document.querySelector(s).toDataURL()", selector))

    def cell(self, layer: int, column: str) -> Any:
        """A thumbnail by the beginning of its label."""
        label = {"mean": f"Layer {layer}, mean", "rollout": f"Rollout through layer {layer}"}.get(
            column, f"Layer {layer}, head {column},"
        )
        return self.page.locator(f'.cell[aria-label^="{label}"]')

    def hover(self, row: int, key: int) -> tuple[float, str]:
        """The weight that is told of a cell of the matrix, and what else."""
        canvas = self.page.locator("#matrix")
        canvas.scroll_into_view_if_needed()
        self.settle()
        left, top, cell = (float(canvas.get_attribute(f"data-{name}")) for name in ("left", "top", "cell"))
        box = canvas.bounding_box()
        self.page.mouse.move(box["x"] + left + (key + 0.5) * cell, box["y"] + top + (row + 0.5) * cell)
        self.settle()
        return float(self.text("#tip b")), self.text("#tip")

    def strongest(self) -> list[tuple[str, float]]:
        """The table's tokens and weights."""
        self.settle()
        rows = self.page.locator("#strongest tr").all()
        return [(r.locator("th").inner_text(), float(r.locator(".weight").inner_text())) for r in rows]

    def choose(self, name: str) -> None:
        self.page.locator(".choice label").filter(has_text=name).click()
        self.settle()


Open = Callable[..., Page]


@pytest.fixture
def show(browser: Any, opened: Callable[..., None], tmp_path: Path) -> Open:
    def show(x: Any, *arguments: Any, context: dict[str, Any] | None = None, **options: Any) -> Page:
        path = tmp_path / "x.html"
        qkv.view.attention(x, *arguments, path=path, **options)
        page = Page(browser, path, **(context or {}))
        opened(page, path)
        return page

    return show


def test_hover_shows_the_weight(show: Open) -> None:
    page = show(W, TOKENS)
    for row, key in ((0, 0), (2, 5), (6, 1), (3, 3)):
        weight, text = page.hover(row, key)
        assert weight == pytest.approx(W[0, 0, row, key], abs=EXACT)
        assert f"{TOKENS[row]} → {TOKENS[key]}" in text and "Layer 0, head 0" in text
        best = np.argsort(-W[0, 0, row])
        assert [token.split("\n")[0].rstrip("0123456789") for token, _ in page.strongest()] == [TOKENS[k] for k in best]
        np.testing.assert_allclose([w for _, w in page.strongest()], W[0, 0, row][best], atol=EXACT)
        assert page.text("#query") == f"“{TOKENS[row]}” looks at"


def test_another_head_is_another_picture(show: Open) -> None:
    page = show(W, TOKENS)
    looks = {page.look("#matrix")}
    for layer, head in ((0, 1), (2, 3), (1, 0)):
        page.cell(layer, str(head)).click()
        looks.add(page.look("#matrix"))
        assert page.text("#shown") == f"Layer {layer}, head {head}"
        assert page.hover(4, 2)[0] == pytest.approx(W[layer, head, 4, 2], abs=EXACT)
        page.page.mouse.move(0, 0)
    assert len(looks) == 4


def test_mean_and_rollout(show: Open) -> None:
    page = show(W, TOKENS)
    page.cell(1, "mean").click()
    assert page.hover(5, 0)[0] == pytest.approx(W[1, :, 5, 0].mean(), abs=EXACT)
    page.cell(1, "rollout").click()
    a = [0.5 * W[layer].astype(np.float64).mean(axis=0) + 0.5 * np.eye(7) for layer in range(2)]
    assert page.hover(5, 0)[0] == pytest.approx((a[1] @ a[0])[5, 0], abs=EXACT)
    assert "Rollout through layer 1" in page.text("#tip")


def test_several_heads_show_their_mean(show: Open) -> None:
    page = show(W, TOKENS)
    page.cell(0, "1").click()
    page.page.locator("#several").click()
    page.cell(2, "3").click()
    page.cell(1, "2").click()
    page.settle()
    assert page.text("#shown") == "Mean of 3 picked heads"
    mean = (W[0, 1] + W[2, 3] + W[1, 2]) / 3
    assert page.hover(3, 6)[0] == pytest.approx(mean[3, 6], abs=EXACT)
    assert page.page.locator('.cell[aria-selected="true"]').count() == 3
    page.page.locator("#chips button").first.click()
    page.settle()
    assert page.text("#shown") == "Mean of 2 picked heads"
    page.page.locator("#several").click()
    page.cell(0, "0").click()
    page.settle()
    assert page.text("#shown") == "Layer 0, head 0"


def test_keys_in_the_grid(show: Open) -> None:
    page = show(W, TOKENS)
    page.cell(0, "0").focus()
    page.press("ArrowRight", "ArrowDown", "ArrowDown", "ArrowLeft", "ArrowRight")
    assert page.text("#shown") == "Layer 2, head 1"
    page.press("Enter", "ArrowRight", "ArrowRight")
    assert page.text("#shown") == "Mean of 2 picked heads"
    mean = (W[2, 1] + W[2, 3]) / 2
    assert page.hover(0, 4)[0] == pytest.approx(mean[0, 4], abs=EXACT)
    page.press("Escape")
    assert page.text("#shown") == "Layer 2, head 3"
    page.press("End")
    assert page.text("#shown") == "Rollout through layer 2"
    page.press("Home", "PageUp")
    assert page.text("#shown") == "Layer 0, head 0"


def test_keys_in_the_matrix_and_what_a_screen_reader_hears(show: Open) -> None:
    page = show(W, TOKENS)
    page.page.locator("#matrix").focus()
    page.press("ArrowDown", "ArrowDown", "ArrowRight", "ArrowRight", "ArrowRight")
    assert page.text("#query") == f"“{TOKENS[1]}” looks at"
    assert page.text("#pair") == f"“{TOKENS[3]}” (3): {W[0, 0, 1, 3]:.4f}"
    best = np.argsort(-W[0, 0, 1])[:3]
    heard = ", ".join(f"{TOKENS[k]} {W[0, 0, 1, k]:.4f}" for k in best)
    page.page.locator("#live").get_by_text(heard).wait_for(state="attached")
    page.press("Enter")
    page.hover(4, 5)
    assert page.text("#query") == f"“{TOKENS[1]}” looks at"  # pinned
    assert f"“{TOKENS[5]}” (5)" in page.text("#pair")
    page.press("Escape")
    page.hover(4, 5)
    assert page.text("#query") == f"“{TOKENS[4]}” looks at"


def test_tab_goes_through_in_order(show: Open) -> None:
    page = show(W, TOKENS)
    page.page.evaluate("() => document.activeElement.blur()")
    order = []
    for _ in range(6):
        page.press("Tab")
        order.append(
            page.page.evaluate(
                "() => document.activeElement.id || document.activeElement.name || document.activeElement.className"
            )
        )
    assert order == ["theme", "View", "Colours", "several", "cell", "matrix"]


def test_steps(show: Open) -> None:
    """Two of a prompt and three that were written, of four tokens that were read."""
    w = random_weights(2, 2, 4, 4, causal=True)
    steps = [tuple(layer[None, :, :2, :2] for layer in w)]
    steps += [tuple(layer[None, :, i : i + 1, : i + 1] for layer in w) for i in (2, 3)]
    out = ModelOutput(sequences=np.arange(5)[None], attentions=tuple(steps))
    page = show(out, ["a", "b", "c", "d", "e"])
    assert page.text("#written") == "3 of 3: writes “e”"
    assert page.text("#pair") == "position 3 of 0 to 3, writes “e”"
    last = page.look("#matrix")
    assert page.page.locator("#matrix").get_attribute("aria-label") == "Layer 0, head 0: 4 queries by 4 keys"
    slider = page.page.locator("#step")
    slider.focus()
    page.press("ArrowLeft")
    assert page.text("#written") == "2 of 3: writes “d”"
    assert (page.text("#query"), page.text("#pair")) == ("“c” looks at", "position 2 of 0 to 3, writes “d”")
    np.testing.assert_allclose([weight for _, weight in page.strongest()], sorted(w[0, 0, 2, :3])[::-1], atol=EXACT)
    assert page.page.locator("#matrix").get_attribute("aria-label") == "Layer 0, head 0: 3 queries by 3 keys"
    assert page.look("#matrix") != last
    page.press("Home")
    assert page.text("#written") == "1 of 3: writes “c”"
    assert page.hover(1, 0)[0] == pytest.approx(w[0, 0, 1, 0], abs=EXACT)


def test_kinds_of_attention(show: Open) -> None:
    out = ModelOutput(
        encoder_attentions=(random_weights(1, 2, 5, 5, seed=1),),
        decoder_attentions=(random_weights(1, 2, 3, 3, seed=2),),
        cross_attentions=(random_weights(1, 2, 3, 5, seed=3),),
    )
    page = show(out, list("abcde"), list("xyz"))
    for name, field, queries in (
        ("Cross-attention", "cross_attentions", "xyz"),
        ("Encoder", "encoder_attentions", "abcde"),
        ("Decoder", "decoder_attentions", "xyz"),
    ):
        page.choose(name)
        weight, text = page.hover(2, 1)
        assert weight == pytest.approx(out[field][0][0, 0, 2, 1], abs=EXACT)
        assert f"{queries[2]} → " in text
        assert page.text("#summary").startswith(name)


def test_lines(show: Open) -> None:
    page = show(W, TOKENS)
    page.choose("Lines")
    assert page.page.locator("#matrix-view").is_hidden()
    before = page.look("#lines")
    view = page.page.locator("#lines-view")
    box = view.bounding_box()
    page.page.mouse.move(box["x"] + 0.2 * box["width"], box["y"] + 4 + 2.5 * 22)
    page.settle()
    assert page.text("#query") == "“sat” looks at"
    assert page.look("#lines") != before
    page.page.mouse.click(box["x"] + 0.2 * box["width"], box["y"] + 4 + 2.5 * 22)
    page.page.mouse.move(box["x"] + 0.9 * box["width"], box["y"] + 4 + 5.5 * 22)
    page.settle()
    assert float(page.text("#tip b")) == pytest.approx(W[0, 0, 2, 5], abs=EXACT)
    view.focus()
    page.press("Escape", "ArrowDown", "ArrowDown")
    assert page.text("#query") == "“cat” looks at"


def test_an_image(show: Open) -> None:
    w, image = random_weights(2, 2, 10, 10), np.random.default_rng(0).random((30, 30, 3))
    page = show(w, image=image)
    assert page.text("#shown") == "Layer 1, mean of 2 heads"
    assert page.text("#query") == "“[CLS]” looks at"
    page.cell(0, "1").click()
    before = page.look("#picture")
    box = page.page.locator("#picture").bounding_box()
    page.page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + box["height"] * 0.83)
    page.settle()
    assert float(page.text("#tip b")) == pytest.approx(w[0, 1, 0, 1 + 7], abs=EXACT)
    assert "[CLS] → patch 2,1" in page.text("#tip")
    page.page.mouse.down()
    page.page.mouse.up()
    page.page.mouse.move(box["x"] + box["width"] * 0.1, box["y"] + box["height"] * 0.1)
    page.settle()
    assert float(page.text("#tip b")) == pytest.approx(w[0, 1, 8, 1], abs=EXACT)
    assert page.look("#picture") != before
    page.page.locator("#picture").focus()
    page.press("Escape", "ArrowRight", "ArrowRight")
    assert page.text("#pair") == f"“patch 0,1” (2): {w[0, 1, 0, 2]:.4f}"


def test_hostile_tokens_are_text(show: Open) -> None:
    page = show(W, HOSTILE, title="<img src=x onerror=alert(2)>")
    assert page.text("h1") == "<img src=x onerror=alert(2)>"
    for row in range(7):
        page.hover(row, 0)
    assert HOSTILE[0] in page.text("#tip")
    page.choose("Lines")
    assert page.page.locator("img, b:not(#tip b), iframe").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_theme_is_the_system_s_until_it_is_chosen(scheme: str, show: Open) -> None:
    page = show(W, TOKENS, context={"color_scheme": scheme})
    other = {"light": "dark", "dark": "light"}[scheme]
    assert page.page.locator("html").get_attribute("data-theme") == scheme
    before = page.look("#matrix"), page.page.evaluate("() => getComputedStyle(document.body).backgroundColor")
    page.page.locator("#theme").click()
    assert page.page.locator("html").get_attribute("data-theme") == other
    after = page.look("#matrix"), page.page.evaluate("() => getComputedStyle(document.body).backgroundColor")
    assert before[0] != after[0] and before[1] != after[1]


def test_colours_follow_the_weights(show: Open) -> None:
    """The largest weight of the head has the last colour; from 0 to 1 it is as dark as it is large."""
    w = np.full((1, 1, 2, 2), 0.5)
    w[0, 0, 0] = [0.8, 0.2]
    page = show(w, ["a", "b"])

    def pixel(row: int, key: int) -> list[int]:
        page.page.mouse.move(0, 0)
        page.settle()
        code = """([row, key]) => {
          const canvas = document.getElementById('matrix'), { left, top, cell } = canvas.dataset;
          const at = (start, i) => Math.round(Number(start) + (i + 0.5) * Number(cell));
          const copy = new OffscreenCanvas(1, 1).getContext('2d');
          copy.drawImage(canvas, at(left, key), at(top, row), 1, 1, 0, 0, 1, 1);
          return [...copy.getImageData(0, 0, 1, 1).data].slice(0, 3);
        }"""
        return list(page.page.evaluate(code, [row, key]))

    assert pixel(0, 0) == [0x0A, 0x24, 0x56]
    light = [sum(pixel(row, key)) for row, key in ((0, 0), (1, 1), (0, 1))]
    assert light == sorted(light) and len(set(light)) == 3
    page.choose("0 to 1")
    assert sum(pixel(0, 0)) > light[0]


@pytest.mark.parametrize("width", [390, 320])
def test_a_phone(width: int, show: Open) -> None:
    page = show(
        random_weights(6, 12, 26, 26),
        [f"token{i}" for i in range(26)],
        context={"viewport": {"width": width, "height": 844}},
    )
    assert page.width() <= width
    view = "document.getElementById('matrix-view')"
    assert page.page.evaluate(f"() => {view}.scrollWidth <= {view}.clientWidth + 1")
    page.choose("Lines")
    assert page.width() <= width


def test_some_layers_and_heads_keep_their_numbers(show: Open) -> None:
    page = show(W, TOKENS, layers=[2], heads=[1, 3])
    page.cell(2, "3").click()
    page.settle()
    assert page.text("#shown") == "Layer 2, head 3"
    assert page.hover(4, 2)[0] == pytest.approx(W[2, 3, 4, 2], abs=EXACT)
    assert page.page.locator('#grid [role="columnheader"]').all_inner_texts() == ["", "1", "3", "mean", "rollout"]
    page.cell(2, "rollout").click()
    page.settle()
    assert page.hover(4, 2)[0] == pytest.approx(rollout(W)[2, 4, 2], abs=EXACT)


def test_names_of_columns_are_not_cut(show: Open) -> None:
    page = show(random_weights(2, 12, 26, 26), [f"token{i}" for i in range(26)])
    cut = "(names) => names.filter((name) => name.scrollWidth > name.clientWidth).map((name) => name.textContent)"
    assert page.page.locator('#grid [role="columnheader"]').evaluate_all(cut) == []
    assert page.page.locator("#rollout-note").is_visible()


def test_how_rows_of_a_decoder_are_named(show: Open) -> None:
    cross = ModelOutput(
        encoder_attentions=(random_weights(1, 2, 3, 3, seed=1),),
        cross_attentions=(random_weights(1, 2, 2, 3, seed=3),),
    )
    told = "what is written from it is the name of the next row"
    assert told in show(cross, list("abc"), ["start", "x"]).text("#precision")
    assert told not in show(W, TOKENS).text("#precision")


@pytest.mark.slow
def test_a_long_text_of_twelve_layers_and_heads(show: Open) -> None:
    w = random_weights(12, 12, 512, 512, spread=3.0)
    page = show(w, [f"token{i}" for i in range(512)])
    assert len(page.page.content().encode()) < 10_000_000
    assert re.search(
        r"off by 0\.6 % of that at most\..* with the sign ≈, and are off by 0\.0\d+ at most", page.text("#precision")
    )
    page.page.wait_for_selector(f'#grid[data-drawn="{12 * 14}"]', timeout=120_000)
    blank = page.page.evaluate("""() => [...document.querySelectorAll('.cell canvas')].filter((canvas) => {
      const pixels = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
      return pixels.every((value, i) => value === pixels[i % 4]);
    }).length""")
    assert blank == 0
    page.cell(11, "11").click()
    page.page.locator("#matrix").focus()
    page.press("ArrowDown", "ArrowRight")
    row = w[11, 11, 0]
    np.testing.assert_allclose([weight for _, weight in page.strongest()], np.sort(row)[::-1][:10], atol=0.012)
    assert "≈" not in page.text("#strongest")
    small = 1 + int(row[1:20].argmin())
    page.press(*["ArrowRight"] * (small - 1))  # the mean of those that are not kept
    assert page.text("#pair").startswith(f"“token{small}”") and "≈" in page.text("#pair")
    page.choose("Lines")
    page.page.locator("#lines-view").focus()
    page.press(*["ArrowDown"] * 40)
    assert page.text("#query") == "“token40” looks at"
    assert page.page.evaluate("() => document.getElementById('lines-view').scrollTop") > 0
