"""The specification: every primitive as a plain array function ``f(xp, ...)``.

Written once in names that NumPy 2 and CuPy 14 share (`xp` is either), so it runs on both; CUDA may put a kernel in the
place of any of them, and so may you, with ``tinyllm.use(softmax=mine)``. A compound primitive calls its parts through
the table, so a replaced softmax is felt in attention. Reductions and exponentials are kept stable by subtracting the
maximum.
"""

from __future__ import annotations

import math
from typing import Any

import numpy

from tinyllm.backend.half import from_bfloat16
from tinyllm.backend.nf4 import nf4_dequantize, nf4_matvec, nf4_quantize, nf4_scales
from tinyllm.backend.random import raw_words
from tinyllm.backend.table import of


def matmul(xp, a, b, out=None):
    """a @ b, written into `out` if it is given, which may be some columns of a larger array.

    a (..., m, k), b (..., k, n); returns (..., m, n).
    """
    return a @ b if out is None else xp.matmul(a, b, out=out)


def sigmoid(xp, x):
    """1 / (1 + e^-x), of integers in float32; where e^-x overflows to infinity, this is the 0 that is meant."""
    if x.dtype.kind in "iub":
        x = x.astype(numpy.float32)
    y = xp.negative(x, out=xp.empty_like(x))
    with numpy.errstate(over="ignore"):
        xp.exp(y, out=y)
    y += 1
    xp.reciprocal(y, out=y)
    return y


def softmax(xp, x):
    """e^x / sum e^x over the last axis. Shift-invariant, so the maximum is taken off first.

    x : floating (..., n); returns the same shape and dtype, rows that sum to 1.
    """
    y = x - x.max(axis=-1, keepdims=True)
    xp.exp(y, out=y)
    y /= y.sum(axis=-1, keepdims=True)
    return y


def softmax_backward(xp, g, y):
    """The softmax's gradient from its output: y * (g - sum(g * y)), each (..., n)."""
    gx = g - xp.einsum("...i,...i->...", g, y)[..., None]
    gx *= y
    return gx


def rms_norm(xp, x, w, eps):
    """x / sqrt(mean(x^2) + eps) * w over the last axis (Zhang & Sennrich 2019, eq. 4).

    x (..., n), w (n,). Returns y (..., n) and the inverse root mean square (..., 1), which backward reads.
    """
    n = x.shape[-1]
    inverse = 1 / xp.sqrt(xp.einsum("...i,...i->...", x, x)[..., None] / n + eps)
    inverse = inverse.astype(x.dtype, copy=False)
    y = x * inverse
    y *= w
    return y, inverse


def rms_norm_backward(xp, g, x, w, inverse):
    """dL/dx of `rms_norm`: r*(g*w) - x * r^3 * mean(x*g*w), with r the inverse root mean square."""
    gx = g * w
    along = xp.einsum("...i,...i->...", gx, x)[..., None]
    along *= inverse**3 / x.shape[-1]
    gx *= inverse
    gx -= x * along
    return gx


def layer_norm(xp, x, w, b, eps):
    """(x - mean) / sqrt(variance + eps) * w + b over the last axis (Ba et al. 2016).

    x (..., n), w and b (n,). Returns y, the mean (..., 1) and the inverse standard deviation (..., 1).
    """
    mean = x.mean(axis=-1, keepdims=True)
    y = x - mean
    inverse = 1 / xp.sqrt(xp.einsum("...i,...i->...", y, y)[..., None] / x.shape[-1] + eps)
    inverse = inverse.astype(x.dtype, copy=False)
    y *= inverse
    y *= w
    y += b
    return y, mean, inverse


def layer_norm_backward(xp, g, x, w, mean, inverse):
    """dL/dx of `layer_norm`: r * (h - mean(h) - z * mean(h * z)), h = g*w, z = (x - mean)*r."""
    z = (x - mean) * inverse
    gx = g * w
    z *= (gx * z).mean(axis=-1, keepdims=True)
    gx -= gx.mean(axis=-1, keepdims=True)
    gx -= z
    gx *= inverse
    return gx


