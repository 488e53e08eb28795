"""What every operation keeps for backward: walk the graph, and list the arrays that its rules name (`rules.py`)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from html import escape
from typing import Any

from tinyllm.autograd import Node, topological
from tinyllm.inspect.rules import arrays_of, cells_of, inputs_of, operation_of, owner
from tinyllm.nn import Module, require_model
from tinyllm.tensor import Tensor, require_tensors

ELSEWHERE = "elsewhere"  # outside of the numbered layers: embedding, last norm, head
COLUMNS = ("operation", "array", "shape", "dtype", "bytes")


@dataclass(frozen=True)
class Row:
    """One array that one operation keeps.

    Attributes
    ----------
    operation : str
        The function that recorded the rule.
    name : str
        What the rule calls the array; for arrays of the model, the path of the weight. Single numbers that one
        operation keeps in one layer share a row, which says how many they are.
    shape : tuple of int
        As the rule sees it; of a weight, the weight's.
    dtype : str
        For a stored weight, its storage (``"nf4"``).
    bytes : int
        Of the whole array that stays in memory, which is larger than `shape` says where the rule names a view.
    layer : str or None
        The path of the numbered layer, ``"layers.3"``, or ``"elsewhere"``; None where no model was given.
    """

    operation: str
    name: str
    shape: tuple[int, ...]
    dtype: str
    bytes: int
    layer: str | None = None


class Kept(list[Row]):
    """A list of `Row`; printed or shown in a notebook, it is a table, with the sums below it if a model was given.

    Attributes
    ----------
    owned : list of Row
        Arrays the rules name, but that the model holds anyway.
    total, owned_total : int
        Bytes of the rows, without `owned`, and of `owned`.
    """

    def __init__(self, rows: list[Row], owned: list[Row]):
        super().__init__(rows)
        self.owned = owned

    @property
    def total(self) -> int:
        return sum(row.bytes for row in self)

    @property
    def owned_total(self) -> int:
        return sum(row.bytes for row in self.owned)

    def by_operation(self) -> dict[str, int]:
        """Bytes of the rows by operation, the largest first."""
        sums = _sums((row.operation, row.bytes) for row in self)
        return dict(sorted(sums.items(), key=lambda item: -item[1]))

    def by_layer(self) -> dict[str, int]:
        """Bytes of the rows by layer, in the order of the forward pass.

        What several layers use (the tables of RoPE) counts in the first of them.

        Raises
        ------
        ValueError
            If `kept` was given no model: the graph alone knows operations, and no layers.
        """
        if any(row.layer is None for row in self):
            raise ValueError("which layer an array belongs to is known from the model: kept(loss, model)")
        return _sums((str(row.layer), row.bytes) for row in self)

    def __str__(self) -> str:
        return "\n\n".join("\n".join([title, *_aligned(rows)]) for title, rows in self._tables())

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return "\n".join(_html(title, rows) for title, rows in self._tables())

    def _tables(self) -> Iterator[tuple[str, list[tuple[str, ...]]]]:
        """Each table's title and its cells, head and sum included."""
        yield "kept for backward", [COLUMNS, *map(_cells, self), _sum_of(self.total, 5)]
        if self.owned:
            title = "named by rules, but the model's own (outside the total above)"
            yield title, [COLUMNS, *map(_cells, self.owned), _sum_of(self.owned_total, 5)]
        if self and self[0].layer is not None:
            for word, sums in (("operation", self.by_operation()), ("layer", self.by_layer())):
                rows = [(name, f"{n:,}") for name, n in sums.items()]
                yield f"kept for backward, by {word}", [(word, "bytes"), *rows, _sum_of(self.total, 2)]


def _sums(pairs: Iterable[tuple[str, int]]) -> dict[str, int]:
    sums: dict[str, int] = {}
    for name, n in pairs:
        sums[name] = sums.get(name, 0) + n
    return sums


def _cells(row: Row) -> tuple[str, ...]:
    return row.operation, row.name, str(row.shape), row.dtype, f"{row.bytes:,}"


def _sum_of(total: int, columns: int) -> tuple[str, ...]:
    return ("total", *[""] * (columns - 2), f"{total:,}")


