"""A run: its folder, its log, its counters, and how it goes on where it stopped."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tinyllm.data.batches import Batch, Loader
from tinyllm.formats.atomic import make_folder, write_text
from tinyllm.inspect.memory import card_peak, peak_memory
from tinyllm.models import DecoderModel
from tinyllm.optim import AdamW
from tinyllm.train.checkpoint import CHECKPOINT, load_checkpoint, save_checkpoint
from tinyllm.train.loop import Observer, TrainConfig, fit
from tinyllm.train.loss_scale import LossScale
from tinyllm.train.trouble import in_words, require_finite, require_gradients

Report = Callable[[dict[str, Any]], None]


def train(
    model: DecoderModel,
    loader: Loader,
    held_out: Loader | None,
    config: TrainConfig,
    out: str | Path | None = None,
    *,
    resume: bool = False,
    settings: dict[str, Any] | None = None,
    report: Report = lambda record: None,
) -> dict[str, Any]:
    """Train what has ``requires_grad``.

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
    run = Run(Path(out) if out is not None else None, config, resume, settings or {}, report)
    fit(model, loader, held_out, config, run)
    return run.result()


class Run(Observer):
    """One run of the loop, recorded: the log, the checkpoint, the counters.

    Parameters
    ----------
    folder : Path or None
        Without one nothing is written, and `report` alone hears of the run.
    config : TrainConfig
    resume : bool
    settings : dict
        What must be the same when resuming, besides `config`.
    report : callable

    Attributes
    ----------
    tokens : int
        How many have been learned so far.
    before, after : float or None
        The held-out loss before the first step, and the newest one.
    """

    def __init__(
        self, folder: Path | None, config: TrainConfig, resume: bool, settings: dict[str, Any], report: Report
    ):
        if resume and folder is None:
            raise ValueError("resuming needs the folder of the run to resume")
        self.folder, self.resume, self.report = folder, resume, report
        fixed = {name: value for name, value in asdict(config).items() if name not in ("eval_every", "save_every")}
        self.settings = {**fixed, **settings}
        self.start, self.tokens, self.most_on_card = 0, 0, 0
        self.before: float | None = None
        self.after: float | None = None

    def begin(self, model: DecoderModel, optimizer: AdamW, scale: LossScale) -> int:
        """Put the checkpoint back, or remove an older run's."""
        self.model, self.optimizer, self.scale = model, optimizer, scale
        seconds = 0.0
        if self.folder is not None and self.resume:
            about = load_checkpoint(self.folder / CHECKPOINT, model, optimizer, self.settings)
            self.start, self.tokens, seconds = about["step"], about["tokens"], about["seconds"]
            self.before, self.after = about["before"], about["after"]
            scale.value, scale.calm = about["loss_scale"]
        elif self.folder is not None:
            # Before anything else of the new run: were it killed early, resuming would go on with the old one.
            (make_folder(self.folder) / CHECKPOINT).unlink(missing_ok=True)
        self.log = Log(self.folder, self.start, self.report)
        self.began = time.perf_counter() - seconds
        return self.start

    @contextmanager
    def watching(self, step: int, batches: list[Batch]) -> Iterator[None]:
        """Say in words what is not finite, has no gradient or does not fit; look at the most a GPU holds."""
        with in_words(self.model, self.optimizer, batches, step), card_peak() as on_card:
            yield
            if step == self.start:
                require_gradients(self.model)
            self.most_on_card = max(self.most_on_card, on_card() or 0)

    def note(self, done: int, loss: float, norm: float, tokens: int) -> None:
        """Log a step."""
        self.tokens += tokens
        lr = max(group["lr"] for group in self.optimizer.groups)
        record = {"step": done, "loss": loss, "lr": lr, "grad_norm": norm, "tokens": self.tokens}
        self.log.write({**record, "seconds": round(self.seconds, 3)})

    def evaluated(self, done: int, loss: float) -> None:
        """Log a held-out loss, unless the last update broke it."""
        require_finite(self.model, loss, done)
        self.after = loss
        self.log.write({"eval": loss, "step": done})
        if done == 0:
            self.before, self.began = loss, time.perf_counter()  # evaluating before the first step is not counted

    def save(self, done: int) -> None:
        """Write the checkpoint, unless the last update broke the weights."""
        if self.folder is None:
            return
        require_finite(self.model, self.after, done)
        so_far = {
            "step": done, "tokens": self.tokens, "seconds": self.seconds, "before": self.before, "after": self.after,
            "loss_scale": (self.scale.value, self.scale.calm),
        }  # fmt: skip
        save_checkpoint(self.folder / CHECKPOINT, self.model, self.optimizer, self.settings, so_far)

    @property
    def seconds(self) -> float:
        """Since the first step, with those of the runs that this one goes on from."""
        return time.perf_counter() - self.began

    def result(self) -> dict[str, Any]:
        """What `train` returns."""
        return {
            "before": self.before, "after": self.after, "tokens": self.tokens, "seconds": self.seconds,
            "peak_memory": self.most_on_card or peak_memory(),  # a GPU's own where there is one
        }  # fmt: skip


class Log:
    """``log.jsonl``, one record a line; resuming cuts what a broken run wrote after its checkpoint."""

    def __init__(self, folder: Path | None, start: int, report: Report):
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
