"""Beam search, beam sampling and diverse groups of beams."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import ops
from ..layers import Array
from ..placement import host
from .call import Job
from .logits import MOST, NOTHING, Gone, draw_several, largest
from .options import Options
from .rows import Decoding

LOST = np.float32(-1e9)  # below every real score; what transformers has for it, as sums with it are rounded


@dataclass(eq=False)
class _Beam:
    """A finished row: its score, the tokens that were made (t,), and the row that each step went on from (t,)."""

    score: Any
    tokens: Array
    parents: Array


def _power(length: int, penalty: float) -> float:
    """length^penalty. ValueError: that is too large or too small for a number."""
    try:
        power: float = float(length) ** penalty
    except OverflowError:
        power = 0.0
    if not power:
        raise ValueError(f"generate: length_penalty={penalty} is too much: {length} to that power is no number")
    return power


def _over(scores: Array, length: int, penalty: float) -> Array:
    """scores / length^penalty in float32, as far as that goes: beyond, they become 0 or infinite."""
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        divided: Array = scores / np.float32(_power(length, penalty))
    return divided


def _no_nan(scores: Array) -> Array:
    """The same. ValueError: one is NaN, so that nothing says which beams are the best."""
    if np.isnan(scores).any():
        raise ValueError("generate: there are no best beams, as a score is nan")
    return scores


def _along(x: Array, places: Array) -> Array:
    """x[b, places[b, j]]: np.take_along_axis, which takes several times as long over few numbers."""
    found: Array = x[np.arange(len(x))[:, None], places]
    return found


SPARE = 3  # candidates beyond those wanted, as sums of neighbours may be equal


def _best_sums(scores: Array, running: Array, k: int) -> tuple[Array, Array, Array]:
    """The k largest of scores (n, beams, V) + running (n, beams) over all beams and tokens, of equal ones the first,
    with their beams and tokens, all (n, k), without adding all: a beam's best are among those with its best scores, but
    for sums that rounding makes equal."""
    vocabulary = scores.shape[2]
    most = k + SPARE
    if most < vocabulary:
        values, tokens = largest(scores.reshape(-1, vocabulary), most)
        found = ops.best_sums(values, tokens, NOTHING[0], vocabulary, np.arange(len(values)), running, k)
        if found is not None:
            return found
    best, places = largest((scores + running[:, :, None]).reshape(len(scores), -1), k)
    return best, *np.divmod(places, vocabulary)


def _best_seen(
    decoding: Decoding, x: Array, row_of: Array, gone: Gone, running: Array, k: int
) -> tuple[Array, Array, Array] | None:
    """`_best_sums` of rows row_of of x, seeing no more of them than each beam's best; None if these are not enough."""
    vocabulary = decoding.vocabulary
    most = k + SPARE + gone.most
    if most > MOST or most >= vocabulary:
        return None
    values, tokens, (top, total) = decoding.best(x, most)
    with np.errstate(invalid="ignore"):  # of rows that are not finite
        scores = (values - top) - total
    return ops.best_sums(scores, tokens, gone.places, vocabulary, row_of, running, k)


def _grown(rows: Array, beam: Array, last: Array) -> Array:
    """Those of rows (n, beams, L) that candidates (n, m) come from, and behind them what each adds: (n, m, L + 1)."""
    return np.concatenate([_along(rows, beam), last[..., None]], axis=2)


