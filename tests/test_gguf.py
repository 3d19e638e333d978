"""GGUF files: blocks to the bit, names and configs of Llama-like models, real weights, and broken files."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import qkv
from golden_checks import GOLDEN, SMOL_BOUNDS, checkpoint, close, smollm2
from qkv.gguf import BLOCK_BYTES, read_gguf

gguf = pytest.importorskip("gguf", reason="the files are written by the package of the extra `gguf`")
Type = gguf.GGMLQuantizationType
OURS = {"Q8_0": "int8", "Q4_0": "int4", "Q4_1": "int4"}
NAMES = {
    "embed_tokens": "token_embd",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.qkv_proj": "attn_qkv",
    "mlp.gate_proj": "ffn_gate",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write(path: Path, architecture: str, metadata: dict[str, Any], tensors: dict[str, tuple[np.ndarray, Any]]) -> Path:
    """A file as the gguf package writes it; tensors as float32 arrays with the type that they get."""
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in metadata.items():
        add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string, list: writer.add_array}
        add[type(value)](key, value)
    for name, (array, kind) in tensors.items():
        if kind in (Type.F32, Type.F16):
            writer.add_tensor(name, array.astype(np.float32 if kind == Type.F32 else np.float16))
        else:
            writer.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def config_of(folder: str) -> dict[str, Any]:
    """Of a golden folder, without what GGUF files of its architecture cannot say."""
    config, _ = checkpoint(folder)
    if config["model_type"].startswith("qwen"):
        config |= {"use_sliding_window": False, "layer_types": None, "attention_bias": False}
    if config["model_type"] == "gemma2":
        head_dim = config["head_dim"]
        config |= {"query_pre_attn_scalar": head_dim, "attention_bias": False, "hidden_activation": None}
    return config


def weights_of(folder: str, config: dict[str, Any]) -> dict[str, np.ndarray]:
    kept = {name: array.astype(np.float32) for name, array in checkpoint(folder)[1].items()}
    if config["model_type"] != "qwen2" and not config.get("attention_bias"):
        kept = {name: array for name, array in kept.items() if not name.endswith(".bias")}
    return kept


def as_gguf(config: dict[str, Any], weights: dict[str, np.ndarray]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Metadata and tensors as llama.cpp's converter has them."""
    name = config["model_type"]
    heads, kv = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    rope = config["rope_parameters"]
    metadata = {
        "block_count": config["num_hidden_layers"],
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": heads,
        "attention.head_count_kv": kv,
        "attention.key_length": head_dim,
        "attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        "rope.freq_base": float(rope["rope_theta"]),
        "rope.dimension_count": int(head_dim * rope.get("partial_rotary_factor", 1)),
    }
    if rope["rope_type"] == "linear":
        metadata |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(rope["factor"])}
    if name == "gemma2":
        metadata |= {f"{of}_logit_softcapping": float(config[f"{of}_logit_softcapping"]) for of in ("attn", "final")}
    if name in ("gemma2", "phi3") and config["sliding_window"]:
        metadata["attention.sliding_window"] = config["sliding_window"]
    tensors = {}
    if rope["rope_type"] == "longrope":
        metadata["rope.scaling.original_context_length"] = rope["original_max_position_embeddings"]
        for kind in ("short", "long"):
            tensors[f"rope_factors_{kind}.weight"] = np.array(rope[f"{kind}_factor"], np.float32)
    for old, array in weights.items():
        new = old.removeprefix("model.")
        if name == "llama" and ("q_proj" in old or "k_proj" in old):  # the two that turn together become neighbours
            h = heads if "q_proj" in old else kv
            array = array.reshape(h, 2, -1, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)
        if name == "gemma2" and "norm" in old:
            array = array + 1
        for theirs, ours in NAMES.items():
            new = new.replace(theirs, ours)
        new = new.replace("post_attention_layernorm", "post_attention_norm" if name == "gemma2" else "ffn_norm")
        new = f"output_{new}" if new == "norm.weight" else new.replace("layers.", "blk.")
        tensors[new] = np.ascontiguousarray(array)
    return {f"{name}.{key}": value for key, value in metadata.items()}, tensors


