"""Show what the model learns from a file: its tokens, with the positions that count in the loss marked.

A loss position is one whose next token is learned. Without colour (NO_COLOR, or no terminal) such tokens stand in
[brackets], and a bracket of the text itself is written \\[ or \\].
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from tinyllm.batches import Batch, Cell, Loader, describe
from tinyllm.cli.options import EMBEDDED, model_folder
from tinyllm.data import load_text
from tinyllm.tokenizer import Tokenizer

LEARNED, CONTEXT = "bold green", "bright_black"


def add(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="data_verb", required=True, metavar="show")
    show = verbs.add_parser("show", help="tokens, loss positions, packing and counts", description=__doc__,
                            formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    show.add_argument("file", metavar="FILE", help=".txt, .md, or .jsonl with prompt/completion, messages or text")
    show.add_argument(
        "--tokenizer", default=EMBEDDED, metavar="FOLDER", help="folder with tokenizer.json (default: embedded)"
    )
    show.add_argument("--max-seq-len", type=int, default=128, help="tokens a row (default: %(default)s)")
    show.add_argument("--rows", type=int, default=3, help="rows to show, in the file's order (default: %(default)s)")


def run(args: argparse.Namespace) -> None:
    tokenizer = Tokenizer.load(model_folder(args.tokenizer))
    loader = Loader(load_text(Path(args.file), tokenizer), 1, args.max_seq_len)
    data = loader.dataset
    console = Console(highlight=False)
    colour = console.is_terminal and not console.no_color
    marked = Text("green", LEARNED) if colour else Text("[in brackets]")
    console.print(Text("loss positions (the next token is learned) are ") + marked)
    for number, row in enumerate(loader.rows[: max(0, args.rows)], 1):
        batch = Batch(row.ids[None], row.labels[None], row.segment_ids[None])
        console.rule(f"row {number}: {len(row)} tokens, {batch.live} live labels", align="left", characters="-")
        console.print(spell(describe(batch, tokenizer)[0], colour), soft_wrap=True)
    console.rule(characters="-")
    kind = "windows" if data.plain else "examples"
    tokens, live = sum(map(len, data)), sum(example.live for example in data)
    console.print(f"{kind}: {len(data)}, packed into {len(loader.rows)} rows of at most {args.max_seq_len} tokens")
    console.print(f"tokens: {tokens:,}")
    console.print(f"live labels: {live:,} ({100 * live / tokens:.1f} %)")
    console.print(f"truncated: {data.truncated}")
    console.print(f"dropped: {data.dropped}")


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
