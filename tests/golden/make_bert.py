"""Write tiny random BERT checkpoints and what transformers computes with them: bert_*/ next to this file.

Run (tests read the recorded files and need neither torch nor transformers):

    pip install torch==2.13.0 transformers==5.23.0 safetensors==0.8.0
    HF_HUB_OFFLINE=1 python tests/golden/make_bert.py

Each folder is as transformers saves it, plus expected.npz with entries `<case>/<name>`:

inputs   input_ids (B, S); attention_mask (B, S); token_type_ids, position_ids (B, S) where they were passed
outputs  last_hidden_state (B, S, C); hidden_states (L+1, B, S, C); attentions (L, B, H, S, S), eager;
         pooler_output (B, C); logits, start_logits, end_logits, prediction_logits, seq_relationship_logits
errors   <output>.error (): how far transformers in float32 is from the recorded value, at real positions

Values are computed by transformers in float64 from the stored weights and rounded once to float32, so the
error entry is what a plain float32 computation loses. Compare real positions only: transformers returns
numbers at padding, and recorded attentions of padding queries mean nothing.
Where the first column is padding, pooled outputs are those of the row alone, without its padding, because
transformers would pool the padding.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file

HERE = Path(__file__).parent
SMALL = {
    "vocab_size": 40,
    "hidden_size": 24,
    "num_attention_heads": 3,
    "num_hidden_layers": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 20,
}
BASE = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "intermediate_size": 64,
    "max_position_embeddings": 40,
}
WIDE = SMALL | {"hidden_size": 48, "intermediate_size": 20, "hidden_act": "gelu_new", "layer_norm_eps": 1e-5}
LABELS = SMALL | {"num_labels": 3, "type_vocab_size": 3}

# folder -> (class, config, how it is saved)
MODELS: dict[str, tuple[str, dict, str]] = {
    "bert_base": ("BertModel", BASE, ""),
    "bert_gelu_new": ("BertModel", WIDE, ""),
    "bert_relu": ("BertModel", SMALL | {"hidden_act": "relu", "layer_norm_eps": 1e-3}, ""),
    "bert_masked_lm": ("BertForMaskedLM", SMALL, ""),
    "bert_masked_lm_untied": ("BertForMaskedLM", SMALL | {"tie_word_embeddings": False}, ""),
    "bert_classify": ("BertForSequenceClassification", LABELS, ""),
    "bert_tag": ("BertForTokenClassification", LABELS, ""),
    "bert_span": ("BertForQuestionAnswering", SMALL, ""),
    "bert_next_sentence": ("BertForNextSentencePrediction", SMALL, ""),
    "bert_sharded": ("BertModel", SMALL, "sharded"),
    "bert_legacy": ("BertForPreTraining", SMALL, "legacy"),  # as the oldest files on the hub
    "bert_float16": ("BertModel", SMALL, "float16"),
    "bert_bfloat16": ("BertModel", SMALL, "bfloat16"),
}
# ... and the cases recorded for it, fewer where only the file or the head differs
CASES = {
    "BertModel": ("right", "left", "holes", "longest", "positions"),
    "head": ("right", "left", "holes"),
    "file": ("holes",),
}


def save_random(folder: Path, class_name: str, options: dict, how: str, seed: int) -> None:
    """Save a model whose parameters are all random, norms and biases too."""
    model = getattr(transformers, class_name)(transformers.BertConfig(**options))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(mean=float(name.endswith("LayerNorm.weight")), std=0.2, generator=generator)
    if how in ("float16", "bfloat16"):
        model.to(getattr(torch, how))
    model.save_pretrained(folder, max_shard_size="12KB" if how == "sharded" else "1GB")
    if how == "legacy":
        file = folder / "model.safetensors"
        tensors = {
            name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
            for name, tensor in load_file(file).items()
        }
        tensors["bert.embeddings.position_ids"] = torch.arange(options["max_position_embeddings"])[None]
        save_file(tensors, file, metadata={"format": "pt"})


def make_cases(config: transformers.BertConfig, seed: int) -> dict[str, dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)

    def ids(shape: tuple[int, ...], high: int) -> np.ndarray:
        return rng.integers(0, high, shape)

    right = (np.arange(8) < np.array([8, 5, 1])[:, None]).astype(np.int64)
    holes = np.array([[1, 0, 1, 1, 0, 0, 1], [1, 1, 1, 0, 1, 0, 0]])
    longest = (1, config.max_position_embeddings)
    cases = {
        "right": {"attention_mask": right},
        "left": {"attention_mask": right[:, ::-1].copy()},
        "holes": {"attention_mask": holes, "token_type_ids": ids(holes.shape, config.type_vocab_size)},
        "longest": {
            "attention_mask": np.ones(longest, np.int64),
            "token_type_ids": ids(longest, config.type_vocab_size),
        },
        "positions": {
            "attention_mask": np.ones((2, 5), np.int64),
            "position_ids": ids((2, 5), config.max_position_embeddings),
        },
    }
    for name, case in cases.items():
        mask = case["attention_mask"]
        case["input_ids"] = np.where(mask == 1, ids(mask.shape, config.vocab_size), config.pad_token_id)
        if name in ("left", "holes"):
            case["position_ids"] = np.maximum(mask.cumsum(axis=1) - 1, 0)
    return cases


def run(model: torch.nn.Module, case: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    with torch.no_grad():
        inputs = {name: torch.from_numpy(value) for name, value in case.items()}
        out = model(**inputs, output_hidden_states=True, output_attentions=True)
    arrays = {name: value.numpy() for name, value in out.items() if torch.is_tensor(value)}
    arrays["hidden_states"] = torch.stack(out.hidden_states).numpy()
    arrays["attentions"] = torch.stack(out.attentions).numpy()
    return arrays


def run_case(model: torch.nn.Module, case: dict[str, np.ndarray], pooled: set[str]) -> dict[str, np.ndarray]:
    mask = case["attention_mask"] == 1
    arrays = run(model, case)
    if not mask[:, 0].all():
        alone = [run(model, {n: v[[b]][:, mask[b]] for n, v in case.items()}) for b in range(len(mask))]
        for name in pooled & arrays.keys():
            arrays[name] = np.concatenate([row[name] for row in alone])
    return arrays


def at_real_positions(name: str, array: np.ndarray, mask: np.ndarray, pooled: set[str]) -> np.ndarray:
    if name in pooled:
        return array
    if name == "hidden_states":
        return array[:, mask]
    if name == "attentions":
        return array.swapaxes(2, 3)[:, mask]
    return array[mask]


def main() -> None:
    torch.set_num_threads(1)
    for seed, (folder_name, (class_name, options, how)) in enumerate(MODELS.items()):
        folder = HERE / folder_name
        shutil.rmtree(folder, ignore_errors=True)
        save_random(folder, class_name, options, how, seed)
        exact, plain = (
            getattr(transformers, class_name).from_pretrained(folder, attn_implementation="eager", dtype=dtype).eval()
            for dtype in (torch.float64, torch.float32)
        )
        pooled = {"pooler_output", "seq_relationship_logits"}
        if class_name in ("BertForSequenceClassification", "BertForNextSentencePrediction"):
            pooled.add("logits")
        expected = {}
        cases = make_cases(exact.config, seed)
        for case_name in CASES["file" if how else class_name if class_name in CASES else "head"]:
            case = cases[case_name]
            mask = case["attention_mask"] == 1
            for name, value in case.items():
                expected[f"{case_name}/{name}"] = value
            rough = run_case(plain, case, pooled)
            for name, value in run_case(exact, case, pooled).items():
                assert value.dtype == np.float64, name
                error = np.abs(value - rough[name])
                expected[f"{case_name}/{name}"] = value.astype(np.float32)
                expected[f"{case_name}/{name}.error"] = np.float32(at_real_positions(name, error, mask, pooled).max())
        np.savez_compressed(folder / "expected.npz", **expected)
        errors = max(value for name, value in expected.items() if name.endswith(".error"))
        size = sum(file.stat().st_size for file in folder.iterdir())
        print(f"{folder_name:24} {size:8,} bytes, float32 error {errors:.1e}, {sorted(rough)}")


if __name__ == "__main__":
    main()
