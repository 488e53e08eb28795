"""A checkpoint is only for the run that wrote it, and only whole."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.train.runs import CONFIG, loader, start
from tinyllm.formats import safetensors_file
from tinyllm.train import train
from tinyllm.train.checkpoint import CHECKPOINT, PARTS, steps_done


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


def test_another_fingerprint_is_told_in_words(tmp_path):
    train(start("full"), loader(), None, CONFIG, tmp_path, settings={"data_fingerprint": "a"})
    with pytest.raises(ValueError, match="other settings: the data is not the same as then;"):
        train(start("full"), loader(), None, CONFIG, tmp_path, resume=True, settings={"data_fingerprint": "b"})


def rewrite(path, change) -> None:
    """Write a checkpoint again after `change(arrays, about)`."""
    arrays, metadata = safetensors_file.read(path)
    about = json.loads(metadata["tinyllm_checkpoint"])
    change(arrays, about)
    safetensors_file.write(path, arrays, {"tinyllm_checkpoint": json.dumps(about)})


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a run."""
    folder = tmp_path_factory.mktemp("finished")
    train(start("full"), loader(), loader(seed=1), CONFIG, folder)
    return folder


@pytest.fixture
def folder(finished, tmp_path):
    """A copy that may be damaged."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def refused(folder) -> str:
    """What resuming says; nothing is changed by it."""
    kept = {path.name: path.read_bytes() for path in folder.iterdir()}
    model = start("full")
    before = {name: p.numpy().copy() for name, p in model.named_parameters()}
    with pytest.raises(ValueError) as caught:
        train(model, loader(), loader(seed=1), CONFIG, folder, resume=True)
    assert kept == {path.name: path.read_bytes() for path in folder.iterdir()}
    assert all(np.array_equal(p.numpy(), before[name]) for name, p in model.named_parameters())
    return str(caught.value)


def test_a_whole_checkpoint_is_taken(folder):
    train(start("full"), loader(), loader(seed=1), CONFIG, folder, resume=True)


@pytest.mark.parametrize("part", PARTS)
def test_a_checkpoint_without_a_part_is_refused_by_name(part, folder):
    rewrite(folder / CHECKPOINT, lambda arrays, about: about.pop(part))
    assert refused(folder).startswith(f"the checkpoint {folder / CHECKPOINT} lacks {part}: ")


WRONG = {
    "step": [0, -1, 1.5, "3", None, True, [3], 10**30],
    "tokens": [-1, None, "many"],
    "seconds": [-1, float("nan"), float("inf"), None, "1"],
    "before": [float("nan"), "1", [1.0]],
    "after": [float("inf"), {}],
    "loss_scale": [None, 1, [1.0], [1.0, 2, 3], [0, 0], [float("nan"), 0], ["1", 0], [1.0, -1]],
    "random": [None, [1], [1, 2, 3], ["a", 0], [0, -1], {"0": 1, "1": 2}],
    "settings": [None, [], "all"],
    "groups": [None, {}, [1], 5],
    "optimizer_steps": [None, [], {"a": 1}, {"0": "b"}, {"0": -1}, {"-1": 1}],
}


def test_every_part_has_wrong_values():
    assert WRONG.keys() == PARTS.keys()


@pytest.mark.parametrize("part, value", [(part, value) for part, values in WRONG.items() for value in values])
def test_a_part_of_the_wrong_kind_is_refused_by_name(part, value, folder):
    rewrite(folder / CHECKPOINT, lambda arrays, about: about.update({part: value}))
    assert f"checkpoint {folder / CHECKPOINT} says {part}=" in refused(folder)


def rename(arrays, old, new):
    for name in [name for name in arrays if name.startswith(old)]:
        arrays[new + name] = arrays.pop(name)


def spoil(arrays, name):
    arrays[name].reshape(-1)[0] = np.nan


@pytest.mark.parametrize(
    "change, told",
    {
        "no moments": (lambda a, about: [a.pop(k) for k in list(a) if k[:2] in ("m.", "v.")], r"lacks m\.0, m\.1"),
        "no moments and no steps": (
            lambda a, about: ([a.pop(k) for k in list(a) if k[:2] in ("m.", "v.")], about.update(optimizer_steps={})),
            r"lacks m\.0",
        ),
        "moments of another name": (lambda a, about: [rename(a, k, "zz.") for k in ("m.", "v.")], r"lacks m\.0"),
        "one moment": (lambda a, about: a.pop("v.3"), r"lacks v\.3: "),
        "no steps of one": (lambda a, about: about["optimizer_steps"].pop("2"), "lacks the steps of parameter 2"),
        "another array": (lambda a, about: a.update(zz=np.ones(2)), "holds zz, which no run writes"),
        "another shape": (lambda a, about: a.update({"m.1": a["m.1"][:1]}), r"holds m\.1 as float32 of shape"),
        "another dtype": (lambda a, about: a.update({"v.1": a["v.1"].astype("f8")}), r"holds v\.1 as float64"),
        "a weight's shape": (
            lambda a, about: a.update({"model.norm.weight": np.ones(3, "f4")}), r"holds model\.norm\.weight as",
        ),
        "not finite": (lambda a, about: spoil(a, "v.0"), r"numbers in v\.0 that are not finite"),
        "a weight that is not finite": (lambda a, about: spoil(a, "model.norm.weight"), "not finite"),
        "no learning rate": (lambda a, about: about["groups"][1].pop("lr"), "nothing usable about lr in group 1"),
        "a group's word": (lambda a, about: about["groups"][0].update(eps="small"), "usable about eps in group 0"),
        "a group's list": (lambda a, about: about["groups"][0].update(betas=[0.9, None]), "usable about betas"),
        "a group's new setting": (lambda a, about: about["groups"][0].update(foreach=1), "usable about foreach"),
        "a group too few": (lambda a, about: about["groups"].pop(), "1 parameter groups"),
    }.values(),
)  # fmt: skip
def test_a_checkpoint_that_is_not_complete_is_refused(change, told, folder):
    rewrite(folder / CHECKPOINT, change)
    assert re.search(told, refused(folder))


@pytest.mark.parametrize("text", ["", "{", "5", "[]", "null", '"all"', "[" * 100_000])
def test_a_checkpoint_that_says_nothing_is_refused(text, folder):
    arrays, _ = safetensors_file.read(folder / CHECKPOINT)
    safetensors_file.write(folder / CHECKPOINT, arrays, {"tinyllm_checkpoint": text})
    assert f"checkpoint {folder / CHECKPOINT} does not say what it holds" in refused(folder)
    safetensors_file.write(folder / CHECKPOINT, arrays)
    assert "is not a checkpoint of a tinyllm run" in refused(folder)


def test_the_settings_of_another_version_are_named(folder):
    def change(arrays, about):
        del about["settings"]["schedule"]
        about["settings"]["momentum"] = 0.5

    rewrite(folder / CHECKPOINT, change)
    message = refused(folder)
    assert "momentum was 0.5, and this version has no such setting" in message
    assert "schedule is 'cosine', and the version that wrote the checkpoint had no such setting" in message


FOREIGN = [b"5", b"[]", b"null", b'"step"', b"{}", b'{"step": "1", "loss": 1}', b"not json", b'{"step": 1}']
FOREIGN += [b'{"step": 1, "loss": "low"}', b"\xff\xfe", b"[" * 100_000]


@pytest.mark.parametrize("line", FOREIGN, ids=lambda line: repr(line[:12]))
def test_a_line_of_the_log_that_is_no_record_is_named(line, folder):
    log = (folder / "log.jsonl").read_bytes()
    lines = log.splitlines(keepends=True)
    for place in (0, 3):
        (folder / "log.jsonl").write_bytes(b"".join([*lines[:place], line + b"\n", *lines[place:]]))
        assert f"{folder / 'log.jsonl'}, line {place + 1} is no record of a run" in refused(folder)


def test_how_far_a_run_is(folder):
    assert steps_done(folder / CHECKPOINT) == (9, 9)
    with pytest.raises(ValueError, match="nothing to resume"):
        steps_done(folder / "none")
