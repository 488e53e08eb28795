"""Every operation of ops.py: its value is NumPy's, its gradient is the slope, and float32 stays float32."""

from __future__ import annotations

import operator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import DTYPES, arrays, broadcastable, check_gradient, seeds, shapes

from tinyllm import ops
from tinyllm.tensor import Tensor


def away_from_zero(x):
    return np.sign(x) * (np.abs(x) + 0.5)


def positive(x):
    return np.abs(x) + 0.5


def same(x):
    return x


BINARY = {  # name: (operation, NumPy's, what tames the inputs)
    "add": (ops.add, np.add, same),
    "sub": (ops.sub, np.subtract, same),
    "mul": (ops.mul, np.multiply, same),
    "div": (ops.div, np.divide, away_from_zero),
}
OPERATORS = [operator.add, operator.sub, operator.mul, operator.truediv]
UNARY = {
    "neg": (ops.neg, np.negative, same),
    "exp": (ops.exp, np.exp, same),
    "log": (ops.log, np.log, positive),
    "tanh": (ops.tanh, np.tanh, same),
    "sqrt": (ops.sqrt, np.sqrt, positive),
    "square": (lambda a: a**2, np.square, same),
    "cube": (lambda a: ops.power(a, 3), lambda x: x**3, same),
    "reciprocal": (lambda a: a**-1.0, lambda x: x**-1.0, away_from_zero),
    "root": (lambda a: a**0.5, lambda x: x**0.5, positive),
}


@pytest.mark.parametrize("name", BINARY)
@given(xy=broadcastable())
def test_binary(name, xy):
    f, reference, tame = BINARY[name]
    x, y = map(tame, xy)
    np.testing.assert_array_equal(f(Tensor(x), Tensor(y)).data, reference(x, y))
    check_gradient(f, x, y)


@pytest.mark.parametrize("name", UNARY)
@given(x=arrays(min_dims=0))
def test_unary(name, x):
    f, reference, tame = UNARY[name]
    x = tame(x)
    np.testing.assert_array_equal(f(Tensor(x)).data, reference(x))
    check_gradient(f, x)


@given(arrays(min_dims=0))
def test_sigmoid(x):
    np.testing.assert_allclose(ops.sigmoid(Tensor(x)).data, 1 / (1 + np.exp(-x)), rtol=0, atol=4 * np.finfo(float).eps)
    check_gradient(ops.sigmoid, x)


def test_sigmoid_of_integers_is_float32_as_in_torch():
    y = ops.sigmoid(Tensor(np.array([-200, 0, 3])))
    assert y.dtype == np.float32
    np.testing.assert_array_equal(y.data, ops.sigmoid(Tensor(np.array([-200, 0, 3], np.float32))).data)


@pytest.mark.parametrize("dtype", DTYPES)
def test_sigmoid_overflows_on_neither_side(dtype):
    x = Tensor(np.array([-1e30, -1e3, 0, 1e3, 1e30], dtype), requires_grad=True)
    y = ops.sigmoid(x)
    y.backward(np.ones(5, dtype))
    assert y.data.tolist() == [0, 0, 0.5, 1, 1] and x.grad.tolist() == [0, 0, 0.25, 0, 0]


@given(arrays(), st.sampled_from([2, -0.5, np.float32(3), np.float64(0.1)]))
def test_operators_with_numbers_on_either_side(x, c):
    x = away_from_zero(x)
    for f in OPERATORS:
        np.testing.assert_array_equal(f(Tensor(x), c).data, f(x, float(c)))
        np.testing.assert_array_equal(f(c, Tensor(x)).data, f(float(c), x))
        check_gradient(lambda a, f=f: f(a, c), x)
        check_gradient(lambda a, f=f: f(c, a), x)


@given(broadcastable())
def test_operators_with_arrays_on_either_side(xy):
    x, c = map(away_from_zero, xy)
    for f in OPERATORS:
        np.testing.assert_array_equal(f(c, Tensor(x)).data, f(c, x))
        check_gradient(lambda a, f=f: f(a, c), x)
        check_gradient(lambda a, f=f: f(c, a), x)


@given(arrays())
def test_a_tensor_used_twice_gets_both_gradients(x):
    check_gradient(lambda a: a * a + a - a * 3, x)
    check_gradient(lambda a: a + a, x)


