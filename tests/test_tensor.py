"""The laws of the engine (docs/design.md, section 2), one after the other, on every operation there is."""

from __future__ import annotations

import copy
import gc
import inspect
import itertools
import pickle
import threading
import types
import weakref

import numpy as np
import pytest

from tinyllm import functional as F
from tinyllm import ops
from tinyllm.autograd import Node, topological
from tinyllm.backend import random
from tinyllm.backend.table import Backend
from tinyllm.frozen import Weight
from tinyllm.frozen.half import HalfWeight
from tinyllm.frozen.nf4 import NF4Weight
from tinyllm.inspect.gradcheck import GradientError, gradcheck
from tinyllm.inspect.graph import graph_svg
from tinyllm.inspect.kept import kept
from tinyllm.inspect.rules import cells_of
from tinyllm.lora import apply_lora, get_lora_parameters
from tinyllm.models import DecoderModel
from tinyllm.models.head import linear_cross_entropy
from tinyllm.nn import Linear, Module
from tinyllm.optim import AdamW
from tinyllm.tensor import (
    Parameter,
    Tensor,
    checkpoint,
    enable_grad,
    is_grad_enabled,
    no_grad,
    op,
    wants_grad,
)

EPS = np.finfo(np.float64).eps


def normal(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


def positive(*shape, seed=0):
    return 0.5 + np.random.default_rng([seed, *shape]).random(shape)


MASK = np.array([[True, False, True], [False, False, True]])
IDS = np.array([[2, 0], [2, 3]])
TARGETS = np.array([1, -100, 4, 0])
COS, SIN = np.cos(normal(1, 1, 3, 2)), np.sin(normal(1, 1, 3, 2))
HALF = HalfWeight.quantize(normal(5, 4).astype(np.float32), "bfloat16")
NF4 = NF4Weight.quantize(normal(6, 32).astype(np.float32), block_size=64)

# operation: (function, inputs, what each input's rule keeps). An input is a shape or an array. "0", "1", "2" are the
# inputs, "y" is the result, and a number is so many bytes of something else.
X = (2, 3)
CASES = {
    "add": (ops.add, [X, (3,)], ["", ""]),
    "sub": (ops.sub, [X, (2, 1)], ["", ""]),
    "mul": (ops.mul, [X, (3,)], ["1", "0"]),
    "div": (ops.div, [X, positive(1, 3)], ["1", "0 1"]),
    "neg": (ops.neg, [X], [""]),
    "power": (lambda a: ops.power(a, 3), [X], ["0"]),
    "exp": (ops.exp, [X], ["y"]),
    "log": (ops.log, [positive(2, 3)], ["0"]),
    "tanh": (ops.tanh, [X], ["y"]),
    "sigmoid": (ops.sigmoid, [X], ["y"]),
    "sqrt": (ops.sqrt, [positive(2, 3)], ["y"]),
    "power by a tensor": (ops.power, [positive(2, 3), (3,)], ["0 1", "0 y"]),
    "power of a number": (lambda p: ops.power(2.0, p), [X], ["y number"]),
    "abs": (ops.abs, [X], ["0"]),
    "square": (ops.square, [X], ["0"]),
    "expm1": (ops.expm1, [X], ["y"]),
    "log1p": (ops.log1p, [positive(2, 3)], ["0"]),
    "sin": (ops.sin, [X], ["0"]),
    "cos": (ops.cos, [X], ["0"]),
    "where": (lambda a, b: ops.where(MASK, a, b), [X, (3,)], [MASK.nbytes, MASK.nbytes]),
    "maximum": (ops.maximum, [X, (2, 1)], ["0 1", "0 1"]),
    "minimum": (ops.minimum, [X, (2, 1)], ["0 1", "0 1"]),
    "clip": (lambda a: ops.clip(a, -0.5, 0.5), [X], ["0 bounds"]),
    "matmul": (ops.matmul, [(2, 4, 3), (3, 5)], ["1", "0"]),
    "matmul of vectors": (ops.matmul, [(3,), (3,)], ["1", "0"]),
    "einsum": (lambda a, b: ops.einsum("bij,jk->bk", a, b), [(2, 4, 3), (3, 5)], ["1", "0"]),
    "reshape": (lambda a: ops.reshape(a, 3, 2), [X], [""]),
    "transpose": (lambda a: ops.transpose(a, 2, 0, 1), [(2, 3, 4)], [""]),
    "swapaxes": (lambda a: ops.swapaxes(a, 0, 1), [X], [""]),
    "getitem": (lambda a: a[:, 1:], [X], [""]),
    "getitem by array": (lambda a: a[IDS], [(4, 3)], [IDS.nbytes]),
    "concatenate": (lambda a, b: ops.concatenate([a, b], axis=1), [X, (2, 1)], ["", ""]),
    "split": (lambda a: ops.split(a, [1, 2])[1], [X], [""]),
    "sum": (lambda a: ops.sum(a, axis=1), [X], [""]),
    "mean": (lambda a: ops.mean(a, axis=0, keepdims=True), [X], [""]),
    "max": (lambda a: ops.max(a, axis=1), [X], ["0 y"]),
    "min": (lambda a: ops.min(a, axis=1), [X], ["0 y"]),
    "var": (lambda a: ops.var(a, axis=1), [X], ["0"]),
    "std": (lambda a: ops.std(a, axis=1), [X], ["0 y"]),
    "prod": (lambda a: ops.prod(a, axis=1), [X], ["0"]),
    "cumsum": (lambda a: ops.cumsum(a, axis=1), [X], [""]),
    "squeeze": (lambda a: ops.squeeze(a, 1), [(2, 1, 3)], [""]),
    "expand_dims": (lambda a: ops.expand_dims(a, 1), [X], [""]),
    "flip": (lambda a: ops.flip(a, 1), [X], [""]),
    "stack": (lambda a, b: ops.stack([a, b], axis=1), [X, X], ["", ""]),
    "astype": (lambda a: ops.astype(a, np.float64), [X], [""]),
    "softmax": (F.softmax, [X], ["y"]),
    "log_softmax": (F.log_softmax, [X], ["y"]),
    "gelu": (F.gelu, [X], ["0"]),
    "gelu by tanh": (lambda a: F.gelu(a, approximate=True), [X], ["0"]),
    "silu": (F.silu, [X], ["0"]),
    "silu_mul": (F.silu_mul, [X, X], ["0 1", "0 1"]),
    "rms_norm": (F.rms_norm, [X, (3,)], ["1 y inverse", "1 y"]),
    "layer_norm": (F.layer_norm, [X, (3,), (3,)], ["0 1 mean inverse", "0 mean inverse", ""]),
    "rope": (lambda a: F.rope(a, COS, SIN), [(2, 2, 3, 4)], [COS.nbytes + SIN.nbytes]),
    "attention": (F.attention, [(2, 4, 3, 2), (2, 2, 3, 2), (2, 2, 3, 2)], ["0 1 2", "0 1 2", "0 1 2"]),
    "embedding": (lambda w: F.embedding(w, IDS), [(4, 3)], [IDS.nbytes]),
    "dropout": (lambda a: F.dropout(a, 0.4), [(5, 7)], [""]),
    "linear": (F.linear, [(2, 4, 3), (5, 3), (5,)], ["1", "0", ""]),
    "cross_entropy": (lambda a: F.cross_entropy(a, TARGETS), [(4, 5)], ["0 targets lse"]),
    "linear_cross_entropy": (
        lambda x, w: linear_cross_entropy(x, w, TARGETS),
        [(4, 3), (5, 3)],
        ["gradient0", "gradient1"],
    ),
    "linear, bfloat16": (lambda x, b: F.linear(x, HALF, b), [(2, 4), (5,)], ["half", ""]),
    "linear, NF4": (lambda x, b: F.linear(x, NF4, b), [(2, 32), (6,)], ["nf4", ""]),
}
EXTRA = {
    "inverse": 2 * 8,
    "number": 8,
    "bounds": 2 * 8,
    "mean": 2 * 8,
    "targets": TARGETS.nbytes,
    "lse": 4 * 8,
    "half": HALF.nbytes,
    "nf4": NF4.nbytes,
}
HELPERS = {"pair", "alike", "is_number", "floats", "compare", "axis_of"}
HELPERS |= {"count_live", "live_targets", "check_targets", "check_dtypes", "check_shape"}
every_operation = pytest.mark.parametrize("name", CASES)


def inputs_of(name, needs=None, dtype=np.float64):
    arrays = [normal(*a, seed=i) if isinstance(a, tuple) else a for i, a in enumerate(CASES[name][1])]
    needs = needs or [True] * len(arrays)
    return [Tensor(a.astype(dtype), requires_grad=need) for a, need in zip(arrays, needs, strict=True)]


def call(name, tensors):
    random.manual_seed(3)
    return CASES[name][0](*tensors)


def subsets(name):
    return list(itertools.product([False, True], repeat=len(CASES[name][1])))


def rules_behind(y):
    return [rule for node in topological(y.node) for _, rule in node.edges]


def test_every_operation_stands_in_the_table():
    public = {
        name
        for module in (ops.arithmetic, ops.shapes, ops.reductions, ops.products, F)
        for name, thing in vars(module).items()
        if inspect.isfunction(thing) and thing.__module__ == module.__name__ and not name.startswith("_")
    }
    assert public - HELPERS == public & set(CASES)


# 1. `op` alone decides


@every_operation
def test_what_is_kept_depends_on_who_needs_a_gradient(name):
    for needs in subsets(name):
        tensors = inputs_of(name, needs)
        y = call(name, tensors)
        sizes = {str(i): t.data.nbytes for i, t in enumerate(tensors)} | {"y": y.data.nbytes} | EXTRA
        sizes |= {f"gradient{i}": t.data.nbytes for i, t in enumerate(tensors)}
        things = set()
        for what, need in zip(CASES[name][2], needs, strict=True):
            if need:
                things |= set(what.split()) if isinstance(what, str) else {what}
        assert kept(y).total == sum(sizes.get(thing, thing) for thing in things)
        assert y.requires_grad == any(needs)


@every_operation
def test_frozen_inputs_get_no_gradient_and_change_no_other(name):
    everything = inputs_of(name)
    y = call(name, everything)
    g = normal(*y.shape, seed=9)
    y.backward(g)
    for needs in subsets(name)[1:]:
        some = inputs_of(name, needs)
        y = call(name, some)
        y.backward(g)
        for a, b, need in zip(some, everything, needs, strict=True):
            assert (a.grad.tobytes() == b.grad.tobytes()) if need else a.grad is None


@every_operation
def test_nothing_is_recorded_under_no_grad(name):
    with no_grad():
        assert not is_grad_enabled()
        y = call(name, inputs_of(name))
        assert not y.requires_grad and kept(y).total == 0
        with enable_grad():
            assert call(name, inputs_of(name)).requires_grad
    assert is_grad_enabled()


def test_no_grad_ends_with_an_error_too():
    with pytest.raises(KeyError), no_grad():
        raise KeyError
    assert is_grad_enabled()


def test_wants_grad_is_whether_op_would_record():
    a, frozen = Tensor([1.0], requires_grad=True), Tensor([1.0])
    assert wants_grad(frozen, a) and not wants_grad(frozen)
    with no_grad():
        assert not wants_grad(a)


# 2. Rules name arrays, shapes, the backend and frozen weights


def check_named(value, where):
    assert not isinstance(value, Tensor | Module | Node), f"{where} names a {type(value).__name__}"
    if isinstance(value, types.FunctionType):  # a helper of the rule may be named if it names nothing forbidden
        for name, inner in cells_of(value):
            check_named(inner, f"{where}.{name}")
    elif isinstance(value, tuple | list):
        for inner in value:
            check_named(inner, where)
    else:
        allowed = (np.ndarray, np.generic, np.dtype, type, int, float, str, slice, type(None), type(...))
        assert isinstance(value, (*allowed, Weight, Backend, types.ModuleType)), f"{where} names {value!r}"


@every_operation
def test_rules_name_no_tensor_and_no_module(name):
    for rule in rules_behind(call(name, inputs_of(name))):
        assert rule.__closure__ is None or "self" not in rule.__code__.co_freevars
        for cell, value in cells_of(rule):
            check_named(value, f"{rule.__qualname__}: {cell}")


def test_a_rule_that_names_a_tensor_is_noticed():
    a = Tensor([1.0], requires_grad=True)
    y = op(a.data * 2, (a, lambda g: g * a.data))
    with pytest.raises(AssertionError, match="names a Tensor"):
        check_named(dict(cells_of(rules_behind(y)[0]))["a"], "a")


def test_rules_of_a_whole_model_name_no_tensor():
    model = DecoderModel(vocab_size=11, hidden_size=8, num_layers=1, num_heads=2)
    for rule in rules_behind(model.loss(np.arange(6).reshape(1, 6), np.arange(6).reshape(1, 6))):
        for cell, value in cells_of(rule):
            check_named(value, f"{rule.__qualname__}: {cell}")


# 3. Rules write into nothing they are given


@every_operation
def test_rules_write_neither_into_g_nor_into_inputs(name):
    tensors = inputs_of(name)
    before = [t.data.tobytes() for t in tensors]
    for t in tensors:
        t.data.flags.writeable = False
    y = call(name, tensors)
    g = np.asarray(normal(*y.shape, seed=9))
    bits = g.tobytes()
    g.flags.writeable = False
    y.backward(g)
    assert g.tobytes() == bits and [t.data.tobytes() for t in tensors] == before
    for t in tensors:
        assert not np.shares_memory(t.grad, g) and t.grad.flags.writeable


def test_a_gradient_that_several_inputs_share_is_not_mixed_up():
    # add hands the very same g to both; each must end in a buffer of its own
    a, b = Tensor(normal(3), requires_grad=True), Tensor(normal(3), requires_grad=True)
    c = a + b
    ((c + a) + (c * 2.0)).backward(np.ones(3))
    assert (a.grad == 4).all() and (b.grad == 3).all() and not np.shares_memory(a.grad, b.grad)


def test_backward_adds_to_what_is_there_and_keeps_the_callers_array():
    a = Tensor(normal(3), requires_grad=True)
    g = np.ones(3)
    for _ in range(3):
        (a * 1.0).backward(g)
    a.grad += 1
    assert (a.grad == 4).all() and (g == 1).all()


# 4. The graph


@every_operation
def test_no_reference_cycles(name):
    gc.collect()
    gc.disable()
    try:
        for use in (False, True):
            tensors = inputs_of(name)
            y = call(name, tensors)
            seen = [weakref.ref(node) for node in topological(y.node)] + [weakref.ref(t) for t in tensors]
            if use:
                y.backward(np.ones_like(y.data))
            del y, tensors
            assert [ref() for ref in seen] == [None] * len(seen)
    finally:
        gc.enable()


@pytest.mark.parametrize("depth", [20_000])
def test_deep_graphs(depth):
    x = Tensor(np.array(1.0), requires_grad=True)
    y = x
    for _ in range(depth):
        y = y + 1.0
    y.backward()
    assert x.grad == 1.0
    y = x
    for _ in range(depth):
        y = y + 1.0
    del y  # dropping a graph that was never used must not recurse either


def test_a_graph_of_exponentially_many_paths_takes_linear_time():
    x = Tensor(np.array(1.0), requires_grad=True)
    y = x
    for _ in range(60):
        y = y + y
    y.backward()
    assert x.grad == 2.0**60


def test_nodes_are_freed_while_backward_runs():
    alive = []
    x = Tensor(normal(4), requires_grad=True)
    a = x.exp()
    watched = {}

    def probe_rule(g):
        alive.extend(name for name, ref in watched.items() if ref() is not None)
        return g

    b = op(a.data.copy(), (a, probe_rule))
    c = b.exp()
    d = c.exp()
    watched |= {"c": weakref.ref(c.data), "d": weakref.ref(d.data)}
    loss = d.sum()
    del a, b, c, d
    assert all(ref() is not None for ref in watched.values())
    loss.backward()
    assert alive == []  # what came after the probe was gone when its turn came


def test_an_array_lives_only_as_long_as_a_rule_names_it():
    x = Tensor(normal(4), requires_grad=True)
    middle = x + 1.0
    ref = weakref.ref(middle.data)
    y = (middle + 2.0).sum()
    del middle
    assert ref() is None  # neither add nor sum names it
    y.backward()


def test_a_dropped_leaf_gets_no_gradient_and_does_no_harm():
    x, w = Tensor(normal(3), requires_grad=True), Tensor(normal(3), requires_grad=True)
    y = (x * w).sum()
    del w
    y.backward()
    assert x.grad is not None


# 5. A graph serves once


def test_a_second_backward_raises():
    x = Tensor(normal(3), requires_grad=True)
    y = (x * x).sum()
    y.backward()
    first = x.grad.copy()
    with pytest.raises(RuntimeError, match="already used.*run the forward again"):
        y.backward()
    assert (x.grad == first).all()


def test_a_partly_used_graph_raises_before_anything_is_added():
    x, w = Tensor(normal(3), requires_grad=True), Tensor(normal(3), requires_grad=True)
    shared = x.exp()
    one, two = shared.sum(), (shared * w).sum()
    one.backward()
    first = x.grad.copy()
    with pytest.raises(RuntimeError, match="already used"):
        two.backward()
    assert (x.grad == first).all() and w.grad is None
    with pytest.raises(RuntimeError, match="already used"):
        kept(two)


@pytest.mark.parametrize("combine", [lambda y, h: y * h, lambda y, h: h * y, lambda y, h: y * h.exp()])
def test_a_checkpoint_that_reaches_out_into_the_used_graph_raises(combine):
    # The function names a recorded tensor that is no input, and others use its graph, too: whoever comes second finds
    # it used, and must not go on with half a gradient.
    x, w = Tensor(normal(3), requires_grad=True), Tensor(normal(3), requires_grad=True)
    h = x * w
    y = checkpoint(lambda a: a * h, x)
    with pytest.raises(RuntimeError, match="already used"):
        combine(y, h).sum().backward()


def test_a_checkpoint_that_alone_uses_a_graph_outside_is_right():
    def gradients(run):
        x, w = Tensor(normal(3), requires_grad=True), Tensor(normal(3, seed=1), requires_grad=True)
        h = x * w
        run(lambda a: a * h, x).sum().backward()
        return x.grad.tobytes(), w.grad.tobytes()

    assert gradients(checkpoint) == gradients(lambda function, x: function(x))


@pytest.mark.parametrize("how", ["constant", "frozen", "no_grad", "detached"])
def test_backward_on_what_needs_no_gradient_raises(how):
    x = Tensor(normal(3), requires_grad=how != "frozen")
    with no_grad():
        silent = x.sum()
    y = {"constant": Tensor(1.0), "frozen": x.sum(), "no_grad": silent, "detached": x.sum().detach()}[how]
    with pytest.raises(RuntimeError, match="does not need a gradient"):
        y.backward()


def test_backward_says_what_it_starts_from():
    y = Tensor(normal(3), requires_grad=True) * 2.0
    with pytest.raises(ValueError, match="one number"):
        y.backward()
    with pytest.raises(ValueError, match="shape"):
        y.backward(np.ones(4))
    y.backward(np.ones(3))


# 6. What there is not


def test_requires_grad_is_set_on_leaves_and_on_floats_only():
    with pytest.raises(RuntimeError, match="leaves"):
        (Tensor([1.0], requires_grad=True) * 2.0).requires_grad = False
    with pytest.raises(TypeError, match="int"):
        Tensor(np.arange(3), requires_grad=True)
    x = Parameter([1.0])
    x.requires_grad = False
    assert not (x * 2.0).requires_grad


def test_two_dtypes_are_an_error_and_constants_are_not():
    x = Tensor(np.ones(2, np.float32), requires_grad=True)
    with pytest.raises(TypeError, match="astype"):
        x * Tensor(np.ones(2))
    for y in (x * 2.0, 2.0 * x, x + np.ones(2), np.ones(2) - x, x / 3, 3 / x, x**2, -x):
        assert y.dtype == np.float32
    assert Tensor([0.5]).dtype == np.float32 and Tensor(np.array([0.5])).dtype == np.float64


# 7. One rule over several inputs


def test_a_rule_over_a_tuple_is_told_who_needs_a_gradient():
    asked = []
    a, b, c = Tensor([1.0], requires_grad=True), Tensor([2.0]), Tensor([3.0], requires_grad=True)
    y = op(a.data + b.data + c.data, ((a, b, c), lambda g, needs: asked.append(needs) or (g, None, 2 * g)))
    y.backward()
    assert asked == [(True, False, True)]
    assert a.grad == 1 and b.grad is None and c.grad == 2


# 7b. What a rule returns is looked at where it arrives


def rule_that_returns(value):
    a = Tensor(np.ones((2, 3)), requires_grad=True)
    return a, op(np.ones((2, 3)), (a, lambda g: value))


WRONG = {
    "None": (None, TypeError, r"nothing \(None\)"),
    "a list": ([[1.0] * 3] * 2, TypeError, "a list"),
    "a number": (1.0, TypeError, "a float"),
    "a Tensor": (Tensor(np.ones((2, 3))), TypeError, r"a Tensor of shape \(2, 3\)"),
    "a row": (np.ones(3), ValueError, r"shape \(3,\)"),
    "turned": (np.ones((3, 2)), ValueError, r"shape \(3, 2\)"),
    "one number": (np.float64(1), ValueError, r"shape \(\)"),
    "float32": (np.ones((2, 3), np.float32), TypeError, "dtype float32"),
    "integers": (np.ones((2, 3), int), TypeError, "dtype int64"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_rule_that_returns_no_gradient_of_its_input_is_named(name):
    value, error, words = WRONG[name]
    a, y = rule_that_returns(value)
    with pytest.raises(
        error, match=rf"the rule of rule_that_returns made .*{words}.*of shape \(2, 3\) and dtype float64"
    ):
        (y * 2.0).backward(np.ones((2, 3)))
    assert a.grad is None


@pytest.mark.parametrize("value", [None, np.ones(3), [np.ones(3)] * 2, (np.ones(3),), (np.ones(3),) * 3], ids=str)
def test_a_rule_over_a_tuple_returns_a_tuple_as_long(value):
    a, b = Tensor(np.ones(3), requires_grad=True), Tensor(np.ones(3), requires_grad=True)
    with pytest.raises(TypeError, match="the rule of .* made .*, not a tuple of 2 arrays"):
        op(np.ones(3), ((a, b), lambda g, needs: value)).backward(np.ones(3))
    with pytest.raises(TypeError, match=r"made nothing \(None\) as the gradient"):
        op(np.ones(3), ((a, b), lambda g, needs: (g, None))).backward(np.ones(3))


def test_a_wrong_rule_in_the_middle_of_a_graph_is_named_too():
    x = Tensor(np.ones(3), requires_grad=True)
    middle = x * 2.0
    with pytest.raises(ValueError, match="the rule of test_a_wrong_rule.* shape"):
        op(np.ones(3), (middle, lambda g: g[:2])).backward(np.ones(3))


@pytest.mark.parametrize("shape", [(3,), (2, 1), (1, 3), (1, 1), (), (1, 1, 1), (2, 1, 3)])
def test_a_gradient_is_summed_where_its_input_was_broadcast(shape):
    g = normal(4, 2, 2, 3)
    for make in (lambda a: a, lambda a: a * 1.0):  # a leaf, a result
        a = Tensor(np.ones(shape), requires_grad=True)
        op(np.zeros((4, 2, 2, 3)), (make(a), lambda g: g)).backward(g)
        summed = np.zeros(shape)
        for i in np.ndindex(g.shape):
            summed[tuple(j if n > 1 else 0 for j, n in zip(i[4 - len(shape) :], shape, strict=True))] += g[i]
        assert a.grad.shape == shape
        np.testing.assert_allclose(a.grad, summed, rtol=0, atol=64 * EPS * np.abs(g).sum())


def test_float32_beside_half_precision_gets_a_gradient_of_its_own_dtype():
    x, w = Tensor(np.ones((2, 3), np.float16), requires_grad=True), Parameter(np.ones((4, 3), np.float32))
    gain, bias = Parameter(np.ones(4, np.float32)), Parameter(np.zeros(4, np.float32))
    F.rms_norm(F.linear(x, w, bias), gain).sum().backward()
    assert x.grad.dtype == np.float16 and {p.grad.dtype.name for p in (w, gain, bias)} == {"float32"}


def test_a_leaf_whose_array_was_replaced_meanwhile_gets_what_fits_or_a_sentence():
    x = Parameter(np.ones(3, np.float16))
    y = x * 2.0
    x.data = np.ones(3, np.float32)
    y.backward(np.ones(3))
    assert x.grad.dtype == np.float32
    y = Parameter(np.ones(3))
    z = y * 2.0
    y.data = np.ones(4)
    with pytest.raises(ValueError, match=r"shape \(3,\).*of shape \(4,\)"):
        z.backward(np.ones(3))


# 7c. A leaf is itself, and so is its copy


COPIES = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda x: pickle.loads(pickle.dumps(x)),
}


@pytest.mark.parametrize("how", COPIES)
def test_a_copy_of_a_leaf_is_a_leaf_of_its_own(how):
    x = Parameter(normal(3))
    x.grad = np.ones(3)
    twin = COPIES[how](x)
    assert type(twin) is Parameter and twin.requires_grad and twin.node is not x.node
    assert (twin.data is x.data) == (how == "copy") and np.array_equal(twin.data, x.data)
    assert np.array_equal(twin.grad, x.grad)
    x.grad = twin.grad = None
    (twin * 2.0).sum().backward()
    assert x.grad is None and (twin.grad == 2).all()
    (x * 3.0).sum().backward()
    assert (x.grad == 3).all() and (twin.grad == 2).all()
    frozen = COPIES[how](Tensor(normal(3)))
    assert not frozen.requires_grad and frozen.grad is None


@pytest.mark.parametrize("how", COPIES)
def test_the_history_of_a_result_cannot_be_copied(how):
    y = Parameter(normal(3)) * 2.0
    with pytest.raises(RuntimeError, match="cannot be copied.*detach"):
        COPIES[how](y)
    assert np.array_equal(COPIES[how](y.detach()).data, y.data)


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_a_copied_model_trains_itself(how):
    model = apply_lora(DecoderModel(vocab_size=11, hidden_size=8, num_layers=1, num_heads=2), rank=2, verbose=False)
    twin, ids = COPIES[how](model), np.arange(6).reshape(1, 6)
    assert [p.requires_grad for p in twin.parameters()] == [p.requires_grad for p in model.parameters()]
    twin.loss(ids, ids).backward()
    assert all(p.grad is None for p in model.parameters())
    assert all((p.grad is not None) == p.requires_grad for p in twin.parameters())
    assert len(list(twin.parameters())) == len(list(model.parameters()))  # tied weights stay tied


# 7d. Recording is a thread's own business


def test_no_grad_holds_for_its_own_thread():
    x = Tensor(normal(3), requires_grad=True)
    inside, go_on, seen = threading.Event(), threading.Event(), {}

    def silent():
        with no_grad():
            inside.set()
            go_on.wait(10)
            seen["silent"] = (x * 2.0).requires_grad, is_grad_enabled()

    thread = threading.Thread(target=silent)
    thread.start()
    assert inside.wait(10)
    assert (x * 2.0).requires_grad and is_grad_enabled() and wants_grad(x)
    with no_grad():
        another = threading.Thread(target=lambda: seen.update(another=(x * 2.0).requires_grad))
        another.start()
        another.join()
    go_on.set()
    thread.join()
    assert seen == {"silent": (False, False), "another": True}


# 8. float64 on request, and gradients that are right


@every_operation
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_one_dtype_from_end_to_end(name, dtype):
    if name == "astype" and dtype == np.float32:
        pytest.skip("it is the one that changes the dtype")
    tensors = inputs_of(name, dtype=dtype)
    y = call(name, tensors)
    assert y.dtype == dtype
    y.backward(np.ones_like(y.data))
    for t in tensors:
        assert t.grad.dtype == dtype and t.grad.shape == t.shape and isinstance(t.grad, np.ndarray)


@every_operation
def test_gradients_are_the_functions(name):
    assert gradcheck(CASES[name][0], *(t.data for t in inputs_of(name))) < 1e-8


@pytest.mark.parametrize("which", [0, 1])
def test_gradcheck_names_the_wrong_input(which):
    def wrong(a, b):
        x, y = a.data, b.data
        factors = [1.0, 1.0]
        factors[which] = 1.000001
        return op(x * y, (a, lambda g: g * y * factors[0]), (b, lambda g: g * x * factors[1]))

    with pytest.raises(GradientError, match=f"input {which}, shape"):
        gradcheck(wrong, normal(3), normal(3, seed=1))


def test_gradcheck_notices_a_lost_gradient():
    with pytest.raises(GradientError, match="input 0"):
        gradcheck(lambda a: a.detach() * 2.0, normal(3))


def test_gradcheck_refuses_float32_and_says_what_to_do():
    with pytest.raises(TypeError, match="input 1 is float32.*astype"):
        gradcheck(ops.mul, normal(3), normal(3).astype(np.float32))
    with pytest.raises(TypeError, match="input 0 is int64.*closure"):
        gradcheck(ops.neg, np.arange(3))
    with pytest.raises(TypeError, match="returns float32"):
        gradcheck(lambda a: a.astype(np.float32), normal(3))


def test_gradcheck_takes_a_models_own_parameter_and_leaves_it_as_it_was():
    w = Parameter(normal(4, 3))
    w.requires_grad = False
    w.grad = mark = np.ones((4, 3))
    data = w.data
    assert gradcheck(lambda _: F.softmax(F.linear(Tensor(normal(2, 3)), w)), w) < 1e-8
    assert w.data is data and w.grad is mark and not w.requires_grad


# 9. What is kept


def test_kept_of_a_known_graph():
    x, w = Tensor(normal(2, 3)), Parameter(normal(3, 4))
    rows = kept((x @ w).exp().sum())
    assert [(r.operation, r.name, r.shape, r.dtype, r.bytes) for r in rows] == [
        ("matmul", "x", (2, 3), "float64", 48),
        ("exp", "y", (2, 4), "float64", 64),
    ]
    assert rows.total == 112
    lines = str(rows).splitlines()
    assert (
        lines[0] == "kept for backward" and lines[-1].split() == ["total", "112"] and len({*map(len, lines[1:])}) == 1
    )


def test_kept_counts_an_array_once_and_a_view_with_its_base():
    big = normal(100, 3)
    x, w = Tensor(big[:2]), Parameter(normal(3))
    y = x * w + x * w  # both name the same two rows of `big`
    assert [(r.shape, r.bytes) for r in kept(y)] == [((2, 3), big.nbytes)]  # the rule's shape, the memory's bytes


def test_kept_of_an_adapter_on_a_frozen_base_is_the_adapters_path():
    n, r, tokens = 32, 2, 5
    x, w = Tensor(normal(tokens, n)), Parameter(normal(n, n))
    a, b = Parameter(normal(r, n)), Parameter(normal(n, r))
    w.requires_grad = False
    y = F.linear(x, w) + F.linear(F.linear(x, a), b)
    # A's rule names x; B's names the r numbers a token, and A's output's rule names B. The base is not there.
    assert kept(y).total == 8 * (tokens * n + tokens * r + n * r)
    w.requires_grad = True
    assert kept(F.linear(x, w) + F.linear(F.linear(x, a), b)).total == kept(y).total  # x was kept already


@pytest.mark.parametrize(
    "storage, expected", [("float32", 32 * 32 * 4), ("bfloat16", 32 * 32 * 2), ("nf4", 512 + 16 + 4 + 4)]
)
def test_kept_of_a_second_layer_names_the_stored_weight(storage, expected):
    first, second = Linear(32, 32, bias=False), Linear(32, 32, bias=False)
    second.requires_grad_(False)
    if storage != "float32":
        stored = HalfWeight.quantize if storage == "bfloat16" else lambda w, _: NF4Weight.quantize(w)
        second.weight = stored(second.weight.data, storage)
    x = Tensor(normal(5, 32).astype(np.float32))
    y = second(first(x))
    assert kept(y).total == x.data.nbytes + expected
    with_model = kept(y, second)
    assert with_model.total == x.data.nbytes
    assert [(row.name, row.dtype, row.bytes) for row in with_model.owned] == [("weight", storage, expected)]


def test_kept_with_a_model_leaves_its_weights_out_of_the_total():
    model = DecoderModel(vocab_size=11, hidden_size=8, num_layers=2, num_heads=2)
    apply_lora(model, rank=2)
    loss = model.loss(np.arange(6).reshape(1, 6), np.arange(6).reshape(1, 6))
    alone, apart = kept(loss), kept(loss, model)
    assert alone.total == apart.total + sum(row.bytes for row in apart.owned)
    assert {row.name for row in apart.owned} <= {name for name, _ in model.named_weights()}
    assert "layers.1.self_attn.qkv_proj.base_layer.weight" in {row.name for row in apart.owned}
    assert "outside the total" in str(apart)


def test_a_checkpoint_keeps_its_inputs_alone():
    x, w = Parameter(normal(4, 3)), Parameter(normal(3, 3))
    y = checkpoint(lambda a: ((a @ w).exp() @ w).tanh(), x)
    assert [(r.operation, r.name, r.bytes) for r in kept(y.sum())] == [("checkpoint", "arrays[0]", 96)]


def test_kept_of_nothing():
    assert kept(Tensor(1.0)).total == 0 and "total" in str(kept(Tensor(1.0)))


# checkpoint


def both_ways(function, *arrays, needs=None, parameters=()):
    """Value, gradients and the generator's end state, without and with checkpoint."""
    found = []
    for run in (function, lambda *x: checkpoint(function, *x)):
        random.manual_seed(5)
        needs = needs or [True] * len(arrays)
        tensors = [Tensor(a, requires_grad=need) for a, need in zip(arrays, needs, strict=True)]
        for p in parameters:
            p.grad = None
        y = run(*tensors)
        (y * 2.0).backward(normal(*y.shape, seed=7))
        gradients = [None if t.grad is None else t.grad.tobytes() for t in (*tensors, *parameters)]
        found.append((y.data.tobytes(), gradients, random.default.state))
    assert found[0] == found[1]
    return found[0][1]


def test_checkpoint_gives_the_same_bits():
    both_ways(lambda a, b: F.softmax(a @ b).exp() * a.sum(), normal(3, 4), normal(4, 5))


def test_checkpoint_with_dropout_inside_makes_the_same_mask():
    both_ways(lambda a: F.dropout(F.dropout(a, 0.3) @ Tensor(normal(4, 6)), 0.5), normal(30, 4))


def test_checkpoint_with_frozen_inputs_and_parameters_inside():
    w = Parameter(normal(4, 5))
    gradients = both_ways(lambda a: F.gelu(a @ w), normal(3, 4), needs=[False], parameters=[w])
    assert gradients[0] is None and gradients[1] is not None


def test_checkpoint_without_inputs_of_parameters_alone():
    w = Parameter(normal(4, 5))
    both_ways(lambda: F.gelu(w * w), parameters=[w])


def test_nested_checkpoints():
    w = Parameter(normal(4, 4))

    def inner(a):
        return F.dropout((a @ w).tanh(), 0.2)

    def outer(a):
        return checkpoint(inner, checkpoint(inner, a)) + a

    both_ways(outer, normal(3, 4), parameters=[w])


def test_checkpoints_one_after_the_other_with_dropout_between():
    def model(a):
        a = checkpoint(lambda b: F.dropout(b, 0.5), a)
        return checkpoint(lambda b: F.dropout(b, 0.5) * 3.0, F.dropout(a, 0.5))

    random.manual_seed(1)
    x = Tensor(normal(50), requires_grad=True)
    y = model(x)
    state = random.default.state
    y.backward(np.ones(50))
    assert random.default.state == state  # what is drawn next does not depend on backward
    kept_elements = y.data != 0
    assert (x.grad[kept_elements] == 24.0).all() and (x.grad[~kept_elements] == 0).all()


def test_checkpoint_with_an_input_the_function_does_not_use():
    gradients = both_ways(lambda a, b: a * 2.0, normal(3), normal(2))
    assert gradients[1] is None


def test_checkpoint_that_needs_no_gradient_or_runs_under_no_grad():
    x = Tensor(normal(3))
    assert not checkpoint(lambda a: a * 2.0, x).requires_grad
    x.requires_grad = True
    with no_grad():
        assert not checkpoint(lambda a: a * 2.0, x).requires_grad


def test_checkpoint_of_a_fused_head():
    w = Parameter(normal(5, 3))
    both_ways(lambda a: linear_cross_entropy(a, w, TARGETS), normal(4, 3), parameters=[w])


# the picture


def test_graph_svg_has_a_box_for_every_node(tmp_path, monkeypatch):
    model = DecoderModel(vocab_size=11, hidden_size=8, num_layers=2, num_heads=2)
    loss = model.loss(np.arange(6).reshape(1, 6), np.arange(6).reshape(1, 6))
    text = graph_svg(loss, model, tmp_path / "graph.svg")
    assert (tmp_path / "graph.svg").read_text(encoding="utf-8") == text
    kept_picture = tmp_path / "old.svg"
    kept_picture.write_text("old", encoding="utf-8")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("os.replace", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        graph_svg(loss, model, kept_picture)
    assert kept_picture.read_text(encoding="utf-8") == "old"  # whole or not at all
    assert text.count("<rect class=") == len(topological(loss.node))
    assert "layers.1.mlp.up_proj.weight 32x8" in text and ">attention<" in text and text.startswith("<svg")
    with pytest.raises(RuntimeError, match="no graph"):
        graph_svg(loss.detach())


@pytest.mark.parametrize("returned", [None, 1.0, np.ones(2), (Tensor([1.0]),)], ids=lambda r: type(r).__name__)
def test_a_checkpointed_function_returns_one_tensor(returned):
    for context in (enable_grad, no_grad):
        with context(), pytest.raises(TypeError, match="must return one Tensor, not"):
            checkpoint(lambda x: returned, Tensor([1.0, 2.0], requires_grad=True))


def test_a_training_step_asks_no_tensor_for_what_it_lacks(monkeypatch):
    """Looking for the attribute that was meant takes a millisecond, and a step has a thousand operations."""
    config = {"norm": "rms_norm", "activation": "swiglu", "positions": "rope", "qkv": "separate", "bias": False}
    model = apply_lora(DecoderModel(29, 64, 2, **config), use_dora=True, dropout=0.1, verbose=False)

    def asked(self, name):
        raise AssertionError(f"a tensor was asked for {name}")

    monkeypatch.setattr(Tensor, "__getattr__", asked)
    ids = np.arange(12).reshape(2, 6)
    model.loss(ids, ids).backward()
    AdamW(get_lora_parameters(model)).step()
