"""The names of an adapter's arrays, ``base_model.model.`` + module + part, and what does not fit them::

    model.layers.0.self_attn.q_proj.lora_A.weight           (r, in), also for GPT-2, whose weights are (in, out)
    model.layers.0.self_attn.q_proj.lora_B.weight           (out, r)
    model.layers.0.self_attn.q_proj.lora_magnitude_vector   (out,)   DoRA's m
    model.layers.0.self_attn.q_proj.base_layer.bias         (out,)   of an adapted layer, for bias "lora_only" and "all"
    model.norm.bias                                                  of any other, for bias "all"
    lm_head.weight                                                   of modules_to_save

The adapter's own name is not part of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tinyllm.backend.names import few, nearest
from tinyllm.frozen import stored
from tinyllm.lora.biases import other_biases
from tinyllm.lora.config import LoRAConfig
from tinyllm.models.families.family import Family, family_of
from tinyllm.nn import Module
from tinyllm.tensor import Parameter

PREFIX = "base_model.model."
LORA = ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector")
Place = tuple[str, str]  # a module's path here, and the part of it


class Names:
    """What a model's modules and weights are called in the file: Hugging Face's names, or ours for no known family."""

    def __init__(self, model: Module):
        self.family: Family | None = family_of(getattr(model, "config", None))

    @property
    def kind(self) -> str | None:
        """The family's ``model_type``."""
        return self.family.model_type if self.family else None

    def module(self, path: str) -> str:
        """The file's name of a module."""
        return self.family.hf_name(path) if self.family else path

    def key(self, path: str, part: str, adapted: bool = False) -> str:
        """The file's name of a part; `adapted` says whether its layer has an A and a B."""
        if part in LORA:
            return f"{PREFIX}{self.module(path)}.{part}"
        if adapted:
            return f"{PREFIX}{self.module(path)}.base_layer.{part}"
        return PREFIX + self.module(f"{path}.{part}")

    def turned(self, path: str, part: str, array: Any) -> Any:
        """The array as the file has it, or back: weights of modules_to_save, which GPT-2 keeps as (in, out)."""
        return array.T if self.transposed(path, part) else array

    def transposed(self, path: str, part: str) -> bool:
        """Whether the file has it turned."""
        return self.family is not None and self.family.transposed(f"{path}.{part}")


def wanted_keys(
    model: Module, names: Names, config: LoRAConfig, ranks: dict[str, int], saved: list[str]
) -> dict[str, tuple[Place, tuple[int, ...]]]:
    """The keys a file must have for this model: where each belongs, and its shape in the file.

    Parameters
    ----------
    model : Module
    names : Names
    config : LoRAConfig
    ranks : dict
        Of each adapted layer, by our path.
    saved : list of str
        The modules trained whole, by our path.
    """
    places: dict[Place, tuple[int, ...]] = {}
    for path, rank in ranks.items():
        layer = model.get(path).inner()
        places[path, "lora_A.weight"] = (rank, layer.in_features)
        places[path, "lora_B.weight"] = (layer.out_features, rank)
        if config.use_dora:
            places[path, "lora_magnitude_vector"] = (layer.out_features,)
        if config.bias != "none" and layer.bias is not None:
            places[path, "bias"] = (layer.out_features,)
    for path in other_biases(model, list(ranks)) if config.bias == "all" else ():
        places[path, "bias"] = tuple(model.get(path).inner().bias.shape)
    for path in saved:
        for part, weight in model.get(path).inner().named_weights():
            places[path, part] = tuple(weight.shape)
    return {
        names.key(path, part, path in ranks): ((path, part), shape[::-1] if names.transposed(path, part) else shape)
        for (path, part), shape in places.items()
    }


def tidied(model: Module, arrays: dict[str, Any], heads: dict[str, str], where: Path) -> dict[str, Any]:
    """The arrays without what other versions write otherwise, or write needlessly.

    Older PEFTs wrote ``lora_magnitude_vector.weight``. Of an adapted head it also writes the base's weight, which
    the model has: it must be the same. `heads` are the adapted layers, file name and path.

    Raises
    ------
    ValueError
        If the base's weight is another one, or the adapter is on the embedding.
    """
    on_embedding = [key for key in arrays if ".lora_embedding_" in key]
    if on_embedding:
        raise ValueError(f"{where} adapts an embedding ({on_embedding[0]}), which is not understood; linear layers are")
    kept = {}
    for key, array in arrays.items():
        module = key.removeprefix(PREFIX).removesuffix(".base_layer.weight")
        if not key.endswith(".base_layer.weight") or module not in heads:
            kept[key.replace(".lora_magnitude_vector.weight", ".lora_magnitude_vector")] = array
        elif not _is_weight(model.get(heads[module]), array):
            raise ValueError(
                f"{key} in {where} is not the weight that this model has; the adapter was trained over another base"
            )
    return kept


def _is_weight(layer: Module, array: Any) -> bool:
    own = layer.inner().weight  # type: ignore[attr-defined]
    if tuple(own.shape) != tuple(array.shape) or array.dtype.kind != "f":
        return False
    if not isinstance(own, Parameter):
        array = own.like(array.astype(own.dtype)).dense()  # rounded as this model's was
    return bool(np.array_equal(stored(own).dense(), array))


def refuse_misfits(
    wanted: dict[str, tuple[Place, tuple[int, ...]]], arrays: dict[str, Any], where: Path, guessed: list[str] | None
) -> None:
    """Raise ValueError if keys are missing, left over, or of another shape or dtype, with the nearest names.

    `guessed` are the targets PEFT takes for a file that names none.
    """
    missing = [key for key in wanted if key not in arrays]
    extra = [key for key in arrays if key not in wanted]
    shaped = [
        f"{key} has shape {tuple(arrays[key].shape)}, but this model and the config ask for {shape}"
        for key, (_, shape) in wanted.items()
        if key in arrays and tuple(arrays[key].shape) != shape
    ]
    kinds = [f"{key} has dtype {a.dtype}, but floats are needed" for key, a in arrays.items() if a.dtype.kind != "f"]
    said = []
    if missing:
        said.append(f"missing {few(missing, 3)}")
    if extra:
        said.append(f"left over {few(extra, 3)}{nearest(extra[0], missing or wanted, cutoff=0.4)}")
    said += (shaped + kinds)[:3]
    if said and guessed:
        said.append(f"adapter_config.json names no target_modules, which means {', '.join(guessed)} to PEFT")
    if said:
        raise ValueError(f"the adapter in {where} does not fit: {'; '.join(said)}; nothing was changed")
