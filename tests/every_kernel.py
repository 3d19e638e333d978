"""A program that checks every kernel against the NumPy reference on the instruction set of its choice.

`python every_kernel.py EXPECTED...` ends with an error unless the machine offers exactly the expected instruction sets.
tests/test_qemu.py runs it on processors that this machine is not.
"""

from __future__ import annotations

import sys

import numpy as np
import qkv
from calls import calls, flat, in_place_calls
from checks import DTYPES, each_isa, eps, oracle
from qkv import reference
from qkv.ops import _cpu, angles, copy_blocks, linear_top_k, scaled_sum, top_k

# Kernel of csrc/cpu/kernels.inc: what reaches it.
USED_BY = {
    "gemm": {"matmul", "linear"},
    "pack_weight": {"pack_weight", "linear"},
    "gemm_quantized": {"linear"},
    "quantize": {"pack_weight"},
    "dequantize": {"embedding"},
    "attention": {"attention", "attention_varlen", "attention_paged", "scaled_dot_product_attention"},
    "paged_write": {"paged_write", "flash_attn_with_kvcache"},
    "copy_blocks": set(),
    "additive_attention": {"additive_attention"},
    "softmax": {"softmax", "log_softmax"},
    "norm": {"layer_norm", "rms_norm"},
    "activation": {"gelu", "relu", "silu", "quick_gelu", "tanh"},
    "scaled_sum": set(),
    "top_k": set(),
    "keep_best": set(),
    "embedding": {"embedding"},
    "rotary": {"rotary"},
    "rotary_angles": set(),
    "limits": set(),
}
TYPES = (("bfloat16", None), ("int8", None), ("int8", 32), ("int4", 32), ("int4", 128))
LIMITS = ("fma", "bf16_dot", "int8_dot", "read", "copy", "stream")


def check_ops() -> int:
    """Every op in every dtype, within a bound that a wrong lane or a wrong row misses by far; how many there were."""
    checked = 0
    for dtype in DTYPES.values():
        for op, arguments in calls(dtype).items():
            if not hasattr(reference, op):
                continue
            out, expected = flat(getattr(qkv, op)(**arguments)), flat(oracle(op, **arguments))
            for got, ref in zip(out, expected, strict=True):
                bound = 64 * eps(dtype) * max(1.0, float(np.abs(ref).max()))
                np.testing.assert_allclose(got.astype(np.float64), ref, rtol=0, atol=bound, err_msg=f"{op} {dtype}")
            checked += 1
        for op, arguments in in_place_calls(dtype).items():
            other = {name: np.copy(value) if name.endswith("_cache") else value for name, value in arguments.items()}
            out, expected = getattr(qkv, op)(**arguments), getattr(reference, op)(**other)
            results = [(arguments[name], other[name]) for name in ("k_cache", "v_cache")]
            for got, ref in [*results, (out, expected)] if out is not None else results:
                bound = 64 * eps(dtype) * max(1.0, float(np.abs(ref).max()))
                np.testing.assert_allclose(got.astype(np.float64), ref.astype(np.float64), rtol=0, atol=bound)
            checked += 1
    return checked


def check_packed() -> int:
    """linear and embedding over each packed type."""
    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal(shape).astype(np.float32) for shape in ((5, 100), (33, 100)))
    for kind, group in TYPES:
        weight, packed = reference.pack_weight(w, kind, group), qkv.pack_weight(w, kind, group)
        expected = reference.rounded_rows(x, kind, group) @ weight.wide().T
        np.testing.assert_allclose(qkv.linear(x, packed), expected, rtol=1e-4, atol=1e-4)
        np.testing.assert_array_equal(qkv.embedding(np.arange(33), packed), weight.dequantize())
    return len(TYPES)


def check_inner() -> int:
    """What models and decoding call and users do not."""
    x, other = np.random.default_rng(0).standard_normal((2, 5, 100)).astype(np.float32)
    np.testing.assert_array_equal(scaled_sum(x, 0.3, other), x * np.float32(0.3) + other)
    positions = np.array([0, 3, 70_000])
    expected = positions.astype(np.float32)[:, None, None] * x[0]
    np.testing.assert_array_equal(angles(positions, x[0]), expected)
    np.testing.assert_array_equal(top_k(x, 7)[1], np.argsort(-x, axis=1)[:, :7])
    best = linear_top_k(x, qkv.pack_weight(other, "float32"), None, 3)
    np.testing.assert_array_equal(best[1], np.argsort(-qkv.linear(x, other), axis=1)[:, :3])
    blocks = np.arange(5 * 16 * 3, dtype=np.int16).reshape(5, 16, 3)
    copied = blocks.copy()
    copied[[3, 4], :7] = blocks[[1, 0], :7]
    copy_blocks([blocks], [1, 0], [3, 4], 7)
    np.testing.assert_array_equal(blocks, copied)
    return 5


def main(expected: list[str]) -> int:
    assert qkv.isas() == expected, qkv.isas()
    assert _cpu.current_isa() == expected[-1]
    assert set(_cpu.kernel_names()) == set(USED_BY), "a kernel is new or gone: say here which op calls it"
    assert set().union(*USED_BY.values()) <= {*calls(), *in_place_calls()}
    for isa in each_isa():
        checked = check_ops() + check_packed() + check_inner()
        assert all(_cpu.limit(name, 1, 1) >= 0 for name in LIMITS)
        print(f"{isa}: {checked} calls agree with the reference")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
