"""Choosing an instruction set: QKV_ISA, isas(), set_isa(); every op on every one of them."""

from __future__ import annotations

import ctypes
import mmap
from pathlib import Path

import numpy as np
import pytest
import qkv
from calls import calls, flat
from checks import DTYPES, run_python, use_isa
from qkv.ops import _cpu

KNOWN = ["scalar", "avx2", "avx512", "avx512_bf16", "amx"]


def test_isas_are_known_and_scalar_is_always_there() -> None:
    names = qkv.isas()
    assert isinstance(names, list) and names[0] == "scalar"
    assert names == [name for name in KNOWN if name in names]


def test_the_best_one_is_the_default() -> None:
    done = run_python("import qkv; from qkv.ops import _cpu; print(_cpu.current_isa(), qkv.isas()[-1])", QKV_ISA="")
    assert done.returncode == 0, done.stderr
    current, best = done.stdout.split()
    assert current == best


@pytest.mark.parametrize("name", qkv.isas())
def test_set_isa_and_the_environment(name: str) -> None:
    with use_isa(name):
        assert _cpu.current_isa() == name
    code = (
        "import numpy as np, qkv; from qkv.ops import _cpu; qkv.relu(np.ones(3, np.float32)); print(_cpu.current_isa())"
    )
    done = run_python(code, QKV_ISA=name)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == name


@pytest.mark.parametrize("name", ["sse9", "AVX2 ", "avx512_fp16", "x" * 10_000, "scalar\n", "%s%n"])
def test_unknown_names_are_refused(name: str) -> None:
    before = _cpu.current_isa()
    with pytest.raises(ValueError, match="scalar") as caught:
        qkv.set_isa(name)
    for possible in qkv.isas():
        assert possible in str(caught.value)
    assert _cpu.current_isa() == before
    done = run_python("import numpy as np, qkv; qkv.relu(np.ones(3, np.float32))", QKV_ISA=name)
    assert done.returncode == 1, "an unknown QKV_ISA must be an error, at import or at first use"
    message = done.stderr[done.stderr.rindex("Error: ") :]
    assert "QKV_ISA" in message
    for possible in qkv.isas():
        assert possible in message


@pytest.mark.parametrize("name", [n for n in KNOWN if n not in qkv.isas()])
def test_names_that_this_machine_lacks_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="scalar"):
        qkv.set_isa(name)
    done = run_python("import numpy as np, qkv; qkv.relu(np.ones(3, np.float32))", QKV_ISA=name)
    assert done.returncode == 1 and "QKV_ISA" in done.stderr.strip().splitlines()[-1]


def test_wrong_types_are_refused() -> None:
    for wrong in (None, 2, ["avx2"]):
        with pytest.raises(TypeError):
            qkv.set_isa(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("op", calls())
def test_every_op_runs_on_every_instruction_set(op: str, isa: str) -> None:
    for dtype in DTYPES.values():
        arguments = calls(dtype)[op]
        out = flat(getattr(qkv, op)(**arguments))
        assert _cpu.current_isa() == isa
        with use_isa("scalar"):
            expected = flat(getattr(qkv, op)(**arguments))
        loose = {4: 1e-5, 2: 4e-2}[dtype.itemsize]
        for a, b in zip(out, expected, strict=True):
            np.testing.assert_allclose(a.astype(np.float64), b.astype(np.float64), rtol=loose, atol=loose)


def test_switching_back_and_forth() -> None:
    x = np.random.default_rng(0).standard_normal((33, 65)).astype(np.float32)
    first = {}
    for _ in range(3):
        for name in qkv.isas():
            with use_isa(name):
                out = qkv.matmul(x, x.T)
            np.testing.assert_array_equal(out, first.setdefault(name, out))


HAS_AMX = "amx" in qkv.isas() and "amx_tile" in Path("/proc/cpuinfo").read_text()


@pytest.mark.skipif(not HAS_AMX, reason="no AMX here")
def test_tiles_are_given_back(rng: np.random.Generator) -> None:
    """Registers in use cost every switch of threads. XGETBV with ecx = 1 tells."""
    code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(bytes.fromhex("b901000000 0f01d0 c3"))  # mov ecx, 1; xgetbv; ret
    in_use = ctypes.CFUNCTYPE(ctypes.c_uint32)(ctypes.addressof(ctypes.c_char.from_buffer(code)))
    x = rng.standard_normal((40, 64), np.float32)
    heads = x.reshape(1, 1, 40, 64)
    qkv.set_num_threads(1)
    with use_isa("amx"):
        for dtype, group in (("bfloat16", None), ("int8", None), ("int8", 32), ("int4", 64)):
            weight = qkv.pack_weight(x, dtype, group)
            for rows in (1, 40):
                qkv.linear(x[:rows], weight)
                assert in_use() & 0b11 << 17 == 0, (dtype, group, rows)
        for rows in (1, 40):
            qkv.attention(heads[:, :, :rows], heads, heads, precision="bf16")
            assert in_use() & 0b11 << 17 == 0, rows
