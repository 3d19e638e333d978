"""Python functions as JSON schemas, which chat templates show to a model as its tools.

From a function's signature, type hints and docstring in Google's style, as transformers' get_json_schema:
https://huggingface.co/docs/transformers/main/en/chat_extras
"""

from __future__ import annotations

import enum
import inspect
import json
import re
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

SCALARS = {int: "integer", float: "number", str: "string", bool: "boolean", type(None): "null"}
KINDS = {**SCALARS, list: "array", tuple: "array", dict: "object"}
HEADERS = ("Args:", "Returns:", "Raises:")
ENTRY = re.compile(r"([ \t]*)(\w+)(?:[ \t]*\([^()]*\))?:(.*)")  # of Args: "name: text" or "name (type): text"
CHOICES = re.compile(r"\(choices:\s*(.*?)\)\s*$", re.IGNORECASE)  # at the end of such a text


def as_schema(tool: Any) -> Mapping[str, Any]:
    """A tool as a JSON schema: a dictionary is one, a function is made into one. ValueError: it is neither, or says too
    little of itself."""
    if isinstance(tool, Mapping):
        return tool
    if not inspect.isfunction(tool) and not inspect.ismethod(tool):
        raise ValueError("apply_chat_template: tools must be JSON schemas, as dictionaries, or Python functions")
    try:
        return _schema(tool)
    except (ValueError, NameError, TypeError) as error:  # the latter two of a type hint that means nothing
        raise ValueError(f"apply_chat_template: the tool {tool.__name__}: {error}") from None


def _schema(function: Callable[..., Any]) -> dict[str, Any]:
    about, described, returned = _docstring(inspect.getdoc(function) or "")
    hints = typing.get_type_hints(function)
    parameters = list(inspect.signature(function).parameters.values())
    if parameters and parameters[0].name in ("self", "cls") and parameters[0].annotation is inspect.Parameter.empty:
        del parameters[0]
    properties = {}
    for parameter in parameters:
        name = parameter.name
        if name not in hints:
            raise ValueError(f"the argument {name} has no type hint")
        if name not in described:
            raise ValueError(f"the docstring has no text for the argument {name}")
        properties[name] = _of_hint(hints[name])
        text = described[name]
        if choices := CHOICES.search(text):
            try:
                values = json.loads(choices[1])
            except ValueError:
                values = None
            if not isinstance(values, list):
                raise ValueError(f"the choices of {name} are no JSON list")
            properties[name]["enum"] = [value.strip() if isinstance(value, str) else value for value in values]
            text = text[: choices.start()].strip()
        properties[name]["description"] = text
    schema: dict[str, Any] = {"type": "object", "properties": properties}
    if required := [p.name for p in parameters if p.default is inspect.Parameter.empty]:
        schema["required"] = required
    found = {"name": function.__name__, "description": about, "parameters": schema}
    if "return" in hints and (result := _of_return(hints["return"])) is not None:
        found["return"] = result if returned is None else {**result, "description": returned}
    return {"type": "function", "function": found}


def _docstring(text: str) -> tuple[str, dict[str, str], str | None]:
    """What is said of a function, of its arguments by name, and of what it returns."""
    if not text.strip():
        raise ValueError("it has no docstring")
    parts: dict[str, list[str]] = {"": []}
    lines = parts[""]
    for line in text.strip().splitlines():
        if line.strip() in HEADERS:
            lines = parts.setdefault(line.strip(), [])
        else:
            lines.append(line)
    described: dict[str, list[str]] = {}
    texts, depth = [""], 1 << 30
    for line in filter(str.strip, parts.get("Args:", [])):
        entry = ENTRY.match(line)
        if entry and len(entry[1]) <= depth:
            texts = described[entry[2]] = [entry[3].strip()]
            depth = len(entry[1])
        else:
            texts.append(line.strip())
    returned = "\n".join(parts["Returns:"]).strip() if "Returns:" in parts else None
    return "\n".join(parts[""]).strip(), {name: " ".join(found).strip() for name, found in described.items()}, returned


def _of_return(hint: Any) -> dict[str, Any] | None:
    """None: no schema can say it, which does not matter, as no model writes it."""
    try:
        return _of_hint(hint)
    except ValueError:
        return None


def _of_hint(hint: Any) -> dict[str, Any]:
    """The schema of a type hint. ValueError: there is none."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return {}
    if isinstance(hint, type) and hint in KINDS:
        return {"type": KINDS[hint]}
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return _of_values([member.value for member in hint], hint)
    if origin is typing.Literal:
        return _of_values(list(inner), hint)
    if origin in (typing.Union, types.UnionType):
        return _of_union(inner)
    if origin in (list, tuple, dict) and not inner:
        return {"type": KINDS[origin]}
    if origin is list:
        return {"type": "array", "items": _of_hint(inner[0])}
    if origin is tuple and len(inner) > 1 and ... not in inner:
        return {"type": "array", "prefixItems": [_of_hint(item) for item in inner]}
    if origin is dict:
        return {"type": "object", "additionalProperties": _of_hint(inner[1])}
    raise ValueError(f"no JSON schema for the type hint {hint}; pass a schema of your own instead of the function")


def _of_values(values: list[Any], hint: Any) -> dict[str, Any]:
    if not values or any(type(value) not in SCALARS for value in values):
        raise ValueError(f"no JSON schema for the values of {hint}")
    names = list(dict.fromkeys(SCALARS[type(value)] for value in values))
    return {"type": names[0] if len(names) == 1 else names, "enum": values}


def _of_union(inner: tuple[Any, ...]) -> dict[str, Any]:
    found = [_of_hint(item) for item in inner if item is not type(None)]
    if len(found) == 1:
        schema = found[0]
    elif all(item.keys() == {"type"} and isinstance(item["type"], str) for item in found):
        names = sorted({item["type"] for item in found})
        schema = {"type": names[0] if len(names) == 1 else names}
    else:
        schema = {"anyOf": found}
    return {**schema, "nullable": True} if type(None) in inner else schema
