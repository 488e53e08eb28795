"""Safetensors: a length, a JSON header, then the arrays' bytes one after the other.

The library checks a file (its header is the part that can lie); the bytes are then read straight into arrays, so a
file is never mapped and never held twice. What is written is byte for byte what the library would write.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tinyllm.backend.half import BFLOAT16
from tinyllm.formats.atomic import write_whole
from tinyllm.formats.foreign import other_weights, refuse_pointer

# In the order in which the library lays tensors out: the widest first, so that each is aligned.
NAMES = {
    "U64": "u8", "I64": "i8", "F64": "f8", "F32": "f4", "U32": "u4", "I32": "i4", "BF16": BFLOAT16.str, "F16": "f2",
    "U16": "u2", "I16": "i2", "I8": "i1", "U8": "u1", "BOOL": "?",
}  # fmt: skip
DTYPES = {code: np.dtype(name) for code, name in NAMES.items()}
CODES = {dtype: code for code, dtype in DTYPES.items()}


def write(path: Any, arrays: Mapping[str, Any], metadata: Mapping[str, str] | None = None) -> None:
    """Write arrays, whole or not at all.

    Parameters
    ----------
    path : str or Path
    arrays : mapping of str to array
        Of either backend, in any layout; bfloat16 has the dtype `tinyllm.backend.half.BFLOAT16`.
    metadata : mapping of str to str, optional
        ``{"format": "pt"}`` is always added: transformers asks for it.

    Raises
    ------
    TypeError
        For a dtype that the format has not, naming the array.
    OSError
        If the file cannot be written; an old file of that name stays.
    """
    ranked = {code: rank for rank, code in enumerate(DTYPES)}
    items = sorted(
        ((name, *_coded(name, a)) for name, a in arrays.items()), key=lambda item: (ranked[item[1]], item[0])
    )
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    end = 0
    for name, code, array in items:
        start, end = end, end + array.nbytes
        header[name] = {"dtype": code, "shape": list(array.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with write_whole(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, _, array in items:
            file.write(_host(array).reshape(-1).view(np.uint8).data)


def _coded(name: str, array: Any) -> tuple[str, Any]:
    if not isinstance(name, str) or name == "__metadata__":
        raise TypeError(f"{name!r} cannot be the name of an array")
    if not hasattr(array, "dtype"):
        raise TypeError(f"{name} is {type(array).__name__}; only arrays can be saved")
    if array.dtype.name == "bfloat16":
        return "BF16", array.view(BFLOAT16)  # ml_dtypes' own
    code = CODES.get(array.dtype.newbyteorder("="))
    if code is None:
        raise TypeError(
            f"{name} has dtype {array.dtype}, which safetensors cannot hold; convert it to float32 or int64"
        )
    return code, array


def _host(array: Any) -> np.ndarray:
    """The array in host memory, C order, little-endian. (`ascontiguousarray` would give a scalar an axis.)"""
    array = array.get() if hasattr(array, "get") else array
    return np.asarray(array, dtype=array.dtype.newbyteorder("<"), order="C")


def read(path: Any, names: Iterable[str] | None = None) -> tuple[dict[str, Any], dict[str, str]]:
    """Read arrays and metadata.

    Parameters
    ----------
    path : str or Path
    names : iterable of str, optional
        Only these.

    Returns
    -------
    arrays : dict of str to ndarray
        Each owns its memory. bfloat16 has the dtype `tinyllm.backend.half.BFLOAT16`.
    metadata : dict of str to str

    Raises
    ------
    FileNotFoundError
    KeyError
        If one of `names` is not in the file.
    ValueError
        If the file is empty, truncated, no safetensors file, or holds a dtype not understood here.
    """
    header, start = _header(path)
    metadata = header.pop("__metadata__", None) or {}
    wanted = list(header) if names is None else list(names)
    arrays: dict[str, Any] = {}
    with open(path, "rb") as file:
        for name in wanted:
            if name not in header:
                raise KeyError(f"{path} holds no array {name!r}")
            entry = header[name]
            code = entry["dtype"]
            if code not in DTYPES:
                raise ValueError(
                    f"{name} in {path} has dtype {code}, which is not understood; convert it to BF16 or F32"
                )
            array = np.empty(math.prod(entry["shape"]), DTYPES[code].newbyteorder("<"))
            file.seek(start + entry["data_offsets"][0])
            if file.readinto(array.view(np.uint8).data) != array.nbytes:  # type: ignore[attr-defined]
                raise ValueError(f"{path} ends within {name}; the file is truncated, get or write it again")
            arrays[name] = array.astype(DTYPES[code], copy=False).reshape(entry["shape"])
    return arrays, metadata


def read_header(path: Any) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Dtype code and shape of each array in a file, without reading the arrays; raises as `read` does."""
    header, _ = _header(path)
    return {name: (e["dtype"], tuple(e["shape"])) for name, e in header.items() if name != "__metadata__"}


def _header(path: Any) -> tuple[dict[str, Any], int]:
    if not Path(path).is_file():
        folder = ": it is a folder, give the file in it" if Path(path).is_dir() else ""
        raise FileNotFoundError(f"there is no file {path}{folder}")
    if os.path.getsize(path) == 0:
        raise ValueError(f"{path} is empty; it was not written to the end, get or write it again")
    refuse_pointer(path)
    from safetensors import SafetensorError, safe_open  # compiled: loaded where a file is read, for what has no files

    try:
        with safe_open(path, framework="numpy"):  # checks the header and the length; reads no array
            pass
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            return json.loads(file.read(length)), 8 + length
    except (SafetensorError, ValueError) as error:
        if other := other_weights(path):
            raise ValueError(f"{path} is {other}") from None
        raise ValueError(f"{path} is truncated or not a safetensors file ({error}); get or write it again") from None
