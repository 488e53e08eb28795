"""Values as text and back: what passes through the door to an answer, and what a line that reruns a case holds.

Whatever comes from the other side is data. Nothing is unpickled, and what is not on the list below is refused.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from tinyllm.backend.names import kind_of
from tinyllm.course.exercise import Seed

LARGEST = 4_000_000  # numbers in an array that comes back
KINDS = "biuf"


class NotPlain(TypeError):
    """A value that does not pass through the door."""


def encode(value: Any, functions: list[Callable] | None = None) -> Any:
    """A value of plain kinds as JSON's; functions go into the list, and their places stand for them."""
    if value is None or isinstance(value, (bool, str)) or type(value) is int:
        return value
    if type(value) is float:
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, Seed):
        return {"seed": int(value)}
    if isinstance(value, np.ndarray | np.generic):
        return _array(value)
    if isinstance(value, list):
        return [encode(x, functions) for x in value]
    if isinstance(value, tuple):
        return {"tuple": [encode(x, functions) for x in value]}
    if isinstance(value, dict):
        return {"dict": [[encode(k, functions), encode(x, functions)] for k, x in value.items()]}
    if isinstance(value, set | frozenset):
        return {"set": sorted((encode(x, functions) for x in value), key=repr)}
    if isinstance(value, bytes | bytearray):
        return {"bytes": bytes(value).hex()}
    if callable(value) and functions is not None:
        functions.append(value)
        return {"function": len(functions) - 1}
    raise NotPlain(kind_of(value))


def _array(value: Any) -> dict[str, Any]:
    array = np.asarray(value)
    if array.dtype.kind not in KINDS:
        raise NotPlain(f"an array of {array.dtype}")
    if array.size > LARGEST:
        raise NotPlain(f"an array of {array.size:,} numbers")
    kind = "array" if isinstance(value, np.ndarray) else "number"
    flat = [encode(x) for x in array.reshape(-1).tolist()]
    return {kind: flat, "dtype": array.dtype.name, "shape": list(array.shape)}


def decode(plain: Any, call: Callable[[int], Callable] | None = None) -> Any:
    """The value again; `call(k)` makes the function that stands for the one at place k."""
    if isinstance(plain, list):
        return [decode(x, call) for x in plain]
    if not isinstance(plain, dict):
        return plain
    if "dtype" in plain:
        kind = "array" if "array" in plain else "number"
        flat = [decode(x) for x in plain[kind]]
        array = np.array(flat, np.dtype(plain["dtype"])).reshape(plain["shape"])
        return array if kind == "array" else array[()]
    (kind, held), *_ = plain.items()
    if kind == "function" and call is not None:
        return call(held)
    makers: dict[str, Callable[[Any], Any]] = {
        "float": float,
        "seed": Seed,
        "tuple": lambda x: tuple(decode(y, call) for y in x),
        "dict": lambda x: {_key(decode(k, call)): decode(v, call) for k, v in x},
        "set": lambda x: {_key(decode(y, call)) for y in x},
        "bytes": bytes.fromhex,
    }
    return makers[kind](held)


def _key(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def written(case: tuple) -> str | None:
    """A case in one line of text, or None if a function is in it."""
    try:
        return json.dumps([encode(x) for x in case], ensure_ascii=False)
    except NotPlain:
        return None


def read(text: str) -> tuple:
    """The case that `written` wrote.

    Raises
    ------
    ValueError
        If it is no such text.
    """
    try:
        return tuple(decode(json.loads(text)))
    except (TypeError, ValueError, KeyError) as error:
        raise ValueError(f"case must be the text that an earlier check printed, whole, not {text[:60]!r}") from error


def copied(value: Any) -> Any:
    """The value with arrays, lists and dicts of its own; a seed becomes a generator, functions stay."""
    if isinstance(value, Seed):
        return np.random.default_rng(int(value))
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, dict):
        return {k: copied(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(copied(v) for v in value)
    return value
