"""The decoder, AdamW and a LoRA layer against numbers that torch and PEFT computed in float64; neither is needed here.

`tests/interop/make_model_golden.py` wrote golden/model.npz, inputs and results.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import tinyllm
from tinyllm.lora import Adapter, LoRAConfig, LoRALinear
from tinyllm.models import DecoderModel
from tinyllm.nn import Linear

with np.load(Path(__file__).parents[1] / "golden" / "model.npz", allow_pickle=False) as file:
    GOLDEN = {name: file[name] for name in file.files}
CASES = sorted({name.rpartition("/")[0] for name in GOLDEN if "/" in name})


def cases(kind):
    """The names of one kind's cases; none would be a test that passes without looking."""
    found = [case for case in CASES if case.startswith(kind + "/")]
    assert found, f"golden/model.npz has no {kind} case"
    return found


def parts(case):
    return {name.rpartition("/")[2]: GOLDEN[name] for name in GOLDEN if name.rpartition("/")[0] == case}


def close(ours, golden, what):
    """Equal to 1e-9 of the largest magnitude: far above float64's rounding, far below any other formula."""
    assert ours.shape == golden.shape, f"{what} has shape {ours.shape}, not {golden.shape}"
    assert np.abs(golden).max() > 0
    np.testing.assert_allclose(ours, golden, rtol=0, atol=1e-9 * np.abs(golden).max(), err_msg=what)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("case", cases("decoder"))
def test_logits_loss_and_every_gradient_equal_torch(case, checkpointing):
    golden = parts(case)
    model = DecoderModel(**json.loads(golden["config"].item()), dtype=np.float64, seed=0)
    model.checkpointing = checkpointing
    parameters = dict(model.named_parameters())
    names = json.loads(golden["names"].item())
    assert set(parameters) == set(names)
    ends = np.cumsum([parameters[name].data.size for name in names])
    assert ends[-1] == golden["weights"].size == golden["grads"].size
    for name, weight in zip(names, np.split(golden["weights"], ends[:-1]), strict=True):
        parameters[name].data = weight.astype(np.float64).reshape(parameters[name].shape)
    close(model(golden["ids"]).data, golden["logits"], "logits")
    loss = model.loss(golden["ids"], golden["targets"])
    close(np.asarray(loss.data), golden["loss"], "loss")
    loss.backward()
    for name, grad in zip(names, np.split(golden["grads"], ends[:-1]), strict=True):
        close(parameters[name].grad.ravel(), grad, f"gradient of {name}")


@pytest.mark.parametrize("case", cases("adamw"))
def test_ten_adamw_steps_equal_torch(case):
    golden = parts(case)
    p = tinyllm.Parameter(golden["w"].copy())
    optimizer = tinyllm.optim.AdamW([p], **json.loads(golden["settings"].item()))
    for i, (g, expected) in enumerate(zip(golden["grads"], golden["steps"], strict=True)):
        p.grad = g
        optimizer.step()
        close(p.data, expected, f"step {i + 1}")


@pytest.mark.parametrize("case", cases("lora"))
def test_lora_layer_equals_pefts(case):
    golden = parts(case)
    settings = json.loads(golden["settings"].item())
    config = LoRAConfig(settings["r"], settings["lora_alpha"], use_rslora=settings["use_rslora"])
    layer = LoRALinear(Linear(*golden["weight"].shape[::-1], dtype=np.float64))
    layer.adapters["default"] = Adapter(layer.base_layer, config.rank_of("0"), config.scale_of("0"), config.dropout)
    layer.active = ("default",)
    a, b = layer.lora_A["default"], layer.lora_B["default"]
    layer.base_layer.weight.data, layer.base_layer.bias.data = golden["weight"], golden["bias"]
    a.data, b.data = golden["a"], golden["b"]
    x = tinyllm.Tensor(golden["x"], requires_grad=True)
    y = layer(x)
    y.backward(golden["g"])
    for name, ours in {"y": y.data, "dx": x.grad, "da": a.grad, "db": b.grad}.items():
        close(ours, golden[name], name)
