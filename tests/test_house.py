"""The laws of the house, read from the source: rooms, the book and its wings, sizes, and what nobody may ask.

Who may import whom at the top is in `test_imports.py`. A law is a function that returns the places that break it, so
that the tests at the end can plant one of each kind.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterable
from pathlib import Path

import pytest
from test_imports import ROOT, imported

import tinyllm

ROOMS = 20
LINES, CODE, CLI_CODE = 300, 40, 50  # of a file without its first docstring; of a function; of one in cli/
KINDS, ASKED = {"FrozenWeight", "HalfWeight", "NF4Weight", "Dense"}, 12

# What a learner need not read to understand how a model is trained.
WINGS = [
    "assets/", "backend/cpu/", "backend/cuda/", "backend/ghost/", "backend/replacement.py", "cli/", "course/", "data/",
    "formats/", "inspect/", "lora/peft/", "models/checkpoints/", "models/families/", "train/checkpoint.py",
    "train/earlier.py", "train/interrupt.py", "train/log.py", "train/run.py", "train/trouble.py",
]  # fmt: skip
BOOK_IN_WINGS = ["data/batches.py", "data/examples.py"]  # they are arrays
# Where the book opens onto a wing.
DOORS = {
    ("models/decoder.py", "models/checkpoints/folder.py"): "from_pretrained, in the method",
    ("models/decoder.py", "models/checkpoints/export.py"): "save_pretrained, in the method",
    ("backend/device.py", "backend/cuda/backend.py"): "set_device('cuda'); CuPy itself is imported in the function",
    ("backend/device.py", "backend/cuda/probe.py"): "why there is no card",
}
# Files above LINES, and why they stay whole.
LONGER = {
    "backend/primitives.py": "one table: each primitive beside its gradient",
}

# Data: each exercise beside its right answers and its wrong ones.
CASES, CASE_LINES = "course/exercises/", 500

# What the path of a weight is called where somebody might look into it.
PATHS = {"name", "path", "p", "n", "full_name", "module_name"}


def source(path: Path) -> str:
    return path.read_text(encoding="utf-8")


FILES = {str(path.relative_to(ROOT).as_posix()): source(path) for path in sorted(ROOT.rglob("*.py"))}
TREES = {name: ast.parse(text) for name, text in FILES.items()}


def in_wings(file: str) -> bool:
    return file not in BOOK_IN_WINGS and any(file == w or w.endswith("/") and file.startswith(w) for w in WINGS)


BOOK = [file for file in FILES if not in_wings(file) and not file.endswith("__init__.py")]


# ------------------------------------------------------------------------------------------------ the laws


def rooms(names: Iterable[str]) -> list[str]:
    """What `ls` shows, without the empty file that says the package is typed."""
    return sorted(name for name in names if name not in ("__pycache__", "py.typed"))


def chapters(docstring: str) -> list[str]:
    """The files that the book's docstring lists, in its order."""
    return re.findall(r"[\w/]+\.py\b", docstring)


def drawn(readme: str) -> list[str]:
    """What README's tree draws inside of `tinyllm/`."""
    tree = readme.split("\ntinyllm/")[1].split("```")[0]
    return sorted(name.rstrip("/") for name in re.findall(r"^  ([\w./]+)", tree, re.M))


def arrows(trees: dict[str, ast.Module]) -> dict[str, set[str]]:
    """File to the files that it imports, at any depth."""
    files = {}
    for file in trees:
        dotted = "tinyllm." + file.removesuffix(".py").replace("/", ".")
        files[dotted.removesuffix(".__init__") if file != "__init__.py" else "tinyllm"] = file
    found: dict[str, set[str]] = {}
    for module, file in files.items():
        package = module if file.endswith("__init__.py") else module.rpartition(".")[0]
        names = imported(trees[file], package)
        # "from a.b import c" names a.b and a.b.c: where c is a file, b's own face is not what is wanted.
        wanted = {n for n in names if n in files and not any(m.startswith(f"{n}.") and m in files for m in names)}
        wanted |= {n.rpartition(".")[0] for n in names if n not in files and n.rpartition(".")[0] in files}
        found[file] = {files[n] for n in wanted} - {file}
    return found


def circle(graph: dict[str, set[str]]) -> list[str]:
    """One circle of a graph, or nothing."""
    done: set[str] = set()

    def walk(node: str, trail: list[str]) -> list[str]:
        if node in trail:
            return [*trail[trail.index(node) :], node]
        if node in done:
            return []
        for other in sorted(graph.get(node, ())):
            if found := walk(other, [*trail, node]):
                return found
        done.add(node)
        return []

    for node in sorted(graph):
        if found := walk(node, []):
            return found
    return []


