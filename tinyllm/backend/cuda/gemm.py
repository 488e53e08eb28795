"""Products of stacks of half-precision matrices on a GPU: one call of cuBLAS, summed in float32.

CuPy 14 multiplies two half matrices on tensor cores, but copies a *stack* of them to float32 first (bfloat16 fails), so
attention would lose both speed and memory. cuBLAS has the right function; this file speaks its language.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy

DATA = {"float32": 0, "float16": 2, "bfloat16": 14}  # cudaDataType_t: CUDA_R_32F, CUDA_R_16F, CUDA_R_16BF
COMPUTE_32F, GEMM_DEFAULT = 68, -1
ONE, ZERO = numpy.ones(1, numpy.float32), numpy.zeros(1, numpy.float32)


def stacked_matmul(xp: Any, a: Any, b: Any, dtype: Any) -> Any:
    """a @ b for stacks of matrices, summed in float32 and rounded once.

    Parameters
    ----------
    a : (..., m, k), float32, float16 or bfloat16
    b : (..., k, n), the same dtype and the same leading axes
    dtype : dtype
        Of the result: that of `a`, or float32.

    Returns
    -------
    array (..., m, n)

    Notes
    -----
    cuBLAS counts columns first: an array of ours is, to it, the transpose. So it is asked for (a b)^T = b^T a^T, with
    the operands exchanged. A matrix whose columns run along memory is the same to it with the other flag; one that runs
    along neither axis is copied.
    """
    if a.dtype == numpy.float32:
        return xp.matmul(a, b)
    *stack, m, k = a.shape
    n = b.shape[-1]
    y = xp.empty((*stack, m, n), dtype)
    if y.size == 0 or k == 0:
        y.fill(0)
        return y
    a, a_flag, a_rows, a_stride = _operand(xp, a)
    b, b_flag, b_rows, b_stride = _operand(xp, b)
    kind = DATA[a.dtype.name]
    xp.cuda.cublas.gemmStridedBatchedEx(
        xp.cuda.device.get_cublas_handle(), b_flag, a_flag, n, m, k, ONE.ctypes.data,
        b.data.ptr, kind, b_rows, b_stride, a.data.ptr, kind, a_rows, a_stride, ZERO.ctypes.data,
        y.data.ptr, DATA[y.dtype.name], n, m * n, prod(stack), COMPUTE_32F, GEMM_DEFAULT,
    )  # fmt: skip
    return y


def _operand(xp: Any, x: Any) -> tuple[Any, int, int, int]:
    """The array, whether cuBLAS shall transpose it (0 or 1), the step between its rows and between its matrices."""
    *stack, rows, columns = x.shape
    *outer, down, across = (step // x.dtype.itemsize for step in x.strides)
    step = _one_step(stack, outer)
    if step is not None:
        if (across == 1 or columns == 1) and (down >= columns or rows == 1):
            return x, 0, max(down, columns), step
        if (down == 1 or rows == 1) and (across >= rows or columns == 1):
            return x, 1, max(across, rows), step
    return _operand(xp, xp.ascontiguousarray(x))


def _one_step(sizes: list[int], steps: list[int]) -> int | None:
    """The one step that walks through all leading axes, if there is one."""
    step, covered = 0, 1
    for size, own in reversed(list(zip(sizes, steps, strict=True))):
        if size == 1:
            continue
        if covered > 1 and own != step * covered:
            return None
        if covered == 1:
            step = own
        covered *= size
    return step
