"""What a trace is of: one text, pair of texts, image or row of ids, as the inputs of a model's call, with names."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..arrays import as_numpy
from ..images import OF_MODELS
from ..models.transfo_xl import TransfoXL
from ..models.vit import ImageModel
from ..packing import regular
from ..view import reading
from ..view.choices import joined
from .steps import Array

NAMES = (
    *("input_ids", "attention_mask", "token_type_ids", "position_ids"),
    *("decoder_input_ids", "decoder_attention_mask", "pixel_values", "mems"),
)


@dataclass
class Given:
    """arguments: of the model's call. labels, ids, texts, vectors: by axis, "token" or "target"; masks: the places of
    a padded row that are real. masked: places of the mask token. pixels: (channels, height, width). image: the name of
    its file. types: whether there are token types other than by default."""

    model: Any
    arguments: dict[str, Any]
    labels: dict[str, list[str]] = field(default_factory=dict)
    ids: dict[str, Array] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    vectors: dict[str, Array] = field(default_factory=dict)
    masks: dict[str, Array] = field(default_factory=dict)
    pixels: Array | None = None
    image: str | None = None
    tokenizer: Any = None

    @property
    def types(self) -> bool:
        return self.arguments.get("token_type_ids") is not None

    @property
    def masked(self) -> set[int]:
        mask = getattr(self.tokenizer, "mask_token_id", None)
        return set() if mask is None else set(np.flatnonzero(self.ids["token"] == mask).tolist())

    def length(self, axis: str) -> int:
        """Tokens, padding included."""
        return len(self.masks.get(axis, self.labels[axis]))

    def real(self, axis: str, x: Array) -> Array:
        """Rows of an output without its padding."""
        mask = self.masks.get(axis)
        return x if mask is None or len(mask) != len(x) else x[mask]

    def names(self, ids: Any) -> list[str]:
        """Of token ids, as a reader knows them."""
        if self.tokenizer is None:
            return [str(int(i)) for i in ids]
        from ..view.tokens import labels

        return labels(self.tokenizer, ids)

    def classes(self, count: int) -> list[str]:
        """The labels of a classifier, as its config names them."""
        said = self.model.config.get("id2label")
        said = {str(key): str(value) for key, value in said.items()} if isinstance(said, dict) else {}
        return [said.get(str(i), f"label {i}") for i in range(count)]


def prepare(model: Any, inputs: Any, target: Any, pair: str | None) -> Given:
    """ValueError, TypeError: the model does not take what is given, or it is more than one row."""
    reading.check("trace", model, target, pair)
    if pair is not None and not isinstance(inputs, str):
        raise TypeError("trace: pair is a second text; the first must be a text too")
    if model.config.get("model_type") in OF_MODELS and not isinstance(inputs, Mapping):
        given = _image(model, inputs)
    elif isinstance(inputs, str):
        given = _text(model, inputs, pair)
    elif isinstance(inputs, Mapping):
        unknown = [name for name in inputs if name not in NAMES]
        if unknown:
            raise ValueError(f"trace: {unknown[0]!r:.60} is no input of a model; they are {', '.join(NAMES)}")
        given = Given(model, {name: value for name, value in inputs.items() if value is not None})
    else:
        given = Given(model, {"input_ids": _row("inputs", inputs)})
    if given.tokenizer is None:
        given.tokenizer = _tokenizer(model)
    _name_sources(given)
    if reading.has_two_stacks(model):
        _target(given, target)
        _name_row(given, "target", "decoder_input_ids", "decoder_attention_mask")
    return given


def _row(name: str, value: Any) -> Array:
    """One row of ids, or of vectors, as a batch of one."""
    array: Array = (
        regular(f"trace: {name}", value) if isinstance(value, (list, tuple)) else as_numpy("trace", name, value)
    )
    wanted = 3 if array.dtype.kind == "f" and array.size else 2
    return array[None] if array.ndim == wanted - 1 else array


def _tokenizer(model: Any) -> Any:
    """None: the model has no files for one, or what reads them is not installed."""
    try:
        return model.tokenizer
    except (ValueError, ImportError):
        return None


def _text(model: Any, text: str, pair: str | None) -> Given:
    batch = reading.read("trace", model, text, pair)
    given = Given(model, batch, tokenizer=model.tokenizer)
    given.texts["token"] = joined(text, pair)
    return given


def _image(model: Any, image: Any) -> Given:
    if isinstance(model, ImageModel) and not isinstance(image, str) and getattr(image, "ndim", 0) in (3, 4):
        array = as_numpy("trace", "inputs", image)
        if array.dtype.kind == "f" and array.shape[-3] == model.patches.channels:
            return Given(model, {"pixel_values": array.reshape(-1, *array.shape[-3:])})
    if isinstance(image, (list, tuple)) or getattr(image, "ndim", 3) in (1, 2):  # ImageGPT's ids
        return Given(model, {"input_ids": _row("inputs", image)})
    given = Given(model, dict(model.image_processor(image)))
    if isinstance(image, (str, os.PathLike)):
        given.image = os.path.basename(image)
    return given


def _name_sources(given: Given) -> None:
    model = given.model
    if isinstance(model, ImageModel):
        from ..view.pictures import patch_names

        pixels = np.asarray(model.patches.check(given.arguments.get("pixel_values")))
        _one(len(pixels))
        given.pixels = pixels[0]
        special = len(model.patches.special)
        given.labels["token"] = patch_names(special, *model.patches.grid)
        given.labels["patch"] = given.labels["token"][special:]
        return
    _name_row(given, "token", "input_ids", "attention_mask")
    if isinstance(model, TransfoXL):
        mems = given.arguments.get("mems")
        before = model.mem_len if mems is None else len(np.asarray(next(iter(mems))))
        memory = [f"memory {i}" for i in range(-before, 0)]
        given.labels |= {"memory": memory, "key": memory + given.labels["token"]}


def _one(rows: int) -> None:
    if rows != 1:
        raise ValueError(f"trace: it shows one row at a time; got {rows}")


def _name_row(given: Given, axis: str, name: str, name_of_mask: str) -> None:
    """Ids and labels of what is no padding."""
    if given.arguments.get(name) is None:
        raise ValueError(f"trace: a {given.model.architecture} needs {name}")
    array = np.asarray(given.arguments[name])
    if array.ndim < 2:
        raise ValueError(f"trace: {name} must be (1, tokens); got shape {array.shape}")
    _one(len(array))
    row = array[0]
    mask = given.arguments.get(name_of_mask)
    if mask is not None:
        mask = np.asarray(mask).reshape(-1).astype(bool)
        if mask.shape == row.shape[:1]:  # else the model has the words for it
            row, given.masks[axis] = row[mask], mask
    if row.ndim == 2:
        given.vectors[axis] = row.astype(np.float32)
        given.labels[axis] = [str(i) for i in range(len(row))]
        return
    if not row.size:
        raise ValueError(f"trace: there are no tokens in {name}")
    given.ids[axis] = row
    vocabulary = row.dtype.kind in "iu" and given.tokenizer is not None
    given.labels[axis] = given.names(row) if vocabulary else [str(i) for i in row.tolist()]


def _target(given: Given, target: Any) -> None:
    """What the decoder reads."""
    model, arguments = given.model, given.arguments
    if target is not None and arguments.get("decoder_input_ids") is not None:
        raise ValueError("trace: give a target or decoder_input_ids, not both")
    if arguments.get("decoder_input_ids") is not None:
        return
    if isinstance(target, str):
        fed = _without_end(model, reading.target_ids(model, target))
        given.texts["target"] = target
    elif target is not None:
        arguments["decoder_input_ids"] = _row("target", target)
        return
    elif reading.makes_tokens(model):
        known = {name: arguments[name] for name in ("input_ids", "attention_mask") if name in arguments}
        made = model.generate(**known, max_new_tokens=reading.new_tokens(model), num_beams=1, do_sample=False)
        fed = _without_end(model, made[0])
    elif model.shift is not None and "token" in given.ids:
        fed = model.shift(given.ids["token"][None])[0]
    else:
        raise ValueError(f"trace: a {model.architecture} does not generate; pass a target")
    arguments["decoder_input_ids"] = reading.as_much_as_fits("trace", model, fed)


def _without_end(model: Any, ids: Array) -> Array:
    """Without the token that ends it, which is what is predicted last."""
    from ..generate.call import of_model

    end = of_model(model)[0].get("eos_token_id")
    ends = end if isinstance(end, (list, tuple)) else [end]
    return ids[:-1] if len(ids) > 1 and ids[-1] in ends else ids