def without_doors(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    return {file: {other for other in others if (file, other) not in DOORS} for file, others in graph.items()}


def rooms_of(folder: str, graph: dict[str, set[str]]) -> dict[str, set[str]]:
    """The graph between the files and folders that stand in one folder; faces (`__init__`) are left out."""

    def room(file: str) -> str:
        return file[len(folder) :].split("/")[0]

    found: dict[str, set[str]] = {}
    for file, others in graph.items():
        if file.startswith(folder) and room(file) != "__init__.py":
            inside = {room(other) for other in others if other.startswith(folder)} - {room(file), "__init__.py"}
            found.setdefault(room(file), set()).update(inside)
    return found


def against_the_chapters(listed: list[str], graph: dict[str, set[str]]) -> list[str]:
    """Arrows from a file of the book to one that is read later."""
    place = {file: i for i, file in enumerate(listed)}
    return [
        f"{file} imports {other}, which is read later"
        for file in listed
        for other in sorted(graph.get(file, ()))
        if other in place and place[other] > place[file]
    ]


def into_wings(graph: dict[str, set[str]]) -> list[str]:
    """Arrows from the book into a wing that are no door."""
    return [
        f"{file} imports {other}"
        for file, others in graph.items()
        if file in BOOK
        for other in sorted(others)
        if in_wings(other) and (file, other) not in DOORS
    ]


def code_lines(text: str) -> set[int]:
    """The lines on which code stands; docstrings, comments and blank lines are none."""
    lines: set[int] = set()
    skip = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in skip:
            lines |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines -= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return lines


def functions(text: str) -> list[tuple[str, int]]:
    """Each function with its lines of code; one inside another counts for both."""
    lines = code_lines(text)
    return [
        (node.name, len(lines & set(range(node.lineno, (node.end_lineno or 0) + 1))))
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef)
    ]


def long_functions(file: str, text: str) -> list[str]:
    most = CLI_CODE if file.startswith("cli/") else CODE
    return [f"{file}: {name} has {n} lines of code" for name, n in functions(text) if n > most]


def length(text: str) -> int:
    """Lines of a file without its first docstring."""
    lines = len(text.splitlines())
    body = ast.parse(text).body
    first = body[0] if body else None
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
        lines -= (first.end_lineno or 0) - first.lineno + 1
    return lines


def asks_for_a_kind(tree: ast.AST) -> list[int]:
    """Lines that ask which kind of weight something is: isinstance, type(...), a match."""
    found = []
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in ("isinstance", "issubclass")
        ):
            asked: Iterable[ast.AST] = node.args[1:]
        elif isinstance(node, ast.Compare):
            kind = any(isinstance(n, ast.Call) and getattr(n.func, "id", "") == "type" for n in [node.left])
            asked = node.comparators if kind else []
        elif isinstance(node, ast.MatchClass):
            asked = [node.cls]
        else:
            continue
        names = {getattr(n, "id", getattr(n, "attr", "")) for a in asked for n in ast.walk(a)}
        if names & KINDS:
            found.append(node.lineno)
    return found


def matches_a_name(tree: ast.AST) -> list[int]:
    """Lines that look for a word in the path of a weight."""

    def is_path(node: ast.AST) -> bool:
        return isinstance(node, ast.Name) and node.id in PATHS

    def is_word(node: ast.AST) -> bool:
        words = node.elts if isinstance(node, ast.Tuple | ast.List | ast.Set) else [node]
        return any(isinstance(w, ast.Constant) and re.search("[a-z]", str(w.value)) for w in words)

    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            if isinstance(node.ops[0], ast.In | ast.NotIn | ast.Eq | ast.NotEq) and any(map(is_path, sides)):
                found += [node.lineno] if any(map(is_word, sides)) else []
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if node.func.attr in ("endswith", "startswith", "find", "count") and any(map(is_word, node.args)):
                found.append(node.lineno)
    return found


def above_the_backend(file: str, tree: ast.AST, graph: dict[str, set[str]]) -> list[str]:
    """Where threads are imported, or a card asked for, outside of the backend."""
    if file.startswith("backend/") or file == "__init__.py":  # the package's own face passes the two settings on
        return []
    found = [f"{file} imports the threads"] if "backend/cpu/threads.py" in graph.get(file, ()) else []
    asked = [n.lineno for n in ast.walk(tree) if isinstance(n, ast.Attribute) and n.attr == "on_card"]
    return found + [f"{file}:{line} reads on_card" for line in asked]


STUDENTS = {"student.py", "anna.py"}  # what somebody else writes


