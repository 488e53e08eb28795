"""Every operation of ops: its value is NumPy's, its gradient is the slope, and float32 stays float32."""

from __future__ import annotations

import operator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import DTYPES, arrays, broadcastable, check_gradient, generators, seeds, shapes

from tinyllm import ops
from tinyllm.autograd import unbroadcast
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
    "power": (ops.power, np.power, positive),
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
    "square by name": (ops.square, np.square, same),
    "abs": (abs, np.abs, away_from_zero),
    "expm1": (ops.expm1, np.expm1, same),
    "log1p": (ops.log1p, np.log1p, positive),
    "sin": (ops.sin, np.sin, same),
    "cos": (ops.cos, np.cos, same),
    "2 ** x": (lambda a: 2**a, lambda x: 2**x, same),
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
    with pytest.raises(ValueError, match=r"matmul \(3,\) @ \(2, 3\): inner 3 and 2 differ"):
        Tensor(np.ones(3)) @ Tensor(np.ones((2, 3)))
    with pytest.raises(ValueError, match=r"matmul \(\) @ \(2, 3\): a single number"):
        Tensor(np.ones(())) @ Tensor(np.ones((2, 3)))


@given(generators, st.booleans(), shapes(0, 2, 2))
def test_matmul_of_vectors_and_arrays(rng, left, batch):
    x, y = rng.standard_normal(3), rng.standard_normal((*batch, 3, 2))
    x, y = (x, y) if left else (y.swapaxes(-1, -2), x)
    for f in (lambda a, b: a @ b, lambda a, b: (a.data @ b) + 0 * a.sum(), lambda a, b: (a @ b.data) + 0 * b.sum()):
        np.testing.assert_array_equal(f(Tensor(x), Tensor(y)).data, x @ y)
    check_gradient(ops.matmul, x, y)
    check_gradient(lambda a: x @ a, y)


EINSUMS = [
    "ij,jk->ik",
    "ij,jk",
    "bij,bkj->bik",
    "ij,ij->",
    "i,j->ji",
    "ij,k->k",
    "...ij,jk->...ik",
    "...i,...i->...",
    "ij,j",
]


@pytest.mark.parametrize("subscripts", EINSUMS)
def test_einsum(subscripts):
    rng, sizes = np.random.default_rng(3), dict(i=2, j=3, k=4, b=2)
    shape = lambda part: (5,) * ("..." in part) + tuple(sizes[c] for c in part.replace("...", ""))
    x, y = (rng.standard_normal(shape(part)) for part in subscripts.partition("->")[0].split(","))
    np.testing.assert_array_equal(ops.einsum(subscripts, Tensor(x), Tensor(y)).data, np.einsum(subscripts, x, y))
    check_gradient(lambda a, b: ops.einsum(subscripts, a, b), x, y)


def test_einsum_broadcasts_what_the_dots_stand_for():
    x, y = (
        np.random.default_rng(0).standard_normal((2, 1, 5, 3, 2)),
        np.random.default_rng(1).standard_normal((4, 1, 2)),
    )
    np.testing.assert_array_equal(
        ops.einsum("...ij,...j->...i", Tensor(x), Tensor(y)).data, np.einsum("...ij,...j->...i", x, y)
    )
    check_gradient(lambda a, b: ops.einsum("...ij,...j->...i", a, b), x, y)


@pytest.mark.parametrize(
    "subscripts, words", [("ij->ji", "two operands"), ("ii,i->i", "a letter stands twice in 'ii'")]
)
def test_einsum_refuses(subscripts, words):
    with pytest.raises(ValueError, match=words):
        ops.einsum(subscripts, Tensor(np.ones((2, 2))), Tensor(np.ones(2)))


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
        (lambda a: a.flip(), np.flip(x)),
        (lambda a: a.flip(i), np.flip(x, i)),
        (lambda a: a.expand_dims(i), np.expand_dims(x, i)),
        (lambda a: a.expand_dims((0, -1)), np.expand_dims(x, (0, -1))),
        (lambda a: a.reshape(1, *x.shape).squeeze(0), x),
        (lambda a: a.reshape(1, *x.shape, 1).squeeze(), x.squeeze()),
        (lambda a: a.cumsum(i), x.cumsum(i)),
        (lambda a: a.cumsum(), x.cumsum()),
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
    (slice(None), Tensor(np.array([1, 1]))),
    Tensor(np.array([True, False, True])),
]


