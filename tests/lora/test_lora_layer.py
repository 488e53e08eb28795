"""The formula alone: what an adapter adds, what it folds, and what its weights are called."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tinyllm import ops
from tinyllm.frozen import HalfWeight
from tinyllm.lora import (
    Adapter,
    DoRA,
    LoRALinear,
    apply_lora,
    get_lora_parameters,
    linear_names,
    merge_lora,
    set_adapter,
    untie_head,
)
from tinyllm.models import DecoderModel
from tinyllm.nn import Linear, Module
from tinyllm.tensor import Parameter, Tensor, no_grad

N_IN, N_OUT, R = 5, 4, 3  # all different, so that nothing fits that is turned or swapped
IDS = np.arange(12)[None] % 40


def whole(*shape):
    """Small whole numbers in float64: sums and products of them are exact in any order."""
    return arrays(np.float64, shape, elements=st.integers(-9, 9).map(float))


@given(whole(2, 3, N_IN), whole(R, N_IN), whole(N_OUT, R), whole(N_OUT, N_IN), st.integers(1, 64), st.booleans())
def test_an_adapter_is_its_formula_to_the_last_bit(x, a, b, w, eighths, dropout):
    layer, scale = Linear(N_IN, N_OUT, dtype=np.float64), eighths / 8
    adapter = Adapter(layer, R, scale, 0.5 if dropout else 0.0)
    adapter.eval()  # no dropout outside of training
    adapter.lora_A.data, adapter.lora_B.data = a, b
    assert np.array_equal(adapter(Tensor(x)).data, x @ (scale * (b @ a)).T)
    rows = slice(1, 3)
    assert np.array_equal(adapter.fold(w[rows], w[rows], rows), (w + scale * (b @ a))[rows])


@given(whole(2, 3, N_IN), whole(R, N_IN), whole(N_OUT, R), whole(N_OUT, N_IN), whole(N_OUT), st.integers(1, 64))
def test_a_layer_adds_what_its_active_adapters_say(x, a, b, w, bias, eighths):
    layer = LoRALinear(Linear(N_IN, N_OUT, dtype=np.float64))
    layer.base_layer.weight.data, layer.base_layer.bias.data = w, bias
    for name, factor in (("one", 1), ("two", -2), ("idle", 5)):
        adapter = layer.adapters[name] = Adapter(layer.base_layer, R, eighths / 8)
        adapter.lora_A.data, adapter.lora_B.data = a, factor * b
    layer.active = ("one", "two")
    wanted = x @ (w - eighths / 8 * (b @ a)).T + bias
    assert np.array_equal(layer(Tensor(x)).data, wanted)
    layer.merge()
    assert layer.merged and np.array_equal(layer(Tensor(x)).data, wanted)
    layer.unmerge()
    assert not layer.merged and np.array_equal(layer(Tensor(x)).data, wanted)
    layer.enabled = False
    assert np.array_equal(layer(Tensor(x)).data, x @ w.T + bias)


def test_dropout_hits_the_update_s_input_in_training_alone():
    adapter = Adapter(Linear(N_IN, N_OUT, dtype=np.float64), R, 1.0, 0.5)
    adapter.lora_B.data = np.ones((N_OUT, R))
    x = Tensor(np.ones((100, N_IN)))
    assert len(np.unique(adapter.train()(x).data.round(9), axis=0)) > 10
    assert len(np.unique(adapter.eval()(x).data.round(9), axis=0)) == 1


def test_a_merged_weight_follows_another_scale():
    layer = LoRALinear(Linear(N_IN, N_OUT, dtype=np.float64))
    adapter = layer.adapters["x"] = Adapter(layer.base_layer, R, 1.0)
    layer.active, adapter.lora_B.data = ("x",), np.ones((N_OUT, R))
    layer.merge()
    x = np.ones((1, N_IN))
    once, plain = layer(Tensor(x)).data, layer.base_layer(Tensor(x)).data
    adapter.scale = 3.0
    assert np.allclose(layer(Tensor(x)).data - plain, 3 * (once - plain), rtol=1e-12)


@given(st.integers(0, 999), st.booleans())
def test_dora_leaves_the_bias_as_it_is(seed, trained):
    rng = np.random.default_rng(seed)
    layer = LoRALinear(Linear(N_IN, N_OUT, dtype=np.float64))
    adapter = layer.adapters["x"] = DoRA(layer.base_layer, R, 1.5)
    layer.active, layer.base_layer.bias.data = ("x",), rng.standard_normal(N_OUT)
    if trained:
        layer.train_bias("x")
    for p in adapter.parameters():
        p.data = p.data + rng.standard_normal(p.shape)
    v = layer.base_layer.weight.data + 1.5 * adapter.lora_B.data @ adapter.lora_A.data
    x, g, length = rng.standard_normal((6, N_IN)), rng.standard_normal((6, N_OUT)), np.linalg.norm(v, axis=1)
    bias, m = layer.chosen_bias(), adapter.magnitude.data
    bias.requires_grad, bias.grad = True, None
    y = layer(Tensor(x))
    assert np.allclose(y.data, x @ (v * (m / length)[:, None]).T + bias.data, rtol=1e-12, atol=1e-12 * np.abs(m).max())
    y.backward(g)
    budget = 64 * np.finfo(float).eps * (np.abs(g) * (1 + np.abs(m / length))).sum(0)
    assert (np.abs(bias.grad - g.sum(0)) <= budget).all()


def test_names_in_a_state_dict_are_those_of_files_and_each_leads_to_its_weight():
    model = DecoderModel(40, 32, 1, 2, seed=1)
    apply_lora(model, 2, target_modules=["up_proj"], use_dora=True, bias="all", verbose=False)
    apply_lora(model, 3, target_modules=["up_proj"], adapter_name="second", modules_to_save=["norm"], verbose=False)
    state = model.state_dict()
    up = [name.removeprefix("layers.0.mlp.up_proj.") for name in state if "up_proj" in name]
    assert up == [
        "lora_A.default", "lora_A.second", "lora_B.default", "lora_B.second", "magnitude.default",
        "trained_bias.default", "base_layer.weight", "base_layer.bias",
    ]  # fmt: skip
    assert "layers.0.mlp.down_proj.trained_bias.default" in state and "norm.copies.second.weight" in state
    assert all(model.get(name) is weight for name, weight in state.items())
    assert len({id(weight) for weight in state.values()}) == len(state)


def test_a_weight_put_in_an_adapter_s_place_is_used():
    layer = LoRALinear(Linear(N_IN, N_OUT, dtype=np.float64))
    adapter = layer.adapters["x"] = Adapter(layer.base_layer, R, 1.0)
    other = Adapter(layer.base_layer, R, 1.0).lora_A
    layer.set_weight("lora_A.x", other)
    assert adapter.lora_A is other and layer.lora_A["x"] is other


def test_a_wrapped_model_has_the_layers_that_it_had():
    """Nothing inside a wrapper is seen as a layer of the model's own: not the original, not a copy."""

    def layers(model: Module) -> list[tuple[str, int]]:
        return [(path, id(module.inner())) for path, module in model.named_modules(wrapped=False)]

    model = DecoderModel(40, 32, 1, 2, seed=1, tie_embeddings=False)
    before, names = layers(model), linear_names(model)
    assert names[-1] == "lm_head"
    apply_lora(model, 2, target_modules=["up_proj", "lm_head"], bias="all", verbose=False)
    assert layers(model) == before and linear_names(model) == names