@pytest.mark.parametrize("kind", [*OURS, "Q5_0", "Q5_1", "Q6_K", "Q4_K"])
def test_blocks_are_those_of_the_package_to_the_bit(kind: str, tmp_path: Path, rng: np.random.Generator) -> None:
    kind_ = Type[kind]
    per, size = gguf.GGML_QUANT_SIZES[kind_]
    n, k = 5, 3 * per
    blocks = rng.integers(0, 256, (n, 3, size), dtype=np.uint8)
    if kind in BLOCK_BYTES or kind in OURS or kind in ("Q5_0", "Q5_1"):  # finite scales and minima
        for at in (0, 2) if kind.endswith("1") else (0,):
            blocks[..., at : at + 2] = rng.normal(size=(n, 3)).astype(np.float16)[..., None].view(np.uint8)
    else:
        halves = {"Q6_K": (size - 2,), "Q4_K": (0, 2)}[kind]
        for at in halves:
            blocks[..., at : at + 2] = rng.normal(size=(n, 3)).astype(np.float16)[..., None].view(np.uint8)
    raw = blocks.reshape(n, -1)
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_tensor("w", raw, raw_dtype=kind_)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    tensor = read_gguf(tmp_path / "x.gguf")[1]["w"]
    assert tensor.shape == (n, k)
    np.testing.assert_array_equal(tensor.read(), gguf.quants.dequantize(raw, kind_))
    if kind in OURS:
        assert tensor.parts is not None
        packed = qkv.PackedWeight.from_parts(*tensor.parts())
        assert (packed.dtype, packed.group_size) == (OURS[kind], 32) == (tensor.packed or ())[:2]
    else:
        assert tensor.parts is None


@pytest.mark.parametrize("folder", ["llama_tied", "llama_classify", "qwen2_lm", "qwen3_lm", "gemma2_lm", "phi3_lm"])
def test_float_files_agree_with_the_folder(folder: str, tmp_path: Path, rng: np.random.Generator) -> None:
    config = config_of(folder)
    weights = weights_of(folder, config)
    if folder == "llama_classify":  # a plain model without a head in its file
        config |= {"rope_parameters": {"rope_theta": 100.0, "rope_type": "default"}, "tie_word_embeddings": True}
        config["architectures"] = ["LlamaForCausalLM"]
        del weights["score.weight"]
    metadata, tensors = as_gguf(config, weights)
    path = write(tmp_path / "m.gguf", config["model_type"], metadata, {n: (a, Type.F32) for n, a in tensors.items()})
    for length in (6, 20):  # on both sides of what longrope was trained on
        ids = rng.integers(0, config["vocab_size"], (2, length))
        close(qkv.load(path)(ids).logits, qkv.from_weights(config, weights)(ids).logits, 2e-6)


def test_llama_3_frequencies(tmp_path: Path, rng: np.random.Generator) -> None:
    """Such files hold what each frequency is divided by."""
    config = config_of("llama_lm")
    weights = weights_of("llama_lm", config)
    rope = config["rope_parameters"]
    metadata, tensors = as_gguf(config | {"rope_parameters": {"rope_theta": 100.0, "rope_type": "default"}}, weights)
    frequencies = 100.0 ** (-np.arange(0, 4, 2) / 4)
    divisors = []
    for f in frequencies:  # https://github.com/meta-llama/llama-models, apply_scaling
        turns = rope["original_max_position_embeddings"] * f / (2 * np.pi)
        low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
        smooth = (turns - low) / (high - low)
        scaled = (1 - smooth) * f / factor + smooth * f
        divisors.append(f / (f / factor if turns < low else f if turns > high else scaled))
    tensors["rope_freqs.weight"] = np.array(divisors, np.float32)
    path = write(tmp_path / "m.gguf", "llama", metadata, {n: (a, Type.F32) for n, a in tensors.items()})
    ids = rng.integers(0, config["vocab_size"], (2, 30))
    close(qkv.load(path)(ids).logits, qkv.from_weights(config, weights)(ids).logits)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", SMOL_BOUNDS)
