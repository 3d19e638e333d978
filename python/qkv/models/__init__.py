"""Loading models: which classes there are, and the way from a checkpoint to one of them."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from .. import files
from ..arrays import as_numpy
from ..config import Config, plain
from ..files import Checkpoint, Tensor
from ..layers import Array
from ..packing import regular
from ..placement import HOST, Place, brought
from ..text import handed_in
from ..weights import Rule, Tie, Weights, activations_of, load_parameters
from . import (
    albert,
    bart,
    bert,
    ctrl,
    distilbert,
    electra,
    gpt,
    gpt2,
    imagegpt,
    llama,
    roberta,
    t5,
    transfo_xl,
    transformer,
    vit,
)
from .base import Model

DTYPES = ("float32", "bfloat16", "int8", "int4", "auto")
GPU_DTYPES = ("float32", "bfloat16", "float16", "int8", "int4", "auto")


class Architecture(Protocol):
    """One class of a family. rules: a file's names to ours. build: the model, from a checked config."""

    @property
    def prefixes(self) -> tuple[str, ...]: ...

    def rules(self, config: Config) -> list[Rule | Tie]: ...

    def build(self, config: Config, w: Weights) -> Model: ...


FAMILIES: tuple[Any, ...] = (
    bert,
    roberta,
    albert,
    distilbert,
    electra,
    bart,
    t5,
    vit,
    transformer,
    transfo_xl,
    gpt,
    gpt2,
    ctrl,
    imagegpt,
    llama,
)
ARCHITECTURES: dict[str, Architecture] = {}  # by the name in config.json's architectures
MODEL_TYPES: dict[str, str] = {}  # model_type -> class, for a config without architectures
for family in FAMILIES:
    ARCHITECTURES.update(family.ARCHITECTURES)
    MODEL_TYPES.update(family.MODEL_TYPES)


def load(path: str | os.PathLike[str], *, dtype: Any = "float32", device: Any = "cpu") -> Any:
    """Load a model from its files.

    path: a Hugging Face folder as it is, its name on the hub, what Model.save wrote, or a .gguf file.
    dtype: how matrices and token embeddings of any float type are held, "float32", "bfloat16", "int8" or "int4" as
        qkv.pack_weight makes them; norms, biases and positions stay float32, and behind weights of fewer bits attention
        runs with precision="bf16". "auto" keeps bfloat16, what Model.save wrote packed, and GGUF's blocks of Q8_0, Q4_0
        and Q4_1.
    device: "cpu", "cuda", "cuda:1", or what torch and transformers have for it (-1, 0, a torch.device). On a GPU
        activations, keys and values are of the weights' dtype, "float16" among them; of bfloat16 behind "int8" and
        "int4"; with "auto" of the type of most of the file. Weights go there one at a time, straight from the file.
        What goes in and what comes out is the same as on the CPU.

    A folder has config.json and model.safetensors (or its shards with model.safetensors.index.json), and
    tokenizer.json or an older vocabulary if text is to go in. An .npz may also be made by hand: arrays under
    transformers' names, and config.json's bytes as a uint8 array named "config.json".

    The name "dates" is a small model that comes with qkv: dates as people write them to ISO dates. A name
    `owner/model` is looked for in the local Hugging Face cache, and then, where the package huggingface_hub is
    installed and HF_HUB_OFFLINE is not set, on the hub.

    FileNotFoundError: nothing there. ValueError: broken or unsafe files, an unknown class, a config value
    that is not implemented, or one message with all names that are missing, unexpected or mis-shaped.
    qkv.cuda.CudaError: no GPU, or its memory is too small.
    """
    dtype, place = _check_options(dtype, device)
    return _build(files.open_checkpoint(path), dtype, place)


