"""The same numbers in other places: reshaped, turned, picked, joined; each rule puts the gradient back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tinyllm.backend.names import few, in_our_words
from tinyllm.backend.table import of
from tinyllm.ops.arithmetic import alike
from tinyllm.ops.checks import of_tensor
from tinyllm.tensor import Tensor, op


def axis_of(axis: int, ndim: int) -> int:
    """The axis, counted from the front; ValueError if there is no such one, TypeError if it is no integer."""
    if not isinstance(axis, int | np.integer):
        raise TypeError(f"an axis is an integer, not {axis!r}")
    if not -ndim <= axis < ndim:
        raise ValueError(f"axis {axis} is out of range: there are {ndim} axes")
    return axis % ndim


@of_tensor
def reshape(a: Tensor, *shape: Any) -> Tensor:
    """The same numbers in another shape, ``reshape(a, 2, 3)`` or ``reshape(a, (2, 3))``."""
    new = shape[0] if len(shape) == 1 and isinstance(shape[0], tuple | list) else shape
    before = a.shape
    return op(a.data.reshape(new), (a, lambda g: g.reshape(before)))


@of_tensor
def squeeze(a: Tensor, axis: Any = None) -> Tensor:
    """Without axes of length 1: those given, or all of them."""
    before = a.shape
    return op(a.data.squeeze(axis), (a, lambda g: g.reshape(before)))


@of_tensor
def expand_dims(a: Tensor, axis: Any) -> Tensor:
    """With an axis of length 1 at each place given."""
    before = a.shape
    return op(of(a.data).xp.expand_dims(a.data, axis), (a, lambda g: g.reshape(before)))


@of_tensor
def transpose(a: Tensor, *axes: Any) -> Tensor:
    """The axes in the order given; reversed without one."""
    order = axes[0] if len(axes) == 1 and isinstance(axes[0], tuple | list) else axes
    order = tuple(axis_of(i, a.ndim) for i in order) or tuple(range(a.ndim))[::-1]
    inverse = tuple(int(i) for i in np.argsort(order))
    return op(a.data.transpose(order), (a, lambda g: g.transpose(inverse)))


@of_tensor
def swapaxes(a: Tensor, i: int, j: int) -> Tensor:
    """Two axes exchanged."""
    return op(a.data.swapaxes(i, j), (a, lambda g: g.swapaxes(i, j)))


@of_tensor
def flip(a: Tensor, axis: Any = None) -> Tensor:
    """The order along the axes reversed; along all of them without one."""
    xp = of(a.data).xp
    return op(xp.flip(a.data, axis), (a, lambda g: xp.flip(g, axis)))


@of_tensor
def getitem(a: Tensor, index: Any) -> Tensor:
    """a[index] for anything NumPy can index with. An element taken twice gets both gradients."""
    shape, xp = a.shape, of(a.data).xp
    parts = tuple(
        part.data if isinstance(part, Tensor) else part for part in (index if isinstance(index, tuple) else (index,))
    )
    if any(isinstance(part, np.ndarray) for part in parts):  # on a GPU an index must be there, too
        parts = tuple(xp.asarray(part) if isinstance(part, np.ndarray) else part for part in parts)
    index = parts if isinstance(index, tuple) else parts[0]
    basic = all(part is None or part is Ellipsis or isinstance(part, int | slice) for part in parts)

    def getitem_rule(g: Any) -> Any:
        y = xp.zeros(shape, g.dtype if basic else np.promote_types(g.dtype, np.float32))
        if basic:  # a slice takes no element twice
            y[index] = g
        else:
            xp.add.at(y, index, g.astype(y.dtype, copy=False))
        return y

    return op(a.data[index], (a, getitem_rule))


@in_our_words()
def concatenate(tensors: Sequence[Any], axis: int = 0) -> Tensor:
    """Join along an axis; arrays among the tensors are constants."""
    if isinstance(tensors, Tensor):
        raise TypeError("concatenate takes a list of tensors, not one alone: put them in []")
    if not len(tensors):
        raise ValueError("there is nothing to join: the list of tensors is empty")
    tensors = alike(tensors)
    axis = axis_of(axis, tensors[0].ndim)
    try:
        joined = of(tensors[0].data).xp.concatenate([t.data for t in tensors], axis)
    except ValueError:
        shapes = few([str(t.shape) for t in tensors])
        raise ValueError(f"shapes {shapes} cannot be joined along axis {axis}: the other axes must be alike") from None
    edges, end = [], 0
    for t in tensors:
        start, end = end, end + t.shape[axis]
        cut = (*[slice(None)] * axis, slice(start, end))
        edges.append((t, lambda g, cut=cut: g[cut]))
    return op(joined, *edges)


@in_our_words()
def stack(tensors: Sequence[Any], axis: int = 0) -> Tensor:
    """Join along a new axis."""
    return concatenate([expand_dims(t, axis) for t in alike(tensors)] if len(tensors) else [], axis)


@of_tensor
def split(a: Tensor, sizes: Sequence[int], axis: int = -1) -> list[Tensor]:
    """Pieces of the given sizes along an axis; the opposite of `concatenate`."""
    axis = axis_of(axis, a.ndim)
    if sum(sizes) != a.shape[axis]:
        raise ValueError(f"sizes {list(sizes)} add up to {sum(sizes)}, but axis {axis} has {a.shape[axis]}")
    pieces, end = [], 0
    for size in sizes:
        start, end = end, end + size
        pieces.append(getitem(a, (*[slice(None)] * axis, slice(start, end))))
    return pieces
