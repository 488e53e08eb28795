"""The progress bar of a training run, and its loss curve as a picture."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from tinyllm.cli.options import megabytes
from tinyllm.formats.atomic import write_whole
from tinyllm.inspect.memory import peak_memory


class TrainingBar:
    """A ``with`` block whose `report` takes the records of `tinyllm.train.train`: loss, tokens/s, memory, time left.

    Parameters
    ----------
    steps : int
    console : Console
    tokens_of : callable
        Gives the tokens that a step processes, counted from 1: prompts and answers, and no padding.
    """

    def __init__(self, steps: int, console: Console, tokens_of: Callable[[int], int]):
        self.console, self.tokens_of = console, tokens_of
        self.processed, self.began = 0, 0.0  # since this process began to train
        self.records: list[dict[str, Any]] = []
        columns = [TextColumn("{task.description}"), BarColumn(None), TextColumn("{task.completed}/{task.total}")]
        columns += [TextColumn("{task.fields[numbers]}"), TimeRemainingColumn()]
        # The bar takes the room that the numbers leave.
        self.progress = Progress(*columns, console=console, transient=not console.is_terminal, expand=True)
        self.task = self.progress.add_task("training", total=steps, numbers="")

    def __enter__(self) -> TrainingBar:
        self.progress.start()
        return self

    def __exit__(self, *failure: object) -> None:
        self.progress.stop()

    def report(self, record: dict[str, Any]) -> None:
        """Take one record."""
        self.records.append(record)
        if "eval" in record:
            self.console.print(f"step {record['step']:>5}: held-out loss {record['eval']:.4f}")
            return
        if len(self.records) == 1 and record["step"] > 1:  # resumed: the first tells how long the steps before took
            self.began = record["seconds"]
        else:
            self.processed += self.tokens_of(record["step"])
        speed = self.processed / max(record["seconds"] - self.began, 1e-9)
        numbers = f"loss {record['loss']:.3f}  {speed:,.0f} tokens/s  {megabytes(peak_memory())}"
        self.progress.update(self.task, completed=record["step"], numbers=numbers)


def draw_losses(log: Path, path: Path) -> bool:
    """Draw ``log.jsonl`` as a PNG; False if matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    records = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    steps = [r for r in records if "loss" in r]
    evals = [r for r in records if "eval" in r]
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot([r["step"] for r in steps], [r["loss"] for r in steps], color="0.7", linewidth=1, label="training batch")
    axes.plot([r["step"] for r in evals], [r["eval"] for r in evals], color="C0", marker="o", label="held-out")
    axes.set_xlabel("optimiser step")
    axes.set_ylabel("loss a token (nats)")
    axes.grid(alpha=0.3)
    axes.legend()
    with write_whole(path) as file:
        figure.savefig(file, format="png", dpi=120)
    return True
