"""``adapter_config.json``: PEFT's fields, which of them are understood, and which layers they mean.

Everything here speaks in the names of the file, which are Hugging Face's.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tinyllm.lora.config import BIASES, LoRAConfig, matches

# PEFT's fields that are understood, or that change nothing about what a finished adapter computes.
UNDERSTOOD = {
    "peft_type", "task_type", "r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules", "bias",
    "use_dora", "use_rslora", "rank_pattern", "alpha_pattern", "modules_to_save", "layers_to_transform",
    "layers_pattern", "init_lora_weights", "fan_in_fan_out", "inference_mode", "base_model_name_or_path",
    "auto_mapping", "revision", "peft_version", "megatron_core", "qalora_group_size", "loftq_config", "eva_config",
    "runtime_config",
}  # fmt: skip
# These begin from another base than the one the model has.
OTHER_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
# What PEFT takes when target_modules is missing, by the model's type.
DEFAULT_TARGETS = {"gpt2": ["c_attn"]} | dict.fromkeys(("llama", "mistral", "qwen2", "qwen3"), ["q_proj", "v_proj"])


def write_fields(
    config: LoRAConfig,
    ranks: dict[str, int],
    alphas: dict[str, float],
    linears: Sequence[str],
    saved: Sequence[str],
    base_model_name_or_path: str | None,
    fan_in_fan_out: bool,
) -> dict[str, Any]:
    """The fields that PEFT needs to build the same adapter.

    Parameters
    ----------
    config : LoRAConfig
    ranks, alphas : dict
        Of each adapted layer.
    linears : list of str
        Every linear layer of the model, adapted or not.
    saved : list of str
        The modules trained whole.
    base_model_name_or_path : str or None
    fan_in_fan_out : bool
        Whether the base keeps its weights as (in, out), as GPT-2's Conv1D does; A and B never are.
    """
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model_name_or_path,
        "r": int(config.rank),
        "lora_alpha": float(config.alpha),
        "lora_dropout": float(config.dropout),
        "target_modules": _shortest(list(ranks), linears),
        "bias": config.bias,
        "fan_in_fan_out": fan_in_fan_out,
        "use_rslora": config.use_rslora,
        "use_dora": config.use_dora,
        # A pattern for each one module: PEFT reads ^(.*\.)?(pattern)$.
        "rank_pattern": {re.escape(path): r for path, r in ranks.items() if r != config.rank},
        "alpha_pattern": {re.escape(path): a for path, a in alphas.items() if a != config.alpha},
        # Whole paths: PEFT takes every module whose name merely ends so, and "norm" ends many.
        "modules_to_save": list(saved) or None,
        "init_lora_weights": True,
        "inference_mode": True,
    }


def _shortest(chosen: list[str], every: Sequence[str]) -> list[str]:
    """Last names where they mean the same modules as the paths, else the paths."""
    ends = sorted({path.rpartition(".")[2] for path in chosen})
    meant = {path for path in every if path.rpartition(".")[2] in ends}
    return ends if meant == set(chosen) else chosen


def refuse(fields: dict[str, Any], where: Path) -> None:
    """Raise ValueError for whatever would make the adapter compute something else than is understood here."""
    kind = fields.get("peft_type")
    if kind != "LORA":
        raise ValueError(f"{where} has peft_type {kind!r}; only 'LORA' is understood")
    begun = fields.get("init_lora_weights", True)
    if isinstance(begun, str) and begun.lower().startswith(OTHER_BASE):
        raise ValueError(
            f"{where} has init_lora_weights={begun!r}, which changes the base model's weights; convert it with PEFT's "
            "save_pretrained(path_initial_model_for_weight_conversion=...)"
        )
    strange = [f"{k}={v!r}" for k, v in fields.items() if k not in UNDERSTOOD and v not in (None, False, {}, [])]
    if strange:
        raise ValueError(
            f"{where} has {', '.join(strange)}, which is not understood; LoRA, rsLoRA and DoRA on linear layers are"
        )
    if fields.get("bias", "none") not in BIASES:
        raise ValueError(f"{where} has bias={fields['bias']!r}; it must be one of {', '.join(BIASES)}")
    for field in ("use_rslora", "use_dora"):
        if not isinstance(fields.get(field) or False, bool):
            raise ValueError(f"{where} has {field}={fields[field]!r}; true or false is needed")
    for field in ("rank_pattern", "alpha_pattern"):
        said = fields.get(field) or {}
        kind = int if field == "rank_pattern" else (int, float)
        if not isinstance(said, dict) or not all(_number(value) and isinstance(value, kind) for value in said.values()):
            raise ValueError(f"{where} has {field}={said!r}; an object of numbers above 0 is needed")
        for pattern in said:
            _checked(pattern, field, where)
    for field, default in (("r", 8), ("lora_alpha", 8)):
        if not _number(fields.get(field, default)):
            raise ValueError(f"{where} has {field}={fields[field]!r}; a number above 0 is needed")
    for field in ("modules_to_save", "exclude_modules"):
        said = fields.get(field) or []
        one = field == "exclude_modules" and isinstance(said, str)
        if not one and not _strings(said):
            raise ValueError(f"{where} has {field}={said!r}; a list of strings is needed")


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf")


def _strings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _checked(pattern: str, field: str, where: Path) -> str:
    try:
        matches(pattern, "")
    except ValueError as error:
        raise ValueError(f"the {field} in {where} cannot be used: {error}") from None
    return pattern


def targets_of(
    fields: dict[str, Any], linears: Sequence[str], all_linear: Sequence[str], model_type: str | None, where: Path
) -> list[str] | None:
    """The adapted layers. PEFT's rules: a whole name or a suffix; a string is an expression for the whole name.

    Parameters
    ----------
    fields : dict
    linears : list of str
        Every linear layer of the model.
    all_linear : list of str
        Those that "all-linear" means.
    model_type : str or None
        For what a file without target_modules means.
    where : Path
        Named in errors.

    Returns
    -------
    list of str or None
        None if the file has no target_modules and the model's type no default.

    Raises
    ------
    ValueError
        If a field that says it is damaged.
    """
    said = fields.get("target_modules")
    if said is None:
        said = DEFAULT_TARGETS.get(model_type or "")
        if said is None:
            return None
    if isinstance(said, str) and said.lower() == "all-linear":
        chosen = list(all_linear)
    elif isinstance(said, str):
        chosen = [path for path in linears if matches(_checked(said, "target_modules", where), path, whole=True)]
    elif _strings(said):
        chosen = [path for path in linears if _ends(path, said)]
    else:
        raise ValueError(f"{where} has target_modules {said!r}; a string or a list of strings is needed")
    left_out = fields.get("exclude_modules") or []
    if isinstance(left_out, str):
        chosen = [p for p in chosen if not matches(_checked(left_out, "exclude_modules", where), p, whole=True)]
    else:
        chosen = [path for path in chosen if not _ends(path, left_out)]
    whole = fields.get("modules_to_save") or []
    chosen = [path for path in chosen if not any(f".{name}." in f".{path}." for name in whole)]
    return chosen if isinstance(said, str) else _in_layers(chosen, fields, where)


def _ends(path: str, names: Sequence[str]) -> bool:
    return any(path == name or path.endswith(f".{name}") for name in names)


def _in_layers(paths: list[str], fields: dict[str, Any], where: Path) -> list[str]:
    """Those in the blocks that layers_to_transform names; layers_pattern says what stands before a block's number."""
    wanted, before = fields.get("layers_to_transform"), fields.get("layers_pattern") or []
    if wanted is None or wanted == []:
        return paths
    wanted = wanted if isinstance(wanted, list) else [wanted]
    before = [before] if isinstance(before, str) else before
    if not all(isinstance(i, int | np.integer) for i in wanted) or not _strings(before):
        raise ValueError(
            f"{where} has layers_to_transform={wanted!r} and layers_pattern={before!r}; numbers are needed"
        )
    for pattern in before:
        _checked(pattern, "layers_pattern", where)
    starts = [rf"(?:^|.*?\.)(?:{pattern})\.(\d+)\." for pattern in before] or [r".*?\.[^.]*\.(\d+)\."]
    found = {path: next(filter(None, (re.match(start, path) for start in starts)), None) for path in paths}
    return [path for path, match in found.items() if match and int(match[1]) in wanted]
