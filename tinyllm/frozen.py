"""Frozen weights that store less than float32: half precision (16 bits) or NF4 (4.127 bits a weight).

A `FrozenWeight` never becomes a float matrix: `frozen_linear` multiplies tile by tile, and its rule names the *packed*
weight and unpacks it again on the way back. That is what makes QLoRA smaller than LoRA. Read next: `nn.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import gcd, prod
from typing import Any

import numpy as np

from tinyllm.backend.table import Backend, of
from tinyllm.backend.threads import cut, get_num_threads, share
from tinyllm.double_quant import dequantize_absmax, quantize_absmax
from tinyllm.nf4 import check_block_size, refuse_non_finite
from tinyllm.tensor import Tensor, op

TILE_BYTES = 4 << 20  # of each thread: rows enough even of wide matrices, since each product copies all of x first
WORTH = 1 << 14  # weights from which on the tiles of a matrix are shared among threads
SIGN_EXPONENT_MANTISSA = np.int32(~0x70001FFF)  # of a float16 that was shifted 13 places to the left
FEW_ROWS = 4  # so few that reading the weight is all the work: decoding
CARD_TILE_BYTES = 256 << 20  # on a GPU a tile is most often the whole matrix, so that one product fills the card


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
        step, on_card = self.step(), self.backend.on_card
        most = (CARD_TILE_BYTES if on_card else TILE_BYTES) // (columns * self.dtype.itemsize)
        count = -(-n // max(1, most))
        if not on_card and self.size >= WORTH:
            count = -(-count // get_num_threads()) * get_num_threads()
        return cut(n, min(n, -(-n // (count * step)) * step))

    def runs(self) -> list[list[slice]]:
        """The spans dealt out: one run of them for each thread."""
        spans = self.spans()
        n = 1 if self.backend.on_card else get_num_threads()
        return [spans[part] for part in cut(len(spans), -(-len(spans) // n))]

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

        share(work, self.runs())
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

        share(work, range(len(runs)))
        total = sums[0]
        for one in sums[1:]:
            total += one
        return total

    def dense(self) -> Any:
        """The whole weight as floats: for merging and for looking at it."""
        return self.rows(0, self.shape[0], self.xp.empty(self.shape, self.dtype))

    def __repr__(self) -> str:
        return f"{type(self).__name__}(shape={self.shape}, storage={self.storage!r}, {self.nbytes:,} bytes)"


class HalfWeight(FrozenWeight):
    """A weight stored as float16 or bfloat16, rounded to nearest even.

    Parameters
    ----------
    bits : uint16 array
        The 16-bit patterns.
    storage : {"float16", "bfloat16"}
    dtype : dtype
        What it computes in.
    """

    def __init__(self, bits: Any, storage: str, dtype: Any = np.float32):
        self.bits, self.storage = bits, storage
        self.shape, self.dtype, self.nbytes = bits.shape, np.dtype(dtype), bits.nbytes

    @classmethod
    def quantize(cls, w: Any, storage: str, name: str = "") -> HalfWeight:
        """Round an array to half precision. Raises ValueError for values that overflow it or are not finite."""
        refuse_non_finite(w, name)
        if storage == "float16":
            with np.errstate(over="ignore"):
                half = w.astype(np.float16)
            refuse_non_finite(half, name, because="it overflows float16; use storage='bfloat16'")
            bits = half.view(np.uint16)
        else:
            with np.errstate(over="ignore"):
                bits = to_bfloat16(w)
            refuse_non_finite(from_bfloat16(bits), name, because="it overflows bfloat16; use storage='float32'")
        return cls(bits, storage, w.dtype)

    @property
    def backend(self) -> Backend:
        return of(self.bits)

    def tiles(self, spans: list[slice] | None = None) -> Iterator[tuple[slice, Any]]:
        if self.storage == self.dtype.name:  # it computes as it is stored: nothing to convert
            bits = self.bits.view(self.dtype)
            yield from ((part, bits[part]) for part in spans or [slice(0, self.shape[0])])
        else:
            yield from super().tiles(spans)

    def move(self, to: Callable[[Any], Any]) -> HalfWeight:
        return type(self)(to(self.bits), self.storage, self.dtype)

    def _widen(self, bits: Any, out: Any) -> Any:
        if self.storage == self.dtype.name:  # half precision computes
            out[...] = bits.view(self.dtype)
        elif out.dtype != np.float32 or self.backend.on_card:
            out[...] = bits.view(np.float16) if self.storage == "float16" else from_bfloat16(bits)
        elif self.storage == "float16":
            widen_float16(bits, out)
        else:
            widen_bfloat16(bits, out)
        return out

    def rows(self, start: int, stop: int, out: Any) -> Any:
        return self._widen(self.bits[start:stop], out)

    def take(self, ids: Any) -> Any:
        bits = self.bits[self.xp.asarray(ids)]
        return self._widen(bits, self.xp.empty(bits.shape, self.dtype))


def to_bfloat16(w: Any) -> Any:
    """The upper 16 bits of each float32, rounded to nearest, ties to even; uint16 of the same shape."""
    bits = of(w).xp.ascontiguousarray(w, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def from_bfloat16(bits: Any) -> Any:
    """The float32 each bfloat16 pattern stands for: the same bits with 16 zeros below."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def widen_bfloat16(bits: Any, out: Any) -> None:
    """`from_bfloat16`, written into a float32 array."""
    word = out.view(np.uint32)
    word[...] = bits
    word <<= 16


