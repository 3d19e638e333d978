"""What every function of csrc/cuda/intrinsics*.cuh must do, in NumPy, after the PTX ISA's tables of fragments.

A Case names a kernel of tests/cuda/conformance*.cu, the words it gets and the words that must come out. Nothing here
knows the emulator, nor the package: tests/cuda/record_golden.py runs these cases on a GPU machine that has neither.
"""

from __future__ import annotations

import ctypes
import hashlib
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

Words = np.ndarray[Any, np.dtype[np.uint32]]
Halves = np.ndarray[Any, np.dtype[np.uint16]]


def exact(got: Words, want: Words) -> bool:
    return bool(np.array_equal(got, want))


def within(tolerance: Any) -> Callable[[Words, Words], bool]:
    """Floats no further apart than this, infinities equal, NaN for NaN."""

    def check(got: Words, want: Words) -> bool:
        with np.errstate(invalid="ignore"):
            g, w = got.view(np.float32).astype(np.float64), want.view(np.float32).astype(np.float64)
            same = (g == w) | (np.isnan(g) & np.isnan(w))
            return bool(np.all(same | (np.abs(g - w) <= tolerance)))

    return check


class Case(NamedTuple):
    name: str
    hopper: bool
    given: Words
    out: Words  # before the kernel runs
    want: Words
    check: Callable[[Words, Words], bool] = exact
    tma: tuple[int, bool, tuple[int, ...]] | None = None  # dimensions, store, TmaCase

    def run(self, library: ctypes.CDLL) -> Words:
        """The words that come out. RuntimeError, with the runtime's words, if it fails."""
        given, out = np.ascontiguousarray(self.given), self.out.copy()
        buffers = [
            f(x) for a in (given, out) for f, x in ((ctypes.c_void_p, a.ctypes.data), (ctypes.c_int64, a.nbytes))
        ]
        if self.tma:
            dimensions, store, numbers = self.tma
            error = library.run_tma(dimensions, int(store), (ctypes.c_int64 * len(numbers))(*numbers), *buffers)
        else:
            error = getattr(library, f"run_{self.name}")(*buffers)
        if error:
            library.text_of_error.restype = ctypes.c_char_p
            raise RuntimeError(f"{self.name}: {library.text_of_error(error).decode()}")
        return out


def words(x: Any) -> Words:
    return np.ascontiguousarray(x).view(np.uint32).reshape(-1)


def zeros(count: int) -> Words:
    return np.zeros(count, np.uint32)


def counting(count: int, start: int = 0) -> Words:
    """As many words whose halves all differ."""
    return words((np.arange(2 * count) + start).astype(np.uint16))


# ---- 16-bit floats


