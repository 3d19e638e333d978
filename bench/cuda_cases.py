"""What `python -m bench cuda` measures, part by part: ours, torch's, what bounds it.

A line's inputs are made in a function of its own: what fails there ends that line alone, and its memory goes back."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import qkv
from qkv import cuda_ops, ops

from .cuda_table import Side, Table, torch, words

SETS = 4  # of inputs, used by turns


def functional() -> Any:
    return torch.nn.functional


def with_own(call: Callable[[Any], Any], x: Any) -> Any:
    """call(x) for what takes qkv's arrays alone: x as one of them, in the stream that is current in x's library."""
    stream = qkv.cuda.stream_of([x])
    with qkv.cuda.stream(stream):
        return call(qkv.cuda.from_dlpack(x, stream))


def sent(table: Table, x: Any) -> tuple[Any, Any]:
    """A copy of a NumPy array on the device, and the same memory as torch's."""
    ours = qkv.cuda.array(x)
    return ours, torch.from_dlpack(ours) if table.by_torch else None


# ---- products, at the speed of the tensor cores, or of reading the weight


def products(table: Table) -> None:
    shapes = [
        (8192, 8192, 8192),
        (4096, 4096, 4096),
        (512, 4096, 4096),
        (2048, 3072, 768),
        (2048, 768, 3072),
        (128, 768, 768),
    ]
    for dtype in ("bfloat16", "float16"):
        for shape in shapes if dtype == "bfloat16" else shapes[:2]:
            table.attempt(product, dtype, *map(table.size, shape))
    table.attempt(epilogues)
    for size in (8192, 4096):
        table.attempt(few, size)
    table.attempt(batched)
    table.attempt(of_float32)


def product(table: Table, dtype: str, m: int, n: int, k: int) -> None:
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


def epilogues(table: Table) -> None:
    m, n, k = table.size(4096), table.size(4096), table.size(1024)
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


def few(table: Table, size: int) -> None:
    """Rows of decoding: what counts is to read the weight, of which there are so many that no cache holds them."""
    weights = 2 if table.tiny else 8
    n = k = table.size(size)
    w = [table.randn(n, k) for _ in range(weights)]
    plain = {}
    for m in (1, 4, 16, 32, 64):
        x = table.randn(m, k)
        plain[m] = table.line(
            f"linear bfloat16 {m}x{n}x{k}",
            lambda i, x=x: qkv.linear(x, w[i % weights]),
            {"torch": lambda i, x=x: functional().linear(x, w[i % weights])},
            nbytes=2 * n * k,
        )
    if size == 8192:
        for dtype in ("int8", "int4"):
            table.attempt(few_packed, dtype, n, k, w, plain)


def few_packed(table: Table, dtype: str, n: int, k: int, w: list[Any], plain: dict[int, float]) -> None:
    """w: bfloat16 weights for torch. plain: microseconds of ours with such, by the number of rows."""
    block = np.random.default_rng(0).standard_normal((min(n, 512), k)).astype(np.float32)
    host = qkv.pack_weight(np.resize(block, (n, k)), dtype)
    packed = [qkv.cuda.array(host) for _ in w]
    for m in (1, 4, 16, 64, 256):
        x, name = table.randn(m, k), f"linear {dtype} weight {m}x{n}x{k}"
        us = table.line(
            name,
            lambda i, x=x: qkv.linear(x, packed[i % len(w)]),
            {"torch bf16": lambda i, x=x: functional().linear(x, w[i % len(w)])},
            nbytes=host.nbytes,
        )
        if us == us and (ratio := plain.get(m, float("nan")) / us) == ratio:
            print(f"  {ratio:.2f} times as fast as qkv's bfloat16", flush=True)
            next(case for case in table.results["cases"] if case["case"] == name)["of qkv's bfloat16"] = ratio
            table.save()
    table.line(
        f"dequantize {dtype} {n}x{k}",
        lambda i: with_own(lambda _: packed[i % len(w)].dequantize(), w[0]),
        {},
        nbytes=host.nbytes + 4 * n * k,
    )


