"""Which biases train beside the targets under ``bias="all"``, and where there is none to train."""

from __future__ import annotations

from tinyllm.lora.config import LoRAConfig
from tinyllm.nn import Module
from tinyllm.tensor import Parameter


def has_bias(module: Module) -> bool:
    return isinstance(getattr(module.inner(), "bias", None), Parameter)


def other_biases(model: Module, targets: list[str]) -> list[str]:
    """The modules whose bias trains under `bias="all"` beside the targets.

    Raises
    ------
    ValueError
        If a bias stands inside a module that another adapter's `modules_to_save` replaces.
    """
    found = []
    for path, module in model.named_modules(wrapped=False):
        if path in targets:
            continue
        if has_bias(module):
            found.append(path)
        if (inner := module.inner()) is not module:
            _refuse_inside(path, inner)
    return found


def _refuse_inside(path: str, inner: Module) -> None:
    for below, module in inner.named_modules():
        if below and has_bias(module):
            raise ValueError(
                f"bias='all' would train the bias of {path}.{below}, inside a module another adapter trains whole; "
                "use bias='lora_only', or a model without that adapter"
            )


def check_biases(model: Module, config: LoRAConfig, targets: list[str], saved: list[str]) -> None:
    """Raise ValueError if `bias` trains nothing, or a bias that `modules_to_save` trains already."""
    if config.bias == "none":
        return
    others = other_biases(model, targets) if config.bias == "all" else []
    if not others and not any(has_bias(model.get(path)) for path in targets):
        where = "the model has no bias" if config.bias == "all" else "no target module has a bias"
        raise ValueError(f"bias={config.bias!r} trains nothing: {where}; use 'none'")
    for path in saved:
        if path in others or any(other.startswith(f"{path}.") for other in others):
            raise ValueError(
                f"modules_to_save trains {path} whole, its bias too, so bias='all' cannot; use 'lora_only' or 'none'"
            )
