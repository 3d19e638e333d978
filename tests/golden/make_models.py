"""Write tiny random checkpoints of every family and what transformers computes with them: <family>_*/ next to this
file. BERT's own, with more cases, are make_bert.py's.

Run (tests read the recorded files and need neither torch nor transformers):

    pip install torch==2.13.0 transformers==5.24.0 safetensors==0.8.0
    HF_HUB_OFFLINE=1 python tests/golden/make_models.py [name ...]

Each folder is as transformers saves it, plus expected.npz with entries `<case>/<name>`: the inputs under the names
of transformers' arguments, and the outputs under those of its fields; hidden states and attentions are stacked, layers
first. Values are computed in float64 from the stored weights (where the library itself does not go through float32, as
its RMS norms and rotary angles do) and rounded once to float32. Where rows have padding, position_ids are recorded that
count the real tokens. Compare real positions only.
"""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

HERE = Path(__file__).parent
ONE = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 24}


@dataclass
class Made:
    """One checkpoint. cases: of CASES. fixed: parameters that keep their values, by part of their name. whole: record
    hidden states and attentions too."""

    name: str
    options: dict[str, Any]
    cases: tuple[str, ...] = ("right", "left")
    fixed: tuple[str, ...] = ()
    whole: bool = False
    config: dict[str, Any] = field(default_factory=dict)  # written over what transformers saves


BART = {
    "vocab_size": 40,
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 20,
    "max_position_embeddings": 12,
}
MARIAN = BART | {"pad_token_id": 39, "eos_token_id": 0, "decoder_start_token_id": 39}
T5 = {
    "vocab_size": 40,
    "d_model": 16,
    "d_kv": 6,
    "d_ff": 24,
    "num_layers": 2,
    "num_decoder_layers": 1,
    "num_heads": 2,
    "decoder_start_token_id": 0,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 12,
}
PAIR = ("pair", "long")

MODELS: dict[str, Made] = {
    # ---- bart.py
    "bart_base": Made("BartModel", BART, (*PAIR, "shift"), whole=True),
    "bart_scaled": Made(
        "BartForConditionalGeneration",
        BART | {"scale_embedding": True, "activation_function": "gelu_new"},
        (*PAIR, "shift"),
    ),
    "bart_untied": Made("BartForConditionalGeneration", BART | {"tie_word_embeddings": False}, ("pair",)),
    "bart_classify": Made("BartForSequenceClassification", BART, ("eos",)),
    "bart_span": Made("BartForQuestionAnswering", BART, ("shift",)),
    "bart_decoder": Made("BartForCausalLM", BART, ("right",)),
    "mbart_base": Made("MBartModel", BART, (*PAIR, "shift"), whole=True),
    "mbart_lm": Made("MBartForConditionalGeneration", BART | {"scale_embedding": True}, (*PAIR, "shift")),
    "mbart_classify": Made("MBartForSequenceClassification", BART, ("eos",)),
    "mbart_span": Made("MBartForQuestionAnswering", BART, ("shift",)),
    "mbart_decoder": Made("MBartForCausalLM", BART, ("right",)),
    "marian_base": Made("MarianModel", MARIAN, PAIR, ("embed_positions",), whole=True),
    "marian_lm": Made(
        "MarianMTModel",
        MARIAN | {"scale_embedding": True, "activation_function": "swish"},
        PAIR,
        ("embed_positions",),
    ),
    "marian_vocabularies": Made(
        "MarianMTModel",
        MARIAN | {"share_encoder_decoder_embeddings": False, "decoder_vocab_size": 44},
        PAIR,
        ("embed_positions",),
    ),
    "marian_untied": Made("MarianMTModel", MARIAN | {"tie_word_embeddings": False}, ("pair",), ("embed_positions",)),
    "marian_decoder": Made("MarianForCausalLM", MARIAN, ("right",), ("embed_positions",)),
    # ---- t5.py
    "t5_base": Made("T5Model", T5, PAIR, whole=True),
    "t5_lm": Made("T5ForConditionalGeneration", T5, PAIR),
    "t5_v1_1": Made(
        "T5ForConditionalGeneration",
        T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
        PAIR,
        whole=True,
    ),
    "t5_gated_silu": Made("T5ForConditionalGeneration", T5 | {"feed_forward_proj": "gated-silu"}, ("pair",)),
    "t5_encoder": Made("T5EncoderModel", T5, whole=True),
    "t5_classify": Made("T5ForSequenceClassification", T5, ("eos",)),
    "t5_tag": Made("T5ForTokenClassification", T5),
    "t5_span": Made("T5ForQuestionAnswering", T5, ("pair",)),
    # ---- roberta.py
    # ---- albert.py
    # ---- distilbert.py
    # ---- electra.py
    # ---- gpt.py
    # ---- gpt2.py
    # ---- ctrl.py
    # ---- imagegpt.py
    # ---- llama.py
    # ---- vit.py
}


