"""A file's fields, which are taken one by one: what is left over at the end must change nothing.

A model read with one field misunderstood answers almost right, which is worse than an error. So a reader takes the
fields it understands, checks those that must have one value, and refuses the rest by name. ``config.json`` and GGUF's
metadata are read in this way.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from tinyllm.backend.names import few

REQUIRED = object()
NOTHING: tuple[Any, ...] = (None, False, "", {}, [])  # what a field has that asks for nothing; 0 is equal to False
LARGEST = 1 << 28  # of any size in GGUF's metadata


class Fields:
    """The fields of one file; each may be taken once.

    Parameters
    ----------
    fields : mapping of str to value
    where : str or Path
        The file, named in errors.
    prefix : str
        Only fields whose names begin so, and they are asked for without it.
    equals : str
        What stands between name and value in errors.
    lacking : str
        What an error says besides when a field is missing: the remedy.

    Attributes
    ----------
    rest : dict
        What nobody has taken yet.
    """

    def __init__(
        self,
        fields: Mapping[str, Any],
        where: Any = "config.json",
        prefix: str = "",
        equals: str = "=",
        lacking: str = "",
    ):
        self.where, self.prefix, self.equals, self.lacking = where, prefix, equals, lacking
        self.rest = {name.removeprefix(prefix): v for name, v in fields.items() if name.startswith(prefix)}

    def has(self, name: str, value: Any) -> str:
        """The beginning of an error about a value: ``"config.json has rope_theta=0"``."""
        return f"{self.where} has {self.prefix}{name}{self.equals}{value!r}"

    def take(self, name: str, default: Any = REQUIRED) -> Any:
        """The field's value; `default` if it is missing or null.

        Raises
        ------
        ValueError
            If it is missing and has no default.
        """
        value = self.rest.pop(name, None)
        if value is None and default is REQUIRED:
            raise ValueError(f"{self.where} lacks {self.prefix}{name}{self.lacking}")
        return default if value is None else value

    def expect(self, name: str, *allowed: Any) -> Any:
        """Take a field that must have one of these values, if it is there at all; the first stands for a missing one.

        Raises
        ------
        ValueError
            If it has another.
        """
        value = self.take(name, allowed[0])
        if not any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in allowed):
            only = ", ".join(map(repr, allowed))
            raise ValueError(f"{self.has(name, value)}, which is not understood here (only {only})")
        return value

    def whole(self, name: str, default: Any = REQUIRED) -> int:
        """Take a field that must be a whole number above 0 and of a size that a model can have."""
        value = self.take(name, default)
        if type(value) is not int or not 1 <= value <= LARGEST:
            raise ValueError(f"{self.has(name, value)}; it must be a whole number above 0")
        return value

    def number(self, name: str, default: Any = REQUIRED) -> float:
        """Take a field that must be a finite number above 0; null is none."""
        value = self.rest.pop(name) if name in self.rest else self.take(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise ValueError(f"{self.has(name, value)}; it must be a number above 0")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """Take a field that must be true or false."""
        value = self.take(name, default)
        if not isinstance(value, bool):
            raise ValueError(f"{self.has(name, value)}; it must be true or false")
        return value

    def listed(self, name: str, kind: type) -> Any:
        """Take a field that must be there and of this kind: a list of strings, an array of numbers."""
        value = self.take(name)
        if not isinstance(value, kind):
            raise ValueError(f"{self.where} lacks {self.prefix}{name}{self.lacking}")
        return value

    def finish(self, inert: Iterable[str] = (), ending: str = "is not understood") -> None:
        """Raise ValueError for fields that nobody took, unless they are inert, or null, false, 0 or empty."""
        known = set(inert)
        strange = [name for name, value in self.rest.items() if name not in known and value not in NOTHING]
        if strange:
            named = few([f"{self.prefix}{name}{self.equals}{self.rest[name]!r:.80}" for name in strange])
            raise ValueError(f"{self.where} has {named}, which {ending}")
