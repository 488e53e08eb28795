"""Exercises of lesson 3: AdamW with numbers, many arrays clipped as one, a schedule, and a loss in pieces."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import strategies as st

from tinyllm.course.exercise import Chaff, Exercise, Property, Variant
from tinyllm.course.exercises.cases import SIDES, whole
from tinyllm.course.exercises.runs import fine_tunes

Array = np.ndarray

# ------------------------------------------------------------------------------------------------ 03-adamw


def adamw_numbers(
    w: float, gradients: list[float], lr: float, beta1: float, beta2: float, eps: float, weight_decay: float
) -> float:
    m = v = 0.0
    for step, g in enumerate(gradients, 1):
        w -= lr * weight_decay * w
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g * g
        w -= lr * (m / (1 - beta1**step)) / (math.sqrt(v / (1 - beta2**step)) + eps)
    return w


def adamw_folded(
    w: float, gradients: list[float], lr: float, beta1: float, beta2: float, eps: float, weight_decay: float
) -> float:
    m = v = 0.0
    for i, g in enumerate(gradients):
        m += (1 - beta1) * (g - m)
        v += (1 - beta2) * (g**2 - v)
        mean, size = m / (1 - beta1 ** (i + 1)), v / (1 - beta2 ** (i + 1))
        w = w * (1 - lr * weight_decay) - lr * mean / (size**0.5 + eps)
    return w


def _adamw(
    first: int = 1, root: str = "outside", after: bool = False, through: bool = False, corrected: bool = True
) -> Any:
    def wrong(
        w: float, gradients: list[float], lr: float, beta1: float, beta2: float, eps: float, weight_decay: float
    ) -> float:
        m = v = 0.0
        for step, g in enumerate(gradients, first):
            g = g + weight_decay * w if through else g
            w = w if after or through else w * (1 - lr * weight_decay)
            m += (1 - beta1) * (g - m)
            v += (1 - beta2) * (g * g - v)
            mean = m / (1 - beta1**step) if corrected else m
            size = v / (1 - beta2**step) if corrected else v
            w -= lr * mean / (math.sqrt(size) + eps if root == "outside" else math.sqrt(size + eps))
            w = w * (1 - lr * weight_decay) if after else w
        return w

    return wrong


def _runs(gradients: Any, decay: Any) -> Any:
    return st.tuples(
        st.integers(-8, 8).map(float), gradients, st.sampled_from([0.5, 0.125]), st.sampled_from([0.5, 0.75, 0.9]),
        st.sampled_from([0.5, 0.75, 0.99]), st.sampled_from([0.5, 0.125, 1e-8]), decay,
    )  # fmt: skip


LIVE = st.integers(-4, 4).filter(bool).map(float)
FIRST, DECAY, SEVERAL, ZERO = "the first step", "the first step with decay", "several steps", "gradients of zero"
ADAMW = Exercise(
    id="03-adamw",
    minutes=15,
    importance=5,
    reference=adamw_numbers,
    wheats=(adamw_numbers, adamw_folded),
    size=lambda w, gradients, lr, *rest: abs(w) + lr * len(gradients) * 8,
    properties=(
        Property(FIRST, _runs(LIVE.map(lambda g: [g]), st.just(0.0))),
        Property(DECAY, _runs(LIVE.map(lambda g: [g]), st.sampled_from([0.5, 0.25]))),
        Property(SEVERAL, _runs(st.lists(LIVE, min_size=2, max_size=4), st.sampled_from([0.0, 0.5])), points=2),
        Property(ZERO, _runs(st.lists(st.just(0.0), min_size=1, max_size=3), st.sampled_from([0.0, 0.5]))),
    ),
    chaffs=(
        Chaff("steps from 0", _adamw(first=0), FIRST, "What is beta to the power of 0, and one minus that?"),
        Chaff("eps under the root", _adamw(root="inside"), FIRST, "Where does epsilon stand in the formula?"),
        Chaff("decay after the step", _adamw(after=True), DECAY, "What was the weight when it decayed?"),
        Chaff(
            "the decay goes through Adam",
            _adamw(through=True),
            DECAY,
            "That is Adam with L2. What does the W stand for?",
        ),
        Chaff("nothing corrected", _adamw(corrected=False), FIRST, "m and v begin at 0, and are too small at first."),
    ),
    hints=("At the first step the corrected m is g itself, and the corrected v is g squared.",),
    variants=(
        Variant(
            "Epsilon stands *under* the root: the step divides by the root of (corrected v + eps).",
            _adamw(root="inside"),
            lambda *case: _adamw(root="inside")(*case),
        ),
        Variant(
            "Nothing is corrected: the step divides m by (root of v + eps) as they are.",
            _adamw(corrected=False),
            lambda *case: _adamw(corrected=False)(*case),
        ),
    ),
    read="tinyllm.optim.AdamW",
    emptied=("tinyllm.optim.AdamW", "tinyllm.backend.primitives.adamw_step"),
)

# ------------------------------------------------------------------------------------------------ 03-clip

Gradients = list[Any]


def clipped(gradients: Gradients, max_norm: float) -> tuple[Gradients, float]:
    total = 0.0
    for g in gradients:
        if g is not None:
            total += sum(float(x) ** 2 for x in g.reshape(-1))
    norm = math.sqrt(total)
    factor = max_norm / norm if norm > max_norm else 1.0
    return [None if g is None else g * factor for g in gradients], norm


def clipped_at_once(gradients: Gradients, max_norm: float) -> tuple[Gradients, float]:
    live = [g.reshape(-1) for g in gradients if g is not None]
    norm = float(np.linalg.norm(np.concatenate(live))) if live else 0.0
    return [g if g is None else g * min(1, max_norm / norm if norm else 1) for g in gradients], norm


def _clip(norm: Callable[[Gradients], float], always: bool = False, after: bool = False) -> Any:
    def wrong(gradients: Gradients, max_norm: float) -> tuple[Gradients, float]:
        n = norm(gradients)
        factor = max_norm / n if n > max_norm or always and n else 1.0
        return [None if g is None else g * factor for g in gradients], n * factor if after else n

    return wrong


def _joint(gradients: Gradients) -> float:
    return math.sqrt(sum(float((g * g).sum()) for g in gradients if g is not None))


def _each(gradients: Gradients, max_norm: float) -> tuple[Gradients, float]:
    return [None if g is None else clipped([g], max_norm)[0][0] for g in gradients], _joint(gradients)


def _in_place(gradients: Gradients, max_norm: float) -> tuple[Gradients, float]:
    norm = _joint(gradients)
    for g in gradients:
        if g is not None and norm > max_norm:
            g *= max_norm / norm
    return gradients, norm


_ONE = st.lists(SIDES, min_size=1, max_size=2).flatmap(lambda s: whole(tuple(s)))
BELOW, ABOVE, GAPS = "a norm that is small enough", "a norm that is too large", "no gradient in some places"
CLIP = Exercise(
    id="03-clip",
    minutes=10,
    importance=4,
    reference=clipped,
    wheats=(clipped, clipped_at_once),
    size=lambda gradients, max_norm: ([None if g is None else abs(g) for g in gradients], _joint(gradients)),
    properties=(
        Property(BELOW, st.tuples(st.lists(_ONE, max_size=3), st.just(99.0))),
        Property(ABOVE, st.tuples(st.lists(_ONE, min_size=1, max_size=3), st.sampled_from([0.5, 1.0, 2.0])), points=2),
        Property(GAPS, st.tuples(st.lists(_ONE | st.none(), min_size=1, max_size=4), st.just(1.0))),
        fine_tunes("clip"),
    ),
    chaffs=(
        Chaff("each by its own norm", _each, ABOVE, "The direction of all together must stay: one factor for all."),
        Chaff("always scaled", _clip(_joint, always=True), BELOW, "What is small enough stays as it is."),
        Chaff("written in place", _in_place, ABOVE, "Nothing that is given may change: make new arrays."),
        Chaff("the norm afterwards", _clip(_joint, after=True), ABOVE, "The norm before is asked for."),
        Chaff(
            "the largest number",
            _clip(lambda gs: max([float(abs(g).max()) for g in gs if g is not None], default=0.0)),
            ABOVE,
            "The norm is the root of the sum of all squares.",
        ),
        Chaff("the sum of the norms", _clip(lambda gs: sum(_joint([g]) for g in gs)), ABOVE, "Add the squares first."),
    ),
    hints=("One factor for all: 1, or max_norm over the joint norm.",),
    read="tinyllm.optim.clip_factor",
    emptied=("tinyllm.optim.clip_grad_norm", "tinyllm.optim.clip_factor"),
)

# ------------------------------------------------------------------------------------------------ 03-schedule


def factor(step: int, steps: int, warmup: int) -> float:
    if step < warmup:
        return (step + 1) / warmup
    return (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) / 2


def factor_by_square(step: int, steps: int, warmup: int) -> float:
    if warmup and step + 1 <= warmup:
        return (step + 1) / warmup
    return math.cos(math.pi / 2 * (step - warmup) / (steps - warmup)) ** 2


def _schedule(rise: Callable[[int, int], float], fall: Callable[[int, int, int], float]) -> Any:
    return lambda step, steps, warmup: rise(step, warmup) if step < warmup else fall(step, steps, warmup)


def _up(step: int, warmup: int) -> float:
    return (step + 1) / warmup


def _half(x: float) -> float:
    return (1 + math.cos(math.pi * x)) / 2


def _down(step: int, steps: int, warmup: int) -> float:
    return _half((step - warmup) / (steps - warmup))


@st.composite
def steps_of(draw: Any, where: str) -> tuple[int, int, int]:
    warmup = 0 if where == "none" else draw(st.integers(1, 6))
    steps = warmup + draw(st.integers(2, 8))
    step = draw(st.integers(0, warmup - 1) if where == "rise" else st.integers(warmup, steps - 1))
    return step, steps, warmup


RISE, FALL, NONE = "while it rises", "while it falls", "no warm-up"
SCHEDULE = Exercise(
    id="03-schedule",
    minutes=10,
    importance=3,
    reference=factor,
    wheats=(factor, factor_by_square),
    size=lambda step, steps, warmup: 1.0,
    properties=(
        Property(RISE, steps_of("rise")),
        Property(FALL, steps_of("fall")),
        Property(NONE, steps_of("none")),
        fine_tunes("factor"),
    ),
    chaffs=(
        Chaff("it begins at 0", _schedule(lambda s, w: s / w, _down), RISE, "The first step would change nothing."),
        Chaff(
            "the cosine begins at step 0",
            _schedule(_up, lambda s, n, w: _half(s / n)),
            FALL,
            "At the end of the warm-up the factor is 1, and falls from there.",
        ),
        Chaff(
            "the last step is 0",
            _schedule(_up, lambda s, n, w: _half((s - w) / (n - w - 1))),
            NONE,
            "It is 0 one step after the last: a last step of 0 would be wasted.",
        ),
        Chaff(
            "a straight line", _schedule(_up, lambda s, n, w: 1 - (s - w) / (n - w)), NONE, "Half a cosine, it says."
        ),
        Chaff(
            "a quarter of a cosine",
            _schedule(_up, lambda s, n, w: math.cos(math.pi / 2 * (s - w) / (n - w))),
            NONE,
            "Half a cosine goes from 1 to -1: bring it to 1 and 0.",
        ),
    ),
    hints=("(1 + cos(pi x)) / 2 goes from 1 to 0 while x goes from 0 to 1.",),
    read="tinyllm.optim.lr_factor",
    emptied=("tinyllm.optim.lr_factor",),
)

# ------------------------------------------------------------------------------------------------ 03-accumulate


def joined(losses: list[float], live: list[int]) -> float:
    if sum(live) == 0:
        raise ValueError
    return sum(loss * n for loss, n in zip(losses, live, strict=True)) / sum(live)


def joined_at_once(losses: list[float], live: list[int]) -> float:
    if not any(live):
        raise ValueError("no live token")
    return float(np.average(losses, weights=live))


def _joined(losses: list[float], live: list[int], mean: Callable[[list[tuple[float, int]]], float]) -> float:
    if not any(live):
        raise ValueError
    return mean(list(zip(losses, live, strict=True)))


def pieces(live: Any, least: int = 1) -> Any:
    def drawn(n: int) -> Any:
        counts = st.lists(live, min_size=n, max_size=n)
        values = st.lists(st.integers(1, 16).map(lambda x: x / 4), min_size=n, max_size=n)
        return st.tuples(values, counts).map(lambda c: ([x if n else 0.0 for x, n in zip(*c, strict=True)], c[1]))

    return st.integers(least, 4).flatmap(drawn)


EQUAL, UNEQUAL, EMPTY, DEAD = "pieces of one size", "pieces of any size", "pieces without a live token", "no live token"
ACCUMULATE = Exercise(
    id="03-accumulate",
    minutes=10,
    importance=5,
    reference=joined,
    wheats=(joined, joined_at_once),
    size=lambda losses, live: max(losses),
    properties=(
        Property(EQUAL, st.integers(1, 5).flatmap(lambda n: pieces(st.just(n)))),
        Property(UNEQUAL, pieces(st.integers(1, 9), 2), points=2),
        Property(EMPTY, pieces(st.integers(0, 3), 2).filter(lambda case: any(case[1]))),
        Property(DEAD, pieces(st.just(0))),
    ),
    chaffs=(
        Chaff(
            "the mean of means",
            lambda losses, live: _joined(losses, live, lambda p: sum(x for x, _ in p) / len(p)),
            UNEQUAL,
            "A piece of one token has as much say as one of nine.",
            "transformers #35207, OpenNMT-py #2209",
        ),
        Chaff(
            "not divided",
            lambda losses, live: _joined(losses, live, lambda p: sum(x for x, _ in p)),
            EQUAL,
            "Twice as many pieces would double the loss.",
            "nanoGPT #206",
        ),
        Chaff(
            "the mean of the live pieces",
            lambda losses, live: _joined(losses, live, lambda p: sum(x for x, _ in p) / sum(n > 0 for _, n in p)),
            UNEQUAL,
            "Which piece has more tokens?",
        ),
        Chaff(
            "nothing raised",
            lambda losses, live: sum(x * n for x, n in zip(losses, live, strict=True)) / max(1, sum(live)),
            DEAD,
            "A loss of 0 would say that all is right.",
        ),
        Chaff(
            "divided by the pieces",
            lambda losses, live: _joined(losses, live, lambda p: sum(x * n for x, n in p) / len(p)),
            EQUAL,
            "Divide by the tokens, not by the pieces.",
        ),
    ),
    hints=("The sum of all tokens' losses, over the number of all tokens.",),
    read="tinyllm.train.loop.accumulate",
)

EXERCISES = (ADAMW, CLIP, SCHEDULE, ACCUMULATE)
