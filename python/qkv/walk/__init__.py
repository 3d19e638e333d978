"""A walk through a forward pass: `trace` runs a model and tells every step, from tokens to the next token."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..view.choices import chosen, titled
from .steps import Rows, Step, Trace, fits

if TYPE_CHECKING:
    from .inputs import Given

__all__ = ["Rows", "Step", "Trace", "trace"]


def trace(
    model: Any,
    inputs: Any,
    target: Any = None,
    *,
    pair: str | None = None,
    layers: Sequence[int] | int | None = None,
    heads: Sequence[int] | int | None = None,
    dtype: Any = None,
) -> Trace:
    """Every step of a forward pass, in order: tokens, ids, embeddings, positions, Q, K, V, scores, scaled scores, mask,
    weights, weighted sum, concatenated heads, output projection, residual, norm, feed-forward, ... logits, next token.

    The values are the ones that the model's own kernels computed, as they computed them. Where a kernel does several
    things at once (flash attention never writes scores down; `linear` adds bias, activation and residual on its way
    out), the values inside are worked out beside it, and `Step.source` says so.

    model: what qkv.load returns, or what it takes. inputs: a text; token ids (S,) or (1, S); of a model of images the
    path of one, or what its image_processor takes, or pixel_values (1, channels, height, width); of torch's stacks
    without embeddings vectors (1, S, C); or a mapping of the model's inputs, such as a tokenizer's batch of one row.
    target: what an encoder-decoder writes, as a text or ids that begin with the start token; None: what it generates
    greedily, up to 64 tokens. pair: a second text for an encoder. layers, heads: which to tell, by number from 0; None:
    all. Of other layers there is only the result. dtype: of the weights, where model is a path; None: float32, "auto"
    for a .gguf.

    Returns a `Trace`: iterate over its `Step`s, print it, or write a page with `to_html`.

    ValueError: the model does not take what is given, more than one row, no such layer or head, steps of more than
    1 GiB. Errors of qkv.load besides.
    """
    from ..models import load
    from .inputs import prepare
    from .models import tell
    from .record import Recorder
    from .tell import Teller

    path = None
    if isinstance(model, (str, os.PathLike)):
        path = model
        model = load(model, dtype=dtype or ("auto" if os.fspath(model).endswith(".gguf") else "float32"))
    elif dtype is not None:
        raise ValueError("trace: dtype is for a model that is loaded here; this one is loaded already")
    stacks = _stacks(model)
    if model.place.number is not None:
        raise ValueError("trace: the model is on a GPU; load it with device='cpu' to look at every step")
    told = chosen("trace", "layers", layers, max(len(stack.blocks) for stack, _ in stacks), "the model")
    count = max(heads_of for _, heads_of in stacks)
    chosen_heads = None if heads is None else chosen("trace", "heads", heads, count, "the model")
    given = prepare(model, inputs, target, pair)
    fits(_attentions(stacks, given), "the attention weights of all layers and heads", "choose a shorter text")
    recorder = Recorder(told)
    watched = recorder.watched_model(model)
    with recorder:
        output = watched(**given.arguments, output_attentions=True, output_hidden_states=True)
    teller = Teller(recorder.events, chosen_heads)
    tell(teller, model, given, output)
    labels = {
        **given.labels,
        **teller.labels,
        "head": [str(h) for h in (range(count) if chosen_heads is None else chosen_heads)],
    }
    title = titled(given.texts.get("token") or given.image, path) or model.architecture
    subtitle = f"{model.architecture}, {model.dtype}"
    return Trace(teller.steps, title, subtitle, labels, output, 1 if chosen_heads is None else len(chosen_heads))


def _attentions(stacks: list[tuple[Any, int]], given: Given) -> int:
    """How many bytes the attention weights of the output have, which are those of all layers and heads."""
    s = given.length("token")
    if len(stacks) == 1:
        pairs = [s * (len(given.labels["key"]) if "key" in given.labels else s)]
    else:
        t = given.length("target")
        pairs = [s * s, t * (t + s)]
    return sum(4 * len(stack.blocks) * heads * n for (stack, heads), n in zip(stacks, pairs, strict=True))


def _stacks(model: Any) -> list[tuple[Any, int]]:
    """The stacks of a model, and how many heads each has. TypeError: it is none."""
    if hasattr(model, "stack"):
        return [(model.stack, model.heads)]
    if hasattr(model, "encoder") and hasattr(model, "decoder"):
        return [(side.stack, side.heads) for side in (model.encoder, model.decoder)]
    raise TypeError(f"trace: model must be what qkv.load returns, or a path; got {type(model).__name__}")
