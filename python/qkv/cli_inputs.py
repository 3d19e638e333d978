"""What the command line is given: arguments, and lines of files and of standard input, with where each comes from."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from .cli import ERRORS, sentence

AT_ONCE = 512  # lines that are computed together, at most
READ = 1 << 16  # bytes
BOM = "\ufeff"  # byte order mark


@dataclass(frozen=True)
class Input:
    """where: for messages, such as "line 3 of standard input: "; nothing where there is only one."""

    text: str
    where: str


def inputs_of(arguments: argparse.Namespace) -> Iterator[list[Input]]:
    """Lists of inputs: arguments, and lines as they come, so that an endless standard input is never read whole. A byte
    order mark, which some editors put in front of a text, is none of it."""
    literal: list[Input] = []
    given = arguments.inputs or ([] if arguments.file else ["-"])
    for number, text in enumerate(given, 1):
        if text != "-":
            literal.append(Input(text, f"input {number}: " if arguments.file or len(given) > 1 else ""))
            continue
        if literal:
            yield literal
        literal = []
        if sys.stdin is None:
            raise ValueError("standard input is closed")
        yield from lines(sys.stdin.buffer, "standard input")
    if literal:
        yield literal
    if arguments.file:
        with open(arguments.file, "rb") as file:
            yield from lines(file, arguments.file)


def lines(stream: Any, name: str) -> Iterator[list[Input]]:
    """The lines that are there, without their ends, again and again; the last need not have one."""
    begun: list[bytes] = []  # of a line whose end is not there yet
    at, number = 0, count(1)
    while True:
        data = stream.read1(READ)  # waits for something, not for all of it
        first, *others = data.split(b"\n")
        begun.append(first)
        whole = []
        if others or (not data and any(begun)):
            whole, begun = [b"".join(begun), *others[:-1]], others[-1:]
        for start in range(0, len(whole), AT_ONCE):
            texts: list[Input] = []
            for line in whole[start : start + AT_ONCE]:
                where = f"line {next(number)} of {name}: "
                try:
                    text = line.decode("utf-8").removesuffix("\r")
                except UnicodeDecodeError as error:
                    yield texts
                    raise ValueError(f"{where}not UTF-8 text at byte {at + error.start}") from None
                texts.append(Input(text if at else text.removeprefix(BOM), where))
                at += len(line) + 1
            yield texts
        if not data:
            return


@contextlib.contextmanager
def named(where: str) -> Iterator[None]:
    """Errors of an input say which one it is."""
    try:
        yield
    except BrokenPipeError:  # of what is written
        raise
    except ERRORS as error:
        raise ValueError(f"{where}{sentence(error)}") from None


def json_object(text: str, *names: str) -> dict[str, Any]:
    """A line of JSON with some keys."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict) or not value.keys() >= set(names):
        raise ValueError(f"expected a JSON object with {' and '.join(names)} in each line; got {text!r:.60}")
    return {name: value[name] for name in names}


def read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").removeprefix(BOM)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text at byte {error.start}") from None
