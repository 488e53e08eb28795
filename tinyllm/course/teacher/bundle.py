"""A room without a network: one folder with wheels, lessons, notebooks, the pages and the figures, to be copied."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from html import unescape
from pathlib import Path

from tinyllm.course.teacher.files import write_text

ENGINE, PACKAGE = "tinyllm-engine[plot,course]", "tinyllm"
TAGS = {  # 64-bit Linux and Windows on Intel and AMD, and macOS 14 on Apple's processors
    "linux": ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64"),
    "macos": ("macosx_14_0_arm64",),
    "windows": ("win_amd64",),
}
# pip looks at the markers of the machine that it runs on: what only another system needs is asked for by name.
ALSO = {"linux": (), "macos": ("appnope",), "windows": ("colorama", "pywinpty")}
README = """# tinyllm without a network

Python {python} is needed; everything else is in this folder. In it, on Linux or a Mac:

```sh
python{python} -m venv .venv
.venv/bin/pip install --no-index --find-links wheels "{engine}" {packages}
.venv/bin/python lessons/08_lora.py
```

on Windows:

```bat
py -{python} -m venv .venv
.venv\\Scripts\\pip install --no-index --find-links wheels "{engine}" {packages}
.venv\\Scripts\\python lessons\\08_lora.py
```

{pages}`lessons/` has the lessons as scripts and, in `notebooks/`, as notebooks. The wheels are for {systems} and Python
{python} (Linux and Windows with Intel's or AMD's processors, macOS 14 or later with Apple's).
"""


def bundle(
    root: Path,
    target: Path,
    systems: Sequence[str],
    python: str,
    packages: Sequence[str] = ("notebook",),
    report: Callable[[str], None] = lambda said: None,
) -> None:
    """Write the folder, whole or not at all. Needs a clone, pip and, while it runs, a network.

    Parameters
    ----------
    root : Path
        The clone. Pages and figures are those that were built in it.
    target : Path
        A folder that is not there yet.
    systems : sequence of {"linux", "macos", "windows"}
        What the wheels are for.
    python : str
        The version on those machines, ``"3.12"``.
    packages : sequence of str
        What else shall be installed.
    report : callable
        Is told a line for each part.

    Raises
    ------
    FileExistsError
        If `target` is there.
    FileNotFoundError
        If `root` is no clone.
    ValueError
        If there is no such system or version, or pip finds no wheels.
    """
    if target.exists():
        raise FileExistsError(f"{target} is there already: choose another -o, or remove it")
    if not (root / "pyproject.toml").is_file() or not (root / "tutorials").is_dir():
        raise FileNotFoundError(f"{root} is no clone of the project, and the lessons are only there: run it in one")
    if unknown := [system for system in systems if system not in TAGS] or not systems:
        raise ValueError(f"wheels are for {', '.join(TAGS)}, not {unknown if systems else 'nothing'}")
    if not re.fullmatch(r"3\.\d+", python):
        raise ValueError(f'the version of Python must be like "3.12", not {python!r}')
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as made:
        folder = Path(made) / target.name
        wheels(root, folder / "wheels", systems, python, packages, report)
        shutil.copytree(root / "tutorials", folder / "lessons", ignore=shutil.ignore_patterns("__pycache__"))
        pages = _pages(root, folder)
        report(pages or "The pages are not in it, because they are not built here: CONTRIBUTING.md says how.")
        told = {"pages": f"{pages}\n\n" if pages else "", "systems": ", ".join(systems), "python": python}
        write_text(folder / "README.md", README.format(engine=ENGINE, packages=" ".join(packages), **told))
        folder.rename(target)


def wheels(
    root: Path, folder: Path, systems: Sequence[str], python: str, packages: Sequence[str], report: Callable
) -> None:
    """The engine's wheel, and for each system those of everything it needs."""
    with tempfile.TemporaryDirectory() as clean:  # setuptools would put what an earlier build left in the clone in, too
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(root / name, clean)
        shutil.copytree(root / PACKAGE, Path(clean) / PACKAGE, ignore=shutil.ignore_patterns("__pycache__"))
        _pip("wheel", "--no-deps", "-w", str(folder), clean)
    for system in systems:
        tags = [word for tag in TAGS[system] for word in ("--platform", tag)]
        only = ["--only-binary", ":all:", "--python-version", python, "--implementation", "cp", *tags]
        _pip("download", *only, "-d", str(folder), "--find-links", str(folder), ENGINE, *packages, *ALSO[system])
        report(f"{system}: {len(list(folder.iterdir()))} wheels so far")


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or [done.stderr.strip()[-300:]]
        raise ValueError(f"pip {arguments[0]} failed, and nothing is left of the folder: {said[-1]}")


def _pages(root: Path, folder: Path) -> str:
    """Copy the built pages, and the figures in the lessons as files of their own; a sentence on them, or nothing."""
    site = root / "docs" / "_build" / "html"
    if not (site / "index.html").is_file():
        return ""
    shutil.copytree(site, folder / "site", ignore=shutil.ignore_patterns(".doctrees"))
    (folder / "figures").mkdir()
    for lesson in sorted((root / "docs" / "lessons").glob("[0-9][0-9]_*.ipynb")):
        for name, page in figures(lesson.read_text(encoding="utf-8")):
            write_text(folder / "figures" / f"{lesson.stem[:2]}-{name}.html", page)
    return "`site/index.html` has all pages, and `figures/` those figures of the lessons that one can touch."


def figures(notebook: str) -> list[tuple[str, str]]:
    """The name and the page of each figure that one can touch, from a notebook with its outputs."""
    found = []
    for cell in json.loads(notebook)["cells"]:
        for output in cell.get("outputs", ()):
            html = "".join(output.get("data", {}).get("text/html", ()))
            for title, page in re.findall(r'<iframe title="([^"]*)"[^>]*srcdoc="([^"]*)"', html):
                found.append((re.sub(r"\W+", "-", unescape(title).lower()).strip("-"), unescape(page)))
    return found
