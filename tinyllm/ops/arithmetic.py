"""Arithmetic, number by number: what each operation gives and the rule for each input.

A rule names arrays only, never a Tensor (that would keep the whole graph behind it), and what it names is what is kept
for backward: `add` keeps nothing, `exp` its output, `mul` both inputs. Constants may be Python numbers or arrays; they
take the tensor's dtype, so a float32 model never turns float64. Two tensors of different dtypes are an error: write
``.astype`` where you mean it. Functions that give fractions make float32 of integers, as in PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tinyllm.backend.table import of
from tinyllm.ops.checks import of_tensor
from tinyllm.tensor import Tensor, op


def pair(a: Any, b: Any) -> tuple[Tensor, Tensor]:
    """Both operands as tensors of one dtype; a constant takes the tensor's."""
    if not isinstance(a, Tensor):
        b = b if isinstance(b, Tensor) else Tensor(b)
        a = _constant(a, b.data)
    elif not isinstance(b, Tensor):
        b = _constant(b, a.data)
    elif a.data.dtype != b.data.dtype:
        raise TypeError(f"operands are {a.dtype} and {b.dtype}; convert one with .astype()")
    return a, b


def alike(operands: Sequence[Any]) -> list[Tensor]:
    """Any number of operands, as `pair` has two."""
    first = next((x for x in operands if isinstance(x, Tensor)), Tensor(operands[0]))
    return [pair(first, x)[1] for x in operands]


def _constant(value: Any, like: Any) -> Tensor:
    if not is_number(value):
        raise TypeError(f"an operand is a tensor, an array or a number, not {type(value).__name__}")
    if like.dtype.kind in "iub" and np.asarray(value).dtype.kind == "f":  # 0.5 would silently become 0
        raise TypeError(
            f"a constant of floats meets a tensor of {like.dtype}; convert the tensor with .astype('float32')"
        )
    return Tensor(of(like).xp.asarray(value, dtype=like.dtype))


def is_number(value: Any) -> bool:
    """Whether this is a number or an array of them; None, text and objects are not."""
    if isinstance(value, float | int):
        return True
    dtype = getattr(value, "dtype", None)
    dtype = dtype if isinstance(dtype, np.dtype) else np.asarray(value).dtype  # torch has dtypes of its own
    return dtype.kind in "biuf" or dtype.name == "bfloat16"


def floats(a: Tensor) -> Any:
    """The array of a tensor; of integers, in float32."""
    return a.data.astype(np.float32) if a.data.dtype.kind in "iub" else a.data


def compare(a: Tensor, b: Any, how: Callable) -> Any:
    """``how(a, b)`` of each number, as a tensor of bool without a gradient; not for what is no number."""
    if not isinstance(b, Tensor) and not is_number(b):
        return NotImplemented
    if a.dtype.kind not in "iub":
        a, b = pair(a, b)
    return Tensor(how(a.data, of(a.data).xp.asarray(b.data if isinstance(b, Tensor) else b)))


def add(a: Any, b: Any) -> Tensor:
    """a + b, broadcasting."""
    a, b = pair(a, b)
    return op(a.data + b.data, (a, lambda g: g), (b, lambda g: g))


def sub(a: Any, b: Any) -> Tensor:
    """a - b, broadcasting."""
    a, b = pair(a, b)
    return op(a.data - b.data, (a, lambda g: g), (b, lambda g: -g))


def mul(a: Any, b: Any) -> Tensor:
    """a * b, broadcasting."""
    a, b = pair(a, b)
    x, y = a.data, b.data
    return op(x * y, (a, lambda g: g * y), (b, lambda g: g * x))


def div(a: Any, b: Any) -> Tensor:
    """a / b, broadcasting."""
    a, b = pair(a, b)
    x, y = floats(a), floats(b)
    return op(x / y, (a, lambda g: g / y), (b, lambda g: -g * x / (y * y)))


def power(a: Any, exponent: Any) -> Tensor:
    """a ** exponent, broadcasting; either may be a constant."""
    if not isinstance(exponent, Tensor) and is_number(exponent) and not np.ndim(exponent):
        return _constant_power(a, exponent)
    a, exponent = pair(a, exponent)
    xp, x, p = of(a.data).xp, floats(a), floats(exponent)
    y = x**p

    def exponent_rule(g: Any) -> Any:
        never = (x == 0) & (y <= 1)  # p is not below 0: there 0 ** p stays what it is, and log 0 is not asked for
        return xp.where(never, 0, g * y * xp.log(xp.where(never, 1, x)))

    # 0 * x ** -1 is not a number at x = 0
    return op(y, (a, lambda g: xp.where(p == 0, 0, g * p * x ** xp.where(p == 0, 1, p - 1))), (exponent, exponent_rule))


def _constant_power(a: Tensor, exponent: Any) -> Tensor:
    exponent = getattr(exponent, "item", lambda: exponent)()  # a NumPy scalar would turn float32 to float64
    x = floats(a) if isinstance(exponent, float) else a.data  # whole powers of integers are integers
    if exponent == 0:  # 0 * x ** -1 is not a number at x = 0
        return op(x**exponent, (a, lambda g: of(g).xp.zeros_like(g)))
    return op(x**exponent, (a, lambda g: g * (exponent * x ** (exponent - 1))))


