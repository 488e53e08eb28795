"""Expected and got, side by side as cells, those that differ ringed: SVG that a reader of screens is told, too."""

from __future__ import annotations

from html import escape
from typing import Any

import numpy as np

MOST, SIDE, HEIGHT = 8, 64, 28  # cells in a row or column; pixels of one


def cells(expected: Any, got: Any) -> str:
    """A picture of two small arrays or numbers; "" if they are none, or too large."""
    left, right = _grid(expected), _grid(got)
    if left is None or right is None:
        return ""
    differs = left != right if left.shape == right.shape else np.ones(right.shape, bool)
    columns, rows = left.shape[1] + right.shape[1], max(left.shape[0], right.shape[0])
    width, height = (columns + 1) * SIDE, (rows + 1) * HEIGHT
    many = int(np.sum(differs))
    alt = f"{many} of {right.size} cells differ" if left.shape == right.shape else "the shapes differ"
    drawn = _drawn("expected", left, None, 0) + _drawn("got", right, differs, (left.shape[1] + 1) * SIDE)
    return (
        f'<svg role="img" aria-label="Expected and got: {alt}." viewBox="0 0 {width} {height}" '
        f'style="width:{width}px;max-width:100%" font-family="monospace" font-size="11">{drawn}</svg>'
    )


def _grid(value: Any) -> np.ndarray | None:
    """The value's texts as a matrix."""
    if isinstance(value, list | tuple) and value and all(isinstance(x, bool | int | float) for x in value):
        value = np.asarray(value)
    if isinstance(value, bool | int | float | np.generic):
        value = np.asarray(value)
    if not isinstance(value, np.ndarray) or value.ndim > 2 or not value.size:
        return None
    matrix = value.reshape(1, -1) if value.ndim < 2 else value
    if max(matrix.shape) > MOST:
        return None
    return np.array([[f"{x:.4g}" if matrix.dtype.kind == "f" else str(x) for x in row] for row in matrix])


def _drawn(title: str, grid: np.ndarray, differs: np.ndarray | None, x: int) -> str:
    parts = [f'<text x="{x}" y="18" fill="currentColor">{title}</text>']
    for i, row in enumerate(grid):
        for j, text in enumerate(row):
            left, top = x + j * SIDE + 1, (i + 1) * HEIGHT + 1
            ring = differs is not None and differs[i, j]
            look = 'stroke="#d55e00" stroke-width="3"' if ring else 'stroke="#888888"'
            parts.append(f'<rect x="{left}" y="{top}" width="{SIDE - 4}" height="{HEIGHT - 4}" fill="none" {look}/>')
            parts.append(f'<text x="{left + 5}" y="{top + 16}" fill="currentColor">{escape(text[:9])}</text>')
    return "".join(parts)
