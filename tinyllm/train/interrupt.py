"""Ctrl-C and `kill` during a run: they end it where a step can be dropped, so that the last whole one can be saved."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")  # as far as the system has them
UNTOUCHED = (signal.SIG_DFL, signal.default_int_handler)  # nohup ignores SIGHUP, and a caller may have its own way


class Interrupted(KeyboardInterrupt):
    """A run was ended from outside; the message says after which step, and what is saved.

    Attributes
    ----------
    saved : bool
        Whether there is a checkpoint to go on from.
    exit_code : int
        What a shell expects of a program that was ended so.
    """

    def __init__(self, message: str, saved: bool, number: int):
        super().__init__(message)
        self.saved, self.exit_code = saved, 128 + number


class Gate:
    """A ``with`` block in which the signals that end a process become KeyboardInterrupt, once and in good time.

    While the gate is shut they wait, so that no weight is left half changed and no file half written. Handlers can be
    set in the main thread only; elsewhere no signal comes.
    """

    def __init__(self) -> None:
        self.shut, self.waiting = False, False
        self.number = int(signal.SIGINT)
        self.before: dict[int, Any] = {}

    def __enter__(self) -> Gate:
        if threading.current_thread() is threading.main_thread():
            numbers = [getattr(signal, name) for name in SIGNALS if hasattr(signal, name)]
            self.before = {n: signal.getsignal(n) for n in numbers if signal.getsignal(n) in UNTOUCHED}
            for number in self.before:
                signal.signal(number, self._arrive)
        return self

    def __exit__(self, *failure: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def close(self) -> None:
        """From here on a signal waits."""
        self.shut = True

    def open(self) -> None:
        """From here on a signal ends the run; one that waits does so now."""
        if self.waiting:
            raise KeyboardInterrupt
        self.shut = False

    def _arrive(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        if self.shut:
            self.waiting = True
            return
        self.shut = True  # a second one would end the ending
        raise KeyboardInterrupt
