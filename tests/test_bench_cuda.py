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

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "bench" / "gpu.sh"
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
    for file in re.findall(r"\btest_\w+(?=[ );])", done.stdout):
        assert (ROOT / "tests" / f"{file}.py").exists(), file
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


@emulator
@pytest.mark.parametrize("part", ["products", "attention", "rows", "tokens", "models"])
def test_every_case_runs(part: str, tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    done = bench(part, "--json", str(file))
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    results = json.loads(file.read_text())
    assert results["models"] if part == "models" else len(results["cases"]) >= 7


def test_what_is_wrong_is_said() -> None:
    assert "no part 'norms'" in bench("norms").stderr
    done = run(sys.executable, "-m", "bench", "cuda", QKV_CUDA="off")
    assert done.returncode == 2 and "hides the GPU" in done.stderr
