"""The whole table of primitives: each is its plain-loop definition, and each can be replaced and the replacement felt.

A definition below is written over numbers that carry their rounding error (`strategies.Num`), so it gives the value and
the budget at once: ``k * eps(dtype) * error`` with one small `k` for all of them.
"""

from __future__ import annotations

import functools
import inspect
import math

import numpy as np
import pytest
from backends import moved, running_on
from hypothesis import given
from strategies import DTYPES, Num, assert_within, erf, exp, log, nums, seeds, sqrt, tanh

from tinyllm import functional as F
from tinyllm import ops
from tinyllm.backend import BACKENDS, use
from tinyllm.backend.device import to_host
from tinyllm.backend.nf4 import NF4_LEVELS
from tinyllm.backend.random import manual_seed
from tinyllm.frozen import nf4, store
from tinyllm.optim import AdamW
from tinyllm.tensor import Parameter, Tensor

be = BACKENDS["numpy"]
NAMES = sorted(be.table)


def rowwise(f):
    """Apply a definition for one row (a list of Nums from each array) to every row."""

    def definition(*xs):
        y = np.empty(xs[0].shape, dtype=object)
        for i in np.ndindex(y.shape[:-1]):
            for j, v in enumerate(f(*(list(x[i]) for x in xs))):
                y[i + (j,)] = v
        return y

    return definition


def pointwise(f):
    return np.frompyfunc(f, 1, 1)


# -------------------------------------------------------------------------------------- the definitions, row by row


def softmax(x):
    top = max(v.value for v in x)
    e = [exp(v - Num(top)) for v in x]
    return [v / sum(e) for v in e]


def softmax_backward(g, y):
    along = sum(a * b for a, b in zip(g, y, strict=True))
    return [b * (a - along) for a, b in zip(g, y, strict=True)]


def inverse_rms(x, eps):
    return 1 / sqrt(sum(v * v for v in x) / len(x) + eps)


def rms_norm(x, w, eps):
    r = inverse_rms(x, eps)
    return [v * r * c for v, c in zip(x, w, strict=True)]


def rms_norm_backward(g, x, w, r):
    r = r[0]
    along = sum(a * c * v for a, v, c in zip(g, x, w, strict=True)) / len(x)
    return [r * a * c - v * r * r * r * along for a, v, c in zip(g, x, w, strict=True)]


def mean(x):
    return sum(x) / len(x)


def inverse_deviation(x, eps):
    m = mean(x)
    return 1 / sqrt(sum((v - m) * (v - m) for v in x) / len(x) + eps)


def layer_norm(x, w, b, eps):
    m, r = mean(x), inverse_deviation(x, eps)
    return [(v - m) * r * c + d for v, c, d in zip(x, w, b, strict=True)]


def layer_norm_backward(g, x, w, m, r):
    z = [(v - m[0]) * r[0] for v in x]
    h = [a * c for a, c in zip(g, w, strict=True)]
    along = mean([a * b for a, b in zip(h, z, strict=True)])
    return [r[0] * (a - mean(h) - b * along) for a, b in zip(h, z, strict=True)]


def sigmoid(x):
    return (1 + tanh(x * 0.5)) * 0.5  # e^-x would carry an error that grows with x


def gelu(x, approximate):
    if approximate:
        return 0.5 * x * (1 + tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * (x * x * x))))
    return 0.5 * x * (1 + erf(x * math.sqrt(0.5)))


def gelu_slope(x, approximate):
    if approximate:
        t = tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * (x * x * x)))
        return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * x * x)
    density = exp(-(0.5 * x * x)) * (1 / math.sqrt(2 * math.pi))
    return 0.5 * (1 + erf(x * math.sqrt(0.5))) + x * density


def silu_slope(x):
    s = sigmoid(x)
    return s * (1 + x * (1 - s))


