"""The mean in PyTorch's order of summation, bit for bit: NF4's nested scales depend on it."""

from __future__ import annotations

import numpy

float32 = numpy.float32


def torch_mean(xp, values):
    """Mean of a flat float32 array, added up in the order of torch's CPU sum, so that it rounds alike.

    Torch reads rows of 4 registers x 8 lanes. Sixteen rows (more for very long input) are added one by one, then the
    sum of sixteen goes to the next of four levels, and so on: sums of like size meet, and rounding errors stay small.

    Parameters
    ----------
    values : array, float32, (n,)

    Returns
    -------
    float32 scalar

    Notes
    -----
    Source: ``cascade_sum`` in PyTorch's ``SumKernel.cpp``.
    """
    n = values.size
    lanes = 8 if n >= 8 else 1  # too short for one register: the same walk over single values
    vectors = values[: n - n % lanes].reshape(-1, lanes)  # (vector, lane)
    rows = len(vectors) // 4
    power = max(4, max(rows - 1, 0).bit_length() // 4)
    step = 1 << power
    groups = rows // step
    grouped = vectors[: groups * step * 4].reshape(groups, step, 4, lanes)
    sums = xp.zeros((groups, 4, lanes), dtype=xp.float32)
    for i in range(step):
        sums += grouped[:, i]
    levels = xp.zeros((4, 4, lanes), dtype=xp.float32)  # (level, register, lane)
    for group in range(groups):
        levels[0] = sums[group]
        for level in (1, 2, 3):
            levels[level] += levels[level - 1]
            levels[level - 1] = 0
            if (group + 1) % step**level:
                break
    for row in vectors[groups * step * 4 : rows * 4].reshape(-1, 4, lanes):
        levels[0] += row
    for level in (1, 2, 3):
        levels[0] += levels[level]
    registers = levels[0]  # (register, lane)
    for vector in vectors[rows * 4 :]:
        registers[0] += vector
    for register in (1, 2, 3):
        registers[0] += registers[register]
    total = xp.zeros((), dtype=xp.float32)
    for value in values[n - n % lanes :]:
        total = total + value
    for lane in range(lanes):
        total = total + registers[0, lane]
    return total / xp.float32(n)
