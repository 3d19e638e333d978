#!/usr/bin/env python3
"""Runs every intrinsic on a GPU, compares with its definition, and records what came out.

    python tests/cuda/record_golden.py            # needs nvcc and a GPU, of compute capability 9.0 for all cases
    python tests/cuda/record_golden.py --check    # records nothing

Writes tests/golden/cuda_intrinsics.npz: the words of every case, and the machine that gave them.
tests/test_cuda_intrinsics.py holds the emulator to them.
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare only")
    parser.add_argument("-o", "--output", type=Path, default=TESTS / "golden" / "cuda_intrinsics.npz")
    arguments = parser.parse_args()
    gpu = conformance.gpu()
    if gpu is None:
        print("no GPU here", file=sys.stderr)
        return 2
    print(gpu.name, f"compute capability {gpu.major}.{gpu.minor}, driver {gpu.driver}")
    start = time.monotonic()
    recorded, wrong = {}, 0
    with tempfile.TemporaryDirectory() as folder:
        libraries = conformance.gpu_libraries(gpu, Path(folder))
        print(f"built in {time.monotonic() - start:.0f} s")
        for case in conformance.all_cases():
            if case.hopper not in libraries:
                continue
            print(conformance.case_id(case), flush=True)  # the last one printed is the one that hangs
            try:
                got = case.run(libraries[case.hopper])
            except RuntimeError as error:
                print(f"FAILED {error}")
                wrong += 1
                continue
            recorded[conformance.case_id(case)] = got
            if not case.check(got, case.want):
                wrong += 1
                where = np.flatnonzero(got != case.want)
                shown = ", ".join(f"[{i}] {got[i]:08x} for {case.want[i]:08x}" for i in where[:4])
                print(f"WRONG {conformance.case_id(case)}: {len(where)} of {len(got)} words differ: {shown}")
    print(f"{len(recorded)} cases, {wrong} wrong, {time.monotonic() - start:.0f} s")
    if not arguments.check:
        version = subprocess.run(
            [conformance.nvcc() or "nvcc", "--version"], capture_output=True, text=True, check=True
        )
        nvcc = version.stdout.strip().splitlines()[-1]
        machine = f"{gpu.name}, driver {gpu.driver}, {nvcc}, {time.strftime('%Y-%m-%d')}"
        conformance.write_golden(arguments.output, recorded, machine)
        print(f"wrote {arguments.output}, {arguments.output.stat().st_size} bytes: {machine}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
