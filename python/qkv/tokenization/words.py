"""Tokenizers that have rules of their own: Marian's two SentencePiece models, CTRL's BPE, Transformer-XL's words."""

from __future__ import annotations

import functools
import heapq
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from ..config import Config
from .protobuf import read_spm, split_text
from .slow import Backend, Piece
from .special import Added, SpecialTokens
from .vocabularies import Merges, read_lines, read_merges, read_vocabulary

NUMBER = re.compile(r"(?<=\d)[,.](?=\d)")  # the marks inside of numbers, which stand between @ in Transformer-XL
WORD_LIST_ADVICE = (
    "there is no vocab.txt. A vocab.pkl or vocab.bin is a pickle, which can run code when it is opened, so qkv never "
    'opens one. Write its words one a line to vocab.txt, where transformers 4 and torch are: python -c "import '
    "transformers as t; open('vocab.txt', 'w').write('\\n'.join(t.TransfoXLTokenizer.from_pretrained('.').idx2sym))\""
)


def added_tokens(vocabulary: Mapping[str, int], special: SpecialTokens, more: Sequence[str] = ()) -> dict[int, Added]:
    """Added tokens by id; those that the vocabulary lacks get the next ids."""
    found = dict(special.numbered)
    known = {token.content for token in found.values()}
    count = len({*vocabulary, *known})
    for token in dict.fromkeys([*special.all_named().values(), *special.extra, *more]):
        if token not in known:
            number = vocabulary.get(token, count)
            count += number == count
            found[number] = special.token(token)
    return found


# ---- Marian


class Marian(Backend):
    """model: SentencePiece's, whose pieces vocab.json gives ids. >>xyz<< at the beginning of a text is the language
    that it is to be translated to."""

    def __init__(self, data: bytes, file: str, vocabulary: Mapping[str, int], **options: Any):
        read_spm(data, file)  # sentencepiece's own messages say little
        super().__init__(vocabulary, **options)
        try:
            import sentencepiece
        except ImportError:
            raise ImportError('this tokenizer needs the sentencepiece package: pip install "qkv[text]"') from None
        try:
            self.model = sentencepiece.SentencePieceProcessor(model_proto=data)
        except Exception as error:
            raise ValueError(f"{file}: {error}") from None

    def pieces(self, text: str) -> Iterator[Piece]:
        start, word = 0, -1
        if text.startswith(">>") and "<<" in text:
            start, word = text.index("<<") + 2, 0
            yield text[:start], 0, start, 0
        if not text:
            return
        found = split_text(self.model.encode(text[start:], out_type="serialized_proto"), text[start:])
        for piece, a, b in found:
            word = max(word + piece.startswith("▁"), 0)
            yield piece, start + a, start + b, word

    def join(self, tokens: Sequence[str]) -> str:
        special = {token.content for token in self.added.values() if token.special}
        text = ""
        plain: list[str] = []
        for token in tokens:
            if token in special:
                text += self.model.decode_pieces(plain) + token + " "
                plain = []
            else:
                plain.append(token)
        return (text + str(self.model.decode_pieces(plain))).replace("▁", " ").strip()


def open_marian(files: Mapping[str, bytes], settings: Config, special: SpecialTokens) -> tuple[Backend, Backend]:
    """Of the texts that the model reads, and of those that it writes."""
    settings.only("separate_vocabs", False)
    vocabulary = read_vocabulary(files["vocab.json"], "vocab.json")
    unk, eos = special.get("unk_token") or "<unk>", special.get("eos_token") or "</s>"
    if unk not in vocabulary:
        raise ValueError(f"vocab.json: there is no {unk} in it")
    options: dict[str, Any] = {"unk_token": unk, "after": [eos], "added": added_tokens(vocabulary, special)}
    source, target = (
        Marian(files[file], file, vocabulary, **options) if file in files else None
        for file in ("source.spm", "target.spm")
    )
    if source is None or target is None:
        raise ValueError(f"there is no {'source' if source is None else 'target'}.spm")
    return source, target


# ---- CTRL


class Ctrl(Backend):
    """BPE of words that white space separates, each with the line end behind it. @@ marks tokens that go on."""

    pair_types = False

    def __init__(self, vocabulary: Mapping[str, int], merges: Merges, **options: Any):
        super().__init__(vocabulary, **options)
        ranks = {pair: k for k, pair in enumerate(merges)}
        self.split = functools.lru_cache(maxsize=100_000)(lambda word: merge(word, ranks))

    def pieces(self, text: str) -> Iterator[Piece]:
        for k, match in enumerate(re.finditer(r"\S+\n?", text)):
            at, parts = match.start(), self.split(match[0])
            for i, part in enumerate(parts):
                yield part + "@@" * (i + 1 < len(parts)), at, at + len(part), k
                at += len(part)

    def join(self, tokens: Sequence[str]) -> str:
        return " ".join(tokens).replace("@@ ", "").strip()


