"""Asking for CUDA where it cannot be had: each reason gets its own sentence. CuPy is a fake here."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from tinyllm.backend import BACKENDS
from tinyllm.backend import device as device_module
from tinyllm.backend.device import BackendUnavailable, backend, device, probe, set_device, to_device, to_host


def test_the_extras_ask_for_a_cupy_whose_pool_knows_how_much_is_used():
    """Before 14.1.1 `used_bytes` walks through all blocks, and `card_peak` asks at every allocation."""
    root = Path(__file__).resolve().parents[2]
    asked = re.findall(r'"cupy-\w+\[ctk\]>=([\d.]+)"', (root / "pyproject.toml").read_text(encoding="utf-8"))
    assert len(asked) == 2 and all(tuple(map(int, one.split("."))) >= (14, 1, 1) for one in asked)


class CUDARuntimeError(RuntimeError):
    def __init__(self, status, text):
        super().__init__(text)
        self.status = status


def raising(error):
    def call(*_, **__):
        raise error

    return call


class Cuda(SimpleNamespace):
    """As in CuPy, `cublas` is loaded when it is asked for, and that may raise."""

    @property
    def cublas(self):
        if self.no_cublas:
            raise ImportError("libcublas.so.13: cannot open shared object file")
        return SimpleNamespace(getVersion=lambda handle: 130000)


def fake_cupy(count=1, driver=13020, runtime=13020, nvrtc=None, no_cublas=False, arange=np.arange):
    cupy = ModuleType("cupy")
    cupy.__version__ = "14.2.0"
    cupy.arange = arange
    cupy.cuda = Cuda(
        runtime=SimpleNamespace(
            getDeviceCount=raising(count) if isinstance(count, Exception) else lambda: count,
            driverGetVersion=lambda: driver,
            runtimeGetVersion=lambda: runtime,
        ),
        nvrtc=SimpleNamespace(getVersion=raising(nvrtc) if nvrtc else lambda: (13, 2)),
        no_cublas=no_cublas,
    )
    return cupy


INSUFFICIENT = CUDARuntimeError(35, "cudaErrorInsufficientDriver: CUDA driver version is insufficient")
NO_LIBRARY = RuntimeError("DynamicLibNotFoundError: nvrtc")
REASONS = {
    "no CuPy": (None, "CuPy is not installed: pip install"),
    "no driver": (fake_cupy(count=INSUFFICIENT, driver=0), "this machine has no NVIDIA driver"),
    "driver too old": (
        fake_cupy(count=INSUFFICIENT, driver=12080),
        "driver is too old: it supports CUDA 12.8, and CuPy was built for 13.2",
    ),
    "no device": (fake_cupy(count=CUDARuntimeError(100, "cudaErrorNoDevice")), "finds no GPU"),
    "hidden device": (fake_cupy(count=0), "CUDA_VISIBLE_DEVICES"),
    "sick driver": (
        fake_cupy(count=CUDARuntimeError(802, "system not yet initialized")),
        "does not answer (system not yet",
    ),
    "no nvrtc": (fake_cupy(nvrtc=NO_LIBRARY), "nvrtc of the CUDA toolkit is missing (install CuPy with [ctk]"),
    "no cublas": (fake_cupy(no_cublas=True), "cublas of the CUDA toolkit is missing"),
    "no toolkit": (fake_cupy(nvrtc=NO_LIBRARY, no_cublas=True), "nvrtc and cublas of the CUDA toolkit are missing"),
    "kernel fails": (
        fake_cupy(arange=raising(RuntimeError("no kernel image\nmore"))),
        "a first kernel fails (no kernel image)",
    ),
    "kernel lies": (fake_cupy(arange=lambda n, dtype: np.zeros(n, dtype)), "gives 4.0 where 10 is right"),
}


@pytest.fixture(autouse=True)
def _back_to_cpu():
    before = BACKENDS.pop("cuda", None)
    yield
    set_device("cpu")
    BACKENDS.pop("cuda", None)
    if before is not None:
        BACKENDS["cuda"] = before


@pytest.mark.parametrize("case", REASONS)
def test_each_reason_has_its_sentence(case, monkeypatch):
    cupy, sentence = REASONS[case]
    monkeypatch.setitem(sys.modules, "cupy", cupy)  # None makes `import cupy` a ModuleNotFoundError
    with pytest.raises(BackendUnavailable) as caught:
        set_device("cuda")
    said = str(caught.value)
    assert sentence in said and said.endswith("Use the device 'cpu' to go on without a GPU.") and "\n" not in said
    assert isinstance(caught.value, RuntimeError) and device() == "cpu"
    found = {text for _, text in REASONS.values() if text in said}
    assert found == ({sentence} if "device" not in case else {"finds no GPU", "CUDA_VISIBLE_DEVICES"})


def test_a_cupy_that_does_not_import(monkeypatch):
    monkeypatch.setattr(device_module.importlib, "import_module", raising(OSError("libcudart is broken")))
    assert probe() == "CuPy is installed but does not import (libcudart is broken)."
    error = ModuleNotFoundError("No fastrlock", name="fastrlock")
    monkeypatch.setattr(device_module.importlib, "import_module", raising(error))
    assert "does not import (No fastrlock)" in probe()


def test_a_cupy_that_works_becomes_the_backend(monkeypatch):
    cupy = fake_cupy()
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    set_device("cuda")
    assert device() == "cuda" and BACKENDS["cuda"].xp is backend().xp is cupy
    assert set(BACKENDS["cuda"].table) == set(BACKENDS["numpy"].table)
    set_device("cpu")
    assert device() == "cpu" and backend() is BACKENDS["numpy"]
    x = np.ones(3)
    assert to_device(x) is x and to_host(x) is x


def test_an_unknown_device_is_an_error():
    with pytest.raises(ValueError, match="'tpu'.*'cpu' and 'cuda'"):
        set_device("tpu")


def test_asking_for_the_cpu_imports_no_cupy():
    script = (
        "import sys; from tinyllm.backend.device import set_device; set_device('cpu'); print('cupy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