def batched(table: Table) -> None:
    batch, m = table.size(64, 2), table.size(512)
    x, y = table.randn(batch, m, m), table.randn(batch, m, m)
    table.line(
        f"matmul bfloat16 {batch} of {m}x{m}x{m}",
        lambda i: qkv.matmul(x, y),
        {"torch": lambda i: x @ y},
        flop=2 * batch * m**3,
    )


def of_float32(table: Table) -> None:
    m = table.size(2048)
    x, y = table.randn(m, m, dtype="float32"), table.randn(m, m, dtype="float32")
    table.line(
        f"linear float32 {m}x{m}x{m}",
        lambda i: qkv.linear(x, y),
        {"torch": lambda i: functional().linear(x, y)},
        flop=2 * m**3,
    )


# ---- attention


def installed(module: str, function: str) -> Any:
    """None where it is not, or does not load, for whatever reason: a peer costs no line of ours."""
    try:
        return getattr(importlib.import_module(module), function)
    except Exception as error:
        if not isinstance(error, ModuleNotFoundError):
            print(f"{module}: {words(error)}", flush=True)
        return None


def backends(table: Table, q: Any, k: Any, v: Any, causal: bool = False, mask: Any = None) -> dict[str, Side]:
    """torch's scaled_dot_product_attention by each of its backends, and flash-attn, versions 2 and 3, if installed."""
    if not table.by_torch:
        return {}
    sides: dict[str, Side] = {}
    names = {"cudnn": "CUDNN_ATTENTION", "flash": "FLASH_ATTENTION", "efficient": "EFFICIENT_ATTENTION"}
    if q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2] <= 1 << 30:  # of scores, which it has in memory
        names["math"] = "MATH"
    if mask is not None:
        del names["flash"]
    attention = importlib.import_module("torch.nn.attention")
    grouped = q.shape[1] != k.shape[1]

    def by(backend: Any) -> Side:
        def call(i: int) -> Any:
            with attention.sdpa_kernel(backend):
                return functional().scaled_dot_product_attention(
                    q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=grouped
                )

        return call

    for name, backend in names.items():
        if hasattr(attention.SDPBackend, backend):
            sides[f"torch {name}"] = by(getattr(attention.SDPBackend, backend))
    for name, module in {"flash-attn": "flash_attn", "flash-attn 3": "flash_attn_interface"}.items():
        if mask is None and (f := installed(module, "flash_attn_func")):
            tokens = [x.transpose(1, 2).contiguous() for x in (q, k, v)]
            sides[name] = lambda i, f=f, tokens=tokens: f(*tokens, causal=causal)
    return sides


def attention(table: Table) -> None:
    shapes = [
        (512, 16, False),
        (1024, 8, True),
        (2048, 4, True),
        (4096, 2, False),
        (4096, 2, True),
        (16384, 1, False),
        (16384, 1, True),
    ]
    for d in (128, 64, 96, 256):
        for s, batch, causal in shapes if d in (64, 128) else shapes[3:5]:
            table.attempt(square, "bfloat16", batch, 16 if d < 256 else 8, s, d, causal)
    table.attempt(square, "float16", 2, 16, 4096, 128, True)
    for kind in ("window, softcap, sinks", "ALiBi", "bias", "mask"):
        table.attempt(scores, kind)
    for causal in (False, True):
        table.attempt(varlen, causal)
    for shape in [(1, 32, 8, 32768), (16, 32, 8, 8192), (64, 16, 16, 2048)]:
        table.attempt(decode, *shape)
    for dtype in ("bfloat16", "int8"):
        for shape in [(1, 32, 8, 32768, 128), (32, 32, 8, 4096, 128), (64, 12, 12, 1024, 64)]:
            table.attempt(paged, dtype, *shape)
    table.attempt(additive)


