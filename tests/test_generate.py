"""Generation against transformers, from recorded results (golden/make_generate.py), and against itself."""

from __future__ import annotations

import gc
import itertools
import json
import math
import shutil
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import qkv
from golden_checks import GOLDEN, close
from qkv import generate as generation
from qkv.capture import CapturedSteps
from qkv.generate import logits
from qkv.generate.beams import _best_seen, _best_sums
from qkv.generate.call import Job
from qkv.generate.rows import CachedRows
from qkv.packing import Packed
from scipy import stats

DECODERS = ("gpt2_lm", "llama_lm", "gemma2_lm", "phi3_lm", "roberta_causal")
PAIRS = ("bart_scaled", "marian_lm", "t5_lm")
NEVER = {"eos_token_id": 38, "suppress_tokens": [38], "pad_token_id": 3}


def load(folder: str) -> Any:
    return qkv.load(GOLDEN / folder)


# ---- against transformers ---------------------------------------------------------------------------


def recorded() -> Iterator[Any]:
    for file in ("generate.npz", "generate_4.npz"):
        with np.load(GOLDEN / file) as arrays:
            pools = {pool: arrays[pool] for pool in ("integers", "floats")}
            cases = json.loads(bytes(arrays["cases"]))
        for number, case in enumerate(cases):
            exact = {}
            for name, (pool, begin, shape) in case.pop("arrays").items():
                exact[name] = pools[pool][begin : begin + math.prod(shape)].reshape(shape)
            yield pytest.param(case, exact, id=f"{case['folder']}-{case['name']}-{number}")


def allowed(text: int, ids: np.ndarray) -> list[int]:
    """The prefix function of make_generate.py."""
    return [token for token in range(39) if (token + text + len(ids)) % 3 == 0]


@pytest.mark.parametrize(("case", "exact"), list(recorded()))
def test_agrees_with_transformers(case: dict[str, Any], exact: dict[str, np.ndarray]) -> None:
    model, arguments = load(case["folder"]), dict(case["arguments"])
    if arguments.pop("prefix", None):
        arguments["prefix_allowed_tokens_fn"] = allowed
    names = {name.split(".")[0] for name in exact} - {"input_ids", "attention_mask", "sequences", "beam_indices"}
    wanted = {f"output_{name}": True for name in ("scores", "logits") if name in names}
    wanted |= {f"output_{x}": True for x in ("attentions", "hidden_states") if any(x in name for name in names)}
    if "sequences_scores" in names:
        wanted["output_scores"] = True
    ids, mask = exact["input_ids"].astype(np.int64), exact.get("attention_mask")
    out = model.generate(ids, mask, return_dict_in_generate=True, **wanted, **arguments)
    assert out.sequences.dtype == np.int64
    if "sequences" in exact:
        np.testing.assert_array_equal(out.sequences, exact["sequences"])
        # nobody sees scores: no more is looked at than the best of each row
        np.testing.assert_array_equal(model.generate(ids, mask, **arguments), exact["sequences"])
    if "beam_indices" in exact:
        np.testing.assert_array_equal(out.beam_indices, exact["beam_indices"])
    real = np.ones(ids.shape, bool) if mask is None else mask == 1
    for name in names:
        if name in ("scores", "logits"):
            steps = len(exact[name])
            alive = np.ones((steps, exact[name].shape[1]), bool)
            if arguments.get("num_beams", 1) == 1 and "sequences" in exact:  # after its end a row is not computed
                ended = np.isin(exact["sequences"][:, -steps:], arguments.get("eos_token_id", [])).cumsum(axis=1) > 0
                alive[1:] = ~ended[:, :-1].T
            for ours, theirs, rows in zip(out[name], exact[name], alive, strict=True):
                close(ours[rows], theirs[rows])
                assert not ours[~rows].any()
        elif name == "sequences_scores":
            close(out[name], exact[name])
        elif name.startswith("encoder_"):
            at_real(name, np.stack(out[name]), exact[name], real, real)
        else:
            pair = hasattr(model, "decoder")
            for step, layers in enumerate(out[name]):
                theirs = exact[f"{name}.{step}"]
                each = theirs.shape[1] // len(real)
                keys = np.repeat(real, each, axis=0)
                queries = np.ones((len(keys), 1), bool) if step or pair else keys
                if name != "cross_attentions":
                    keys = np.ones((len(keys), theirs.shape[-1]), bool) if pair else keys
                    keys = np.pad(keys, ((0, 0), (0, max(theirs.shape[-1] - keys.shape[1], 0))), constant_values=True)
                at_real(name, np.stack(layers), theirs, queries, keys)


def at_real(name: str, ours: np.ndarray, theirs: np.ndarray, queries: np.ndarray, keys: np.ndarray) -> None:
    """Layers first. Behind padding transformers has numbers that mean nothing."""
    assert ours.shape == theirs.shape
    if "hidden_states" in name:
        close(ours[:, queries], theirs[:, queries])
    else:
        shown = queries[:, None, :, None] & keys[:, None, None, :]
        close(np.where(shown, ours, 0), np.where(shown, theirs, 0))
        assert not np.where(shown, 0, ours).any()


# ---- batches ------------------------------------------------------------------------------------------

SEARCHES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "repetition": {"repetition_penalty": 1.5, "no_repeat_ngram_size": 2},
    "beams": {"num_beams": 3, "num_return_sequences": 2, "length_penalty": 0.5},
    "early": {"num_beams": 2, "early_stopping": True},
    "groups": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.8, "num_return_sequences": 3},
}


def texts(folder: str, lengths: tuple[int, ...]) -> list[list[int]]:
    rng = np.random.default_rng([len(lengths), *folder.encode()])
    rows = [rng.integers(4, 38, n).tolist() for n in lengths]
    return [[*row[:-1], row[0]] for row in rows]  # so that there is something to repeat


def padded(rows: list[list[int]], side: str = "left") -> tuple[np.ndarray, np.ndarray]:
    width = max(map(len, rows))
    ids, mask = np.full((len(rows), width), 3), np.zeros((len(rows), width), np.int64)
    for b, row in enumerate(rows):
        place = np.s_[width - len(row) :] if side == "left" else np.s_[: len(row)]
        ids[b, place], mask[b, place] = row, 1
    return ids, mask


