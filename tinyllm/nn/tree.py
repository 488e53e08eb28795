"""How a module prints: itself and what it is made of, a line each, and what it amounts to."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from tinyllm.frozen import stored


def described(module: Any) -> str:
    """The tree of a module, repeated blocks shown once, and below it the totals; a layer is one line."""
    lines = module.tree()
    return "\n".join([*lines, _totals(module)] if len(lines) > 1 else lines)


def lines_of(module: Any) -> list[str]:
    """The module and what it is made of, a line each and indented."""
    head, inside = f"{type(module).__name__}({module.extra_repr()}", []
    for name, count, (first, *rest) in _folded([(name, child.tree()) for name, child in module.children()]):
        times = f"{count} x " if count > 1 else ""
        inside += [f"  ({name}): {times}{first}", *(f"  {line}" for line in rest)]
    return [head, *inside, ")"] if inside else [f"{head})"]


def _folded(children: list[tuple[str, list[str]]]) -> Iterator[tuple[str, int, list[str]]]:
    """Name, count and lines of each run of equal members of one list: ``layers.0-29``, 30."""

    def same(item: tuple[str, list[str]]) -> tuple[str, list[str]]:
        stem, _, last = item[0].rpartition(".")
        return (stem if last.isdigit() else item[0]), item[1]

    for (_, lines), run in itertools.groupby(children, same):
        names = [name for name, _ in run]
        last = names[-1].rpartition(".")[2]
        yield (f"{names[0]}-{last}" if len(names) > 1 else names[0]), len(names), lines


def _totals(module: Any) -> str:
    """How many numbers there are, how many train, and the bytes of each way of keeping them."""
    total, training = module.num_parameters(), module.num_parameters(trainable_only=True)
    kept: dict[str, int] = {}
    for weight in (stored(w) for _, w in module.named_weights()):
        kept[weight.storage] = kept.get(weight.storage, 0) + weight.nbytes
    by_storage = ", ".join(f"{storage} {n:,} bytes" for storage, n in kept.items())
    return f"{total:,} parameters, {training:,} of them train ({training / max(total, 1):.2%}); {by_storage or 'none'}"
