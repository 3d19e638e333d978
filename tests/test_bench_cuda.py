"""bench/gpu.sh and `python -m bench cuda` without a GPU: that every step and every case is what it says, and runs."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_cuda_suite
from qkv import reference

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "bench" / "gpu.sh"
sys.path.insert(0, str(ROOT))
STEPS = ["machine", "build", "conformance", "tests", "sanitizer", "bench", "sweep", "models"]

pytestmark = [
    pytest.mark.skipif(not SCRIPT.exists(), reason="bench/ is not beside the tests"),
    pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here"),
]
emulator = pytest.mark.skipif(
    importlib.util.find_spec("qkv._cuda_emulated") is None, reason="no emulator in this build"
)


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=1800, env={**os.environ, **environment}
    )


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return run(sys.executable, "-m", "bench", "cuda", "--tiny", *arguments, QKV_CUDA="emulated", QKV_EMULATOR="check=0")


def test_the_dry_run_says_what_each_step_runs() -> None:
    done = run("bash", str(SCRIPT), "--dry-run")
    assert done.returncode == 0 and not done.stderr, done.stderr
    steps = re.findall(r"^(\w+), at most (\d+) s:$", done.stdout, re.MULTILINE)
    assert [name for name, _ in steps] == STEPS
    for path in re.findall(r"\b(?:tests|bench)/[\w/]+\.(?:py|sh)\b", done.stdout):
        assert (ROOT / path).exists(), path
    assert sum(int(limit) for _, limit in steps) <= 24 * 60
    only = run("bash", str(SCRIPT), "--dry-run", "sweep")
    assert re.findall(r"^(\w+), at most", only.stdout, re.MULTILINE) == ["sweep"]


@emulator
def test_steps_run_on_the_emulator(tmp_path: Path) -> None:
    names = ["machine", "build", "tests", "sanitizer", "sweep"]
    done = run("bash", str(SCRIPT), *names, QKV_CUDA="emulated", QKV_EMULATOR="check=0", QKV_GPU_RESULTS=str(tmp_path),
               PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")  # fmt: skip
    said = dict(re.findall(r"^(\w+): (.*), \d+ s$", (tmp_path / "steps.txt").read_text(), re.MULTILINE))
    assert list(said) == names, done.stdout[-3000:] + done.stderr[-2000:]
    assert all(said[name] == "done" for name in names[1:]), done.stdout[-3000:]  # there is no nvidia-smi here
    cases = json.loads((tmp_path / "tiles.json").read_text())["cases"]
    assert {"wgmma_large", "tensor_small", "skinny"} <= {case["case"].split()[1] for case in cases}


# In the place of the environment that `build` makes, and of compute-sanitizer: they say how they were called.
PYTHON = f"""#!/bin/sh
[ "$1" != test_cuda_suite.py ] || exec {sys.executable} "$@"
case "$*" in
  "-m pytest"*) echo "called $QKV_CUDA $QKV_TEST_PATH $QKV_TEST_DEVICE $*" ;;
  *) echo "called $*" ;;
