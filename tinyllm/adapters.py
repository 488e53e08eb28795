"""Adapters as files, in PEFT's format: ``adapter_config.json`` and ``adapter_model.safetensors``.

A key is ``base_model.model.`` + the module's path + ``.lora_A.weight`` (r, in) or ``.lora_B.weight`` (out, r); the
adapter's own name is not part of it. Paths are Hugging Face's where the model is Llama-shaped, else ours.
PEFT lets a file with wrong names pass with a warning, and the model then answers as if untrained; here it is an error.
"""

from __future__ import annotations

import difflib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from tinyllm.backend import random
from tinyllm.backend.table import of
from tinyllm.formats import safetensors_file
from tinyllm.formats.atomic import make_folder, write_text
from tinyllm.frozen import FrozenWeight, NF4Weight
from tinyllm.lora import adapter_configs, apply_lora, lora_layers, set_adapter
from tinyllm.lora_linear import LoRAConfig, LoRALinear, SavedModule, by_pattern, matches
from tinyllm.lora_targets import linear_names, resolve_targets
from tinyllm.models.folder import read_json
from tinyllm.models.llama import hf_name, is_llama
from tinyllm.nn import Module
from tinyllm.state import unpack

PREFIX = "base_model.model."
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
BASE = "tinyllm.base"  # in the metadata of WEIGHTS: PEFT reads every field of CONFIG and knows none of ours

# PEFT's fields that are understood, or that change nothing about what a finished adapter computes.
UNDERSTOOD = {
    "peft_type", "task_type", "r", "lora_alpha", "lora_dropout", "target_modules", "bias", "use_rslora", "rank_pattern",
    "alpha_pattern", "modules_to_save", "init_lora_weights", "inference_mode", "base_model_name_or_path",
    "auto_mapping", "revision", "peft_version", "megatron_core", "qalora_group_size", "loftq_config",
    "eva_config", "runtime_config",
}  # fmt: skip
# These begin from another base than the one the model has.
OTHER_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


def save_adapter(
    model: Module, folder: Any, adapter_name: str | None = None, base_model_name_or_path: str | None = None
) -> None:
    """Write an adapter so that PEFT and `load_adapter` can read it.

    Parameters
    ----------
    model : Module
        Enabled or not, merged or not.
    folder : str or Path
        Made if it does not exist.
    adapter_name : str, optional
        By default the active one.
    base_model_name_or_path : str, optional
        Noted for PEFT's users; the base itself is not written.

    Raises
    ------
    RuntimeError, ValueError
        If there are no adapters, none of that name, or several are active and none is named.
    OSError
        If it cannot be written.
    """
    configs = adapter_configs(model)
    if adapter_name is None:
        adapter_name = _active(model)
    if adapter_name not in configs:
        raise ValueError(f"there is no adapter {adapter_name!r}; there are: {', '.join(configs) or 'none'}")
    config, named = configs[adapter_name], _namer(model)
    arrays: dict[str, Any] = {}
    layers = {path: layer for path, layer in lora_layers(model) if adapter_name in layer.lora_A}
    for path, layer in layers.items():
        arrays[f"{PREFIX}{named(path)}.lora_A.weight"] = layer.lora_A[adapter_name].data
        arrays[f"{PREFIX}{named(path)}.lora_B.weight"] = layer.lora_B[adapter_name].data
    saved = [path for path, m in model.named_modules() if isinstance(m, SavedModule) and adapter_name in m.copies]
    for path in saved:
        for name, weight in model.get(path).copies[adapter_name].named_weights():
            arrays[f"{PREFIX}{named(path)}.{name}"] = weight.data
    ranks = {path: config.rank_of(path) for path in layers}
    alphas = {path: float(by_pattern(config.alpha_pattern, path, config.alpha)) for path in layers}
    fields = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model_name_or_path or getattr(model, "name_or_path", None),
        "r": int(config.rank),
        "lora_alpha": float(config.alpha),
        "lora_dropout": float(config.dropout),
        "target_modules": _shortest([named(p) for p in layers], [named(p) for p in linear_names(model)]),
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": config.use_rslora,
        "use_dora": False,
        "rank_pattern": {_exactly(named(p)): r for p, r in ranks.items() if r != config.rank},
        "alpha_pattern": {_exactly(named(p)): a for p, a in alphas.items() if a != config.alpha},
        # Whole paths: PEFT takes every module whose name merely ends so, and "norm" ends many.
        "modules_to_save": [named(p) for p in saved] or None,
        "init_lora_weights": True,
        "inference_mode": True,
    }
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
    folder = Path(folder)
    if not (folder / WEIGHTS).is_file() and (folder / "adapter_model.bin").is_file():
        raise ValueError(
            f"{folder} has only a pickled adapter, which could run code when opened; convert it to safetensors"
        )
    fields = read_json(folder / CONFIG)
    _refuse(fields, folder / CONFIG)
    arrays = unpack(*safetensors_file.read(folder / WEIGHTS), where=str(folder / WEIGHTS))
    config, fits = _fit(model, fields, arrays, folder)
    if adapter_name in adapter_configs(model):
        _refuse_another_shape(model, adapter_name, config, fits)
    else:
        place = random.default.state  # A is drawn and then overwritten: loading shall not move the generator
        try:
            apply_lora(
                model, config.rank, config.alpha, config.dropout, config.target_modules, adapter_name=adapter_name,
                use_rslora=config.use_rslora, rank_pattern=config.rank_pattern, alpha_pattern=config.alpha_pattern,
                modules_to_save=config.modules_to_save, verbose=False,
            )  # fmt: skip
        finally:
            random.default.restore(place)
    for (path, part), array in fits.items():
        module = model.get(path)
        if isinstance(module, LoRALinear):
            parameter = (module.lora_A if part == "lora_A.weight" else module.lora_B)[adapter_name]
        else:
            parameter = module.copies[adapter_name].get(part)
        parameter.data = of(parameter.data).xp.asarray(array.astype(parameter.dtype))
    set_adapter(model, adapter_name)
    if not trainable:
        model.requires_grad_(False)
    return model


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
    layers = [model.get(path) for path in linear_names(model) if not path.endswith("lm_head")]
    weights = [getattr(layer, "base_layer", layer).weight for layer in layers]
    stored = [weight for weight in weights if isinstance(weight, FrozenWeight)]
    for weight in stored:
        if isinstance(weight, NF4Weight):
            return {"storage": "nf4", "block_size": weight.block_size, "double_quant": weight.double_quant}
    return {"storage": stored[0].storage if stored else "float32"}


