"""The NumPy backend: the specification, cut into pieces that stay in the cache and are shared among threads.

An override calls the specification on each piece, so its arithmetic stands in one place, and gives the same bits
whatever the number of threads (but for matrix products, whose sums may be ordered otherwise). What is too small to be
worth cutting goes to the specification whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import wraps
from typing import Any

import numpy

from tinyllm.backend.cpu.blas import BLAS
from tinyllm.backend.cpu.threads import at_a_piece, cut, deal, get_num_threads
from tinyllm.backend.half import from_bfloat16, widen_bfloat16, widen_float16
from tinyllm.backend.nf4 import NF4_PAIRS
from tinyllm.backend.primitives import specification
from tinyllm.backend.table import is_own, of

SPECIFICATION = specification()
OVERRIDES: dict[str, Callable] = {}
PIECE = 1 << 17  # numbers of an array in a piece: they fit the cache, and the interpreter's lock is seldom asked for
WORTH = 1 << 19  # numbers from which on an array is cut: waking a thread takes about 50 µs
WORTH_A_PRODUCT = 1 << 23  # multiplications, the same for matrix products
ALIGNED = 32  # columns or rows: pieces of a product begin at multiples of what BLAS computes at once ...
WIDEST = 2048  # ... and are no wider, since BLAS copies a piece's columns first, for each thread


def override(function: Callable) -> Callable:
    """Put a function into the table of overrides under its own name."""
    OVERRIDES[function.__name__] = wraps(SPECIFICATION[function.__name__])(function)
    return function


def by_rows(name: str, *rows: int) -> None:
    """Override a primitive whose rows (all axes but the last) do not know of each other.

    `rows` are the positions, counted without `xp`, of the arguments that have these rows; the others go to every piece.
    """
    specified = SPECIFICATION[name]

    @wraps(specified)
    def shared(xp: Any, *arguments: Any, **named: Any) -> Any:
        first = arguments[rows[0]] if len(arguments) > rows[-1] else None
        if first is None or first.size < WORTH or not all(arguments[i].flags.c_contiguous for i in rows):
            return specified(xp, *arguments, **named)
        lead = first.shape[:-1]
        flat = {i: arguments[i].reshape(-1, arguments[i].shape[-1]) for i in rows}

        def part(piece: slice) -> Any:
            return specified(xp, *[flat[i][piece] if i in flat else a for i, a in enumerate(arguments)], **named)

        # The results of no rows at all tell the shapes and dtypes of all.
        empty = part(slice(0, 0))
        whole = [xp.empty((*lead, *y.shape[1:]), y.dtype) for y in (empty if isinstance(empty, tuple) else [empty])]
        targets = [y.reshape(-1, y.shape[-1]) for y in whole]

        def work(piece: slice) -> None:
            found = part(piece)
            for target, y in zip(targets, found if isinstance(found, tuple) else [found], strict=True):
                target[piece] = y

        of(first).share(work, cut(first.size // first.shape[-1], max(1, PIECE // first.shape[-1])))
        return tuple(whole) if isinstance(empty, tuple) else whole[0]

    OVERRIDES[name] = shared


by_rows("softmax", 0)
by_rows("softmax_backward", 0, 1)
by_rows("rms_norm", 0)
by_rows("rms_norm_backward", 0, 1, 3)
by_rows("layer_norm", 0)
by_rows("layer_norm_backward", 0, 1, 3, 4)
by_rows("gelu", 0)
by_rows("gelu_backward", 0, 1)
by_rows("silu_mul", 0, 1)
by_rows("silu_mul_backward", 0, 1, 2)


@override
def matmul(xp, a, b, out=None):
    flat = a.ndim > 2 and b.ndim == 2 and out is None and a.flags.c_contiguous  # a stack's rows are one product's
    alike = min(a.ndim, b.ndim) > 1 and a.shape[:-2] == b.shape[:-2]
    worth = a.size * b.shape[-1] >= WORTH_A_PRODUCT and not at_a_piece() and BLAS.libraries
    if not worth or not (flat or alike):
        with BLAS:  # its threads would go on spinning after a small product, on cores that the next piece wants
            return SPECIFICATION["matmul"](xp, a, b, out)
    m, n, k = a.shape[-2], b.shape[-1], a.shape[-1]
    if flat:
        return matmul(xp, a.reshape(-1, k), b).reshape(*a.shape[:-1], n)
    y = xp.empty((*a.shape[:-1], n), numpy.result_type(a.dtype, b.dtype)) if out is None else out
    if a.ndim > 2:
        of(a).share(lambda some: xp.matmul(a[some], b[some], out=y[some]), deal(len(a), 1, len(a)))
    # BLAS first copies both factors of each piece, in an order of its own: few pieces, and the smaller factor twice.
    elif m > n:
        of(a).share(lambda rows: xp.matmul(a[rows], b, out=y[rows]), deal(m, ALIGNED, WIDEST))
    else:
        of(a).share(lambda columns: xp.matmul(a, b[:, columns], out=y[:, columns]), deal(n, ALIGNED, WIDEST))
    return y


@override
def rope(xp, x, cos, sin):
    time = x.shape[2]
    if x.size < WORTH:
        return SPECIFICATION["rope"](xp, x, cos, sin)
    y = xp.empty(x.shape, x.dtype)

    def work(piece: slice) -> None:
        y[:, :, piece] = SPECIFICATION["rope"](xp, x[:, :, piece], cos[:, :, piece], sin[:, :, piece])

    of(x).share(work, cut(time, max(1, PIECE * time // x.size)))
    return y


def _heads(q: Any, k: Any) -> list[tuple]:
    """Pieces of attention, as indices of queries, keys and starts: rows of the batch; of few rows, each key head."""
    batch, kv = k.shape[:2]
    group = q.shape[1] // kv
    if batch >= get_num_threads():
        return [(row, row, row) for row in deal(batch, 1, batch)]
    heads = [(slice(h * group, (h + 1) * group), slice(h, h + 1)) for h in range(kv)]
    return [((row, queries), (row, keys), row) for row in cut(batch, 1) for queries, keys in heads]


@override
def attention(xp, q, k, v, scale, starts):
    if q.size * k.shape[2] < WORTH_A_PRODUCT:
        return SPECIFICATION["attention"](xp, q, k, v, scale, starts)
    y = xp.empty(q.shape, q.dtype)

    def work(piece: tuple) -> None:
        queries, keys, rows = piece
        some = None if starts is None else starts[rows]
        y[queries] = SPECIFICATION["attention"](xp, q[queries], k[keys], v[keys], scale, some)

    of(q).share(work, _heads(q, k))
    return y


@override
def attention_backward(xp, g, q, k, v, scale, starts):
    if q.size * k.shape[2] < WORTH_A_PRODUCT:
        return SPECIFICATION["attention_backward"](xp, g, q, k, v, scale, starts)
    gq, gk, gv = (xp.empty(x.shape, x.dtype) for x in (q, k, v))

    def work(piece: tuple) -> None:
        queries, keys, rows = piece
        some = None if starts is None else starts[rows]
        gq[queries], gk[keys], gv[keys] = SPECIFICATION["attention_backward"](
            xp, g[queries], q[queries], k[keys], v[keys], scale, some
        )

    of(q).share(work, _heads(q, k))
    return gq, gk, gv


@override
def adamw_step(xp, w, g, m, v, *numbers):
    if w.size < WORTH:
        return SPECIFICATION["adamw_step"](xp, w, g, m, v, *numbers)
    rows = cut(len(w), max(1, PIECE * len(w) // w.size))
    of(w).share(lambda row: SPECIFICATION["adamw_step"](xp, w[row], g[row], m[row], v[row], *numbers), rows)


@override
def nf4_quantize(xp, flat, block_size):
    n = flat.size
    if n < WORTH:
        return SPECIFICATION["nf4_quantize"](xp, flat, block_size)
    packed, absmax = xp.empty((n + 1) // 2, xp.uint8), xp.empty(-(-n // block_size), xp.float32)

    def work(piece: slice) -> None:
        a, b = piece.start, piece.stop
        found = SPECIFICATION["nf4_quantize"](xp, flat[piece], block_size)
        packed[a // 2 : (b + 1) // 2], absmax[a // block_size : -(-b // block_size)] = found

    of(flat).share(work, cut(n, 4 * PIECE))  # a multiple of every block size
    return packed, absmax


@override
def nf4_dequantize(xp, packed, absmax, block_size, n, start=0, out=None, dtype=numpy.float32):
    if out is None:
        out = xp.empty(n, dtype)

    def work(piece: slice) -> None:
        a, b = piece.start, piece.stop
        scales, y = absmax[a // block_size :], out[piece]
        if out.dtype != xp.float32 or (b - a) % block_size:
            SPECIFICATION["nf4_dequantize"](xp, packed, scales, block_size, b - a, start + a, y)
            return
        # The levels straight into their place, and the scales over them. (mode: any but the default, which buffers.)
        xp.take(NF4_PAIRS, packed[(start + a) // 2 : (start + b) // 2], out=y.view(xp.int64), mode="clip")
        blocks = y.reshape(-1, block_size)
        blocks *= scales[: len(blocks), None]

    of(packed).share(work, cut(n, PIECE))
    return out


@override
def nf4_scales(xp, codes, absmax2, offset, table):
    y = xp.take(table, codes, mode="clip")
    whole = codes.size // 256
    blocks = y[: whole * 256].reshape(whole, 256)
    blocks *= absmax2[:whole, None]
    if whole * 256 < codes.size:
        y[whole * 256 :] *= absmax2[whole]
    y += offset
    return y


@override
def nf4_matvec(xp, x, packed, absmax, block_size, outputs):
    n = x.shape[-1]
    step = block_size // math.gcd(n, block_size)  # rows that begin at a block
    y = xp.empty((len(x), outputs), x.dtype)

    def work(rows: slice) -> None:
        at = rows.start * n
        some = packed[at // 2 :], absmax[at // block_size :], block_size, rows.stop - rows.start
        y[:, rows] = SPECIFICATION["nf4_matvec"](xp, x, *some)

    of(x).share(work, cut(outputs, max(1, 2 * PIECE // n // step) * step))
    return y


@override
def widen(xp, bits, storage, out=None, dtype=numpy.float32):
    if (dtype if out is None else out.dtype) != numpy.float32 or not is_own(from_bfloat16):
        return SPECIFICATION["widen"](xp, bits, storage, out, dtype)
    out = xp.empty(bits.shape, dtype) if out is None else out
    if storage == "float16":
        widen_float16(bits, out)
    else:
        widen_bfloat16(bits, out)
    return out
