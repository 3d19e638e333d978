"""Fixtures: checkpoints with a tokenizer or an image processor, by name, each made and loaded once."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import qkv
import task_checks
import test_images
import test_tasks_generate


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    root = tmp_path_factory.mktemp("small_models")

    @cache
    def folder(name: str) -> str:
        if name in test_tasks_generate.MODELS:
            test_tasks_generate.folder(root / name, name)
        elif name in test_images.RECORD["pipelines"]:
            settings = test_images.SETTINGS[test_images.RECORD["pipelines"][name][0][0]]
            test_images.checkpoint(root, name, settings)
        else:
            task_checks.folder(root / name, name)
        return str(root / name)

    return folder


@pytest.fixture(scope="session")
def load(folder: Callable[[str], str]) -> Callable[[str], Any]:
    return cache(lambda name: qkv.load(folder(name)))
