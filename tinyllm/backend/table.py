"""The table of primitives: one attribute of a `Backend` for each plain array function.

Engine code writes ``be = of(x)`` and ``be.softmax(x)``: the function is looked up at the moment of the call, so that
`use` can put another one in its place.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial, wraps
from types import ModuleType
from typing import Any

import numpy

from tinyllm.backend.names import kind_of, nearest


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


@contextmanager
def use(**replacements: Callable) -> Iterator[None]:
    """Replace primitives for the length of a ``with`` block.

    Parameters
    ----------
    **replacements : callable
        ``name=function``; the function takes the same parameters as the primitive it replaces, `xp` first.

        What it returns counts; an ``out`` among its parameters is always None then. It may write into nothing but
        what the primitive writes into by contract, which is w, m and v of `adamw_step`.

    Raises
    ------
    ValueError
        If there is no primitive of that name; when it is called, if it writes into its input or returns another shape.
    TypeError
        If the function's parameters are not those of the primitive; when it is called, if it returns another dtype or
        nothing.

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
            hint = nearest(name, specification, " (did you mean {!r}?)")
            raise ValueError(
                f"there is no primitive {name!r} to replace; there are: {', '.join(sorted(specification))}{hint}"
            )
        if not callable(function):
            raise TypeError(f"{name}= takes a function, not {kind_of(function)}")
        wanted = _positional(specification[name])
        if _positional(function) != wanted:
            raise TypeError(
                f"{name} takes ({', '.join(wanted)}), but the replacement takes ({', '.join(_positional(function))}); "
                "give it the same parameters in the same order"
            )
    before = [(backend, name, backend.table[name]) for backend in BACKENDS.values() for name in replacements]
    try:
        for backend, name, _ in before:
            backend.put(name, _checked(name, replacements[name], backend.own[name]))
        yield
    finally:
        for backend, name, function in before:
            backend.put(name, function)


def _positional(function: Callable) -> list[str]:
    return list(inspect.signature(function).parameters)


IN_PLACE = {"adamw_step": ("w", "m", "v")}  # what a primitive writes into by contract; `out` apart


def _checked(name: str, function: Callable, own: Callable) -> Callable:
    """The replacement, with what it does looked at: it gets inputs it cannot write into, and its result is compared
    with the primitive's own in shape and dtype, which is computed once for inputs of the same shapes."""
    signature, promised = inspect.signature(own), {}
    writable = IN_PLACE.get(name, ())

    @wraps(function)
    def replaced(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        given = bound.arguments
        out = given.get("out")
        if out is not None:
            given["out"] = None
            if "dtype" in given:
                given["dtype"] = out.dtype
        call = {key: x if key in writable else _locked(x) for key, x in given.items()}
        if writable:
            return _in_place(name, function, call)
        result = _called(name, function, call)
        key = tuple((x.shape, x.dtype) if _is_array(x) else repr(x) for x in call.values())
        if key not in promised:
            promised[key] = [(tuple(y.shape), y.dtype) for y in _several(own(*call.values()))]
        result = _compared(name, result, promised[key], given["xp"])
        if out is None:
            return result
        out[...] = result
        return out

    return replaced


def _several(result: Any) -> tuple:
    return result if isinstance(result, tuple) else (result,)


def _is_array(x: Any) -> bool:
    return any(isinstance(x, backend.xp.ndarray) for backend in BACKENDS.values())


def _locked(x: Any) -> Any:
    """A view of a NumPy array that cannot be written into; anything else as it is."""
    if isinstance(x, numpy.ndarray):
        x = x.view()
        x.flags.writeable = False
    return x


def _called(name: str, function: Callable, call: dict[str, Any]) -> Any:
    """The replacement's result. Arrays that cannot be locked (CuPy's) are compared with copies afterwards."""
    watched = {key: x for key, x in call.items() if key not in IN_PLACE.get(name, ())}
    copies = {key: x.copy() for key, x in watched.items() if _is_array(x) and hasattr(x, "get")}
    problem = f"the replacement of {name} writes into its input"
    try:
        result = function(*call.values())
    except ValueError as error:
        if "read-only" not in str(error):
            raise
        raise ValueError(f"{problem}; make a new array instead ({error})") from error
    for key, before in copies.items():
        if not bool(((call[key] == before) | (before != before)).all()):  # what is no number is not even itself
            raise ValueError(f"{problem} {key}; make a new array instead")
    return result


def _in_place(name: str, function: Callable, call: dict[str, Any]) -> None:
    """Call a replacement of the optimiser's step, which has to change w, m and v where they are.

    It has done nothing if they are as they were although plain descent, w - lr * g, would have moved w.
    """
    w, g, lr = call["w"], call["g"], call["lr"]
    before = [call[key].copy() for key in IN_PLACE[name]]
    result = _called(name, function, call)
    problem = f"{name} works in place: its replacement writes into w, m and v (w -= ..., not w = w - ...)"
    if result is not None:
        raise TypeError(f"{problem} and returns nothing, but this one returned a {type(result).__name__}")
    changed = any(bool((call[key] != old).any()) for key, old in zip(IN_PLACE[name], before, strict=True))
    if not changed and bool((w - (lr * g).astype(w.dtype) != w).any()):
        raise ValueError(f"{problem}, but this one left all three as they were")


def _compared(name: str, result: Any, promised: list, xp: Any) -> Any:
    """The result, if it has the shapes and dtypes promised; what looks into an input is copied."""
    wanted = ", ".join(f"{shape} of {dtype.name}" for shape, dtype in promised)
    results = _several(result)
    arrays = all(isinstance(y, xp.ndarray | numpy.generic) for y in results)
    if not arrays or len(results) != len(promised):
        what = "nothing (None)" if result is None else " and ".join(f"a {type(y).__name__}" for y in results)
        raise TypeError(f"the replacement of {name} returned {what}; it must return an array {wanted}")
    for y, (shape, dtype) in zip(results, promised, strict=True):
        if tuple(y.shape) != shape or y.dtype != dtype:
            raise (ValueError if y.dtype == dtype else TypeError)(
                f"the replacement of {name} returned {tuple(y.shape)} of {y.dtype.name}, where {wanted} is needed"
            )
    fresh = tuple(y if not isinstance(y, numpy.ndarray) or y.flags.writeable else y.copy() for y in results)
    return fresh if isinstance(result, tuple) else fresh[0]
