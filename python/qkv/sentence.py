"""Sentence embeddings as sentence-transformers computes them, from the same files.

modules.json lists the steps after the text model: pooling, then normalisation and dense layers. Without it
the embedding is the mean over a sentence's tokens, as in sentence-transformers. Sentences are never padded,
so an embedding does not depend on what else is encoded with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from .batching import check_integer, show_progress
from .config import Config
from .files import Checkpoint
from .layers import Array, Linear
from .packing import Packed
from .placement import host
from .text import SENTENCE_CONFIGS
from .weights import load_parameters

if TYPE_CHECKING:
    from .models.tokens import TokenModel
    from .text import Tokenizer

# in the order in which sentence-transformers joins them, and with the names of its older files
POOLING_MODES = {
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}
DENSE_ACTIVATIONS = {
    "torch.nn.modules.linear.Identity": None,
    "torch.nn.modules.activation.Tanh": "tanh",
    "torch.nn.modules.activation.ReLU": "relu",
    "torch.nn.modules.activation.GELU": "gelu",
    "torch.nn.modules.activation.SiLU": "silu",
}


def encode(
    model: TokenModel,
    sentences: Any,
    *,
    batch_size: int = 32,
    normalize_embeddings: bool = False,
    truncate_dim: int | None = None,
    show_progress_bar: bool | None = None,
    prompt: str | None = None,
    prompt_name: str | None = None,
) -> Array:
    """Embeddings, float32: (C,) for a string, (N, C) for a sequence of N strings, (0, C) for none.

    Longer texts are cut at the model's limit. prompt: text to put before each sentence; prompt_name: one of
    the checkpoint's own. truncate_dim: keep so many numbers of each; normalize_embeddings: scale to length
    1, at the end. batch_size: how many sentences are computed at once; the result is the same for any.
    TypeError: a sentence is no string. ValueError: no tokenizer, or a module that is not implemented.
    """
    for name, value in (("batch_size", batch_size), ("truncate_dim", truncate_dim)):
        check_integer("encode", name, value)
    single = isinstance(sentences, str)
    if not single and not isinstance(sentences, Iterable):
        raise TypeError(f"encode: expected a string or a sequence of strings; got {type(sentences).__name__}")
    texts = [sentences] if single else list(sentences)
    for text in texts:
        if not isinstance(text, str):
            raise TypeError(f"encode: expected a string or a sequence of strings; found {type(text).__name__}")
    pipeline, tokenizer = model.pipeline, model.tokenizer
    if isinstance(pipeline, ValueError):
        raise ValueError(f"encode: {pipeline}")
    prompt = pipeline.prompt(prompt, prompt_name)
    skip = 0 if pipeline.include_prompt or not prompt else _prompt_length(tokenizer, prompt)

    vocabulary = model.embeddings.word.rows
    result = np.empty((len(texts), pipeline.width), np.float32)
    order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))  # like lengths together
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        packed = Packed.from_lists(tokenizer.rows([prompt + texts[i] for i in batch]))
        if packed.ids.max(initial=0) >= vocabulary:
            raise ValueError(f"encode: the tokenizer gives token {packed.ids.max()}; the model has {vocabulary} tokens")
        result[batch] = pipeline(host(model.forward(packed)), packed.cu_seqlens, skip)
        if show_progress_bar:
            show_progress("encoded", min(start + batch_size, len(texts)), len(texts))

    dim = truncate_dim or pipeline.truncate_dim
    if dim is not None and dim < result.shape[1]:
        result = np.ascontiguousarray(result[:, :dim])
    if normalize_embeddings:
        result = _normalize(result)
    return result[0] if single else result


class Pipeline:
    """What comes after the text model: pooling, then steps (N, C) -> (N, C'), and the settings of encode.

    tensors: the parameters of dense layers, by the names that they have in an .npz.
    """

    def __init__(self, width: int):
        self.width = width
        self.modes: list[str] = ["mean"]
        self.include_prompt = True
        self.steps: list[Callable[[Array], Array]] = []
        self.prompts: dict[str, str] = {}
        self.default_prompt: str | None = None
        self.truncate_dim: int | None = None
        self.tensors: dict[str, Array] = {}

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint, width: int) -> Pipeline:
        """Read modules.json and what it names. ValueError: what is not implemented, by name."""
        pipeline = cls(width)
        modules = checkpoint.json("modules.json", list)
        if modules is None:
            return pipeline
        for name in SENTENCE_CONFIGS:
            of_text = Config(checkpoint.json(name) or {}, name)
            of_text.only("transformer_task", "feature-extraction")
            of_text.only("module_output_name", "token_embeddings")
        settings = Config(
            checkpoint.json("config_sentence_transformers.json") or {}, "config_sentence_transformers.json"
        )
        pipeline.prompts = _prompts(settings)
        pipeline.default_prompt = settings.get("default_prompt_name")
        default = pipeline.default_prompt
        if default is not None and (not isinstance(default, str) or default not in pipeline.prompts):
            raise settings.error("default_prompt_name", f"one of the prompts, {sorted(pipeline.prompts)}")
        pipeline.truncate_dim = settings.integer("truncate_dim", 0) or None
        for k, module in enumerate(modules):
            if not isinstance(module, dict) or not isinstance(module.get("type"), str):
                raise ValueError("modules.json: each module must be an object with a type")
            kind, path = module["type"], module.get("path", "")
            package, _, name = kind.rpartition(".")
            known = name in ("Transformer", "Pooling", "Normalize", "Dense")
            if not package.startswith("sentence_transformers.") or not known:
                raise ValueError(f"modules.json: module {kind!r} is not supported")
            place = {0: "Transformer", 1: "Pooling"}
            if place.get(k, name) != name or (k > 1 and name in place.values()):
                raise ValueError(f"modules.json: {kind!r} cannot be module {k}; expected Transformer, Pooling, others")
            if not isinstance(path, str) or bool(path) != bool(k):  # the text model lies in the folder itself
                raise ValueError(f"modules.json: path {path!r} of {kind!r} is not supported")
            values = checkpoint.json(f"{path}/config.json") if k else None
            if name == "Pooling" and values is None:
                raise ValueError(f"modules.json: the Pooling module's {path}/config.json is not there")
            config = Config(values or {}, f"{path}/config.json")
            for option in ("module_input_name", "module_output_name"):
                config.only(option, "sentence_embedding")
            if name == "Pooling":
                pipeline._add_pooling(config, width)
            elif name == "Normalize":
                pipeline.steps.append(_normalize)
            elif name == "Dense":
                pipeline._add_dense(config, path, checkpoint)
        if len(modules) < 2:
            raise ValueError(f"modules.json: expected a Transformer and a Pooling module; got {len(modules)} modules")
        return pipeline

    def _add_pooling(self, config: Config, width: int) -> None:
        given = config.get("pooling_mode")
        if given is None:
            if not any(key in config for key in POOLING_MODES.values()):
                raise config.error("pooling_mode", f"one or several of {', '.join(POOLING_MODES)}")
            modes = [mode for mode, key in POOLING_MODES.items() if config.flag(key, False)] or ["mean"]
        else:
            modes = [given] if isinstance(given, str) else given
        known = isinstance(modes, list) and all(isinstance(mode, str) and mode in POOLING_MODES for mode in modes)
        if not known or not modes:
            raise config.error("pooling_mode", f"one or several of {', '.join(POOLING_MODES)}")
        for name in ("word_embedding_dimension", "embedding_dimension"):
            if config.integer(name, width) != width:
                raise config.error(name, f"the model's width, {width}")
        self.modes = modes
        self.include_prompt = config.flag("include_prompt", True)
        self.width = len(modes) * width

    def _add_dense(self, config: Config, path: str, checkpoint: Checkpoint) -> None:
        config.only("use_residual", False)
        activation = config.get("activation_function", "torch.nn.modules.activation.Tanh")
        if not isinstance(activation, str) or activation not in DENSE_ACTIVATIONS:
            raise config.error("activation_function", "one of " + ", ".join(DENSE_ACTIVATIONS))
        n_in, n_out = config.integer("in_features", self.width), config.integer("out_features", self.width)
        if n_in != self.width:
            raise config.error("in_features", f"the width that comes in, {self.width}")
        tensors = checkpoint.sub_tensors(path)
        linear, parameters = load_parameters(
            lambda w: Linear(w.at("linear"), n_in, n_out, bias=config.flag("bias", True)),
            tensors,
            [],
            where=f"{checkpoint.where}: {path}",
        )
        fused = DENSE_ACTIVATIONS[activation]
        self.steps.append(lambda x: linear(x, activation=fused))
        self.width = n_out
        self.tensors.update({f"{path}/{name}": value for name, value in parameters.items()})

    def prompt(self, prompt: str | None, name: str | None) -> str:
        """The text to put before each sentence, possibly empty."""
        if prompt is not None:
            return prompt
        name = self.default_prompt if name is None else name
        if name is None:
            return ""
        if name not in self.prompts:
            raise ValueError(f"encode: no prompt {name!r}; this model has {sorted(self.prompts)}")
        return self.prompts[name]

    def __call__(self, x: Array, cu_seqlens: Array, skip: int) -> Array:
        """(total, C) -> (N, width). skip: so many tokens at the start of each sentence are left out of the
        pooling."""
        ends = cu_seqlens.tolist()
        rows = [self._pool(x[a:b], min(skip, b - a)) for a, b in pairwise(ends)]
        result = np.stack(rows)
        for step in self.steps:
            result = step(result)
        return result

    def _pool(self, x: Array, skip: int) -> Array:
        """One sentence, (n, C) -> (modes * C,). Without a token: zeros."""
        rest = x[skip:]
        if len(rest) == 0:
            return np.zeros(len(self.modes) * x.shape[1], np.float32)
        parts = []
        for mode in self.modes:
            if mode == "cls":
                parts.append(rest[0])
            elif mode == "lasttoken":
                parts.append(rest[-1])
            elif mode == "max":
                parts.append(rest.max(axis=0))
            elif mode == "weightedmean":  # token i counts i + 1 times, the prompt's tokens included in i
                weights = np.arange(skip + 1, len(x) + 1, dtype=np.float32)
                parts.append(weights @ rest / weights.sum())
            else:
                parts.append(rest.sum(axis=0) / np.float32(len(rest) if mode == "mean" else len(rest) ** 0.5))
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _normalize(x: Array) -> Array:
    """Rows scaled to length 1; a row of zeros stays."""
    length: Array = np.sqrt((x * x).sum(axis=-1, keepdims=True))
    np.maximum(length, np.float32(1e-12), out=length)
    return x / length


def _prompts(settings: Config) -> dict[str, str]:
    prompts = settings.get("prompts") or {}
    if not isinstance(prompts, dict) or not all(isinstance(text, (str, type(None))) for text in prompts.values()):
        raise settings.error("prompts", "an object of strings")
    return {name: text or "" for name, text in prompts.items()}


def _prompt_length(tokenizer: Tokenizer, prompt: str) -> int:
    """Tokens of the prompt alone, without the special token at the end."""
    ids = tokenizer.rows([prompt])[0]
    return len(ids) - bool(ids and tokenizer.is_special(ids[-1]))
