"""linear with weights of 8 and 4 bits on a GPU or on the emulator: they are widened, activations are not rounded."""

from __future__ import annotations

from typing import Any

import naive
import numpy as np
import pytest
import qkv
from checks import BFLOAT16, FLOAT16, FLOAT32, assert_close, normal, oracle, same_bits
from qkv import reference

pytestmark = pytest.mark.skipif(not qkv.cuda.is_available(), reason=qkv.cuda.why_not())

FORMATS = [("int8", None), ("int8", 32), ("int4", 32), ("int4", 64), ("int4", 128)]


def check(x: Any, packed: Any, what: str, **options: Any) -> None:
    weight = packed.dequantize()
    ref = oracle("linear", x, weight, **options)
    yardstick = naive.linear(x, weight.astype(np.float32), **options)
    moved = {n: qkv.cuda.array(v) if isinstance(v, np.ndarray) else v for n, v in options.items()}
    out = qkv.linear(qkv.cuda.array(x), qkv.cuda.array(packed), **moved)
    assert_close(out.numpy(), ref, yardstick, what)


@pytest.mark.parametrize("dtype, group", FORMATS)
@pytest.mark.parametrize("kind", [FLOAT32, FLOAT16, BFLOAT16], ids=str)
def test_sizes(dtype: str, group: int | None, kind: Any, rng: np.random.Generator) -> None:
    for m, n, k in [
        (1, 1, 1),
        (1, 64, 256),
        (2, 7, 31),
        (3, 33, 130),
        (8, 16, 64),
        (9, 65, 96),
        (17, 130, 200),
        (70, 48, 128),
    ]:
        packed = qkv.pack_weight(normal(rng, (n, k)), dtype, group)
        check(normal(rng, (m, k), kind), packed, f"{dtype} {group} {m} {n} {k}")


@pytest.mark.parametrize("dtype, group", FORMATS)
def test_epilogue(dtype: str, group: int | None, rng: np.random.Generator) -> None:
    packed = qkv.pack_weight(normal(rng, (24, 64)), dtype, group)
    for m in (1, 5, 40):
        x = normal(rng, (m, 64), BFLOAT16)
        for activation in (None, "gelu", "silu"):
            check(x, packed, f"{dtype} {m} {activation}", bias=normal(rng, 24, BFLOAT16), activation=activation,
                  gate=normal(rng, (m, 24), BFLOAT16), residual=normal(rng, (m, 24), BFLOAT16))  # fmt: skip


@pytest.mark.parametrize("dtype, group", FORMATS)
def test_the_device_has_the_same_values(dtype: str, group: int | None, rng: np.random.Generator) -> None:
    packed = qkv.pack_weight(normal(rng, (19, 77)), dtype, group)
    there = qkv.cuda.array(packed)
    assert (there.shape, there.dtype, there.group_size) == (packed.shape, packed.dtype, packed.group_size)
    np.testing.assert_allclose(there.dequantize().numpy(), packed.dequantize(), rtol=1e-6, atol=1e-6)


def test_float_weights_stay_what_they_are(rng: np.random.Generator) -> None:
    w = normal(rng, (9, 20))
    for dtype in ("float32", "bfloat16"):
        packed = qkv.pack_weight(w, dtype)
        there = qkv.cuda.array(packed)
        assert same_bits(there.dequantize().numpy().astype(np.float32), packed.dequantize())
        for kind in (FLOAT32, FLOAT16, BFLOAT16):
            check(normal(rng, (3, 20), kind), packed, f"{dtype} {kind}", bias=normal(rng, 9, kind), activation="gelu")


@pytest.mark.parametrize("dtype, group", FORMATS)
def test_rows_do_not_see_each_other(dtype: str, group: int | None, rng: np.random.Generator) -> None:
    """With set_batch_invariant a row's bits are the same in any batch."""
    packed = qkv.cuda.array(qkv.pack_weight(normal(rng, (40, 1100)), dtype, group))  # k is split
    x = normal(rng, (80, 1100), BFLOAT16)
    qkv.set_batch_invariant(True)
    try:
        whole = qkv.linear(qkv.cuda.array(x), packed).numpy()
        for rows in (slice(0, 1), slice(3, 8), slice(10, 30)):
            assert same_bits(qkv.linear(qkv.cuda.array(x[rows]), packed).numpy(), whole[rows])
    finally:
        qkv.set_batch_invariant(False)


@pytest.mark.parametrize("dtype, group", [f for f in FORMATS if f[1]])
def test_huge_activations(dtype: str, group: int, rng: np.random.Generator) -> None:
    """Their products with codes overflow, those with weights do not."""
    packed = qkv.pack_weight(normal(rng, (24, 128)) / 20, dtype, group)
    for m in (1, 20):
        x = np.zeros((m, 128), BFLOAT16)
        x[:, 5] = 2e38
        check(x, packed, f"{dtype} {group} {m}")


def test_reference_of_the_reference(rng: np.random.Generator) -> None:
    """What these tests compare with is x times the dequantised weight."""
    packed = qkv.pack_weight(normal(rng, (5, 64)), "int4")
    x = rng.standard_normal((2, 64))
    np.testing.assert_allclose(reference.linear(x, packed.dequantize().astype(np.float64)), x @ packed.dequantize().T)


@pytest.mark.parametrize("dtype, group", [*FORMATS, ("bfloat16", None)])
@pytest.mark.parametrize("n, k", [(0, 32), (1, 1), (15, 65), (17, 127), (33, 256)])
def test_parts_come_back_to_the_bit(dtype: str, group: int | None, n: int, k: int, rng: np.random.Generator) -> None:
    packed = qkv.pack_weight(normal(rng, (n, k)), dtype, group)
    for ours, theirs in zip(qkv.cuda.array(packed).parts(), packed.parts(), strict=True):
        if isinstance(theirs, np.ndarray):
            assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)
