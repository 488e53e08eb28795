"""Arithmetic, shapes and reductions: the value of each operation and its gradient rules.

A rule names arrays and shapes only, never a Tensor (that would keep the whole graph behind it), and what it names is
what is kept for backward: `add` keeps nothing, `exp` its output, `mul` both inputs. Constants may be Python numbers or
arrays; they take the tensor's dtype, so a float32 model never turns float64. Two tensors of different dtypes are an
error: say ``.astype`` where you mean it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tinyllm.backend.table import of
from tinyllm.tensor import Tensor, op


def unbroadcast(g: Any, shape: tuple[int, ...]) -> Any:
    """Sum `g` over the axes along which an array of `shape` was broadcast.

    The transpose of broadcasting: what was copied forward is added up backward.
    """
    if g.shape == shape:
        return g
    g = g.sum(axis=tuple(range(g.ndim - len(shape))))
    stretched = tuple(i for i, n in enumerate(shape) if n == 1 and g.shape[i] != 1)
    return g.sum(axis=stretched, keepdims=True) if stretched else g


def pair(a: Any, b: Any) -> tuple[Tensor, Tensor]:
    """Both operands as tensors of one dtype; a constant takes the tensor's."""
    if not isinstance(a, Tensor):
        a = _constant(a, b.data)
    elif not isinstance(b, Tensor):
        b = _constant(b, a.data)
    elif a.data.dtype != b.data.dtype:
        raise TypeError(f"operands are {a.dtype} and {b.dtype}; convert one with .astype()")
    return a, b


def _constant(value: Any, like: Any) -> Tensor:
    if like.dtype.kind in "iub" and np.asarray(value).dtype.kind == "f":  # 0.5 would silently become 0
        raise TypeError(
            f"a constant of floats meets a tensor of {like.dtype}; convert the tensor with .astype('float32')"
        )
    return Tensor(of(like).xp.asarray(value, dtype=like.dtype))


def add(a: Any, b: Any) -> Tensor:
    """a + b, broadcasting."""
    a, b = pair(a, b)
    a_shape, b_shape = a.shape, b.shape
    return op(a.data + b.data, (a, lambda g: unbroadcast(g, a_shape)), (b, lambda g: unbroadcast(g, b_shape)))


def sub(a: Any, b: Any) -> Tensor:
    """a - b, broadcasting."""
    a, b = pair(a, b)
    a_shape, b_shape = a.shape, b.shape
    return op(a.data - b.data, (a, lambda g: unbroadcast(g, a_shape)), (b, lambda g: unbroadcast(-g, b_shape)))


def mul(a: Any, b: Any) -> Tensor:
    """a * b, broadcasting."""
    a, b = pair(a, b)
    x, y, a_shape, b_shape = a.data, b.data, a.shape, b.shape
    return op(x * y, (a, lambda g: unbroadcast(g * y, a_shape)), (b, lambda g: unbroadcast(g * x, b_shape)))


def div(a: Any, b: Any) -> Tensor:
    """a / b, broadcasting."""
    a, b = pair(a, b)
    x, y, a_shape, b_shape = a.data, b.data, a.shape, b.shape
    return op(x / y, (a, lambda g: unbroadcast(g / y, a_shape)), (b, lambda g: unbroadcast(-g * x / (y * y), b_shape)))


def neg(a: Tensor) -> Tensor:
    """-a."""
    return op(-a.data, (a, lambda g: -g))


def power(a: Tensor, exponent: float) -> Tensor:
    """a ** exponent, for a constant exponent; TypeError if it is no single number."""
    if isinstance(exponent, Tensor) or np.ndim(exponent):
        raise TypeError("the exponent must be a number; use exp(b * log(a))")
    x = a.data
    exponent = getattr(exponent, "item", lambda: exponent)()  # a NumPy scalar would turn float32 to float64
    if exponent == 0:  # 0 * x ** -1 is not a number at x = 0
        return op(x**exponent, (a, lambda g: of(g).xp.zeros_like(g)))
    return op(x**exponent, (a, lambda g: g * (exponent * x ** (exponent - 1))))


def exp(a: Tensor) -> Tensor:
    """e ** a."""
    y = of(a.data).xp.exp(a.data)
    return op(y, (a, lambda g: g * y))


def log(a: Tensor) -> Tensor:
    """The natural logarithm."""
    x = a.data
    return op(of(x).xp.log(x), (a, lambda g: g / x))


