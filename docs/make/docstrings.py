"""The docstrings of the package as Markdown: a line that begins with an argument's name and a colon, or with an
error's, begins an item of a list. They are written for `help` first."""

from __future__ import annotations

import re
from typing import Any

import griffe

ITEM = re.compile(r"(?P<names>[A-Za-z_]\w*(?:, \w+)*)(?P<told>:| \([^()]*\)?[^:.]*:)(?= |$)")


def markdown(text: str, names: set[str]) -> str:
    """text: cleaned, as inspect.cleandoc does. names: the arguments'."""
    lines: list[str] = []
    in_list = in_formula = False
    name = "|".join(names) or "$"
    inner = re.compile(rf"(?<=[.;] )((?:{name})(?:, (?:{name}))*|\w+(?:Error|Warning)):(?= )")
    for line in text.splitlines():
        if line.startswith("    ") and not in_list and not in_formula and not (lines and lines[-1]):
            in_formula = True
            lines.append("```text")
        elif in_formula and not line:
            in_formula = False
            lines.append("```")
        found = ITEM.match(line)
        first = found["names"].split(", ")[0] if found else ""
        if found and (first in names or first.endswith(("Error", "Warning"))):
            lines += [] if in_list or not lines or not lines[-1] else [""]
            rest = line[found.end("names") :]
            line = f"* **{found['names']}**{rest}"
            in_list = True
        elif line.startswith("Returns "):
            lines += [""] if lines and lines[-1] else []
            in_list = False
        elif in_list and line and not line.startswith("    "):
            line = f"    {line}"
        elif not line:
            in_list = False
        lines.append(line.removeprefix("    ") if in_formula else inner.sub(r"**\1**:", line) if in_list else line)
    if in_formula:
        lines.append("```")
    return "\n".join(lines)


class Arguments(griffe.Extension):
    """Loaded by mkdocstrings."""

    def on_function_instance(self, *, func: griffe.Function, **_: Any) -> None:
        if func.docstring:
            names = {parameter.name.lstrip("*") for parameter in func.parameters}
            func.docstring.value = markdown(func.docstring.value, names)
