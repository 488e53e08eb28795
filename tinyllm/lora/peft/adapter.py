"""Adapters as files, in PEFT's format: ``adapter_config.json`` and ``adapter_model.safetensors``.

The fields of the first are in `config.py`, the names of the second's arrays in `keys.py`.
PEFT lets a file with wrong names pass with a warning, and the model then answers as if untrained; here it is an error.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from tinyllm.backend import random
from tinyllm.backend.table import of
from tinyllm.formats import json_file, safetensors_file
from tinyllm.formats.atomic import make_folder, write_text
from tinyllm.formats.state import refuse_non_finite, unpack
from tinyllm.frozen.half import HalfWeight
from tinyllm.lora.adapted import adapted_layers, adapted_modules, adapter_configs, lora_layers, saved_modules
from tinyllm.lora.biases import has_bias, other_biases
from tinyllm.lora.config import LoRAConfig, by_pattern
from tinyllm.lora.layer import Adapter
from tinyllm.lora.peft.config import DEFAULT_TARGETS, refuse, targets_of, write_fields
from tinyllm.lora.peft.elsewhere import CONFIG, WEIGHTS, no_adapter, refuse_another_base
from tinyllm.lora.peft.keys import PREFIX, Names, Place, refuse_misfits, tidied, wanted_keys
from tinyllm.lora.targets import is_head, linear_names, resolve_targets
from tinyllm.lora.verbs import add_adapter, set_adapter
from tinyllm.nn import Module
from tinyllm.tensor import Parameter

BASE = "tinyllm.base"  # in the metadata of WEIGHTS: PEFT reads every field of CONFIG and knows none of ours


def save_adapter(
    model: Module,
    folder: Any,
    adapter_name: str | None = None,
    base_model_name_or_path: str | None = None,
    dtype: str | None = None,
) -> None:
    """Write an adapter so that PEFT and `load_adapter` can read it.

    Parameters
    ----------
    model : Module
        Enabled or not, merged or not.
    folder : str or Path
        Made if it does not exist. PEFT keeps adapters that are not called "default" in sub-folders of their name.
    adapter_name : str, optional
        By default the active one.
    base_model_name_or_path : str, optional
        Where PEFT finds the base, which is not written itself. By default the folder or the hub's name that the model
        was read from.
    dtype : {"float16", "bfloat16"}, optional
        Round what is written, to half the size. By default nothing is rounded.

    Raises
    ------
    RuntimeError, ValueError
        If there are no adapters, none of that name, several are active and none is named, a value overflows `dtype`, or
        one is NaN or infinite, naming the layer.
    OSError
        If it cannot be written.
    """
    configs = adapter_configs(model)
    if adapter_name is None:
        adapter_name = _active(model)
    if adapter_name not in configs:
        raise ValueError(f"there is no adapter {adapter_name!r}; there are: {', '.join(configs) or 'none'}")
    if dtype not in (None, "float16", "bfloat16"):
        raise ValueError(f"dtype must be 'float16', 'bfloat16' or None, not {dtype!r}")
    config, names = configs[adapter_name], Names(model)
    layers = [path for path, layer in lora_layers(model) if adapter_name in layer.lora_A]
    arrays: dict[str, Any] = {}
    parts = parts_of(model, adapter_name)
    refuse_non_finite({f"{path}.{part}": parameter for (path, part), parameter in parts.items()})
    for (path, part), parameter in parts.items():
        key = names.key(path, part, path in layers)
        array = names.turned(path, part, parameter.data)
        arrays[key] = array if dtype is None else HalfWeight.quantize(array, dtype, key).parts(key)[key]
    saved = [path for path, module in saved_modules(model) if module.is_whole(adapter_name)]
    fields = write_fields(
        config,
        {names.module(path): config.rank_of(path) for path in layers},
        {names.module(path): float(by_pattern(config.alpha_pattern, path, config.alpha)) for path in layers},
        [names.module(path) for path in linear_names(model)],
        [names.module(path) for path in saved],
        base_model_name_or_path or getattr(getattr(model, "origin", None), "name", "") or None,
        any(names.transposed(path, "weight") for path in layers),
    )
    folder = make_folder(folder)
    safetensors_file.write(folder / WEIGHTS, arrays, {BASE: json.dumps(_base(model))})
    write_text(folder / CONFIG, json.dumps(fields, indent=2) + "\n")


def load_adapter(model: Module, folder: Any, adapter_name: str = "default", trainable: bool = False) -> Module:
    """Read an adapter in PEFT's format and make it the active one.

    Parameters
    ----------
    model : Module
        With adapters or without, merged or not; its base may be in NF4. An adapter of the same name and shape is
        overwritten.
    folder : str or Path
        Or the folder that has it in a sub-folder called `adapter_name`, as PEFT writes named adapters.
    adapter_name : str
        What to call it here.
    trainable : bool
        Whether it may be trained further. Everything else is frozen in either case.

    Returns
    -------
    Module
        The same model. Half-precision adapters become what the model computes in.

    Raises
    ------
    FileNotFoundError
        If a file is missing.
    ValueError
        If the configuration asks for what is not understood, or keys are missing, left over or wrongly shaped. The
        model is unchanged then.
    """
    folder = _folder(Path(folder), adapter_name)
    fields = json_file.read(folder / CONFIG)
    refuse(fields, folder / CONFIG)
    arrays = unpack(*safetensors_file.read(folder / WEIGHTS), where=str(folder / WEIGHTS))
    config, fits = _fit(model, fields, arrays, folder)
    if adapter_name in adapter_configs(model):
        _refuse_another_shape(model, adapter_name, config, fits)
    else:
        place = random.default.state  # A is drawn and then overwritten: loading shall not move the generator
        try:
            add_adapter(model, config, adapter_name, tied_head=True)
        finally:
            random.default.restore(place)
    for at, parameter in parts_of(model, adapter_name).items():
        parameter.data = of(parameter.data).xp.array(fits[at], dtype=parameter.dtype, order="C")
    set_adapter(model, adapter_name)
    if not trainable:
        model.requires_grad_(False)
    return model


def parts_of(model: Module, adapter_name: str) -> dict[Place, Parameter]:
    """The parameters of an adapter, by module and part."""
    adapted = [(path, module) for path, module in adapted_modules(model) if adapter_name in module.names()]
    return {(path, part): p for path, module in adapted for part, p in module.parts(adapter_name).items()}


def _folder(folder: Path, adapter_name: str) -> Path:
    for place in (folder, folder / adapter_name):
        if (place / CONFIG).is_file():
            if not (place / WEIGHTS).is_file():
                raise no_adapter(place, WEIGHTS)
            return place
    raise no_adapter(folder, CONFIG)


def trained_over(folder: Any) -> dict[str, Any]:
    """How the base was stored when the adapter was saved; over another one it answers a little differently.

    Parameters
    ----------
    folder : str or Path

    Returns
    -------
    dict
        ``{"storage": "nf4", "block_size": 64, "double_quant": True}``, or ``{"storage": "float32"}`` ("float16",
        "bfloat16"); empty if the file does not say.

    Raises
    ------
    ValueError
        If what it says is damaged.
    """
    path = Path(folder) / WEIGHTS
    if not path.is_file():
        return {}  # load_adapter says what is missing
    said = safetensors_file.read(path, [])[1].get(BASE)
    if said is None:
        return {}
    try:
        base = json.loads(said)
        known = base["storage"] in ("float32", "float16", "bfloat16") or (
            base["storage"] == "nf4" and {"block_size", "double_quant"} <= base.keys()
        )
    except (ValueError, TypeError, KeyError):
        known = False
    if not known:
        raise ValueError(f"{path} says in {BASE} what is not understood: {said[:80]}; save the adapter again")
    return base


def _base(model: Module) -> dict[str, Any]:
    """How the decoder's linear layers are stored."""
    weights = [model.get(path).inner().weight for path in linear_names(model) if not is_head(model, path)]
    stored = [weight for weight in weights if not isinstance(weight, Parameter)]
    for weight in stored:
        if weight.storage == "nf4":
            return {"storage": "nf4", "block_size": weight.block_size, "double_quant": weight.double_quant}
    return {"storage": stored[0].storage if stored else "float32"}


