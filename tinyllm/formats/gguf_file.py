"""GGUF, llama.cpp's format: a header of typed metadata and tensor entries, then the tensors' bytes, mostly in blocks.

The header is read and checked here, bound by bound, before anything is allocated: the official package maps the whole
file and believes what it says. The package is asked for what it knows best, the blocks' arithmetic. A file is never
mapped, since mapped pages count as memory: `read_tensor` takes one, a piece at a time, so that what stands in memory
is the float array it returns and about a megabyte.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from tinyllm.backend.half import from_bfloat16
from tinyllm.formats.foreign import refuse_pointer

# By ggml's number: name, weights a block, bytes a block. A block is a run of weights in one row.
KINDS = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 30: ("BF16", 1, 2),
    2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34),
    12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210),
}  # fmt: skip
OTHERS = {  # not read here; for the message
    9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S",
    20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64",
    29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip
BLOCKS = {name: (weights, size) for name, weights, size in KINDS.values()}
# The metadata's kinds of numbers, by GGUF's number.
SCALARS = {
    0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8", 11: "<i8", 12: "<f8",
}  # fmt: skip
FLOAT32, STRING, ARRAY = 6, 8, 9
HEADER_LIMIT = 1 << 26  # bytes; a vocabulary of 260,000 tokens and its merges take 12 MB
Announced = tuple[str, str, tuple[int, ...], int]  # of a tensor: name, kind, shape, where among the tensors' bytes
PIECE = 1 << 17  # weights dequantised at a time


@dataclass(frozen=True)
class Entry:
    """Where a tensor stands in a file, and how."""

    kind: str  # "F32", "Q4_K", ...
    shape: tuple[int, ...]  # as NumPy has it, the longest stride first; the file has it the other way round
    start: int  # of its bytes, from the file's beginning
    nbytes: int


@dataclass(frozen=True)
class Header:
    """What a file says before its tensors' bytes.

    Attributes
    ----------
    metadata : dict of str to int, float, bool, str, ndarray or list of str
    tensors : dict of str to Entry
    """

    metadata: dict[str, Any]
    tensors: dict[str, Entry]


def read_header(path: Any) -> Header:
    """Read and check everything but the tensors' bytes.

    Parameters
    ----------
    path : str or Path

    Returns
    -------
    Header

    Raises
    ------
    FileNotFoundError
    ValueError
        If the file is no GGUF of version 2 or 3, is truncated, contradicts itself or holds a kind of tensor that is
        not understood; the message names the place.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path}")
    refuse_pointer(path)
    with open(path, "rb") as file:
        cursor = _Cursor(file, path)
        tensor_count, metadata_count = _counts(cursor)
        metadata: dict[str, Any] = {}
        for _ in range(metadata_count):
            key = cursor.string()
            if key in metadata:
                raise cursor.wrong(f"has {key} twice")
            metadata[key] = cursor.value(cursor.number("<I"), key)
        alignment = metadata.get("general.alignment", 32)
        if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
            raise cursor.wrong(f"has general.alignment {alignment!r}, which is no power of two")
        announced = [_announced(cursor) for _ in range(tensor_count)]
    return Header(metadata, _placed(cursor, announced, alignment))


