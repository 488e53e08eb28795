"""Every variant of a model does on a backend what it does on NumPy in float64: loss, gradients, steps, tokens.

Weights are multiples of 1/512 below 1/2, so that float16 and bfloat16 hold them exactly and all runs begin alike. What
a run differs by is then its own rounding, and the budgets are multiples of the unit it rounds by: float32's, or that of
the half precision in which a card computes. (On a CPU half precision is storage alone.)
"""

from __future__ import annotations

import zlib
from functools import cache, partial

import numpy as np
import pytest

import tinyllm
from tests.backends import running_on
from tinyllm.backend.device import device, to_device, to_host
from tinyllm.data import Dataset, Example, Loader
from tinyllm.data.batches import Batch
from tinyllm.generate import generate
from tinyllm.lora import apply_lora, disable_lora, enable_lora, merge_lora, set_adapter, unmerge_lora
from tinyllm.lora.peft.adapter import load_adapter, save_adapter
from tinyllm.models import DecoderModel
from tinyllm.models.cache import KVCache
from tinyllm.models.config import llama_shape
from tinyllm.optim import AdamW, parameter_groups
from tinyllm.qlora import apply_qlora
from tinyllm.tensor import no_grad
from tinyllm.train import TrainConfig, train
from tinyllm.train.loop import accumulate, update
from tinyllm.train.loss_scale import LossScale

VOCAB, TIME, STEPS, LR = 23, 16, 2, 0.02
LLAMA = llama_shape(num_kv_heads=1, intermediate_size=24)
OWN_HEAD = LLAMA | {"tie_embeddings": False}
GPT2 = {"norm": "layer_norm", "positions": "learned", "activation": "gelu_tanh", "bias": True, "intermediate_size": 24}
lora, qlora = (partial(partial, apply, rank=3, alpha=3.0, verbose=False) for apply in (apply_lora, apply_qlora))
EVERY = "all-linear"


def two_adapters(model):
    apply_lora(model, 3, 3.0, target_modules=["q_proj", "up_proj"], verbose=False)
    apply_lora(
        model, 2, 3.0, target_modules=["q_proj", "down_proj"], adapter_name="other", use_dora=True, verbose=False
    )
    set_adapter(model, ["default", "other"])


# The model's shape, how it is made to train (None: all of it), and what is done otherwise.
VARIANTS = {
    "full": (OWN_HEAD, None, {}),
    "full, tied head, norms with biases": (GPT2, None, {}),
    "LoRA": (LLAMA, lora(), {}),
    "LoRA of a GPT-2": (GPT2, lora(target_modules=EVERY), {}),
    "rsLoRA": (LLAMA, lora(use_rslora=True, target_modules=EVERY), {}),
    "DoRA": (LLAMA, lora(use_dora=True, target_modules=EVERY), {}),
    "DoRA with dropout and biases": (GPT2, lora(use_dora=True, dropout=0.5, bias="lora_only"), {}),
    "dropout": (LLAMA | {"dropout": 0.25}, lora(dropout=0.5), {}),
    "all biases": (GPT2, lora(bias="all"), {}),
    "biases of queries, keys and values": (LLAMA | {"qkv_bias": True}, lora(bias="lora_only"), {}),
    "saved embedding, norm and head": (OWN_HEAD, lora(modules_to_save=["embed_tokens", "norm", "lm_head"]), {}),
    "saved positions and norms": (GPT2, lora(modules_to_save=["embed_positions", "input_layernorm"]), {}),
    "adapted head": (OWN_HEAD, lora(target_modules=["lm_head", "q_proj"]), {}),
    "sliding window": (LLAMA | {"sliding_window": 3}, lora(), {}),
    "normed queries and keys": (LLAMA | {"qk_norm": True}, lora(), {}),
    "packed rows": (LLAMA, lora(), {"packed": True}),
    "packed rows, sliding window": (GPT2 | {"sliding_window": 3}, lora(), {"packed": True}),
    "checkpointing": (LLAMA, lora(dropout=0.5, target_modules=EVERY), {"checkpointing": True}),
    "accumulation": (LLAMA, lora(), {"micro_batches": 3}),
    "two adapters": (LLAMA, two_adapters, {}),
    "four bits": (LLAMA, qlora(block_size=32, double_quant=False, target_modules=EVERY), {"storage": "float32"}),
    "DoRA over four bits": (OWN_HEAD, qlora(use_dora=True, modules_to_save=["lm_head"]), {"storage": "float32"}),
}


def must_be_floats(variant):
    """Whether what it trains or quantises may not be stored in fewer bits."""
    _, adapt, how = VARIANTS[variant]
    return adapt is None or "storage" in how or "modules_to_save" in getattr(adapt, "keywords", {})


