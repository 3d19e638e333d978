"""The command line, in this process and as a process."""

from __future__ import annotations

import importlib.machinery
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import qkv
import task_checks
import test_images
import test_tasks_generate
from qkv import cli, cli_inputs, cli_tasks, demo
from qkv.bench import run

GOLDEN = Path(__file__).parent / "golden" / "bert_base"


def execute(*arguments: str, text: str | bytes = b"") -> subprocess.CompletedProcess[bytes]:
    data = text.encode() if isinstance(text, str) else text
    return subprocess.run([sys.executable, "-m", "qkv", *arguments], input=data, capture_output=True, timeout=300)


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny encoder with a tokenizer that knows whole words."""
    tokenizers = pytest.importorskip("tokenizers")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "one", "two", "three", "-x"]
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    special = [("[CLS]", 2), ("[SEP]", 3)]
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=special)
    config = json.loads((GOLDEN / "config.json").read_text())
    weights = qkv.load(GOLDEN)
    path = tmp_path_factory.mktemp("cli") / "tiny.npz"
    weights.save(path)
    with np.load(path) as saved:
        entries = {name: saved[name] for name in saved.files}
    entries["tokenizer.json"] = np.frombuffer(tokenizer.to_str().encode(), np.uint8)
    np.savez(path, **entries)
    assert config["hidden_size"] == 32
    return str(path)


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info"]) == 0
    shown = capsys.readouterr().out
    for part in (
        f"qkv: {qkv.__version__}",
        f"isas: {', '.join(qkv.isas())}",
        "extensions: _cpu",
        "threads: ",
        "caches: ",
        "gpu: ",
    ):
        assert part in shown
    assert cli.main(["info", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["numpy"] == np.__version__
    assert isinstance(found["peers"], dict)


def test_info_does_not_import_peers() -> None:
    code = (
        "import sys; from qkv import cli; cli.main(['info']); "
        "print([m for m in ('torch', 'onnxruntime', 'transformers', 'tokenizers', 'safetensors') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_version_and_python_m() -> None:
    done = execute("--version")
    assert (done.returncode, done.stdout.decode().strip()) == (0, f"qkv {qkv.__version__}")


def test_embed_prints_json_lines(model_path: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["embed", model_path, "one two", "three"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["text"] for row in rows] == ["one two", "three"]
    expected = qkv.load(model_path).encode(["one two", "three"])
    np.testing.assert_allclose([row["embedding"] for row in rows], expected, atol=1e-6)


@pytest.mark.parametrize(
    "arguments", [["--similarity", "one", "two"], ["one", "--similarity", "two"], ["--similarity", "--", "one", "-x"]]
)
def test_similarity(model_path: str, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["embed", model_path, *arguments]) == 0
    matrix = np.array([[float(x) for x in line.split()] for line in capsys.readouterr().out.splitlines()])
    assert matrix.shape == (2, 2)
    np.testing.assert_allclose(np.diag(matrix), 1, atol=1e-4)
    np.testing.assert_allclose(matrix, matrix.T)
    texts = [item for item in arguments if not item.startswith("--")]
    a, b = qkv.load(model_path).encode(texts).astype(np.float64)
    cosine = a @ b / np.sqrt((a @ a) * (b @ b))
    assert abs(cosine) < 0.999  # the texts are unlike
    np.testing.assert_allclose(matrix[0, 1], cosine, rtol=0, atol=6e-5)  # four places are printed


def test_embed_writes_npy(model_path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.npy"
    assert cli.main(["embed", model_path, "one", "--normalize", "--output", str(path)]) == 0
    assert capsys.readouterr().out == ""
    x = np.load(path)
    assert x.shape == (1, 32)
    assert np.linalg.norm(x) == pytest.approx(1)


class Input(io.TextIOWrapper):
    def __init__(self, content: bytes):
        super().__init__(io.BytesIO(content))


@pytest.mark.parametrize("given", [[], ["-"]])
@pytest.mark.parametrize(
    ("content", "texts"),
    [
        (b"one\ntwo\n", ["one", "two"]),
        (b"one\r\n\ntwo", ["one", "", "two"]),
        ("\u2028日本\n".encode(), ["\u2028日本"]),
        (b"", []),
    ],
)
def test_lines_of_standard_input(
    model_path: str,
    given: list[str],
    content: bytes,
    texts: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "stdin", Input(content))
    assert cli.main(["embed", model_path, *given]) == 0
    assert [json.loads(line)["text"] for line in capsys.readouterr().out.splitlines()] == texts


def test_standard_input_among_texts(
    model_path: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", Input(b"two\nthree\n"))
    assert cli.main(["embed", model_path, "one", "-", "one two"]) == 0
    shown = [json.loads(line)["text"] for line in capsys.readouterr().out.splitlines()]
    assert shown == ["one", "two", "three", "one two"]


@pytest.mark.parametrize(
    ("arguments", "content", "message"),
    [
        (["embed", "/no/such/model", "x"], b"", "/no/such/model"),
        (["embed", str(GOLDEN), "x"], b"", "tokenizer"),
        (["embed", "MODEL"], b"\xff", "line 1 of standard input: not UTF-8 text at byte 0"),
        (["embed", "MODEL", "x", "--output", "x.txt"], b"", "must end in .npy"),
        (["embed", "MODEL", "x", "--output", "/no/such/folder/x.npy"], b"", "No such file or directory"),
        (["bench", "sort"], b"", "no 'sort'; there are limits, gemm"),
    ],
)
def test_errors_are_one_sentence(model_path: str, arguments: list[str], content: bytes, message: str) -> None:
    done = execute(*(model_path if a == "MODEL" else a for a in arguments), text=content)
    shown = done.stderr.decode()
    assert done.returncode == 2
    assert message in shown
    assert shown.startswith("qkv: ")
    assert len(shown.splitlines()) == 1
    assert done.stdout == b""


@pytest.mark.parametrize(
    "arguments",
    [[], ["nonsense"], ["info", "more"], ["embed"], ["embed", "m", "--batch-size", "0"], ["bench", "--rounds", "-1"],
     ["bench", "--seconds", "nan"], ["embed", "m", "--wrong"]],
)  # fmt: skip
def test_usage_errors(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2
    assert "usage: qkv" in capsys.readouterr().err


def test_a_reader_that_leaves_early(model_path: str) -> None:
    command = [sys.executable, "-m", "qkv", "embed", model_path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        process.stdout.close()
        process.stdin.write(b"one two\n" * 2000)
        process.stdin.close()
        assert process.stderr.read() == b""
    assert process.returncode == cli.BROKEN_PIPE


def test_bench(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, small_cases: Any
) -> None:
    path = tmp_path / "result.json"
    options = ["--rounds", "1", "--seconds", "0.001", "--threads", "1", "--json", str(path)]
    assert cli.main(["bench", "softmax", *options, "gemm"]) == 0
    shown = capsys.readouterr().out
    assert "limits of this machine, 1 threads" in shown
    assert "tiny" in shown
    content = json.loads(path.read_text())
    assert [result["suite"] for result in content["results"]] == ["softmax", "gemm"]
    for result in content["results"]:
        assert result["errors"] == {}
        assert result["ratio_to_qkv"]["numpy"]["median"] > 0


@pytest.fixture
def small_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    from qkv.bench import Case, measure_limits, suites

    small = {
        "softmax": replace(
            suites.SUITES["softmax"], cases=lambda: [Case("tiny", {"rows": 2, "width": 8}, nbytes=128.0)]
        ),
        "gemm": replace(suites.SUITES["gemm"], cases=lambda: [Case("tiny", {"m": 2, "k": 3, "n": 4}, flops=48.0)]),
    }
    monkeypatch.setattr(run, "available", lambda: small)
    monkeypatch.setattr(run, "measure_limits", lambda: measure_limits(repeats=1, buffer_bytes=1 << 20))


# ---- tasks: what they print is what transformers returns, from the records of other tests

TASKS = [
    case for name in ("expected", "expected_4") for case in json.loads((task_checks.TASKS / f"{name}.json").read_text())
]
GENERATED = test_tasks_generate.CASES
LIKE = {"do_sample": False, "max_new_tokens": 6}
FEW = ["--greedy", "--max-new-tokens", "3"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The folder of a checkpoint by name."""
    root = tmp_path_factory.mktemp("models")

    def path(name: str) -> str:
        if not (root / name).exists():
            if name in test_tasks_generate.MODELS:
                test_tasks_generate.folder(root / name, name)
            elif name in test_images.RECORD["pipelines"]:
                test_images.checkpoint(root, name, test_images.SETTINGS[test_images.RECORD["pipelines"][name][0][0]])
            else:
                task_checks.folder(root / name, name)
        return str(root / name)

    return path


