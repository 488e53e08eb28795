"""Where a dotted name stands in the engine: so that a lesson names functions, and never files and lines."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
NAMED = r"^([-*] )`(tinyllm\.[\w.]+)`"  # a line of a lesson's "Now read"


def found(name: str) -> tuple[ModuleType, str]:
    """The module of a dotted name, and what of it is meant ("" is the whole)."""
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            module = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        thing: Any = module
        for part in parts[cut:]:
            thing = getattr(thing, part)  # an AttributeError names it
        home, inner = getattr(thing, "__module__", None), ".".join(parts[cut:])
        if inner and home:  # passed on from another module, or inherited
            return importlib.import_module(home), getattr(thing, "__qualname__", inner)
        return module, inner
    raise ModuleNotFoundError(f"there is no {name}")


def place(name: str) -> tuple[str, str, int, int]:
    """The module, what of it is meant, and the first and last line of its text."""
    module, inner = found(name)
    nodes: Any = ast.parse(inspect.getsource(module))
    first, last = 1, inspect.getsource(module).count("\n")
    for part in inner.split(".") if inner else []:
        nodes = next(node for node in nodes.body if part in _names(node))
        first, last = nodes.lineno, nodes.end_lineno
    return module.__name__, inner, first, last


def _names(node: ast.stmt) -> list[str]:
    """What a statement defines."""
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [target.id for target in targets if isinstance(target, ast.Name)] + [getattr(node, "name", "")]


def resolved(markdown: str) -> str:
    """The text with file, lines and a link for every name of its list "Now read"."""
    if "## Now read" not in markdown:
        return markdown
    before, head, after = markdown.partition("## Now read")

    def linked(match: re.Match[str]) -> str:
        module, inner, first, last = place(match[2])
        file = Path(importlib.import_module(module).__file__ or "").relative_to(ROOT).as_posix()
        page = f"../_modules/{module.replace('.', '/')}.html" + (f"#{inner}" if inner else "")
        return f'{match[1]}<a href="{page}"><code>{match[2]}</code></a> ({file}, lines {first} to {last})'

    return before + head + re.sub(NAMED, linked, after, flags=re.MULTILINE)
