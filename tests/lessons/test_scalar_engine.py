"""Two engines, one mathematics: random graphs in the scalar engine of lesson 1 and in tinyllm agree.

The lesson's class and functions are taken out of its file and run alone, so that the test does not train a model.
"""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyllm.tensor import Tensor, op

LESSON = Path(__file__).parents[2] / "tutorials" / "01_which_way.py"


def parts(*names):
    """Classes and functions of the lesson, by name."""
    body = [node for node in ast.parse(LESSON.read_text("utf-8")).body if getattr(node, "name", None) in names]
    assert [node.name for node in body] == list(names)
    space = {"np": np}
    exec(compile(ast.Module(body, []), LESSON.name, "exec"), space)
    return [space[name] for name in names]


Number, inputs_first, backward = parts("Number", "inputs_first", "backward")
numbers = st.floats(-2, 2, allow_nan=False, width=32)


@st.composite
def programs(draw):
    """Inputs, and steps (operation, operand, operand) whose operands are earlier results."""
    inputs = draw(st.lists(numbers, min_size=1, max_size=4))
    steps = []
    for i in range(draw(st.integers(1, 14))):
        earlier = st.integers(0, len(inputs) + i - 1)
        steps.append((draw(st.sampled_from(["add", "sub", "mul", "div", "exp", "tanh"])), draw(earlier), draw(earlier)))
    return inputs, steps


def run(values, steps, one):
    """Play a program; tanh before exp, and 1 + b * b under a division, keep every number finite and tame."""
    for name, i, j in steps:
        a, b = values[i], values[j]
        if name == "add":
            y = a + b
        elif name == "sub":
            y = a - b
        elif name == "mul":
            y = a.tanh() * b
        elif name == "div":
            y = a / (one + b * b)
        elif name == "exp":
            y = a.tanh().exp()
        else:
            y = a.tanh()
        values.append(y)
    return values[-1]


def path_sums(result):
    """For every number, the sum over paths of |product of derivatives|: the scale rounding errors live on."""
    sums = {result: 1.0}
    for number in reversed(inputs_first(result)):
        for parent, derivative in number.parents:
            sums[parent] = sums.get(parent, 0.0) + abs(derivative) * sums[number]
    return sums


def sizes(result):
    """For every number, the sum of the magnitudes that were added up to make it."""
    found = {}
    for number in inputs_first(result):
        through = sum(abs(derivative) * found[parent] for parent, derivative in number.parents)
        found[number] = abs(number.value) + through
    return found


@given(programs())
def test_values_and_gradients_are_those_of_the_scalar_engine(program):
    inputs, steps = program
    scalars = [Number(v) for v in inputs]
    tensors = [Tensor(np.array(v, np.float64), requires_grad=True) for v in inputs]
    expected = run(list(scalars), steps, Number(1.0))
    y = run(list(tensors), steps, Tensor(np.array(1.0)))
    assert abs(y.item() - expected.value) <= 1e-12 * sizes(expected)[expected]

    backward(expected)
    y.backward()
    scale = path_sums(expected)
    condition = max(1.0, max(sizes(expected).values()))
    for scalar, tensor in zip(scalars, tensors, strict=True):
        if scalar not in scale:
            assert tensor.grad is None  # no path leads there
        else:
            assert abs(tensor.grad - scalar.grad) <= 1e-12 * condition * scale[scalar]


def test_a_wrong_derivative_is_noticed(monkeypatch):
    def tanh(a):  # planted: 1 - y instead of 1 - y * y
        y = np.tanh(a.data)
        return op(y, (a, lambda g: g * (1 - y)))

    law = test_values_and_gradients_are_those_of_the_scalar_engine.hypothesis.inner_test
    program = ([0.5, 1.5], [("mul", 0, 1), ("add", 2, 0)])
    law(program)
    monkeypatch.setattr(Tensor, "tanh", tanh)
    with pytest.raises(AssertionError):
        law(program)
