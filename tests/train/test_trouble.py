"""Failures name their place, and break nothing."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.train.runs import loader, make, records, snapshot
from tinyllm.formats import safetensors_file
from tinyllm.tensor import Parameter, no_grad
from tinyllm.train import NonFiniteLoss, TrainConfig, train
from tinyllm.train import loop as module
from tinyllm.train.checkpoint import CHECKPOINT
from tinyllm.train.trouble import watching_outputs


def test_a_loss_that_is_not_finite_names_layer_and_step(tmp_path):
    model = make()
    model.layers[1].mlp.up_proj.weight.data *= np.float32(1e30)  # finite, but its product with gate and down is not
    model.layers[1].mlp.down_proj.weight.data *= np.float32(1e30)
    before = snapshot(model)
    with np.errstate(all="ignore"), pytest.raises(NonFiniteLoss, match=r"step 1: .* layers\.1\.mlp\.down_proj;"):
        train(model, loader(), None, TrainConfig(steps=3), tmp_path)
    for name, p in model.named_parameters():
        np.testing.assert_array_equal(p.numpy(), before[name], err_msg=name)


def test_weights_that_are_not_finite_are_named():
    model = make()
    model.layers[0].self_attn.q_proj.weight.data[0, 0] = np.nan
    with (
        np.errstate(all="ignore"),
        pytest.raises(NonFiniteLoss, match=r"step 1: the weight layers\.0\.self_attn\.q_proj\.weight"),
    ):
        train(model, loader(), None, TrainConfig(steps=3))


def test_a_gradient_that_is_not_finite_is_named_and_not_applied(monkeypatch, tmp_path):
    model = make()
    plain = module.squared_norms
    calls = []

    def spoil(parameters):
        calls.append(1)
        if len(calls) == 2:
            model.layers[1].self_attn.v_proj.weight.grad[0, 0] = np.inf
            calls.append(snapshot(model))
        return plain(parameters)

    monkeypatch.setattr(module, "squared_norms", spoil)
    with pytest.raises(NonFiniteLoss, match=r"step 2: .*the gradient of layers\.1\.self_attn\.v_proj\.weight"):
        train(model, loader(), None, TrainConfig(steps=3), tmp_path)
    for name, p in model.named_parameters():
        np.testing.assert_array_equal(p.numpy(), calls[-1][name], err_msg=name)
    assert [record["step"] for record in records(tmp_path)] == [1]


def test_explaining_leaves_no_watcher_behind():
    from tinyllm.nn import Module

    plain = Module.__call__
    model = make()
    model.norm.weight.data[:] = np.float32(3e38)
    with np.errstate(all="ignore"), pytest.raises(NonFiniteLoss):
        train(model, loader(), None, TrainConfig(steps=1))
    assert Module.__call__ is plain


def test_only_the_layers_of_one_model_are_watched_and_only_for_a_while():
    model, other = make(), make()
    ids = loader().batch(0).ids
    own = model.layers[1].mlp.forward
    model.layers[1].mlp.forward = lambda x: own(x)  # somebody else's; it stays
    shadow = model.layers[1].mlp.forward
    for m in (model, other):
        m.layers[1].mlp.down_proj.weight.data *= np.float32(np.inf)
    with np.errstate(all="ignore"), no_grad():
        with watching_outputs(model) as paths:
            other.hidden(ids)
            assert paths == []
            model.hidden(ids)
        assert paths == ["layers.1.mlp.down_proj"]
    for m in (model, other):
        shadows = [path for path, layer in m.named_modules() if "forward" in vars(layer)]
        assert shadows == (["layers.1.mlp"] if m is model else [])
    assert model.layers[1].mlp.forward is shadow


def test_a_layer_that_stands_in_two_places_keeps_no_watcher_after_a_failure():
    model = make()
    model.layers[1] = model.layers[0]
    with pytest.raises(KeyError), watching_outputs(model):
        assert "forward" in vars(model.layers[0])
        raise KeyError
    assert "forward" not in vars(model.layers[0])


def test_a_parameter_without_a_gradient_is_named():
    model = make()
    model.forgotten = Parameter(np.zeros(3, np.float32))
    with pytest.raises(RuntimeError, match="no gradient: forgotten;"):
        train(model, loader(), None, TrainConfig(steps=3))


@pytest.mark.parametrize("held_out", [True, False])
@pytest.mark.parametrize("broken_step", [1, 2])
def test_what_an_update_broke_is_neither_logged_nor_saved(held_out, broken_step, monkeypatch, tmp_path):
    model, plain, calls = make(), module.AdamW.step, []

    def breaking(self):
        plain(self)
        calls.append(1)
        if len(calls) == broken_step:
            model.layers[1].mlp.up_proj.weight.data[0, 0] = np.nan

    monkeypatch.setattr(module.AdamW, "step", breaking)
    held = loader(seed=1) if held_out else None
    with pytest.raises(NonFiniteLoss, match=rf"step {broken_step}: the weight layers\.1\.mlp\.up_proj\.weight"):
        train(model, loader(), held, TrainConfig(steps=broken_step, save_every=1), tmp_path)
    assert (tmp_path / CHECKPOINT).exists() == (broken_step > 1)
    if broken_step > 1:
        arrays, about = safetensors_file.read(tmp_path / CHECKPOINT)
        assert all(np.isfinite(a).all() for a in arrays.values())
        assert json.loads(about["tinyllm_checkpoint"])["step"] == broken_step - 1
    assert all(np.isfinite(record.get("eval", 0.0)) for record in records(tmp_path))


def test_a_held_out_loss_that_is_not_finite_ends_the_run(monkeypatch, tmp_path):
    losses = iter([1.0, float("inf")])
    monkeypatch.setattr(module, "evaluate", lambda *args: next(losses))
    with pytest.raises(NonFiniteLoss, match="step 1: the held-out loss is inf"):
        train(make(), loader(), loader(seed=1), TrainConfig(steps=1), tmp_path)
    assert not (tmp_path / CHECKPOINT).exists()
