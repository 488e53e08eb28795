"""Adapters that belong elsewhere, and folders that hold none: one sentence that says what they are."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest

import tinyllm
from tinyllm import assets
from tinyllm.cli import main
from tinyllm.formats import safetensors_file
from tinyllm.lora import apply_lora, merge_lora
from tinyllm.models import DecoderModel
from tinyllm.models.config import llama_shape


def made(layers=2, hidden=32, vocab=40, kind="llama", **changes):
    shape = {} if kind == "gpt2" else llama_shape(intermediate_size=48)
    return DecoderModel(vocab, hidden, layers, 2, **{**shape, "max_seq_len": 32, **changes}, seed=1)


def saved(folder, model, targets="all-linear", base="the/base", **options):
    apply_lora(model, rank=2, target_modules=targets, verbose=False, **options)
    tinyllm.save_adapter(model, folder, base_model_name_or_path=base)
    return folder


ELSEWHERE = {
    "more layers": (dict(layers=5), ["q_proj"], "5 layers of 32; this model has 2 of 32"),
    "fewer layers": (dict(layers=1), ["q_proj"], "1 layer of 32; this model has 2 of 32"),
    "wider": (dict(hidden=64), ["q_proj"], "2 layers of 64; this model has 2 of 32"),
    "both": (dict(layers=3, hidden=16), ["v_proj", "down_proj"], "3 layers of 16; this model has 2 of 32"),
    "by what ends in the width": (dict(hidden=64), ["out_proj"], "2 layers of 64; this model has 2 of 32"),
    "all": (dict(layers=3, hidden=64), "all-linear", "3 layers of 64; this model has 2 of 32"),
}


@pytest.mark.parametrize("case", ELSEWHERE)
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_an_adapter_of_another_base_says_of_which(tmp_path, case, kind):
    changes, targets, said = ELSEWHERE[case]
    if kind == "gpt2" and isinstance(targets, list):
        targets = {"q_proj": ["qkv_proj"], "v_proj": ["qkv_proj", "down_proj"]}.get(targets[0], targets)
    saved(tmp_path, made(kind=kind, **changes), targets)
    model = made(kind=kind)
    before = model(np.arange(9)[None]).numpy()
    with pytest.raises(ValueError, match=f"belongs to the/base: {said}; nothing was changed"):
        tinyllm.load_adapter(model, tmp_path)
    assert np.array_equal(model(np.arange(9)[None]).numpy(), before)


def test_an_adapter_on_some_layers_is_no_stranger(tmp_path):
    """One that fits is taken, and one that is damaged is not blamed on its base."""
    saved(tmp_path / "some", made(layers=4), r"layers\.1\.self_attn\.q_proj")
    tinyllm.load_adapter(made(layers=4), tmp_path / "some")
    saved(tmp_path / "damaged", made(layers=4), ["q_proj"])
    path = tmp_path / "damaged" / "adapter_model.safetensors"
    arrays, metadata = safetensors_file.read(path)
    key = next(key for key in arrays if ".layers.1." in key)
    safetensors_file.write(path, {k: a for k, a in arrays.items() if k != key}, metadata)
    with pytest.raises(ValueError, match=f"missing {re.escape(key)}"):
        tinyllm.load_adapter(made(layers=4), tmp_path / "damaged")


def test_the_names_of_another_family(tmp_path):
    saved(tmp_path, made(kind="gpt2"), ["qkv_proj"])
    with pytest.raises(ValueError, match="match no layer of this model; the adapter belongs to the/base"):
        tinyllm.load_adapter(made(), tmp_path)


@pytest.mark.parametrize("how", ["head saved", "embedding saved", "beside", "base layer", "lora on the head"])
def test_another_vocabulary_is_said(tmp_path, how):
    other = made(vocab=44, tie_embeddings=False)
    if how == "lora on the head":
        saved(tmp_path, other, ["q_proj", "lm_head"])
    elif how.endswith("saved"):
        saved(tmp_path, other, ["q_proj"], modules_to_save=["lm_head" if how == "head saved" else "embed_tokens"])
    else:
        saved(tmp_path, other, ["q_proj"])
        path = tmp_path / "adapter_model.safetensors"
        arrays, metadata = safetensors_file.read(path)
        key = "model.embed_tokens.base_layer.weight" if how == "base layer" else "lm_head.weight"
        arrays[f"base_model.model.{key}"] = np.zeros((44, 32), np.float32)
        safetensors_file.write(path, arrays, metadata)
    with pytest.raises(ValueError, match="over the/base with a vocabulary of 44 tokens; this model has 40"):
        tinyllm.load_adapter(made(tie_embeddings=False), tmp_path)


def test_the_command_says_it_with_the_models_of_the_house(tmp_path, capsys):
    big = DecoderModel(1024, 576, 30, 9, **llama_shape(num_kv_heads=3, intermediate_size=64), storage="nf4", seed=1)
    saved(tmp_path / "a", big, ["q_proj"], base="smollm2-135m")
    for verb in (["generate"], ["merge", "--out", str(tmp_path / "o")]):
        assert main([*verb, "--model", "base", "--adapter", str(tmp_path / "a")]) == 1
        said = " ".join(capsys.readouterr().err.split())
        assert "belongs to smollm2-135m: 30 layers of 576; this model has 5 of 160" in said
    assert not (tmp_path / "o").exists()


def copy_base(folder):
    shutil.copytree(assets.path("base"), folder, dirs_exist_ok=True)


FOLDERS = {
    "model": ("a whole model.*--model or from_pretrained", copy_base),
    "nothing": ("no adapter_config.json.*give the folder of an adapter", lambda f: None),
    "mlx": ("adapter of MLX, not of PEFT.*mlx_lm.fuse", lambda f: (f / "adapters.safetensors").write_bytes(b"")),
    "mlx with its config": ("adapter of MLX", lambda f: ((f / "adapters.safetensors").write_bytes(b""), (
        f / "adapter_config.json").write_text(json.dumps({"fine_tune_type": "lora", "lora_parameters": {"rank": 8}})))),
    "pickle": ("only a pickled adapter .adapter_model.bin.*convert it to safetensors.*save_pretrained", lambda f: (
        (f / "adapter_model.bin").write_bytes(b"\x80\x02"), (f / "adapter_config.json").write_text("{}"))),
    "no weights": ("no adapter_model.safetensors", lambda f: (f / "adapter_config.json").write_text("{}")),
    "inside": ("sub-folders one, two; name one", lambda f: [
        ((f / name).mkdir(), (f / name / "adapter_config.json").write_text("{}")) for name in ("one", "two")]),
}  # fmt: skip


@pytest.mark.parametrize("kind", FOLDERS)
def test_what_is_no_adapter_is_named(tmp_path, kind, capsys):
    said, make = FOLDERS[kind]
    folder = tmp_path / "f"
    folder.mkdir()
    make(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        tinyllm.load_adapter(made(), folder)
    for verb in (["inspect"], ["generate", "--model", "base", "--adapter"]):
        assert main([*verb, str(folder)]) == 1
        assert re.search(said, " ".join(capsys.readouterr().err.split())), verb


PARTS = ["lora_A", "lora_B", "magnitude", "bias", "norm"]


def spoil(model, part, value):
    """One number of the adapter's that is none; returns its place."""
    layer = model.layers[1].self_attn.q_proj
    if part == "norm":
        parameter = model.norm.copies["default"].weight
    elif part == "bias":
        parameter = layer.parts("default")["bias"]
    else:
        name = {"magnitude": "lora_magnitude_vector"}.get(part, f"{part}.weight")
        parameter = layer.parts("default")[name]
    parameter.data.flat[1] = value


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("part", PARTS)
def test_what_is_no_number_is_neither_saved_nor_merged(tmp_path, part, value):
    model = made(qkv_bias=True)
    options = dict(use_dora=True, bias="lora_only", modules_to_save=["norm"])
    apply_lora(model, rank=2, target_modules=["q_proj"], verbose=False, **options)
    tinyllm.save_adapter(model, tmp_path / "old")
    before = {path.name: path.read_bytes() for path in (tmp_path / "old").iterdir()}
    spoil(model, part, value)
    place = "norm.weight" if part == "norm" else r"layers\.1\.self_attn\.q_proj"
    for folder in (tmp_path / "old", tmp_path / "new"):
        with pytest.raises(ValueError, match=f"{place}.*NaN or infinity"):
            tinyllm.save_adapter(model, folder)
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "old").iterdir()}
    assert not (tmp_path / "new").exists()
    if part != "norm":
        weights = {name: id(weight) for name, weight in model.named_weights()}
        with pytest.raises(ValueError, match=f"{place} holds NaN or infinity.*nothing was changed"):
            merge_lora(model, keep_base=False)
        assert weights == {name: id(weight) for name, weight in model.named_weights()}
    else:
        merge_lora(model, keep_base=False)
        with pytest.raises(ValueError, match="norm.weight holds NaN or infinity"):
            model.save_pretrained(tmp_path / "new")
