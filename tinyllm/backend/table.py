"""The table of primitives: one attribute of a `Backend` for each plain array function.

Engine code writes ``be = of(x)`` and ``be.softmax(x)``: the function is looked up at the moment of the call, so that
`use` (in `replacement.py`) can put another one in its place. A few functions that are no primitives, since every
backend has the same one, are looked up in the same way: those marked `replaceable`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial, wraps
from types import ModuleType
from typing import Any, TypeVar, cast

import numpy

F = TypeVar("F", bound=Callable)


class Backend:
    """An array module, the functions that run on its arrays, and how work on them is cut and shared.

    This one does all work at once, in the thread that asks; `CPU` has threads, `CUDA` and ghosts ways of their own.

    Parameters
    ----------
    name : str
        ``"numpy"``, ``"cuda"`` or ``"ghost"``.
    xp : module
        ``numpy`` or ``cupy``; handed to every primitive as its first argument.
    primitives : dict of str to callable
        Plain functions ``f(xp, ...)``. Each becomes an attribute with `xp` filled in.
    """

    def __init__(self, name: str, xp: ModuleType, primitives: dict[str, Callable]):
        self.name = name
        self.xp = xp
        self.table: dict[str, Callable] = {}
        self.own = dict(primitives)  # the table without what `use` puts into it
        for primitive, function in primitives.items():
            self.put(primitive, function)

    def pieces(self, n: int, each: int = 0, most: int = 0, unit: int = 1, even: bool = False) -> list[slice]:
        """0..n in slices, to be worked at by `share`.

        Parameters
        ----------
        n : int
            How many rows, say, there are.
        each, most : int
            Bytes of one of the n, and of a slice at most; without them a slice may be as long as it likes. `most` is
            what suits a CPU's cache; a backend without one takes more at once.
        unit : int
            Slices begin at multiples of it, and have at least as many.
        even : bool
            Whether each thread shall get as many slices, all but the last of one length.
        """
        return [slice(0, n)] if n else []

    def share(self, work: Callable[[Any], None], pieces: Sequence[Any]) -> None:
        """Call ``work(piece)`` for every piece, several at once where there are threads; return when all are done."""
        for piece in pieces:
            work(piece)

    def in_turn(self, pieces: Sequence[Any]) -> Sequence[Any]:
        """The pieces to work at, one after the other: all of them; ghosts, which only count memory, take a few.

        None may need less than the one before it, but for the last.
        """
        return pieces

    def hold(self) -> AbstractContextManager:
        """A ``with`` block whose many operations follow one another: no library's own threads start between them."""
        return nullcontext()

    def undoes(self, primitive: str) -> bool:
        """Whether a rule may name this primitive's output and compute its input again; see `functional.rms_norm`."""
        return False

    def put(self, primitive: str, function: Callable) -> None:
        """Make `function` the one that ``backend.<primitive>(...)`` calls."""
        self.table[primitive] = function
        setattr(self, primitive, partial(function, self.xp))

    # Primitives are attributes made in `put`; this line is for the type checker alone.
    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"there is no primitive {name!r}; there are: {', '.join(sorted(self.table))}")

    def __repr__(self) -> str:
        return f"<backend {self.name}: {len(self.table)} primitives>"


BACKENDS: dict[str, Backend] = {}


def of(array: Any) -> Backend:
    """The backend whose arrays `array` belongs to."""
    if type(array) is not numpy.ndarray:
        for backend in BACKENDS.values():
            if isinstance(array, backend.xp.ndarray):
                return backend
    return BACKENDS["numpy"]  # NumPy's scalars and lists are NumPy's, too


REPLACEABLE: dict[str, Any] = {}  # by name; `__wrapped__` is the engine's own function, `chosen` the one called now


def replaceable(function: F) -> F:
    """Have a plain function looked up at each call, as primitives are, so that `use` can put another in its place."""

    @wraps(function)
    def looked_up(*args: Any, **named: Any) -> Any:
        return looked_up.chosen(*args, **named)  # type: ignore[attr-defined]

    looked_up.chosen = function  # type: ignore[attr-defined]
    REPLACEABLE[function.__name__] = looked_up
    return cast(F, looked_up)


def is_own(function: Any) -> bool:
    """Whether no other function stands in this one's place; a short cut past it is allowed only then."""
    return function.chosen is function.__wrapped__
