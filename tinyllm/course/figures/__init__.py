"""Figures one can touch, each from the numbers of a run to one HTML file: `figure.show()`, `figure.save(folder)`."""

from tinyllm.course.figures.chaffs import mistakes_against_properties
from tinyllm.course.figures.figure import Figure
from tinyllm.course.figures.nf4 import nf4_microscope

__all__ = ["Figure", "mistakes_against_properties", "nf4_microscope"]
