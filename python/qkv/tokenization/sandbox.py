"""Jinja templates of anybody in a sandbox, with limits on the time they take and the size of what they make."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import importlib.metadata
import json
import math
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any

MAX_SECONDS = 30  # that a template may take
MAX_SIZE = 10_000_000  # characters and items of a value that a template makes, all that it holds included
MAX_NUMBER = 1000  # as a width, precision or indentation
MAX_BITS = 10_000  # of an integer: division takes their square
MAX_WORK = 1_000_000_000  # characters that one call may read or copy, where that is a product: less than a second
# of strings and numbers: they make as much text as they are asked for, or bytes, which are no text
UNSAFE_METHODS = {"center", "encode", "expandtabs", "format_map", "ljust", "rjust", "to_bytes", "translate", "zfill"}
UNSAFE_METHODS |= {"fromkeys"}  # keys that all have the same hash take the square of their number
FROM_THE_END = ("rfind", "rindex", "rpartition", "rsplit")  # Python compares the whole part at each place
WITH_NUMBERS = ("batch", "center", "indent", "round", "slice", "wordwrap")  # filters


@dataclasses.dataclass
class _Limits:
    """What is left to a template while it runs. characters: of its output, of macros and of blocks together."""

    deadline: float = math.inf
    characters: int = 4 * MAX_SIZE


_limits: ContextVar[_Limits] = ContextVar("_limits")


def run(template: str, **variables: Any) -> str:
    """The text of a template that sees plain data. ValueError: it fails, or does too much; ImportError: no jinja2."""
    jinja2 = _import_jinja2()
    token = _limits.set(_Limits(time.monotonic() + MAX_SECONDS))
    try:
        return str(_compile(template).render(**variables))
    except RecursionError:
        raise ValueError("chat template: it is nested too deeply") from None
    except Exception as error:  # of the template, which is anybody's
        where = f" (line {error.lineno})" if isinstance(error, jinja2.TemplateSyntaxError) else ""
        raise ValueError(f"chat template{where}: {str(error) or type(error).__name__}") from None
    finally:
        _limits.reset(token)


def _import_jinja2() -> Any:
    advice = 'chat templates need the jinja2 package, 3.1.6 or later: pip install "qkv[text]"'
    try:
        import jinja2
        import jinja2.ext
        import jinja2.nodes
        import jinja2.sandbox
        import jinja2.visitor
    except ImportError:
        raise ImportError(advice) from None
    parts = importlib.metadata.version("jinja2").split(".")[:3]
    if [int(part) for part in parts if part.isdigit()] < [3, 1, 6]:
        raise ImportError(advice)  # templates can break out of the sandboxes before
    return jinja2


@functools.lru_cache(maxsize=16)
def _compile(template: str) -> Any:
    """A template as code that stops when it takes too long or makes something too large."""
    environment = _environment()
    tree = _guarded(environment.parse(template))
    code = environment.compile(tree)
    return environment.template_class.from_code(environment, code, environment.make_globals(None))


def _guarded(tree: Any) -> Any:
    """The same template with a call of `step` in each round of a loop and each macro, of `emit` for all that it writes,
    and of `together` and `fits` where it makes strings, lists and dictionaries."""
    jinja2 = _import_jinja2()
    nodes = jinja2.nodes

    def call(name: str, *arguments: Any) -> Any:
        return nodes.Call(nodes.EnvironmentAttribute(name), list(arguments), [], None, None)

    class Guard(jinja2.visitor.NodeTransformer):  # type: ignore[misc, name-defined]
        def visit_For(self, node: Any) -> Any:
            node = self.generic_visit(node)
            if node.test is not None:
                node.test = nodes.And(call("step"), node.test)
            node.body.insert(0, nodes.ExprStmt(call("step")))
            return node

        def visit_Macro(self, node: Any) -> Any:
            node = self.generic_visit(node)
            node.body.insert(0, nodes.ExprStmt(call("step")))
            return node

        def visit_Output(self, node: Any) -> Any:
            node = self.generic_visit(node)
            node.nodes = [call("emit", part) for part in node.nodes]
            return node

        def visit_Concat(self, node: Any) -> Any:
            return call("together", *self.generic_visit(node).nodes)

        def visit_List(self, node: Any) -> Any:
            return call("fits", self.generic_visit(node))

        visit_Dict = visit_List

        def visit_Tuple(self, node: Any) -> Any:
            node = self.generic_visit(node)
            return call("fits", node) if node.ctx == "load" else node

    guarded = Guard().visit(tree)
    guarded.set_environment(tree.environment)
    for node in guarded.find_all(nodes.Node):
        node.lineno = node.lineno or 1
    return guarded


@functools.lru_cache(maxsize=1)
def _environment() -> Any:
    jinja2 = _import_jinja2()

    class Generation(jinja2.ext.Extension):  # type: ignore[misc, name-defined]
        """{% generation %} marks what an assistant wrote; it shows nothing of its own."""

        tags = frozenset({"generation"})

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.Scope(body).set_lineno(line)

    class Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):  # type: ignore[misc, name-defined]
        intercepted_binops = frozenset({"+", "*", "**", "%"})

        def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
            return attr not in UNSAFE_METHODS and bool(super().is_safe_attribute(obj, attr, value))

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            sizes = [_size(v) if isinstance(v, (str, list, tuple)) else v for v in (left, right)]
            if operator == "*" and all(isinstance(s, int) for s in sizes) and abs(sizes[0] * sizes[1]) > 2**64:
                raise ValueError("it multiplies to something too large")
            if operator == "*" and not all(isinstance(v, (int, float)) for v in (left, right)):
                _check(sizes[0] * sizes[1])
            if operator == "**" and isinstance(left, int) and isinstance(right, int):
                _check_bits(right * (left.bit_length() - 1))
            if operator == "%" and isinstance(left, str):
                _check_format(left, right, "%", named=isinstance(right, dict))
            return _fits(super().call_binop(context, operator, left, right))

        def getitem(self, obj: Any, argument: Any) -> Any:
            _step()  # in the filters too that take an attribute, such as sort
            return super().getitem(obj, argument)

        def call(__self, __context: Any, __obj: Any, *args: Any, **values: Any) -> Any:
            method = getattr(__obj, "__wrapped__", __obj)  # of str.format, which the sandbox wraps
            owner = getattr(method, "__self__", None)
            if owner is __self:
                return __context.call(__obj, *args, **values)
            _step()
            if isinstance(owner, str):
                named = {name: value for name, value in values.items() if not name.startswith("_")}  # not Jinja's own
                args = _checked(method.__name__, owner, args, named)
            return _fits(super().call(__context, __obj, *args, **values))

        def step(self) -> bool:
            return _step()

        def emit(self, value: Any) -> Any:
            limits = _limits.get()
            limits.characters -= _size(value)
            if limits.characters < 0:
                raise ValueError("it writes too much")
            return value

        def together(self, *values: Any) -> str:
            texts = [str(value) for value in values]
            _size(texts)
            return "".join(texts)

        def fits(self, value: Any) -> Any:
            return _fits(value)

    class Namespace(jinja2.utils.Namespace):  # type: ignore[misc, name-defined]
        """Without names that begin with _, which Python's own attributes do."""

        def __init__(*args: Any, **values: Any) -> None:
            self, *others = args  # so that self may be a name in it
            names = as_dict(*others, **values)
            for name in names:
                _refuse_private(name)
            jinja2.utils.Namespace.__init__(self, names)

        def __setitem__(self, name: str, value: Any) -> None:
            _refuse_private(name)
            super().__setitem__(name, value)

    def as_dict(*pairs: Any, **values: Any) -> dict[Any, Any]:
        return dict(*(given if isinstance(given, dict) else _bounded(iter(given)) for given in pairs), **values)

    def fail(message: Any = "") -> Any:
        raise jinja2.TemplateError(str(message))

    def as_json(
        value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
    ) -> str:
        """Without the escapes for HTML that Jinja's own filter makes."""
        _check_numbers([indent, *(separators or ())])
        encoder = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
        size, parts = 0, []
        for part in encoder.iterencode(value):
            size += len(part)
            _check(size)
            parts.append(part)
        return "".join(parts)

    environment = Environment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols])
    environment.filters["tojson"] = as_json
    for name in ("pprint", "urlize"):  # for people who read, not for models
        environment.filters.pop(name)
    environment.filters = {name: _guarded_filter(name, used) for name, used in environment.filters.items()}
    environment.tests = {name: _guarded_test(used) for name, used in environment.tests.items()}
    environment.globals.pop("lipsum")  # makes any amount of text
    environment.globals.update(
        raise_exception=fail,
        strftime_now=lambda form: datetime.datetime.now().strftime(form),
        dict=as_dict,
        namespace=Namespace,
    )
    return environment


