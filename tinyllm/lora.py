"""LoRA's verbs: apply, merge, unmerge, enable, disable, set_adapter (Hu et al. 2021, arXiv 2106.09685).

The layer itself is in `lora_linear.py`, what targets mean in `lora_targets.py`. Read next: `qlora.py`, `adapters.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from tinyllm.lora_linear import LoRAConfig, LoRALinear, SavedModule, copy_module, matches
from tinyllm.lora_targets import refuse_tied_head, resolve_saved, resolve_targets
from tinyllm.nn import Module
from tinyllm.tensor import Parameter


def apply_lora(
    model: Module,
    rank: int = 8,
    alpha: float = 16.0,
    dropout: float = 0.0,
    target_modules: Any = None,
    *,
    adapter_name: str = "default",
    use_rslora: bool = False,
    rank_pattern: dict[str, int] | None = None,
    alpha_pattern: dict[str, float] | None = None,
    modules_to_save: Sequence[str] = (),
    verbose: bool = True,
) -> Module:
    """Freeze a model and put adapters beside some of its linear layers.

    Parameters
    ----------
    model : Module
        Changed in place.
    rank, alpha, dropout, use_rslora, rank_pattern, alpha_pattern
        See `LoRAConfig`.
    target_modules : None, list of str, or str
        None means attention; a list matches whole names or suffixes; a string is a regular expression for the whole
        name; "all-linear" is every linear layer of the decoder but not the head. PEFT's names are understood.
    adapter_name : str
        A second call with another name adds an adapter and makes it the active one.
    modules_to_save : list of str
        Modules to train whole, e.g. ``["norm"]``.
    verbose : bool
        Print what is trained.

    Returns
    -------
    Module
        The same model; exactly the new adapter and `modules_to_save` train.

    Raises
    ------
    ValueError
        If a target matches nothing, the adapter exists, or a target is a head tied to the embedding. Nothing is
        changed then.
    TypeError
        If `target_modules` is neither a string nor a list of strings.
    """
    config = LoRAConfig(
        rank,
        alpha,
        dropout,
        target_modules,
        use_rslora,
        dict(rank_pattern or {}),
        dict(alpha_pattern or {}),
        tuple(modules_to_save),
    )
    targets, saved = check_adapter(model, config, adapter_name)
    configs = adapter_configs(model)
    before = model.num_parameters()
    for path in targets:
        layer = model.get(path)
        if not isinstance(layer, LoRALinear):
            layer = LoRALinear(layer)
            model.replace(path, layer)
        layer.add_adapter(adapter_name, config.rank_of(path), config.scale_of(path), dropout)
    for path in saved:
        module = model.get(path)
        if not isinstance(module, SavedModule):
            module = SavedModule(module)
            model.replace(path, module)
        module.copies[adapter_name] = copy_module(module.original)
    configs[adapter_name] = config
    model.merged_for_good = False  # type: ignore[attr-defined]
    model.train(model.training)
    set_adapter(model, adapter_name)
    if verbose:
        print(trainable_summary(model, before))
    return model


def check_adapter(model: Module, config: LoRAConfig, adapter_name: str) -> tuple[list[str], list[str]]:
    """The paths to adapt and the paths to train whole, or a ValueError; changes nothing."""
    targets = resolve_targets(model, config.target_modules)
    if adapter_name in adapter_configs(model):
        raise ValueError(f"there is an adapter {adapter_name!r} already; choose another adapter_name")
    if "." in adapter_name or not adapter_name:
        raise ValueError(f"an adapter's name must not be empty or contain a dot: {adapter_name!r}")
    refuse_tied_head(model, targets)
    saved = [path for name in config.modules_to_save for path in resolve_saved(model, name)]
    for path in saved:
        within = [target for target in targets if target == path or target.startswith(f"{path}.")]
        if within:
            raise ValueError(
                f"modules_to_save trains {path} whole, so {within[0]} cannot be a target too; leave out one of them"
            )
    for pattern in [*config.rank_pattern, *config.alpha_pattern]:
        if not any(matches(pattern, path) for path in targets):
            ends = ", ".join(sorted({target.rpartition(".")[2] for target in targets}))
            raise ValueError(f"the pattern {pattern!r} matches none of the target modules; they end in {ends}")
    return targets, saved


def adapter_configs(model: Module) -> dict[str, LoRAConfig]:
    """The model's adapters by name; the dict itself, kept on the model."""
    if "adapters" not in vars(model):
        model.adapters = {}  # type: ignore[attr-defined]
    return model.adapters  # type: ignore[attr-defined]


