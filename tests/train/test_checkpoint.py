"""A checkpoint is only for the run that wrote it."""

from __future__ import annotations

import shutil

import pytest

from tests.train.runs import CONFIG, loader, start
from tinyllm.train import train
from tinyllm.train.checkpoint import CHECKPOINT


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
