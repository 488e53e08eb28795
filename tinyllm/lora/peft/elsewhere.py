"""Adapters that do not belong here: of another base or another vocabulary, or a folder that holds no adapter."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tinyllm.formats.foreign import pickles
from tinyllm.lora.peft.keys import PREFIX, Names, Place
from tinyllm.lora.targets import linear_names
from tinyllm.nn import Linear, Module

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def no_adapter(folder: Path, missing: str) -> Exception:
    """The error for a folder that lacks one of an adapter's two files: what stands there instead, and what to do."""
    if folder.is_file():
        return ValueError(f"{folder} is a file; give the folder of an adapter in PEFT's format, which has {CONFIG}")
    if (folder / "adapters.safetensors").is_file():
        return ValueError(f"{folder} holds an adapter of MLX, not of PEFT; have mlx_lm.fuse make a model of the two")
    if missing == WEIGHTS and (pickled := pickles(folder)):
        return ValueError(
            f"{folder} has only a pickled adapter ({pickled[0]}), which could run code when opened; convert it to "
            "safetensors, in Python with peft.PeftModel.from_pretrained(base, folder).save_pretrained(other)"
        )
    inside = sorted(path.parent.name for path in folder.glob(f"*/{CONFIG}"))
    hint = f", but in its sub-folders {', '.join(inside)}; name one of them" if inside else ""
    if not hint and (folder / "config.json").is_file():
        hint = ", but a whole model (config.json): name it as the model, with --model or from_pretrained"
    return FileNotFoundError(
        f"there is no {missing} in {folder}{hint or '; give the folder of an adapter as PEFT has it'}"
    )


def refuse_another_base(
    model: Module,
    names: Names,
    wanted: dict[str, tuple[Place, tuple[int, ...]]],
    arrays: dict[str, Any],
    where: Path,
    base: Any,
) -> None:
    """Raise ValueError if an adapter that does not fit is one of a model of other sizes, and say of which.

    Parameters
    ----------
    model : Module
    names : Names
    wanted : dict
        The keys that the file should have, and their shapes.
    arrays : dict
        What it has.
    where : Path
        The file, named in errors.
    base : str or None
        The adapter's own note of what it belongs to.
    """
    config = getattr(model, "config", None)
    shapes = {key: tuple(array.shape) for key, array in arrays.items()}
    if config is None or shapes == {key: shape for key, (_, shape) in wanted.items()}:
        return
    layers, width = _layers(shapes), _width(model, names, shapes)
    missing = [key for key in wanted if key not in shapes]
    fewer = bool(missing) and all(_layer(key) >= layers for key in missing)
    if layers > config.num_layers or fewer or width not in (None, config.hidden_size):
        of = f" of {width}" if width else ""
        raise ValueError(
            f"the adapter in {where} belongs to {base or 'another model'}: {layers} layer{'s' * (layers != 1)}{of}; "
            f"this model has {config.num_layers} of {config.hidden_size}; nothing was changed"
        )
    rows = _vocabulary(names, shapes)
    if rows not in (None, config.vocab_size):
        raise ValueError(
            f"the adapter in {where} was trained over {base or 'a base'} with a vocabulary of {rows} tokens; this "
            f"model has {config.vocab_size}: give the base that was resized so, with its tokenizer; nothing was changed"
        )


def _layer(key: str) -> int:
    """The number of a key's block; -1 outside of any."""
    number = re.search(r"\.(\d+)\.", key)
    return int(number[1]) if number else -1


def _layers(shapes: dict[str, tuple[int, ...]]) -> int:
    return 1 + max(map(_layer, shapes), default=-1)


def _width(model: Module, names: Names, shapes: dict[str, tuple[int, ...]]) -> int | None:
    """How wide the model was that these arrays fit, by a layer that here begins or ends in that width."""
    hidden = model.config.hidden_size  # type: ignore[attr-defined]
    layers = {names.module(path).rpartition(".")[2]: model.get(path).inner() for path in linear_names(model)}
    for key, shape in shapes.items():
        module, _, part = key.removeprefix(PREFIX).rpartition(".lora_")
        layer = layers.get(module.rpartition(".")[2])
        if not isinstance(layer, Linear) or len(shape) != 2:
            continue
        if part == "A.weight" and layer.in_features == hidden:
            return shape[1]
        if part == "B.weight" and layer.out_features == hidden:
            return shape[0]
    return None


def _vocabulary(names: Names, shapes: dict[str, tuple[int, ...]]) -> int | None:
    """How many rows the embedding or the head had."""
    for path in ("embed_tokens", "lm_head"):
        for part in ("weight", "base_layer.weight", "lora_B.weight"):
            if len(shape := shapes.get(f"{PREFIX}{names.module(path)}.{part}", ())) == 2:
                return shape[0]
    return None
