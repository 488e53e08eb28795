"""The house has one direction: who may import whom, and what `import tinyllm` may load."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import tinyllm

ROOT = Path(tinyllm.__file__).parent

# Each line may import from itself and from the lines above. A new module needs a place here.
ORDER = [
    ["assets"],
    ["names"],
    ["backend"],
    ["autograd"],
    ["tensor"],
    ["ops"],
    ["frozen"],
    ["functional"],
    ["nn"],
    ["formats"],
    ["models"],
    ["lora"],
    ["qlora"],
    ["optim"],
    ["generate"],
    ["data"],
    ["inspect"],
    ["train"],
    ["course"],
    ["cli", "__main__"],
]
RANK = {name: rank for rank, names in enumerate(ORDER) for name in names}
FILES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")
HEAVY = [
    "safetensors", "ml_dtypes", "rich", "tokenizers", "matplotlib", "torch", "cupy", "jinja2", "transformers", "gguf",
]  # fmt: skip


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(tree: ast.AST, package: str) -> set[str]:
    """Dotted names of this package that a file imports, at any depth, but not those for the type checker alone."""
    names: set[str] = set()
    todo = [tree]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            todo += node.orelse
            continue
        todo += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, *([base] if base else [])])
            names |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return {name for name in names if name == "tinyllm" or name.startswith("tinyllm.")}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path):
    module = module_of(path)
    own = module.split(".")[1]
    assert own in RANK, f"{own} has no place in the order of imports yet; give it one in ORDER"
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for name in imported(ast.parse(path.read_text(encoding="utf-8")), package):
        other = name.split(".")[1] if "." in name else ""
        if other in RANK:
            assert RANK[other] <= RANK[own], f"{module} imports {name}, which stands after it"


def imported_by(*patterns: str) -> dict[str, set[str]]:
    paths = [path for pattern in patterns for path in ROOT.glob(pattern) if path.name != "__init__.py"]
    return {module_of(path): imported(ast.parse(path.read_text(encoding="utf-8")), "") for path in paths}


def test_checkpoints_do_not_import_the_model_that_imports_them():
    for module, names in imported_by("models/checkpoints/*.py", "models/families/*.py").items():
        assert not any(
            name.startswith("tinyllm.models.decoder") or name == "tinyllm.models.DecoderModel" for name in names
        ), module


def test_files_and_arrays_know_no_weights():
    """`state` alone brings the two together."""
    found = imported_by("formats/*.py")
    assert {name.split(".")[1] for name in found.pop("tinyllm.formats.state") if "." in name} >= {"frozen"}
    assert {name.split(".")[1] for names in found.values() for name in names} <= {"backend", "formats", "names"}


def test_the_checker_sees_every_form_of_import():
    text = "from tinyllm import train\nimport tinyllm.cli\ndef f():\n    from ..nn import Linear\n"
    assert {"tinyllm.train", "tinyllm.cli", "tinyllm.nn"} <= imported(ast.parse(text), "tinyllm.models")


def test_import_loads_nothing_heavy():
    script = f"import sys, tinyllm; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT.parent, check=True)
    assert done.stdout.strip() == "[]"


def test_import_loads_no_compiled_package_but_numpy():
    """So that it runs where nothing but NumPy is compiled, in WebAssembly say."""
    script = (
        "import sys, tinyllm; from pathlib import Path; import numpy; home = Path(numpy.__file__).parent.parent; "
        "files = [Path(f) for m in list(sys.modules.values()) if (f := getattr(m, '__file__', None))]; "
        "files = [f for f in files if f.suffix in ('.so', '.pyd') and home in f.parents]; "
        "print(sorted({f.relative_to(home).parts[0] for f in files}))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT.parent, check=True)
    assert done.stdout.strip() == "['numpy']"
