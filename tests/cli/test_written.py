"""Every verb that writes a model writes what came with it; without a tokenizer it goes on; NaN stops it by name."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from gguf_files import byte_level, tiny, write

import tinyllm
from tinyllm import assets
from tinyllm.cli import main
from tinyllm.data.tokenizer import Tokenizer
from tinyllm.formats import safetensors_file
from tinyllm.lora import apply_lora
from tinyllm.models import DecoderModel

IDS = {"bos_token_id": 5, "eos_token_id": 7, "pad_token_id": 6}
LISTED = {"bos_token_id": 5, "eos_token_id": [7, 9], "pad_token_id": 6}
GENERATION = {**LISTED, "do_sample": True, "temperature": 0.6, "top_p": 0.9, "transformers_version": "4.40"}
TEMPLATES = [{"name": "default", "template": "D{{ messages[0].content }}"}, {"name": "tool_use", "template": "T"}]
CASES = {
    "ids": (IDS, None),
    "lists": (LISTED, None),
    "generation": (IDS, GENERATION),
    "null": (dict.fromkeys(IDS), GENERATION),
}


def read(folder, name):
    return json.loads((Path(folder) / name).read_text())


def add(folder, name, **fields):
    (folder / name).write_text(json.dumps({**read(folder, name), **fields}))


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A base `m`, an adapter `a` over it, a text."""
    shutil.copytree(assets.path("base"), tmp_path / "m")
    model = apply_lora(DecoderModel.from_pretrained(tmp_path / "m"), rank=2, verbose=False)
    tinyllm.save_adapter(model, tmp_path / "a")
    (tmp_path / "t.txt").write_text("a note and another note " * 100)
    monkeypatch.chdir(tmp_path)
    return tmp_path


