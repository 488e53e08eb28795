"""The same operation, y = x w^T, in four styles of writing gradients: how long, and what is kept.

    python benchmarks/operation_styles.py            the table of docs/design.md

Each style has the smallest engine that makes it run, and all give the same gradients. What is kept is counted by
following everything that the result refers to; once with both inputs trained, once with
the weight `w` frozen, as in LoRA.
"""

from __future__ import annotations

import gc
import inspect
import sys
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tinyllm.tensor import Tensor, op  # noqa: E402


class Value:
    """Style 1: an operation hangs a closure on its result, which adds into the inputs' gradients (micrograd)."""

    def __init__(self, data, trains=False, inputs=()):
        self.data, self.trains, self.inputs = data, trains or any(x.trains for x in inputs), inputs
        self.grad, self.step = np.zeros_like(data), lambda: None

    def backward(self, g):
        order, seen = [], set()

        def visit(value):
            if value not in seen:
                seen.add(value)
                for x in value.inputs:
                    visit(x)
                order.append(value)

        visit(self)
        self.grad = g
        for value in reversed(order):
            value.step()


def closure(x, w):
    y = Value(x.data @ w.data.T, inputs=(x, w))

    def step():
        if x.trains:
            x.grad += y.grad @ w.data
        if w.trains:
            w.grad += y.grad.T @ x.data

    y.step = step
    return y


class Node:
    """Styles 2 and 3: a value and how its gradient is found."""

    def __init__(self, data, trains=False, inputs=(), back=None):
        self.data, self.trains, self.inputs = data, trains or any(x.trains for x in inputs), inputs
        self.grad, self.back = None, back

    def backward(self, g):
        for x, gx in zip(self.inputs, self.back(g), strict=True):
            if x.trains:
                x.grad = gx  # one operation deep is all that is needed here


class Context:
    def save(self, *arrays):
        self.saved = arrays


class Linear:
    """Style 2: a class with two methods, and a context between them (PyTorch's autograd.Function)."""

    @staticmethod
    def forward(context, x, w):
        context.save(x, w)
        return x @ w.T

    @staticmethod
    def backward(context, g):
        x, w = context.saved
        return g @ w, g.T @ x


def function(x, w):
    context = Context()
    y = Linear.forward(context, x.data, w.data)
    return Node(y, inputs=(x, w), back=lambda g: Linear.backward(context, g))


RULES: dict[Any, Any] = {}


def linear(x, w):
    return x @ w.T


RULES[linear] = (lambda g, y, x, w: g @ w, lambda g, y, x, w: g.T @ x)


def table(x, w):
    """Style 3: a plain function, its rules in a table, called with all inputs and the result (HIPS autograd)."""
    inputs = x.data, w.data
    y = linear(*inputs)
    return Node(y, inputs=(x, w), back=lambda g: [rule(g, y, *inputs) for rule in RULES[linear]])


def rules(a, b):
    """Style 4: a value, and one rule an input (tinyllm)."""
    x, w = a.data, b.data
    return op(x @ w.T, (a, lambda g: g @ w), (b, lambda g: g.T @ x))


TEXTS = {
    "closure": (closure,),
    "class": (Linear, function),
    "table": (linear, table),
    "rules": (rules,),
}
NAMES = {
    "closure": "a closure that adds into the inputs (micrograd)",
    "class": "a class with forward, backward and a context (PyTorch's Function)",
    "table": "a function, and its rules in a table (HIPS autograd)",
    "rules": "a value and one rule an input (here)",
}


def lines(style: str) -> int:
    """Lines of the operation's text, without blank ones and docstrings."""
    found = int(style == "table")  # the line that enters the rules
    for part in TEXTS[style]:
        text = inspect.getsource(part).replace(f'"""{inspect.getdoc(part)}"""', "")
        found += sum(bool(line.strip()) for line in text.splitlines())
    return found


def made(style: str, x: np.ndarray, w: np.ndarray, frozen: bool) -> tuple[Any, Any, Any]:
    """The result and both inputs, the weight frozen or not."""
    if style == "rules":
        a, b = Tensor(x, requires_grad=True), Tensor(w, requires_grad=not frozen)
    else:
        kind = Value if style == "closure" else Node
        a, b = kind(x, trains=True), kind(w, trains=not frozen)
    return TEXTS[style][-1](a, b), a, b


def kept(style: str, frozen: bool, n: int = 64) -> list[str]:
    """Which of x and w, (n, n), the result holds on to."""
    x, w = np.random.default_rng(0).standard_normal((2, n, n))
    y, *_ = made(style, x, w, frozen)
    found, stack, seen = set(), [y], set()
    while stack:
        thing = stack.pop()
        if id(thing) in seen or isinstance(thing, (type, ModuleType)):
            continue
        seen.add(id(thing))
        if isinstance(thing, np.ndarray):
            found |= {name for name, array in (("x", x), ("w", w)) if np.shares_memory(thing, array)}
        else:
            stack += [thing.__closure__] if isinstance(thing, FunctionType) else gc.get_referents(thing)
    return sorted(found)


def gradients(style: str, x: np.ndarray, w: np.ndarray, g: np.ndarray) -> list[np.ndarray]:
    """The gradients of x and of w."""
    y, a, b = made(style, x, w, False)
    y.backward(g)
    return [a.grad, b.grad]


def report() -> str:
    rows = ["| how an operation is written | lines | kept for backward | with w frozen |", "| --- | ---: | --- | --- |"]
    for style, name in NAMES.items():
        both, one = (" and ".join(kept(style, frozen)) for frozen in (False, True))
        rows.append(f"| {name} | {lines(style)} | {both} | {one} |")
    return "\n".join(rows)


if __name__ == "__main__":
    print(report())
