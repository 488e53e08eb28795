"""What goes row by row on a card, a thread block each: norms, softmax, the loss."""

from __future__ import annotations

import numpy as np

from tinyllm.backend.cuda.overrides import float32, int32, launch_rows, override


@override()
def rms_norm(xp, x, w, eps):
    x, n = xp.ascontiguousarray(x), x.shape[-1]
    y, inverse = xp.empty(x.shape, x.dtype), xp.empty((*x.shape[:-1], 1), np.float32)
    launch_rows(xp, "rms_norm", x, (x, w.astype(np.float32, copy=False), y, inverse, int32(n), float32(eps)), n)
    return y, inverse


@override()
def rms_norm_backward(xp, g, x, w, inverse):
    g, x, n = xp.ascontiguousarray(g), xp.ascontiguousarray(x), x.shape[-1]
    gx, w = xp.empty(x.shape, x.dtype), w.astype(np.float32, copy=False)
    launch_rows(xp, "rms_norm_backward", x, (g, x, w, inverse, gx, int32(n)), n)
    return gx


@override()
def layer_norm(xp, x, w, b, eps):
    x, n = xp.ascontiguousarray(x), x.shape[-1]
    y = xp.empty(x.shape, x.dtype)
    mean, inverse = (xp.empty((*x.shape[:-1], 1), np.float32) for _ in range(2))
    w, b = (v.astype(np.float32, copy=False) for v in (w, b))
    launch_rows(xp, "layer_norm", x, (x, w, b, y, mean, inverse, int32(n), float32(eps)), n)
    return y, mean, inverse


@override()
def layer_norm_backward(xp, g, x, w, mean, inverse):
    g, x, n = xp.ascontiguousarray(g), xp.ascontiguousarray(x), x.shape[-1]
    gx, w = xp.empty(x.shape, x.dtype), w.astype(np.float32, copy=False)
    launch_rows(xp, "layer_norm_backward", x, (g, x, w, mean, inverse, gx, int32(n)), n)
    return gx


@override()
def softmax(xp, x):
    x = xp.ascontiguousarray(x)
    y = xp.empty(x.shape, x.dtype)
    launch_rows(xp, "softmax", x, (x, y, int32(x.shape[-1])), x.shape[-1])
    return y


@override()
def softmax_backward(xp, g, y):
    g, y = xp.ascontiguousarray(g), xp.ascontiguousarray(y)
    gx = xp.empty(y.shape, y.dtype)
    launch_rows(xp, "softmax_backward", y, (g, y, gx, int32(y.shape[-1])), y.shape[-1])
    return gx


@override()
def cross_entropy(xp, logits, targets):
    logits, classes = xp.ascontiguousarray(logits), logits.shape[-1]
    losses, lse = (xp.empty(len(logits), np.float32) for _ in range(2))
    targets = xp.ascontiguousarray(targets, dtype=np.int64)
    launch_rows(xp, "cross_entropy", logits, (logits, targets, losses, lse, int32(classes)), classes)
    return losses, lse


@override()
def cross_entropy_backward(xp, g, logits, targets, lse, out=None):
    logits, classes = xp.ascontiguousarray(logits), logits.shape[-1]
    y = xp.empty(logits.shape, logits.dtype) if out is None else out
    g, targets = xp.ascontiguousarray(g, dtype=np.float32), xp.ascontiguousarray(targets, dtype=np.int64)
    launch_rows(xp, "cross_entropy_backward", logits, (g, logits, targets, lse, y, int32(classes)), classes)
    return y
