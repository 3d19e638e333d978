"""Pipelines of encoders: results against transformers' own, call by call, and what calls have in common."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import qkv
from golden_checks import GOLDEN
from qkv.tasks import TASKS
from task_checks import Load, calls, folder, same

tokenizers = pytest.importorskip("tokenizers", reason="text needs the extra `text`")

TEXTS = ["I love the film", "", "Anna lives in Berlin and works for a small bank. " * 3, "Zürich é 🙂", "the end", "a"]
# a task, a model for it, options, and inputs of many lengths
MANY: list[tuple[str, str, dict[str, Any], list[Any]]] = [
    ("text-classification", "bert_three", {"top_k": None, "truncation": True}, TEXTS),
    ("zero-shot-classification", "roberta_nli", {"candidate_labels": "food, film"}, [text or "x" for text in TEXTS]),
    ("token-classification", "bert_tag", {"aggregation_strategy": "max", "stride": 5}, TEXTS),
    ("question-answering", "bert_qa", {"top_k": 2}, [{"question": "Who?", "context": text or "x"} for text in TEXTS]),
    ("fill-mask", "roberta_mlm", {"tokenizer_kwargs": {"truncation": True}}, [f"<mask>{text}" for text in TEXTS]),
    ("feature-extraction", "distilbert_qa", {"truncation": True}, TEXTS),
]


@pytest.mark.parametrize("call", calls("expected.json") + calls("expected_4.json"))
def test_results_are_those_of_transformers(call: dict[str, Any], tiny: Load) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of labels and targets that there are not: tested below
        pipe = qkv.pipeline(call["task"], tiny(call["model"]), **call["init"])
        given = [] if call["input"] is None else [call["input"]]
        same(pipe(*given, **call["call"]), call["result"])


def test_no_answer_is_as_likely_as_in_its_least_likely_window(tiny: Load) -> None:
    """As in the examples of SQuAD 2; both probabilities are those of the first token, [CLS]."""
    model = tiny("bert_qa")
    given = {"question": "Who?", "context": TEXTS[2]}
    answers = qkv.pipeline(model=model)(
        given, handle_impossible_answer=True, top_k=10_000, max_seq_len=24, doc_stride=4
    )
    (row,) = model.tokenizer.encode_batch(
        ["Who?"], [TEXTS[2]], truncation="only_second", max_length=24, stride=4, return_overflowing_tokens=True
    )
    nulls = []
    for window in [row, *row.overflowing]:
        out = model([window.ids], None, [window.type_ids])
        counted = np.array([i == 0 or s == 1 for i, s in enumerate(window.sequence_ids)])
        parts = [np.exp(x[0].astype(np.float64)) * counted for x in (out.start_logits, out.end_logits)]
        nulls.append(np.prod([part[0] / part.sum() for part in parts]))
    assert len(nulls) > 2 and np.argmin(nulls) != len(nulls) - 1
    assert [a["score"] for a in answers if a["answer"] == ""] == [pytest.approx(min(nulls), rel=1e-5)]


# ---- one, several, many


@pytest.mark.parametrize(("task", "model", "options", "inputs"), MANY, ids=lambda value: str(value)[:24])
def test_results_do_not_depend_on_the_batch(
    task: str,
    model: str,
    options: dict[str, Any],
    inputs: list[Any],
    tiny: Load,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pipe = qkv.pipeline(task, tiny(model), **options)
    one_by_one = [pipe(text) for text in inputs]
    if task == "text-classification":  # with top_k given to the constructor a string's result is in a list, as there
        one_by_one = [result for (result,) in one_by_one]
    assert pipe(inputs) == one_by_one
    assert pipe(inputs, batch_size=2) == pipe(inputs, batch_size=np.int64(100)) == one_by_one
    assert qkv.pipeline(task, tiny(model), batch_size=3, **options)(inputs) == one_by_one
    assert list(pipe(iter(inputs))) == list(pipe((text for text in inputs), batch_size=4)) == one_by_one
    monkeypatch.setattr("qkv.batching.TOKENS", 20)
    monkeypatch.setattr(type(pipe), "window", 4)
    assert pipe(inputs) == one_by_one
    assert pipe([]) == [] and list(pipe(iter([]))) == []


def test_an_iterator_is_read_as_its_results_are(tiny: Load) -> None:
    read = []

    def texts() -> Iterator[str]:
        for text in TEXTS:
            read.append(text)
            yield text

    pipe = qkv.pipeline("text-classification", tiny("bert_three"), truncation=True)
    results = pipe(texts())
    assert read == []
    next(results)
    assert read == TEXTS[:1]
    next(results)
    assert read == TEXTS[:2]
    results = pipe(texts(), batch_size=3)
    read.clear()
    next(results)
    assert read == TEXTS[:3]


def test_batches_are_made_by_tokens(tiny: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = qkv.pipeline("text-classification", tiny("bert_three"), truncation=True)
    sizes: list[list[int]] = []
    forward = pipe.forward
    monkeypatch.setattr(pipe, "forward", lambda rows, o: sizes.append([len(r.ids) for r in rows]) or forward(rows, o))
    monkeypatch.setattr("qkv.batching.TOKENS", 50)
    pipe([*TEXTS, *TEXTS])
    assert [n for batch in sizes for n in batch] == sorted((n for batch in sizes for n in batch), reverse=True)
    assert len(sizes) > 2 and all(sum(batch) <= 50 for batch in sizes)
    assert all(sum(one) + two[0] > 50 for one, two in pairwise(sizes))


def test_progress_is_shown_when_asked(tiny: Load, capsys: pytest.CaptureFixture[str]) -> None:
    pipe = qkv.pipeline("feature-extraction", tiny("bert_tag"), truncation=True)
    pipe(TEXTS)
    assert capsys.readouterr().err == ""
    pipe(TEXTS, show_progress_bar=True)
    shown = capsys.readouterr().err
    assert shown.startswith("\rfeature-extraction: 1 of 6") and shown.endswith("\rfeature-extraction: 6 of 6\n")


def test_progress_of_a_long_list_is_shown_on_a_terminal(
    tiny: Load, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = qkv.pipeline("text-classification", tiny("bert_three"))
    pipe(TEXTS[:1] * 120)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    pipe(TEXTS[:1] * 20)
    pipe(TEXTS[:1] * 120, show_progress_bar=False)
    assert capsys.readouterr().err == ""
    pipe(TEXTS[:1] * 120)
    shown = capsys.readouterr().err
    assert shown.endswith("text-classification: 120 of 120\n") and shown.count("\r") < 60


def test_progress_comes_with_the_batches(
    tiny: Load, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not only once the whole list is done; results keep the order of the inputs."""
    monkeypatch.setattr("qkv.tasks.base.SELDOM", 0.0)
    pipe = qkv.pipeline("feature-extraction", tiny("bert_tag"), truncation=True)
    expected = pipe(TEXTS)
    shown: list[str] = []
    forward = pipe.forward
    monkeypatch.setattr(pipe, "forward", lambda rows, o: shown.append(capsys.readouterr().err) or forward(rows, o))
    assert pipe(TEXTS, batch_size=2, show_progress_bar=True) == expected
    assert [text.split("\r")[-1] for text in shown] == ["", *(f"feature-extraction: {n} of 6" for n in (2, 4))]