# erf by Taylor's series around the nearest of these points: NumPy has none. |x| > 6 is 1 in float64.
_STEP = 1 / 64
_NODES = numpy.arange(-6 * 64, 6 * 64 + 1) * _STEP
_ERF = numpy.array([math.erf(t) for t in _NODES])
_SLOPE = numpy.array([2 / math.sqrt(math.pi) * math.exp(-t * t) for t in _NODES])


def erf(xp, x):
    """The error function to about 1e-16 (2e-7 in float32): six Taylor terms from a table of step 1/64.

    The derivatives are Hermite polynomials times the slope: erf^(n+1)(t) = (-1)^n H_n(t) 2/sqrt(pi) e^(-t^2).
    """
    near = xp.clip(xp.rint(xp.clip(x, -7, 7) * 64), -384, 384).astype(numpy.int64)
    t = (near * _STEP).astype(x.dtype)
    d = xp.clip(x, -6, 6) - t
    near += 384
    before, hermite = xp.zeros_like(t), xp.ones_like(t)  # H_-1, H_0
    term, series = d, d
    for n in range(1, 6):
        before, hermite = hermite, 2 * t * hermite - 2 * (n - 1) * before
        term = term * d * (-1 / (n + 1))
        series = series + term * hermite
    return xp.asarray(_ERF.astype(x.dtype))[near] + xp.asarray(_SLOPE.astype(x.dtype))[near] * series


_TANH_SCALE = math.sqrt(2 / math.pi)


def gelu(xp, x, approximate):
    """x * Phi(x) (Hendrycks & Gimpel 2016): exactly through erf, or their tanh formula if `approximate` (GPT-2)."""
    if approximate:
        y = xp.tanh(_TANH_SCALE * (x + 0.044715 * x**3))
    else:
        y = of(x).erf(x * math.sqrt(0.5))
    y += 1
    y *= x
    y *= 0.5
    return y


def gelu_backward(xp, g, x, approximate):
    """dL/dx of `gelu`: Phi(x) + x * phi(x), or the derivative of the tanh formula."""
    if approximate:
        t = xp.tanh(_TANH_SCALE * (x + 0.044715 * x**3))
        inner = _TANH_SCALE * (1 + 3 * 0.044715 * x * x)
        return g * (0.5 * (1 + t) + 0.5 * x * (1 - t * t) * inner)
    phi = xp.exp(-0.5 * x * x) * (1 / math.sqrt(2 * math.pi))
    return g * (0.5 * (1 + of(x).erf(x * math.sqrt(0.5))) + x * phi)


def silu_mul(xp, gate, up):
    """silu(gate) * up = gate * sigmoid(gate) * up: the middle of SwiGLU (Shazeer 2020, eq. 6). Equal shapes."""
    y = of(gate).sigmoid(gate)
    y *= gate
    y *= up
    return y


def silu_mul_backward(xp, g, gate, up):
    """(dL/dgate, dL/dup) of `silu_mul`; silu'(x) = s * (1 + x * (1 - s)), s = sigmoid(x)."""
    s = of(gate).sigmoid(gate)
    silu = s * gate
    g_up = g * silu
    s -= silu * s  # becomes s - x s^2 ...
    s += silu  # ... + x s = s (1 + x (1 - s))
    s *= up
    s *= g
    return s, g_up


def rope(xp, x, cos, sin):
    """Rotate pairs (i, i + n/2) of the last axis by the position's angles (Su et al. 2021, eq. 34).

    x (batch, heads, time, n); cos, sin (batch or 1, 1, time, n/2). The rotation's transpose is the rotation by the
    negative angle, so backward calls this with -sin. Hugging Face's "rotate half" layout.
    """
    half = x.shape[-1] // 2
    other = xp.concatenate([x[..., half:], x[..., :half]], axis=-1)  # the other of each pair
    other *= xp.concatenate([-sin, sin], axis=-1)
    y = xp.multiply(x, xp.concatenate([cos, cos], axis=-1), out=xp.empty(x.shape, x.dtype))
    y += other
    return y


