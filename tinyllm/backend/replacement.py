"""`use`: your function in the place of one of the engine's, for a while, and what it does is looked at.

A replacement may be a first try. So what it returns counts, it gets arrays that it cannot write into, and what it
returns is compared with what the engine's own returns, in kind, shape and dtype; the numbers are its own affair.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from numbers import Real
from threading import local
from typing import Any, NamedTuple

import numpy

from tinyllm.backend.names import kind_of, nearest
from tinyllm.backend.table import BACKENDS, REPLACEABLE

IN_PLACE = {"adamw_step": ("w", "m", "v")}  # what a primitive writes into by contract; `out` apart
SHAPELESS = ("state", "start")  # whole numbers that change from call to call and that no shape or dtype follows
MOST_FORMS = 1 << 10  # kinds of calls of which the form of the result is remembered


@contextmanager
def use(**replacements: Callable) -> Iterator[None]:
    """Replace functions of the engine for the length of a ``with`` block.

    Parameters
    ----------
    **replacements : callable
        ``name=function``; the function takes the same parameters as what it replaces: a primitive, `xp` first, or one
        of the plain functions `topological`, `unbroadcast`, `clip_factor`, `next_probabilities`, `to_bfloat16`,
        `from_bfloat16`, `quantize_absmax`, `dequantize_absmax`, `lora_update` and `lora_fold`, which have no `xp`.

        What it returns counts; an ``out`` among its parameters is always None then. It may write into nothing but
        what the primitive writes into by contract, which is w, m and v of `adamw_step`. While it runs, the name
        means the engine's own function, so that it may call what it replaces.

    Raises
    ------
    ValueError
        If there is nothing of that name; when it is called, if it writes into its input or returns another shape.
    TypeError
        If the function's parameters are not those of what it replaces; when it is called, if it returns another dtype,
        something of another kind or nothing.

    Examples
    --------
    >>> def my_silu_mul(xp, gate, up):
    ...     return gate / (1 + xp.exp(-gate)) * up
    >>> with tinyllm.use(silu_mul=my_silu_mul):
    ...     loss = model.loss(ids, targets)
    """
    for name, function in replacements.items():
        _check(name, function)
    primitives = [(backend, name) for backend in BACKENDS.values() for name in replacements if name not in REPLACEABLE]
    before = [(backend, name, backend.table[name]) for backend, name in primitives]
    parts = [(REPLACEABLE[name], REPLACEABLE[name].chosen) for name in replacements if name in REPLACEABLE]
    try:
        for backend, name in primitives:
            backend.put(name, _watched(name, replacements[name], backend.own[name]))
        for part, _ in parts:
            part.chosen = _watched(part.__name__, replacements[part.__name__], part.__wrapped__)
        yield
    finally:
        for backend, name, function in before:
            backend.put(name, function)
        for part, function in parts:
            part.chosen = function


def _check(name: str, function: Any) -> None:
    """Raise for a name that nothing has, and for a function that cannot be called as the engine's own is."""
    primitives = BACKENDS["numpy"].table
    if name not in primitives and name not in REPLACEABLE:
        known = sorted([*primitives, *REPLACEABLE])
        hint = nearest(name, known, "did you mean {!r}?") or f"there are: {', '.join(known)}"
        raise ValueError(f"there is no function {name!r} to replace; {hint}")
    if not callable(function):
        raise TypeError(f"{name}= takes a function, not {kind_of(function)}")
    wanted = list(inspect.signature(REPLACEABLE.get(name) or primitives[name]).parameters)
    try:
        taken = list(inspect.signature(function).parameters)
    except ValueError:  # some functions written in C do not tell
        taken = ["..."]
    if taken != wanted:
        raise TypeError(
            f"{name} takes ({', '.join(wanted)}), but the replacement takes ({', '.join(taken)}); "
            "give it the same parameters in the same order"
        )


def _watched(name: str, function: Callable, own: Callable) -> Callable:
    """The replacement, with what it does looked at: it gets inputs it cannot write into, and its result is compared
    with the engine's own, which is computed once for inputs of the same shapes."""
    signature, inside = inspect.signature(own), local()
    forms: dict[tuple, list[Form]] = {}
    writable = IN_PLACE.get(name, ())

    @wraps(function)
    def replaced(*args: Any, **named: Any) -> Any:
        if getattr(inside, "running", False):
            return own(*args, **named)
        bound = signature.bind(*args, **named)
        bound.apply_defaults()
        given = bound.arguments
        out = given.get("out")
        if out is not None:
            given["out"] = None
            if "dtype" in given:
                given["dtype"] = out.dtype
        call = {key: x if key in writable else _locked(x) for key, x in given.items()}
        inside.running = True
        try:
            result = (_in_place if writable else _called)(name, function, call)
        finally:
            inside.running = False
        if writable:
            return result
        result = _compared(name, result, _promised(forms, own, call))
        if out is None:
            return result
        out[...] = result
        return out

    return replaced


