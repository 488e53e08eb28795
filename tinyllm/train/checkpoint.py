"""A run's checkpoint: what trains, its moments, the generator, the settings and how far it is."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from tinyllm.backend import random
from tinyllm.backend.names import few
from tinyllm.formats import safetensors_file
from tinyllm.nn import Module
from tinyllm.optim import AdamW

CHECKPOINT = "checkpoint.safetensors"

# Settings that are hashes: what they stand for, since the hashes themselves tell nobody anything.
FINGERPRINTS = {
    "data_fingerprint": "the data",
    "held_out_fingerprint": "the held-out data",
    "model_fingerprint": "the model",
}
SO_FAR = ("step", "tokens", "seconds", "before", "after", "loss_scale")
DAMAGED = "it is damaged, or another version of tinyllm wrote it; start the run again without --resume"


def save_checkpoint(
    path: Path, model: Module, optimizer: AdamW, settings: dict[str, Any], so_far: dict[str, Any]
) -> None:
    """Write one file, whole or not at all.

    Parameters
    ----------
    path : Path
    model, optimizer
        What trains is saved, and its moments. What is frozen is made again from the settings.
    settings : dict
        What must be the same when resuming.
    so_far : dict
        ``step``, ``tokens``, ``seconds``, ``before``, ``after`` and ``loss_scale``: how far the run is.
    """
    state = optimizer.state_dict()
    arrays = {f"model.{name}": p.numpy() for name, p in model.named_parameters() if p.requires_grad}
    arrays |= {f"{kind}.{i}": moment for kind in ("m", "v") for i, moment in state[kind].items()}
    about = {**so_far, "random": random.default.state, "settings": settings}
    about |= {"optimizer_steps": state["step"], "groups": state["groups"]}
    safetensors_file.write(path, arrays, {"tinyllm_checkpoint": json.dumps(about)})


def load_checkpoint(path: Path, model: Module, optimizer: AdamW, settings: dict[str, Any]) -> dict[str, Any]:
    """Put back what `save_checkpoint` wrote, the generator's position too.

    Returns
    -------
    dict
        ``step``, ``tokens``, ``seconds``, ``before``, ``after`` and ``loss_scale``.

    Raises
    ------
    ValueError
        If there is no such file, it lacks something, or it is of a run with other settings or other parameters. Nothing
        is changed then.
    """
    if not path.exists():
        raise ValueError(f"there is nothing to resume: {path} does not exist; start the run without --resume")
    arrays, metadata = safetensors_file.read(path)
    about = _checked(path, metadata)
    differences = _differences(about["settings"], json.loads(json.dumps(settings)))
    if differences:
        raise ValueError(
            f"the run in {path.parent} had other settings: {', '.join(differences)}; resume with the same, or start "
            "another run"
        )
    own = {name: p for name, p in model.named_parameters() if p.requires_grad}
    saved = {name[6:]: array for name, array in arrays.items() if name.startswith("model.")}
    if own.keys() != saved.keys():
        raise ValueError(f"{path} holds other parameters than this model trains; resume with the same settings")
    steps = {int(i): n for i, n in about["optimizer_steps"].items()}
    _refuse_incomplete(path, arrays, own, optimizer, steps, calm=about["loss_scale"][1])
    _refuse_other_groups(path, about["groups"], optimizer)
    model.load_state_dict(saved, strict=False)
    moments = {kind: {i: arrays[f"{kind}.{i}"] for i in steps} for kind in ("m", "v")}
    optimizer.load_state_dict({"step": steps, "groups": about["groups"], **moments})
    random.default.restore(about["random"])
    return {key: about[key] for key in SO_FAR}


def steps_done(path: Path) -> tuple[int, Any]:
    """How many steps a checkpoint's run has done, and how many it was to do; raises as `load_checkpoint` does."""
    if not path.exists():
        raise ValueError(f"there is nothing to resume: {path} does not exist; start the run without --resume")
    about = _checked(path, safetensors_file.read(path, [])[1])
    return about["step"], about["settings"].get("steps")


