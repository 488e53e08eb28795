"""The graph's picture with names, values and gradients: what stands in a box is what the engine computes."""

from __future__ import annotations

import re
from html import unescape

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinyllm
from tinyllm import Parameter, Tensor, checkpoint, graph_svg
from tinyllm import functional as F
from tinyllm.autograd import topological
from tinyllm.inspect.gradients import gradients
from tinyllm.models import DecoderModel

IDS = np.arange(6).reshape(1, 6)
numbers = st.floats(-3, 3).map(lambda x: round(x, 3))


def boxes(picture: str) -> list[str]:
    return [unescape(text) for text in re.findall(r">([^<>]+)</text>", picture)]


def number(x: float) -> Parameter:
    return Parameter(np.asarray(x, np.float64))


@given(numbers, numbers)
def test_a_graph_of_numbers_shows_names_values_and_gradients(x, y):
    a, b = number(x), number(y)
    product = a * b
    shown = boxes(graph_svg(product + a, names={"a": a, "b": b, "a * b": product}, values=True))
    assert sorted(shown) == sorted([
        f"a = {x:.4g}, grad {y + 1:.4g}", f"b = {y:.4g}, grad {x:.4g}", f"a * b: mul = {x * y:.4g}, grad 1",
        f"add = {x * y + x:.4g}, grad 1",
    ])  # fmt: skip


def test_a_result_in_between_without_a_name_has_a_gradient_and_no_value():
    a = number(2.0)
    shown = boxes(graph_svg((a * a).exp(), values=True))
    assert shown == ["number = 2, grad 218.4", "mul, grad 54.6", "exp = 54.6, grad 1"]


def test_names_alone_write_no_numbers():
    a, w = number(2.0), Parameter(np.ones((3, 4)))
    shown = boxes(graph_svg((w * a).sum(), names={"a": a, "w": w}))
    assert shown == ["w 3x4", "a one number", "mul", "sum"]


def test_arrays_keep_their_shape_among_numbers():
    a, w = number(2.0), Parameter(np.ones((3, 4)))
    shown = boxes(graph_svg((w * a).sum(), names={"a": a, "w": w}, values=True))
    assert shown == ["w 3x4", "a = 2, grad 12", "mul", "sum = 24, grad 1"]


def test_names_are_text_in_the_picture():
    a = number(1.0)
    picture = graph_svg(a * a, names={"<b> & 'c'": a}, values=True)
    assert "<b>" not in picture and boxes(picture)[0] == "<b> & 'c' = 1, grad 2"


def model_loss(model: DecoderModel) -> Tensor:
    return F.cross_entropy(model(IDS), IDS)


def test_the_gradient_of_every_leaf_is_what_backward_leaves_there_and_the_graph_still_serves():
    model = DecoderModel(11, 8, 2, 2, seed=0, dtype=np.float64)
    model_loss(model).backward()
    expected = {name: p.grad.tobytes() for name, p in model.named_parameters()}
    model.zero_grad()
    loss = model_loss(model)
    nodes = topological(loss.node)
    found = gradients(loss)
    assert found.keys() == set(nodes) and all(p.grad is None for p in model.parameters())
    leaves = {name: np.ascontiguousarray(found[p.node]).tobytes() for name, p in model.named_parameters()}
    assert leaves == expected
    loss.backward()
    assert {name: p.grad.tobytes() for name, p in model.named_parameters()} == expected


def test_the_gradient_in_between_is_that_of_a_leaf_in_its_place():
    rng = np.random.default_rng(0)
    x, w = Parameter(rng.standard_normal((3, 4))), Parameter(rng.standard_normal((4, 4)))
    u = rng.standard_normal((3, 4))

    def rest(h: Tensor) -> Tensor:
        return (F.softmax(h @ w) * h.tanh() * u).sum()  # h is used twice

    h = x.exp()
    found = gradients(rest(h))
    leaf = Parameter(h.data)
    rest(leaf).backward()
    np.testing.assert_array_equal(found[h.node], leaf.grad)


def test_the_walk_is_the_one_in_use():
    def backwards(xp, g, y):
        return -g

    x = Parameter(np.arange(3.0))
    with tinyllm.use(softmax_backward=backwards):
        np.testing.assert_array_equal(gradients((F.softmax(x) * np.arange(3.0)).sum())[x.node], -np.arange(3.0))


@pytest.mark.parametrize(
    "wrong, error, words",
    [
        (lambda a: graph_svg(a * a, names=["a"]), TypeError, "tensors by name"),
        (lambda a: graph_svg(a * a, names={"a": 2.0}), TypeError, "takes a Tensor"),
        (lambda a: graph_svg(a * a, names={"c": Tensor(2.0)}), ValueError, "'c' is not in this graph"),
        (lambda a: graph_svg(a * a, values={"a": a}), TypeError, "names="),
        (lambda a: graph_svg(a * np.ones(3), values=True), ValueError, "one number"),
        (lambda a: graph_svg(checkpoint(lambda x: x * x, a), values=True), ValueError, "without checkpoint"),
        (lambda a: graph_svg(DecoderModel(11, 8, 1, 2).loss(IDS, IDS), values=True), ValueError, "cross_entropy"),
        (lambda a: gradients(Tensor(1.0)), RuntimeError, "no graph"),
    ],
)
def test_a_mistake_is_answered_in_a_sentence(wrong, error, words):
    with pytest.raises(error, match=words) as raised:
        wrong(number(2.0))
    assert "\n" not in str(raised.value)
