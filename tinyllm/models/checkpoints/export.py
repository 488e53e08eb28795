"""Writing a model's folder: its family's names and fields, bitsandbytes' keys for NF4, shards for what is large.

Nothing of an older save is touched before everything new is whole on disk.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinyllm.formats import safetensors_file
from tinyllm.formats.atomic import make_folder, temporary_in, write_text
from tinyllm.formats.state import pack, refuse_non_finite
from tinyllm.frozen import Weight, stored
from tinyllm.models.checkpoints import hub
from tinyllm.models.checkpoints.folder import INDEX, SINGLE
from tinyllm.models.checkpoints.origin import GENERATION, TEMPLATES, Origin, copy_tokenizer, has_tokenizer
from tinyllm.models.families.family import FAMILIES, Family, family_of
from tinyllm.nn import Linear

if TYPE_CHECKING:
    from tinyllm.models.decoder import DecoderModel

SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")


def save_pretrained(model: DecoderModel, folder: Any, max_shard_size: float = 5e9) -> None:
    """Write a model so that transformers and `load_pretrained` can read it.

    Parameters
    ----------
    model : DecoderModel
        Without adapters: merge them for good first, or write them with `tinyllm.save_adapter`.
    folder : str or Path
        Made if it does not exist. What came with a model that was read goes there, too: the special tokens' ids,
        generation_config.json and, if the folder has none yet, the tokenizer's files and its chat template (of a GGUF
        file the template alone: `tinyllm.data.tokenizer.Tokenizer.load(file).save(folder)` writes the rest). What else
        is there stays.
    max_shard_size : float
        Bytes. A model that is larger is written as several files, each as large as this at most, or holding one weight.

    Raises
    ------
    ValueError
        If the model has adapters, is of no family, or holds NaN or infinity, naming the layer.
    OSError
        If it cannot be written; what was there before is as it was.

    Notes
    -----
    The new files are written into a hidden folder inside `folder`, so for a while there must be room for both, and then
    take the old ones' places, which is a few renames. Killed before those, the old model is whole. Killed between them,
    one file is still exchanged as a whole, but of several shards some may be new and the index is missing, so that the
    folder is refused rather than read as a mixture: save again.
    """
    if isinstance(max_shard_size, str) or not max_shard_size > 0:
        raise ValueError(f"max_shard_size must be a number of bytes above 0, not {max_shard_size!r}")
    state: dict[str, Any] = dict(model.state_dict())
    if any(".base_layer." in name or ".original." in name for name in state):
        raise ValueError(
            "the model has adapters; write them alone with tinyllm.save_adapter(model, folder), or fold them in first "
            "with merge_lora(model, keep_base=False)"
        )
    family = family_of(model.config)
    if family is None:
        near = min((f.differences(model.config) for f in FAMILIES.values()), key=len)
        raise ValueError(
            f"no family of transformers has this model's shape (the nearest differs in {', '.join(near)}); "
            "use tinyllm.save(model.state_dict(), path)"
        )
    fields = _fields(model, family, state)
    refuse_non_finite(state)
    folder = make_folder(folder)
    with temporary_in(folder) as stage:
        _write_weights(state, family, stage, max_shard_size)
        write_text(stage / "config.json", json.dumps(fields, indent=2) + "\n")
        if model.origin:
            _write_beside(model.origin, folder, stage)
        _exchange(stage, folder)
        model.origin = replace(model.origin or Origin(), name=hub.name_of(folder))  # what an adapter's base is now


def _fields(model: DecoderModel, family: Family, state: dict[str, Any]) -> dict[str, Any]:
    """``config.json``."""
    frozen: list[Any] = [w for w in map(stored, state.values()) if w.frozen]
    half = {w.storage for w in frozen} - {"nf4"}
    nested = [w.double_quant for w in frozen if w.storage == "nf4"]
    fields = family.write(model.config, half.pop() if half and not nested else model.dtype.name)
    # Training or merging may have parted the two, or an assignment joined them.
    fields["tie_word_embeddings"] = model.lm_head.weight is model.embed_tokens.weight
    if nested:
        linear = [(path, m) for path, m in model.named_modules() if isinstance(m, Linear) and not m.is_head]
        floats = [path for path, layer in linear if stored(layer.weight).storage != "nf4"]
        fields["quantization_config"] = {
            "load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": any(nested),
            "bnb_4bit_compute_dtype": model.dtype.name, "quant_method": "bitsandbytes",
        }  # fmt: skip
        if floats:  # merged ones, say; without this list transformers leaves the head alone, with it no other
            fields["quantization_config"]["llm_int8_skip_modules"] = ["lm_head", *map(family.hf_name, floats)]
    return _beside(model, family, fields)


def _beside(model: DecoderModel, family: Family, fields: dict[str, Any]) -> dict[str, Any]:
    """The fields with those that came with the model: of another family only the special ids are true of it."""
    if not model.origin:
        return fields
    kept = model.origin.fields if model.origin.model_type == family.model_type else model.origin.ids()
    # What both say is about dropout, which the family's reader passes over.
    return {**fields, **{name: v for name, v in kept.items() if name not in fields or not model.config.dropout}}


def _write_beside(origin: Origin, folder: Path, stage: Path) -> None:
    """generation_config.json, and a tokenizer's files where the folder has none."""
    if generation := origin.generating():
        write_text(stage / GENERATION, json.dumps(generation, indent=2) + "\n")
    if has_tokenizer(folder):
        return
    if origin.folder and has_tokenizer(origin.folder):
        copy_tokenizer(origin.folder, stage)
        if (folder / TEMPLATES).exists():
            shutil.rmtree(stage / TEMPLATES, ignore_errors=True)
    elif origin.template and not (folder / "chat_template.jinja").exists():
        write_text(stage / "chat_template.jinja", origin.template)


