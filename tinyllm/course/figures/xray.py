"""An X-ray of what training changed: singular values of each matrix's change, and the loss without the small ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tinyllm.backend.device import to_host
from tinyllm.course.figures.figure import Figure

SHOWN = 64  # singular values of a matrix; the sum of squares counts all of them


def xray(changes: Mapping[str, Any], losses: Mapping[int, float] | None = None) -> Figure:
    """Show how many directions hold a change of weights, and how many the loss needs.

    Parameters
    ----------
    changes : mapping of str to array (out, in)
        What training added to each matrix: the weight afterwards less the weight before, by name.
    losses : mapping of int to float, optional
        Measured with every change cut down to this many of its largest directions.

    Returns
    -------
    Figure

    Raises
    ------
    ValueError
        If there are no changes, one is no finite matrix or all zeros, or a rank is below 0.

    Notes
    -----
    The best product of rank r keeps the r largest singular values (Eckart and Young, 1936), and the sum of their
    squares is its share of the whole.
    """
    if not changes:
        raise ValueError("an X-ray needs changes: {name: weight afterwards - weight before}")
    matrices = []
    for name, change in changes.items():
        change = np.asarray(to_host(change), np.float64)
        if change.ndim != 2 or not np.isfinite(change).all() or not change.any():
            raise ValueError(f"the change of {name} must be a matrix of finite numbers that are not all zero")
        values = np.linalg.svd(change, compute_uv=False)
        share = np.cumsum(values**2) / np.sum(values**2)
        matrices.append(
            {
                "name": str(name),
                "shape": change.shape,
                "values": [float(f"{x:.5g}") for x in values[:SHOWN]],
                "share": [float(f"{x:.6g}") for x in share[:SHOWN]],
            }
        )
    ranks = sorted(losses or {})
    if ranks and (ranks[0] < 0 or not all(isinstance(r, int) for r in ranks)):
        raise ValueError(f"the losses are by rank, whole numbers from 0 on, not {ranks}")
    measured = [[r, float((losses or {})[r])] for r in ranks]
    words = (
        "A change is a sum of directions. Keep the r largest of them: the bars show what they hold of the matrix, and "
        "the points the loss with every matrix cut down to so many."
    )
    data = {"matrices": matrices, "losses": measured}
    title = "X-ray of a weight's change"
    return Figure("xray", title, words, data, lambda figure: _draw(figure, matrices, measured))


def _draw(figure: Any, matrices: list[dict], losses: list[list]) -> None:
    panels = figure.subplots(1, 2 if losses else 1, squeeze=False)[0]
    for matrix in matrices:
        panels[0].plot(range(1, len(matrix["share"]) + 1), [100 * x for x in matrix["share"]], color="#999999", lw=0.8)
    mean = np.mean([np.pad(m["share"], (0, SHOWN - len(m["share"])), mode="edge") for m in matrices], axis=0)
    panels[0].plot(range(1, SHOWN + 1), 100 * mean, color="#0072b2", label="mean of the matrices")
    panels[0].set(xlabel="directions kept, the largest first", ylabel="% of the change's square", ylim=(0, 102))
    panels[0].legend(fontsize=8)
    if losses:
        panels[1].plot(*zip(*losses, strict=True), marker="o", color="#d55e00")
        panels[1].set(xlabel="directions kept in every matrix", ylabel="loss")
        panels[1].set_xscale("symlog", base=2, linthresh=1)
        panels[1].set_xticks([r for r, _ in losses], [str(r) for r, _ in losses])
