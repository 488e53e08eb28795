"""The graph that operations leave behind, and the walk that brings gradients back through it.

A node links to the nodes of its operation's inputs, each with the rule for its gradient. The walk goes from the loss
to the leaves and meets every node once, when all that was computed from it has handed its share of the gradient on.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

from tinyllm.backend.table import of, replaceable


class Node:
    """A place in the graph. It links nodes, never tensors, so an array lives only as long as somebody names it."""

    __slots__ = ("edges", "shape", "dtype", "leaf", "__weakref__")

    def __init__(self, edges: list | None, data: Any, leaf: Any = None):
        self.edges = edges  # [(nodes of the inputs, None for one without, rule)]; None once used
        self.shape, self.dtype = data.shape, data.dtype  # what a gradient has here
        self.leaf = None if leaf is None else weakref.ref(leaf)


def walk(root: Node, grad: Any) -> None:
    """Add the gradients that come of `grad` at `root` to ``.grad`` of every leaf; nodes are freed as they are used."""
    order = topological(root)
    gradients: dict[Node, Any] = {root: grad}
    ours: set[Node] = set()  # nodes whose gradient is an array that the engine may add to
    while order:
        node = order.pop()
        g = gradients.pop(node, None)
        if node.leaf is None:
            _pass_on(node, g, gradients, ours)
        elif g is not None:
            _deliver(node.leaf(), g, node in ours)


def _pass_on(node: Node, g: Any, gradients: dict[Node, Any], ours: set[Node]) -> None:
    """Hand the gradient of a result on to the inputs it was computed from, each by its rule."""
    edges, node.edges = node.edges, None
    if g is None:  # a checkpointed function did not use it
        return
    if edges is None:  # it was there when this walk began
        raise RuntimeError(
            "this graph was already used by a checkpointed function that names a tensor from outside; make that "
            "tensor one of the checkpoint's inputs and run the forward again"
        )
    for sources, rule in edges:
        if len(sources) == 1:
            _add(gradients, ours, sources[0], rule(g), g, rule)
            continue
        parts = rule(g, tuple([source is not None for source in sources]))
        if type(parts) is not tuple or len(parts) != len(sources):
            raise TypeError(
                f"the rule of {_operation(rule)} made {_described(parts)}, not a tuple of {len(sources)} arrays"
            )
        for source, part in zip(sources, parts, strict=True):
            _add(gradients, ours, source, part, g, rule)
        parts = part = None  # or they would stay while the next rule computes


def _add(gradients: dict[Node, Any], ours: set[Node], node: Node | None, part: Any, g: Any, rule: Callable) -> None:
    if node is None:
        return
    if type(part) is not type(g) or part.shape != node.shape or part.dtype is not node.dtype:
        into = node if node.leaf is None else node.leaf()
        if into is None or part is UNUSED:
            return
        part = fitted(part, into, f"the rule of {_operation(rule)}")
    if node not in gradients:
        gradients[node] = part
        if part is not g and part.base is None:  # g and views of it are shared with other edges
            ours.add(node)
    elif node in ours:
        gradients[node] += part
    else:
        gradients[node] = gradients[node] + part
        ours.add(node)


def _deliver(leaf: Any, g: Any, ours: bool) -> None:
    if leaf is None:  # nobody has it any more
        return
    g = fitted(g, leaf, "backward")  # its array may have been replaced since it was used
    if leaf.grad is None:
        leaf.grad = of(leaf.data).xp.asarray(g if ours else g.copy())  # a full reduction gives a scalar
    else:
        leaf.grad += g


@replaceable
def topological(root: Node) -> list[Node]:
    """Nodes so that each stands after everything it was computed from; iterative, so depth is no limit."""
    order: list[Node] = []
    seen = {root}
    stack = [(root, iter(_inputs(root)))]
    while stack:
        node, inputs = stack[-1]
        for source in inputs:
            if source not in seen:
                seen.add(source)
                stack.append((source, iter(_inputs(source))))
                break
        else:
            order.append(node)
            stack.pop()
    return order


def _inputs(node: Node) -> list[Node]:
    if node.edges is None:
        raise RuntimeError("this graph was already used by a backward(); run the forward again")
    return [source for sources, _ in node.edges for source in sources if source is not None]


UNUSED = object()  # stands for the gradient of an input that a checkpointed function turned out not to use


def fitted(part: Any, into: Any, operation: str) -> Any:
    """What a rule returned, summed where its input was broadcast; float32 stands beside half precision.

    Any other shape or dtype than the input's, and what is no array, is an error that names the operation.
    """
    error: type[Exception] = TypeError
    if hasattr(part, "__array_function__") or isinstance(part, np.generic):
        if part.shape != into.shape and _stretches(into.shape, part.shape):
            part = unbroadcast(part, into.shape)
        if {part.dtype.itemsize, into.dtype.itemsize} == {2, 4} and part.dtype.kind not in "iu":
            part = part.astype(into.dtype)
        if part.shape == into.shape and part.dtype == into.dtype:
            return part
        error = ValueError if part.dtype == into.dtype else TypeError
    raise error(
        f"{operation} made {_described(part)} as the gradient of an input of shape {into.shape} and dtype "
        f"{into.dtype.name}; it must be an array of that shape and dtype"
    )


def _stretches(small: tuple[int, ...], large: tuple[int, ...]) -> bool:
    """Whether broadcasting makes the large shape of the small one."""
    pairs = zip(small[::-1], large[::-1], strict=False)
    return len(small) <= len(large) and all(m in (1, n) for m, n in pairs)


def _operation(rule: Callable) -> str:
    return getattr(rule, "__qualname__", type(rule).__name__).split(".")[0]


def _described(value: Any) -> str:
    if value is None:
        return "nothing (None)"
    known = hasattr(value, "shape") and hasattr(value, "dtype")
    return f"a {type(value).__name__}" + (f" of shape {value.shape} and dtype {value.dtype.name}" if known else "")


@replaceable
def unbroadcast(g: Any, shape: tuple[int, ...]) -> Any:
    """Sum `g` over the axes along which an array of `shape` was broadcast.

    The transpose of broadcasting: what was copied forward is added up backward; of half precision in float32.
    """
    if g.ndim > len(shape):
        g = g.sum(axis=tuple(range(g.ndim - len(shape))), dtype=np.promote_types(g.dtype, np.float32))
    stretched = tuple(i for i, n in enumerate(shape) if n == 1 and g.shape[i] != 1)
    return g.sum(axis=stretched, keepdims=True, dtype=np.promote_types(g.dtype, np.float32)) if stretched else g
