"""Which layers an adapter goes to: names, suffixes, regular expressions, and errors that list what there is.

Also which adapters and adapted layers a model has.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tinyllm.backend.names import nearest
from tinyllm.frozen.weight import FrozenWeight
from tinyllm.lora.config import LoRAConfig, matches
from tinyllm.lora.layer import LoRALinear
from tinyllm.lora.saved import SavedModule
from tinyllm.nn import Linear, Module
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
    found: list[str] = []
    saved: tuple[str, ...] = ()
    for path, module in model.named_modules():
        if isinstance(module, SavedModule):
            saved += (f"{path}.",)
        elif isinstance(module, LoRALinear) or (isinstance(module, Linear) and not path.endswith("base_layer")):
            if not path.startswith(saved):
                found.append(path)
    return sorted(found, key=lambda path: path.endswith("lm_head"))


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
    decoder = [name for name in names if not name.endswith("lm_head")]
    last = sorted({name.rpartition(".")[2] for name in names})
    if target_modules is None:
        target_modules = [name for name in decoder if name.rpartition(".")[2] in ATTENTION]
    several = isinstance(target_modules, list | tuple | set | frozenset)
    if not isinstance(target_modules, str) and not (several and all(isinstance(t, str) for t in target_modules)):
        raise TypeError(f"target_modules must be a string or a list of strings, not {target_modules!r}")
    if not len(target_modules):
        raise ValueError(f"there is no target module; name some of: {', '.join(last)}")
    if isinstance(target_modules, str):
        if target_modules == "all-linear":
            return decoder
        matched = [name for name in names if matches(target_modules, name, whole=True)]
        if not matched:
            raise ValueError(
                f"the expression {target_modules!r} matches no linear layer; names look like {decoder[0]}, ending "
                f"in {', '.join(last)} (an expression must match the whole name; for one name pass a list)"
            )
        return matched
    chosen: set[str] = set()
    for target in target_modules:
        head, _, tail = target.rpartition(".")
        ends = ALIASES.get(tail, ()) if not any(name == target or name.endswith("." + target) for name in names) else ()
        wanted = [f"{head}.{end}" if head else end for end in ends] or [target]
        hits = {name for name in names for w in wanted if name == w or name.endswith("." + w)}
        if not hits:
            hint = nearest(tail, last, "did you mean {!r}? ")
            raise ValueError(f"target module {target!r} matches nothing; {hint}there are: {', '.join(last)}")
        chosen |= hits
    return [name for name in names if name in chosen]


def is_tied(model: Module, path: str) -> bool:
    """Whether another layer uses the weight of the layer at `path`, too, adapted or not."""
    module = model.get(path)
    weight = getattr(getattr(module, "original", getattr(module, "base_layer", module)), "weight", None)
    holders = [
        m for p, m in model.named_modules() if not p.endswith(("original", "base_layer")) and ".copies." not in p
    ]
    inner = [getattr(m, "original", getattr(m, "base_layer", m)) for m in holders]
    return weight is not None and sum(getattr(m, "weight", None) is weight for m in inner) > 1


def refuse_tied_head(model: Module, targets: list[str]) -> None:
    for path in targets:
        if is_tied(model, path):
            raise ValueError(
                f"{path} is tied to the embedding, so adapting it would change both once it is merged; leave it out, "
                "call tinyllm.lora.untie_head(model) first, or build the model with tie_embeddings=False"
            )


def biased(model: Module, targets: list[str]) -> list[str]:
    """The modules whose bias trains under `bias="all"` beside the targets.

    Raises
    ------
    ValueError
        If a bias stands inside a module that another adapter's `modules_to_save` replaces.
    """
    found = []
    for path, module in model.named_modules():
        if path.endswith(("base_layer", "original")) or ".copies." in path or path in targets:
            continue  # seen as what wraps it
        inner = getattr(module, "original", getattr(module, "base_layer", module))
        if isinstance(getattr(inner, "bias", None), Parameter):
            if ".original." in path:
                raise ValueError(
                    f"bias='all' would train the bias of {path}, inside a module another adapter trains whole; "
                    "use bias='lora_only', or a model without that adapter"
                )
            found.append(path)
    return found


def resolve_saved(model: Module, name: str) -> list[str]:
    paths = [path for path, module in model.named_modules() if path == name or path.endswith("." + name)]
    if not paths:
        there = sorted({path.rpartition(".")[2] for path, _ in model.named_modules() if path})
        raise ValueError(
            f"modules_to_save names {name!r}, which matches nothing; "
            f"there are: {', '.join(n for n in there if not n.isdigit())}"
        )
    if any(isinstance(w, FrozenWeight) for path in paths for _, w in model.get(path).named_weights()):
        raise ValueError(
            f"modules_to_save names {name!r}, which is stored frozen and cannot train; build the model without storage="
        )
    return paths


def adapter_configs(model: Module) -> dict[str, LoRAConfig]:
    """The model's adapters by name; the dict itself, kept on the model."""
    if "adapters" not in vars(model):
        model.adapters = {}  # type: ignore[attr-defined]
    return model.adapters  # type: ignore[attr-defined]


def lora_layers(model: Module) -> Iterator[tuple[str, LoRALinear]]:
    """Pairs of path and adapted layer."""
    for path, module in model.named_modules():
        if isinstance(module, LoRALinear):
            yield path, module


def adapted_layers(model: Module) -> list[LoRALinear | SavedModule]:
    """Every adapted layer. Raises if there is none, saying why where it is known."""
    found: list = [m for _, m in model.named_modules() if isinstance(m, LoRALinear | SavedModule)]
    if not found:
        if getattr(model, "merged_for_good", False):
            raise RuntimeError(
                "the adapters were merged with keep_base=False, so the original weights are gone; "
                "load the base model again"
            )
        raise RuntimeError("this model has no adapters; call apply_lora or apply_qlora first")
    return found
