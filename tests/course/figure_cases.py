"""Each figure one can touch, from small inputs: for the tests of its numbers, and for those in a browser."""

from __future__ import annotations

import numpy as np

from tinyllm.course.figures import Figure, nf4_microscope


def weights(n: int = 500) -> np.ndarray:
    return np.random.default_rng(1).normal(size=n).astype("f")


def nf4() -> Figure:
    return nf4_microscope(weights(), np.linspace(-1, 1, 8))


FIGURES = {
    "nf4": nf4,
}
