"""`qkv view`: a model's attention over a text, a pair of texts, what it writes, or an image, as a page or a picture."""

from __future__ import annotations

import argparse
import os
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..bench.run import positive
from ..images import OF_MODELS
from .choices import add_choices, add_text, numbers, text_of
from .tokens import labels

PICTURES = (".png", ".svg", ".pdf")
NEW_TOKENS = 64  # of a target that the model makes


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
        help="default attention.html; .png or .svg: a figure",
    )
    parser.add_argument("--kind", choices=["encoder", "decoder", "cross"], help="of attention, in a figure")
    parser.add_argument("--layer", type=int, metavar="N", help="in a figure, this one only")
    parser.add_argument("--head", type=int, metavar="N", help="in a figure, this one of the layer, large")
    add_choices(parser, "in a page, these {} only, from 0; default: all")
    parser.add_argument("--title", help="default: the model's name")
    dtypes = ["auto", "float32", "bfloat16", "int8", "int4"]
    parser.add_argument("--dtype", choices=dtypes, help="of the weights; default: float32, auto for a .gguf")
    parser.add_argument("--threads", type=positive(int), metavar="N", help="default: as many as there are cores")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from .. import load
    from ..cli_tasks import dtype_of
    from . import attention, figure

    ending = os.path.splitext(arguments.output)[1].lower()
    if ending not in (".html", ".htm", *PICTURES):
        raise ValueError(f"--output: {arguments.output!r} must end in .html, {', '.join(PICTURES)}")
    of_figure = {"--kind": arguments.kind, "--layer": arguments.layer, "--head": arguments.head}
    if ending not in PICTURES and any(value is not None for value in of_figure.values()):
        raise ValueError(f"{', '.join(of_figure)} are for figures; a page has --layers and --heads")
    of_page: dict[str, Any] = {name: numbers(name, getattr(arguments, name)) for name in ("layers", "heads")}
    if ending in PICTURES and any(value is not None for value in of_page.values()):
        raise ValueError("--layers, --heads are for pages; a figure has --layer and --head")
    folder = os.path.dirname(arguments.output)
    if folder and not os.path.isdir(folder):
        raise FileNotFoundError(f"{folder}: there is no such folder")
    model = load(arguments.model, dtype=dtype_of(arguments))
    seen = look(model, text_of(arguments), arguments.target, arguments.pair, arguments.max_new_tokens)
    title = arguments.title or os.path.basename(os.path.normpath(arguments.model))
    given = {"tokens": seen.tokens, "target_tokens": seen.target_tokens, "path": arguments.output, "title": title}
    if ending in PICTURES:
        chosen = {"kind": arguments.kind, "layer": arguments.layer, "head": arguments.head}
        figure(seen.out, **given, **chosen)
    else:
        attention(seen.out, **given, image=seen.image, grid=seen.grid, **of_page)
    print(f"written: {arguments.output}")


def look(model: Any, text: str, target: str | None, pair: str | None, new_tokens: int | None) -> Seen:
    """Run a model on a text. ValueError: it does not take what is given."""
    kind = f"a {model.architecture}"
    both = hasattr(model, "encoder") and hasattr(model, "decoder")
    if target is not None and not both:
        raise ValueError(f"--target: {kind} has no decoder beside an encoder")
    if model.config.get("model_type") in OF_MODELS:
        for name, value in (("--pair", pair), ("--max-new-tokens", new_tokens)):
            if value is not None:
                raise ValueError(f"{name}: {kind} takes an image")
        return _image(model, text)
    if "input_ids" not in model.inputs:
        raise ValueError(f"view: {kind} takes no texts")
    makes = hasattr(model, "generate") and hasattr(getattr(model, "head", None), "logits")
    if new_tokens is not None and not makes:
        raise ValueError(f"--max-new-tokens: {kind} makes no tokens")
    if new_tokens is not None and target is not None:
        raise ValueError("--max-new-tokens and --target do not go together")
    if pair is not None and (both or makes):
        raise ValueError(f"--pair: {kind} reads one text")
    texts = ([text],) if pair is None else ([text], [pair])
    batch = model.tokenizer(*texts)
    _tell_cut("text", len(model.tokenizer.encode_batch(*texts, truncation=False)[0].ids), batch["input_ids"].shape[1])
    if not batch["input_ids"].shape[1]:
        raise ValueError("view: the text has no tokens")
    tokens = labels(model.tokenizer, batch["input_ids"][0])
    if both:
        return _pair(model, batch, tokens, target, new_tokens, makes)
    if new_tokens is not None:
        out = _generate(model, batch, new_tokens)
        return Seen(out, labels(model.tokenizer, out.sequences[0]))
    return Seen(model(**batch, output_attentions=True), tokens)


def _pair(
    model: Any, batch: dict[str, Any], tokens: list[str], target: str | None, new_tokens: int | None, makes: bool
) -> Seen:
    if target is None and not makes:
        raise ValueError(f"view: a {model.architecture} does not generate; pass --target")
    if target is None:
        limit = getattr(model.decoder.embeddings, "limit", None) or NEW_TOKENS
        out = _generate(model, batch, new_tokens or min(NEW_TOKENS, limit))
        return Seen(out, tokens, labels(model.tokenizer, out.sequences[0]))
    from ..score import decoder_ids

    ids, mask = decoder_ids(model, target)
    limit = getattr(model.decoder.embeddings, "limit", None)
    _tell_cut("target", ids.shape[1], ids.shape[1] if limit is None else min(limit, ids.shape[1]))
    ids, mask = ids[:, :limit], mask[:, :limit]
    out = model(**batch, decoder_input_ids=ids, decoder_attention_mask=mask, output_attentions=True)
    return Seen(out, tokens, labels(model.tokenizer, ids[0]))


def _tell_cut(what: str, tokens: int, kept: int) -> None:
    if kept < tokens:
        warnings.warn(f"view: the {what} is cut to {kept} of its {tokens} tokens, what the model takes", stacklevel=2)


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
