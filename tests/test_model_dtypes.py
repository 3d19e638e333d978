"""Models whose weights are held as bfloat16, int8 or int4: near float32, the same in any batch, saved to the bit."""

from __future__ import annotations

import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import qkv
from checks import each_isa, same_bits
from ml_dtypes import bfloat16

GOLDEN = Path(__file__).parent / "golden"
# Of the outputs, relative to their root mean square: rounding noise of random weights, a few layers of it. That the
# products are exactly those of the rounded operands is test_gemm_quantized.py's to say.
BOUNDS = {"bfloat16": 0.015, "int8": 0.025, "int4": 0.35}
FOLDERS = ["bert_base", "bert_masked_lm", "bert_classify", "bert_bfloat16", "bert_sharded"]


def inputs(model: Any) -> tuple[Any, Any]:
    ids = np.random.default_rng(1).integers(1, model.embeddings.word.rows, (3, 11))
    mask = np.ones_like(ids)
    mask[1, 7:] = 0
    mask[2, :4] = 0
    return ids, mask


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("case", FOLDERS)
def test_near_float32(case: str, dtype: str) -> None:
    exact, model = qkv.load(GOLDEN / case), qkv.load(GOLDEN / case, dtype=dtype)
    assert model.dtype == dtype
    ids, mask = inputs(model)
    for isa in each_isa():
        for name, expected in exact(ids, mask).items():
            got = model(ids, mask)[name]
            error = np.sqrt(((got - expected) ** 2).mean() / (expected**2).mean())
            assert 0 < error < BOUNDS[dtype], (isa, name, error)


