"""Several threads at one array operation: it is cut into pieces, and each thread takes the next one when it is free.

NumPy lets other threads run while it computes, so this takes a queue and no more. BLAS is kept to one thread while the
pieces are worked at; see `blas.py`.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextvars import copy_context
from queue import SimpleQueue
from typing import Any

from tinyllm.backend.cpu.blas import BLAS
from tinyllm.backend.names import is_whole

_jobs: SimpleQueue = SimpleQueue()
_here = threading.local()  # .busy: this thread is at a piece
_helpers = 0


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# What BLAS would have taken: it has read OPENBLAS_NUM_THREADS, OMP_NUM_THREADS and the like.
_threads = max(1, min([_cores(), *BLAS.threads]))


def get_num_threads() -> int:
    """How many threads share an operation."""
    return _threads


def set_num_threads(n: int) -> None:
    """Share operations among `n` threads; 1 computes everything in the thread that asks.

    At the start it is what NumPy's BLAS would take: the cores there are, or what ``OPENBLAS_NUM_THREADS``,
    ``OMP_NUM_THREADS`` or ``MKL_NUM_THREADS`` says. Matrix products are cut by this number, so their last bits depend
    on it; nothing else does.

    Raises
    ------
    ValueError
        If `n` is not a whole number above 0.
    """
    global _threads
    if not is_whole(n) or n < 1:
        raise ValueError(f"the number of threads must be a whole number above 0, not {n!r}")
    _threads = int(n)


def at_a_piece() -> bool:
    """Whether this thread is at a piece already, so that cutting further gains nothing."""
    return getattr(_here, "busy", False)


def cut(n: int, size: int) -> list[slice]:
    """0..n in slices of `size`; the last may be shorter."""
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]


def deal(n: int, unit: int, most: int) -> list[slice]:
    """0..n in slices of one length, as many for each thread, that begin at multiples of `unit`.

    They are no longer than `most`, which is a multiple of `unit`; the last may be shorter.
    """
    rounds = max(1, -(-n // (most * _threads)))
    return cut(n, max(unit, -(-n // (rounds * _threads) // unit) * unit))


def share(work: Callable[[Any], None], pieces: Sequence[Any]) -> None:
    """Call ``work(piece)`` for every piece, several at once; return when all are done.

    Pieces are taken in order but end in any; what is added up over them must be added up in order afterwards. A share
    within a piece is worked at by the thread that is at the piece.

    Raises
    ------
    Exception
        What a piece raised, the first of them; the pieces not begun are dropped then.
    KeyboardInterrupt
        When all threads have left the pieces, so that nobody writes on behind the back of who goes on.
    """
    global _helpers
    others = 0 if at_a_piece() else min(_threads, len(pieces)) - 1
    if others < 1:
        with BLAS:
            for piece in pieces:
                work(piece)
        return
    while _helpers < others:  # made when first needed, never ended
        threading.Thread(target=_help, daemon=True, name=f"tinyllm-{_helpers + 1}").start()
        _helpers += 1
    # The work goes with each piece, so that a job which nobody has taken in time holds no array.
    todo, done = deque((work, piece) for piece in pieces), SimpleQueue()  # type: ignore[var-annotated]
    errors: list[BaseException | None] = []
    with BLAS:
        for _ in range(others):
            # A context of its own each: np.errstate and the like hold in the pieces, too.
            _jobs.put((copy_context(), todo, errors, done))
        try:
            _work_at(todo, errors, done)
            for _ in pieces:
                done.get()
        except BaseException:  # Ctrl-C, which comes to this thread alone
            while len(errors) < len(pieces):
                time.sleep(0.001)
            raise
    for error in errors:
        if error is not None:
            try:
                raise error
            finally:
                errors.clear()  # the traceback leads here and from here to the errors: a circle that would keep arrays
                del error


def _help() -> None:
    for library in BLAS.libraries:
        if library.internal_api == "mkl" or getattr(library, "threading_layer", None) == "openmp":
            library.set_num_threads(1)  # there the limit is each thread's own, and a helper never needs more
    while True:
        context, todo, errors, done = _jobs.get()
        context.run(_work_at, todo, errors, done)
        del context, todo, errors, done  # while it waits it holds no array


def _work_at(todo: deque, errors: list, done: SimpleQueue) -> None:
    """Take pieces until there are none; note of each, done or dropped, what it raised, and say that it is over."""
    _here.busy = True
    failed = False
    try:
        while True:
            try:
                work, piece = todo.popleft()
            except IndexError:
                return
            try:
                if not failed:
                    work(piece)
                errors.append(None)
            except BaseException as error:
                failed = True
                errors.append(error)
            done.put(None)
    finally:
        _here.busy = False


def _forget() -> None:
    """A forked process has the memory of its threads, and none of them."""
    global _helpers, _jobs
    _helpers, _jobs = 0, SimpleQueue()
    BLAS.start_anew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