def _refuse_private(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise ValueError(f"{name!r:.99} begins with _, which a namespace must not hold")


# ---- what a template may do


def _step() -> bool:
    if time.monotonic() > _limits.get().deadline:
        raise ValueError(f"it takes more than {MAX_SECONDS} seconds")
    return True


def _check(size: Any) -> None:
    if isinstance(size, (int, float)) and size > MAX_SIZE:
        raise ValueError(f"it makes something of more than {MAX_SIZE} characters or items")


def _check_work(steps: int) -> None:
    if steps > MAX_WORK:
        raise ValueError("it has texts that are too long for what it does with them")


def _check_bits(bits: int) -> None:
    if bits > MAX_BITS:
        raise ValueError(f"it makes an integer of more than {MAX_BITS} bits")


def _check_numbers(values: Sequence[Any]) -> None:
    if any(_width(value) > MAX_NUMBER for value in values):
        raise ValueError(f"a width, precision or indentation is more than {MAX_NUMBER}")


def _width(value: Any) -> int:
    """Of an argument that is a number or the characters themselves."""
    return len(value) if isinstance(value, str) else abs(value) if isinstance(value, int) else 0


def _size(value: Any) -> int:
    """The characters and items of a value and of all that it holds, as often as it holds them."""
    size, values = 0, [value]
    while values:
        item = values.pop()
        if isinstance(item, (str, list, tuple, dict)):
            size += len(item)
        elif isinstance(item, int):
            _check_bits(item.bit_length())
            size += item.bit_length() // 3  # about its digits
        _check(size)
        if isinstance(item, (list, tuple)):
            values.extend(item)
        elif isinstance(item, dict):
            values.extend(item)
            values.extend(item.values())
    return size


def _fits(value: Any) -> Any:
    """The same value. ValueError: it is too large."""
    _size(value)
    return value


def _bounded(items: Iterator[Any]) -> Iterator[Any]:
    """The items, as long as they are not too much together."""
    size = 0
    for item in items:
        _step()
        size += 1 + _size(item)
        _check(size)
        yield item


def _check_format(text: str, values: Any, mark: str, *, named: bool) -> None:
    """What "%" and str.format make. named: values may be used more than once."""
    fields = text if named else " ".join(re.findall(r"%[^a-zA-Z%]*" if mark == "%" else r"\{[^{}]*", text))
    if re.search(r"\*" if mark == "%" else r"\{[^{}]*\{", text):  # values give the width
        fields = f"{text} {' '.join(str(value) for value in _flat(values) if isinstance(value, int))}"
    widths = [int(digits) for digits in re.findall(r"\d+", fields)]
    count = text.count(mark)
    _check(len(text) + count * max(widths, default=0) + _size(values) * (count if named else 1))


def _flat(values: Any) -> list[Any]:
    found = list(values.values()) if isinstance(values, dict) else values
    return [item for value in found for item in _flat(value)] if isinstance(found, (list, tuple)) else [found]


def _checked(name: str, text: str, args: tuple[Any, ...], values: Mapping[str, Any]) -> tuple[Any, ...]:
    """The arguments of a string's method, of which those that may make long strings or take long are checked first."""
    if name == "replace" and len(args) > 1 and all(isinstance(part, str) for part in args[:2]):
        _check(len(text) + text.count(args[0]) * len(args[1]))
    if name == "join" and args:
        items = list(args[0])
        _check(_size(items) + len(text) * len(items))
        return (items,)
    if name == "format":
        _check_format(text, [*args, *values.values()], "{", named=text.count("{") != text.count("{}"))
    if name in ("strip", "lstrip", "rstrip", *FROM_THE_END):
        _check_work(len(text) * sum(len(part) for part in [*args, *values.values()] if isinstance(part, str)))
    if name == "striptags":
        _check_work(len(text) * text.count("<"))  # which older versions of MarkupSafe copy for each tag
    return args


def _guarded_filter(name: str, used: Any) -> Any:
    """A filter that stops when the time is over, and before it makes something too large."""
    own = int(hasattr(used, "jinja_pass_arg"))  # arguments of Jinja's own, before the value

    @functools.wraps(used)
    def guarded(*args: Any, **values: Any) -> Any:
        _step()
        first, (value, *others) = args[:own], args[own:]
        every = [*others, *values.values()]
        if name in WITH_NUMBERS:
            _check_numbers(every)
            if name == "indent":
                _check((str(value).count("\n") + 1) * max((_width(given) for given in every), default=4))
            elif name == "wordwrap":
                text = str(value)
                _check(len(text) * max((_width(given) for given in every if isinstance(given, str)), default=1))
                # textwrap copies the rest of a word, or of spaces, for each line that it makes of it
                width = max(_width(values.get("width", others[0] if others else 79)), 1)
                _check_work(sum(len(run[0]) ** 2 for run in re.finditer(r"\s+|\S+", text)) // width)
        elif name == "replace":
            old, new, *_ = (str(part) for part in [*others, *(values.get(key, "") for key in ("old", "new"))])
            _checked(name, str(value), (old, new), {})
        elif name == "striptags":
            _checked(name, str(value), (), {})
        elif name == "trim":
            _checked("strip", str(value), (*others,), values)
        elif name == "sum":
            value = _bounded(iter(value))  # of lists, each sum is a copy of all
        elif name == "join":
            value = list(value)
            _check(_size(value) + len(value) * len(str(values.get("d", others[0] if others else ""))))
        elif name == "format":
            _check_format(str(value), values or tuple(others), "%", named=bool(values))
        result = used(*first, value, *others, **values)
        return _bounded(result) if isinstance(result, Iterator) else _fits(result)

    return guarded


def _guarded_test(used: Any) -> Any:
    @functools.wraps(used)
    def guarded(*args: Any, **values: Any) -> Any:
        _step()
        return used(*args, **values)

    return guarded
