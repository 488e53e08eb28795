"""The folder that results go into: one writer at a time, and nothing in it replaced that its owner may want to keep."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from tinyllm.cli.options import Options
from tinyllm.formats.atomic import make_folder
from tinyllm.formats.locks import alone_in
from tinyllm.lora.peft.elsewhere import CONFIG, WEIGHTS
from tinyllm.models.checkpoints.export import SHARD
from tinyllm.models.checkpoints.folder import INDEX, SINGLE
from tinyllm.models.checkpoints.origin import GENERATION
from tinyllm.train.checkpoint import CHECKPOINT
from tinyllm.train.earlier import LOG

RUN = "run.json"  # the settings of the run whose results stand beside it
ADAPTER = (CONFIG, WEIGHTS)
MODEL = ("config.json", SINGLE, INDEX)
BESIDE = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", GENERATION)


@contextmanager
def alone(out: Path, make: bool = False) -> Iterator[None]:
    """A ``with`` block with the folder to oneself. One that is not there is made only if `make` says so.

    Raises
    ------
    RuntimeError
        If another run is writing into it.
    """
    if make:
        make_folder(out)
    with alone_in(out) if out.is_dir() else nullcontext():
        yield


def add_force(parser: Options) -> None:
    """``--force``."""
    parser.add_argument("--force", action="store_true", help="replace the model or adapter that is in the folder")


def refuse_own_folder(
    out: Path, folder: Path, kind: str = "model", option: str = "--out", what: str = "the results"
) -> None:
    """Raise a ValueError if the results would go into the folder of the model, or adapter, that they are made of."""
    if out.resolve() == folder.resolve():
        raise ValueError(
            f"{option} is the {kind}'s own folder {folder}, which {what} would overwrite; name another folder"
        )


def refuse_to_replace(out: Path, force: bool) -> None:
    """Raise a ValueError if there is a model or an adapter in the folder already, unless it shall be replaced."""
    with alone(out):  # nor one that is being written
        there = _results_in(out)
    if there and not force:
        raise ValueError(f"there is {there[0]} in {out} already; name another folder, or replace it with --force")


@contextmanager
def replacing(out: Path) -> Iterator[None]:
    """Around the writing of a model: the folder is one's own, and an adapter in it goes when the model is there.

    transformers would open the adapter, and its base, rather than the model beside it.
    """
    with alone(out):
        yield
        for name in ADAPTER:
            (out / name).unlink(missing_ok=True)


def refuse_what_no_run_wrote(out: Path) -> None:
    """Raise a ValueError if the folder holds a model or an adapter that is no earlier run's."""
    there = _results_in(out)
    if there and not any((out / name).exists() for name in (RUN, LOG, CHECKPOINT)):
        raise ValueError(
            f"--out is a folder with {there[0]} in it that no run wrote there, and the results would replace it; name "
            "another folder"
        )


def _results_in(out: Path) -> list[str]:
    names = [name for name in (*MODEL, *ADAPTER) if (out / name).exists()]
    return names + sorted(path.name for path in _shards(out))


def _shards(out: Path) -> list[Path]:
    return [path for path in out.glob("*.safetensors") if SHARD.fullmatch(path.name)]


def remove_other_results(out: Path, written: tuple[str, ...]) -> None:
    """Remove an earlier run's results beside those just written; only what its run.json vouches for."""
    if (out / RUN).is_file():
        for name in (*ADAPTER, *MODEL, *BESIDE, "loss.png", RUN):  # in this order: without the last it looks like none
            if name not in written:
                (out / name).unlink(missing_ok=True)
        if "config.json" not in written:
            for path in _shards(out):
                path.unlink()
