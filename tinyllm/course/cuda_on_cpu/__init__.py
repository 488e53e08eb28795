"""CUDA C on a machine without a card: the text of a kernel is compiled by g++ and run over NumPy arrays, under watch.

    from tinyllm.course.cuda_on_cpu import RawKernel
    RawKernel(code, "name")((blocks,), (threads,), (x, y, np.int32(n)))

The classes take what CuPy's take, so that one launch code serves both (``kx = cupy`` or ``kx = cuda_on_cpu``). Every
load and store is checked: bounds, alignment, memory nobody wrote, two threads on one place with no barrier between. The
page docs/cuda-on-cpu.md shows it at work. In the order of reading: library.py (from text to machine code), arguments.py
(what is passed, and where arrays lie), launch.py (one launch, its counts and its trace), raw.py and elementwise.py
(CuPy's two kinds of kernel), then the C++: runtime.cpp (threads, barriers, checks), hooks.cpp (where g++ calls it) and
include/ (the language).
"""

from __future__ import annotations

from .arguments import address
from .elementwise import ElementwiseKernel
from .launch import ORDERS, Counts, KernelError, settings
from .library import CompileError, compiler
from .raw import RawKernel, RawModule

__all__ = [
    "ORDERS", "CompileError", "Counts", "ElementwiseKernel", "KernelError", "RawKernel", "RawModule", "address",
    "compiler", "settings",
]  # fmt: skip
