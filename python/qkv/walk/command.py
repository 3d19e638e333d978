"""`qkv trace`: every step of a forward pass over a text or an image, in the terminal or as a page."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from ..bench.run import positive
from ..view.choices import PAGES, add_choices, add_text, check_output, numbers, text_of, write


def add_command(commands: Any) -> None:
    parser = commands.add_parser("trace", help="every step of a forward pass, in the terminal or as a page of HTML")
    parser.add_argument("model", metavar="MODEL", help="Hugging Face folder, its name on the hub, .npz or .gguf")
    add_text(parser)
    parser.add_argument("--target", metavar="TEXT", help="what an encoder-decoder writes; default: what it generates")
    parser.add_argument("--pair", metavar="TEXT", help="a second text for an encoder, such as a question's context")
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE.html",
        help="write a page instead, to be opened in a browser; - writes it to standard output",
    )
    add_choices(parser, "tell these {} only, from 0; default: all")
    parser.add_argument("--numbers", type=positive(int), default=6, metavar="N", help="of each row (default 6)")
    parser.add_argument("--rows", type=int, default=1, metavar="N", help="of each step (default 1; 0: shapes only)")
    parser.add_argument("--title", help="of the page; default: the text and the model's name")
    dtypes = ["auto", "float32", "bfloat16", "int8", "int4"]
    parser.add_argument("--dtype", choices=dtypes, help="of the weights; default: float32, auto for a .gguf")
    parser.add_argument("--threads", type=positive(int), metavar="N", help="default: as many as there are cores")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from ..cli_tasks import dtype_of
    from . import trace

    if arguments.output is not None:
        check_output(arguments.output, PAGES)
    elif arguments.title is not None:
        raise ValueError("--title is for a page; pass --output too")
    made = trace(
        arguments.model,
        text_of(arguments),
        arguments.target,
        pair=arguments.pair,
        layers=numbers("layers", arguments.layers),
        heads=numbers("heads", arguments.heads),
        dtype=dtype_of(arguments),
    )
    if arguments.output is not None:
        write(made.to_html(title=arguments.title), arguments.output)
        return
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    print(made.text(numbers=arguments.numbers, rows=arguments.rows).encode(encoding, "replace").decode(encoding))
