"""What every operation keeps for backward, read from the closures of the gradient rules.

In this engine a rule *names* what it keeps, so the answer is exact: walk the graph, open each rule's closure cells, and
list the arrays in them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from html import escape
from types import FunctionType
from typing import Any

import numpy as np

from tinyllm.autograd import Node, topological
from tinyllm.frozen.weight import FrozenWeight
from tinyllm.nn import require_model
from tinyllm.tensor import Tensor, require_tensors


@dataclass(frozen=True)
class Row:
    """One array that one operation keeps.

    Attributes
    ----------
    operation : str
        The function that recorded the rule.
    name : str
        What the rule calls the array; for arrays of the model, the path of the weight.
    shape : tuple of int
    dtype : str
        For a stored weight, its storage (``"nf4"``).
    bytes : int
    """

    operation: str
    name: str
    shape: tuple[int, ...]
    dtype: str
    bytes: int


class Kept(list[Row]):
    """A list of `Row`; printed or shown in a notebook, it is a table.

    Attributes
    ----------
    owned : list of Row
        Arrays the rules name, but that the model holds anyway.
    total : int
        Bytes of the rows, without `owned`.
    """

    def __init__(self, rows: list[Row], owned: list[Row]):
        super().__init__(rows)
        self.owned = owned

    @property
    def total(self) -> int:
        return sum(row.bytes for row in self)

    def __str__(self) -> str:
        lines = ["kept for backward", *_table([*self, Row("total", "", (), "", self.total)])]
        if self.owned:
            count = Row("total", "", (), "", sum(row.bytes for row in self.owned))
            title = "named by rules, but the model's own (outside the total above)"
            lines += ["", title, *_table([*self.owned, count])]
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        parts = [_html("kept for backward", self)]
        if self.owned:
            parts.append(_html("named by rules, but the model's own (outside the total above)", self.owned))
        return "\n".join(parts)


HEAD = ("operation", "array", "shape", "dtype", "bytes")


def _cells(row: Row) -> tuple[str, str, str, str, str]:
    return row.operation, row.name, str(row.shape) if row.dtype else "", row.dtype, f"{row.bytes:,}"


def _html(title: str, rows: list[Row]) -> str:
    """The rows and their sum as a table of HTML; names come from a user's code, so every text is escaped."""

    def line(cells: tuple[str, ...], tag: str = "td") -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    total = Row("total", "", (), "", sum(row.bytes for row in rows))
    body = "\n".join(line(_cells(row)) for row in rows)
    return (
        f"<table><caption>{escape(title)}</caption>\n<thead>{line(HEAD, 'th')}</thead>\n"
        f"<tbody>{body}</tbody>\n<tfoot>{line(_cells(total), 'th')}</tfoot></table>"
    )


def _table(rows: list[Row]) -> list[str]:
    """The rows as aligned text; the last one is the sum."""
    cells = [HEAD, *map(_cells, rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(5)]
    form = "  ".join(f"{{:<{n}}}" for n in widths[:4]) + f"  {{:>{widths[4]}}}"
    lines = [form.format(*row) for row in cells]
    rule = "-" * (sum(widths) + 8)
    return [lines[0], rule, *lines[1:-1], rule, lines[-1]]


def kept(loss: Tensor, model: Any = None) -> Kept:
    """List what the graph behind `loss` keeps for its backward.

    Each array counts once, under the first operation that names it (in the order of the forward pass). A view counts
    with the array it looks into, since that is what stays in memory. A `checkpoint` keeps its inputs; what its function
    names is not opened.

    Parameters
    ----------
    loss : Tensor
        Any recorded tensor. One that needs no gradient keeps nothing.
    model : Module, optional
        Arrays that are its weights are listed apart, in ``.owned``: they would be in memory without backward, too.

    Returns
    -------
    Kept
        A list of rows with ``.total``, in bytes; prints as a table.

    Raises
    ------
    RuntimeError
        If a backward has used the graph already.

    Examples
    --------
    >>> x = tinyllm.Tensor(np.ones((2, 3), np.float32))
    >>> w = tinyllm.Parameter(np.ones((3, 4), np.float32))
    >>> print(kept((x @ w).exp().sum()))
    kept for backward
    operation  array  shape   dtype    bytes
    ----------------------------------------
    matmul     x      (2, 3)  float32     24
    exp        y      (2, 4)  float32     32
    ----------------------------------------
    total                                 56
    """
    require_tensors("kept", loss)
    if model is not None:
        require_model(model)
    weights: dict[int, tuple[str, Any]] = {}  # what a rule may name -> its path, and the weight that it belongs to
    for path, weight in () if model is None else model.named_weights():
        weights.setdefault(id(owner(getattr(weight, "data", weight))), (path, weight))
    rows: list[Row] = []
    owned: list[Row] = []
    seen: set[int] = set()
    for node in topological(loss.node) if loss.node is not None else ():
        for _, rule in node.edges or ():
            for name, thing in arrays_of(rule):
                if id(thing) in seen:
                    continue
                seen.add(id(thing))
                dtype = getattr(thing, "storage", thing.dtype.name)
                name, shaped = weights.get(id(thing), (name, thing))  # what a file was read into may be flat
                row = Row(operation_of(rule), name, tuple(shaped.shape), dtype, int(thing.nbytes))
                (owned if id(thing) in weights else rows).append(row)
    return Kept(rows, owned)


def inputs_of(node: Node) -> list[Node]:
    """The nodes that a node was computed from and sends gradients to; one may stand there twice."""
    return [source for sources, _ in node.edges or () for source in sources if source is not None]


def operation_of(rule: Callable) -> str:
    """The name of the function that made the rule."""
    return getattr(rule, "__qualname__", type(rule).__name__).split(".")[0]


def arrays_of(rule: Callable) -> Iterator[tuple[str, Any]]:
    """Pairs of name and array (or FrozenWeight) that a rule names; views are replaced by what they look into."""
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
        yield name, owner(value)
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
