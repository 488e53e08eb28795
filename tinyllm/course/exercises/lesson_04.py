"""Exercises of lesson 4: a norm that survives, who sees whom, and from one pairing to the other."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import strategies as st

from tinyllm.course.exercise import Chaff, Exercise, Property, Variant
from tinyllm.course.exercises.cases import SIDES, whole

Array = np.ndarray
Numbers = list[float]

# ------------------------------------------------------------------------------------------------ 04-norm


def norm(x: Numbers, w: Numbers, eps: float) -> Numbers:
    mean = sum(v * v for v in x) / len(x)
    return [v / math.sqrt(mean + eps) * weight for v, weight in zip(x, w, strict=True)]


def norm_at_once(x: Numbers, w: Numbers, eps: float) -> Numbers:
    v = np.array(x)
    return (v * np.array(w) / np.sqrt((v * v).mean() + eps)).tolist()


def _norm(root: Callable[[Array, float], Any], centre: bool = False, weight: bool = True) -> Any:
    def wrong(x: Numbers, w: Numbers, eps: float) -> Numbers:
        v = np.array(x, float)
        found = (v - v.mean() if centre else v) / root(v, eps)
        return (found * (np.array(w) if weight else 1)).tolist()

    return wrong


def _right(v: Array, eps: float) -> Any:
    return np.sqrt((v * v).mean() + eps)


def vectors(scale: float, zero: bool = False) -> Any:
    numbers = st.just(0) if zero else st.integers(-4, 4)
    return SIDES.flatmap(
        lambda n: st.tuples(
            st.lists(numbers.map(lambda x: x * scale), min_size=n, max_size=n),
            st.lists(st.integers(-2, 3).map(float), min_size=n, max_size=n),
            st.sampled_from([1e-6, 1e-5]),
        )
    )


ORDINARY, THOUSANDTH, MILLIONTH, ZEROS = "numbers around 1", "around 0.001", "around 0.000001", "a vector of zeros"
NORM = Exercise(
    id="04-norm",
    minutes=10,
    importance=3,
    reference=norm,
    wheats=(norm, norm_at_once),
    size=lambda x, w, eps: [abs(v) for v in norm(x, w, eps)],
    properties=(
        Property(ORDINARY, vectors(1.0)),
        Property(THOUSANDTH, vectors(1e-3)),
        Property(MILLIONTH, vectors(1e-6)),
        Property(ZEROS, vectors(0.0, zero=True)),
    ),
    chaffs=(
        Chaff(
            "eps outside the root",
            _norm(lambda v, eps: np.sqrt((v * v).mean()) + eps),
            MILLIONTH,
            "Around a millionth, epsilon decides: is it added before the root or after?",
            "a wrong answer that courses' tests have let through",
        ),
        Chaff(
            "eps of one's own",
            _norm(lambda v, eps: np.sqrt((v * v).mean() + 1e-8)),
            MILLIONTH,
            "Epsilon is given.",
            "hard-coded in many copies",
        ),
        Chaff(
            "the sum, not the mean", _norm(lambda v, eps: np.sqrt((v * v).sum() + eps)), ORDINARY, "Root *mean* square."
        ),
        Chaff("the mean taken off", _norm(_right, centre=True), ORDINARY, "That is a part of layer norm."),
        Chaff("no weights", _norm(_right, weight=False), ORDINARY, "What is w for?"),
        Chaff("no eps", _norm(lambda v, eps: np.sqrt((v * v).mean())), ZEROS, "What is 0 over 0?"),
    ),
    hints=("One over the root of (mean of squares plus eps), times x, times w.",),
    read="tinyllm.functional.rms_norm",
    emptied=("tinyllm.functional.rms_norm", "tinyllm.backend.primitives.rms_norm"),
)

# ------------------------------------------------------------------------------------------------ 04-visible


def visible(time: int, keys: int, window: int) -> Array:
    seen = np.zeros((time, keys), bool)
    for t in range(time):
        own = keys - time + t
        for s in range(keys):
            seen[t, s] = s <= own and (window == 0 or s > own - window)
    return seen


def visible_at_once(time: int, keys: int, window: int) -> Array:
    own, s = np.arange(keys - time, keys)[:, None], np.arange(keys)
    return (s <= own) & (s > own - (window or keys + 1))


def _visible(own: Callable[[int, int], int], sees: Callable[[Array, Array, int], Array]) -> Any:
    def wrong(time: int, keys: int, window: int) -> Array:
        at, s = np.arange(time)[:, None] + own(time, keys), np.arange(keys)[None]
        return sees(at, s, window)

    return wrong


def _behind(time: int, keys: int) -> int:
    return keys - time


def _windowed(at: Array, s: Array, window: int) -> Array:
    return (s <= at) & ((s > at - window) if window else True)


@st.composite
def looks(draw: Any, cached: bool = False, window: bool = False) -> tuple[int, int, int]:
    time = draw(st.integers(1, 4))
    keys = time + (draw(st.integers(1, 4)) if cached else 0)
    return time, keys, draw(st.integers(1, 6)) if window else 0


ALONE, CACHED, WINDOW = "no cache, no window", "keys in a cache", "a window"
VISIBLE = Exercise(
    id="04-visible",
    minutes=10,
    importance=4,
    reference=visible,
    wheats=(visible, visible_at_once),
    properties=(
        Property(ALONE, looks()),
        Property(CACHED, looks(cached=True)),
        Property(WINDOW, looks(cached=True, window=True) | looks(window=True), points=2),
    ),
    chaffs=(
        Chaff(
            "the cache forgotten", _visible(lambda t, k: 0, _windowed), CACHED, "The first query is at which position?"
        ),
        Chaff(
            "not itself",
            _visible(_behind, lambda at, s, w: (s < at) & ((s > at - w) if w else True)),
            ALONE,
            "Every query sees itself.",
        ),
        Chaff("the future", _visible(_behind, lambda at, s, w: s >= at), ALONE, "What comes later is not known yet."),
        Chaff(
            "one too many in the window",
            _visible(_behind, lambda at, s, w: (s <= at) & ((s >= at - w) if w else True)),
            WINDOW,
            "With a window of 1 a query sees itself alone.",
        ),
        Chaff("no window", _visible(_behind, lambda at, s, w: s <= at), WINDOW, "What is `window` for?"),
        Chaff(
            "a window of 0 sees nothing",
            _visible(_behind, lambda at, s, w: (s <= at) & (s > at - w)),
            ALONE,
            "0 says that there is no window.",
        ),
    ),
    hints=("Query t stands at position keys - time + t.",),
    read="tinyllm.functional.attention",
)

# ------------------------------------------------------------------------------------------------ 04-reorder


def to_halves(W: Array, heads: int) -> Array:
    n = len(W) // heads
    found = np.zeros_like(W)
    for h in range(heads):
        for i in range(n // 2):
            found[h * n + i] = W[h * n + 2 * i]
            found[h * n + n // 2 + i] = W[h * n + 2 * i + 1]
    return found


def to_halves_at_once(W: Array, heads: int) -> Array:
    return W.reshape(heads, -1, 2, W.shape[1]).swapaxes(1, 2).reshape(W.shape)


def _one_head(W: Array, heads: int) -> Array:
    return to_halves(W, 1)


def _back(W: Array, heads: int) -> Array:
    return W.reshape(heads, 2, -1, W.shape[1]).swapaxes(1, 2).reshape(W.shape)


def _odd_first(W: Array, heads: int) -> Array:
    return W.reshape(heads, -1, 2, W.shape[1])[:, :, ::-1].swapaxes(1, 2).reshape(W.shape)


def _columns(W: Array, heads: int) -> Array:
    even = np.arange(W.shape[1])
    return W[:, np.concatenate([even[0::2], even[1::2]])]


@st.composite
def weights(draw: Any, heads: Any, half: Any) -> tuple[Array, int]:
    h = draw(heads)
    n, n_in = 2 * draw(half), draw(SIDES)
    return draw(whole((h * n, n_in), most=9)), h


ONE, MANY, TINY = "one head", "several heads", "heads of two"
REORDER = Exercise(
    id="04-reorder",
    minutes=20,
    importance=4,
    reference=to_halves,
    wheats=(to_halves, to_halves_at_once),
    properties=(
        Property(ONE, weights(st.just(1), st.integers(2, 3))),
        Property(MANY, weights(st.integers(2, 3), st.integers(2, 3)), points=2),
        Property(TINY, weights(st.integers(1, 3), st.just(1))),
    ),
    chaffs=(
        Chaff("all heads as one", _one_head, MANY, "Each head is turned by itself."),
        Chaff(
            "the way back",
            _back,
            ONE,
            "Rows 0 and 1 are a pair now: where must they stand so that i and i + n/2 are one?",
            "nanotron #427, nurl #584",
        ),
        Chaff("nothing reordered", lambda W, heads: W.copy(), ONE, "The scores would differ.", "transformers #34741"),
        Chaff("the second of a pair first", _odd_first, ONE, "Which of a pair goes into the first half?"),
        Chaff("the columns", _columns, ONE, "A row of W makes a number of the query.", "rasbt #746, #838"),
    ),
    variants=(
        Variant(
            "The other way: W is of a program that pairs *halves*, and is reordered for one that pairs neighbours.",
            _back,
            lambda W, heads: np.concatenate([_back(head, 1) for head in np.split(W, heads)]),
        ),
        Variant(
            "The other program takes the *second* of each pair of neighbours into the first half.",
            _odd_first,
            lambda W, heads: np.concatenate([np.vstack([h[1::2], h[0::2]]) for h in np.split(W, heads)]),
        ),
    ),
    hints=("In a head, rows 0, 2, 4 ... become the first half, and 1, 3, 5 ... the second.",),
    read="tinyllm.functional.rope",
)

EXERCISES = (NORM, VISIBLE, REORDER)