@pytest.mark.parametrize("c", [2, 0.5, np.float64(0.5), np.ones(3), [1.0, 2.0, 3.0]])
def test_a_constant_takes_the_tensors_dtype(c):
    x = Tensor(np.ones(3, np.float32), requires_grad=True)
    results = [x + c, x - c, x * c, x / c, c - x, c / x, ops.maximum(x, c), ops.where(x.data > 0, x, c)]
    assert {y.dtype.name for y in results} == {"float32"}
    if np.ndim(c) == 0:
        assert (x**c).dtype == np.float32
        (x**c).sum().backward()
        assert x.grad.dtype == np.float32


@pytest.mark.parametrize("f", [ops.add, ops.sub, ops.mul, ops.div, ops.maximum, ops.matmul])
def test_two_tensors_of_different_dtypes_are_an_error(f):
    with pytest.raises(TypeError, match=r"float32 and float64; convert one with .astype"):
        f(Tensor(np.ones((2, 2), np.float32)), Tensor(np.ones((2, 2), np.float64)))


@given(arrays())
def test_astype_brings_the_gradient_back_in_the_inputs_dtype(x):
    for source in DTYPES:
        for target in DTYPES:
            a = Tensor(x.astype(source), requires_grad=True)
            y = a.astype(target) * 2
            y.backward(np.ones(x.shape, target))
            assert y.dtype == target and a.grad.dtype == source and (a.grad == 2).all()


@given(broadcastable(3))
def test_where(xyc):
    x, y, c = xyc
    np.testing.assert_array_equal(ops.where(c > 0, Tensor(x), Tensor(y)).data, np.where(c > 0, x, y))
    check_gradient(lambda a, b: ops.where(c > 0, a, b), x, y)
    check_gradient(lambda a, b: ops.where(Tensor(c > 0), a, b), x, y)


@given(broadcastable())
def test_maximum(xy):
    x, y = (np.round(a) + shift for a, shift in zip(xy, (0, 0.5), strict=True))  # nowhere within a step of a tie
    np.testing.assert_array_equal(ops.maximum(Tensor(x), Tensor(y)).data, np.maximum(x, y))
    check_gradient(ops.maximum, x, y)


def test_maximum_halves_the_gradient_of_a_tie():
    a, b = (Tensor(np.array(v), requires_grad=True) for v in ([1.0, 2.0, 3.0], [1.0, 5.0, 0.0]))
    ops.maximum(a, b).backward(np.array([4.0, 4.0, 4.0]))
    assert a.grad.tolist() == [2, 0, 4] and b.grad.tolist() == [2, 4, 0]


@given(seeds, shapes(0, 2, 2), st.tuples(*[st.integers(1, 4)] * 3), st.booleans(), st.booleans())
def test_matmul_broadcasts_the_leading_axes(seed, batch, sizes, left, right):
    rng, (n, m, k) = np.random.default_rng(seed), sizes
    x, y = rng.standard_normal((batch if left else ()) + (n, m)), rng.standard_normal((batch if right else ()) + (m, k))
    np.testing.assert_array_equal((Tensor(x) @ Tensor(y)).data, x @ y)
    check_gradient(ops.matmul, x, y)


def test_matmul_says_what_does_not_fit():
    with pytest.raises(ValueError, match=r"matmul \(2, 3\) @ \(4, 5\): inner 3 and 4 differ"):
        Tensor(np.ones((2, 3))) @ Tensor(np.ones((4, 5)))
    with pytest.raises(ValueError, match=r"matmul \(3,\) @ \(3, 2\) needs two axes each"):
        Tensor(np.ones(3)) @ Tensor(np.ones((3, 2)))


@given(arrays(1, 3), st.data())
def test_shapes(x, data):
    order = data.draw(st.permutations(range(x.ndim)))
    i, j = data.draw(st.tuples(*[st.integers(-x.ndim, x.ndim - 1)] * 2))
    views = [
        (lambda a: a.transpose(*order), x.transpose(order)),
        (lambda a: a.transpose([k - x.ndim for k in order]), x.transpose(order)),
        (lambda a: a.T, x.T),
        (lambda a: a.swapaxes(i, j), x.swapaxes(i, j)),
        (lambda a: a.reshape(-1), x.reshape(-1)),
        (lambda a: a.reshape((1, *x.shape)), x[None]),
    ]
    for f, expected in views:
        np.testing.assert_array_equal(f(Tensor(x)).data, expected)
        check_gradient(f, x)


INDICES = [
    0,
    -1,
    slice(1, None),
    slice(None, None, -2),
    (slice(None), 1),
    (Ellipsis, None, 0),
    np.array([2, 0, 2, 2]),  # repeated: the gradients add up
    ([0, 0, 1], [1, 1, 2]),
    (slice(None), np.array([[0, 0], [1, 0]])),
    np.array([True, False, True]),
    Tensor(np.array([1, 1])),
]


