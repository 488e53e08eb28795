"""AdamW against algorithm 2 written as a loop over numbers; clipping, schedules, groups, states."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyllm.lora import apply_lora
from tinyllm.models import DecoderModel
from tinyllm.optim import SCHEDULES, AdamW, clip_grad_norm, lr_factor, parameter_groups
from tinyllm.tensor import Parameter

EPS = np.finfo(float).eps
seeds = st.integers(0, 2**32 - 1)
betas = st.sampled_from([0.0, 0.5, 0.9, 0.999])


def algorithm_2(w, gradients, lr, beta1, beta2, eps, decay):
    """One number, Loshchilov & Hutter 2019, algorithm 2 (with lr inside the decay, as PyTorch has it)."""
    m = v = 0.0
    for t, g in enumerate(gradients, 1):
        if g is None:
            continue
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        m_hat, v_hat = m / (1 - beta1**t), v / (1 - beta2**t)
        w = w - lr * (m_hat / (math.sqrt(v_hat) + eps) + decay * w)
    return w


def test_a_single_number_is_updated_like_a_row_of_one():
    p, row = Parameter(np.array(1.0, np.float32)), Parameter(np.array([1.0], np.float32))
    optimizer = AdamW([p, row], lr=0.1)
    for gradient in (0.5, -2.0):
        p.grad, row.grad = np.array(gradient, np.float32), np.array([gradient], np.float32)
        optimizer.step()
    assert p.data == row.data[0] != 1


@given(seeds, st.floats(1e-6, 0.1), betas, betas, st.sampled_from([1e-8, 1e-4]), st.sampled_from([0.0, 0.01, 0.5]))
def test_twenty_steps_are_algorithm_2(seed, lr, beta1, beta2, eps, decay):
    rng = np.random.default_rng(seed)
    start, gradients = rng.standard_normal((2, 3)), rng.standard_normal((20, 2, 3)) * 10.0 ** rng.integers(-3, 3)
    p = Parameter(start.copy())
    array, optimiser = p.data, AdamW([p], lr, (beta1, beta2), eps, decay)
    for g in gradients:
        p.grad = g.copy()
        optimiser.step()
        assert np.array_equal(p.grad, g)
    assert p.data is array  # in place
    for i in np.ndindex(2, 3):
        expected = algorithm_2(start[i], gradients[(slice(None), *i)], lr, beta1, beta2, eps, decay)
        assert abs(p.data[i] - expected) <= 1e-12 * max(1.0, abs(start[i]))


def test_the_first_step_is_lr_times_the_sign():
    p = Parameter(np.zeros(3))
    p.grad = np.array([5.0, -1e-3, 0.0])
    AdamW([p], lr=0.1, eps=0.0 + 1e-300, weight_decay=0.0).step()
    assert np.abs(p.data - [-0.1, 0.1, 0]).max() <= 4 * EPS


def test_the_defaults_are_pytorchs():
    (group,) = AdamW([Parameter(np.zeros(1))]).groups
    assert (group["lr"], group["betas"], group["eps"], group["weight_decay"]) == (1e-3, (0.9, 0.999), 1e-8, 0.01)


def test_a_parameter_without_gradient_is_left_alone_and_counts_its_own_steps():
    rng = np.random.default_rng(0)
    p, q = Parameter(rng.standard_normal(2)), Parameter(rng.standard_normal(2))
    start, late = q.data.copy(), rng.standard_normal(2)
    optimiser = AdamW([p, q], lr=0.1, weight_decay=0.5)
    for _ in range(3):
        p.grad = rng.standard_normal(2)
        optimiser.step()
    assert np.array_equal(q.data, start)
    q.grad = late
    optimiser.step()
    expected = [algorithm_2(w, [g], 0.1, 0.9, 0.999, 1e-8, 0.5) for w, g in zip(start, late, strict=True)]
    assert np.abs(q.data - expected).max() <= 1e-14


def test_groups_have_their_own_numbers_and_the_rest_of_the_defaults():
    a, b = Parameter(np.ones(2)), Parameter(np.ones(2))
    optimiser = AdamW(
        [{"params": [a], "lr": 0.5, "weight_decay": 0.0}, {"params": (x for x in [b]), "betas": (0.5, 0.9)}], lr=0.1
    )
    for _ in range(3):
        a.grad, b.grad = np.array([1.0, -2.0]), np.array([3.0, 4.0])
        optimiser.step()
    for p, grads, numbers in ((a, (1, -2), (0.5, 0.9, 0.999, 1e-8, 0.0)), (b, (3, 4), (0.1, 0.5, 0.9, 1e-8, 0.01))):
        for w, g in zip(p.data, grads, strict=True):
            assert abs(w - algorithm_2(1.0, [g] * 3, *numbers)) <= 1e-14


def test_the_learning_rate_factor_is_of_the_first_learning_rate():
    a, b = Parameter(np.ones(2)), Parameter(np.ones(2))
    optimiser = AdamW([{"params": [a], "lr": 0.5}, {"params": [b]}], lr=0.1)
    optimiser.set_lr_factor(0.1)
    optimiser.set_lr_factor(0.5)
    assert [g["lr"] for g in optimiser.groups] == [0.25, 0.05]


def test_float32_stays_float32_and_in_place():
    p = Parameter(np.ones(3, np.float32))
    p.grad = np.ones(3, np.float32)
    optimiser = AdamW([p])
    optimiser.step()
    assert p.dtype == np.float32 and {m.dtype.name for m in optimiser.moments[0]} == {"float32"}


def test_zero_grad():
    p = Parameter(np.ones(3))
    p.grad = np.ones(3)
    AdamW([p]).zero_grad()
    assert p.grad is None


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda p: AdamW([]), "nothing to train"),
        (lambda p: AdamW([{"params": []}]), "nothing to train"),
        (lambda p: AdamW([p, p]), "twice"),
        (lambda p: AdamW([{"params": [p]}, {"params": [p]}]), "twice"),
        (lambda p: AdamW([p], lr=-1), "lr"),
        (lambda p: AdamW([p], eps=-1), "eps"),
        *(
            (lambda p, name=name, bad=bad: AdamW([p], **{name: bad}), "finite")
            for name in ("lr", "eps", "weight_decay")
            for bad in (math.nan, math.inf)
        ),
        *((lambda p, bad=bad: clip_grad_norm([p], bad), "max_norm must be above 0") for bad in (0.0, -1.0, math.nan)),
        (lambda p: AdamW([p], betas=(0.9, 1.0)), "betas"),
        (lambda p: AdamW([p], weight_decay=-0.1), "weight_decay"),
        (lambda p: lr_factor("cosin", 0, 1, 0), "no schedule 'cosin'; there are: constant, linear, cosine"),
    ],
)
def test_errors_say_what_is_wrong(make, message):
    with pytest.raises(ValueError, match=message):
        make(Parameter(np.ones(2)))


# --- states


def run(seed, first, rest, resume):
    rng = np.random.default_rng(seed)
    params = [Parameter(rng.standard_normal(s).astype(np.float32)) for s in ((2, 3), (4,), (1,))]
    groups = lambda: [{"params": params[:1], "lr": 0.3}, {"params": params[1:], "weight_decay": 0.0}]
    optimiser = AdamW(groups(), lr=0.01)
    for step in range(first + rest):
        if step == first and resume:
            state = optimiser.state_dict()
            params = [Parameter(p.data.copy()) for p in params]
            optimiser = AdamW(groups(), lr=77.0)
            optimiser.load_state_dict(state)
            for m, v in state["m"].items():
                v[...] = np.nan  # what was loaded is a copy
                state["v"][m][...] = np.nan
        for i, p in enumerate(params):
            g = rng.standard_normal(p.shape).astype(np.float32)
            p.grad = None if i == 2 and step % 2 else g
        optimiser.set_lr_factor(lr_factor("cosine", step, first + rest, 2))
        optimiser.step()
    return [p.data for p in params]


@given(seeds, st.integers(0, 6), st.integers(1, 6))
def test_resumed_is_uninterrupted_bit_for_bit(seed, first, rest):
    for a, b in zip(run(seed, first, rest, False), run(seed, first, rest, True), strict=True):
        assert np.array_equal(a, b)


def stepped(*shapes, groups=1):
    params = [Parameter(np.ones(s)) for s in shapes]
    optimiser = AdamW([{"params": params[i::groups]} for i in range(groups)])
    for p in params:
        p.grad = np.ones(p.shape)
    optimiser.step()
    return optimiser


@pytest.mark.parametrize("shapes, groups", [([(2,), (4,)], 1), ([(2,), (3,), (1,)], 1), ([(2,), (3,)], 2)])
def test_a_state_of_another_optimiser_is_refused_and_changes_nothing(shapes, groups):
    optimiser = stepped((2,), (3,))
    before = optimiser.state_dict()
    with pytest.raises(ValueError, match="groups|shape"):
        optimiser.load_state_dict(stepped(*shapes, groups=groups).state_dict())
    after = optimiser.state_dict()
    assert after["step"] == before["step"] and after["groups"] == before["groups"]
    assert all(after[k][i] is before[k][i] for k in "mv" for i in before[k])


# --- parameter groups


def test_gains_and_biases_do_not_decay_and_matrices_do():
    model = DecoderModel(20, 16, 2, 2)
    groups = parameter_groups(model, 1e-3, 0.1)
    assert sum(len(g["params"]) for g in groups) == len(list(model.parameters()))
    decay = {id(p): g["weight_decay"] for g in groups for p in g["params"]}
    for name, p in model.named_parameters():
        assert decay[id(p)] == (0.0 if name.endswith("bias") or "norm" in name else 0.1), name
    assert {g["lr"] for g in groups} == {1e-3}


def test_lora_plus_trains_b_faster_and_only_what_trains_is_there():
    model = apply_lora(DecoderModel(20, 16, 2, 2), modules_to_save=["norm"], verbose=False)
    groups = parameter_groups(model, 1e-3, 0.1, loraplus_ratio=16)
    found = {id(p): (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    expected = {}
    for name, p in model.named_parameters():
        if p.requires_grad:
            expected[id(p)] = (16e-3 if ".lora_B." in name else 1e-3, 0.1 if "lora" in name else 0.0)
    assert found == expected and len(groups) == 3
    AdamW(groups)


@pytest.mark.parametrize(
    "params, words",
    [
        (Parameter(np.ones(3)), "not one Parameter: put it in"),
        ({"params": [Parameter(np.ones(3))]}, "not one dict: put it in"),
        ([{"params": Parameter(np.ones(3))}], "a list of parameters, not one alone"),
        ([("weight", Parameter(np.ones(3)))], "not a pair of name and parameter"),
        ([1, 2], "not a int"),
        ([np.ones(3)], "not a numpy.ndarray"),
        ([{"params": []}, Parameter(np.ones(3))], "groups alone or parameters alone"),
        ([{"parameters": []}], 'a dict with "params"'),
    ],
    ids=str,
)
def test_what_is_no_list_of_parameters_is_refused_in_one_sentence(params, words):
    with pytest.raises(TypeError, match=words):
        AdamW(params)


def test_a_group_may_be_a_generator_and_stays_the_callers():
    p = Parameter(np.ones(3))
    group = {"params": iter([p])}
    assert AdamW([group]).groups[0]["params"] == [p] and "lr" not in group


def test_a_frozen_model_has_nothing_to_train():
    model = DecoderModel(20, 16, 1, 2)
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="nothing to train"):
        AdamW(parameter_groups(model, 1e-3, 0.0))


# --- clipping


@given(seeds, st.floats(1e-3, 1e3), st.sampled_from([np.float32, np.float64]))
def test_clipping_bounds_the_joint_norm_and_keeps_the_direction(seed, max_norm, dtype):
    rng = np.random.default_rng(seed)
    params = [Parameter(np.zeros(s, dtype)) for s in ((3, 4), (5,), (1,), (2,))]
    for p in params[:3]:
        p.grad = (rng.standard_normal(p.shape) * 10.0 ** rng.integers(-3, 4)).astype(dtype)
    before = np.concatenate([p.grad.reshape(-1) for p in params[:3]])
    exact, eps = math.sqrt(math.fsum(float(g) ** 2 for g in before)), np.finfo(dtype).eps
    norm = clip_grad_norm(iter(params), max_norm)
    after = np.concatenate([p.grad.reshape(-1) for p in params[:3]])
    assert abs(norm - exact) <= 20 * eps * exact and params[3].grad is None and after.dtype == dtype
    if norm <= max_norm:
        assert np.array_equal(after, before)
    else:
        assert math.sqrt(math.fsum(float(g) ** 2 for g in after)) <= max_norm * (1 + 24 * eps)
        assert np.abs(after - before.astype(float) * (max_norm / exact)).max() <= 24 * eps * max_norm


def test_the_norm_is_joint():
    a, b = Parameter(np.zeros(1)), Parameter(np.zeros(1))
    a.grad, b.grad = np.array([3.0]), np.array([4.0])
    assert clip_grad_norm([a, b], 5.0) == 5.0 and a.grad == 3
    assert clip_grad_norm([a, b], 1.0) == 5.0
    assert abs(a.grad[0] - 0.6) <= EPS and abs(b.grad[0] - 0.8) <= EPS
    assert clip_grad_norm([], 1.0) == 0.0


# --- schedules


@given(st.sampled_from(sorted(SCHEDULES)), st.integers(1, 200), st.data())
def test_schedules_warm_up_fall_and_end(name, steps, data):
    warmup = data.draw(st.integers(0, steps - 1))
    factors = [lr_factor(name, i, steps, warmup) for i in range(steps + 3)]
    assert factors[:warmup] == [(i + 1) / warmup for i in range(warmup)]
    assert factors[warmup] == 1 and all(0 <= f <= 1 for f in factors)
    falling = factors[warmup:]
    assert all(a >= b for a, b in zip(falling, falling[1:], strict=False))
    assert all(abs(f - (1 if name == "constant" else 0)) <= EPS for f in factors[steps:])


def test_the_middle_of_each_schedule():
    assert lr_factor("constant", 50, 100, 0) == 1
    assert lr_factor("linear", 55, 100, 10) == 0.5
    assert abs(lr_factor("cosine", 55, 100, 10) - 0.5) <= EPS
    assert abs(lr_factor("cosine", 40, 100, 10) - 0.75) <= EPS
    assert lr_factor("linear", 100, 100, 100) == 1  # a warm-up as long as the run divides by nothing
