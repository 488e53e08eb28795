"""Every operation of ops beside torch's in float64: the value and the gradient of every input, case by case.

A case is what this package computes, what torch computes, and the inputs. A name that comes again gets a mark.
"""

from __future__ import annotations

import numpy as np
import pytest

from tinyllm import ops, save
from tinyllm.models import DecoderModel
from tinyllm.tensor import Tensor

torch = pytest.importorskip("torch", reason="not run: torch is not installed (see CONTRIBUTING.md)")

EPS = np.finfo(np.float64).eps
rng = np.random.default_rng(12)


def normal(*shape):
    return rng.standard_normal(shape)


def positive(*shape):
    return 0.5 + rng.random(shape)


def ties(*shape):
    return rng.integers(-1, 2, shape).astype(np.float64)


CASES: dict[str, tuple] = {}  # name: (ours, torch's, inputs)


def case(name, ours, theirs, *inputs):
    key = f"{name} {' '.join(str(x.shape) for x in inputs)}"
    while key in CASES:
        key += "'"
    CASES[key] = (ours, theirs, inputs)


def both(name, f, *inputs):
    case(name, f, f, *inputs)


SHAPES = [(), (1,), (3,), (2, 3), (2, 1, 3), (0,), (2, 0)]
UNARY = {
    "neg": (ops.neg, torch.neg, normal), "abs": (ops.abs, torch.abs, normal),
    "square": (ops.square, torch.square, normal), "sqrt": (ops.sqrt, torch.sqrt, positive),
    "exp": (ops.exp, torch.exp, normal),
    "expm1": (ops.expm1, torch.expm1, normal), "log": (ops.log, torch.log, positive),
    "log1p": (ops.log1p, torch.log1p, positive), "sin": (ops.sin, torch.sin, normal),
    "cos": (ops.cos, torch.cos, normal), "tanh": (ops.tanh, torch.tanh, normal),
    "sigmoid": (ops.sigmoid, torch.sigmoid, normal), "abs of ties": (ops.abs, torch.abs, ties),
}  # fmt: skip
for name, (ours, theirs, draw) in UNARY.items():
    for shape in SHAPES:
        case(name, ours, theirs, draw(*shape))
for exponent in (0, 1, 2, 3, -1, 0.5, -0.5):
    for shape in SHAPES:
        both(f"x ** {exponent}", lambda x, e=exponent: x**e, positive(*shape))
for base in (2, 0.5, 1.0):
    for shape in SHAPES:
        both(f"{base} ** x", lambda x, b=base: b**x, normal(*shape))
for bounds in ((-0.5, 0.5), (None, 0.0), (-1.0, None), (1, -1)):
    for draw in (normal, ties):
        both(f"clip {bounds} {draw.__name__}", lambda x, b=bounds: x.clip(*b), draw(3, 4))

PAIRS = [
    ((), ()),
    ((3,), (3,)),
    ((2, 3), (3,)),
    ((3,), (2, 3)),
    ((2, 3), (2, 1)),
    ((1, 3), (2, 1)),
    ((2, 1, 3), (4, 1)),
]
PAIRS += [((2, 3), ()), ((), (1, 1)), ((0,), (1,)), ((2, 0), (2, 1)), ((0, 3), (3,))]
BINARY = {
    "+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b, "/": lambda a, b: a / b,
    "**": lambda a, b: a**b, "both sides": lambda a, b: (a + b) * a - b * b + (1 - a) / b,
}  # fmt: skip
for name, f in BINARY.items():
    for a, b in PAIRS:
        both(name, f, positive(*a), positive(*b))
for name in ("maximum", "minimum"):
    for draw in (normal, ties):
        for a, b in PAIRS:
            case(f"{name} {draw.__name__}", getattr(ops, name), getattr(torch, name), draw(*a), draw(*b))