QUERIES = 32  # queries handled at once: a causal tile reads only the keys up to its end, and its scores stay in cache


def _attention_tiles(q, k, queries=None):
    """Query slices with, for each, the number of keys it can see and the first query's position."""
    queries = queries or QUERIES
    past = k.shape[2] - q.shape[2]
    for start in of(q).in_turn(range(0, q.shape[2], queries)):
        stop = min(start + queries, q.shape[2])
        yield slice(start, stop), past + stop, past + start


def _probabilities(xp, q, k, scale, starts, rows, seen, first):
    """A tile's queries, scaled, (batch, kv heads, group * tile, n), and softmaxed scores, (..., group * tile, seen)."""
    batch, heads, _, n = q.shape
    group = heads // k.shape[1]
    tile = rows.stop - rows.start
    # Query heads that share a key head become rows of one matmul, so keys are never repeated.
    queries = (q[:, :, rows] * scale).reshape(batch, k.shape[1], group * tile, n)
    scores = queries @ k[:, :, :seen].swapaxes(-1, -2)
    by_head = scores.reshape(batch, k.shape[1], group, tile, seen)
    if tile > 1:  # one query sees all keys there are; of several, each sees those before the tile, and up to itself
        at = xp.arange(tile)
        xp.copyto(by_head[..., first:], -xp.inf, where=at > at[:, None])
    if starts is not None:
        hidden = xp.arange(seen) < starts[:, rows, None]  # (batch, tile, seen)
        xp.copyto(by_head, -xp.inf, where=hidden[:, None, None])
    return queries, of(q).softmax(scores)


def attention(xp, q, k, v, scale, starts):
    """Causal grouped-query attention: softmax(scale * q k^T) v over the keys each query may see.

    Parameters
    ----------
    q : (batch, heads, time, n)
    k, v : (batch, kv_heads, keys, n)
        heads is a multiple of kv_heads; the queries are the last `time` of the `keys` positions (a KV cache).
    scale : float
    starts : int (batch, time) or None
        The first key each query may see: left padding, packed segments and sliding windows are all this one array.
        A start is never behind its own query, so no row is ever fully masked.

    Returns
    -------
    (batch, heads, time, n)
        Memory is one tile's scores, (batch, heads, 32, keys). Vaswani et al. 2017, eq. 1; Ainslie et al. 2023.
    """
    y = xp.empty(q.shape, q.dtype)
    for rows, seen, first in _attention_tiles(q, k):
        _, p = _probabilities(xp, q, k, scale, starts, rows, seen, first)
        y[:, :, rows] = (p @ v[:, :, :seen]).reshape(y[:, :, rows].shape)
    return y


def attention_backward(xp, g, q, k, v, scale, starts):
    """(dL/dq, dL/dk, dL/dv) of `attention`, from its inputs: the probabilities are computed again, not kept."""
    gq, gk, gv = xp.empty(q.shape, q.dtype), xp.zeros(k.shape, k.dtype), xp.zeros(v.shape, v.dtype)
    for rows, seen, first in _attention_tiles(q, k):
        queries, p = _probabilities(xp, q, k, scale, starts, rows, seen, first)
        gy = g[:, :, rows].reshape(queries.shape)
        gv[:, :, :seen] += p.swapaxes(-1, -2) @ gy
        gs = of(q).softmax_backward(gy @ v[:, :, :seen].swapaxes(-1, -2), p)
        gq[:, :, rows] = (gs @ k[:, :, :seen]).reshape(gq[:, :, rows].shape)
        gk[:, :, :seen] += gs.swapaxes(-1, -2) @ queries  # these are scaled already
    gq *= scale
    return gq, gk, gv