def to_bf16(x: Any) -> Halves:
    u = np.asarray(x, np.float32).view(np.uint32)
    rounded = ((u.astype(np.uint64) + 0x7FFF + (u >> 16 & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(np.asarray(x, np.float32)), np.uint16(0x7FFF), rounded)


def to_f16(x: Any) -> Halves:
    x = np.asarray(x, np.float32)
    with np.errstate(over="ignore"):
        h = x.astype(np.float16).view(np.uint16)
    return np.where(np.isnan(x), np.uint16(0x7FFF), h)


def from_bf16(h: Any) -> np.ndarray[Any, np.dtype[np.float32]]:
    return (np.asarray(h, np.uint16).astype(np.uint32) << 16).view(np.float32)


def from_f16(h: Any) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.asarray(h, np.uint16).view(np.float16).astype(np.float32)


TO = {"bf16": to_bf16, "f16": to_f16}
FROM = {"bf16": from_bf16, "f16": from_f16}

SPECIAL = np.array([0, -0.0, np.inf, -np.inf, np.nan, 1, -1, 65504, 65520, 65519.996, 1e-8, 6e-8, 3.4e38, 1e-40,
                    1.00390625, 1.01171875], np.float32)  # fmt: skip


def pairs(rng: np.random.Generator) -> list[Case]:
    cases = []
    for kind in ("bf16", "f16"):
        x = (rng.standard_normal(512) * 10.0 ** rng.uniform(-8, 8, 512)).astype(np.float32)
        x[: len(SPECIAL)] = SPECIAL
        cases.append(Case(f"pack2_{kind}", False, words(x), zeros(256), words(TO[kind](x))))
        h = rng.integers(0, 1 << 16, 512).astype(np.uint16)
        h[:6] = [0, 0x8000, 1, 0x7C00, 0x7F80, 0xFFFF]
        cases.append(Case(f"unpack2_{kind}", False, words(h), zeros(512), words(FROM[kind](h)), within(0)))
    return cases + largest(rng)


def same_halves(kind: str) -> Callable[[Words, Words], bool]:
    """Halves of equal values, NaN for NaN."""
    return lambda got, want: within(0)(*(words(FROM[kind](x.view(np.uint16))) for x in (got, want)))


def largest(rng: np.random.Generator) -> list[Case]:
    """The larger of two numbers, NaN if either is (np.maximum), of floats and of pairs."""
    x = rng.standard_normal((256, 2)).astype(np.float32)
    x[:16, 0], x[1:17, 1], x[32:48] = SPECIAL, SPECIAL, SPECIAL[:, None]
    want = words(np.maximum(x[:, 0], x[:, 1]))
    cases = [Case(name, False, words(x), zeros(256), want, within(0)) for name in ("max_of_two", "max_of_words_f32")]
    for kind in ("bf16", "f16"):
        h = rng.integers(0, 1 << 16, (256, 2, 2)).astype(np.uint16)
        h[:16, 0] = TO[kind](SPECIAL)[:, None]
        h[-1] = TO[kind](np.float32([[1, 2], [3, 1]]))
        larger = np.maximum(*(FROM[kind](h[:, i]) for i in range(2)))
        cases.append(
            Case(f"max_of_words_{kind}", False, words(h), zeros(256), words(TO[kind](larger)), same_halves(kind))
        )
    return cases


# ---- memory


def memory(rng: np.random.Generator) -> list[Case]:
    given = counting(384)
    cases = [Case("load16_all", False, given, zeros(384), given)]
    for size in (16, 8, 4):
        old, new = counting(8 * size), counting(8 * size, 5000)
        want = old.view(np.uint8).reshape(32, size).copy()
        for i, row in enumerate(new.view(np.uint8).reshape(32, size)):
            n = i % (size + 1)
            want[i, :n], want[i, n:] = row[:n], 0
        cases.append(Case(f"cp_async{size}_bytes", False, np.concatenate([old, new]), zeros(8 * size), words(want)))
    given = counting(384)
    cases.append(Case("cp_async_groups", False, given, zeros(384), words(given.reshape(3, 32, 4)[:, ::-1])))
    return cases


def fragment_rows(lane: int, e: int, transposed: bool) -> tuple[int, int]:
    """Row and column, in an 8 x 8 matrix, of half e of the register that ldmatrix gives a lane."""
    row, column = lane // 4, 2 * (lane % 4) + e
    return (column, row) if transposed else (row, column)


def matrices(rng: np.random.Generator) -> list[Case]:
    cases = []
    for count in (1, 2, 4):
        for transposed in (False, True):
            image, rows = counting(1024), rng.permutation(256)[:32].astype(np.uint32)
            halves, want = image.view(np.uint16), np.zeros((32, count, 2), np.uint16)
            for lane, m, e in np.ndindex(32, count, 2):
                row, column = fragment_rows(lane, e, transposed)
                want[lane, m, e] = halves[8 * rows[8 * m + row] + column]
            name = f"ldm_x{count}" + "_trans" * transposed
            cases.append(Case(name, False, np.concatenate([image, rows]), zeros(32 * count), words(want)))
    for count, transposed in ((4, False), (4, True), (2, False)):
        registers, rows, image = counting(128), rng.permutation(256)[:32].astype(np.uint32), counting(1024, 10000)
        want, values = image.view(np.uint16).copy(), registers.view(np.uint16).reshape(32, 4, 2)
        for lane, m, e in np.ndindex(32, count, 2):
            row, column = fragment_rows(lane, e, transposed)
            want[8 * rows[8 * m + row] + column] = values[lane, m, e]
        name = f"stm_x{count}" + "_trans" * transposed
        cases.append(Case(name, True, np.concatenate([registers, rows, image]), zeros(1024), words(want)))
    return cases


# ---- mma


def small(rng: np.random.Generator, *shape: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Integers whose products and sums are exact, in whatever order they are added."""
    return rng.integers(-1, 2, shape).astype(np.float32)


def mma_a(lane: int, register: int, half: int) -> tuple[int, int]:
    return lane // 4 + 8 * (register % 2), 2 * (lane % 4) + half + 8 * (register // 2)


def mma_b(lane: int, register: int, half: int) -> tuple[int, int]:
    return 2 * (lane % 4) + half + 8 * register, lane // 4


def mma_d(lane: int, register: int) -> tuple[int, int]:
    return lane // 4 + 8 * (register // 2), 2 * (lane % 4) + register % 2


def mma(rng: np.random.Generator) -> list[Case]:
    cases = []
    for kind in ("bf16", "f16"):
        for name in (f"mma_{kind}", f"mma_{kind}_exact"):
            draw = small if name.endswith("exact") else lambda r, *shape: r.standard_normal(shape).astype(np.float32)
            a, b, c = TO[kind](draw(rng, 16, 16)), TO[kind](draw(rng, 16, 8)), draw(rng, 16, 8)
            given = np.zeros((32, 10), np.uint32)
            halves = given.view(np.uint16).reshape(32, 20)
            for lane, r, h in np.ndindex(32, 4, 2):
                halves[lane, 2 * r + h] = a[mma_a(lane, r, h)]
            for lane, r, h in np.ndindex(32, 2, 2):
                halves[lane, 8 + 2 * r + h] = b[mma_b(lane, r, h)]
            x, y = (FROM[kind](v).astype(np.float64) for v in (a, b))
            d, bound = x @ y + c, np.abs(x) @ np.abs(y) + np.abs(c)
            want, tolerance = np.zeros((32, 4), np.float32), np.zeros((32, 4))
            for lane, r in np.ndindex(32, 4):
                given[lane, 6 + r] = c[mma_d(lane, r)].view(np.uint32)
                want[lane, r], tolerance[lane, r] = d[mma_d(lane, r)], bound[mma_d(lane, r)] * 2**-20
            check = exact if name.endswith("exact") else within(tolerance.reshape(-1))
            cases.append(Case(name, False, words(given), zeros(128), words(want), check))
    return cases


# ---- arithmetic


def arithmetic(rng: np.random.Generator) -> list[Case]:
    with np.errstate(all="ignore"):
        x = rng.uniform(-140, 140, 1024).astype(np.float32)
        x[:14] = [0, -0.0, np.inf, -np.inf, np.nan, 1, -1, 127, 128, -126, -127, -150, 1e-40, -1e-40]
        y = np.exp2(x.astype(np.float64))
        y = np.where(y < 2.0**-126, 0, y).astype(np.float32)
        y[np.isclose(x, -126, atol=1e-4) & (x != -126)] = 0
        tolerance = np.where(np.isfinite(y), y, 0) * 2.0**-22
        exp2 = Case("exp2_approx_all", False, words(x), zeros(1024), words(y), within(tolerance))
        x = np.exp2(rng.uniform(-120, 120, 1024)).astype(np.float32)
        x[512:] = rng.uniform(0.5, 2, 512)
        x[:8] = [0, -0.0, np.inf, -1, np.nan, 1, 1e-40, 2]
        y = np.log2(np.where(np.abs(x) < 2.0**-126, 0, x).astype(np.float64)).astype(np.float32)
        tolerance = np.maximum(np.where(np.isfinite(y), np.abs(y), 0), 1) * 2.0**-22
        log2 = Case("log2_approx_all", False, words(x), zeros(1024), words(y), within(tolerance))
    a = rng.integers(0, 1 << 32, (64, 3), dtype=np.uint64).astype(np.uint32)
    want = zeros(256).reshape(64, 4)
    for i, table in enumerate((0xEA, 0x6A, 0x96, 0x1B)):
        for bit in range(32):
            index = (a[:, 0] >> bit & 1) * 4 + (a[:, 1] >> bit & 1) * 2 + (a[:, 2] >> bit & 1)
            want[:, i] |= (np.uint32(table) >> index & 1) << np.uint32(bit)
    return [exp2, log2, Case("lop3_tables", False, words(a), zeros(256), words(want))]


def one_in_each_warp(got: Words, want: Words) -> bool:
    return got.max() == 1 and bool(np.all(got.reshape(2, 32).sum(axis=1) == 1))


def warps(rng: np.random.Generator) -> list[Case]:
    x = (rng.standard_normal(64) * 10.0 ** rng.uniform(-3, 3, 64)).astype(np.float32)
    lanes = np.arange(64)
    rows = []
    for width, combine in ((32, np.add), (4, np.add), (32, np.maximum), (8, np.maximum)):
        y, step = x, width // 2
        while step:
            y = combine(y, y[lanes ^ step])
            step //= 2
        rows.append(y)
    so_far = rng.integers(0, 1 << 32, 64, np.uint32)
    narrow = so_far.reshape(2, 32).cumsum(axis=1, dtype=np.uint32).reshape(-1)
    wide = words((so_far.astype(np.uint64) << 8).reshape(2, 32).cumsum(axis=1, dtype=np.uint64))
    given = counting(32)
    barriers = np.concatenate([given[::-1], given[::-1].reshape(16, 2)[:, ::-1].reshape(-1) + 1])
    return [
        Case("warp_reductions", False, words(x), zeros(256), words(np.array(rows, np.float32))),
        Case("warp_sums_so_far", False, so_far, zeros(192), words(np.concatenate([narrow, wide]))),
        Case("named_barriers", False, given, zeros(64), barriers.astype(np.uint32)),
        Case("grid_dependency", False, given, zeros(32), given + 1),
        Case("grid_dependency", True, given, zeros(32), given + 1),
        Case("elect", True, zeros(1), zeros(64), zeros(64), one_in_each_warp),
        Case("registers", True, counting(256), zeros(256), counting(256) + np.repeat([1, 2], 128).astype(np.uint32)),
    ]


# ---- mbarriers and bulk copies


def barriers(rng: np.random.Generator) -> list[Case]:
    given = counting(256)
    loaded = np.full(256, 7, np.uint32)
    loaded[12:136] = given[8:132]
    stored = counting(256, 20000)
    after = stored.copy()
    after[4:84], after[100:116] = given[8:88], given[128:144]
    return [
        Case("mbarrier_phases", True, given, zeros(9), np.array([1, 0, 0, 1, 0, 0, 1, 0, given[0]], np.uint32)),
        Case("mbarrier_ring", True, given, zeros(256), words(given.reshape(8, 32)[:, ::-1])),
        Case("bulk_load_bytes", True, given, zeros(256), loaded),
        Case("bulk_store_bytes", True, given, stored, after),
    ]


# ---- TMA


def swizzled(byte: Any, swizzle: int) -> Any:
    """Where a byte of a box that starts at 0 lies."""
    return byte ^ ((byte >> 7 & (swizzle // 16 - 1)) << 4) if swizzle else byte


class Box(NamedTuple):
    element: int
    swizzle: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    box: tuple[int, ...]
    at: tuple[int, ...]


# The first coordinate of a box is a multiple of 16 bytes, and stores have no negative ones: others are illegal
# instructions on an H200.
BOXES = [
    Box(4, 0, (100,), (1,), (64,), (-4,)),
    Box(2, 0, (100,), (1,), (64,), (48,)),
    Box(2, 128, (100, 40), (1, 104), (64, 24), (0, 0)),
    Box(2, 128, (100, 40), (1, 104), (64, 24), (72, 30)),
    Box(2, 128, (100, 40), (1, 104), (64, 24), (-8, -5)),
    Box(2, 64, (100, 40), (1, 104), (32, 40), (8, 3)),
    Box(2, 32, (100, 40), (1, 104), (16, 24), (88, 17)),
    Box(2, 0, (100, 40), (1, 104), (40, 12), (8, 35)),
    Box(4, 128, (60, 20), (1, 60), (32, 16), (40, -2)),
    Box(4, 0, (60, 20), (1, 60), (64, 5), (200, 0)),
    Box(2, 128, (72, 9, 5), (1, 360, 72), (64, 4, 3), (8, 7, -1)),
    Box(4, 64, (24, 3, 2, 5), (1, 24, 72, 144), (16, 2, 2, 3), (12, 1, 1, 3)),
    Box(2, 32, (16, 3, 2, 4, 3), (1, 16, 48, 96, 384), (16, 2, 2, 3, 2), (0, 2, 1, -1, 1)),
]


def tma(rng: np.random.Generator) -> list[Case]:
    cases = []
    for number, b in enumerate(BOXES):
        kind = np.uint16 if b.element == 2 else np.uint32
        extent = 1 + sum((n - 1) * s for n, s in zip(b.size, b.stride, strict=True))
        tensor = np.arange(-(-extent * b.element // 16) * 16 // b.element).astype(kind)
        row = b.box[0] * b.element
        count = int(np.prod(b.box))
        image = np.zeros(count, kind)
        smem = (np.arange(count) + 30000).astype(kind)
        stored = tensor.copy()
        for index in np.ndindex(*b.box[::-1]):
            x = [a + i for a, i in zip(b.at, index[::-1], strict=True)]
            byte = int(np.ravel_multi_index(index, b.box[::-1])) // b.box[0] * row + index[-1] * b.element
            place = swizzled(byte, b.swizzle) // b.element
            offset = sum(i * s for i, s in zip(x, b.stride, strict=True))
            if all(0 <= i < n for i, n in zip(x, b.size, strict=True)):
                image[place] = tensor[offset]
            lanes = 16 // b.element  # a store ends a row of the tensor at the next multiple of 16 bytes
            if all(0 <= i < n for i, n in zip(x, (-(-b.size[0] // lanes) * lanes, *b.size[1:]), strict=True)):
                stored[offset] = smem[place]
        five = [tuple(v) + (0,) * (5 - len(v)) for v in (b.size, b.stride, b.box, b.at)]
        numbers = (b.element, b.swizzle, *five[0], *five[1], *five[2], *five[3])
        dimensions = len(b.size)
        load, store = (dimensions, False, numbers), (dimensions, True, numbers)
        blank = zeros(len(words(image)))
        cases.append(Case(f"tma_load_{number}", True, words(tensor), blank, words(image), exact, load))
        if min(b.at) >= 0:
            cases.append(Case(f"tma_store_{number}", True, words(smem), words(tensor), words(stored), exact, store))
    tensor = counting(1024)
    place = np.array([swizzled(i, 128) for i in range(0, 4096, 4)]) // 4
    image = zeros(1024)
    image[place] = tensor
    want = np.concatenate([image, image, np.array([0, 1], np.uint32)])
    cases.append(Case("cluster", True, tensor, zeros(2050), want))
    given = counting(64)
    cases.append(Case("cluster_words", True, given, zeros(64), given[::-1]))
    return cases


# ---- wgmma

WGMMA_SIZES = [8, 16, 24, 32, 40, 48, *range(64, 257, 16)]
# name -> type, n, m neighbours, n neighbours, swizzle, a in registers, accumulate
WGMMA: dict[str, tuple[str, int, bool, bool, int, bool, bool]] = {
    **{f"wgmma_bf16_n{n}": ("bf16", n, False, False, 128, False, True) for n in WGMMA_SIZES},
    **{
        f"wgmma_f16_{'km'[ta]}{'km'[tb]}_{s}": ("f16", 96, bool(ta), bool(tb), s, False, True)
        for s in (128, 64, 32)
        for ta in (0, 1)
        for tb in (0, 1)
    },
    "wgmma_bf16_km_n256": ("bf16", 256, False, True, 128, False, True),
    "wgmma_bf16_start": ("bf16", 16, False, False, 128, False, False),
    "wgmma_bf16_rk_n64": ("bf16", 64, False, False, 128, True, True),
    "wgmma_bf16_rm_n128": ("bf16", 128, False, True, 128, True, True),
    "wgmma_bf16_rm_n256": ("bf16", 256, False, True, 128, True, True),
    "wgmma_f16_rm_n80": ("f16", 80, False, True, 128, True, False),
    "wgmma_bf16_float": ("bf16", 16, False, False, 128, False, True),
    "wgmma_f16_float": ("f16", 16, False, False, 128, False, True),
    # Behind the others, whose golden words go with the numbers that they draw.
    "wgmma_bf16_rm_n64": ("bf16", 64, False, True, 128, True, True),
    "wgmma_f16_rm_n96": ("f16", 96, False, True, 128, True, True),
}


def operand(image: Halves, start: int, mn: int, k: int, neighbours: bool, swizzle: int) -> Halves:
    """The matrix (mn, k) that lies in shared memory from byte `start`, as TMA puts boxes there."""
    i, j = np.meshgrid(np.arange(mn), np.arange(k), indexing="ij")
    width = swizzle // 2
    byte = i // width * 32 * swizzle + j * swizzle + i % width * 2 if neighbours else i * swizzle + j * 2
    chosen: Halves = image[(start + swizzled(byte, swizzle)) // 2]
    return chosen


def wgmma(rng: np.random.Generator) -> list[Case]:
    cases = []
    for name, (kind, n, mn_a, mn_b, swizzle, registers, accumulate) in WGMMA.items():
        floats = name.endswith("float")
        steps = (1 if swizzle == 32 else 2) if mn_a or mn_b else swizzle // 32
        k = 16 * steps
        values = rng.standard_normal(20480).astype(np.float32) if floats else small(rng, 20480)
        image = TO[kind](values)
        a = operand(image, 0, 64, k, mn_a, swizzle)
        b = operand(image, 8192, n, k, mn_b, swizzle)
        given = words(image)
        if registers:
            a = TO[kind](small(rng, 64, k))
            fragments = np.zeros((steps, 128, 4, 2), np.uint16)
            for step, thread, r, h in np.ndindex(steps, 128, 4, 2):
                row, column = mma_a(thread % 32, r, h)
                fragments[step, thread, r, h] = a[16 * (thread // 32) + row, 16 * step + column]
            given = np.concatenate([given, words(fragments)])
        x, y = FROM[kind](a).astype(np.float64), FROM[kind](b).astype(np.float64)
        product, bound = x @ y.T, np.abs(x) @ np.abs(y).T
        thread, i = np.meshgrid(np.arange(128), np.arange(n // 2), indexing="ij")
        row, column = 16 * (thread // 32) + thread % 32 // 4 + 8 * (i // 2 % 2), 8 * (i // 4) + 2 * (thread % 4) + i % 2
        want = product[row, column] + ((thread + 3 * i) % 7 if accumulate else 0)
        check = within(((bound[row, column] + 6) * 2.0**-20).reshape(-1)) if floats else exact
        cases.append(Case(name, True, given, zeros(64 * n), words(want.astype(np.float32)), check))
    return cases


def all_cases() -> list[Case]:
    cases: list[Case] = []
    for make in (pairs, memory, matrices, mma, arithmetic, warps, barriers, tma, wgmma):
        cases += make(np.random.default_rng(1))
    return cases


def case_id(case: Case) -> str:
    return f"{case.name}-sm{90 if case.hopper else 80}"


# ---- on a GPU

ROOT = Path(__file__).resolve().parents[1]


def source(hopper: bool) -> Path:
    return ROOT / "tests" / "cuda" / ("conformance_sm90.cu" if hopper else "conformance.cu")


class Gpu(NamedTuple):
    name: str
    major: int
    minor: int
    driver: str


def gpu() -> Gpu | None:
    """The first GPU, or None where there is none or no driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    count, device, version = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)) or count.value == 0:
        return None
    driver.cuDeviceGet(ctypes.byref(device), 0)
    driver.cuDriverGetVersion(ctypes.byref(version))
    name = ctypes.create_string_buffer(256)
    driver.cuDeviceGetName(name, 256, device)
    capability = []
    for attribute in (75, 76):  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR
        value = ctypes.c_int()
        driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        capability.append(value.value)
    number = f"{version.value // 1000}.{version.value % 1000 // 10}"  # of the CUDA version that the driver brings
    return Gpu(name.value.decode(), capability[0], capability[1], number)


def nvcc() -> str | None:
    return shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")


class GpuBuild(NamedTuple):
    process: subprocess.Popen[str]
    library: Path


def start_gpu_build(hopper: bool, folder: Path) -> GpuBuild:
    """nvcc at work on Hopper's kernels, or on the portable ones: machine code of sm_80, and PTX for later GPUs."""
    library = folder / f"{source(hopper).stem}.so"
    arch = ["arch=compute_90a,code=sm_90a"] if hopper else ["arch=compute_80,code=[sm_80,compute_80]"]
    flags = ["-std=c++17", "-O3", "--expt-relaxed-constexpr", "-I", str(ROOT / "csrc"), "-gencode", *arch]
    sources = [str(source(hopper)), str(ROOT / "csrc" / "cuda" / "runtime.cpp")]  # which has launch.cuh's errors
    command = [nvcc() or "nvcc", *flags, "-shared", "-Xcompiler", "-fPIC", "-o", str(library), *sources]
    return GpuBuild(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True), library)


