"""Chats as text: the Jinja templates of checkpoints, rendered in a sandbox as transformers does it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..config import Config
from ..files import parse_json
from .sandbox import run
from .tools import as_schema

END = "CONTINUE_FINAL_MESSAGE_TAG "  # stands behind the message that is to go on, while a template runs
REASONING = ("reasoning_content", "thinking", "reasoning")  # names of one field of a message


def find_template(files: Mapping[str, bytes], settings: Config) -> str | dict[str, str] | None:
    """The checkpoint's template, or several by name; None if there is none. chat_template.jinja comes first, then
    tokenizer_config.json, then chat_template.json."""
    if "chat_template.jinja" in files:
        try:
            return files["chat_template.jinja"].decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"chat_template.jinja: not UTF-8 text ({error.reason} at byte {error.start})") from None
    given, where = settings.get("chat_template"), "tokenizer_config.json"
    if given is None and "chat_template.json" in files:
        where = "chat_template.json"
        values = parse_json(files[where], where)
        given = values.get("chat_template") if isinstance(values, dict) else values
    if given is None or isinstance(given, str):
        return given
    if isinstance(given, list) and all(isinstance(entry, dict) for entry in given):
        given = {entry.get("name"): entry.get("template") for entry in given}
    if isinstance(given, dict) and given and all(isinstance(part, str) for pair in given.items() for part in pair):
        return given
    raise ValueError(f"{where}: chat_template must be a string, or a list of objects with name and template")


def choose(own: str | Mapping[str, str] | None, given: str | None, tools: Any) -> str:
    """The template to use. own: the checkpoint's; given: another, or a name. ValueError: there is none."""
    if isinstance(own, Mapping):
        if given is not None:
            return own.get(given, given)
        name = "tool_use" if tools is not None and "tool_use" in own else "default"
        if name not in own:
            raise ValueError(f"apply_chat_template: name one of the templates {sorted(own)} as chat_template")
        return own[name]
    template = own if given is None else given
    if template is None:
        raise ValueError("apply_chat_template: this model has no chat template; pass one as chat_template")
    return template


def render(
    template: str,
    messages: Any,
    *,
    tools: Sequence[Any] | None = None,
    documents: Sequence[Any] | None = None,
    add_generation_prompt: bool = False,
    continue_final_message: bool | str = False,
    **variables: Any,
) -> str:
    """The text of one chat.

    messages: dictionaries with role and content. tools: JSON schemas of functions, or functions.
    continue_final_message: end inside the last message, so that the model goes on with it; a string names another of
    its fields than content. The template sees plain copies of everything. ValueError: it fails, or does too much;
    TypeError: a message is none.
    """
    if continue_final_message and add_generation_prompt:
        raise ValueError("apply_chat_template: continue_final_message and add_generation_prompt contradict each other")
    chat = [_message(message) for message in messages]
    if tools is not None:
        tools = [as_schema(tool) for tool in tools]
    final = _mark_end(chat, continue_final_message, template) if continue_final_message else ""
    data = _plain({"tools": tools, "documents": documents, **variables})
    text = run(template, messages=chat, add_generation_prompt=add_generation_prompt, **data)
    if not continue_final_message:
        return text
    tag = END.strip()
    if final.strip() not in text or tag not in text:
        raise ValueError(
            "apply_chat_template: the template does not show the final message as it is, so it cannot go on"
        )
    at = text.rindex(tag)
    kept = text[at : at + len(END)] == END  # otherwise the template strips the message
    return text[:at] if kept else text[:at].rstrip()


def _message(message: Any) -> dict[str, Any]:
    plain = _plain(message)
    if not isinstance(plain, dict):
        raise TypeError(f"apply_chat_template: a message must be a dictionary; got {type(message).__name__}")
    found: dict[str, Any] = {name: value for name, value in plain.items() if value is not None}
    reasoning = next((found[name] for name in REASONING if name in found), None)
    if reasoning is not None:
        found = {"thinking": reasoning, **found, "reasoning_content": reasoning}
    return found


def _mark_end(chat: list[dict[str, Any]], name: bool | str, template: str) -> str:
    """Put END behind the last message; returns the message."""
    name = name if isinstance(name, str) else "content"
    final = chat[-1].get(name) if chat else None
    if final is None:
        raise ValueError(f"apply_chat_template: the final message has no {name!r} to go on with")
    fields = [name]
    if name in REASONING:
        fields = [field for field in REASONING if chat[-1].get(field) == final]
    if not any(field in template for field in fields):
        raise ValueError(f"apply_chat_template: the template does not use {name!r}")
    if isinstance(final, list):
        for block in reversed(final):
            if isinstance(block, dict) and isinstance(block.get("text"), str):
                text: str = block["text"]
                block["text"] += END
                return text
        raise ValueError("apply_chat_template: the final message has no text to go on with")
    if not isinstance(final, str):
        raise ValueError(f"apply_chat_template: {name!r} of the final message is no text")
    for field in fields:
        chat[-1][field] += END
    return final


def _plain(value: Any) -> Any:
    """A copy made of JSON's types, because objects have methods that a sandbox cannot judge; others become their
    type's name."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    for kind in (str, int, float):  # enums and the like
        if isinstance(value, kind):
            return kind.__str__(value) if kind is str else kind(value)
    if isinstance(value, Mapping):
        return {_plain(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, tuple):
        return tuple(_plain(item) for item in value)
    if isinstance(value, np.generic):
        return _plain(value.item())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if callable(getattr(value, "model_dump", None)):
        return _plain(value.model_dump())
    return f"<{type(value).__name__}>"
