"""Backward step by step: the shares add up to what the engine's backward brings, and the graph stays as it was."""

from __future__ import annotations

import numpy as np
import pytest
from figure_cases import broadcast_and_used_twice
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tinyllm import Parameter, Tensor, checkpoint
from tinyllm import functional as F
from tinyllm.autograd import topological
from tinyllm.course.figures import backward_steps
from tinyllm.course.figures.backward import MOST
from tinyllm.inspect.gradients import gradients
from tinyllm.models import DecoderModel

SHAPES = ((), (3,), (1, 3), (2, 1), (2, 3), (2, 1, 3))
# Which operation, and the places of its inputs among the leaves and results so far.
programs = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 99), st.integers(0, 99)), min_size=1, max_size=12)


def calculated(program: list[tuple[int, int, int]]) -> tuple[Tensor, list[Tensor]]:
    """A loss from leaves that broadcast to one another, and the leaves; not all of them need lead to it."""
    rng = np.random.default_rng(len(program))
    leaves = [Parameter(rng.uniform(-1, 1, shape)) for shape in SHAPES]
    found: list[Tensor] = [*leaves]
    for kind, i, j in program:
        a, b = found[i % len(found)], found[j % len(found)]
        found.append((a + b, a - b, a * b, a.tanh(), a.exp() * 0.1, F.softmax(a) if a.ndim else -a)[kind])
    return (found[-1] * leaves[0]).sum() + found[-1].mean(), leaves


def by_shares(loss: Tensor) -> dict:
    """The walk, written down once more: in the engine's order every rule is called, and what it gives is summed up."""
    whole = {loss.node: np.ones(loss.shape)}
    given: dict = {node: [] for node in topological(loss.node)}
    for node in topological(loss.node)[::-1]:
        for sources, rule in node.edges:
            (source,) = sources
            if source is None:
                continue
            part = rule(whole[node])
            spare = tuple(range(part.ndim - len(source.shape)))
            part = part.sum(axis=spare) if spare else part
            thin = tuple(i for i, n in enumerate(source.shape) if n == 1 and part.shape[i] != 1)
            part = part.sum(axis=thin, keepdims=True) if thin else part
            given[source].append(np.array(part))
            whole[source] = whole[source] + part if source in whole else part
    return given


@settings(max_examples=150, deadline=None)
@given(programs)
@example([(2, 4, 4), (2, 6, 4), (0, 7, 4)])  # one tensor in three operations, and twice in one of them
@example([(2, 0, 5), (0, 6, 3)])  # a single number; over an axis that was set in front and one that was stretched
def test_every_gradient_is_what_backward_brings(program):
    """Exactly: the shares in their order, their sum in between, and what backward leaves in the leaves."""
    loss, leaves = calculated(program)
    order, inner, given = topological(loss.node)[::-1], gradients(loss), by_shares(loss)
    edges = [[n for sources, _ in node.edges for n in sources if n is not None] for node in order]
    names = {f"leaf {i}": x for i, x in enumerate(leaves) if x.node in order}
    steps = backward_steps(loss, names).data["steps"]
    assert all(x.grad is None for x in leaves)
    loss.backward()  # the graph still serves
    for k, (node, step) in enumerate(zip(order, steps, strict=True)):
        assert step["gradient"] == told(inner[node])
        assert [part["to"] for part in step["parts"]] == [order.index(source) for source in edges[k]]
        to_me = [p for s in steps for p in s["parts"] if p["to"] == k]
        assert [pick(p) for p in to_me] == [told(share) for share in given[node]]
        assert [p["first"] for p in to_me] == [i == 0 for i in range(len(to_me))]
    for i, x in enumerate(leaves):
        mine = [s["gradient"] for s in steps if s["own"] == f"leaf {i}"]
        assert mine == ([] if x.grad is None else [told(x.grad)])


def pick(part: dict) -> dict:
    return {key: part[key] for key in ("shape", "numbers", "norm") if key in part}


def told(array: np.ndarray) -> dict:
    shape = str(np.shape(array))
    if np.size(array) <= 12:
        return {"shape": shape, "numbers": np.ravel(array).tolist()}
    return {"shape": shape, "norm": float(np.linalg.norm(array))}


def test_the_case_in_full():
    """mean(tanh(w * x) * w + b), by hand."""
    loss, named = broadcast_and_used_twice()
    w, x = named["w"].data, named["x"].data
    steps = {s["own"]: s for s in backward_steps(loss, named).data["steps"]}
    assert list(steps) == ["mean", "add", "b", "mul", "tanh", "product (mul)", "x", "w"]
    to_mul, to_b = steps["add"]["parts"]
    assert (to_mul["over"], to_b["over"], to_b["shape"]) == ("", "2 rows", "(3,)")
    np.testing.assert_allclose(to_b["numbers"], [1 / 3] * 3, rtol=1e-15)
    slope = w / 6 * (1 - np.tanh(w * x) ** 2)
    to_w, to_x = steps["product (mul)"]["parts"]
    assert (to_w["first"], to_x["first"], to_x["over"], to_x["shape"]) == (False, True, "2 rows", "(1, 3)")
    np.testing.assert_allclose(to_w["numbers"], (slope * x).ravel(), rtol=1e-12)
    np.testing.assert_allclose(to_x["numbers"], (slope * w).sum(0), rtol=1e-12)
    assert steps["w"]["parts"] == [] and steps["w"]["leaf"] and not steps["mul"]["leaf"]