def square(table: Table, dtype: str, batch: int, heads: int, s: int, d: int, causal: bool) -> None:
    batch, heads, s = table.size(batch, 1), table.size(heads, 2), table.size(s, 130)
    q, k, v = (table.randn(batch, heads, s, d, dtype=dtype) for _ in range(3))
    kind = "" if dtype == "bfloat16" else f"{dtype} "
    table.line(
        f"attention {kind}B{batch} H{heads} S{s} D{d}{' causal' if causal else ''}",
        lambda i: qkv.attention(q, k, v, causal=causal),
        backends(table, q, k, v, causal),
        flop=4 * batch * heads * s * s * d * (0.5 if causal else 1),
    )


def scores(table: Table, kind: str) -> None:
    """What changes scores, or which there are, at one size."""
    batch, heads, s, d = table.size(2, 1), table.size(16, 2), table.size(4096, 130), 128
    q, k, v = (table.randn(batch, heads, s, d) for _ in range(3))
    pairs, options, peers = float(s * s), {}, {}
    if kind == "window, softcap, sinks":
        left = s // 4
        sinks = table.randn(heads, dtype="float32")
        options = {"causal": True, "window": (left - 1, 0), "softcap": 30.0, "sinks": sinks}
        pairs = s * left - left * (left - 1) / 2
    elif kind == "ALiBi":
        options = {"causal": True, "alibi_slopes": qkv.cuda.array(qkv.alibi_slopes(heads).astype(np.float32))}
        pairs = s * s / 2
    elif kind == "bias":
        options = {"bias": table.randn(1, heads, s, s)}
        peers = backends(table, q, k, v, mask=options["bias"])
    else:
        ours, theirs = sent(table, np.random.default_rng(0).random((1, 1, s, s)) < 0.5)
        options = {"mask": ours}
        peers = backends(table, q, k, v, mask=theirs)
    table.line(
        f"attention {kind} B{batch} H{heads} S{s} D{d}{' causal' if options.get('causal') else ''}",
        lambda i: qkv.attention(q, k, v, **options),
        peers,
        flop=4 * batch * heads * pairs * d,
    )


