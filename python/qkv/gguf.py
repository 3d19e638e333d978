"""GGUF files of Llama-like models as checkpoints: metadata becomes a config.json, tensors take transformers' names.

Blocks that our packed weights hold exactly (Q8_0 as int8; Q4_0 and Q4_1 as int4, groups of 32) stay as they are; all
others are dequantised by the `gguf` package (extra). The header is read here, because that package takes seconds for a
vocabulary and, where a count in the file is wrong, forever.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import functools
import json
import math
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from .files import MAX_HEADER, MAX_RANK, Checkpoint, Tensor, bfloat16_dtype, packed_tensor, read_at
from .tokenization import ggml

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
F32, F16, Q4_0, Q4_1, Q8_0, F64, BF16 = 0, 1, 2, 3, 8, 28, 30
PLAIN = {F32: "<f4", F16: "<f2", F64: "<f8"}
KEPT = {f"tokenizer.ggml.{key}" for key in ggml.KEYS}  # arrays among them are kept, others are only skipped
MAX_VOCABULARY = 4_000_000  # entries of an array that is kept
BLOCK = 32  # values of a block of Q4_0, Q4_1, Q8_0
BLOCK_BYTES = {Q4_0: 18, Q4_1: 20, Q8_0: 34}

LAYER = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
GEMMA2 = LAYER | {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
PHI3 = LAYER | {"ffn_up": "mlp.gate_up_proj"}
# general.architecture -> class, names of a layer's tensors
ARCHITECTURES: dict[str, tuple[str, Mapping[str, str]]] = {
    "llama": ("LlamaForCausalLM", LAYER),
    "qwen2": ("Qwen2ForCausalLM", LAYER),
    "qwen3": ("Qwen3ForCausalLM", LAYER),
    "gemma2": ("Gemma2ForCausalLM", GEMMA2),
    "phi3": ("Phi3ForCausalLM", PHI3),
}


class _Header:
    """Reads values one after the other; ValueError where the file ends before they do."""

    def __init__(self, file: BinaryIO, size: int, path: Path):
        self.file, self.size, self.at, self.path = file, size, 0, path

    def error(self, text: str) -> ValueError:
        return ValueError(f"{self.path}: {text}")

    def take(self, size: int) -> bytes:
        start, self.at = self.at, self.at + size
        if self.at > MAX_HEADER:
            raise self.error(f"the header has more than {MAX_HEADER} bytes")
        data = self.file.read(size) if self.at <= self.size else b""
        if len(data) != size:
            raise self.error(f"truncated, {size} bytes at {start} lie beyond its end")
        return data

    def scalar(self, code: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def string(self) -> str:
        return self.take(self.scalar("Q")).decode("utf-8", "replace")

    def value(self, kind: int, keep: bool = False, depth: int = 0) -> Any:
        """Of arrays, which may be large, nothing is kept unless the caller asks for it."""
        if kind == STRING:
            return self.string()
        if kind == ARRAY and depth < 2:
            item, count = self.scalar("I"), self.scalar("Q")
            if keep and count > MAX_VOCABULARY:
                raise self.error(f"an array of {count} entries is more than a vocabulary has (limit {MAX_VOCABULARY})")
            if item in SCALARS:
                data = self.take(count * struct.calcsize("<" + SCALARS[item]))
                return list(struct.unpack(f"<{count}{SCALARS[item]}", data)) if keep else ()
            if count > (self.size - self.at) // 8:  # of a string or array the least
                raise self.error(f"truncated, an array claims {count} entries")
            items = [self.value(item, keep, depth + 1) for _ in range(count)]
            return items if keep else ()
        if kind in SCALARS:
            return self.scalar(SCALARS[kind])
        raise self.error(f"a value of the unknown type {kind}")


def read_gguf(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Metadata, of arrays only the vocabulary's, and lazily read tensors, under the file's own names. ValueError: it is
    no GGUF file, or broken."""
    if not path.is_file():
        raise ValueError(f"{path}: not a regular file")
    end = path.stat().st_size
    with open(path, "rb") as file:
        header = _Header(file, end, path)
        if end < 4 or header.take(4) != b"GGUF":
            raise ValueError(f"{path}: not a GGUF file")
        version = header.scalar("I")
        if version not in (2, 3):
            raise header.error(f"GGUF version {version} is not supported; 2 and 3 are (in little-endian order)")
        tensor_count, count = header.scalar("Q"), header.scalar("Q")
        metadata: dict[str, Any] = {}
        for _ in range(count):
            key = header.string()
            if key in metadata:
                raise header.error(f"the key {key!r:.99} is there twice")
            metadata[key] = header.value(header.scalar("I"), keep=key in KEPT)
        entries: dict[str, tuple[tuple[int, ...], int, int]] = {}
        for _ in range(tensor_count):
            name, shape, kind, offset = _entry(header)
            if name in entries:
                raise header.error(f"the tensor {name!r:.99} is there twice")
            entries[name] = shape, kind, offset
    unit = metadata.get("general.alignment", 32)
    if type(unit) is not int or unit < 1 or unit & (unit - 1):
        raise ValueError(f"{path}: general.alignment must be a power of two; got {unit!r:.99}")
    start = -(-header.at // unit) * unit
    return metadata, {
        name: _tensor(path, name, shape, kind, start + offset, end) for name, (shape, kind, offset) in entries.items()
    }


def _entry(header: _Header) -> tuple[str, tuple[int, ...], int, int]:
    name, rank = header.string(), header.scalar("I")
    if rank > MAX_RANK:
        raise header.error(f"tensor {name!r:.99}: {rank} dimensions are too many")
    shape = tuple(header.scalar("Q") for _ in range(rank))[::-1]
    return name, shape, header.scalar("I"), header.scalar("Q")


def _tensor(path: Path, name: str, shape: tuple[int, ...], kind: int, start: int, end: int) -> Tensor:
    where = f"{path}: tensor {name!r:.99}"
    count = math.prod(shape)

    def check(size: int) -> None:
        if start + size > end:
            raise ValueError(f"{where}: truncated, its {size} bytes at {start} lie beyond the file's end")

    if kind in PLAIN or kind == BF16:
        dtype = np.dtype(PLAIN[kind]) if kind in PLAIN else bfloat16_dtype()
        check(count * dtype.itemsize)
        return Tensor((name,), shape, dtype, functools.partial(read_at, path, start, shape, dtype))
    per_block, block_bytes = (BLOCK, BLOCK_BYTES[kind]) if kind in BLOCK_BYTES else _block(kind, where)
    if not shape or shape[-1] % per_block:
        raise ValueError(f"{where}: rows of {shape[-1] if shape else 0} are not whole blocks of {per_block}")
    stored = (count // shape[-1] if shape[-1] else 0, shape[-1] // per_block * block_bytes)
    check(math.prod(stored))
    read = functools.partial(read_at, path, start, stored, np.dtype(np.uint8))
    if kind in BLOCK_BYTES and len(shape) == 2:
        parts = functools.partial(_parts, kind, (shape[0], shape[1]), read)
        return packed_tensor((name,), shape, ("int8" if kind == Q8_0 else "int4", BLOCK), parts)
    return Tensor((name,), shape, np.dtype(np.float32), lambda: _dequantize(read(), kind, shape))


def _parts(kind: int, shape: tuple[int, int], read: Callable[[], np.ndarray[Any, Any]]) -> tuple[Any, ...]:
    """Blocks of 32 as the arguments of PackedWeight.from_parts.

    A block is a float16 scale d, for Q4_1 a float16 minimum m, then the values: 32 int8, or 32 nibbles, the lower
    halves of 16 bytes first. Q8_0: d q. Q4_0: d (q - 8). Q4_1: d q + m.
    """
    n, k = shape
    blocks = read().reshape(n, k // BLOCK, BLOCK_BYTES[kind])
    scale = np.ascontiguousarray(blocks[..., :2]).view(np.float16)[..., 0]
    if kind == Q8_0:
        return "int8", BLOCK, k, np.ascontiguousarray(blocks[..., 2:]).view(np.int8).reshape(n, k), scale, None
    with np.errstate(over="ignore"):
        least = scale * np.float16(-8) if kind == Q4_0 else blocks[..., 2:4].copy().view(np.float16)[..., 0]
    if kind == Q4_0 and (np.isinf(least) & np.isfinite(scale)).any():
        raise ValueError("blocks of Q4_0 have scales beyond 8188, for which there is no offset in float16")
    q = blocks[..., -16:]
    lower, upper = q & 15, q >> 4  # values 0 to 15, values 16 to 31
    values = np.concatenate([lower[..., ::2] | lower[..., 1::2] << 4, upper[..., ::2] | upper[..., 1::2] << 4], axis=-1)
    return "int4", BLOCK, k, values.reshape(n, k // 2), scale, np.ascontiguousarray(least)


def _package() -> Any:
    try:
        import gguf
    except ImportError:
        raise ImportError(
            'this GGUF file has quantised blocks that need the gguf package: pip install "qkv[gguf]"'
        ) from None
    return gguf


def _block(kind: int, where: str) -> tuple[int, int]:
    """Values and bytes of a block of the types that are not ours."""
    package = _package()
    try:
        sizes: tuple[int, int] = package.GGML_QUANT_SIZES[package.GGMLQuantizationType(kind)]
    except (ValueError, KeyError):
        raise ValueError(f"{where}: blocks of the unknown type {kind}") from None
    return sizes


def _dequantize(data: np.ndarray[Any, Any], kind: int, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    package = _package()
    block = package.GGMLQuantizationType(kind)
    try:
        values = package.quants.dequantize(data, block)
    except NotImplementedError as error:
        raise ValueError(f"GGUF blocks of type {block.name} are not supported: {error}") from None
    return np.asarray(values, np.float32).reshape(shape)


# ---- as a checkpoint


def open_gguf(path: Path) -> Checkpoint:
    """A GGUF file as the Hugging Face folder that it was made of. ValueError: an architecture that is not among
    ARCHITECTURES, a value that is missing, wrong or not implemented."""
    metadata, tensors = read_gguf(path)
    name = metadata.get("general.architecture")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise ValueError(f"{path}: no model for GGUF architecture {name!r:.99}; known are {', '.join(ARCHITECTURES)}")
    cls, layer = ARCHITECTURES[name]
    values = _Values(path, name, metadata)
    config = _config(values, tensors)
    if name == "llama" and config.get("sliding_window"):
        cls = "MistralForCausalLM"  # which is a Llama with a window
    config["architectures"] = [cls]
    values.refuse_others()
    named: dict[str, Tensor] = {}
    for old, tensor in tensors.items():
        if old in ROPE_TENSORS:
            continue
        new = _transformers_name(old, layer)
        part = next((part for part in ("q", "k") if f".self_attn.{part}_proj." in new), None)
        if name == "llama" and part and tensor.shape:
            heads = config["num_attention_heads" if part == "q" else "num_key_value_heads"]
            tensor = tensor.rows(_rotary_rows(path, tensor.shape[0], heads * config["head_dim"], heads))
        if new in named:
            raise ValueError(f"{path}: {named[new].names[0]} and {old} are the same parameter")
        named[new] = tensor
    kept = {"config.json": json.dumps(config).encode()}
    vocabulary = {key: metadata[f"tokenizer.ggml.{key}"] for key in ggml.KEYS if f"tokenizer.ggml.{key}" in metadata}
    if isinstance(vocabulary.get("tokens"), list):
        if "tokenizer.chat_template" in metadata:
            vocabulary["chat_template"] = metadata["tokenizer.chat_template"]
        kept[ggml.FILE] = json.dumps(vocabulary).encode()
    return Checkpoint(str(path), named, files=kept)


def _transformers_name(name: str, layer: Mapping[str, str]) -> str:
    stem, _, kind = name.rpartition(".")
    top = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
    if stem in top:
        return f"{top[stem]}.{kind}"
    blk, _, rest = stem.partition(".")
    index, _, part = rest.partition(".")
    if blk == "blk" and part in layer:
        return f"model.layers.{index}.{layer[part]}.{kind}"
    return name


def _rotary_rows(path: Path, rows: int, expected: int, heads: int) -> np.ndarray[Any, Any]:
    """Which row of a file's q or k is row i of transformers'. Files of this architecture have the rows of a head
    permuted so that the two that turn together are neighbours."""
    if rows != expected or rows % (2 * heads):
        raise ValueError(f"{path}: {rows} rows of q or k cannot be those of {heads} heads, expected {expected}")
    pairs = np.arange(rows).reshape(heads, rows // heads // 2, 2)
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows)


class _Values:
    """An architecture's metadata: every value is read, stands among those that change nothing, or is refused."""

    HARMLESS = ("vocab_size", "tensor_data_layout", "pooling_type", "rope.scaling.finetuned")
    # and those for which only some values are implemented
    ONLY = (("expert_count", 0), ("expert_used_count", 0), ("attention.causal", True))

    def __init__(self, path: Path, name: str, metadata: dict[str, Any]):
        self.path, self.name = path, name
        self.values = {k[len(name) + 1 :]: v for k, v in metadata.items() if k.startswith(f"{name}.")}
        self.general = metadata
        self.read: set[str] = set(self.HARMLESS)

    def error(self, key: str, expected: str) -> ValueError:
        return ValueError(f"{self.path}: {self.name}.{key} must be {expected}; got {self.values.get(key)!r:.99}")

    def integer(self, key: str, default: int | None = None, low: int = 1) -> int:
        self.read.add(key)
        value = self.values.get(key, default)
        if type(value) is not int or not low <= value < 2**31:
            raise self.error(key, "a positive integer" if low else "an integer, not negative")
        return value

    def number(self, key: str, default: float) -> float:
        self.read.add(key)
        value = self.values.get(key, default)
        if type(value) not in (int, float) or not math.isfinite(value):
            raise self.error(key, "a finite number")
        return float(value)

    def refuse_others(self) -> None:
        for key, only in self.ONLY:
            if self.values.get(key, only) != only:
                raise self.error(key, f"{only}: nothing else is supported")
            self.read.add(key)
        others = sorted(set(self.values) - self.read)
        if others:
            raise self.error(others[0], "absent: it is not supported")


ROPE_TENSORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")


def _config(v: _Values, tensors: dict[str, Tensor]) -> dict[str, Any]:
    if "token_embd.weight" not in tensors or len(tensors["token_embd.weight"].shape) != 2:
        raise ValueError(f"{v.path}: there is no token_embd.weight of two dimensions")
    heads, width = v.integer("attention.head_count"), v.integer("embedding_length")
    context, head_dim = v.integer("context_length"), v.integer("attention.key_length", max(width // heads, 1))
    config: dict[str, Any] = {
        "model_type": v.name,
        "vocab_size": tensors["token_embd.weight"].shape[0],
        "hidden_size": width,
        "intermediate_size": v.integer("feed_forward_length"),
        "num_hidden_layers": v.integer("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": v.integer("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "max_position_embeddings": context,
        "rms_norm_eps": v.number("attention.layer_norm_rms_epsilon", 1e-6),
        "rope_theta": v.number("rope.freq_base", 10000.0),
        "tie_word_embeddings": "output.weight" not in tensors,
        "attention_bias": "blk.0.attn_output.bias" in tensors,
    }
    if v.integer("attention.value_length", head_dim) != head_dim:
        raise v.error("attention.value_length", f"the keys' width, {head_dim}")
    turning = v.integer("rope.dimension_count", head_dim)
    if turning != head_dim:
        config["partial_rotary_factor"] = turning / head_dim
    for ours, theirs in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        token = v.general.get(f"tokenizer.ggml.{theirs}_token_id")
        if token is not None:
            config[f"{ours}_token_id"] = token
    _rope_scaling(v, config, tensors, turning, context)
    if v.name == "gemma2":
        config["attn_logit_softcapping"] = v.number("attn_logit_softcapping", 50.0)
        config["final_logit_softcapping"] = v.number("final_logit_softcapping", 30.0)
        # Gemma 2 27B, of 46 layers, scales by width / heads; files do not say
        config["query_pre_attn_scalar"] = width // heads if config["num_hidden_layers"] == 46 else head_dim
        config["norms_hold_one"] = True  # 1 + w is what such files store
    if v.name in ("llama", "gemma2", "phi3"):  # 0: none, as llama.cpp writes for those Phi-3 and 4 that have none
        window = v.integer("attention.sliding_window", 4096 if v.name == "gemma2" else 0, low=0)
        config["sliding_window"] = window or None
    return config


def _rope_scaling(v: _Values, config: dict[str, Any], tensors: dict[str, Tensor], turning: int, context: int) -> None:
    """rope_scaling of the metadata; of the tensors where they hold what each frequency is divided by."""
    present = [name for name in ROPE_TENSORS if name in tensors]
    lists = {}
    for name in present:
        if tensors[name].shape != (turning // 2,):
            raise ValueError(f"{v.path}: {name} is {tensors[name].shape}, expected {(turning // 2,)}")
        lists[name] = tensors[name].read().astype(float).tolist()
    v.read.add("rope.scaling.type")
    kind = v.values.get("rope.scaling.type")
    factor = v.number("rope.scaling.factor", v.number("rope.scale_linear", 1.0))
    if kind is None and factor != 1:
        kind = "linear"  # llama.cpp's default
    original = v.integer("rope.scaling.original_context_length", context)
    if present == ["rope_freqs.weight"]:  # Llama 3.1's: the same divisors for any length
        plain = lists["rope_freqs.weight"]
        scaling = {"rope_type": "longrope", "short_factor": plain, "long_factor": plain, "attention_factor": 1.0}
        config["rope_scaling"] = scaling | {"original_max_position_embeddings": context}
        return
    if present:
        if len(present) != 2 or "rope_freqs.weight" in present:
            raise ValueError(f"{v.path}: {' and '.join(present)} without the others that belong to them")
        short, long = lists["rope_factors_short.weight"], lists["rope_factors_long.weight"]
        config["original_max_position_embeddings"] = original
        config["rope_scaling"] = {"rope_type": "longrope", "short_factor": short, "long_factor": long}
        if "rope.scaling.attn_factor" in v.values:
            config["rope_scaling"]["attention_factor"] = v.number("rope.scaling.attn_factor", 1.0)
        return
    if kind in (None, "none"):
        return
    if kind not in ("linear", "yarn"):
        raise v.error("rope.scaling.type", "none, linear or yarn")
    config["rope_scaling"] = {"rope_type": kind, "factor": factor, "original_max_position_embeddings": original}
    if kind == "yarn":
        for ours, theirs, default in (("beta_fast", "yarn_beta_fast", 32.0), ("beta_slow", "yarn_beta_slow", 1.0)):
            config["rope_scaling"][ours] = v.number(f"rope.scaling.{theirs}", default)
