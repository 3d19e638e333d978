"""Tables that are made of the code."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable

from qkv.tasks import ALIASES, TASKS


def tasks() -> str:
    """Each task with what its class says of itself and the classes of models that it takes."""
    lines = ["| task | what it takes and gives | classes of models |", "|---|---|---|"]
    for name, task in TASKS.items():
        kind = getattr(importlib.import_module(f"qkv.tasks.{task.module}"), task.name)
        told = " ".join((inspect.getdoc(kind) or "").partition("\n\n")[0].split())
        others = "".join(f", `{alias}`" for alias, of in ALIASES.items() if of == name)
        classes = "any that reads token ids" if task.any_text else ", ".join(f"`…{end}`" for end in task.classes)
        lines.append(f"| `{name}`{others} | {told.replace('|', '&#124;')} | {classes} |")
    return "\n".join(lines)


TABLES: dict[str, Callable[[], str]] = {"tasks": tasks}
