"""Record what transformers' image processors (those built on Pillow) and its image-classification pipeline make of
images of all modes: images.npz and images.json next to this file.

Run (tests read the recorded files and need neither torch nor transformers):

    pip install torch==2.13.0 transformers==5.24.0 safetensors==0.8.0 pillow==13.0.0
    HF_HUB_OFFLINE=1 python tests/golden/make_images.py

images.npz   file/<image>                 the bytes of an image file, uint8
             array/<image>                an image as an array
             out/<settings>/<image>       pixel_values or input_ids of one image; of a file after load_image
images.json  settings                     preprocessor_config.json by name
             pipelines                    model's folder -> [settings, image, options, the pipeline's result]
"""

from __future__ import annotations

import io
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import transformers
from PIL import Image
from transformers.image_utils import load_image

HERE = Path(__file__).parent
HEIGHT, WIDTH = 17, 23
RNG = np.random.default_rng(0)
COLOURS = np.round(RNG.uniform(-1, 1, (39, 3)), 3).tolist()

VIT = {"image_processor_type": "ViTImageProcessor", "size": {"height": 8, "width": 8}}
DEIT = {"image_processor_type": "DeiTImageProcessor", "size": 14, "crop_size": 8}
SETTINGS: dict[str, dict[str, Any]] = {
    "vit": VIT,
    "old": {"feature_extractor_type": "ViTFeatureExtractor", "size": 8, "resample": 3},
    "fast": {"image_processor_type": "ViTImageProcessorFast", "size": [6, 9], "image_mean": 0.4, "image_std": 0.3},
    "imagenet": VIT | {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]},
    "shortest": VIT | {"size": {"shortest_edge": 9}},
    "longest": VIT | {"size": {"shortest_edge": 9, "longest_edge": 11}},
    "longest_not_reached": VIT | {"size": {"shortest_edge": 9, "longest_edge": 30}},
    "longest_as_it_is": VIT | {"size": {"shortest_edge": 17, "longest_edge": 30}},
    "white": VIT | {"do_convert_rgb": True},
    "not_rescaled": VIT | {"do_rescale": False},
    "rescaled_otherwise": VIT | {"rescale_factor": 1 / 127.5},
    "not_normalized": VIT | {"do_normalize": False},
    "not_resized": VIT | {"do_resize": False},
    "bare": VIT | {"do_rescale": False, "do_normalize": False},
    "deit": DEIT,
    "deit_old": {"feature_extractor_type": "DeiTFeatureExtractor", "size": 14, "crop_size": 9, "resample": 2},
    "crop_larger": DEIT | {"size": [6, 12], "crop_size": [9, 7]},
    "crop_smaller": DEIT | {"do_resize": False, "crop_size": {"height": 6, "width": 31}},
    "beit": {"image_processor_type": "BeitImageProcessor", "size": 7, "do_reduce_labels": True},
    "imagegpt": {"image_processor_type": "ImageGPTImageProcessor", "size": [3, 4], "clusters": COLOURS},
    "imagegpt_old": {"feature_extractor_type": "ImageGPTFeatureExtractor", "size": 5, "clusters": COLOURS},
    "imagegpt_pixels": {"image_processor_type": "ImageGPTImageProcessor", "size": 4, "do_color_quantize": False},
    **{f"resample_{k}": VIT | {"resample": k, "size": [9, 31]} for k in range(6)},
}
ON = {  # image -> settings that it is recorded with
    "array/rgb": [name for name in SETTINGS if name != "white"],
    "array/first": ["vit", "deit"],
    "array/grey": ["white"],
    "array/rgba": ["white"],
    "array/rgba_unit": ["white"],
    "array/unit": ["vit", "not_rescaled", "bare"],
    "array/float": ["vit", "not_resized"],
    "array/int": ["vit"],
    "array/half": ["not_rescaled", "not_resized"],
    "file/rgba": ["vit", "white"],
}
PIPELINES = {
    "vit_classify": ("vit", {}),
    "deit_classify": ("deit", {"top_k": 2}),
    "imagegpt_classify": ("imagegpt", {"function_to_apply": "none"}),
}


