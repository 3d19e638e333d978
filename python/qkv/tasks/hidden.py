"""The last hidden states of rows of text, whatever kind of model reads them, without its head."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from ..batching import padded
from ..layers import Array, Run
from ..placement import host


def hidden_states(model: Any, rows: Sequence[Any], types: bool, where: str, advice: str = "") -> list[Array]:
    """(tokens, C) of each row; of two stacks the decoder's, which reads the encoder's tokens, shifted. Arguments and
    errors: as qkv.batching.padded."""
    batch = padded(model, rows, types, where, advice)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    if hasattr(model, "decoder"):
        if model.shift is None:
            raise ValueError(f"{where}: the decoder of a {model.architecture} needs tokens of its own")
        source = model.encoder.embeddings.pack(ids, mask, None, None)
        packed = model.decoder.embeddings.pack(model.shift(source.padded_ids(model.pad)), mask, None, None)
        x = model.decoder(packed, Run(packed.cu_seqlens, packed.positions, memory=model.memory(source)))
    elif hasattr(model, "forward"):
        packed = model.embeddings.pack(ids, mask, batch.get("token_type_ids"), None)
        x = model.forward(packed)
    else:  # Transformer-XL, which takes no padding
        return [model([row.ids], output_hidden_states=True).hidden_states[-1][0] for row in rows]
    x = host(x)
    return [x[a:b] for a, b in pairwise(packed.cu_seqlens.tolist())]