@pytest.mark.parametrize("index", INDICES, ids=str)
def test_getitem(index):
    x = np.random.default_rng(0).standard_normal((3, 4, 2))
    np.testing.assert_array_equal(Tensor(x)[index].data, x[index.data if isinstance(index, Tensor) else index])
    check_gradient(lambda a: a[index], x)


def test_getitem_adds_up_what_was_taken_twice():
    a = Tensor(np.zeros(3), requires_grad=True)
    a[np.array([2, 0, 2])].backward(np.array([1.0, 10.0, 100.0]))
    assert a.grad.tolist() == [10, 0, 101]


@given(seeds, shapes(1, 3), st.lists(st.integers(1, 3), min_size=1, max_size=3), st.data())
def test_concatenate_and_split_are_inverse(seed, shape, sizes, data):
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    parts = []
    for i, size in enumerate(sizes):
        own = list(shape)
        own[axis] = size
        parts.append(np.random.default_rng([seed, i]).standard_normal(own))
    joined = ops.concatenate([Tensor(p) for p in parts], axis)
    np.testing.assert_array_equal(joined.data, np.concatenate(parts, axis))
    for piece, part in zip(ops.split(joined, sizes, axis), parts, strict=True):
        np.testing.assert_array_equal(piece.data, part)
    check_gradient(lambda *a: ops.concatenate(a, axis), *parts)
    check_gradient(lambda a: ops.split(a, sizes, axis)[-1], joined.data)
    with pytest.raises(ValueError, match="add up to"):
        ops.split(joined, [*sizes, 1], axis)


def axes_of(x, data):
    one, several = st.integers(-x.ndim, x.ndim - 1), st.sets(st.integers(0, x.ndim - 1), min_size=1).map(tuple)
    axis = data.draw(st.one_of(st.none(), one, several))
    return axis, data.draw(st.booleans())


@pytest.mark.parametrize("name", ["sum", "mean"])
@given(x=arrays(), data=st.data())
def test_sum_and_mean(name, x, data):
    axis, keep = axes_of(x, data)
    expected = getattr(np, name)(x, axis=axis, keepdims=keep)
    np.testing.assert_array_equal(getattr(Tensor(x), name)(axis, keep).data, expected)
    check_gradient(lambda a: getattr(ops, name)(a, axis, keepdims=keep), x)


@given(x=arrays(), data=st.data(), seed=seeds)
def test_max(x, data, seed):
    axis, keep = axes_of(x, data)
    x = np.random.default_rng(seed).permutation(x.size).reshape(x.shape) * 1.0  # no ties
    np.testing.assert_array_equal(Tensor(x).max(axis, keep).data, x.max(axis=axis, keepdims=keep))
    check_gradient(lambda a: ops.max(a, axis, keepdims=keep), x)


def test_max_shares_the_gradient_of_a_tie():
    a = Tensor(np.array([[3.0, 3.0, 3.0, 1.0], [0.0, 5.0, 2.0, 2.0]]), requires_grad=True)
    a.max(axis=1).backward(np.array([6.0, 7.0]))
    assert a.grad.tolist() == [[2, 2, 2, 0], [0, 7, 0, 0]]


@given(broadcastable())
def test_unbroadcast_is_the_transpose_of_broadcasting(xy):
    """<broadcast(x), g> = <x, unbroadcast(g)> for all x and g."""
    x, y = xy
    g = np.random.default_rng(1).standard_normal(np.broadcast_shapes(x.shape, y.shape))
    back = ops.unbroadcast(g, x.shape)
    budget = g.size * np.finfo(float).eps * float((np.abs(x) * np.abs(g)).sum())
    assert back.shape == x.shape and abs((x * g).sum() - (x * back).sum()) <= budget


def test_a_power_of_zero_has_gradient_zero_everywhere():
    x = Tensor(np.array([0.0, -2.0, 3.0, np.inf]), requires_grad=True)
    with np.errstate(all="raise"):
        y = x**0
        y.backward(np.ones(4))
    assert y.data.tolist() == [1, 1, 1, 1] and x.grad.tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("exponent", [Tensor(2.0), Tensor([2.0]), np.array([1.0, 2.0])], ids=str)
def test_an_exponent_is_a_number(exponent):
    with pytest.raises(TypeError, match=r"the exponent must be a number; use exp\(b \* log\(a\)\)"):
        Tensor([1.0, 2.0]) ** exponent