def test_inputs_that_make_many_rows_are_prepared_a_few_at_a_time(tiny: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list of texts with 50 labels each, or of books: memory holds the rows of some of them."""
    pipe = qkv.pipeline("zero-shot-classification", tiny("bert_nli"), candidate_labels=[f"{i}" for i in range(50)])
    texts = [f"{i} the film" for i in range(100)]
    expected = pipe(texts)
    waiting, most = 0, 0
    prepare, finish = pipe.prepare, pipe.finish

    def count_prepared(inputs: list[Any], o: Any) -> Any:
        nonlocal waiting, most
        waiting += len(inputs)
        most = max(most, waiting)
        return prepare(inputs, o)

    def count_finished(*arguments: Any) -> Any:
        nonlocal waiting
        waiting -= 1
        return finish(*arguments)

    monkeypatch.setattr(pipe, "prepare", count_prepared)
    monkeypatch.setattr(pipe, "finish", count_finished)
    monkeypatch.setattr("qkv.tasks.base.PREPARED", 1000)
    assert pipe(texts) == expected
    assert waiting == 0 and most == 16
    monkeypatch.setattr("qkv.tasks.base.PREPARED", 1 << 30)
    assert pipe(texts) == expected
    assert most == 100


def test_options_of_a_call_are_for_that_call(tiny: Load) -> None:
    pipe = qkv.pipeline("fill-mask", tiny("bert_mlm"), top_k=2)
    assert [len(pipe("a [MASK]", top_k=k)) for k in (4, None, 1)] == [4, 2, 1]
    assert len(pipe("a [MASK]")) == 2


def test_none_of_the_results(tiny: Load) -> None:
    """What transformers 5.24 returns."""
    pipe = qkv.pipeline("fill-mask", tiny("bert_mlm"))
    assert pipe("a [MASK]", top_k=0) == [] and pipe(["a [MASK]", "[MASK] [MASK]"], top_k=0) == [[], [[], []]]
    assert pipe("a [MASK]", top_k=0, targets=["works"]) == []
    pipe = qkv.pipeline("text-classification", tiny("bert_three"))
    assert pipe("a", top_k=0) == [] and pipe(["a", "b"], top_k=0) == [[], []]
    assert qkv.pipeline("text-classification", tiny("bert_three"), top_k=0)("a") == [[]]


# ---- which model, which task


@pytest.mark.parametrize(
    ("model", "task"),
    [
        ("bert_three", "text-classification"),
        ("electra_tag", "token-classification"),
        ("distilbert_qa", "question-answering"),
        ("roberta_mlm", "fill-mask"),
    ],
)
def test_the_class_of_a_model_tells_its_task(model: str, task: str, tiny: Load) -> None:
    assert type(qkv.pipeline(model=tiny(model))).__name__ == TASKS[task].name


def test_models_that_do_not_tell_their_task() -> None:
    with pytest.raises(ValueError, match="a BertForNextSentencePrediction does not say what for; pass a task: text-cl"):
        qkv.pipeline(model=GOLDEN / "bert_next_sentence")
    assert type(qkv.pipeline(model=qkv.load(GOLDEN / "bert_base"))).__name__ == "FeatureExtractionPipeline"


def test_a_path_is_loaded_as_asked(tmp_path: Path) -> None:
    path = folder(tmp_path / "model", "bert_three")
    pipe = qkv.pipeline("sentiment-analysis", str(path), dtype="int8")
    assert pipe.model.dtype == "int8" and pipe("good")[0]["label"] in ("bad", "neutral", "good")
    pipe.model.save(tmp_path / "model.npz")
    again = qkv.pipeline(model=tmp_path / "model.npz", dtype="auto")
    assert again(TEXTS[:2]) == pipe(TEXTS[:2])


def test_a_tokenizer_of_ones_own(tiny: Load, tmp_path: Path) -> None:
    model = tiny("bert_three")
    expected = qkv.pipeline("text-classification", model)("the film")
    path = folder(tmp_path / "model", "bert_three")
    bare = qkv.load(path)
    bare.files.pop("tokenizer.json")
    for given in (
        path,
        str(path / "tokenizer.json"),
        tokenizers.Tokenizer.from_file(str(path / "tokenizer.json")),
        model.tokenizer,
    ):
        assert qkv.pipeline("text-classification", bare, tokenizer=given)("the film") == expected
    with pytest.raises(ValueError, match=r"tokenizer\.json"):
        qkv.pipeline("text-classification", bare)("the film")


def test_token_types_go_to_models_that_have_them(tiny: Load) -> None:
    """BERT's tokenizer makes them, and DistilBERT has none."""
    own, other = tiny("distilbert_three"), tiny("bert_three").tokenizer
    pair = {"text": "the film", "text_pair": "the end"}
    result = qkv.pipeline(model=own, tokenizer=other)(pair)
    same(result, qkv.pipeline(model=own)(pair))


def test_importing_qkv_imports_no_task() -> None:
    code = (
        "import sys, qkv; assert not any(name.startswith('qkv.tasks') for name in sys.modules);"
        "qkv.pipeline; assert 'qkv.tasks' in sys.modules and 'qkv.tasks.classify' not in sys.modules;"
        "assert 'tokenizers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- other kinds of models, against their own calls


def words(path: Path, golden: str, special: dict[str, int]) -> Any:
    """A recorded model with a tokenizer whose words are the numbers of their tokens, </s> at the end."""
    size = json.loads((GOLDEN / golden / "config.json").read_text())["vocab_size"]
    names = {i: token for token, i in special.items()}
    backend = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({names.get(i, str(i)): i for i in range(size)}, unk_token="</s>")
    )
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(list(special))
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", special["</s>"])]
    )
    shutil.copytree(GOLDEN / golden, path)
    backend.save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "PreTrainedTokenizerFast", "mask_token": "<mask>"}'
    )
    return qkv.load(path)