def draw() -> np.ndarray:
    """A gradient with noise, (HEIGHT, WIDTH, 3) uint8."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    base = np.stack([x * 9, y * 13, (x * y) % 256], axis=2) + RNG.integers(0, 40, (HEIGHT, WIDTH, 3))
    return np.clip(base, 0, 255).astype(np.uint8)


def files(rgb: np.ndarray) -> dict[str, bytes]:
    def encode(image: Image.Image, form: str, **options: Any) -> bytes:
        stream = io.BytesIO()
        image.save(stream, form, **options)
        return stream.getvalue()

    image = Image.fromarray(rgb)
    alpha = Image.fromarray(rgb[:, ::-1, 0].copy())
    with_alpha = image.copy()
    with_alpha.putalpha(alpha)
    grey_alpha = image.convert("L")
    grey_alpha.putalpha(alpha)
    palette = image.quantize(16)
    turned = {f"turned_{k}": encode(image, "PNG", exif=_orientation(k)) for k in (2, 3, 6, 8)}
    return {
        "rgb": encode(image, "PNG"),
        "grey": encode(image.convert("L"), "PNG"),
        "grey_alpha": encode(grey_alpha, "PNG"),
        "rgba": encode(with_alpha, "PNG"),
        "palette": encode(palette, "PNG"),
        "palette_transparent": encode(palette, "PNG", transparency=3),
        "animated": encode(palette, "GIF", save_all=True, append_images=[image.rotate(180).quantize(16)]),
        "cmyk": encode(image.convert("CMYK"), "TIFF"),
        "bits": encode(image.convert("1"), "PNG"),
        "deep": encode(Image.fromarray(rgb[..., 0].astype(np.uint16) * 3), "PNG"),
        **turned,
    }


def _orientation(k: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = k
    return exif


def arrays(rgb: np.ndarray) -> dict[str, np.ndarray]:
    return {
        "rgb": rgb,
        "first": rgb.transpose(2, 0, 1).copy(),
        "grey": rgb[..., :1].copy(),
        "rgba": np.concatenate([rgb, rgb[:, ::-1, :1]], axis=2),
        "rgba_unit": (np.concatenate([rgb, rgb[:, ::-1, :1]], axis=2) / 255).astype(np.float32),
        "unit": (rgb / 255).astype(np.float32),
        "float": rgb.astype(np.float64),
        "int": rgb.astype(np.int64),
        "half": (rgb / 255).astype(np.float16),
    }


def processor(settings: dict[str, Any]) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "preprocessor_config.json").write_text(json.dumps(settings))
        return transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")


def main() -> None:
    rgb = draw()
    recorded: dict[str, np.ndarray] = {}
    inputs: dict[str, Any] = {}
    for name, data in files(rgb).items():
        recorded[f"file/{name}"] = np.frombuffer(data, np.uint8)
        inputs[f"file/{name}"] = load_image(Image.open(io.BytesIO(data)))
        if name == "rgba":  # the processor alone sees the transparency
            inputs["pillow/rgba"] = Image.open(io.BytesIO(data))
    for name, array in arrays(rgb).items():
        recorded[f"array/{name}"] = inputs[f"array/{name}"] = array
    for image, value in inputs.items():
        for name in ["white"] if image == "pillow/rgba" else ON.get(image, ["vit"]):
            out = processor(SETTINGS[name])(value, return_tensors="np")
            (array,) = out.values()
            kept = array[0] if array.dtype.kind == "i" else array[0].astype(np.float32)
            recorded[f"out/{name}/{image}"] = kept
    np.savez_compressed(HERE / "images.npz", **recorded)

    pipelines = {}
    for folder, (settings, options) in PIPELINES.items():
        with tempfile.TemporaryDirectory() as temporary:
            shutil.copytree(HERE / folder, temporary, dirs_exist_ok=True)
            (Path(temporary) / "preprocessor_config.json").write_text(json.dumps(SETTINGS[settings]))
            classify = transformers.pipeline("image-classification", temporary)
            found = [
                [settings, name, options, classify(Image.open(io.BytesIO(data)), **options)]
                for name, data in files(rgb).items()
                if name in ("rgb", "rgba", "turned_6")
            ]
        pipelines[folder] = found
    content = {"settings": SETTINGS, "pipelines": pipelines}
    (HERE / "images.json").write_text(json.dumps(content, indent=1) + "\n")
    print(len(recorded), "arrays", sum((HERE / f"images.{kind}").stat().st_size for kind in ("npz", "json")), "bytes")


if __name__ == "__main__":
    main()
