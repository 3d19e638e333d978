"""Tests the dates model, or another checkpoint of train.py, on days, phrasings and words that training does not see.

    python evaluate.py [MODEL] [--texts 10000] [--seed 0] [--beams 1] [--dtype float32]

Prints the share of texts whose date comes out to the character, and each that does not. Needs qkv alone.
"""

from __future__ import annotations

import argparse
from random import Random
from typing import Any

import qkv
from written import sample

BATCH = 256


def held_out(count: int, seed: int) -> list[tuple[str, str]]:
    """So many different texts with their dates, none as in training: see written.py."""
    random, found = Random(f"test {seed}"), {}
    while len(found) < count:
        text, date = sample(random, held_out=True)
        found[text] = date
    return list(found.items())


def translate(model: Any, texts: list[str], beams: int) -> list[str]:
    """The model's dates."""
    ids = model.generate(**model.tokenizer(texts), num_beams=beams)
    dates: list[str] = model.tokenizer.batch_decode(ids)
    return dates


def wrong(model: Any, pairs: list[tuple[str, str]], beams: int) -> list[tuple[str, str, str]]:
    """Of texts with their dates those that come out otherwise, and as what."""
    found = []
    for start in range(0, len(pairs), BATCH):
        texts, dates = zip(*pairs[start : start + BATCH], strict=True)
        rows = zip(texts, dates, translate(model, list(texts), beams), strict=True)
        found += [row for row in rows if row[1] != row[2]]
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="dates", help="what qkv.load takes (default dates)")
    parser.add_argument("--texts", type=int, default=10000, help="default 10000")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--beams", type=int, default=1, help="of beam search; default 1, greedy")
    parser.add_argument("--dtype", default="float32", help="of the weights, as for qkv.load")
    given = parser.parse_args()
    pairs = held_out(given.texts, given.seed)
    failures = wrong(qkv.load(given.model, dtype=given.dtype), pairs, given.beams)
    for text, date, got in failures:
        print(f"{text!r}: {got!r}, not {date}")
    print(f"exact: {1 - len(failures) / len(pairs):.2%} of {len(pairs)} ({given.dtype}, {given.beams} beams)")