def finish_gpu_build(build: GpuBuild) -> ctypes.CDLL:
    output, _ = build.process.communicate()
    if build.process.returncode:
        raise RuntimeError(output)
    return ctypes.CDLL(str(build.library))


def built_libraries(folder: Path) -> dict[bool, ctypes.CDLL]:
    """What gpu_libraries has built there before."""
    paths = {hopper: folder / f"{source(hopper).stem}.so" for hopper in (False, True)}
    return {hopper: ctypes.CDLL(str(path)) for hopper, path in paths.items() if path.exists()}


def gpu_libraries(on: Gpu, folder: Path) -> dict[bool, ctypes.CDLL]:
    """The portable kernels, and Hopper's where they run."""
    builds = {hopper: start_gpu_build(hopper, folder) for hopper in (False, True) if on.major == 9 or not hopper}
    return {hopper: finish_gpu_build(build) for hopper, build in builds.items()}


# ---- what a GPU gave

GOLDEN = ROOT / "tests" / "golden" / "cuda_intrinsics.npz"


def digest(out: Words) -> Any:
    return np.frombuffer(hashlib.sha256(out.tobytes()).digest(), np.uint8)


def write_golden(path: Path, recorded: dict[str, Words], machine: str) -> None:
    """The words of each case; of those that are exact by nature and have more than 4096, a digest."""
    kept = {case_id(case): case.check is not exact or len(case.out) <= 4096 for case in all_cases()}
    arrays: dict[str, Any] = {name: out if kept[name] else digest(out) for name, out in recorded.items()}
    np.savez_compressed(path, machine=np.array(machine), **arrays)


def read_golden(path: Path = GOLDEN) -> tuple[str, dict[str, Any]]:
    """The machine's name, and the words (uint32) or their digest (uint8) of each case there."""
    with np.load(path) as file:
        return str(file["machine"]), {name: file[name] for name in file.files if name != "machine"}


def matches_golden(case: Case, got: Words, golden: Any) -> bool:
    return case.check(got, golden) if golden.dtype == np.uint32 else bool(np.array_equal(digest(got), golden))
