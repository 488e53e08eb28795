"""Run a chat template, a program from somebody else's checkpoint: Jinja's sandbox, as transformers has it, with bounds.

Jinja's own sandbox keeps a template away from Python's insides, but lets it fill the memory or run for ever. So here
every step that can make something large asks a budget first: loops, calls, filters, operators, literals, slices and
captured output. What chat templates do not need (recursive loops, `str.format`, filters for web pages, ...) is refused.
Imports jinja2: import this file inside a function.
"""

from __future__ import annotations

import datetime
import json
import re
import threading
from collections.abc import Iterable, Mapping
from typing import Any

import jinja2
from jinja2 import ext, nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from tinyllm.data.budget import INTEGER, ITEM, Budget

if tuple(int(part) for part in re.findall(r"\d+", jinja2.__version__)[:3]) < (3, 1, 6):
    raise ImportError(f"jinja2 {jinja2.__version__} has known ways out of its sandbox")

SOURCE = 200_000  # characters of a template; the longest in use have about 20,000

METHODS = {
    str: "capitalize count endswith find index isalnum isalpha isdecimal isdigit islower isnumeric isspace istitle "
    "isupper join lower lstrip partition removeprefix removesuffix replace rfind rindex rpartition rsplit rstrip split "
    "splitlines startswith strip swapcase title upper",
    dict: "get items keys values",
    list: "count index",
    tuple: "count index",
    int: "",
    float: "is_integer",
}
FILTERS = (
    "abs capitalize count d default dictsort e escape first float groupby indent int items join last length list lower "
    "map max min reject rejectattr replace reverse round safe select selectattr sort string title trim unique upper "
    "wordcount"
)


class _Checked(Namespace):
    """`namespace()` whose attributes are weighed when they are set, and may not begin with an underscore."""

    budget: Budget | None = None

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, rest = args[0], args[1:]
        Namespace.__init__(self)
        for name, value in dict(*rest, **kwargs).items():
            self[name] = value

    def __setitem__(self, name: str, value: Any) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise SecurityError(f"it sets the attribute {name!r} of a namespace")
        if _Checked.budget is not None:
            _Checked.budget.weigh(value)
        Namespace.__setitem__(self, name, value)


class _Dict:
    """`dict` without its class: attributes of a type lead out of the sandbox."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args, **kwargs)


class _Generation(ext.Extension):
    """``{% generation %} ... {% endgeneration %}``: remembers what was written inside, as transformers' tag does."""

    tags = {"generation"}

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_remember"), [], [], body).set_lineno(line)

    def _remember(self, caller: Any) -> str:
        text = caller()
        environment: Any = self.environment
        environment.generated.append((environment.written, text))
        return text


