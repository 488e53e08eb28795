"""The `tinyllm` command: one file a verb, each with `add` (its options) and `run`."""

from __future__ import annotations

import argparse
import sys

from tinyllm import __version__
from tinyllm.cli import data, doctor, fetch, finetune, generate, inspect, memory, merge, pretrain, quantize, targets

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
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, module in VERBS.items():
        summary = (module.__doc__ or "").strip().splitlines()[0]
        verb = verbs.add_parser(
            name, help=summary, description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        module.add(verb)
        verb.set_defaults(run=module.run)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run one verb. Returns 0, 1 for bad input (one sentence on stderr), or 130 when interrupted."""
    args = build_parser().parse_args(argv)
    try:
        args.run(args)
    except EXPECTED as error:
        said = error.args[0] if isinstance(error, KeyError) and error.args else error
        if isinstance(error, OSError) and error.filename and error.strerror:  # without its number
            said = f"{error.filename}: {error.strerror}"
        print(f"tinyllm {args.verb}: {said}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"tinyllm {args.verb}: interrupted", file=sys.stderr)
        return 130
    return 0
