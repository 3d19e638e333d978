"""Scores of pairs of texts from a model that reads both at once, as sentence-transformers' CrossEncoder computes them,
from the same files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from . import ops
from .batching import batches, check_integer, compute, show_progress, sigmoid
from .config import Config
from .files import parse_json
from .layers import Array

SETTINGS = "config_sentence_transformers.json"
# names in files stand for what torch has under them; nothing is imported
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "torch.nn.modules.linear.Identity": lambda x: x,
    "torch.nn.modules.activation.Sigmoid": sigmoid,
    "torch.nn.modules.activation.Tanh": ops.tanh,
}


def predict(
    model: Any,
    pairs: Any,
    *,
    batch_size: int = 32,
    show_progress_bar: bool | None = None,
    activation_fn: Callable[[Array], Any] | None = None,
    apply_softmax: bool = False,
) -> Any:
    """Scores, float32: of N pairs (N,) from a model with one label, (N, labels) from another; of a single pair its
    scores alone.

    pairs: a sequence of pairs of strings, or one pair. Longer pairs are cut at the model's limit. activation_fn: a
    function of logits (n, labels); None: what the checkpoint asks for, else the sigmoid for one label, and nothing for
    several. apply_softmax: over several labels, behind it. batch_size: how many pairs are computed at once; the result
    is the same for any. TypeError: no pairs of strings. ValueError: the model labels no texts, or asks for what is not
    implemented.
    """
    if not model.architecture.endswith("ForSequenceClassification"):
        raise ValueError(f"predict: a {model.architecture} has no labels for texts; use one ForSequenceClassification")
    check_integer("predict", "batch_size", batch_size)
    if activation_fn is not None and not callable(activation_fn):
        raise TypeError(f"predict: activation_fn must be a function of an array; got {type(activation_fn).__name__}")
    count = model.config.num_labels()
    activation = _activation(model, count) if activation_fn is None else activation_fn
    given, single = _pairs(pairs)
    tokenizer = model.tokenizer
    firsts, seconds = [first for first, _ in given], [second for _, second in given]
    rows = tokenizer.encode_batch(firsts, seconds) if given else []

    logits = np.empty((len(rows), count), np.float32)
    done = 0
    for batch in batches([len(row.ids) for row in rows], int(batch_size)):
        computed = compute(model, [rows[i] for i in batch], ("logits",), tokenizer.types, "predict")
        logits[batch] = [of_row for (of_row,) in computed]
        done += len(batch)
        if show_progress_bar:
            show_progress("scored", done, len(rows))
    scores = np.asarray(activation(logits), np.float32)
    if scores.shape != logits.shape:
        raise ValueError(f"predict: activation_fn made {scores.shape} of {logits.shape}")
    if count == 1:
        scores = scores[:, 0]
    elif apply_softmax:
        scores = ops.softmax(np.ascontiguousarray(scores))
    return scores[0] if single else scores


def rank(
    model: Any,
    query: str,
    documents: Sequence[str],
    top_k: int | None = None,
    return_documents: bool = False,
    **options: Any,
) -> list[dict[str, Any]]:
    """Documents by their scores with a query, the best first: [{"corpus_id": number, "score": ...}, ...], with "text"
    too if return_documents. top_k: so many of them; None: all. options, errors: as `predict`; and a ValueError if the
    model has several labels."""
    if model.architecture.endswith("ForSequenceClassification") and model.config.num_labels() != 1:
        raise ValueError(
            f"rank: it takes a model with one label; this one has {model.config.num_labels()}. Use predict"
        )
    if isinstance(documents, str):
        raise TypeError("rank: documents must be a sequence of strings; got a string")
    check_integer("rank", "top_k", top_k)
    documents = list(documents)
    scores = predict(model, [(query, document) for document in documents], **options).tolist()
    order = sorted(range(len(documents)), key=lambda i: -scores[i])[:top_k]
    return [{"corpus_id": i, "score": scores[i], **({"text": documents[i]} if return_documents else {})} for i in order]


def _pairs(given: Any) -> tuple[list[tuple[str, str]], bool]:
    """Pairs, and whether one was given by itself."""
    given = given.tolist() if isinstance(given, np.ndarray) else given
    if isinstance(given, (str, dict)) or not isinstance(given, Iterable):
        raise TypeError(f"predict: expected a pair of strings, or a sequence of such pairs; got {type(given).__name__}")
    found = list(given)
    single = bool(found) and isinstance(found[0], str)
    found = [found] if single else found
    for pair in found:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise TypeError(f"predict: expected a pair of strings, or a sequence of such pairs; found {pair!r:.60}")
    return [(first, second) for first, second in found], single


def _activation(model: Any, count: int) -> Callable[[Array], Any]:
    """What the checkpoint's files ask for. ValueError: it is not among ACTIVATIONS, or they ask for other things that
    are not implemented."""
    settings = Config(_object(model, SETTINGS), SETTINGS)
    settings.only("default_prompt_name", None)
    for module in _object(model, "modules.json", list):
        kind = module.get("type") if isinstance(module, dict) else module
        if str(kind).rpartition(".")[2] != "Transformer":
            raise ValueError(f"predict: modules.json: module {kind!r:.99} is not supported")
    of_config = model.config.get("sentence_transformers")
    name = settings.get("activation_fn")
    if name is None and isinstance(of_config, dict):
        name = of_config.get("activation_fn")
    if name is None:
        name = model.config.get("sbert_ce_default_activation_function")
    if name is None:
        return sigmoid if count == 1 else ACTIVATIONS["torch.nn.modules.linear.Identity"]
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise ValueError(
            f"predict: the checkpoint asks for the activation {name!r:.99}, and known are {', '.join(ACTIVATIONS)}; "
            "pass activation_fn"
        )
    return ACTIVATIONS[name]


def _object(model: Any, name: str, kind: type = dict) -> Any:
    value = parse_json(model.files[name], name) if name in model.files else kind()
    if not isinstance(value, kind):
        raise ValueError(f"{name}: must hold a JSON {'object' if kind is dict else 'list'}")
    return value
