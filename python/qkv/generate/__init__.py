"""Text generation: greedy search, sampling, beam search, beam sampling and diverse groups of beams.

Arguments, defaults and results are those of transformers' generate, token by token; random numbers are our own. What
is different is how the work is done: a batch has no padding inside, a common beginning of all prompts is computed once,
beams share what they have in common, and a row that is finished leaves the batch at once.

Letters: B texts (prompts, or what an encoder reads), P tokens of a prompt with its padding, L tokens of a row so far, V
vocabulary. Rows of a text follow one another: beams, or several samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from .. import ops
from ..layers import Array
from ..placement import host, in_host_memory, take
from .beams import beam_search, group_search
from .call import Columns, Job
from .logits import MOST, draw, draw_there, largest_there
from .rows import CachedRows


def generate(model: Any, input_ids: Any = None, attention_mask: Any = None, **arguments: Any) -> Any:
    """Token ids, int64 (rows, L): prompts with what follows them, or what the decoder of two stacks writes.

    model: one with a head that makes tokens, as qkv.load returns it.
    input_ids: (B, P) integers, None: bos alone. attention_mask: (B, P), 1 for real tokens; padding may
    stand on either side, and stays as it is in the result. None: all are real; in a model of one stack ids that are
    pad_token_id are not, unless it ends texts too. Finished rows are filled up with pad_token_id, else with the first
    eos_token_id, else with 0.

    arguments: those of transformers, first of all max_new_tokens (20, if nobody says anything), do_sample,
    temperature, top_k, top_p, num_beams, num_return_sequences, repetition_penalty; qkv.generate.options.Options has
    all of them. What is not given is taken from generation_config.json, or config.json where there is none; None
    switches an option off, and an eos_token_id below 0 ends nothing. And:
      generation_config         a mapping with arguments that are not given one by one
      seed                      of sampling. Each row has random numbers of its own, which depend on nothing but the
                                seed and its place; None: others in every call
      tokenizer                 for stop_strings, with a `decode` as transformers' have; None: model.tokenizer
      decoder_input_ids         (B, T): what the decoder's rows begin with, behind the start token
      logits_processor          a function or several: (ids (rows, L), scores (rows, V)) -> new scores
      stopping_criteria         a function or several: (ids, scores) -> true for all rows, or for each (rows,); in beam
                                search a row for each candidate
      prefix_allowed_tokens_fn  (number of the text, ids (L,)) -> the tokens that may follow
    These see finished rows too, as padding with scores of 0.

    With return_dict_in_generate a ModelOutput: sequences, and by output_scores, output_logits, output_attentions and
    output_hidden_states the fields that transformers has for them, one entry a step, 0 where a row has finished. Of
    beams also sequences_scores (rows,) by output_scores, and beam_indices (rows, tokens made): the row of the step
    before, among the B num_beams of the batch, that each token was chosen behind; -1 where a row has no more. So of
    groups of beams too, where transformers counts rows within the group, and has a last column of -1.

    ValueError, naming the argument: it is unknown, wrong, not supported, or contradicts another, or asks for more rows
    than memory can hold; a prompt is empty or longer than the model; the model has no head that makes tokens; there is
    nothing to draw, or no best beam, as scores are NaN.
    """
    return search(Job(model, input_ids, attention_mask, arguments))


def search(job: Job) -> Any:
    """What `generate` returns."""
    if not job.texts:
        return job.result(np.zeros((0, job.prompt), np.int64))
    if job.options.num_beam_groups > 1:
        return group_search(job)
    if job.options.num_beams > 1:
        return beam_search(job)
    for _ in _sample(job):
        pass
    assert job.sequences is not None
    return job.result(job.sequences.all.copy())


def stream(model: Any, input_ids: Any = None, attention_mask: Any = None, **arguments: Any) -> Iterator[Array]:
    """The tokens of `generate` step by step as they come, int64 (rows,), pad where a row has finished. Without beams,
    whose tokens are not known before the end. model, input_ids, attention_mask, arguments: as there, and ValueError
    too."""
    return steps(Job(model, input_ids, attention_mask, arguments))


def steps(job: Job) -> Iterator[Array]:
    """What `stream` returns."""
    for name in ("num_beams", "return_dict_in_generate"):
        if getattr(job.options, name) not in (False, 1):
            raise ValueError(
                f"stream: {name}={getattr(job.options, name)} needs generate: there is one token a step here"
            )
    return _sample(job) if job.texts else iter(())


def _likeliest(job: Job, x: Array, ids: Array, rows: Array) -> Array | None:
    """The token of each row's largest score, (n,), where seeing its best logits is enough to know it."""
    gone = None if job.record or job.criteria else job.gone(ids, rows)
    if gone is None or gone.most >= min(MOST, job.decoding.vocabulary):
        return None
    values, tokens, (_, total) = job.decoding.best(x, 1 + gone.most)
    if not np.isfinite(total).all():
        return None
    return ops.best_left(values, tokens, gone.places, job.decoding.vocabulary)


