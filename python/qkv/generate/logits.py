"""Logits processors: what changes the scores of the next token before one of them is chosen.

A processor is called with

    ids     (n, L) int64    the rows so far; -1 where a prompt has padding, which is never taken for a token
    scores  (n, V) float32  logits, or in beam search log-probabilities
    rows    (n,)            the number of each row among those that the call began with; finished ones have left

and returns the new scores (n, V), which may be those that it was given, changed: few tokens of a long row are. Names,
order and results are those of transformers' generate. Numbers are float32 as there, so that a threshold falls between
the same two tokens.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain as chained
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import ops
from ..layers import Array
from ..packing import regular

if TYPE_CHECKING:
    from .options import Options

Processor = Callable[[Array, Array, Array], Array]
PrefixFunction = Callable[[int, Array], Sequence[int]]


class Mask:
    """One that does no more than take tokens away, from logits as from log-probabilities."""

    def masks(self, length: int) -> bool:
        """Whether that is so for rows of this length."""
        return True

    def gone(self, ids: Array, rows: Array, vocabulary: int) -> tuple[Array, Array]:
        """What it takes away: places among the rows, and tokens, which the head can make."""
        raise NotImplementedError

    def __call__(self, ids: Array, scores: Array, rows: Array) -> Array:
        scores[self.gone(ids, rows, scores.shape[1])] = -np.inf
        return scores


def masks_alone(steps: Sequence[Processor], length: int) -> list[Mask] | None:
    """These, if for rows of this length they do no more than take tokens away."""
    masks = [step for step in steps if isinstance(step, Mask) and step.masks(length)]
    return masks if len(masks) == len(steps) else None


NOTHING = np.zeros(0, np.int64), np.zeros(0, np.int64)


class Gone:
    """What masks take away, as they found it; `places`, row * vocabulary + token, in order. most: from one row."""

    def __init__(self, found: Sequence[tuple[Array, Array]], vocabulary: int):
        self.found = found
        row, token = (np.concatenate(x) for x in zip(NOTHING, *found, strict=True))
        self.most = int(np.bincount(row).max(initial=0))
        self.places = np.sort(row * vocabulary + token)


def _known(tokens: Iterable[int], vocabulary: int) -> list[int]:
    """Those that the head can make; others count for nothing."""
    return [token for token in tokens if 0 <= token < vocabulary]


def _without(scores: Array, gone: Array) -> Array:
    """-inf where gone (n, V) is true."""
    scores[gone] = -np.inf
    return scores


@functools.lru_cache(16)
def _from_all(count: int, tokens: tuple[int, ...], vocabulary: int) -> tuple[Array, Array]:
    """These tokens, of each of so many rows."""
    known = np.array(_known(tokens, vocabulary), np.int64)
    return np.repeat(np.arange(count), len(known)), np.tile(known, count)


def _least_of_top(scores: Array, k: int) -> Array:
    """(n, 1): the k-th largest of each row."""
    if k <= MOST:
        return largest(scores, k)[0][:, -1:]
    place = scores.shape[1] - min(k, scores.shape[1])
    least: Array = np.partition(scores, place, axis=1)[:, place, None]
    return least


def _only(scores: Array, tokens: Iterable[int], name: str) -> Array:
    """All scores -inf but those of some tokens, which are 0."""
    result = np.full_like(scores, -np.inf)
    for token in tokens:
        if token >= scores.shape[1]:
            raise ValueError(f"generate: {name} {token} is not among the {scores.shape[1]} tokens that the model makes")
        result[:, token] = 0
    return result


class SequenceBias(Mask):
    """score += bias of a token that completes a sequence: every bias whose sequence, but for its last token, ends the
    row. biases: sequence -> bias. ValueError at the first call: a token is beyond the vocabulary."""

    def __init__(self, biases: Mapping[tuple[int, ...], float], name: str = "sequence_bias"):
        self.name = name
        self.excludes = all(bias == -np.inf for bias in biases.values())
        self.largest = max((max(sequence) for sequence in biases), default=-1)
        single = {sequence[0]: bias for sequence, bias in biases.items() if len(sequence) == 1}
        self.single = np.array(list(single), np.int64), np.array(list(single.values()), np.float32)
        self.longer: list[tuple[Array, Array, Array]] = []  # per length: beginnings (m, l), last tokens (m,), biases
        for length in sorted({len(sequence) for sequence in biases} - {1}):
            group = [(sequence, bias) for sequence, bias in biases.items() if len(sequence) == length]
            sequences = np.array([sequence for sequence, _ in group], np.int64)
            self.longer.append((sequences[:, :-1], sequences[:, -1], np.array([b for _, b in group], np.float32)))

    def masks(self, length: int) -> bool:
        return self.excludes

    def _found(self, ids: Array, vocabulary: int) -> tuple[Array, Array]:
        """row * vocabulary + token of each that a sequence ends in, and its bias."""
        if self.largest >= vocabulary:
            raise ValueError(
                f"generate: {self.name}: {self.largest} is not among the {vocabulary} tokens that the model makes"
            )
        tokens, values = self.single
        places = [(np.arange(len(ids))[:, None] * vocabulary + tokens).reshape(-1)]
        biases = [np.tile(values, len(ids))]
        for beginnings, last, values in self.longer:
            length = beginnings.shape[1]
            if length <= ids.shape[1]:
                row, which = np.nonzero((ids[:, None, -length:] == beginnings).all(axis=2))
                places.append(row * vocabulary + last[which])
                biases.append(values[which])
        return np.concatenate(places), np.concatenate(biases)

    def gone(self, ids: Array, rows: Array, vocabulary: int) -> tuple[Array, Array]:
        if not self.longer and self.largest < vocabulary:
            return _from_all(len(ids), tuple(self.single[0].tolist()), vocabulary)
        return np.divmod(self._found(ids, vocabulary)[0], vocabulary)

    def __call__(self, ids: Array, scores: Array, rows: Array) -> Array:
        places, biases = self._found(ids, scores.shape[1])
        place, inverse = np.unique(places, return_inverse=True)
        bias = np.zeros(len(place), np.float32)
        np.add.at(bias, inverse, biases)
        scores.reshape(-1)[place] += bias
        return scores


def bad_words(words: Sequence[Sequence[int]], eos: Sequence[int]) -> SequenceBias:
    """No token that completes one of the words; a word that is eos alone does not count."""
    return SequenceBias({tuple(w): -np.inf for w in words if not (len(w) == 1 and w[0] in eos)}, "bad_words_ids")


@dataclass
class HammingDiversity:
    """score -= penalty * how often the groups before have chosen the token in this step (Vijayakumar et al. 2018,
    arXiv:1610.02424). chosen: (n, tokens), which the search sets before each call; a row's groups before."""

    penalty: float
    chosen: Array = field(default_factory=lambda: np.zeros((0, 0), np.int64))

    def __call__(self, ids: Array, scores: Array, rows: Array) -> Array:
        row = np.repeat(np.arange(len(self.chosen)), self.chosen.shape[1])
        token = self.chosen.reshape(-1)
        made = token < scores.shape[1]
        place, counts = np.unique(row[made] * scores.shape[1] + token[made], return_counts=True)
        scores.reshape(-1)[place] -= np.float32(self.penalty) * counts.astype(np.float32)
        return scores


