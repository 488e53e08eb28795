"""The operations of a neural network by what they are: their invariances, their definitions and their slopes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import DTYPES, EPS, arrays, check_gradient, generators, seeds

import tinyllm
from tinyllm import functional as F
from tinyllm.backend import primitives
from tinyllm.backend.random import Generator
from tinyllm.frozen.half import HalfWeight
from tinyllm.frozen.nf4 import NF4Weight
from tinyllm.models import head
from tinyllm.tensor import Tensor, no_grad

normal = lambda *shape, seed=0: np.random.default_rng([seed, *shape]).standard_normal(shape)


def assert_close(got, wanted, k=16):
    """Equal but for `k` roundings of the largest number: for results of sums in another order."""
    eps, wanted = np.finfo(got.dtype).eps, np.asarray(wanted)
    assert got.shape == wanted.shape
    np.testing.assert_allclose(got, wanted, rtol=0, atol=k * eps * max(np.abs(wanted).max(initial=0), 1))


def gradients(f, *inputs, g=None):
    leaves = [Tensor(x, requires_grad=True) for x in inputs]
    y = f(*leaves)
    y.backward(g)
    return y.data, [t.grad for t in leaves]


# ------------------------------------------------------------------------------------------------------- pointwise


@given(arrays())
def test_softmax(x):
    y = F.softmax(Tensor(x)).data
    assert_close(y, np.exp(x) / np.exp(x).sum(-1, keepdims=True))
    assert_close(y.sum(-1), np.ones(x.shape[:-1]))
    check_gradient(F.softmax, x)


@given(arrays(), st.sampled_from([-1e4, -1.0, 7.0, 1e4]))
def test_softmax_and_log_softmax_ignore_a_constant(x, c):
    x = np.round(x * 1024) / 1024  # so that x + c is exact
    for f in (F.softmax, F.log_softmax):
        np.testing.assert_array_equal(f(Tensor(x + c)).data, f(Tensor(x)).data)


@given(arrays())
def test_log_softmax(x):
    assert_close(F.log_softmax(Tensor(x)).data, np.log(F.softmax(Tensor(x)).data), k=32)
    check_gradient(F.log_softmax, x)


def test_log_softmax_of_impossible_classes_is_finite():
    y, (gx,) = gradients(F.log_softmax, np.array([0.0, -1e4, 1e4]), g=np.array([1.0, 0.0, 0.0]))
    assert y.tolist() == [-1e4, -2e4, 0] and gx.tolist() == [1, 0, -1]


@pytest.mark.parametrize("dtype", DTYPES)
def test_gelu_is_x_phi_of_x(dtype):
    x = np.linspace(-9, 9, 721).astype(dtype)
    exact = [0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in x.tolist()]
    error = np.abs(F.gelu(Tensor(x)).data - exact)
    assert (error <= 4 * np.finfo(dtype).eps * np.maximum(np.abs(x), 1)).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_gelu_by_the_tanh_formula(dtype):
    x = np.linspace(-9, 9, 721).astype(dtype)
    formula = [0.5 * v * (1 + math.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3))) for v in x.tolist()]
    error = np.abs(F.gelu(Tensor(x), approximate=True).data - formula)
    assert (error <= 4 * np.finfo(dtype).eps * np.maximum(np.abs(x), 1)).all()


@given(arrays())
def test_gelu_and_silu_have_their_slopes(x):
    check_gradient(F.gelu, 2 * x)
    check_gradient(lambda a: F.gelu(a, approximate=True), x)
    check_gradient(F.silu, x)
    assert_close(F.silu(Tensor(x)).data, x / (1 + np.exp(-x)))


@given(arrays(), generators)
def test_silu_mul_is_silu_times_up(x, rng):
    up = rng.standard_normal(x.shape)
    assert_close(F.silu_mul(Tensor(x), Tensor(up)).data, F.silu(Tensor(x)).data * up)
    check_gradient(F.silu_mul, x, up)


# ----------------------------------------------------------------------------------------------------------- norms


@given(arrays(1, 3), generators)
def test_layer_norm(x, rng):
    w, b = rng.standard_normal((2, x.shape[-1]))
    x = x + np.arange(x.shape[-1])  # not all alike
    expected = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 0.1) * w + b
    assert_close(F.layer_norm(Tensor(x), Tensor(w), Tensor(b), eps=0.1).data, expected, k=64)
    check_gradient(lambda *t: F.layer_norm(*t, eps=0.1), x, w, b)


@given(arrays(1, 3), generators)
def test_rms_norm(x, rng):
    w = rng.standard_normal(x.shape[-1])
    w[0] *= rng.integers(2)  # a gain of 0 hides x in the output
    expected = x / np.sqrt((x**2).mean(-1, keepdims=True) + 0.1) * w
    assert_close(F.rms_norm(Tensor(x), Tensor(w), eps=0.1).data, expected, k=64)
    check_gradient(lambda *t: F.rms_norm(*t, eps=0.1), x, w)


def test_a_replaced_rms_norm_gets_its_own_input_back():
    given = {}

    def theirs(xp, x, w, eps):
        return (1 + w) * x, np.ones((*x.shape[:-1], 1))  # Gemma's gain, and no norm at all

    def theirs_backward(xp, g, x, w, inverse):
        given["x"] = x
        return g * (1 + w)

    x = Tensor(np.array([[1.0, -2.0, 3.0]]), requires_grad=True)
    with tinyllm.use(rms_norm=theirs, rms_norm_backward=theirs_backward):
        F.rms_norm(x, Tensor(np.array([0.5, 2.0, 1.0]))).backward(np.ones((1, 3)))
    assert np.shares_memory(given["x"], x.data) and np.array_equal(x.grad, [[1.5, 3.0, 2.0]])


@given(arrays(1, 3), st.integers(-20, 20))
def test_rms_norm_ignores_the_scale(x, power):
    w = Tensor(np.ones(x.shape[-1]))
    one, other = (F.rms_norm(Tensor(x * c), w, eps=0.0).data for c in (1.0, 4.0**power))
    np.testing.assert_array_equal(one, other)  # powers of 4 have exact roots, so to the bit


@given(arrays(1, 3), st.integers(-64, 64))
def test_layer_norm_ignores_a_constant(x, c):
    w, b = np.ones(x.shape[-1]), np.zeros(x.shape[-1])
    one, other = (F.layer_norm(Tensor(x + s), Tensor(w), Tensor(b), eps=0.1).data for s in (0, c))
    assert np.abs(one - other).max() <= 64 * EPS * (abs(c) + 4) / math.sqrt(0.1)


# ------------------------------------------------------------------------------------------------------------ rope


def angles(positions, n):
    inverse = 1 / 10000 ** (np.arange(n // 2) / (n // 2))
    a = np.asarray(positions)[None, None, :, None] * inverse  # (1, 1, time, n/2)
    return np.cos(a), np.sin(a)


@given(seeds, st.integers(0, 50), st.integers(0, 50), st.integers(0, 50))
def test_rope_keeps_lengths_and_sees_distances_only(seed, i, j, shift):
    q, k = (normal(1, 1, 1, 8, seed=[seed, s][s]) for s in (0, 1))
    at = lambda x, p: F.rope(Tensor(x), *angles([p], 8)).data
    assert_close((at(q, i) ** 2).sum(), (q**2).sum(), k=64)
    assert_close((at(q, i) * at(k, j)).sum(), (at(q, i + shift) * at(k, j + shift)).sum(), k=64 * 100)
    np.testing.assert_array_equal(at(q, 0), q)


@given(generators, st.integers(1, 3), st.integers(1, 4), st.sampled_from([2, 4, 6]))
def test_rope_has_its_slope(rng, heads, time, n):
    cos, sin = angles(range(time), n)
    check_gradient(lambda x: F.rope(x, cos, sin), rng.standard_normal((2, heads, time, n)))


def test_rope_pairs_an_element_with_the_one_half_away():
    y = F.rope(Tensor(np.array([[[[1.0, 2.0, 3.0, 4.0]]]])), *(np.full((1, 1, 1, 2), v) for v in (0.0, 1.0))).data
    assert y.tolist() == [[[[-3.0, -4.0, 1.0, 2.0]]]]  # a quarter turn: (a, b) -> (-b, a)


# ------------------------------------------------------------------------------------------------------- attention


def heads_of(rng, batch=2, heads=4, kv=2, time=5, keys=5, n=3):
    return rng.standard_normal((batch, heads, time, n)), *rng.standard_normal((2, batch, kv, keys, n))


def attend(q, k, v, starts=None, **kw):
    return F.attention(Tensor(q), Tensor(k), Tensor(v), starts, **kw).data


def dense_attention(q, k, v, starts=None):
    """The definition, with the whole matrix of scores and the key heads repeated."""
    k, v = (np.repeat(a, q.shape[1] // k.shape[1], axis=1) for a in (k, v))
    time, keys = q.shape[2], k.shape[2]
    scores = q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1])
    j, i = np.arange(keys), np.arange(keys - time, keys)[:, None]
    first = np.zeros((len(q), time), int) if starts is None else starts
    visible = (j <= i) & (j >= first[:, None, :, None])
    p = np.exp(np.where(visible, scores, -np.inf))
    return p / p.sum(-1, keepdims=True) @ v


def random_starts(rng, batch, time, past=0):
    return np.array([[rng.integers(0, past + t + 1) for t in range(time)] for _ in range(batch)])


heads_and_kv = st.sampled_from([(1, 1), (4, 2), (3, 1), (2, 2)])


@given(generators, heads_and_kv, st.integers(1, 5), st.integers(0, 3), st.booleans())
def test_attention_is_its_definition_and_has_its_slope(rng, heads, time, past, limited):
    qkv = heads_of(rng, 2, *heads, time, past + time)
    starts = random_starts(rng, 2, time, past) if limited else None
    assert_close(attend(*qkv, starts), dense_attention(*qkv, starts), k=64)
    check_gradient(lambda *t: F.attention(*t, starts), *qkv)
    check_gradient(lambda *t: F.attention(*t, starts, scale=0.3), *qkv)


def test_a_scale_of_numpys_widens_nothing():
    q, k, v = (a.astype(np.float32) for a in heads_of(np.random.default_rng(0)))
    one, other = (F.attention(*map(Tensor, (q, k, v)), scale=scale).data for scale in (0.3, np.float64(0.3)))
    np.testing.assert_array_equal(one, other)  # to the bit


@given(generators, st.integers(0, 4))
def test_attention_never_sees_the_future(rng, t):
    q, k, v = heads_of(rng)
    before = attend(q, k, v)
    k[:, :, t + 1 :], v[:, :, t + 1 :] = 1e3, -1e3
    np.testing.assert_array_equal(attend(q, k, v)[:, :, : t + 1], before[:, :, : t + 1])  # to the bit


@given(generators)
def test_grouped_queries_are_repeated_heads(rng):
    q, k, v = heads_of(rng, heads=6, kv=2)
    assert_close(attend(q, k, v), attend(q, np.repeat(k, 3, axis=1), np.repeat(v, 3, axis=1)))


@given(generators, st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_packed_segments_are_separate_calls(rng, lengths):
    total = sum(lengths)
    q, k, v = heads_of(rng, batch=1, time=total, keys=total)
    ends = np.cumsum(lengths)
    starts = np.repeat(ends - lengths, lengths)[None]
    packed = attend(q, k, v, starts)
    for a, b in zip(ends - lengths, ends, strict=True):
        assert_close(packed[:, :, a:b], attend(*(x[:, :, a:b] for x in (q, k, v))))


@given(generators, st.integers(1, 4))
def test_left_padding_changes_nothing(rng, pad):
    q, k, v = heads_of(rng, batch=1)
    padded = [np.concatenate([np.full(x.shape[:2] + (pad, 3), 9.0), x], axis=2) for x in (q, k, v)]
    starts = np.array([[*range(pad), *[pad] * 5]])  # a pad sees itself, so that no row is empty
    assert_close(attend(*padded, starts)[:, :, pad:], attend(q, k, v))


@given(generators, st.integers(1, 4))
def test_a_cache_continues_what_the_whole_computes(rng, past):
    q, k, v = heads_of(rng)
    assert_close(attend(q[:, :, past:], k, v), attend(q, k, v)[:, :, past:])


@pytest.mark.parametrize("time, past", [(127, 0), (128, 0), (129, 0), (300, 0), (130, 7)])
def test_more_queries_than_a_tile(time, past):
    rng = np.random.default_rng(time)
    qkv = heads_of(rng, 2, 2, 1, time, past + time, 2)
    starts = random_starts(rng, 2, time, past)
    assert_close(attend(*qkv, starts), dense_attention(*qkv, starts), k=64)
    check_gradient(lambda *t: F.attention(*t, starts), *qkv)


@given(generators, st.integers(1, 4))
def test_the_size_of_a_tile_is_nobodys_business(rng, queries):
    q, k, v = heads_of(rng)
    g, starts = rng.standard_normal(q.shape), random_starts(rng, 2, 5)
    f = lambda *t: F.attention(*t, starts)
    y, grads = gradients(f, q, k, v, g=g)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(primitives, "QUERIES", queries)
        tiled, tiled_grads = gradients(f, q, k, v, g=g)
    for a, b in zip([tiled, *tiled_grads], [y, *grads], strict=True):
        assert_close(a, b, k=64)


@pytest.mark.parametrize("q, k, v", [((1, 3, 2, 2), (1, 2, 2, 2), (1, 2, 2, 2)), ((1, 2, 3, 2),) + ((1, 2, 2, 2),) * 2])
def test_attention_refuses_what_does_not_fit(q, k, v):
    with pytest.raises(ValueError, match="multiple of the key heads"):
        attend(np.ones(q), np.ones(k), np.ones(v))


# ------------------------------------------------------------------------------------- embedding, dropout, linear


@given(generators, st.integers(1, 5), st.lists(st.integers(0, 4), min_size=1, max_size=8))
def test_embedding_is_a_product_with_one_hot_rows(rng, n, ids):
    w, ids = rng.standard_normal((5, n)), np.array(ids)
    np.testing.assert_array_equal(F.embedding(Tensor(w), ids[None]).data, w[ids][None])
    check_gradient(lambda t: F.embedding(t, ids), w)
    check_gradient(lambda t: F.embedding(t, ids[None]), w)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_keeps_the_mean_and_scales_what_stays(p, dtype):
    n = 40_000
    y = F.dropout(Tensor(np.ones(n, dtype)), p, generator=Generator(1)).data
    assert y.dtype == dtype and set(np.unique(y)) == {dtype(0), dtype(1 / (1 - p))}
    assert abs(y.mean() - 1) < 5 * math.sqrt(p / (1 - p) / n)  # five standard errors


@given(arrays(), st.integers(0, 2**32))
def test_the_dropout_mask_repeats_from_the_generators_state(x, seed):
    generator = Generator(seed)
    first, second = (F.dropout(Tensor(x), 0.5, generator=generator).data for _ in range(2))
    generator.restore((seed, 0))
    np.testing.assert_array_equal(F.dropout(Tensor(x), 0.5, generator=generator).data, first)
    np.testing.assert_array_equal(F.dropout(Tensor(x), 0.5, generator=generator).data, second)


@given(arrays(), st.integers(0, 2**32))
def test_dropout_uses_the_same_mask_backward(x, seed):
    check_gradient(lambda a: F.dropout(a, 0.3, generator=Generator(seed)), x)


def test_dropout_keeps_no_mask():
    y = F.dropout(Tensor(np.ones((8, 8)), requires_grad=True), 0.5)
    [(_, rule)] = y.node.edges
    assert not [cell for cell in rule.__closure__ if isinstance(cell.cell_contents, np.ndarray | Tensor)]


def test_dropout_is_nothing_outside_training():
    x, generator = Tensor(np.ones(9)), Generator(0)
    assert F.dropout(x, 0.5, training=False, generator=generator) is x
    assert F.dropout(x, 0.0, generator=generator) is x
    assert generator.state == (0, 0)
    for p in (1.0, -0.1):
        with pytest.raises(ValueError, match=r"must be in \[0, 1\)"):
            F.dropout(x, p)


@given(arrays(1, 3), generators, st.integers(1, 4))
def test_linear(x, rng, n_out):
    w, b = rng.standard_normal((n_out, x.shape[-1])), rng.standard_normal(n_out)
    assert_close(F.linear(Tensor(x), Tensor(w), Tensor(b)).data, x @ w.T + b)
    check_gradient(F.linear, x, w)
    check_gradient(F.linear, x, w, b)


def test_linear_says_what_does_not_fit():
    with pytest.raises(ValueError, match=r"input has 3 features, the weight \(2, 4\) takes 4"):
        F.linear(Tensor(np.ones((1, 3))), Tensor(np.ones((2, 4))))


# ------------------------------------------------------------------------------------------------- the loss, the head

CLASSES = 5
labels = st.sampled_from([F.IGNORE, *range(CLASSES)])
targets_of = st.lists(labels, min_size=1, max_size=6).filter(lambda t: max(t) >= 0)


@given(generators, targets_of)
def test_cross_entropy_is_the_mean_of_the_live_positions(rng, targets):
    x, targets = rng.standard_normal((len(targets), CLASSES)), np.array(targets)
    live = targets != F.IGNORE
    loss = F.cross_entropy(Tensor(x), targets).data
    assert_close(loss, -F.log_softmax(Tensor(x)).data[live, targets[live]].mean())
    check_gradient(lambda t: F.cross_entropy(t, targets), x)
    _, (gx,) = gradients(lambda t: F.cross_entropy(t, targets), x)
    assert not gx[~live].any()
    assert_close(gx.sum(-1), np.zeros(len(x)))


def test_cross_entropy_takes_leading_axes_and_ignores_a_constant():
    x, targets = normal(2, 3, CLASSES), np.array([[0, 4, -100], [2, 2, 1]])
    flat = F.cross_entropy(Tensor(x.reshape(6, CLASSES)), targets.reshape(-1)).item()
    assert F.cross_entropy(Tensor(x), targets).item() == flat
    check_gradient(lambda t: F.cross_entropy(t, targets), x)
    assert abs(F.cross_entropy(Tensor(x + 1e4), targets).item() - flat) <= 64 * EPS * 1e4


LOSSES = [
    lambda t: F.cross_entropy(Tensor(np.zeros((2, CLASSES))), np.array(t)),
    lambda t: head.linear_cross_entropy(Tensor(np.zeros((2, 3))), Tensor(np.zeros((CLASSES, 3))), np.array(t)),
]


@pytest.mark.parametrize("loss", LOSSES, ids=["cross_entropy", "linear_cross_entropy"])
def test_losses_say_what_is_wrong_with_the_targets(loss):
    with pytest.raises(ValueError, match="every target is -100"):
        loss([-100, -100])
    for wrong in (CLASSES, -1, -101):
        with pytest.raises(ValueError, match=rf"target {wrong} is outside 0..4"):
            loss([0, wrong])


def head_case(dtype, targets, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((len(targets), 4)).astype(dtype), rng.standard_normal((CLASSES, 4)).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@given(
    targets=targets_of, seed=seeds, rows=st.integers(0, 7), few=st.integers(0, 3), factor=st.sampled_from([1.0, -3.0])
)
def test_the_fused_head_is_the_loss_of_the_linear_layer(dtype, targets, seed, rows, few, factor):
    x, w = head_case(dtype, targets, seed)
    targets = np.array(targets)
    g = dtype(factor)
    loss, grads = gradients(lambda a, b: F.cross_entropy(F.linear(a, b), targets), x, w, g=g)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(head, "CHUNK_BYTES", rows * CLASSES * np.dtype(dtype).itemsize)  # 0: one row at a time, too
        patch.setattr(head, "BLOCK_BYTES", few * CLASSES * np.dtype(dtype).itemsize)
        patch.setattr(head, "TILE_BYTES", few * 4 * np.dtype(dtype).itemsize)
        fused, fused_grads = gradients(lambda a, b: head.linear_cross_entropy(a, b, targets), x, w, g=g)
    assert fused.dtype == dtype and all(a.dtype == dtype for a in fused_grads)
    for a, b in zip([fused, *fused_grads], [loss, *grads], strict=True):
        assert_close(a, b, k=32 * max(1, np.abs(x).max() * np.abs(w).max()))


@given(targets_of, seeds)
def test_the_fused_head_has_its_slope(targets, seed):
    targets = np.array(targets)
    check_gradient(lambda a, b: head.linear_cross_entropy(a, b, targets), *head_case(np.float64, targets, seed))


@pytest.mark.parametrize("store", [lambda w: HalfWeight.quantize(w, "bfloat16"), lambda w: NF4Weight.quantize(w, 32)])
def test_the_fused_head_takes_stored_weights(store, monkeypatch):
    targets = np.array([0, 31, -100, 7, 7, 2])
    x, stored = normal(6, 32).astype(np.float32), store(normal(32, 32).astype(np.float32))
    dense = Tensor(stored.dense())
    monkeypatch.setattr(head, "CHUNK_BYTES", 2 * 32 * 4)
    monkeypatch.setattr("tinyllm.frozen.weight.TILE_BYTES", 8 * 32 * 4)
    loss, (gx,) = gradients(lambda a: F.cross_entropy(F.linear(a, dense), targets), x)
    fused, (fused_gx,) = gradients(lambda a: head.linear_cross_entropy(a, stored, targets), x)
    assert_close(fused, loss, k=64)
    assert_close(fused_gx, gx, k=64)


def test_the_fused_head_computes_no_gradient_that_nobody_wants():
    x, w = head_case(np.float64, [1, 2])
    assert not head.linear_cross_entropy(Tensor(x), Tensor(w), np.array([1, 2])).requires_grad
    with no_grad():
        assert not head.linear_cross_entropy(Tensor(x, requires_grad=True), Tensor(w), np.array([1, 2])).requires_grad


@pytest.mark.parametrize("f", [F.softmax, F.log_softmax, F.gelu, F.silu])
def test_integers_become_float32_as_in_arithmetic(f):
    y, same = f(Tensor(np.array([[1, 2, 3]]))), f(Tensor([[1.0, 2.0, 3.0]]))
    assert y.dtype == np.float32 and np.array_equal(y.data, same.data)


def test_the_first_input_may_be_named_too():
    x = Tensor(normal(2, 3))
    assert np.array_equal(F.softmax(x=x).data, F.softmax(x).data)
    assert F.cross_entropy(logits=x, targets=[0, 2]).item() == F.cross_entropy(x, [0, 2]).item()
    with pytest.raises(TypeError, match="softmax takes a Tensor, not numpy.ndarray"):
        F.softmax(x=normal(3))
    with pytest.raises(TypeError, match="softmax has no parameter 'input'; there are: x"):
        F.softmax(input=x)
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'x'"):
        F.softmax()


@pytest.mark.parametrize("targets", [[0.0, 1.0], [True, False], ["0", "1"]], ids=str)
def test_targets_are_integers(targets):
    with pytest.raises(TypeError, match="targets must be integers"):
        F.cross_entropy(Tensor(np.zeros((2, 3))), targets)


@given(st.integers(1, 10**5), st.integers(1, 10**5))
def test_chunks_of_the_head_are_even_and_as_few_as_can_be(rows, classes):
    height, most = head.chunk_rows(rows, classes, 4), max(1, head.CHUNK_BYTES // (4 * classes))
    assert 1 <= height <= most and -(-rows // height) == -(-rows // most)
    last = rows - height * (-(-rows // height) - 1)
    assert 1 <= last <= height


# ------------------------------------------------------------------------------- what fits only by accident is refused


def ones(*shape, dtype=np.float64):
    return Tensor(np.ones(shape, dtype), requires_grad=True)


QKV = (1, 2, 4, 2)
MISFITS = {
    "silu_mul": (lambda: F.silu_mul(ones(2, 3), ones(3)), r"up has shape \(3,\), but \(2, 3\) is needed"),
    "rms_norm": (lambda: F.rms_norm(ones(2, 3), ones(1)), r"weight has shape \(1,\), but \(3,\)"),
    "layer_norm, weight": (lambda: F.layer_norm(ones(2, 3), ones(1, 3), ones(3)), r"weight has shape \(1, 3\)"),
    "layer_norm, bias": (lambda: F.layer_norm(ones(2, 3), ones(3), ones(1)), r"bias has shape \(1,\)"),
    "linear": (lambda: F.linear(ones(2, 3), ones(4, 3), ones(1)), r"bias has shape \(1,\), but \(4,\)"),
    "rope, time": (lambda: F.rope(ones(*QKV), *np.ones((2, 1, 1, 1, 1))), r"cos has shape \(1, 1, 1, 1\)"),
    "rope, batch": (lambda: F.rope(ones(*QKV), *np.ones((2, 3, 1, 4, 1))), r"cos has shape \(3, 1, 4, 1\)"),
    "rope, odd": (lambda: F.rope(ones(1, 1, 4, 3), *np.ones((2, 1, 1, 4, 1))), "3 is odd"),
    "attention, n": (lambda: F.attention(ones(1, 2, 4, 3), ones(*QKV), ones(*QKV)), "multiple of the key heads"),
    "attention, batch": (lambda: F.attention(ones(2, 2, 4, 2), ones(*QKV), ones(*QKV)), "multiple of the key heads"),
    "starts, shape": (
        lambda: F.attention(*[ones(*QKV)] * 3, np.zeros(4, int)),
        r"starts has shape \(4,\), but \(1, 4\)",
    ),
    "starts, rows": (lambda: F.attention(*[ones(*QKV)] * 3, np.zeros((2, 4), int)), r"starts has shape \(2, 4\)"),
    "starts, late": (lambda: F.attention(*[ones(*QKV)] * 3, [[0, 0, 3, 0]]), "behind its own query"),
    "starts, early": (lambda: F.attention(*[ones(*QKV)] * 3, [[0, 0, -1, 0]]), "below 0"),
}


@pytest.mark.parametrize("name", MISFITS)
def test_shapes_that_would_broadcast_by_accident_are_refused(name):
    f, words = MISFITS[name]
    with pytest.raises(ValueError, match=words):
        f()


def test_starts_are_integers_up_to_the_query_itself():
    q = ones(*QKV)
    with pytest.raises(TypeError, match="starts must be integers, not float64"):
        F.attention(q, q, q, np.zeros((1, 4)))
    own = F.attention(q, q, Tensor(normal(*QKV)), [[0, 1, 2, 3]]).data
    np.testing.assert_array_equal(own, normal(*QKV))  # each sees itself alone
    assert F.attention(ones(1, 2, 2, 2), q, q, [[2, 3]]).shape == (1, 2, 2, 2)  # the last two of four positions


@pytest.mark.parametrize("rows, targets", [((3, 4), (1,)), ((2, 3, 4), (3, 2)), ((2, 4), (3,)), ((2, 4), (2, 1))])
def test_targets_have_the_shape_of_the_rows(rows, targets):
    for loss in (F.cross_entropy, lambda x, t: head.linear_cross_entropy(x, ones(5, x.shape[-1]), t)):
        with pytest.raises(ValueError, match=r"targets has shape .* is needed"):
            loss(ones(*rows), np.ones(targets, int))


def test_targets_may_be_a_tensor():
    x = ones(2, 4)
    assert F.cross_entropy(x, Tensor(np.array([1, 2]))).item() == F.cross_entropy(x, [1, 2]).item()


MIXED = {
    "silu_mul": lambda a, b: F.silu_mul(a(2, 3), b(2, 3)),
    "rms_norm": lambda a, b: F.rms_norm(a(2, 3), b(3)),
    "layer_norm, weight": lambda a, b: F.layer_norm(a(2, 3), b(3), a(3)),
    "layer_norm, bias": lambda a, b: F.layer_norm(a(2, 3), a(3), b(3)),
    "linear, weight": lambda a, b: F.linear(a(2, 3), b(4, 3)),
    "linear, bias": lambda a, b: F.linear(a(2, 3), a(4, 3), b(4)),
    "attention, k": lambda a, b: F.attention(a(*QKV), b(*QKV), a(*QKV)),
    "attention, v": lambda a, b: F.attention(a(*QKV), a(*QKV), b(*QKV)),
}


@pytest.mark.parametrize("name", MIXED)
@pytest.mark.parametrize("first", DTYPES)
def test_two_dtypes_in_one_function_are_an_error(name, first):
    second = np.float64 if first == np.float32 else np.float32
    a, b = (lambda *shape, dtype=dtype: ones(*shape, dtype=dtype) for dtype in (first, second))
    with pytest.raises(TypeError, match=rf"{name.split(',')[0]}: .*convert (one )?with .astype"):
        MIXED[name](a, b)


def test_float32_gains_stand_beside_half_precision_and_nothing_wider():
    half, single, double = (lambda *shape, dtype=dtype: ones(*shape, dtype=dtype) for dtype in ("f2", "f4", "f8"))
    assert F.rms_norm(half(2, 3), single(3)).dtype == F.linear(half(2, 3), single(4, 3), single(4)).dtype == np.float16
    assert F.layer_norm(half(2, 3), single(3), single(3)).dtype == np.float16
    for f in (lambda: F.rms_norm(half(2, 3), double(3)), lambda: F.rms_norm(single(2, 3), half(3))):
        with pytest.raises(TypeError, match="rms_norm: the tensors are"):
            f()