def _active(model: Module) -> str:
    names = {name for m in adapted_layers(model) for name in m.active}
    if not names:
        raise RuntimeError("no adapter is active; say which with adapter_name=")
    if len(names) > 1:
        raise ValueError(f"several adapters are active ({', '.join(sorted(names))}); say which with adapter_name=")
    return names.pop()


def _fit(
    model: Module, fields: dict[str, Any], arrays: dict[str, Any], folder: Path
) -> tuple[LoRAConfig, dict[Place, Any]]:
    """The adapter in this model's names, and its arrays by module and part; raises if anything is left over."""
    names = Names(model)
    paths = _targets(model, names, fields, arrays, folder)
    rank, alpha = fields.get("r", 8), fields.get("lora_alpha", 8)  # PEFT's defaults
    ranks = {paths[t]: by_pattern(fields.get("rank_pattern") or {}, t, rank) for t in paths}
    alphas = {paths[t]: by_pattern(fields.get("alpha_pattern") or {}, t, alpha) for t in paths}
    saved = _trained_whole(model, fields.get("modules_to_save") or [], names, arrays, folder)
    config = LoRAConfig(
        rank=rank,
        alpha=alpha,
        dropout=fields.get("lora_dropout", 0.0) or 0.0,
        target_modules=list(ranks),
        use_rslora=bool(fields.get("use_rslora")),
        rank_pattern={re.escape(path): r for path, r in ranks.items() if r != rank},
        alpha_pattern={re.escape(path): a for path, a in alphas.items() if a != alpha},
        modules_to_save=tuple(saved),
        use_dora=bool(fields.get("use_dora")),
        bias=_bias(model, fields.get("bias", "none"), list(ranks)),
    )
    where = folder / WEIGHTS
    arrays = tidied(model, arrays, paths, where)
    wanted = wanted_keys(model, names, config, ranks, saved)
    refuse_another_base(model, names, wanted, arrays, where, fields.get("base_model_name_or_path"))
    guessed = None if fields.get("target_modules") else DEFAULT_TARGETS.get(names.kind or "")
    refuse_misfits(wanted, arrays, where, guessed)
    return config, {(path, part): names.turned(path, part, arrays[key]) for key, ((path, part), _) in wanted.items()}


