"""The training loop: batches, gradients, update; and the loss on what is held out.

The batches of a step are a function of its number alone, so a loop that starts at step n goes on as if it had never
stopped, once weights, moments and generator are put back. The loop does not put them back, nor does it write a log or
files or explain a failure: it calls an `Observer`, which may do all this and by itself does nothing.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Annotated, Any

from tinyllm.backend import random
from tinyllm.backend.device import read
from tinyllm.backend.names import in_our_words, is_real, is_whole, kind_of
from tinyllm.data.batches import Batch, Loader
from tinyllm.models import DecoderModel
from tinyllm.nn import require_model
from tinyllm.optim import SCHEDULES, AdamW, clip_factor, lr_factor, parameter_groups, scale_grads, squared_norms
from tinyllm.tensor import Parameter, no_grad
from tinyllm.train.loss_scale import LossScale


@in_our_words()
@dataclass
class TrainConfig:
    """How to train. Everything but `eval_every`, `eval_batches` and `save_every` must be the same when resuming.

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
    eval_batches: Annotated[int, "held-out batches an evaluation looks at, always the same; 0 all of them"] = 100
    save_every: Annotated[int, "steps between checkpoints; 0 only at the end"] = 0

    def __post_init__(self) -> None:
        least = {"steps": 1, "grad_accum": 1, "warmup": 0, "eval_every": 0, "eval_batches": 0, "save_every": 0}
        for name, smallest in least.items():
            if not is_whole(getattr(self, name)) or getattr(self, name) < smallest:
                raise ValueError(f"{name} must be at least {smallest} and a whole number, not {getattr(self, name)!r}")
        for name in ("lr", "weight_decay"):
            if not is_real(getattr(self, name)) or not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be finite and at least 0, not {getattr(self, name)!r}")
        if not is_real(self.loraplus_ratio) or not 0 < self.loraplus_ratio < math.inf:
            raise ValueError(f"loraplus_ratio must be finite and above 0, not {self.loraplus_ratio!r}")
        if not is_real(self.max_grad_norm) or not self.max_grad_norm > 0:
            raise ValueError(f"max_grad_norm must be above 0, not {self.max_grad_norm!r}; inf clips nothing")
        random.Generator(self.seed)  # refuses a seed out of range
        lr_factor(self.schedule, 0, self.steps, self.warmup)  # refuses a schedule that does not exist


class NonFiniteLoss(RuntimeError):
    """A loss, gradient or weight stopped being a number; in a run, the message names the layer and the step."""


class Observer:
    """What `fit` calls on whoever records a run. By itself it does nothing; `done` counts finished steps."""

    def begin(self, model: DecoderModel, optimizer: AdamW, scale: LossScale) -> int:
        """Before anything else. May put back what an earlier run left; returns how many steps are done already."""
        return 0

    def watching(self, step: int, batches: list[Batch]) -> AbstractContextManager[None]:
        """A ``with`` block around the gradients of `step`, counted from 0."""
        return nullcontext()

    def note(self, done: int, loss: float, norm: float, tokens: int) -> None:
        """After each update: the step's loss a token, the norm of its gradients, and how many tokens were learned."""

    def evaluated(self, done: int, loss: float) -> None:
        """After each evaluation on what is held out."""

    def save(self, done: int) -> None:
        """When a checkpoint is due."""


