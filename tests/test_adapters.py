"""Adapters in PEFT's format: exact names, nothing passes that does not fit, and nothing changes on failure."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tinyllm.adapters import load_adapter, save_adapter, trained_over
from tinyllm.backend import random
from tinyllm.formats import safetensors_file
from tinyllm.lora import apply_lora, disable_lora, merge_lora, set_adapter, unmerge_lora
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


def test_other_models_keep_our_names(tmp_path):
    model = trained(gpt())
    save_adapter(model, tmp_path)
    assert "base_model.model.layers.0.self_attn.qkv_proj.lora_A.weight" in keys_of(tmp_path)
    assert np.array_equal(logits(load_adapter(gpt(), tmp_path).eval()), logits(model))


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
    [None, ["q_proj", "k_proj", "v_proj", "o_proj"], r".*self_attn\..*", "full paths"],
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
        {"fan_in_fan_out": True},
        {"bias": "lora_only"},
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
