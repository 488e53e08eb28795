"""Many numbers become one along the axes: each rule spreads its gradient out over them again."""

from __future__ import annotations

import math
from typing import Any

from tinyllm.backend.table import of
from tinyllm.ops.arithmetic import floats
from tinyllm.ops.checks import of_tensor
from tinyllm.ops.shapes import axis_of
from tinyllm.tensor import Tensor, op


def _axes(axis: Any, ndim: int) -> tuple[int, ...]:
    """The reduced axes, counted from the front; all of them for None."""
    if axis is None:
        return tuple(range(ndim))
    return tuple(axis_of(i, ndim) for i in (axis if isinstance(axis, tuple) else (axis,)))


def _count(shape: tuple[int, ...], axis: Any) -> int:
    """How many numbers become one."""
    return math.prod(shape[i] for i in _axes(axis, len(shape)))


def _spread(g: Any, shape: tuple[int, ...], axis: Any, keepdims: bool) -> Any:
    """A reduction's gradient, given back its reduced axes, as a read-only view of `shape`."""
    xp = of(g).xp
    if axis is not None and not keepdims:
        g = xp.expand_dims(g, axis)
    return xp.broadcast_to(g, shape)


@of_tensor
def sum(a: Tensor, axis: Any = None, keepdims: bool = False) -> Tensor:
    """The sum over `axis` (all axes by default)."""
    shape = a.shape
    return op(a.data.sum(axis=axis, keepdims=keepdims), (a, lambda g: _spread(g, shape, axis, keepdims)))


@of_tensor
def mean(a: Tensor, axis: Any = None, keepdims: bool = False) -> Tensor:
    """The mean over `axis` (all axes by default)."""
    y = floats(a).mean(axis=axis, keepdims=keepdims)
    shape, n = a.shape, _count(a.shape, axis)
    return op(y, (a, lambda g: _spread(g / n, shape, axis, keepdims)))


@of_tensor
def var(a: Tensor, axis: Any = None, correction: float = 1, keepdims: bool = False) -> Tensor:
    """The variance: squared distances from the mean, added up and divided by n - correction.

    As in PyTorch, `correction` is 1 by default (unbiased, of a sample); 0 is NumPy's default.
    """
    x, n = floats(a), _freedom(a, axis, correction)
    y = x.var(axis=axis, ddof=correction, keepdims=keepdims)
    return op(y, (a, lambda g: _spread(g * (2 / n), x.shape, axis, keepdims) * (x - x.mean(axis, keepdims=True))))


@of_tensor
def std(a: Tensor, axis: Any = None, correction: float = 1, keepdims: bool = False) -> Tensor:
    """The standard deviation, the root of `var`; where all numbers are alike its gradient is 0, as in PyTorch."""
    x, n = floats(a), _freedom(a, axis, correction)
    xp, y = of(x).xp, x.std(axis=axis, ddof=correction, keepdims=keepdims)

    def std_rule(g: Any) -> Any:
        slope = xp.where(y == 0, 0, g / (xp.where(y == 0, 1, y) * n))
        return _spread(slope, x.shape, axis, keepdims) * (x - x.mean(axis, keepdims=True))

    return op(y, (a, std_rule))


def _freedom(a: Tensor, axis: Any, correction: float) -> float:
    n = _count(a.shape, axis) - correction
    if n <= 0:
        raise ValueError(f"the variance of {n + correction} numbers needs a correction below that, not {correction}")
    return n


@of_tensor
def prod(a: Tensor, axis: Any = None, keepdims: bool = False) -> Tensor:
    """The product over `axis` (all axes by default)."""
    x, axes, xp = a.data, _axes(axis, a.ndim), of(a.data).xp

    def prod_rule(g: Any) -> Any:
        # The product of the others is that of those before times that of those behind: a 0 divides nothing.
        last = tuple(range(-len(axes), 0))
        moved = xp.moveaxis(x, axes, last)
        flat = moved.reshape(*moved.shape[: x.ndim - len(axes)], _count(x.shape, axes))
        one = xp.ones_like(flat[..., :1])
        before = xp.cumprod(xp.concatenate([one, flat[..., :-1]], axis=-1), axis=-1)
        behind = xp.flip(xp.cumprod(xp.concatenate([one, xp.flip(flat[..., 1:], -1)], axis=-1), axis=-1), -1)
        others = xp.moveaxis((before * behind).reshape(moved.shape), last, axes)
        return _spread(g, x.shape, axis, keepdims) * others

    return op(x.prod(axis=axis, keepdims=keepdims), (a, prod_rule))


@of_tensor
def max(a: Tensor, axis: Any = None, keepdims: bool = False) -> Tensor:
    """The largest element over `axis`; where several tie, they share the gradient evenly."""
    x = a.data
    y = x.max(axis=axis, keepdims=keepdims)
    return op(y, (a, lambda g: _to_hits(g, x, y, axis, keepdims)))


@of_tensor
def min(a: Tensor, axis: Any = None, keepdims: bool = False) -> Tensor:
    """The smallest element over `axis`; where several tie, they share the gradient evenly."""
    x = a.data
    y = x.min(axis=axis, keepdims=keepdims)
    return op(y, (a, lambda g: _to_hits(g, x, y, axis, keepdims)))


def _to_hits(g: Any, x: Any, y: Any, axis: Any, keepdims: bool) -> Any:
    """The gradient, shared evenly by the elements of x that are y."""
    xp = of(x).xp
    hit = (x == _spread(xp.asarray(y), x.shape, axis, keepdims)) | (x != x)  # one that is no number makes y none
    share = _spread(g, x.shape, axis, keepdims) / hit.sum(axis=axis, keepdims=True).astype(x.dtype)
    return xp.where(hit, share, 0)


@of_tensor
def cumsum(a: Tensor, axis: int | None = None) -> Tensor:
    """At each place the sum of what stands up to there, along `axis`; of all numbers in a row without one."""
    shape, xp, along = a.shape, of(a.data).xp, 0 if axis is None else axis
    return op(
        a.data.cumsum(axis),
        (a, lambda g: xp.flip(xp.cumsum(xp.flip(g, along), along), along).reshape(shape)),
    )
