"""A run's log: one record a line, which each reader of the folder understands without this program."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tinyllm.formats.atomic import make_folder, write_text
from tinyllm.train.checkpoint import CHECKPOINT
from tinyllm.train.earlier import LOG, set_aside

Report = Callable[[dict[str, Any]], None]


class Log:
    """``log.jsonl``, one record a line; resuming cuts what a broken run wrote after its checkpoint."""

    def __init__(self, folder: Path | None, start: int, report: Report):
        self.report = report
        self.path = folder / LOG if folder is not None else None
        if self.path is None:
            return
        make_folder(self.path.parent)
        kept = [line for line, record in records(self.path) if _is_before(record, start)] if start else []
        if not start:
            set_aside(self.path)
        write_text(self.path, "".join(f"{line}\n" for line in kept))

    def write(self, record: dict[str, Any]) -> None:
        """Append a record and show it."""
        if self.path is not None:
            line = json.dumps(record, allow_nan=False) + "\n"
            try:
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(line)
            except OSError as error:
                there = (self.path.parent / CHECKPOINT).exists()
                remedy = "resume from the checkpoint, which is whole" if there else "start again"
                raise type(error)(
                    f"cannot write {self.path}: {error.strerror or error}; make room and {remedy}"
                ) from error
        self.report(record)


def _is_before(record: dict[str, Any], start: int) -> bool:
    """Whether a resumed run does not do it again: after `start` steps it is evaluated once more."""
    return bool(record["step"] < start or (record["step"] == start and "eval" not in record))


def records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each line of a log and what it says. The last may be broken off: it was being written when the run was killed.

    Raises
    ------
    ValueError
        If another line is no record of a run.
    """
    if not path.exists():
        return
    lines = path.read_bytes().splitlines()
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            if number == len(lines):
                return
            record = None
        if not (
            isinstance(record, dict)
            and type(record.get("step")) is int
            and any(type(record.get(kind)) in (int, float) for kind in ("loss", "eval"))
        ):
            raise ValueError(
                f"{path}, line {number} is no record of a run: {line[:40].decode(errors='replace')!r}; take the line "
                "out, or remove the file"
            )
        yield line.decode(), record
