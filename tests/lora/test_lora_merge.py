"""Merging for good: into which base, kept as what, and a head that is tied."""

from __future__ import annotations

import numpy as np
import pytest

from tinyllm.backend.random import manual_seed
from tinyllm.cli import main
from tinyllm.data.tokenizer import Tokenizer
from tinyllm.frozen.half import HalfWeight
from tinyllm.frozen.nf4 import NF4Weight
from tinyllm.lora import apply_lora, get_lora_parameters, lora_layers, merge_lora, untie_head
from tinyllm.lora.peft.adapter import load_adapter, save_adapter
from tinyllm.models import DecoderModel
from tinyllm.models.config import llama_shape
from tinyllm.optim import AdamW
from tinyllm.qlora import apply_qlora

IDS = np.random.default_rng(0).integers(0, 60, (8, 16))


def model_of(storage="float32", tie=False):
    return DecoderModel(60, 64, 2, 2, **llama_shape(intermediate_size=96, tie_embeddings=tie), seed=1, storage=storage)


def learned(model, steps=20):
    """Train for real: then the adapter has learned to live with its base's rounding errors."""
    optimizer = AdamW(get_lora_parameters(model), lr=1e-2)
    for _ in range(steps):
        for p in model.parameters():
            p.grad = None
        model.loss(IDS[:, :-1], IDS[:, 1:]).backward()
        optimizer.step()
    return model.eval()


def qlora(**options):
    manual_seed(3)
    return learned(apply_qlora(model_of(), 8, 16.0, target_modules="all-linear", verbose=False, **options))


def loss_of(model):
    return model.loss(IDS[:, :-1], IDS[:, 1:]).item()


@pytest.mark.parametrize("dora", [False, True])
def test_only_the_dequantised_base_changes_rounding_alone(dora):
    """The measured table of merges: dequantised, requantised, original."""
    as_trained, change, loss = qlora(use_dora=dora), {}, {}
    wanted = as_trained(IDS).data
    for base in ("dequantized", "requantized", model_of().state_dict()):
        merged = merge_lora(qlora(use_dora=dora), keep_base=False, base=base)
        name = base if isinstance(base, str) else "original"
        change[name] = np.abs(merged(IDS).data - wanted).max()
        loss[name] = loss_of(merged) - loss_of(as_trained)
        stored = [isinstance(w, NF4Weight) for w in merged.state_dict().values()]
        assert sum(stored) == (14 if name == "requantized" else 0)
    assert change["dequantized"] <= 1e-5 * np.abs(wanted).max() and abs(loss["dequantized"]) < 1e-5
    for name in ("requantized", "original"):
        assert change[name] > 1000 * change["dequantized"] and loss[name] > 0


@pytest.mark.parametrize("storage", ["float16", "bfloat16"])
def test_a_half_precision_base(storage):
    model = learned(apply_lora(model_of(storage), 4, 8.0, verbose=False), steps=3)
    sums = {path: layer.folded()[0].data.copy() for path, layer in lora_layers(model)}
    merge_lora(model, keep_base=False, base="requantized")
    for path, total in sums.items():
        weight = model.get(path).weight
        assert isinstance(weight, HalfWeight) and weight.storage == storage
        assert np.array_equal(weight.bits, HalfWeight.quantize(total, storage).bits)  # rounded once


def test_what_cannot_be_the_base_changes_nothing():
    model = apply_lora(model_of(), 2, 4.0, verbose=False)
    names = list(model.state_dict())
    weights = model_of().state_dict()
    first = "layers.0.self_attn.q_proj.weight"
    for base, said in (
        ("orignal", "must be 'dequantized', 'requantized' or weights by name"),
        ("requantized", "this one is in float"),
        ({}, f"no {first}"),
        ({**weights, first: np.zeros((2, 2))}, r"shape \(2, 2\)"),
    ):
        with pytest.raises(ValueError, match=said):
            merge_lora(model, keep_base=False, base=base)
    with pytest.raises(ValueError, match="keep_base=False"):
        merge_lora(model, base="requantized")
    assert list(model.state_dict()) == names


