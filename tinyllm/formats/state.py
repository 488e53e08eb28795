"""`save` and `load`: weights by name in one safetensors file, bit for bit.

NF4 weights are written under bitsandbytes' names, so that transformers reads them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np

from tinyllm.backend.double_quant import dynamic_map
from tinyllm.backend.half import BFLOAT16, from_bfloat16
from tinyllm.backend.names import is_array, kind_of
from tinyllm.backend.nf4 import NF4_LEVELS
from tinyllm.backend.table import of
from tinyllm.formats import safetensors_file
from tinyllm.frozen import stored
from tinyllm.frozen.half import HalfWeight
from tinyllm.frozen.nf4 import BLOCK_SIZES, QUANT_STATE, NF4Weight

NF4_PARTS = (".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map", QUANT_STATE)
CHECKED = 1 << 20  # numbers at a time
HALF = "tinyllm.half"  # metadata: which half-precision arrays are frozen weights, and the dtype they compute in


def save(state: Mapping[str, Any], path: Any, check_finite: bool = True) -> None:
    """Write weights to a safetensors file, whatever its suffix; never a pickle.

    Parameters
    ----------
    state : mapping of str to Parameter, Tensor, array or FrozenWeight
        What `Module.state_dict` gives, or a part of it.
    path : str or Path
    check_finite : bool
        Refuse NaN and infinity. False writes every bit as it is, to look into what went wrong.

    Raises
    ------
    TypeError
        If something in the state is no array.
    ValueError
        If the state is empty, holds NaN or infinity, or two weights would be stored under one name.
    OSError
        If the file cannot be written; an old file of that name is then as it was.
    """
    if not isinstance(state, Mapping):
        raise TypeError(
            f"save takes a dict of arrays by name, such as model.state_dict(), and a path, not {kind_of(state)}"
        )
    if not state:
        raise ValueError("there is nothing to save: the state is empty")
    arrays, metadata = pack(state)
    if check_finite:
        refuse_non_finite(state, "nothing was written; check_finite=False writes it as it is")
    safetensors_file.write(path, arrays, metadata)


def load(path: Any) -> dict[str, Any]:
    """Read what `save` wrote, or any safetensors file.

    Parameters
    ----------
    path : str or Path

    Returns
    -------
    dict of str to array or FrozenWeight
        BF16 arrays of other programs come as float32, which changes no value; bitsandbytes' NF4 as `NF4Weight`.

    Raises
    ------
    FileNotFoundError, ValueError
        If there is no such file, or it is empty, truncated or foreign.
    """
    return unpack(*safetensors_file.read(path), where=str(path))


def pack(state: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Arrays by the names they are stored under, and metadata."""
    arrays: dict[str, Any] = {}
    half: dict[str, str] = {}
    for name, weight in state.items():
        if not is_array(weight):
            raise TypeError(f"{name} is {kind_of(weight)}; only arrays can be saved")
        weight = stored(weight)
        if weight.frozen and weight.storage != "nf4":
            half[name] = weight.dtype.name
        for key, array in weight.parts(name).items():
            if key in arrays:
                raise ValueError(f"two weights would both be stored as {key}; rename one of them")
            arrays[key] = array
    return arrays, {HALF: json.dumps(half)} if half else {}


def refuse_non_finite(state: Mapping[str, Any], ending: str = "nothing was written") -> None:
    """Raise ValueError for the first weight that holds NaN or infinity, by name; of NF4 its scales are looked at.

    A model with one such number answers with nothing else.
    """
    for name, weight in state.items():
        for part, array in stored(weight).parts(name).items():
            bad, first = _non_finite(array)
            if part.endswith(QUANT_STATE):
                offset = json.loads(bytes(array)).get("nested_offset", 0.0)
                bad, first = int(not math.isfinite(offset)), []
            if bad:
                at = f", the first at {first}" if first else ""
                raise ValueError(
                    f"{name} holds NaN or infinity ({bad:,} of its numbers{at}); get or train it again ({ending})"
                )


