"""What a new user sees first: names that mean the same everywhere, tables and bars that fit, one share, one rate."""

from __future__ import annotations

import io
import re
import shlex
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from tinyllm import assets
from tinyllm.cli import fetch, main, options, training
from tinyllm.cli.finetune import default_lr, next_command
from tinyllm.cli.progress import TrainingBar
from tinyllm.data.batches import Loader
from tinyllm.data.examples import Example
from tinyllm.data.tokenizer import Tokenizer
from tinyllm.models import DecoderModel
from tinyllm.models.checkpoints import named
from tinyllm.models.config import llama_shape
from tinyllm.train import TrainConfig


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with one short run of the embedded base."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("Once there was a note, and then another. " * 60, encoding="utf-8")
    (tmp_path / "notes.jsonl").write_text('{"prompt": "Say it.", "completion": " It is said."}\n' * 9, encoding="utf-8")
    return tmp_path


SHORT = ["--data", "notes.txt", "--steps", "1", "--batch-size", "1", "--max-seq-len", "32", "--sample-tokens", "0"]


# Names -----------------------------------------------------------------------------------------------------------


def test_a_short_name_is_a_model_in_python_too(here):
    model = DecoderModel.from_pretrained("base")
    assert model.num_parameters() == DecoderModel.from_pretrained(assets.path("base")).num_parameters()
    assert Tokenizer.load("base").encode("king") == Tokenizer.load(assets.path("base")).encode("king")


def test_a_name_that_is_not_fetched_says_how(here, monkeypatch):
    monkeypatch.setenv("TINYLLM_CACHE", str(here / "cache"))
    for load in (DecoderModel.from_pretrained, Tokenizer.load, options.model_folder):
        with pytest.raises(FileNotFoundError, match="run `tinyllm fetch smollm2-135m` first"):
            load("smollm2-135m")


@pytest.mark.parametrize("name", ["base", "smollm2-135m"])
def test_a_folder_of_that_name_wins_and_this_is_said(name, here, capsys):
    tokenizer = Tokenizer.load("base")
    DecoderModel(tokenizer.vocab_size, 16, 1, 2, seed=0, **llama_shape(max_seq_len=64)).save_pretrained(name)
    tokenizer.save(name)
    with pytest.warns(UserWarning, match=f"{name} is the folder of that name here"):
        assert DecoderModel.from_pretrained(name).config.hidden_size == 16
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert DecoderModel.from_pretrained(f"./{name}").config.hidden_size == 16
    assert default_lr(name, "lora") == 2e-4  # not the rate of tinyllm's own
    assert main(["generate", "--model", name, "--prompt", "x", "--max-new-tokens", "1"]) == 0
    assert capsys.readouterr().err.count("is the folder of that name here") == 1


def test_a_folder_of_that_name_without_a_model_does_not_win(here):
    (here / "base").mkdir()
    assert named.is_built_in("base") and DecoderModel.from_pretrained("base").config.hidden_size > 16


# One share, one rate, what comes next -----------------------------------------------------------------------------


