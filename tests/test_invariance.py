"""A result does not depend, to the bit, on the other rows of the batch, on how many they are, or on the threads."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import qkv
from calls import calls, flat
from checks import DTYPES, FLOAT32, each_isa, normal, same_bits


def own(a: Any) -> Any:
    return np.ascontiguousarray(a)


@pytest.mark.parametrize("K, N", [(1, 1), (64, 48), (65, 100), (257, 33), (768, 130), (2049, 17)])
@pytest.mark.parametrize("weight", ["packed", "array", "matmul"])
def test_number_of_rows_of_a_product(K: int, N: int, weight: str, rng: np.random.Generator) -> None:
    x, w, bias = normal(rng, (33, K)), normal(rng, (N, K)), normal(rng, N)
    other = normal(rng, (33, N))
    for isa in each_isa():
        packed: Any = qkv.pack_weight(w) if weight == "packed" else w

        def product(rows: Any, packed: Any = packed) -> Any:
            return qkv.matmul(rows, w.T) if weight == "matmul" else qkv.linear(rows, packed, bias, activation="gelu")

        if weight != "matmul":
            both = qkv.linear(x, packed, bias, residual=other)
            for M in (1, 2, 5, 8, 9, 17, 32):
                assert same_bits(qkv.linear(x[:M], packed, bias, residual=other[:M]), own(both[:M])), f"{M} rows {isa}"
        whole = product(x)
        for M in range(1, 34):
            assert same_bits(product(x[:M]), own(whole[:M])), f"{M} rows {isa}"
            assert same_bits(product(x[M - 1 : M]), own(whole[M - 1 : M])), f"row {M - 1} alone {isa}"
        assert same_bits(product(x[0]), whole[0]), "a vector is a matrix of one row"
        assert same_bits(product(np.concatenate([x] * 20))[-33:], whole)


def test_an_array_as_weight_is_a_packed_weight(dtype: np.dtype[Any], rng: np.random.Generator) -> None:
    for M, K, N in [(1, 65, 33), (5, 300, 100), (40, 768, 70)]:
        x, w = normal(rng, (M, K), dtype), normal(rng, (N, K), dtype)
        for _ in each_isa():
            assert same_bits(qkv.linear(x, w), qkv.linear(x, qkv.pack_weight(w)))


def test_batches_of_matmul(dtype: np.dtype[Any], rng: np.random.Generator) -> None:
    a, b = normal(rng, (4, 3, 17, 65), dtype), normal(rng, (3, 65, 31), dtype)
    for _ in each_isa():
        whole = qkv.matmul(a, b)
        for i in range(4):
            for j in range(3):
                assert same_bits(qkv.matmul(a[i, j], b[j]), own(whole[i, j]))


@pytest.mark.parametrize(
    "op", ["softmax", "log_softmax", "layer_norm", "rms_norm", "gelu", "relu", "silu", "quick_gelu", "tanh"]
)
def test_rows_of_an_op(op: str, dtype: np.dtype[Any], rng: np.random.Generator) -> None:
    for n in (1, 5, 16, 33, 100, 769):
        x = normal(rng, (70, n), dtype, 2)
        for _ in each_isa():
            whole = getattr(qkv, op)(x)
            for start, stop in [(0, 1), (3, 4), (10, 25), (69, 70)]:
                assert same_bits(getattr(qkv, op)(x[start:stop]), own(whole[start:stop])), f"{n} {start}:{stop}"
            assert same_bits(getattr(qkv, op)(x[7]), own(whole[7]))


def test_axis_does_not_matter(rng: np.random.Generator) -> None:
    """Softmax along a strided axis adds in the same order as along the last one."""
    x = normal(rng, (70, 33), FLOAT32, 2)
    for _ in each_isa():
        assert same_bits(qkv.softmax(own(x.T), axis=0), own(qkv.softmax(x).T))


def test_rotary_and_embedding_by_row(dtype: np.dtype[Any], rng: np.random.Generator) -> None:
    x, positions = normal(rng, (40, 3, 32), dtype), rng.integers(0, 5000, 40)
    for _ in each_isa():
        for interleaved in (False, True):
            whole = qkv.rotary(x, positions, interleaved=interleaved)
            for i in (0, 7, 39):
                one = qkv.rotary(x[i : i + 1], positions[i : i + 1], interleaved=interleaved)
                assert same_bits(one, own(whole[i : i + 1]))


OPTIONS: list[dict[str, Any]] = [
    {},
    {"causal": True},
    {"window": (40, 3)},
    {"softcap": 5.0},
    {"alibi_slopes": np.array([0.1, 0.2, 0.3, 0.4], np.float32)},
    {"sinks": np.array([0.1, -2, 3, 0.4], np.float32)},
    {"relative_bias": np.linspace(-1, 1, 4 * 17, dtype=np.float32).reshape(4, 17)},
]


def attend(q: Any, k: Any, v: Any, **options: Any) -> list[Any]:
    return list(qkv.attention(q, k, v, return_lse=True, return_weights=True, **options))


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: ",".join(o) or "plain")
def test_rows_of_attention(options: dict[str, Any], dtype: np.dtype[Any], rng: np.random.Generator) -> None:
    """Batch entries, heads, and the last n queries alone: the same bits, with and without the weights."""
    for S, T, D in [(37, 37, 16), (5, 300, 24), (70, 200, 64)]:
        q, k, v = normal(rng, (3, 4, S, D), dtype), normal(rng, (3, 2, T, D), dtype), normal(rng, (3, 2, T, D), dtype)
        for _ in each_isa():
            whole = attend(q, k, v, **options)
            plain = qkv.attention(q, k, v, **options)
            for b in range(3):
                one = attend(q[b : b + 1], k[b : b + 1], v[b : b + 1], **options)
                assert all(same_bits(o, own(w[b : b + 1])) for o, w in zip(one, whole, strict=True))
                assert same_bits(
                    qkv.attention(q[b : b + 1], k[b : b + 1], v[b : b + 1], **options), own(plain[b : b + 1])
                )
            # Positions count from the end, so the last n queries stand where they stood.
            for n in (1, 2, 3, 5, 16, 33):
                if n <= S:
                    part = attend(q[:, :, -n:], k, v, **options)
                    assert all(same_bits(p, own(w[:, :, -n:])) for p, w in zip(part, whole, strict=True)), n
                    assert same_bits(qkv.attention(q[:, :, -n:], k, v, **options), own(plain[:, :, -n:])), n
            heads = {name: value[2:] for name, value in options.items() if isinstance(value, np.ndarray)}
            two = attend(q[:, 2:], k[:, 1:], v[:, 1:], **{**options, **heads})
            assert all(same_bits(t, own(w[:, 2:])) for t, w in zip(two, whole, strict=True))


@pytest.mark.parametrize("precision", ["highest", "bf16"])
@pytest.mark.parametrize("options", [{}, OPTIONS[5], {"window": (700, 0)}], ids=lambda o: ",".join(o) or "plain")
def test_rows_of_attention_over_many_splits(
    options: dict[str, Any], precision: str, dtype: np.dtype[Any], rng: np.random.Generator
) -> None:
    """Keys are summed in splits of fixed places: by one thread for many rows, by many threads for a few."""
    q, k, v = (normal(rng, shape, dtype) for shape in [(2, 4, 70, 16), (2, 2, 1400, 16), (2, 2, 1400, 16)])
    for _ in each_isa():
        whole = qkv.attention(q, k, v, causal=True, precision=precision, **options)
        for threads in (1, 3):
            qkv.set_num_threads(threads)
            for n in (1, 2, 5, 31):
                part = qkv.attention(q[:, :, -n:], k, v, causal=True, precision=precision, **options)
                assert same_bits(part, own(whole[:, :, -n:])), f"{n} rows, {threads} threads"
            for n in (510, 511, 512, 513, 1023, 1025):
                rows = {name: value for name, value in options.items() if name != "sinks"}
                rows |= {"sinks": options["sinks"][:2]} if "sinks" in options else {}
                rows |= {"precision": precision}
                one = qkv.attention(q[:1, :2, -1:], k[:1, :1, :n], v[:1, :1, :n], **rows)
                many = qkv.attention(q[:1, :2], k[:1, :1], v[:1, :1], kv_lengths=np.array([n]), **rows)
                assert same_bits(one, own(many[:, :, -1:])), f"{n} keys, {threads} threads"


def test_any_query_alone(dtype: np.dtype[Any], rng: np.random.Generator) -> None:
    q, k, v = (
        normal(rng, (1, 2, 70, 16), dtype),
        normal(rng, (1, 2, 300, 16), dtype),
        normal(rng, (1, 2, 300, 16), dtype),
    )
    for _ in each_isa():
        whole = qkv.attention(q, k, v)
        for start, stop in [(0, 1), (1, 2), (3, 20), (31, 33), (69, 70)]:
            assert same_bits(qkv.attention(q[:, :, start:stop], k, v), own(whole[:, :, start:stop]))


def test_keys_that_are_excluded_do_not_count(dtype: np.dtype[Any], rng: np.random.Generator) -> None:
    """Chunks of a prefill equal one prefill, and keys behind kv_lengths equal keys that are not there."""
    q, k, v = (normal(rng, (2, 2, 400, 16), dtype) for _ in range(3))
    for _ in each_isa():
        whole = qkv.attention(q, k, v, causal=True)
        edges = [0, 1, 2, 17, 64, 65, 130, 255, 257, 400]
        for start, stop in pairwise(edges):
            chunk = qkv.attention(q[:, :, start:stop], k[:, :, :stop], v[:, :, :stop], causal=True)
            assert same_bits(chunk, own(whole[:, :, start:stop])), f"{start}:{stop}"
        for n in (1, 16, 33, 64, 100, 255, 256, 257, 399):
            lengths = qkv.attention(q[:, :, :5], k, v, kv_lengths=np.array([n, n]))
            assert same_bits(lengths, qkv.attention(q[:, :, :5], k[:, :, :n], v[:, :, :n])), n


def test_sums_that_vanish_have_one_sign() -> None:
    """Sums below the least normal number, of either sign, of which products in bfloat16 may keep but the sign."""
    tiny = np.float32(2.0**-126)
    q = k = np.zeros((1, 1, 128, 32), np.float32)
    for first, second in ((1.5, -1.75), (1.75, -1.5), (-1.5, 1.75)):
        v = np.zeros_like(q)
        v[:, :, 0], v[:, :, 32] = first * tiny, second * tiny
        for _ in each_isa():
            whole = qkv.attention(q, k, v, causal=True, precision="bf16")
            for i in (31, 32, 60, 63, 127):
                one = qkv.attention(q[:, :, :1], k[:, :, : i + 1], v[:, :, : i + 1], causal=True, precision="bf16")
                assert same_bits(one[:, :, 0], whole[:, :, i]), i
    rng = np.random.default_rng(1)
    q, k, v = (rng.standard_normal(shape) for shape in [(1, 4, 21, 32), (1, 1, 300, 32), (1, 1, 300, 112)])
    k[:, :, 256:] *= 6
    q, k, v = (x.astype(np.float32) for x in (4 * q, k, v * 2.0**-124))
    for _ in each_isa():
        whole = qkv.attention(q, k, v, causal=True, precision="bf16")
        assert same_bits(qkv.attention(q[:, :, -4:], k, v, causal=True, precision="bf16"), own(whole[:, :, -4:]))


@pytest.mark.parametrize("D, width", [(64, 64), (96, 48)])
@pytest.mark.parametrize("size", [1.0, 2.0**-124])
def test_a_few_rows_in_bfloat16(D: int, width: int, size: float, rng: np.random.Generator) -> None:
    """Where keys and values are read as they lie; with a size of values whose sums are often less than normal."""
    bf16 = DTYPES["bfloat16"]
    k, v = normal(rng, (2, 2, 300, D), bf16), (normal(rng, (2, 2, 300, width)) * size).astype(bf16)
    for group in (1, 2, 3):
        H = 2 * group
        q = normal(rng, (2, H, 21, D), bf16)
        choices: list[dict[str, Any]] = [
            {},
            {"mask": rng.random((2, 1, 1, 300)) < 0.9, "softcap": 2.0},
            {"kv_lengths": np.array([37, 290])},
            {"alibi_slopes": np.linspace(0, 0.3, H, dtype=np.float32)},
            {"bias": normal(rng, (H, 21, 300))},
            {"mask": rng.random((21, 300)) < 0.9},
        ]
        for isa in each_isa():
            for options in choices:
                whole = qkv.attention(q, k, v, precision="bf16", causal="top_left", return_lse=True, **options)
                seen = qkv.attention(q, k, v, precision="bf16", return_lse=True, **options)
                for n in (1, 2, 3, 4, 9):
                    rows = {
                        name: x[..., :n, :] if x.shape[-2:] == (21, 300) else x
                        for name, x in options.items()
                        if name in ("bias", "mask")
                    }
                    given = {**options, **rows, "precision": "bf16", "return_lse": True}
                    part = qkv.attention(q[:, :, :n], k, v, causal="top_left", **given)
                    assert all(same_bits(p, own(w[:, :, :n])) for p, w in zip(part, whole, strict=True)), (isa, n)
                    if "alibi_slopes" not in options:  # whose positions count from the end
                        part = qkv.attention(q[:, :, :n], k, v, **given)
                        assert all(same_bits(p, own(w[:, :, :n])) for p, w in zip(part, seen, strict=True)), (isa, n)


def test_rows_of_additive_attention(rng: np.random.Generator) -> None:
    q, k, v = normal(rng, (3, 40, 8)), normal(rng, (3, 300, 6)), normal(rng, (3, 300, 5))
    w = normal(rng, (20, 8)), normal(rng, (20, 6)), normal(rng, 20)
    for _ in each_isa():
        whole = qkv.additive_attention(q, k, v, *w)
        for b, i in [(0, 0), (1, 7), (2, 39)]:
            one = qkv.additive_attention(q[b, i : i + 1], k[b], v[b], *w)
            assert same_bits(one, own(whole[b, i : i + 1]))


@pytest.mark.parametrize("op", calls())
def test_number_of_threads(op: str, dtype: np.dtype[Any]) -> None:
    arguments = calls(dtype)[op]
    for _ in each_isa():
        qkv.set_num_threads(1)
        alone = flat(getattr(qkv, op)(**arguments))
        for n in (2, 3, 8):
            qkv.set_num_threads(n)
            out = flat(getattr(qkv, op)(**arguments))
            assert all(same_bits(a, b) for a, b in zip(out, alone, strict=True)), f"{n} threads"


def test_number_of_threads_on_large_arrays(rng: np.random.Generator) -> None:
    x, w = normal(rng, (300, 700)), normal(rng, (500, 700))
    q, k, v = (normal(rng, (2, 3, 400, 32)) for _ in range(3))
    long_q, long_k = normal(rng, (1, 1, 1, 64)), normal(rng, (1, 1, 20_000, 64))
    blocks = long_k.reshape(1250, 16, 1, 64)
    table, codes = rng.permutation(1250)[None], (20 * blocks).astype(np.int8)
    scales = {name: np.full((1250, 16, 1), 0.05, np.float32) for name in ("k_scale", "v_scale")}
    ops: list[Any] = [
        lambda: qkv.linear(x, w, activation="gelu"),
        lambda: qkv.matmul(x, w.T),
        lambda: qkv.matmul(x[:1], w.T),
        lambda: qkv.softmax(x),
        lambda: qkv.softmax(x, axis=0),
        lambda: qkv.layer_norm(x),
        lambda: qkv.gelu(x),
        lambda: qkv.attention(q, k, v, causal=True),
        lambda: qkv.attention(long_q, long_k, long_k),
        lambda: qkv.attention_paged(long_q[0], blocks, blocks, table, [20_000]),
        lambda: qkv.attention_paged(long_q[0], codes, codes, table, [20_000], **scales),
    ]
    for _ in each_isa():
        for op in ops:
            qkv.set_num_threads(1)
            alone = op()
            for n in (2, 3, 7):
                qkv.set_num_threads(n)
                for _ in range(3):
                    assert same_bits(op(), alone)
