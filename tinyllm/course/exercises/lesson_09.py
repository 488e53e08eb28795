"""Exercises of lesson 9: folding several adapters, a layer's state, one adapter out of two, and its bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import strategies as st

from tinyllm.course.exercise import Chaff, Exercise, Property, Variant, demand
from tinyllm.course.exercises.cases import SIDES, whole

Array = np.ndarray
Adapters = list[tuple[Array, Array, float]]

# ------------------------------------------------------------------------------------------------ 09-fold


def fold_all(W: Array, adapters: Adapters) -> Array:
    folded = W.copy()
    for A, B, alpha in adapters:
        for i in range(len(B)):
            for j in range(A.shape[1]):
                folded[i, j] += alpha / len(A) * sum(B[i, k] * A[k, j] for k in range(len(A)))
    return folded


def fold_all_products(W: Array, adapters: Adapters) -> Array:
    return sum((alpha / A.shape[0] * (B @ A) for A, B, alpha in adapters), start=W + 0)


def fold_size(W: Array, adapters: Adapters) -> Array:
    return fold_all_products(abs(W), [(abs(A), abs(B), alpha) for A, B, alpha in adapters])


def _folded(scale: Callable[[int, Adapters], float]) -> Any:
    def wrong(W: Array, adapters: Adapters) -> Array:
        return W + sum((scale(i, adapters) * (B @ A) for i, (A, B, _) in enumerate(adapters)), start=0 * W)

    return wrong


def _fold_in_place(W: Array, adapters: Adapters) -> Array:
    for A, B, alpha in adapters:
        W += alpha / len(A) * (B @ A)
    return W


def _last_alone(W: Array, adapters: Adapters) -> Array:
    folded = W.copy()
    for A, B, alpha in adapters:
        folded = W + alpha / len(A) * (B @ A)
    return folded


@st.composite
def layers(draw: Any, many: tuple[int, int]) -> tuple[Array, Adapters]:
    n_out, n_in, adapters = draw(SIDES), draw(SIDES), []
    for _ in range(draw(st.integers(*many))):
        rank = draw(SIDES)
        adapters.append((draw(whole((rank, n_in))), draw(whole((n_out, rank))), float(draw(st.integers(1, 8)))))
    return draw(whole((n_out, n_in))), adapters


NONE, ONE, SEVERAL = "no adapter", "one adapter", "several adapters"
FOLD = Exercise(
    id="09-fold",
    minutes=10,
    importance=4,
    reference=fold_all,
    wheats=(fold_all, fold_all_products),
    size=fold_size,
    properties=(
        Property(NONE, layers((0, 0))),
        Property(ONE, layers((1, 1))),
        Property(SEVERAL, layers((2, 3)), points=2),
    ),
    chaffs=(
        Chaff(
            "W is written to", _fold_in_place, ONE, "The base must still be there afterwards: `W += ...` changes it."
        ),
        Chaff("the last one alone", _last_alone, SEVERAL, "Each update is added to what the others left."),
        Chaff("alpha without rank", _folded(lambda i, a: a[i][2]), ONE, "The scale has a rank in it.", "rasbt #1079"),
        Chaff(
            "the first adapter's scale for all",
            _folded(lambda i, a: a[0][2] / len(a[0][0])),
            SEVERAL,
            "Every adapter has an alpha and a rank of its own.",
        ),
        Chaff(
            "merged twice",
            _folded(lambda i, a: 2 * a[i][2] / len(a[i][0])),
            ONE,
            "How often is each update in it?",
            "peft #1355, where a call that one did not see had merged already",
        ),
    ),
    hints=("Begin with a copy of W.",),
    variants=(
        Variant(
            "The scale of each is its alpha over the *root* of its own rank.",
            _folded(lambda i, a: a[i][2] / len(a[i][0]) ** 0.5),
            lambda W, adapters: sum((b * len(A) ** -0.5 * (B @ A) for A, B, b in adapters), start=W.copy()),
        ),
        Variant(
            "The updates are taken *out*: return the W that there was before they were folded in.",
            _folded(lambda i, a: -a[i][2] / len(a[i][0])),
            lambda W, adapters: 2 * W - fold_all_products(W, adapters),
            lambda W, adapters: 2 * abs(W) + fold_size(W, adapters),
        ),
    ),
    read="tinyllm.lora.layer.lora_fold",
    emptied=("tinyllm.lora.layer.lora_fold",),
)

# ------------------------------------------------------------------------------------------------ 09-state


def outputs(calls: list[str]) -> str:
    enabled = True
    for call in calls:
        if call in ("enable", "disable"):
            enabled = call == "enable"
    return "adapted" if enabled else "base"


def outputs_backwards(calls: list[str]) -> str:
    for call in reversed(calls):
        if call == "enable":
            return "adapted"
        if call == "disable":
            return "base"
    return "adapted"


def _merged_is_adapted(calls: list[str]) -> str:
    enabled, merged = True, False
    for call in calls:
        enabled = {"enable": True, "disable": False}.get(call, enabled)
        merged = {"merge": True, "unmerge": False}.get(call, merged)
    return "adapted" if enabled or merged else "base"


def _unmerge_disables(calls: list[str]) -> str:
    adapted = True
    for call in calls:
        adapted = {"enable": True, "disable": False, "merge": True, "unmerge": False}[call]
    return "adapted" if adapted else "base"


def _last_call(calls: list[str]) -> str:
    return "base" if calls and calls[-1] == "disable" else "adapted"


def _toggled(calls: list[str]) -> str:
    return "base" if (calls.count("disable") - calls.count("enable")) > 0 else "adapted"


WORDS = ["merge", "unmerge", "enable", "disable"]
PLAIN, ANY = "enable and disable alone", "all four, in any order"
STATE = Exercise(
    id="09-state",
    minutes=20,
    importance=4,
    reference=outputs,
    wheats=(outputs, outputs_backwards),
    properties=(
        Property(PLAIN, st.tuples(st.lists(st.sampled_from(WORDS[2:]), max_size=5))),
        Property(ANY, st.tuples(st.lists(st.sampled_from(WORDS), max_size=6)), points=3),
    ),
    chaffs=(
        Chaff(
            "merged is adapted",
            _merged_is_adapted,
            ANY,
            "Merging makes an answer cheaper. Does it change which answer one asked for?",
            "peft #1355",
        ),
        Chaff(
            "unmerging disables", _unmerge_disables, ANY, "After unmerging the adapter stands beside the base again."
        ),
        Chaff("the last call alone", _last_call, ANY, "What if the last call was one that has no say?"),
        Chaff("calls are counted", _toggled, PLAIN, "Disabling twice is no more than once."),
    ),
    hints=("Which of the four words has a say in what comes out?",),
    read="tinyllm.lora.layer.LoRALinear",
)

# ------------------------------------------------------------------------------------------------ 09-mix


def mix(A1: Array, B1: Array, A2: Array, B2: Array, t: float) -> tuple[Array, Array]:
    return np.concatenate([A1, A2]), np.concatenate([(1 - t) * B1, t * B2], axis=1)


def mix_in_A(A1: Array, B1: Array, A2: Array, B2: Array, t: float) -> tuple[Array, Array]:
    return np.vstack([t * A2, (1 - t) * A1]), np.hstack([B2, B1])


def one_adapter(call: Any, A1: Array, B1: Array, A2: Array, B2: Array, t: float) -> None:
    found = call(A1, B1, A2, B2, t)
    demand(isinstance(found, tuple | list) and len(found) == 2, "it must return the pair A, B")
    A, B = found
    demand(all(isinstance(x, np.ndarray) and x.ndim == 2 for x in (A, B)), "A and B must be matrices")
    demand(A.shape[1] == A1.shape[1] and B.shape[0] == B1.shape[0], "A must be (rank, in), and B (out, rank)")
    demand(A.shape[0] == B.shape[1], f"A has the rank {A.shape[0]}, and B has {B.shape[1]}")
    demand(len(A) <= len(A1) + len(A2), f"the rank is {len(A)}, and {len(A1) + len(A2)} is enough")
    wanted = (1 - t) * (B1 @ A1) + t * (B2 @ A2)
    room = 64 * np.finfo(float).eps * (1 + abs(B1) @ abs(A1) + abs(B2) @ abs(A2))
    demand((abs(B @ A - wanted) <= room).all(), "B A is not the mixture of the two products")


def _mixed(first: Callable[[float], float], second: Callable[[float], float]) -> Any:
    def wrong(A1: Array, B1: Array, A2: Array, B2: Array, t: float) -> tuple[Array, Array]:
        return np.concatenate([A1, A2]), np.concatenate([first(t) * B1, second(t) * B2], axis=1)

    return wrong


@st.composite
def two(draw: Any, equal: bool) -> tuple:
    n_out, n_in, rank = draw(SIDES), draw(SIDES), draw(SIDES)
    other = rank if equal else draw(SIDES)
    shapes = (rank, n_in), (n_out, rank), (other, n_in), (n_out, other)
    return (*(draw(whole(shape)) for shape in shapes), draw(st.integers(0, 4)) / 4)


SAME, OTHER = "two of one rank", "two of any ranks"
MIX = Exercise(
    id="09-mix",
    minutes=15,
    importance=3,
    reference=mix,
    wheats=(mix, mix_in_A),
    properties=(Property(SAME, two(True), law=one_adapter), Property(OTHER, two(False), law=one_adapter, points=2)),
    chaffs=(
        Chaff(
            "the mean of both factors",
            lambda A1, B1, A2, B2, t: ((1 - t) * A1 + t * A2, (1 - t) * B1 + t * B2),
            SAME,
            "Multiply it out: what is B1 A2 doing in there?",
        ),
        Chaff(
            "t on the wrong one", _mixed(lambda t: t, lambda t: 1 - t), SAME, "At t = 0 it must be the first adapter."
        ),
        Chaff("nothing weighed", _mixed(lambda t: 1.0, lambda t: 1.0), SAME, "Where is t?"),
        Chaff(
            "weighed in A and in B",
            lambda A1, B1, A2, B2, t: (
                np.concatenate([(1 - t) * A1, t * A2]),
                np.concatenate([(1 - t) * B1, t * B2], axis=1),
            ),
            SAME,
            "A factor in A and in B is there twice in the product.",
        ),
        Chaff(
            "put together the other way",
            lambda A1, B1, A2, B2, t: (
                np.concatenate([A1, A2], axis=1),  # raises where the ranks differ, as people's do
                np.concatenate([(1 - t) * B1, t * B2]),
            ),
            SAME,
            "A is (rank, in): which side grows when two ranks are joined?",
        ),
    ),
    hints=("[B1 B2] times A1 over A2 is B1 A1 + B2 A2.",),
    read="tinyllm.lora.verbs.set_adapter",
)

# ------------------------------------------------------------------------------------------------ 09-bytes


def adapter_bytes(shapes: list[tuple[int, int]], rank: int, itemsize: int) -> int:
    numbers = 0
    for n_out, n_in in shapes:
        numbers += rank * n_in + n_out * rank
    return numbers * itemsize


def adapter_bytes_summed(shapes: list[tuple[int, int]], rank: int, itemsize: int) -> int:
    return itemsize * rank * sum(map(sum, shapes))


def _counted(one: Callable[[int, int, int], int], item: Callable[[int], int] = lambda n: n) -> Any:
    def wrong(shapes: list[tuple[int, int]], rank: int, itemsize: int) -> int:
        return sum(one(n_out, n_in, rank) for n_out, n_in in shapes) * item(itemsize)

    return wrong


SIZES = st.integers(1, 9)
SHAPES = st.lists(st.tuples(SIZES, SIZES), max_size=4)
LLAMA = ([(4096, 4096)] * 128, 8, 2)
LIST, REAL = "a list of shapes", "Llama-2-7B at rank 8"
BYTES = Exercise(
    id="09-bytes",
    minutes=10,
    importance=3,
    reference=adapter_bytes,
    wheats=(adapter_bytes, adapter_bytes_summed),
    properties=(
        Property(LIST, st.tuples(SHAPES, SIZES, st.sampled_from([1, 2, 4, 8])), points=2),
        Property(REAL, st.just(LLAMA)),
    ),
    chaffs=(
        Chaff("the whole matrix", _counted(lambda o, i, r: o * i), LIST, "W is not in an adapter's file."),
        Chaff("A alone", _counted(lambda o, i, r: r * i), LIST, "B is in the file as well."),
        Chaff("numbers, not bytes", _counted(lambda o, i, r: r * (o + i), lambda n: 1), LIST, "How long is a number?"),
        Chaff("bits", _counted(lambda o, i, r: r * (o + i), lambda n: 8 * n), LIST, "`itemsize` is in bytes already."),
        Chaff("a square of the rank", _counted(lambda o, i, r: r * r), LIST, "A is (rank, in), B is (out, rank)."),
    ),
    hints=("At rank 1 a matrix (3, 5) has 8 numbers in its A and B together.",),
    read="tinyllm.lora.peft.adapter.save_adapter",
)

EXERCISES = (FOLD, STATE, MIX, BYTES)
