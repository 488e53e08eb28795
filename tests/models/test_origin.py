"""What came with a model beside its weights goes with it when it is written again."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from gguf_files import tiny as small
from gguf_files import write
from hypothesis import given
from hypothesis import strategies as st

import tinyllm
from tinyllm import assets
from tinyllm.cli import main
from tinyllm.frozen.nf4 import NF4Weight
from tinyllm.lora import apply_lora, merge_lora
from tinyllm.models import DecoderModel
from tinyllm.models.checkpoints import hub
from tinyllm.models.checkpoints.generation import recommended
from tinyllm.models.checkpoints.origin import Origin
from tinyllm.models.config import llama_shape

IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "added_tokens.json", "chat_template.jinja")


def base(folder, generation=None, files=None, **fields):
    """The embedded base as a folder of its own, with other fields in its files; None takes one away."""
    shutil.copytree(assets.path("base"), folder)
    config = json.loads((folder / "config.json").read_text())
    config = {name: value for name, value in {**config, **fields}.items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(config))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    for name, text in (files or {}).items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    return folder


def read(folder, name="config.json"):
    return json.loads((Path(folder) / name).read_text())


def tiny(family="llama", storage="float32"):
    shapes = {
        "gpt2": {},
        "llama": llama_shape(),
        "qwen2": llama_shape(qkv_bias=True),
        "qwen3": llama_shape(qk_norm=True),
    }
    return DecoderModel(40, 64, 2, 2, **shapes[family], max_seq_len=32, seed=1, storage=storage)


id_of = st.none() | st.integers(0, 1023) | st.lists(st.integers(0, 1023), min_size=1, max_size=3)


@given(st.fixed_dictionaries({name: id_of for name in IDS}), st.none() | st.dictionaries(st.sampled_from(
    [*IDS, "do_sample", "temperature", "max_new_tokens", "suppress_tokens", "transformers_version"]
), id_of | st.floats(0.1, 2) | st.booleans() | st.text(max_size=4), min_size=1))  # fmt: skip
def test_ids_and_generation_config_survive_any_number_of_saves(tmp_path_factory, ids, generation):
    folder = tmp_path_factory.mktemp("o")
    tiny().save_pretrained(folder / "0")
    (folder / "0" / "config.json").write_text(json.dumps({**read(folder / "0"), **ids}))
    if generation is not None:
        (folder / "0" / "generation_config.json").write_text(json.dumps(generation))
    for i in (1, 2):
        DecoderModel.from_pretrained(folder / str(i - 1)).save_pretrained(folder / str(i))
        assert {name: read(folder / str(i))[name] for name in IDS} == ids
        assert read(folder / str(i), "generation_config.json") == (ids if generation is None else generation)


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen2", "qwen3"])
def test_fields_without_arithmetic_are_kept_and_those_of_the_old_file_are_not(tmp_path, family):
    tiny(family).save_pretrained(tmp_path / "a")
    kept = {"initializer_range": 0.3, "use_cache": False, "task_specific_params": {"x": 1}, "id2label": {"0": "a"}}
    if family == "gpt2":
        kept |= {"resid_pdrop": 0.1, "attn_pdrop": 0.2, "summary_type": "cls_index"}
    else:
        kept |= {"attention_dropout": 0.1}
    gone = {"transformers_version": "4.1", "_name_or_path": "x", "torch_dtype": "bfloat16"}
    path = tmp_path / "a" / "config.json"
    path.write_text(json.dumps({**read(tmp_path / "a"), **kept, **gone}))
    model = DecoderModel.from_pretrained(tmp_path / "a")
    model.save_pretrained(tmp_path / "b")
    back = read(tmp_path / "b")
    assert {name: back.get(name) for name in kept} == kept
    assert back["torch_dtype"] == "float32" and "transformers_version" not in back and "_name_or_path" not in back
    if family != "gpt2":  # written as another family only the ids are true
        model.origin = Origin(model_type="gpt2", fields={"eos_token_id": 3, "resid_pdrop": 0.5})
        model.save_pretrained(tmp_path / "c")
        assert read(tmp_path / "c")["eos_token_id"] == 3 and "resid_pdrop" not in read(tmp_path / "c")


def test_a_tokenizer_goes_along_byte_for_byte_unless_one_is_there(tmp_path):
    files = {"added_tokens.json": '{"<a>": 9}', "chat_template.jinja": "{{ 1 }}", "README.md": "no part of it",
             "additional_chat_templates/tool.jinja": "{{ 2 }}"}  # fmt: skip
    model = DecoderModel.from_pretrained(base(tmp_path / "a", files=files))
    model.save_pretrained(tmp_path / "b")
    for name in [*TOKENIZER, "additional_chat_templates/tool.jinja"]:
        assert (tmp_path / "b" / name).read_bytes() == (tmp_path / "a" / name).read_bytes(), name
    assert not (tmp_path / "b" / "README.md").exists()
    model.save_pretrained(tmp_path / "b")  # over itself
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "tokenizer.json").write_text("mine")
    model.save_pretrained(tmp_path / "c")
    assert (tmp_path / "c" / "tokenizer.json").read_text() == "mine" and not (tmp_path / "c" / TOKENIZER[2]).exists()
    shutil.rmtree(tmp_path / "a")  # what is gone cannot be copied, and nothing else suffers
    model.save_pretrained(tmp_path / "d")
    assert read(tmp_path / "d")["eos_token_id"] == 0


def test_a_new_model_has_nothing_and_a_tokenizer_can_say_its_ids(tmp_path):
    model = tiny()
    model.save_pretrained(tmp_path / "a")
    assert not set(IDS) & read(tmp_path / "a").keys() and not (tmp_path / "a" / "generation_config.json").exists()
    ids = {"bos_token_id": None, "eos_token_id": 3, "pad_token_id": 4}
    model.origin = Origin().ended_by(ids)
    model.save_pretrained(tmp_path / "b")
    assert {name: read(tmp_path / "b")[name] for name in IDS} == read(tmp_path / "b", "generation_config.json") == ids
    told = Origin(fields={"eos_token_id": [5, 6]})
    assert told.ended_by(ids) is told and Origin(generation={"eos_token_id": 0}).ended_by(ids).generation == {
        "eos_token_id": 0
    }
    assert Origin(generation={"top_k": 2}).ended_by(ids).generation == {"top_k": 2, **ids}


@pytest.mark.parametrize(
    "metadata, ids, generation",
    [
        ({"eos_token_id": 7, "bos_token_id": 5, "padding_token_id": 6}, (5, 7, 6), None),
        ({"eos_token_id": 7, "eot_token_id": 9, "eom_token_id": 8}, (None, 7, None), [7, 9, 8]),
        ({"eos_token_id": 7, "eot_token_id": 7}, (None, 7, None), None),
        ({"model": "llama"}, (1, 2, None), None),
        ({"model": "llama", "bos_token_id": 0xFFFFFFFF}, (None, 2, None), None),
        ({}, (None, None, None), None),
    ],
)  # fmt: skip
def test_gguf_brings_its_ids_and_its_template(tmp_path, metadata, ids, generation):
    said = {f"tokenizer.ggml.{key}": value for key, value in metadata.items()} | {"tokenizer.chat_template": "{{ 3 }}"}
    model = DecoderModel.from_pretrained(write(tmp_path / "m.gguf", small("llama"), "llama", said))
    model.save_pretrained(tmp_path / "out")
    fields = read(tmp_path / "out")
    assert tuple(fields[name] for name in IDS) == ids
    assert read(tmp_path / "out", "generation_config.json")["eos_token_id"] == (generation or ids[1])
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "{{ 3 }}"


def test_where_peft_finds_a_base(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    base(tmp_path / "m")
    assert DecoderModel.from_pretrained("m").origin.name == str(tmp_path / "m")
    assert hub.name_of(Path("/c/hub/models--own-er--na--me.x/snapshots/0af")) == "own-er/na--me.x"
    (tmp_path / "g").mkdir()
    for name, expected in (("a.gguf", tmp_path / "g"), ("b.gguf", tmp_path / "g" / "b.gguf")):
        (tmp_path / "g" / name).write_bytes(b"GGUF")
        assert hub.name_of(Path("g") / name) == str(expected)
    assert hub.find("g") == Path("g")  # two: neither is meant
    (tmp_path / "g" / "b.gguf").unlink()
    assert hub.find("g") == Path("g/a.gguf")


def test_a_merged_model_is_another_base_until_it_is_saved(tmp_path):
    """What an adapter records is where its base can be read, never the base of what was merged into it."""
    base(tmp_path / "m")
    model = apply_lora(DecoderModel.from_pretrained(tmp_path / "m"), rank=2, verbose=False)
    merge_lora(model, keep_base=False)
    for name, place in (("a", None), ("b", str(tmp_path / "o"))):
        if place:
            model.save_pretrained(tmp_path / "o")
        adapted = apply_lora(copy.deepcopy(model), rank=2, verbose=False)
        tinyllm.save_adapter(adapted, tmp_path / name)
        assert read(tmp_path / name, "adapter_config.json")["base_model_name_or_path"] == place
    assert read(tmp_path / "o")["eos_token_id"] == 0


@pytest.mark.parametrize("name", ["tokenizer.model", "merges.txt", "tokenizer.json"])
def test_a_pointer_among_a_tokenizers_files_is_not_copied(tmp_path, name):
    pointer = "version https://git-lfs.github.com/spec/v1\n"
    model = DecoderModel.from_pretrained(base(tmp_path / "m", files={name: pointer}))
    with pytest.raises(ValueError, match=f"{name} is a Git LFS pointer"):
        model.save_pretrained(tmp_path / "o")
    assert not list((tmp_path / "o").iterdir())
    for verb in (["quantize", str(tmp_path / "m"), str(tmp_path / "q")],):
        assert main(verb) == 1 and not (tmp_path / "q").exists()


@pytest.mark.parametrize("ends", [7, [7, 9]])
def test_generation_ends_at_every_id_that_a_folder_or_a_gguf_file_names(tmp_path, ends):
    base(tmp_path / "m", eos_token_id=ends)
    ids = (7, 9) if isinstance(ends, list) else (7,)
    assert recommended(tmp_path / "m") == ({"stop": ids}, [])
    said = {f"tokenizer.ggml.{name}_token_id": id for name, id in zip(("eos", "eot"), ids, strict=False)}
    assert recommended(write(tmp_path / "m.gguf", small("llama"), "llama", said)) == ({"stop": ids}, [])


def poisoned(storage, double_quant=True):
    model = tiny(storage=storage if storage != "nf4" else "float32")
    if storage == "nf4":
        layer = model.layers[1].mlp.up_proj
        w = NF4Weight.quantize(layer.weight.data, 64, double_quant)
        if double_quant:
            codes, nested, offset = w.absmax
            w.absmax = (codes, nested, np.float32(np.nan))
        else:
            w.absmax[0] = np.inf
        layer.weight = w
    elif storage == "float32":
        model.layers[1].mlp.up_proj.weight.data[2, 3] = np.nan
    else:
        model.layers[1].mlp.up_proj.weight.bits[2, 3] = {"bfloat16": 0xFF80, "float16": 0x7C00}[storage]
    return model


@pytest.mark.parametrize("case", [("float32",), ("bfloat16",), ("float16",), ("nf4", True), ("nf4", False)], ids=str)
def test_what_is_no_number_is_not_written(tmp_path, case):
    tiny().save_pretrained(tmp_path / "old")
    before = {path.name: path.read_bytes() for path in (tmp_path / "old").iterdir()}
    for folder in (tmp_path / "old", tmp_path / "new"):
        with pytest.raises(
            ValueError, match=r"^layers\.1\.mlp\.up_proj\.weight holds NaN or infinity.*nothing was written"
        ):
            poisoned(*case).save_pretrained(folder)
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "old").iterdir()}
    assert not (tmp_path / "new").exists()
