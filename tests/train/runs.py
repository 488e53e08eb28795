"""A small model, a small language and the runs that train it."""

from __future__ import annotations

import json

import numpy as np

from tinyllm.backend import random
from tinyllm.data import Dataset, Example, Loader
from tinyllm.lora import apply_lora
from tinyllm.models import DecoderModel
from tinyllm.models.config import llama_shape
from tinyllm.train import TrainConfig

VOCAB, TIME = 23, 12


def make(dtype=np.float32, **changes) -> DecoderModel:
    return DecoderModel(
        VOCAB, 16, 2, 2, seed=1, dtype=dtype, max_seq_len=TIME, **llama_shape(num_kv_heads=1, **changes)
    )


def examples(n: int = 8, seed: int = 0) -> Dataset:
    """A language with a rule (each id follows the one before it), of unequal lengths and with masked labels."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(n):
        ids = (rng.integers(VOCAB) + np.arange(rng.integers(6, TIME + 1)) * 5) % VOCAB
        labels = np.append(ids[1:], -100)
        labels[: rng.integers(0, 4)] = -100
        made.append(Example(ids, labels))
    return Dataset(tuple(made))


def loader(batch_size: int = 2, seed: int = 0) -> Loader:
    return Loader(examples(), batch_size, TIME, seed, pack=False)


def records(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]


class Killed(BaseException):
    """The run is shot."""


def start(method: str) -> DecoderModel:
    random.manual_seed(5)
    model = make(dropout=0.2)
    if method == "lora":
        apply_lora(model, 4, dropout=0.3, target_modules="all-linear", verbose=False)
    return model


CONFIG = TrainConfig(
    steps=9, lr=1e-2, warmup=2, grad_accum=2, weight_decay=0.1, eval_every=3, save_every=3, seed=7, loraplus_ratio=4.0
)


def snapshot(model) -> dict[str, np.ndarray]:
    return {name: p.numpy().copy() for name, p in model.named_parameters()}
