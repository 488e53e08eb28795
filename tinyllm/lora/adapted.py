"""Which adapters a model has, and which of its modules they changed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from tinyllm.lora.config import LoRAConfig
from tinyllm.lora.layer import LoRALinear
from tinyllm.lora.saved import SavedModule
from tinyllm.nn import Module, require_model


@dataclass
class Adapted:
    """What a model remembers of its adapters."""

    configs: dict[str, LoRAConfig] = field(default_factory=dict)  # by adapter name
    merged_for_good: bool = False  # the original weights are gone


def remembered(model: Module) -> Adapted:
    """The model's own record, made when it is first asked for."""
    require_model(model)
    if model.adapted is None:
        model.adapted = Adapted()
    return model.adapted


def adapter_configs(model: Module) -> dict[str, LoRAConfig]:
    """The model's adapters by name; the dict itself, kept on the model."""
    return remembered(model).configs


def adapted_modules(model: Module) -> Iterator[tuple[str, LoRALinear | SavedModule]]:
    """Pairs of path and whatever adapters changed."""
    for path, module in model.named_modules():
        if isinstance(module, LoRALinear | SavedModule):
            yield path, module


def lora_layers(model: Module) -> Iterator[tuple[str, LoRALinear]]:
    """Pairs of path and adapted layer."""
    return ((path, module) for path, module in adapted_modules(model) if isinstance(module, LoRALinear))


def saved_modules(model: Module) -> Iterator[tuple[str, SavedModule]]:
    """Pairs of path and module of which adapters have copies."""
    return ((path, module) for path, module in adapted_modules(model) if isinstance(module, SavedModule))


def adapted_layers(model: Module) -> list[LoRALinear | SavedModule]:
    """Every adapted layer. Raises if there is none, saying why where it is known."""
    memory = remembered(model)
    found = [module for _, module in adapted_modules(model)]
    if found:
        return found
    if memory.merged_for_good:
        raise RuntimeError(
            "the adapters were merged with keep_base=False, so the original weights are gone; load the base model again"
        )
    raise RuntimeError("this model has no adapters; call apply_lora or apply_qlora first")
