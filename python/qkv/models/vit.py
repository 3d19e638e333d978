"""ViT (Dosovitskiy et al. 2020) and DeiT (Touvron et al. 2020): encoders of images, cut into patches that are tokens.

A class token stands before the patches, in DeiT a distillation token after that. The norms stand before the sublayers,
and at the end; hidden_states are those before the last norm.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..arrays import as_numpy
from ..config import MAX_LAYERS, Config
from ..layers import Array, Attention, FeedForward, LayerNorm, Linear, Run, Stack, block
from ..outputs import ModelOutput
from ..packing import Packed, regular
from ..placement import brought, converted, host, take, write
from ..weights import Rule, Tie, Weights, drop, fuse, rename, reshape
from .base import Model
from .heads import Fields, PooledHead, Pooler

# Names of files, and those that the library has in memory from its version 5 on.
LAYERS = ("encoder.layer.{i}.", "layers.{i}.")


def _either(saved: str, held: str, ours: str) -> Rule:
    return rename([LAYERS[0] + saved, LAYERS[1] + held], "blocks.{i}." + ours)


BODY = [
    rename("embeddings.patch_embeddings.projection.bias", "patches.bias"),
    _either("attention.attention.query.*", "attention.q_proj.*", "q.*"),
    _either("attention.attention.key.*", "attention.k_proj.*", "k.*"),
    _either("attention.attention.value.*", "attention.v_proj.*", "v.*"),
    fuse([f"blocks.{{i}}.{part}.*" for part in "qkv"], "blocks.{i}.attention.qkv.*"),
    _either("attention.output.dense.*", "attention.o_proj.*", "attention.out.*"),
    _either("layernorm_before.*", "layernorm_before.*", "attention_norm.*"),
    _either("layernorm_after.*", "layernorm_after.*", "ffn_norm.*"),
    _either("intermediate.dense.*", "mlp.fc1.*", "ffn.up.*"),
    _either("output.dense.*", "mlp.fc2.*", "ffn.down.*"),
    rename("layernorm.*", "norm.*"),
    drop("embeddings.mask_token"),  # of training on masked images, as is the decoder
]
HEADS = [
    rename("classifier.*", "head.classifier.*"),
    rename("cls_classifier.*", "head.class.classifier.*"),
    rename("distillation_classifier.*", "head.distillation.classifier.*"),
]


class Patches:
    """From images (B, channels, height, width) to a row of tokens each, (B, T, C): the special ones, then a product of
    every patch, row by row, plus learned positions. size, patch: (height, width). special: names of the tokens that
    come first."""

    def __init__(
        self, w: Weights, channels: int, size: tuple[int, int], patch: tuple[int, int], width: int, special: list[str]
    ):
        self.channels, self.size, self.patch = channels, size, patch
        self.grid = size[0] // patch[0], size[1] // patch[1]
        self.tokens = len(special) + self.grid[0] * self.grid[1]
        self.projection = Linear(w.at("patches"), channels * patch[0] * patch[1], width)
        self.special = [w.vector(name, (width,)) for name in special]
        self.positions = w.vector("positions", (self.tokens, width))

    def check(self, pixel_values: Any) -> Array:
        """A user's images as float32. TypeError for a dtype, ValueError for a shape, NaN or infinity."""
        if pixel_values is None:
            raise ValueError("pixel_values: expected images; got None")
        if isinstance(pixel_values, (list, tuple)):
            array = regular("pixel_values", pixel_values)
        else:
            array = as_numpy("model", "pixel_values", brought(pixel_values))
        if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
            raise TypeError(
                f"pixel_values: expected floats, normalised as the model was trained on them; got {array.dtype}"
            )
        if array.ndim != 4 or array.shape[1] != self.channels:
            hint = "; for one image pass [image]" if array.ndim == 3 else ""
            raise ValueError(
                f"pixel_values: expected shape (batch, {self.channels} channels, height, width); "
                f"got {array.shape}{hint}"
            )
        if array.shape[2:] != self.size:
            raise ValueError(
                f"pixel_values: the model has positions for images of {self.size[0]} x {self.size[1]} pixels "
                f"(height x width); got {array.shape[2]} x {array.shape[3]}"
            )
        with np.errstate(over="ignore"):
            images = array.astype(np.float32, copy=False)
        finite = np.isfinite(images).all(axis=(1, 2, 3))
        if not finite.all():
            raise ValueError(f"pixel_values: image {int(finite.argmin())} holds NaN or infinity")
        return images

    def __call__(self, images: Array) -> Array:
        (rows, columns), (height, width) = self.grid, self.patch
        cut = images[:, :, : rows * height, : columns * width]  # a last patch that is not whole is not looked at
        cut = cut.reshape(len(images), self.channels, rows, height, columns, width).transpose(0, 2, 4, 1, 3, 5)
        cut = cut.reshape(len(images), rows * columns, self.channels * height * width)
        first, place = len(self.special), self.projection.place
        special = np.stack([host(vector) for vector in self.special]) + host(self.positions[:first])
        x = place.empty((len(images), self.tokens, self.positions.shape[1]), place.activations)
        write(x[:, :first], np.broadcast_to(special.astype(x.dtype), (len(images), *special.shape)))
        positions = converted(self.positions[first:], x.dtype)
        write(x[:, first:], self.projection(cut, residual=positions))
        return x


