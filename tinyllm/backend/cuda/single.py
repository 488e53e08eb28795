"""Primitives with one kernel each: activations, positions, scatter-add, dropout, AdamW; and the plain product."""

from __future__ import annotations

import math
from functools import wraps

import numpy as np

from tinyllm.backend.cuda.kernels import kernel
from tinyllm.backend.cuda.overrides import FLOATS, OVERRIDES, SPECIFICATION, float32, int32, int64, override


def matmul(xp, a, b, out=None):
    y = a @ b
    if out is None:
        return y
    out[...] = y  # CuPy writes products to whole arrays only
    return out


OVERRIDES["matmul"] = wraps(SPECIFICATION["matmul"])(matmul)  # of any dtype


@override("sigmoid")
def silu_mul(xp, gate, up):
    return kernel("silu_mul").build(xp, gate.dtype.name)(gate, up, xp.empty(gate.shape, gate.dtype))


@override("sigmoid")
def silu_mul_backward(xp, g, gate, up):
    out = xp.empty(gate.shape, gate.dtype), xp.empty(up.shape, up.dtype)
    kernel("silu_mul_backward").build(xp, gate.dtype.name)(g, gate, up, *out)
    return out


@override("erf")
def gelu(xp, x, approximate):
    return kernel("gelu").build(xp, x.dtype.name)(x, int32(approximate), xp.empty(x.shape, x.dtype))


@override("erf")
def gelu_backward(xp, g, x, approximate):
    return kernel("gelu_backward").build(xp, x.dtype.name)(g, x, int32(approximate), xp.empty(x.shape, x.dtype))


@override()
def rope(xp, x, cos, sin):
    _, heads, time, n = x.shape
    y = xp.empty(x.shape, x.dtype)
    cos, sin = (xp.ascontiguousarray(t, dtype=np.float32) for t in (cos, sin))
    numbers = map(int32, (heads, time, n // 2, len(cos)))
    kernel("rope").build(xp, x.dtype.name)(x, cos, sin, *numbers, y, size=x.size // 2)
    return y


@override()
def embedding_grad(xp, g, ids, rows):
    g, n = xp.ascontiguousarray(g), g.shape[-1]
    ids, y = xp.ascontiguousarray(ids, dtype=np.int64).reshape(-1), xp.empty((rows, n), g.dtype)
    threads = min(256, -(-n // 32) * 32)
    kernel("embedding_grad").build(xp, g.dtype.name)((rows,), (threads,), (g, ids, y, int32(ids.size), int32(n)))
    return y


@override()
def dropout_mask(xp, state, shape, p, dtype):
    dtype, n = np.dtype(dtype), math.prod(shape)
    if dtype.name not in FLOATS:
        return SPECIFICATION["dropout_mask"](xp, state, shape, p, dtype)
    y = xp.empty(shape, dtype)
    seed, position = (np.uint64(number) for number in state)
    numbers = seed, position, int32(round(p * 65536)), float32(1 / (1 - p)), int64(n)
    if n:
        kernel("dropout_mask").build(xp, dtype.name)(*numbers, y, size=-(-n // 16))
    return y


@override()
def adamw_step(xp, w, g, m, v, step, lr, beta1, beta2, eps, weight_decay):
    if w.dtype != np.float32:
        return SPECIFICATION["adamw_step"](xp, w, g, m, v, step, lr, beta1, beta2, eps, weight_decay)
    root, rate = math.sqrt(1 - beta2**step), lr / (1 - beta1**step)
    numbers = map(float32, (1 - lr * weight_decay, 1 - beta1, beta2, 1 - beta2, root, eps, rate))
    kernel("adamw_step").build(xp, "float32")(g, *numbers, w, m, v)
