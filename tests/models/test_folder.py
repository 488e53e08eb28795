"""A model's folder: names, configuration, shards, and what is refused."""

from __future__ import annotations

import json
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyllm.backend.half import BFLOAT16
from tinyllm.formats import safetensors_file
from tinyllm.formats.state import load
from tinyllm.frozen.nf4 import NF4Weight
from tinyllm.lora import apply_lora, merge_lora
from tinyllm.models import DecoderModel
from tinyllm.models.config import RopeScaling, llama_shape
from tinyllm.models.families.family import FAMILIES
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
    with pytest.raises(ValueError, match="nearest differs in num_kv_heads=1.*tinyllm.save"):
        DecoderModel(50, 64, 1, 2, num_kv_heads=1).save_pretrained(tmp_path / "m")
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
    merge_lora(model, keep_base=False, untie=True).eval().save_pretrained(tmp_path)
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


# Families ----------------------------------------------------------------------------------------------------------

SHAPES = {
    "gpt2": {},
    "llama": llama_shape(num_kv_heads=1, rope_scaling=RopeScaling(8.0, 1.0, 4.0, 16)),
    "mistral": llama_shape(num_kv_heads=1, sliding_window=3),
    "qwen2": llama_shape(num_kv_heads=1, qkv_bias=True),
    "qwen3": llama_shape(num_kv_heads=1, qk_norm=True, head_dim=6),
}


def tiny(kind, storage="float32", **changes):
    shape = {"intermediate_size": 20, "max_seq_len": 32, "seed": 1, **SHAPES[kind], "model_type": kind, **changes}
    model = DecoderModel(13, 12, 2, 2, storage=storage, **shape)
    g = np.random.default_rng(0)
    for p in model.parameters():
        p.data = p.data + g.standard_normal(p.shape).astype(np.float32)
    return model.eval()


@pytest.mark.parametrize("storage", ["float32", "float16", "bfloat16", "nf4"])
@pytest.mark.parametrize("kind", FAMILIES)
def test_every_family_comes_back_bit_for_bit(tmp_path, kind, storage):
    model = tiny(kind, storage)
    model.save_pretrained(tmp_path / "m")
    back = DecoderModel.from_pretrained(tmp_path / "m", storage=storage)
    assert np.array_equal(back(IDS).data, model(IDS).data)
    assert back.config == model.config and back.config.model_type == kind
    assert json.loads((tmp_path / "m" / "config.json").read_text())["model_type"] == kind
    arrays, _ = safetensors_file.read(tmp_path / "m" / "model.safetensors")
    back.save_pretrained(tmp_path / "again")
    again, _ = safetensors_file.read(tmp_path / "again" / "model.safetensors")
    assert arrays.keys() == again.keys()
    assert all(arrays[key].tobytes() == again[key].tobytes() for key in arrays)


def test_conv1d_weights_are_stored_the_other_way_round(tmp_path):
    model = tiny("gpt2")
    model.save_pretrained(tmp_path)
    arrays, _ = safetensors_file.read(tmp_path / "model.safetensors")
    assert arrays["transformer.h.1.attn.c_attn.weight"].shape == (12, 36)
    attention = model.layers[1].self_attn
    assert np.array_equal(arrays["transformer.h.1.attn.c_attn.weight"].T, attention.qkv_proj.weight.data)
    assert np.array_equal(arrays["transformer.h.1.attn.c_proj.weight"].T, attention.out_proj.weight.data)  # square
    assert np.array_equal(arrays["transformer.wte.weight"], model.embed_tokens.weight.data)


def test_gpt2_as_its_first_files_were(tmp_path):
    """Without the prefix, and with the causal mask beside the weights."""
    model = tiny("gpt2")
    model.save_pretrained(tmp_path)
    arrays, _ = safetensors_file.read(tmp_path / "model.safetensors")
    arrays = {key.removeprefix("transformer."): array for key, array in arrays.items()}
    for i in range(2):
        arrays[f"h.{i}.attn.bias"] = np.tril(np.ones((1, 1, 32, 32), np.float32))
        arrays[f"h.{i}.attn.masked_bias"] = np.float32(-1e4)
    safetensors_file.write(tmp_path / "model.safetensors", arrays)
    assert np.array_equal(DecoderModel.from_pretrained(tmp_path)(IDS).data, model(IDS).data)


def test_what_is_no_number_cannot_be_kept_in_half(tmp_path):
    """A bfloat16 weight is taken as it stands, but looked at."""
    tiny("llama", "bfloat16").save_pretrained(tmp_path)
    arrays, metadata = safetensors_file.read(tmp_path / "model.safetensors")
    arrays["model.layers.0.mlp.up_proj.weight"].view(np.uint16)[2, 3] = 0x7FC0
    safetensors_file.write(tmp_path / "model.safetensors", arrays, metadata)
    with pytest.raises(ValueError, match=r"up_proj.*non-finite.*\[2, 3\]"):
        DecoderModel.from_pretrained(tmp_path, storage="bfloat16")


