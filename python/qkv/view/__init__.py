"""Attention to look at: `attention` makes a page of HTML, `figure` a picture, of a model's output or any weights."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from . import sources
from .choices import chosen
from .document import Page
from .sources import Map
from .tokens import labels

__all__ = ["Page", "attention", "figure", "labels"]


def attention(
    x: Any,
    tokens: Any = None,
    target_tokens: Any = None,
    path: str | os.PathLike[str] | None = None,
    title: str | None = None,
    image: Any = None,
    *,
    row: int = 0,
    grid: tuple[int, int] | None = None,
    layers: Sequence[int] | int | None = None,
    heads: Sequence[int] | int | None = None,
) -> Page:
    """One HTML file that shows attention weights, complete in itself; returned as text, which a notebook shows as the
    page that it is.

    It has every head as a thumbnail with its entropy, any of them, several, or their mean as a matrix or as lines
    between tokens, and where queries and keys are the same tokens attention rollout (Abnar and Zuidema 2020). Weights
    have 16 bits where the page stays small, else 8, as parts of the largest of their head; the page says how large the
    error is. A decoder's rows are named by the tokens that it reads; what it writes from one is the name of the next.

    x: a model's output with output_attentions=True; generate's with return_dict_in_generate=True too, whose steps
    have a slider; an array of weights (layers, heads, S, T), (heads, S, T) or (S, T); or a list of layers, (B, heads,
    S, T), (heads, S, T) or (S, T). Padding is left out.
    tokens: strings, one for each key; for self-attention the queries too. Of an encoder-decoder the encoder's. None:
    numbers. target_tokens: the decoder's, of an array of weights those of the S queries. For generate: of the whole
    sequence, prompt included.
    image: of a vision model, the image under the weights: (H, W, 3) integers from 0 to 255 or floats from 0 to 1, or,
    with the extra `images`, a path or one of Pillow's. grid: (rows, columns) of its patches, which are the last
    tokens; None: a square, unless there are tokens, which may be a text's.
    path: where the page is written, in UTF-8; None: nowhere.
    row: of the batch. title: of the page. layers, heads: numbers from 0 of those that are shown; None: all. Rollout
    goes through all of them nevertheless.

    TypeError: what is no array, or tokens that are no strings. ValueError: shapes and tokens that do not fit, negative
    weights, NaN, rows with a sum above 1, no such layer or head, an image under a text, weights that do not fit into
    10 MB. UserWarning: rows with a sum below 1.
    """
    from .assemble import page

    found = _maps(x, tokens, target_tokens, row, image, grid)
    text = Page(page(found, _title(title), layers, heads))
    if path is not None:
        Path(path).write_text(text, encoding="utf-8")
    return text


def figure(
    x: Any,
    tokens: Any = None,
    target_tokens: Any = None,
    path: str | os.PathLike[str] | None = None,
    title: str | None = None,
    *,
    row: int = 0,
    kind: str | None = None,
    layer: Sequence[int] | int | None = None,
    head: Sequence[int] | int | None = None,
) -> Any:
    """A matplotlib Figure of attention weights: heads as a grid, or one head of one layer large. Needs the extra
    `plot`.

    x, tokens, target_tokens, title, row: as of `attention`.
    path: where it is saved, such as x.png or x.svg; None: nowhere.
    kind: of several kinds of attention in x, "encoder", "decoder" or "cross"; None: cross where there is one.
    layer, head: numbers from 0 of those that are drawn; None: all.

    Errors are those of `attention`. ValueError, besides: there is no such kind.
    """
    from .plot import draw

    found = _maps(x, tokens, target_tokens, row, None, None)
    names = {item.name.split("-")[0].lower(): item for item in found}
    if kind is not None and kind not in names:
        raise ValueError(f"view: there is no kind {kind!r:.60}; there are {', '.join(names)}")
    item = names[kind] if kind is not None else found[-1]
    layers, heads, _, _ = item.weights.shape
    of_layers = chosen("view", "layer: numbers", layer, layers, item.name)
    drawn = draw(item, _title(title), of_layers, chosen("view", "head: numbers", head, heads, item.name))
    if path is not None:
        drawn.savefig(path, dpi=150)
    return drawn


def _title(title: str | None) -> str:
    if title is not None and not isinstance(title, str):
        raise TypeError(f"view: title must be a string; got {type(title).__name__}")
    return "Attention" if title is None else title


def _maps(x: Any, tokens: Any, target_tokens: Any, row: int, image: Any, grid: Any) -> list[Map]:
    if image is None:
        if grid is not None:
            raise ValueError("view: grid is for an image; there is none")
        return sources.maps(x, tokens, target_tokens, row)
    from .pictures import patch_names, picture

    found = sources.maps(x, tokens, target_tokens, row)
    if target_tokens is not None or len(found) > 1 or found[0].prompt is not None:
        raise ValueError("view: an image is under the weights of a vision model; these are of a text that is written")
    if tokens is not None and grid is None:
        raise ValueError(
            "view: an image goes with tokens that are its patches; if these are, pass grid=(rows, columns) too; if "
            "they are a text's, pass no image"
        )
    made = picture(image, len(found[0].keys), grid)
    shown = sources.with_picture(found, made)
    if tokens is not None:
        return shown
    names = patch_names(len(found[0].keys) - made.rows * made.columns, made.rows, made.columns)
    return [replace(item, queries=names, keys=names) for item in shown]
