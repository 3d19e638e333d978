"""The text that is read, which layers and heads are shown, and where: what `qkv view` and `qkv trace` share."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

PAGES = (".html", ".htm")
STANDARD = "-"  # standard output, as the name of a file
LONGEST = 200  # characters of a text in titles


def chosen(command: str, name: str, given: Any, count: int, where: str) -> list[int]:
    """The numbers of layers or heads that are to be shown; None: all. ValueError, TypeError: there is no such one."""
    if given is None:
        return list(range(count))
    numbers = list(given) if isinstance(given, (list, tuple, range, np.ndarray)) else [given]
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, (int, np.integer)):
            raise TypeError(f"{command}: {name} must be an integer or a list of them; got {number!r:.60}")
        if not 0 <= number < count:
            raise ValueError(f"{command}: {name} of {where} go from 0 to {count - 1}; got {number}")
    if not numbers:
        raise ValueError(f"{command}: {name} must name at least one; got none")
    return sorted({int(number) for number in numbers})


def add_choices(parser: Any, help_: str) -> None:
    """`--layers` and `--heads`, which argparse takes as --layer and --head too; `{}` in help_ is which."""
    for name in ("layers", "heads"):
        parser.add_argument(f"--{name}", metavar="N,...", help=help_.format(name))


def numbers(name: str, given: str | None) -> list[int] | None:
    """Of "0,3"."""
    if given is None:
        return None
    try:
        return [int(number) for number in given.split(",")]
    except ValueError:
        raise ValueError(f"--{name}: expected numbers with commas between them; got {given!r:.60}") from None


def add_text(parser: Any) -> None:
    help_ = "what the model reads, '-' or none: standard input; for a model of images the path of one"
    parser.add_argument("text", metavar="TEXT", nargs="?", default="-", help=help_)


def text_of(arguments: Any) -> str:
    """The text that add_text's argument means. ValueError: standard input is closed, or not UTF-8."""
    if arguments.text != "-":
        text: str = arguments.text
        return text
    if sys.stdin is None:
        raise ValueError("standard input is closed")
    data = sys.stdin.buffer.read()
    try:
        return data.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"standard input is not UTF-8 at byte {error.start}") from None


def shortened(text: str) -> str:
    """What a title has of a text."""
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def titled(text: str | None, model: str | os.PathLike[str] | None) -> str:
    """Of what was read, and the path of what read it; one of them may be missing."""
    name = None if model is None else os.path.basename(os.path.normpath(model))
    return " · ".join(filter(None, (text and shortened(" ".join(text.split())), name)))


def joined(text: str, pair: str | None) -> str:
    return text if pair is None else f"{text} | {pair}"


def check_output(path: str, endings: Sequence[str]) -> str:
    """The ending of an output's path. ValueError: another one. FileNotFoundError: its folder."""
    ending = os.path.splitext(path)[1].lower()
    if path != STANDARD and ending not in endings:
        *others, last = endings
        raise ValueError(f"--output: {path!r} must be {STANDARD} or end in {', '.join(others)} or {last}")
    folder = os.path.dirname(path)
    if folder and not os.path.isdir(folder):
        raise FileNotFoundError(f"{folder}: there is no such folder")
    return ending


def write(page: str, path: str) -> None:
    """A page to a file, or as it is to standard output."""
    if path == STANDARD:
        sys.stdout.buffer.write(page.encode())  # UTF-8, as it says, whatever a terminal's encoding
        return
    Path(path).write_text(page, encoding="utf-8")
    print(f"written: {path}")