def fit(
    model: DecoderModel, loader: Loader, held_out: Loader | None, config: TrainConfig, run: Observer | None = None
) -> None:
    """Train what has ``requires_grad``; `tinyllm.train.train` does so with a log, a checkpoint and failures in words.

    Parameters
    ----------
    model, loader
    held_out : Loader or None
        Evaluated before the first step, every `eval_every` steps and at the end; there after the checkpoint, which
        a long evaluation shall not put at risk.
    config : TrainConfig
    run : Observer, optional
        Who records the run.

    Raises
    ------
    NonFiniteLoss
        At the first loss or gradient that is not finite; weights are as before that step.
    ValueError
        If there is nothing to train, or the data has a token that the model does not have.
    """
    require_model(model)
    if not isinstance(config, TrainConfig):
        raise TypeError(f"training takes a TrainConfig, not {kind_of(config)}: of a dict, TrainConfig(**settings)")
    for data in (loader, held_out):
        if data is not None:
            require_loader(data)
            data.refuse_beyond(model.config.vocab_size)
    run = run or Observer()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = AdamW(parameter_groups(model, config.lr, config.weight_decay, config.loraplus_ratio))
    scale = LossScale(model.dtype)
    random.manual_seed(config.seed)
    model.train()
    start = run.begin(model, optimizer, scale)
    most = config.eval_batches or None
    for step in range(start, config.steps):
        if held_out is not None and (step == 0 or due(step, config.eval_every, config.steps)):
            run.evaluated(step, evaluate(model, held_out, most))
        optimizer.set_lr_factor(lr_factor(config.schedule, step, config.steps, config.warmup))
        optimizer.zero_grad()
        batches = [loader.batch(step * config.grad_accum + i) for i in range(config.grad_accum)]
        with run.watching(step, batches):
            loss, norm = accumulate(model, trained, batches, scale)
        norm = update(optimizer, trained, norm, config.max_grad_norm, scale)

        done = step + 1
        run.note(done, loss, norm, sum(batch.live for batch in batches))
        if due(done, config.save_every, config.steps):
            run.save(done)
    optimizer.zero_grad()
    if held_out is not None:
        run.evaluated(config.steps, evaluate(model, held_out, most))


def require_loader(data: Any) -> None:
    """TypeError for what gives no batches by number: a list of batches, a dataset, a path."""
    if not isinstance(data, Loader):
        raise TypeError(
            f"training and evaluation take a Loader, not {kind_of(data)}: Loader(examples, batch_size, max_seq_len)"
        )


def accumulate(
    model: DecoderModel, trained: list[Parameter], batches: list[Batch], scale: LossScale
) -> tuple[float, float]:
    """Add up the gradients of all micro-batches, as if they were one batch.

    Returns
    -------
    loss, norm : float
        The mean loss a token, and the joint 2-norm of the gradients; the latter is not finite if float16 overflowed.
        The gradients themselves still have the loss scale in them.

    Raises
    ------
    NonFiniteLoss
        If either is not finite for another reason.
    """
    live = sum(batch.live for batch in batches)
    losses = []
    for batch in batches:
        # A mean of means would weigh a token by its batch: each counts by its share of the tokens.
        y = model.loss(batch) * (batch.live / live)
        losses.append(y.data)
        y.backward(scale.value)
    numbers = read([*losses, *squared_norms(trained)])  # the one place where a step waits for a GPU
    loss, norm = sum(numbers[: len(losses)]), math.sqrt(sum(numbers[len(losses) :])) / scale.value
    if not math.isfinite(loss) or not (math.isfinite(norm) or scale.overflowed()):
        raise NonFiniteLoss(
            f"the loss is {loss}, the norm of its gradients {norm}; lower the learning rate, and look at this step's "
            "data"
        )
    return loss, norm


def update(optimizer: AdamW, trained: list[Parameter], norm: float, max_grad_norm: float, scale: LossScale) -> float:
    """Clip the gradients, whose norm is `norm`, and take one step; returns the norm, or -1 for a step left out."""
    if not math.isfinite(norm):  # float16 overflowed, and the next step has a smaller scale
        return -1.0
    scale_grads(trained, clip_factor(norm, max_grad_norm) / scale.value)
    optimizer.step()
    scale.went_well()
    return norm


def evaluate(model: DecoderModel, loader: Loader, max_batches: int | None = None) -> float:
    """The mean loss a token over a held-out set, in evaluation mode."""
    require_loader(loader)
    if max_batches is not None and (not is_whole(max_batches) or max_batches < 1):
        raise ValueError(f"max_batches must be at least 1 and a whole number, not {max_batches!r}")
    training, total, live = model.training, 0.0, 0
    model.eval()
    try:
        with no_grad():
            for i in range(len(loader) if max_batches is None else min(max_batches, len(loader))):
                batch = loader.batch(i)
                total += model.loss(batch).item() * batch.live
                live += batch.live
    finally:  # an evaluation that was stopped must not leave dropout off
        model.train(training)
    return total / live


def due(done: int, every: int, steps: int) -> bool:
    """Whether something happens after this step: every so many steps (0: never), and always after the last."""
    return done == steps or (every > 0 and done % every == 0)
