"""The command line, in this process and as a process."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import qkv
from qkv import cli
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
        (["embed", "MODEL"], b"\xff", "standard input is not UTF-8 at byte 0"),
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
