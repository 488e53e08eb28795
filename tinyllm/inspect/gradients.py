"""The gradient at every place of a graph, which the engine itself hands on and forgets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tinyllm.autograd import Node, topological, walk
from tinyllm.backend.table import of
from tinyllm.inspect.rules import operation_of
from tinyllm.tensor import Tensor

ONCE = {  # operations whose rules do more than give a gradient, and what to take instead
    "checkpoint": "run its function without checkpoint",
    "linear_cross_entropy": "take the loss of model(ids) by functional.cross_entropy",
}


def gradients(loss: Tensor) -> dict[Node, Any]:
    """d(loss)/d(node) of every node behind `loss`, inner ones too.

    The engine's own walk goes through a copy of the graph, in which every node notes what reaches it. The graph can
    still be used, and no ``.grad`` changes.

    Parameters
    ----------
    loss : Tensor
        One number, recorded, and not used by a backward yet.

    Returns
    -------
    dict of Node to array
        Nodes that no gradient reaches are not in it.

    Raises
    ------
    RuntimeError
        If it needs no gradient, or its graph was used already.
    ValueError
        If it is not one number, or an operation's rule can be used once only.
    """
    if loss.node is None:
        raise RuntimeError("there is no graph: this tensor needs no gradient")
    if loss.data.size != 1:
        raise ValueError(f"gradients are those of one number, not of shape {loss.shape}: take its sum or mean")
    found: dict[Node, Any] = {}
    copies: dict[Node, Node] = {}
    for node in topological(loss.node):
        edges: list = [((None,), _noting(found, node))]  # an edge to nowhere sees the whole gradient
        for sources, rule in node.edges or ():
            if (operation := operation_of(rule)) in ONCE:
                raise ValueError(f"the gradients of {operation} can be asked for once only: {ONCE[operation]}")
            edges.append((tuple(None if source is None else copies[source] for source in sources), rule))
        copies[node] = Node(edges, node)
    be = of(loss.data)
    with be.hold():
        walk(copies[loss.node], be.xp.ones_like(loss.data))
    return found


def _noting(found: dict[Node, Any], node: Node) -> Callable[[Any], Any]:
    def note(g: Any) -> Any:
        found[node] = g
        return g

    return note