UNITS = {"float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}  # one step of the last place, at 1
CASES = [
    (name, storage)
    for name in VARIANTS
    for storage in ("float32", "float16", "bfloat16", *(() if must_be_floats(name) else ("nf4",)))
]  # what the frozen weights are kept as


def computed_in(storage):
    """On a card also half precision; four bits in float32 are there in "four bits"."""
    return {"nf4": "bfloat16"}.get(storage, storage) if device() == "cuda" else "float32"


def on_grid(name, shape):
    """Weights, the same for the same name, of any number of bits: multiples of 1/512; gains about 1."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    drawn = np.clip(np.round(rng.normal(size=shape) * 0.12 * 512), -255, 255) / 512
    return drawn + 1 if "norm" in name and name.endswith("weight") else drawn


def base(variant, storage, dtype):
    """The model of a variant without adapters."""
    storage = "float32" if must_be_floats(variant) else storage
    shape = VARIANTS[variant][0]
    return DecoderModel(VOCAB, 16, 2, 2, max_seq_len=TIME, init=on_grid, storage=storage, dtype=dtype, **shape)


def made(variant, storage, dtype):
    """The model of a variant, everything that trains drawn anew: a fresh B is 0 and would hide most gradients."""
    _, adapt, how = VARIANTS[variant]
    model = base(variant, storage, dtype)
    tinyllm.manual_seed(7)
    if adapt is not None:
        adapt(model)
    for name, p in model.named_parameters():
        if p.requires_grad and "magnitude" not in name:
            p.data[...] = to_device(on_grid(name, p.shape).astype(p.dtype))
    model.checkpointing = how.get("checkpointing", False)
    return model


def batches(how):
    rng = np.random.default_rng(3)
    for _ in range(how.get("micro_batches", 1)):
        ids = rng.integers(0, VOCAB, (2, 9))
        labels = np.where(rng.random(ids.shape) < 0.3, -100, np.roll(ids, -1, axis=1))
        segments = np.repeat([[1, 2, 3, 0]], [4, 1, 3, 1], axis=1) if how.get("packed") else np.ones((1, 9), np.int64)
        segments = np.repeat(segments, 2, axis=0)
        yield Batch(ids, np.where(segments == 0, -100, labels), segments)


def trained(model, how):
    """Losses, norms and gradients of two steps, and where the steps led."""
    own = {name: p for name, p in model.named_parameters() if p.requires_grad}
    begin = {name: p.numpy().astype(np.float64) for name, p in own.items()}
    # With an eps this large an update is as smooth as its gradient: Adam would magnify the rounding of small ones.
    optimizer = AdamW([{**group, "eps": 0.1} for group in parameter_groups(model, LR, 0.1)])
    assert all(p.dtype == (np.float32 if model.half else model.dtype) for p in own.values())
    scale, found = LossScale(model.dtype), {}
    scale.value = min(scale.value, 2.0**8)  # float16's first steps would otherwise overflow and be left out
    model.train()
    for step in range(STEPS):
        optimizer.zero_grad()
        loss, norm = accumulate(model, list(own.values()), list(batches(how)), scale)
        found["loss", step], found["norm", step] = loss, norm
        found |= {("gradient", step, name): to_host(p.grad) / scale.value for name, p in own.items()}
        assert all(p.grad.dtype == p.dtype for p in own.values())
        assert update(optimizer, list(own.values()), norm, 1.0, scale) == norm
    return found | {("moved", name): p.numpy() - begin[name] for name, p in own.items()}


def answers(model, adapted):
    """Logits of a text read at once, by a cache, and with merged adapters; what is put back is the same bit for bit."""
    ids = np.random.default_rng(4).integers(0, VOCAB, (2, 6))

    def logits(cache=None):
        parts = [ids] if cache is None else [ids[:, :3], *np.split(ids[:, 3:], 3, axis=1)]
        return np.concatenate([model(part, cache=cache).numpy().astype(np.float64) for part in parts], axis=1)

    model.eval()
    with no_grad():
        found = {("logits",): logits(), ("logits", "cached"): logits(KVCache())}
        if adapted:
            disable_lora(model)
            found["logits", "disabled"] = logits()
            enable_lora(model)
            merge_lora(model)
            found["logits", "merged"] = logits()
            unmerge_lora(model)
            np.testing.assert_array_equal(logits(), found["logits",])
        found["tokens",] = generate(model, ids[0, :3].tolist(), 5)
        if adapted:
            merge_lora(model, keep_base=False)
            assert not [name for name, _ in model.named_weights() if "lora" in name]
            found["logits", "merged for good"] = logits()
    return found


def run(variant, storage, dtype):
    _, adapt, how = VARIANTS[variant]
    model = made(variant, storage, dtype)
    return trained(model, how) | answers(model, adapt is not None)


@cache
def exact(variant, storage):
    """The same in float64 by NumPy: what half the bits of a weight are, is the same number there."""
    assert device() == "cpu"
    return run(variant, storage, np.float64)


def largest(x):
    return float(np.abs(x).max())


# How many units, of which size: each of the largest number of its kind, gradients and moves of the largest of its own
# and a hundredth of the largest of all (some are sums of what cancels: those of keys' biases are 0 but for rounding).
BUDGET = {"loss": 4, "norm": 6, "gradient": 32, "moved": 16, "logits": 8}
ROUNDED = STEPS * 2.0**-23  # what float32 loses of a gain of about 1 that moves in so many steps


def overspent(found, wanted, unit):
    """What differs by more than its budget, and by how many units."""
    overall = {kind: max([largest(y) for key, y in wanted.items() if key[0] == kind]) for kind in BUDGET}
    for key, y in wanted.items():
        if (kind := key[0]) == "tokens":
            continue
        size = largest(y) + overall[kind] / 100 if kind in ("gradient", "moved") else overall[kind]
        off = largest(found[key] - y) - (ROUNDED if kind == "moved" else 0)
        if not off <= BUDGET[kind] * unit * size:
            yield f"{key}: {off / (unit * size):.1f} units"


def pytest_generate_tests(metafunc):
    """Through a compiler, which takes its time, a variant has one of the halves: a CPU only stores them."""
    if "where" in metafunc.fixturenames:
        spared = {(name, ("float16", "bfloat16")[i % 2]) for i, name in enumerate(VARIANTS)}
        chosen = metafunc.config.getoption("backend").split(",")
        every = [(b, *case) for b in chosen for case in CASES if b != "cuda_on_cpu" or case not in spared]
        metafunc.parametrize("where, variant, storage", every)


def test_a_variant_is_numpys(where, variant, storage):
    wanted = exact(variant, storage)
    with running_on(where):
        dtype = computed_in(storage)
        found = run(variant, storage, dtype)
    assert found.keys() == wanted.keys()
    assert not list(overspent(found, wanted, UNITS[dtype]))
    if dtype == "float32":
        assert found["tokens",] == wanted["tokens",]


@pytest.mark.parametrize("variant", ["saved embedding, norm and head", "DoRA with dropout and biases"])
def test_what_trained_in_float32_comes_back_from_its_files_bit_for_bit(backend, variant, tmp_path):
    with running_on(backend):
        model = made(variant, "bfloat16", computed_in("bfloat16"))
        trained(model, {})
        save_adapter(model, tmp_path)
        again = load_adapter(base(variant, "bfloat16", computed_in("bfloat16")), tmp_path)
        for name, p in model.named_parameters():
            if p.requires_grad:
                np.testing.assert_array_equal(again.get(name).numpy(), p.numpy(), name)


@pytest.mark.parametrize("variant, storage", [("dropout", "float32"), ("DoRA", "float16"), ("full", "bfloat16")])
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(backend, variant, storage, tmp_path):
    rng = np.random.default_rng(0)
    texts = [rng.integers(0, VOCAB, n) for n in (5, 9, 7, 12)]
    loader = Loader(Dataset(tuple(Example(ids, np.append(ids[1:], -100)) for ids in texts)), 2, TIME)

    def stop(record):
        if record.get("step") == 3:
            raise InterruptedError

    def ends(folder, **options):
        model = made(variant, storage, computed_in(storage))
        train(model, loader, None, TrainConfig(steps=4, lr=LR, warmup=0, save_every=2), folder, **options)
        return {name: p.numpy() for name, p in model.named_parameters() if p.requires_grad}

    with running_on(backend):
        whole = ends(tmp_path / "whole")
        with pytest.raises(InterruptedError):
            ends(tmp_path / "parts", report=stop)
        resumed = ends(tmp_path / "parts", resume=True)
    for name, w in whole.items():
        np.testing.assert_array_equal(resumed[name], w, name)


def test_a_run_whose_steps_all_overflowed_so_far_is_resumed(backend, tmp_path, monkeypatch):
    """float16 begins so, and its checkpoint then has no moments."""

    def far_too_large(self, dtype):
        self.needed, self.patience, self.calm, self.value = True, 99, 0, 2.0 ** (20 if dtype.itemsize == 2 else 68)

    monkeypatch.setattr(LossScale, "__init__", far_too_large)
    loader = Loader(Dataset((Example(np.arange(9), np.append(np.arange(1, 9), -100)),)), 1, TIME)
    norms = []

    def note(record):
        norms.append(record["grad_norm"])
        if len(norms) == 2:
            raise InterruptedError

    with running_on(backend):
        make = partial(made, "LoRA", "float16", computed_in("float16"))
        config = TrainConfig(steps=9, warmup=0, save_every=1)
        with pytest.raises(InterruptedError):
            train(make(), loader, None, config, tmp_path, report=note)
        train(make(), loader, None, config, tmp_path, resume=True, report=note)
    assert norms[:3] == [-1, -1, -1] and norms[-1] > 0, norms
