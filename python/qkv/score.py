"""How likely a model holds texts to be: the log-probability of each token behind those before it, and their sums."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import ops
from .batching import padded
from .layers import Array, Memory, Run
from .outputs import ModelOutput
from .packing import Packed

AT_ONCE = 64  # tokens whose logits over the whole vocabulary are held at a time


def score(
    model: Any,
    texts: Any,
    attention_mask: Any = None,
    *,
    decoder_input_ids: Any = None,
    decoder_attention_mask: Any = None,
) -> ModelOutput:
    """Natural logarithms of probabilities: token_scores float32 (B, S), of each token, 0 for the first of a row and at
    padding; scores (B,), their sums.

    texts: a string or several, for which the model needs a tokenizer, or ids (B, S) with attention_mask. A model of
    two stacks reads them and scores decoder_input_ids (B, S), which begin with its start token. ValueError: the model
    has no head that makes tokens, or sees what follows a token; a text is longer than it takes.
    """
    if model.cache is None or not hasattr(model.head, "logits"):
        raise ValueError(f"score: a {model.architecture} does not tell what the next token is")
    if isinstance(texts, str) or (isinstance(texts, (list, tuple)) and texts and isinstance(texts[0], str)):
        if attention_mask is not None:
            raise ValueError("score: attention_mask is for ids; texts have none")
        # in one piece: of a text that was cut the sum would be another's
        rows = model.tokenizer.encode_batch([texts] if isinstance(texts, str) else list(texts), truncation=False)
        batch = padded(model, rows, False, "score")
        texts, attention_mask = batch["input_ids"], batch["attention_mask"]
    if hasattr(model, "decoder"):
        if decoder_input_ids is None:
            raise ValueError(f"decoder_input_ids: a {model.architecture} scores them; there is no default")
        source = model.encoder.embeddings.pack(texts, attention_mask, None, None)
        packed = model.decoder.embeddings.pack(decoder_input_ids, decoder_attention_mask, None, None, "decoder_")
        if len(packed.cu_seqlens) != len(source.cu_seqlens):
            raise ValueError(
                f"decoder_input_ids: {len(packed.cu_seqlens) - 1} rows for {len(source.cu_seqlens) - 1} texts"
            )
        memory: Memory = model.memory(source)
        x = model.decoder(packed, Run(packed.cu_seqlens, packed.positions, memory=memory))
    else:
        model.refuse(decoder_input_ids=decoder_input_ids, decoder_attention_mask=decoder_attention_mask)
        packed = model.embeddings.pack(texts, attention_mask, None, None)
        x = model.forward(packed)
    scores = _scores(model, packed, x)
    starts = packed.cu_seqlens[:-1]
    sums = np.add.reduceat(np.append(scores, np.float32(0)).astype(np.float64), starts) if starts.size else np.zeros(0)
    sums[np.diff(packed.cu_seqlens) == 0] = 0  # reduceat gives such rows the next one's first
    return ModelOutput(token_scores=packed.pad(scores), scores=sums.astype(np.float32))


def _scores(model: Any, packed: Packed, x: Array) -> Array:
    """(total,) of packed tokens with hidden states x (total, C)."""
    scores = np.zeros(packed.ids.size, np.float32)
    first = np.zeros(packed.ids.size + 1, bool)
    first[packed.cu_seqlens[:-1]] = True
    told = np.flatnonzero(~first[:-1])  # tokens that another one of their row stands before
    for at in range(0, told.size, AT_ONCE):
        tokens = told[at : at + AT_ONCE]
        logs = ops.log_softmax(model.head.logits(x[tokens - 1]))
        scores[tokens] = logs[np.arange(tokens.size), packed.ids[tokens]]
    return scores