@pytest.mark.parametrize(
    "large, small, over",
    [
        ((4,), (), "4 numbers"),
        ((2, 3), (2, 1), "3 columns"),
        ((2, 3), (1, 3), "2 rows"),
        ((2, 3), (), "2 rows and 3 columns"),
        ((1, 3), (3,), ""),
        ((5, 2, 3), (2, 3), "an axis of 5"),
        ((5, 2, 3), (2, 1), "axes of 5 and 3"),
    ],
)
def test_what_was_summed_over(large, small, over):
    a, b = Parameter(np.ones(large)), Parameter(np.ones(small))
    first, second = backward_steps((a * b).sum()).data["steps"][1]["parts"]
    assert (first["over"], second["over"]) == ("", over)


def test_a_large_gradient_is_told_by_its_norm():
    x = Parameter(np.full(13, 2.0, np.float32))
    step = backward_steps((x * x).sum(), {"x": x}).data["steps"][-1]
    assert step["gradient"] == {"shape": "(13,)", "norm": pytest.approx(4 * 13**0.5)}
    half = Parameter(np.full(2, 2.0, np.float16))
    assert backward_steps((half * half).sum()).data["steps"][-1]["gradient"]["numbers"] == [4, 4]


def test_numbers_that_are_not_finite_are_words():
    x, y = Parameter(np.array([0.0, 1.0])), Parameter(np.array(0.0))
    with np.errstate(all="ignore"):
        figure = backward_steps((x.log() * np.array([0.0, 1.0])).sum() + y.log())
    gradients_of_leaves = [step["gradient"]["numbers"] for step in figure.data["steps"] if step["leaf"]]
    assert sorted(gradients_of_leaves, key=len) == [["inf"], ["nan", 1.0]]
    assert '"nan"' in figure.html


def test_names_come_from_the_model_and_long_ones_are_cut_in_the_box_alone():
    model = DecoderModel(11, 8, 1, 2, seed=0)
    ids = np.arange(6).reshape(1, 6)
    loss = F.cross_entropy(model(ids), ids)
    last = backward_steps(loss, model=model).data["steps"][-1]
    assert last["own"] == last["name"] == "embed_tokens.weight" and last["box"].endswith(" …d_tokens.weight")
    unnamed = backward_steps(loss).data["steps"]
    assert unnamed[-1]["own"] == "a leaf without a name" and unnamed[-1]["name"] == f"the leaf of step {len(unnamed)}"


def used() -> Tensor:
    loss = Parameter(np.ones(2)).sum()
    loss.backward()
    return loss


def chain(n: int) -> Tensor:
    x: Tensor = Parameter(np.ones(()))
    for _ in range(n):
        x = x * 2.0
    return x


@pytest.mark.parametrize(
    "wrong, error, said",
    [
        (lambda: backward_steps(Tensor(1.0)), ValueError, "no graph behind this tensor: calculate it from a Parameter"),
        (lambda: backward_steps(Parameter(1.0)), ValueError, "no graph behind this tensor"),
        (lambda: backward_steps(used()), RuntimeError, "already used by a backward.*run the forward again"),
        (lambda: backward_steps(chain(MOST)), ValueError, "has 121 nodes, and 120 are the most.*fewer layers"),
        (lambda: backward_steps(Parameter(np.ones(2)) * 2), ValueError, r"not of shape \(2,\): take its sum or mean"),
        (lambda: backward_steps(1.0), TypeError, "backward_steps takes a Tensor, not float"),
        (lambda: backward_steps(chain(2), ["x"]), TypeError, "backward_steps: names are tensors by name"),
        (lambda: backward_steps(chain(2), {"x": Tensor(1.0)}), ValueError, "'x' is not in this graph"),
        (lambda: backward_steps(chain(2), model=3), TypeError, "a model is needed here"),
        (lambda: backward_steps(checkpoint(lambda x: x * x, Parameter(2.0))), ValueError, "without checkpoint"),
    ],
)
def test_wrong_use_is_told(wrong, error, said):
    with pytest.raises(error, match=said) as raised:
        wrong()
    assert "\n" not in str(raised.value)


def test_the_largest_graph_fits_into_a_page():
    assert len(backward_steps(chain(MOST - 1)).data["steps"]) == MOST and backward_steps(chain(MOST - 1)).html
