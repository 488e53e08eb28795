r"""A linear layer with LoRA beside it: y = W x + scale * B A x, with W frozen (arXiv 2106.09685, eq. 3)::

           x (batch, time, in)
          /                  \
     W (out, in)         A (r, in)      r numbers a token instead of in
     frozen              B (out, r)     B starts at zero: at first nothing changes
          \                  /
       y = W x  +  alpha/r * B (A x)

`Adapter` is the right-hand side of the picture, `LoRALinear` the whole. DoRA is an adapter with a formula of its own
(`dora.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from operator import is_
from typing import Any

import numpy as np

from tinyllm import functional as F
from tinyllm.backend import random
from tinyllm.backend.table import replaceable
from tinyllm.frozen import Weight, stored
from tinyllm.nn import Dropout, Linear, Module
from tinyllm.tensor import Parameter, Tensor


@replaceable
def lora_update(x: Tensor, A: Tensor, B: Tensor, scale: float) -> Tensor:
    """scale * B A x; x (..., in), A (r, in), B (out, r): (..., out)."""
    h = F.linear(x, A)  # (..., r)
    return F.linear(h * scale, B)


@replaceable
def lora_fold(w: Any, A: Any, B: Any, scale: float) -> Any:
    """W + scale * B A, of arrays; w (rows, in), A (r, in), B (rows, r)."""
    return w + scale * (B @ A)


def trained_dtype(dtype: np.dtype) -> np.dtype:
    """What trains is float32, also where half precision computes: the squares of its gradients would overflow there."""
    return np.dtype(np.float32) if dtype.itemsize == 2 else dtype


class Adapter(Module):
    """scale * B A beside one layer, and a bias instead of the layer's own, if it trains one.

    Attributes
    ----------
    lora_A, lora_B : Parameter (r, in), (out, r)
        At first A is uniform in +-1/sqrt(in), which is PEFT's kaiming_uniform with a = sqrt(5), and B is 0.
    trained_bias : Parameter (out,) or None
    scale : float
    dropout : Dropout
        Of the update's input.
    """

    trained_bias: Parameter | None = None

    def __init__(self, layer: Linear, rank: int, scale: float, dropout: float = 0.0):
        dtype = trained_dtype(layer.weight.dtype)
        xp, bound = stored(layer.weight).xp, 1 / math.sqrt(layer.in_features)
        a = random.default.uniform((rank, layer.in_features), -bound, bound, dtype)
        self.lora_A = Parameter(xp.asarray(a))
        self.lora_B = Parameter(xp.zeros((layer.out_features, rank), dtype))
        self.scale, self.dropout = scale, Dropout(dropout)

    def forward(self, x: Tensor, y: Any = None, layer: Any = None) -> Tensor:
        """What is added to the layer's own output; DoRA alone looks at that output `y`, and at the `layer`."""
        return lora_update(self.dropout(x), self.lora_A, self.lora_B, self.scale)

    def fold(self, folded: Any, w: Any, rows: slice) -> Any:
        """Some rows of W with the update in, (rows, in): added to `folded`; DoRA alone looks at W itself, `w`."""
        return lora_fold(folded, self.lora_A.data, self.lora_B.data[rows], self.scale)


class TrainedBias(Module):
    """An adapter of a bias alone: what ``bias="all"`` gives a layer that is no target."""

    trained_bias: Parameter | None = None


# The weights that PEFT's adapters have: what they are called here, and in its files.
PARTS = {
    "lora_A": "lora_A.weight",
    "lora_B": "lora_B.weight",
    "magnitude": "lora_magnitude_vector",
    "trained_bias": "bias",
}


def _by_adapter(part: str) -> Any:
    """This part of a layer's adapters by their names: ``layer.lora_A["default"]``, ``lora_A.default`` in a file."""

    def parts(layer: LoRALinear) -> dict[str, Parameter]:
        return {name: own[part] for name, a in layer.adapters.items() if (own := vars(a)).get(part) is not None}

    return property(parts)


