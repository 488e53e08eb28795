"""A module of `modules_to_save`: the frozen original and one trained copy an adapter."""

from __future__ import annotations

import copy
from typing import Any

from tinyllm.lora.layer import trained_dtype
from tinyllm.nn import Module
from tinyllm.tensor import Parameter


class SavedModule(Module):
    """Stands before the original; the copy of the last active adapter answers in its place.

    With `bias="all"` a norm's copy has its own bias only and shares the original's weight.
    """

    def __init__(self, original: Module):
        self.original = original
        self.copies: dict[str, Module] = {}
        self.active: tuple[str, ...] = ()
        self.enabled = True

    def add_copy(self, name: str, bias_only: bool = False) -> None:
        twin = copy_module(self.original)
        if bias_only:
            for part, weight in self.original.named_weights():
                if part != "bias":
                    twin.set_weight(part, weight)
        self.copies[name] = twin

    def inner(self) -> Module:
        return self.original

    def chosen(self) -> Module:
        return self.copies[self.active[-1]] if self.enabled and self.active else self.original

    def names(self) -> list[str]:
        """The adapters that have a copy."""
        return list(self.copies)

    def is_whole(self, name: str) -> bool:
        """Whether this adapter trains all of the module, and not its bias alone."""
        return name in self.copies and len(self.parts(name)) == len(dict(self.original.named_weights()))

    def parts(self, name: str) -> dict[str, Parameter]:
        """What this adapter's copy has of its own; what it shares with the original does not train."""
        shared = {id(weight) for _, weight in self.original.named_weights()}
        return {part: p for part, p in self.copies[name].named_parameters() if id(p) not in shared}

    def extra_repr(self) -> str:
        return f"active {', '.join(self.active) or 'none'}" if self.enabled else "disabled"

    @property
    def weight(self) -> Any:
        return self.chosen().weight  # type: ignore[attr-defined]

    def forward(self, *args: Any) -> Any:
        return self.chosen()(*args)


def copy_module(module: Module) -> Module:
    """A copy with parameters of its own, which can train; stored weights, which never change, are shared."""
    twin = copy.copy(module)
    for name, value in list(vars(twin).items()):
        if isinstance(value, Parameter):
            setattr(twin, name, Parameter(value.data.astype(trained_dtype(value.dtype))))
        elif isinstance(value, Module):
            setattr(twin, name, copy_module(value))
    return twin
