"""What stands in the place of a file is named, and so is what gets the file itself."""

from __future__ import annotations

import io
import shutil
import zipfile

import numpy as np
import pytest

import tinyllm
from tinyllm import assets
from tinyllm.cli import main
from tinyllm.data.text import load_text
from tinyllm.data.tokenizer import Tokenizer
from tinyllm.lora import apply_lora
from tinyllm.models import DecoderModel

OID = "oid sha256:" + "0a" * 32 + "\nsize 2200119864\n"
POINTERS = {
    "Git LFS pointer.*git lfs pull": f"version https://git-lfs.github.com/spec/v1\n{OID}",
    "LFS pointer.*git lfs pull": f"version https://hawser.github.com/spec/v1\n{OID}",
    "git-annex pointer.*git annex get": "/annex/objects/SHA256E-s313--f50d.bin\n",
}
PAGES = {"web page": "\n<!DOCTYPE html>\n<html><head><title>Hugging Face</title>", "a web page": "<HTML><body>404"}


@pytest.fixture
def place(tmp_path):
    """A base, and an adapter over it."""
    shutil.copytree(assets.path("base"), tmp_path / "m")
    (tmp_path / "m" / "generation_config.json").write_text("{}")
    model = apply_lora(DecoderModel.from_pretrained(tmp_path / "m"), rank=2, verbose=False)
    tinyllm.save_adapter(model, tmp_path / "a")
    return tmp_path


def shards(place):
    """A pointer in the place of the shards' index."""
    (place / "m" / "model.safetensors").unlink()
    return model(place)


def model(place):
    return DecoderModel.from_pretrained(place / "m")


def adapter(place):
    return tinyllm.load_adapter(model(place), place / "a")


# The file, and what reads it.
READERS = {
    "m/model.safetensors": model,
    "m/config.json": model,
    "m/generation_config.json": model,
    "m/model.safetensors.index.json": shards,
    "m/tokenizer.json": lambda place: Tokenizer.load(place / "m"),
    "m/tokenizer_config.json": lambda place: Tokenizer.load(place / "m"),
    "a/adapter_config.json": adapter,
    "a/adapter_model.safetensors": adapter,
    "w.safetensors": lambda place: tinyllm.load(place / "w.safetensors"),
    "m.gguf": lambda place: DecoderModel.from_pretrained(place / "m.gguf"),
    "x.gguf": lambda place: Tokenizer.load(place / "x.gguf"),
}  # fmt: skip
TEXTS = {
    "m/chat_template.jinja": lambda place: Tokenizer.load(place / "m"),
    "d.jsonl": lambda place: load_text(place / "d.jsonl", Tokenizer.load(assets.path("base"))),
    "d.txt": lambda place: load_text(place / "d.txt", Tokenizer.load(assets.path("base"))),
}


@pytest.mark.parametrize("file", [*READERS, *TEXTS])
@pytest.mark.parametrize("said", [*POINTERS, *PAGES])
def test_a_pointer_and_a_page_are_told(place, file, said):
    if said in PAGES and file in TEXTS:
        return  # a text may be one
    content = {**POINTERS, **PAGES}[said]
    (place / file).write_text(content)
    with pytest.raises(ValueError, match=rf"{file.rpartition('/')[2]} is .*{said}"):
        {**READERS, **TEXTS}[file](place)


@pytest.mark.parametrize(
    "verb",
    [
        ["inspect", "a"], ["merge", "--model", "m", "--adapter", "a", "--out", "o"], ["quantize", "m", "o"],
        ["generate", "--model", "m", "--adapter", "a"], ["finetune", "--model", "m", "--out", "o"],
    ],
    ids=lambda verb: verb[0],
)  # fmt: skip
def test_every_verb_says_it(place, verb, monkeypatch, capsys):
    monkeypatch.chdir(place)
    name = "a/adapter_model.safetensors" if "a" in verb else "m/model.safetensors"
    (place / name).write_text(next(iter(POINTERS.values())))
    assert main(verb) == 1
    assert "git lfs pull" in capsys.readouterr().err and not (place / "o").exists()


def torch_zip():
    """What torch.save writes since 1.6, as far as it matters."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}q\x00.")
        archive.writestr("archive/version", b"3\n")
    return made.getvalue()


def arrays():
    made = io.BytesIO()
    np.savez(made, x=np.zeros(3))
    return made.getvalue()


OTHER = {
    "torch": (torch_zip, "is a pickle, which could run code.*safetensors.torch.save_file.*torch.load"),
    "older torch": (lambda: b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "is a pickle.*save_file"),
    **{f"pickle {n}": (lambda n=n: bytes([0x80, n]) + b"\x95" + bytes(40), "is a pickle") for n in (3, 4, 5)},
    "npz": (arrays, "zip archive.*numpy.load"),
    "gguf": (lambda: b"GGUF" + bytes(40), "GGUF file.*suffix .gguf"),
    "hdf5": (lambda: b"\x89HDF\r\n\x1a\n" + bytes(40), "HDF5"),
}


@pytest.mark.parametrize("kind", OTHER)
def test_weights_of_another_kind_are_named(place, kind):
    make, said = OTHER[kind]
    for file in ("x.pt", "m/model.safetensors", "a/adapter_model.safetensors"):
        (place / file).write_bytes(make())
        with pytest.raises(ValueError, match=said):
            tinyllm.load(place / file)
    with pytest.raises(ValueError, match=said):
        model(place)
    with pytest.raises(ValueError, match=f"{said}.*give the model's folder"):
        DecoderModel.from_pretrained(place / "x.pt")


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "model.pt", "consolidated.00.pth"]
)
def test_a_folder_of_pickles_says_how_to_convert_them(place, name):
    (place / "m" / "model.safetensors").unlink()
    (place / "m" / "training_args.bin").write_bytes(torch_zip())
    with pytest.raises(FileNotFoundError, match="neither model.safetensors nor"):
        model(place)  # what a trainer keeps of itself is no model
    (place / "m" / name).write_bytes(torch_zip())
    with pytest.raises(ValueError, match=f"only pickled weights .{name}.*from_pretrained.folder.*save_pretrained"):
        model(place)
    (place / "m" / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=f"no config.json.*{name}"):
        model(place)


def test_a_file_in_the_place_of_a_folder(place):
    with pytest.raises(ValueError, match="is a file; give the model's folder"):
        DecoderModel.from_pretrained(place / "m" / "model.safetensors")
    with pytest.raises(ValueError, match="is a file; give the folder of an adapter"):
        tinyllm.load_adapter(model(place), place / "a" / "adapter_model.safetensors")