def recorded(model: str, task: str, call: dict[str, Any], given: Any = str) -> tuple[Any, Any]:
    """Input and result of a recorded call; given: the input, or its type."""
    for case in TASKS:
        if (case["model"], case["task"], case["call"], case["init"]) == (model, task, call, {}) and (
            case["input"] == given or (isinstance(given, type) and isinstance(case["input"], given))
        ):
            return case["input"], case["result"]
    raise AssertionError((model, task, call))


def generated(model: str, task: str, given: dict[str, Any], inputs: Any) -> Any:
    for case in GENERATED:
        if (case["model"], case["task"], case["made"], case["given"], case["inputs"]) == (
            model,
            task,
            {},
            given,
            inputs,
        ):
            return case["outputs"]
    raise AssertionError((model, task, given))


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """What a command prints: with --json, values."""

    def call(*arguments: str, text: str | bytes = b"") -> Any:
        data = text.encode() if isinstance(text, str) else text
        monkeypatch.setattr(sys, "stdin", Input(data))
        assert cli.main(arguments) == 0, capsys.readouterr().err
        out = capsys.readouterr().out
        return [json.loads(line) for line in out.splitlines()] if "--json" in arguments else out

    return call


def test_classify(model: Any, printed: Any) -> None:
    text, (best,) = recorded("bert_three", "text-classification", {})
    path = model("bert_three")
    task_checks.same(printed("classify", path, text, "--json"), [best])
    assert printed("classify", path, text) == f"{best['score']:.4f}\t{best['label']}\t{text}\n"
    assert (
        printed("classify", path, text=f"{text}\n{text}\r\n") == f"{best['score']:.4f}\t{best['label']}\t{text}\n" * 2
    )
    three = printed("classify", path, text, "--top-k", "3", "--json")[0]
    assert [len(three), three[0]["label"]] == [3, best["label"]]
    pair = {"text": text, "text_pair": "the service is friendly"}
    (found,) = printed("classify", path, "--pairs", "--json", text=json.dumps(pair))
    assert found == qkv.pipeline("text-classification", path)(pair)