class LoRALinear(Module):
    """W x of a frozen linear layer, and what its active adapters add.

    Outputs follow `enabled` and `active` alone; merging only makes them cheaper.

    Attributes
    ----------
    base_layer : Linear
        Its weight (out, in) is frozen and never written to, nor is its bias.
    adapters : dict of str to Adapter
        By name; or TrainedBias.
    active : tuple of str
        The adapters whose updates are added; of several trained biases the last one counts.
    enabled : bool
    merged : bool
        Whether the active updates are folded into a weight of their own, which then is used instead.
    """

    lora_A, lora_B, magnitude, trained_bias = map(_by_adapter, PARTS)

    def __init__(self, base_layer: Linear):
        self.base_layer = base_layer
        self.adapters: dict[str, Adapter | TrainedBias] = {}
        self.active: tuple[str, ...] = ()
        self.enabled, self.merged = True, False
        self._folded: tuple[Any, tuple] | None = None  # merged weight and bias, and where what they were made of stood

    def forward(self, x: Tensor) -> Tensor:
        if not self.enabled or not self.active:
            return self.base_layer(x)
        if self.merged:
            return F.linear(x, *self.folded())
        y = base = F.linear(x, self.base_layer.weight, self.chosen_bias())
        for adapter in self.adding():
            y = y + adapter(x, base, self)
        return y

    def adding(self) -> list[Adapter]:
        """The active adapters that have an A and a B here, and not a bias alone."""
        active = (self.adapters.get(name) for name in self.active)
        return [adapter for adapter in active if isinstance(adapter, Adapter)]

    def chosen_bias(self) -> Parameter | None:
        """The bias that counts now."""
        for name in reversed(self.active if self.enabled else ()):
            if (bias := getattr(self.adapters.get(name), "trained_bias", None)) is not None:
                return bias
        return self.base_layer.bias

    def train_bias(self, name: str) -> None:
        """Give this adapter a copy of the bias to train, if there is one; the base's own stays as it is."""
        if self.base_layer.bias is not None:
            adapter = self.adapters.setdefault(name, TrainedBias())
            bias = self.base_layer.bias.data
            adapter.trained_bias = Parameter(bias.astype(trained_dtype(bias.dtype)))
            self._folded = None

    def merge(self) -> None:
        """Use W with the active updates in; made again, since an optimiser may have changed arrays in place."""
        self.merged, self._folded = True, None

    def unmerge(self) -> None:
        """Use W, and the adapters beside it."""
        self.merged, self._folded = False, None

    def folded(self) -> tuple[Any, Parameter | None]:
        """W with the active updates in, (out, in), and the bias that counts.

        Made once, and again if an array it was made of was replaced: at one token, looking takes as long as computing.
        """
        if self._folded is not None:
            folded, (owners, names, things) = self._folded
            if all(map(is_, map(getattr, owners, names), things)):
                return folded
        weight = self.base_layer.weight
        folded = Tensor(self.fold(stored(weight))) if self.adding() else weight, self.chosen_bias()
        self._folded = folded, tuple(zip(*self.made_of(), strict=True))
        return folded

    def made_of(self) -> Iterator[tuple[Any, str, Any]]:
        """What a merge depends on: an object, its attribute, and what that is now."""
        weight = self.base_layer.weight
        yield self.base_layer, "weight", weight
        yield self.base_layer, "bias", self.base_layer.bias
        yield self, "active", self.active
        for adapter in self.adding():
            yield adapter, "scale", adapter.scale
            yield from ((adapter, name, p) for name, p in vars(adapter).items() if isinstance(p, Parameter))
        held = (weight, *(p for adapter in self.adding() for p in vars(adapter).values()))
        yield from ((p, "data", p.data) for p in held if isinstance(p, Parameter))

    def fold(self, weight: Weight) -> Any:
        """The floats of a weight, this layer's or another, with the active updates in: (out, in)."""
        dense = weight.xp.empty(weight.shape, weight.dtype)
        for rows, w in weight.tiles():
            folded = w
            for adapter in self.adding():
                folded = adapter.fold(folded, w, rows)
            dense[rows] = folded
        return dense

    def inner(self) -> Linear:
        return self.base_layer

    def names(self) -> list[str]:
        """The adapters that have something here."""
        return list(self.adapters)

    def parts(self, name: str) -> dict[str, Parameter]:
        """What this adapter trains here, under the names that PEFT's files use."""
        own = vars(self.adapters[name]).items()
        return {PARTS.get(part, part): p for part, p in own if isinstance(p, Parameter)}

    def tree(self) -> list[str]:
        """One line: the base's weight, each adapter with its rank and scale, and the state."""
        base, kind = self.base_layer.extra_repr(), type(self).__name__
        adapters = "".join(f"; {name}: {_described(adapter)}" for name, adapter in self.adapters.items())
        state = f"active {', '.join(self.active) or 'none'}" if self.enabled else "disabled"
        return [f"{kind}({base}{adapters}; {state}{', merged' if self.merged else ''})"]

    def attributes(self) -> Iterable[tuple[str, Any]]:
        # Weights are called as in PEFT, lora_A.default; adapters.default.lora_A would be the same once more.
        return [*((part, getattr(self, part)) for part in PARTS), *super().attributes()]


def _described(adapter: Adapter | TrainedBias) -> str:
    words = [f"rank {len(adapter.lora_A)}, scale {adapter.scale:g}"] if isinstance(adapter, Adapter) else []
    words += [type(adapter).__name__] if type(adapter) not in (Adapter, TrainedBias) else []
    words += ["bias"] if adapter.trained_bias is not None else []
    return ", ".join([*words, "trains" if any(p.requires_grad for p in adapter.parameters()) else "frozen"])