@pytest.mark.parametrize("dtype", ["float32", *BOUNDS])
def test_attention_is_as_precise_as_the_weights(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, attend = set(), qkv.attention_varlen

    def spy(*args: Any, **options: Any) -> Any:
        asked.add(options["precision"])
        return attend(*args, **options)

    monkeypatch.setattr("qkv.layers.ops.attention_varlen", spy)
    model = qkv.load(GOLDEN / "bert_base", dtype=dtype)
    model(*inputs(model))
    assert asked == {"highest" if dtype == "float32" else "bf16"}


@pytest.mark.parametrize("dtype", BOUNDS)
def test_padding_and_batch_change_nothing(dtype: str) -> None:
    model = qkv.load(GOLDEN / "bert_base", dtype=dtype)
    ids, mask = inputs(model)
    for _ in each_isa():
        whole = model(ids, mask).last_hidden_state
        for row in range(3):
            real = mask[row] == 1
            alone = model(ids[row : row + 1, real]).last_hidden_state
            assert same_bits(alone[0], whole[row, real].copy())


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("case", ["bert_base", "bert_masked_lm"])
def test_saved_and_pickled_to_the_bit(case: str, dtype: str, tmp_path: Path) -> None:
    model = qkv.load(GOLDEN / case, dtype=dtype)
    ids, mask = inputs(model)
    expected = model(ids, mask)
    model.save(tmp_path / "model.npz")
    for again in (
        qkv.load(tmp_path / "model.npz", dtype=dtype),
        qkv.load(tmp_path / "model.npz", dtype="auto"),
        pickle.loads(pickle.dumps(model)),
    ):
        got = again(ids, mask)
        assert all(same_bits(got[name], expected[name]) for name in expected)
    packed = [value for value in model.parameters.values() if isinstance(value, qkv.PackedWeight)]
    assert {value.dtype for value in packed} == {dtype}
    # in another dtype it is what it dequantises to
    plain = qkv.load(tmp_path / "model.npz")
    for name, value in model.parameters.items():
        if isinstance(value, qkv.PackedWeight):
            other = plain.parameters[name]
            other = other.dequantize() if isinstance(other, qkv.PackedWeight) else other
            assert same_bits(other, value.dequantize())


def test_norms_biases_and_positions_stay_float32() -> None:
    model = qkv.load(GOLDEN / "bert_masked_lm", dtype="int8")
    for name, value in model.parameters.items():
        narrow = name.endswith("weight") and "norm" not in name and "position" not in name and "type" not in name
        assert isinstance(value, qkv.PackedWeight) == narrow, name
    assert model.embeddings.word.weight is model.head.decoder.weight, "a tied table is stored once"


def test_auto_keeps_bfloat16_of_the_file() -> None:
    model = qkv.load(GOLDEN / "bert_bfloat16", dtype="auto")
    kinds = {value.dtype for value in model.parameters.values() if isinstance(value, qkv.PackedWeight)}
    assert kinds == {"bfloat16"}
    ids, mask = inputs(model)
    same = qkv.load(GOLDEN / "bert_bfloat16", dtype="bfloat16")
    assert same_bits(model(ids, mask).last_hidden_state, same(ids, mask).last_hidden_state)
    assert qkv.load(GOLDEN / "bert_base", dtype="auto").embeddings.word.weight.dtype == np.float32


def test_from_weights_takes_a_dtype(rng: np.random.Generator) -> None:
    config = json.loads((GOLDEN / "bert_base" / "config.json").read_text())
    from safetensors.numpy import load_file

    weights = load_file(GOLDEN / "bert_base" / "model.safetensors")
    model = qkv.from_weights(config, weights, dtype="int8")
    loaded = qkv.load(GOLDEN / "bert_base", dtype="int8")
    ids, mask = inputs(model)
    assert same_bits(model(ids, mask).last_hidden_state, loaded(ids, mask).last_hidden_state)
    halves = qkv.from_weights(config, {k: v.astype(bfloat16) for k, v in weights.items()}, dtype="auto")
    assert halves.stack.blocks[0].sublayers[0].layer.qkv.weight.dtype == "bfloat16"


def test_weights_that_cannot_be_quantised_are_named(rng: np.random.Generator) -> None:
    config = json.loads((GOLDEN / "bert_base" / "config.json").read_text())
    from safetensors.numpy import load_file

    weights = dict(load_file(GOLDEN / "bert_base" / "model.safetensors"))
    name = next(n for n in weights if n.endswith("intermediate.dense.weight"))
    weights[name] = weights[name].copy()
    weights[name][0, 0] = np.nan
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        qkv.from_weights(config, weights, dtype="int8")
    with pytest.raises(ValueError, match="'float32', 'bfloat16', 'int8', 'int4', 'auto'"):
        qkv.from_weights(config, weights, dtype="int2")


@pytest.mark.parametrize(
    "change",
    [
        lambda packed: {name: ["int4", *about[1:]] for name, about in packed.items()},
        lambda packed: {name: [about[0], about[1], about[2] + 1] for name, about in packed.items()},
        lambda packed: {name: [about[0], about[1], 10**18] for name, about in packed.items()},
        lambda packed: {name: about[:2] for name, about in packed.items()},
        lambda packed: {"nowhere": next(iter(packed.values()))},
        lambda packed: [1],
    ],
)
def test_broken_descriptions_of_packed_weights(change: Any, tmp_path: Path) -> None:
    qkv.load(GOLDEN / "bert_base", dtype="int8").save(tmp_path / "good.npz")
    with zipfile.ZipFile(tmp_path / "good.npz") as good, zipfile.ZipFile(tmp_path / "bad.npz", "w") as bad:
        for member in good.namelist():
            data = good.read(member)
            if member == "qkv.json.npy":
                start = data.index(b'{"format"')
                meta = json.loads(data[start:])
                meta["packed"] = change(meta["packed"])
                np.save(tmp_path / "meta.npy", np.frombuffer(json.dumps(meta).encode(), np.uint8))
                data = (tmp_path / "meta.npy").read_bytes()
            bad.writestr(member, data)
    with pytest.raises((ValueError, TypeError)):
        qkv.load(tmp_path / "bad.npz", dtype="auto")
