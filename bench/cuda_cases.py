"""What `python -m bench cuda` measures, part by part: ours, torch's, what bounds it."""

# ruff: noqa: B023  (a line is measured before the loop goes on)

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import qkv
from qkv import cuda_ops

from .cuda import Side, Table, torch

SETS = 4  # of inputs, used by turns


def functional() -> Any:
    return torch.nn.functional


def products(table: Table) -> None:
    n_ = table.size
    shapes = [
        (8192, 8192, 8192),
        (4096, 4096, 4096),
        (512, 4096, 4096),
        (2048, 3072, 768),
        (2048, 768, 3072),
        (128, 768, 768),
    ]
    for dtype in ("bfloat16", "float16"):
        for m, n, k in shapes if dtype == "bfloat16" else shapes[:2]:
            m, n, k = n_(m), n_(n), n_(k)
            x, w = ([table.randn(*s, dtype=dtype) for _ in range(SETS)] for s in ((m, k), (n, k)))
            table.line(
                f"linear {dtype} {m}x{n}x{k}",
                lambda i: qkv.linear(x[i % SETS], w[i % SETS]),
                {"torch": lambda i: functional().linear(x[i % SETS], w[i % SETS])},
                flop=2 * m * n * k,
            )
            if m * k == k * n:
                table.line(
                    f"matmul {dtype} {m}x{n}x{k}",
                    lambda i: qkv.matmul(x[i % SETS], w[i % SETS]),
                    {"torch": lambda i: x[i % SETS] @ w[i % SETS]},
                    flop=2 * m * n * k,
                )
    m, n, k = n_(4096), n_(4096), n_(1024)
    x, w, b, r = table.randn(m, k), table.randn(n, k), table.randn(n), table.randn(m, n)
    table.line(
        f"linear, bias and gelu {m}x{n}x{k}",
        lambda i: qkv.linear(x, w, b, activation="gelu"),
        {"torch": lambda i: functional().gelu(functional().linear(x, w, b))},
        flop=2 * m * n * k,
    )
    table.line(
        f"linear, bias and residual {m}x{n}x{k}",
        lambda i: qkv.linear(x, w, b, residual=r),
        {"torch": lambda i: functional().linear(x, w, b) + r},
        flop=2 * m * n * k,
    )
    few(table)
    batch, m = n_(64, 2), n_(512)
    x, y = table.randn(batch, m, m), table.randn(batch, m, m)
    table.line(
        f"matmul bfloat16 {batch} of {m}x{m}x{m}",
        lambda i: qkv.matmul(x, y),
        {"torch": lambda i: x @ y},
        flop=2 * batch * m**3,
    )
    m = n_(2048)
    x, y = table.randn(m, m, dtype="float32"), table.randn(m, m, dtype="float32")
    table.line(
        f"linear float32 {m}x{m}x{m}",
        lambda i: qkv.linear(x, y),
        {"torch": lambda i: functional().linear(x, y)},
        flop=2 * m**3,
    )


def few(table: Table) -> None:
    """Rows of decoding: what counts is to read the weight, of which there are so many that no cache holds them."""
    weights = 2 if table.tiny else 8
    for size in (8192, 4096):
        n = k = table.size(size)
        w = [table.randn(n, k) for _ in range(weights)]
        plain = {}
        for m in (1, 4, 16, 32, 64):
            x = table.randn(m, k)
            plain[m] = table.line(
                f"linear bfloat16 {m}x{n}x{k}",
                lambda i: qkv.linear(x, w[i % weights]),
                {"torch": lambda i: functional().linear(x, w[i % weights])},
                nbytes=2 * n * k,
            )
        if size != 8192:
            continue
        for dtype in ("int8", "int4"):
            host = qkv.pack_weight(np.random.default_rng(0).standard_normal((n, k)).astype(np.float32), dtype)
            packed = [qkv.cuda.array(host) for _ in range(weights)]
            for m in (1, 4, 16, 64, 256):
                x = table.randn(m, k)
                us = table.line(
                    f"linear {dtype} weight {m}x{n}x{k}",
                    lambda i: qkv.linear(x, packed[i % weights]),
                    {"torch bf16": lambda i: functional().linear(x, w[i % weights])},
                    nbytes=host.nbytes,
                )
                if m in plain and us == us:
                    print(f"  {plain[m] / us:.2f} times as fast as qkv's bfloat16", flush=True)
                    table.results["cases"][-1]["of qkv's bfloat16"] = plain[m] / us
                    table.save()


