"""Names on the Hugging Face hub, through a stand-in for huggingface_hub: no hub can be reached from a test."""

from __future__ import annotations

import json
import shutil
import sys
import types

import numpy as np
import pytest

from tinyllm import assets
from tinyllm.cli import main
from tinyllm.models import DecoderModel
from tinyllm.models.checkpoints import hub

NAME = "some-one/A.model_1"


class RepositoryNotFoundError(OSError):
    pass


class GatedRepoError(RepositoryNotFoundError):
    pass


class LocalEntryNotFoundError(FileNotFoundError, ValueError):
    pass


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """What was asked of the hub, which has one model: its snapshot's files are links, as in huggingface_hub's cache."""
    calls = []
    snapshot = tmp_path / "cache" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    DecoderModel.from_pretrained(assets.path("base")).save_pretrained(tmp_path / "blobs", max_shard_size=3e6)
    for path in (tmp_path / "blobs").iterdir():  # the tokenizer's among them
        (snapshot / path.name).symlink_to(path)

    def snapshot_download(name, allow_patterns, ignore_patterns, local_dir):
        assert local_dir is None
        calls.append((name, allow_patterns, ignore_patterns))
        if name != NAME:
            raise RepositoryNotFoundError("404 Client Error.\n\nRepository Not Found")
        return str(snapshot)

    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(snapshot_download=snapshot_download))
    monkeypatch.chdir(tmp_path)
    return calls


def test_a_name_is_a_model(asked):
    model = DecoderModel.from_pretrained(NAME)
    here = DecoderModel.from_pretrained(assets.path("base"))
    ids = np.arange(9)[None]
    assert np.array_equal(model(ids).data, here(ids).data)
    (name, allowed, ignored), *rest = asked
    assert name == NAME and not rest
    assert set(allowed) == {"*.safetensors", "*.json", "*.jinja"} and "*/*" in ignored  # no pickles, no second copies


def test_a_name_for_the_command_line(asked, capsys):
    assert main(["generate", "--model", NAME, "--max-new-tokens", "5"]) == 0
    by_name = capsys.readouterr()
    assert main(["generate", "--max-new-tokens", "5"]) == 0
    assert by_name.out == capsys.readouterr().out and by_name.err == ""
    assert main(["quantize", NAME, "q"]) == 0
    assert json.loads(open("q/config.json").read())["quantization_config"]["load_in_4bit"] is True


def test_a_folder_goes_before_a_name(asked, tmp_path):
    shutil.copytree(tmp_path / "blobs", tmp_path / "some-one" / "A.model_1")
    DecoderModel.from_pretrained(NAME)
    with pytest.raises(FileNotFoundError, match="no model in some-one"):  # its neighbours are folders: so is this
        DecoderModel.from_pretrained("some-one/else")
    assert not asked


@pytest.mark.parametrize(
    "name", ["nowhere", "a/b/c", "../m", "/no/where", "a b/c", "-x/y", "own/er.gguf", "a/..", "./m"]
)
def test_what_is_no_name_is_a_path(asked, name):
    with pytest.raises(FileNotFoundError):
        DecoderModel.from_pretrained(name)
    assert not asked


@pytest.mark.parametrize(
    "error, said",
    [
        (RepositoryNotFoundError("404"), "does not exist, or is private"),
        (GatedRepoError("403"), "consent"),
        (LocalEntryNotFoundError("offline"), "not in the cache, and the hub is out of reach.*HF_HUB_OFFLINE"),
        (OSError("no route\nto host"), r"could not be fetched \(no route\)"),
        (RuntimeError(), r"could not be fetched \(RuntimeError\)"),
    ],
)
def test_what_the_hub_does_not_give_is_one_sentence(asked, monkeypatch, capsys, error, said):
    def snapshot_download(*_, **__):
        raise error

    monkeypatch.setattr(sys.modules["huggingface_hub"], "snapshot_download", snapshot_download)
    with pytest.raises(FileNotFoundError, match=f"no folder {NAME}.*{said}"):
        hub.find(NAME)
    assert main(["generate", "--model", NAME]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_without_the_package(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert main(["generate", "--model", NAME]) == 1
    assert f"there is no folder {NAME}" in (said := capsys.readouterr().err) and "'tinyllm-engine[hub]'" in said


def test_the_real_package_offline(monkeypatch, tmp_path):
    """Its own switch and its own error, as far as that goes without a network."""
    pytest.importorskip("huggingface_hub", reason="not run: huggingface_hub is not installed")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="not in the cache, and the hub is out of reach"):
        hub.find("nobody/nothing-like-this")
