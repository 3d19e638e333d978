"""Pipelines: a task by its name, texts or images in, what transformers' pipelines return out.

A task's module is imported when it is first asked for.
"""

from __future__ import annotations

import difflib
import importlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import Checkpoint
from ..models import load
from ..models.base import KEPT_FILES, Model
from ..placement import Place
from ..text import TOKENIZER_FILES, Tokenizer, handed_in

if TYPE_CHECKING:
    from .base import Pipeline


@dataclass(frozen=True)
class Task:
    """Where a task's class is, and how the names of the model classes end that it takes. any_text: it takes every
    model that reads token ids."""

    module: str
    name: str
    classes: tuple[str, ...]
    any_text: bool = False

    def takes(self, model: Model) -> bool:
        return "input_ids" in model.inputs if self.any_text else model.architecture.endswith(self.classes)


SEQ2SEQ = ("ForConditionalGeneration", "MarianMTModel", "Transformer")
ROWS = ("ForSequenceClassification",)
# without a name the first is taken that has the end of the model's class
TASKS = {
    "text-classification": Task("classify", "TextClassificationPipeline", ROWS),
    "zero-shot-classification": Task("classify", "ZeroShotClassificationPipeline", ROWS),
    "token-classification": Task("tag", "TokenClassificationPipeline", ("ForTokenClassification",)),
    "question-answering": Task("answer", "QuestionAnsweringPipeline", ("ForQuestionAnswering",)),
    "text-generation": Task("generate", "TextGenerationPipeline", ("ForCausalLM", "LMHeadModel")),
    "text2text-generation": Task("generate", "Text2TextGenerationPipeline", SEQ2SEQ),
    "summarization": Task("generate", "SummarizationPipeline", SEQ2SEQ),
    "translation": Task("generate", "TranslationPipeline", SEQ2SEQ),
    "fill-mask": Task(
        "fill",
        "FillMaskPipeline",
        ("ForMaskedLM", "BertForPreTraining", "AlbertForPreTraining", "BartForConditionalGeneration"),
    ),
    "image-classification": Task(
        "image", "ImageClassificationPipeline", ("ForImageClassification", "ForImageClassificationWithTeacher")
    ),
    "feature-extraction": Task("features", "FeatureExtractionPipeline", ("Model",), any_text=True),
}
ALIASES = {"sentiment-analysis": "text-classification", "ner": "token-classification"}
TRANSLATION = re.compile(r"translation_\w+_to_\w+")


def pipeline(
    task: str | None = None,
    model: Any = None,
    *,
    tokenizer: Any = None,
    dtype: str = "float32",
    device: Any = None,
    batch_size: int | None = None,
    **options: Any,
) -> Pipeline:
    """A task's pipeline: a function of texts (or images) that returns what transformers' pipeline of that name does.

    task: one of TASKS, "sentiment-analysis", "ner", or "translation_xx_to_yy"; None: by the model's class.
    model: what qkv.load takes, or a model that is loaded. There are no default models.
    dtype, device: as of qkv.load, of a model that is loaded here.
    tokenizer: another than the model's own: a tokenizers.Tokenizer, a fast tokenizer of transformers, or the path of a
    tokenizer.json or its folder. batch_size: rows that are computed at once; None: as many as make a good number of
    tokens. The results are the same for any, to the bit. options: the task's own, defaults for its calls; the
    class's Options has them.

    ValueError: an unknown task or option, or a model whose class is not for the task. Errors of qkv.load.
    """
    name = _task(task)
    if model is None:
        raise ValueError("pipeline: model is missing; pass a path or a loaded model (there are no default models)")
    if not isinstance(model, Model):
        if not isinstance(model, (str, os.PathLike)):
            raise TypeError(f"pipeline: model must be a path or a model of qkv; got {type(model).__name__}")
        model = load(model, dtype=dtype, device="cpu" if device is None else device)
    elif dtype not in ("float32", model.dtype) or (device is not None and Place.named(device).name != model.device):
        raise ValueError(
            f"pipeline: the model is loaded already, as {model.dtype} on {model.device}; dtype and device are for paths"
        )
    if name is None:
        name = next((name for name, task in TASKS.items() if model.architecture.endswith(task.classes)), None)
        if name is None:
            raise ValueError(f"pipeline: a {model.architecture} does not say what for; pass a task: {', '.join(TASKS)}")
    found = TASKS[name]
    if not found.takes(model):
        wanted = "that reads text" if found.any_text else f"whose class ends in {' or '.join(found.classes)}"
        raise ValueError(f"pipeline: {name} needs a model {wanted}; this one is a {model.architecture}")
    kind: type[Pipeline] = getattr(importlib.import_module(f".{found.module}", __name__), found.name)
    tokenizer = None if tokenizer is None else _tokenizer(tokenizer, model)
    return kind(model, tokenizer, task=task or name, batch_size=batch_size, **options)


def _task(name: str | None) -> str | None:
    """The name in TASKS. ValueError, with those that there are: it is unknown."""
    if name is None:
        return None
    if not isinstance(name, str):
        raise TypeError(f"pipeline: task must be a string; got {type(name).__name__}")
    if TRANSLATION.fullmatch(name):
        return "translation"
    found = ALIASES.get(name, name)
    if found not in TASKS:
        known = [*TASKS, *ALIASES, "translation_xx_to_yy"]
        near = difflib.get_close_matches(name, known, n=1)
        advice = f" (did you mean {near[0]}?)" if near else ""
        raise ValueError(f"pipeline: there is no task {name!r}{advice}; known are {', '.join(known)}")
    return found


def _tokenizer(given: Any, model: Model) -> Tokenizer:
    if isinstance(given, Tokenizer):
        return given
    if isinstance(given, (str, os.PathLike)) and Path(given).is_dir():
        checkpoint = Checkpoint(str(given), {}, folder=Path(given))
        for name in (*TOKENIZER_FILES, *KEPT_FILES):
            checkpoint.file(name)
        found = checkpoint.files
    else:
        found = handed_in(given)
    return Tokenizer.from_files(found, model.config, model.max_tokens, types=model.token_types)
