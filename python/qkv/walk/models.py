"""What stands around the layers: embeddings, patches, pooler, head, and what is read off the output."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..batching import sigmoid
from ..models.heads import BothHeads, DiscriminatorHead, LMHead, MaskedLMHead, SpanHead
from ..models.seq2seq import EncoderDecoder
from ..models.tokens import CountedPositions, Embeddings, LearnedPositions, SinusoidalPositions
from ..models.transfo_xl import AdaptiveEmbedding, AdaptiveSoftmax, TransfoXL
from ..models.vit import ImageModel, Patches, TeacherHead
from ..outputs import ModelOutput
from . import inside
from .inputs import Given
from .record import Call
from .steps import Array
from .tell import Teller, parts

TOP = 5  # tokens or labels that are named
NAMES = {  # of the layers of heads, where those are not what they are called here
    **dict.fromkeys(("decoder", "classifier", "outputs", "score", "prediction", "out"), "logits"),
    "projects": "cluster projection",
    "decoders": "cluster logits",
    "clusters": "clusters' logits",
}


def tell(teller: Teller, model: Any, given: Given, output: ModelOutput) -> None:
    """All steps of a pass."""
    if isinstance(model, EncoderDecoder):
        for name, side, token in (("encoder", model.encoder, "token"), ("decoder", model.decoder, "target")):
            with teller.section(name):
                _embedded(teller, side.embeddings, given, token)
                teller.stack(name, token, "token", side.stack.final_norm is not None)
        last = "target"
    elif isinstance(model, ImageModel):
        _patches(teller, model.patches, given)
        teller.stack("", "token", "token", model.stack.final_norm is not None)
        teller.norm("final norm", ("token", "feature"))
        last = "token"
    else:
        if isinstance(model, TransfoXL):
            _adaptive(teller, model.embeddings, given)
        else:
            _embedded(teller, model.embeddings, given, "token")
        teller.stack("", "token", "token", model.stack.final_norm is not None)
        last = "token"
    with teller.section("output"):
        _head(teller, model, teller.steps[-1].value, last)
        _read_off(teller, model, given, output, last)


# ---- what goes in ---------------------------------------------------------------------------------------------


def _tokens(teller: Teller, given: Given, token: str, ids: Any) -> None:
    names = np.array(given.labels[token])
    text = given.texts.get(token)
    inputs = {} if text is None else {"text": text}
    formula, op = ("tokenize(text)", "model.tokenizer") if inputs else ("", "")
    teller.add("tokens", formula, op, names, (token,), inputs)
    note = "what begins a text that the decoder writes comes first" if token == "target" else ""
    teller.add("ids", "row of each token in the vocabulary", op or "given", ids, (token,), note=note)


def _embedded(teller: Teller, e: Embeddings, given: Given, token: str) -> None:
    """What Embeddings.__call__ does."""
    axes = (token, "feature")
    if not hasattr(e, "word"):  # a stack that takes vectors
        with teller.section("input"):
            teller.add("vectors", "given", "given", given.vectors[token], axes)
        return
    word = teller.take("embedding")
    with teller.section("input"):
        _tokens(teller, given, token, word.given["ids"])
    with teller.section("embeddings"):
        inputs = {"E": word.given["table"], "ids": word.given["ids"]}
        teller.add("word embeddings", "E[ids]", "qkv.embedding", word.result, axes, inputs)
        typed = teller.next_is("embedding") and given.types
        if e.type is not None or (typed and e.types == e.word.rows):
            _types(teller, e, axes, typed)
        fused = e.positions is not None and _positions(teller, e.positions, axes)
        if not fused and (e.positions is not None or e.scale is not None):
            name = "with positions" if e.positions is not None else "scaled embeddings"
            teller.sum(teller.take("scaled_sum"), name, axes, "x", "p")
        if e.norm is not None:
            teller.norm("norm", axes)
        if e.project is not None:
            teller.linear(teller.take("linear"), "projection", axes)


def _types(teller: Teller, e: Embeddings, axes: tuple[str, ...], typed: bool) -> None:
    """typed: the caller has given token types, whose vectors come next."""
    if typed:
        call = teller.take("embedding")
        inputs = {"E": call.given["table"], "ids": call.given["ids"]}
        teller.add("token types", "E[types]", "qkv.embedding", call.result, axes, inputs)
    total = teller.take("scaled_sum")
    if not typed:
        assert e.type is not None
        inputs, note = {"E": e.type.weight}, "all tokens are of type 0"
        teller.add("token types", "E[0]", "NumPy", total.given["other"], ("feature",), inputs, note=note)
    teller.sum(total, "with token types", axes, "x", "t")


def _positions(teller: Teller, positions: Any, axes: tuple[str, ...]) -> bool:
    """Whether the norm adds them."""
    name, formula = "positions", "how many tokens stand before"
    call = teller.take("embedding")
    if isinstance(positions, SinusoidalPositions):
        places = call.given["ids"]
        teller.add(name, formula, "NumPy", places, axes[:1])
        inputs = {"p": places, "interleaved": positions.interleaved}
        op = "qkv.sinusoidal_positions"
        teller.add("position embeddings", "sin and cos of p / 10000^(2i/C)", op, call.result, axes, inputs)
        return teller.next_is("layer_norm")
    note = ""
    if isinstance(positions, CountedPositions):
        note = f"counted from {positions.pad + 1} on"
    elif isinstance(positions, LearnedPositions) and positions.offset:
        note = f"rows of the table from {positions.offset} on"
    teller.add(name, formula, "NumPy", call.given["ids"], axes[:1], note=note)
    inputs = {"P": call.given["table"], "positions": call.given["ids"]}
    teller.add("position embeddings", "P[positions]", "qkv.embedding", call.result, axes, inputs)
    return teller.next_is("layer_norm")


def _adaptive(teller: Teller, e: AdaptiveEmbedding, given: Given) -> None:
    """Transformer-XL's: a table for each cluster of the vocabulary."""
    axes = ("token", "feature")
    with teller.section("input"):
        _tokens(teller, given, "token", given.ids["token"])
    with teller.section("embeddings"):
        while teller.next_is("embedding"):
            call = teller.take("embedding")
            inputs = {"E": call.given["table"], "ids": call.given["ids"]}
            note = "the tokens of one cluster of the vocabulary, whose ids count from its first"
            teller.add("cluster", "E[ids]", "qkv.embedding", call.result, ("row", "feature"), inputs, note=note)
            if teller.next_is("linear"):
                teller.linear(teller.take("linear"), "cluster projection", ("row", "feature"))
        teller.sum(teller.take("scaled_sum"), "scaled embeddings", axes, "x", "")


