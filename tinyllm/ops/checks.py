"""What operations ask of what they are given: tensors, with dtypes and shapes that belong together."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from inspect import signature
from typing import Any, TypeVar, cast

import numpy as np

from tinyllm.backend.names import in_our_words
from tinyllm.tensor import Tensor, require_tensors

F = TypeVar("F", bound=Callable)


def of_tensor(function: F) -> F:
    """An operation on one tensor, which says so when it is given an array or another library's ``dim``."""
    named, first = in_our_words()(function), next(iter(signature(function).parameters))

    @wraps(function)
    def checked(*args: Any, **given: Any) -> Tensor:
        if args or first in given:
            require_tensors(function.__name__, args[0] if args else given[first])
        return named(*args, **given) if given else function(*args)

    return cast(F, checked)


def check_dtypes(operation: str, x: Tensor, *others: Any) -> None:
    """Tensors beside x have its dtype, as in arithmetic; only float32 may stand beside half precision.

    Raises
    ------
    TypeError
        If they have not, or x is no tensor.
    """
    # Of what kind they are is asked first: a tensor that lacks an attribute looks for the one that was meant.
    strangers = [y for y in others if not (y is None or isinstance(y, Tensor) or hasattr(y, "storage"))]
    require_tensors(operation, x, *strangers)
    for other in others:
        mixed = isinstance(other, Tensor) and other.dtype != x.dtype
        if mixed and not (x.dtype.itemsize == 2 and other.dtype == np.float32):
            raise TypeError(f"{operation}: the tensors are {x.dtype} and {other.dtype}; convert one with .astype()")


def check_shape(operation: str, name: str, array: Any, shape: tuple[int, ...]) -> None:
    """ValueError unless the array has this shape: what broadcasts by accident is refused."""
    found = array.shape if hasattr(array, "shape") else np.shape(array)  # NumPy is not to be asked of a card's array
    if found != shape:
        raise ValueError(f"{operation}: {name} has shape {found}, but {shape} is needed")