def _write_weights(state: dict[str, Any], family: Family, stage: Path, limit: float) -> None:
    """One file, or shards and their index; an array is laid out for the file only when its turn comes."""
    weights = {name: stored(weight) for name, weight in state.items()}
    nf4 = any(weight.storage == "nf4" for weight in weights.values())
    shards: list[list[str]] = [[]]
    sizes = {name: _bytes(weight, nf4) for name, weight in weights.items()}
    for name in state:
        if shards[-1] and sum(sizes[other] for other in shards[-1]) + sizes[name] > limit:
            shards.append([])
        shards[-1].append(name)
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file = SINGLE if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        arrays, _ = pack(
            {family.hf_name(name): _as_stored(weights[name], family.transposed(name), nf4) for name in names}
        )
        safetensors_file.write(stage / file, arrays)
        weight_map |= dict.fromkeys(arrays, file)
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": dict(sorted(weight_map.items()))}
        write_text(stage / INDEX, json.dumps(index, indent=2) + "\n")


def _as_stored(weight: Weight, transposed: bool, nf4: bool) -> Weight:
    """What the file holds of a weight; packed four-bit ones are never transposed."""
    if weight.storage == "nf4":
        return weight
    if nf4:  # transformers does not convert what stands beside 4-bit weights; widening changes no value
        weight = stored(weight.dense())
    return weight.transposed() if transposed else weight


def _bytes(weight: Weight, nf4: bool) -> int:
    """How large `_as_stored` is."""
    if weight.storage == "nf4":
        return sum(part.nbytes for part in weight.parts("").values())
    return weight.size * weight.dtype.itemsize if nf4 else weight.nbytes


def _exchange(stage: Path, folder: Path) -> None:
    """Move the new files into place and remove what is left of an older save."""
    new = sorted(path.name for path in stage.iterdir())
    if INDEX in new:
        (folder / INDEX).unlink(missing_ok=True)  # until the last shard is in place there is no index
    # Weights first, the index last: it is what makes shards a model.
    for name in sorted(new, key=lambda name: (name == INDEX, name == "config.json", name)):
        os.replace(stage / name, folder / name)
    for path in folder.iterdir():
        if path.name not in new and (path.name in (SINGLE, INDEX) or SHARD.fullmatch(path.name)):
            path.unlink()