# ---- attention


def backends(q: Any, k: Any, v: Any, causal: bool) -> dict[str, Side]:
    """torch's scaled_dot_product_attention by each of its backends, and flash-attn, versions 2 and 3, if installed."""
    if torch is None:
        return {}
    sides: dict[str, Side] = {}
    names = {"cudnn": "CUDNN_ATTENTION", "flash": "FLASH_ATTENTION", "efficient": "EFFICIENT_ATTENTION"}
    attention = importlib.import_module("torch.nn.attention")
    grouped = q.shape[1] != k.shape[1]

    def by(backend: Any) -> Side:
        def call(i: int) -> Any:
            with attention.sdpa_kernel(backend):
                return functional().scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=grouped)

        return call

    for name, backend in names.items():
        if hasattr(attention.SDPBackend, backend):
            sides[f"torch {name}"] = by(getattr(attention.SDPBackend, backend))
    tokens = [x.transpose(1, 2).contiguous() for x in (q, k, v)]
    for name, module in {"flash-attn": "flash_attn", "flash-attn 3": "flash_attn_interface"}.items():
        try:
            f = importlib.import_module(module).flash_attn_func
        except ImportError:
            continue
        sides[name] = lambda i, f=f: f(*tokens, causal=causal)
    return sides


def attention(table: Table) -> None:
    n_ = table.size
    for d in (64, 96, 128, 256):
        shapes = [
            (512, 16, False),
            (1024, 8, True),
            (2048, 4, True),
            (4096, 2, False),
            (4096, 2, True),
            (16384, 1, False),
            (16384, 1, True),
        ]
        for s, batch, causal in shapes if d in (64, 128) else shapes[3:5]:
            heads, s, batch = n_(16 if d < 256 else 8, 2), n_(s, 130), n_(batch, 1)
            q, k, v = (table.randn(batch, heads, s, d) for _ in range(3))
            table.line(
                f"attention B{batch} H{heads} S{s} D{d}{' causal' if causal else ''}",
                lambda i: qkv.attention(q, k, v, causal=causal),
                {} if table.tiny else backends(q, k, v, causal),
                flop=4 * batch * heads * s * s * d * (0.5 if causal else 1),
            )
    decode(table)
    paged(table)


def decode(table: Table) -> None:
    n_ = table.size
    for batch, heads, kv, t in [(1, 32, 8, 32768), (16, 32, 8, 8192), (64, 16, 16, 2048)]:
        batch, heads, kv, t = n_(batch, 2), n_(heads, 4), n_(kv, 2), n_(t, 200)
        q, k, v = table.randn(batch, heads, 1, 128), table.randn(batch, kv, t, 128), table.randn(batch, kv, t, 128)
        table.line(
            f"decode B{batch} H{heads}/{kv} T{t} D128",
            lambda i: qkv.attention(q, k, v),
            {} if table.tiny else backends(q, k, v, False),
            nbytes=4 * batch * kv * t * 128,
        )


