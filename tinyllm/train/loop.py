"""The training loop, flat: fetch, forward, backward, clip, step, log; and what makes a run resumable bit for bit.

A batch is a pure function of the step, the optimiser and the generator are saved with the weights, and files are
written whole or not at all.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from tinyllm.backend import random
from tinyllm.backend.cpu.malloc import keep_freed_memory
from tinyllm.backend.device import read
from tinyllm.data.batches import Loader
from tinyllm.formats.atomic import make_folder
from tinyllm.inspect.memory import card_peak, explaining_out_of_memory, peak_memory
from tinyllm.models import DecoderModel
from tinyllm.optim import SCHEDULES, AdamW, LossScale, lr_factor, parameter_groups, scale_grads, squared_norms
from tinyllm.tensor import no_grad
from tinyllm.train.checkpoint import CHECKPOINT, load_checkpoint, save_checkpoint
from tinyllm.train.run import Log
from tinyllm.train.trouble import NonFiniteLoss, _require_finite, _require_gradients, explain_non_finite


@dataclass
class TrainConfig:
    """How to train. Everything but `eval_every` and `save_every` must be the same when resuming.

    The text beside a field's type says what it is for, here and in the command's help.
    """

    steps: Annotated[int, "optimiser steps"] = 100
    lr: Annotated[float, "highest learning rate"] = 1e-3
    schedule: Annotated[str, "of the learning rate after the warm-up", SCHEDULES] = "cosine"
    warmup: Annotated[int, "steps of linear warm-up"] = 10
    grad_accum: Annotated[int, "micro-batches a step; token-weighted, so k of them equal one large batch"] = 1
    weight_decay: Annotated[float, "on matrices only, never on gains and biases"] = 0.0
    max_grad_norm: Annotated[float, "gradients are scaled down to this joint norm"] = 1.0
    loraplus_ratio: Annotated[float, "B learns this much faster than A (LoRA+); 1 is plain LoRA"] = 1.0
    seed: Annotated[int, "dropout and data order"] = 0
    eval_every: Annotated[int, "steps between held-out evaluations; 0 only before and after"] = 50
    save_every: Annotated[int, "steps between checkpoints; 0 only at the end"] = 0

    def __post_init__(self) -> None:
        for name, least in {"steps": 1, "grad_accum": 1, "warmup": 0, "eval_every": 0, "save_every": 0}.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, not {getattr(self, name)}")
        for name in ("lr", "weight_decay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be finite and at least 0, not {getattr(self, name)}")
        if not 0 < self.loraplus_ratio < math.inf:
            raise ValueError(f"loraplus_ratio must be finite and above 0, not {self.loraplus_ratio}")
        if not self.max_grad_norm > 0:
            raise ValueError(f"max_grad_norm must be above 0, not {self.max_grad_norm}; inf clips nothing")
        lr_factor(self.schedule, 0, self.steps, self.warmup)  # refuses a schedule that does not exist


def evaluate(model: DecoderModel, loader: Loader, max_batches: int | None = None) -> float:
    """The mean loss a token over a held-out set, in evaluation mode."""
    training, total, live = model.training, 0.0, 0
    model.eval()
    with no_grad():
        for i in range(len(loader) if max_batches is None else min(max_batches, len(loader))):
            batch = loader.batch(i)
            total += model.loss(batch.ids, batch.labels, batch.segment_ids).item() * batch.live
            live += batch.live
    model.train(training)
    return total / live


def train(
    model: DecoderModel,
    loader: Loader,
    held_out: Loader | None,
    config: TrainConfig,
    out: str | Path | None = None,
    *,
    resume: bool = False,
    settings: dict[str, Any] | None = None,
    report: Callable[[dict[str, Any]], None] = lambda record: None,
) -> dict[str, Any]:
    """Train what has ``requires_grad``.

    From the first step on the whole process keeps the memory that steps free; see `backend/malloc.py`.

    Parameters
    ----------
    model, loader
    held_out : Loader or None
        Evaluated before the first step, every `eval_every` steps and at the end.
    config : TrainConfig
    out : folder, optional
        For ``log.jsonl`` and the checkpoint; without `resume`, an older run's checkpoint there is removed first.
    resume : bool
        Go on from the folder's checkpoint; the result equals an uninterrupted run's bit for bit.
    settings : dict, optional
        What else must be the same when resuming (model, data, method ...).
    report : callable
        Called with each log record.

    Returns
    -------
    dict
        ``before``, ``after`` (held-out loss), ``tokens``, ``seconds``, ``peak_memory``.

    Raises
    ------
    NonFiniteLoss
        At the first loss or gradient that is not finite; weights are as before that step. Or after a step that broke
        the weights or the held-out loss; the checkpoint is then the one before.
    RuntimeError
        If a trainable parameter received no gradient in the first step.
    ValueError
        If there is nothing to train, or the checkpoint is of a run with other settings.
    """
    optimizer = AdamW(parameter_groups(model, config.lr, config.weight_decay, config.loraplus_ratio))
    scale = LossScale(model.dtype)
    trained = [p for p in model.parameters() if p.requires_grad]
    random.manual_seed(config.seed)
    model.train()
    fixed = {**asdict(config), **(settings or {})}
    for name in ("eval_every", "save_every"):
        del fixed[name]
    folder = Path(out) if out is not None else None
    start, tokens, seconds, most_on_card = 0, 0, 0.0, 0
    before: float | None = None
    after: float | None = None
    if resume:
        if folder is None:
            raise ValueError("resuming needs the folder of the run to resume")
        about = load_checkpoint(folder / CHECKPOINT, model, optimizer, fixed)
        start, tokens, seconds = about["step"], about["tokens"], about["seconds"]
        before, after = about["before"], about["after"]
        scale.value, scale.calm = about["loss_scale"]
    elif folder is not None:
        # Before anything else of the new run: were it killed early, resuming would go on with the old one.
        (make_folder(folder) / CHECKPOINT).unlink(missing_ok=True)
    log = Log(folder, start, report)
    if held_out is not None and start == 0:
        before = after = evaluate(model, held_out)
        _require_finite(model, before, 0)
        log.write({"eval": before, "step": 0})
    keep_freed_memory()
    began = time.perf_counter() - seconds

    for step in range(start, config.steps):
        optimizer.set_lr_factor(lr_factor(config.schedule, step, config.steps, config.warmup))
        optimizer.zero_grad()
        position = random.default.state
        batches = [loader.batch(step * config.grad_accum + i) for i in range(config.grad_accum)]
        live = sum(batch.live for batch in batches)
        losses = []
        # What is not finite, or does not fit, is told in words.
        with np.errstate(all="ignore"), explaining_out_of_memory(model, optimizer), card_peak() as on_card:
            for batch in batches:
                # Weighting by live tokens makes k micro-batches equal one large batch.
                y = model.loss(batch.ids, batch.labels, batch.segment_ids) * (batch.live / live)
                losses.append(y.data)
                y.backward(scale.value)
            if step == start:
                _require_gradients(model)
            numbers = read([*losses, *squared_norms(trained)])  # the one place where a step waits for a GPU
            most_on_card = max(most_on_card, on_card() or 0)
        loss, norm = sum(numbers[: len(losses)]), math.sqrt(sum(numbers[len(losses) :])) / scale.value
        if math.isfinite(loss) and not math.isfinite(norm) and scale.overflowed():
            norm = -1.0  # float16 alone: this update is left out, and the next step has a smaller scale
        elif not math.isfinite(loss) or not math.isfinite(norm):
            raise NonFiniteLoss(explain_non_finite(model, batches, position, step))
        else:
            scale_grads(trained, (config.max_grad_norm / norm if norm > config.max_grad_norm else 1.0) / scale.value)
            optimizer.step()
            scale.went_well()
        tokens += live
        done = step + 1
        elapsed = time.perf_counter() - began
        lr = max(group["lr"] for group in optimizer.groups)
        log.write(
            {"step": done, "loss": loss, "lr": lr, "grad_norm": norm, "tokens": tokens, "seconds": round(elapsed, 3)}
        )
        last = done == config.steps
        if held_out is not None and (last or (config.eval_every and done % config.eval_every == 0)):
            after = evaluate(model, held_out)
            _require_finite(model, after, done)
            log.write({"eval": after, "step": done})
        if folder is not None and (last or (config.save_every and done % config.save_every == 0)):
            _require_finite(model, after, done)
            elapsed = time.perf_counter() - began
            so_far: dict[str, Any] = {
                "step": done,
                "tokens": tokens,
                "seconds": elapsed,
                "before": before,
                "after": after,
            }
            so_far["loss_scale"] = scale.value, scale.calm
            save_checkpoint(folder / CHECKPOINT, model, optimizer, fixed, so_far)
    optimizer.zero_grad()
    elapsed = time.perf_counter() - began
    peak = most_on_card or peak_memory()  # a GPU's own where there is one
    return {"before": before, "after": after, "tokens": tokens, "seconds": elapsed, "peak_memory": peak}
