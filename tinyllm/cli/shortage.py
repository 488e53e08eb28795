"""What to say when memory runs out: what there was to be held, and which options of the verb make it less."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager

from tinyllm.cli.memory import EXPLAINED
from tinyllm.cli.options import megabytes
from tinyllm.inspect.memory import peak_memory
from tinyllm.inspect.plan import Plan
from tinyllm.train.trouble import MemoryFull


@contextmanager
def telling_the_plan(planned: Plan) -> Iterator[None]:
    """Within the block, too little memory outside of training itself is told with what was planned.

    Raises
    ------
    MemoryFull
    """
    try:
        yield
    except MemoryFull:
        raise
    except MemoryError as error:
        parts = [f"{EXPLAINED[name]} {megabytes(n)}" for name, n in planned.by_category().items() if n]
        raise MemoryFull(
            f"there is too little memory: about {megabytes(planned.peak)} are needed ({', '.join(parts)})"
        ) from error


def shortage(args: argparse.Namespace, error: MemoryError) -> str:
    """The sentence about memory that ran out."""
    if isinstance(error, MemoryFull):
        what = error.what
    else:
        held = f", beside the {megabytes(peak_memory())} that were held" if peak_memory() is not None else ""
        what = f"there is too little memory{held}{f' ({error})' if str(error) else ''}"
    options = remedies(args)
    advice = f"try {', '.join(options)}" if options else "close other programs, or use a machine with more memory"
    return f"{what}; {advice}"


def remedies(args: argparse.Namespace) -> list[str]:
    """The verb's options that help and are not in use yet."""
    given = vars(args)
    found = [f"a smaller --batch-size than {given['batch_size']}"] if given.get("batch_size", 1) > 1 else []
    found += ["a smaller --max-seq-len"] if "max_seq_len" in given else []
    if given.get("checkpointing") is False:
        found.append("--checkpointing")
    if "method" in given and given["method"] != "qlora":
        found.append("--method qlora")
    if "hidden_size" in given:
        found.append("a smaller --hidden-size or fewer --layers")
    if given.get("verb") == "generate" and given.get("base_storage") != "nf4":
        found.append("--base-storage nf4")
    return found
