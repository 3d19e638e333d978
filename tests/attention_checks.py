"""What the files that test attention share."""

from __future__ import annotations

from typing import Any

import naive
import numpy as np
import qkv
from checks import FLOAT32, assert_close, each_isa, normal, oracle, same_bits
from on_device import EMULATED


def check(q: Any, k: Any, v: Any, what: str = "", **options: Any) -> None:
    """Output, LSE and weights on every instruction set, from one reference and one yardstick."""
    with np.errstate(all="ignore"):
        ref = oracle("attention", q, k, v, return_lse=True, return_weights=True, **options)
        yardstick = naive.attention(q, k, v, **options)
        if q.dtype == FLOAT32:
            lse = yardstick[1]
        else:  # the LSE is float32 whatever the inputs are, so its yardstick is too
            single = [a.astype(FLOAT32) for a in (q, k, v)]
            lse = naive.attention(*single, **options)[1]
    what = f"{what} {q.dtype} q {q.shape} k {k.shape} v {v.shape} {sorted(options)}"
    for _ in each_isa():
        out, got_lse, weights = qkv.attention(q, k, v, return_lse=True, return_weights=True, **options)
        assert_close(out, ref[0], yardstick[0], what)
        assert_close(got_lse, ref[1], lse, f"lse {what}")
        assert_close(weights, ref[2], yardstick[2], f"weights {what}")
        # The way without weights is the one that everybody takes: it never holds a row of scores.
        out, got_lse = qkv.attention(q, k, v, return_lse=True, **options)
        assert_close(out, ref[0], yardstick[0], f"alone {what}")
        assert_close(got_lse, ref[1], lse, f"lse alone {what}")
        if not EMULATED:  # there test_returns alone
            assert same_bits(qkv.attention(q, k, v, **options), out), f"return_lse changes the output: {what}"


def qkv_of(
    rng: np.random.Generator,
    B: int,
    H: int,
    S: int,
    T: int,
    D: int,
    *,
    Hkv: int | None = None,
    Dv: int | None = None,
    dtype: Any = FLOAT32,
    layout: str = "bhsd",
) -> tuple[Any, Any, Any]:
    shapes = [(B, H, S, D), (B, Hkv or H, T, D), (B, Hkv or H, T, D if Dv is None else Dv)]
    if layout == "bshd":
        shapes = [(b, s, h, d) for b, h, s, d in shapes]
    return tuple(normal(rng, shape, dtype) for shape in shapes)  # type: ignore[return-value]
