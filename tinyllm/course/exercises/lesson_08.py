"""Exercises of lesson 8: a fresh adapter, the layer's definition, and what it trains."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from hypothesis import strategies as st

from tinyllm.course.exercise import Chaff, Exercise, Property, Seed, Variant, demand
from tinyllm.course.exercises.cases import SEEDS, SIDES, whole

# ------------------------------------------------------------------------------------------------ 08-noop


def fresh(shape: tuple[int, int], rank: int, generator: Any) -> tuple[np.ndarray, np.ndarray]:
    n_out, n_in = shape
    bound = 1 / math.sqrt(n_in)
    return generator.uniform(-bound, bound, (rank, n_in)).astype(np.float32), np.zeros((n_out, rank), np.float32)


def fresh_scaled(shape: tuple[int, int], rank: int, generator: Any) -> tuple[np.ndarray, np.ndarray]:
    A = (2 * generator.random((rank, shape[1]), dtype=np.float32) - 1) / np.float32(shape[1] ** 0.5)
    return A, np.zeros((shape[0], rank), np.float32)


def right_shapes(call: Any, shape: tuple[int, int], rank: int, generator: Seed) -> None:
    A, B = _pair(call(shape, rank, generator))
    for name, x, wanted in (("A", A, (rank, shape[1])), ("B", B, (shape[0], rank))):
        demand(isinstance(x, np.ndarray), f"{name} must be an array, not a {type(x).__name__}")
        demand(x.shape == wanted, f"{name} must have the shape {wanted}, not {x.shape}")
        demand(x.dtype == np.float32, f"{name} must be float32, not {x.dtype}")


def no_update(call: Any, shape: tuple[int, int], rank: int, generator: Seed) -> None:
    _, B = _pair(call(shape, rank, generator))
    demand((np.asarray(B) == 0).all(), "B is not zero, so a fresh adapter changes the model")


def uniform(call: Any, shape: tuple[int, int], rank: int, generator: Seed) -> None:
    A, _ = _pair(call(shape, rank, generator))
    bound, A = 1 / math.sqrt(shape[1]), np.asarray(A, np.float64)
    largest = np.abs(A).max()
    demand(largest <= bound * (1 + 2**-20), f"A has {largest:.4g}, and the bound is {bound:.4g}")
    demand(largest > 0.9 * bound, f"A goes only to {largest:.4g}, and the bound is {bound:.4g}")
    demand(abs(A.mean()) < 0.2 * bound, "the numbers of A are not about zero in the mean")
    demand(0.47 < (np.abs(A) > bound / 2).mean() < 0.53, "half of A must be above half of the bound: it is not uniform")


def by_its_generator(call: Any, shape: tuple[int, int], rank: int, generator: Seed) -> None:
    first, again = (_pair(call(shape, rank, generator))[0] for _ in range(2))
    other = _pair(call(shape, rank, Seed(generator + 1)))[0]
    demand(np.array_equal(first, again), "with the same generator A must be the same")
    demand(not np.array_equal(first, other), "A does not come from the generator that was given")


def _pair(found: Any) -> tuple[Any, Any]:
    demand(isinstance(found, tuple | list) and len(found) == 2, "it must return the pair A, B")
    return found[0], found[1]


_SMALL = st.tuples(st.tuples(SIDES, SIDES), SIDES, SEEDS)
_WIDE = st.tuples(st.tuples(st.integers(30, 40), st.integers(150, 200)), st.integers(30, 40), SEEDS)
NOOP = Exercise(
    id="08-noop",
    minutes=10,
    importance=4,
    reference=fresh,
    wheats=(fresh, fresh_scaled),
    properties=(
        Property("shapes and float32", _SMALL, law=right_shapes),
        Property("the update is 0", _SMALL, law=no_update),
        Property("A is uniform up to the bound", _WIDE, law=uniform),
        Property("drawn from the generator that is given", _WIDE, law=by_its_generator),
    ),
    chaffs=(
        Chaff(
            "A and B both zero",
            lambda shape, rank, g: (np.zeros((rank, shape[1]), np.float32), np.zeros((shape[0], rank), np.float32)),
            "A is uniform up to the bound",
            "Then both gradients are zero as well, for each is multiplied by the other: it never learns.",
        ),
        Chaff(
            "B not zero",
            lambda shape, rank, g: (fresh(shape, rank, g)[0], fresh((rank, shape[0]), rank, g)[0].T[:, :rank].copy()),
            "the update is 0",
            "At the start the model must be the base.",
        ),
        Chaff(
            "shapes the wrong way round",
            lambda shape, rank, g: (fresh(shape, rank, g)[0].T.copy(), np.zeros((rank, shape[0]), np.float32)),
            "shapes and float32",
            "B A must be (out, in), and x A^T has rank numbers.",
        ),
        Chaff(
            "the bound from out",
            lambda shape, rank, g: (
                fresh((shape[1], shape[0]), rank, g)[0].shape
                and (
                    g.uniform(-(shape[0] ** -0.5), shape[0] ** -0.5, (rank, shape[1])).astype(np.float32),
                    np.zeros((shape[0], rank), np.float32),
                )
            ),
            "A is uniform up to the bound",
            "A meets the input: how many of its numbers are added up?",
        ),
        Chaff(
            "normal instead of uniform",
            lambda shape, rank, g: (
                (g.normal(size=(rank, shape[1])) / math.sqrt(3 * shape[1])).astype(np.float32),
                np.zeros((shape[0], rank), np.float32),
            ),
            "A is uniform up to the bound",
            "PEFT draws A with kaiming_uniform and a = sqrt(5), which is uniform.",
        ),
        Chaff(
            "a generator of its own",
            lambda shape, rank, g: fresh(shape, rank, np.random.default_rng(0)),
            "drawn from the generator that is given",
            "Two adapters would begin alike, and a seed would change nothing.",
        ),
    ),
    hints=("B is all that makes the update zero; A must not be zero, or nothing ever learns.",),
    read="tinyllm.lora.layer.Adapter",
)

# ------------------------------------------------------------------------------------------------ 08-definition

Array = np.ndarray


def lora_row(x: Array, W: Array, A: Array, B: Array, alpha: float) -> Array:
    n_out, n_in = W.shape
    rank = len(A)
    h = [sum(A[k, j] * x[j] for j in range(n_in)) for k in range(rank)]
    y = np.zeros(n_out)
    for i in range(n_out):
        base = sum(W[i, j] * x[j] for j in range(n_in))
        y[i] = base + alpha / rank * sum(B[i, k] * h[k] for k in range(rank))
    return y


def lora_row_folded(x: Array, W: Array, A: Array, B: Array, alpha: float) -> Array:
    return (W + alpha / A.shape[0] * (B @ A)) @ x


def lora_row_size(x: Array, W: Array, A: Array, B: Array, alpha: float) -> Array:
    return abs(W) @ abs(x) + alpha / len(A) * (abs(B) @ (abs(A) @ abs(x)))


def _scaled(scale: Any) -> Any:
    def wrong(x: Array, W: Array, A: Array, B: Array, alpha: float) -> Array:
        return W @ x + scale(alpha, A, B) * (B @ (A @ x))

    return wrong


@st.composite
def layers(draw: Any, ranks: Any = SIDES) -> tuple:
    n_out, n_in, rank = draw(SIDES), draw(SIDES), draw(ranks)
    arrays = [draw(whole(shape)) for shape in ((n_in,), (n_out, n_in), (rank, n_in), (n_out, rank))]
    return (*arrays, float(draw(st.integers(1, 16))))


@st.composite
def narrow(draw: Any) -> tuple:
    """Rank above both sides, and one input or one output."""
    n_out, n_in = draw(st.sampled_from([(1, 1), (1, 3), (3, 1), (2, 2)]))
    arrays = [draw(whole(shape)) for shape in ((n_in,), (n_out, n_in), (5, n_in), (n_out, 5))]
    return (*arrays, float(draw(st.integers(1, 16))))


TENSORRT = "rasbt #821, #1079, #1080; minimind #577"
DEFINITION = Exercise(
    id="08-definition",
    minutes=15,
    importance=5,
    reference=lora_row,
    wheats=(lora_row, lora_row_folded),
    size=lora_row_size,
    properties=(
        Property("the definition, at rank 1", layers(st.just(1))),
        Property("the definition, at any rank", layers(), points=2),
        Property("a rank above both sides", narrow()),
    ),
    chaffs=(
        Chaff(
            "alpha without rank",
            _scaled(lambda alpha, A, B: alpha),
            "the definition, at any rank",
            "The scale is alpha over the rank. Which side of A is the rank?",
            TENSORRT,
        ),
        Chaff(
            "alpha over the root of the rank",
            _scaled(lambda alpha, A, B: alpha / math.sqrt(len(A))),
            "the definition, at any rank",
            "That is rsLoRA, another method. LoRA divides by the rank itself.",
            "TensorRT-LLM #1668, where the root was forgotten",
        ),
        Chaff(
            "no scale at all",
            _scaled(lambda alpha, A, B: 1.0),
            "the definition, at rank 1",
            "alpha is given for something.",
        ),
        Chaff(
            "alpha over the number of inputs",
            _scaled(lambda alpha, A, B: alpha / A.shape[1]),
            "the definition, at rank 1",
            "A is (rank, in): its first side is the rank.",
        ),
        Chaff(
            "the base scaled as well",
            lambda x, W, A, B, alpha: alpha / len(A) * ((W + B @ A) @ x),
            "the definition, at rank 1",
            "Only the update is scaled; W x stands beside it as it was.",
        ),
    ),
    hints=("First A x, which has rank numbers; then B of that.",),
    variants=(
        Variant(
            "The scale is alpha over the *root* of the rank (rank-stabilised LoRA).",
            _scaled(lambda alpha, A, B: alpha / math.sqrt(len(A))),
            lambda x, W, A, B, alpha: (W + alpha * len(B.T) ** -0.5 * (B @ A)) @ x,
        ),
        Variant(
            "The base is halved: the output is W x / 2 and the update, whose scale stays as it is.",
            lambda x, W, A, B, alpha: lora_row(x, W / 2, A, B, alpha),
            lambda x, W, A, B, alpha: lora_row_folded(x, W / 2, A, B, alpha),
        ),
    ),
    read="tinyllm.lora.layer.lora_update",
    emptied=("tinyllm.lora.layer.lora_update", "tinyllm.lora.layer.lora_fold"),
)

# ------------------------------------------------------------------------------------------------ 08-count

Shapes = dict[str, tuple[int, int]]


def trained(shapes: Shapes, rank: int, targets: list[str]) -> int:
    total = 0
    for target in targets:
        if not any(path.split(".")[-1] == target for path in shapes):
            raise ValueError(target)
    for path, (n_out, n_in) in shapes.items():
        if path.split(".")[-1] in targets:
            total += rank * (n_in + n_out)
    return total


def trained_by_names(shapes: Shapes, rank: int, targets: list[str]) -> int:
    found: dict[str, int] = {}
    for path, shape in shapes.items():
        last = path.rpartition(".")[2]
        found[last] = found.get(last, 0) + rank * sum(shape)
    missing = [t for t in targets if t not in found]
    if missing:
        raise ValueError(f"no layer is called {missing}")
    return sum(found[t] for t in set(targets))


def _counted(matches: Any, of_one: Any = lambda rank, shape: rank * sum(shape), strict: bool = True) -> Any:
    def wrong(shapes: Shapes, rank: int, targets: list[str]) -> int:
        for target in targets if strict else ():
            if not any(matches(path, target) for path in shapes):
                raise ValueError(target)
        return sum(of_one(rank, s) for path, s in shapes.items() if any(matches(path, t) for t in targets))

    return wrong


def _last(path: str, target: str) -> bool:
    return path.split(".")[-1] == target


NAMES = ("q_proj", "k_proj", "o_proj", "up_proj", "group_proj")


@st.composite
def models(draw: Any, missing: bool = False) -> tuple[Shapes, int, list[str]]:
    here = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=4, unique=True))
    depth = draw(st.integers(1, 2))
    shapes = {
        f"layers.{i}.mlp.{n}": (draw(st.integers(1, 9)), draw(st.integers(1, 9))) for i in range(depth) for n in here
    }
    targets = draw(st.lists(st.sampled_from(here), min_size=0 if missing else 1, max_size=3, unique=True))
    if missing:
        targets.insert(draw(st.integers(0, len(targets))), draw(st.sampled_from(["v_proj", "proj", "layers"])))
    return shapes, draw(st.integers(1, 8)), targets


COUNT = Exercise(
    id="08-count",
    minutes=10,
    importance=3,
    reference=trained,
    wheats=(trained, trained_by_names),
    properties=(
        Property("every layer of a target's name", models(), points=2),
        Property("a name that matches no layer", models(missing=True)),
    ),
    chaffs=(
        Chaff(
            "lands nowhere, silently",
            _counted(_last, strict=False),
            "a name that matches no layer",
            "An adapter that lands nowhere trains, and changes nothing. Who says so?",
            "signet-trainer #105, vllm #39278, alpaca-lora #357",
        ),
        Chaff(
            "a part of the name is enough",
            _counted(lambda path, target: target in path),
            "a name that matches no layer",
            "“proj” is the last name of no layer, and “up_proj” is not “group_proj”.",
        ),
        Chaff(
            "the end of the name is enough",
            _counted(lambda path, target: path.endswith(target)),
            "every layer of a target's name",
            "“group_proj” ends with “up_proj”. Compare the whole last name.",
        ),
        Chaff(
            "the whole matrix",
            _counted(_last, lambda rank, shape: shape[0] * shape[1]),
            "every layer of a target's name",
            "W is frozen. A is (rank, in), B is (out, rank).",
        ),
        Chaff(
            "out times in times rank",
            _counted(_last, lambda rank, shape: rank * shape[0] * shape[1]),
            "every layer of a target's name",
            "That is how many products there are, not how many numbers: A and B are two matrices beside each other.",
        ),
        Chaff(
            "A alone",
            _counted(_last, lambda rank, shape: rank * shape[1]),
            "every layer of a target's name",
            "B trains as well.",
        ),
    ),
    hints=('The last name of a path is path.split(".")[-1].',),
    read="tinyllm.lora.targets.resolve_targets",
)

EXERCISES = (NOOP, DEFINITION, COUNT)
