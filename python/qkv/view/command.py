"""`qkv view`: a model's attention over a text, a pair of texts, what it writes, or an image, as a page or a picture."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..bench.run import positive
from ..images import OF_MODELS
from . import reading
from .choices import PAGES, add_choices, add_text, check_output, joined, numbers, text_of, titled, write
from .tokens import labels

PICTURES = (".png", ".svg", ".pdf")


@dataclass
class Seen:
    """What there is to show: an output with attentions, and what goes with it."""

    out: Any
    tokens: list[str] | None = None
    target_tokens: list[str] | None = None
    image: Any = None
    grid: tuple[int, int] | None = None


def add_command(commands: Any) -> None:
    parser = commands.add_parser("view", help="attention over a text or an image, as a page of HTML")
    parser.add_argument("model", metavar="MODEL", help="Hugging Face folder, its name on the hub, .npz or .gguf")
    add_text(parser)
    parser.add_argument("--target", metavar="TEXT", help="what an encoder-decoder writes; default: what it generates")
    parser.add_argument("--pair", metavar="TEXT", help="a second text for an encoder, such as a question's context")
    parser.add_argument(
        "--max-new-tokens", type=positive(int), metavar="N", help="go on with the text, with a slider over the steps"
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        default="attention.html",
        help="default attention.html; - writes the page to standard output; .png, .svg or .pdf: a figure",
    )
    parser.add_argument(
        "--kind",
        choices=["encoder", "decoder", "cross"],
        help="of attention, in a figure; default: cross where there is one",
    )
    add_choices(parser, "show these {} only, from 0; default: all. A figure of one head of one layer shows it large")
    parser.add_argument("--title", help="default: the text and the model's name")
    dtypes = ["auto", "float32", "bfloat16", "int8", "int4"]
    parser.add_argument("--dtype", choices=dtypes, help="of the weights; default: float32, auto for a .gguf")
    parser.add_argument("--threads", type=positive(int), metavar="N", help="default: as many as there are cores")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from .. import load
    from ..cli_tasks import dtype_of
    from . import attention, figure

    ending = check_output(arguments.output, (*PAGES, *PICTURES))
    if ending not in PICTURES and arguments.kind is not None:
        raise ValueError("--kind is for figures; a page has all")
    layers, heads = (numbers(name, getattr(arguments, name)) for name in ("layers", "heads"))
    model, text = load(arguments.model, dtype=dtype_of(arguments)), text_of(arguments)
    seen = look(model, text, arguments.target, arguments.pair, arguments.max_new_tokens)
    read = joined(text, arguments.pair) if seen.image is None else os.path.basename(text)
    title = arguments.title or titled(read, arguments.model)
    given = seen.out, seen.tokens, seen.target_tokens
    if ending in PICTURES:
        figure(*given, arguments.output, title, kind=arguments.kind, layer=layers, head=heads)
        print(f"written: {arguments.output}")
    else:
        page = attention(*given, None, title, seen.image, grid=seen.grid, layers=layers, heads=heads)
        write(page, arguments.output)


def look(model: Any, text: str, target: str | None, pair: str | None, new_tokens: int | None) -> Seen:
    """Run a model on a text. ValueError: it does not take what is given."""
    kind = f"a {model.architecture}"
    reading.check("view", model, target, pair)
    if model.config.get("model_type") in OF_MODELS:
        for name, value in (("--pair", pair), ("--max-new-tokens", new_tokens)):
            if value is not None:
                raise ValueError(f"{name}: {kind} takes an image")
        return _image(model, text)
    if new_tokens is not None and not reading.makes_tokens(model):
        raise ValueError(f"--max-new-tokens: {kind} makes no tokens")
    if new_tokens is not None and target is not None:
        raise ValueError("--max-new-tokens and --target do not go together")
    batch = reading.read("view", model, text, pair)
    tokens = labels(model.tokenizer, batch["input_ids"][0])
    if reading.has_two_stacks(model):
        return _pair(model, batch, tokens, target, new_tokens)
    if new_tokens is not None:
        out = _generate(model, batch, new_tokens)
        return Seen(out, labels(model.tokenizer, out.sequences[0]))
    return Seen(model(**batch, output_attentions=True), tokens)


def _pair(model: Any, batch: dict[str, Any], tokens: list[str], target: str | None, new_tokens: int | None) -> Seen:
    if target is not None:
        ids = reading.as_much_as_fits("view", model, reading.target_ids(model, target))
        return Seen(
            model(**batch, decoder_input_ids=ids, output_attentions=True), tokens, labels(model.tokenizer, ids[0])
        )
    if not reading.makes_tokens(model):
        raise ValueError(f"view: a {model.architecture} does not generate; pass --target")
    out = _generate(model, batch, new_tokens or reading.new_tokens(model))
    return Seen(out, tokens, labels(model.tokenizer, out.sequences[0]))


def _generate(model: Any, batch: dict[str, Any], new_tokens: int) -> Any:
    given = {name: batch[name] for name in ("input_ids", "attention_mask")}
    return model.generate(
        **given, max_new_tokens=new_tokens, do_sample=False, output_attentions=True, return_dict_in_generate=True
    )


def _image(model: Any, path: str) -> Seen:
    from .pictures import patch_names

    processor = model.image_processor
    batch = processor(path)
    out = model(**batch, output_attentions=True)
    if "input_ids" in batch:  # ImageGPT's pixels, as numbers of colours from -1 to 1
        height, width = (processor.size[side] for side in ("height", "width"))
        colours = (np.array(processor.clusters)[batch["input_ids"][0]] + 1) / 2
        image = np.clip(colours, 0, 1).reshape(height, width, 3)
        return Seen(out, patch_names(0, height, width), image=image, grid=(height, width))
    rows, columns = model.patches.grid
    height, width = (side * of for side, of in zip(model.patches.grid, model.patches.patch, strict=True))
    x = batch["pixel_values"][0, :, :height, :width]  # what the patches cover
    if processor.do_normalize:
        mean, std = (np.array(values, np.float32)[:, None, None] for values in (processor.mean, processor.std))
        x = x * std + mean
    if not processor.do_rescale:
        x = x / 255
    names = patch_names(len(model.patches.special), rows, columns)
    return Seen(out, names, image=np.clip(x, 0, 1).transpose(1, 2, 0), grid=(rows, columns))