def cross_entropy(xp, logits, targets):
    """-log softmax(logits)[target] of each row; 0 where the target is negative (ignored).

    logits (rows, classes), targets int (rows,). Returns the losses and log(sum(e^logits)), each (rows,).
    """
    top = logits.max(axis=-1, keepdims=True)
    lse = xp.log(xp.exp(logits - top).sum(axis=-1)) + top[:, 0]
    live = targets >= 0
    chosen = logits[xp.arange(len(targets)), xp.where(live, targets, 0)]
    return xp.where(live, lse - chosen, 0).astype(logits.dtype, copy=False), lse


def cross_entropy_backward(xp, g, logits, targets, lse, out=None):
    """dL/dlogits from the gradient of each row's loss, g (rows,): g * (softmax - one hot), 0 in ignored rows.

    Written into `out` if it is given; that may be `logits` itself.
    """
    y = xp.subtract(logits, lse[:, None], out=out)
    xp.exp(y, out=y)
    live = targets >= 0
    y[xp.arange(len(targets)), xp.where(live, targets, 0)] -= 1
    y *= xp.where(live, g, 0).astype(y.dtype, copy=False)[:, None]
    return y


def embedding_grad(xp, g, ids, rows):
    """Scatter-add: row ``ids[i]`` of the result, (rows, n), gets the sum of the ``g[i]``; g (..., n)."""
    y = xp.zeros((rows, g.shape[-1]), g.dtype)
    xp.add.at(y, ids.reshape(-1), g.reshape(-1, g.shape[-1]))
    return y


def dropout_mask(xp, state, shape, p, dtype):
    """1/(1-p) where an element stays and 0 where it goes, from 16 random bits an element, four to a word.

    `state` is a generator's (seed, position); the bits are words of Philox 4x64-10, low bits first, so the same seed
    gives the same mask on every platform and device. An element goes if its 16 bits are below round(p * 65536).
    """
    n = math.prod(shape)
    bits = xp.asarray(raw_words(state, -(-n // 4)).astype("<u8", copy=False).view("<u2")[:n])
    stays = bits >= round(p * 65536)
    return (stays * numpy.dtype(dtype).type(1 / (1 - p))).reshape(shape)


def adamw_step(xp, w, g, m, v, step, lr, beta1, beta2, eps, weight_decay):
    """One AdamW update, in place in w, m and v (Loshchilov & Hutter 2019, algorithm 2), in PyTorch's order.

    `step` counts from 1. All arrays of one shape; the update is w -= lr*wd*w, then lr * mhat / (sqrt(vhat) + eps).
    """
    w *= 1 - lr * weight_decay
    room = xp.empty_like(m)  # the one temporary: threads that each make several wait for one another's memory and lock
    xp.subtract(g, m, out=room)
    room *= 1 - beta1
    m += room
    xp.multiply(g, g, out=room)
    room *= 1 - beta2
    v *= beta2
    v += room
    xp.sqrt(v, out=room)
    room /= math.sqrt(1 - beta2**step)
    room += eps
    xp.divide(m, room, out=room)
    room *= lr / (1 - beta1**step)
    w -= room


def widen(xp, bits, storage, out=None, dtype=numpy.float32):
    """The floats that 16-bit patterns stand for, as `dtype`, or written into `out` if it is given.

    bits uint16, storage "float16" or "bfloat16", out of the same shape as `bits`.
    """
    out = xp.empty(bits.shape, dtype) if out is None else out
    out[...] = bits.view(numpy.float16) if storage == "float16" else from_bfloat16(bits)
    return out


def specification() -> dict[str, Any]:
    """Every primitive by name: the table a backend starts from."""
    functions = [matmul, sigmoid, softmax, softmax_backward, rms_norm, rms_norm_backward]
    functions += [layer_norm, layer_norm_backward, erf, gelu, gelu_backward, silu_mul, silu_mul_backward]
    functions += [rope, attention, attention_backward]
    functions += [cross_entropy, cross_entropy_backward, embedding_grad, dropout_mask, adamw_step]
    functions += [nf4_quantize, nf4_dequantize, nf4_scales, nf4_matvec, widen]
    return {function.__name__: function for function in functions}
