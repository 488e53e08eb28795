"""Wrong words on the command line, what is printed whatever the encoding, and notes without a line of source."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import warnings

import pytest

from tinyllm import assets
from tinyllm.cli import VERBS, build_parser, main
from tinyllm.cli.parser import THEIRS

WRONG = {
    "finetune --learning-rate 1e-4": "--lr",
    "finetune --learning_rate=1e-4": "--lr",
    "finetune -lr 1e-4": "--lr",
    "finetune --r 8": "--rank",
    "finetune --lora-r 8": "--rank",
    "finetune --lora_alpha 16": "--alpha",
    "finetune --lora-dropout 0.1": "--dropout",
    "finetune --use-dora": "--dora",
    "finetune --batch_size 4": "--batch-size",
    "finetune --per_device_train_batch_size 4": "--batch-size",
    "finetune --gradient-accumulation-steps 2": "--grad-accum",
    "finetune --target-module q_proj": None,  # argparse completes it
    "finetune --target-moduls q_proj": "--target-modules",
    "finetune --stpes 3": "--steps",
    "finetune --output-dir x": "--out",
    "finetune --load-in-4bit": "--method qlora",
    "finetune --xyzzy": "",
    "pretrain --num-layers 3": "--layers",
    "pretrain --lora-r 3": "",  # it has no adapters
    "generate --max-tokens 3": "--max-new-tokens",
    "generate --max-new-token 3": None,
    "generate --steps 3": "",
    "merge --adapter-path a --out b": "--adapter",  # and not that --adapter is required
    "targets --r 4": None,
    "memory --bathc-size 3": "--batch-size",
    "data show x.txt --rowz 3": "--rows",
    "quantize a b --blocksize 64": "--block-size",
    "finetune lr 3": "",
}


@pytest.mark.parametrize("line", WRONG)
def test_a_wrong_option_gets_its_verbs_usage_and_the_one_that_is_meant(line, capsys):
    words, meant = line.split(), WRONG[line]
    if meant is None:
        build_parser().parse_args(words)
        return
    with pytest.raises(SystemExit) as end:
        main(words)
    error = capsys.readouterr().err
    verb = "data show" if words[0] == "data" else words[0]
    assert end.value.code == 2 and error.startswith(f"usage: tinyllm {verb} ")
    last = error.splitlines()[-1]
    assert last.startswith(f"tinyllm {verb}: error: unrecognized arguments: ")
    assert last.endswith(f"; did you mean {meant}?") if meant else "did you mean" not in last


def test_every_name_of_another_project_leads_to_an_option_there_is():
    known = {option for verb in VERBS for option in options_of(verb)}
    assert {ours.partition(" ")[0] for ours in THEIRS.values()} <= known
    assert not set(THEIRS) & known


def options_of(verb: str) -> list[str]:
    (verbs,) = (action for action in build_parser()._actions if action.dest == "verb")
    return list(verbs.choices[verb]._option_string_actions)


def test_no_verb_gives_the_overview(capsys):
    assert main([]) == 0
    out, error = capsys.readouterr()
    assert out.startswith("usage: tinyllm") and all(verb in out for verb in VERBS) and error == ""


EMPTY = [
    ["finetune", "--data", ""], ["finetune", "--model", ""], ["finetune", "--out", ""], ["finetune", "--data="],
    ["finetune", "--target-modules", ""], ["finetune", "--target-modules", "q_proj", ""], ["pretrain", "--data", ""],
    ["pretrain", "--tokenizer", ""], ["pretrain", "--out", ""], ["generate", "--adapter", ""],
    ["generate", "--model", ""], ["generate", "--chat", ""], ["merge", "--adapter", "", "--out", "x"],
    ["merge", "--adapter", "x", "--out", ""], ["merge", "--adapter", "x", "--out", "y", "--data", ""],
    ["quantize", "", "x"], ["quantize", "x", ""], ["inspect", ""], ["targets", ""], ["memory", "--model", ""],
    ["data", "show", ""], ["data", "show", "x", "--model", ""], ["fetch", "smollm2-135m", "--out", ""],
]  # fmt: skip


@pytest.mark.parametrize("argv", EMPTY, ids=" ".join)
def test_an_empty_value_is_not_taken_for_none(argv, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(VERBS[argv[0]], "run", lambda args: pytest.fail("it ran"))
    with pytest.raises(SystemExit) as end:
        main(argv)
    out, error = capsys.readouterr()
    assert end.value.code == 1 and out == "" and error.count("\n") == 1 and " is empty; give it a value" in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1", "utf-8"])
def test_output_that_cannot_be_shown_stops_nothing(encoding, tmp_path):
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0", "COLUMNS": "80"}

    def run(*words):
        command = [sys.executable, "-m", "tinyllm.cli", *map(str, words)]
        done = subprocess.run(command, capture_output=True, env=environment)
        assert done.returncode == 0, done.stderr.decode(encoding, "replace")
        return done.stdout.decode(encoding)

    text = run("generate", "--prompt", "日本 ü😀", "--max-new-tokens", "2")
    assert text.startswith({"utf-8": "日本 ü😀", "ascii": "?? ??"}.get(encoding, "?? ü?"))
    records = tmp_path / "x.jsonl"
    rows = [{"prompt": f"Frage {i} über 日本? ", "completion": "Größe 😀"} for i in range(30)]
    records.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    short = ["--steps", "1", "--batch-size", "2", "--max-seq-len", "64", "--sample-tokens", "2"]
    out = run("finetune", "--data", records, *short, "--prompt", "über 日本", "--out", tmp_path / "日本")
    assert "tokens in" in out and "adapter in" in out and (tmp_path / "日本" / "adapter_config.json").is_file()
    assert "live labels" in run("data", "show", records)
    assert "all-linear" in run("targets") and "layers, " in run("inspect", tmp_path / "日本")


def test_the_users_own_way_with_such_characters_stays(monkeypatch):
    for errors in ("backslashreplace", "strict"):
        stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors=errors)
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", stream)
            assert main([]) == 0
        assert stream.errors == ("replace" if errors == "strict" else errors)


def test_a_note_is_a_note(tmp_path, capsys, monkeypatch):
    shutil.copytree(assets.path("base"), tmp_path / "m")
    path = tmp_path / "m" / "tokenizer_config.json"
    template = (
        "{% for m in messages %}{{ '[' + m.role + '] ' + m.content + eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '[assistant] ' }}{% endif %}"
    )
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), "chat_template": template}))
    turns = [("assistant", "Welcome"), ("user", "hi"), ("assistant", "yes")]
    chat = json.dumps({"messages": [{"role": role, "content": content} for role, content in turns]})
    (tmp_path / "x.jsonl").write_text(f"{chat}\n" * 20, encoding="utf-8")
    short = ["--steps", "1", "--batch-size", "2", "--max-seq-len", "64", "--held-out", "0"]
    words = ["--model", tmp_path / "m", "--data", tmp_path / "x.jsonl", "--out", tmp_path / "o", *short]
    shown = warnings.showwarning
    assert main(["finetune", *map(str, words)]) == 0
    error = capsys.readouterr().err
    notes = [line for line in error.splitlines() if line.startswith("note: ")]
    assert len(notes) == 1 and "context and not learned" in notes[0]
    assert "Warning" not in error and ".py" not in error and warnings.showwarning is shown


def test_any_warning_of_a_library_is_one_line(capsys, monkeypatch):
    def run(args):
        warnings.warn("a library has something to say", stacklevel=1)

    monkeypatch.setattr(VERBS["doctor"], "run", run)
    assert main(["doctor"]) == 0
    assert capsys.readouterr().err == "note: a library has something to say\n"
