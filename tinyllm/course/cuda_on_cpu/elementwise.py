"""ElementwiseKernel, called as CuPy's is, through the very text that CuPy would generate and compile.

CuPy pastes the body into a loop over `i` and passes every array as a `CArray` (pointer, shape, strides; include/cupy/).
`source()` writes the same text, letter by letter; test_nvrtc.py compares the two where CuPy is installed.
"""

from __future__ import annotations

import ctypes
import struct
from dataclasses import dataclass

import numpy as np

from .arguments import dtype_name
from .launch import Counts, Run
from .library import library

C_NAMES = {
    "bool": "bool", "int8": "signed char", "uint8": "unsigned char", "int16": "short", "uint16": "unsigned short",
    "int32": "int", "uint32": "unsigned int", "int64": "long long", "uint64": "unsigned long long",
    "float16": "float16", "bfloat16": "bfloat16", "float32": "float", "float64": "double",
}  # fmt: skip


@dataclass(frozen=True)
class Parameter:
    """One of "raw uint8 packed" or "T y": a dtype's name or a single letter; ``raw`` is indexed by hand."""

    name: str
    kind: str
    raw: bool
    constant: bool

    @staticmethod
    def read(text: str, constant: bool) -> tuple[Parameter, ...]:
        found = []
        for part in filter(None, (piece.strip() for piece in text.split(","))):
            *words, kind, name = part.split()
            if words not in ([], ["raw"]) or (len(kind) > 1 and kind not in C_NAMES):
                raise ValueError(f"not a parameter of an ElementwiseKernel: {part!r}")
            found.append(Parameter(name, kind, bool(words), constant))
        return tuple(found)


def source(parameters: tuple[Parameter, ...], values: list, types: dict[str, str], ndim: int, body: str, name: str,
           preamble: str = "", loop_prep: str = "", after_loop: str = "") -> str:  # fmt: skip
    """CuPy 14's text for arrays and scalars like ``values``, ``types`` says what a single letter stands for."""
    declared, elements = [], []
    for parameter, value in zip(parameters, values, strict=True):
        c = C_NAMES[types.get(parameter.kind, parameter.kind)]
        const, word = "const " if parameter.constant else "", parameter.name
        if isinstance(value, np.ndarray):
            flags = f"{int(value.flags.c_contiguous)}, {int(value.nbytes < 2**31)}"
            c = f"CArray<{c}, {value.ndim}, {flags}>"
            if not parameter.raw:
                short = parameter.kind if len(parameter.kind) == 1 else C_NAMES[parameter.kind]
                elements.append(f"{const}{short} &{word} = _raw_{word}[_ind.get()];")
                word = f"_raw_{word}"
        declared.append(f"{const}{c} {word}")
    declared.append(f"CIndexer<{ndim}, 1> _ind")
    used = {types.get(p.kind, p.kind) for p in parameters}
    includes = "".join(f'#include "cupy/{half}.cuh"\n' for half in ("bfloat16", "float16") if half in used)
    includes += "\n" if includes else ""
    typedefs = "".join(f"typedef {C_NAMES[types[letter]]} {letter};\n" for letter in sorted(types))
    operation = "\n".join([*elements, body])
    return f"""
    {includes}{typedefs}
    {preamble}
    extern "C" __global__ void {name}({", ".join(declared)}) {{
      {loop_prep};
      #pragma unroll 1
      CUPY_FOR(i, _ind.size()) {{
        _ind.set(i);
        {operation};
      }}
      {after_loop};
    }}
    """


def _words(numbers: tuple[int, ...]) -> bytes:
    return struct.pack(f"<{len(numbers)}q", *numbers)