def rope(x, cos, sin):
    y, half = np.empty(x.shape, dtype=object), x.shape[-1] // 2
    for b, h, t, i in np.ndindex(*x.shape[:-1], half):
        c, s = cos[min(b, len(cos) - 1), 0, t, i], sin[min(b, len(sin) - 1), 0, t, i]
        u, v = x[b, h, t, i], x[b, h, t, i + half]
        y[b, h, t, i], y[b, h, t, i + half] = u * c - v * s, v * c + u * s
    return y


def dot(a, b):
    return sum((u * v for u, v in zip(a, b, strict=True)), Num(0))


def attention_rows(q, k, scale, starts):
    """For every query: its index, its key head, the keys that it sees and their probabilities."""
    past = k.shape[2] - q.shape[2]
    for b, h, t in np.ndindex(q.shape[:3]):
        c, seen = h * k.shape[1] // q.shape[1], range(0 if starts is None else starts[b, t], past + t + 1)
        yield (b, h, t), c, seen, softmax([dot(q[b, h, t], k[b, c, j]) * scale for j in seen])


def attention(q, k, v, scale, starts):
    y = np.empty(q.shape, dtype=object)
    for (b, h, t), c, seen, p in attention_rows(q, k, scale, starts):
        y[b, h, t] = [dot(p, [v[b, c, j, i] for j in seen]) for i in range(q.shape[3])]
    return y


def attention_backward(g, q, k, v, scale, starts):
    gq, gk, gv = (np.frompyfunc(lambda _: Num(0), 1, 1)(x) for x in (q, k, v))
    for (b, h, t), c, seen, p in attention_rows(q, k, scale, starts):
        gs = softmax_backward([dot(g[b, h, t], v[b, c, j]) for j in seen], p)
        for j, s, weight in zip(seen, gs, p, strict=True):
            gv[b, c, j] += g[b, h, t] * weight
            gq[b, h, t] += k[b, c, j] * (s * scale)
            gk[b, c, j] += q[b, h, t] * (s * scale)
    return gq, gk, gv


def logsumexp(x):
    top = Num(max(v.value for v in x))
    return log(sum(exp(v - top) for v in x)) + top


def cross_entropy(x, targets):
    lse = [logsumexp(row) for row in x]
    return [s - row[t] if t >= 0 else Num(0) for s, row, t in zip(lse, x, targets, strict=True)], lse


def cross_entropy_backward(g, x, targets, lse):
    y = np.empty(x.shape, dtype=object)
    for i, j in np.ndindex(x.shape):
        y[i, j] = g[i] * (exp(x[i, j] - lse[i]) - int(targets[i] == j)) if targets[i] >= 0 else Num(0)
    return y


def embedding_grad(g, ids, rows):
    y = np.frompyfunc(lambda _: Num(0), 1, 1)(np.zeros((rows, g.shape[-1])))
    for i in np.ndindex(ids.shape):
        y[ids[i]] += g[i]
    return y


