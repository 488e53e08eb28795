"""Change the exercises' right answers in one place each, and see which changes no property notices.

    python tools/mutants.py [EXERCISE ...] [--cases 100]

A survivor is a gap in the properties, unless it is the same function. Those that are stand in `EQUAL`, with the reason.
The exit status is 1 if there are others.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import sys
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

from tinyllm.course.exercise import Exercise, Wrong
from tinyllm.course.exercises import EXERCISES
from tinyllm.course.judge.rooms import Here
from tinyllm.course.judge.trial import Ending, Outcome, cases_of, one

SWAPS: dict[type, type] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult, ast.LShift: ast.RShift, ast.RShift: ast.LShift, ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd, ast.And: ast.Or, ast.Or: ast.And, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
DROPPED = (ast.Assign, ast.AugAssign, ast.Expr, ast.If, ast.Break, ast.Continue)

# Changes that change nothing, by exercise and the changed line, and why.
SHORTCUT, SAME, SHAPE = "it only saves time", "the two agree where they differ", "any array of the list has that shape"
EQUAL: dict[tuple[str, str], str] = {
    ("01-deep", "if name in done:\n    continue -> dropped"): SHORTCUT,
    ("01-deep", "continue -> dropped"): SHORTCUT,
    ("02-transposed", "1 -> 2"): "reshape takes any negative number for the side that it finds out",
    ("02-transposed", "0 -> -1"): SHAPE,
    ("02-transposed", "abs(y[place] - (row * x).sum()) > 1e-09 -> abs(y[place] - (row * x).sum()) >= 1e-09"): SAME,
    ("03-clip", "norm > max_norm -> norm >= max_norm"): "the factor is 1 there",
    ("03-clip", "1 -> 2"): "reshape takes any negative number for the side that it finds out",
    ("05-bpe", "0 -> 1"): "all pairs are counted once too often",
    ("05-bpe", "0 -> -1"): "all pairs are counted once too seldom",
    ("05-roundtrip", "256 -> 257"): "no byte is 256",
    ("06-header", "len(data) < 8 -> len(data) <= 8"): "an empty header is refused by json",
    ("06-header", "8 -> 9"): "an empty header is refused by json",
    ("06-header", "8 -> 7"): "no header is that long",
    ("06-round", "64 -> 65"): "any digits make a NaN",
    ("06-round", "64 -> 63"): "any digits make a NaN",
    ("12-symptom", "held[0] > base + 0.1 -> held[0] >= base + 0.1"): "0.1 is no float: neither is asked",
    ("12-symptom", "held[-1] > min(held) + 0.2 -> held[-1] >= min(held) + 0.2"): "0.2 is no float: neither is asked",
    ("12-leak", "len(train) - n -> len(train) + n"): "a piece that is shorter than n is no run of n",
    ("12-leak", "1 -> 2"): "a piece that is shorter than n is no run of n",
}


def places(tree: ast.AST) -> Iterator[tuple[ast.AST, str, Callable[[], None], Callable[[], None]]]:
    """What can be changed: a node, what becomes of it, and how to do and undo it."""
    for node in ast.walk(tree):
        for name, op in [(n, getattr(node, n, None)) for n in ("op", "ops")]:
            old = op[0] if isinstance(op, list) and op else op
            if type(old) in SWAPS:
                new = SWAPS[type(old)]()
                yield node, type(new).__name__, *_swapped(node, name, old, new)
        if isinstance(node, ast.Constant) and type(node.value) in (int, float):
            for value in (node.value + 1, node.value - 1):
                yield node, str(value), *_set(node, "value", node.value, value)
        for field in ("body", "orelse"):
            body = getattr(node, field, None)
            for i, line in enumerate(body if isinstance(body, list) else []):
                if isinstance(line, DROPPED) and not _is_text(line):
                    yield line, "dropped", *_dropped(body, i, line)


def _is_text(line: ast.AST) -> bool:
    return isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant)


def _set(node: ast.AST, name: str, old: Any, new: Any) -> tuple[Callable[[], None], Callable[[], None]]:
    return lambda: setattr(node, name, new), lambda: setattr(node, name, old)


def _swapped(node: ast.AST, name: str, old: Any, new: Any) -> tuple[Callable[[], None], Callable[[], None]]:
    if name == "op":
        return _set(node, "op", old, new)
    ops = node.ops  # type: ignore[attr-defined]
    return lambda: ops.__setitem__(0, new), lambda: ops.__setitem__(0, old)


def _dropped(body: list, i: int, line: ast.AST) -> tuple[Callable[[], None], Callable[[], None]]:
    return lambda: body.__setitem__(i, ast.Pass(lineno=1, col_offset=0)), lambda: body.__setitem__(i, line)


def mutants(function: Callable) -> Iterator[tuple[str, Callable]]:
    """The function changed in one place, each with the line that says where."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    for node in ast.walk(tree):
        for name in ("annotation", "returns"):
            if getattr(node, name, None) is not None and not isinstance(node, ast.AnnAssign):
                setattr(node, name, None)
    for node, what, do, undo in list(places(tree)):
        before = ast.unparse(node)
        do()
        space = dict(function.__globals__)
        text = f"{before} -> {ast.unparse(node) if what != 'dropped' else what}"
        try:
            exec(compile(ast.fix_missing_locations(tree), "mutant", "exec"), space)
        finally:
            undo()
        yield text, space[function.__name__]


def survives(exercise: Exercise, function: Callable, cases: dict[str, list[tuple]]) -> bool:
    room = Here({exercise.function: function}, seconds=1)
    for tested in exercise.properties:
        for case in cases[tested.name]:
            try:
                one(exercise, tested, room, case, Outcome(tested))
            except (Wrong, Ending):
                return False
    return True


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("exercises", nargs="*", help="by default all")
    parser.add_argument("--cases", type=int, default=100, help="of each property")
    args = parser.parse_args(arguments)
    left = 0
    for id in args.exercises or EXERCISES:
        exercise = EXERCISES[id]
        cases = {p.name: cases_of(p, 0, args.cases) for p in exercise.properties}
        found = list(mutants(exercise.reference))
        alive = [text for text, function in found if survives(exercise, function, cases)]
        others = [text for text in alive if (id, text) not in EQUAL]
        left += len(others)
        print(f"{id}: {len(found)} changes, {len(alive)} unnoticed, {len(others)} of them unexplained", flush=True)
        print("".join(f"    {text}\n" for text in others), end="", flush=True)
    return int(left > 0)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
