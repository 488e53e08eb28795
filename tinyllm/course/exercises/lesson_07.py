"""Exercises of lesson 7: labels of several examples in a row, what checkpointing keeps, and the longest text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import strategies as st

from tinyllm.course.exercise import Chaff, Exercise, Property

Array = np.ndarray

# ------------------------------------------------------------------------------------------------ 07-labels


def row_labels(ids: Array, learned: Array, segments: Array) -> Array:
    labels = np.full(len(ids), -100, np.int64)
    for t in range(len(ids) - 1):
        if learned[t + 1] and segments[t] == segments[t + 1] != 0:
            labels[t] = ids[t + 1]
    return labels


def row_labels_at_once(ids: Array, learned: Array, segments: Array) -> Array:
    following = np.append(ids[1:], -100).astype(np.int64)
    counts = np.append(learned[1:] & (segments[1:] == segments[:-1]) & (segments[1:] > 0), False)
    return np.where(counts, following, -100)


def _labels(by: int = 1, own: bool = False, within: bool = True, filled: bool = True, end: int | None = None) -> Any:
    def wrong(ids: Array, learned: Array, segments: Array) -> Array:
        labels = np.full(len(ids), -100, np.int64)
        for t in range(len(ids) - by):
            good = learned[t if own else t + by] and (not within or segments[t] == segments[t + by])
            if good and (not filled or segments[t + by] != 0) and ids[t + by] != end:
                labels[t] = ids[t + by]
        return labels

    return wrong


@st.composite
def rows(draw: Any, examples: tuple[int, int], filled: bool) -> tuple[Array, Array, Array]:
    segments: list[int] = []
    for k in range(1, draw(st.integers(*examples)) + 1):
        segments += [k] * draw(st.integers(1, 3))
    segments += [0] * (draw(st.integers(1, 3)) if filled else 0)
    n = len(segments)
    ids = draw(st.lists(st.integers(0, 9), min_size=n, max_size=n))
    learned = draw(st.lists(st.booleans(), min_size=n, max_size=n))
    return np.array(ids), np.array(learned), np.array(segments)


ONE, SEVERAL, FILLED = "one example", "several examples", "a row that is filled up"
LABELS = Exercise(
    id="07-labels",
    minutes=15,
    importance=5,
    reference=row_labels,
    wheats=(row_labels, row_labels_at_once),
    properties=(
        Property(ONE, rows((1, 1), False)),
        Property(SEVERAL, rows((2, 3), False), points=2),
        Property(FILLED, rows((1, 2), True)),
    ),
    chaffs=(
        Chaff("moved twice", _labels(by=2), ONE, "One place: the next token.", "transformers #44642, #47394"),
        Chaff("not moved", _labels(by=0), ONE, "A position that guesses itself learns nothing."),
        Chaff(
            "over the border", _labels(within=False), SEVERAL, "The last token of an example is followed by a stranger."
        ),
        Chaff("what is filled up is learned", _labels(filled=False), FILLED, "Segment 0 is no example."),
        Chaff(
            "the end of text is masked",
            _labels(end=0),
            ONE,
            "A model that never learns to write the end never stops.",
            "llm-course #33, torchtune #949",
        ),
        Chaff("the mask not moved", _labels(own=True), ONE, "`learned` speaks of the token that is written."),
    ),
    hints=("Position t has a label where t + 1 is learned and both are of one example.",),
    read="tinyllm.data.examples.Example",
)

# ------------------------------------------------------------------------------------------------ 07-checkpoint


def checkpointed_bytes(layers: int, hidden: int, vocabulary: int, tokens: int) -> int:
    a_token = 4 * layers * hidden  # each block's input
    a_token += 4 * (hidden + 1)  # the last norm: its result and one number
    a_token += 4 * hidden  # at the head, the gradient of what came in
    a_token += 8  # the token's id
    return a_token * tokens + 4 * vocabulary * hidden


def checkpointed_at_once(layers: int, hidden: int, vocabulary: int, tokens: int) -> int:
    return 4 * hidden * ((layers + 2) * tokens + vocabulary) + 12 * tokens


def _kept(change: Callable[[int, int, int, int], int]) -> Any:
    return lambda layers, hidden, vocabulary, tokens: (
        checkpointed_bytes(layers, hidden, vocabulary, tokens) + change(layers, hidden, vocabulary, tokens)
    )


SIZES = st.tuples(st.integers(1, 6), st.integers(1, 40), st.integers(1, 99), st.integers(1, 64))
BASE, SHAPES = "the base at 4 texts of 64 tokens", "models of any shape"
CHECKPOINT = Exercise(
    id="07-checkpoint",
    minutes=15,
    importance=3,
    reference=checkpointed_bytes,
    wheats=(checkpointed_bytes, checkpointed_at_once),
    properties=(Property(BASE, st.just((5, 160, 1024, 256))), Property(SHAPES, SIZES, points=2)),
    chaffs=(
        Chaff(
            "the head's gradient for each token", _kept(lambda n, d, v, t: 4 * v * d * (t - 1)), BASE, "Once a step."
        ),
        Chaff(
            "no gradient of the head",
            _kept(lambda n, d, v, t: -4 * v * d),
            BASE,
            "The head makes its own gradient at once.",
        ),
        Chaff("ids of four bytes", _kept(lambda n, d, v, t: -4 * t), BASE, "A whole number has eight bytes."),
        Chaff(
            "the starts kept as well",
            _kept(lambda n, d, v, t: 8 * t),
            BASE,
            "The starts are made inside of the blocks.",
        ),
        Chaff("a block too few", _kept(lambda n, d, v, t: -4 * d * t), BASE, "The first block has an input, too."),
    ),
    hints=("For a token: an input for each block, the last norm, the head's input gradient, an id.",),
    read="tinyllm.inspect.kept.kept",
)

# ------------------------------------------------------------------------------------------------ 07-longest


def longest(budget: int, parameters: int, per_token: int, once: int) -> int:
    if 16 * parameters > budget:
        return 0
    return max(0, (budget - 12 * parameters - once) // per_token)


def longest_by_trying(budget: int, parameters: int, per_token: int, once: int) -> int:
    t = 0
    while 12 * parameters + per_token * (t + 1) + once <= budget and 16 * parameters <= budget:
        t += 1
    return t


def _longest(first: int = 12, second: int = 16, least: int = 0, extra: int = 0) -> Any:
    def wrong(budget: int, parameters: int, per_token: int, once: int) -> int:
        if second * parameters > budget:
            return 0
        return max(least, (budget - first * parameters - once + extra) // per_token)

    return wrong


@st.composite
def budgets(draw: Any, where: str) -> tuple[int, int, int, int]:
    parameters, per_token, once = draw(st.integers(1, 20)), draw(st.integers(1, 30)), draw(st.integers(0, 30))
    tokens, rest = draw(st.integers(1, 40)), draw(st.integers(0, per_token - 1))
    room = 12 * parameters + once + per_token * tokens + rest
    if where == "second":
        return draw(st.integers(12 * parameters, 16 * parameters - 1)), parameters, 1, 0
    if where == "none":
        return 16 * parameters, parameters, 4 * parameters + 1, once
    return max(room, 16 * parameters), parameters, per_token, once


FITS, SECOND, NONE = "some tokens fit", "the second hill is too high", "not one token fits"
LONGEST = Exercise(
    id="07-longest",
    minutes=15,
    importance=4,
    reference=longest,
    wheats=(longest, longest_by_trying),
    properties=(
        Property(FITS, budgets("fits"), points=2),
        Property(SECOND, budgets("second")),
        Property(NONE, budgets("none")),
    ),
    chaffs=(
        Chaff("one hill alone", _longest(second=0), SECOND, "After backward there are 16 bytes a parameter."),
        Chaff(
            "gradients there from the start", _longest(first=16), FITS, "Before backward there are no gradients yet."
        ),
        Chaff(
            "rounded up",
            lambda b, p, t, o: -(-max(0, b - 12 * p - o) // t) if 16 * p <= b else 0,
            FITS,
            "A part of a token?",
        ),
        Chaff(
            "below zero",
            lambda b, p, t, o: (b - 12 * p - o) // t if 16 * p <= b else -1,
            SECOND,
            "If none fits, the answer is 0.",
        ),
        Chaff(
            "`once` forgotten", lambda b, p, t, o: longest(b, p, t, 0), FITS, "Some bytes do not depend on the tokens."
        ),
    ),
    hints=("The second hill does not depend on t. Solve the first for t.",),
    read="tinyllm.inspect.plan.plan",
)

EXERCISES = (LABELS, CHECKPOINT, LONGEST)