def beam_search(job: Job) -> Any:
    """Beam search and beam sampling as in transformers since 4.50: `beams` running rows a text, of whose continuations
    the best `candidates` are looked at, and as many finished ones. Scores are sums of log-probabilities, of finished
    rows divided by (tokens made)^length_penalty.

    A text leaves when no running row can beat its finished ones any more, or, with early_stopping true, when it has
    enough of them."""
    o, decoding, beams = job.options, job.decoding, job.beams
    candidates = max(2, 1 + len(o.eos)) * beams
    streams = [np.random.default_rng(np.random.SeedSequence(job.seed, spawn_key=(b,))) for b in job.numbers]
    finished: list[list[_Beam]] = [[] for _ in range(job.texts)]  # best first
    worst = np.full(job.texts, LOST)  # of a text that has `beams` of them
    texts = np.arange(job.texts)  # those that go on
    ids = np.repeat(job.ids, beams, axis=0)  # (texts * beams, L)
    parents = np.zeros((job.texts, beams, 0), np.int64)
    running = np.full((job.texts, beams), LOST)
    running[:, 0] = 0
    watched = bool(o.do_sample or job.record or job.criteria)  # whether anyone looks at all of the scores
    try:
        x, vocabulary = decoding.start(job.rows), decoding.vocabulary
        row_of = np.repeat(np.arange(job.texts), beams)  # of each beam in `decoding`, which has one a text at first
        while True:
            count, length = len(texts), ids.shape[1] + 1
            rows = (texts[:, None] * beams + np.arange(beams)).reshape(-1)
            gone = None if watched else job.gone(ids, rows)
            seen = None if gone is None else _best_seen(decoding, x, row_of, gone, running, candidates)
            if seen is not None:
                best, beam, token = seen
                scores = x  # nobody looks at them
            else:
                logits = host(decoding.logits(x))
                if len(logits) < len(rows):
                    logits = logits[row_of]
                scores = _no_nan(job.process(ids, ops.log_softmax(logits), rows))
                job.note(ids, logits, scores, rows)
                of_text = scores.reshape(count, beams, vocabulary)
                if o.do_sample:
                    sums = (of_text + running[:, :, None]).reshape(count, beams * vocabulary)
                    top = np.stack(
                        [draw_several(s, candidates, streams[b]) for s, b in zip(sums, texts.tolist(), strict=True)]
                    )
                    best, beam, token = _along(sums, top), *np.divmod(top, vocabulary)
                else:
                    best, beam, token = _best_sums(of_text, running, candidates)
            found = best.shape[1]  # fewer than candidates only in a tiny vocabulary
            origin = texts[:, None] * beams + beam
            made = length - job.prompt
            ends = np.zeros((count, found), bool)
            may_stop = job.may_stop(token.reshape(-1).tolist(), length)
            if may_stop:
                longer, history = _grown(ids.reshape(count, beams, -1), beam, token), _grown(parents, beam, origin)
                numbers = (texts[:, None] * found + np.arange(found)).reshape(-1)
                ends = job.stops(longer.reshape(count * found, length), numbers, found, scores, rows)
                ends = ends.reshape(count, found)
                final = _over(best, made, o.length_penalty)
                for i, j in np.argwhere(ends[:, :beams] & (final[:, :beams] > LOST)).tolist():
                    finished[texts[i]].append(_Beam(final[i, j], longer[i, j, job.prompt :], history[i, j]))
                for text in texts[ends.any(axis=1)].tolist():
                    finished[text] = sorted(finished[text], key=lambda x: -x.score)[:beams]
                    if len(finished[text]) == beams:
                        worst[text] = finished[text][-1].score

            if may_stop or o.do_sample:
                running, chosen = largest(np.where(ends, best + LOST, best), beams)
                beam, token, origin = (_along(v, chosen) for v in (beam, token, origin))
            else:  # they are in order
                running, beam, token, origin = (v[:, :beams] for v in (best, beam, token, origin))
            hopeful = job.max_length - job.prompt if o.early_stopping == "never" and o.length_penalty > 0 else made
            hope, least = _over(running[:, 0], hopeful, o.length_penalty), worst[texts]
            enough = (least > LOST) & (o.early_stopping is True)
            goes_on = (hope > least) & ~ends.all(axis=1) & ~enough
            from_row, before = row_of.reshape(count, beams), ids.reshape(count, beams, -1)
            if not goes_on.all():
                running, beam, token, origin = (v[goes_on] for v in (running, beam, token, origin))
                texts, from_row, before, parents = (v[goes_on] for v in (texts, from_row, before, parents))
            decoding.select(_along(from_row, beam).reshape(-1))
            if not len(texts):
                break
            ids = _grown(before, beam, token).reshape(-1, length)
            parents = _grown(parents, beam, origin)
            x = decoding.step(ids[:, -1].tolist())
            row_of = np.arange(len(ids))
    finally:
        job.close()
    nothing = np.zeros(0, np.int64)
    kept = [
        (text, of_text[k] if k < len(of_text) else _Beam(LOST, nothing, nothing))
        for text, of_text in enumerate(finished)
        for k in range(o.num_return_sequences)
    ]
    return _beams_result(job, kept)


def _beams_result(job: Job, kept: list[tuple[int, _Beam]]) -> Any:
    sequences = job.padded([text for text, _ in kept], [beam.tokens for _, beam in kept])
    indices = np.full((len(kept), max(len(beam.parents) for _, beam in kept)), -1)
    for row, (_, beam) in zip(indices, kept, strict=True):
        row[: len(beam.parents)] = beam.parents
    scores = np.array([beam.score for _, beam in kept], np.float32) if job.options.output_scores else None
    return job.result(sequences, sequences_scores=scores, beam_indices=indices)


# ---- groups of beams -------------------------------------------------------------------------------


class _Group:
    """The finished rows of one group of a text, at most `beams`, as transformers' beam scorer kept them until 4.49:
    score = sum of log-probabilities / (tokens of the row, its prompt's too)^length_penalty, in float64."""

    def __init__(self, beams: int, o: Options):
        self.beams, self.o = beams, o
        self.found: list[_Beam] = []
        self.done = False

    def add(self, total: float, length: int, tokens: Array, parents: Array) -> None:
        score = total / _power(length, self.o.length_penalty)
        worst = min((beam.score for beam in self.found), default=0.0)
        if len(self.found) < self.beams or score > worst:
            self.found.append(_Beam(score, tokens, parents))
            if len(self.found) > self.beams:
                self.found.remove(min(self.found, key=lambda beam: beam.score))

    def settle(self, best: float, length: int, max_length: int) -> None:
        """Whether the group is done: it has its rows, and `best`, the largest sum that goes on, cannot beat them."""
        o = self.o
        if len(self.found) == self.beams and not self.done:
            hopeful = max_length if o.early_stopping == "never" and o.length_penalty > 0 else length
            worst = min(beam.score for beam in self.found)
            self.done = o.early_stopping is True or worst >= best / _power(hopeful, o.length_penalty)