@pytest.mark.parametrize("index", INDICES, ids=str)
def test_getitem(index):
    x = np.random.default_rng(0).standard_normal((3, 4, 2))
    plain = lambda part: part.data if isinstance(part, Tensor) else part
    expected = x[tuple(map(plain, index)) if isinstance(index, tuple) else plain(index)]
    np.testing.assert_array_equal(Tensor(x)[index].data, expected)
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


@pytest.mark.parametrize("name", ["sum", "mean", "prod"])
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
    back = unbroadcast(g, x.shape)
    budget = g.size * np.finfo(float).eps * float((np.abs(x) * np.abs(g)).sum())
    assert back.shape == x.shape and abs((x * g).sum() - (x * back).sum()) <= budget


def test_a_power_of_zero_has_gradient_zero_everywhere():
    x = Tensor(np.array([0.0, -2.0, 3.0, np.inf]), requires_grad=True)
    with np.errstate(all="raise"):
        y = x**0
        y.backward(np.ones(4))
    assert y.data.tolist() == [1, 1, 1, 1] and x.grad.tolist() == [0, 0, 0, 0]


@given(x=arrays(), data=st.data(), correction=st.sampled_from([0, 1, 0.5]))
def test_var_and_std(x, data, correction):
    axis, keep = axes_of(x, data)
    n = x.size // x.sum(axis=axis).size
    x = x + np.arange(x.size).reshape(x.shape)  # nowhere all alike
    for name in ("var", "std"):
        f = lambda a, name=name: getattr(a, name)(axis, correction=correction, keepdims=keep)
        if n <= correction:
            with pytest.raises(ValueError, match=f"the variance of {n}"):
                f(Tensor(x))
        elif n > 1:
            np.testing.assert_array_equal(f(Tensor(x)).data, getattr(np, name)(x, axis, ddof=correction, keepdims=keep))
            check_gradient(f, x)


def test_the_gradient_of_a_standard_deviation_of_0_is_0():
    x = Tensor(np.array([[2.0, 2.0, 2.0], [1.0, 2.0, 3.0]]), requires_grad=True)
    x.std(axis=1).backward(np.ones(2))
    assert x.grad.tolist() == [[0, 0, 0], [-0.5, 0, 0.5]]


def test_a_product_with_zeros_has_its_slope():
    for x in ([2.0, 0.0, 3.0], [0.0, 0.0, 3.0], [0.0], [-1.0, 2.0, 4.0]):
        a = Tensor(np.array(x), requires_grad=True)
        a.prod().backward()
        assert a.grad.tolist() == [np.prod(x[:i] + x[i + 1 :]) for i in range(len(x))]


@given(x=arrays(), data=st.data(), seed=seeds)
def test_min(x, data, seed):
    axis, keep = axes_of(x, data)
    x = np.random.default_rng(seed).permutation(x.size).reshape(x.shape) * 1.0  # no ties
    np.testing.assert_array_equal(Tensor(x).min(axis, keep).data, x.min(axis=axis, keepdims=keep))
    check_gradient(lambda a: ops.min(a, axis, keepdims=keep), x)


@given(broadcastable())
def test_minimum(xy):
    x, y = (np.round(a) + shift for a, shift in zip(xy, (0, 0.5), strict=True))
    np.testing.assert_array_equal(ops.minimum(Tensor(x), Tensor(y)).data, np.minimum(x, y))
    check_gradient(ops.minimum, x, y)


