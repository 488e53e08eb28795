"""The CUDA backend: the specification on CuPy's arrays, with a kernel in the place of each primitive where one pays.

An override gives what the specification gives, to rounding (codes and masks: bit for bit), for float32, float16 and
bfloat16; anything else it leaves to the specification, which runs on CuPy as it stands. Sums are float32 in every
kernel; what a norm or a loss keeps is float32, whatever the activations are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, wraps
from typing import Any

import numpy as np

from tinyllm.backend import primitives
from tinyllm.backend.cuda.gemm import stacked_matmul
from tinyllm.backend.cuda.kernels import kernel
from tinyllm.backend.nf4 import NF4_LEVELS, NF4_MIDPOINTS
from tinyllm.backend.primitives import specification
from tinyllm.backend.table import BACKENDS

FLOATS = ("float32", "float16", "bfloat16")
SPECIFICATION = specification()
OVERRIDES: dict[str, Callable] = {}
QUERIES = 512  # of attention at once: more than on a CPU, where a tile has to stay in the cache
int32, int64, float32 = np.int32, np.int64, np.float32


def override(*swallowed: str) -> Callable:
    """Put a function into the table of overrides under its own name.

    It is called for arrays of `FLOATS`, and only while none of the primitives it swallows (does the work of, without
    calling them) is replaced by ``tinyllm.use``; otherwise the specification, which calls them, takes its place.
    """

    def put(function: Callable) -> Callable:
        name = function.__name__
        specified = SPECIFICATION[name]

        @wraps(specified)
        def chosen(xp: Any, x: Any, *rest: Any, **named: Any) -> Any:
            fits = not hasattr(x, "dtype") or (x.dtype.name in (*FLOATS, "uint8") and x.size)
            here = BACKENDS["cuda"].table if "cuda" in BACKENDS else OVERRIDES
            ours = all(
                here.get(part, SPECIFICATION[part]) in (SPECIFICATION[part], OVERRIDES.get(part)) for part in swallowed
            )
            if fits and not ours:
                return _widened(specified, xp, x, *rest, **named)
            return (function if fits else specified)(xp, x, *rest, **named)

        OVERRIDES[name] = chosen
        return chosen

    return put


def _widened(specified: Callable, xp: Any, *arguments: Any, **named: Any) -> Any:
    """The specification of half-precision arrays, in float32 (CuPy multiplies no stacks of halves), rounded at last."""
    half = next((a.dtype for a in arguments if hasattr(a, "dtype") and a.dtype.name in FLOATS[1:]), None)
    if half is None:
        return specified(xp, *arguments, **named)
    wide = [a.astype(np.float32) if getattr(a, "dtype", None) == half else a for a in arguments]
    y = specified(xp, *wide, **named)
    return tuple(part.astype(half) for part in y) if isinstance(y, tuple) else y.astype(half)


def _constant(xp: Any, table: np.ndarray) -> Any:
    """A small float32 table on the device, put there once."""
    return _on_device(xp, table.tobytes())


@cache
def _on_device(xp: Any, raw: bytes) -> Any:
    return xp.asarray(np.frombuffer(raw, np.float32))


def _rows(xp: Any, name: str, x: Any, arguments: tuple, n: int) -> None:
    """Launch a kernel with one thread block a row of `n`: four numbers a thread, as long as that is at most 1,024."""
    threads = min(1024, -(-n // 128) * 32)
    kernel(name).build(xp, x.dtype.name)((x.size // n,), (threads,), arguments)


def _packed_aligned(*arrays: Any) -> bool:
    """Whether 16-byte accesses may begin where these arrays do."""
    return all(a.data.ptr % 16 == 0 for a in arrays)


def matmul(xp, a, b, out=None):
    y = a @ b
    if out is None:
        return y
    out[...] = y  # CuPy writes products to whole arrays only
    return out


OVERRIDES["matmul"] = wraps(SPECIFICATION["matmul"])(matmul)  # of any dtype

# ------------------------------------------------------------------------------------------------------------- NF4


@override()
def nf4_quantize(xp, flat, block_size):
    n = flat.size
    packed = xp.empty((n + 1) // 2, np.uint8)
    absmax = xp.empty(-(-n // block_size), np.float32)
    fast = block_size <= 256 and _packed_aligned(flat, packed)
    arguments = flat, _constant(xp, NF4_MIDPOINTS), int32(block_size), int64(n), packed, absmax
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
    codes, levels = packed[start // 2 :], _constant(xp, NF4_LEVELS)
    if _packed_aligned(codes, out):
        grid = min(-(-n // 2048), 1024)  # about eight blocks for each multiprocessor of a large card
        build = kernel("nf4_unpack_v3").build(xp, out.dtype.name)
        build((grid,), (256,), (codes, absmax, levels, int32(block_size.bit_length() - 1), int64(n), out))
    else:
        kernel("nf4_unpack_v1").build(xp, out.dtype.name)(codes, absmax, levels, int32(block_size), out)
    return out


@override()
def nf4_scales(xp, codes, absmax2, offset, table):
    y = xp.empty(codes.size, np.float32)
    arguments = codes, absmax2, _constant(xp, table), float32(offset)
    return kernel("nf4_scales").build(xp)(*arguments, y)


@override("nf4_dequantize")
def nf4_matvec(xp, x, packed, absmax, block_size, outputs):
    rows, n = x.shape
    x = xp.ascontiguousarray(x)
    if rows > 4 or n % 8 or not _packed_aligned(x, packed):
        return SPECIFICATION["nf4_matvec"](xp, x, packed, absmax, block_size, outputs)
    y, levels = xp.empty((rows, outputs), x.dtype), _constant(xp, NF4_LEVELS)
    numbers = map(int32, (rows, n, outputs, block_size.bit_length() - 1))
    grid = -(-outputs // 8)  # a warp an output, eight warps a thread block
    kernel("nf4_matvec").build(xp, x.dtype.name)((grid,), (256,), (x, packed, absmax, levels, y, *numbers))
    return y


# ------------------------------------------------------------------------------------- rows: norms, softmax, loss


@override()
def rms_norm(xp, x, w, eps):
    x, n = xp.ascontiguousarray(x), x.shape[-1]
    y, inverse = xp.empty(x.shape, x.dtype), xp.empty((*x.shape[:-1], 1), np.float32)
    _rows(xp, "rms_norm", x, (x, w.astype(np.float32, copy=False), y, inverse, int32(n), float32(eps)), n)
    return y, inverse


@override()
def rms_norm_backward(xp, g, x, w, inverse):
    g, x, n = xp.ascontiguousarray(g), xp.ascontiguousarray(x), x.shape[-1]
    gx, w = xp.empty(x.shape, x.dtype), w.astype(np.float32, copy=False)
    _rows(xp, "rms_norm_backward", x, (g, x, w, inverse, gx, int32(n)), n)
    return gx


@override()
def layer_norm(xp, x, w, b, eps):
    x, n = xp.ascontiguousarray(x), x.shape[-1]
    y = xp.empty(x.shape, x.dtype)
    mean, inverse = (xp.empty((*x.shape[:-1], 1), np.float32) for _ in range(2))
    w, b = (v.astype(np.float32, copy=False) for v in (w, b))
    _rows(xp, "layer_norm", x, (x, w, b, y, mean, inverse, int32(n), float32(eps)), n)
    return y, mean, inverse


@override()
def layer_norm_backward(xp, g, x, w, mean, inverse):
    g, x, n = xp.ascontiguousarray(g), xp.ascontiguousarray(x), x.shape[-1]
    gx, w = xp.empty(x.shape, x.dtype), w.astype(np.float32, copy=False)
    _rows(xp, "layer_norm_backward", x, (g, x, w, mean, inverse, gx, int32(n)), n)
    return gx


@override()
def softmax(xp, x):
    x = xp.ascontiguousarray(x)
    y = xp.empty(x.shape, x.dtype)
    _rows(xp, "softmax", x, (x, y, int32(x.shape[-1])), x.shape[-1])
    return y


@override()
def softmax_backward(xp, g, y):
    g, y = xp.ascontiguousarray(g), xp.ascontiguousarray(y)
    gx = xp.empty(y.shape, y.dtype)
    _rows(xp, "softmax_backward", y, (g, y, gx, int32(y.shape[-1])), y.shape[-1])
    return gx


@override()
def cross_entropy(xp, logits, targets):
    logits, classes = xp.ascontiguousarray(logits), logits.shape[-1]
    losses, lse = (xp.empty(len(logits), np.float32) for _ in range(2))
    targets = xp.ascontiguousarray(targets, dtype=np.int64)
    _rows(xp, "cross_entropy", logits, (logits, targets, losses, lse, int32(classes)), classes)
    return losses, lse


@override()
def cross_entropy_backward(xp, g, logits, targets, lse, out=None):
    logits, classes = xp.ascontiguousarray(logits), logits.shape[-1]
    y = xp.empty(logits.shape, logits.dtype) if out is None else out
    g, targets = xp.ascontiguousarray(g, dtype=np.float32), xp.ascontiguousarray(targets, dtype=np.int64)
    _rows(xp, "cross_entropy_backward", logits, (g, logits, targets, lse, y, int32(classes)), classes)
    return y


# ------------------------------------------------------------------------------------------------------- attention


@override("softmax")
def attention(xp, q, k, v, scale, starts):
    y = xp.empty(q.shape, q.dtype)
    for rows, seen, first in primitives._attention_tiles(q, k, QUERIES):
        _, p = _probabilities(xp, q, k, scale, starts, rows, seen, first)
        y[:, :, rows] = stacked_matmul(xp, p, v[:, :, :seen], q.dtype).reshape(y[:, :, rows].shape)
    return y


@override("softmax", "softmax_backward")
def attention_backward(xp, g, q, k, v, scale, starts):
    gq, gk, gv = xp.empty(q.shape, q.dtype), xp.zeros(k.shape, np.float32), xp.zeros(v.shape, np.float32)
    for rows, seen, first in primitives._attention_tiles(q, k, QUERIES):
        queries, p = _probabilities(xp, q, k, scale, starts, rows, seen, first)
        gy = g[:, :, rows].reshape(queries.shape)
        keys = k[:, :, :seen]
        gv[:, :, :seen] += stacked_matmul(xp, p.swapaxes(-1, -2), gy, np.float32)
        gp = stacked_matmul(xp, gy, v[:, :, :seen].swapaxes(-1, -2), np.float32)
        gs = gp if gp.dtype == p.dtype else xp.empty(p.shape, p.dtype)
        _rows(xp, "scaled_softmax_backward", p, (gp, p, gs, int32(seen), float32(scale)), seen)
        gq[:, :, rows] = stacked_matmul(xp, gs, keys, q.dtype).reshape(gq[:, :, rows].shape)
        gk[:, :, :seen] += stacked_matmul(xp, gs.swapaxes(-1, -2), queries, np.float32)
    return gq, gk.astype(k.dtype, copy=False), gv.astype(v.dtype, copy=False)


def _probabilities(xp, q, k, scale, starts, rows, seen, first):
    """As the specification's, the mask, the scale and the softmax in one kernel; float32 scores, q's dtype after."""
    batch, heads, _, n = q.shape
    tile = rows.stop - rows.start
    queries = xp.ascontiguousarray(q[:, :, rows]).reshape(batch, k.shape[1], heads // k.shape[1] * tile, n)
    scores = stacked_matmul(xp, queries, k[:, :, :seen].swapaxes(-1, -2), np.float32)
    p = scores if q.dtype == np.float32 else xp.empty(scores.shape, q.dtype)
    if starts is None:
        at = xp.zeros(1, np.int64)
    else:
        at = xp.ascontiguousarray(starts[:, rows], dtype=np.int64)  # (batch, tile)
    numbers = (int(starts is not None), tile, heads * tile, seen, first)
    _rows(xp, "masked_softmax", p, (scores, p, at, *map(int32, numbers), float32(scale)), seen)
    return queries, p


# -------------------------------------------------------------------------------------------------- one for each


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
