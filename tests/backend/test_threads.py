"""Operations shared among threads: the same numbers whoever computes them, and nothing lost when one fails."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
import weakref
from queue import SimpleQueue

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.strategies import seeds
from tinyllm.backend import BACKENDS
from tinyllm.backend.cpu import overrides as cpu
from tinyllm.backend.cpu import threads
from tinyllm.backend.cpu.threads import BLAS, at_a_piece, cut, deal, get_num_threads, set_num_threads, share

be = BACKENDS["numpy"]


@pytest.fixture
def several():
    before = get_num_threads()
    set_num_threads(3)
    yield
    set_num_threads(before)


def normal(rng, *shape, dtype=np.float32):
    return rng.standard_normal(shape).astype(dtype)


# ------------------------------------------------------------------------------------------------------------ pieces


def test_of_nothing_there_are_no_slices():
    assert cut(0, 8) == deal(0, 8, 64) == []


@given(st.integers(1, 10_000), st.integers(1, 64), st.integers(1, 40), st.integers(1, 9))
def test_slices_cover_everything_once(n, unit, times, count):
    before, most = get_num_threads(), unit * times
    set_num_threads(count)
    try:
        for slices in (cut(n, unit), deal(n, unit, most)):
            assert slices[0].start == 0 and slices[-1].stop == n
            assert all(a.stop == b.start for a, b in zip(slices, slices[1:], strict=False))
            assert all(p.start % unit == 0 and p.stop > p.start for p in slices)
        dealt = deal(n, unit, most)
        lengths = [p.stop - p.start for p in dealt]
        assert {*lengths[:-1]} <= {lengths[0]} and lengths[-1] <= lengths[0] <= most
        assert len(dealt) <= -(-n // (most * count)) * count  # nobody has one more than the fewest that `most` allows
    finally:
        set_num_threads(before)


def test_every_piece_is_worked_at_once_and_by_several(several):
    seen, who = [], set()

    def work(piece):
        seen.append(piece)
        who.add(threading.get_ident())
        assert at_a_piece()
        time.sleep(0.002)  # so that the others come in time

    share(work, range(60))
    assert sorted(seen) == list(range(60)) and len(who) == 3 and not at_a_piece()


def test_a_share_within_a_piece_stays_in_its_thread(several):
    def work(piece):
        mine, here = threading.get_ident(), []

        def note(inner):
            here.append(threading.get_ident())
            time.sleep(0.0005)  # another would come in time

        share(note, range(8))
        assert here == [mine] * 8

    share(work, range(4))  # one more than threads: at the last, the others are free


def test_nothing_to_do_and_one_thread():
    share(pytest.fail, [])
    for library in BLAS.libraries:
        library.set_num_threads(2)
    before, done, held = get_num_threads(), [], []
    set_num_threads(1)
    try:
        share(lambda piece: done.append(threading.get_ident()), range(5))
        share(lambda piece: held.extend(library.num_threads for library in BLAS.libraries), range(1))
    finally:
        set_num_threads(before)
    assert done == [threading.get_ident()] * 5 and held == [1] * len(BLAS.libraries)


@pytest.mark.parametrize("wrong", [0, -1, 1.5])
def test_a_wrong_number_of_threads(wrong):
    with pytest.raises(ValueError, match="whole number above 0"):
        set_num_threads(wrong)


# ------------------------------------------------------------------------------------------------------------ failures


@pytest.mark.parametrize("where", [0, 5, 11])
def test_what_a_piece_raises_comes_out_when_all_have_ended(several, where):
    at_work = []

    def work(piece):
        at_work.append(piece)
        time.sleep(0.001)
        if piece == where:
            raise ZeroDivisionError(f"piece {piece}")
        at_work.remove(piece)

    for _ in range(3):  # and the threads are still there afterwards
        at_work.clear()
        with pytest.raises(ZeroDivisionError, match=f"piece {where}"):
            share(work, range(12))
        assert at_work == [where] and BLAS.holders == 0
    done = []
    share(done.append, range(12))
    assert sorted(done) == list(range(12))


def test_pieces_not_begun_are_dropped_after_a_failure(several):
    begun = []

    def work(piece):
        begun.append(piece)
        time.sleep(0.001)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        share(work, range(1000))
    assert len(begun) <= 3


def test_errstate_and_warnings_hold_in_every_thread(several):
    huge = np.full(4, 3e38, np.float32)

    def work(piece):
        time.sleep(0.001)
        assert np.isinf(huge * 2).all()

    with np.errstate(over="ignore"), warnings.catch_warnings():
        warnings.simplefilter("error")
        share(work, range(12))
    with np.errstate(over="raise"), pytest.raises(FloatingPointError):
        share(work, range(12))


# ------------------------------------------------------------------------------------------------------------ BLAS


def test_blas_is_held_to_one_thread_and_let_go(several):
    def blas():
        return [library.num_threads for library in BLAS.libraries]

    for library in BLAS.libraries:  # wherever an earlier fault may have left it
        library.set_num_threads(2)
    before, inside = blas(), []
    share(lambda piece: inside.append(blas()), range(6))
    with BLAS, BLAS:
        inside.append(blas())
    assert inside == [[1] * len(before)] * 7 and blas() == before == [2] * len(before)


def test_any_thread_may_hold_blas_and_the_last_lets_go(several):
    for library in BLAS.libraries:
        library.set_num_threads(2)
        getattr(library, "clear_controlling_thread", int)()
    entered, left, inside = threading.Event(), threading.Event(), []

    def other():
        with BLAS:
            entered.set()
            left.wait(10)
            inside.extend(library.num_threads for library in BLAS.libraries)

    holder = threading.Thread(target=other)
    with BLAS:
        holder.start()
        entered.wait(10)
    left.set()
    holder.join()
    assert inside == [1] * len(BLAS.libraries)
    assert [library.num_threads for library in BLAS.libraries] == [2] * len(BLAS.libraries)
    with BLAS:  # and again from the first
        assert [library.num_threads for library in BLAS.libraries] == [1] * len(BLAS.libraries)


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="not run: no signals to a thread here")
def test_an_interrupt_comes_out_when_nobody_is_at_a_piece_any_more(several):
    main, begun, ended = threading.get_ident(), threading.Barrier(3), []

    def work(piece):
        begun.wait(10)  # each thread has one of the three
        if threading.get_ident() != main:
            time.sleep(0.05)  # until the other waits
            if piece == min(others):  # one of the two
                signal.pthread_kill(main, signal.SIGINT)
            time.sleep(0.1)
        else:
            others.remove(piece)
        ended.append(piece)

    others = [0, 1, 2]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            share(work, range(3))
    finally:
        signal.signal(signal.SIGINT, before)
    assert sorted(ended) == [0, 1, 2]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="not run: no fork here")
def test_a_process_forked_inside_a_hold_lets_go_and_holds_again(several):
    def blas():
        return [library.num_threads for library in BLAS.libraries]

    for library in BLAS.libraries:
        library.set_num_threads(2)
    two, one = [2] * len(BLAS.libraries), [1] * len(BLAS.libraries)
    with warnings.catch_warnings(), BLAS:
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
        if child == 0:
            try:
                seen = [blas()]
                BLAS.__exit__()  # what the rest of this block will do
                with BLAS:
                    seen.append(blas())
                seen.append(blas())
                os._exit(0 if seen == [two, one, two] else 1)
            finally:
                os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    assert blas() == two


def test_a_job_that_nobody_took_in_time_holds_no_array(several, monkeypatch):
    jobs = SimpleQueue()
    monkeypatch.setattr(threads, "_helpers", 2)  # who are held up elsewhere
    monkeypatch.setattr(threads, "_jobs", jobs)
    array = np.zeros(5)
    gone = weakref.ref(array)
    share(lambda piece, array=array: array.sum(), range(3))
    del array
    assert jobs.qsize() == 2 and gone() is None


def test_what_a_piece_raises_keeps_no_array(several):
    def fail(piece):
        array = np.zeros(5)
        known.append(weakref.ref(array))
        raise ZeroDivisionError

    known: list = []
    gc.disable()
    try:
        with pytest.raises(ZeroDivisionError) as caught:
            share(fail, range(2))
        del caught
        begun = time.monotonic()
        while any(array() is not None for array in known) and time.monotonic() - begun < 2:
            time.sleep(0.01)  # a helper is just leaving
        assert known and not any(array() is not None for array in known)
    finally:
        gc.enable()


@pytest.mark.parametrize("name", ["OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"])
def test_the_usual_variables_count(name):
    if not BLAS.libraries or BLAS.libraries[0].internal_api != "openblas":
        pytest.skip("not run: NumPy's BLAS is not OpenBLAS")
    environment = {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")} | {name: "1"}
    command = [sys.executable, "-c", "import tinyllm; print(tinyllm.get_num_threads())"]
    assert subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout == "1\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="not run: there is no fork here")
def test_a_forked_process_makes_its_own_threads(several):
    share(lambda piece: None, range(6))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of forks beside threads
        child = os.fork()
    if child == 0:
        who = set()

        def work(piece):
            who.add(threading.get_ident())
            time.sleep(0.002)

        share(work, range(50))
        os._exit(0 if len(who) > 1 else 1)
    assert os.waitpid(child, 0)[1] == 0


# --------------------------------------------------------------------- overrides are the specification, at any size


def large(name, seed, dtype):
    """Arguments of an override, large enough to be cut, with rows that no piece divides evenly."""

    def r(*shape):
        return normal(rng, *shape, dtype=dtype)

    rng = np.random.default_rng(seed)
    rows, n = int(rng.integers(700, 800)), int(rng.integers(760, 800))
    x, g, w, b = r(rows, n), r(rows, n), r(n), r(n)
    column = np.abs(r(rows, 1))
    batch, time, n_keys = int(rng.integers(1, 7)), int(rng.integers(200, 260)), 64
    kv = int(rng.integers(1, 4))
    q, k, v = r(batch, 6, time, n_keys), r(batch, kv, time, n_keys), r(batch, kv, time, n_keys)
    starts = np.minimum(rng.integers(0, time, (batch, time)), np.arange(time)) if seed % 4 else None
    blocks = int(rng.integers(20_000, 30_000))
    match name:
        case "softmax":
            return (x,)
        case "softmax_backward":
            return (g, x)
        case "rms_norm":
            return (x, w, 1e-5)
        case "rms_norm_backward":
            return (g, x, w, column)
        case "layer_norm":
            return (x, w, b, 1e-5)
        case "layer_norm_backward":
            return (g, x, w, r(rows, 1), column)
        case "gelu":
            return (x, True)
        case "gelu_backward":
            return (g, x, False)
        case "silu_mul":
            return (x, g)
        case "silu_mul_backward":
            return (g, x, r(rows, n))
        case "rope":
            x = r(batch, time, 24, 128).swapaxes(1, 2)
            return (x, r(1 + (batch - 1) * int(rng.integers(2)), 1, time, 64), r(1, 1, time, 64))
        case "attention":
            return (q, k, v, 0.125, starts)
        case "attention_backward":
            return (r(*q.shape), q, k, v, 0.125, starts)
        case "adamw_step":
            return (x, g, r(rows, n), np.abs(r(rows, n)), 3, 1e-2, 0.9, 0.99, 1e-3, 0.1)
        case "nf4_quantize":
            return (normal(rng, blocks * 64 + int(rng.integers(64))), 64)
        case "nf4_dequantize":
            size = blocks * 64 + int(rng.integers(64))
            packed = rng.integers(0, 256, (size + 1) // 2).astype(np.uint8)
            return (packed, rng.random(blocks - 9, np.float32), 64, size - 640, 640, None, dtype)
        case "nf4_scales":
            codes = rng.integers(0, 256, blocks).astype(np.uint8)
            return (codes, rng.random(-(-blocks // 256), np.float32), np.float32(0.3), normal(rng, 256))
        case "nf4_matvec":
            out, n = blocks // 4, 96  # rows that begin inside a block of 64
            packed = rng.integers(0, 256, out * n // 2).astype(np.uint8)
            return (r(2, n), packed, rng.random(-(-out * n // 64), np.float32), 64, out)
        case "widen":  # finite patterns of either sign
            bits = rng.integers(0, 0x7C00, (rows, n)).astype(np.uint16) | (rng.integers(0, 2, n) << 15).astype(
                np.uint16
            )
            return (bits, "float16" if seed % 2 else "bfloat16", None, dtype)
    raise NotImplementedError(f"give the override {name!r} large arguments here")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", sorted({*cpu.OVERRIDES} - {"matmul"}))
@settings(max_examples=10)
@given(seed=seeds, count=st.integers(1, 5))
def test_an_override_is_its_specification_to_the_bit(name, dtype, seed, count):
    def run(function):
        arguments = large(name, seed, dtype)
        y = function(np, *arguments)
        return list(arguments[:4]) if y is None else [*(y if isinstance(y, tuple) else (y,))]

    before = get_num_threads()
    set_num_threads(count)
    try:
        shared = run(cpu.OVERRIDES[name])
    finally:
        set_num_threads(before)
    with BLAS:
        wanted = run(cpu.SPECIFICATION[name])
    for a, b in zip(shared, wanted, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        if name in ("attention", "attention_backward", "nf4_matvec"):  # products of other stacks of matrices
            error = np.abs(a.astype(np.float64) - b)
            assert error.max() <= 64 * np.finfo(dtype).eps * max(1, np.abs(b).max())
        else:
            np.testing.assert_array_equal(a, b)


@given(seeds, st.sampled_from([np.float32, np.float64]), st.integers(1, 5), st.booleans(), st.booleans(), st.booleans())
@settings(max_examples=30)
def test_a_large_product_is_numpys_to_rounding(seed, dtype, count, turned, into, tall):
    rng = np.random.default_rng(seed)
    m, k, n = int(rng.integers(120, 300)), int(rng.integers(100, 200)), int(rng.integers(600, 5000))
    m, n = (n, m) if tall else (m, n)
    a = normal(rng, m, k, dtype=dtype)
    b = normal(rng, n, k, dtype=dtype).T if turned else normal(rng, k, n, dtype=dtype)
    out = np.full((m, n + 7), np.nan, dtype)[:, 3:-4] if into else None
    before = get_num_threads()
    set_num_threads(count)
    try:
        y = be.matmul(a, b, out)
    finally:
        set_num_threads(before)
    assert y.dtype == dtype and (out is None or y is out)
    wide = [x.astype(np.longdouble if dtype == np.float64 else np.float64) for x in (a, b)]
    assert (np.abs(y - wide[0] @ wide[1]) <= (k + 2) * np.finfo(dtype).eps * (np.abs(a) @ np.abs(b))).all()


@given(
    seeds,
    st.sampled_from([np.float32, np.float64]),
    st.integers(1, 5),
    st.sampled_from(["none", "lead", "1", "more"]),
)
@settings(max_examples=30)
def test_a_stack_of_products_is_numpys_to_rounding(seed, dtype, count, second):
    rng = np.random.default_rng(seed)
    lead = tuple(int(n) for n in rng.integers(1, 4, rng.integers(1, 3)))
    m, k, n = int(rng.integers(120, 300)), int(rng.integers(100, 200)), int(rng.integers(600, 900))
    a = normal(rng, *lead, k, m, dtype=dtype).swapaxes(-1, -2) if seed % 2 else normal(rng, *lead, m, k, dtype=dtype)
    b = normal(rng, *{"none": (), "lead": lead, "1": (1,) * len(lead), "more": (2, *lead)}[second], k, n, dtype=dtype)
    before = get_num_threads()
    set_num_threads(count)
    try:
        y = be.matmul(a, b)
    finally:
        set_num_threads(before)
    wanted = a.astype(np.longdouble if dtype == np.float64 else np.float64) @ b
    assert y.dtype == dtype and y.shape == wanted.shape
    assert (np.abs(y - wanted) <= (k + 2) * np.finfo(dtype).eps * (np.abs(a) @ np.abs(b))).all()


@pytest.mark.parametrize("a, b", [((4096, 4096), (4096,)), ((4096,), (4096, 4096)), ((4096,), (4, 4096, 4096))])
def test_a_product_with_a_vector_is_numpys(a, b):
    rng = np.random.default_rng(0)
    a, b = normal(rng, *a), normal(rng, *b)
    with BLAS:
        np.testing.assert_array_equal(be.matmul(a, b), a @ b)


@pytest.mark.parametrize("second", [(500, 700), (4, 500, 700)])
def test_several_threads_work_at_a_stack_of_products(several, monkeypatch, second):
    rng, pieces = np.random.default_rng(0), []
    monkeypatch.setattr(be, "share", lambda work, them: (pieces.extend(them), share(work, them)))
    be.matmul(normal(rng, 4, 300, 500), normal(rng, *second))
    assert len(pieces) >= 2


def test_several_threads_work_at_a_short_batch_with_one_key_head(several, monkeypatch):
    rng, pieces = np.random.default_rng(0), []
    monkeypatch.setattr(be, "share", lambda work, them: (pieces.extend(them), share(work, them)))
    q, k = normal(rng, 2, 6, 256, 64), normal(rng, 2, 1, 256, 64)
    be.attention(q, k, k, 0.125, None)
    assert len(pieces) == 2  # on three threads


def test_only_threads_change_the_last_bits_of_products_and_a_run_repeats():
    rng = np.random.default_rng(0)
    a, b = normal(rng, 300, 500), normal(rng, 500, 700)
    assert all(np.array_equal(be.matmul(a, b), be.matmul(a, b)) for _ in range(20))


def test_helpers_hold_no_array_while_they_wait(several):
    import weakref

    array = np.zeros(10)
    alive = weakref.ref(array)
    share(lambda piece, array=array: array.sum(), range(9))
    del array
    for _ in range(100):
        if alive() is None:
            break
        time.sleep(0.01)
    assert alive() is None and threads._helpers >= 2