def test_classify_by_labels_of_one_s_own(model: Any, printed: Any) -> None:
    labels = ["science", "food", "sports and politics"]
    text, result = recorded("bert_nli", "zero-shot-classification", {"candidate_labels": labels})
    path, given = model("bert_nli"), ", ".join(labels)
    task_checks.same(printed("classify", path, text, "--labels", given, "--json"), [result])
    lines = printed("classify", path, text, "--labels", given, "--top-k", "2").splitlines()
    assert lines == [f"{s:.4f}\t{n}\t{text}" for n, s in zip(result["labels"][:2], result["scores"], strict=False)]
    (several,) = printed(
        "classify", path, text, "--labels", given, "--multi-label", "--template", "About {}.", "--json"
    )
    options = {"candidate_labels": labels, "multi_label": True, "hypothesis_template": "About {}."}
    assert several == qkv.pipeline("zero-shot-classification", path)(text, **options)


def test_tag(model: Any, printed: Any) -> None:
    text, result = recorded("bert_tag", "token-classification", {})
    path = model("bert_tag")
    task_checks.same(printed("tag", path, text, "--json"), [result])
    lines = printed("tag", path, text, text).split("\n")
    entity = result[0]
    assert (
        lines[0] == f"{entity['score']:.4f}\t{entity['entity']}\t{entity['start']}\t{entity['end']}\t{entity['word']}"
    )
    assert lines[len(result)] == "" and lines[len(result) + 1 :] == [*lines[: len(result)], "", ""]
    grouped = qkv.pipeline("token-classification", path)(text, aggregation_strategy="simple")
    assert printed("tag", path, text, "--aggregation", "simple").count("\n") == len(grouped) + 1


def test_answer(model: Any, printed: Any, tmp_path: Path) -> None:
    given, result = recorded("bert_qa", "question-answering", {}, dict)
    path, context = model("bert_qa"), tmp_path / "context.txt"
    context.write_text(given["context"])
    shown = f"{result['score']:.4f}\t{result['answer']}\n"
    for arguments, text in (
        ([], json.dumps(given)),
        (["--question", given["question"], "--context", str(context)], ""),
        (["--question", given["question"]], given["context"]),
        (["--context", str(context), given["question"]], ""),
    ):
        task_checks.same(printed("answer", path, *arguments, "--json", text=text), [result])
        assert printed("answer", path, *arguments, text=text) == shown
    best = printed("answer", path, "--top-k", "2", "--no-answer", "--json", json.dumps(given))[0]
    assert best == qkv.pipeline("question-answering", path)(given, top_k=2, handle_impossible_answer=True)


def test_fill(model: Any, printed: Any) -> None:
    text, result = recorded("bert_mlm", "fill-mask", {})
    path = model("bert_mlm")
    task_checks.same(printed("fill", path, text, "--json"), [result])
    lines = printed("fill", path, text, "--top-k", "2").splitlines()
    assert lines == [f"{r['score']:.4f}\t{r['token_str']}\t{r['sequence']}" for r in result[:2]]
    several = printed("fill", path, "[MASK] is [MASK].", "--targets", "works", "--json")[0]
    assert several == qkv.pipeline("fill-mask", path)("[MASK] is [MASK].", targets=["works"])
    assert printed("fill", path, "[MASK] is [MASK].", "--targets", "works").count("\tworks\t") == 2


