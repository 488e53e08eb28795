"""How work is cut and shared is each backend's own: the CPU's, the card's, the ghosts'; nobody above them asks."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import threading
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import tinyllm
from tests.test_imports import FILES, ROOT, imported, module_of
from tinyllm import functional as F
from tinyllm.backend import BACKENDS
from tinyllm.backend.cpu.blas import BLAS
from tinyllm.backend.cpu.threads import get_num_threads, set_num_threads
from tinyllm.backend.cuda import backend as cuda
from tinyllm.backend.ghost import Ghost, haunted
from tinyllm.backend.table import Backend

NUMPY = BACKENDS["numpy"]
CARD = cuda.CUDA("cuda", SimpleNamespace(ndarray=()), {})
ALONE = Backend("alone", SimpleNamespace(ndarray=()), {})
ABOVE = [path for path in FILES if module_of(path).split(".")[1] != "backend"]


@contextmanager
def threads(n):
    before = get_num_threads()
    set_num_threads(n)
    try:
        yield
    finally:
        set_num_threads(before)


# --------------------------------------------------------------------------------------------------- nobody asks above


@pytest.mark.parametrize("path", ABOVE, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_above_the_backend_knows_of_threads_or_cards(path):
    text = path.read_text(encoding="utf-8")
    package = module_of(path).rpartition(".")[0] if path.name != "__init__.py" else module_of(path)
    inside = {name for name in imported(ast.parse(text), package) if name.startswith(INSIDE)}
    assert {name for name in inside if not name.startswith("tinyllm.backend.cpu.malloc")} <= {"tinyllm.backend.cpu"}
    assert not re.search(r"\bbe\.name\b|\bbackend\.name\b|\bbe\.table\b|OVERRIDES|_getframe|f_back", text)


INSIDE = ("tinyllm.backend.cpu", "tinyllm.backend.cuda")


# --------------------------------------------------------------------------------------------------------- the pieces

sizes = {
    "n": st.integers(0, 5000), "each": st.integers(0, 64), "most": st.integers(0, 4096), "unit": st.integers(1, 40),
    "even": st.booleans(), "count": st.integers(1, 9),
}  # fmt: skip


@given(**sizes, chosen=st.sampled_from([NUMPY, CARD, ALONE]))
@example(n=0, each=0, most=0, unit=1, even=True, count=1, chosen=NUMPY)
@example(n=0, each=0, most=0, unit=1, even=False, count=1, chosen=ALONE)
def test_pieces_cover_everything_once(chosen, n, each, most, unit, even, count):
    with threads(count):
        pieces = chosen.pieces(n, each, most, unit, even)
    assert [i for piece in pieces for i in range(n)[piece]] == list(range(n))
    assert all(piece.start % unit == 0 and piece.stop > piece.start for piece in pieces)
    if chosen is NUMPY and each:
        assert all((p.stop - p.start) * each <= max(most, unit * each) or even for p in pieces)
    if chosen is not NUMPY:
        assert len(pieces) <= 1  # a card takes all at once


@given(st.integers(1, 5000), st.integers(1, 9))
def test_dealt_out_each_thread_of_the_cpu_has_one_piece(n, count):
    with threads(count):
        assert max(1, min(n, count) // 2) <= len(NUMPY.pieces(n, even=True)) <= count


def test_a_card_is_given_no_more_at_once_than_fits_it(monkeypatch):
    monkeypatch.setattr(cuda, "PIECE_BYTES", 100)
    assert CARD.pieces(10, 30, 1, unit=4) == [slice(0, 4), slice(4, 8), slice(8, 10)]
    assert CARD.pieces(10, 1000, 1) == [slice(i, i + 1) for i in range(10)]


# ---------------------------------------------------------------------------------------------------- who works at them


@pytest.mark.parametrize("chosen", [CARD, ALONE], ids=lambda backend: backend.name)
def test_without_threads_pieces_are_worked_at_in_order_by_who_asks(chosen):
    done = []
    with threads(3):
        chosen.share(lambda piece: done.append((piece, threading.get_ident())), range(40))
    assert done == [(i, threading.get_ident()) for i in range(40)]


def blas():
    return [library.num_threads for library in BLAS.libraries]


def test_only_the_cpu_holds_blas():
    for library in BLAS.libraries:
        library.set_num_threads(2)
    two, one = [2] * len(BLAS.libraries), [1] * len(BLAS.libraries)
    for backend, held in ((NUMPY, one), (CARD, two), (ALONE, two)):
        with backend.hold(), backend.hold():
            assert blas() == held
        assert blas() == two


def test_of_ghosts_pieces_the_first_and_the_last_are_worked_at_and_all_are_counted():
    with threads(3), haunted() as meter:
        ghosts, done, kept = BACKENDS["ghost"], [], []

        def work(piece):
            done.append(piece)
            Ghost(100, np.uint8)  # for a while
            ghosts.share(lambda inner: done.append((piece, inner)), range(3))  # one thread's own

        ghosts.share(work, range(9))
        assert done == [0, (0, 0), (0, 2), 8, (8, 0), (8, 2)] and meter.high == 300 and meter.live == 0
        ghosts.share(lambda piece: kept.append(Ghost(10, np.uint8)), range(3))  # one each: what they leave stays
        assert len(kept) == 3 and meter.live == 30
        done.clear()
        ghosts.share(work, [])
        ghosts.share(done.append, range(1))
        assert done == [0]


def test_a_failed_piece_of_a_ghost_leaves_no_trace():
    with threads(2), haunted():
        ghosts, done = BACKENDS["ghost"], []
        with pytest.raises(ZeroDivisionError):
            ghosts.share(lambda piece: 1 / 0, range(5))
        ghosts.share(done.append, range(2))
        assert done == [0, 1] and not ghosts.at_a_piece


AFTERWARDS = """
import atexit, threading, time, tinyllm
from tinyllm.backend import BACKENDS

def share(say):
    who = set()
    BACKENDS["numpy"].share(lambda piece: (time.sleep(0.01), who.add(threading.get_ident())), range(30))
    print(say, len(who) > 1, flush=True)

def go_on():
    threading.main_thread().join()
    share("a thread")

tinyllm.set_num_threads(3)
share("the main one")
atexit.register(share, "at exit")
threading.Thread(target=go_on).start()
"""


def test_a_thread_trains_on_with_helpers_when_the_main_one_has_ended():
    done = subprocess.run([sys.executable, "-c", AFTERWARDS], capture_output=True, text=True, cwd=ROOT.parent)
    assert done.stdout == "the main one True\na thread True\nat exit True\n" and not done.stderr


# --------------------------------------------------------------------------------------------- what a rule may name


def test_only_the_cpus_own_rms_norm_is_undone():
    original = NUMPY.table["rms_norm"]

    def same(xp, x, w, eps):
        return original(xp, x, w, eps)

    assert NUMPY.undoes("rms_norm") and not NUMPY.undoes("softmax")
    assert not CARD.undoes("rms_norm") and not ALONE.undoes("rms_norm")
    with haunted():
        assert BACKENDS["ghost"].undoes("rms_norm")  # as the engine will do
    x, w = tinyllm.Tensor(np.ones((2, 3)), requires_grad=True), tinyllm.Tensor(np.ones(3))
    with tinyllm.use(rms_norm=same):
        assert not NUMPY.undoes("rms_norm")
        y = F.rms_norm(x, w)
        y.data[:] = np.nan  # the rule does not look at it
        y.backward(np.ones((2, 3)))
    assert NUMPY.undoes("rms_norm") and np.isfinite(x.grad).all()
