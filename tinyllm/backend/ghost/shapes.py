"""What NumPy says of a result before it computes it: its shape, its dtype, and whether it is a view."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

broadcast = cache(np.broadcast_shapes)
PLAIN = (slice, int, np.integer, type(None), type(Ellipsis))  # what basic indexing takes


@cache
def result_dtype(ufunc: np.ufunc, kinds: tuple) -> np.dtype:
    return ufunc.resolve_dtypes((*kinds, *[None] * ufunc.nout))[-1]


@cache  # the same shapes come again in every layer
def outlined(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array of this shape over one element, in memory as a whole one would be: NumPy's own views of it are true."""
    steps = [dtype.itemsize * math.prod(shape[i + 1 :]) for i in range(len(shape))]
    return as_strided(np.zeros((), dtype), shape, steps, writeable=False)


@cache
def product(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a matrix product."""
    a2, b2 = (1, *a) if len(a) == 1 else a, (*b, 1) if len(b) == 1 else b
    if a2[-1] != b2[-2]:
        raise ValueError(f"shapes {a} and {b} do not multiply")
    rows = () if len(a) == 1 else (a2[-2],)
    columns = () if len(b) == 1 else (b2[-1],)
    return (*broadcast(a2[:-2], b2[:-2]), *rows, *columns)


def is_basic(index: Any) -> bool:
    parts = index if isinstance(index, tuple) else (index,)
    return all(isinstance(part, PLAIN) and not isinstance(part, bool) for part in parts)


def picked(shape: tuple[int, ...], index: Any) -> tuple[int, ...]:
    """The shape of an advanced indexing by integer arrays on the first axes."""
    parts = index if isinstance(index, tuple) else (index,)
    if not all(hasattr(part, "dtype") and part.dtype.kind in "iu" for part in parts):
        raise NotImplementedError(f"ghosts are picked from by arrays of integers alone, not by {index!r}")
    return (*broadcast(*[part.shape for part in parts]), *shape[len(parts) :])


@cache
def without_copy(
    before: tuple[int, ...], steps: tuple[int, ...], dtype: np.dtype, shape: tuple[int, ...]
) -> np.ndarray | None:
    """An outline in another shape if that is a view. (``reshape(copy=False)`` would say so, from NumPy 2.1 on.)

    `before` and `steps` are the shape and the strides so far.
    """
    element = np.zeros((), dtype)
    if not math.prod(before):
        return as_strided(element, shape, [0] * len(shape), writeable=False)
    old = [(n, s) for n, s in zip(before, steps, strict=True) if n != 1]
    strides: list[int] = []
    i = 0
    for n in shape:
        if n == 1:
            strides.append(0)
            continue
        # Runs of old axes and of new axes that hold equally many elements must match; old ones must lie side by side.
        if i == len(old):
            return None
        if old[i][0] % n == 0:  # split an old axis
            rest = old[i][0] // n
            strides.append(old[i][1] * rest)
            old[i] = (rest, old[i][1])
            if rest == 1:
                i += 1
            continue
        while old[i][0] % n:  # join old axes
            if i + 1 == len(old) or old[i][1] != old[i + 1][0] * old[i + 1][1]:
                return None
            old[i + 1] = (old[i][0] * old[i + 1][0], old[i + 1][1])
            i += 1
        rest = old[i][0] // n
        strides.append(old[i][1] * rest)
        old[i] = (rest, old[i][1])
        if rest == 1:
            i += 1
    return as_strided(element, shape, strides, writeable=False)
