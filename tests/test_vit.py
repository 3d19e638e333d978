"""ViT and DeiT: the images that go in, and the names that files use; the numbers are test_models.py's."""

from __future__ import annotations

import re
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import qkv
from golden_checks import GOLDEN, checkpoint


def recorded(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / name / "expected.npz") as arrays:
        return {key.removeprefix("image/"): arrays[key] for key in arrays.files}


@pytest.fixture(scope="module")
def model() -> Any:
    return qkv.load(GOLDEN / "vit_base")  # 3 channels, 8 x 8 pixels, patches of 4 x 4


IMAGES = np.ones((2, 3, 8, 8), np.float32)
NAN = IMAGES.copy()
NAN[1, 0, 3, 3] = np.nan
WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({}, ValueError, "pixel_values: expected images; got None"),
    ({"pixel_values": IMAGES.astype(np.uint8)}, TypeError, "expected floats, .*; got uint8"),
    ({"pixel_values": IMAGES > 0}, TypeError, "expected floats, .*; got bool"),
    ({"pixel_values": "cat.png"}, TypeError, "pixel_values must be an array, got str"),
    ({"pixel_values": IMAGES[0]}, ValueError, r"got \(3, 8, 8\); for one image pass \[image\]"),
    ({"pixel_values": IMAGES[:, :1]}, ValueError, r"\(batch, 3 channels, height, width\); got \(2, 1, 8, 8\)"),
    ({"pixel_values": IMAGES.transpose(0, 2, 3, 1)}, ValueError, r"3 channels.*got \(2, 8, 8, 3\)"),
    ({"pixel_values": IMAGES[:, :, :6]}, ValueError, "images of 8 x 8 pixels .* got 6 x 8"),
    ({"pixel_values": [IMAGES[0].tolist(), [1.0]]}, ValueError, "pixel_values: the rows have different lengths"),
    ({"pixel_values": NAN}, ValueError, "image 1 holds NaN or infinity"),
    ({"pixel_values": np.full(IMAGES.shape, 1e300)}, ValueError, "image 0 holds NaN or infinity"),
    ({"pixel_values": IMAGES, "input_ids": [[1]]}, ValueError, "input_ids: a ViTModel has no such input"),
    ({"pixel_values": IMAGES, "attention_mask": [[1]]}, ValueError, "attention_mask: a ViTModel has no such input"),
]


@pytest.mark.parametrize("call", range(len(WRONG)))
def test_wrong_calls(call: int, model: Any) -> None:
    arguments, error, message = WRONG[call]
    with pytest.raises(error, match=message):
        model(**arguments)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"image_size": [8, 8, 3]}, "image_size must be a size in pixels, or a pair"),
        ({"patch_size": [4, 0.5]}, "patch_size must be a size in pixels, or a pair"),
        ({"image_size": 3}, "image_size must be at least one patch, 4 x 4"),
        ({"num_attention_heads": 3}, "hidden_size must be a multiple of num_attention_heads, 3"),
        ({"image_size": 12}, r"position_embeddings is \(5, 16\), expected \(10, 16\)"),
        ({"hidden_act": "sine"}, "hidden_act must be one of"),
    ],
)
def test_wrong_configs(values: dict[str, Any], message: str) -> None:
    config, weights = checkpoint("vit_base")
    with pytest.raises(ValueError, match=message):
        qkv.from_weights(config | values, weights)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_pixels_of_any_float(dtype: Any, model: Any, rng: np.random.Generator) -> None:
    images = rng.normal(size=(2, 3, 8, 8)).astype(dtype)
    exact = model(pixel_values=images.astype(np.float32)).last_hidden_state
    np.testing.assert_array_equal(model(pixel_values=images).last_hidden_state, exact)
    if dtype is np.float64:
        np.testing.assert_array_equal(model(pixel_values=images.tolist()).last_hidden_state, exact)


def test_images_do_not_change_each_other(model: Any, rng: np.random.Generator) -> None:
    """To the bit, and a batch may be empty, or lie in memory with the channels last."""
    images = rng.normal(size=(3, 3, 8, 8)).astype(np.float32)
    together = model(pixel_values=images)
    for b in range(3):
        alone = model(pixel_values=images[b : b + 1])
        np.testing.assert_array_equal(alone.last_hidden_state[0], together.last_hidden_state[b])
        np.testing.assert_array_equal(alone.pooler_output[0], together.pooler_output[b])
    turned = np.ascontiguousarray(images.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(model(pixel_values=turned).last_hidden_state, together.last_hidden_state)
    none = model(pixel_values=images[:0], output_attentions=True)
    assert none.last_hidden_state.shape == (0, 5, 16) and none.pooler_output.shape == (0, 16)
    assert none.attentions[0].shape == (0, 2, 5, 5)


# Names of a file, and those of the library's modules since its version 5.
HELD = (
    ("encoder.layer.", "layers."),
    ("attention.attention.query", "attention.q_proj"),
    ("attention.attention.key", "attention.k_proj"),
    ("attention.attention.value", "attention.v_proj"),
    ("attention.output.dense", "attention.o_proj"),
    ("intermediate.dense", "mlp.fc1"),
    ("output.dense", "mlp.fc2"),
)


@pytest.mark.parametrize("name", ["vit_classify", "deit_classify"])
@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize("held", [True, False])
def test_names(name: str, prefix: bool, held: bool) -> None:
    config, weights = checkpoint(name)
    exact = recorded(name)
    for old, new in HELD if held else ():
        weights = {key.replace(old, new): value for key, value in weights.items()}
    if not prefix:
        weights = {re.sub("^(vit|deit)[.]", "", key): value for key, value in weights.items()}
    # what models for other tasks leave in a file
    body = name[: name.index("_")] + "." if prefix else ""
    weights |= {f"{body}embeddings.mask_token": np.ones((1, 1, 16)), f"{body}pooler.dense.bias": np.ones(16)}
    weights |= {"decoder.0.weight": np.ones((48, 16, 1, 1)), "cls_classifier.bias": np.ones(3)}
    logits = qkv.from_weights(config, weights)(pixel_values=exact["pixel_values"]).logits
    np.testing.assert_allclose(logits, exact["logits"], rtol=0, atol=1e-5 * np.abs(exact["logits"]).max())


def test_without_a_pooler() -> None:
    """The head and the pooler are parts of a file that ViTModel may lack, or leave."""
    config, weights = checkpoint("vit_classify")
    out = qkv.from_weights(config | {"architectures": ["ViTModel"]}, weights)(pixel_values=IMAGES)
    assert out.pooler_output is None and out.last_hidden_state.shape == (2, 5, 16)
    assert type(qkv.from_weights({**config, "architectures": None}, weights)).__name__ == "ImageModel"


def test_shapes_before_they_are_changed() -> None:
    """The right number of values in another order is another model."""
    config, weights = checkpoint("vit_base")
    for part, axes in (("patch_embeddings.projection.weight", (2, 3, 1, 0)), ("position_embeddings", (0, 2, 1))):
        name = next(name for name in weights if name.endswith(part))
        with pytest.raises(ValueError, match="mis-shaped"):
            qkv.from_weights(config, weights | {name: weights[name].transpose(axes)})
