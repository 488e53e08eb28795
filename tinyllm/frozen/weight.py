"""What every stored weight can do: rows as floats, tiles, products; and the two operations on one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import prod
from typing import Any

import numpy
import numpy as np

from tinyllm.backend.table import Backend, of
from tinyllm.tensor import Tensor, op

CHECKED = 1 << 20  # elements at a time


def refuse_non_finite(array, name=None, because="a frozen weight must be finite"):
    """Raise ValueError if `array` holds a NaN or an infinity: how many, where the first is, and what to do."""
    if array.ndim > 1 and array.size > CHECKED:  # some rows at a time: a mask of a whole embedding would be 131 MB
        rows = max(1, CHECKED * len(array) // array.size)
        if all(of(array).xp.isfinite(array[i : i + rows]).all() for i in range(0, len(array), rows)):
            return
    finite = of(array).xp.isfinite(array).reshape(-1)
    bad = finite.size - int(finite.sum())
    if bad:
        first = numpy.unravel_index(int(finite.argmin()), array.shape)
        raise ValueError(
            f"{_called(name)} has {bad} non-finite value{'s' * (bad > 1)}, the first at {[int(i) for i in first]} "
            f"({because}); repair the checkpoint, or keep this weight in float32"
        )


def _called(name):
    return f"the weight {name!r}" if name else "the array"


TILE_BYTES = 4 << 20  # of each thread: rows enough even of wide matrices, since each product copies all of x first

WORTH = 1 << 14  # weights from which on the tiles of a matrix are shared among threads


class FrozenWeight:
    """What a stored weight must offer; see `HalfWeight` and `NF4Weight`.

    Attributes
    ----------
    shape : tuple of int
    dtype : numpy.dtype
        The dtype it computes in.
    storage : str
        ``"float16"``, ``"bfloat16"`` or ``"nf4"``.
    nbytes : int
        What it really occupies.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    storage: str
    nbytes: int
    requires_grad = False

    @property
    def size(self) -> int:
        return prod(self.shape)

    def rows(self, start: int, stop: int, out: Any) -> Any:
        """Rows start..stop as floats, (stop - start, columns), written into `out`."""
        raise NotImplementedError

    def take(self, ids: Any) -> Any:
        """Rows by index, for embeddings: (..., columns)."""
        raise NotImplementedError

    def move(self, to: Callable[[Any], Any]) -> FrozenWeight:
        """The same weight with ``to(array)`` in the place of each array: to a GPU, or back."""
        raise NotImplementedError

    def step(self) -> int:
        """The fewest rows at which a tile may end."""
        return 1

    def tiles(self, spans: list[slice] | None = None) -> Iterator[tuple[slice, Any]]:
        """Pairs of a row range and its floats, of all rows or of these. A tile is valid until the next: they share a
        buffer."""
        spans = self.spans() if spans is None else spans
        buffer = self.xp.empty((spans[0].stop - spans[0].start, self.shape[1]), self.dtype)
        for part in spans:
            yield part, self.rows(part.start, part.stop, buffer[: part.stop - part.start])

    def spans(self) -> list[slice]:
        """The row ranges of the tiles, evened out so that each thread has as many; the first is the longest."""
        n, columns = self.shape
        even = self.size >= WORTH
        return self.backend.pieces(n, columns * self.dtype.itemsize, TILE_BYTES, self.step(), even)

    def runs(self) -> list[list[slice]]:
        """The spans dealt out: one run of them for each thread."""
        spans = self.spans()
        return [spans[part] for part in self.backend.pieces(len(spans), even=True)]

    @property
    def backend(self) -> Backend:
        """That of the arrays it stores."""
        raise NotImplementedError

    @property
    def xp(self) -> Any:
        return self.backend.xp

    def multiply(self, x: Any, out: Any = None) -> Any:
        """x @ W.T, tile by tile, written into `out` if it is given; x (rows, in): (rows, out)."""
        be = of(x)
        y = self.xp.empty((len(x), self.shape[0]), x.dtype) if out is None else out

        def work(run: list[slice]) -> None:
            for part, w in self.tiles(run):
                be.matmul(x, w.T, y[:, part])

        be.share(work, self.runs())
        return y

    def multiply_back(self, g: Any) -> Any:
        """g @ W, tile by tile; g (rows, out): (rows, in)."""
        be, runs = of(g), self.runs()
        sums: list[Any] = [None] * len(runs)  # each thread's own, added up in order

        def work(i: int) -> None:
            product = None
            for part, w in self.tiles(runs[i]):
                if sums[i] is None:
                    sums[i] = be.matmul(g[:, part], w)
                else:
                    product = be.matmul(g[:, part], w, product)
                    sums[i] += product

        be.share(work, range(len(runs)))
        total = sums[0]
        for one in sums[1:]:
            total += one
        return total

    def dense(self) -> Any:
        """The whole weight as floats: for merging and for looking at it."""
        return self.rows(0, self.shape[0], self.xp.empty(self.shape, self.dtype))

    def __repr__(self) -> str:
        return f"{type(self).__name__}(shape={self.shape}, storage={self.storage!r}, {self.nbytes:,} bytes)"


def frozen_linear(x: Tensor, weight: FrozenWeight, bias: Tensor | None = None) -> Tensor:
    """x @ weight.T + bias, tile by tile; x (..., in), weight (out, in): (..., out).

    The rule for x names the stored weight, so no float copy of a layer outlives a tile.
    """
    n_out, n_in = weight.shape
    shape = x.shape
    if shape[-1] != n_in:
        raise ValueError(f"linear: the input has {shape[-1]} features, the weight {weight.shape} takes {n_in}")
    rows = x.data.reshape(-1, n_in)
    y = weight.multiply(rows)

    y = y.reshape(*shape[:-1], n_out)
    edges: list = [(x, lambda g: weight.multiply_back(g.reshape(-1, n_out)).reshape(shape))]
    if bias is not None:
        y += bias.data
        edges.append((bias, lambda g: g.reshape(-1, n_out).sum(axis=0)))
    return op(y, *edges)


def frozen_embedding(weight: FrozenWeight, ids: Any) -> Tensor:
    """Rows of a stored weight; nothing in it trains."""
    return Tensor(weight.take(ids))
