"""QLoRA: a base in four bits that never becomes floats, and every verb of LoRA over it."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyllm.backend.cpu.threads import get_num_threads
from tinyllm.backend.random import manual_seed
from tinyllm.frozen.nf4 import BLOCK_SIZES, NF4Weight, dequantize_nf4, quantize_nf4
from tinyllm.frozen.weight import FrozenWeight
from tinyllm.lora import (
    LoRALinear,
    adapter_configs,
    apply_lora,
    disable_lora,
    enable_lora,
    get_lora_parameters,
    lora_layers,
    merge_lora,
    set_adapter,
    unmerge_lora,
)
from tinyllm.models import DecoderModel
from tinyllm.nn import Linear, Module
from tinyllm.optim import AdamW
from tinyllm.qlora import apply_qlora, get_qlora_parameters, quantize_base
from tinyllm.tensor import Tensor

IDS = np.array([[1, 2, 3, 4], [5, 6, 7, 8]])


def make(dtype=np.float32, seed=0, **options):
    return DecoderModel(20, 32, 2, 2, max_seq_len=8, dtype=dtype, seed=seed, **options)


def adapted(dtype=np.float32, options=None, **kwargs):
    model = apply_qlora(make(dtype, **(options or {})), 4, 8.0, verbose=False, **kwargs)
    rng = np.random.default_rng(1)
    for p in get_qlora_parameters(model):
        p.data = (p.data + 0.3 * rng.standard_normal(p.shape)).astype(p.dtype)
    return model


def densified(model):
    """The same model with float weights where it holds four bits."""
    twin = make(np.float64)
    state = {}
    for name, w in model.state_dict().items():
        if "lora" not in name:
            state[name.replace(".base_layer", "")] = w.dense() if isinstance(w, FrozenWeight) else w.data
    twin.load_state_dict(state)
    return twin


@pytest.mark.parametrize(
    "options", [{}, {"tie_embeddings": False}, {"activation": "swiglu", "qkv": "separate", "num_kv_heads": 1}]
)
@pytest.mark.parametrize("target", [None, "all-linear", ["down_proj"]])
def test_fault_8_every_decoder_linear_is_quantised_and_never_the_head(options, target):
    model = apply_qlora(make(**options), target_modules=target, verbose=False)
    for path, module in model.named_modules():
        if isinstance(module, Linear):
            assert isinstance(module.weight, NF4Weight) is not path.endswith("lm_head"), path
    tied = model.lm_head.weight is model.embed_tokens.weight
    assert tied is model.config.tie_embeddings  # fault 10: never untied in silence
    assert model.num_parameters() == make(**options).num_parameters() + model.num_parameters(trainable_only=True)


def test_fault_1_a_weight_takes_a_little_over_four_bits():
    model = apply_qlora(DecoderModel(20, 256, 1), target_modules="all-linear", verbose=False)
    for _, layer in lora_layers(model):
        w = layer.base_layer.weight
        assert w.packed.nbytes == w.size // 2 and 4.12 < 8 * w.nbytes / w.size < 4.14


@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([33, 80, 96]),
    st.integers(1, 70),
    st.sampled_from(BLOCK_SIZES),
    st.booleans(),
)
def test_a_quantised_layer_computes_with_the_public_dequantisation(seed, n_in, n_out, block_size, double):
    class One(Module):
        def __init__(self):
            self.q_proj = Linear(n_in, n_out, dtype=np.float64)

    manual_seed(seed)
    net = One()
    indices, scales = quantize_nf4(net.q_proj.weight.data, block_size)
    apply_qlora(net, 2, block_size=block_size, double_quant=double, verbose=False)
    stored = net.q_proj.base_layer.weight
    w = dequantize_nf4(indices, stored.scales(0, len(scales)), (n_out, n_in), block_size, np.float64)
    assert double or np.array_equal(stored.scales(0, len(scales)), scales)
    x = np.random.default_rng(seed).standard_normal((3, n_in))
    budget = (n_in + 2) * np.finfo(float).eps * (np.abs(x) @ np.abs(w).T)
    assert (np.abs(net.q_proj(Tensor(x)).data - x @ w.T) <= budget).all()


def test_loss_and_adapter_gradients_are_those_of_the_dense_base():
    model = adapted(np.float64)
    twin = apply_lora(densified(model), 4, 8.0, verbose=False)
    twin.load_state_dict({n: p for n, p in model.named_parameters() if "lora" in n}, strict=False)
    for m in (model, twin):
        m.loss(IDS, IDS).backward()
    for p, q in zip(get_qlora_parameters(model), get_lora_parameters(twin), strict=True):
        assert p.grad.any() and np.abs(p.grad - q.grad).max() <= 1e-12 * max(1, np.abs(q.grad).max())


def test_fault_5_exactly_the_adapters_train_and_the_packed_base_keeps_its_bytes():
    model = adapted(target_modules="all-linear")
    assert all("lora" in n for n, p in model.named_parameters() if p.requires_grad)
    packed = {path: layer.base_layer.weight.packed.tobytes() for path, layer in lora_layers(model)}
    frozen = {n: p.data.copy() for n, p in model.named_parameters() if not p.requires_grad}
    losses, optimiser = [], AdamW(get_qlora_parameters(model), lr=0.01)
    for _ in range(10):
        optimiser.zero_grad()
        loss = model.loss(IDS, IDS)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert packed == {path: layer.base_layer.weight.packed.tobytes() for path, layer in lora_layers(model)}
    assert all(np.array_equal(p.data, frozen[n]) for n, p in model.named_parameters() if n in frozen)


def test_faults_2_and_3_no_float_copy_of_a_layer_outlives_its_tile(monkeypatch):
    monkeypatch.setattr("tinyllm.frozen.weight.TILE_BYTES", 1 << 20)

    class Stack(Module):
        def __init__(self):
            self.layers = [Linear(2048, 2048, bias=False, init=False) for _ in range(4)]
            for i, layer in enumerate(self.layers):
                layer.weight = NF4Weight.quantize(
                    np.random.default_rng(i).standard_normal((2048, 2048)).astype(np.float32)
                )

        def forward(self, x):
            for layer in self.layers:
                x = layer(x)
            return x

    net = Stack()
    x = Tensor(np.full((1, 2048), 1e-3, np.float32), requires_grad=True)
    tracemalloc.start()
    net(x).backward(np.ones((1, 2048), np.float32))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # One layer is 16 MiB in floats; a tile of 1 MiB a thread, what dequantises it, and activations stay well below.
    assert x.grad is not None and peak < (2 + 2 * get_num_threads()) << 20


# --- fault 14: the verbs


def test_fault_14_merge_unmerge_disable_and_enable():
    model = adapted(np.float64, target_modules="all-linear")
    on = model(IDS).data
    off = apply_qlora(make(np.float64), verbose=False)(IDS).data
    packed = {n: w for n, w in model.state_dict().items()}
    assert np.array_equal(disable_lora(model)(IDS).data, off)
    assert np.array_equal(disable_lora(merge_lora(model))(IDS).data, off)
    merged = enable_lora(model)(IDS).data
    assert np.abs(merged - on).max() <= 1e-12 * np.abs(on).max()
    assert np.array_equal(unmerge_lora(model)(IDS).data, on)
    assert all(w is packed[n] for n, w in model.state_dict().items())
    apply_lora(model, 2, adapter_name="second", verbose=False)
    set_adapter(model, "default")
    assert np.array_equal(model(IDS).data, on)


def test_merging_for_good_gives_plain_float_layers():
    model = adapted(np.float64)
    on = model(IDS).data
    merge_lora(model, keep_base=False)
    assert not any(isinstance(m, LoRALinear) for _, m in model.named_modules())
    assert np.abs(model(IDS).data - on).max() <= 1e-12 * np.abs(on).max()


def test_fault_11_the_state_goes_round_and_applies_the_adapter_once():
    model = adapted()
    on = model(IDS).data
    state = merge_lora(model).state_dict()
    fresh = apply_qlora(make(seed=9), 4, 8.0, verbose=False)
    assert fresh.load_state_dict(state) == ([], [])
    assert np.array_equal(fresh(IDS).data, on)


def test_quantising_under_a_merged_adapter_is_felt():
    model = make(np.float64)
    apply_lora(model, verbose=False)
    merge_lora(model)
    quantize_base(model)
    merged = model(IDS).data
    on = unmerge_lora(model)(IDS).data
    assert np.abs(merged - on).max() <= 1e-12 * np.abs(on).max()


# --- refusals


def contents(model):
    return [(n, id(w)) for n, w in model.named_weights()], [(n, id(m)) for n, m in model.named_modules()]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"target_modules": ["nope"]}, "'nope' matches nothing"),
        ({"target_modules": ["lm_head"]}, "tied"),
        ({"block_size": 48}, "block_size 48"),
        ({"rank": 0}, "rank"),
        ({"dropout": 2}, "dropout"),
        ({"modules_to_save": ["nope"]}, "'nope'"),
        ({"rank_pattern": {"nope": 1}}, "'nope'"),
        ({"adapter_name": "a.b"}, "dot"),
    ],
)
def test_a_failed_apply_quantises_nothing(options, message):
    model = make()
    before = contents(model)
    with pytest.raises(ValueError, match=message):
        apply_qlora(model, verbose=False, **options)
    assert contents(model) == before and not adapter_configs(model)
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("name", ["foo", "config", "tied_head"])
def test_the_options_are_those_of_apply_lora(name):
    with pytest.raises(TypeError, match=f"apply_qlora has no parameter '{name}'.*use_dora, bias, verbose$"):
        apply_qlora(make(), **{name: 1})


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_fault_18_non_finite_weights_are_refused_by_name_before_anything_changes(bad):
    model = make()
    model.layers[1].mlp.up_proj.weight.data[3, 4] = bad
    before = contents(model)
    with pytest.raises(
        ValueError, match=r"'layers.1.mlp.up_proj.weight' has 1 non-finite value, the first at \[3, 4\]"
    ):
        apply_qlora(model, verbose=False)
    assert contents(model) == before


def test_half_precision_is_not_quantised_again():
    with pytest.raises(ValueError, match="layers.0.self_attn.qkv_proj is stored as float16.*storage='nf4'"):
        apply_qlora(make(storage="float16"), verbose=False)


def test_applying_twice_is_refused_and_a_stored_model_needs_no_quantising():
    model = adapted()
    with pytest.raises(ValueError, match="already"):
        apply_qlora(model, verbose=False)
    stored = make(storage="nf4")
    packed = stored.layers[0].mlp.up_proj.weight
    apply_qlora(stored, target_modules="all-linear", verbose=False)
    assert stored.layers[0].mlp.up_proj.base_layer.weight is packed
    stored.loss(IDS, IDS).backward()
    assert all(p.grad is not None for p in get_qlora_parameters(stored))


def test_modules_to_save_stay_floats():
    model = apply_qlora(make(tie_embeddings=False), modules_to_save=["up_proj", "lm_head"], verbose=False)
    quantize_base(model)
    for path, module in model.named_modules():
        if isinstance(module, Linear):
            assert isinstance(module.weight, FrozenWeight) is not any(s in path for s in ("up_proj", "lm_head")), path
    model.loss(IDS, IDS).backward()
    assert all(p.grad is not None for p in get_qlora_parameters(model))
    with pytest.raises(ValueError, match="'mlp', which is stored frozen"):
        apply_qlora(make(storage="nf4"), modules_to_save=["mlp"], verbose=False)


def test_fault_16_the_default_dtype_keeps_large_weights():
    w = np.full((1, 32), 1e5, np.float32)
    assert np.array_equal(dequantize_nf4(*quantize_nf4(w, 32), w.shape, 32), w)
    assert np.array_equal(NF4Weight.quantize(w, 32, double_quant=False).dense(), w)


def test_checkpointing_under_qlora_is_bit_for_bit():
    grads = []
    for checkpointing in (False, True):
        manual_seed(4)
        model = adapted(dropout=0.2)
        model.checkpointing = checkpointing
        model.loss(IDS, IDS).backward()
        grads.append([p.grad for p in get_qlora_parameters(model)])
    assert all(g.any() and np.array_equal(g, h) for g, h in zip(*grads, strict=True))


@pytest.mark.parametrize(
    "made, asked", [((32, True), (64, True)), ((64, False), (64, True)), ((64, True), (128, True))]
)
def test_a_base_in_other_blocks_is_not_taken_for_what_was_asked(made, asked):
    model = make()
    quantize_base(model, *made)
    before = dict(model.state_dict())
    with pytest.raises(ValueError, match=f"block_size={made[0]} and double_quant={made[1]}; pass these"):
        apply_qlora(model, block_size=asked[0], double_quant=asked[1], verbose=False)
    assert dict(model.state_dict()) == before
    apply_qlora(model, block_size=made[0], double_quant=made[1], verbose=False)
    apply_qlora(make(storage="nf4"), verbose=False)
