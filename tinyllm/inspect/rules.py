"""What a gradient rule names, read from its closure: in this engine that is what is kept for backward, exactly."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import FunctionType
from typing import Any

import numpy as np

from tinyllm.autograd import Node
from tinyllm.frozen.weight import FrozenWeight


def inputs_of(node: Node) -> list[Node]:
    """The nodes that a node was computed from and sends gradients to; one may stand there twice."""
    return [source for sources, _ in node.edges or () for source in sources if source is not None]


def operation_of(rule: Callable) -> str:
    """The name of the function that made the rule."""
    return getattr(rule, "__qualname__", type(rule).__name__).split(".")[0]


def arrays_of(rule: Callable) -> Iterator[tuple[str, Any]]:
    """Pairs of name and array (or FrozenWeight) that a rule names."""
    inside = operation_of(rule) != "checkpoint"
    for name, value in cells_of(rule):
        yield from _arrays_in(name, value, inside)


def cells_of(rule: Any) -> Iterator[tuple[str, Any]]:
    """Pairs of name and value in a function's closure and default arguments."""
    code = getattr(rule, "__code__", None)
    if code is None:
        return
    for name, cell in zip(code.co_freevars, rule.__closure__ or (), strict=True):
        try:
            yield name, cell.cell_contents
        except ValueError:  # a name that was never given a value
            continue
    defaults = rule.__defaults__ or ()
    arguments = code.co_varnames[: code.co_argcount]
    yield from zip(arguments[len(arguments) - len(defaults) :], defaults, strict=True)
    yield from (rule.__kwdefaults__ or {}).items()


def _arrays_in(name: str, value: Any, functions: bool) -> Iterator[tuple[str, Any]]:
    value = getattr(value, "array", value)  # the face of a weight on an array
    if isinstance(value, FrozenWeight):
        yield name, value
    elif is_array(value):
        yield name, value
    elif isinstance(value, tuple | list):
        for i, item in enumerate(value):
            yield from _arrays_in(f"{name}[{i}]", item, functions)
    elif functions and isinstance(value, FunctionType):
        for inner, item in cells_of(value):
            yield from _arrays_in(f"{name}.{inner}", item, functions)


def is_array(value: Any) -> bool:
    """Whether this is an array of NumPy or CuPy (their scalars are not)."""
    return hasattr(value, "__array_function__") and not isinstance(value, np.generic)


def owner(array: Any) -> Any:
    """The array whose memory this one looks into; itself if that is its own."""
    while is_array(getattr(array, "base", None)):
        array = array.base
    return array
