"""Files that lie: every way into the library meets them with one sentence, and without the memory they ask for.

Damaged safetensors (`formats/test_formats.py`), GGUF (`models/test_gguf.py`) and templates (`data/test_chat.py`) have
tests of their own.
"""

from __future__ import annotations

import json
import shutil
import tracemalloc
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinyllm
from tinyllm import assets
from tinyllm.data.tokenizer import Tokenizer
from tinyllm.lora import apply_lora
from tinyllm.lora.peft.adapter import CONFIG as ADAPTER_CONFIG
from tinyllm.lora.peft.adapter import WEIGHTS as ADAPTER_WEIGHTS
from tinyllm.models import DecoderModel
from tinyllm.models.config import llama_shape

DEEP = "[" * 200_000 + "]" * 200_000
ONE_SENTENCE = (ValueError, TypeError, KeyError, OSError)
PLENTY = 60e6  # bytes; what a file of a few kilobytes may make us allocate (tokenizers' own copies included)


def model():
    return DecoderModel(80, 64, 2, 4, **llama_shape(num_kv_heads=2, intermediate_size=96), seed=1)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A model, an adapter and a tokenizer, to be damaged in a copy."""
    folder = tmp_path_factory.mktemp("good")
    model().save_pretrained(folder / "model")
    tinyllm.save_adapter(apply_lora(model(), rank=2, verbose=False), folder / "adapter")
    Tokenizer.load(assets.path("base")).save(folder / "tokenizer")
    return folder


@pytest.fixture
def place(good, tmp_path):
    shutil.copytree(good, tmp_path / "files")
    return tmp_path / "files"


@contextmanager
def refused(where=""):
    """Whatever happens inside raises one short line that says where, and allocates little."""
    tracemalloc.start()
    try:
        with pytest.raises(ONE_SENTENCE) as raised:
            yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    said = str(raised.value)
    assert where in said, f"{said!r} does not say {where!r}"
    assert "\n" not in said.strip() and len(said) < 2000, f"not one sentence: {said[:300]!r}"
    assert peak < PLENTY, f"{peak / 1e6:.0f} MB were allocated"


# Headers that ask for what is not there ---------------------------------------------------------------------------


def raw(path, header, data=b"\0" * 64):
    """A safetensors file with whatever header."""
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


F32 = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
HEADERS = {
    "a shape of terabytes": {"a": {"dtype": "F32", "shape": [1 << 20, 1 << 22], "data_offsets": [0, 1 << 44]}},
    "a shape that overflows 64 bits": {"a": {"dtype": "F32", "shape": [1 << 33, 1 << 33], "data_offsets": [0, 16]}},
    "a negative shape": {"a": {**F32, "shape": [-4]}},
    "a fractional shape": {"a": {**F32, "shape": [4.0]}},
    "a shape that is no list": {"a": {**F32, "shape": 4}},
    "overlapping arrays": {"a": F32, "b": {**F32, "data_offsets": [8, 24]}},
    "a hole between arrays": {"a": F32, "b": {**F32, "data_offsets": [32, 48]}},
    "an array that ends before it begins": {"a": {**F32, "data_offsets": [16, 0]}},
    "offsets beyond the end": {"a": {**F32, "data_offsets": [64, 80]}},
    "another size than the shape's": {"a": {**F32, "shape": [5]}},
    "an unknown dtype": {"a": {**F32, "dtype": "F31"}},
    "no dtype": {"a": {"shape": [4], "data_offsets": [0, 16]}},
    "a list": "[1, 2, 3]",
    "a number": "7",
    "deep nesting": DEEP,
    "metadata that is no text": {"__metadata__": {"a": 1}, "a": F32},
    "the same name twice": '{"a": ' + json.dumps(F32) + ', "a": ' + json.dumps({**F32, "data_offsets": [16, 32]}) + "}",
    "half a character": '{"\\ud800": ' + json.dumps(F32) + "}",
}


@pytest.mark.parametrize("what", HEADERS)
def test_a_header_that_lies(tmp_path, what):
    raw(tmp_path / "w.safetensors", HEADERS[what], b"\0" * 48 if "hole" in what or "twice" in what else b"\0" * 16)
    with refused("w.safetensors"):
        tinyllm.load(tmp_path / "w.safetensors")


@pytest.mark.parametrize("length", [0, 1, 1 << 20, 1 << 40, (1 << 64) - 1])
def test_a_length_that_lies(tmp_path, length):
    (tmp_path / "w.safetensors").write_bytes(length.to_bytes(8, "little") + b"{}")
    with refused("w.safetensors"):
        tinyllm.load(tmp_path / "w.safetensors")


@given(st.data())
def test_any_damage_is_an_error_or_another_model(good, tmp_path_factory, data):
    """A few bytes changed anywhere, or the file cut: never a crash, a hang or gigabytes."""
    folder = tmp_path_factory.mktemp("h") / "m"
    shutil.copytree(good / "model", folder)
    path = folder / data.draw(st.sampled_from(["config.json", "model.safetensors"]))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        # The front of the file, where the structure is, more often than the weights.
        at = data.draw(st.integers(0, min(len(content), 4000) - 1) | st.integers(0, len(content) - 1))
        content[at] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.just(len(content)) | st.integers(0, len(content)))])
    tracemalloc.start()
    try:
        DecoderModel.from_pretrained(folder)
    except ONE_SENTENCE as error:
        assert "\n" not in str(error).strip() and str(folder) in str(error) or "config.json" in str(error), error
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < PLENTY


# Configurations that lie ------------------------------------------------------------------------------------------

LIES = {
    "hidden_size": [1 << 40, 0, -64, 64.5, "64", None, [64], True, 63],
    "num_hidden_layers": [1 << 40, 10**9, 0, -1, "2", None],
    "num_attention_heads": [1 << 40, 0, -4, 3, None],
    "num_key_value_heads": [1 << 40, -2, 3, "2"],
    "intermediate_size": [1 << 40, -1, 95, None],
    "vocab_size": [1 << 40, -1, 79, "80"],
    "head_dim": [1 << 40, -16, 15],
    "max_position_embeddings": [0, -1, "128"],
    "rms_norm_eps": ["tiny", None, -1.0, float("nan"), float("inf")],
    "rope_theta": ["big", 0, -1e4, float("nan"), float("inf")],
    "rope_scaling": [7, "llama3", {"rope_type": "llama3"}, {"rope_type": "llama3", "factor": "a"}, {"rope_type": 3}],
    "model_type": [None, 7, "", "diffusion", ["llama"]],
    "quantization_config": [7, "nf4", {}, {"quant_method": "gptq"}],
    "tie_word_embeddings": ["no", 7],
    "attention_bias": [7],
}


@pytest.mark.parametrize("field, value", [(f, v) for f, values in LIES.items() for v in values])
def test_a_configuration_that_lies(place, field, value):
    path = place / "model" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    if (field, value) == ("quantization_config", {}):
        return  # says nothing
    with refused():
        DecoderModel.from_pretrained(place / "model")


@pytest.mark.parametrize(
    "text",
    [DEEP, '{"a":' * 100_000, "", "\x00", "null", "[]", '"llama"', "{", "{'model_type': 'llama'}", '{"a": NaN}{'],
)
@pytest.mark.parametrize(
    "file", ["model/config.json", f"adapter/{ADAPTER_CONFIG}", "tokenizer/tokenizer_config.json", "index"]
)
def test_json_that_is_none(place, file, text):
    if file == "index":
        (place / "model" / "model.safetensors").rename(place / "model" / "model-00001-of-00001.safetensors")
        file = "model/model.safetensors.index.json"
    (place / file).write_text(text)
    with refused(file.rpartition("/")[2]):
        if file.startswith("model"):
            DecoderModel.from_pretrained(place / "model")
        elif file.startswith("adapter"):
            tinyllm.load_adapter(model(), place / "adapter")
        else:
            Tokenizer.load(place / "tokenizer")


def test_a_field_given_twice(place):
    path = place / "model" / "config.json"
    path.write_text(path.read_text().replace("{", '{"hidden_size": 128,', 1))
    with refused("hidden_size"):
        DecoderModel.from_pretrained(place / "model")


# Shards --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shard", ["../secret.safetensors", "/etc/passwd", "a/../../secret.safetensors", "", ".", 7, None, ["a"], "a\x00b"]
)
def test_an_index_that_points_elsewhere(place, shard):
    folder = place / "model"
    shutil.copy(folder / "model.safetensors", place / "secret.safetensors")
    names = list(tinyllm.load(folder / "model.safetensors"))
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(names, shard)}))
    with refused():
        DecoderModel.from_pretrained(folder)


def test_a_link_out_of_the_folder_is_no_shard_of_it(place):
    folder = place / "model"
    (folder / "model.safetensors").rename(place / "secret.safetensors")
    names = list(tinyllm.load(place / "secret.safetensors"))
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": dict.fromkeys(names, "../secret.safetensors")})
    )
    with refused("outside"):
        DecoderModel.from_pretrained(folder)


def test_an_index_that_promises_what_its_shard_has_not(place):
    folder = place / "model"
    arrays = tinyllm.load(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    short = dict(list(arrays.items())[1:])
    tinyllm.save(short, folder / "s.safetensors")
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": dict.fromkeys(arrays, "s.safetensors")})
    )
    with refused(next(iter(arrays))):
        DecoderModel.from_pretrained(folder)


# Adapters -----------------------------------------------------------------------------------------------------------

ADAPTER_LIES = {
    "r": [0, -1, 1 << 40, 2.5, "2", None, True],
    "lora_alpha": [0, -1, "a", None, float("nan"), float("inf")],
    "lora_dropout": [1.0, -0.1, "a", float("nan")],
    "target_modules": [7, [7], {}, "(", "(a+)+$", ["nothing"], []],
    "rank_pattern": [7, {"q_proj": 0}, {"q_proj": "a"}, {"(": 2}, {"q_proj": 1 << 40}],
    "alpha_pattern": [7, {"q_proj": -1}, {"(": 2}],
    "modules_to_save": [7, "norm", [7], ["nothing"]],
    "peft_type": [None, "IA3", 7],
    "bias": ["some", 7],
    "use_dora": ["yes", 7],
    "use_rslora": ["yes"],
}


@pytest.mark.parametrize("field, value", [(f, v) for f, values in ADAPTER_LIES.items() for v in values])
def test_an_adapter_configuration_that_lies(place, field, value):
    path = place / "adapter" / ADAPTER_CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    target = model()
    before = {name: w.data.copy() for name, w in target.named_parameters()}
    with refused():
        tinyllm.load_adapter(target, place / "adapter")
    after = dict(target.named_parameters())
    assert before.keys() == after.keys() and all(np.array_equal(before[n], after[n].data) for n in before)


@given(st.data())
def test_any_damage_to_an_adapter_is_an_error_or_another_adapter(good, tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("h") / "a"
    shutil.copytree(good / "adapter", folder)
    path = folder / data.draw(st.sampled_from([ADAPTER_CONFIG, ADAPTER_WEIGHTS]))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    tracemalloc.start()
    try:
        tinyllm.load_adapter(model(), folder)
    except ONE_SENTENCE as error:
        assert "\n" not in str(error).strip()
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < PLENTY


# Tokenizers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [DEEP, "{}", "[]", '{"version": "9"}', '{"model": {"type": "Unheard"}}', "\x00" * 9])
def test_a_tokenizer_that_is_none(place, text):
    (place / "tokenizer" / "tokenizer.json").write_text(text)
    with refused("tokenizer.json"):
        Tokenizer.load(place / "tokenizer")
