"""Why CUDA cannot be used here, asked step by step: one sentence for the one reason that holds."""

from __future__ import annotations

import importlib
from typing import Any

NO_DEVICE, DRIVER_TOO_OLD = 100, 35  # cudaErrorNoDevice, cudaErrorInsufficientDriver


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
