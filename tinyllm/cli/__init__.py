"""The `tinyllm` command: one file a verb, each with `add` (its options) and `run`."""

from __future__ import annotations

import argparse
import io
import sys
import warnings
from typing import Any

from tinyllm import __version__
from tinyllm.backend.names import nearest
from tinyllm.cli import data, doctor, fetch, finetune, generate, inspect, memory, merge, pretrain, quantize, targets
from tinyllm.cli.parser import Verb
from tinyllm.cli.shortage import shortage
from tinyllm.cli.training import ending

VERBS = {
    "finetune": finetune,
    "generate": generate,
    "merge": merge,
    "quantize": quantize,
    "pretrain": pretrain,
    "targets": targets,
    "inspect": inspect,
    "memory": memory,
    "data": data,
    "fetch": fetch,
    "doctor": doctor,
}
# What bad input raises; anything else is our fault.
EXPECTED = (ValueError, TypeError, KeyError, RuntimeError, OSError, ImportError)


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        prog="tinyllm", description="Fine-tune small language models with LoRA and QLoRA, on NumPy."
    )
    parser.add_argument("--version", action="version", version=f"tinyllm {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB", parser_class=Verb)
    for name, module in VERBS.items():
        summary = (module.__doc__ or "").strip().splitlines()[0]
        verb = verbs.add_parser(
            name, help=summary, description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        module.add(verb)
        verb.set_defaults(run=module.run)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run one verb; without one, print the overview.

    Returns 0, 1 for bad input (one sentence on stderr), or 130 when interrupted (143 by SIGTERM).
    """
    words = sys.argv[1:] if argv is None else argv
    print_whatever_the_encoding()
    parser = build_parser()
    if not words:
        parser.print_help()
        return 0
    refuse_first(words[0], parser)
    args = parser.parse_args(words)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = print_note
            args.run(args)
    except EXPECTED as error:
        print(f"tinyllm {args.verb}: {sentence(error)}", file=sys.stderr)
        return 1
    except MemoryError as error:
        print(f"tinyllm {args.verb}: {shortage(args, error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        print(f"tinyllm {args.verb}: {ending(words, stop)}", file=sys.stderr)
        return getattr(stop, "exit_code", 130)
    return 0


def refuse_first(word: str, parser: argparse.ArgumentParser) -> None:
    """End with 2 if the first word is neither a verb nor an option of the whole command."""
    if word.startswith("-"):
        if not any(option.startswith(word) for option in parser._option_string_actions):
            parser.error(
                f"options stand behind the verb, as in `tinyllm finetune {word}`; verbs are {', '.join(VERBS)}"
            )
    elif word not in VERBS:
        parser.error(f"there is no verb {word!r}{nearest(word, VERBS, '; did you mean {}?')}")


def sentence(error: BaseException) -> Any:
    """What an error says, without the quotes of a KeyError and the number of an OSError."""
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return error.args[0] if isinstance(error, KeyError) and error.args else error


def print_whatever_the_encoding() -> None:
    """Have a character that the output's encoding lacks replaced, where it would end the run (cp1252, ASCII)."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors="replace")


def print_note(
    message: Warning | str, category: Any, filename: Any, lineno: Any, file: Any = None, line: Any = None
) -> None:
    """A warning as a reader wants it: without the path and the line of the code that gave it."""
    print(f"note: {message}", file=sys.stderr)