def _html(title: str, rows: list[tuple[str, ...]]) -> str:
    """A table of HTML; names come from a user's code, so every text is escaped."""

    def line(cells: tuple[str, ...], tag: str = "td") -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    body = "\n".join(map(line, rows[1:-1]))
    return (
        f"<table><caption>{escape(title)}</caption>\n<thead>{line(rows[0], 'th')}</thead>\n"
        f"<tbody>{body}</tbody>\n<tfoot>{line(rows[-1], 'th')}</tfoot></table>"
    )


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    """The rows as text, the last column to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    form = "  ".join([f"{{:<{n}}}" for n in widths[:-1]] + [f"{{:>{widths[-1]}}}"])
    lines = [form.format(*row) for row in rows]
    rule = "-" * (sum(widths) + 2 * len(widths) - 2)
    return [lines[0], rule, *lines[1:-1], rule, lines[-1]]


def kept(loss: Tensor, model: Any = None) -> Kept:
    """List what the graph behind `loss` keeps for its backward.

    Each array counts once, under the first operation that names it (in the order of the forward pass). A view counts
    with the bytes of the array it looks into, since that is what stays in memory; its row says the shape that the rule
    sees. Single numbers of one operation share a row. A `checkpoint` keeps its inputs; what its function names is not
    opened.

    Parameters
    ----------
    loss : Tensor
        Any recorded tensor. One that needs no gradient keeps nothing.
    model : Module, optional
        Arrays that are its weights are listed apart, in ``.owned``: they would be in memory without backward, too.
        Its paths tell in which layer a row belongs.

    Returns
    -------
    Kept
        A list of rows with ``.total``, in bytes, ``.by_operation()`` and ``.by_layer()``; prints as a table.

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
    weights = _owned(model)
    layer = None if model is None else ELSEWHERE
    rows: list[Row] = []
    owned: list[Row] = []
    seen: set[int] = set()
    for node in topological(loss.node) if loss.node is not None else ():
        if model is not None:
            layer = _layer_of(node, weights, model) or layer
        for _, rule in node.edges or ():
            for name, thing in arrays_of(rule):
                base = owner(thing)
                if id(base) in seen:
                    continue
                seen.add(id(base))
                dtype = getattr(thing, "storage", thing.dtype.name)
                name, shaped = weights.get(id(base), (name, thing))  # what a file was read into may be flat
                row = Row(operation_of(rule), name, tuple(shaped.shape), dtype, int(base.nbytes), layer)
                (owned if id(base) in weights else rows).append(row)
    return Kept(_numbers_together(rows), owned)


def _owned(model: Module | None) -> dict[int, tuple[str, Any]]:
    """The id of what a rule may name -> the path, and the weight that it belongs to."""
    found: dict[int, tuple[str, Any]] = {}
    for path, weight in () if model is None else model.named_weights():
        found.setdefault(id(owner(getattr(weight, "data", weight))), (path, weight))
    return found


def _layer_of(node: Node, weights: dict[int, tuple[str, Any]], model: Module) -> str | None:
    """The layer whose weights the operation uses or, checkpointed, whose function it is; None if it has neither.

    Such a one (attention, say) belongs where the operation before it does: each layer comes after the one below it.
    """
    for source in inputs_of(node):
        leaf = None if source.leaf is None else source.leaf()
        if leaf is not None and id(owner(leaf.data)) in weights:
            return _numbered(weights[id(owner(leaf.data))][0])
    for _, rule in node.edges or ():
        for _, thing in arrays_of(rule):
            if id(owner(thing)) in weights:
                return _numbered(weights[id(owner(thing))][0])
        named = [value for _, function in cells_of(rule) for _, value in cells_of(function)]
        for path, module in model.named_modules() if any(isinstance(v, Module) for v in named) else ():
            if any(module is value for value in named):
                return _numbered(path)
    return None


def _numbered(path: str) -> str:
    """The path up to its first number: "layers.3" of "layers.3.mlp.up_proj.weight"."""
    words = path.split(".")
    place = next((i for i, word in enumerate(words) if word.isdigit()), None)
    return ELSEWHERE if place is None else ".".join(words[: place + 1])


def _numbers_together(rows: list[Row]) -> list[Row]:
    """Single numbers, such as LoRA's alpha / r, in one row an operation and layer, where the first of them stood."""
    numbers: dict[Any, list[Row]] = {}
    for row in rows:
        if row.shape == ():
            numbers.setdefault((row.operation, row.dtype, row.layer), []).append(row)
    together: list[Row] = []
    for row in rows:
        alike = numbers.get((row.operation, row.dtype, row.layer), []) if row.shape == () else [row]
        if len(alike) > 1 and row is alike[0]:
            name, n = f"{len(alike)} numbers", sum(each.bytes for each in alike)
            together.append(Row(row.operation, name, (), row.dtype, n, row.layer))
        elif len(alike) == 1:
            together.append(row)
    return together