def paged(table: Table) -> None:
    """One new token of each sequence over a paged cache: torch has nothing like it."""
    size = 16
    for kind in ("bfloat16", "int8"):
        for batch, heads, kv, t, d in [(1, 32, 8, 32768, 128), (32, 32, 8, 4096, 128), (64, 12, 12, 1024, 64)]:
            batch, heads, kv, t = table.size(batch, 2), table.size(heads, 4), table.size(kv, 2), table.size(t, 200)
            blocks = -(-t // size)
            tables = qkv.cuda.array(
                np.random.default_rng(0).permutation(batch * blocks).reshape(batch, -1).astype(np.int32)
            )
            lengths = qkv.cuda.array(np.full(batch, t, np.int32))
            shape, scales = (batch * blocks, size, kv, d), {}
            if kind == "int8":
                caches = [
                    qkv.cuda.array(np.random.default_rng(i).integers(-99, 99, shape).astype(np.int8)) for i in (0, 1)
                ]
                scales = {n: qkv.cuda.array(np.full(shape[:3], 0.01, np.float32)) for n in ("k_scale", "v_scale")}
            else:
                caches = [table.randn(*shape) for _ in range(2)]
            q = table.randn(batch, heads, d)
            table.line(
                f"paged {kind} B{batch} H{heads}/{kv} T{t} D{d}",
                lambda i: qkv.attention_paged(q, *caches, tables, lengths, **scales),
                {},
                nbytes=2 * batch * kv * t * (2 * d if kind == "bfloat16" else d + 4),
            )


# ---- rows and tokens, at the speed of memory


def rows(table: Table) -> None:
    for dtype in ("bfloat16", "float32"):
        for count, n in [(65536, 1024), (16384, 4096), (2048, 32768)]:
            count, n = table.size(count, 8), table.size(n, 300)
            x = [table.randn(count, n, dtype=dtype) for _ in range(2)]
            r, w, b = table.randn(count, n, dtype=dtype), table.randn(n, dtype=dtype), table.randn(n, dtype=dtype)
            once = 2 * count * n * (4 if dtype == "float32" else 2)
            ops: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any], int]] = {
                "softmax": (qkv.softmax, lambda x: torch.softmax(x, -1), once),
                "layer_norm": (
                    lambda x: qkv.layer_norm(x, w, b),
                    lambda x: functional().layer_norm(x, x.shape[1:], w, b),
                    once,
                ),
                "rms_norm + residual": (
                    lambda x: qkv.rms_norm(x, w, residual=r),
                    lambda x: functional().rms_norm(x + r, x.shape[1:], w, 1e-6),
                    2 * once,
                ),
                "gelu": (qkv.gelu, lambda x: functional().gelu(x), once),
                "silu": (qkv.silu, lambda x: functional().silu(x), once),
            }
            for name, (ours, theirs, nbytes) in ops.items():
                table.line(
                    f"{name} {dtype} {count}x{n}",
                    lambda i: ours(x[i % 2]),
                    {"torch": lambda i: theirs(x[i % 2])},
                    nbytes=nbytes,
                )


def tokens(table: Table) -> None:
    n_ = table.size
    count, width, heads, vocabulary = n_(65536), n_(1024), n_(16, 2), n_(50257, 500)
    ids = qkv.cuda.array(np.random.default_rng(0).integers(0, vocabulary, count))
    weight = table.randn(vocabulary, width)
    there = None if table.tiny else torch.from_dlpack(ids)
    table.line(
        f"embedding {count} of {vocabulary}x{width}",
        lambda i: qkv.embedding(ids, weight),
        {"torch": lambda i: functional().embedding(there, weight)},
        nbytes=4 * count * width,
    )
    x, positions = table.randn(count, heads, 64), qkv.cuda.array(np.arange(count))
    table.line(f"rotary {count}x{heads}x64", lambda i: qkv.rotary(x, positions), {}, nbytes=4 * count * heads * 64)
    blocks = n_(4096, 4)
    caches = [table.randn(blocks, 16, heads, 64) for _ in range(2)]
    new = [table.randn(blocks * 16, heads, 64) for _ in range(2)]
    slots = qkv.cuda.array(np.random.default_rng(0).permutation(blocks * 16))
    table.line(
        f"paged_write {blocks * 16}x{heads}x64",
        lambda i: qkv.paged_write(*new, *caches, slots),
        {},
        nbytes=8 * blocks * 16 * heads * 64,
    )
    batch = n_(64, 2)
    logits = table.randn(batch, vocabulary, dtype="float32")
    table.line(
        f"argmax {batch}x{vocabulary}",
        lambda i: cuda_ops.argmax(logits),
        {"torch": lambda i: logits.argmax(1)},
        nbytes=4 * batch * vocabulary,
    )
    for rows in (batch, n_(4, 1)):
        x, u = table.randn(rows, vocabulary, dtype="float32"), qkv.cuda.array(np.random.default_rng(0).random(rows))
        for options in ({}, {"top_k": 50}, {"top_p": 0.9}, {"top_k": 50, "top_p": 0.9}):
            table.line(
                " ".join(["sample", *(f"{name} {value}" for name, value in options.items()), f"{rows}x{vocabulary}"]),
                lambda i: cuda_ops.sample(x, u, **options),
                {"torch": lambda i: sampled(x, **options)},
                nbytes=4 * rows * vocabulary,
            )


def sampled(logits: Any, top_k: int | None = None, top_p: float = 1.0) -> Any:
    """What qkv's sample does, by torch."""
    if top_k is None and top_p == 1:
        return torch.multinomial(torch.softmax(logits, -1), 1)
    scores, places = logits.topk(top_k) if top_k else logits.sort(descending=True)
    p = torch.softmax(scores, -1)
    return places.gather(1, torch.multinomial(p.masked_fill(p.cumsum(-1) - p >= top_p, 0), 1))