def test_an_adapter_of_another_kind_is_a_subclass_and_trains_all_that_it_has():
    class Gated(Adapter):
        def __init__(self, layer: Linear, rank: int, scale: float):
            super().__init__(layer, rank, scale)
            self.gate = Parameter(np.ones(layer.out_features))

        def forward(self, x: Tensor, y: Any = None, layer: Any = None) -> Tensor:
            return super().forward(x, y, layer) * self.gate

        def fold(self, folded: Any, w: Any, rows: slice) -> Any:
            return folded + (super().fold(w, w, rows) - w) * self.gate.data[rows, None]

    class Net(Module):
        def __init__(self) -> None:
            self.q_proj = Linear(N_IN, N_OUT, dtype=np.float64)

    net = apply_lora(Net(), R, target_modules=["q_proj"], verbose=False)
    layer = net.q_proj
    layer.adapters["default"] = Gated(layer.base_layer, R, 2.0)
    set_adapter(net, "default")
    parameters = get_lora_parameters(net)
    assert [p.shape for p in parameters] == [(R, N_IN), (N_OUT, R), (N_OUT,)]
    rng = np.random.default_rng(0)
    for p in parameters:
        p.data = rng.standard_normal(p.shape)
    a, b, gate = (p.data for p in parameters)
    x, w = rng.standard_normal((6, N_IN)), layer.base_layer.weight.data
    wanted = x @ (w + gate[:, None] * (2 * b @ a)).T + layer.base_layer.bias.data
    assert np.allclose(layer(Tensor(x)).data, wanted, rtol=1e-12, atol=1e-12)
    assert np.allclose(merge_lora(net).q_proj(Tensor(x)).data, wanted, rtol=1e-12, atol=1e-12)


