"""Layers: a Module owns parameters and other modules, found by walking its attributes.

A weight is a `Parameter`, or a `FrozenWeight` that stores less. Names are the path of attributes
(``layers.0.self_attn.q_proj.weight``), as in PyTorch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from tinyllm import functional as F
from tinyllm.backend import random
from tinyllm.backend.device import to_device
from tinyllm.backend.table import of
from tinyllm.frozen import FrozenWeight
from tinyllm.names import few, nearest
from tinyllm.tensor import Parameter, Tensor

Weight = Parameter | FrozenWeight


class Module:
    """Something with parameters. Subclasses set attributes and define ``forward``.

    Attributes may be parameters, modules, or lists and dicts of them.
    """

    training = True
    # What a layer says of itself, so that nobody guesses it from a name.
    is_head = False  # turns channels into the vocabulary's logits
    adapted: Any = None  # of a whole model: which adapters it has (`lora/adapted.py`)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.forward(*args, **kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__} defines no forward()")

    def children(self) -> Iterator[tuple[str, Module]]:
        """Pairs of name and module, one level down."""
        for name, value in _attributes(self):
            if isinstance(value, Module):
                yield name, value

    def attributes(self) -> Iterable[tuple[str, Any]]:
        """Pairs of name and value, among which weights and modules are looked for."""
        return vars(self).items()

    def named_modules(self, prefix: str = "", wrapped: bool = True) -> Iterator[tuple[str, Module]]:
        """This module and all below it, with their paths; without `wrapped` a wrapper stands for all that it holds."""
        yield prefix, self
        if wrapped or self.inner() is self:
            for name, child in self.children():
                yield from child.named_modules(f"{prefix}.{name}" if prefix else name, wrapped)

    def inner(self) -> Module:
        """The layer that a wrapper stands before, as an adapter does; of any other module itself."""
        return self

    def chosen(self) -> Module:
        """The module whose weights count now, where a wrapper has several; of any other module itself."""
        return self

    def named_weights(self) -> Iterator[tuple[str, Weight]]:
        """Every weight with its path, stored ones too; a tied weight once, under its first name."""
        seen: set[int] = set()
        for path, module in self.named_modules():
            for name, value in _attributes(module):
                if isinstance(value, Parameter | FrozenWeight) and id(value) not in seen:
                    seen.add(id(value))
                    yield f"{path}.{name}" if path else name, value

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """Parameters with their paths, tied ones once. Stored weights are not parameters: they cannot train."""
        for name, weight in self.named_weights():
            if isinstance(weight, Parameter):
                yield name, weight

    def parameters(self) -> Iterator[Parameter]:
        """The parameters of `named_parameters`."""
        for _, parameter in self.named_parameters():
            yield parameter

    def num_parameters(self, trainable_only: bool = False) -> int:
        """How many numbers the weights stand for, however they are stored; or only those that train."""
        return sum(w.size for _, w in self.named_weights() if w.requires_grad or not trainable_only)

    def requires_grad_(self, wanted: bool = True) -> Module:
        """Set ``requires_grad`` of every parameter."""
        for parameter in self.parameters():
            parameter.requires_grad = wanted
        return self

    def zero_grad(self) -> None:
        """Drop every gradient."""
        for parameter in self.parameters():
            parameter.grad = None

    def train(self, mode: bool = True) -> Module:
        """Training mode: dropout is on. Nothing else changes."""
        for _, module in self.named_modules():
            module.training = mode
        return self

    def eval(self) -> Module:
        """Evaluation mode: dropout is off."""
        return self.train(False)

    def set_weight(self, path: str, weight: Weight) -> None:
        """Put `weight` where `path` points, wherever it is tied to."""
        old = self.get(path)
        for _, module in self.named_modules():
            for name, value in _attributes(module):
                if value is old:
                    _assign(module, name, weight)

    def get(self, path: str) -> Any:
        """The module or weight at a dotted path."""
        found: Any = self
        for part in path.split("."):
            if isinstance(found, list | tuple):
                found = found[int(part)]
            else:
                found = found[part] if isinstance(found, dict) else getattr(found, part)
        return found

    def replace(self, path: str, module: Module) -> None:
        """Put another module where `path` points."""
        parent, _, name = path.rpartition(".")
        holder = self.get(parent) if parent else self
        if isinstance(holder, list):
            holder[int(name)] = module
        elif isinstance(holder, dict):
            holder[name] = module
        else:
            setattr(holder, name, module)

    def state_dict(self) -> dict[str, Weight]:
        """Every weight by name; what `tinyllm.save` writes."""
        return dict(self.named_weights())

    def load_state_dict(self, state: dict[str, Any], strict: bool = True) -> tuple[list[str], list[str]]:
        """Put arrays into the weights of the same names.

        Parameters
        ----------
        state : dict of str to array, Tensor or FrozenWeight
        strict : bool
            Refuse missing and unexpected names; otherwise return them.

        Returns
        -------
        missing, unexpected : lists of str

        Raises
        ------
        KeyError
            If names differ and `strict`, or if nothing matched at all.
        ValueError
            If a shape differs, or floats meet a stored weight. Nothing is changed then.
        """
        own = self.state_dict()
        missing = [name for name in own if name not in state]
        unexpected = [name for name in state if name not in own]
        matched = [name for name in own if name in state]
        if strict and (missing or unexpected):
            raise KeyError(f"the state does not fit: {_differences(missing, unexpected, own)}")
        if not matched:
            raise KeyError(f"nothing in the state matches this model: {_differences(missing, unexpected, own)}")
        for name in matched:
            if tuple(state[name].shape) != tuple(own[name].shape):
                raise ValueError(
                    f"{name} has shape {tuple(own[name].shape)}, but the state's has {tuple(state[name].shape)}"
                )
            weight = own[name]
            if isinstance(weight, FrozenWeight) and not isinstance(state[name], FrozenWeight):
                raise ValueError(
                    f"{name} is stored as {weight.storage}, and the state holds floats; "
                    "build the model without storage="
                )
        for name in matched:
            self._put(name, own[name], state[name])
        return missing, unexpected

    def _put(self, name: str, old: Weight, new: Any) -> None:
        if isinstance(new, FrozenWeight):
            self.set_weight(name, new.move(to_device))
        elif isinstance(old, Parameter):
            array = new.data if isinstance(new, Tensor) else new
            xp = of(old.data).xp
            old.data = xp.array(xp.asarray(array), dtype=old.dtype)  # a copy: the state stays the caller's


def _differences(missing: list[str], unexpected: list[str], own: dict) -> str:
    parts = []
    if missing:
        parts.append(f"missing {few(missing)}")
    if unexpected:
        parts.append(f"unexpected {few(unexpected)}{nearest(unexpected[0], own)}")
    return "; ".join(parts)


def _attributes(module: Module) -> Iterator[tuple[str, Any]]:
    """Attributes with lists and dicts opened: ``layers.0``, ``lora_A.default``."""
    for name, value in module.attributes():
        if isinstance(value, list | tuple):
            yield from ((f"{name}.{i}", item) for i, item in enumerate(value))
        elif isinstance(value, dict):
            yield from ((f"{name}.{key}", item) for key, item in value.items())
        else:
            yield name, value


def _assign(module: Module, name: str, value: Any) -> None:
    head, _, key = name.partition(".")
    if not key:
        setattr(module, head, value)
    elif isinstance(getattr(module, head), dict):
        getattr(module, head)[key] = value
    else:
        getattr(module, head)[int(key)] = value


def placeholder(shape: tuple[int, ...], dtype: Any) -> Parameter:
    """A parameter with a shape and no memory: every element is the same zero. To be filled before use."""
    return Parameter(np.broadcast_to(np.zeros((), dtype), shape))


class Linear(Module):
    """y = x W^T + b.

    Parameters
    ----------
    in_features, out_features : int
    bias : bool
    dtype : dtype
    init : bool
        Draw W from U(-1/sqrt(in), 1/sqrt(in)) as PyTorch does; otherwise leave a placeholder to be filled.

    Attributes
    ----------
    weight : Parameter or FrozenWeight (out_features, in_features)
    bias : Parameter (out_features,) or None
    """

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, dtype: Any = np.float32, init: bool = True
    ):
        self.in_features, self.out_features = in_features, out_features
        self.weight: Weight = placeholder((out_features, in_features), dtype)
        if init:
            bound = in_features**-0.5
            drawn = random.default.uniform((out_features, in_features), -bound, bound, dtype)
            self.weight = Parameter(to_device(drawn))
        self.bias = Parameter(to_device(np.zeros(out_features, dtype))) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class Embedding(Module):
    """Rows of a table by integer id; normal with standard deviation 0.02 unless `init` is off."""

    def __init__(self, num_embeddings: int, embedding_dim: int, dtype: Any = np.float32, init: bool = True):
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.weight: Weight = placeholder((num_embeddings, embedding_dim), dtype)
        if init:
            self.weight = Parameter(to_device(random.default.normal((num_embeddings, embedding_dim), 0.02, dtype)))

    def forward(self, ids: Any) -> Tensor:
        return F.embedding(self.weight, ids)


class RMSNorm(Module):
    """x / sqrt(mean(x^2) + eps) * weight."""

    def __init__(self, size: int, eps: float = 1e-6, dtype: Any = np.float32):
        self.weight, self.eps = Parameter(to_device(np.ones(size, dtype))), eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight, self.eps)


class LayerNorm(Module):
    """(x - mean) / sqrt(variance + eps) * weight + bias."""

    def __init__(self, size: int, eps: float = 1e-5, dtype: Any = np.float32):
        self.weight, self.bias = Parameter(to_device(np.ones(size, dtype))), Parameter(to_device(np.zeros(size, dtype)))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight, self.bias, self.eps)


class Dropout(Module):
    """Zeroes elements with probability `p` in training mode."""

    def __init__(self, p: float):
        if not 0 <= p < 1:
            raise ValueError(f"the dropout probability must be in [0, 1), not {p}")
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.p, self.training)
