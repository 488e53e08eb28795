"""Figures one can touch, each from the numbers of a run to one HTML file: `figure.show()`, `figure.save(folder)`."""

from tinyllm.course.figures.backward import backward_steps
from tinyllm.course.figures.barriers import threads_between_barriers
from tinyllm.course.figures.chaffs import mistakes_against_properties
from tinyllm.course.figures.figure import Figure
from tinyllm.course.figures.ledger import ledger
from tinyllm.course.figures.merges import merge_lab
from tinyllm.course.figures.nf4 import nf4_microscope
from tinyllm.course.figures.xray import xray

__all__ = [
    "Figure", "backward_steps", "ledger", "merge_lab", "mistakes_against_properties", "nf4_microscope",
    "threads_between_barriers", "xray",
]  # fmt: skip
