"""Kernels read and write inside their arrays only: each array ends, or begins, at a page that must not be touched.

A wrong access ends the process, so the calls are made in another one. Keys that are excluded by structure must not even
be read: there they lie on such pages.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import qkv
from checks import run_python, under_sanitizer

SETUP = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import ctypes, mmap
import numpy as np
import qkv
from calls import calls, flat, kind_of
from checks import DTYPES, each_isa, same_bits

PAGE = mmap.PAGESIZE
mprotect = ctypes.CDLL(None, use_errno=True).mprotect
mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

def forbidden(memory, start, size):
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory)) + start
    assert address % PAGE == 0 and mprotect(address, size, 0) == 0

def guarded(a, at_end):
    "A copy of `a` that touches a forbidden page with its last byte, or with its first."
    pages = -(-a.nbytes // PAGE)
    memory = mmap.mmap(-1, (pages + 2) * PAGE)
    start = (pages + 1) * PAGE - a.nbytes if at_end else PAGE
    view = np.frombuffer(memory, np.uint8)[start : start + a.nbytes].view(a.dtype).reshape(a.shape)
    view[...] = a
    forbidden(memory, 0, PAGE)
    forbidden(memory, (pages + 1) * PAGE, PAGE)
    return view

def keys(a, first, last):
    "A copy of `a` (T, D) of which only the rows first .. last - 1 can be read; these must begin or end at a page."
    row = a[0].nbytes
    before, after = -(-first * row // PAGE) * PAGE, -(-(len(a) - last) * row // PAGE) * PAGE
    inside = -(-(last - first) * row // PAGE) * PAGE
    memory = mmap.mmap(-1, before + inside + after + 2 * PAGE)
    # Flush with the page behind if something is behind, else with the page before.
    start = before + inside - (last - first) * row if last < len(a) else before
    base = start - first * row
    assert base >= 0
    view = np.frombuffer(memory, np.uint8)[base : base + a.nbytes].view(a.dtype).reshape(a.shape)
    view[first:last] = a[first:last]
    if first and last == len(a):
        forbidden(memory, 0, before)
    if last < len(a):
        forbidden(memory, before + inside, after)
    return view
"""

EVERY_OP = """
for dtype in DTYPES.values():
    for op, arguments in calls(dtype).items():
        names = [name for name, value in arguments.items() if kind_of(name, value)]
        for at_end in (True, False):
            spoiled = {**arguments, **{name: guarded(arguments[name], at_end) for name in names}}
            for _ in each_isa():
                expected = flat(getattr(qkv, op)(**arguments))
                out = flat(getattr(qkv, op)(**spoiled))
                assert all(same_bits(a, b) for a, b in zip(out, expected, strict=True)), op
"""

ODD_SIZES = """
rng = np.random.default_rng(0)
f = lambda *shape: guarded(rng.standard_normal(shape).astype(dtype), at_end)
for dtype in DTYPES.values():
    for at_end in (True, False):
        for n in [1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 33, 47, 63, 65, 97, 130, 258]:
            x, w = f(3, n), f(n)
            q, k = f(1, 2, 3, n), f(1, 2, n + 1, n)
            even = f(3, 2 * n)
            out = guarded(np.zeros((3, n), dtype), at_end)
            for _ in each_isa():
                for op in (qkv.softmax, qkv.log_softmax, qkv.gelu, qkv.silu, qkv.tanh, qkv.layer_norm, qkv.rms_norm):
                    op(x)
                qkv.softmax(x, axis=0), qkv.gelu(x, "tanh"), qkv.layer_norm(x, w, w, residual=x)
                qkv.rotary(even, np.arange(3)), qkv.rotary(even, np.arange(3), interleaved=True)
                qkv.matmul(x.T, x), qkv.matmul(x, x.T), qkv.linear(x, x), qkv.linear(f(2, n), f(n, n), w, out=out[:2])
                qkv.linear(x, qkv.pack_weight(f(n, n)), residual=x, gate=x, out=out)
                qkv.attention(q, k, k), qkv.attention(q, k, k, causal=True, bias=f(3, n + 1))
                qkv.attention(q, k, k, mask=guarded(np.ones((3, n + 1), bool), at_end), return_weights=True)
                qkv.embedding(guarded(np.array([2, 0, 1]), at_end), x)
"""

