"""paged_write: what stands in the caches afterwards, bit by bit, and that nothing else was touched."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import qkv
from checks import BFLOAT16, DTYPES, FLOAT16, FLOAT32, each_isa, normal, same_bits, strided
from qkv import reference
from qkv.ops import copy_blocks

INT8 = np.dtype(np.int8)
CACHES = {**DTYPES, "int8": INT8}
SHAPES = [(1, 1, 1), (2, 7, 5), (3, 64, 64), (8, 33, 128), (1, 80, 300), (2, 0, 16)]  # heads, D, Dv


def empty_caches(dtype: Any, heads: int, D: int, Dv: int, blocks: int = 5, size: int = 16) -> dict[str, Any]:
    """Caches full of a value that no test writes."""
    made: dict[str, Any] = {
        f"{name}_cache": np.full((blocks, size, heads, width), 99, dtype) for name, width in (("k", D), ("v", Dv))
    }
    if dtype == INT8:
        made |= {f"{name}_scale": np.full((blocks, size, heads), 99, np.float32) for name in ("k", "v")}
    return made


def quantized(x: Any) -> tuple[Any, Any]:
    """The definition, one token and head at a time: (codes, scales)."""
    codes, scales = np.zeros(x.shape, np.int8), np.zeros(x.shape[:-1], np.float32)
    for at in np.ndindex(x.shape[:-1]):
        row = x[at].astype(np.float32)
        if not np.isfinite(row).all():
            scales[at] = np.nan
            continue
        scales[at] = np.float32(max((abs(float(value)) for value in row), default=0.0)) / np.float32(127)
        if scales[at] > 0:
            for i, value in enumerate(row):
                codes[at][i] = max(-127, min(127, round(float(np.float32(value / scales[at])))))  # round: half to even
    return codes, scales


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("cache", CACHES)
def test_every_token_is_at_its_slot(
    cache: str, shape: tuple[int, int, int], dtype: np.dtype[Any], rng: np.random.Generator
) -> None:
    heads, D, Dv = shape
    k, v = normal(rng, (30, heads, D), dtype), normal(rng, (30, heads, Dv), dtype)
    slots = rng.permutation(80)[:30]
    slots[rng.choice(30, 5, replace=False)] = [-1, -1, -7, -(2**62), -1]
    for _ in each_isa():
        caches = empty_caches(CACHES[cache], heads, D, Dv)
        expected = {name: c.copy() for name, c in caches.items()}
        for t, slot in enumerate(slots):
            if slot < 0:
                continue
            for name, x in (("k", k), ("v", v)):
                if cache == "int8":
                    codes, scales = quantized(x[t])
                    expected[f"{name}_cache"][slot // 16, slot % 16] = codes
                    expected[f"{name}_scale"][slot // 16, slot % 16] = scales
                else:
                    expected[f"{name}_cache"][slot // 16, slot % 16] = x[t].astype(FLOAT32).astype(CACHES[cache])
        assert qkv.paged_write(k, v, slots=slots, **caches) is None
        for name, c in caches.items():
            assert same_bits(c, expected[name]), name


@pytest.mark.parametrize("cache", CACHES)
def test_the_reference_says_the_same(cache: str, dtype: np.dtype[Any], rng: np.random.Generator) -> None:
    k, v = normal(rng, (40, 3, 33), dtype, 5), normal(rng, (40, 3, 20), dtype, 5)
    slots = rng.integers(-10, 80, 40)
    theirs = empty_caches(CACHES[cache], 3, 33, 20)
    reference.paged_write(k, v, slots=slots, **theirs)
    for _ in each_isa():
        ours = empty_caches(CACHES[cache], 3, 33, 20)
        qkv.paged_write(k, v, slots=slots, **ours)
        assert all(same_bits(ours[name], theirs[name]) for name in ours)


def test_int8_at_the_edges() -> None:
    tiny = np.float32(1e-45)  # the smallest denormal
    rows = [
        [0.0, -0.0, 0.0],
        [1.0, -1.0, 0.5],
        [127.0, 0.5, 1.5],  # to even: 0, 2
        [-127.0, 2.5, -2.5],
        [3e38, -3e38, 1e38],
        [100 * tiny, -100 * tiny, tiny],  # the scale is the smallest denormal
        [60 * tiny, 0.0, 0.0],  # max / 127 rounds to 0
        [180 * tiny, -180 * tiny, 0.0],  # x / scale is 180: at most 127
        [np.nan, 1.0, 2.0],
        [np.inf, 1.0, 2.0],
        [-np.inf, np.nan, 2.0],
    ]
    x = np.array(rows, np.float32)[:, None]
    codes, scales = quantized(x)
    for _ in each_isa():
        caches = empty_caches(INT8, 1, 3, 3)
        qkv.paged_write(x, -x, slots=np.arange(len(x)), **caches)
        assert same_bits(caches["k_cache"][0, : len(x)], codes)
        assert same_bits(caches["v_cache"][0, : len(x)], -codes)
        assert same_bits(caches["k_scale"][0, : len(x)], scales) and same_bits(caches["v_scale"], caches["k_scale"])
    assert codes.tolist()[2] == [[127, 0, 2]] and codes.tolist()[7] == [[127, -127, 0]]
    assert np.isnan(scales[8:]).all() and not codes[8:].any()


def test_int8_is_within_half_a_step(rng: np.random.Generator) -> None:
    k = normal(rng, (50, 4, 97), FLOAT32, 3)
    for _ in each_isa():
        caches = empty_caches(INT8, 4, 97, 97)
        qkv.paged_write(k, k, slots=np.arange(50), **caches)
        scale = caches["k_scale"].reshape(-1, 4)[:50, :, None]
        back = caches["k_cache"].reshape(-1, 4, 97)[:50] * scale
        assert (np.abs(back - k) <= scale * 0.5001).all()


def test_of_equal_slots_the_last_one_stays(rng: np.random.Generator) -> None:
    k = normal(rng, (500, 2, 16))
    slots = rng.integers(0, 7, 500)
    last = {slot: t for t, slot in enumerate(slots.tolist())}
    for _ in each_isa():
        for threads in (1, 2, 7):
            qkv.set_num_threads(threads)
            caches = empty_caches(FLOAT32, 2, 16, 16)
            qkv.paged_write(k, 2 * k, slots=slots, **caches)
            for slot, t in last.items():
                assert same_bits(caches["k_cache"][0, slot], k[t]) and same_bits(caches["v_cache"][0, slot], 2 * k[t])


def test_nothing_to_store(rng: np.random.Generator) -> None:
    for tokens, heads, width in [(0, 2, 8), (3, 0, 8), (3, 2, 0)]:
        caches = empty_caches(FLOAT32, heads, width, width)
        x = normal(rng, (tokens, heads, width))
        qkv.paged_write(x, x, slots=np.arange(tokens), **caches)
        assert all((c == 99).all() for c in caches.values())
    caches = empty_caches(FLOAT32, 2, 8, 8, blocks=0)
    qkv.paged_write(np.ones((2, 2, 8), np.float32), np.ones((2, 2, 8), np.float32), slots=[-1, -1], **caches)


@pytest.mark.parametrize("cache", CACHES)
def test_strides(cache: str, dtype: np.dtype[Any], rng: np.random.Generator) -> None:
    """Rows of a fused projection, layers of one big cache, interleaved caches: written where they lie."""
    k, v = normal(rng, (9, 2, 16), dtype), normal(rng, (9, 2, 16), dtype)
    slots = rng.permutation(80)[:9]
    for _ in each_isa():
        plain = empty_caches(CACHES[cache], 2, 16, 16)
        qkv.paged_write(k, v, slots=slots, **plain)
        for name in strided(k):
            given = strided(slots).get(name, slots)
            caches = {n: strided(c)[name] for n, c in empty_caches(CACHES[cache], 2, 16, 16).items()}
            caches = {n: c if c.flags.writeable else np.copy(c) for n, c in caches.items()}
            qkv.paged_write(strided(k)[name], strided(v)[name], slots=given, **caches)
            assert all(same_bits(np.ascontiguousarray(caches[n]), plain[n]) for n in plain), name
        fused = np.concatenate([k, v], 1)
        both = np.full((5, 2, 16, 2, 16), 99, CACHES[cache])
        scales = {n: c for n, c in empty_caches(CACHES[cache], 2, 16, 16).items() if "scale" in n}
        qkv.paged_write(fused[:, :2], fused[:, 2:], both[:, 0], both[:, 1], slots, **scales)
        assert same_bits(both[:, 0], plain["k_cache"]) and same_bits(both[:, 1], plain["v_cache"])


def test_tokens_that_lie_in_the_cache(rng: np.random.Generator) -> None:
    """Moving tokens inside a cache: all are read before any is written."""
    for _ in each_isa():
        caches = empty_caches(FLOAT32, 2, 16, 16)
        caches["k_cache"][...], caches["v_cache"][...] = normal(rng, (2, 5, 16, 2, 16))
        before = {name: c.copy() for name, c in caches.items()}
        rows = {name: c.reshape(80, 2, 16)[:79] for name, c in caches.items()}
        qkv.paged_write(rows["k_cache"], rows["v_cache"], slots=np.arange(1, 80), **caches)
        for name, c in caches.items():
            assert same_bits(c.reshape(80, 2, 16)[1:], before[name].reshape(80, 2, 16)[:79])


def test_float64_is_served(rng: np.random.Generator) -> None:
    x = rng.standard_normal((3, 2, 8))
    for dtype in (*CACHES.values(), np.dtype(np.float64)):
        caches = empty_caches(dtype, 2, 8, 8)
        qkv.paged_write(x, x, slots=[5, 1, -1], **caches)
        got = caches["k_cache"][0, 5].astype(np.float64)
        if dtype == INT8:
            got *= caches["k_scale"][0, 5][:, None]
        loose = {INT8: 0.02, BFLOAT16: 0.02, FLOAT16: 2e-3, FLOAT32: 1e-7}.get(dtype, 0)
        np.testing.assert_allclose(got, x[0], rtol=0, atol=loose * 2)


ROWS = np.ones((3, 2, 8), np.float32)


def good(dtype: Any = FLOAT32) -> dict[str, Any]:
    return {"k": ROWS, "v": ROWS, **empty_caches(dtype, 2, 8, 8), "slots": np.array([5, 1, -1])}


def read_only(x: Any) -> Any:
    x.flags.writeable = False
    return x


@pytest.mark.parametrize(
    "dtype, change, message",
    [
        (FLOAT32, {"slots": [5, 1, 80]}, "slots must be below 80, got 80"),
        (FLOAT32, {"slots": [5, 1, 2**62]}, "slots must be below 80"),
        (FLOAT32, {"slots": np.array([5, 1, 2**63], np.uint64)}, "slots"),
        (FLOAT32, {"slots": [5, 1]}, r"slots must be \(3,\), got \(2,\)"),
        (FLOAT32, {"slots": [[5, 1, 2]]}, r"slots must be \(3,\)"),
        (FLOAT32, {"k": ROWS[0]}, "k must be"),
        (FLOAT32, {"v": ROWS[:2]}, "v has 2 tokens of 2 heads, k has 3 of 2"),
        (FLOAT32, {"v": ROWS[:, :1]}, "v has 3 tokens of 1 heads, k has 3 of 2"),
        (FLOAT32, {"k": ROWS[..., :7]}, r"k_cache must be \(5, 16, 2, 7\), got \(5, 16, 2, 8\)"),
        (FLOAT32, {"v_cache": np.ones((4, 16, 2, 8), np.float32)}, r"v_cache must be \(5, 16, 2, 8\)"),
        (FLOAT32, {"k_cache": np.ones((5, 16, 16), np.float32)}, "k_cache must be"),
        (FLOAT32, {"k_cache": read_only(np.ones((5, 16, 2, 8), np.float32))}, "k_cache is read-only"),
        (FLOAT32, {"v_cache": np.broadcast_to(np.float32(1), (5, 16, 2, 8))}, "v_cache is read-only"),
        (FLOAT32, {"k_scale": np.ones((5, 16, 2), np.float32)}, "k_scale is for int8 caches"),
        (INT8, {"k_scale": None}, "an int8 cache needs k_scale"),
        (INT8, {"v_scale": np.ones((5, 16), np.float32)}, r"v_scale must be \(5, 16, 2\)"),
        (INT8, {"v_scale": read_only(np.ones((5, 16, 2), np.float32))}, "v_scale is read-only"),
    ],
    ids=lambda value: value if isinstance(value, str) else ",".join(value) if isinstance(value, dict) else None,
)
def test_refuses_values(dtype: Any, change: dict[str, Any], message: str) -> None:
    given = {**good(dtype), **change}
    with pytest.raises(ValueError, match=rf"paged_write: .*{message}"):
        qkv.paged_write(**given)
    for name in ("k_cache", "v_cache"):
        assert name in change or (given[name] == 99).all(), "refused, but written"


@pytest.mark.parametrize(
    "dtype, change, message",
    [
        (FLOAT32, {"slots": [5.0, 1.0, 2.0]}, "slots"),
        (FLOAT32, {"slots": None}, "slots"),
        (FLOAT32, {"k": ROWS.astype(FLOAT16)}, "v is float32 but k is float16"),
        (FLOAT32, {"k": ROWS.astype(np.int8), "v": ROWS.astype(np.int8)}, "k must be float32"),
        (FLOAT32, {"v_cache": np.ones((5, 16, 2, 8), FLOAT16)}, "v_cache is float16 but k_cache is float32"),
        (FLOAT32, {"k_cache": np.ones((5, 16, 2, 8), np.uint8)}, "k_cache must be"),
        (FLOAT32, {"k_cache": np.ones((5, 16, 2, 8), np.float32).tolist()}, "k_cache must be an array, got list"),
        (FLOAT32, {"v_cache": None}, "v_cache must be an array.*, got NoneType"),
        (INT8, {"k_scale": np.ones((5, 16, 2), FLOAT16)}, "k_scale must be float32"),
        (INT8, {"v_scale": np.ones((5, 16, 2))}, "v_scale must be float32"),
    ],
    ids=lambda value: value if isinstance(value, str) else ",".join(value) if isinstance(value, dict) else None,
)
def test_refuses_types(dtype: Any, change: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=rf"paged_write: .*{message}"):
        qkv.paged_write(**{**good(dtype), **change})


def test_a_misaligned_cache_is_refused() -> None:
    memory = np.zeros(5 * 16 * 2 * 8 * 4 + 1, np.uint8)[1:]
    cache = memory.view(np.float32).reshape(5, 16, 2, 8)
    with pytest.raises(ValueError, match="paged_write: k_cache is misaligned"):
        qkv.paged_write(**{**good(), "k_cache": cache})


class Tensor:
    """A library's tensor: DLPack on the memory of a NumPy array."""

    def __init__(self, array: Any) -> None:
        self.array = array

    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__()

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)


