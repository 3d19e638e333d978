"""Fixtures of the op tests; the functions that they share stand in checks.py, the yardsticks in naive.py."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import on_device
import pytest
import qkv
from checks import DTYPES, use_isa
from qkv.ops import _cpu
from task_checks import tiny as tiny

if on_device.ENABLED:
    on_device.install()

os.environ["HF_HUB_OFFLINE"] = "1"  # no test goes online


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--every", type=int, default=1, metavar="N", help="run an N-th of each test's cases, at least one")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The walks through every float32 take minutes: they run when they are asked for, with -m exhaustive."""
    if (every := config.getoption("every")) > 1:
        thin(config, items, every)
    if on_device.ENABLED:
        on_device.skip_others(items)
    if "exhaustive" not in config.option.markexpr:
        skip = pytest.mark.skip(reason="run with -m exhaustive")
        for item in items:
            if "exhaustive" in item.keywords:
                item.add_marker(skip)


def thin(config: pytest.Config, items: list[pytest.Item], every: int) -> None:
    """Leaves an n-th of the cases of a test, the same ones each time, chosen by their names' checksums: every n-th in
    order would always meet the same values of a parameter that has as many."""
    cases: dict[str, list[pytest.Item]] = {}
    for item in items:
        cases.setdefault(item.nodeid.partition("[")[0], []).append(item)
    kept = {
        item
        for group in cases.values()
        for item in sorted(group, key=lambda item: zlib.crc32(item.nodeid.encode()))[: -(-len(group) // every)]
    }
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = [item for item in items if item in kept]


@pytest.fixture(autouse=True)
def _restore_runtime() -> Iterator[None]:
    """Whatever a test sets, the next one starts from the same instruction set and thread count."""
    isa, threads = _cpu.current_isa(), qkv.get_num_threads()
    yield
    qkv.set_isa(isa)
    qkv.set_num_threads(threads)


@pytest.fixture(params=qkv.isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set that this machine has."""
    with use_isa(request.param) as name:
        yield name


@pytest.fixture(params=list(DTYPES))
def dtype(request: pytest.FixtureRequest) -> np.dtype[Any]:
    return DTYPES[request.param]


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """Random numbers from a seed that the test's name fixes; pytest prints it when the test fails."""
    seed = int(os.environ.get("QKV_TEST_SEED", zlib.crc32(request.node.nodeid.encode())))
    print(f"QKV_TEST_SEED={seed}")
    return np.random.default_rng(seed)
