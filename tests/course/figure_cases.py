"""Each figure one can touch, from small inputs: for the tests of its numbers, and for those in a browser."""

from __future__ import annotations

import numpy as np

from tinyllm.course.figures import Figure, mistakes_against_properties, nf4_microscope


def weights(n: int = 500) -> np.ndarray:
    return np.random.default_rng(1).normal(size=n).astype("f")


def nf4() -> Figure:
    return nf4_microscope(weights(), np.linspace(-1, 1, 8))


def chaffs() -> Figure:
    own = {
        "cut off": lambda bits: bits >> 16,
        "a name that is longer than a phone is wide, so that it is cut": lambda b: b,
    }
    return mistakes_against_properties("06-round", own, examples=30)


FIGURES = {
    "chaffs": chaffs,
    "nf4": nf4,
}
