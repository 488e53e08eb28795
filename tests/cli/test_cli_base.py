"""generate and merge meet the base that the adapter was trained over, and say so."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tinyllm import assets
from tinyllm.cli import main, merge
from tinyllm.data.tokenizer import Tokenizer
from tinyllm.frozen.nf4 import NF4Weight
from tinyllm.generate import generate
from tinyllm.lora import apply_lora
from tinyllm.lora.peft.adapter import save_adapter
from tinyllm.models import DecoderModel
from tinyllm.models.config import llama_shape
from tinyllm.qlora import quantize_base

TEXT = assets.path("jargon.txt")
IDS = np.arange(40, 60)[None]
BASES = {
    "float32": None,
    "bfloat16": None,
    "nf4": (64, True),
    "blocks": (32, True),
    "single": (64, False),
    "head": (64, True),
}


@pytest.fixture(scope="module", params=BASES)
def case(request, tmp_path_factory):
    """A folder with a model and an adapter, and the adapted model itself."""
    folder = tmp_path_factory.mktemp("case")
    tokenizer = Tokenizer.load(assets.path("base"))
    shape = llama_shape(intermediate_size=32, max_seq_len=64, tie_embeddings=False)
    first = DecoderModel(tokenizer.vocab_size, 16, 2, 2, seed=1, **shape)
    rng = np.random.default_rng(1)
    for p in first.parameters():  # far from its start, so that a base in other bits says something else
        p.data = (p.data + 0.3 * rng.standard_normal(p.shape)).astype(p.dtype)
    first.save_pretrained(folder / "model")
    tokenizer.save(folder / "model")
    kind, settings = request.param, BASES[request.param]
    by_weight = kind in ("bfloat16", "nf4")
    model = DecoderModel.from_pretrained(folder / "model", storage=kind if by_weight else "float32")
    if settings and not by_weight:
        quantize_base(model, *settings)
    saved = ["lm_head"] if kind == "head" else []
    apply_lora(model, 4, 8.0, target_modules=["q_proj", "up_proj"], modules_to_save=saved, verbose=False)
    for p in model.parameters():
        if p.requires_grad:
            p.data = (p.data + 0.1 * rng.standard_normal(p.shape)).astype(p.dtype)
    save_adapter(model.eval(), folder / "adapter")
    return folder, model, kind


def arguments(verb, folder, *more):
    return [verb, "--model", str(folder / "model"), "--adapter", str(folder / "adapter"), *map(str, more)]


def test_merge_over_the_base_of_the_training(case, tmp_path, capsys):
    folder, model, kind = case
    assert main(arguments("merge", folder, "--out", tmp_path, "--data", TEXT)) == 0
    out = " ".join(capsys.readouterr().out.split())
    storage = kind if kind in ("float32", "bfloat16") else "nf4"
    assert f"the base is in {storage}" in out and "as the adapter was trained over" in out
    assert ": rounding" in out if storage != "bfloat16" else "written as bfloat16" in out and "rounding of every" in out
    if storage == "nf4":
        assert f"block_size={BASES[kind][0]}, double_quant={BASES[kind][1]}" in out
    back = DecoderModel.from_pretrained(tmp_path)
    assert not any(isinstance(w, NF4Weight) for w in back.state_dict().values())
    wanted, got = model(IDS).data, back(IDS).data
    eps = 2.0**-8 if storage == "bfloat16" else np.finfo(np.float32).eps  # what is kept in half is merged into half
    assert np.abs(got - wanted).max() <= 2 * 32 * eps * np.abs(wanted).max()
    if storage != "float32":
        assert main(arguments("merge", folder, "--base-storage", "float32", "--out", tmp_path / "o")) == 0
        assert "as --base-storage says" in " ".join(capsys.readouterr().out.split())
        other = DecoderModel.from_pretrained(tmp_path / "o")(IDS).data
        assert np.abs(other - wanted).max() > 1e-4 * np.abs(wanted).max()


def test_generate_over_the_base_of_the_training(case, capsys):
    folder, model, _ = case
    tokenizer = Tokenizer.load(folder / "model")
    assert main(arguments("generate", folder, "--prompt", "A program", "--max-new-tokens", "8")) == 0
    out, error = capsys.readouterr()
    prompt = tokenizer.encode("A program")
    assert out == "A program" + tokenizer.decode(generate(model, prompt, 8, stop=(tokenizer.eos_id,))) + "\n"
    assert error.startswith("the base is in ") and error.count("\n") == 1


def test_generate_says_that_the_context_ended_the_text(case, tmp_path, capsys, monkeypatch):
    folder, _, _ = case
    monkeypatch.setattr("tinyllm.data.tokenizer.find", lambda *_: None)  # no token ends the text
    argv = ["generate", "--model", str(folder / "model"), "--prompt", "A program", "--max-new-tokens"]
    assert main([*argv, "500"]) == 0
    assert capsys.readouterr().err == "the model's context of 64 tokens ended the text\n"
    assert main([*argv, "5"]) == 0
    assert capsys.readouterr().err == ""


def test_a_change_that_is_more_than_rounding_is_said(case, tmp_path, capsys, monkeypatch):
    folder, _, kind = case
    plain, factor = merge.merge_lora, 2 if kind == "bfloat16" else 1.001  # within bfloat16's own rounding

    def spoiling(model, **options):
        plain(model, **options)
        model.norm.weight.data = model.norm.weight.data * np.float32(factor)

    monkeypatch.setattr(merge, "merge_lora", spoiling)
    assert main(arguments("merge", folder, "--out", tmp_path, "--data", TEXT)) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "WARNING, more than" in out and ": rounding" not in out
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "llama"


def test_an_adapter_leads_to_the_model_it_was_trained_over(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tokenizer = Tokenizer.load(assets.path("base"))
    for name, seed in (("mine", 1), ("other", 2)):
        model = DecoderModel(tokenizer.vocab_size, 16, 1, 2, seed=seed, **llama_shape(max_seq_len=128))
        model.save_pretrained(name)
        tokenizer.save(name)
    Path("notes.txt").write_text("a note and another note " * 200, encoding="utf-8")
    train = [
        "finetune",
        "--model",
        "mine",
        "--data",
        "notes.txt",
        "--steps",
        "2",
        "--max-seq-len",
        "64",
        "--out",
        "run",
    ]
    assert main(train) == 0
    assert main(["generate", "--adapter", "run", "--max-new-tokens", "2"]) == 0
    assert "(model mine)" in capsys.readouterr().err
    assert main(["generate", "--model", "other", "--adapter", "run", "--max-new-tokens", "2"]) == 0
    assert "WARNING: the adapter was trained over mine" in capsys.readouterr().err
    Path("mine").rename("moved")
    assert main(["generate", "--adapter", "run"]) == 1
    assert "give its folder with --model" in capsys.readouterr().err


def test_a_new_run_leaves_nothing_of_the_old_one(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tokenizer = Tokenizer.load(assets.path("base"))
    DecoderModel(tokenizer.vocab_size, 16, 1, 2, seed=1, **llama_shape(max_seq_len=128)).save_pretrained("mine")
    tokenizer.save("mine")
    Path("notes.txt").write_text("a note and another note " * 200, encoding="utf-8")
    train = ["finetune", "--model", "mine", "--data", "notes.txt", "--steps", "2", "--max-seq-len", "64"]
    assert main([*train, "--out", "run"]) == 0
    assert main([*train, "--out", "run", "--method", "full"]) == 0
    assert "replacing the earlier run" in capsys.readouterr().out
    assert not Path("run/adapter_model.safetensors").exists() and Path("run/model.safetensors").exists()
    settings = json.loads(Path("run/run.json").read_text(encoding="utf-8"))
    assert settings["lr"] == 2e-5 and "run" not in settings
    assert main([*train, "--out", "mine"]) == 1
    assert "the model's own folder" in capsys.readouterr().err and Path("mine/model.safetensors").exists()
