"""DecoderModel against a plain torch decoder on the same weights: logits, loss and every gradient, and AdamW."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="not run: torch is not installed")
T = torch.nn.functional

from torch_decoder import SHAPES, torch_decoder  # noqa: E402

import tinyllm  # noqa: E402
from tinyllm.lora import Adapter, LoRALinear  # noqa: E402
from tinyllm.models import DecoderModel  # noqa: E402
from tinyllm.nn import Linear  # noqa: E402


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype, budget", [("float64", 1e-9), ("float32", 1e-4)])
def test_logits_loss_and_every_gradient_equal_torch(shape, dtype, budget):
    model = DecoderModel(101, 24, 2, dtype=dtype, seed=3, max_seq_len=32, **SHAPES[shape])
    rng = np.random.default_rng(0)
    for p in model.parameters():  # away from the initial symmetry: zero biases, unit gains, tiny weights
        p.data = (p.data + 0.3 * rng.standard_normal(p.shape)).astype(dtype)
    ids = rng.integers(0, 101, (3, 17))
    targets = rng.integers(0, 101, (3, 17))
    targets[0, :5] = -100
    weights = {name: torch.tensor(p.data, requires_grad=True) for name, p in model.named_parameters()}
    logits = torch_decoder(model, weights, torch.tensor(ids))
    loss = T.cross_entropy(logits.reshape(-1, 101), torch.tensor(targets).reshape(-1))
    loss.backward()
    ours = model.loss(ids, targets)
    ours.backward()

    def close(a, b):
        b = b.detach().numpy()
        np.testing.assert_allclose(a, b, rtol=0, atol=budget * np.abs(b).max())

    close(model(ids).data, logits)
    close(ours.data, loss)
    for name, p in model.named_parameters():
        close(p.grad, weights[name].grad)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_ten_adamw_steps_equal_torch(decay):
    rng = np.random.default_rng(1)
    w = rng.standard_normal((5, 7))
    p, q = tinyllm.Parameter(w.copy()), torch.nn.Parameter(torch.tensor(w))
    ours = tinyllm.optim.AdamW([p], lr=0.03, weight_decay=decay)
    theirs = torch.optim.AdamW([q], lr=0.03, weight_decay=decay)
    for _ in range(10):
        g = rng.standard_normal((5, 7)) * 10.0 ** rng.integers(-6, 3)
        p.grad, q.grad = g, torch.tensor(g)
        ours.step()
        theirs.step()
        np.testing.assert_allclose(p.data, q.detach().numpy(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("use_rslora", [False, True])
def test_lora_layer_equals_pefts(use_rslora):
    peft = pytest.importorskip("peft", reason="not run: peft is not installed")
    rng = np.random.default_rng(2)
    theirs = torch.nn.Sequential(torch.nn.Linear(12, 20)).double()
    config = peft.LoraConfig(r=4, lora_alpha=10, target_modules=["0"], use_rslora=use_rslora)
    wrapped = peft.get_peft_model(theirs, config, autocast_adapter_dtype=False).double()
    layer = wrapped.base_model.model[0]
    ours = LoRALinear(Linear(12, 20, dtype=np.float64))
    ours.adapters["default"] = Adapter(ours.base_layer, 4, 10 / (2 if use_rslora else 4))
    ours.active = ("default",)
    a, b = rng.standard_normal((4, 12)), rng.standard_normal((20, 4))
    ours.base_layer.weight.data = layer.base_layer.weight.detach().numpy()
    ours.base_layer.bias.data = layer.base_layer.bias.detach().numpy()
    ours.lora_A["default"].data, ours.lora_B["default"].data = a, b
    layer.lora_A["default"].weight.data, layer.lora_B["default"].weight.data = torch.tensor(a), torch.tensor(b)
    x, g = rng.standard_normal((2, 5, 12)), rng.standard_normal((2, 5, 20))
    x_ours, x_theirs = tinyllm.Tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
    y, z = ours(x_ours), wrapped(x_theirs)
    np.testing.assert_allclose(y.data, z.detach().numpy(), rtol=1e-12, atol=1e-12)
    y.backward(g)
    z.backward(torch.tensor(g))
    np.testing.assert_allclose(x_ours.grad, x_theirs.grad.numpy(), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(ours.lora_A["default"].grad, layer.lora_A["default"].weight.grad.numpy(), atol=1e-12)
    np.testing.assert_allclose(ours.lora_B["default"].grad, layer.lora_B["default"].weight.grad.numpy(), atol=1e-12)
