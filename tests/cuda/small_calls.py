#!/usr/bin/env python3
"""Every kernel once on a small shape, for compute-sanitizer: the calls of tests/test_cuda_left_out.py.

python tests/cuda/small_calls.py [NAME...]      # those calls only
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import test_cuda_left_out as small


def main(names: list[str]) -> int:
    calls = {**small.CALLS, **small.HOPPER}
    for name in names or calls:
        calls[name]().numpy()
        print(name, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
