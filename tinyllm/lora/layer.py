"""A linear layer with LoRA beside it: y = W x + scale * B A x, with W frozen (arXiv 2106.09685, eq. 3).

           x (batch, time, in)
          /                  \
     W (out, in)         A (r, in)      r numbers a token instead of in
     frozen              B (out, r)     B starts at zero: at first nothing changes
          \\                  /
       y = W x  +  alpha/r * B (A x)

With DoRA (`dora.py`) the rows of W + scale * B A are brought to trained lengths as well; a bias may be trained, too.
An adapted layer has one explicit state: which adapters there are, which are active, enabled or not, merged or not.
Outputs follow `enabled` and `active` alone; merging only makes them cheaper.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tinyllm import functional as F
from tinyllm.backend import random
from tinyllm.backend.table import of
from tinyllm.frozen import FrozenWeight
from tinyllm.lora.dora import norms_of, row_norms, tiles
from tinyllm.nn import Dropout, Linear, Module
from tinyllm.tensor import Parameter, Tensor


class LoRALinear(Module):
    """A frozen linear layer with adapters beside it.

    Attributes
    ----------
    base_layer : Linear
        Its weight is (out, in), a frozen Parameter or a FrozenWeight; never written to, nor is its bias.
    lora_A, lora_B : dict of str to Parameter
        A (r, in) and B (out, r) by adapter name.
    magnitude : dict of str to Parameter
        DoRA's m (out,), of the adapters that have it.
    trained_bias : dict of str to Parameter
        The bias (out,) an adapter uses instead of the base's, of those that train it; they may have no A and B here.
    scale : dict of str to float
    active : tuple of str
        The adapters whose updates are added; of several trained biases the last one counts.
    enabled : bool
    merged : bool
        Whether the active updates are folded into `merged_weight`, which then is used instead.
    """

    def __init__(self, base_layer: Linear):
        self.base_layer = base_layer
        self.lora_A: dict[str, Parameter] = {}
        self.lora_B: dict[str, Parameter] = {}
        self.magnitude: dict[str, Parameter] = {}
        self.trained_bias: dict[str, Parameter] = {}
        self.scale: dict[str, float] = {}
        self.lora_dropout: dict[str, Dropout] = {}
        self.active: tuple[str, ...] = ()
        self.enabled = True
        self.merged = False
        self._folded: tuple[Any, list] | None = None  # the merged weight and the arrays it was made from

    def add_adapter(self, name: str, rank: int, scale: float, dropout: float, dora: bool = False) -> None:
        """Make A from U(-1/sqrt(in), 1/sqrt(in)) (PEFT's kaiming_uniform with a = sqrt(5)), B = 0 and m = |W|."""
        n_in, n_out, dtype = self.base_layer.in_features, self.base_layer.out_features, self.base_layer.weight.dtype
        dtype = np.dtype(np.float32) if dtype.itemsize == 2 else dtype  # what trains is float32, whatever computes
        bound = 1 / math.sqrt(n_in)
        w = self._stored()
        xp = w.xp if isinstance(w, FrozenWeight) else of(w).xp
        self.lora_A[name] = a = Parameter(xp.asarray(random.default.uniform((rank, n_in), -bound, bound, dtype)))
        self.lora_B[name] = b = Parameter(xp.zeros((n_out, rank), dtype))
        if dora:
            self.magnitude[name] = Parameter(row_norms(w, a.data, b.data, scale))
        self.scale[name] = scale
        self.lora_dropout[name] = Dropout(dropout)

    def train_bias(self, name: str) -> None:
        """Give this adapter a copy of the bias to train, if there is one; the base's own stays as it is."""
        if self.base_layer.bias is not None:
            self.trained_bias[name] = Parameter(self.base_layer.bias.data.copy())

    def names(self) -> list[str]:
        """The adapters that have something here."""
        return list({**self.lora_A, **self.trained_bias})

    def parts(self, name: str) -> dict[str, Parameter]:
        """What this adapter holds here, under the names that PEFT's files use."""
        held = {"lora_A.weight": self.lora_A, "lora_B.weight": self.lora_B, "lora_magnitude_vector": self.magnitude}
        held["bias"] = self.trained_bias
        return {part: parameters[name] for part, parameters in held.items() if name in parameters}

    def tree(self) -> list[str]:
        """One line: the base's weight, each adapter with its rank and scale, and the state."""
        base = self.base_layer.extra_repr()
        adapters = "".join(f"; {name}: {self._described(name)}" for name in self.names())
        state = f"active {', '.join(self.active) or 'none'}" if self.enabled else "disabled"
        return [f"{type(self).__name__}({base}{adapters}; {state}{', merged' if self.merged else ''})"]

    def _described(self, name: str) -> str:
        parts = self.parts(name)
        words = [f"rank {len(parts['lora_A.weight'])}, scale {self.scale[name]:g}"] if "lora_A.weight" in parts else []
        words += [word for part, word in (("lora_magnitude_vector", "DoRA"), ("bias", "bias")) if part in parts]
        return ", ".join([*words, "trains" if any(p.requires_grad for p in parts.values()) else "frozen"])

    def adapting(self) -> list[str]:
        """The active adapters that have an A and a B here, and not a bias alone."""
        return [name for name in self.active if name in self.lora_A]

    def chosen_bias(self) -> Parameter | None:
        """The bias that counts now."""
        trained = [self.trained_bias[name] for name in self.active if name in self.trained_bias]
        return trained[-1] if self.enabled and trained else self.base_layer.bias

    def fold(self, rows: slice, w: Any) -> Any:
        """Some rows of W with the active updates in, (rows, in). Of several with DoRA each adds its own difference."""
        y = w
        for name in self.adapting():
            update = self.scale[name] * (self.lora_B[name].data[rows] @ self.lora_A[name].data)
            if name not in self.magnitude:
                y = y + update
                continue
            v = w + update
            v = v * (self.magnitude[name].data[rows] / norms_of(v))[:, None]
            y = v if y is w else y + (v - w)
        return y

    def merged_weight(self) -> Any:
        """W with the active updates in; made once, and again when the base or an adapter's array was replaced."""
        w = self._stored()
        held = (self.lora_A, self.lora_B, self.magnitude)
        sources = [w, *(p[name].data for name in self.active for p in held if name in p), [*self.scale.items()]]
        if self._folded is None or not _same(self._folded[1], sources):
            dense = (w.xp if isinstance(w, FrozenWeight) else of(w).xp).empty(w.shape, w.dtype)
            for rows, tile in tiles(w):
                dense[rows] = self.fold(rows, tile)
            self._folded = (dense, sources)
        return self._folded[0]

    def forward(self, x: Tensor) -> Tensor:
        if not self.enabled or not self.active:
            return self.base_layer(x)
        bias = self.chosen_bias()
        if self.merged and self.adapting():
            return F.linear(x, Tensor(self.merged_weight()), bias)
        if self.magnitude.keys() & set(self.active):
            return self._with_magnitude(x, bias)
        y = _linear(x, self.base_layer.weight, bias)
        for name in self.adapting():
            y = y + self._update(self.lora_dropout[name](x), name)
        return y

    def _with_magnitude(self, x: Tensor, bias: Parameter | None) -> Tensor:
        y = wx = _linear(x, self.base_layer.weight)
        for name in self.adapting():
            dropped = self.lora_dropout[name](x)
            if name not in self.magnitude:
                y = y + self._update(dropped, name)
                continue
            # PEFT's rule: with dropout the update replaces W of the dropped input, and W x itself stays whole.
            base = wx if dropped is x else _linear(dropped, self.base_layer.weight)
            a, b = self.lora_A[name].data, self.lora_B[name].data
            length = self.magnitude[name] / Tensor(row_norms(self._stored(), a, b, self.scale[name]))  # (out,)
            turned = (base + self._update(dropped, name)) * length
            y = turned if y is base else y + (turned - base)
        return y if bias is None else y + bias

    def _update(self, x: Tensor, name: str) -> Tensor:
        h = F.linear(x, self.lora_A[name])  # (batch, time, r)
        return F.linear(h * self.scale[name], self.lora_B[name])

    def _stored(self) -> Any:
        w = self.base_layer.weight
        return w if isinstance(w, FrozenWeight) else w.data


def _linear(x: Tensor, weight: Any, bias: Parameter | None = None) -> Tensor:
    return F.linear(x, weight, bias)


def _same(a: list, b: list) -> bool:
    return len(a) == len(b) and all(x is y for x, y in zip(a[:-1], b[:-1], strict=True)) and a[-1] == b[-1]
