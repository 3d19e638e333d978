"""Images to what a model takes: a checkpoint's preprocessor_config.json, as transformers' processors built on Pillow
compute it (extra `images`).

The steps, in this order, each of them optional: RGB, resize, centre crop, rescale, normalise, and for ImageGPT the
nearest of its colours. Resizing is Pillow's, on 8 bits a channel, so these steps agree to the bit.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import io
import os
import warnings
from collections.abc import Iterator, Mapping
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np

from .arrays import as_numpy
from .config import Config
from .files import parse_json
from .layers import Array

FILE = "preprocessor_config.json"
MAX_SIDE = 2**16
COLOURS_AT_ONCE = 4096  # pixels that are compared with all colours in one piece

HALF = [0.5, 0.5, 0.5]
DEFAULTS: dict[str, dict[str, Any]] = {  # of the classes, Fast ones and feature extractors of old included
    "ViTImageProcessor": {"size": 224, "resample": 2},
    "DeiTImageProcessor": {"size": 256, "resample": 3, "do_center_crop": True, "crop_size": 224},
    "BeitImageProcessor": {"size": 224, "resample": 3, "crop_size": 224},
    "ImageGPTImageProcessor": {"size": 256, "resample": 2, "do_color_quantize": True},
}
OF_MODELS = {"vit": "ViTImageProcessor", "deit": "DeiTImageProcessor", "imagegpt": "ImageGPTImageProcessor"}
# what a call may change
OPTIONS = (
    *("do_resize", "size", "resample", "do_center_crop", "crop_size", "do_rescale", "rescale_factor", "do_normalize"),
    *("image_mean", "image_std", "do_convert_rgb", "do_color_quantize", "clusters", "input_data_format"),
)


class ImageProcessor:
    """`processor(images)` gives what a model's call takes: pixel_values, or ImageGPT's input_ids.

    settings: a preprocessor_config.json. Its class, which says what is done where nothing is said, is that of
    image_processor_type or feature_extractor_type. ValueError: a value that is wrong or not implemented, by name.
    """

    def __init__(self, settings: Mapping[str, Any], where: str = FILE):
        name = settings.get("image_processor_type") or settings.get("feature_extractor_type")
        kind = str(name).removesuffix("Fast").replace("FeatureExtractor", "ImageProcessor")
        if kind not in DEFAULTS:
            raise ValueError(f"{where}: image processor {name!r} is not supported; known are {', '.join(DEFAULTS)}")
        self.settings = dict(settings)
        config = Config(settings, where).with_defaults(DEFAULTS[kind])
        if isinstance(config.get("resample"), IntEnum):  # Pillow's name for it
            config = config.replaced({"resample": int(config["resample"])})
        for other, value in (("do_pad", False), ("pad_size", None), ("data_format", "channels_first")):
            config.only(other, value)
        self.do_resize = config.flag("do_resize", True)
        self.size = _size(config, "size", ("shortest_edge",), ("shortest_edge", "longest_edge"))
        self.resample = config.integer("resample", 2, low=0, high=5)  # as Pillow numbers its filters
        self.do_center_crop = config.flag("do_center_crop", False)
        self.crop_size = _size(config, "crop_size")
        if self.do_center_crop and not self.crop_size:
            raise config.error("crop_size", "a size, as do_center_crop is true")
        self.do_rescale = config.flag("do_rescale", True)
        self.rescale_factor = config.number("rescale_factor", 1 / 255)
        self.do_normalize = config.flag("do_normalize", True)
        self.mean, self.std = _numbers(config, "image_mean"), _numbers(config, "image_std")
        if not all(self.std):
            raise config.error("image_std", "without zeros")
        self.do_convert_rgb = config.flag("do_convert_rgb", False)
        self.layout = config.get("input_data_format")
        if self.layout not in (None, "channels_first", "channels_last"):
            raise config.error("input_data_format", "channels_first or channels_last")
        self.clusters = _clusters(config) if config.flag("do_color_quantize", False) else None
        self.rgb = self.do_convert_rgb or (self.do_normalize and len(self.mean) == 3)  # of grey images too

    @classmethod
    def from_files(cls, files: Mapping[str, bytes], config: Config) -> ImageProcessor:
        """From a checkpoint's files and its config.json, whose model_type decides where preprocessor_config.json names
        no class."""
        kind = OF_MODELS.get(str(config.get("model_type")))
        if kind is None:
            raise ValueError(f"a model of type {config.get('model_type')!r} takes no images")
        if FILE not in files:
            raise ValueError(f"this model has no {FILE}, which says how images are prepared for it")
        settings = parse_json(files[FILE], FILE)
        if not isinstance(settings, dict):
            raise ValueError(f"{FILE}: must hold a JSON object")
        if not (settings.get("image_processor_type") or settings.get("feature_extractor_type")):
            settings["image_processor_type"] = kind
        return cls(settings)

    def __call__(self, images: Any, **options: Any) -> dict[str, Array]:
        """{"pixel_values": (B, C, H, W) float32}, or for colours {"input_ids": (B, H * W) int64}.

        images: one or a list of paths, bytes of a file, Pillow's images, or arrays of 0 to 255 (or floats of 0 to 1
        with do_rescale=False), (H, W), (H, W, C) or (C, H, W) with 1, 3 or 4 channels, or (B, ...) of these with
        channels. A file's picture is turned as its EXIF data say and becomes RGB; one of Pillow's is taken as it is,
        as in transformers, in RGB. options: other values for this call, under the names of preprocessor_config.json;
        input_data_format "channels_first" or "channels_last" where an array's shape does not tell.

        TypeError: something that is no image. ValueError: a broken or too large file, a wrong shape, NaN, or images
        that do not come out in one size. OSError: a file that cannot be read.
        """
        if options:
            for name in options:
                if name not in OPTIONS:
                    raise ValueError(f"image_processor: there is no option {name}; known are {', '.join(OPTIONS)}")
            return ImageProcessor({**self.settings, **options}, "image_processor")(images)
        made = [self._one(image, f"image {i}") for i, image in enumerate(_list(images))]
        if not made:
            raise ValueError("image_processor: expected at least one image")
        shapes = {array.shape for array in made}
        if len(shapes) > 1:
            raise ValueError(
                f"image_processor: images come out in different shapes, {sorted(shapes)}; pass them singly"
            )
        return {"pixel_values" if self.clusters is None else "input_ids": np.stack(made)}

    def _one(self, image: Any, name: str) -> Array:
        x = self._channels(image, name)
        if self.do_resize:
            x = self._resize(x, name)
        if self.do_center_crop:
            height, width = self.crop_size["height"], self.crop_size["width"]
            _check_size((width, height), f"{name}, cropped,")
            x = _center_crop(x, height, width)
        if self.do_rescale:
            if x.dtype.kind == "f" and x.min() >= 0 and 0 < x.max() <= 1:
                warnings.warn(
                    f"image_processor: {name} has values from 0 to 1, which are scaled by {self.rescale_factor:.4g} "
                    "once more; pass do_rescale=False, or values from 0 to 255",
                    stacklevel=3,
                )
            x = (x.astype(np.float64) * self.rescale_factor).astype(np.float32)
        if self.do_normalize:
            dtype = x.dtype if x.dtype.kind == "f" else np.dtype(np.float32)
            for values, what in ((self.mean, "image_mean"), (self.std, "image_std")):
                if len(values) not in (1, len(x)):
                    raise ValueError(f"image_processor: {name} has {len(x)} channels, and {what} {len(values)} numbers")
            mean, std = (np.array(values, dtype)[:, None, None] for values in (self.mean, self.std))
            x = (x - mean) / std
        if self.clusters is not None:
            return _nearest(x, self.clusters, name)
        return np.ascontiguousarray(x, np.float32)

    def _channels(self, image: Any, name: str) -> Array:
        """As (C, H, W), 8 bits a channel unless it is an array of something else."""
        pillow = _import_pillow()
        if isinstance(image, (str, bytes, os.PathLike)):
            image = load_image(image)
        last = self.layout == "channels_last"
        if isinstance(image, pillow.Image):
            _check_size(image.size, name)
            image, last = np.asarray(self._modes(image, name)), True
        if isinstance(image, (list, tuple)) or image is None:
            raise TypeError(
                f"image_processor: {name} must be a path, bytes, an image of Pillow or an array; "
                f"got {type(image).__name__}"
            )
        x = as_numpy("image_processor", name, image)
        if x.dtype.name == "bfloat16":
            x = x.astype(np.float32)
        if x.dtype.kind not in "uif":
            raise TypeError(f"image_processor: {name} must be integers or floats; got {x.dtype}")
        if x.ndim == 2:
            x = x[None]
        elif x.ndim == 3 and (last or (self.layout is None and x.shape[0] not in (1, 3, 4))):
            x = x.transpose(2, 0, 1)
        if x.ndim != 3 or len(x) not in (1, 3, 4):
            raise ValueError(
                f"image_processor: {name} must be (height, width) or have 1, 3 or 4 channels, first or last; "
                f"got an array of shape {np.shape(image)}"
            )
        _check_size((x.shape[2], x.shape[1]), name)
        if x.dtype.kind == "f" and not np.isfinite(x).all():
            raise ValueError(f"image_processor: {name} holds NaN or infinity")
        if len(x) == 1 and self.rgb:
            x = np.repeat(x, 3, axis=0)
        return _on_white(x, name) if len(x) == 4 and self.do_convert_rgb else x

    def _modes(self, image: Any, name: str) -> Any:
        """One of Pillow's images in RGB, if it is not grey; with do_convert_rgb on white where it is transparent."""
        pillow = _import_pillow()
        with _reading(name, "the image is broken"):  # a file is read as late as here
            if self.do_convert_rgb and ("A" in image.getbands() or image.info.get("transparency") is not None):
                white = pillow.new("RGBA", image.size, (255, 255, 255, 255))
                image = pillow.alpha_composite(white, image.convert("RGBA"))
            return image if image.mode == "L" else image.convert("RGB")

    def _resize(self, x: Array, name: str) -> Array:
        height, width = self._new_size(*x.shape[1:])
        _check_size((width, height), f"{name}, resized,")
        pillow = _import_pillow()
        pixels, scaled = x, False
        if x.dtype != np.uint8:
            low, high = x.min(), x.max()
            whole = 0 <= low <= high <= 255 and np.allclose(x, x.astype(np.int64))
            if low < 0 or high > (255 if whole else 1):
                raise ValueError(
                    f"image_processor: {name} must have values from 0 to 255, or floats from 0 to 1, to be resized; "
                    f"got {low} to {high}"
                )
            scaled = not whole
            pixels = ((x.astype(np.float64) * 255).astype(np.float32) if scaled else x).astype(np.uint8)
        grey = len(pixels) == 1
        image = pillow.fromarray(np.ascontiguousarray(pixels[0] if grey else pixels.transpose(1, 2, 0)))
        pixels = np.asarray(image.resize((width, height), resample=self.resample))
        pixels = pixels[None] if grey else pixels.transpose(2, 0, 1)
        return (pixels.astype(np.float64) * (1 / 255)).astype(np.float32) if scaled else pixels

    def _new_size(self, height: int, width: int) -> tuple[int, int]:
        """Of an image after resizing."""
        if "height" in self.size:
            return self.size["height"], self.size["width"]
        short, long = sorted((height, width))
        size: float = self.size["shortest_edge"]
        limit = self.size.get("longest_edge")
        if limit is not None and long / short * size > limit:
            exact = limit * short / long
            if round(exact) == short:  # as it is
                return height, width
            new = round(exact), int(exact * long / short)
        elif limit is not None and short == size:
            return height, width
        else:
            new = int(size), int(size * long / short)
        return new if height <= width else new[::-1]