def widen_float16(bits: Any, out: Any) -> None:
    """The float32 each finite float16 pattern stands for, written into a float32 array; seven times NumPy's cast.

    A float16 has 1 bit of sign, 5 of exponent and 10 of mantissa, a float32 1, 8 and 23. Read as a *signed* integer,
    the pattern spreads its sign upwards; 13 places to the left, sign, exponent and mantissa are where a float32 has
    them, and the copies of the sign between are cleared. Then only the bias differs, 15 from 127: a factor of 2**112.
    """
    word = out.view(np.int32)
    word[...] = bits.view(np.int16)
    word <<= 13
    word &= SIGN_EXPONENT_MANTISSA
    out *= np.float32(2.0**112)


class NF4Weight(FrozenWeight):
    """A weight in NF4, single or double quantised (Dettmers et al. 2023, arXiv 2305.14314).

    Parameters
    ----------
    packed : uint8 ((n + 1) // 2,)
        Two codes a byte over the flattened weight.
    absmax : float32 (blocks,) or (codes uint8 (blocks,), float32 (ceil(blocks / 256),), float32)
        The scales, or the three parts of double quantised ones.
    shape : tuple of int
    block_size : int
    dtype : dtype
    """

    storage = "nf4"

    def __init__(self, packed: Any, absmax: Any, shape: tuple[int, ...], block_size: int = 64, dtype: Any = np.float32):
        self.packed, self.absmax = packed, absmax
        self.shape, self.block_size, self.dtype = tuple(shape), block_size, np.dtype(dtype)

    @classmethod
    def quantize(cls, w: Any, block_size: int = 64, double_quant: bool = True, name: str = "") -> NF4Weight:
        """Quantise an array. Raises ValueError if it holds non-finite values or the block size is not allowed."""
        check_block_size(block_size)
        refuse_non_finite(w, name)
        be = of(w)
        with np.errstate(over="ignore"):
            flat = be.xp.ascontiguousarray(w, dtype=np.float32).reshape(-1)
        if w.dtype == np.float64:
            refuse_non_finite(flat.reshape(w.shape), name, because="NF4 holds only what is finite in float32")
        packed, absmax = be.nf4_quantize(flat, block_size)
        return cls(packed, quantize_absmax(absmax) if double_quant else absmax, w.shape, block_size, w.dtype)

    @property
    def double_quant(self) -> bool:
        return isinstance(self.absmax, tuple)

    @property
    def nbytes(self) -> int:  # type: ignore[override]
        scales = sum(part.nbytes for part in self.absmax) if self.double_quant else self.absmax.nbytes
        return self.packed.nbytes + scales

    @property
    def backend(self) -> Backend:
        return of(self.packed)

    def move(self, to: Callable[[Any], Any]) -> NF4Weight:
        scales = (to(self.absmax[0]), to(self.absmax[1]), self.absmax[2]) if self.double_quant else to(self.absmax)
        return type(self)(to(self.packed), scales, self.shape, self.block_size, self.dtype)

    def step(self) -> int:
        columns = self.shape[1]
        rows = self.block_size // gcd(columns, self.block_size)
        # Nested scales are cut at their own blocks of 256 only when read; a tile needs whole first-level blocks.
        return rows

    def scales(self, start: int, stop: int) -> Any:
        """The float32 scales of blocks start..stop."""
        if not self.double_quant:
            return self.absmax[start:stop]
        codes, nested, offset = self.absmax
        first = start // 256 * 256
        return dequantize_absmax(codes[first:stop], nested[first // 256 : -(-stop // 256)], offset)[start - first :]

    def rows(self, start: int, stop: int, out: Any) -> Any:
        columns = self.shape[1] if len(self.shape) == 2 else prod(self.shape[1:])
        a, b = start * columns, stop * columns
        if a % self.block_size:
            raise ValueError(
                f"row {start} begins inside a block of {self.block_size}; start at a multiple of {self.step()} rows"
            )
        scales = self.scales(a // self.block_size, -(-b // self.block_size))
        be = of(self.packed)
        if out.dtype.name in ("float32", "float16", "bfloat16"):
            be.nf4_dequantize(self.packed, scales, self.block_size, b - a, start=a, out=out.reshape(-1))
        else:
            flat = be.nf4_dequantize(self.packed, scales, self.block_size, b - a, start=a)
            out[...] = flat.reshape(out.shape)
        return out

    def multiply(self, x: Any, out: Any = None) -> Any:
        if len(x) > FEW_ROWS or out is not None:
            return super().multiply(x, out)
        blocks = -(-self.size // self.block_size)
        return of(x).nf4_matvec(x, self.packed, self.scales(0, blocks), self.block_size, self.shape[0])

    def take(self, ids: Any) -> Any:
        flat = self.xp.asarray(ids).reshape(-1)
        y = self.xp.empty((len(flat), self.shape[1]), self.dtype)
        step = self.step()
        for i, row in enumerate(flat.tolist()):
            first = row // step * step
            last = min(first + step, self.shape[0])
            y[i] = self.rows(first, last, self.xp.empty((last - first, self.shape[1]), self.dtype))[row - first]
        return y.reshape(*ids.shape, self.shape[1])


def store(w: Any, storage: str, name: str = "", block_size: int = 64, double_quant: bool = True) -> FrozenWeight:
    """An array as a FrozenWeight; `storage` is "float16", "bfloat16" or "nf4"."""
    if storage == "nf4":
        return NF4Weight.quantize(w, block_size, double_quant, name)
    return HalfWeight.quantize(w, storage, name)


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
