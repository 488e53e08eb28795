"""LoRA's verbs: apply, enable, disable, set_adapter; merge and unmerge are in `merge.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tinyllm.backend.names import in_our_words
from tinyllm.lora.adapted import adapted_layers, adapter_configs, lora_layers, remembered
from tinyllm.lora.biases import check_biases, other_biases
from tinyllm.lora.config import LoRAConfig, matches
from tinyllm.lora.dora import DoRA
from tinyllm.lora.heads import refuse_tied_head
from tinyllm.lora.layer import Adapter, LoRALinear
from tinyllm.lora.saved import SavedModule
from tinyllm.lora.targets import endings, resolve_saved, resolve_targets
from tinyllm.nn import Linear, Module
from tinyllm.tensor import Parameter


@in_our_words()
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
    use_dora: bool = False,
    bias: str = "none",
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
    use_dora : bool
        Train the lengths of the weights' rows, too (arXiv 2402.09353, see `lora/dora.py`); about a quarter slower.
    bias : {"none", "lora_only", "all"}
        Train copies of the biases: none, those of the targets, or every one there is, norms' too. The originals stay,
        and count again when the adapter is disabled.
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
        rank=rank,
        alpha=alpha,
        dropout=dropout,
        target_modules=target_modules,
        use_rslora=use_rslora,
        rank_pattern=rank_pattern or {},
        alpha_pattern=alpha_pattern or {},
        modules_to_save=modules_to_save,  # type: ignore[arg-type]  # it makes a tuple of any sequence
        use_dora=use_dora,
        bias=bias,
    )
    return add_adapter(model, config, adapter_name, verbose=verbose)


def add_adapter(
    model: Module, config: LoRAConfig, adapter_name: str, *, tied_head: bool = False, verbose: bool = False
) -> Module:
    """`apply_lora` for a whole configuration.

    `tied_head` lets a head that shares the embedding's weight be adapted: its outputs are right; merging parts them.
    """
    targets, saved = check_adapter(model, config, adapter_name, tied_head)
    return place_adapter(model, config, adapter_name, targets, saved, verbose)


def place_adapter(
    model: Module, config: LoRAConfig, adapter_name: str, targets: list[str], saved: list[str], verbose: bool = False
) -> Module:
    """Put beside their layers what `check_adapter` has let pass, and make this adapter the active one."""
    for path in targets:
        layer = _wrapped(model, path, LoRALinear)
        kind = DoRA if config.use_dora else Adapter
        scale, rank = config.scale_of(path), config.rank_of(path)
        layer.adapters[adapter_name] = kind(layer.base_layer, rank, scale, config.dropout)
        if config.bias != "none":
            layer.train_bias(adapter_name)
    for path in other_biases(model, targets) if config.bias == "all" else ():
        if isinstance(model.get(path), Linear | LoRALinear):
            _wrapped(model, path, LoRALinear).train_bias(adapter_name)
        else:
            _wrapped(model, path, SavedModule).add_copy(adapter_name, bias_only=True)
    for path in saved:
        _wrapped(model, path, SavedModule).add_copy(adapter_name)
    adapter_configs(model)[adapter_name] = config
    remembered(model).merged_for_good = False
    model.train(model.training)
    set_adapter(model, adapter_name)
    if verbose:
        print(trainable_summary(model))
    return model


def _wrapped(model: Module, path: str, wrapper: Any) -> Any:
    """The module at `path` as a `LoRALinear` or a `SavedModule`: wrapped, if it is not yet."""
    module = model.get(path)
    if not isinstance(module, wrapper):
        module = wrapper(module)
        model.replace(path, module)
    return module


def check_adapter(
    model: Module, config: LoRAConfig, adapter_name: str, tied_head: bool = False
) -> tuple[list[str], list[str]]:
    """The paths to adapt and the paths to train whole, or a ValueError; changes nothing."""
    targets = resolve_targets(model, config.target_modules)
    if not isinstance(adapter_name, str):
        raise TypeError(f"an adapter's name is a text, not {adapter_name!r}")
    if adapter_name in adapter_configs(model):
        raise ValueError(f"there is an adapter {adapter_name!r} already; choose another adapter_name")
    if "." in adapter_name or not adapter_name:
        raise ValueError(f"an adapter's name must not be empty or contain a dot: {adapter_name!r}")
    if not tied_head:
        refuse_tied_head(model, targets)
    saved = [path for name in config.modules_to_save for path in resolve_saved(model, name)]
    for path in saved:
        within = [target for target in targets if target == path or target.startswith(f"{path}.")]
        if within:
            raise ValueError(
                f"modules_to_save trains {path} whole, so {within[0]} cannot be a target too; leave out one of them"
            )
    check_biases(model, config, targets, saved)
    for pattern in [*config.rank_pattern, *config.alpha_pattern]:
        if not any(matches(pattern, path) for path in targets):
            ends = ", ".join(endings(targets))
            raise ValueError(f"the pattern {pattern!r} matches none of the target modules; they end in {ends}")
    return targets, saved


def trainable_summary(model: Module) -> str:
    """One line: how many parameters train, out of how many."""
    trainable, total = model.num_parameters(trainable_only=True), model.num_parameters()
    share = 100 * trainable / total
    return f"trainable parameters: {trainable:,} of {total:,} ({share:.2f} %), a reduction of {100 - share:.2f} %"


def set_adapter(model: Module, names: str | Sequence[str]) -> None:
    """Make these adapters the active ones, and the only ones that train.

    Raises
    ------
    ValueError
        If there is no adapter of that name.
    """
    if not isinstance(names, str | list | tuple):
        raise TypeError(f"set_adapter takes an adapter's name, or a list of them, not {names!r}")
    chosen = (names,) if isinstance(names, str) else tuple(dict.fromkeys(names))
    known = adapter_configs(model)
    for name in chosen:
        if name not in known:
            raise ValueError(f"there is no adapter {name!r}; there are: {', '.join(known) or 'none'}")
    model.requires_grad_(False)
    for layer in adapted_layers(model):
        layer.active = tuple(name for name in chosen if name in layer.names())
        for name in layer.active:
            for parameter in layer.parts(name).values():
                parameter.requires_grad = True
    _join(model)


def _join(model: Module) -> None:
    """Bring layers that came later into the state of the others."""
    layers = adapted_layers(model)
    enabled = all(layer.enabled for layer in layers)
    for layer in layers:
        layer.enabled = enabled
    linears = [layer for _, layer in lora_layers(model)]
    if any(layer.merged for layer in linears):
        for layer in linears:
            layer.merged = True


def enable_lora(model: Module) -> Module:
    """Let the active adapters count (again), merged or not."""
    for layer in adapted_layers(model):
        layer.enabled = True
    return model


def disable_lora(model: Module) -> Module:
    """Answer as the base model does, bit for bit, merged or not."""
    for layer in adapted_layers(model):
        layer.enabled = False
    return model


def get_lora_parameters(model: Module) -> list[Parameter]:
    """What trains: the active adapters' A and B, DoRA's magnitudes, and what `bias` and `modules_to_save` name.

    Raises
    ------
    RuntimeError
        If the model has no adapters.
    """
    adapted_layers(model)
    return [p for p in model.parameters() if p.requires_grad]
