"""Every op with every argument spoiled: it answers rightly or says in words what is wrong, and the process lives."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import qkv
from calls import CACHE, FLOAT, MASK, PARAMETER, arguments, calls, flat, kind_of
from checks import (
    BFLOAT16,
    DTYPES,
    FLOAT16,
    FLOAT32,
    each_isa,
    run_python,
    same_bits,
    strided,
    unaligned,
    under_sanitizer,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from qkv import reference

EVERY = list(arguments())
OPS = list(calls())
REQUIRED = {a for _, a, kind in EVERY if kind in (FLOAT, CACHE)} - {"gate", "residual"}
REQUIRED |= {"block_tables", "ids", "positions", "cu_seqlens_q", "cu_seqlens_k", "w_q", "w_k", "w_v"}
EACH_ARGUMENT = pytest.mark.parametrize("op, argument, kind", EVERY, ids=[f"{op}-{a}" for op, a, _ in EVERY])


def run(op: str, given_arguments: dict[str, Any]) -> list[Any]:
    return flat(getattr(qkv, op)(**given_arguments))


def named(op: str) -> str:
    """How a message begins. flash_attn_func and its like may speak as the op that they are another name for."""
    other = {"flash_attn_func": "attention", "flash_attn_varlen_func": "attention_varlen"}.get(op, op)
    return rf"^({op}|{other}): "


def equal(a: list[Any], b: list[Any]) -> bool:
    return len(a) == len(b) and all(same_bits(x, y) for x, y in zip(a, b, strict=True))


def right_or_refused(op: str, spoiled: dict[str, Any], expected: list[Any]) -> None:
    try:
        out = run(op, spoiled)
    except (TypeError, ValueError) as error:
        assert re.match(named(op), str(error)), error
    else:
        assert equal(out, expected)


# ---- dtypes ------------------------------------------------------------------------------------------------------

WRONG_FLOATS = [
    np.int8,
    np.int32,
    np.int64,
    np.uint16,
    np.bool_,
    np.complex64,
    np.complex128,
    np.longdouble,
    object,
]
WRONG_FLOATS += ["S4", "U4", "V4", "M8[s]", "m8[s]", [("re", np.float32), ("im", np.float32)]]
WRONG_INTEGERS = [np.float32, np.float64, np.bool_, np.complex64, object, "U4", "M8[s]", "V4"]
WRONG_MASKS = [np.int32, np.uint8, np.complex64, object, "U4", "V1"]


@EACH_ARGUMENT
def test_wrong_dtypes(op: str, argument: str, kind: str) -> None:
    given_arguments = calls()[op]
    shape = given_arguments[argument].shape
    wrong = WRONG_FLOATS if kind in (FLOAT, CACHE, PARAMETER) else WRONG_MASKS if kind == MASK else WRONG_INTEGERS
    if argument == "positions":  # rotary takes fractional ones too
        wrong = [w for w in wrong if w not in (np.float32, np.float64)]
    for dtype in wrong:
        with pytest.raises(TypeError, match=rf"{named(op)}.*{argument}"):
            run(op, {**given_arguments, argument: np.zeros(shape, dtype)})


@EACH_ARGUMENT
def test_things_that_are_no_arrays(op: str, argument: str, kind: str) -> None:
    given_arguments = calls()[op]
    things: list[Any] = ["text", b"bytes", {"a": 1}, {1, 2}, object(), print, ..., 1j, iter([1.0])]
    required = argument in REQUIRED or (op, argument) == ("linear", "weight")
    if required and (op, argument) != ("attention_paged", "cu_seqlens_q"):
        things.append(None)
    for thing in things:
        with pytest.raises(TypeError, match=rf"{named(op)}.*{argument}"):
            run(op, {**given_arguments, argument: thing})
    for listed in ([object()], ["a"], [[1.0, 2.0], [3.0]], [None]):  # by NumPy's rules arrays, if strange ones
        with pytest.raises((TypeError, ValueError)):
            run(op, {**given_arguments, argument: listed})


@pytest.mark.parametrize("op", OPS)
def test_dtypes_that_differ(op: str) -> None:
    """The main arrays of a call share a dtype; parameters may be float32 next to half-width arrays."""
    names = [a for o, a, kind in EVERY if o == op and kind == FLOAT]
    for one, other in ((FLOAT32, FLOAT16), (FLOAT16, BFLOAT16), (BFLOAT16, FLOAT32)):
        for name in names[1:] if len(names) > 1 else []:
            with pytest.raises(TypeError, match=rf"{named(op)}.*{name}"):
                run(op, {**calls(one)[op], name: calls(other)[op][name]})
    parameters = [a for o, a, kind in EVERY if o == op and kind == PARAMETER]
    for name in parameters:
        single = calls(FLOAT32)[op][name]
        half = {**calls(FLOAT16)[op], name: single}
        assert flat(getattr(qkv, op)(**half))[0].dtype == FLOAT16
        with pytest.raises(TypeError, match=rf"{named(op)}.*{name}"):
            run(op, {**calls(FLOAT32)[op], name: single.astype(FLOAT16)})


@pytest.mark.parametrize("op", OPS)
def test_float64_and_lists_are_served_in_float64(op: str) -> None:
    if op == "pack_weight":
        pytest.skip("packs to float32, whatever comes")
    wide = calls(np.float64)[op]
    out = flat(getattr(qkv, op)(**wide))
    expected = flat(getattr(reference, op)(**wide))
    assert all(a.dtype == np.float64 for a in out)
    assert equal(out, expected)
    for argument in wide:
        listed = {**wide, argument: np.asarray(wide[argument]).tolist()}
        assert equal(flat(getattr(qkv, op)(**listed)), expected), argument


# ---- memory ------------------------------------------------------------------------------------------------------


@EACH_ARGUMENT
def test_memory_orders(op: str, argument: str, kind: str) -> None:
    for dtype in DTYPES.values():
        given_arguments = calls(dtype)[op]
        for _ in each_isa():
            expected = run(op, given_arguments)
            for name, view in strided(given_arguments[argument]).items():
                assert equal(run(op, {**given_arguments, argument: view}), expected), name


@EACH_ARGUMENT
def test_unaligned_and_byte_swapped(op: str, argument: str, kind: str) -> None:
    for dtype in DTYPES.values():
        given_arguments = calls(dtype)[op]
        value, expected = given_arguments[argument], run(op, given_arguments)
        if value.itemsize > 1:
            right_or_refused(op, {**given_arguments, argument: unaligned(value)}, expected)
        if value.itemsize > 1 and value.dtype != BFLOAT16:
            swapped = value.astype(value.dtype.newbyteorder())
            right_or_refused(op, {**given_arguments, argument: swapped}, expected)


@EACH_ARGUMENT
def test_field_of_a_record(op: str, argument: str, kind: str) -> None:
    """Strides that are no multiple of the item size, and ones that are but leave gaps."""
    given_arguments = calls()[op]
    value, expected = given_arguments[argument], run(op, given_arguments)
    for padding in (1, value.itemsize):
        records = np.zeros(value.shape, [("pad", f"V{padding}"), ("value", value.dtype)])
        records["value"] = value
        right_or_refused(op, {**given_arguments, argument: records["value"]}, expected)


@pytest.mark.parametrize("op", OPS)
def test_inputs_may_be_read_only_and_are_left_alone(op: str) -> None:
    for dtype in DTYPES.values():
        given_arguments = calls(dtype)[op]
        before = {name: np.copy(value) for name, value in given_arguments.items()}
        expected = run(op, given_arguments)
        for value in given_arguments.values():
            if isinstance(value, np.ndarray):
                value.flags.writeable = False
        out = run(op, given_arguments)
        assert equal(out, expected)
        for name, value in given_arguments.items():
            np.testing.assert_array_equal(np.asarray(value), before[name])
            if isinstance(value, np.ndarray):
                assert not any(np.shares_memory(a, value) for a in out)
        assert all(a.flags.writeable and a.flags.c_contiguous for a in out)


@pytest.mark.parametrize("op", OPS)
def test_memory_mapped_arrays(op: str, tmp_path: Any) -> None:
    given_arguments = calls()[op]
    expected = run(op, given_arguments)
    for name, value in given_arguments.items():
        if kind_of(name, value):
            np.save(tmp_path / f"{name}.npy", value)
            given_arguments[name] = np.load(tmp_path / f"{name}.npy", mmap_mode="r")
    assert equal(run(op, given_arguments), expected)


def test_one_array_for_several_arguments() -> None:
    """Arguments may be the same memory, since none is written."""
    x = np.random.default_rng(0).standard_normal((5, 5)).astype(np.float32)
    c = [x.copy() for _ in range(4)]
    assert same_bits(qkv.matmul(x, x), qkv.matmul(*c[:2]))
    assert same_bits(qkv.linear(x, x, gate=x, residual=x), qkv.linear(*c[:2], gate=c[2], residual=c[3]))
    x, c = x.reshape(1, 1, 5, 5), [a.reshape(1, 1, 5, 5) for a in c]
    assert same_bits(qkv.attention(x, x, x, bias=x), qkv.attention(*c[:3], bias=c[3]))


def test_attention_out_that_overlaps_an_input_is_right_or_refused() -> None:
    rng = np.random.default_rng(0)
    for which in range(3):
        memory = rng.standard_normal(3 * 40 * 16 + 16).astype(np.float32)
        parts = [memory[i * 640 : (i + 1) * 640].reshape(1, 1, 40, 16) for i in range(3)]
        expected = qkv.attention(*(p.copy() for p in parts), causal=True)
        try:
            out = qkv.attention(*parts, causal=True, out=parts[which])
        except ValueError as error:
            assert "attention: out" in str(error)
        else:
            assert same_bits(out, expected)


# ---- devices -----------------------------------------------------------------------------------------------------


class OnAnotherDevice:
    """What a CUDA tensor looks like from outside, without any CUDA."""

    def __init__(self, device: tuple[int, int]) -> None:
        self.device = device

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device

    def __dlpack__(self, **_: Any) -> Any:
        raise BufferError("cannot export")


class OnlyCuda:
    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {"shape": (9, 21), "typestr": "<f4", "data": (4096, True), "version": 3}


class Unwilling:
    def __array__(self, *_: Any, **__: Any) -> Any:
        raise RuntimeError("no array from me")


@EACH_ARGUMENT
def test_other_devices_and_unwilling_objects(op: str, argument: str, kind: str) -> None:
    given_arguments = calls()[op]
    for thing in (OnAnotherDevice((2, 0)), OnAnotherDevice((10, 1)), OnAnotherDevice((1, 0)), OnlyCuda()):
        with pytest.raises((TypeError, ValueError), match=named(op)):
            run(op, {**given_arguments, argument: thing})
    with pytest.raises((TypeError, ValueError, RuntimeError)):
        run(op, {**given_arguments, argument: Unwilling()})


# ---- shapes, at random -------------------------------------------------------------------------------------------


class Call:
    """One call, shown by the shapes and dtypes of its arrays."""

    def __init__(self, op: str, arguments: dict[str, Any]) -> None:
        self.op, self.arguments = op, arguments

    def __repr__(self) -> str:
        shown = {n: f"{a.dtype}{a.shape}" if hasattr(a, "shape") else a for n, a in self.arguments.items()}
        return f"{self.op}({', '.join(f'{n}={a}' for n, a in shown.items())})"


@st.composite
def spoiled_calls(draw: st.DrawFn) -> Call:
    """A valid call with one or two of its array arguments changed in shape, values, dtype or memory order."""
    op = draw(st.sampled_from(OPS))
    spoiled = dict(calls(DTYPES[draw(st.sampled_from(list(DTYPES)))], seed=draw(st.integers(0, 9)))[op])
    optional = [
        n
        for n in spoiled
        if n in ("mask", "attn_mask", "gate", "residual", "relative_bias", "alibi_slopes", "sinks", "kv_lengths")
        and (op, n) != ("attention_paged", "kv_lengths")
    ]
    for name in optional:
        if draw(st.booleans()):
            del spoiled[name]
    # A sink of +inf takes all the weight: the kernels say 0, inf / inf in the reference is NaN. So it stays finite.
    names = [n for n, value in spoiled.items() if isinstance(value, np.ndarray) and n != "sinks"]
    for _ in range(draw(st.integers(0, 2))):
        name = draw(st.sampled_from(names))
        spoiled[name] = draw(spoiled_array(spoiled[name], kind_of(name, spoiled[name]) == FLOAT))
    return Call(op, spoiled)


@st.composite
def spoiled_array(draw: st.DrawFn, a: Any, main: bool) -> Any:
    how = draw(st.sampled_from(["resize", "resize", "add", "drop", "dtype", "order", "value", "value", "empty"]))
    axis = draw(st.integers(0, max(a.ndim - 1, 0)))
    if how == "resize" and a.ndim:
        n = draw(st.sampled_from([0, 1, 2, max(a.shape[axis] - 1, 0), a.shape[axis] + 1]))
        return np.resize(a, (*a.shape[:axis], n, *a.shape[axis + 1 :])) if a.size else a
    if how == "empty" and a.ndim:
        return np.take(a, [], axis)
    if how == "add":
        return np.expand_dims(a, axis)
    # Not to rank 0: there the reference is NumPy's softmax of a number, which the kernels refuse.
    if how == "drop" and a.ndim > 1 and a.shape[axis]:
        return np.take(a, 0, axis)
    if how == "dtype":
        with np.errstate(all="ignore"):
            # The kernels refuse half-width parameters next to float32, and mixtures; the reference takes some.
            others = [FLOAT16, BFLOAT16, np.float64] if main else []
            return a.astype(draw(st.sampled_from([*others, FLOAT32, np.int32, np.bool_])))
    if how == "order" and a.ndim:
        return draw(st.sampled_from(list(strided(a).values())))
    if how == "value" and a.size:
        a = a.copy()
        if a.dtype in DTYPES.values():
            a.flat[draw(st.integers(0, a.size - 1))] = draw(
                st.sampled_from([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-7, 100.0])
            )
        elif a.dtype.kind in "iu":
            a.flat[draw(st.integers(0, a.size - 1))] = draw(st.sampled_from([0, 1, -1, 2**31 - 1, -(2**31), 7]))
        return a
    return a


@settings(max_examples=1500, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(spoiled_calls())
def test_agrees_with_the_reference_on_what_is_legal(call: Call) -> None:
    """Both refuse, with TypeError or ValueError, or both answer with the same shapes, dtypes and values."""
    op, spoiled = call.op, call.arguments
    try:
        expected = flat(getattr(reference, op)(**spoiled))
    except (TypeError, ValueError):
        expected = None
    for _ in each_isa():
        try:
            out = run(op, spoiled)
        except (TypeError, ValueError) as error:
            # The reference could do these: two half-width dtypes in one call, key heads without query heads.
            if "; beside " in str(error) or "q has 0 heads" in str(error):
                continue
            assert expected is None, f"{op} refuses what the reference answers: {error}"
            assert re.match(named(op), str(error)), f"{type(error).__name__}: {error}"
            continue
        assert expected is not None, f"{op} answers what the reference refuses"
        assert [(a.shape, a.dtype) for a in out] == [(a.shape, a.dtype) for a in expected]
        for a, b in zip(out, expected, strict=True):
            loose = {BFLOAT16: 0.1, FLOAT16: 0.02}.get(a.dtype, 1e-3)
            with np.errstate(all="ignore"):
                np.testing.assert_allclose(a.astype(np.float64), b.astype(np.float64), rtol=loose, atol=loose)


# ---- sizes beyond memory -----------------------------------------------------------------------------------------


LIMITED = """
import resource
import numpy as np
import qkv
def many(*shape):
    return np.broadcast_to(np.float32(1), shape)
resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
"""


@pytest.mark.skipif(under_sanitizer(), reason="the sanitizer reserves terabytes itself")
@pytest.mark.parametrize(
    "call",
    [
        "qkv.softmax(many(2**20, 2**20))",
        "qkv.log_softmax(many(2**30, 2**30), axis=0)",
        "qkv.gelu(many(2**31, 2**29))",
        "qkv.layer_norm(many(2**40, 4))",
        "qkv.rms_norm(many(2**40, 4), residual=many(2**40, 4))",
        "qkv.matmul(many(2**40, 0), many(0, 2**40))",
        "qkv.matmul(many(2**40, 1), many(1, 2**30))",
        "qkv.matmul(many(2**20, 1, 4, 4), many(2**20, 4, 4))",
        "qkv.linear(many(2**40, 4), many(3, 4))",
        "qkv.linear(many(2**40, 0), many(2**40, 0))",
        "qkv.pack_weight(many(2**40, 4))",
        "qkv.embedding(np.broadcast_to(np.int64(0), 2**40), many(3, 4))",
        "qkv.embedding(np.broadcast_to(np.int64(0), 2**20), many(3, 2**40))",
        "qkv.rotary(many(2**20, 2**20, 5, 8), np.arange(5))",
        "qkv.attention(many(1, 1, 2**40, 8), many(1, 1, 3, 8), many(1, 1, 3, 8))",
        "qkv.attention(many(1, 1, 2**22, 8), many(1, 1, 2**22, 8), many(1, 1, 2**22, 8), return_weights=True)",
        "qkv.attention(many(1, 1, 2, 8), many(1, 1, 0, 8), many(1, 1, 0, 2**50))",
        "qkv.attention_varlen(many(2**40, 1, 8), many(3, 1, 8), many(3, 1, 8), [0, 2**40], [0, 3])",
        "qkv.attention_paged(many(2**40, 1, 8), many(1, 16, 1, 8), many(1, 16, 1, 8), np.zeros((2**40, 1), 'b'), [1])",
        "qkv.attention_paged(many(1, 1, 8), many(1, 16, 1, 8), many(1, 16, 1, 2**60), [[0]], [1])",
        "qkv.attention_paged(many(1, 1, 8), many(1, 2**44, 1, 8), many(1, 2**44, 1, 8), [[0]], [2**44])",
        "qkv.paged_write(many(2**40, 1, 8), many(2**40, 1, 8), *[np.zeros((1, 16, 1, 8), 'f')] * 2, [0])",
        "qkv.scaled_dot_product_attention(many(2**40, 4, 8), many(4, 8), many(4, 8))",
        "qkv.additive_attention(many(2**40, 8), many(3, 8), many(3, 8), many(4, 8), many(4, 8), many(4))",
        "qkv.sinusoidal_positions(2**40, 512)",
        "qkv.alibi_slopes(2**40)",
        "qkv.linear(many(4, 4), many(4, 4), out=many(4, 4))",
        # lengths whose products with block sizes and item sizes pass 2^64
        "qkv.attention(many(1, 1, 1, 2**60), many(1, 1, 1, 2**60), np.zeros((1, 1, 1, 4), np.float32))",
        "qkv.attention_varlen(many(1, 1, 2**60), many(1, 1, 2**60), many(1, 1, 4), [0, 1], [0, 1])",
        "qkv.linear(many(1, 2**60), many(1, 2**60))",
        "qkv.matmul(many(1, 2**61), many(2**61, 1))",
        "qkv.pack_weight(many(1, 2**58))",
        "qkv.pack_weight(many(2**60, 1))",
    ],
)
def test_sizes_beyond_memory(call: str) -> None:
    """Arrays of zero stride are huge at no cost; their results are not. An error in words, or one of memory."""
    code = f"""{LIMITED}
