"""A room without a network: the folder is made whole, and what it says about installing from it works."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html import escape
from pathlib import Path

import pytest

from tinyllm.course.__main__ import here, main
from tinyllm.course.teacher import bundle as module
from tinyllm.course.teacher.bundle import bundle, figures

ROOT = Path(__file__).parents[2]
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
RUN = """
import tinyllm
from tinyllm.course.figures import nf4_microscope
assert {room!r} in tinyllm.__file__
print(nf4_microscope([0.5, -0.25]).save("."))
"""


@pytest.mark.skipif(here() != "linux", reason="not run: its commands are a Unix shell's")
def test_the_commands_in_its_readme_install_and_run_without_a_network(tmp_path):
    room = tmp_path / "new" / "room"
    bundle(ROOT, room, [here()], PYTHON, packages=())
    readme = (room / "README.md").read_text(encoding="utf-8")
    commands = re.findall(r"```sh\n(.*?)```", readme, re.S)[0]
    assert "--no-index" in commands
    # A registry that is nowhere: whoever asks for one fails.
    env = {"PATH": "/usr/bin:/bin:/usr/local/bin", "HOME": str(tmp_path), "PIP_INDEX_URL": "http://127.0.0.1:9/"}
    first = commands.splitlines()
    first[0] = first[0].replace(f"python{PYTHON}", sys.executable)
    subprocess.run(["bash", "-euo", "pipefail", "-c", "\n".join(first[:2])], cwd=room, env=env, check=True)
    done = subprocess.run(
        [".venv/bin/python", "-I", "-c", RUN.format(room=str(room))], cwd=room, env=env, check=True, capture_output=True
    )
    assert done.stdout.strip() == b"nf4.html" and (room / "nf4.png").exists()
    assert (room / "lessons" / "08_lora.py").exists() and (room / "lessons" / "notebooks").is_dir()


def test_figures_leave_the_notebooks_that_ran():
    page = "<!doctype html><title>a & b</title>"
    frame = f'<iframe title="Merged into what?" style="x" srcdoc="{escape(page, quote=True)}"></iframe>'
    cells = [{"outputs": [{"data": {"text/html": [frame]}}, {"text": "x"}]}, {"cell_type": "markdown"}]
    assert figures(json.dumps({"cells": cells})) == [("merged-into-what", page)]


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--system", "amiga"], "wheels are for linux, macos, windows, not ['amiga']"),
        (["--python", "4"], 'must be like "3.12"'),
        (["--python", "3.99"], "pip download failed, and nothing is left of the folder"),
    ],
)
def test_wrong_use_is_one_sentence_and_leaves_nothing(arguments, said, tmp_path, capsys):
    assert main(["bundle", "-o", str(tmp_path / "room"), *arguments]) == 2
    assert said in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_it_is_told_what_is_there_or_missing(tmp_path, capsys, monkeypatch):
    assert main(["bundle", "-o", str(tmp_path)]) == 2
    assert "is there already" in capsys.readouterr().err
    with pytest.raises(FileNotFoundError, match="is no clone"):
        bundle(tmp_path, tmp_path / "room", ["linux"], "3.12")
    clone = tmp_path / "clone"
    (clone / "docs" / "_build" / "html").mkdir(parents=True)
    (clone / "docs" / "_build" / "html" / "index.html").write_text("pages")
    (clone / "docs" / "lessons").mkdir()
    frame = '<iframe title="A figure" srcdoc="&lt;p&gt;"></iframe>'
    ran = {"cells": [{"outputs": [{"data": {"text/html": frame}}]}]}
    (clone / "docs" / "lessons" / "08_lora.ipynb").write_text(json.dumps(ran))
    (clone / "tutorials").mkdir()
    (clone / "pyproject.toml").write_text("")
    monkeypatch.setattr(module, "wheels", lambda root, folder, *rest: folder.mkdir(parents=True))
    said: list[str] = []
    bundle(clone, tmp_path / "room", ["linux"], "3.12", report=said.append)
    assert (tmp_path / "room" / "site" / "index.html").exists() and "site/index.html" in said[0]
    assert (tmp_path / "room" / "figures" / "08-a-figure.html").read_text() == "<p>"
    assert {p.name for p in tmp_path.iterdir()} == {"clone", "room"}
