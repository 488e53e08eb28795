"""Trained biases: which ones, and that the originals stay and count again when the adapter is off."""

from __future__ import annotations

import numpy as np
import pytest

from tinyllm.lora import (
    apply_lora,
    disable_lora,
    enable_lora,
    get_lora_parameters,
    merge_lora,
    set_adapter,
    unmerge_lora,
)
from tinyllm.models import DecoderModel
from tinyllm.models.config import llama_shape
from tinyllm.qlora import apply_qlora

IDS = np.arange(12)[None] % 40


def gpt(**options):
    model = DecoderModel(40, 32, 2, 2, seed=1, **options)
    rng = np.random.default_rng(2)
    for name, p in model.named_parameters():
        if name.endswith("bias"):
            p.data = rng.standard_normal(p.shape).astype(p.dtype)
    return model


def shake(model, seed=0):
    rng = np.random.default_rng(seed)
    for p in get_lora_parameters(model):
        p.data += (0.1 * rng.standard_normal(p.shape)).astype(
            p.dtype
        )  # in place: an original in the same memory is felt
    return model


def trained(model):
    return {n for n, p in model.named_parameters() if p.requires_grad and "lora_" not in n}


def test_which_biases_train():
    assert not trained(apply_lora(gpt(), verbose=False))
    attention = {f"layers.{i}.self_attn.{p}_proj.trained_bias.default" for i in (0, 1) for p in ("qkv", "out")}
    assert trained(apply_lora(gpt(), bias="lora_only", verbose=False)) == attention
    mlp = {f"layers.{i}.mlp.{p}_proj.trained_bias.default" for i in (0, 1) for p in ("up", "down")}
    norms = {f"layers.{i}.{n}_layernorm.copies.default.bias" for i in (0, 1) for n in ("input", "post_attention")}
    everything = attention | mlp | norms | {"norm.copies.default.bias"}
    assert trained(apply_lora(gpt(), bias="all", verbose=False)) == everything


@pytest.mark.parametrize("bias", ["lora_only", "all"])
@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("quantised", [False, True])
def test_off_is_the_base_bit_for_bit_and_the_originals_stay(bias, dora, quantised):
    model = gpt()
    originals = {n: (p.data, p.data.copy()) for n, p in model.named_parameters() if n.endswith("bias")}
    apply = apply_qlora if quantised else apply_lora
    apply(model, 2, 4.0, bias=bias, use_dora=dora, verbose=False)
    off = disable_lora(model)(IDS).data
    assert np.array_equal(enable_lora(model)(IDS).data, off)  # at first nothing changes
    on = shake(model)(IDS).data
    assert np.abs(on - off).max() > 1e-3
    merged = merge_lora(model)(IDS).data
    assert np.abs(merged - on).max() <= 1e-5 * np.abs(on).max()
    assert np.array_equal(disable_lora(model)(IDS).data, off)
    assert np.array_equal(enable_lora(unmerge_lora(model))(IDS).data, on)
    assert all(array.tobytes() == kept.tobytes() for array, kept in originals.values())
    plain = merge_lora(model, keep_base=False)
    assert np.abs(plain(IDS).data - on).max() <= 1e-5 * np.abs(on).max()
    assert plain.state_dict().keys() == gpt().state_dict().keys()


def test_the_bias_alone_is_what_changes_when_it_alone_is_trained():
    model = apply_lora(gpt(), 2, 4.0, bias="all", verbose=False)
    off = model(IDS).data
    model.norm.copies["default"].bias.data += np.float32(1)
    shift = (np.ones(32, np.float32) @ model.lm_head.weight.data.T)[None, None]
    assert np.abs(model(IDS).data - off - shift).max() <= 1e-5 * np.abs(off).max()


def test_two_adapters_have_biases_of_their_own():
    model = apply_lora(gpt(), 2, 4.0, bias="all", target_modules=["qkv_proj"], verbose=False)
    first = shake(model)(IDS).data
    apply_lora(model, 2, 4.0, bias="all", target_modules=["up_proj"], adapter_name="second", verbose=False)
    second = shake(model, 1)(IDS).data
    alone = shake(apply_lora(gpt(), 2, 4.0, bias="all", target_modules=["up_proj"], adapter_name="second",
                             verbose=False), 1)  # fmt: skip
    assert len(trained(model)) == len(trained(alone)) == 13
    set_adapter(model, "default")
    assert np.array_equal(model(IDS).data, first) and not np.array_equal(first, second)


def test_where_there_is_no_bias_to_train():
    llama = lambda: DecoderModel(40, 32, 1, 2, **llama_shape(intermediate_size=48), seed=1)
    for bias in ("all", "lora_only"):
        model = llama()
        names = list(model.state_dict())
        with pytest.raises(ValueError, match="trains nothing"):
            apply_lora(model, bias=bias, verbose=False)
        assert list(model.state_dict()) == names
    with pytest.raises(ValueError, match="bias must be one of none, all, lora_only, not 'some'"):
        apply_lora(gpt(), bias="some", verbose=False)
    with pytest.raises(ValueError, match="norm whole, its bias too"):
        apply_lora(gpt(), bias="all", modules_to_save=["norm"], verbose=False)
    model = apply_lora(gpt(), modules_to_save=["mlp"], verbose=False)
    with pytest.raises(ValueError, match="another adapter trains whole"):
        apply_lora(model, bias="all", adapter_name="second", verbose=False)
