"""Chat templates: as transformers renders them, and templates that mean harm."""

from __future__ import annotations

import itertools
import json
import re
import sys
import time
import types
from typing import Any

import pytest
import tool_functions
from qkv.config import Config
from qkv.text import Tokenizer
from qkv.tokenization import chat, sandbox
from text_checks import files_of, open_case, recorded

pytest.importorskip("tokenizers", reason="text needs the extra `text`")
CHATS = recorded("chats")


@pytest.fixture
def chatting() -> Tokenizer:
    return open_case("bert", bos_token="[CLS]", eos_token="[SEP]")


@pytest.mark.parametrize("k", range(len(CHATS)))
def test_chats(k: int, chatting: Tokenizer) -> None:
    case = CHATS[k]
    messages = json.loads(json.dumps(case["messages"]))
    options = {"chat_template": case["template"], **case["options"]}
    if case["text"] is None:
        with pytest.raises(ValueError, match=r"^chat template"):
            chatting.apply_chat_template(messages, **options)
        return
    assert chatting.apply_chat_template(messages, tokenize=False, **options) == case["text"]
    assert chatting.apply_chat_template(messages, return_dict=False, **options) == case["ids"]
    assert messages == case["messages"]  # they are the caller's


def test_where_templates_come_from(chatting: Tokenizer) -> None:
    message = [{"role": "user", "content": "x"}]
    own = {"tokenizer_config.json": json.dumps({"chat_template": "config"}).encode()}
    named = [{"name": "default", "template": "one"}, {"name": "tool_use", "template": "two"}]
    forms: list[tuple[dict[str, bytes], dict[str, Any], str]] = [
        (own, {}, "config"),
        ({**own, "chat_template.jinja": b"file"}, {}, "file"),
        ({"chat_template.json": b'{"chat_template": "json"}'}, {}, "json"),
        ({"tokenizer_config.json": json.dumps({"chat_template": named}).encode()}, {}, "one"),
        ({"tokenizer_config.json": json.dumps({"chat_template": named}).encode()}, {"tools": [{}]}, "two"),
        (
            {"tokenizer_config.json": json.dumps({"chat_template": named}).encode()},
            {"chat_template": "tool_use"},
            "two",
        ),
        (own, {"chat_template": "given"}, "given"),
    ]
    for files, options, text in forms:
        tokenizer = Tokenizer.from_files({**files_of("wordpiece"), **files}, Config({"model_type": "bert"}), None)
        assert tokenizer.apply_chat_template(message, tokenize=False, **options) == text
    with pytest.raises(ValueError, match="this model has no chat template"):
        chatting.apply_chat_template(message)


def test_several_chats(chatting: Tokenizer) -> None:
    chats = [[{"role": "user", "content": "the fox"}], [{"role": "user", "content": "the quick brown fox"}]]
    options: dict[str, Any] = {"chat_template": "{{ messages[0].content }}"}
    assert chatting.apply_chat_template(chats, tokenize=False, **options) == ["the fox", "the quick brown fox"]
    rows = chatting.apply_chat_template(chats, return_dict=False, **options)
    assert rows == [e.ids for e in chatting.encode_batch(["the fox", "the quick brown fox"], add_special_tokens=False)]
    batch = chatting.apply_chat_template(chats, padding=True, return_tensors="np", **options)
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (2, len(rows[1]))
    assert batch["attention_mask"].sum(axis=1).tolist() == [len(row) for row in rows]
    cut = chatting.apply_chat_template(chats, truncation=True, max_length=1, return_dict=False, **options)
    assert cut == [row[:1] for row in rows]
    for bad, message in (
        ({"add_generation_prompt": True, "continue_final_message": True}, "contradict each other"),
        ({"return_tensors": "np"}, "need padding=True"),
        ({"return_tensors": "pt", "padding": True}, 'return_tensors must be "np"'),
        ({"return_assistant_tokens_mask": True}, "return_assistant_tokens_mask is not supported"),
        ({"tools": [len]}, "tools must be JSON schemas"),
    ):
        with pytest.raises(ValueError, match=message):
            chatting.apply_chat_template(chats, **options, **bad)
    with pytest.raises(ValueError, match="at least one message"):
        chatting.apply_chat_template([], **options)
    with pytest.raises(TypeError, match="a message must be a dictionary; got str"):
        chatting.apply_chat_template(["x"], **options)


