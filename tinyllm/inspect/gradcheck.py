"""Are the gradients right? Compare them with differences of the function, along random directions, in float64.

For y = f(x), a random cotangent u and a random direction v, the number <u, df/dx v> is computed twice: as
<gradient, v>, with the gradient that backward leaves when it starts from u, and as a difference of <u, f> along v.
A random cotangent matters: the gradient of softmax(x).sum() is zero, and wrong rules pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from tinyllm.backend import random
from tinyllm.tensor import Tensor, enable_grad, no_grad

STEP = 1e-3  # the formula's own error is STEP**4 / 30 times the fifth derivative; rounding adds eps / STEP
TOLERANCE = 1e-8


class GradientError(AssertionError):
    """A gradient differs from the function's differences."""


def gradcheck(
    function: Callable[..., Tensor], *inputs: Any, directions: int = 3, seed: int = 0, tolerance: float = TOLERANCE
) -> float:
    """Check the gradient of `function` for every input.

    The difference is the five-point formula
    ``(8 (f(x + hv) - f(x - hv)) - (f(x + 2hv) - f(x - 2hv))) / 12h`` (Abramowitz and Stegun, 25.3.6).

    Parameters
    ----------
    function : callable
        From Tensors to one Tensor of any shape, float64. It may draw dropout masks: every call starts at the same
        place of the default generator.
    *inputs : array or Tensor, float64
        Each is checked. A Tensor is handed on itself, so a parameter that `function` reads from a model is checked by
        naming it here: ``gradcheck(lambda w: model.loss(ids, targets), model.head.weight)``. Its data and grad are put
        back. Integer inputs belong into the closure.
    directions : int
        How many random directions, each with a cotangent of its own.
    seed : int
    tolerance : float
        The largest relative error allowed. The scale is the larger of the two numbers and the gradient's length per
        direction; what rounding can do to the difference is allowed on top.

    Returns
    -------
    float
        The worst relative error.

    Raises
    ------
    GradientError
        (an AssertionError) Says which input is wrong, and by how much.
    TypeError
        If an input or the result is not float64.
    """
    if isinstance(function, Tensor) or not callable(function):
        raise TypeError("gradcheck takes a function first, then its inputs: gradcheck(lambda x: x * x, array)")
    if not inputs:
        raise ValueError("gradcheck needs an input to check the gradient of: gradcheck(function, array)")
    tensors = [x if isinstance(x, Tensor) else Tensor(np.asarray(x)) for x in inputs]
    for i, x in enumerate(tensors):
        if x.dtype != np.float64:
            raise TypeError(
                f"input {i} is {x.dtype}, and differences need float64: pass it as .astype('float64'), "
                "or put it into the function's closure if it takes no gradient"
            )
    generator, start = np.random.default_rng(seed), random.default.state

    def run() -> Tensor:
        random.default.restore(start)
        y = function(*tensors)
        if not isinstance(y, Tensor):
            raise TypeError(f"the function must return a Tensor, not {type(y).__name__}")
        if y.dtype != np.float64:
            raise TypeError(f"the function returns {y.dtype}; build everything inside it in float64")
        return y

    worst = 0.0
    with _put_back(tensors):
        for _ in range(directions):
            u, size, gradients = _gradients(run, tensors, generator)
            for i, (x, g) in enumerate(zip(tensors, gradients, strict=True)):
                v = generator.standard_normal(x.shape)
                ours, true = float((g * v).sum()), _difference(run, x, u, v)
                scale = max(abs(ours), abs(true), float(np.sqrt((g * g).sum())))
                allowed = tolerance * scale + 8 * np.finfo(np.float64).eps * size / STEP
                _refuse_wrong(i, x.shape, ours, true, scale, allowed)
                worst = max(worst, abs(ours - true) / scale if scale else 0.0)
    return worst


@contextmanager
def _put_back(tensors: list[Tensor]) -> Iterator[None]:
    """Every tensor needs a gradient inside; data, grad, requires_grad and the generator are as before afterwards."""
    before = [(x.data, x.grad, x.requires_grad) for x in tensors]
    start = random.default.state
    try:
        for x in tensors:
            if not x.requires_grad:
                x.requires_grad = True
        yield
    finally:
        random.default.restore(start)
        for x, (data, grad, needed) in zip(tensors, before, strict=True):
            x.data, x.grad = data, grad
            if not needed:
                x.requires_grad = False


def _gradients(
    run: Callable[[], Tensor], tensors: list[Tensor], generator: np.random.Generator
) -> tuple[np.ndarray, float, list[np.ndarray]]:
    """A random cotangent u, the magnitude of <u, y>, and the gradient that backward leaves in every tensor."""
    for x in tensors:
        x.grad = None
    with enable_grad():
        y = run()
    u = generator.standard_normal(y.shape)
    size = float(np.abs(u * y.numpy()).sum())
    if y.requires_grad:
        y.backward(u)
    return u, size, [np.zeros(x.shape) if x.grad is None else Tensor(x.grad).numpy() for x in tensors]


def _refuse_wrong(i: int, shape: tuple[int, ...], ours: float, true: float, scale: float, allowed: float) -> None:
    error = abs(ours - true)
    if not error <= allowed:  # also true for nan
        raise GradientError(
            f"the gradient for input {i}, shape {shape}, is wrong: along a random direction it gives "
            f"{ours:.10g}, the function's differences {true:.10g} (relative error {error / scale:.2g}, "
            f"allowed {allowed / scale:.2g})"
        )


def _difference(run: Callable[[], Tensor], x: Tensor, u: np.ndarray, v: np.ndarray) -> float:
    """The derivative of <u, f> along v at x, by five points without the middle."""
    data = x.data

    def at(steps: int) -> np.ndarray:
        x.data = data + steps * STEP * v
        with no_grad():
            return run().numpy()

    try:
        slope = (8 * (at(1) - at(-1)) - (at(2) - at(-2))) / (12 * STEP)
    finally:
        x.data = data
    return float((u * slope).sum())
