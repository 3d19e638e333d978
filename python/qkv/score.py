"""How likely a model holds texts to be: the log-probability of each token behind those before it, and their sums."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import ops
from .batching import padded
from .generate.call import of_model
from .layers import Array, Memory, Run
from .outputs import ModelOutput
from .packing import Packed
from .placement import host, take

AT_ONCE = 64  # tokens whose logits over the whole vocabulary are held at a time


def score(
    model: Any,
    texts: Any,
    attention_mask: Any = None,
    *,
    targets: Any = None,
    decoder_input_ids: Any = None,
    decoder_attention_mask: Any = None,
) -> ModelOutput:
    """Natural logarithms of probabilities: token_scores float32 (B, S), of each token, 0 for the first of a row and at
    padding; scores (B,), their sums.

    texts: a string or several, for which the model needs a tokenizer, or ids (B, S) with attention_mask. A model of
    two stacks reads them and scores what its decoder is to write: either targets, a string or several, or
    decoder_input_ids (B, S), the start token and what follows. ValueError: the model has no head that makes tokens, or
    sees what follows a token; a text is longer than it takes.
    """
    if model.cache is None or not hasattr(model.head, "logits"):
        raise ValueError(f"score: a {model.architecture} does not tell what the next token is")
    if _is_text(texts):
        if attention_mask is not None:
            raise ValueError("score: attention_mask is for ids; texts have none")
        # in one piece: of a text that was cut the sum would be another's
        rows = model.tokenizer.encode_batch([texts] if isinstance(texts, str) else list(texts), truncation=False)
        batch = padded(model, rows, False, "score")
        texts, attention_mask = batch["input_ids"], batch["attention_mask"]
    if hasattr(model, "decoder"):
        if targets is not None:
            if decoder_input_ids is not None or decoder_attention_mask is not None:
                raise ValueError("score: give targets or decoder_input_ids, not both")
            decoder_input_ids, decoder_attention_mask = decoder_ids(model, targets)
        if decoder_input_ids is None:
            raise ValueError(f"score: a {model.architecture} scores targets, or decoder_input_ids; there is no default")
        source = model.encoder.embeddings.pack(texts, attention_mask, None, None)
        packed = model.decoder.embeddings.pack(decoder_input_ids, decoder_attention_mask, None, None, "decoder_")
        if len(packed.cu_seqlens) != len(source.cu_seqlens):
            raise ValueError(
                f"decoder_input_ids: {len(packed.cu_seqlens) - 1} rows for {len(source.cu_seqlens) - 1} texts"
            )
        memory: Memory = model.memory(source)
        x = model.decoder(packed, Run(packed.cu_seqlens, packed.positions, memory=memory))
    else:
        model.refuse(
            targets=targets, decoder_input_ids=decoder_input_ids, decoder_attention_mask=decoder_attention_mask
        )
        packed = model.embeddings.pack(texts, attention_mask, None, None)
        x = model.forward(packed)
    scores = _scores(model, packed, x)
    starts = packed.cu_seqlens[:-1]
    sums = np.add.reduceat(np.append(scores, np.float32(0)).astype(np.float64), starts) if starts.size else np.zeros(0)
    sums[np.diff(packed.cu_seqlens) == 0] = 0  # reduceat gives such rows the next one's first
    return ModelOutput(token_scores=packed.pad(scores), scores=sums.astype(np.float32))


def _is_text(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, (list, tuple)) and bool(value) and isinstance(value[0], str))


def decoder_ids(model: Any, targets: Any) -> tuple[Array, Array]:
    """What a decoder is fed while it writes texts, with the last of its tokens, and a mask, both (B, S)."""
    if isinstance(targets, np.ndarray) and targets.dtype.kind in "UO":
        targets = targets.tolist()
    if not _is_text(targets):
        raise TypeError(f"score: targets must be a string or several; got {type(targets).__name__}")
    batch = model.tokenizer(text_target=[targets] if isinstance(targets, str) else list(targets), truncation=False)
    rows = [ids[mask == 1] for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
    said, _ = of_model(model)
    start: Any = said.get("decoder_start_token_id", said.get("bos_token_id"))
    if model.shift is None and not isinstance(start, int):
        raise ValueError(
            "score: what begins targets is a decoder_start_token_id, or a bos_token_id; the model has none"
        )
    ids = np.zeros((len(rows), max(map(len, rows)) + 1), np.int64)
    mask = np.zeros(ids.shape, bool)
    for fed, real, row in zip(ids, mask, rows, strict=True):
        # as transformers makes them of labels: mBART's begin with what ends them
        fed[:1] = start if model.shift is None else model.shift(row[None])[0, :1]
        fed[1 : len(row) + 1] = row
        real[: len(row) + 1] = True
    return ids, mask


def _scores(model: Any, packed: Packed, x: Array) -> Array:
    """(total,) of packed tokens with hidden states x (total, C)."""
    scores = np.zeros(packed.ids.size, np.float32)
    first = np.zeros(packed.ids.size + 1, bool)
    first[packed.cu_seqlens[:-1]] = True
    told = np.flatnonzero(~first[:-1])  # tokens that another one of their row stands before
    for at in range(0, told.size, AT_ONCE):
        tokens = told[at : at + AT_ONCE]
        logs = ops.log_softmax(host(model.head.logits(take(x, tokens - 1))))
        scores[tokens] = logs[np.arange(tokens.size), packed.ids[tokens]]
    return scores
