"""Rules that no compiler checks: stems, includes, imports, twins of the ops, and no symbol that leaves its ISA."""

from __future__ import annotations

import ast
import inspect
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import qkv
from qkv import compat, ops, reference
from qkv.ops import _cpu

ROOT = Path(__file__).resolve().parents[1]
CPU = ROOT / "csrc" / "cpu"
PACKAGE = ROOT / "python" / "qkv"
NO_KERNELS = {"dispatch", "plan", "table"}  # choose, cut up and list kernels
STEMS = sorted({path.stem.removesuffix("_amx") for path in CPU.glob("*.cpp")} - NO_KERNELS)

pytestmark = pytest.mark.skipif(not (CPU / "kernels.inc").exists(), reason="the sources are not beside the tests")


# ---- stems ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stem", STEMS)
def test_every_kernel_file_has_tests_and_a_benchmark(stem: str) -> None:
    assert (ROOT / "tests" / f"test_{stem}.py").exists()
    if stem != "limits":  # the yardstick itself
        assert (ROOT / "bench" / f"{stem}.py").exists()


def test_every_kernel_is_built() -> None:
    cmake = (ROOT / "CMakeLists.txt").read_text()
    for path in CPU.glob("*.cpp"):
        assert f"csrc/cpu/{path.name}" in cmake, path.name


def test_kernels_that_an_isa_has_of_its_own_are_in_its_table() -> None:
    own = re.search(r"set\(AMX_KERNELS(.*?)\)", (ROOT / "CMakeLists.txt").read_text(), re.DOTALL)
    assert own
    stems = {Path(name).stem.removesuffix("_amx") for name in own[1].split()} - {"table"}
    declared = re.findall(r"^void (\w+)\(const \w+&\);$", (CPU / "table.cpp").read_text(), re.MULTILINE)
    assert stems == set(declared)


def test_the_list_of_kernels_is_the_one_in_the_extension() -> None:
    names = re.findall(r"^KERNEL\((\w+),", (CPU / "kernels.inc").read_text(), re.MULTILINE)
    assert names == _cpu.kernel_names()


# ---- includes ---------------------------------------------------------------------------------------

C_HEADERS = {"limits.h", "math.h", "stddef.h", "stdint.h", "string.h"}
INTRINSICS = {"immintrin.h"}


@pytest.mark.parametrize("path", sorted(CPU.rglob("*.*")), ids=lambda path: path.name)
def test_kernels_include_core_simd_and_c_headers_only(path: Path) -> None:
    """An inline function of the STL compiled with AVX-512 may be the copy that the linker keeps for everyone."""
    text = path.read_text()
    system = set(re.findall(r"#\s*include\s*<([^>]+)>", text))
    own = set(re.findall(r'#\s*include\s*"([^"]+)"', text))
    assert all(re.match(r"(cpu|core)/", name) for name in own), own
    for name in own:
        assert (ROOT / "csrc" / name).exists(), name
    if path.stem == "dispatch":  # baseline code: speaks to bind/
        return
    assert "core/buffer.h" not in own, "kernels do not allocate"
    assert "cpu/dispatch.h" not in own
    assert system <= C_HEADERS | INTRINSICS, system - C_HEADERS
    assert "std::" not in text


@pytest.mark.parametrize("path", sorted((ROOT / "csrc" / "core").glob("*.h")), ids=lambda path: path.name)
def test_core_headers_are_free_of_the_stl(path: Path) -> None:
    assert set(re.findall(r"#\s*include\s*<([^>]+)>", path.read_text())) <= C_HEADERS


def test_only_bind_knows_python() -> None:
    for path in (*CPU.rglob("*.*"), *(ROOT / "csrc" / "core").rglob("*.*")):
        text = path.read_text()
        assert "pybind11" not in text and "Python.h" not in text, path


# ---- Python -----------------------------------------------------------------------------------------


