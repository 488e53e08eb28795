"""Runs from the command line: checked before anything is touched, alone in their folder, ended and resumed."""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_model import tiny_model

from tinyllm.cli import VERBS, build_parser, main, merge
from tinyllm.cli.shortage import remedies
from tinyllm.formats import locks
from tinyllm.models import DecoderModel
from tinyllm.train import loop
from tinyllm.train.checkpoint import CHECKPOINT
from tinyllm.train.trouble import MemoryFull

posix = pytest.mark.skipif(sys.platform == "win32", reason="not run: Windows has no such signals and limits")
TEXT = "".join(f":entry {i}:\nA program that counts to {i} and stops.\n\n" for i in range(60))
SMALL = ["--steps", "3", "--batch-size", "2", "--max-seq-len", "32", "--sample-tokens", "0", "--warmup", "1"]
SHAPE = ["--hidden-size", "16", "--layers", "1", "--heads", "2", "--kv-heads", "1", "--intermediate-size", "32"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a tiny model, a text, and a finished run."""
    folder = tmp_path_factory.mktemp("home")
    tiny_model(folder / "model")
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    (folder / "empty.txt").write_text("", encoding="utf-8")
    assert main(finetune(folder, folder / "run")) == 0
    assert main(["pretrain", *pretrain(folder, folder / "small")]) == 0
    return folder


def finetune(home: Path, out: Path, *more: str) -> list[str]:
    words = ["finetune", "--model", home / "model", "--data", home / "text.txt", "--out", out, *SMALL, *more]
    return [str(word) for word in words]


def pretrain(home: Path, out: Path, *more: str) -> list[str]:
    few = ["--steps", "2", "--batch-size", "2", "--max-seq-len", "32", "--warmup", "1"]
    return [str(word) for word in ["--data", home / "text.txt", "--out", out, *SHAPE, *few, *more]]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def start(words: list[str]) -> subprocess.Popen:
    command = [sys.executable, "-m", "tinyllm.cli", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def steps(out: Path) -> int:
    """How many are in the log."""
    return (out / "log.jsonl").read_bytes().count(b'"loss"') if (out / "log.jsonl").exists() else 0


def wait_for(process: subprocess.Popen, out: Path, count: int) -> None:
    """Until so many steps are done."""
    end = time.monotonic() + 120
    while steps(out) < count:
        assert process.poll() is None and time.monotonic() < end, process.communicate()
        time.sleep(0.005)


# Checked before anything is destroyed -------------------------------------------------------------------------------

REFUSED = [
    *(["--steps", bad] for bad in ("0", "-1")),
    *(["--lr", bad] for bad in ("nan", "inf", "-1")),
    *(["--warmup", "-1"], ["--grad-accum", "0"], ["--eval-every", "-1"], ["--save-every", "-1"]),
    *(["--max-grad-norm", bad] for bad in ("0", "nan", "-1")),
    *(["--weight-decay", bad] for bad in ("nan", "-1")),
    *(["--loraplus-ratio", bad] for bad in ("0", "inf")),
    *(["--rank", bad] for bad in ("0", "-1")),
    *(["--dropout", bad] for bad in ("1", "-0.1", "nan")),
    *(["--alpha", bad] for bad in ("0", "nan")),
    *(["--held-out", bad] for bad in ("1", "-0.1", "nan")),
    *(["--batch-size", bad] for bad in ("0", "-1")),
    *(["--max-seq-len", bad] for bad in ("0", "65")),
    *(["--sample-tokens", "-1"], ["--eval-batches", "-1"], ["--method", "qlora", "--block-size", "7"]),
    ["--prompt", "", "--sample-tokens", "4"],
    *(["--prompt", "count to ten " * 40, "--sample-tokens", "4"], ["--target-modules", "q_prj"]),
    *(["--data", "{home}/nowhere.txt"], ["--data", "{home}/empty.txt"], ["--model", "{home}/nowhere"]),
    *(["--model", "{home}/run"], ["--dtype", "float16"], ["--resume", "--rank", "4"], ["--resume", "--seed", "9"]),
]


@pytest.mark.parametrize("more", REFUSED, ids=" ".join)
def test_a_refused_finetune_leaves_the_finished_one(more, home, capsys):
    before = files(home / "run")
    assert main(finetune(home, home / "run", *(word.format(home=home) for word in more))) == 1
    error = capsys.readouterr().err
    assert error.startswith("tinyllm finetune: ") and error.count("\n") == 1
    assert files(home / "run") == before


@pytest.mark.parametrize(
    "more",
    [
        ["--lr", "nan"], ["--steps", "0"], ["--warmup", "-1"], ["--layers", "0"], ["--heads", "3"],
        ["--eval-batches", "-1"], ["--held-out", "1"], ["--batch-size", "0"], ["--max-seq-len", "0"],
        ["--data", "{home}/empty.txt"], ["--tokenizer", "{home}/nowhere"], ["--resume", "--seed", "9"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_a_refused_pretrain_leaves_the_finished_one(more, home, capsys):
    before = files(home / "small")
    assert main(["pretrain", *pretrain(home, home / "small", *(word.format(home=home) for word in more))]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert files(home / "small") == before


def test_a_run_that_breaks_leaves_the_finished_one(home, capsys):
    before = files(home / "run")
    assert main(finetune(home, home / "run", "--lr", "1e30")) == 1
    assert "lower the learning rate" in capsys.readouterr().err
    assert files(home / "run") == before


def test_results_are_replaced_when_the_new_ones_are_there(home, tmp_path, capsys, monkeypatch):
    out = Path(shutil.copytree(home / "run", tmp_path / "run"))
    before = files(out)
    with monkeypatch.context() as patch:
        patch.setattr("tinyllm.cli.finetune.save", lambda *args: (_ for _ in ()).throw(OSError("the disk is full")))
        assert main(finetune(home, out, "--method", "full")) == 1
    kept = files(out)
    assert all(kept[name] == before[name] for name in before if name not in (CHECKPOINT, "log.jsonl"))
    assert main(finetune(home, out, "--method", "full", "--resume")) == 0
    names = set(files(out))
    assert "model.safetensors" in names and not {"adapter_model.safetensors", "adapter_config.json"} & names
    assert json.loads((out / "run.json").read_text(encoding="utf-8"))["method"] == "full"
    assert main(finetune(home, out)) == 0
    assert "replacing the earlier run" in capsys.readouterr().out
    assert set(files(out)) == set(before)


def test_a_model_from_nothing_takes_the_place_of_an_adapter(home, tmp_path):
    out = Path(shutil.copytree(home / "run", tmp_path / "run"))
    assert main(["pretrain", *pretrain(home, out)]) == 0
    names = set(files(out))
    assert "model.safetensors" in names and not {"adapter_model.safetensors", "adapter_config.json", "run.json"} & names


@pytest.mark.parametrize("verb", ["finetune", "pretrain"])
@pytest.mark.parametrize(
    "name", ["model.safetensors", "config.json", "adapter_config.json", "model-00001-of-00002.safetensors"]
)
def test_what_no_run_wrote_is_not_replaced(verb, name, home, tmp_path, capsys):
    (tmp_path / name).write_bytes(b"somebody's")
    words = finetune(home, tmp_path) if verb == "finetune" else [verb, *pretrain(home, tmp_path)]
    assert main(words) == 1
    assert f"a folder with {name} in it that no run wrote" in capsys.readouterr().err
    assert files(tmp_path) == {name: b"somebody's"}


@pytest.mark.parametrize("there", ["model", "run", "shards"])
@pytest.mark.parametrize("verb", ["merge", "quantize"])
def test_merge_and_quantize_replace_a_model_only_by_force(verb, there, home, tmp_path, capsys):
    out = tmp_path / "m"
    if there == "shards":
        DecoderModel.from_pretrained(home / "model").save_pretrained(out, max_shard_size=20_000)
    else:
        shutil.copytree(home / there, out)
    before = files(out)
    words = ["merge", "--adapter", home / "run", "--out", out] if verb == "merge" else ["quantize", home / "model", out]
    words = [str(word) for word in words]
    assert main(words) == 1
    assert "already; name another folder, or replace it with --force" in capsys.readouterr().err
    assert files(out) == before
    assert main([*words, "--force"]) == 0
    assert files(out) != before and not {"adapter_model.safetensors", "adapter_config.json"} & set(files(out))
    DecoderModel.from_pretrained(out)


def test_a_model_is_not_written_where_a_run_began_meanwhile(home, tmp_path, capsys, monkeypatch):
    held, fold = [], merge.fold

    def begun(*args):
        held.append(os.open(tmp_path / locks.LOCK, os.O_RDWR | os.O_CREAT))
        assert locks.lock(held[0])
        return fold(*args)

    monkeypatch.setattr(merge, "fold", begun)
    assert main(["merge", "--adapter", str(home / "run"), "--out", str(tmp_path)]) == 1
    os.close(held[0])
    assert "another run is writing into" in capsys.readouterr().err and set(files(tmp_path)) == {locks.LOCK}


def test_an_empty_folder_or_other_files_are_no_model(home, tmp_path):
    (tmp_path / "README.md").write_text("mine")
    assert main(["merge", "--adapter", str(home / "run"), "--out", str(tmp_path)]) == 0
    assert (tmp_path / "README.md").read_text() == "mine"


def test_an_unfinished_run_is_not_lost_by_forgetting_to_resume(home, tmp_path, capsys, monkeypatch):
    words = finetune(home, tmp_path / "o", "--save-every", "1")
    with monkeypatch.context() as patch:
        patch.setattr(loop, "update", stopping(loop.update, 3))
        assert main(words) == 130
    kept = (tmp_path / "o" / CHECKPOINT).read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(loop, "update", lambda *args: (_ for _ in ()).throw(ValueError("no")))
        assert main(words) == 1
    out = " ".join(capsys.readouterr().out.split())
    assert "has a run that was not finished (step 2 of 3; the same command with --resume goes on with it)" in out
    assert "checkpoint.earlier.safetensors until" in out
    assert (tmp_path / "o" / CHECKPOINT).read_bytes() == kept
    assert main([*words, "--resume"]) == 0
    out = capsys.readouterr().out
    assert "going on after step 2 of 3\n" in out
    assert main([*words, "--resume"]) == 0
    assert "going on after step 3 of 3: nothing is left to train\n" in capsys.readouterr().out


def stopping(plain, number: int):
    """The function, interrupted at its n-th call as by Ctrl-C (after it: the gate is shut)."""
    calls = [0]

    def calling(*args):
        calls[0] += 1
        if calls[0] == number:
            raise KeyboardInterrupt
        return plain(*args)

    return calling


# Ended from outside -------------------------------------------------------------------------------------------------


@posix
@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_saves_and_prints_the_line_that_goes_on(name, code, home, tmp_path):
    more = ["--steps", "40", "--dropout", "0.2", "--save-every", "0", "--eval-every", "7", "--grad-accum", "2"]
    assert main(finetune(home, tmp_path / "whole", *more)) == 0
    out = tmp_path / "a folder"
    process = start(finetune(home, out, *more))
    wait_for(process, out, 5)
    process.send_signal(getattr(signal, name))
    error = process.communicate()[1]
    assert process.returncode == code, error
    said, line = error.splitlines()[-2:]
    found = re.fullmatch(
        r"tinyllm finetune: interrupted after step (\d+); the checkpoint is of step \1; this goes on:", said
    )
    assert found and int(found[1]) >= 5
    words = shlex.split(line)
    assert words[0] == "tinyllm" and words[-1] == "--resume"
    ran = subprocess.run([sys.executable, "-m", "tinyllm.cli", *words[1:]], capture_output=True, text=True, check=True)
    assert f"going on after step {found[1]} of 40" in ran.stdout
    one, other = files(tmp_path / "whole"), files(out)
    assert one["adapter_model.safetensors"] == other["adapter_model.safetensors"]
    logs = [re.sub(rb'"seconds": [\d.]+', b"", all_of["log.jsonl"]) for all_of in (one, other)]
    assert logs[0] == logs[1] and one.keys() == other.keys()


@posix
def test_pretraining_goes_on_the_same_way(home, tmp_path):
    more = ["--steps", "40", "--save-every", "7"]
    assert main(["pretrain", *pretrain(home, tmp_path / "whole", *more)]) == 0
    process = start(["pretrain", *pretrain(home, tmp_path / "cut", *more)])
    wait_for(process, tmp_path / "cut", 10)
    process.send_signal(signal.SIGTERM)
    line = process.communicate()[1].splitlines()[-1]
    assert process.returncode == 143
    assert main(shlex.split(line)[1:]) == 0
    assert files(tmp_path / "whole")["model.safetensors"] == files(tmp_path / "cut")["model.safetensors"]


def test_interrupted_between_the_last_step_and_the_results(home, tmp_path, capsys, monkeypatch):
    words = finetune(home, tmp_path / "o")
    with monkeypatch.context() as patch:
        patch.setattr("tinyllm.cli.finetune.save", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        assert main(words) == 130
    error = capsys.readouterr().err
    assert "after the last step, before all results were written" in error
    assert main(shlex.split(error.splitlines()[-1])[1:]) == 0
    assert files(tmp_path / "o")["adapter_model.safetensors"] == files(home / "run")["adapter_model.safetensors"]


@posix
def test_a_killed_run_leaves_nothing_that_stays(home, tmp_path):
    """Killed in the midst of its checkpoints: a temporary file may be as large as those."""
    out = tmp_path / "o"
    more = ["--steps", "300", "--save-every", "1", "--method", "full"]
    process = start(finetune(home, out, *more))
    wait_for(process, out, 3)
    process.kill()
    process.communicate()
    (out / ".0123456789abcdef.tmp").write_bytes(b"as a killed write leaves it")
    (out / ".fedcba9876543210.tmp").mkdir()
    assert (out / locks.LOCK).exists()
    assert main(finetune(home, out, "--method", "full", "--held-out", "0")) == 0
    assert not [path.name for path in out.iterdir() if path.name.startswith(".")]


@posix
def test_resuming_sweeps_too_and_so_does_whoever_writes_there(home, tmp_path):
    for name, words in {
        "run": finetune(home, tmp_path / "run", "--resume"),
        "merged": ["merge", "--adapter", home / "run", "--out", tmp_path / "merged", "--force"],
        "small": ["quantize", home / "model", tmp_path / "small", "--force"],
    }.items():
        shutil.copytree(home / "run", tmp_path / name)
        (tmp_path / name / ".0123456789abcdef.tmp").write_bytes(b"left")
        assert main([str(word) for word in words]) == 0
        assert ".0123456789abcdef.tmp" not in os.listdir(tmp_path / name)


# Two at once --------------------------------------------------------------------------------------------------------


@posix
def test_the_second_run_is_refused_while_the_first_lives(home, tmp_path, capsys):
    out = tmp_path / "o"
    process = start(finetune(home, out, "--steps", "5000", "--save-every", "0"))
    try:
        wait_for(process, out, 1)
        adapter = ["--adapter", home / "run"]
        for words in (
            finetune(home, out), finetune(home, out, "--resume"), ["pretrain", *pretrain(home, out)],
            ["merge", *adapter, "--out", out, "--force"], ["quantize", home / "model", out, "--force"],
        ):  # fmt: skip
            assert main([str(word) for word in words]) == 1
            error = capsys.readouterr().err
            assert (
                f"another run (process {process.pid}) is writing into {out}; wait" in error and error.count("\n") == 1
            )
    finally:
        process.kill()
        process.communicate()
    assert set(os.listdir(out)) == {"log.jsonl", locks.LOCK}
    assert main(finetune(home, out)) == 0
    found = [json.loads(line)["step"] for line in (out / "log.jsonl").read_text().splitlines()]
    assert found == sorted(found)


# Evaluation ---------------------------------------------------------------------------------------------------------


def test_how_much_an_evaluation_looks_at_is_said_once(home, tmp_path, capsys, monkeypatch):
    looked = []
    plain = loop.evaluate
    monkeypatch.setattr(loop, "evaluate", lambda model, data, most: (looked.append(most), plain(model, data, most))[1])
    more = ["--held-out", "0.9", "--batch-size", "1", "--eval-every", "1"]
    assert main(finetune(home, tmp_path / "o", *more, "--eval-batches", "3")) == 0
    out = capsys.readouterr().out
    assert len(re.findall(r"held-out losses are those of 3 of \d+ batches \(--eval-batches 0: all\)", out)) == 1
    assert looked == [3] * 4
    for all_of_them in (["--eval-batches", "0"], ["--eval-batches", "1000"], []):
        assert main(finetune(home, tmp_path / "o", *more, *all_of_them)) == 0
        assert "held-out losses are those of" not in capsys.readouterr().out


# Too little memory --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", VERBS)
def test_too_little_memory_is_a_sentence_for_every_verb(verb, capsys, monkeypatch):
    def failing(args):
        raise MemoryError("Unable to allocate 9.31 GiB for an array with shape (50000, 50000) and data type float32")

    monkeypatch.setattr(VERBS[verb], "run", failing)
    monkeypatch.setattr(argparse.ArgumentParser, "error", lambda self, message: None)  # nothing is asked for here
    assert main([verb]) == 1
    error = capsys.readouterr().err
    assert re.fullmatch(rf"tinyllm {verb}: there is too little memory.*Unable to allocate 9.31 GiB.*; \S.*\n", error)
    advised = set(re.findall(r"--[\w-]+", error))
    known = {name for action in parser_of(verb)._actions for name in action.option_strings}
    assert advised <= known, advised - known


def parser_of(verb: str) -> argparse.ArgumentParser:
    (verbs,) = [a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction)]
    return verbs.choices[verb]


def test_only_what_is_not_in_use_is_advised():
    line = ["finetune", "--method", "qlora", "--checkpointing", "--batch-size", "1"]
    assert remedies(build_parser().parse_args(line)) == ["a smaller --max-seq-len"]
    assert "a smaller --batch-size than 8" in remedies(build_parser().parse_args(["finetune"]))


PLACES = ["DecoderModel.from_pretrained", "prepare", "sample", "train_with_bar", "save"]


@pytest.mark.parametrize("place", PLACES)
def test_outside_of_the_steps_the_plan_is_told(place, home, tmp_path, capsys, monkeypatch):
    def failing(*args, **options):
        raise MemoryError

    monkeypatch.setattr(f"tinyllm.cli.finetune.{place}", failing)
    assert main(finetune(home, tmp_path / "o")) == 1
    error = capsys.readouterr().err
    assert re.search(r"there is too little memory: about \S+ MB are needed \(base weights .*, activations ", error)
    assert "--method qlora" in error and error.count("\n") == 1


def test_within_a_step_what_was_held_is_told(home, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(loop, "update", lambda *args: (_ for _ in ()).throw(MemoryError))
    assert main(finetune(home, tmp_path / "o")) == 1
    error = capsys.readouterr().err
    assert re.search(
        r"there is too little memory: the frozen base \S+ MiB, .*; try a smaller --batch-size than 2", error
    )
    assert issubclass(MemoryFull, MemoryError)


@posix
def test_a_process_with_a_limit_ends_in_one_sentence(home, tmp_path):
    import resource

    def limit():
        resource.setrlimit(resource.RLIMIT_AS, (1_500_000 * 1024,) * 2)

    words = ["finetune", "--batch-size", "512", "--max-seq-len", "256", "--sample-tokens", "0", "--method", "full"]
    words += ["--steps", "2", "--held-out", "0", "--out", str(tmp_path / "o")]
    ran = subprocess.run(
        [sys.executable, "-m", "tinyllm.cli", *words], capture_output=True, text=True, preexec_fn=limit,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "2"},
    )  # fmt: skip
    assert ran.returncode == 1 and "Traceback" not in ran.stderr
    assert "too little memory: " in ran.stderr and "--checkpointing" in ran.stderr
    assert len(ran.stderr.strip().splitlines()) == 1
