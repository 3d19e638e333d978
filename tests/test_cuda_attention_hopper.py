"""Attention's kernel for Hopper where the op tests do not look: when it is the one that runs, tiles of rows that blocks
take in turn, values that nobody may see. Runs with QKV_CUDA=emulated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import qkv
from checks import eps
from emulated import Emulator, drawn, emulator, on_path, paged
from qkv import reference

__all__ = ["emulator"]  # a fixture

pytestmark = pytest.mark.skipif(not qkv.cuda.is_emulated(), reason="QKV_CUDA=emulated runs this")

BF16, F16 = ml_dtypes.bfloat16, np.float16


def attention(rows: int = 100, d: int = 64, dtype: Any = BF16, **options: Any) -> Callable[[], Any]:
    def call() -> Any:
        q, k, v = drawn(1, 2, rows, d, dtype=dtype), drawn(1, 2, 150, d, dtype=dtype), drawn(1, 2, 150, d, dtype=dtype)
        return qkv.attention(q, k, v, **options)

    return call


def broadcast_keys() -> Any:
    k = drawn(1, 1, 150, 64)
    k = k._as_strided((2, 1, 150, 64), (0, 150 * 64, 64, 1), 0)
    return qkv.attention(drawn(2, 1, 100, 64), k, k)


def unaligned() -> Any:
    q, k, v = (drawn(1, 1, 150, 66)._as_strided((1, 1, 150, 64), (150 * 66, 150 * 66, 66, 1), 0) for _ in range(3))
    return qkv.attention(q, k, v)


def invariant() -> Any:
    qkv.set_batch_invariant(True)
    try:
        return attention()()
    finally:
        qkv.set_batch_invariant(False)


TAKEN: dict[str, Callable[[], Any]] = {
    "bfloat16": attention(),
    "float16": attention(dtype=F16),
    "adjusted": attention(softcap=5.0),
    "weights": lambda: attention(return_weights=True)()[0],
    "as few rows as asked for": on_path("hopper", attention(5)),
}
LEFT: dict[str, Callable[[], Any]] = {
    "float32": attention(dtype=np.float32),
    "narrow": attention(d=32),
    "wide": attention(d=264),
    "few rows": attention(5),
    "not asked for": on_path("portable", attention()),
    "odd width": attention(d=68),
    "unaligned rows": unaligned,
    "keys that repeat": broadcast_keys,
    "batch invariance": invariant,
    "paged": lambda: paged(8, [100, 20], D=64),
}


@pytest.mark.parametrize("name", [*TAKEN, *LEFT])
def test_which_kernel_runs(name: str, emulator: Emulator) -> None:
    out, report = emulator.run({**TAKEN, **LEFT}[name], "count=1")
    assert out is not None, report["first"]
    assert any("attention_hopper" in kernel for kernel in report["kernels"]) == (name in TAKEN), list(report["kernels"])


def test_other_devices_keep_the_portable_kernel(emulator: Emulator) -> None:
    for capability in (80, 89, 100, 120):
        out, report = emulator.run(on_path("hopper", attention()), f"count=1,cc={capability}")
        assert out is not None and not any("hopper" in kernel for kernel in report["kernels"])


@pytest.mark.parametrize("d, causal", [(64, False), (128, True)])
def test_tiles_in_turn_are_tiles_at_once(d: int, causal: bool, emulator: Emulator) -> None:
    """One multiprocessor takes all tiles in one block, many take one each."""
    call = on_path("hopper", attention(420, d, causal=causal, kv_lengths=np.array([140])))
    few, report = emulator.run(call, "sms=1")
    many, _ = emulator.run(call, "sms=8")
    assert few is not None and few == many, report["first"]


@pytest.mark.parametrize("dtype", [BF16, F16])
def test_what_is_not_finite_is_felt_by_those_who_see_it(dtype: Any, emulator: Emulator) -> None:
    """NaN behind a length, among keys that causality excludes, and an infinity that some rows see."""
    emulator.configure()
    rng = np.random.default_rng(3)
    q, k, v = (rng.standard_normal((2, 1, n, 64)).astype(dtype) for n in (140, 200, 200))
    k[0, :, 150:], v[0, :, 150:] = np.nan, np.nan
    v[1, 0, 130, 5], v[1, 0, 100, 7], k[1, 0, 150, 3] = np.nan, np.inf, np.nan
    options = {"causal": True, "kv_lengths": np.array([150, 200])}
    arrays = [qkv.cuda.array(x) for x in (q, k, v)]
    out = on_path("hopper", lambda: qkv.attention(*arrays, **options))().numpy().astype(np.float64)
    with np.errstate(invalid="ignore"):
        want = reference.attention(*(x.astype(np.float64) for x in (q, k, v)), **options)
    np.testing.assert_array_equal(np.isnan(out), np.isnan(want))
    np.testing.assert_array_equal(np.isinf(out), np.isinf(want))
    assert 0 < np.isnan(want).sum() < want.size / 2 and np.isinf(want).any()
    finite = np.isfinite(want)
    assert np.abs(out[finite] - want[finite]).max() <= 4 * eps(dtype) * np.abs(want[finite]).max()


def test_sequences_of_any_length(emulator: Emulator) -> None:
    """Tiles that are set aside and empty, sequences without keys or without queries, tiles whose end is another's."""
    emulator.configure("sms=1")
    lengths_q, lengths_k = [70, 0, 1, 130, 5], [40, 30, 0, 200, 129]
    cu_q, cu_k = (np.cumsum([0, *n]).astype(np.int32) for n in (lengths_q, lengths_k))
    rng = np.random.default_rng(4)
    q, k, v = (rng.standard_normal((n, h, 64)).astype(BF16) for n, h in ((cu_q[-1], 4), (cu_k[-1], 2), (cu_k[-1], 2)))
    arrays = [qkv.cuda.array(x) for x in (q, k, v)]
    run = on_path("hopper", lambda: qkv.attention_varlen(*arrays, cu_q, cu_k, causal=True))
    out = run().numpy().astype(np.float64)
    want = reference.attention_varlen(*(x.astype(np.float64) for x in (q, k, v)), cu_q, cu_k, causal=True)
    assert np.abs(out - want).max() <= 4 * eps(BF16) * np.abs(want).max()
