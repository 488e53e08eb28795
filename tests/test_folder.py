"""A model's folder: names, configuration, shards, and what is refused."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest

from tinyllm.formats import safetensors_file
from tinyllm.frozen import NF4Weight
from tinyllm.lora import apply_lora, merge_lora
from tinyllm.models import DecoderModel
from tinyllm.models.config import DecoderConfig, llama_shape
from tinyllm.models.folder import _names
from tinyllm.models.llama import config_from_hf, config_to_hf, hf_name, our_name
from tinyllm.tensor import Parameter

IDS = np.arange(11)[None]


def llama(seed=1, storage="float32", dtype=np.float32, **options):
    shape = {"num_kv_heads": 2, "intermediate_size": 96, "tie_embeddings": True, **options}
    return DecoderModel(80, 64, 2, 4, **llama_shape(**shape), seed=seed, storage=storage, dtype=dtype)


@pytest.mark.parametrize("storage", ["float32", "float16", "bfloat16", "nf4"])
@pytest.mark.parametrize("tie", [True, False])
def test_a_round_trip_changes_no_bit(tmp_path, storage, tie):
    model = llama(storage=storage, tie_embeddings=tie)
    model.save_pretrained(tmp_path / "deep" / "m")
    back = DecoderModel.from_pretrained(tmp_path / "deep" / "m", storage=storage)
    assert np.array_equal(model(IDS).data, back(IDS).data)
    assert back.config == model.config
    assert {n: getattr(w, "storage", None) for n, w in back.state_dict().items()} == {
        n: getattr(w, "storage", None) for n, w in model.state_dict().items()
    }
    assert sorted(os.listdir(tmp_path / "deep" / "m")) == ["config.json", "model.safetensors"]
    before = (tmp_path / "deep" / "m" / "model.safetensors").read_bytes()
    back.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == before


def test_nf4_is_recognised_and_computes_in_what_is_asked(tmp_path):
    llama(storage="nf4").save_pretrained(tmp_path)
    back = DecoderModel.from_pretrained(tmp_path, dtype=np.float64)
    assert isinstance(back.layers[0].mlp.up_proj.weight, NF4Weight)
    assert back(IDS).dtype == np.float64


def test_names():
    assert hf_name("layers.0.self_attn.out_proj.weight") == "model.layers.0.self_attn.o_proj.weight"
    assert hf_name("embed_tokens.weight") == "model.embed_tokens.weight"
    assert hf_name("lm_head.weight") == "lm_head.weight"
    for tie in (True, False):
        model = llama(tie_embeddings=tie)
        assert set(_names(config_from_hf(config_to_hf(model.config)))) == set(model.state_dict())
        assert all(our_name(hf_name(name)) == name for name in model.state_dict())


@pytest.mark.parametrize("options", [{}, {"head_dim": 32, "rope_theta": 1e6, "norm_eps": 1e-6, "max_seq_len": 77}])
def test_configurations_survive(options):
    config = llama(**options).config
    assert DecoderConfig(**config_from_hf(json.loads(json.dumps(config_to_hf(config))))) == config


def test_shards(tmp_path):
    model = llama()
    model.save_pretrained(tmp_path)
    arrays, _ = safetensors_file.read(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    shards = {name: f"model-0000{i % 2 + 1}-of-00002.safetensors" for i, name in enumerate(arrays)}
    for shard in set(shards.values()):
        safetensors_file.write(tmp_path / shard, {n: a for n, a in arrays.items() if shards[n] == shard})
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    assert np.array_equal(DecoderModel.from_pretrained(tmp_path)(IDS).data, model(IDS).data)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="00002-of-00002"):
        DecoderModel.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "field",
    [
        {"model_type": "mistral"},
        {"attention_bias": True},
        {"mlp_bias": True},
        {"hidden_act": "gelu"},
        {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}},
        {"sliding_window": 4096},
        {"quantization_config": {"quant_method": "gptq"}},
    ],
)
def test_what_would_change_the_model_is_refused_by_name(tmp_path, field):
    llama().save_pretrained(tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**fields, **field}))
    with pytest.raises(ValueError, match=next(iter(field)) if "model_type" not in field else "mistral"):
        DecoderModel.from_pretrained(tmp_path)


def test_inert_fields_and_both_spellings_of_theta():
    fields = config_to_hf(llama().config)
    fields |= {"sliding_window": None, "rope_interleaved": False, "pruned_heads": {}, "rope_scaling": None}
    del fields["rope_theta"]
    fields["rope_parameters"] = {"rope_theta": 5e5, "rope_type": "default"}
    assert config_from_hf(fields)["rope_theta"] == 5e5


def change(folder, edit):
    arrays, _ = safetensors_file.read(folder / "model.safetensors")
    edit(arrays)
    safetensors_file.write(folder / "model.safetensors", arrays)


def test_missing_extra_and_misshapen_weights(tmp_path):
    key = "model.layers.1.mlp.up_proj.weight"
    llama().save_pretrained(tmp_path)
    change(tmp_path, lambda a: a.update({key.replace("up", "upp"): a.pop(key)}))
    with pytest.raises(ValueError, match=f"missing {key}.*left over.*did you mean {key}"):
        DecoderModel.from_pretrained(tmp_path)
    llama().save_pretrained(tmp_path)
    change(tmp_path, lambda a: a.update({key: a[key][:-1]}))
    with pytest.raises(ValueError, match=f"{key}.*shape"):
        DecoderModel.from_pretrained(tmp_path)
    llama().save_pretrained(tmp_path)
    change(
        tmp_path, lambda a: a.update({"lm_head.weight": a["model.embed_tokens.weight"]})
    )  # some files carry it twice
    DecoderModel.from_pretrained(tmp_path)


def test_missing_and_broken_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="config.json"):
        DecoderModel.from_pretrained(tmp_path)
    llama().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="pickled"):
        DecoderModel.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="config.json"):
        DecoderModel.from_pretrained(tmp_path)


def test_other_shapes_and_adapted_models_are_not_written(tmp_path):
    with pytest.raises(ValueError, match="layer_norm.*tinyllm.save"):
        DecoderModel(50, 64, 1).save_pretrained(tmp_path / "m")
    model = apply_lora(llama(), verbose=False)
    with pytest.raises(ValueError, match="save_adapter"):
        model.save_pretrained(tmp_path / "m")
    assert not os.listdir(tmp_path)
    merge_lora(model, keep_base=False)
    model.save_pretrained(tmp_path / "m")
    assert np.array_equal(DecoderModel.from_pretrained(tmp_path / "m")(IDS).data, model(IDS).data)


@pytest.mark.parametrize("part", ["lm_head", "embed_tokens"])
def test_a_head_that_training_parted_from_the_embedding_is_kept(tmp_path, part):
    model = apply_lora(llama(), modules_to_save=[part], verbose=False)
    copy = model.get(part).copies["default"].weight
    copy.data = copy.data * np.float32(1.5)
    merge_lora(model, keep_base=False).eval().save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["tie_word_embeddings"] is False
    assert np.array_equal(DecoderModel.from_pretrained(tmp_path)(IDS).data, model(IDS).data)


@pytest.mark.parametrize("tie", [True, False])
def test_the_tie_that_is_written_is_the_model_s_own(tmp_path, tie):
    model = llama(tie_embeddings=tie)
    model.lm_head.weight = Parameter(model.lm_head.weight.data * 2) if tie else model.embed_tokens.weight
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["tie_word_embeddings"] is not tie
    assert np.array_equal(DecoderModel.from_pretrained(tmp_path)(IDS).data, model(IDS).data)


def test_a_tied_config_beside_another_head_is_refused(tmp_path):
    model = llama()
    model.save_pretrained(tmp_path)
    arrays, _ = safetensors_file.read(tmp_path / "model.safetensors")
    arrays["lm_head.weight"] = arrays["model.embed_tokens.weight"].copy()
    safetensors_file.write(tmp_path / "model.safetensors", arrays)
    assert np.array_equal(DecoderModel.from_pretrained(tmp_path)(IDS).data, model(IDS).data)
    arrays["lm_head.weight"][3, 4] += 1
    safetensors_file.write(tmp_path / "model.safetensors", arrays)
    with pytest.raises(ValueError, match="lm_head.weight differs from the embedding"):
        DecoderModel.from_pretrained(tmp_path)


def test_floats_beside_nf4_are_not_quantised_when_read_as_stored(tmp_path):
    model = DecoderModel(80, 64, 2, 4, **llama_shape(), seed=1, storage="nf4")
    merged = Parameter(np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32), requires_grad=False)
    model.layers[0].self_attn.q_proj.weight = merged
    model.save_pretrained(tmp_path)
    again = DecoderModel.from_pretrained(tmp_path)
    assert again.layers[0].self_attn.q_proj.weight.data.tobytes() == merged.data.tobytes()
    ids = np.arange(12).reshape(1, 12)
    assert again(ids).data.tobytes() == model(ids).data.tobytes()
