"""Whether an answer is the expected one: kind, shape and dtype first, numbers last, by a budget of rounding.

A number may differ by `budget` times eps times the size of what it was computed from; the sentence tells how many times
more than that it is.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tinyllm.backend.names import kind_of
from tinyllm.course.exercise import Wrong


def compare(expected: Any, got: Any, size: Any = None, budget: float = 8.0, where: str = "it") -> None:
    """Raise `Wrong`, with one sentence, if `got` is not what is expected.

    Parameters
    ----------
    expected, got : object
        Arrays, numbers, texts, None, and lists, tuples, sets and dicts of them.
    size : object, optional
        Of the shape of `expected`: the magnitude that an error is measured by.
    budget : float
        In units of eps times size.
    where : str
        What the sentence calls it.
    """
    if isinstance(expected, np.ndarray):
        _arrays(expected, got, size, budget, where)
    elif isinstance(expected, dict):
        _dicts(expected, got, size, budget, where)
    elif isinstance(expected, (list, tuple)):
        _rows(expected, got, size, budget, where)
    elif isinstance(expected, float | np.floating):
        _floats(expected, got, size, budget, where)
    else:
        _exact(expected, got, where)


def _arrays(expected: np.ndarray, got: Any, size: Any, budget: float, where: str) -> None:
    if not expected.ndim and isinstance(got, np.generic | float | int):
        got = np.asarray(got)  # NumPy's own sums make a number of what has no axes left
    if not isinstance(got, np.ndarray):
        more = "; return its .data" if type(got).__name__ == "Tensor" else ""
        raise Wrong(f"{where} must be an array, not {_kind(got)}{more}", expected, got)
    if got.shape != expected.shape:
        raise Wrong(f"{where} must have the shape {expected.shape}, not {got.shape}", expected, got)
    if got.dtype != expected.dtype:
        raise Wrong(f"{where} must be {expected.dtype}, not {got.dtype}", expected, got)
    differs = _differs(expected, got, size, budget)
    if differs.any():
        place = tuple(int(i) for i in np.argwhere(differs)[0])
        many = f"{int(differs.sum())} of {differs.size} numbers differ; the first, at index {place}"
        at = many if expected.size > 1 else "the one number" if not expected.ndim else f"the number at {place}"
        sized = None if size is None else np.broadcast_to(np.asarray(size), expected.shape)[place]
        sized = _largest(expected) if sized is None else sized
        told = _apart(expected[place], got[place], sized, budget, expected.dtype)
        raise Wrong(f"{at if where == 'it' else f'{where}: {at}'}: {told}", expected, got)


def _differs(expected: np.ndarray, got: np.ndarray, size: Any, budget: float) -> np.ndarray:
    if expected.dtype.kind != "f":
        return np.asarray(expected != got)
    with np.errstate(all="ignore"):
        size = np.float64(_largest(expected)) if size is None else np.asarray(size, np.float64)
        room = budget * np.finfo(expected.dtype).eps * np.abs(size)
        near = np.abs(got.astype(np.float64) - expected.astype(np.float64)) <= room
    return ~(near | (got == expected) | np.isnan(got) & np.isnan(expected))


def _largest(x: np.ndarray) -> float:
    finite = np.abs(x[np.isfinite(x)].astype(np.float64))
    return float(finite.max()) if finite.size else 0.0


def _floats(expected: Any, got: Any, size: Any, budget: float, where: str) -> None:
    if isinstance(got, np.ndarray) and got.ndim == 0:
        got = got[()]
    if isinstance(got, bool | np.bool_) or not isinstance(got, int | float | np.integer | np.floating):
        raise Wrong(f"{where} must be a number, not {_kind(got)}", expected, got)
    dtype = np.dtype(type(expected)) if isinstance(expected, np.floating) else np.dtype(np.float64)
    if isinstance(expected, np.float32 | np.float16) and np.asarray(got).dtype != dtype:
        raise Wrong(f"{where} must be {dtype}, not {np.asarray(got).dtype}", expected, got)
    if _differs(np.asarray(expected, dtype), np.asarray(got, np.float64), size, budget).any():
        size = abs(float(expected)) if size is None else size
        raise Wrong(f"{where} is wrong: {_apart(expected, got, size, budget, dtype)}", expected, got)


def _apart(expected: Any, got: Any, size: Any, budget: float, dtype: np.dtype) -> str:
    told = f"expected {shown(expected)}, got {shown(got)}"
    if dtype.kind != "f" or not np.isfinite(float(got)) or not np.isfinite(float(expected)):
        return told
    room = budget * np.finfo(dtype).eps * abs(float(size))
    times = abs(float(got) - float(expected)) / room if room else np.inf
    return f"{told}, {times:.2g} times what rounding can explain" if times < 1e4 else told


def _rows(expected: Any, got: Any, size: Any, budget: float, where: str) -> None:
    word = "pair" if len(expected) == 2 and isinstance(expected, tuple) else type(expected).__name__
    if not isinstance(got, list | tuple):
        raise Wrong(f"{where} must be a {word}, not {_kind(got)}", expected, got)
    if len(got) != len(expected):
        raise Wrong(f"{where} must have {len(expected)} elements, not {len(got)}", expected, got)
    sizes = size if isinstance(size, list | tuple) else [size] * len(expected)
    for i, (e, g, s) in enumerate(zip(expected, got, sizes, strict=True)):
        which = f"its {ORDINALS[i]} element" if i < len(ORDINALS) else f"its element {i + 1}"
        compare(e, g, s, budget, which if where == "it" else f"{where}, {which}")


def _dicts(expected: dict, got: Any, size: Any, budget: float, where: str) -> None:
    if not isinstance(got, dict):
        raise Wrong(f"{where} must be a dict, not {_kind(got)}", expected, got)
    for key in expected:
        if key not in got:
            raise Wrong(f"{where} lacks the key {key!r}", expected, got)
    for key in got:
        if key not in expected:
            raise Wrong(f"{where} has a key too many, {key!r}", expected, got)
    for key, e in expected.items():
        compare(e, got[key], size[key] if isinstance(size, dict) else size, budget, f"what stands under {key!r}")


def _exact(expected: Any, got: Any, where: str) -> None:
    if isinstance(expected, bool | np.bool_):
        fits = isinstance(got, bool | np.bool_)
    elif isinstance(expected, int | np.integer):
        fits = isinstance(got, int | np.integer) and not isinstance(got, bool)
    else:
        fits = isinstance(got, type(expected))
    if not fits:
        raise Wrong(f"{where} must be {_wanted(expected)}, not {_kind(got)}", expected, got)
    if got != expected:
        raise Wrong(f"{where} is wrong: expected {shown(expected)}, got {shown(got)}", expected, got)


ORDINALS = ("first", "second", "third", "fourth")
WORDS: dict[type, str] = {
    bool: "True or False", int: "a whole number", float: "a number", str: "a text", bytes: "bytes", type(None): "None",
    list: "a list", tuple: "a tuple", dict: "a dict", set: "a set", np.ndarray: "an array",
}  # fmt: skip


def _wanted(expected: Any) -> str:
    return WORDS.get(type(expected)) or kind_of(expected)


def _kind(got: Any) -> str:
    return "None: is there a `return`?" if got is None else WORDS.get(type(got)) or kind_of(got)


def shown(value: Any, most: int = 300) -> str:
    """A value in short, as a report shows it: of an array its dtype and shape as well."""
    if isinstance(value, np.ndarray):
        numbers = " ".join(np.array2string(value, precision=9, threshold=64, separator=", ").split())
        return f"{value.dtype} {value.shape} {numbers if len(numbers) <= most else numbers[:most] + ' ...'}"
    if isinstance(value, np.generic):
        return f"{value.item():.9g}" if value.dtype.kind == "f" else str(value.item())
    if isinstance(value, tuple | list) and any(isinstance(x, np.ndarray) for x in value):
        inside = ", ".join(shown(x, most) for x in value)
        return f"({inside})" if isinstance(value, tuple) else f"[{inside}]"
    if callable(value):
        return getattr(value, "__name__", type(value).__name__)
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]} ..."
