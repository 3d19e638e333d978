#!/usr/bin/env python3
"""Every kernel, in one of its shapes at least, on little work, for compute-sanitizer: the calls of
tests/test_cuda_left_out.py and those that reach the others. tests/test_bench_cuda.py holds it to that.

python tests/cuda/small_calls.py [NAME...]      # those calls only
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import qkv
from qkv import cuda_ops

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import test_cuda_left_out as small
from emulated import drawn, on_path, packed
from test_cuda_left_out import F32, by

ENDS = np.array([0, 70, 75, 300], np.int32)


def varlen() -> Any:
    return qkv.attention_varlen(drawn(300, 2, 64), drawn(300, 1, 64), drawn(300, 1, 64), ENDS, ENDS, causal=True)


def copied_blocks() -> Any:
    cache = drawn(4, 16, 2, 8)
    cuda_ops.copy_blocks([cache], [0, 1], [2, 3], 5)
    return cache


def written() -> Any:
    cache, new = drawn(70, 16, 1, 8), drawn(1100, 1, 8)  # so many that their slots are looked through first
    qkv.paged_write(new, new, cache, drawn(70, 16, 1, 8), qkv.cuda.array(np.arange(1100)))
    return cache


def with_kvcache() -> Any:
    """Slots of new tokens, the rotation of flash-attn's table, the new keys and values stored."""
    new, angles = (drawn(2, 3, 2, 64) for _ in range(3)), (drawn(64, 16) for _ in range(2))
    q, k, v = new
    lengths = qkv.cuda.array(np.array([5, 20], np.int32))
    return qkv.flash_attn_with_kvcache(q, drawn(2, 40, 2, 64), drawn(2, 40, 2, 64), k, v, *angles, lengths, causal=True)


def advanced() -> Any:
    x = qkv.cuda.array(np.arange(5))
    cuda_ops.advance(x)
    return x


def hopper(call: Callable[[], Any]) -> Callable[[], Any]:
    return on_path("hopper", call)


OTHERS: dict[str, Callable[[], Any]] = {
    "softmax_held": lambda: qkv.softmax(drawn(5, 256)),
    "softmax_across": lambda: qkv.softmax(drawn(50, 40), axis=0),
    "softmax_parts": lambda: qkv.ops.log_softmax_parts(drawn(2, 9000, dtype=F32))[1],
    "softmax_parts_held": lambda: qkv.ops.log_softmax_parts(drawn(5, 256))[1],
    "layer_norm_long": lambda: qkv.layer_norm(drawn(1, 70000)),
    "gelu": lambda: qkv.gelu(drawn(5, 777)),
    "gelu_strided": lambda: qkv.gelu(drawn(5, 777)[:, ::2]),
    "scaled_sum": lambda: qkv.ops.scaled_sum(drawn(5, 768), 0.5, drawn(768)),
    "scaled_sum_odd": lambda: qkv.ops.scaled_sum(drawn(5, 777), 0.5, drawn(777)),
    "transpose": lambda: drawn(50, 72).T.copy(),
    "embedding": lambda: qkv.embedding(qkv.cuda.array(np.arange(9)), drawn(20, 64)),
    "embedding_int8": lambda: qkv.embedding(qkv.cuda.array(np.arange(9)), packed("int8", 136, 520)),
    "advance": advanced,
    "matmul_1": lambda: qkv.matmul(drawn(1, 520), drawn(520, 136)),
    "matmul_1_f32": lambda: qkv.matmul(drawn(1, 520, dtype=F32), drawn(520, 136, dtype=F32)),
    **{
        f"tensor_{s}": by(f"tensor_{s}", lambda: qkv.linear(drawn(150, 96), drawn(136, 96))) for s in ("large", "small")
    },
    "int8_padded": lambda: qkv.linear(drawn(40, 500), packed("int8", 136, 500)),
    "int4_parts": lambda: qkv.cuda.array(packed("int4", 136, 512).parts()[4]),
    "paged_write": written,
    "copy_blocks": copied_blocks,
    "attention_varlen": on_path("portable", varlen),
    "attention_with_kvcache": with_kvcache,
    "attention_hopper_varlen": hopper(varlen),
    "attention_hopper_96": hopper(lambda: qkv.attention(*(drawn(1, 2, 200, 96) for _ in range(3)), causal=True)),
    "attention_hopper_256": hopper(lambda: qkv.attention(*(drawn(1, 1, 200, 256) for _ in range(3)))),
}


def main(names: list[str]) -> int:
    calls = {**small.CALLS, **small.HOPPER, **OTHERS}
    for name in names or calls:
        calls[name]().numpy()
        print(name, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
