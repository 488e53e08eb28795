"""The other kernels against the specification in float64, at the sizes where kernels break: 1, around a warp, beyond a
thread block.

The budget of an element is ``k * eps(float32) * M + eps(dtype) * |wanted|``: sums and functions are float32, with `M`
the sum of the magnitudes of the terms that were added, and the result is rounded once to its dtype.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from needs import needs_compiler

from tests.fake_cupy import cupy
from tinyllm.backend.cuda import attention, nf4, single
from tinyllm.backend.cuda import rows as by_rows
from tinyllm.backend.cuda.overrides import SPECIFICATION
from tinyllm.backend.random import raw_words
from tinyllm.course.cuda_on_cpu import ORDERS, settings

pytestmark = needs_compiler
DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
HALF_ULP = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
SMALLEST = {"float32": 0.0, "float16": 2.0**-24, "bfloat16": 0.0}  # float16's rounding near zero is absolute
ROWS = (1, 2, 7, 31, 32, 33, 100, 1023, 1025, 1500)
K = 16  # a few operations an element; sums are trees, so their depth adds little
spec = SPECIFICATION


def on(*arrays):
    return [cupy.asarray(a) if isinstance(a, np.ndarray) else a for a in arrays]


def wide(*arrays):
    return [a.astype(np.float64) if isinstance(a, np.ndarray) and a.dtype.kind != "i" else a for a in arrays]


def check(got, wanted, magnitude, dtype, k=K):
    name = got.dtype.name
    got = got.get().astype(np.float64)
    assert got.shape == wanted.shape and name in (dtype, "float32")
    budget = k * 2.0**-24 * magnitude + (HALF_ULP[name] * np.abs(wanted) + SMALLEST[name]) * 1.01
    worst = np.abs(got - wanted) - budget
    assert (worst <= 0).all(), (
        f"off by {np.abs(got - wanted).max():.2e} at {np.unravel_index(worst.argmax(), worst.shape)}"
    )


def draw(rng, dtype, *shape, scale=1.0):
    return (rng.standard_normal(shape) * scale).astype(DTYPES[dtype])


each = pytest.mark.parametrize("dtype", DTYPES)


@each
@pytest.mark.parametrize("order", ORDERS)
def test_rms_norm(dtype, order):
    rng = np.random.default_rng(1)
    for n in ROWS:
        x, w, g = draw(rng, dtype, 3, n), draw(rng, "float32", n), draw(rng, dtype, 3, n)
        with settings(order=order):
            y, inverse = by_rows.rms_norm(cupy, *on(x, w), 1e-5)
            gx = by_rows.rms_norm_backward(cupy, *on(g, x, w), inverse)
        wanted, r = spec["rms_norm"](np, *wide(x, w), 1e-5)
        check(y, wanted, np.abs(wanted), dtype)
        check(inverse, r, r, "float32")
        X, W, G = wide(x, w, g)
        size = r * np.abs(G * W) + np.abs(X) * r**3 * np.abs(X * W * G).mean(-1, keepdims=True)
        check(gx, spec["rms_norm_backward"](np, G, X, W, r), size, dtype)


@each
def test_layer_norm(dtype):
    rng = np.random.default_rng(2)
    for n in ROWS:
        x, w, b, g = draw(rng, dtype, 2, n), draw(rng, "float32", n), draw(rng, "float32", n), draw(rng, dtype, 2, n)
        x += DTYPES[dtype](3)
        y, mean, inverse = by_rows.layer_norm(cupy, *on(x, w, b), 1e-3)
        X, W, B, G = wide(x, w, b, g)
        wanted, m, r = spec["layer_norm"](np, X, W, B, 1e-3)
        # An error of the mean, of eps * mean|x|, moves every element by r w; the variance feels it twice.
        size = np.abs(W) * r * (np.abs(X) + np.abs(X).mean(-1, keepdims=True) * (1 + np.abs(X - m) * r)) + np.abs(B)
        check(y, wanted, size, dtype)
        check(mean, m, np.abs(X).mean(-1, keepdims=True), "float32")
        gx = by_rows.layer_norm_backward(cupy, *on(g, x, w), mean, inverse)
        m, r = mean.get().astype(np.float64), inverse.get().astype(np.float64)
        Z, H = np.abs(X - m) * r + r * np.abs(X), np.abs(G * W)
        size = r * (H + H.mean(-1, keepdims=True) + Z * (H * Z).mean(-1, keepdims=True))
        check(gx, spec["layer_norm_backward"](np, G, X, W, m, r), size, dtype)


@each
@pytest.mark.parametrize("order", ORDERS)
def test_softmax(dtype, order):
    rng = np.random.default_rng(3)
    for n in ROWS:
        x, g = draw(rng, dtype, 3, n, scale=4), draw(rng, dtype, 3, n)
        with settings(order=order):
            y = by_rows.softmax(cupy, *on(x))
            gx = by_rows.softmax_backward(cupy, *on(g), y)
        X, G = wide(x, g)
        wanted = spec["softmax"](np, X)
        check(y, wanted, wanted * (1 + np.abs(X - X.max(-1, keepdims=True))), dtype)
        Y = y.get().astype(np.float64)
        size = Y * (np.abs(G) + (np.abs(G) * Y).sum(-1, keepdims=True))
        check(gx, spec["softmax_backward"](np, G, Y), size, dtype)


@each
def test_cross_entropy(dtype):
    rng = np.random.default_rng(4)
    for n in ROWS:
        x, g = draw(rng, dtype, 4, n, scale=5), draw(rng, "float32", 4)
        x[0, 0] = 60
        targets = np.array([0, n - 1, -100, n // 2])
        losses, lse = by_rows.cross_entropy(cupy, *on(x, targets))
        X, G = wide(x, g)
        wanted, total = spec["cross_entropy"](np, X, targets)
        size = (1 + np.abs(X).max(-1)) * (targets >= 0)
        check(losses, wanted, size, "float32")
        check(lse, total, 1 + np.abs(X).max(-1), "float32")
        before = x.copy()
        gx = by_rows.cross_entropy_backward(cupy, *on(g, x, targets), lse)
        assert np.array_equal(x, before)
        L = lse.get().astype(np.float64)
        P = np.exp(X - L[:, None])
        size = np.abs(G)[:, None] * (P * (1 + np.abs(X - L[:, None])) + (np.arange(n) == targets[:, None]))
        check(gx, spec["cross_entropy_backward"](np, G, X, targets, L), size * (targets >= 0)[:, None], dtype)


def test_logits_that_are_no_numbers():
    x = np.random.default_rng(0).standard_normal((3, 70)).astype(np.float32)
    x[0, :40] = -np.inf  # a masked vocabulary is a number all the same
    x[1, 33] = np.nan  # alone with its thread
    targets = np.array([69, 0, 1])
    losses, _ = by_rows.cross_entropy(cupy, *on(x, targets))
    with np.errstate(all="ignore"):
        wanted, _ = spec["cross_entropy"](np, x, targets)
    losses = losses.get()
    assert np.isnan(losses).tolist() == np.isnan(wanted).tolist() == [False, True, False]
    assert abs(losses[0] - wanted[0]) <= 8 * np.finfo(np.float32).eps * wanted[0]
    y = by_rows.softmax(cupy, *on(x)).get()
    assert (y[0, :40] == 0).all() and np.isnan(y[1]).all() and abs(y[2].sum() - 1) < 1e-6


@each
@pytest.mark.parametrize("starts", [False, True])
def test_attention_and_its_gradients(dtype, starts, monkeypatch):
    monkeypatch.setattr(attention, "QUERIES", 32)  # so that small arrays take several tiles
    rng = np.random.default_rng(5)
    for heads, kv, time, keys, n in ((4, 2, 3, 5, 8), (2, 2, 1, 33, 4), (2, 1, 65, 65, 8), (1, 1, 1, 1, 2)):
        q, k, v = (
            draw(rng, dtype, 2, time, heads, n),
            draw(rng, dtype, 2, kv, keys, n),
            draw(rng, dtype, 2, kv, keys, n),
        )
        q = q.swapaxes(1, 2)  # as it comes: not contiguous
        g = draw(rng, dtype, 2, heads, time, n)
        at = (
            np.array([[rng.integers(0, keys - time + t + 1) for t in range(time)] for _ in range(2)])
            if starts
            else None
        )
        Q, K_, V, G = wide(q, k, v, g)
        y = attention.attention(cupy, *on(q, k, v), 0.3, *on(at))
        limit = 4 * HALF_ULP[dtype] * np.abs(V).max()  # a convex sum of values, from probabilities of that dtype
        assert y.dtype.name == dtype
        assert np.abs(y.get().astype(float) - spec["attention"](np, Q, K_, V, 0.3, at)).max() <= limit + 64 * 2.0**-24
        got = attention.attention_backward(cupy, *on(g, q, k, v), 0.3, *on(at))
        wanted = spec["attention_backward"](np, G, Q, K_, V, 0.3, at)
        for a, b in zip(got, wanted, strict=True):
            # A gradient is a sum of at most `time * heads` or `keys` products, each with three rounded factors.
            terms = max(time * heads // kv, keys)
            size = (
                np.abs(G).max() * max(1, np.abs(V).max()) * n * max(1, np.abs(Q).max(), np.abs(K_).max()) * terms**0.5
            )
            assert a.dtype.name == dtype
            assert np.abs(a.get().astype(float) - b).max() <= 4 * HALF_ULP[dtype] * size


@each
def test_pointwise(dtype):
    rng = np.random.default_rng(6)
    for n in (1, 31, 33, 1000):
        x, g, up = draw(rng, dtype, n, scale=3), draw(rng, dtype, n), draw(rng, dtype, n)
        x[: n // 4] *= DTYPES[dtype](10)
        X, G, U = wide(x, g, up)
        S = 1 / (1 + np.exp(-X))
        check(single.silu_mul(cupy, *on(x, up)), X * S * U, np.abs(X * S * U) * (1 + np.abs(X)), dtype)
        a, b = single.silu_mul_backward(cupy, *on(g, x, up))
        check(a, G * U * S * (1 + X * (1 - S)), np.abs(G * U) * S * (1 + np.abs(X)) ** 2, dtype)
        check(b, G * X * S, np.abs(G * X) * S * (1 + np.abs(X)), dtype)
        for approximate in (False, True):
            y = single.gelu(cupy, *on(x), approximate)
            gx = single.gelu_backward(cupy, *on(g, x), approximate)
            check(y, spec["gelu"](np, X, approximate), np.abs(X), dtype)
            check(gx, spec["gelu_backward"](np, G, X, approximate), np.abs(G) * (1 + np.abs(X)) ** 3, dtype)


@each
@pytest.mark.parametrize("tables", [1, 2])
def test_rope(dtype, tables):
    rng = np.random.default_rng(7)
    for heads, time, n in ((1, 1, 2), (3, 5, 8), (2, 33, 64)):
        x = draw(rng, dtype, 2, time, heads, n).swapaxes(1, 2)
        angle = rng.random((tables, 1, time, n // 2)) * 6
        cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
        X, C, S = wide(x, cos, sin)
        size = np.abs(X).max() * np.ones(x.shape)
        check(single.rope(cupy, *on(x, cos, sin)), spec["rope"](np, X, C, S), size, dtype)


@each
@pytest.mark.parametrize("order", ORDERS)
def test_embedding_grad(dtype, order):
    rng = np.random.default_rng(8)
    for count, n in ((1, 1), (31, 33), (65, 300), (300, 7)):
        g, ids = draw(rng, dtype, count, n), rng.integers(0, 5, count)
        with settings(order=order):
            y = single.embedding_grad(cupy, *on(g, ids), 6)
        size = spec["embedding_grad"](np, np.abs(g.astype(np.float64)), ids, 6)
        check(y, spec["embedding_grad"](np, g.astype(np.float64), ids, 6), size * count**0.5, dtype)


@each
def test_dropout_masks_are_the_cpus(dtype):
    for n in (1, 15, 16, 17, 1000):
        for state in ((0, 0), (2**64 - 1, 2**64 - 3), (123, 2**63)):
            got = single.dropout_mask(cupy, state, (n,), 0.3, DTYPES[dtype]).get()
            wanted = spec["dropout_mask"](np, state, (n,), 0.3, np.float32)
            np.testing.assert_array_equal(got, wanted.astype(DTYPES[dtype]))
    # An element whose bits are the threshold itself stays: p is chosen to be the third element's own.
    p = int(raw_words((5, 6), 1)[0] >> np.uint64(32) & np.uint64(0xFFFF)) / 65536
    assert single.dropout_mask(cupy, (5, 6), (4,), p, DTYPES[dtype]).get()[2] > 0


def test_adamw():
    rng = np.random.default_rng(9)
    for n in (1, 33, 1000):
        w, g, m = (draw(rng, "float32", n) for _ in range(3))
        v = draw(rng, "float32", n) ** 2
        numbers = 3, 1e-2, 0.9, 0.99, 1e-8, 0.1
        W, G, M, V = wide(w, g, m, v)
        on_card = on(w, g, m, v)
        single.adamw_step(cupy, *on_card, *numbers)
        spec["adamw_step"](np, W, G, M, V, *numbers)
        check(on_card[0], W, np.abs(W) + 1e-2 * np.abs(M) / np.sqrt(V) * 10, "float32")
        check(on_card[2], M, np.abs(m) + np.abs(g), "float32")
        check(on_card[3], V, V, "float32")
        np.testing.assert_array_equal(on_card[1].get(), g)


@each
@pytest.mark.parametrize("order", ORDERS)
def test_nf4_matvec(dtype, order):
    rng = np.random.default_rng(10)
    for rows, n, outputs, block in ((1, 64, 9, 64), (4, 576, 3, 64), (3, 8, 33, 32), (2, 1032, 5, 128)):
        packed = rng.integers(0, 256, outputs * n // 2).astype(np.uint8)
        absmax = rng.random(-(-outputs * n // block)).astype(np.float32)
        x = draw(rng, dtype, rows, n)
        with settings(order=order):
            y = nf4.nf4_matvec(cupy, *on(x, packed, absmax), block, outputs)
        w = spec["nf4_dequantize"](np, packed, absmax, block, outputs * n).reshape(outputs, n).astype(np.float64)
        X = x.astype(np.float64)
        check(y, X @ w.T, np.abs(X) @ np.abs(w).T, dtype)