def missing_files(text: str, folders: list[Path]) -> list[str]:
    """File names in backquotes that stand in none of these folders."""
    named = re.findall(r"(?<!`)`([\w/.-]+\.(?:py|cu|cuh|md))`(?!`)", text)
    here = (name for name in named if name not in STUDENTS)
    return [name for name in here if not any((folder / name).exists() for folder in folders)]


# ------------------------------------------------------------------------------------------------ the house


GRAPH = arrows(TREES)


def test_at_most_twenty_rooms():
    found = rooms(path.name for path in ROOT.iterdir())
    assert len(found) <= ROOMS, found


def test_the_readme_draws_every_room():
    found = rooms(path.name for path in ROOT.iterdir())
    assert drawn(source(ROOT.parent / "README.md")) == [name for name in found if name != "__init__.py"]


def test_every_file_of_the_book_is_listed_once():
    listed = chapters(tinyllm.__doc__)
    assert sorted(listed) == sorted(BOOK)


def test_no_circle_between_files():
    assert not circle(without_doors(GRAPH))


def test_no_circle_between_the_rooms_of_a_folder():
    folders = {""} | {f"{path.relative_to(ROOT).as_posix()}/" for path in ROOT.rglob("*") if path.is_dir()}
    graph = without_doors(GRAPH)
    assert not [found for folder in sorted(folders) if (found := circle(rooms_of(folder, graph)))]


def test_the_book_can_be_read_in_its_order():
    assert not against_the_chapters(chapters(tinyllm.__doc__), GRAPH)


def test_the_book_imports_nothing_of_the_wings():
    assert not into_wings(GRAPH)


def test_doors_are_in_use():
    assert not [door for door in DOORS if door[1] not in GRAPH.get(door[0], ())]


def test_functions_fit_a_screen():
    assert not [place for file, text in FILES.items() for place in long_functions(file, text)]


def test_files_have_one_subject():
    most = {file: CASE_LINES if file.startswith(CASES) else LINES for file in FILES}
    long = {file: length(text) for file, text in FILES.items() if length(text) > most[file]}
    assert long.keys() == LONGER.keys(), long


def test_few_ask_what_kind_a_weight_is():
    asked = [f"{file}:{line}" for file, tree in TREES.items() for line in asks_for_a_kind(tree)]
    assert len(asked) <= ASKED, asked


def test_the_engine_matches_no_names():
    files = [file for file in BOOK if not file.startswith("backend/")]  # no path comes there, only devices' names
    assert not [f"{file}:{line}" for file in files for line in matches_a_name(TREES[file])]


def test_threads_and_cards_stay_in_the_backend():
    assert not [place for file, tree in TREES.items() for place in above_the_backend(file, tree, GRAPH)]


def test_no_file_says_what_to_read_next():
    files = [*ROOT.rglob("*.py"), *ROOT.rglob("*.cu*"), *Path(__file__).parent.rglob("*.py")]
    here = Path(__file__).name
    assert not [str(p) for p in files if p.name != here and re.search(r"\b[Rr]ead\s+next\b", source(p))]


def test_files_that_are_named_are_there():
    top = ROOT.parent
    pages = [top / "README.md", top / "CONTRIBUTING.md", *(top / "docs").glob("*.md")]
    code = [p for folder in ("tinyllm", "tests", "benchmarks", "tools") for p in (top / folder).rglob("*.py")]
    texts = [p for p in pages + code if p.name != Path(__file__).name]
    inside = ["", "tinyllm", "tinyllm/backend", "tinyllm/backend/cuda/kernels", "tinyllm/models", "docs", "tests"]
    folders = [top / folder for folder in [*inside, "benchmarks"]]
    found = {str(p): missing_files(source(p), [*folders, p.parent]) for p in texts}
    assert not {path: names for path, names in found.items() if names}


# ------------------------------------------------------------------------------------------------ each law, broken


def parsed(**files: str) -> dict[str, ast.Module]:
    """Files by path, ``a__b`` for ``a/b.py``."""
    return {f"{name.replace('__', '/')}.py": ast.parse(text) for name, text in files.items()}


def test_a_room_too_many_is_counted():
    assert len(rooms([*map(str, range(ROOMS)), "__pycache__", "another.py"])) == ROOMS + 1


def test_a_room_that_is_not_drawn_is_noticed():
    text = "x\n```text\ntinyllm/   the book\n  backend/   0  arrays\n  ops.py   2  more\ntests/   x\n```\n"
    assert drawn(text) == ["backend", "ops.py"]