def test_bart_labels_rows_with_different_numbers_of_eos(tmp_path: Path) -> None:
    """A text may have eos inside; the model takes only rows with equally many at once."""
    config = qkv.load(GOLDEN / "bart_classify").config
    model = words(tmp_path / "bart", "bart_classify", {"</s>": config.eos_token_id})
    texts: list[Any] = ["5 6 7", "5 </s> 6", {"text": "8", "text_pair": "9 10"}, "11"]
    ids = [[5, 6, 7], [5, config.eos_token_id, 6], [8, config.eos_token_id, 9, 10], [11]]
    found = qkv.pipeline(model=model)(texts, top_k=None, function_to_apply="none")
    for row, result in zip(ids, found, strict=True):
        logits = model([[*row, config.eos_token_id]]).logits[0]
        assert {r["label"]: r["score"] for r in result} == {f"LABEL_{i}": float(x) for i, x in enumerate(logits)}


def test_transformer_xl_takes_rows_of_any_lengths(tmp_path: Path) -> None:
    model = words(tmp_path / "xl", "transfo_xl_classify", {"</s>": 1})
    found = qkv.pipeline(model=model)(["5 6 7", "8", "9 10 11"], top_k=None, function_to_apply="none")
    for row, result in zip(([5, 6, 7, 1], [8, 1], [9, 10, 11, 1]), found, strict=True):
        logits = model([row]).logits[0]
        assert {r["label"]: r["score"] for r in result} == {f"LABEL_{i}": float(x) for i, x in enumerate(logits)}