def dropout_mask(state, shape, p):
    words = np.random.Philox(key=state[0], counter=state[1]).random_raw(math.prod(shape)).tolist()
    kept = [words[i // 4] >> 16 * (i % 4) & 0xFFFF >= round(p * 65536) for i in range(math.prod(shape))]
    return np.array([Num(1 / (1 - p), 1 / (1 - p)) if stays else Num(0) for stays in kept]).reshape(shape)


def adamw_step(w, g, m, v, step, lr, beta1, beta2, eps, weight_decay):
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * (g * g)
    denominator = pointwise(sqrt)(v / (1 - beta2**step)) + eps
    return w * (1 - lr * weight_decay) - lr * (m / (1 - beta1**step)) / denominator, m, v


def nf4_codes(x, block_size):
    scales = [max(map(abs, x[i : i + block_size])) for i in range(0, len(x), block_size)]
    nearest = [int(np.abs(NF4_LEVELS - v / scales[i // block_size]).argmin()) for i, v in enumerate(x)]
    return [a << 4 | b for a, b in zip(nearest[::2], nearest[1::2], strict=True)], scales


def half_number(bits, storage):
    """IEEE 754: sign, exponent with a bias, mantissa; its leading 1 is left out where the exponent is not 0."""
    mantissa_bits, bias = (10, 15) if storage == "float16" else (7, 127)
    exponent, mantissa = (bits & 0x7FFF) >> mantissa_bits, bits & ((1 << mantissa_bits) - 1)
    value = ((exponent > 0) + mantissa / 2**mantissa_bits) * 2.0 ** (max(exponent, 1) - bias)
    return Num(-value if bits >> 15 else value)


# ------------------------------------------------- a case for each primitive: its arguments and the definition's answer


def case(name, rng, dtype):
    """(arguments, the definition's results) for one primitive, from random arrays."""

    def r(*shape):
        return rng.standard_normal(shape).astype(dtype)

    rows, n = rng.integers(1, 4), rng.integers(1, 6)
    x, g, w, b = r(rows, n), r(rows, n), r(n), r(n)
    X, G, W, B = nums(x), nums(g), nums(np.broadcast_to(w, x.shape)), nums(np.broadcast_to(b, x.shape))
    q, k, v = r(2, 4, 3, 2), r(2, 2, 5, 2), r(2, 2, 5, 2)
    starts = np.array([[rng.integers(0, 3 + t) for t in range(3)] for _ in range(2)]) if rng.integers(2) else None
    labels = rng.integers(0, n, rows)
    labels[rng.random(rows) < 0.3] = -100
    approximate = bool(rng.integers(2))
    match name:
        case "matmul":
            return (x, g.T, None), [[[dot(a, b) for b in G] for a in X]]
        case "sigmoid":
            return (4 * x,), [pointwise(sigmoid)(nums(4 * x))]
        case "softmax":
            return (x,), [rowwise(softmax)(X)]
        case "softmax_backward":
            return (g, x), [rowwise(softmax_backward)(G, X)]
        case "rms_norm":
            inverse = [[inverse_rms(row, 1e-3)] for row in X]
            return (x, w, 1e-3), [rowwise(lambda a, c: rms_norm(a, c, 1e-3))(X, W), inverse]
        case "rms_norm_backward":
            inverse = np.abs(r(rows, 1))
            return (g, x, w, inverse), [rowwise(rms_norm_backward)(G, X, W, nums(inverse))]
        case "layer_norm":
            means, inverse = [[mean(list(row))] for row in X], [[inverse_deviation(list(row), 1e-3)] for row in X]
            return (x, w, b, 1e-3), [rowwise(lambda *a: layer_norm(*a, 1e-3))(X, W, B), means, inverse]
        case "layer_norm_backward":
            m, inverse = r(rows, 1), np.abs(r(rows, 1))
            return (g, x, w, m, inverse), [rowwise(layer_norm_backward)(G, X, W, nums(m), nums(inverse))]
        case "erf":
            return (3 * x,), [pointwise(erf)(nums(3 * x))]
        case "gelu":
            return (2 * x, approximate), [pointwise(lambda a: gelu(a, approximate))(nums(2 * x))]
        case "gelu_backward":
            return (g, 2 * x, approximate), [G * pointwise(lambda a: gelu_slope(a, approximate))(nums(2 * x))]
        case "silu_mul":
            return (x, g), [X * pointwise(sigmoid)(X) * G]
        case "silu_mul_backward":
            up = r(rows, n)
            slope, silu = pointwise(silu_slope)(X), X * pointwise(sigmoid)(X)
            return (g, x, up), [G * nums(up) * slope, G * silu]
        case "rope":
            x, cos, sin = r(2, 2, rows, 2 * n), r(1 + n % 2, 1, rows, n), r(1 + n % 2, 1, rows, n)
            return (x, cos, sin), [rope(nums(x), nums(cos), nums(sin))]
        case "attention":
            return (q, k, v, 0.7, starts), [attention(nums(q), nums(k), nums(v), 0.7, starts)]
        case "attention_backward":
            gy = r(*q.shape)
            return (gy, q, k, v, 0.7, starts), attention_backward(*map(nums, (gy, q, k, v)), 0.7, starts)
        case "cross_entropy":
            return (x, labels), cross_entropy([list(row) for row in X], labels)
        case "cross_entropy_backward":
            g, lse = r(rows), np.log(np.exp(x).sum(-1))
            return (g, x, labels, lse), [cross_entropy_backward(nums(g), X, labels, nums(lse))]
        case "embedding_grad":
            ids = rng.integers(0, 3, (2, rows))
            g = r(2, rows, n)
            return (g, ids, 4), [embedding_grad(nums(g), ids, 4)]
        case "dropout_mask":
            state, p = (int(rng.integers(2**60)), int(rng.integers(9))), float(rng.random())
            return (state, (int(rows), int(n)), p, dtype), [dropout_mask(state, (rows, n), p)]
        case "adamw_step":
            m, v = r(rows, n), r(rows, n) ** 2
            rest = (int(rng.integers(1, 9)), 1e-2, 0.9, 0.99, 1e-3, 0.1)
            return (x, g, m, v, *rest), adamw_step(X, G, nums(m), nums(v), *rest)
        case "nf4_quantize":
            flat = rng.standard_normal(128).astype(np.float32)
            return (flat, 32), nf4_codes(flat, 32)
        case "nf4_dequantize":
            packed, scales = rng.integers(0, 256, 32).astype(np.uint8), rng.random(2).astype(np.float32)
            codes = [c for byte in packed.tolist() for c in (byte >> 4, byte & 15)]
            level = [Num(NF4_LEVELS[c]) * Num(scales[i // 32]) for i, c in enumerate(codes)]
            return (packed, scales, 32, 64, 0, None, dtype), [level]
        case "nf4_scales":
            codes, nested = rng.integers(0, 256, 300).astype(np.uint8), rng.random(2).astype(np.float32)
            table, offset = rng.standard_normal(256).astype(np.float32), np.float32(rng.random())
            level = [Num(table[c]) * Num(nested[i // 256]) + Num(offset) for i, c in enumerate(codes)]
            return (codes, nested, offset, table), [level]
        case "nf4_matvec":
            packed, scales = rng.integers(0, 256, 48).astype(np.uint8), rng.random(3).astype(np.float32)
            codes = [c for byte in packed.tolist() for c in (byte >> 4, byte & 15)]
            w = [Num(NF4_LEVELS[c]) * Num(scales[i // 32]) for i, c in enumerate(codes)]
            if dtype == np.float64:  # the product of level and scale is float32 all the same
                w = [Num(float(NF4_LEVELS[c] * scales[i // 32])) for i, c in enumerate(codes)]
            x = r(2, 24)
            return (x, packed, scales, 32, 4), [
                [[dot(row, w[24 * o : 24 * o + 24]) for o in range(4)] for row in nums(x)]
            ]
        case "widen":
            bits, storage = rng.integers(0, 0x7C00, (int(rows), int(n))), "float16" if rng.integers(2) else "bfloat16"
            bits |= 0x8000 * rng.integers(0, 2, bits.shape)  # finite patterns of either sign
            definition = [[half_number(int(b), storage) for b in row] for row in bits]
            return (bits.astype(np.uint16), storage, None, dtype), [definition]
    raise NotImplementedError(f"give the primitive {name!r} a definition here")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
@given(seed=seeds)
def test_a_primitive_is_its_definition(backend, name, dtype, seed):
    arguments, definition = case(name, np.random.default_rng(seed), dtype)
    before = [a.copy() if isinstance(a, np.ndarray) else a for a in arguments]
    host = "table" if name == "nf4_scales" else None
    with running_on(backend) as chosen:
        parameters = list(inspect.signature(be.table[name]).parameters)[1:]
        there = [a if p == host else moved(chosen.xp, a) for p, a in zip(parameters, arguments, strict=False)]
        results = getattr(chosen, name)(*there)
        results = tuple(map(to_host, results)) if isinstance(results, tuple) else results
        results, arguments = results if results is None else to_host(results), [*map(to_host, there)]
    if name == "adamw_step":  # the one that works in place: in w, m and v, and never in g
        results, arguments, before = (arguments[0], *arguments[2:4]), arguments[1:2], before[1:2]
    results = results if isinstance(results, tuple) else (results,)
    for got, wanted in zip(results, definition, strict=True):
        if got.dtype.kind == "u":
            assert got.tolist() == list(wanted)  # codes: to the bit
        else:
            four_bit = name.startswith("nf4") and name != "nf4_matvec"
            kept = np.float32 if four_bit else dtype  # products of NF4 are float32, then cast
            assert got.dtype == (np.float32 if name in ("nf4_quantize", "nf4_scales") else dtype)
            # CuPy compiles with -ftz=true: on a card, what float32 holds below its smallest normal number is 0
            least = np.finfo(np.float32).tiny if backend == "cuda" else 0.0
            assert_within(got.astype(kept), wanted, kept, name=name, least=least)
    for a, b in zip(arguments, before, strict=True):
        assert not isinstance(b, np.ndarray) or np.array_equal(a, b), "an argument was changed"


# --------------------------------------------------------------------------------------------------- replacing them

ids = np.array([[1, 0, 2]])


def draw(*shape):
    return np.random.default_rng(shape).standard_normal(shape)


def value(f, *xs):
    return lambda: [f(*(Tensor(x) for x in xs)).data]


def gradient(f, *xs):
    def run():
        leaves = [Tensor(x, requires_grad=True) for x in xs]
        y = f(*leaves)
        y.backward(draw(*y.shape))
        return [t.grad for t in leaves]

    return run


def trained():
    w = Parameter(np.ones(3))
    w.grad = np.ones(3)
    AdamW([w]).step()
    return [w.data]


def quantized():
    return [nf4.dequantize_nf4(*nf4.quantize_nf4(draw(64, 2)), (64, 2))]


def frozen_product():
    weight = store(draw(32, 16).astype(np.float32), "nf4")
    return [weight.multiply(draw(3, 16).astype(np.float32))]


def frozen_rows():
    return [store(draw(32, 16).astype(np.float32), "nf4").multiply(draw(9, 16).astype(np.float32))]


def half_rows():
    return [store(draw(32, 16).astype(np.float32), "bfloat16").take(np.arange(3))]


qkv = draw(1, 2, 3, 4), draw(1, 1, 3, 4), draw(1, 1, 3, 4)
norm = draw(2, 4), draw(4), draw(1, 4)[0]
turn = np.cos(draw(1, 1, 3, 2)), np.sin(draw(1, 1, 3, 2))
PUBLIC = {  # where the user of the engine meets each primitive; compound ones feel their parts
    "matmul": [value(ops.matmul, draw(2, 3), draw(3, 2)), gradient(F.linear, draw(2, 3), draw(2, 3)), frozen_rows],
    "sigmoid": [value(ops.sigmoid, draw(3)), value(F.silu, draw(3)), value(F.silu_mul, draw(3), draw(3))],
    "softmax": [value(F.softmax, draw(3)), value(F.attention, *qkv)],
    "softmax_backward": [gradient(F.softmax, draw(3)), gradient(F.attention, *qkv)],
    "rms_norm": [value(F.rms_norm, *norm[:2])],
    "rms_norm_backward": [gradient(F.rms_norm, *norm[:2])],
    "layer_norm": [value(F.layer_norm, *norm)],
    "layer_norm_backward": [gradient(F.layer_norm, *norm)],
    "erf": [value(F.gelu, draw(3)), gradient(F.gelu, draw(3))],
    "gelu": [value(F.gelu, draw(3))],
    "gelu_backward": [gradient(F.gelu, draw(3))],
    "silu_mul": [value(F.silu_mul, draw(3), draw(3))],
    "silu_mul_backward": [gradient(F.silu_mul, draw(3), draw(3))],
    "rope": [value(lambda x: F.rope(x, *turn), qkv[0]), gradient(lambda x: F.rope(x, *turn), qkv[0])],
    "attention": [value(F.attention, *qkv)],
    "attention_backward": [gradient(F.attention, *qkv)],
    "cross_entropy": [value(lambda x: F.cross_entropy(x, ids[0]), draw(3, 4))],
    "cross_entropy_backward": [gradient(lambda x: F.cross_entropy(x, ids[0]), draw(3, 4))],
    "embedding_grad": [gradient(lambda w: F.embedding(w, ids), draw(3, 2))],
    "dropout_mask": [value(lambda x: F.dropout(x, 0.5), draw(64)), gradient(lambda x: F.dropout(x, 0.5), draw(64))],
    "adamw_step": [trained],
    "nf4_quantize": [quantized],
    "nf4_dequantize": [quantized],
    "nf4_scales": [frozen_product],
    "nf4_matvec": [frozen_product],
    "widen": [half_rows],
}
WAYS = [pytest.param(name, run, id=f"{name}-{i}") for name in NAMES for i, run in enumerate(PUBLIC.get(name, [None]))]


def doubling(function):
    """The same primitive with every floating result doubled."""

    @functools.wraps(function)
    def double(xp, *args, **kwargs):
        y = function(xp, *args, **kwargs)
        written = args[0] if y is None else y  # None: it works in place
        for a in written if isinstance(written, tuple) else (written,):
            if a.dtype.kind == "f":
                np.multiply(a, 2, out=a)
        return y

    return double


@pytest.mark.parametrize("name, run", WAYS)
def test_a_replacement_is_felt_and_restored(name, run):
    assert run is not None, f"say in PUBLIC where {name!r} is met"
    manual_seed(1)
    before = run()
    with use(**{name: doubling(be.table[name])}):
        manual_seed(1)
        within = run()
    assert not all(np.array_equal(a, b) for a, b in zip(within, before, strict=True))
    manual_seed(1)
    for a, b in zip(run(), before, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name, run", WAYS)
def test_a_replacement_that_fails_is_taken_back(name, run):
    original = be.table[name]

    @functools.wraps(original)
    def fails(xp, *args, **kwargs):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), use(**{name: fails}):
        run()
    assert be.table[name] is original and getattr(be, name).func is original
    run()


def test_replacements_nest():
    def half(xp, x):
        return x * 0 + 0.5

    def third(xp, x):
        return x * 0 + 1 / 3

    x = Tensor(np.ones(2))
    with use(sigmoid=half):
        with use(sigmoid=third, softmax=half):
            assert ops.sigmoid(x).data[0] == 1 / 3 and F.softmax(x).data[0] == 0.5
        assert ops.sigmoid(x).data[0] == 0.5
    assert ops.sigmoid(x).data[0] == pytest.approx(1 / (1 + math.exp(-1)), rel=4e-16)


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"no function 'lorem' to replace; there are: .*softmax"):
        with use(lorem=lambda xp, x: x):
            pass
    with pytest.raises(AttributeError, match="no primitive 'sofmax'"):
        be.sofmax  # noqa: B018


@pytest.mark.parametrize("wrong", [lambda x: x, lambda xp: xp, lambda xp, x, y: x, lambda xp, z: z, lambda *args: args])
def test_a_wrong_signature_is_refused_and_nothing_is_replaced(wrong):
    before = dict(be.table)
    with pytest.raises(TypeError, match=r"softmax takes \(xp, x\), but the replacement takes"):
        with use(sigmoid=lambda xp, x: x, softmax=wrong):
            pass
    assert be.table == before
