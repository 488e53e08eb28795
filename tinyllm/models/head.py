"""The language-model head fused with the cross-entropy: the (tokens x vocabulary) logits never exist all at once.

Rows of hidden states go through in chunks; each chunk's logits become losses and, if a gradient will be wanted,
gradients at once, in the forward pass, so that nothing is computed twice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tinyllm.backend.table import of
from tinyllm.frozen import Weight, stored
from tinyllm.frozen.weight import TILE_BYTES
from tinyllm.functional import IGNORE, cross_entropy, live_targets
from tinyllm.tensor import Tensor, checkpoint, op, wants_grad

CHUNK_BYTES = 26 << 20  # one chunk of logits: rows enough for a fast matmul
BLOCK_BYTES = 1 << 20  # the few of its rows that become losses and gradients at once, and stay in cache meanwhile


def chunk_rows(rows: int, classes: int, itemsize: int) -> int:
    """Rows of a chunk: as many as `CHUNK_BYTES` hold, evened out so that the last chunk is no stump."""
    chunks = -(-rows // max(1, CHUNK_BYTES // (classes * itemsize)))
    return -(-rows // chunks)


def linear_cross_entropy(x: Tensor, weight: Tensor | Weight, targets: Any) -> Tensor:
    """``cross_entropy(linear(x, weight), targets)`` in chunks of rows.

    Parameters
    ----------
    x : Tensor (..., n)
    weight : Tensor or Weight (classes, n)
    targets : int array (...)
        -100 is ignored.

    Returns
    -------
    Tensor ()
        The mean loss over the live targets.
    """
    be, w, shape = of(x.data), stored(weight).computing_in(x.dtype), x.shape
    rows = x.data.reshape(-1, shape[-1])
    labels, live = live_targets(be.xp, targets, (*shape[:-1], w.shape[0]))
    gx = be.xp.empty(rows.shape, rows.dtype) if wants_grad(x) else None
    gw = be.xp.zeros(w.shape, np.promote_types(rows.dtype, np.float32)) if wants_grad(weight) else None
    # The gradient of a row's loss is 1/live of the mean's. In half that would lose small ones: there the rule divides.
    half = rows.dtype.itemsize == 2
    total = _in_chunks(be, rows, labels, w, 1 if half else 1 / live, gx, gw)

    def scaled(made: Any, g: Any) -> Any:
        if half:
            return (made * (g / live)).astype(made.dtype)
        return be.xp.multiply(made, g, out=made)  # in place: a graph serves once

    return op(total / live, (x, lambda g: scaled(gx, g).reshape(shape)), (weight, lambda g: scaled(gw, g)))


def _in_chunks(be: Any, rows: Any, labels: Any, w: Weight, each: float, gx: Any, gw: Any) -> Any:
    """The sum of all rows' losses; the gradients of `each` times that sum are written into `gx` and `gw`.

    These are (tokens, n) and (classes, n), or None where no gradient is wanted.
    """
    classes, differentiate = w.shape[0], gx is not None or gw is not None
    total: Any = 0.0
    height = chunk_rows(len(rows), classes, rows.dtype.itemsize)
    buffer = be.xp.empty((height, classes), rows.dtype)  # the logits of one chunk after the other
    for start in be.in_turn(range(0, len(rows), height)):
        chunk = rows[start : start + height]
        logits = buffer[: len(chunk)]
        w.multiply(chunk, logits)
        total = total + _loss(be, logits, labels[start : start + height], each if differentiate else None)
        if gx is not None:
            gx[start : start + height] = w.multiply_back(logits)
        if gw is not None:
            _add_product(be, gw, logits, chunk)
    return total


def _add_product(be: Any, gw: Any, logits: Any, x: Any) -> None:
    """gw += logits.T @ x, some classes at once: no second array of the weight's size is made."""
    classes, n = gw.shape

    def work(some: slice) -> None:
        gw[some] += be.matmul(logits[:, some].T, x)

    be.share(work, be.pieces(classes, n * gw.dtype.itemsize, TILE_BYTES))


def _loss(be: Any, logits: Any, labels: Any, each: float | None) -> Any:
    """The sum of the losses of some rows; `each` is a row's share of the gradient, which takes the logits' place."""
    xp, (rows, classes) = be.xp, logits.shape
    blocks = be.pieces(rows, classes * logits.dtype.itemsize, BLOCK_BYTES)
    sums: list[Any] = [0.0] * len(blocks)

    def work(i: int) -> None:
        block, wanted = logits[blocks[i]], labels[blocks[i]]
        losses, lse = be.cross_entropy(block, wanted)
        sums[i] = losses.sum()
        if each is not None:
            be.cross_entropy_backward(xp.full(len(block), each, losses.dtype), block, wanted, lse, block)

    be.share(work, range(len(blocks)))
    return sum(sums[1:], sums[0])


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
    labels, live = live_targets(np, targets, (*x.shape[:-1], classes))  # cut and counted on the host
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
