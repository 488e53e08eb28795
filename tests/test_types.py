"""A user's program passes mypy, strictly, with exact types; and a wheel carries what says so, and the kernels."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys

import pytest
from test_docs import ROOT, blocks

PACKAGE = ROOT / "tinyllm"

# Every line with "is" after it reveals that type.
PROGRAM = """
import numpy as np
import tinyllm
from tinyllm import Tensor, nn
from tinyllm import functional as F
from tinyllm.lora import apply_lora, get_lora_parameters, merge_lora, unmerge_lora
from tinyllm.models import DecoderModel
from tinyllm.optim import AdamW, clip_grad_norm, lr_factor, parameter_groups
from tinyllm.qlora import apply_qlora, dequantize_nf4, quantize_nf4
from tinyllm.tensor import checkpoint, op


class MLP(nn.Module):
    def __init__(self) -> None:
        self.up, self.down = nn.Linear(4, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x)))


class Both(nn.Module):
    def forward(self, x: Tensor, times: int = 1) -> tuple[Tensor, int]:
        return x, times


def square(a: Tensor) -> Tensor:
    x = a.data
    return op(x * x, (a, lambda g: 2 * x * g))


def main() -> float:
    tinyllm.manual_seed(0)
    x = Tensor(np.ones((2, 4)))
    reveal_type(MLP()(x))  # is tinyllm.tensor.Tensor
    reveal_type(Both()(x, times=2))  # is tuple[tinyllm.tensor.Tensor, int]
    y = (MLP()(x) * 2.0 - 1).mean(axis=0).sum()
    y.backward()
    with tinyllm.no_grad():
        reveal_type(square(y) + 1)  # is tinyllm.tensor.Tensor
    with tinyllm.enable_grad():
        checkpoint(square, y)
    reveal_type(tinyllm.gradcheck(square, np.ones(3)))  # is float
    for row in tinyllm.kept(y, MLP()):
        reveal_type(row)  # is tinyllm.inspect.kept.Row
    picture: str = tinyllm.graph_svg(y)
    model = DecoderModel(100, 64, 2)
    reveal_type(model(np.ones((1, 3), np.int64)))  # is tinyllm.tensor.Tensor
    reveal_type(model.loss(np.ones((1, 3)), np.ones((1, 3))))  # is tinyllm.tensor.Tensor
    apply_lora(model, rank=4)
    merge_lora(model)
    unmerge_lora(model)
    apply_qlora(model)
    codes, scales = quantize_nf4(np.ones(64, np.float32))
    dequantize_nf4(codes, scales, (64,))
    optimizer = AdamW(parameter_groups(model, 1e-3, 0.0))
    optimizer.set_lr_factor(lr_factor("cosine", 1, 10, 2))
    optimizer.step()
    with tinyllm.use(softmax=lambda xp, x: x):
        F.softmax(F.dropout(y, 0.1))
    tinyllm.ops.concatenate([y, y])
    print(picture, len(get_lora_parameters(model)))
    return clip_grad_norm(model.parameters(), 1.0) + y.item()
"""
WRONG = """
from tinyllm import Tensor, nn

y: int = nn.Linear(2, 2)(Tensor([1.0, 2.0]))
nn.Linear(2, 2)("text")
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> list[str]:
    """What mypy says of the three programs: its lines."""
    if importlib.util.find_spec("mypy") is None:
        pytest.skip("not run: mypy is not installed")
    folder = tmp_path_factory.mktemp("programs")
    readme = [b.text for b in blocks((ROOT / "README.md").read_text(encoding="utf-8")) if b.language == "python"]
    (folder / "readme.py").write_text("".join(readme), encoding="utf-8")
    (folder / "program.py").write_text(PROGRAM, encoding="utf-8")
    (folder / "wrong.py").write_text(WRONG, encoding="utf-8")
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--no-error-summary"]
    command += ["--cache-dir", str(folder / "cache"), "readme.py", "program.py", "wrong.py"]
    env = {**os.environ, "MYPYPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    assert not done.stderr, done.stderr
    return done.stdout.splitlines()


def test_the_readmes_program_passes(report):
    assert not [line for line in report if line.startswith("readme.py")]


def test_a_users_program_passes_with_exact_types(report):
    expected = {n: line.split("# is ")[1] for n, line in enumerate(PROGRAM.splitlines(), 1) if "# is " in line}
    lines = [re.fullmatch(r'program\.py:(\d+): note: Revealed type is "(.*)"', line) for line in report]
    assert {int(found[1]): found[2] for found in lines if found} == expected
    assert len([line for line in report if line.startswith("program.py")]) == len(expected)


def test_a_wrong_program_is_told(report):
    assert [re.search(r":(\d+): error", line)[1] for line in report if line.startswith("wrong.py")] == ["4", "5"]


def test_a_wheel_says_that_it_is_typed_and_carries_the_kernels():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8").split("[tool.setuptools.package-data]")[1]
    patterns = dict(re.findall(r'^"([\w.]+)" = \[(.*)\]$', text.split("\n[")[0], re.M))
    carried = {
        path
        for package, globs in patterns.items()
        for glob in re.findall(r'"([^"]+)"', globs)
        for path in (ROOT / package.replace(".", "/")).glob(glob)
    }
    others = {p for p in PACKAGE.rglob("*") if p.is_file() and p.suffix != ".py" and "__pycache__" not in p.parts}
    assert others <= carried, others - carried
    assert PACKAGE / "py.typed" in others and len([p for p in others if p.suffix == ".cu"]) > 10
    assert not [str(p) for p in PACKAGE.rglob("*.py") if not (p.parent / "__init__.py").exists()]