def ending(model: Any, rows: list[list[int]], **search: Any) -> dict[str, Any]:
    """Arguments with which rows end at different places: two tokens that are made there."""
    made = model.generate(*padded(rows), max_new_tokens=6, **{**NEVER, **search})[:, -6:]
    pairs = itertools.combinations(sorted({*made.reshape(-1).tolist()} - {3}), 2)

    def places(pair: tuple[int, ...]) -> int:
        ends = np.isin(made, pair)
        return len(set(np.where(ends.any(axis=1), ends.argmax(axis=1), 9).tolist()))

    return {"eos_token_id": list(max(pairs, key=places)), "pad_token_id": 3, "max_new_tokens": 6, **search}


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("folder", [*DECODERS, *PAIRS])
def test_rows_do_not_change_each_other(folder: str, search: str) -> None:
    """A batch of n is n batches of one, to the bit of every score, with padding on either side."""
    model = load(folder)
    rows = texts(folder, (5, 2, 4, 5))
    arguments = ending(model, rows, **SEARCHES[search])
    arguments |= {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    count = arguments.get("num_return_sequences", 1)
    each = max(count, arguments.get("num_beams", 1))
    pair = hasattr(model, "decoder")
    for side in ("left", "right"):
        ids, mask = padded(rows, side)
        prompt = 1 if pair else ids.shape[1]
        both = model.generate(ids, mask, **arguments)
        if not pair:
            np.testing.assert_array_equal(both.sequences[:, :prompt], np.repeat(ids, count, axis=0))
        for b, row in enumerate(rows):
            alone = model.generate([row], **arguments)
            made = alone.sequences[:, 1 if pair else len(row) :]
            ours = both.sequences[b * count : (b + 1) * count, prompt:]
            np.testing.assert_array_equal(ours[:, : made.shape[1]], made)
            assert (ours[:, made.shape[1] :] == 3).all()
            for name in ("scores", "logits"):
                for step, theirs in enumerate(alone[name]):
                    np.testing.assert_array_equal(both[name][step][b * each : (b + 1) * each], theirs)
                for of_step in both[name][len(alone[name]) :]:
                    assert not of_step[b * each : (b + 1) * each].any()
            if alone.sequences_scores is not None:
                np.testing.assert_array_equal(
                    both.sequences_scores[b * count : (b + 1) * count], alone.sequences_scores
                )


@pytest.mark.parametrize("folder", ["gpt2_lm", "phi3_lm", "t5_lm", "transfo_xl_lm"])
@pytest.mark.parametrize("arguments", [{}, {"do_sample": True, "seed": 5}])
def test_stream_is_generate(folder: str, arguments: dict[str, Any]) -> None:
    model = load(folder)
    rows = texts(folder, (4, 2, 3))
    arguments = {**ending(model, rows), **arguments}
    whole = model.generate(*padded(rows), **arguments)
    steps = list(model.stream(*padded(rows), **arguments))
    assert all(step.dtype == np.int64 and step.shape == (3,) for step in steps)
    np.testing.assert_array_equal(np.stack(steps, axis=1), whole[:, whole.shape[1] - len(steps) :])
    assert len(steps) == whole.shape[1] - (1 if folder in PAIRS else 4)


OTHERS = ("bertlm_causal", "electra_causal", "transformer_encoder_lm", "marian_decoder", "marian_vocabularies")


@pytest.mark.parametrize("folder", ["gpt2_lm", "llama_lm", "roberta_causal", "bart_scaled", "t5_lm", *OTHERS])
def test_cached_as_uncached(folder: str) -> None:
    """Greedy search is the argmax of the whole row in one piece, to the bit of its logits."""
    model = load(folder)
    row = texts(folder, (4,))[0]
    out = model.generate([row], max_new_tokens=6, return_dict_in_generate=True, output_logits=True, **NEVER)
    for step, scores in enumerate(out.logits):
        before = out.sequences[:, : out.sequences.shape[1] - 6 + step]
        pair = hasattr(model, "decoder")
        whole = model([row], decoder_input_ids=before) if pair else model(before)
        np.testing.assert_array_equal(scores[0], whole.logits[0, -1])


# ---- what it costs ------------------------------------------------------------------------------------


class Watched:
    """A model whose steps are counted, and whose caches are kept."""

    def __init__(self, model: Any, monkeypatch: pytest.MonkeyPatch):
        self.model, self.rows, self.tokens, self.caches = model, [], [], []
        extend, new_cache, again = model.extend, model.new_cache, CapturedSteps.again

        def counted(cache: Any, sequences: Any, rows: Any, *others: Any, **more: Any) -> Any:
            self.rows.append(len(rows))
            self.tokens.append(sum(map(len, rows)))
            return extend(cache, sequences, rows, *others, **more)

        def replayed(captured: Any, sequences: Any, tokens: Any, *memory: Any) -> Any:
            logits = again(captured, sequences, tokens, *memory)
            if logits is not None:
                self.rows.append(len(tokens))
                self.tokens.append(len(tokens))
            return logits

        def kept(**options: Any) -> Any:
            self.caches.append(new_cache(**options))
            return self.caches[-1]

        monkeypatch.setattr(model, "extend", counted)
        monkeypatch.setattr(CapturedSteps, "again", replayed)
        monkeypatch.setattr(model, "new_cache", kept)

    def freed(self) -> None:
        assert len(self.caches) == 1
        assert self.caches[0].blocks_used == 0 and self.caches[0].blocks > 0
        self.caches.clear()


@pytest.mark.parametrize("folder", ["gpt2_lm", "t5_lm"])
def test_finished_rows_stop_costing(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(folder)
    rows = texts(folder, (4, 2, 3, 4))
    arguments = ending(model, rows)
    watched = Watched(model, monkeypatch)
    out = model.generate(*padded(rows), **arguments)
    made = out[:, 1 if folder in PAIRS else 4 :]
    ends = np.isin(made, arguments["eos_token_id"])
    lengths = np.where(ends.any(axis=1), ends.argmax(axis=1) + 1, made.shape[1])
    assert len(set(lengths.tolist())) > 1
    assert watched.rows == [int((lengths > step).sum()) for step in range(max(lengths))]
    watched.freed()


@pytest.mark.parametrize("search", [*SEARCHES, "sample", "beam_sample"])
@pytest.mark.parametrize("folder", ["llama_lm", "marian_lm"])
def test_all_blocks_come_back(folder: str, search: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(folder)
    rows = texts(folder, (4, 2, 5))
    chosen = {"sample": {"do_sample": True, "seed": 0}, "beam_sample": {"do_sample": True, "num_beams": 2, "seed": 0}}
    arguments = ending(model, rows, **(SEARCHES | chosen)[search])
    watched = Watched(model, monkeypatch)
    model.generate(*padded(rows), **arguments)
    watched.freed()

    def broken(ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        if ids.shape[1] > 7:
            raise RuntimeError("mine")
        return scores

    with pytest.raises(RuntimeError, match="mine"):
        model.generate(*padded(rows), **{**arguments, **NEVER, "max_new_tokens": 9}, logits_processor=broken)
    watched.freed()


def test_a_stream_that_is_left_frees_its_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    model = load("gpt2_lm")
    watched = Watched(model, monkeypatch)
    steps = model.stream(*padded(texts("gpt2_lm", (4, 2))), **NEVER)
    next(steps)
    assert watched.caches[0].blocks_used
    steps.close()
    watched.freed()


@pytest.mark.parametrize("search", ["greedy", "beams"])
def test_a_common_beginning_is_computed_once(search: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In whole blocks of 16 tokens, with the same bits."""
    model = load("llama_lm")
    rng = np.random.default_rng(0)
    start = rng.integers(4, 38, 35).tolist()
    rows = [[*start, 7], [*start, 9, 8, 7, 6], [*start[:34], 5, 5]]
    arguments = {"max_new_tokens": 4, **NEVER, **SEARCHES[search]}
    shown = {"return_dict_in_generate": True, "output_scores": True}
    alone = [model.generate([row], **arguments, **shown) for row in rows]
    watched = Watched(model, monkeypatch)
    out = model.generate(*padded(rows), **arguments, **shown)
    assert watched.tokens[:2] == [32, (36 - 32) + (39 - 32) + (36 - 32)]
    watched.freed()
    each = len(alone[0].scores[0])
    for step, scores in enumerate(out.scores):
        np.testing.assert_array_equal(scores, np.concatenate([one.scores[step] for one in alone]))
    assert each == arguments.get("num_beams", 1)


def test_an_encoder_runs_once_and_beams_share_its_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    model = load("bart_scaled")
    calls: Counter[str] = Counter()
    cross = model.decoder.stack.blocks[0].sublayers[1].layer
    encoder, kv = model.encoder, cross.kv

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(x: Any, *others: Any) -> Any:
            calls[name] += 1 if name == "encoder" else len(x)
            return function(x, *others)

        return call

    side = counted("encoder", encoder)
    side.embeddings, side.heads = encoder.embeddings, encoder.heads  # type: ignore[attr-defined]
    monkeypatch.setattr(model, "encoder", side)
    monkeypatch.setattr(cross, "kv", counted("keys", kv))
    model.generate(*padded(texts("bart_scaled", (7, 3, 5))), num_beams=4, max_new_tokens=6, **NEVER)
    assert calls == {"encoder": 1, "keys": 7 + 3 + 5}


@pytest.mark.parametrize("search", ["greedy", "beams"])
def test_an_encoders_result_dies_with_the_call(search: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not when the garbage collector comes by."""
    model = load("bart_scaled")
    made = []
    of_texts = model.memory

    def memory(*arguments: Any, **options: Any) -> Any:
        result = of_texts(*arguments, **options)
        made.append(weakref.ref(result))
        return result

    monkeypatch.setattr(model, "memory", memory)
    gc.disable()
    try:
        model.generate(*padded(texts("bart_scaled", (7, 3))), max_new_tokens=6, **SEARCHES[search], **NEVER)
        assert [reference() for reference in made] == [None]
    finally:
        gc.enable()


@pytest.mark.parametrize("folder", ["bart_scaled", "t5_v1_1"])
def test_chosen_rows_of_a_memory_have_the_same_bits(folder: str, isa: str) -> None:
    model = load(folder)
    source = Packed.from_lists([[5] * 3, list(range(4, 21)) if folder == "t5_v1_1" else [6] * 12, [7, 8]])
    for chosen in ([0, 1, 2], [2, 2, 0], [1]):
        cache = model.new_cache()
        rows = [[4 + i, 9] for i in range(len(chosen))]
        memory = model.memory(source).rows(np.array(chosen))
        x = model.extend(cache, [cache.sequence() for _ in rows], rows, memory)
        for i, row in enumerate(chosen):
            one = Packed.from_lists([source.ids[source.cu_seqlens[row] : source.cu_seqlens[row + 1]].tolist()])
            cache = model.new_cache()
            alone = model.extend(cache, [cache.sequence()], [rows[i]], model.memory(one))
            np.testing.assert_array_equal(x[2 * i : 2 * i + 2], alone)


# ---- sampling -----------------------------------------------------------------------------------------


def test_samples_have_the_filtered_probabilities() -> None:
    model = load("gpt2_lm")
    arguments = {"do_sample": True, "top_k": 12, "temperature": 0.8, "max_new_tokens": 1, "seed": 11, **NEVER}
    count = 4000
    out = model.generate(
        [[5, 6, 7]], num_return_sequences=count, return_dict_in_generate=True, output_scores=True, **arguments
    )
    scores = out.scores[0]
    assert np.isfinite(scores[0]).sum() == 12 and (scores == scores[0]).all()
    p = np.exp(scores[0].astype(np.float64))
    p /= p.sum()
    found = np.bincount(out.sequences[:, -1], minlength=len(p))
    assert not found[p == 0].any()
    assert stats.chisquare(found[p > 0], count * p[p > 0]).pvalue > 1e-3


def test_draws_without_replacement_have_the_right_probabilities() -> None:
    p = np.array([0.5, 0.25, 0.15, 0.1])
    stream = np.random.default_rng(2)
    count = 4000
    drawn = Counter(
        frozenset(logits.draw_several(np.log(p).astype(np.float32), 2, stream).tolist()) for _ in range(count)
    )
    pairs = list(itertools.combinations(range(4), 2))
    exact = [p[i] * p[j] * (1 / (1 - p[i]) + 1 / (1 - p[j])) for i, j in pairs]
    assert stats.chisquare([drawn[frozenset(pair)] for pair in pairs], count * np.array(exact)).pvalue > 1e-3
    assert (logits.draw_several(np.array([0, 3, 1, 2], np.float32), 4, stream) == [1, 3, 2, 0]).all()


@pytest.mark.parametrize("beams", [1, 3])
def test_seeds(beams: int) -> None:
    """The same numbers for the same seed, whatever else is in the batch; others for each row and seed."""
    model = load("llama_lm")
    rows = texts("llama_lm", (4, 4, 4))
    arguments = {"do_sample": True, "max_new_tokens": 8, "num_beams": beams, "top_k": 0, **NEVER}
    first = model.generate(rows, seed=3, **arguments)
    np.testing.assert_array_equal(first, model.generate(rows, seed=3, **arguments))
    assert (first != model.generate(rows, seed=4, **arguments)).any()
    assert (model.generate(rows, **arguments) != model.generate(rows, **arguments)).any()
    changed = model.generate(rows[1:], seed=3, **arguments)
    np.testing.assert_array_equal(model.generate([rows[0], rows[2]], seed=3, **arguments)[0], first[0])
    assert (changed[0] != first[1]).any()  # another place, another stream
    same = model.generate([rows[0]] * 3, seed=3, **arguments)
    assert (same[0] != same[1]).any() and (same[1] != same[2]).any()
    if beams == 1:
        several = model.generate(rows, seed=3, num_return_sequences=2, **arguments)
        np.testing.assert_array_equal(several[::2], first)


# ---- the caller's own functions -----------------------------------------------------------------------


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("folder", ["gpt2_lm", "bart_scaled"])
def test_own_processors_see_all_rows(folder: str, search: str) -> None:
    model = load(folder)
    rows = texts(folder, (4, 2, 3))
    arguments = ending(model, rows, **SEARCHES[search])
    seen = []

    def suppress(ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        assert ids.dtype == np.int64 and scores.dtype == np.float32
        seen.append((ids, scores))
        scores = scores.copy()
        scores[:, [6, 8]] = -np.inf
        return scores

    for side in ("left", "right"):
        seen.clear()
        ids, mask = padded(rows, side)
        own = model.generate(ids, mask, logits_processor=[suppress], **arguments)
        np.testing.assert_array_equal(own, model.generate(ids, mask, suppress_tokens=[6, 8], **arguments))
        groups = arguments.get("num_beam_groups", 1)
        each = arguments.get("num_beams", 1) // groups
        shown = np.full((3, 1), model.config["decoder_start_token_id"]) if folder in PAIRS else ids
        for call, (of_rows, scores) in enumerate(seen):
            assert len(of_rows) == len(scores) == 3 * each
            np.testing.assert_array_equal(of_rows[:, : shown.shape[1]], np.repeat(shown, each, axis=0))
            if groups == 1:
                assert of_rows.shape[1] == shown.shape[1] + call
    if search == "greedy":  # finished rows stay what they are
        np.testing.assert_array_equal(seen[-1][0], own[:, : seen[-1][0].shape[1]])


def test_own_criteria() -> None:
    model = load("gpt2_lm")
    ids, mask = padded(texts("gpt2_lm", (4, 2, 3)))
    whole = model.generate(ids, mask, max_new_tokens=6, **NEVER)
    out = model.generate(ids, mask, max_new_tokens=6, stopping_criteria=lambda ids, scores: ids.shape[1] >= 7, **NEVER)
    np.testing.assert_array_equal(out, whole[:, :7])
    shapes = set()

    def second(ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        shapes.add((len(ids), scores.shape))
        return (np.arange(len(ids)) == 1) & (ids.shape[1] == 6)

    out = model.generate(ids, mask, max_new_tokens=6, stopping_criteria=[second], **NEVER)
    whole[1, 6:] = 3
    np.testing.assert_array_equal(out, whole)
    assert shapes == {(3, (3, 40))}
    shapes.clear()
    out = model.generate(ids, mask, max_new_tokens=6, num_beams=2, stopping_criteria=[second], **NEVER)
    assert shapes == {(3 * 4, (3 * 2, 40))}
    with pytest.raises(ValueError, match="a stopping criterion must return one truth, or 3"):
        model.generate(ids, mask, stopping_criteria=lambda ids, scores: [True], **NEVER)
    with pytest.raises(ValueError, match=r"a logits_processor must return scores \(3, 40\)"):
        model.generate(ids, mask, logits_processor=lambda ids, scores: scores[:1], **NEVER)


def test_max_time() -> None:
    model = load("gpt2_lm")
    for search in SEARCHES.values():
        out = model.generate([[5, 6]], max_time=0.0, max_new_tokens=6, **NEVER, **search)
        assert out.shape[1] == 3


class Letters:
    """Stands for a tokenizer: each token is a few letters."""

    def decode(self, ids: Any, *, skip_special_tokens: bool) -> str:
        assert not skip_special_tokens
        return "".join(chr(97 + token % 26) + chr(97 + token // 26) for token in ids)


def test_stop_strings() -> None:
    """A row stops where a string ends within its last token, also if it began in the tokens before."""
    model = load("llama_lm")
    model._tokenizer = Letters()
    (row,) = model.generate([[5, 6]], max_new_tokens=8, repetition_penalty=3.0, **NEVER)
    text = Letters().decode(row, skip_special_tokens=False)
    stop = text[7:11]  # the end of token 3, all of 4, the beginning of 5
    assert text.index(stop) == 7
    for strings in (stop, ["never there", stop]):
        (out,) = model.generate([[5, 6]], max_new_tokens=8, repetition_penalty=3.0, stop_strings=strings, **NEVER)
        np.testing.assert_array_equal(out, row[:6])
    (out,) = model.generate([[5, 6]], max_new_tokens=8, repetition_penalty=3.0, stop_strings=text[:4], **NEVER)
    np.testing.assert_array_equal(out, row)  # in the prompt
    del model._tokenizer  # and one that comes with the call, as in transformers
    arguments = {"max_new_tokens": 8, "repetition_penalty": 3.0, "stop_strings": stop, **NEVER}
    (out,) = model.generate([[5, 6]], tokenizer=Letters(), **arguments)
    np.testing.assert_array_equal(out, row[:6])


# ---- options ------------------------------------------------------------------------------------------


def test_files_and_callers(tmp_path: Path) -> None:
    """Caller, then generation_config.json alone, then config.json where there is no such file, then defaults."""
    folder = tmp_path / "model"
    shutil.copytree(GOLDEN / "gpt2_lm", folder)
    prompt = [[5, 6, 7]]

    def lengths(model: Any, **arguments: Any) -> int:
        return int(model.generate(prompt, **{**NEVER, **arguments}).shape[1])

    config = json.loads((folder / "config.json").read_text())
    assert lengths(qkv.load(folder)) == 12  # the model's positions
    (folder / "config.json").write_text(json.dumps(config | {"max_length": 7, "num_beams": 2, "output_scores": True}))
    model = qkv.load(folder)
    assert lengths(model) == 7 and lengths(model, max_new_tokens=2) == 5 and lengths(model, max_length=6) == 6
    assert lengths(model, max_length=None) == 12
    beams = model.generate(prompt, **NEVER)
    np.testing.assert_array_equal(beams, load("gpt2_lm").generate(prompt, max_length=7, num_beams=2, **NEVER))
    file = {"max_new_tokens": 3, "do_sample": True, "top_k": 1, "pad_token_id": -1, "transformers_version": "5"}
    (folder / "generation_config.json").write_text(json.dumps(file))
    qkv.load(folder).save(tmp_path / "model.npz")
    for path in (folder, tmp_path / "model.npz"):
        model = qkv.load(path)
        assert lengths(model) == 6 and lengths(model, max_length=8) == 8 and lengths(model, max_new_tokens=1) == 4
        assert lengths(model, generation_config={"max_new_tokens": 2}) == 5
        assert lengths(model, generation_config={"max_new_tokens": 2}, max_new_tokens=1) == 4
        greedy = load("gpt2_lm").generate(prompt, max_new_tokens=3, **NEVER)
        np.testing.assert_array_equal(model.generate(prompt, **NEVER), greedy)  # top_k 1
        np.testing.assert_array_equal(model.generate(prompt, do_sample=False, **NEVER), greedy)
        out = model.generate(prompt, top_k=None, return_dict_in_generate=True, output_scores=True, **NEVER)
        assert np.isfinite(out.scores[0]).sum() == 39  # None: off
    for content, message in (
        ({"guidance_scale": 2.0}, "generation_config.json: guidance_scale 2.0 is not supported"),
        ({"num_beams": 0}, "generation_config.json: num_beams must be an integer of at least 1; got 0"),
        ([], "generation_config.json: must hold a JSON object"),
    ):
        (folder / "generation_config.json").write_text(json.dumps(content))
        with pytest.raises(ValueError, match=message):
            qkv.load(folder).generate(prompt)


def test_prompts_that_are_not_given() -> None:
    model = load("llama_lm")
    np.testing.assert_array_equal(model.generate(max_new_tokens=3), model.generate([[1]], max_new_tokens=3))
    model = load("bart_scaled")
    plain = model.generate([[5, 6, 7]], max_new_tokens=5, **NEVER)
    assert plain[0, 0] == 2
    given = model.generate([[5, 6, 7]], decoder_input_ids=plain[:, :3], max_new_tokens=3, **NEVER)
    np.testing.assert_array_equal(given, plain)
    given = model.generate([[5, 6, 7]], decoder_input_ids=plain[:, 1:3], max_new_tokens=3, **NEVER)
    np.testing.assert_array_equal(given, plain)


def test_empty_batches() -> None:
    for folder in ("gpt2_lm", "bart_scaled"):
        model = load(folder)
        empty = np.zeros((0, 3), np.int64)
        for search in SEARCHES.values():
            assert model.generate(empty, **NEVER, **search).shape == (0, 1 if folder in PAIRS else 3)
        assert list(model.stream(empty)) == []


def test_ragged_texts_of_transformer_xl() -> None:
    """It cannot leave padding out, so texts of different lengths begin apart, and then go on together."""
    model = load("transfo_xl_lm")
    rows = texts("transfo_xl_lm", (5, 2, 5, 9))
    for search in ("greedy", "beams", "groups"):
        arguments = {"max_new_tokens": 8, "eos_token_id": 9, "pad_token_id": 3, **SEARCHES[search]}
        count = arguments.get("num_return_sequences", 1)
        both = model.generate(*padded(rows), **arguments)[:, 9:]
        for b, row in enumerate(rows):
            alone = model.generate([row], **arguments)[:, len(row) :]
            np.testing.assert_array_equal(both[b * count : (b + 1) * count, : alone.shape[1]], alone)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"max_new_token": 3}, "there is no argument max_new_token; did you mean max_new_tokens?"),
    ({"streamer": 3}, "there is no argument streamer; model.stream"),
    ({"guidance_scale": 1.5}, "guidance_scale 1.5 is not supported"),
    ({"penalty_alpha": 0.6}, "penalty_alpha 0.6 is not supported"),
    ({"watermarking_config": {}}, "watermarking_config {} is not supported"),
    ({"max_new_tokens": 0}, "max_new_tokens must be an integer of at least 1; got 0"),
    ({"max_new_tokens": 2.0}, "max_new_tokens must be an integer"),
    ({"max_new_tokens": 2, "max_length": 9}, "max_length=9 and max_new_tokens=2 are two answers"),
    ({"max_length": 3}, "max_length=3 leaves no room behind a prompt of 3 tokens"),
    ({"max_new_tokens": 11}, "max_new_tokens=11 is too much: the longest prompt has 3 tokens and the model 12"),
    ({"min_new_tokens": 5, "max_new_tokens": 3}, "min_new_tokens=5 is more than rows may have, 6 tokens"),
    ({"temperature": 0.5}, "temperature=0.5 needs do_sample=True"),
    ({"temperature": 0.0, "do_sample": True}, "temperature must be a number above 0"),
    ({"top_p": 1.5, "do_sample": True}, "top_p must be a number from 0 to 1"),
    ({"do_sample": 1}, "do_sample must be true or false"),
    ({"length_penalty": 2.0}, "length_penalty=2.0 needs num_beams above 1"),
    ({"early_stopping": "always", "num_beams": 2}, "early_stopping must be true, false"),
    ({"num_return_sequences": 2}, "num_return_sequences=2 needs do_sample=True or num_beams"),
    ({"num_return_sequences": 3, "num_beams": 2}, "num_return_sequences=3 is more than num_beams=2"),
    ({"num_beams": 3, "num_beam_groups": 2, "diversity_penalty": 1.0}, "num_beam_groups=2 does not divide num_beams=3"),
    ({"num_beams": 4, "num_beam_groups": 2}, "num_beam_groups=2 needs a diversity_penalty"),
    ({"num_beams": 4, "diversity_penalty": 0.5}, "diversity_penalty=0.5 needs num_beam_groups"),
    ({"output_scores": True}, "output_scores=True needs return_dict_in_generate=True"),
    ({"bad_words_ids": [3]}, "bad_words_ids must be a list of lists"),
    ({"bad_words_ids": [[99]]}, "bad_words_ids: 99 is not among the 40 tokens"),
    ({"sequence_bias": {(1,): "x"}}, "sequence_bias must be a mapping"),
    ({"forced_eos_token_id": 50}, "forced_eos_token_id 50 is not among the 40 tokens"),
    ({"forced_eos_token_id": 5, "suppress_tokens": [5]}, "forced_eos_token_id .5. is among suppress_tokens"),
    ({"eos_token_id": 2.0}, "eos_token_id must be a token's id or a list of them"),
    ({"pad_token_id": -1}, "pad_token_id must be a token's id"),
    ({"exponential_decay_length_penalty": [1]}, "exponential_decay_length_penalty must be an integer"),
    ({"seed": -1}, "seed must be an integer of at least 0"),
    ({"logits_processor": 3}, "logits_processor must be a function or a list of them; got int"),
    ({"prefix_allowed_tokens_fn": lambda text, ids: []}, "prefix_allowed_tokens_fn allows no token after"),
    ({"prefix_allowed_tokens_fn": lambda text, ids: [40]}, "prefix_allowed_tokens_fn allows 40"),
    ({"generation_config": 3}, "generation_config must be a mapping; got int"),
    ({"decoder_input_ids": [[1]]}, "decoder_input_ids: a GPT2LMHeadModel has no such input"),
    ({"stop_strings": ""}, "stop_strings must be a string"),
    ({"attention_mask": [[0, 0, 0]]}, "attention_mask: row 0 has no real token"),
]


@pytest.mark.parametrize("call", range(len(WRONG)))
def test_wrong_arguments(call: int) -> None:
    arguments, message = WRONG[call]
    with pytest.raises(ValueError, match=message):
        load("gpt2_lm").generate([[5, 6, 7]], **arguments)


@pytest.mark.parametrize(
    ("folder", "prompt", "message"),
    [
        ("gpt2_base", [[5]], "a GPT2Model has no head that makes tokens"),
        ("bert_masked_lm", [[5]], "a BertForMaskedLM attends to what follows a token too"),
        ("bart_classify", [[5]], "a BartForSequenceClassification has no head that makes tokens"),
        ("transfo_xl_base", [[5]], "a TransfoXLModel has no head that makes tokens"),
        ("gpt2_lm", [[5] * 13], "row 0 has 13 tokens; the model has 12 positions"),
        ("gpt2_lm", [[5] * 12], "a prompt of 12 tokens leaves no room among 12 positions"),
        ("gpt2_lm", [[]], "a text must have at least one token"),
        ("gpt2_lm", [[40]], "40 in row 0, column 0 is not among the model's 40 tokens"),
        ("gpt2_lm", [5], "expected shape"),
        ("bart_scaled", [[]], "a text must have at least one token"),
        ("bart_scaled", [[5] * 13], "row 0 has 13 tokens"),
    ],
)
def test_wrong_prompts(folder: str, prompt: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(folder).generate(prompt)


def test_other_errors() -> None:
    with pytest.raises(ValueError, match="stream: num_beams=2 needs generate"):
        load("gpt2_lm").stream([[5]], num_beams=2)
    with pytest.raises(ValueError, match="output_attentions is not supported for a TransfoXLLMHeadModel"):
        load("transfo_xl_lm").generate([[5]], return_dict_in_generate=True, output_attentions=True)
    config = json.loads((GOLDEN / "t5_lm" / "config.json").read_text())
    weights = {name: t.read() for name, t in qkv.files.folder_tensors(GOLDEN / "t5_lm").items()}
    del config["decoder_start_token_id"]
    config.pop("bos_token_id", None)
    with pytest.raises(ValueError, match="the decoder needs a decoder_start_token_id"):
        qkv.from_weights(config, weights).generate([[5]])


# ---- pieces -------------------------------------------------------------------------------------------


def test_the_largest_come_in_order() -> None:
    """Of equal numbers the first is larger, whichever way they are found."""
    rng = np.random.default_rng(1)
    for size, k, kinds in (
        (8, 3, 12),
        (400, 7, 12),
        (5, 9, 12),
        (1024, 1, 12),
        (1500, 7, 3000),
        (5003, 40, 12),
        (5003, 40, 9000),
    ):
        scores = rng.integers(0, kinds, (4, size)).astype(np.float32)
        scores[1, : size // 2] = scores[2, 3:] = -np.inf
        values, where = logits.largest(scores, k)
        for row, v, w in zip(scores, values, where, strict=True):
            exact = sorted(range(size), key=lambda i: (-row[i], i))[:k]
            assert w.tolist() == exact and v.tolist() == row[exact].tolist()


def test_a_finished_row_may_be_beaten_until_its_text_leaves() -> None:
    """early_stopping=True takes the first rows that end, False waits for better ones: they differ somewhere."""
    model = load("gpt2_lm")
    different = 0
    for seed in range(12):
        row = np.random.default_rng(seed).integers(4, 38, 4).tolist()
        both = [
            model.generate([row], num_beams=3, early_stopping=early, eos_token_id=list(range(0, 40, 5)), pad_token_id=3)
            for early in (True, False)
        ]
        different += both[0].tolist() != both[1].tolist()
    assert different


def test_generation_is_documented() -> None:
    for name in ("seed", "generation_config", "logits_processor", "stopping_criteria", "prefix_allowed_tokens_fn"):
        assert name in (generation.generate.__doc__ or "")


# ---- a vocabulary of thousands -------------------------------------------------------------------------

WIDE = 5000


def wide_scores(rng: np.random.Generator, kind: str) -> np.ndarray:
    x = rng.standard_normal((3, WIDE)).astype(np.float32)
    if kind == "steep":
        x *= 6
    elif kind == "ties":
        x = np.round(2 * x)
    elif kind == "filtered":
        x[:, rng.permutation(WIDE)[40:]] = -np.inf
    elif kind == "ascending":
        x.sort(axis=1)
    elif kind == "one":
        x[:, 77] = 90
    return np.ascontiguousarray(x, np.float32)


def sorted_away(scores: np.ndarray, p: float, keep: int) -> np.ndarray:
    """TopP by a sort of everything, with sums in float64."""
    result = scores.copy()
    for row in result:
        order = np.argsort(row, kind="stable")
        e = np.exp(row[order].astype(np.float64) - row.max())
        gone = np.cumsum(e / e.sum()) <= 1 - p
        gone[-keep:] = False
        row[order[gone]] = -np.inf
    return result


KINDS = ["flat", "steep", "ties", "filtered", "ascending", "one"]


@pytest.mark.parametrize("keep", [1, 3])
@pytest.mark.parametrize("p", [0.05, 0.6, 0.9, 0.999])
@pytest.mark.parametrize("kind", KINDS)
def test_top_p_of_many(kind: str, p: float, keep: int, rng: np.random.Generator) -> None:
    scores = wide_scores(rng, kind)
    expected = sorted_away(scores, p, keep)
    found = logits.TopP(p, keep)(np.zeros((3, 1), np.int64), scores.copy(), np.arange(3))
    # a sum in float32 may fall on the other side of the border
    assert (np.isneginf(found) != np.isneginf(expected)).sum() <= 3
    stayed = ~np.isneginf(found)
    np.testing.assert_array_equal(found[stayed], scores[stayed])


@pytest.mark.parametrize("p", [0.2, 0.9, 0.999])
@pytest.mark.parametrize("kind", KINDS)
def test_typical_of_many(kind: str, p: float, rng: np.random.Generator) -> None:
    scores = wide_scores(rng, kind)
    found = logits.Typical(p)(np.zeros((3, 1), np.int64), scores.copy(), np.arange(3))
    for row, ours in zip(scores, found, strict=True):
        e = np.exp(row.astype(np.float64) - row.max())
        prob = e / e.sum()
        with np.errstate(divide="ignore", invalid="ignore"):
            surprise = -np.log(prob)
            entropy = np.nansum(prob * surprise)
        distance = np.abs(surprise - entropy)
        order = np.argsort(distance, kind="stable")
        last = min(int((np.cumsum(prob[order]) < p).sum()), WIDE - 1)
        border = distance[order[last]]
        clear = np.abs(distance - border) > 1e-4 * (1 + border)  # float32 may order its neighbours otherwise
        np.testing.assert_array_equal(np.isneginf(ours[clear]), np.isneginf(row[clear]) | (distance[clear] > border))


@pytest.mark.parametrize("k", [1, 50, 256, 257, 3000, 9999])
@pytest.mark.parametrize("kind", KINDS)
def test_top_k_of_many(kind: str, k: int, rng: np.random.Generator) -> None:
    scores = wide_scores(rng, kind)
    least = np.sort(scores, axis=1)[:, ::-1][:, min(k, WIDE) - 1, None]
    expected = np.where(scores < least, np.float32(-np.inf), scores)
    found = logits.TopK(k)(np.zeros((3, 1), np.int64), scores.copy(), np.arange(3))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_filters_do_not_hide_what_is_wrong(bad: float, rng: np.random.Generator) -> None:
    for make in (logits.TopP, logits.MinP, logits.Typical, logits.Epsilon, logits.Eta):
        scores = wide_scores(rng, "steep")
        scores[1, 33] = bad
        with np.errstate(all="ignore"):
            found = make(0.5)(np.zeros((3, 1), np.int64), scores, np.arange(3))
        logits.draw(found[0], np.random.default_rng(0))
        with pytest.raises(ValueError, match="no token to draw"):
            logits.draw(found[1], np.random.default_rng(0))


def test_a_beginning_that_rows_of_a_decoder_share() -> None:
    """It is computed for each of them, as each looks at another text."""
    model, rng = qkv.load(GOLDEN / "t5_lm"), np.random.default_rng(0)
    texts, begun = rng.integers(4, 30, (2, 6)), np.tile(rng.integers(4, 30, 20), (2, 1))
    both = model.generate(texts, decoder_input_ids=begun, max_new_tokens=6)
    for i in range(2):
        alone = model.generate(texts[i : i + 1], decoder_input_ids=begun[i : i + 1], max_new_tokens=6)
        np.testing.assert_array_equal(both[i : i + 1, : alone.shape[1]], alone)


@pytest.mark.parametrize("kind", KINDS)
def test_best_sums_of_many(kind: str, rng: np.random.Generator) -> None:
    """Of all beams and tokens, equal ones in order; by log-probabilities, and by the best logits of rows."""
    scores = wide_scores(rng, kind).reshape(1, 3, WIDE)
    rounded = np.full((1, 3), -1e8)  # by sums of this size, different scores become equal ones
    for running in (np.zeros((1, 3)), np.array([[0, -1e9, -1e9]]), np.array([[-3.25, -2.5, -40]]), rounded):
        start = running.astype(np.float32)
        log = qkv.log_softmax(scores)
        sums = (log + start[:, :, None]).reshape(1, -1)
        order = np.argsort(-sums, axis=1, kind="stable")[:, :8]
        best, beam, token = _best_sums(log.copy(), start, 8)
        np.testing.assert_array_equal(beam * WIDE + token, order)
        np.testing.assert_array_equal(best, np.take_along_axis(sums, order, axis=1))

        seen = _best_seen(Outlook(scores[0]), np.arange(3), np.arange(3), logits.Gone([], WIDE), start, 8)
        if seen is not None:  # else all are looked at
            np.testing.assert_array_equal(seen[1] * WIDE + seen[2], order)
            np.testing.assert_array_equal(seen[0], np.take_along_axis(sums, order, axis=1))
        assert (seen is None) <= (kind != "steep" or running is rounded), "in vain"


@dataclass
class Outlook:
    """A decoding whose rows have these logits."""

    given: np.ndarray

    @property
    def vocabulary(self) -> int:
        return self.given.shape[1]

    def best(self, x: np.ndarray, k: int) -> Any:
        return qkv.ops.top_k_with_parts(self.given[x], k)


@pytest.mark.parametrize("beams", [1, 3])
def test_best_seen_without_what_masks_take(beams: int, rng: np.random.Generator) -> None:
    """Beams may share a row, and the best of them are gone."""
    scores = rng.standard_normal((2, WIDE)).astype(np.float32)
    of = np.repeat([1, 0], beams)
    best = np.argsort(-scores, axis=1)
    banned = logits.Suppressed([*best[0, :4].tolist(), *best[1, [0, 2, 9]].tolist(), 5])
    running = rng.standard_normal((2, beams)).astype(np.float32)
    log = qkv.log_softmax(scores)[of].reshape(2, beams, WIDE)
    log[:, :, banned.tokens] = -np.inf
    sums = (log + running[:, :, None]).reshape(2, -1)
    order = np.argsort(-sums, axis=1, kind="stable")[:, :8]
    ids, rows = np.zeros((2 * beams, 3), np.int64), np.arange(2 * beams)
    gone = logits.Gone([banned.gone(ids, rows, WIDE)], WIDE)
    seen = _best_seen(Outlook(scores), np.arange(2), of, gone, running, 8)
    assert seen is not None
    np.testing.assert_array_equal(seen[1] * WIDE + seen[2], order)
    np.testing.assert_array_equal(seen[0], np.take_along_axis(sums, order, axis=1))
    too_many = logits.Gone([logits.Suppressed(range(300)).gone(ids, rows, WIDE)], WIDE)
    assert _best_seen(Outlook(scores), np.arange(2), of, too_many, running, 8) is None


@pytest.mark.parametrize("dtype", ["float32", "int8"])
@pytest.mark.parametrize("search", [{}, {"num_beams": 3, "num_return_sequences": 3, "no_repeat_ngram_size": 1}])
def test_the_best_of_a_wide_vocabulary(search: dict[str, Any], dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens and the sums of their log-probabilities are those of a search that looks at all scores."""
    config = {"model_type": "gpt2", "vocab_size": 3001, "n_positions": 64, "n_embd": 32, "n_layer": 1, "n_head": 2}
    rng = np.random.default_rng(4)
    shapes = {"wte": (3001, 32), "wpe": (64, 32), "ln_f": (32,), "h.0.ln_1": (32,), "h.0.ln_2": (32,)}
    dense = {"attn.c_attn": (32, 96), "attn.c_proj": (32, 32), "mlp.c_fc": (32, 128), "mlp.c_proj": (128, 32)}
    shapes |= {f"h.0.{name}": shape for name, shape in dense.items()}
    weights = {f"transformer.{name}.weight": rng.standard_normal(shape) for name, shape in shapes.items()}
    biased = {name: shape for name, shape in shapes.items() if name[0] != "w"}
    weights |= {f"transformer.{name}.bias": rng.standard_normal(shape[-1]) for name, shape in biased.items()}
    weights = {name: (0.3 * value).astype(np.float32) for name, value in weights.items()}
    model = qkv.from_weights({**config, "architectures": ["GPT2LMHeadModel"]}, weights, dtype=dtype)
    arguments = {"max_new_tokens": 12, "eos_token_id": list(range(0, 3001, 40)), "pad_token_id": 0, **search}
    ids, mask = padded([rng.integers(1, 3000, n).tolist() for n in (5, 1, 9)])
    seen: list[int] = []
    best = CachedRows.best
    monkeypatch.setattr(CachedRows, "best", lambda self, x, k: (seen.append(k), best(self, x, k))[1])
    ours = model.generate(ids, mask, **arguments)
    assert len(seen) > 3, "in vain"
    whole = model.generate(ids, mask, return_dict_in_generate=True, output_scores=True, **arguments)
    np.testing.assert_array_equal(ours, whole.sequences)
    monkeypatch.setattr(Job, "gone", lambda *_: None)
    before = len(seen)
    np.testing.assert_array_equal(ours, model.generate(ids, mask, **arguments))
    assert len(seen) == before


def test_what_a_stream_yields_is_the_callers() -> None:
    model = load("gpt2_lm")
    ids, mask = padded(texts("gpt2_lm", (4, 2)))
    arguments = {"max_new_tokens": 8, **NEVER, "no_repeat_ngram_size": 2}
    expected = model.generate(ids, mask, **arguments)[:, 4:]
    for step, tokens in enumerate(model.stream(ids, mask, **arguments)):
        np.testing.assert_array_equal(tokens, expected[:, step])
        tokens[...] = 1