@given(arrays(min_dims=0), st.sampled_from([(-0.5, None), (None, 0.5), (-0.5, 0.5)]))
def test_clip(x, bounds):
    x = np.round(x * 8) / 8 + 1 / 16  # no bound within a step
    np.testing.assert_array_equal(ops.clip(Tensor(x), *bounds).data, np.clip(x, *bounds))
    check_gradient(lambda a: a.clip(*bounds), x)


def test_clip_passes_the_gradient_on_its_bounds_and_takes_constants_alone():
    x = Tensor(np.array([-2.0, -1.0, 0.0, 1.0, 2.0]), requires_grad=True)
    x.clip(-1, 1).backward(np.ones(5))
    assert x.grad.tolist() == [0, 1, 1, 1, 0]
    for bounds in ((), (Tensor(1.0),), (None, Tensor(1.0))):
        with pytest.raises(TypeError, match="clip needs a number"):
            x.clip(*bounds)


@given(generators, shapes(1, 3), st.integers(1, 3), st.data())
def test_stack(rng, shape, n, data):
    axis = data.draw(st.integers(-len(shape) - 1, len(shape)))
    parts = [rng.standard_normal(shape) for _ in range(n)]
    np.testing.assert_array_equal(ops.stack([Tensor(p) for p in parts], axis).data, np.stack(parts, axis))
    check_gradient(lambda *a: ops.stack(a, axis), *parts)


JOINED = [lambda a, c: ops.concatenate([a, c]), lambda a, c: ops.concatenate([c, a]), lambda a, c: ops.stack([c, a, c])]


@pytest.mark.parametrize("join", JOINED)
def test_arrays_among_joined_tensors_are_constants(join):
    x = Tensor(np.array([1.0, 2.0], np.float32), requires_grad=True)
    for constant in (np.array([3.0, 4.0]), [3.0, 4.0]):
        y = join(x, constant)
        assert y.dtype == np.float32
        x.grad = None
        y.sum().backward()
        assert x.grad.tolist() == [1, 1]
    for f in (ops.concatenate, ops.stack):
        with pytest.raises(ValueError, match="nothing to join"):
            f([])


# Gradients go to the side that was taken, and to no other ---------------------------------------------------------


@pytest.mark.parametrize("condition", [[1, 0, 2], np.array([1, 0, 1], np.uint8), np.array([0.5, 0.0, -1.0])], ids=str)
def test_a_condition_of_numbers_is_true_where_it_is_not_0(condition):
    for mask in (condition, Tensor(condition)):
        a, b = Tensor(np.ones(3), requires_grad=True), Tensor(np.zeros(3), requires_grad=True)
        y = ops.where(mask, a, b)
        y.backward(np.array([2.0, 3.0, 4.0]))
        assert y.data.tolist() == [1, 0, 1] and a.grad.tolist() == [2, 0, 4] and b.grad.tolist() == [0, 3, 0]


CHOICES = {  # each takes its first number and leaves the second
    "where": lambda a: ops.where([True, False], a, 0.0),
    "where, other side": lambda a: ops.where([False, True], 0.0, a),
    "maximum": lambda a: ops.maximum(a, np.array([0.0, 9.0])),
    "minimum": lambda a: ops.minimum(a, np.array([9.0, 0.0])),
    "clip": lambda a: ops.clip(a, max=1.5),
    "max": lambda a: ops.max(a * np.array([1.0, -1.0])),
    "min": lambda a: ops.min(a),
}


@pytest.mark.parametrize("name", CHOICES)
@pytest.mark.parametrize("g", [np.inf, np.nan])
def test_what_is_no_number_stays_on_the_side_that_was_taken(name, g):
    a = Tensor(np.array([1.0, 2.0]), requires_grad=True)
    y = CHOICES[name](a)
    y.backward(np.full(y.shape, g))
    assert np.array_equal(a.grad, [g, 0], equal_nan=True)


