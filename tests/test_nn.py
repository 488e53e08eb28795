"""Module: names, ties, states, modes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyllm.backend.random import manual_seed
from tinyllm.frozen import store
from tinyllm.models import DecoderModel
from tinyllm.nn import Dropout, Embedding, LayerNorm, Linear, Module, RMSNorm
from tinyllm.tensor import Parameter, Tensor


class Net(Module):
    def __init__(self, tied: bool = False):
        self.embed = Embedding(7, 4)
        self.layers = [Linear(4, 4), Linear(4, 4, bias=False)]
        self.by_name = {"a": RMSNorm(4), "b": LayerNorm(4)}
        self.head = Linear(4, 7, bias=False)
        if tied:
            self.head.weight = self.embed.weight


NAMES = ["embed.weight", "layers.0.weight", "layers.0.bias", "layers.1.weight"]
NAMES += ["by_name.a.weight", "by_name.b.weight", "by_name.b.bias"]


def snapshot(model):
    return {name: (p, p.data, p.data.copy()) for name, p in model.named_parameters()}


def unchanged(model, before):
    now = dict(model.named_parameters())
    return now.keys() == before.keys() and all(
        now[n] is p and p.data is array and np.array_equal(array, bits) for n, (p, array, bits) in before.items()
    )


def test_names_are_paths_of_attributes_and_counts_are_exact():
    model = Net()
    assert [name for name, _ in model.named_parameters()] == [*NAMES, "head.weight"]
    assert model.num_parameters() == 28 + 20 + 16 + 4 + 8 + 28
    assert list(model.parameters()) == [p for _, p in model.named_parameters()]


def test_a_tied_weight_is_there_once_under_its_first_name():
    model = Net(tied=True)
    assert [name for name, _ in model.named_parameters()] == NAMES
    assert model.num_parameters() == 28 + 20 + 16 + 4 + 8
    assert list(model.state_dict()) == NAMES


def test_set_weight_keeps_a_tie():
    model = Net(tied=True)
    new = Parameter(np.zeros((7, 4), np.float32))
    model.set_weight("embed.weight", new)
    assert model.head.weight is new and model.embed.weight is new
    gain = Parameter(np.zeros(4, np.float32))
    model.set_weight("by_name.a.weight", gain)
    assert model.by_name["a"].weight is gain


def test_what_is_no_weight_cannot_be_set():
    with pytest.raises(KeyError, match="layers.1.bias is no weight"):
        Net().set_weight("layers.1.bias", Parameter(np.zeros(4, np.float32)))


def test_places_are_all_that_hold_a_weight():
    model = Net(tied=True)
    places = {places[0].path: [place.path for place in places] for places in model.places()}
    assert places == {name: [name, "head.weight"] if name == "embed.weight" else [name] for name in NAMES}
    assert all(place.weight is model.get(place.path) for places in model.places() for place in places)


class Wrapper(Module):
    def __init__(self, layer: Module):
        self.layer, self.more = layer, Linear(2, 2)

    def inner(self) -> Module:
        return self.layer


def test_a_wrapper_stands_for_what_it_holds():
    model = Net()
    layer = model.head
    model.replace("head", Wrapper(layer))
    model.replace("layers.1", Wrapper(Wrapper(Linear(4, 4))))
    assert model.head.inner() is layer and layer.inner() is layer and layer.chosen() is layer
    every, seen = dict(model.named_modules()), dict(model.named_modules(wrapped=False))
    assert {"head.layer", "head.more", "layers.1.layer.layer"} < every.keys()
    assert seen.keys() == {"", "embed", "layers.0", "layers.1", "by_name.a", "by_name.b", "head"}


def test_replace_reaches_into_lists_and_dicts():
    model = Net()
    for path in ("layers.1", "by_name.a", "head"):
        new = Linear(4, 4)
        model.replace(path, new)
        assert model.get(path) is new


@pytest.mark.parametrize("tied", [False, True])
def test_state_round_trip_is_bit_for_bit_and_copies(tied):
    manual_seed(1)
    a = Net(tied)
    manual_seed(2)
    b = Net(tied)
    state = {name: p.data for name, p in a.state_dict().items()}
    assert b.load_state_dict(state) == ([], [])
    for name, p in b.named_parameters():
        assert np.array_equal(p.data, state[name])
        assert not np.shares_memory(p.data, state[name])
    assert (b.head.weight is b.embed.weight) is tied


def test_loading_keeps_the_dtype_and_the_parameter():
    model = Net()
    before = dict(model.named_parameters())
    model.load_state_dict({n: p.data.astype(np.float64) for n, p in before.items()})
    assert all(p is before[n] and p.dtype == np.float32 for n, p in model.named_parameters())


@given(st.sets(st.sampled_from([*NAMES, "head.weight"])), st.booleans())
def test_strict_and_lenient_loading(left_out, extra):
    model = Net()
    state = {n: np.full(p.shape, 3, np.float32) for n, p in model.named_parameters() if n not in left_out}
    if extra:
        state["layers.0.wieght"] = np.zeros((4, 4), np.float32)
    before = snapshot(model)
    matched = [n for n in before if n in state]
    if left_out or extra:
        with pytest.raises(KeyError) as error:
            model.load_state_dict(state)
        assert not extra or "did you mean layers.0.weight" in str(error.value)
        assert unchanged(model, before)
    if not matched:
        with pytest.raises(KeyError, match="nothing"):
            model.load_state_dict(state, strict=False)
        assert unchanged(model, before)
        return
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert set(missing) == left_out and unexpected == ["layers.0.wieght"] * extra
    for n, p in model.named_parameters():
        assert np.array_equal(p.data, np.full(p.shape, 3) if n in matched else before[n][2])


@pytest.mark.parametrize("last", ["head.weight", "embed.weight"])
def test_a_wrong_shape_changes_nothing(last):
    model = Net()
    before = snapshot(model)
    state = {n: np.ones(p.shape, np.float32) for n, p in model.named_parameters()}
    state[last] = np.ones((7, 5), np.float32)
    with pytest.raises(ValueError, match=rf"{last} has shape \(7, 4\).*\(7, 5\)"):
        model.load_state_dict(state, strict=False)
    assert unchanged(model, before)


def test_floats_for_a_stored_weight_change_nothing():
    model = Net()
    model.set_weight("head.weight", store(model.head.weight.data, "bfloat16"))
    before = snapshot(model)
    state = {n: np.ones(w.shape, np.float32) for n, w in model.named_weights()}
    with pytest.raises(ValueError, match="head.weight is stored as bfloat16"):
        model.load_state_dict(state)
    assert unchanged(model, before)


@pytest.mark.parametrize("storage", ["nf4", "float16"])
@pytest.mark.parametrize("made_for, computing", [(np.float64, np.float32), (np.float32, np.float64)])
def test_a_stored_weight_computes_in_the_dtype_of_the_model_it_is_loaded_into(storage, made_for, computing):
    other, model = Linear(64, 8, bias=False, dtype=made_for), Linear(64, 8, bias=False, dtype=computing)
    other.weight = store(other.weight.data, storage)
    model.load_state_dict(other.state_dict())
    x = Tensor(np.ones((2, 64), computing), requires_grad=True)
    y = model(x)
    y.sum().backward()
    assert model.weight.dtype == y.dtype == x.grad.dtype == computing and other.weight.dtype == made_for


def test_stored_weights_count_as_what_they_stand_for_but_are_no_parameters():
    model = Net()
    count = model.num_parameters()
    model.set_weight("head.weight", store(model.head.weight.data, "nf4"))
    assert model.num_parameters() == count
    assert model.num_parameters(trainable_only=True) == count - 28
    assert "head.weight" not in dict(model.named_parameters()) and "head.weight" in model.state_dict()


def test_train_and_eval_reach_everything_and_dropout_obeys():
    model = Net()
    model.layers.append(Dropout(0.5))
    assert model.eval() is model and not any(m.training for _, m in model.named_modules())
    x = Tensor(np.ones((50, 4), np.float32))
    assert model.layers[2](x) is x
    assert model.train() is model and all(m.training for _, m in model.named_modules())
    assert set(np.unique(model.layers[2](x).data)) == {0, 2}


def test_requires_grad_and_zero_grad():
    model = Net()
    model.requires_grad_(False)
    assert model.num_parameters(trainable_only=True) == 0
    model.requires_grad_(True)
    assert model.num_parameters(trainable_only=True) == model.num_parameters()
    model.head.weight.grad = np.ones((7, 4), np.float32)
    model.zero_grad()
    assert all(p.grad is None for p in model.parameters())


@given(st.integers(1, 300), st.integers(1, 40), st.integers(0, 1000))
def test_linear_starts_within_its_bound_and_follows_its_formula(n_in, n_out, seed):
    manual_seed(seed)
    layer = Linear(n_in, n_out, dtype=np.float64)
    assert np.abs(layer.weight.data).max() <= n_in**-0.5 and not layer.bias.data.any()
    layer.bias.data += np.arange(n_out)
    x = np.random.default_rng(seed).standard_normal((3, 2, n_in))
    budget = (n_in + 2) * np.finfo(np.float64).eps * (np.abs(x) @ np.abs(layer.weight.data).T + n_out)
    assert (
        np.abs(layer(Tensor(x)).data - (np.einsum("btc,oc->bto", x, layer.weight.data) + layer.bias.data)) <= budget
    ).all()


@pytest.mark.parametrize("p", [-0.1, 1.0, 1.5, float("nan")])
def test_dropout_refuses_what_is_no_probability(p):
    with pytest.raises(ValueError, match="dropout"):
        Dropout(p)


def test_a_module_without_forward_says_so():
    with pytest.raises(NotImplementedError, match="Net"):
        Net()(1)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("layers.9.mlp", r"layers has 0 to 1 \(did you mean layers.1.mlp\?\)"),
        ("layers.0.mpl", r"layers.0 has input_layernorm, self_attn, post_attention_layernorm, mlp"),
        ("layrs.0", r"the model has embed_tokens"),
        ("layers.0.mlp.up_proj.weight.x", r"layers.0.mlp.up_proj.weight has nothing"),
    ],
)
def test_a_wrong_path_is_answered_with_what_there_is(path, words):
    with pytest.raises(KeyError, match=words):
        DecoderModel(20, 32, 2, 2).get(path)