esac
case "$*" in *test_norm.py) exit 3 ;; esac
"""
SANITIZER = """#!/bin/sh
shift; tool=$1; shift 5; "$@"
[ "$tool" != racecheck ] || exit 9
"""


def test_what_only_a_gpu_runs(tmp_path: Path) -> None:
    """Each file of the suite by each of its ways, each tool; what fails is said, and a second run adds to the first."""
    (tmp_path / "bench").mkdir()
    shutil.copy(SCRIPT, tmp_path / "bench")
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    for path, text in (("build/gpu/bin/python", PYTHON), ("tools/compute-sanitizer", SANITIZER)):
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).write_text(text)
        (tmp_path / path).chmod(0o755)
    environment = {"PATH": f"{tmp_path / 'tools'}{os.pathsep}{os.environ['PATH']}", "QKV_CUDA": ""}
    for names in (["conformance", "tests"], ["sanitizer", "bench", "sweep", "models"]):
        run("bash", str(tmp_path / "bench" / "gpu.sh"), *names, **environment)
    results = tmp_path / "bench" / "results" / "gpu"
    log, said = ((results / name).read_text() for name in ("log.txt", "steps.txt"))
    status = dict(re.findall(r"^(\w+): (.*), \d+ s$", said, re.MULTILINE))
    failed = {"tests": "status 123", "sanitizer": "status 123"}  # xargs: some of them did
    assert status == {name: failed.get(name, "done") for name in STEPS[2:]}, log
    called = re.findall(r"^(\w+) (\w+): called on (\w+) (\w+) -m pytest .* (\w+)\.py$", log, re.MULTILINE)
    assert all(row[0] == row[4] and row[1] == row[2] for row in called)
    assert sorted((file, path, device) for file, path, _, device, _ in called) == sorted(
        (file, path, "cpu" if file == "test_cuda_models" else "cuda")
        for file, path in test_cuda_suite.RUNS
        if file != "test_cuda_streams"  # which has tests of the emulator alone
    )
    assert "test_norm fastest: status 3" in log and log.count("status 3") == 1
    tools = re.findall(r"^(\w+): called tests/cuda/small_calls.py$", log, re.MULTILINE)
    assert sorted(tools) == ["initcheck", "memcheck", "racecheck", "synccheck"]
    assert "racecheck: status 9" in log
    scripts = re.findall(r"^called (?:-m )?([\w/.]+)", log, re.MULTILINE)
    assert scripts == ["tests/cuda/record_golden.py", *["bench"] * 3]


@emulator
def test_small_calls_reach_every_kernel() -> None:
    program = (
        "import sys; sys.path[:0] = ['tests', 'tests/cuda']; import emulated, small_calls; small_calls.main([])\n"
        "print('kernels:', *emulated.Emulator().report()['kernels'])"
    )
    done = run(sys.executable, "-c", program, QKV_CUDA="emulated", QKV_EMULATOR="count=1,check=0")
    assert done.returncode == 0, done.stderr[-3000:]
    reached = done.stdout.split("kernels:")[1]
    text = "".join(path.read_text() for path in (ROOT / "csrc" / "cuda").glob("*.cu*"))
    bounds = r"__launch_bounds__\((?:[^()]|\([^()]*\))*\)"
    names = re.findall(rf"__global__ void\s+(?:{bounds}\s+)?(\w+)\(", text)
    assert len(names) == text.count("__global__") > 40
    assert [name for name in names if f"{len(name)}{name}" not in reached] == []  # as C++ mangles them


@emulator
@pytest.mark.parametrize("part", ["products", "attention", "rows", "tokens", "models"])
def test_every_case_runs(part: str, tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    done = bench(part, "--json", str(file))
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    results = json.loads(file.read_text())
    assert results["models"] if part == "models" else len(results["cases"]) >= 7


OPTIONS = "import argparse; options = argparse.Namespace(tiny=True, only='', json=None, resume=False)\n"


def in_another_process(script: str, *arguments: str) -> Any:
    """What the script prints last, as JSON: with fake_torch.py as torch, and `options` for a Table."""
    script = "import fake_torch; fake_torch.install()\n" + OPTIONS + script
    environment = {
        "QKV_CUDA": "emulated",
        "QKV_EMULATOR": "check=0",
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
    }
    done = run(sys.executable, "-c", script, *arguments, **environment)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@emulator
@pytest.mark.parametrize("part", ["products", "attention", "rows", "tokens"])
def test_every_case_takes_another_librarys_arrays(part: str) -> None:
    """In the stream that is current there: one that captures, where work in any other would not be in the graph."""
    streams = in_another_process("""
import json, sys, torch
from bench import cuda_cases
from bench.cuda_table import Table

def line(name, ours, peers, flop=0, nbytes=0):
    with torch.cuda.stream(torch.cuda.Stream()):
        result = ours(0)
        for array in result if isinstance(result, tuple) else () if result is None else (result,):
            own = getattr(array, "array", array)
            if own.dtype.name != "bfloat16":  # whose stream has no name
                seen[name] = own.__cuda_array_interface__["stream"] == torch.cuda.current_stream().cuda_stream
    return float("nan")

seen = {}
table = Table(options)
table.by_torch, table.line = True, line
getattr(cuda_cases, sys.argv[1])(table)
print(json.dumps(seen))
""", part)  # fmt: skip
    assert all(streams.values()), streams
    wanted = {"products": "dequantize", "attention": "float16", "rows": "float32", "tokens": "sample"}[part]
    assert any(wanted in name for name in streams)


TIMED = """
import json, numpy as np, qkv, torch
from bench.cuda_table import Table
options.tiny = False
table = Table(options)
table.results["limits"] = {"copy GB/s": 1.0}
"""


@emulator
def test_a_peer_that_fails_costs_no_other_time() -> None:
    """It fails at once, in the capture, or when it is measured."""
    case = in_another_process(
        TIMED
        + """
