"""Files written whole or not at all: a temporary file beside the target, fsync, rename.

A process that is killed leaves its temporary file behind. Whoever is next to write into the folder removes it: a lock
that has ended with its process says that nobody needs it.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from tinyllm.formats import locks

TEMPORARY = re.compile(r"\.[0-9a-f]{16}\.tmp")
DAY = 24 * 60 * 60  # seconds


@contextmanager
def write_whole(path: Any) -> Iterator[BinaryIO]:
    """A binary file to write into, which takes the place of `path` when the block ends well.

    Until then, and for good if anything fails, `path` is what it was before; nothing else is left behind.

    Parameters
    ----------
    path : str or Path
        Its folder must exist. A link is followed.

    Raises
    ------
    OSError
        If the folder cannot be written to, the disk is full, or `path` is a folder.
    """
    final = Path(os.path.realpath(path))
    if final.is_dir():
        raise IsADirectoryError(f"cannot write {path}: it is a folder; give the name of a file")
    try:
        with temporary_in(final.parent, _new_file) as temporary:
            with open(temporary, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, final)
    except OSError as error:
        reason = error.strerror or str(error)
        if not final.parent.is_dir():
            reason = f"there is no folder {final.parent}"
        raise type(error)(f"cannot write {path}: {reason}; nothing was changed") from error
    _sync_folder(final.parent)


def write_text(path: Any, text: str) -> None:
    """Write text whole, as UTF-8 with plain line ends."""
    with write_whole(path) as file:
        file.write(text.encode())


def make_folder(path: Any) -> Path:
    """The folder, made if need be, without what killed processes left; one clear sentence if it cannot be."""
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise type(error)(
            f"cannot make the folder {folder}: {error.strerror or error}; choose another place"
        ) from error
    sweep(folder)
    return folder


@contextmanager
def temporary_in(folder: Path, make: Callable[[Path], None] = Path.mkdir) -> Iterator[Path]:
    """A hidden name in a folder for what is not whole yet: made by `make`, locked, and gone after the block."""
    while True:
        path = folder / f".{secrets.token_hex(8)}.tmp"
        make(path)
        with _opened(path) as handle:
            if handle is not None and (locks.lock(handle) is False or not path.exists()):
                continue  # in this moment a sweep took it for a killed process's
            try:
                yield path
            finally:
                _remove(path)
            return


def sweep(folder: Any) -> None:
    """Remove the temporary files and folders of killed processes; those of living ones are locked."""
    with suppress(OSError):
        for path in Path(folder).iterdir():
            if TEMPORARY.fullmatch(path.name) and not path.is_symlink():
                with _opened(path) as handle:
                    free = None if handle is None else locks.lock(handle)
                    if _is_old(path) if free is None else free:
                        _remove(path)


@contextmanager
def _opened(path: Path) -> Iterator[int | None]:
    """A handle of a file or folder, for its lock; None where it cannot be opened or, as on Windows, then not moved."""
    handle = None
    if sys.platform != "win32":
        with suppress(OSError):
            handle = os.open(path, os.O_RDONLY)
    try:
        yield handle
    finally:
        if handle is not None:
            os.close(handle)


def _is_old(path: Path) -> bool:
    """Whether nothing that lives can need it: writing one file takes no day."""
    return path.stat().st_mtime < time.time() - DAY


def _new_file(path: Path) -> None:
    path.touch(exist_ok=False)  # not mkstemp: that one hides the file from other users


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    elif path.exists():
        with suppress(OSError):
            path.unlink()


def _sync_folder(folder: Path) -> None:
    """Make the rename itself last; where folders cannot be opened (Windows) the system sees to it."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
