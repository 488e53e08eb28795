"""The kit gives what the engine and its commands give, and says what is wrong in a sentence."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import time
from html.parser import HTMLParser
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import tinyllm
from tinyllm import assets
from tinyllm.backend.cpu import threads
from tinyllm.cli import build_parser
from tinyllm.course import check, kit
from tinyllm.data.batches import Loader
from tinyllm.data.examples import split
from tinyllm.data.text import load_text
from tinyllm.lora import apply_lora
from tinyllm.tensor import no_grad
from tinyllm.train.loop import evaluate

ROOT = Path(__file__).parents[2]
drawing = pytest.mark.skipif(find_spec("matplotlib") is None, reason="not run: matplotlib is not installed")


@pytest.mark.parametrize("text, verb", [("plays", "pretrain"), ("jargon", "finetune")])
def test_what_is_held_out_is_what_the_command_holds_out(text, verb):
    """Token by token, though the plays are not tokenised as a whole for it."""
    options = build_parser().parse_args([verb])
    rest = split(load_text(kit.TEXTS[text].read(), kit.tokenizer()), options.held_out)[1]
    expected = Loader(rest, options.batch_size, options.max_seq_len, options.seed)
    assert kit._held_out(text).fingerprint() == expected.fingerprint()
    assert [kit._held_out(text).order(0).tolist()] == [expected.order(0).tolist()]


def test_the_bases_loss_on_the_plays_is_that_of_the_run_that_made_it():
    *_, last = (ROOT / "docs" / "base-model" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    model = kit.base()
    found = kit.held_out(model, batches=100)  # all of both
    assert set(found) == {"plays", "jargon"} and found["plays"] < found["jargon"]
    assert abs(found["plays"] / json.loads(last)["eval"] - 1) < 1e-6  # another BLAS, another order of sums
    assert found["jargon"] == evaluate(model, kit._held_out("jargon"))


def test_batches_are_of_the_part_that_is_learned():
    learned, _ = split(load_text(assets.jargon(), kit.tokenizer()), 0.1)
    tokens = np.concatenate([example.ids for example in learned.examples])
    batch = next(kit.batches(2, 64))
    text = " ".join(map(str, tokens.tolist()))
    assert all(" ".join(map(str, row.tolist())) in text for row in batch.ids)


def test_a_held_out_loss_is_a_mean_over_all_its_labels():
    model = kit.base().eval()
    with no_grad():
        one, two = (kit.held_out(model, batches=n)["jargon"] for n in (1, 2))
    assert one != two and abs(one - two) < 1.0


def test_batches_come_again_with_their_seed_and_never_end():
    first, again, other = (list(islice(kit.batches(2, 16, seed=s), 3)) for s in (0, 0, 1))
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a.ids, b.ids)
    assert any((a.ids != b.ids).any() for a, b in zip(first, other, strict=True))
    assert first[0].ids.shape == (2, 16)


def test_a_short_run_is_the_engines_loop_and_trains_what_requires_a_gradient():
    model = kit.base()
    before = {name: p.data.copy() for name, p in model.named_parameters()}
    apply_lora(model, rank=2, verbose=False)
    losses = kit.fine_tune(model, steps=3, time=16, size=2)
    assert len(losses) == 3 and all(np.isfinite(losses))
    for name, p in model.named_parameters():
        if not p.requires_grad:
            np.testing.assert_array_equal(p.data, before[name.replace(".base_layer", "")])


def test_in_turns_measures_processor_time_and_not_sleep():
    taken = kit.in_turns({"sleeps": lambda: time.sleep(0.02), "works": lambda: sum(range(200_000))}, rounds=3)
    assert taken["sleeps"] < 0.01 < 10 * taken["works"]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda: kit.begin(-1), "lesson's number"),
        (lambda: kit.begin(8, needs="99.1"), "needs tinyllm 99.1 or later, and this is " + tinyllm.__version__),
        (lambda: next(kit.batches(text="novel")), "'plays' and 'jargon'"),
        (lambda: kit.in_turns({}), "function"),
        (lambda: kit.in_turns([len]), "functions by name, not list"),
        (lambda: kit.in_turns({"a": 1.0}), "'a' must be a function"),
        (lambda: kit.in_turns({"a": int}, rounds=0), "rounds must be at least 1"),
        (lambda: kit.begin(8, needs="new"), "a release such as"),
        (lambda: kit.begin(8, needs=0.2), "a release such as"),
        (lambda: kit.say(3.0), "say takes a text, not float"),
        (lambda: kit.held_out(3), "a model is needed"),
        (lambda: kit.fine_tune(kit.base(), stepz=3), "no parameter 'stepz'"),
        (lambda: kit.batches(0), "batch size must be at least 1"),
        (lambda: check("01-x", 3), "function"),
    ],
)
def test_a_mistake_is_answered_in_a_sentence(wrong, words):
    with pytest.raises((TypeError, ValueError, ImportError), match=words):
        wrong()


@drawing
def test_a_figure_is_one_and_has_words():
    figure, axes = kit.plt.subplots()
    for wrong, words, error, said in [
        (figure, " ", ValueError, "its content in words"), (figure, None, ValueError, "its content in words"),
        (axes, "x", TypeError, "give axes.figure"), (None, "x", TypeError, "takes a matplotlib figure, not NoneType"),
    ]:  # fmt: skip
        with pytest.raises(error, match=said):
            kit.show(wrong, words)
    kit.plt.close(figure)


@drawing
@pytest.mark.parametrize("have, needs, enough", [
    ("0.2.0", "0.2", True), ("0.2", "0.2.0", True), ("0.10.0", "0.9", True), ("0.9", "0.10", False),
    ("0.2.0.dev1", "0.2", True), ("1.0", "0.3", True), ("0.2.0", "0.2.1", False),
])  # fmt: skip
def test_releases_are_compared_as_numbers(have, needs, enough, monkeypatch, capsys):
    monkeypatch.setattr(tinyllm, "__version__", have)
    if enough:
        kit.begin(3, needs=needs)
        assert capsys.readouterr().out.startswith(f"lesson 3: tinyllm {have}, NumPy {np.__version__}, device cpu, ")
    else:
        with pytest.raises(ImportError, match="pip install --upgrade"):
            kit.begin(3, needs=needs)


@drawing
def test_a_lesson_begins_at_the_same_random_number():
    drawn = []
    for _ in range(2):
        kit.begin(1)
        drawn.append(tinyllm.nn.Linear(3, 3).weight.data)
    np.testing.assert_array_equal(*drawn)


def test_a_short_run_leaves_the_mode_as_it_was():
    model = apply_lora(kit.base(), rank=1, verbose=False)
    kit.fine_tune(model, steps=1, time=8, size=1)
    assert not model.training
    model.train()
    kit.fine_tune(model, steps=1, time=8, size=1)
    assert model.training


def test_in_turns_holds_everything_to_one_thread_and_lets_go(monkeypatch):
    monkeypatch.setattr(threads, "_threads", 3)
    seen = []
    kit.in_turns({"a": lambda: seen.append(tinyllm.get_num_threads()) or sum(range(100_000))}, rounds=1)
    assert set(seen) == {1} and tinyllm.get_num_threads() == 3
    with pytest.raises(ZeroDivisionError):
        kit.in_turns({"a": lambda: 1 / 0})
    assert tinyllm.get_num_threads() == 3


@drawing
def test_a_script_prints_sentences_without_marks_and_what_a_figure_shows(capsys):
    text = """
        A **loss** of `x**y**z` is
        written x ** 2 and y ** 3.

        - one
          thing
        - """
    kit.say(text + "another " * 20)
    figure, axes = kit.plt.subplots()
    kit.show(figure, "A line\nfrom 1 to 2.")
    out = capsys.readouterr().out
    assert out.startswith("A loss of x**y**z is written x ** 2 and y ** 3.\n\n- one thing\n- another another")
    assert out.endswith("\nfigure: A line from 1 to 2.\n") and max(map(len, out.splitlines())) <= 100
    assert not kit.plt.get_fignums()


class Image(HTMLParser):
    def handle_starttag(self, tag, attrs):
        self.tag, self.attrs = tag, dict(attrs)


@drawing
def test_a_notebook_shows_markdown_and_an_image_with_its_words(monkeypatch, capsys):
    shown = []
    display = SimpleNamespace(
        display=shown.append, HTML=lambda text: ("html", text), Markdown=lambda text: ("markdown", text)
    )
    shell = type("ZMQInteractiveShell", (), {})()
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell, display=display))
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    kit.say("A **loss** of 3.")
    figure, axes = kit.plt.subplots(figsize=(7, 3))
    kit.show(figure, 'A "line" <from> 1 & 2.')
    (kind, text), (other, html) = shown
    assert (kind, text, other) == ("markdown", "A **loss** of 3.", "html") and capsys.readouterr().out == ""
    image = Image()
    image.feed(html)
    assert image.tag == "img" and image.attrs["alt"] == 'A "line" <from> 1 & 2.'
    assert image.attrs["style"] == "width:700px;max-width:100%"
    start, data = image.attrs["src"].split(",")
    assert start == "data:image/png;base64" and base64.b64decode(data).startswith(b"\x89PNG")
    assert not kit.plt.get_fignums()


def test_the_course_is_not_loaded_with_the_engine():
    script = "import sys, tinyllm; print([m for m in sys.modules if m.startswith('tinyllm.course')])"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout.strip() == "[]"


def test_a_lesson_without_matplotlib_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install .*matplotlib|\[plot\]"):
        kit.begin(1)


def test_a_name_that_the_kit_lacks_is_answered_with_the_nearest():
    with pytest.raises(AttributeError, match="did you mean 'held_out'"):
        kit.heldout  # noqa: B018
