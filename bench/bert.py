"""BERT encoders end to end: BERT-base with random weights, or a folder given by --model."""

from __future__ import annotations

from typing import Any

import numpy as np
from qkv.bench import Case
from qkv.bench import bert as core

from .peers import Array, Call, onnx_session, openvino_model, tensors

MIXED = tuple(int(n) for n in np.random.default_rng(0).integers(8, 201, 32))  # tokens of 32 texts


TYPES = ("float32", "bfloat16", "int8", "int4")


def cases(path: str | None = None) -> list[Case]:
    batches = ([16], [128], [128] * 8, [512])
    return [
        case
        for dtype in TYPES
        for case in (
            *(core.case(path, lengths, dtype=dtype) for lengths in batches),
            core.case(path, MIXED, "32 mixed", dtype),
        )
    ]


def torch_model(path: str | None) -> Any:
    """transformers' own model."""
    import torch
    from transformers import AutoModel, BertConfig, BertModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    config = core.read_config(path)
    if path is None:
        model = BertModel(BertConfig(**{k: v for k, v in config.items() if k != "architectures"}))
        weights = {name: torch.from_numpy(x) for name, x in core.weights_of(None).items()}
        model.load_state_dict(weights, strict=False)
    else:
        model = AutoModel.from_pretrained(path, dtype=torch.float32, local_files_only=True)
    return model.eval()


def torch_side(path: str | None, ids: Array, mask: Array | None, dtype: str = "float32") -> Call:
    """bfloat16: weights and activations; int8: dynamic quantisation of its linear layers."""
    import torch

    model = torch_model(path)
    if dtype == "bfloat16":
        model = model.to(torch.bfloat16)
    elif dtype == "int8":
        model = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, torch.qint8)
    elif dtype != "float32":
        raise ValueError(f"torch has no linear layers in {dtype} on a CPU")
    ids, *rest = tensors(ids, *([] if mask is None else [mask.astype(np.int64)]))
    attention_mask = rest[0] if rest else None
    return lambda: model(ids, attention_mask=attention_mask).last_hidden_state[:, 0].float()


def openvino_side(path: str | None, ids: Array, mask: Array | None, dtype: str = "float32") -> Call:
    """Converted from transformers' model, shapes fixed. bfloat16 needs a machine with the instructions."""
    import openvino

    if dtype not in ("float32", "bfloat16"):
        raise ValueError("OpenVINO quantises models with a package of its own, nncf")
    if dtype == "bfloat16" and "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise ValueError("OpenVINO computes in bfloat16 where the CPU has instructions for it")

    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids) if mask is None else mask.astype(np.int64)}
    example = dict(zip(inputs, tensors(*inputs.values()), strict=True))
    model = openvino.convert_model(torch_model(path), example_input=example)
    run = openvino_model(model, inputs, "f32" if dtype == "float32" else "bf16")
    return lambda: run()[:, 0]


def ctranslate2_side(path: str | None, ids: Array, mask: Array | None, dtype: str = "float32") -> Call:
    """Its own converter, from a Hugging Face folder; it pads too."""
    if dtype not in ("float32", "int8"):
        raise ValueError(f"CTranslate2 computes in float32 or int8 on a CPU, not in {dtype}")
    import tempfile

    import ctranslate2
    from ctranslate2.converters import TransformersConverter

    with tempfile.TemporaryDirectory() as folder:
        source = path
        if source is None:
            source = f"{folder}/hf"
            model = torch_model(None)
            model.config.position_embedding_type = "absolute"  # which the converter asks for and transformers 5 dropped
            model.save_pretrained(source)
            write_tokenizer(source, core.read_config(None)["vocab_size"])
        converted = TransformersConverter(source).convert(f"{folder}/ct2")
        encoder = ctranslate2.Encoder(converted, device="cpu", compute_type=dtype)
    lengths = [ids.shape[1]] * len(ids) if mask is None else mask.sum(1).tolist()
    tokens = ctranslate2.StorageView.from_array(ids.astype(np.int32))
    counts = ctranslate2.StorageView.from_array(np.asarray(lengths, np.int32))
    return lambda: np.asarray(encoder.forward_batch(tokens, counts).last_hidden_state)[:, 0]


