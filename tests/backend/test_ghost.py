"""Ghosts do as NumPy does: the same shapes, dtypes, views and copies, and every byte is counted as long as it lives."""

from __future__ import annotations

import gc

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.strategies import shapes
from tinyllm.backend import device
from tinyllm.backend.ghost import Ghost, GhostModule, haunted
from tinyllm.backend.ghost import backend as ghost_backend
from tinyllm.backend.ghost import meter as meters
from tinyllm.backend.table import BACKENDS, of

dtypes = st.sampled_from(["float32", "float64", "int64", "uint8", "bool"])
XP = GhostModule()


@pytest.fixture(autouse=True)
def meter():
    with haunted() as found:
        yield found


def like(x):
    return Ghost(x.shape, x.dtype)


def alike(ghosted, array):
    assert (ghosted.shape, ghosted.dtype, ghosted.nbytes) == (array.shape, array.dtype, array.nbytes)


@given(st.data(), shapes(1, 4, 5))
def test_views_and_copies_are_numpys(data, shape):
    """Any chain of slicing, turning and reshaping: a view where NumPy's is one, a copy where it must copy."""
    array, ours = np.zeros(shape), Ghost(shape, np.float64)
    for _ in range(data.draw(st.integers(1, 5))):
        kind = data.draw(st.sampled_from(["slice", "swap", "reshape", "newaxis"]))
        if kind == "slice":
            index = data.draw(hnp.basic_indices(array.shape, allow_newaxis=True))
            assume(not np.isscalar(array[index]))
            array, ours = array[index], ours[index]
        elif kind == "newaxis":
            array, ours = array[None], ours[None]
        elif kind == "swap" and array.ndim > 1:
            a, b = data.draw(st.tuples(*[st.integers(0, array.ndim - 1)] * 2))
            array, ours = array.swapaxes(a, b), ours.swapaxes(a, b)
        elif kind == "reshape":
            factors = data.draw(st.permutations([f for n in array.shape for f in split(n)]))
            cut = data.draw(st.integers(0, len(factors)))
            new = (int(np.prod(factors[:cut])), int(np.prod(factors[cut:])))
            before, was = array, ours
            array, ours = array.reshape(new), ours.reshape(new)
            if array.size:
                assert np.shares_memory(array, before) == (ours.base is not None), (before.strides, before.shape, new)
                assert (ours.owner is was.owner) == np.shares_memory(array, before)
        alike(ours, array)
        if array.size > 1:
            assert ours.flags.c_contiguous == array.flags.c_contiguous


def split(n):
    return [2, n // 2] if n and n % 2 == 0 else [n]


@given(st.data(), hnp.mutually_broadcastable_shapes(num_shapes=2, max_dims=3, max_side=4), dtypes, dtypes)
def test_ufuncs_promote_and_broadcast_as_numpys(data, drawn, a, b):
    x, y = (np.ones(shape, dtype) for shape, dtype in zip(drawn.input_shapes, (a, b), strict=True))
    assume(x.ndim and y.ndim)
    f = data.draw(st.sampled_from([np.add, np.multiply, np.maximum, np.greater, np.logaddexp]))
    try:
        wanted = f(x, y)
    except TypeError:
        assume(False)
    alike(f(like(x), like(y)), wanted)
    alike(f(like(x), y), wanted)
    if x.dtype.kind == "f":
        alike(like(x) * 2.0, x * 2.0)
        alike(np.float32(2) * like(x), np.float32(2) * x)
        alike(np.exp(like(x)), np.exp(x))


@given(st.data(), shapes(1, 4, 4))
def test_reductions(data, shape):
    x = np.ones(shape, np.float32)
    axis = data.draw(st.none() | st.integers(-x.ndim, x.ndim - 1))
    keep = data.draw(st.booleans())
    for name in ("sum", "max", "mean"):
        alike(getattr(like(x), name)(axis=axis, keepdims=keep), np.asarray(getattr(x, name)(axis=axis, keepdims=keep)))


@pytest.mark.parametrize("a, b", [((3, 4), (4, 5)), ((2, 3, 4), (4, 5)), ((2, 1, 3, 4), (5, 4, 6)), ((4,), (4, 5))])
def test_products(a, b):
    alike(like(np.ones(a)) @ like(np.ones(b)), np.ones(a) @ np.ones(b))
    with pytest.raises(ValueError, match="multiply"):
        Ghost(a) @ Ghost((7, 2))


def test_functions():
    x, index = np.ones((3, 4), np.float32), np.array([[0, 2], [1, 1]])
    g = like(x)
    alike(g[index], x[index])
    alike(g[np.arange(3), np.array([0, 1, 3])], x[np.arange(3), np.array([0, 1, 3])])
    alike(XP.einsum("...i,...i->...", g, g), np.einsum("...i,...i->...", x, x))
    alike(XP.einsum("ij,kj->ki", g, g), np.einsum("ij,kj->ki", x, x))
    alike(XP.concatenate([g, g], axis=1), np.concatenate([x, x], axis=1))
    alike(XP.where(np.ones((3, 1), bool), g, 0), np.where(np.ones((3, 1), bool), x, 0))
    alike(XP.take(np.zeros(256), like(index)), np.zeros(256)[index])
    alike(XP.repeat(g, 3), np.repeat(x, 3))
    alike(g.view(np.uint8), x.view(np.uint8))
    alike(np.sum(g, axis=0), np.sum(x, axis=0))
    assert XP.asarray(g) is g and g.astype(np.float32, copy=False) is g and g.astype(np.float32) is not g
    assert isinstance(XP.asarray([1, 2]), np.ndarray) and isinstance(XP.asarray([1.0, 2.0]), Ghost)
    with pytest.raises(NotImplementedError, match="argsort"):
        np.argsort(g)
    with pytest.raises(TypeError, match="no content"):
        np.asarray(g)
    with pytest.raises(TypeError, match="no content"):
        bool(g > 0)
    with pytest.raises(ValueError, match="mismatch"):
        g[:2] = np.ones((3, 4))


def test_every_byte_is_counted_while_it_lives(meter):
    x = Ghost((10, 10))
    assert (meter.live, meter.peak) == (400, 400)
    view = x[2:].T
    assert meter.live == 400
    y = x + 1.0
    del x
    assert meter.live == 800  # the view holds it
    del view
    gc.collect()
    assert (meter.live, meter.peak) == (400, 800)
    with meter.labelled("other"):
        z = y.copy()
    assert meter.by_label == {"": 400, "other": 400} and z.label == "other"


def test_ghosts_are_gone_afterwards():
    assert of(Ghost(3)).name == "ghost"
    with haunted() as inner:
        Ghost(100)
        assert inner.peak == 400
    assert meters.in_force is not inner and "ghost" in BACKENDS  # the fixture's block goes on


def test_the_backend_leaves_with_them():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(meters, "in_force", meters.NOBODYS)
        patch.setattr(device, "_instead", None)
        patch.setattr(ghost_backend, "BACKENDS", {"numpy": BACKENDS["numpy"]})
        with haunted():
            assert "ghost" in ghost_backend.BACKENDS and device.backend().name == "ghost"
        assert list(ghost_backend.BACKENDS) == ["numpy"] and device.backend().name == "numpy"
