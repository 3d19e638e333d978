"""ByT5's tokens (Xue et al. 2021): the bytes of a text in UTF-8, with no vocabulary to be kept in a file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..config import Config
from .slow import Backend, Piece
from .special import Added, SpecialTokens

FIRST = ("pad_token", "eos_token", "unk_token")  # ids 0, 1 and 2; byte b has the id 3 + b
MOST_EXTRA = 100_000


class Bytes(Backend):
    """A byte's token is the character of its number, as in transformers: "é" is the tokens "Ã" and "©". Each text of
    a pair gets an end of its own."""

    pair_types = False

    def pieces(self, text: str) -> Iterator[Piece]:
        for k, char in enumerate(text):
            for byte in char.encode():
                yield chr(byte), k, k + 1, 0

    def join(self, tokens: Sequence[str]) -> str:
        """Bytes that are no UTF-8 are left out."""
        data = b"".join(t.encode() if t in self.added_ids else bytes([ord(t)]) for t in tokens)
        return data.decode(errors="ignore")


def open_bytes(settings: Config, special: SpecialTokens) -> Bytes:
    """Without files. settings: `extra_ids`, how many tokens there are behind the bytes; 125 if it says nothing."""
    pad, eos, unk = (special.get(name) for name in FIRST)
    if pad is None or eos is None or unk is None:
        raise settings.error("tokenizer_class", "another one where there is no pad_token, eos_token or unk_token")
    count = settings.integer("extra_ids", 125, low=0, high=MOST_EXTRA)
    extra = dict.fromkeys([*special.extra, *(f"<extra_id_{i}>" for i in range(count))])
    added = dict(special.numbered)
    known = {token.content for token in added.values()}
    for number, text in [*enumerate((pad, eos, unk)), *enumerate(extra, len(FIRST) + 256)]:
        if text not in known and number not in added:
            space = number < len(FIRST)  # these three take the space around them along
            added[number] = special.flags.get(text) or Added(text, lstrip=space, rstrip=space)
    vocabulary = {chr(byte): len(FIRST) + byte for byte in range(256)}
    return Bytes(vocabulary, unk_token=unk, between=[eos], after=[eos], added=added)