def test_smollm2_agrees_with_transformers(dtype: str) -> None:
    model = qkv.load(smollm2(), dtype=dtype)
    with np.load(GOLDEN / "smollm2.npz") as recorded:
        ids, states, logits, best = (recorded[name] for name in ("ids", "states", "logits", "best"))
    out = model(ids[None], output_hidden_states=True)
    ours = out.logits[0]
    assert np.linalg.norm(ours[:, ::64] - logits) <= SMOL_BOUNDS[dtype] * np.linalg.norm(logits)
    if dtype == "float32":
        close(out.hidden_states[-1][0], states)
        np.testing.assert_array_equal(ours.argmax(axis=1), best)
    if dtype == "auto":
        kinds = {name: w.dtype for name, w in model.parameters.items() if not isinstance(w, np.ndarray)}
        assert kinds.pop("embeddings.word.weight") == kinds.pop("head.decoder.weight") == "int8"
        assert set(kinds.values()) == {"int4"}


@pytest.mark.slow
def test_smollm2_writes_what_transformers_writes() -> None:
    model = qkv.load(smollm2())
    with np.load(GOLDEN / "smollm2.npz") as recorded:
        prompt, greedy = recorded["prompt"], recorded["greedy"]
    made = model.generate(prompt[None], max_new_tokens=64, eos_token_id=None)
    np.testing.assert_array_equal(made[0, len(prompt) :], greedy)


# ---- broken files


def minimal() -> bytes:
    """A file with one key and one tensor of 2 x 2 floats."""
    name, key = b"w", b"general.architecture"
    body = b"GGUF" + struct.pack("<IQQ", 3, 1, 1)
    body += struct.pack("<Q", len(key)) + key + struct.pack("<IQ", 8, 5) + b"llama"
    body += struct.pack("<Q", len(name)) + name + struct.pack("<IQQIQ", 2, 2, 2, 0, 0)
    body += b"\0" * (-len(body) % 32)
    return body + np.arange(4, dtype="<f4").tobytes()


def test_the_minimal_file(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(minimal())
    metadata, tensors = read_gguf(tmp_path / "x.gguf")
    assert metadata == {"general.architecture": "llama"}
    np.testing.assert_array_equal(tensors["w"].read(), [[0, 1], [2, 3]])


@pytest.mark.parametrize("length", range(0, len(minimal())))
def test_truncated_anywhere(length: int, tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(minimal()[:length])
    with pytest.raises(ValueError, match=r"truncated|not a GGUF|cannot mmap"):
        read_gguf(tmp_path / "x.gguf")


def test_any_byte_may_be_wrong(tmp_path: Path) -> None:
    """A ValueError, or a file that reads: nothing else is raised, and nothing hangs."""
    whole = minimal()
    for at in range(4, len(whole) - 16):
        for value in (0, 9, 127, 255):
            (tmp_path / "x.gguf").write_bytes(whole[:at] + bytes([value]) + whole[at + 1 :])
            try:
                for tensor in read_gguf(tmp_path / "x.gguf")[1].values():
                    tensor.read()
            except ValueError:
                pass


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m, t: m.update({"general.architecture": "mamba"}), "no model for GGUF architecture 'mamba'"),
        (lambda m, t: m.pop("llama.block_count"), "llama.block_count must be a positive integer"),
        (lambda m, t: m.update({"llama.attention.head_count": "two"}), "head_count must be a positive integer"),
        (lambda m, t: t.pop("token_embd.weight"), "no token_embd.weight"),
        (lambda m, t: t.pop("blk.0.attn_q.weight"), "missing: .*q_proj.weight"),
        (
            lambda m, t: m.update({"llama.rope.scaling.type": "odd"}),
            "rope.scaling.type must be none, linear or yarn; got 'odd'",
        ),
    ],
)
def test_what_does_not_fit(change: Callable[..., Any], message: str, tmp_path: Path) -> None:
    config = config_of("llama_tied")
    metadata, tensors = as_gguf(config, weights_of("llama_tied", config))
    metadata["general.architecture"] = "llama"
    change(metadata, tensors)
    architecture = metadata.pop("general.architecture")
    path = write(tmp_path / "m.gguf", architecture, metadata, {n: (a, Type.F32) for n, a in tensors.items()})
    with pytest.raises(ValueError, match=message):
        qkv.load(path)


