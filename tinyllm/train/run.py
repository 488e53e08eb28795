"""A run: its folder, its counters, how it ends from outside, and how it goes on where it stopped."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tinyllm.backend import random
from tinyllm.data.batches import Batch, Loader
from tinyllm.formats.atomic import make_folder, sweep
from tinyllm.formats.locks import alone_in
from tinyllm.inspect.memory import card_peak, peak_memory
from tinyllm.models import DecoderModel
from tinyllm.optim import AdamW
from tinyllm.train.checkpoint import CHECKPOINT, load_checkpoint, save_checkpoint
from tinyllm.train.earlier import LOG, forget, put_back, set_aside
from tinyllm.train.interrupt import Gate, Interrupted
from tinyllm.train.log import Log, Report, records
from tinyllm.train.loop import NonFiniteLoss, Observer, TrainConfig, fit
from tinyllm.train.loss_scale import LossScale
from tinyllm.train.trouble import explaining_out_of_memory, in_words, require_finite, require_gradients

FREE = ("eval_every", "eval_batches", "save_every")  # what may be another when resuming


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
        For ``log.jsonl`` and the checkpoint. Without `resume`, an earlier run's are kept aside until this one's first
        checkpoint, and put back if it fails before. Nobody else may write there meanwhile.
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
        the weights or the held-out loss; no checkpoint of that step is left.
    Interrupted
        After Ctrl-C, or a signal that ends a process: the step in progress is dropped, the one before it saved.
    MemoryError
        With what was held.
    RuntimeError
        If a trainable parameter received no gradient in the first step, or another run is writing into `out`.
    ValueError
        If there is nothing to train, or the checkpoint is damaged or of a run with other settings.
    OSError
        If the log or the checkpoint cannot be written; the checkpoint before stays whole.
    """
    run = Run(Path(out) if out is not None else None, config, resume, settings or {}, report)
    with run.blocks, run.gate:
        try:
            try:
                with explaining_out_of_memory(model, lambda: run.optimizer):
                    fit(model, loader, held_out, config, run)
            except KeyboardInterrupt:
                raise run.interrupted() from None
        except Exception:  # of saving what is interrupted, too
            run.failed()
            raise
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
    done, saved : int
        How many steps are whole, and how many are in the checkpoint.
    """

    def __init__(
        self, folder: Path | None, config: TrainConfig, resume: bool, settings: dict[str, Any], report: Report
    ):
        if resume and folder is None:
            raise ValueError("resuming needs the folder of the run to resume")
        self.folder, self.resume, self.report = folder, resume, report
        self.settings = {name: value for name, value in asdict(config).items() if name not in FREE} | settings
        self.start, self.done, self.saved, self.tokens, self.most_on_card = 0, 0, 0, 0, 0
        self.before: float | None = None
        self.after: float | None = None
        self.optimizer: AdamW | None = None
        self.gate, self.blocks = Gate(), ExitStack()
        self.begun = False

    def begin(self, model: DecoderModel, optimizer: AdamW, scale: LossScale) -> int:
        """Put the checkpoint back, or an earlier run's aside."""
        self.model, self.optimizer, self.scale = model, optimizer, scale
        seconds = 0.0
        if self.folder is not None:
            if not self.resume:
                make_folder(self.folder)
            if self.folder.is_dir():
                self.blocks.enter_context(alone_in(self.folder))
                sweep(self.folder)
        if self.folder is not None and self.resume:
            list(records(self.folder / LOG))  # refuses a damaged one, before anything is put back
            about = load_checkpoint(self.folder / CHECKPOINT, model, optimizer, self.settings)
            self.start = self.done = self.saved = about["step"]
            self.tokens, seconds = about["tokens"], about["seconds"]
            self.before, self.after = about["before"], about["after"]
            scale.value, scale.calm = about["loss_scale"]
        elif self.folder is not None:
            # Before anything else of the new run: were it killed early, resuming would go on with the old one.
            set_aside(self.folder / CHECKPOINT)
        self.log = Log(self.folder, self.start, self.report)
        self.began = time.perf_counter() - seconds
        self._mark()
        self.begun = True
        return self.start

    def _mark(self) -> None:
        """Remember what a step moves besides the weights, for the case that it is dropped."""
        self.whole = True
        self.place = random.default.state, self.scale.value, self.scale.calm

    @contextmanager
    def watching(self, step: int, batches: list[Batch]) -> Iterator[None]:
        """Say in words what is not finite, has no gradient or does not fit; look at the most a GPU holds."""
        with in_words(self.model, batches, step), card_peak() as on_card:
            yield
            if step == self.start:
                require_gradients(self.model)
            self.most_on_card = max(self.most_on_card, on_card() or 0)
        self.gate.close()  # the update follows
        self.whole = False

    def note(self, done: int, loss: float, norm: float, tokens: int) -> None:
        """Log a step."""
        self.done = done
        self.tokens += tokens
        self._mark()
        lr = max(group["lr"] for group in self.optimizer.groups) if self.optimizer is not None else 0.0
        record = {"step": done, "loss": loss, "lr": lr, "grad_norm": norm, "tokens": self.tokens}
        self.log.write({**record, "seconds": round(self.seconds, 3)})
        self.gate.open()

    def evaluated(self, done: int, loss: float) -> None:
        """Log a held-out loss; if the last update broke it, that step's checkpoint goes."""
        try:
            require_finite(self.model, loss, done)
        except NonFiniteLoss:
            if self.folder is not None and self.saved == done > self.start:
                (self.folder / CHECKPOINT).unlink(missing_ok=True)
            raise
        self.after = loss
        self.log.write({"eval": loss, "step": done})
        if done == 0:
            self.before, self.began = loss, time.perf_counter()  # evaluating before the first step is not counted

    def save(self, done: int) -> None:
        """Write the checkpoint, unless the last update broke the weights."""
        if self.folder is None or self.optimizer is None:
            return
        self.gate.close()
        require_finite(self.model, self.after, done)
        so_far = {
            "step": done, "tokens": self.tokens, "seconds": self.seconds, "before": self.before, "after": self.after,
            "loss_scale": (self.scale.value, self.scale.calm),
        }  # fmt: skip
        save_checkpoint(self.folder / CHECKPOINT, self.model, self.optimizer, self.settings, so_far)
        self.saved = done
        forget(self.folder)
        self.gate.open()

    def interrupted(self) -> Interrupted:
        """Save the last whole step, as it was before the next one began; what to raise."""
        self.gate.close()
        self.gate.waiting = False
        if self.begun and self.whole and self.done > self.saved and self.folder is not None:
            position, self.scale.value, self.scale.calm = self.place
            random.default.restore(position)
            self.save(self.done)
        self.failed()
        if not self.done:
            message = "interrupted before the first step was done"
        else:
            message = f"interrupted after step {self.done}"
            if self.folder is not None:
                message += f"; the checkpoint is of step {self.saved}" if self.saved else "; there is no checkpoint"
        return Interrupted(message, self.saved > 0, self.gate.number)

    def failed(self) -> None:
        """Without a checkpoint of its own the run leaves the folder to the earlier one."""
        if self.folder is not None and self.begun and not self.saved:
            put_back(self.folder)

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
