"""What csrc/cuda/attention_plan.cuh says of who attends to what, against a count in Python, row by row: how much each
tile of rows is charged, and that the workers' pieces are all of the work, in even shares."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any, NamedTuple

import cuda_build
import numpy as np
import pytest
from cuda_build import Device

pytestmark = cuda_build.needs_compilers

ROWS, TO_BEGIN, LEAST_SHARE = 64, 2, 2  # of a tile; in tiles of keys
NONE, BOTTOM_RIGHT, TOP_LEFT = range(3)
UNBOUNDED = 2**30 - 2
MOST_PIECES = 64


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Device:
    source = Path(__file__).parent / "cuda" / "attention_plan.cu"
    return Device(cuda_build.build([source], cuda_build.build_folder(tmp_path_factory)))


class Case(NamedTuple):
    s: int
    t: int
    causal: int
    left: int
    right: int  # 0 where causal
    group: int
    tile_keys: int

    def seen(self) -> list[tuple[int, int]]:
        """Of each tile of rows: the tiles of keys, from and to, that some row of it sees."""
        position = np.arange(self.s) + (0 if self.causal == TOP_LEFT else self.t - self.s)
        first = np.maximum(position - self.left, 0)
        last = np.minimum(position + self.right, self.t - 1)  # inclusive
        some = first <= last
        query = np.arange(self.s * self.group) // self.group
        found = []
        for row0 in range(0, len(query), ROWS):
            those = query[row0 : row0 + ROWS]
            those = those[some[those]]
            if len(those):
                found.append((first[those].min() // self.tile_keys, last[those].max() // self.tile_keys + 1))
            else:
                found.append((0, 0))
        return found

    def charges(self) -> list[int]:
        return [TO_BEGIN + end - begin for begin, end in self.seen()]


def drawn_cases(rng: np.random.Generator, count: int) -> list[Case]:
    cases = []
    for _ in range(count):
        group, causal = int(rng.choice([1, 2, 3, 4, 5, 8, 40, 64, 100])), int(rng.integers(3))
        s = int(rng.integers(1, 1 + 1200 // group))
        t = int(rng.choice([0, 1, 31, 32, 33, 64, s, max(s - 70, 0), *rng.integers(0, 900, 4)]))
        left, right = (int(rng.choice([0, 5, 70, 300, UNBOUNDED])) for _ in range(2))
        cases.append(Case(s, t, causal, left, right if causal == NONE else 0, group, int(rng.choice([32, 64]))))
    return cases


def test_tiles_of_rows_are_charged_for_the_keys_that_they_see(device: Device) -> None:
    cases = drawn_cases(np.random.default_rng(0), 3000)
    most = max(len(c.charges()) for c in cases)
    lengths = device.upload(np.full((len(cases), most + 1), -2, np.int64))
    device.call("run_count_lengths", device.upload(np.array(cases, np.int32)), len(cases), lengths, most + 1)
    found = device.download(lengths, (len(cases), most + 1), np.int64)
    for case, row in zip(cases, found, strict=True):
        want = np.cumsum([0, *case.charges()])
        np.testing.assert_array_equal(row[: len(want)], want, str(case))
        assert (row[len(want) :] == -1).all()


class Batch(NamedTuple):
    queries: list[int]
    keys: list[int]
    kv_heads: int
    workers: int
    causal: int
    left: int
    right: int
    group: int
    tile_keys: int

    def entries(self) -> list[Case]:
        rest = self.causal, self.left, self.right, self.group, self.tile_keys
        return [Case(s, t, *rest) for s, t in zip(self.queries, self.keys, strict=True)]


def dealt(device: Device, batch: Batch) -> tuple[Any, list[list[list[int]]]]:
    """`starts` and each worker's pieces."""
    count, shape = len(batch.queries), (batch.workers, MOST_PIECES, 7)
    starts, pieces = (device.upload(x) for x in (np.full(count + 1, -1), np.full(shape, -2, np.int32)))
    case = (ctypes.c_int * 7)(*batch.entries()[0])
    queries = device.upload(np.cumsum([0, *batch.queries]).astype(np.int32))
    keys = device.upload(np.array(batch.keys, np.int32))
    sizes = count, sum(batch.queries), max(batch.keys), batch.kv_heads
    device.call("run_deal", case, *sizes, queries, keys, batch.workers, starts, pieces)
    of_workers = []
    for rows in device.download(pieces, shape, np.int32).tolist():
        ends = [i for i, row in enumerate(rows) if row[0] == -1]
        assert ends, "a worker with more pieces than there is room for"
        of_workers.append(rows[: ends[0]])
    return device.download(starts, count + 1, np.int64), of_workers


BATCHES = {
    "decoding": Batch([1] * 6, [4096, 100, 0, 1, 700, 64], 2, 8, BOTTOM_RIGHT, UNBOUNDED, 0, 4, 64),
    "decoding, wide heads": Batch([1] * 6, [4096, 100, 0, 1, 700, 64], 2, 5, BOTTOM_RIGHT, UNBOUNDED, 0, 4, 32),
    "a window": Batch([1, 3, 0, 1], [2000, 900, 50, 31], 3, 7, BOTTOM_RIGHT, 300, 0, 2, 32),
    "a prompt": Batch([1, 700, 1, 33], [900, 700, 5, 400], 2, 8, BOTTOM_RIGHT, UNBOUNDED, 0, 3, 32),
    "a band": Batch([200, 1, 300], [150, 80, 700], 1, 6, NONE, 90, 37, 5, 32),
    "fewer keys than queries": Batch([400, 90], [130, 40], 2, 9, TOP_LEFT, 70, 0, 4, 64),
    "more workers than work": Batch([1, 1], [70, 3], 1, 16, NONE, UNBOUNDED, UNBOUNDED, 1, 64),
}


@pytest.mark.parametrize("name", BATCHES)
def test_workers_have_even_shares_of_all_there_is(name: str, device: Device) -> None:
    batch = BATCHES[name]
    entries = batch.entries()
    stretches = [batch.kv_heads * sum(e.charges()) for e in entries]
    starts, of_workers = dealt(device, batch)
    share = max(-(-sum(stretches) // batch.workers), LEAST_SHARE)
    np.testing.assert_array_equal(starts, [*np.cumsum([0, *stretches[:-1]]), share])

    left = {
        (b, head, tile): range(*seen)
        for b, e in enumerate(entries)
        for head in range(batch.kv_heads)
        for tile, seen in enumerate(e.seen())
    }
    for pieces in of_workers:
        assert sum(end - begin for *_, begin, end, _ in pieces) <= share
        for b, head, row0, rows, begin, end, part in pieces:
            tile = (b, head, row0 // ROWS)
            assert row0 % ROWS == 0 and rows == min(ROWS, entries[b].s * batch.group - row0)
            assert left[tile].start == begin and end <= left[tile].stop, "in the order of keys, each once"
            assert (part == -1) == (range(begin, end) == range(*entries[b].seen()[tile[2]]))
            left[tile] = range(end, left[tile].stop)
    assert not any(left.values())
