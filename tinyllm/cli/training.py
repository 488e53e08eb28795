"""What `finetune` and `pretrain` share: a run's options, its data in two parts, training under a bar, and its end."""

from __future__ import annotations

import shlex
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape

from tinyllm.backend.cpu.malloc import keep_freed_memory
from tinyllm.cli.options import Options, add_rows
from tinyllm.cli.progress import TrainingBar
from tinyllm.data.batches import Loader
from tinyllm.data.examples import split
from tinyllm.data.text import load_text
from tinyllm.data.tokenizer import Tokenizer
from tinyllm.models import DecoderModel
from tinyllm.train import TrainConfig, train
from tinyllm.train.checkpoint import CHECKPOINT, steps_done
from tinyllm.train.earlier import aside
from tinyllm.train.interrupt import Interrupted


def add_run(parser: Options, out: str, max_seq_len: int, held_out: float) -> None:
    """``--batch-size``, ``--max-seq-len``, ``--held-out``, ``--out``, ``--resume``."""
    add_rows(parser, max_seq_len, batch_size=8)
    parser.add_argument(
        "--held-out", type=float, default=held_out, help="share of the data held out (default: %(default)s)"
    )
    parser.add_argument("--out", default=out, help="folder for the results (default: %(default)s)")
    parser.add_argument("--resume", action="store_true", help="go on from --out's checkpoint")


def loaders(
    path: Any, tokenizer: Tokenizer, share: float, batch_size: int, max_seq_len: int, seed: int, **how: Any
) -> tuple[Loader, Loader | None]:
    """The data to learn from, and the share of it that is held out; None if that is nothing. `how` is `load_text`'s."""
    learned, rest = split(load_text(path, tokenizer, **how), share, seed, max_seq_len)
    loader = Loader(learned, batch_size, max_seq_len, seed)
    return loader, Loader(rest, batch_size, max_seq_len, seed) if len(rest) else None


def show_data(console: Console, data: tuple[Loader, Loader | None]) -> None:
    """How much there is to learn from and held out, what was done to it, and how records became texts."""
    loader, held_out = data
    line = f"to learn: {loader.dataset.report()}"
    if held_out is not None:
        line += f"; held out: {len(held_out.dataset)}"
    console.print(line, soft_wrap=True)
    for form in loader.dataset.forms:
        console.print(form)


def train_with_bar(
    model: DecoderModel,
    data: tuple[Loader, Loader | None],
    config: TrainConfig,
    out: Path,
    resume: bool,
    settings: dict[str, Any],
    console: Console,
) -> dict[str, Any]:
    """`train`, its records shown as they come; the data must be the same when resuming, and so must `settings`."""
    loader, held_out = data
    settings = {
        **settings,
        "data_fingerprint": loader.fingerprint(),
        "held_out_fingerprint": held_out.fingerprint() if held_out is not None else None,
    }
    show_start(console, held_out, config, out, resume)
    keep_freed_memory()  # this process trains and ends
    each = config.grad_accum

    def tokens_of(step: int) -> int:
        return sum(int(np.count_nonzero(loader.batch((step - 1) * each + i).segment_ids)) for i in range(each))

    with TrainingBar(config.steps, console, tokens_of) as bar:
        return train(model, loader, held_out, config, out, resume=resume, settings=settings, report=bar.report)


def show_start(console: Console, held_out: Loader | None, config: TrainConfig, out: Path, resume: bool) -> None:
    """Where a resumed run goes on, what becomes of an unfinished one, and how much an evaluation looks at."""
    if resume:
        done, _ = steps_done(out / CHECKPOINT)
        left = "" if done < config.steps else ": nothing is left to train"
        console.print(f"going on after step {done} of {config.steps}{left}")
    elif (out / CHECKPOINT).is_file():
        try:
            done, steps = steps_done(out / CHECKPOINT)
        except ValueError:  # of what is no checkpoint nothing is known; it is kept aside all the same
            done, steps = 0, 0
        if done < (steps or 0):
            console.print(
                f"{escape(str(out))} has a run that was not finished (step {done} of {steps}; the same command with "
                f"--resume goes on with it): its checkpoint is {aside(out / CHECKPOINT).name} until this run's first"
            )
    if held_out is not None and 0 < config.eval_batches < len(held_out):
        console.print(
            f"held-out losses are those of {config.eval_batches} of {len(held_out)} batches (--eval-batches 0: all)"
        )


@contextmanager
def results_follow() -> Iterator[None]:
    """Around the writing of results: all steps are done and in the checkpoint, whatever comes in between."""
    try:
        yield
    except KeyboardInterrupt:
        message = "interrupted after the last step, before all results were written"
        raise Interrupted(message, True, signal.SIGINT) from None


def ending(words: list[str], stop: KeyboardInterrupt) -> str:
    """What to say about an interrupted command, with the line that goes on with it, if one does."""
    if not isinstance(stop, Interrupted) or not stop.saved:
        return str(stop) or "interrupted"
    again = words if "--resume" in words else [*words, "--resume"]
    return f"{stop}; this goes on:\ntinyllm {shlex.join(again)}"
