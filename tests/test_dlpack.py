"""Arrays of other libraries: in through DLPack without a copy, results in the same kind."""

from __future__ import annotations

import gc
import sys
from typing import Any

import numpy as np
import pytest
import qkv
from calls import KINDS, calls, flat
from checks import FLOAT16, FLOAT32, each_isa, normal, same_bits


class Tensor:
    """The least that a library's tensor can be: DLPack and nothing else, here on the memory of a NumPy array."""

    def __init__(self, array: Any) -> None:
        self.array = array

    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__()

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)


# NumPy exports neither bfloat16 nor (before 2.1) read-only arrays, so these tests use the other dtypes.
HALF_AND_SINGLE = pytest.mark.parametrize("exported", [FLOAT32, FLOAT16], ids=str)


@HALF_AND_SINGLE
@pytest.mark.parametrize("op", calls())
def test_every_op_takes_foreign_tensors(op: str, exported: np.dtype[Any]) -> None:
    arguments = calls(exported)[op]
    foreign = {name: Tensor(value) if name in KINDS else value for name, value in arguments.items()}
    for _ in each_isa():
        out, expected = flat(getattr(qkv, op)(**foreign)), flat(getattr(qkv, op)(**arguments))
        assert all(same_bits(np.asarray(a), b) for a, b in zip(out, expected, strict=True))


@HALF_AND_SINGLE
def test_strides_come_through(exported: np.dtype[Any], rng: np.random.Generator) -> None:
    x = normal(rng, (6, 10), exported)
    for view in (x.T, x[::2], x[:, ::3], x[::-1], x[:, 1:5], x[2:2], np.broadcast_to(x[:1].copy(), (6, 10)).copy()):
        for _ in each_isa():
            assert same_bits(qkv.softmax(Tensor(view)), qkv.softmax(view))


def test_nothing_is_copied_on_the_way_in(rng: np.random.Generator) -> None:
    """The op reads the tensor's own memory: a tensor of 8 GB of zero strides is as cheap as one row."""
    row = normal(rng, (1, 1, 1, 64))
    keys = np.lib.stride_tricks.as_strided(row, (1, 1, 2**25, 64), (0, 0, 0, 4), writeable=True)
    lengths = np.array([3])
    out = qkv.attention(Tensor(row), Tensor(keys), Tensor(keys), kv_lengths=lengths)
    np.testing.assert_allclose(out, row, rtol=1e-6)


def test_no_reference_is_kept(rng: np.random.Generator) -> None:
    x = normal(rng, (6, 10))
    before = sys.getrefcount(x)
    for _ in range(10):
        qkv.softmax(Tensor(x))
        with pytest.raises(ValueError, match="matmul"):
            qkv.matmul(Tensor(x), Tensor(x))
    gc.collect()
    assert sys.getrefcount(x) == before


def test_a_tensor_may_go_away_once_the_op_has_returned(rng: np.random.Generator) -> None:
    out = [qkv.relu(Tensor(np.full(1000, i, np.float32))) for i in range(50)]
    gc.collect()
    assert [float(a[-1]) for a in out] == list(range(50))


def test_out_may_be_foreign(rng: np.random.Generator) -> None:
    x, w, memory = normal(rng, (3, 5)), normal(rng, (7, 5)), np.zeros((3, 7), np.float32)
    target = Tensor(memory)
    assert qkv.linear(x, w, out=target) is target
    assert same_bits(memory, qkv.linear(x, w))


@pytest.mark.parametrize("device", [(2, 0), (3, 0), (4, 1), (10, 0), (13, 0)])
def test_other_devices_are_refused_in_words(device: tuple[int, int]) -> None:
    class Elsewhere(Tensor):
        def __dlpack_device__(self) -> tuple[int, int]:
            return device

        def __dlpack__(self, **options: Any) -> Any:
            raise AssertionError("must not be asked")

    x = np.ones((3, 3), np.float32)
    with pytest.raises((TypeError, ValueError), match=r"matmul: b .*device"):
        qkv.matmul(x, Elsewhere(x))


def test_integers_of_unsupported_kinds_are_refused() -> None:
    for dtype in (np.int32, np.complex64, np.bool_):
        with pytest.raises(TypeError, match="softmax"):
            qkv.softmax(Tensor(np.ones((3, 3), dtype)))


