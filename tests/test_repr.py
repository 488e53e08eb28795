"""What a model, an adapted layer and an optimiser say of themselves is what they are."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinyllm
from tinyllm import nn
from tinyllm.lora import apply_lora, disable_lora, merge_lora, set_adapter, unmerge_lora
from tinyllm.models import DecoderModel
from tinyllm.qlora import apply_qlora

WEIGHT = re.compile(r"([\w.]+) (\([\d, ]*\)) (\w+) (trains|frozen)")


def tiny(layers: int = 2, **options) -> DecoderModel:
    return DecoderModel(vocab_size=13, hidden_size=32, num_layers=layers, num_heads=2, max_seq_len=8, seed=0, **options)


def printed(lines: list[str]) -> Iterator[tuple[str, str, str, str]]:
    """Path, shape, storage and state of every weight in a printed tree, each block as often as its line says."""
    stack: list[list[str]] = [[""]]  # the paths that the open brackets stand for
    for line in lines:
        if line.strip() == ")":
            stack.pop()
            continue
        name = re.match(r" *\(([\w.]+?)(?:(?<=\d)-(\d+))?\): (?:(\d+) x )?", line)
        paths = stack[-1]
        if name:
            names = [name[1]]
            if name[2]:
                stem, _, first = name[1].rpartition(".")
                names = [f"{stem}.{i}" for i in range(int(first), int(name[2]) + 1)]
                assert len(names) == int(name[3])
            paths = [f"{path}{name}." for path in paths for name in names]
        for weight, shape, storage, state in WEIGHT.findall(line):
            yield from ((f"{path}{weight}", shape, storage, state) for path in paths)
        if not line.endswith(")"):
            stack.append(paths)
        elif line.count("(") > line.count(")"):
            stack.append(paths)


def there(model: nn.Module) -> list[tuple[str, str, str, str]]:
    return [
        (name, str(w.shape), getattr(w, "storage", w.dtype.name), "trains" if w.requires_grad else "frozen")
        for name, w in model.named_weights()
    ]


@given(st.lists(st.booleans(), min_size=1, max_size=6), st.sampled_from(["float32", "float16", "nf4"]))
def test_a_printed_model_can_be_read_back(frozen, storage):
    model = tiny(len(frozen), storage=storage, tie_embeddings=False)
    for layer, stays in zip(model.layers, frozen, strict=True):
        layer.mlp.requires_grad_(not stays)
    assert sorted(printed(model.tree())) == sorted(there(model))
    assert repr(model).startswith("DecoderModel(\n")


def test_equal_blocks_are_shown_once_and_others_by_themselves():
    model = tiny(5)
    assert "  (layers.0-4): 5 x Block(" in repr(model)
    model.layers[2].requires_grad_(False)
    lines = repr(model).splitlines()
    blocks = [line.strip() for line in lines if line.startswith("  (layers")]
    assert blocks == ["(layers.0-1): 2 x Block(", "(layers.2): Block(", "(layers.3-4): 2 x Block("]


def test_equal_modules_under_other_names_are_not_folded():
    class Pair(nn.Module):
        def __init__(self):
            self.first, self.second = nn.Linear(3, 4), nn.Linear(3, 4)

    assert repr(Pair()).splitlines() == [
        "Pair(",
        "  (first): Linear(weight (4, 3) float32 trains, bias (4,) float32 trains)",
        "  (second): Linear(weight (4, 3) float32 trains, bias (4,) float32 trains)",
        ")",
        "32 parameters, 32 of them train (100.00%); float32 128 bytes",
    ]


def test_the_last_line_adds_up():
    model = apply_qlora(tiny(), rank=4, verbose=False)
    total, training, kept = re.fullmatch(
        r"([\d,]+) parameters, ([\d,]+) of them train \(.*%\); (.*)", repr(model).splitlines()[-1]
    ).groups()
    assert int(total.replace(",", "")) == model.num_parameters()
    assert int(training.replace(",", "")) == model.num_parameters(trainable_only=True)
    nbytes = {}
    for _, w in model.named_weights():
        storage = getattr(w, "storage", w.dtype.name)
        nbytes[storage] = nbytes.get(storage, 0) + (w.nbytes if hasattr(w, "storage") else w.data.nbytes)
    assert dict(re.findall(r"(\w+) ([\d,]+) bytes", kept)) == {key: f"{n:,}" for key, n in nbytes.items()}


def test_a_layer_is_one_line():
    assert repr(nn.Dropout(0.1)) == "Dropout(p=0.1)"
    assert repr(nn.RMSNorm(8)) == "RMSNorm(weight (8,) float32 trains)"
    assert repr(nn.Module()) == "Module()"


def test_an_adapted_layer_says_rank_scale_adapters_and_state():
    model = apply_lora(tiny(), rank=4, alpha=6.0, target_modules=["out_proj"], verbose=False)
    layer = model.layers[0].self_attn.out_proj
    base = "weight (32, 32) float32 frozen, bias (32,) float32 frozen"
    assert repr(layer) == f"LoRALinear({base}; default: rank 4, scale 1.5, trains; active default)"
    merge_lora(model)
    assert repr(layer).endswith("; active default, merged)")
    unmerge_lora(model)
    options = {"target_modules": ["out_proj"], "use_dora": True, "verbose": False}
    apply_lora(model, rank=2, alpha=2.0, adapter_name="second", **options)
    set_adapter(model, "second")
    assert "; second: rank 2, scale 1, DoRA, " in repr(layer) and repr(layer).endswith("; active second)")
    disable_lora(model)
    assert repr(layer).endswith("; disabled)")


def test_a_trained_bias_and_a_copy_are_named():
    model = apply_lora(
        tiny(), rank=4, target_modules=["out_proj"], bias="lora_only", modules_to_save=["norm"], verbose=False
    )
    assert "default: rank 4, scale 4, bias, trains" in repr(model.layers[0].self_attn.out_proj)
    assert repr(model.norm).startswith("SavedModule(active default\n  (original): ")
    assert "(copies.default): " in repr(model.norm)


def test_an_optimiser_says_what_it_trains_and_holds():
    weights = [tinyllm.Parameter(np.ones((3, 4), np.float32)) for _ in range(2)]
    gain = tinyllm.Parameter(np.ones(4))
    optimizer = tinyllm.optim.AdamW([{"params": weights, "lr": 0.5}, {"params": [gain], "weight_decay": 0.0}])
    first, second, last = repr(optimizer).splitlines()[1:-1]
    assert first.startswith("  group 0: 2 x (3, 4) float32; lr=0.5, betas=(0.9, 0.999), eps=1e-08, weight_decay=0.01")
    assert second.startswith("  group 1: 1 x (4,) float64; ") and "weight_decay=0.0" in second
    assert last == "  28 numbers train; 0 steps, moments 0 bytes"
    for p in (*weights, gain):
        p.grad = np.ones_like(p.data)
    optimizer.step()
    assert repr(optimizer).splitlines()[-2] == f"  28 numbers train; 1 steps, moments {2 * (24 * 4 + 4 * 8)} bytes"


@pytest.mark.parametrize("module", [nn.Linear(2, 2), nn.Embedding(3, 2)], ids=lambda m: type(m).__name__)
def test_printing_changes_nothing(module):
    before = {name: w.data.copy() for name, w in module.named_parameters()}
    repr(module)
    assert all(np.array_equal(before[name], w.data) for name, w in module.named_parameters())