def rows(lengths: tuple[int, ...], side: str) -> np.ndarray:
    columns = np.arange(max(lengths))
    mask = (columns < np.array(lengths)[:, None]).astype(np.int64)
    return mask if side == "right" else mask[:, ::-1].copy()


def ids(rng: np.random.Generator, mask: np.ndarray, config: Any) -> np.ndarray:
    """Random ids, pad at padding and nowhere else."""
    pad = config.pad_token_id if config.pad_token_id is not None else 0
    drawn = rng.integers(0, config.vocab_size - 1, mask.shape)
    return np.where(mask == 1, drawn + (drawn >= pad), pad)


def make_case(name: str, config: Any, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """right, left: rows of several lengths, padded there. full: none padded. types: with token types. pair, long:
    with ids for a decoder too, the latter of many tokens. shift: without, for classes that make them of the
    encoder's. eos: so as well, with one at the end of each row."""
    if name in ("pair", "long", "shift", "eos"):
        mask = rows((12, 9) if name == "long" else (7, 3, 5), "right")
        case = {"input_ids": ids(rng, mask, config), "attention_mask": mask}
        eos = config.eos_token_id
        case["input_ids"] = np.where((case["input_ids"] == eos) & (mask == 1), eos + 3, case["input_ids"])
        case["input_ids"][np.arange(len(mask)), mask.sum(axis=1) - 1] = eos
        if name in ("pair", "long"):
            mask = rows((10, 12) if name == "long" else (5, 4, 2), "right")
            vocabulary = getattr(config, "decoder_vocab_size", None) or config.vocab_size
            case["decoder_input_ids"] = rng.integers(3, vocabulary - 1, mask.shape)
            case["decoder_attention_mask"] = mask
        return case
    side = "left" if name == "left" else "right"
    mask = rows((7, 7) if name == "full" else (7, 3, 1), side)
    case = {"input_ids": ids(rng, mask, config), "attention_mask": mask}
    if name == "left":
        case["position_ids"] = np.maximum(mask.cumsum(axis=1) - 1, 0)
    if name == "types":
        case["token_type_ids"] = rng.integers(0, getattr(config, "type_vocab_size", config.vocab_size), mask.shape)
    return case


def save_random(folder: Path, made: Made, seed: int) -> None:
    """Save a model whose parameters and buffers are all random, norms and biases too."""
    cls = getattr(transformers, made.name)
    model = cls(cls.config_class(**made.options))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in [*model.named_parameters(), *model.named_buffers()]:
            if parameter.is_floating_point() and not any(part in name for part in (*made.fixed, "inv_freq")):
                scale = parameter.dim() == 1 and name.endswith("weight")  # of a norm
                parameter.normal_(mean=float(scale), std=0.2, generator=generator)
    model.save_pretrained(folder)


def run(model: torch.nn.Module, case: dict[str, np.ndarray], whole: bool) -> dict[str, np.ndarray]:
    inputs = {
        name: torch.from_numpy(value).to(torch.float64) if value.dtype.kind == "f" else torch.from_numpy(value)
        for name, value in case.items()
    }
    with torch.no_grad():
        out = model(**inputs, output_hidden_states=whole, output_attentions=whole)
    arrays = {}
    for name, value in out.items():
        if torch.is_tensor(value):
            arrays[name] = value.numpy()
        elif isinstance(value, tuple) and value and name != "past_key_values":
            arrays[name] = torch.stack(value).numpy()
    return arrays


def main() -> None:
    torch.set_num_threads(1)
    for seed, (folder_name, made) in enumerate(MODELS.items()):
        if sys.argv[1:] and folder_name not in sys.argv[1:]:
            continue
        folder = HERE / folder_name
        shutil.rmtree(folder, ignore_errors=True)
        save_random(folder, made, seed)
        cls = getattr(transformers, made.name)
        model = cls.from_pretrained(folder, attn_implementation="eager", dtype=torch.float64).eval()
        rng = np.random.default_rng(seed)
        expected = {}
        for case_name in made.cases:
            case = make_case(case_name, model.config, rng)
            outputs = run(model, case, made.whole)
            assert not case.keys() & outputs.keys()
            for name, value in {**case, **outputs}.items():
                expected[f"{case_name}/{name}"] = value.astype(np.float32) if value.dtype.kind == "f" else value
        np.savez_compressed(folder / "expected.npz", **expected)
        (folder / "generation_config.json").unlink(missing_ok=True)
        size = sum(file.stat().st_size for file in folder.iterdir())
        print(f"{folder_name:28} {size:8,} bytes, {sorted(outputs)}")


if __name__ == "__main__":
    main()
