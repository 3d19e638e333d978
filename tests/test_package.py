"""What is installed: version, metadata, types, size, and what `import qkv` brings with it."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import qkv
from checks import run_python
from qkv.ops import _cpu

ROOT = Path(__file__).parent.parent
PACKAGE = Path(qkv.__file__).parent
EXTRAS = {"text", "images", "gguf", "plot", "test", "bench", "docs"}
LIMIT = 10_000_000  # bytes


@pytest.fixture(scope="module")
def metadata() -> Any:
    try:
        return importlib.metadata.metadata("qkv")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("qkv is on the path but not installed")


def test_one_version(metadata: Any) -> None:
    declared = re.search(r'^version = "([^"]+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert declared is not None
    assert metadata["Version"] == qkv.__version__ == declared.group(1)


def test_metadata(metadata: Any) -> None:
    assert set(metadata.get_all("Provides-Extra")) == EXTRAS
    assert metadata["Requires-Python"] == ">=3.10"
    assert metadata["License-Expression"] == "Apache-2.0"
    required = [line for line in metadata.get_all("Requires-Dist") if "extra ==" not in line]
    assert {re.split(r"[^\w-]", line)[0] for line in required} == {"numpy", "ml_dtypes", "safetensors"}
    assert any(path.name == "LICENSE" for path in importlib.metadata.files("qkv") or ())


def test_the_command_is_installed(metadata: Any) -> None:
    (command,) = importlib.metadata.distribution("qkv").entry_points
    assert (command.group, command.name) == ("console_scripts", "qkv")
    assert callable(command.load())


def test_types_are_installed() -> None:
    assert (PACKAGE / "py.typed").is_file()
    assert (PACKAGE / "_cpu.pyi").is_file()


def test_the_stub_has_the_names_of_the_extension(tmp_path: Path) -> None:
    pytest.importorskip("mypy", reason="mypy is not installed")
    allowed = tmp_path / "allowed.txt"  # pybind11 gives every class its metaclass and, without py::init, this __init__
    classes = ["PackedWeight", "PackedWeight.__init__", "Recording", "Recording.__init__", "BlockList", "BlockPool"]
    allowed.write_text("".join(f"qkv._cpu.{name}\n" for name in classes))
    done = subprocess.run(
        [sys.executable, "-m", "mypy.stubtest", "qkv._cpu", "--allowlist", str(allowed)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_stub_has_the_arguments_of_the_extension() -> None:
    """stubtest sees no signatures in an extension module; pybind11 writes them into the docstrings."""
    tree = ast.parse((PACKAGE / "_cpu.pyi").read_text())
    stub = {node.name: [a.arg for a in node.args.args] for node in tree.body if isinstance(node, ast.FunctionDef)}
    for name, arguments in stub.items():
        signature = (getattr(_cpu, name).__doc__ or "").splitlines()[0]
        inside = re.fullmatch(rf"{name}\((.*)\) -> .*", signature)
        assert inside is not None, signature
        assert re.findall(r"(\w+): ", inside.group(1)) == arguments, signature


def test_import_brings_nothing_but_numpy() -> None:
    """What models, files and the command line need is imported when it is used."""
    code = "import sys, numpy; before = set(sys.modules); import qkv; print(*sorted(set(sys.modules) - before))"
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    new = {name for name in done.stdout.split() if name.split(".")[0] not in ("qkv", "numpy")}
    third_party = {name for name in new if name.split(".")[0] not in sys.stdlib_module_names}
    assert not third_party
    slow = {"argparse", "asyncio", "dataclasses", "email", "http", "inspect", "json", "multiprocessing", "urllib"}
    assert not slow & new
    assert not {"qkv.models", "qkv.weights", "qkv.text", "qkv.cli", "qkv.bench"} & set(done.stdout.split())


def test_every_public_name_is_there() -> None:
    assert len(set(qkv.__all__)) == len(qkv.__all__)
    for name in qkv.__all__:
        assert getattr(qkv, name) is not None
    assert set(qkv.__all__) <= set(dir(qkv))


def test_size(metadata: Any) -> None:
    """Installed, without what Python compiles: below 10 MB with the extension stripped, as a wheel has it, and as much
    again for the GPU."""
    files = [path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    extensions = [path for path in files if path.suffix == ".so"]
    if any(b".debug_info" in path.read_bytes() for path in extensions):
        pytest.skip("the extension holds debug information")
    names = {path.name.split(".")[0] for path in extensions}
    assert "_cpu" in names and names <= {"_cpu", "_cuda", "_cuda_emulated"}
    of_a_gpu = [path for path in extensions if path.name.startswith("_cuda")]
    assert sum(path.stat().st_size for path in files if path not in of_a_gpu) < LIMIT
    assert sum(path.stat().st_size for path in of_a_gpu if not path.name.startswith("_cuda_emulated")) < LIMIT
