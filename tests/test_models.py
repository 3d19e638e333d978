"""Every family against transformers, from recorded tiny checkpoints (golden/make_models.py), and against itself.

BERT has more of both in test_bert.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import qkv
from qkv.packing import Packed

GOLDEN = Path(__file__).parent / "golden"
FOLDERS = sorted(
    path.parent.name for path in GOLDEN.glob("*/expected.npz") if not path.parent.name.startswith(("bert_", "sentence"))
)
INPUTS = (
    *("input_ids", "attention_mask", "token_type_ids", "position_ids"),
    *("decoder_input_ids", "decoder_attention_mask", "pixel_values", "mems"),
)
RTOL = (
    1e-5  # of the largest value. The library computes norms and rotary angles in float32, so float64 is no yardstick.
)


def expected(folder: str) -> dict[str, dict[str, np.ndarray]]:
    """case -> name -> array"""
    cases: dict[str, dict[str, np.ndarray]] = {}
    with np.load(GOLDEN / folder / "expected.npz") as recorded:
        for key in recorded.files:
            case, name = key.split("/")
            cases.setdefault(case, {})[name] = recorded[key]
    return cases


def inputs(case: dict[str, np.ndarray], *, positions: bool = True) -> dict[str, np.ndarray]:
    return {name: case[name] for name in INPUTS if name in case and (positions or name != "position_ids")}


def outputs(out: Any) -> dict[str, np.ndarray]:
    return {name: np.stack(value) if isinstance(value, tuple) else value for name, value in out.items()}


def masks(case: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Which tokens of the encoder, or the only stack, and of the decoder are real."""
    found = {}
    for prefix in ("", "decoder_"):
        if prefix + "attention_mask" in case:
            found[prefix] = case[prefix + "attention_mask"] == 1
        elif prefix + "input_ids" in case:
            found[prefix] = np.ones(case[prefix + "input_ids"].shape, bool)
    return found


def real(name: str, array: np.ndarray, case: dict[str, np.ndarray]) -> np.ndarray:
    """What stands at real positions: elsewhere transformers returns numbers that mean nothing."""
    found = masks(case)
    own = found.get("") if name.startswith("encoder_") or "decoder_" not in found else found["decoder_"]
    if own is None or name == "mems":  # images
        return array
    if "attentions" in name:  # (L, B, H, S, T)
        keys = found[""] if name.startswith(("encoder_", "cross_")) or "decoder_" not in found else own
        keys = np.pad(keys, ((0, 0), (array.shape[-1] - keys.shape[1], 0)), constant_values=True)  # of a memory
        shown = array.swapaxes(2, 3)[:, own]
        of_row = np.broadcast_to(keys[:, None], (*own.shape, keys.shape[1]))[own]
        return shown * of_row[None, :, None]
    if name.endswith("hidden_states"):
        return array[:, own]
    return array[own] if array.shape[:2] == own.shape else array


def close(actual: np.ndarray, exact: np.ndarray, rtol: float = RTOL) -> None:
    """Within rtol of the largest value; where both are infinite, equal."""
    finite = np.isfinite(exact)
    np.testing.assert_array_equal(actual[~finite], exact[~finite])
    np.testing.assert_allclose(actual[finite], exact[finite], rtol=0, atol=rtol * np.abs(exact[finite]).max(initial=0))


def agree(model: Any, folder: str, rtol: float = RTOL) -> None:
    for case in expected(folder).values():
        names = [name for name in case if name not in INPUTS]
        whole = any("hidden_states" in name for name in names)
        out = outputs(model(**inputs(case), output_attentions=whole, output_hidden_states=whole))
        assert set(names) <= set(out)
        for name in names:
            assert out[name].shape == case[name].shape and out[name].dtype == np.float32, name
            close(real(name, out[name], case), real(name, case[name], case), rtol)


@pytest.mark.parametrize("folder", FOLDERS)
def test_agrees_with_transformers(folder: str, isa: str) -> None:
    agree(qkv.load(GOLDEN / folder), folder)


@pytest.mark.parametrize("folder", FOLDERS)
def test_saved_and_loaded_to_the_bit(folder: str, tmp_path: Path) -> None:
    model = qkv.load(GOLDEN / folder)
    model.save(tmp_path / "model.npz")
    again = qkv.load(tmp_path / "model.npz")
    case = next(iter(expected(folder).values()))
    first, second = outputs(model(**inputs(case))), outputs(again(**inputs(case)))
    assert list(first) == list(second)
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])


