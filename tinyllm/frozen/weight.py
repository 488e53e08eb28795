"""What a layer can do with its weight, and how a weight that stores less than floats does it: tile by tile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import prod
from typing import Any, TypeVar

import numpy as np

from tinyllm.backend.table import Backend, of

TILE_BYTES = 4 << 20  # of each thread: rows enough even of wide matrices, since each product copies all of x first
WORTH = 1 << 14  # weights from which on the tiles of a matrix are shared among threads

W = TypeVar("W", bound="Weight")


class Weight:
    """What a layer can do with its weight, however it is kept: see `Dense`, `HalfWeight` and `NF4Weight`.

    `stored` gives this face to a Parameter, too, so that every layer is written once.

    Attributes
    ----------
    shape : tuple of int
    dtype : numpy.dtype
        The dtype it computes in.
    storage : str
        What it is kept as: a dtype's name, or ``"nf4"``.
    nbytes : int
        What it really occupies.
    frozen : bool
        Whether it is stored in fewer bits, for good.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    storage: str
    nbytes: int
    frozen = False
    requires_grad = False
    node = None  # no place in a graph: `op` drops the rule for it, and so a frozen weight costs nothing

    @property
    def size(self) -> int:
        return prod(self.shape)

    @property
    def backend(self) -> Backend:
        """That of the arrays it stores."""
        raise NotImplementedError

    @property
    def xp(self) -> Any:
        return self.backend.xp

    def computing_in(self, dtype: np.dtype) -> Weight:
        """This weight for an input of `dtype`."""
        return self

    def multiply(self, x: Any, out: Any = None) -> Any:
        """x @ W.T, written into `out` if it is given; x (rows, in): (rows, out)."""
        raise NotImplementedError

    def multiply_back(self, g: Any) -> Any:
        """g @ W; g (rows, out): (rows, in)."""
        raise NotImplementedError

    def take(self, ids: Any) -> Any:
        """Rows by index, for embeddings: (..., columns)."""
        raise NotImplementedError

    def tiles(self) -> Iterator[tuple[slice, Any]]:
        """Pairs of a row range and its floats, (rows, in), valid until the next and never to be written to."""
        raise NotImplementedError

    def dense(self) -> Any:
        """The whole weight as floats: for merging and for looking at it."""
        raise NotImplementedError

    def transposed(self) -> Weight:
        """W.T, looking into the same memory; some files keep their weights so. Four-bit blocks cannot be turned."""
        raise NotImplementedError

    def move(self: W, to: Callable[[Any], Any]) -> W:
        """The same weight with ``to(array)`` in the place of each array: to a GPU, or back."""
        raise NotImplementedError

    def like(self, array: Any, name: str = "") -> Any:
        """Another array, frozen and kept as this weight is; `name` is named in errors."""
        raise NotImplementedError

    def parts(self, name: str) -> dict[str, Any]:
        """The arrays that a file holds of it, by name."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"{type(self).__name__}(shape={self.shape}, storage={self.storage!r}, {self.nbytes:,} bytes)"


class FrozenWeight(Weight):
    """A weight that stores less than floats and never becomes a float matrix: products go tile by tile.

    A rule names the *packed* weight and unpacks it again on the way back. That is what makes QLoRA smaller than LoRA.
    """

    frozen = True

    def rows(self, start: int, stop: int, out: Any) -> Any:
        """Rows start..stop as floats, (stop - start, columns), written into `out`."""
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

    def multiply(self, x: Any, out: Any = None) -> Any:
        be = of(x)
        y = self.xp.empty((len(x), self.shape[0]), x.dtype) if out is None else out

        def work(run: list[slice]) -> None:
            for part, w in self.tiles(run):
                be.matmul(x, w.T, y[:, part])

        be.share(work, self.runs())
        return y

    def multiply_back(self, g: Any) -> Any:
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
        return self.rows(0, self.shape[0], self.xp.empty(self.shape, self.dtype))