def _active(model: Module) -> str:
    names = {name for _, m in model.named_modules() if isinstance(m, LoRALinear | SavedModule) for name in m.active}
    if not names:
        raise RuntimeError("this model has no active adapter; call apply_lora or apply_qlora first")
    if len(names) > 1:
        raise ValueError(f"several adapters are active ({', '.join(sorted(names))}); say which with adapter_name=")
    return names.pop()


def _namer(model: Module) -> Any:
    return hf_name if is_llama(getattr(model, "config", None)) else str


def _exactly(path: str) -> str:
    """A pattern for this one module: PEFT reads ``^(.*\\.)?(pattern)$``."""
    return re.escape(path)


def _shortest(chosen: list[str], every: list[str]) -> list[str]:
    """Last names where they mean the same modules as the paths, else the paths."""
    ends = sorted({path.rpartition(".")[2] for path in chosen})
    meant = {path for path in every if path.rpartition(".")[2] in ends}
    return ends if meant == set(chosen) else chosen


def _refuse(fields: dict[str, Any], where: Path) -> None:
    """Raise for whatever would make the adapter compute something else than LoRA."""
    kind = fields.get("peft_type")
    if kind != "LORA":
        raise ValueError(f"{where} has peft_type {kind!r}; only 'LORA' is understood")
    if fields.get("bias", "none") != "none":
        raise ValueError(f"{where} has bias={fields['bias']!r}; adapters with trained biases are not understood yet")
    begun = fields.get("init_lora_weights", True)
    if isinstance(begun, str) and begun.lower().startswith(OTHER_BASE):
        raise ValueError(
            f"{where} has init_lora_weights={begun!r}, which changes the base model's weights; convert it with PEFT's "
            "save_pretrained(path_initial_model_for_weight_conversion=...)"
        )
    strange = [f"{k}={v!r}" for k, v in fields.items() if k not in UNDERSTOOD and v not in (None, False, {}, [])]
    if strange:
        raise ValueError(f"{where} has {', '.join(strange)}, which is not understood; only plain LoRA and rsLoRA are")
    for field in ("rank_pattern", "alpha_pattern"):
        for pattern in fields.get(field) or {}:
            try:
                matches(pattern, "")
            except ValueError as error:
                raise ValueError(f"the {field} in {where} cannot be used: {error}") from None


def _fit(
    model: Module, fields: dict[str, Any], arrays: dict[str, Any], folder: Path
) -> tuple[LoRAConfig, dict[tuple[str, str], Any]]:
    """The adapter in this model's names, and its arrays by module and part; raises if anything is left over."""
    named = _namer(model)
    paths = {named(path): path for path in linear_names(model)}
    targets = _targets(model, fields.get("target_modules"), paths, arrays, folder)
    rank, alpha = fields.get("r", 8), fields.get("lora_alpha", 8)  # PEFT's defaults
    ranks = {t: by_pattern(fields.get("rank_pattern") or {}, t, rank) for t in targets}
    alphas = {t: by_pattern(fields.get("alpha_pattern") or {}, t, alpha) for t in targets}
    wanted: dict[str, tuple[tuple[str, str], tuple[int, ...]]] = {}
    for target in targets:
        layer = model.get(paths[target])
        layer = getattr(layer, "base_layer", layer)
        for part, shape in (
            ("lora_A", (ranks[target], layer.in_features)),
            ("lora_B", (layer.out_features, ranks[target])),
        ):
            wanted[f"{PREFIX}{target}.{part}.weight"] = ((paths[target], f"{part}.weight"), shape)
    saved = _saved(model, fields.get("modules_to_save") or [], named, arrays, folder)
    for path in saved:
        module = model.get(path)
        for name, weight in getattr(module, "original", module).named_weights():
            wanted[f"{PREFIX}{named(path)}.{name}"] = ((path, name), tuple(weight.shape))
    _refuse_misfits(wanted, arrays, folder / WEIGHTS)
    if not targets:
        raise ValueError(f"{folder / WEIGHTS} adapts no layer of this model")
    config = LoRAConfig(
        rank, alpha, fields.get("lora_dropout", 0.0) or 0.0, [paths[t] for t in targets],
        bool(fields.get("use_rslora")),
        {re.escape(paths[t]): r for t, r in ranks.items() if r != rank},
        {re.escape(paths[t]): a for t, a in alphas.items() if a != alpha},
        tuple(saved),
    )  # fmt: skip
    return config, {place: arrays[key] for key, (place, _) in wanted.items()}


