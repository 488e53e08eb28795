"""Any sequence of LoRA's verbs leaves the outputs right: a state machine against a reference in plain NumPy."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tinyllm.backend.random import manual_seed
from tinyllm.frozen.weight import FrozenWeight
from tinyllm.lora import (
    apply_lora,
    disable_lora,
    enable_lora,
    get_lora_parameters,
    merge_lora,
    set_adapter,
    unmerge_lora,
)
from tinyllm.nn import Linear, Module, RMSNorm
from tinyllm.optim import AdamW
from tinyllm.qlora import apply_qlora
from tinyllm.tensor import Tensor

X = np.random.default_rng(0).standard_normal((5, 8))
# rank, alpha, targets, and the other options
SPEC = {
    "a": (2, 3.0, ["first", "second"], {}),
    "b": (3, 4.0, ["second"], {"use_rslora": True, "modules_to_save": ["norm"]}),
    "c": (1, 2.0, ["first"], {"bias": "lora_only"}),
    "d": (2, 3.0, ["first", "second"], {"use_dora": True}),
    "e": (1, 5.0, ["second"], {"use_dora": True, "bias": "all"}),  # the first layer's bias, too
}


class Net(Module):
    def __init__(self):
        self.first, self.norm, self.second = (
            Linear(8, 8, dtype=np.float64),
            RMSNorm(8, dtype=np.float64),
            Linear(8, 4, dtype=np.float64),
        )

    def forward(self, x):
        return self.second(self.norm(self.first(x)))


def owner_of(name):
    """The adapter a parameter belongs to, or None."""
    parts = name.split(".")
    for held in ("lora_A", "lora_B", "magnitude", "trained_bias", "copies"):
        if held in parts:
            return parts[parts.index(held) + 1]
    return None


def build(quantised, names):
    manual_seed(1)
    net = Net()
    for i, name in enumerate(names):
        rank, alpha, targets, more = SPEC[name]
        options = {"target_modules": targets, "adapter_name": name, "verbose": False, **more}
        if quantised and i == 0:
            apply_qlora(net, rank, alpha, 0.0, 32, **options)
        else:
            apply_lora(net, rank, alpha, **options)
    return net


class States(RuleBasedStateMachine):
    @initialize(quantised=st.booleans(), name=st.sampled_from("ad"))
    def start(self, quantised, name):
        self.quantised, self.names = quantised, [name]
        plain = build(quantised, [name])
        self.net = build(quantised, [name])
        self.w = {n: self.float_weight(plain.get(n).base_layer).copy() for n in ("first", "second")}
        self.bias = {n: plain.get(n).base_layer.bias.data.copy() for n in ("first", "second")}
        self.gain = {None: plain.norm.weight.data.copy()}
        self.off = disable_lora(plain)(Tensor(X)).data
        self.active, self.enabled, self.merged = (name,), True, False
        self.note_parameters()

    @staticmethod
    def float_weight(layer):
        return layer.weight.dense() if isinstance(layer.weight, FrozenWeight) else layer.weight.data

    def note_parameters(self):
        """Copies of what was learned so far: the reference computes with these, not with the model's arrays."""
        self.learned = {n: p.data.copy() for n, p in self.net.named_parameters() if owner_of(n)}

    def reference(self):
        h = X
        for layer in ("first", "second"):
            w, bias = self.w[layer].copy(), self.bias[layer]
            for name in self.active if self.enabled else ():
                bias = self.learned.get(f"{layer}.trained_bias.{name}", bias)
                if (a := self.learned.get(f"{layer}.lora_A.{name}")) is not None:
                    rank, alpha, _, more = SPEC[name]
                    scale = alpha / (math.sqrt(rank) if more.get("use_rslora") else rank)
                    v = self.w[layer] + scale * self.learned[f"{layer}.lora_B.{name}"] @ a
                    if (m := self.learned.get(f"{layer}.magnitude.{name}")) is not None:
                        v *= (m / np.linalg.norm(v, axis=1))[:, None]
                    w += v - self.w[layer]
            h = h @ w.T + bias
            if layer == "first":
                gain = self.learned["norm.copies.b.weight"] if self.enabled and "b" in self.active else self.gain[None]
                h = h / np.sqrt((h**2).mean(-1, keepdims=True) + 1e-6) * gain
        return h

    @rule(name=st.sampled_from("bcde"))
    def apply(self, name):
        if name in self.names:
            return
        rank, alpha, targets, more = SPEC[name]
        apply_lora(self.net, rank, alpha, target_modules=targets, adapter_name=name, verbose=False, **more)
        self.names.append(name)
        self.active = (name,)
        self.note_parameters()

    @rule()
    def enable(self):
        enable_lora(self.net)
        self.enabled = True

    @rule()
    def disable(self):
        disable_lora(self.net)
        self.enabled = False

    @rule()
    def merge(self):
        merge_lora(self.net, keep_base=True)
        self.merged = True

    @rule()
    def unmerge(self):
        unmerge_lora(self.net)
        self.merged = False

    @rule(data=st.data())
    def choose(self, data):
        self.active = tuple(data.draw(st.lists(st.sampled_from(self.names), unique=True)))
        set_adapter(self.net, self.active)

    @rule(seed=st.integers(0, 99))
    def load_other_numbers(self, seed):
        """Through a state dict, whatever the state: adapters only."""
        rng = np.random.default_rng(seed)
        state = {n: rng.standard_normal(a.shape) for n, a in self.learned.items()}
        self.net.load_state_dict(state, strict=False)
        self.learned = {n: a.copy() for n, a in state.items()}

    @rule()
    def round_trip(self):
        """Into a model that was built anew; then the verbs bring it to this one's state."""
        fresh = build(self.quantised, self.names)
        state = {n: w if isinstance(w, FrozenWeight) else w.data.copy() for n, w in self.net.state_dict().items()}
        if self.merged:
            merge_lora(fresh)  # before loading: what is folded must follow what is loaded
        fresh.load_state_dict(state)
        set_adapter(fresh, self.active)
        if not self.enabled:
            disable_lora(fresh)
        self.net = fresh

    @precondition(lambda self: self.enabled and not self.merged and self.active)
    @rule()
    def train(self):
        self.net.zero_grad()
        y = self.net(Tensor(X))
        (y * y).mean().backward()
        AdamW(get_lora_parameters(self.net), lr=0.1).step()
        before = self.learned
        self.note_parameters()
        for n, a in self.learned.items():
            assert owner_of(n) in self.names
            assert owner_of(n) in self.active or np.array_equal(a, before[n])

    @invariant()
    def outputs_are_right(self):
        y, expected = self.net(Tensor(X)).data, self.reference()
        size = np.abs(expected).max() + sum(np.abs(a).max() for a in self.learned.values()) ** 2
        assert np.abs(y - expected).max() <= 1e-12 * size
        if not self.enabled:
            assert np.array_equal(y, self.off)

    @invariant()
    def the_base_keeps_its_bits_and_only_active_adapters_train(self):
        for layer, w in self.w.items():
            module = self.net.get(layer)
            base = getattr(module, "base_layer", module)
            assert np.array_equal(self.float_weight(base), w) and np.array_equal(base.bias.data, self.bias[layer])
            assert isinstance(base.weight, FrozenWeight) is self.quantised
        norm = self.net.norm
        assert np.array_equal(getattr(norm, "original", norm).weight.data, self.gain[None])
        for n, p in self.net.named_parameters():
            assert p.requires_grad is (owner_of(n) in self.active), n


TestStates = States.TestCase
