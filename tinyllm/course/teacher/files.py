"""Texts written whole or not at all."""

from __future__ import annotations

from pathlib import Path

from tinyllm.formats.atomic import write_whole


def write_text(path: Path, text: str) -> None:
    """Write UTF-8; what has no letters in it, such as a damaged file name, becomes question marks."""
    with write_whole(path) as file:
        file.write(text.encode("utf-8", errors="replace"))