def _penalised(scores: Array, row: Array, token: Array, penalty: float) -> Array:
    """scores[row, token] divided by the penalty where positive, multiplied where negative (Keskar et al. 2019,
    arXiv:1909.05858). Tokens that the head cannot make count for nothing."""
    made = (token >= 0) & (token < scores.shape[1])
    row, token, p = row[made], token[made], np.float32(penalty)
    old = scores[row, token]
    scores[row, token] = np.where(old < 0, old * p, old / p)
    return scores


@dataclass
class EncoderRepetition:
    """The repetition penalty, inverted, for tokens of the source, or of the prompt: above 1 they become likelier.

    sources: the ids of each text. per_text: rows of a text, one after another."""

    penalty: float
    sources: Sequence[Array]
    per_text: int

    def __call__(self, ids: Array, scores: Array, rows: Array) -> Array:
        sources = [self.sources[text] for text in (rows // self.per_text).tolist()]
        row = np.repeat(np.arange(len(scores)), [len(source) for source in sources])
        return _penalised(scores, row, np.concatenate(sources), 1 / self.penalty)


@dataclass
class Repetition:
    """The repetition penalty for all tokens of the row, the prompt's too."""

    penalty: float

    def __call__(self, ids: Array, scores: Array, rows: Array) -> Array:
        row = np.repeat(np.arange(len(ids)), ids.shape[1])
        return _penalised(scores, row, ids.reshape(-1), self.penalty)


@dataclass
class NoRepeatNgram(Mask):
    """No token that completes an n-gram which the row has already."""

    size: int

    def gone(self, ids: Array, rows: Array, vocabulary: int) -> tuple[Array, Array]:
        n = self.size
        if ids.shape[1] < n:
            return NOTHING
        windows = np.lib.stride_tricks.sliding_window_view(ids, n, axis=1)  # (n, L - n + 1, n)
        row, place = np.nonzero((windows[..., :-1] == ids[:, None, ids.shape[1] - n + 1 :]).all(axis=2))
        token = ids[row, place + n - 1]
        made = (token >= 0) & (token < vocabulary)
        return row[made], token[made]


class EncoderNoRepeatNgram(Mask):
    """No token that completes an n-gram of the source, or of the prompt."""

    def __init__(self, size: int, sources: Sequence[Array], per_text: int):
        self.size, self.per_text = size, per_text
        self.following: list[dict[tuple[int, ...], list[int]]] = []
        for source in sources:
            following: dict[tuple[int, ...], list[int]] = {}
            tokens = source.tolist()
            for i in range(len(tokens) - size + 1):
                following.setdefault(tuple(tokens[i : i + size - 1]), []).append(tokens[i + size - 1])
            self.following.append(following)

    def gone(self, ids: Array, rows: Array, vocabulary: int) -> tuple[Array, Array]:
        start = ids.shape[1] - self.size + 1
        if start < 0:
            return NOTHING
        texts = (rows // self.per_text).tolist()
        found = [
            _known(self.following[text].get(tuple(row), ()), vocabulary)
            for text, row in zip(texts, ids[:, start:].tolist(), strict=True)
        ]
        return np.repeat(np.arange(len(ids)), [len(tokens) for tokens in found]), np.array([*chained(*found)], np.int64)


@dataclass
class LeastLength(Mask):
    """No eos before the row has `length` tokens, counted as transformers counts: padding and prompt included."""

    length: int
    eos: Sequence[int]

    def gone(self, ids: Array, rows: Array, vocabulary: int) -> tuple[Array, Array]:
        return _from_all(len(ids), tuple(self.eos), vocabulary) if ids.shape[1] < self.length else NOTHING


@dataclass
class AllowedPrefix:
    """Only the tokens that a function of the text's number and the row allows (De Cao et al. 2021, arXiv:2010.00904).

    Where none of them is left to any row of a text, they come back with equal scores. shown: the internal ids as the
    caller knows them. ValueError: the function allows nothing."""

    allowed: PrefixFunction
    per_text: int
    shown: Callable[[Array, Array], Array]

    def __call__(self, ids: Array, scores: Array, rows: Array) -> Array:
        mask = np.full_like(scores, -np.inf)
        texts = rows // self.per_text
        for text, row, of_row in zip(texts.tolist(), self.shown(ids, rows), mask, strict=True):
            allowed = self.allowed(text, row)
            tokens = regular("generate: prefix_allowed_tokens_fn", allowed).reshape(-1)
            if tokens.size and tokens.dtype.kind not in "iu":
                raise ValueError(
                    f"generate: prefix_allowed_tokens_fn must return a list of tokens; got {allowed!r:.99}"
                )
            if not tokens.size:
                raise ValueError(
                    f"generate: prefix_allowed_tokens_fn allows no token after {row.tolist()} (text {text})"
                )
            if tokens.min() < 0 or tokens.max() >= len(of_row):
                raise ValueError(
                    f"generate: prefix_allowed_tokens_fn allows {tokens.max()}, which is not among the {len(of_row)} "
                    "tokens that the model makes"
                )
            of_row[tokens.astype(np.int64)] = 0
        result = scores + mask
        dead = np.isneginf(result.max(axis=1))
        for text in set(texts[dead].tolist()):
            if dead[texts == text].all():
                result[texts == text] = mask[texts == text]
        return result


@dataclass
class ForcedFirst(Mask):
    """The token `first` behind a single one: a language, or BART's bos."""

    first: int

    def masks(self, length: int) -> bool:
        return length != 1

    def gone(self, ids: Array, rows: Array, vocabulary: int) -> tuple[Array, Array]:
        return NOTHING

    def __call__(self, ids: Array, scores: Array, rows: Array) -> Array:
        return _only(scores, [self.first], "forced_bos_token_id") if ids.shape[1] == 1 else scores


@dataclass
class ForcedLast(Mask):
    """One of some tokens where the longest row would otherwise be cut off."""

    last: Sequence[int]
    max_length: int

    def masks(self, length: int) -> bool:
        return length != self.max_length - 1

    def gone(self, ids: Array, rows: Array, vocabulary: int) -> tuple[Array, Array]:
        return NOTHING

    def __call__(self, ids: Array, scores: Array, rows: Array) -> Array:
        return _only(scores, self.last, "forced_eos_token_id") if ids.shape[1] == self.max_length - 1 else scores


def remove_invalid(ids: Array, scores: Array, rows: Array) -> Array:
    """NaN becomes 0, an infinity the largest finite number of its sign."""
    return np.nan_to_num(scores, nan=0.0)


@dataclass
class ExponentialDecay:
    """score of eos += |score| * (factor^(tokens since start) - 1): ends become likelier the longer the row."""

    start: int
    factor: float
    eos: Sequence[int]

    def __call__(self, ids: Array, scores: Array, rows: Array) -> Array:
        beyond = ids.shape[1] - self.start
        if beyond <= 0:
            return scores
        eos = sorted(set(_known(self.eos, scores.shape[1])))
        old = scores[:, eos]
        scores[:, eos] = np.where(np.isfinite(old), old + np.abs(old) * np.float32(self.factor**beyond - 1), old)
        return scores


@dataclass
class Suppressed(Mask):
    """None of some tokens; only at a length of `at`, if that is given."""

    tokens: Sequence[int]
    at: int | None = None

    def gone(self, ids: Array, rows: Array, vocabulary: int) -> tuple[Array, Array]:
        return _from_all(len(ids), tuple(self.tokens), vocabulary) if self.at in (None, ids.shape[1]) else NOTHING


# ---- for sampling: filters of the distribution. keep: that many of the likeliest always stay -------------------------


@dataclass
class Temperature:
    """score / temperature"""

    temperature: float

    def __call__(self, ids: Array, scores: Array, rows: Array) -> Array:
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):  # drawing refuses what is not finite
            scaled: Array = scores / np.float32(self.temperature)
        return scaled


def _entropy(scores: Array) -> Array:
    """(n, 1): of the distribution of each row, -sum p log p in nats."""
    log = np.maximum(ops.log_softmax(scores), np.finfo(np.float32).min)  # 0 log 0 is 0
    entropy: Array = -(log * ops.softmax(scores)).sum(axis=1, keepdims=True)
    return entropy


@dataclass
class TopH:
    """The likeliest of the first 100 tokens whose terms -p log p add up to at most h times the entropy
    (arXiv:2509.02510)."""

    h: float

    def __call__(self, ids: Array, scores: Array, rows: Array) -> Array:
        top, order = largest(scores, 100)
        p = ops.softmax(top)
        with np.errstate(divide="ignore", invalid="ignore"):
            terms = -p * np.log(p)
            stay = np.cumsum(terms, axis=1, dtype=np.float64).astype(np.float32) <= np.float32(self.h) * _entropy(top)
        stay[:, 0] = True
        if self.h == 1:  # no part is more than the whole, whatever rounding says
            stay[:] = True
        kept = np.zeros(scores.shape, bool)
        np.put_along_axis(kept, order, stay, axis=1)
        return _without(scores, ~kept)


@dataclass
class TopK:
    """The k likeliest tokens, and those that are as likely as the last of them (Fan et al. 2018, arXiv:1805.04833)."""

    k: int

    def __call__(self, ids: Array, scores: Array, rows: Array) -> Array:
        return _without(scores, scores < _least_of_top(scores, self.k))


MOST = 256  # of more, all are sorted
WIDER = (MOST, None)  # how many of the best a filter looks at, until it finds its end among them; None: all


@dataclass
class TopP:
    """The likeliest tokens whose probabilities together exceed p (Holtzman et al. 2020, arXiv:1904.09751): from the
    least likely on, tokens go while their sum is at most 1 - p."""

    p: float
    keep: int = 1

    def __call__(self, ids: Array, scores: Array, rows: Array) -> Array:
        probabilities = ops.softmax(scores)
        whole = probabilities.sum(axis=1, keepdims=True, dtype=np.float64)
        for looked_at in WIDER:
            best, where = largest(scores, looked_at or scores.shape[1])
            theirs = np.take_along_axis(probabilities, where, axis=1).astype(np.float64)
            # the sum of a token and all that are less likely, in float64 and rounded, as torch has it
            stay = (whole - np.cumsum(theirs, axis=1) + theirs).astype(np.float32) > np.float32(1 - self.p)
            if not stay[:, -1].any():
                break
        counts = np.minimum(np.maximum(stay.sum(axis=1), self.keep), best.shape[1])
        for row, count, of_row, total in zip(scores, counts.tolist(), best, whole.tolist(), strict=True):
            if not np.isfinite(total[0]):  # it is not for a filter to hide what is wrong with a row
                continue
            least = of_row[count - 1]
            equal = np.flatnonzero(row == least)  # the first of these go first
            kept = equal[len(equal) - (count - int((of_row > least).sum())) :]
            row[~(row > least)] = -np.inf
            row[kept] = least
        return scores


@dataclass
class MinP:
    """Tokens at least p times as likely as the likeliest (arXiv:2407.01082)."""

    p: float
    keep: int = 1

    def __call__(self, ids: Array, scores: Array, rows: Array) -> Array:
        probabilities = ops.softmax(scores)
        gone = probabilities < np.float32(self.p) * probabilities.max(axis=1, keepdims=True)
        np.put_along_axis(gone, largest(probabilities, self.keep)[1], False, axis=1)
        return _without(scores, gone)


@dataclass
class Typical:
    """Tokens whose surprise is nearest to the entropy, until they have the mass p (Meister et al. 2023,
    arXiv:2202.00666)."""

    p: float
    keep: int = 1

    def __call__(self, ids: Array, scores: Array, rows: Array) -> Array:
        log = ops.log_softmax(scores)
        with np.errstate(invalid="ignore"):
            entropy = -np.nansum(log * np.exp(log), axis=1, keepdims=True)
        nearness = -np.abs(-log - entropy)
        probabilities = ops.softmax(scores)
        for looked_at in WIDER:
            nearest, where = largest(nearness, looked_at or scores.shape[1])
            theirs = np.take_along_axis(probabilities, where, axis=1)
            before = np.cumsum(theirs, axis=1, dtype=np.float64).astype(np.float32) < np.float32(self.p)
            if not before[:, -1].any():
                break
        last = np.minimum(before.sum(axis=1, keepdims=True), nearest.shape[1] - 1)
        gone = nearness < np.take_along_axis(nearest, last, axis=1)
        np.put_along_axis(gone, where[:, : self.keep], False, axis=1)
        return _without(scores, gone)


@dataclass
class Epsilon:
    """Tokens of a probability of at least epsilon (Hewitt et al. 2022, arXiv:2210.15191)."""

    epsilon: float
    keep: int = 1

    def __call__(self, ids: Array, scores: Array, rows: Array) -> Array:
        few = scores < _least_of_top(scores, self.keep)
        return _without(scores, few & (ops.softmax(scores) < np.float32(self.epsilon)))


@dataclass
class Eta:
    """Tokens of a probability of at least min(epsilon, sqrt(epsilon) exp(-entropy)), by the same authors."""

    epsilon: float
    keep: int = 1

    def __call__(self, ids: Array, scores: Array, rows: Array) -> Array:
        epsilon = np.float32(self.epsilon)
        eta = np.minimum(epsilon, np.sqrt(epsilon) * np.exp(-_entropy(scores)))
        few = scores < _least_of_top(scores, self.keep)
        return _without(scores, few & (ops.softmax(scores) < eta))


def renormalise(ids: Array, scores: Array, rows: Array) -> Array:
    """Log-probabilities."""
    normal: Array = ops.log_softmax(scores)
    return normal


def processors(
    o: Options,
    *,
    sources: Sequence[Array],
    prompt: int,
    max_length: int,
    per_text: int,
    shown: Callable[[Array, Array], Array],
    prefix_function: PrefixFunction | None = None,
    own: Sequence[Processor] = (),
    diversity: HammingDiversity | None = None,
) -> list[Processor]:
    """Those that the options ask for, in transformers' order.

    sources: the ids of each text that the encoder reads, or of each prompt. prompt: its length, padding included.
    max_length: of a row. per_text: rows that a text has. shown: (ids, rows) -> the rows as the caller knows them.
    ValueError: exponential_decay_length_penalty without an eos."""
    eos = o.eos
    found: list[Processor] = []
    if o.sequence_bias is not None:
        found.append(SequenceBias(o.sequence_bias))
    if diversity is not None:
        found.append(diversity)
    if o.encoder_repetition_penalty != 1:
        found.append(EncoderRepetition(o.encoder_repetition_penalty, sources, per_text))
    if o.repetition_penalty != 1:
        found.append(Repetition(o.repetition_penalty))
    if o.no_repeat_ngram_size:
        found.append(NoRepeatNgram(o.no_repeat_ngram_size))
    if o.encoder_no_repeat_ngram_size:
        found.append(EncoderNoRepeatNgram(o.encoder_no_repeat_ngram_size, sources, per_text))
    if o.bad_words_ids is not None:
        found.append(bad_words(o.bad_words_ids, eos))
    least = max(o.min_length, 0 if o.min_new_tokens is None else prompt + o.min_new_tokens)
    if least and eos:
        found.append(LeastLength(least, eos))
    if prefix_function is not None:
        found.append(AllowedPrefix(prefix_function, per_text, shown))
    if o.forced_bos_token_id is not None:
        found.append(ForcedFirst(o.forced_bos_token_id))
    if o.forced_eos:
        found.append(ForcedLast(o.forced_eos, max_length))
    if o.remove_invalid_values:
        found.append(remove_invalid)
    if o.exponential_decay_length_penalty is not None:
        if not eos:
            raise ValueError("generate: exponential_decay_length_penalty needs an eos_token_id")
        start, factor = o.exponential_decay_length_penalty
        found.append(ExponentialDecay(prompt + start, factor, eos))
    if o.suppress_tokens is not None:
        found.append(Suppressed(o.suppress_tokens))
    if o.begin_suppress_tokens is not None:
        forced = prompt <= 1 and o.forced_bos_token_id is not None
        found.append(Suppressed(o.begin_suppress_tokens, at=prompt + forced))
    found.extend(own)
    if o.do_sample:
        found.extend(_filters(o, keep=len(eos or [-1]) + 1 if o.num_beams > 1 else 1))
    if o.renormalize_logits:
        found.append(renormalise)
    return found


def _filters(o: Options, keep: int) -> list[Processor]:
    """keep: in beam search tokens must be left that go on where all of eos are the likeliest."""
    filters: list[tuple[bool, Callable[[], Processor]]] = [
        (o.temperature != 1, lambda: Temperature(o.temperature)),
        (o.top_h is not None, lambda: TopH(o.top_h or 0.0)),
        (o.top_k != 0, lambda: TopK(max(o.top_k, keep))),
        (o.top_p < 1, lambda: TopP(o.top_p, keep)),
        (o.min_p is not None, lambda: MinP(o.min_p or 0.0, keep)),
        (o.typical_p < 1, lambda: Typical(o.typical_p, keep)),
        (o.epsilon_cutoff > 0, lambda: Epsilon(o.epsilon_cutoff, keep)),
        (o.eta_cutoff > 0, lambda: Eta(o.eta_cutoff, keep)),
    ]
    return [make() for wanted, make in filters if wanted]


def chain(steps: Sequence[Processor], ids: Array, scores: Array, rows: Array) -> Array:
    """All of them, one after another."""
    return functools.reduce(lambda x, step: step(ids, x, rows), steps, scores)


def largest(scores: Array, k: int) -> tuple[Array, Array]:
    """The k largest of each row (n, m) in descending order, and where they stand, both (n, k); of equal ones the first
    counts as larger."""
    k = min(k, scores.shape[1])
    if k <= MOST:
        return ops.top_k(np.ascontiguousarray(scores), k)
    where = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, where, axis=1), where


def draw(scores: Array, stream: Any) -> int:
    """A token from the distribution softmax(scores) of one row (V,), by one number of a random stream. ValueError: no
    token is left, or a score is NaN."""
    best = scores.max()
    if not np.isfinite(best):
        raise ValueError(f"generate: there is no token to draw, as the largest score is {best}")
    with np.errstate(over="ignore"):
        places = np.flatnonzero(scores - best > -700)  # others have no chance in float64
    cumulative = np.cumsum(np.exp(scores[places].astype(np.float64) - best))
    place = int(np.searchsorted(cumulative, stream.random() * cumulative[-1], side="right"))
    return int(places[min(place, len(places) - 1)])  # rounding may have led past the last


def filters_of(steps: Sequence[Processor]) -> dict[str, Any] | None:
    """These as arguments of `draw_there`, if it knows them all, in this order."""
    known: dict[type, tuple[str, str]] = {
        Temperature: ("temperature", "temperature"),
        TopK: ("top_k", "k"),
        TopP: ("top_p", "p"),
        MinP: ("min_p", "p"),
    }
    order = [list(known).index(type(step)) if type(step) in known else len(known) for step in steps]
    if any(at == len(known) for at in order) or order != sorted(set(order)):
        return None
    return {known[type(step)][0]: getattr(step, known[type(step)][1]) for step in steps}


def draw_there(logits: Any, streams: Sequence[Any], filters: dict[str, Any]) -> Array:
    """`draw` of filtered rows on a GPU, (n,): the logits stay there."""
    from ..cuda_ops import sample

    tokens: Array = sample(logits, np.array([stream.random() for stream in streams]), **filters).numpy()
    if (tokens < 0).any():
        raise ValueError("generate: there is no token to draw, as the largest score is not finite")
    return tokens


def largest_there(logits: Any) -> Array:
    """The place of each row's largest on a GPU, (n,)."""
    from ..cuda_ops import argmax

    tokens: Array = argmax(logits).numpy()
    return tokens


def draw_several(scores: Array, k: int, stream: Any) -> Array:
    """k different places of one row (m,), drawn from softmax(scores) without replacement, best first: the k largest
    scores after Gumbel noise (Kool et al. 2019, arXiv:1903.06059)."""
    noise = -np.log(-np.log(np.maximum(stream.random(len(scores)), 1e-300)))
    _, (places,) = largest((scores + noise.astype(np.float32))[None], k)
    order = np.argsort(-scores[places], kind="stable")
    chosen: Array = places[order]
    return chosen