def test_a_chapter_missing_or_twice_is_noticed():
    text = tinyllm.__doc__
    for broken in (
        text.replace("optim.py", ""),
        text.replace("optim.py", "optim.py, qlora.py"),
        text.replace("optim.py", "optimum.py"),
    ):
        assert sorted(chapters(broken)) != sorted(chapters(text))


def test_a_circle_inside_functions_is_found():
    trees = parsed(a="from tinyllm import b", b="def f():\n    from tinyllm.c import x", c="import tinyllm.a")
    assert circle(arrows(trees)) == ["a.py", "b.py", "c.py", "a.py"]
    assert not circle(arrows({**trees, "c.py": ast.parse("import numpy")}))


def test_a_circle_of_folders_without_one_of_files_is_found():
    trees = parsed(
        x__a__one="from tinyllm.x.b import two",
        x__b__two="",
        x__b__three="from ..a.four import f",
        x__a__four="",
        x____init__="from tinyllm.x.a.one import f",
    )
    assert not circle(arrows(trees))
    assert circle(rooms_of("x/", arrows(trees))) == ["a", "b", "a"]


def test_a_door_opens_one_way():
    door = next(iter(DOORS))
    assert without_doors({door[0]: {door[1]}, door[1]: {door[0]}}) == {door[0]: set(), door[1]: {door[0]}}


def test_a_chapter_that_needs_a_later_one_is_noticed():
    trees = parsed(tensor="", ops="from tinyllm.nn import f", nn="from tinyllm import tensor")
    assert against_the_chapters(["tensor.py", "ops.py", "nn.py"], arrows(trees)) == [
        "ops.py imports nn.py, which is read later"
    ]


@pytest.mark.parametrize("wing", ["formats/fields.py", "data/text.py", "lora/peft/keys.py", "cli/options.py"])
def test_a_wing_in_the_book_is_noticed(wing):
    assert into_wings({"optim.py": {wing, "nn.py", "data/batches.py"}}) == [f"optim.py imports {wing}"]


def test_a_line_too_many_is_counted():
    body = ["    x = 1"] * (CODE - 1)
    free = '    """Two lines\n    of text."""\n\n    # a comment\n'
    fits = "\n".join(["def f():", free, *body])
    assert not long_functions("nn.py", fits)
    assert long_functions("nn.py", f"{fits}\n    y = 2") == [f"nn.py: f has {CODE + 1} lines of code"]
    assert not long_functions("cli/a.py", f"{fits}\n    y = 2")
    assert long_functions("cli/a.py", fits + "\n    y = 2" * 11) == [f"cli/a.py: f has {CLI_CODE + 1} lines of code"]


def test_a_long_file_is_counted_without_its_docstring():
    assert length('"""One\ntwo."""\n\nx = 1\n') == 2
    assert length("x = 1\n" * (LINES + 1)) > LINES


@pytest.mark.parametrize(
    "line",
    [
        "isinstance(w, NF4Weight)",
        "isinstance(w, Parameter | frozen.FrozenWeight)",
        "isinstance(w, (Parameter, HalfWeight))",
        "type(w) is Dense",
        "match w:\n    case NF4Weight(): pass",
    ],
)
def test_a_question_for_the_kind_is_counted(line):
    assert asks_for_a_kind(ast.parse(line))
    assert not asks_for_a_kind(ast.parse("isinstance(w, Parameter); type(w) is int; NF4Weight.quantize(w)"))


@pytest.mark.parametrize(
    "line",
    [
        'x = "norm" in name',
        'x = path.endswith("lm_head")',
        'x = m.path.startswith(("layers", "h"))',
        'x = ".lora_B." in name',
        'x = name == "lm_head"',
        'x = [p for p in paths if ".copies." not in p]',
    ],
)
def test_a_word_in_a_path_is_noticed(line):
    assert matches_a_name(ast.parse(line))
    assert not matches_a_name(ast.parse('x = name in weights; y = dtype.name == "float16"; z = "params" in group'))


def test_threads_above_the_backend_are_noticed():
    trees = parsed(nn="from tinyllm.backend.cpu import threads", backend__cpu__threads="", ops="x = be.on_card")
    graph = arrows(trees)
    assert above_the_backend("nn.py", trees["nn.py"], graph) == ["nn.py imports the threads"]
    assert above_the_backend("ops.py", trees["ops.py"], graph) == ["ops.py:1 reads on_card"]
    assert not above_the_backend("backend/ghost/array.py", trees["ops.py"], graph)


def test_a_file_that_moved_is_noticed():
    text = "See `optim.py`, `backend/table.py` and `lora_linear.py`; it is in `config.json`."
    assert missing_files(text, [ROOT]) == ["lora_linear.py"]
