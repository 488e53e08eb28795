"""RawKernel and RawModule, called as CuPy's are: ``kernel(grid, block, args, shared_mem=0)``."""

from __future__ import annotations

import numpy as np

from .arguments import check_array, scalar_bytes
from .launch import Counts, Run
from .library import library, parameter_names


class RawKernel:
    """A ``extern "C" __global__`` function of a CUDA C text, as a function over NumPy arrays.

    ``args`` holds an array for every pointer and a NumPy scalar of exactly the parameter's type for everything else.
    After a launch ``counts`` says what it read and wrote.
    """

    def __init__(self, code: str, name: str, options: tuple[str, ...] = ()) -> None:
        self.code, self.name, self.options = code, name, tuple(options)
        self.max_dynamic_shared_size_bytes = 48 * 1024
        self.counts = Counts()

    def __call__(self, grid: tuple, block: tuple, args: tuple, *, shared_mem: int = 0) -> None:
        built = library(self.code, self.options)
        types = built.signature(self.name)
        names = parameter_names(self.code, self.name)
        names += [f"number {i}" for i in range(len(names), len(types))]
        if len(types) != len(args):
            raise TypeError(f"{self.name} takes {len(types)} arguments ({', '.join(names)}), but {len(args)} are given")
        arrays: dict[int, tuple[np.ndarray, bool]] = {}
        for index, (kind, value) in enumerate(zip(types, args, strict=True)):
            if kind.endswith("*") != isinstance(value, np.ndarray):
                given = "an array" if isinstance(value, np.ndarray) else f"a {type(value).__name__}"
                raise TypeError(f"{self.name}: argument {names[index]!r} is of type {kind}, but {given} is given")
            if isinstance(value, np.ndarray):
                constant = kind.startswith("const ")
                check_array(self.name, names[index], kind.removeprefix("const ")[:-1], value)
                if not constant and not value.flags.writeable:
                    raise ValueError(
                        f"{self.name}: argument {names[index]!r} may be written, but the array is read-only"
                    )
                arrays[index] = value, constant
        run = Run(built, self.name, grid, block, shared_mem, self.max_dynamic_shared_size_bytes, arrays, names)
        values = [
            run.memory.pointer(value).to_bytes(8, "little")
            if isinstance(value, np.ndarray)
            else scalar_bytes(self.name, names[index], types[index], value)
            for index, value in enumerate(args)
        ]
        self.counts = run.go(values)


class RawModule:
    """Several kernels in one text: ``RawModule(code=...).get_function(name)``."""

    def __init__(self, *, code: str, options: tuple[str, ...] = ()) -> None:
        self.code, self.options = code, options

    def get_function(self, name: str) -> RawKernel:
        return RawKernel(self.code, name, self.options)