def _targets(model: Module, said: Any, paths: dict[str, str], arrays: dict[str, Any], folder: Path) -> list[str]:
    """The adapted modules under the names of the file. PEFT's rules: whole name or suffix; a string matches it all."""
    if said is None:  # PEFT looks it up by the type of the model; the keys say it, too
        modules = {key.removeprefix(PREFIX).rpartition(".lora_")[0] for key in arrays if ".lora_" in key}
        return [path for path in paths if path in modules]
    if said == "all-linear":
        meant = set(resolve_targets(model, "all-linear"))
        return [path for path, ours in paths.items() if ours in meant]
    if isinstance(said, str):
        try:
            return [path for path in paths if matches(said, path, whole=True)]
        except ValueError as error:
            raise ValueError(f"the target_modules in {folder / CONFIG} cannot be used: {error}") from None
    if not isinstance(said, list) or not all(isinstance(target, str) for target in said):
        raise ValueError(f"{folder / CONFIG} has target_modules {said!r}; a string or a list of strings is needed")
    return [path for path in paths if any(path == target or path.endswith("." + target) for target in said)]


def _saved(model: Module, said: list[str], named: Any, arrays: dict[str, Any], folder: Path) -> list[str]:
    """Our paths of the modules saved whole. PEFT takes every module whose path ends so; the keys tell which it was."""
    keys = {key.removeprefix(PREFIX).rpartition(".")[0] for key in arrays if ".lora_" not in key}
    found = [
        path for path, _ in model.named_modules() if path and named(path) in keys and named(path).endswith(tuple(said))
    ]
    for name in said:
        if not any(named(path).endswith(name) for path in found):
            raise ValueError(
                f"{folder / CONFIG} names modules_to_save {name!r}, but {WEIGHTS} has no weights of it for this model"
            )
    for path in found:
        module = model.get(path)
        module = getattr(module, "original", module)
        if any(isinstance(weight, FrozenWeight) for _, weight in module.named_weights()):
            raise ValueError(
                f"the adapter brings its own {path}, which this model stores frozen; build the model without storage="
            )
    return found


def _refuse_misfits(wanted: dict[str, Any], arrays: dict[str, Any], where: Path) -> None:
    missing = [key for key in wanted if key not in arrays]
    extra = [key for key in arrays if key not in wanted]
    shaped = [
        f"{key} has shape {tuple(arrays[key].shape)}, but this model and the config ask for {shape}"
        for key, (_, shape) in wanted.items()
        if key in arrays and tuple(arrays[key].shape) != shape
    ]
    kinds = [
        f"{key} has dtype {array.dtype}, but floats are needed"
        for key, array in arrays.items()
        if array.dtype.kind != "f"
    ]
    said = []
    if missing:
        said.append(f"missing {_few(missing)}")
    if extra:
        close = difflib.get_close_matches(extra[0], missing or wanted, n=1, cutoff=0.4)
        said.append(f"left over {_few(extra)}" + (f" (did you mean {close[0]}?)" if close else ""))
    said += (shaped + kinds)[:3]
    if said:
        raise ValueError(f"the adapter in {where} does not fit: {'; '.join(said)}; nothing was changed")


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _refuse_another_shape(model: Module, name: str, config: LoRAConfig, fits: dict[tuple[str, str], Any]) -> None:
    """An adapter of this name is there: only the same one, with other numbers, may take its place."""
    held: dict[tuple[str, str], Any] = {}
    same = True
    for path, layer in lora_layers(model):
        if name in layer.lora_A:
            held[path, "lora_A.weight"], held[path, "lora_B.weight"] = layer.lora_A[name], layer.lora_B[name]
            same = same and layer.scale[name] == config.scale_of(path)
    for path, module in model.named_modules():
        if isinstance(module, SavedModule) and name in module.copies:
            held |= {(path, part): weight for part, weight in module.copies[name].named_weights()}
    if not same or {k: tuple(v.shape) for k, v in held.items()} != {k: tuple(np.shape(v)) for k, v in fits.items()}:
        raise ValueError(f"the model has another adapter {name!r} already; choose another adapter_name")
