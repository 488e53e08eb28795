"""A launch's arguments: checked against the kernel's own C++ types, then copied to where every byte is watched.

CuPy passes an array's pointer and a scalar's bytes, whatever they are; here a wrong dtype, a strided array or a plain
Python number is refused. Arrays are copied into one block of memory with wide gaps, so that an access outside of one
array never lands in another, at addresses that are aligned as on the card: an allocation begins at a multiple of 256
bytes, and a view keeps its offset.
"""

from __future__ import annotations

import ctypes
import mmap
from dataclasses import dataclass

import numpy as np

GAP = 1 << 20  # never touched, so never really allocated
BFLOAT16 = "bfloat16"  # ml_dtypes' dtype; NumPy has none


def dtype_name(dtype: np.dtype) -> str:
    return "bool" if dtype == np.bool_ else dtype.name


def address(array: np.ndarray) -> int:
    """Where an array begins on the card: its offset in its allocation, in place of CuPy's ``x.data.ptr``."""
    root = array
    while isinstance(root.base, np.ndarray):
        root = root.base
    return array.__array_interface__["data"][0] - root.__array_interface__["data"][0]


def check_array(kernel: str, name: str, wanted: str, array: np.ndarray) -> None:
    given = dtype_name(array.dtype)
    if wanted not in (given, "void") and not (wanted == BFLOAT16 and given == "uint16"):
        raise TypeError(f"{kernel}: argument {name!r} points to {wanted}, but the array's dtype is {given}")
    if not array.flags.c_contiguous:
        raise ValueError(
            f"{kernel}: argument {name!r} is not C-contiguous (strides {array.strides}), and a kernel gets its pointer "
            "only: pass xp.ascontiguousarray(...)"
        )


def scalar_bytes(kernel: str, name: str, wanted: str, value: object) -> bytes:
    """The bytes of a scalar argument, exactly of the parameter's type."""
    if type(value) is bool and wanted == "bool":
        value = np.bool_(value)
    elif type(value) is int and wanted in ("int64", "uint64"):
        value = np.dtype(wanted).type(value)
    elif type(value) is float and wanted == "float64":
        value = np.float64(value)
    elif isinstance(value, (bool, int, float)) and not isinstance(value, np.generic):
        raise TypeError(
            f"{kernel}: argument {name!r} is a Python {type(value).__name__}, which CuPy passes as 8 bytes; the kernel "
            f"reads {wanted}: pass np.{wanted}(...)"
        )
    if not isinstance(value, np.generic):
        raise TypeError(f"{kernel}: argument {name!r} is of type {wanted}, but a {type(value).__name__} is given")
    if dtype_name(value.dtype) != wanted:
        raise TypeError(f"{kernel}: argument {name!r} is of type {wanted}, but {value.dtype.name} is given")
    return value.tobytes()


@dataclass
class Placed:
    """A range of memory on "the card": the bytes of one array, or of several that overlap."""

    low: int  # where the bytes are in NumPy's memory
    high: int
    offset: int  # of `low` in its allocation
    arguments: list[int]
    constant: bool
    begin: int = 0  # where they are during the launch


class Memory:
    """The card's memory for one launch: ``arrays`` is {argument's index: (array, is it constant)}."""

    def __init__(self, arrays: dict[int, tuple[np.ndarray, bool]], dynamic: int) -> None:
        self.places: list[Placed] = []
        for index, (array, constant) in arrays.items():
            if not array.size:
                continue
            low, high = np.lib.array_utils.byte_bounds(array)
            place = Placed(low, high, address(array) - (array.__array_interface__["data"][0] - low), [index], constant)
            for other in [p for p in self.places if p.low < high and low < p.high]:
                self.places.remove(other)
                offset = place.offset if place.low <= other.low else other.offset
                place = Placed(
                    min(low, place.low, other.low), max(place.high, other.high), offset,
                    other.arguments + place.arguments, place.constant and other.constant,
                )  # fmt: skip
            self.places.append(place)
        size = GAP + sum(p.high - p.low + GAP + 512 for p in self.places) + dynamic + GAP
        self.block = mmap.mmap(-1, size)
        self.base = ctypes.addressof(ctypes.c_char.from_buffer(self.block))
        cursor = self.base + GAP
        for place in self.places:
            place.begin = -(-cursor // 256) * 256 + place.offset % 256
            ctypes.memmove(place.begin, place.low, place.high - place.low)
            cursor = place.begin + place.high - place.low + GAP
        self.dynamic = -(-cursor // 256) * 256
        self.null = cursor + dynamic + GAP // 2  # where an empty array points: nothing may be read there

    def pointer(self, array: np.ndarray) -> int:
        data = array.__array_interface__["data"][0]
        return next((p.begin + data - p.low for p in self.places if array.size and p.low <= data < p.high), self.null)

    def copy_back(self) -> None:
        for place in self.places:
            if not place.constant:
                ctypes.memmove(place.low, place.begin, place.high - place.low)
