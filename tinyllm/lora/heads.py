"""A head that shares its weight with the embedding: it cannot be adapted before the two are parted."""

from __future__ import annotations

import copy
from collections import Counter

from tinyllm.nn import Module
from tinyllm.tensor import Parameter


def is_tied(model: Module, path: str) -> bool:
    """Whether another layer uses the weight of the layer at `path`, too, adapted or not."""
    weight = getattr(model.get(path).inner(), "weight", None)
    layers = (module.inner() for _, module in model.named_modules(wrapped=False))
    return weight is not None and sum(getattr(layer, "weight", None) is weight for layer in layers) > 1


def refuse_tied_head(model: Module, targets: list[str]) -> None:
    """Raise ValueError if merging an adapter of one of these layers would change another one, too."""
    layers = (module.inner() for _, module in model.named_modules(wrapped=False))
    holders = Counter(id(layer.weight) for layer in layers if hasattr(layer, "weight"))  # one walk for all of them
    for path in targets:
        weight = getattr(model.get(path).inner(), "weight", None)
        if holders[id(weight)] > 1:
            raise ValueError(
                f"{path} is tied to the embedding, so adapting it would change both once it is merged; leave it out, "
                "call tinyllm.lora.untie_head(model) first, or build the model with tie_embeddings=False"
            )


def untie_head(model: Module) -> Module:
    """Give the head a weight of its own, a copy, so that it can be adapted and merged apart from the embedding."""
    if is_tied(model, "lm_head"):
        layer = model.get("lm_head").inner()
        weight = layer.weight
        if isinstance(weight, Parameter):
            layer.weight = Parameter(weight.data.copy(), requires_grad=weight.requires_grad)
        else:
            layer.weight = copy.copy(weight)  # never written to: a second holder is enough
    if hasattr(model, "config"):
        model.config.tie_embeddings = False
    return model
