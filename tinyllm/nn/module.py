"""A Module owns weights and other modules, found by walking its attributes.

A weight is a `Parameter`, or a `FrozenWeight` that stores less. Names are the path of attributes
(``layers.0.self_attn.q_proj.weight``), as in PyTorch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ParamSpec, Protocol, TypeVar

import numpy as np

from tinyllm.backend.device import to_device
from tinyllm.backend.names import few, kind_of, nearest
from tinyllm.backend.table import of
from tinyllm.frozen import FrozenWeight, stored
from tinyllm.nn.tree import described, lines_of
from tinyllm.tensor import Parameter

Weight = Parameter | FrozenWeight

P = ParamSpec("P")
R = TypeVar("R", covariant=True)


class _Callable(Protocol[P, R]):
    """For the type checker: a module takes and gives what its own ``forward`` does."""

    def forward(self, *args: P.args, **kwargs: P.kwargs) -> R: ...


@dataclass(frozen=True)
class Place:
    """Where a weight stands: its path, and the layer and attribute that hold it (``weight``, ``lora_A.default``)."""

    path: str
    layer: Module
    attribute: str

    @property
    def weight(self) -> Weight:
        return self.layer.get(self.attribute)


class Module:
    """Something with parameters. Subclasses set attributes and define ``forward``.

    Attributes may be parameters, modules, or lists and dicts of them.
    """

    training = True
    # What a layer declares, so that nobody guesses it from its name.
    fewest = "float32"  # the storage of the fewest bits that its `weight` bears
    stays_float = False  # float32 also in a model that computes in half precision
    is_head = False  # turns channels into the vocabulary's logits
    residual = False  # what it gives is added to what came in
    adapted: Any = None  # of a whole model: which adapters it has (`lora/adapted.py`)

    def __call__(self: _Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        return self.forward(*args, **kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__} defines no forward()")

    def extra_repr(self) -> str:
        """What stands in this module's brackets: its own weights, their shapes, what keeps them, what trains."""
        weights = [(name, w) for name, w in _attributes(self) if isinstance(w, Weight)]
        return ", ".join(
            f"{name} {w.shape} {stored(w).storage} {'trains' if w.requires_grad else 'frozen'}" for name, w in weights
        )

    def tree(self) -> list[str]:
        """This module and what it is made of, a line each and indented; repeated blocks are shown once."""
        return lines_of(self)

    def __repr__(self) -> str:
        return described(self)

    def children(self) -> Iterator[tuple[str, Module]]:
        """Pairs of name and module, one level down."""
        for name, value in _attributes(self):
            if isinstance(value, Module):
                yield name, value

    def attributes(self) -> Iterable[tuple[str, Any]]:
        """Pairs of name and value, among which weights and modules are looked for."""
        return vars(self).items()

    def named_modules(self, prefix: str = "", wrapped: bool = True) -> Iterator[tuple[str, Module]]:
        """This module and all below it, with their paths; without `wrapped` a wrapper stands for all inside it."""
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

    def places(self) -> list[list[Place]]:
        """All places of each weight, stored ones too, found in one walk: a tied weight has several."""
        found: dict[int, list[Place]] = {}
        for path, module in self.named_modules():
            for name, value in _attributes(module):
                if isinstance(value, Weight):
                    place = Place(f"{path}.{name}" if path else name, module, name)
                    found.setdefault(id(value), []).append(place)
        return list(found.values())

    def named_weights(self) -> Iterator[tuple[str, Weight]]:
        """Every weight with its path, stored ones too; a tied weight once, under its first name."""
        for first, *_ in self.places():
            yield first.path, first.weight

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

    def get(self, path: str) -> Any:
        """The module or weight at a dotted path."""
        parts, found = path.split(".") if path else [], self  # type: list[str], Any
        for i, part in enumerate(parts):
            try:
                key: Any = int(part) if isinstance(found, list | tuple) else part
                found = found[key] if isinstance(found, list | tuple | dict) else getattr(found, part)
            except (AttributeError, LookupError, ValueError):
                known = [name for name, _ in (*self.named_modules(), *self.named_weights()) if name]
                has = f"{'.'.join(parts[:i]) or 'the model'} has {_contents(found)}{nearest(path, known)}"
                raise KeyError(f"there is nothing at {path!r}: {has}") from None
        return found

    def replace(self, path: str, thing: Module | Weight) -> None:
        """Put another module or weight where `path` points, and only there."""
        parent, _, name = path.rpartition(".")
        holder = self.get(parent)
        if isinstance(holder, list):
            holder[int(name)] = thing
        elif isinstance(holder, dict):
            holder[name] = thing
        else:
            setattr(holder, name, thing)

    def set_weight(self, path: str, weight: Weight) -> None:
        """Put `weight` where `path` points, wherever it is tied to."""
        old = self.get(path)
        for places in self.places():
            if places[0].weight is old:
                return put(places, weight)
        raise KeyError(f"{path} is no weight of this model")

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
        TypeError
            If the state is no dict, or holds something else than arrays.
        KeyError
            If names differ and `strict`, or if nothing matched at all.
        ValueError
            If a shape differs, or floats meet a stored weight. Nothing is changed then.
        """
        if not isinstance(state, Mapping):
            raise TypeError(
                f"load_state_dict takes weights by name, not {kind_of(state)}: tinyllm.load(path) reads a file, and a "
                "model's are model.state_dict()"
            )
        own = {places[0].path: places for places in self.places()}
        missing = [name for name in own if name not in state]
        unexpected = [name for name in state if name not in own]
        matched = [name for name in own if name in state]
        if strict and (missing or unexpected):
            raise KeyError(f"the state does not fit: {_differences(missing, unexpected, own)}")
        if not matched:
            raise KeyError(f"nothing in the state matches this model: {_differences(missing, unexpected, own)}")
        for name in matched:
            _refuse_misfit(name, own[name][0].weight, state[name])
        for name in matched:
            _load(own[name], state[name])
        return missing, unexpected


def require_model(model: Any) -> None:
    """TypeError for what is no model: a path, a class, its parameters."""
    if not isinstance(model, Module):
        raise TypeError(f"a model is needed here, not {kind_of(model)}; DecoderModel.from_pretrained(path) reads one")


def put(places: list[Place], weight: Weight) -> None:
    """Put a weight into each of these places."""
    for place in places:
        place.layer.replace(place.attribute, weight)


def _load(places: list[Place], new: Any) -> None:
    """Another stored weight takes the old one's places; floats are copied into it, so that the state stays as it is."""
    old = places[0].weight
    if isinstance(new, FrozenWeight):
        moved = new.move(to_device)
        moved.dtype = old.dtype  # it computes as this model does, whatever it was made for
        put(places, moved)
    elif isinstance(old, Parameter):
        xp = of(old.data).xp
        old.data = xp.array(xp.asarray(stored(new).dense()), dtype=old.dtype)


