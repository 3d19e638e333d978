"""The pictures, each a function that draws what qkv computes while the site is built."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import qkv

from . import layers
from .draw import Picture
from .walk import DATE, LONG, first_layer, output, tokens

ROOT = Path(__file__).resolve().parents[2]


def ids() -> str:
    from .walk import model

    shown = tokens()
    numbers = model().tokenizer(["3 May 2031"])["input_ids"][0]
    drawn = Picture(44 * len(shown) + 100, 96)
    for i, (token, number) in enumerate(zip(shown, numbers, strict=True)):
        x = 90 + 44 * i
        drawn.box(x, 8, 38, 30)
        drawn.text(x + 19, 28, token, anchor="middle")
        drawn.arrow(f"M{x + 19} 40L{x + 19} 58")
        drawn.text(x + 19, 76, str(number), anchor="middle")
    for y, name in ((28, "token"), (76, "id")):
        drawn.text(80, y, name, anchor="end", kind="soft")
    return drawn.svg()


def embeddings() -> str:
    from .walk import model, parameter

    numbers = model().tokenizer(["3 May 2031"])["input_ids"][0]
    words = 8 * qkv.embedding(numbers, parameter("source.word.weight"))
    places = qkv.sinusoidal_positions(len(numbers), 64)
    drawn = Picture(760, 690)
    for i, (title, x) in enumerate(
        (("8 × row of the table", words), ("+ position", places), ("= what the first layer reads", words + places))
    ):
        drawn.matrix(x, 50, 30 + 225 * i, (11, 16), title=title, rows=tokens(), most=4)
    drawn.text(50, 670, "64 features from left to right; above zero in one colour, below it in the other", kind="soft")
    return drawn.svg()


def projections() -> str:
    found = first_layer()
    drawn = Picture(820, 250)
    for i, (name, title) in enumerate((("q", "queries"), ("k", "keys"), ("v", "values"))):
        drawn.matrix(found[name][2], 50 + 260 * i, 40, (14, 17), title=f"{title} of head 2", rows=tokens(), most=4)
    return drawn.svg()


def scores() -> str:
    found = first_layer()
    drawn = Picture(800, 410)
    for i, (name, title) in enumerate((("scores", "scores q·k / √16"), ("weights", "weights: softmax of each row"))):
        x, numbers = found[name][2], name == "weights"
        at = 50 + 400 * i
        drawn.matrix(x, at, 60, (31, 30), title=title, rows=tokens(), columns=tokens(), numbers=numbers)
    return drawn.svg()


def masks() -> str:
    drawn = Picture(860, 260)
    n = 9
    q = np.zeros((1, 1, n, 8), np.float32)
    several = {
        "all": {},
        "causal=True": {"causal": True},
        "window=(2, 0)": {"causal": True, "window": (2, 0)},
        "kv_lengths=[6]": {"kv_lengths": np.array([6])},
    }
    for i, (title, options) in enumerate(several.items()):
        _, weights = qkv.attention(q, q, q, return_weights=True, **options)
        drawn.matrix(weights[0, 0], 16 + 215 * i, 34, (20, 20), title=title, most=1)
    drawn.text(16, 240, "equal scores: a row's weights are one part each of what the query may see", kind="soft")
    return drawn.svg()


def heads() -> str:
    figure = qkv.view.figure(output(LONG), None, None, title=LONG, kind="cross")
    return _of_matplotlib(figure)


def _of_matplotlib(figure: object) -> str:
    """A figure as SVG without a background, its ink in the page's colour."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "qkv", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})  # type: ignore[attr-defined]
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace("#1d2433", "var(--md-default-fg-color,#1d2433)")
    names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" width="660"'
    return re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', rf"<svg {names} \1>", svg, count=1)


def residuals() -> str:
    """Lengths of the rows of the residual stream, in the encoder, after each layer."""
    states = output(LONG).encoder_hidden_states
    lengths = np.stack([np.linalg.norm(x[0], axis=-1) for x in states[:-1]] + [np.linalg.norm(states[-1][0], axis=-1)])
    shown = tokens(LONG)
    drawn = Picture(120 + 24 * len(shown), 140)
    names = ["embeddings", *(f"layer {i}" for i in range(1, len(states) - 1)), "after the norm"]
    drawn.matrix(lengths, 110, 40, (24, 26), rows=names, columns=shown)
    return drawn.svg()


def activation() -> str:
    xs = np.linspace(-4, 4, 161, dtype=np.float32)
    drawn = Picture(720, 270)
    drawn.curve(xs, {"gelu": qkv.gelu(xs), "relu": qkv.relu(xs)}, (40, 16, 310, 220), label="input of the activation")
    drawn.curve(xs, {"silu": qkv.silu(xs), "tanh": qkv.tanh(xs)}, (400, 16, 310, 220), label="input of the activation")
    return drawn.svg()


def cross() -> str:
    weights = np.mean([layer[0] for layer in output(LONG).cross_attentions], axis=(0, 1))
    shown = tokens(LONG)
    drawn = Picture(60 + 25 * len(shown), 330)
    drawn.matrix(weights, 50, 60, (25, 25), title="reads", rows=[*DATE, "end"], columns=shown)
    drawn.text(8, 56, "writes", kind="soft")
    return drawn.svg()


def steps() -> str:
    """Who computes what with a cache: a query a step, over the keys that are there."""
    n, prompt = 11, 1
    drawn = Picture(620, 320)
    for left, cached in ((60, False), (350, True)):
        x = np.full((n, n), np.nan)
        for step in range(n):
            x[step, : step + 1] = -0.25 if cached and step >= prompt else 1
            if cached:
                x[step, step] = 1
        title = "keys and values kept: one is new" if cached else "no cache: all of them again"
        drawn.matrix(x, left, 40, (22, 22), title=title, rows=[*DATE, "end"], most=1)
    drawn.text(60, 306, "keys that a step computes", kind="one")
    drawn.text(350, 306, "keys that it finds in the cache", kind="two")
    return drawn.svg()


def ladder() -> str:
    """Of the table in kernels.md, which `python -m bench ladder` printed."""
    text = (ROOT / "docs" / "pages" / "kernels.md").read_text(encoding="utf-8")
    rows = re.findall(r"^  (\S.*?)  +([\d.]+) (s|ms|µs)  ", text, re.MULTILINE)
    if not rows:
        raise ValueError("kernels.md: there is no table of the ladder")
    units = {"s": 1.0, "ms": 1e-3, "µs": 1e-6}
    seconds = [float(number) * units[unit] for _, number, unit in rows]
    scale = np.log10(max(seconds) / min(seconds)) + 0.5
    drawn = Picture(760, 22 * len(rows) + 30)
    drawn.bars(
        [
            (name, (np.log10(time / min(seconds)) + 0.5) / scale, f"{number} {unit}")
            for (name, number, unit), time in zip(rows, seconds, strict=True)
        ],
        300,
        8,
        380,
    )
    drawn.text(300, 22 * len(rows) + 22, "time of one head, on a logarithmic scale", kind="small soft")
    return drawn.svg()


def package() -> str:
    return layers.picture(layers.PACKAGE, layers.package_edges()).svg()


def kernels() -> str:
    return layers.picture(layers.KERNELS, layers.kernel_edges()).svg()


PICTURES: dict[str, Callable[[], str]] = {
    draw.__name__: draw
    for draw in (
        *(ids, embeddings, projections, scores, masks, heads, residuals, activation, cross, steps),
        *(ladder, package, kernels),
    )
}