def write_tokenizer(folder: str, size: int) -> None:
    """A vocabulary of numbers, for the converter that insists on one."""
    from transformers import BertTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = {word: i for i, word in enumerate([*special, *(f"w{i}" for i in range(size - len(special)))])}
    BertTokenizerFast(vocab=words).save_pretrained(folder)


def onnxruntime_side(path: str | None, ids: Array, mask: Array | None, dtype: str = "float32") -> Call:
    """The graph that its optimiser makes of an exported BERT: fused attention, norms and gelu."""
    if dtype not in ("float32", "int8"):
        raise ValueError(f"ONNX Runtime has no BERT in {dtype} on a CPU")
    config, w = core.read_config(path), core.weights_of(path)
    fused: dict[str, Any] = {"domain": "com.microsoft"}
    norm = {"epsilon": float(config["layer_norm_eps"])}
    constants: dict[str, Array] = {}
    nodes: list[tuple[Any, ...]] = []

    def constant(name: str, x: Array) -> str:
        constants[name] = np.ascontiguousarray(x)
        return name

    def matmul(x: str, name: str, out: str) -> str:
        nodes.append(("MatMul", [x, constant(f"{name}.w", w[f"{name}.weight"].T)], [out], {}))
        return constant(f"{name}.b", w[f"{name}.bias"])

    def skip_norm(x: str, skip: str, bias: str, name: str, out: str) -> None:
        names = [x, skip, constant(f"{name}.w", w[f"{name}.weight"]), constant(f"{name}.b", w[f"{name}.bias"]), bias]
        nodes.append(("SkipLayerNormalization", names, [out], {**norm, **fused}))

    inputs = {"ids": ids}
    if mask is not None:
        inputs["mask"] = mask.astype(np.int32)
    extra = w["embeddings.position_embeddings.weight"][: ids.shape[1]] + w["embeddings.token_type_embeddings.weight"][0]
    nodes.append(("Gather", [constant("words", w["embeddings.word_embeddings.weight"]), "ids"], ["e0"], {}))
    nodes.append(("Add", ["e0", constant("extra", extra)], ["e1"], {}))
    weight, bias = (constant(f"e.{kind}", w[f"embeddings.LayerNorm.{kind}"]) for kind in ("weight", "bias"))
    nodes.append(("LayerNormalization", ["e1", weight, bias], ["x0"], norm))
    for i in range(config["num_hidden_layers"]):
        layer, x = f"encoder.layer.{i}.", f"x{i}"
        parts = [f"{layer}attention.self.{name}" for name in ("query", "key", "value")]
        qkv_weight = constant(f"qkv{i}.w", np.concatenate([w[f"{part}.weight"].T for part in parts], axis=1))
        qkv_bias = constant(f"qkv{i}.b", np.concatenate([w[f"{part}.bias"] for part in parts]))
        names = [x, qkv_weight, qkv_bias, *(["mask"] if mask is not None else [])]
        nodes.append(("Attention", names, [f"a{i}"], {"num_heads": config["num_attention_heads"], **fused}))
        bias = matmul(f"a{i}", layer + "attention.output.dense", f"o{i}")
        skip_norm(f"o{i}", x, bias, layer + "attention.output.LayerNorm", f"h{i}")
        bias = matmul(f"h{i}", layer + "intermediate.dense", f"u{i}")
        nodes.append(("BiasGelu", [f"u{i}", bias], [f"g{i}"], fused))
        bias = matmul(f"g{i}", layer + "output.dense", f"d{i}")
        skip_norm(f"d{i}", f"h{i}", bias, layer + "output.LayerNorm", f"x{i + 1}")
    last = f"x{config['num_hidden_layers']}"
    run = onnx_session(nodes, inputs, constants, output=last, opset=20, int8=dtype == "int8")
    return lambda: run()[0][:, 0]


SIDES = {
    "torch": torch_side,
    "onnxruntime": onnxruntime_side,
    "openvino": openvino_side,
    "ctranslate2": ctranslate2_side,
}
SUITES = {"bert": core.SUITES["bert"].extended(__name__, SIDES, cases)}
