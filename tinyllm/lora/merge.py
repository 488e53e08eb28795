"""Merging: fold adapters into the weights, for use beside the base or for good; into which base, and kept as what.

An adapter over a four-bit base has learned to work with that base's rounding errors. Added to the original weights, or
rounded to four bits again, it answers otherwise than it was trained to; `tinyllm merge` prints by how much.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from tinyllm.frozen.half import HalfWeight
from tinyllm.frozen.nf4 import NF4Weight
from tinyllm.frozen.weight import FrozenWeight
from tinyllm.lora.layer import LoRALinear
from tinyllm.lora.saved import SavedModule
from tinyllm.lora.targets import adapted_layers, adapter_configs, is_tied
from tinyllm.nn import Module
from tinyllm.tensor import Parameter, Tensor


def merge_lora(model: Module, keep_base: bool = True, base: Any = "dequantized", untie: bool = False) -> Module:
    """Fold the active adapters into the weights, so that they cost nothing to use.

    Parameters
    ----------
    model : Module
    keep_base : bool
        Keep the original weights, so that `unmerge_lora` and `disable_lora` put them back bit for bit. With False the
        adapted layers become plain linear layers again and the original weights are gone.
    base : {"dequantized", "requantized"} or mapping of str to array
        For ``keep_base=False``: what the update is added to, and what becomes of the sum, which is always computed in
        float32 or better.

        * "dequantized": to what the adapter was trained over, and kept as floats. Outputs change by rounding.
        * "requantized": the same, then stored again as the base was: in NF4, or in half precision. As small as before,
          but what was learned is rounded, too.
        * the original weights by name (another model's `state_dict()`): to these, in float. The adapter was not
          trained over them: outputs change by the base's quantisation error.
    untie : bool
        For ``keep_base=False``: give a head that shares the embedding's weight one of its own, if the adapter is on it.

    Returns
    -------
    Module
        The same model.

    Raises
    ------
    RuntimeError
        If there are no adapters, or they are disabled while ``keep_base=False``.
    ValueError
        If the head is tied to the embedding and adapted, and `untie` is False; or `base` is none of these, lacks a
        weight or has one of another shape, or "requantized" meets a base in float. Nothing is changed then.
    """
    if getattr(model, "merged_for_good", False):
        return model
    layers = adapted_layers(model)
    if not keep_base:
        if not all(layer.enabled for layer in layers):
            raise RuntimeError("the adapters are disabled; call enable_lora before merging them for good")
        _merge_for_good(model, base, untie)
        return model
    if base != "dequantized":
        raise ValueError("base= is for keep_base=False: what is merged for use beside its base is always in float")
    for layer in layers:
        if isinstance(layer, LoRALinear):
            layer.merged, layer._folded = True, None  # an optimiser may have changed the arrays in place
            if layer.adapting():
                layer.merged_weight()
    return model


def _merge_for_good(model: Module, base: Any, untie: bool) -> None:
    changed = [path for path, m in model.named_modules() if isinstance(m, LoRALinear) and m.adapting()]
    whole = [
        path
        for path, m in model.named_modules()
        if isinstance(m, SavedModule) and any(m.is_whole(name) for name in m.active)
    ]
    for path in [*changed, *whole]:
        if path.endswith("lm_head") and is_tied(model, path) and not untie:
            raise ValueError(
                f"the adapter changes {path}, which is tied to the embedding, so that merging would need a head of its "
                "own; say untie=True (--untie) to give it one: the model then holds one matrix more"
            )
    for path in changed:
        _check(base, path, model.get(path))
    if base == "requantized" and not any(isinstance(model.get(p).base_layer.weight, FrozenWeight) for p in changed):
        raise ValueError("base='requantized' is for a base in NF4 or half precision, and this one is in float")
    for path, wrapped in list(model.named_modules()):
        if isinstance(wrapped, LoRALinear):
            layer, stored = wrapped.base_layer, wrapped.base_layer.weight
            layer.bias = wrapped.chosen_bias()
            if path in changed:
                if isinstance(base, Mapping):
                    layer.weight = Parameter(_array(base[f"{path}.weight"], stored.dtype))
                merged, wrapped._folded = wrapped.merged_weight(), None
                layer.weight = Parameter(merged, requires_grad=False)
                if base == "requantized" and isinstance(stored, FrozenWeight):
                    layer.weight = stored_like(stored, merged, f"{path}.weight")
            model.replace(path, layer)
        elif isinstance(wrapped, SavedModule):
            model.replace(path, wrapped.chosen())
    model.requires_grad_(False)
    head = getattr(model, "lm_head", None)
    if head is not None and not is_tied(model, "lm_head") and hasattr(model, "config"):
        model.config.tie_embeddings = False
    adapter_configs(model).clear()
    model.merged_for_good = True  # type: ignore[attr-defined]


def _check(base: Any, path: str, layer: LoRALinear) -> None:
    if isinstance(base, str) and base in ("dequantized", "requantized"):
        return
    if not isinstance(base, Mapping):
        raise ValueError(f"base must be 'dequantized', 'requantized' or weights by name, not {base!r}")
    name, shape = f"{path}.weight", tuple(layer.base_layer.weight.shape)
    if name not in base:
        raise ValueError(f"base= has no {name}; pass the state_dict() of the same model in float, without adapters")
    if tuple(base[name].shape) != shape:
        raise ValueError(f"{name} has shape {tuple(base[name].shape)} in base=, but {shape} in the model")


def _array(weight: Any, dtype: Any) -> Any:
    if isinstance(weight, FrozenWeight):
        return weight.dense()
    return (weight.data if isinstance(weight, Tensor) else weight).astype(dtype, copy=False)


def stored_like(old: FrozenWeight, w: Any, name: str = "") -> FrozenWeight:
    """An array stored in the same way as another weight."""
    if isinstance(old, NF4Weight):
        return NF4Weight.quantize(w, old.block_size, old.double_quant, name)
    return HalfWeight.quantize(w, old.storage, name)


def untie_head(model: Module) -> Module:
    """Give the head a weight of its own, a copy, so that it can be adapted and merged apart from the embedding."""
    head = model.get("lm_head")
    if is_tied(model, "lm_head"):
        inner = getattr(head, "original", getattr(head, "base_layer", head))
        stored = isinstance(inner.weight, FrozenWeight)  # never written to: a second holder is enough
        inner.weight = copy.copy(inner.weight) if stored else Parameter(inner.weight.data.copy())
        inner.weight.requires_grad = not stored and model.embed_tokens.weight.requires_grad  # type: ignore[attr-defined]
    if hasattr(model, "config"):
        model.config.tie_embeddings = False
    return model


def unmerge_lora(model: Module) -> Module:
    """Use the original weights and the adapters beside them again; the original bits, nothing is subtracted."""
    for layer in adapted_layers(model):
        if isinstance(layer, LoRALinear):
            layer.merged, layer._folded = False, None
    return model