def test_objects_that_break_the_protocol() -> None:
    class NoCapsule(Tensor):
        def __dlpack__(self, **options: Any) -> Any:
            return 7

    class Used(Tensor):
        def __init__(self, array: Any) -> None:
            super().__init__(array)
            self.capsule = array.__dlpack__()

        def __dlpack__(self, **options: Any) -> Any:
            return self.capsule

    x = np.ones((3, 3), np.float32)
    with pytest.raises((TypeError, ValueError)):
        qkv.softmax(NoCapsule(x))
    twice = Used(x)
    qkv.softmax(twice)
    with pytest.raises((TypeError, ValueError)):
        qkv.softmax(twice)


# ---- torch -------------------------------------------------------------------------------------------------------


@pytest.fixture
def torch() -> Any:
    return pytest.importorskip("torch")


@pytest.mark.parametrize("name", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("op", calls())
def test_torch_in_torch_out(op: str, name: str, torch: Any) -> None:
    arguments = calls(FLOAT32)[op]
    tensors = {}
    for argument, value in arguments.items():
        tensors[argument] = value
        if argument in KINDS:
            tensors[argument] = torch.from_numpy(value)
            if value.dtype == FLOAT32:
                tensors[argument] = tensors[argument].to(getattr(torch, name))
    out = getattr(qkv, op)(**tensors)
    if op == "pack_weight":
        assert torch.equal(torch.from_numpy(out.dequantize()), tensors["w"].float())
        return
    results = flat(out)
    assert all(isinstance(a, torch.Tensor) for a in results)
    assert results[0].dtype == getattr(torch, name)
    double = {k: v.double().numpy() if torch.is_tensor(v) and v.is_floating_point() else v for k, v in tensors.items()}
    double = {k: v.numpy() if torch.is_tensor(v) else v for k, v in double.items()}
    loose = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 1e-1}[name]
    for a, b in zip(results, flat(getattr(qkv, op)(**double)), strict=True):
        np.testing.assert_allclose(a.double().numpy(), b, rtol=loose, atol=loose)


def test_torch_views_and_out(torch: Any) -> None:
    q, k, v = (torch.randn(2, 9, 4, 16).transpose(1, 2) for _ in range(3))
    out = torch.zeros(2, 4, 9, 16)
    result = qkv.attention(q, k, v, causal=True, out=out)
    assert result is out
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(out, expected)


def test_torch_weights_next_to_numpy_activations(torch: Any, rng: np.random.Generator) -> None:
    x, layer = normal(rng, (3, 16)), torch.nn.Linear(16, 8)
    expected = layer(torch.from_numpy(x)).detach().numpy()
    out = qkv.linear(x, layer.weight.detach(), layer.bias.detach())
    np.testing.assert_allclose(np.asarray(out), expected, rtol=1e-5, atol=1e-6)


def test_torch_tensors_that_cannot_be_shared(torch: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="softmax"):
        qkv.softmax(torch.ones(3, 3, device="meta"))
    with pytest.raises((TypeError, ValueError), match="softmax"):
        qkv.softmax(torch.ones(3, 3).to_sparse())
    learnt = torch.nn.Parameter(torch.ones(3, 3))
    with pytest.raises((TypeError, ValueError), match=r"softmax: x .*"):
        qkv.softmax(learnt)


def test_torch_results_outlive_everything(torch: Any) -> None:
    results = [qkv.relu(torch.full((1000,), float(i))) for i in range(50)]
    gc.collect()
    assert [float(a[-1]) for a in results] == list(range(50))
    results[0][0] = 7  # and are the caller's own


def test_torch_scalars_and_subclasses(torch: Any) -> None:
    class Mine(torch.Tensor):  # type: ignore[misc, name-defined]
        pass

    x = torch.ones(4)
    assert isinstance(qkv.matmul(x, x), torch.Tensor)
    assert isinstance(qkv.relu(x.as_subclass(Mine)), torch.Tensor)


def test_torch_flushing_denormals_changes_nothing(torch: Any) -> None:
    """The mode belongs to the calling thread; its part of the work must not differ from the workers'."""
    x = np.full((64, 4096), 1e-39, np.float32)
    expected = qkv.gelu(x)
    assert (expected > 0).all()
    try:
        assert torch.set_flush_denormal(True)
        for _ in range(3):
            assert same_bits(qkv.gelu(x), expected)
    finally:
        torch.set_flush_denormal(False)