for a, b in PAIRS:
    mask = rng.integers(0, 2, np.broadcast_shapes(a, b)).astype(bool)
    for given in (mask, mask.astype(np.int64)):
        f = lambda x, y, c=given: ops.where(c, x, y)
        case(f"where {given.dtype}", f, lambda x, y, c=mask: torch.where(torch.tensor(c), x, y), normal(*a), normal(*b))

REDUCED = [((3,), None), ((3,), 0), ((2, 3), None), ((2, 3), 0), ((2, 3), 1), ((2, 3), -1), ((2, 3), (0, 1))]
REDUCED += [((2, 3, 4), (0, 2)), ((2, 3, 4), (-1, 0)), ((2, 1, 3), 1), ((2, 3, 4), -2)]
EMPTY = [((0,), None), ((0,), 0), ((2, 0), 1), ((2, 0), 0), ((0, 3), 1)]


def torch_prod(x, axis, keep):
    if axis is None:
        y = x.prod()
        return y.reshape((1,) * x.ndim) if keep else y
    for i in sorted((i % x.ndim for i in (axis if isinstance(axis, tuple) else (axis,))), reverse=True):
        x = x.prod(i, keepdim=keep)
    return x


TORCH = {
    "sum": lambda x, axis, keep: x.sum(axis, keepdim=keep),
    "mean": lambda x, axis, keep: x.mean(axis, keepdim=keep),
    "max": lambda x, axis, keep: x.amax(() if axis is None else axis, keepdim=keep),
    "min": lambda x, axis, keep: x.amin(() if axis is None else axis, keepdim=keep),
    "prod": torch_prod,
    "var": lambda x, axis, keep: x.var(axis, keepdim=keep),
    "std": lambda x, axis, keep: x.std(axis, keepdim=keep),
}
for name, theirs in TORCH.items():
    shapes = REDUCED + (EMPTY if name in ("sum", "prod") else [((0, 3), 1)] if name == "mean" else [])
    for shape, axis in shapes:
        if name in ("var", "std") and shape == (2, 1, 3):
            continue  # one number has no variance: refused here, NaN there
        for keep in (False, True):
            for draw in (normal, ties) if name in ("max", "min", "prod") else (normal,):
                f = lambda x, n=name, a=axis, k=keep: getattr(x, n)(axis=a, keepdims=k)
                g = lambda x, t=theirs, a=axis, k=keep: t(x, a, k)
                case(f"{name} {axis} {keep} {draw.__name__}", f, g, draw(*shape))
for correction in (0, 1, 2):
    for axis in (None, 1, (0, 2)):
        for name in ("var", "std"):
            f = lambda x, n=name, a=axis, c=correction: getattr(x, n)(a, correction=c)
            case(f"{name} {axis} correction {correction}", f, f, normal(3, 4, 3))
case("std of equal numbers", lambda x: x.std(1), lambda x: x.std(1), np.array([[2.0, 2, 2], [1, 2, 3]]))
for shape, axis in [((3,), 0), ((2, 3), 0), ((2, 3), -1), ((2, 0), 1), ((0,), 0), ((2, 3, 2), 1)]:
    both(f"cumsum {axis}", lambda x, a=axis: x.cumsum(a), normal(*shape))
    case(f"flip {axis}", lambda x, a=axis: x.flip(a), lambda x, a=axis: x.flip((a,)), normal(*shape))
    case(f"expand {axis}", lambda x, a=axis: x.expand_dims(a), lambda x, a=axis: x.unsqueeze(a), normal(*shape))
    for n in (1, 2, 3):
        parts = [normal(*shape) for _ in range(n)]
        for name, theirs in (("concatenate", torch.cat), ("stack", torch.stack)):
            f = lambda *xs, n=name, a=axis: getattr(ops, n)(xs, a)
            case(f"{name} {axis}", f, lambda *xs, t=theirs, a=axis: t(xs, a), *parts)
    twice = lambda m, a: lambda x: m([x, x * 2, x], a)
    case(f"concatenate of one thrice {axis}", twice(ops.concatenate, axis), twice(torch.cat, axis), normal(*shape))