def test_the_extreme_that_is_no_number_gets_the_gradient():
    for f in (ops.max, ops.min):
        a = Tensor(np.array([[1.0, np.nan, 3.0], [1.0, 1.0, 1.0]]), requires_grad=True)
        f(a, axis=1).backward(np.array([5.0, 6.0]))
        assert a.grad.tolist() == [[0, 5, 0], [2, 2, 2]]


def test_powers_of_zero_by_a_tensor():
    x, p = Tensor(np.array([0.0, 0.0, 2.0]), requires_grad=True), Tensor(np.array([0.0, 2.0, 0.0]), requires_grad=True)
    with np.errstate(all="raise"):
        y = x**p
        y.backward(np.ones(3))
    assert y.data.tolist() == [1, 0, 1] and x.grad.tolist() == [0, 0, 0] and p.grad.tolist() == [0, 0, np.log(2.0)]


# What fits only by accident --------------------------------------------------------------------------------------


REFUSED = {
    "x + None": (lambda x: x + None, TypeError, "not NoneType"),
    "None * x": (lambda x: None * x, TypeError, "not NoneType"),
    "x - text": (lambda x: x - "1", TypeError, "not str"),
    "x ** None": (lambda x: x**None, TypeError, "not NoneType"),
    "maximum": (lambda x: ops.maximum(x, None), TypeError, "not NoneType"),
    "where": (lambda x: ops.where([True, False, True], x, None), TypeError, "not NoneType"),
    "clip": (lambda x: x.clip("0"), TypeError, "not str"),
    "transpose": (lambda x: x.transpose(5, 1), ValueError, "axis 5 is out of range: there are 2 axes"),
    "concatenate": (lambda x: ops.concatenate([x, x], 2), ValueError, "axis 2 is out of range: there are 2 axes"),
    "split": (lambda x: ops.split(x, [1, 1], -3), ValueError, "axis -3 is out of range: there are 2 axes"),
    "stack": (lambda x: ops.stack([x, x], 4), ValueError, "axis 4 is out of"),
    "sum": (lambda x: x.sum(2), ValueError, "axis 2 is out of"),
    "max": (lambda x: x.max(-3), ValueError, "axis -3 is out of"),
    "cumsum": (lambda x: x.cumsum(2), ValueError, "axis 2 is out of"),
    "swapaxes": (lambda x: x.swapaxes(0, 2), ValueError, "axis2: axis 2 is out of"),
    "x < None": (lambda x: x < None, TypeError, "not supported between"),
    "Tensor(None)": (lambda x: Tensor(None), TypeError, "made of numbers, not of NoneType"),
    "Tensor(text)": (lambda x: Tensor("one"), TypeError, "made of numbers, not of str"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_fits_only_by_accident_is_refused(name):
    f, error, words = REFUSED[name]
    with pytest.raises(error, match=words):
        f(Tensor(np.ones((2, 3))))


@pytest.mark.parametrize("f", [ops.concatenate, ops.stack, lambda ab: ops.where([True, False], *ab)])
def test_joining_two_dtypes_is_an_error(f):
    a, b = Tensor(np.ones(2, np.float32)), Tensor(np.ones(2))
    with pytest.raises(TypeError, match=r"float32 and float64; convert one with .astype"):
        f([a, b])
    for f in (ops.power, ops.minimum, lambda a, b: a < b, lambda a, b: ops.einsum("i,i", a, b)):
        with pytest.raises(TypeError, match=r"float32 and float64; convert one with .astype"):
            f(a, b)


FRACTIONS = [
    ops.exp,
    ops.log,
    ops.sqrt,
    ops.sin,
    ops.log1p,
    ops.mean,
    ops.var,
    ops.std,
    lambda a: a / 2,
    lambda a: a / a,
    lambda a: a**0.5,
    lambda a: a**-1.0,
    lambda a: a ** np.float64(0.5),
]


@pytest.mark.parametrize("f", FRACTIONS)
def test_fractions_of_integers_are_float32_as_in_torch(f):
    assert f(Tensor(np.array([1, 2, 3]))).dtype == np.float32


# Comparisons, and a tensor as a number ---------------------------------------------------------------------------


COMPARISONS = [operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge]


@pytest.mark.parametrize("compare", COMPARISONS)
def test_comparisons_compare_numbers(compare):
    x, y = np.array([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]]), np.array([1.0, 2.0, 1.0])
    for f in (
        lambda a, b: compare(Tensor(a), Tensor(b)),
        lambda a, b: compare(Tensor(a), b),
        lambda a, b: compare(a, Tensor(b)),
    ):
        z = f(x, y)
        assert isinstance(z, Tensor) and z.dtype == bool and not z.requires_grad
        np.testing.assert_array_equal(z.data, compare(x, y))
    assert compare(Tensor(x, requires_grad=True), 2).data.tolist() == compare(x, 2).tolist()
    ids = Tensor(np.array([-1, 0, 300], np.int16))
    assert compare(ids, 0.5).data.tolist() == compare(ids.data, 0.5).tolist()


def test_a_comparison_is_a_condition_and_an_index():
    x = Tensor(np.array([-1.0, 2.0, -3.0]), requires_grad=True)
    (ops.where(x > 0, x, 0.0).sum() + x[x < 0].sum() * 2).backward()
    assert x.grad.tolist() == [2, 1, 2]


def test_a_float32_is_compared_as_float32():
    x = Tensor(np.array([0.1, 0.2], np.float32))
    for constant in (0.1, np.float64(0.1), np.array([0.1, 0.1])):
        assert (x == constant).data.tolist() == [True, False]


def test_what_is_no_number_is_not_equal():
    x = Tensor(np.ones(2))
    assert (x == None) is False and (x != None) is True and (x == "1") is False  # noqa: E711


def test_a_tensor_is_a_key_by_what_it_is():
    a, b = Tensor(np.ones(2)), Tensor(np.ones(2))
    assert {a: 1, b: 2}[a] == 1 and len({a, b, a}) == 2 and hash(a) == hash(a)


def test_one_number_is_a_number():
    x = Tensor(np.array([2.5]))
    assert float(x) == 2.5 and int(x) == 2 and f"{x:.3f}" == "2.500" and f"{Tensor(3):03d}" == "003" and bool(x)
    assert not Tensor([0.0]) and f"{x}" == str(x) == repr(x)
    assert abs(Tensor(-1.5)).item() == 1.5
    for several in (Tensor([1.0, 1.0]), Tensor(np.ones(0))):
        with pytest.raises(ValueError, match="numbers are neither true nor false"):
            bool(several)
        for f in (float, int, lambda t: f"{t:.3f}"):
            with pytest.raises(ValueError, match="size 1"):
                f(several)


def test_a_tensor_is_an_array_for_numpy():
    x = Tensor(np.arange(3.0, dtype=np.float32), requires_grad=True)
    assert (
        np.asarray(x) is not None
        and np.asarray(x).dtype == np.float32
        and np.asarray(x, np.float64).dtype == np.float64
    )
    assert np.shares_memory(np.asarray(x), x.data) and not np.shares_memory(np.array(x), x.data)
    for y in (np.ones(3) * x, np.ones((2, 3)) @ x, np.ones(3) ** x, np.ones(3) < x):
        assert isinstance(y, Tensor)


def test_two_constants_make_a_tensor():
    assert ops.add(1, 2).item() == 3 and ops.maximum([1.0, 5.0], [2.0, 3.0]).data.tolist() == [2, 5]
    assert ops.where([True, False], 1.0, 2.0).data.tolist() == [1, 2]
