"""Images of all modes against transformers' image processors and its image-classification pipeline."""

from __future__ import annotations

import base64
import io
import json
import shutil
import subprocess
import sys
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import qkv
from golden_checks import GOLDEN
from qkv.images import FILE, ImageProcessor, load_image

Image = pytest.importorskip("PIL.Image", reason="images need the extra `images`")
RECORD = json.loads((GOLDEN / "images.json").read_text())
SETTINGS: dict[str, dict[str, Any]] = RECORD["settings"]
with np.load(GOLDEN / "images.npz") as _recorded:
    ARRAYS = {name: _recorded[name] for name in _recorded.files}
OUT = sorted(name.removeprefix("out/") for name in ARRAYS if name.startswith("out/"))
FILES = sorted(name.removeprefix("file/") for name in ARRAYS if name.startswith("file/"))
RGB = ARRAYS["array/rgb"]
VIT = SETTINGS["vit"]


def data(name: str) -> bytes:
    return ARRAYS[f"file/{name}"].tobytes()


def opened(name: str) -> Any:
    return Image.open(io.BytesIO(data(name)))


def encoded(image: Any, form: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def checkpoint(tmp_path: Path, name: str, settings: dict[str, Any]) -> Path:
    folder = tmp_path / name
    shutil.copytree(GOLDEN / name, folder)
    (folder / FILE).write_text(json.dumps(settings))
    return folder


@pytest.fixture
def vit(tmp_path: Path) -> Any:
    return qkv.pipeline("image-classification", checkpoint(tmp_path, "vit_classify", VIT))


# ---- the processors


@pytest.mark.parametrize("case", OUT)
def test_agrees_with_transformers(case: str) -> None:
    """To the bit: the steps on integers are Pillow's, the others the same operations in the same types."""
    settings, kind, image = case.split("/")
    given = {"file": data, "pillow": opened}.get(kind, lambda name: ARRAYS[f"array/{name}"])(image)
    processor = ImageProcessor(SETTINGS[settings])
    with warnings.catch_warnings():
        if kind == "array" and image in ("unit", "half", "rgba_unit") and settings != "not_rescaled":
            warnings.simplefilter("ignore")
        ((name, values),) = processor(given).items()
    expected = ARRAYS[f"out/{case}"]
    assert name == ("input_ids" if expected.dtype == np.int64 else "pixel_values")
    assert values.dtype == expected.dtype and values.flags.c_contiguous
    np.testing.assert_array_equal(values, expected[None])


def test_every_way_in_gives_the_same(tmp_path: Path) -> None:
    processor = ImageProcessor(VIT)
    expected = ARRAYS["out/vit/file/rgb"][None]
    path = tmp_path / "x.png"
    path.write_bytes(data("rgb"))
    for given in (data("rgb"), path, str(path), opened("rgb"), RGB, RGB.transpose(2, 0, 1)):
        np.testing.assert_array_equal(processor(given)["pixel_values"], expected)
    plain = base64.b64encode(data("rgb")).decode()
    uri = "data:image/png;base64," + plain
    for text in (plain, uri, base64.encodebytes(data("rgb")).decode()):
        np.testing.assert_array_equal(processor(text)["pixel_values"], expected)
    for name in ("a" * 63 + ".png", "some/folder" * 8):
        with pytest.raises(FileNotFoundError):
            processor(name)


def test_lists_and_arrays_of_images() -> None:
    processor = ImageProcessor(VIT)
    images = [data("rgb"), opened("grey"), RGB[::-1]]
    together = processor(images)["pixel_values"]
    assert together.shape == (3, 3, 8, 8)
    for one, image in zip(together, images, strict=True):
        np.testing.assert_array_equal(one, processor(image)["pixel_values"][0])
    stacked = processor(np.stack([RGB, RGB[::-1]]))["pixel_values"]
    np.testing.assert_array_equal(stacked, together[[0, 2]])


def test_grey_becomes_rgb_or_stays() -> None:
    """As transformers' load_image has it where the model wants RGB; one channel where there is one mean."""
    grey = RGB[..., 0]
    expected = ImageProcessor(VIT)(np.repeat(grey[..., None], 3, axis=2))["pixel_values"]
    for given in (grey, grey[..., None], grey[None], Image.fromarray(grey)):
        np.testing.assert_array_equal(ImageProcessor(VIT)(given)["pixel_values"], expected)
        single = ImageProcessor(VIT | {"image_mean": [0.5], "image_std": [0.5]})(given)["pixel_values"]
        np.testing.assert_array_equal(single, expected[:, :1])


def test_a_file_is_turned_and_an_image_is_not() -> None:
    """So in transformers, where load_image turns; pipelines use it."""
    assert load_image(data("turned_6")).size == (RGB.shape[0], RGB.shape[1])
    np.testing.assert_array_equal(np.asarray(load_image(opened("turned_6"))), np.rot90(RGB, -1))
    processor = ImageProcessor(VIT)
    np.testing.assert_array_equal(
        processor(opened("turned_6"))["pixel_values"], processor(opened("rgb"))["pixel_values"]
    )


def test_options_of_a_call() -> None:
    processor = ImageProcessor(VIT)
    for name in ("not_rescaled", "not_normalized", "not_resized", "imagenet", "shortest"):
        changed = {k: v for k, v in SETTINGS[name].items() if VIT.get(k) != v}
        assert changed
        np.testing.assert_array_equal(processor(RGB, **changed)["pixel_values"][0], ARRAYS[f"out/{name}/array/rgb"])
    bicubic = processor(RGB, resample=Image.Resampling.BICUBIC, size=[9, 31])["pixel_values"][0]
    np.testing.assert_array_equal(bicubic, ARRAYS["out/resample_3/array/rgb"])
    tall = RGB[:, :3].transpose(1, 0, 2)  # (3, 17, 3): which side the channels are on cannot be seen
    last = processor(tall, input_data_format="channels_last")["pixel_values"]
    np.testing.assert_array_equal(last, processor(Image.fromarray(tall))["pixel_values"])
    assert not np.array_equal(processor(tall)["pixel_values"], last)
    with pytest.raises(ValueError, match="there is no option sise; known are do_resize, size"):
        processor(RGB, sise=3)


def test_scaling_twice_is_said() -> None:
    unit = ARRAYS["array/unit"]
    with pytest.warns(UserWarning, match="image 0 has values from 0 to 1, .* pass do_rescale=False"):
        ImageProcessor(VIT)(unit)
    assert ImageProcessor(VIT)(unit, do_rescale=False)["pixel_values"].max() > 0
    ImageProcessor(VIT)(np.zeros((5, 5, 3)))  # black, which says nothing


def test_colours_of_imagegpt() -> None:
    """Each pixel's id is that of the colour with the least distance, by the definition."""
    settings = SETTINGS["imagegpt"]
    ids = ImageProcessor(settings)(RGB, size=[70, 80])["input_ids"]
    assert ids.shape == (1, 5600) and ids.dtype == np.int64
    pixels = ImageProcessor(settings)(RGB, size=[70, 80], do_color_quantize=False)["pixel_values"][0]
    distances = np.square(pixels.reshape(3, -1, 1).astype(np.float64) - np.array(settings["clusters"]).T[:, None])
    np.testing.assert_array_equal(ids[0], distances.sum(axis=0).argmin(axis=1))


# ---- broken and hostile input


def broken_images() -> dict[str, tuple[Any, str]]:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    png, gif, jpeg = encoded(Image.fromarray(noise)), data("animated"), encoded(Image.fromarray(noise), "JPEG")

    def claims(side: int) -> bytes:
        """A header of side x side, and hardly any data."""
        header = b"IHDR" + side.to_bytes(4, "big") * 2 + png[24:29]
        return png[:12] + header + zlib.crc32(header).to_bytes(4, "big") + png[33:]

    nan = np.full((4, 4, 3), np.nan, np.float32)
    return {
        "nothing": (b"", "not an image that Pillow can read"),
        "text": (b"hello" * 100, "not an image that Pillow can read"),
        "cut png": (png[: len(png) // 2], "the image is broken"),
        "cut gif": (gif[:60], "the image is broken|not an image"),
        "cut jpeg": (jpeg[: len(jpeg) // 2], "the image is broken"),
        "bomb": (claims(60000), "exceeds limit"),
        # beyond Pillow's warning, not beyond its error
        "small bomb": (claims(10000), "10000 x 10000, more than"),
        "eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 5 5\n%%EndComments\n", "EPS images are programs"),
        "url": ("https://example.org/cat.png", "not fetched from the network"),
        "data": ("data:image/png;base64,%%%%", "in a data: URL"),
        "no pixels": (np.zeros((0, 5, 3), np.uint8), "5 x 0, no pixels"),
        "one dimension": (np.zeros(5, np.uint8), r"shape \(5,\)"),
        "two channels": (np.zeros((5, 5, 2), np.uint8), r"1, 3 or 4 channels.*\(5, 5, 2\)"),
        "five dimensions": (np.zeros((1, 1, 5, 5, 3), np.uint8), "channels"),
        "nan": (nan, "holds NaN or infinity"),
        "infinity": (nan * 0 + np.inf, "holds NaN or infinity"),
        "negative": (np.full((4, 4, 3), -1.0), "values from 0 to 255"),
        "sixteen bits": (np.full((4, 4, 3), 300, np.uint16), "values from 0 to 255"),
        "four channels": (np.zeros((4, 4, 4), np.uint8), "4 channels, and image_mean 3"),
        "none": ([], "at least one image"),
    }


BROKEN = broken_images()


@pytest.mark.parametrize("name", BROKEN)
def test_broken_images(name: str) -> None:
    given, message = BROKEN[name]
    with pytest.raises(ValueError, match=message) as error, warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # of Pillow's, which warns before it is refused
        ImageProcessor(VIT)(given)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("place", range(0, 2000, 97))
def test_changed_bytes(place: int) -> None:
    """Whatever a file has become, it is an image or a ValueError."""
    for name in ("palette", "rgba", "animated", "cmyk"):
        content = bytearray(data(name))
        content[place % len(content)] ^= 0x5A
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                assert ImageProcessor(VIT)(bytes(content))["pixel_values"].shape == (1, 3, 8, 8)
            except ValueError as error:
                assert str(error)


def test_wrong_types(tmp_path: Path) -> None:
    processor = ImageProcessor(VIT)
    for given in (None, 3.5, [None], [[RGB]], np.zeros((4, 4, 3), bool), np.zeros((4, 4, 3), complex)):
        with pytest.raises((TypeError, ValueError), match="image"):
            processor(given)
    with pytest.raises(FileNotFoundError, match=r"no\.png"):
        processor(tmp_path / "no.png")
    with pytest.raises(TypeError, match="expected a path, bytes or an image of Pillow; got int"):
        load_image(3)


def test_resizing_to_a_bomb() -> None:
    processor = ImageProcessor(VIT | {"size": {"shortest_edge": 60000}})
    with pytest.raises(ValueError, match=r"image 0, resized, is of .* more than"):
        processor(RGB)
    with pytest.raises(ValueError, match=r"image 0, cropped, is of 60000 x 60000, more than"):
        ImageProcessor(VIT)(RGB, do_center_crop=True, crop_size=60000)
    thin = ImageProcessor(VIT | {"size": {"shortest_edge": 4, "longest_edge": 4}})
    with pytest.raises(ValueError, match="no pixels"):
        thin(np.zeros((1, 5000, 3), np.uint8))
    with pytest.raises(ValueError, match="different shapes"):
        ImageProcessor(SETTINGS["shortest"])([RGB, RGB[:9]])


def test_a_broken_file_behind_an_open_image() -> None:
    cut = Image.open(io.BytesIO(data("rgb")[:300]))
    with pytest.raises(ValueError, match="image 0: the image is broken"):
        ImageProcessor(VIT)(cut)


# ---- preprocessor_config.json


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_processor_type": "CLIPImageProcessor"}, "image processor 'CLIPImageProcessor' is not supported"),
        ({"size": 0}, "size must be"),
        ({"size": True}, "size must be"),
        ({"size": [8, 8, 8]}, "size must be"),
        ({"size": {"longest_edge": 8}}, "size must be"),
        ({"size": {"height": 8, "width": 10**9}}, "size must be"),
        ({"crop_size": {"shortest_edge": 8}}, "crop_size must be"),
        ({"do_center_crop": True}, "crop_size must be a size"),
        ({"do_resize": "yes"}, "do_resize must be true or false"),
        ({"resample": 6}, "resample must be"),
        ({"rescale_factor": float("nan")}, "rescale_factor must be"),
        ({"image_mean": [0.5, "x", 0.5]}, "image_mean must be"),
        ({"image_mean": []}, "image_mean must be"),
        ({"image_std": [0.5, 0.0, 0.5]}, "image_std must be without zeros"),
        ({"do_pad": True}, "do_pad True is not supported"),
        ({"data_format": "channels_last"}, "data_format 'channels_last' is not supported"),
        ({"input_data_format": "hwc"}, "input_data_format must be"),
        ({"image_processor_type": "ImageGPTImageProcessor"}, "clusters must be"),
        ({"image_processor_type": "ImageGPTImageProcessor", "clusters": [[1, 2]]}, "clusters must be"),
        ({"image_processor_type": "ImageGPTImageProcessor", "clusters": [[1, 2, "x"]]}, "clusters must be"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageProcessor({"image_processor_type": "ViTImageProcessor", **settings})


def test_the_processor_of_a_model(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, "deit_classify", {"size": 14, "crop_size": 8})  # without a class, as files of old
    model = qkv.load(folder)
    np.testing.assert_array_equal(model.image_processor(RGB)["pixel_values"][0], ARRAYS["out/deit/array/rgb"])
    model.save(tmp_path / "saved.npz")
    again = qkv.load(tmp_path / "saved.npz")
    np.testing.assert_array_equal(again.image_processor(RGB)["pixel_values"][0], ARRAYS["out/deit/array/rgb"])
    (folder / FILE).write_text("[]")
    with pytest.raises(ValueError, match=f"{FILE}: must hold a JSON object"):
        _ = qkv.load(folder).image_processor
    with pytest.raises(ValueError, match=f"this model has no {FILE}"):
        _ = qkv.load(GOLDEN / "vit_classify").image_processor
    with pytest.raises(ValueError, match="a model of type 'bert' takes no images"):
        _ = qkv.load(GOLDEN / "bert_base").image_processor


def test_without_pillow() -> None:
    code = (
        "import sys; sys.modules['PIL'] = None\nimport qkv.models\nfrom qkv.images import ImageProcessor\n"
        "try: ImageProcessor({'image_processor_type': 'ViTImageProcessor'})(b'')\n"
        "except ImportError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == 'images need the pillow package: pip install "qkv[images]"'


# ---- the pipeline


@pytest.mark.parametrize("folder", RECORD["pipelines"])
def test_pipeline_agrees_with_transformers(folder: str, tmp_path: Path) -> None:
    for settings, image, options, expected in RECORD["pipelines"][folder]:
        path = checkpoint(tmp_path / image, folder, SETTINGS[settings])
        for given in (data(image), opened(image)):
            found = qkv.pipeline(model=path)(given, **options)
            assert [list(label) for label in found] == [["label", "score"]] * len(expected)
            assert [label["label"] for label in found] == [label["label"] for label in expected]
            np.testing.assert_allclose(
                [label["score"] for label in found], [label["score"] for label in expected], rtol=0, atol=1e-5
            )


def test_pipeline_of_lists(vit: Any) -> None:
    images = [data("rgb"), opened("cmyk"), RGB, np.asarray(RGB[::-1])]
    one_by_one = [vit(image) for image in images]
    assert vit(images) == one_by_one
    assert vit(images, batch_size=3) == one_by_one
    assert list(vit(iter(images))) == one_by_one
    assert len(vit(RGB, top_k=2)) == 2 and vit(RGB, top_k=99) == vit(RGB)
    sigmoid = vit(RGB, function_to_apply="SIGMOID")
    logits = {label["label"]: label["score"] for label in vit(RGB, function_to_apply="none")}
    for label in sigmoid:
        assert label["score"] == pytest.approx(1 / (1 + np.exp(-logits[label["label"]])), abs=1e-6)


def test_pipeline_errors(vit: Any) -> None:
    assert vit(RGB, top_k=0) == []  # as in transformers
    with pytest.raises(ValueError, match="top_k must be an integer of at least 0"):
        vit(RGB, top_k=-1)
    with pytest.raises(ValueError, match="function_to_apply must be one of default, sigmoid"):
        vit(RGB, function_to_apply="tanh")
    with pytest.raises(ValueError, match="an array of 2 images is no image; pass a list"):
        vit(np.stack([RGB, RGB]))
    with pytest.raises(TypeError, match="expected a path, bytes or an image"):
        vit([[RGB]])
    with pytest.raises(ValueError, match="8 x 8 pixels"):
        vit.model(pixel_values=ImageProcessor(SETTINGS["deit_old"])(RGB)["pixel_values"])
