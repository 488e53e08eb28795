"""The language-model head fused with the cross-entropy: the (tokens x vocabulary) logits are never held whole.

Rows of hidden states go through in chunks; each chunk's logits become losses and, if a gradient will be wanted,
gradients at once, in the forward pass, so that nothing is computed twice. Read next: `nn.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from tinyllm.backend.table import of
from tinyllm.frozen import FrozenWeight, multiply_into
from tinyllm.functional import IGNORE, cross_entropy, live_targets
from tinyllm.tensor import Tensor, checkpoint, op, wants_grad

CHUNK_BYTES = 32 << 20  # one chunk of logits: rows enough for a fast matmul
BLOCK_BYTES = 2 << 20  # the few of its rows that become losses and gradients at once, and stay in cache meanwhile


def chunk_rows(rows: int, classes: int, itemsize: int) -> int:
    """Rows of a chunk: as many as `CHUNK_BYTES` hold, evened out so that the last chunk is no stump."""
    chunks = -(-rows // max(1, CHUNK_BYTES // (classes * itemsize)))
    return -(-rows // chunks)


def _tiles(weight: Any) -> Iterator[tuple[slice, Any]]:
    if isinstance(weight, FrozenWeight):
        yield from weight.tiles()
    else:
        yield slice(0, len(weight)), weight


def linear_cross_entropy(x: Tensor, weight: Tensor | FrozenWeight, targets: Any) -> Tensor:
    """``cross_entropy(linear(x, weight), targets)`` in chunks of rows.

    Parameters
    ----------
    x : Tensor (..., n)
    weight : Tensor or FrozenWeight (classes, n)
    targets : int array (...)
        -100 is ignored.

    Returns
    -------
    Tensor ()
        The mean loss over the live targets.
    """
    be, shape = of(x.data), x.shape
    xp, n = be.xp, shape[-1]
    classes = weight.shape[0]
    labels, live = live_targets(xp, targets, classes)
    rows = x.data.reshape(-1, n)
    stored = weight if isinstance(weight, FrozenWeight) else weight.data
    trained = isinstance(weight, Tensor) and wants_grad(weight)
    differentiate = wants_grad(x) or trained
    gx = xp.zeros(rows.shape, rows.dtype) if differentiate else None
    gw = xp.zeros(stored.shape, rows.dtype) if trained else None
    height = chunk_rows(len(rows), classes, rows.dtype.itemsize)
    few = max(1, BLOCK_BYTES // (classes * rows.dtype.itemsize)) if xp.__name__ != "cupy" else height
    buffer = xp.empty((height, classes), rows.dtype)  # the logits of one chunk after the other
    total: Any = 0.0
    half = rows.dtype.itemsize == 2
    share = 1 if half else 1 / live  # half would lose the small gradients of many tokens: there the rule divides
    for start in range(0, len(rows), height):
        x_part, label_part = rows[start : start + height], labels[start : start + height]
        logits = buffer[: len(x_part)]
        for columns, w in _tiles(stored):
            multiply_into(logits[:, columns], x_part, w.T)
        for first in range(0, len(logits), few):
            block, wanted = logits[first : first + few], label_part[first : first + few]
            losses, lse = be.cross_entropy(block, wanted)
            total = total + losses.sum()
            if differentiate:  # the logits have served: their gradient takes their place
                each = xp.full(len(block), share, losses.dtype)
                be.cross_entropy_backward(each, block, wanted, lse, block)
        if gx is not None:
            for columns, w in _tiles(stored):
                gx[start : start + height] += logits[:, columns] @ w
        if gw is not None:
            gw += logits.T @ x_part

    def scaled(made: Any, g: Any) -> Any:
        if half:
            return (made * (g / live)).astype(made.dtype)
        return xp.multiply(made, g, out=made)  # in place: a graph serves once

    edges: list = [(x, lambda g: scaled(gx, g).reshape(shape))]
    if isinstance(weight, Tensor):
        edges.append((weight, lambda g: scaled(gw, g)))
    return op(total / live, *edges)


def chunked_cross_entropy(x: Tensor, head: Callable[[Tensor], Tensor], targets: Any, classes: int) -> Tensor:
    """``cross_entropy(head(x), targets)`` in chunks of rows, for a head that is more than one matrix.

    Each chunk's logits are computed again in backward.

    Parameters
    ----------
    x : Tensor (..., n)
    head : callable
        From (rows, n) to (rows, classes), say a `LoRALinear`.
    targets : int array (...)
        -100 is ignored.
    classes : int

    Returns
    -------
    Tensor ()
        The mean loss over the live targets.
    """
    labels, live = live_targets(np, targets, classes)  # cut and counted on the host
    rows = x.reshape(-1, x.shape[-1])
    height = chunk_rows(len(labels), classes, rows.dtype.itemsize)
    losses = []
    for start in range(0, len(rows), height):
        some = labels[start : start + height]
        n = int((some != IGNORE).sum())
        if n:  # the mean of no target is none
            mean = checkpoint(lambda r, some=some: cross_entropy(head(r), some), rows[start : start + height])
            losses.append(mean * (n / live))
    total = losses[0]
    for loss in losses[1:]:
        total = total + loss
    return total