def tanh(a: Tensor) -> Tensor:
    """Hyperbolic tangent."""
    y = of(a.data).xp.tanh(a.data)
    return op(y, (a, lambda g: g * (1 - y * y)))


def sigmoid(a: Tensor) -> Tensor:
    """1 / (1 + e ** -a), without overflow on either side."""
    y = of(a.data).sigmoid(a.data)
    return op(y, (a, lambda g: g * (y * (1 - y))))


def sqrt(a: Tensor) -> Tensor:
    """The square root."""
    y = of(a.data).xp.sqrt(a.data)
    return op(y, (a, lambda g: g / (2 * y)))


def where(condition: Any, a: Any, b: Any) -> Tensor:
    """`a` where `condition` holds, else `b`; the condition (an array of bool) has no gradient."""
    a, b = pair(a, b)
    mask = condition.data if isinstance(condition, Tensor) else of(a.data).xp.asarray(condition)
    a_shape, b_shape = a.shape, b.shape
    return op(
        of(a.data).xp.where(mask, a.data, b.data),
        (a, lambda g: unbroadcast(g * mask, a_shape)),
        (b, lambda g: unbroadcast(g * ~mask, b_shape)),
    )


def maximum(a: Any, b: Any) -> Tensor:
    """The larger of the two; where they tie, each gets half the gradient (the subgradient PyTorch takes)."""
    a, b = pair(a, b)
    x, y, a_shape, b_shape = a.data, b.data, a.shape, b.shape

    def share(g: Any, mine: Any, other: Any) -> Any:
        return g * ((mine > other) + 0.5 * (mine == other)).astype(g.dtype)

    return op(
        of(x).xp.maximum(x, y),
        (a, lambda g: unbroadcast(share(g, x, y), a_shape)),
        (b, lambda g: unbroadcast(share(g, y, x), b_shape)),
    )


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """a @ b for two or more axes each, broadcasting the leading ones.

    Raises
    ------
    ValueError
        If the inner sizes differ.
    """
    a, b = pair(a, b)
    x, y = a.data, b.data
    if x.ndim < 2 or y.ndim < 2 or x.shape[-1] != y.shape[-2]:
        inner = (
            f": inner {x.shape[-1]} and {y.shape[-2]} differ" if min(x.ndim, y.ndim) >= 2 else " needs two axes each"
        )
        raise ValueError(f"matmul {x.shape} @ {y.shape}{inner}")
    be, a_shape, b_shape = of(x), a.shape, b.shape
    return op(
        be.matmul(x, y),
        (a, lambda g: unbroadcast(be.matmul(g, y.swapaxes(-1, -2)), a_shape)),
        (b, lambda g: unbroadcast(be.matmul(x.swapaxes(-1, -2), g), b_shape)),
    )


def reshape(a: Tensor, *shape: Any) -> Tensor:
    """The same numbers in another shape, ``reshape(a, 2, 3)`` or ``reshape(a, (2, 3))``."""
    new = shape[0] if len(shape) == 1 and isinstance(shape[0], tuple | list) else shape
    before = a.shape
    return op(a.data.reshape(new), (a, lambda g: g.reshape(before)))


def transpose(a: Tensor, *axes: Any) -> Tensor:
    """The axes in the order given; reversed without one."""
    order = axes[0] if len(axes) == 1 and isinstance(axes[0], tuple | list) else axes
    order = tuple(i % a.ndim for i in order) or tuple(range(a.ndim))[::-1]
    inverse = tuple(int(i) for i in np.argsort(order))
    return op(a.data.transpose(order), (a, lambda g: g.transpose(inverse)))


def swapaxes(a: Tensor, i: int, j: int) -> Tensor:
    """Two axes exchanged."""
    return op(a.data.swapaxes(i, j), (a, lambda g: g.swapaxes(i, j)))


def getitem(a: Tensor, index: Any) -> Tensor:
    """a[index] for anything NumPy can index with. An element taken twice gets both gradients."""
    if isinstance(index, Tensor):
        index = index.data
    shape, xp = a.shape, of(a.data).xp
    parts = index if isinstance(index, tuple) else (index,)
    if any(isinstance(part, np.ndarray) for part in parts):  # on a GPU an index must be there, too
        parts = tuple(xp.asarray(part) if isinstance(part, np.ndarray) else part for part in parts)
        index = parts if isinstance(index, tuple) else parts[0]
    basic = all(part is None or part is Ellipsis or isinstance(part, int | slice) for part in parts)

    def getitem_rule(g: Any) -> Any:
        y = xp.zeros(shape, g.dtype)
        if basic:  # a slice takes no element twice
            y[index] = g
        else:
            xp.add.at(y, index, g)
        return y

    return op(a.data[index], (a, getitem_rule))


