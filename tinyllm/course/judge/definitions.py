"""What is taken from what a student hands in: imports, functions and classes at the top, and nothing else is run."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator

TAKEN = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def definitions(source: str, file: str) -> ast.Module:
    """The tree of what is taken, its line numbers as they were.

    Raises
    ------
    SyntaxError
        If it is no Python.
    """
    tree = ast.parse(source, file)
    return ast.Module([node for node in tree.body if isinstance(node, TAKEN)], [])


def remarks(source: str) -> Iterator[str]:
    """What somebody should be told whose text is read so: names defined twice, and constants that are not taken."""
    tree = ast.parse(source)
    taken = [node for node in tree.body if isinstance(node, TAKEN)]
    names = [node.name for node in taken if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))]
    for name in dict.fromkeys(n for n in names if names.count(n) > 1):
        yield f"{name} is defined {names.count(name)} times: the last one counts."
    left = _named([node for node in tree.body if not isinstance(node, TAKEN)], ast.Store)
    used = _named(taken, ast.Load)
    for name in sorted(left & used - set(names)):
        yield f"{name} is set outside of every function, and only imports, functions and classes are taken: move it in."


def _named(nodes: Iterable[ast.AST], context: type) -> set[str]:
    walked = (t for node in nodes for t in ast.walk(node))
    return {t.id for t in walked if isinstance(t, ast.Name) and isinstance(t.ctx, context)}
