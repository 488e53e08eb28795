"""Where arrays are made: ``set_device("cpu")`` or ``set_device("cuda")``, and one sentence for why CUDA is not there.

CuPy's own ``is_available()`` says False for half a dozen reasons; `probe` asks step by step and names the one that
holds. CuPy is imported only when somebody asks for it. Read next: `table.py`.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy

from tinyllm.backend.cuda import cuda_backend
from tinyllm.backend.table import BACKENDS, Backend
from tinyllm.backend.table import of as backend_of

NO_DEVICE, DRIVER_TOO_OLD = 100, 35  # cudaErrorNoDevice, cudaErrorInsufficientDriver
GO_ON = "Use the device 'cpu' to go on without a GPU."

_device = "cpu"


class BackendUnavailable(RuntimeError):
    """A device was asked for that cannot be used here."""


def device() -> str:
    """The device in use, ``"cpu"`` or ``"cuda"``."""
    return _device


def backend() -> Backend:
    """The backend of the device in use: where a new array belongs."""
    if "ghost" in BACKENDS:  # a run that only counts bytes, see `inspect/ghost.py`
        return BACKENDS["ghost"]
    return BACKENDS["cuda" if _device == "cuda" else "numpy"]


def as_dtype(dtype: Any) -> numpy.dtype:
    """NumPy's dtype; the one called "bfloat16" comes from ml_dtypes, as in CuPy."""
    if isinstance(dtype, str) and dtype == "bfloat16":
        try:
            importlib.import_module("ml_dtypes")
        except ModuleNotFoundError:
            raise ModuleNotFoundError("computing in bfloat16 needs ml_dtypes: pip install ml_dtypes") from None
    return numpy.dtype(dtype)


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
        raise ValueError(f"there is no device {name!r}; there are 'cpu' and 'cuda'")
    if name == "cuda":
        reason = probe()
        if reason is not None:
            raise BackendUnavailable(f"{reason} {GO_ON}")
        if "cuda" not in BACKENDS:
            BACKENDS["cuda"] = cuda_backend(importlib.import_module("cupy"))
    _device = name


def probe() -> str | None:
    """Why CUDA cannot be used here, as one sentence; None if it can."""
    try:
        cupy = importlib.import_module("cupy")
    except ModuleNotFoundError as error:
        if error.name not in (None, "cupy"):
            return f"CuPy is installed but does not import ({error})."
        return "CuPy is not installed: pip install 'cupy-cuda12x[ctk]' or 'cupy-cuda13x[ctk]', to match the driver."
    except Exception as error:  # a broken installation may raise anything
        return f"CuPy is installed but does not import ({_first_line(error)})."
    found = f"CuPy {getattr(cupy, '__version__', '')}".rstrip()
    for ask in (_driver_and_device, _toolkit, _one_kernel):
        reason = ask(cupy)
        if reason is not None:
            return f"{found} is installed, but {reason}."
    return None


def _driver_and_device(cupy: Any) -> str | None:
    runtime = cupy.cuda.runtime
    try:
        count = runtime.getDeviceCount()
    except RuntimeError as error:  # CUDARuntimeError is one
        driver = runtime.driverGetVersion()
        status = getattr(error, "status", None)
        if driver == 0:
            return "this machine has no NVIDIA driver"
        if status == DRIVER_TOO_OLD:
            return (
                f"the NVIDIA driver is too old: it supports CUDA {_version(driver)}, and CuPy was built for "
                f"{_version(runtime.runtimeGetVersion())} (update the driver, or install the CuPy for its version)"
            )
        if status == NO_DEVICE:
            return "the driver finds no GPU (is one there, and does CUDA_VISIBLE_DEVICES not hide it?)"
        return f"the driver does not answer ({_first_line(error)})"
    return None if count else "the driver finds no GPU (is one there, and does CUDA_VISIBLE_DEVICES not hide it?)"


def _toolkit(cupy: Any) -> str | None:
    missing = []
    try:
        cupy.cuda.nvrtc.getVersion()
    except (ImportError, RuntimeError, AttributeError):  # without its library, each of them happens
        missing.append("nvrtc")
    try:
        cupy.cuda.cublas  # noqa: B018  an attribute that is loaded on first use, not a module to import
    except (ImportError, RuntimeError, AttributeError):
        missing.append("cublas")
    if not missing:
        return None
    verb = "is" if len(missing) == 1 else "are"
    return f"{' and '.join(missing)} of the CUDA toolkit {verb} missing (install CuPy with [ctk] after its name)"


def _one_kernel(cupy: Any) -> str | None:
    # Only this proves compile, launch and copy.
    try:
        answer = float((cupy.arange(4, dtype="f") + 1).sum())
    except Exception as error:
        return f"a first kernel fails ({_first_line(error)})"
    return None if answer == 10 else f"a first kernel gives {answer} where 10 is right"


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
