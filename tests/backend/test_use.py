"""`tinyllm.use`: what a replacement returns counts, and what it must not do is told in one sentence that names it."""

from __future__ import annotations

import ast
import functools
import inspect
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_primitives import WAYS

import tinyllm
from tinyllm import functional as F
from tinyllm.backend import BACKENDS, of
from tinyllm.backend.random import manual_seed
from tinyllm.frozen.nf4 import NF4Weight
from tinyllm.models.head import linear_cross_entropy
from tinyllm.optim import AdamW
from tinyllm.tensor import Parameter, Tensor

be = BACKENDS["numpy"]
X = np.random.default_rng(0).standard_normal((4, 6))


def changed(name, change):
    """The primitive, with its result put through `change`; it ignores `out`, as a first try of a learner would."""
    own = be.table[name]

    @functools.wraps(own)
    def replacement(*args):
        y = own(*[None if parameter == "out" else arg for parameter, arg in zip(PARAMETERS[name], args, strict=True)])
        return tuple(map(change, y)) if isinstance(y, tuple) else change(y)

    return replacement


PARAMETERS = {name: list(inspect.signature(f).parameters) for name, f in be.table.items()}
ELSEWHERE = [way for way in WAYS if way.values[0] != "adamw_step"]


def run_twice(run):
    manual_seed(1)
    return run()


@pytest.mark.parametrize("name, run", ELSEWHERE)
def test_a_replacement_that_ignores_out_counts_all_the_same(name, run):
    before = run_twice(run)
    with tinyllm.use(**{name: changed(name, lambda y: y.copy())}):
        same = run_twice(run)
    with tinyllm.use(**{name: changed(name, lambda y: y * 2 if y.dtype.kind == "f" else y)}):
        other = run_twice(run)
    for a, b in zip(same, before, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12 if a.dtype == np.float64 else 1e-5)
    assert not all(np.array_equal(a, b) for a, b in zip(other, before, strict=True))