@of_tensor
def neg(a: Tensor) -> Tensor:
    """-a."""
    return op(-a.data, (a, lambda g: -g))


@of_tensor
def abs(a: Tensor) -> Tensor:
    """``|a|``; its slope at 0 is 0."""
    x, xp = a.data, of(a.data).xp
    return op(xp.abs(x), (a, lambda g: g * xp.sign(x)))


@of_tensor
def square(a: Tensor) -> Tensor:
    """a * a."""
    x = a.data
    return op(x * x, (a, lambda g: g * (2 * x)))


@of_tensor
def sqrt(a: Tensor) -> Tensor:
    """The square root."""
    y = of(a.data).xp.sqrt(floats(a))
    return op(y, (a, lambda g: g / (2 * y)))


@of_tensor
def exp(a: Tensor) -> Tensor:
    """e ** a."""
    y = of(a.data).xp.exp(floats(a))
    return op(y, (a, lambda g: g * y))


@of_tensor
def expm1(a: Tensor) -> Tensor:
    """e ** a - 1, exact for small a, too."""
    y = of(a.data).xp.expm1(floats(a))
    return op(y, (a, lambda g: g * (y + 1)))


@of_tensor
def log(a: Tensor) -> Tensor:
    """The natural logarithm."""
    x = floats(a)
    return op(of(x).xp.log(x), (a, lambda g: g / x))


@of_tensor
def log1p(a: Tensor) -> Tensor:
    """log(1 + a), exact for small a, too."""
    x = floats(a)
    return op(of(x).xp.log1p(x), (a, lambda g: g / (1 + x)))


@of_tensor
def sin(a: Tensor) -> Tensor:
    """The sine."""
    x, xp = floats(a), of(a.data).xp
    return op(xp.sin(x), (a, lambda g: g * xp.cos(x)))


@of_tensor
def cos(a: Tensor) -> Tensor:
    """The cosine."""
    x, xp = floats(a), of(a.data).xp
    return op(xp.cos(x), (a, lambda g: -g * xp.sin(x)))


@of_tensor
def tanh(a: Tensor) -> Tensor:
    """Hyperbolic tangent."""
    y = of(a.data).xp.tanh(floats(a))
    return op(y, (a, lambda g: g * (1 - y * y)))


@of_tensor
def sigmoid(a: Tensor) -> Tensor:
    """1 / (1 + e ** -a), without overflow on either side."""
    y = of(a.data).sigmoid(a.data)
    return op(y, (a, lambda g: g * (y * (1 - y))))


def where(condition: Any, a: Any, b: Any) -> Tensor:
    """`a` where `condition` is true (or not 0), else `b`; the condition has no gradient.

    The side that is not taken gets 0, whatever the gradient is: infinity times 0 would not be a number.
    """
    a, b = pair(a, b)
    xp = of(a.data).xp
    mask = (condition.data if isinstance(condition, Tensor) else xp.asarray(condition)).astype(bool, copy=False)
    return op(
        xp.where(mask, a.data, b.data),
        (a, lambda g: xp.where(mask, g, 0)),
        (b, lambda g: xp.where(mask, 0, g)),
    )


def maximum(a: Any, b: Any) -> Tensor:
    """The larger of the two; where they tie, each gets half the gradient (the subgradient PyTorch takes)."""
    a, b = pair(a, b)
    x, y, xp = a.data, b.data, of(a.data).xp

    def share(g: Any, mine: Any, other: Any) -> Any:
        return xp.where(mine < other, 0, xp.where(mine == other, g / 2, g))

    return op(xp.maximum(x, y), (a, lambda g: share(g, x, y)), (b, lambda g: share(g, y, x)))


def minimum(a: Any, b: Any) -> Tensor:
    """The smaller of the two; where they tie, each gets half the gradient."""
    a, b = pair(a, b)
    x, y, xp = a.data, b.data, of(a.data).xp

    def share(g: Any, mine: Any, other: Any) -> Any:
        return xp.where(mine > other, 0, xp.where(mine == other, g / 2, g))

    return op(xp.minimum(x, y), (a, lambda g: share(g, x, y)), (b, lambda g: share(g, y, x)))


@of_tensor
def clip(a: Tensor, min: Any = None, max: Any = None) -> Tensor:
    """`a`, but no smaller than `min` and no larger than `max`, which are constants; on them the gradient passes.

    Raises
    ------
    TypeError
        If a bound is a tensor (`maximum` and `minimum` have a gradient for both), or there is none at all.
    """
    if min is None and max is None or isinstance(min, Tensor) or isinstance(max, Tensor):
        raise TypeError("clip needs a number as min, max or both; use maximum and minimum for bounds that are tensors")
    x, xp = a.data, of(a.data).xp
    low, high = (None if bound is None else _constant(bound, x).data for bound in (min, max))

    def clip_rule(g: Any) -> Any:
        inside = xp.ones(x.shape, bool) if low is None else x >= low
        return xp.where(inside if high is None else inside & (x <= high), g, 0)

    return op(xp.clip(x, low, high), (a, clip_rule))


@of_tensor
def astype(a: Tensor, dtype: Any) -> Tensor:
    """The same numbers in another dtype; the gradient comes back in this one's."""
    before = a.data.dtype
    return op(a.data.astype(dtype), (a, lambda g: g.astype(before)))