def load_image(image: Any) -> Any:
    """One of Pillow's images in RGB, turned as its EXIF data say, from a path, the bytes of a file, these in base64
    or a data: URL; or from such an image. Of several frames it is the first.

    FileNotFoundError and others: a file that cannot be read. ValueError: not an image, a broken or too large one.
    """
    pillow = _import_pillow()
    from PIL import ImageOps

    name = "image"
    try:
        if isinstance(image, bytes):
            opened = _open(io.BytesIO(image), name)
        elif isinstance(image, str) and image.startswith("data:image/"):
            opened = _open(io.BytesIO(base64.b64decode(image.partition(",")[2], validate=True)), name)
        elif isinstance(image, str) and image.startswith(("http://", "https://")):
            raise ValueError(f"{image:.99}: images are not fetched from the network; download it and pass its path")
        elif isinstance(image, str) and (data := _base64(image)) is not None:
            opened = _open(io.BytesIO(data), name)
        elif isinstance(image, (str, os.PathLike)):
            name = os.fspath(image)
            data = Path(image).read_bytes()  # whole, so that an error from here on is the image's
            opened = _open(io.BytesIO(data), name)
        elif isinstance(image, pillow.Image):
            opened = image
            _check_size(image.size, name)
        else:
            raise TypeError(f"expected a path, bytes or an image of Pillow; got {type(image).__name__}")
    except binascii.Error as error:
        raise ValueError(f"image: {error} in a data: URL") from None
    with _reading(name, "the image is broken"):
        return ImageOps.exif_transpose(opened).convert("RGB")


