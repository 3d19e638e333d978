"""The text that is read, and which layers and heads a page shows: what `qkv view` and `qkv trace` share."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np


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
    """`--layers` and `--heads`; `{}` in help_ is which."""
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