def _patches(teller: Teller, patches: Patches, given: Given) -> None:
    """What Patches.__call__ does."""
    call = teller.take("linear")
    g = call.given
    with teller.section("input"):
        pixels = given.pixels
        assert pixels is not None
        teller.add("pixels", "prepared image", "model.image_processor", pixels, ("channel", "row", "column"))
        cut = g["x"][0]
        rows, columns = patches.grid
        note = f"{rows} × {columns} patches of {patches.patch[0]} × {patches.patch[1]} pixels, each as one row"
        teller.add("patches", "cut(pixels)", "NumPy", cut, ("patch", "feature"), {"pixels": pixels}, note=note)
    with teller.section("embeddings"):
        names = {"residual": "with positions"}
        teller.linear(_first_row(call), "patch embeddings", ("patch", "feature"), names=names)
        with_positions = teller.steps[-1].value
        special = np.stack(patches.special)
        inputs = {"special": special, "p": patches.positions[: len(special)], "patches": with_positions}
        whole = np.concatenate([(special + inputs["p"]).astype(np.float32), with_positions])
        note = "the special tokens with their positions, then the patches"
        teller.add("embeddings", "[special + p, patches]", "NumPy", whole, ("token", "feature"), inputs, note=note)


def _first_row(call: Call) -> Call:
    """Of a product over a batch, (1, N, …)."""
    given = {**call.given, "x": call.given["x"][0]}
    return Call(call.op, given, call.result[0])


