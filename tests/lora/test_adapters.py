"""Adapters in PEFT's format: exact names, nothing passes that does not fit, and nothing changes on failure."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyllm.backend import random
from tinyllm.formats import safetensors_file
from tinyllm.lora import apply_lora, disable_lora, merge_lora, set_adapter, unmerge_lora
from tinyllm.lora.peft.adapter import load_adapter, parts_of, save_adapter, trained_over
from tinyllm.models import DecoderModel
from tinyllm.models.config import llama_shape
from tinyllm.qlora import apply_qlora, quantize_base

IDS = np.arange(11)[None]
LAYER = "base_model.model.model.layers.0.self_attn."


def llama(**options):
    shape = {"num_kv_heads": 2, "intermediate_size": 96, "tie_embeddings": False, **options}
    return DecoderModel(80, 64, 2, 4, **llama_shape(**shape), seed=1)


def gpt(**options):
    return DecoderModel(80, 64, 2, 4, seed=1, **options)


def trained(model, **options):
    """Adapters with B away from zero."""
    apply_lora(model, **{"rank": 4, "alpha": 8.0, "verbose": False, **options})
    rng = np.random.default_rng(5)
    for p in model.parameters():
        if p.requires_grad:
            p.data = (0.1 * rng.standard_normal(p.shape)).astype(p.dtype)
    return model.eval()


def logits(model):
    return model(IDS).data


def config_of(folder):
    return json.loads((folder / "adapter_config.json").read_text())


def edit(folder, **fields):
    (folder / "adapter_config.json").write_text(json.dumps({**config_of(folder), **fields}))


def keys_of(folder):
    return safetensors_file.read(folder / "adapter_model.safetensors")[0]


OPTIONS = [
    {},
    {"target_modules": "all-linear"},
    {"target_modules": ["q_proj", "layers.1.mlp.up_proj"]},
    {"target_modules": r"layers\.1\..*"},
    {
        "target_modules": "all-linear",
        "rank_pattern": {"q_proj": 8},
        "alpha_pattern": {r"layers\.0\..*": 3.0},
        "use_rslora": True,
    },
    {"modules_to_save": ["norm", "lm_head"], "dropout": 0.1},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_a_round_trip_changes_no_bit(tmp_path, options):
    model = trained(llama(), **options)
    save_adapter(model, tmp_path / "a")
    back = load_adapter(llama(), tmp_path / "a").eval()
    assert np.array_equal(logits(model), logits(back)) and not np.array_equal(logits(back), logits(llama()))
    assert not any(p.requires_grad for p in back.parameters())
    save_adapter(back, tmp_path / "b")
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def other(**options):
    """Of no family: GPT-2's layout with rotary positions."""
    return gpt(positions="rope", **options)


GPT_OPTIONS = [
    {},
    {"bias": "lora_only"},
    {"bias": "all", "use_dora": True, "target_modules": ["up_proj"]},
    {"target_modules": "all-linear", "use_dora": True, "rank_pattern": {"up_proj": 2}},
    {"modules_to_save": ["mlp", "embed_tokens"]},
]


@pytest.mark.parametrize("make", [gpt, other])
@pytest.mark.parametrize("options", GPT_OPTIONS)
def test_a_round_trip_of_gpt2_and_of_other_models(tmp_path, make, options):
    model = trained(make(), **options)
    save_adapter(model, tmp_path / "a")
    name = "base_model.model.transformer.h.0.attn.c_" if make is gpt else "base_model.model.layers.0.self_attn."
    mlp = name.replace("attn.c_", "mlp.c_").replace("self_attn.", "mlp.")
    assert any(key.startswith((name, mlp)) for key in keys_of(tmp_path / "a"))
    assert config_of(tmp_path / "a")["fan_in_fan_out"] is (make is gpt)
    plain = logits(make())
    back = load_adapter(make(), tmp_path / "a").eval()
    assert np.array_equal(logits(back), logits(model)) and not np.array_equal(logits(back), plain)
    assert np.array_equal(logits(disable_lora(back)), plain)
    save_adapter(back, tmp_path / "b")
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    other_numbers = trained(make(), **options)
    for p in other_numbers.parameters():
        p.data = p.data * np.float32(1 if not p.requires_grad else 3)
    assert np.array_equal(logits(load_adapter(other_numbers, tmp_path / "a")), logits(model))  # overwritten


