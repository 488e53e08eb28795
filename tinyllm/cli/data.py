"""Show what the model learns from a file: its tokens, with the positions that count in the loss marked.

A loss position is one whose next token is learned. Without colour (NO_COLOR, or no terminal) such tokens stand in
[brackets], and a bracket of the text itself is written \\[ or \\].
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.text import Text

from tinyllm.cli.options import EMBEDDED, add_row_length, add_template, model_folder, refuse_below
from tinyllm.data.batches import Batch, Loader, Row
from tinyllm.data.examples import IGNORE
from tinyllm.data.text import load_text
from tinyllm.data.tokenizer import Tokenizer

LEARNED, CONTEXT = "bold green", "bright_black"


def add(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="data_verb", required=True, metavar="show")
    show = verbs.add_parser("show", help="tokens, loss positions, packing and counts", description=__doc__,
                            formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    show.add_argument("file", metavar="FILE", help=".txt, .md, or .jsonl with prompt/completion, messages or text")
    show.add_argument(
        "--model", "--tokenizer", default=EMBEDDED, dest="model", metavar="FOLDER",
        help="whose tokenizer and chat template: a folder with tokenizer.json, or a GGUF file (default: embedded)",
    )  # fmt: skip
    add_template(show)
    add_row_length(show, max_seq_len=128)
    show.add_argument("--rows", type=int, default=3, help="rows to show, in the file's order (default: %(default)s)")


def run(args: argparse.Namespace) -> None:
    refuse_below(args, 0, "rows")
    tokenizer = Tokenizer.load(model_folder(args.model))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the notes stand below
        loader = Loader(load_text(Path(args.file), tokenizer, template=args.template == "own"), 1, args.max_seq_len)
    console = Console(highlight=False)
    show_rows(console, loader, tokenizer, args.rows)
    show_counts(console, loader, args.max_seq_len)


def show_rows(console: Console, loader: Loader, tokenizer: Tokenizer, count: int) -> None:
    """The first rows, token by token, and of examples what each has."""
    colour = console.is_terminal and not console.no_color
    marked = Text("green", LEARNED) if colour else Text("[in brackets]")
    console.print(Text("loss positions (the next token is learned) are ") + marked)
    for number, row in enumerate(loader.rows[:count], 1):
        batch = Batch(row.ids[None], row.labels[None], row.segment_ids[None])
        console.rule(f"row {number}: {len(row)} tokens, {batch.live} live labels", align="left", characters="-")
        console.print(spell(describe(batch, tokenizer)[0], colour), soft_wrap=True)
        if not loader.dataset.plain:
            console.print(account(row, tokenizer), soft_wrap=True, markup=False)
    console.rule(characters="-")


def show_counts(console: Console, loader: Loader, max_seq_len: int) -> None:
    """What the whole file comes to, and the notes on it."""
    data = loader.dataset
    for form in data.forms or ("the text stands as it is",):
        console.print(form, markup=False)
    kind = "windows" if data.plain else "examples"
    tokens, live = sum(map(len, data)), sum(example.live for example in data)
    console.print(f"{kind}: {len(data)}, packed into {len(loader.rows)} rows of at most {max_seq_len} tokens")
    console.print(f"tokens: {tokens:,}")
    console.print(f"live labels: {live:,} ({100 * live / tokens:.1f} %)")
    console.print(f"truncated: {data.truncated}")
    console.print(f"dropped: {data.dropped}")
    console.print(f"answers left unlearned, as asked: {data.masked}")
    for note in data.notes:
        console.print(f"note: {note}", soft_wrap=True, markup=False)


class Cell(NamedTuple):
    """One position as `describe` shows it."""

    text: str
    is_loss_position: bool
    segment: int


def describe(batch: Batch, tokenizer: Tokenizer) -> list[list[Cell]]:
    """Spell a batch out, for `tinyllm data show`.

    Returns
    -------
    list of rows of (token text, is_loss_position, segment)
        A loss position is one whose *next* token is learned. Padding has the text "" and segment 0; a token that is
        only part of a character is shown in the vocabulary's own spelling.
    """

    def written(id: int) -> str:
        text = tokenizer.decode([id])
        return (tokenizer.token(id) or text) if "\ufffd" in text or not text else text

    def cell(id: Any, label: Any, segment: Any) -> Cell:
        return Cell(written(int(id)) if segment else "", bool(label != IGNORE), int(segment))

    columns = batch.ids, batch.labels, batch.segment_ids
    return [[cell(*position) for position in zip(*row, strict=True)] for row in zip(*columns, strict=True)]


def spell(cells: Sequence[Cell], colour: bool) -> Text:
    """A row as text: loss positions marked, a line of its own where the next packed example begins."""
    text = Text()
    segment = cells[0].segment if cells else 0
    for cell in cells:
        if cell.segment != segment:
            segment = cell.segment
            text.append(f"\n--- segment {segment} ---\n", "cyan")
        shown = cell.text if colour else cell.text.replace("[", "\\[").replace("]", "\\]")
        shown = shown.replace("\r", "\\r").replace("\t", "\\t").replace("\n", "\\n")
        if not colour and cell.is_loss_position:
            shown = f"[{shown}]"
        text.append(shown, LEARNED if cell.is_loss_position else CONTEXT)
        if "\n" in cell.text:
            text.append("\n")
    return text


def account(row: Row, tokenizer: Tokenizer) -> str:
    """Per example: beginnings of text, and each learned stretch with how many labels it has and what ends it."""
    lines = []
    for segment in range(1, int(row.segment_ids[-1]) + 1):
        here = row.segment_ids == segment
        ids, labels = row.ids[here], row.labels[here]
        learned = labels != IGNORE
        edges = np.flatnonzero(np.diff(np.concatenate([[False], learned, [False]]).astype(int)))
        turns = []
        for start, end in edges.reshape(-1, 2):
            last = tokenizer.decode([int(labels[end - 1])])
            turns.append(f"{end - start} labels up to {last!r}")
        bos = "none in this vocabulary" if tokenizer.bos_id is None else int(np.count_nonzero(ids == tokenizer.bos_id))
        learned_turns = "; ".join(f"turn {number}: {turn}" for number, turn in enumerate(turns, 1))
        lines.append(f"segment {segment}: beginnings of text: {bos}; {learned_turns}")
    return "\n".join(lines)
