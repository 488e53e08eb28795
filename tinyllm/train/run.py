"""A run's log."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tinyllm.formats.atomic import make_folder, write_text


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
