"""Tokens as a reader knows them."""

from __future__ import annotations

from functools import cache
from typing import Any


def labels(tokenizer: Any, ids: Any) -> list[str]:
    """Each token as a reader knows it: of byte-level vocabularies the text, with a sign (▁) for the space before it,
    and bytes that are no whole character as \\xe2; what the vocabulary does not have as #number.

    tokenizer: a model's. ids (S,): integers. TypeError: ids that are none.
    """
    return [_label(tokenizer, int(i)) for i in ids]


def _label(tokenizer: Any, i: int) -> str:
    token = tokenizer.convert_ids_to_tokens(i)
    if token is None:
        return f"#{i}"
    token = str(token)
    if token[:1] in ("Ġ", "▁"):  # a space, in byte-level vocabularies and in those of sentencepiece
        text = tokenizer.decode([i], skip_special_tokens=False, clean_up_tokenization_spaces=False).lstrip(" ")
        return "▁" + (text if "\ufffd" not in text else _of_bytes(token[1:]))
    if token.isascii():
        return token
    text = tokenizer.decode([i], skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text if text and "\ufffd" not in text else _of_bytes(token)


def _of_bytes(token: str) -> str:
    """The text of a byte-level token, as far as it is one; another token as it is."""
    table = _letters()
    if not all(char in table for char in token):
        return token
    return bytes(table[char] for char in token).decode("utf-8", "backslashreplace")


@cache
def _letters() -> dict[str, int]:
    """The letters that byte-level vocabularies (GPT-2's) write bytes in: printable ones of Latin-1 stand for
    themselves, the others are those from U+0100 on, in order."""
    own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in own]
    return {**{chr(byte): byte for byte in own}, **{chr(256 + i): byte for i, byte in enumerate(others)}}
