"""A run: resumed is uninterrupted bit for bit, and the log is what happened."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.train.runs import CONFIG, Killed, loader, make, records, start
from tinyllm.backend import random
from tinyllm.formats import safetensors_file
from tinyllm.lora import apply_lora
from tinyllm.models import DecoderModel
from tinyllm.qlora import apply_qlora
from tinyllm.train import TrainConfig, train
from tinyllm.train import run as run_module
from tinyllm.train.checkpoint import CHECKPOINT


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_the_loss_falls(method, tmp_path):
    model = make()
    model.embed_tokens.weight.data *= 5  # a frozen head of N(0, 0.02) could hardly say anything, whatever is adapted
    if method == "lora":
        apply_lora(model, 4, target_modules="all-linear", verbose=False)
    if method == "qlora":
        apply_qlora(model, 4, target_modules="all-linear", verbose=False)
    result = train(model, loader(), loader(seed=1), TrainConfig(steps=40, lr=1e-2, warmup=2), tmp_path)
    assert result["after"] < 0.9 * result["before"]
    log = records(tmp_path)
    assert log[0] == {"eval": result["before"], "step": 0}
    assert log[-1] == {"eval": result["after"], "step": 40}
    steps = [record for record in log if "loss" in record]
    assert [record["step"] for record in steps] == list(range(1, 41))
    live = [loader().batch(i).live for i in range(40)]
    assert [record["tokens"] for record in steps] == np.cumsum(live).tolist() and result["tokens"] == sum(live)
    assert {"lr", "grad_norm", "seconds"} <= steps[0].keys()


def run_until(method: str, folder, kill_at: int | None, resume: bool) -> DecoderModel:
    model = start(method)

    def report(record):
        if kill_at is not None and record["step"] == kill_at and "loss" in record:
            raise Killed

    train(model, loader(), loader(seed=1), CONFIG, folder, resume=resume, settings={"what": "test"}, report=report)
    return model


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("kill_at", [4, 6, 8])
def test_resumed_is_uninterrupted_bit_for_bit(method, kill_at, tmp_path):
    """Killed between checkpoints, or while one was due: the log runs beyond the checkpoint by then."""
    whole = run_until(method, tmp_path / "whole", None, resume=False)
    with pytest.raises(Killed):
        run_until(method, tmp_path / "cut", kill_at, resume=False)
    with (tmp_path / "cut" / "log.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 9, "lo')  # the line it died in
    random.manual_seed(99)  # another process would be anywhere in its stream
    resumed = run_until(method, tmp_path / "cut", None, resume=True)

    for (name, a), (_, b) in zip(whole.named_parameters(), resumed.named_parameters(), strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy(), err_msg=name)
    arrays, about = safetensors_file.read(tmp_path / "whole" / CHECKPOINT)
    again, about_again = safetensors_file.read(tmp_path / "cut" / CHECKPOINT)
    assert arrays.keys() == again.keys() and any(name.startswith("v.") for name in arrays)
    for name in arrays:
        np.testing.assert_array_equal(arrays[name], again[name], err_msg=name)
    states = [json.loads(a["tinyllm_checkpoint"]) for a in (about, about_again)]
    for state in states:
        del state["seconds"]
    assert states[0] == states[1]

    def timeless(folder):
        return [{k: v for k, v in record.items() if k != "seconds"} for record in records(folder)]

    assert timeless(tmp_path / "whole") == timeless(tmp_path / "cut")


def test_resuming_returns_the_first_evaluation_of_the_run(tmp_path):
    model = start("lora")
    first = train(model, loader(), loader(seed=1), CONFIG, tmp_path)
    again = train(start("lora"), loader(), loader(seed=1), CONFIG, tmp_path, resume=True)
    assert again["before"] == first["before"] and again["tokens"] == first["tokens"]
    assert again["after"] == first["after"]


def test_the_log_takes_no_nan(tmp_path):
    with pytest.raises(ValueError):
        run_module.Log(tmp_path, 0, lambda record: None).write({"loss": float("nan"), "step": 1})
    assert records(tmp_path) == []


def test_a_new_run_leaves_no_checkpoint_of_an_older_one(monkeypatch, tmp_path):
    train(start("full"), loader(), None, CONFIG, tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"the old result")

    def shot(*args):
        assert not (tmp_path / CHECKPOINT).exists() and records(tmp_path)  # the log is not truncated yet
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "Log", shot)
        with pytest.raises(Killed):
            train(start("full"), loader(), None, CONFIG, tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == b"the old result"
    with pytest.raises(ValueError, match="nothing to resume"):
        train(start("full"), loader(), None, CONFIG, tmp_path, resume=True)


def test_resuming_without_a_log_knows_the_losses(tmp_path):
    first = train(start("lora"), loader(), loader(seed=1), CONFIG, tmp_path)
    (tmp_path / "log.jsonl").unlink()
    again = train(start("lora"), loader(), loader(seed=1), CONFIG, tmp_path, resume=True)
    assert (again["before"], again["after"]) == (first["before"], first["after"])


def test_the_log_is_rewritten_whole_or_not_at_all(monkeypatch, tmp_path):
    train(start("full"), loader(), None, CONFIG, tmp_path)
    log = (tmp_path / "log.jsonl").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("os.replace", lambda *args: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            train(start("full"), loader(), None, CONFIG, tmp_path, resume=True)
    assert (tmp_path / "log.jsonl").read_bytes() == log