def _non_finite(array: Any) -> tuple[int, list[int]]:
    """How many numbers of an array are NaN or infinite, and where the first is; no mask of a whole array is made."""
    dtype = getattr(array, "dtype", np.dtype(bool))  # what is no array is refused by the writer
    if dtype != BFLOAT16 and dtype.kind != "f":
        return 0, []
    flat = (array.view(np.uint16) if dtype == BFLOAT16 else array).reshape(-1)
    xp = of(flat).xp
    count, first = 0, -1
    for start in range(0, flat.size, CHECKED):
        some = flat[start : start + CHECKED]
        # A bfloat16 whose exponent has nothing but ones.
        bad = (some & 0x7F80) == 0x7F80 if dtype == BFLOAT16 else ~xp.isfinite(some)
        here = int(bad.sum())
        if here and not count:
            first = start + int(bad.argmax())
        count += here
    return count, [int(i) for i in np.unravel_index(first, array.shape)] if count else []


def unpack(arrays: dict[str, Any], metadata: Mapping[str, str], where: str = "the state") -> dict[str, Any]:
    """Undo `pack`; `where` is named in errors."""
    try:
        half = json.loads(metadata.get(HALF, "{}"))
    except ValueError:
        raise ValueError(f"{where} has damaged metadata; get or write it again") from None
    state: dict[str, Any] = {}
    parts: set[str] = set()
    for key in arrays:
        if key.endswith(QUANT_STATE):
            name = key.removesuffix(QUANT_STATE)
            state[name], used = _nf4_weight(name, arrays, where)
            parts |= used
        elif ".quant_state.bitsandbytes__" in key:
            raise ValueError(f"{key} in {where} is quantised in a way not understood here; only NF4 is")
    for name, array in arrays.items():
        if name in parts:
            continue
        if name in half:
            storage = "bfloat16" if array.dtype == BFLOAT16 else "float16"
            state[name] = HalfWeight(array.view(np.uint16), storage, half[name])
        else:
            state[name] = from_bfloat16(array.view(np.uint16)) if array.dtype == BFLOAT16 else array
    return {name: state[name] for name in arrays if name in state}


def _nf4_weight(name: str, arrays: dict[str, Any], where: str) -> tuple[NF4Weight, set[str]]:
    """The weight, and the names of the arrays that made it."""
    try:
        about = json.loads(arrays[name + QUANT_STATE].tobytes())
        parts = ["", QUANT_STATE, ".absmax", ".quant_map"]
        parts += [".nested_absmax", ".nested_quant_map"] if "nested_blocksize" in about else []
        flat = {part: arrays[name + part].reshape(-1) for part in parts}
        # ``quant_storage`` in bitsandbytes' options makes another dtype of the same bytes.
        packed, absmax = flat[""].view(np.uint8), flat[".absmax"]
        fits = _fits(about, packed, flat)
        if ".nested_absmax" in flat:
            absmax = (absmax, flat[".nested_absmax"], np.float32(about["nested_offset"]))
        shape, block_size, dtype = tuple(about["shape"]), about["blocksize"], about.get("dtype")
    except (KeyError, ValueError, TypeError, AttributeError, ZeroDivisionError, RecursionError) as error:
        raise ValueError(
            f"the NF4 weight {name} in {where} is incomplete or damaged ({error}); get or write it again"
        ) from None
    if not fits:
        raise ValueError(f"the NF4 weight {name} in {where} does not fit its own description; get or write it again")
    # The original's dtype; half precision computes in float32 here.
    dtype = dtype if dtype in ("float32", "float64") else "float32"
    return NF4Weight(packed, absmax, shape, block_size, dtype), {name + part for part in parts}


def _fits(about: dict[str, Any], packed: np.ndarray, flat: dict[str, Any]) -> bool:
    """Whether arrays, flattened and by the ends of their names, are what an NF4 weight's description asks for."""
    n, double = prod(about["shape"]), ".nested_absmax" in flat
    blocks = -(-n // about["blocksize"])
    fits = [
        about["quant_type"] == "nf4",
        about["blocksize"] in BLOCK_SIZES,
        packed.size == (n + 1) // 2,
        flat[".absmax"].size == blocks,
        flat[".absmax"].dtype == (np.uint8 if double else np.float32),
        np.array_equal(flat[".quant_map"], NF4_LEVELS),
    ]
    if double:
        fits += [
            about["nested_blocksize"] == 256,
            flat[".nested_absmax"].size == -(-blocks // 256),
            flat[".nested_absmax"].dtype == np.float32,
            np.array_equal(flat[".nested_quant_map"], dynamic_map()),
        ]
    return all(fits)
