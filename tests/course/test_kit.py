"""The kit gives what the engine and its commands give, and says what is wrong in a sentence."""

from __future__ import annotations

import subprocess
import sys
import time
from itertools import islice

import numpy as np
import pytest

import tinyllm
from tinyllm import assets
from tinyllm.course import check, kit
from tinyllm.data.batches import Loader
from tinyllm.data.examples import split
from tinyllm.data.text import load_text
from tinyllm.lora import apply_lora
from tinyllm.tensor import no_grad
from tinyllm.train.loop import evaluate


def test_what_is_held_out_is_what_finetune_holds_out():
    learned, held = split(load_text(assets.jargon(), kit.tokenizer()), 0.1)
    model = kit.base()
    found = kit.held_out(model, batches=100)  # all of both
    assert set(found) == {"plays", "jargon"} and found["plays"] < found["jargon"]
    finetunes = evaluate(model, Loader(held, 8, 128, seed=0), 100)
    assert abs(found["jargon"] - finetunes) < 1e-6
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
        (lambda: check("01-x", 3), "function"),
    ],
)
def test_a_mistake_is_answered_in_a_sentence(wrong, words):
    with pytest.raises((TypeError, ValueError, ImportError), match=words):
        wrong()


def test_the_course_is_not_loaded_with_the_engine():
    script = "import sys, tinyllm; print([m for m in sys.modules if m.startswith('tinyllm.course')])"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout.strip() == "[]"


def test_a_lesson_without_matplotlib_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install .*matplotlib|\[plot\]"):
        kit.begin(1)


def test_a_figure_is_shown_in_words_and_needs_them(capsys):
    pytest.importorskip("matplotlib", reason="not run: matplotlib is not installed")
    with pytest.raises(TypeError, match="figure"):
        kit.show(None, "x")
    figure = kit.plt.figure()
    with pytest.raises(ValueError, match="alt"):
        kit.show(figure, " ")
    kit.show(figure, "A line that rises from 1 to 3.")
    assert capsys.readouterr().out.strip() == "figure: A line that rises from 1 to 3."
