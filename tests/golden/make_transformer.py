"""Write tiny random checkpoints of torch.nn.Transformer and its stacks, and what torch computes with them:
transformer_*/ next to this file, as make_models.py writes its folders.

Run (tests read the recorded files and need no torch):

    pip install torch==2.13.0 safetensors==0.8.0
    python tests/golden/make_transformer.py [name ...]

config.json is written by hand: torch has none. Values are computed in float64 from the stored weights and rounded once
to float32. Compare real positions only.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

HERE = Path(__file__).parent
SIZES = {"d_model": 16, "nhead": 2, "dim_feedforward": 24}
PAIR = SIZES | {"num_encoder_layers": 2, "num_decoder_layers": 1}
ONE = SIZES | {"num_layers": 2}
OTHER = {"norm_first": True, "bias": False, "activation": "gelu", "layer_norm_eps": 0.05}

# name: class, config, whether there is a final norm, parameters that are one
MODELS: dict[str, tuple[str, dict[str, Any], bool, tuple[str, ...]]] = {
    "transformer_stacks": ("Transformer", PAIR, True, ()),
    "transformer_stacks_other": ("Transformer", PAIR | OTHER, True, ()),
    "transformer_tied": (
        "Transformer",
        PAIR | {"vocab_size": 40, "tie_word_embeddings": True},
        True,
        ("src_embed.weight", "tgt_embed.weight", "generator.weight"),
    ),
    "transformer_vocabularies": (
        "Transformer",
        PAIR | {"vocab_size": 40, "tgt_vocab_size": 44, "norm_first": True},
        True,
        (),
    ),
    "transformer_encoder": ("TransformerEncoder", ONE, False, ()),
    "transformer_encoder_other": ("TransformerEncoder", ONE | OTHER, True, ()),
    "transformer_encoder_lm": ("TransformerEncoder", ONE | {"vocab_size": 40, "is_causal": True}, True, ()),
    "transformer_decoder": ("TransformerDecoder", ONE, False, ()),
    "transformer_decoder_other": ("TransformerDecoder", ONE | OTHER, True, ()),
}


class Paper(nn.Module):
    """A stack, or two, and around it the paper's embeddings and generator where there are vocabularies."""

    def __init__(self, kind: str, config: dict[str, Any], norm: bool):
        super().__init__()
        self.config = config
        width, bias = config["d_model"], config.get("bias", True)
        options = {name: config[name] for name in (*SIZES, *OTHER) if name in config} | {"batch_first": True}
        final = nn.LayerNorm(width, config.get("layer_norm_eps", 1e-5), bias=bias) if norm else None
        if kind == "Transformer":
            layers = {name: config[name] for name in ("num_encoder_layers", "num_decoder_layers")}
            self.transformer = nn.Transformer(**options, **layers)
        else:
            layer = getattr(nn, kind + "Layer")(**options)
            self.transformer = getattr(nn, kind)(layer, config["num_layers"], norm=final)
        source, target = config.get("vocab_size"), config.get("tgt_vocab_size", config.get("vocab_size"))
        if source and kind != "TransformerDecoder":
            self.src_embed = nn.Embedding(source, width)
        if target and kind != "TransformerEncoder":
            self.tgt_embed = nn.Embedding(target, width)
        if target:
            self.generator = nn.Linear(width, target)

    def embed(self, name: str, given: torch.Tensor) -> torch.Tensor:
        if not hasattr(self, name):
            return given
        width = self.config["d_model"]
        angles = torch.tensor(
            [[p / 10000 ** (2 * (i // 2) / width) for i in range(width)] for p in range(given.shape[1])],
            dtype=torch.float64,
        )
        even = torch.arange(width) % 2 == 0
        return getattr(self, name)(given) * math.sqrt(width) + torch.where(even, angles.sin(), angles.cos())

    def forward(self, case: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        padding = case["attention_mask"] == 0  # torch: True is not attended to
        outputs = {}
        if isinstance(self.transformer, nn.TransformerEncoder):
            x = self.embed("src_embed", case["input_ids"])
            causal = self.config.get("is_causal", False)
            mask = torch.triu(torch.ones(x.shape[1], x.shape[1], dtype=torch.bool), 1) if causal else None
            x = self.transformer(x, mask=mask, src_key_padding_mask=padding)
        else:
            target = self.embed("tgt_embed", case["decoder_input_ids"])
            future = torch.triu(torch.ones(target.shape[1], target.shape[1], dtype=torch.bool), 1)
            options = {
                "tgt_mask": future,
                "tgt_key_padding_mask": case["decoder_attention_mask"] == 0,
                "memory_key_padding_mask": padding,
            }
            if isinstance(self.transformer, nn.Transformer):
                source = self.embed("src_embed", case["input_ids"])
                x = self.transformer(source, target, src_key_padding_mask=padding, **options)
                encoded = self.transformer.encoder(source, src_key_padding_mask=padding)
                outputs["encoder_last_hidden_state"] = encoded
            else:
                x = self.transformer(target, case["input_ids"], **options)
        if hasattr(self, "generator"):
            return {"logits": self.generator(x), **outputs}
        return {"last_hidden_state": x, **outputs}


def make_case(model: Paper, rng: np.random.Generator) -> dict[str, np.ndarray]:
    def side(prefix: str, table: str, lengths: tuple[int, ...]) -> dict[str, np.ndarray]:
        mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)
        if hasattr(model, table):
            ids = rng.integers(0, getattr(model, table).num_embeddings, mask.shape)
        else:
            ids = rng.normal(size=(*mask.shape, model.config["d_model"])).astype(np.float32)
        return {f"{prefix}input_ids": ids, f"{prefix}attention_mask": mask}

    case = side("", "src_embed", (7, 3, 5))
    if not isinstance(model.transformer, nn.TransformerEncoder):
        case |= side("decoder_", "tgt_embed", (5, 4, 2))
    return case


def main() -> None:
    torch.set_num_threads(1)
    torch.backends.mha.set_fastpath_enabled(False)
    for seed, (name, (kind, config, norm, tied)) in enumerate(MODELS.items()):
        if sys.argv[1:] and name not in sys.argv[1:]:
            continue
        folder = HERE / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        model = Paper(kind, config, norm).eval()
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                mean = float("norm" in key and key.endswith("weight"))
                parameter.normal_(mean=mean, std=0.2, generator=generator)
            for key in tied[1:]:
                model.get_parameter(key).copy_(model.get_parameter(tied[0]))
        # a stack alone as its own state_dict has it, else as that of the module around it
        alone = not hasattr(model, "generator")
        state = (model.transformer if alone else model).state_dict()
        state = {key: value.contiguous() for key, value in state.items() if key not in tied[1:]}
        save_file(state, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps({"architectures": [kind], **config}, indent=2) + "\n")
        case = make_case(model, np.random.default_rng(seed))
        tensors = {key: torch.from_numpy(value) for key, value in case.items()}
        tensors = {key: value.double() if value.is_floating_point() else value for key, value in tensors.items()}
        with torch.no_grad():
            outputs = model.double()(tensors)
        expected = case | {key: value.numpy().astype(np.float32) for key, value in outputs.items()}
        np.savez_compressed(folder / "expected.npz", **{f"right/{key}": value for key, value in expected.items()})
        size = sum(file.stat().st_size for file in folder.iterdir())
        print(f"{name:28} {size:8,} bytes, {sorted(outputs)}")


if __name__ == "__main__":
    main()
