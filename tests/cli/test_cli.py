"""The command line: every verb end to end on a tiny model, and one sentence instead of a traceback for bad input."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from tiny_model import tiny_model

from tinyllm import assets
from tinyllm.backend.device import probe
from tinyllm.cli import VERBS, main
from tinyllm.data.tokenizer import Tokenizer
from tinyllm.formats import safetensors_file
from tinyllm.models import DecoderModel

TEXT = "".join(f":entry {i}:\nA program that counts to {i} and stops.\n\n" for i in range(60))
SMALL = [
    "--steps",
    "3",
    "--batch-size",
    "2",
    "--max-seq-len",
    "32",
    "--eval-every",
    "2",
    "--warmup",
    "1",
    "--sample-tokens",
    "4",
]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a tiny model, a text and records."""
    folder = tmp_path_factory.mktemp("home")
    tiny_model(folder / "model")
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    records = [{"prompt": f"What is {i}?", "completion": f" It is [{i}]."} for i in range(20)]
    (folder / "records.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def runs(home):
    """One short run of each method."""
    for method in ("full", "lora", "qlora"):
        assert main(finetune(home, home / method, "--method", method, "--seed", "3")) == 0
    return home


def finetune(home, out, *more) -> list[str]:
    return [
        "finetune",
        "--model",
        str(home / "model"),
        "--data",
        str(home / "text.txt"),
        "--out",
        str(out),
        *SMALL,
        *more,
    ]


def said_in_one_sentence(capsys, argv: list[str]) -> str:
    """Run what must fail; the message."""
    capsys.readouterr()
    assert main([str(a) for a in argv]) == 1
    out, error = capsys.readouterr()
    assert argv[0] != "generate" or out == ""
    assert "Traceback" not in error and error.startswith(f"tinyllm {argv[0]}: ")
    assert error.count("\n") == 1 and error.endswith("\n") and "[Errno" not in error
    return error


def done(capsys, argv: list) -> str:
    """Run what must work; what it printed."""
    capsys.readouterr()
    assert main([str(a) for a in argv]) == 0, capsys.readouterr().err
    return capsys.readouterr().out


# The command itself -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("argv", [[], *([verb] for verb in VERBS), ["data", "show"]], ids=" ".join)
def test_every_verb_has_help(argv, capsys):
    with pytest.raises(SystemExit) as end:
        main([*argv, "--help"])
    out = capsys.readouterr().out
    assert end.value.code == 0 and out.startswith("usage: tinyllm")
    if argv:
        assert VERBS[argv[0]].__doc__.splitlines()[0][:60] in out


@pytest.mark.parametrize("argv", [["dance"], ["data"], ["merge"], ["finetune", "--method", "magic"]], ids=str)
def test_a_wrong_command_line_ends_with_2(argv, capsys):
    with pytest.raises(SystemExit) as end:
        main(argv)
    assert end.value.code == 2 and "usage: tinyllm" in capsys.readouterr().err


def test_python_m_runs_it():
    ran = subprocess.run([sys.executable, "-m", "tinyllm.cli", "--version"], capture_output=True, text=True, check=True)
    assert re.fullmatch(r"tinyllm \d+\.\d+\S*\n", ran.stdout)
    ran = subprocess.run([sys.executable, "-m", "tinyllm.cli", "inspect", "nowhere"], capture_output=True, text=True)
    assert ran.returncode == 1 and "Traceback" not in ran.stderr and ran.stdout == ""


def test_interrupting_ends_with_130(monkeypatch, capsys):
    monkeypatch.setattr(VERBS["doctor"], "run", lambda args: (_ for _ in ()).throw(KeyboardInterrupt))
    assert main(["doctor"]) == 130
    assert "interrupted" in capsys.readouterr().err


# Fine-tuning --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_finetune_writes_what_it_promises(method, runs):
    out = runs / method
    log = [json.loads(line) for line in (out / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert log[0].keys() == {"eval", "step"} and log[0]["step"] == 0  # before any training
    steps = [record for record in log if "loss" in record]
    assert [record["step"] for record in steps] == [1, 2, 3]
    for record in steps:
        assert {"step", "loss", "lr", "grad_norm", "tokens", "seconds"} == record.keys()
        assert record["loss"] > 0 and record["lr"] > 0
    assert steps[0]["tokens"] < steps[1]["tokens"] and steps[0]["seconds"] <= steps[2]["seconds"]
    assert [record["step"] for record in log if "eval" in record] == [0, 2, 3]
    assert (out / "checkpoint.safetensors").is_file() and (out / "run.json").is_file()
    if method == "full":
        DecoderModel.from_pretrained(out)
        assert Tokenizer.load(out).vocab_size == 1024
    else:
        config = json.loads((out / "adapter_config.json").read_text(encoding="utf-8"))
        assert config["r"] == 8 and config["peft_type"] == "LORA"
        arrays, _ = safetensors_file.read(out / "adapter_model.safetensors")
        assert len(arrays) == 2 * 2 * 7  # A and B of seven layers in two blocks
        assert all(np.abs(a).max() > 0 for a in arrays.values())
    assert not [path for path in out.iterdir() if "partial" in path.name or "tmp" in path.name]


def test_finetune_tells_what_it_does(home, tmp_path, capsys):
    out = done(capsys, finetune(home, tmp_path / "out", "--prompt", ":entry"))
    assert re.search(r"trainable parameters: [\d,]+ of [\d,]+", out)
    assert "sample before" in out and "sample after" in out and out.count(":entry") == 2
    assert re.search(r"held-out loss \d+\.\d{4} -> \d+\.\d{4} \([+-]\d+\.\d %\)", out)
    assert "step     0: held-out loss" in out and "peak memory" in out


def test_a_resumed_run_writes_the_same_adapter(home, tmp_path, capsys, monkeypatch):
    from tinyllm.cli.progress import TrainingBar

    more = ("--save-every", "2", "--dropout", "0.2")
    done(capsys, finetune(home, tmp_path / "whole", *more))
    plain = TrainingBar.report

    def dying(self, record):
        plain(self, record)
        if record["step"] == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(TrainingBar, "report", dying)
        assert main(finetune(home, tmp_path / "cut", *more)) == 130
    done(capsys, finetune(home, tmp_path / "cut", *more, "--resume"))
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes()


def test_records_and_a_regular_expression(home, tmp_path, capsys):
    argv = finetune(
        home,
        tmp_path / "out",
        "--target-modules",
        r".*\.0\..*[qv]_proj",
        "--rslora",
        "--rank",
        "4",
        "--sample-tokens",
        "0",
    )
    argv[argv.index("--data") + 1] = str(home / "records.jsonl")
    done(capsys, argv)
    arrays, _ = safetensors_file.read(tmp_path / "out" / "adapter_model.safetensors")
    assert len(arrays) == 4 and all(".0." in name for name in arrays)


def test_nothing_held_out_and_a_learning_rate_of_zero(home, tmp_path, capsys):
    out = done(capsys, finetune(home, tmp_path / "out", "--held-out", "0", "--lr", "0"))
    log = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert "held-out" not in out and not any("eval" in record for record in log)
    assert all(record["lr"] == 0 for record in log)
    assert "14 layers, 14 of them dead" in done(capsys, ["inspect", tmp_path / "out"])


def test_pretrain_makes_a_model_for_the_other_verbs(home, tmp_path, capsys):
    shape = ["--hidden-size", "16", "--layers", "1", "--heads", "2", "--kv-heads", "1", "--intermediate-size", "32"]
    few = ["--max-seq-len", "32", "--steps", "2", "--batch-size", "2", "--warmup", "1"]
    argv = ["pretrain", "--data", home / "text.txt", "--out", tmp_path / "m", *shape, *few]
    assert "held-out loss" in done(capsys, argv)
    done(capsys, ["generate", "--model", tmp_path / "m", "--max-new-tokens", "3"])
    assert "up_proj" in done(capsys, ["targets", tmp_path / "m"])


# The verbs that read what a run wrote -------------------------------------------------------------------------------


def test_generate_with_and_without_an_adapter(runs, capsys):
    argv = ["generate", "--model", runs / "model", "--prompt", r":entry\n", "--max-new-tokens", "5"]
    base = done(capsys, argv)
    assert base.startswith(":entry\n") and base.endswith("\n")
    for method in ("lora", "qlora"):
        adapted = done(capsys, [*argv, "--adapter", runs / method])
        assert adapted == done(capsys, [*argv, "--adapter", runs / method]) and adapted.startswith(":entry\n")
    assert done(capsys, [*argv, "--temperature", "2", "--seed", "1"]) != done(
        capsys, [*argv, "--temperature", "2", "--seed", "2"]
    )


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_merge_makes_a_model_that_says_the_same(method, runs, tmp_path, capsys):
    base = ["merge", "--model", runs / "model", "--adapter", runs / method, "--out", tmp_path / "m"]
    out = done(capsys, [*base, "--data", assets.path("jargon.txt")])
    assert "merged 14 updates of rank 8" in out
    change, largest = map(float, re.search(r"change of a logit (\S+), beside a largest logit of (\S+):", out).groups())
    assert change <= 1e-5 * max(1.0, largest)  # sums of 32 float32 products, two blocks
    words = ["--prompt", "A program", "--max-new-tokens", "8"]
    merged = done(capsys, ["generate", "--model", tmp_path / "m", *words])
    assert merged == done(capsys, ["generate", "--model", runs / "model", "--adapter", runs / method, *words])
    kept = (runs / "model" / "model.safetensors").read_bytes()
    assert "overwrite" in said_in_one_sentence(
        capsys, ["merge", "--model", runs / "model", "--adapter", runs / method, "--out", runs / "model"]
    )
    assert (runs / "model" / "model.safetensors").read_bytes() == kept


def test_targets_lists_what_can_be_adapted(home, capsys):
    out = done(capsys, ["targets", home / "model", "--rank", "4"])
    rows = {line.split()[1]: line for line in out.splitlines() if "_proj" in line or "lm_head" in line}
    assert {"q_proj", "k_proj", "v_proj", "out_proj", "gate_proj", "up_proj", "down_proj"} <= rows.keys()
    assert "32 x 16" in rows["up_proj"] and "384" in rows["up_proj"]  # 2 layers * 4 * (32 + 16)
    assert rows["q_proj"].count("yes") == 2 and rows["up_proj"].count("yes") == 1 and "lm_head" not in rows
    assert "shares its weight" in out


def test_inspect_shows_norms_and_dead_layers(runs, tmp_path, capsys):
    out = done(capsys, ["inspect", runs / "lora"])
    assert "lora_alpha: 16" in out and "14 layers, 0 of them dead" in out and "adapter_model.safetensors: 0." in out
    arrays, metadata = safetensors_file.read(runs / "lora" / "adapter_model.safetensors")
    a = next(key for key in arrays if "lora_A" in key)
    b = a.replace("lora_A", "lora_B")
    norm = float(np.linalg.norm(2.0 * arrays[b].astype(np.float64) @ arrays[a]))  # alpha 16 / rank 8
    assert f"{norm:.4g}" in out
    arrays[b][:] = 0
    (tmp_path / "a").mkdir()
    safetensors_file.write(tmp_path / "a" / "adapter_model.safetensors", arrays)
    (tmp_path / "a" / "adapter_config.json").write_bytes((runs / "lora" / "adapter_config.json").read_bytes())
    out = done(capsys, ["inspect", tmp_path / "a"])
    assert "14 layers, 1 of them dead" in out and sum("dead" in line for line in out.splitlines()) == 2
    (tmp_path / "a" / "adapter_config.json").write_text("{bad")
    assert main(["inspect", str(tmp_path / "a")]) == 1
    assert capsys.readouterr().err.count("is not valid JSON") == 1


def test_data_show_marks_the_loss_positions_without_colour(home, capsys):
    out = done(capsys, ["data", "show", home / "records.jsonl", "--rows", "1", "--max-seq-len", "64"])
    assert "\x1b" not in out and "--- segment 2 ---" in out
    assert "examples: 20," in out and "truncated: 0" in out and "dropped: 0" in out
    tokenizer = Tokenizer.load(assets.path("base"))
    live = sum(len(tokenizer.encode(f" It is [{i}].")) + 1 for i in range(20))
    assert f"live labels: {live} " in out
    first = out.split("--- segment 2 ---")[0].splitlines()[2:]
    first = "".join(first)
    marked = re.findall(r"(?<!\\)\[((?:\\.|[^\[\]])*)(?<!\\)\]", first)
    assert len(marked) == len(tokenizer.encode(" It is [0].")) + 1  # from the prompt's last token to the answer's last
    assert first.replace(r"\[", "<").replace(r"\]", ">").startswith("W") and marked[0] == "?"


def test_data_show_in_colour_and_counts_what_is_cut(home, capsys, monkeypatch):
    from tinyllm.cli.data import Cell, spell

    cells = [Cell("a", False, 1), Cell("[b", True, 1), Cell("c", True, 2)]
    assert spell(cells, colour=False).plain == "a[\\[b]\n--- segment 2 ---\n[c]"
    text = spell(cells, colour=True)
    assert text.plain == "a[b\n--- segment 2 ---\nc"
    assert [text.plain[s.start : s.end] for s in text.spans if "green" in str(s.style)] == ["[b", "c"]
    out = done(capsys, ["data", "show", home / "records.jsonl", "--max-seq-len", "7", "--rows", "0"])
    truncated, dropped = (int(re.search(rf"{word}: (\d+)", out).group(1)) for word in ("truncated", "dropped"))
    assert truncated + dropped == 20 and "row 1" not in out
    assert "windows: " in done(capsys, ["data", "show", home / "text.txt"])


def test_doctor(home, capsys, monkeypatch):
    monkeypatch.setattr(assets, "path", lambda name: home / "model")
    out = done(capsys, ["doctor"])
    for name in (
        "python",
        "numpy",
        "safetensors",
        "tokenizers",
        "rich",
        "matplotlib",
        "cores",
        "memory",
        "threads",
        "cuda",
    ):
        assert re.search(rf"^{name} +\S", out, re.M), name
    assert "1024 token ids" in out and out.endswith("OK\n")
    monkeypatch.setattr(assets, "path", lambda name: home / "nowhere")
    assert "embedded model failed" in said_in_one_sentence(capsys, ["doctor"])


# Bad input ----------------------------------------------------------------------------------------------------------


def test_a_missing_folder_is_named(home, tmp_path, capsys):
    nowhere = tmp_path / "nowhere"
    model = ["--model", home / "model"]
    for argv in (
        ["finetune", "--model", nowhere],
        ["generate", "--model", nowhere],
        ["generate", *model, "--adapter", nowhere],
        ["merge", *model, "--adapter", nowhere, "--out", tmp_path / "m"],
        ["targets", nowhere],
        ["inspect", nowhere],
        ["data", "show", nowhere / "a.txt"],
        ["pretrain", "--tokenizer", nowhere],
    ):
        assert str(nowhere) in said_in_one_sentence(capsys, argv), argv
    assert not (tmp_path / "m").exists()


def test_an_unknown_target_gets_a_suggestion(home, tmp_path, capsys):
    said = said_in_one_sentence(capsys, finetune(home, tmp_path / "o", "--target-modules", "q_prj", "v_proj"))
    assert "'q_prj' matches nothing; did you mean 'q_proj'" in said and not (tmp_path / "o").exists()
    assert "matches no linear layer" in said_in_one_sentence(
        capsys, finetune(home, tmp_path / "o", "--target-modules", "x.*")
    )


def test_only_the_signs_of_an_expression_make_one(home, tmp_path, capsys):
    said = said_in_one_sentence(capsys, finetune(home, tmp_path / "o", "--target-modules", "q-proj"))
    assert "'q-proj' matches nothing; did you mean 'q_proj'" in said
    done(capsys, finetune(home, tmp_path / "o", "--target-modules", "self_attn.q_proj"))
    arrays, _ = safetensors_file.read(tmp_path / "o" / "adapter_model.safetensors")
    assert len(arrays) == 4


def test_bad_data_is_named_with_its_line(home, tmp_path, capsys):
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": "fine"}\n{"txt": 1}\n', encoding="utf-8")
    empty = tmp_path / "empty.txt"
    empty.write_text(" \n", encoding="utf-8")
    for file, said in ((bad, f"{bad}, line 2: "), (empty, "is empty"), (tmp_path / "no.txt", "there is no file")):
        argv = finetune(home, tmp_path / "o")
        argv[argv.index("--data") + 1] = str(file)
        assert said in said_in_one_sentence(capsys, argv)
        assert said in said_in_one_sentence(capsys, ["data", "show", file])


def test_an_out_that_cannot_be_written(runs, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    out = tmp_path / "file" / "out"
    assert str(tmp_path / "file") in said_in_one_sentence(capsys, finetune(runs, out))
    argv = ["merge", "--model", runs / "model", "--adapter", runs / "lora", "--out", out]
    assert str(tmp_path / "file") in said_in_one_sentence(capsys, argv)


@pytest.mark.skipif(probe() is None, reason="there is a GPU here")
def test_cuda_that_is_not_there(home, capsys):
    said = said_in_one_sentence(capsys, ["generate", "--model", home / "model", "--device", "cuda"])
    assert "the device 'cpu'" in said


def test_a_prompt_that_is_too_long(home, capsys):
    said = said_in_one_sentence(capsys, ["generate", "--model", home / "model", "--prompt", "count to ten " * 40])
    assert "the model's context is 64" in said and "shorten it" in said
    assert "the prompt is empty" in said_in_one_sentence(
        capsys, ["generate", "--model", home / "model", "--prompt", ""]
    )


def test_resuming_something_else_or_nothing(runs, tmp_path, capsys):
    assert "nothing to resume" in said_in_one_sentence(capsys, finetune(runs, tmp_path / "none", "--resume"))
    assert not (tmp_path / "none").exists()
    kept = {path.name: path.read_bytes() for path in (runs / "lora").iterdir()}
    said = said_in_one_sentence(capsys, finetune(runs, runs / "lora", "--resume", "--seed", "3", "--rank", "4"))
    assert "rank was 8 and is 4" in said
    assert kept == {path.name: path.read_bytes() for path in (runs / "lora").iterdir()}


@pytest.mark.parametrize("what", ["data", "model"])
def test_resuming_with_another_text_or_model_of_the_same_name(what, home, tmp_path, capsys):
    shutil.copytree(home / "model", tmp_path / "model")
    shutil.copy(home / "text.txt", tmp_path)
    done(capsys, finetune(tmp_path, tmp_path / "o"))
    if what == "data":
        (tmp_path / "text.txt").write_text(TEXT.replace("counts", "sleeps"), encoding="utf-8")
    else:
        arrays, metadata = safetensors_file.read(tmp_path / "model" / "model.safetensors")
        arrays["model.norm.weight"] = arrays["model.norm.weight"] * 2
        safetensors_file.write(tmp_path / "model" / "model.safetensors", arrays, metadata)
    said = said_in_one_sentence(capsys, finetune(tmp_path, tmp_path / "o", "--resume"))
    assert f"the {what} is not the same as then" in said


def test_pretraining_goes_on_with_its_own_data_alone(tmp_path, capsys):
    (tmp_path / "t.txt").write_text(TEXT, encoding="utf-8")
    shape = ["--hidden-size", "16", "--layers", "1", "--heads", "2", "--kv-heads", "1", "--intermediate-size", "32"]
    few = ["--max-seq-len", "32", "--steps", "2", "--batch-size", "2", "--warmup", "1"]
    argv = ["pretrain", "--data", tmp_path / "t.txt", "--out", tmp_path / "m", *shape, *few]
    done(capsys, argv)
    (tmp_path / "t.txt").write_text(TEXT.replace("counts", "sleeps"), encoding="utf-8")
    assert "the data is not the same as then" in said_in_one_sentence(capsys, [*argv, "--resume"])


def test_a_learning_rate_that_breaks_the_model_leaves_no_adapter(home, tmp_path, capsys):
    with np.errstate(all="ignore"):
        argv = finetune(home, tmp_path / "o", "--lr", "1e30")
        argv[argv.index("--steps") + 1] = "1"
        said = said_in_one_sentence(capsys, argv)
    assert "step 1: " in said
    assert {path.name for path in (tmp_path / "o").iterdir()} == {"log.jsonl"}


def test_a_run_without_its_log_resumes(home, tmp_path, capsys):
    done(capsys, finetune(home, tmp_path / "o"))
    (tmp_path / "o" / "log.jsonl").unlink()
    assert "held-out loss" in done(capsys, finetune(home, tmp_path / "o", "--resume"))


def test_the_adapter_is_saved_before_the_comparison(home, tmp_path, monkeypatch):
    said = []

    def failing(*args):
        said.append(1)
        if len(said) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr("tinyllm.cli.finetune.sample", failing)
    assert main(finetune(home, tmp_path / "o")) == 130
    assert (tmp_path / "o" / "adapter_model.safetensors").is_file() and (tmp_path / "o" / "run.json").is_file()


@pytest.mark.parametrize(("block_size", "storage"), [("64", "nf4"), ("128", "float32")])
def test_qlora_reads_weight_by_weight_where_it_can(block_size, storage, home, tmp_path, capsys, monkeypatch):
    plain, asked = DecoderModel.from_pretrained, []

    def watched(folder, storage, dtype):
        asked.append(storage)
        return plain(folder, storage, dtype)

    monkeypatch.setattr(DecoderModel, "from_pretrained", watched)
    done(capsys, finetune(home, tmp_path / "o", "--method", "qlora", "--block-size", block_size))
    assert asked == [storage]


@pytest.mark.parametrize("name", ["run.json", "loss.png"])
def test_run_files_are_whole_or_not_there(name, home, tmp_path, capsys, monkeypatch):
    if name == "loss.png":
        pytest.importorskip("matplotlib")
    done(capsys, finetune(home, tmp_path / "o"))
    plain = os.replace

    def stopping(source, target):
        if str(target).endswith(name):
            raise KeyboardInterrupt
        plain(source, target)

    monkeypatch.setattr("os.replace", stopping)
    assert main(finetune(home, tmp_path / "o", "--seed", "9")) == 130
    assert [
        path.name for path in (tmp_path / "o").iterdir() if name in path.name
    ] == []  # no old, no half, no temporary


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (("--rank", "0"), "rank must be"),
        (("--dropout", "1"), "dropout must be"),
        (("--batch-size", "0"), "batch size must be at least 1"),
        (("--max-seq-len", "0"), "max_seq_len must be at least 1"),
        (("--held-out", "1.5"), "held-out fraction"),
        (("--steps", "0"), "steps must be at least 1"),
        (("--grad-accum", "0"), "grad_accum must be at least 1"),
        (("--method", "qlora", "--block-size", "7"), "block"),
        (("--lr", "nan"), "lr must be finite"),
        (("--weight-decay", "-1"), "weight_decay must be"),
        (("--loraplus-ratio", "0"), "loraplus_ratio must be"),
        (("--max-grad-norm", "0"), "max_grad_norm must be"),
        (("--max-seq-len", "65"), "--max-seq-len 65 is beyond the model's context of 64"),
    ],
)
def test_numbers_out_of_range(option, said, home, tmp_path, capsys):
    assert said in said_in_one_sentence(capsys, finetune(home, tmp_path / "o", *option))
    assert not (tmp_path / "o").exists()


def test_a_broken_adapter(runs, tmp_path, capsys):
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / name).write_bytes((runs / "lora" / name).read_bytes()[:40])
    said_in_one_sentence(capsys, ["inspect", tmp_path])
    said_in_one_sentence(capsys, ["generate", "--model", runs / "model", "--adapter", tmp_path])