HOSTILE = {
    "attributes": "{{ messages.__class__.__base__.__subclasses__() }}",
    "a function's globals": "{{ raise_exception.__globals__ }}",
    "a namespace's own": "{{ namespace(__class__=1) }}",
    "format": "{{ '{0.__class__}'.format(1) }}",
    "a file": "{% include '/etc/passwd' %}",
    "an import": "{% import 'os' as os %}",
    "much": "{{ 'x' * 10 ** 10 }}",
    "much in a list": "{{ [0] * 10 ** 10 }}",
    "a large number": "{{ 9 ** (9 ** 9) }}",
    "a large product": "{% set n = namespace(x=9 ** 9) %}{% for i in range(99) %}{% set n.x = n.x * n.x %}{% endfor %}",
    "much by format": "{{ '%999999999d' % 1 }}",
    "doubling": "{% set ns = namespace(x='x') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "doubling by +": "{% set ns = namespace(x='x') %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "doubling in a block": "{% set ns = namespace(x='x') %}{% for i in range(99) %}"
    "{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}{% endfor %}",
    "a long range": "{{ range(10 ** 9) | list }}",
    "loops in loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "loops that find nothing": "{% for a in range(9999) %}{% for b in range(9999) if b < 0 %}{% endfor %}{% endfor %}",
    "recursion": "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}",
    "branching recursion": "{% macro f(n) %}{% if n %}{{ f(n - 1) ~ f(n - 1) }}{% endif %}{% endmacro %}{{ f(99) }}",
    "nesting": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "lorem": "{{ lipsum(10 ** 9) }}",
    "much by a filter": "{{ 'x' | center(10 ** 8) }}",
    "much by a method": "{{ 'x'.center(10 ** 8) }}",
    "many bytes": "{{ 'x'.encode() }}",
    "much by replacing": "{% set x = 'x' * 9999 %}{{ x.replace('x', x) | length }}",
    "much by replacing in a filter": "{% set x = 'x' * 9999 %}{{ x | replace('', x) | length }}",
    "much by joining": "{% set x = 'x' * 9999 %}{{ x.join(x) | length }}",
    "much by joining in a filter": "{% set x = 'x' * 9999 %}{{ x | join(x) | length }}",
    "much by str.format": "{{ '{:>99999999}'.format(1) | length }}",
    "much by str.format again": "{% set x = 'x' * 9999 %}{{ ('{0}' * 9999).format(x) | length }}",
    "a width in a value": "{{ '{:>{}}'.format(1, 99999999) | length }}",
    "a width for a filter": "{{ '%*d' | format(99999999, 1) | length }}",
    "much by concatenation": "{% set x = 'x' * 10 ** 6 %}{{ (" + "x ~ " * 50 + "x) | length }}",
    "much by indentation": "{{ [1] | tojson(indent=10 ** 8) | length }}",
    "much by separators": "{% set x = 'x' * 9999 %}{{ range(9999) | list | tojson(separators=(x, x)) | length }}",
    "many items": "{{ [1] | batch(10 ** 8, 1) | list | length }}",
    "many items of one": "{% set x = 'x' * 10 ** 6 %}{{ range(50) | map('replace', 1, x) | list | length }}",
    "a list of itself": "{% set ns = namespace(x=1) %}{% for i in range(99) %}"
    "{% set ns.x = [ns.x, ns.x] %}{% endfor %}",
    "a dictionary of itself": "{% set ns = namespace(x=1) %}{% for i in range(99) %}"
    "{% set ns.x = {'a': ns.x, 'b': ns.x} %}{% endfor %}",
    "much output": "{% set x = 'x' * 10 ** 6 %}{% for i in range(99) %}{{ x }}{% endfor %}",
    "much output of a macro": "{% set x = 'x' * 10 ** 6 %}{% macro f() %}{% for i in range(99) %}{{ x }}{% endfor %}"
    "{% endmacro %}{{ f() | length }}",
    "a large power": "{{ 15 | round(10 ** 7, 'ceil') }}",
    "tests in a filter": "{% set l = range(99999) | list %}{{ l | select('in', l) | list | length }}",
    "what Python cannot compile": "{% if a %}" + "{% elif a %}" * 20_000 + "{% endif %}",
    "a sum of lists": "{{ range(99999) | batch(1) | sum(start=[]) | length }}",
    "an attribute of attributes": "{{ range(99999) | map('string') | sort(attribute='0.' * 9999 ~ '0') | length }}",
    # multiples of 2 ** 61 - 1, whose hashes are all 0
    "keys alike": "{{ dict(range(0, 230584300921369395100000, 2305843009213693951) | batch(2)) | length }}",
    "keys alike of a namespace": "{{ namespace(range(0, 230584300921369395100000, 2305843009213693951) | batch(2)) }}",
    "keys alike by a method": "{{ {}.fromkeys(range(0, 230584300921369395100000, 2305843009213693951)) }}",
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_templates(what: str, chatting: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "MAX_SECONDS", 0.5)
    begun = time.monotonic()
    try:
        text = chatting.apply_chat_template(
            [{"role": "user", "content": "x"}], chat_template=HOSTILE[what], tokenize=False
        )
        assert what in ("a function's globals", "format") and text == ""  # what is forbidden there is undefined
    except ValueError as error:
        assert re.match(r"chat template( \(line 1\))?: .+", str(error))
    assert time.monotonic() - begun < 10


@pytest.mark.parametrize("k", range(len(tool_functions.GOOD)))
def test_functions_as_tools(k: int, chatting: Tokenizer) -> None:
    """The schemas of transformers, in the same order of their names: templates write them as they stand."""
    function, expected = tool_functions.GOOD[k], recorded("tools")[k]
    options: dict[str, Any] = {"chat_template": "{{ tools | tojson }}", "tokenize": False}
    message = [{"role": "user", "content": "x"}]
    assert chatting.apply_chat_template(message, tools=[function], **options) == json.dumps([expected])
    assert chatting.apply_chat_template(message, tools=[expected], **options) == json.dumps([expected])


@pytest.mark.parametrize(
    ("function", "message"),
    list(
        zip(
            tool_functions.BAD,
            (
                "it has no docstring",
                "the argument a has no type hint",
                "the docstring has no text for the argument b",
                "no JSON schema for the type hint .*Own",
                "no JSON schema for the type hint .*Tuple",
                "name 'Missing' is not defined",
                "the choices of a are no JSON list",
            ),
            strict=True,
        )
    ),
)
def test_functions_that_say_too_little(function: Any, message: str, chatting: Tokenizer) -> None:
    with pytest.raises(ValueError, match=f"apply_chat_template: the tool {function.__name__}: {message}"):
        chatting.apply_chat_template([{"role": "user", "content": "x"}], tools=[function], chat_template="x")


LONG = "it has texts that are too long for what it does with them"
BITS = "it makes an integer of more than 10000 bits"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ ('a' * 99999) | wordwrap(1) }}", LONG),
        ("{{ (' ' * 99999) | wordwrap(width=1) }}", LONG),
        ("{{ ('a' * 999999) | wordwrap }}", LONG),
        ("{{ ('<a>' * 99999) | striptags }}", LONG),
        ("{{ ('a' * 99999) | trim('b' * 99999 ~ 'a') }}", LONG),
        ("{{ ('a' * 99999).strip('b' * 99999 ~ 'a') }}", LONG),
        ("{{ ('a' * 99999).rfind('ab' ~ 'a' * 50000) }}", LONG),
        ("{{ ('a' * 99999).rsplit(sep='ab' ~ 'a' * 50000) }}", LONG),
        ("{{ 9 ** 2400000 // 7 ** 1200000 }}", BITS),
        ("{{ ('1' * 10001) | int(base=2) }}", BITS),
    ],
)
def test_the_square_of_a_length_is_refused(template: str, message: str) -> None:
    """Before it is computed: nothing in it would look at the clock."""
    with pytest.raises(ValueError, match=f"^chat template: {message}$"):
        chat.render(template, [])


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{ ('a' * 20000) | wordwrap(1) }}", "\n".join("a" * 20_000)),
        ("{{ ('a b ' * 99999) | wordwrap(3) | length }}", str(4 * 99_999 - 1)),
        ("{{ ('x' * 999999 ~ '</think> y').rsplit('</think>', 1)[1] | trim }}", "y"),
        ("{{ ('<b>x</b>' * 99) | striptags }}", "x" * 99),
        ("{{ (' ' * 999999 ~ 'x').strip(' \n') }}", "x"),
        ("{{ [[1], [2, 3]] | sum(start=[]) }}{{ [1, 2] | sum }}", "[1, 2, 3]3"),
        ("{{ 7 ** 3000 // 7 ** 2999 }}", "7"),
        ("{{ dict([('a', 1)], b=2) }}{{ dict({'a': 1}) }}", "{'a': 1, 'b': 2}{'a': 1}"),
        ("{% set n = namespace([('a', 1)], self=2) %}{{ n.a }}{{ n.self }}", "12"),
    ],
)
def test_what_is_within_the_limits(template: str, text: str) -> None:
    assert chat.render(template, []) == text


