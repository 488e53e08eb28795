"""A picture of the graph behind a tensor, as SVG text: one box an operation, inputs above, the result below.

The layout is Sugiyama's: every node stands one row above the earliest that uses it, long edges get a bend in each row
they cross, rows are sorted by the mean place of their neighbours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from tinyllm.autograd import Node, topological
from tinyllm.backend.device import to_host
from tinyllm.backend.names import kind_of
from tinyllm.formats.atomic import write_text
from tinyllm.inspect.gradients import gradients
from tinyllm.inspect.rules import inputs_of, operation_of
from tinyllm.nn import require_model
from tinyllm.tensor import Tensor, require_tensors

ROW, BOX, GAP, LETTER = 46, 22, 14, 6.6  # row pitch, box height, room between boxes, width of a letter, in pixels
PULL = 0.93
STYLE = """
text { font: 11px ui-monospace, Menlo, Consolas, monospace; text-anchor: middle; fill: #1f2328; }
rect.operation { fill: #ffffff; stroke: #57606a; } rect.leaf { fill: #dbeafe; stroke: #3b82f6; }
rect.result { fill: #dcfce7; stroke: #16a34a; } path { fill: none; stroke: #8c959f; }
"""


class Picture(str):
    """The text of an SVG document; a notebook shows the picture."""

    def _repr_svg_(self) -> str:
        return str(self)


def graph_svg(
    loss: Tensor,
    model: Any = None,
    path: str | Path | None = None,
    *,
    names: Mapping[str, Tensor] | None = None,
    values: bool = False,
) -> Picture:
    """Draw the graph that `loss.backward()` would walk.

    Parameters
    ----------
    loss : Tensor
        Recorded, and not used by a backward yet.
    model : Module, optional
        Gives the leaves their names.
    path : str or Path, optional
        A file to write the picture to.
    names : mapping of str to Tensor, optional
        What tensors of the graph shall be called, results of operations too: ``{"a": a, "a * b": product}``.
    values : bool
        Write at every single number its value and its gradient, d(loss)/d(number). The engine keeps no value that
        nobody asks for, so of a result in between it is known where the tensor is among `names`. The gradients are
        what the engine's walk brings; neither the graph is used up by it, nor does a ``.grad`` change.

    Returns
    -------
    Picture
        A str, a whole SVG document; a notebook shows it. Readable up to about 200 nodes.

    Raises
    ------
    RuntimeError
        If `loss` needs no gradient (there is no graph), or its graph was used already.
    ValueError
        If a tensor of `names` is not in the graph; with `values`, if `loss` is not one number, or the graph has a
        `checkpoint` or a fused head, whose gradients can be asked for once only.

    Examples
    --------
    >>> a, b = tinyllm.Parameter(2.0), tinyllm.Parameter(-3.0)
    >>> product = a * b
    >>> picture = graph_svg(product + a, names={"a": a, "b": b, "product": product}, values=True)
    """
    require_tensors("graph_svg", loss)
    if loss.node is None:
        raise RuntimeError("there is no graph to draw: this tensor needs no gradient")
    nodes = topological(loss.node)
    labels = _labels(nodes, loss, named_nodes("graph_svg", nodes, model, names), values)
    text = _draw(layout(nodes, labels), labels, loss.node)
    if path is not None:
        write_text(path, text)
    return Picture(text)


@dataclass(frozen=True)
class Layout:
    """Where the boxes and edges of a graph stand, in pixels from the left and from the top."""

    width: float
    height: float
    boxes: dict[Node, tuple[float, float, float]]  # the middle, across and down, and the width
    edges: list[tuple[Node, Node, list[tuple[float, float]]]]  # source and user; middles of what the edge goes through


def layout(nodes: list[Node], labels: dict[Node, str], pitch: int = ROW) -> Layout:
    """Places for the boxes, wide enough for their labels; an edge for each of `inputs_of` each node, in that order."""
    rows, chains = _layers(nodes)
    widths = {item: LETTER * len(labels[item]) + 16 if item in labels else 4.0 for row in rows for item in row}
    x = _places(rows, chains, widths)
    left = min(x[i] - widths[i] / 2 for i in x)
    right = max(x[i] + widths[i] / 2 for i in x)
    at = {item: (x[item] - left + GAP, GAP + BOX / 2 + r * pitch) for r, row in enumerate(rows) for item in row}
    return Layout(
        right - left + 2 * GAP,
        (len(rows) - 1) * pitch + BOX + 2 * GAP,
        {node: (*at[node], widths[node]) for node in nodes},
        [(chain[0], chain[-1], [at[item] for item in chain]) for chain in chains],
    )


def curve(points: list[tuple[float, float]]) -> str:
    """An edge as the commands of an SVG path."""
    d = f"M{points[0][0]:.1f} {points[0][1] + BOX / 2:.1f}"
    for i, ((ax, ay), (bx, by)) in enumerate(zip(points, points[1:], strict=False)):
        top = ay + BOX / 2
        bottom = by - BOX / 2
        if i:  # straight past the boxes of the row the bend is in
            d += f"V{top:.1f}"
        d += f"C{ax:.1f} {top + 12:.1f} {bx:.1f} {bottom - 12:.1f} {bx:.1f} {bottom:.1f}"
    return d


def _layers(nodes: list[Node]) -> tuple[list[list[Any]], list[list[Any]]]:
    """What stands in each row, top first, and every edge as a chain: its source, a bend for each row, its user."""
    depth = dict.fromkeys(nodes, 0)  # the longest way down to the result
    for node in reversed(nodes):
        for source in inputs_of(node):
            depth[source] = max(depth[source], depth[node] + 1)
    height = max(depth.values())
    rows: list[list[Any]] = [[] for _ in range(height + 1)]
    for node in nodes:
        rows[height - depth[node]].append(node)
    chains: list[list[Any]] = []
    for node in nodes:
        for source in inputs_of(node):
            between = range(height - depth[source] + 1, height - depth[node])
            bends = [("bend", len(chains), row) for row in between]
            for row, bend in zip(between, bends, strict=True):
                rows[row].append(bend)
            chains.append([source, *bends, node])
    return rows, chains


def _labels(nodes: list[Node], loss: Tensor, named: dict[Node, tuple[str, Any]], values: Any) -> dict[Node, str]:
    """What stands in each box."""
    if not isinstance(values, bool):
        raise TypeError(f"graph_svg: values is True or False, not {values!r}; tensors to name are names={{...}}")
    slopes = gradients(loss) if values else {}
    labels = {}
    for node in nodes:
        name, tensor = named.get(node, ("", loss if node is loss.node else None))
        label = _label(node, name, tensor if node.leaf is None else node.leaf(), values)
        labels[node] = label + (f", grad {_number(slopes[node])}" if node in slopes and _is_number(node) else "")
    return labels


def named_nodes(who: str, nodes: list[Node], model: Any, given: Any) -> dict[Node, tuple[str, Tensor]]:
    """The nodes that have a name, from the model or from the caller of `who`, and their tensors."""
    if model is not None:
        require_model(model)
    if given is not None and not isinstance(given, Mapping):
        raise TypeError(f"{who}: names are tensors by name, {{'a': a}}, not {kind_of(given)}")
    found = {} if model is None else {x.node: (name, x) for name, x in model.named_parameters()}
    for name, tensor in (given or {}).items():
        require_tensors(who, tensor)
        if tensor.node not in nodes:
            raise ValueError(f"{name!r} is not in this graph: name tensors that lead to it and need a gradient")
        found[tensor.node] = (str(name), tensor)
    return found


def _label(node: Node, name: str, tensor: Any, values: bool) -> str:
    """A box without its gradient: ``w 4x3``; of single numbers with `values` ``a = 2`` and ``product: mul = -6``."""
    number = values and _is_number(node) and tensor is not None
    value = f" = {_number(tensor.data)}" if number else ""
    if node.leaf is None:
        operation = operation_of(node.edges[0][1]) if node.edges else "?"
        return (f"{name}: {operation}" if name else operation) + value
    if tensor is None:
        return "(gone)"
    shape = "x".join(map(str, tensor.shape)) or "one number"
    return f"{name or 'number'}{value}" if number else f"{name} {shape}" if name else shape


def _is_number(node: Node) -> bool:
    return all(n == 1 for n in node.shape)


def _number(array: Any) -> str:
    return f"{float(to_host(array).reshape(())):.4g}"


def _places(rows: list[list], chains: list[list], widths: dict) -> dict[Any, float]:
    """An x for every item: rows sorted by the mean place of their neighbours, then pulled towards them."""
    above: dict[Any, list] = {}
    below: dict[Any, list] = {}
    for chain in chains:
        for top, bottom in zip(chain, chain[1:], strict=False):
            above.setdefault(bottom, []).append(top)
            below.setdefault(top, []).append(bottom)
    x: dict[Any, float] = {}
    for row in rows:
        x.update(_apart(row, dict.fromkeys(row, 0.0), widths))
    for sweep in range(16):
        down = sweep % 2 == 0
        near = above if down else below
        for row in rows if down else reversed(rows):
            wish = {item: _mean([x[n] for n in near.get(item, ())], x[item]) for item in row}
            if sweep < 12:  # the last sweeps keep the order and only straighten
                row.sort(key=wish.__getitem__)
            else:
                wish = {i: _mean([x[n] for n in (*above.get(i, ()), *below.get(i, ()))], x[i]) for i in row}
            # A slight pull to the middle, or a deep graph drifts sideways.
            x.update(_apart(row, {item: PULL * place for item, place in wish.items()}, widths))
    return x


def _apart(row: list, wish: dict, widths: dict) -> dict[Any, float]:
    """Places near the wishes, in the row's order, without overlap: runs of boxes that touch share their shift."""
    offset, edge = {}, 0.0
    for item in row:
        offset[item] = edge + widths[item] / 2
        edge += widths[item] + GAP
    # With w = wish - offset, a placing without overlap is a rising sequence nearest to w: pool adjacent violators.
    pools: list[list] = []
    for item in row:
        pools.append([wish[item] - offset[item], 1])
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            value, n = pools.pop()
            pools[-1] = [(pools[-1][0] * pools[-1][1] + value * n) / (pools[-1][1] + n), pools[-1][1] + n]
    shifts = [value for value, n in pools for _ in range(n)]
    return {item: offset[item] + shift for item, shift in zip(row, shifts, strict=True)}


def _mean(values: list[float], otherwise: float) -> float:
    return sum(values) / len(values) if values else otherwise


def _draw(places: Layout, labels: dict[Node, str], result: Node) -> str:
    w, h = round(places.width), round(places.height)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{w}" height="{h}" viewBox="0 0 {w} {h}">',
        f'<style>{STYLE}</style><rect width="{w}" height="{h}" style="fill:#ffffff"/>',
    ]
    out += [f'<path d="{curve(points)}"/>' for _, _, points in places.edges]
    for node, label in labels.items():
        kind = "result" if node is result else "operation" if node.leaf is None else "leaf"
        a, b, size = places.boxes[node]
        out.append(
            f'<rect class="{kind}" x="{a - size / 2:.1f}" y="{b - BOX / 2:.1f}" width="{size:.1f}" '
            f'height="{BOX}" rx="4"/>'
            f'<text x="{a:.1f}" y="{b + 4:.1f}">{escape(label)}</text>'
        )
    out.append("</svg>\n")
    return "\n".join(out)
