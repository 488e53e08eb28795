"""Exercises of lesson 2: a product's gradients, a safe log-sum-exp, positions that do not count, a test to write."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import strategies as st

from tinyllm.course.exercise import Chaff, Exercise, Property, Variant
from tinyllm.course.exercises.cases import SIDES, real, whole
from tinyllm.course.exercises.runs import fine_tunes

Array = np.ndarray
Pair = tuple[Array, Array]

# ------------------------------------------------------------------------------------------------ 02-matmul


def matmul_backward(g: Array, a: Array, b: Array) -> Pair:
    ga, gb = np.zeros(a.shape), np.zeros(b.shape)
    for place in np.ndindex(g.shape):
        *front, i, j = place
        for k in range(a.shape[-1]):
            at_a, at_b = (*_own(front, a), i, k), (*_own(front, b), k, j)
            ga[at_a] += g[place] * b[at_b]
            gb[at_b] += g[place] * a[at_a]
    return ga, gb


def _own(front: list[int], x: Array) -> tuple[int, ...]:
    """Where in x the element of the result comes from: axes of side 1 have one place alone."""
    axes = x.ndim - 2
    return tuple(0 if n == 1 else i for i, n in zip(front[len(front) - axes :], x.shape[:axes], strict=True))


def summed(g: Array, shape: tuple[int, ...]) -> Array:
    g = g.sum(axis=tuple(range(g.ndim - len(shape))))
    return g.sum(axis=tuple(i for i, n in enumerate(shape) if n == 1), keepdims=True).reshape(shape)


def matmul_backward_summed(g: Array, a: Array, b: Array) -> Pair:
    return summed(g @ b.swapaxes(-1, -2), a.shape), summed(a.swapaxes(-1, -2) @ g, b.shape)


def matmul_size(g: Array, a: Array, b: Array) -> Pair:
    return matmul_backward(abs(g), abs(a), abs(b))


def _reduced(reduce: Callable[[Array, tuple[int, ...]], Array]) -> Any:
    def wrong(g: Array, a: Array, b: Array) -> Pair:
        return reduce(g @ b.swapaxes(-1, -2), a.shape), reduce(a.swapaxes(-1, -2) @ g, b.shape)

    return wrong


def _averaged(g: Array, shape: tuple[int, ...]) -> Array:
    g = g.mean(axis=tuple(range(g.ndim - len(shape))))
    return g.mean(axis=tuple(i for i, n in enumerate(shape) if n == 1 and g.shape[i] > 1), keepdims=True)


def _front_alone(g: Array, shape: tuple[int, ...]) -> Array:
    return g.sum(axis=tuple(range(g.ndim - len(shape))))


@st.composite
def products(draw: Any, fronts: Any) -> tuple[Array, Array, Array]:
    m, k, n = draw(SIDES), draw(SIDES), draw(SIDES)
    front_a, front_b = draw(fronts)
    front = np.broadcast_shapes(front_a, front_b)
    return draw(whole((*front, m, n))), draw(whole((*front_a, m, k))), draw(whole((*front_b, k, n)))


ONE_FRONT = st.lists(st.integers(1, 3), min_size=1, max_size=2).map(tuple)
UNEQUAL = [
    ((2,), (1,)),
    ((1,), (3,)),
    ((), (2,)),
    ((2, 3), (3,)),
    ((2, 1), (1, 3)),
    ((1, 2), (3, 2)),
    ((2, 1, 2), (1, 2)),
]
TWO, EQUAL, BROADCAST = "two matrices", "the same axes in front", "axes in front that broadcast"
MATMUL = Exercise(
    id="02-matmul",
    minutes=20,
    importance=5,
    reference=matmul_backward,
    wheats=(matmul_backward, matmul_backward_summed),
    size=matmul_size,
    properties=(
        Property(TWO, products(st.just(((), ())))),
        Property(EQUAL, products(ONE_FRONT.map(lambda front: (front, front)))),
        Property(BROADCAST, products(st.sampled_from(UNEQUAL)), points=2),
    ),
    chaffs=(
        Chaff(
            "not summed where it was broadcast",
            _reduced(lambda g, shape: g),
            BROADCAST,
            "A gradient has the shape of its array. What was used several times gets the sum of all.",
            "jimfleming/differentiation #1",
        ),
        Chaff(
            "the mean for the sum", _reduced(_averaged), BROADCAST, "Each use brings its own share: add.", "nd4j #2424"
        ),
        Chaff(
            "only the axes in front are summed",
            _reduced(_front_alone),
            BROADCAST,
            "An axis of side 1 that met a longer one was broadcast, too.",
            "pytorch #1787",
        ),
        Chaff(
            "a transpose that turns all axes",
            lambda g, a, b: (summed(g @ b.T, a.shape), summed(a.T @ g, b.shape)),
            EQUAL,
            ".T turns all axes round, also those in front.",
        ),
        Chaff(
            "the wrong side transposed",
            lambda g, a, b: (summed(a.swapaxes(-1, -2) @ g, b.shape), summed(g @ b.swapaxes(-1, -2), a.shape)),
            TWO,
            "The gradient of a has a's shape. Which product of g and b has it?",
        ),
    ),
    hints=("For one number: each y[i, j] has a[i, k] b[k, j] in it, so g[i, j] b[k, j] goes to a[i, k].",),
    read="tinyllm.autograd.unbroadcast",
)

# ------------------------------------------------------------------------------------------------ 02-logsumexp


def logsumexp(x: Array) -> Pair:
    value, slope = np.zeros(x.shape[:-1], x.dtype), np.zeros(x.shape, x.dtype)
    for row in np.ndindex(x.shape[:-1]):
        top = max(float(n) for n in x[row])
        total = sum(math.exp(float(n) - top) for n in x[row])
        value[row] = top + math.log(total)
        for j, n in enumerate(x[row]):
            slope[row + (j,)] = math.exp(float(n) - top) / total
    return value, slope


def logsumexp_at_once(x: Array) -> Pair:
    top = x.max(axis=-1, keepdims=True)
    e = np.exp(x - top)
    total = e.sum(axis=-1, keepdims=True)
    return (top + np.log(total))[..., 0], e / total


def logsumexp_by_value(x: Array) -> Pair:
    value = np.logaddexp.reduce(x, axis=-1)
    return value, np.exp(x - value[..., None])


def logsumexp_size(x: Array) -> Pair:
    largest = abs(x).max(axis=-1) + math.log(x.shape[-1]) + 1
    return largest, np.ones(x.shape) * largest[..., None]  # e^(x - value) loses what the value is rounded by


def _topped(top: Callable[[Array], Any], back: bool = True) -> Any:
    def wrong(x: Array) -> Pair:
        t = top(x)
        e = np.exp(x - t)
        total = e.sum(axis=-1, keepdims=True)
        value = np.log(total) + (t if back else 0)
        return value.astype(x.dtype)[..., 0], (e / total).astype(x.dtype)

    return wrong


def _in_place(x: Array) -> Pair:
    top = x.max(axis=-1, keepdims=True)
    x -= top
    value, slope = logsumexp_at_once(x)
    return value + top[..., 0], slope


def _double(x: Array) -> Pair:
    value, slope = logsumexp_at_once(x.astype(np.float64))
    return value, slope


def scores(dtype: Any, scale: float) -> Any:
    shapes = st.lists(SIDES, min_size=1, max_size=3).map(tuple)
    return shapes.flatmap(
        lambda s: st.tuples(whole(s, most=1 if scale > 1 else 4).map(lambda x: (x * scale).astype(dtype)))
    )


SMALL, FAR, FLOAT32 = "small scores", "scores of 1e4 and -1e4", "float32 stays float32"
LOGSUMEXP = Exercise(
    id="02-logsumexp",
    minutes=15,
    importance=4,
    reference=logsumexp,
    wheats=(logsumexp, logsumexp_at_once, logsumexp_by_value),
    size=logsumexp_size,
    properties=(
        Property(SMALL, scores(np.float64, 1)),
        Property(FAR, scores(np.float64, 1e4), points=2),
        Property(FLOAT32, scores(np.float32, 1)),
    ),
    chaffs=(
        Chaff(
            "nothing subtracted first", _topped(lambda x: 0), FAR, "e to the 10,000 is no float. What may be taken off?"
        ),
        Chaff(
            "the largest of all rows",
            _topped(lambda x: x.max()),
            FAR,
            "A row far below the largest of another one has only zeros left. Whose largest is needed?",
        ),
        Chaff(
            "the largest not added again",
            _topped(lambda x: x.max(axis=-1, keepdims=True), back=False),
            SMALL,
            "What was subtracted from the scores is missing in the value.",
        ),
        Chaff("x is written to", _in_place, SMALL, "x must stay unchanged: `x - top` makes a new array."),
        Chaff("float64 comes out", _double, FLOAT32, "float32 in, float32 out."),
        Chaff(
            "the exponentials for the gradient",
            lambda x: (logsumexp_at_once(x)[0], np.exp(x - x.max(axis=-1, keepdims=True))),
            SMALL,
            "Moving all scores up by one moves the value by one: what must each row of the gradient add up to?",
        ),
    ),
    variants=(
        Variant(
            "With a temperature of 2: the value is log sum of e^(x / 2), and the gradient that of this value by x.",
            lambda x: (logsumexp(x / 2)[0], logsumexp(x / 2)[1] / 2),
            lambda x: (logsumexp_at_once(x / 2)[0], logsumexp_at_once(x / 2)[1] / 2),
        ),
        Variant(
            "A *soft minimum*: the value is -log sum of e^(-x), and the gradient that of this value by x.",
            lambda x: (-logsumexp(-x)[0], logsumexp(-x)[1]),
            lambda x: (-logsumexp_at_once(-x)[0], logsumexp_at_once(-x)[1]),
        ),
    ),
    hints=("log sum e^x = t + log sum e^(x - t), whatever t is.",),
    read="tinyllm.functional.cross_entropy",
)

# ------------------------------------------------------------------------------------------------ 02-ignored


def masked_cross_entropy(logits: Array, targets: Array) -> tuple[float, Array]:
    live = [i for i, t in enumerate(targets) if t != -100]
    loss, gradient = 0.0, np.zeros(logits.shape)
    for i in live:
        value, shares = logsumexp(logits[i])
        loss += (float(value) - logits[i, targets[i]]) / len(live)
        gradient[i] = shares / len(live)
        gradient[i, targets[i]] -= 1 / len(live)
    return loss, gradient


def masked_at_once(logits: Array, targets: Array) -> tuple[float, Array]:
    live = targets != -100
    value, shares = logsumexp_at_once(logits)
    rows, safe = np.arange(len(targets)), np.where(live, targets, 0)
    loss = ((value - logits[rows, safe]) * live).sum() / live.sum()
    shares = shares.copy()
    shares[rows, safe] -= 1
    return float(loss), shares * live[:, None] / live.sum()


def masked_size(logits: Array, targets: Array) -> tuple[float, Array]:
    largest = float(abs(logits).max()) + math.log(logits.shape[-1]) + 1
    return 2 * largest + 2, np.full(logits.shape, largest)


def _masked(count: str = "live", zero: bool = True, wrap: bool = False, divide: bool = True) -> Any:
    def wrong(logits: Array, targets: Array) -> tuple[float, Array]:
        live = targets != -100
        value, shares = logsumexp_at_once(logits)
        rows, safe = np.arange(len(targets)), targets if wrap else np.where(live, targets, 0)
        counts = np.ones(len(targets)) if wrap else live * 1.0
        many = {"live": counts.sum(), "all": len(targets)}[count]
        loss = ((value - logits[rows, safe]) * counts).sum() / many
        shares = shares.copy()
        shares[rows, safe] -= 1
        return float(loss), shares * (counts[:, None] if zero else 1) / (many if divide else 1)

    return wrong


@st.composite
def asked(draw: Any, classes: tuple[int, int] = (2, 4), ignored: bool = True) -> tuple[Array, Array]:
    rows, n = draw(SIDES), draw(st.integers(*classes))
    targets = draw(st.lists(st.integers(0, n - 1), min_size=rows, max_size=rows))
    for i in range(1, rows):
        if ignored and draw(st.booleans()):
            targets[i] = -100
    order = draw(st.permutations(range(rows)))
    logits = whole((rows, n)) if n < 100 else real((rows, n), scale=2.0)
    return draw(logits), np.array([targets[i] for i in order])


ALL_COUNT, SOME, MANY = "all positions count", "some do not count", "a hundred classes and more"
IGNORED = Exercise(
    id="02-ignored",
    minutes=20,
    importance=4,
    reference=masked_cross_entropy,
    wheats=(masked_cross_entropy, masked_at_once),
    size=masked_size,
    properties=(
        Property(ALL_COUNT, asked(ignored=False)),
        Property(SOME, asked(), points=2),
        Property(MANY, asked((101, 103))),
        fine_tunes("loss"),
    ),
    chaffs=(
        Chaff("the mean over all", _masked(count="all"), SOME, "How many positions count?", "nanoGPT #206"),
        Chaff(
            "-100 as an index", _masked(wrap=True), MANY, "Python counts negative indices from the end, without a word."
        ),
        Chaff(
            "they still learn", _masked(zero=False), SOME, "What must the gradient's row be where the target is -100?"
        ),
        Chaff("a gradient of the sum", _masked(divide=False), ALL_COUNT, "The loss is a mean, and so is its gradient."),
    ),
    hints=("Look up class 0 where the target is -100, and multiply by 0 afterwards.",),
    read="tinyllm.functional.cross_entropy",
    emptied=("tinyllm.functional.cross_entropy",),
)

# ------------------------------------------------------------------------------------------------ 02-transposed

Linear = Callable[[Array], Array]


def is_transposed(f: Linear, back: Linear, shape: tuple[int, ...]) -> bool:
    basis = np.eye(math.prod(shape)).reshape(-1, *shape)
    images = [f(x) for x in basis]
    for place in np.ndindex(images[0].shape):
        g = np.zeros(images[0].shape)
        g[place] = 1
        row = back(g)
        if row.shape != shape:
            return False
        if any(abs(y[place] - (row * x).sum()) > 1e-9 for x, y in zip(basis, images, strict=True)):
            return False
    return True


def is_transposed_by_lot(f: Linear, back: Linear, shape: tuple[int, ...]) -> bool:
    rng = np.random.default_rng(0)
    for _ in range(5):
        x = rng.normal(size=shape)
        y = f(x)
        g = rng.normal(size=y.shape)
        row = back(g)
        if row.shape != x.shape or abs((g * y).sum() - (row * x).sum()) > 1e-9 * (1 + abs(g * y).sum()):
            return False
    return True


def thrice(x: Array) -> Array:
    return 3 * x


def turned(x: Array) -> Array:
    return x[..., ::-1]


def row_sums(x: Array) -> Array:
    return x.sum(axis=-1)


def axes_on(x: Array) -> Array:
    return x.transpose(*range(1, x.ndim), 0)


def axes_back(g: Array) -> Array:
    return g.transpose(g.ndim - 1, *range(g.ndim - 1))


def running(x: Array) -> Array:
    return x.cumsum(axis=-1)


def running_back(g: Array) -> Array:
    return g[..., ::-1].cumsum(axis=-1)[..., ::-1]


def thirds(x: Array) -> Array:
    return x / 3


def wrong_in_one(g: Array) -> Array:
    found = 3 * g
    found[(-1,) * g.ndim] -= g[(-1,) * g.ndim]
    return found


def repeated(n: int) -> Linear:
    return lambda g: np.repeat(g[..., None], n, axis=-1)


def repeated_mean(n: int) -> Linear:
    return lambda g: np.repeat(g[..., None], n, axis=-1) / n


def _same(f: Linear, back: Linear, least: int = 1, square: bool = False) -> Any:
    sides = (
        st.integers(2, 3).map(lambda n: (n, n, n)) if square else st.lists(SIDES, min_size=least, max_size=3).map(tuple)
    )
    return sides.map(lambda shape: (f, back, shape))


def _sums(back: Callable[[int], Linear]) -> Any:
    shapes = st.lists(st.integers(2, 4), min_size=1, max_size=3).map(tuple)
    return shapes.map(lambda shape: (row_sums, back(shape[-1]), shape))


RIGHT_PAIRS = st.one_of(
    _same(thrice, thrice), _same(turned, turned), _same(axes_on, axes_back), _same(running, running_back),
    _same(thirds, thirds), _sums(repeated),
)  # fmt: skip


def _judge(x: str, g: str, shapes: bool = True, room: float = 1e-9) -> Any:
    """A judge that tries what `x` and `g` say: "ones" or "lots"."""

    def wrong(f: Linear, back: Linear, shape: tuple[int, ...]) -> bool:
        rng = np.random.default_rng(0)

        def drawn(how: str, size: tuple[int, ...]) -> Array:
            return np.ones(size) if how == "ones" else rng.normal(size=size)

        at = drawn(x, shape)
        y = f(at)
        of_y = drawn(g, y.shape)
        row = back(of_y)
        if shapes and row.shape != at.shape:
            return False
        return bool(abs((of_y * y).sum() - (row * at).sum()) <= room)

    return wrong


ACCEPTS, ZEROS, MEAN, SHAPE, AXES, ONE = (
    "right pairs are accepted", "zeros", "the mean for the sum", "a wrong shape", "axes in the wrong order",
    "wrong at one place",
)  # fmt: skip
TRANSPOSED = Exercise(
    id="02-transposed",
    minutes=20,
    importance=5,
    reference=is_transposed,
    wheats=(is_transposed, is_transposed_by_lot),
    properties=(
        Property(ACCEPTS, RIGHT_PAIRS, gate=True),
        Property(ZEROS, _same(thrice, np.zeros_like)),
        Property(MEAN, _sums(repeated_mean)),
        Property(SHAPE, _sums(lambda n: lambda g: g[..., None])),
        Property(AXES, _same(axes_on, axes_on, square=True)),
        Property(ONE, _same(thrice, wrong_in_one)),
    ),
    chaffs=(
        Chaff(
            "arrays of ones",
            _judge("ones", "ones"),
            AXES,
            "With ones everywhere, no order of axes makes a difference. What would?",
            "every check through .sum()",
        ),
        Chaff("shapes not looked at", _judge("lots", "lots", shapes=False), SHAPE, "NumPy broadcasts without a word."),
        Chaff(
            "the shape alone",
            lambda f, back, shape: back(f(np.ones(shape))).shape == shape,
            ZEROS,
            "Zeros have the right shape as well.",
        ),
        Chaff("a wide tolerance", _judge("lots", "lots", room=0.5), ONE, "How much may rounding explain?"),
        Chaff(
            "no room for rounding",
            _judge("lots", "lots", room=0.0),
            ACCEPTS,
            "The two sides add up in different orders. What does that do to the last digit?",
        ),
        Chaff(
            "back undoes f",
            lambda f, back, shape: bool(np.allclose(back(f(np.ones(shape))), 1)),
            ACCEPTS,
            "A transpose is no inverse: three times, transposed, is three times.",
        ),
    ),
    hints=("For all x and g the numbers <g, f(x)> and <back(g), x> are the same.",),
)

EXERCISES = (MATMUL, LOGSUMEXP, IGNORED, TRANSPOSED)
