"""The way back, step by step: what gradient arrives, and who adds what to whom."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tinyllm.autograd import Node, topological, unbroadcast
from tinyllm.backend.device import to_host
from tinyllm.course.figures.figure import Figure, numbers
from tinyllm.inspect.gradients import gradients
from tinyllm.inspect.graph import BOX, Layout, layout
from tinyllm.tensor import Tensor

MOST_NODES = 80  # more would be a picture that nobody reads
MOST_NUMBERS = 12  # of an array that is written out


def backward_steps(loss: Tensor, names: Mapping[str, Tensor] | None = None, model: Any = None) -> Figure:
    """Show what ``loss.backward()`` would do, one operation after the other; it does not do it.

    Parameters
    ----------
    loss : Tensor
        One number, recorded, and not used by a backward yet.
    names : mapping of str to Tensor, optional
        What to call tensors, ``{"x": x, "W": W}``.
    model : Module, optional
        Gives its weights their names.

    Returns
    -------
    Figure

    Raises
    ------
    RuntimeError
        If there is no graph, or it was used already.
    ValueError
        If `loss` is not one number, or the graph has more than 80 places.
    """
    slopes = gradients(loss)
    if len(slopes) > MOST_NODES:
        raise ValueError(
            f"this graph has {len(slopes)} places, and {MOST_NODES} are the most that one can follow: take the loss of "
            "fewer layers, or of one layer alone"
        )
    drawn = layout(loss, model, names)
    order = [node for node in reversed(topological(drawn.result)) if node.leaf is None and node in slopes]
    place = {node: i for i, node in enumerate(drawn.labels)}
    met: dict[Node, int] = {}
    steps: list[dict[str, Any]] = [{"node": place[node], "gradient": _told(slopes[node]), "adds": []} for node in order]
    for step, node in zip(steps, order, strict=True):
        for source, part in _parts(node, slopes[node]):
            met[source] = met.get(source, 0) + 1
            fitted = unbroadcast(part, source.shape)
            summed = list(part.shape) if part.shape != source.shape else None
            step["adds"].append({"node": place[source], "nth": met[source], "summed": summed} | _told(fitted))
    data = {
        "labels": list(drawn.labels.values()),
        "leaves": [node.leaf is not None for node in drawn.labels],
        "boxes": [[round(n, 1) for n in drawn.boxes[node]] for node in drawn.labels],
        "edges": [[place[a], place[b], d] for a, b, d in drawn.edges],
        "size": [drawn.width, drawn.height],
        "box": BOX,
        "steps": steps,
    }
    words = (
        "Gradients go from the result, below, up to the inputs. An operation's turn comes when everything that was "
        "computed from it has added its share. Go through the steps: who adds what to whom, and in which shape?"
    )
    title = "Backward, step by step"
    return Figure("backward", title, words, data, lambda figure: _draw(figure, drawn, order), (7.0, 5.0))


def _parts(node: Node, g: Any) -> list[tuple[Node, Any]]:
    """What this operation's rules hand to each of its inputs, before it is fitted to their shapes."""
    found = []
    for sources, rule in node.edges or ():
        parts = (rule(g),) if len(sources) == 1 else rule(g, tuple(source is not None for source in sources))
        found += [(s, part) for s, part in zip(sources, parts, strict=True) if s is not None]
    return found


def _told(array: Any) -> dict[str, Any]:
    """An array's shape and size, and its numbers if they are few."""
    host = np.asarray(to_host(array))
    few = numbers(host.reshape(-1)) if host.size <= MOST_NUMBERS else None
    return {"shape": list(host.shape), "norm": float(f"{np.linalg.norm(host.astype(np.float64)):.6g}"), "numbers": few}


def _draw(figure: Any, drawn: Layout, order: list[Node]) -> None:
    ax = figure.subplots()
    for source, user, _ in drawn.edges:
        ends = [drawn.boxes[user], drawn.boxes[source]]
        ax.annotate("", ends[1][:2], ends[0][:2], arrowprops={"arrowstyle": "->", "color": "#999999"})
    for node, label in drawn.labels.items():
        x, y, _ = drawn.boxes[node]
        turn = f"{order.index(node) + 1}. " if node in order else ""
        ax.text(x, y, turn + label, ha="center", va="center", fontsize=8, bbox={"fc": "white", "ec": "#0072b2"})
    ax.set(xlim=(0, drawn.width), ylim=(drawn.height, 0))
    ax.axis("off")
