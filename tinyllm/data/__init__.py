"""From files to batches: examples and batches are arrays; the other files here read text."""

from tinyllm.data.batches import Batch, Loader, Row, batches, pack
from tinyllm.data.examples import IGNORE, Dataset, Example, fit, split
from tinyllm.data.text import load_text

__all__ = ["IGNORE", "Batch", "Dataset", "Example", "Loader", "Row", "batches", "fit", "load_text", "pack", "split"]
