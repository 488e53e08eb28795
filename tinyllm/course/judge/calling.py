"""One call of an answer: fresh arguments in, and out comes what it returned, or what it raised and where."""

from __future__ import annotations

import contextlib
import io
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinyllm.course.judge.wire import copied

ENDINGS = {
    "TooLong": "it took longer than {}",
    "TooMuch": "it printed more than {}",
    "Died": "it ended its whole process",
    "MemoryError": "it wanted more memory than there is for it",
    "NotImplementedError": "it is still the stub",
    "Missing": "there is no function of this name",
    "NotLoaded": "its file does not run: {}",
}  # after these it is not called again with other cases


@dataclass(frozen=True)
class Answer:
    """What a call gave.

    Attributes
    ----------
    value : object
    raised, said : str
        The kind of an exception and its text; "" if there was none.
    kinds : tuple of str
        That kind, and all that it is one of.
    lines : tuple of str
        Where it was raised, from the answer's first line on.
    after : tuple
        The arguments after the call.
    printed : int
        Letters that it printed.
    """

    value: Any = None
    raised: str = ""
    said: str = ""
    lines: tuple[str, ...] = ()
    after: tuple = ()
    printed: int = 0
    kinds: tuple[str, ...] = ()


class TooLong(BaseException):
    """The time of a call is over; no handler of `Exception` in an answer keeps it."""


class TooMuch(BaseException):
    """More was printed than anybody reads."""


class Counted(io.TextIOBase):
    """Takes what is printed and counts it."""

    letters = 0

    def write(self, text: str) -> int:
        self.letters += len(text)
        if self.letters > 10_000_000:
            raise TooMuch("10 MB")
        return len(text)


def called(function: Callable, case: tuple, seconds: float = 5.0) -> Answer:
    """Call an answer with arguments of its own; dividing by zero and the like raises."""
    arguments, out = tuple(copied(x) for x in case), Counted()
    try:
        with (
            contextlib.redirect_stdout(out),
            np.errstate(all="ignore", divide="raise", invalid="raise"),
            within(seconds),
        ):
            value = function(*arguments)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        kinds = tuple(kind.__name__ for kind in type(error).__mro__)
        return Answer(None, kinds[0], str(error)[:300], _lines(error), arguments, out.letters, kinds)
    return Answer(value, after=arguments, printed=out.letters)


def bounded() -> bool:
    """Whether a call can be ended: on Unix, in the main thread."""
    return hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread()


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raise `TooLong` in what runs longer, where that is `bounded`."""
    if not bounded():
        yield
        return

    def over(number: int, frame: Any) -> None:
        raise TooLong(f"{seconds:g} s")

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _lines(error: BaseException) -> tuple[str, ...]:
    frames = traceback.extract_tb(error.__traceback__)[1:]
    inner = [f for f in frames if "tinyllm/course/judge" not in f.filename.replace("\\", "/")]
    return tuple(f"line {f.lineno}, in {f.name}: {f.line or ''}".rstrip(": ") for f in inner[:6])