RUN = ["--data", "t.txt", "--steps", "1", "--batch-size", "1", "--max-seq-len", "16", "--held-out", "0", "--out", "o"]
MERGE = ["merge", "--model", "m", "--adapter", "a", "--out", "o"]
WAYS = {
    "merge": MERGE,
    "merge original": [*MERGE, "--base-storage", "nf4", "--base", "original"],
    "merge requantized": [*MERGE, "--base-storage", "nf4", "--base", "requantized"],
    "quantize": ["quantize", "m", "o"],
    "full": ["finetune", "--model", "m", "--method", "full", *RUN],
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("way", WAYS)
def test_what_came_with_a_folder_is_written(home, way, case, capsys):
    ids, generation = CASES[case]
    add(home / "m", "config.json", **ids)
    add(home / "m", "tokenizer_config.json", chat_template=TEMPLATES)
    if generation:
        (home / "m" / "generation_config.json").write_text(json.dumps(generation))
    (home / "m" / "added_tokens.json").write_text('{"<|pad|>": 1}')
    assert main(WAYS[way]) == 0, capsys.readouterr().err
    config = read("o", "config.json")
    assert {name: config[name] for name in ids} == ids
    assert read("o", "generation_config.json") == (generation or ids)
    assert read("o", "tokenizer_config.json")["chat_template"] == TEMPLATES
    assert read("o", "added_tokens.json") == {"<|pad|>": 1}
    text = "A hacker<|endoftext|> is"
    assert Tokenizer.load("o").encode(text) == Tokenizer.load("m").encode(text)


@pytest.mark.parametrize("way", ["merge", "quantize", "full"])
def test_a_tokenizer_says_where_texts_end_if_no_file_does(home, way):
    config = {name: value for name, value in read("m", "config.json").items() if name not in IDS}
    (home / "m" / "config.json").write_text(json.dumps(config))
    assert main(WAYS[way]) == 0
    assert [read("o", "config.json")[name] for name in IDS] == [None, 0, 1]
    assert read("o", "generation_config.json")["eos_token_id"] == 0


@pytest.mark.parametrize("way", ["merge", "quantize", "full"])
def test_what_came_with_a_gguf_file_is_written(home, way):
    vocabulary = byte_level("gpt-2")
    model = tiny("llama", vocab_size=len(vocabulary["tokenizer.ggml.tokens"]))
    said = {"tokenizer.ggml.eot_token_id": 0, "tokenizer.chat_template": "{{ messages[0].content }}"}
    path = write(home / "m.gguf", model, "llama", {**vocabulary, **said})
    adapted = apply_lora(DecoderModel.from_pretrained(path), rank=2, verbose=False)
    tinyllm.save_adapter(adapted, home / "a")
    assert main(["m.gguf" if word == "m" else word for word in WAYS[way]]) == 0
    config = read("o", "config.json")
    assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == (1, 2, 2)
    assert read("o", "generation_config.json")["eos_token_id"] == [2, 0]
    written = Tokenizer.load("o")
    assert written.chat_template == "{{ messages[0].content }}" and (written.bos_id, written.eos_id) == (1, 2)


def test_a_pretrained_model_ends_where_its_tokenizer_says(home):
    sizes = ["--hidden-size", "8", "--layers", "1", "--heads", "1", "--kv-heads", "1", "--intermediate-size", "8"]
    assert main(["pretrain", *RUN, *sizes]) == 0
    assert read("o", "config.json")["eos_token_id"] == read("o", "generation_config.json")["eos_token_id"] == 0


@pytest.mark.parametrize("way", ["merge", "quantize"])
def test_without_a_tokenizer(home, way, capsys):
    (home / "m" / "tokenizer.json").rename(home / "kept.json")
    (home / "m" / "tokenizer_config.json").unlink()
    shutil.copytree(assets.path("base"), home / "o")  # another model's tokenizer, which would be taken for this one's
    (home / "o" / "chat_template.jinja").write_text("{{ 0 }}")
    before = capsys.readouterr()
    assert main([*WAYS[way], *(["--force"] if "--force" in helped(way, capsys) else [])]) == 0, before
    said = " ".join(capsys.readouterr().out.split())
    assert "there is no tokenizer in m, so none was written" in said
    assert not list((home / "o").glob("*token*")) and not (home / "o" / "chat_template.jinja").exists()
    (home / "m" / "tokenizer.model").write_bytes(b"a kind that is not read here")
    shutil.rmtree(home / "o")
    assert main(WAYS[way]) == 0
    assert "no tokenizer.json in m; the other tokenizer files there were copied" in " ".join(
        capsys.readouterr().out.split()
    )
    assert (home / "o" / "tokenizer.model").read_bytes() == b"a kind that is not read here"


def helped(way, capsys):
    with pytest.raises(SystemExit):
        main([way, "--help"])
    return capsys.readouterr().out


@pytest.mark.parametrize("way", ["merge", "quantize"])
def test_a_gguf_file_whose_tokenizer_is_not_understood(home, way, capsys):
    path = write(home / "m.gguf", tiny("llama"), "llama", {"tokenizer.ggml.model": "t5"})
    tinyllm.save_adapter(apply_lora(DecoderModel.from_pretrained(path), rank=2, verbose=False), home / "a")
    assert main(["m.gguf" if word == "m" else word for word in WAYS[way]]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "no tokenizer was written: m.gguf has a tokenizer of kind 't5'" in said
    assert DecoderModel.from_pretrained("o").config.num_layers == 2


def test_merge_measures_on_the_users_text_or_not_at_all(home, capsys):
    assert main(WAYS["merge"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "was not measured; --data FILE" in said and "loss" not in said and "logit" not in said
    shutil.rmtree(home / "o")
    assert main([*WAYS["merge"], "--data", "t.txt"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "tokens of t.txt" in said and ": rounding" in said and "jargon" not in said
    shutil.rmtree(home / "o")
    (home / "m" / "tokenizer.json").unlink()
    assert main([*WAYS["merge"], "--data", "t.txt"]) == 1
    assert "--data takes a tokenizer, and there is none in m" in capsys.readouterr().err and not (home / "o").exists()


def spoil(path, key, value):
    arrays, metadata = safetensors_file.read(path)
    arrays[key].flat[3] = value
    safetensors_file.write(path, arrays, metadata)


IN_THE_BASE = ["model.norm.weight", "model.embed_tokens.weight", "model.layers.2.mlp.up_proj.weight",
               "model.layers.1.input_layernorm.weight"]  # fmt: skip
IN_THE_ADAPTER = ["layers.1.self_attn.q_proj.lora_A", "layers.2.self_attn.v_proj.lora_B"]


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("key", [*IN_THE_BASE, *IN_THE_ADAPTER])
def test_what_is_no_number_stops_every_verb_that_writes_or_shows(home, key, value, capsys):
    inside = key in IN_THE_BASE
    spoil(
        home / ("m/model.safetensors" if inside else "a/adapter_model.safetensors"),
        key if inside else f"base_model.model.model.{key}.weight", value,
    )  # fmt: skip
    ways = ["merge", "quantize"] if inside else ["merge", "merge requantized", "inspect"]
    for way in ways:
        assert main(["inspect", "a"] if way == "inspect" else WAYS[way]) == 1, way
        said = capsys.readouterr().err
        layer = key.removeprefix("model.").removesuffix(".weight")
        assert layer in said and ("NaN" in said or "non-finite" in said) and said.count("\n") == 1, said
        assert not (home / "o").exists()


def test_an_adapter_records_where_its_base_is(home, capsys, monkeypatch):
    done = ["finetune", "--rank", "2", "--sample-tokens", "0", *RUN]
    for model, path in (
        ("base", assets.path("base")),
        ("m", home / "m"),
        ("./m", home / "m"),
        (str(home / "m"), home / "m"),
    ):
        assert main([*done, "--model", model]) == 0
        recorded = read("o", "adapter_config.json")["base_model_name_or_path"]
        assert recorded == str(path) and os.path.isabs(recorded)
    shown = ["generate", "--max-new-tokens", "1", "--adapter"]
    capsys.readouterr()
    assert main([*shown, "o"]) == 0 and "(model m)" in capsys.readouterr().err  # as one would call it from here
    (home / "else").mkdir()
    monkeypatch.chdir(home / "else")
    assert main([*shown, "../o"]) == 0 and f"(model {home / 'm'})" in capsys.readouterr().err
    assert main([*shown, "../o", "--model", "../m"]) == 0 and "WARNING" not in capsys.readouterr().err
    # Of another installation's embedded base, and of an older adapter, the name is enough.
    for recorded in ("/another/place/site-packages/tinyllm/assets/base", "base"):
        add(home / "o", "adapter_config.json", base_model_name_or_path=recorded)
        assert main([*shown, "../o"]) == 0 and "(model base)" in capsys.readouterr().err
        assert main([*shown, "../o", "--model", "base"]) == 0 and "WARNING" not in capsys.readouterr().err
    # A folder of a built-in name here is another model, and is not taken for it, nor the other way round.
    shutil.copytree(home / "m", "base")
    for recorded, shown_as in ((assets.path("base"), assets.path("base")), (Path("base").resolve(),) * 2):
        add(home / "o", "adapter_config.json", base_model_name_or_path=str(recorded))
        assert main([*shown, "../o"]) == 0 and f"(model {shown_as})" in capsys.readouterr().err
    add(home / "o", "adapter_config.json", base_model_name_or_path="/no/such/folder")
    assert main([*shown, "../o"]) == 1
    assert re.search("trained over /no/such/folder, which is not here", capsys.readouterr().err)


@pytest.mark.parametrize("beside", ["chat_template.jinja", "tokenizer_config.json"])
def test_a_chat_template_beside_an_adapter_is_the_adapters(home, beside, capsys):
    """Trainers save the tokenizer with the template that they taught."""
    template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[a]"
    (home / "a" / beside).write_text(template if beside.endswith("jinja") else json.dumps({"chat_template": template}))
    assert main(["generate", "--model", "m", "--adapter", "a", "--chat", "hi", "--max-new-tokens", "1"]) == 0
    assert "the chat template is the adapter's" in capsys.readouterr().err
    assert main(WAYS["merge"]) == 0
    assert "the chat template is the adapter's" in " ".join(capsys.readouterr().out.split())
    assert Tokenizer.load("o").chat_template == template and Tokenizer.load("m").chat_template is None
    assert main(["generate", "--model", "m", "--chat", "hi", "--max-new-tokens", "1"]) == 0
    assert "adapter's" not in capsys.readouterr().err
