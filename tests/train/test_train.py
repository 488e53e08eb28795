"""Training: k micro-batches are one batch, resumed is uninterrupted bit for bit, and failures name their place."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from tinyllm.backend import random
from tinyllm.data import Dataset, Example, Loader
from tinyllm.formats import safetensors_file
from tinyllm.lora import apply_lora
from tinyllm.models import DecoderModel
from tinyllm.models.config import llama_shape
from tinyllm.qlora import apply_qlora
from tinyllm.tensor import Parameter
from tinyllm.train import NonFiniteLoss, TrainConfig, evaluate, train
from tinyllm.train import loop as module, run as run_module
from tinyllm.train.checkpoint import CHECKPOINT

VOCAB, TIME = 23, 12


def make(dtype=np.float32, **changes) -> DecoderModel:
    return DecoderModel(
        VOCAB, 16, 2, 2, seed=1, dtype=dtype, max_seq_len=TIME, **llama_shape(num_kv_heads=1, **changes)
    )


def examples(n: int = 8, seed: int = 0) -> Dataset:
    """A language with a rule (each id follows the one before it), of unequal lengths and with masked labels."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(n):
        ids = (rng.integers(VOCAB) + np.arange(rng.integers(6, TIME + 1)) * 5) % VOCAB
        labels = np.append(ids[1:], -100)
        labels[: rng.integers(0, 4)] = -100
        made.append(Example(ids, labels))
    return Dataset(tuple(made))


def loader(batch_size: int = 2, seed: int = 0) -> Loader:
    return Loader(examples(), batch_size, TIME, seed, pack=False)


def records(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]


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


def test_training_keeps_what_its_steps_free(monkeypatch):
    called = []
    monkeypatch.setattr("tinyllm.train.loop.keep_freed_memory", lambda: called.append(True))
    train(make(), loader(), None, TrainConfig(steps=1))
    assert called


def test_evaluation_is_the_mean_over_live_tokens_and_leaves_the_mode():
    model = make(np.float64, dropout=0.5).train()
    whole = loader(8).batch(0)
    model.eval()
    expected = model.loss(whole.ids, whole.labels, whole.segment_ids).item()
    model.train()
    assert abs(evaluate(model, loader(3)) - expected) <= 64 * np.finfo(float).eps * expected
    assert model.training


def gradients_of_one_step(monkeypatch, batch_size: int, grad_accum: int) -> tuple[dict[str, np.ndarray], float]:
    taken: dict[str, np.ndarray] = {}
    model = make(np.float64)

    def take(parameters):
        taken.update({name: p.grad.copy() for name, p in model.named_parameters()})
        return [np.ones(())]

    seen: list[dict] = []
    with monkeypatch.context() as patch:
        patch.setattr(module, "squared_norms", take)
        config = TrainConfig(steps=1, grad_accum=grad_accum)
        train(model, loader(batch_size), None, config, report=seen.append)
    return taken, seen[0]["loss"]


def test_micro_batches_are_one_large_batch(monkeypatch):
    one, loss = gradients_of_one_step(monkeypatch, 4, 1)
    parts = [loader(2).batch(i).live for i in range(2)]
    assert parts[0] != parts[1]  # equal halves would not notice a missing weight
    several, its_loss = gradients_of_one_step(monkeypatch, 2, 2)
    assert abs(loss - its_loss) <= 64 * np.finfo(float).eps * loss
    for name, g in one.items():
        # Sums of at most 4 * 12 positions in another order, through a few layers.
        assert np.abs(g - several[name]).max() <= 512 * np.finfo(float).eps * np.abs(g).max(), name


class Killed(BaseException):
    """The run is shot."""


def start(method: str) -> DecoderModel:
    random.manual_seed(5)
    model = make(dropout=0.2)
    if method == "lora":
        apply_lora(model, 4, dropout=0.3, target_modules="all-linear", verbose=False)
    return model


CONFIG = TrainConfig(
    steps=9, lr=1e-2, warmup=2, grad_accum=2, weight_decay=0.1, eval_every=3, save_every=3, seed=7, loraplus_ratio=4.0
)


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