def _refuse_misfit(name: str, own: Weight, new: Any) -> None:
    if not hasattr(new, "shape"):
        raise TypeError(f"{name} in the state is no array but {kind_of(new)}")
    if tuple(new.shape) != tuple(own.shape):
        raise ValueError(f"{name} has shape {tuple(own.shape)}, but the state's has {tuple(new.shape)}")
    if stored(own).frozen and not stored(new).frozen:
        raise ValueError(
            f"{name} is stored as {stored(own).storage}, and the state holds floats; build the model without storage="
        )


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


def _contents(thing: Any) -> str:
    """What can follow in a path: numbers, keys, or what holds weights."""
    if isinstance(thing, list | tuple) and thing:
        return f"0 to {len(thing) - 1}"
    weights = dict(thing.named_weights()) if isinstance(thing, Module) else thing if isinstance(thing, dict) else {}
    return ", ".join(dict.fromkeys(path.split(".")[0] for path in weights)) or "nothing"


def placeholder(shape: tuple[int, ...], dtype: Any) -> Parameter:
    """A parameter with a shape and no memory: every element is the same zero. To be filled before use."""
    return Parameter(np.broadcast_to(np.zeros((), dtype), shape))


def has_memory(parameter: Parameter) -> bool:
    """Whether this is no `placeholder`."""
    return any(parameter.data.strides)
