"""The command line's words: a wrong one gets the usage of the verb it was meant for, and the option that is meant."""

from __future__ import annotations

import argparse
import difflib
import itertools
from collections.abc import Sequence
from typing import Any

# What PEFT, torch, transformers and TRL call the same things, and too many letters away to be found as alike.
THEIRS = {
    "--r": "--rank",
    "--lora-r": "--rank",
    "--lora-alpha": "--alpha",
    "--lora-dropout": "--dropout",
    "--lora-target-modules": "--target-modules",
    "--use-rslora": "--rslora",
    "--use-dora": "--dora",
    "--learning-rate": "--lr",
    "--lr-scheduler-type": "--schedule",
    "--warmup-steps": "--warmup",
    "--max-steps": "--steps",
    "--num-steps": "--steps",
    "--wd": "--weight-decay",
    "--clip-grad": "--max-grad-norm",
    "--per-device-train-batch-size": "--batch-size",
    "--gradient-accumulation-steps": "--grad-accum",
    "--gradient-checkpointing": "--checkpointing",
    "--max-length": "--max-seq-len",
    "--context-length": "--max-seq-len",
    "--eval-steps": "--eval-every",
    "--save-steps": "--save-every",
    "--resume-from-checkpoint": "--resume",
    "--output-dir": "--out",
    "--output": "--out",
    "--dataset": "--data",
    "--dataset-name": "--data",
    "--train-file": "--data",
    "--base-model": "--model",
    "--model-name-or-path": "--model",
    "--adapter-path": "--adapter",
    "--peft-model": "--adapter",
    "--load-in-4bit": "--method qlora",
    "--qlora": "--method qlora",
    "--num-hidden-layers": "--layers",
    "--num-layers": "--layers",
    "--num-attention-heads": "--heads",
    "--num-heads": "--heads",
    "--num-key-value-heads": "--kv-heads",
    "--max-tokens": "--max-new-tokens",
    "--temp": "--temperature",
}


class Verb(argparse.ArgumentParser):
    """The parser of one verb. argparse itself leaves what no verb knows to the whole command, and shows its usage."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse; end with 2 for an option that is not there, and with 1 for a value that is empty."""
        for word in itertools.takewhile(lambda word: word != "--", args or ()):
            self.refuse_theirs(word.partition("=")[0])
        found, rest = super().parse_known_args(args, namespace)
        if rest:
            self.error(f"unrecognized arguments: {' '.join(rest)}{self.hint(rest[0].partition('=')[0])}")
        self.refuse_empty(found)
        found.given = self.given(args or ())
        return found, rest

    def given(self, words: Sequence[str]) -> frozenset[str]:
        """What the options that stand in these words set; what has its default is not among it."""
        names = [word.partition("=")[0] for word in itertools.takewhile(lambda word: word != "--", words)]
        options = self._option_string_actions
        exact = {options[name].dest for name in names if name in options}
        begun = [name for name in names if name.startswith("--") and name not in options]  # argparse completes these
        return frozenset(exact | {options[o].dest for name in begun for o in options if o.startswith(name)})

    def refuse_theirs(self, name: str) -> None:
        """End with 2 for another project's name, before argparse asks for what is missing or takes --r for --resume."""
        options = self._option_string_actions
        begun = sum(option.startswith(name) for option in options)  # one: argparse completes it
        if ours(name).partition(" ")[0] in options and name not in options and begun != 1:
            self.error(f"unrecognized arguments: {name}{self.hint(name)}")

    def hint(self, name: str) -> str:
        """The option that is meant by a wrong one: another project's name of it, or one much like it."""
        options = {option.lstrip("-"): option for option in self._option_string_actions if option.startswith("--")}
        if (known := ours(name)).partition(" ")[0] in options.values():
            return f"; did you mean {known}?"
        alike = difflib.get_close_matches(name.lstrip("-").replace("_", "-"), options, n=1)
        return f"; did you mean {options[alike[0]]}?" if name.startswith("-") and alike else ""

    def refuse_empty(self, found: argparse.Namespace) -> None:
        """End with 1 where a value is "", as of ``--data "$UNSET"``, which a default would silently replace."""
        for action in self._actions:
            value = getattr(found, action.dest, None)
            if "" in (value if isinstance(value, list) else [value]) and action.dest != "prompt":
                option = action.option_strings[0] if action.option_strings else action.metavar
                remedy = "give it a value" if action.required else "give it a value, or leave it out"
                self.exit(1, f"{self.prog}: {option} is empty; {remedy}\n")


def ours(name: str) -> str:
    """The option that another project calls so; empty if none does."""
    return THEIRS.get("--" + name.lstrip("-").replace("_", "-"), "") if name.startswith("-") else ""