# How files begin: PNG, JPEG, GIF, BMP, WebP, TIFF
MAGIC = (b"\x89PNG", b"\xff\xd8", b"GIF8", b"BM", b"RIFF", b"II*\0", b"MM\0*")


def _base64(text: str) -> bytes | None:
    """The bytes of an image that a text holds; None: it is a file's name."""
    if len(text) < 64:  # no image is so small
        return None
    try:
        data = base64.b64decode("".join(text.split()), validate=True)
    except ValueError:
        return None
    return data if data.startswith(MAGIC) else None


def _open(stream: io.BytesIO, name: str) -> Any:
    pillow = _import_pillow()
    with _reading(name, "not an image that Pillow can read"):
        try:
            opened = pillow.open(stream)
        except pillow.UnidentifiedImageError:
            raise ValueError("no format that it knows") from None
    if opened.format == "EPS":  # Ghostscript would run it
        raise ValueError(f"{name}: EPS images are programs, which are not run")
    _check_size(opened.size, name)
    return opened


@contextlib.contextmanager
def _reading(name: str, what: str) -> Iterator[None]:
    """Whatever Pillow's readers raise for a broken file, which may be anything, as a ValueError."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        raise ValueError(f"{name}: {what}: {error}") from None


def _check_size(size: tuple[int, int], name: str) -> None:
    """Of width and height, before anything of that size is allocated."""
    width, height = size
    limit = _import_pillow().MAX_IMAGE_PIXELS  # a user may set it
    if not width or not height or (limit is not None and width * height > limit):
        what = f"more than {limit} pixels (PIL.Image.MAX_IMAGE_PIXELS)" if width and height else "no pixels"
        raise ValueError(f"{name} is of {width} x {height}, {what}")


def _list(images: Any) -> list[Any]:
    """One image, or several, as a list."""
    if isinstance(images, (list, tuple)):
        return list(images)
    return list(images) if getattr(images, "ndim", 3) == 4 else [images]


def _size(config: Config, name: str, *others: tuple[str, ...]) -> dict[str, int]:
    """{"height", "width"} of a number or a pair, or what the config has, if it has those keys or others."""
    value = config.get(name)
    if value is None:
        return {}
    if isinstance(value, (list, tuple)) and len(value) == 2:
        value = {"height": value[0], "width": value[1]}
    elif not isinstance(value, Mapping):
        value = {"height": value, "width": value}
    value = {key: side for key, side in value.items() if side is not None}
    keys = {frozenset(keys) for keys in (("height", "width"), *others)}
    if frozenset(value) not in keys or not all(type(v) is int and 1 <= v < MAX_SIDE for v in value.values()):
        raise config.error(name, " or ".join(sorted(", ".join(sorted(k)) for k in keys)) + f", below {MAX_SIDE} each")
    return dict(value)


def _numbers(config: Config, name: str) -> list[float]:
    """One for each channel, or one for all."""
    value = config.get(name, HALF)
    values = list(value) if isinstance(value, (list, tuple)) else [HALF[0] if value is None else value]
    if not values or not all(type(v) in (int, float) and abs(v) < 1e30 for v in values):
        raise config.error(name, "a number, or one for each channel")
    return [float(v) for v in values]


def _clusters(config: Config) -> Array:
    """(n, 3) float64."""
    try:
        clusters = np.array(config.get("clusters"), np.float64)
    except (TypeError, ValueError):
        clusters = np.zeros(0)
    if clusters.ndim != 2 or clusters.shape[1] != 3 or not len(clusters) or not np.isfinite(clusters).all():
        raise config.error("clusters", "a list of colours of three numbers each, as do_color_quantize is true")
    return clusters


def _on_white(x: Array, name: str) -> Array:
    """RGB of RGBA (4, H, W), integers of 0 to 255 or floats of 0 to 1."""
    white = 1.0 if x.dtype.kind == "f" else 255
    if x.min() < 0 or x.max() > white:
        raise ValueError(f"image_processor: {name} has four channels with values outside 0 to {white}")
    alpha = x[3:] / white
    blended = alpha * x[:3] + (1 - alpha) * white
    return (blended if x.dtype.kind == "f" else np.round(blended)).astype(x.dtype)


def _center_crop(x: Array, height: int, width: int) -> Array:
    """(C, height, width) of the middle; where the image is smaller, zeros around it."""
    for axis, size in ((1, height), (2, width)):
        old = x.shape[axis]
        if old < size:
            before = -((old - size) // 2)
            pad = [(0, 0)] * 3
            pad[axis] = before, size - old - before
            x = np.pad(x, pad)
        else:
            start = (old - size) // 2
            x = x.take(range(start, start + size), axis=axis)
    return x


def _nearest(x: Array, clusters: Array, name: str) -> Array:
    """For each pixel of (3, H, W) the number of the nearest colour, (H * W,) int64."""
    if len(x) != 3:
        raise ValueError(f"image_processor: {name} has {len(x)} channels; colours have 3")
    pixels = x.reshape(3, -1).T
    ids = np.empty(len(pixels), np.int64)
    lengths = np.square(clusters).sum(axis=1)
    for start in range(0, len(pixels), COLOURS_AT_ONCE):
        some = pixels[start : start + COLOURS_AT_ONCE]
        # the product form, and in these types: of two colours that are equally near the same one is taken
        distances = np.square(some).sum(axis=1)[:, None] - 2 * (some @ clusters.T) + lengths
        ids[start : start + len(some)] = distances.argmin(axis=1)
    return ids


def _import_pillow() -> Any:
    try:
        import PIL.Image
    except ImportError:
        raise ImportError('images need the pillow package: pip install "qkv[images]"') from None
    return PIL.Image
