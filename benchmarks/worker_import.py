"""Seconds that importing a module takes in a fresh interpreter, beyond NumPy's own import."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from protocol import serve

SCRIPT = """
import time, numpy
began = time.perf_counter()
import {0}
print(time.perf_counter() - began)
"""


def load(spec: dict[str, Any]) -> dict[str, str]:
    name = spec["module"]
    if importlib.util.find_spec(name) is None:
        raise ModuleNotFoundError(name=name)
    try:
        return {name: importlib.metadata.version(name)}
    except importlib.metadata.PackageNotFoundError:
        return {}  # tinyllm from its own folder


def make(spec: dict[str, Any]) -> Callable[[], dict]:
    def step() -> dict[str, float]:
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT.format(spec["module"])], capture_output=True, text=True, check=True
        )
        return {"import": float(done.stdout.split()[-1])}

    return step


if __name__ == "__main__":
    serve(load, make)