# How far a model of other weights may be from float32: the length of the difference of an output as a share of the
# output's. The weights of these tiny models are random, which rounding errs on more than on trained ones
# (test_encode.py, test_gguf.py). bfloat16 rounds weights and activations to 2^-9, int8 to some 2^-8. 4 bits are too few
# for random weights to say much: there the reference has the same rounded weights, and 8 bits of activations remain.
BOUNDS = {"bfloat16": 0.03, "int8": 0.1, "int4": 0.06}


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("folder", FOLDERS)
def test_fewer_bits_stay_close(folder: str, dtype: str, tmp_path: Path) -> None:
    case = next(iter(expected(folder).values()))
    model = qkv.load(GOLDEN / folder, dtype=dtype)
    packed = outputs(model(**inputs(case)))
    source = GOLDEN / folder
    if dtype == "int4":
        source = tmp_path / "rounded"
        model.save(source)
    exact = outputs(qkv.load(source)(**inputs(case)))
    for name in exact:
        finite = np.isfinite(exact[name])
        error = np.linalg.norm((packed[name] - exact[name])[finite])
        assert error <= BOUNDS[dtype] * np.linalg.norm(exact[name][finite]), name


@pytest.mark.parametrize("folder", FOLDERS)
def test_padding_changes_nothing(folder: str) -> None:
    """To the bit, on either side, and what stands at padding is zero."""
    case = next(iter(expected(folder).values()))
    if "input_ids" not in case or "decoder_input_ids" in case or (case["attention_mask"] == 1).all():
        pytest.skip("images, or two texts, or nothing padded")
    model = qkv.load(GOLDEN / folder)
    if hasattr(model, "decoder"):
        pytest.skip("decoder ids that are made of the encoder's see padding, as in transformers")
    ids, mask = case["input_ids"], case["attention_mask"] == 1
    for side in ("right", "left"):
        if side == "left":
            turned = [np.r_[np.flatnonzero(~m), np.flatnonzero(m)] for m in mask]
            ids, mask = (np.stack([row[t] for row, t in zip(x, turned, strict=True)]) for x in (ids, mask))
        out = outputs(model(ids, mask))
        for b in range(len(mask)):
            for name, value in outputs(model(ids[b : b + 1, mask[b]])).items():
                if value.ndim > 1 and value.shape[1] == mask[b].sum() and out[name].shape[1] == mask.shape[1]:
                    np.testing.assert_array_equal(out[name][b][mask[b]], value[0])
                    assert not out[name][b][~mask[b]].any()
                else:
                    np.testing.assert_array_equal(out[name][b], value[0])


@pytest.mark.parametrize("folder", FOLDERS)
def test_cached_and_chunked_as_in_one_piece(folder: str, isa: str, rng: np.random.Generator) -> None:
    """To the bit: a prompt in one piece, in chunks, and token by token, in ragged batches."""
    model = qkv.load(GOLDEN / folder)
    if getattr(model, "cache", None) is None:
        pytest.skip("no decoder")
    pair = hasattr(model, "decoder")
    vocabulary = (model.decoder.embeddings if pair else model.embeddings).word.rows
    longest = getattr(model, "exact_up_to", None) or 11  # see TokenModel.extend
    rows = [rng.integers(0, vocabulary, min(n, longest)).tolist() for n in (11, 5, 1)]
    sources = [rng.integers(0, 40, n).tolist() for n in (4, 9, 2)]

    def whole(b: int) -> np.ndarray:
        cache = model.new_cache()
        memory = (model.memory(Packed.from_lists([sources[b]])),) if pair else ()
        return model.extend(cache, [cache.sequence()], [rows[b]], *memory)

    wholes = [whole(b) for b in range(3)]
    for sizes in ((1, 1, 1), (4, 2, 1), (11, 5, 1)):
        cache = model.new_cache()
        sequences = [cache.sequence() for _ in rows]
        parts: list[list[np.ndarray]] = [[] for _ in rows]
        memory = (model.memory(Packed.from_lists(sources)),) if pair else ()
        while any(len(s) < len(row) for s, row in zip(sequences, rows, strict=True)):
            pieces = [row[len(s) : len(s) + n] for row, s, n in zip(rows, sequences, sizes, strict=True)]
            x = model.extend(cache, sequences, pieces, *memory)
            ends = np.cumsum([len(piece) for piece in pieces])
            for part, new in zip(parts, np.split(x, ends[:-1]), strict=True):
                part.append(new)
        for part, one in zip(parts, wholes, strict=True):
            np.testing.assert_array_equal(np.concatenate(part), one)
    for row, source, one in zip(rows, sources, wholes, strict=True):  # and without a cache
        if pair and model.pooler is None:
            out = outputs(model([source], decoder_input_ids=[row], output_hidden_states=True))
            np.testing.assert_array_equal(out["decoder_hidden_states"][-1][0], one)
        elif not pair:
            out = outputs(model([row], output_hidden_states=True))
            np.testing.assert_array_equal(out["hidden_states"][-1][0], one)
