"""`save` and `load`: weights by name in one safetensors file, bit for bit.

NF4 weights are written under bitsandbytes' names, so that transformers reads them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np

from tinyllm.backend.double_quant import dynamic_map
from tinyllm.backend.half import from_bfloat16
from tinyllm.backend.nf4 import NF4_LEVELS
from tinyllm.formats import safetensors_file
from tinyllm.frozen.half import HalfWeight
from tinyllm.frozen.nf4 import BLOCK_SIZES, QUANT_STATE, NF4Weight
from tinyllm.tensor import Tensor

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
        if isinstance(weight, NF4Weight):
            parts = weight.parts(name)
        else:
            if isinstance(weight, HalfWeight):
                half[name] = weight.dtype.name
            parts = {name: weight.data if isinstance(weight, Tensor) else weight}
        for key, array in parts.items():
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
            bits = array.bits if isinstance(array, HalfWeight) else array.view(np.uint16)
            storage = "bfloat16" if isinstance(array, HalfWeight) else "float16"
            state[name] = HalfWeight(bits, storage, half[name])
        else:
            state[name] = from_bfloat16(array.bits) if isinstance(array, HalfWeight) else array
    return {name: state[name] for name in arrays if name in state}


def _bytes_of(array: Any) -> np.ndarray:
    """The codes; ``quant_storage`` in bitsandbytes' options makes another dtype of the same bytes."""
    return (array.bits if isinstance(array, HalfWeight) else array).reshape(-1).view(np.uint8)


def _nf4_weight(name: str, arrays: dict[str, Any], where: str) -> tuple[NF4Weight, set[str]]:
    """The weight, and the names of the arrays that made it."""
    keys = [f"{name}{QUANT_STATE}", name, f"{name}.absmax", f"{name}.quant_map"]
    nested = [f"{name}.nested_absmax", f"{name}.nested_quant_map"]
    try:
        said = json.loads(arrays[keys[0]].tobytes())
        shape, block_size = tuple(said["shape"]), said["blocksize"]
        double = "nested_blocksize" in said
        packed, absmax = _bytes_of(arrays[name]), arrays[keys[2]].reshape(-1)
        blocks = -(-prod(shape) // block_size)
        fits = packed.size == (prod(shape) + 1) // 2 and absmax.size == blocks and block_size in BLOCK_SIZES
        known = said["quant_type"] == "nf4" and np.array_equal(arrays[keys[3]].reshape(-1), NF4_LEVELS)
        dtypes = packed.dtype == np.uint8 and absmax.dtype == (np.uint8 if double else np.float32)
        if double:
            absmax2 = arrays[nested[0]].reshape(-1)
            fits = fits and absmax2.size == -(-blocks // 256) and absmax2.dtype == np.float32
            known = (
                known
                and said["nested_blocksize"] == 256
                and np.array_equal(arrays[nested[1]].reshape(-1), dynamic_map())
            )
            absmax = (absmax, absmax2, np.float32(said["nested_offset"]))
    except (KeyError, ValueError, TypeError, AttributeError, ZeroDivisionError) as error:
        raise ValueError(
            f"the NF4 weight {name} in {where} is incomplete or damaged ({error}); get or write it again"
        ) from None
    if not (fits and known and dtypes):
        raise ValueError(f"the NF4 weight {name} in {where} does not fit its own description; get or write it again")
    # The original's dtype; half precision computes in float32 here.
    dtype = said.get("dtype") if said.get("dtype") in ("float32", "float64") else "float32"
    return NF4Weight(packed, absmax, shape, block_size, dtype), {*keys, *(nested if double else ())}
