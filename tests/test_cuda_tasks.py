"""What stands on models, on a GPU or its emulator, against the CPU: pipelines, encode, scores, the command line; and
models that find too little memory. Run by test_cuda_suite.py; by itself where QKV_CUDA says which."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import qkv
import task_checks
import test_encode
import test_images
import test_tasks_generate
from emulated import configured
from golden_checks import GOLDEN
from qkv import cli, cuda

pytestmark = pytest.mark.skipif(not cuda.is_available(), reason=f"no GPU: {cuda.why_not()}")

TEXTS = ["I love the film", "Anna lives in Berlin and works for a small bank. " * 2]
QUESTIONS = [{"question": "Who?", "context": text} for text in TEXTS]
# as in test_tasks.py; of test_tasks_generate.py's
PIPELINES: list[tuple[str, str, dict[str, Any], Any]] = [
    ("text-classification", "bert_three", {"top_k": None}, TEXTS),
    ("zero-shot-classification", "roberta_nli", {"candidate_labels": "food, film"}, TEXTS[:1]),
    ("token-classification", "bert_tag", {"aggregation_strategy": "max"}, TEXTS),
    ("question-answering", "bert_qa", {"top_k": 2}, QUESTIONS),
    ("fill-mask", "roberta_mlm", {}, [f"<mask>{text}" for text in TEXTS[:1]]),
    ("feature-extraction", "distilbert_qa", {}, TEXTS),
]
GENERATED = {"gpt2": "text-generation", "t5": "text2text-generation", "marian": "translation", "bart": "summarization"}


@pytest.fixture(autouse=True)
def _unchecked() -> Iterator[None]:
    """The kernels are those of other tests."""
    with configured("check=0"):
        yield


@pytest.mark.parametrize("task, model, options, inputs", PIPELINES, ids=[case[0] for case in PIPELINES])
def test_pipelines(task: str, model: str, options: dict[str, Any], inputs: Any, tmp_path: Path) -> None:
    path = task_checks.folder(tmp_path / model, model)
    here, there = (qkv.pipeline(task, str(path), device=device) for device in ("cpu", "cuda"))
    assert there.model.device == "cuda:0"
    task_checks.same(there(inputs, **options), here(inputs, **options))


@pytest.mark.parametrize("name", GENERATED)
def test_pipelines_that_generate(name: str, tmp_path: Path) -> None:
    path = test_tasks_generate.folder(tmp_path / name, name)
    here, there = (qkv.pipeline(GENERATED[name], str(path), device=device) for device in ("cpu", "cuda"))
    options = {"max_new_tokens": 5, "do_sample": False}
    assert there("the cat sat", **options) == here("the cat sat", **options)


def test_pipelines_of_images(tmp_path: Path) -> None:
    name = next(iter(test_images.RECORD["pipelines"]))
    settings = test_images.SETTINGS[test_images.RECORD["pipelines"][name][0][0]]
    path = str(test_images.checkpoint(tmp_path, name, settings))
    here, there = (qkv.pipeline("image-classification", path, device=device) for device in ("cpu", 0))
    image = np.random.default_rng(1).integers(0, 256, (40, 30, 3), np.uint8)
    task_checks.same(there(image), here(image))


@pytest.mark.parametrize("case", ["plain", "dense", "pool_weightedmean"])
def test_embeddings(case: str, tmp_path: Path) -> None:
    path = test_encode.folder(tmp_path, case)
    here, there = (qkv.load(path, device=device).encode(test_encode.TEXTS) for device in ("cpu", "cuda"))
    assert isinstance(there, np.ndarray) and there.dtype == np.float32
    np.testing.assert_allclose(there, here, rtol=0, atol=1e-5 * np.abs(here).max())


def test_predict_and_score(tmp_path: Path) -> None:
    path = task_checks.folder(tmp_path / "bert_one", "bert_one")
    pairs = [("a query", text) for text in TEXTS]
    here, there = (qkv.load(path, device=device).predict(pairs) for device in ("cpu", "cuda"))
    np.testing.assert_allclose(there, here, rtol=0, atol=1e-5)
    ids = [[5, 6, 7, 8], [9, 10, 11, 12]]
    here, there = (qkv.load(GOLDEN / "gpt2_lm", device=device).score(ids).scores for device in ("cpu", "cuda"))
    for ours, theirs in zip(there, here, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def printed(*arguments: str) -> str:
        assert cli.main(arguments) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    assert f"gpu: {cuda.device_name(0)}, compute capability " in printed("info")
    assert printed("translate", "dates", "3 May 2031", "--device", "cuda") == "2031-05-03\n"
    assert printed("translate", "dates", "3 May 2031", "--device", "cuda:0", "--dtype", "bfloat16") == "2031-05-03\n"
    path, texts = str(test_encode.folder(tmp_path, "plain")), ["hello world", "the cat"]
    here, there = (printed("embed", path, *texts, "--device", device, "--similarity") for device in ("cpu", "cuda"))
    assert here == there
    assert cli.main(["embed", path, *texts, "--device", "cuda:99"]) == 2
    assert "device 'cuda:99' is not available; there " in capsys.readouterr().err


@pytest.mark.skipif(not cuda.is_emulated(), reason="QKV_CUDA=emulated runs this")
def test_too_little_memory_leaves_the_model_usable() -> None:
    """Wherever it is that it does not suffice: nothing is left behind, and what comes next is right."""
    here, there = qkv.load(GOLDEN / "t5_lm"), qkv.load(GOLDEN / "t5_lm", device="cuda")
    ids = [[5, 6, 7, 8], [9, 10, 11, 12]]
    common = {"max_new_tokens": 3, "eos_token_id": None, "pad_token_id": 0, "decoder_start_token_id": 2}
    expected = here.generate(ids, **common)
    np.testing.assert_array_equal(there.generate(ids, **common), expected)
    asked = set()
    for room in range(512, 36 << 10, 5 << 10):
        gc.collect()
        cuda.synchronize()
        cuda.trim()
        before = cuda.memory_info()
        taken = before["total_bytes"] - before["free_bytes"]
        with configured(f"check=0,memory={taken + room}"):
            try:
                np.testing.assert_array_equal(there.generate(ids, **common), expected)
            except qkv.CudaError as error:
                assert str(error).startswith("out of GPU memory: ") and " are free, " in str(error)
                asked.add(str(error).split(" asked for by ")[1].split(";")[0])
        gc.collect()
        assert cuda.memory_info()["used_bytes"] == before["used_bytes"]
    assert len(asked) > 1
    np.testing.assert_array_equal(there.generate(ids, **common), expected)
