"""Where a test runs that is the same on every backend: ``pytest --backend numpy,cuda_on_cpu,cuda``.

``numpy`` is the specification, ``cuda_on_cpu`` the kernels without a card (g++ and `fake_cupy`), ``cuda`` a card.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from tinyllm.backend import BACKENDS, Backend
from tinyllm.backend.device import probe, set_device

NAMES = ("numpy", "cuda_on_cpu", "cuda")


@contextmanager
def running_on(name: str) -> Iterator[Backend]:
    """The backend of that name, its device chosen; skips where it cannot run, and says why."""
    if name == "numpy":
        yield BACKENDS["numpy"]
    elif name == "cuda":
        reason = probe()
        if reason is not None:
            pytest.skip(f"not run: {reason}")
        set_device("cuda")
        try:
            yield BACKENDS["cuda"]
        finally:
            set_device("cpu")
    else:
        pytest.importorskip("ml_dtypes", reason="not run: ml_dtypes (bfloat16 for NumPy) is not installed")
        from tinyllm.course.cuda_on_cpu import compiler

        if compiler() is None:
            pytest.skip("not run: g++ is not installed")
        from tests.fake_cupy import the_device

        with the_device():
            yield BACKENDS["cuda"]


def moved(xp: Any, value: Any) -> Any:
    """An argument where the backend wants it."""
    return xp.asarray(value) if isinstance(value, np.ndarray) else value