def varlen(table: Table, causal: bool) -> None:
    heads, d = table.size(16, 2), 128
    lengths = np.random.default_rng(0).integers(*((3, 60) if table.tiny else (128, 2049)), 16)
    total, longest = int(lengths.sum()), int(lengths.max())
    ours, theirs = sent(table, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
    q, k, v = (table.randn(total, heads, d) for _ in range(3))
    peers: dict[str, Side] = {}
    if table.by_torch and (f := installed("torch.nn.attention.varlen", "varlen_attn")):
        window = (-1, 0) if causal else (-1, -1)
        peers["torch varlen"] = lambda i, f=f: f(q, k, v, theirs, theirs, longest, longest, window_size=window)
    for name, module in {"flash-attn": "flash_attn", "flash-attn 3": "flash_attn_interface"}.items():
        if table.by_torch and (f := installed(module, "flash_attn_varlen_func")):
            peers[name] = lambda i, f=f: f(q, k, v, theirs, theirs, longest, longest, causal=causal)
    table.line(
        f"varlen 16 of {lengths.min()} to {longest} H{heads} D{d}{' causal' if causal else ''}",
        lambda i: qkv.attention_varlen(q, k, v, ours, ours, causal=causal),
        peers,
        flop=4 * heads * d * float((lengths**2).sum()) * (0.5 if causal else 1),
    )


def decode(table: Table, batch: int, heads: int, kv: int, t: int) -> None:
    batch, heads, kv, t = table.size(batch, 2), table.size(heads, 4), table.size(kv, 2), table.size(t, 200)
    q, k, v = table.randn(batch, heads, 1, 128), table.randn(batch, kv, t, 128), table.randn(batch, kv, t, 128)
    table.line(
        f"decode B{batch} H{heads}/{kv} T{t} D128",
        lambda i: qkv.attention(q, k, v),
        backends(table, q, k, v),
        nbytes=4 * batch * kv * t * 128,
    )


def paged(table: Table, dtype: str, batch: int, heads: int, kv: int, t: int, d: int) -> None:
    """One new token of each sequence over a paged cache: torch has nothing like it."""
    size = 16
    batch, heads, kv, t = table.size(batch, 2), table.size(heads, 4), table.size(kv, 2), table.size(t, 200)
    blocks = -(-t // size)
    tables = qkv.cuda.array(np.random.default_rng(0).permutation(batch * blocks).reshape(batch, -1).astype(np.int32))
    lengths = qkv.cuda.array(np.full(batch, t, np.int32))
    shape, scales = (batch * blocks, size, kv, d), {}
    if dtype == "int8":
        few = np.random.default_rng(0).integers(-99, 99, 1_000_003).astype(np.int8)
        caches = [qkv.cuda.array(np.resize(few, shape)) for _ in range(2)]
        scales = {n: qkv.cuda.array(np.full(shape[:3], 0.01, np.float32)) for n in ("k_scale", "v_scale")}
    else:
        caches = [table.randn(*shape) for _ in range(2)]
    q = table.randn(batch, heads, d)
    table.line(
        f"paged {dtype} B{batch} H{heads}/{kv} T{t} D{d}",
        lambda i: qkv.attention_paged(q, *caches, tables, lengths, **scales),
        {},
        nbytes=2 * batch * kv * t * (2 * d if dtype == "bfloat16" else d + 4),
    )


def additive(table: Table) -> None:
    batch, s, t, width = table.size(16, 2), table.size(128, 5), table.size(512, 33), table.size(256, 32)
    q, k, v = table.randn(batch, s, width), table.randn(batch, t, width), table.randn(batch, t, width)
    w = [table.randn(*shape) for shape in ((width, width), (width, width), (width,))]
    table.line(
        f"additive_attention B{batch} S{s} T{t} D{width}",
        lambda i: qkv.additive_attention(q, k, v, *w),
        {"torch": lambda i: added(q, k, v, *w)},
        flop=2 * batch * (width * width * (s + t) + 2 * s * t * width),  # and as many tanh as s t width
    )


def added(q: Any, k: Any, v: Any, w_q: Any, w_k: Any, w_v: Any) -> Any:
    """What qkv's additive_attention does, by torch."""
    f = functional()
    hidden = torch.tanh(f.linear(q, w_q)[:, :, None] + f.linear(k, w_k)[:, None])
    return torch.softmax(hidden @ w_v, -1) @ v


# ---- rows and tokens, at the speed of memory


def rows(table: Table) -> None:
    for dtype in ("bfloat16", "float32"):
        for count, n in [(65536, 1024), (16384, 4096), (2048, 32768)]:
            table.attempt(row_ops, dtype, count, n)


def row_ops(table: Table, dtype: str, count: int, n: int) -> None:
    rest = n == 4096 or table.tiny
    count, n = table.size(count, 8), table.size(n, 300)
    x = [table.randn(count, n, dtype=dtype) for _ in range(2)]
    r, w, b = table.randn(count, n, dtype=dtype), table.randn(n, dtype=dtype), table.randn(n, dtype=dtype)
    once = 2 * count * n * (4 if dtype == "float32" else 2)
    more = once + once // 2  # one array more is read
    ops_: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any] | None, int]] = {
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
    if rest:
        ops_ |= {
            "rms_norm": (
                lambda x: qkv.rms_norm(x, w),
                lambda x: functional().rms_norm(x, x.shape[1:], w, 1e-6),
                once,
            ),
            "log_softmax": (qkv.log_softmax, lambda x: torch.log_softmax(x, -1), once),
            "relu": (qkv.relu, lambda x: functional().relu(x), once),
            "tanh": (qkv.tanh, lambda x: torch.tanh(x), once),
            "quick_gelu": (qkv.quick_gelu, None, once),
            "scaled_sum": (lambda x: ops.scaled_sum(x, 0.5, r), lambda x: torch.add(r, x, alpha=0.5), more),
        }
    for name, (ours, theirs, nbytes) in ops_.items():
        table.line(
            f"{name} {dtype} {count}x{n}",
            lambda i, ours=ours: ours(x[i % 2]),
            {"torch": lambda i, theirs=theirs: theirs(x[i % 2])} if theirs else {},
            nbytes=nbytes,
        )


def tokens(table: Table) -> None:
    vocabulary = table.size(50257, 500)
    for prepare in (embedded, rotated, written):
        table.attempt(prepare)
    table.attempt(largest, table.size(64, 2), vocabulary)
    for count in (table.size(64, 2), table.size(4, 1)):
        table.attempt(samples, count, vocabulary)


def embedded(table: Table) -> None:
    count, width, vocabulary = table.size(65536), table.size(1024), table.size(50257, 500)
    ids, there = sent(table, np.random.default_rng(0).integers(0, vocabulary, count))
    weight = table.randn(vocabulary, width)
    table.line(
        f"embedding {count} of {vocabulary}x{width}",
        lambda i: qkv.embedding(ids, weight),
        {"torch": lambda i: functional().embedding(there, weight)},
        nbytes=4 * count * width,
    )


def rotated(table: Table) -> None:
    """As models do it, by angles that are there: `qkv.rotary` sends its frequencies along, which no graph can hold."""
    count, heads = table.size(65536), table.size(16, 2)
    x, positions = table.randn(count, heads, 64), qkv.cuda.array(np.arange(count))
    angles = ops.angles(positions, qkv.cuda.array((10000.0 ** -(np.arange(32) / 32)).astype(np.float32)))
    nbytes = 4 * count * heads * 64 + 4 * count * 32
    table.line(f"rotate {count}x{heads}x64", lambda i: ops.rotate(x, angles, 1.0), {}, nbytes=nbytes)


def written(table: Table) -> None:
    blocks, heads = table.size(4096, 4), table.size(16, 2)
    caches = [table.randn(blocks, 16, heads, 64) for _ in range(2)]
    new = [table.randn(blocks * 16, heads, 64) for _ in range(2)]
    slots = qkv.cuda.array(np.random.default_rng(0).permutation(blocks * 16))
    table.line(
        f"paged_write {blocks * 16}x{heads}x64",
        lambda i: qkv.paged_write(*new, *caches, slots),
        {},
        nbytes=8 * blocks * 16 * heads * 64,
    )


def largest(table: Table, count: int, vocabulary: int) -> None:
    x = table.randn(count, vocabulary, dtype="float32")
    table.line(
        f"argmax {count}x{vocabulary}",
        lambda i: with_own(cuda_ops.argmax, x),
        {"torch": lambda i: x.argmax(1)},
        nbytes=4 * count * vocabulary,
    )
    k = table.size(50, 5)
    table.line(
        f"top_k {k} {count}x{vocabulary}",
        lambda i: ops.top_k(x, k),
        {"torch": lambda i: x.topk(k)},
        nbytes=4 * count * vocabulary,
    )


def samples(table: Table, count: int, vocabulary: int) -> None:
    x, u = table.randn(count, vocabulary, dtype="float32"), qkv.cuda.array(np.random.default_rng(0).random(count))
    for options in ({}, {"top_k": 50}, {"top_p": 0.9}, {"top_k": 50, "top_p": 0.9}):
        table.line(
            " ".join(["sample", *(f"{name} {value}" for name, value in options.items()), f"{count}x{vocabulary}"]),
            lambda i, options=options: with_own(lambda x: cuda_ops.sample(x, u, **options), x),
            {"torch": lambda i, options=options: sampled(x, **options)},
            nbytes=4 * count * vocabulary,
        )


def sampled(logits: Any, top_k: int | None = None, top_p: float = 1.0) -> Any:
    """What qkv's sample does, by torch."""
    if top_k is None and top_p == 1:
        return torch.multinomial(torch.softmax(logits, -1), 1)
    scores, places = logits.topk(top_k) if top_k else logits.sort(descending=True)
    p = torch.softmax(scores, -1)
    return places.gather(1, torch.multinomial(p.masked_fill(p.cumsum(-1) - p >= top_p, 0), 1))