@pytest.mark.parametrize("dtype", [np.float16, np.float64, "bfloat16"])
def test_other_floats_and_no_integers(tmp_path, dtype):
    model = tiny("qwen3", "float16" if dtype == np.float16 else "bfloat16")
    model.save_pretrained(tmp_path)
    arrays, _ = safetensors_file.read(tmp_path / "model.safetensors")
    if dtype == np.float64:
        arrays = {k: a.astype(dtype) for k, a in load(tmp_path / "model.safetensors").items()}
        safetensors_file.write(tmp_path / "model.safetensors", arrays)
    assert np.array_equal(DecoderModel.from_pretrained(tmp_path)(IDS).data, model(IDS).data)
    arrays["model.norm.weight"] = np.ones(12, np.int32)
    safetensors_file.write(tmp_path / "model.safetensors", arrays)
    with pytest.raises(ValueError, match="model.norm.weight.*int32.*floats"):
        DecoderModel.from_pretrained(tmp_path)


# Shards ------------------------------------------------------------------------------------------------------------


@given(st.sampled_from(sorted(FAMILIES)), st.sampled_from(["float32", "nf4"]), st.integers(1, 9000))
def test_shards_hold_the_same_arrays(tmp_path_factory, kind, storage, limit):
    folder = tmp_path_factory.mktemp("m")
    model = tiny(kind, storage)
    model.save_pretrained(folder / "one")
    model.save_pretrained(folder / "many", max_shard_size=limit)
    one, _ = safetensors_file.read(folder / "one" / "model.safetensors")
    index = json.loads((folder / "many" / "model.safetensors.index.json").read_text())
    many = {}
    for path in sorted((folder / "many").glob("*.safetensors")):
        arrays, _ = safetensors_file.read(path)
        assert all(index["weight_map"][key] == path.name for key in arrays)
        weights = {key.partition(".weight")[0] for key in arrays}
        assert sum(len(a.tobytes()) for a in arrays.values()) <= limit or len(weights) == 1
        many |= arrays
    assert one.keys() == many.keys() == index["weight_map"].keys()
    assert all(one[key].tobytes() == many[key].tobytes() for key in one)
    assert index["metadata"]["total_size"] == sum(len(a.tobytes()) for a in one.values())
    assert np.array_equal(DecoderModel.from_pretrained(folder / "many", storage)(IDS).data, model(IDS).data)


