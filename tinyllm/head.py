"""The language-model head fused with the cross-entropy: the (tokens x vocabulary) logits are never held whole.

Rows of hidden states go through in chunks; each chunk's logits become losses and, if a gradient will be wanted,
gradients at once, in the forward pass, so that nothing is computed twice. Read next: `nn.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from tinyllm.backend.table import of
from tinyllm.frozen import FrozenWeight
from tinyllm.functional import IGNORE, check_targets, count_live, cross_entropy
from tinyllm.tensor import Tensor, checkpoint, op, wants_grad

CHUNK_BYTES = 32 << 20  # one chunk of logits


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
    labels = check_targets(xp.asarray(targets).reshape(-1), classes)
    live = count_live(labels)
    rows = x.data.reshape(-1, n)
    stored = weight if isinstance(weight, FrozenWeight) else weight.data
    trained = isinstance(weight, Tensor) and wants_grad(weight)
    differentiate = wants_grad(x) or trained
    gx = xp.empty(rows.shape, rows.dtype) if differentiate else None
    gw = xp.zeros(stored.shape, rows.dtype) if trained else None
    height = max(1, CHUNK_BYTES // (classes * rows.dtype.itemsize))
    total = rows.dtype.type(0)
    for start in range(0, len(rows), height):
        part = slice(start, start + height)
        logits = xp.empty((len(rows[part]), classes), rows.dtype)
        for columns, w in _tiles(stored):
            logits[:, columns] = rows[part] @ w.T
        losses, lse = be.cross_entropy(logits, labels[part])
        total = total + losses.sum()
        if gx is None:
            continue
        each = xp.full(len(logits), 1 / live, rows.dtype)
        g = be.cross_entropy_backward(each, logits, labels[part], lse)
        gx[part] = 0
        for columns, w in _tiles(stored):
            gx[part] += g[:, columns] @ w
        if gw is not None:
            gw += g.T @ rows[part]
    # A graph serves once, so the rules may scale what was made for them in place.
    edges: list = [(x, lambda g: xp.multiply(gx, g, out=gx).reshape(shape))]
    if isinstance(weight, Tensor):
        edges.append((weight, lambda g: xp.multiply(gw, g, out=gw)))
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
    labels = check_targets(of(x.data).xp.asarray(targets).reshape(-1), classes)
    live = count_live(labels)
    rows = x.reshape(-1, x.shape[-1])
    height = max(1, CHUNK_BYTES // (classes * rows.dtype.itemsize))
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
