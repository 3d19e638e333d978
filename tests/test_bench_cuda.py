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
import test_cuda_suite

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


def test_what_is_wrong_is_said() -> None:
    assert "no part 'norms'" in bench("norms").stderr
    done = run(sys.executable, "-m", "bench", "cuda", QKV_CUDA="off")
    assert done.returncode == 2 and "hides the GPU" in done.stderr