class _Guards(NodeTransformer):
    """Put a guard around every loop, concatenation, slice and literal."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        if node.recursive:
            raise SecurityError("it has a recursive loop")
        self.generic_visit(node)
        node.iter = _guard(node.iter, "_each")
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _guard(nodes.List(node.nodes).set_lineno(node.lineno), "_join")

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        return _guard(node, "_made") if isinstance(node.arg, nodes.Slice) else node

    def visit_List(self, node: nodes.List | nodes.Tuple | nodes.Dict) -> nodes.Node:
        self.generic_visit(node)
        constant = all(isinstance(item, nodes.Const) for item in node.items)
        return node if constant or getattr(node, "ctx", "load") != "load" else _guard(node, "_made")

    visit_Tuple = visit_Dict = visit_List

    def visit_ScopedEvalContextModifier(self, node: nodes.Node) -> nodes.Node:
        raise SecurityError("it switches escaping on")


def _guard(node: Any, name: str) -> Any:
    return nodes.Filter(node, name, [], [], None, None).set_lineno(node.lineno)


class Sandbox(ImmutableSandboxedEnvironment):
    """Jinja as chat templates expect it (transformers' settings and globals), inside a budget."""

    intercepted_binops = frozenset(["+", "-", "*", "/", "//", "**", "%"])

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, optimized=False, extensions=[_Generation, ext.loopcontrols]
        )
        self.budget = Budget(0)
        self.generated: list[tuple[int, str]] = []
        self.written = 0
        self.lock = threading.Lock()
        self.concat = self._concat  # type: ignore[method-assign, assignment]
        known = {name: self._filter(name, self.filters[name]) for name in FILTERS.split()}
        own = {"_each": self._each, "_join": self._join, "_made": lambda value: self.budget.made(value)}
        self.filters = {**known, "tojson": self._tojson, **own}
        self.globals = {
            "range": self.globals["range"], "dict": _Dict(), "namespace": _Checked,
            "raise_exception": _raise, "strftime_now": _strftime_now,
        }  # fmt: skip

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        return _Guards().visit(super()._parse(source, name, filename))

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        for kind, methods in METHODS.items():
            if isinstance(obj, kind):
                return attr in methods.split()
        return super().is_safe_attribute(obj, attr, value)

    def unsafe_undefined(self, obj: Any, attribute: str) -> Any:
        raise SecurityError(f"it asks for {attribute!r} of a {type(obj).__name__}")

    def wrap_str_format(self, value: Any) -> None:  # so that `is_safe_attribute` is asked about str.format too
        return None

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        budget = __self.budget
        budget.spend(ITEM)
        _refuse_large([*args, *kwargs.values()])
        text, name = getattr(__obj, "__self__", None), getattr(__obj, "__name__", "")
        if isinstance(text, str) and name == "join":
            args = (__self._fits(args[0], len(text)), *args[1:]) if args else args
        elif isinstance(text, str) and name == "replace" and len(args) >= 2:
            _growth(budget, text, *args[:2])
        return budget.made(super().call(__context, __obj, *args, **kwargs))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        budget = self.budget
        if operator == "**":
            if isinstance(left, int) and isinstance(right, int) and left.bit_length() * right > INTEGER:
                raise SecurityError("it computes a number of more than 100,000 bits")
        elif operator == "*":
            for a, b in ((left, right), (right, left)):
                if isinstance(a, (str, list, tuple)) and isinstance(b, int):
                    budget.allow(max(b, 0) * budget.weigh(a))
        elif operator == "+" and isinstance(left, str) and isinstance(right, str):
            budget.allow(len(left) + len(right))
        elif operator == "%" and isinstance(left, str):
            if re.search(r"%(\([^)]*\))?[^%a-zA-Z]*(\d{3}|\*)", left):
                raise SecurityError("it formats with a great width")
            budget.allow(left.count("%") * budget.weigh(right))
        return budget.made(super().call_binop(context, operator, left, right))

    def _filter(self, name: str, inner: Any) -> Any:
        """One of Jinja's filters with its arguments and its result checked."""
        passed = getattr(inner, "jinja_pass_arg", None) is not None  # the context or the like comes first

        def checked(*args: Any, **kwargs: Any) -> Any:
            self.budget.spend(ITEM)
            value, rest = args[passed], [*args[1 + passed :], *kwargs.values()]
            _refuse_large(rest)
            if name == "join":
                separator = rest[0] if rest and isinstance(rest[0], str) else ""
                attribute = len(rest) > 1 or "attribute" in kwargs
                items = list(value) if attribute else self._fits(value, len(separator))
                self.budget.allow(len(items) * len(separator))
                args = (*args[:passed], items, *args[1 + passed :])
            elif name == "replace" and len(rest) >= 2:
                _growth(self.budget, str(value), str(rest[0]), str(rest[1]))
            elif name == "indent" and rest:
                width = rest[0] if isinstance(rest[0], int) else len(str(rest[0]))
                self.budget.allow((str(value).count("\n") + 1) * width)
            return self.budget.made(inner(*args, **kwargs))

        if passed:
            checked.jinja_pass_arg = inner.jinja_pass_arg  # type: ignore[attr-defined]
        return checked

    def _each(self, value: Iterable[Any]) -> list[Any]:
        items = list(value)
        self.budget.spend(ITEM * (len(items) + 1))
        return items

    def _join(self, parts: Iterable[Any]) -> str:
        return self._concat(str(part) for part in parts)

    def _concat(self, parts: Iterable[str]) -> str:
        parts = list(parts)
        size = sum(map(len, parts))
        self.budget.allow(size)
        self.budget.spend(size + 1)
        return "".join(parts)

    def _fits(self, value: Iterable[Any], separator: int) -> list[Any]:
        items = list(value)
        self.budget.allow(sum(len(item) if isinstance(item, str) else ITEM for item in items) + separator * len(items))
        return items

    def _tojson(
        self, x: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
    ) -> str:
        # Jinja's own escapes for HTML; transformers replaces it with this.
        if any(weight > 16 for weight in map(_width, [indent, *(separators or ())])):
            raise SecurityError("it writes JSON with a great indent")
        self.budget.spend(ITEM)
        text = json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
        return self.budget.made(text)


def render(sandbox: Sandbox, template: jinja2.Template, values: Mapping[str, Any]) -> tuple[str, list[tuple[int, int]]]:
    """The text, and the spans of it that were written inside ``{% generation %}``."""
    with sandbox.lock:
        size = len(json.dumps(values))
        sandbox.budget = _Checked.budget = Budget(size)
        sandbox.generated, sandbox.written = [], 0
        pieces = []
        for piece in template.generate(**values):
            pieces.append(piece)
            sandbox.written += len(piece)
            sandbox.budget.allow(sandbox.written)
            sandbox.budget.spend(len(piece) + 1)
        text = "".join(pieces)
        spans = [(start, start + len(inside)) for start, inside in sandbox.generated if inside]
        if any(text[start : start + len(inside)] != inside for start, inside in sandbox.generated):
            raise TemplateError("its {% generation %} stands inside a macro or a {% set %}, where it has no place")
        return text, spans


def _width(value: Any) -> int:
    return value if isinstance(value, int) else len(value or "")


def _growth(budget: Budget, text: str, old: Any, new: Any) -> None:
    if isinstance(old, str) and isinstance(new, str):
        budget.allow(len(text) + text.count(old) * len(new))


def _refuse_large(values: Iterable[Any]) -> None:
    if any(isinstance(value, int) and abs(value) > INTEGER for value in values):
        raise SecurityError(f"it calls something with a number beyond {INTEGER:,}")


def _raise(message: Any) -> None:
    raise TemplateError(str(message))


def _strftime_now(format: str) -> str:
    if len(format) > 200 or re.search(r"%[^a-zA-Z%]*\d", format):
        raise SecurityError("it formats the date with a width")
    return datetime.datetime.now().strftime(format)
