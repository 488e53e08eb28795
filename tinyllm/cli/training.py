"""What `finetune` and `pretrain` share: the options of a run, its data in two parts, and training under a bar."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from tinyllm.backend.cpu.malloc import keep_freed_memory
from tinyllm.cli.options import Options, add_rows
from tinyllm.cli.progress import TrainingBar
from tinyllm.data.batches import Loader
from tinyllm.data.examples import split
from tinyllm.data.text import load_text
from tinyllm.data.tokenizer import Tokenizer
from tinyllm.models import DecoderModel
from tinyllm.train import TrainConfig, train


def add_run(parser: Options, out: str, max_seq_len: int, held_out: float) -> None:
    """``--batch-size``, ``--max-seq-len``, ``--held-out``, ``--out``, ``--resume``."""
    add_rows(parser, max_seq_len, batch_size=8)
    parser.add_argument(
        "--held-out", type=float, default=held_out, help="share of the data held out (default: %(default)s)"
    )
    parser.add_argument("--out", default=out, help="folder for the results (default: %(default)s)")
    parser.add_argument("--resume", action="store_true", help="go on from --out's checkpoint")


def loaders(
    path: Any, tokenizer: Tokenizer, share: float, batch_size: int, max_seq_len: int, seed: int
) -> tuple[Loader, Loader | None]:
    """The data to learn from, and the share of it that is held out; None if that is nothing."""
    learned, rest = split(load_text(path, tokenizer), share, seed)
    loader = Loader(learned, batch_size, max_seq_len, seed)
    return loader, Loader(rest, batch_size, max_seq_len, seed) if len(rest) else None


def train_with_bar(
    model: DecoderModel,
    data: tuple[Loader, Loader | None],
    config: TrainConfig,
    out: Path,
    resume: bool,
    settings: dict[str, Any],
    console: Console,
) -> dict[str, Any]:
    """`train`, its records shown as they come; the data must be the same when resuming, and so must `settings`."""
    loader, held_out = data
    settings = {
        **settings,
        "data_fingerprint": loader.fingerprint(),
        "held_out_fingerprint": held_out.fingerprint() if held_out is not None else None,
    }
    keep_freed_memory()  # this process trains and ends
    each = config.grad_accum

    def tokens_of(step: int) -> int:
        return sum(int(np.count_nonzero(loader.batch((step - 1) * each + i).segment_ids)) for i in range(each))

    with TrainingBar(config.steps, console, tokens_of) as bar:
        return train(model, loader, held_out, config, out, resume=resume, settings=settings, report=bar.report)