x = table.randn(3, 8, dtype="float32")
calls = dict.fromkeys(("late", "in capture"), 0)

def broken(i):
    raise ValueError("never works")

def uncaptured(i):
    calls["in capture"] += torch.cuda.capturing
    if torch.cuda.capturing:
        raise RuntimeError("not permitted when stream is capturing")

def late(i):
    calls["late"] += 1
    if calls["late"] > 200:  # not captured, so in the rounds
        raise RuntimeError("too late")
    uncaptured(i)

peers = {"works": lambda i: qkv.relu(x), "broken": broken, "uncaptured": uncaptured, "late": late}
table.line("softmax", lambda i: qkv.softmax(x), peers, nbytes=64)
print(json.dumps(table.results["cases"][0]))
"""
    )
    assert case["us"] > 0 and case["GB/s"] > 0 and case["of limit"] > 0
    assert case["ratios"].keys() == {"works", "uncaptured"}
    assert case["errors"] == {"broken": "ValueError: never works", "late": "RuntimeError: too late"}
    assert case["not captured"].keys() == {"uncaptured", "late"}


@emulator
def test_what_fails_before_a_line_costs_no_other() -> None:
    """Inputs for which there is no memory, torch's model, kernels of the sweep."""
    results = in_another_process(
        TIMED
        + """
import sys
from bench import cuda, cuda_models

def no_room(table, size):
    raise MemoryError(f"{size} GB")

table.attempt(no_room, 900)
cuda_models.torch_tokens = lambda rows: (500.0, 1) if rows == 8 else no_room(table, rows)
for rows, rate in (1, 1000.0), (8, 2000.0):
    cuda_models.row(table, f"GPT-2 bfloat16 batch {rows}", lambda: {"decode tokens/s": rate})
for rows in (1, 8):
    cuda_models.row(table, f"torch {rows}", lambda: cuda_models.beside_ours(table, rows))
times = {"planned": 3.0, "wgmma_small": 2.0, "tensor_large": 4.0}
table.line = lambda name, *_, **__: times.get(name.split()[-3 if name[-1].isdigit() else -1], float("nan"))
table.results["tiles"] = []
cuda.sweep_shape(table, 64, 16, 16)
times = {}
cuda.sweep_shape(table, 64, 16, 16)
print(json.dumps(table.results))
"""
    )
    assert results["errors"] == {"no_room 900": "MemoryError: 900 GB"}
    ours, more, failed, beside = results["models"]
    assert ours["done"] and more["done"] and failed == {"case": "torch 1", "error": "MemoryError: 1 GB"}
    assert beside["qkv bfloat16 / torch"] == 4.0 and beside["CUDA graphs skipped"] == 1
    (best,) = results["tiles"]
    assert best == {"shape": [64, 16, 16], "best": ["wgmma_small", 1, 16], "us": 2.0, "planned / best": 1.5}


@emulator
def test_without_torch_our_recordings_are_timed() -> None:
    case = in_another_process(
        TIMED
        + """
table.by_torch = False
x, host = table.randn(3, 8, dtype="float32"), np.ones((8,), np.float32)
table.line("softmax", lambda i: qkv.softmax(x), {"torch": None}, nbytes=64)
table.line("sends", lambda i: qkv.linear(qkv.cuda.array(host[None]), x), {}, flop=64)
print(json.dumps(table.results["cases"]))
"""
    )
    first, second = case
    assert first["us"] > 0 and first["of limit"] > 0 and not first["ratios"] and "not captured" not in first
    assert second["us"] > 0 and "of limit" not in second and "host memory" in second["not captured"]["qkv"]


def test_a_line_that_ends_the_process_costs_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of four lines the second ends it, the third never comes back."""
    file = tmp_path / "out.json"
    script = """
import argparse, os, sys, time
from bench.cuda_table import Table
table = Table(argparse.Namespace(tiny=True, only="", json=sys.argv[1], resume=True))
table.tiny, table.results["limits"] = False, {}
table.show = lambda case: None
import bench.cuda_table
def prepared(side, by_torch):
    side(0)
    return lambda: 1.0, ""