def test_foreign_tensors_are_written_in_place(rng: np.random.Generator) -> None:
    k = normal(rng, (3, 2, 8))
    for dtype in (FLOAT32, FLOAT16, INT8):
        plain, caches = empty_caches(dtype, 2, 8, 8), empty_caches(dtype, 2, 8, 8)
        qkv.paged_write(k, k, slots=[5, 1, -1], **plain)
        qkv.paged_write(Tensor(k), k, slots=[5, 1, -1], **{n: Tensor(c) for n, c in caches.items()})
        assert all(same_bits(caches[n], plain[n]) for n in plain)


def test_torch_tensors_are_written_in_place(rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch", reason="needs torch: CI runs it beside the wheel")
    k = normal(rng, (3, 2, 8))
    for name, dtype in CACHES.items():
        plain = empty_caches(dtype, 2, 8, 8)
        qkv.paged_write(k, k, slots=[5, 1, -1], **plain)
        kind = {"k_scale": torch.float32, "v_scale": torch.float32}
        caches = {n: torch.full(c.shape, 99, dtype=kind.get(n, getattr(torch, name))) for n, c in plain.items()}
        slots = torch.tensor([5, 1, -1])
        assert qkv.paged_write(torch.from_numpy(k), torch.from_numpy(k), slots=slots, **caches) is None
        for n, c in caches.items():
            np.testing.assert_array_equal(c.to(torch.float32).numpy(), plain[n].astype(np.float32))


def test_blocks_are_copied(rng: np.random.Generator) -> None:
    """copy_blocks, for the first append to a shared block."""
    shapes = [(9, 16, 2, 5), (9, 16, 3), (9, 16, 0)]
    dtypes = [np.float32, BFLOAT16, np.int8, np.float16]
    for _ in each_isa():
        arrays = [normal(rng, shape).astype(dtype) for shape in shapes for dtype in dtypes]
        expected = [x.copy() for x in arrays]
        for filled in (0, 1, 15, 16):
            old, new = [0, 3, 3, 8], [1, 2, 7, 4]
            for x in expected:
                x[new, :filled] = x[old, :filled]
            copy_blocks(arrays, old, new, filled)
            for x, y in zip(arrays, expected, strict=True):
                np.testing.assert_array_equal(x, y)
    copy_blocks([], [0], [1], 3)
    copy_blocks(arrays, [], [], 3)
    for old, new, filled, message in (
        ([9], [0], 1, "no block 9"),
        ([0], [-1], 1, "no block -1"),
        ([0, 1], [2], 1, "one shape"),
        ([0], [1], 17, "filled"),
        ([0], [1], -1, "filled"),
    ):
        with pytest.raises(ValueError, match=message):
            copy_blocks(arrays, old, new, filled)
    with pytest.raises(ValueError, match="contiguous"):
        copy_blocks([arrays[0][:, ::2]], [0], [1], 1)
