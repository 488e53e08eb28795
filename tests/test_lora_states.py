"""Any sequence of LoRA's verbs leaves the outputs right: a state machine against a reference in plain NumPy."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tinyllm.backend.random import manual_seed
from tinyllm.frozen import FrozenWeight
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
SPEC = {"a": (2, 3.0, ["first", "second"], False), "b": (3, 4.0, ["second"], True), "c": (1, 2.0, ["first"], False)}


class Net(Module):
    def __init__(self):
        self.first, self.norm, self.second = (
            Linear(8, 8, dtype=np.float64),
            RMSNorm(8, dtype=np.float64),
            Linear(8, 4, dtype=np.float64),
        )

    def forward(self, x):
        return self.second(self.norm(self.first(x)))


def build(quantised, names):
    manual_seed(1)
    net = Net()
    for i, name in enumerate(names):
        rank, alpha, targets, rslora = SPEC[name]
        options = {"target_modules": targets, "adapter_name": name, "use_rslora": rslora, "verbose": False}
        options["modules_to_save"] = ["norm"] if name == "b" else []
        if quantised and i == 0:
            apply_qlora(net, rank, alpha, 0.0, 32, **options)
        else:
            apply_lora(net, rank, alpha, **options)
    return net


class States(RuleBasedStateMachine):
    @initialize(quantised=st.booleans())
    def start(self, quantised):
        self.quantised, self.names = quantised, ["a"]
        plain = build(quantised, ["a"])
        self.net = build(quantised, ["a"])
        self.w = {n: self.float_weight(plain.get(n).base_layer).copy() for n in ("first", "second")}
        self.bias = {n: plain.get(n).base_layer.bias.data.copy() for n in ("first", "second")}
        self.gain = {None: plain.norm.weight.data.copy()}
        self.off = disable_lora(plain)(Tensor(X)).data
        self.active, self.enabled, self.merged = ("a",), True, False
        self.note_parameters()

    @staticmethod
    def float_weight(layer):
        return layer.weight.dense() if isinstance(layer.weight, FrozenWeight) else layer.weight.data

    def note_parameters(self):
        """Copies of what was learned so far: the reference computes with these, not with the model's arrays."""
        self.learned = {n: p.data.copy() for n, p in self.net.named_parameters() if "lora" in n or "copies" in n}

    def reference(self):
        h = X
        for layer in ("first", "second"):
            w = self.w[layer].copy()
            for name in self.active if self.enabled else ():
                if (a := self.learned.get(f"{layer}.lora_A.{name}")) is not None:
                    rank, alpha, _, rslora = SPEC[name]
                    w += alpha / (math.sqrt(rank) if rslora else rank) * self.learned[f"{layer}.lora_B.{name}"] @ a
            h = h @ w.T + self.bias[layer]
            if layer == "first":
                gain = self.learned["norm.copies.b.weight"] if self.enabled and "b" in self.active else self.gain[None]
                h = h / np.sqrt((h**2).mean(-1, keepdims=True) + 1e-6) * gain
        return h

    @rule(name=st.sampled_from("bc"))
    def apply(self, name):
        if name in self.names:
            return
        rank, alpha, targets, rslora = SPEC[name]
        saved = ["norm"] if name == "b" else []
        apply_lora(
            self.net,
            rank,
            alpha,
            target_modules=targets,
            adapter_name=name,
            use_rslora=rslora,
            modules_to_save=saved,
            verbose=False,
        )
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
        before, active = self.learned, {n.rpartition(".")[2] if "lora" in n else "b" for n in self.learned}
        self.note_parameters()
        assert active <= set(self.names)
        for n, a in self.learned.items():
            owner = "b" if "copies" in n else n.rpartition(".")[2]
            assert owner in self.active or np.array_equal(a, before[n])

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
            owner = "b" if "copies" in n else n.rpartition(".")[2] if "lora" in n else None
            assert p.requires_grad is (owner in self.active), n


TestStates = States.TestCase
