"""Exercises of lesson 13: what limits a step, rounding or a bug, and sums that are the same on every run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import strategies as st

from tinyllm.course.exercise import Chaff, Exercise, Property
from tinyllm.course.exercises.cases import SIDES, whole

Array = np.ndarray

# ------------------------------------------------------------------------------------------------ 13-launches


def limited_by(launches: int, moved: float, flops: float, launch: float, bandwidth: float, speed: float) -> str:
    seconds = {"launches": launches * launch, "memory": moved / bandwidth, "arithmetic": flops / speed}
    longest = "launches"
    for name in ("memory", "arithmetic"):
        if seconds[name] > seconds[longest]:
            longest = name
    return longest


def limited_by_sorting(launches: int, moved: float, flops: float, launch: float, bandwidth: float, speed: float) -> str:
    times = [launches * launch, moved / bandwidth, flops / speed]
    return ["launches", "memory", "arithmetic"][times.index(max(times))]


def _limited(times: Callable[..., list[float]], last: bool = False, pick: Callable = max) -> Any:
    names = ["launches", "memory", "arithmetic"]

    def wrong(launches: int, moved: float, flops: float, launch: float, bandwidth: float, speed: float) -> str:
        found = times(launches, moved, flops, launch, bandwidth, speed)
        if last:
            return names[2 - found[::-1].index(pick(found))]
        return names[found.index(pick(found))]

    return wrong


def _seconds(n: int, moved: float, flops: float, launch: float, bandwidth: float, speed: float) -> list[float]:
    return [n * launch, moved / bandwidth, flops / speed]


EIGHT = st.integers(0, 8).map(float)
RATES = st.sampled_from([0.5, 1.0, 2.0, 4.0])
SMALL = st.tuples(st.integers(0, 8), EIGHT, EIGHT, RATES, RATES, RATES)


def _tie(n: int, rate: float, other: float, low: int) -> tuple:
    """Two or three of the times equal."""
    seconds = float(n)
    return (
        (n, seconds * rate, seconds * other, 1.0, rate, other)
        if low == 3
        else (0, seconds * rate, seconds * other, 1.0, rate, other)
    )


TIED = st.builds(_tie, st.integers(1, 8), RATES, RATES, st.sampled_from([2, 3]))
ANY, TIES = "any numbers", "times that are equal"
LAUNCHES = Exercise(
    id="13-launches",
    minutes=10,
    importance=4,
    reference=limited_by,
    wheats=(limited_by, limited_by_sorting),
    properties=(Property(ANY, SMALL, points=2), Property(TIES, TIED)),
    chaffs=(
        Chaff("of equal ones the last", _limited(_seconds, last=True), TIES, "Of equal ones the first in that order."),
        Chaff("the shortest", _limited(_seconds, pick=min), ANY, "What takes longest is what limits."),
        Chaff(
            "amounts, not times",
            _limited(lambda n, moved, flops, *rates: [float(n), moved, flops]),
            ANY,
            "Bytes and operations are compared as seconds.",
        ),
        Chaff(
            "times the rate",
            _limited(lambda n, moved, flops, launch, bw, sp: [n * launch, moved * bw, flops * sp]),
            ANY,
            "Bytes over bytes a second are seconds.",
        ),
        Chaff(
            "a launch as a rate",
            _limited(lambda n, moved, flops, launch, bw, sp: [n / launch, moved / bw, flops / sp]),
            ANY,
            "`launch` is in seconds already.",
        ),
    ),
    hints=("Three times in seconds; the first of the longest.",),
)

# ------------------------------------------------------------------------------------------------ 13-budget


def explained(a: Array, b: Array, y: Array, eps: float) -> bool:
    m, k = a.shape
    n = b.shape[1]
    for i in range(m):
        for j in range(n):
            exact = sum(float(a[i, t]) * float(b[t, j]) for t in range(k))
            size = sum(abs(float(a[i, t]) * float(b[t, j])) for t in range(k))
            if not abs(float(y[i, j]) - exact) <= k * eps * size:
                return False
    return True


def explained_at_once(a: Array, b: Array, y: Array, eps: float) -> bool:
    a, b = a.astype(np.float64), b.astype(np.float64)
    room = a.shape[1] * eps * (np.abs(a) @ np.abs(b))
    return bool((np.abs(y - a @ b) <= room).all())


def _explained(room: Callable[[Array, Array, float], Any], nan: bool = False, some: bool = False) -> Any:
    def wrong(a: Array, b: Array, y: Array, eps: float) -> bool:
        a, b = a.astype(np.float64), b.astype(np.float64)
        near = np.abs(y.astype(np.float64) - a @ b) <= room(a, b, eps)
        if nan:
            near = ~(np.abs(y.astype(np.float64) - a @ b) > room(a, b, eps))
        return bool(near.any() if some else near.all())

    return wrong


def _budget(a: Array, b: Array, eps: float) -> Array:
    return a.shape[1] * eps * (np.abs(a) @ np.abs(b))


@st.composite
def products(draw: Any, kind: str) -> tuple[Array, Array, Array, float]:
    m, k, n = draw(SIDES), draw(st.integers(1, 5)), draw(SIDES)
    a, b = draw(whole((m, k), np.float32)), draw(whole((k, n), np.float32))
    eps = draw(st.sampled_from([2.0**-10, 2.0**-7]))
    a64, b64 = a.astype(np.float64), b.astype(np.float64)
    exact, size = a64 @ b64, np.abs(a64) @ np.abs(b64)
    y = exact.copy()
    place = draw(st.integers(0, m - 1)), draw(st.integers(0, n - 1))
    share = draw(st.sampled_from({"within": [-0.75, 0.5, 0.25], "beyond": [1.5, -3.0, 40.0], "nan": [0.0]}[kind]))
    y[place] += share * k * eps * size[place] if size[place] else (1e-3 if kind == "beyond" else 0)
    if kind == "nan":
        y[place] = np.nan
    return a, b, y, eps


WITHIN, BEYOND, NAN = "differences within the budget", "a number beyond it", "a NaN"
BUDGET = Exercise(
    id="13-budget",
    minutes=15,
    importance=5,
    reference=explained,
    wheats=(explained, explained_at_once),
    properties=(
        Property(WITHIN, products("within"), points=2),
        Property(BEYOND, products("beyond"), points=2),
        Property(NAN, products("nan")),
    ),
    chaffs=(
        Chaff(
            "by the result's size",
            _explained(lambda a, b, eps: a.shape[1] * eps * np.abs(a @ b)),
            WITHIN,
            "3000 - 2999 is 1, and its rounding is that of 3000: take magnitudes before adding.",
        ),
        Chaff(
            "one size for all",
            _explained(lambda a, b, eps: a.shape[1] * eps * (np.abs(a) @ np.abs(b)).max()),
            BEYOND,
            "Every number has a budget of its own.",
        ),
        Chaff("without k", _explained(lambda a, b, eps: eps * (np.abs(a) @ np.abs(b))), WITHIN, "How many additions?"),
        Chaff("NaN passes", _explained(_budget, nan=True), NAN, "Is NaN > room true? Is NaN <= room?"),
        Chaff("one right number is enough", _explained(_budget, some=True), BEYOND, "Every number must be within."),
        Chaff(
            "a fixed tolerance",
            _explained(lambda a, b, eps: 1e-2),
            WITHIN,
            "What does 0.01 say about numbers around 1e6?",
        ),
    ),
    hints=("abs(a) @ abs(b) are the sizes.",),
)

# ------------------------------------------------------------------------------------------------ 13-order


def added(rows: Array, gradients: Array, count: int) -> Array:
    found = np.zeros((count, gradients.shape[1]), gradients.dtype)
    for row, gradient in zip(rows, gradients, strict=True):
        for j in range(len(gradient)):
            found[row, j] = found[row, j] + gradient[j]
    return found


def added_at(rows: Array, gradients: Array, count: int) -> Array:
    found = np.zeros((count, gradients.shape[1]), gradients.dtype)
    np.add.at(found, rows, gradients)
    return found


def _added(order: Callable[[Array], Array] | None = None, dtype: Any = None) -> Any:
    def wrong(rows: Array, gradients: Array, count: int) -> Array:
        found = np.zeros((count, gradients.shape[1]), dtype or gradients.dtype)
        for i in order(rows) if order else range(len(rows)):
            found[rows[i]] += gradients[i]
        return found.astype(gradients.dtype)

    return wrong


def _once(rows: Array, gradients: Array, count: int) -> Array:
    found = np.zeros((count, gradients.shape[1]), gradients.dtype)
    found[rows] += gradients
    return found


def _used(rows: Array, gradients: Array, count: int) -> Array:
    return added(rows, gradients, int(rows.max(initial=0)) + 1)


@st.composite
def tables(draw: Any, scales: list[float], least: int = 1) -> tuple[Array, Array, int]:
    m, n, count = draw(st.integers(least, 6)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    rows = draw(st.lists(st.integers(0, count - 1), min_size=m, max_size=m))
    scale = np.array(draw(st.lists(st.sampled_from(scales), min_size=m, max_size=m)))[:, None]
    return np.array(rows), (draw(whole((m, n), most=3)) * scale).astype(np.float32), count


EXACT, FAR = "small whole numbers", "large and small ones by turns"
ORDER = Exercise(
    id="13-order",
    minutes=15,
    importance=3,
    reference=added,
    wheats=(added, added_at),
    budget=0.0,
    properties=(
        Property(EXACT, tables([1.0])),
        Property(FAR, tables([1.0, 2.0**24, -(2.0**24), 2.0**-3], least=3), points=2),
    ),
    chaffs=(
        Chaff("a row counted once", _once, EXACT, "`found[rows] += g` takes a row that stands there twice once."),
        Chaff(
            "from the back", _added(lambda rows: np.arange(len(rows))[::-1]), FAR, "In the order in which they stand."
        ),
        Chaff("in float64", _added(dtype=np.float64), FAR, "In their own dtype, each sum is rounded."),
        Chaff("as many rows as occur", _used, EXACT, "Rows without any are zero, and are there."),
        Chaff(
            "the smallest first",
            lambda rows, g, count: added(rows[o := np.argsort(abs(g).sum(axis=1), kind="stable")], g[o], count),
            FAR,
            "That may be more exact, and is another order.",
        ),
    ),
    hints=("One after the other: `found[rows[i]] += gradients[i]`.",),
    read="tinyllm.backend.primitives.embedding_grad",
    emptied=("tinyllm.backend.primitives.embedding_grad",),
)

EXERCISES = (LAUNCHES, BUDGET, ORDER)