def from_weights(
    config: Mapping[str, Any],
    weights: Mapping[str, Any],
    *,
    dtype: Any = "float32",
    device: Any = "cpu",
    tokenizer: Any = None,
) -> Any:
    """A model from a config (as in config.json) and arrays under transformers' names.

    config: a mapping, or a configuration object of transformers. weights: name -> NumPy array, tensor (a state_dict),
    or nested lists.
    tokenizer: a tokenizers.Tokenizer, a transformers fast tokenizer, or the path of a tokenizer.json; it is used as
    it is. dtype, device: as `load`.

    TypeError: no mapping, names that are no strings, values that are no arrays. ValueError: as `load`.
    """
    dtype, place = _check_options(dtype, device)
    if not isinstance(config, Mapping) and hasattr(config, "to_dict"):  # a configuration object of transformers
        config = config.to_dict()
    if not isinstance(config, Mapping):
        raise TypeError(f"from_weights: config must be a mapping as in config.json; got {type(config).__name__}")
    try:
        values = plain(config, "config")
    except RecursionError:
        raise ValueError("from_weights: config is nested too deeply, or holds itself") from None
    if not isinstance(weights, Mapping):
        raise TypeError(f"from_weights: weights must be a mapping of names to arrays; got {type(weights).__name__}")
    tensors = {name: Tensor.of(name, _weight(name, weights[name])) for name in weights}
    checkpoint = Checkpoint("weights", tensors)
    if tokenizer is not None:
        checkpoint.files.update(handed_in(tokenizer))
    return _build(checkpoint, dtype, place, Config(values, "config"))


def _weight(name: Any, value: Any) -> Array:
    """One of the arrays of from_weights: NumPy's, a tensor (a parameter to be trained as well), or nested lists."""
    if not isinstance(name, str):
        raise TypeError(f"from_weights: the names of weights must be strings; got {name!r:.99}")
    if getattr(value, "requires_grad", False) and hasattr(value, "detach"):
        value = value.detach()
    if isinstance(value, (list, tuple)):
        return regular("from_weights: " + name, value)
    array: Array = as_numpy("from_weights", name, brought(value))
    return array


def from_entries(entries: Mapping[str, Any], dtype: str, place: Place = HOST) -> Any:
    """A model from what Model.save writes, in memory: how models are unpickled."""
    tensors = {name: Tensor.of(name, array) for name, array in entries.items()}
    return _build(files.from_entries("pickled model", tensors), dtype, place)


def _build(checkpoint: Checkpoint, dtype: str, place: Place, config: Config | None = None) -> Model:
    if config is None:
        content = checkpoint.json("config.json")
        if content is None:
            raise ValueError(
                f"{checkpoint.where}: there is no config.json in it; write it with Model.save, or pass the "
                "arrays to qkv.from_weights together with a config"
            )
        config = Config(content, f"{checkpoint.where}: config.json")
    name = _class_name(config, checkpoint.where)
    architecture = ARCHITECTURES[name]
    rules = architecture.rules(config)
    if checkpoint.canonical:
        rules = []  # the names are ours, and ties are recorded
    if place.number is not None:
        place = Place(place.number, activations_of(dtype, checkpoint.tensors.values()))
    model, parameters = load_parameters(
        lambda w: architecture.build(config, w),
        checkpoint.tensors,
        rules,
        prefixes=() if checkpoint.canonical else architecture.prefixes,
        dtype=dtype,
        place=place,
        where=f"{checkpoint.where}, as {name}",
    )
    model.attach(checkpoint, config, name, dtype, place, parameters)
    return model


def _class_name(config: Config, where: str) -> str:
    """The class that config.json asks for; ValueError with the known ones if it is not among them."""
    names = config.get("architectures") or [MODEL_TYPES.get(str(config.get("model_type")))]
    name = names[0] if isinstance(names, list) else None
    if isinstance(name, str) and name in ARCHITECTURES:
        return name
    near = difflib.get_close_matches(str(name), ARCHITECTURES, n=1)
    raise ValueError(
        f"{where}: no model for architectures {config.get('architectures')!r}, model_type "
        f"{config.get('model_type')!r}{f' (nearest: {near[0]})' if near else ''}; known are "
        f"{', '.join(ARCHITECTURES)}, and model_type {', '.join(MODEL_TYPES)} alone"
    )


def _check_options(dtype: Any, device: Any) -> tuple[str, Place]:
    """The dtype's name, of NumPy's and torch's too, and the device."""
    if not isinstance(dtype, str):
        dtype = str(dtype).removeprefix("torch.") if not isinstance(dtype, type) else np.dtype(dtype).name
    place = Place.named(device)
    known = DTYPES if place.number is None else GPU_DTYPES
    if dtype not in known:
        hint = " (float16 is for device='cuda')" if dtype == "float16" else ""
        raise ValueError(f"dtype {dtype!r} is not available; use {', '.join(map(repr, known))}{hint}")
    return dtype, place