def trainable_summary(model: Module, before: int | None = None) -> str:
    """One line: how many parameters train, out of how many."""
    trainable, total = model.num_parameters(trainable_only=True), model.num_parameters()
    share = 100 * trainable / total
    return f"trainable parameters: {trainable:,} of {total:,} ({share:.2f} %), a reduction of {100 - share:.2f} %"


def _layers(model: Module) -> list[LoRALinear | SavedModule]:
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


def set_adapter(model: Module, names: str | Sequence[str]) -> None:
    """Make these adapters the active ones, and the only ones that train.

    Raises
    ------
    ValueError
        If there is no adapter of that name.
    """
    chosen = (names,) if isinstance(names, str) else tuple(dict.fromkeys(names))
    known = adapter_configs(model)
    for name in chosen:
        if name not in known:
            raise ValueError(f"there is no adapter {name!r}; there are: {', '.join(known) or 'none'}")
    model.requires_grad_(False)
    for layer in _layers(model):
        held = layer.lora_A if isinstance(layer, LoRALinear) else layer.copies
        layer.active = tuple(name for name in chosen if name in held)
        for name in layer.active:
            if isinstance(layer, LoRALinear):
                layer.lora_A[name].requires_grad = layer.lora_B[name].requires_grad = True
            else:
                layer.copies[name].requires_grad_(True)
    enabled = [layer.enabled for layer in _layers(model)]
    for layer in _layers(model):  # a layer that came later joins the state of the others
        layer.enabled = all(enabled)
        if isinstance(layer, LoRALinear):
            layer.merged = any(other.merged for other in _layers(model) if isinstance(other, LoRALinear))


def enable_lora(model: Module) -> Module:
    """Let the active adapters count (again), merged or not."""
    for layer in _layers(model):
        layer.enabled = True
    return model


def disable_lora(model: Module) -> Module:
    """Answer as the base model does, bit for bit, merged or not."""
    for layer in _layers(model):
        layer.enabled = False
    return model


def merge_lora(model: Module, keep_base: bool = True) -> Module:
    """Fold the active adapters into the weights, so that they cost nothing to use.

    Parameters
    ----------
    model : Module
    keep_base : bool
        Keep the original weights, so that `unmerge_lora` and `disable_lora` put them back bit for bit. With False the
        adapted layers become plain linear layers again and the original weights are gone.

    Returns
    -------
    Module
        The same model. W + scale * B A is computed in float; an NF4 or half-precision base is dequantised first, which
        is the base the adapter was trained on.

    Raises
    ------
    RuntimeError
        If there are no adapters, or they are disabled while ``keep_base=False``.
    """
    if getattr(model, "merged_for_good", False):
        return model
    layers = _layers(model)
    if not keep_base:
        if not all(layer.enabled for layer in layers):
            raise RuntimeError("the adapters are disabled; call enable_lora before merging them for good")
        for path, module in list(model.named_modules()):
            if isinstance(module, LoRALinear):
                module.base_layer.weight = Parameter(module.merged_weight(), requires_grad=False)
                model.replace(path, module.base_layer)
            elif isinstance(module, SavedModule):
                model.replace(path, module.chosen())
        adapter_configs(model).clear()
        model.merged_for_good = True  # type: ignore[attr-defined]
        return model
    for layer in layers:
        if isinstance(layer, LoRALinear):
            layer.merged, layer._folded = True, None  # an optimiser may have changed the arrays in place
            layer.merged_weight()
    return model


def unmerge_lora(model: Module) -> Module:
    """Use the original weights and the adapters beside them again; the original bits, nothing is subtracted."""
    for layer in _layers(model):
        if isinstance(layer, LoRALinear):
            layer.merged, layer._folded = False, None
    return model


def get_lora_parameters(model: Module) -> list[Parameter]:
    """What trains: the active adapters' A and B, and what `modules_to_save` names.

    Raises
    ------
    RuntimeError
        If the model has no adapters.
    """
    _layers(model)
    return [p for p in model.parameters() if p.requires_grad]


def lora_layers(model: Module) -> Iterator[tuple[str, LoRALinear]]:
    """Pairs of path and adapted layer."""
    for path, module in model.named_modules():
        if isinstance(module, LoRALinear):
            yield path, module