try:
    out = {call}
except (ValueError, MemoryError) as error:
    print("refused:", type(error).__name__, error)
else:
    raise SystemExit(f"answered {{getattr(out, 'shape', out)}}")
x = np.ones((4, 4), np.float32)
assert (qkv.matmul(x, x) == 4).all(), "the process works on"
"""
    done = run_python(code, timeout=60)
    assert done.returncode == 0 and done.stdout.startswith("refused: "), f"{done.stdout}{done.stderr}"


@pytest.mark.skipif(under_sanitizer(), reason="the sanitizer reserves terabytes itself")
def test_nothing_times_many_is_nothing() -> None:
    """Shapes that are huge but for a zero: the answer is an empty array, at once."""
    calls_of_nothing = [
        "qkv.softmax(many(2**45, 0))",
        "qkv.softmax(many(2**45, 0, 3), axis=0)",
        "qkv.layer_norm(many(2**45, 0))",
        "qkv.rms_norm(many(0, 2**45))",
        "qkv.gelu(many(2**45, 0, 2**10))",
        "qkv.matmul(many(2**45, 0, 3), many(3, 5))",
        "qkv.matmul(many(2**45, 3, 4), many(4, 0))",
        "qkv.linear(many(2**45, 0, 4), many(3, 4))",
        "qkv.linear(many(2**45, 4), many(0, 4))",
        "qkv.embedding(np.zeros((2**45, 0), np.int64), many(3, 4))",
        "qkv.rotary(many(2**45, 0, 5, 8), np.arange(5))",
        "qkv.attention(many(2**40, 2**10, 0, 8), many(2**40, 2**10, 3, 8), many(2**40, 2**10, 3, 8))",
        "qkv.additive_attention(many(2**45, 0, 8), many(2**45, 0, 8), many(2**45, 0, 8), *[many(4, 8)] * 2, many(4))",
    ]
    lines = "\n".join(f"assert {call}.size == 0; print({call!r})" for call in calls_of_nothing)
    done = run_python(LIMITED + lines, timeout=100)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"


def test_a_pickled_weight_is_checked() -> None:
    for state in (
        (np.zeros((), np.float32),),
        (np.zeros(3, np.float32),),
        (np.zeros((2, 2)),),
        (),
        ("x",),
        (None, None),
    ):
        empty = qkv.PackedWeight.__new__(qkv.PackedWeight)
        with pytest.raises((TypeError, ValueError)):
            empty.__setstate__(state)


def test_lists_take_the_dtype_of_the_arrays_beside_them() -> None:
    q = np.ones((1, 2, 3, 8), np.float32)
    assert qkv.attention(q, q, q, alibi_slopes=[0.5, 0.25], sinks=[0.0, 1.0]).dtype == np.float32
    assert qkv.layer_norm(q, [1.0] * 8, [0.5] * 8).dtype == np.float32
    assert qkv.linear(q[0, 0], [[1.0] * 8]).dtype == np.float32
    assert qkv.softmax([1.0, 2.0]).dtype == np.float64, "alone they are what NumPy makes of them"
    with pytest.raises(ValueError, match="softmax: x"):
        qkv.softmax([[1.0], [1.0, 2.0]])


@pytest.mark.parametrize("options", [{"softcap": 1e-50}, {"softcap": 1e39}, {"scale": 1e39}])
def test_numbers_beyond_float32_are_refused(options: dict[str, float]) -> None:
    q = np.ones((1, 1, 3, 8), np.float32)
    with pytest.raises(ValueError, match=f"attention: {next(iter(options))}"):
        qkv.attention(q, q, q, **options)


def test_a_window_of_any_size() -> None:
    q = np.random.default_rng(0).standard_normal((1, 1, 5, 8)).astype(np.float32)
    assert same_bits(qkv.attention(q, q, q, window=(2**70, None)), qkv.attention(q, q, q))
