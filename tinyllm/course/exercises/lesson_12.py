"""Exercises of lesson 12: a first look at a run, text that has been seen, and the largest rank that fits."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from tinyllm.course.exercise import Chaff, Exercise, Property

Losses = list[float]

# ------------------------------------------------------------------------------------------------ 12-symptom


def symptom(train: Losses, held: Losses, base: float) -> str:
    for loss in [*train, *held]:
        if math.isnan(loss) or math.isinf(loss):
            return "diverges"
    if held[0] > base + 0.1:
        return "another model"
    if min(held) == max(held):
        return "dead"
    if held[-1] > held[0]:
        return "diverges"
    if held[-1] > min(held) + 0.2 and train[-1] < train[0] / 2:
        return "by heart"
    return "fine"


def symptom_by_list(train: Losses, held: Losses, base: float) -> str:
    broken = not all(map(math.isfinite, train + held))
    signs = {
        "diverges": broken,
        "another model": not broken and held[0] - base > 0.1,
        "dead": not broken and len(set(held)) == 1,
    }
    for name, true in signs.items():
        if true:
            return name
    late = {"diverges": held[-1] > held[0], "by heart": held[-1] - min(held) > 0.2 and 2 * train[-1] < train[0]}
    return next((name for name, true in late.items() if true), "fine")


def _symptom(
    broken: bool = True,
    order: str = "another dead diverges heart",
    base: bool = True,
    both: bool = True,
    held_nan: bool = True,
) -> Any:
    def wrong(train: Losses, held: Losses, base_: float) -> str:
        looked = [*train, *(held if held_nan else [])]
        if broken and not all(map(math.isfinite, looked)):
            return "diverges"
        signs = {
            "another": ("another model", held[0] > (base_ + 0.1 if base else min(held) + 99)),
            "dead": ("dead", len(set(held)) == 1),
            "diverges": ("diverges", held[-1] > held[0]),
            "heart": ("by heart", held[-1] > min(held) + 0.2 and (train[-1] < train[0] / 2 or not both)),
        }
        return next((signs[name][0] for name in order.split() if signs[name][1]), "fine")

    return wrong


QUARTERS = st.integers(1, 24).map(lambda n: n / 4)
NEAR = st.integers(14, 20).map(lambda n: n / 4)


@st.composite
def runs(draw: Any, kind: str) -> tuple[Losses, Losses, float]:
    base = draw(st.sampled_from([4.0, 3.75, 4.25]))
    train = draw(st.lists(QUARTERS, min_size=2, max_size=4))
    held = draw(st.lists(NEAR, min_size=2, max_size=4))
    if kind == "dead":
        held = [draw(st.sampled_from([3.5, 4.0, 4.5]))] * len(held)
    if kind == "heart":
        held = [4.0, draw(st.sampled_from([2.0, 3.0])), draw(st.sampled_from([3.5, 3.75, 4.0]))]
        train = [4.0, draw(st.sampled_from([1.0, 1.75, 2.0, 3.0]))]
    if kind == "broken":
        where = draw(st.sampled_from([train, held]))
        where[draw(st.integers(0, len(where) - 1))] = draw(st.sampled_from([math.inf, math.nan]))
    return train, held, base


ANY, DEAD, HEART, BROKEN = "any run", "held-out losses all equal", "learned by heart", "losses that are no numbers"
SYMPTOM = Exercise(
    id="12-symptom",
    minutes=15,
    importance=4,
    reference=symptom,
    wheats=(symptom, symptom_by_list),
    properties=(
        Property(ANY, runs("any")),
        Property(DEAD, runs("dead")),
        Property(HEART, runs("heart")),
        Property(BROKEN, runs("broken")),
    ),
    chaffs=(
        Chaff("NaN is no divergence", _symptom(broken=False), BROKEN, "Every comparison with NaN is false."),
        Chaff("only the batches' losses", _symptom(held_nan=False), BROKEN, "Anywhere in both, it says."),
        Chaff(
            "in another order",
            _symptom(order="dead another diverges heart"),
            DEAD,
            "The first that is true is returned.",
        ),
        Chaff("the base not asked", _symptom(base=False), ANY, "What was the loss before the first step?"),
        Chaff("held-out text alone", _symptom(both=False), HEART, "By heart: the batches' loss must have fallen far."),
    ),
    hints=("Ask for NaN and infinity before any comparison.",),
    read="tinyllm.train.trouble.explain_non_finite",
)

# ------------------------------------------------------------------------------------------------ 12-leak

Tokens = list[int]


def leaked(train: Tokens, held: Tokens, n: int) -> float:
    seen = {tuple(train[i : i + n]) for i in range(len(train) - n + 1)}
    runs_ = [tuple(held[i : i + n]) for i in range(len(held) - n + 1)]
    return sum(run in seen for run in runs_) / len(runs_) if runs_ else 0.0


def leaked_by_text(train: Tokens, held: Tokens, n: int) -> float:
    def parts(tokens: Tokens) -> list[str]:
        return [" ".join(map(str, tokens[i : i + n])) for i in range(max(0, len(tokens) - n + 1))]

    seen, own = set(parts(train)), parts(held)
    return len([part for part in own if part in seen]) / max(1, len(own))


def _leaked(step: bool = False, once: bool = False, by_train: bool = False, glued: bool = False) -> Any:
    def wrong(train: Tokens, held: Tokens, n: int) -> float:
        def parts(tokens: Tokens) -> list[Any]:
            found = [tokens[i : i + n] for i in range(0, len(tokens) - n + 1, n if step else 1)]
            return ["".join(map(str, part)) if glued else tuple(part) for part in found]

        seen, own = parts(train), parts(held)
        own = list(dict.fromkeys(own)) if once else own
        if not own:
            return 0.0
        kept = set(seen)
        return sum(part in kept for part in own) / (max(1, len(seen)) if by_train else len(own))

    return wrong


def _slow(train: Tokens, held: Tokens, n: int) -> float:
    seen = [tuple(train[i : i + n]) for i in range(len(train) - n + 1)]
    runs_ = [tuple(held[i : i + n]) for i in range(len(held) - n + 1)]
    return sum(run in seen for run in runs_) / len(runs_) if runs_ else 0.0


def _unsafe(train: Tokens, held: Tokens, n: int) -> float:
    seen = {tuple(train[i : i + n]) for i in range(len(train) - n + 1)}
    runs_ = [tuple(held[i : i + n]) for i in range(len(held) - n + 1)]
    return sum(run in seen for run in runs_) / len(runs_)


TEXT = st.lists(st.sampled_from([1, 2, 11]), max_size=8)
SHORT = st.tuples(TEXT, TEXT, st.integers(1, 4)).filter(lambda case: len(case[1]) >= case[2])
TOO_SHORT = st.tuples(TEXT, st.lists(st.sampled_from([1, 2, 11]), max_size=3), st.just(4))


def _long(n: int) -> tuple[Tokens, Tokens, int]:
    """All of it has been seen: this asks for speed alone, and most that count wrongly pass."""
    text = [i % 997 * (i % 31) for i in range(n)]
    return text, list(text), 5


SMALL, NONE, LARGE = "a few tokens", "too few held-out tokens", "100,000 tokens"
LEAK = Exercise(
    id="12-leak",
    minutes=20,
    importance=5,
    reference=leaked,
    wheats=(leaked, leaked_by_text),
    properties=(
        Property(SMALL, SHORT, points=2),
        Property(NONE, TOO_SHORT),
        Property(LARGE, st.just(100_000).map(_long)),
    ),
    chaffs=(
        Chaff("pieces side by side", _leaked(step=True), SMALL, "A run begins at every token, not at every n-th."),
        Chaff("each run once", _leaked(once=True), SMALL, "A run that occurs twice in `held` counts twice."),
        Chaff("a share of the wrong text", _leaked(by_train=True), SMALL, "The share of all runs in `held`."),
        Chaff("ids glued together", _leaked(glued=True), SMALL, "Are 1, 11 and 11, 1 the same two tokens?"),
        Chaff("a list is searched", _slow, LARGE, "A `set` answers at once.", slow=True),
        Chaff("none divided by none", _unsafe, NONE, "What if `held` has no n tokens?"),
    ),
    hints=("A `set` of tuples of the runs in `train`.",),
)

# ------------------------------------------------------------------------------------------------ 12-rank

Shapes = list[tuple[int, int]]


def largest_rank(shapes: Shapes, budget: int, frozen: int) -> int:
    rank = 0
    while rank < min(min(shape) for shape in shapes):
        numbers = sum((rank + 1) * (n_out + n_in) for n_out, n_in in shapes)
        if frozen + 16 * numbers > budget:
            break
        rank += 1
    return rank


def largest_rank_divided(shapes: Shapes, budget: int, frozen: int) -> int:
    fits = (budget - frozen) // (16 * sum(map(sum, shapes)))
    return max(0, min(fits, min(map(min, shapes))))


def _rank(bytes_: int = 16, most: Callable[[Shapes], int] | None = None, base: bool = True, least: int = 0) -> Any:
    def wrong(shapes: Shapes, budget: int, frozen: int) -> int:
        fits = (budget - (frozen if base else 0)) // (bytes_ * sum(map(sum, shapes)))
        top = most(shapes) if most else min(map(min, shapes))
        return max(least, min(fits, top))

    return wrong


@st.composite
def plans(draw: Any, room: str) -> tuple[Shapes, int, int]:
    shapes = draw(st.lists(st.tuples(st.integers(4, 12), st.integers(4, 12)), min_size=1, max_size=3))
    one, frozen = 16 * sum(map(sum, shapes)), draw(st.integers(0, 500))
    if room == "none":
        return shapes, draw(st.integers(0, frozen + one - 1)), frozen
    ranks = 99 if room == "all" else draw(st.integers(1, 4))
    return shapes, frozen + ranks * one + draw(st.integers(0, one - 1)), frozen


SOME, NOTHING, ALL = "a rank that fits", "none fits", "more memory than is of use"
RANK = Exercise(
    id="12-rank",
    minutes=15,
    importance=4,
    reference=largest_rank,
    wheats=(largest_rank, largest_rank_divided),
    properties=(
        Property(SOME, plans("some"), points=2),
        Property(NOTHING, plans("none")),
        Property(ALL, plans("all")),
    ),
    chaffs=(
        Chaff("four bytes a number", _rank(bytes_=4), SOME, "A trained number has a gradient and two moments, too."),
        Chaff("the base forgotten", _rank(base=False), SOME, "The frozen base is there as well."),
        Chaff("no end", _rank(most=lambda shapes: 10**9), ALL, "A rank above the smaller side is of no use."),
        Chaff(
            "the largest weight's side",
            _rank(most=lambda shapes: max(map(min, shapes))),
            ALL,
            "The smaller side of the *smallest* weight.",
        ),
        Chaff("at least one", _rank(least=1), NOTHING, "0 if none does."),
        Chaff("below zero", _rank(least=-(10**9)), NOTHING, "What if not even the base fits?"),
    ),
    hints=("Each rank more takes 16 bytes times the sum of all sides.",),
    read="tinyllm.inspect.plan.plan",
)

EXERCISES = (SYMPTOM, LEAK, RANK)