def group_search(job: Job) -> Any:
    """Diverse beam search (Vijayakumar et al. 2018, arXiv:1610.02424) as in transformers 4.35.2: groups of beams, each
    a search of its own, in which tokens lose what diversity_penalty says for each row of the groups before that has
    chosen them in the same step."""
    o, decoding, beams = job.options, job.decoding, job.beams
    size, eos = job.per_call, set(o.eos)
    candidates = max(2, 1 + len(eos)) * size
    groups = [[_Group(size, o) for _ in range(o.num_beam_groups)] for _ in range(job.texts)]
    padding = np.array([job.prompt - len(row) for row in job.rows])  # does not count as length
    ids = np.repeat(job.ids, beams, axis=0)
    parents = np.zeros((len(ids), 0), np.int64)
    sums = np.full((job.texts, beams), LOST)
    sums[:, ::size] = 0
    assert job.diversity is not None
    try:
        logits = host(decoding.logits(decoding.start(job.rows)))
        row_of = np.repeat(np.arange(job.texts), beams)  # of each beam in `decoding`; -1: it has left
        while True:
            log_probs, length = ops.log_softmax(logits), ids.shape[1]
            tokens = np.full(len(ids), job.pad)
            origin = np.arange(len(ids))  # the beam that each goes on from
            shown = np.zeros((len(ids), logits.shape[1]), np.float32)
            for g in range(o.num_beam_groups):
                texts = np.array([b for b in range(job.texts) if not groups[b][g].done], np.int64)
                if not texts.size:
                    continue
                first = texts * beams + g * size  # each text's first beam of the group
                here = (first[:, None] + np.arange(size)).reshape(-1)
                job.diversity.chosen = np.repeat(tokens.reshape(-1, beams)[texts, : g * size], size, axis=0)
                numbers = (texts[:, None] * size + np.arange(size)).reshape(-1)
                scores = _no_nan(job.process(ids[here], log_probs[row_of[here]], numbers))
                shown[here] = scores
                by_text = scores.reshape(len(texts), size, -1)
                best, beam_of, token_of = _best_sums(by_text, sums[texts, g * size : (g + 1) * size], candidates)
                for i, b in enumerate(texts.tolist()):
                    group, real = groups[b][g], length - int(padding[b])
                    goes_on: list[tuple[int, int, Any]] = []
                    chosen = zip(beam_of[i].tolist(), token_of[i].tolist(), best[i], strict=True)
                    for rank, (beam, token, score) in enumerate(chosen):
                        row = int(first[i]) + beam
                        if token not in eos:
                            goes_on.append((row, token, score))
                        elif rank < size:
                            history = np.append(parents[row], row)
                            group.add(float(score), real, ids[row, job.prompt :], history)
                        if len(goes_on) == size:
                            break
                    for k, (row, token, score) in enumerate(goes_on):
                        beam = int(first[i]) + k
                        origin[beam], tokens[beam], sums[b, g * size + k] = row, token, score
                    group.settle(float(best[i].max()), real + 1, job.max_length - int(padding[b]))
            rows = np.flatnonzero(row_of >= 0)
            job.note(ids, logits[row_of[rows]], shown[rows], rows)
            ids = np.concatenate([ids[origin], tokens[:, None]], axis=1)
            parents = np.concatenate([parents[origin], origin[:, None]], axis=1)
            late = o.max_time is not None and time.monotonic() - job.begun > o.max_time
            over = ids.shape[1] >= job.max_length or late
            alive = np.repeat([not group.done and not over for of_text in groups for group in of_text], size)
            decoding.select(row_of[origin[alive]])
            if not alive.any():
                break
            logits = host(decoding.logits(decoding.step(tokens[alive].tolist())))
            row_of = np.where(alive, np.cumsum(alive) - 1, -1)
    finally:
        job.close()
    kept = []
    for b, of_text in enumerate(groups):
        real = ids.shape[1] - int(padding[b])
        for g, group in enumerate(of_text):
            if not group.done:
                for k in range(g * size, (g + 1) * size):
                    row = b * beams + k
                    group.add(float(sums[b, k]), real, ids[row, job.prompt :], parents[row])
        found = sorted([beam for group in of_text for beam in group.found], key=lambda beam: beam.score)
        for _ in range(o.num_return_sequences):
            beam = found.pop()  # of equal ones the last
            if len(beam.parents) > len(beam.tokens):  # it ended before its last step's token
                beam.tokens = np.append(beam.tokens, o.eos[0])
            kept.append((b, beam))
    return _beams_result(job, kept)