def imported(path: Path) -> set[str]:
    """What a module imports, `from . import x` as x, `from ..a import x` as a and a.x."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            names |= {module} if module else set()
            names |= {f"{module}.{alias.name}" if module else alias.name for alias in node.names}
    return names


MODULES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_layers_of_the_package(path: Path) -> None:
    """models -> layers -> ops -> extension, never back."""
    names = imported(path)
    where = str(path.relative_to(PACKAGE))
    if where not in ("ops.py", "compat.py", "arrays.py", "cuda.py", "runtime.py", "bench/machine.py"):
        assert not any("_cpu" in name.split(".") for name in names), names
    if where in ("ops.py", "compat.py", "layers.py", "runtime.py", "arrays.py") or where.startswith("reference"):
        assert not any(name.split(".")[0] in ("models", "cli", "bench") for name in names), names
    if where in ("ops.py", "arrays.py", "runtime.py") or where.startswith("reference"):
        assert not any(name.split(".")[0] == "layers" for name in names), names


FLASH = {"flash_attn_func", "flash_attn_varlen_func", "flash_attn_with_kvcache"}
TWINS = sorted({*ops.__all__, *FLASH, "scaled_dot_product_attention"} - {"PackedWeight"})


@pytest.mark.parametrize("name", TWINS)
def test_every_op_has_a_twin(name: str) -> None:
    op = getattr(ops, name, None) or getattr(compat, name)
    assert getattr(qkv, name) is op
    assert name in qkv.__all__
    twin = getattr(reference, name)
    ours, theirs = inspect.signature(op).parameters, inspect.signature(twin).parameters
    assert [(p.name, p.kind, p.default) for p in ours.values()] == [
        (p.name, p.kind, p.default) for p in theirs.values()
    ]
    assert op.__doc__


def test_versions_agree() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    assert re.search(r'^version = "([^"]+)"', text, re.MULTILINE)[1] == qkv.__version__  # type: ignore[index]


# ---- symbols ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """Object files of each ISA from a Debug build: optimised builds inline the functions that this is about."""
    cmake = shutil.which("cmake") or shutil.which("cmake", path=str(Path(sys.executable).parent))
    if (
        not cmake
        or not shutil.which("nm")
        or not (shutil.which("c++") or shutil.which("g++") or shutil.which("clang++"))
    ):
        pytest.skip("needs cmake, a C++ compiler and nm")
    pybind11 = pytest.importorskip("pybind11")
    build = tmp_path_factory.mktemp("debug")
    configure = [
        *(cmake, "-S", str(ROOT), "-B", str(build), "-DCMAKE_BUILD_TYPE=Debug"),
        *(f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"),
    ]
    done = subprocess.run(configure, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"cmake does not configure here: {done.stderr[-300:]}")
    isas = re.findall(r"^\s*add_isa\((\w+)", (ROOT / "CMakeLists.txt").read_text(), re.MULTILINE)
    if not re.search("^QKV_ASSEMBLER_HAS_AMX:INTERNAL=1$", (build / "CMakeCache.txt").read_text(), re.MULTILINE):
        isas.remove("amx")
    targets = [f"kernels_{isa}" for isa in isas]
    subprocess.run([cmake, "--build", str(build), "-j2", "--target", *targets], check=True, capture_output=True)
    found = {isa: sorted((build / "CMakeFiles" / f"kernels_{isa}.dir").rglob("*.o")) for isa in isas}
    assert all(found.values()), found
    return found


@pytest.mark.slow
def test_no_weak_symbol_outside_its_isa(objects: dict[str, list[Path]]) -> None:
    """Of several weak copies the linker keeps any one; outside qkv::<isa> that could be AVX-512 code for everyone."""
    for isa, files in objects.items():
        shown = subprocess.run(["nm", *map(str, files)], capture_output=True, text=True, check=True).stdout
        symbols = re.findall(
            r"^[0-9a-f]+ ([VvWwuT]) (\S+)$", shown, re.MULTILINE
        )  # weak, unique, and all that is shared
        inside = re.compile(rf"_Z(GV|TV|TS|TI)?Z*NK?3qkv{len(isa)}{isa}")  # how qkv::<isa>::... is mangled
        names = [name for _, name in symbols]
        assert any(inside.match(name) and "gemm_quantized" in name for name in names)
        outside = [name for name in names if not inside.match(name)]
        assert not outside, f"{isa}: {outside[:10]}"
