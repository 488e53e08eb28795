"""What students hand in: found in a folder, and read as text without running anything."""

from __future__ import annotations

import ast
import hashlib
import io
import json
import tokenize
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tinyllm.course.judge.definitions import remarks

LARGEST = 5_000_000  # bytes of a file
KINDS = (".py", ".ipynb", ".zip")
HEADER = "# tinyllm homework "


class Unreadable(Exception):
    """What was handed in cannot be graded, in one sentence."""


@dataclass
class Submission:
    """One student's.

    Attributes
    ----------
    student : str
        The name of the file, or of the folder it lies in.
    file : str
        Relative to the folder of all.
    source : str
        Python; of a notebook its cells, one after the other.
    digest : str
        Of the bytes that were handed in.
    notes : list of str
        What the student and the teacher should know, a sentence each.
    """

    student: str
    file: str
    source: str = ""
    digest: str = ""
    notes: list[str] = field(default_factory=list)

    def header(self) -> tuple[str, str] | None:
        """The homework and the release that a handed-out file names in its first lines."""
        for line in self.source.splitlines()[:5]:
            if line.startswith(HEADER) and (words := line[len(HEADER) :].split(", release ")) and len(words) == 2:
                return words[0], words[1].strip()
        return None


def submissions(folder: Path) -> Iterator[Submission]:
    """Each student's, in the order of their names.

    Parameters
    ----------
    folder : Path
        It holds ``anna.py``, ``ben.ipynb``, ``cem.zip``, or folders ``anna/`` with one of these in them.
    """
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir(), key=lambda p: p.name):
        if not path.name.startswith((".", "__")) and (path.is_dir() or path.suffix.lower() in KINDS):
            found.setdefault(path.stem if path.suffix.lower() in KINDS else path.name, []).append(path)
    for student, paths in sorted(found.items()):
        yield one(student, paths, folder)


def one(student: str, paths: list[Path], folder: Path) -> Submission:
    """A student's submission, with the reason in its notes if it cannot be read."""
    path = sorted(paths, key=lambda p: (KINDS.index(p.suffix.lower()) if p.suffix.lower() in KINDS else 9, p.name))[0]
    submission = Submission(student, path.name)
    if len(paths) > 1:
        others = ", ".join(p.name for p in paths if p != path)
        submission.notes.append(f"Handed in more than once: {path.name} counts, not {others}.")
    try:
        if path.is_dir() and not path.is_symlink():
            path = _inside(path, submission)
        submission.file = path.relative_to(folder).as_posix()
        raw = _bytes(path, folder)
        submission.digest = hashlib.sha256(raw).hexdigest()
        submission.source = text(path.name, raw, submission.notes)
        submission.notes += remarks(submission.source)
    except Unreadable as error:
        submission.notes.append(f"Not graded: {error}")
    except SyntaxError as error:
        submission.notes.append(f"Not graded: it is not Python, line {error.lineno}: {error.msg}.")
    except (ValueError, RecursionError, MemoryError, OSError) as error:  # null bytes, nests of brackets, a bad disk
        submission.notes.append(f"Not graded: it cannot be read ({type(error).__name__}).")
    return submission


def _inside(path: Path, submission: Submission) -> Path:
    files = sorted(p for p in path.iterdir() if p.suffix.lower() in KINDS and not p.name.startswith("."))
    if not files:
        raise Unreadable("the folder has no .py, .ipynb or .zip in it.")
    chosen = next((p for p in files if p.name == "student.py"), files[0])
    if len(files) > 1:
        others = ", ".join(p.name for p in files if p != chosen)
        submission.notes.append(f"Several files: {chosen.name} counts, not {others}.")
    return chosen


def _bytes(path: Path, folder: Path) -> bytes:
    if not path.resolve().is_relative_to(folder.resolve()):
        raise Unreadable("it is a link to somewhere else.")
    size = path.stat().st_size
    if size > LARGEST:
        raise Unreadable(f"the file has {size / 1e6:.0f} MB, and {LARGEST / 1e6:.0f} is the most.")
    return path.read_bytes()


def text(name: str, raw: bytes, notes: list[str]) -> str:
    """The Python in a file's bytes.

    Raises
    ------
    Unreadable
        If there is none.
    """
    suffix = Path(name).suffix.lower()
    if suffix == ".zip":
        return text(*_zipped(raw), notes)
    if suffix == ".ipynb":
        return _cells(raw, notes)
    if not raw.strip():
        raise Unreadable("the file is empty.")
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(raw).readline)
        return io.TextIOWrapper(io.BytesIO(raw), encoding).read()
    except (UnicodeDecodeError, SyntaxError):
        raise Unreadable("the file is not in UTF-8: save it so.") from None


def _zipped(raw: bytes) -> tuple[str, bytes]:
    """The name and the bytes of the one file in a zip."""
    try:
        archive = zipfile.ZipFile(io.BytesIO(raw))
        inside = [i for i in archive.infolist() if not i.is_dir() and "__MACOSX" not in i.filename]
        taken = [i for i in inside if i.filename.lower().endswith((".py", ".ipynb"))]
        if len(taken) != 1:
            nested = any(i.filename.lower().endswith(".zip") for i in inside)
            what = "holds another zip" if nested else f"holds {len(taken)} files of Python"
            raise Unreadable(f"the zip {what}, and it should hold one student.py.")
        if taken[0].file_size > LARGEST:
            raise Unreadable(f"what is in the zip has {taken[0].file_size / 1e6:.0f} MB.")
        return taken[0].filename, archive.read(taken[0])
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError):
        raise Unreadable("the zip is damaged, or has a password.") from None


def _cells(raw: bytes, notes: list[str]) -> str:
    """The code cells of a notebook, each after a comment with its number; lines for the notebook alone are left out."""
    try:
        cells = json.loads(raw.decode("utf-8-sig"))["cells"]
        sources = [(i, c["source"]) for i, c in enumerate(cells, 1) if c["cell_type"] == "code"]
        texts = [(i, s if isinstance(s, str) else "".join(s)) for i, s in sources]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise Unreadable("the notebook is damaged: it is not the JSON that Jupyter writes.") from None
    found = []
    for i, source in texts:
        lines = ["" if line.lstrip().startswith(("%", "!")) else line for line in source.splitlines()]
        try:
            ast.parse("\n".join(lines))
        except (SyntaxError, ValueError) as error:
            notes.append(f"Cell {i} is not Python, and is left out: {getattr(error, 'msg', error)}.")
            continue
        found.append(f"# cell {i}\n" + "\n".join(lines) + "\n")
    return "\n".join(found)
