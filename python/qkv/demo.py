"""`qkv demo`: what qkv does, shown with nothing but the wheel, on the model of dates that comes with it."""

from __future__ import annotations

import argparse
import datetime
import importlib
import importlib.util
import shutil
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from .layers import Array
from .outputs import ModelOutput

TEXTS = (
    "Saturday, the 3rd of May 2031",
    "May 3rd, 2031",
    "due 3 may '31!",
    "5/3/2031",
    "03.05.2031",
    "ON THE TWENTY-NINTH OF FEBRUARY, 2096",
    "born Tues. 14 Sept 1999 at 9:30 am",
)
BEAMS = 4
PAGE = "qkv-demo.html"
NEXT = """\
qkv translate dates "the 1st of April, 1999"      this model on your own dates; qkv.load("dates") in Python
qkv trace dates "3 May 2031" -o trace.html        every step of its computation, as a page; qkv view: its attention
qkv embed FOLDER "a sentence" "another"           any sentence-transformers folder of a BERT, as it is
qkv generate FILE.gguf "Once upon a time"         a language model; also from a Hugging Face folder
qkv bench                                         all ops and a BERT-base, as shares of this machine's limits
python -c "import qkv; help(qkv.attention)"       the ops: NumPy arrays in, NumPy arrays out\
"""
CASES = (  # suite of qkv.bench, its case, what it is
    ("gemm", "128x768x3072", "linear, 128 x 768 by 3072"),
    ("attention", "1x12 S512 D64 causal", "causal attention, 12 heads of 512 x 64"),
    ("softmax", "128x768", "softmax, 128 x 768"),
    ("norm", "128x768", "layer norm, 128 x 768"),
    ("activation", "128x768", "gelu, 128 x 768"),
)
ROUNDS, SECONDS = 4, 0.15  # with what comes before a case, about ten seconds


def add_command(commands: Any) -> None:
    help_ = "what qkv does, on a small model that comes with it"
    parser = commands.add_parser("demo", help=help_, description=help_)
    parser.add_argument("texts", metavar="TEXT", nargs="*", default=[], help="written dates; default: some examples")
    parser.add_argument("--quick", action="store_true", help="without the benchmark, which takes ten seconds")
    parser.add_argument("--output", metavar="FILE", default=PAGE, help=f"of the page of attention (default {PAGE})")
    parser.set_defaults(run=run, many="texts")


def run(arguments: argparse.Namespace) -> None:
    texts = list(arguments.texts) or list(TEXTS)
    _machine()
    output, dates = _translate(texts)
    _attention(texts[0], dates[0], output)
    _page(texts[0], dates[0], output, arguments.output)
    if not arguments.quick:
        _benchmark()
    _say("", "What to try next", "")
    _say(*(f"  {line}" for line in NEXT.splitlines()))


def _say(*lines: str) -> None:
    """Prints lines; what the output's encoding lacks becomes a question mark."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    for line in lines:
        print(line.encode(encoding, "replace").decode(encoding), flush=True)


def _machine() -> None:
    from . import runtime
    from .bench import machine

    found = runtime.config()
    _say(f"qkv {found['qkv']} on {machine.cpu_name()}, Python {found['python']}")
    _say(f"kernels: {found['isa']} (this machine runs {', '.join(found['isas'])}); threads: {found['threads']}")


def _translate(texts: Sequence[str]) -> tuple[ModelOutput, list[str]]:
    """The dates, and a call of the model that reads the first text and writes its date, with attentions."""
    from .models import load

    model = load("dates")
    longest = max(map(len, model.tokenizer.encode_batch(list(texts), truncation=False)))
    if longest > model.max_tokens:
        raise ValueError(f"demo: a text has {longest - 1} bytes; the model takes {model.max_tokens - 1}")
    batch = model.tokenizer(list(texts))
    ids = model.generate(**batch, num_beams=BEAMS)
    dates = model.tokenizer.batch_decode(ids)
    probabilities = np.exp(model.score(list(texts), targets=dates).scores)
    _say("", f"Written dates to ISO dates: {model!r}, {BEAMS} beams", "")
    shown = [_printable(text) for text in texts]
    width = max(map(len, shown))
    _say(f"  {'':{width}}  {'':10}  probability that the model gives it")
    for text, date, probability in zip(shown, dates, probabilities, strict=True):
        remark = "" if _is_a_day(date) else "  (no day of any calendar)"
        _say(f"  {text:{width}}  {_printable(date)}  {probability:7.2%}{remark}")
    first = model.tokenizer([texts[0]])
    start = model.config.get("decoder_start_token_id")
    decoder_ids = [[start, *model.tokenizer.rows([dates[0]])[0][:-1]]]  # each position writes the token after it
    return model(**first, decoder_input_ids=decoder_ids, output_attentions=True), dates


def _is_a_day(date: str) -> bool:
    try:
        datetime.date.fromisoformat(date)
    except ValueError:
        return False
    return True


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in text)


def _attention(text: str, date: str, output: ModelOutput) -> None:
    from .shades import draw, shades_for

    weights = cross_attention(output)[: len(date)]  # (S, T), without the row that ends the date
    shades = shades_for(getattr(sys.stdout, "encoding", None))
    width = shutil.get_terminal_size().columns - 3
    lines = draw(weights, list(date), source_tokens(text), width=width, shades=shades)
    _say("", "What the decoder reads of the first as it writes each character: cross-attention, the mean of all")
    _say("heads and layers, in shades of a row's largest (< is the end of the text)", "")
    _say(*(f"  {line}" for line in lines))


def source_tokens(text: str) -> list[str]:
    """One for each byte and the end."""
    return [*(chr(byte) for byte in text.encode()), "</s>"]


def cross_attention(output: ModelOutput) -> Array:
    """(S, T) of the first row: the mean over layers and heads."""
    mean: Array = np.mean([layer[0] for layer in output.cross_attentions], axis=(0, 1))
    return mean


def _page(text: str, date: str, output: ModelOutput, path: str) -> None:
    """The explorer's page of the same."""
    if importlib.util.find_spec("qkv.view") is None:
        return
    view: Any = importlib.import_module("qkv.view")
    try:
        view.attention(output, tokens=source_tokens(text), target_tokens=["<pad>", *date], path=path, title=text)
    except OSError as error:  # no place to write to is no reason to end
        _say("", f"The page with every head is not written: {path}: {error.strerror}")
        return
    _say("", f"Every head of every layer, to be opened in a browser: {path}")
    _say("(rows there are named by the character that is read: the one before what is written)")


def _benchmark() -> None:
    from .bench import Sides, measure, suites
    from .bench.report import format_ratio, format_seconds

    _say("", "Against NumPy, in float32 (the best times of some, and their ratio)", "")
    _say(f"  {'':40}{'qkv':>10}{'NumPy':>10}{'ratio':>8}")
    with Sides(["qkv", "numpy"]) as sides:
        for name, wanted, what in CASES:
            suite = suites.SUITES[name]
            case = next(case for case in suite.cases() if case.name == wanted)
            found = measure(suite, case, sides, rounds=ROUNDS, seconds=SECONDS)
            if found.errors:
                _say(f"  {what:40} {'; '.join(found.notes())}")
                continue
            ours, theirs = (found.least(side) for side in ("qkv", "numpy"))
            times = "".join(f"{format_seconds(time):>10}" for time in (ours, theirs))
            _say(f"  {what:40}{times}{format_ratio(theirs / ours):>8}")
