"""Building a model weight by weight, so that no float copy of the whole ever exists: what each is kept as, and filling.

How few bits a weight bears, its layer declares (`Module.fewest`, `stays_float`); nobody guesses it from a name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from tinyllm.backend import random
from tinyllm.backend.device import device, to_device
from tinyllm.frozen import store, stored
from tinyllm.nn import Module, Place, Weight, has_memory, placeholder, put
from tinyllm.tensor import Parameter

if TYPE_CHECKING:
    from tinyllm.models.decoder import DecoderModel

BITS = {"float32": 32, "float16": 16, "bfloat16": 16, "nf4": 4}
STORAGES = tuple(BITS)

Init = Callable[[str, tuple[int, ...]], Any]


def storage_of(layer: Module, attribute: str, storage: str) -> str:
    """What a layer's weight is kept as in a model of this `storage`: no fewer bits than it bears; a bias is floats."""
    fewest = layer.fewest if attribute == "weight" else "float32"
    return storage if BITS[storage] >= BITS[fewest] else fewest


def storages(model: Module, storage: str) -> dict[str, str]:
    """What each weight of a model is kept as under `storage`, by name; what two layers share, as the first bears it."""
    return {first.path: storage_of(first.layer, first.attribute, storage) for first, *_ in model.places()}


def skeleton(cls: type[DecoderModel], config: dict[str, Any], storage: str, dtype: Any) -> DecoderModel:
    """A model with names and shapes and no memory, for `fill`; raises as `DecoderModel` does."""
    return cls(**config, storage=storage, dtype=dtype, init=lambda _, shape: placeholder(shape, dtype))


def fill(model: DecoderModel, init: Init, storage: str = "float32", largest_first: bool = False) -> None:
    """Put ``init(name, shape)`` into every weight, one after the other, and keep it as `storage` says.

    Parameters
    ----------
    model : DecoderModel
        Or any Module with a `dtype` to compute in.
    init : callable
        Gives an array, or a weight that is stored already, or a Parameter; these two stay as they are.
    storage : {"float32", "float16", "bfloat16", "nf4"}
    largest_first : bool
        The floats of an embedding then never stand beside the rest of the model; a generator's draws come in another
        order.

    Raises
    ------
    ValueError
        If an array has another shape, or cannot be stored so.
    """
    every = model.places()
    if largest_first:
        every.sort(key=lambda places: -places[0].weight.size)
    for places in every:
        put(places, _kept(places[0], init(places[0].path, places[0].weight.shape), storage, model.dtype))


def _kept(place: Place, given: Any, storage: str, dtype: np.dtype) -> Weight:
    """What `init` gave, as the model keeps it; a function of its own, so that no float array outlives its turn."""
    if isinstance(given, Parameter) or stored(given).frozen:  # what a file keeps as NF4, or as floats, stays so
        return _moved(place, given, dtype)
    kept_as = storage_of(place.layer, place.attribute, storage)
    # Half computes, but gains stay float32, and NF4 is made of what came, not of what half left of it.
    wide = dtype.itemsize == 2 and (place.layer.stays_float or kept_as != "float32")
    array = to_device(np.ascontiguousarray(given, dtype=np.float32 if wide else dtype))
    if array.shape != place.weight.shape:
        raise ValueError(f"{place.path} should have shape {place.weight.shape}, not {array.shape}")
    return Parameter(array) if kept_as == "float32" else _moved(place, store(array, kept_as, place.path), dtype)


def _moved(place: Place, weight: Weight, dtype: np.dtype) -> Weight:
    """What came from a file, or was just stored, on the device and computing in the model's dtype."""
    if isinstance(weight, Parameter):
        if has_memory(weight):  # a placeholder shall get none
            wide = dtype.itemsize == 2 and place.layer.stays_float
            weight.data = to_device(weight.data.astype(np.float32 if wide else weight.dtype, copy=False))
        return weight
    moved = weight.move(to_device)
    moved.dtype = dtype
    return moved


def gpt2_init(model: DecoderModel, generator: random.Generator) -> Init:
    """GPT-2's initialisation: N(0, 0.02), the projections that end in the residual divided by sqrt(2 * layers).

    Gains of one and biases of zero stay as their layers made them.
    """

    def init(name: str, shape: tuple[int, ...]) -> Any:
        weight, layer = model.get(name), model.get(name.rpartition(".")[0])
        if has_memory(weight):
            return weight
        std = 0.02 / (2 * model.config.num_layers) ** 0.5 if layer.residual else 0.02
        return generator.normal(shape, std, model.dtype)

    return init


def check_storage(storage: str, dtype: np.dtype) -> None:
    """Raise ValueError unless a model can be stored, and compute, so."""
    if storage not in STORAGES:
        raise ValueError(f"storage must be one of {', '.join(STORAGES)}, not {storage!r}")
    if dtype.name not in ("float32", "float64") and not (dtype.itemsize == 2 and device() == "cuda"):
        raise ValueError(
            f"dtype must be float32 or float64, not {dtype}; for fewer bits use storage=, and to compute in "
            "half precision a GPU: set_device('cuda')"
        )
