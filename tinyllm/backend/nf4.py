"""NF4 on plain arrays: two primitives, weights to packed nibbles and back, bit for bit as bitsandbytes does on a CPU.

A *code* is one of sixteen levels, a *block* is `block_size` consecutive elements of the flattened weight that share
one float32 scale, their largest magnitude `absmax`. Blocks run over rows: they know nothing of the weight's shape.

Source of the rule: bitsandbytes 0.50, ``backends/default/ops.py::quantize_4bit``; of the format: Dettmers et al.,
"QLoRA" (2023), section 3.
"""

from __future__ import annotations

import math

import numpy

from tinyllm.backend.table import of

# Sixteen bins of equal mass under a normal distribution (`frozen/nf4.py` derives them), as published: these bits,
# not the formula, are the format.
NF4_LEVELS = numpy.array(
    [
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ],
    dtype=numpy.float32,
)
NF4_MIDPOINTS = (NF4_LEVELS[:-1] + NF4_LEVELS[1:]) / numpy.float32(2)  # (15,) a value on one takes the lower level

# Row `byte`: the two levels that a packed byte stands for. Seen as one 8-byte integer, so that a single `take` moves
# both: half the look-ups, and no shifts. (Integers, since only those are copied without a thought about NaN bits.)
NF4_PAIRS = numpy.stack([numpy.repeat(NF4_LEVELS, 16), numpy.tile(NF4_LEVELS, 16)], axis=1).view(numpy.int64)[:, 0]

TINY = numpy.float32(1e-38)  # keeps the reciprocal of an all-zero block finite
MAGNITUDE = numpy.uint32(0x7FFFFFFF)  # a float32 without its sign bit: as integers, magnitudes keep their order
CHUNK = 1 << 16  # elements at a time, a multiple of every block size: 256 KiB of float32 stays in a core's L2 cache


def nf4_quantize(xp, flat, block_size):
    """Quantise a flat float32 array to packed 4-bit codes and one scale per block.

    For a full block ``s = x * (1 / max(absmax, 1e-38))``, for a last partial one ``s = x / absmax`` with `absmax`
    itself raised to 1e-38; the code is the number of midpoints below `s`. The two rules round differently, and both
    are the format's. Non-finite input is not looked for here; the public face refuses it.

    Parameters
    ----------
    flat : array, float32, (n,), contiguous
    block_size : int
        A power of two, 32 to 4096.

    Returns
    -------
    packed : array, uint8, ((n + 1) // 2,)
        The even element of a pair in the high nibble. An odd `n` is filled up with the code of 0.0, which is 7.
    absmax : array, float32, (ceil(n / block_size),)
    """
    n = flat.size
    whole = n - n % block_size
    packed = xp.empty((n + 1) // 2, dtype=xp.uint8)
    absmax = xp.empty(-(-n // block_size), dtype=xp.float32)
    for start in range(0, whole, CHUNK):
        stop = min(start + CHUNK, whole)
        blocks = flat[start:stop].reshape(-1, block_size)  # (block, element)
        largest = (blocks.view(xp.uint32) & MAGNITUDE).max(axis=1).view(xp.float32)
        absmax[start // block_size : stop // block_size] = largest
        reciprocal = xp.float32(1) / xp.maximum(largest, TINY)
        packed[start // 2 : stop // 2] = _pack(xp, (blocks * reciprocal[:, None]).reshape(-1))
    if whole < n:
        rest = flat[whole:]
        absmax[-1:] = xp.maximum(xp.abs(rest).max(keepdims=True), TINY)
        scaled = xp.zeros(rest.size + rest.size % 2, dtype=xp.float32)  # an odd end is filled up with 0.0
        scaled[: rest.size] = rest / absmax[-1:]
        packed[whole // 2 :] = _pack(xp, scaled)
    return packed, absmax


def _pack(xp, scaled):
    """Codes of an even number of scaled values, two a byte."""
    # Fifteen passes of compare and subtract beat a binary search twenty times over: no branches, whole vectors, in
    # cache. "Not above the midpoint" sends ties down (and NaN to 15, as bitsandbytes has it). No clip is needed:
    # beyond +-1 there is no further midpoint.
    codes = xp.full(scaled.size, 15, dtype=xp.uint8)
    for midpoint in NF4_MIDPOINTS:
        codes -= (scaled <= midpoint).view(xp.uint8)
    pairs = codes.view("<u2")  # even element in the low byte, whatever the machine's byte order
    return (pairs << 4 | pairs >> 8).astype(xp.uint8)


def nf4_dequantize(xp, packed, absmax, block_size, n, start=0, out=None, dtype=numpy.float32):
    """Dequantise `n` elements from element `start` on: ``level[code] * absmax[block]``, one float32 product each.

    Parameters
    ----------
    packed : array, uint8, ((elements + 1) // 2,)
        Codes of the whole weight, not of the part that is wanted.
    absmax : array, float32, (blocks,)
        Scales from the block of element `start` on, so that of doubly quantised ones only a part need be unpacked.
    block_size : int
    n : int
        How many elements to dequantise.
    start : int
        The first of them; the beginning of a block (a multiple of `block_size`).
    out : array, (n,), contiguous, optional
        Written to and returned; its dtype counts instead of `dtype`.
    dtype : dtype
        The products are float32 and are cast once.

    Returns
    -------
    array, (n,)
    """
    if out is None:
        out = xp.empty(n, dtype=dtype)
    table = xp.asarray(NF4_PAIRS)
    for begin in range(0, n, CHUNK):
        end = min(begin + CHUNK, n)
        codes = packed[(start + begin) // 2 : (start + end + 1) // 2]
        levels = xp.take(table, codes).view(xp.float32)[: end - begin]
        scales = absmax[begin // block_size :]
        blocks, whole = (end - begin) // block_size, (end - begin) // block_size * block_size
        xp.multiply(
            levels[:whole].reshape(blocks, block_size),
            scales[:blocks, None],
            out=out[begin : begin + whole].reshape(blocks, block_size),
            casting="same_kind",
        )
        if whole < end - begin:
            out[begin + whole : end] = levels[whole:] * scales[blocks]
    return out


def nf4_scales(xp, codes, absmax2, offset, table):
    """The scales of doubly quantised weights: ``table[code] * absmax2[block of 256] + offset``, rounded twice.

    codes uint8 (blocks,), absmax2 float32 (ceil(blocks / 256),), offset float32, table float32 (256,), on the host.
    """
    return xp.asarray(table)[codes] * xp.repeat(absmax2, 256)[: codes.size] + offset


def nf4_matvec(xp, x, packed, absmax, block_size, outputs):
    """x @ W.T for the few rows of x that decoding has: W's codes are dequantised to x's dtype, then multiplied.

    x (rows, n), packed and absmax (whole) of W (outputs, n); returns (rows, outputs). Tile by tile, so that no float
    copy of W is made.
    """
    n = x.shape[-1]
    y = xp.empty((len(x), outputs), x.dtype)
    step = block_size // math.gcd(n, block_size)  # rows that begin at a block
    height = max(1, 4 * CHUNK // n // step) * step
    for start in range(0, outputs, height):
        stop = min(start + height, outputs)
        scales, size = absmax[start * n // block_size :], (stop - start) * n
        w = of(packed).nf4_dequantize(packed, scales, block_size, size, start * n, None, x.dtype)
        y[:, start:stop] = x @ w.reshape(stop - start, n).T
    return y