def _sample(job: Job) -> Iterator[Array]:
    """Greedy search and sampling: the tokens of each step (rows,); the whole is in job.sequences."""
    o, decoding, each = job.options, job.decoding, job.beams
    rows = np.arange(job.texts * each)
    streams = [
        np.random.default_rng(np.random.SeedSequence(job.seed, spawn_key=(text, k)))
        for text in job.numbers
        for k in range(each)
        if o.do_sample
    ]
    ids, job.sequences = (Columns(np.repeat(prompts, each, axis=0)) for prompts in (job.ids, job.shown))
    ahead = None
    try:
        x = decoding.start(job.rows)
        if each > 1:
            decoding.select(rows // each)
            x = take(x, rows // each)
        here = in_host_memory(x)
        filters = None if here else job.filters  # not None: tokens alone come from the GPU
        if filters is not None and isinstance(decoding, CachedRows):
            from .ahead import Ahead

            ahead = Ahead(decoding, x, streams, filters, not job.strings and o.max_time is None)
        following: list[int] = []
        while True:
            drawing = [streams[row] for row in rows.tolist()] if o.do_sample else []
            scores = x
            if ahead is not None:
                tokens = ahead.tokens(following, rows, ids.length + 1 < job.max_length)
            elif filters is not None:
                tokens = draw_there(x, drawing, filters) if o.do_sample else largest_there(x)
            elif o.do_sample or not here or (tokens := _likeliest(job, x, ids.all, rows)) is None:
                scores = logits = host(decoding.logits(x))
                if job.steps:  # the logits may be changed, unless they are wanted too
                    scores = job.process(ids.all, logits.copy() if "output_logits" in job.record else logits, rows)
                if job.record:
                    job.note(ids.all, logits, scores, rows)
                if o.do_sample:
                    tokens = np.array([draw(of_row, s) for of_row, s in zip(scores, drawing, strict=True)])
                else:
                    tokens = scores.argmax(axis=1)
            chosen = tokens
            if len(rows) < len(job.made):
                chosen = np.full(len(job.made), job.pad)
                chosen[rows] = tokens
            job.sequences.append(chosen)
            ids.append(tokens)
            following = tokens.tolist()
            if job.may_stop(following, ids.length):
                goes_on = ~job.stops(ids.all, rows, each, scores, rows)
                job.made[rows[~goes_on]] = ids.length - job.prompt
                if not goes_on.all():
                    (ahead or decoding).select(np.flatnonzero(goes_on))
                    rows, ids, following = rows[goes_on], Columns(ids.all[goes_on]), tokens[goes_on].tolist()
            yield chosen.copy()  # the caller's, to change too
            if not rows.size:
                return
            if ahead is None:
                x = decoding.step(following)
    finally:
        job.close()
