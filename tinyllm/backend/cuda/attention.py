"""Attention on a card: larger tiles than a CPU's, with the mask, the scale and the softmax in one kernel."""

from __future__ import annotations

import numpy as np

from tinyllm.backend import primitives
from tinyllm.backend.cuda.gemm import stacked_matmul
from tinyllm.backend.cuda.overrides import float32, int32, launch_rows, override

QUERIES = 512  # of attention at once: more than on a CPU, where a tile has to stay in the cache


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
        launch_rows(xp, "scaled_softmax_backward", p, (gp, p, gs, int32(seen), float32(scale)), seen)
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
    launch_rows(xp, "masked_softmax", p, (scores, p, at, *map(int32, numbers), float32(scale)), seen)
    return queries, p