def test_fill_mask_of_two_stacks(tmp_path: Path) -> None:
    config = qkv.load(GOLDEN / "bart_untied").config
    special = {"</s>": config.eos_token_id, "<mask>": config.vocab_size - 1}
    model = words(tmp_path / "bart", "bart_untied", special)
    ids = [5, special["<mask>"], 6, special["</s>"]]
    exact = np.exp(model([ids]).logits[0, 1].astype(np.float64))
    exact /= exact.sum()
    found = qkv.pipeline("fill-mask", model)("5 <mask> 6", top_k=4)
    assert [r["token"] for r in found] == np.argsort(-exact)[:4].tolist()
    np.testing.assert_allclose([r["score"] for r in found], np.sort(exact)[::-1][:4], rtol=1e-5)


@pytest.mark.parametrize("golden", ["bart_base", "bart_untied", "gpt2_lm", "t5_encoder", "transfo_xl_base"])
def test_features_of_other_models(golden: str, tmp_path: Path) -> None:
    model = words(tmp_path / "model", golden, {"</s>": 1})
    out = model([[5, 6, 7, 1]], output_hidden_states=True)
    states = out.decoder_hidden_states if "decoder_hidden_states" in out else out.hidden_states
    array = qkv.pipeline("feature-extraction", model)(["5 6 7", "5"], return_tensors=True)[0]
    assert array.shape == states[-1].shape and array.dtype == np.float32
    np.testing.assert_array_equal(array, states[-1])
