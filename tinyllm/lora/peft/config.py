"""``adapter_config.json``: PEFT's fields, which of them are understood, and which layers they mean.

Everything here speaks in the names of the file, which are Hugging Face's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tinyllm.formats.fields import NOTHING
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
    strange = [f"{k}={v!r}" for k, v in fields.items() if k not in UNDERSTOOD and v not in NOTHING]
    if strange:
        raise ValueError(
            f"{where} has {', '.join(strange)}, which is not understood; LoRA, rsLoRA and DoRA on linear layers are"
        )
    for field, fits, otherwise in CHECKS:
        if field in fields and not fits(fields[field]):
            raise ValueError(f"{where} has {field}={fields[field]!r}{otherwise}")
    for field in ("rank_pattern", "alpha_pattern"):
        for pattern in fields.get(field) or {}:
            _require_pattern(pattern, field, where)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf")


def _are_strings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _is_flag(value: Any) -> bool:
    return not value or isinstance(value, bool)


def _are_numbers(value: Any) -> bool:
    return not value or isinstance(value, dict) and all(map(_is_number, value.values()))


def _are_whole(value: Any) -> bool:
    return not value or _are_numbers(value) and all(isinstance(number, int) for number in value.values())


def _keeps_the_base(value: Any) -> bool:
    """Whether training began from the weights that the model has."""
    return not (isinstance(value, str) and value.lower().startswith(OTHER_BASE))


# What a field must be if it is there: its name, a test, and the end of the error.
CHECKS: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("init_lora_weights", _keeps_the_base, ", which changes the base model's weights; convert it with PEFT's "
     "save_pretrained(path_initial_model_for_weight_conversion=...)"),
    ("bias", BIASES.__contains__, f"; it must be one of {', '.join(BIASES)}"),
    ("use_rslora", _is_flag, "; true or false is needed"),
    ("use_dora", _is_flag, "; true or false is needed"),
    ("rank_pattern", _are_whole, "; an object of numbers above 0 is needed"),
    ("alpha_pattern", _are_numbers, "; an object of numbers above 0 is needed"),
    ("r", _is_number, "; a number above 0 is needed"),
    ("lora_alpha", _is_number, "; a number above 0 is needed"),
    ("modules_to_save", lambda value: not value or _are_strings(value), "; a list of strings is needed"),
    ("exclude_modules", lambda value: not value or isinstance(value, str) or _are_strings(value),
     "; a list of strings is needed"),
)  # fmt: skip


def _require_pattern(pattern: str, field: str, where: Path) -> None:
    """Raise ValueError if it is no regular expression."""
    try:
        matches(pattern, "")
    except ValueError as error:
        raise ValueError(f"the {field} in {where} cannot be used: {error}") from None


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
    targets = fields.get("target_modules")
    if targets is None:
        targets = DEFAULT_TARGETS.get(model_type or "")
        if targets is None:
            return None
    if isinstance(targets, str) and targets.lower() == "all-linear":
        chosen = list(all_linear)
    elif isinstance(targets, str):
        chosen = _matched(targets, linears, "target_modules", where)
    elif _are_strings(targets):
        chosen = _named(targets, linears)
    else:
        raise ValueError(f"{where} has target_modules {targets!r}; a string or a list of strings is needed")
    left_out = fields.get("exclude_modules") or []
    if isinstance(left_out, str):
        excluded = _matched(left_out, chosen, "exclude_modules", where)
    else:
        excluded = _named(left_out, chosen)
    whole = fields.get("modules_to_save") or []
    excluded += [path for path in chosen if any(f".{name}." in f".{path}." for name in whole)]
    chosen = [path for path in chosen if path not in excluded]
    return chosen if isinstance(targets, str) else _in_layers(chosen, fields, where)


def _matched(pattern: str, paths: Sequence[str], field: str, where: Path) -> list[str]:
    """The paths that an expression matches as a whole."""
    _require_pattern(pattern, field, where)
    return [path for path in paths if matches(pattern, path, whole=True)]


def _named(names: Sequence[str], paths: Sequence[str]) -> list[str]:
    """The paths that a list names, whole or by their ends."""
    return [path for path in paths if any(path == name or path.endswith(f".{name}") for name in names)]


def _in_layers(paths: list[str], fields: dict[str, Any], where: Path) -> list[str]:
    """Those in the blocks that layers_to_transform names; layers_pattern says what stands before a block's number."""
    wanted, before = fields.get("layers_to_transform"), fields.get("layers_pattern") or []
    if wanted is None or wanted == []:
        return paths
    wanted = wanted if isinstance(wanted, list) else [wanted]
    before = [before] if isinstance(before, str) else before
    if not all(isinstance(i, int | np.integer) for i in wanted) or not _are_strings(before):
        raise ValueError(
            f"{where} has layers_to_transform={wanted!r} and layers_pattern={before!r}; numbers are needed"
        )
    for pattern in before:
        _require_pattern(pattern, "layers_pattern", where)
    starts = [rf"(?:^|.*?\.)(?:{pattern})\.(\d+)\." for pattern in before] or [r".*?\.[^.]*\.(\d+)\."]
    found = {path: next(filter(None, (re.match(start, path) for start in starts)), None) for path in paths}
    return [path for path, match in found.items() if match and int(match[1]) in wanted]
