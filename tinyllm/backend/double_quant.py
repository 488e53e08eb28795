"""Double quantisation: NF4's float32 scales in eight bits each, which saves 0.37 bits a weight.

The scales of a weight are alike, so their mean (`offset`) is taken away first; what is left is scaled in blocks of 256
by its largest magnitude and replaced by the nearest of 256 values. Those values are a "dynamic map": dense near zero
and sparse near one, like a tiny floating-point format, because without the mean small differences are the most common.

Everything here is bit for bit what bitsandbytes 0.50 does on a CPU, its shortcuts included; each is explained where it
is imitated. Source: Dettmers, "8-bit Approximations for Parallelism in Deep Learning" (2015) and "8-bit Optimizers via
Block-wise Quantization" (2021).
"""

from __future__ import annotations

from functools import cache

import numpy

from tinyllm.backend.device import to_host
from tinyllm.backend.table import of, replaceable
from tinyllm.backend.torch_sum import torch_mean

BLOCK_SIZE = 256  # scales that share one scale of their own; the format has no other

float32 = numpy.float32


@replaceable
def quantize_absmax(absmax):
    """Quantise NF4's scales to eight bits.

    Parameters
    ----------
    absmax : array, float32, (blocks,)

    Returns
    -------
    codes : array, uint8, (blocks,)
        Indices into `dynamic_map`.
    absmax2 : array, float32, (ceil(blocks / 256),)
    offset : float32 scalar
        The mean of `absmax`, summed in torch's order. Torch itself uses another order when it has more than 32,768
        scales and several threads; then its offset may differ in the last bit or two.

    Raises
    ------
    TypeError, ValueError
        If `absmax` is not float32, or empty, or its sum is not finite.
    """
    xp = of(absmax).xp
    if absmax.dtype != numpy.float32:
        raise TypeError(f"the scales have dtype {absmax.dtype}; double quantisation takes float32 scales")
    if absmax.size == 0:
        raise ValueError("there are no scales to quantise: the weight is empty")
    absmax = absmax.reshape(-1)
    if xp is not numpy:  # the mean's order of adding is a thousand small steps: on the host, for 1/64 of the weight
        codes, absmax2, offset = quantize_absmax(to_host(absmax))
        return xp.asarray(codes), xp.asarray(absmax2), offset
    with numpy.errstate(over="ignore", invalid="ignore"):
        offset = torch_mean(xp, absmax)
    if not xp.isfinite(offset):
        raise ValueError("the scales are not finite, or add up to more than float32 holds; use double_quant=False")
    blocks = -(-absmax.size // BLOCK_SIZE)
    padded = xp.zeros(blocks * BLOCK_SIZE, dtype=xp.float32)  # zeros never are the largest magnitude
    padded[: absmax.size] = absmax - offset
    padded = padded.reshape(blocks, BLOCK_SIZE)
    absmax2 = xp.abs(padded).max(axis=1)
    # Below 2.9e-39 the reciprocal is infinite. Then bitsandbytes makes +-1 of every value but zero, and 0 * inf is NaN,
    # of which it makes the first code. A block of zeros has code 0, too, not that of 0.0; times absmax2 it is zero.
    with numpy.errstate(divide="ignore", over="ignore", invalid="ignore"):
        scaled = xp.clip(padded * (float32(1) / absmax2)[:, None], float32(-1), float32(1))
    scaled = xp.where(xp.isnan(scaled), float32(-1), scaled)
    bins = ((scaled + float32(1)) * float32(0.5) * float32(65535) + float32(0.5)).astype(xp.uint16)
    codes = xp.asarray(nearest_of_bin())[bins]
    return codes.reshape(-1)[: absmax.size], absmax2, offset


@replaceable
def dequantize_absmax(codes, absmax2, offset):
    """The scales that `quantize_absmax` stored: ``map[code] * absmax2[block] + offset``, rounded twice.

    Parameters
    ----------
    codes : array, uint8, (blocks,)
    absmax2 : array, float32, (ceil(blocks / 256),)
    offset : float
        Read as float32.

    Returns
    -------
    array, float32, (blocks,)

    Raises
    ------
    TypeError, ValueError
        If the codes are not uint8, or the number of `absmax2` does not fit theirs.
    """
    if codes.dtype != numpy.uint8:
        raise TypeError(f"the codes have dtype {codes.dtype}; double-quantised scales are uint8")
    codes = codes.reshape(-1)
    if absmax2.size != -(-codes.size // BLOCK_SIZE):
        raise ValueError(
            f"{codes.size} scales have {-(-codes.size // BLOCK_SIZE)} blocks of {BLOCK_SIZE}, "
            f"but there are {absmax2.size} second-level scales"
        )
    return of(codes).nf4_scales(codes, absmax2.reshape(-1), float32(offset), dynamic_map())


@cache
def dynamic_map():
    """The 256 values of a code, sorted, float32.

    Seven decades, 1e-6 to 1; decade `i` is cut into 2**i equal intervals whose midpoints are the values, once with
    either sign. Zero and 1.0 make it 256; so the largest is 1 and the smallest -0.99297.

    Returns
    -------
    numpy.ndarray, float32, (256,), read-only

    Notes
    -----
    Source: ``create_dynamic_map`` in bitsandbytes. ``numpy.linspace`` rounds 22 of the values differently: torch walks
    from the left end in the first half and from the right end in the second, by a float32 step, rounding once.
    """
    values = [0.0, 1.0]
    for decade in range(7):
        count = 2**decade + 1
        left, right = float(float32(0.1)), 1.0
        step = float(float32((float32(1) - float32(0.1)) / float32(count - 1)))
        edges = numpy.array(
            [left + step * i if i < count // 2 else right - step * (count - 1 - i) for i in range(count)],
            dtype=numpy.float32,
        )
        midpoints = float32(10.0 ** (decade - 6)) * ((edges[:-1] + edges[1:]) / float32(2))
        values += [*midpoints.tolist(), *(-midpoints).tolist()]
    table = numpy.array(sorted(values), dtype=numpy.float32)
    table.flags.writeable = False
    return table


@cache
def nearest_of_bin():
    """The code of each of 65,536 equal bins from -1 to 1: bitsandbytes' shortcut past a search.

    A value takes the code nearest to its bin's centre, so near a midpoint, and among the many codes close to zero, it
    is not always the nearest to the value itself. (Its CUDA code does search.) Imitated: stored codes depend on it.

    Returns
    -------
    numpy.ndarray, uint8, (65536,)
    """
    table = dynamic_map()
    midpoints = (table[:-1] + table[1:]) * float32(0.5)
    centres = float32(-1) + numpy.arange(65536, dtype=numpy.float32) * float32(2) / float32(65535)
    return numpy.searchsorted(midpoints, centres).astype(numpy.uint8)
