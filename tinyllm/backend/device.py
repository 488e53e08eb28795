"""Where arrays are made: ``set_device("cpu")`` or ``set_device("cuda")``, and one sentence for why CUDA is not there.

CuPy's own ``is_available()`` is False for half a dozen reasons; `probe` looks step by step and names the first that is
true here. CuPy is imported only when a GPU is asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy

from tinyllm.backend.cuda.backend import cuda_backend
from tinyllm.backend.cuda.probe import probe
from tinyllm.backend.table import BACKENDS, Backend
from tinyllm.backend.table import of as backend_of

GO_ON = "Use the device 'cpu' to go on without a GPU."

_device = "cpu"
_instead: Backend | None = None  # see `making_arrays_of`


class BackendUnavailable(RuntimeError):
    """A device was asked for that cannot be used here."""


def device() -> str:
    """The device in use, ``"cpu"`` or ``"cuda"``."""
    return _device


def backend() -> Backend:
    """The backend of the device in use: where a new array belongs."""
    return _instead or BACKENDS["cuda" if _device == "cuda" else "numpy"]


@contextmanager
def making_arrays_of(backend: Backend) -> Iterator[None]:
    """A ``with`` block in which new arrays are this backend's, whatever the device."""
    global _instead
    before, _instead = _instead, backend
    try:
        yield
    finally:
        _instead = before


def as_dtype(dtype: Any) -> numpy.dtype:
    """NumPy's dtype; the one called "bfloat16" comes from ml_dtypes, as in CuPy."""
    if isinstance(dtype, str) and dtype == "bfloat16":
        try:
            importlib.import_module("ml_dtypes")
        except ModuleNotFoundError:
            raise ModuleNotFoundError("computing in bfloat16 needs ml_dtypes: pip install ml_dtypes") from None
    try:
        return numpy.dtype(dtype)
    except TypeError:
        raise ValueError(
            f"there is no dtype {dtype!r}; there are float32 and float64, on a GPU float16 and bfloat16"
        ) from None


def to_device(array: Any) -> Any:
    """The array on the device in use; a NumPy array is returned as it is on the CPU."""
    return backend().xp.asarray(array)


def to_host(array: Any) -> Any:
    """The array as NumPy's. On CUDA this waits for the device."""
    return array.get() if hasattr(array, "get") else array


def read(numbers: list[Any]) -> list[float]:
    """Arrays of one number each, as Python floats. On CUDA one copy, so the host waits for the device once."""
    if not numbers or backend_of(numbers[0]).name != "cuda":
        return [float(number) for number in numbers]
    return backend_of(numbers[0]).xp.stack(numbers).tolist()


def set_device(name: str) -> None:
    """Choose where arrays are made from now on.

    Parameters
    ----------
    name : {"cpu", "cuda"}

    Raises
    ------
    BackendUnavailable
        With the one reason why CUDA cannot be used, and what to do. The device stays what it was.
    ValueError
        If there is no device of that name.
    """
    global _device
    if name not in ("cpu", "cuda"):
        hint = "; did you mean 'cuda'?" if str(name).startswith(("gpu", "cuda", "nvidia")) else ""
        one = " (CUDA_VISIBLE_DEVICES chooses the card)" if ":" in str(name) else ""
        raise ValueError(f"there is no device {name!r}; there are 'cpu' and 'cuda'{hint}{one}")
    if name == "cuda":
        reason = probe()
        if reason is not None:
            raise BackendUnavailable(f"{reason} {GO_ON}")
        if "cuda" not in BACKENDS:
            BACKENDS["cuda"] = cuda_backend(importlib.import_module("cupy"))
    _device = name
