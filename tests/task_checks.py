"""The tiny checkpoints of golden/tasks, and what the reference libraries returned for them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import qkv
from safetensors.numpy import load_file, save_file

TASKS = Path(__file__).parent / "golden" / "tasks"
LIMIT = 48  # tokens of a text
TOLERANCE = 1e-5  # float32 on both sides, and logits of up to about 10

Load = Callable[..., Any]  # (model, what config.json says besides) -> the model


def calls(name: str) -> list[Any]:
    """The calls of a recorded file, as parameters of a test."""
    recorded = json.loads((TASKS / name).read_text(encoding="utf-8"))
    return [pytest.param(c, id=f"{k}-{c['model']}-{c.get('task', c.get('method'))}") for k, c in enumerate(recorded)]


def folder(target: Path, model: str, changed: dict[str, Any] | None = None) -> Path:
    """A checkpoint as golden/make_tasks.py makes it. changed: of its config.json; None takes a key out."""
    family = model.split("_")[0]
    target.mkdir(parents=True)
    config = json.loads((TASKS / "models.json").read_text())[model] | (changed or {})
    config = {name: value for name, value in config.items() if value is not None}
    (target / "config.json").write_text(json.dumps(config))
    weights = load_file(TASKS / "weights.safetensors")
    own = {n.split("/", 1)[1]: w for n, w in weights.items() if n.split("/", 1)[0] in (family, model)}
    save_file(own, target / "model.safetensors")
    shutil.copy(TASKS / f"{'roberta' if family == 'roberta' else 'bert'}.json", target / "tokenizer.json")
    (target / "tokenizer_config.json").write_text(json.dumps(tokenizer_settings(family)))
    return target


def tokenizer_settings(family: str) -> dict[str, Any]:
    if family != "roberta":
        name = {"bert": "BertTokenizer", "distilbert": "DistilBertTokenizer", "electra": "ElectraTokenizer"}[family]
        return {"model_max_length": LIMIT, "tokenizer_class": name, "do_lower_case": True}
    tokens = {
        "bos": "<s>",
        "pad": "<pad>",
        "eos": "</s>",
        "unk": "<unk>",
        "mask": "<mask>",
        "cls": "<s>",
        "sep": "</s>",
    }
    named = {f"{name}_token": token for name, token in tokens.items()}
    return {"model_max_length": LIMIT, "tokenizer_class": "RobertaTokenizer", **named}


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Load:
    """Models by name, each loaded once."""
    root = tmp_path_factory.mktemp("tasks")
    models: dict[str, Any] = {}

    def load(model: str, changed: dict[str, Any] | None = None) -> Any:
        key = json.dumps([model, changed])
        if key not in models:
            models[key] = qkv.load(folder(root / str(len(models)), model, changed))
        return models[key]

    return load


def same(actual: Any, expected: Any) -> None:
    """Equal, but for floats, which are close: Python's own types, in the same order."""
    assert type(actual) is type(expected), (actual, expected)
    if isinstance(expected, dict):
        assert list(actual) == list(expected)
        for name in expected:
            same(actual[name], expected[name])
    elif isinstance(expected, list):
        assert len(actual) == len(expected), (actual, expected)
        for one, other in zip(actual, expected, strict=True):
            same(one, other)
    elif isinstance(expected, float):
        assert actual == pytest.approx(expected, rel=TOLERANCE, abs=TOLERANCE)
    else:
        assert actual == expected