# ---- what comes out -------------------------------------------------------------------------------------------


def _head(teller: Teller, model: Any, states: Array, token: str) -> None:
    """Pooler and head: the calls that are left, by the names that their weights have in the model."""
    names: dict[int, str] = {}
    for owner in (getattr(model, "pooler", None), getattr(model, "head", None)):
        names |= {} if owner is None else parts(owner)
    if hasattr(getattr(model, "pooler", None), "dense"):
        names[id(model.pooler.dense.weight)] = "pooler"
    previous = ""
    while teller.at < len(teller.events):
        call = teller.take("linear", "layer_norm", "rms_norm", "scaled_sum", "divided", "tanh", "log_softmax")
        x = call.given["x"]
        axes = (token if len(x) == len(states) else "row", "feature")
        name = NAMES.get(found := names.get(id(call.given.get("weight")), "head"), found)
        if axes[0] == "row" and call.op == "linear" and x.shape[1] == states.shape[1]:
            _row_of(teller, x, states, token)
        if name.endswith("logits") or call.op in ("divided", "tanh", "log_softmax") or previous == "tanh":
            axes = (axes[0], "logit")
        if call.op == "linear":
            teller.linear(call, "uncapped logits" if teller.next_is("divided") else name, axes)
        elif call.op in ("layer_norm", "rms_norm"):
            teller.at -= 1
            teller.norm(name, axes)
        elif call.op == "scaled_sum":
            teller.sum(call, "logits" if previous == "tanh" else "scaled", axes, "x", "y")
        elif call.op == "divided":
            inputs = {"z": x, "c": call.given["by"]}
            teller.add("divided", "z / c", "qkv.ops.divided", call.result, axes, inputs)
        elif call.op == "tanh":
            teller.add("tanh", "tanh(z)", "qkv.tanh", call.result, axes, {"z": x})
        else:
            formula = "z − log Σ e^z"
            teller.add("log-probabilities", formula, "qkv.log_softmax", call.result, axes, {"z": x})
        previous = call.op


def _row_of(teller: Teller, x: Array, states: Array, token: str) -> None:
    """What one row for the whole text is made of, where that is told nowhere else."""
    if any(np.array_equal(x, step.value) for step in teller.steps if step.section[-1:] == ("output",)):
        return
    found = np.flatnonzero((states == x[0]).all(axis=1))
    if found.size:
        formula, note = f"x[{found[0]}]", f"{'the first' if not found[0] else 'this'} token stands for all"
    elif inside.largest_difference(states.mean(axis=0, dtype=np.float64), x[0]) <= 1e-6 * np.abs(states).max():
        formula, note = "mean(x)", "the mean of all tokens"
    else:
        raise RuntimeError("trace: the head reads a row that is neither a token's nor the mean of all")
    teller.add("pooled row", formula, "NumPy", x, ("row", "feature"), {"x": states}, note=note)


