"""A model's name on the Hugging Face hub in the place of a folder, through ``huggingface_hub`` and its cache."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tinyllm.backend.names import kind_of
from tinyllm.models.checkpoints import named

REPOSITORY = r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*"
WANTED = ["*.safetensors", "*.json", "*.jinja"]  # never a pickle
UNWANTED = ["*/*", "consolidated*"]  # other formats' copies of the weights
# By huggingface_hub's classes of errors; one that needs consent is also one that is not found.
REASONS = (
    ({"GatedRepoError"}, "asks its readers for consent: give it on the model's page, then run `hf auth login`"),
    ({"RepositoryNotFoundError"}, "does not exist, or is private: check the name, or run `hf auth login`"),
    (
        {"LocalEntryNotFoundError", "OfflineModeIsEnabled"},
        "is not in the cache, and the hub is out of reach: connect, or unset HF_HUB_OFFLINE, or give a folder",
    ),
)


def find(name: Any) -> Path:
    """The folder or file that a name means: a path that is there, or a snapshot of a repository.

    Parameters
    ----------
    name : str or Path
        A folder, a file, ``base`` or the name of a fetched model (`named.find`), or ``owner/name`` as on the hub. What
        looks like both is a path if its parent folder exists. A folder with a GGUF file and no model beside it means
        that file.

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
    if not isinstance(name, str | os.PathLike):
        raise TypeError(f"a model is a folder, a GGUF file or a name on the hub, not {kind_of(name)}")
    path = Path(named.find(name))
    if path.exists() or path.suffix == ".gguf" or path.parent.is_dir() and path.parent != Path("."):
        return local(path)
    if not re.fullmatch(REPOSITORY, str(name)):
        return path
    try:
        return snapshot(str(name))
    except ImportError:
        raise ImportError(
            f"there is no folder {name}; to get the model of that name from the Hugging Face hub, "
            "pip install 'tinyllm-engine[hub]'"
        ) from None
    except FileNotFoundError as error:
        raise FileNotFoundError(f"there is no folder {name}, and {error}") from error


def name_of(path: Path) -> str:
    """What transformers and PEFT open to get what stands at a path: its name on the hub, or an absolute folder.

    Of a GGUF file it is its folder, which they read with ``gguf_file=``, if no other such file makes that ambiguous.
    """
    path = path.absolute()
    cached = re.fullmatch(r".*[/\\]models--([^/\\]+?)--([^/\\]+)[/\\]snapshots[/\\][^/\\]+", str(path))
    if cached:
        return f"{cached[1]}/{cached[2]}"
    return str(path.parent if path == _only_gguf(path.parent) else path)


def local(path: Path) -> Path:
    """The path itself, or the GGUF file that a folder holds in the place of a model in another form."""
    return _only_gguf(path) or path


def _only_gguf(folder: Path) -> Path | None:
    """The one GGUF file of a folder that is no model in another form."""
    if not folder.is_dir() or (folder / "config.json").is_file():
        return None
    files = list(folder.glob("*.gguf"))
    return files[0] if len(files) == 1 else None


def snapshot(name: str, folder: Any = None, more: Sequence[str] = ()) -> Path:
    """The folder of a repository's configuration, weights and tokenizer.

    Parameters
    ----------
    name : str
        ``owner/name``.
    folder : str or Path, optional
        Where the files shall be; None: in huggingface_hub's cache.
    more : sequence of str
        Patterns of what else is wanted.

    Raises
    ------
    FileNotFoundError, ImportError
        As `find` does.
    """
    try:
        import huggingface_hub
    except ImportError as error:
        raise ImportError("the hub's models take huggingface_hub: pip install 'tinyllm-engine[hub]'") from error
    wanted = [*WANTED, *more]
    try:
        found = huggingface_hub.snapshot_download(
            name, allow_patterns=wanted, ignore_patterns=UNWANTED, local_dir=folder
        )
    except Exception as error:  # its own, requests' and httpx's errors have no common parent
        kinds = {kind.__name__ for kind in type(error).__mro__}
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        unknown = f"could not be fetched ({first}): check the network"
        why = next((why for names, why in REASONS if kinds & names), unknown)
        raise FileNotFoundError(f"on the Hugging Face hub {name} {why}") from error
    return Path(found)
