"""The image under the weights of a vision model: as the data of a PNG, and how many patches it has."""

from __future__ import annotations

import base64
import struct
import zlib
from typing import Any

import numpy as np

from ..arrays import as_numpy
from .sources import Array, Picture

MOST = 1024  # pixels of a side; larger ones are thinned out


def picture(image: Any, tokens: int, grid: Any) -> Picture:
    """image: an array (height, width), (height, width, 3) or (3, height, width), of integers from 0 to 255 or floats
    from 0 to 1, or anything that qkv.images reads, with the extra `images`. grid: (rows, columns) of patches, the
    last of the tokens; None: a square. ValueError: there is none."""
    pixels = _pixels(image)
    if grid is None:
        side = next((s for s in (_root(tokens - 1), _root(tokens - 2), _root(tokens)) if s), None)
        if side is None:
            raise ValueError(
                f"view: {tokens} tokens are no square of patches with a class token; pass grid=(rows, columns)"
            )
        grid = side, side
    whole = (int, np.integer)
    if (
        not isinstance(grid, (list, tuple))
        or len(grid) != 2
        or not all(isinstance(n, whole) and not isinstance(n, bool) and n > 0 for n in grid)
    ):
        raise ValueError(f"view: grid must be (rows, columns) of patches; got {grid!r:.60}")
    return Picture("data:image/png;base64," + base64.b64encode(png(pixels)).decode(), int(grid[0]), int(grid[1]))


def _root(n: int) -> int:
    """The side of a square of n patches, 0 if there is none."""
    side = int(max(n, 0) ** 0.5 + 0.5)
    return side if side * side == n else 0


def patch_names(special: int, rows: int, columns: int) -> list[str]:
    """Tokens of an image: special ones as ViT and DeiT have them, then patches by row and column."""
    names = ["[CLS]", "[DIST]", *(f"[special {i}]" for i in range(2, special))][:special]
    return names + [f"patch {i},{j}" for i in range(rows) for j in range(columns)]


def _pixels(image: Any) -> Array:
    """(height, width, 3) uint8."""
    if isinstance(image, (str, bytes)) or hasattr(image, "__fspath__") or hasattr(image, "getbands"):
        from ..images import load_image

        image = np.asarray(load_image(image))
    x = as_numpy("view", "image", image)
    if x.ndim == 3 and x.shape[0] in (1, 3) and x.shape[2] not in (1, 3):
        x = x.transpose(1, 2, 0)
    if x.ndim == 2:
        x = x[:, :, None]
    if x.ndim != 3 or x.shape[2] not in (1, 3) or not x.size:
        raise ValueError(f"view: image must be (height, width), with 3 channels or without; got shape {x.shape}")
    if x.dtype.kind == "f":
        if not np.isfinite(x).all() or x.min() < 0 or x.max() > 1:
            raise ValueError("view: an image of floats must have values from 0 to 1")
        x = np.rint(x * 255)
    elif x.dtype.kind not in "iu" or x.min() < 0 or x.max() > 255:
        raise ValueError("view: an image must have integers from 0 to 255, or floats from 0 to 1")
    step = -(-max(x.shape[:2]) // MOST)
    return np.broadcast_to(x, (*x.shape[:2], 3))[::step, ::step].astype(np.uint8)


def png(pixels: Array) -> bytes:
    """A PNG file of pixels (height, width, 3) uint8."""
    height, width, _ = pixels.shape

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    lines = np.zeros((height, 1 + 3 * width), np.uint8)  # 0: no filter
    lines[:, 1:] = pixels.reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # RGB
    body = zlib.compress(lines.tobytes(), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