@pytest.mark.parametrize("how", ["adapter", "saved"])
def test_a_tied_head_is_parted_knowingly_or_not_at_all(tmp_path, how):
    free = model_of()
    free.lm_head.weight.data = free.embed_tokens.weight.data.copy()
    options = {"target_modules": ["q_proj", "lm_head"]} if how == "adapter" else {"modules_to_save": ["lm_head"]}
    apply_lora(free, 2, 4.0, verbose=False, **options)
    for p in get_lora_parameters(free):
        p.data = p.data + np.float32(0.1)
    save_adapter(free, tmp_path / "adapter")
    tied = load_adapter(model_of(tie=True), tmp_path / "adapter").eval()
    embedding = tied.embed_tokens.weight.data.copy()
    said = tied(IDS).data
    assert np.abs(said - model_of(tie=True)(IDS).data).max() > 1e-3
    with pytest.raises(ValueError, match="tied to the embedding.*--untie"):
        merge_lora(tied, keep_base=False)
    assert np.array_equal(tied(IDS).data, said)
    merge_lora(tied, keep_base=False, untie=True)
    assert np.abs(tied(IDS).data - said).max() <= 1e-5 * np.abs(said).max()
    assert np.array_equal(tied.embed_tokens.weight.data, embedding) and not tied.config.tie_embeddings
    tied.save_pretrained(tmp_path / "merged")
    assert np.array_equal(DecoderModel.from_pretrained(tmp_path / "merged")(IDS).data, tied(IDS).data)


@pytest.mark.parametrize("storage", ["float32", "float16"])
def test_untie_head(storage):
    model = model_of(storage, tie=True)
    said = model(IDS).data
    untie_head(model)
    assert model.lm_head.weight is not model.embed_tokens.weight and np.array_equal(model(IDS).data, said)
    apply_lora(model, 2, 4.0, target_modules=["lm_head"], verbose=False)  # refused for a tied one


def test_a_merged_layer_keeps_no_packed_base_alive():
    import gc
    import weakref

    model = qlora()
    packed = weakref.ref(model.layers[0].mlp.up_proj.base_layer.weight)
    merge_lora(model, keep_base=False)
    gc.collect()
    assert packed() is None


@pytest.mark.parametrize("base, rounding", [("dequantized", True), ("original", False), ("requantized", False)])
def test_the_command_prints_by_how_much(tmp_path, capsys, base, rounding):
    from tinyllm import assets

    tokenizer = Tokenizer.load(assets.path("base"))
    shape = llama_shape(intermediate_size=64, max_seq_len=64, tie_embeddings=False)
    plain = DecoderModel(tokenizer.vocab_size, 32, 2, 2, seed=1, **shape)
    plain.save_pretrained(tmp_path / "model")
    tokenizer.save(tmp_path / "model")
    model = apply_qlora(plain, 4, 8.0, target_modules="all-linear", use_dora=True, verbose=False)
    rng = np.random.default_rng(0)
    for p in get_lora_parameters(model):
        p.data = p.data + (0.1 * rng.standard_normal(p.shape)).astype(p.dtype)
    save_adapter(model, tmp_path / "adapter")
    (tmp_path / "unseen.txt").write_text("A daemon waits in the background.\n" * 40)
    argv = ["merge", "--model", tmp_path / "model", "--adapter", tmp_path / "adapter", "--out", tmp_path / "out",
            "--base", base, "--data", tmp_path / "unseen.txt"]  # fmt: skip
    assert main([str(a) for a in argv]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert (": rounding" in out) is rounding and ("the price of this base" in out) is not rounding
    change = float(out.partition(" merged (")[2].partition(")")[0])
    assert (abs(change) <= 1e-4) is rounding and "WARNING" not in out
    back = DecoderModel.from_pretrained(tmp_path / "out")
    assert any(isinstance(w, NF4Weight) for w in back.state_dict().values()) is (base == "requantized")


def test_the_command_refuses_to_requantise_what_never_was(tmp_path, capsys):
    from tinyllm import assets

    model = apply_lora(DecoderModel.from_pretrained(assets.path("base")), 2, 4.0, verbose=False)
    save_adapter(model, tmp_path / "adapter")
    argv = ["merge", "--adapter", str(tmp_path / "adapter"), "--out", str(tmp_path / "out"), "--base", "requantized"]
    assert main(argv) == 1 and "base in four bits" in capsys.readouterr().err and not (tmp_path / "out").exists()