case("flip all", lambda x: x.flip(), lambda x: x.flip((0, 1)), normal(2, 3))
case("cumsum of all", lambda x: x.cumsum(), lambda x: x.reshape(-1).cumsum(0), normal(2, 3))
case(
    "concatenate, other sizes", lambda *x: ops.concatenate(x, 1), lambda *x: torch.cat(x, 1), normal(2, 1), normal(2, 3)
)
case("concatenate, one empty", lambda *x: ops.concatenate(x), lambda *x: torch.cat(x), normal(0, 3), normal(2, 3))
both("squeeze", lambda x: x.squeeze(), normal(1, 3, 1))
both("squeeze -1", lambda x: x.squeeze(-1), normal(1, 3, 1))
both("squeeze 0", lambda x: x.squeeze(0), normal(1, 3, 1))
for axes in ((0, 1, 2), (2, 0, 1), (-1, 0, -2)):
    case(f"transpose {axes}", lambda x, a=axes: x.transpose(a), lambda x, a=axes: x.permute(a), normal(2, 3, 4))
for axes in ((0, 1), (0, -1), (1, 1)):
    both(f"swapaxes {axes}", lambda x, a=axes: x.swapaxes(*a), normal(2, 3, 4))
for shape in ((6, 4), (-1,), (2, -1, 2), (24, 1)):
    both(f"reshape {shape}", lambda x, s=shape: x.reshape(s), normal(2, 3, 4))
INDICES = [0, -1, slice(1, None), (slice(None), 1), (..., None, 0), [0, 1, 1], ([0, 0, 1], [1, 1, 2]), (0, [2, 2])]
for index in INDICES:
    both(f"getitem {index}", lambda x, i=index: x[i], normal(2, 3, 4))
for name, f in {"mask": lambda x: x[x > 0] * 2, "masked ties": lambda x: x[x == 0] + x[x != 0].sum()}.items():
    both(name, f, ties(3, 4))

PRODUCTS = [((2, 3), (3, 4)), ((3,), (3,)), ((3,), (3, 4)), ((2, 3), (3,)), ((5, 2, 3), (3, 4)), ((5, 2, 3), (5, 3, 4))]
PRODUCTS += [((2, 3), (5, 3, 4)), ((3,), (5, 3, 4)), ((5, 2, 3), (3,)), ((5, 1, 2, 3), (4, 3, 2)), ((0, 3), (3, 2))]
PRODUCTS += [((2, 0), (0, 3)), ((1, 1), (1, 1)), ((1, 2, 3), (5, 3, 1))]
for a, b in PRODUCTS:
    both("matmul", lambda x, y: x @ y, normal(*a), normal(*b))
both("x @ x", lambda x: x @ x, normal(3, 3))
both("x @ x, vectors", lambda x: x @ x, normal(3))
SIZES = dict(b=5, i=2, j=3, k=4)
for text in ("ij,jk->ik", "ij,jk", "bij,bjk->bik", "bij,jk->bik", "ij,ij->", "ij,ij->i", "i,j->ij", "ij,k->k", "i,i",
             "bij,bik->jk", "ij,j->ji", "...ij,...jk->...ik", "...i,ij->...j", "ij,i->j"):  # fmt: skip
    inputs = text.partition("->")[0].split(",")
    arrays = [normal(*(2, 3) * ("..." in part), *[SIZES[c] for c in part.replace("...", "")]) for part in inputs]
    case(
        f"einsum {text}", lambda x, y, t=text: ops.einsum(t, x, y), lambda x, y, t=text: torch.einsum(t, x, y), *arrays
    )

REPEATED = {
    "x + x": lambda x: x + x, "x * x": lambda x: x * x, "x / x": lambda x: x / x, "x ** x": lambda x: x**x,
    "x - x.sum": lambda x: x - x.sum(), "softmax by hand": lambda x: x.exp() / x.exp().sum(),
    "x * x.mean + x.exp": lambda x: x * x.mean() + x.exp(), "deep": lambda x: ((x + 1) * x).sin() * x.cos() - x,
}  # fmt: skip
for name, f in REPEATED.items():
    for shape in ((), (3,), (2, 3)):
        both(name, f, positive(*shape))


