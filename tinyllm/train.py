"""The training loop, flat: fetch, forward, backward, clip, step, log; and what makes a run resumable bit for bit.

A batch is a pure function of the step, the optimiser and the generator are saved with the weights, and files are
written whole or not at all. Read next: `cli/finetune.py`, which sets this up from the command line.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tinyllm.backend import random
from tinyllm.backend.device import read
from tinyllm.backend.malloc import keep_freed_memory
from tinyllm.backend.table import of
from tinyllm.batches import Batch, Loader
from tinyllm.formats import safetensors_file
from tinyllm.formats.atomic import make_folder, write_text
from tinyllm.inspect.card import card_peak, explaining_out_of_memory
from tinyllm.inspect.memory import peak_memory
from tinyllm.models import DecoderModel
from tinyllm.nn import Module
from tinyllm.optim import AdamW, LossScale, lr_factor, parameter_groups, scale_grads, squared_norms
from tinyllm.tensor import Parameter, no_grad

CHECKPOINT = "checkpoint.safetensors"

# Settings that are hashes: what they stand for, since the hashes themselves tell nobody anything.
FINGERPRINTS = {
    "data_fingerprint": "the data",
    "held_out_fingerprint": "the held-out data",
    "model_fingerprint": "the model",
}


@dataclass
class TrainConfig:
    """How to train. Everything but `eval_every` and `save_every` must be the same when resuming."""

    steps: int = 100  # optimiser steps
    lr: float = 1e-3  # the highest learning rate
    schedule: str = "cosine"  # constant, linear or cosine, after the warm-up
    warmup: int = 10  # steps of linear warm-up
    grad_accum: int = 1  # micro-batches a step; token-weighted, so k of them equal one large batch
    weight_decay: float = 0.0  # on matrices only, never on gains and biases
    max_grad_norm: float = 1.0  # gradients are scaled down to this joint norm
    loraplus_ratio: float = 1.0  # B learns this much faster than A (LoRA+); 1 is plain LoRA
    seed: int = 0  # dropout and data order
    eval_every: int = 50  # steps between held-out evaluations; 0 only before and after
    save_every: int = 0  # steps between checkpoints; 0 only at the end

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


class NonFiniteLoss(RuntimeError):
    """A loss, gradient or weight stopped being a number; the message says in which layer and step."""


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


def _require_gradients(model: Module) -> None:
    """Every trainable parameter must have taken part in the first step (A's gradient is zero then, but it is there)."""
    without = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    if without:
        more = f" and {len(without) - 5} more" if len(without) > 5 else ""
        raise RuntimeError(
            f"after the first step these trainable parameters have no gradient: {', '.join(without[:5])}{more}; freeze "
            "them or make the loss depend on them"
        )


def _require_finite(model: Module, held_out_loss: float | None, step: int) -> None:
    """What the last update broke is neither logged nor saved."""
    name = _first_non_finite((name, p) for name, p in model.named_parameters() if p.requires_grad)
    if name is not None:
        raise NonFiniteLoss(
            f"step {step}: the weight {name} holds non-finite numbers; lower the learning rate or check the model"
        )
    if held_out_loss is not None and not math.isfinite(held_out_loss):
        raise NonFiniteLoss(
            f"step {step}: the held-out loss is {held_out_loss}; lower the learning rate or check the model"
        )


def _first_non_finite(weights: Iterable[tuple[str, Parameter]]) -> str | None:
    return next((name for name, p in weights if not np.isfinite(p.numpy()).all()), None)


def explain_non_finite(model: DecoderModel, batches: list[Batch], position: tuple[int, int], step: int) -> str:
    """Run the step again and watch every layer, so that a run without trouble pays nothing for the explanation."""
    name = _first_non_finite(model.named_parameters())
    if name is not None:
        said = "lower the learning rate or check the checkpoint"
        return f"step {step + 1}: the weight {name} holds non-finite numbers; {said}"
    random.default.restore(position)
    paths = {id(module): path for path, module in model.named_modules()}
    found: list[str] = []
    plain = Module.__call__

    def watching(self: Module, *args: Any, **kwargs: Any) -> Any:
        y = plain(self, *args, **kwargs)
        if not found and hasattr(y, "numpy") and not np.isfinite(y.numpy()).all():
            found.append(paths.get(id(self), type(self).__name__))
        return y

    Module.__call__ = watching  # type: ignore[method-assign]
    try:
        with no_grad(), np.errstate(all="ignore"):
            for batch in batches:
                model.hidden(batch.ids, batch.segment_ids)
    finally:
        Module.__call__ = plain  # type: ignore[method-assign]
    where = found[0] if found else None
    if where is None:
        bad = [
            name
            for name, p in model.named_parameters()
            if p.grad is not None and not of(p.grad).xp.isfinite(p.grad).all()
        ]
        where = f"the gradient of {bad[0]}" if bad else "the loss"
    return f"step {step + 1}: not finite, first in {where}; lower the learning rate, and look at that step's data"


class Log:
    """``log.jsonl``, one record a line; resuming cuts what a broken run wrote after its checkpoint."""

    def __init__(self, folder: Path | None, start: int, report: Callable[[dict[str, Any]], None]):
        self.report = report
        self.path = folder / "log.jsonl" if folder is not None else None
        if self.path is None:
            return
        make_folder(self.path.parent)
        kept = []
        if start and self.path.exists():
            for line in self.path.read_text(encoding="utf-8").splitlines():
                try:
                    record = json.loads(line)
                except json.JSONDecodeError:  # the line that was being written when the run was killed
                    continue
                if record["step"] <= start:
                    kept.append(line + "\n")
        write_text(self.path, "".join(kept))

    def write(self, record: dict[str, Any]) -> None:
        """Append a record and show it."""
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record, allow_nan=False) + "\n")
        self.report(record)


