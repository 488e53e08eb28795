"""The loop: k micro-batches are one batch, it calls its observer, and its configuration is checked."""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import pytest

from tests.train.runs import CONFIG, loader, make, snapshot, start
from tinyllm.data import IGNORE, Example, Loader
from tinyllm.train import NonFiniteLoss, TrainConfig, evaluate, fit, train
from tinyllm.train import loop as module
from tinyllm.train.loop import Observer


def test_evaluation_is_the_mean_over_live_tokens_and_leaves_the_mode():
    model = make(np.float64, dropout=0.5).train()
    whole = loader(8).batch(0)
    model.eval()
    expected = model.loss(whole.ids, whole.labels, whole.segment_ids).item()
    model.train()
    assert abs(evaluate(model, loader(3)) - expected) <= 64 * np.finfo(float).eps * expected
    assert model.training


def test_an_evaluation_that_is_stopped_leaves_the_mode(monkeypatch):
    model = make(np.float64, dropout=0.5).train()

    def stopped(step):
        raise KeyboardInterrupt

    batches = loader(3)
    monkeypatch.setattr(batches, "batch", stopped)
    with pytest.raises(KeyboardInterrupt):
        evaluate(model, batches)
    assert model.training and model.layers[0].dropout.training


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


def test_nothing_to_train_is_said():
    with pytest.raises(ValueError, match="nothing to train"):
        train(make().requires_grad_(False), loader(), None, TrainConfig(steps=1))
    with pytest.raises(ValueError, match="no schedule 'cosin'"):
        train(make(), loader(), None, TrainConfig(steps=20, warmup=0, schedule="cosin"))


def test_a_token_beyond_the_model_is_said_before_the_first_step():
    steps: list[dict] = []
    for rows in (Example([1, 99], [99, IGNORE]), Example([1, 2], [99, IGNORE])):
        far = Loader([*loader().dataset, rows], 1, 16)
        for learned, held_out in ((far, None), (loader(), far)):
            with pytest.raises(ValueError, match="has the token id 99, and the model has .* tokens"):
                train(make(), learned, held_out, TrainConfig(steps=5), report=steps.append)
    assert not steps


def test_lora_trains_nothing_but_the_adapter():
    model = start("lora")
    before = snapshot(model)
    train(model, loader(), None, TrainConfig(steps=3, lr=1e-2))
    for name, p in model.named_parameters():
        assert np.array_equal(p.numpy(), before[name]) == (".lora_" not in name), name


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


class Listener(Observer):
    """Writes down what the loop calls."""

    def __init__(self, start: int = 0):
        self.start, self.calls = start, []

    def begin(self, model, optimizer, scale):
        return self.start

    @contextmanager
    def watching(self, step, batches):
        self.calls.append(("gradients", step, len(batches)))
        yield
        assert self.calls[-1][0] == "gradients"

    def note(self, done, loss, norm, tokens):
        assert np.isfinite(loss) and norm > 0
        self.calls.append(("step", done, tokens))

    def evaluated(self, done, loss):
        assert np.isfinite(loss)
        self.calls.append(("held out", done))

    def save(self, done):
        self.calls.append(("save", done))


@pytest.mark.parametrize("first", [0, 1])
def test_the_loop_calls_its_observer_when_something_is_due(first):
    listener = Listener(first)
    config = TrainConfig(steps=5, grad_accum=2, eval_every=2, save_every=3)
    fit(make(), loader(), loader(seed=1), config, listener)
    expected = [] if first else [("held out", 0)]
    for step in range(first, 5):
        tokens = sum(loader().batch(2 * step + i).live for i in range(2))
        expected += [("held out", step)] if step in (2, 4) else []
        expected += [("gradients", step, 2), ("step", step + 1, tokens)]
        expected += [("save", step + 1)] if step + 1 in (3, 5) else []
    assert listener.calls == [*expected, ("held out", 5)]


@pytest.mark.parametrize("every", [0, 7])
def test_the_last_step_is_always_evaluated_and_saved(every):
    listener = Listener()
    fit(make(), loader(), loader(seed=1), TrainConfig(steps=2, eval_every=every, save_every=every), listener)
    # The checkpoint first: an evaluation may take long.
    assert listener.calls[-2:] == [("save", 2), ("held out", 2)] and listener.calls.count(("save", 1)) == 0


@pytest.mark.parametrize("batches", [0, 1, 2, 100])
def test_an_evaluation_looks_at_so_many_batches_and_always_the_same(batches, monkeypatch):
    model, held_out, seen = make(), loader(2, seed=1), []
    plain = held_out.batch
    monkeypatch.setattr(held_out, "batch", lambda i: (seen.append(i), plain(i))[1])
    fit(model, loader(), held_out, TrainConfig(steps=2, eval_every=1, eval_batches=batches))
    each = list(range(min(batches or len(held_out), len(held_out))))
    assert len(held_out) == 4 and seen == 3 * each


def test_the_default_bounds_what_an_evaluation_costs():
    assert 1 <= TrainConfig().eval_batches <= 200
    with pytest.raises(ValueError, match="eval_batches must be at least 0"):
        TrainConfig(eval_batches=-1)


def test_the_loop_alone_trains_as_a_recorded_run_does(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    alone, recorded = start("lora"), start("lora")
    fit(alone, loader(), loader(seed=1), CONFIG)
    assert list(tmp_path.iterdir()) == []
    train(recorded, loader(), loader(seed=1), CONFIG, tmp_path)
    for (name, a), (_, b) in zip(alone.named_parameters(), recorded.named_parameters(), strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy(), err_msg=name)


def test_the_loop_alone_stops_at_a_loss_that_is_not_finite():
    model = make()
    model.norm.weight.data[:] = np.float32(3e38)
    before = snapshot(model)
    with np.errstate(all="ignore"), pytest.raises(NonFiniteLoss, match="the loss is .*; lower the learning rate"):
        fit(model, loader(), None, TrainConfig(steps=1))
    for name, array in snapshot(model).items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)