bench.cuda_table.prepared = prepared
for name, ours in {"a": len, "b": lambda i: os._exit(9), "c": lambda i: time.sleep(600), "d": None}.items():
    table.line(name, lambda i: ours(i) if name in "bc" else None, {})
"""
    from bench import cuda

    monkeypatch.chdir(ROOT)
    status = cuda.supervised([sys.executable, "-c", script, str(file)], file, 15.0)
    cases = json.loads(file.read_text())["cases"]
    assert status == 0 and {case["case"]: case.get("us") for case in cases} == {
        "a": 1e3,
        "b": None,
        "c": None,
        "d": 1e3,
    }
    assert cuda.failures({"cases": cases, "errors": {"e": "no memory"}}) == ["e", "b", "c"]
    assert cuda.supervised([sys.executable, "-c", "import sys; sys.exit(5)"], file, 15.0) == 5  # nothing new


def test_torchs_model_is_gpt2s() -> None:
    """Tokens one by one against all of them at once in NumPy, in float64."""
    torch = pytest.importorskip("torch", reason="needs torch: CI runs it beside the wheel")
    from bench.cuda_models import TorchGPT2

    rows, length, layers, width, heads = 2, 6, 3, 24, 4
    model = TorchGPT2(rows, length + 2, layers, width, heads, 50, device="cpu", dtype="float32")
    for tensor in [t for layer in model.layers for pair in layer.values() for t in pair]:
        tensor.mul_(15)  # or attention is an average
    tokens = np.random.default_rng(0).integers(0, 50, (rows, length))
    got = [model.logits(torch.from_numpy(tokens[:, i]), torch.full((1,), i)).numpy() for i in range(length)]

    def linear(x: Any, pair: Any) -> Any:
        return x @ pair[0].double().numpy().T + pair[1].double().numpy()

    def norm(x: Any, pair: Any) -> Any:
        return reference.layer_norm(x, *(t.double().numpy() for t in pair), eps=1e-5)

    x = model.table.double().numpy()[tokens] + model.places.double().numpy()[:length]
    for layer, (first, second) in zip(model.layers, model.norms, strict=True):
        split = linear(norm(x, first), layer["qkv"]).reshape(rows, length, 3, heads, -1)
        q, k, v = split.transpose(2, 0, 3, 1, 4)
        attended = reference.attention(q, k, v, causal=True).transpose(0, 2, 1, 3).reshape(x.shape)
        x = x + linear(attended, layer["out"])
        x = x + linear(reference.gelu(linear(norm(x, second), layer["up"]), "tanh"), layer["down"])
    want = norm(x, model.last) @ model.table.double().numpy().T
    np.testing.assert_allclose(np.stack(got, 1), want, atol=2e-5 * np.abs(want).max())


def test_torch_compiles_the_step_with_arrays_that_stay() -> None:
    """All but the token and its place are static inputs, so that a CUDA graph may write to the cache."""
    torch = pytest.importorskip("torch", reason="needs torch: CI runs it beside the wheel")
    from torch._dynamo.backends.common import aot_autograd
    from torch._guards import TracingContext

    from bench.cuda_models import compiled_step

    seen: dict[str, int] = {}

    def inner(graph: Any, inputs: Any) -> Any:
        seen["inputs"] = len(inputs)
        seen["static"] = len(TracingContext.get().fw_metadata.static_input_indices)
        return graph

    backend = aot_autograd(fw_compiler=inner, inference_compiler=inner)
    size = {"layers": 2, "width": 8, "heads": 2, "vocabulary": 11, "device": "cpu", "dtype": "float32"}
    step, model = compiled_step(2, 5, backend, **size)
    with torch.no_grad():
        token, at = torch.tensor([3, 1]), torch.full((1,), 2)
        assert torch.equal(step(token, at), model.logits(token, at).argmax(1))
    assert seen == {"inputs": len(model.tensors()) + 2, "static": len(model.tensors())}


def test_what_is_wrong_is_said() -> None:
    assert "no part 'norms'" in bench("norms").stderr
    done = run(sys.executable, "-m", "bench", "cuda", QKV_CUDA="off")
    assert done.returncode == 2 and "hides the GPU" in done.stderr