def test_targets_and_finetune_give_one_share(here, capsys):
    assert main(["targets"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    listed = re.search(r"all-linear \([^)]*\): ([\d,]+) parameters train of ([\d,]+) \(([\d.]+) %\)", out)
    assert main(["finetune", *SHORT]) == 0
    out = " ".join(capsys.readouterr().out.split())
    run = re.search(r"trainable parameters: ([\d,]+) of ([\d,]+) \(([\d.]+) %\)", out)
    assert listed.groups() == run.groups()


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_next_command_is_printed_and_runs(method, here, capsys):
    assert main(["finetune", "--method", method, *SHORT, "--out", "my runs/x"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    line = re.search(r"try it: tinyllm (.*)$", out)[1]
    assert line == next_command("base", method, Path("my runs/x")).removeprefix("try it: tinyllm ")
    assert main([*shlex.split(line), "--max-new-tokens", "2"]) == 0


def test_the_rate_counts_what_is_processed_and_no_padding():
    """Four tokens of a question, one of an answer: five are processed where one is learned."""
    examples = [Example(np.arange(6), np.array([-100, -100, -100, -100, 5, -100])) for _ in range(8)]
    loader = Loader(examples, 1, 100, pack=False)
    seen = []

    def train(model, loader, held_out, config, out, *, resume, settings, report):
        for step in range(1 + 3 * resume, 5 + 3 * resume):
            report({"step": step, "loss": 1.0, "tokens": 2 * step, "seconds": step / 10})
            seen.append(report.__self__)

    for resume, steps in ((False, 4), (True, 3)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(training, "train", train)
            training.train_with_bar(
                None, (loader, None), TrainConfig(steps=8, grad_accum=2), None, resume, {}, Console(file=io.StringIO())
            )
        bar = seen[-1]
        each = 2 * np.count_nonzero(loader.batch(0).segment_ids)
        assert each == 10 or each == 12
        assert bar.processed == steps * each  # of a resumed run, since it was resumed
        numbers = bar.progress.tasks[0].fields["numbers"]
        assert f"{each * 10:,.0f} tokens/s" in numbers


# What fits ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [80, 120])
def test_tables_fit_the_window(columns, here, capsys, monkeypatch):
    assert main(["finetune", *SHORT, "--out", "runs/x"]) == 0
    capsys.readouterr()
    monkeypatch.setenv("COLUMNS", str(columns))
    verbs = ["targets", "memory", "inspect runs/x", "data show notes.txt", "data show notes.jsonl"]
    for verb in verbs:
        assert main(verb.split()) == 0
        lines = capsys.readouterr().out.splitlines()
        if verb.startswith("data"):  # the text itself is as long as its lines
            lines = [line for line in lines if line.startswith("row ")]
        assert lines and max(map(len, lines)) <= columns, verb
        assert not any("…" in line for line in lines), verb  # nothing is cut off


@pytest.mark.parametrize("columns", [80, 120])
def test_the_bar_fits_the_window(columns):
    console = Console(file=io.StringIO(), width=columns, force_terminal=True, color_system=None)
    with TrainingBar(12000, console, lambda step: 10**6) as bar:
        bar.report({"step": 11999, "loss": 10.123, "tokens": 1, "seconds": 10.0, "grad_norm": 1.0})
        bar.report({"step": 12000, "loss": 10.123, "tokens": 1, "seconds": 20.0, "grad_norm": 1.0})
        console.print(bar.progress.get_renderable())
    text = console.file.getvalue()
    lines = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line) for line in re.split(r"[\r\n]", text)]
    last = [line for line in lines if "12000/12000" in line][-1]
    assert len(last) <= columns and "loss 10.123  100,000 tokens/s" in last and "…" not in last


# A bar while fetching ------------------------------------------------------------------------------------------------

PIP = """
import os, pathlib, sys, time
folder = pathlib.Path(os.environ["TMPDIR"])
for _ in range(6):
    with open(folder / "part", "ab") as file:
        file.write(bytes(500_000))
    time.sleep(0.15)
sys.exit("ERROR: gone" if "fail" in sys.argv else 0)
"""


@pytest.mark.parametrize("terminal", [True, False])
def test_a_fetch_shows_how_far_it_is_on_a_terminal_alone(terminal, here, monkeypatch):
    console = Console(file=io.StringIO(), width=80, force_terminal=terminal, color_system=None)
    monkeypatch.setattr(fetch, "Console", lambda: console)
    code, errors = fetch.run_under_bar([sys.executable, "-c", PIP], str(here), 3_000_000)
    text = console.file.getvalue()
    assert (code, errors) == (0, "") and ("3.0/3.0 MB" in text) == terminal and (terminal or text == "")
    if terminal:
        assert re.search(r"[012]\.\d/3\.0 MB", text)
    code, errors = fetch.run_under_bar([sys.executable, "-c", PIP, "fail"], str(here), 10**9)
    assert code == 1 and errors.strip() == "ERROR: gone"
