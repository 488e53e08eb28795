"""The gradient at every place of a graph, and every share of it, which the engine itself hands on and forgets."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from tinyllm.autograd import Node, fitted, topological, walk
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
    found: dict[Node, Any] = {}
    watch(loss, found.__setitem__)
    return found


def watch(
    loss: Tensor,
    arrives: Callable[[Node, Any], None],
    handed_on: Callable[[Node, Any, Any], None] | None = None,
) -> None:
    """Tell what happens in the walk that `gradients` makes, as it happens.

    Parameters
    ----------
    loss : Tensor
        As in `gradients`, which says what is raised.
    arrives : callable
        Is called with a node whose turn it is and its whole gradient.
    handed_on : callable, optional
        Is called, after that, for each input: with the input's node, with what the rule made for it, and with the same
        summed where the input was broadcast, which is what is added. The walk may later add to these arrays: copy.
    """
    if loss.node is None:
        raise RuntimeError("there is no graph: this tensor needs no gradient")
    if loss.data.size != 1:
        raise ValueError(f"gradients are those of one number, not of shape {loss.shape}: take its sum or mean")
    copies: dict[Node, Node] = {}
    for node in topological(loss.node):
        edges: list = [((None,), partial(_told, arrives, node))]  # an edge to nowhere sees the whole gradient
        for sources, rule in node.edges or ():
            if (operation := operation_of(rule)) in ONCE:
                raise ValueError(f"the gradients of {operation} can be asked for once only: {ONCE[operation]}")
            copied = tuple(None if source is None else copies[source] for source in sources)
            edges.append((copied, rule if handed_on is None else _watched(sources, rule, handed_on)))
        copies[node] = Node(edges, node)
    be = of(loss.data)
    with be.hold():
        walk(copies[loss.node], be.xp.ones_like(loss.data))


def _told(arrives: Callable[[Node, Any], None], node: Node, g: Any) -> Any:
    arrives(node, g)
    return g


def _watched(sources: tuple, rule: Callable, handed_on: Callable[[Node, Any, Any], None]) -> Callable:
    """The rule, which tells what it makes for each of these inputs."""

    def watched(g: Any, *needs: Any) -> Any:
        made = rule(g, *needs)
        parts = (made,) if len(sources) == 1 else made
        if type(parts) is tuple and len(parts) == len(sources):  # if not, the walk says so
            for source, part in zip(sources, parts, strict=True):
                if source is not None:
                    handed_on(source, part, fitted(part, source, f"the rule of {operation_of(rule)}"))
        return made

    watched.__qualname__ = operation_of(rule)  # errors name it
    return watched