def _checked(path: Path, metadata: dict[str, str]) -> dict[str, Any]:
    """What a checkpoint says besides its arrays, if all of it is there and of its kind."""
    if "tinyllm_checkpoint" not in metadata:
        raise ValueError(f"{path} is not a checkpoint of a tinyllm run")
    try:
        about = json.loads(metadata["tinyllm_checkpoint"])
    except (ValueError, RecursionError):
        about = None
    if not isinstance(about, dict):
        raise ValueError(f"the checkpoint {path} does not say what it holds: {DAMAGED}")
    lacking = [part for part in PARTS if part not in about]
    if lacking:
        raise ValueError(f"the checkpoint {path} lacks {few(lacking)}: {DAMAGED}")
    for part, fits in PARTS.items():
        if not fits(about[part]):
            raise ValueError(f"the checkpoint {path} says {part}={about[part]!r:.60}, which cannot be: {DAMAGED}")
    return about


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _is_loss(value: Any) -> bool:
    return value is None or _is_number(value)


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2


# What a checkpoint says, and what each of it must be.
PARTS = {
    "step": lambda value: _is_count(value) and value > 0,
    "tokens": _is_count,
    "seconds": lambda value: _is_number(value) and value >= 0,
    "before": _is_loss,
    "after": _is_loss,
    "loss_scale": lambda value: _is_pair(value) and _is_number(value[0]) and value[0] > 0 and _is_count(value[1]),
    "random": lambda value: _is_pair(value) and type(value[0]) is int and _is_count(value[1]),
    "settings": lambda value: isinstance(value, dict),
    "groups": lambda value: isinstance(value, list) and all(isinstance(group, dict) for group in value),
    "optimizer_steps": lambda value: (
        isinstance(value, dict) and all(position.isdecimal() and _is_count(n) for position, n in value.items())
    ),
}


def _refuse_incomplete(
    path: Path, arrays: dict[str, Any], own: dict[str, Any], optimizer: AdamW, steps: dict[int, int], calm: int
) -> None:
    """Every parameter has its moments, and all arrays fit; `calm` steps of the last ones overflowed nothing."""
    trained = [p for group in optimizer.groups for p in group["params"]]
    if not steps and not calm:
        trained = []  # every step so far overflowed in float16 and was left out
    wanted = {f"model.{name}": p for name, p in own.items()}
    wanted |= {f"{kind}.{i}": p for kind in ("m", "v") for i, p in enumerate(trained)}
    missing = [name for name in wanted if name not in arrays]
    missing += [f"the steps of parameter {i}" for i in range(len(trained)) if i not in steps]
    if missing:
        raise ValueError(f"the checkpoint {path} lacks {few(missing)}: {DAMAGED}")
    strange = [name for name in arrays if name not in wanted]
    if strange:
        raise ValueError(f"the checkpoint {path} holds {few(strange)}, which no run writes: {DAMAGED}")
    for name, p in wanted.items():
        a = arrays[name]
        if a.shape != p.shape or a.dtype.itemsize != p.dtype.itemsize:
            raise ValueError(
                f"the checkpoint {path} holds {name} as {a.dtype} of shape {a.shape}, where {p.dtype} of {p.shape} "
                f"trains: {DAMAGED}"
            )
        if a.dtype.kind == "f" and not np.isfinite(a).all():
            raise ValueError(f"the checkpoint {path} holds numbers in {name} that are not finite: {DAMAGED}")


def _refuse_other_groups(path: Path, groups: list[dict[str, Any]], optimizer: AdamW) -> None:
    """They say about each group of parameters what this optimiser does, in numbers."""
    if len(groups) != len(optimizer.groups):
        raise ValueError(
            f"the checkpoint {path} has {len(groups)} parameter groups, not {len(optimizer.groups)}: {DAMAGED}"
        )
    for i, (group, own) in enumerate(zip(groups, optimizer.groups, strict=True)):
        strange = sorted(group.keys() ^ (own.keys() - {"params"}))
        strange += [name for name, value in group.items() if not _are_numbers(value)]
        if strange:
            raise ValueError(f"the checkpoint {path} says nothing usable about {few(strange)} in group {i}: {DAMAGED}")


def _are_numbers(value: Any) -> bool:
    return all(map(_is_number, value)) if isinstance(value, list) else _is_number(value)


def _differences(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What is not the same, one phrase a setting."""
    return [_difference(key, then, now) for key in sorted(then.keys() | now.keys()) if then.get(key) != now.get(key)]


def _difference(key: str, then: dict[str, Any], now: dict[str, Any]) -> str:
    if key in FINGERPRINTS:
        return f"{FINGERPRINTS[key]} is not the same as then"
    if key not in now:
        return f"{key} was {then[key]!r}, and this version has no such setting"
    if key not in then:
        return f"{key} is {now[key]!r}, and the version that wrote the checkpoint had no such setting"
    return f"{key} was {then[key]!r} and is {now[key]!r}"