def _promised(forms: dict[tuple, list[Form]], own: Callable, call: dict[str, Any]) -> list[Form]:
    """What the engine's own function returns of such a call, apart from the numbers."""
    key = tuple(_shown(x) for name, x in call.items() if name not in SHAPELESS)
    if key not in forms:
        if len(forms) >= MOST_FORMS:
            forms.clear()
        result = own(*call.values())
        forms[key] = [_form(y) for y in (result if isinstance(result, tuple) else (result,))]
    return forms[key]


def _shown(x: Any) -> Any:
    """What the form of a result may depend on: shapes, dtypes, whole numbers and words, but no other numbers."""
    if _has_form(x):
        return type(x), tuple(x.shape), x.dtype
    return repr(x) if isinstance(x, int | str | tuple | numpy.dtype | type | None) else type(x)


class Form(NamedTuple):
    """A result without its numbers: an array or Tensor with shape and dtype; or a number, or a list."""

    kind: type
    shape: tuple[int, ...] | None = None
    dtype: Any = None

    def __str__(self) -> str:
        if self.shape is None:
            return {list: "a list", float: "a number"}[self.kind]
        return f"{'a Tensor' if self.kind.__name__ == 'Tensor' else 'an array'} {self.shape} of {self.dtype.name}"


def _has_form(x: Any) -> bool:
    return isinstance(getattr(x, "dtype", None), numpy.dtype)


def _form(y: Any) -> Form:
    if _has_form(y):
        return Form(numpy.ndarray if isinstance(y, numpy.generic) else type(y), tuple(y.shape), y.dtype)
    return Form(list if isinstance(y, list) else float)


def _compared(name: str, result: Any, promised: list[Form]) -> Any:
    """The result, if it has the forms promised; what looks into an input is copied."""
    wanted = ", ".join(map(str, promised))
    results = result if isinstance(result, tuple) else (result,)
    alike = [_is_of_kind(y, form) for y, form in zip(results, promised, strict=False)]
    if not all(alike) or len(results) != len(promised):
        what = "nothing (None)" if result is None else " and ".join(f"a {type(y).__name__}" for y in results)
        raise TypeError(f"the replacement of {name} returned {what}; it must return {wanted}")
    fresh = []
    for y, form in zip(results, promised, strict=True):
        if form.shape is not None:
            y = y if _has_form(y) else form.dtype.type(y)
            if tuple(y.shape) != form.shape or y.dtype != form.dtype:
                raise (ValueError if y.dtype == form.dtype else TypeError)(
                    f"the replacement of {name} returned {tuple(y.shape)} of {y.dtype.name}, where {wanted} is needed"
                )
        fresh.append(y.copy() if isinstance(y, numpy.ndarray) and not y.flags.writeable else y)
    return tuple(fresh) if isinstance(result, tuple) else fresh[0]


def _is_of_kind(y: Any, form: Form) -> bool:
    """Whether this is what was promised, apart from shape and dtype; a number also where an array has no axes."""
    if form.kind is float or form.shape == () and not _has_form(y):
        return isinstance(y, Real)
    generic = () if form.kind is list or form.kind.__name__ == "Tensor" else (numpy.generic,)
    return isinstance(y, (form.kind, *generic))


def _locked(x: Any) -> Any:
    """A view of a NumPy array that cannot be written into; anything else as it is."""
    if isinstance(x, numpy.ndarray):
        x = x.view()
        x.flags.writeable = False
    return x


def _unlocked(x: Any) -> Any:
    """The array of a Tensor, or one of CuPy's: what a replacement could write into; of anything else None."""
    array = x.data if hasattr(x, "requires_grad") else x
    return array if _has_form(array) and (array is not x or hasattr(x, "get")) else None


def _called(name: str, function: Callable, call: dict[str, Any]) -> Any:
    """The replacement's result. Arrays that cannot be locked are compared with copies afterwards."""
    watched = {key: _unlocked(x) for key, x in call.items() if key not in IN_PLACE.get(name, ())}
    copies = {key: x.copy() for key, x in watched.items() if x is not None}
    problem = f"the replacement of {name} writes into its input"
    try:
        result = function(*call.values())
    except ValueError as error:
        if "read-only" not in str(error):
            raise
        raise ValueError(f"{problem}; make a new array instead ({error})") from error
    for key, before in copies.items():
        if not bool(((watched[key] == before) | (before != before)).all()):  # what is no number is not even itself
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
