"""A meter counts the bytes of ghosts that are alive, by label."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager


class Meter:
    """How many bytes of ghosts are alive, and the most there ever were.

    Attributes
    ----------
    live, peak, high : int
        `high` is the most since somebody last set it.
    by_label : Counter
        The bytes alive by the label that was in force when each came.
    """

    def __init__(self) -> None:
        self.live = self.peak = self.high = 0
        self.label = ""
        self.by_label: Counter[str] = Counter()
        self.on_peak: Callable[[], None] = lambda: None

    @contextmanager
    def labelled(self, label: str) -> Iterator[None]:
        """Ghosts that come inside this block have this label."""
        before, self.label = self.label, label
        try:
            yield
        finally:
            self.label = before

    def add(self, label: str, n: int) -> None:
        self.live += n
        self.by_label[label] += n
        self.high = max(self.high, self.live)
        if self.live > self.peak:
            self.peak = self.live
            self.on_peak()


NOBODYS = Meter()  # of ghosts outside every `haunted`
in_force = NOBODYS


def labelled(label: str) -> AbstractContextManager:
    """A ``with`` block whose ghosts have this label, whichever meter counts them."""
    return in_force.labelled(label)


@contextmanager
def counted() -> Iterator[Meter]:
    """A ``with`` block whose ghosts are counted by a new meter."""
    global in_force
    before, in_force = in_force, Meter()
    try:
        yield in_force
    finally:
        in_force = before
