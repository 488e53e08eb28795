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
    n = int(np.prod(shape))
    numbers = st.lists(st.integers(-most, most), min_size=n, max_size=n)
    return numbers.map(lambda x: np.array(x, dtype).reshape(shape))


def real(shape: tuple[int, ...], dtype: Any = np.float64, scale: float = 1.0) -> st.SearchStrategy[np.ndarray]:
    """Arrays of normal numbers of a size: only their seed is drawn, so they do not become simpler."""

    def drawn(seed: int) -> np.ndarray:
        return (np.random.default_rng(seed).normal(size=shape) * scale).astype(dtype)

    return st.integers(0, 2**20).map(drawn)


def levels(many: int) -> st.SearchStrategy[np.ndarray]:
    """Sorted levels between -1 and 1, both and zero among them."""
    inner = st.sets(st.integers(-99, 99).filter(bool), min_size=many - 3, max_size=many - 3)
    return inner.map(lambda x: np.array(sorted([-100, 0, 100, *x])) / 100)
