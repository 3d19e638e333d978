"""Rename rules as data, and the report of what does not fit."""

from __future__ import annotations

import dataclasses
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import qkv
from qkv import weights
from qkv.files import Tensor, packed_tensor
from qkv.layers import Linear
from qkv.weights import drop, fuse, load_parameters, offset, permute, rename, reshape, split, tie, transpose

A = np.arange(12, dtype=np.float32).reshape(4, 3)
B = np.arange(6, dtype=np.float32).reshape(2, 3) + 100


def apply(rules: list[Any], **arrays: np.ndarray) -> tuple[dict[str, np.ndarray], list[str]]:
    """The arrays under their new names, with the shape and dtype that was promised before reading."""
    pool = {name: Tensor.of(name, array) for name, array in arrays.items()}
    problems: list[str] = []
    for rule in rules:
        rule.apply(pool, problems)
    result = {}
    for name, tensor in pool.items():
        result[name] = tensor.read()
        assert result[name].shape == tensor.shape and result[name].dtype == tensor.dtype
    return result, problems


def check(rules: list[Any], given: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    result, problems = apply(rules, **given)
    assert not problems
    assert result.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(result[name], array)


# ---- the nine operations


def test_rename_carries_numbers_and_rest() -> None:
    rule = rename("h.{i}.mlp.{j}.*", "blocks.{i}.part{j}.*")
    check([rule], {"h.10.mlp.2.weight": A}, {"blocks.10.part2.weight": A})
    check([rule], {"h.x.mlp.2.weight": A}, {"h.x.mlp.2.weight": A})  # no number
    check([rule], {"h.01.mlp.2.weight": A}, {"h.01.mlp.2.weight": A})  # no one writes numbers so
    check([rename("a.b", "c")], {"axb": A, "a.b.c": B}, {"axb": A, "a.b.c": B})  # whole names, literally


def test_rename_takes_the_first_of_several_names() -> None:
    rule = rename(["head.decoder.bias", "head.bias"], "bias")
    check([rule], {"head.bias": A}, {"bias": A})
    check([rule], {"head.bias": A, "head.decoder.bias": B}, {"bias": B})


def test_two_tensors_for_one_parameter_are_a_problem() -> None:
    _, problems = apply([rename("a", "c"), rename("b", "c")], a=A, b=B)
    assert problems == ["a and b are the same parameter"]


def test_drop() -> None:
    check(
        [drop("h.{i}.attn.bias")],
        {"h.3.attn.bias": A, "h.3.attn.c_attn.bias": B},
        {"h.3.attn.c_attn.bias": B},
    )


def test_fuse_joins_rows_of_each_layer() -> None:
    rule = fuse(["l.{i}.q.*", "l.{i}.k.*"], "b.{i}.qk.*")
    given = {"l.0.q.weight": A, "l.0.k.weight": B, "l.1.k.weight": A, "l.1.q.weight": B}
    check([rule], given, {"b.0.qk.weight": np.concatenate([A, B]), "b.1.qk.weight": np.concatenate([B, A])})
    check([rule], {"l.0.q.weight": A}, {"l.0.q.weight": A})  # half of it: left alone


@pytest.mark.parametrize("other", [np.zeros((2, 4), np.float32), np.float32(1)])
def test_fuse_needs_equal_rows(other: np.ndarray) -> None:
    _, problems = apply([fuse(["a", "b"], "c")], a=A, b=np.asarray(other))
    assert "cannot be joined" in problems[0] and "a (4, 3)" in problems[0]


def test_split() -> None:
    check([split("a", ["x", "y"])], {"a": A}, {"x": A[:2], "y": A[2:]})
    check([split("a", ["x", "y"], [1, 3])], {"a": A}, {"x": A[:1], "y": A[1:]})
    for rule in (split("a", ["x", "y", "z"]), split("a", ["x", "y"], [1, 2])):
        assert "cannot be cut" in apply([rule], a=A)[1][0]


def test_transpose_reshape_offset() -> None:
    check([transpose("a", "b")], {"a": A}, {"b": A.T})
    check([reshape("a", "b", (2, -1))], {"a": A}, {"b": A.reshape(2, 6)})
    check([reshape("a", "b", (0, 2))], {"a": A[:0]}, {"b": np.zeros((0, 2))})
    check([offset("a", "b", 1.0)], {"a": A}, {"b": A + 1})
    half = np.float16([1024, 1])
    check([offset("a", "b", 0.5)], {"a": half}, {"b": np.float32([1024.5, 1.5])})  # not rounded to half
    for array in (A, A[:0]):
        assert "cannot be reshaped" in apply([reshape("a", "b", (5, 5))], a=array)[1][0]


def test_permute() -> None:
    check([permute("a", "b", [2, 0, 3, 1])], {"a": A}, {"b": A[[2, 0, 3, 1]]})
    for rows in ([0, 1, 2], [0, 1, 2, 2], [0, 1, 2, 4]):
        assert "rows to permute" in apply([permute("a", "b", rows)], a=A)[1][0]


def test_rules_follow_one_another() -> None:
    rules = [permute("q", "q", [1, 0, 3, 2]), transpose("k", "kt"), fuse(["q", "kt"], "qk")]
    check(rules, {"q": A, "k": B.T}, {"qk": np.concatenate([A[[1, 0, 3, 2]], B])})


def test_tie_shares_what_is_there() -> None:
    rule = tie("table", "head")
    for name in ("table", "head"):
        pool = {name: Tensor.of(name, A)}
        rule.apply(pool, [])
        assert pool["table"] is pool["head"]
    equal = {"table": Tensor.of("table", A), "head": Tensor.of("head", A.copy())}
    tie("table", "head", when=False).share(equal)
    assert equal["table"] is equal["head"]
    different = {"table": Tensor.of("table", A), "head": Tensor.of("head", A + 1)}
    rule.share(different)  # whatever the config says
    assert different["table"] is not different["head"]
    check([tie("table", "head", when=False)], {"table": A}, {"table": A})
    check([rule], {"other": A}, {"other": A})


# ---- loading and its report

RULES = [
    fuse(["l.{i}.q", "l.{i}.k"], "b.{i}.qk"),
    rename("norm.*", "n.*"),
    rename("cls.*", "head.*"),
    drop("unused.*"),
]


def build(w: weights.Weights) -> dict[str, Any]:
    return {
        "qk": [w.at(f"b.{i}").matrix("qk", (6, 3)) for i in range(2)],
        "norm": w.vector("n.weight", (3,)),
        "head": w.at("head").vector("bias", (2,)),
    }


def complete() -> dict[str, np.ndarray]:
    given = {f"body.l.{i}.{n}": x for i in range(2) for n, x in (("q", A), ("k", B))}
    return {**given, "body.norm.weight": A[0], "cls.bias": A[:2, 0], "unused.x": A}


def load(arrays: dict[str, np.ndarray], **options: Any) -> Any:
    tensors = {name: Tensor.of(name, array) for name, array in arrays.items()}
    return load_parameters(build, tensors, RULES, prefixes=("body.",), where="x.safetensors", **options)


@pytest.mark.parametrize("prefix", ["body.", ""])
def test_load_fills_every_parameter(prefix: str) -> None:
    arrays = {name.replace("body.", prefix): array for name, array in complete().items()}
    model, parameters = load(arrays)
    assert sorted(parameters) == ["b.0.qk", "b.1.qk", "head.bias", "n.weight"]
    np.testing.assert_array_equal(model["qk"][1].dequantize(), np.concatenate([A, B]))
    np.testing.assert_array_equal(model["norm"], A[0])
    assert not np.shares_memory(model["norm"], arrays[prefix + "norm.weight"])


def test_load_takes_every_float_type() -> None:
    for dtype in (np.float16, ml_dtypes.bfloat16, np.float64):
        model, _ = load({name: array.astype(dtype) for name, array in complete().items()})
        assert model["norm"].dtype == np.float32
        np.testing.assert_array_equal(model["norm"], A[0])


def test_one_report_for_everything() -> None:
    arrays = complete()
    del arrays["body.l.1.k"], arrays["cls.bias"]
    arrays |= {"body.norm.wieght": arrays.pop("body.norm.weight"), "surplus": A, "body.l.0.q": A[:, :2]}
    with pytest.raises(ValueError) as caught:
        load(arrays)
    lines = str(caught.value).split("\n")
    assert lines[0] == "x.safetensors: 3 missing, 2 unexpected, 1 mis-shaped"
    assert set(lines[1:]) == {
        "  missing: body.l.1.k",
        "  missing: body.norm.weight (nearest: body.norm.wieght)",
        "  missing: cls.bias",
        "  unexpected: body.norm.wieght (nearest: body.norm.weight)",
        "  unexpected: surplus",
        "  mis-shaped: cannot be joined along their rows: body.l.0.q (4, 2), body.l.0.k (2, 3)",
    }


def test_report_of_shapes_and_types() -> None:
    arrays = complete() | {"body.l.0.q": A[:3], "body.norm.weight": np.arange(3), "cls.bias": A[:2]}
    with pytest.raises(ValueError) as caught:
        load(arrays)
    assert set(str(caught.value).split("\n")[1:]) == {
        "  mis-shaped: body.l.0.q + body.l.0.k is (5, 3), expected (6, 3)",
        "  mis-shaped: body.norm.weight is int64, expected floats",
        "  mis-shaped: cls.bias is (2, 3), expected (2,)",
    }


def test_report_of_one_tensor_under_two_names() -> None:
    arrays = complete() | {"norm.weight": A[0]}
    with pytest.raises(ValueError, match=r"body.norm.weight and norm.weight are the same parameter"):
        load(arrays)


def test_report_stays_quick() -> None:
    """'Nearest' is quadratic in the number of names, and a file may have any number."""
    with pytest.raises(ValueError, match="20000 unexpected"):
        load(complete() | {f"x{i}.norm.weight": A for i in range(20000)})


def test_nothing_is_read_before_everything_fits() -> None:
    def read() -> np.ndarray:
        raise AssertionError("read")

    tensors = {name: Tensor((name,), array.shape, array.dtype, read) for name, array in complete().items()}
    del tensors["cls.bias"]
    with pytest.raises(ValueError, match="1 missing"):
        load_parameters(build, tensors, RULES, prefixes=("body.",))


def test_tied_parameters_are_loaded_once() -> None:
    def build(w: weights.Weights) -> tuple[Any, Any]:
        return w.table("table", (4, 3)), w.matrix("head", (4, 3))

    (table, head), _ = load_parameters(build, {"table": Tensor.of("table", A)}, [tie("table", "head")])
    assert table is head
    np.testing.assert_array_equal(head.dequantize(), A)


def test_ties_are_not_read_before_the_shapes_fit() -> None:
    """They may be gigabytes when unpacked, and of no use."""

    def read() -> np.ndarray:
        raise AssertionError("read")

    tensors = {name: Tensor((name,), (2**20, 400), np.dtype(np.float32), read) for name in ("table", "head")}
    with pytest.raises(ValueError, match="0 unexpected, 2 mis-shaped"):
        load_parameters(lambda w: (w.table("table", (4, 3)), w.matrix("head", (4, 3))), tensors, [tie("table", "head")])


@pytest.mark.parametrize("shape", [(), (7,), (5, 3), (2, 3, 4), (0, 3)])
def test_ties_are_compared_by_blocks(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "BLOCK", 6)
    first = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    pool = {"a": Tensor.of("a", first), "b": Tensor.of("b", first.copy())}
    tie("a", "b").share(pool)
    assert pool["a"] is pool["b"]
    for k in range(first.size):
        other = first.copy()
        other.reshape(-1)[k] += 1
        pool = {"a": Tensor.of("a", first), "b": Tensor.of("b", other)}
        tie("a", "b").share(pool)
        assert pool["a"] is not pool["b"]


def test_report_is_not_endless() -> None:
    with pytest.raises(ValueError, match="20000 unexpected") as caught:
        load(complete() | {f"x{i}.norm.weight": A for i in range(20000)})
    lines = str(caught.value).split("\n")
    assert len(lines) == 302 and lines[-1] == "  ... and 19700 more"


def test_report_shows_odd_names_quoted() -> None:
    with pytest.raises(ValueError) as caught:
        load(complete() | {"a\n  missing: b": A, "\x1b[2J": A})
    assert set(str(caught.value).split("\n")[1:]) == {
        "  unexpected: 'a\\n  missing: b'",
        "  unexpected: '\\x1b[2J'",
    }


def test_numbers_that_float32_does_not_have() -> None:
    big = np.full((2,), 1e300)
    with pytest.raises(ValueError, match=r"cls.bias holds numbers that are too large for float32"):
        load(complete() | {"cls.bias": big})
    model, _ = load(complete() | {"cls.bias": np.array([np.inf, 1e-300])})
    assert model["head"].tolist() == [np.inf, 0]


def test_halves_of_two_kinds_are_joined_as_float32() -> None:
    """NumPy has no common type for float16 and bfloat16."""
    halves = [np.array([[1.5]], np.float16), np.array([[3.0]], ml_dtypes.bfloat16)]
    pool = {name: Tensor.of(name, half) for name, half in zip("ab", halves, strict=True)}
    fuse(["a", "b"], "c").apply(pool, [])
    assert pool["c"].dtype == np.float32
    np.testing.assert_array_equal(pool["c"].read(), np.array([[1.5], [3.0]], np.float32))


def test_numbers_of_other_machines() -> None:
    weights = {"w.weight": Tensor.of("w", np.array([[1, 2]], ">f4"))}
    linear, _ = load_parameters(lambda w: Linear(w.at("w"), 2, 1, bias=False), weights, [])
    np.testing.assert_array_equal(linear(np.array([[1, 10]], np.float32)), [[21]])


def test_packed_weights_are_tied_by_their_parts() -> None:
    """Equal or not is seen without making floats of them."""
    w = np.random.default_rng(0).normal(size=(3, 64)).astype(np.float32)

    def tensor(name: str, array: np.ndarray) -> Tensor:
        packed = qkv.pack_weight(array, "int4")
        made = packed_tensor((name,), array.shape, ("int4", 32), packed.parts)
        return dataclasses.replace(made, read=lambda: pytest.fail("made floats"))

    for other, same in ((w, True), (w + 1, False)):
        pool = {"a": tensor("a", w), "b": tensor("b", other)}
        tie("a", "b").share(pool)
        assert (pool["a"] is pool["b"]) is same
