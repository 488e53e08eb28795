"""LoRA: what is adapted, what trains, what an adapted layer computes; faults of other engines have tests."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyllm import functional as F
from tinyllm import lora
from tinyllm.backend.random import manual_seed
from tinyllm.lora import (
    Adapter,
    LoRAConfig,
    LoRALinear,
    SavedModule,
    apply_lora,
    disable_lora,
    enable_lora,
    get_lora_parameters,
    lora_layers,
    merge_lora,
    set_adapter,
    unmerge_lora,
)
from tinyllm.models import DecoderModel, head
from tinyllm.nn import Linear, Module
from tinyllm.optim import AdamW
from tinyllm.tensor import Tensor

LLAMA = {"qkv": "separate", "positions": "rope", "norm": "rms_norm", "activation": "swiglu", "bias": False}
IDS = np.array([[1, 2, 3, 4], [5, 6, 7, 8]])
VERBS = (disable_lora, enable_lora, merge_lora, unmerge_lora)


def make(dtype=np.float32, seed=0, **options):
    return DecoderModel(20, 16, 2, 2, max_seq_len=8, dtype=dtype, seed=seed, **options)


def adapted(*args, dtype=np.float32, options=None, **kwargs):
    """A model whose adapter is no longer zero."""
    model = apply_lora(make(dtype, **(options or {})), *args, verbose=False, **kwargs)
    shake(model)
    return model


def shake(model, seed=1):
    rng = np.random.default_rng(seed)
    for p in get_lora_parameters(model):
        p.data = (p.data + rng.standard_normal(p.shape)).astype(p.dtype)


def picture(model):
    """All that a failed call must leave alone."""
    modules = [(path, id(m)) for path, m in model.named_modules()]
    weights = [(n, id(w), getattr(w, "data", w), w.requires_grad) for n, w in model.named_weights()]
    return modules, weights, list(lora.adapter_configs(model))


def train_once(model):
    model.zero_grad()
    model.loss(IDS, IDS).backward()
    AdamW(get_lora_parameters(model), lr=0.05).step()


# --- initialisation and scale


@given(st.integers(8, 2000), st.integers(1, 64))
def test_fault_4_a_is_uniform_with_the_bound_of_its_input(n_in, rank):
    manual_seed(n_in)
    layer = LoRALinear(Linear(n_in, 3, init=False))
    layer.adapters["x"] = Adapter(layer.base_layer, rank, 1.0)
    a, bound = layer.lora_A["x"].data, 1 / math.sqrt(n_in)
    assert a.shape == (rank, n_in) and layer.lora_B["x"].shape == (3, rank)
    assert np.abs(a).max() <= np.float32(bound) and not layer.lora_B["x"].data.any()
    n = a.size  # the variance of a square of a uniform is 4/45 bound^4; six sigma
    assert abs((a.astype(float) ** 2).mean() - bound**2 / 3) <= 6 * math.sqrt(4 / 45 / n) * bound**2


def test_a_fresh_adapter_changes_no_bit():
    model = make()
    before = model(IDS).data
    assert np.array_equal(apply_lora(model, target_modules="all-linear", verbose=False)(IDS).data, before)


@given(st.integers(1, 8), st.floats(0.5, 64), st.booleans(), st.integers(0, 99))
def test_an_adapted_layer_follows_its_formula(rank, alpha, rslora, seed):
    rng = np.random.default_rng(seed)
    layer = LoRALinear(Linear(6, 5, dtype=np.float64))
    layer.adapters["x"] = Adapter(layer.base_layer, rank, LoRAConfig(rank, alpha, use_rslora=rslora).scale_of("q"))
    layer.active = ("x",)
    a, b = rng.standard_normal((rank, 6)), rng.standard_normal((5, rank))
    layer.lora_A["x"].data, layer.lora_B["x"].data = a, b
    scale = alpha / math.sqrt(rank) if rslora else alpha / rank
    x, w = rng.standard_normal((2, 3, 6)), layer.base_layer.weight.data
    expected = x @ (w + scale * b @ a).T + layer.base_layer.bias.data
    budget = (20 + rank) * np.finfo(float).eps * (np.abs(x) @ (np.abs(w) + scale * np.abs(b) @ np.abs(a)).T)
    assert (np.abs(layer(Tensor(x)).data - expected) <= budget).all()
    layer.merged = True
    assert (np.abs(layer(Tensor(x)).data - expected) <= budget).all()


def test_the_gradients_of_a_and_b_along_a_random_direction():
    model = adapted(3, 6.0, target_modules="all-linear", dtype=np.float64)
    rng, params = np.random.default_rng(0), get_lora_parameters(model)
    start = [p.data for p in params]
    directions = [rng.standard_normal(p.shape) for p in params]
    model.loss(IDS, IDS).backward()
    slope = sum(float((p.grad * d).sum()) for p, d in zip(params, directions, strict=True))

    def at(t):
        for p, s, d in zip(params, start, directions, strict=True):
            p.data = s + t * d
        return model.loss(IDS, IDS).item()

    h = 5e-5  # with 1e-3 a step is so long that some seeds have not converged
    d = [(at(h / 2**k) - at(-h / 2**k)) / (2 * h / 2**k) for k in range(3)]
    e = [(4 * d[1] - d[0]) / 3, (4 * d[2] - d[1]) / 3]
    assert abs((16 * e[1] - e[0]) / 15 - slope) <= abs(e[1] - e[0]) + 2e3 * np.finfo(float).eps * abs(at(0)) / h


def test_rank_and_alpha_patterns():
    model = adapted(
        4,
        8.0,
        target_modules="all-linear",
        rank_pattern={"up_proj": 2, r"layers\.1\..*out_proj": 3},
        alpha_pattern={"up_proj": 10},
    )
    for path, layer in lora_layers(model):
        rank = 2 if path.endswith("up_proj") else 3 if path == "layers.1.self_attn.out_proj" else 4
        assert layer.lora_A["default"].shape[0] == layer.lora_B["default"].shape[1] == rank, path
        assert layer.adapters["default"].scale == (5.0 if path.endswith("up_proj") else 8 / rank)


# --- what is frozen, what trains


@pytest.mark.parametrize("options", [{}, LLAMA, {"tie_embeddings": False}])
def test_fault_5_exactly_the_adapters_train(options):
    model = apply_lora(make(**options), verbose=False)
    trainable = [n for n, p in model.named_parameters() if p.requires_grad]
    assert trainable and all(".lora_A.default" in n or ".lora_B.default" in n for n in trainable)
    params = get_lora_parameters(model)
    assert [id(p) for p in params] == [id(p) for n, p in model.named_parameters() if n in trainable]
    base = {n: p.data.copy() for n, p in model.named_parameters() if n not in trainable}
    train_once(model)
    train_once(model)
    for n, p in model.named_parameters():
        assert (p.grad is None) is (n not in trainable)
        assert n in trainable or np.array_equal(p.data, base[n])
    assert all(p.grad.any() for p in params)


def test_the_summary_counts_adapters_alone(capsys):
    model = apply_lora(make(), 2)
    expected = sum(
        2 * (layer.base_layer.in_features + layer.base_layer.out_features) for _, layer in lora_layers(model)
    )
    assert model.num_parameters(trainable_only=True) == expected
    assert f"{expected:,} of {model.num_parameters():,}" in capsys.readouterr().out


# --- targets


@pytest.mark.parametrize(
    "options, target, ends",
    [
        ({}, None, {"qkv_proj", "out_proj"}),
        (LLAMA, None, {"q_proj", "k_proj", "v_proj", "out_proj"}),
        ({}, "all-linear", {"qkv_proj", "out_proj", "up_proj", "down_proj"}),
        (LLAMA, "all-linear", {"q_proj", "k_proj", "v_proj", "out_proj", "gate_proj", "up_proj", "down_proj"}),
        ({"tie_embeddings": False}, "all-linear", {"qkv_proj", "out_proj", "up_proj", "down_proj"}),
        ({}, ["c_attn"], {"qkv_proj"}),
        ({}, ["c_attn", "c_proj", "c_fc"], {"qkv_proj", "out_proj", "up_proj", "down_proj"}),
        (LLAMA, ["q_proj", "o_proj"], {"q_proj", "out_proj"}),
        ({}, ["mlp.c_proj"], {"down_proj"}),
        ({}, r".*\.(up|down)_proj", {"up_proj", "down_proj"}),
        ({"tie_embeddings": False}, ["lm_head"], {"lm_head"}),
    ],
)
def test_fault_8_targets_mean_what_the_contract_says(options, target, ends):
    model = apply_lora(make(**options), target_modules=target, verbose=False)
    assert {path.rpartition(".")[2] for path, _ in lora_layers(model)} == ends
    assert len(list(lora_layers(model))) == len(ends) * (1 if ends == {"lm_head"} else 2)


def test_a_whole_name_means_one_layer():
    model = apply_lora(make(), target_modules=["layers.1.mlp.up_proj"], verbose=False)
    assert [path for path, _ in lora_layers(model)] == ["layers.1.mlp.up_proj"]


class Odd(Module):
    def __init__(self):
        self.q_proj, self.eq_proj, self.q_proj_norm = Linear(4, 4), Linear(4, 4), Linear(4, 4)
        self.layers = [Linear(4, 4) for _ in range(12)]


def test_fault_6_a_target_is_a_suffix_never_a_substring():
    model = apply_lora(Odd(), target_modules=["q_proj"], verbose=False)
    assert [path for path, _ in lora_layers(model)] == ["q_proj"]
    model = apply_lora(Odd(), target_modules=["1"], verbose=False)
    assert [path for path, _ in lora_layers(model)] == ["layers.1"]


BAD = [
    ({"target_modules": ["nothing"]}, "'nothing' matches nothing.*qkv_proj"),
    ({"target_modules": ["qkv_proj", "up_prj"]}, "'up_prj' matches nothing; did you mean 'up_proj'"),
    ({"target_modules": "up_proj"}, "matches no linear layer.*up_proj"),
    ({"target_modules": []}, "no target module"),
    ({"target_modules": ["proj"]}, "'proj' matches nothing"),
    ({"rank": 0}, "rank"),
    ({"rank": 2.5}, "rank"),
    ({"alpha": 0}, "alpha"),
    ({"alpha": float("nan")}, "alpha"),
    ({"dropout": 1.0}, "dropout"),
    ({"rank_pattern": {"nope": 2}}, "'nope' matches none"),
    ({"alpha_pattern": {"up_proj": 2.0}}, "'up_proj' matches none"),
    ({"rank_pattern": {"qkv_proj": 0}}, "'qkv_proj' has 0"),
    ({"modules_to_save": ["nrm"]}, "'nrm', which matches nothing.*norm"),
    ({"modules_to_save": ["qkv_proj"]}, "cannot be a target too"),
    ({"modules_to_save": ["self_attn"]}, "cannot be a target too"),
    ({"adapter_name": "a.b"}, "dot"),
    ({"adapter_name": ""}, "empty"),
]


@pytest.mark.parametrize("options, message", BAD)
@pytest.mark.parametrize("second", [False, True])
def test_fault_7_nothing_fails_silently_and_a_failed_apply_changes_nothing(options, message, second):
    model = adapted() if second else make()
    options = {"adapter_name": "second", **options} if second else options
    before, y = picture(model), model(IDS).data
    with pytest.raises(ValueError, match=message):
        apply_lora(model, verbose=False, **options)
    assert picture(model) == before and np.array_equal(model(IDS).data, y)


@pytest.mark.parametrize("name", [["second"], 2, None])
def test_an_adapter_is_called_by_a_text(name):
    model = adapted()
    before = picture(model)
    with pytest.raises(TypeError, match="an adapter's name is a text"):
        apply_lora(model, adapter_name=name, verbose=False)
    assert picture(model) == before


def test_fault_9_applying_twice_is_refused_by_name_and_never_nests():
    model = adapted()
    before = picture(model)
    with pytest.raises(ValueError, match="'default' already"):
        apply_lora(model, verbose=False)
    assert picture(model) == before
    apply_lora(model, target_modules="all-linear", adapter_name="other", verbose=False)
    assert all(type(layer.base_layer) is Linear for _, layer in lora_layers(model))


@pytest.mark.parametrize("target", [["lm_head"], ".*lm_head", ["qkv_proj", "lm_head"]])
def test_fault_10_a_tied_head_is_refused(target):
    model = make()
    before = picture(model)
    with pytest.raises(ValueError, match="lm_head is tied to the embedding"):
        apply_lora(model, target_modules=target, verbose=False)
    assert picture(model) == before


def test_an_untied_head_can_be_adapted():
    model = adapted(target_modules=["lm_head"], options={"tie_embeddings": False}, dtype=np.float64)
    loss = model.loss(IDS, IDS)
    loss.backward()
    head, hidden = model.lm_head, model.hidden(IDS).data
    logits = hidden @ head.folded()[0].data.T
    expected = np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, IDS[..., None], -1)[..., 0]
    assert abs(loss.item() - expected.mean()) <= 1e-13 * max(1, np.abs(logits).max())
    assert all(p.grad is not None for p in get_lora_parameters(model))


# --- state


def saved_state(model):
    return {n: w if not hasattr(w, "data") else w.data.copy() for n, w in model.state_dict().items()}


@pytest.mark.parametrize("saver", VERBS)
@pytest.mark.parametrize("loader", VERBS)
def test_fault_11_saving_in_any_state_and_loading_in_any_state_applies_the_adapter_once(saver, loader):
    model = adapted(dtype=np.float64)
    expected, state = model(IDS).data, saved_state(saver(model))
    fresh = loader(apply_lora(make(np.float64, seed=5), verbose=False))
    fresh.load_state_dict(state)
    enable_lora(fresh)
    assert np.abs(fresh(IDS).data - expected).max() <= 1e-12 * np.abs(expected).max()
    assert np.array_equal(unmerge_lora(fresh)(IDS).data, expected)


def test_the_adapter_alone_can_be_saved_and_loaded():
    model = adapted()
    state = {n: p for n, p in model.named_parameters() if p.requires_grad}
    fresh = apply_lora(make(), verbose=False)
    missing, unexpected = fresh.load_state_dict(state, strict=False)
    assert not unexpected and all("lora" not in n for n in missing)
    assert np.array_equal(fresh(IDS).data, model(IDS).data)


SEQUENCES = ["dde", "md", "dmeu", "deme", "mm", "uu", "mdue", "mudme", "ddmmuuee"]


@pytest.mark.parametrize("sequence", SEQUENCES)
def test_fault_12_outputs_follow_enabled_alone(sequence):
    model = adapted(dtype=np.float64)
    on = model(IDS).data
    off = disable_lora(model)(IDS).data
    enable_lora(model)
    enabled = merged = None
    for letter in sequence:
        {"d": disable_lora, "e": enable_lora, "m": merge_lora, "u": unmerge_lora}[letter](model)
        enabled = letter == "e" if letter in "de" else enabled
        merged = letter == "m" if letter in "mu" else merged
        y = model(IDS).data
        if enabled is False:
            assert np.array_equal(y, off)
        elif not merged:
            assert np.array_equal(y, on)
        else:
            assert np.abs(y - on).max() <= 1e-12 * np.abs(on).max()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_fault_13_merge_and_unmerge_is_the_identity_bit_for_bit(dtype):
    model = adapted(dtype=dtype, target_modules="all-linear")
    base = {n: (w.data, w.data.copy()) for n, w in model.named_parameters()}
    on = model(IDS).data
    for _ in range(3):
        unmerge_lora(merge_lora(model))
        assert np.array_equal(model(IDS).data, on)
        assert all(p.data is base[n][0] and np.array_equal(p.data, base[n][1]) for n, p in model.named_parameters())


def test_off_is_the_base_bit_for_bit():
    base = make()(IDS).data
    model = adapted(dropout=0.5)
    for verb in (disable_lora, merge_lora, disable_lora, unmerge_lora):
        verb(model)
        assert np.array_equal(disable_lora(model)(IDS).data, base)


def test_merging_for_good_frees_the_adapters_and_says_why_it_cannot_go_back():
    model = adapted(dtype=np.float64)
    on = model(IDS).data
    assert merge_lora(model, keep_base=False) is model
    assert np.abs(model(IDS).data - on).max() <= 1e-12 * np.abs(on).max()
    assert not list(lora_layers(model)) and set(model.state_dict()) == set(make().state_dict())
    assert merge_lora(model) is model
    for verb in (unmerge_lora, disable_lora, enable_lora, get_lora_parameters):
        with pytest.raises(RuntimeError, match="keep_base=False"):
            verb(model)


def test_after_merging_for_good_a_new_adapter_can_be_applied_and_merged():
    model = merge_lora(adapted(dtype=np.float64), keep_base=False)
    apply_lora(model, verbose=False)
    shake(model, 9)
    on = model(IDS).data
    merge_lora(model, keep_base=False)
    assert not list(lora_layers(model))
    assert np.abs(model(IDS).data - on).max() <= 1e-12 * np.abs(on).max()


def test_disabled_adapters_are_not_merged_for_good():
    model = disable_lora(adapted())
    with pytest.raises(RuntimeError, match="enable_lora"):
        merge_lora(model, keep_base=False)
    assert list(lora_layers(model))


@pytest.mark.parametrize("verb", [*VERBS, get_lora_parameters])
def test_a_model_without_adapters_says_so(verb):
    with pytest.raises(RuntimeError, match="apply_lora"):
        verb(make())


def test_merging_again_sees_what_an_optimiser_changed_in_place():
    model = merge_lora(adapted(dtype=np.float64))
    for p in get_lora_parameters(model):
        p.data *= 1.5
    y = merge_lora(model)(IDS).data
    expected = unmerge_lora(model)(IDS).data
    assert np.abs(y - expected).max() <= 1e-12 * np.abs(expected).max()


def test_training_a_merged_or_disabled_adapter_is_refused_with_the_reason():
    for verb in (merge_lora, disable_lora):
        with pytest.raises(RuntimeError, match="merged or disabled"):
            verb(adapted()).loss(IDS, IDS).backward()


# --- several adapters, modules_to_save, dropout


def test_several_adapters_add_up_and_train_apart():
    model = adapted(2, 4.0, dtype=np.float64)
    apply_lora(model, 3, 9.0, target_modules=["up_proj", "out_proj"], adapter_name="second", verbose=False)
    assert all(".second" in n for n, p in model.named_parameters() if p.requires_grad)
    shake(model, 2)
    layer = model.layers[0].self_attn.out_proj
    x = Tensor(np.random.default_rng(0).standard_normal((3, 16)))
    w, bias = layer.base_layer.weight.data, layer.base_layer.bias.data
    delta = {
        "default": 2.0 * layer.lora_B["default"].data @ layer.lora_A["default"].data,
        "second": 3.0 * layer.lora_B["second"].data @ layer.lora_A["second"].data,
    }
    for chosen in (["default"], ["second"], ["default", "second"], "second", ["second", "second"], []):
        set_adapter(model, chosen)
        names = {chosen} if isinstance(chosen, str) else set(chosen)
        expected = x.data @ (w + sum(delta[n] for n in names)).T + bias
        assert np.abs(layer(x).data - expected).max() <= 1e-12 * np.abs(expected).max()
        assert {n.rpartition(".")[2] for n, p in model.named_parameters() if p.requires_grad} == names
    with pytest.raises(ValueError, match="no adapter 'third'; there are: default, second"):
        set_adapter(model, ["default", "third"])


def test_modules_to_save_train_whole_and_step_aside_when_disabled():
    model = make(tie_embeddings=False)
    base = model(IDS).data
    apply_lora(model, modules_to_save=["norm", "lm_head"], verbose=False)
    assert np.array_equal(model(IDS).data, base)
    names = {n for n, p in model.named_parameters() if p.requires_grad and "lora" not in n}
    assert names == {"norm.copies.default.weight", "norm.copies.default.bias", "lm_head.copies.default.weight"}
    original = [(p, p.data.copy()) for p in model.norm.original.parameters()]
    train_once(model)
    on = model(IDS).data
    assert not np.array_equal(on, base) and all(np.array_equal(p.data, bits) for p, bits in original)
    assert np.array_equal(disable_lora(model)(IDS).data, base)
    assert np.array_equal(enable_lora(model)(IDS).data, on)
    merge_lora(model, keep_base=False)
    assert np.abs(model(IDS).data - on).max() <= 1e-4 and not isinstance(model.norm, SavedModule)


def test_a_saved_head_is_no_target_of_a_second_adapter():
    model = make(tie_embeddings=False)
    apply_lora(model, modules_to_save=["lm_head"], verbose=False)
    apply_lora(model, target_modules="all-linear", adapter_name="second", verbose=False)
    assert all("lm_head" not in path for path, _ in lora_layers(model))
    assert all(".second" in n for n, p in model.named_parameters() if p.requires_grad)


def test_dropout_is_on_the_adapter_path_alone():
    layer = LoRALinear(Linear(6, 5, dtype=np.float64))
    layer.adapters["x"] = Adapter(layer.base_layer, 2, 1.0, 0.5)
    layer.active = ("x",)
    x = Tensor(np.ones((200, 6)))
    assert np.array_equal(layer(x).data, layer.base_layer(x).data)  # B is 0: the base path has no dropout
    layer.lora_B["x"].data = np.ones((5, 2))
    assert len(np.unique(layer(x).data.round(9), axis=0)) > 10
    layer.eval()
    assert len(np.unique(layer(x).data.round(9), axis=0)) == 1


def test_an_adapter_applied_in_evaluation_mode_stays_there():
    model = apply_lora(make().eval(), dropout=0.5, verbose=False)
    assert not any(m.training for _, m in model.named_modules())


def test_checkpointing_trains_adapters_bit_for_bit():
    grads = []
    for checkpointing in (False, True):
        manual_seed(2)
        model = adapted(dropout=0.3)
        model.checkpointing = checkpointing
        manual_seed(3)
        model.loss(IDS, IDS).backward()
        grads.append([p.grad for p in get_lora_parameters(model)])
    assert all(g.any() and np.array_equal(g, h) for g, h in zip(*grads, strict=True))


def test_a_float32_adapter_stays_float32():
    model = adapted(3, 7)
    train_once(model)
    assert {p.dtype.name for p in model.parameters()} == {"float32"} and model(IDS).dtype == np.float32
    assert merge_lora(model)(IDS).dtype == np.float32


def test_layers_that_a_second_adapter_adds_join_the_merged_ones():
    model = merge_lora(adapted())
    apply_lora(model, target_modules="all-linear", adapter_name="second", verbose=False)
    assert all(layer.merged for _, layer in lora_layers(model))


@pytest.mark.parametrize(
    "options",
    [{"target_modules": "*"}, {"rank_pattern": {"(": 2}}, {"alpha_pattern": {"[": 2}}, {"rank_pattern": {"a)(b": 2}}],
)
def test_what_is_no_regular_expression(options):
    model = make()
    before = dict(model.state_dict())
    with pytest.raises(ValueError, match="is no regular expression"):
        apply_lora(model, verbose=False, **options)
    assert dict(model.state_dict()) == before


@pytest.mark.parametrize("targets", [5, True, {"q_proj": 1}, [5], ["qkv_proj", None], b"qkv_proj"])
def test_target_modules_of_another_type(targets):
    with pytest.raises(TypeError, match="target_modules must be a string or a list of strings"):
        apply_lora(make(), target_modules=targets, verbose=False)


@pytest.mark.parametrize("kind", ["adapted", "merged", "saved"])
def test_an_adapted_head_s_loss_never_holds_all_logits(kind, monkeypatch):
    options = {"modules_to_save": ["lm_head"]} if kind == "saved" else {"target_modules": ["lm_head", "qkv_proj"]}
    model = adapted(dtype=np.float64, options={"tie_embeddings": False}, **options)
    if kind == "merged":
        merge_lora(model)
    targets = np.array([[3, -100, 4, 5], [-100, -100, 19, 0]])

    def result(loss):
        model.zero_grad()
        loss().backward() if kind != "merged" else None
        return float(loss().data), [p.grad for p in get_lora_parameters(model) if p.grad is not None]

    wanted = result(lambda: F.cross_entropy(model(IDS), targets))
    seen, plain = [], model.lm_head.forward
    monkeypatch.setattr(model.lm_head, "forward", lambda x: seen.append(x.shape) or plain(x), raising=False)
    monkeypatch.setattr(head, "CHUNK_BYTES", 2 * 20 * 8)  # two rows
    got = result(lambda: model.loss(IDS, targets))
    assert all(math.prod(shape[:-1]) <= 2 for shape in seen) and (not seen) == (kind == "saved")
    assert abs(got[0] - wanted[0]) <= 64 * np.finfo(float).eps * wanted[0]
    assert len(got[1]) == len(wanted[1])
    for g, w in zip(got[1], wanted[1], strict=True):
        assert np.abs(g - w).max() <= 256 * np.finfo(float).eps * max(1, np.abs(w).max())


def test_a_merged_model_says_why_nothing_trains():
    model = merge_lora(adapted())
    with pytest.raises(RuntimeError, match="merged adapters: call unmerge_lora first"):
        model.loss(IDS, IDS).backward()
