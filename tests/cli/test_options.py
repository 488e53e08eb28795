"""What the command offers is what the dataclasses say: names, types, defaults, choices and help."""

from __future__ import annotations

import argparse
import ast
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, get_args, get_type_hints

import pytest

from tinyllm import cli
from tinyllm.cli import build_parser, finetune, options, pretrain
from tinyllm.lora.config import BIASES, LoRAConfig
from tinyllm.models.build import STORAGES
from tinyllm.optim import SCHEDULES
from tinyllm.train.loop import TrainConfig

VERBS = {"finetune": [], "pretrain": [], "memory": [], "targets": []}
OTHERWISE = {"finetune": finetune.TRAINING, "pretrain": pretrain.TRAINING}


def offered(verb: str) -> dict[str, argparse.Action]:
    """The options of a verb, by the name of what they set."""
    verbs = next(a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction))
    return {action.dest: action for action in verbs.choices[verb]._actions}


@pytest.mark.parametrize("verb", VERBS)
def test_an_option_is_its_field(verb):
    actions, found = offered(verb), 0
    for kind in (TrainConfig, LoRAConfig):
        for field in fields(kind):
            action = actions.get(options.option_of(field.name))
            hint = get_type_hints(kind, include_extras=True)[field.name]
            if action is None or not hasattr(hint, "__metadata__"):
                continue
            value_type, text, *choices = get_args(hint)
            default = OTHERWISE.get(verb, {}).get(field.name, field.default)
            default, text = default if isinstance(default, tuple) else (default, text)
            assert action.default == default and text in action.help, field.name
            assert action.type is value_type or value_type is bool, field.name
            assert action.choices == (list(choices[0]) if choices else None), field.name
            found += 1
    assert found == {"finetune": 18, "pretrain": 7, "memory": 3, "targets": 1}[verb]


def test_choices_are_those_of_the_engine():
    actions = offered("finetune")
    assert actions["schedule"].choices == list(SCHEDULES) and actions["bias"].choices == list(BIASES)
    assert offered("memory")["storage"].choices == offered("merge")["base_storage"].choices == STORAGES


def test_what_was_given_reaches_the_fields():
    words = ["--rank", "3", "--dora", "--steps", "7", "--loraplus-ratio", "2", "--bias", "all", "--schedule", "linear"]
    args = build_parser().parse_args(["finetune", *words])
    lora, training = options.chosen(args, LoRAConfig), options.chosen(args, TrainConfig)
    assert lora["rank"] == 3 and lora["use_dora"] is True and lora["use_rslora"] is False and lora["bias"] == "all"
    assert training["steps"] == 7 and training["loraplus_ratio"] == 2.0 and training["schedule"] == "linear"
    assert training.keys() == {field.name for field in fields(TrainConfig)}


def test_a_field_becomes_an_option():
    @dataclass
    class Made:
        depth_of_it: Annotated[int, "how deep"] = 3
        use_salt: Annotated[bool, "salted"] = False
        taste: Annotated[str, "which", ("sweet", "sour")] = "sour"

    hints = {"Annotated": Annotated}
    Made.__annotations__ = {name: eval(hint, hints) for name, hint in Made.__annotations__.items()}
    parser = argparse.ArgumentParser()
    options.add_fields(parser, Made, "depth_of_it", "use_salt", "taste", depth_of_it=(5, "how far down"))
    assert vars(parser.parse_args([])) == {"depth_of_it": 5, "salt": False, "taste": "sour"}
    args = parser.parse_args(["--depth-of-it", "2", "--salt", "--taste", "sweet"])
    assert options.chosen(args, Made) == {"depth_of_it": 2, "use_salt": True, "taste": "sweet"}
    text = " ".join(parser.format_help().split())
    assert "how far down (default: 5)" in text and "how deep" not in text and "which (default: sour)" in text


@pytest.mark.parametrize("names", [None, ["all-linear"], ["q_proj"], ["q_proj", "v_proj"], [".*q_proj"], ["a.b"]])
def test_targets_are_a_list_or_one_expression(names):
    alone = names in (["all-linear"], [".*q_proj"])
    assert options.targets_of(names) == (names[0] if alone else names)


def code_lines(function: ast.FunctionDef, lines: list[str]) -> int:
    """Lines of a function without its docstring, blank lines and comments."""
    first = function.body[0]
    documented = (
        isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
    )
    skipped = range(first.lineno, first.end_lineno + 1) if documented else range(0)
    rows = [number for number in range(function.lineno, function.end_lineno + 1) if number not in skipped]
    return sum(bool(lines[n - 1].strip()) and not lines[n - 1].lstrip().startswith("#") for n in rows)


def test_functions_of_the_command_are_short():
    for path in Path(cli.__file__).parent.glob("*.py"):
        text = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert code_lines(node, text.splitlines()) <= 50, f"{path.name}: {node.name}"