def test_adapters_inside_a_module_that_another_trains_whole_merge_for_good():
    model = DecoderModel(40, 32, 1, 2, seed=1, dtype=np.float64)
    apply_lora(model, 2, target_modules=["up_proj"], verbose=False)
    apply_lora(model, 2, target_modules=["qkv_proj"], modules_to_save=["mlp"], adapter_name="second", verbose=False)
    set_adapter(model, ["default", "second"])
    rng = np.random.default_rng(0)
    for p in get_lora_parameters(model):
        p.data = p.data + rng.standard_normal(p.shape)
    wanted = model(IDS).data
    merge_lora(model, keep_base=False)
    assert np.abs(model(IDS).data - wanted).max() <= 1e-12 * np.abs(wanted).max()
    assert model.state_dict().keys() == DecoderModel(40, 32, 1, 2, seed=1).state_dict().keys()


def test_a_module_trained_whole_inside_another_one_merges_for_good():
    model = DecoderModel(40, 32, 1, 2, seed=1, dtype=np.float64)
    apply_lora(model, 2, modules_to_save=["up_proj"], verbose=False)
    apply_lora(model, 2, modules_to_save=["mlp"], adapter_name="second", verbose=False)
    set_adapter(model, ["default", "second"])
    wanted = model(IDS).data
    merge_lora(model, keep_base=False)
    assert np.array_equal(model(IDS).data, wanted)  # what was trained has not moved yet
    assert model.state_dict().keys() == DecoderModel(40, 32, 1, 2, seed=1).state_dict().keys()


@pytest.mark.parametrize("trains", [True, False])
def test_an_untied_head_trains_if_the_embedding_does(trains):
    model = untie_head(DecoderModel(40, 32, 1, 2, seed=1).requires_grad_(trains))
    assert model.lm_head.weight.requires_grad is trains is model.embed_tokens.weight.requires_grad


@pytest.mark.parametrize("kind", [Adapter, DoRA])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_adapters_train_in_float32_beside_half_precision(kind, dropout):
    rng = np.random.default_rng(0)
    base = Linear(N_IN, N_OUT, bias=False)
    base.weight = HalfWeight.quantize(rng.standard_normal((N_OUT, N_IN)).astype(np.float32), "float16")
    base.weight.dtype = np.dtype(np.float16)  # as in a model that computes in half precision
    layer = LoRALinear(base)
    layer.adapters["x"] = adapter = kind(base, R, 1.0, dropout)
    layer.active = ("x",)
    x = Tensor(rng.standard_normal((7, N_IN)).astype(np.float16), requires_grad=True)
    with no_grad():
        assert np.array_equal(layer(x).data, base(x).data)  # B is 0, and m the rows' lengths
    y = layer(x)
    ops.sum(y).backward()
    trained = [p for _, p in adapter.named_parameters()]
    assert y.dtype == np.float16 and all(p.dtype == p.grad.dtype == np.float32 for p in trained)


def test_a_merged_layer_uses_the_bias_that_counts_now():
    layer = LoRALinear(Linear(3, 4))
    layer.adapters, layer.active = {"default": Adapter(layer.base_layer, 2, 0.5)}, ("default",)
    layer.merge()
    x = Tensor(np.ones((1, 3), np.float32))
    before = layer(x).data
    layer.base_layer.bias = Parameter(layer.base_layer.bias.data + 1)
    assert np.allclose(layer(x).data, before + 1)
    layer.train_bias("default")
    layer.adapters["default"].trained_bias.data += 1
    assert np.allclose(layer(x).data, before + 2)
    layer.adapters["default"].trained_bias = Parameter(layer.base_layer.bias.data + 2)
    assert np.allclose(layer(x).data, before + 3)


def test_a_merged_weight_follows_whatever_it_is_made_of():
    """The base's weight and its array, A and B and their arrays, the scale, and which adapters are active."""
    for change in (
        lambda layer, a: setattr(layer.base_layer, "weight", Parameter(layer.base_layer.weight.data * 2)),
        lambda layer, a: setattr(layer.base_layer.weight, "data", layer.base_layer.weight.data * 2),
        lambda layer, a: setattr(a, "lora_A", Parameter(a.lora_A.data * 2)),
        lambda layer, a: setattr(a.lora_B, "data", a.lora_B.data * 2),
        lambda layer, a: setattr(a, "scale", 2 * a.scale),
        lambda layer, a: setattr(layer, "active", ("default", "other")),
    ):
        layer = LoRALinear(Linear(3, 4))
        layer.adapters = {name: Adapter(layer.base_layer, 2, 0.5) for name in ("default", "other")}
        layer.active, adapter = ("default",), layer.adapters["default"]
        for each in layer.adapters.values():
            each.lora_B.data = np.ones_like(each.lora_B.data)
        layer.merge()
        before = layer.folded()[0].data
        assert layer.folded()[0].data is before
        change(layer, adapter)
        after = layer.folded()[0].data
        layer.merge()
        assert (after != before).any() and (after == layer.folded()[0].data).all()
