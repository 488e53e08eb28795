"""The site: these pages, the lessons as they ran, and the API from its docstrings.

    python tools/run_lessons.py                               the lessons, once, with their outputs
    python -m sphinx -W -b html docs docs/_build/html         the pages; they open from the folder, without a server
"""

import importlib
import pkgutil
import platform
import re
import sys
import zipfile
from datetime import date
from importlib import metadata
from pathlib import Path

DOCS = Path(__file__).resolve().parent
sys.path[:0] = [str(DOCS.parent), str(DOCS.parent / "tools")]

import plans  # noqa: E402
from pygments.lexers.python import PythonLexer  # noqa: E402

import tinyllm  # noqa: E402

project, author, copyright = "tinyllm", "the tinyllm authors", "the tinyllm authors, MIT licence"
version = release = tinyllm.__version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.viewcode", "numpydoc", "sphinx_copybutton"]
exclude_patterns = ["_build"]
nitpicky = True

myst_enable_extensions = ["dollarmath", "deflist", "substitution"]
myst_substitutions = {
    "lessons": plans.table(),
    "afternoon": plans.table([8, 9, 10]),
    "six_weeks": plans.table([1, 2, 4, 8, 10, 11]),
    "versions": ", ".join(f"{name} {metadata.version(name)}" for name in ("numpy", "matplotlib", "tokenizers")),
    "release": tinyllm.__version__,
    "machine": f"Python {platform.python_version()} on {platform.system()}, {date.today().isoformat()}",
}
myst_heading_anchors = 4
nb_execution_mode = "off"  # tools/run_lessons.py ran them
nb_merge_streams = True
nb_render_markdown_format = "gfm"  # what lessons say may be a table
mathjax_path = "mathjax/tex-svg.js"  # version 3: parts of version 4 do not load from a folder

autodoc_member_order = "bysource"
default_role = "code"
autodoc_inherit_docstrings = False
autodoc_typehints = "none"  # the docstrings say it, with shapes
numpydoc_show_class_members = False
copybutton_exclude = ".linenos, .gp, .go"

viewcode_line_numbers = True
viewcode_follow_imported_members = False

html_theme = "pydata_sphinx_theme"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_title = "tinyllm"
html_show_sourcelink = False
html_sidebars = {page: [] for page in ("index", "teachers", "coming-from", "glossary")}
html_context = {"default_mode": "auto"}
html_theme_options = {
    "navigation_with_keys": False,
    "show_prev_next": True,
    "navbar_align": "left",
    "navbar_persistent": [],
    "navbar_end": ["search-field.html", "theme-switcher"],  # the theme's button is named otherwise than it reads
    "header_links_before_dropdown": 7,
    "footer_start": ["copyright"],
    "footer_end": [],
}


API = """From the docstrings, in the order of the book: first what a learner reads to understand how a model is
fine-tuned, then what a practitioner needs beside it. Every entry leads to its source.
"""


PARTS = ["pyproject.toml", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE"]
FOLDERS = ["tinyllm", "tutorials", "tests", "docs", "benchmarks", "tools"]
MADE = {"__pycache__", "_build", "lessons", "api"}


def pack(target):
    """The project as a zip beside the pages, so that whoever has the site has all of it."""
    root = DOCS.parent
    inside = [p for folder in FOLDERS for p in (root / folder).rglob("*") if p.is_file()]
    kept = [p for p in inside if not MADE & set(p.relative_to(root).parts[1:-1]) or "tests" in p.parts]
    target.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted([root / name for name in PARTS] + [p for p in kept if "__pycache__" not in p.parts]):
            archive.write(path, Path("tinyllm-engine") / path.relative_to(root))


pack(DOCS / "lessons" / "tinyllm-engine.zip")


def modules(name):
    """A module and all below it, by name."""
    yield name
    for found in pkgutil.iter_modules(getattr(importlib.import_module(name), "__path__", [])):
        if not found.name.startswith("_") and found.name != "exercises":  # those hold the answers
            yield from modules(f"{name}.{found.name}")


def exported(module):
    """What a package passes on from its modules, each linked to where it is defined."""
    if not hasattr(module, "__path__"):
        return ""
    things = {name: getattr(module, name) for name in getattr(module, "__all__", [])}
    return ", ".join(
        f":py:obj:`{name} <{x.__module__}.{x.__qualname__}>`" if hasattr(x, "__qualname__") else f"``{name}``"
        for name, x in things.items()
    )


def api_pages(app):
    """A page of docstrings for each room of the house, in the order of the book; its wings come after it."""
    folder = DOCS / "api"
    folder.mkdir(exist_ok=True)
    there = [found.name for found in pkgutil.iter_modules(tinyllm.__path__) if found.name not in ("__main__", "cli")]
    rooms = dict.fromkeys(room for room in re.findall(r"(\w+)(?:/\w+)*\.py", tinyllm.__doc__) if room in there)
    rooms = [*rooms, *(room for room in there if room not in rooms)]
    for room in rooms:
        parts = [heading(f"``tinyllm.{room}``", "=")]
        for name in modules(f"tinyllm.{room}"):
            module = importlib.import_module(name)
            if name != f"tinyllm.{room}":
                parts.append(heading(f"``{name.removeprefix('tinyllm.').replace('.', '/')}``", "-"))
            parts.append(f".. automodule:: {name}\n   :members:\n   :ignore-module-all:\n")
            parts += [f"Public as ``{name}``: {public}.\n"] if (public := exported(module)) else []
        write(folder / f"{room}.rst", "\n".join(parts))
    for stale in set(folder.glob("*.rst")) - {folder / f"{room}.rst" for room in rooms} - {folder / "index.rst"}:
        stale.unlink()
    listed = "\n   ".join(rooms)
    write(folder / "index.rst", f"{heading('The API', '=')}\n{API}\n.. toctree::\n   :maxdepth: 1\n\n   {listed}\n")


def heading(text, line):
    return f"{text}\n{line * len(text)}\n"


def write(path, text):
    """Write what is new; a page that stays as it was is not built again."""
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def name_as_written(app, page, template, context, doctree):
    """A folded output is called what stands on it; MyST-NB gives it another name, which a screen reader would read."""
    if "body" in context:
        context["body"] = context["body"].replace(' aria-label="Toggle hidden content"', "")


def setup(app):
    app.connect("html-page-context", name_as_written)
    app.connect("builder-inited", api_pages)
    app.add_lexer("torch", PythonLexer)  # blocks that are PyTorch's side of something
