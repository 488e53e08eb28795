"""Exercises of lesson 0: pairs counted, a perplexity, and how little LoRA trains."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import strategies as st

from tinyllm.course.exercise import Chaff, Exercise, Property, demand

Array = np.ndarray

# ------------------------------------------------------------------------------------------------ 00-bigrams


def bigrams(tokens: Array, vocabulary: int) -> Array:
    table = np.zeros((vocabulary, vocabulary), np.int64)
    for first, second in zip(tokens[:-1], tokens[1:], strict=True):
        table[first, second] += 1
    return table


def bigrams_at_once(tokens: Array, vocabulary: int) -> Array:
    table = np.zeros((vocabulary, vocabulary), np.int64)
    np.add.at(table, (tokens[:-1], tokens[1:]), 1)
    return table


def whole_table(call: Any, tokens: Array, vocabulary: int) -> None:
    """Whole numbers of any width."""
    found, wanted = call(tokens, vocabulary), bigrams(tokens, vocabulary)
    demand(isinstance(found, np.ndarray), f"it must be an array, not a {type(found).__name__}")
    demand(found.shape == wanted.shape, f"it must have the shape {wanted.shape}, not {found.shape}")
    demand(found.dtype.kind in "iu", f"counts are whole numbers, not {found.dtype}")
    for i, j in np.argwhere(found != wanted)[:1]:
        demand(False, f"{j} came {wanted[i, j]} times after {i}, and row {i}, column {j} says {found[i, j]}")


def _once(tokens: Array, vocabulary: int) -> Array:
    table = np.zeros((vocabulary, vocabulary), np.int64)
    table[tokens[:-1], tokens[1:]] += 1
    return table


def _used_alone(tokens: Array, vocabulary: int) -> Array:
    many = int(tokens.max()) + 1
    return bigrams(tokens, many)


def _round(tokens: Array, vocabulary: int) -> Array:
    return bigrams(np.append(tokens, tokens[:1]), vocabulary)


def texts(vocabulary: Any, least: int = 1) -> Any:
    return vocabulary.flatmap(
        lambda v: st.lists(st.integers(0, v - 1), min_size=least, max_size=8).map(lambda x: (np.array(x), v))
    )


FEW, LARGE = "a few tokens", "a larger vocabulary"
BIGRAMS = Exercise(
    id="00-bigrams",
    minutes=10,
    importance=4,
    reference=bigrams,
    wheats=(bigrams, bigrams_at_once),
    properties=(
        Property(FEW, texts(st.integers(1, 3)), law=whole_table, points=2),
        Property(LARGE, texts(st.integers(5, 9)), law=whole_table),
    ),
    chaffs=(
        Chaff("a pair counted once", _once, FEW, "0, 1, 0, 1: what does your table say for 0 then 1?"),
        Chaff(
            "rows and columns swapped",
            lambda t, v: bigrams(t, v).T.copy(),
            FEW,
            "The row is the token that comes first.",
        ),
        Chaff("the tokens that occur alone", _used_alone, LARGE, "The matrix has a row for every id there is."),
        Chaff("round to the beginning", _round, FEW, "Nothing comes after the last token."),
        Chaff(
            "shares, not numbers", lambda t, v: bigrams(t, v) / max(1, len(t) - 1), FEW, "How often, not which share."
        ),
    ),
    hints=("Go through the pairs one by one, or see how stage 1 does without.",),
)

# ------------------------------------------------------------------------------------------------ 00-perplexity


def perplexity(shares: Array) -> float:
    total = 0.0
    for share in shares:
        if share == 0:
            return math.inf
        total -= math.log(share)
    return math.exp(total / len(shares))


def perplexity_at_once(shares: Array) -> float:
    if (shares == 0).any():
        return float("inf")
    return float(np.exp(-np.log(shares).mean()))


def _of(mean: Callable[[Array], float]) -> Any:
    return lambda shares: math.inf if (shares == 0).any() else mean(shares)


SIXTEENTHS = st.integers(1, 16).map(lambda n: n / 16)
LIVE, NEVER, LONG = "shares above zero", "one share is zero", "a long text"
PERPLEXITY = Exercise(
    id="00-perplexity",
    minutes=10,
    importance=3,
    reference=perplexity,
    wheats=(perplexity, perplexity_at_once),
    size=lambda shares: len(shares) * perplexity(shares) if (shares > 0).all() else math.inf,
    properties=(
        Property(LIVE, st.lists(SIXTEENTHS, min_size=1, max_size=5).map(lambda x: (np.array(x),)), points=2),
        Property(NEVER, st.lists(SIXTEENTHS, max_size=4).map(lambda x: (np.array([*x, 0.0]),))),
        Property(LONG, st.integers(2000, 2100).map(lambda n: (np.full(n, 0.125),))),
    ),
    chaffs=(
        Chaff("one over the mean", _of(lambda s: 1 / s.mean()), LIVE, "For 1, 0.25 it is 2. What is yours?"),
        Chaff("the mean of one over", _of(lambda s: float((1 / s).mean())), LIVE, "The mean is taken of the losses."),
        Chaff(
            "2 to the loss", _of(lambda s: float(2 ** (-np.log(s).mean()))), LIVE, "Which logarithm was the loss in?"
        ),
        Chaff(
            "the product first",
            lambda s: math.inf if s.prod() == 0 else float(s.prod() ** (-1 / len(s))),
            LONG,
            "Two thousand shares multiplied are no float any more.",
        ),
        Chaff("zero not looked for", lambda s: float(np.exp(-np.log(s).mean())), NEVER, "What is the logarithm of 0?"),
    ),
    hints=("The exponential of the mean loss; a token's loss is minus the logarithm of its share.",),
    read="tinyllm.functional.cross_entropy",
)

# ------------------------------------------------------------------------------------------------ 00-thin

Shapes = list[tuple[int, int]]


def thin(shapes: Shapes, rank: int) -> int:
    total = 0
    for n_out, n_in in shapes:
        total += rank * n_in + n_out * rank
    return total


def thin_summed(shapes: Shapes, rank: int) -> int:
    return rank * sum(n for shape in shapes for n in shape)


def _each(count: Callable[[int, int, int], int]) -> Any:
    return lambda shapes, rank: sum(count(n_out, n_in, rank) for n_out, n_in in shapes)


SIZES = st.integers(1, 9)
ONE, SEVERAL = "one matrix", "several matrices"
THIN = Exercise(
    id="00-thin",
    minutes=10,
    importance=4,
    reference=thin,
    wheats=(thin, thin_summed),
    properties=(
        Property(ONE, st.tuples(st.tuples(st.tuples(SIZES, SIZES)).map(list), SIZES)),
        Property(SEVERAL, st.tuples(st.lists(st.tuples(SIZES, SIZES), min_size=2, max_size=4), SIZES), points=2),
    ),
    chaffs=(
        Chaff("the matrices themselves", _each(lambda o, i, r: o * i), ONE, "W is frozen: A and B are trained."),
        Chaff("A alone", _each(lambda o, i, r: r * i), ONE, "B is (out, rank)."),
        Chaff(
            "the first alone", lambda shapes, rank: thin(shapes[:1], rank), SEVERAL, "All together, the exercise says."
        ),
        Chaff("both sides multiplied", _each(lambda o, i, r: r * i * o * r), ONE, "A and B stand side by side: add."),
        Chaff(
            "a square of the rank", _each(lambda o, i, r: (o + i) * r * r), ONE, "One matrix (6, 4) at rank 2 makes 20."
        ),
    ),
    hints=("A has the shape (rank, in), B has (out, rank).",),
    read="tinyllm.lora.layer.Adapter",
)

EXERCISES = (BIGRAMS, PERPLEXITY, THIN)
