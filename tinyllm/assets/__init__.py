"""The embedded data: two public-domain texts, and the tokenizer of the small base model.

``plays()`` is the text to learn language from, ``jargon()`` the one to fine-tune on: it looks and sounds nothing like
the first, so a learner sees at a glance what an adapter has changed. ``NOTICE`` names sources and licences.
``tools/make_assets.py`` makes every file here from two public packages.
"""

from __future__ import annotations

import gzip
from pathlib import Path


def path(name: str) -> Path:
    """Where an embedded file or folder lies, e.g. ``path("base")``.

    Raises
    ------
    FileNotFoundError
        If nothing of that name is embedded; the message lists what is.
    """
    found = Path(__file__).parent / name
    if not found.exists():
        have = ", ".join(
            sorted(p.name for p in Path(__file__).parent.iterdir() if p.suffix != ".py" and p.name[0] != "_")
        )
        raise FileNotFoundError(f"no asset {name!r} is embedded in tinyllm: choose one of {have}")
    return found


def plays() -> str:
    r"""38 plays by Shakespeare, ASCII, as speeches ``SPEAKER:\nlines\n\n``.

    Plays stand in alphabetical order of title with three blank lines between them, so
    ``plays().split("\n\n\n\n")`` gives the 38 and lets you hold out whole plays.
    """
    return gzip.decompress(path("plays.txt.gz").read_bytes()).decode("ascii")


def jargon() -> str:
    r"""Entries of the Jargon File 4.4.7, ASCII, as ``:headword:\n``, one line a paragraph, one blank line.

    Headwords come in alphabetical order; a line is a headword exactly if it starts and ends with a colon.
    """
    return path("jargon.txt").read_text(encoding="ascii")