class TeacherHead:
    """Labels of an image by two linear layers, one on the class token and one on the distillation token, and their
    mean."""

    def __init__(self, w: Weights, width: int, labels: int):
        self.of_class = PooledHead(w.at("class.classifier"), width, labels, "cls_logits")
        self.of_teacher = PooledHead(w.at("distillation.classifier"), width, labels, "distillation_logits")

    def __call__(self, x: Array, pooled: Array | None, packed: Packed) -> Fields:
        fields = self.of_class(x, pooled, packed) | self.of_teacher(x, take(x, packed.cu_seqlens[:-1] + 1), packed)
        fields = {name: host(value) for name, value in fields.items()}
        return {"logits": (fields["cls_logits"] + fields["distillation_logits"]) / np.float32(2), **fields}


class ImageModel(Model):
    """patches -> stack -> norm -> pooler, if there is one -> head; without a head the hidden states are the result.
    heads: of attention."""

    inputs = ("pixel_values",)
    token_types = False

    def __init__(self, patches: Patches, stack: Stack, norm: LayerNorm, heads: int, pooler: Pooler | None, head: Any):
        self.patches = patches
        self.stack = stack
        self.norm = norm
        self.heads = heads
        self.pooler = pooler
        self.head = head

    def run(self, given: Mapping[str, Any], *, attentions: bool, hidden_states: bool) -> ModelOutput:
        tokens = self.patches(self.patches.check(given["pixel_values"]))
        rows, length, width = tokens.shape
        borders = np.arange(rows + 1, dtype=np.int64) * length
        packed = Packed(np.zeros(rows * length, np.int64), borders, shape=(rows, length))  # whose ids nobody reads
        run = Run(
            packed.cu_seqlens,
            hidden_states=[] if hidden_states else None,
            attentions=[] if attentions else None,
        )
        x = self.norm(self.stack(tokens.reshape(rows * length, width), run))
        first = packed.first_rows(x)
        if self.head is None:
            pooled = None if self.pooler is None else self.pooler(first)
            fields = {"last_hidden_state": packed.pad(x), "pooler_output": pooled}
        else:
            fields = self.head(x, first, packed)
        return ModelOutput(
            **fields,
            hidden_states=packed.pad_all(run.hidden_states),
            attentions=packed.pad_all_pairs(run.attentions, self.heads),
        )


def _pair(config: Config, name: str, default: int) -> tuple[int, int]:
    """(height, width), which a config may give as one number."""
    value = config.get(name)
    if not isinstance(value, (list, tuple)):
        side = config.integer(name, default)
        return side, side
    if len(value) != 2 or not all(type(side) is int and 1 <= side < 2**16 for side in value):
        raise config.error(name, "a size in pixels, or a pair of them, height and width")
    return value[0], value[1]


