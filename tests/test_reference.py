"""reference.py against hand-computed values, the math module, and loops over Python floats."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
from qkv import reference as ref
from qkv.special import erf, erfc

BF16 = ml_dtypes.bfloat16


def normal(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


# ---- erf, elements ----------------------------------------------------------------------------------------


def test_erf_and_erfc_against_math():
    x = np.concatenate([np.linspace(-7, 26, 20001), 10.0 ** np.linspace(-300, 1, 500), [0.46875, 4.0, -4.0]])
    np.testing.assert_allclose(erf(x), [math.erf(t) for t in x], rtol=5e-16, atol=0)
    np.testing.assert_allclose(erfc(x), [math.erfc(t) for t in x], rtol=1e-15, atol=0)
    np.testing.assert_array_equal(erf([np.inf, -np.inf, np.nan]), [1, -1, np.nan])
    np.testing.assert_array_equal(erfc([np.inf, -np.inf, np.nan]), [0, 2, np.nan])


def sigmoid(t):
    return 1 / (1 + math.exp(-t))


ELEMENTS = {
    "gelu": lambda t: t / 2 * math.erfc(-t / math.sqrt(2)),
    "relu": lambda t: max(t, 0.0),
    "silu": lambda t: t * sigmoid(t),
    "quick_gelu": lambda t: t * sigmoid(1.702 * t),
    "tanh": math.tanh,
}


@pytest.mark.parametrize("name", ELEMENTS)
def test_elements(name):
    x = np.linspace(-12, 12, 997)
    op = getattr(ref, name)
    np.testing.assert_allclose(op(x), [ELEMENTS[name](t) for t in x], rtol=1e-13, atol=0)
    assert np.isnan(op(np.array([np.nan, 1.0]))).tolist() == [True, False]
    assert op(np.float32([[1.0, 2.0]])).dtype == np.float32
    for bad in ([1, 2], [True], ["a"], [None]):
        with pytest.raises(TypeError, match=f"{name}: x must be"):
            op(bad)


def test_gelu_tanh_and_infinities():
    def hand(t):
        return t / 2 * (1 + math.tanh(math.sqrt(2 / math.pi) * (t + 0.044715 * t**3)))

    x = np.linspace(-4, 8, 301)
    np.testing.assert_allclose(ref.gelu(x, "tanh"), [hand(t) for t in x], rtol=1e-11)
    assert ref.gelu(np.array(1.0)) == pytest.approx(0.8413447460685429, abs=1e-16)
    for form in ("none", "tanh"):  # as torch: inf * 0
        np.testing.assert_array_equal(ref.gelu([np.inf, -np.inf], form), [np.inf, np.nan])
    with pytest.raises(ValueError, match="approximate"):
        ref.gelu([1.0], "fast")


# ---- rounding ---------------------------------------------------------------------------------------------


def test_one_rounding_to_each_dtype():
    # Just above the middle of two bfloat16 neighbours: by way of float32 the tie would go down to 1.
    x = np.array([[1.0, 2.0**-8, 2.0**-40]])
    one = np.ones((3, 1))
    wide = ref.rounded(x @ one, np.dtype(BF16))
    assert float(wide[0, 0]) == 1 + 2.0**-7
    values = np.array([0.0, -0.0, 1e39, -1e39, np.inf, np.nan, 1e-45, -3.0, 1 + 2.0**-8, 1 + 3 * 2.0**-8])
    expected = np.array([0.0, -0.0, np.inf, -np.inf, np.inf, np.nan, 0.0, -3.0, 1.0, 1 + 2.0**-6])
    got = ref.rounded(values, np.dtype(BF16)).astype(np.float64)
    np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(np.signbit(got[:2]), [False, True])


@pytest.mark.parametrize("dtype", [np.float16, BF16, np.float32, np.float64])
def test_dtype_in_is_dtype_out(dtype):
    x = normal(3, 4).astype(dtype)
    q = normal(1, 2, 3, 4).astype(dtype)
    out, lse, weights = ref.attention(q, q, q, return_lse=True, return_weights=True)
    assert (out.dtype, weights.dtype) == (dtype, dtype)
    assert lse.dtype == (np.float64 if dtype == np.float64 else np.float32)
    for result in (
        ref.softmax(x),
        ref.layer_norm(x),
        ref.rotary(x, [0, 1, 2]),
        ref.matmul(x, x.T),
        ref.gelu(x),
    ):
        assert result.dtype == dtype and result.flags.c_contiguous and result.flags.writeable
    assert ref.linear(x, normal(5, 4).astype(np.float32)).dtype == dtype
    assert ref.linear(x, normal(5, 4)).dtype == np.float64


def test_mixed_dtypes_are_refused():
    q = normal(1, 1, 2, 4).astype(np.float32)
    with pytest.raises(TypeError, match="attention: k is float16, but q is float32"):
        ref.attention(q, q.astype(np.float16), q)
    assert ref.attention(q, q.astype(np.float64), q).dtype == np.float64


# ---- matrices, rows ---------------------------------------------------------------------------------------


def test_linear_and_packed_weight():
    x, w, b = normal(2, 3, 4), normal(5, 4), normal(5)
    gate, residual = normal(2, 3, 5), normal(2, 3, 5, seed=1)
    acts = {**ELEMENTS, "gelu_tanh": lambda t: float(ref.gelu(t, "tanh")), None: float}
    for name, f in acts.items():
        plain = np.array([[[f(sum(x[i, j] * w[o]) + b[o]) for o in range(5)] for j in range(3)] for i in range(2)])
        got = ref.linear(x, w, b, activation=name, gate=gate, residual=residual)
        np.testing.assert_allclose(got, plain * gate + residual, rtol=1e-12, atol=1e-14)
    packed = ref.pack_weight(w)
    assert (packed.shape, packed.dtype, packed.nbytes) == ((5, 4), "float32", 80)
    np.testing.assert_array_equal(packed.dequantize(), w.astype(np.float32))
    np.testing.assert_array_equal(ref.linear(x, packed), ref.linear(x, w.astype(np.float32)))
    np.testing.assert_array_equal(ref.embedding([[1, 4]], packed), w.astype(np.float32)[[[1, 4]]])
    for bad in (
        {"bias": normal(1)},
        {"gate": normal(4)},
        {"activation": "swish"},
        {"residual": normal(2, 2, 5)},
    ):
        with pytest.raises(ValueError, match="linear: "):
            ref.linear(x, w, **bad)
    for bad in ({"dtype": "int3"}, {"group_size": 32}):
        with pytest.raises(ValueError, match="float32"):
            ref.pack_weight(w, **bad)


@pytest.mark.parametrize(("dtype", "group"), [("bfloat16", None), ("int8", None), ("int8", 32), ("int4", 64)])
@pytest.mark.parametrize("shape", [(0, 64), (3, 0), (0, 0)])
def test_weights_and_rows_without_elements(shape, dtype, group):
    assert ref.pack_weight(np.zeros(shape), dtype, group).dequantize().shape == shape
    assert ref.rounded_rows(np.zeros(shape), dtype, group).shape == shape


def test_embedding_ids():
    table = normal(4, 2).astype(BF16)
    np.testing.assert_array_equal(ref.embedding(np.array([[3, 0]], np.uint8), table), table[[[3, 0]]])
    assert ref.embedding(np.zeros((0, 2), np.int32), table).shape == (0, 2, 2)
    for bad in ([4], [-1]):
        with pytest.raises(ValueError, match=rf"id {bad[0]} is outside 0\.\.3"):
            ref.embedding(bad, table)
    with pytest.raises(TypeError, match="ids must be integers"):
        ref.embedding([0.0], table)


def test_softmax_and_norms():
    x = normal(3, 4)
    e = np.array([[math.exp(t) for t in row] for row in x])
    for axis, total in ((-1, e.sum(1, keepdims=True)), (0, e.sum(0))):
        np.testing.assert_allclose(ref.softmax(x, axis), e / total, rtol=1e-14)
        np.testing.assert_allclose(ref.log_softmax(x, axis), np.log(e / total), rtol=1e-13)
    np.testing.assert_allclose(ref.log_softmax([[0.0, 1000.0]]), [[-1000.0, 0.0]])
    assert np.isnan(ref.softmax([[-np.inf, -np.inf]])).all() and ref.softmax(np.zeros((2, 0))).shape == (2, 0)
    np.testing.assert_allclose(ref.layer_norm([[1.0, 3.0]], [2.0, 3.0], [1.0, 0.0], eps=3.0), [[0.0, 1.5]])
    np.testing.assert_allclose(ref.rms_norm([[3.0, 4.0]], [1.0, 2.0], eps=3.5), [[0.75, 2.0]])
    for op in (ref.layer_norm, ref.rms_norm):
        normed, total = op(x, residual=x[::-1])
        np.testing.assert_array_equal(total, x + x[::-1])
        np.testing.assert_array_equal(normed, op(total))
        with pytest.raises(ValueError, match="weight must have shape"):
            op(x, np.ones(1))
