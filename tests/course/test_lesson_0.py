"""Lesson 0's program is what its lesson says: 200 lines, NumPy alone, and the engine's equal; so are its stages."""

from __future__ import annotations

import ast
import difflib
import importlib.util
import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from test_lessons import LESSONS, resolves
from threadpoolctl import threadpool_limits

from tinyllm import assets
from tinyllm.course import kit
from tinyllm.generate import generate
from tinyllm.optim import AdamW
from tinyllm.qlora import apply_qlora

TUTORIALS = Path(__file__).parents[2] / "tutorials"
FILES = [*sorted((TUTORIALS / "stages").glob("*.py")), TUTORIALS / "all_of_it.py"]
SOURCES = [path.read_text(encoding="utf-8") for path in FILES]
LINES, CHANGED, STEPS = 200, 90, 10  # of the program; from one stage to the next; compared with the engine
PROMPT = ":hacker:\n"


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    with threadpool_limits(1, user_api="blas"):
        yield


def load(source: str, name: str = "program") -> types.ModuleType:
    module = types.ModuleType(name)
    exec(compile(source, name, "exec"), vars(module))
    return module


@pytest.fixture(scope="module")
def program() -> types.ModuleType:
    return load(SOURCES[-1])


def solid(source: str) -> list[str]:
    return [line for line in source.splitlines() if line.strip()]


def foreign(source: str) -> set[str]:
    """What a file imports beside the standard library."""
    nodes = list(ast.walk(ast.parse(source)))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
    return {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names)


# ------------------------------------------------------------------------------------------------ the file and stages


def test_the_program_has_few_lines():
    assert len(FILES) == 6 and len(solid(SOURCES[-1])) <= LINES


@pytest.mark.parametrize("source", SOURCES, ids=[path.stem for path in FILES])
def test_it_needs_numpy_alone(source):
    assert foreign(source) == {"numpy"}
    assert not re.search(r"__import__|import_module|exec\(", source)


@pytest.mark.parametrize("old, new", [*zip(SOURCES, SOURCES[1:], strict=False)], ids=[path.stem for path in FILES[1:]])
def test_a_stage_is_a_small_step(old, new):
    changed = [line for line in difflib.ndiff(solid(old), solid(new)) if line[0] in "+-"]
    assert 0 < len(changed) <= CHANGED


@pytest.mark.parametrize("source", SOURCES, ids=[path.stem for path in FILES])
def test_a_stage_learns_and_writes(source):
    stage = load(source)
    model = stage.build()
    before = stage.held_out_loss(model)
    losses = stage.train(model, steps=8)
    assert len(losses) == 8 and stage.held_out_loss(model) < before - 0.01
    assert stage.write(model, PROMPT, count=3).startswith(PROMPT)
    assert stage.write(model, PROMPT, count=3, temperature=0) == stage.write(model, PROMPT, count=3, temperature=0)


def test_its_tokens_are_the_tokenizers(program):
    plays = assets.plays()[:100_000]
    assert program.TEXT.tolist() == kit.tokenizer().encode(assets.jargon())
    assert program.encode(plays) == kit.tokenizer().encode(plays)
    assert program.decode(program.encode(plays)) == plays


# ------------------------------------------------------------------------------------------------ beside the engine


def adapted(program):
    """The engine's QLoRA with the program's first A and B; its layers by the program's names."""
    engine = apply_qlora(kit.base(), rank=8, alpha=16, target_modules="all-linear", double_quant=False, verbose=False)
    model = program.build()
    layers = {name: engine.get(name.replace("o_proj", "out_proj")) for name in model if name.endswith("_proj")}
    for name, layer in layers.items():
        layer.adapters["default"].lora_A.data[:] = model[f"{name}.A"].data
    return engine, layers


@pytest.fixture(scope="module")
def engine(program):
    """What the engine makes of the same: its bytes, its losses and its text."""
    model, layers = adapted(program)
    weights = {name: layer.base_layer.weight for name, layer in layers.items()}
    optimizer, losses = AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3), []
    for ids, targets in program.batches(program.LEARNED, STEPS):
        optimizer.zero_grad()
        loss = model.loss(ids, targets)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    ids = program.encode(PROMPT)
    return {
        "bytes": {name: w.packed.tobytes() + w.absmax.tobytes() for name, w in weights.items()},
        "losses": losses,
        "text": program.decode(ids + generate(model, ids, 40)),
    }


