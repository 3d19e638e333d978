"""What pipelines and predict say about input that is wrong, and what they warn of."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import qkv
from golden_checks import GOLDEN
from task_checks import LIMIT, Load, folder

pytest.importorskip("tokenizers", reason="text needs the extra `text`")

LONG = "a b " * LIMIT
CLASSIFY, ZERO, TAG = "text-classification", "zero-shot-classification", "token-classification"
ANSWER, FILL, FEATURES = "question-answering", "fill-mask", "feature-extraction"
MODELS = {
    CLASSIFY: "bert_three",
    ZERO: "bert_nli",
    TAG: "bert_tag",
    ANSWER: "bert_qa",
    FILL: "bert_mlm",
    FEATURES: "bert_mlm",
}


# ---- the pipeline itself


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("text-clasification", r"no task 'text-clasification' \(did you mean text-classification\?\); known are text-"),
        ("audio", r"no task 'audio'; known are text-classification, .*, ner, translation_xx_to_yy"),
        ("translation_en", "no task 'translation_en'"),
    ],
)
def test_unknown_tasks(task: str, message: str, tiny: Load) -> None:
    with pytest.raises(ValueError, match=message):
        qkv.pipeline(task, tiny("bert_three"))


@pytest.mark.parametrize(
    ("task", "model", "message"),
    [
        (
            "ner",
            "bert_three",
            "token-classification needs a model whose class ends in ForTokenClassification; this one ",
        ),
        ("fill-mask", "bert_qa", "ends in ForMaskedLM or .*; this one is a BertForQuestionAnswering"),
        ("translation_en_to_de", "bert_mlm", "translation needs a model whose class ends in ForConditionalGeneration"),
    ],
)
def test_models_that_are_for_something_else(task: str, model: str, message: str, tiny: Load) -> None:
    with pytest.raises(ValueError, match=message):
        qkv.pipeline(task, tiny(model))


def test_models_that_are_none(tiny: Load, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="model is missing; pass a path or a loaded model"):
        qkv.pipeline("ner")
    with pytest.raises(TypeError, match="model must be a path or a model of qkv; got dict"):
        qkv.pipeline("ner", {})
    with pytest.raises(TypeError, match="task must be a string; got TokenModel"):
        qkv.pipeline(tiny("bert_three"))
    with pytest.raises(FileNotFoundError):
        qkv.pipeline("ner", tmp_path / "nothing")
    with pytest.raises(ValueError, match="feature-extraction needs a model that reads text; this one is a ViTModel"):
        qkv.pipeline("feature-extraction", GOLDEN / "vit_base")
    with pytest.raises(ValueError, match="the model is loaded already, as float32 on cpu"):
        qkv.pipeline("text-classification", tiny("bert_three"), dtype="int8")
    with pytest.raises(TypeError, match="tokenizer"):
        qkv.pipeline("text-classification", tiny("bert_three"), tokenizer=3)


@pytest.mark.parametrize("size", [0, -1, 1.5, True, "4"])
def test_batch_sizes(size: Any, tiny: Load) -> None:
    with pytest.raises(ValueError, match="text-classification: batch_size must be an integer of at least 1"):
        qkv.pipeline(model=tiny("bert_three"), batch_size=size)
    with pytest.raises(ValueError, match="text-classification: batch_size must be an integer of at least 1"):
        qkv.pipeline(model=tiny("bert_three"))("a", batch_size=size)


@pytest.mark.parametrize("task", MODELS)
def test_options_that_there_are_not(task: str, tiny: Load) -> None:
    with pytest.raises(ValueError, match=f"{task}: there is no option sunshine; known are "):
        qkv.pipeline(task, tiny(MODELS[task]), sunshine=1)
    with pytest.raises(ValueError, match=f"{task}: there is no option sunshine; known are "):
        qkv.pipeline(task, tiny(MODELS[task]))({"question": "a", "context": "b"}, sunshine=1)


def test_options_that_are_nearly_there(tiny: Load) -> None:
    pipe = qkv.pipeline(CLASSIFY, tiny("bert_three"))
    with pytest.raises(ValueError, match="no option topk; did you mean top_k"):
        pipe("a", topk=1)


# ---- options


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        (CLASSIFY, {"top_k": -1}, "top_k must be an integer of at least 0; got -1"),
        (CLASSIFY, {"top_k": 1.5}, "top_k must be an integer"),
        (CLASSIFY, {"function_to_apply": "tanh"}, "function_to_apply must be one of default, sigmoid, softmax, none"),
        (CLASSIFY, {"truncation": "middle"}, "truncation must be one of True, False, 'longest_first'"),
        (CLASSIFY, {"padding": "left"}, "padding must be one of"),
        (CLASSIFY, {"max_length": 0}, "max_length must be an integer of at least 1"),
        (CLASSIFY, {"add_special_tokens": "no"}, "add_special_tokens must be True or False"),
        (ZERO, {}, "candidate_labels are missing"),
        (ZERO, {"candidate_labels": []}, "candidate_labels must have at least one label"),
        (ZERO, {"candidate_labels": " , "}, "candidate_labels must have at least one label"),
        (ZERO, {"candidate_labels": ["a", 3]}, "candidate_labels must be strings"),
        (ZERO, {"candidate_labels": ["a"], "hypothesis_template": "nothing"}, "hypothesis_template needs {} where"),
        (ZERO, {"candidate_labels": ["a"], "hypothesis_template": "{} {}"}, "hypothesis_template needs {} where"),
        (ZERO, {"candidate_labels": ["a"], "hypothesis_template": 3}, "hypothesis_template needs {} where"),
        (TAG, {"aggregation_strategy": "sum"}, "aggregation_strategy must be one of none, simple, first, average, max"),
        (TAG, {"stride": 3, "aggregation_strategy": "none"}, "stride does not go with aggregation_strategy 'none'"),
        (TAG, {"stride": LIMIT, "aggregation_strategy": "simple"}, f"stride must be less than the {LIMIT} tokens"),
        (TAG, {"stride": LIMIT - 2, "aggregation_strategy": "simple"}, "stride"),
        (TAG, {"stride": -1}, "stride must be an integer of at least 0"),
        (TAG, {"stride": 1, "offset_mapping": [(0, 0)]}, "stride does not go with offset_mapping"),
        (TAG, {"ignore_labels": "O"}, "ignore_labels must be a list of labels; got a string"),
        (TAG, {"offset_mapping": [(0, 0)]}, "offset_mapping has 1 places for"),
        (ANSWER, {"top_k": 0}, "top_k must be an integer of at least 1"),
        (ANSWER, {"max_answer_len": 0}, "max_answer_len must be an integer of at least 1"),
        (ANSWER, {"max_seq_len": 20, "doc_stride": 21}, "doc_stride 21 is larger than max_seq_len 20"),
        (ANSWER, {"max_seq_len": 20, "doc_stride": 19}, "stride"),
        (ANSWER, {"padding": 3}, "padding must be one of"),
        (FILL, {"top_k": -1}, "top_k must be an integer of at least 0"),
        (FILL, {"top_k": 10_000}, "top_k 10000 is more than the 260 tokens of the model"),
        (FILL, {"targets": []}, "targets must have at least one word"),
        (FILL, {"targets": 3}, "targets must be a string or a list of strings"),
        (FILL, {"tokenizer_kwargs": {"stride": 3}}, "the tokenizer has no argument stride here"),
        (FEATURES, {"truncation": True, "tokenize_kwargs": {"truncation": True}}, "truncation is given twice"),
        (FEATURES, {"tokenize_kwargs": {"padding": "max_length"}}, "padding 'max_length' is not supported"),
    ],
)
def test_options_that_are_wrong(task: str, options: dict[str, Any], message: str, tiny: Load) -> None:
    given: Any = {"question": "a", "context": "b"} if task == ANSWER else "a [MASK]"
    with pytest.raises((ValueError, TypeError), match=re.escape(message)):
        qkv.pipeline(task, tiny(MODELS[task]), **options)(given)
    with pytest.raises((ValueError, TypeError), match=re.escape(message)):
        qkv.pipeline(task, tiny(MODELS[task]))(given, **options)


# ---- inputs


@pytest.mark.parametrize(
    "given", [None, 3, b"a", ("a", "b"), {"a": 1}, np.zeros(2)], ids=lambda given: type(given).__name__
)
@pytest.mark.parametrize("task", MODELS)
def test_inputs_of_a_wrong_type(task: str, given: Any, tiny: Load) -> None:
    pipe = qkv.pipeline(task, tiny(MODELS[task]), **({"candidate_labels": "a"} if task == ZERO else {}))
    with pytest.raises((TypeError, ValueError), match=f"{task}: "):
        pipe(given)
    with pytest.raises((TypeError, ValueError), match=f"{task}: "):
        pipe(["a [MASK]", given])


@pytest.mark.parametrize(
    ("task", "given", "message"),
    [
        (CLASSIFY, {"text_pair": "a"}, "expected the keys text and text_pair; got text_pair"),
        (CLASSIFY, {"text": "a", "pair": "b"}, "expected the keys text and text_pair; got text, pair"),
        (CLASSIFY, {"text": None}, "text must be a string; got NoneType"),
        (CLASSIFY, {"text": "a", "text_pair": 3}, "text_pair must be a string; got int"),
        (CLASSIFY, [["a", "b"]], "an input must be a string, or a dictionary with text and text_pair; got list"),
        (ZERO, "", "an input is empty"),
        (ANSWER, {"question": "a"}, "an input has no context"),
        (ANSWER, {"context": "a"}, "an input has no question"),
        (ANSWER, {"question": "a", "context": ""}, "context is empty"),
        (ANSWER, {"question": "", "context": "a"}, "question is empty"),
        (ANSWER, {"question": "a", "context": None}, "context must be a string; got NoneType"),
        (ANSWER, ["a"], "an input must be a dictionary with question and context; got str"),
        (ANSWER, {"question": LONG, "context": "a"}, "too short"),
        (
            ANSWER,
            {"question": "a " * (LIMIT - 9), "context": LONG},
            f"question-answering: a question leaves too little room for a context in windows of {LIMIT} tokens of "
            f"which doc_stride {LIMIT // 2} are shared; pass max_question_len",
        ),
        (FILL, "no mask here", "no [MASK] in the text 'no mask here'"),
        (FILL, "", "no [MASK] in the text ''"),
        (CLASSIFY, "a\ud800", "lone surrogate"),
    ],
)
def test_inputs_that_are_wrong(task: str, given: Any, message: str, tiny: Load) -> None:
    pipe = qkv.pipeline(task, tiny(MODELS[task]), **({"candidate_labels": "a"} if task == ZERO else {}))
    with pytest.raises((ValueError, TypeError), match=re.escape(message)):
        pipe(given)


def test_questions_and_contexts_by_name(tiny: Load) -> None:
    pipe = qkv.pipeline(ANSWER, tiny("bert_qa"))
    expected = pipe({"question": "Who?", "context": "the end"})
    assert pipe("Who?", "the end") == pipe(question="Who?", context="the end") == expected
    assert pipe(question=["Who?"] * 2, context="the end") == [expected] * 2
    for arguments, message in (
        ({"question": "Who?"}, "context is missing"),
        ({"context": "the end"}, "question is missing"),
        ({"question": ["Who?"], "context": ["a", "b"]}, "1 questions, but 2 contexts"),
    ):
        with pytest.raises(ValueError, match=message):
            pipe(**arguments)
    with pytest.raises(ValueError, match="but not both"):
        pipe({"question": "Who?", "context": "the end"}, question="Who?", context="a")


@pytest.mark.parametrize("task", [CLASSIFY, FILL, FEATURES])
def test_texts_that_are_too_long_are_cut_only_when_asked(task: str, tiny: Load) -> None:
    """transformers fails there inside the model."""
    pipe = qkv.pipeline(task, tiny(MODELS[task]))
    with pytest.raises(
        ValueError, match=rf"{task}: a text has \d+ tokens, and the model takes {LIMIT}; pass .*truncat"
    ):
        pipe("[MASK]" + LONG)


def test_texts_without_a_token(tiny: Load) -> None:
    pipe = qkv.pipeline(CLASSIFY, tiny("bert_three"))
    with pytest.raises(ValueError, match="the tokenizer makes no token of an empty text, and the model needs one"):
        pipe(["a", ""], add_special_tokens=False)


def test_labels_that_leave_no_room(tiny: Load) -> None:
    """The text is cut as far as it goes, and never the label."""
    pipe = qkv.pipeline(ZERO, tiny("bert_nli"))
    with pytest.raises(ValueError, match=rf"a text has \d+ tokens, and the model takes {LIMIT}, the label's sentence"):
        pipe("a", candidate_labels=[LONG])


def test_words_must_be_words(tiny: Load) -> None:
    pipe = qkv.pipeline(TAG, tiny("bert_tag"), is_split_into_words=True)
    with pytest.raises(TypeError, match="an input must be a list of words; got str"):
        pipe("Anna lives")
    with pytest.raises(TypeError, match="a word must be a string; got int"):
        pipe(["Anna", 3])
    pipe, message = (
        qkv.pipeline(TAG, tiny("bert_tag")),
        r"offset_mapping must be a list of \(start, end\) for each text",
    )
    for texts in (["a", "b"], iter(["a"]), []):
        with pytest.raises(ValueError, match=message):
            pipe(texts, offset_mapping=[(0, 0)] * 3)


def test_places_of_ones_own(tiny: Load) -> None:
    pipe = qkv.pipeline(TAG, tiny("bert_tag"), ignore_labels=[])
    own = [(0, 0), (0, 1), (0, 0)]
    expected = pipe("a", offset_mapping=own)
    assert [token["start"] for token in expected] == [0]
    shifted = [(0, 0), (5, 6), (0, 0)]
    assert pipe(["a", "a"], offset_mapping=[own, shifted]) == [
        expected,
        [{**expected[0], "start": 5, "end": 6}],
    ]
    words = qkv.pipeline(TAG, tiny("bert_tag"), ignore_labels=[], is_split_into_words=True)
    assert words(["a"], offset_mapping=own) == [expected]


# ---- models and tokenizers that do not say enough, or go together


def test_a_vocabulary_that_does_not_match(tmp_path: Path, tiny: Load) -> None:
    other = tiny("roberta_three").tokenizer
    with pytest.raises(ValueError, match=r"the tokenizer gives token \d+, and the model has 260 tokens"):
        qkv.pipeline(model=tiny("bert_three"), tokenizer=other)("Anna lives in Zürich é 🙂")


def test_a_tokenizer_without_a_mask(tiny: Load, tmp_path: Path) -> None:
    path = folder(tmp_path / "model", "bert_mlm")
    content = json.loads((path / "tokenizer.json").read_text())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] != "[MASK]"]
    del content["model"]["vocab"]["[MASK]"]
    (path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="fill-mask: the tokenizer has no mask token"):
        qkv.pipeline("fill-mask", path)


@pytest.mark.parametrize(
    "changed",
    [{"id2label": {"0": "a", "1": "b", "3": "c"}}, {"id2label": {"0": "a", "1": "b", "2": None}}],
)
def test_labels_that_are_not_numbered(changed: dict[str, Any], tiny: Load) -> None:
    with pytest.raises(ValueError, match="id2label must be an object with a string for each of 0 to 2"):
        qkv.pipeline(CLASSIFY, tiny("bert_three", changed))


def test_labels_without_names(tiny: Load) -> None:
    model = tiny("bert_three", {"id2label": None, "label2id": None, "num_labels": 3})
    (result,) = (qkv.pipeline(model=model)("a", top_k=None),)
    assert sorted(label["label"] for label in result) == ["LABEL_0", "LABEL_1", "LABEL_2"]


def test_zero_shot_without_an_entailment_label_warns(tiny: Load) -> None:
    with pytest.warns(UserWarning, match="no label of the model begins with 'entail'; the last one is taken"):
        qkv.pipeline(ZERO, tiny("bert_three"))
    renamed = tiny("bert_three", {"label2id": {"good": 0, "bad": 1, "Entailing": 2}})
    assert qkv.pipeline(ZERO, renamed).entailment == 2
    own = tiny("bert_three", {"label2id": None, "id2label": {"0": "ENTAILMENT", "1": "b", "2": "c"}})
    assert qkv.pipeline(ZERO, own).entailment == 0


def test_targets_that_are_no_tokens(tiny: Load) -> None:
    pipe = qkv.pipeline(FILL, tiny("bert_mlm"))
    with pytest.warns(UserWarning, match="the target 'unbelievable' is no token; 'un.*' is taken"):
        pipe("a [MASK]", targets="unbelievable")
    with (
        pytest.warns(UserWarning, match="the tokenizer makes nothing of the target ' '"),
        pytest.raises(ValueError, match="none of the targets is a token"),
    ):
        pipe("a [MASK]", targets=[" "])


def test_the_question_is_cut_where_asked(tiny: Load) -> None:
    pipe = qkv.pipeline(ANSWER, tiny("bert_qa"))
    short, long = (
        {"question": "the end of", "context": "the film"},
        {"question": "the end of it", "context": "the film"},
    )
    cut = len(pipe.tokenizer.rows(["the end of"])[0]) - 2
    assert pipe(long, max_question_len=cut) == pipe(short) != pipe(long)
    assert pipe({"question": LONG, "context": "the film"}, max_question_len=5)["answer"]


# ---- predict


@pytest.mark.parametrize("given", ["a", None, 3, {"a": "b"}, [["a"]], [["a", "b", "c"]], [("a", 3)], [["a", "b"], "c"]])
def test_pairs_that_are_none(given: Any, tiny: Load) -> None:
    with pytest.raises(TypeError, match="predict: expected a pair of strings, or a sequence of such pairs"):
        tiny("bert_one").predict(given)


def test_predict_does_not_depend_on_the_batch(tiny: Load) -> None:
    pairs = [("a", "b"), ("the film", LONG), ("", ""), ("é", "the end")]
    for name in ("bert_one", "bert_three"):
        model = tiny(name)
        scores = model.predict(pairs)
        assert scores.dtype == np.float32
        for size in (1, 3, np.int64(64)):
            np.testing.assert_array_equal(model.predict(np.array(pairs), batch_size=size), scores)
        np.testing.assert_array_equal([model.predict(pair) for pair in pairs], scores)
    assert tiny("bert_one").predict([]).shape == (0,) and tiny("bert_three").predict([]).shape == (0, 3)


def test_predict_with_a_function_of_ones_own(tiny: Load, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny("bert_one")
    logits = model.predict([("a", "b")] * 2, activation_fn=lambda x: x, show_progress_bar=True)
    assert capsys.readouterr().err == "\rscored 2 of 2\n"
    np.testing.assert_allclose(model.predict([("a", "b")] * 2), 1 / (1 + np.exp(-logits)), rtol=1e-6)
    np.testing.assert_array_equal(model.predict(("a", "b"), activation_fn=np.negative), -logits[0])
    with pytest.raises(ValueError, match=r"activation_fn made \(\) of \(1, 1\)"):
        model.predict(("a", "b"), activation_fn=np.sum)
    with pytest.raises(TypeError, match="activation_fn must be a function of an array; got str"):
        model.predict(("a", "b"), activation_fn="sigmoid")
    with pytest.raises(ValueError, match="batch_size must be an integer of at least 1; got 0"):
        model.predict(("a", "b"), batch_size=0)


def test_predict_of_other_models(tiny: Load, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="predict: a BertForMaskedLM has no labels for texts"):
        tiny("bert_mlm").predict(("a", "b"))
    with pytest.raises(ValueError, match="rank: it takes a model with one label; this one has 3"):
        tiny("bert_three").rank("a", ["b"])
    with pytest.raises(TypeError, match="documents must be a sequence of strings; got a string"):
        tiny("bert_one").rank("a", "b")
    with pytest.raises(ValueError, match="rank: top_k must be an integer of at least 1; got 0"):
        tiny("bert_one").rank("a", ["b"], 0)
    evil = tiny("bert_one", {"sentence_transformers": {"activation_fn": "os.system"}})
    with pytest.raises(ValueError, match=r"the checkpoint asks for the activation 'os\.system', and known are"):
        evil.predict(("a", "b"))
    assert evil.predict(("a", "b"), activation_fn=lambda x: x).shape == ()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("modules.json", [{"type": "x.Transformer"}, {"type": "x.Dense"}], "module 'x.Dense' is not supported"),
        ("config_sentence_transformers.json", {"default_prompt_name": "q"}, "default_prompt_name 'q' is not supported"),
    ],
)
def test_predict_with_modules_that_there_are_not(name: str, content: Any, message: str, tmp_path: Path) -> None:
    path = folder(tmp_path / "model", "bert_one")
    (path / "modules.json").write_text('[{"type": "sentence_transformers.base.modules.Transformer", "path": ""}]')
    (path / name).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        qkv.load(path).predict(("a", "b"))


def test_predict_reads_the_newer_settings(tmp_path: Path, tiny: Load) -> None:
    path = folder(tmp_path / "model", "bert_one")
    (path / "modules.json").write_text('[{"type": "sentence_transformers.base.modules.Transformer", "path": ""}]')
    settings = {"activation_fn": "torch.nn.modules.linear.Identity", "prompts": {}, "default_prompt_name": None}
    (path / "config_sentence_transformers.json").write_text(json.dumps(settings))
    expected = tiny("bert_one").predict([("a", "b")], activation_fn=lambda x: x)
    np.testing.assert_array_equal(qkv.load(path).predict([("a", "b")]), expected)
