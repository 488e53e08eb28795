"""The table of primitives: one attribute of a `Backend` for each plain array function.

Engine code writes ``be = of(x)`` and ``be.softmax(x)``: the function is looked up at the moment of the call, so that
`use` can put another one in its place.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from types import ModuleType
from typing import Any

import numpy


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


@contextmanager
def use(**replacements: Callable) -> Iterator[None]:
    """Replace primitives for the length of a ``with`` block.

    Parameters
    ----------
    **replacements : callable
        ``name=function``; the function takes the same parameters as the primitive it replaces, `xp` first.

    Raises
    ------
    ValueError
        If there is no primitive of that name.
    TypeError
        If the function's parameters are not those of the primitive.

    Examples
    --------
    >>> def my_silu_mul(xp, gate, up):
    ...     return gate / (1 + xp.exp(-gate)) * up
    >>> with tinyllm.use(silu_mul=my_silu_mul):
    ...     loss = model.loss(ids, targets)
    """
    specification = BACKENDS["numpy"].table
    for name, function in replacements.items():
        if name not in specification:
            raise ValueError(
                f"there is no primitive {name!r} to replace; there are: {', '.join(sorted(specification))}"
            )
        wanted = _positional(specification[name])
        if _positional(function) != wanted:
            raise TypeError(
                f"{name} takes ({', '.join(wanted)}), but the replacement takes ({', '.join(_positional(function))}); "
                "give it the same parameters in the same order"
            )
    before = [(backend, name, backend.table[name]) for backend in BACKENDS.values() for name in replacements]
    try:
        for backend, name, _ in before:
            backend.put(name, replacements[name])
        yield
    finally:
        for backend, name, function in before:
            backend.put(name, function)


def _positional(function: Callable) -> list[str]:
    return list(inspect.signature(function).parameters)
