"""Builds .cu files against the emulator of csrc/cuda/emulation: a shared library whose kernels run on the CPU.

device = Device(build([path], folder))     # folder: build_folder(tmp_path_factory), one a test session
x = device.upload(array)
device.call("launch_something", x, 5)      # extern "C" void launch_something(float*, int)
assert device.report()["races"] == 0
"""

import ctypes
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

CSRC = Path(__file__).resolve().parent.parent / "csrc"
EMULATION = CSRC / "cuda" / "emulation"
NVCC = shutil.which("nvcc")
CXX = shutil.which(os.environ.get("CXX", "g++"))


def missing():
    """Why nothing can be built here, or None."""
    if NVCC is None:
        return "nvcc is not here"
    if CXX is None:
        return "g++ is not here"
    if not EMULATION.is_dir():
        return "the sources of the emulator are not here"
    return None


needs_compilers = pytest.mark.skipif(missing() is not None, reason=missing() or "")


def build_folder(tmp_path_factory):
    """The same for all test files and workers of a session: what one has built, another need not."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cuda-build"
    folder.mkdir(exist_ok=True)
    return folder


def _cuda_include():
    root = Path(os.path.realpath(NVCC)).parent.parent
    for candidate in (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), root, "/usr/local/cuda"):
        if candidate and (Path(candidate) / "include" / "cuda_runtime_api.h").exists():
            return Path(candidate) / "include"
    dry = subprocess.run([NVCC, "--dryrun", "-c", "-x", "cu", os.devnull], capture_output=True, text=True).stderr
    for line in dry.splitlines():
        if "INCLUDES=" in line:
            return Path(line.split("-I", 1)[1].split('"', 1)[0])
    raise RuntimeError("no CUDA headers found")


def _run(command):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(" ".join(map(str, command)) + "\n" + (done.stderr + done.stdout)[-4000:])
    return done


def _digest(*items):
    h = hashlib.sha256()
    for item in items:
        h.update(item.read_bytes() if isinstance(item, Path) else str(item).encode())
    return h.hexdigest()[:16]


def _headers():
    return sorted(EMULATION.glob("*.h")) + sorted((CSRC / "cuda").glob("*.*h")) + sorted((CSRC / "core").glob("*.h"))


def _made(target, command):
    """`target`, made by `command(temporary)` unless it is there. Its name says what went into it. Of several processes
    one makes it, and the others wait."""
    if target.exists():
        return target
    with open(target.with_name(f"{target.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            temporary = target.with_name(f"new-{target.name}")
            _run(command(temporary))
            os.replace(temporary, target)
    return target


def _cxx(folder, source, name, *flags):
    base = [CXX, "-std=c++17", "-fPIC", f"-I{CSRC}", "-isystem", _cuda_include(), *flags]
    target = folder / f"{name}-{_digest(source, *_headers(), *flags)}.o"
    return _made(target, lambda to: [*base, "-c", source, "-o", to])


def architecture(source):
    return "90a" if "_sm90" in Path(source).name else "80"


def _objects(folder, source, defines, include):
    """The host object of a .cu, and its kernels' PTX as C++."""
    source = Path(source)
    arch = architecture(source)
    flags = [
        "-std=c++17",
        "-O3",
        f"-I{CSRC}",
        *(f"-I{i}" for i in include),
        "--expt-relaxed-constexpr",
        *(f"-D{d}" for d in defines),
    ]
    name = f"{source.stem}-{_digest(source, *_headers(), *flags)}"
    # The host code is the same for a GPU; PTX instead of machine code in it saves the time of ptxas.
    virtual = f"-gencode=arch=compute_{arch},code=compute_{arch}"
    host_flags = [virtual, "-cudart", "none", "-Xcompiler", "-fPIC"]
    host = _made(folder / f"{name}.host.o", lambda to: [NVCC, *flags, *host_flags, "-c", source, "-o", to])
    ptx_flags = [f"-arch=compute_{arch}", "-lineinfo"]
    ptx = _made(folder / f"{name}.ptx", lambda to: [NVCC, *flags, *ptx_flags, "-ptx", source, "-o", to])
    cpp = folder / f"{name}-{_digest(*sorted(EMULATION.glob('*.py')))}.cpp"
    _made(cpp, lambda to: [sys.executable, EMULATION / "ptx_to_cpp.py", ptx, to])
    return [host, _cxx(folder, cpp, cpp.stem, "-Og", "-w", "-ffp-contract=off")]


def build(sources, folder, *, defines=(), include=()):
    """A shared library of .cu files (PTX of sm_90a for those whose name has _sm90, else of sm_80) and the emulator."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        host = [CSRC / "cuda" / "runtime.cpp", *sorted(EMULATION.glob("*.cpp"))]  # runtime.cpp: launch.cuh's errors
        emulator = [pool.submit(_cxx, folder, f, f.stem, "-O2") for f in host]
        kernels = [pool.submit(_objects, folder, s, tuple(defines), tuple(include)) for s in sources]
        objects = [f.result() for f in emulator] + [o for f in kernels for o in f.result()]
    library = folder / f"lib-{_digest(*(o.name for o in objects))}.so"
    return _made(library, lambda to: [CXX, "-shared", "-o", to, *objects, "-lpthread"])


class CudaError(RuntimeError):
    pass


class Device:
    """The emulated device of a library that build() made."""

    def __init__(self, library):
        self.library = ctypes.CDLL(str(library))
        self.library.cudaGetErrorString.restype = ctypes.c_char_p
        self.library.cudaGetErrorName.restype = ctypes.c_char_p
        self.allocated = {}

    def configure(self, text=""):
        assert self.library.qkv_emulator_configure(text.encode()) == 0, text

    def report(self):
        buffer = ctypes.create_string_buffer(1 << 20)
        self.library.qkv_emulator_report(buffer, ctypes.c_size_t(len(buffer)))
        return json.loads(buffer.value)

    def check(self, error):
        if error:
            self.library.cudaGetLastError()
            raise CudaError(
                f"{self.library.cudaGetErrorString(error).decode()} ({self.library.cudaGetErrorName(error).decode()})"
            )

    def malloc(self, size):
        data = ctypes.c_void_p()
        self.check(self.library.cudaMalloc(ctypes.byref(data), ctypes.c_size_t(size)))
        return data

    def free(self, data):
        self.check(self.library.cudaFree(data))

    def upload(self, array):
        array = np.ascontiguousarray(array)
        data = self.malloc(max(array.nbytes, 1))
        self.check(
            self.library.cudaMemcpy(data, array.ctypes.data_as(ctypes.c_void_p), ctypes.c_size_t(array.nbytes), 1)
        )
        return data

    def download(self, data, shape, dtype):
        array = np.empty(shape, dtype)
        self.check(
            self.library.cudaMemcpy(array.ctypes.data_as(ctypes.c_void_p), data, ctypes.c_size_t(array.nbytes), 2)
        )
        return array

    def call(self, name, *arguments):
        """Calls an extern "C" launcher, and raises what the launch said."""
        function = getattr(self.library, name)
        function.restype = None
        function(*arguments)
        self.check(self.library.cudaGetLastError())
