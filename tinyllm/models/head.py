"""The language-model head fused with the cross-entropy: the (tokens x vocabulary) logits are never held whole.

Rows of hidden states go through in chunks; each chunk's logits become losses and, if a gradient will be wanted,
gradients at once, in the forward pass, so that nothing is computed twice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tinyllm.backend.cpu.threads import cut, share
from tinyllm.backend.table import of
from tinyllm.frozen.weight import TILE_BYTES, FrozenWeight
from tinyllm.functional import IGNORE, cross_entropy, live_targets
from tinyllm.tensor import Tensor, checkpoint, op, wants_grad

CHUNK_BYTES = 26 << 20  # one chunk of logits: rows enough for a fast matmul
BLOCK_BYTES = 1 << 20  # the few of its rows that become losses and gradients at once, and stay in cache meanwhile


def chunk_rows(rows: int, classes: int, itemsize: int) -> int:
    """Rows of a chunk: as many as `CHUNK_BYTES` hold, evened out so that the last chunk is no stump."""
    chunks = -(-rows // max(1, CHUNK_BYTES // (classes * itemsize)))
    return -(-rows // chunks)


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
    labels, live = live_targets(xp, targets, (*shape[:-1], classes))
    rows = x.data.reshape(-1, n)
    frozen = isinstance(weight, FrozenWeight)
    stored: Any = weight.data if isinstance(weight, Tensor) else weight
    trained = isinstance(weight, Tensor) and wants_grad(weight)
    differentiate = wants_grad(x) or trained
    gx = xp.empty(rows.shape, rows.dtype) if differentiate else None
    gw = xp.zeros(stored.shape, rows.dtype) if trained else None
    height = chunk_rows(len(rows), classes, rows.dtype.itemsize)
    buffer = xp.empty((height, classes), rows.dtype)  # the logits of one chunk after the other
    total: Any = 0.0
    half = rows.dtype.itemsize == 2
    each = 1 if half else 1 / live  # half would lose the small gradients of many tokens: there the rule divides
    for start in range(0, len(rows), height):
        x_part, label_part = rows[start : start + height], labels[start : start + height]
        logits = buffer[: len(x_part)]
        if frozen:
            stored.multiply(x_part, logits)
        else:
            be.matmul(x_part, stored.T, logits)
        total = total + _loss(be, logits, label_part, each if differentiate else None)
        if gx is not None:
            gx[start : start + height] = stored.multiply_back(logits) if frozen else be.matmul(logits, stored)
        if gw is not None:
            _add_product(be, gw, logits, x_part)

    def scaled(made: Any, g: Any) -> Any:
        if half:
            return (made * (g / live)).astype(made.dtype)
        return xp.multiply(made, g, out=made)  # in place: a graph serves once

    edges: list = [(x, lambda g: scaled(gx, g).reshape(shape))]
    if isinstance(weight, Tensor):
        edges.append((weight, lambda g: scaled(gw, g)))
    return op(total / live, *edges)


def _add_product(be: Any, gw: Any, logits: Any, x: Any) -> None:
    """gw += logits.T @ x, some classes at once: no second array of the weight's size is made."""
    classes, n = gw.shape

    def work(some: slice) -> None:
        gw[some] += be.matmul(logits[:, some].T, x)

    share(work, cut(classes, classes if be.on_card else max(1, TILE_BYTES // (n * gw.dtype.itemsize))))


def _loss(be: Any, logits: Any, labels: Any, each: float | None) -> Any:
    """The sum of the losses of some rows; `each` is a row's share of the gradient, which takes the logits' place."""
    xp, (rows, classes) = be.xp, logits.shape
    blocks = cut(rows, rows if be.on_card else max(1, BLOCK_BYTES // (classes * logits.dtype.itemsize)))
    sums: list[Any] = [0.0] * len(blocks)

    def work(i: int) -> None:
        block, wanted = logits[blocks[i]], labels[blocks[i]]
        losses, lse = be.cross_entropy(block, wanted)
        sums[i] = losses.sum()
        if each is not None:
            be.cross_entropy_backward(xp.full(len(block), each, losses.dtype), block, wanted, lse, block)

    share(work, range(len(blocks)))
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
