"""Files written whole or not at all: a temporary file beside the target, fsync, rename."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO


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
    temporary = final.parent / f".{secrets.token_hex(8)}.tmp"  # not mkstemp: that one hides the file from other users
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, final)
    except OSError as error:
        _remove(temporary)
        reason = error.strerror or str(error)
        if not final.parent.is_dir():
            reason = f"there is no folder {final.parent}"
        raise type(error)(f"cannot write {path}: {reason}; nothing was changed") from error
    except BaseException:
        _remove(temporary)
        raise
    _sync_folder(final.parent)


def write_text(path: Any, text: str) -> None:
    """Write text whole, as UTF-8 with plain line ends."""
    with write_whole(path) as file:
        file.write(text.encode())


def make_folder(path: Any) -> Path:
    """The folder, made if need be; one clear sentence if it cannot be."""
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise type(error)(
            f"cannot make the folder {folder}: {error.strerror or error}; choose another place"
        ) from error
    return folder


def _remove(path: Path) -> None:
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
