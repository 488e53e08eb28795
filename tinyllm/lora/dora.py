"""DoRA: an update that learns how long a weight's rows are apart from where they point (arXiv 2402.09353).

A row of W is one output's weights. DoRA writes it as a length m times a direction, lets LoRA turn the direction, and
trains m beside it:

    V = W + scale * B A          (out, in), the direction, not normed
    y = m / |V| * V x + bias     |V| (out,): the norm of each row

At first B = 0 and m = |W|, so that y is the base's to the last bit. |V| is computed anew in every forward pass, but the
gradient takes it as a constant (section 4.3 of the paper), as PEFT does: with G = dL/d(Vx m/|V|) summed over the
tokens against x, dL/dB = scale * (m/|V| * G) A^T, dL/dA = scale * B^T (m/|V| * G), dL/dm = sum(G * V/|V|) over rows.
The paper's m stands for columns of its transposed W: the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tinyllm.backend.table import of
from tinyllm.frozen.weight import TILE_BYTES, FrozenWeight


def tiles(weight: Any) -> Iterator[tuple[slice, Any]]:
    """Pairs of a row range and its floats, of a stored weight or of an array; never to be written to."""
    if isinstance(weight, FrozenWeight):
        yield from weight.tiles()
        return
    height = max(1, TILE_BYTES // (weight.shape[1] * weight.dtype.itemsize))
    for start in range(0, weight.shape[0], height):
        yield (part := slice(start, min(start + height, weight.shape[0]))), weight[part]


def norms_of(v: Any) -> Any:
    """The length of each row, (rows,); 1 for a row of zeros, whose direction no length can change."""
    xp = of(v).xp
    n = xp.sqrt((v * v).sum(axis=1))
    return xp.where(n == 0, n.dtype.type(1), n)


def row_norms(weight: Any, a: Any, b: Any, scale: float) -> Any:
    """The row norms of W + scale * B A, tile by tile: no float copy of a stored weight outlives a tile.

    Parameters
    ----------
    weight : FrozenWeight or array (out, in)
    a, b : array (r, in), (out, r)
    scale : float

    Returns
    -------
    array (out,)
    """
    return of(a).xp.concatenate([norms_of(w + scale * (b[part] @ a)) for part, w in tiles(weight)])