def test_generate(model: Any, printed: Any) -> None:
    prompts, path = ["ab cd", "a", "é, ab ab. cdefgh", " b"], model("llama")
    greedy = ["--greedy", "--max-new-tokens", "6"]
    expected = generated("llama", "text-generation", LIKE, prompts)
    assert printed("generate", path, *prompts, *greedy, "--json") == expected
    assert printed("generate", path, *greedy, "--json", text="\n".join(prompts)) == expected
    texts = [records[0]["generated_text"] for records in expected]
    assert printed("generate", path, *prompts, *greedy) == "".join(f"{text}\n" for text in texts)
    assert printed("generate", path, *prompts, *greedy, "--stream") == "".join(f"{text}\n" for text in texts)
    new = "".join(f"{text.removeprefix(prompt)}\n" for text, prompt in zip(texts, prompts, strict=True))
    assert printed("generate", path, *prompts, *greedy, "--only-new") == new
    assert printed("generate", path, *prompts, *greedy, "--only-new", "--stream") == new
    beams = generated("llama", "text-generation", LIKE | {"num_beams": 3, "num_return_sequences": 2}, prompts)
    options = [*greedy, "--num-beams", "3", "--num-return-sequences", "2"]
    assert printed("generate", path, *prompts, *options, "--json") == beams
    stopped = generated("llama", "text-generation", LIKE | {"stop_sequence": ["cd", "."]}, prompts)
    assert printed("generate", path, *prompts, *greedy, "--stop", "cd", "--stop", ".", "--json") == stopped
    one = generated("llama", "text-generation", {"top_k": 1, "max_new_tokens": 5}, prompts)
    assert printed("generate", path, *prompts, "--top-k", "1", "--max-new-tokens", "5", "--json") == one


def test_generate_with_a_seed(model: Any, printed: Any) -> None:
    """The same for lines that come at once or one by one."""
    path, options = model("llama"), ["--seed", "3", "--temperature", "2", "--max-new-tokens", "8", "--json"]
    first = printed("generate", path, "ab", "ab", "ab", *options)
    assert first == printed("generate", path, "ab", "-", "ab", *options, text="ab\n")
    assert first == qkv.pipeline("text-generation", path)(["ab"] * 3, seed=3, temperature=2.0, max_new_tokens=8)
    assert len({json.dumps(records) for records in first}) > 1
    for option, value in (("top_p", 0.6), ("min_p", 0.3), ("typical_p", 0.5)):
        given = f"--{option.replace('_', '-')}"
        filtered = printed("generate", path, "ab", "ab", "ab", *options, given, str(value))
        assert filtered == qkv.pipeline("text-generation", path)(
            ["ab"] * 3, seed=3, temperature=2.0, max_new_tokens=8, **{option: value}
        )
        assert filtered != first


def test_chat(model: Any, printed: Any) -> None:
    path, greedy = model("llama"), ["--greedy", "--max-new-tokens", "6"]
    chat = [{"role": "user", "content": "ab cd"}]
    expected = generated("llama", "text-generation", LIKE, chat)
    answer = expected[0]["generated_text"][-1]["content"]
    for given in ("ab cd", json.dumps(chat)):
        assert printed("generate", path, "--chat", *greedy, "--json", given) == [expected]
        assert printed("generate", path, "--chat", *greedy, given) == f"{answer}\n"
        assert printed("generate", path, "--chat", *greedy, "--stream", given) == f"{answer}\n"
    system = [{"role": "system", "content": "é"}, *chat]
    with_system = qkv.pipeline("text-generation", path)(system, **LIKE)
    assert printed("generate", path, "--chat", "--system", "é", *greedy, "--json", "ab cd") == [with_system]


def test_translate_and_summarize(model: Any, printed: Any) -> None:
    texts = ["ab cd", "a", "ef gh, ab", ""]
    path = model("t5")
    german = generated("t5", "translation_en_to_de", {}, texts)
    arguments = ["translate", path, "--source-language", "en", "--target-language", "de"]
    assert printed(*arguments, *texts, "--json") == [[record] for record in german]
    assert printed(*arguments, text="\n".join(texts) + "\n") == "".join(r["translation_text"] + "\n" for r in german)
    short = generated("marian", "translation", {"max_new_tokens": 5}, texts)
    assert printed("translate", model("marian"), *texts, "--max-new-tokens", "5", "--json") == [[r] for r in short]
    summary = generated("t5", "summarization", {}, texts)
    assert printed("summarize", path, *texts) == "".join(record["summary_text"] + "\n" for record in summary)


def test_image(model: Any, printed: Any, tmp_path: Path) -> None:
    for name, calls in test_images.RECORD["pipelines"].items():
        for _, image, options, expected in calls:
            if options.get("function_to_apply"):
                continue
            path = tmp_path / f"{image}.png"
            path.write_bytes(test_images.data(image))
            more = ["--top-k", str(options["top_k"])] if "top_k" in options else []
            task_checks.same(printed("image", model(name), str(path), *more, "--json"), [expected])
            lines = "".join(f"{label['score']:.4f}\t{label['label']}\t{path}\n" for label in expected)
            assert printed("image", model(name), *more, text=f"{path}\n") == lines


