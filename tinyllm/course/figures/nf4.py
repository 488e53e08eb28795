"""The NF4 microscope: one weight, its block, its code, its half of a byte, and the way back."""

from __future__ import annotations

from typing import Any

import numpy as np

from tinyllm.backend.device import to_host
from tinyllm.backend.nf4 import NF4_LEVELS
from tinyllm.course.figures.figure import Figure, numbers
from tinyllm.frozen.nf4 import dequantize_nf4, quantize_nf4

MOST = 2048  # weights; more would not be looked at, and make the page heavy
BLOCKS = (32, 64, 128, 256)
EVEN = np.linspace(-1, 1, 16, dtype=np.float32)


def nf4_microscope(weights: Any, levels: Any = None) -> Figure:
    """Show what NF4 does with a weight, for every weight of a few blocks.

    Parameters
    ----------
    weights : array of floats, any shape
        The first 2,048 of them, in C order, are shown.
    levels : array (2 to 16,), optional
        Levels of one's own between -1 and 1, rising, to look at beside NF4's and evenly spaced ones.

    Returns
    -------
    Figure

    Raises
    ------
    ValueError
        If there are no weights, one is not finite, or the levels do not rise from at least -1 to at most 1.
    """
    flat = np.ascontiguousarray(to_host(weights), np.float32).reshape(-1)[:MOST]
    if not flat.size or not np.isfinite(flat).all():
        raise ValueError("the microscope needs weights, and all of them finite")
    sets = {"NF4": NF4_LEVELS, "evenly spaced": EVEN}
    if levels is not None:
        own = np.asarray(levels, np.float32)
        if own.ndim != 1 or not 2 <= own.size <= 16 or (np.diff(own) <= 0).any() or abs(own).max() > 1:
            raise ValueError(f"levels are 2 to 16 rising numbers between -1 and 1, not {own.tolist()}")
        sets["yours"] = own
    midpoints = {name: (found[:-1] + found[1:]) / np.float32(2) for name, found in sets.items()}
    data = {
        "weights": numbers(flat),
        "blocks": [size for size in BLOCKS if size <= max(flat.size, BLOCKS[0])],
        "sets": [{"name": n, "levels": numbers(x), "midpoints": numbers(midpoints[n])} for n, x in sets.items()],
    }
    words = (
        "Choose a weight. Its block shares one scale, the largest magnitude; divided by it, the weight is rounded to "
        "the nearest of the levels, whose number is written into half of a byte."
    )
    return Figure("nf4", "A weight under the NF4 microscope", words, data, lambda figure: _draw(figure, flat))


def _draw(figure: Any, flat: np.ndarray) -> None:
    block, size = flat[:64], 64
    back = dequantize_nf4(*quantize_nf4(block, size), shape=block.shape, block_size=size)
    above, below = figure.subplots(2, 1)
    above.bar(range(block.size), block, color="#999999", label="weight")
    above.plot(range(block.size), back, ".", color="#d55e00", label="back from NF4")
    above.set(xlabel="the first block: weight", ylabel="value")
    above.legend(fontsize=8)
    scaled = block / abs(block).max()
    below.vlines(NF4_LEVELS, 0, 1, color="#0072b2")
    below.plot(scaled, np.full(block.size, 0.5), "|", color="#444444", markersize=14)
    below.set(xlabel="divided by the block's largest magnitude; blue: the sixteen levels", yticks=[])
