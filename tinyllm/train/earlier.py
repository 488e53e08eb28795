"""An earlier run's log and checkpoint: kept aside until the new run has a checkpoint to take their place."""

from __future__ import annotations

import os
from pathlib import Path

from tinyllm.train.checkpoint import CHECKPOINT

LOG = "log.jsonl"


def aside(path: Path) -> Path:
    """The name under which a file is kept: ``checkpoint.earlier.safetensors``."""
    return path.with_suffix(f".earlier{path.suffix}")


def set_aside(path: Path) -> None:
    """Rename a file, if it is there. What was kept before stays instead, as long as no checkpoint came after it."""
    if path.name == CHECKPOINT and path.exists():
        forget(path.parent)
    if path.exists() and not aside(path).exists():
        os.replace(path, aside(path))


def put_back(folder: Path) -> None:
    """As if the new run had never begun."""
    for path in (folder / CHECKPOINT, folder / LOG):
        if aside(path).exists():
            os.replace(aside(path), path)


def forget(folder: Path) -> None:
    """Remove what was kept."""
    for path in (folder / CHECKPOINT, folder / LOG):
        aside(path).unlink(missing_ok=True)
