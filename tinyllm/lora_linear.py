"""A linear layer with LoRA beside it: y = W x + scale * B A x, with W frozen (arXiv 2106.09685, eq. 3).

           x (batch, time, in)
          /                  \\
     W (out, in)         A (r, in)      r numbers a token instead of in
     frozen              B (out, r)     B starts at zero: at first nothing changes
          \\                  /
       y = W x  +  alpha/r * B (A x)

An adapted layer has one explicit state: which adapters there are, which are active, enabled or not, merged or not.
Outputs follow `enabled` and `active` alone; merging only makes them cheaper. Read next: `lora_targets.py`, `lora.py`.
"""

from __future__ import annotations

import copy
import math
import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tinyllm import functional as F
from tinyllm.backend import random
from tinyllm.backend.table import of
from tinyllm.frozen import FrozenWeight
from tinyllm.nn import Dropout, Linear, Module
from tinyllm.tensor import Parameter, Tensor


@dataclass
class LoRAConfig:
    """How adapters are made; the fields are those of PEFT's LoraConfig."""

    rank: int = 8  # numbers a token is squeezed through; more rank, more to learn with
    alpha: float = 16.0  # the update is scaled by alpha / rank, so rank can change without retuning lr
    dropout: float = 0.0  # on the adapter's input only
    target_modules: Any = None  # None: attention; list of names or suffixes; regular expression; "all-linear"
    use_rslora: bool = False  # scale by alpha / sqrt(rank): high ranks keep learning (arXiv 2312.03732)
    rank_pattern: dict[str, int] = field(default_factory=dict)  # {regular expression of a module's name: rank}
    alpha_pattern: dict[str, float] = field(default_factory=dict)  # the same for alpha
    modules_to_save: tuple[str, ...] = ()  # modules that are trained whole and saved with the adapter

    def __post_init__(self) -> None:
        self.modules_to_save = tuple(self.modules_to_save or ())
        if not isinstance(self.rank, int | np.integer) or self.rank < 1:
            raise ValueError(f"rank must be a whole number of at least 1, not {self.rank!r}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), not {self.dropout}")
        if not self.alpha > 0:
            raise ValueError(f"alpha must be above 0, not {self.alpha}")
        for pattern, value in [*self.rank_pattern.items(), *self.alpha_pattern.items()]:
            if not value > 0:
                raise ValueError(f"the rank and alpha of a pattern must be above 0; {pattern!r} has {value}")

    def rank_of(self, path: str) -> int:
        return int(by_pattern(self.rank_pattern, path, self.rank))

    def scale_of(self, path: str) -> float:
        """alpha / rank, or alpha / sqrt(rank) for rsLoRA."""
        rank = self.rank_of(path)
        return float(by_pattern(self.alpha_pattern, path, self.alpha)) / (math.sqrt(rank) if self.use_rslora else rank)


def matches(pattern: str, path: str, whole: bool = False) -> bool:
    """Whether a regular expression is for the module at `path`: PEFT's rules, the end of its name or all of it."""
    try:
        re.compile(pattern)  # alone, for ")(" is one only between our brackets
    except (re.error, TypeError) as error:
        raise ValueError(f"{pattern!r} is no regular expression: {error}; for plain names pass a list") from None
    return bool(re.fullmatch(pattern if whole else rf"(.*\.)?({pattern})", path))


def by_pattern(patterns: dict[str, Any], path: str, default: Any) -> Any:
    for pattern, value in patterns.items():
        if matches(pattern, path):
            return value
    return default


