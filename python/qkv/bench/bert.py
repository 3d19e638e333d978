"""A whole model: a BERT encoder, with random weights of BERT-base's size or with those of a folder.

Every side returns the first token's last hidden state, (B, C), so that padding does not enter the comparison.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from . import numpy_ops
from .core import Case, Suite

Array = Any
Call = Callable[[], Any]

BERT_BASE: dict[str, Any] = {
    "architectures": ["BertModel"],
    "model_type": "bert",
    "hidden_act": "gelu",
    "hidden_size": 768,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "type_vocab_size": 2,
    "vocab_size": 30522,
}


def read_config(path: str | None) -> dict[str, Any]:
    """config.json of a BERT folder; BERT-base for None. ValueError: something else is in it."""
    if path is None:
        return BERT_BASE
    config: dict[str, Any] = json.loads((Path(path) / "config.json").read_text(encoding="utf-8"))
    if config.get("model_type") != "bert" or config.get("hidden_act") != "gelu":
        raise ValueError(f"{path}: the benchmark runs BERT with gelu, not {config.get('model_type')!r}")
    return config


def random_weights(config: dict[str, Any], seed: int = 0) -> dict[str, Array]:
    """Weights under transformers' names."""
    rng = np.random.default_rng(seed)
    width, inner = config["hidden_size"], config["intermediate_size"]
    weights: dict[str, Array] = {}

    def add(name: str, *shape: int, around: float = 0.0) -> None:
        x = rng.standard_normal(shape, np.float32)
        x *= np.float32(0.02)
        x += np.float32(around)
        weights[name] = x

    def linear(name: str, out: int, into: int) -> None:
        add(f"{name}.weight", out, into)
        add(f"{name}.bias", out)

    def norm(name: str) -> None:
        add(f"{name}.weight", width, around=1.0)
        add(f"{name}.bias", width)

    for table, size in (
        ("word", "vocab_size"),
        ("position", "max_position_embeddings"),
        ("token_type", "type_vocab_size"),
    ):
        add(f"embeddings.{table}_embeddings.weight", config[size], width)
    norm("embeddings.LayerNorm")
    for i in range(config["num_hidden_layers"]):
        layer = f"encoder.layer.{i}."
        for part in ("query", "key", "value"):
            linear(layer + f"attention.self.{part}", width, width)
        linear(layer + "attention.output.dense", width, width)
        norm(layer + "attention.output.LayerNorm")
        linear(layer + "intermediate.dense", inner, width)
        linear(layer + "output.dense", width, inner)
        norm(layer + "output.LayerNorm")
    linear("pooler.dense", width, width)
    return weights


def folder_weights(path: str) -> dict[str, Array]:
    """float32 weights of a folder's safetensors files, without the prefix of models with a head."""
    from safetensors.numpy import load_file

    weights = {}
    for file in sorted(Path(path).glob("*.safetensors")):
        for name, x in load_file(file).items():
            weights[name.removeprefix("bert.")] = x.astype(np.float32) if x.dtype == np.float16 else x
    return weights


def weights_of(path: str | None) -> dict[str, Array]:
    return random_weights(BERT_BASE) if path is None else folder_weights(path)


