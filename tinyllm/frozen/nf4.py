"""NF4: weights as sixteen levels and one scale per block, 4.5 bits each (4.127 with `double_quant`).

Why these levels. Trained weights are close to a normal distribution. A code tells most when each of its values is used
equally often, so the levels are quantiles of a normal (`derive_nf4_levels`), scaled so that the outermost are -1 and 1,
and every block of 64 weights is divided by its largest magnitude to fit between them. Zero is a level, because padding
and pruned weights must come back as exactly zero; that leaves seven levels below it and eight above.

Why the small print. The format is bitsandbytes', bit for bit, so that 4-bit checkpoints can be exchanged:

* a value half-way between two levels takes the *lower* one (the code counts the midpoints strictly below the value);
* two codes a byte, the even element in the *high* nibble, so that a hexadecimal dump reads in the order of the weights;
* blocks run over the flattened weight (C order), not over its rows; the last block may be partial.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from math import gcd, prod
from statistics import NormalDist
from typing import Any

import numpy as np

from tinyllm.backend.double_quant import BLOCK_SIZE as SCALES_PER_BLOCK
from tinyllm.backend.double_quant import dequantize_absmax, dynamic_map, quantize_absmax
from tinyllm.backend.names import is_array, kind_of
from tinyllm.backend.nf4 import NF4_LEVELS
from tinyllm.backend.table import Backend, of
from tinyllm.frozen.finite import called, refuse_non_finite
from tinyllm.frozen.weight import FrozenWeight

QUANT_STATE = ".quant_state.bitsandbytes__nf4"  # the end of the name under which files describe an NF4 weight
BLOCK_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
FLOATS = ("float16", "float32", "float64")


def quantize_nf4(array: Any, block_size: int = 64, *, name: str | None = None) -> tuple[Any, Any]:
    """Quantise weights to NF4, bit for bit as bitsandbytes does on a CPU.

    Parameters
    ----------
    array : array, float16, float32 or float64, any shape and layout
        Cast to float32 first, then read in C order.
    block_size : int
        Elements that share a scale: 32, 64, ..., 4096.
    name : str, optional
        What to call the weight in an error message.

    Returns
    -------
    indices : array, uint8, ((n + 1) // 2,)
        Two codes a byte, the even element in the high nibble.
    scales : array, float32, (ceil(n / block_size),)
        The largest magnitude of each block.

    Raises
    ------
    ValueError
        If the block size is not one of those above, or a weight is not finite in float32.
    TypeError
        If the array is not of floats.

    Notes
    -----
    The rule is in `tinyllm.backend.nf4.nf4_quantize`; the format is from Dettmers et al., "QLoRA" (2023).

    Examples
    --------
    >>> indices, scales = quantize_nf4(np.array([2.0, -2.0, 0.0, 0.5], dtype="float32"))
    >>> indices.tobytes().hex(), float(scales[0])
    ('f07a', 2.0)
    """
    check_block_size(block_size)
    if not is_array(array):
        raise TypeError(f"NF4 quantises arrays, not {kind_of(array)}: make it one, np.asarray(x, 'float32')")
    if array.dtype.name not in FLOATS:
        raise TypeError(f"{called(name)} has dtype {array.dtype}; NF4 quantises {', '.join(FLOATS)}: cast it first")
    backend = of(array)
    with np.errstate(over="ignore", invalid="ignore"):  # non-finite values are reported below, in words
        flat = backend.xp.ascontiguousarray(array, dtype=backend.xp.float32).reshape(-1)
        indices, scales = backend.nf4_quantize(flat, block_size)
    # A block's largest magnitude is finite exactly if the block is: looking at the scales costs 1/64 of a pass.
    if not backend.xp.isfinite(scales).all():
        refuse_non_finite(flat.reshape(array.shape), name, because="NF4 holds only what is finite in float32")
    return indices, scales


def dequantize_nf4(indices: Any, scales: Any, shape: Any, block_size: int = 64, dtype: Any = np.float32) -> Any:
    """The weights that packed codes and scales stand for.

    Parameters
    ----------
    indices : array, uint8, ((n + 1) // 2,) or ((n + 1) // 2, 1)
        As made by `quantize_nf4`, or as stored in a bitsandbytes checkpoint.
    scales : array, float32, (ceil(n / block_size),)
    shape : int or tuple of int
        The weight's shape, of `n` elements.
    block_size : int
        As when quantising.
    dtype : dtype
        float16, float32 or float64. The product ``level * scale`` is float32 and is cast once.

    Returns
    -------
    array, `dtype`, `shape`

    Raises
    ------
    ValueError
        If the block size is none, or there are too few or too many codes or scales for the shape.
    TypeError
        If a dtype is not one of those above.
    """
    check_block_size(block_size)
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    n = int(np.prod(shape, dtype=np.int64))
    if np.dtype(dtype).name not in FLOATS:
        raise TypeError(f"cannot dequantise to {np.dtype(dtype)}; choose one of {', '.join(FLOATS)}")
    if not is_array(indices) or not is_array(scales):
        raise TypeError("the indices and the scales are two arrays, as quantize_nf4 gives them")
    if indices.dtype != np.uint8:
        raise TypeError(f"the indices have dtype {indices.dtype}; packed codes are uint8 (see quantize_nf4)")
    if scales.dtype != np.float32:
        raise TypeError(
            f"the scales have dtype {scales.dtype}, not float32; if they are double-quantised, "
            "put them through dequantize_absmax first"
        )
    if indices.size != (n + 1) // 2:
        raise ValueError(f"shape {list(shape)} needs {(n + 1) // 2} bytes of indices, but there are {indices.size}")
    blocks = -(-n // block_size)
    if scales.size != blocks:
        raise ValueError(f"shape {list(shape)} has {blocks} blocks of {block_size}, but there are {scales.size} scales")
    packed, absmax = indices.reshape(-1), scales.reshape(-1)
    return of(indices).nf4_dequantize(packed, absmax, block_size, n, dtype=dtype).reshape(shape)


def derive_nf4_levels():
    """The sixteen levels from their definition, in float64; they agree with `NF4_LEVELS` to 1.2e-7.

    The area under the normal curve is cut into equal shares on either side of zero, seven below and eight above, and a
    level is put on each cut, zero included. The outermost cut cannot be at probability 0 or 1, which is at infinity.
    Sixteen equal shares would leave half of one, 1/32, outside it, fifteen 1/30: the authors took the mean of the two,
    so the cuts begin at ``1 - (1/32 + 1/30) / 2``, published as 0.9677083. Last, all is divided by the largest.

    Returns
    -------
    np.ndarray, float64, (16,)

    Notes
    -----
    Source: ``create_normal_map`` in bitsandbytes. The table's bits come from a float32 computation and are the format;
    this function is their explanation.
    """
    quantile = NormalDist().inv_cdf
    outermost = 0.9677083  # with all digits of the fraction the table is missed by 1.9e-7
    positive = [quantile(p) for p in np.linspace(0.5, outermost, 9)[1:]]
    negative = [-quantile(p) for p in np.linspace(0.5, outermost, 8)[1:]]
    levels = np.array(sorted([*negative, 0.0, *positive]))
    return levels / levels.max()


def bits_per_weight(n, block_size=64, double_quant=True):
    """How many bits a weight of `n` elements takes, per element, everything that is stored counted.

    For a large weight ``4 + 32/64 = 4.5``, and with double quantisation ``4 + 8/64 + 32/(64*256) = 4.127``.

    Parameters
    ----------
    n : int
    block_size : int
    double_quant : bool

    Returns
    -------
    float
    """
    check_block_size(block_size)
    blocks = -(-n // block_size)
    codes = 8 * ((n + 1) // 2)
    scales = 8 * blocks + 32 * -(-blocks // SCALES_PER_BLOCK) + 32 if double_quant else 32 * blocks
    return (codes + scales) / n


def check_block_size(block_size: int) -> None:
    """Raise ValueError unless the format knows this block size."""
    if block_size not in BLOCK_SIZES:
        raise ValueError(f"block_size {block_size} is not one of NF4's: {', '.join(map(str, BLOCK_SIZES))}")


FEW_ROWS = 4  # so few that reading the weight is all the work: decoding


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
        # A tile needs whole blocks of weights. Double-quantised scales have blocks of their own, which `scales` minds.
        return self.block_size // gcd(self.shape[1], self.block_size)

    def scales(self, start: int, stop: int) -> Any:
        """The float32 scales of blocks start..stop."""
        if not self.double_quant:
            return self.absmax[start:stop]
        codes, nested, offset = self.absmax
        each = SCALES_PER_BLOCK
        first = start // each * each
        return dequantize_absmax(codes[first:stop], nested[first // each : -(-stop // each)], offset)[start - first :]

    def rows(self, start: int, stop: int, out: Any) -> Any:
        columns = prod(self.shape[1:])
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

    def like(self, array: Any, name: str = "") -> NF4Weight:
        return self.quantize(array, self.block_size, self.double_quant, name)

    def parts(self, name: str) -> dict[str, Any]:
        """bitsandbytes 0.50's names and JSON (``QuantState.as_dict(packed=True)``)."""
        about: dict[str, Any] = {
            "quant_type": "nf4", "blocksize": self.block_size, "dtype": self.dtype.name, "shape": list(self.shape),
        }  # fmt: skip
        arrays = {name: self.packed.reshape(-1, 1), f"{name}.quant_map": np.asarray(NF4_LEVELS, np.float32)}
        if self.double_quant:
            codes, nested, offset = self.absmax
            arrays |= {f"{name}.absmax": codes, f"{name}.nested_absmax": nested}
            arrays[f"{name}.nested_quant_map"] = dynamic_map()
            about |= {"nested_blocksize": SCALES_PER_BLOCK, "nested_dtype": "float32", "nested_offset": float(offset)}
        else:
            arrays[f"{name}.absmax"] = self.absmax
        arrays[name + QUANT_STATE] = np.frombuffer(json.dumps(about).encode(), np.uint8)
        return arrays

    def take(self, ids: Any) -> Any:
        flat = self.xp.asarray(ids).reshape(-1)
        y = self.xp.empty((len(flat), self.shape[1]), self.dtype)
        step = self.step()
        for i, row in enumerate(flat.tolist()):
            first = row // step * step
            last = min(first + step, self.shape[0])
            y[i] = self.rows(first, last, self.xp.empty((last - first, self.shape[1]), self.dtype))[row - first]
        return y.reshape(*ids.shape, self.shape[1])