def tiny(tmp_path: Path, changes: dict[str, Any], more: dict[str, np.ndarray] | None = None, folder: str = "") -> Path:
    config = config_of(folder or "llama_classify")
    weights = weights_of(folder or "llama_classify", config)
    weights.pop("score.weight", None)
    if not folder:
        config["rope_parameters"] = {"rope_theta": 100.0, "rope_type": "default"}
    metadata, tensors = as_gguf(config, weights)
    for name, value in changes.items():
        key = f"{config['model_type']}.{name}"
        metadata.pop(key, None)
        if value is not None:
            metadata[key] = value
    tensors |= more or {}
    return write(tmp_path / "m.gguf", config["model_type"], metadata, {n: (a, Type.F32) for n, a in tensors.items()})


def test_a_factor_alone_is_linear(tmp_path: Path) -> None:
    """As llama.cpp takes it, under today's key and the old one."""
    for key in ("rope.scaling.factor", "rope.scale_linear"):
        assert qkv.load(tiny(tmp_path, {key: 3.0})).config["rope_scaling"]["rope_type"] == "linear"
        assert qkv.load(tiny(tmp_path, {key: 3.0})).config["rope_scaling"]["factor"] == 3
    assert "rope_scaling" not in qkv.load(tiny(tmp_path, {})).config


def test_windows(tmp_path: Path) -> None:
    """Zero is how llama.cpp's converter says that a Phi-3 has none; Gemma 2's default is 4096; a Llama with one is a
    Mistral."""
    assert qkv.load(tiny(tmp_path, {"attention.sliding_window": 0}, folder="phi3_lm")).config["sliding_window"] is None
    gemma = qkv.load(tiny(tmp_path, {"attention.sliding_window": None}, folder="gemma2_lm"))
    assert gemma.config["sliding_window"] == 4096
    mistral = qkv.load(tiny(tmp_path, {"attention.sliding_window": 3}))
    assert mistral.architecture == "MistralForCausalLM" and mistral.config["sliding_window"] == 3


@pytest.mark.parametrize(
    ("changes", "more", "message"),
    [
        ({"attention.scale": 2.0}, {}, "llama.attention.scale must be absent"),
        ({"expert_count": 8}, {}, "llama.expert_count must be 0"),
        ({"rope.dimension_count": "x"}, {}, "llama.rope.dimension_count must be a positive integer"),
        ({"attention.layer_norm_rms_epsilon": "x"}, {}, "layer_norm_rms_epsilon must be a finite number"),
        ({}, {"rope_factors_long.weight": np.ones(4, np.float32)}, "without the others"),
        ({}, {"rope_freqs.weight": np.ones(400, np.float32)}, r"rope_freqs.weight is \(400,\), expected"),
        ({}, {"model.norm.weight": np.ones(16, np.float32)}, "are the same parameter"),
    ],
)
def test_what_changes_numbers_is_not_ignored(
    changes: dict[str, Any], more: dict[str, np.ndarray], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        qkv.load(tiny(tmp_path, changes, more))


def test_scales_that_have_no_offset(tmp_path: Path) -> None:
    raw = np.zeros((1, 18), np.uint8)
    raw[0, :2] = np.array([9000.0], np.float16).view(np.uint8)
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_tensor("w", raw, raw_dtype=Type.Q4_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ValueError, match="beyond 8188"):
        read_gguf(tmp_path / "x.gguf")[1]["w"].read()


def test_only_regular_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.gguf")
    with pytest.raises(ValueError, match="not a regular file"):
        qkv.load(tmp_path / "x.gguf")