@pytest.mark.parametrize(
    "template",
    ["{{ pairs | sum(start=[]) }}", "{{ pairs | sort(attribute='0') }}", "{{ dict(pairs) }}", "{{ namespace(pairs) }}"],
)
def test_the_clock_is_looked_at_for_each_item(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within one call."""
    looks = itertools.count()
    monkeypatch.setattr(sandbox, "time", types.SimpleNamespace(monotonic=lambda: next(looks)))
    monkeypatch.setattr(sandbox, "MAX_SECONDS", 1000)
    chat.render(template, [], pairs=[["a", 1]] * 10)
    few = next(looks)
    chat.render(template, [], pairs=[["a", 1]] * 100)
    assert next(looks) - few > few + 80


def test_long_texts_are_not_too_much(chatting: Tokenizer) -> None:
    messages = [{"role": "user", "content": "a {} 12345678 % line\n" * 50_000}] * 3
    template = (
        "{% set ns = namespace(x='', l=[]) %}{% for m in messages %}{% set ns.l = ns.l + [m.content] %}"
        "{% set ns.x = ns.x ~ '<' + m.content | trim | replace('{}', '[tool]') ~ '>' %}{% endfor %}"
        "{{ ns.x }}{{ ns.l | join }}{{ '{}'.format(ns.x) }}{{ '%s' % ns.x }}{{ ns.l | tojson }}{{ ns.x | indent(2) }}"
        "{{ ns.x | wordwrap(99) }}"
    )
    text = chatting.apply_chat_template(messages, chat_template=template, tokenize=False)
    one = messages[0]["content"]
    all_three = f"<{one.strip()}>".replace("{}", "[tool]") * 3
    parts = [
        all_three,
        one * 3,
        all_three,
        all_three,
        json.dumps([one] * 3),
        all_three.replace("\n", "\n  "),
        all_three,
    ]
    assert text == "".join(parts)


def test_without_tokenizers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    for case in ("bert", "gpt2", "t5", "albert", "mbart", "llama"):
        with pytest.raises(ImportError, match=r'needs the tokenizers package: pip install "qkv\[text\]"'):
            open_case(case)
    values = {"model": "gpt2", "pre": "gpt-2", "tokens": ["a", "aa"], "merges": ["a a"]}
    with pytest.raises(ImportError, match="needs the tokenizers package"):
        files = {"tokenizer.gguf.json": json.dumps(values).encode()}
        Tokenizer.from_files(files, Config({"model_type": "llama"}), None)
    assert open_case("ctrl").rows(["x"])  # has no need of it


def test_without_the_packages(chatting: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("jinja2", "sentencepiece", "sacremoses"):
        monkeypatch.setitem(sys.modules, module, None)
    sandbox._compile.cache_clear()
    sandbox._environment.cache_clear()
    with pytest.raises(ImportError, match=r'jinja2 package, 3.1.6 or later: pip install "qkv\[text\]"'):
        chatting.apply_chat_template([{"role": "user", "content": "x"}], chat_template="x")
    with pytest.raises(ImportError, match=r'sentencepiece package: pip install "qkv\[text\]"'):
        open_case("marian")
    with pytest.raises(ImportError, match="pip install sacremoses"):
        open_case("transfo_xl")
    assert open_case("t5").rows(["x"])  # needs neither