def _targets(
    model: Module, names: Names, fields: dict[str, Any], arrays: dict[str, Any], folder: Path
) -> dict[str, str]:
    """The adapted layers: the file's name of each, and our path."""
    paths = {names.module(path): path for path in linear_names(model)}
    every = [names.module(path) for path in resolve_targets(model, "all-linear")]
    targets = targets_of(fields, list(paths), every, names.kind, folder / CONFIG)
    if targets is None:  # the keys say it, too
        modules = {key.removeprefix(PREFIX).rpartition(".lora_")[0] for key in arrays if ".lora_" in key}
        targets = [path for path in paths if path in modules]
    if not targets:
        base = fields.get("base_model_name_or_path")
        belongs = f"; the adapter belongs to {base}" if base else ""
        raise ValueError(f"the target_modules in {folder / CONFIG} match no layer of this model{belongs}")
    return {target: paths[target] for target in targets}


def _bias(model: Module, wanted: str, targets: list[str]) -> str:
    """PEFT lets biases train that are not there; "none" means the same."""
    there = any(has_bias(model.get(path)) for path in targets)
    return wanted if there or (wanted == "all" and other_biases(model, targets)) else "none"


def _trained_whole(model: Module, wanted: list[str], names: Names, arrays: dict[str, Any], folder: Path) -> list[str]:
    """Our paths of the modules saved whole. PEFT takes every module whose path ends so; the keys tell which it was."""
    keys = [key.removeprefix(PREFIX) for key in arrays if ".lora_" not in key and ".base_layer." not in key]
    named = {path: names.module(path) for path, _ in model.named_modules(wrapped=False) if path}
    found = [
        path
        for path, name in named.items()
        if name.endswith(tuple(wanted)) and any(key.startswith(f"{name}.") for key in keys)
    ]
    found = [path for path in found if not path.startswith(tuple(f"{other}." for other in found))]
    for name in wanted:
        if not any(named[path].endswith(name) for path in found):
            raise ValueError(
                f"{folder / CONFIG} names modules_to_save {name!r}, but {WEIGHTS} has no weights of it for this model"
            )
    for path in found:
        if not all(isinstance(weight, Parameter) for _, weight in model.get(path).inner().named_weights()):
            raise ValueError(
                f"the adapter brings its own {path}, which this model stores frozen; build the model without storage="
            )
    return found


def _refuse_another_shape(model: Module, name: str, config: LoRAConfig, fits: dict[Place, Any]) -> None:
    """An adapter of this name is there: only the same one, with other numbers, may take its place."""
    there = {at: tuple(parameter.shape) for at, parameter in parts_of(model, name).items()}
    adapters = [(path, layer.adapters.get(name)) for path, layer in lora_layers(model)]
    same = all(config.scale_of(path) == adapter.scale for path, adapter in adapters if isinstance(adapter, Adapter))
    if not same or there != {at: tuple(array.shape) for at, array in fits.items()}:
        raise ValueError(f"the model has another adapter {name!r} already; choose another adapter_name")
