"""Strategies that several exercises draw their cases from: small whole numbers, small sides, zeros often among them."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from tinyllm.course.exercise import Seed

SIDES = st.integers(1, 4)
SEEDS = st.integers(0, 2**20).map(Seed)


def whole(shape: tuple[int, ...], dtype: Any = np.float64, most: int = 4) -> st.SearchStrategy[np.ndarray]:
    """Arrays of whole numbers from -most to most."""
    values = np.array([0, *(x for n in range(1, most + 1) for x in (n, -n))], dtype)  # from the simplest on

    def filled(drawn: bytes) -> np.ndarray:
        return values[np.frombuffer(drawn, np.uint8) % len(values)].reshape(shape)

    n = int(np.prod(shape))
    return st.binary(min_size=n, max_size=n).map(filled)  # one choice for all: many take Hypothesis long


def real(shape: tuple[int, ...], dtype: Any = np.float64, scale: float = 1.0) -> st.SearchStrategy[np.ndarray]:
    """Arrays of normal numbers of a size: only their seed is drawn, so they do not become simpler."""

    def drawn(seed: int) -> np.ndarray:
        return (np.random.default_rng(seed).normal(size=shape) * scale).astype(dtype)

    return st.integers(0, 2**20).map(drawn)


def levels(many: int) -> st.SearchStrategy[np.ndarray]:
    """Sorted levels between -1 and 1, both and zero among them."""
    inner = st.sets(st.integers(-99, 99).filter(bool), min_size=many - 3, max_size=many - 3)
    return inner.map(lambda x: np.array(sorted([-100, 0, 100, *x])) / 100)
