"""Every family against transformers, from recorded tiny checkpoints (golden/make_models.py), and against itself.

BERT has more of both in test_bert.py.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import qkv
from golden_checks import GOLDEN, agree, expected, inputs, outputs
from qkv.packing import Packed

FOLDERS = sorted(
    path.parent.name for path in GOLDEN.glob("*/expected.npz") if not path.parent.name.startswith(("bert_", "sentence"))
)


def padded(folder: str) -> bool:
    """Whether rows of one text are recorded with padding. Of two stacks test_seq2seq.py pads both texts."""
    case = next(iter(expected(folder).values()))
    one = "input_ids" in case and "encoder_last_hidden_state" not in case and "decoder_input_ids" not in case
    return one and not (case["attention_mask"] == 1).all()


PADDED = [folder for folder in FOLDERS if padded(folder)]
DECODERS = [folder for folder in FOLDERS if getattr(qkv.load(GOLDEN / folder), "cache", None) is not None]


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


@pytest.mark.parametrize("folder", PADDED)
def test_padding_changes_nothing(folder: str) -> None:
    """To the bit, on either side, and what stands at padding is zero."""
    case = next(iter(expected(folder).values()))
    model = qkv.load(GOLDEN / folder)
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


@pytest.mark.parametrize("folder", DECODERS)
def test_cached_and_chunked_as_in_one_piece(folder: str, isa: str, rng: np.random.Generator) -> None:
    """To the bit: a prompt in one piece, in chunks, and token by token, in ragged batches."""
    model = qkv.load(GOLDEN / folder)
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
