"""What a reader of the lessons has built, in their order; a test holds that each function stands in its lesson so."""

from tinyllm.autograd import Node


def my_topological(root: Node) -> list[Node]:
    """Every node behind `root`, each after all that it was computed from."""
    order, seen = [], set()

    def visit(node):
        if node is not None and node not in seen:
            seen.add(node)
            for sources, _ in node.edges:
                for source in sources:
                    visit(source)
            order.append(node)

    visit(root)
    return order


def my_softmax_backward(xp, g, y):
    """The softmax's gradient from its result y, each (..., n)."""
    average = (g * y).sum(axis=-1, keepdims=True)
    return y * (g - average)


def my_unbroadcast(g, shape):
    """The gradient `g` of a broadcast array, summed to the `shape` that the array had."""
    while g.ndim > len(shape):
        g = g.sum(axis=0)
    for axis, n in enumerate(shape):
        if n == 1:
            g = g.sum(axis=axis, keepdims=True)
    return g