class ElementwiseKernel:
    """``kernel(*inputs, *outputs, size=None, block_size=128)`` over NumPy arrays; returns the output or outputs.

    As in CuPy: arrays that are not ``raw`` are broadcast together and visited element by element; when every array is
    raw, ``size`` says how many indices there are; outputs that are not raw may be left out, and are then allocated.
    """

    def __init__(self, in_params: str, out_params: str, operation: str, name: str = "kernel", reduce_dims: bool = True,
                 preamble: str = "", options: tuple[str, ...] = (), loop_prep: str = "",
                 after_loop: str = "") -> None:  # fmt: skip
        self.inputs, self.outputs = Parameter.read(in_params, True), Parameter.read(out_params, False)
        self.parameters = self.inputs + self.outputs
        self.operation, self.name, self.preamble, self.options = operation, name, preamble, tuple(options)
        self.reduce_dims, self.around = reduce_dims, (loop_prep, after_loop)
        self.counts = Counts()

    def _types(self, given: list) -> dict[str, str]:
        """What each letter stands for, by the arrays given; a wrong dtype is refused."""
        types: dict[str, str] = {}
        for parameter, value in zip(self.parameters, given, strict=False):
            if isinstance(value, (np.ndarray, np.generic)) and len(parameter.kind) == 1:
                types.setdefault(parameter.kind, dtype_name(value.dtype))
            if not isinstance(value, np.ndarray):
                continue
            wanted, dtype = types.get(parameter.kind, parameter.kind), dtype_name(value.dtype)
            if wanted != dtype:
                raise TypeError(
                    f"{self.name}: argument {parameter.name!r} is of {wanted}, but the array's dtype is {dtype}"
                )
        for parameter in self.parameters:
            if len(parameter.kind) == 1 and parameter.kind not in types:
                raise TypeError(f"{self.name}: no array says what {parameter.kind} (of {parameter.name!r}) stands for")
        return types

    def _arrays(self, given: list, types: dict[str, str], size: int | None) -> tuple[list, tuple[int, ...]]:
        """Every argument ready, missing outputs allocated, what is not raw broadcast; and the loop's shape."""
        spread = [p.raw or not isinstance(v, np.ndarray) for p, v in zip(self.parameters, given, strict=False)]
        shapes = [v.shape for v, out in zip(given, spread, strict=True) if not out]
        if shapes and size is not None:
            raise ValueError(f"{self.name}: size is for kernels whose arrays are all raw")
        if not shapes and size is None:
            raise ValueError(f"{self.name}: the number of indices is not known: give size=")
        shape = np.broadcast_shapes(*shapes) if shapes else (int(size or 0),)
        for parameter in self.parameters[len(given) :]:
            if parameter.raw:
                raise ValueError(f"{self.name}: the raw output {parameter.name!r} must be given")
            kind = types.get(parameter.kind, parameter.kind)
            if kind == "bfloat16":
                import ml_dtypes

                kind = ml_dtypes.bfloat16
            given = [*given, np.empty(shape, kind)]
        ready = []
        for parameter, value in zip(self.parameters, given, strict=True):
            if not isinstance(value, np.ndarray):
                if not parameter.constant:
                    raise TypeError(f"{self.name}: the output {parameter.name!r} must be an array")
                kind = types.get(parameter.kind, parameter.kind)
                if parameter.raw:
                    raise TypeError(f"{self.name}: the raw argument {parameter.name!r} must be an array")
                value = np.dtype(kind).type(value)
            elif not parameter.raw and value.shape != shape:
                if not parameter.constant:
                    raise ValueError(f"{self.name}: the output {parameter.name!r} has shape {value.shape}, not {shape}")
                value = np.broadcast_to(value, shape)
            ready.append(value)
        loops = [v for p, v in zip(self.parameters, ready, strict=True) if isinstance(v, np.ndarray) and not p.raw]
        if all(v.flags.c_contiguous for v in loops) and self.reduce_dims or shape == ():
            shape = (int(np.prod(shape, dtype=np.int64)),)
            ready = [
                v.reshape(shape) if isinstance(v, np.ndarray) and not p.raw else v
                for p, v in zip(self.parameters, ready, strict=True)
            ]
        return ready, shape

    def __call__(self, *args: object, size: int | None = None, block_size: int = 128) -> object:
        if not len(self.inputs) <= len(args) <= len(self.parameters):
            names = ", ".join(p.name for p in self.parameters)
            raise TypeError(f"{self.name} takes {len(self.parameters)} arguments ({names}), but {len(args)} are given")
        types = self._types(list(args))
        values, shape = self._arrays(list(args), types, size)
        results = [*args[len(self.inputs) :], *values[len(args) :]]
        outputs = tuple(
            value
            if isinstance(value, np.ndarray) and k < len(args) - len(self.inputs)
            else value.reshape(self._shape(args))
            for k, value in enumerate(results)
        )
        n = int(np.prod(shape, dtype=np.int64))
        if n:
            self._launch(values, types, shape, n, block_size)
        return outputs[0] if len(outputs) == 1 else outputs

    def _shape(self, args: tuple) -> tuple[int, ...]:
        """Of an output that was left out."""
        shapes = [
            a.shape for p, a in zip(self.parameters, args, strict=False) if isinstance(a, np.ndarray) and not p.raw
        ]
        return np.broadcast_shapes(*shapes) if shapes else (-1,)

    def _launch(self, values: list, types: dict[str, str], shape: tuple[int, ...], n: int, block_size: int) -> None:
        text = source(
            self.parameters, values, types, len(shape), self.operation, self.name, self.preamble, *self.around
        )
        built = library(text, self.options)
        arrays = {
            k: (value, parameter.constant)
            for k, (parameter, value) in enumerate(zip(self.parameters, values, strict=True))
            if isinstance(value, np.ndarray)
        }
        names = [p.name for p in self.parameters]
        grid = min(-(-n // block_size), 2**31 - 1)
        run = Run(built, self.name, (grid,), (block_size,), 0, 0, arrays, names)
        packed = [
            _words((run.memory.pointer(v), v.size, *v.shape, *v.strides)) if isinstance(v, np.ndarray) else v.tobytes()
            for v in values
        ]
        indexer = _words((n, *shape, *[0] * len(shape)))
        self.counts = run.go([*packed, indexer + bytes(ctypes.sizeof(ctypes.c_int64))])
