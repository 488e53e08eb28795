"""Building a model: what each weight is kept as, filling one weight after the other, GPT-2's initialisation."""

from __future__ import annotations

import weakref
from types import SimpleNamespace

import numpy as np
import pytest

from tinyllm.backend import random
from tinyllm.frozen import store, stored
from tinyllm.models import DecoderModel
from tinyllm.models.build import STORAGES, fill, gpt2_init, skeleton, storage_of, storages
from tinyllm.nn import Embedding, LayerNorm, Linear, Module, RMSNorm, has_memory, module
from tinyllm.tensor import Parameter

SHAPE = {"vocab_size": 11, "hidden_size": 64, "num_layers": 2}


class Named(Module):
    """Layers whose names say something else than they do."""

    def __init__(self, dtype=np.float32):
        self.dtype, self.config = np.dtype(dtype), SimpleNamespace(num_layers=8)
        self.normal_proj = Linear(64, 64, dtype=dtype, init=False)
        self.bias = Linear(64, 64, bias=False, dtype=dtype, init=False)
        self.out_proj = Linear(64, 64, bias=False, dtype=dtype, init=False)  # ends in no residual
        self.ending = Linear(64, 64, bias=False, dtype=dtype, init=False, residual=True)
        self.gain, self.length = RMSNorm(64, dtype=dtype), LayerNorm(64, dtype=dtype)
        self.normed_words = Embedding(11, 64, dtype=dtype, init=False)
        self.embed_tokens = Embedding(11, 64, dtype=dtype, init=False, fewest="float32")
        self.logits = Linear(64, 11, bias=False, dtype=dtype, init=False, head=True)


def drawn(name, shape):
    return np.random.default_rng(len(name)).standard_normal(shape)


LINEAR = {"normal_proj.weight", "bias.weight", "out_proj.weight", "ending.weight"}
TABLES = {"normed_words.weight", "logits.weight"}


@pytest.mark.parametrize("storage", STORAGES)
def test_the_layer_says_what_its_weight_is_kept_as_and_its_name_nothing(storage):
    model = Named()
    fill(model, drawn, storage)
    for name, weight in model.named_weights():
        fewest = "nf4" if name in LINEAR else "float16" if name in TABLES else "float32"
        expected = "float32" if fewest == "float32" else storage
        if (storage, fewest) == ("nf4", "float16"):
            expected = "float16"
        assert stored(weight).storage == expected == storages(model, storage)[name], name
        floats = drawn(name, weight.shape).astype(np.float32)
        again = floats if expected == "float32" else store(floats, expected).dense()
        assert np.array_equal(stored(weight).dense(), again), name


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_gains_are_float32_where_half_computes_and_nothing_else_is(dtype):
    model = Named(dtype)
    fill(model, drawn, "nf4")
    for name, weight in model.named_weights():
        wide = name.startswith(("gain", "length")) and dtype == np.float16
        assert weight.dtype == (np.float32 if wide else dtype), name
    model = Named(dtype)
    before = model.gain.weight
    fill(model, lambda name, shape: model.get(name))  # a Parameter, of a file, say, stays one
    assert model.gain.weight is before and before.dtype == (np.float32 if dtype == np.float16 else dtype)


def test_four_bits_are_made_of_what_came_and_not_of_what_half_left_of_it():
    model = Named(np.float16)
    fill(model, drawn, "nf4")
    name = "ending.weight"
    fine = store(drawn(name, (64, 64)).astype(np.float32), "nf4")
    coarse = store(drawn(name, (64, 64)).astype(np.float16), "nf4")
    assert np.array_equal(model.ending.weight.packed, fine.packed)
    assert not np.array_equal(fine.absmax[0], coarse.absmax[0]) or not np.array_equal(fine.packed, coarse.packed)


def test_what_two_layers_share_is_kept_as_the_first_bears_it():
    model = DecoderModel(**SHAPE, storage="nf4")
    assert model.lm_head.weight is model.embed_tokens.weight and model.embed_tokens.weight.storage == "float16"
    assert storage_of(model.lm_head, "weight", "nf4") == "float16"
    assert model.lm_head.is_head and not any(m.is_head for _, m in model.named_modules() if m is not model.lm_head)


def test_initialisation_asks_the_layer_where_it_ends():
    model = Named()
    fill(model, gpt2_init(model, random.Generator(0)))
    for name, weight in model.named_weights():
        if name.startswith(("gain", "length")) or name == "normal_proj.bias":
            assert (weight.data == (not name.endswith("bias"))).all(), name
        else:
            std = 0.02 / 4 if name == "ending.weight" else 0.02
            assert abs(weight.data.std() / std - 1) < 6 / np.sqrt(2 * weight.size), name  # six sigma


def test_filling_walks_the_model_once(monkeypatch):
    looked, attributes = [], module._attributes
    monkeypatch.setattr(module, "_attributes", lambda m: looked.append(m) or attributes(m))

    def lookups(layers, work):
        model = DecoderModel(11, 16, layers)
        looked.clear()
        work(model)
        return len(looked)

    def reload(model):
        model.load_state_dict({name: store(p.data, "bfloat16") for name, p in model.named_weights()})

    for work in (lambda model: fill(model, drawn), reload):
        few, many = lookups(2, work), lookups(8, work)
        assert many <= 4 * few, (few, many)  # four times as many layers


@pytest.mark.parametrize("largest_first", [False, True])
def test_an_old_weight_is_gone_when_the_next_is_asked_for(largest_first):
    model = DecoderModel(**SHAPE)
    old = [(name, weakref.ref(weight)) for name, weight in model.named_weights()]
    asked = []

    def init(name, shape):
        assert not [other for other, weight in old if other in asked and weight() is not None]
        asked.append(name)
        return drawn(name, shape)

    fill(model, init, largest_first=largest_first)
    assert sorted(asked) == sorted(name for name, _ in old)
    sizes = [model.get(name).size for name in asked]
    assert not largest_first or sizes == sorted(sizes, reverse=True)


def test_a_skeleton_has_names_and_shapes_and_no_memory():
    model = skeleton(DecoderModel, SHAPE, "nf4", np.float32)
    assert {n: w.shape for n, w in model.named_weights()} == {
        n: w.shape for n, w in DecoderModel(**SHAPE).named_weights()
    }
    assert not any(has_memory(weight) for _, weight in model.named_weights())
    assert has_memory(Parameter(np.zeros((1, 1), np.float32)))
    with pytest.raises(ValueError, match="storage must be one of"):
        skeleton(DecoderModel, SHAPE, "int8", np.float32)


def test_another_shape_is_refused_by_name():
    with pytest.raises(ValueError, match=r"layers.0.mlp.up_proj.weight should have shape \(256, 64\), not \(3,\)"):
        DecoderModel(**SHAPE, init=lambda name, shape: np.zeros((3,) if "up_proj.weight" in name else shape))
