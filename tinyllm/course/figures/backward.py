"""Backward, step by step: in which order the walk goes, what each operation receives, and what it adds to whom."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tinyllm.autograd import Node, topological
from tinyllm.backend.device import to_host
from tinyllm.course.figures.figure import Figure, numbers
from tinyllm.inspect.gradients import watch
from tinyllm.inspect.graph import BOX, curve, layout, named_nodes
from tinyllm.inspect.rules import operation_of
from tinyllm.tensor import Tensor, require_tensors

MOST = 120  # nodes; of more, no step could be found again in the drawing
SMALL = 12  # numbers that are shown one by one
PITCH = 62  # between rows, in pixels: a share is written between them
LONG = 16  # letters of a name that a box has room for


def backward_steps(loss: Tensor, names: Mapping[str, Tensor] | None = None, model: Any = None) -> Figure:
    """Show what `loss.backward()` would do, one visit after the other.

    The engine's own walk goes through a copy of the graph. The graph can still be used, and no ``.grad`` changes.

    Parameters
    ----------
    loss : Tensor
        One number, recorded, and not used by a backward yet.
    names : mapping of str to Tensor, optional
        What tensors of the graph shall be called, results of operations too: ``{"a": a, "product": a_times_b}``.
    model : Module, optional
        Gives its parameters their names.

    Returns
    -------
    Figure

    Raises
    ------
    TypeError
        If `loss` is no Tensor, or `names` are not tensors by name.
    ValueError
        If there is no graph behind `loss`, it is not one number, the graph has more than 120 nodes or an operation
        whose rule can be used once only, or a tensor of `names` is not in it.
    RuntimeError
        If the graph was used already.
    """
    require_tensors("backward_steps", loss)
    order = [] if loss.node is None else topological(loss.node)[::-1]
    if len(order) < 2:
        raise ValueError(
            "there is no graph behind this tensor: calculate it from a Parameter, or from Tensor(x, requires_grad=True)"
        )
    if len(order) > MOST:
        raise ValueError(
            f"the graph has {len(order)} nodes, and {MOST} are the most that can be shown: take the loss of a part, "
            "such as one layer, or a model with fewer layers"
        )
    steps = _named(
        order, {node: name for node, (name, _) in named_nodes("backward_steps", order, model, names).items()}
    )
    _watched(loss, steps)
    widest = {node: max(step["box"], step["gradient"]["shape"], key=len) for node, step in steps.items()}
    places = layout(order[::-1], widest, PITCH)
    for node, step in steps.items():
        step["place"] = [round(x, 1) for x in places.boxes[node]]
        lines = [points for _, user, points in places.edges if user is node]  # of its inputs, in their order
        for part, points in zip(step["parts"], lines, strict=True):
            part["line"], part["start"] = curve(points), [round(x, 1) for x in (*points[0], *points[1])]
    data = {"steps": list(steps.values()), "width": places.width, "height": places.height, "box": BOX}
    words = (
        "Backward visits every box once, from the loss at the bottom up to what was given; the number in a box is its "
        "step. When its turn comes its gradient is complete, and it adds a share to each of its inputs."
    )
    draw = lambda figure: _draw(figure, data)
    size = (max(places.width / 90, 4), max(places.height / 90, 2))
    return Figure("backward", "Backward, step by step: shapes, and who added what", words, data, draw, size)


def _named(order: list[Node], names: dict[Node, str]) -> dict[Node, dict[str, Any]]:
    """For each node what it is called: in its box, in a sentence when its turn comes, and when it is added to."""
    steps = {}
    for k, node in enumerate(order, 1):
        operation = "" if node.leaf is not None else operation_of(node.edges[0][1]) if node.edges else "?"
        name = names.get(node, "")
        box = name or operation or "leaf"
        steps[node] = {
            "box": f"{k} {box if len(box) <= LONG else '…' + box[1 - LONG :]}",
            "own": f"{name} ({operation})" if name and operation else name or operation or "a leaf without a name",
            "name": name or f"the {operation or 'leaf'} of step {k}",
            "leaf": not operation,
            "parts": [],
        }
    return steps


def _watched(loss: Tensor, steps: dict[Node, dict[str, Any]]) -> None:
    """Write into the steps what arrives in each and what it hands on."""
    index = {node: i for i, node in enumerate(steps)}
    now: list[Node] = []
    reached: set[Node] = set()

    def arrives(node: Node, g: Any) -> None:
        now.append(node)
        steps[node]["gradient"] = _shown(g)

    def handed_on(source: Node, made: Any, share: Any) -> None:
        part = {"to": index[source], "first": source not in reached, "over": _summed(made.shape, share.shape)}
        steps[now[-1]]["parts"].append(part | _shown(share))
        reached.add(source)

    watch(loss, arrives, handed_on)


def _shown(array: Any) -> dict[str, Any]:
    """Its shape, and its numbers or their norm; JSON has no numbers that are not finite, so those are words."""
    array = np.asarray(to_host(array))
    if array.dtype.itemsize == 2:
        array = array.astype(np.float32)
    word = lambda x: x if np.isfinite(x) else str(x)
    if array.size <= SMALL:
        return {"shape": str(array.shape), "numbers": [word(x) for x in numbers(array.reshape(-1))]}
    with np.errstate(all="ignore"):
        return {"shape": str(array.shape), "norm": word(float(np.linalg.norm(array.astype(np.float64))))}


def _summed(large: tuple[int, ...], small: tuple[int, ...]) -> str:
    """What unbroadcast summed over: "2 rows", "4 columns", "axes of 5 and 4"; nothing if the shapes are the same."""
    lined = (1,) * (len(large) - len(small)) + small
    axes = [i for i, (n, m) in enumerate(zip(large, lined, strict=True)) if n != m]
    if kinds := {1: ("numbers",), 2: ("rows", "columns")}.get(len(large)):
        return " and ".join(f"{large[i]} {kinds[i]}" for i in axes)
    return f"{'axes' if len(axes) > 1 else 'an axis'} of {' and '.join(str(large[i]) for i in axes)}" if axes else ""


def _draw(figure: Any, data: dict[str, Any]) -> None:
    axes = figure.subplots()
    axes.set(xlim=(0, data["width"]), ylim=(data["height"], 0))
    axes.axis("off")
    for step in data["steps"]:
        x, y, _ = step["place"]
        edge = "#d55e00" if step["leaf"] else "#57606a"
        axes.text(x, y, step["box"], ha="center", va="center", fontsize=8, zorder=3, bbox={"fc": "white", "ec": edge})
        for part in step["parts"]:
            (ax, ay, bx, by), (tx, ty, _) = part["start"], data["steps"][part["to"]]["place"]
            axes.plot([tx, bx, x], [ty, by, y], color="#8c959f", linewidth=1, zorder=1)
            value = part["numbers"][0] if part["shape"] == "()" else None
            told = part["shape"] if value is None else f"{float(value):.4g}"
            near = 0.35 if len(step["parts"]) > 1 else 0.7  # to the user: one input's shares meet, as one user's part
            at = {"ha": "center", "va": "center", "fontsize": 8, "color": "#0063a0", "zorder": 2}
            words = told if part["first"] else f"+ {told}"
            axes.text(ax + near * (bx - ax), (ay + by) / 2, words, bbox={"fc": "white", "ec": "none", "pad": 1}, **at)
