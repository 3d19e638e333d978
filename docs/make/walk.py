"""A call of the model that comes with qkv, which pictures and live pages look into."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import qkv
from qkv.demo import source_tokens

TEXT, DATE = "3 May 2031", "2031-05-03"
LONG = "Saturday, the 3rd of May 2031"


@cache
def model() -> Any:
    return qkv.load("dates")


@cache
def output(text: str = TEXT) -> Any:
    """The model reads the text and writes the date, with everything on the way."""
    batch = model().tokenizer([text])
    start = model().config["decoder_start_token_id"]
    ids = [[start, *model().tokenizer.rows([DATE])[0][:-1]]]
    return model()(**batch, decoder_input_ids=ids, output_attentions=True, output_hidden_states=True)


def tokens(text: str = TEXT) -> list[str]:
    """A sign for each, spaces as boxes."""
    return [{" ": "␣", "</s>": "end"}.get(token, token) for token in source_tokens(text)]


def parameter(name: str) -> Any:
    return model().parameters[name]


def first_layer() -> dict[str, Any]:
    """q, k, v (H, S, D), scores (H, S, S) before the softmax, weights, of the encoder's first layer, by the formula."""
    x, at = output().encoder_hidden_states[0][0], "encoder.blocks.0.attention"
    h = qkv.layer_norm(x, parameter(f"{at}_norm.weight"), parameter(f"{at}_norm.bias"))
    parts = np.split(qkv.linear(h, parameter(f"{at}.qkv.weight"), parameter(f"{at}.qkv.bias")), 3, axis=-1)
    q, k, v = (part.reshape(len(x), 4, 16).swapaxes(0, 1) for part in parts)
    scores = q @ k.swapaxes(1, 2) / 4
    return {"x": x, "h": h, "q": q, "k": k, "v": v, "scores": scores, "weights": qkv.softmax(scores)}