def concatenate(tensors: Sequence[Tensor], axis: int = 0) -> Tensor:
    """Join along an axis."""
    xp = of(tensors[0].data).xp
    ends = np.cumsum([t.shape[axis] for t in tensors])
    edges = []
    for t, end in zip(tensors, ends, strict=True):
        cut = [slice(None)] * t.ndim
        cut[axis] = slice(int(end) - t.shape[axis], int(end))
        edges.append((t, lambda g, cut=tuple(cut): g[cut]))
    return op(xp.concatenate([t.data for t in tensors], axis), *edges)


def split(a: Tensor, sizes: Sequence[int], axis: int = -1) -> list[Tensor]:
    """Pieces of the given sizes along an axis; the opposite of `concatenate`."""
    total = int(np.sum(sizes))  # the builtin's name is taken here
    if total != a.shape[axis]:
        raise ValueError(f"sizes {list(sizes)} add up to {total}, but axis {axis} has {a.shape[axis]}")
    pieces, start = [], 0
    for size in sizes:
        cut: list[Any] = [slice(None)] * a.ndim
        cut[axis] = slice(start, start + size)
        pieces.append(getitem(a, tuple(cut)))
        start += size
    return pieces


def _spread(g: Any, shape: tuple[int, ...], axis: Any, keepdims: bool, xp: Any) -> Any:
    """A reduction's gradient, given back its reduced axes, as a read-only view of `shape`."""
    if axis is not None and not keepdims:
        g = xp.expand_dims(g, axis)
    return xp.broadcast_to(g, shape)


def sum(a: Tensor, axis: Any = None, keepdims: bool = False) -> Tensor:
    """The sum over `axis` (all axes by default)."""
    shape, xp = a.shape, of(a.data).xp
    return op(a.data.sum(axis=axis, keepdims=keepdims), (a, lambda g: _spread(g, shape, axis, keepdims, xp)))


def mean(a: Tensor, axis: Any = None, keepdims: bool = False) -> Tensor:
    """The mean over `axis` (all axes by default)."""
    shape, xp = a.shape, of(a.data).xp
    y = a.data.mean(axis=axis, keepdims=keepdims)
    n = a.data.size // (y.size or 1)
    return op(y, (a, lambda g: _spread(g / n, shape, axis, keepdims, xp)))


def max(a: Tensor, axis: Any = None, keepdims: bool = False) -> Tensor:
    """The largest element over `axis`; where several tie, they share the gradient evenly."""
    x, shape, xp = a.data, a.shape, of(a.data).xp
    y = x.max(axis=axis, keepdims=keepdims)

    def max_rule(g: Any) -> Any:
        hit = x == _spread(xp.asarray(y), shape, axis, keepdims, xp)
        share = hit / hit.sum(axis=axis, keepdims=True)
        return _spread(g, shape, axis, keepdims, xp) * share.astype(g.dtype)

    return op(y, (a, max_rule))


def astype(a: Tensor, dtype: Any) -> Tensor:
    """The same numbers in another dtype; the gradient comes back in this one's."""
    before = a.data.dtype
    return op(a.data.astype(dtype), (a, lambda g: g.astype(before)))


def _attach() -> None:
    """Give Tensor its operators; here because tensor.py comes before ops.py."""
    for name, function in {
        "__add__": add,
        "__radd__": add,
        "__sub__": sub,
        "__rsub__": lambda a, b: sub(b, a),
        "__mul__": mul,
        "__rmul__": mul,
        "__truediv__": div,
        "__rtruediv__": lambda a, b: div(b, a),
        "__matmul__": matmul,
        "__pow__": power,
        "__neg__": neg,
        "__getitem__": getitem,
    }.items():
        setattr(Tensor, name, function)
    for function in (sum, mean, max, reshape, transpose, swapaxes, exp, log, tanh, sigmoid, sqrt, astype):
        setattr(Tensor, function.__name__, function)
    Tensor.T = property(transpose)  # type: ignore[assignment, method-assign]


_attach()
