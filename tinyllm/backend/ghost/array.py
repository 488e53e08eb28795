"""The ghost of an array, and NumPy's functions of ghosts."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

from tinyllm.backend.ghost import meter
from tinyllm.backend.ghost.shapes import broadcast, is_basic, outlined, picked, product, result_dtype, without_copy


class Ghost(NDArrayOperatorsMixin):
    """An array without content.

    Parameters
    ----------
    shape : tuple of int
    dtype : dtype

    Attributes
    ----------
    base, owner : Ghost
        Of a view, the ghost it looks into; a view occupies nothing. Without one, `base` is None and `owner` itself.
    label : str
        What it is for, see `Meter`; owners have one.
    """

    __slots__ = ("__weakref__", "_outline", "base", "label", "_meter")

    def __init__(self, shape: Any, dtype: Any = np.float32):
        shape = (shape,) if isinstance(shape, int | np.integer) else tuple(shape)
        self._become(outlined(shape, np.dtype(dtype)), None)

    def _become(self, outline: np.ndarray, base: Ghost | None) -> Ghost:
        self._outline, self.base = outline, base
        if base is None:
            self._meter, self.label = meter.in_force, meter.in_force.label
            self._meter.add(self.label, self.nbytes)
        return self

    def _view(self, outline: np.ndarray) -> Ghost:
        return Ghost.__new__(Ghost)._become(outline, self.owner)

    def __del__(self) -> None:
        if getattr(self, "base", self) is None:
            self._meter.live -= self.nbytes
            self._meter.by_label[self.label] -= self.nbytes

    shape = property(lambda self: self._outline.shape)
    dtype = property(lambda self: self._outline.dtype)
    ndim = property(lambda self: self._outline.ndim)
    size = property(lambda self: self._outline.size)
    nbytes = property(lambda self: self._outline.nbytes)
    itemsize = property(lambda self: self._outline.itemsize)
    strides = property(lambda self: self._outline.strides)
    flags = property(lambda self: self._outline.flags)
    T = property(lambda self: self._view(self._outline.T))
    owner = property(lambda self: self if self.base is None else self.base)

    def __len__(self) -> int:
        return len(self._outline)

    def __repr__(self) -> str:
        return f"Ghost(shape={self.shape}, dtype={self.dtype})"

    # Numbers: a step needs one where the loss or a norm comes to the host. 1 is harmless everywhere.
    def item(self) -> float:
        return 1.0

    def __float__(self) -> float:
        return 1.0

    def __int__(self) -> int:
        return 1

    def __bool__(self) -> bool:
        raise TypeError("a ghost has no content to decide by")

    def __array__(self, *args: Any, **kwargs: Any) -> np.ndarray:
        raise TypeError("a ghost has no content; call the function of its backend's xp, not NumPy's")

    # Views -------------------------------------------------------------------------------------------------------

    def swapaxes(self, a: int, b: int) -> Ghost:
        return self._view(self._outline.swapaxes(a, b))

    def transpose(self, *axes: Any) -> Ghost:
        return self._view(self._outline.transpose(*axes))

    def view(self, dtype: Any) -> Ghost:
        return self._view(self._outline.view(dtype))

    def reshape(self, *shape: Any) -> Ghost:
        """A view where NumPy would give one, else a copy."""
        shape = shape[0] if len(shape) == 1 and not isinstance(shape[0], int | np.integer) else shape
        shape = (shape,) if isinstance(shape, int | np.integer) else tuple(shape)
        if -1 in shape:
            rest = -math.prod(shape)
            shape = tuple(self.size // rest if n == -1 else n for n in shape)
        if math.prod(shape) != self.size:
            raise ValueError(f"cannot reshape {self.shape} to {shape}")
        outline = without_copy(self.shape, self.strides, self.dtype, shape)
        return self._view(outline) if outline is not None else Ghost(shape, self.dtype)

    def __getitem__(self, index: Any) -> Ghost:
        if is_basic(index):
            return self._view(self._outline[index])
        return Ghost(picked(self.shape, index), self.dtype)

    def __setitem__(self, index: Any, value: Any) -> None:
        shape = self._outline[index].shape if is_basic(index) else picked(self.shape, index)
        if broadcast(shape, np.shape(value) if not isinstance(value, Ghost) else value.shape) != shape:
            raise ValueError(f"a value of shape {value.shape} does not fit into {shape}")

    # Copies ------------------------------------------------------------------------------------------------------

    def copy(self) -> Ghost:
        return Ghost(self.shape, self.dtype)

    def astype(self, dtype: Any, copy: bool = True) -> Ghost:
        return self if not copy and np.dtype(dtype) == self.dtype else Ghost(self.shape, dtype)

    def fill(self, value: Any) -> None:
        pass

    def _reduced(self, axis: Any = None, keepdims: bool = False, dtype: Any = None) -> Ghost:
        axes = range(self.ndim) if axis is None else [a % self.ndim for a in np.atleast_1d(axis)]
        kept = [1 if i in axes else n for i, n in enumerate(self.shape) if keepdims or i not in axes]
        return Ghost(kept, dtype or self.dtype)

    max = min = sum = mean = _reduced

    def all(self, axis: Any = None, keepdims: bool = False) -> Any:
        """Asked of all elements at once: yes, as of gains (is one 0?), so that the usual way is taken."""
        return np.True_ if axis is None and not keepdims else self._reduced(axis, keepdims, bool)

    def any(self, axis: Any = None, keepdims: bool = False) -> Ghost:
        return self._reduced(axis, keepdims, bool)

    # NumPy's ufuncs and functions -----------------------------------------------------------------------------------

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, out: Any = None, **options: Any) -> Any:
        if method == "at":
            return None
        if method == "reduce":
            return inputs[0]._reduced(options.get("axis", 0), options.get("keepdims", False))
        if method != "__call__":
            return NotImplemented
        shapes = [getattr(x, "shape", ()) for x in inputs]
        shape = product(*shapes) if ufunc is np.matmul else broadcast(*shapes)
        if out is not None:
            if broadcast(out[0].shape, shape) != out[0].shape:
                raise ValueError(f"a result of shape {shape} does not fit into out, {out[0].shape}")
            return out[0]
        kinds = tuple(getattr(x, "dtype", type(x)) for x in inputs)
        return Ghost(shape, options.get("dtype") or result_dtype(ufunc, kinds))

    def __array_function__(self, function: Callable, types: Any, args: Any, kwargs: Any) -> Any:
        ours = getattr(FUNCTIONS, function.__name__, None)
        if ours is None:
            raise NotImplementedError(f"ghosts do not know numpy.{function.__name__} yet; add it to `ghost/array.py`")
        return ours(*args, **kwargs)


# NumPy's functions ----------------------------------------------------------------------------------------------------


def asarray(x: Any, dtype: Any = None) -> Any:
    """Floats become ghosts; integers, which decide what is computed, stay what they are."""
    if isinstance(x, Ghost):
        return x if dtype is None else x.astype(dtype, copy=False)
    x = np.asarray(x, dtype)
    return Ghost(x.shape, x.dtype) if x.dtype.kind == "f" and x.size > 1 else x


def _like(x: Any, dtype: Any = None) -> Ghost:
    return Ghost(x.shape, dtype or x.dtype)


def _einsum(subscripts: str, *operands: Any) -> Ghost:
    """Explicit ones, with an ellipsis in front or without."""
    inputs, _, output = subscripts.partition("->")
    sizes: dict[str, int] = {}
    lead: list[tuple[int, ...]] = []
    for letters, x in zip(inputs.split(","), operands, strict=True):
        letters = letters.removeprefix("...")
        lead.append(x.shape[: x.ndim - len(letters)])
        sizes |= dict(zip(letters, x.shape[x.ndim - len(letters) :], strict=True))
    front = broadcast(*lead) if "..." in output else ()
    return Ghost(
        (*front, *[sizes[c] for c in output.removeprefix("...")]), np.result_type(*[x.dtype for x in operands])
    )


def _concatenate(arrays: Any, axis: int = 0) -> Ghost:
    arrays = list(arrays)
    shape = list(arrays[0].shape)
    shape[axis] = sum(x.shape[axis] for x in arrays)
    return Ghost(shape, np.result_type(*[x.dtype for x in arrays]))


def _where(condition: Any, a: Any, b: Any) -> Any:
    shape = broadcast(*[getattr(x, "shape", ()) for x in (condition, a, b)])
    return Ghost(shape, result_dtype(np.add, tuple(getattr(x, "dtype", type(x)) for x in (a, b))))


def _take(x: Any, index: Any, axis: int | None = None, out: Any = None, mode: str = "raise") -> Ghost:
    return (
        Ghost(index.shape if axis is None else (*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]), x.dtype)
        if (out is None)
        else out
    )


def _repeat(x: Any, n: int, axis: int | None = None) -> Ghost:
    if axis is None:
        return Ghost(x.size * n, x.dtype)
    return Ghost([size * n if i == axis % x.ndim else size for i, size in enumerate(x.shape)], x.dtype)


def _broadcast_to(x: Any, shape: tuple[int, ...]) -> Ghost:
    return x._view(np.broadcast_to(x._outline, shape))


def _expand_dims(x: Any, axis: Any) -> Ghost:
    return x._view(np.expand_dims(x._outline, axis))


def _clip(x: Any, low: Any, high: Any, out: Any = None) -> Ghost:
    return _like(x) if out is None else out


def contiguous(x: Any, dtype: Any = None) -> Any:
    if not isinstance(x, Ghost):
        return asarray(np.ascontiguousarray(x, dtype))
    same = x.flags.c_contiguous and (dtype is None or np.dtype(dtype) == x.dtype)
    return x if same else _like(x, dtype)


# What NumPy dispatches to a ghost's ``__array_function__``, and the array module's own versions, by NumPy's names.
FUNCTIONS = SimpleNamespace(
    zeros_like=_like, ones_like=_like, empty_like=_like, einsum=_einsum, concatenate=_concatenate, where=_where,
    take=_take, repeat=_repeat, broadcast_to=_broadcast_to, expand_dims=_expand_dims, clip=_clip,
    copyto=lambda target, value, where=True, casting="same_kind": None,
    reshape=lambda x, shape: x.reshape(shape), swapaxes=lambda x, a, b: x.swapaxes(a, b),
    sum=lambda x, axis=None, keepdims=False: x.sum(axis, keepdims), shape=lambda x: x.shape, ndim=lambda x: x.ndim,
)  # fmt: skip