def test_conv1d_weights_of_whole_modules_are_turned(tmp_path):
    model = trained(gpt(), modules_to_save=["up_proj"])
    save_adapter(model, tmp_path)
    array = keys_of(tmp_path)["base_model.model.transformer.h.0.mlp.c_fc.weight"]
    assert np.array_equal(array, model.layers[0].mlp.up_proj.weight.data.T) and array.shape == (64, 256)
    assert keys_of(tmp_path)["base_model.model.transformer.h.0.attn.c_attn.lora_A.weight"].shape == (4, 64)


@settings(max_examples=40, deadline=None)
@given(
    make=st.sampled_from([llama, gpt, other]),
    targets=st.sets(st.sampled_from(["c_attn", "out_proj", "up_proj", "layers.1.mlp.down_proj"]), min_size=1),
    rank=st.integers(1, 9), alpha=st.floats(0.5, 40), use_rslora=st.booleans(), use_dora=st.booleans(),
    bias=st.sampled_from(["none", "all", "lora_only"]), patterned=st.booleans(),
    saved=st.sampled_from([[], ["lm_head"], ["layers.0.mlp"]]), dtype=st.sampled_from([None, "float16", "bfloat16"]),
)  # fmt: skip
def test_any_configuration_goes_out_and_in(
    tmp_path_factory, make, targets, rank, patterned, saved, dtype, bias, **options
):
    folder = tmp_path_factory.mktemp("any")
    targets = {"k_proj" if make is llama and target == "c_attn" else target for target in targets}
    options |= {"rank": rank, "target_modules": sorted(targets), "bias": bias, "modules_to_save": saved}
    if patterned:
        options |= {"rank_pattern": {r"layers\.1\..*": 3}, "alpha_pattern": {r"layers\.0\..*|up_proj": 2.5}}
    try:
        model = trained(make(), **options)
    except ValueError as error:  # other tests have these
        assert re.search("no target|matches no|trains nothing|trains .* whole", str(error)), error
        return
    save_adapter(model, folder / "a", dtype=dtype)
    back = load_adapter(make(), folder / "a").eval()
    if dtype is None:
        assert np.array_equal(logits(back), logits(model))
    save_adapter(back, folder / "b", dtype=dtype)
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert (folder / "a" / file).read_bytes() == (folder / "b" / file).read_bytes()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_adapters_written_in_half_precision(tmp_path, dtype):
    model = trained(llama(), use_dora=True)
    save_adapter(model, tmp_path / "float")
    save_adapter(model, tmp_path, dtype=dtype)
    sizes = [(folder / "adapter_model.safetensors").stat().st_size for folder in (tmp_path, tmp_path / "float")]
    assert sizes[0] < 0.7 * sizes[1]
    back = load_adapter(llama(), tmp_path).eval()
    eps = {"float16": 2.0**-11, "bfloat16": 2.0**-8}[dtype]
    for (path, part), p in parts_of(model, "default").items():
        half = parts_of(back, "default")[path, part]
        assert (
            half.dtype == np.float32 and (np.abs(half.data - p.data) <= eps * np.abs(p.data) + 2.0**-25).all()
        )  # subnormal
    with pytest.raises(ValueError, match="float8"):
        save_adapter(model, tmp_path / "x", dtype="float8")
    model.layers[0].self_attn.q_proj.lora_A["default"].data[0, 0] = 1e6
    with pytest.raises(ValueError, match="q_proj.lora_A.weight.*overflows float16"):
        save_adapter(model, tmp_path / "x", dtype="float16")
    assert not (tmp_path / "x").exists()


def test_both_spellings_of_the_magnitudes(tmp_path):
    model = trained(llama(), use_dora=True)
    save_adapter(model, tmp_path)
    assert LAYER + "q_proj.lora_magnitude_vector" in keys_of(tmp_path)
    longer = lambda key: key + ".weight" if key.endswith("_vector") else key
    damage(tmp_path, lambda arrays: [arrays.update({longer(k): arrays.pop(k)}) for k in list(arrays)])
    assert np.array_equal(logits(load_adapter(llama(), tmp_path).eval()), logits(model))