def _placed(cursor: _Cursor, announced: list[Announced], alignment: int) -> dict[str, Entry]:
    """Where each tensor stands: in the file, after the header, and none inside another."""
    data = -(-cursor.at // alignment) * alignment
    tensors: dict[str, Entry] = {}
    end, before = data, "the header"
    for name, kind, shape, offset in sorted(announced, key=lambda one: one[3]):
        weights, size = BLOCKS[kind]
        entry = Entry(kind, shape, data + offset, prod(shape) // weights * size)
        if offset % alignment or entry.start < end:
            raise cursor.wrong(f"has {name} at a place inside {before} or not a multiple of {alignment}")
        end, before = entry.start + entry.nbytes, name
        if end > cursor.size:
            raise cursor.wrong(f"ends within {name}: it is truncated")
        if name in tensors:
            raise cursor.wrong(f"has {name} twice")
        tensors[name] = entry
    return tensors


def read_tensor(path: Any, entry: Entry, name: str = "a tensor") -> np.ndarray:
    """One tensor as float32, bit for bit what ``gguf.quants.dequantize`` makes of it.

    Parameters
    ----------
    path : str or Path
    entry : Entry
        Of this file's header.
    name : str
        For messages.

    Returns
    -------
    float32 array of the entry's shape

    Raises
    ------
    ImportError
        If it is stored in blocks and the `gguf` package is not installed.
    ValueError
        If the file ends too early, or the values are not finite.
    """
    weights, size = BLOCKS[entry.kind]
    decode = _decoder(entry.kind)
    y = np.empty(prod(entry.shape), np.float32)
    step = max(1, PIECE // entry.shape[-1]) * entry.shape[-1]  # whole rows
    with open(path, "rb", buffering=0) as file, np.errstate(all="ignore"):
        file.seek(entry.start)
        for start in range(0, y.size, step):
            part = y[start : start + step]
            raw = np.frombuffer(file.read(part.size // weights * size), np.uint8)
            if raw.size != part.size // weights * size:
                raise ValueError(f"{path} ends within {name}: it is truncated; get it again")
            part[...] = decode(raw)
            if not np.isfinite(part).all():
                raise ValueError(f"{path} has {name} with values that are not finite; get it again")
    return y.reshape(entry.shape)


def _decoder(kind: str) -> Any:
    if kind == "F32":
        return lambda raw: raw.view("<f4")
    if kind == "F16":
        return lambda raw: raw.view("<f2")
    if kind == "BF16":
        return lambda raw: from_bfloat16(raw.view("<u2"))
    try:
        from gguf.constants import GGMLQuantizationType
        from gguf.quants import dequantize
    except ImportError as error:
        raise ImportError(
            f"reading {kind} weights takes the gguf package: pip install 'tinyllm-engine[gguf]'"
        ) from error
    # As one row: the package goes through sixteen rows at a time, which costs more than the arithmetic.
    return lambda raw: dequantize(raw.reshape(1, -1), GGMLQuantizationType[kind]).reshape(-1)


def _counts(cursor: _Cursor) -> tuple[int, int]:
    """The counts of tensors and of metadata."""
    magic = cursor.take(4, "its beginning")
    if magic != b"GGUF":
        raise ValueError(f"{cursor.path} is not a GGUF file (it begins with {magic!r}); give one, or a folder")
    version = cursor.number("<I")
    if version in (2 << 24, 3 << 24):
        raise cursor.wrong("is for big-endian machines, which is not understood; get the usual one", remedy="")
    if version not in (2, 3):
        raise cursor.wrong(f"is a GGUF file of version {version}; only 2 and 3 are understood", remedy="")
    tensor_count, metadata_count = cursor.number("<Q"), cursor.number("<Q")
    cursor.require_room(tensor_count, 24, "its tensors' entries")
    cursor.require_room(metadata_count, 13, "its metadata")
    return tensor_count, metadata_count


def _announced(cursor: _Cursor) -> Announced:
    name = cursor.string()
    dims = cursor.number("<I")
    if not 1 <= dims <= 4:
        raise cursor.wrong(f"has {name!r} with {dims} dimensions; there are 1 to 4")
    shape = tuple(cursor.number("<Q") for _ in range(dims))[::-1]
    number = cursor.number("<I")
    if number not in KINDS:
        kind = OTHERS.get(number, f"of number {number}")
        raise cursor.wrong(
            f"stores {name} as {kind}, which is not understood; get the model as one of {', '.join(BLOCKS)}", remedy=""
        )
    kind, weights, _ = KINDS[number]
    if min(shape) < 1 or shape[-1] % weights:
        raise cursor.wrong(f"has {name} of shape {shape}, which {kind} cannot hold (blocks of {weights} in a row)")
    return name, kind, shape, cursor.number("<Q")


class _Cursor:
    """A place in a file's header, which never asks for more than there is."""

    def __init__(self, file: BinaryIO, path: Any):
        self.file, self.path, self.at = file, path, 0
        self.size = os.fstat(file.fileno()).st_size

    def wrong(self, what: str, remedy: str = "; get it again") -> ValueError:
        return ValueError(f"{self.path} {what}{remedy}")

    def take(self, n: int, what: str) -> bytes:
        if n > self.size - self.at:
            raise self.wrong(f"ends within {what}: it is truncated or not a GGUF file")
        if self.at + n > HEADER_LIMIT:
            raise self.wrong(f"has a header of more than {HEADER_LIMIT:,} bytes, which is not believed")
        raw = self.file.read(n)
        if len(raw) != n:
            raise self.wrong(f"ends within {what}: it is truncated")
        self.at += n
        return raw

    def require_room(self, n: int, least: int, what: str) -> None:
        """Raise ValueError unless n things of at least so many bytes can follow."""
        if n * least > self.size - self.at:
            raise self.wrong(f"ends within {what} ({n:,} are announced): it is truncated or not a GGUF file")

    def number(self, code: str) -> int:
        return struct.unpack(code, self.take(struct.calcsize(code), "its header"))[0]

    def string(self) -> str:
        raw = self.take(self.number("<Q"), "a string of its header")
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise self.wrong(f"has a string that is not UTF-8 before byte {self.at}") from None

    def value(self, kind: int, key: str) -> Any:
        if kind == STRING:
            return self.string()
        if kind != ARRAY:
            value = self._array(kind, 1, key)[0]
            return float(str(value)) if kind == FLOAT32 else value.item()  # 1e-05, as it was before it was rounded
        kind, n = self.number("<I"), self.number("<Q")
        self.require_room(n, 8 if kind == STRING else 1, key)
        return [self.string() for _ in range(n)] if kind == STRING else self._array(kind, n, key)

    def _array(self, kind: int, n: int, key: str) -> np.ndarray:
        if kind not in SCALARS:
            raise self.wrong(f"has {key!r} of type {kind}, which is not understood")
        dtype = np.dtype(SCALARS[kind])
        return np.frombuffer(self.take(n * dtype.itemsize, key), dtype)