def test_resuming_refuses_what_is_not_its_run(tmp_path):
    with pytest.raises(ValueError, match="there is nothing to resume"):
        train(start("full"), loader(), None, CONFIG, tmp_path / "none", resume=True)
    assert not (tmp_path / "none").exists()
    with pytest.raises(ValueError, match="needs the folder"):
        train(start("full"), loader(), None, CONFIG, None, resume=True)
    train(start("full"), loader(), None, CONFIG, tmp_path, settings={"data": "a"})
    log = (tmp_path / "log.jsonl").read_bytes()
    with pytest.raises(ValueError, match="other settings: data was 'a' and is 'b'"):
        train(start("full"), loader(), None, CONFIG, tmp_path, resume=True, settings={"data": "b"})
    with pytest.raises(ValueError, match="other parameters|parameter groups"):
        train(start("lora"), loader(), None, CONFIG, tmp_path, resume=True, settings={"data": "a"})
    assert (tmp_path / "log.jsonl").read_bytes() == log
    shutil.copy(tmp_path / CHECKPOINT, tmp_path / "copy")
    (tmp_path / CHECKPOINT).write_bytes((tmp_path / "copy").read_bytes()[:200])
    with pytest.raises(ValueError):
        train(start("full"), loader(), None, CONFIG, tmp_path, resume=True, settings={"data": "a"})


def snapshot(model) -> dict[str, np.ndarray]:
    return {name: p.numpy().copy() for name, p in model.named_parameters()}


def test_a_loss_that_is_not_finite_names_layer_and_step(tmp_path):
    model = make()
    model.layers[1].mlp.up_proj.weight.data *= np.float32(1e30)  # finite, but its product with gate and down is not
    model.layers[1].mlp.down_proj.weight.data *= np.float32(1e30)
    before = snapshot(model)
    with np.errstate(all="ignore"), pytest.raises(NonFiniteLoss, match=r"step 1: .* layers\.1\.mlp\.down_proj;"):
        train(model, loader(), None, TrainConfig(steps=3), tmp_path)
    for name, p in model.named_parameters():
        np.testing.assert_array_equal(p.numpy(), before[name], err_msg=name)


def test_weights_that_are_not_finite_are_named():
    model = make()
    model.layers[0].self_attn.q_proj.weight.data[0, 0] = np.nan
    with (
        np.errstate(all="ignore"),
        pytest.raises(NonFiniteLoss, match=r"step 1: the weight layers\.0\.self_attn\.q_proj\.weight"),
    ):
        train(model, loader(), None, TrainConfig(steps=3))


def test_a_gradient_that_is_not_finite_is_named_and_not_applied(monkeypatch, tmp_path):
    model = make()
    plain = module.squared_norms
    calls = []

    def spoil(parameters):
        calls.append(1)
        if len(calls) == 2:
            model.layers[1].self_attn.v_proj.weight.grad[0, 0] = np.inf
            calls.append(snapshot(model))
        return plain(parameters)

    monkeypatch.setattr(module, "squared_norms", spoil)
    with pytest.raises(NonFiniteLoss, match=r"step 2: .*the gradient of layers\.1\.self_attn\.v_proj\.weight"):
        train(model, loader(), None, TrainConfig(steps=3), tmp_path)
    for name, p in model.named_parameters():
        np.testing.assert_array_equal(p.numpy(), calls[-1][name], err_msg=name)
    assert [record["step"] for record in records(tmp_path)] == [1]


def test_explaining_leaves_no_watcher_behind():
    from tinyllm.nn import Module

    plain = Module.__call__
    model = make()
    model.norm.weight.data[:] = np.float32(3e38)
    with np.errstate(all="ignore"), pytest.raises(NonFiniteLoss):
        train(model, loader(), None, TrainConfig(steps=1))
    assert Module.__call__ is plain


