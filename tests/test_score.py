"""Log-probabilities of texts, from the logits that transformers recorded, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import qkv
from golden_checks import GOLDEN, close, expected


def by_logits(logits: np.ndarray, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """(B, S): log softmax of the logits at each token's real predecessor."""
    x = logits.astype(np.float64)
    x = x - x.max(axis=-1, keepdims=True)
    logs = x - np.log(np.exp(x).sum(axis=-1, keepdims=True))
    scores = np.zeros(ids.shape)
    for b, row in enumerate(mask):
        real = np.flatnonzero(row)
        scores[b, real[1:]] = logs[b, real[:-1], ids[b, real[1:]]]
    return scores


@pytest.mark.parametrize("folder", ["gpt2_lm", "gpt_lm", "ctrl_lm", "llama_tied", "gemma2_lm", "roberta_causal"])
def test_decoders(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qkv.score.AT_ONCE", 3)
    model = qkv.load(GOLDEN / folder)
    # RoBERTa's padding on the left is recorded with explicit positions, which score does not take
    for name in ("right",) if folder == "roberta_causal" else ("right", "left"):
        case = expected(folder).get(name)
        if case is None:
            continue
        ids, mask = case["input_ids"], case["attention_mask"]
        exact = by_logits(case["logits"], ids, mask)
        out = model.score(ids, mask)
        close(out.token_scores, exact)
        close(out.scores, exact.sum(axis=1))
        assert not out.token_scores[mask == 0].any()


@pytest.mark.parametrize("folder", ["bart_scaled", "marian_lm", "t5_v1_1"])
def test_two_stacks(folder: str) -> None:
    case = expected(folder)["pair"]
    ids, mask = case["decoder_input_ids"], case["decoder_attention_mask"]
    exact = by_logits(case["logits"], ids, mask)
    model = qkv.load(GOLDEN / folder)
    out = model.score(case["input_ids"], case["attention_mask"], decoder_input_ids=ids, decoder_attention_mask=mask)
    close(out.token_scores, exact)
    close(out.scores, exact.sum(axis=1))


def test_short_rows_and_none() -> None:
    model = qkv.load(GOLDEN / "gpt2_lm")
    assert model.score([[5]]).scores.tolist() == [0]
    out = model.score(np.zeros((0, 3), np.int64))
    assert out.scores.shape == (0,) and out.token_scores.shape == (0, 3)
    assert model.score(np.zeros((2, 0), np.int64)).scores.tolist() == [0, 0]


def test_who_cannot() -> None:
    for folder, message in (("bert_masked_lm", "does not tell"), ("gpt2_base", "does not tell")):
        with pytest.raises(ValueError, match=message):
            qkv.load(GOLDEN / folder).score([[5, 6]])
    with pytest.raises(ValueError, match="a MarianMTModel scores targets"):
        qkv.load(GOLDEN / "marian_lm").score([[5, 6]])
    with pytest.raises(ValueError, match="attention_mask is for ids"):
        qkv.load(GOLDEN / "gpt2_lm").score("text", [[1]])
