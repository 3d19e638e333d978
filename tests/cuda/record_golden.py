#!/usr/bin/env python3
"""Runs every intrinsic on a GPU, compares with its definition, and records what came out.

    python tests/cuda/record_golden.py            # needs nvcc and a GPU, of compute capability 9.0 for all cases
    python tests/cuda/record_golden.py --check    # records nothing

Writes tests/golden/cuda_intrinsics.npz: the words of every case, and the machine that gave them.
tests/test_cuda_intrinsics.py holds the emulator to them. A fault on a GPU ends what a process can do there, so the
cases run in a process of their own, and another one goes on behind a case that fails; what there is by then is written.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))

import cuda_conformance as conformance  # noqa: E402

FAULT = 3  # exit status of a child that met one


def run_from(first: int, folder: Path) -> int:
    """Cases first, first + 1 ... until one fails; their words go into the folder."""
    libraries = conformance.built_libraries(folder)
    for number, case in enumerate(conformance.all_cases()):
        if number < first or case.hopper not in libraries:
            continue
        (folder / "at").write_text(str(number))
        try:
            got = case.run(libraries[case.hopper])
        except RuntimeError as error:
            print(f"FAILED {error}", flush=True)
            return FAULT
        np.save(folder / f"{number}.npy", got)
        if not case.check(got, case.want):
            where = np.flatnonzero(got != case.want)
            shown = ", ".join(f"[{i}] {got[i]:08x} for {case.want[i]:08x}" for i in where[:4])
            print(f"WRONG {conformance.case_id(case)}: {len(where)} of {len(got)} words differ: {shown}", flush=True)
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare only")
    parser.add_argument("-o", "--output", type=Path, default=TESTS / "golden" / "cuda_intrinsics.npz")
    parser.add_argument("--child", nargs=2, metavar=("FIRST", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        return run_from(int(arguments.child[0]), Path(arguments.child[1]))
    gpu = conformance.gpu()
    if gpu is None:
        print("no GPU here", file=sys.stderr)
        return 2
    print(gpu.name, f"compute capability {gpu.major}.{gpu.minor}, driver for CUDA {gpu.driver}")
    start = time.monotonic()
    version = subprocess.run([conformance.nvcc() or "nvcc", "--version"], capture_output=True, text=True, check=True)
    nvcc = version.stdout.strip().splitlines()[-1]
    machine = f"{gpu.name}, driver for CUDA {gpu.driver}, {nvcc}, {time.strftime('%Y-%m-%d')}"
    cases = conformance.all_cases()
    recorded: dict[str, conformance.Words] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        conformance.gpu_libraries(gpu, folder)
        print(f"built in {time.monotonic() - start:.0f} s", flush=True)
        first, status = 0, FAULT
        while first < len(cases) and status != 0:
            (folder / "at").write_text(str(first))  # of a child that comes to nothing
            command = [sys.executable, __file__, "--child", str(first), name]
            try:
                status = subprocess.run(command, timeout=30).returncode
            except subprocess.TimeoutExpired:
                status = FAULT
            if status != 0:
                at = int((folder / "at").read_text())
                print(f"no result of {conformance.case_id(cases[at])} (exit status {status})", flush=True)
                first = at + 1
            results = {conformance.case_id(case): folder / f"{n}.npy" for n, case in enumerate(cases)}
            recorded = {case: np.load(path) for case, path in results.items() if path.exists()}
            if not arguments.check:  # already, should no time be left for those that follow
                conformance.write_golden(arguments.output, recorded, machine)
    wrong = sum(
        not case.check(recorded[i], case.want) for case in cases if (i := conformance.case_id(case)) in recorded
    )
    print(f"{len(recorded)} of {len(cases)} cases, {wrong} wrong, {time.monotonic() - start:.0f} s")
    if not arguments.check:
        print(f"wrote {arguments.output}, {arguments.output.stat().st_size} bytes: {machine}")
    return 0 if wrong == 0 and len(recorded) == len(cases) else 1


if __name__ == "__main__":
    sys.exit(main())