def test_layers_chosen_by_number_and_modules_left_out(tmp_path):
    model = trained(llama(), target_modules=r"layers\.1\..*q_proj")
    save_adapter(model, tmp_path)
    for fields in (
        {"layers_to_transform": [1]},
        {"layers_to_transform": 1, "layers_pattern": "layers"},
        {"layers_to_transform": [1], "layers_pattern": ["h", "layers"]},
        {"exclude_modules": ["layers.0.self_attn.q_proj"]},
        {"exclude_modules": r"model\.layers\.0\..*"},
    ):
        edit(tmp_path, target_modules=["q_proj"], **{"layers_to_transform": None, "exclude_modules": None, **fields})
        assert np.array_equal(logits(load_adapter(llama(), tmp_path).eval()), logits(model)), fields
    edit(tmp_path, exclude_modules=None, layers_to_transform=[0])
    with pytest.raises(ValueError, match="missing .*layers.0.*left over .*layers.1"):
        load_adapter(llama(), tmp_path)


def test_sub_folders_of_named_adapters(tmp_path):
    model = trained(llama(), adapter_name="second")
    save_adapter(model, tmp_path / "second")
    assert np.array_equal(logits(load_adapter(llama(), tmp_path, "second").eval()), logits(model))
    with pytest.raises(FileNotFoundError, match="in its sub-folders second; name one of them"):
        load_adapter(llama(), tmp_path)


def test_an_adapted_head_comes_with_the_base_s_own_weight_or_another_s(tmp_path):
    model = trained(llama(), target_modules=["lm_head"])
    save_adapter(model, tmp_path)
    key = "base_model.model.lm_head.base_layer.weight"
    weight = model.lm_head.base_layer.weight.data
    damage(tmp_path, lambda arrays: arrays.update({key: weight}))
    assert np.array_equal(logits(load_adapter(llama(), tmp_path).eval()), logits(model))
    damage(tmp_path, lambda arrays: arrays.update({key: weight + np.float32(1)}))
    with pytest.raises(ValueError, match="trained over another base"):
        load_adapter(llama(), tmp_path)


def test_the_names_and_fields_are_exactly_pefts(tmp_path):
    save_adapter(trained(llama(), modules_to_save=["lm_head"]), tmp_path, base_model_name_or_path="some/base")
    wanted = {
        f"base_model.model.model.layers.{i}.self_attn.{p}_proj.lora_{m}.weight"
        for i in (0, 1)
        for p in "qkvo"
        for m in "AB"
    } | {"base_model.model.lm_head.weight"}
    arrays = keys_of(tmp_path)
    assert set(arrays) == wanted
    assert arrays[LAYER + "k_proj.lora_A.weight"].shape == (4, 64) and arrays[LAYER + "k_proj.lora_B.weight"].shape == (
        32,
        4,
    )
    assert config_of(tmp_path) == {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "some/base", "r": 4,
        "lora_alpha": 8.0, "lora_dropout": 0.0,
        "target_modules": ["k_proj", "o_proj", "q_proj", "v_proj"], "bias": "none",
        "fan_in_fan_out": False, "use_rslora": False, "use_dora": False, "rank_pattern": {}, "alpha_pattern": {},
        "modules_to_save": ["lm_head"], "init_lora_weights": True, "inference_mode": True,
    }  # fmt: skip


@pytest.mark.parametrize(
    "targets",
    [["q_proj", "k_proj", "v_proj", "o_proj"], r".*self_attn\..*", "full paths"],
)
def test_every_way_to_say_the_targets(tmp_path, targets):
    model = trained(llama())
    save_adapter(model, tmp_path)
    full = [f"model.layers.{i}.self_attn.{p}_proj" for i in (0, 1) for p in "qkvo"]
    edit(tmp_path, target_modules=full if targets == "full paths" else targets)
    assert np.array_equal(logits(load_adapter(llama(), tmp_path).eval()), logits(model))