FAULTS = {
    "nothing": (lambda y: None, TypeError, r"returned .*(nothing \(None\)|a NoneType)"),
    "a list": (lambda y: [1.0, 2.0], TypeError, "returned .*a list"),
    "a Tensor": (lambda y: Tensor(y), TypeError, "returned .*a Tensor"),
    "another shape": (lambda y: np.stack([y, y]), ValueError, "returned .*needed"),
    "another dtype": (lambda y: y.astype("f4" if y.dtype == "f8" else "f8"), TypeError, "returned .*needed"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name, run", ELSEWHERE)
def test_a_replacement_that_returns_something_else_is_named(name, run, fault):
    change, error, words = FAULTS[fault]
    with pytest.raises(error, match=f"the replacement of {name} {words}"), tinyllm.use(**{name: changed(name, change)}):
        run_twice(run)


@pytest.mark.parametrize("name, run", ELSEWHERE)
def test_a_replacement_that_writes_into_its_input_is_named(name, run):
    own = be.table[name]

    @functools.wraps(own)
    def writes(*args):
        for x in args:
            if isinstance(x, np.ndarray) and x.dtype.kind in "fiu":
                x *= 2
        return own(*args)

    if not any(isinstance(x, np.ndarray) for x in given_to(name, run)):
        pytest.skip("it is given no array")
    with pytest.raises(ValueError, match=f"the replacement of {name} writes into its input"):
        with tinyllm.use(**{name: writes}):
            run_twice(run)


def given_to(name, run):
    """The arguments of the first call."""
    found = []
    own = be.table[name]

    @functools.wraps(own)
    def looks(*args):
        found.extend(() if found else args)
        return own(*args)

    with tinyllm.use(**{name: looks}):
        run_twice(run)
    return found


def test_a_replacement_that_returns_its_input_shares_nothing():
    x = Tensor(X.copy(), requires_grad=True)
    with tinyllm.use(matmul=lambda xp, a, b, out=None: a):
        y = F.linear(x, Tensor(np.eye(6)), Tensor(np.ones(6)))  # the bias is added in place
    np.testing.assert_array_equal(y.data, X + 1)
    np.testing.assert_array_equal(x.data, X)


def test_products_and_the_loss_that_ignore_out_train_as_before():
    # What was silent once: gradients many times off, memory that nobody wrote, nothing trained.
    w = NF4Weight.quantize(np.random.default_rng(1).standard_normal((32, 64)).astype(np.float32))
    targets = np.arange(8) % 32

    def gradients(weight):
        x = Tensor(np.random.default_rng(2).standard_normal((8, 64)).astype(np.float32), requires_grad=True)
        loss = linear_cross_entropy(x, weight, targets)
        loss.backward()
        return loss.item(), x.grad

    names = ["matmul", "cross_entropy_backward", "nf4_dequantize"]
    for weight in (w, Parameter(w.dense())):
        loss, gx = gradients(weight)
        with tinyllm.use(**{name: changed(name, lambda y: y.copy()) for name in names}):
            again, gx_again = gradients(weight)
        assert abs(loss - again) <= 1e-5 * loss
        np.testing.assert_allclose(gx_again, gx, rtol=0, atol=1e-6 * np.abs(gx).max() * 64)


# the optimiser's step, which works in place


def stepped(function, g=1.0, lr=0.1, steps=1):
    p = Parameter(np.ones(3))
    optimizer = AdamW([p], lr=lr)
    with tinyllm.use(adamw_step=function):
        for _ in range(steps):
            p.grad = np.full(3, g)
            optimizer.step()
    return p.data


def test_an_own_step_trains():
    def descent(xp, w, g, m, v, step, lr, beta1, beta2, eps, weight_decay):
        w -= lr * g

    np.testing.assert_allclose(stepped(descent, steps=2), 0.8, rtol=1e-15)
    assert (stepped(descent, g=0.0) == 1).all() and (stepped(descent, lr=0.0) == 1).all()  # nothing to do is no fault
    assert (stepped(descent, g=1e-30) == 1).all()  # nor is what rounding takes away


def test_a_step_that_makes_new_arrays_is_told_so():
    def forgets(xp, w, g, m, v, step, lr, beta1, beta2, eps, weight_decay):
        w = w - lr * g

    def returns(xp, w, g, m, v, step, lr, beta1, beta2, eps, weight_decay):
        return w - lr * g

    def writes(xp, w, g, m, v, step, lr, beta1, beta2, eps, weight_decay):
        g *= lr
        w -= g

    with pytest.raises(ValueError, match="adamw_step works in place.*left all three as they were"):
        stepped(forgets)
    with pytest.raises(TypeError, match="adamw_step works in place.*returned a ndarray"):
        stepped(returns)
    with pytest.raises(ValueError, match="the replacement of adamw_step writes into its input"):
        stepped(writes)


# names


def test_a_name_that_is_nearly_one_is_recognised():
    with pytest.raises(ValueError, match=r"no function 'sofmax' to replace; did you mean 'softmax'\?"):
        with tinyllm.use(sofmax=lambda xp, x: x):
            pass


def test_unreplaced_primitives_are_the_functions_themselves():
    with tinyllm.use(sigmoid=lambda xp, x: x * 0):
        assert be.table["softmax"] is be.own["softmax"] and be.table["sigmoid"] is not be.own["sigmoid"]
    assert be.table == be.own and of(X) is be


def test_all_that_can_be_replaced_is_known_from_the_start():
    """A function is known once its module is loaded, and nobody should have to know which that is."""
    package = Path(tinyllm.__file__).parent
    nodes = [node for path in package.rglob("*.py") for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
    marked = {
        node.name
        for node in nodes
        if isinstance(node, ast.FunctionDef)
        and any(isinstance(mark, ast.Name) and mark.id == "replaceable" for mark in node.decorator_list)
    }
    known = "import tinyllm; from tinyllm.backend.table import REPLACEABLE; print(*REPLACEABLE)"
    done = subprocess.run([sys.executable, "-c", known], capture_output=True, text=True, check=True)
    assert marked == set(done.stdout.split()) and len(marked) >= 10
