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

import inspect
import shutil
import sys
import zlib
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
VIT = ONE | {"image_size": 8, "patch_size": 4}
GPT = {"vocab_size": 40, "n_positions": 12, "n_embd": 16, "n_layer": 2, "n_head": 2}
GPT2 = GPT | {"bos_token_id": 39, "eos_token_id": 39}
CTRL = GPT | {"dff": 24}
LLAMA = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
}
BERT = ONE | {"vocab_size": 40, "max_position_embeddings": 12, "layer_norm_eps": 0.01}
ROBERTA = BERT | {"max_position_embeddings": 14}
NARROW = BERT | {"embedding_size": 8}
DISTILBERT = {"vocab_size": 40, "max_position_embeddings": 12, "dim": 16, "n_heads": 2, "n_layers": 2, "hidden_dim": 24}
PAIR = ("pair", "long")
PADS = ("inside", "unmasked")

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
    # ---- bert.py
    "bertlm_causal": Made("BertLMHeadModel", BERT | {"is_decoder": True}, whole=True),
    # ---- roberta.py
    "roberta_base": Made("RobertaModel", ROBERTA | {"type_vocab_size": 1}, ("right",), whole=True),
    "roberta_lm": Made(
        "RobertaForMaskedLM", ROBERTA | {"hidden_act": "gelu_new", "pad_token_id": 3}, ("types", "pads")
    ),
    "roberta_untied": Made("RobertaForMaskedLM", ROBERTA | {"tie_word_embeddings": False}, ("right",)),
    "roberta_classify": Made("RobertaForSequenceClassification", ROBERTA | {"num_labels": 3}, ("right",)),
    "roberta_tag": Made("RobertaForTokenClassification", ROBERTA | {"num_labels": 3}, ("pads",)),
    "roberta_span": Made("RobertaForQuestionAnswering", ROBERTA, ("left",)),
    "roberta_causal": Made("RobertaForCausalLM", ROBERTA | {"is_decoder": True}, ("right", "left", "pads"), whole=True),
    "xlmroberta_base": Made("XLMRobertaModel", ROBERTA | {"is_decoder": True}, ("right",)),
    "xlmroberta_classify": Made("XLMRobertaForSequenceClassification", ROBERTA, ("right",)),
    "camembert_lm": Made("CamembertForMaskedLM", ROBERTA, ("right", "pads")),
    "camembert_tag": Made("CamembertForTokenClassification", ROBERTA, ("right",)),
    # ---- albert.py
    "albert_base": Made(
        "AlbertModel",
        NARROW | {"num_hidden_layers": 3, "num_hidden_groups": 2, "inner_group_num": 2},
        ("right",),
        whole=True,
    ),
    "albert_pretraining": Made(
        "AlbertForPreTraining",
        NARROW | {"hidden_act": "relu", "num_labels": 3, "tie_word_embeddings": False},
        ("types",),
    ),
    "albert_lm": Made("AlbertForMaskedLM", BERT | {"embedding_size": 16}, ("right",)),
    "albert_classify": Made("AlbertForSequenceClassification", NARROW | {"num_labels": 3}, ("right",)),
    "albert_tag": Made("AlbertForTokenClassification", NARROW | {"num_labels": 3}, ("left",)),
    "albert_span": Made("AlbertForQuestionAnswering", NARROW, ("right",)),
    # ---- distilbert.py
    "distilbert_base": Made("DistilBertModel", DISTILBERT | {"sinusoidal_pos_embds": True}, whole=True),
    "distilbert_lm": Made("DistilBertForMaskedLM", DISTILBERT | {"activation": "relu"}, ("right",)),
    "distilbert_untied": Made("DistilBertForMaskedLM", DISTILBERT | {"tie_word_embeddings": False}, ("right",)),
    "distilbert_classify": Made("DistilBertForSequenceClassification", DISTILBERT | {"num_labels": 3}, ("right",)),
    "distilbert_tag": Made("DistilBertForTokenClassification", DISTILBERT | {"num_labels": 3}, ("right",)),
    "distilbert_span": Made("DistilBertForQuestionAnswering", DISTILBERT, ("right",)),
    # ---- electra.py
    "electra_base": Made("ElectraModel", NARROW, ("right", "left", "types"), whole=True),
    "electra_discriminator": Made("ElectraForPreTraining", BERT | {"embedding_size": 16, "hidden_act": "gelu_new"}),
    "electra_lm": Made("ElectraForMaskedLM", NARROW | {"hidden_act": "relu"}, ("right",)),
    "electra_untied": Made(
        "ElectraForMaskedLM", NARROW | {"num_hidden_layers": 1, "tie_word_embeddings": False}, ("right",)
    ),
    "electra_classify": Made(
        "ElectraForSequenceClassification", NARROW | {"hidden_act": "relu", "num_labels": 3}, ("right",)
    ),
    "electra_tag": Made("ElectraForTokenClassification", NARROW | {"num_labels": 3}, ("right",)),
    "electra_span": Made("ElectraForQuestionAnswering", NARROW, ("right",)),
    "electra_causal": Made("ElectraForCausalLM", NARROW | {"is_decoder": True}),
    # ---- gpt.py
    "gpt_base": Made("OpenAIGPTModel", GPT, ("right", "left", "types"), whole=True),
    "gpt_lm": Made("OpenAIGPTLMHeadModel", GPT | {"afn": "relu", "layer_norm_epsilon": 0.05}),
    "gpt_untied": Made("OpenAIGPTLMHeadModel", GPT | {"afn": "swish", "tie_word_embeddings": False}),
    "gpt_classify": Made(
        "OpenAIGPTForSequenceClassification", GPT | {"pad_token_id": 3, "num_labels": 3}, ("right", "left", *PADS)
    ),
    # ---- gpt2.py
    "gpt2_base": Made("GPT2Model", GPT2, ("right", "left", "types"), whole=True),
    "gpt2_lm": Made(
        "GPT2LMHeadModel",
        GPT2 | {"n_inner": 20, "activation_function": "relu", "layer_norm_epsilon": 0.05, "scale_attn_weights": False},
    ),
    "gpt2_by_layer": Made("GPT2LMHeadModel", GPT2 | {"scale_attn_by_inverse_layer_idx": True}),
    "gpt2_untied": Made("GPT2LMHeadModel", GPT2 | {"tie_word_embeddings": False}),
    "gpt2_classify": Made(
        "GPT2ForSequenceClassification", GPT2 | {"pad_token_id": 3, "num_labels": 3}, ("right", "left", *PADS)
    ),
    "gpt2_tag": Made("GPT2ForTokenClassification", GPT2 | {"num_labels": 3}),
    "gpt2_span": Made("GPT2ForQuestionAnswering", GPT2),
    # ---- ctrl.py
    "ctrl_base": Made("CTRLModel", CTRL | {"layer_norm_epsilon": 0.05}, ("right", "left", "types"), whole=True),
    "ctrl_lm": Made("CTRLLMHeadModel", CTRL),
    "ctrl_untied": Made("CTRLLMHeadModel", CTRL | {"tie_word_embeddings": False}),
    "ctrl_classify": Made(
        "CTRLForSequenceClassification", CTRL | {"pad_token_id": 3, "num_labels": 3}, ("right", "left", *PADS)
    ),
    # ---- imagegpt.py
    "imagegpt_base": Made("ImageGPTModel", GPT, ("right", "left", "types"), whole=True),
    "imagegpt_lm": Made(
        "ImageGPTForCausalImageModeling",
        GPT
        | {"n_inner": 20, "activation_function": "relu", "layer_norm_epsilon": 0.05}
        | {"scale_attn_weights": False, "scale_attn_by_inverse_layer_idx": True},
    ),
    # its mean is over padding too, which qkv leaves out
    "imagegpt_classify": Made(
        "ImageGPTForImageClassification", GPT | {"num_labels": 3, "reorder_and_upcast_attn": True}, ("full",)
    ),
    # ---- llama.py
    "llama_base": Made(
        "LlamaModel",
        LLAMA
        | {"head_dim": 6, "attention_bias": True, "mlp_bias": True, "hidden_act": "gelu", "rms_norm_eps": 0.05}
        | {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
        whole=True,
    ),
    "llama_lm": Made(
        "LlamaForCausalLM",
        LLAMA
        | {"num_key_value_heads": 4}
        | {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 100.0,
                "factor": 4.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 3.0,
                "original_max_position_embeddings": 16,
            }
        },
    ),
    "llama_tied": Made(
        "LlamaForCausalLM",
        LLAMA
        | {"tie_word_embeddings": True, "num_key_value_heads": 1}
        | {"rope_parameters": {"rope_type": "linear", "rope_theta": 100.0, "factor": 3.0}},
    ),
    "llama_classify": Made(
        "LlamaForSequenceClassification",
        LLAMA
        | {"pad_token_id": 3, "num_labels": 3, "head_dim": 8, "original_max_position_embeddings": 64}
        | {"rope_parameters": {"rope_type": "yarn", "rope_theta": 100.0, "factor": 4.0, "beta_fast": 3.0}},
        ("right", "left", *PADS),
    ),
    "llama_tag": Made("LlamaForTokenClassification", LLAMA | {"num_labels": 3}),
    "llama_span": Made("LlamaForQuestionAnswering", LLAMA),
    # the longest row decides the rotation of all, so both are of one length
    "llama_dynamic": Made(
        "LlamaModel",
        LLAMA
        | {"max_position_embeddings": 8}
        | {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 100.0, "factor": 3.0}},
        ("full", "beyond"),
    ),
    "llama_longrope": Made(
        "LlamaModel",
        LLAMA
        | {
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 100.0,
                "short_factor": [1.0, 1.5],
                "long_factor": [2.0, 3.5],
                "factor": 5.0,
                "original_max_position_embeddings": 8,
            }
        },
        ("full", "beyond"),
    ),
    "mistral_lm": Made("MistralForCausalLM", LLAMA | {"head_dim": 6, "sliding_window": 3}, whole=True),
    "mistral_span": Made("MistralForQuestionAnswering", LLAMA | {"sliding_window": None}),
    "qwen2_base": Made(
        "Qwen2Model",
        LLAMA | {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1},
        whole=True,
    ),
    "qwen2_lm": Made(
        "Qwen2ForCausalLM",
        LLAMA
        | {"use_sliding_window": True, "sliding_window": 2, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "qwen2_span": Made("Qwen2ForQuestionAnswering", LLAMA),
    "qwen3_lm": Made("Qwen3ForCausalLM", LLAMA | {"head_dim": 6, "attention_bias": True}, whole=True),
    "qwen3_window": Made(
        "Qwen3Model",
        LLAMA
        | {"head_dim": 8, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0}
        | {"rms_norm_eps": 0.05},
    ),
    "gemma2_lm": Made(
        "Gemma2ForCausalLM",
        LLAMA
        | {"head_dim": 6, "query_pre_attn_scalar": 10, "sliding_window": 3}
        | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
        whole=True,
    ),
    "gemma2_untied": Made(
        "Gemma2ForCausalLM",
        LLAMA
        | {"head_dim": 6, "attn_logit_softcapping": None, "final_logit_softcapping": None}
        | {"attention_bias": True, "hidden_activation": "silu", "tie_word_embeddings": False, "rms_norm_eps": 0.05}
        | {"sliding_window": 2, "layer_types": ["full_attention", "sliding_attention"]},
    ),
    "gemma2_classify": Made(
        "Gemma2ForSequenceClassification", LLAMA | {"head_dim": 4, "num_labels": 3}, ("right", "left", *PADS)
    ),
    "phi3_lm": Made(
        "Phi3ForCausalLM",
        LLAMA
        | {"pad_token_id": 3, "original_max_position_embeddings": 8, "num_attention_heads": 2, "num_key_value_heads": 1}
        | {
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 100.0,
                "partial_rotary_factor": 0.5,
                "short_factor": [1.0, 1.5],
                "long_factor": [2.0, 3.5],
            }
        },
        ("full", "beyond"),
        whole=True,
    ),
    "phi3_tag": Made(
        "Phi3ForTokenClassification",
        LLAMA
        | {"pad_token_id": 3, "num_labels": 3, "sliding_window": 3, "num_attention_heads": 2}
        | {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.5}},
    ),
    # ---- vit.py
    "vit_base": Made("ViTModel", VIT, ("image",), whole=True),
    "vit_options": Made(
        "ViTModel",
        VIT
        | {"image_size": [9, 14], "patch_size": [4, 5], "num_channels": 2, "qkv_bias": False, "layer_norm_eps": 0.05}
        | {"hidden_act": "gelu_new", "pooler_output_size": 6, "pooler_act": "relu"},
        ("image",),
    ),
    "vit_classify": Made("ViTForImageClassification", VIT | {"num_labels": 3}, ("image",)),
    "deit_base": Made("DeiTModel", VIT, ("image",), whole=True),
    "deit_classify": Made("DeiTForImageClassification", VIT | {"num_labels": 3}, ("image",)),
    "deit_teacher": Made("DeiTForImageClassificationWithTeacher", VIT | {"num_labels": 3}, ("image",)),
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
    """right, left: rows of several lengths, padded there. full, beyond: none padded, the latter of more tokens. types:
    with token types. pads: padded on the left, with the pad token among the real ones too, and no position_ids. pair,
    long: with ids for a decoder too, the latter of many tokens. shift: without, for classes that make them of the
    encoder's. eos: so as well, with one at the end of each row. inside: the pad token among the real ones too, and
    one row of nothing else. unmasked: so as well, without a mask. image: pixels instead."""
    if name == "image":
        size = config.image_size if isinstance(config.image_size, (list, tuple)) else [config.image_size] * 2
        return {"pixel_values": rng.normal(size=(3, config.num_channels, *size)).astype(np.float32)}
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
    side = "left" if name in ("left", "pads") else "right"
    mask = rows({"full": (7, 7), "beyond": (12, 12)}.get(name, (7, 3, 1)), side)
    case = {"input_ids": ids(rng, mask, config), "attention_mask": mask}
    if name in PADS:
        case["input_ids"][[0, 0, 0, 1, 2], [2, 5, 6, 2, 0]] = config.pad_token_id
    if name == "unmasked":
        del case["attention_mask"]
    if name == "left":
        case["position_ids"] = np.maximum(mask.cumsum(axis=1) - 1, 0)
    if name == "pads":
        case["input_ids"][0, [0, 3, 4]] = config.pad_token_id
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


def softmax_of_its_own_dtype(softmax: Any) -> Any:
    """Llama and its kin ask for float32, in which the least float64, their mask, is -inf: padding that sees nothing
    would be NaN, and what sees padding with a weight of 0 too."""
    return lambda x, dim=None, dtype=None, **options: softmax(x, dim=dim, **options)


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
    torch.nn.functional.softmax = softmax_of_its_own_dtype(torch.nn.functional.softmax)
    for folder_name, made in MODELS.items():
        if sys.argv[1:] and folder_name not in sys.argv[1:]:
            continue
        seed = zlib.crc32(folder_name.encode())
        folder = HERE / folder_name
        shutil.rmtree(folder, ignore_errors=True)
        save_random(folder, made, seed)
        cls = getattr(transformers, made.name)
        model = cls.from_pretrained(folder, attn_implementation="eager", dtype=torch.float64).eval()
        rng = np.random.default_rng(seed)
        expected = {}
        for case_name in made.cases:
            case = make_case(case_name, model.config, rng)
            if "position_ids" not in inspect.signature(model.forward).parameters:
                case.pop("position_ids", None)  # T5 has none, and does not say so
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
