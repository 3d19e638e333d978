"""Pages of qkv.view that stand inside the site's."""

from __future__ import annotations

from collections.abc import Callable

import qkv
from qkv.demo import source_tokens

from .walk import DATE, LONG, TEXT, model, output


def dates() -> str:
    """All attention of reading a text and writing its date."""
    return str(qkv.view.attention(output(LONG), source_tokens(LONG), ["<start>", *DATE], title=LONG))


def written() -> str:
    """The same while the model writes, step by step."""
    batch = model().tokenizer([LONG])
    made = model().generate(**batch, output_attentions=True, return_dict_in_generate=True)
    target = ["<start>", *qkv.view.labels(model().tokenizer, made.sequences[0])[1:]]
    return str(qkv.view.attention(made, source_tokens(LONG), target, title=LONG))


def trace() -> str:
    """Every step of a pass."""
    return qkv.trace(model(), TEXT, DATE).to_html()


PAGES: dict[str, Callable[[], str]] = {"dates": dates, "written": written, "trace": trace}
