"""``generation_config.json``: how a model's makers would have it write."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from tinyllm.formats import gguf_file, json_file
from tinyllm.models.checkpoints.origin import GENERATION, of_gguf

# What generation_config.json may ask for and is not done here, and the value that asks for nothing.
ELSEWHERE = {
    "repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "min_p": 0.0, "typical_p": 1.0, "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0, "num_beams": 1, "penalty_alpha": 0.0, "length_penalty": 1.0, "encoder_repetition_penalty": 1.0,
    "bad_words_ids": None, "suppress_tokens": None, "begin_suppress_tokens": None, "forced_bos_token_id": None,
    "forced_eos_token_id": None, "stop_strings": None, "guidance_scale": 1.0,
}  # fmt: skip


def recommended(folder: Any) -> tuple[dict[str, Any], list[str]]:
    """How a model's makers would have it write: its ``generation_config.json``, else the ends that other files name.

    Parameters
    ----------
    folder : str or Path
        Or a GGUF file.

    Returns
    -------
    settings : dict
        Arguments of `stream`: ``stop``, and if it samples ``temperature``, ``top_k`` and ``top_p``. Without any file
        that says so empty.
    ignored : list of str
        What it asks for besides, as ``name=value``: it is not done here.

    Raises
    ------
    ValueError
        If the file is damaged, or a value is none that `stream` takes.
    """
    path = Path(folder) / GENERATION
    there = path.is_file()
    given = json_file.read(path) if there else _ends(Path(folder))
    asked = {name: value for name, value in given.items() if value is not None}
    if not there and not asked:
        return {}, []
    stop = asked.get("eos_token_id", [])
    settings: dict[str, Any] = {"stop": tuple(stop) if isinstance(stop, list) else (stop,)}
    if asked.get("do_sample", False):
        settings["temperature"] = asked.get("temperature", 1.0)
        settings |= {name: asked[name] for name in ("top_k", "top_p") if name in asked}
        if settings.get("top_k") == 0:  # all of them
            del settings["top_k"]
    whole = [*settings["stop"], settings.get("top_k", 1)]
    numbers = [settings.get("temperature", 1.0), settings.get("top_p", 1.0)]
    if any(type(value) is not int or value < 0 for value in whole) or any(
        type(value) not in (int, float) or not 0 < value < math.inf for value in numbers
    ):
        raise ValueError(
            f"{path if there else folder} has settings that are none: {settings}; correct it, or take it away"
        )
    return settings, [
        f"{name}={asked[name]}" for name, nothing in ELSEWHERE.items() if asked.get(name, nothing) != nothing
    ]


def _ends(path: Path) -> dict[str, Any]:
    """The ids that end a text, as a folder's config.json or a GGUF file has them."""
    if path.is_file() and path.suffix == ".gguf":
        return {"eos_token_id": of_gguf(path, "", gguf_file.read_header(path).metadata).generating()["eos_token_id"]}
    config = path / "config.json"
    return {"eos_token_id": json_file.read(config).get("eos_token_id") if config.is_file() else None}