def test_a_parameter_without_a_gradient_is_named():
    model = make()
    model.forgotten = Parameter(np.zeros(3, np.float32))
    with pytest.raises(RuntimeError, match="no gradient: forgotten;"):
        train(model, loader(), None, TrainConfig(steps=3))


def test_nothing_to_train_is_said():
    with pytest.raises(ValueError, match="nothing to train"):
        train(make().requires_grad_(False), loader(), None, TrainConfig(steps=1))
    with pytest.raises(ValueError, match="no schedule 'cosin'"):
        train(make(), loader(), None, TrainConfig(steps=20, warmup=0, schedule="cosin"))


def test_lora_trains_nothing_but_the_adapter():
    model = start("lora")
    before = snapshot(model)
    train(model, loader(), None, TrainConfig(steps=3, lr=1e-2))
    for name, p in model.named_parameters():
        assert np.array_equal(p.numpy(), before[name]) == (".lora_" not in name), name


@pytest.mark.parametrize("held_out", [True, False])
@pytest.mark.parametrize("broken_step", [1, 2])
def test_what_an_update_broke_is_neither_logged_nor_saved(held_out, broken_step, monkeypatch, tmp_path):
    model, plain, calls = make(), module.AdamW.step, []

    def breaking(self):
        plain(self)
        calls.append(1)
        if len(calls) == broken_step:
            model.layers[1].mlp.up_proj.weight.data[0, 0] = np.nan

    monkeypatch.setattr(module.AdamW, "step", breaking)
    held = loader(seed=1) if held_out else None
    with pytest.raises(NonFiniteLoss, match=rf"step {broken_step}: the weight layers\.1\.mlp\.up_proj\.weight"):
        train(model, loader(), held, TrainConfig(steps=broken_step, save_every=1), tmp_path)
    assert (tmp_path / CHECKPOINT).exists() == (broken_step > 1)
    if broken_step > 1:
        arrays, about = safetensors_file.read(tmp_path / CHECKPOINT)
        assert all(np.isfinite(a).all() for a in arrays.values())
        assert json.loads(about["tinyllm_checkpoint"])["step"] == broken_step - 1
    assert all(np.isfinite(record.get("eval", 0.0)) for record in records(tmp_path))


def test_a_held_out_loss_that_is_not_finite_ends_the_run(monkeypatch, tmp_path):
    losses = iter([1.0, float("inf")])
    monkeypatch.setattr(module, "evaluate", lambda *args: next(losses))
    with pytest.raises(NonFiniteLoss, match="step 1: the held-out loss is inf"):
        train(make(), loader(), loader(seed=1), TrainConfig(steps=1), tmp_path)
    assert not (tmp_path / CHECKPOINT).exists()


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


def test_another_fingerprint_is_told_in_words(tmp_path):
    train(start("full"), loader(), None, CONFIG, tmp_path, settings={"data_fingerprint": "a"})
    with pytest.raises(ValueError, match="other settings: the data is not the same as then;"):
        train(start("full"), loader(), None, CONFIG, tmp_path, resume=True, settings={"data_fingerprint": "b"})


@pytest.mark.parametrize(
    "name, bad",
    [
        *((name, bad) for name in ("lr", "weight_decay") for bad in (-1.0, float("nan"), float("inf"))),
        *(("loraplus_ratio", bad) for bad in (0.0, -1.0, float("nan"), float("inf"))),
        *(("max_grad_norm", bad) for bad in (0.0, -1.0, float("nan"))),
        ("schedule", "cosin"),
    ],
)
def test_a_config_out_of_range_is_refused(name, bad):
    with pytest.raises(ValueError, match=name):
        TrainConfig(**{name: bad})


def test_the_log_is_rewritten_whole_or_not_at_all(monkeypatch, tmp_path):
    train(start("full"), loader(), None, CONFIG, tmp_path)
    log = (tmp_path / "log.jsonl").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("os.replace", lambda *args: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            train(start("full"), loader(), None, CONFIG, tmp_path, resume=True)
    assert (tmp_path / "log.jsonl").read_bytes() == log
