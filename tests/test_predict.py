"""Scores of pairs against sentence-transformers' CrossEncoder."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from task_checks import TOLERANCE, Load, calls, same

pytest.importorskip("tokenizers", reason="text needs the extra `text`")


@pytest.mark.parametrize("call", calls("predict.json"))
def test_scores_are_those_of_sentence_transformers(call: dict[str, Any], tiny: Load) -> None:
    model = tiny(call["model"], call["config"])
    arguments = dict(call["arguments"])
    if call["method"] == "rank":
        same(model.rank(**arguments), call["result"])
        return
    scores = model.predict(arguments.pop("inputs"), **arguments)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, np.array(call["result"]), rtol=0, atol=TOLERANCE)