def _width(config: Config) -> int:
    return config.integer("hidden_size", 768)


@dataclass(frozen=True)
class Image:
    """A class of the family. head: made from weights, width and the number of labels. special: the tokens before the
    patches."""

    prefixes: tuple[str, ...]
    special: tuple[str, ...]
    head: Callable[[Weights, int, int], Any] | None = None

    def rules(self, config: Config) -> list[Rule | Tie]:
        width, (height, breadth) = _width(config), _pair(config, "patch_size", 16)
        channels = config.integer("num_channels", 3)
        numbers = channels * height * breadth  # of a patch
        rules: list[Rule | Tie] = [
            *(reshape(f"embeddings.{name}_token", name, (-1,), of=(1, 1, width)) for name in self.special),
            reshape("embeddings.position_embeddings", "positions", (-1, width), of=(1, -1, width)),
            reshape(
                "embeddings.patch_embeddings.projection.weight",
                "patches.weight",
                (-1, numbers),
                of=(-1, channels, height, breadth),
            ),
            *BODY,
            drop("decoder.*"),
        ]
        if self.head is None:
            rules += [rename("pooler.dense.*", "pooler.*"), *(drop(rule.sources[0]) for rule in HEADS)]
        else:
            teacher = self.head is TeacherHead
            rules += [*(HEADS[1:] if teacher else HEADS[:1]), drop("pooler.dense.*")]
            rules += [drop(rule.sources[0]) for rule in HEADS]
        return rules

    def build(self, config: Config, w: Weights) -> Model:
        config.only("quantization_config", None)
        config.only("pruned_heads", {})
        width, heads = _width(config), config.integer("num_attention_heads", 12)
        if width % heads and config.get("head_dim") is None:
            raise config.error("hidden_size", f"a multiple of num_attention_heads, {heads}")
        size, patch = _pair(config, "image_size", 224), _pair(config, "patch_size", 16)
        if size[0] < patch[0] or size[1] < patch[1]:
            raise config.error("image_size", f"at least one patch, {patch[0]} x {patch[1]}")
        eps = config.number("layer_norm_eps", 1e-12)
        head_dim = config.integer("head_dim", width // heads)
        inner = config.integer("intermediate_size", 3072)
        activation = config.activation("hidden_act", "gelu")
        bias = config.flag("qkv_bias", True)

        def norm(w: Weights) -> LayerNorm:
            return LayerNorm(w, width, eps)

        blocks = [
            block(
                w_i := w.at(f"blocks.{i}"),
                norm,
                Attention(w_i.at("attention"), width, heads, head_dim=head_dim, bias=bias),
                FeedForward(w_i.at("ffn"), width, inner, activation),
                pre=True,
            )
            for i in range(config.integer("num_hidden_layers", 12, low=0, high=MAX_LAYERS))
        ]
        pooler = None
        if self.head is None and "pooler.weight" in w:
            out, act = config.integer("pooler_output_size", width), config.activation("pooler_act", "tanh")
            pooler = Pooler(w.at("pooler"), width, out, act)
        return ImageModel(
            Patches(w, config.integer("num_channels", 3), size, patch, width, list(self.special)),
            Stack(blocks),
            norm(w.at("norm")),
            heads,
            pooler,
            None if self.head is None else self.head(w.at("head"), width, config.num_labels()),
        )


def _classifier(w: Weights, width: int, labels: int) -> PooledHead:
    return PooledHead(w.at("classifier"), width, labels)


VIT = (("vit.",), ("cls",))
DEIT = (("deit.",), ("cls", "distillation"))
ARCHITECTURES = {
    "ViTModel": Image(*VIT),
    "ViTForImageClassification": Image(*VIT, _classifier),
    "DeiTModel": Image(*DEIT),
    "DeiTForImageClassification": Image(*DEIT, _classifier),
    "DeiTForImageClassificationWithTeacher": Image(*DEIT, TeacherHead),
}
MODEL_TYPES = {"vit": "ViTModel", "deit": "DeiTModel"}
