"""JSON objects from files that may be damaged or made to harm: whatever is wrong with them is one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tinyllm.formats.foreign import refuse_pointer


def read(path: Any) -> dict[str, Any]:
    """Read a file that holds one JSON object.

    Parameters
    ----------
    path : str or Path

    Returns
    -------
    dict

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is not UTF-8, not JSON, nested without end, no object, or names a field twice (readers differ in which
        of the two they take).
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    refuse_pointer(path)
    try:
        found = json.loads(path.read_bytes(), object_pairs_hook=_each_once)
    except RecursionError:
        raise ValueError(f"{path} is nested too deeply to be what its name says; get or write it again") from None
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}); get or write it again") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds no JSON object; get or write it again")
    return found


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the field {twice!r} stands there twice")
    return fields