def test_there_are_enough_cases():
    assert len(CASES) >= 400


@pytest.mark.parametrize("name", CASES)
def test_value_and_gradients_are_torchs(name):
    ours, theirs, inputs = CASES[name]
    xs = [Tensor(x.copy(), requires_grad=True) for x in inputs]
    ts = [torch.tensor(x, requires_grad=True) for x in inputs]
    y, t = ours(*xs), theirs(*ts)
    assert y.shape == tuple(t.shape) and y.dtype == np.float64
    assert_close(y.data, t.detach().numpy())
    g = np.random.default_rng(7).standard_normal(y.shape)
    y.backward(g)
    t.backward(torch.tensor(g))
    for a, b in zip(xs, ts, strict=True):
        assert a.grad.shape == a.shape and a.grad.dtype == np.float64
        assert_close(a.grad, b.grad.numpy())


def assert_close(got, wanted, budget=64 * EPS):
    largest = max(1, np.abs(wanted).max(initial=0))
    np.testing.assert_allclose(got, wanted, rtol=budget, atol=budget * largest)


COMPARED = {"eq": "__eq__", "ne": "__ne__", "lt": "__lt__", "le": "__le__", "gt": "__gt__", "ge": "__ge__"}


@pytest.mark.parametrize("name", COMPARED)
def test_comparisons_are_torchs(name):
    for a, b in PAIRS:
        x, y = ties(*a), ties(*b)
        ours = getattr(Tensor(x), COMPARED[name])(Tensor(y)).data
        np.testing.assert_array_equal(ours, getattr(torch, name)(torch.tensor(x), torch.tensor(y)).numpy())


@pytest.mark.parametrize("g", [np.inf, np.nan])
@pytest.mark.parametrize("name", ["where", "maximum", "minimum"])
def test_a_gradient_that_is_no_number_goes_where_torchs_goes(name, g):
    x, y = np.array([1.0, 2.0, 3.0]), np.array([3.0, 1.0, 2.0])
    condition = x > 1.5
    f = {"where": lambda a, b: ops.where(condition, a, b)}.get(name, getattr(ops, name))
    theirs = {"where": lambda a, b: torch.where(torch.tensor(condition), a, b)}.get(name, getattr(torch, name))
    a, b = (Tensor(v, requires_grad=True) for v in (x, y))
    s, t = (torch.tensor(v, requires_grad=True) for v in (x, y))
    f(a, b).backward(np.full(3, g))
    theirs(s, t).backward(torch.full((3,), g, dtype=torch.float64))
    for ours, peer in ((a, s), (b, t)):
        np.testing.assert_array_equal(ours.grad, peer.grad.numpy())


def test_a_tensor_of_torch_is_a_constant_ids_or_told():
    """Where an array would do it is taken; where gradients begin or end it is told to wrap it."""
    x, ids = torch.ones(2), torch.tensor([[1, 2]])
    ours = Tensor(np.ones(2, np.float32))
    for y in (ours + x, x + ours, ours * x, ops.concatenate([ours, x])[:2] + x - 1):
        assert isinstance(y, Tensor) and y.dtype == np.float32
    model = DecoderModel(5, 8, 1, 2, seed=0)
    assert model.loss(ids, ids).item() == model.loss(ids.numpy(), ids.numpy()).item()
    for wrong in (lambda: ops.sum(x), lambda: model.norm(x), lambda: model.lm_head(x)):
        with pytest.raises(TypeError, match="takes a Tensor, not torch.Tensor; wrap it: tinyllm.Tensor"):
            wrong()
    with pytest.raises(TypeError, match="a is torch.Tensor; only arrays can be saved"):
        save({"a": x}, "never.safetensors")