def test_lines_of_a_file(model: Any, printed: Any, tmp_path: Path) -> None:
    path, file = model("bert_three"), tmp_path / "lines.txt"
    file.write_bytes("eins\r\nzwei é\n\ndrei".encode())
    texts = [line.split("\t")[2] for line in printed("classify", path, "--file", str(file)).splitlines()]
    assert texts == ["eins", "zwei é", "", "drei"]
    texts = [line.split("\t")[2] for line in printed("classify", path, "first", "--file", str(file)).splitlines()]
    assert texts == ["first", "eins", "zwei é", "", "drei"]
    shown = [json.loads(line)["text"] for line in printed("embed", model("bert_mlm"), "--file", str(file)).splitlines()]
    assert shown == ["eins", "zwei é", "", "drei"]


def test_a_long_input_is_not_read_whole(model: Any) -> None:
    """The first results come while the rest is not there yet, and the end of a line in pieces."""
    command = [sys.executable, "-m", "qkv", "classify", model("bert_three"), "--threads", "1", "--dtype", "bfloat16"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        for line in ("eins", "zwei", "é" * 20):
            data = f"{line}\n".encode()
            process.stdin.write(data[:5])
            process.stdin.flush()
            process.stdin.write(data[5:])
            process.stdin.flush()
            assert process.stdout.readline().decode().split("\t")[2] == f"{line}\n"
        lines = [f"{i}\n" for i in range(5000)]
        process.stdin.write("".join(lines).encode())
        process.stdin.close()
        assert [line.decode().split("\t")[2] for line in process.stdout] == lines
    assert process.returncode == 0


def test_a_line_that_comes_in_many_pieces(model: Any, printed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the pieces end within characters and line ends."""
    data = "eins é\r\nzwei\n\ndrei 日本".encode()
    for size in range(1, len(data) + 2):
        monkeypatch.setattr(cli_inputs, "READ", size)
        shown = printed("classify", model("bert_three"), text=data).splitlines()
        assert [line.split("\t")[2] for line in shown] == ["eins é", "zwei", "", "drei 日本"]


def test_a_long_line_is_not_copied_again_and_again() -> None:
    """Each byte is looked at once, whatever the number of pieces."""
    pieces = 1000

    class Pieces:
        left = pieces

        def read1(self, size: int) -> bytes:
            self.left -= 1
            return b"a" * size if self.left >= 0 else b""

    before = time.process_time()
    b"".join([b"a" * cli_inputs.READ] * pieces)
    once = time.process_time() - before
    before = time.process_time()
    assert [len(one.text) for part in cli_inputs.lines(Pieces(), "x") for one in part] == [pieces * cli_inputs.READ]
    assert time.process_time() - before < 100 * once + 1  # where all that there is is copied for each piece: minutes


def test_truncate(model: Any, printed: Any) -> None:
    long = "the film " * 60
    path = model("bert_three")
    (found,) = printed("classify", path, long, "--truncate", "--json")
    assert [found] == qkv.pipeline("text-classification", path)(long, truncation=True)
    path = model("bert_mlm")
    (filled,) = printed("fill", path, f"[MASK] {long}", "--truncate", "--json")
    assert filled == qkv.pipeline("fill-mask", path)(f"[MASK] {long}", tokenizer_kwargs={"truncation": True})
    for command, task in (("summarize", "summarization"), ("translate", "translation")):
        path = model("bart")
        assert printed(command, path, "ab " * 20, "--truncate", "--json") == [
            qkv.pipeline(task, path)("ab " * 20, truncation=True)
        ]
    path, greedy = model("gpt2"), {"do_sample": False, "max_new_tokens": 3}
    cut = printed("generate", path, "ab " * 20, "--truncate", "--greedy", "--max-new-tokens", "3", "--json")
    assert cut == [qkv.pipeline("text-generation", path)("ab " * 20, handle_long_generation="hole", **greedy)]


def test_warnings_are_one_sentence(model: Any) -> None:
    done = execute("classify", model("bert_three"), "x", "--labels", "a")
    assert done.returncode == 0
    assert done.stderr.decode() == (
        "qkv: warning: zero-shot-classification: no label of the model begins with 'entail'; "
        "the last one is taken for entailment\n"
    )


@pytest.mark.parametrize(("closed", "message"), [("<&-", "standard input"), (">&-", "standard output")])
def test_closed_streams(closed: str, message: str, model: Any) -> None:
    command = f"{shlex.quote(sys.executable)} -m qkv classify {shlex.quote(model('bert_three'))} {closed}"
    done = subprocess.run(["sh", "-c", command], stderr=subprocess.PIPE, timeout=300)
    assert (done.returncode, done.stderr.decode()) == (2, f"qkv: {message} is closed\n")


@pytest.mark.parametrize(
    ("name", "arguments", "content", "message"),
    [
        ("bert_three", ["classify", "MODEL"], b"ok\n\xc3\n", "line 2 of standard input: not UTF-8 text at byte 3"),
        ("bert_three", ["classify", "MODEL", "--file", "/no/such"], b"", "/no/such: No such file"),
        ("bert_three", ["classify", "MODEL", "x", "--multi-label"], b"", "need --labels"),
        ("bert_three", ["classify", "MODEL", "x", "--labels", "a", "--pairs"], b"", "does not go with --pairs"),
        ("bert_three", ["classify", "MODEL", "x", "--pairs"], b"", "expected a JSON object with text and text_pair"),
        ("bert_three", ["classify", "MODEL", "word " * 60], b"", "and the model takes 48"),
        ("bert_three", ["tag", "MODEL", "x"], b"", "token-classification needs a model"),
        ("bert_qa", ["answer", "MODEL"], b"who?", "expected a JSON object with question and context"),
        ("bert_qa", ["answer", "MODEL", "x", "--question", "q", "--context", __file__], b"", "no inputs beside them"),
        ("bert_qa", ["answer", "MODEL", "--context", "/no/such"], b"", "/no/such: No such file"),
        ("bert_mlm", ["fill", "MODEL", "x"], b"", "no [MASK] in the text"),
        ("llama", ["generate", "MODEL", "x", "--greedy", "--top-p", "0.5"], b"", "--greedy does not go with --top-p"),
        ("llama", ["generate", "MODEL", "x", "--stream", "--json"], b"", "--stream does not go with --json"),
        ("llama", ["generate", "MODEL", "x", "--system", "y"], b"", "--system needs --chat"),
        ("llama", ["generate", "MODEL", "x", "--num-beams", "0"], b"", "num_beams must be an integer of at least 1"),
        ("llama", ["generate", "MODEL", "[]", "--chat"], b"", "each message of a chat"),
        ("t5", ["translate", "MODEL", "x", "--target-language", "de"], b"", "go together"),
        ("vit_classify", ["image", "MODEL", "/no/such.png"], b"", "/no/such.png: No such file"),
        ("vit_classify", ["image", "MODEL", __file__], b"", "not an image that Pillow can read"),
        ("vit_classify", ["embed", "MODEL", "x"], b"", "does not embed texts"),
    ],
)
def test_errors_of_tasks(
    name: str,
    arguments: list[str],
    content: bytes,
    message: str,
    model: Any,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "stdin", Input(content))
    assert cli.main([model(name) if a == "MODEL" else a for a in arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("qkv: ") and len(error.splitlines()) == 1


def test_results_before_an_error_are_printed(model: Any, tmp_path: Path) -> None:
    file = tmp_path / "lines.txt"
    file.write_bytes(b"eins\n" * 512 + b"\xff\n")
    done = execute("classify", model("bert_three"), "--file", str(file))
    assert (done.returncode, done.stdout.count(b"\n")) == (2, 512)
    assert done.stderr.decode() == f"qkv: line 513 of {file}: not UTF-8 text at byte 2560\n"


@pytest.mark.parametrize(
    ("name", "command", "lines", "good", "message"),
    [
        ("bert_mlm", ["fill", "--top-k", "1"], ["a [MASK]", "", "[MASK]"], 1, "2 of F: fill-mask: no [MASK] in"),
        ("bert_three", ["classify"], ["eins", "zwei", "word " * 60, "drei"], 2, "3 of F: text-classification: a text"),
        ("bert_nli", ["classify", "--labels", "a,b"], ["eins", "", "zwei"], 1, "2 of F: zero-shot-classification: an"),
        ("bert_qa", ["answer", "--question", "who?"], ["ab", "cd", "", "ef"], 2, "3 of F: question-answering: "),
        ("bert_qa", ["answer"], ['{"question": "who?", "context": "ab"}', "no JSON"], 1, "2 of F: expected a JSON"),
        ("vit_classify", ["image"], ["IMAGE", __file__], 1, "2 of F: "),
        ("llama", ["generate", "--chat", *FEW], ["ab", "cd", "[3]"], 2, "3 of F: text-generation: each message"),
        ("llama", ["generate", "--chat", "--stream", *FEW], ["ab", "[3]"], 1, "2 of F: text-generation: each message"),
        ("t5", ["summarize", "--max-new-tokens", "3"], ["ab", "cd\xff"], 1, "2 of F: not UTF-8 text at byte 5"),
        ("bert_mlm", ["embed"], ["eins", "zwei", "\xff"], 2, "3 of F: not UTF-8 text at byte 10"),
    ],
)  # fmt: skip
def test_what_comes_before_a_wrong_input(
    name: str, command: list[str], lines: list[str], good: int, message: str, model: Any, printed: Any, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Its result is printed, and is what it is without the wrong one, which the message names."""
    image, file = tmp_path / "x.png", tmp_path / "lines.txt"
    image.write_bytes(test_images.data(next(iter(test_images.RECORD["pipelines"].values()))[0][1]))
    lines = [line.replace("IMAGE", str(image)) for line in lines]
    path, rest = model(name), command[1:]
    expected = printed(command[0], path, *rest, text="\n".join(lines[:good]).encode("latin-1"))
    assert expected
    file.write_bytes("\n".join(lines).encode("latin-1"))
    assert cli.main([command[0], path, *rest, "--file", str(file)]) == 2
    out, error = capsys.readouterr()
    assert out == expected
    assert error.startswith("qkv: line " + message.replace(" F: ", f" {file}: ")) and len(error.splitlines()) == 1


def test_which_argument_is_wrong(model: Any, capsys: pytest.CaptureFixture[str]) -> None:
    path = model("bert_mlm")
    assert cli.main(["fill", path, "a [MASK]", "b", "--top-k", "1"]) == 2
    out, error = capsys.readouterr()
    assert out.count("\n") == 1 and error.startswith("qkv: input 2: fill-mask: no [MASK]")
    assert cli.main(["embed", path, "a", "\ud800"]) == 2
    out, error = capsys.readouterr()
    assert json.loads(out)["text"] == "a" and error.startswith("qkv: input 2: tokenizer: a text has a lone surrogate")
    assert cli.main(["fill", path, "b"]) == 2
    assert capsys.readouterr().err.startswith("qkv: fill-mask: no [MASK]")
    assert cli.main(["generate", model("llama"), "a", "b", "--num-beams", "0"]) == 2  # of no input
    assert capsys.readouterr().err.startswith("qkv: generate: num_beams")


def test_samples_before_a_wrong_input(model: Any, printed: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """An input's random numbers are those of its place, whether or not another one fails."""
    arguments = ["generate", model("llama"), "--chat", "--seed", "3", "--temperature", "2", "--max-new-tokens", "8"]
    expected = printed(*arguments, "ab", "ab", "ab")
    assert len(set(expected.splitlines())) > 1
    assert cli.main([*arguments, "ab", "ab", "ab", "[3]"]) == 2
    assert capsys.readouterr().out == expected


def test_inputs_are_still_computed_together(model: Any, printed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from qkv.tasks.classify import TextClassificationPipeline

    sizes = []
    forward = TextClassificationPipeline.forward

    def counted(self: Any, rows: list[Any], o: Any) -> Any:
        sizes.append(len(rows))
        return forward(self, rows, o)

    monkeypatch.setattr(TextClassificationPipeline, "forward", counted)
    printed("classify", model("bert_three"), text="eins zwei\n" * 100)
    assert sizes == [100]


def test_byte_order_marks_are_no_text(model: Any, printed: Any, tmp_path: Path) -> None:
    mark, path = b"\xef\xbb\xbf", model("bert_qa")
    question, context = tmp_path / "question.txt", tmp_path / "context.txt"
    question.write_bytes(b"Who lives?")
    context.write_bytes(b"Anna lives in Berlin.")
    arguments = ["answer", path, "--context", str(context), "--file", str(question), "--json"]
    expected = printed(*arguments)
    question.write_bytes(mark + b"Who lives?")
    context.write_bytes(mark + b"Anna lives in Berlin.")
    assert printed(*arguments) == expected
    path = model("bert_three")
    assert printed("classify", path, text=mark + b"a\nb") == printed("classify", path, text=b"a\nb")
    second = printed("classify", path, text=b"a\n" + mark + b"b")
    assert second.endswith("\t\ufeffb\n")  # one that does not stand in front is a character


def test_a_context_that_is_no_text(model: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    context = tmp_path / "context.txt"
    context.write_bytes(b"Anna \xff")
    assert cli.main(["answer", model("bert_qa"), "--context", str(context), "who?"]) == 2
    assert capsys.readouterr().err == f"qkv: {context}: not UTF-8 text at byte 5\n"


def test_what_is_not_finite_is_null(
    model_path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def strict(text: str) -> Any:
        raise AssertionError(f"{text} is no JSON")

    with np.load(model_path) as saved:
        entries = {name: saved[name] for name in saved.files}
    name = next(n for n in entries if n.endswith(".weight") and entries[n].dtype == np.float32)
    entries[name] = np.full_like(entries[name], np.nan)
    np.savez(tmp_path / "nan.npz", **entries)
    assert cli.main(["embed", str(tmp_path / "nan.npz"), "one"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line, parse_constant=strict) == {"text": "one", "embedding": [None] * 32}
    for value in (float("nan"), float("inf"), -float("inf")):
        found = cli_tasks._json([{"label": "é", "score": value}, {"score": 0.5}])
        assert found == '[{"label": "é", "score": null}, {"score": 0.5}]'


def test_streams_of_beams_are_refused_first(model: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also where a file of the model asks for beams: nothing is printed before."""
    assert cli.main(["generate", model("llama"), "ab", "--stream", "--greedy", "--num-beams", "2"]) == 2
    out, error = capsys.readouterr()
    assert out == "" and error.startswith("qkv: stream: num_beams=2 needs generate")
    path = shutil.copytree(model("llama"), tmp_path / "llama")
    (path / "generation_config.json").write_text('{"num_beams": 3}')
    assert cli.main(["generate", str(path), "ab", "--stream", "--greedy"]) == 2
    out, error = capsys.readouterr()
    assert out == "" and error.startswith("qkv: stream: num_beams=3 needs generate")


def test_no_gpu_is_one_sentence(model: Any, capsys: pytest.CaptureFixture[str]) -> None:
    if qkv.cuda.is_available():
        pytest.skip("there is a GPU here")
    assert cli.main(["classify", model("bert_three"), "--device", "cuda", "x"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("qkv: ") and error.endswith(f"{qkv.cuda.why_not()}\n") and len(error.splitlines()) == 1


def test_other_errors_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> None:
        raise RuntimeError("of the program")

    monkeypatch.setattr(cli, "information", fails)
    with pytest.raises(RuntimeError, match="of the program"):
        cli.main(["info"])


# ---- demo


def test_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main(["demo", "--quick"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"qkv {qkv.__version__}" in lines[0] and f"threads: {qkv.get_num_threads()}" in lines[1]
    for text, date in (("Saturday, the 3rd of May 2031", "2031-05-03"), ("5/3/2031", "2031-05-03")):
        (line,) = (line for line in lines if line.strip().startswith(text) and date in line)
        assert line.endswith("%")
    at = lines.index("    Saturday, the 3rd of May 2031<")
    rows = lines[at + 1 : at + 11]
    assert "".join(row[2] for row in rows) == "2031-05-03"
    assert all("█" in row for row in rows)  # the largest of a row is black
    assert max(map(len, lines)) < 120
    assert not any("NumPy" in line and "ratio" in line for line in lines)
    assert any("qkv translate dates" in line for line in lines)


def test_demo_of_other_texts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Text is untrusted: what a terminal would obey is not printed. Where it is narrow the picture has panels."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "20")
    assert cli.main(["demo", "12 June \x1b[31m 1999", "--quick", "1/2/2003"]) == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown and "12 June ?[31m 1999" in shown and "2003-01-02" in shown
    lines = shown.splitlines()
    assert "    12 June .[31m 1" in lines and "    999<" in lines
    assert cli.main(["demo", "--quick", "3 May 2031 " * 20]) == 2
    assert capsys.readouterr().err == "qkv: demo: a text has 220 bytes; the model takes 127\n"


def test_demo_without_utf8(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "qkv", "demo", "--quick", "3 May 2031", "日"],
        cwd=tmp_path,
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "1"},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.decode("ascii").splitlines()
    at = lines.index("    3 May 2031<")
    assert all("#" in row for row in lines[at + 1 : at + 11])
    assert any(line.startswith("  ?  ") for line in lines)


def test_demo_measures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "SECONDS", 0.001)
    monkeypatch.setattr(demo, "ROUNDS", 1)
    assert cli.main(["demo"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for _, _, what in demo.CASES:
        (line,) = (line for line in lines if line.strip().startswith(what))
        assert float(line.split()[-1]) > 0 and len(re.findall(r" [\d.]+ (?:s|ms|µs)\b", line)) == 2


def test_demo_writes_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With qkv.view; and without the page where there is no place for it."""
    found: dict[str, Any] = {}

    def attention(output: Any, **arguments: Any) -> None:
        found.update(arguments, output=output)
        Path(arguments["path"]).write_text("page")

    view = types.ModuleType("qkv.view")
    view.__spec__ = importlib.machinery.ModuleSpec("qkv.view", None)
    view.attention = attention  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "qkv.view", view)
    path = tmp_path / "x.html"
    assert cli.main(["demo", "--quick", "3 May 2031", "--output", str(path)]) == 0
    assert str(path) in capsys.readouterr().out and path.read_text() == "page"
    assert found["tokens"] == [*"3 May 2031", "</s>"] and found["target_tokens"] == ["<pad>", *"2031-05-03"]
    assert found["output"].cross_attentions[0].shape == (1, 4, 11, 11)
    assert cli.main(["demo", "--quick", "--output", str(tmp_path / "no" / "x.html")]) == 0
    assert "is not written" in capsys.readouterr().out


def test_translate_with_the_model_that_comes_along(printed: Any) -> None:
    assert printed("translate", "dates", "the 1st of April, 1999", "25.12.2001", "--num-beams", "4") == (
        "1999-04-01\n2001-12-25\n"
    )
