"""Writes tests/golden/model.npz with torch and PEFT in float64: ``python tests/interop/make_model_golden.py``.

Inputs are stored beside the results, so that no generator's stream has to stay the same. Each decoder's weights are
one vector in the order of `names`, kept as float16 because they were rounded to it: the float64 values are exact.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
import torch.nn.functional as T
from torch_decoder import SHAPES, torch_decoder

from tinyllm.models import DecoderModel

VOCAB, TIME = 23, 7
TINY: dict[str, Any] = {"vocab_size": VOCAB, "hidden_size": 12, "num_layers": 1, "intermediate_size": 16}
# Six heads of 12 channels would have one rotary frequency each, and a frequency of 1 at that whatever theta is.
CHANGES: dict[str, dict[str, Any]] = {"llama": {"head_dim": 4}, "llama-tied-one-kv": {"num_layers": 2}}
Arrays = dict[str, Any]


def uniform(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """In [-1, 1)."""
    return 2 * rng.random(shape) - 1


def decoder(shape: str, rng: np.random.Generator) -> Arrays:
    config = {**TINY, "max_seq_len": TIME + 1, **SHAPES[shape], **CHANGES.get(shape, {})}
    model = DecoderModel(**config, dtype=np.float64, seed=0)  # for its config and its weights' names and shapes alone
    start = {n: float("norm" in n and n.endswith("weight")) for n, _ in model.named_parameters()}  # gains around one
    weights = {n: (start[n] + 0.6 * uniform(rng, *p.shape)).astype(np.float16) for n, p in model.named_parameters()}
    ids, targets = (rng.random((2, 2, TIME)) * VOCAB).astype(np.int64)
    targets[0, :2] = -100
    w = {n: torch.tensor(array.astype(np.float64), requires_grad=True) for n, array in weights.items()}
    logits = torch_decoder(model, w, torch.tensor(ids))
    loss = T.cross_entropy(logits.reshape(-1, VOCAB), torch.tensor(targets).reshape(-1))
    loss.backward()
    return {
        "config": json.dumps(config),
        "names": json.dumps(list(weights)),
        "weights": np.concatenate([array.ravel() for array in weights.values()]),
        "ids": ids,
        "targets": targets,
        "logits": logits.detach().numpy(),
        "loss": loss.detach().numpy(),
        "grads": np.concatenate([w[n].grad.numpy().ravel() for n in weights]),
    }


def adamw(settings: dict[str, Any], rng: np.random.Generator) -> Arrays:
    """Ten steps, with gradients from 1e-6 to 1e2: at the small end eps counts."""
    w = uniform(rng, 3, 5)
    grads = uniform(rng, 10, 3, 5) * 10.0 ** np.floor(9 * rng.random((10, 1, 1)) - 6)
    q = torch.nn.Parameter(torch.tensor(w))
    optimizer = torch.optim.AdamW([q], **settings)
    steps = []
    for g in grads:
        q.grad = torch.tensor(g)
        optimizer.step()
        steps.append(q.detach().numpy().copy())
    return {"settings": json.dumps(settings), "w": w, "grads": grads, "steps": np.stack(steps)}


def lora(use_rslora: bool, rng: np.random.Generator) -> Arrays:
    settings = {"r": 3, "lora_alpha": 10, "use_rslora": use_rslora}
    config = peft.LoraConfig(target_modules=["0"], **settings)
    base = torch.nn.Sequential(torch.nn.Linear(8, 10)).double()
    wrapped = peft.get_peft_model(base, config, autocast_adapter_dtype=False).double()
    layer = wrapped.base_model.model[0]
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    inputs = {"weight": uniform(rng, 10, 8), "bias": uniform(rng, 10), "a": uniform(rng, 3, 8)}
    inputs |= {"b": uniform(rng, 10, 3), "x": uniform(rng, 2, 5, 8), "g": uniform(rng, 2, 5, 10)}
    parts = {"weight": layer.base_layer.weight, "bias": layer.base_layer.bias, "a": a, "b": b}
    for name, part in parts.items():
        part.data = torch.tensor(inputs[name])
    x = torch.tensor(inputs["x"], requires_grad=True)
    y = wrapped(x)
    y.backward(torch.tensor(inputs["g"]))
    results = {"y": y.detach(), "dx": x.grad, "da": a.grad, "db": b.grad}
    return {"settings": json.dumps(settings), **inputs, **{name: part.numpy() for name, part in results.items()}}


def main() -> None:
    torch.set_num_threads(1)
    rng = np.random.Generator(np.random.Philox(key=20))
    cases = {f"decoder/{shape}": decoder(shape, rng) for shape in SHAPES}
    cases["adamw/defaults"] = adamw({"lr": 0.03}, rng)
    cases["adamw/no decay"] = adamw({"lr": 0.03, "weight_decay": 0.0}, rng)
    cases["adamw/others"] = adamw({"lr": 0.03, "betas": [0.8, 0.95], "eps": 1e-6, "weight_decay": 0.1}, rng)
    cases["lora/plain"] = lora(False, rng)
    cases["lora/rslora"] = lora(True, rng)
    arrays = {f"{case}/{name}": np.asarray(array) for case, part in cases.items() for name, array in part.items()}
    arrays["versions"] = np.asarray(json.dumps({"torch": torch.__version__, "peft": peft.__version__}))
    path = Path(__file__).parents[1] / "golden" / "model.npz"
    np.savez_compressed(path, allow_pickle=False, **arrays)
    print(f"{len(cases)} cases, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
