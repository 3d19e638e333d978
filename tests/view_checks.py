"""Pages of qkv.view, read back: their elements, their tokens, and their weights by the formulas of the format."""

from __future__ import annotations

import base64
import json
import zlib
from html.parser import HTMLParser
from typing import Any

import numpy as np


class Elements(HTMLParser):
    """The elements of a page as a browser would see them: (tag, attributes, text)."""

    def __init__(self, text: str):
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None], str]] = []
        self.inside = False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        self.found.append((tag, dict(attributes), ""))
        self.inside = True

    def handle_endtag(self, tag: str) -> None:
        self.inside = False

    def handle_data(self, data: str) -> None:
        if self.inside:
            tag, attributes, text = self.found[-1]
            self.found[-1] = tag, attributes, text + data

    def named(self, tag: str, **attributes: str) -> list[str]:
        """The texts of some elements."""
        wanted = {name.rstrip("_"): value for name, value in attributes.items()}
        return [text for t, found, text in self.found if t == tag and wanted.items() <= found.items()]


def data_of(page: str) -> dict[str, Any]:
    (text,) = Elements(page).named("script", id="data")
    found: dict[str, Any] = json.loads(text)
    return found


def weights_of(page: str) -> list[tuple[np.ndarray, np.ndarray | None]]:
    """Of each map (L, H, S, T) float64, and rollout (L, S, T), decoded as the format's description says, in float64."""
    data, blocks = data_of(page), Elements(page).named("script", class_="codes")

    def read(shape: list[int], largest: list[float]) -> np.ndarray:
        codes = np.frombuffer(zlib.decompress(base64.b64decode(blocks.pop(0))), "<u2" if data["bits"] == 16 else "u1")
        codes = codes.reshape(*shape[:3], shape[3] + 1).astype(np.int64)
        value = np.where(codes >= 2, ((codes - 1) / data["levels"]) ** 3, 0.0)
        return np.where(codes[..., 1:] == 1, value[..., :1], value[..., 1:]) * np.reshape(largest, (*shape[:2], 1, 1))

    found: list[tuple[np.ndarray, np.ndarray | None]] = []
    for described in data["maps"]:
        layers, _, s, t = described["shape"]
        weights = read(described["shape"], described["largest"][0])
        found.append(
            (weights, read([layers, 1, s, t], described["largest"][1])[:, 0] if described["rollout"] else None)
        )
    assert not blocks
    return found


def softmax(scores: np.ndarray) -> np.ndarray:
    e = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def random_weights(*shape: int, spread: float = 2.0, seed: int = 0, causal: bool = False) -> np.ndarray:
    scores = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32) * spread
    if causal:
        scores[..., np.triu(np.ones(shape[-2:], bool), 1)] = -np.inf
    return softmax(scores)
