"""The CUDA kernels: `.cu` files to be read, and the few lines that hand them to CuPy.

A kernel is one of two forms. An *elementwise* file holds the body of a CuPy `ElementwiseKernel`: what is done for one
index `i`; its first comment names the parameters. A *raw* file holds whole ``__global__`` functions for `RawKernel`.
`T` is the element type in both: float, half or bfloat16. Sums are float32 in every one of them.

A file's header lines, after what it does::

    // in: raw uint8 packed, raw float32 absmax      parameters of an elementwise kernel, as CuPy writes them
    // out: T y
    // T: float32, float16, bfloat16                 what T may be
    // exact                                         bits matter: no fused multiply-add, no approximate instruction
    // wide                                          a fast rung: 16 bytes a load or a store
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
C_TYPES = {"float32": "float", "float16": "__half", "bfloat16": "__nv_bfloat16"}


@dataclass(frozen=True)
class Kernel:
    """One kernel, read from its file.

    Attributes
    ----------
    name : str
    form : {"elementwise", "raw"}
    types : tuple of str
        What T may be; empty if the kernel has no T.
    exact, wide : bool
        Its header's promises.
    inputs, outputs, body : str
        Of an elementwise kernel, as `cupy.ElementwiseKernel` takes them.
    preamble : str
        What stands before: the pasted `.cuh` files, and for a raw kernel the whole file.
    """

    name: str
    form: str
    types: tuple[str, ...]
    exact: bool
    wide: bool
    inputs: str
    outputs: str
    body: str
    preamble: str

    def text(self, dtype: str = "") -> str:
        """The whole source of a raw kernel for one T."""
        if self.types and dtype not in self.types:
            raise ValueError(f"{self.name} is written for {', '.join(self.types)}, not for {dtype or 'no type'}")
        headers = "#include <cuda_fp16.h>\n#include <cuda_bf16.h>\n"
        return headers + (f"typedef {C_TYPES[dtype]} T;\n" if self.types else "") + self.preamble

    def dtypes(self, dtype: str = "") -> tuple[list[str], list[str]]:
        """The dtypes of an elementwise kernel's inputs and outputs for one T, in order."""
        return tuple(  # type: ignore[return-value]
            [dtype if word == "T" else word for _, word, _ in _parameters(said)] for said in (self.inputs, self.outputs)
        )

    @property
    def scalars(self) -> tuple[str, ...]:
        """Inputs of an elementwise kernel that are numbers: by this folder's custom those that are not `raw`."""
        return tuple(name for raw, _, name in _parameters(self.inputs) if not raw)

    def build(self, kx: Any, dtype: str = "") -> Any:
        """The kernel made by `kx`, which is CuPy, or what stands in for it where there is no GPU."""
        return _build(self, kx, dtype)


@cache
def _build(k: Kernel, kx: Any, dtype: str) -> Any:
    if k.form == "raw":
        return kx.RawKernel(k.text(dtype), k.name)
    return kx.ElementwiseKernel(k.inputs, k.outputs, k.body, k.name, preamble=k.preamble)


def _parameters(said: str) -> Iterator[tuple[bool, str, str]]:
    for parameter in said.split(","):
        *raw, dtype, name = parameter.split()
        yield bool(raw), dtype, name


def kernel(name: str) -> Kernel:
    """The kernel of that name."""
    return _all()[name]


def every() -> list[Kernel]:
    """All kernels, by name."""
    return [_all()[name] for name in sorted(_all())]


@cache
def _all() -> dict[str, Kernel]:
    found: dict[str, Kernel] = {}
    for path in sorted(FOLDER.glob("*.cu")):
        for k in _read(path):
            if k.name in found:
                raise ValueError(f"two kernels are called {k.name}, one of them in {path.name}")
            found[k.name] = k
    return found


def _read(path: Path) -> Iterator[Kernel]:
    text = path.read_text(encoding="utf-8")

    def said(key: str) -> str:
        return " ".join(re.findall(rf"^// {key}: *(.*?) *$", text, re.M))

    types = tuple(said("T").replace(",", " ").split())
    exact, wide = ("\n// exact\n" in text), ("\n// wide\n" in text)
    pasted = "".join(
        (FOLDER / name).read_text(encoding="utf-8") for name in re.findall(r'^#include "(.*)"$', text, re.M)
    )
    rest = re.sub(r'^#include ".*"\n', "", text, flags=re.M)
    names = re.findall(r"__global__ void (?:__launch_bounds__\(\w+\) )?(\w+)\(", rest)
    for name in names:
        yield Kernel(name, "raw", types, exact, wide, "", "", "", pasted + rest)
    if not names:
        yield Kernel(path.stem, "elementwise", types, exact, wide, said("in"), said("out"), rest, pasted)