def differences(program, engine) -> list[str]:
    """What a program does otherwise than the engine."""
    model = program.build()
    weights = {name: w for name, w in model.items() if isinstance(w, program.NF4)}
    stored = {name: w.packed.tobytes() + w.scales.tobytes() for name, w in weights.items()}
    losses = program.train(model, STEPS)
    wrong = ["the bytes"] if stored != engine["bytes"] or len(stored) != 35 else []
    wrong += ["the losses"] if np.abs(np.subtract(losses, engine["losses"])).max() > 1e-5 else []
    return wrong + ["the text"] * (program.write(model, PROMPT, 40, temperature=0) != engine["text"])


def test_bytes_losses_and_text_are_the_engines(program, engine):
    assert differences(program, engine) == []


PLANTED = {
    "nibbles swapped": ("codes[0::2] << 4 | codes[1::2]", "codes[1::2] << 4 | codes[0::2]", "the bytes"),
    "blocks of 32": ("w.reshape(-1, 64)", "w.reshape(-1, 32)", "the bytes"),
    "another level": ("0.0795803", "0.0795", "the losses"),
    "alpha forgotten": ("scale=2.0", "scale=1.0", "the losses"),
    "no later tokens hidden": ("np.tri(time)", "np.ones((time, time))", "the losses"),
    "a softmax rule without its sum": ("gp - (gp * p).sum(axis=-1, keepdims=True)", "gp", "the losses"),
    "rope forwards in backward": ("turn(g, -sin)", "turn(g, sin)", "the losses"),
    "a share that overwrites": ("share if parent.grad is None else parent.grad + share", "share", "the losses"),
    "eps inside the root": ("np.sqrt(v / (1 - beta2**step))", "np.sqrt(v / (1 - beta2**step) + eps)", "the losses"),
    "no weight decay": ("(1 - lr * weight_decay)", "1", "the losses"),
    "text without its last word": ("return decode(ids)", "return decode(ids[:-1])", "the text"),
}  # fmt: skip


@pytest.mark.parametrize("planted", PLANTED)
def test_a_fault_in_the_program_is_noticed(planted, engine):
    old, new, words = PLANTED[planted]
    assert SOURCES[-1].count(old) == 1
    if planted == "blocks of 32":  # on both sides, or it would not run
        source = SOURCES[-1].replace("reshape(-1, 64)", "reshape(-1, 32)")
    else:
        source = SOURCES[-1].replace(old, new)
    assert words in differences(load(source), engine)


def test_the_gradients_of_the_whole_decoder_are_the_engines():
    stage, engine = load(SOURCES[3]), kit.base()
    ours, (ids, targets) = stage.build(), next(stage.batches(stage.LEARNED, 1))
    stage.cross_entropy(stage.predict(ours, ids), targets).backward()
    engine.loss(ids, targets).backward()
    grads = {name.removesuffix(".weight"): p.grad for name, p in engine.named_parameters()}
    theirs = {name.replace("out_proj", "o_proj"): grad for name, grad in grads.items()}
    assert theirs.keys() == ours.keys()
    for name, grad in theirs.items():
        assert np.linalg.norm(ours[name].grad - grad) < 1e-5 * np.linalg.norm(grad), name


# ------------------------------------------------------------------------------------------------ the map


def lesson_map() -> dict[str, tuple[int, str]]:
    nodes = ast.parse(LESSONS[0]).body
    found = [n.value for n in nodes if isinstance(n, ast.Assign) and getattr(n.targets[0], "id", "") == "MAP"]
    return ast.literal_eval(found[0])


def parts(source: str) -> list[str]:
    return [node.name for node in ast.parse(source).body if isinstance(node, ast.FunctionDef | ast.ClassDef)]


def test_the_map_names_every_part_and_what_there_is_in_the_engine():
    assert [*lesson_map()] == parts(SOURCES[-1])
    assert [name for _, name in lesson_map().values() if not resolves(name)] == []


@pytest.mark.parametrize("number", [n for n in LESSONS if n > 0])
def test_what_a_lesson_replaces_is_in_the_program(number):
    said = re.search(r"^# - \*\*Replaces in lesson 0\*\*: (.+(?:\n#   .+)*)", LESSONS[number], re.MULTILINE)
    names = re.findall(r"`(\w+)`", said[1]) if said else []
    assert [name for name in names if name not in lesson_map()] == []


def test_it_says_where_it_must_stand(tmp_path):
    pytest.importorskip("matplotlib", reason="not run: matplotlib, which every lesson asks for first, is not installed")
    (tmp_path / "00_all_of_it.py").write_text(LESSONS[0], encoding="utf-8")
    spec = importlib.util.spec_from_file_location("alone", tmp_path / "00_all_of_it.py")
    with pytest.raises(ImportError, match="run it where they are"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