def _read_off(teller: Teller, model: Any, given: Given, output: ModelOutput, token: str) -> None:
    """What a reader makes of the logits."""
    head = getattr(model, "head", None)
    if isinstance(head, AdaptiveSoftmax):
        parts = [step.value for step in teller.steps if step.name.startswith("log-probabilities")]
        inputs = {"head": parts[0], **{f"tail_{i}": part for i, part in enumerate(parts[1:], 1)}}
        scores = given.real(token, output["prediction_scores"][0])
        note = "a rare token's is its cluster's, a token of the head, plus its own within that"
        teller.add("token scores", "[head, head[cluster] + tail]", "NumPy", scores, (token, "logit"), inputs, note=note)
        _next_token(teller, given, scores[-1])
        return
    if isinstance(head, TeacherHead):
        inputs = {"a": output["cls_logits"][0], "b": output["distillation_logits"][0]}
        note = "of the class token's and of the distillation token's"
        teller.add("mean logits", "(a + b) / 2", "NumPy", output["logits"][0], ("label",), inputs, note=note)
    for one in head.heads if isinstance(head, BothHeads) else [head]:
        if isinstance(one, SpanHead):
            _span(teller, given, output, token)
            continue
        logits = output.get(getattr(one, "field", "logits"))
        if one is None or logits is None:
            continue
        logits = logits[0]
        if logits.ndim > 1 or isinstance(one, DiscriminatorHead):  # else it is of the whole text
            logits = given.real(token, logits)
        if isinstance(one, LMHead) or (isinstance(one, MaskedLMHead) and model.cache is not None):
            _next_token(teller, given, logits[-1])
        elif isinstance(one, MaskedLMHead):
            best, names = logits.argmax(axis=-1), given.labels[token]
            made = given.names(best)
            note = "; ".join(f"{names[i]} → “{made[i]}”" for i in sorted(given.masked))
            teller.add("most likely tokens", "argmax(z)", "NumPy", best, (token,), {"z": logits}, note=note)
        elif logits.ndim == 1 and logits.size > 1 and isinstance(one, DiscriminatorHead):
            note = "above 0: this token was put in place of another"
            teller.add("replaced", "z > 0", "NumPy", logits > 0, (token,), {"z": logits}, note=note)
        elif logits.ndim == 1 and logits.size > 1:
            _label(teller, given, logits)
        elif logits.ndim == 2 and logits.shape[1] > 1:
            names, best = given.classes(logits.shape[1]), logits.argmax(axis=-1)
            told = zip(given.labels[token][: 2 * TOP], best, strict=False)
            note = ", ".join(f"{name} {names[i]}" for name, i in told)
            teller.add("labels", "argmax(z)", "NumPy", best, (token,), {"z": logits}, note=note)


def _span(teller: Teller, given: Given, output: ModelOutput, token: str) -> None:
    """The likeliest first and last token of an answer, each by itself."""
    for name in ("start", "end"):
        logits = given.real(token, output[f"{name}_logits"][0])
        best = int(logits.argmax())
        note = f"“{given.labels[token][best]}”"
        teller.add(name, "argmax(z)", "NumPy", np.array([best]), ("row",), {"z": logits}, note=note)


def _label(teller: Teller, given: Given, logits: Array) -> None:
    """Of a text, from logits (labels,)."""
    problem = given.model.config.get("problem_type")
    if problem == "regression":  # the logits are what it says
        return
    names, best = given.classes(logits.size), int(logits.argmax())
    teller.labels["label"] = names
    if problem == "multi_label_classification":
        p = teller.add(
            "independent probabilities", "1 / (1 + e^(−z))", "NumPy", sigmoid(logits), ("label",), {"z": logits}
        )
        likely = np.flatnonzero(p > 0.5)
        teller.labels["likely label"] = [names[i] for i in likely]
        teller.add("likely labels", "p > 0.5", "NumPy", likely, ("likely label",), {"p": p})
        return
    p = inside.softmax(logits.astype(np.float64))
    teller.add("probabilities", "e^z / Σ e^z", "NumPy", p, ("label",), {"z": logits})
    teller.labels["likeliest label"] = [names[best]]
    teller.add("label", "argmax(z)", "NumPy", np.array([best]), ("likeliest label",), {"z": logits})


def _next_token(teller: Teller, given: Given, logits: Array) -> None:
    """Of the last token's logits (V,)."""
    p = inside.softmax(logits.astype(np.float64))
    note = "of the last row of the logits"
    p = teller.add("probabilities", "e^z / Σ e^z", "NumPy", p, ("logit",), {"z": logits}, note=note)
    likeliest = np.argsort(-p, kind="stable")[:TOP]
    teller.labels["candidate"] = given.names(likeliest)
    teller.add("likeliest tokens", "largest(p)", "NumPy", p[likeliest], ("candidate",), {"p": p})
    best = int(logits.argmax())
    teller.labels["next token"] = given.names([best])
    teller.add("next token", "argmax(z)", "NumPy", np.array([best]), ("next token",), {"z": logits})
