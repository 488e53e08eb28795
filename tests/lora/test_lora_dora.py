"""DoRA: what its paper (arXiv 2402.09353) says of it, as properties."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyllm.backend.random import manual_seed
from tinyllm.frozen import store
from tinyllm.frozen.nf4 import NF4Weight
from tinyllm.frozen.weight import FrozenWeight
from tinyllm.lora import (
    LoRALinear,
    apply_lora,
    disable_lora,
    enable_lora,
    get_lora_parameters,
    lora_layers,
    merge_lora,
    unmerge_lora,
)
from tinyllm.lora.dora import DoRA, row_norms
from tinyllm.models import DecoderModel
from tinyllm.models.config import llama_shape
from tinyllm.nn import Linear
from tinyllm.qlora import apply_qlora
from tinyllm.tensor import Parameter, Tensor

IDS = np.arange(12)[None] % 40
STORAGES = ["float32", "float16", "bfloat16", "nf4"]


def model_of(storage="float32", dtype=np.float32, **options):
    shape = llama_shape(intermediate_size=48, tie_embeddings=False, bias=True)
    model = DecoderModel(40, 32, 2, 2, **shape, seed=1, storage=storage, dtype=dtype)
    manual_seed(3)
    return apply_lora(model, **{"rank": 3, "alpha": 6.0, "use_dora": True, "verbose": False, **options})


def shake(model, size=0.1):
    rng = np.random.default_rng(0)
    for p in get_lora_parameters(model):
        p.data = p.data + (size * rng.standard_normal(p.shape)).astype(p.dtype)
    return model


def layer_of(storage="float64", n_in=7, n_out=5, rank=2, seed=0, bias=True, dropout=0.0, dtype=np.float64):
    """One adapted layer, far from its start, and its W, A, B, m, s."""
    rng = np.random.default_rng(seed)
    base = Linear(n_in, n_out, bias, dtype)
    w = rng.standard_normal((n_out, n_in)).astype(dtype)
    base.weight = Parameter(w, False) if storage.startswith("float64") else store(w, storage, block_size=32)
    layer = LoRALinear(base)
    layer.adapters["a"] = DoRA(base, rank, 1.5, dropout)
    layer.active = ("a",)
    for p in layer.parts("a").values():
        p.data = p.data + rng.standard_normal(p.shape).astype(dtype)
        p.requires_grad = True
    w = base.weight.dense() if isinstance(base.weight, FrozenWeight) else w
    return layer, w, layer.lora_A["a"].data, layer.lora_B["a"].data, layer.magnitude["a"].data, 1.5


@pytest.mark.parametrize("storage", STORAGES)
def test_at_first_it_is_the_base_to_the_last_bit(storage):
    model = model_of(storage, target_modules="all-linear")
    fresh = model(IDS).data
    for _, layer in lora_layers(model):
        w = layer.base_layer.weight
        norms = np.sqrt((np.asarray(w.dense() if isinstance(w, FrozenWeight) else w.data) ** 2).sum(1))
        assert np.allclose(layer.magnitude["default"].data, norms, rtol=1e-6, atol=0)
    assert np.array_equal(fresh, disable_lora(model)(IDS).data)


def test_at_first_it_is_the_base_with_dropout_too():
    model = model_of(dropout=0.5).train()
    assert np.array_equal(model(IDS).data, disable_lora(model)(IDS).data)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(["float64", "nf4"]), st.integers(1, 9), st.integers(1, 9), st.integers(1, 4), st.integers(0, 99),
    st.booleans(),
)  # fmt: skip
def test_the_formula_and_the_lengths_of_the_merged_rows(storage, n_in, n_out, rank, seed, bias):
    layer, w, a, b, m, s = layer_of(storage, n_in, n_out, rank, seed, bias)
    v = w + s * b @ a
    x = np.random.default_rng(seed).standard_normal((3, n_in))
    wanted = x @ (m[:, None] * v / np.linalg.norm(v, axis=1, keepdims=True)).T + (
        layer.base_layer.bias.data if bias else 0
    )
    size = np.abs(wanted).max() + np.abs(x).max() * np.abs(m).max() * n_in
    assert np.abs(layer(Tensor(x)).data - wanted).max() <= 1e-13 * size
    merged = layer.folded()[0].data
    assert np.allclose(np.linalg.norm(merged, axis=1), np.abs(m), rtol=1e-14, atol=1e-14)
    directions = np.sign(m) * (merged * v).sum(1) / np.abs(m) / np.linalg.norm(v, axis=1)
    assert np.allclose(directions, 1, rtol=0, atol=1e-13)  # m changes lengths alone
    layer.merged = True
    assert np.abs(layer(Tensor(x)).data - wanted).max() <= 1e-13 * size


def gradients(layer, x, g):
    for p in layer.parts("a").values():
        p.grad = None
    x = Tensor(x, requires_grad=True)
    layer(x).backward(g)
    return {**{part: p.grad for part, p in layer.parts("a").items()}, "x": x.grad}


@pytest.mark.parametrize("storage", ["float64", "nf4"])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_gradients_take_the_norm_for_a_constant_and_nothing_else(storage, dropout):
    """Numeric slopes of sum(g * y), with |V| held at its value: for m and x that is the whole gradient anyway."""
    layer, w, a, b, m, s = layer_of(storage, dropout=dropout)
    rng = np.random.default_rng(1)
    x, g = rng.standard_normal((4, 7)), rng.standard_normal((4, 5))
    layer.train()
    manual_seed(5)
    found = gradients(layer, x, g)
    manual_seed(5)
    keep = layer.adapters["a"].dropout(Tensor(np.ones_like(x))).data
    n = np.linalg.norm(w + s * b @ a, axis=1)  # the constant

    def at(a=a, b=b, m=m, x=x):
        turned = (x * keep) @ (w + s * b @ a).T * (m / n)
        return float((g * (turned + x @ w.T - (x * keep) @ w.T)).sum())

    start = {"a": a, "b": b, "m": m, "x": x}
    for part, key in {"lora_A.weight": "a", "lora_B.weight": "b", "lora_magnitude_vector": "m", "x": "x"}.items():
        d, h = rng.standard_normal(start[key].shape), 1e-5
        slope = (at(**{key: start[key] + h * d}) - at(**{key: start[key] - h * d})) / (2 * h)
        assert abs((found[part] * d).sum() - slope) <= 1e-8 * (1 + abs(slope)), part


def test_the_whole_gradient_would_be_another_and_m_s_is_the_same():
    """With |V| not detached, G loses its part along V (eq. 6 of the paper): that is not what is done here."""
    layer, w, a, b, m, s = layer_of()
    rng = np.random.default_rng(1)
    x, g = rng.standard_normal((4, 7)), rng.standard_normal((4, 5))
    found = gradients(layer, x, g)
    v = w + s * b @ a
    n = np.linalg.norm(v, axis=1, keepdims=True)
    outer = g.T @ x  # dL/d(merged weight)
    detached = m[:, None] / n * outer
    whole = detached - (detached * v).sum(1, keepdims=True) * v / n**2
    assert np.allclose(found["lora_B.weight"], s * detached @ a.T, rtol=1e-12)
    assert np.allclose(found["lora_A.weight"], s * b.T @ detached, rtol=1e-12)
    assert not np.allclose(found["lora_B.weight"], s * whole @ a.T, rtol=1e-2)
    assert np.allclose(found["lora_magnitude_vector"], (outer * v / n).sum(1), rtol=1e-12)


@pytest.mark.parametrize("storage", STORAGES)
def test_merge_unmerge_enable_disable(storage):
    model = model_of(storage, target_modules="all-linear")
    off = disable_lora(model)(IDS).data
    on = shake(enable_lora(model))(IDS).data
    merged = merge_lora(model)(IDS).data
    assert np.abs(merged - on).max() <= 1e-5 * np.abs(on).max() and np.abs(on - off).max() > 1e-3
    assert np.array_equal(disable_lora(model)(IDS).data, off)
    assert np.array_equal(enable_lora(model)(IDS).data, merged)
    assert np.array_equal(unmerge_lora(model)(IDS).data, on)
    assert np.array_equal(disable_lora(model)(IDS).data, off)
    for_good = merge_lora(enable_lora(model), keep_base=False)(IDS).data
    assert np.abs(for_good - on).max() <= 1e-5 * np.abs(on).max()


def test_of_several_each_adds_its_own_difference():
    model = model_of(dtype=np.float64)
    apply_lora(model, 2, 5.0, use_dora=True, adapter_name="second", verbose=False)
    apply_lora(model, 2, 5.0, adapter_name="plain", verbose=False)
    from tinyllm.lora import set_adapter

    layer = model.layers[0].self_attn.q_proj
    set_adapter(model, ["default", "second", "plain"])
    shake(model)
    x, w = np.random.default_rng(0).standard_normal((3, 32)), layer.base_layer.weight.data
    total, sets = w.copy(), {}
    for name in layer.active:
        v = layer.adapters[name].scale * layer.lora_B[name].data @ layer.lora_A[name].data + w
        if name in layer.magnitude:
            v = v * (layer.magnitude[name].data / np.linalg.norm(v, axis=1))[:, None]
        sets[name] = v - w
        total += v - w
    wanted = x @ total.T + layer.base_layer.bias.data
    assert np.allclose(layer(Tensor(x)).data, wanted, rtol=1e-12, atol=1e-12)
    assert np.allclose(layer.folded()[0].data, total, rtol=1e-12, atol=1e-12)
    assert all(np.abs(d).max() > 1e-3 for d in sets.values())


def test_what_trains_and_a_row_of_zeros():
    model = model_of(target_modules=["up_proj"])
    names = [n for n, p in model.named_parameters() if p.requires_grad]
    assert len(names) == 6 and sum(".magnitude.default" in n for n in names) == 2
    layer, *_ = layer_of()
    layer.base_layer.weight.data[2] = 0
    layer.lora_B["a"].data[2] = 0
    layer.magnitude["a"].data[2] = 0
    y = layer(Tensor(np.ones((1, 7))))
    assert np.isfinite(y.data).all() and y.data[0, 2] == layer.base_layer.bias.data[2]
    y.backward(np.ones_like(y.data))
    assert np.isfinite(layer.lora_B["a"].grad).all() and np.isfinite(layer.magnitude["a"].grad).all()


def test_the_norms_see_every_change_at_once():
    """Nothing is cached: an optimiser changes A and B in place, and a base may be replaced."""
    layer, w, a, b, m, s = layer_of()
    x = Tensor(np.ones((1, 7)))
    before = layer(x).data
    layer.lora_B["a"].data *= 2
    after = layer(x).data
    layer.lora_B["a"].data = layer.lora_B["a"].data.copy()
    assert np.array_equal(layer(x).data, after) and not np.array_equal(after, before)
    layer.base_layer.weight = Parameter(w[::-1].copy(), False)
    assert not np.array_equal(layer(x).data, after)


def test_a_merged_weight_follows_m_alone_too():
    layer, w, a, b, m, s = layer_of()
    layer.merged, x = True, Tensor(np.ones((1, 7)))
    before = layer(x).data - layer.base_layer.bias.data
    layer.magnitude["a"].data = 2 * m
    assert np.allclose(layer(x).data - layer.base_layer.bias.data, 2 * before, rtol=1e-12)


def test_no_float_copy_of_a_stored_weight_outlives_a_tile(monkeypatch):
    monkeypatch.setattr("tinyllm.frozen.weight.TILE_BYTES", 64 * 64 * 4)
    monkeypatch.setattr(NF4Weight, "dense", lambda self: pytest.fail("a whole weight was made"))
    w = NF4Weight.quantize(np.random.default_rng(0).standard_normal((640, 64)).astype(np.float32))
    a, b = np.ones((2, 64), np.float32), np.ones((640, 2), np.float32)
    shapes = {tile.shape for _, tile in w.tiles()}
    assert shapes == {(64, 64)} and row_norms(w, a, b, 0.5).shape == (640,)


def test_apply_qlora_takes_the_lengths_of_the_quantised_rows():
    shape = llama_shape(intermediate_size=48, tie_embeddings=False)
    model = apply_qlora(DecoderModel(40, 32, 1, 2, **shape, seed=1), 2, 4.0, use_dora=True, verbose=False)
    layer = model.layers[0].self_attn.q_proj
    assert isinstance(layer.base_layer.weight, NF4Weight)
    norms = np.linalg.norm(layer.base_layer.weight.dense(), axis=1)
    assert np.allclose(layer.magnitude["default"].data, norms, rtol=1e-6)
    loss = model.loss(IDS, IDS)
    loss.backward()
    assert all(p.grad is not None for p in get_lora_parameters(model))
