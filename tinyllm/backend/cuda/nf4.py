"""NF4 on a card: packing, unpacking, scales, and the product with few rows."""

from __future__ import annotations

import numpy as np

from tinyllm.backend.cuda.kernels import kernel
from tinyllm.backend.cuda.overrides import FLOATS, SPECIFICATION, aligned, constant, float32, int32, int64, override
from tinyllm.backend.nf4 import NF4_LEVELS, NF4_MIDPOINTS


@override()
def nf4_quantize(xp, flat, block_size):
    n = flat.size
    packed = xp.empty((n + 1) // 2, np.uint8)
    absmax = xp.empty(-(-n // block_size), np.float32)
    fast = block_size <= 256 and aligned(flat, packed)
    arguments = flat, constant(xp, NF4_MIDPOINTS), int32(block_size), int64(n), packed, absmax
    if fast:  # whole warps: see the kernel
        kernel("nf4_pack_v2").build(xp, flat.dtype.name)(*arguments, size=-(-n // 256) * 32)
    else:
        kernel("nf4_pack_v1").build(xp, flat.dtype.name)(*arguments, size=absmax.size)
    return packed, absmax


@override()
def nf4_dequantize(xp, packed, absmax, block_size, n, start=0, out=None, dtype=np.float32):
    if out is None:
        out = xp.empty(n, dtype)
    if n == 0:
        return out
    if out.dtype.name not in FLOATS:  # the products are float32, and are cast once
        out[...] = nf4_dequantize(xp, packed, absmax, block_size, n, start)
        return out
    codes, levels = packed[start // 2 :], constant(xp, NF4_LEVELS)
    if aligned(codes, out):
        grid = min(-(-n // 2048), 1024)  # about eight blocks for each multiprocessor of a large card
        build = kernel("nf4_unpack_v3").build(xp, out.dtype.name)
        build((grid,), (256,), (codes, absmax, levels, int32(block_size.bit_length() - 1), int64(n), out))
    else:
        kernel("nf4_unpack_v1").build(xp, out.dtype.name)(codes, absmax, levels, int32(block_size), out)
    return out


@override()
def nf4_scales(xp, codes, absmax2, offset, table):
    y = xp.empty(codes.size, np.float32)
    arguments = codes, absmax2, constant(xp, table), float32(offset)
    return kernel("nf4_scales").build(xp)(*arguments, y)


@override("nf4_dequantize")
def nf4_matvec(xp, x, packed, absmax, block_size, outputs):
    rows, n = x.shape
    x = xp.ascontiguousarray(x)
    if rows > 4 or n % 8 or not aligned(x, packed):
        return SPECIFICATION["nf4_matvec"](xp, x, packed, absmax, block_size, outputs)
    y, levels = xp.empty((rows, outputs), x.dtype), constant(xp, NF4_LEVELS)
    numbers = map(int32, (rows, n, outputs, block_size.bit_length() - 1))
    grid = -(-outputs // 8)  # a warp an output, eight warps a thread block
    kernel("nf4_matvec").build(xp, x.dtype.name)((grid,), (256,), (x, packed, absmax, levels, y, *numbers))
    return y
