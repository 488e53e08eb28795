"""A weight kept as floats: the same products and rows as of a stored one, on the array itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from tinyllm.backend.table import Backend, of
from tinyllm.frozen.weight import TILE_BYTES, Weight
from tinyllm.tensor import Parameter


class Dense(Weight):
    """The face of a `Weight` on an array of floats, (out, in).

    It is made for one operation and owns nothing; what trains is the Parameter whose array this is.
    """

    def __init__(self, array: Any):
        self.array = array

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return self.array.shape

    @property
    def dtype(self) -> np.dtype:  # type: ignore[override]
        return self.array.dtype

    @property
    def storage(self) -> str:  # type: ignore[override]
        return self.array.dtype.name

    @property
    def nbytes(self) -> int:  # type: ignore[override]
        return self.array.nbytes

    @property
    def backend(self) -> Backend:
        return of(self.array)

    def computing_in(self, dtype: np.dtype) -> Weight:
        # What trains is float32, also beside activations in half precision.
        return Dense(self.array.astype(dtype)) if dtype.itemsize == 2 and self.array.dtype != dtype else self

    def multiply(self, x: Any, out: Any = None) -> Any:
        return of(x).matmul(x, self.array.T, out)

    def multiply_back(self, g: Any) -> Any:
        return of(g).matmul(g, self.array)

    def take(self, ids: Any) -> Any:
        return self.array[ids]

    def tiles(self) -> Iterator[tuple[slice, Any]]:
        height = max(1, TILE_BYTES // (self.shape[1] * self.dtype.itemsize))
        for start in range(0, self.shape[0], height):
            part = slice(start, min(start + height, self.shape[0]))
            yield part, self.array[part]

    def dense(self) -> Any:
        return self.array

    def transposed(self) -> Dense:
        return Dense(self.array.T)

    def move(self, to: Callable[[Any], Any]) -> Dense:
        return Dense(to(self.array))

    def like(self, array: Any, name: str = "") -> Parameter:
        return Parameter(array, requires_grad=False)

    def parts(self, name: str) -> dict[str, Any]:
        return {name: self.array}