def test_the_least_config_there_is(tmp_path):
    model = trained(llama(), rank=8, alpha=8.0, target_modules=["q_proj", "v_proj"])
    save_adapter(model, tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    assert np.array_equal(logits(load_adapter(llama(), tmp_path).eval()), logits(model))
    save_adapter(trained(llama(), rank=8, alpha=8.0), tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(ValueError, match="left over .*k_proj.*names no target_modules, which means q_proj, v_proj"):
        load_adapter(llama(), tmp_path)
    save_adapter(trained(gpt(), rank=8, alpha=8.0, target_modules=["c_attn"]), tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    load_adapter(gpt(), tmp_path)
    save_adapter(trained(other(), rank=8, alpha=8.0), tmp_path)  # of no family: the keys say it
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    load_adapter(other(), tmp_path)


def test_all_linear(tmp_path):
    model = trained(llama(), target_modules="all-linear")
    save_adapter(model, tmp_path)
    edit(tmp_path, target_modules="all-linear")
    assert np.array_equal(logits(load_adapter(llama(), tmp_path).eval()), logits(model))


def test_float16_adapters_are_loaded_as_floats(tmp_path):
    save_adapter(trained(llama()), tmp_path)
    half = {k: v.astype(np.float16) for k, v in keys_of(tmp_path).items()}
    safetensors_file.write(tmp_path / "adapter_model.safetensors", half)
    model = load_adapter(llama(), tmp_path)
    a = model.layers[0].self_attn.q_proj.lora_A["default"].data
    assert a.dtype == np.float32 and np.array_equal(a, half[LAYER + "q_proj.lora_A.weight"])


def test_nf4_bases(tmp_path):
    model = trained(llama())
    quantize_base(model)
    save_adapter(model, tmp_path)
    base = llama()
    quantize_base(base)
    plain = logits(base)
    assert np.array_equal(logits(load_adapter(base, tmp_path).eval()), logits(model))
    assert np.array_equal(logits(disable_lora(base)), plain)
    save_adapter(apply_qlora(llama(), verbose=False), tmp_path / "q")
    load_adapter(base, tmp_path / "q", "second")


def test_merged_models(tmp_path):
    first, second = trained(llama()), trained(llama(), rank=2)
    for p in second.parameters():
        p.data = p.data if not p.requires_grad else p.data * np.float32(2)
    save_adapter(second, tmp_path / "2")
    save_adapter(first, tmp_path / "1")
    both = merge_lora(load_adapter(llama(), tmp_path / "1", "one")).eval()
    load_adapter(both, tmp_path / "2", "two")
    assert np.array_equal(logits(both), logits(merge_lora(second)))
    assert np.array_equal(logits(unmerge_lora(both)), logits(unmerge_lora(second)))
    set_adapter(both, "one")
    assert np.array_equal(logits(both), logits(first))
    save_adapter(merge_lora(both), tmp_path / "again")
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "1" / file).read_bytes() == (tmp_path / "again" / file).read_bytes()


def test_the_same_adapter_is_overwritten_also_while_merged(tmp_path):
    model = trained(llama())
    save_adapter(model, tmp_path)
    other = merge_lora(apply_lora(llama(), 4, 8.0, verbose=False).eval())
    load_adapter(other, tmp_path)
    assert np.array_equal(logits(other), logits(merge_lora(model)))
    with pytest.raises(ValueError, match="another adapter_name"):
        load_adapter(trained(llama(), rank=2), tmp_path)


def test_trainable_and_the_generator(tmp_path):
    save_adapter(trained(llama()), tmp_path)
    model, place = llama(), random.default.state
    load_adapter(model, tmp_path, trainable=True)
    assert random.default.state == place
    assert {n.rpartition(".")[0].rpartition(".")[2] for n, p in model.named_parameters() if p.requires_grad} == {
        "lora_A",
        "lora_B",
    }


def damage(folder, edit_arrays):
    arrays = keys_of(folder)
    edit_arrays(arrays)
    safetensors_file.write(folder / "adapter_model.safetensors", arrays)


KEY = LAYER + "q_proj.lora_A.weight"


@pytest.mark.parametrize(
    "edit_arrays, said",
    [
        (lambda a: a.pop(KEY), "missing .*q_proj.lora_A"),
        (
            lambda a: a.update({KEY.replace("q_proj", "q_prj"): a.pop(KEY)}),
            "missing.*left over.*did you mean .*q_proj.lora_A",
        ),
        (lambda a: a.update({KEY.removeprefix("base_model.model."): a.pop(KEY)}), "did you mean base_model"),
        (lambda a: a.update({"base_model.model.lm_head.weight": np.zeros((80, 64), np.float32)}), "left over"),
        (lambda a: a.update({LAYER + "q_proj.base_layer.bias": np.zeros(64, np.float32)}), "left over"),
        (lambda a: a.update({LAYER + "q_proj.lora_magnitude_vector": np.zeros(64, np.float32)}), "left over"),
        (lambda a: a.update({"base_model.model.model.embed_tokens.lora_embedding_A": a.pop(KEY)}), "an embedding"),
        (lambda a: a.update({KEY: a[KEY][:3]}), r"shape \(3, 64\).*\(4, 64\)"),
        (lambda a: a.update({KEY: a[KEY].astype(np.int64)}), "int64"),
    ],
)
def test_what_does_not_fit_is_one_error_and_changes_nothing(tmp_path, edit_arrays, said):
    save_adapter(trained(llama()), tmp_path)
    damage(tmp_path, edit_arrays)
    model = llama()
    before, weights = logits(model), dict(model.state_dict())
    with pytest.raises(ValueError, match=said):
        load_adapter(model, tmp_path)
    assert dict(model.state_dict()) == weights and np.array_equal(logits(model), before)
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    "fields",
    [
        {"use_dora": True},
        {"bias": "some"},
        {"lora_bias": True},
        {"target_parameters": ["x"]},
        {"trainable_token_indices": [1]},
        {"layer_replication": [[0, 1]]},
        {"layers_to_transform": ["x"]},
        {"exclude_modules": 5},
        {"modules_to_save": "norm"},
        {"rank_pattern": {"q_proj": 2.5}},
        {"alpha_pattern": {"q_proj": "x"}},
        {"r": True},
        {"r": 0},
        {"lora_alpha": -1},
        {"lora_dropout": 2},
        {"peft_type": "LOHA"},
        {"layers_to_transform": [0]},
        {"init_lora_weights": "pissa_niter_4"},
        {"modules_to_save": ["lm_head"]},
        {"target_modules": "("},
        {"rank_pattern": {"(": 3}},
        {"r": 8},
    ],
)
def test_configs_that_are_not_understood(tmp_path, fields):
    save_adapter(trained(llama()), tmp_path)
    edit(tmp_path, **fields)
    model = llama()
    weights = dict(model.state_dict())
    with pytest.raises(ValueError):
        load_adapter(model, tmp_path)
    assert dict(model.state_dict()) == weights


def test_missing_files_and_models_without_adapters(tmp_path):
    with pytest.raises(FileNotFoundError, match="adapter_config.json"):
        load_adapter(llama(), tmp_path)
    save_adapter(trained(llama()), tmp_path)
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "adapter_model.bin")
    with pytest.raises(ValueError, match="pickled"):
        load_adapter(llama(), tmp_path)
    with pytest.raises(RuntimeError, match="apply_lora"):
        save_adapter(llama(), tmp_path / "x")
    with pytest.raises(ValueError, match="no adapter 'x'"):
        save_adapter(trained(llama()), tmp_path / "x", "x")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    "storage, settings",
    [("float32", None), ("float16", None), ("bfloat16", None), ("nf4", (64, True)), ("nf4", (32, False))],
)
def test_the_adapter_tells_what_it_was_trained_over(tmp_path, storage, settings):
    model = llama()
    if settings:
        quantize_base(model, *settings)
    elif storage != "float32":
        model = DecoderModel(80, 64, 2, 4, **llama_shape(), seed=1, storage=storage)
    save_adapter(trained(model), tmp_path)
    told = {"storage": storage} | ({"block_size": settings[0], "double_quant": settings[1]} if settings else {})
    assert trained_over(tmp_path) == told
    assert not any("tinyllm" in field for field in config_of(tmp_path))  # PEFT knows its own fields only
    damage(tmp_path, lambda arrays: None)  # as another library writes it
    assert trained_over(tmp_path) == {} == trained_over(tmp_path / "nowhere")


@pytest.mark.parametrize("said", ["nf4", "{}", '{"storage": "int3"}', '{"storage": "nf4"}', "[]"])
def test_a_damaged_note_about_the_base(tmp_path, said):
    safetensors_file.write(tmp_path / "adapter_model.safetensors", {}, {"tinyllm.base": said})
    with pytest.raises(ValueError, match="tinyllm.base"):
        trained_over(tmp_path)


@pytest.mark.parametrize("said", [5, [5], {"q_proj": 1}])
def test_target_modules_of_another_type_in_a_file(tmp_path, said):
    save_adapter(trained(llama()), tmp_path)
    edit(tmp_path, target_modules=said)
    with pytest.raises(ValueError, match="target_modules"):
        load_adapter(llama(), tmp_path)
