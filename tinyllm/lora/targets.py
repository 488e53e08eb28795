"""Which layers an adapter goes to: names, suffixes, regular expressions, and errors that list what there is."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tinyllm.backend.names import nearest
from tinyllm.lora.config import matches
from tinyllm.lora.layer import LoRALinear
from tinyllm.nn import Linear, Module, require_model
from tinyllm.tensor import Parameter

# Other libraries' names for the same layers, so that a PEFT config can be used as it is.
ALIASES = {
    "o_proj": ("out_proj",),
    "c_attn": ("qkv_proj",),
    "c_proj": ("out_proj", "down_proj"),
    "c_fc": ("up_proj",),
}
ATTENTION = ("qkv_proj", "q_proj", "k_proj", "v_proj", "out_proj")


def linear_names(model: Module) -> list[str]:
    """The paths of every linear layer that can be adapted, adapted ones included; the head stands last."""
    require_model(model)
    found = [path for path, m in model.named_modules(wrapped=False) if isinstance(m, Linear | LoRALinear)]
    return sorted(found, key=lambda path: is_head(model, path))


def is_head(model: Module, path: str) -> bool:
    """Whether the layer at `path` is the language-model head, adapted or not."""
    return model.get(path).inner().is_head


def resolve_targets(model: Module, target_modules: Any) -> list[str]:
    """The linear layers that `target_modules` means.

    Raises
    ------
    ValueError
        If it, or one name of several, matches nothing (the message lists the names there are), or it is no regular
        expression.
    TypeError
        If it is neither a string nor a list of strings.
    """
    names = linear_names(model)
    decoder = [name for name in names if not is_head(model, name)]
    if target_modules is None:
        target_modules = [name for name in decoder if _last(name) in ATTENTION]
    _check_kind(target_modules, names)
    if isinstance(target_modules, str):
        return decoder if target_modules == "all-linear" else _matched(target_modules, names, decoder)
    chosen = {name for target in target_modules for name in _ending_in(target, names)}
    return [name for name in names if name in chosen]


def _last(path: str) -> str:
    return path.rpartition(".")[2]


def endings(paths: Iterable[str]) -> list[str]:
    """The last parts of these names, each once, by the alphabet."""
    return sorted({_last(path) for path in paths})


def _check_kind(target_modules: Any, names: list[str]) -> None:
    several = isinstance(target_modules, list | tuple | set | frozenset)
    if not isinstance(target_modules, str) and not (several and all(isinstance(t, str) for t in target_modules)):
        raise TypeError(f"target_modules must be a string or a list of strings, not {target_modules!r}")
    if not len(target_modules):
        raise ValueError(f"there is no target module; name some of: {', '.join(endings(names))}")


def _matched(expression: str, names: list[str], decoder: list[str]) -> list[str]:
    """The names that a regular expression means; it must match all of a name."""
    matched = [name for name in names if matches(expression, name, whole=True)]
    if not matched:
        raise ValueError(
            f"the expression {expression!r} matches no linear layer; names look like {decoder[0]}, ending "
            f"in {', '.join(endings(names))} (an expression must match the whole name; for one name pass a list)"
        )
    return matched


def _ending_in(target: str, names: list[str]) -> list[str]:
    """The names that are `target` or end in it, or else in what we call it."""
    head, _, tail = target.rpartition(".")

    def ending(end: str) -> list[str]:
        return [name for name in names if name == end or name.endswith("." + end)]

    found = ending(target)
    if not found:
        found = [name for alias in ALIASES.get(tail, ()) for name in ending(f"{head}.{alias}" if head else alias)]
    if not found:
        hint = nearest(tail, endings(names), "did you mean {!r}? ")
        raise ValueError(f"target module {target!r} matches nothing; {hint}there are: {', '.join(endings(names))}")
    return found


def resolve_saved(model: Module, name: str) -> list[str]:
    """The modules that a name of `modules_to_save` means.

    Raises
    ------
    ValueError
        If there is none, or one is stored frozen.
    """
    there = [path for path, _ in model.named_modules(wrapped=False) if path]
    paths = [path for path in there if path == name or path.endswith("." + name)]
    if not paths:
        raise ValueError(
            f"modules_to_save names {name!r}, which matches nothing; "
            f"there are: {', '.join(n for n in endings(there) if not n.isdigit())}"
        )
    if any(not isinstance(w, Parameter) for path in paths for _, w in model.get(path).named_weights()):
        raise ValueError(
            f"modules_to_save names {name!r}, which is stored frozen and cannot train; build the model without storage="
        )
    return paths