def merge(word: str, ranks: Mapping[tuple[str, str], int]) -> tuple[str, ...]:
    """A word's characters, the last with </w>, merged in order of the ranks, all equal pairs of a round from left to
    right; without </w> at the end. In n log n: nothing says how long a word is."""
    if len(word) < 2:
        return (word,)
    symbols: list[str | None] = [*word[:-1], word[-1] + "</w>"]
    after = [*range(1, len(symbols)), -1]
    before = list(range(-1, len(symbols) - 1))
    heap = [(ranks[pair], k, pair) for k, pair in enumerate(pairwise([s or "" for s in symbols])) if pair in ranks]
    heapq.heapify(heap)
    while heap:
        rank, fresh = heap[0][0], set()
        while heap and heap[0][0] == rank:
            _, k, pair = heapq.heappop(heap)
            other = after[k]
            if symbols[k] != pair[0] or other < 0 or symbols[other] != pair[1]:
                continue  # one of them is part of something else by now
            symbols[k], symbols[other] = pair[0] + pair[1], None
            after[k] = after[other]
            if after[k] >= 0:
                before[after[k]] = k
            fresh |= {k, before[k]}
        for k in sorted(fresh - {-1}):
            if symbols[k] is not None and after[k] >= 0:
                pair = (symbols[k] or "", symbols[after[k]] or "")
                if pair in ranks:
                    heapq.heappush(heap, (ranks[pair], k, pair))
    found = [symbol for symbol in symbols if symbol is not None]
    return (*found[:-1], found[-1].removesuffix("</w>"))


def open_ctrl(files: Mapping[str, bytes], special: SpecialTokens) -> Backend:
    vocabulary = read_vocabulary(files["vocab.json"], "vocab.json")
    unk = special.get("unk_token") or "<unk>"
    if unk not in vocabulary:
        raise ValueError(f"vocab.json: there is no {unk} in it")
    merges = read_merges(files["merges.txt"], "merges.txt")
    return Ctrl(vocabulary, merges, unk_token=unk, added=added_tokens(vocabulary, special))


# ---- Transformer-XL


class Words(Backend):
    """Words as the Moses tokenizer makes them, by the package sacremoses, marks inside of numbers on their own."""

    def __init__(self, vocabulary: Mapping[str, int], *, lower: bool, language: str, **options: Any):
        super().__init__(vocabulary, **options)
        try:
            import sacremoses
        except ImportError:
            raise ImportError(
                "Transformer-XL's tokenizer needs the sacremoses package: pip install sacremoses"
            ) from None
        self.lower = lower
        self.normalizer = sacremoses.MosesPunctNormalizer(language)
        self.tokenizer = sacremoses.MosesTokenizer(language)
        self.detokenizer = sacremoses.MosesDetokenizer(language)
        self.protected = [token.content for token in self.added.values() if token.special]

    def pieces(self, text: str) -> Iterator[Piece]:
        line = text.strip().lower() if self.lower else text.strip()
        words = self.tokenizer.tokenize(
            self.normalizer.normalize(line),
            aggressive_dash_splits=True,
            return_str=False,
            escape=False,
            protected_patterns=self.protected,
        )
        searched = text.lower() if self.lower and len(text.lower()) == len(text) else text
        at = 0
        for k, word in enumerate(words):
            for token in NUMBER.sub(r" @\g<0>@ ", word).split():
                plain = token.strip("@") or token
                found = searched.find(plain, at)  # what was normalised is found nowhere, and gets no width
                start, at = (at, at) if found < 0 else (found, found + len(plain))
                yield token, start, at, k

    def join(self, tokens: Sequence[str]) -> str:
        text = str(self.detokenizer.detokenize(list(tokens)))
        return text.replace(" @,@ ", ",").replace(" @.@ ", ".").strip()


def open_words(files: Mapping[str, bytes], settings: Config, special: SpecialTokens) -> Backend:
    if "vocab.txt" not in files:
        raise ValueError(WORD_LIST_ADVICE)
    vocabulary: dict[str, int] = {}
    for k, line in enumerate(read_lines(files["vocab.txt"], "vocab.txt")):
        if not line.split():
            raise ValueError(f"vocab.txt: line {k + 1} has no word")
        vocabulary.setdefault(line.split()[0], len(vocabulary))
    unk = next((token for token in ("<UNK>", "<unk>") if token in vocabulary), None)
    if unk is None:
        raise ValueError(f"vocab.txt: there is no <unk> among its {len(vocabulary)} words")
    extra = [] if special.extra else ["<formula>"]
    return Words(
        vocabulary,
        lower=settings.flag("lower_case", False),
        language=str(settings.get("language", "en")),
        unk_token=unk,
        added=added_tokens(vocabulary, special, extra),
    )
