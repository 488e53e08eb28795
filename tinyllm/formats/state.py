"""`save` and `load`: weights by name in one safetensors file, bit for bit.

NF4 weights are written under bitsandbytes' names, so that transformers reads them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np

from tinyllm.backend.double_quant import BLOCK_SIZE as SCALES_PER_BLOCK
from tinyllm.backend.double_quant import dynamic_map
from tinyllm.backend.nf4 import NF4_LEVELS
from tinyllm.formats import safetensors_file
from tinyllm.frozen import stored
from tinyllm.frozen.half import HalfWeight
from tinyllm.frozen.nf4 import BLOCK_SIZES, QUANT_STATE, NF4Weight

NF4_PARTS = (".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map", QUANT_STATE)
HALF = "tinyllm.half"  # metadata: which half-precision arrays are frozen weights, and the dtype they compute in


def save(state: Mapping[str, Any], path: Any) -> None:
    """Write weights to a safetensors file, whatever its suffix; never a pickle.

    Parameters
    ----------
    state : mapping of str to Parameter, Tensor, array or FrozenWeight
        What `Module.state_dict` gives, or a part of it.
    path : str or Path

    Raises
    ------
    TypeError
        If something in the state is no array.
    ValueError
        If the state is empty, or two weights would be stored under one name.
    OSError
        If the file cannot be written; an old file of that name is then as it was.
    """
    if not isinstance(state, Mapping):
        raise TypeError(f"save takes a dict of arrays by name, such as model.state_dict(), not {type(state).__name__}")
    if not state:
        raise ValueError("there is nothing to save: the state is empty")
    arrays, metadata = pack(state)
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
        if isinstance(weight, HalfWeight):
            half[name] = weight.dtype.name
        for key, array in stored(weight).parts(name).items():
            if key in arrays:
                raise ValueError(f"two weights would both be stored as {key}; rename one of them")
            arrays[key] = array
    return arrays, {HALF: json.dumps(half)} if half else {}


def unpack(arrays: dict[str, Any], metadata: Mapping[str, str], where: str = "the state") -> dict[str, Any]:
    """Undo `pack`; `where` is named in errors."""
    try:
        half = json.loads(metadata.get(HALF, "{}"))
    except ValueError:
        raise ValueError(f"{where} has damaged metadata; get or write it again") from None
    state: dict[str, Any] = {}
    used: set[str] = set()
    for key in arrays:
        if key.endswith(QUANT_STATE):
            name = key.removesuffix(QUANT_STATE)
            state[name] = weight = _nf4_weight(name, arrays, where)
            used |= weight.parts(name).keys()
        elif ".quant_state.bitsandbytes__" in key:
            raise ValueError(f"{key} in {where} is quantised in a way not understood here; only NF4 is")
    for name, array in arrays.items():
        if name in used:
            continue
        if name in half:
            state[name] = HalfWeight(_bits_of(array).view(np.uint16), stored(array).storage, half[name])
        else:
            state[name] = stored(array).dense()
    return {name: state[name] for name in arrays if name in state}


def _bits_of(array: Any) -> np.ndarray:
    """The array itself, or the patterns of a bfloat16 one."""
    return getattr(array, "bits", array)


def _nf4_weight(name: str, arrays: dict[str, Any], where: str) -> NF4Weight:
    """The weight that bitsandbytes' arrays of this name make, each checked against what they say of it."""
    try:
        about = json.loads(arrays[name + QUANT_STATE].tobytes())
        sizes, maps = _described(about)
        parts = {part: _bits_of(arrays[name + part]).reshape(-1) for part in (*sizes, *maps)}
        parts[""] = parts[""].view(np.uint8)  # bitsandbytes' `quant_storage` makes another dtype of the same bytes
        fits = about["quant_type"] == "nf4" and about["blocksize"] in BLOCK_SIZES
        fits &= all((parts[part].dtype, parts[part].size) == of_part for part, of_part in sizes.items())
        fits &= all(np.array_equal(parts[part], levels) for part, levels in maps.items())
        scales: Any = parts[".absmax"]
        if "nested_blocksize" in about:
            fits &= about["nested_blocksize"] == SCALES_PER_BLOCK
            scales = (scales, parts[".nested_absmax"], np.float32(about["nested_offset"]))
        # The original's dtype; half precision computes in float32 here.
        dtype = about["dtype"] if about.get("dtype") in ("float32", "float64") else "float32"
        weight = NF4Weight(parts[""], scales, about["shape"], about["blocksize"], dtype)
    except (KeyError, ValueError, TypeError, AttributeError, ZeroDivisionError) as error:
        raise ValueError(
            f"the NF4 weight {name} in {where} is incomplete or damaged ({error}); get or write it again"
        ) from None
    if not fits:
        raise ValueError(f"the NF4 weight {name} in {where} does not fit its own description; get or write it again")
    return weight


def _described(about: dict[str, Any]) -> tuple[dict[str, tuple[Any, int]], dict[str, Any]]:
    """Dtype and size of each array that a description asks for, and the levels of each map, by the end of its name."""
    n, nested = prod(about["shape"]), "nested_blocksize" in about
    blocks = -(-n // about["blocksize"])
    sizes = {"": (np.dtype(np.uint8), (n + 1) // 2), ".absmax": (np.dtype(np.uint8 if nested else np.float32), blocks)}
    maps = {".quant_map": NF4_LEVELS}
    if nested:
        sizes[".nested_absmax"] = (np.dtype(np.float32), -(-blocks // SCALES_PER_BLOCK))
        maps[".nested_quant_map"] = dynamic_map()
    return sizes, maps