PAGED = """
rng = np.random.default_rng(0)
f = lambda *shape: guarded(rng.standard_normal(shape).astype(dtype), at_end)
for dtype in (*DTYPES.values(), np.dtype(np.int8)):
    for at_end in (True, False):
        for n in [1, 3, 8, 15, 16, 17, 33, 64, 97]:
            caches = [f(3, 16, 2, n) for _ in range(2)]
            names = ("k_scale", "v_scale") if dtype == np.int8 else ()
            scales = {name: guarded(np.ones((3, 16, 2), np.float32), at_end) for name in names}
            table = guarded(np.array([[2, 0], [0, 2]], np.int32), at_end)
            lengths, starts = guarded(np.array([32, 32]), at_end), guarded(np.array([0, 3, 7]), at_end)
            slots = guarded(np.array([0, 47, -1, 46, 15, 1, 16]), at_end)
            for kind in DTYPES.values():
                q, k = (guarded(rng.standard_normal((7, h, n)).astype(kind), at_end) for h in (4, 2))
                for _ in each_isa():
                    qkv.paged_write(k, k, *caches, slots, **scales)
                    qkv.attention_paged(q, *caches, table, lengths, cu_seqlens_q=starts, causal=True, **scales)
                    qkv.attention_paged(q[:2], *caches, table, lengths, window=(9, 0), **scales)
                    narrow = {"precision": "bf16", **scales}
                    qkv.attention_paged(q, *caches, table, lengths, cu_seqlens_q=starts, **narrow)
                    qkv.attention_paged(q[:2], *caches, table, lengths, **narrow)
                    if dtype == kind:
                        new = [x[:6].reshape(2, 3, *x.shape[1:]) for x in (q, k)]
                        qkv.flash_attn_with_kvcache(
                            new[0], *caches, new[1], new[1], cache_seqlens=13, cache_leftpad=np.array([5, 0])
                        )
"""

EXCLUDED_KEYS = """
rng = np.random.default_rng(0)
T = 700
for dtype, precision in [*((dtype, "highest") for dtype in DTYPES.values()), (DTYPES["bfloat16"], "bf16")]:
    for D in (8, 17, 64, 96):
        q = rng.standard_normal((1, 1, 20, D)).astype(dtype)
        k, v = (rng.standard_normal((T, D)).astype(dtype) for _ in range(2))
        for first, last, options in [
            (0, 333, {"kv_lengths": np.array([333])}),
            (0, 333, {"kv_lengths": np.array([333]), "causal": True}),
            (0, 20, {"causal": "top_left"}),
            (0, 26, {"window": (None, 6), "causal": False, "kv_lengths": np.array([26])}),
            (T - 20 - 5, T, {"window": (5, None)}),
            (T - 20 - 5, T, {"window": (5, 0), "causal": True}),
        ]:
            plain = [a.reshape(1, 1, T, D) for a in (k, v)]
            hidden = [keys(a, first, last).reshape(1, 1, T, D) for a in (k, v)]
            for _ in each_isa():
                for layout in ("bhsd", "bshd"):
                    turn = (lambda a: a) if layout == "bhsd" else (lambda a: a.swapaxes(1, 2))
                    arguments = {"layout": layout, "return_lse": True, "precision": precision, **options}
                    for rows in (20, 4, 1) if "kv_lengths" in options and "causal" not in options else (20,):
                        expected = qkv.attention(*map(turn, (q[:, :, :rows], *plain)), **arguments)
                        out = qkv.attention(*map(turn, (q[:, :, :rows], *hidden)), **arguments)
                        assert all(same_bits(a, b) for a, b in zip(out, expected, strict=True)), options
"""


@pytest.mark.skipif(under_sanitizer(), reason="the sanitizer watches bounds more closely itself")
@pytest.mark.parametrize("what", ["EVERY_OP", "ODD_SIZES", "PAGED", "EXCLUDED_KEYS"])
@pytest.mark.parametrize("isa", qkv.isas())
def test_no_access_outside(what: str, isa: str) -> None:
    only = f"qkv.set_isa({isa!r})\neach_isa = lambda: [{isa!r}]\n"
    done = run_python(SETUP + only + globals()[what] + "\nprint('all done')", timeout=300)
    assert done.returncode == 0 and done.stdout == "all done\n", f"status {done.returncode} {done.stderr[-2000:]}"


def test_the_guard_works() -> None:
    """A read one byte outside ends the process with a signal: the tests above can fail."""
    for array, inside, outside in [
        ("guarded(np.ones(8, np.float32), True)", 8 * 4 - 1, 8 * 4),
        ("guarded(np.ones(8, np.float32), False)", 0, -1),
        ("keys(np.ones((700, 17), np.float32), 0, 333)", 333 * 68 - 1, 333 * 68),
        ("keys(np.ones((700, 17), np.float32), 675, 700)", 675 * 68, 675 * 68 - 1),
    ]:
        for position, ends in ((inside, False), (outside, True)):
            done = run_python(f"{SETUP}a = {array}\nctypes.string_at(a.ctypes.data + {position}, 1)")
            assert (done.returncode < 0) == ends, f"{array} at {position}: status {done.returncode}"