class NumpyBert:
    """The encoder in NumPy, after Devlin et al. 2018."""

    def __init__(self, config: dict[str, Any], weights: dict[str, Array]):
        self.w, self.config = weights, config
        self.heads, self.layers = config["num_attention_heads"], config["num_hidden_layers"]

    def __call__(self, ids: Array, mask: Array | None) -> Array:
        """ids (B, S), mask (B, S) bool or None -> (B, S, C)"""
        w = self.w
        x = w["embeddings.word_embeddings.weight"][ids] + w["embeddings.position_embeddings.weight"][: ids.shape[1]]
        x += w["embeddings.token_type_embeddings.weight"][0]
        x = self._norm("embeddings.LayerNorm", x)
        bias = None if mask is None else np.where(mask, np.float32(0), np.float32(-1e9))[:, None, None]
        for i in range(self.layers):
            layer = f"encoder.layer.{i}."
            q, k, v = (
                self._heads(self._linear(f"{layer}attention.self.{name}", x)) for name in ("query", "key", "value")
            )
            mixed = numpy_ops.attention(q, k, v, bias=bias).swapaxes(1, 2).reshape(x.shape)
            y = self._linear(layer + "attention.output.dense", mixed)
            y += x
            x = self._norm(layer + "attention.output.LayerNorm", y)
            y = self._linear(layer + "output.dense", numpy_ops.gelu(self._linear(layer + "intermediate.dense", x)))
            y += x
            x = self._norm(layer + "output.LayerNorm", y)
        return x

    def _linear(self, name: str, x: Array) -> Array:
        return numpy_ops.linear(x, self.w[name + ".weight"], self.w[name + ".bias"])

    def _norm(self, name: str, x: Array) -> Array:
        return numpy_ops.layer_norm(x, self.w[name + ".weight"], self.w[name + ".bias"], self.config["layer_norm_eps"])

    def _heads(self, x: Array) -> Array:
        """(B, S, C) -> (B, H, S, D)"""
        return x.reshape(*x.shape[:2], self.heads, -1).swapaxes(1, 2)


def flops(config: dict[str, Any], lengths: Sequence[int]) -> float:
    """Of the matrix products, for real tokens only."""
    width, inner = config["hidden_size"], config["intermediate_size"]
    per_token = 8 * width * width + 4 * width * inner
    per_row = sum(n * per_token + 4 * n * n * width for n in lengths)
    return float(config["num_hidden_layers"] * per_row)


def case(path: str | None, lengths: Sequence[int], name: str | None = None, dtype: str = "float32") -> Case:
    """lengths: tokens of each row. dtype: of the weights."""
    config = read_config(path)
    model = "BERT-base" if path is None else Path(path).resolve().name
    name = name or f"{len(lengths)}x{lengths[0]}"
    params = {"path": path, "lengths": list(lengths), **({} if dtype == "float32" else {"dtype": dtype})}
    # mean magnitudes of other types differ by rounding noise
    tolerance = 1e-3 if dtype == "float32" else 5e-2
    limit = {"float32": "fma", "bfloat16": "bf16_dot", "int8": "int8_dot"}.get(dtype)
    return Case(
        f"{model} {name}{'' if dtype == 'float32' else ' ' + dtype}",
        params,
        flops(config, lengths),
        0,
        limit,
        tolerance,
    )


def cases(path: str | None = None) -> list[Case]:
    return [case(path, [16]), case(path, [128])]


def inputs(path: str | None, lengths: Sequence[int], dtype: str = "float32") -> dict[str, Any]:
    vocabulary = read_config(path)["vocab_size"]
    ids = np.random.default_rng(1).integers(0, vocabulary, (len(lengths), max(lengths)))
    mask = np.arange(max(lengths)) < np.asarray(lengths)[:, None]
    narrow = {} if dtype == "float32" else {"dtype": dtype}
    return {"path": path, "ids": ids, "mask": None if mask.all() else mask, **narrow}


def qkv_side(path: str | None, ids: Array, mask: Array | None, dtype: str = "float32") -> Call:
    import qkv

    if path is None:
        model = qkv.from_weights(BERT_BASE, random_weights(BERT_BASE), dtype=dtype)
    else:
        model = qkv.load(path, dtype=dtype)
    return lambda: model(ids, attention_mask=mask)["last_hidden_state"][:, 0]


def numpy_side(path: str | None, ids: Array, mask: Array | None) -> Call:
    model = NumpyBert(read_config(path), weights_of(path))
    return lambda: model(ids, mask)[:, 0]


SUITES = {"bert": Suite("bert", __name__, cases, inputs, {"qkv": qkv_side, "numpy": numpy_side})}