def test_parts_of_a_weight_may_stand_in_two_shards(tmp_path):
    model = tiny("llama", "nf4")
    model.save_pretrained(tmp_path)
    arrays, _ = safetensors_file.read(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    shards = {key: f"model-0000{1 + i % 3}-of-00003.safetensors" for i, key in enumerate(arrays)}
    for shard in set(shards.values()):
        safetensors_file.write(tmp_path / shard, {n: a for n, a in arrays.items() if shards[n] == shard})
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    assert np.array_equal(DecoderModel.from_pretrained(tmp_path, "nf4")(IDS).data, model(IDS).data)


def test_an_older_save_leaves_nothing_behind(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    for limit in (2000, 3000, 1e9, 2000, 1e9):
        model = tiny("llama", seed=int(limit))
        model.save_pretrained(tmp_path, max_shard_size=limit)
        names = set(os.listdir(tmp_path))
        shards = {name for name in names if name.startswith("model-")}
        weights = {"model.safetensors"} if limit == 1e9 else {*shards, "model.safetensors.index.json"}
        assert names == {"config.json", "tokenizer.json", *weights}
        assert all(name.endswith(f"of-{len(shards):05}.safetensors") for name in shards)
        assert np.array_equal(DecoderModel.from_pretrained(tmp_path)(IDS).data, model(IDS).data)
    for bad in (0, -1, float("nan"), "5GB"):
        with pytest.raises(ValueError, match="max_shard_size"):
            model.save_pretrained(tmp_path, max_shard_size=bad)


class Killed(BaseException):
    """No error that anyone handles."""


@pytest.mark.parametrize("before, after", [(1e9, 1e9), (1e9, 2000), (2000, 1e9), (2000, 2000), (2000, 3000)])
def test_killed_at_any_moment(tmp_path, monkeypatch, before, after):
    """The old model, the new one, or a clear refusal: never a mixture. While files are written, the old one."""
    old, new = tiny("mistral", seed=1), tiny("mistral", seed=2)
    old_says, new_says = old(IDS).data, new(IDS).data
    assert not np.array_equal(old_says, new_says)
    seen = set()
    for moment in range(40):
        folder = tmp_path / str(moment)
        old.save_pretrained(folder, max_shard_size=before)
        calls = {"left": moment}
        with monkeypatch.context() as patch:
            for owner, name in ((os, "replace"), (os, "fsync"), (os, "unlink"), (Path, "unlink")):
                patch.setattr(owner, name, mortal(getattr(owner, name), calls))
            patch.setattr("shutil.rmtree", lambda *_, **__: None)  # who is killed does not tidy up
            try:
                new.save_pretrained(folder, max_shard_size=after)
                done = True
            except Killed:
                done = False
        try:
            says = DecoderModel.from_pretrained(folder)(IDS).data
        except (ValueError, FileNotFoundError):
            seen.add("refused")
        else:
            assert np.array_equal(says, old_says) or np.array_equal(says, new_says)
            seen.add("old" if np.array_equal(says, old_says) else "new")
        new.save_pretrained(folder, max_shard_size=after)
        assert np.array_equal(DecoderModel.from_pretrained(folder)(IDS).data, new_says)
        if done:
            break
    assert done and {"old", "new"} <= seen
    if before == after == 1e9:
        assert "refused" not in seen


def mortal(function, calls):
    def call(*args, **kwargs):
        calls["left"] -= 1
        if calls["left"] < 0:
            raise Killed
        return function(*args, **kwargs)

    return call


def test_a_disk_that_is_full_changes_nothing(tmp_path, monkeypatch):
    old = tiny("llama")
    old.save_pretrained(tmp_path, max_shard_size=2000)
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    write, count = safetensors_file.write, []

    def full(path, arrays):
        count.append(path)
        if len(count) == 3:
            raise OSError(28, "No space left on device")
        write(path, arrays)

    monkeypatch.setattr(safetensors_file, "write", full)
    with pytest.raises(OSError, match="No space"):
        tiny("llama", seed=5).save_pretrained(tmp_path, max_shard_size=2000)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files


# Memory ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("storage", ["nf4", "bfloat16", "float32"])
def test_reading_holds_one_float_weight_beside_the_result(tmp_path, kind, storage):
    """So that 7B parameters can be read as NF4 into 4 GB. The allowance: a copy that turns it, and working space."""
    shape = {**SHAPES[kind], "num_kv_heads": 2, "intermediate_size": 1024, "max_seq_len": 16}
    DecoderModel(64, 512, 6, 2, **shape, seed=0, storage="bfloat16").save_pretrained(tmp_path)
    largest = 4 * 512 * (1536 if kind == "gpt2" else 1024)
    tracemalloc.start()
    model = DecoderModel.from_pretrained(tmp_path, storage=storage)
    now, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert now <= 1.05 * sum(w.nbytes if hasattr(w, "storage") else w.data.nbytes for _, w in model.named_weights())
    assert peak - now <= 2 * largest
    assert peak < (0.5 if storage == "nf4" else 2) * 4 * model.num_parameters()


# bitsandbytes' keys ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [np.uint8, np.float16, np.float32, "bfloat16"])
def test_quant_storage_is_another_dtype_of_the_same_bytes(tmp_path, code):
    model = DecoderModel(
        13, 16, 1, 2, **llama_shape(intermediate_size=32), seed=1, storage="nf4"
    )  # no odd numbers of bytes
    model.save_pretrained(tmp_path)
    arrays, _ = safetensors_file.read(tmp_path / "model.safetensors")
    for key in [key for key in arrays if key + ".quant_map" in arrays]:
        packed = arrays[key].reshape(-1)
        arrays[key] = packed.view(BFLOAT16 if code == "bfloat16" else code)
    safetensors_file.write(tmp_path / "model.safetensors", arrays)
    assert np.array_equal(DecoderModel.from_pretrained(tmp_path, "nf4")(IDS).data, model(IDS).data)


def test_what_is_quantised_otherwise_is_refused(tmp_path):
    tiny("llama", "nf4").save_pretrained(tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    arrays, _ = safetensors_file.read(tmp_path / "model.safetensors")
    fp4 = {key.replace("__nf4", "__fp4"): array for key, array in arrays.items()}
    safetensors_file.write(tmp_path / "model.safetensors", fp4)
    with pytest.raises(ValueError, match="quantization_config.*only bitsandbytes' NF4"):
        DecoderModel.from_pretrained(tmp_path)
    safetensors_file.write(tmp_path / "model.safetensors", arrays)
    (tmp_path / "config.json").write_text(json.dumps({**fields, "quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(ValueError, match="quantization_config"):
        DecoderModel.from_pretrained(tmp_path)


def test_floats_beside_nf4_are_named_for_transformers(tmp_path):
    model = tiny("llama", "nf4")
    model.save_pretrained(tmp_path)
    assert "llm_int8_skip_modules" not in json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    path = "layers.1.self_attn.out_proj.weight"
    model.set_weight(path, Parameter(model.get(path).dense()))
    model.save_pretrained(tmp_path)
    said = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert said["llm_int8_skip_modules"] == ["lm_head", "model.layers.1.self_attn.o_proj"]
