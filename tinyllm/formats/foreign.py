"""What stands in the place of a file: a look at its first bytes, before anything else is made of them."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

START = 512
# What git leaves where a large file should be, when the program that fetches those is missing: first bytes, what it is.
POINTERS = (
    (b"version https://git-lfs.github.com/", "a Git LFS pointer", "run `git lfs pull` where it was cloned"),
    (b"version https://hawser.github.com/", "a Git LFS pointer", "run `git lfs pull` where it was cloned"),
    (b"/annex/objects/", "a git-annex pointer", "run `git annex get` where it was cloned"),
    (b"# xet version", "an XET pointer", "run `git xet checkout` where it was cloned"),
)
PAGES = (b"<!doctype html", b"<html")
CONVERT = "safetensors.torch.save_file(torch.load({name!r}, weights_only=True), 'model.safetensors')"


def refuse_pointer(path: Any, pages: bool = True) -> None:
    """Raise ValueError if a file is a pointer to what should be there, or, unless it may be one, a web page.

    Raises
    ------
    ValueError
        Saying which, and what gets the file.
    """
    with open(path, "rb") as file:
        start = file.read(START)
    for first, kind, remedy in POINTERS:
        if start.startswith(first):
            raise ValueError(f"{path} is {kind}, not the file itself: {remedy}, or download the file")
    if pages and start.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(PAGES):
        raise ValueError(f"{path} is a web page, not the file itself: download the file that the page offers")


def other_weights(path: Any) -> str | None:
    """What a file of weights is that is no safetensors file, and what to do; None for what is not known."""
    with open(path, "rb") as file:
        start = file.read(START)
    if start[:1] == b"\x80" and start[1:2] in b"\x02\x03\x04\x05" or _is_torch_zip(path):
        convert = CONVERT.format(name=Path(path).name)
        return f"a pickle, which could run code when opened; convert it to safetensors, in Python with {convert}"
    if start.startswith(b"PK"):
        return "a zip archive and no safetensors file; NumPy reads an .npz, with numpy.load"
    if start.startswith(b"GGUF"):
        return "a GGUF file; name it as the model, with the suffix .gguf"
    if start.startswith(b"\x89HDF"):
        return "an HDF5 file, which is not understood; convert it to safetensors"
    return None


def pickles(folder: Path) -> list[str]:
    """The names of pickled weights in a folder; what trainers keep of themselves is none."""
    files = [file for end in ("bin", "pt", "pth", "ckpt") for file in folder.glob(f"*.{end}")]
    own = ("training_args", "optimizer", "scheduler", "rng_state", "scaler")
    return sorted(file.name for file in files if not file.name.startswith(own))


def _is_torch_zip(path: Any) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("data.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, ValueError, OSError):
        return False
