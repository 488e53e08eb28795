"""Who is writing: locks that end with their process, however it ends."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any

if sys.platform == "win32":
    import msvcrt
elif sys.platform != "wasi":
    import fcntl

LOCK = ".lock"  # in a folder that results are written into
FAR = 1 << 30  # Windows hides locked bytes from readers, and the first ones tell who holds the lock
HELD_BY_ANOTHER = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)

_mine: ContextVar[frozenset[Path]] = ContextVar("locks of the blocks around this one", default=frozenset())


@contextmanager
def alone_in(folder: Any) -> Iterator[None]:
    """A ``with`` block in which nobody else writes into a folder, as far as they ask here, too.

    A block inside another of the same folder is part of it. A lock that a killed process left is free. On a drive that
    knows no locks nobody is kept out.

    Parameters
    ----------
    folder : str or Path
        It must exist.

    Raises
    ------
    RuntimeError
        If another process, or another thread of this one, is in such a block.
    OSError
        If the folder cannot be written to.
    """
    path = Path(folder).resolve() / LOCK
    if path in _mine.get():
        yield
        return
    handle = _take(path, folder)
    token = _mine.set(_mine.get() | {path})
    try:
        yield
    finally:
        _mine.reset(token)
        if sys.platform == "win32":  # which removes no file that is open
            os.close(handle)
        with suppress(OSError):
            path.unlink()
        if sys.platform != "win32":  # once it is closed, the name may be another's
            os.close(handle)


def _take(path: Path, folder: Any) -> int:
    """The lock file, open and locked, with this process's number in it."""
    while True:
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise type(error)(f"cannot write into {folder}: {error.strerror}; choose another folder") from error
        if lock(handle) is False:
            owner = os.read(handle, 20).decode(errors="replace").strip()
            os.close(handle)
            raise RuntimeError(
                f"another run{f' (process {owner})' if owner else ''} is writing into {folder}; wait until it has "
                "ended, or choose another folder"
            )
        with suppress(OSError):
            if os.path.samestat(os.fstat(handle), os.stat(path)):  # else its owner removed it in this moment
                os.ftruncate(handle, 0)
                os.write(handle, f"{os.getpid()}\n".encode())
                return handle
        os.close(handle)


def lock(handle: int) -> bool | None:
    """Lock an open file until it is closed or the process ends.

    Returns
    -------
    bool or None
        False if it has been locked elsewhere, None where the system or the drive cannot lock it.
    """
    try:
        if sys.platform == "win32":
            os.lseek(handle, FAR, os.SEEK_SET)
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
            os.lseek(handle, 0, os.SEEK_SET)
        elif sys.platform == "wasi":  # WebAssembly has one process
            return None
        else:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if sys.platform == "win32":
            os.lseek(handle, 0, os.SEEK_SET)
        return False if error.errno in HELD_BY_ANOTHER else None
    return True