def save_checkpoint(
    path: Path, model: Module, optimizer: AdamW, settings: dict[str, Any], so_far: dict[str, Any]
) -> None:
    """What trains, its moments, the generator's position, the settings and how far the run is, in one file."""
    state = optimizer.state_dict()
    arrays = {f"model.{name}": p.numpy() for name, p in model.named_parameters() if p.requires_grad}
    arrays |= {f"{kind}.{i}": moment for kind in ("m", "v") for i, moment in state[kind].items()}
    about = {**so_far, "random": random.default.state, "settings": settings}
    about |= {"optimizer_steps": state["step"], "groups": state["groups"]}
    safetensors_file.write(path, arrays, {"tinyllm_checkpoint": json.dumps(about)})


def load_checkpoint(path: Path, model: Module, optimizer: AdamW, settings: dict[str, Any]) -> dict[str, Any]:
    """Put everything back; returns how far the run is. See `save_checkpoint`."""
    if not path.exists():
        raise ValueError(f"there is nothing to resume: {path} does not exist; start the run without --resume")
    arrays, metadata = safetensors_file.read(path)
    if "tinyllm_checkpoint" not in metadata:
        raise ValueError(f"{path} is not a checkpoint of a tinyllm run")
    about = json.loads(metadata["tinyllm_checkpoint"])
    now = json.loads(json.dumps(settings))
    differ = [
        key for key in sorted(now.keys() | about["settings"].keys()) if now.get(key) != about["settings"].get(key)
    ]
    if differ:
        told = ", ".join(
            f"{FINGERPRINTS[key]} is not the same as then"
            if key in FINGERPRINTS
            else f"{key} was {about['settings'].get(key)!r} and is {now.get(key)!r}"
            for key in differ
        )
        raise ValueError(
            f"the run in {path.parent} had other settings: {told}; resume with the same, or start another run"
        )
    own = {name for name, p in model.named_parameters() if p.requires_grad}
    saved = {name[6:]: array for name, array in arrays.items() if name.startswith("model.")}
    if own != set(saved):
        raise ValueError(f"{path} holds other parameters than this model trains; resume with the same settings")
    model.load_state_dict(saved, strict=False)
    moments = {kind: {int(n[2:]): a for n, a in arrays.items() if n.startswith(kind + ".")} for kind in ("m", "v")}
    steps = {int(i): n for i, n in about["optimizer_steps"].items()}
    optimizer.load_state_dict({"step": steps, "groups": about["groups"], **moments})
    random.default.restore(about["random"])
    return {key: about[key] for key in ("step", "tokens", "seconds", "before", "after", "loss_scale")}