class LoRALinear(Module):
    """A frozen linear layer with adapters beside it.

    Attributes
    ----------
    base_layer : Linear
        Its weight is (out, in), a frozen Parameter or a FrozenWeight; never written to.
    lora_A, lora_B : dict of str to Parameter
        A (r, in) and B (out, r) by adapter name.
    scale : dict of str to float
    active : tuple of str
        The adapters whose updates are added.
    enabled : bool
    merged : bool
        Whether the active updates are folded into `merged_weight`, which then is used instead.
    """

    def __init__(self, base_layer: Linear):
        self.base_layer = base_layer
        self.lora_A: dict[str, Parameter] = {}
        self.lora_B: dict[str, Parameter] = {}
        self.scale: dict[str, float] = {}
        self.lora_dropout: dict[str, Dropout] = {}
        self.active: tuple[str, ...] = ()
        self.enabled = True
        self.merged = False
        self._folded: tuple[Any, list] | None = None  # the merged weight and the arrays it was made from

    def add_adapter(self, name: str, rank: int, scale: float, dropout: float) -> None:
        """Make A from U(-1/sqrt(in), 1/sqrt(in)) (PEFT's kaiming_uniform with a = sqrt(5)) and B = 0."""
        n_in, n_out, dtype = self.base_layer.in_features, self.base_layer.out_features, self.base_layer.weight.dtype
        bound = 1 / math.sqrt(n_in)
        xp = (
            of(self.base_layer.weight.data).xp
            if isinstance(self.base_layer.weight, Parameter)
            else self.base_layer.weight.xp
        )
        self.lora_A[name] = Parameter(xp.asarray(random.default.uniform((rank, n_in), -bound, bound, dtype)))
        self.lora_B[name] = Parameter(xp.zeros((n_out, rank), dtype))
        self.scale[name] = scale
        self.lora_dropout[name] = Dropout(dropout)

    def delta(self) -> Any:
        """The active update, sum of scale * B A, (out, in), in float32 or better."""
        return sum(self.scale[a] * (self.lora_B[a].data @ self.lora_A[a].data) for a in self.active)

    def merged_weight(self) -> Any:
        """W plus the active update; made once, and again when the base or an adapter's array was replaced."""
        w = self.base_layer.weight
        sources = [w if isinstance(w, FrozenWeight) else w.data]
        sources += [p[a].data for a in self.active for p in (self.lora_A, self.lora_B)] + [list(self.scale.items())]
        if self._folded is None or not _same(self._folded[1], sources):
            dense = w.dense() if isinstance(w, FrozenWeight) else w.data
            self._folded = (dense + self.delta() if self.active else dense, sources)
        return self._folded[0]

    def forward(self, x: Tensor) -> Tensor:
        if not self.enabled or not self.active:
            return self.base_layer(x)
        if self.merged:
            return F.linear(x, Tensor(self.merged_weight()), self.base_layer.bias)
        y = self.base_layer(x)
        for name in self.active:
            h = F.linear(self.lora_dropout[name](x), self.lora_A[name])  # (batch, time, r)
            y = y + F.linear(h * self.scale[name], self.lora_B[name])
        return y


def _same(a: list, b: list) -> bool:
    return len(a) == len(b) and all(x is y for x, y in zip(a[:-1], b[:-1], strict=True)) and a[-1] == b[-1]


class SavedModule(Module):
    """A module of `modules_to_save`: the frozen original and one trained copy an adapter."""

    def __init__(self, original: Module):
        self.original = original
        self.copies: dict[str, Module] = {}
        self.active: tuple[str, ...] = ()
        self.enabled = True

    def chosen(self) -> Module:
        """The module whose weights count now."""
        return self.copies[self.active[-1]] if self.enabled and self.active else self.original

    @property
    def weight(self) -> Any:
        return self.chosen().weight  # type: ignore[attr-defined]

    def forward(self, *args: Any) -> Any:
        return self.chosen()(*args)


def copy_module(module: Module) -> Module:
    twin = copy.copy(module)
    for name, value in list(vars(twin).items()):
        if isinstance(value, Parameter):
            setattr(twin, name, Parameter(value.data.copy()))
        elif isinstance(value, Module):
            setattr(twin, name, copy_module(value))
    return twin
