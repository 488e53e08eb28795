"""A run that is ended from outside: whenever the signal comes, a whole step is saved, and resuming is going on."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading

import pytest

from tests.train.runs import CONFIG, Killed, loader, records, start
from tinyllm.formats import safetensors_file
from tinyllm.tensor import Tensor
from tinyllm.train import TrainConfig, train
from tinyllm.train import loop as module
from tinyllm.train import run as run_module
from tinyllm.train.checkpoint import CHECKPOINT
from tinyllm.train.interrupt import SIGNALS, Gate, Interrupted

posix = pytest.mark.skipif(sys.platform == "win32", reason="not run: Windows sends itself no such signals")


def run(folder, method="lora", resume=False, report=lambda record: None, config=CONFIG):
    model = start(method)
    train(model, loader(), loader(seed=1), config, folder, resume=resume, report=report)
    return model


def outcome(folder):
    """All there is of a run, without its seconds."""
    arrays, about = safetensors_file.read(folder / CHECKPOINT)
    state = json.loads(about["tinyllm_checkpoint"])
    del state["seconds"]
    log = [{k: v for k, v in record.items() if k != "seconds"} for record in records(folder)]
    return {name: a.tobytes() for name, a in arrays.items()}, state, log


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    run(folder)
    return outcome(folder)


def at(owner, name, number, monkeypatch, before=True):
    """Send SIGINT at the n-th call of a function, or when it has returned."""
    plain, calls = getattr(owner, name), [0]

    def calling(*args, **kwargs):
        calls[0] += 1
        if before and calls[0] == number:
            signal.raise_signal(signal.SIGINT)
        result = plain(*args, **kwargs)
        if not before and calls[0] == number:
            signal.raise_signal(signal.SIGINT)
        return result

    monkeypatch.setattr(owner, name, calling)


# By where the signal comes: the number of the call, and how many steps are whole by then (of 9; evaluated at 0, 3, 6).
MOMENTS = {
    "the first micro-batch of a step": (Tensor, "backward", 9, True, 4),
    "the second": (Tensor, "backward", 10, False, 4),
    "after its gradients": (module, "accumulate", 5, False, 4),
    "before the update": (module, "update", 5, True, 5),
    "within the update": (module, "scale_grads", 5, False, 5),
    "after the update": (module, "update", 5, False, 5),
    "while the log is written": (run_module.Log, "write", 7, True, 5),
    "while it is evaluated": (module, "evaluate", 3, True, 6),
    "after it is evaluated": (module, "evaluate", 3, False, 6),
    "while the checkpoint is written": (run_module, "save_checkpoint", 2, True, 6),
    "when it is written": (run_module, "save_checkpoint", 2, False, 6),
    "while the last one is evaluated": (module, "evaluate", 4, True, 9),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_whenever_the_signal_comes_a_whole_step_is_saved(moment, whole, tmp_path, monkeypatch):
    owner, name, number, before, done = MOMENTS[moment]
    with monkeypatch.context() as patch:
        at(owner, name, number, patch, before)
        with pytest.raises(
            Interrupted, match=f"interrupted after step {done}; the checkpoint is of step {done}"
        ) as end:
            run(tmp_path)
    assert end.value.saved and end.value.exit_code == 130
    assert json.loads(safetensors_file.read(tmp_path / CHECKPOINT, [])[1]["tinyllm_checkpoint"])["step"] == done
    run(tmp_path, resume=True)
    assert outcome(tmp_path) == whole
    assert {path.name for path in tmp_path.iterdir()} == {CHECKPOINT, "log.jsonl"}


def test_before_the_first_step_there_is_nothing_to_save(tmp_path, monkeypatch):
    at(module, "evaluate", 1, monkeypatch)
    with pytest.raises(Interrupted, match="before the first step") as end:
        run(tmp_path)
    assert not end.value.saved and not (tmp_path / CHECKPOINT).exists()


def test_without_a_folder_it_says_so(monkeypatch):
    at(module, "update", 2, monkeypatch)
    with pytest.raises(Interrupted, match="interrupted after step 2$") as end:
        run(None)
    assert not end.value.saved


def test_interrupted_again_and_again(whole, tmp_path, monkeypatch):
    """A step more each time."""
    for step in range(1, 9):
        with monkeypatch.context() as patch:
            at(module, "accumulate", 2, patch)
            with pytest.raises(Interrupted, match=f"after step {step}; the checkpoint is of step {step}"):
                run(tmp_path, resume=step > 1)
    run(tmp_path, resume=True)
    assert outcome(tmp_path) == whole


@posix
@pytest.mark.parametrize("name", [name for name in SIGNALS if hasattr(signal, name)])
def test_the_signals_that_end_a_process_are_alike(name, tmp_path, monkeypatch):
    number = getattr(signal, name)
    handler = signal.getsignal(number)

    def report(record):
        if record.get("loss") and record["step"] == 2:
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), number)  # shells and schedulers send it twice

    with pytest.raises(Interrupted, match="the checkpoint is of step 2") as end:
        run(tmp_path, report=report)
    assert end.value.exit_code == 128 + number and signal.getsignal(number) is handler


@posix
def test_what_is_ignored_stays_ignored(tmp_path):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        run(tmp_path, report=lambda record: os.kill(os.getpid(), signal.SIGHUP))
    finally:
        signal.signal(signal.SIGHUP, before)


def test_elsewhere_than_in_the_main_thread_no_handler_is_set(whole, tmp_path):
    thread = threading.Thread(target=run, args=(tmp_path,))
    thread.start()
    thread.join()
    assert outcome(tmp_path) == whole


def test_an_interrupt_of_another_kind_within_an_update_saves_nothing_half_done(tmp_path, monkeypatch):
    """From C, or from a debugger: it does not ask the gate."""
    plain, calls = module.AdamW.step, []

    def half(self):
        calls.append(1)
        if len(calls) == 5:
            self.groups[0]["params"][0].data[:] = 7
            raise KeyboardInterrupt
        plain(self)

    monkeypatch.setattr(module.AdamW, "step", half)
    with pytest.raises(Interrupted, match="after step 4; the checkpoint is of step 3"):
        run(tmp_path)
    assert not any((a == 7).any() for a in safetensors_file.read(tmp_path / CHECKPOINT)[0].values())


def test_the_gate_lets_a_waiting_signal_through_once():
    with Gate() as gate:
        gate.close()
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            gate.open()
        signal.raise_signal(signal.SIGINT)  # the ending is not ended
    with Gate() as gate:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


# An earlier run in the same folder ------------------------------------------------------------------------------------


OTHER = TrainConfig(steps=4, lr=1e-3, save_every=2, seed=3)


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("reason", [ValueError, MemoryError, OSError, KeyboardInterrupt])
def test_a_run_that_fails_before_its_first_checkpoint_leaves_the_earlier_one(reason, tmp_path, monkeypatch):
    run(tmp_path)
    earlier = files(tmp_path)

    def failing(*args):
        raise reason("no")

    monkeypatch.setattr(module, "accumulate", failing)
    with pytest.raises(reason):
        run(tmp_path, config=OTHER)
    assert files(tmp_path) == earlier


def test_interrupted_with_no_room_for_a_checkpoint(tmp_path, monkeypatch):
    run(tmp_path)
    earlier = files(tmp_path)

    def full(*args):
        raise OSError("no space left")

    monkeypatch.setattr(run_module, "save_checkpoint", full)
    at(module, "evaluate", 2, monkeypatch)
    with pytest.raises(OSError, match="no space left"):
        run(tmp_path, config=TrainConfig(steps=4, lr=1e-3, eval_every=2, seed=3))
    assert files(tmp_path) == earlier


def test_a_run_that_is_shot_keeps_the_earlier_one_aside_however_often(tmp_path):
    run(tmp_path)
    earlier = files(tmp_path)

    def shot(record):
        raise Killed

    for _ in range(3):
        with pytest.raises(Killed):
            run(tmp_path, config=OTHER, report=shot)
        assert (tmp_path / "checkpoint.earlier.safetensors").read_bytes() == earlier[CHECKPOINT]
        assert (tmp_path / "log.earlier.jsonl").read_bytes() == earlier["log.jsonl"]
        with pytest.raises(ValueError, match="nothing to resume"):
            run(tmp_path, resume=True)


def test_the_first_checkpoint_takes_the_earlier_ones_place(tmp_path):
    run(tmp_path)

    def shot(record):
        if record["step"] == 3:
            raise Killed

    with pytest.raises(Killed):
        run(tmp_path, config=OTHER, report=shot)
    assert {path.name for path in tmp_path.iterdir()} == {CHECKPOINT, "log.jsonl"}
    run(tmp_path, config=OTHER, resume=True)
    run(tmp_path / "alone", config=OTHER)
    assert outcome(tmp_path / "alone") == outcome(tmp_path)


def test_two_runs_in_one_folder_exclude_each_other(tmp_path):
    refused = []

    def report(record):
        if record["step"] == 2 and not refused:
            for resume in (False, True):
                thread = threading.Thread(target=second, args=(resume,))
                thread.start()
                thread.join()

    def second(resume):
        try:
            run(tmp_path, config=OTHER, resume=resume)
        except RuntimeError as error:
            refused.append(str(error))

    run(tmp_path, report=report)
    assert len(refused) == 2 and all("is writing into" in line for line in refused)
    assert [record["step"] for record in records(tmp_path) if "loss" in record] == list(range(1, 10))
    second(False)
    assert len(refused) == 2


# A disk or a memory that is full --------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [2, 5])
def test_a_full_disk_at_the_log_is_a_sentence_and_the_checkpoint_stays(step, whole, tmp_path, monkeypatch):
    plain, calls = type(tmp_path).open, [0]

    def full(self, mode="r", *args, **kwargs):
        if mode == "a" and self.name == "log.jsonl":
            calls[0] += 1
            if calls[0] > step:
                raise OSError(28, "No space left on device", str(self))
        return plain(self, mode, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(type(tmp_path), "open", full)
        with pytest.raises(OSError) as caught:
            run(tmp_path)
    remedy = "resume from the checkpoint, which is whole" if step == 5 else "start again"
    assert (
        str(caught.value) == f"cannot write {tmp_path / 'log.jsonl'}: No space left on device; make room and {remedy}"
    )
    run(tmp_path, resume=step == 5)
    assert outcome(tmp_path) == whole


@pytest.mark.parametrize("owner, name", [(module, "accumulate"), (module, "update"), (module, "evaluate")])
@pytest.mark.parametrize("message", ["Unable to allocate 1.00 GiB for an array", ""])
def test_too_little_memory_is_told_with_what_was_held(owner, name, message, monkeypatch):
    def failing(*args):
        raise MemoryError(message)

    monkeypatch.setattr(owner, name, failing)
    wanted = r"^there is too little memory: the frozen base \S+ MiB, trained weights \S+ MiB, .*; \S+"
    with pytest.raises(MemoryError, match=wanted):
        run(None)


def test_the_largest_part_decides_the_advice(monkeypatch):
    def failing(*args):
        raise MemoryError

    monkeypatch.setattr(module, "update", failing)
    with pytest.raises(MemoryError, match="use a smaller batch or shorter sequences"):  # NumPy alone is larger
        run(None)
    monkeypatch.setattr("tinyllm.train.trouble.resident_memory", lambda: None)
    with pytest.raises(MemoryError, match="activations 0.0 MiB; keep it in fewer bits"):
        run(None)
