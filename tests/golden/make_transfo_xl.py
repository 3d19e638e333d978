"""Write tiny random checkpoints of Transformer-XL and what transformers computes with them: transfo_xl_*/ next to this
file, as make_models.py writes its folders. The family is gone from later versions, so it needs one of its own:

    pip install torch==2.13.0 transformers==4.35.2 "numpy<2" safetensors==0.8.0 sacremoses
    HF_HUB_OFFLINE=1 python tests/golden/make_transfo_xl.py [name ...]

Cases are one text in pieces: `first` begins without a memory, `second` and `third` go on with what the piece before
left (`mems`, layers first; so the memory that a piece leaves is the next one's input). Values are computed in float64
from the stored weights and rounded once to float32.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

HERE = Path(__file__).parent
SIZES = {
    "vocab_size": 40,
    "cutoffs": [10, 25],
    "d_model": 16,
    "d_embed": 16,
    "n_head": 2,
    "d_head": 6,
    "d_inner": 24,
    "div_val": 2,
    "n_layer": 2,
    "mem_len": 6,
    "clamp_len": 7,
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "transfo_xl_base": ("TransfoXLModel", SIZES),
    "transfo_xl_pre": (
        "TransfoXLModel",
        SIZES
        | {"pre_lnorm": True, "same_length": False, "untie_r": False, "clamp_len": -1, "layer_norm_epsilon": 0.05}
        | {"div_val": 1, "d_embed": 12},
    ),
    "transfo_xl_forgetful": ("TransfoXLModel", SIZES | {"mem_len": 0, "same_length": False}),
    "transfo_xl_lm": ("TransfoXLLMHeadModel", SIZES),
    "transfo_xl_lm_shared": ("TransfoXLLMHeadModel", SIZES | {"div_val": 1}),
    "transfo_xl_lm_projected": ("TransfoXLLMHeadModel", SIZES | {"div_val": 1, "d_embed": 12}),
    "transfo_xl_lm_untied": (
        "TransfoXLLMHeadModel",
        SIZES | {"proj_share_all_but_first": False, "tie_word_embeddings": False, "untie_r": False},
    ),
    "transfo_xl_lm_plain": ("TransfoXLLMHeadModel", SIZES | {"cutoffs": [], "tie_projs": [True]}),
    "transfo_xl_classify": ("TransfoXLForSequenceClassification", SIZES | {"pad_token_id": 3, "num_labels": 3}),
}


def run(model: torch.nn.Module, ids: np.ndarray, mems: Any, whole: bool) -> tuple[dict[str, np.ndarray], Any]:
    with torch.no_grad():
        out = model(torch.from_numpy(ids), mems=mems, output_hidden_states=whole, output_attentions=whole)
    arrays = {}
    for name, value in out.items():
        if torch.is_tensor(value):
            arrays[name] = value.numpy()
        elif name in ("hidden_states", "attentions"):
            arrays[name] = torch.stack(value).numpy()
    return arrays, out.mems


def main() -> None:
    torch.set_num_threads(1)
    # the library makes scores float32 to fill them with float64's lowest number, which float32 does not have
    torch.Tensor.float = torch.Tensor.double
    for seed, (name, (kind, options)) in enumerate(MODELS.items()):
        if sys.argv[1:] and name not in sys.argv[1:]:
            continue
        folder = HERE / name
        shutil.rmtree(folder, ignore_errors=True)
        cls = getattr(transformers, kind)
        model = cls(transformers.TransfoXLConfig(**options))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                parameter.normal_(mean=float(key.endswith("norm.weight")), std=0.2, generator=generator)
        model.save_pretrained(folder, safe_serialization=True)
        model = cls.from_pretrained(folder).double().eval()
        rng = np.random.default_rng(seed)
        expected, mems = {}, None
        for case, length in (("first", 5), ("second", 4), ("third", 9)):
            ids = rng.integers(4, 40, (3, length))
            ids[1, :2] = 2, 12  # of the first clusters, as few are
            if kind.endswith("Classification"):
                ids[2, 3:] = 3
            given = {} if mems is None else {"mems": torch.stack(mems).numpy()}
            outputs, mems = run(model, ids, mems, name in ("transfo_xl_base", "transfo_xl_pre"))
            recorded = {"input_ids": ids, "attention_mask": np.ones_like(ids), **given, **outputs}
            for key, value in recorded.items():
                expected[f"{case}/{key}"] = value.astype(np.float32) if value.dtype.kind == "f" else value
        np.savez_compressed(folder / "expected.npz", **expected)
        (folder / "generation_config.json").unlink(missing_ok=True)
        size = sum(file.stat().st_size for file in folder.iterdir())
        print(f"{name:28} {size:8,} bytes, {sorted(outputs)}")


if __name__ == "__main__":
    main()
