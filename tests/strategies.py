"""What the property tests draw, and the two measures they share: a gradient check and numbers that carry their error.

Hypothesis draws shapes and a seed, NumPy the numbers: shapes shrink to something readable, and no test fails on a
denormal that nobody asked about.
"""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tinyllm.tensor import Tensor

DTYPES = (np.float32, np.float64)
EPS = np.finfo(np.float64).eps

seeds = st.integers(0, 2**32 - 1)
generators = seeds.map(np.random.default_rng)


def shapes(min_dims=1, max_dims=3, max_side=4):
    """Small shapes without empty axes."""
    return hnp.array_shapes(min_dims=min_dims, max_dims=max_dims, min_side=1, max_side=max_side)


def arrays(min_dims=1, max_dims=3, max_side=4):
    """Small float64 arrays of normal numbers."""
    return st.builds(lambda rng, shape: rng.standard_normal(shape), generators, shapes(min_dims, max_dims, max_side))


def broadcastable(count=2):
    """Several arrays whose shapes broadcast with one another."""
    drawn = hnp.mutually_broadcastable_shapes(num_shapes=count, max_dims=3, max_side=3)
    return st.builds(lambda rng, s: [rng.standard_normal(shape) for shape in s.input_shapes], generators, drawn)


def check_gradient(f, *inputs, seed=0):
    """The property of every operation: ``<g, f(x + h d) - f(x - h d)> / 2h -> <f.backward(g), d>``, float64.

    `f` maps Tensors to one Tensor. The cotangent `g` and one direction `d` for each input are random: with
    ``f(x).sum()`` the softmax, say, would have gradient 0 whatever its rule is. Beside the value it holds that

    * no input and no `g` is changed, and no two gradients share memory;
    * freezing the other inputs does not change a bit of a gradient;
    * in float32 the value and the gradients stay float32.

    The slope is the five-point one. Its error budget is what doubling the step changes (its truncation, an
    overestimate by 15) and ``64 eps`` of the magnitudes over the step (its rounding).
    """
    rng = np.random.default_rng(seed)
    before = [x.copy() for x in inputs]
    leaves = [Tensor(x, requires_grad=True) for x in inputs]
    y = f(*leaves)
    g = rng.standard_normal(y.shape)
    g_before = g.copy()
    y.backward(g)
    gradients = [leaf.grad for leaf in leaves]

    assert y.dtype == np.float64
    for x, x_before, gx in zip(inputs, before, gradients, strict=True):
        assert gx.shape == x.shape and gx.dtype == np.float64
        np.testing.assert_array_equal(x, x_before, err_msg="an input was changed")
    np.testing.assert_array_equal(g, g_before, err_msg="the gradient that came in was changed")
    for a, b in combinations([g, *inputs, *gradients], 2):
        assert a is b or not np.shares_memory(a, b) or not any(b is gx for gx in gradients), "a gradient is shared"

    for i, (x, gx) in enumerate(zip(inputs, gradients, strict=True)):
        direction = rng.standard_normal(x.shape)

        def value(t, i=i, direction=direction):
            moved = [Tensor(a + t * direction) if j == i else Tensor(a) for j, a in enumerate(inputs)]
            return float((f(*moved).data * g).sum())

        def slope(h, value=value):
            return (8 * (value(h) - value(-h)) - (value(2 * h) - value(-2 * h))) / (12 * h)

        h = 1e-3
        numeric, analytic = slope(h), float((gx * direction).sum())
        magnitude = np.abs(g).sum() * (1 + np.abs(y.data).max(initial=0) + np.abs(x).max(initial=0))
        budget = abs(numeric - slope(2 * h)) + 64 * EPS * magnitude / h
        assert budget < 1e-6 * magnitude, "this point is too rough to measure a slope at: draw tamer inputs"
        assert abs(numeric - analytic) <= budget, f"input {i}: {analytic}, but the slope is {numeric} +- {budget:.1e}"

        alone = [Tensor(a, requires_grad=j == i) for j, a in enumerate(inputs)]
        f(*alone).backward(g)
        np.testing.assert_array_equal(alone[i].grad, gx, err_msg="freezing the others changed a gradient")
        assert all(t.grad is None for j, t in enumerate(alone) if j != i)

    single = [Tensor(x.astype(np.float32), requires_grad=True) for x in inputs]
    y32 = f(*single)
    y32.backward(g.astype(np.float32))
    assert y32.dtype == np.float32 and all(t.grad.dtype == np.float32 for t in single), "float32 became float64"


class Num:
    """A number with a first-order bound on its rounding error, in units of eps (Wilkinson's running error analysis).

    A plain loop over Nums is at once the definition of a primitive and its error budget. Python floats are constants
    that were rounded once; ints are exact.
    """

    __slots__ = ("value", "error")

    def __init__(self, value, error=0.0):
        self.value, self.error = float(value), float(error)

    @staticmethod
    def lift(x):
        return x if isinstance(x, Num) else Num(x, 0 if isinstance(x, int) else abs(x))

    def __add__(self, other):
        a, b = self, Num.lift(other)
        return Num(a.value + b.value, a.error + b.error + abs(a.value + b.value))

    def __mul__(self, other):
        a, b = self, Num.lift(other)
        y = a.value * b.value
        return Num(y, abs(a.value) * b.error + abs(b.value) * a.error + abs(y))

    def __truediv__(self, other):
        a, b = self, Num.lift(other)
        y = a.value / b.value
        return Num(y, (a.error + abs(y) * b.error) / abs(b.value) + abs(y))

    def __neg__(self):
        return Num(-self.value, self.error)

    def __sub__(self, other):
        return self + -Num.lift(other)

    def __rsub__(self, other):
        return Num.lift(other) - self

    def __rtruediv__(self, other):
        return Num.lift(other) / self

    __radd__, __rmul__ = __add__, __mul__

    def of(self, f, slope, floor=0.0):
        """f(self), given f's slope there; library functions are good to 2 eps."""
        y = f(self.value)
        return Num(y, abs(slope) * self.error + 2 * max(abs(y), floor))


def exp(x):
    return x.of(math.exp, math.exp(x.value))


def log(x):
    return x.of(math.log, 1 / x.value)


def sqrt(x):
    return x.of(math.sqrt, 0.5 / math.sqrt(x.value) if x.value else 0)


def tanh(x):
    return x.of(math.tanh, 1 - math.tanh(x.value) ** 2)


def erf(x):
    """The primitive promises an absolute error of an eps, near 0 too."""
    return x.of(math.erf, 2 / math.sqrt(math.pi) * math.exp(-(x.value**2)), floor=1.0)


def nums(x):
    """An array as an object array of exact Nums, to write plain loops with."""
    y = np.empty(x.shape, dtype=object)
    for i in np.ndindex(x.shape):
        y[i] = Num(x[i])
    return y


def assert_within(got, wanted, dtype, k=2, name="", least=0.0):
    """|got - wanted| <= k * eps(dtype) * the error each wanted Num carries, or `least`."""
    wanted = np.asarray(wanted, dtype=object)
    assert got.shape == wanted.shape and got.dtype == dtype, f"{name}: {got.dtype}{got.shape}, not {wanted.shape}"
    eps = np.finfo(dtype).eps
    for i in np.ndindex(wanted.shape):
        w = Num.lift(wanted[i])
        error, budget = abs(float(got[i]) - w.value), max(k * eps * w.error, least)
        assert error <= budget, f"{name}{list(i)}: {got[i]} is off {w.value} by {error:.2e}, allowed {budget:.2e}"
