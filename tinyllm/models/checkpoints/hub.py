"""A model's name on the Hugging Face hub in the place of a folder, through ``huggingface_hub`` and its cache."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

REPOSITORY = r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*"
WANTED = ["*.safetensors", "*.json", "*.jinja"]  # never a pickle
UNWANTED = ["*/*", "consolidated*"]  # other formats' copies of the weights


def find(name: Any) -> Path:
    """The folder or file that a name means: a path that is there, or a snapshot of a repository.

    Parameters
    ----------
    name : str or Path
        A folder, a file, or ``owner/name`` as on the hub. What looks like both is a path if its parent folder exists.

    Returns
    -------
    Path
        Of a path it is the path itself, there or not. A snapshot stands in huggingface_hub's cache; with
        ``HF_HUB_OFFLINE=1`` nothing but the cache is looked at.

    Raises
    ------
    FileNotFoundError
        If the repository does not exist, is not open to this user, or is not in the cache and the hub is out of reach.
    ImportError
        If huggingface_hub is not installed.
    """
    path = Path(name)
    if path.exists() or path.suffix == ".gguf" or path.parent.is_dir() and path.parent != Path("."):
        return path
    return snapshot(str(name)) if re.fullmatch(REPOSITORY, str(name)) else path


def snapshot(name: str) -> Path:
    """The folder of a repository's configuration, weights and tokenizer; raises as `find` does."""
    try:
        import huggingface_hub
    except ImportError:
        raise ImportError(
            f"there is no folder {name}; to get the model of that name from the Hugging Face hub, "
            "pip install 'tinyllm-engine[hub]'"
        ) from None
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=WANTED, ignore_patterns=UNWANTED))
    except Exception as error:  # its own, requests' and httpx's errors have no common parent
        kinds = {kind.__name__ for kind in type(error).__mro__}
        if "GatedRepoError" in kinds:
            why = "asks its readers for consent: give it on the model's page, then run `hf auth login`"
        elif "RepositoryNotFoundError" in kinds:
            why = "does not exist, or is private: check the name, or run `hf auth login`"
        elif kinds & {"LocalEntryNotFoundError", "OfflineModeIsEnabled"}:
            why = "is not in the cache, and the hub is out of reach: connect, or unset HF_HUB_OFFLINE, or give a folder"
        else:
            first = str(error).strip().splitlines()[:1]
            why = f"could not be fetched ({first[0] if first else type(error).__name__}): check the network"
        raise FileNotFoundError(f"there is no folder {name}, and on the Hugging Face hub {name} {why}") from error
