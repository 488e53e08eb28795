"""A run's checkpoint: what trains, its moments, the generator, the settings and how far it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tinyllm.backend import random
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
        If there is no such file, or it is of a run with other settings or other parameters.
    """
    if not path.exists():
        raise ValueError(f"there is nothing to resume: {path} does not exist; start the run without --resume")
    arrays, metadata = safetensors_file.read(path)
    if "tinyllm_checkpoint" not in metadata:
        raise ValueError(f"{path} is not a checkpoint of a tinyllm run")
    about = json.loads(metadata["tinyllm_checkpoint"])
    differences = _differences(about["settings"], json.loads(json.dumps(settings)))
    if differences:
        raise ValueError(
            f"the run in {path.parent} had other settings: {', '.join(differences)}; resume with the same, or start "
            "another run"
        )
    own = {name for name, p in model.named_parameters() if p.requires_grad}
    saved = {name[6:]: array for name, array in arrays.items() if name.startswith("model.")}
    if own != set(saved):
        raise ValueError(f"{path} holds other parameters than this model trains; resume with the same settings")
    model.load_state_dict(saved, strict=False)
    moments = {kind: {int(n[2:]): a for n, a in arrays.items() if n.startswith(kind + ".")} for kind in ("m", "v")}
    steps = {int(i): n for i, n in about["optimizer_steps"].items()}
    optimizer.load_state_dict({"step": steps, "groups": about["groups"], **moments})
    random.default.restore(about["random"])
    return {key: about[key] for key in ("step", "tokens", "seconds", "before", "after", "loss_scale")}


def _differences(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What is not the same, one phrase a setting."""
    return [
        f"{FINGERPRINTS[key]} is not the same as then"
        if key in FINGERPRINTS
        else f"{key} was {then.get(key)!r} and is {now.get(key)!r}"
        for key in sorted(then.keys() | now.keys())
        if then.get(key) != now.get(key)
    ]
