"""A training step and decoding on a card: seconds, where they go, and memory. Called by `gpu_parts.py`."""

from __future__ import annotations

import gc
import statistics
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

import tinyllm
from tinyllm.backend.device import backend, device
from tinyllm.generate import generate
from tinyllm.inspect.memory import card_peak
from tinyllm.lora import apply_lora, get_lora_parameters
from tinyllm.models import DecoderModel
from tinyllm.models.config import llama_shape


@dataclass(frozen=True)
class Shape:
    """A model and a batch."""

    name: str
    vocab: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    inner: int
    tied: bool
    batch: int
    time: int = 512
    checkpointing: bool = False
    warm: int = 3
    steps: int = 8


SMOLLM2 = Shape("SmolLM2-135M", 49152, 576, 30, 9, 3, 1536, True, batch=8)
LLAMA = Shape("Llama-2-7B", 32000, 4096, 32, 32, 32, 11008, False, batch=4, checkpointing=True, warm=2, steps=5)
TINY = {
    "vocab": 96, "hidden": 64, "layers": 2, "heads": 2, "kv_heads": 1, "inner": 96, "batch": 2, "time": 8, "warm": 1,
    "steps": 1,
}  # fmt: skip


def random_model(shape: Shape, method: str, dtype: Any) -> DecoderModel:
    """A base of random weights in the method's storage, adapters beside every linear layer."""
    drawn = np.random.default_rng(0).standard_normal(1 << 20, np.float32) * np.float32(0.02)

    def init(name: str, size: tuple[int, ...]) -> np.ndarray:  # drawing 7e9 numbers takes minutes
        return np.ones(size, np.float32) if "norm" in name else np.resize(drawn, size)

    settings = llama_shape(num_kv_heads=shape.kv_heads, intermediate_size=shape.inner, tie_embeddings=shape.tied)
    model = DecoderModel(
        shape.vocab, shape.hidden, shape.layers, shape.heads, max_seq_len=max(64, shape.time), dtype=dtype, init=init,
        storage="nf4" if method == "qlora" else np.dtype(dtype).name, **settings,
    )  # fmt: skip
    apply_lora(model, 8, target_modules="all-linear", verbose=False)
    model.checkpointing = shape.checkpointing
    return model.train()


def on_card() -> bool:
    return device() != "cpu" and hasattr(backend().xp, "cuda") and hasattr(backend().xp.cuda, "Event")


def training(model: DecoderModel, shape: Shape) -> dict[str, Any]:
    """Seconds of a step, the host's share of them, what the card was busy, and the most memory in use."""
    gc.collect()
    optimizer = tinyllm.optim.AdamW(get_lora_parameters(model), lr=1e-4)
    ids = np.random.default_rng(1).integers(0, shape.vocab, (shape.batch, shape.time))
    targets = np.roll(ids, -1, axis=1)
    submitted = []

    def step() -> float:
        began = time.perf_counter()
        optimizer.zero_grad()
        loss = model.loss(ids, targets)
        loss.backward()
        optimizer.step()
        submitted.append(time.perf_counter() - began)
        return loss.item()  # waits for the card

    losses = [step() for _ in range(shape.warm)]
    taken: list[float] = []
    with card_peak() as peak:
        for _ in range(shape.steps):
            began = time.perf_counter()
            losses.append(step())
            taken.append(time.perf_counter() - began)
        most = peak()
    seconds = statistics.median(taken)
    found = {
        "seconds_a_step": seconds, "tokens_a_second": ids.size / seconds,
        "all_seconds": taken, "host_seconds": statistics.median(submitted[shape.warm :]), "peak_bytes": most,
        "losses": losses,
    }  # fmt: skip
    if on_card():
        free, whole = backend().xp.cuda.Device().mem_info
        found["used_on_the_card"] = whole - free
    return found | busy(step)


def busy(step: Callable[[], Any]) -> dict[str, Any]:
    """How long the card's kernels ran in one step, and which: torch's profiler sees every kernel of the process."""
    if not on_card():
        return {}
    try:
        from torch.profiler import ProfilerActivity, profile
    except ImportError:
        return {"busy": "not run: torch, whose profiler counts the kernels, is not installed"}
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        step()
        backend().xp.cuda.Device().synchronize()
    seconds: Counter[str] = Counter()
    times: Counter[str] = Counter()
    for event in seen.events():
        if "CUDA" in str(event.device_type):
            seconds[event.name[:60]] += event.time_range.elapsed_us() / 1e6
            times[event.name[:60]] += 1
    return {
        "busy_seconds": sum(seconds.values()), "launches": sum(times.values()),
        "kernels": [[name, round(s * 1e3, 3), times[name]] for name, s in seconds.most_common(16)],
    }  # fmt: skip


def decoding(model: DecoderModel, tokens: int) -> dict[str, Any]:
    """Tokens a second of greedy generation, one sequence."""
    model.eval()
    generate(model, [1, 2, 3], 2)
    began = time.perf_counter()
    made = len(generate(model, [1, 2, 3], tokens))
    taken = time.perf_counter() - began
    model.train()
    return {"tokens": made, "tokens_a_second": made / taken}
