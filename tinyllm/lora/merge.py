"""Merging: fold adapters into the weights, for use beside the base or for good; into which base, and kept as what.

An adapter over a four-bit base has learned to work with that base's rounding errors. Added to the original weights, or
rounded to four bits again, it answers otherwise than it was trained to; `tinyllm merge` prints by how much.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tinyllm.backend.table import of
from tinyllm.frozen import Dense, Weight, stored
from tinyllm.lora.adapted import adapted_layers, adapter_configs, lora_layers, remembered, saved_modules
from tinyllm.lora.heads import is_tied
from tinyllm.lora.layer import LoRALinear
from tinyllm.lora.targets import is_head
from tinyllm.nn import Linear, Module
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
        If the head is tied to the embedding and adapted, and `untie` is False; `base` is none of these, lacks a weight
        or has one of another shape, or "requantized" meets a base in float; or, with ``keep_base=False``, an adapter
        holds NaN or infinity. Nothing is changed then.
    """
    if remembered(model).merged_for_good:
        return model
    layers = adapted_layers(model)
    if not keep_base:
        if not all(layer.enabled for layer in layers):
            raise RuntimeError("the adapters are disabled; call enable_lora before merging them for good")
        _merge_for_good(model, base, untie)
        return model
    if untie:
        raise ValueError("untie= is for keep_base=False: what is merged for use beside its base unties nothing")
    if base != "dequantized":
        raise ValueError("base= is for keep_base=False: what is merged for use beside its base is always in float")
    for _, layer in lora_layers(model):
        layer.merge()
        if layer.adding():
            layer.folded()
    return model


def unmerge_lora(model: Module) -> Module:
    """Use the original weights and the adapters beside them again; the original bits, nothing is subtracted."""
    adapted_layers(model)
    for _, layer in lora_layers(model):
        layer.unmerge()
    return model


def _merge_for_good(model: Module, base: Any, untie: bool) -> None:
    layers, saved = dict(lora_layers(model)), dict(saved_modules(model))
    folded = {path: layer for path, layer in layers.items() if layer.adding()}
    whole = [path for path, module in saved.items() if any(module.is_whole(name) for name in module.active)]
    if not untie:
        _refuse_to_part(model, [*folded, *whole])
    _check_base(base, folded)
    _refuse_non_finite(folded)
    for path, layer in layers.items():
        model.replace(path, _plain(path, layer, base))
    for path, module in reversed(saved.items()):  # what is inside another one first
        model.replace(path, module.chosen())
    model.requires_grad_(False)
    head = getattr(model, "lm_head", None)
    if head is not None and not is_tied(model, "lm_head") and hasattr(model, "config"):
        model.config.tie_embeddings = False
    adapter_configs(model).clear()
    remembered(model).merged_for_good = True
    if getattr(model, "origin", None):  # the base that it was read from is another model now
        model.origin = replace(model.origin, name="")  # type: ignore[attr-defined]


def _plain(path: str, adapted: LoRALinear, base: Any) -> Linear:
    """The linear layer alone, with the active updates in its weight and the bias that counts."""
    layer = adapted.base_layer
    layer.bias = adapted.chosen_bias()
    if adapted.adding():
        weight, name = stored(layer.weight), f"{path}.weight"
        adapted.unmerge()  # what was folded for use is not kept beside what is folded for good
        array = adapted.fold(_floats(base[name], weight) if isinstance(base, Mapping) else weight)
        layer.weight = weight.like(array, name) if base == "requantized" else Parameter(array, requires_grad=False)
    return layer


def _floats(given: Any, own: Weight) -> Dense:
    """A weight of another model's state dict, or an array, in floats where this model's own is."""
    array = stored(given).dense() if isinstance(given, Weight | Tensor) else given
    return Dense(own.xp.asarray(array, dtype=own.dtype))


def _refuse_to_part(model: Module, changed: list[str]) -> None:
    for path in changed:
        if is_head(model, path) and is_tied(model, path):
            raise ValueError(
                f"the adapter changes {path}, which is tied to the embedding, so that merging would need a head of its "
                "own; say untie=True (--untie) to give it one: the model then holds one matrix more"
            )


def _refuse_non_finite(layers: dict[str, LoRALinear]) -> None:
    for path, layer in layers.items():
        for name in layer.active:
            if not all(of(p.data).xp.isfinite(p.data).all() for p in layer.parts(name).values()):
                raise ValueError(
                    f"the adapter {name!r} of {path} holds NaN or infinity, which merging would put into the weights; "
                    "train or get it again (nothing was changed)"
                )


def _check_base(base: Any, layers: dict[str, LoRALinear]) -> None:
    """Raise ValueError if `base` is none of what `merge_lora` takes, or does not fit these layers."""
    if isinstance(base, Mapping):
        for path, layer in layers.items():
            _check_weight(base, f"{path}.weight", tuple(layer.base_layer.weight.shape))
    elif base not in ("dequantized", "requantized"):
        raise ValueError(f"base must be 'dequantized', 'requantized' or weights by name, not {base!r}")
    elif base == "requantized" and all(isinstance(layer.base_layer.weight, Parameter) for layer in layers.values()):
        raise ValueError("base='requantized' is for a base in NF4 or half precision, and this one is in float")


def _check_weight(base: Mapping, name: str, shape: tuple[int, ...]) -> None:
    if name not in base:
        raise ValueError(f"base= has no {name}; pass the state_dict() of the same model in float, without adapters")
    if tuple(base[name].shape) != shape:
        raise ValueError(f"{name} has shape {tuple(base[name].shape)} in base=, but {shape} in the model")
