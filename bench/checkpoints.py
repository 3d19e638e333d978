"""Random weights at the sizes of real models that generate text, as Hugging Face folders which all sides read.

A folder is written by the first process that asks for it, into a place that `shared` makes for one run.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Array = Any
# Weights of the same magnitude everywhere make a model that says one token again and again: a token's embedding is most
# of what comes out, and averages are the rest. So a block's last product and the queries of two stacks are larger; not
# by more, or rounding alone would lead to other tokens.
GAIN = 4.0
PLACE = "QKV_BENCH_CHECKPOINTS"  # the environment variable with the place of the folders

GPT2_SMALL: dict[str, Any] = {
    "architectures": ["GPT2LMHeadModel"],
    "model_type": "gpt2",
    "activation_function": "gelu_new",
    "bos_token_id": 50256,
    "eos_token_id": 50256,
    "layer_norm_epsilon": 1e-5,
    "n_embd": 768,
    "n_head": 12,
    "n_layer": 12,
    "n_positions": 1024,
    "vocab_size": 50257,
}
OPUS_MT: dict[str, Any] = {  # Marian's base model with the vocabulary of opus-mt-en-de
    "architectures": ["MarianMTModel"],
    "model_type": "marian",
    "activation_function": "swish",
    "d_model": 512,
    "decoder_attention_heads": 8,
    "decoder_ffn_dim": 2048,
    "decoder_layers": 6,
    "decoder_start_token_id": 58100,
    "decoder_vocab_size": 58101,
    "encoder_attention_heads": 8,
    "encoder_ffn_dim": 2048,
    "encoder_layers": 6,
    "eos_token_id": 0,
    "is_encoder_decoder": True,
    "max_position_embeddings": 512,
    "pad_token_id": 58100,
    "scale_embedding": True,
    "share_encoder_decoder_embeddings": True,
    "vocab_size": 58101,
}
T5_SMALL: dict[str, Any] = {
    "architectures": ["T5ForConditionalGeneration"],
    "model_type": "t5",
    "d_ff": 2048,
    "d_kv": 64,
    "d_model": 512,
    "decoder_start_token_id": 0,
    "eos_token_id": 1,
    "feed_forward_proj": "relu",
    "is_encoder_decoder": True,
    "layer_norm_epsilon": 1e-6,
    "num_decoder_layers": 6,
    "num_heads": 8,
    "num_layers": 6,
    "pad_token_id": 0,
    "relative_attention_max_distance": 128,
    "relative_attention_num_buckets": 32,
    "tie_word_embeddings": True,
    "vocab_size": 32128,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "gpt2": GPT2_SMALL,
    "marian": OPUS_MT,
    "t5": T5_SMALL,
    # of the same classes, for trying the benchmark
    "gpt2-tiny": GPT2_SMALL
    | {"n_embd": 32, "n_head": 2, "n_layer": 2, "n_positions": 128, "vocab_size": 99}
    | {"bos_token_id": 98, "eos_token_id": 98},
    "marian-tiny": OPUS_MT
    | {"d_model": 32, "vocab_size": 99, "decoder_vocab_size": 99, "pad_token_id": 98, "decoder_start_token_id": 98}
    | {f"{stack}_{part}": n for stack in ("encoder", "decoder") for part, n in (("layers", 2), ("ffn_dim", 64))}
    | {f"{stack}_attention_heads": 2 for stack in ("encoder", "decoder")},
    "t5-tiny": T5_SMALL
    | {"d_model": 32, "d_ff": 64, "d_kv": 16, "num_heads": 2, "num_layers": 2, "num_decoder_layers": 2}
    | {"vocab_size": 99},
}


@dataclass(frozen=True)
class Size:
    """What a model multiplies with: numbers of weights, without embeddings.

    source: for each token that an encoder reads, the keys and values that the decoder sees of it included; 0 without
    an encoder. step: for each token of the decoder; head: for each token that is chosen. layers, width: of the
    attention, which are the same on both sides.
    """

    source: int
    step: int
    head: int
    layers: int
    width: int


SMOLLM2 = Size(0, 30 * (2 * 576 * 576 + 2 * 576 * 192 + 3 * 576 * 1536), 49152 * 576, 30, 576)


def size(name: str) -> Size:
    if name == "smollm2":
        return SMOLLM2
    c = CONFIGS[name]
    if c["model_type"] == "gpt2":
        width, layers = c["n_embd"], c["n_layer"]
        return Size(0, layers * 12 * width * width, c["vocab_size"] * width, layers, width)
    if c["model_type"] == "marian":
        width, inner, layers, attention = c["d_model"], c["decoder_ffn_dim"], c["decoder_layers"], c["d_model"]
    else:
        width, inner, layers, attention = c["d_model"], c["d_ff"], c["num_layers"], c["num_heads"] * c["d_kv"]
    one, ffn = width * attention, 2 * width * inner
    # the encoder's four products of attention and two of the decoder's for its result; then the decoder's other six
    return Size(layers * (6 * one + ffn), layers * (6 * one + ffn), c["vocab_size"] * width, layers, attention)


class _Draw:
    """Weights by name. Products keep the magnitude of what they get, times a gain; with one, what is the same in all
    that they get (the mean of a relu) adds up to nothing."""

    def __init__(self, seed: int = 0):
        self.rng = np.random.default_rng(seed)
        self.weights: dict[str, Array] = {}

    def normal(self, name: str, *shape: int, scale: float, around: float = 0.0) -> None:
        x = self.rng.standard_normal(shape, np.float32)
        x *= np.float32(scale)
        x += np.float32(around)
        self.weights[name] = x

    def linear(
        self, name: str, out: int, into: int, *, bias: bool = True, transposed: bool = False, gain: float = 1.0
    ) -> None:
        self.normal(f"{name}.weight", *((into, out) if transposed else (out, into)), scale=gain * into**-0.5)
        if gain != 1:
            x = self.weights[f"{name}.weight"]
            x -= x.mean(axis=0 if transposed else 1, keepdims=True)
        if bias:
            self.normal(f"{name}.bias", out, scale=0.02)

    def norm(self, name: str, width: int, *, bias: bool = True) -> None:
        self.normal(f"{name}.weight", width, scale=0.02, around=1.0)
        if bias:
            self.normal(f"{name}.bias", width, scale=0.02)


def _gpt2(c: dict[str, Any], draw: _Draw) -> None:
    width = c["n_embd"]
    draw.normal("transformer.wte.weight", c["vocab_size"], width, scale=0.1)
    draw.normal("transformer.wpe.weight", c["n_positions"], width, scale=0.1)
    for i in range(c["n_layer"]):
        layer = f"transformer.h.{i}."
        draw.norm(layer + "ln_1", width)
        draw.linear(layer + "attn.c_attn", 3 * width, width, transposed=True)
        draw.linear(layer + "attn.c_proj", width, width, transposed=True)
        draw.norm(layer + "ln_2", width)
        draw.linear(layer + "mlp.c_fc", 4 * width, width, transposed=True)
        draw.linear(layer + "mlp.c_proj", width, 4 * width, transposed=True, gain=GAIN)
    draw.norm("transformer.ln_f", width)


def _marian(c: dict[str, Any], draw: _Draw) -> None:
    width = c["d_model"]
    draw.normal("model.shared.weight", c["vocab_size"], width, scale=0.1)
    draw.weights["model.shared.weight"][c["pad_token_id"]] = 0  # as Marian's files have it, whose decoder starts there
    draw.normal("final_logits_bias", 1, c["vocab_size"], scale=0.02)
    for stack in ("encoder", "decoder"):
        for i in range(c[f"{stack}_layers"]):
            layer = f"model.{stack}.layers.{i}."
            for attention in ("self_attn", *(["encoder_attn"] if stack == "decoder" else [])):
                for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
                    draw.linear(f"{layer}{attention}.{part}", width, width, gain=GAIN if part == "q_proj" else 1.0)
                draw.norm(f"{layer}{attention}_layer_norm", width)
            draw.linear(layer + "fc1", c[f"{stack}_ffn_dim"], width)
            draw.linear(layer + "fc2", width, c[f"{stack}_ffn_dim"], gain=GAIN)
            draw.norm(layer + "final_layer_norm", width)


def _t5(c: dict[str, Any], draw: _Draw) -> None:
    width, attention, inner = c["d_model"], c["num_heads"] * c["d_kv"], c["d_ff"]
    draw.normal("shared.weight", c["vocab_size"], width, scale=0.4)
    for stack, layers in (("encoder", c["num_layers"]), ("decoder", c["num_decoder_layers"])):
        buckets = c["relative_attention_num_buckets"], c["num_heads"]
        draw.normal(f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight", *buckets, scale=0.5)
        for i in range(layers):
            parts = ["SelfAttention", *(["EncDecAttention"] if stack == "decoder" else []), "DenseReluDense"]
            for number, part in enumerate(parts):
                layer = f"{stack}.block.{i}.layer.{number}."
                draw.norm(layer + "layer_norm", width, bias=False)
                if part == "DenseReluDense":
                    draw.linear(layer + "DenseReluDense.wi", inner, width, bias=False)
                    draw.linear(layer + "DenseReluDense.wo", width, inner, bias=False, gain=GAIN)
                    continue
                # scores are not divided by the root of the head's width: the queries' weights are so much smaller
                draw.linear(f"{layer}{part}.q", attention, width, bias=False, gain=GAIN * c["d_kv"] ** -0.5)
                draw.linear(f"{layer}{part}.k", attention, width, bias=False)
                draw.linear(f"{layer}{part}.v", attention, width, bias=False)
                draw.linear(f"{layer}{part}.o", width, attention, bias=False)
        draw.norm(f"{stack}.final_layer_norm", width, bias=False)


DRAWS = {"gpt2": _gpt2, "marian": _marian, "t5": _t5}


def generation_config(config: dict[str, Any]) -> dict[str, Any]:
    """What generate reads: the special tokens; a padding that Marian's decoder must never choose."""
    found = {name: value for name, value in config.items() if name.endswith("_token_id")}
    return {**found, "bad_words_ids": [[config["pad_token_id"]]]} if config["model_type"] == "marian" else found


@contextmanager
def shared() -> Iterator[None]:
    """A place for the folders, for the processes that are started meanwhile; gone with them afterwards."""
    with tempfile.TemporaryDirectory(prefix="qkv-bench-") as place:
        os.environ[PLACE] = place
        try:
            yield
        finally:
            del os.environ[PLACE]


def folder(name: str) -> Path:
    """The model's folder, written if it is not there yet. KeyError: there is no such model."""
    from safetensors.numpy import save_file

    config, path = CONFIGS[name], Path(os.environ[PLACE]) / name
    if not path.exists():
        draw = _Draw()
        DRAWS[config["model_type"]](config, draw)
        unfinished = path.with_suffix(".tmp")
        unfinished.mkdir(exist_ok=True)
        (unfinished / "config.json").write_text(json.dumps(config))
        (unfinished / "generation_config.json").write_text(json.dumps(generation_config(config)))
        save_file(draw.weights, unfinished / "model.safetensors", {"format": "pt"})
        unfinished.rename(path)
    return path
